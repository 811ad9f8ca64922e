//! An upstream that takes nothing on trust: it reads requests by the letter of RFC 9112, shares no code with the proxy,
//! and calls everything a fault that a reader might take apart in another way.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::support::eventually;

/// A request as it stood on the wire.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub target: String,
    /// In their order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Without its framing.
    pub body: Vec<u8>,
    /// Whether it was there to its end.
    pub whole: bool,
}

/// All that came over one connection.
#[derive(Clone, Debug, Default)]
struct Connection {
    requests: Vec<Request>,
    fault: Option<String>,
    ended: bool,
}

pub struct Upstream {
    pub address: SocketAddr,
    connections: Arc<Mutex<Vec<Connection>>>,
}

/// The bytes of an answer.
pub type Answer = fn(&Request) -> Vec<u8>;

/// Answers each request with its own target.
pub fn upstream() -> Upstream {
    upstream_with(plain_answer)
}

pub fn plain_answer(request: &Request) -> Vec<u8> {
    let body = format!("{:?}", request.target);
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
}

pub fn upstream_with(answer: Answer) -> Upstream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = Upstream {
        address: listener.local_addr().unwrap(),
        connections: Arc::default(),
    };
    let connections = upstream.connections.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let connections = connections.clone();
            std::thread::spawn(move || serve(socket, answer, &connections));
        }
    });
    upstream
}

impl Upstream {
    /// What came, once the proxy has ended all its connections. Fails where something came that has not one reading.
    pub fn requests(&self) -> Vec<Request> {
        let connections = eventually("the end of the upstream's connections", || {
            let connections = self.connections.lock().unwrap();
            let all_ended = connections.iter().all(|connection| connection.ended);
            all_ended.then(|| connections.clone())
        });
        let mut requests = Vec::new();
        for connection in connections {
            assert_eq!(connection.fault, None);
            requests.extend(connection.requests);
        }
        requests
    }
}

/// Fails unless the upstream answered just those requests that the log tells of, each with its tier.
pub fn assert_books_agree(received: &[Request], lines: &[Value]) {
    let answered = lines.iter().filter(|line| line["upstream_status"] == 200);
    let mut told: Vec<&str> = answered.filter_map(|line| line["path"].as_str()).collect();
    let whole = || received.iter().filter(|request| request.whole);
    let mut sent: Vec<&str> = whole().map(Request::path).collect();
    told.sort_unstable();
    sent.sort_unstable();
    assert_eq!(sent, told, "what the upstream has, and what the log has");
    if let Some(request) = whole().find(|request| !request.has_its_tier()) {
        panic!("the tier of {request:?}");
    }
}

fn serve(mut socket: TcpStream, answer: Answer, connections: &Mutex<Vec<Connection>>) {
    let number = {
        let mut connections = connections.lock().unwrap();
        connections.push(Connection::default());
        connections.len() - 1
    };
    let keep = |change: &dyn Fn(&mut Connection)| change(&mut connections.lock().unwrap()[number]);
    let (mut unread, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match read_request(&unread) {
            Ok((request, length)) if request.whole => {
                unread.drain(..length);
                keep(&|connection| connection.requests.push(request.clone()));
                // The proxy may have had enough.
                let _ = socket.write_all(&answer(&request));
                continue;
            }
            Ok(_) => {}
            Err(fault) => {
                let shown = unread.escape_ascii().to_string();
                keep(&|connection| connection.fault = Some(format!("{fault}: {shown}")));
                break;
            }
        }
        match socket.read(&mut piece) {
            Ok(count) if count > 0 => unread.extend(&piece[..count]),
            _ => break,
        }
    }
    if let (false, Ok((request, _))) = (unread.is_empty(), read_request(&unread)) {
        keep(&|connection| connection.requests.push(request.clone()));
    }
    keep(&|connection| connection.ended = true);
}

