//! Connections to upstreams that no request uses. They are kept where they lie, without a task for each: one that has ended
//! is found when it is asked for, or by the sweep.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use pingora_core::protocols::Stream;
use tokio::io::{AsyncRead, ReadBuf};

/// How many may be kept in the whole process, and how many are.
#[derive(Debug)]
pub struct Room {
    limit: usize,
    used: AtomicUsize,
}

/// Those to one address. The one that was used last is used next, so that the others can grow too old.
#[derive(Debug)]
pub struct IdleConnections {
    room: Arc<Room>,
    /// How long one is kept.
    time: Duration,
    /// The newest last.
    kept: Mutex<Vec<Idle>>,
}

#[derive(Debug)]
struct Idle {
    stream: Stream,
    since: Instant,
}

impl Room {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
        })
    }

    fn take(&self) -> bool {
        let one_more = |used| (used < self.limit).then_some(used + 1);
        let taken = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.is_ok()
    }

    fn give_back(&self, count: usize) {
        self.used.fetch_sub(count, Ordering::Relaxed);
    }
}

impl IdleConnections {
    pub fn new(room: Arc<Room>, time: Duration) -> Self {
        Self {
            room,
            time,
            kept: Mutex::new(Vec::new()),
        }
    }

    /// The newest one that is still open and quiet, if there is any.
    pub fn take(&self) -> Option<Stream> {
        loop {
            // Not in the condition of a loop: the lock is not held while a connection is looked at or closed.
            let mut idle = self.kept().pop()?;
            self.room.give_back(1);
            if idle.is_usable(self.time) {
                return Some(idle.stream);
            }
        }
    }

    /// Keeps a connection on which nothing is under way. Where there is no room, it takes that of the oldest one here.
    pub fn keep(&self, stream: Stream) {
        let since = Instant::now();
        let mut kept = self.kept();
        let oldest = match self.room.take() {
            true => None,
            false if kept.is_empty() => return,
            false => Some(kept.remove(0)),
        };
        kept.push(Idle { stream, since });
        drop(kept);
        // Closed without the lock.
        drop(oldest);
    }

    /// Closes those that are too old, or that their upstream has ended.
    pub fn sweep(&self) {
        let mut kept = self.kept();
        let ended: Vec<Idle> = kept
            .extract_if(.., |idle| !idle.is_usable(self.time))
            .collect();
        drop(kept);
        self.room.give_back(ended.len());
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Idle>> {
        // Nothing panics between two states that belong together.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for IdleConnections {
    fn drop(&mut self) {
        let count = self.kept().len();
        self.room.give_back(count);
    }
}

impl Idle {
    /// Whether it is young enough, and neither at its end nor told anything that nobody asked for.
    fn is_usable(&mut self, time: Duration) -> bool {
        let mut byte = [0];
        let mut told = ReadBuf::new(&mut byte);
        let mut nobody = Context::from_waker(Waker::noop());
        // Pending, which costs no system call where nothing has come.
        self.since.elapsed() < time
            && Pin::new(&mut self.stream)
                .poll_read(&mut nobody, &mut told)
                .is_pending()
    }
}
