//! Sockets of TCP and UNIX alike: those that listen, and the connections that are accepted on them.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use nix::errno::Errno;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID,
};
use socket2::{Domain, SockAddr, SockRef, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

use crate::config::SocketAddress;
use crate::upstream::delegated::delegate_writes_to_io;

/// Connections that wait to be accepted.
const BACKLOG: u16 = 4096;
/// Who may connect to a UNIX socket: the owner of the process and its group, which a web server in front is made a member of.
const SOCKET_MODE: u32 = 0o660;
/// A client that answers none of the probes is gone after two minutes.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(15))
    .with_retries(4);
/// What may wait in the kernel unsent for a client, in bytes.
#[cfg(target_os = "linux")]
const UNSENT_BYTES: u32 = 128 * 1024;

/// A socket that listens.
#[derive(Debug)]
pub enum ListeningSocket {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// The file by which clients find a UNIX socket.
#[derive(Clone, Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and number of the file; none where it was gone already.
    inode: Option<(u64, u64)>,
}

/// An accepted connection in the shape that Pingora asks of a stream, without the buffers of Pingora's own.
#[derive(Debug)]
pub struct Socket {
    io: Io,
    accepted: SystemTime,
    digest: Arc<SocketDigest>,
}

type Io = Either<TcpStream, UnixStream>;

/// How long another process may hold an address as this one starts: one that is just ending, or was killed a moment ago.
const BIND_WAIT: Duration = Duration::from_secs(2);
/// The same as an address is only tried, where the other may be trying it, too.
const CHECK_WAIT: Duration = Duration::from_millis(300);
const RETRY: Duration = Duration::from_millis(20);

/// Tries again for a while where the address is in use.
fn when_free<T>(wait: Duration, attempt: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let give_up = Instant::now() + wait;
    loop {
        match attempt() {
            Err(why) if why.kind() == io::ErrorKind::AddrInUse && Instant::now() < give_up => {
                std::thread::sleep(RETRY);
            }
            done => return done,
        }
    }
}

impl ListeningSocket {
    /// Listens on an address. The file of a UNIX socket that nobody listens on any more is replaced. `only_v6`: an address of
    /// IPv6 that has all others does not have those of IPv4.
    ///
    /// # Errors
    /// Where the address cannot be had.
    pub fn bind(address: &SocketAddress, only_v6: bool) -> io::Result<Self> {
        match address {
            SocketAddress::Tcp(address) => {
                let socket = when_free(BIND_WAIT, || bind_tcp(*address, only_v6))?;
                Self::tcp(socket)
            }
            SocketAddress::Unix(path) => {
                when_free(BIND_WAIT, || remove_stale(path))?;
                Self::unix(bind_unix(path)?, path)
            }
        }
    }

    /// The listening socket of another process.
    ///
    /// # Errors
    /// Where it is no socket of the address's kind.
    pub fn inherit(address: &SocketAddress, socket: OwnedFd) -> io::Result<Self> {
        match address {
            SocketAddress::Tcp(_) => Self::tcp(socket.into()),
            SocketAddress::Unix(path) => Self::unix(socket.into(), path),
        }
    }

    fn tcp(socket: std::net::TcpListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket).map(Self::Tcp)
    }

    fn unix(socket: std::os::unix::net::UnixListener, path: &Path) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let file = SocketFile {
            path: path.to_owned(),
            inode: path.symlink_metadata().ok().map(|found| inode(&found)),
        };
        UnixListener::from_std(socket).map(|socket| Self::Unix(socket, file))
    }

    /// Whether [`Self::bind`] could listen there. It leaves no file behind; a TCP socket listens until it is dropped, so that
    /// another address is found to be in use by it.
    ///
    /// # Errors
    /// Why it could not.
    pub fn check(
        address: &SocketAddress,
        only_v6: bool,
    ) -> io::Result<Option<std::net::TcpListener>> {
        match address {
            SocketAddress::Tcp(address) => {
                when_free(CHECK_WAIT, || bind_tcp(*address, only_v6)).map(Some)
            }
            SocketAddress::Unix(path) => {
                find_stale(path)?;
                check_path(path).map(|()| None)
            }
        }
    }

    /// Where it listens, with the port that the system chose where none was given.
    ///
    /// # Errors
    /// Where the socket does not tell.
    pub fn address(&self) -> io::Result<SocketAddress> {
        match self {
            Self::Tcp(socket) => socket.local_addr().map(SocketAddress::Tcp),
            Self::Unix(_, file) => Ok(SocketAddress::Unix(file.path.clone())),
        }
    }

    /// A second handle on it.
    ///
    /// # Errors
    /// Where no further descriptor is to be had.
    pub fn handle(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket, _) => socket.as_fd(),
        }
        .try_clone_to_owned()
    }

    /// Its file, where it has one.
    pub fn file(&self) -> Option<SocketFile> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(_, file) => Some(file.clone()),
        }
    }

    /// The next connection, and who it is with: a peer of a UNIX socket has no address.
    ///
    /// # Errors
    /// Mostly for want of descriptors.
    pub async fn accept(&self) -> io::Result<(Socket, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (socket, peer) = listener.accept().await?;
                Ok((Socket::new(Io::Left(socket)), Some(peer)))
            }
            Self::Unix(listener, _) => {
                let (socket, _) = listener.accept().await?;
                Ok((Socket::new(Io::Right(socket)), None))
            }
        }
    }
}

