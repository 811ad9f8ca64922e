//! What the documents of one response come to.

use super::content::Content;
use super::document::Document;
use super::paths::{ResponseFields, Shape};
use super::usage_tally::UsageTally;
use super::{Observed, Usage, UsageState, add_model, text};
use crate::policy::endpoint::Endpoint;

/// Whose rules the documents follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Responses,
    /// Chat completions, legacy completions.
    Chat,
    Embeddings,
    Messages,
    /// Images and audio.
    Media,
    /// Paths that an operator lists: what looks like a response is read as one, and nothing is expected.
    Unknown,
}

/// The statuses with which a response is over that may have used nothing
/// (<https://platform.openai.com/docs/api-reference/responses/object>). A response that was made has counts.
const WITHOUT_COUNTS: [&str; 3] = ["failed", "cancelled", "canceled"];

/// What the documents so far come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    id: String,
    model: String,
    tier: String,
    usage_tier: String,
    speed: String,
    usage: UsageTally,
    lacks_price: bool,
    pub terminal: Option<&'static str>,
    /// The response came to its end, and what it told is final.
    pub ended: bool,
    pub failed: bool,
    error: Option<String>,
    error_names_tier: bool,
    /// The response is made in the background, or was asked for so.
    pub background: bool,
    /// A status that is the response's last was told.
    settled: bool,
    steered: bool,
    /// An event of a Responses stream told of output.
    has_output: bool,
    content: Content,
}

impl Protocol {
    pub fn of(endpoint: Endpoint) -> Option<Self> {
        match endpoint {
            Endpoint::Responses | Endpoint::ResponsesCompact | Endpoint::ResponsesItem => {
                Some(Protocol::Responses)
            }
            Endpoint::ChatCompletions | Endpoint::Completions => Some(Protocol::Chat),
            Endpoint::Embeddings => Some(Protocol::Embeddings),
            Endpoint::Messages => Some(Protocol::Messages),
            Endpoint::Extra => Some(Protocol::Unknown),
            Endpoint::Other => None,
        }
    }

    pub fn shape(self, event_stream: bool) -> Shape {
        match (self, event_stream) {
            (Protocol::Responses | Protocol::Unknown, true) => Shape::ResponsesEvent,
            (Protocol::Responses | Protocol::Unknown, false) => Shape::Response,
            (Protocol::Chat | Protocol::Embeddings, _) => Shape::Chat,
            (Protocol::Messages, true) => Shape::MessagesEvent,
            (Protocol::Messages, false) => Shape::Message,
            (Protocol::Media, _) => Shape::Media,
        }
    }

    /// Whether what it answers is made of its input, token by token.
    fn completes(self) -> bool {
        !matches!(self, Protocol::Embeddings | Protocol::Media)
    }

    /// Whether a stream has to tell its end.
    pub fn expects_end(self) -> bool {
        !matches!(
            self,
            Protocol::Embeddings | Protocol::Unknown | Protocol::Media
        )
    }
}

impl Tally {
    /// An event of a stream, whose type may stand beside its data.
    pub fn add_event(&mut self, protocol: Protocol, document: &mut Document, kind: &[u8]) {
        match protocol {
            Protocol::Chat if document.is_done_mark() => return self.end("[DONE]"),
            Protocol::Chat | Protocol::Embeddings if kind != b"error" => {}
            _ => document.name_kind(kind),
        }
        match protocol {
            Protocol::Responses | Protocol::Unknown => self.add_responses_event(document),
            Protocol::Messages => self.add_messages_event(document),
            Protocol::Chat | Protocol::Embeddings => self.add_chat_chunk(document),
            Protocol::Media => self.add_media_event(document),
        }
    }

    /// Early events name a tier too, mostly `auto`, but only the terminal ones know it.
    pub fn add_responses_event(&mut self, document: &Document) {
        let facts = document.facts();
        let terminal = match facts.kind.as_str() {
            "response.created" | "response.queued" | "response.in_progress" => {
                self.background |= facts.background;
                self.name(facts);
                // Some upstreams count as they go, and end with zeros or nothing
                // (<https://github.com/cloudwego/eino-ext/pull/681>).
                self.count(document);
                if document.told_output().is_some() {
                    self.content.begin();
                }
                return;
            }
            "response.usage" => {
                self.content.tell(document.told_output());
                return self.count(document);
            }
            "response.completed" => "response.completed",
            "response.incomplete" => "response.incomplete",
            "response.failed" => "response.failed",
            "response.done" => "response.done",
            "response.cancelled" => "response.cancelled",
            "response.canceled" => "response.canceled",
            kind => {
                self.has_output |= kind.starts_with("response.");
                if kind.ends_with(".delta") {
                    // Much of it is ids and padding.
                    self.content.add(0);
                }
                return self.add_error(document);
            }
        };
        self.name(facts);
        self.content.tell(document.told_output());
        self.count(document);
        if document.is_whole() {
            self.tell_tier(facts);
            self.end(terminal);
            self.steered = facts.steered;
            if terminal == "response.failed" || facts.status == "failed" {
                self.fail(facts);
            }
        }
    }

