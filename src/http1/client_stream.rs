//! A client's connection as Pingora reads and writes it, and the way past Pingora for bodies that are held and for whole
//! requests. It knows nothing of keys or tiers.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::{BufMut, Bytes};
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, raw_connect::ProxyDigest,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

use crate::http1::connection::{has_read, refuses_read};

/// What is gathered before it goes out, in bytes; larger writes go past it.
const GATHERED_BYTES: usize = 16 * 1024;
/// A buffer that grew beyond this is given back once it is empty.
const KEPT_BYTES: usize = 4 * 1024;

/// The most that one read takes from the kernel, so that it is checked while the processor's cache still has it.
const READ_BYTES: u64 = 256 * 1024;
/// The most that one read takes which looks for the end of a head: what of the body comes with it is copied once more.
const HEAD_READ_BYTES: usize = 4 * 1024;
/// What a client may send ahead while its request is answered; the rest waits in the kernel.
const MOST_AHEAD_BYTES: usize = 16 * 1024;
/// Within so many bytes it shows that what begins is no request.
const STRANGE_BYTES: usize = 1024;

tokio::task_local! {
    /// The connection that the current task serves, where its bodies can be read past Pingora.
    static CONNECTION: ClientSocket;
}

/// An accepted connection in the shape that Pingora asks of a stream: TCP, and for HTTP/1 also one on top of TLS.
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

/// What a connection begins its next request with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// A head of so many bytes is here.
    Head(usize),
    /// What is here is not the beginning of a head.
    Strange,
    TooLong,
    /// Nothing more will come, or nothing is to be waited for.
    Ended,
}

#[derive(Debug)]
struct Wire {
    carrier: Carrier,
    outgoing: Outgoing,
    incoming: Incoming,
}

/// What carries the bytes.
#[derive(Debug)]
enum Carrier {
    Tcp(TcpStream),
    Tls(Stream),
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
    /// The carrier may keep something back.
    unflushed: bool,
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
    given: u64,
    /// Where its request ends, as `given` counts: once its head has ended, as far as it is known.
    due: Option<u64>,
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
    /// `lazy` is for HTTP/1, where a read always follows what is flushed. What TLS writes, and HTTP/2, has an order of its
    /// own.
    pub fn new(socket: TcpStream, peer: SocketAddr, lazy: bool) -> Self {
        let digest = SocketDigest::from_raw_fd(socket.as_raw_fd());
        // The cell is new and empty.
        let _ = digest.peer_addr.set(Some(peer.into()));
        Self::on(Carrier::Tcp(socket), Some(Arc::new(digest)), lazy)
    }

    /// HTTP/1 on top of a TLS connection.
    pub fn over_tls(stream: Stream) -> Self {
        let digest = stream.get_socket_digest();
        Self::on(Carrier::Tls(stream), digest, true)
    }

    fn on(carrier: Carrier, digest: Option<Arc<SocketDigest>>, lazy: bool) -> Self {
        let wire = Wire {
            carrier,
            outgoing: Outgoing {
                gathered: Vec::new(),
                gone: 0,
                unflushed: false,
                lazy,
            },
            incoming: Incoming {
                // Where another protocol is read there are no heads to be seen.
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
            digest,
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

    /// The next bytes are a request's head, for Pingora to read.
    pub fn begin_request(&self) {
        let incoming = &mut self.wire().incoming;
        incoming.head = HeadEnd::default();
        incoming.given = 0;
        incoming.due = None;
        incoming.stands_in = false;
    }

    /// Pingora is to read so much of a body behind the head; none where nobody knows.
    pub fn expect_body(&self, length: Option<u64>) {
        let due = &mut self.wire().incoming.due;
        *due = due.zip(length).map(|(head, length)| head + length);
    }

    /// Whether Pingora has read its request and not a byte beyond, so that all that follows can be read past it.
    pub fn is_at_end(&self) -> bool {
        let incoming = &self.wire().incoming;
        incoming.due == Some(incoming.given)
    }

    /// The body of this length that comes next; none where Pingora has read anything but the head of this length.
    pub fn body_behind(&self, head_bytes: usize, length: u64) -> Option<DirectBody> {
        let incoming = &self.wire().incoming;
        let at_body = incoming.head == HeadEnd::Found && incoming.given == head_bytes as u64;
        (at_body && length > 1).then(|| self.body(length))
    }

    /// The next bytes are a body of this length.
    pub fn body(&self, length: u64) -> DirectBody {
        DirectBody {
            socket: self.clone(),
            left: length,
        }
    }

    /// Reads until a whole head is here, and takes nothing of it. Where nothing of one has come, `ends` tells whether it is
    /// not to be waited for.
    pub async fn opening(&self, mut ends: impl FnMut(&mut Context<'_>) -> bool) -> Opening {
        let (mut end, mut seen) = (HeadEnd::default(), 0);
        poll_fn(|cx| {
            let wire = &mut *self.wire();
            loop {
                let ahead = wire.incoming.ahead();
                let found = end.find(&ahead[seen..]);
                let fresh = found.unwrap_or(ahead.len() - seen);
                seen += fresh;
                if fresh > 0 && !has_read(fresh) {
                    return Poll::Ready(Opening::TooLong);
                }
                if found.is_some() {
                    return Poll::Ready(Opening::Head(seen));
                }
                if fresh > 0 && seen <= STRANGE_BYTES && is_strange(ahead) {
                    return Poll::Ready(Opening::Strange);
                }
                // A failure shows in the next write.
                let _ = wire.poll_send(cx);
                match wire.poll_read_ahead(cx) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Pending if seen > 0 || !ends(cx) => return Poll::Pending,
                    _ => return Poll::Ready(Opening::Ended),
                }
            }
        })
        .await
    }

    /// A copy of the next bytes, which have come.
    pub fn peek(&self, count: usize) -> Bytes {
        Bytes::copy_from_slice(&self.wire().incoming.ahead()[..count])
    }

    /// Takes bytes that were looked at.
    pub fn skip(&self, count: usize) {
        self.wire().incoming.skip(count);
    }

    /// Reads what comes next.
    pub fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let wire = &mut *self.wire();
        match wire.incoming.take(buf) {
            true => Poll::Ready(Ok(())),
            false => wire.carrier.poll_read(cx, buf),
        }
    }

    /// Writes behind what Pingora has written; nothing, to have it flushed.
    pub fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wire = &mut *self.wire();
        ready!(wire.poll_send(cx))?;
        match bytes {
            [] => wire.carrier.poll_flush(cx).map_ok(|()| 0),
            _ => wire.carrier.poll_write(cx, bytes),
        }
    }

    /// Sends all of it, behind what Pingora has written.
    ///
    /// # Errors
    /// Of the connection.
    pub async fn send(&self, message: &[u8]) -> io::Result<()> {
        let mut left = message;
        poll_fn(|cx| self.poll_send(cx, &mut left)).await
    }

    /// Sends what is left of a message and takes it away from there. Ready when nothing is.
    ///
    /// # Errors
    /// Of the connection.
    pub fn poll_send(&self, cx: &mut Context<'_>, left: &mut &[u8]) -> Poll<io::Result<()>> {
        while !left.is_empty() {
            match ready!(self.poll_write(cx, left))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => *left = &left[count..],
            }
        }
        self.poll_write(cx, left).map_ok(|_| ())
    }

