//! Whole requests past Pingora's loop: plain ones over HTTP/1.1 on both sides.
//!
//! Pingora's loop runs two halves of a task that tell each other through queues what comes from either side, and makes its
//! own picture of each head. A plain request needs neither: its lines are passed on as they came, a held body leaves with
//! its head in one write, and the answer is passed on as it comes, out of one buffer of the thread. Whatever is in any way
//! special is left to Pingora (`plain_request.rs` says what is not). The steps are those of `proxy.rs`, in the same order.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use pingora_core::connectors::TransportConnector;
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::date::get_cached_date;
use pingora_core::{Error, ErrorType, OrErr, Result};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};

use crate::accounting::record::Termination;
use crate::codec::error::{Cause, Refusal};
use crate::http1::client_stream::{ClientSocket, DirectBody, Opening, empty};
use crate::http1::connection::Deadline;
use crate::http1::intake::{LINGER_BYTES, LINGER_TIME, Stop, read_past};
use crate::http1::passing::{Passing, Progress};
use crate::http1::plain_request::PlainHead;
use crate::http1::tunnel;
use crate::http1::upload::Upload;
use crate::policy::Head;
use crate::proxy::context::{Body, Exchange, head_bytes, without_query};
use crate::proxy::error_mapping::{
    ending_of, head_too_large, no_address, refused, unwritten, unwritten_in_time,
};
use crate::proxy::may_upgrade;
use crate::proxy::request_body::{HeldBody, StreamedBody};
use crate::state::State;
use crate::upstream::Address;

/// The end of an answer that a connection takes at once, unless its client has stopped reading.
const SURE_BYTES: usize = 16 * 1024;

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
pub struct Client<'c> {
    socket: &'c ClientSocket,
    deadline: Arc<Deadline>,
    /// How long it may take no byte.
    write_timeout: Duration,
    /// It had the head of an answer, or a part of one.
    answered: bool,
    /// Another request may follow.
    keeps: bool,
    /// It has ended its side, and its answer is read on. It may still read it.
    ended: bool,
    /// It can no longer be written to.
    broken: bool,
}

impl Relay {
    /// Serves the next request of a connection with `peer`, if it is one for here. A drain waits for the first one of a
    /// connection, which its client is about to send, and for whatever has begun to come.
    pub async fn serve_next(&self, socket: &ClientSocket, peer: IpAddr, is_first: bool) -> Next {
        let mut waited = pin!(self.state.drain_waits());
        let ends = |cx: &mut Context<'_>| match is_first {
            true => waited.as_mut().poll(cx).is_ready(),
            false => self.state.is_draining(),
        };
        match socket.opening(ends).await {
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
                // As far as it goes: the client is not waited for.
                let _ = at_once(socket.send(&head_too_large())).await;
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
            deadline: exchange.deadline.clone(),
            write_timeout: self.state.limits.write_timeout,
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
            let told = client.send(CONTINUE).await;
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
            let begun = begun.map_err(|refusal| refused(exchange, refusal))?;
            send(&mut stream, [&edited, begun], limit).await
        }
        None if head.upgrades => send(&mut stream, [&edited, &[]], limit).await,
        None => {
            let body = exchange.send_ready();
            let body = body.map_err(|refusal| refused(exchange, refusal))?;
            exchange.outlive_client();
            tokio::select! {
                biased;
                sent = send(&mut stream, [&edited, &body], limit) => sent,
                left = client.leaves() => return Err(left),
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
            return client.send(&passing.wire).await;
        }
        if !passing.wire.is_empty() {
            client.answered = true;
            let mut wire = std::mem::take(&mut passing.wire);
            let meanwhile = |cx: &mut Context<'_>| passing.poll_upload(cx, &mut upstream);
            client.send_while(&wire, meanwhile).await?;
            empty(&mut wire);
            passing.wire = wire;
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
            // Until a head is whole, the time for it runs.
            Progress::More if passing.exchange.turn.answer.upstream_status.is_none() => {}
            _ => passing.exchange.watch_next_piece(),
        }
    }
}

impl Client<'_> {
    /// Sends a piece of the answer, if the client is still there.
    async fn send(&mut self, message: &[u8]) -> Result<()> {
        self.send_while(message, |_| Poll::Pending).await
    }

    /// The same, and does something meanwhile, which may fail: a client need not read before it has sent everything.
    async fn send_while(
        &mut self,
        message: &[u8],
        mut meanwhile: impl FnMut(&mut Context<'_>) -> Poll<Box<Error>>,
    ) -> Result<()> {
        const WRITING: &str = "writing to the client";
        if self.broken {
            return Ok(());
        }
        let mut left = message;
        let sending = std::future::poll_fn(|cx| {
            if let Poll::Ready(error) = meanwhile(cx) {
                return Poll::Ready(Err(error));
            }
            let sent = self.socket.poll_send(cx, &mut left);
            sent.map(|sent| {
                sent.or_err(ErrorType::WriteError, WRITING)
                    .map_err(Error::into_down)
            })
        });
        let sent = match within(self.write_timeout, sending).await {
            Some(sent) => sent,
            None => Err(Error::explain(ErrorType::WriteTimedout, WRITING).into_down()),
        };
        let is_of_writing = |error: &Error| {
            matches!(
                error.etype(),
                ErrorType::WriteError | ErrorType::WriteTimedout
            )
        };
        match sent {
            Err(error) if is_of_writing(&error) && self.deadline.client_leaves() => {
                self.broken = true;
                Ok(())
            }
            sent => sent,
        }
    }

    /// Ready when the client leaves and its request ends with it.
    pub fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<Box<Error>> {
        if self.ended || self.socket.poll_left(cx).is_pending() {
            return Poll::Pending;
        }
        if self.deadline.client_leaves() {
            self.ended = true;
            return Poll::Pending;
        }
        let error = Error::explain(ErrorType::ConnectionClosed, "the client has left");
        Poll::Ready(error.into_down())
    }

    async fn leaves(&mut self) -> Box<Error> {
        std::future::poll_fn(|cx| self.poll_left(cx)).await
    }

    /// Sends the answer for the exchange's refusal, writes its line, and hears the client out for a moment.
    async fn refuse(&mut self, exchange: &mut Exchange) {
        let Some((cause, answer)) = exchange.answer_refusal() else {
            return;
        };
        if let Some(rest) = &mut exchange.direct {
            rest.skip_ahead();
            self.keeps &= rest.left() == 0;
        }
        let message = answer.message(&get_cached_date(), Some(&exchange.request_id()), self.keeps);
        // A client that cannot be written to has gone; its line says what it would have been told.
        self.keeps &= self.send(&message).await.is_ok();
        exchange.settle(Termination::Refused(cause));
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

/// Writes head and body, for each piece of which there is so much time.
async fn send(stream: &mut Stream, message: [&[u8]; 2], limit: Option<Duration>) -> Result<()> {
    let [head, body] = message;
    let mut pieces = [IoSlice::new(head), IoSlice::new(body)];
    let mut left = &mut pieces[..];
    while !left.is_empty() {
        let piece = send_piece(stream, &mut left);
        let sent = match limit {
            None => piece.await,
            Some(limit) => within(limit, piece).await.ok_or_else(unwritten_in_time)?,
        };
        sent.map_err(unwritten)?;
    }
    Ok(())
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
