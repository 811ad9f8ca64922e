//! What one JSON document from an upstream says: a whole answer, an event of a stream, or a WebSocket message. Members
//! are told by their paths, so that nothing in a text, a tool or an argument is mistaken for a fact. What the facts
//! come to over a whole response is not known here.
//!
//! Of members that stand twice in an object, the first that can be read counts.

use super::Usage;
use crate::codec::json::{Interest, Key, Kind, Scanner, Value, Visitor};
use memchr::memchr;

/// How deep a document may be nested. It bounds the memory of the scanner, a bit for each.
const DEPTH_LIMIT: usize = 4096;

/// How far into an event the end of its first member is looked for, in bytes.
const FIRST_MEMBER_BYTES: usize = 256;

/// What ends a stream of chat chunks, in the place of a document
/// (<https://platform.openai.com/docs/api-reference/chat-streaming>).
const DONE: &[u8] = b"[DONE]";

/// How many of a document's first bytes are kept: `DONE` and a little white space.
const OPENING_BYTES: usize = 8;

/// What a document is expected to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// The `response` object itself.
    Response,
    ResponsesEvent,
    /// A chat completion or a chunk of one: the same members.
    Chat,
    Message,
    MessagesEvent,
}

/// The facts of one document. Texts are empty where they are not told, and at most `CAPTURE_BYTES` long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// The event's own `type`.
    pub kind: String,
    /// The lane of a WebSocket that the event belongs to.
    pub stream_id: String,
    /// The HTTP status in an `error` event of a WebSocket.
    pub error_status: Option<u64>,
    pub id: String,
    pub model: String,
    pub tier: String,
    pub speed: String,
    pub status: String,
    /// As spelled: on messages, `input_tokens` is without cached and cache-write tokens.
    pub usage: Usage,
    /// A `message_delta` names the reason for which the message stopped.
    pub stopped: bool,
    /// There is an `error` that is not null.
    pub error: bool,
}

/// The reader of one document after the other.
#[derive(Debug)]
pub(super) struct Document {
    scanner: Scanner,
    paths: Paths,
    choice: Choice,
    /// How many bytes of the document were fed.
    length: u64,
    /// The first bytes of the document, to know `DONE` by.
    opening: [u8; OPENING_BYTES],
}

/// Follows the paths that have facts.
#[derive(Debug)]
struct Paths {
    shape: Shape,
    /// The open objects, the outermost first.
    objects: [Object; 4],
    /// What the value under way tells. A value is complete before the next key is shown, unless it is entered.
    fact: Option<Fact>,
    facts: Facts,
    /// Where the first `choices` of a chat document stands.
    choices_at: Option<u64>,
    has_choices: bool,
}

/// Finds the `finish_reason` of a chat document's first choice. The scanner shows no members within an array, so
/// the first element of `choices` is given to a scanner of its own.
#[derive(Debug)]
struct Choice {
    scanner: Scanner,
    begun: bool,
    reason: FinishReason,
}

/// Whether a choice names the reason for which it finished.
#[derive(Debug, Default)]
struct FinishReason {
    is_next: bool,
    given: bool,
}

/// An object on a path that has facts.
#[derive(Clone, Copy, Debug)]
enum Object {
    Response,
    ResponsesEvent,
    ResponsesUsage,
    Chat,
    ChatUsage,
    InputDetails,
    OutputDetails,
    Message,
    MessagesEvent,
    MessageDelta,
    MessagesUsage,
}

#[derive(Clone, Copy, Debug)]
enum Fact {
    Kind,
    StreamId,
    ErrorStatus,
    Error,
    Id,
    Model,
    Tier,
    Speed,
    Status,
    StopReason,
    Choices,
    Input,
    CachedInput,
    CacheWrite,
    Output,
    Reasoning,
}

enum Member {
    Inner(Object),
    Fact(Fact),
    Other,
}

impl Document {
    pub fn new(shape: Shape) -> Self {
        Self {
            scanner: Scanner::new(DEPTH_LIMIT),
            paths: Paths::new(shape),
            choice: Choice::new(),
            length: 0,
            opening: [0; OPENING_BYTES],
        }
    }

