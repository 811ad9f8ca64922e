//! Where the facts of a document stand. Members are told by their paths, so that nothing in a text, a tool or an argument
//! is mistaken for a fact.
//!
//! Of members that stand twice in an object, the first that can be read counts.

use super::{TIER_NAME, Usage};
use crate::codec::json::{Interest, Key, Kind, Value, Visitor};

/// Objects of the table that stand inside one another at most: an event, its response, the usage, its details, and the
/// lifetimes in these.
const DEEPEST: usize = 5;

/// An hour in seconds: what is kept in a cache for so long or longer is charged for as long-lived.
const LONG_LIFETIME: u64 = 3600;

/// What a document is expected to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// The `response` object itself.
    Response,
    ResponsesEvent,
    /// A chat completion, a legacy completion, a list of embeddings, or a chunk of the first two.
    Chat,
    Message,
    MessagesEvent,
    /// What the endpoints of images and audio answer, whole or as events.
    Media,
    /// An element of a chat document's `choices`.
    Choice,
    /// An element of `usage.iterations` of a message.
    Iteration,
}

/// The facts of one document. Texts are empty where they are not told, and at most `CAPTURE_BYTES` long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ResponseFields {
    /// The event's own `type`.
    pub kind: String,
    /// The lane of a WebSocket that the event belongs to.
    pub stream_id: String,
    /// The HTTP status in an `error` event of a WebSocket.
    pub error_status: Option<u64>,
    pub id: String,
    pub model: String,
    pub tier: String,
    /// The tier that the usage of an answer of chat or Responses names.
    pub usage_tier: String,
    pub speed: String,
    pub status: String,
    /// The response was asked for in the background.
    pub background: bool,
    /// A message or a choice names the reason for which it stopped.
    pub stopped: bool,
    /// The response goes on in another that no message asks for: it was steered.
    pub steered: bool,
    /// Which of the choices of a chat document this is.
    pub index: Option<u64>,
    /// The `error` member.
    pub error: ErrorFields,
    /// What stands at the top of a document that is an error itself.
    pub flat_error: ErrorFields,
    /// A hosted tool has used tokens, of a model of its own.
    uses_tools: bool,
    counts: Counts,
    /// Those of a usage that stands where only some upstreams put it; few do.
    displaced: Option<Box<Counts>>,
}

/// What an error says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ErrorFields {
    pub code: String,
    pub kind: String,
    pub has_message: bool,
    /// The code, the parameter or the message names the service tier.
    pub names_tier: bool,
}

/// The counts of one document as they are spelled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// In the spelling of the endpoint's own API. On messages, `input_tokens` is without cached and cache-write tokens.
    native: Usage,
    /// In other spellings that compatible upstreams have.
    foreign: Usage,
    /// Charged for as these are, and not in them.
    beside: Usage,
    /// Parts of a message's input as OpenAI's APIs tell them.
    within: Usage,
    /// Tokens that were written to a cache, by their lifetimes, in each place that tells it.
    written: [Written; WrittenIn::COUNT],
    total: Option<u64>,
    /// Of a message's input, what was not read from a cache; told beside what was.
    missed: Option<u64>,
    /// Which media the tokens are told to be of, of the input and of the output.
    media: [Media; 2],
}

/// Media of which there are tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Media {
    text: bool,
    audio: bool,
    image: bool,
}

/// Tokens that were written to a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Written {
    all: Option<u64>,
    /// Those that live for an hour or longer.
    long: u64,
}

/// Where cache writes are told by their lifetimes. Relays repeat them in their own spelling.
#[derive(Clone, Copy, Debug)]
enum WrittenIn {
    /// An object within the usage.
    Usage,
    /// An object within the details of the input.
    Details,
    /// Members of the usage itself.
    Members,
}

impl WrittenIn {
    const COUNT: usize = 3;
}

/// Follows the paths that have facts.
#[derive(Debug)]
pub(super) struct Paths {
    shape: Shape,
    /// The open objects, the outermost first.
    objects: [Object; DEEPEST],
    /// How deep the key of a usage stands that is open, if one is.
    usage_at: Option<usize>,
    /// What the value under way tells. A value is complete before the next key is shown, unless it is entered.
    fact: Option<Fact>,
    pub facts: ResponseFields,
    /// Where the key of the first array stands whose elements have facts: `choices` of a chat document, `iterations` of
    /// a message's usage.
    pub array_at: Option<u64>,
}

