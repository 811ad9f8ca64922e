//! The chunks of a Chat answer, as JSON of a stream and as one completion. In which order they come is a matter of
//! [`super::chat_response`].

use super::fact::Usage;
use super::input::CallKind;
use super::json::{Node, Object, to_string};
use super::response_context::ResponseContext;
use super::sse::write_event;

/// One chunk of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// The first.
    Role,
    /// More of the text.
    Content(String),
    /// More of the text in which the model refuses.
    Refusal(String),
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
    /// Its word on the wire.
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
    /// Writes it into a stream.
    pub(crate) fn write(&self, context: &ResponseContext, envelope: &Envelope, out: &mut Vec<u8>) {
        let legacy = context.legacy_functions;
        let (delta, finish) = match self {
            Chunk::Role => (
                Node::object([
                    ("role", Node::word("assistant")),
                    ("content", Node::word("")),
                ]),
                None,
            ),
            Chunk::Content(text) => (Node::object([("content", Node::text(text))]), None),
            Chunk::Refusal(text) => (Node::object([("refusal", Node::text(text))]), None),
            Chunk::Call { name, .. } if legacy => (legacy_delta(Some(name), ""), None),
            Chunk::Arguments { arguments, .. } if legacy => (legacy_delta(None, arguments), None),
            Chunk::Call {
                index,
                kind,
                id,
                name,
            } => (call_delta(*index, *kind, id, name), None),
            Chunk::Arguments {
                index,
                kind,
                arguments,
            } => (arguments_delta(*index, *kind, arguments), None),
            Chunk::Finish(finish) => (Node::Object(Object::default()), Some(*finish)),
            Chunk::Usage(usage) => return write_end(usage, context, envelope, out),
        };
        let choice = Node::object([
            ("index", Node::number(0)),
            ("delta", delta),
            (
                "finish_reason",
                finish.map_or(Node::Null, |finish| Node::word(finish.word())),
            ),
        ]);
        let usage = context.usage_chunk.then_some(Node::Null);
        write_chunk(vec![choice], usage, context, envelope, out);
    }
}

/// Writes the error that ends an answer which has begun.
pub(crate) fn write_error(error: Node<'static>, out: &mut Vec<u8>) {
    write_event(None, &to_string(&Node::object([("error", error)])), out);
}

/// Writes what keeps a silent stream alive: a comment, as Chat has no event for it.
pub(crate) fn write_ping(out: &mut Vec<u8>) {
    out.extend_from_slice(b": ping\n\n");
}

/// Writes the chunk of the usage, if it is asked for, and the end mark.
fn write_end(usage: &Usage, context: &ResponseContext, envelope: &Envelope, out: &mut Vec<u8>) {
    if context.usage_chunk {
        write_chunk(Vec::new(), Some(usage_node(usage)), context, envelope, out);
    }
    write_event(None, "[DONE]", out);
}

/// Writes a chunk with these choices.
fn write_chunk(
    choices: Vec<Node<'static>>,
    usage: Option<Node<'static>>,
    context: &ResponseContext,
    envelope: &Envelope,
    out: &mut Vec<u8>,
) {
    let mut chunk = envelope.members("chat.completion.chunk", context);
    chunk.push("choices", Node::List(choices));
    chunk.push_some("service_tier", envelope.tier.as_deref().map(Node::text));
    chunk.push_some("usage", usage);
    write_event(None, &to_string(&Node::Object(chunk)), out);
}

impl Envelope {
    /// The members that chunks and completions begin with.
    pub(crate) fn members(
        &self,
        object: &'static str,
        context: &ResponseContext,
    ) -> Object<'static> {
        let mut members = Object::default();
        members.push("id", Node::text(&self.id));
        members.push("object", Node::word(object));
        members.push("created", Node::number(self.created));
        members.push("model", Node::text(&context.requested_model));
        members
    }
}

/// The word for a kind of call, and the member that its arguments are in.
fn words(kind: CallKind) -> (&'static str, &'static str) {
    match kind {
        CallKind::Function => ("function", "arguments"),
        CallKind::Custom => ("custom", "input"),
    }
}

/// A call as it begins: with its id and its name.
fn call_delta(index: u64, kind: CallKind, id: &str, name: &str) -> Node<'static> {
    let mut call = Object::default();
    call.push("index", Node::number(index));
    for (name, value) in call_members(kind, id, name, "").into_members() {
        call.push(name, value);
    }
    Node::object([("tool_calls", Node::List(vec![Node::Object(call)]))])
}

/// A call, without the index that only chunks have.
pub(crate) fn call_members(
    kind: CallKind,
    id: &str,
    name: &str,
    arguments: &str,
) -> Object<'static> {
    let (word, member) = words(kind);
    let mut call = Object::default();
    call.push("id", Node::text(id));
    call.push("type", Node::word(word));
    call.push(
        word,
        Node::object([("name", Node::text(name)), (member, Node::text(arguments))]),
    );
    call
}

/// More of a call's arguments.
fn arguments_delta(index: u64, kind: CallKind, arguments: &str) -> Node<'static> {
    let (word, member) = words(kind);
    let call = Node::object([
        ("index", Node::number(index)),
        (word, Node::object([(member, Node::text(arguments))])),
    ]);
    Node::object([("tool_calls", Node::List(vec![call]))])
}

/// The legacy form of both.
fn legacy_delta(name: Option<&str>, arguments: &str) -> Node<'static> {
    let mut call = Object::default();
    call.push_some("name", name.map(Node::text));
    call.push("arguments", Node::text(arguments));
    Node::object([("function_call", Node::Object(call))])
}

/// The `usage` object.
pub(crate) fn usage_node(usage: &Usage) -> Node<'static> {
    let mut prompt = Object::default();
    prompt.push("cached_tokens", Node::number(usage.cached));
    prompt.push_some("cache_write_tokens", usage.cache_write.map(Node::number));
    let total = usage
        .total
        .unwrap_or(usage.input.saturating_add(usage.output));
    Node::object([
        ("prompt_tokens", Node::number(usage.input)),
        ("completion_tokens", Node::number(usage.output)),
        ("total_tokens", Node::number(total)),
        ("prompt_tokens_details", Node::Object(prompt)),
        (
            "completion_tokens_details",
            Node::object([("reasoning_tokens", Node::number(usage.reasoning))]),
        ),
    ])
}
