//! Upgrade without a refused connection: a new process takes the listening sockets over from the one that runs. It moves
//! descriptors over a UNIX socket (`unix(7)`, `SCM_RIGHTS`); who accepts on them is decided elsewhere. By `rustix`, which gives
//! the descriptors it receives as owned ones; `nix` gives numbers, which only `unsafe` makes descriptors of.
//!
//! Pingora's own upgrade has the old process stop accepting before the new one serves; here the old one goes on until then.
//!
//! The new process connects, gets the addresses and the sockets, begins to serve, and only then says so. Until it does,
//! the old one goes on as if nothing had happened; afterwards it drains. Both accept for a moment, none refuses.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::config::SocketAddress;
use crate::server::socket::remove_socket;

/// Listening sockets that one process may have; more do not fit one message.
const MAX_SOCKETS: usize = 64;
/// `unix:` and the longest path, and a line end.
const ADDRESS_BYTES: usize = 128;
/// How long a new process may take from getting the sockets to serving on them.
const START_TIME: Duration = Duration::from_secs(60);
const SERVES: u8 = b'+';
/// Begins the reason in the place of addresses, where nothing is handed over.
const REFUSES: char = '!';
const OWNER_ONLY: u32 = 0o600;

/// What a process offers to the one that comes after it.
pub struct SocketHandover {
    path: PathBuf,
    listener: UnixListener,
    sockets: Mutex<Vec<(SocketAddress, OwnedFd)>>,
    refusal: Box<Refusal>,
}

/// Why no process may take over for now, if so.
type Refusal = dyn Fn() -> Option<String> + Send + Sync;

/// The sockets of the old process, and the way to tell it that they are served.
pub struct InheritedSockets {
    sockets: HashMap<SocketAddress, OwnedFd>,
    old: UnixStream,
}

impl SocketHandover {
    /// Offers the sockets at `path`, in the place of any process that did so before. `refusal` is asked each time that one comes.
    ///
    /// # Errors
    /// Where the path cannot be listened on, or is that of a file which is no socket.
    pub fn offer(
        path: &Path,
        sockets: Vec<(SocketAddress, OwnedFd)>,
        refusal: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        remove_socket(path)?;
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(OWNER_ONLY))?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            sockets: Mutex::new(sockets),
            refusal: Box::new(refusal),
        })
    }

    /// Blocks until a new process has taken the sockets and serves on them.
    ///
    /// # Errors
    /// Where nobody can connect any more.
    pub fn wait(&self) -> io::Result<()> {
        loop {
            let (new, _) = self.listener.accept()?;
            match self.hand_to(new) {
                Ok(()) => {
                    self.sockets.lock().clear();
                    return Ok(());
                }
                Err(why) => log::warn!(
                    "a process that was to take over does not serve, this one goes on: {why}"
                ),
            }
        }
    }

    /// Takes the offer back. A drain that no new process follows has to: while a handle on a socket is open, clients connect.
    pub fn withdraw(&self) {
        self.sockets.lock().clear();
        // It may be gone already; then nobody finds it either.
        let _ = remove_socket(&self.path);
    }

    fn hand_to(&self, mut new: UnixStream) -> io::Result<()> {
        if let Some(why) = (self.refusal)() {
            // At once, for it is read so.
            new.write_all(format!("{REFUSES}{why}").as_bytes())?;
            return Err(io::Error::other(why));
        }
        self.send(&new)?;
        new.set_read_timeout(Some(START_TIME))?;
        let mut word = [0];
        new.read_exact(&mut word)?;
        if word == [SERVES] {
            Ok(())
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }

    fn send(&self, new: &UnixStream) -> io::Result<()> {
        let sockets = self.sockets.lock();
        let addresses: Vec<String> = sockets
            .iter()
            .map(|(address, _)| address.to_string())
            .collect();
        let descriptors: Vec<BorrowedFd<'_>> = sockets
            .iter()
            .map(|(_, descriptor)| descriptor.as_fd())
            .collect();
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other(
                "more listening sockets than can be handed over",
            ));
        }
        let text = addresses.join("\n");
        sendmsg(
            new,
            &[IoSlice::new(text.as_bytes())],
            &mut control,
            SendFlags::empty(),
        )?;
        Ok(())
    }
}

impl InheritedSockets {
    /// Takes the sockets over from the process that offers them at `path`.
    ///
    /// # Errors
    /// Where none does, or what it sends is not understood.
    pub fn from(path: &Path) -> io::Result<Self> {
        let old = UnixStream::connect(path)?;
        let mut text = [0; MAX_SOCKETS * ADDRESS_BYTES];
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
        let mut control = RecvAncillaryBuffer::new(&mut room);
        let received = recvmsg(
            &old,
            &mut [IoSliceMut::new(&mut text)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                descriptors.extend(some);
            }
        }
        let text =
            std::str::from_utf8(&text[..received.bytes]).map_err(|_| io::ErrorKind::InvalidData)?;
        if let Some(why) = text.strip_prefix(REFUSES) {
            return Err(io::Error::other(why));
        }
        let addresses = text
            .lines()
            .map(|line| line.parse().map_err(|_: &str| io::ErrorKind::InvalidData));
        let addresses: Vec<SocketAddress> = addresses.collect::<Result<_, _>>()?;
        if addresses.is_empty() || addresses.len() != descriptors.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let sockets = addresses.into_iter().zip(descriptors).collect();
        Ok(Self { sockets, old })
    }

    /// The socket that listens on this address, if the old process had one.
    pub fn socket(&mut self, address: &SocketAddress) -> Option<OwnedFd> {
        self.sockets.remove(address)
    }

    /// Tells the old process that its sockets are served, so that it may end.
    ///
    /// # Errors
    /// Where it has ended already.
    pub fn confirm(mut self) -> io::Result<()> {
        self.old.write_all(&[SERVES])?;
        // Nobody listens any more on those that were not taken.
        for path in self.sockets.keys().filter_map(SocketAddress::unix_path) {
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    }
}