/// An object on a path that has facts.
#[derive(Clone, Copy, Debug)]
enum Object {
    Response,
    ResponsesEvent,
    ResponsesUsage,
    Chat,
    ChatUsage,
    Choice,
    InputDetails(Spelling),
    OutputDetails(Spelling),
    /// Cache writes by how long they live.
    Lifetimes(WrittenIn),
    Message,
    MessagesEvent,
    MessageDelta,
    MessagesUsage,
    /// `prompt_tokens_details` of a message's usage.
    MessagesPrompt,
    Iteration,
    Media,
    /// What the hosted tools used, each by its name.
    ToolUsage,
    Incomplete,
    Tool,
    Groq,
    Error,
}

#[derive(Clone, Copy, Debug)]
enum Spelling {
    Native,
    Foreign,
    /// Names that no API has for its own counts, of what is beside them.
    Beside,
    /// OpenAI's names on messages, of parts of the input.
    Within,
}

#[derive(Clone, Copy, Debug)]
enum Class {
    Input,
    CachedInput,
    CacheWrite,
    Output,
    Reasoning,
}

#[derive(Clone, Copy, Debug)]
enum Fact {
    Kind,
    StreamId,
    ErrorStatus,
    Id,
    Model,
    Tier,
    UsageTier,
    Speed,
    Status,
    Background,
    StopReason,
    IncompleteReason,
    Array,
    Count(Spelling, Class),
    Total,
    Missed,
    Written { place: WrittenIn, is_long: bool },
    Medium(Side, Medium),
    Index,
    ToolTokens,
    Error(ErrorPart),
    FlatError(ErrorPart),
}

/// Of the tokens.
#[derive(Clone, Copy, Debug)]
enum Side {
    Input,
    Output,
}

#[derive(Clone, Copy, Debug)]
enum Medium {
    Text,
    Audio,
    Image,
}

#[derive(Clone, Copy, Debug)]
enum ErrorPart {
    /// An error that is a text and no object.
    Text,
    Code,
    Kind,
    Param,
    Message,
}

enum Member {
    Inner(Object),
    Fact(Fact),
    Other,
}

impl ResponseFields {
    /// Forgets everything, and keeps the memory of the texts for the next document.
    fn clear(&mut self) {
        for text in [
            &mut self.kind,
            &mut self.stream_id,
            &mut self.id,
            &mut self.model,
            &mut self.tier,
            &mut self.usage_tier,
            &mut self.speed,
            &mut self.status,
        ] {
            text.clear();
        }
        self.error_status = None;
        self.background = false;
        self.stopped = false;
        self.steered = false;
        self.index = None;
        self.error.clear();
        self.flat_error.clear();
        self.uses_tools = false;
        self.counts = Counts::default();
        self.displaced = None;
    }

    /// The counts as the API has them, whatever their spelling. On messages, `input_tokens` is without cached and
    /// cache-write tokens.
    pub fn usage(&self, shape: Shape) -> Usage {
        self.counts(shape).usage(shape)
    }

    /// Those of the usage that stands where it belongs; of another only where that tells none, so that nothing counts twice.
    fn counts(&self, shape: Shape) -> &Counts {
        let tells = |counts: &Counts| counts.usage(shape).has_counts();
        match &self.displaced {
            Some(displaced) if tells(displaced) && !tells(&self.counts) => displaced,
            _ => &self.counts,
        }
    }

    /// Whether a message tells of cached or cache-write tokens as parts of its input.
    pub fn tells_cache_within_input(&self) -> bool {
        let places = [Some(&self.counts), self.displaced.as_deref()];
        let mut places = places.into_iter().flatten();
        places.any(|counts| counts.within != Usage::default())
    }

    /// Whether there are tokens that have prices of their own beside the model's: those of a hosted tool, and of several media.
    /// On the endpoints of images and audio, whose models may have input or output of one medium only, that is where several
    /// are told; elsewhere where there is any but text, unless it is an image to look at, which is charged for as text is
    /// (<https://platform.openai.com/docs/pricing>).
    pub fn mixes_prices(&self, shape: Shape) -> bool {
        let [input, output] = self.counts(shape).media;
        match shape {
            _ if self.uses_tools => true,
            Shape::Media => [input, output]
                .iter()
                .any(|media| media.text && (media.audio || media.image)),
            _ => input.audio || output.audio || output.image,
        }
    }

    /// The error that the document tells of, if it does.
    pub fn told_error(&self) -> Option<&ErrorFields> {
        let flat = &self.flat_error;
        if self.error.is_one() {
            Some(&self.error)
        } else {
            (flat.has_message || !flat.code.is_empty()).then_some(flat)
        }
    }

