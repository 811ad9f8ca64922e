//! How lines get to the log so that none is lost and none holds up a request.
//!
//! A regular file is written by whoever has a line, in one `write(2)` before [`AccessLog::append_line`] returns, so that even
//! a process that is killed has the lines of what it answered; what the disk refuses waits, in order, and is tried again. Of
//! anything else (stdout, a pipe, a socket) the reader may stall or be missing, and a write may never return: there a thread
//! of its own writes, and lines wait in memory for it. What a reader leaves unread may be lost with it: lines are kept until they
//! were read, and written again where they may not have been.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use uuid::Uuid;

use crate::accounting::access_log::backlog::{Backlog, Line};
use crate::accounting::access_log::disk_time::DiskTime;
use crate::accounting::access_log::sink::{
    Receiver, Sink, SinkKind, await_writable, take_back, write_all,
};
use crate::accounting::access_log::{ADDED, SCHEMA};
use crate::config::{LogFormat, LogSettings, LogTarget};

/// Lines that wait for a log that cannot be written, in bytes. Beyond it no further request is taken.
const BACKLOG_BYTES: u64 = 64 << 20;
/// How long whoever looks at the log waits for those who write to it.
const LOCK_WAIT: Duration = Duration::from_millis(200);
/// A line that has waited for this long for its reader is told of.
const STALLED_AFTER: Duration = Duration::from_secs(1);
/// What failed is tried again after this.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// How long the end of the process waits for a reader that still reads.
const FINISH_TIME: Duration = Duration::from_secs(1);
/// How often the end of what waits is looked for then.
const FINISH_LOOK: Duration = Duration::from_millis(5);

/// The open log.
pub struct AccessLog {
    format: LogFormat,
    /// What stands before and behind the number of each line.
    around_number: [String; 2],
    shared: Arc<Shared>,
}

/// What requests share with the thread that writes.
struct Shared {
    target: LogTarget,
    writer: Mutex<Writer>,
    /// There is something for the thread to do.
    wake: Condvar,
    errors: AtomicU64,
    waiting_bytes: AtomicU64,
    /// Of a regular file: whoever waits for the writer waits for it too.
    disk: DiskTime,
}

struct Writer {
    sink: Sink,
    /// The open file is not the log any more, and that one could not be opened yet.
    is_outdated: bool,
    /// Counts openings of the target, so that the thread can tell that it has written to an old one.
    opened: u64,
    /// Lines numbered so far.
    seq: u64,
    line: Vec<u8>,
    backlog: Backlog,
    has_thread: bool,
    /// The log has been dropped, and the thread is to end.
    closed: bool,
    trouble: Trouble,
}

/// What is told of a log that cannot be written, once for each time that it cannot.
#[derive(Default)]
struct Trouble {
    /// Why it cannot be written.
    why: Option<String>,
    /// The most lines that waited at once.
    most_waiting: usize,
    /// Lines that had no room, of requests that reached no upstream.
    dropped: usize,
}

