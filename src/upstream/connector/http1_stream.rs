//! A connection of HTTP/1.1 to an upstream, below Pingora's session. It adds what Pingora 0.9.1 does not do itself: limits
//! for a whole head and between two reads (cloudflare/pingora#992), a response that comes before its request was taken
//! (RFC 9112 §9.3 lets servers close then; Pingora waits for the write), and small pieces written together.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{Shutdown, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::codec::framing::{response_body, without_interim};
use crate::codec::response_scan::ResponseScan;
use crate::upstream::backoff::{Backoff, BackoffTimer};
use crate::upstream::delegated::delegate_to_io;
use crate::upstream::write_buffer::WriteBuffer;

use super::acknowledgement::has_unacknowledged;
use super::control::{AwaitedPhase, StreamControl, Watchdog, carrying};
use super::error_prefix::ErrorPrefix;

/// What of the buffer for writing is kept while nothing is in it, in bytes.
const KEPT_BYTES: usize = 16 * 1024;
/// The most of an early response that is read while its request is still being written, in bytes.
const EARLY_BYTES: usize = 16 * 1024;
/// What is gathered of a request at most, beside its first piece, for an upstream that answers and takes nothing, in bytes.
/// Nobody counts it.
const MOST_GATHERED_BYTES: usize = 4 * 1024 * 1024;
/// How long an upstream that answers may take nothing more of its request once as much is gathered, before it gets no more
/// of it.
const STALL_TIME: Duration = Duration::from_secs(1);
/// When a client is looked at whose upstream takes nothing: ever more rarely, so that little is gathered of what nobody
/// counts.
static LOOKS: Backoff = Backoff {
    first: Duration::from_secs(1),
    pause: Duration::from_secs(2),
    factor: 2,
    longest: Duration::from_secs(3600),
};

/// A connection that sends what was gathered when its response is next read, which Pingora does as soon as it has written a
/// head.
#[derive(Debug)]
pub(super) struct Http1Stream {
    io: Stream,
    watchdog: Watchdog,
    digest: Option<Arc<ProxyDigest>>,
    /// Written by Pingora and not yet sent.
    gathered: WriteBuffer,
    /// Bytes that Pingora has written since the connection was upgraded.
    upgraded_bytes: u64,
    /// What is left of a message of the proxy's own, which goes out behind what was gathered. It may be long, and counts
    /// against the budget for bodies for as long as it is here.
    message: Bytes,
    /// What came of a response before Pingora is to see it, from `taken` on, and the error behind it.
    early: Vec<u8>,
    taken: usize,
    early_error: Option<io::Error>,
    /// The last piece of the request that came was not taken.
    is_stuck: bool,
    /// Runs while an upstream that has begun its response takes nothing of its request.
    stall: Option<Pin<Box<Sleep>>>,
    /// Runs to the next look at the client while an upstream takes nothing.
    look: Option<BackoffTimer>,
    /// Runs while a piece of the request waits to be taken.
    wait: Option<Pin<Box<Sleep>>>,
    /// The response came before its request was taken. No more of the request is sent, and the connection is not used
    /// again.
    answered_early: bool,
    error: ErrorPrefix,
    scan: ResponseScan,
}

impl Http1Stream {
    pub fn new(io: Stream) -> Self {
        let control = StreamControl::new(false);
        Self {
            digest: carrying(&control),
            watchdog: Watchdog::new(control),
            io,
            gathered: WriteBuffer::new(KEPT_BYTES),
            upgraded_bytes: 0,
            message: Bytes::new(),
            early: Vec::new(),
            taken: 0,
            early_error: None,
            is_stuck: false,
            stall: None,
            look: None,
            wait: None,
            answered_early: false,
            error: ErrorPrefix::default(),
            scan: ResponseScan::default(),
        }
    }

    fn control(&self) -> &StreamControl {
        &self.watchdog.control
    }

