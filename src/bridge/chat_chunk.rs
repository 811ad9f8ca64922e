//! The chunks of a Chat answer, as JSON of a stream and as one completion. In which order they come is a matter of
//! [`super::chat_response`].

use super::fact::{Citation, Usage};
use super::input::CallKind;
use super::json::{Node, Object, object, to_string};
use super::response_context::ResponseContext;
use super::sse::write_event;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// The first.
    Role,
    /// More of the text.
    Content(String),
    /// More of the text in which the model refuses.
    Refusal(String),
    /// A page that the text cites.
    Annotation(Citation),
    /// A call, whose arguments follow. Its id and name come only here: a later empty name would take its place.
    Call {
        index: u64,
        kind: CallKind,
        id: String,
        name: String,
    },
    /// More of the arguments of the call with this index.
    Arguments {
        index: u64,
        kind: CallKind,
        arguments: String,
    },
    /// Nothing of the answer follows.
    Finish(Finish),
    /// The tokens, for who asked; then the stream's end.
    Usage(Usage),
}

/// `finish_reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The model has ended, or a stop sequence was found.
    Stop,
    /// A limit has cut the answer.
    Length,
    /// A filter has cut the answer.
    ContentFilter,
    /// The client has to run tools.
    ToolCalls,
    /// The same in the legacy form.
    FunctionCall,
}

/// What all chunks of an answer have in common.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    /// `chatcmpl-…`
    pub(crate) id: String,
    /// When the answer was made, in seconds since 1970.
    pub(crate) created: u64,
    /// The tier, as soon as the upstream names it.
    pub(crate) tier: Option<String>,
}

impl Finish {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::ContentFilter => "content_filter",
            Finish::ToolCalls => "tool_calls",
            Finish::FunctionCall => "function_call",
        }
    }
}

impl Chunk {
    pub(crate) fn write(&self, context: &ResponseContext, envelope: &Envelope, out: &mut Vec<u8>) {
        let legacy = context.legacy_functions;
        let (delta, finish) = match self {
            Chunk::Role => (object! {"role": "assistant", "content": ""}, None),
            Chunk::Content(text) => (object! {"content": Node::text(text)}, None),
            Chunk::Refusal(text) => (object! {"refusal": Node::text(text)}, None),
            Chunk::Annotation(citation) => (
                object! {"annotations": vec![annotation(citation).into()]},
                None,
            ),
            Chunk::Call { name, .. } if legacy => {
                (object! {"function_call": legacy_call(Some(name), "")}, None)
            }
            Chunk::Arguments { arguments, .. } if legacy => (
                object! {"function_call": legacy_call(None, arguments)},
                None,
            ),
            Chunk::Call {
                index,
                kind,
                id,
                name,
            } => (one_call(*index, call(*kind, Some((id, name)), "")), None),
            Chunk::Arguments {
                index,
                kind,
                arguments,
            } => (one_call(*index, call(*kind, None, arguments)), None),
            Chunk::Finish(finish) => (Object::default(), Some(*finish)),
            Chunk::Usage(usage) => return write_end(usage, context, envelope, out),
        };
        let finish = finish.map_or(Node::Null, |finish| Node::word(finish.word()));
        let choice = object! {"index": 0_u64, "delta": delta, "finish_reason": finish};
        let usage = context.usage_chunk.then_some(Node::Null);
        write_chunk(vec![choice.into()], usage, context, envelope, out);
    }
}

/// Writes the chunk of the usage, if it is asked for, and the end mark.
fn write_end(usage: &Usage, context: &ResponseContext, envelope: &Envelope, out: &mut Vec<u8>) {
    if context.usage_chunk {
        let usage = usage_object(usage).into();
        write_chunk(Vec::new(), Some(usage), context, envelope, out);
    }
    write_event(None, "[DONE]", out);
}

fn write_chunk(
    choices: Vec<Node<'_>>,
    usage: Option<Node<'_>>,
    context: &ResponseContext,
    envelope: &Envelope,
    out: &mut Vec<u8>,
) {
    let mut chunk = envelope.members("chat.completion.chunk", context);
    chunk.push("choices", choices);
    chunk.push("service_tier", envelope.tier.as_deref().map(Node::text));
    chunk.push("usage", usage);
    write_event(None, &to_string(&chunk.into()), out);
}

impl Envelope {
    /// The members that chunks and completions begin with.
    pub(crate) fn members<'a>(&self, kind: &'static str, context: &ResponseContext) -> Object<'a> {
        object! {
            "id": Node::text(&self.id),
            "object": kind,
            "created": self.created,
            "model": Node::text(&context.requested_model),
        }
    }
}

/// A delta with a part of the call with this index.
fn one_call<'a>(index: u64, call: Object<'a>) -> Object<'a> {
    let mut members = object! {"index": index};
    for (name, value) in call.into_members() {
        members.push(name, value);
    }
    object! {"tool_calls": vec![members.into()]}
}

/// A call, without the index that only chunks have; in the chunks that follow its first without id and name.
pub(crate) fn call<'a>(
    kind: CallKind,
    id_and_name: Option<(&str, &str)>,
    arguments: &str,
) -> Object<'a> {
    let (kind, member) = match kind {
        CallKind::Function => ("function", "arguments"),
        CallKind::Custom => ("custom", "input"),
    };
    let mut inner = object! {"name": id_and_name.map(|(_, name)| Node::text(name))};
    inner.push(member, Node::text(arguments));
    let mut call = object! {
        "id": id_and_name.map(|(id, _)| Node::text(id)),
        "type": id_and_name.map(|_| kind),
    };
    call.push(kind, inner);
    call
}

/// The legacy form of a call, `function_call`.
pub(crate) fn legacy_call<'a>(name: Option<&str>, arguments: &str) -> Object<'a> {
    object! {"name": name.map(Node::text), "arguments": Node::text(arguments)}
}

/// A page that is cited, as an element of `annotations`.
pub(crate) fn annotation<'a>(citation: &Citation) -> Object<'a> {
    let cited = object! {
        "start_index": citation.place.start,
        "end_index": citation.place.end,
        "url": Node::text(&citation.url),
        "title": Node::text(&citation.title),
    };
    object! {"type": "url_citation", "url_citation": cited}
}

/// The `usage` object.
pub(crate) fn usage_object<'a>(usage: &Usage) -> Object<'a> {
    object! {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input.saturating_add(usage.output),
        "prompt_tokens_details": object! {
            "cached_tokens": usage.cached,
            "cache_write_tokens": usage.cache_write,
        },
        "completion_tokens_details": object! {"reasoning_tokens": usage.reasoning},
    }
}
