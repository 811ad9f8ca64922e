//! The body of a request on its way over HTTP/2. Pingora's loop puts pieces in; whoever waits for the response sends them as
//! the upstream's window opens. So a response is noticed while the window is shut. What waits is in memory, and counted
//! there by whoever puts it in. The loop goes on until [`MAX_WAITING_BYTES`] wait: then it reads no more of its client before
//! the upstream has taken some of them, or has begun its response, which only the loop can pass on. An upstream that takes
//! nothing is no reason not to see that the client has left, so that the loop takes a piece every [`LOOK_TIME`] then.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use h2::SendStream;
use parking_lot::Mutex;
use pingora_core::protocols::http::custom::BodyWrite;
use pingora_core::{Error, ErrorType, Result};
use tokio::time::{Instant, timeout};

use super::control::{AwaitedPhase, StreamControl};
use crate::upstream::waker_slot::WakerSlot;

/// How much of a body may wait for the upstream's window while more of it is taken from the client, in bytes. It bridges the
/// time from a piece that was sent to the next one from the client, and no more: what the network holds is the window's.
const MAX_WAITING_BYTES: usize = 256 * 1024;
/// How often a client is looked at whose upstream takes nothing.
const LOOK_TIME: Duration = Duration::from_secs(1);
/// So much of a body is a piece of it, in bytes: an upstream that takes a few at a time takes nothing.
pub(super) const PIECE_BYTES: usize = 64 * 1024;

/// The body of one request.
#[derive(Default)]
pub(super) struct OutgoingBody(Mutex<State>);

#[derive(Default)]
struct State {
    stream: Option<SendStream<Bytes>>,
    pieces: VecDeque<Bytes>,
    /// What the pieces have together.
    waiting_bytes: usize,
    /// What the upstream has taken so far.
    taken_bytes: usize,
    /// No further piece will come.
    is_finished: bool,
    /// Since when the upstream's window has let nothing of it through, while there is something.
    waits_since: Option<Instant>,
    /// Its end was sent, or nothing of it is to be sent any more.
    is_done: bool,
    /// The head of the response is here.
    is_answered: bool,
    sender: WakerSlot,
    writer: WakerSlot,
}

impl OutgoingBody {
    /// The request's head was sent, and its body goes to `stream`.
    pub fn begin(&self, stream: Option<SendStream<Bytes>>) {
        let mut state = self.0.lock();
        state.is_done = stream.is_none();
        state.stream = stream;
    }

    /// Sends what the upstream takes. Where there is more to send, `cx` is woken for it.
    pub fn send(&self, cx: &mut Context<'_>) {
        let mut state = self.0.lock();
        let taken = state.taken_bytes;
        while !state.is_done && state.poll_piece(cx).is_ready() {}
        state.waits_since = match state.waits_since {
            _ if !state.is_waiting() => None,
            Some(since) if state.taken_bytes == taken => Some(since),
            _ => Some(Instant::now()),
        };
    }

    /// Whether the upstream's window has let nothing of it through for so long.
    pub fn has_waited(&self, time: Duration) -> bool {
        let since = self.0.lock().waits_since;
        since.is_some_and(|since| since.elapsed() >= time)
    }

    /// Whether bytes wait for the upstream's window.
    pub fn is_waiting(&self) -> bool {
        self.0.lock().is_waiting()
    }

    /// The head of the response is here: pieces are taken although others wait.
    pub fn note_response(&self) {
        let mut state = self.0.lock();
        state.is_answered = true;
        state.writer.wake();
    }

    /// The response is whole: nothing more of the request is wanted.
    pub fn stop(&self) {
        self.0.lock().stop();
    }

    /// How much of it the upstream has taken so far.
    pub fn taken_bytes(&self) -> usize {
        self.0.lock().taken_bytes
    }

    fn has_room(&self) -> bool {
        self.0.lock().has_room()
    }

    /// Ready when another piece is to be put in.
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if state.has_room() {
            return Poll::Ready(());
        }
        state.writer.register(cx);
        Poll::Pending
    }

    /// Another piece.
    pub fn put(&self, piece: Bytes) {
        let mut state = self.0.lock();
        if state.is_done || piece.is_empty() {
            return;
        }
        state.waiting_bytes += piece.len();
        state.pieces.push_back(piece);
        state.sender.wake();
    }

    /// No further piece will come.
    pub fn finish(&self) {
        let mut state = self.0.lock();
        state.is_finished = true;
        state.sender.wake();
    }
}

