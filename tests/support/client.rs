//! A client that sends the bytes it is given and takes an answer apart.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::PATIENCE;

/// Who asks, and what it puts into every head.
#[derive(Clone, Debug)]
pub struct Client {
    pub address: SocketAddr,
    headers: Vec<(String, String)>,
}

/// An open connection, mostly of TCP.
pub struct Connection<S = TcpStream> {
    reader: BufReader<S>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// Without its framing.
    pub body: Vec<u8>,
    /// Whether it ended as its framing says.
    pub whole: bool,
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            headers: Vec::new(),
        }
    }

    /// Asks for a WebSocket.
    pub fn upgrade(self) -> Self {
        self.header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn get(&self, path: &str) -> Answer {
        self.exchange(&self.head("GET", path))
    }

    /// Sends head and body in one write, on a connection of its own.
    pub fn post(&self, path: &str, body: impl AsRef<[u8]>) -> Answer {
        self.exchange(&self.message(path, body.as_ref()))
    }

    pub fn post_chunked(&self, path: &str, pieces: &[&[u8]]) -> Answer {
        let mut message = self
            .clone()
            .header("Transfer-Encoding", "chunked")
            .head("POST", path);
        for piece in pieces {
            message.extend(chunk(piece));
        }
        message.extend(b"0\r\n\r\n");
        self.exchange(&message)
    }

    pub fn exchange(&self, message: &[u8]) -> Answer {
        let mut connection = self.connect();
        connection.send(message);
        connection.answer()
    }

    pub fn connect(&self) -> Connection {
        Connection::open(self.address)
    }

    /// A whole POST.
    pub fn message(&self, path: &str, body: &[u8]) -> Vec<u8> {
        let mut message = self.head_of(path, body.len());
        message.extend(body);
        message
    }

    /// The head of a POST of `length` bytes.
    pub fn head_of(&self, path: &str, length: usize) -> Vec<u8> {
        self.clone()
            .header("Content-Length", &length.to_string())
            .head("POST", path)
    }

    pub fn head(&self, method: &str, path: &str) -> Vec<u8> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: proxy.test\r\n");
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        head.into_bytes()
    }
}

/// One chunk of a chunked body.
pub fn chunk(piece: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()
}

impl Connection {
    pub fn open(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        Self::over(socket)
    }

    pub fn socket(&self) -> &TcpStream {
        self.reader.get_ref()
    }
}

impl Connection<UnixStream> {
    pub fn open_unix(path: &Path) -> Self {
        let socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        Self::over(socket)
    }
}

impl<S: Read + Write> Connection<S> {
    fn over(socket: S) -> Self {
        Self {
            reader: BufReader::new(socket),
        }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // A proxy that has refused the request may close before it was sent whole; its answer is still to be read.
        let _ = self.reader.get_mut().write_all(bytes.as_ref());
    }

    /// The same, of which the proxy is to take all.
    pub fn send_whole(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = self.reader.get_mut().write_all(bytes.as_ref());
        sent.expect("a proxy that takes all of it");
    }

    pub fn answer(&mut self) -> Answer {
        self.try_answer().expect("an answer before the end")
    }

    /// The next answer; none where the connection ends without one. Interim answers are passed over.
    pub fn try_answer(&mut self) -> Option<Answer> {
        loop {
            let mut answer = self.head()?;
            if answer.status >= 200 {
                answer.whole = self.body(&mut answer);
                return Some(answer);
            }
        }
    }

    /// The next head, interim ones included.
    pub fn head(&mut self) -> Option<Answer> {
        let line = self.line()?;
        let status = line.split(' ').nth(1).expect("a status line");
        let mut answer = Answer {
            status: status.parse().expect("a status"),
            headers: Vec::new(),
            body: Vec::new(),
            whole: false,
        };
        while let Some(line) = self.line().filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').expect("a header line");
            answer
                .headers
                .push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Some(answer)
    }

    /// One chunk of the body of an answer whose head was read; none at the end or where it is cut.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = usize::from_str_radix(&self.line()?, 16).expect("a chunk's size");
        let mut piece = vec![0; size + 2];
        self.reader.read_exact(&mut piece).ok()?;
        piece.truncate(size);
        (size > 0).then_some(piece)
    }

    /// Fails if there is a byte more; returns when the proxy has closed in good order. A reset would show that the proxy
    /// closed with bytes unread, and a reset can take an answer away from its client.
    pub fn assert_closed(&mut self) {
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).expect("an orderly end");
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }

    /// Reads some of what comes, however it is framed; the count of bytes, none only at the end.
    pub fn read(&mut self, into: &mut [u8]) -> usize {
        self.reader.read(into).expect("bytes in time")
    }

    /// All that comes until the end.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).expect("an orderly end");
        rest
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(line.trim_end_matches("\r\n").to_owned()),
            Err(why) if why.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(why) => panic!("reading an answer: {why}"),
        }
    }

    /// Whether the body was whole.
    fn body(&mut self, answer: &mut Answer) -> bool {
        if matches!(answer.status, 204 | 304) {
            return true;
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            return self.chunks(&mut answer.body);
        }
        let Some(length) = answer.header("content-length") else {
            return self.reader.read_to_end(&mut answer.body).is_ok();
        };
        let length: u64 = length.parse().expect("a length");
        let read = self
            .reader
            .by_ref()
            .take(length)
            .read_to_end(&mut answer.body);
        read.is_ok() && answer.body.len() as u64 == length
    }

    fn chunks(&mut self, body: &mut Vec<u8>) -> bool {
        loop {
            let Some(line) = self.line() else {
                return false;
            };
            let Ok(size) = usize::from_str_radix(&line, 16) else {
                return false;
            };
            let mut piece = vec![0; size + 2];
            if self.reader.read_exact(&mut piece).is_err() {
                return false;
            }
            if size == 0 {
                return true;
            }
            body.extend(&piece[..size]);
        }
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|why| panic!("{why}: {self:?}"))
    }

    /// The code of an error in OpenAI's shape, which is checked.
    pub fn openai_code(&self) -> String {
        let json = self.json();
        let error = json["error"].as_object().expect("an error object");
        let mut members: Vec<&str> = error.keys().map(String::as_str).collect();
        members.sort_unstable();
        assert_eq!(members, ["code", "message", "param", "type"]);
        assert!(error["message"].is_string() && error["type"].is_string());
        error["code"].as_str().expect("a code").to_owned()
    }
}
