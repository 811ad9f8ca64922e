//! A scripted HTTP/1.1 upstream. It keeps what it was sent, byte for byte, and answers each request by its script.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use socket2::{SockFilter, SockRef};

use super::{PATIENCE, eventually, tls};

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// The number of the connection that it came on, from 0.
    pub connection: usize,
    /// The request line and the header lines, with their line ends.
    pub head: String,
    /// Without its framing.
    pub body: Vec<u8>,
    /// Whether it ended as its framing says.
    pub whole: bool,
}

/// A packet filter that keeps no byte of a segment (`BPF_RET | BPF_K`).
const DROP_ALL: SockFilter = SockFilter::new(6, 0, 0, 0);

/// What the upstream does about one request.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// How many of the steps come before the request's body is read.
    before_body: usize,
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    Send(Vec<u8>),
    Wait(Duration),
    /// Until the test calls [`Upstream::release`].
    Hold,
    /// Takes nothing that comes from now on, and acknowledges none of it, as though it came behind a close. What was sent before
    /// is acknowledged by then, or it would be sent again and again, and no end behind it.
    TakeNothing,
    /// Takes one message of a WebSocket client, which counts as a request without a head.
    Hear,
    /// An orderly end of the connection, with whatever was not read left unread.
    Close,
    /// The same without a word of TLS (`close_notify`), as some servers do it.
    Vanish,
    Reset,
}

/// An upstream that is yet to run.
pub struct Script(Vec<Reply>);

pub struct Upstream {
    /// Unspecified where it listens on a UNIX socket.
    pub address: SocketAddr,
    /// Its UNIX socket.
    pub path: Option<PathBuf>,
    /// Whether it speaks TLS.
    pub tls: bool,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    replies: Vec<Reply>,
    /// Requests whose head has arrived.
    heads: AtomicUsize,
    connections: AtomicUsize,
    /// Connections that the proxy has ended.
    ended: AtomicUsize,
    /// Connections of which nothing is taken any more.
    deaf: AtomicUsize,
    received: Mutex<Vec<Received>>,
    released: Mutex<bool>,
    release: Condvar,
}

/// Answers every request with this JSON.
pub fn json(body: &str) -> Script {
    script([reply(200).json(body)])
}

/// Answers every request with these pieces as an event stream.
pub fn sse(pieces: &[&str]) -> Script {
    script([reply(200).sse(pieces)])
}

/// Answers the first request by the first reply, and so on; the last one is for all further requests.
pub fn script(replies: impl IntoIterator<Item = Reply>) -> Script {
    Script(replies.into_iter().collect())
}

/// The address of an upstream that does not listen.
pub fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

pub fn reply(status: u16) -> Unsent {
    Unsent(status)
}

/// A reply that says nothing until the test releases it.
pub fn silence() -> Reply {
    Reply::default().hold()
}

/// A reply that opens a WebSocket, and answers its first message with this event. The proxy does not look at the accept key.
pub fn websocket(event: &str) -> Reply {
    let text = u8::try_from(event.len())
        .ok()
        .filter(|length| *length < 126);
    let header = [0x81, text.expect("a short event")];
    Reply::default()
        .send(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: x\r\n\r\n",
        )
        .then(Step::Hear)
        .send([&header, event.as_bytes()].concat())
}

/// A reply of which only the status is known.
pub struct Unsent(u16);

impl Unsent {
    pub fn json(self, body: &str) -> Reply {
        let Self(status) = self;
        Reply::default().send(format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nX-Request-Id: req_1\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    }

    pub fn sse(self, pieces: &[&str]) -> Reply {
        self.sse_begun(pieces).send("0\r\n\r\n")
    }

    /// The same without the end of the message.
    pub fn sse_begun(self, pieces: &[&str]) -> Reply {
        let Self(status) = self;
        let begun = Reply::default().send(format!(
            "HTTP/1.1 {status} X\r\nContent-Type: text/event-stream\r\nX-Request-Id: req_1\r\n\
             Transfer-Encoding: chunked\r\n\r\n"
        ));
        pieces.iter().fold(begun, |reply, piece| {
            reply.send(format!("{:x}\r\n{piece}\r\n", piece.len()))
        })
    }
}

impl Reply {
    /// All of the reply comes as soon as the request's head is here.
    pub fn before_body(mut self) -> Self {
        self.before_body = usize::MAX;
        self
    }