/// The first request of these bytes and its length, or as much of it as is there.
///
/// # Errors
/// Where the bytes are not the beginning of a request of one reading only.
fn read_request(bytes: &[u8]) -> Result<(Request, usize), String> {
    let mut request = Request {
        method: String::new(),
        target: String::new(),
        headers: Vec::new(),
        body: Vec::new(),
        whole: false,
    };
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok((request, 0));
    };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| "a head that is not text")?;
    let mut lines = head.split("\r\n");
    let first: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, "HTTP/1.1"] = first[..] else {
        return Err("a request line of another form".to_owned());
    };
    if !is_token(method)
        || !target.starts_with('/')
        || !target.bytes().all(|b| b.is_ascii_graphic())
    {
        return Err("a method or a target of another form".to_owned());
    }
    (request.method, request.target) = (method.to_owned(), target.to_owned());
    request.headers = lines.map(read_header).collect::<Result<_, _>>()?;
    let (body, length, whole) = read_body(&request, &bytes[end + 4..])?;
    (request.body, request.whole) = (body, whole);
    Ok((request, end + 4 + length))
}

fn read_header(line: &str) -> Result<(String, String), String> {
    let (name, value) = line.split_once(':').ok_or("a header without a colon")?;
    let is_plain = |byte: u8| byte == b' ' || byte == b'\t' || byte.is_ascii_graphic();
    if !is_token(name) || !value.bytes().all(is_plain) {
        return Err(format!("the header `{}`", line.escape_debug()));
    }
    Ok((name.to_ascii_lowercase(), value.trim().to_owned()))
}

/// The body, its length on the wire, and whether it is whole.
fn read_body(request: &Request, bytes: &[u8]) -> Result<(Vec<u8>, usize, bool), String> {
    if request.values("host").len() != 1 {
        return Err("not one host".to_owned());
    }
    let is_framing = |name: &str| matches!(name, "content-length" | "transfer-encoding");
    let framing: Vec<&(String, String)> = request
        .headers
        .iter()
        .filter(|(name, _)| is_framing(&name.replace('_', "-")))
        .collect();
    match &framing[..] {
        [] => Ok((Vec::new(), 0, true)),
        [(name, value)] if name == "transfer-encoding" && value == "chunked" => read_chunks(bytes),
        [(name, value)]
            if name == "content-length"
                && !value.is_empty()
                && value.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            let length: usize = value.parse().map_err(|_| "a length beyond all numbers")?;
            let there = length.min(bytes.len());
            Ok((bytes[..there].to_vec(), there, there == length))
        }
        other => Err(format!("the framing {other:?}")),
    }
}

fn read_chunks(bytes: &[u8]) -> Result<(Vec<u8>, usize, bool), String> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let Some(end) = bytes[at..].windows(2).position(|two| two == b"\r\n") else {
            return Ok((body, bytes.len(), false));
        };
        let digits = &bytes[at..at + end];
        if digits.is_empty() || digits.len() > 15 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(format!("the chunk size `{}`", digits.escape_ascii()));
        }
        let digits = std::str::from_utf8(digits).map_err(|why| why.to_string())?;
        let size = usize::from_str_radix(digits, 16).map_err(|why| why.to_string())?;
        at += end + 2;
        let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= size + 2) else {
            body.extend(&bytes[at.min(bytes.len())..]);
            return Ok((body, bytes.len(), false));
        };
        if &rest[size..size + 2] != b"\r\n" {
            return Err("a chunk or a trailer that does not end".to_owned());
        }
        body.extend(&rest[..size]);
        at += size + 2;
        if size == 0 {
            return Ok((body, at, true));
        }
    }
}

impl Request {
    /// The target without its query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// All bodies that the tests send are `{}`, or none.
    fn has_its_tier(&self) -> bool {
        let forced = self.values("authorization") == ["Bearer sk-fast"];
        let takes_tier = self.path().ends_with("/responses") && self.method == "POST";
        !(forced && takes_tier) || self.body == br#"{"service_tier":"priority"}"#
    }

    pub fn values(&self, name: &str) -> Vec<&str> {
        let found = self.headers.iter().filter(|(found, _)| found == name);
        found.map(|(_, value)| value.as_str()).collect()
    }
}

fn is_token(name: &str) -> bool {
    let is_tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(is_tchar)
}