    /// Reads the next piece of the document.
    pub fn feed(&mut self, piece: &[u8]) {
        let room = self.opening.iter_mut().skip(self.length as usize);
        room.zip(piece).for_each(|(kept, &byte)| *kept = byte);
        // Nearly all bytes of a stream are in events without facts, and those nearly always name their type first.
        let first = if self.paths.awaits_kind() {
            first_member(piece)
        } else {
            0
        };
        for part in [&piece[..first], &piece[first..]] {
            self.scan(part);
        }
    }

    /// The facts so far; nothing but the type of an event that is known to have none.
    pub fn facts(&self) -> &Facts {
        &self.paths.facts
    }

    /// Whether what was fed is one whole document.
    pub fn is_whole(&self) -> bool {
        self.paths.is_settled() || self.scanner.finish().is_ok()
    }

    /// Whether it is the `[DONE]` of a chat stream.
    pub fn is_done_mark(&self) -> bool {
        match self.opening.get(..self.length as usize) {
            Some(document) => document.trim_ascii() == DONE,
            None => false,
        }
    }

    /// Whether it is a chat chunk that names the reason for which its first choice finished.
    pub fn is_finished_choice(&self) -> bool {
        self.paths.has_choices && self.choice.reason.given
    }

    /// Makes it ready for the next document of the same shape.
    pub fn reset(&mut self) {
        self.scanner = Scanner::new(DEPTH_LIMIT);
        self.paths.reset();
        if self.paths.shape == Shape::Chat {
            self.choice = Choice::new();
        }
        self.length = 0;
    }

    fn scan(&mut self, bytes: &[u8]) {
        let begin = self.length;
        self.length += bytes.len() as u64;
        if self.paths.is_settled() {
            return;
        }
        // A fault ends the scan; the document is then not whole.
        let _ = self.scanner.feed(bytes, &mut self.paths);
        if let Some(at) = self.paths.choices_at {
            let from = at.saturating_sub(begin) as usize;
            self.choice.feed(&bytes[from..]);
        }
    }
}

impl Facts {
    /// Forgets everything, and keeps the memory of the texts for the next document.
    fn clear(&mut self) {
        for text in [
            &mut self.kind,
            &mut self.stream_id,
            &mut self.id,
            &mut self.model,
            &mut self.tier,
            &mut self.speed,
            &mut self.status,
        ] {
            text.clear();
        }
        self.error_status = None;
        self.usage = Usage::default();
        self.stopped = false;
        self.error = false;
    }

    fn learn(&mut self, fact: Fact, value: Value<'_>) {
        match fact {
            Fact::Kind => learn_text(&mut self.kind, value),
            Fact::StreamId => learn_text(&mut self.stream_id, value),
            Fact::Id => learn_text(&mut self.id, value),
            Fact::Model => learn_text(&mut self.model, value),
            Fact::Tier => learn_text(&mut self.tier, value),
            Fact::Speed => learn_text(&mut self.speed, value),
            Fact::Status => learn_text(&mut self.status, value),
            Fact::ErrorStatus => learn_count(&mut self.error_status, value),
            Fact::Error => self.error |= matches!(value.kind, Kind::Object | Kind::String),
            Fact::StopReason => self.stopped |= value.kind == Kind::String,
            Fact::Choices => {}
            Fact::Input => learn_count(&mut self.usage.input_tokens, value),
            Fact::CachedInput => learn_count(&mut self.usage.cached_input_tokens, value),
            Fact::CacheWrite => learn_count(&mut self.usage.cache_write_tokens, value),
            Fact::Output => learn_count(&mut self.usage.output_tokens, value),
            Fact::Reasoning => learn_count(&mut self.usage.reasoning_tokens, value),
        }
    }
}

impl Paths {
    fn new(shape: Shape) -> Self {
        Self {
            shape,
            objects: [shape.root(); 4],
            fact: None,
            facts: Facts::default(),
            choices_at: None,
            has_choices: false,
        }
    }

    fn reset(&mut self) {
        self.facts.clear();
        self.fact = None;
        self.choices_at = None;
        self.has_choices = false;
    }

    fn awaits_kind(&self) -> bool {
        self.facts.kind.is_empty() && self.shape.is_event()
    }

