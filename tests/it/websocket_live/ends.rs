//! Both ends of a WebSocket that goes through the proxy. The upstream's has TLS, as most have it, unless a test says otherwise.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use rustls::{ClientConnection, ServerConnection, StreamOwned};
use serde_json::Value;
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::server::{Request, Response};
use tungstenite::http::{HeaderMap, HeaderValue};
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame, FrameHeader};
use tungstenite::{Message, Utf8Bytes, WebSocket};

use crate::support::client::Client;
use crate::support::proxy::{Proxy, Target};
use crate::support::tls;
use crate::support::{PATIENCE, eventually};

pub const PATH: &str = "/v1/responses";

pub const CREATE: &str =
    r#"{"type":"response.create","model":"m-1","service_tier":"flex","n":1.0}"#;
pub const FORCED: &str = concat!(
    r#"{"service_tier":"priority","type":"response.create","model":"m-1""#,
    "                      ",
    r#","n":1.0}"#
);
pub const CREATED: &str = r#"{"type":"response.created","response":{"id":"resp_1"}}"#;
pub const DELTA: &str = r#"{"type":"response.output_text.delta","delta":"x"}"#;
pub const COMPLETED: &str = r#"{"type":"response.completed","response":{"id":"resp_1","model":"m-1-2026","service_tier":"default","usage":{"input_tokens":10,"input_tokens_details":{"cached_tokens":4},"output_tokens":7,"output_tokens_details":{"reasoning_tokens":3}}}}"#;

/// The upstream's listener.
pub struct Upstream {
    pub address: SocketAddr,
    tls: bool,
    listener: TcpListener,
}

/// A WebSocket through the proxy.
pub struct Socket {
    pub client: End,
    pub server: End,
    /// What the upstream was asked with.
    pub asked: Asked,
    /// The headers of the answer as the client has them.
    pub answered: HeaderMap,
}

pub struct Asked {
    pub target: String,
    pub headers: HeaderMap,
}

/// One end.
pub struct End {
    socket: WebSocket<Box<dyn Stream>>,
}

/// What an end hears.
#[derive(Debug, PartialEq)]
pub enum Heard {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    /// The code and the reason.
    Close(u16, String),
    /// The connection ended without a close frame.
    Cut,
}

pub trait Stream: Read + Write + Send {}

impl Stream for TcpStream {}

impl Stream for StreamOwned<ClientConnection, TcpStream> {}

impl Stream for StreamOwned<ServerConnection, TcpStream> {}

impl Target for Upstream {
    fn url(&self) -> String {
        match self.tls {
            true => format!("https://localhost:{}", self.address.port()),
            false => format!("http://{}", self.address),
        }
    }
}

pub fn upstream() -> Upstream {
    listen(true)
}

/// One without TLS.
pub fn plain_upstream() -> Upstream {
    listen(false)
}

fn listen(tls: bool) -> Upstream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    Upstream {
        address: listener.local_addr().unwrap(),
        tls,
        listener,
    }
}

impl Upstream {
    /// A WebSocket on the responses endpoint.
    pub fn open(&self, proxy: &Proxy, key: &str) -> Socket {
        self.open_at(proxy, key, PATH, &[])
    }

    /// One on which the upstream has [`CREATE`].
    pub fn open_turn(&self, proxy: &Proxy, key: &str) -> Socket {
        let mut socket = self.open(proxy, key);
        socket.client.say(CREATE);
        socket.server.hear_text();
        socket
    }

