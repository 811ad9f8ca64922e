//! Whole requests past Pingora's loop: plain ones over HTTP/1.1 on both sides.
//!
//! Pingora's loop runs two halves of a task that tell each other through queues what comes from either side, and makes its
//! own picture of each head. A plain request needs neither: its lines are passed on as they came, a held body leaves with
//! its head in one write, and the answer is passed on as it comes, out of one buffer of the thread. Whatever is in any way
//! special is left to Pingora (`plain_request.rs` says what is not). The steps are those of `proxy.rs`, in the same order.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::StatusCode;
use pingora_core::connectors::TransportConnector;
use pingora_core::protocols::Stream;
use pingora_core::{Error, ErrorSource, ErrorType, OrErr, Result};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, timeout};

use crate::answer::{AnswerBody, AnswerHead, Framing, Malformed, Piece};
use crate::body::{HeldBody, StreamedBody};
use crate::client_stream::{ClientSocket, DirectBody, Opening};
use crate::connection::Waiting;
use crate::endpoint::{Endpoint, Protocol};
use crate::error::{Cause, Refusal};
use crate::exchange::{Body, Exchange, head_bytes, without_query};
use crate::failure::{REFUSED, ending_of, no_address, refused};
use crate::intake::{LINGER_BYTES, LINGER_TIME, Stop, read_past};
use crate::plain_request::PlainHead;
use crate::policy::Head;
use crate::proxy::{REQUEST_ID, may_upgrade};
use crate::state::State;
use crate::tunnel;
use crate::turn::Ending;
use crate::upstream::Address;

/// What one read takes of an answer.
const READ_BYTES: usize = 64 * 1024;
/// The longest head of an answer.
const HEAD_BYTES: usize = 256 * 1024;
/// A buffer that grew beyond this is given back before more is waited for.
const KEPT_BYTES: usize = 4 * 1024;
/// The end of an answer that a connection takes at once, unless its client has stopped reading.
const SURE_BYTES: usize = 16 * 1024;
/// A body that passes as it comes is kept for another attempt where it is no longer than this, and else read in such pieces.
const REPLAY_BYTES: u64 = 64 * 1024;

thread_local! {
    /// Into which a read goes that is done with before the next: a stream that waits has no buffer of its own.
    static ROOM: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// Does something that ends at once with the thread's buffer.
pub(crate) fn with_room<T>(read: impl FnOnce(&mut [u8]) -> T) -> T {
    ROOM.with_borrow_mut(|room| read(room))
}

/// Serves requests past Pingora.
pub struct Relay {
    pub state: Arc<State>,
    /// Pingora has one of its own.
    pub connector: TransportConnector,
}

/// What became of the next request of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It was answered, and another one may follow.
    Answered,
    /// The connection is at its end.
    End,
    /// It is still to be read, by Pingora.
    Special,
}

/// The client of a request.
struct Client<'c> {
    socket: &'c ClientSocket,
    /// It had the head of an answer, or a part of one.
    answered: bool,
    /// Another request may follow.
    keeps: bool,
    /// It has ended its side, and its answer is read on. It may still read it.
    ended: bool,
    /// It can no longer be written to.
    broken: bool,
}

/// A body that passes as it comes.
struct Upload {
    /// What came of it: all of that, where it is kept.
    bytes: Vec<u8>,
    /// How much of `bytes` has gone out.
    sent: usize,
    /// It can be sent again.
    kept: bool,
    /// What its time limit runs for.
    waiting: Option<Waiting>,
}

/// A request that is with an upstream, and its answer on its way.
struct Passing<'e> {
    exchange: &'e mut Exchange,
    /// Until all of it is with the upstream.
    upload: Option<&'e mut Upload>,
    /// Why the upstream took no more of the request, which it may have answered all the same.
    unsent: Option<Box<Error>>,
    /// Another request may follow on the client's connection.
    keeps_client: bool,
    /// The beginning of a head that is not whole yet.
    begun: Vec<u8>,
    /// Once the head has passed.
    body: Option<AnswerBody>,
    /// The client gets it in chunks.
    chunked: bool,
    keeps_upstream: bool,
    /// What is to be sent to the client.
    wire: Vec<u8>,
}

/// How far an answer has come.
enum Progress {
    More,
    /// To its end; whether the upstream's connection may be used again.
    Ended(bool),
    /// The connection is another one from here on.
    Upgraded,
    Failed(Box<Error>),
}