    /// What came so far of the reply comes as soon as the request's head is here, the rest behind its body.
    pub fn read_body(mut self) -> Self {
        self.before_body = self.steps.len();
        self
    }

    pub fn send(self, bytes: impl Into<Vec<u8>>) -> Self {
        self.then(Step::Send(bytes.into()))
    }

    pub fn chunk(self, piece: &str) -> Self {
        self.send(format!("{:x}\r\n{piece}\r\n", piece.len()))
    }

    pub fn wait(self, time: Duration) -> Self {
        self.then(Step::Wait(time))
    }

    pub fn hold(self) -> Self {
        self.then(Step::Hold)
    }

    pub fn take_nothing(self) -> Self {
        self.then(Step::TakeNothing)
    }

    pub fn close(self) -> Self {
        self.then(Step::Close)
    }

    pub fn vanish(self) -> Self {
        self.then(Step::Vanish)
    }

    pub fn reset(self) -> Self {
        self.then(Step::Reset)
    }

    /// Goes on with all that another reply does.
    pub fn then_all(mut self, other: Reply) -> Self {
        self.steps.extend(other.steps);
        self
    }

    fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}

impl Script {
    /// With TLS, as upstreams are mostly reached.
    pub fn run(self) -> Upstream {
        self.listen(any_port(), Some(tls::server_config(&[b"http/1.1"])))
    }

    pub fn run_plain(self) -> Upstream {
        self.listen(any_port(), None)
    }

    /// At an address that is known to be free.
    pub fn run_at(self, address: SocketAddr) -> Upstream {
        self.listen(TcpListener::bind(address).unwrap(), None)
    }

    pub fn run_with(self, tls: Arc<ServerConfig>) -> Upstream {
        self.listen(any_port(), Some(tls))
    }

    /// On a UNIX socket.
    pub fn run_unix(self, path: &Path) -> Upstream {
        let listener = UnixListener::bind(path).unwrap();
        let shared = self.shared();
        let upstream = Upstream {
            address: (Ipv4Addr::UNSPECIFIED, 0).into(),
            path: Some(path.to_owned()),
            tls: false,
            shared: shared.clone(),
        };
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                shared.serve_new(move || Box::new(socket));
            }
        });
        upstream
    }

    fn listen(self, listener: TcpListener, tls: Option<Arc<ServerConfig>>) -> Upstream {
        let shared = self.shared();
        let upstream = Upstream {
            address: listener.local_addr().unwrap(),
            path: None,
            tls: tls.is_some(),
            shared: shared.clone(),
        };
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let tls = tls.clone();
                shared.serve_new(move || open(socket, tls));
            }
        });
        upstream
    }

    fn shared(self) -> Arc<Shared> {
        Arc::new(Shared {
            replies: self.0,
            ..Shared::default()
        })
    }
}

impl Upstream {
    /// All requests so far that have ended, one way or another.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received().clone()
    }

    /// Waits for this many requests, and fails if there are more.
    pub fn requests(&self, count: usize) -> Vec<Received> {
        eventually("the upstream's requests", || {
            (self.shared.received().len() >= count).then_some(())
        });
        let received = self.received();
        assert_eq!(received.len(), count, "{received:?}");
        received
    }

    /// The one request that arrived, and arrived whole.
    pub fn request(&self) -> Received {
        let request = self.requests(1).remove(0);
        assert!(request.whole, "{request:?}");
        request
    }

    pub fn await_heads(&self, count: usize) {
        eventually("the upstream gets request heads", || {
            (self.shared.heads.load(Ordering::SeqCst) >= count).then_some(())
        });
    }

    /// Waits until the proxy has ended this many connections.
    pub fn await_ended(&self, count: usize) {
        eventually("the proxy ends its connections", || {
            (self.shared.ended.load(Ordering::SeqCst) >= count).then_some(())
        });
    }

    /// Waits until nothing more is taken of this many connections.
    pub fn await_deaf(&self, count: usize) {
        eventually("connections of which nothing is taken", || {
            (self.shared.deaf.load(Ordering::SeqCst) >= count).then_some(())
        });
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Fails if the proxy so much as connected.
    pub fn assert_untouched(&self) {
        assert_eq!(self.connections(), 0, "{:?}", self.received());
    }

    /// Replies hold again, after a release.
    pub fn hold_again(&self) {
        *self.shared.released.lock().unwrap() = false;
    }

    /// Lets all replies go on that hold.
    pub fn release(&self) {
        *self.shared.released.lock().unwrap() = true;
        self.shared.release.notify_all();
    }
}