    /// The counts that a usage tells, which stands where it belongs or elsewhere.
    fn counts_mut(&mut self, is_displaced: bool) -> &mut Counts {
        match is_displaced {
            true => self.displaced.get_or_insert_default(),
            false => &mut self.counts,
        }
    }

    fn learn(&mut self, fact: Fact, value: Value<'_>, is_displaced: bool) {
        match fact {
            Fact::Kind => learn_text(&mut self.kind, value),
            Fact::StreamId => learn_text(&mut self.stream_id, value),
            // Cut, two could not be told apart.
            Fact::Id if value.cut => {}
            Fact::Id => learn_text(&mut self.id, value),
            Fact::Model => learn_text(&mut self.model, value),
            Fact::Tier => learn_text(&mut self.tier, value),
            Fact::UsageTier => learn_text(&mut self.usage_tier, value),
            Fact::Speed => learn_text(&mut self.speed, value),
            Fact::Status => learn_text(&mut self.status, value),
            Fact::ErrorStatus => learn_count(&mut self.error_status, value),
            Fact::Background => self.background |= value.raw == b"true",
            Fact::StopReason => self.stopped |= is_reason(value),
            Fact::IncompleteReason => self.steered |= value.text().as_deref() == Some("steered"),
            Fact::Array => {}
            Fact::Count(..)
            | Fact::Total
            | Fact::Missed
            | Fact::Written { .. }
            | Fact::Medium(..) => self.counts_mut(is_displaced).learn(fact, value),
            Fact::Index => learn_count(&mut self.index, value),
            Fact::ToolTokens => self.uses_tools |= tells_some(value),
            Fact::Error(part) => self.error.learn(part, value),
            Fact::FlatError(part) => self.flat_error.learn(part, value),
        }
    }
}

impl ErrorFields {
    /// Relays add empty errors to good answers
    /// (<https://github.com/BerriAI/litellm/issues/18407>): one counts where it says something.
    pub fn is_one(&self) -> bool {
        self.has_message || !self.code.is_empty() || !self.kind.is_empty()
    }

    fn clear(&mut self) {
        self.code.clear();
        self.kind.clear();
        self.has_message = false;
        self.names_tier = false;
    }

    fn learn(&mut self, part: ErrorPart, value: Value<'_>) {
        if !matches!(value.kind, Kind::String | Kind::Number) {
            return;
        }
        self.names_tier |= names_tier(value.raw);
        match part {
            ErrorPart::Code if value.kind == Kind::Number && value.raw != b"0" => {
                if self.code.is_empty() {
                    self.code.push_str(&String::from_utf8_lossy(value.raw));
                }
            }
            ErrorPart::Code => learn_text(&mut self.code, value),
            ErrorPart::Kind => learn_text(&mut self.kind, value),
            ErrorPart::Text | ErrorPart::Message => {
                self.has_message |= value.kind == Kind::String && !value.raw.is_empty();
            }
            ErrorPart::Param => {}
        }
    }
}

impl Counts {
    /// The counts as the API has them; see [`ResponseFields::usage`].
    fn usage(&self, shape: Shape) -> Usage {
        let mut usage = self.foreign;
        let written = self.written();
        usage.cache_write_tokens = more_than_none(usage.cache_write_tokens, written.all);
        usage.update(self.native);
        usage = usage.with_parts(self.within).plus(self.beside);
        let hits = usage.cached_input_tokens.unwrap_or(0);
        let whole = self.missed.map(|missed| missed.saturating_add(hits));
        if whole.is_some() && whole == usage.input_tokens {
            usage.input_tokens = self.missed;
        }
        // No more than were written at all.
        let all = usage.cache_write_tokens.unwrap_or(0);
        usage.cache_write_long_tokens = written.all.map(|_| written.long.min(all));
        match (shape, self.total) {
            // Mistral's total has the sound that it transcribes, and charges for by the minute
            // (`prompt_audio_seconds` of <https://docs.mistral.ai/api/endpoint/audio/transcriptions>).
            (Shape::Media, _) | (_, None) => usage,
            (_, Some(total)) => usage.account_for(total),
        }
    }

