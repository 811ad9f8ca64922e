//! A client's TCP connection as Pingora reads and writes it, and the way past Pingora for bodies that are held. It knows
//! nothing of keys or tiers.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::BufMut;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, raw_connect::ProxyDigest,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

use crate::connection::refuses_read;

/// What is gathered before it goes out, in bytes; larger writes go past it.
const GATHERED_BYTES: usize = 16 * 1024;
/// A buffer that grew beyond this is given back once it is empty.
const KEPT_BYTES: usize = 4 * 1024;

/// The most that one read takes from the kernel, so that it is checked while the processor's cache still has it.
const READ_BYTES: u64 = 128 * 1024;

tokio::task_local! {
    /// The connection that the current task serves, where its bodies can be read past Pingora.
    static CONNECTION: ClientSocket;
}

/// An accepted TCP connection in the shape that Pingora asks of a stream.
#[derive(Debug)]
pub struct ClientStream {
    socket: ClientSocket,
    accepted: SystemTime,
    digest: Option<Arc<SocketDigest>>,
}

/// A connection, shared by the stream that Pingora has and by who reads bodies past it. Both are in the task of the
/// connection, so the lock is always free.
#[derive(Clone, Debug)]
pub struct ClientSocket(Arc<Mutex<Wire>>);

/// A body that is read past Pingora, all but its first byte: that one stands for it in Pingora's eyes, so that what Pingora
/// does with a body on the way to the upstream is done with this one.
#[derive(Debug)]
pub struct DirectBody {
    socket: ClientSocket,
    left: u64,
}

#[derive(Debug)]
struct Wire {
    socket: TcpStream,
    outgoing: Outgoing,
    incoming: Incoming,
}

/// What is on its way to the client.
///
/// Pingora flushes after each piece of an answer that it has at hand: its head, every chunk, the end. Here the pieces are
/// gathered, and leave when Pingora next waits for the client, which it does whenever it waits for more of the answer:
/// one segment where there were up to eight, and as many system calls less.
#[derive(Debug)]
struct Outgoing {
    gathered: Vec<u8>,
    /// How much of `gathered` has gone out.
    gone: usize,
    /// Whether a flush may wait for the next read.
    lazy: bool,
}

/// What has come from the client.
///
/// Pingora gets a request's head and not a byte beyond, so that the body behind it can be read into the buffer in which it
/// is held. Through Pingora each byte of it is copied twice: 12 % of the CPU for a body of 256 KB.
#[derive(Debug, Default)]
struct Incoming {
    /// Came with a head but does not belong to it; from `next` on it was not read yet.
    ahead: Vec<u8>,
    next: usize,
    head: HeadEnd,
    /// What Pingora has read since the request began.
    given: usize,
    /// Pingora is to read the one byte that stands for a body.
    stands_in: bool,
}

/// Looks for the empty line that ends a head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum HeadEnd {
    #[default]
    InLine,
    AfterNewline,
    AfterReturn,
    Found,
}

impl ClientStream {
    /// `lazy` is for HTTP/1 without TLS, where a read always follows what is flushed; TLS and HTTP/2 have an order of
    /// their own.
    pub fn new(socket: TcpStream, peer: SocketAddr, lazy: bool) -> Self {
        let digest = SocketDigest::from_raw_fd(socket.as_raw_fd());
        // The cell is new and empty.
        let _ = digest.peer_addr.set(Some(peer.into()));
        let wire = Wire {
            socket,
            outgoing: Outgoing {
                gathered: Vec::new(),
                gone: 0,
                lazy,
            },
            incoming: Incoming {
                // Through TLS there are no heads to be seen.
                head: if lazy {
                    HeadEnd::InLine
                } else {
                    HeadEnd::Found
                },
                ..Incoming::default()
            },
        };
        Self {
            socket: ClientSocket(Arc::new(Mutex::new(wire))),
            accepted: SystemTime::now(),
            digest: Some(Arc::new(digest)),
        }
    }

    /// A second handle on the connection.
    pub fn socket(&self) -> ClientSocket {
        self.socket.clone()
    }
}

impl ClientSocket {
    /// The connection that this task serves, where its bodies can be read past Pingora.
    pub fn current() -> Option<Self> {
        CONNECTION.try_with(Self::clone).ok()
    }

    /// Makes this the connection that is served by `serving`.
    pub async fn serve(self, serving: impl Future<Output = ()>) {
        CONNECTION.scope(self, serving).await;
    }

    /// The next bytes are a request's head.
    pub fn begin_request(&self) {
        let incoming = &mut self.wire().incoming;
        incoming.head = HeadEnd::default();
        incoming.given = 0;
        incoming.stands_in = false;
    }

