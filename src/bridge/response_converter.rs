//! One answer on its way from the upstream to the client: bytes in, bytes out. It keeps the status free until the first
//! fact, so that what fails before can still be a proper HTTP answer. It has no socket and no clock: the exchange calls
//! it when something has come, or when time has passed.

use super::Protocol;
use super::chat_response::ChatResponse;
use super::client_side::ClientSide;
use super::delivery::Delivery;
use super::error::Answer;
use super::fact::{Fact, Final, Usage};
use super::failure::{Failure, UpstreamError};
use super::json::{Object, object, parse, to_string};
use super::messages_response::MessagesResponse;
use super::reader::Reader;
use super::response_context::ResponseContext;
use super::sse::{Decoder, write_event};
use crate::codec::BYTE_ORDER_MARK;
use crate::codec::error::Cause;
use std::borrow::Cow;

/// What the exchange has to do after a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Nothing. Where nothing has been written yet, the status is still free.
    Nothing,
    /// Write these bytes and flush. Before the first, the head of a stream: 200 and [`super::STREAM_HEADERS`].
    Write(Vec<u8>),
    /// Write these bytes, as above, and end: the answer is over.
    End {
        /// The last bytes.
        bytes: Vec<u8>,
        /// The answer ended as it should. If not, the connection is to be closed so that the client can tell.
        whole: bool,
    },
    /// Send this and nothing else: nothing has been written before. The answer is over.
    Answer(Answer),
}

/// One answer, converted as it comes.
#[derive(Debug)]
pub struct ResponseConverter {
    protocol: Protocol,
    delivery: Delivery,
    body: Body,
    reader: Reader,
    client: Box<dyn ClientSide>,
    /// What the client is told at the end.
    usage: Usage,
    ending: Option<Ending>,
    /// The ending has been handed over.
    told: bool,
}

/// How the upstream's body is read. Some gateways name a wrong type in their head: the first byte tells.
#[derive(Debug)]
enum Body {
    /// Nothing but white space and this beginning of a byte order mark has come.
    Unknown(Vec<u8>),
    Events(Decoder),
    /// One response object, so far.
    Json(Vec<u8>),
}

/// How the answer has ended.
#[derive(Debug)]
enum Ending {
    /// As it should.
    Done,
    /// With this failure, unless the answer had ended before.
    Failed(Failure),
}

impl ResponseConverter {
    /// An answer to the request that left this context.
    pub fn new(context: ResponseContext, delivery: Delivery) -> Self {
        ResponseConverter {
            protocol: context.protocol,
            body: Body::Unknown(Vec::new()),
            reader: Reader::new(delivery.limits.waiting),
            client: client_side(context, &delivery),
            usage: Usage::default(),
            delivery,
            ending: None,
            told: false,
        }
    }

    /// The request was sent again, without the tier that the upstream had refused.
    pub fn without_tier(&mut self) {
        self.client.without_tier();
    }

    /// The upstream's head of status 200 has come, with this content type. What is neither a stream nor JSON is no
    /// answer: 502.
    pub fn upstream_head(&mut self, content_type: Option<&str>) -> Output {
        let Some(content_type) = content_type else {
            return Output::Nothing;
        };
        let media = content_type
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        let known =
            media == "text/event-stream" || media == "application/json" || media.ends_with("+json");
        if !known {
            self.fail(Failure::Unreadable(
                "a content type that is neither a stream nor JSON",
            ));
        }
        self.output()
    }

    /// The upstream's body has a content coding that is not known, or is not what its coding says.
    pub fn undecodable(&mut self) -> Output {
        self.fail(Failure::Unreadable(
            "a content coding that cannot be decoded",
        ));
        self.output()
    }

    /// What has been counted of the answer; before the piece is fed that ends it.
    pub fn count(&mut self, usage: Usage) {
        self.usage = usage;
    }

    /// A piece of the upstream's body has come, decoded, of any length and cut anywhere.
    pub fn feed(&mut self, piece: &[u8]) -> Output {
        if self.ending.is_none() {
            let piece = self.decide(piece);
            self.read(&piece);
        }
        self.output()
    }

