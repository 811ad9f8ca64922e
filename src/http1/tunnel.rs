//! An upgraded connection of HTTP/1.1: bytes both ways until either side ends. Where its messages are judged, the
//! conversation says what goes on.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use pingora_core::protocols::Stream;
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::http1::client_stream::{ClientSocket, empty};
use crate::http1::intake::LINGER_TIME;
use crate::http1::passing::with_room;
use crate::proxy::context::Exchange;

struct Tunnel<'t> {
    exchange: &'t mut Exchange,
    client: &'t ClientSocket,
    upstream: Stream,
    to_client: Outgoing,
    to_upstream: Outgoing,
    /// The client has ended its side, and how long the upstream may take to do so as well.
    client_ended: Option<Pin<Box<Sleep>>>,
    /// The upstream has been told that the client has.
    told: bool,
    upstream_ended: bool,
}

/// What is to be written to one side.
struct Outgoing {
    bytes: Vec<u8>,
    written: usize,
    /// How long it may take to take more.
    limit: Duration,
    stuck: Option<Pin<Box<Sleep>>>,
}

/// Passes on what both sides send, beginning with what came behind the upstream's head.
///
/// # Errors
/// Those that Pingora would report of the same connection.
pub async fn pass(
    exchange: &mut Exchange,
    client: &ClientSocket,
    upstream: Stream,
    first: &[u8],
) -> Result<()> {
    let idle_timeout = exchange.upstream.as_ref();
    let idle_timeout = idle_timeout.map_or(LINGER_TIME, |upstream| upstream.config.idle_timeout);
    let mut tunnel = Tunnel {
        client,
        upstream,
        to_client: Outgoing::new(exchange.state.limits.write_timeout),
        to_upstream: Outgoing::new(idle_timeout),
        client_ended: None,
        told: false,
        upstream_ended: false,
        exchange,
    };
    if !first.is_empty() {
        tunnel.take_from_upstream(first);
    }
    let passed = poll_fn(|cx| tunnel.poll(cx)).await;
    passed.or_else(|error| match *error.esource() == ErrorSource::Downstream {
        true if tunnel.has_server_closed() => Ok(()),
        _ => Err(error),
    })
}

