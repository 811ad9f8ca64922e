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