    /// The upstream's body has ended.
    pub fn finish(&mut self) -> Output {
        if self.ending.is_none() {
            let facts = match &mut self.body {
                Body::Unknown(_) => Vec::new(),
                Body::Events(decoder) => {
                    // A last event without the blank line behind it counts if it is whole.
                    let last = decoder.finish();
                    let last = last.filter(|event| parse(&event.data).is_ok());
                    last.map(|event| self.reader.feed(&event))
                        .unwrap_or_default()
                }
                Body::Json(body) => self.reader.feed_whole(&std::mem::take(body)),
            };
            self.take_all(facts);
        }
        self.cut()
    }

    /// The upstream's connection broke, inside its body or before.
    pub fn cut(&mut self) -> Output {
        self.fail(Failure::Cut);
        self.output()
    }

    /// The upstream has answered with another status than 200.
    pub fn upstream_error(&mut self, error: &UpstreamError<'_>) -> Output {
        if self.ending.is_some() {
            return self.output();
        }
        let id = &self.delivery.request_id;
        let answer = (!self.has_begun()).then(|| error.answer(self.protocol, id));
        self.fail(error.failure());
        match answer {
            // It may hand on more of the upstream's words than a failure has.
            Some(answer) => {
                self.told = true;
                Output::Answer(answer)
            }
            None => self.output(),
        }
    }

    /// The upstream took too long, with its head or inside its body.
    pub fn timed_out(&mut self) -> Output {
        self.fail(Failure::TimedOut);
        self.output()
    }

    /// So much time has passed without a fact that the answer should begin: a stream begins, so that pings may follow.
    pub fn commit(&mut self) -> Output {
        if self.ending.is_none() {
            self.client.begin();
        }
        self.output()
    }

    /// So much time has passed without a byte for the client that it should get one. Only to be called while the
    /// upstream's connection lives: a ping must not hide one that is dead.
    pub fn ping(&mut self) -> Output {
        if self.ending.is_none()
            && self.has_begun()
            && let Some(out) = self.client.stream()
        {
            write_ping(self.protocol, out);
        }
        self.output()
    }

    /// Whether the head of a stream has been given, so that the status is no longer free.
    pub fn has_begun(&self) -> bool {
        self.client.has_begun()
    }

    /// Bytes that are held of the answer: of the upstream's body or its event under way, and of the text that is put together
    /// for a client that wants no stream.
    pub fn held(&self) -> usize {
        let body = match &self.body {
            Body::Unknown(start) => start.len(),
            Body::Events(decoder) => decoder.held(),
            Body::Json(body) => body.len(),
        };
        body + self.client.whole_length()
    }

    /// The cause that the access log has for the failure of this answer; `None` where it has not failed, or the upstream has
    /// told.
    pub fn log_error(&self) -> Option<Cause> {
        match &self.ending {
            Some(Ending::Failed(failure)) => failure.cause(),
            _ => None,
        }
    }

    /// Whether the answer has failed though nothing in the upstream's bytes names a failure, so that who reads only these
    /// cannot tell.
    pub fn has_untold_failure(&self) -> bool {
        matches!(&self.ending, Some(Ending::Failed(failure)) if failure.is_untold())
    }