impl Received {
    pub fn request_line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    /// The values of a header, in order.
    pub fn header(&self, name: &str) -> Vec<&str> {
        self.head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .filter(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect()
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Shared {
    /// Serves a connection in a thread of its own.
    fn serve_new(self: &Arc<Self>, open: impl FnOnce() -> Box<dyn Socket> + Send + 'static) {
        let shared = self.clone();
        let number = shared.connections.fetch_add(1, Ordering::SeqCst);
        std::thread::spawn(move || serve(open(), number, &shared));
    }

    fn received(&self) -> MutexGuard<'_, Vec<Received>> {
        self.received.lock().unwrap()
    }

    fn hold(&self) {
        let released = self.released.lock().unwrap();
        drop(
            self.release
                .wait_timeout_while(released, PATIENCE, |released| !*released),
        );
    }
}

/// A connection with the bytes of it that were read and not yet used.
struct Wire {
    socket: Box<dyn Socket>,
    unused: Vec<u8>,
}

trait Socket: Read + Write {
    fn descriptor(&self) -> BorrowedFd<'_>;

    fn shutdown_write(&self) -> std::io::Result<()>;

    /// Announces the end, where there is a way to.
    fn say_close(&mut self) {}
}

impl Socket for TcpStream {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn shutdown_write(&self) -> std::io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Socket for UnixStream {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn shutdown_write(&self) -> std::io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Socket for StreamOwned<ServerConnection, TcpStream> {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.sock.as_fd()
    }

    fn shutdown_write(&self) -> std::io::Result<()> {
        self.sock.shutdown(Shutdown::Write)
    }

    fn say_close(&mut self) {
        self.conn.send_close_notify();
        let _ = self.flush();
    }
}

fn any_port() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn open(socket: TcpStream, tls: Option<Arc<ServerConfig>>) -> Box<dyn Socket> {
    let _ = socket.set_nodelay(true);
    let Some(config) = tls else {
        return Box::new(socket);
    };
    Box::new(StreamOwned::new(
        ServerConnection::new(config).unwrap(),
        socket,
    ))
}

impl Wire {
    /// Reads more; false at the end of the stream.
    fn more(&mut self) -> bool {
        let mut piece = [0; 16 * 1024];
        loop {
            match self.socket.read(&mut piece) {
                Ok(0) => return false,
                Ok(count) => {
                    self.unused.extend_from_slice(&piece[..count]);
                    return true;
                }
                Err(why) if why.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }

    /// The bytes up to and with an end mark; none if the stream ends before.
    fn until(&mut self, mark: &[u8]) -> Option<Vec<u8>> {
        loop {
            let found = self
                .unused
                .windows(mark.len())
                .position(|window| window == mark);
            if let Some(at) = found {
                return Some(self.unused.drain(..at + mark.len()).collect());
            }
            if !self.more() {
                return None;
            }
        }
    }

    /// Moves `count` bytes to `body`; false if the stream ends before.
    fn take(&mut self, count: usize, body: &mut Vec<u8>) -> bool {
        while self.unused.len() < count {
            if !self.more() {
                body.append(&mut self.unused);
                return false;
            }
        }
        body.extend(self.unused.drain(..count));
        true
    }

    fn body(&mut self, head: &Received, body: &mut Vec<u8>) -> bool {
        if head.header("transfer-encoding") == ["chunked"] {
            return self.chunks(body);
        }
        let length = head.header("content-length").first().map_or(0, |length| {
            length.parse().expect("a length that is a number")
        });
        self.take(length, body)
    }

    /// The payload of one frame of up to 64 KiB, unmasked.
    fn frame(&mut self) -> Option<Vec<u8>> {
        let (mut header, mut payload) = (Vec::new(), Vec::new());
        let mut length = self
            .take(2, &mut header)
            .then(|| usize::from(header[1] & 0x7f))?;
        assert_ne!(length, 127, "a short message");
        if length == 126 {
            length = self
                .take(2, &mut header)
                .then(|| usize::from(u16::from_be_bytes([header[2], header[3]])))?;
        }
        if !self.take(4, &mut header) || !self.take(length, &mut payload) {
            return None;
        }
        let mask = header[header.len() - 4..].iter().cycle();
        Some(payload.iter().zip(mask).map(|(a, b)| a ^ b).collect())
    }

    fn chunks(&mut self, body: &mut Vec<u8>) -> bool {
        loop {
            let Some(line) = self.until(b"\r\n") else {
                return false;
            };
            let line = String::from_utf8(line).unwrap();
            let size = usize::from_str_radix(line.trim_end(), 16).expect("a chunk's size");
            if size == 0 {
                return self.until(b"\r\n").is_some();
            }
            if !self.take(size, body) || self.until(b"\r\n").is_none() {
                return false;
            }
        }
    }
}

fn serve(socket: Box<dyn Socket>, number: usize, shared: &Shared) {
    let mut wire = Wire {
        socket,
        unused: Vec::new(),
    };
    while serve_request(&mut wire, number, shared) {}
    shared.ended.fetch_add(1, Ordering::SeqCst);
}

/// False when the connection is over.
fn serve_request(wire: &mut Wire, connection: usize, shared: &Shared) -> bool {
    let Some(head) = wire.until(b"\r\n\r\n") else {
        return false;
    };
    let turn = shared.heads.fetch_add(1, Ordering::SeqCst);
    let reply = &shared.replies[turn.min(shared.replies.len() - 1)];
    let mut request = Received {
        connection,
        head: String::from_utf8(head).unwrap(),
        body: Vec::new(),
        whole: false,
    };
    let (early, late) = reply
        .steps
        .split_at(reply.before_body.min(reply.steps.len()));
    let goes_on = play(wire, early, shared);
    let mut body = Vec::new();
    if goes_on {
        request.whole = wire.body(&request, &mut body);
    }
    request.body = body;
    let whole = request.whole;
    shared.received().push(request);
    whole && play(wire, late, shared)
}

/// False where these steps end the connection.
fn play(wire: &mut Wire, steps: &[Step], shared: &Shared) -> bool {
    for step in steps {
        match step {
            Step::Send(bytes) => {
                if wire.socket.write_all(bytes).is_err() {
                    return false;
                }
            }
            Step::Wait(time) => std::thread::sleep(*time),
            Step::Hold => shared.hold(),
            Step::TakeNothing => {
                let socket = wire.socket.descriptor();
                SockRef::from(&socket).attach_filter(&[DROP_ALL]).unwrap();
                shared.deaf.fetch_add(1, Ordering::SeqCst);
            }
            Step::Hear => {
                let Some(body) = wire.frame() else {
                    return false;
                };
                shared.received().push(Received {
                    connection: 0,
                    head: String::new(),
                    body,
                    whole: true,
                });
            }
            Step::Close => {
                wire.socket.say_close();
                let _ = wire.socket.shutdown_write();
                return false;
            }
            Step::Vanish => {
                let _ = wire.socket.shutdown_write();
                return false;
            }
            Step::Reset => {
                // A close with this set sends a reset instead of an end.
                let linger = libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                setsockopt(&wire.socket.descriptor(), sockopt::Linger, &linger).unwrap();
                return false;
            }
        }
    }
    true
}
