//! A request over HTTP/1.1 that asks for nothing special: a POST whose body has a known length, or a GET that asks for a
//! WebSocket. What is read here has one reading only; whatever else a client may send is for Pingora to read. It is bytes in,
//! an answer out.

use std::ops::Range;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use crate::codec::framing;

/// The most header lines; those who send more are served all the same, a little slower.
const MOST_LINES: usize = 256;

/// Its head.
#[derive(Debug)]
pub struct PlainHead {
    /// As it came, to the end of its empty line.
    pub bytes: Bytes,
    pub method: Method,
    pub headers: HeaderMap,
    /// The connection is to become a WebSocket (RFC 6455 §4.1).
    pub upgrades: bool,
    /// Of the body.
    pub length: u64,
    /// Another request may follow.
    pub keeps_connection: bool,
    /// The client waits to be told to go on (RFC 9110 §10.1.1).
    pub waits: bool,
    target: Range<usize>,
}

impl PlainHead {
    /// None where it is anything else.
    pub fn read(bytes: Bytes) -> Option<Self> {
        let method = match &*bytes {
            [b'P', b'O', b'S', b'T', b' ', b'/', ..] => Method::POST,
            [b'G', b'E', b'T', b' ', b'/', ..] => Method::GET,
            _ => return None,
        };
        if !framing::is_unambiguous(&bytes) {
            return None;
        }
        let mut lines = [const { std::mem::MaybeUninit::uninit() }; MOST_LINES];
        let mut parsed = httparse::Request::new(&mut []);
        let status = parsed.parse_with_uninit_headers(&bytes, &mut lines).ok()?;
        if status != httparse::Status::Complete(bytes.len()) || parsed.version != Some(1) {
            return None;
        }
        let mut headers = HeaderMap::with_capacity(parsed.headers.len());
        for line in &*parsed.headers {
            let name = HeaderName::from_bytes(line.name.as_bytes()).ok()?;
            let value = HeaderValue::from_maybe_shared(bytes.slice_ref(line.value)).ok()?;
            headers.append(name, value);
        }
        let target = parsed.path?;
        // What stands in none (RFC 3986 §3.3 and §3.4) is refused.
        PathAndQuery::from_maybe_shared(bytes.slice_ref(target.as_bytes())).ok()?;
        let begin = method.as_str().len() + " ".len();
        let target = begin..begin + target.len();
        let length = match headers.get(header::CONTENT_LENGTH) {
            Some(length) => length.to_str().ok()?.parse().ok()?,
            None if method == Method::GET => 0,
            None => return None,
        };
        let waits = match headers.get(header::EXPECT) {
            None => false,
            Some(value) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => true,
            Some(_) => return None,
        };
        let connection = Connection::read(&headers)?;
        let upgrades = method == Method::GET;
        let is_plain = has_plain_host(&headers)
            && upgrades == connection.upgrades
            && upgrades == asks_for_websocket(&headers)?
            && !(upgrades && (length > 0 || headers.contains_key(header::TRANSFER_ENCODING)));
        is_plain.then_some(Self {
            method,
            headers,
            upgrades,
            length,
            keeps_connection: connection.keeps,
            waits,
            target,
            bytes,
        })
    }

    /// Path and query.
    pub fn target(&self) -> &[u8] {
        &self.bytes[self.target.clone()]
    }
}

/// None where it asks for something else.
fn asks_for_websocket(headers: &HeaderMap) -> Option<bool> {
    let mut lines = headers.get_all(header::UPGRADE).iter();
    match (lines.next(), lines.next()) {
        (None, _) => Some(false),
        (Some(line), None) if line.as_bytes().eq_ignore_ascii_case(b"websocket") => Some(true),
        _ => None,
    }
}

/// What is said of the connection.
struct Connection {
    keeps: bool,
    upgrades: bool,
}

/// One host that is a name or an address, with or without its port.
fn has_plain_host(headers: &HeaderMap) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(byte);
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().map(HeaderValue::as_bytes).unwrap_or_default();
    !host.is_empty() && host.iter().all(is_plain) && hosts.next().is_none()
}