impl Relay {
    /// Serves the next request of a connection with `peer`, if it is one for here.
    pub async fn serve_next(&self, socket: &ClientSocket, peer: IpAddr) -> Next {
        match socket.opening(|| self.state.is_draining()).await {
            Opening::Head(bytes) => {
                let head = PlainHead::read(socket.peek(bytes));
                let Some((head, taken)) = head.and_then(|head| {
                    let taken = self.take_up(&head, peer)?;
                    Some((head, taken))
                }) else {
                    return Next::Special;
                };
                socket.skip(bytes);
                self.serve(socket, head, taken).await
            }
            Opening::Strange => Next::Special,
            Opening::TooLong => {
                let answer = Refusal::from(Cause::HeaderTooLarge).answer(Protocol::OpenAi);
                // As far as it goes: the client is not waited for.
                let _ = at_once(socket.send(&answer.message(None, false))).await;
                Next::End
            }
            Opening::Ended => Next::End,
        }
    }

    /// Decides the request; none where it is not for here.
    fn take_up(&self, head: &PlainHead, peer: IpAddr) -> Option<Taken> {
        let asked = Head {
            method: &head.method,
            path: without_query(head.target()),
            headers: &head.headers,
        };
        let policy = self.state.policy.current();
        let decision = policy.decide(&asked).ok()?;
        let upstream = self.state.upstream(&decision.group.upstream.name)?;
        let is_here = match head.upgrades {
            // Those are never spoken to in HTTP/2.
            true => may_upgrade(&head.method, decision.endpoint),
            false => upstream.is_http1,
        };
        if !is_here {
            return None;
        }
        let mut exchange = Box::new(Exchange::under(&self.state, policy));
        exchange.relayed = true;
        exchange.upgrade = head.upgrades;
        exchange.read_head(&asked, Some(peer));
        let admitted = exchange.admit(decision, head_bytes(head.target(), &head.headers));
        Some(Taken { exchange, admitted })
    }

    async fn serve(&self, socket: &ClientSocket, head: PlainHead, taken: Taken) -> Next {
        let Taken {
            mut exchange,
            admitted,
        } = taken;
        exchange.deadline.clear();
        exchange.direct = Some(socket.body(head.length));
        let drains = self.state.is_draining();
        let mut client = Client {
            socket,
            answered: false,
            keeps: head.keeps_connection && !drains,
            ended: false,
            broken: false,
        };
        let taken = match admitted {
            Ok(()) if drains && self.state.is_drain_over() => {
                Err(Stop::Refused(Cause::Draining.into()))
            }
            Ok(()) => self.take_body(&mut client, &head, &mut exchange).await,
            Err(refusal) => Err(Stop::Refused(refusal)),
        };
        let passed = match taken {
            Ok(upload) => self.carry(&mut client, &head, upload, &mut exchange).await,
            Err(Stop::Refused(refusal)) => {
                exchange.refusal = Some(refusal);
                client.refuse(&mut exchange).await;
                Ok(())
            }
            Err(Stop::Broken(error)) => Err(error),
        };
        let ending = match passed {
            Ok(()) => exchange.ending(),
            Err(error) => {
                if exchange.fails(&error) && !client.answered {
                    client.refuse(&mut exchange).await;
                } else {
                    client.keeps = false;
                }
                ending_of(&error, &exchange)
            }
        };
        exchange.deadline.clear();
        exchange.settle(ending);
        client.hear_out(exchange.direct.take()).await;
        match client.keeps && !client.ended && !client.broken {
            true => Next::Answered,
            false => Next::End,
        }
    }

    /// Reads a body that is to be rewritten before any upstream is chosen; makes the others ready to be passed on.
    async fn take_body(
        &self,
        client: &mut Client<'_>,
        head: &PlainHead,
        exchange: &mut Exchange,
    ) -> Result<Option<Upload>, Stop> {
        const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
        if head.upgrades {
            exchange.has_come = true;
            return Ok(None);
        }
        let (headers, length) = (&head.headers, Some(head.length));
        let State { limits, budget, .. } = &*self.state;
        exchange.body = match exchange.turn.order {
            Some(order) => {
                let held = HeldBody::open(headers, length, order.body, limits, budget)?;
                Body::Held(Box::new(held))
            }
            None => {
                let streamed = StreamedBody::open(headers, length, limits, budget)?;
                Body::Streamed(Box::new(streamed))
            }
        };
        if head.waits {
            let told = client.send(CONTINUE, exchange).await;
            told.map_err(Stop::Broken)?;
        }
        if exchange.turn.order.is_none() {
            exchange.body_idle = Some(limits.body_idle_timeout);
            return Ok(Some(Upload::new(head.length)));
        }
        exchange.deadline.await_body();
        read_past(exchange, Instant::now() + limits.body_timeout).await?;
        exchange.deadline.clear();
        exchange.finish_held()?;
        exchange.has_come = true;
        Ok(None)
    }

