//! Files that are watched while the proxy runs: the policy, the prices, the upstreams' keys, certificates. A change is seen
//! whatever way the file is saved, waited out until its writer has closed it, and read as a whole.
//!
//! That a file has changed is seen by looking at it (`stat`), which works for renames, for symlinks swapped far up the path
//! and for file systems that tell nothing. Whether it is whole is told by the kernel where it can be (see [`writers`] and
//! [`file_events`]); else a file counts as whole once it has settled.

mod file_events;
mod hot_reloaded;
mod load_faults;
mod writers;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::setpriority_process;
use rustix::thread::gettid;
use tokio::sync::oneshot;

use crate::config::secret_file::FileBytes;
use crate::config::watch::file_events::{FileEvent, FileEvents, WatchedPath};
use crate::config::watch::writers::has_writer;

pub use crate::config::watch::hot_reloaded::{HotReloaded, Load, LoadStatus, Review};
pub use crate::config::watch::load_faults::LoadFaults;

/// How often the files are looked at where the kernel tells of their changes, and tells of none.
const POLL_EVERY: Duration = Duration::from_millis(200);
/// The same where it does not, and while a file is changing.
const POLL_OFTEN: Duration = Duration::from_millis(25);
/// A file that has not changed for this long is taken as whole, where nobody is known to write to it.
const SETTLED_AFTER: Duration = Duration::from_millis(100);
/// A file that never settles is taken after this all the same.
const MAX_SETTLE_TIME: Duration = Duration::from_secs(1);
/// A file that could not be read for a reason that may pass is read again after this.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// How much more willing than others the reload thread is to wait. With 100,000 keys exchanged on the one busy core that
/// serves, more makes the reload slower and requests no faster.
const NICE: i32 = 5;
/// A writer that has not closed the file for this long is told of. A start waits for it for so long, and SIGHUP as long as it
/// has written within this time.
const LONG_WRITE: Duration = Duration::from_secs(10);

/// A file and what to do when there is something new to read.
pub struct FileWatcher {
    file: WatchedFile,
    load: Box<dyn FnMut(FileRead) -> Result<(), String> + Send>,
}

/// What a watched file holds by now.
pub struct FileRead {
    /// The bytes of the file, or why it could not be read.
    pub content: io::Result<FileBytes>,
    /// Somebody has asked for it, by SIGHUP; else the file was seen to change.
    pub requested: bool,
}

/// Looks at a file until it holds something whole that was not read yet. It is to be made before the file is first read, so
/// that no change falls between the two.
pub struct WatchedFile {
    path: PathBuf,
    read: Fingerprint,
    seen: Fingerprint,
    /// When the file was first and last seen to change since it was read.
    changing: Option<(Instant, Instant)>,
    watches: Watches,
    /// The long write that goes on has been told of.
    told: bool,
    /// SIGHUP asked for it while it was being written.
    requested: bool,
    /// It could not be read the last time, for a reason that may pass.
    fails: bool,
}

/// Where the kernel tells of the file, and whether somebody writes to it by what it has told.
#[derive(Default)]
struct Watches {
    /// Device and inode that `file` is for; none where something has come or gone by the file's name since, which may have the
    /// same.
    inode: Option<(u64, u64)>,
    file: Option<i32>,
    /// The folder that the file is in, behind all symlinks.
    folder: Option<(i32, PathBuf)>,
    name: OsString,
    file_is_written: bool,
    name_is_written: bool,
}

/// What tells one state of a file from another; none while there is no such file. The change time cannot be set by a
/// program, so it tells even a file that was put back with its old times.
type Fingerprint = Option<(u64, u64, u64, i64, i64, i64, i64)>;

/// Whoever asks for a reload is told here when it is done, with what could not be loaded, a text for each file.
pub type Reloaded = oneshot::Sender<Vec<String>>;

/// Has the kernel run this thread behind those that serve requests: in Linux `setpriority(2)` is about a thread.
fn let_requests_go_first() {
    if let Err(why) = setpriority_process(Some(gettid()), NICE) {
        log::debug!("the reload thread has the priority of all others: {why}");
    }
}

