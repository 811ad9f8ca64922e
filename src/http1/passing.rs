//! An answer over HTTP/1.1 on its way from its upstream to its client, beside what is left of the request.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::StatusCode;
use pingora_core::protocols::Stream;
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use tokio::io::{AsyncRead, ReadBuf};

use crate::codec::error::{Cause, Refusal};
use crate::codec::framing::write_line;
use crate::http1::answer::{AnswerBody, AnswerHead, Framing, Malformed, Piece};
use crate::http1::relay::Client;
use crate::http1::upload::Upload;
use crate::policy::endpoint::Endpoint;
use crate::proxy::REQUEST_ID;
use crate::proxy::context::{Body, Exchange};
use crate::proxy::error_mapping::REFUSED;

/// What one read takes of an answer.
const READ_BYTES: usize = 64 * 1024;
/// The longest head of an answer.
const HEAD_BYTES: usize = 256 * 1024;

thread_local! {
    /// Into which a read goes that is done with before the next: a stream that waits has no buffer of its own.
    static ROOM: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// Does something that ends at once with the thread's buffer.
pub(crate) fn with_room<T>(read: impl FnOnce(&mut [u8]) -> T) -> T {
    ROOM.with_borrow_mut(|room| read(room))
}

/// A request that is with an upstream, and its answer on its way.
pub struct Passing<'e> {
    pub exchange: &'e mut Exchange,
    /// Until all of it is with the upstream.
    upload: Option<&'e mut Upload>,
    /// Why the upstream took no more of the request, which it may have answered all the same.
    pub unsent: Option<Box<Error>>,
    /// Another request may follow on the client's connection.
    pub keeps_client: bool,
    /// The beginning of a head that is not whole yet.
    pub begun: Vec<u8>,
    /// Once the head has passed.
    body: Option<AnswerBody>,
    /// The client gets it in chunks.
    chunked: bool,
    keeps_upstream: bool,
    /// What is to be sent to the client.
    pub wire: Vec<u8>,
}

/// How far an answer has come.
pub enum Progress {
    More,
    /// To its end; whether the upstream's connection may be used again.
    Ended(bool),
    /// The connection is another one from here on.
    Upgraded,
    Failed(Box<Error>),
}

impl<'e> Passing<'e> {
    pub fn new(
        exchange: &'e mut Exchange,
        upload: Option<&'e mut Upload>,
        unsent: Option<Box<Error>>,
        keeps_client: bool,
    ) -> Self {
        Self {
            exchange,
            upload: upload.filter(|_| unsent.is_none()),
            unsent,
            keeps_client,
            begun: Vec::new(),
            body: None,
            chunked: false,
            keeps_upstream: false,
            wire: Vec::new(),
        }
    }

    /// The upstream has all of the request.
    pub fn is_sent(&self) -> bool {
        self.upload.is_none() && self.unsent.is_none()
    }

