//! An upstream over TLS that speaks HTTP/2 frame by frame, each of its connections played by a function of the test's own.
//! It can do what libraries keep their users from: end streams late, refuse them, answer early and say nothing more.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::frames::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    field, frame,
};
use super::{PATIENCE, eventually, tls};

const PREFACE_BYTES: usize = 24;
const ACK: u8 = 1;
/// Of `:status` among the static fields (RFC 7541, appendix A).
const STATUS: u8 = 8;
/// How long a peer that has closed its side waits for the other.
const CLOSE_TIME: Duration = Duration::from_secs(5);

/// Reasons of RFC 9113 §7.
pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const INTERNAL_ERROR: u32 = 2;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const ENHANCE_YOUR_CALM: u32 = 11;
pub const HTTP_1_1_REQUIRED: u32 = 13;
/// The last stream of a GOAWAY that only announces another (RFC 9113 §6.8).
pub const ALL_STREAMS: u32 = 0x7fff_ffff;
/// Settings of RFC 9113 §6.5.2.
pub const MAX_CONCURRENT_STREAMS: u16 = 3;

pub struct Upstream {
    pub address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

/// What came, over all connections.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub connections: usize,
    /// Connections on which HTTP/1.1 was agreed on.
    pub http1: usize,
    /// Heads of requests.
    pub heads: usize,
    /// Bodies of requests that ended, in the order of their ends.
    pub bodies: Vec<Vec<u8>>,
    /// Streams that the proxy has reset, with their reasons.
    pub resets: Vec<(u32, u32)>,
}

/// The upstream's end of a connection.
pub struct Peer {
    /// From 0.
    pub number: usize,
    /// Whether DATA frames open the window again by as much as they took.
    pub opens_window: bool,
    stream: StreamOwned<ServerConnection, TcpStream>,
    open: HashMap<u32, Vec<u8>>,
    seen: Arc<Mutex<Seen>>,
    resets: bool,
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// What a connection brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Head(u32),
    /// The request is here whole.
    End(u32),
    Reset(u32),
}

pub fn upstream(play: impl Fn(&mut Peer) + Send + Sync + 'static) -> Upstream {
    upstream_with(&[], play)
}

/// An upstream with these settings.
pub fn upstream_with(
    settings: &[(u16, u32)],
    play: impl Fn(&mut Peer) + Send + Sync + 'static,
) -> Upstream {
    listen(&[b"h2", b"http/1.1"], settings, play)
}

/// An upstream that agrees on nothing but HTTP/2.
pub fn upstream_without_http1(play: impl Fn(&mut Peer) + Send + Sync + 'static) -> Upstream {
    listen(&[b"h2"], &[], play)
}

fn listen(
    protocols: &[&[u8]],
    settings: &[(u16, u32)],
    play: impl Fn(&mut Peer) + Send + Sync + 'static,
) -> Upstream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = Upstream {
        address: listener.local_addr().unwrap(),
        seen: Arc::default(),
    };
    let config = tls::server_config(protocols);
    let (seen, play) = (upstream.seen.clone(), Arc::new(play));
    let settings: Vec<u8> = settings
        .iter()
        .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let (seen, play) = (seen.clone(), play.clone());
            let (config, settings) = (config.clone(), settings.clone());
            std::thread::spawn(move || {
                if let Some(mut peer) = Peer::accept(socket, config, seen, &settings) {
                    play(&mut peer);
                    peer.close();
                }
            });
        }
    });
    upstream
}

impl Upstream {
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    pub fn await_heads(&self, count: usize) {
        eventually("heads of requests at the upstream", || {
            (self.seen().heads >= count).then_some(())
        });
    }
}