impl Connection {
    /// None where it names headers that go no further (RFC 9110 §7.6.1).
    fn read(headers: &HeaderMap) -> Option<Self> {
        let mut connection = Self {
            keeps: true,
            upgrades: false,
        };
        for option in framing::list_members(headers, &header::CONNECTION) {
            match option {
                _ if option.eq_ignore_ascii_case(b"close") => connection.keeps = false,
                _ if option.eq_ignore_ascii_case(b"upgrade") => connection.upgrades = true,
                _ if option.eq_ignore_ascii_case(b"keep-alive") => {}
                _ => return None,
            }
        }
        Some(connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(head: &str) -> Option<PlainHead> {
        PlainHead::read(Bytes::copy_from_slice(head.as_bytes()))
    }

    #[test]
    fn what_clients_send_is_read() {
        let lines =
            "Host: h\r\nx-A: \t1 \r\nX-a:2\r\ncontent-length: 0012\r\nConnection: Keep-Alive\r\n";
        let head = read(&format!("POST /v1/a?b=/c HTTP/1.1\r\n{lines}\r\n")).unwrap();
        assert_eq!(head.target(), b"/v1/a?b=/c");
        assert_eq!(
            (head.length, head.keeps_connection, head.waits),
            (12, true, false)
        );
        let values: Vec<_> = head.headers.get_all("x-a").iter().collect();
        assert_eq!(values, ["1", "2"]);
        let lines = "Host: h\r\nContent-Length: 1\r\nConnection: close\r\nExpect: 100-Continue\r\n";
        let head = read(&format!("POST / HTTP/1.1\r\n{lines}\r\n")).unwrap();
        assert_eq!((head.keeps_connection, head.waits), (false, true));
    }

    #[test]
    fn a_get_is_read_where_it_asks_for_an_upgrade() {
        let get = |lines: &str| read(&format!("GET /x HTTP/1.1\r\nHost: h_1:80\r\n{lines}\r\n"));
        let head = get("Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n").unwrap();
        assert_eq!((head.target(), head.length), (&b"/x"[..], 0));
        assert!(head.upgrades && head.method == Method::GET);
        for lines in [
            "",
            "Connection: upgrade\r\n",
            "Upgrade: websocket\r\n",
            "Connection: upgrade\r\nUpgrade: TLS/1.2\r\n",
            "Connection: upgrade\r\nUpgrade: websocket, h2c\r\n",
            "Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: websocket\r\n",
            "Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\n",
            "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n",
            "Connection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n",
        ] {
            assert!(get(lines).is_none(), "{lines:?}");
        }
    }

    #[test]
    fn all_else_is_left_alone() {
        for first in [
            "GET / HTTP/1.1",
            "post / HTTP/1.1",
            "POST http://h/ HTTP/1.1",
            "POST * HTTP/1.1",
            "POST /?\"x\" HTTP/1.1",
            "POST / HTTP/1.0",
            "POST / HTTP/2.0",
            "POST  / HTTP/1.1",
            "\r\nPOST / HTTP/1.1",
        ] {
            assert!(
                read(&format!("{first}\r\nHost: h\r\nContent-Length: 1\r\n\r\n")).is_none(),
                "{first}"
            );
        }
        for lines in [
            "Host: h\r\n",
            "Content-Length: 1\r\n",
            "Host: h\r\nHost: h\r\nContent-Length: 1\r\n",
            "Host:\r\nContent-Length: 1\r\n",
            "Host: u@h\r\nContent-Length: 1\r\n",
            "Host: h/x\r\nContent-Length: 1\r\n",
            "Host: h\r\nTransfer-Encoding: chunked\r\n",
            "Host: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Host: h\r\nContent-Length: 1\r\nContent-Length: 1\r\n",
            "Host: h\r\nContent-Length: 99999999999999999999\r\n",
            "Host: h\r\nContent-Length: 1\r\nUpgrade: websocket\r\n",
            "Host: h\r\nContent-Length: 1\r\nConnection: x-a\r\n",
            "Host: h\r\nContent-Length: 1\r\nConnection: keep-alive, te\r\n",
            "Host: h\r\nContent-Length: 1\r\nExpect: tea\r\n",
            "Host: h\r\nContent-Length: 1\r\nA: b\n",
            "Host: h\r\nContent-Length: 1\r\nA : b\r\n",
            "Host: h\r\nContent-Length: 1\r\nA: b\r\n c\r\n",
        ] {
            assert!(
                read(&format!("POST / HTTP/1.1\r\n{lines}\r\n")).is_none(),
                "{lines:?}"
            );
        }
        let many = "a: b\r\n".repeat(MOST_LINES);
        assert!(
            read(&format!(
                "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n{many}\r\n"
            ))
            .is_none()
        );
    }
}
