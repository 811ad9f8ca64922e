//! Those who look on: at the body of an HTTP response, and at the messages on a WebSocket.

use super::document::Document;
use super::list::List;
use super::paths::Shape;
use super::tally::{Protocol, Tally};
use super::{Observed, Usage, UsageState, text};
use crate::codec::BYTE_ORDER_MARK;
use crate::codec::content_coding::AnswerDecoder;
use crate::codec::sse::{EventStream, Part};
use crate::policy::endpoint::{Endpoint, classify};
use http::{HeaderMap, Method};

/// How many bytes tell an event stream: the longest beginning of a line, `event:` or `retry:`.
const OPENING_BYTES: usize = 6;

/// Looks on at the body of one HTTP response.
pub struct ResponseObserver {
    decoder: AnswerDecoder,
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
    /// The `type`; `None` too where the message is no whole JSON object.
    pub kind: Option<String>,
    /// The `id` of the event's `response`, whole.
    pub response_id: Option<String>,
    /// The lane that the event belongs to where the connection has several.
    pub stream_id: Option<String>,
    /// What the response came to, where the event ends one: `response.completed`, `response.incomplete`,
    /// `response.failed`, `response.done`, `response.cancelled`, `response.canceled`, `error`.
    pub observed: Option<Observed>,
    pub(super) tally: Tally,
}

/// What the events of one response on a WebSocket come to.
#[derive(Debug, Default)]
pub struct EventTally(Tally);

struct Body {
    protocol: Protocol,
    /// What the Content-Type says, where the first bytes do not.
    event_stream: bool,
    /// Until the first bytes have told what comes.
    opening: Opening,
    /// `None` before the first bytes, and where the body is one document.
    events: Option<EventStream>,
    /// The body is a list of answers.
    list: Option<List>,
    document: Document,
    tally: Tally,
}

/// The first bytes of a body, without a byte order mark and white space: none of it tells anything, and a JSON text
/// must not begin with the former.
#[derive(Default)]
struct Opening {
    mark: usize,
    bytes: [u8; OPENING_BYTES],
    length: usize,
    over: bool,
}

/// Whether answers to such a request are observed. The path is without its query.
pub fn is_observed(endpoint: Endpoint, method: &Method, path: &[u8]) -> bool {
    protocol(endpoint, method, path).is_some()
}

/// Whether a response refuses the tier that its upstream was sent: a 4xx whose error names `service_tier`. `body` is the body
/// as it came.
pub fn refuses_tier(endpoint: Endpoint, status: u16, headers: &HeaderMap, body: &[u8]) -> bool {
    let observe = || {
        let mut observer = ResponseObserver::new(endpoint, false, headers)?;
        observer.feed(body);
        Some(observer.finish().error_names_tier)
    };
    (400..500).contains(&status) && observe().unwrap_or_default()
}

/// The endpoint decides, not the method: there are upstreams that take `post` for POST
/// (<https://github.com/pgjones/hypercorn>), and an answer that tells usage has used it.
fn protocol(endpoint: Endpoint, method: &Method, path: &[u8]) -> Option<Protocol> {
    match endpoint {
        // The answer has no body, whatever its head says.
        _ if *method == Method::HEAD => None,
        Endpoint::Other | Endpoint::Extra if is_media(path) => Some(Protocol::Media),
        // An operator may list one that is known, such as the legacy completions.
        Endpoint::Extra => Protocol::of(classify(path, &[]).endpoint).or(Some(Protocol::Unknown)),
        endpoint => Protocol::of(endpoint),
    }
}

/// `…/images/*` and `…/audio/*`, whose answers tell tokens for the models that count them
/// (<https://platform.openai.com/docs/api-reference/images>).
fn is_media(path: &[u8]) -> bool {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let mut segments = path.rsplit(|byte| *byte == b'/');
    let last = segments.next().unwrap_or_default();
    let second = segments.next().unwrap_or_default();
    let any = |name: &[u8], of: &[&[u8]]| of.iter().any(|one| name.eq_ignore_ascii_case(one));
    (any(second, &[b"images"]) && any(last, &[b"generations", b"edits", b"variations"]))
        || (any(second, &[b"audio"]) && any(last, &[b"transcriptions", b"translations", b"speech"]))
}

