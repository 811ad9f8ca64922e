//! What a response says of the tokens it used, the tier it was served on, and how it ended. It looks on at a copy of the
//! bytes: whatever they are, it neither fails nor holds more of them than a few short texts. It does not decide what is
//! billed.

mod document;

use crate::codec::content_coding::{Coding, Decoder};
use crate::codec::error::{Cause, Refusal};
use crate::codec::sse::{EventStream, Part};
use crate::policy::endpoint::Endpoint;
use document::{Document, Facts, Shape};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;

/// How much of a coded response is looked at once it is decoded, in bytes: small data may decode to any amount.
pub const DECODED_LIMIT: u64 = 256 << 20;

/// The longest `served_tier`, in bytes.
pub const TIER_BYTES: usize = 64;

/// The longest `response_id`, `model`, event type and `stream_id`, in bytes.
pub const TEXT_BYTES: usize = 128;

/// Token counts of one response; null where the upstream did not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All input, cached and cache-write tokens included, whatever the protocol.
    pub input_tokens: Option<u64>,
    pub cached_input_tokens: Option<u64>,
    pub cache_write_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    /// Part of the output tokens.
    pub reasoning_tokens: Option<u64>,
}

/// How much of the usage the response told before it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UsageState {
    Final,
    /// There were counts, but the response did not come to its end.
    Partial,
    #[default]
    None,
}

impl UsageState {
    pub fn as_str(self) -> &'static str {
        match self {
            UsageState::Final => "final",
            UsageState::Partial => "partial",
            UsageState::None => "none",
        }
    }
}

/// What was read from a response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    pub usage: Usage,
    pub usage_state: UsageState,
    /// Trimmed, in lower case, at most `TIER_BYTES`.
    pub served_tier: Option<String>,
    /// At most `TEXT_BYTES`.
    pub response_id: Option<String>,
    /// At most `TEXT_BYTES`.
    pub model: Option<String>,
    /// The type of the event that ended the stream, `[DONE]` for chat; of an `error` event too.
    pub terminal_event: Option<String>,
    /// The upstream said that the response failed.
    pub failed: bool,
    /// The answer is that the response is still to be made; nothing was used yet.
    pub background: bool,
    /// The stream ended with neither its terminal event nor an error.
    pub lacks_end: bool,
}

/// Looks on at the body of one HTTP response.
pub struct ResponseObserver {
    decoding: Option<Decoding>,
    body: Body,
    /// The body could not be decoded to its end: what was not seen proves nothing.
    blind: bool,
}

/// Looks on at the messages that a server sends on a WebSocket of the Responses API.
#[derive(Debug)]
pub struct EventObserver {
    document: Document,
}

/// One message of a Responses WebSocket. Of an event that has no facts, such as a delta, only the kind is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// The `type`, at most `TEXT_BYTES`; `None` too where the message is no whole JSON object.
    pub kind: Option<String>,
    /// The `id` of the event's `response`, at most `TEXT_BYTES`.
    pub response_id: Option<String>,
    /// The lane that the event belongs to where the connection has several, at most `TEXT_BYTES`.
    pub stream_id: Option<String>,
    /// The HTTP status that an `error` event names.
    pub status: Option<u16>,
    /// What the response came to, where the event ends one: `response.completed`, `response.incomplete`,
    /// `response.failed`, `error`.
    pub observed: Option<Observed>,
}

/// A coded body, decoded on the side.
struct Decoding {
    decoder: Decoder,
    /// How many more decoded bytes are looked at.
    left: u64,
}

struct Body {
    protocol: Protocol,
    /// `None` where the body is one document.
    events: Option<EventStream>,
    document: Document,
    tally: Tally,
}

/// Whose rules the documents follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Responses,
    Chat,
    Messages,
    /// Paths that an operator lists: what looks like a response is read as one, and nothing is expected.
    Unknown,
}

/// What the documents so far come to.
#[derive(Debug, Default)]
struct Tally {
    id: String,
    model: String,
    tier: String,
    speed: String,
    usage: Usage,
    terminal: Option<&'static str>,
    /// The response came to its end, and what it told is final.
    ended: bool,
    failed: bool,
    background: bool,
}

impl ResponseObserver {
    /// An observer for the answer to a request to `endpoint`; `None` where there is nothing to observe: for other
    /// endpoints, and for codings that are not understood.
    pub fn new(endpoint: Endpoint, event_stream: bool, headers: &HeaderMap) -> Option<Self> {
        let protocol = Protocol::of(endpoint)?;
        let decoding = coding(headers)?.map(Decoding::new);
        Some(Self {
            decoding,
            body: Body::new(protocol, event_stream),
            blind: false,
        })
    }