    /// Whether the rest of the document cannot tell anything.
    fn is_settled(&self) -> bool {
        !self.facts.kind.is_empty() && !self.shape.has_facts(&self.facts.kind)
    }

    /// What stood before the type of an event without facts must not count, as what stands behind it does not.
    fn forget_unless_told(&mut self) {
        if self.is_settled() {
            let kind = std::mem::take(&mut self.facts.kind);
            self.facts.clear();
            self.facts.kind = kind;
        }
    }
}

impl Visitor for Paths {
    fn key(&mut self, key: Key<'_>) -> Interest {
        // Only objects of the table are entered, which are four deep at most.
        let member = match key.name {
            Some(name) if !self.is_settled() => self.objects[key.depth - 1].member(name),
            _ => Member::Other,
        };
        match member {
            Member::Inner(object) => {
                self.objects[key.depth] = object;
                Interest::Enter
            }
            Member::Fact(fact) => {
                if let Fact::Choices = fact {
                    self.choices_at.get_or_insert(key.start);
                }
                self.fact = Some(fact);
                Interest::Capture
            }
            Member::Other => Interest::Skip,
        }
    }

    fn value(&mut self, value: Value<'_>) {
        match self.fact.take() {
            Some(Fact::Kind) => {
                self.facts.learn(Fact::Kind, value);
                self.forget_unless_told();
            }
            Some(Fact::Choices) => self.has_choices |= value.kind == Kind::Array,
            Some(fact) => self.facts.learn(fact, value),
            None => {}
        }
    }
}

impl Choice {
    fn new() -> Self {
        Self {
            scanner: Scanner::new(DEPTH_LIMIT),
            begun: false,
            reason: FinishReason::default(),
        }
    }

    /// Reads on from the key `choices`. What is behind the first element is a fault to its scanner, and ends it.
    fn feed(&mut self, mut bytes: &[u8]) {
        if !self.begun {
            let Some(bracket) = memchr(b'[', bytes) else {
                return;
            };
            self.begun = true;
            bytes = &bytes[bracket + 1..];
        }
        let _ = self.scanner.feed(bytes, &mut self.reason);
    }
}

impl Visitor for FinishReason {
    fn key(&mut self, key: Key<'_>) -> Interest {
        self.is_next = key.name == Some(b"finish_reason");
        Interest::Skip
    }

    fn value(&mut self, value: Value<'_>) {
        self.given |= self.is_next && value.kind == Kind::String;
    }
}

impl Shape {
    fn root(self) -> Object {
        match self {
            Shape::Response => Object::Response,
            Shape::ResponsesEvent => Object::ResponsesEvent,
            Shape::Chat => Object::Chat,
            Shape::Message => Object::Message,
            Shape::MessagesEvent => Object::MessagesEvent,
        }
    }

    fn is_event(self) -> bool {
        matches!(self, Shape::ResponsesEvent | Shape::MessagesEvent)
    }

    /// Whether an event of this type may tell anything.
    fn has_facts(self, kind: &str) -> bool {
        match self {
            Shape::ResponsesEvent => match kind.strip_prefix("response.") {
                Some(name) => matches!(
                    name,
                    "created" | "queued" | "in_progress" | "completed" | "incomplete" | "failed"
                ),
                None => kind == "error",
            },
            Shape::MessagesEvent => matches!(
                kind,
                "message_start" | "message_delta" | "message_stop" | "error"
            ),
            Shape::Response | Shape::Chat | Shape::Message => true,
        }
    }
}

impl Object {
    /// The table of the paths. Sources: the OpenAPI description of OpenAI's API (`Response`, `ResponseUsage`,
    /// `CreateChatCompletionStreamResponse`, `CompletionUsage`) and Anthropic's Messages API reference.
    fn member(self, key: &[u8]) -> Member {
        match self {
            Object::ResponsesEvent => match key {
                b"type" => Member::Fact(Fact::Kind),
                b"response" => Member::Inner(Object::Response),
                b"stream_id" => Member::Fact(Fact::StreamId),
                b"status" => Member::Fact(Fact::ErrorStatus),
                b"error" => Member::Fact(Fact::Error),
                _ => Member::Other,
            },
            Object::MessagesEvent => match key {
                b"type" => Member::Fact(Fact::Kind),
                b"message" => Member::Inner(Object::Message),
                b"usage" => Member::Inner(Object::MessagesUsage),
                b"delta" => Member::Inner(Object::MessageDelta),
                b"error" => Member::Fact(Fact::Error),
                _ => Member::Other,
            },
            Object::Response | Object::Chat | Object::Message => self.member_of_answer(key),
            Object::MessageDelta => match key {
                b"stop_reason" => Member::Fact(Fact::StopReason),
                _ => Member::Other,
            },
            _ => self.member_of_usage(key),
        }
    }

