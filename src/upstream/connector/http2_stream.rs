//! A connection of HTTP/2 to an upstream, below the h2 crate, which reads along what the server says of the connection as a
//! whole and the crate does not tell: the last stream of a GOAWAY, without which nobody knows what may be sent again
//! (RFC 9113 §6.8). Empty DATA frames are left out, for which the crate has a limit.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{Shutdown, Stream};
use tokio::io::{AsyncRead, ReadBuf};

use super::acknowledgement::has_unacknowledged;
use super::control::carrying;
use super::http2_body::OutgoingBody;
use crate::codec::http2_frames::FrameScan;
use crate::upstream::delegated::{delegate_to_io, delegate_writes_to_io};
use crate::upstream::http2_reader::Http2Reader;

/// No GOAWAY has come. Streams have smaller numbers.
const NO_LAST_STREAM: u32 = u32::MAX;

/// What the server has said of its connection.
#[derive(Debug)]
pub(super) struct ServerNotes {
    last_stream: AtomicU32,
    /// The newest stream of which it has said something.
    told_stream: AtomicU32,
    /// It has closed the connection while bytes were on their way to it.
    has_crossed: AtomicBool,
    /// Bodies of requests that were begun on the connection; some are gone by now.
    bodies: Mutex<Vec<Weak<OutgoingBody>>>,
}

/// The connection.
#[derive(Debug)]
pub(super) struct Http2Stream {
    io: Stream,
    reader: Http2Reader,
    frames: FrameScan,
    notes: Arc<ServerNotes>,
    digest: Option<Arc<ProxyDigest>>,
}

impl ServerNotes {
    /// The last stream that may have been processed, where the server has said that it goes away.
    pub fn last_stream(&self) -> Option<u32> {
        let last = self.last_stream.load(Ordering::Acquire);
        (last != NO_LAST_STREAM).then_some(last)
    }

    /// Whether it has said anything of a stream, an interim response or that it takes more, so that it knows of its request.
    pub fn knows(&self, stream: u32) -> bool {
        self.told_stream.load(Ordering::Acquire) >= stream
    }

    /// Whether it has closed the connection while bytes were on their way to it.
    pub fn has_crossed(&self) -> bool {
        self.has_crossed.load(Ordering::Acquire)
    }

    /// Whether the connection is to take no further request.
    pub fn goes_away(&self) -> bool {
        self.last_stream().is_some()
    }

    /// A request with this body begins on the connection.
    pub fn begin_body(&self, body: &Arc<OutgoingBody>) {
        let mut bodies = self.bodies.lock();
        bodies.retain(|body| body.strong_count() > 0);
        bodies.push(Arc::downgrade(body));
    }

    /// Whether the server has let nothing of a body through for so long. Its window for the connection may be shut for all.
    pub fn has_stalled(&self, time: Duration) -> bool {
        let bodies = self.bodies.lock();
        let mut bodies = bodies.iter().filter_map(Weak::upgrade);
        bodies.any(|body| body.has_waited(time))
    }
}

impl Http2Stream {
    pub fn new(io: Stream) -> Self {
        let notes = Arc::new(ServerNotes {
            last_stream: AtomicU32::new(NO_LAST_STREAM),
            told_stream: AtomicU32::new(0),
            has_crossed: AtomicBool::new(false),
            bodies: Mutex::default(),
        });
        Self {
            io,
            reader: Http2Reader::behind(0),
            frames: FrameScan::default(),
            digest: carrying(&notes),
            notes,
        }
    }
}

impl AsyncRead for Http2Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let (before, room) = (buf.filled().len(), buf.remaining());
        let polled = this.reader.poll_read(&mut this.io, cx, buf);
        let notes = &this.notes;
        let has_ended = polled.is_ready() && room > 0 && buf.filled().len() == before;
        if has_ended && has_unacknowledged(&this.io) {
            notes.has_crossed.store(true, Ordering::Release);
        }
        this.frames.feed(&buf.filled()[before..], |frame| {
            if let Some(last) = frame.last_stream {
                // A server may name a smaller one later, and never a larger one.
                notes.last_stream.fetch_min(last, Ordering::AcqRel);
            }
            notes.told_stream.fetch_max(frame.stream, Ordering::AcqRel);
        });
        polled
    }
}

#[async_trait]
impl Shutdown for Http2Stream {
    async fn shutdown(&mut self) {
        self.io.shutdown().await;
    }
}

delegate_to_io!(Http2Stream);
delegate_writes_to_io!(Http2Stream);