impl ResponseObserver {
    /// An observer for the answer to a request to `endpoint`; `None` for other endpoints, where there is nothing to observe.
    /// `event_stream` is what the Content-Type says; the first bytes have the last word.
    pub fn new(endpoint: Endpoint, event_stream: bool, headers: &HeaderMap) -> Option<Self> {
        Some(Self::with(Protocol::of(endpoint)?, event_stream, headers))
    }

    /// The same for the answer to a request, which [`is_observed`] or not.
    pub fn for_request(
        (endpoint, method, path): (Endpoint, &Method, &[u8]),
        event_stream: bool,
        headers: &HeaderMap,
    ) -> Option<Self> {
        let protocol = protocol(endpoint, method, path)?;
        Some(Self::with(protocol, event_stream, headers))
    }

    fn with(protocol: Protocol, event_stream: bool, headers: &HeaderMap) -> Self {
        Self {
            decoder: AnswerDecoder::new(headers),
            body: Body::new(protocol, event_stream),
            blind: false,
        }
    }

    /// The response was asked for in the background: unless its last status is told, its usage comes with a later request.
    pub fn expect_background(&mut self) {
        self.body.tally.background = true;
    }

    /// Looks at the next piece of the body, as it came from the upstream.
    pub fn feed(&mut self, chunk: &[u8]) {
        if self.blind {
            return;
        }
        let body = &mut self.body;
        let pushed = self.decoder.push(chunk, &mut |piece| {
            body.feed(piece);
            Ok(())
        });
        self.blind = pushed.is_err();
    }

    /// Whether the event that ends a stream has come, after which a client may well leave.
    pub fn has_terminal_event(&self) -> bool {
        self.body.tally.terminal.is_some()
    }

    /// The counts that the events of a stream have told so far.
    pub fn usage(&self) -> Usage {
        self.body.tally.observed(self.body.protocol).usage
    }

    /// The body has ended, or was cut off here.
    pub fn finish(mut self) -> Observed {
        let body = &mut self.body;
        let finished = self.decoder.finish(&mut |piece| {
            body.feed(piece);
            Ok(())
        });
        self.blind |= finished.is_err();
        let observed = self.body.finish();
        Observed {
            lacks_end: observed.lacks_end && !self.blind,
            ..observed
        }
    }
}

impl EventObserver {
    /// An observer that has seen no event yet.
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
        let event = if self.document.is_whole() {
            Event::of(&self.document)
        } else {
            Event::default()
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
    fn of(document: &Document) -> Self {
        let facts = document.facts();
        let mut tally = Tally::default();
        tally.add_responses_event(document);
        let ends = tally.ended || tally.failed;
        Self {
            kind: text(&facts.kind),
            response_id: (!facts.id.is_empty()).then(|| facts.id.clone()),
            stream_id: text(&facts.stream_id),
            observed: ends.then(|| tally.observed(Protocol::Responses)),
            tally,
        }
    }
}

impl EventTally {
    /// The response was asked for in the background.
    pub fn expect_background(&mut self) {
        self.0.background = true;
    }

    /// Takes an event of the response.
    pub fn add(&mut self, event: &Event) {
        self.0.join(&event.tally);
    }

    /// What the response comes to, or has come to so far.
    pub fn observed(&self) -> Observed {
        self.0.observed(Protocol::Responses)
    }
}

impl Body {
    fn new(protocol: Protocol, event_stream: bool) -> Self {
        Self {
            protocol,
            event_stream,
            opening: Opening::default(),
            events: None,
            list: None,
            document: Document::new(protocol.shape(event_stream)),
            tally: Tally::default(),
        }
    }

    fn feed(&mut self, mut piece: &[u8]) {
        if !self.opening.over {
            piece = self.opening.take(piece);
            match self.opening.tells() {
                Some(event_stream) => self.begin(event_stream),
                // More is needed to tell, or it is something else.
                None if piece.is_empty() => return,
                None => self.begin(self.event_stream),
            }
        }
        self.read(piece);
    }

