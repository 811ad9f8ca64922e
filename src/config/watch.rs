//! Files that are followed while the proxy runs: the policy, the prices, the upstreams' keys. A change is seen whatever
//! way the file is saved, waited out until it has settled, and read as a whole.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::oneshot;

use crate::config::Mistake;
use crate::config::cooperative;
use crate::config::secret_file::FileBytes;

/// How often the files are looked at. A look is one `stat`, so that renames, symlinks swapped far up the path and file
/// systems that send no events are all seen alike.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// A file that has not changed for this long is taken as whole.
const SETTLED_AFTER: Duration = Duration::from_millis(100);
/// A file that never settles is taken after this all the same.
const PATIENCE: Duration = Duration::from_secs(1);

/// A file and what to do with its new content, or with the reason why there is none.
pub struct FileWatcher {
    watch: WatchedFile,
    load: Box<dyn FnMut(io::Result<FileBytes>) + Send>,
}

/// Looks at a file until it has settled on something that was not read yet. It is to be made before the file is first
/// read, so that no change falls between the two.
pub struct WatchedFile {
    path: PathBuf,
    read: Fingerprint,
    seen: Fingerprint,
    /// When the file was first and last seen to change since it was read.
    changing: Option<(Instant, Instant)>,
}

/// What tells one state of a file from another; none while there is no such file. The change time cannot be set by a
/// program, so it tells even a file that was put back with its old times.
type Fingerprint = Option<(u64, u64, u64, i64, i64, i64, i64)>;

/// The value that a followed file last gave, and how reading it went.
pub struct HotReloaded<T> {
    current: ArcSwap<T>,
    last: Mutex<LoadStatus>,
    succeeded: AtomicU64,
    failed: AtomicU64,
}

#[derive(Clone, Debug)]
pub struct LoadStatus {
    pub loaded_at: SystemTime,
    /// Of the newest attempt, one to a line; empty when it succeeded.
    pub mistakes: Vec<String>,
}

impl FileWatcher {
    pub fn new(
        watch: WatchedFile,
        load: impl FnMut(io::Result<FileBytes>) + Send + 'static,
    ) -> Self {
        Self {
            watch,
            load: Box::new(load),
        }
    }

    fn poll(&mut self) {
        if let Some(content) = self.watch.poll(Instant::now()) {
            (self.load)(content);
        }
    }

    fn load_now(&mut self) {
        let content = self.watch.read();
        (self.load)(content);
    }
}

/// Whoever asks for a reload is told here when it is done.
pub type Reloaded = oneshot::Sender<()>;

/// Follows the files until the other end of `reload_now` is dropped. A message on it has all of them read at once.
pub fn follow(mut followers: Vec<FileWatcher>, reload_now: &Receiver<Reloaded>) {
    cooperative::enter();
    loop {
        match reload_now.recv_timeout(LOOK_EVERY) {
            Ok(done) => {
                followers.iter_mut().for_each(FileWatcher::load_now);
                // Whoever asked may have gone.
                let _ = done.send(());
            }
            Err(RecvTimeoutError::Timeout) => followers.iter_mut().for_each(FileWatcher::poll),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

impl WatchedFile {
    pub fn new(path: &Path) -> Self {
        let now = fingerprint(path);
        Self {
            path: path.to_owned(),
            read: now,
            seen: now,
            changing: None,
        }
    }

    fn poll(&mut self, now: Instant) -> Option<io::Result<FileBytes>> {
        let found = fingerprint(&self.path);
        if found != self.seen {
            self.seen = found;
            let first = self.changing.map_or(now, |(first, _)| first);
            self.changing = Some((first, now));
        }
        let (first, last) = self.changing?;
        let out_of_patience = now.duration_since(first) >= PATIENCE;
        if now.duration_since(last) < SETTLED_AFTER && !out_of_patience {
            return None;
        }
        let content = self.read();
        // Bytes that were written while the file was read do not belong together: it is read again when they settle.
        let torn = fingerprint(&self.path) != self.read;
        if torn && !out_of_patience {
            self.changing = Some((first, now));
            return None;
        }
        Some(content)
    }

    fn read(&mut self) -> io::Result<FileBytes> {
        self.read = fingerprint(&self.path);
        self.seen = self.read;
        self.changing = None;
        FileBytes::read(&self.path)
    }
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

impl<T> HotReloaded<T> {
    pub fn new(first: T) -> Arc<Self> {
        Arc::new(Self {
            current: ArcSwap::from_pointee(first),
            last: Mutex::new(LoadStatus {
                loaded_at: SystemTime::now(),
                mistakes: Vec::new(),
            }),
            succeeded: AtomicU64::new(1),
            failed: AtomicU64::new(0),
        })
    }

    pub fn current(&self) -> Arc<T> {
        self.current.load_full()
    }

    pub fn load_status(&self) -> LoadStatus {
        self.lock().clone()
    }

    /// Loads that succeeded and that failed since the start, the first one included.
    pub fn counts(&self) -> (u64, u64) {
        (
            self.succeeded.load(Ordering::Relaxed),
            self.failed.load(Ordering::Relaxed),
        )
    }

    /// Takes a new value, or keeps the last good one and every mistake of the new.
    pub fn publish(&self, what: &str, parsed: Result<(T, Vec<Mistake>), Vec<Mistake>>) {
        match parsed {
            Ok((value, warnings)) => {
                self.current.store(Arc::new(value));
                *self.lock() = LoadStatus {
                    loaded_at: SystemTime::now(),
                    mistakes: Vec::new(),
                };
                self.succeeded.fetch_add(1, Ordering::Relaxed);
                log::info!("{what} loaded");
                warnings.iter().for_each(|warning| log::warn!("{warning}"));
            }
            Err(mistakes) => {
                self.lock().mistakes = mistakes.iter().map(ToString::to_string).collect();
                self.failed.fetch_add(1, Ordering::Relaxed);
                mistakes.iter().for_each(|mistake| log::error!("{mistake}"));
                log::error!("{what} not loaded, the last good one stays in force");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, LoadStatus> {
        // Nothing panics while the lock is held; what it guards is replaced as a whole in any case.
        self.last
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
