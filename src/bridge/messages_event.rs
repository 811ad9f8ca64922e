//! The events of a Messages answer, as JSON of a stream and as one message. In which order they come is a matter of
//! [`super::messages_response`].

use super::json::{Node, Object, to_string};
use super::sse::write_event;

/// One event of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// `message_start`.
    Start { id: String },
    /// `content_block_start`.
    Open { index: u64, block: Block },
    /// `content_block_delta`.
    Delta { index: u64, delta: Delta },
    /// `content_block_stop`.
    Close { index: u64 },
    /// `message_delta` and `message_stop`.
    End {
        ending: Ending,
        usage: MessagesUsage,
    },
}

/// A content block as it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// Text of the answer.
    Text,
    /// Thinking, with the signature that carries it.
    Thinking,
    /// A call of a tool of the client.
    ToolUse { id: String, name: String },
    /// `server_tool_use` of the web search.
    WebSearch { id: String },
    /// `web_search_tool_result`; it has no deltas.
    SearchResult { id: String, sources: Vec<String> },
}

/// More of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Delta {
    /// `text_delta`.
    Text(String),
    /// `thinking_delta`.
    Thinking(String),
    /// `signature_delta`: the whole signature.
    Signature(String),
    /// More of the JSON text of a tool's input.
    Json(String),
}

/// Why the answer ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The model has said all.
    EndTurn,
    /// The client has to run tools, of which at least one block was sent.
    ToolUse,
    /// A limit has cut the answer.
    MaxTokens,
    /// The model refuses, or a filter has cut the answer.
    Refusal,
    /// This sequence was found.
    StopSequence(String),
}

/// `usage` of `message_delta`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MessagesUsage {
    /// Tokens of the prompt that were neither read from the cache nor written to it.
    pub(crate) input: u64,
    /// Of the prompt, written to the cache.
    pub(crate) cache_write: u64,
    /// Of the prompt, read from the cache.
    pub(crate) cached: u64,
    /// Tokens of the answer, with the thinking.
    pub(crate) output: u64,
    /// Of the output, the thinking.
    pub(crate) thinking: u64,
    /// Web searches that were shown.
    pub(crate) searches: u64,
    /// The tier is priority.
    pub(crate) fast: bool,
    /// The client asked for a speed, and is told which it got.
    pub(crate) tell_speed: bool,
}

impl Event {
    /// Writes it into a stream; every event has its name, which clients read.
    pub(crate) fn write(&self, model: &str, out: &mut Vec<u8>) {
        let node = match self {
            Event::Start { id } => Node::object([
                ("type", Node::word(self.name())),
                ("message", empty_message(id, model)),
            ]),
            Event::Open { index, block } => {
                self.of_block(*index, Some(("content_block", block.node())))
            }
            Event::Delta { index, delta } => self.of_block(*index, Some(("delta", delta.node()))),
            Event::Close { index } => self.of_block(*index, None),
            Event::End { ending, usage } => Node::object([
                ("type", Node::word(self.name())),
                ("delta", Node::Object(ending.members())),
                ("usage", Node::Object(usage.members())),
            ]),
        };
        write_event(Some(self.name()), &to_string(&node), out);
        if matches!(self, Event::End { .. }) {
            write_event(Some("message_stop"), r#"{"type":"message_stop"}"#, out);
        }
    }

    /// Its name, and the `type` of its data.
    fn name(&self) -> &'static str {
        match self {
            Event::Start { .. } => "message_start",
            Event::Open { .. } => "content_block_start",
            Event::Delta { .. } => "content_block_delta",
            Event::Close { .. } => "content_block_stop",
            Event::End { .. } => "message_delta",
        }
    }

    /// The data of an event about one block.
    fn of_block<'a>(&self, index: u64, more: Option<(&'static str, Node<'a>)>) -> Node<'a> {
        let mut event = Object::default();
        event.push("type", Node::word(self.name()));
        event.push("index", Node::number(index));
        if let Some((name, node)) = more {
            event.push(name, node);
        }
        Node::Object(event)
    }
}

/// Writes the `error` event of an answer that has begun.
pub(crate) fn write_error(error: Node<'static>, out: &mut Vec<u8>) {
    let node = Node::object([("type", Node::word("error")), ("error", error)]);
    write_event(Some("error"), &to_string(&node), out);
}

/// Writes what keeps a silent stream alive.
pub(crate) fn write_ping(out: &mut Vec<u8>) {
    write_event(Some("ping"), r#"{"type":"ping"}"#, out);
}

/// A message of which nothing has come.
pub(crate) fn empty_message(id: &str, model: &str) -> Node<'static> {
    let usage = [
        "input_tokens",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "output_tokens",
    ];
    Node::object([
        ("id", Node::text(id)),
        ("type", Node::word("message")),
        ("role", Node::word("assistant")),
        ("model", Node::text(model)),
        ("content", Node::List(Vec::new())),
        ("stop_reason", Node::Null),
        ("stop_sequence", Node::Null),
        (
            "usage",
            Node::object(usage.map(|name| (name, Node::number(0)))),
        ),
    ])
}