    fn member_of_answer(self, key: &[u8]) -> Member {
        match (self, key) {
            (_, b"id") => Member::Fact(Fact::Id),
            (_, b"model") => Member::Fact(Fact::Model),
            (_, b"error") => Member::Fact(Fact::Error),
            (Object::Response, b"status") => Member::Fact(Fact::Status),
            (Object::Response | Object::Chat, b"service_tier") => Member::Fact(Fact::Tier),
            (Object::Chat, b"choices") => Member::Fact(Fact::Choices),
            (Object::Response, b"usage") => Member::Inner(Object::ResponsesUsage),
            (Object::Chat, b"usage") => Member::Inner(Object::ChatUsage),
            (Object::Message, b"usage") => Member::Inner(Object::MessagesUsage),
            _ => Member::Other,
        }
    }

    fn member_of_usage(self, key: &[u8]) -> Member {
        match (self, key) {
            (Object::ResponsesUsage, b"input_tokens") => Member::Fact(Fact::Input),
            (Object::ResponsesUsage, b"output_tokens") => Member::Fact(Fact::Output),
            (Object::ResponsesUsage, b"input_tokens_details") => {
                Member::Inner(Object::InputDetails)
            }
            (Object::ResponsesUsage, b"output_tokens_details") => {
                Member::Inner(Object::OutputDetails)
            }
            (Object::ChatUsage, b"prompt_tokens") => Member::Fact(Fact::Input),
            (Object::ChatUsage, b"completion_tokens") => Member::Fact(Fact::Output),
            (Object::ChatUsage, b"prompt_tokens_details") => Member::Inner(Object::InputDetails),
            (Object::ChatUsage, b"completion_tokens_details") => {
                Member::Inner(Object::OutputDetails)
            }
            (Object::InputDetails, b"cached_tokens") => Member::Fact(Fact::CachedInput),
            (Object::InputDetails, b"cache_write_tokens") => Member::Fact(Fact::CacheWrite),
            (Object::OutputDetails, b"reasoning_tokens") => Member::Fact(Fact::Reasoning),
            (Object::MessagesUsage, b"input_tokens") => Member::Fact(Fact::Input),
            (Object::MessagesUsage, b"cache_read_input_tokens") => Member::Fact(Fact::CachedInput),
            (Object::MessagesUsage, b"cache_creation_input_tokens") => {
                Member::Fact(Fact::CacheWrite)
            }
            (Object::MessagesUsage, b"output_tokens") => Member::Fact(Fact::Output),
            (Object::MessagesUsage, b"service_tier") => Member::Fact(Fact::Tier),
            (Object::MessagesUsage, b"speed") => Member::Fact(Fact::Speed),
            _ => Member::Other,
        }
    }
}

/// The length of what is likely the first member of an event; wherever it cuts, the result is the same.
fn first_member(piece: &[u8]) -> usize {
    let opening = &piece[..piece.len().min(FIRST_MEMBER_BYTES)];
    memchr(b',', opening).map_or(0, |comma| comma + 1)
}

fn learn_text(text: &mut String, value: Value<'_>) {
    if !text.is_empty() || value.kind != Kind::String {
        return;
    }
    match std::str::from_utf8(value.raw) {
        Ok(plain) if !plain.contains('\\') => text.push_str(plain),
        _ => text.push_str(&value.text().unwrap_or_default()),
    }
}

/// Only a non-negative integer counts.
fn learn_count(count: &mut Option<u64>, value: Value<'_>) {
    if count.is_none() && value.kind == Kind::Number && !value.cut {
        *count = std::str::from_utf8(value.raw)
            .ok()
            .and_then(|digits| digits.parse().ok());
    }
}