    fn learn(&mut self, fact: Fact, value: Value<'_>) {
        match fact {
            Fact::Count(spelling, class) => self.learn_class(spelling, class, value),
            Fact::Total => learn_count(&mut self.total, value),
            Fact::Missed => learn_count(&mut self.missed, value),
            Fact::Written { place, is_long } => self.learn_written(place, is_long, value),
            Fact::Medium(side, medium) => self.learn_medium(side, medium, value),
            _ => {}
        }
    }

    fn learn_class(&mut self, spelling: Spelling, class: Class, value: Value<'_>) {
        match spelling {
            Spelling::Native => learn_count(class.of(&mut self.native), value),
            Spelling::Beside => learn_count(class.of(&mut self.beside), value),
            Spelling::Foreign => learn_any(class.of(&mut self.foreign), value),
            Spelling::Within => learn_any(class.of(&mut self.within), value),
        }
    }

    fn learn_written(&mut self, place: WrittenIn, is_long: bool, value: Value<'_>) {
        let mut told = None;
        learn_count(&mut told, value);
        let Some(told) = told else {
            return;
        };
        let written = &mut self.written[place as usize];
        written.all = Some(written.all.unwrap_or(0).saturating_add(told));
        if is_long {
            written.long = written.long.saturating_add(told);
        }
    }

    fn learn_medium(&mut self, side: Side, medium: Medium, value: Value<'_>) {
        let media = &mut self.media[side as usize];
        let is_there = match medium {
            Medium::Text => &mut media.text,
            Medium::Audio => &mut media.audio,
            Medium::Image => &mut media.image,
        };
        *is_there |= tells_some(value);
    }

    /// What the first place tells that tells more than zeros, else what the first tells.
    fn written(&self) -> Written {
        let first = |least| {
            let mut places = self.written.iter();
            places.find(|written| written.all.is_some_and(|count| count >= least))
        };
        first(1).or_else(|| first(0)).copied().unwrap_or_default()
    }
}

impl Class {
    fn of(self, usage: &mut Usage) -> &mut Option<u64> {
        match self {
            Class::Input => &mut usage.input_tokens,
            Class::CachedInput => &mut usage.cached_input_tokens,
            Class::CacheWrite => &mut usage.cache_write_tokens,
            Class::Output => &mut usage.output_tokens,
            Class::Reasoning => &mut usage.reasoning_tokens,
        }
    }
}

impl Paths {
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            objects: [shape.root(); DEEPEST],
            usage_at: None,
            fact: None,
            facts: ResponseFields::default(),
            array_at: None,
        }
    }

    pub fn reset(&mut self) {
        self.facts.clear();
        self.usage_at = None;
        self.fact = None;
        self.array_at = None;
    }

    pub fn usage(&self) -> Usage {
        self.facts.usage(self.shape)
    }

    pub fn mixes_prices(&self) -> bool {
        self.facts.mixes_prices(self.shape)
    }

    /// Whether a usage is open.
    pub fn is_in_usage(&self) -> bool {
        self.usage_at.is_some()
    }

    pub fn awaits_kind(&self) -> bool {
        self.facts.kind.is_empty() && self.shape.is_event()
    }

    /// Whether the rest of the document cannot tell anything.
    pub fn is_settled(&self) -> bool {
        !self.facts.kind.is_empty() && !self.shape.has_facts(&self.facts.kind)
    }

    /// Whether what is told stands in a usage that is not where the API has it: beside the `response` of an event
    /// (<https://github.com/Wei-Shaw/sub2api>), in a whole answer that is wrapped as an event is, or in the `delta` of a message,
    /// where Anthropic's documentation once showed it (<https://github.com/fumito-ito/AnthropicSwiftSDK/issues/7>).
    fn is_displaced(&self) -> bool {
        matches!(
            (self.shape, self.objects[1]),
            (Shape::ResponsesEvent, Object::ResponsesUsage)
                | (Shape::Response, Object::Response)
                | (Shape::MessagesEvent, Object::MessageDelta)
        )
    }

    /// The type that stands in the stream beside the document counts where the document names none.
    pub fn name_kind(&mut self, kind: &[u8]) {
        if self.facts.kind.is_empty()
            && let Ok(kind) = std::str::from_utf8(kind)
        {
            self.facts.kind.push_str(kind);
            self.forget_unless_told();
        }
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
        // Only objects of the table are entered, which are `DEEPEST` deep at most.
        let member = match (key.name, self.objects.get(key.depth - 1)) {
            (Some(name), Some(object)) if !self.is_settled() => match object.member(name) {
                Member::Other if key.depth == 1 => self.shape.member_at_top(name),
                member => member,
            },
            _ => Member::Other,
        };
        match member {
            Member::Inner(object) => {
                if object.is_usage() {
                    self.usage_at = Some(key.depth);
                }
                if let Some(place) = self.objects.get_mut(key.depth) {
                    *place = object;
                }
                // An error may be a text as well.
                self.fact = matches!(object, Object::Error).then_some(Fact::Error(ErrorPart::Text));
                Interest::Enter
            }
            Member::Fact(fact) => {
                if let Fact::Array = fact {
                    self.array_at.get_or_insert(key.start);
                }
                self.fact = Some(fact);
                Interest::Capture
            }
            Member::Other => {
                self.fact = None;
                Interest::Skip
            }
        }
    }

    fn value(&mut self, value: Value<'_>) {
        self.usage_at = self.usage_at.filter(|depth| *depth != value.depth);
        let Some(fact) = self.fact.take() else {
            return;
        };
        self.facts.learn(fact, value, self.is_displaced());
        if let Fact::Kind = fact {
            self.forget_unless_told();
        }
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
            Shape::Media => Object::Media,
            Shape::Choice => Object::Choice,
            Shape::Iteration => Object::Iteration,
        }
    }

    /// What no object of the answer itself has.
    fn member_at_top(self, name: &[u8]) -> Member {
        match (self, name) {
            // Some wrap a whole answer as an event is.
            (Shape::Response, b"response") => Member::Inner(Object::Response),
            _ => flat_error_member(name),
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
                    "created"
                        | "queued"
                        | "in_progress"
                        | "completed"
                        | "incomplete"
                        | "failed"
                        | "done"
                        | "cancelled"
                        | "canceled"
                        | "usage"
                ),
                None => kind == "error",
            },
            Shape::MessagesEvent => matches!(
                kind,
                "message_start" | "message_delta" | "message_stop" | "error"
            ),
            _ => true,
        }
    }
}

