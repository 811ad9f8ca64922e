//! What the log's lines are written to: a regular file, or whatever else has a path (a FIFO, a device, a UNIX socket) or is
//! this process's stdout. It opens and writes; what waits, and for how long, is `writer.rs`'s.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, major, minor};
use rustix::io::{Errno, ioctl_fionread};
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;

use crate::config::LogTarget;
use crate::upstream::output_queue::output_queue;

/// How long half a line at the end of the file must stay as it is before it counts as left behind.
const HALF_LINE_TIME: Duration = Duration::from_millis(100);

/// An opened target of the log.
#[derive(Clone, Debug)]
pub(super) struct Sink {
    pub kind: SinkKind,
    /// None for a FIFO that nobody reads or a socket that is not connected: it is opened anew later.
    pub file: Option<Arc<File>>,
    /// A regular file that had a name when it was opened: without one, it has been deleted.
    has_name: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SinkKind {
    /// A write to it takes as long as the disk takes, and no reader can stop it.
    Regular,
    /// A pipe, terminal or device, or a socket that this process was started with: a write may never return.
    Stream,
    /// A UNIX socket that has a path, of a daemon that may come and go.
    Socket,
}

impl Sink {
    /// # Errors
    /// Where the target cannot be opened for appending. That nobody reads it yet is no error.
    pub fn open(target: &LogTarget) -> io::Result<Self> {
        match target {
            LogTarget::Stdout => Self::inherited(io::stdout().as_fd()),
            // Opening these by their path fails where they are sockets, as they are under systemd.
            LogTarget::File(path) if is_descriptor(path, "stdout", 1) => {
                Self::inherited(io::stdout().as_fd())
            }
            LogTarget::File(path) if is_descriptor(path, "stderr", 2) => {
                Self::inherited(io::stderr().as_fd())
            }
            LogTarget::Socket(_) => Ok(Self::of(SinkKind::Socket, None)),
            LogTarget::File(path) => Self::at(path)
                .map_err(|why| io::Error::new(why.kind(), format!("{}: {why}", path.display()))),
        }
    }

    /// One that the process was started with.
    fn inherited(descriptor: BorrowedFd<'_>) -> io::Result<Self> {
        let file = File::from(descriptor.try_clone_to_owned()?);
        let kind = if file.metadata()?.is_file() {
            SinkKind::Regular
        } else {
            SinkKind::Stream
        };
        Ok(Self::of(kind, Some(file)))
    }

