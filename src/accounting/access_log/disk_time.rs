//! How long the log's disk is waited for. It knows nothing of what is written.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The time that all work on the disk has taken, also that which is not done yet.
#[derive(Default)]
pub(super) struct DiskTime {
    work: Mutex<Work>,
}

#[derive(Default)]
struct Work {
    /// How many threads are at it.
    running: usize,
    /// When the first of these began.
    since: Option<Instant>,
    /// The time that was taken before.
    done: Duration,
}

impl DiskTime {
    /// Works on the disk; what several threads do at once counts once.
    pub fn measure<T>(&self, work: impl FnOnce() -> T) -> T {
        self.work.lock().begin();
        let result = work();
        self.work.lock().end();
        result
    }

    /// So far.
    pub fn total(&self) -> Duration {
        let work = self.work.lock();
        let running = work.since.map(|since| since.elapsed());
        work.done + running.unwrap_or_default()
    }
}

impl Work {
    fn begin(&mut self) {
        self.running += 1;
        self.since.get_or_insert_with(Instant::now);
    }

    fn end(&mut self) {
        self.running -= 1;
        if self.running == 0
            && let Some(since) = self.since.take()
        {
            self.done += since.elapsed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: Duration = Duration::from_millis(20);

    #[test]
    fn what_goes_on_counts_and_what_goes_on_at_once_counts_once() {
        let disk = DiskTime::default();
        let began = Instant::now();
        disk.measure(|| {
            std::thread::sleep(WORK);
            assert!(disk.total() >= WORK);
            disk.measure(|| std::thread::sleep(WORK));
            assert!(disk.total() >= 2 * WORK);
        });
        let total = disk.total();
        assert!((2 * WORK..=began.elapsed()).contains(&total), "{total:?}");
        std::thread::sleep(WORK);
        assert_eq!(disk.total(), total);
    }
}
