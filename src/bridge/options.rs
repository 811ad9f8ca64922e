//! What an operator sets for an upstream that is reached by the bridge. Plain values: the configuration fills them, and
//! nothing here reads a file.

use super::Endpoint;
use super::models::ModelEntry;
use std::time::Duration;

/// What kind of Responses server the upstream is. It decides which members may be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamKind {
    /// OpenAI's own API, with all of Responses.
    #[default]
    OpenAi,
    /// The ChatGPT backend that Codex uses: `instructions` is required, and limits and sampling are refused there
    /// ("Unsupported parameter").
    Codex,
    /// Another server that speaks Responses: no members that only OpenAI itself has.
    Gateway,
}

/// How much of the reasoning's summary is asked for, as `reasoning.summary`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningSummary {
    /// `auto`.
    Auto,
    /// `concise`.
    Concise,
    /// `detailed`.
    Detailed,
    /// None is asked for. OpenAI answers 400 to organisations that are not verified.
    Off,
}

/// What is done about stop sequences, which Responses does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StopSequences {
    /// The stream is watched and ends at a match; the tokens behind it are paid.
    #[default]
    Emulate,
    /// They are left out, and reported.
    Drop,
    /// A request with any is answered 400.
    Refuse,
}

/// Where images and files of a tool's result go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToolMedia {
    /// Into the output itself, as a list of parts.
    #[default]
    Inline,
    /// Into a user message behind the outputs, for upstreams that take only a string as output.
    UserMessage,
}

/// What system texts become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SystemAs {
    /// `developer` messages in their places.
    #[default]
    Developer,
    /// The first become `instructions`; later ones user texts in `<system-reminder>` tags.
    Instructions,
}

/// `upstreams.*.bridge`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether encrypted reasoning travels through the client, in the signatures of thinking blocks.
    pub reasoning_replay: bool,
    /// `None`: `auto` on codex, else off.
    pub reasoning_summary: Option<ReasoningSummary>,
    /// What is done about stop sequences.
    pub stop_sequences: StopSequences,
    /// Where media of tool results go.
    pub tool_media: ToolMedia,
    /// What system texts become.
    pub system_as: SystemAs,
    /// Path of the Responses endpoint, behind the upstream's own prefix. `None`: `/responses` on codex, else
    /// `/v1/responses`.
    pub path: Option<String>,
    /// After so long without a fact the answer's head is sent, so that pings may follow.
    pub commit_after: Duration,
    /// Silence towards the client after which a ping is sent.
    pub ping: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            reasoning_replay: true,
            reasoning_summary: None,
            stop_sequences: StopSequences::default(),
            tool_media: ToolMedia::default(),
            system_as: SystemAs::default(),
            path: None,
            commit_after: Duration::from_secs(10),
            ping: Duration::from_secs(15),
        }
    }
}

/// An upstream as the bridge sees it.
#[derive(Clone, Debug, Default)]
pub struct UpstreamBridge {
    /// Its name in the configuration. It is part of what ties encrypted reasoning to its upstream.
    pub name: String,
    /// What kind of server it is.
    pub kind: UpstreamKind,
    /// What the operator chose.
    pub options: Options,
    /// `upstreams.*.models`, in order; the first that matches counts.
    pub models: Vec<ModelEntry>,
}

impl UpstreamBridge {
    /// The path that a request is sent to, behind the upstream's own prefix; the client's path and query do not count.
    pub fn path(&self, endpoint: Endpoint) -> String {
        let default = if self.kind == UpstreamKind::Codex {
            "/responses"
        } else {
            "/v1/responses"
        };
        let path = self.options.path.as_deref().unwrap_or(default);
        match endpoint {
            Endpoint::CountTokens => format!("{path}/input_tokens"),
            Endpoint::Messages | Endpoint::Chat => path.to_owned(),
        }
    }

    /// The word for `reasoning.summary`, if one is to be asked for.
    pub(crate) fn summary(&self) -> Option<&'static str> {
        let auto = if self.kind == UpstreamKind::Codex {
            ReasoningSummary::Auto
        } else {
            ReasoningSummary::Off
        };
        match self.options.reasoning_summary.unwrap_or(auto) {
            ReasoningSummary::Auto => Some("auto"),
            ReasoningSummary::Concise => Some("concise"),
            ReasoningSummary::Detailed => Some("detailed"),
            ReasoningSummary::Off => None,
        }
    }
}