    fn add_chat_chunk(&mut self, document: &Document) {
        let facts = document.facts();
        self.name(facts);
        self.count(document);
        let whole = document.is_whole();
        if whole {
            self.tell_tier(facts);
        }
        self.add_error(document);
        self.ended |= whole && document.is_finished_choice();
    }

    /// The counts of `message_start` are replaced by those that `message_delta` tells, which are cumulative.
    fn add_messages_event(&mut self, document: &Document) {
        let (facts, whole) = (document.facts(), document.is_whole());
        match facts.kind.as_str() {
            kind @ ("message_start" | "message_delta") => {
                match kind {
                    "message_start" => self.content.begin(),
                    _ => self.content.tell(document.told_output()),
                }
                self.name(facts);
                self.usage.move_input_to_cache(document);
                self.count(document);
            }
            "message_stop" if whole => return self.end("message_stop"),
            "content_block_start" => return self.content.add(0),
            "content_block_delta" => return self.content.add(document.length()),
            _ => return self.add_error(document),
        }
        if whole {
            self.tell_tier(facts);
        }
        if whole && facts.stopped {
            self.end("message_delta");
        }
    }

    fn add_media_event(&mut self, document: &Document) {
        let facts = document.facts();
        self.name(facts);
        self.count(document);
        self.add_error(document);
        let is_last = facts.kind.ends_with(".completed") || facts.kind.ends_with(".done");
        self.ended |= document.is_whole() && is_last;
    }

    fn add_error(&mut self, document: &Document) {
        let facts = document.facts();
        if !document.is_whole() {
            return;
        }
        if facts.kind == "error" {
            self.terminal = Some("error");
            self.fail(facts);
        } else if facts.kind.is_empty() && facts.error.is_one() {
            self.fail(facts);
        }
    }

    /// The one document of an answer that is no stream.
    pub fn add_answer(&mut self, document: &Document) {
        let facts = document.facts();
        self.name(facts);
        self.count(document);
        let counts = self.usage.total().has_counts();
        let waits = matches!(facts.status.as_str(), "queued" | "in_progress");
        if !document.is_whole() {
            // What is counted was served.
            if counts && !waits {
                self.tell_tier(facts);
            }
            return;
        }
        let flat_kind = facts.flat_error.kind.as_str();
        if facts.error.is_one() || facts.status == "failed" || flat_kind == "error" {
            self.failed = true;
        }
        self.tell_error(facts);
        // Some leave the status of a whole answer as it was.
        self.background = waits && (self.background || facts.background || !counts);
        self.settled = match facts.status.as_str() {
            "" | "completed" | "incomplete" => counts,
            status => WITHOUT_COUNTS.contains(&status),
        };
        if !self.background {
            self.tell_tier(facts);
            self.ended = true;
        }
    }

    /// Takes over what a later document of the same response told.
    pub fn join(&mut self, newer: &Tally) {
        for (text, told) in [
            (&mut self.id, &newer.id),
            (&mut self.model, &newer.model),
            (&mut self.tier, &newer.tier),
            (&mut self.usage_tier, &newer.usage_tier),
            (&mut self.speed, &newer.speed),
        ] {
            set(text, told);
        }
        self.usage.join(&newer.usage);
        self.lacks_price |= newer.lacks_price;
        self.terminal = newer.terminal.or(self.terminal);
        self.ended |= newer.ended;
        self.failed |= newer.failed;
        self.error = self.error.take().or_else(|| newer.error.clone());
        self.error_names_tier |= newer.error_names_tier;
        self.background |= newer.background;
        self.settled |= newer.settled;
        self.has_output |= newer.has_output;
        self.content.join(&newer.content);
    }

    /// Takes over what another answer in the same list told: all of it was used, and where several models served, no one of
    /// them has the price.
    pub fn add_listed(&mut self, answer: &Tally) {
        let usage = self.usage.plus(&answer.usage);
        let mut models = std::mem::take(&mut self.model);
        add_model(&mut models, &answer.model);
        self.join(answer);
        self.usage = usage;
        self.model = models;
    }

    fn fail(&mut self, facts: &ResponseFields) {
        self.failed = true;
        self.tell_error(facts);
    }