impl Object {
    fn is_usage(self) -> bool {
        matches!(
            self,
            Object::ResponsesUsage | Object::ChatUsage | Object::MessagesUsage
        )
    }

    /// The table of the paths. Sources: the OpenAPI description of OpenAI's API (`Response`, `ResponseUsage`,
    /// `CreateChatCompletionStreamResponse`, `CompletionUsage`) and Anthropic's Messages API reference.
    fn member(self, key: &[u8]) -> Member {
        match self {
            Object::ResponsesEvent => match key {
                b"type" => Member::Fact(Fact::Kind),
                b"response" => Member::Inner(Object::Response),
                b"usage" => Member::Inner(Object::ResponsesUsage),
                b"stream_id" => Member::Fact(Fact::StreamId),
                // Of an `error` that is about one response among several.
                b"response_id" => Member::Fact(Fact::Id),
                // Codex reads either name (`WrappedWebsocketErrorEvent` of <https://github.com/openai/codex>).
                b"status" | b"status_code" => Member::Fact(Fact::ErrorStatus),
                b"error" => Member::Inner(Object::Error),
                _ => Member::Other,
            },
            Object::MessagesEvent => match key {
                b"type" => Member::Fact(Fact::Kind),
                b"message" => Member::Inner(Object::Message),
                b"usage" => Member::Inner(Object::MessagesUsage),
                b"delta" => Member::Inner(Object::MessageDelta),
                b"error" => Member::Inner(Object::Error),
                _ => Member::Other,
            },
            Object::Response | Object::Chat | Object::Message | Object::Media => {
                self.member_of_answer(key)
            }
            Object::MessageDelta => match key {
                b"stop_reason" => Member::Fact(Fact::StopReason),
                b"usage" => Member::Inner(Object::MessagesUsage),
                _ => Member::Other,
            },
            // Moonshot tells the usage of a stream here
            // (<https://github.com/earendil-works/pi/issues/2017>).
            Object::Choice => match key {
                b"index" => Member::Fact(Fact::Index),
                b"finish_reason" => Member::Fact(Fact::StopReason),
                b"usage" => Member::Inner(Object::ChatUsage),
                _ => Member::Other,
            },
            Object::MessagesPrompt => match part_of_input(key) {
                Some((_, class)) => Member::Fact(Fact::Count(Spelling::Within, class)),
                None => Member::Other,
            },
            // `ResponseSteerEvent` of OpenAI's Python SDK 3.57.0.
            Object::Incomplete if key == b"reason" => Member::Fact(Fact::IncompleteReason),
            Object::Incomplete => Member::Other,
            Object::ToolUsage => Member::Inner(Object::Tool),
            Object::Tool => match key {
                b"input_tokens" | b"output_tokens" | b"total_tokens" => {
                    Member::Fact(Fact::ToolTokens)
                }
                _ => Member::Other,
            },
            Object::Groq if key == b"usage" => Member::Inner(Object::ChatUsage),
            Object::Groq => Member::Other,
            Object::Error => match key {
                b"code" => Member::Fact(Fact::Error(ErrorPart::Code)),
                b"type" => Member::Fact(Fact::Error(ErrorPart::Kind)),
                b"param" => Member::Fact(Fact::Error(ErrorPart::Param)),
                b"message" => Member::Fact(Fact::Error(ErrorPart::Message)),
                _ => Member::Other,
            },
            Object::Iteration if key == b"type" => Member::Fact(Fact::Kind),
            Object::Iteration if key == b"model" => Member::Fact(Fact::Model),
            Object::MessagesUsage | Object::Iteration => member_of_messages_usage(key),
            _ => self.member_of_usage(key),
        }
    }