    /// Sends the body that is ready, or passes it as it comes, and passes the answer on.
    ///
    /// # Errors
    /// Those that Pingora would report of the same request.
    async fn carry(
        &self,
        client: &mut Client<'_>,
        head: &PlainHead,
        mut upload: Option<Upload>,
        exchange: &mut Exchange,
    ) -> Result<()> {
        loop {
            let address = exchange.next_address().ok_or_else(no_address)?;
            let error = match self.connect(&address, head.upgrades).await {
                Ok((stream, reused)) => {
                    let rest = upload.as_mut();
                    match attempt(client, head, rest, exchange, stream, &address).await {
                        Ok(()) => return Ok(()),
                        Err(error) => {
                            let replayable = match &upload {
                                Some(upload) => upload.kept,
                                None => matches!(exchange.body, Body::Ready(_)),
                            };
                            exchange.attempt_failed(error, reused, replayable)
                        }
                    }
                }
                Err(error) => exchange.connect_failed(error.into_up()),
            };
            if !error.retry() {
                return Err(error);
            }
        }
    }

    /// A connection to there, and whether it was used before.
    async fn connect(&self, address: &Address, upgrades: bool) -> Result<(Stream, bool)> {
        if upgrades {
            let peer = Box::new(address.upgrade_peer());
            let stream = Box::pin(self.connector.new_stream(&*peer)).await?;
            return Ok((stream, false));
        }
        if let Some(stream) = address.idle.take() {
            return Ok((stream, true));
        }
        // Boxed, for it is rare and large.
        let stream = Box::pin(self.connector.new_stream(&address.peer)).await?;
        Ok((stream, false))
    }
}

/// A request that is served here.
struct Taken {
    exchange: Box<Exchange>,
    /// Or else it is refused.
    admitted: Result<(), Refusal>,
}

async fn attempt(
    client: &mut Client<'_>,
    head: &PlainHead,
    mut upload: Option<&mut Upload>,
    exchange: &mut Exchange,
    mut stream: Stream,
    address: &Address,
) -> Result<()> {
    exchange.deadline.hold_upstream(Some(stream.id()));
    let edited =
        exchange
            .head_edit(head.target())?
            .wire(&head.method, &head.bytes, &head.headers)?;
    exchange.begin_attempt();
    let limit = address.peer.options.write_timeout;
    let sent = match &mut upload {
        Some(upload) => {
            let begun = upload.begin(exchange);
            begun.map_err(|refusal| refused(exchange, refusal))?;
            let sent = send(&mut stream, [&edited, &upload.bytes], limit).await;
            upload.sent = upload.bytes.len();
            exchange.turn.sent.bytes = upload.sent as u64;
            sent
        }
        None if head.upgrades => send(&mut stream, [&edited, &[]], limit).await,
        None => {
            let body = exchange.send_ready();
            let body = body.map_err(|refusal| refused(exchange, refusal))?;
            exchange.outlive_client();
            tokio::select! {
                biased;
                sent = send(&mut stream, [&edited, &body], limit) => sent,
                left = client.leaves(exchange) => return Err(left),
            }
        }
    };
    drop(edited);
    if upload.is_none() {
        exchange.watch_answer();
    }
    let passing = Passing::new(exchange, upload, sent.err(), client.keeps);
    pass_answer(client, passing, stream, address).await
}

/// Passes the answer on, and keeps the connection where all that was under way on it has ended.
async fn pass_answer(
    client: &mut Client<'_>,
    mut passing: Passing<'_>,
    mut upstream: Stream,
    address: &Address,
) -> Result<()> {
    loop {
        let progress =
            std::future::poll_fn(|cx| passing.poll_next(cx, &mut upstream, client)).await;
        client.keeps &= passing.keeps_client;
        if let Progress::Ended(clean) = progress {
            // Before the client has the end, for it may ask again at once.
            passing.exchange.deadline.hold_upstream(None);
            if clean && passing.is_sent() {
                address.idle.keep(upstream);
            }
            if passing.wire.len() <= SURE_BYTES {
                // Nor is a client to have the end of what is not in the log.
                passing.exchange.settle(passing.exchange.ending());
            }
            return client.send(&passing.wire, passing.exchange).await;
        }
        if !passing.wire.is_empty() {
            client.answered = true;
            client.send(&passing.wire, passing.exchange).await?;
            passing.wire.clear();
            if passing.wire.capacity() > KEPT_BYTES {
                passing.wire = Vec::new();
            }
        }
        match progress {
            Progress::Upgraded => {
                client.keeps = false;
                let Passing {
                    exchange, begun, ..
                } = passing;
                // Boxed, for it is large, and the others need no room for it.
                return Box::pin(tunnel::pass(exchange, client.socket, upstream, &begun)).await;
            }
            Progress::Failed(error) => return Err(passing.unsent.unwrap_or(error)),
            _ => passing.exchange.watch_next_piece(),
        }
    }
}