impl SocketFile {
    /// Removes it, unless another process has put its own in its place.
    pub fn remove(&self) {
        let found = self.path.symlink_metadata();
        if self.inode.is_some() && found.ok().map(|found| inode(&found)) == self.inode {
            // Where it cannot be removed, the next start finds that it is stale.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

fn bind_tcp(address: SocketAddr, only_v6: bool) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if only_v6 {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG.into())?;
    Ok(socket.into())
}

/// Its mode is set before it listens: until then nobody can connect.
fn bind_unix(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
    socket.listen(BACKLOG.into())?;
    Ok(OwnedFd::from(socket).into())
}

fn remove_stale(path: &Path) -> io::Result<()> {
    if find_stale(path)? {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// Whether a UNIX socket could be made at this path, be it in the place of another one. It leaves no file behind.
///
/// # Errors
/// Why it could not.
pub fn check_path(path: &Path) -> io::Result<()> {
    SockAddr::unix(path)?;
    is_socket(path)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    tempfile::tempfile_in(folder).map(drop)
}

/// Removes the socket at this path, if there is one, and no other kind of file.
///
/// # Errors
/// Where the file is another one, or stays.
pub fn remove_socket(path: &Path) -> io::Result<()> {
    match is_socket(path)? {
        true => fs::remove_file(path),
        false => Ok(()),
    }
}

/// Whether there is a socket at this path.
///
/// # Errors
/// Where the file is another one.
fn is_socket(path: &Path) -> io::Result<bool> {
    let found = match path.symlink_metadata() {
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(false),
        found => found?,
    };
    if !found.file_type().is_socket() {
        let message = "there is a file, and it is no socket";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    Ok(true)
}

/// Whether there is a socket on which nobody listens.
///
/// # Errors
/// Where somebody does, or the file is another one.
fn find_stale(path: &Path) -> io::Result<bool> {
    if !is_socket(path)? {
        return Ok(false);
    }
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A process with many connections to accept is not waited for.
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Err(why) if why.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        Err(why) if why.kind() == io::ErrorKind::PermissionDenied => Err(why),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(false),
        _ => Err(Errno::EADDRINUSE.into()),
    }
}

impl Socket {
    fn new(io: Io) -> Self {
        let digest = SocketDigest::from_raw_fd(raw_fd(&io));
        Self {
            io,
            accepted: SystemTime::now(),
            digest: Arc::new(digest),
        }
    }

    /// Tells Pingora who the connection is with, which a proxy in front may have said. To be called once.
    pub fn tell_peer(&self, peer: Option<SocketAddr>) {
        // The cell is empty until then.
        let _ = self.digest.peer_addr.set(peer.map(Into::into));
    }

    /// Sets what connections of clients over TCP need.
    pub fn prepare(&self) {
        let Io::Left(client) = &self.io else {
            return;
        };
        // Responses are written whole or flushed at once; Nagle's delay would only hold their last piece back.
        let _ = client.set_nodelay(true);
        keep_alive(client);
        limit_unsent(client);
    }
}

fn raw_fd(io: &Io) -> RawFd {
    match io {
        Io::Left(tcp) => tcp.as_raw_fd(),
        Io::Right(unix) => unix.as_raw_fd(),
    }
}

/// Has the kernel take no more than a little beyond what it can send. It would take megabytes for a client that was fast, and
/// then take nothing for so long that a client which has become slow looks like one that reads nothing.
#[cfg(target_os = "linux")]
fn limit_unsent(client: &TcpStream) {
    if let Err(why) = SockRef::from(client).set_tcp_notsent_lowat(UNSENT_BYTES) {
        log::debug!("no limit for what waits unsent for a client: {why}");
    }
}

#[cfg(not(target_os = "linux"))]
fn limit_unsent(_client: &TcpStream) {}

/// Has the kernel find out that a client is gone which never says so: a WebSocket may be silent for as long as it likes.
fn keep_alive(client: &TcpStream) {
    if let Err(why) = SockRef::from(client).set_tcp_keepalive(&KEEPALIVE) {
        log::debug!("no TCP keepalive for a client: {why}");
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

delegate_writes_to_io!(Socket);

#[async_trait]
impl Shutdown for Socket {
    async fn shutdown(&mut self) {
        // The client may have gone first; there is nobody left to tell.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for Socket {
    fn id(&self) -> RawFd {
        raw_fd(&self.io)
    }
}

impl Ssl for Socket {}

impl Peek for Socket {}

impl GetTimingDigest for Socket {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        vec![Some(TimingDigest {
            established_ts: self.accepted,
            ..Default::default()
        })]
    }
}

impl GetProxyDigest for Socket {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }

    fn set_proxy_digest(&mut self, _digest: ProxyDigest) {}
}

impl GetSocketDigest for Socket {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.digest.clone())
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.digest = Arc::new(digest);
    }
}