    /// The body of this length that comes next; none where Pingora has read anything but the head of this length.
    pub fn body_behind(&self, head_bytes: usize, length: u64) -> Option<DirectBody> {
        let incoming = &self.wire().incoming;
        let at_body = incoming.head == HeadEnd::Found && incoming.given == head_bytes;
        let socket = self.clone();
        (at_body && length > 1).then_some(DirectBody {
            socket,
            left: length,
        })
    }

    fn wire(&self) -> MutexGuard<'_, Wire> {
        // Nothing panics between two states that belong together.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DirectBody {
    /// The next byte is for Pingora.
    pub fn leave_first_byte(&mut self) {
        self.socket.wire().incoming.stands_in = true;
        self.left -= 1;
    }

    /// Bytes that are still to be read.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Appends what came together with the head to `buffer`. Returns how much that was.
    pub fn take_ahead(&mut self, buffer: &mut Vec<u8>) -> usize {
        let taken = self.socket.wire().incoming.take_past(buffer, self.left);
        self.left -= taken as u64;
        taken
    }

    /// Appends what comes next to `buffer`. 0 where nothing is left, or where the client has ended its side.
    ///
    /// # Errors
    /// Of the connection, or where the body is not waited for any longer.
    pub async fn read(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let most = self.left.min(READ_BYTES) as usize;
        let read = poll_fn(|cx| match refuses_read() {
            true => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            false => self.socket.wire().poll_read_past(cx, buffer, most),
        });
        let read = read.await?;
        self.left -= read as u64;
        Ok(read)
    }

    /// Drops what came together with the head.
    pub fn skip_ahead(&mut self) {
        let incoming = &mut self.socket.wire().incoming;
        let count = self.left.min(incoming.ahead().len() as u64);
        incoming.skip(count as usize);
        self.left -= count;
    }

    /// Reads on and keeps nothing, until about `most` bytes are gone or none is left.
    pub async fn discard(&mut self, most: usize) {
        let mut piece = Vec::with_capacity(KEPT_BYTES);
        let mut gone = 0;
        while gone < most
            && let Ok(read @ 1..) = self.read(&mut piece).await
        {
            gone += read;
            piece.clear();
        }
    }
}

impl Wire {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // A failure shows in the next write.
        let _ = self.poll_send(cx);
        let (probes, before) = (buf.remaining() == 1, buf.filled().len());
        if !self.incoming.take(buf) {
            ready!(Pin::new(&mut self.socket).poll_read(cx, buf))?;
        }
        self.incoming.keep_to_head(buf, before);
        let given = buf.filled().len() - before;
        self.incoming.given += given;
        if given > 0 && !std::mem::take(&mut self.incoming.stands_in) {
            // Pingora looks for a client that goes away by reading one byte. If it finds the next request instead, it
            // reads no more until this answer has ended, so that no read would send what is gathered.
            self.outgoing.lazy &= !probes;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read_past(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut Vec<u8>,
        most: usize,
    ) -> Poll<io::Result<usize>> {
        let _ = self.poll_send(cx);
        match self.incoming.take_past(buffer, most as u64) {
            0 => poll_read_buf(Pin::new(&mut self.socket), cx, &mut buffer.limit(most)),
            taken => Poll::Ready(Ok(taken)),
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outgoing = &mut self.outgoing;
        while outgoing.gone < outgoing.gathered.len() {
            let left = &outgoing.gathered[outgoing.gone..];
            match ready!(Pin::new(&mut self.socket).poll_write(cx, left))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => outgoing.gone += count,
            }
        }
        outgoing.gone = 0;
        empty(&mut outgoing.gathered);
        Poll::Ready(Ok(()))
    }

    /// Gathers `pieces`, or sends what is gathered and the pieces behind it. Returns how much of the pieces is done with.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        let gathered = &mut self.outgoing.gathered;
        if gathered.len() + length > GATHERED_BYTES {
            return self.poll_send_past(cx, pieces);
        }
        pieces
            .iter()
            .for_each(|piece| gathered.extend_from_slice(piece));
        Poll::Ready(Ok(length))
    }

    fn poll_send_past(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outgoing = &mut self.outgoing;
        let mut all = Vec::with_capacity(pieces.len() + 1);
        let left = outgoing.gathered.len() - outgoing.gone;
        all.push(IoSlice::new(&outgoing.gathered[outgoing.gone..]));
        all.extend(pieces.iter().map(|piece| IoSlice::new(piece)));
        let written = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, &all))?;
        outgoing.gone += written.min(left);
        if written <= left {
            // Nothing of the pieces has gone yet; a count of 0 would look like the end.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        outgoing.gone = 0;
        outgoing.gathered.clear();
        Poll::Ready(Ok(written - left))
    }
}

impl Incoming {
    fn ahead(&self) -> &[u8] {
        &self.ahead[self.next..]
    }

    fn skip(&mut self, count: usize) {
        self.next += count;
        if self.next == self.ahead.len() {
            self.next = 0;
            empty(&mut self.ahead);
        }
    }

