//! The end of a connection whose last response is still on its way. What the process has buffered ends with it. And what a client
//! sends to a socket that nobody has any more makes the kernel drop what it does not have yet (RFC 9112 §9.6); one of HTTP/2
//! goes on to tell how much it has read. So a process that ends after a drain would take the rest of its responses away.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pingora::protocols::IO;
use tokio::io::ReadBuf;
use tokio::time::Instant;

use crate::proxy::client_stream::{LINGERING_CLOSE_IDLE, LINGERING_CLOSE_TIME};
use crate::upstream::backoff::{Backoff, BackoffTimer};
use crate::upstream::output_queue::output_queue;
use crate::upstream::socket::socket_of;

/// When it is looked whether the client has all.
static LOOKS: Backoff = Backoff {
    first: Duration::from_millis(10),
    pause: Duration::from_millis(20),
    factor: 2,
    longest: Duration::from_millis(200),
};

/// A connection of which our side ends.
#[derive(Debug)]
pub(super) struct LingeringClose {
    /// All was written, and our side has ended.
    pub is_shut: bool,
    looks: BackoffTimer,
    /// What the client had not acknowledged at the last look, in bytes.
    unsent: Option<u64>,
    /// When it had all; none while it has not.
    sent_at: Option<Instant>,
    /// When something came of it last, or it took something.
    active_at: Instant,
}

impl LingeringClose {
    /// The last of a response was written at `active_at`.
    pub fn new(active_at: Instant) -> Self {
        Self {
            is_shut: false,
            looks: BackoffTimer::new(&LOOKS),
            unsent: None,
            sent_at: None,
            active_at,
        }
    }

    /// Ready where the client takes nothing of what is still to be written.
    pub fn poll_stalled(&mut self, io: &impl IO, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.looks.poll_due(cx));
            // Beside what the kernel has there is more.
            let unsent = 1 + output_queue(socket_of(io)).unwrap_or(0);
            if self.is_over(unsent) {
                return Poll::Ready(());
            }
        }
    }

    /// Ready where the client has closed its side, or has all and says nothing more, or takes nothing. What it says is read, and
    /// is nothing to anybody.
    pub fn poll_over(&mut self, io: &mut impl IO, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let mut room = [0; 1024];
            let mut read = ReadBuf::new(&mut room);
            match Pin::new(&mut *io).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) if !read.filled().is_empty() => {
                    self.active_at = Instant::now();
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    ready!(self.looks.poll_due(cx));
                    if self.is_over(output_queue(socket_of(&*io)).unwrap_or(0)) {
                        return Poll::Ready(());
                    }
                }
            }
        }
    }

    fn is_over(&mut self, unsent: u64) -> bool {
        let now = Instant::now();
        if self.unsent.is_some_and(|before| unsent < before) {
            self.active_at = now;
        }
        self.unsent = Some(unsent);
        if unsent > 0 {
            return now.duration_since(self.active_at) >= LINGERING_CLOSE_TIME;
        }
        let sent_at = *self.sent_at.get_or_insert(now);
        now.duration_since(self.active_at) >= LINGERING_CLOSE_IDLE
            || now.duration_since(sent_at) >= LINGERING_CLOSE_TIME
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    async fn after(duration: Duration, close: &mut LingeringClose, unsent: u64) -> bool {
        tokio::time::advance(duration).await;
        close.is_over(unsent)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_what_is_left_is_waited_for() {
        let close = &mut LingeringClose::new(Instant::now());
        for unsent in (1..10).rev() {
            assert!(!after(20 * SECOND, close, unsent).await, "{unsent}");
        }
        assert!(!after(SECOND, close, 0).await);
        assert!(after(LINGERING_CLOSE_IDLE, close, 0).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let close = &mut LingeringClose::new(Instant::now());
        assert!(!after(SECOND, close, 5).await);
        assert!(after(LINGERING_CLOSE_TIME, close, 5).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_whose_last_response_is_long_ago_is_not_waited_for() {
        let begun = Instant::now();
        tokio::time::advance(LINGERING_CLOSE_IDLE).await;
        assert!(LingeringClose::new(begun).is_over(0));
    }
}