impl State {
    fn is_waiting(&self) -> bool {
        !self.pieces.is_empty() && !self.is_done
    }

    fn has_room(&self) -> bool {
        self.waiting_bytes < MAX_WAITING_BYTES || self.is_answered || self.is_done
    }

    /// Sends a part of the next piece, or the end.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let has_next = !self.pieces.is_empty() || self.is_finished;
        let Some(stream) = self.stream.as_mut().filter(|_| has_next) else {
            self.sender.register(cx);
            return Poll::Pending;
        };
        let Some(piece) = self.pieces.front_mut() else {
            // An error would be that of the stream, which whoever reads the response has as well.
            let _ = stream.send_data(Bytes::new(), true);
            self.is_done = true;
            return Poll::Ready(());
        };
        stream.reserve_capacity(piece.len());
        let Some(Ok(room)) = ready!(stream.poll_capacity(cx)) else {
            // The upstream has ended the stream without the rest.
            self.stop();
            return Poll::Ready(());
        };
        let part = piece.split_to(room.min(piece.len()));
        let count = part.len();
        self.waiting_bytes -= count;
        self.taken_bytes += count;
        self.writer.wake();
        let is_last_part = piece.is_empty();
        if is_last_part {
            self.pieces.pop_front();
        }
        let ends = is_last_part && self.pieces.is_empty() && self.is_finished;
        let sent = stream.send_data(part, ends);
        self.is_done = ends || sent.is_err();
        Poll::Ready(())
    }

    fn stop(&mut self) {
        self.is_done = true;
        self.waits_since = None;
        self.pieces.clear();
        self.waiting_bytes = 0;
        self.sender.wake();
        self.writer.wake();
    }
}

/// Where Pingora writes a body.
pub(super) struct BodyWriter {
    body: Arc<OutgoingBody>,
    control: Arc<StreamControl>,
    /// When the upstream last had a whole piece more, and what it had taken by then.
    last_piece: (Instant, usize),
}

impl BodyWriter {
    pub fn new(body: Arc<OutgoingBody>, control: Arc<StreamControl>) -> Self {
        Self {
            body,
            control,
            last_piece: (Instant::now(), 0),
        }
    }

    /// Waits for room, or for the next look at the client. The session that the body belongs to ends the request where the
    /// upstream takes no piece for too long.
    async fn wait_for_room(&mut self) {
        if self.body.has_room() {
            self.last_piece = (Instant::now(), self.body.taken_bytes());
            return;
        }
        let (phase, limit) = self.control.enter(AwaitedPhase::RequestWindow, None);
        loop {
            let taken = self.body.taken_bytes();
            if taken >= self.last_piece.1 + PIECE_BYTES {
                self.last_piece = (Instant::now(), taken);
            }
            let write_limit = self.control.write_limit();
            let left = write_limit.map(|limit| limit.saturating_sub(self.last_piece.0.elapsed()));
            self.control.enter(AwaitedPhase::RequestWindow, left);
            let room = std::future::poll_fn(|cx| self.body.poll_room(cx));
            let has_room = timeout(LOOK_TIME, room).await.is_ok();
            if has_room || self.body.taken_bytes() == taken {
                break;
            }
        }
        self.control.enter(phase, limit);
    }
}

#[async_trait]
impl BodyWrite for BodyWriter {
    async fn write_all_buf(&mut self, data: &mut Bytes) -> Result<()> {
        self.wait_for_room().await;
        self.body.put(std::mem::take(data));
        Ok(())
    }

    async fn finish(&mut self) -> Result<()> {
        self.body.finish();
        Ok(())
    }

    async fn cleanup(&mut self) -> Result<()> {
        Ok(())
    }

    fn upgrade_body_writer(&mut self) {}
}

/// A window that stayed shut for too long.
pub(super) fn unsent() -> Box<Error> {
    Error::explain(
        ErrorType::WriteTimedout,
        "the upstream takes no more of the request",
    )
}
