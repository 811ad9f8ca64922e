//! The body of a request on its way over HTTP/2. Pingora's loop puts pieces in and goes on; whoever waits for the response
//! sends them as the upstream's window opens. So a response, or the client's end, is noticed while the window is shut. What
//! waits is in memory: whoever puts pieces in counts them against the process's budget and the limit for one body.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::Bytes;
use h2::SendStream;
use parking_lot::Mutex;
use pingora_core::protocols::http::custom::BodyWrite;
use pingora_core::{Error, ErrorType, Result};

use crate::upstream::waker_slot::WakerSlot;

/// The body of one request.
#[derive(Default)]
pub(super) struct OutgoingBody(Mutex<State>);

#[derive(Default)]
struct State {
    stream: Option<SendStream<Bytes>>,
    pieces: VecDeque<Bytes>,
    /// No further piece will come.
    is_finished: bool,
    /// Its end was sent, or nothing of it is to be sent any more.
    is_done: bool,
    /// The stream was ended by the upstream before all of it was sent.
    is_refused: bool,
    sender: WakerSlot,
}

impl OutgoingBody {
    /// The request's head was sent, and its body goes to `stream`.
    pub fn begin(&self, stream: Option<SendStream<Bytes>>) {
        let mut state = self.0.lock();
        state.is_done = stream.is_none();
        state.stream = stream;
    }

    /// Sends what the upstream takes. Ready when all of it was sent, or nothing more of it is wanted.
    pub fn poll_send(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        while !state.is_done {
            let waits = ready!(state.poll_piece(cx));
            if waits {
                state.sender.register(cx);
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    /// Whether bytes wait for the upstream's window.
    pub fn is_waiting(&self) -> bool {
        let state = self.0.lock();
        !state.pieces.is_empty() && !state.is_done
    }

    /// Whether the upstream ended the stream without the rest.
    pub fn is_refused(&self) -> bool {
        self.0.lock().is_refused
    }

    /// The response is whole: nothing more of the request is wanted.
    pub fn stop(&self) {
        self.0.lock().stop();
    }

    fn put(&self, piece: Bytes) {
        let mut state = self.0.lock();
        if state.is_done || piece.is_empty() {
            return;
        }
        state.pieces.push_back(piece);
        state.sender.wake();
    }

    fn finish(&self) {
        let mut state = self.0.lock();
        state.is_finished = true;
        state.sender.wake();
    }
}

impl State {
    /// Sends a part of the next piece, or the end. Ready with true where there is nothing to send yet.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(true);
        };
        let Some(piece) = self.pieces.front_mut() else {
            if self.is_finished {
                // An error would be that of the stream, which whoever reads the response has as well.
                let _ = stream.send_data(Bytes::new(), true);
                self.is_done = true;
            }
            return Poll::Ready(!self.is_finished);
        };
        stream.reserve_capacity(piece.len());
        let Some(Ok(room)) = ready!(stream.poll_capacity(cx)) else {
            self.is_refused = true;
            self.stop();
            return Poll::Ready(false);
        };
        let part = piece.split_to(room.min(piece.len()));
        let is_last_part = piece.is_empty();
        if is_last_part {
            self.pieces.pop_front();
        }
        let ends = is_last_part && self.pieces.is_empty() && self.is_finished;
        let sent = stream.send_data(part, ends);
        self.is_done = ends || sent.is_err();
        Poll::Ready(false)
    }

    fn stop(&mut self) {
        self.is_done = true;
        self.pieces.clear();
        self.sender.wake();
    }
}

/// Where Pingora writes a body.
pub(super) struct BodyWriter(pub Arc<OutgoingBody>);

#[async_trait]
impl BodyWrite for BodyWriter {
    async fn write_all_buf(&mut self, data: &mut Bytes) -> Result<()> {
        self.0.put(std::mem::take(data));
        Ok(())
    }

    async fn finish(&mut self) -> Result<()> {
        self.0.finish();
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