impl Upload {
    fn new(length: u64) -> Self {
        Self {
            bytes: Vec::new(),
            sent: 0,
            kept: length <= REPLAY_BYTES,
            waiting: None,
        }
    }

    /// The next attempt begins, with what is here.
    fn begin(&mut self, exchange: &mut Exchange) -> Result<(), Refusal> {
        (self.sent, self.waiting) = (0, None);
        if let Some(direct) = &mut exchange.direct {
            direct.take_ahead(&mut self.bytes);
        }
        self.note(exchange, 0)
    }

    /// What is here from this place on has come.
    fn note(&mut self, exchange: &mut Exchange, from: usize) -> Result<(), Refusal> {
        let fresh = &self.bytes[from..];
        exchange.turn.request_bytes += fresh.len() as u64;
        match &mut exchange.body {
            Body::Streamed(streamed) => streamed.pass(fresh),
            _ => Ok(()),
        }
    }

    /// Passes on what comes. Ready when all of it is with the upstream.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        upstream: &mut Stream,
        exchange: &mut Exchange,
    ) -> Poll<Result<()>> {
        loop {
            while self.sent < self.bytes.len() {
                let left = &self.bytes[self.sent..];
                let Poll::Ready(written) = Pin::new(&mut *upstream).poll_write(cx, left) else {
                    return self.wait(Waiting::ForAnswer, exchange);
                };
                match written {
                    Ok(count @ 1..) => {
                        self.sent += count;
                        exchange.turn.sent.bytes += count as u64;
                        self.waiting = None;
                    }
                    Ok(0) => return Poll::Ready(Err(unwritten(io::ErrorKind::WriteZero.into()))),
                    Err(why) => return Poll::Ready(Err(unwritten(why))),
                }
            }
            let Some(direct) = exchange.direct.as_mut().filter(|direct| direct.left() > 0) else {
                exchange.has_come = true;
                let flushed = ready!(Pin::new(upstream).poll_flush(cx));
                return Poll::Ready(flushed.map_err(unwritten));
            };
            if !self.kept {
                self.bytes.clear();
                self.sent = 0;
            }
            let from = self.bytes.len();
            self.bytes.reserve(direct.left().min(REPLAY_BYTES) as usize);
            let Poll::Ready(read) = direct.poll_read(cx, &mut self.bytes) else {
                return self.wait(Waiting::ForBody, exchange);
            };
            let failure = match read {
                Ok(1..) => match self.note(exchange, from) {
                    Ok(()) => {
                        self.waiting = None;
                        continue;
                    }
                    Err(refusal) => refused(exchange, refusal),
                },
                Ok(0) => Error::explain(ErrorType::ConnectionClosed, "a body was cut"),
                Err(why) => Error::because(ErrorType::ReadError, "reading a body", why),
            };
            return Poll::Ready(Err(failure.into_down()));
        }
    }

    /// Waits under a time limit, unless there is an answer, whose own runs.
    fn wait(&mut self, what: Waiting, exchange: &Exchange) -> Poll<Result<()>> {
        let is_new = self.waiting.replace(what) != Some(what);
        if is_new && exchange.turn.answer.upstream_status.is_none() {
            match &exchange.upstream {
                Some(upstream) if what == Waiting::ForAnswer => {
                    exchange.deadline.set(what, upstream.config.idle_timeout);
                }
                _ => exchange.await_body(),
            }
        }
        Poll::Pending
    }
}

