//! An upstream's settings, from the configuration's words to those of this room. It is the one place where the two meet.

use super::models::{Effort, ModelEntry};
use super::options::{
    Options, ReasoningSummary, StopSequences, SystemAs, ToolMedia, UpstreamBridge, UpstreamKind,
};
use crate::config;
use crate::config::{ChatCompletionsMode, MessagesMode};

impl UpstreamBridge {
    /// What the bridge needs to know of an upstream; `None` where no endpoint of it is converted.
    pub fn of(upstream: &config::Upstream) -> Option<UpstreamBridge> {
        let converts = upstream.messages == MessagesMode::Responses
            || upstream.chat_completions == ChatCompletionsMode::Responses;
        converts.then(|| UpstreamBridge {
            name: upstream.name.clone(),
            kind: kind(upstream.kind),
            options: options(&upstream.bridge),
            models: upstream.models.iter().map(entry).collect(),
        })
    }
}

fn kind(kind: config::UpstreamKind) -> UpstreamKind {
    match kind {
        config::UpstreamKind::OpenAi => UpstreamKind::OpenAi,
        // What stands behind such a gateway refuses what Codex refuses.
        config::UpstreamKind::Codex | config::UpstreamKind::CodexGateway => UpstreamKind::Codex,
        config::UpstreamKind::Gateway | config::UpstreamKind::Anthropic => UpstreamKind::Gateway,
    }
}

fn options(given: &config::BridgeOptions) -> Options {
    use config::bridge as words;
    Options {
        reasoning_replay: given.reasoning_replay,
        reasoning_summary: Some(match given.reasoning_summary {
            words::ReasoningSummary::Auto => ReasoningSummary::Auto,
            words::ReasoningSummary::Concise => ReasoningSummary::Concise,
            words::ReasoningSummary::Detailed => ReasoningSummary::Detailed,
            words::ReasoningSummary::Off => ReasoningSummary::Off,
        }),
        stop_sequences: match given.stop_sequences {
            words::StopSequences::Emulate => StopSequences::Emulate,
            words::StopSequences::Drop => StopSequences::Drop,
            words::StopSequences::Refuse => StopSequences::Refuse,
        },
        tool_media: match given.tool_media {
            words::ToolMedia::Inline => ToolMedia::Inline,
            words::ToolMedia::UserMessage => ToolMedia::UserMessage,
        },
        system_as: match given.system_as {
            words::SystemAs::Developer => SystemAs::Developer,
            words::SystemAs::Instructions => SystemAs::Instructions,
        },
        path: Some(given.path.clone()),
        commit_after: given.commit_after,
        ping: given.ping,
    }
}

fn entry(given: &config::ModelEntry) -> ModelEntry {
    ModelEntry {
        pattern: given.pattern.clone(),
        model: given.model.clone(),
        effort: given.effort.map(effort),
        max_effort: effort(given.max_effort),
        effort_off: effort(given.effort_off),
        reasoning: given.reasoning,
        max_output: given.max_output,
        phase: given.phase,
    }
}

fn effort(given: config::bridge::Effort) -> Effort {
    use config::bridge::Effort as Given;
    match given {
        Given::None => Effort::None,
        Given::Minimal => Effort::Minimal,
        Given::Low => Effort::Low,
        Given::Medium => Effort::Medium,
        Given::High => Effort::High,
        Given::Xhigh => Effort::Xhigh,
        Given::Max => Effort::Max,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

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
            Options {
                reasoning_replay: false,
                reasoning_summary: Some(ReasoningSummary::Concise),
                stop_sequences: StopSequences::Refuse,
                tool_media: ToolMedia::UserMessage,
                system_as: SystemAs::Instructions,
                path: Some("/responses".to_owned()),
                ..Options::default()
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