    fn at(path: &Path) -> io::Result<Self> {
        // Without waiting for a FIFO's reader; a regular file knows no such waiting. And without reading, which is needed to
        // see how a file ends, and which a pipe or a device need not allow.
        let opened = OpenOptions::new()
            .append(true)
            .create(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(path);
        match opened {
            Ok(file) if file.metadata()?.is_file() => {
                end_last_line(&file, path, || std::thread::sleep(HALF_LINE_TIME))?;
                Ok(Self {
                    has_name: file.metadata()?.nlink() > 0,
                    ..Self::of(SinkKind::Regular, Some(file))
                })
            }
            Ok(file) => Ok(Self::of(SinkKind::Stream, Some(file))),
            Err(why) if is(&why, Errno::NXIO) => Self::unopened(path, why),
            Err(why) => Err(why),
        }
    }

    /// What cannot be opened for want of somebody at its other end, or because it has to be connected to.
    fn unopened(path: &Path, why: io::Error) -> io::Result<Self> {
        let found = fs::metadata(path)?.file_type();
        if found.is_fifo() {
            Ok(Self::of(SinkKind::Stream, None))
        } else if found.is_socket() {
            // By the writing thread: where many wait to be accepted, connecting takes its time.
            Ok(Self::of(SinkKind::Socket, None))
        } else {
            Err(why)
        }
    }

    fn of(kind: SinkKind, file: Option<File>) -> Self {
        let file = file.map(Arc::new);
        Self {
            kind,
            file,
            has_name: false,
        }
    }

    /// Whether what is written by now would be lost: no path leads to the file any more. A file that was renamed, and is
    /// still to be reopened, is none of these.
    pub fn is_deleted(&self) -> io::Result<bool> {
        match &self.file {
            Some(file) if self.has_name => Ok(file.metadata()?.nlink() == 0),
            _ => Ok(false),
        }
    }

    /// Opens what had nobody at its other end before.
    ///
    /// # Errors
    /// Where there still is nobody, or the path leads to something else by now.
    pub fn open_again(target: &LogTarget, kind: SinkKind) -> io::Result<File> {
        match (target, kind) {
            (LogTarget::File(path) | LogTarget::Socket(path), SinkKind::Socket) => connect(path),
            (LogTarget::File(path), _) => OpenOptions::new()
                .append(true)
                .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
                .open(path),
            (LogTarget::Stdout | LogTarget::Socket(_), _) => {
                Err(io::ErrorKind::NotConnected.into())
            }
        }
    }

    /// Whether the target leads to what this is already: a stream or pipe, which to open anew would only part with what its
    /// reader has not read.
    pub fn is_still(&self, target: &LogTarget) -> bool {
        let (SinkKind::Stream, Some(file)) = (self.kind, &self.file) else {
            return false;
        };
        let found = match target {
            LogTarget::Stdout => return true,
            LogTarget::File(path) | LogTarget::Socket(path) => fs::metadata(path),
        };
        let numbers = |found: fs::Metadata| (found.dev(), found.ino());
        let own = file.metadata().map(numbers).ok();
        own.is_some() && own == found.map(numbers).ok()
    }

    /// Whether this is `/dev/null`, which it is too where the process was started with its stdout closed.
    pub fn is_null(&self) -> bool {
        let found = self.file.as_ref().and_then(|file| file.metadata().ok());
        found.is_some_and(|found| {
            let device = found.rdev();
            found.file_type().is_char_device() && (major(device), minor(device)) == (1, 3)
        })
    }

    /// Whether another FIFO stands at the path by now: its reader has made it anew.
    pub fn has_new_fifo(&self, target: &LogTarget) -> bool {
        let LogTarget::File(path) = target else {
            return false;
        };
        let is_fifo = fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo());
        self.kind == SinkKind::Stream && is_fifo && !self.is_still(target)
    }

    /// Who reads what this takes, and may leave some of it.
    pub fn receiver(&self) -> Option<Receiver<'_>> {
        self.file.as_deref().and_then(Receiver::of)
    }
}

/// Whether the path is one of the names of this process's descriptor.
fn is_descriptor(path: &Path, name: &str, number: u32) -> bool {
    let names = [
        format!("/dev/{name}"),
        format!("/dev/fd/{number}"),
        format!("/proc/self/fd/{number}"),
    ];
    names.iter().any(|name| path == Path::new(name))
}

fn is(why: &io::Error, errno: Errno) -> bool {
    why.raw_os_error() == Some(errno.raw_os_error())
}

/// Connects to a socket of either kind; to one of datagrams each line is one.
fn connect(path: &Path) -> io::Result<File> {
    let socket = match UnixStream::connect(path) {
        Ok(stream) => {
            stream.set_nonblocking(true)?;
            OwnedFd::from(stream)
        }
        Err(why) if is(&why, Errno::PROTOTYPE) => {
            let datagrams = UnixDatagram::unbound()?;
            datagrams.connect(path)?;
            datagrams.set_nonblocking(true)?;
            datagrams.into()
        }
        Err(why) => return Err(why),
    };
    Ok(File::from(socket))
}

/// A pipe or socket, and what it tells of its reader.
pub(super) struct Receiver<'a> {
    file: &'a File,
    kind: ReceiverKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ReceiverKind {
    /// It keeps what nobody has read for the next reader, as long as this process has it open.
    Pipe,
    /// What its reader has not read goes with the reader.
    Stream,
    /// The same, and the kernel does not tell whether there is a reader before something is sent to it.
    Datagrams,
}

impl<'a> Receiver<'a> {
    /// None where this is neither.
    pub fn of(file: &'a File) -> Option<Self> {
        let kind = match socket_type(file) {
            Ok(SocketType::STREAM) => ReceiverKind::Stream,
            Ok(_) => ReceiverKind::Datagrams,
            Err(_) if file.metadata().ok()?.file_type().is_fifo() => ReceiverKind::Pipe,
            Err(_) => return None,
        };
        Some(Self { file, kind })
    }

    /// The most bytes that wait to be read, as long as there is a reader.
    pub fn unread_bytes(&self) -> usize {
        let waiting = match self.kind {
            ReceiverKind::Pipe => ioctl_fionread(self.file).ok(),
            ReceiverKind::Stream | ReceiverKind::Datagrams => output_queue(self.file),
        };
        let waiting = waiting.and_then(|bytes| usize::try_from(bytes).ok());
        waiting.unwrap_or(usize::MAX)
    }