    /// Sends what was gathered and what the proxy itself has to say. Pingora reads only between two writes, so this is not in
    /// the middle of the client's frames.
    fn poll_send_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_send(cx))?;
            let Some(message) = self.control().next_message(self.upgraded_bytes) else {
                return Poll::Ready(Ok(()));
            };
            self.message = message;
        }
    }

    /// Sends what was gathered.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let unsent = self.gathered.unsent();
        let sent = self.gathered.poll_send(&mut self.io, cx);
        if self.gathered.unsent() < unsent {
            self.progressed();
        }
        ready!(sent)?;
        if unsent > 0 {
            self.wait = None;
        }
        while !self.message.is_empty() {
            let written = Pin::new(&mut self.io).poll_write(cx, &self.message);
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.message.advance(count),
            }
            self.gathered.written_past();
        }
        self.message = Bytes::new();
        // The message is flushed, if there was one.
        self.gathered.poll_send(&mut self.io, cx)
    }

    /// Reads what has come of the response.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        let received = &buf.filled()[before..];
        if !received.is_empty() {
            if !self.control().has_received() {
                self.scan = ResponseScan::default();
            }
            self.scan.feed(received);
            if self.scan.lacks_size() {
                // Pingora would take it for the end of a response that is cut.
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            self.watchdog.progressed();
        } else if before < buf.capacity() && polled.is_ready() && !self.is_request_taken() {
            self.control().note_untaken();
        }
        polled
    }

    /// Whether the upstream's kernel has acknowledged all that was to be written.
    fn is_request_taken(&self) -> bool {
        self.gathered.is_empty() && !has_unacknowledged(&self.io)
    }

    /// The status of a response that has begun while its request is still being written.
    fn early_status(&mut self, cx: &mut Context<'_>) -> Option<u16> {
        if !matches!(
            self.control().phase(),
            AwaitedPhase::RequestBody | AwaitedPhase::ResponseHead | AwaitedPhase::ResponseBody
        ) {
            return None;
        }
        while self.early.len() < EARLY_BYTES && self.early_error.is_none() {
            let mut early = std::mem::take(&mut self.early);
            let before = early.len();
            early.resize(EARLY_BYTES, 0);
            let mut read = ReadBuf::new(&mut early[before..]);
            let received = self.poll_receive(cx, &mut read);
            let count = read.filled().len();
            early.truncate(before + count);
            self.early = early;
            if let Poll::Ready(Err(error)) = received {
                self.early_error = Some(error);
            } else if count == 0 {
                break;
            }
        }
        self.scan.status().filter(|_| self.control().has_received())
    }

    /// Gathers a piece of the request, or writes it behind what was gathered.
    fn poll_write_piece(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.answered_early {
            return Poll::Ready(Ok(buf.len()));
        }
        let holds = self.control().holds_request();
        let has_room = self.gathered.has_room(buf.len());
        if holds || (has_room && self.message.is_empty()) {
            self.gathered.push(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        let written = match self.poll_send(cx) {
            Poll::Ready(Ok(())) => {
                self.gathered.written_past();
                Pin::new(&mut self.io).poll_write(cx, buf)
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        };
        match written {
            Poll::Ready(Ok(count)) => {
                self.progressed();
                self.wait = None;
                Poll::Ready(Ok(count))
            }
            stuck => self.poll_stuck(cx, buf, stuck),
        }
    }

    /// What becomes of a piece of the request that could not be written. Pingora reads nothing of a response while it waits
    /// for a write. So an upstream that has refused the request, or has answered it whole, gets no more of it; and where more
    /// comes of a good response, whose upstream may read on, the piece waits here, so that the response is read beside it.
    fn poll_stuck(
        &mut self,
        cx: &mut Context<'_>,
        buf: &[u8],
        stuck: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let is_over = self.control().phase() == AwaitedPhase::Idle;
        let status = self.early_status(cx);
        if status.is_none() && !is_over {
            return match stuck {
                Poll::Pending => self.poll_look(cx, buf),
                failed => failed,
            };
        }
        let is_refused = status.is_some_and(|status| status >= 300);
        let takes_no_more = stuck.is_ready() || is_over || is_refused;
        let unsent = self.gathered.unsent();
        if !takes_no_more && (unsent == 0 || unsent + buf.len() <= MOST_GATHERED_BYTES) {
            if self.early.is_empty() {
                return self.poll_look(cx, buf);
            }
            self.gathered.push(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        if !takes_no_more {
            let stall = self
                .stall
                .get_or_insert_with(|| Box::pin(sleep(STALL_TIME)));
            ready!(stall.as_mut().poll(cx));
        }
        self.answered_early = true;
        Poll::Ready(Ok(buf.len()))
    }

    /// Gathers a piece of a body that passes now and then although the upstream takes nothing: Pingora looks at its client
    /// only between two of them.
    fn poll_look(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if !matches!(
            self.control().phase(),
            AwaitedPhase::RequestBody | AwaitedPhase::ResponseBody
        ) {
            return Poll::Pending;
        }
        let look = self.look.get_or_insert_with(|| BackoffTimer::new(&LOOKS));
        ready!(look.poll_due(cx));
        self.gathered.push(buf);
        Poll::Ready(Ok(buf.len()))
    }

    /// The upstream has taken something.
    fn progressed(&mut self) {
        self.stall = None;
        self.look = None;
    }

    /// Ready where a piece of the request has waited for too long. Pingora's own limit would be for all of a body.
    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Some(limit) = self.control().write_limit() else {
            return Poll::Pending;
        };
        let wait = self.wait.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(wait.as_mut().poll(cx));
        self.control().expire(AwaitedPhase::RequestWindow);
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }

    /// Reads a response that may be an error, until it is whole. Ready when it is, or is none; what was read is in `early`
    /// then.
    fn poll_error(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut room = [0; 4096];
            let mut read = ReadBuf::new(&mut room);
            let polled = self.poll_receive(cx, &mut read);
            let is_pending = polled.is_pending();
            let has_ended = match polled {
                Poll::Pending if !self.error.has_begun() => return Poll::Pending,
                Poll::Pending => self.error.poll_over(cx).is_ready(),
                Poll::Ready(Ok(())) => read.filled().is_empty(),
                Poll::Ready(Err(error)) if !self.error.has_begun() => {
                    return Poll::Ready(Err(error));
                }
                Poll::Ready(Err(error)) => {
                    self.early_error = Some(error);
                    true
                }
            };
            self.error.bytes.extend_from_slice(read.filled());
            let has_begun = self.error.has_begun();
            let status = self.scan.status();
            let may_be_error =
                has_begun && status.is_none_or(|status| (400..500).contains(&status));
            let body = may_be_error.then(|| response_body(&self.error.bytes).unwrap_or_default());
            let is_open = !has_begun || body.as_ref().is_some_and(|(_, is_whole)| !is_whole);
            if !is_open || has_ended || self.error.is_full() {
                let bytes = std::mem::take(&mut self.error).bytes;
                // An interim response that the client had would forbid another attempt.
                self.early = match &body {
                    Some(_) => without_interim(&bytes).to_vec(),
                    None => bytes,
                };
                self.control().end_error(body.map(|(body, _)| body.into()));
                return Poll::Ready(Ok(()));
            }
            if is_pending {
                return Poll::Pending;
            }
        }
    }

    /// What Pingora is to see of a read. An end of TLS that was not announced (`close_notify`) is the end of the connection
    /// where it cuts nothing short: before a response has begun, and on a WebSocket, which has closing words of its own.
    fn read_result(&self, read: io::Result<()>) -> io::Result<()> {
        let control = self.control();
        match read {
            Err(error)
                if error.kind() == io::ErrorKind::UnexpectedEof
                    && (control.is_upgraded() || !control.has_received()) =>
            {
                Ok(())
            }
            read => read,
        }
    }

    fn take_early(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let left = &self.early[self.taken..];
        let count = left.len().min(buf.remaining());
        buf.put_slice(&left[..count]);
        self.taken += count;
        if self.taken == self.early.len() {
            self.early = Vec::new();
            self.taken = 0;
        }
        count > 0
    }

    /// Whether the connection is not to be used for another request.
    fn is_used_up(&self) -> bool {
        let is_idle = self.control().phase() == AwaitedPhase::Idle;
        let is_odd =
            self.answered_early || !self.gathered.is_empty() || self.scan.has_two_framings();
        self.control().is_used_up() || (is_idle && is_odd)
    }

    /// What comes next of the response.
    fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.control().holds_request() && !self.answered_early {
            // A failure shows in the next write, or in what is read: a response may be there all the same.
            let _ = self.poll_send_all(cx);
        }
        if self.take_early(buf) {
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = self.early_error.take() {
            return Poll::Ready(self.read_result(Err(error)));
        }
        ready!(self.control().poll_upgrade(cx));
        if self.control().wants_error() {
            match self.poll_error(cx) {
                Poll::Ready(Ok(())) => {
                    self.take_early(buf);
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(self.read_result(Err(error))),
                Poll::Pending => {
                    ready!(self.watchdog.poll_expired(cx));
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
        }
        if let Poll::Ready(read) = self.poll_receive(cx, buf) {
            return Poll::Ready(self.read_result(read));
        }
        match ready!(self.watchdog.poll_expired(cx)) {
            AwaitedPhase::Upgraded => Poll::Ready(Ok(())),
            _ => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl AsyncRead for Http1Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.control().is_ended() || this.is_used_up() {
            return Poll::Ready(Ok(()));
        }
        if this.is_stuck {
            // Pingora reads only between two writes: it has given this one up, and would read without a limit.
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        this.poll_response(cx, buf)
    }
}

impl AsyncWrite for Http1Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = this.poll_write_piece(cx, buf);
        this.is_stuck = written.is_pending();
        let written = match written {
            Poll::Pending => this.poll_wait(cx).map(Err),
            written => written,
        };
        match &written {
            Poll::Pending => {}
            Poll::Ready(Ok(count)) => {
                this.watchdog.request_taken();
                if this.control().is_upgraded() {
                    this.upgraded_bytes += *count as u64;
                }
            }
            Poll::Ready(Err(_)) => this.control().note_untaken(),
        }
        written
    }

    /// What is gathered goes out when the response is next read.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.answered_early || this.is_stuck {
            // Nobody reads its end, for which TLS would wait.
            return Poll::Ready(Ok(()));
        }
        if !this.control().holds_request() {
            ready!(this.poll_send(cx))?;
        }
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for Http1Stream {
    async fn shutdown(&mut self) {
        if !self.answered_early && !self.is_stuck {
            self.io.shutdown().await;
        }
    }
}

delegate_to_io!(Http1Stream);