impl Tunnel<'_> {
    /// Ready when the upstream has ended and the client has all of it, or something failed.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        loop {
            self.write_to_client(cx)?;
            self.write_to_upstream(cx)?;
            if self.upstream_ended && self.to_client.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let from_client = self.poll_client(cx)?;
            let from_upstream = self.poll_upstream(cx)?;
            if from_client.is_pending() && from_upstream.is_pending() {
                break;
            }
        }
        let closed = self.has_server_closed();
        match &mut self.client_ended {
            Some(_) if closed => Poll::Ready(Ok(())),
            Some(patience) => patience.as_mut().poll(cx).map(|()| Err(left())),
            None => Poll::Pending,
        }
    }

    fn has_server_closed(&self) -> bool {
        let conversation = self.exchange.conversation.as_ref();
        conversation.is_some_and(|conversation| conversation.has_server_closed())
    }

    fn write_to_client(&mut self, cx: &mut Context<'_>) -> Result<()> {
        let client = self.client;
        let written = self
            .to_client
            .poll_with(cx, |cx, left| client.poll_write(cx, left));
        written.map_err(|why| failed(why, "writing to the client").into_down())
    }

    fn write_to_upstream(&mut self, cx: &mut Context<'_>) -> Result<()> {
        let upstream = &mut self.upstream;
        let written = self.to_upstream.poll_with(cx, |cx, left| match left {
            [] => Pin::new(&mut *upstream).poll_flush(cx).map_ok(|()| 0),
            _ => Pin::new(&mut *upstream).poll_write(cx, left),
        });
        written.map_err(|why| failed(why, "writing to the upstream").into_up())?;
        if self.client_ended.is_some() && !self.told && self.to_upstream.is_empty() {
            // How it goes shows in what the upstream does next.
            self.told = Pin::new(&mut self.upstream).poll_shutdown(cx).is_ready();
        }
        Ok(())
    }

    /// Reads from the client, once the upstream has what was read before. Ready where something came.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>> {
        if self.client_ended.is_some() || !self.to_upstream.is_empty() {
            return Ok(Poll::Pending);
        }
        with_room(|room| {
            let mut read = ReadBuf::new(room);
            match self.client.poll_read(cx, &mut read) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Err(_)) => return Err(left()),
                Poll::Ready(Ok(())) => {}
            }
            match read.filled() {
                [] => {
                    if let Some(conversation) = &mut self.exchange.conversation {
                        conversation.client_ended();
                    }
                    self.client_ended = Some(Box::pin(sleep(LINGER_TIME)));
                }
                bytes => self.take_from_client(bytes),
            }
            Ok(Poll::Ready(()))
        })
    }

    /// What a client sends. Where its messages are judged, only what is good goes on.
    fn take_from_client(&mut self, bytes: &[u8]) {
        let exchange = &mut *self.exchange;
        exchange.turn.request_bytes += bytes.len() as u64;
        let Some(conversation) = &mut exchange.conversation else {
            exchange.turn.sent.bytes += bytes.len() as u64;
            self.to_upstream.push(bytes);
            return;
        };
        let chunk = Bytes::copy_from_slice(bytes);
        let passed = conversation.client_bytes(chunk, &exchange.arrival, &exchange.turn);
        exchange.deadline.set_idle(conversation.is_idle());
        exchange.turn.sent.bytes += passed.to_upstream.len() as u64;
        self.to_upstream.push(&passed.to_upstream);
        if let Some(refusal) = passed.refusal {
            exchange.refusal = Some(refusal);
            // It is sent away once the server's message under way has ended, which may take no longer than this.
            exchange.watch_next_piece();
        }
        if let Some(frames) = passed.to_client {
            self.to_client.push(&frames);
            exchange.deadline.shut_upstream();
        }
    }

    /// Reads from the upstream, once the client has what was read before. Ready where something came.
    fn poll_upstream(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>> {
        if self.upstream_ended || !self.to_client.is_empty() {
            return Ok(Poll::Pending);
        }
        with_room(|room| {
            let mut read = ReadBuf::new(room);
            match Pin::new(&mut self.upstream).poll_read(cx, &mut read) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Err(why)) => {
                    return Err(failed(why, "reading from the upstream").into_up());
                }
                Poll::Ready(Ok(())) => {}
            }
            match read.filled() {
                [] => self.end_upstream(),
                bytes => self.take_from_upstream(bytes),
            }
            Ok(Poll::Ready(()))
        })
    }

    /// What the upstream sends goes on as it is, until the proxy has a last word.
    fn take_from_upstream(&mut self, bytes: &[u8]) {
        let exchange = &mut *self.exchange;
        exchange.observe(bytes);
        let Some(conversation) = &mut exchange.conversation else {
            self.to_client.push(bytes);
            return;
        };
        let chunk = Bytes::copy_from_slice(bytes);
        let last_word = conversation.server_bytes(&chunk, &exchange.arrival, &exchange.turn);
        exchange.deadline.set_idle(conversation.is_idle());
        self.to_client.push(last_word.as_deref().unwrap_or(bytes));
        if last_word.is_some() {
            exchange.deadline.shut_upstream();
        }
    }

    fn end_upstream(&mut self) {
        self.upstream_ended = true;
        if let Some(conversation) = &mut self.exchange.conversation
            && let Some(last_word) = conversation.server_ended()
        {
            self.to_client.push(&last_word);
        }
        self.exchange.end_answer();
    }
}

impl Outgoing {
    fn new(limit: Duration) -> Self {
        Self {
            bytes: Vec::new(),
            written: 0,
            limit,
            stuck: None,
        }
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Writes what can be written now, and flushes with an empty write once there is nothing left.
    ///
    /// # Errors
    /// Of the connection, or where it takes nothing for too long.
    fn poll_with(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&mut Context<'_>, &[u8]) -> Poll<io::Result<usize>>,
    ) -> io::Result<()> {
        while !self.is_empty() {
            let left = &self.bytes[self.written..];
            match write(cx, left) {
                Poll::Ready(Ok(0)) if !left.is_empty() => {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                Poll::Ready(Ok(_)) if left.is_empty() => {
                    self.written = 0;
                    empty(&mut self.bytes);
                    self.stuck = None;
                }
                Poll::Ready(written) => {
                    self.written += written?;
                    self.stuck = None;
                }
                Poll::Pending => {
                    let limit = self.limit;
                    let stuck = self.stuck.get_or_insert_with(|| Box::pin(sleep(limit)));
                    return match stuck.as_mut().poll(cx) {
                        Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
                        Poll::Pending => Ok(()),
                    };
                }
            }
        }
        Ok(())
    }
}

fn left() -> Box<Error> {
    Error::explain(ErrorType::ConnectionClosed, "the client has left").into_down()
}

fn failed(why: io::Error, what: &'static str) -> Box<Error> {
    let kind = match (why.kind(), what.starts_with("reading")) {
        (_, true) => ErrorType::ReadError,
        (io::ErrorKind::TimedOut, _) => ErrorType::WriteTimedout,
        _ => ErrorType::WriteError,
    };
    Error::because(kind, what, why)
}
