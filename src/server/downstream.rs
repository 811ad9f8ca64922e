//! A client's connection as Pingora reads and writes it, outside of TLS. It adds what Pingora 0.9.1 does not do itself: a
//! time and a size for a whole request head (cloudflare/pingora#447), chunks that have one reading only, responses that are
//! read on although their client has left, clients that are seen to leave behind a next request and told from those that only
//! send no more, the pieces of a response written together, an end to floods of HTTP/2 frames, a time for the client's part in
//! the end of a connection of HTTP/2, and an end that takes no response away.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use async_trait::async_trait;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{IO, Shutdown};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::ReusableBoxFuture;

use crate::codec::http2_flood::Http2Flood;
use crate::proxy::client_connection::{ClientConnection, Wait};
use crate::proxy::error_mapping::head_too_large;
use crate::server::half_close::{PROBE, PROBES, has_hung_up};
use crate::server::lingering_close::LingeringClose;
use crate::upstream::backoff::BackoffTimer;
use crate::upstream::connector::control::carrying;
use crate::upstream::delegated::delegate_to_io;
use crate::upstream::http2_reader::Http2Reader;
use crate::upstream::write_buffer::WriteBuffer;

/// What of the buffer for writing is kept while nothing is in it, in bytes.
const KEPT_BYTES: usize = 4 * 1024;
/// What is read of a next request while one runs, in bytes. A client that has sent more is not seen to leave.
const AHEAD_BYTES: usize = 16 * 1024;
/// The preface of HTTP/2 (RFC 9113 §3.4).
const PREFACE_BYTES: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
/// More than the frames that end a connection, and less than any response has.
const CONTROL_BYTES: usize = 64;
/// The answer to the PING with which the h2 crate asks whether its first GOAWAY has arrived (its `Ping::SHUTDOWN`).
const SHUTDOWN_PONG: &[u8] = b"\0\0\x08\x06\x01\0\0\0\0\x0b\x7b\xa2\xf0\x8b\x9b\xfe\x54";

/// A connection over which requests come, plain or on top of TLS.
#[derive(Debug)]
pub struct Downstream<S: IO> {
    io: S,
    version: Version,
    /// Carries the [`ClientConnection`] to the requests; none over HTTP/2.
    digest: Option<Arc<ProxyDigest>>,
    sleep: Option<Pin<Box<Sleep>>>,
    /// Written by Pingora and not yet sent.
    gathered: WriteBuffer,
    /// Nothing can be written any more, and nothing that is written is missed.
    broken: bool,
    /// When something of a response was written last.
    responded_at: Option<Instant>,
    /// The end of the connection, once it has begun.
    end: Option<LingeringClose>,
}

#[derive(Debug)]
enum Version {
    Http1 {
        connection: Arc<ClientConnection>,
        /// What came of the next request while Pingora only looked whether the client was there.
        ahead: Vec<u8>,
        /// The client's side has ended, though not by its leaving, and whether it is there is looked at.
        probes: Option<BackoffTimer>,
    },
    /// A connection is read by a task of its own, which belongs to no request. So many bytes of its preface are missing.
    Http2 {
        preface: usize,
        reader: Http2Reader,
        /// When the preface or the head that has begun is to be whole; none where both are.
        until: Option<Instant>,
        header_timeout: Duration,
        flood: Http2Flood,
        /// Ready when a drain has waited for the client; none afterwards.
        drain: Option<ReusableBoxFuture<'static, ()>>,
        /// What is still to be read of [`SHUTDOWN_PONG`] then. At a drain the h2 crate takes streams until the client has
        /// answered its PING, however long that takes, and ends the connection with the last of them. A client that is gone,
        /// or takes the GOAWAY for the end, never answers.
        pong: &'static [u8],
    },
}

impl<S: IO> Downstream<S> {
    /// A connection whose requests are those of `connection`.
    pub fn http1(io: S, connection: Arc<ClientConnection>) -> Self {
        let digest = carrying(&connection);
        let version = Version::Http1 {
            connection,
            ahead: Vec::new(),
            probes: None,
        };
        Self::new(io, version, digest)
    }