    /// What of the answer the client does not get: one more name for the log's `bridge_dropped`.
    pub fn dropped(&self) -> Option<&'static str> {
        self.client.dropped()
    }

    /// Tells a stream from a response object by its first byte; gives what is to be read.
    fn decide<'p>(&mut self, piece: &'p [u8]) -> Cow<'p, [u8]> {
        let Body::Unknown(start) = &mut self.body else {
            return piece.into();
        };
        let mut body = std::mem::take(start);
        body.extend_from_slice(piece);
        let whole = body.trim_ascii_start();
        let is_early = whole.len() < BYTE_ORDER_MARK.len() && BYTE_ORDER_MARK.starts_with(whole);
        let rest = whole.strip_prefix(BYTE_ORDER_MARK).unwrap_or(whole);
        self.body = match rest.trim_ascii_start().first() {
            _ if is_early => Body::Unknown(whole.to_vec()),
            None => Body::Unknown(BYTE_ORDER_MARK.to_vec()),
            Some(b'{') => Body::Json(Vec::new()),
            Some(_) => Body::Events(Decoder::new(self.delivery.limits.event)),
        };
        rest.to_vec().into()
    }

    fn read(&mut self, piece: &[u8]) {
        match &mut self.body {
            Body::Unknown(_) => {} // it was kept
            Body::Events(decoder) => match decoder.feed(piece) {
                Ok(events) => {
                    for event in &events {
                        let facts = self.reader.feed(event);
                        self.take_all(facts);
                    }
                }
                Err(_) => self.fail(Failure::Unreadable("an event of too many bytes")),
            },
            Body::Json(body) if body.len() + piece.len() > self.delivery.limits.whole => {
                self.fail(Failure::Unreadable("a body of too many bytes"));
            }
            Body::Json(body) => body.extend_from_slice(piece),
        }
    }

    /// Takes facts in order; after the end none counts.
    fn take_all(&mut self, facts: Vec<Fact>) {
        for fact in facts {
            match fact {
                Fact::Failed(failure) => self.fail(failure),
                _ if self.ending.is_some() => {}
                Fact::Done(last) => {
                    let usage = self.usage;
                    self.client.fact(Fact::Done(Final { usage, ..last }));
                    self.ending = Some(Ending::Done);
                }
                fact => self.client.fact(fact),
            }
            if self.client.whole_length() > self.delivery.limits.whole {
                self.fail(Failure::Unreadable("an answer of too many bytes"));
            }
        }
    }

    /// The answer has failed, unless it is over.
    fn fail(&mut self, failure: Failure) {
        if self.ending.is_none() {
            self.ending = Some(Ending::Failed(failure));
        }
    }

    /// What there is to do now.
    fn output(&mut self) -> Output {
        let begun = self.has_begun();
        match &self.ending {
            None => match self.client.stream() {
                Some(out) if !out.is_empty() => Output::Write(std::mem::take(out)),
                _ => Output::Nothing,
            },
            Some(_) if std::mem::replace(&mut self.told, true) => Output::Nothing,
            Some(Ending::Done) => self.done(),
            Some(Ending::Failed(failure)) => match self.client.stream() {
                Some(out) if begun => {
                    write_error(self.protocol, failure.error_object(self.protocol), out);
                    Output::End {
                        bytes: std::mem::take(out),
                        whole: false,
                    }
                }
                _ => Output::Answer(self.failed(failure)),
            },
        }
    }

    /// The last output of an answer that has ended as it should.
    fn done(&mut self) -> Output {
        if let Some(out) = self.client.stream() {
            return Output::End {
                bytes: std::mem::take(out),
                whole: true,
            };
        }
        match self.client.take_whole() {
            Some(body) => Output::Answer(Answer::text(200, body.into_bytes())),
            None => {
                self.ending = Some(Ending::Failed(Failure::Cut));
                Output::Answer(self.failed(&Failure::Cut))
            }
        }
    }

    fn failed(&self, failure: &Failure) -> Answer {
        failure.answer(self.protocol, &self.delivery.request_id)
    }
}

/// The writer for the request that left this context.
fn client_side(context: ResponseContext, delivery: &Delivery) -> Box<dyn ClientSide> {
    match context.protocol {
        Protocol::Messages => Box::new(MessagesResponse::new(context, delivery)),
        Protocol::Chat => Box::new(ChatResponse::new(context, delivery)),
    }
}

/// Writes what keeps a silent stream alive; Chat has no event for it.
fn write_ping(protocol: Protocol, out: &mut Vec<u8>) {
    match protocol {
        Protocol::Messages => write_event(Some("ping"), r#"{"type":"ping"}"#, out),
        Protocol::Chat => out.extend_from_slice(b": ping\n\n"),
    }
}

/// Tells the client of a stream that it has failed. No end follows: it would make the answer look whole.
fn write_error(protocol: Protocol, error: Object<'_>, out: &mut Vec<u8>) {
    let (name, data) = match protocol {
        Protocol::Messages => (Some("error"), object! {"type": "error", "error": error}),
        Protocol::Chat => (None, object! {"error": error}),
    };
    write_event(name, &to_string(&data.into()), out);
}
