//! A timer for looks that are worth less the longer nothing has come of them.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// How long it is to each look.
#[derive(Debug)]
pub struct Backoff {
    /// To the first one.
    pub first: Duration,
    /// From the first one to the second.
    pub pause: Duration,
    /// How many times as long each pause after it is.
    pub factor: u32,
    /// The longest pause.
    pub longest: Duration,
}

/// Tells when the next look is due.
#[derive(Debug)]
pub struct BackoffTimer {
    pauses: &'static Backoff,
    pause: Duration,
    sleep: Pin<Box<Sleep>>,
}

impl BackoffTimer {
    /// Begins now.
    pub fn new(pauses: &'static Backoff) -> Self {
        Self {
            pauses,
            pause: pauses.pause,
            sleep: Box::pin(sleep(pauses.first)),
        }
    }

    /// Ready each time that a look is due.
    pub fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.sleep.as_mut().poll(cx));
        self.sleep.as_mut().reset(Instant::now() + self.pause);
        self.pause = (self.pause * self.pauses.factor).min(self.pauses.longest);
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn each_pause_is_longer_up_to_the_longest() {
        static PAUSES: Backoff = Backoff {
            first: Duration::ZERO,
            pause: SECOND,
            factor: 3,
            longest: Duration::from_secs(5),
        };
        let mut timer = BackoffTimer::new(&PAUSES);
        let mut before = Instant::now();
        for seconds in [0, 1, 3, 5, 5] {
            poll_fn(|cx| timer.poll_due(cx)).await;
            let waited = before.elapsed();
            before = Instant::now();
            assert_eq!(waited, seconds * SECOND);
        }
    }
}
