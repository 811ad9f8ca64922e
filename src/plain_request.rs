//! A request over HTTP/1.1 that asks for nothing special: a POST whose body has a known length. What is read here has one
//! reading only; whatever else a client may send is for Pingora to read. It is bytes in, an answer out.

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::framing;

/// The most header lines; those who send more are served all the same, a little slower.
const MOST_LINES: usize = 64;

/// Its head.
#[derive(Debug)]
pub struct PlainHead {
    /// As it came, to the end of its empty line.
    pub bytes: Bytes,
    pub headers: HeaderMap,
    /// Of the body.
    pub length: u64,
    /// Another request may follow.
    pub keeps_connection: bool,
    /// The client waits to be told to go on (RFC 9110 §10.1.1).
    pub waits: bool,
    target_end: usize,
}

const BEGIN: &[u8] = b"POST ";

impl PlainHead {
    /// None where it is anything else.
    pub fn read(bytes: Bytes) -> Option<Self> {
        if !bytes.starts_with(b"POST /") || !framing::is_unambiguous(&bytes) {
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
        let target_end = BEGIN.len() + target.len();
        let length = headers
            .get(header::CONTENT_LENGTH)?
            .to_str()
            .ok()?
            .parse()
            .ok()?;
        let waits = match headers.get(header::EXPECT) {
            None => false,
            Some(value) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => true,
            Some(_) => return None,
        };
        let keeps_connection = keeps_connection(&headers)?;
        let is_plain = has_plain_host(&headers) && !headers.contains_key(header::UPGRADE);
        is_plain.then_some(Self {
            headers,
            length,
            keeps_connection,
            waits,
            target_end,
            bytes,
        })
    }

    /// Path and query.
    pub fn target(&self) -> &[u8] {
        &self.bytes[BEGIN.len()..self.target_end]
    }
}

/// One host that is a name or an address, with or without its port.
fn has_plain_host(headers: &HeaderMap) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-.:[]".contains(byte);
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().map(HeaderValue::as_bytes).unwrap_or_default();
    !host.is_empty() && host.iter().all(is_plain) && hosts.next().is_none()
}

/// None where `Connection` names headers that go no further (RFC 9110 §7.6.1).
fn keeps_connection(headers: &HeaderMap) -> Option<bool> {
    let mut keeps = true;
    for line in headers.get_all(header::CONNECTION) {
        let word = line.as_bytes();
        if word.eq_ignore_ascii_case(b"close") {
            keeps = false;
        } else if !word.eq_ignore_ascii_case(b"keep-alive") {
            return None;
        }
    }
    Some(keeps)
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
