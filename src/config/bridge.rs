//! Settings of an upstream that speaks Responses only and serves clients of other protocols all the same.

use std::time::Duration;

use strum::{EnumString, IntoStaticStr, VariantNames};

/// Names that Claude Code sends by itself, for its main model, small jobs and the classifier of its auto mode. A map that
/// matches none of them for one leaves a part of the client without a model.
pub const CLAUDE_CODE_MODELS: [&str; 5] = [
    "claude-sonnet-5",
    "claude-haiku-5-5",
    "claude-opus-5-5",
    "claude-sonnet-5-5",
    "claude-fable-5-2",
];

/// The section `upstreams.*.bridge`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeOptions {
    /// Whether encrypted reasoning travels through the client, in the signatures of thinking blocks.
    pub reasoning_replay: bool,
    /// How much of the reasoning's summary is asked for.
    pub reasoning_summary: ReasoningSummary,
    /// What is done about stop sequences.
    pub stop_sequences: StopSequences,
    /// Where images and files of a tool's result go.
    pub tool_media: ToolMedia,
    /// What system texts become.
    pub system_as: SystemAs,
    /// Path of the Responses endpoint, behind the upstream's own prefix.
    pub path: String,
    /// After so long without a fact the response's head is sent, so that pings may follow.
    pub commit_after: Duration,
    /// Silence towards the client after which a ping is sent.
    pub ping: Duration,
    /// Whether clients that ask for the list of models are answered from the model map.
    pub list_models: bool,
}

/// How much of the reasoning's summary is asked for, as `reasoning.summary`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum ReasoningSummary {
    /// The most detailed summary that the model offers.
    Auto,
    /// A short summary.
    Concise,
    /// A detailed summary.
    Detailed,
    /// None is asked for: OpenAI answers 400 to organisations that are not verified.
    Off,
}

/// What is done about stop sequences, which Responses does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum StopSequences {
    /// The stream is watched and ends at a match; the tokens behind it are paid.
    Emulate,
    /// They are left out, and reported.
    Drop,
    /// A request with any is answered 400.
    Refuse,
}

/// Where images and files of a tool's result go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum ToolMedia {
    /// Into the output itself, as a list of parts.
    Inline,
    /// Into a user message behind the outputs, for upstreams that take only a string as output.
    UserMessage,
}

/// What system texts become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum SystemAs {
    /// `developer` messages in their places.
    Developer,
    /// The first become `instructions`; later ones user texts.
    Instructions,
}

/// How hard a model thinks, in the words of `reasoning.effort`, from least to most.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, EnumString, IntoStaticStr, VariantNames,
)]
#[strum(serialize_all = "snake_case")]
pub enum Effort {
    /// No reasoning.
    None,
    /// The least reasoning.
    Minimal,
    /// Little reasoning.
    Low,
    /// A medium amount of reasoning.
    Medium,
    /// Much reasoning.
    High,
    /// More reasoning than `high`.
    Xhigh,
    /// The most reasoning that the model offers.
    Max,
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
    /// The most effort that may be asked for. `max` only where the model knows it.
    pub max_effort: Effort,
    /// What "do not think" is called: `none`; `minimal` or `low` for models that do not know that.
    pub effort_off: Effort,
    /// Whether it is a reasoning model, which takes an effort and no sampling. `None`: by its name.
    pub reasoning: Option<bool>,
    /// The most output tokens that may be asked for.
    pub max_output: Option<u64>,
    /// Whether assistant texts are marked as commentary or final answer.
    pub phase: bool,
}

impl ModelEntry {
    /// An entry that only maps a pattern to a model, with the defaults of all else.
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

    /// Whether this entry is for every name that the other one is for.
    pub(crate) fn covers(&self, other: &ModelEntry) -> bool {
        match self.pattern.strip_suffix('*') {
            Some(beginning) => other.pattern.trim_end_matches('*').starts_with(beginning),
            None => other.pattern == self.pattern,
        }
    }
}

impl BridgeOptions {
    /// The defaults; `is_codex`: the upstream is the backend of Codex, whose paths have no version.
    pub fn of(is_codex: bool) -> BridgeOptions {
        let (path, reasoning_summary) = if is_codex {
            ("/responses", ReasoningSummary::Auto)
        } else {
            ("/v1/responses", ReasoningSummary::Off)
        };
        BridgeOptions {
            reasoning_replay: true,
            reasoning_summary,
            stop_sequences: StopSequences::Emulate,
            tool_media: ToolMedia::Inline,
            system_as: SystemAs::Developer,
            path: path.to_owned(),
            commit_after: Duration::from_secs(10),
            ping: Duration::from_secs(15),
            list_models: false,
        }
    }
}