    /// Looks at the next piece of the body, as it came from the upstream.
    pub fn feed(&mut self, chunk: &[u8]) {
        if self.blind {
            return;
        }
        match &mut self.decoding {
            Some(decoding) => self.blind = decoding.push(chunk, &mut self.body).is_err(),
            None => self.body.feed(chunk),
        }
    }

    /// Whether the event that ends a stream has come, after which a client may well leave.
    pub fn has_terminal_event(&self) -> bool {
        self.body.tally.terminal.is_some()
    }

    /// The body has ended, or was cut off here.
    pub fn finish(self) -> Observed {
        let observed = self.body.finish();
        Observed {
            lacks_end: observed.lacks_end && !self.blind,
            ..observed
        }
    }
}

impl EventObserver {
    pub fn new() -> Self {
        Self {
            document: Document::new(Shape::ResponsesEvent),
        }
    }

    /// Looks at the next piece of the message under way; the first piece begins one.
    pub fn feed(&mut self, piece: &[u8]) {
        self.document.feed(piece);
    }

    /// The message has ended.
    pub fn end(&mut self) -> Event {
        let event = match self.document.is_whole() {
            true => Event::of(self.document.facts()),
            false => Event::default(),
        };
        self.document.reset();
        event
    }
}

impl Default for EventObserver {
    fn default() -> Self {
        Self::new()
    }
}

impl Event {
    fn of(facts: &Facts) -> Self {
        let mut tally = Tally::default();
        tally.add_responses_event(facts, true);
        let ends = tally.ended || tally.failed;
        Self {
            kind: text(&facts.kind),
            response_id: text(&facts.id),
            stream_id: text(&facts.stream_id),
            status: facts.error_status.and_then(|status| status.try_into().ok()),
            observed: ends.then(|| tally.observed(Protocol::Responses)),
        }
    }
}

impl Decoding {
    fn new(coding: Coding) -> Self {
        Self {
            decoder: Decoder::new(coding),
            left: DECODED_LIMIT,
        }
    }

    /// # Errors
    /// The data are broken, or more than `DECODED_LIMIT` come out.
    fn push(&mut self, chunk: &[u8], body: &mut Body) -> Result<(), Refusal> {
        let left = &mut self.left;
        self.decoder.push(chunk, &mut |piece| {
            *left = left
                .checked_sub(piece.len() as u64)
                .ok_or_else(|| Refusal::from(Cause::DecodedBodyTooLarge))?;
            body.feed(piece);
            Ok(())
        })
    }
}

impl Body {
    fn new(protocol: Protocol, event_stream: bool) -> Self {
        Self {
            protocol,
            events: event_stream.then(EventStream::new),
            document: Document::new(protocol.shape(event_stream)),
            tally: Tally::default(),
        }
    }

    fn feed(&mut self, piece: &[u8]) {
        let Self {
            protocol,
            events,
            document,
            tally,
        } = self;
        match events {
            Some(events) => events.feed(piece, &mut |part| tally.take(part, *protocol, document)),
            None => document.feed(piece),
        }
    }

    fn finish(self) -> Observed {
        let Self {
            protocol,
            events,
            mut document,
            mut tally,
        } = self;
        let expects_end = events.is_some() && protocol != Protocol::Unknown;
        match events {
            Some(events) => events.finish(&mut |part| tally.take(part, protocol, &mut document)),
            None => tally.add_answer(document.facts(), document.is_whole()),
        }
        Observed {
            lacks_end: expects_end && !tally.ended && !tally.failed,
            ..tally.observed(protocol)
        }
    }
}

impl Protocol {
    fn of(endpoint: Endpoint) -> Option<Self> {
        match endpoint {
            Endpoint::Responses | Endpoint::ResponsesCompact => Some(Protocol::Responses),
            Endpoint::ChatCompletions => Some(Protocol::Chat),
            Endpoint::Messages => Some(Protocol::Messages),
            Endpoint::Extra => Some(Protocol::Unknown),
            Endpoint::Embeddings
            | Endpoint::Completions
            | Endpoint::ResponsesItem
            | Endpoint::Other => None,
        }
    }

    fn shape(self, event_stream: bool) -> Shape {
        match (self, event_stream) {
            (Protocol::Responses | Protocol::Unknown, true) => Shape::ResponsesEvent,
            (Protocol::Responses | Protocol::Unknown, false) => Shape::Response,
            (Protocol::Chat, _) => Shape::Chat,
            (Protocol::Messages, true) => Shape::MessagesEvent,
            (Protocol::Messages, false) => Shape::Message,
        }
    }
}