impl Peer {
    /// None where nothing was said. One that agrees to HTTP/1.1 answers one request and ends.
    fn accept(
        socket: TcpStream,
        config: Arc<ServerConfig>,
        seen: Arc<Mutex<Seen>>,
        settings: &[u8],
    ) -> Option<Self> {
        socket.set_nodelay(true).ok()?;
        socket.set_read_timeout(Some(PATIENCE)).ok()?;
        socket.set_write_timeout(Some(PATIENCE)).ok()?;
        let mut stream = StreamOwned::new(ServerConnection::new(config).ok()?, socket);
        let mut start = [0; PREFACE_BYTES];
        stream.read_exact(&mut start).ok()?;
        let number = {
            let mut seen = seen.lock().unwrap();
            seen.connections += 1;
            seen.connections - 1
        };
        if stream.conn.alpn_protocol() != Some(b"h2") {
            seen.lock().unwrap().http1 += 1;
            answer_http1(&mut stream, start.to_vec())?;
            return None;
        }
        stream.write_all(&frame(SETTINGS, 0, 0, settings)).ok()?;
        Some(Self {
            number,
            opens_window: true,
            stream,
            open: HashMap::new(),
            seen,
            resets: false,
        })
    }

    /// Answers each request once it is here whole, until the connection ends.
    pub fn serve(&mut self, mut answer: impl FnMut(&mut Self, u32)) {
        while let Some(stream) = self.request() {
            answer(self, stream);
        }
    }

    /// The next request that is here whole; none at the end of the connection.
    pub fn request(&mut self) -> Option<u32> {
        loop {
            if let Event::End(stream) = self.event()? {
                return Some(stream);
            }
        }
    }

    /// The head of the next request, whose body is left alone.
    pub fn head(&mut self) -> Option<u32> {
        loop {
            if let Event::Head(stream) = self.event()? {
                return Some(stream);
            }
        }
    }

    /// Reads on until the connection ends.
    pub fn hear_out(&mut self) {
        while self.event().is_some() {}
    }

    /// The next thing that is of interest; settings and pings are acknowledged on the way.
    pub fn event(&mut self) -> Option<Event> {
        loop {
            let frame = self.frame()?;
            let stream = frame.stream;
            match frame.kind {
                SETTINGS | PING if frame.flags & ACK == 0 => {
                    let payload = if frame.kind == PING {
                        &frame.payload
                    } else {
                        &vec![]
                    };
                    self.send(frame.kind, ACK, 0, payload);
                }
                RST_STREAM => {
                    self.open.remove(&stream);
                    let reason = u32::from_be_bytes(frame.payload.try_into().ok()?);
                    self.seen.lock().unwrap().resets.push((stream, reason));
                    return Some(Event::Reset(stream));
                }
                // Of a stream that is open already it is its trailers.
                HEADERS if !self.open.contains_key(&stream) => {
                    self.seen.lock().unwrap().heads += 1;
                    self.open.insert(stream, Vec::new());
                    if frame.flags & END_STREAM != 0 {
                        return self.end(stream);
                    }
                    return Some(Event::Head(stream));
                }
                HEADERS | DATA => {
                    if frame.kind == DATA {
                        self.take(stream, &frame.payload);
                    }
                    if frame.flags & END_STREAM != 0 {
                        return self.end(stream);
                    }
                }
                _ => {}
            }
        }
    }

    /// Heads of requests so far, over all connections.
    pub fn seen_heads(&self) -> usize {
        self.seen.lock().unwrap().heads
    }

    fn take(&mut self, stream: u32, payload: &[u8]) {
        if let Some(body) = self.open.get_mut(&stream) {
            body.extend(payload);
        }
        if self.opens_window && !payload.is_empty() {
            self.open_window(stream, u32::try_from(payload.len()).unwrap());
        }
    }

    fn end(&mut self, stream: u32) -> Option<Event> {
        let body = self.open.remove(&stream).unwrap_or_default();
        self.seen.lock().unwrap().bodies.push(body);
        Some(Event::End(stream))
    }

    /// Lets so many more bytes come on the connection and on a stream.
    pub fn open_window(&mut self, stream: u32, bytes: u32) {
        for stream in [0, stream] {
            self.send(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes());
        }
    }

