//! How long a request works on what is there before others have their turns: where more of it is always there, nobody waits.

use std::time::{Duration, Instant};

use tokio::task::yield_now;

/// The work of a turn.
const TIME: Duration = Duration::from_millis(5);

/// A turn of a request's task.
pub struct TimeSlice(Instant);

impl TimeSlice {
    /// One that begins now.
    pub fn begin() -> Self {
        Self(Instant::now())
    }

    /// Lets others run where the turn has lasted long enough, and begins another. True where it did.
    pub async fn end_when_due(&mut self) -> bool {
        let is_due = self.0.elapsed() >= TIME;
        if is_due {
            yield_now().await;
            self.0 = Instant::now();
        }
        is_due
    }
}
