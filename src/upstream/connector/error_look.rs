//! The beginning of an error response, kept back until it shows whether it holds a text: Pingora's filters have the head of a
//! response before its body, and what is decided by the body has to be decided before the client has the head.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

/// How much of a response is looked at, in bytes.
const LOOK_BYTES: usize = 16 * 1024;
/// How long more of it is waited for. Errors are small, and most come in one piece.
const LOOK_TIME: Duration = Duration::from_millis(200);

/// Bytes that are kept back.
#[derive(Debug, Default)]
pub(super) struct ErrorLook {
    pub bytes: Vec<u8>,
    time: Option<Pin<Box<Sleep>>>,
}

/// What is to happen to the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    Found,
    NotFound,
    /// More is needed.
    Open,
}

impl ErrorLook {
    /// Judges what has come. `has_ended`: nothing more will.
    pub fn judge(&self, text: &[u8], has_ended: bool) -> Finding {
        if memchr::memmem::find(&self.bytes, text).is_some() {
            return Finding::Found;
        }
        match has_ended || self.bytes.len() >= LOOK_BYTES {
            true => Finding::NotFound,
            false => Finding::Open,
        }
    }

    /// Ready when no more is waited for.
    pub fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let time = self.time.get_or_insert_with(|| Box::pin(sleep(LOOK_TIME)));
        time.as_mut().poll(cx)
    }
}

/// Whether a response over HTTP/1.1 may be an error of the client's (4xx), by its first bytes.
pub(super) fn may_be_client_error(response: &[u8]) -> bool {
    const BEGIN: &[u8] = b"HTTP/1.1 4";
    let length = response.len().min(BEGIN.len());
    response[..length] == BEGIN[..length]
}
