//! The model map: which upstream model a client's name stands for, and how hard it may think. It does not know what the
//! client asked for besides the name.

use super::error::Refusal;
use crate::config::ModelEntry;
use crate::config::bridge::Effort;
use crate::config::pattern::without_long_context;

/// What a thinking budget of so many tokens stands for.
pub(crate) fn effort_of_budget(tokens: u64) -> Effort {
    match tokens {
        0..=4096 => Effort::Low,
        4097..=16384 => Effort::Medium,
        _ => Effort::High,
    }
}

/// The model that a request runs on.
#[derive(Clone, Debug)]
pub(crate) struct Model<'m> {
    /// The upstream's name.
    pub(crate) name: String,
    /// Whether it takes an effort and no sampling.
    pub(crate) reasoning: bool,
    entry: &'m ModelEntry,
}

impl<'m> Model<'m> {
    /// Finds the entry for the name that a client sent.
    pub(crate) fn find(asked: &str, entries: &'m [ModelEntry]) -> Result<Self, Refusal> {
        let bare = without_long_context(asked);
        if bare.is_empty() {
            return Err(Refusal::invalid("model", "Field required"));
        }
        let entry = entries
            .iter()
            .find(|entry| entry.matches(bare))
            .ok_or_else(|| Refusal::unknown_model(asked))?;
        let name = entry
            .model
            .as_deref()
            .filter(|name| *name != "*")
            .unwrap_or(bare)
            .to_owned();
        let reasoning = entry.reasoning.unwrap_or_else(|| reasons_by_name(&name));
        Ok(Model {
            name,
            reasoning,
            entry,
        })
    }

    /// The effort to send for the word that was asked for, unknown words being none.
    pub(crate) fn effort(&self, asked: Option<Effort>) -> Option<Effort> {
        self.entry
            .effort
            .or(asked)
            .map(|effort| effort.min(self.entry.max_effort))
    }

    /// The effort of a request that must not think.
    pub(crate) fn effort_off(&self) -> Effort {
        self.entry.effort_off
    }

    pub(crate) fn max_output(&self) -> u64 {
        self.entry.max_output.unwrap_or(u64::MAX)
    }

    /// Whether assistant texts are marked.
    pub(crate) fn phase(&self) -> bool {
        self.entry.phase
    }
}

/// Whether a model of this name is a reasoning model, as OpenAI names them.
fn reasons_by_name(name: &str) -> bool {
    let beginning = ["gpt-5", "gpt-6", "codex"]
        .iter()
        .any(|beginning| name.starts_with(beginning));
    let o_series = name
        .strip_prefix('o')
        .is_some_and(|rest| rest.starts_with(|letter: char| letter.is_ascii_digit()));
    (beginning || o_series) && !name.contains("chat")
}