    /// The preface is to be here at `until`, and each head `header_timeout` after its beginning. When `drain` is ready, a drain
    /// waits for nothing of the client but what has begun.
    pub fn http2(
        io: S,
        until: Instant,
        header_timeout: Duration,
        drain: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let version = Version::Http2 {
            preface: PREFACE_BYTES,
            reader: Http2Reader::behind(PREFACE_BYTES),
            until: Some(until),
            header_timeout,
            flood: Http2Flood::default(),
            drain: Some(ReusableBoxFuture::new(drain)),
            pong: SHUTDOWN_PONG,
        };
        Self::new(io, version, None)
    }

    fn new(io: S, version: Version, digest: Option<Arc<ProxyDigest>>) -> Self {
        Self {
            io,
            version,
            digest,
            sleep: None,
            gathered: WriteBuffer::new(KEPT_BYTES),
            broken: false,
            responded_at: None,
            end: None,
        }
    }

    /// Whether what is written may wait for the next read. Pingora flushes after each piece that it has at hand, and reads from
    /// the client whenever it waits for more of a response.
    fn gathers(&self) -> bool {
        matches!(self.version, Version::Http1 { .. })
    }

    /// Whether the request goes on without its client, which has left.
    fn client_aborted(&self) -> bool {
        match &self.version {
            Version::Http1 { connection, .. } => connection.client_aborted(),
            Version::Http2 { .. } => false,
        }
    }

    /// Whether the connection is between two requests.
    fn awaits_request(&self) -> bool {
        match &self.version {
            Version::Http1 { connection, .. } => connection.awaits_request(),
            Version::Http2 { .. } => false,
        }
    }

