//! Lines on their way: those that are not written yet, and those that a pipe or socket has taken and its reader may not have
//! read. It knows nothing of what they are written to.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The lines of one log.
#[derive(Default)]
pub(super) struct Backlog {
    waiting: Queue,
    /// How many bytes of the first waiting line were taken and are kept, as by a pipe.
    pub taken: usize,
    unread: Queue,
}

/// A line with its end.
#[derive(Clone)]
pub(super) struct Line {
    since: Instant,
    pub bytes: Arc<[u8]>,
}

/// Whole lines, oldest first.
#[derive(Default)]
struct Queue {
    lines: VecDeque<Line>,
    bytes: usize,
}

impl Backlog {
    /// Lines that are not written yet.
    pub fn waiting(&self) -> usize {
        self.waiting.lines.len()
    }

    /// Bytes of these.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting.bytes
    }

    /// The line that is to be written next.
    pub fn first(&self) -> Option<&Line> {
        self.waiting.lines.front()
    }

    /// Whether the oldest line has waited for so long.
    pub fn has_waited(&self, time: Duration) -> bool {
        self.first()
            .is_some_and(|line| line.since.elapsed() >= time)
    }

    pub fn push(&mut self, line: &[u8]) {
        self.waiting.push(Line {
            since: Instant::now(),
            bytes: line.into(),
        });
    }

    /// The first line is written. `is_kept`: somebody is still to read it.
    pub fn pop(&mut self, is_kept: bool) {
        self.taken = 0;
        if let Some(line) = self.waiting.pop()
            && is_kept
        {
            self.unread.push(line);
        }
    }

    /// Lines that were taken and may not have been read.
    pub fn unread(&self) -> usize {
        self.unread.lines.len()
    }

    /// No more than so many bytes of what was taken are unread.
    pub fn forget_read(&mut self, at_most: usize) {
        while let Some(first) = self.unread.lines.front()
            && self.unread.bytes - first.bytes.len() >= at_most
        {
            self.unread.pop();
        }
    }

    /// Nobody is to read any of what was taken.
    pub fn forget_unread(&mut self) {
        self.unread = Queue::default();
    }

    /// What may not have been read waits again, before all else.
    pub fn take_back_unread(&mut self) {
        self.taken = 0;
        let mut again = std::mem::take(&mut self.unread);
        again.bytes += self.waiting.bytes;
        again.lines.append(&mut self.waiting.lines);
        self.waiting = again;
    }
}

impl Queue {
    fn push(&mut self, line: Line) {
        self.bytes += line.bytes.len();
        self.lines.push_back(line);
    }

    fn pop(&mut self) -> Option<Line> {
        let line = self.lines.pop_front()?;
        self.bytes -= line.bytes.len();
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(backlog: &Backlog) -> Vec<&[u8]> {
        let lines = backlog.waiting.lines.iter();
        lines.map(|line| &*line.bytes).collect()
    }

    #[test]
    fn what_may_not_have_been_read_comes_before_what_waits() {
        let mut backlog = Backlog::default();
        for line in [b"one\n", b"two\n", b"thr\n", b"fou\n"] {
            backlog.push(line);
        }
        (0..3).for_each(|_| backlog.pop(true));
        backlog.taken = 2;
        // A byte of the second may be unread, and so may be all of it.
        backlog.forget_read(5);
        assert_eq!((backlog.unread(), backlog.waiting_bytes()), (2, 4));
        backlog.take_back_unread();
        assert_eq!(texts(&backlog), [b"two\n", b"thr\n", b"fou\n"]);
        assert_eq!((backlog.taken, backlog.waiting_bytes()), (0, 12));
        assert_eq!(backlog.unread(), 0);
    }

    #[test]
    fn what_was_read_is_forgotten() {
        let mut backlog = Backlog::default();
        for _ in 0..3 {
            backlog.push(b"line\n");
            backlog.pop(true);
        }
        backlog.forget_read(6);
        assert_eq!(backlog.unread(), 2);
        backlog.forget_read(0);
        assert_eq!(backlog.unread(), 0);
        backlog.push(b"line\n");
        backlog.pop(false);
        assert_eq!((backlog.unread(), backlog.waiting_bytes()), (0, 0));
    }
}
