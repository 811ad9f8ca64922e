//! What both protocols' requests have in common on their way to Responses: the list of what is dropped, the limits, the
//! sampling, the stop sequences, and the order of the members on the wire. What a protocol means is in
//! [`super::messages_request`] and [`super::chat_request`].

use super::Protocol;
use super::error::Refusal;
use super::json::{MemberValue, Node, Object, Text, object, to_string};
use super::models::Model;
use super::options::{UpstreamBridge, UpstreamKind};
use super::record::Record;
use super::response_context::ResponseContext;
use crate::config::bridge::{Effort, StopSequences};

/// The members of a request, in the order in which they are sent: what changes least comes first, because the upstream
/// caches the beginning of a prompt.
const ORDER: [&str; 21] = [
    "model",
    "instructions",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "input",
    "reasoning",
    "include",
    "text",
    "top_logprobs",
    "max_output_tokens",
    "temperature",
    "top_p",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "metadata",
    "safety_identifier",
    "moderation",
    "store",
    "stream",
];

/// The members that `/responses/input_tokens` takes.
const COUNTED: [&str; 8] = [
    "model",
    "input",
    "instructions",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "reasoning",
    "text",
];

/// The least that Responses takes as `max_output_tokens`.
const LEAST_OUTPUT: u64 = 16;

/// Most stop sequences of a request.
const STOP_SEQUENCES: usize = 64;

/// Most bytes of all stop sequences of a request: what looks for them, and what is held back of the answer, is as large.
const STOP_BYTES: usize = 16 * 1024;

/// Most names that are reported; further ones are dropped in silence.
const DROPPED_NAMES: usize = 64;

/// Longest name that is reported, in bytes.
const DROPPED_BYTES: usize = 64;

/// Names of what has no counterpart upstream, in order, each once. They are fit for a header: letters that are not are
/// `_`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dropped(Vec<String>);

impl Dropped {
    /// Adds a name, unless it is there.
    pub(crate) fn add(&mut self, name: &str) {
        if self.0.len() == DROPPED_NAMES {
            return;
        }
        let fit = |letter: char| if is_fit(letter) { letter } else { '_' };
        let name: String = name.chars().take(DROPPED_BYTES).map(fit).collect();
        if !self.0.contains(&name) {
            self.0.push(name);
        }
    }

    /// Reports all members but the known.
    pub(crate) fn unknown_members(&mut self, body: &Record<'_, '_>, known: &[&str]) {
        for (name, _) in body.object().members() {
            if !known.contains(&name) {
                self.add(name);
            }
        }
    }

    pub(crate) fn into_names(self) -> Vec<String> {
        self.0
    }
}

/// Whether a letter may stand in a header as it is.
fn is_fit(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-' | '.')
}

/// The request under way.
pub(crate) struct Draft<'a, 'u> {
    pub(crate) upstream: &'u UpstreamBridge,
    pub(crate) model: Model<'u>,
    /// What its answer needs.
    pub(crate) context: ResponseContext,
    /// What has no counterpart upstream.
    pub(crate) dropped: Dropped,
    /// Its members so far.
    members: Object<'a>,
}

impl<'a, 'u> Draft<'a, 'u> {
    /// A request for the model that the client calls so.
    pub(crate) fn new(
        protocol: Protocol,
        asked: &str,
        upstream: &'u UpstreamBridge,
    ) -> Result<Self, Refusal> {
        let model = Model::find(asked, &upstream.models)?;
        let is_codex = upstream.kind == UpstreamKind::Codex;
        Ok(Draft {
            upstream,
            context: ResponseContext::new(protocol, asked, &model, upstream),
            dropped: Dropped::default(),
            members: object! {
                "model": Node::text(&model.name),
                "instructions": is_codex.then_some(""), // missing, it answers "Instructions are required"
            },
            model,
        })
    }

    /// Whether sampling and log probabilities can be asked for: reasoning models and codex refuse them.
    pub(crate) fn takes_sampling(&self) -> bool {
        !self.model.reasoning && self.upstream.kind != UpstreamKind::Codex
    }

