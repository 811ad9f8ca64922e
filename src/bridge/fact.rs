//! What an answer of a Responses upstream says, free of its protocol: the reader makes facts, the two writers take them.

use super::failure::Failure;
use super::input::CallKind;
use super::json::Node;

/// One thing that the upstream said. Items come one after the other, never mixed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fact {
    /// What it says about the answer as a whole, at the beginning and again at the end.
    Head(Head),
    /// More of the answer's text.
    Text(String),
    /// More of the text in which the model refuses.
    Refusal(String),
    /// More of the reasoning, or of its summary.
    Thinking(String),
    /// The encrypted reasoning of the item under way, whole.
    Encrypted(String),
    /// A tool is called; its arguments follow.
    Call(Call),
    /// More of the arguments of the call before.
    Arguments(String),
    /// The upstream has searched the web.
    Search {
        /// What for.
        query: String,
        /// URLs of what it found.
        sources: Vec<String>,
    },
    /// The item under way is whole.
    ItemEnd,
    /// The answer has ended as it should. Nothing follows.
    Done(Final),
    /// The answer has failed. Nothing follows.
    Failed(Failure),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// What its result has to name.
    pub(crate) id: String,
    /// The upstream's name for the tool.
    pub(crate) name: String,
    /// How the tool is called.
    pub(crate) kind: CallKind,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Final {
    /// Why it is not complete, if it is not.
    pub(crate) incomplete: Option<Incomplete>,
    /// The tokens of the whole response.
    pub(crate) usage: Usage,
}

/// Why an answer is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Incomplete {
    /// A filter has cut it.
    ContentFilter,
    /// A limit was reached, of tokens or of another kind.
    Limit,
}

/// Tokens, as a Responses upstream counts them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Of the prompt, with those that were cached.
    pub(crate) input: u64,
    /// Of these, read from the cache.
    pub(crate) cached: u64,
    /// Of these, written to the cache; `None` where the upstream does not tell.
    pub(crate) cache_write: Option<u64>,
    /// Of the answer, with the reasoning.
    pub(crate) output: u64,
    /// Of these, the reasoning.
    pub(crate) reasoning: u64,
    /// The sum, if it was told.
    pub(crate) total: Option<u64>,
}

/// What the upstream says about the answer as a whole, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// The response's id.
    pub(crate) id: Option<String>,
    /// The tier that it runs on.
    pub(crate) tier: Option<String>,
}

impl Head {
    /// What a response object tells.
    pub(crate) fn read(response: &Node<'_>) -> Self {
        Head {
            id: response.some_text("id"),
            tier: response.some_text("service_tier"),
        }
    }

    /// Takes over what is told later.
    pub(crate) fn update(&mut self, newer: Head) {
        self.id = newer.id.or(self.id.take());
        self.tier = newer.tier.or(self.tier.take());
    }

    /// The part of the response's id that tells answers apart.
    pub(crate) fn bare_id(&self) -> Option<&str> {
        let id = self.id.as_deref()?;
        Some(id.strip_prefix("resp_").unwrap_or(id))
    }
}

impl Usage {
    /// Reads `usage` of a response; what is not there is zero.
    pub(crate) fn read(response: &Node<'_>) -> Self {
        let usage = response.member("usage").unwrap_or(&Node::Null);
        let details = |name| usage.member(name).unwrap_or(&Node::Null);
        let input = details("input_tokens_details");
        let output = details("output_tokens_details");
        Usage {
            input: usage.member_number("input_tokens").unwrap_or(0),
            cached: input.member_number("cached_tokens").unwrap_or(0),
            cache_write: input.member_number("cache_write_tokens"),
            output: usage.member_number("output_tokens").unwrap_or(0),
            reasoning: output.member_number("reasoning_tokens").unwrap_or(0),
            total: usage.member_number("total_tokens"),
        }
    }
}