    /// Ready where the client has had its time.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.version {
            Version::Http1 { connection, .. } => connection.wait(cx).poll(&mut self.sleep, cx),
            Version::Http2 {
                preface,
                until,
                drain,
                ..
            } => {
                if *preface > 0 && poll_drain(drain, cx).is_ready() {
                    return Poll::Ready(());
                }
                until.map_or(Poll::Pending, |until| {
                    Wait::Until(until).poll(&mut self.sleep, cx)
                })
            }
        }
    }

    /// Ready with as much of the [`SHUTDOWN_PONG`] as `buf` takes, where a drain has waited for that of the client.
    fn poll_pong(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<()> {
        let Version::Http2 {
            preface: 0,
            flood,
            drain,
            pong,
            ..
        } = &mut self.version
        else {
            return Poll::Pending;
        };
        ready!(poll_drain(drain, cx));
        if pong.is_empty() || !flood.is_between_frames() {
            return Poll::Pending;
        }
        let (read, unread) = pong.split_at(pong.len().min(buf.remaining()));
        buf.put_slice(read);
        *pong = unread;
        Poll::Ready(())
    }

    /// Reads from the client what Pingora is to see.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.version {
            Version::Http1 {
                connection,
                ahead,
                probes,
            } => {
                if buf.remaining() == 1 && connection.runs_whole_request() {
                    if probes.is_none() {
                        let end = ready!(poll_ahead(&mut self.io, ahead, cx));
                        if !connection.may_wait_for_response() || !is_end(&end) {
                            return Poll::Ready(end);
                        }
                        *probes = Some(BackoffTimer::new(&PROBES));
                    }
                    return self.poll_gone(cx).map(Ok);
                }
                if !ahead.is_empty() {
                    let count = ahead.len().min(buf.remaining());
                    buf.put_slice(&ahead[..count]);
                    ahead.drain(..count);
                    if ahead.is_empty() {
                        *ahead = Vec::new();
                    }
                    return Poll::Ready(Ok(()));
                }
            }
            // The rest of it is to be read before anything else.
            Version::Http2 { pong, .. } if !pong.is_empty() && *pong != SHUTDOWN_PONG => {
                return Poll::Pending;
            }
            Version::Http2 { reader, flood, .. } => {
                let read = reader.poll_read(&mut self.io, cx, buf);
                if !flood.record_left_out(reader.take_left_out()) {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
                }
                return read;
            }
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }

    /// This is written. A client that ended its side before its response has begun is known for that whoever comes first: an
    /// upstream that answers at once, or Pingora's look at the client.
    fn record_response(&mut self, bytes: &[u8], cx: &mut Context<'_>) {
        let Version::Http1 {
            connection,
            ahead,
            probes,
        } = &mut self.version
        else {
            return;
        };
        if connection.response_goes_on(bytes)
            && probes.is_none()
            && let Poll::Ready(end) = poll_ahead(&mut self.io, ahead, cx)
            && is_end(&end)
        {
            *probes = Some(BackoffTimer::new(&PROBES));
        }
    }

    /// Ready when a client that has ended its side has left, which shows once something was sent to it.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Version::Http1 {
            connection,
            probes: Some(probes),
            ..
        } = &mut self.version
        {
            ready!(probes.poll_due(cx));
            if has_hung_up(&self.io) {
                return Poll::Ready(());
            }
            if connection.takes_interim() && self.gathered.is_empty() {
                self.gathered.push(PROBE);
            }
            if let Poll::Ready(Err(_)) = self.poll_send(cx) {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    /// These bytes came. False where a head is too long to be read on, or the client floods.
    fn record_read(&mut self, bytes: &[u8]) -> bool {
        match &mut self.version {
            Version::Http1 { connection, .. } => connection.record_read(bytes),
            Version::Http2 {
                preface,
                until,
                header_timeout,
                flood,
                ..
            } => {
                let (_, frames) = bytes.split_at(bytes.len().min(*preface));
                *preface = preface.saturating_sub(bytes.len());
                let (before, _) = flood.heads();
                let goes_on = flood.record_read(frames);
                let (heads, is_in_head) = flood.heads();
                if is_in_head && (heads > before || until.is_none()) {
                    *until = Some(Instant::now() + *header_timeout);
                } else if !is_in_head && *preface == 0 {
                    *until = None;
                }
                goes_on
            }
        }
    }

    /// Ends the connection: Pingora cannot answer a request that it has not read, and a client that floods is owed nothing.
    fn refuse(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Version::Http2 { .. } = self.version {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let message = head_too_large();
        // As far as it goes: the client is not waited for.
        let _ = Pin::new(&mut self.io).poll_write(cx, &message);
        let _ = Pin::new(&mut self.io).poll_flush(cx);
        Poll::Ready(Err(io::ErrorKind::InvalidData.into()))
    }

    /// Sends what was gathered.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.gathered.poll_send(&mut self.io, cx)
    }

    fn poll_write_pieces(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        self.record_response(pieces.first().map_or(&[], |piece| piece), cx);
        if length > CONTROL_BYTES {
            self.responded_at = Some(Instant::now());
        }
        if self.broken {
            return Poll::Ready(Ok(length));
        }
        if self.gathered.has_room(length) && self.gathers() {
            for piece in pieces {
                self.gathered.push(piece);
            }
            return Poll::Ready(Ok(length));
        }
        let written = match ready!(self.poll_send(cx)) {
            Ok(()) => {
                self.gathered.written_past();
                ready!(Pin::new(&mut self.io).poll_write_vectored(cx, pieces))
            }
            Err(error) => Err(error),
        };
        Poll::Ready(self.written(written, length))
    }

    /// Ends our side behind all that was written, and lets the client have it.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(responded_at) = self.responded_at else {
            return Pin::new(&mut self.io).poll_shutdown(cx).map(drop);
        };
        let begin = || LingeringClose::new(responded_at);
        let end = self.end.get_or_insert_with(begin);
        if !end.is_shut {
            let shut = match self.gathered.poll_send(&mut self.io, cx) {
                Poll::Ready(Ok(())) => Pin::new(&mut self.io).poll_shutdown(cx),
                sent => sent,
            };
            match shut {
                Poll::Ready(Ok(())) => end.is_shut = true,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return end.poll_stalled(&self.io, cx),
            }
        }
        end.poll_over(&mut self.io, cx)
    }

    /// What Pingora is to see of a write: none that could not be done, where the response is read on.
    fn written(&mut self, written: io::Result<usize>, length: usize) -> io::Result<usize> {
        if let (Ok(count), Version::Http2 { flood, .. }) = (&written, &mut self.version) {
            flood.record_written(*count);
        }
        if written.is_err() && self.client_aborted() {
            self.broken = true;
            self.gathered.clear();
            return Ok(length);
        }
        written
    }
}

/// Whether the client has ended its side, though without a word of it in TLS.
fn is_end(end: &io::Result<()>) -> bool {
    let is_eof = |why: &io::Error| why.kind() == io::ErrorKind::UnexpectedEof;
    end.as_ref().err().is_none_or(is_eof)
}