impl<'e> Passing<'e> {
    fn new(
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
    fn is_sent(&self) -> bool {
        self.upload.is_none() && self.unsent.is_none()
    }

    /// Passes on what is left of the request. Ready where its client is at fault.
    fn poll_upload(&mut self, cx: &mut Context<'_>, upstream: &mut Stream) -> Poll<Box<Error>> {
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
    fn poll_next(
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
                Poll::Pending => client.poll_left(cx, self.exchange).map(Progress::Failed),
            }
        })
    }

    fn take(&mut self, bytes: &[u8]) -> Progress {
        let taken = match bytes {
            [] => self.end(),
            _ if self.body.is_some() => self.take_body(bytes),
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
        self.exchange.watch_next_byte();
        let id = self.exchange.request_id();
        for part in [
            REQUEST_ID.as_str().as_bytes(),
            b": ",
            id.as_bytes(),
            b"\r\n",
        ] {
            self.wire.extend_from_slice(part);
        }
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
        self.exchange.watch_next_byte();
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

impl Client<'_> {
    /// Sends a piece of the answer, if the client is still there.
    async fn send(&mut self, message: &[u8], exchange: &Exchange) -> Result<()> {
        if self.broken {
            return Ok(());
        }
        let limit = exchange.state.limits.write_timeout;
        let sent = match within(limit, self.socket.send(message)).await {
            Some(sent) => sent.or_err(ErrorType::WriteError, "writing to the client"),
            None => Error::e_explain(ErrorType::WriteTimedout, "writing to the client"),
        };
        match sent {
            Err(_) if exchange.deadline.client_leaves() => {
                self.broken = true;
                Ok(())
            }
            sent => sent.map_err(Error::into_down),
        }
    }

    /// Ready when the client leaves and its request ends with it.
    fn poll_left(&mut self, cx: &mut Context<'_>, exchange: &Exchange) -> Poll<Box<Error>> {
        if self.ended || self.socket.poll_left(cx).is_pending() {
            return Poll::Pending;
        }
        if exchange.deadline.client_leaves() {
            self.ended = true;
            return Poll::Pending;
        }
        let error = Error::explain(ErrorType::ConnectionClosed, "the client has left");
        Poll::Ready(error.into_down())
    }

    async fn leaves(&mut self, exchange: &Exchange) -> Box<Error> {
        std::future::poll_fn(|cx| self.poll_left(cx, exchange)).await
    }

    /// Sends the answer for the exchange's refusal, writes its line, and hears the client out for a moment.
    async fn refuse(&mut self, exchange: &mut Exchange) {
        let Some(refusal) = exchange.refusal.clone() else {
            return;
        };
        exchange.turn.places = None;
        let answer = refusal.answer(exchange.protocol());
        exchange.turn.answer.status = Some(answer.status);
        if let Some(rest) = &mut exchange.direct {
            rest.skip_ahead();
            self.keeps &= rest.left() == 0;
        }
        let message = answer.message(Some(&exchange.request_id()), self.keeps);
        // A client that cannot be written to has gone; its line says what it would have been told.
        self.keeps &= self.send(&message, exchange).await.is_ok();
        exchange.settle(Ending::Refused(refusal.cause));
        exchange.body = Body::None;
    }

    /// Reads what a client still sends that was answered before: a close with bytes unread would take the answer away.
    async fn hear_out(&self, rest: Option<DirectBody>) {
        if let Some(mut rest) = rest
            && rest.left() > 0
            && !self.broken
        {
            // Time is up for whoever still sends.
            let _ = timeout(LINGER_TIME, rest.discard(LINGER_BYTES)).await;
        }
    }
}

const SENDING: &str = "sending a request";

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

/// Writes head and body, for each piece of which there is so much time.
async fn send(stream: &mut Stream, message: [&[u8]; 2], limit: Option<Duration>) -> Result<()> {
    let [head, body] = message;
    let mut pieces = [IoSlice::new(head), IoSlice::new(body)];
    let mut left = &mut pieces[..];
    while !left.is_empty() {
        let piece = send_piece(stream, &mut left);
        let sent = match limit {
            None => piece.await,
            Some(limit) => within(limit, piece)
                .await
                .ok_or_else(|| Error::explain(ErrorType::WriteTimedout, SENDING).into_up())?,
        };
        sent.map_err(unwritten)?;
    }
    Ok(())
}

/// The upstream took no more of a request.
fn unwritten(why: io::Error) -> Box<Error> {
    Error::because(ErrorType::WriteError, SENDING, why).into_up()
}

/// Writes what the connection takes at once, and takes it away from `left`.
async fn send_piece(stream: &mut Stream, left: &mut &mut [IoSlice<'_>]) -> io::Result<()> {
    let written = stream.write_vectored(left).await?;
    if written == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    IoSlice::advance_slices(left, written);
    if left.is_empty() {
        stream.flush().await?;
    }
    Ok(())
}

/// What comes of it in this time. Only for what is waited for is a timer made.
async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    match at_once(work.as_mut()).await {
        Some(done) => Some(done),
        None => Box::pin(timeout(limit, work)).await.ok(),
    }
}

/// What comes of it without waiting.
async fn at_once<T>(work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    std::future::poll_fn(|cx| {
        Poll::Ready(match work.as_mut().poll(cx) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        })
    })
    .await
}