    /// Sets a member, if there is a value for it; its place on the wire is that of `ORDER`.
    pub(crate) fn set(&mut self, name: &'static str, value: impl MemberValue<'a>) {
        debug_assert!(ORDER.contains(&name), "{name} has no place on the wire");
        self.members.set(name, value);
    }

    /// `reasoning`, if there is anything to say.
    pub(crate) fn set_reasoning(&mut self, effort: Option<Effort>, summary: Option<&'static str>) {
        let effort: Option<&'static str> = effort.map(Into::into);
        let reasoning = object! {"effort": effort, "summary": summary};
        self.set("reasoning", reasoning.or_none());
    }

    /// `include`, if there is anything to ask for.
    pub(crate) fn set_include(&mut self, include: Vec<&'static str>) {
        if !include.is_empty() {
            let include: Vec<_> = include.into_iter().map(Node::word).collect();
            self.set("include", include);
        }
    }

    /// The most output tokens, of the client's member `name`.
    pub(crate) fn set_limit(
        &mut self,
        body: &Record<'_, '_>,
        name: &'static str,
    ) -> Result<(), Refusal> {
        let Some(limit) = body.node(name) else {
            return Ok(());
        };
        if self.upstream.kind == UpstreamKind::Codex {
            self.dropped.add("max_tokens");
            return Ok(());
        }
        let limit = limit.as_number().filter(|limit| *limit > 0);
        let limit = limit.ok_or_else(|| Refusal::invalid(name, "must be a positive integer"))?;
        let limit = limit.min(self.model.max_output()).max(LEAST_OUTPUT);
        self.set("max_output_tokens", limit);
        Ok(())
    }

    /// `temperature` and `top_p`, where they are taken.
    pub(crate) fn set_sampling(&mut self, body: &Record<'_, 'a>) -> Result<(), Refusal> {
        for name in ["temperature", "top_p"] {
            match body.number(name)? {
                Some(value) if self.takes_sampling() => self.set(name, value.clone()),
                Some(_) => self.dropped.add(name),
                None => {}
            }
        }
        Ok(())
    }

    /// The stop sequences to watch for, of those the client named.
    pub(crate) fn set_stops(
        &mut self,
        name: &'static str,
        stops: Vec<&Text<'_>>,
    ) -> Result<(), Refusal> {
        let stops = stops.iter().filter(|stop| !stop.is_empty());
        let stops: Vec<String> = stops.map(|stop| stop.plain().into_owned()).collect();
        if stops.len() > STOP_SEQUENCES {
            return Err(Refusal::invalid(name, format!("at most {STOP_SEQUENCES}")));
        }
        if stops.iter().map(String::len).sum::<usize>() > STOP_BYTES {
            let most = format!("at most {STOP_BYTES} bytes in all");
            return Err(Refusal::invalid(name, most));
        }
        match self.upstream.options.stop_sequences {
            _ if stops.is_empty() => {}
            StopSequences::Emulate => self.context.stops = stops,
            StopSequences::Drop => self.dropped.add("stop_sequences"),
            StopSequences::Refuse => {
                let why = "not supported by this gateway's upstream";
                return Err(Refusal::invalid(name, why));
            }
        }
        Ok(())
    }

    /// Takes the body of a request that is answered by a stream.
    pub(crate) fn take_body(&mut self) -> Vec<u8> {
        self.set("store", false);
        self.set("stream", true);
        serialise(std::mem::take(&mut self.members))
    }

    /// Takes the body of a request that only counts the tokens of the prompt.
    pub(crate) fn take_count_body(&mut self) -> Vec<u8> {
        serialise(std::mem::take(&mut self.members).only(&COUNTED))
    }
}

/// The request's text, in the order of `ORDER`.
fn serialise(mut members: Object<'_>) -> Vec<u8> {
    let mut ordered = Object::default();
    for name in ORDER {
        ordered.push(name, members.remove(name));
    }
    to_string(&ordered.into()).into_bytes()
}