impl Tally {
    fn take(&mut self, part: Part<'_>, protocol: Protocol, document: &mut Document) {
        match part {
            Part::Data(bytes) => document.feed(bytes),
            Part::End => {
                self.add_event(protocol, document);
                document.reset();
            }
        }
    }

    fn add_event(&mut self, protocol: Protocol, document: &Document) {
        let (facts, whole) = (document.facts(), document.is_whole());
        match protocol {
            Protocol::Responses | Protocol::Unknown => self.add_responses_event(facts, whole),
            Protocol::Messages => self.add_messages_event(facts, whole),
            Protocol::Chat if document.is_done_mark() => self.end("[DONE]"),
            Protocol::Chat => {
                self.add_chat_chunk(facts, whole);
                self.ended |= whole && document.is_finished_choice();
            }
        }
    }

    /// Early events name a tier too, mostly `auto`, but only the terminal ones know it.
    fn add_responses_event(&mut self, facts: &Facts, whole: bool) {
        let terminal = match facts.kind.as_str() {
            "response.created" | "response.queued" | "response.in_progress" => {
                return self.name(facts);
            }
            "response.completed" => "response.completed",
            "response.incomplete" => "response.incomplete",
            "response.failed" => "response.failed",
            _ => return self.add_error(facts, whole),
        };
        self.name(facts);
        self.count(facts.usage, whole);
        if whole {
            set(&mut self.tier, &facts.tier);
            self.end(terminal);
            self.failed |= terminal == "response.failed";
        }
    }

    fn add_chat_chunk(&mut self, facts: &Facts, whole: bool) {
        self.name(facts);
        self.count(facts.usage, whole);
        if whole {
            set(&mut self.tier, &facts.tier);
        }
        self.add_error(facts, whole);
    }

    /// The counts of `message_start` are replaced by those that `message_delta` tells, which are cumulative.
    fn add_messages_event(&mut self, facts: &Facts, whole: bool) {
        match facts.kind.as_str() {
            "message_start" | "message_delta" => {
                self.name(facts);
                self.count(facts.usage.or(self.usage), whole);
            }
            "message_stop" if whole => return self.end("message_stop"),
            _ => return self.add_error(facts, whole),
        }
        if whole {
            set(&mut self.tier, &facts.tier);
            set(&mut self.speed, &facts.speed);
        }
        if whole && facts.stopped {
            self.end("message_delta");
        }
    }

    fn add_error(&mut self, facts: &Facts, whole: bool) {
        if !whole {
            return;
        }
        if facts.kind == "error" {
            self.terminal = Some("error");
            self.failed = true;
        }
        self.failed |= facts.kind.is_empty() && facts.error;
    }

    /// The one document of an answer that is no stream.
    fn add_answer(&mut self, facts: &Facts, whole: bool) {
        self.name(facts);
        self.count(facts.usage, whole);
        if !whole {
            return;
        }
        self.failed = facts.error || facts.status == "failed";
        self.background = matches!(facts.status.as_str(), "queued" | "in_progress")
            && facts.usage == Usage::default();
        if !self.background {
            set(&mut self.tier, &facts.tier);
            set(&mut self.speed, &facts.speed);
            self.ended = true;
        }
    }

    fn name(&mut self, facts: &Facts) {
        set(&mut self.id, &facts.id);
        set(&mut self.model, &facts.model);
    }

    /// Counts in a document that is cut off or broken are better than none, but not final.
    fn count(&mut self, usage: Usage, whole: bool) {
        if usage != Usage::default() {
            self.usage = usage;
            self.ended &= whole;
        }
    }

    fn end(&mut self, terminal: &'static str) {
        self.terminal = Some(terminal);
        self.ended = true;
    }

    fn observed(&self, protocol: Protocol) -> Observed {
        let usage = match protocol {
            Protocol::Messages => self.usage.with_cache_in_input(),
            _ => self.usage,
        };
        Observed {
            usage,
            usage_state: match self.ended {
                _ if usage == Usage::default() => UsageState::None,
                true => UsageState::Final,
                false => UsageState::Partial,
            },
            // Fast mode runs on any tier, and is what is billed
            // (<https://platform.claude.com/docs/en/build-with-claude/fast-mode>).
            served_tier: match normalised(&self.speed) {
                Some(speed) if speed == "fast" => Some(speed),
                _ => normalised(&self.tier),
            },
            response_id: text(&self.id),
            model: text(&self.model),
            terminal_event: self.terminal.map(str::to_owned),
            failed: self.failed,
            background: self.background,
            lacks_end: false,
        }
    }
}

