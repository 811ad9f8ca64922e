//! An upstream that is reached by the bridge, as this room needs to know it.

use super::Endpoint;
use crate::config::bridge::ReasoningSummary;
use crate::config::{self, BridgeOptions, ChatCompletionsMode, MessagesMode, ModelEntry};

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

/// An upstream as the bridge sees it.
#[derive(Clone, Debug)]
pub struct UpstreamBridge {
    /// Its name in the configuration. It is part of what ties encrypted reasoning to its upstream.
    pub name: String,
    /// What kind of server it is.
    pub kind: UpstreamKind,
    /// What the operator chose.
    pub options: BridgeOptions,
    /// `upstreams.*.models`, in order; the first that matches counts.
    pub models: Vec<ModelEntry>,
}

impl UpstreamBridge {
    /// What the bridge needs to know of an upstream; `None` where no endpoint of it is converted.
    pub fn of(upstream: &config::Upstream) -> Option<UpstreamBridge> {
        let converts = upstream.messages == MessagesMode::Responses
            || upstream.chat_completions == ChatCompletionsMode::Responses;
        converts.then(|| UpstreamBridge {
            name: upstream.name.clone(),
            kind: UpstreamKind::of(upstream.kind),
            options: upstream.bridge.clone(),
            models: upstream.models.clone(),
        })
    }

    /// The path that a request is sent to, behind the upstream's own prefix; the client's path and query do not count.
    pub fn path(&self, endpoint: Endpoint) -> String {
        let path = &self.options.path;
        match endpoint {
            Endpoint::CountTokens => format!("{path}/input_tokens"),
            Endpoint::Messages | Endpoint::Chat => path.clone(),
        }
    }

    /// The word for `reasoning.summary`, if one is to be asked for.
    pub(crate) fn summary(&self) -> Option<&'static str> {
        match self.options.reasoning_summary {
            ReasoningSummary::Off => None,
            summary => Some(summary.into()),
        }
    }
}

impl UpstreamKind {
    fn of(kind: config::UpstreamKind) -> UpstreamKind {
        match kind {
            config::UpstreamKind::OpenAi => UpstreamKind::OpenAi,
            // What stands behind such a gateway refuses what Codex refuses.
            config::UpstreamKind::Codex | config::UpstreamKind::CodexGateway => UpstreamKind::Codex,
            config::UpstreamKind::Gateway | config::UpstreamKind::Anthropic => {
                UpstreamKind::Gateway
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::bridge::{Effort, StopSequences, SystemAs, ToolMedia};

    fn bridge(settings: &str) -> Option<UpstreamBridge> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiergate.yaml");
        let text = format!("policy: p\nupstreams: {{u: {{url: \"http://u\", {settings}}}}}\n");
        std::fs::write(&path, text).unwrap();
        UpstreamBridge::of(&Config::load(&path).unwrap().0.upstreams[0])
    }

    #[test]
    fn what_the_configuration_says_arrives() {
        let bridge = bridge(
            "kind: codex, chat_completions: responses, \
             bridge: {stop_sequences: refuse, tool_media: user_message, system_as: instructions, \
             reasoning_summary: concise, reasoning_replay: false}, \
             models: [{match: a*, model: b, effort: high, max_effort: max, effort_off: low, \
             reasoning: true, max_output: 9, phase: true}]",
        )
        .unwrap();
        assert_eq!((&*bridge.name, bridge.kind), ("u", UpstreamKind::Codex));
        assert_eq!(
            bridge.options,
            BridgeOptions {
                reasoning_replay: false,
                reasoning_summary: ReasoningSummary::Concise,
                stop_sequences: StopSequences::Refuse,
                tool_media: ToolMedia::UserMessage,
                system_as: SystemAs::Instructions,
                path: "/responses".to_owned(),
                ..BridgeOptions::of(true)
            }
        );
        assert_eq!(
            bridge.models,
            [ModelEntry {
                effort: Some(Effort::High),
                max_effort: Effort::Max,
                effort_off: Effort::Low,
                reasoning: Some(true),
                max_output: Some(9),
                phase: true,
                ..ModelEntry::new("a*", Some("b"))
            }]
        );
    }

    #[test]
    fn without_an_endpoint_to_convert_there_is_none() {
        assert!(bridge("kind: openai").is_none());
    }
}
