//! What an answer of a Responses upstream says, free of its protocol: the reader makes facts, the two writers take them.

use std::ops::Range;

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
    /// A page that the text of the item under way cites.
    Citation(Citation),
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Citation {
    /// Where it stands: characters of the item's text.
    pub(crate) place: Range<u64>,
    pub(crate) url: String,
    pub(crate) title: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Final {
    /// Why it is not complete, if it is not.
    pub(crate) incomplete: Option<Incomplete>,
    /// The tokens of the whole response, where they have been counted.
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

/// Tokens of a response. Whoever counts them for the log counts them for the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt, with those that were read from a cache or written to one.
    pub input: u64,
    /// Of these, read from the cache.
    pub cached: u64,
    /// Of these, written to the cache; `None` where the upstream does not tell.
    pub cache_write: Option<u64>,
    /// Of the answer, with the reasoning.
    pub output: u64,
    /// Of these, the reasoning.
    pub reasoning: u64,
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