impl Usage {
    /// These counts, and those of `earlier` where there are none.
    fn or(self, earlier: Self) -> Self {
        Self {
            input_tokens: self.input_tokens.or(earlier.input_tokens),
            cached_input_tokens: self.cached_input_tokens.or(earlier.cached_input_tokens),
            cache_write_tokens: self.cache_write_tokens.or(earlier.cache_write_tokens),
            output_tokens: self.output_tokens.or(earlier.output_tokens),
            reasoning_tokens: self.reasoning_tokens.or(earlier.reasoning_tokens),
        }
    }

    /// Anthropic counts tokens that are read from the cache or written to it beside the input, not in it.
    fn with_cache_in_input(self) -> Self {
        let cached = self.cached_input_tokens.unwrap_or(0);
        let written = self.cache_write_tokens.unwrap_or(0);
        let sum = |input: u64| input.saturating_add(cached).saturating_add(written);
        Self {
            input_tokens: self.input_tokens.map(sum),
            ..self
        }
    }
}

/// The one coding of the body, if any; `None` where there are several or one that is not understood.
fn coding(headers: &HeaderMap) -> Option<Option<Coding>> {
    let mut coding = None;
    for line in headers.get_all(CONTENT_ENCODING) {
        for name in line.to_str().ok()?.split(',').map(str::trim) {
            if name.is_empty() || name.eq_ignore_ascii_case("identity") {
                continue;
            }
            if coding.replace(Coding::named(name)?).is_some() {
                return None;
            }
        }
    }
    Some(coding)
}

/// Takes over a text that was told. Streams repeat themselves, and equal texts cost nothing.
fn set(text: &mut String, told: &str) {
    if !told.is_empty() && text != told {
        told.clone_into(text);
    }
}

fn text(told: &str) -> Option<String> {
    let told = cut(told, TEXT_BYTES);
    (!told.is_empty()).then(|| told.to_owned())
}

fn normalised(tier: &str) -> Option<String> {
    let tier = tier.trim().to_lowercase();
    let tier = cut(&tier, TIER_BYTES);
    (!tier.is_empty()).then(|| tier.to_owned())
}