    fn member_of_answer(self, key: &[u8]) -> Member {
        match (self, key) {
            (_, b"id") => Member::Fact(Fact::Id),
            (_, b"model") => Member::Fact(Fact::Model),
            (_, b"error") => Member::Inner(Object::Error),
            (Object::Response, b"status") => Member::Fact(Fact::Status),
            (Object::Response, b"background") => Member::Fact(Fact::Background),
            (Object::Response, b"incomplete_details") => Member::Inner(Object::Incomplete),
            // Not in `usage`: the tokens of the image tool are of an image model
            // (<https://github.com/Wei-Shaw/sub2api/issues/1999>).
            (Object::Response, b"tool_usage") => Member::Inner(Object::ToolUsage),
            (Object::Response | Object::Chat, b"service_tier") => Member::Fact(Fact::Tier),
            (Object::Chat, b"choices") => Member::Fact(Fact::Array),
            (Object::Media, b"type") => Member::Fact(Fact::Kind),
            (Object::Chat, b"usage") => Member::Inner(Object::ChatUsage),
            // Groq tells the usage of a stream here that nobody asked for it
            // (<https://console.groq.com/docs/api-reference#chat-create>).
            (Object::Chat, b"x_groq") => Member::Inner(Object::Groq),
            (Object::Message, b"usage") => Member::Inner(Object::MessagesUsage),
            (_, b"usage") => Member::Inner(Object::ResponsesUsage),
            _ => Member::Other,
        }
    }

    /// The usage of OpenAI's APIs, and what compatible upstreams put into it; `docs/usage.md` has the sources.
    fn member_of_usage(self, key: &[u8]) -> Member {
        use Class::{CachedInput, Input, Output, Reasoning};
        use Object::{ChatUsage, InputDetails, OutputDetails, ResponsesUsage};
        use Spelling::{Beside, Native};
        let count = |spelling, class| Member::Fact(Fact::Count(spelling, class));
        match (self, key) {
            (ResponsesUsage, b"input_tokens") | (ChatUsage, b"prompt_tokens") => {
                count(Native, Input)
            }
            (ResponsesUsage, b"output_tokens") | (ChatUsage, b"completion_tokens") => {
                count(Native, Output)
            }
            // The latter is that of transcriptions (<https://platform.openai.com/docs/api-reference/audio/json-object>).
            (ResponsesUsage, b"input_tokens_details" | b"input_token_details")
            | (ChatUsage, b"prompt_tokens_details") => Member::Inner(InputDetails(Native)),
            (ResponsesUsage, b"output_tokens_details")
            | (ChatUsage, b"completion_tokens_details") => Member::Inner(OutputDetails(Native)),
            // What LiteLLM hands on of an answer of Anthropic's.
            (ResponsesUsage | ChatUsage, b"service_tier") => Member::Fact(Fact::UsageTier),
            (ResponsesUsage | ChatUsage, b"speed") => Member::Fact(Fact::Speed),
            (ResponsesUsage | ChatUsage, key) => foreign_member_of_usage(key),
            (
                InputDetails(_),
                b"cache_write_tokens_details" | b"cache_creation_token_details" | b"cache_creation",
            ) => Member::Inner(Object::Lifetimes(WrittenIn::Details)),
            // Of the models that Sakana's Fugu lets work on the answer (<https://console.sakana.ai/models>).
            (InputDetails(_), b"orchestration_input_tokens") => count(Beside, Input),
            (InputDetails(_), b"orchestration_input_cached_tokens") => count(Beside, CachedInput),
            (OutputDetails(_), b"orchestration_output_tokens") => count(Beside, Output),
            (OutputDetails(spelling), b"reasoning_tokens" | b"thinking_tokens") => {
                count(spelling, Reasoning)
            }
            (InputDetails(of_details), key) => match part_of_input(key) {
                Some((Native, class)) => count(of_details, class),
                Some((foreign, class)) => count(foreign, class),
                None => medium_member(Side::Input, key),
            },
            (OutputDetails(_), key) => medium_member(Side::Output, key),
            (Object::Lifetimes(place), key) => match lifetime(key) {
                Some(seconds) => Member::Fact(Fact::Written {
                    place,
                    is_long: seconds >= LONG_LIFETIME,
                }),
                None => Member::Other,
            },
            _ => Member::Other,
        }
    }
}

