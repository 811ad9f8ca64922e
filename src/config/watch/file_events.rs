//! What the kernel tells of changes to watched files (`inotify(7)`): above all that a writer has closed one. There is nothing
//! of it for changes made elsewhere to a file of a network, so it is believed where it says something, and its silence
//! means nothing.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

/// Room for some hundred events at a read.
const BUFFER_BYTES: usize = 16 * 1024;

/// The kernel's word on files and the folders they are in.
pub(super) struct FileEvents {
    queue: OwnedFd,
}

/// What has happened to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FileEvent {
    /// Somebody writes to it who has not closed it since.
    Written(WatchedPath),
    /// A writer has closed it, or it came or went by its name, as a whole.
    Whole(WatchedPath),
    /// So much has happened that some of it was not told.
    Missed,
}

/// Where something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WatchedPath {
    /// To the file of this watch, whatever it is called.
    File(i32),
    /// To what has this name in the folder of this watch.
    Name(i32, OsString),
}

impl FileEvents {
    /// None where the kernel has no more of this to give; then files are looked at more often.
    pub fn new() -> Option<Self> {
        let queue = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC);
        let queue = queue
            .inspect_err(|why| log::warn!("changes of files are not told by the kernel: {why}"))
            .ok()?;
        Some(Self { queue })
    }

    /// Watches the file that this path leads to.
    pub fn watch_file(&self, path: &Path) -> Option<i32> {
        let flags = WatchFlags::MODIFY | WatchFlags::CLOSE_WRITE;
        inotify::add_watch(&self.queue, path, flags).ok()
    }

    /// Watches the names in a folder. Not each write to what is in it: the access log may be there.
    pub fn watch_folder(&self, path: &Path) -> Option<i32> {
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&self.queue, path, flags).ok()
    }

    /// Waits until there is something to read, and no longer than `most`.
    pub fn wait(&self, most: Duration) {
        let mut queue = [PollFd::new(&self.queue, PollFlags::IN)];
        let most = Timespec::try_from(most).expect("some milliseconds");
        // Where it fails it is a look too early.
        let _ = poll(&mut queue, Some(&most));
    }

    /// What has happened since the last call, in order. `folder_of` gives the folder of a watch.
    pub fn read(&self, folder_of: impl Fn(i32) -> Option<PathBuf>) -> Vec<FileEvent> {
        let mut buffer = [const { MaybeUninit::uninit() }; BUFFER_BYTES];
        let mut reader = inotify::Reader::new(&self.queue, &mut buffer);
        let mut events = Vec::new();
        // It ends with an error when there is nothing more.
        while let Ok(event) = reader.next() {
            let name = event
                .file_name()
                .map(|name| OsStr::from_bytes(name.to_bytes()));
            let folder = folder_of(event.wd());
            events.extend(meaning(event.wd(), event.events(), name, folder.as_deref()));
        }
        events
    }
}

fn meaning(
    watch: i32,
    flags: ReadFlags,
    name: Option<&OsStr>,
    folder: Option<&Path>,
) -> Option<FileEvent> {
    if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
        return Some(FileEvent::Missed);
    }
    let place = match name {
        Some(name) => WatchedPath::Name(watch, name.to_owned()),
        None => WatchedPath::File(watch),
    };
    if flags.contains(ReadFlags::CREATE) {
        // A link comes as a whole, without a writer who would close it.
        let found = fs::symlink_metadata(folder?.join(name?)).ok()?;
        let is_written = found.is_file() && found.nlink() == 1;
        return Some(if is_written {
            FileEvent::Written(place)
        } else {
            FileEvent::Whole(place)
        });
    }
    let whole = ReadFlags::CLOSE_WRITE
        | ReadFlags::MOVED_TO
        | ReadFlags::MOVED_FROM
        | ReadFlags::DELETE
        | ReadFlags::IGNORED;
    if flags.intersects(whole) {
        Some(FileEvent::Whole(place))
    } else if flags.contains(ReadFlags::MODIFY) {
        Some(FileEvent::Written(place))
    } else {
        None
    }
}