impl AccessLog {
    /// # Errors
    /// Where the target cannot be opened for appending, or there is no thread to be had. That nobody reads a pipe yet is
    /// no error: its lines wait.
    pub fn open(settings: LogSettings) -> io::Result<Self> {
        let LogSettings { target, format } = settings;
        let sink = Sink::open(&target)?;
        if sink.is_null() {
            log::warn!("the access log goes to /dev/null: no request is accounted for");
        }
        let instance = Uuid::now_v7();
        let [schema_name, seq_name, instance_name] = ADDED.map(|field| field.name_in(format));
        let log = Self {
            format,
            around_number: [
                format!(r#"{{"{schema_name}":{SCHEMA},"{seq_name}":"#),
                format!(r#","{instance_name}":"{instance}","#),
            ],
            shared: Arc::new(Shared {
                target,
                writer: Mutex::new(Writer::new(sink)),
                wake: Condvar::new(),
                errors: AtomicU64::new(0),
                waiting_bytes: AtomicU64::new(0),
                disk: DiskTime::default(),
            }),
        };
        log.shared.clone().start_thread()?;
        Ok(log)
    }

    pub(super) fn format(&self) -> LogFormat {
        self.format
    }

    /// Numbers and writes a line, of which `rest` is all behind the members that are added here. One that `is_billed` is kept
    /// however much waits; others are lost beyond the limit, for whoever has no key can make as many as he likes.
    pub(super) fn append_line(&self, rest: &[u8], is_billed: bool) {
        let mut guard = self.shared.writer.lock();
        let writer = &mut *guard;
        if !is_billed && self.is_full() {
            writer.seq += 1;
            writer.trouble.dropped += 1;
            return;
        }
        writer.line.clear();
        let [before, behind] = &self.around_number;
        writer.line.extend_from_slice(before.as_bytes());
        write!(writer.line, "{}", writer.seq).expect("a Vec takes all");
        writer.line.extend_from_slice(behind.as_bytes());
        writer.line.extend_from_slice(rest);
        writer.seq += 1;
        writer.line.push(b'\n');
        if writer.sink.kind == SinkKind::Regular {
            let shared = &self.shared;
            let written = shared.disk.measure(|| writer.write_line(&shared.target));
            self.shared.note(writer, written);
        } else {
            writer.backlog.push(&writer.line);
            self.shared.wake.notify_one();
        }
        self.shared.publish(writer);
    }

    /// Tries to write what waits, and tells of what cannot be written, and of a file that is not there any more; to be called
    /// a few times a second.
    pub fn retry(&self) {
        let mut writer = self.shared.writer.lock();
        if writer.sink.kind == SinkKind::Regular {
            let shared = &self.shared;
            let written = (shared.disk).measure(|| writer.flush_waiting(&shared.target));
            shared.note(&mut writer, written);
        } else if writer.is_stalled() {
            self.shared.note_stall(&mut writer);
        }
        self.shared.publish(&writer);
    }

    /// Opens the target anew, after it was renamed. What waited goes to the new one.
    ///
    /// # Errors
    /// Where the new one cannot be opened. Lines wait until it can be; those for a reader go on to it.
    pub fn reopen(&self) -> io::Result<()> {
        if self.shared.writer.lock().sink.is_still(&self.shared.target) {
            return Ok(());
        }
        let shared = &self.shared;
        let opened = shared.disk.measure(|| Sink::open(&shared.target));
        let mut writer = self.shared.writer.lock();
        match opened {
            Ok(sink) => writer.exchange(sink),
            Err(why) => {
                writer.is_outdated = true;
                return Err(why);
            }
        }
        drop(writer);
        self.shared.clone().start_thread()?;
        self.shared.wake.notify_one();
        self.retry();
        Ok(())
    }

    /// How often writing failed since the start; a reader that stops counts once each time.
    pub fn errors(&self) -> u64 {
        self.shared.errors.load(Ordering::Relaxed)
    }

    /// Whether every line so far is in the log.
    pub fn is_written(&self) -> bool {
        self.shared.waiting_bytes.load(Ordering::Relaxed) == 0
    }

    /// Whether lines wait for longer than it takes to write them, or the next one would.
    pub fn is_stalled(&self) -> bool {
        let writer = self.shared.writer.try_lock_for(LOCK_WAIT);
        // Whoever has it for so long waits for its disk.
        writer.is_none_or(|writer| writer.is_stalled())
    }

    /// Why lines cannot be written, where that has been found.
    pub fn fault(&self) -> Option<String> {
        self.shared.writer.lock().trouble.why.clone()
    }

    /// How long the disk of a regular file has been waited for since the start, up to this moment.
    pub fn disk_time(&self) -> Duration {
        self.shared.disk.total()
    }

    /// Whether so much waits that a further request could not be accounted for.
    pub fn is_full(&self) -> bool {
        self.shared.waiting_bytes.load(Ordering::Relaxed) >= BACKLOG_BYTES
    }

    /// Writes what can be written before the process ends.
    ///
    /// # Errors
    /// What is lost: lines that could not be written or had no room, and those that a reader has left that is gone.
    pub fn finish(&self) -> io::Result<()> {
        let until = Instant::now() + FINISH_TIME;
        self.retry();
        while self.shared.is_being_written() && Instant::now() < until {
            std::thread::sleep(FINISH_LOOK);
        }
        let mut writer = self.shared.writer.lock();
        let lost = writer.backlog.waiting() + writer.lost_lines() + writer.trouble.dropped;
        if lost == 0 {
            return Ok(());
        }
        let lost = format!("the access log cannot be written, lines lost: {lost}");
        Err(io::Error::other(lost))
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.shared.writer.lock().closed = true;
        self.shared.wake.notify_one();
    }
}

impl Shared {
    /// Starts the thread that writes, where one is needed and there is none.
    fn start_thread(self: Arc<Self>) -> io::Result<()> {
        let mut writer = self.writer.lock();
        if writer.sink.kind == SinkKind::Regular || writer.has_thread {
            return Ok(());
        }
        let shared = self.clone();
        let thread = std::thread::Builder::new().name("access-log".to_owned());
        thread.spawn(move || while shared.write_next() {})?;
        writer.has_thread = true;
        Ok(())
    }

    /// Waits for a line and writes as much of it as the sink takes, as the thread does again and again. False: never more.
    fn write_next(&self) -> bool {
        let mut writer = self.writer.lock();
        while !writer.closed && !writer.has_work() {
            self.wake.wait(&mut writer);
        }
        let (opened, kind) = (writer.opened, writer.sink.kind);
        let (Some(next), false) = (writer.backlog.first().cloned(), writer.closed) else {
            return false;
        };
        let (file, taken) = (writer.sink.file.clone(), writer.backlog.taken);
        drop(writer);
        let Some(file) = file else {
            self.open_again(opened, kind);
            return true;
        };
        // Within the time after which another target may have been opened.
        await_writable(&file, RETRY_AFTER);
        let unread = Receiver::of(&file).map(|receiver| receiver.unread_bytes());
        let (count, written) = write_all(&file, &next.bytes[taken..]);
        let mut writer = self.writer.lock();
        // What went to an old target goes to the new one as a whole.
        if writer.opened == opened && writer.sink.kind != SinkKind::Regular {
            if let Some(unread) = unread.filter(|_| count > 0) {
                // Its reader was still there when this was taken, so what did not wait by then was read.
                writer.backlog.forget_read(unread);
            }
            self.take_result(&mut writer, &next, count, written, unread.is_some());
            self.publish(&writer);
        }
        true
    }

    /// So much of the first line has been written by the thread. `is_read`: it went to somebody who is still to read it.
    fn take_result(
        &self,
        writer: &mut MutexGuard<'_, Writer>,
        next: &Line,
        count: usize,
        written: io::Result<()>,
        is_read: bool,
    ) {
        writer.backlog.taken += count;
        if writer.backlog.taken == next.bytes.len() {
            writer.backlog.pop(is_read);
            self.note(writer, Ok(()));
        }
        match written {
            Err(why) if why.kind() != io::ErrorKind::WouldBlock => {
                if !writer.keeps_for_the_next_reader() {
                    writer.take_back_unread();
                }
                if writer.sink.kind == SinkKind::Socket {
                    // A line that the old connection got in part is to be whole on the new one.
                    writer.sink.file = None;
                    writer.backlog.taken = 0;
                }
                self.note(writer, Err(why));
                if writer.sink.has_new_fifo(&self.target)
                    && let Ok(sink) = Sink::open(&self.target)
                {
                    writer.exchange(sink);
                } else {
                    self.wake.wait_for(writer, RETRY_AFTER);
                }
            }
            _ => {}
        }
    }

    /// Looks whether somebody is at the other end by now.
    fn open_again(&self, opened: u64, kind: SinkKind) {
        let file = Sink::open_again(&self.target, kind);
        let mut writer = self.writer.lock();
        if writer.opened != opened {
            return;
        }
        match file {
            Ok(file) => writer.sink.file = Some(Arc::new(file)),
            Err(_) => {
                self.wake.wait_for(&mut writer, RETRY_AFTER);
            }
        }
    }

    /// Whether waiting may help: lines go to a reader that has not been found to have stopped.
    fn is_being_written(&self) -> bool {
        let writer = self.writer.lock();
        writer.has_work() && writer.sink.file.is_some()
    }

    /// Counts failures and tells of the first of a run, and of the end of the run.
    fn note(&self, writer: &mut Writer, written: io::Result<()>) {
        let waiting = writer.backlog.waiting();
        let trouble = &mut writer.trouble;
        trouble.most_waiting = trouble.most_waiting.max(waiting);
        match written {
            Err(why) => {
                self.errors.fetch_add(1, Ordering::Relaxed);
                if trouble.why.is_none() {
                    log::error!(
                        "the access log cannot be written, its lines wait in memory: {why}"
                    );
                }
                trouble.why = Some(why.to_string());
            }
            Ok(()) if waiting == 0 => {
                if trouble.why.is_some() || trouble.dropped > 0 {
                    let most = trouble.most_waiting;
                    let lost = match trouble.dropped {
                        0 => "none is lost".to_owned(),
                        dropped => format!("lines of refused requests are lost: {dropped}"),
                    };
                    log::warn!(
                        "the access log is written again; up to {most} lines had to wait, and {lost}"
                    );
                }
                *trouble = Trouble::default();
            }
            Ok(()) => {}
        }
    }

    /// A reader has stopped, or there is none.
    fn note_stall(&self, writer: &mut Writer) {
        if writer.trouble.why.is_none() {
            let why = if writer.sink.file.is_some() {
                "its reader does not read"
            } else {
                "nobody reads it"
            };
            self.note(writer, Err(io::Error::other(why)));
        }
    }

    fn publish(&self, writer: &Writer) {
        let bytes = writer.backlog.waiting_bytes() as u64;
        self.waiting_bytes.store(bytes, Ordering::Relaxed);
    }
}

impl Writer {
    fn new(sink: Sink) -> Self {
        Self {
            sink,
            is_outdated: false,
            opened: 0,
            seq: 0,
            line: Vec::new(),
            backlog: Backlog::default(),
            has_thread: false,
            closed: false,
            trouble: Trouble::default(),
        }
    }

    /// Whether the thread has something to write.
    fn has_work(&self) -> bool {
        self.sink.kind != SinkKind::Regular && self.backlog.first().is_some()
    }

    fn is_stalled(&self) -> bool {
        if self.sink.kind == SinkKind::Regular {
            return self.trouble.why.is_some();
        }
        self.backlog.has_waited(STALLED_AFTER)
    }

    /// Writes `self.line` to a regular file, behind all that waits.
    fn write_line(&mut self, target: &LogTarget) -> io::Result<()> {
        if self.backlog.first().is_some() {
            self.backlog.push(&self.line);
            return self.flush_waiting(target);
        }
        let file = match self.file(target) {
            Ok(file) => file,
            Err(why) => {
                self.backlog.push(&self.line);
                return Err(why);
            }
        };
        let (taken, result) = write_all(&file, &self.line);
        if result.is_err() {
            self.backlog.push(&self.line);
            self.keep_taken(&file, taken);
        }
        result
    }

    /// Writes what waits to a regular file.
    fn flush_waiting(&mut self, target: &LogTarget) -> io::Result<()> {
        let file = self.file(target)?;
        while let Some(first) = self.backlog.first() {
            let (taken, result) = write_all(&file, &first.bytes[self.backlog.taken..]);
            if result.is_err() {
                self.keep_taken(&file, taken);
                return result;
            }
            self.backlog.pop(false);
        }
        Ok(())
    }

    fn keeps_for_the_next_reader(&self) -> bool {
        let receiver = self.sink.receiver();
        receiver.is_some_and(|receiver| receiver.keeps_for_the_next())
    }

    /// The pipe or socket is given up: what its reader may have left is to be written again.
    fn take_back_unread(&mut self) {
        self.forget_what_is_known_as_read();
        let receiver = self.sink.receiver();
        let may_be_lost = receiver.is_some_and(|receiver| receiver.may_have_left_some());
        let unread = self.backlog.unread();
        if unread == 0 || !may_be_lost {
            return self.backlog.forget_unread();
        }
        log::warn!(
            "the reader of the access log is gone; the last lines, which it may not have read, are written again: {unread}"
        );
        self.backlog.take_back_unread();
    }

    /// Lines that a reader has left that is gone.
    fn lost_lines(&mut self) -> usize {
        self.forget_what_is_known_as_read();
        let receiver = self.sink.receiver();
        let has_left_some = receiver.is_some_and(|receiver| receiver.has_left_some());
        if has_left_some {
            self.backlog.unread()
        } else {
            0
        }
    }

    /// A pipe tells what was read also when its reader is gone.
    fn forget_what_is_known_as_read(&mut self) {
        if let Some(receiver) = self.sink.receiver()
            && receiver.keeps_for_the_next()
        {
            let unread = receiver.unread_bytes();
            self.backlog.forget_read(unread);
        }
    }

    /// The file has taken so much more of a line, and no more. A full file system may do that.
    fn keep_taken(&mut self, file: &File, taken: usize) {
        if taken > 0 && take_back(file, taken).is_err() {
            self.backlog.taken += taken;
        }
    }

    /// The regular file that is the log: a new one by its path where the open one was deleted.
    fn file(&mut self, target: &LogTarget) -> io::Result<Arc<File>> {
        let is_deleted = self.sink.is_deleted()?;
        if is_deleted || self.is_outdated {
            self.is_outdated = true;
            let sink = Sink::open(target)?;
            if sink.kind != SinkKind::Regular {
                let message = "it is no regular file any more; SIGUSR1 opens it";
                return Err(io::Error::other(message));
            }
            self.exchange(sink);
            if is_deleted {
                log::warn!("the access log was deleted, and a new file is opened in its place");
            }
        }
        let file = self.sink.file.clone();
        file.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Goes on with a target that was opened just now.
    fn exchange(&mut self, sink: Sink) {
        self.take_back_unread();
        self.sink = sink;
        self.is_outdated = false;
        self.opened += 1;
        // A line that the old one got in part is to be whole in the new one.
        self.backlog.taken = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::{UnixDatagram, UnixListener};
    use std::path::Path;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    fn open(path: &Path) -> AccessLog {
        open_target(LogTarget::File(path.to_owned()))
    }

    fn open_target(target: LogTarget) -> AccessLog {
        let format = LogFormat::Json;
        AccessLog::open(LogSettings { target, format }).unwrap()
    }

    fn append(log: &AccessLog, numbers: std::ops::Range<u64>) {
        for number in numbers {
            log.append_line(format!(r#""a":{number}}}"#).as_bytes(), true);
        }
    }

    fn number_of(line: &str) -> u64 {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["a"].as_u64().unwrap()
    }

    fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
        let until = Instant::now() + Duration::from_secs(10);
        while !is_so() {
            assert!(Instant::now() < until, "not in time: {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn fifo(folder: &Path) -> std::path::PathBuf {
        let path = folder.join("fifo");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        path
    }

    #[test]
    fn lines_are_numbered_and_appended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        fs::write(&path, "{\"half\":").unwrap();
        let log = open(&path);
        append(&log, 1..3);
        let text = fs::read_to_string(&path).unwrap();
        let own: Vec<serde_json::Value> = text
            .lines()
            .skip(1)
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!((&own[0]["seq"], &own[0]["a"]), (&0.into(), &1.into()));
        assert_eq!((&own[1]["seq"], &own[1]["a"]), (&1.into(), &2.into()));
        assert_eq!(own[0]["instance"], own[1]["instance"]);
    }

    #[test]
    fn what_a_full_device_refuses_waits_in_order_for_the_next_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let log = open(&path);
        append(&log, 0..3);
        eventually("a failed write", || log.errors() >= 1);
        assert!(!log.is_written());
        fs::remove_file(&path).unwrap();
        log.reopen().unwrap();
        assert!(log.is_written());
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().map(number_of).collect::<Vec<_>>(), [0, 1, 2]);
    }

    /// Somebody who has the pipe open to read it: for both, so that opening it waits for nobody.
    fn reader(path: &Path) -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap()
    }

    #[test]
    fn a_fifo_gets_its_lines_once_somebody_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(folder.path());
        let log = open(&path);
        append(&log, 0..3);
        assert!(!log.is_written());
        let mut lines = BufReader::new(File::open(&path).unwrap()).lines();
        for expected in 0..3 {
            assert_eq!(number_of(&lines.next().unwrap().unwrap()), expected);
        }
        eventually("all written", || log.is_written());
        log.finish().unwrap();
    }

    #[test]
    fn a_reader_that_stops_holds_up_nobody_and_loses_nothing() {
        const LINES: u64 = 20_000;
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(folder.path());
        let reader = reader(&path);
        let log = open(&path);
        append(&log, 0..LINES);
        assert!(!log.is_written());
        eventually("it is told of", || {
            log.retry();
            log.is_stalled() && log.errors() == 1
        });
        assert!(log.finish().is_err());
        let mut lines = BufReader::new(reader).lines();
        for expected in 0..LINES {
            assert_eq!(number_of(&lines.next().unwrap().unwrap()), expected);
        }
        eventually("all written", || log.is_written());
        assert!(!log.is_stalled());
    }

    #[test]
    fn what_a_pipe_holds_that_nobody_reads_is_told_of_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(folder.path());
        let reader = reader(&path);
        let log = open(&path);
        append(&log, 0..1);
        eventually("all written", || log.is_written());
        log.finish().unwrap();
        drop(reader);
        let lost = log.finish().unwrap_err().to_string();
        assert!(lost.contains("lines lost: 1"), "{lost}");
    }

    #[test]
    fn a_reader_that_comes_back_gets_what_its_predecessor_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(folder.path());
        let first = reader(&path);
        let log = open(&path);
        append(&log, 0..1);
        eventually("all written", || log.is_written());
        drop(first);
        append(&log, 1..3);
        eventually("a failed write", || log.errors() > 0);
        let mut lines = BufReader::new(File::open(&path).unwrap()).lines();
        for expected in 0..3 {
            assert_eq!(number_of(&lines.next().unwrap().unwrap()), expected);
        }
    }

