//! HTTP/1.1 as both ends of a run read and write it: over TCP or TLS, with any fault of the peer as a value.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use rustls::{ClientConnection, ServerConnection, StreamOwned};

use super::support::tls;

/// How long a read waits before it is asked whether to go on.
const TICK: Duration = Duration::from_millis(50);
const WRITE_TIMEOUT: Duration = Duration::from_secs(8);
const MOST_HEAD_BYTES: usize = 64 * 1024;

pub trait Stream: Read + Write + Send {
    fn tcp(&self) -> &TcpStream;
}

impl Stream for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Stream for StreamOwned<ServerConnection, TcpStream> {
    fn tcp(&self) -> &TcpStream {
        &self.sock
    }
}

impl Stream for StreamOwned<ClientConnection, TcpStream> {
    fn tcp(&self) -> &TcpStream {
        &self.sock
    }
}

/// A connection, and the bytes that were read and not yet used.
pub struct Wire {
    stream: Box<dyn Stream>,
    unused: Vec<u8>,
    /// When whoever reads has had enough.
    deadline: Instant,
}

/// The first line and the headers of a message.
pub struct Head {
    pub line: String,
    pub headers: Vec<(String, String)>,
}

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Whole,
    Cut,
    /// Something stands in it that is none of it.
    Garbled,
}

impl Wire {
    fn new(stream: Box<dyn Stream>) -> Self {
        let tcp = stream.tcp();
        let _ = tcp.set_nodelay(true);
        let _ = tcp.set_read_timeout(Some(TICK));
        let _ = tcp.set_write_timeout(Some(WRITE_TIMEOUT));
        Self {
            stream,
            unused: Vec::new(),
            deadline: Instant::now(),
        }
    }

    pub fn connect(address: SocketAddr, with_tls: bool) -> Option<Self> {
        let tcp = TcpStream::connect(address).ok()?;
        if !with_tls {
            return Some(Self::new(Box::new(tcp)));
        }
        Some(Self::new(Box::new(tls::client(tcp, b"http/1.1"))))
    }

    pub fn accepted(tcp: TcpStream, with_tls: bool) -> Option<Self> {
        if !with_tls {
            return Some(Self::new(Box::new(tcp)));
        }
        let session = ServerConnection::new(tls::server_config(&[b"http/1.1"])).ok()?;
        Some(Self::new(Box::new(StreamOwned::new(session, tcp))))
    }

    /// Nothing is waited for longer than this, from now on.
    pub fn within(&mut self, time: Duration) {
        self.deadline = Instant::now() + time;
    }

    pub fn send(&mut self, bytes: &[u8]) -> Option<()> {
        self.stream.write_all(bytes).ok()?;
        self.stream.flush().ok()
    }

    /// Waits for the first byte of something. False where there will be none, or `stop` says so first.
    pub fn await_byte(&mut self, stop: impl Fn() -> bool) -> bool {
        while self.unused.is_empty() {
            match self.read_some() {
                Some(0) if stop() || Instant::now() > self.deadline => return false,
                Some(_) => {}
                None => return false,
            }
        }
        true
    }

    /// Bytes that came within a tick, 0 if none; nothing at the end of the connection.
    fn read_some(&mut self) -> Option<usize> {
        let mut piece = [0; 16 * 1024];
        match self.stream.read(&mut piece) {
            Ok(0) => None,
            Ok(count) => {
                self.unused.extend_from_slice(&piece[..count]);
                Some(count)
            }
            Err(why) => match why.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => Some(0),
                _ => None,
            },
        }
    }

    fn more(&mut self) -> Option<()> {
        loop {
            match self.read_some()? {
                0 if Instant::now() > self.deadline => return None,
                0 => {}
                _ => return Some(()),
            }
        }
    }

    /// The bytes up to this mark, and the mark.
    fn until(&mut self, mark: &[u8]) -> Option<Vec<u8>> {
        loop {
            let found = memchr::memmem::find(&self.unused, mark);
            if let Some(at) = found {
                return Some(self.unused.drain(..at + mark.len()).collect());
            }
            if self.unused.len() > MOST_HEAD_BYTES {
                return None;
            }
            self.more()?;
        }
    }

    fn take(&mut self, count: usize, body: &mut Vec<u8>) -> End {
        let mut left = count;
        loop {
            let some = left.min(self.unused.len());
            body.extend(self.unused.drain(..some));
            left -= some;
            if left == 0 {
                return End::Whole;
            }
            if self.more().is_none() {
                return End::Cut;
            }
        }
    }

    pub fn head(&mut self) -> Option<Head> {
        let text = String::from_utf8(self.until(b"\r\n\r\n")?).ok()?;
        let mut lines = text.lines();
        let line = lines.next()?.to_owned();
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()));
        Some(Head {
            line,
            headers: headers.collect(),
        })
    }

    /// Reads the body behind a head into `body`, as far as it comes.
    pub fn body(&mut self, head: &Head, body: &mut Vec<u8>) -> End {
        if head.header("transfer-encoding") == Some("chunked") {
            return self.chunks(body).unwrap_or(End::Cut);
        }
        match head.header("content-length").map(str::parse) {
            Some(Ok(length)) => self.take(length, body),
            Some(Err(_)) => End::Cut,
            None => End::Whole,
        }
    }

    fn chunks(&mut self, body: &mut Vec<u8>) -> Option<End> {
        loop {
            let line = String::from_utf8(self.until(b"\r\n")?).ok()?;
            let Ok(size) = usize::from_str_radix(line.trim_end(), 16) else {
                return Some(End::Garbled);
            };
            if size == 0 {
                return (self.until(b"\r\n")? == b"\r\n").then_some(End::Whole);
            }
            if self.take(size, body) == End::Cut || self.until(b"\r\n")? != b"\r\n" {
                return None;
            }
        }
    }

    /// Ends the connection, in good order or by a reset.
    pub fn end(self, reset: bool) {
        if reset {
            reset_on_close(self.stream.tcp());
        } else {
            self.end_sending();
        }
    }

    /// The other side reads an end, and may go on.
    pub fn end_sending(&self) {
        let _ = self.stream.tcp().shutdown(Shutdown::Write);
    }

    /// The connection for another protocol, and what was read of that already.
    pub fn into_parts(self) -> (Box<dyn Stream>, Vec<u8>) {
        (self.stream, self.unused)
    }
}

impl Head {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Of an answer.
    pub fn status(&self) -> Option<u16> {
        self.line.split(' ').nth(1)?.parse().ok()
    }

    /// Of a request; the tag that its path begins with.
    pub fn tag(&self) -> Option<u64> {
        let path = self.line.split(' ').nth(1)?;
        path.split('/').nth(1)?.parse().ok()
    }
}

/// A close then sends a reset in the place of an end.
pub fn reset_on_close(tcp: &TcpStream) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let _ = setsockopt(tcp, sockopt::Linger, &linger);
}

pub fn chunk(piece: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()
}