    pub fn open_at(
        &self,
        proxy: &Proxy,
        key: &str,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Socket {
        self.open_over(Box::new(connect(proxy.address)), key, path, headers)
    }

    /// The same through the listener with TLS.
    pub fn open_with_tls(&self, proxy: &Proxy, key: &str) -> Socket {
        // A WebSocket is a matter of HTTP/1.1.
        let stream = tls::client(connect(proxy.tls_address), b"http/1.1");
        self.open_over(Box::new(stream), key, PATH, &[])
    }

    fn open_over(
        &self,
        stream: Box<dyn Stream>,
        key: &str,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Socket {
        std::thread::scope(|scope| {
            let accepted = scope.spawn(|| self.accept());
            let mut request = format!("ws://proxy.test{path}")
                .into_client_request()
                .unwrap();
            let key = format!("Bearer {key}");
            for (name, value) in [("authorization", &*key)].iter().chain(headers) {
                let value = HeaderValue::from_str(value).unwrap();
                request.headers_mut().insert(*name, value);
            }
            let (socket, answer) = tungstenite::client(request, stream).expect("a WebSocket");
            let (server, asked) = accepted.join().unwrap();
            Socket {
                client: End { socket },
                server,
                asked,
                answered: answer.headers().clone(),
            }
        })
    }

    fn accept(&self) -> (End, Asked) {
        let (stream, _) = self.listener.accept().unwrap();
        let stream: Box<dyn Stream> = match self.tls {
            true => Box::new(secured(prepared(stream))),
            false => Box::new(prepared(stream)),
        };
        let mut asked = None;
        // The type of the error is the library's.
        #[allow(clippy::result_large_err)]
        let answer = |request: &Request, mut response: Response| {
            asked = Some(Asked {
                target: request.uri().to_string(),
                headers: request.headers().clone(),
            });
            for (name, value) in [("x-request-id", "req_ws"), ("x-codex-turn-state", "state")] {
                let value = HeaderValue::from_static(value);
                response.headers_mut().insert(name, value);
            }
            Ok(response)
        };
        let socket = tungstenite::accept_hdr(stream, answer).expect("a handshake");
        let asked = asked.expect("a request");
        (End { socket }, asked)
    }
}

impl Socket {
    /// The client says that it goes, and the server agrees.
    pub fn close(mut self) {
        let bye = CloseFrame {
            code: CloseCode::Normal,
            reason: "bye".into(),
        };
        self.client.socket.close(Some(bye)).unwrap();
        for end in [&mut self.server, &mut self.client] {
            assert_eq!(end.hear(), Heard::Close(1000, "bye".to_owned()));
            // The answer to it; where there is none to send, the end is told here.
            let _ = end.socket.flush();
        }
    }
}

impl End {
    pub fn say(&mut self, text: impl Into<Utf8Bytes>) {
        self.send(Message::Text(text.into()));
    }

    pub fn send(&mut self, message: Message) {
        self.socket.send(message).expect("a peer that listens");
    }

    /// Sends this to a peer that may have gone.
    pub fn try_send(&mut self, message: Message) {
        let _ = self.socket.send(message);
    }

    /// Says this again and again, until nothing more is taken.
    pub fn insist(&mut self, text: &str) {
        while self.socket.send(Message::text(text)).is_ok() {}
    }

    /// One frame of a text message.
    pub fn fragment(&mut self, first: bool, last: bool, text: &str) {
        let kind = if first { Data::Text } else { Data::Continue };
        let frame = Frame::message(text.to_owned(), OpCode::Data(kind), last);
        self.send(Message::Frame(frame));
    }

    /// Bytes that are not framed here.
    pub fn raw(&mut self, bytes: &[u8]) {
        let stream = self.socket.get_mut();
        stream.write_all(bytes).unwrap();
        stream.flush().unwrap();
    }

    pub fn hear(&mut self) -> Heard {
        match self.socket.read() {
            Ok(Message::Text(text)) => Heard::Text(text.to_string()),
            Ok(Message::Binary(bytes)) => Heard::Binary(bytes.to_vec()),
            Ok(Message::Ping(bytes)) => Heard::Ping(bytes.to_vec()),
            Ok(Message::Pong(bytes)) => Heard::Pong(bytes.to_vec()),
            Ok(Message::Close(frame)) => {
                let frame = frame.expect("a close with a code");
                Heard::Close(frame.code.into(), frame.reason.to_string())
            }
            Ok(Message::Frame(frame)) => panic!("no frame is read raw: {frame}"),
            Err(tungstenite::Error::Io(why)) if is_timeout(&why) => {
                panic!("nothing to hear within {PATIENCE:?}")
            }
            Err(_) => Heard::Cut,
        }
    }

    pub fn hear_text(&mut self) -> String {
        match self.hear() {
            Heard::Text(text) => text,
            other => panic!("not a text: {other:?}"),
        }
    }

    pub fn hear_json(&mut self) -> Value {
        serde_json::from_str(&self.hear_text()).unwrap()
    }

    /// The event with which a message is refused, and then the close. Returns the code of both.
    pub fn hear_refusal(&mut self) -> (String, u16) {
        let (status, kind, code, close) = self.hear_farewell();
        assert_eq!((status, &*kind), (400, "invalid_request_error"));
        (code, close)
    }

    /// The event that tells why the proxy closes, and then the close: the event's status, type and code, and the close's.
    pub fn hear_farewell(&mut self) -> (u64, String, String, u16) {
        let event = self.hear_json();
        let error = &event["error"];
        assert_eq!(event["type"], "error");
        assert!(error["message"].is_string() && error["param"].is_null());
        let Heard::Close(close, code) = self.hear() else {
            panic!("no close after {event}");
        };
        assert_eq!(error["code"], *code);
        let kind = error["type"].as_str().unwrap().to_owned();
        (event["status"].as_u64().unwrap(), kind, code, close)
    }

    /// Waits until the peer is gone, having said nothing more but, maybe, that it goes.
    pub fn hear_end(&mut self) {
        loop {
            match self.hear() {
                Heard::Close(..) => {}
                Heard::Cut => return,
                other => panic!("still there: {other:?}"),
            }
        }
    }

    /// So many bytes, as they are.
    pub fn read_raw(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.socket.get_mut().read_exact(&mut bytes).unwrap();
        bytes
    }

    /// All bytes until the end, as they are.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.socket.get_mut().read_to_end(&mut rest).unwrap();
        rest
    }

    /// Ends the connection without a word.
    pub fn vanish(self) {}
}

fn is_timeout(why: &std::io::Error) -> bool {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    matches!(why.kind(), TimedOut | WouldBlock)
}

fn connect(address: SocketAddr) -> TcpStream {
    prepared(TcpStream::connect(address).unwrap())
}

/// The server agrees to HTTP/2 where it is asked for a WebSocket only if the proxy offers that, which it must not.
fn secured(stream: TcpStream) -> StreamOwned<ServerConnection, TcpStream> {
    let config = tls::server_config(&[b"h2", b"http/1.1"]);
    StreamOwned::new(ServerConnection::new(config).unwrap(), stream)
}

fn prepared(stream: TcpStream) -> TcpStream {
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Has the server say this, and the client hear it.
pub fn answer(socket: &mut Socket, events: &[&str]) {
    for event in events {
        socket.server.say(*event);
        assert_eq!(socket.client.hear_text(), *event);
    }
}

/// Has the server send a ping and, in the same write, the bytes that follow it: when the client has heard the one, the
/// proxy has seen all.
pub fn pass_ping(socket: &mut Socket, followed_by: &[u8]) {
    socket
        .server
        .raw(&[&[0x89, 0x03], &b"now"[..], followed_by].concat());
    assert_eq!(socket.client.hear(), Heard::Ping("now".into()));
}

/// Has the server send bytes that are no whole frame, and takes them from the client's stream.
pub fn pass_bytes(socket: &mut Socket, bytes: &[u8]) {
    socket.server.raw(bytes);
    let mut arrived = vec![0; bytes.len()];
    let client = socket.client.socket.get_mut();
    client.read_exact(&mut arrived).unwrap();
    assert_eq!(arrived, bytes);
}

/// Returns its revision, once it is in force.
pub fn replace_policy(proxy: &Proxy, policy: &str) -> String {
    let comment = format!("# {}\n", proxy.log_lines().len());
    std::fs::write(proxy.path("policy.yaml"), comment + policy).unwrap();
    let before = proxy.status()["policy"]["revision"].clone();
    eventually("the new policy", || {
        let now = proxy.status()["policy"]["revision"].clone();
        (now != before).then(|| now.as_str().unwrap().to_owned())
    })
}

/// The head with which this client asks for a WebSocket.
pub fn handshake(client: &Client) -> Vec<u8> {
    client.clone().upgrade().head("GET", PATH)
}

/// A text message in one frame, as a client sends it.
pub fn masked(text: &str) -> Vec<u8> {
    framed(text, Some([1, 2, 3, 4]))
}

/// The same as a server sends it.
pub fn unmasked(text: &str) -> Vec<u8> {
    framed(text, None)
}

fn framed(text: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    let header = FrameHeader {
        opcode: OpCode::Data(Data::Text),
        mask,
        ..FrameHeader::default()
    };
    let mut bytes = Vec::new();
    let frame = Frame::from_payload(header, text.to_owned().into());
    frame.format(&mut bytes).unwrap();
    bytes
}