/// Spellings that are not those of the endpoint's own API: OpenAI's other API, DeepSeek (`prompt_cache_hit_tokens`),
/// Moonshot (`cached_tokens`), Mistral (`num_cached_tokens`, `prompt_token_details`), new-api (`claude_cache_creation_…`), and
/// gateways that leave Anthropic's names as they are.
fn foreign_member_of_usage(key: &[u8]) -> Member {
    use Class::{CacheWrite, CachedInput, Input, Output};
    let count = |class| Member::Fact(Fact::Count(Spelling::Foreign, class));
    match key {
        b"input_tokens" | b"prompt_tokens" => count(Input),
        b"output_tokens" | b"completion_tokens" => count(Output),
        b"prompt_cache_hit_tokens"
        | b"cached_tokens"
        | b"num_cached_tokens"
        | b"cache_read_input_tokens" => count(CachedInput),
        b"cache_creation_input_tokens" => count(CacheWrite),
        b"cache_creation" => Member::Inner(Object::Lifetimes(WrittenIn::Usage)),
        b"claude_cache_creation_5_m_tokens" => written_member(false),
        b"claude_cache_creation_1_h_tokens" => written_member(true),
        b"input_tokens_details" | b"prompt_tokens_details" | b"prompt_token_details" => {
            Member::Inner(Object::InputDetails(Spelling::Foreign))
        }
        b"output_tokens_details" | b"completion_tokens_details" => {
            Member::Inner(Object::OutputDetails(Spelling::Foreign))
        }
        b"total_tokens" => Member::Fact(Fact::Total),
        _ => Member::Other,
    }
}

/// The names that OpenAI has for parts of the input in its details, and those of compatible upstreams.
fn part_of_input(key: &[u8]) -> Option<(Spelling, Class)> {
    match key {
        b"cached_tokens" => Some((Spelling::Native, Class::CachedInput)),
        b"cache_write_tokens" => Some((Spelling::Native, Class::CacheWrite)),
        b"cache_creation_tokens" | b"cached_creation_tokens" | b"cache_creation_input_tokens" => {
            Some((Spelling::Foreign, Class::CacheWrite))
        }
        _ => None,
    }
}

fn medium_member(side: Side, key: &[u8]) -> Member {
    let medium = match key {
        b"text_tokens" => Medium::Text,
        b"audio_tokens" => Medium::Audio,
        b"image_tokens" => Medium::Image,
        _ => return Member::Other,
    };
    Member::Fact(Fact::Medium(side, medium))
}

fn written_member(is_long: bool) -> Member {
    Member::Fact(Fact::Written {
        place: WrittenIn::Members,
        is_long,
    })
}

/// <https://platform.claude.com/docs/en/api/messages>: `usage`, and the like of an iteration.
fn member_of_messages_usage(key: &[u8]) -> Member {
    let count = |class| Member::Fact(Fact::Count(Spelling::Native, class));
    match key {
        b"input_tokens" => count(Class::Input),
        b"cache_read_input_tokens" => count(Class::CachedInput),
        b"cache_creation_input_tokens" => count(Class::CacheWrite),
        b"cache_creation" => Member::Inner(Object::Lifetimes(WrittenIn::Usage)),
        b"claude_cache_creation_5_m_tokens" => written_member(false),
        b"claude_cache_creation_1_h_tokens" => written_member(true),
        // Moonshot fills this beside a zero of the API's own member, as DeepSeek does the other
        // (<https://github.com/Wei-Shaw/sub2api/pull/497>).
        b"cached_tokens" | b"prompt_cache_hit_tokens" => {
            Member::Fact(Fact::Count(Spelling::Foreign, Class::CachedInput))
        }
        b"prompt_cache_miss_tokens" => Member::Fact(Fact::Missed),
        // No member of the API itself: see `UsageTally::move_input_to_cache`.
        b"prompt_tokens_details" => Member::Inner(Object::MessagesPrompt),
        b"output_tokens" => count(Class::Output),
        b"output_tokens_details" => Member::Inner(Object::OutputDetails(Spelling::Native)),
        b"service_tier" => Member::Fact(Fact::Tier),
        b"speed" => Member::Fact(Fact::Speed),
        b"iterations" => Member::Fact(Fact::Array),
        _ => Member::Other,
    }
}