    /// Ready when the client has ended its side, or is gone. What it sends in the meantime is kept for its next request.
    pub fn poll_left(&self, cx: &mut Context<'_>) -> Poll<()> {
        let wire = &mut *self.wire();
        while wire.incoming.ahead().len() < MOST_AHEAD_BYTES {
            match ready!(wire.poll_read_ahead(cx)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(()),
            }
        }
        Poll::Pending
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
        poll_fn(|cx| self.poll_read(cx, buffer)).await
    }

    /// As [`DirectBody::read`].
    ///
    /// # Errors
    /// As there.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        if refuses_read() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let most = self.left.min(READ_BYTES) as usize;
        let read = ready!(self.socket.wire().poll_read_past(cx, buffer, most))?;
        self.left -= read as u64;
        Poll::Ready(Ok(read))
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
            ready!(self.carrier.poll_read(cx, buf))?;
        }
        let head_ends = self.incoming.keep_to_head(buf, before);
        let given = buf.filled().len() - before;
        self.incoming.given += given as u64;
        if head_ends {
            self.incoming.due = Some(self.incoming.given);
        }
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
            0 => self.carrier.poll_read_buf(cx, &mut buffer.limit(most)),
            taken => Poll::Ready(Ok(taken)),
        }
    }

    /// Reads a piece behind what came ahead. 0 where the client has ended its side.
    fn poll_read_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut room = [MaybeUninit::uninit(); HEAD_READ_BYTES];
        let mut read = ReadBuf::uninit(&mut room);
        ready!(self.carrier.poll_read(cx, &mut read))?;
        let incoming = &mut self.incoming;
        incoming.ahead.drain(..incoming.next);
        incoming.next = 0;
        incoming.ahead.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outgoing = &mut self.outgoing;
        while outgoing.gone < outgoing.gathered.len() {
            let left = &outgoing.gathered[outgoing.gone..];
            match ready!(self.carrier.poll_write(cx, left))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => outgoing.gone += count,
            }
            outgoing.unflushed = true;
        }
        outgoing.gone = 0;
        empty(&mut outgoing.gathered);
        if outgoing.unflushed {
            ready!(self.carrier.poll_flush(cx))?;
            outgoing.unflushed = false;
        }
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
        let written = ready!(self.carrier.poll_write_vectored(cx, &all))?;
        outgoing.unflushed = true;
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

impl Carrier {
    fn io(&mut self) -> Pin<&mut dyn Io> {
        match self {
            Carrier::Tcp(stream) => Pin::new(stream as &mut dyn Io),
            Carrier::Tls(stream) => Pin::new(stream as &mut dyn Io),
        }
    }

    fn id(&self) -> RawFd {
        match self {
            Carrier::Tcp(stream) => stream.as_raw_fd(),
            Carrier::Tls(stream) => stream.id(),
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.io().poll_read(cx, buf)
    }

    fn poll_read_buf(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut impl BufMut,
    ) -> Poll<io::Result<usize>> {
        poll_read_buf(self.io(), cx, buf)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.io().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io().poll_write_vectored(cx, pieces)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }
}

trait Io: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

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

    /// Takes back what is behind the end of a head, among the bytes from `before` on. Whether a head ends there.
    fn keep_to_head(&mut self, buf: &mut ReadBuf<'_>, before: usize) -> bool {
        if self.head == HeadEnd::Found {
            return false;
        }
        let Some(end) = self.head.find(&buf.filled()[before..]) else {
            return false;
        };
        let behind = &buf.filled()[before + end..];
        // What is left of an earlier read comes after it.
        self.ahead.splice(..self.next, behind.iter().copied());
        self.next = 0;
        buf.set_filled(before + end);
        true
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

/// Whether this begins nothing that could become a head.
fn is_strange(bytes: &[u8]) -> bool {
    let mut lines = [httparse::EMPTY_HEADER; 64];
    httparse::Request::new(&mut lines).parse(bytes).is_err()
}

/// Empties a buffer, and gives it back where it is large.
pub fn empty(buffer: &mut Vec<u8>) {
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
        wire.carrier.io().poll_shutdown(cx)
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
        self.socket.wire().carrier.id()
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
