//! A client's stream that can keep from Pingora that the client has left, so that the answer is read on for its usage.
//! Whether it does is up to the request's deadline in `connection.rs`.

use std::io;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::protocols::tls::{SslDigest, TlsRef};
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, raw_connect::ProxyDigest,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::http1::connection::{has_read, outlives_client, refuses_read};
use crate::proxy::error_mapping::head_too_large;

/// Stands outside of TLS, whose end of a stream comes before that of the socket.
///
/// Pingora reads from an idle client to see it go, and then ends the request to the upstream at once. Here such a read
/// stays pending, and what can no longer be written is dropped. A connection of HTTP/2 is read by a task of its own that
/// belongs to no request, so nothing of this happens there; `patient_h2.rs` is for its streams.
#[derive(Debug)]
pub struct PatientStream<S> {
    io: S,
    opening: Opening,
    /// Nothing can be written any more.
    broken: bool,
}

/// What a new connection still owes, and until when.
#[derive(Debug)]
enum Opening {
    /// So many bytes of the preface of HTTP/2 (RFC 9113 §3.4), for which no request waits yet.
    Preface(usize, Pin<Box<Sleep>>),
    Done,
}

const PREFACE_BYTES: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

impl<S> PatientStream<S> {
    pub fn http1(io: S) -> Self {
        Self::opened(io, Opening::Done)
    }

    /// The preface of the new connection is to be here at `until`.
    pub fn http2(io: S, until: Instant) -> Self {
        let until = Box::pin(sleep_until(until));
        Self::opened(io, Opening::Preface(PREFACE_BYTES, until))
    }

    fn opened(io: S, opening: Opening) -> Self {
        Self {
            io,
            opening,
            broken: false,
        }
    }

    /// Ready where the time for what the connection owes is over.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.opening {
            Opening::Preface(_, until) => until.as_mut().poll(cx),
            Opening::Done => Poll::Pending,
        }
    }

    /// False where the head under way is too long to be read on.
    fn note_read(&mut self, count: usize) -> bool {
        if let Opening::Preface(missing, _) = &mut self.opening {
            *missing = missing.saturating_sub(count);
            if *missing == 0 {
                self.opening = Opening::Done;
            }
        }
        has_read(count)
    }

    /// What Pingora is to see of a write: none that could not be done, where the answer is read on.
    fn written(
        &mut self,
        result: Poll<io::Result<usize>>,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        match result {
            Poll::Ready(Err(_)) if outlives_client() => {
                self.broken = true;
                Poll::Ready(Ok(length))
            }
            other => other,
        }
    }
}

impl<S: AsyncWrite + Unpin> PatientStream<S> {
    /// Pingora cannot answer a request that it has not read; it ends the connection.
    fn refuse_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let message = head_too_large();
        // As far as it goes: the client is not waited for.
        let _ = Pin::new(&mut self.io).poll_write(cx, &message);
        let _ = Pin::new(&mut self.io).poll_flush(cx);
        Poll::Ready(Err(io::ErrorKind::InvalidData.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for PatientStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if refuses_read() || self.poll_late(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        let count = buf.filled().len() - before;
        if count > 0 && !self.note_read(count) {
            return self.refuse_head(cx);
        }
        let ended = match &read {
            Poll::Ready(Ok(())) => count == 0 && buf.remaining() > 0,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        if ended && outlives_client() {
            // Nobody has to be woken: nothing more will come from here.
            return Poll::Pending;
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PatientStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.broken {
            return Poll::Ready(Ok(buf.len()));
        }
        // A client that has ended its side may still read.
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        self.written(result, buf.len())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.broken {
            return Poll::Ready(Ok(()));
        }
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.written(flushed.map_ok(|()| 0), 0).map_ok(|_| ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = bufs.iter().map(|buf| buf.len()).sum();
        if self.broken {
            return Poll::Ready(Ok(length));
        }
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.written(result, length)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[async_trait]
impl<S: Shutdown + Send> Shutdown for PatientStream<S> {
    async fn shutdown(&mut self) {
        self.io.shutdown().await;
    }
}

impl<S: UniqueID> UniqueID for PatientStream<S> {
    fn id(&self) -> RawFd {
        self.io.id()
    }
}

impl<S: Ssl> Ssl for PatientStream<S> {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.io.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.io.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.io.selected_alpn_proto()
    }
}

#[async_trait]
impl<S: Peek + Send> Peek for PatientStream<S> {
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        self.io.try_peek(buf).await
    }
}

impl<S: GetTimingDigest> GetTimingDigest for PatientStream<S> {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.io.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.io.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.io.get_write_pending_time()
    }
}

impl<S: GetProxyDigest> GetProxyDigest for PatientStream<S> {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.io.get_proxy_digest()
    }

    fn set_proxy_digest(&mut self, digest: ProxyDigest) {
        self.io.set_proxy_digest(digest);
    }
}

impl<S: GetSocketDigest> GetSocketDigest for PatientStream<S> {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.io.get_socket_digest()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.io.set_socket_digest(digest);
    }
}