/// Ready when the client is gone. What comes of its next request is put into `ahead`: Pingora looks for a client that goes away
/// by reading one byte, and if it found the next request instead, it would look no more until the response has ended.
fn poll_ahead(
    io: &mut (impl AsyncRead + Unpin),
    ahead: &mut Vec<u8>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while ahead.len() < AHEAD_BYTES {
        let mut room = [0; 1024];
        let mut read = ReadBuf::new(&mut room);
        ready!(Pin::new(&mut *io).poll_read(cx, &mut read))?;
        if read.filled().is_empty() {
            return Poll::Ready(Ok(()));
        }
        ahead.extend_from_slice(read.filled());
    }
    Poll::Pending
}

/// Ready once a drain has waited for the client, and from then on.
fn poll_drain(
    drain: &mut Option<ReusableBoxFuture<'static, ()>>,
    cx: &mut Context<'_>,
) -> Poll<()> {
    if let Some(waits) = drain {
        ready!(waits.poll(cx));
        *drain = None;
    }
    Poll::Ready(())
}

impl<S: IO> AsyncRead for Downstream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.end.is_some() {
            return this
                .poll_end(cx)
                .map(|()| Err(io::ErrorKind::TimedOut.into()));
        }
        let mut is_sending = false;
        if !this.broken {
            match this.poll_send(cx) {
                // A failure shows in the next write where the response is not read on.
                Poll::Ready(sent) => drop(this.written(sent.map(|()| 0), 0)),
                Poll::Pending => is_sending = true,
            }
        }
        let (before, room) = (buf.filled().len(), buf.remaining());
        let read = this.poll_receive(cx, buf);
        let count = buf.filled().len() - before;
        if count > 0 && !this.record_read(&buf.filled()[before..]) {
            return this.refuse(cx);
        }
        let has_ended = match &read {
            Poll::Ready(Ok(())) => count == 0 && room > 0,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        // Pingora drops a connection that ends between two requests, and with it the rest of the response.
        let is_response_leaving = is_sending && this.awaits_request();
        let goes_on = has_ended && (is_response_leaving || this.client_aborted());
        if read.is_ready() && !goes_on {
            return read;
        }
        if this.poll_pong(cx, buf).is_ready() {
            return Poll::Ready(Ok(()));
        }
        ready!(this.poll_late(cx));
        if this.awaits_request() {
            // What Pingora has written may be on its way for longer than the next request is waited for.
            ready!(this.poll_end(cx));
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: IO> AsyncWrite for Downstream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_pieces(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_pieces(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.broken || this.gathers() {
            return Poll::Ready(Ok(()));
        }
        let sent = ready!(this.poll_send(cx));
        Poll::Ready(this.written(sent.map(|()| 0), 0).map(|_| ()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Version::Http2 { .. } = this.version {
            return this.poll_end(cx).map(Ok);
        }
        if !this.broken {
            ready!(this.poll_send(cx))?;
        }
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

impl<S: IO> Drop for Downstream<S> {
    /// A response that was cut is to reach the client as far as it came.
    fn drop(&mut self) {
        if !self.broken {
            let _ = self.poll_send(&mut Context::from_waker(Waker::noop()));
        }
    }
}

#[async_trait]
impl<S: IO> Shutdown for Downstream<S> {
    async fn shutdown(&mut self) {
        // The client may have gone first; there is nobody left to tell.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

delegate_to_io!(Downstream<S>, S: IO);

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn the_last_of_a_response_leaves_before_the_end_of_its_client_shows() {
        let (near, mut far) = tokio::io::duplex(4);
        let connection = ClientConnection::with_request();
        let mut stream = Downstream::http1(near, connection.clone());
        AsyncWriteExt::shutdown(&mut far).await.unwrap();
        stream.write_all(b"response").await.unwrap();
        connection.await_request();
        let reading = tokio::spawn(async move { stream.read(&mut [0; 8]).await });
        let mut response = [0; 8];
        far.read_exact(&mut response).await.unwrap();
        assert_eq!(&response, b"response");
        assert_eq!(reading.await.unwrap().unwrap(), 0);
    }
}
