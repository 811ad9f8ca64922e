//! The process's stderr, written by a thread of its own: a reader that stalls, as those of containers do, stops no request and
//! no end of the process.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Lines of the log that wait for the reader at once; further ones are left out, and counted.
const MAX_WAITING_LINES: usize = 1024;
/// How long a reader may take nothing before it is waited for no longer.
const STALL_TIME: Duration = Duration::from_secs(1);

/// A handle on it, for the words of a command: each waits until it is written.
#[derive(Clone)]
pub struct Stderr(Arc<Queue>);

/// The same for the log's lines: none waits.
pub(super) struct LogLines(pub Stderr);

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    texts: VecDeque<Vec<u8>>,
    /// Lines that there was no room for, and of which nothing was said yet.
    left_out: u64,
    /// The first of the texts is being written.
    is_writing: bool,
}

impl Stderr {
    /// Starts the thread that writes to `out`.
    ///
    /// # Errors
    /// Where no thread is to be had.
    pub(super) fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let queue = Arc::<Queue>::default();
        let written = queue.clone();
        let thread = std::thread::Builder::new().name("stderr".to_owned());
        thread.spawn(move || written.write(out))?;
        Ok(Self(queue))
    }

    /// Waits until all is written, for as long as the reader takes something.
    pub(super) fn wait(&self) {
        let mut waiting = self.0.waiting.lock();
        while waiting.is_writing || !waiting.texts.is_empty() {
            if self
                .0
                .changed
                .wait_for(&mut waiting, STALL_TIME)
                .timed_out()
            {
                return;
            }
        }
    }
}

impl Queue {
    fn put(&self, text: &[u8]) {
        self.waiting.lock().texts.push_back(text.to_vec());
        self.changed.notify_all();
    }

    fn put_line(&self, line: &[u8]) {
        let mut waiting = self.waiting.lock();
        if waiting.texts.len() >= MAX_WAITING_LINES {
            waiting.left_out += 1;
            return;
        }
        waiting.texts.push_back(line.to_vec());
        self.changed.notify_all();
    }

    fn write(&self, mut out: impl Write) {
        loop {
            let text = self.next();
            // Nobody can be told where it cannot be written.
            let _ = out.write_all(&text).and_then(|()| out.flush());
            self.waiting.lock().is_writing = false;
            self.changed.notify_all();
        }
    }

    fn next(&self) -> Vec<u8> {
        let mut waiting = self.waiting.lock();
        loop {
            let Some(text) = waiting.texts.pop_front() else {
                self.changed.wait(&mut waiting);
                continue;
            };
            if let count @ 1.. = std::mem::take(&mut waiting.left_out) {
                let told = format!("lines left out because stderr was not read: {count}\n");
                waiting.texts.push_back(told.into_bytes());
            }
            waiting.is_writing = true;
            return text;
        }
    }
}

impl Write for Stderr {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.put(text);
        self.wait();
        Ok(text.len())
    }

    /// In one piece, so that no line of the log stands in the middle.
    fn write_fmt(&mut self, words: fmt::Arguments<'_>) -> io::Result<()> {
        self.write_all(words.to_string().as_bytes())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for LogLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.0.put_line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_reader_that_stalls_holds_no_line_up_and_is_told_how_many_it_missed() {
        let (reader, out) = UnixStream::pair().unwrap();
        let stderr = Stderr::start(out).unwrap();
        let mut lines = LogLines(stderr.clone());
        let (count, padding) = (4 * MAX_WAITING_LINES, "x".repeat(1000));
        let began = Instant::now();
        for number in 0..count {
            lines
                .write_all(format!("{number} {padding}\n").as_bytes())
                .unwrap();
        }
        assert!(began.elapsed() < STALL_TIME);
        stderr.wait();
        assert!(began.elapsed() < 3 * STALL_TIME);
        let (mut told, mut missed) = (0, 0);
        for line in BufReader::new(reader).lines() {
            let line = line.unwrap();
            match line.strip_prefix("lines left out because stderr was not read: ") {
                Some(number) => missed += number.parse::<usize>().unwrap(),
                None => told += 1,
            }
            if told + missed == count {
                break;
            }
        }
        assert!(told >= MAX_WAITING_LINES && missed > 0, "{told} {missed}");
    }

    #[test]
    fn a_word_of_a_command_is_written_behind_the_lines_before_it_when_it_returns() {
        let (reader, out) = UnixStream::pair().unwrap();
        let mut stderr = Stderr::start(out).unwrap();
        LogLines(stderr.clone()).write_all(b"line\n").unwrap();
        stderr.write_all(b"word\n").unwrap();
        reader.set_nonblocking(true).unwrap();
        let lines: Vec<_> = BufReader::new(reader)
            .lines()
            .map_while(Result::ok)
            .collect();
        assert_eq!(lines, ["line", "word"]);
    }
}