    /// Passes on what is left of the request. Ready where its client is at fault.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>, upstream: &mut Stream) -> Poll<Box<Error>> {
        let Some(upload) = &mut self.upload else {
            return Poll::Pending;
        };
        match ready!(upload.poll(cx, upstream, self.exchange)) {
            Ok(()) => {}
            Err(error) if *error.esource() == ErrorSource::Upstream => self.unsent = Some(error),
            Err(error) => return Poll::Ready(error),
        }
        self.upload = None;
        self.exchange.outlive_client();
        if self.body.is_none() {
            self.exchange.watch_answer();
        }
        Poll::Pending
    }

    /// Reads what the upstream sends next and makes of it what is to be sent to the client.
    pub fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        upstream: &mut Stream,
        client: &mut Client<'_>,
    ) -> Poll<Progress> {
        if let Poll::Ready(error) = self.poll_upload(cx, upstream) {
            return Poll::Ready(Progress::Failed(error));
        }
        with_room(|room| {
            let mut read = ReadBuf::new(room);
            match Pin::new(upstream).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) => Poll::Ready(self.take(read.filled())),
                Poll::Ready(Err(why)) => {
                    let error = Error::because(ErrorType::ReadError, self.place(), why);
                    Poll::Ready(Progress::Failed(error.into_up()))
                }
                // Until then its bytes are those of its body.
                Poll::Pending if self.upload.is_some() => Poll::Pending,
                Poll::Pending => client.poll_left(cx).map(Progress::Failed),
            }
        })
    }

    fn take(&mut self, bytes: &[u8]) -> Progress {
        let taken = match bytes {
            [] => self.end(),
            _ if self.body.is_some() => {
                self.exchange.deadline.clear();
                self.take_body(bytes)
            }
            _ if self.begun.is_empty() => self.take_head(bytes),
            _ => {
                let mut whole = std::mem::take(&mut self.begun);
                whole.extend_from_slice(bytes);
                self.take_head(&whole)
            }
        };
        taken.unwrap_or_else(Progress::Failed)
    }

    /// The upstream has ended its side.
    fn end(&mut self) -> Result<Progress> {
        if self.body.as_ref().is_some_and(AnswerBody::may_end_here) {
            self.end_body();
            return Ok(Progress::Ended(false));
        }
        let error = Error::explain(ErrorType::ConnectionClosed, self.place());
        Err(error.into_up())
    }

    /// Where the answer is, in the words of Pingora's own errors.
    fn place(&self) -> String {
        match &self.body {
            Some(_) => "while reading a response body".to_owned(),
            None => format!(
                "while reading response headers, bytes already read: {}",
                self.begun.len()
            ),
        }
    }

    fn take_head(&mut self, mut bytes: &[u8]) -> Result<Progress> {
        loop {
            let read = AnswerHead::read(bytes, &REQUEST_ID, &mut self.wire);
            let Some(head) = read.map_err(|malformed| self.refuse(malformed))? else {
                if bytes.len() > HEAD_BYTES {
                    return Err(self.refuse(Malformed));
                }
                self.begun = bytes.to_owned();
                return Ok(Progress::More);
            };
            let upgrades = head.status == StatusCode::SWITCHING_PROTOCOLS;
            if upgrades && !self.exchange.upgrade {
                // Nobody has asked for it.
                return Err(self.refuse(Malformed));
            }
            self.pass_head(&head);
            bytes = &bytes[head.bytes..];
            if upgrades {
                begin_conversation(self.exchange).inspect_err(|_| self.wire.clear())?;
                self.begun = bytes.to_owned();
                return Ok(Progress::Upgraded);
            }
            if !head.status.is_informational() {
                self.body = Some(AnswerBody::new(head.framing));
                return self.take_body(bytes);
            }
            if bytes.is_empty() {
                return Ok(Progress::More);
            }
        }
    }

    /// The lines that are the proxy's own, behind those of the upstream.
    fn pass_head(&mut self, head: &AnswerHead) {
        self.exchange.take_answer(head.status, &head.headers);
        self.exchange.deadline.clear();
        let id = self.exchange.request_id();
        write_line(
            &mut self.wire,
            REQUEST_ID.as_str().as_bytes(),
            id.as_bytes(),
        );
        if !head.status.is_informational() {
            // It is not sent again from here on.
            if let Body::Ready(_) = self.exchange.body {
                self.exchange.body = Body::None;
            }
            // An upstream that does not need the rest may get no more of it.
            self.keeps_client &= self.exchange.has_come;
            // What ends with the connection comes in chunks too, so that the client's need not end with it.
            self.chunked = !matches!(head.framing, Framing::Length(_));
            self.keeps_upstream = head.keeps_connection;
            if self.chunked {
                self.wire
                    .extend_from_slice(b"transfer-encoding: chunked\r\n");
            }
            if !self.keeps_client {
                self.wire.extend_from_slice(b"connection: close\r\n");
            }
        }
        self.wire.extend_from_slice(b"\r\n");
    }

    fn take_body(&mut self, bytes: &[u8]) -> Result<Progress> {
        let mut left = bytes;
        loop {
            let Some(body) = &mut self.body else {
                return Err(self.refuse(Malformed));
            };
            match body.next(&mut left) {
                Ok(Piece::Data(data)) => self.pass_data(data),
                Ok(Piece::Pause) => return Ok(Progress::More),
                Ok(Piece::End) => {
                    self.end_body();
                    return Ok(Progress::Ended(self.keeps_upstream && left.is_empty()));
                }
                Err(Malformed) => {
                    let error = Error::explain(ErrorType::InvalidHTTPHeader, "a chunk is none");
                    return Err(error.into_up());
                }
            }
        }
    }

    fn pass_data(&mut self, data: &[u8]) {
        self.exchange.observe(data);
        if self.chunked {
            // Into memory, which takes all of it.
            let _ = io::Write::write_fmt(&mut self.wire, format_args!("{:x}\r\n", data.len()));
        }
        self.wire.extend_from_slice(data);
        if self.chunked {
            self.wire.extend_from_slice(b"\r\n");
        }
    }

    fn end_body(&mut self) {
        self.exchange.end_answer();
        if self.chunked {
            self.wire.extend_from_slice(b"0\r\n\r\n");
        }
    }

    /// An answer that the client could take apart in another way.
    fn refuse(&mut self, _: Malformed) -> Box<Error> {
        let words = "the upstream's answer is not well-formed HTTP";
        self.exchange.refusal = Some(Refusal::new(Cause::UpstreamReset, words));
        // The lines of a head that did not pass.
        self.wire.clear();
        Error::explain(REFUSED, words)
    }
}

/// The messages of a WebSocket are judged where they ask for responses.
fn begin_conversation(exchange: &mut Exchange) -> Result<()> {
    if exchange.arrival.endpoint != Endpoint::Responses {
        return Ok(());
    }
    if let Err(refusal) = exchange.begin_conversation() {
        exchange.refusal = Some(refusal);
        return Error::e_explain(REFUSED, "the upgrade is refused");
    }
    exchange.deadline.set_idle(true);
    Ok(())
}
