//! What a request over HTTP/2 tells the task that serves it: until when the rest of the request is read where its response
//! has ended first. Pingora 0.9.1 has no limit for that read, and says nothing when a response was written; so the pieces
//! of the response tell themselves when they have left.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::codec::guarded_bytes::guarded;

/// How long a request is read on that was answered before it was here, in all and between two reads: a close with bytes unread
/// would take the response away from the client (RFC 9112 §9.6). Some clients look for one only when they have sent all.
pub const LINGERING_CLOSE_TIME: Duration = Duration::from_secs(30);
pub const LINGERING_CLOSE_IDLE: Duration = Duration::from_secs(2);

/// The stream that a request came on. The request's context holds one end, the task that serves it (`server/proxy_app.rs`)
/// the other; Pingora carries it between them in the extensions of the request's head.
#[derive(Clone, Debug, Default)]
pub struct ClientStream(Arc<watch::Sender<Lingering>>);

#[derive(Debug, Default)]
struct Lingering {
    /// Until when the rest of the request is read; none while the response is under way.
    until: Option<Instant>,
    /// Pieces of the response that have not left.
    unsent: usize,
}

/// Tells when its piece of a response has left.
struct UnsentGuard(ClientStream);

impl ClientStream {
    /// A piece of the response that tells when it has left.
    pub fn send(&self, bytes: Bytes) -> Bytes {
        self.0.send_modify(|lingering| lingering.unsent += 1);
        guarded(bytes, UnsentGuard(self.clone()))
    }

    /// All of the response is here, and the rest of the request is read for a while.
    pub fn end_response(&self) {
        let until = Instant::now() + LINGERING_CLOSE_TIME;
        self.0
            .send_modify(|lingering| lingering.until = Some(until));
        self.progressed();
    }

    /// More of the request came, or the response has left: from now on the client may be silent for a moment.
    pub fn progressed(&self) {
        self.0.send_if_modified(|lingering| {
            let is_sent = lingering.until.is_some() && lingering.unsent == 0;
            if is_sent {
                lingering.until = Some(Instant::now() + LINGERING_CLOSE_IDLE);
            }
            is_sent
        });
    }

    /// Ready when the client has had its time.
    pub async fn over(&self) {
        let mut lingering = self.0.subscribe();
        loop {
            let until = lingering.borrow_and_update().until;
            let changed = lingering.changed();
            match until {
                // The sender is here, so that it is never an error.
                None => drop(changed.await),
                Some(until) if timeout_at(until, changed).await.is_err() => return,
                Some(_) => {}
            }
        }
    }
}

impl Drop for UnsentGuard {
    fn drop(&mut self) {
        let Self(stream) = self;
        stream.0.send_modify(|lingering| lingering.unsent -= 1);
        stream.progressed();
    }
}