    #[test]
    fn a_socket_is_connected_to_again_and_gets_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let log = open(&path);
        append(&log, 0..1);
        let mut lines = BufReader::new(listener.accept().unwrap().0).lines();
        assert_eq!(number_of(&lines.next().unwrap().unwrap()), 0);
        drop((listener, lines));
        append(&log, 1..2);
        eventually("a failed write", || log.errors() > 0);
        fs::remove_file(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        let mut lines = BufReader::new(listener.accept().unwrap().0).lines();
        assert_eq!(number_of(&lines.next().unwrap().unwrap()), 1);
    }

    #[test]
    fn a_socket_may_come_later_than_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let log = open_target(LogTarget::Socket(path.clone()));
        append(&log, 0..2);
        let listener = UnixListener::bind(&path).unwrap();
        let mut lines = BufReader::new(listener.accept().unwrap().0).lines();
        for expected in 0..2 {
            assert_eq!(number_of(&lines.next().unwrap().unwrap()), expected);
        }
    }

    #[test]
    fn a_socket_of_datagrams_gets_a_line_in_each() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        let log = open(&path);
        append(&log, 0..2);
        for expected in 0..2 {
            let mut datagram = [0; 4096];
            let length = socket.recv(&mut datagram).unwrap();
            let line = std::str::from_utf8(&datagram[..length]).unwrap();
            assert_eq!(number_of(line), expected);
        }
    }

    fn numbers(lines: impl BufRead) -> Vec<u64> {
        let lines = lines.lines().map_while(Result::ok);
        lines.map(|line| number_of(&line)).collect()
    }

    #[test]
    fn what_the_reader_of_a_socket_had_not_read_is_sent_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let log = open(&path);
        append(&log, 0..1);
        let mut first = listener.accept().unwrap().0;
        let mut lines = BufReader::new(&mut first);
        lines.read_line(&mut String::new()).unwrap();
        // It leaves these.
        append(&log, 1..20);
        eventually("all written", || log.is_written());
        drop(first);
        assert!(log.finish().unwrap_err().to_string().contains("lost: 19"));
        append(&log, 20..21);
        let second = listener.accept().unwrap().0;
        eventually("all written again", || log.is_written());
        drop(log);
        assert_eq!(numbers(BufReader::new(second)), Vec::from_iter(1..21));
    }

    #[test]
    fn what_the_reader_of_a_socket_has_read_is_not_sent_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let log = open(&path);
        for round in 0..3 {
            append(&log, round * 10..(round + 1) * 10);
            let mut lines = BufReader::new(listener.accept().unwrap().0).lines();
            for expected in round * 10..(round + 1) * 10 {
                assert_eq!(number_of(&lines.next().unwrap().unwrap()), expected);
            }
        }
        eventually("all written", || log.is_written());
        log.finish().unwrap();
    }

    #[test]
    fn datagrams_that_nobody_read_are_sent_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let first = UnixDatagram::bind(&path).unwrap();
        let log = open(&path);
        append(&log, 0..3);
        eventually("all written", || log.is_written());
        drop(first);
        fs::remove_file(&path).unwrap();
        let second = UnixDatagram::bind(&path).unwrap();
        append(&log, 3..4);
        for expected in 0..4 {
            let mut datagram = [0; 4096];
            let length = second.recv(&mut datagram).unwrap();
            let line = std::str::from_utf8(&datagram[..length]).unwrap();
            assert_eq!(number_of(line), expected);
        }
    }

    #[test]
    fn a_fifo_that_is_opened_anew_keeps_what_it_holds_and_what_is_under_way() {
        const LINES: u64 = 5_000;
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(folder.path());
        let first = reader(&path);
        let log = open(&path);
        append(&log, 0..LINES);
        eventually("a stall", || {
            log.retry();
            log.is_stalled()
        });
        log.reopen().unwrap();
        drop(first);
        log.reopen().unwrap();
        let mut lines = BufReader::new(File::open(&path).unwrap()).lines();
        for expected in 0..LINES {
            assert_eq!(number_of(&lines.next().unwrap().unwrap()), expected);
        }
    }

    #[test]
    fn a_fifo_that_its_reader_makes_anew_gets_what_the_old_one_held() {
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(folder.path());
        let first = reader(&path);
        let log = open(&path);
        append(&log, 0..5);
        eventually("all written", || log.is_written());
        let mut read = String::new();
        let mut lines = BufReader::with_capacity(1, first);
        lines.read_line(&mut read).unwrap();
        drop(lines);
        fs::remove_file(&path).unwrap();
        append(&log, 5..6);
        eventually("a failed write", || log.errors() > 0);
        fifo(folder.path());
        let mut lines = BufReader::new(File::open(&path).unwrap()).lines();
        for expected in 1..6 {
            assert_eq!(number_of(&lines.next().unwrap().unwrap()), expected);
        }
    }

    #[test]
    fn what_waits_is_bounded_but_for_what_is_billed() {
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(folder.path());
        let log = open(&path);
        let long = format!(r#""a":0,"b":"{}"}}"#, "b".repeat(1 << 20));
        for _ in 0..80 {
            log.append_line(long.as_bytes(), false);
        }
        let waiting = || log.shared.writer.lock().backlog.waiting();
        assert!(log.is_full());
        assert_eq!(waiting(), 64);
        append(&log, 1..3);
        assert_eq!(waiting(), 66);
        let lost = log.finish().unwrap_err().to_string();
        assert!(lost.contains("lines lost: 82"), "{lost}");
        assert!(log.shared.writer.lock().seq == 82);
    }
}
