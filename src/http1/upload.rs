//! A request's body that passes to its upstream as it comes, beside the answer that may come before its end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pingora_core::protocols::Stream;
use pingora_core::{Error, ErrorType, Result};
use tokio::io::AsyncWrite;

use crate::codec::error::Refusal;
use crate::http1::connection::Waiting;
use crate::proxy::context::{Body, Exchange};
use crate::proxy::error_mapping::{refused, unwritten};

/// A body that passes as it comes is kept for another attempt where it is no longer than this, and else read in such pieces.
const REPLAY_BYTES: u64 = 64 * 1024;

/// A body that passes as it comes.
pub struct Upload {
    /// What came of it: all of that, where it is kept.
    bytes: Vec<u8>,
    /// How much of `bytes` has gone out.
    sent: usize,
    /// It can be sent again.
    pub kept: bool,
    /// What its time limit runs for.
    waiting: Option<Waiting>,
}

impl Upload {
    pub fn new(length: u64) -> Self {
        Self {
            bytes: Vec::new(),
            sent: 0,
            kept: length <= REPLAY_BYTES,
            waiting: None,
        }
    }

    /// The next attempt begins. What is here leaves with its head.
    ///
    /// # Errors
    /// Where the body is over its limit.
    pub fn begin(&mut self, exchange: &mut Exchange) -> Result<&[u8], Refusal> {
        self.waiting = None;
        if let Some(direct) = &mut exchange.direct {
            direct.take_ahead(&mut self.bytes);
        }
        exchange.begin_piece();
        self.note(exchange, 0)?;
        self.sent = self.bytes.len();
        exchange.turn.sent.bytes = self.sent as u64;
        Ok(&self.bytes)
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
    ///
    /// # Errors
    /// Of either side, which they say.
    pub fn poll(
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
