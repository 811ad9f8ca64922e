//! The model map: which upstream model a client's name stands for, and how hard it may think. It does not know what the
//! client asked for besides the name.

use super::error::Refusal;

/// What clients append to a name to ask for the window of a million tokens. The upstream's names do not have it.
const LONG_CONTEXT: &str = "[1m]";

/// How hard a model thinks, in the words of `reasoning.effort`, from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effort {
    /// It does not think.
    None,
    /// Hardly.
    Minimal,
    /// A little.
    Low,
    /// OpenAI's own default.
    Medium,
    /// Hard.
    High,
    /// Harder; not all models know it.
    Xhigh,
    /// As hard as it can; few models know it.
    Max,
}

impl Effort {
    /// All of them, from least to most.
    const ALL: [Effort; 7] = [
        Effort::None,
        Effort::Minimal,
        Effort::Low,
        Effort::Medium,
        Effort::High,
        Effort::Xhigh,
        Effort::Max,
    ];

    /// The effort of this word; `None` for a word that is not known.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|effort| effort.word() == word)
    }

    /// Its word on the wire and in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Effort::None => "none",
            Effort::Minimal => "minimal",
            Effort::Low => "low",
            Effort::Medium => "medium",
            Effort::High => "high",
            Effort::Xhigh => "xhigh",
            Effort::Max => "max",
        }
    }

    /// What a thinking budget of so many tokens stands for.
    pub(crate) fn of_budget(tokens: u64) -> Self {
        match tokens {
            0..=4096 => Effort::Low,
            4097..=16384 => Effort::Medium,
            _ => Effort::High,
        }
    }
}

/// An entry of `upstreams.*.models`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelEntry {
    /// A name, or the beginning of names before a trailing `*`.
    pub pattern: String,
    /// The upstream's name. `None`: the client's, as it is.
    pub model: Option<String>,
    /// The effort of every request, whatever was asked for.
    pub effort: Option<Effort>,
    /// The most that may be asked for. `max` only where the model knows it.
    pub max_effort: Effort,
    /// What "do not think" is called: `none`; `minimal` or `low` for models that do not know that.
    pub effort_off: Effort,
    /// Whether it is a reasoning model, which takes an effort and no sampling. `None`: by its name.
    pub reasoning: Option<bool>,
    /// The most output tokens that may be asked for.
    pub max_output: Option<u64>,
    /// Whether assistant texts are marked as commentary or final answer, which gpt-5.3-codex and later do themselves.
    pub phase: bool,
}

impl ModelEntry {
    /// An entry that only maps a pattern to a model.
    pub fn new(pattern: &str, model: Option<&str>) -> Self {
        ModelEntry {
            pattern: pattern.to_owned(),
            model: model.map(str::to_owned),
            effort: None,
            max_effort: Effort::Xhigh,
            effort_off: Effort::None,
            reasoning: None,
            max_output: None,
            phase: false,
        }
    }

    /// Whether this entry is for a name, from which `[1m]` has been cut.
    pub fn matches(&self, name: &str) -> bool {
        match self.pattern.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == self.pattern,
        }
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
        let bare = asked.strip_suffix(LONG_CONTEXT).unwrap_or(asked);
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

    /// The most output tokens.
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