    fn tell_error(&mut self, facts: &ResponseFields) {
        let Some(error) = facts.told_error() else {
            return;
        };
        let named = |name: &&String| !matches!(name.as_str(), "" | "error" | "message");
        let name = [&error.code, &error.kind].into_iter().find(named);
        self.error = self
            .error
            .take()
            .or_else(|| name.and_then(|name| text(name)));
        let status = facts.error_status;
        let is_clients = status.is_none_or(|status| (400..500).contains(&status));
        self.error_names_tier |= error.names_tier && is_clients;
    }

    fn name(&mut self, facts: &ResponseFields) {
        set(&mut self.id, &facts.id);
        set(&mut self.model, &facts.model);
    }

    fn tell_tier(&mut self, facts: &ResponseFields) {
        let told = [
            (&mut self.tier, &facts.tier),
            (&mut self.usage_tier, &facts.usage_tier),
        ];
        for (tier, told) in told {
            if !told.trim().eq_ignore_ascii_case("auto") {
                set(tier, told);
            }
        }
        set(&mut self.speed, &facts.speed);
    }

    /// Counts in a document that is cut off or broken are better than none, but not final.
    fn count(&mut self, document: &Document) {
        if self.usage.add(document) {
            self.lacks_price |= document.mixes_prices(&self.model) || document.ends_in_usage();
            self.ended &= document.is_whole();
        }
    }

    fn end(&mut self, terminal: &'static str) {
        self.terminal = Some(terminal);
        self.ended = true;
        self.settled = true;
    }

    /// Whether the zeros that it tells may be what was used: by a response of Responses that made nothing, such as the one by
    /// which Codex warms a WebSocket up (`generate: false`). No prompt that is answered has no tokens.
    fn may_be_free(&self, protocol: Protocol) -> bool {
        protocol == Protocol::Responses && self.terminal.is_some() && !self.has_output
    }

    /// Fast mode runs on any tier, and is what is billed
    /// (<https://platform.claude.com/docs/en/build-with-claude/fast-mode>). On messages, where fast mode
    /// is what is asked for, that it was not used says enough.
    fn served_tier(&self, protocol: Protocol) -> &str {
        let speed = self.speed.trim();
        let named = [&self.tier, &self.usage_tier].map(|tier| tier.trim());
        if speed.eq_ignore_ascii_case("fast") {
            return speed;
        }
        match named.into_iter().find(|tier| !tier.is_empty()) {
            Some(tier) => tier,
            None if protocol == Protocol::Messages && speed.eq_ignore_ascii_case("standard") => {
                speed
            }
            None => "",
        }
    }

    /// The counts that can be what was used, and whether one of them is missing that the answer must have.
    fn counts(&self, protocol: Protocol) -> (Usage, bool) {
        let mut usage = self.usage.total();
        if protocol == Protocol::Messages {
            usage = usage.with_cache_in_input();
        }
        let lacks_output = self.ended && self.content.refutes(usage.output_tokens);
        if lacks_output {
            usage.output_tokens = None;
        }
        let lacks_input = protocol.completes() && usage.lacks_input();
        if lacks_input {
            usage = usage.without_input();
        }
        (usage, lacks_input || lacks_output)
    }

    pub fn observed(&self, protocol: Protocol) -> Observed {
        let (mut usage, lacks_count) = self.counts(protocol);
        // Nobody fetches what an operator's own path makes: see `Endpoint::ResponsesItem`.
        let may_wait = self.background && protocol != Protocol::Unknown;
        let waits = may_wait && !self.settled && !self.id.is_empty();
        // What it counts so far is not what it will come to, and zeros alone are no counts.
        if waits || !(usage.has_counts() || self.may_be_free(protocol)) {
            usage = Usage::default();
        }
        Observed {
            usage,
            lacks_price: self.lacks_price,
            usage_state: match self.ended && !lacks_count {
                _ if waits => UsageState::Deferred,
                _ if usage == Usage::default() => UsageState::None,
                true => UsageState::Final,
                false => UsageState::Partial,
            },
            served_tier: text(self.served_tier(protocol)),
            response_id: text(&self.id),
            model: text(&self.model),
            terminal_event: self.terminal.map(str::to_owned),
            failed: self.failed,
            error: self.error.clone(),
            error_names_tier: self.error_names_tier,
            settled: self.settled,
            steered: self.steered,
            lacks_end: false,
            event_stream: None,
        }
    }
}

/// Takes over a text that was told. Streams repeat themselves, and equal texts cost nothing.
fn set(text: &mut String, told: &str) {
    if !told.is_empty() && text != told {
        told.clone_into(text);
    }
}