impl Block {
    /// The block as it begins.
    pub(crate) fn node(&self) -> Node<'static> {
        let empty = || Node::word("");
        match self {
            Block::Text => Node::object([("type", Node::word("text")), ("text", empty())]),
            Block::Thinking => thinking_node(empty(), empty()),
            Block::ToolUse { id, name } => {
                tool_node("tool_use", id, name, Node::Object(Object::default()))
            }
            Block::WebSearch { id } => tool_node(
                "server_tool_use",
                id,
                "web_search",
                Node::Object(Object::default()),
            ),
            Block::SearchResult { id, sources } => Node::object([
                ("type", Node::word("web_search_tool_result")),
                ("tool_use_id", Node::text(id)),
                (
                    "content",
                    Node::List(sources.iter().map(|url| source_node(url)).collect()),
                ),
            ]),
        }
    }
}

/// A thinking block.
pub(crate) fn thinking_node(thinking: Node<'static>, signature: Node<'static>) -> Node<'static> {
    Node::object([
        ("type", Node::word("thinking")),
        ("thinking", thinking),
        ("signature", signature),
    ])
}

/// A block that calls a tool.
pub(crate) fn tool_node<'a>(kind: &'static str, id: &str, name: &str, input: Node<'a>) -> Node<'a> {
    Node::object([
        ("type", Node::word(kind)),
        ("id", Node::text(id)),
        ("name", Node::text(name)),
        ("input", input),
    ])
}

/// One source of a search.
fn source_node(url: &str) -> Node<'static> {
    Node::object([
        ("type", Node::word("web_search_result")),
        ("url", Node::text(url)),
        ("title", Node::text(url)),
        ("encrypted_content", Node::word("")),
        ("page_age", Node::Null),
    ])
}

impl Delta {
    /// What a search looked for, as a tool's input.
    pub(crate) fn query(query: &str) -> Self {
        Delta::Json(to_string(&Node::object([("query", Node::text(query))])))
    }

    /// The `delta` object.
    fn node(&self) -> Node<'static> {
        let (kind, member, text) = match self {
            Delta::Text(text) => ("text_delta", "text", text),
            Delta::Thinking(text) => ("thinking_delta", "thinking", text),
            Delta::Signature(text) => ("signature_delta", "signature", text),
            Delta::Json(text) => ("input_json_delta", "partial_json", text),
        };
        Node::object([("type", Node::word(kind)), (member, Node::text(text))])
    }

    /// What it adds.
    pub(crate) fn text(&self) -> &str {
        match self {
            Delta::Text(text)
            | Delta::Thinking(text)
            | Delta::Signature(text)
            | Delta::Json(text) => text,
        }
    }
}

impl Ending {
    /// `delta` of `message_delta`, which are members of a whole message too.
    pub(crate) fn members(&self) -> Object<'static> {
        let (reason, sequence) = match self {
            Ending::EndTurn => ("end_turn", None),
            Ending::ToolUse => ("tool_use", None),
            Ending::MaxTokens => ("max_tokens", None),
            Ending::Refusal => ("refusal", None),
            Ending::StopSequence(sequence) => ("stop_sequence", Some(sequence.as_str())),
        };
        let mut members = Object::default();
        members.push("stop_reason", Node::word(reason));
        members.push("stop_sequence", Node::text_or_null(sequence));
        if *self == Ending::Refusal {
            let details = [
                ("type", Node::word("refusal")),
                ("category", Node::Null),
                ("explanation", Node::Null),
            ];
            members.push("stop_details", Node::object(details));
        }
        members
    }
}

impl MessagesUsage {
    /// The `usage` object.
    pub(crate) fn members(&self) -> Object<'static> {
        let mut members = Object::default();
        members.push("input_tokens", Node::number(self.input));
        members.push(
            "cache_creation_input_tokens",
            Node::number(self.cache_write),
        );
        members.push("cache_read_input_tokens", Node::number(self.cached));
        members.push("output_tokens", Node::number(self.output));
        if self.thinking > 0 {
            let details = Node::object([("thinking_tokens", Node::number(self.thinking))]);
            members.push("output_tokens_details", details);
        }
        if self.searches > 0 {
            let requests = Node::object([("web_search_requests", Node::number(self.searches))]);
            members.push("server_tool_use", requests);
        }
        members.push(
            "service_tier",
            Node::word(if self.fast { "priority" } else { "standard" }),
        );
        if self.tell_speed {
            members.push(
                "speed",
                Node::word(if self.fast { "fast" } else { "standard" }),
            );
        }
        members
    }
}