    fn frame(&mut self) -> Option<Frame> {
        let mut header = [0; 9];
        self.stream.read_exact(&mut header).ok()?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut payload).ok()?;
        let stream = u32::from_be_bytes(header[5..].try_into().unwrap());
        let [_, _, _, kind, flags, ..] = header;
        Some(Frame {
            kind,
            flags,
            stream,
            payload,
        })
    }

    /// The proxy may have ended the connection, which shows in what is read next.
    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.send_raw(&frame(kind, flags, stream, payload));
    }

    pub fn send_raw(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
        let _ = self.stream.flush();
    }

    /// The head of a response, without its end.
    pub fn respond(&mut self, stream: u32, status: u16, fields: &[(&str, &str)]) {
        self.send(HEADERS, END_HEADERS, stream, &head(status, fields));
    }

    /// A response without a body, that ends with its head.
    pub fn respond_empty(&mut self, stream: u32, status: u16, fields: &[(&str, &str)]) {
        let flags = END_HEADERS | END_STREAM;
        self.send(HEADERS, flags, stream, &head(status, fields));
    }

    pub fn data(&mut self, stream: u32, bytes: &[u8]) {
        self.send(DATA, 0, stream, bytes);
    }

    pub fn last_data(&mut self, stream: u32, bytes: &[u8]) {
        self.send(DATA, END_STREAM, stream, bytes);
    }

    pub fn trailers(&mut self, stream: u32) {
        self.trailers_of(stream, &[("x-checksum", "1")]);
    }

    pub fn trailers_of(&mut self, stream: u32, fields: &[(&str, &str)]) {
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| field(name, value))
            .collect();
        let flags = END_HEADERS | END_STREAM;
        self.send(HEADERS, flags, stream, &fields.concat());
    }

    /// A whole response.
    pub fn json(&mut self, stream: u32, status: u16, body: &str) {
        let length = body.len().to_string();
        let fields = [
            ("content-type", "application/json"),
            ("content-length", length.as_str()),
        ];
        self.respond(stream, status, &fields);
        self.last_data(stream, body.as_bytes());
    }

    pub fn reset(&mut self, stream: u32, reason: u32) {
        self.send(RST_STREAM, 0, stream, &reason.to_be_bytes());
    }

    pub fn go_away(&mut self, last: u32, reason: u32) {
        let payload = [last.to_be_bytes(), reason.to_be_bytes()].concat();
        self.send(GOAWAY, 0, 0, &payload);
    }

    /// The connection ends by a reset, once the play is over.
    pub fn reset_connection(&mut self) {
        self.resets = true;
    }

    /// Ends the connection in good order.
    fn close(mut self) {
        if self.resets {
            let socket = socket2::SockRef::from(&self.stream.sock);
            let _ = socket.set_linger(Some(Duration::ZERO));
            return;
        }
        self.stream.conn.send_close_notify();
        let _ = self.stream.flush();
        let _ = self.stream.sock.shutdown(Shutdown::Write);
        let _ = self.stream.sock.set_read_timeout(Some(CLOSE_TIME));
        let _ = std::io::copy(&mut self.stream.sock, &mut std::io::sink());
    }
}

fn head(status: u16, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = vec![STATUS, 3];
    block.extend(status.to_string().as_bytes());
    for (name, value) in fields {
        block.extend(field(name, value));
    }
    block
}

fn answer_http1(
    stream: &mut StreamOwned<ServerConnection, TcpStream>,
    mut read: Vec<u8>,
) -> Option<()> {
    let body_from = loop {
        if let Some(at) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        more(stream, &mut read)?;
    };
    let head = String::from_utf8_lossy(&read[..body_from]).to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok())
        .unwrap_or(0);
    while read.len() < body_from + length {
        more(stream, &mut read)?;
    }
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    stream.write_all(answer).ok()?;
    stream.flush().ok()
}

fn more(stream: &mut StreamOwned<ServerConnection, TcpStream>, read: &mut Vec<u8>) -> Option<()> {
    let mut piece = [0; 4096];
    let count = stream.read(&mut piece).ok().filter(|count| *count > 0)?;
    read.extend(&piece[..count]);
    Some(())
}