    /// What comes is known; the opening is read with it.
    fn begin(&mut self, event_stream: bool) {
        self.opening.over = true;
        if event_stream != self.event_stream {
            self.event_stream = event_stream;
            self.document = Document::new(self.protocol.shape(event_stream));
        }
        self.events = event_stream.then(EventStream::new);
        let (opening, length) = (self.opening.bytes, self.opening.length);
        // What an operator's own path lists may be anything.
        let has_lists = self.protocol != Protocol::Unknown;
        let is_list = !event_stream && has_lists && opening[0] == b'[';
        self.list = is_list.then(List::default);
        self.read(&opening[..length]);
    }

    fn read(&mut self, piece: &[u8]) {
        let Self {
            protocol,
            events,
            list,
            document,
            tally,
            ..
        } = self;
        match (events, list) {
            (Some(events), _) => {
                events.feed(piece, &mut |part| take(part, *protocol, document, tally));
            }
            (None, Some(list)) => take_listed(piece, list, document, tally),
            (None, None) => document.feed(piece),
        }
    }

    fn finish(mut self) -> Observed {
        let is_empty = !self.opening.over && self.opening.length == 0;
        if !self.opening.over {
            self.begin(self.event_stream);
        }
        let Self {
            protocol,
            events,
            list,
            mut document,
            mut tally,
            ..
        } = self;
        let is_stream = events.is_some();
        let is_cut = !is_stream && list.is_none() && document.is_cut();
        match events {
            Some(events) => {
                events.finish(&mut |part| take(part, protocol, &mut document, &mut tally));
            }
            None => match list {
                Some(list) => tally.ended &= list.is_whole(),
                None => tally.add_answer(&document),
            },
        }
        let observed = tally.observed(protocol);
        Observed {
            // What is made in the background goes on without its stream.
            lacks_end: (is_stream || is_cut)
                && protocol.expects_end()
                && !tally.ended
                && !tally.failed
                && observed.usage_state != UsageState::Deferred,
            event_stream: (!is_empty).then_some(is_stream),
            ..observed
        }
    }
}

fn take(part: Part<'_>, protocol: Protocol, document: &mut Document, tally: &mut Tally) {
    match part {
        Part::Data(bytes) => document.feed(bytes),
        Part::End(kind) => {
            tally.add_event(protocol, document, kind);
            document.reset();
        }
    }
}

/// Each element is an answer of its own.
fn take_listed(mut piece: &[u8], list: &mut List, document: &mut Document, tally: &mut Tally) {
    while !piece.is_empty() {
        let (element, is_end, rest) = list.split(piece);
        document.feed(element);
        if is_end {
            let mut answer = Tally::default();
            answer.add_answer(document);
            tally.add_listed(&answer);
            document.reset();
        }
        piece = rest;
    }
}

impl Opening {
    /// Takes of the body's first bytes what is needed, and gives back what is left.
    fn take<'a>(&mut self, mut piece: &'a [u8]) -> &'a [u8] {
        while self.tells().is_none() && self.length < OPENING_BYTES {
            let [first, rest @ ..] = piece else {
                break;
            };
            let is_mark = self.length == 0 && BYTE_ORDER_MARK.get(self.mark) == Some(first);
            if is_mark {
                self.mark += 1;
            } else if self.length > 0 || !first.is_ascii_whitespace() {
                self.bytes[self.length] = *first;
                self.length += 1;
            }
            piece = rest;
        }
        piece
    }

    /// Whether this begins an event stream, or else a JSON document; none where it is too early to say, or neither.
    fn tells(&self) -> Option<bool> {
        match &self.bytes[..self.length] {
            [] => None,
            [b'{' | b'[', ..] => Some(false),
            // A comment; some send one first, to keep the connection.
            [b':', ..] => Some(true),
            bytes => {
                let names: [&[u8]; 4] = [b"data:", b"event:", b"id:", b"retry:"];
                names
                    .iter()
                    .any(|name| bytes.starts_with(name))
                    .then_some(true)
            }
        }
    }
}
