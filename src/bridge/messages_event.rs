//! The events of a Messages answer, as JSON of a stream and as one message. In which order they come is a matter of
//! [`super::messages_response`].

use super::json::{Node, Object, object, parse, to_string};
use super::sse::write_event;

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
        let name = self.name();
        let data = match self {
            Event::Start { id } => object! {"type": name, "message": empty_message(id, model)},
            Event::Open { index, block } => {
                object! {"type": name, "index": *index, "content_block": block.object("", "")}
            }
            Event::Delta { index, delta } => {
                object! {"type": name, "index": *index, "delta": delta.object()}
            }
            Event::Close { index } => object! {"type": name, "index": *index},
            Event::End { ending, usage } => {
                object! {"type": name, "delta": ending.members(), "usage": usage.object()}
            }
        };
        write_event(Some(name), &to_string(&data.into()), out);
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
}

/// A message of which nothing has come.
pub(crate) fn empty_message<'a>(id: &str, model: &str) -> Object<'a> {
    object! {
        "id": Node::text(id),
        "type": "message",
        "role": "assistant",
        "model": Node::text(model),
        "content": Vec::new(),
        "stop_reason": Node::Null,
        "stop_sequence": Node::Null,
        "usage": object! {
            "input_tokens": 0_u64,
            "cache_creation_input_tokens": 0_u64,
            "cache_read_input_tokens": 0_u64,
            "output_tokens": 0_u64,
        },
    }
}

impl Block {
    /// The block with so much of its text, which of a tool is the JSON of its input; as it begins, with none.
    pub(crate) fn object<'a>(&self, text: &'a str, signature: &str) -> Object<'a> {
        match self {
            Block::Text => object! {"type": "text", "text": Node::text(text)},
            Block::Thinking => object! {
                "type": "thinking",
                "thinking": Node::text(text),
                "signature": Node::text(signature),
            },
            Block::ToolUse { id, name } => object! {
                "type": "tool_use",
                "id": Node::text(id),
                "name": Node::text(name),
                "input": input(text),
            },
            Block::WebSearch { id } => object! {
                "type": "server_tool_use",
                "id": Node::text(id),
                "name": "web_search",
                "input": input(text),
            },
            Block::SearchResult { id, sources } => {
                let sources = sources.iter().map(|url| source(url).into());
                object! {
                    "type": "web_search_tool_result",
                    "tool_use_id": Node::text(id),
                    "content": sources.collect::<Vec<Node<'_>>>(),
                }
            }
        }
    }
}

/// A tool's input from its JSON text. What is no object, as a model may write it, or a limit may have cut it, cannot be in a
/// message; the client's own check of the tool's schema tells the model.
fn input(text: &str) -> Node<'_> {
    let node = parse(text.as_bytes()).ok();
    let object = node.filter(|node| node.as_object().is_some());
    object.unwrap_or(Node::Object(Object::default()))
}

/// One source of a search.
fn source<'a>(url: &str) -> Object<'a> {
    object! {
        "type": "web_search_result",
        "url": Node::text(url),
        "title": Node::text(url),
        "encrypted_content": "",
        "page_age": Node::Null,
    }
}

impl Delta {
    /// What a search looked for, as a tool's input.
    pub(crate) fn query(query: &str) -> Self {
        Delta::Json(to_string(&object! {"query": Node::text(query)}.into()))
    }

    fn object(&self) -> Object<'static> {
        let (kind, member) = match self {
            Delta::Text(_) => ("text_delta", "text"),
            Delta::Thinking(_) => ("thinking_delta", "thinking"),
            Delta::Signature(_) => ("signature_delta", "signature"),
            Delta::Json(_) => ("input_json_delta", "partial_json"),
        };
        let mut delta = object! {"type": kind};
        delta.push(member, Node::text(self.text()));
        delta
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
        let details =
            || object! {"type": "refusal", "category": Node::Null, "explanation": Node::Null};
        object! {
            "stop_reason": reason,
            "stop_sequence": Node::text_or_null(sequence),
            "stop_details": (*self == Ending::Refusal).then(details),
        }
    }
}

impl MessagesUsage {
    pub(crate) fn object(&self) -> Object<'static> {
        let thinking = (self.thinking > 0).then(|| object! {"thinking_tokens": self.thinking});
        let searches = (self.searches > 0).then(|| object! {"web_search_requests": self.searches});
        let speed = if self.fast { "fast" } else { "standard" };
        object! {
            "input_tokens": self.input,
            "cache_creation_input_tokens": self.cache_write,
            "cache_read_input_tokens": self.cached,
            "output_tokens": self.output,
            "output_tokens_details": thinking,
            "server_tool_use": searches,
            "service_tier": if self.fast { "priority" } else { "standard" },
            "speed": self.tell_speed.then_some(speed),
        }
    }
}