/// Watches the files until the other end of `reload_now` is dropped. A message on it has all of them read at once.
pub fn follow(mut watchers: Vec<FileWatcher>, reload_now: &Receiver<Reloaded>) {
    let_requests_go_first();
    let events = FileEvents::new();
    loop {
        if let Some(events) = &events {
            dispatch(events, &mut watchers);
        }
        watchers.iter_mut().for_each(FileWatcher::poll);
        let is_changing = watchers
            .iter()
            .any(|watcher| watcher.file.changing.is_some());
        let asked = match &events {
            Some(events) => {
                events.wait(if is_changing { POLL_OFTEN } else { POLL_EVERY });
                reload_now.recv_timeout(Duration::ZERO)
            }
            None => reload_now.recv_timeout(POLL_OFTEN),
        };
        match asked {
            Ok(done) => {
                if let Some(events) = &events {
                    dispatch(events, &mut watchers);
                }
                let results = watchers.iter_mut().map(FileWatcher::load_now);
                let mut failures: Vec<String> = results.filter_map(Result::err).collect();
                // A certificate and its key are two files and one failure.
                failures.dedup();
                // Whoever asked may have gone.
                let _ = done.send(failures);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Has each file know what the kernel tells of it, and be told of in the future.
fn dispatch(events: &FileEvents, watchers: &mut [FileWatcher]) {
    let folder_of = |watch| {
        let mut folders = watchers
            .iter()
            .filter_map(|watcher| watcher.file.watches.folder.as_ref());
        let found = folders.find(|(number, _)| *number == watch);
        found.map(|(_, path)| path.clone())
    };
    let now = Instant::now();
    for event in events.read(folder_of) {
        for watcher in &mut *watchers {
            watcher.file.note(&event, now);
        }
    }
    for watcher in watchers {
        watcher.file.watch_by(events);
    }
}

impl FileWatcher {
    /// `load` takes what the file holds, and says in the process's log how that went; its error is for whoever has asked for a
    /// reload.
    pub fn new(
        file: WatchedFile,
        load: impl FnMut(FileRead) -> Result<(), String> + Send + 'static,
    ) -> Self {
        Self {
            file,
            load: Box::new(load),
        }
    }

    fn poll(&mut self) {
        let requested = self.file.requested;
        if let Some(content) = self.file.poll(Instant::now()) {
            // Whoever has asked has been told to wait.
            let _ = (self.load)(FileRead { content, requested });
        }
    }

    fn load_now(&mut self) -> Result<(), String> {
        self.file.request(Instant::now())?;
        let content = self.file.read();
        (self.load)(FileRead {
            content,
            requested: true,
        })
    }
}

impl WatchedFile {
    /// Watches the file at this path from its present state on.
    pub fn new(path: &Path) -> Self {
        let now = fingerprint(path);
        Self {
            path: path.to_owned(),
            read: now,
            seen: now,
            changing: None,
            watches: Watches::default(),
            told: false,
            requested: false,
            fails: false,
        }
    }

    /// What the file holds at a start, once nobody writes to it.
    ///
    /// # Errors
    /// Those of reading it, and `ResourceBusy` where its writer does not close it in time.
    pub fn read_first(&mut self) -> io::Result<FileBytes> {
        let until = Instant::now() + LONG_WRITE;
        while has_writer(&self.path) == Some(true) {
            if Instant::now() >= until {
                let why = format!("another process has it open to write to it, for {LONG_WRITE:?}");
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
            }
            std::thread::sleep(POLL_OFTEN);
        }
        self.read()
    }

    /// The file is asked for.
    ///
    /// # Errors
    /// Where it is being written: it is read when its writer has closed it. One that goes on and on without writing is not
    /// waited for.
    fn request(&mut self, now: Instant) -> Result<(), String> {
        let changed = fs::metadata(&self.path).and_then(|found| found.modified());
        let age = changed.ok().and_then(|time| time.elapsed().ok());
        if age.is_none_or(|age| age >= LONG_WRITE) || !self.is_being_written() {
            return Ok(());
        }
        self.requested = true;
        self.changing.get_or_insert((now, now));
        let path = self.path.display();
        let why = format!("{path} is being written, and is read when its writer has closed it");
        log::warn!("{why}");
        Err(why)
    }

    fn is_being_written(&self) -> bool {
        has_writer(&self.path).unwrap_or_else(|| self.watches.is_written())
    }

    /// Has the kernel tell of the file that the path leads to by now.
    fn watch_by(&mut self, events: &FileEvents) {
        let inode = fs::metadata(&self.path).ok();
        let inode = inode.map(|found| (found.dev(), found.ino()));
        // One that could not be read may be told of by now.
        let is_other = inode != self.watches.inode || self.watches.file.is_none();
        if inode.is_some() && is_other {
            self.watches.follow(events, &self.path, inode);
        }
    }

    /// The kernel tells of a file, which may be this one.
    fn note(&mut self, event: &FileEvent, now: Instant) {
        let was_written = self.watches.is_written();
        self.watches.note(event);
        if was_written && !self.watches.is_written() {
            self.told = false;
            // It is to settle from now on, however long it took to write it.
            if let Some((first, last)) = &mut self.changing {
                *last = now;
                if now.duration_since(*first) >= MAX_SETTLE_TIME {
                    *first = now;
                }
            }
        }
    }

    /// What the file holds, where that is new and whole.
    fn poll(&mut self, now: Instant) -> Option<io::Result<FileBytes>> {
        let found = fingerprint(&self.path);
        if found != self.seen {
            self.seen = found;
            let first = self.changing.map_or(now, |(first, _)| first);
            self.changing = Some((first, now));
        }
        let (first, last) = self.changing?;
        if self.is_being_written() {
            self.tell_of_long_write(now.duration_since(first));
            return None;
        }
        let is_late = now.duration_since(first) >= MAX_SETTLE_TIME;
        if now.duration_since(last) < SETTLED_AFTER && !is_late {
            return None;
        }
        let requested = self.requested;
        let content = self.read();
        // Bytes that were written while the file was read do not belong together: it is read again when they settle.
        let is_torn = fingerprint(&self.path) != self.read;
        if is_torn && !is_late {
            self.changing = Some((first, now));
            self.requested = requested;
            return None;
        }
        let fails = content.as_ref().is_err_and(may_pass);
        let fails_again = std::mem::replace(&mut self.fails, fails) && fails;
        (!fails_again).then_some(content)
    }

    fn tell_of_long_write(&mut self, time: Duration) {
        if time >= LONG_WRITE && !self.told {
            self.told = true;
            log::warn!(
                "{} is being written for {LONG_WRITE:?} and is read when its writer closes it, or at a SIGHUP after {LONG_WRITE:?} without a change",
                self.path.display()
            );
        }
    }

    fn read(&mut self) -> io::Result<FileBytes> {
        self.read = fingerprint(&self.path);
        self.seen = self.read;
        self.changing = None;
        self.requested = false;
        let content = FileBytes::read(&self.path);
        if content.as_ref().is_err_and(may_pass) {
            // Nothing will be seen of it when it does.
            let later = Instant::now() + READ_AGAIN;
            self.changing = Some((later, later));
        }
        content
    }
}

impl Watches {
    fn is_written(&self) -> bool {
        self.file_is_written || self.name_is_written
    }

    /// Another file stands at the path than the one that is watched.
    fn follow(&mut self, events: &FileEvents, path: &Path, inode: Option<(u64, u64)>) {
        self.inode = inode;
        let file = events.watch_file(path);
        if file != self.file {
            self.file = file;
            self.file_is_written = false;
        }
        let real = fs::canonicalize(path).ok();
        let folder = real.as_deref().and_then(Path::parent);
        let name = real.as_deref().and_then(Path::file_name);
        let (Some(folder), Some(name)) = (folder, name) else {
            return;
        };
        // The same folder has the same watch, and another one that has taken its path has another.
        let watch = events.watch_folder(folder);
        let is_same = self.folder.as_ref().map(|(old, _)| *old) == watch;
        self.folder = watch.map(|watch| (watch, folder.to_owned()));
        if !is_same || self.name != name {
            self.name = name.to_owned();
            self.name_is_written = false;
        }
    }

    fn note(&mut self, event: &FileEvent) {
        let (place, is_written) = match event {
            FileEvent::Written(place) => (place, true),
            FileEvent::Whole(place) => (place, false),
            FileEvent::Missed => {
                self.file_is_written = false;
                self.name_is_written = false;
                return;
            }
        };
        let folder = self.folder.as_ref().map(|(watch, _)| *watch);
        match place {
            WatchedPath::File(watch) if self.file == Some(*watch) => {
                self.file_is_written = is_written
            }
            WatchedPath::Name(watch, name) if folder == Some(*watch) && *name == self.name => {
                self.inode = None;
                self.name_is_written = is_written;
                if !is_written {
                    // Something else may stand there, and the writer of what stood there counts no longer.
                    self.file_is_written = false;
                }
            }
            _ => {}
        }
    }
}

/// Whether a file may be read some other time without a change of its own: descriptors are wanting, or its server is away.
fn may_pass(why: &io::Error) -> bool {
    const PASSING: [Errno; 7] = [
        Errno::AGAIN,
        Errno::IO,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOMEM,
        Errno::STALE,
        Errno::TIMEDOUT,
    ];
    Errno::from_io_error(why).is_some_and(|why| PASSING.contains(&why))
}

fn fingerprint(path: &Path) -> Fingerprint {
    let found = fs::metadata(path).ok()?;
    Some((
        found.dev(),
        found.ino(),
        found.size(),
        found.mtime(),
        found.mtime_nsec(),
        found.ctime(),
        found.ctime_nsec(),
    ))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const TICK: Duration = Duration::from_millis(10);

    /// The time after `start` at which the file is read, if it is within ten seconds of looking at it again and again.
    fn read_after(file: &mut WatchedFile, start: Instant) -> Option<Duration> {
        let mut ticks = (0..1000).map(|tick| TICK * tick);
        ticks.find(|time| file.poll(start + *time).is_some())
    }

    #[test]
    fn a_file_of_which_nothing_is_told_is_read_when_it_has_settled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "a").unwrap();
        let mut file = WatchedFile::new(&path);
        let start = Instant::now();
        assert_eq!(read_after(&mut file, start), None);
        fs::write(&path, "ab").unwrap();
        assert_eq!(read_after(&mut file, start), Some(SETTLED_AFTER));
    }

    #[test]
    fn a_file_that_cannot_be_read_for_now_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        // It is there, and cannot be read from its beginning (EIO).
        std::os::unix::fs::symlink("/proc/self/mem", &path).unwrap();
        let mut file = WatchedFile::new(&path);
        let start = Instant::now();
        assert!(file.read().is_err());
        assert!(read_after(&mut file, start).is_some_and(|time| time >= READ_AGAIN));
        fs::remove_file(&path).unwrap();
        assert!(file.read().is_err());
        assert_eq!(read_after(&mut file, start), None);
    }

    #[test]
    fn a_start_waits_until_the_file_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut writer = fs::File::create(&path).unwrap();
        writer.write_all(b"ha").unwrap();
        let mut file = WatchedFile::new(&path);
        let first = std::thread::scope(|scope| {
            let first = scope.spawn(|| file.read_first().unwrap());
            std::thread::sleep(Duration::from_millis(100));
            writer.write_all(b"lf").unwrap();
            drop(writer);
            first.join().unwrap()
        });
        assert_eq!(&first[..], b"half");
    }

    #[test]
    fn a_file_that_goes_on_changing_is_read_all_the_same_where_nothing_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut file = WatchedFile::new(&path);
        let start = Instant::now();
        let read_at = (1..1000).find(|tick| {
            fs::write(&path, "a".repeat(*tick as usize)).unwrap();
            file.poll(start + TICK * *tick).is_some()
        });
        assert_eq!(
            read_at.map(|tick| TICK * tick),
            Some(MAX_SETTLE_TIME + TICK)
        );
    }

    #[test]
    fn a_file_is_not_read_before_its_writer_has_closed_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "a").unwrap();
        let mut file = WatchedFile::new(&path);
        let events = FileEvents::new().unwrap();
        file.watch_by(&events);
        let notice = |file: &mut WatchedFile, now| {
            let happened = events.read(|_| Some(folder.path().to_owned()));
            happened.iter().for_each(|event| file.note(event, now));
        };
        let start = Instant::now();
        let writer = fs::File::create(&path).unwrap();
        notice(&mut file, start);
        assert_eq!(read_after(&mut file, start), None);
        drop(writer);
        let closed = start + Duration::from_secs(20);
        notice(&mut file, closed);
        assert_eq!(read_after(&mut file, closed), Some(SETTLED_AFTER));
        // A link comes without a writer, and another file by its name with one.
        fs::remove_file(&path).unwrap();
        fs::write(folder.path().join("other"), "c").unwrap();
        fs::hard_link(folder.path().join("other"), &path).unwrap();
        notice(&mut file, closed);
        assert!(!file.watches.is_written());
        fs::remove_file(&path).unwrap();
        let writer = fs::File::create(&path).unwrap();
        notice(&mut file, closed);
        assert!(file.watches.is_written());
        // What was not told may have been its end.
        file.note(&FileEvent::Missed, closed);
        assert!(!file.watches.is_written());
        drop(writer);
    }

    #[test]
    fn a_writer_is_known_of_a_file_that_has_the_number_of_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "a").unwrap();
        let mut watchers = [FileWatcher::new(WatchedFile::new(&path), |_| Ok(()))];
        let events = FileEvents::new().unwrap();
        dispatch(&events, &mut watchers);
        // On ext4 it mostly has.
        for _ in 0..20 {
            fs::remove_file(&path).unwrap();
            fs::write(&path, "b").unwrap();
            dispatch(&events, &mut watchers);
            let mut writer = fs::File::create(&path).unwrap();
            writer.write_all(b"c").unwrap();
            dispatch(&events, &mut watchers);
            assert!(watchers[0].file.watches.is_written());
            drop(writer);
            dispatch(&events, &mut watchers);
            assert!(!watchers[0].file.watches.is_written());
        }
    }
}
