//! The pieces of a request's body between Pingora's two halves of a request over HTTP/1.1: the one that reads the client puts them
//! into a pipe from which the other one writes.
//!
//! Pingora 0.9.1 looks whether the client is there only while the pipe has room. Where the last piece of a body fills it, the
//! half that read it does not come back to look when there is room again: a client that leaves is not seen before the upstream
//! says something. So the last piece waits until it cannot be the one that fills the pipe.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::codec::guarded_bytes::guarded;
use crate::upstream::waker_slot::WakerSlot;

/// How many others may be on their way when the last piece goes: Pingora's pipe has four places.
const MOST_BEFORE_LAST: usize = 2;

/// Of one attempt of a request.
#[derive(Clone, Debug, Default)]
pub struct BodyPipe(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Pieces that were put in and are not written.
    pieces: usize,
    waker: WakerSlot,
}

/// Tells when its piece was written.
struct PieceGuard(BodyPipe);

impl BodyPipe {
    /// A piece that is put in.
    pub fn put(&self, bytes: Bytes) -> Bytes {
        self.0.lock().pieces += 1;
        guarded(bytes, PieceGuard(self.clone()))
    }

    /// Returns when the last piece may be put in.
    pub async fn has_room_for_last(&self) {
        std::future::poll_fn(|cx| self.poll_room(cx)).await;
    }

    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if state.pieces <= MOST_BEFORE_LAST {
            return Poll::Ready(());
        }
        state.waker.register(cx);
        Poll::Pending
    }
}

impl Drop for PieceGuard {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.pieces -= 1;
        state.waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn the_last_piece_waits_for_all_but_two_of_the_others() {
        let pipe = BodyPipe::default();
        let mut cx = Context::from_waker(Waker::noop());
        let mut pieces: Vec<Bytes> = (0..4).map(|_| pipe.put(Bytes::new())).collect();
        for is_ready in [false, false, true, true] {
            assert_eq!(pipe.poll_room(&mut cx).is_ready(), is_ready);
            pieces.pop();
        }
        assert_eq!(pipe.put(Bytes::from_static(b"body")), "body");
    }
}