    /// Gives at most so many bytes of what came ahead to who reads past Pingora.
    fn take_past(&mut self, buffer: &mut Vec<u8>, most: u64) -> usize {
        let ahead = self.ahead();
        let taken = (ahead.len() as u64).min(most) as usize;
        buffer.extend_from_slice(&ahead[..taken]);
        self.skip(taken);
        taken
    }

    /// Gives what came ahead, if anything.
    fn take(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let ahead = self.ahead();
        let count = ahead.len().min(buf.remaining());
        buf.put_slice(&ahead[..count]);
        self.skip(count);
        count > 0
    }

    /// Takes back what is behind the end of a head, among the bytes from `before` on.
    fn keep_to_head(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        if self.head == HeadEnd::Found {
            return;
        }
        let Some(end) = self.head.find(&buf.filled()[before..]) else {
            return;
        };
        let behind = &buf.filled()[before + end..];
        // What is left of an earlier read comes after it.
        self.ahead.splice(..self.next, behind.iter().copied());
        self.next = 0;
        buf.set_filled(before + end);
    }
}

impl HeadEnd {
    /// How many of these bytes, which follow those of the last call, belong to the head; none where all of them do and it
    /// has not ended.
    ///
    /// Pingora takes a bare line feed for the end of a line too, so that it has to be found here.
    fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            at = match (&self, bytes[at]) {
                (HeadEnd::InLine | HeadEnd::Found, _) => at + memchr::memchr(b'\n', &bytes[at..])?,
                _ => at,
            };
            *self = match (&self, bytes[at]) {
                (HeadEnd::InLine | HeadEnd::Found, _) => HeadEnd::AfterNewline,
                (_, b'\n') => HeadEnd::Found,
                (HeadEnd::AfterNewline, b'\r') => HeadEnd::AfterReturn,
                _ => HeadEnd::InLine,
            };
            at += 1;
            if *self == HeadEnd::Found {
                return Some(at);
            }
        }
        None
    }
}

/// Empties a buffer, and gives it back where it is large.
fn empty(buffer: &mut Vec<u8>) {
    buffer.clear();
    if buffer.capacity() > KEPT_BYTES {
        *buffer = Vec::new();
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.socket.wire().poll_read(cx, buf)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.socket.wire().poll_write(cx, &[IoSlice::new(buf)])
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.socket.wire();
        if wire.outgoing.lazy {
            Poll::Ready(Ok(()))
        } else {
            wire.poll_send(cx)
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.socket.wire();
        ready!(wire.poll_send(cx))?;
        Pin::new(&mut wire.socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.socket.wire().poll_write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

impl Drop for ClientStream {
    /// An answer that was cut is to reach the client as far as it came.
    fn drop(&mut self) {
        let mut wire = self.socket.wire();
        let _ = wire.poll_send(&mut Context::from_waker(Waker::noop()));
    }
}

#[async_trait]
impl Shutdown for ClientStream {
    async fn shutdown(&mut self) {
        // The client may have gone first; there is nobody left to tell.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for ClientStream {
    fn id(&self) -> RawFd {
        self.socket.wire().socket.as_raw_fd()
    }
}

impl Ssl for ClientStream {}

impl Peek for ClientStream {}

impl GetTimingDigest for ClientStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        vec![Some(TimingDigest {
            established_ts: self.accepted,
            ..Default::default()
        })]
    }
}

impl GetProxyDigest for ClientStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }

    fn set_proxy_digest(&mut self, _digest: ProxyDigest) {}
}

impl GetSocketDigest for ClientStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.digest.clone()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.digest = Some(Arc::new(digest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long the head is, fed in pieces of this many bytes.
    fn head_bytes(message: &[u8], piece: usize) -> Option<usize> {
        let mut end = HeadEnd::default();
        let mut before = 0;
        for bytes in message.chunks(piece) {
            if let Some(found) = end.find(bytes) {
                return Some(before + found);
            }
            before += bytes.len();
        }
        None
    }

    #[test]
    fn a_head_ends_at_its_empty_line_however_its_lines_end_and_it_is_split() {
        for (head, rest) in [
            ("POST / HTTP/1.1\r\na: b\r\n\r\n", "{\"a\":\"\r\n\r\n\"}"),
            ("POST / HTTP/1.1\na: b\n\n", "\n\nx"),
            ("POST / HTTP/1.1\r\na: b\n\r\n", "GET /"),
            ("POST / HTTP/1.1\r\na: \r\rb\r\n\r\n", ""),
        ] {
            let message = [head, rest].concat();
            for piece in 1..message.len() {
                assert_eq!(
                    head_bytes(message.as_bytes(), piece),
                    Some(head.len()),
                    "{message:?} by {piece}"
                );
            }
        }
        assert_eq!(head_bytes(b"POST / HTTP/1.1\r\na: b\r\n\r", 5), None);
    }
}