    /// Whether the reader is known to be gone with what it had not read.
    pub fn has_left_some(&self) -> bool {
        match self.kind {
            ReceiverKind::Pipe => has_failed(self.file) && self.unread_bytes() > 0,
            ReceiverKind::Stream => has_failed(self.file),
            ReceiverKind::Datagrams => false,
        }
    }

    /// The same, or nothing is known of it.
    pub fn may_have_left_some(&self) -> bool {
        self.kind == ReceiverKind::Datagrams || self.has_left_some()
    }

    /// Whether what was not read is there for another reader.
    pub fn keeps_for_the_next(&self) -> bool {
        self.kind == ReceiverKind::Pipe
    }
}

/// Whether the other end is gone; of a socket only where it has left something (`unix(7)`: ECONNRESET).
fn has_failed(file: &File) -> bool {
    let mut polled = [PollFd::new(file, PollFlags::OUT)];
    let is_polled = poll(&mut polled, Some(&Timespec::default())).is_ok();
    is_polled && polled[0].revents().contains(PollFlags::ERR)
}

/// Waits until something can be written, for so long at the most.
pub(super) fn await_writable(file: &File, limit: Duration) {
    let limit = Timespec {
        tv_sec: limit.as_secs().cast_signed(),
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    // Whatever is wrong shows itself when it is written to.
    let _ = poll(&mut [PollFd::new(file, PollFlags::OUT)], Some(&limit));
}

/// How much was written, and why not all.
pub(super) fn write_all(mut file: &File, line: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < line.len() {
        match file.write(&line[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
            Err(why) => return (written, Err(why)),
        }
    }
    (written, Ok(()))
}

/// Takes a part of a line from the end of the file again. During an upgrade another process writes to it as well, and the
/// next line of that would be glued to the part.
///
/// # Errors
/// Where something stands behind the part already, or this is no regular file.
pub(super) fn take_back(mut file: &File, part: usize) -> io::Result<()> {
    let end = file.stream_position()?;
    if file.metadata()?.len() != end {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let begin = end - part as u64;
    file.set_len(begin)?;
    file.seek(SeekFrom::Start(begin))?;
    Ok(())
}

/// A process that died while the disk was full may have left half a line; the next one is not to be glued to it. A line that
/// another process writes at this moment, in a takeover, looks like half of one too, for a file grows by pages: so what
/// is no whole line is looked at again after a wait, until it is one or has stayed as it was.
fn end_last_line(mut file: &File, path: &Path, mut wait: impl FnMut()) -> io::Result<()> {
    let mut reader = File::open(path)?;
    let mut found = end_of_half_line(&mut reader)?;
    while let Some(end) = found {
        wait();
        found = end_of_half_line(&mut reader)?;
        if found == Some(end) {
            return file.write_all(b"\n");
        }
    }
    Ok(())
}

/// The length of a file that does not end with a line end.
fn end_of_half_line(file: &mut File) -> io::Result<Option<u64>> {
    let len = file.seek(SeekFrom::End(0))?;
    let mut last = [b'\n'];
    if len > 0 {
        file.seek(SeekFrom::Start(len - 1))?;
        file.read_exact(&mut last)?;
    }
    Ok((last != *b"\n").then_some(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_stdout_and_stderr_are_known() {
        let is_stdout = |path: &str| is_descriptor(Path::new(path), "stdout", 1);
        for path in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
            assert!(is_stdout(path), "{path}");
        }
        for path in ["/dev/stderr", "/proc/self/fd/11", "/proc/1/fd/1", "stdout"] {
            assert!(!is_stdout(path), "{path}");
        }
    }

    #[test]
    fn a_line_that_another_process_is_writing_is_let_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        fs::write(&path, "{\"a\":").unwrap();
        let file = OpenOptions::new().append(true).open(&path).unwrap();
        let mut pieces = ["1,", "\"b\":2}\n"].iter();
        end_last_line(&file, &path, || {
            let piece = pieces.next().expect("the line has ended");
            (&file).write_all(piece.as_bytes()).unwrap();
        })
        .unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"a\":1,\"b\":2}\n");
    }
}