/// An answer that is an error without being wrapped into one: `{"detail": …}` of the ChatGPT backend,
/// `{"object": "error", "message": …}` of others, and the `error` event of a Responses stream.
fn flat_error_member(key: &[u8]) -> Member {
    match key {
        b"code" => Member::Fact(Fact::FlatError(ErrorPart::Code)),
        b"type" => Member::Fact(Fact::FlatError(ErrorPart::Kind)),
        b"param" => Member::Fact(Fact::FlatError(ErrorPart::Param)),
        b"message" | b"detail" => Member::Fact(Fact::FlatError(ErrorPart::Message)),
        _ => Member::Other,
    }
}

/// The seconds in a name such as `ttl_30m_tokens` or `ephemeral_1h_input_tokens`.
fn lifetime(name: &[u8]) -> Option<u64> {
    let mut words = name.split(|byte| *byte == b'_');
    words.find_map(|word| {
        let (unit, digits) = word.split_last()?;
        let unit = match unit {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => 86_400,
            _ => return None,
        };
        let count: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
        count.checked_mul(unit)
    })
}

fn names_tier(text: &[u8]) -> bool {
    text.windows(TIER_NAME.len())
        .any(|part| part.eq_ignore_ascii_case(TIER_NAME))
}

fn learn_text(text: &mut String, value: Value<'_>) {
    if text.is_empty() {
        text.push_str(&value.text().unwrap_or_default());
    }
}

/// Only a number that is not negative counts. Some upstreams write counts as `1000.0`
/// (<https://github.com/QuantumNous/new-api/issues/1545>); a fraction rounds up.
fn learn_count(count: &mut Option<u64>, value: Value<'_>) {
    /// 2 to the power of 64.
    const BEYOND: f64 = 18_446_744_073_709_551_616.0;
    if count.is_some() || value.kind != Kind::Number || value.cut {
        return;
    }
    let Ok(text) = std::str::from_utf8(value.raw) else {
        return;
    };
    *count = text.parse().ok().or_else(|| {
        let number: f64 = text.parse().ok()?;
        // Within the range of `u64`, and whole.
        ((0.0..BEYOND).contains(&number)).then(|| number.ceil() as u64)
    });
}

/// Some tell an empty one, or `null` as a text, for as long as there is none.
fn is_reason(value: Value<'_>) -> bool {
    let is_empty = matches!(value.raw.trim_ascii(), b"" | b"null");
    value.kind == Kind::String && !is_empty
}

/// There are several spellings of one count, and relays fill those that they do not know with zeros.
fn learn_any(count: &mut Option<u64>, value: Value<'_>) {
    if *count == Some(0) {
        *count = None;
    }
    learn_count(count, value);
}

/// Whether it is a count of more than zero.
fn tells_some(value: Value<'_>) -> bool {
    let mut told = None;
    learn_count(&mut told, value);
    told.is_some_and(|count| count > 0)
}

/// The first of two counts, or the second where the first says nothing.
fn more_than_none(first: Option<u64>, second: Option<u64>) -> Option<u64> {
    first.filter(|count| *count > 0).or(second).or(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lifetime_of_a_cache_write_stands_in_its_name() {
        for (name, seconds) in [
            ("ttl_30m_tokens", Some(1800)),
            ("ttl_12h_tokens", Some(43_200)),
            ("ephemeral_5m_input_tokens", Some(300)),
            ("ephemeral_1h_input_tokens", Some(3600)),
            ("ttl_60m_tokens", Some(3600)),
            ("ttl_7d_tokens", Some(604_800)),
            ("cache_tokens", None),
            ("ttl_m_tokens", None),
            ("ttl_99999999999999999999h", None),
            ("", None),
        ] {
            assert_eq!(lifetime(name.as_bytes()), seconds, "{name}");
        }
    }
}