/// At most `limit` bytes of `text`, and no part of a character.
fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::endpoint::Endpoint::{ChatCompletions, Extra, Messages, Other, Responses};

    const COMPLETED: &str = r#"{"type":"response.completed","response":{"id":"resp_1","model":"gpt-5.5","status":"completed","service_tier":"priority","usage":{"input_tokens":90,"input_tokens_details":{"cached_tokens":40,"cache_write_tokens":7},"output_tokens":20,"output_tokens_details":{"reasoning_tokens":5},"total_tokens":110}}}"#;
    const CREATED: &str = r#"{"type":"response.created","response":{"id":"resp_0","model":"gpt-early","service_tier":"auto","usage":{"input_tokens":1}}}"#;

    fn usage(counts: [u64; 5]) -> Usage {
        let [input, cached, written, output, reasoning] = counts.map(Some);
        Usage {
            input_tokens: input,
            cached_input_tokens: cached,
            cache_write_tokens: written,
            output_tokens: output,
            reasoning_tokens: reasoning,
        }
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn completed() -> Observed {
        Observed {
            usage: usage([90, 40, 7, 20, 5]),
            usage_state: UsageState::Final,
            served_tier: some("priority"),
            response_id: some("resp_1"),
            model: some("gpt-5.5"),
            terminal_event: some("response.completed"),
            ..Observed::default()
        }
    }

    fn observe(endpoint: Endpoint, event_stream: bool, body: &[u8], step: usize) -> Observed {
        let mut observer =
            ResponseObserver::new(endpoint, event_stream, &HeaderMap::new()).unwrap();
        body.chunks(step).for_each(|chunk| observer.feed(chunk));
        observer.finish()
    }

    /// The same however the body is cut.
    fn observe_cut(endpoint: Endpoint, event_stream: bool, body: &str) -> Observed {
        let whole = observe(endpoint, event_stream, body.as_bytes(), usize::MAX);
        for step in [1, 2, 3, 7, 61] {
            let cut = observe(endpoint, event_stream, body.as_bytes(), step);
            assert_eq!(cut, whole, "by {step} bytes");
        }
        whole
    }

    fn stream(endpoint: Endpoint, documents: &[&str]) -> Observed {
        let body: String = documents
            .iter()
            .map(|data| format!("data: {data}\n\n"))
            .collect();
        observe_cut(endpoint, true, &body)
    }

    fn plain(endpoint: Endpoint, body: &str) -> Observed {
        observe_cut(endpoint, false, body)
    }

    #[test]
    fn the_terminal_event_of_a_responses_stream_tells_everything() {
        let delta = r#"{"type":"response.output_text.delta","delta":"x"}"#;
        assert_eq!(
            stream(Responses, &[CREATED, delta, COMPLETED, "[DONE]"]),
            completed()
        );
        assert_eq!(stream(Extra, &[COMPLETED]), completed());
    }

    #[test]
    fn an_early_event_tells_id_and_model_but_neither_tier_nor_usage() {
        let expected = Observed {
            response_id: some("resp_0"),
            model: some("gpt-early"),
            lacks_end: true,
            ..Observed::default()
        };
        assert_eq!(stream(Responses, &[CREATED]), expected);
    }

    #[test]
    fn the_type_may_come_after_the_response() {
        let response = &COMPLETED[r#"{"type":"response.completed","#.len()..COMPLETED.len() - 1];
        let late = format!(r#"{{ {response}, "ty\u0070e" : "response.completed" }}"#);
        assert_eq!(stream(Responses, &[&late]), completed());
        let other = format!(r#"{{{response},"type":"response.done"}}"#);
        assert!(stream(Responses, &[&other]).lacks_end);
        assert_eq!(stream(Responses, &[&other]).response_id, None);
    }

    #[test]
    fn of_equal_members_the_first_counts() {
        let twice = COMPLETED.replacen('{', r#"{"type":"response.output_text.delta","#, 1);
        assert_eq!(stream(Responses, &[&twice]).usage, Usage::default());
        let twice = COMPLETED.replace("}}}", r#"}},"type":"x","response":{"id":"resp_2"}}"#);
        assert_eq!(stream(Responses, &[&twice]), completed());
    }

    #[test]
    fn an_incomplete_response_is_final_and_a_failed_one_has_failed() {
        let incomplete = stream(
            Responses,
            &[&COMPLETED.replace("response.completed", "response.incomplete")],
        );
        assert_eq!(incomplete.usage_state, UsageState::Final);
        assert!(!incomplete.failed && !incomplete.lacks_end);
        let failed = r#"{"type":"response.failed","response":{"id":"r","service_tier":"default","usage":null}}"#;
        let expected = Observed {
            served_tier: some("default"),
            response_id: some("r"),
            terminal_event: some("response.failed"),
            failed: true,
            ..Observed::default()
        };
        assert_eq!(
            stream(Responses, &[CREATED, failed]).model,
            some("gpt-early")
        );
        assert_eq!(stream(Responses, &[failed]), expected);
    }

    #[test]
    fn an_error_event_fails_any_stream() {
        let error = r#"{"type":"error","code":"server_error","message":"x"}"#;
        for endpoint in [Responses, Messages] {
            let observed = stream(endpoint, &[error]);
            assert!(observed.failed && !observed.lacks_end);
            assert_eq!(observed.terminal_event, some("error"));
        }
        for endpoint in [Responses, Messages, ChatCompletions] {
            assert!(stream(endpoint, &[r#"{"error":{"message":"x"}}"#]).failed);
            assert!(!stream(endpoint, &[r#"{"error":null}"#]).failed);
        }
    }

    #[test]
    fn a_decoy_in_a_text_an_argument_or_a_tool_counts_for_nothing() {
        let text = r#"data: {\"type\":\"response.completed\",\"response\":{\"service_tier\":\"flex\"}}\n\n"#;
        let delta = format!(r#"{{"type":"response.output_text.delta","delta":"{text}"}}"#);
        let decoys = r#""response":{"tools":[{"service_tier":"flex","usage":{"input_tokens":1}}],"metadata":{"service_tier":"flex","id":"x"},"input_tokens":3,"#;
        let decoyed = COMPLETED.replace(r#""response":{"#, decoys);
        let outer = COMPLETED.replacen(
            '{',
            r#"{"service_tier":"flex","id":"evt","usage":{"input_tokens":2},"#,
            1,
        );
        for document in [&decoyed, &outer] {
            assert_eq!(stream(Responses, &[&delta, document, &delta]), completed());
        }
        let item = format!(r#"{{"type":"response.output_item.done","item":{COMPLETED}}}"#);
        assert!(stream(Responses, &[&item]).lacks_end);
    }

    #[test]
    fn a_terminal_event_that_is_cut_off_has_partial_usage_and_no_tier() {
        let expected = Observed {
            terminal_event: None,
            served_tier: None,
            usage_state: UsageState::Partial,
            lacks_end: true,
            ..completed()
        };
        assert_eq!(
            stream(Responses, &[&COMPLETED[..COMPLETED.len() - 1]]),
            expected
        );
        assert_eq!(stream(Responses, &[&format!("{COMPLETED}x")]), expected);
    }

    #[test]
    fn only_non_negative_integers_count() {
        for wrong in [
            "-1",
            "1e400",
            "1.0",
            "\"9\"",
            "{}",
            "[1]",
            "null",
            "true",
            "18446744073709551616",
        ] {
            let body = format!(r#"{{"usage":{{"input_tokens":{wrong},"output_tokens":0}}}}"#);
            let expected = Usage {
                output_tokens: Some(0),
                ..Usage::default()
            };
            assert_eq!(plain(Responses, &body).usage, expected, "{wrong}");
        }
    }

    #[test]
    fn wrong_types_are_as_if_they_were_not_there() {
        for wrong in ["7", "[]", "{\"id\":\"x\"}", "null", "\"\""] {
            let body = format!(
                r#"{{"type":"response.completed","response":{{"id":{wrong},"model":{wrong},"service_tier":{wrong},"usage":{wrong}}}}}"#
            );
            let expected = Observed {
                terminal_event: some("response.completed"),
                ..Observed::default()
            };
            assert_eq!(stream(Responses, &[&body]), expected, "{wrong}");
        }
    }

    #[test]
    fn the_tier_is_normalised_and_texts_are_cut_at_a_character() {
        let long = "\u{e9}".repeat(100);
        let body = format!(r#"{{"service_tier":"{long}","id":"a{long}","model":"{long}"}}"#);
        let observed = plain(Responses, &body);
        assert_eq!(observed.served_tier, Some("\u{e9}".repeat(32)));
        assert_eq!(
            observed.response_id,
            Some(format!("a{}", "\u{e9}".repeat(63)))
        );
        assert_eq!(observed.model, Some("\u{e9}".repeat(64)));
        let spelled = plain(Responses, r#"{"service_tier":" Fl\u0045X\t"}"#);
        assert_eq!(spelled.served_tier, some("flex"));
        assert_eq!(
            plain(Responses, r#"{"service_tier":" "}"#).served_tier,
            None
        );
    }

    #[test]
    fn a_plain_response_has_its_facts_at_the_top() {
        let body =
            &COMPLETED[r#"{"type":"response.completed","response":"#.len()..COMPLETED.len() - 1];
        let expected = Observed {
            terminal_event: None,
            ..completed()
        };
        assert_eq!(plain(Responses, body), expected);
        assert_eq!(plain(Endpoint::ResponsesCompact, body), expected);
        let cut = plain(Responses, &body[..body.len() - 1]);
        assert_eq!(cut.usage_state, UsageState::Partial);
        assert_eq!((cut.usage, cut.served_tier), (expected.usage, None));
    }

    #[test]
    fn a_plain_answer_may_have_failed_or_be_still_to_be_made() {
        assert!(
            plain(
                Responses,
                r#"{"status":"failed","error":{"code":"x"},"usage":null}"#
            )
            .failed
        );
        assert!(plain(Messages, r#"{"type":"error","error":{"type":"x"}}"#).failed);
        let queued = plain(
            Responses,
            r#"{"id":"r","status":"queued","service_tier":"auto","usage":null}"#,
        );
        let expected = Observed {
            response_id: some("r"),
            background: true,
            ..Observed::default()
        };
        assert_eq!(queued, expected);
        assert_eq!(plain(Responses, "<html>"), Observed::default());
        assert_eq!(plain(Responses, ""), Observed::default());
    }

    const CHUNK: &str = r#"{"id":"c1","model":"gpt","service_tier":"priority","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}],"usage":null}"#;
    const USED: &str = r#"{"id":"c1","model":"gpt","choices":[],"usage":{"prompt_tokens":19,"completion_tokens":10,"prompt_tokens_details":{"cached_tokens":8,"cache_write_tokens":1},"completion_tokens_details":{"reasoning_tokens":4}}}"#;

    #[test]
    fn a_chat_stream_tells_its_usage_in_one_chunk_and_its_tier_in_any() {
        let expected = Observed {
            usage: usage([19, 8, 1, 10, 4]),
            usage_state: UsageState::Final,
            served_tier: some("default"),
            response_id: some("c1"),
            model: some("gpt"),
            terminal_event: some("[DONE]"),
            ..Observed::default()
        };
        let default = CHUNK.replace("priority", "default");
        let odd = CHUNK.replace("\"priority\"", "null");
        let observed = stream(ChatCompletions, &[CHUNK, &default, &odd, USED, "[DONE] "]);
        assert_eq!(observed, expected);
    }

    #[test]
    fn a_chat_stream_ends_with_done_or_a_finish_reason() {
        let finished = CHUNK.replace(r#""finish_reason":null"#, r#""finish_reason":"stop""#);
        let observed = stream(ChatCompletions, &[CHUNK, &finished, USED]);
        assert!(!observed.lacks_end);
        assert_eq!(observed.usage_state, UsageState::Final);
        assert_eq!(observed.terminal_event, None);
        let cut = stream(ChatCompletions, &[&finished, &USED[..USED.len() - 1]]);
        assert_eq!(cut.usage_state, UsageState::Partial);
        let cut = stream(ChatCompletions, &[CHUNK, USED]);
        assert!(cut.lacks_end);
        assert_eq!(cut.usage_state, UsageState::Partial);
    }

    #[test]
    fn a_finish_reason_elsewhere_ends_no_chat_stream() {
        for decoy in [
            r#"{"finish_reason":"stop"}"#,
            r#"{"choices":{"a":[{"finish_reason":"stop"}]}}"#,
            r#"{"choices":null,"a":[{"finish_reason":"stop"}]}"#,
            r#"{"choices":[{"delta":{"finish_reason":"stop"}}]}"#,
            r#"{"choices":[{"delta":"\"finish_reason\":\"stop\""}]}"#,
            r#"{"a":[{"choices":[{"finish_reason":"stop"}]}]}"#,
            r#"{"choices":[],"a":[{"finish_reason":"stop"}]}"#,
            r#"{"choices":[{"finish_reason":"stop"}]"#,
            r#""[DONE]""#,
            "[DONE][DONE]",
            "[DONE",
        ] {
            assert!(stream(ChatCompletions, &[decoy]).lacks_end, "{decoy}");
        }
    }

    #[test]
    fn a_plain_chat_completion_is_read_as_a_chunk_is() {
        let observed = plain(
            ChatCompletions,
            &USED.replacen('{', r#"{"service_tier":"flex","#, 1),
        );
        assert_eq!(observed.usage, usage([19, 8, 1, 10, 4]));
        assert_eq!(observed.usage_state, UsageState::Final);
        assert_eq!(observed.served_tier, some("flex"));
    }

    const MESSAGE_START: &str = r#"{"type":"message_start","message":{"id":"msg_1","type":"message","model":"claude","content":[],"usage":{"input_tokens":25,"cache_creation_input_tokens":10,"cache_read_input_tokens":5,"output_tokens":1,"service_tier":"standard"}}}"#;
    const MESSAGE_DELTA: &str = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"cache_read_input_tokens":6,"output_tokens":15}}"#;
    const MESSAGE_STOP: &str = r#"{"type":"message_stop"}"#;

    fn message() -> Observed {
        Observed {
            usage: Usage {
                input_tokens: Some(41),
                cached_input_tokens: Some(6),
                cache_write_tokens: Some(10),
                output_tokens: Some(15),
                reasoning_tokens: None,
            },
            usage_state: UsageState::Final,
            served_tier: some("standard"),
            response_id: some("msg_1"),
            model: some("claude"),
            terminal_event: some("message_stop"),
            ..Observed::default()
        }
    }

    #[test]
    fn the_counts_of_a_message_are_merged_and_its_input_includes_the_cache() {
        let events = [
            MESSAGE_START,
            r#"{"type":"ping"}"#,
            MESSAGE_DELTA,
            MESSAGE_STOP,
        ];
        assert_eq!(stream(Messages, &events), message());
        let body = r#"{"id":"msg_1","type":"message","model":"claude","usage":{"input_tokens":25,"cache_creation_input_tokens":10,"cache_read_input_tokens":6,"output_tokens":15,"service_tier":"standard"}}"#;
        let expected = Observed {
            terminal_event: None,
            ..message()
        };
        assert_eq!(plain(Messages, body), expected);
    }

    #[test]
    fn a_message_ends_with_its_stop_or_the_reason_for_it() {
        let expected = Observed {
            terminal_event: some("message_delta"),
            ..message()
        };
        assert_eq!(stream(Messages, &[MESSAGE_START, MESSAGE_DELTA]), expected);
        let going_on = MESSAGE_DELTA.replace("\"end_turn\"", "null");
        let expected = Observed {
            terminal_event: None,
            usage_state: UsageState::Partial,
            lacks_end: true,
            ..message()
        };
        assert_eq!(stream(Messages, &[MESSAGE_START, &going_on]), expected);
    }

    #[test]
    fn a_message_in_fast_mode_was_served_fast() {
        let fast = MESSAGE_START.replace("\"standard\"", r#""standard","speed":"Fast""#);
        assert_eq!(stream(Messages, &[&fast]).served_tier, some("fast"));
        let slow = MESSAGE_START.replace("\"standard\"", r#""priority","speed":"standard""#);
        assert_eq!(stream(Messages, &[&slow]).served_tier, some("priority"));
    }

    #[test]
    fn only_endpoints_with_a_tier_are_observed() {
        assert!(ResponseObserver::new(Other, true, &HeaderMap::new()).is_none());
        assert!(!observe(Extra, true, b"data: {}\n\n", 1).lacks_end);
        assert!(observe(Responses, true, b"", 1).lacks_end);
    }

    fn coded(value: &str) -> HeaderMap {
        let value = value.parse().expect("a header value");
        HeaderMap::from_iter([(CONTENT_ENCODING, value)])
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain).expect("a vector takes all");
        encoder.finish().expect("a vector takes all")
    }

    #[test]
    fn a_coded_body_is_decoded_on_the_side() {
        let body = gzip(format!("data: {COMPLETED}\n\n").as_bytes());
        for step in [1, 7, body.len()] {
            let mut observer =
                ResponseObserver::new(Responses, true, &coded("identity, GZip")).unwrap();
            body.chunks(step).for_each(|chunk| observer.feed(chunk));
            assert_eq!(observer.finish(), completed());
        }
    }

    #[test]
    fn what_was_seen_of_a_broken_coding_stands() {
        let mut body = gzip(format!("data: {COMPLETED}\n\n").as_bytes());
        body.extend_from_slice(b"behind its end");
        let mut observer = ResponseObserver::new(Responses, true, &coded("gzip")).unwrap();
        observer.feed(&body);
        observer.feed(&body);
        assert_eq!(observer.finish(), completed());
        let mut observer = ResponseObserver::new(Responses, true, &coded("br")).unwrap();
        observer.feed(b"\xff\xff\xff no brotli");
        assert_eq!(observer.finish(), Observed::default());
    }

    #[test]
    fn a_coded_body_is_looked_at_up_to_the_limit() {
        let zeros = gzip(&vec![b'\n'; 1 << 20]);
        let mut decoding = Decoding::new(Coding::Gzip);
        decoding.left = 1 << 20;
        let mut body = Body::new(Protocol::Responses, true);
        assert!(decoding.push(&zeros, &mut body).is_ok());
        let mut decoding = Decoding::new(Coding::Gzip);
        decoding.left = (1 << 20) - 1;
        assert!(decoding.push(&zeros, &mut body).is_err());
    }

    #[test]
    fn codings_that_are_not_understood_are_not_observed() {
        for value in ["lzma", "gzip, br", "\u{e9}"] {
            assert!(ResponseObserver::new(Responses, true, &coded(value)).is_none());
        }
        assert!(ResponseObserver::new(Responses, true, &coded("identity")).is_some());
    }

    fn message_of(observer: &mut EventObserver, text: &str, step: usize) -> Event {
        let pieces = text.as_bytes().chunks(step);
        pieces.for_each(|piece| observer.feed(piece));
        observer.end()
    }

    #[test]
    fn the_messages_of_a_websocket_are_told_one_by_one() {
        let lane = COMPLETED.replace("}}}", r#"}},"stream_id":"s2"}"#);
        for step in [1, 5, usize::MAX] {
            let mut observer = EventObserver::new();
            let created = Event {
                kind: some("response.created"),
                response_id: some("resp_0"),
                ..Event::default()
            };
            assert_eq!(message_of(&mut observer, CREATED, step), created);
            let delta = r#"{"stream_id":"s1","type":"response.output_text.delta","delta":"x"}"#;
            let event = Event {
                kind: some("response.output_text.delta"),
                ..Event::default()
            };
            assert_eq!(message_of(&mut observer, delta, step), event);
            let late = r#"{"n":1,"type":"response.output_text.delta","stream_id":"s1","response":{"id":"r"}}"#;
            assert_eq!(message_of(&mut observer, late, step), event);
            let ended = Event {
                kind: some("response.completed"),
                response_id: some("resp_1"),
                stream_id: some("s2"),
                observed: Some(completed()),
                ..Event::default()
            };
            assert_eq!(message_of(&mut observer, &lane, step), ended);
            assert_eq!(message_of(&mut observer, "x", step), Event::default());
        }
    }

    #[test]
    fn an_error_on_a_websocket_names_its_status() {
        let error = r#"{"type":"error","status":400,"error":{"code":"previous_response_not_found","status":1}}"#;
        let event = message_of(&mut EventObserver::new(), error, 3);
        assert_eq!((event.kind, event.status), (some("error"), Some(400)));
        let observed = event.observed.expect("an error ends the response");
        assert!(observed.failed);
        assert_eq!(observed.terminal_event, some("error"));
    }

    #[test]
    fn an_observer_may_be_sent_and_shared() {
        fn check<T: Send + Sync + 'static>() {}
        check::<ResponseObserver>();
        check::<EventObserver>();
    }
}
