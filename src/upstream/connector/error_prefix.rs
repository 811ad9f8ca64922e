//! The beginning of an error response, kept back until it is whole: Pingora's filters have the head of a response before its
//! body, and what is decided by the body has to be decided before the client has the head.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use crate::codec::framing::without_interim;

/// The most of a response that is kept back, in bytes.
const MAX_PREFIX_BYTES: usize = 64 * 1024;
/// How long more of it is waited for. Errors are small, and most come in one piece.
const PREFIX_TIME: Duration = Duration::from_secs(2);

/// Bytes that are kept back.
#[derive(Debug, Default)]
pub(super) struct ErrorPrefix {
    pub bytes: Vec<u8>,
    time: Option<Pin<Box<Sleep>>>,
}

impl ErrorPrefix {
    /// Whether there is more than interim responses of HTTP/1.1, behind which the response itself may take its time.
    pub fn has_begun(&self) -> bool {
        !without_interim(&self.bytes).is_empty()
    }

    /// Whether no more is kept back.
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= MAX_PREFIX_BYTES
    }

    /// Ready when no more is waited for.
    pub fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let time = self
            .time
            .get_or_insert_with(|| Box::pin(sleep(PREFIX_TIME)));
        time.as_mut().poll(cx)
    }
}
