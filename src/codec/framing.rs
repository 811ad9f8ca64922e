//! Whether all who read a request's head would take it apart alike. Pingora's parser forgives what the standard lets a
//! recipient forgive, and what one forgives, another reads as the beginning of another request. So the head is looked at
//! once more as it came. It is bytes in, an answer out, and knows nothing of keys or tiers.

use http::{HeaderMap, HeaderName, header};

/// Whether a head of HTTP/1, to the end of its empty line, has one reading only: by RFC 9112 §2.2 (line ends), §3 (the
/// request line), §5.1 and §5.2 (white space, folding) and §6 (one framing, in its one spelling).
pub fn is_unambiguous(mut head: &[u8]) -> bool {
    // Empty lines before the first are to be passed over.
    while let Some(rest) = head.strip_prefix(b"\r\n") {
        head = rest;
    }
    let Some(lines) = head.strip_suffix(b"\n\r\n") else {
        return false;
    };
    let (first, rest) = split_at_line_end(lines);
    is_request_line(first) && has_one_framing(Lines(rest).map(name_and_value))
}

/// The same for a head of HTTP/2, whose frames leave only the length to be doubted.
pub fn is_unambiguous_h2(headers: &HeaderMap) -> bool {
    let headers = headers.iter();
    has_one_framing(headers.map(|(name, value)| Some((name.as_str().as_bytes(), value.as_bytes()))))
}

/// A target in absolute form (RFC 9112 §3.2.2) in the origin form that stands for it; none for a target in another form. Its
/// host is the proxy's own by whatever name, as that in `Host` is.
pub fn origin_form(target: &[u8]) -> Option<Vec<u8>> {
    let schemes = [&b"http://"[..], b"https://"];
    let scheme = schemes.into_iter().find(|scheme| {
        let start = target.get(..scheme.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    })?;
    let rest = &target[scheme.len()..];
    let end = rest.iter().position(|byte| b"/?".contains(byte));
    let (authority, path) = rest.split_at(end.unwrap_or(rest.len()));
    let slash = if path.starts_with(b"/") {
        &b""[..]
    } else {
        b"/"
    };
    (!authority.is_empty()).then(|| [slash, path].concat())
}

/// What parsed headers show of it for an answer. Nobody reads an answer in the manner of CGI.
pub fn is_unambiguous_answer(headers: &HeaderMap) -> bool {
    let framings = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
    has_one_framing(framings.iter().flat_map(|name| {
        let values = headers.get_all(name).iter();
        values.map(move |value| Some((name.as_str().as_bytes(), value.as_bytes())))
    }))
}

/// Where a head's empty line ends.
pub(super) fn head_end(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    let mut ends = memchr::memchr_iter(b'\n', bytes);
    ends.find_map(|end| {
        let line = &bytes[at..end];
        at = end + 1;
        matches!(line, b"" | b"\r").then_some(at)
    })
}

/// The status in a head's first line.
pub(super) fn status(head: &[u8]) -> Option<u16> {
    let digits = head.get(b"HTTP/1.1 ".len()..)?.get(..3)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// A status below 200 that is not the last.
pub fn is_interim(head: &[u8]) -> bool {
    status(head).is_some_and(|status| status < 200 && status != 101)
}

pub(super) fn has_two_framings(head: &[u8]) -> bool {
    let framings = [CONTENT_LENGTH, TRANSFER_ENCODING];
    let lines = framings
        .into_iter()
        .flat_map(|name| response_headers(head, name));
    let members = lines.flat_map(|line| line.split(|byte| *byte == b','));
    members.take(2).count() > 1
}

/// The headers of this name in a response's head, as a lenient reader finds them.
fn response_headers<'h>(head: &'h [u8], wanted: &'h [u8]) -> impl Iterator<Item = &'h [u8]> {
    Lines(Some(head)).filter_map(move |line| {
        let (name, value) = line.split_at(memchr::memchr(b':', line)?);
        let is_wanted = name.trim_ascii_end().eq_ignore_ascii_case(wanted);
        is_wanted.then(|| value[1..].trim_ascii())
    })
}

pub(super) fn response_header<'h>(head: &'h [u8], wanted: &'h [u8]) -> Option<&'h [u8]> {
    response_headers(head, wanted).next()
}

/// The body of a response of HTTP/1.1 as far as it is among these bytes, which begin with its head: without its framing, and
/// whether it is whole. None before the head is. A body that only the end of the connection ends is never whole.
pub fn response_body(bytes: &[u8]) -> Option<(Vec<u8>, bool)> {
    let bytes = without_interim(bytes);
    let (head, body) = bytes.split_at(head_end(bytes)?);
    if response_header(head, TRANSFER_ENCODING).is_some() {
        return Some(without_chunks(body));
    }
    let length = response_header(head, CONTENT_LENGTH).and_then(number);
    Some(match length {
        Some(length) if length <= body.len() => (body[..length].to_vec(), true),
        _ => (body.to_vec(), false),
    })
}

/// A response of HTTP/1.1 without the interim ones (1xx) before it.
pub fn without_interim(mut bytes: &[u8]) -> &[u8] {
    while let Some(end) = head_end(bytes)
        && is_interim(&bytes[..end])
    {
        bytes = &bytes[end..];
    }
    bytes
}

/// What these chunks hold (RFC 9112 §7.1), and whether the last of them is here.
fn without_chunks(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let (line, Some(rest)) = split_at_line_end(bytes) else {
            return (body, false);
        };
        let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
        let size = std::str::from_utf8(digits.trim_ascii())
            .ok()
            .and_then(|digits| usize::from_str_radix(digits, 16).ok());
        match size {
            Some(0) => return (body, true),
            Some(size) => {
                body.extend_from_slice(&rest[..size.min(rest.len())]);
                let end = size.saturating_add(b"\r\n".len());
                bytes = rest.get(end..).unwrap_or_default();
            }
            None => return (body, false),
        }
    }
}

fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The members of the comma lists in all lines of a header (RFC 9110 §5.6.1).
pub fn list_members<'h>(
    headers: &'h HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'h [u8]> {
    let lines = headers.get_all(name).iter();
    let members = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    members.map(<[u8]>::trim_ascii)
}

/// The headers that `Connection` says are of one connection only (RFC 9110 §7.6.1).
pub fn connection_headers(headers: &HeaderMap) -> Vec<HeaderName> {
    list_members(headers, &header::CONNECTION)
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        .collect()
}

/// Writes a header's line, which all read alike where name and value are well-formed.
pub fn write_line(wire: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    for part in [name, b": ", value, b"\r\n"] {
        wire.extend_from_slice(part);
    }
}

/// What is left of a head, line by line without LF.
struct Lines<'h>(Option<&'h [u8]>);

impl<'h> Iterator for Lines<'h> {
    type Item = &'h [u8];

    fn next(&mut self) -> Option<&'h [u8]> {
        let (line, rest) = split_at_line_end(self.0?);
        self.0 = rest;
        Some(line)
    }
}

/// The first line without LF, and what follows it.
fn split_at_line_end(lines: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr::memchr(b'\n', lines) {
        Some(end) => (&lines[..end], Some(&lines[end + 1..])),
        None => (lines, None),
    }
}

/// `line` without its LF.
fn is_request_line(line: &[u8]) -> bool {
    let mut words = line.split(|byte| *byte == b' ');
    let words = [words.next(), words.next(), words.next(), words.next()];
    let [Some(method), Some(target), Some(version), None] = words else {
        return false;
    };
    is_token(method)
        && !target.is_empty()
        && are_all(target, |byte| byte.is_ascii_graphic() && byte != b'#')
        && matches!(version, b"HTTP/1.1\r" | b"HTTP/1.0\r")
}

/// Name and value of a header line without its LF; none for a line that is not just that.
pub(super) fn name_and_value(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = line.strip_suffix(b"\r")?;
    let (name, value) = line.split_at(memchr::memchr(b':', line)?);
    let value = &value[1..];
    let is_plain = are_all(value, |byte| byte >= b' ' && byte != 0x7f || byte == b'\t');
    (is_plain && is_token(name)).then_some((name, value.trim_ascii()))
}

/// At most one header says how long the body is, and says it in the way that all understand; and all are headers.
fn has_one_framing<'h>(headers: impl Iterator<Item = Option<(&'h [u8], &'h [u8])>>) -> bool {
    let mut framed = false;
    for header in headers {
        let Some((name, value)) = header else {
            return false;
        };
        if is_framing(name) {
            if framed || !is_plain_framing(name, value) {
                return false;
            }
            framed = true;
        }
    }
    true
}

fn is_plain_framing(name: &[u8], value: &[u8]) -> bool {
    if name.eq_ignore_ascii_case(CONTENT_LENGTH) {
        return !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    }
    name.eq_ignore_ascii_case(TRANSFER_ENCODING) && value.eq_ignore_ascii_case(b"chunked")
}

const CONTENT_LENGTH: &[u8] = b"content-length";
pub(super) const TRANSFER_ENCODING: &[u8] = b"transfer-encoding";

/// Also by a name with underscores, which servers in the manner of CGI (RFC 3875 §4.1.18) take for hyphens.
fn is_framing(name: &[u8]) -> bool {
    [CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(|framing| {
        let folded = |byte: &u8| match byte {
            b'_' => b'-',
            other => other.to_ascii_lowercase(),
        };
        name.len() == framing.len() && name.iter().map(folded).eq(framing.iter().copied())
    })
}

/// RFC 9110 §5.6.2.
fn is_token(name: &[u8]) -> bool {
    !name.is_empty() && are_all(name, |byte| TOKEN[usize::from(byte)])
}

const TOKEN: [bool; 256] = {
    let mut token = [false; 256];
    let marks = b"!#$%&'*+-.^_`|~";
    let mut at = 0;
    while at < token.len() {
        token[at] = (at as u8).is_ascii_alphanumeric();
        at += 1;
    }
    at = 0;
    while at < marks.len() {
        token[marks[at] as usize] = true;
        at += 1;
    }
    token
};

/// To the end in any case: without a way out in the middle, many bytes are looked at together.
fn are_all(bytes: &[u8], is: impl Fn(u8) -> bool) -> bool {
    bytes.iter().fold(true, |all, byte| all & is(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(lines: &str) -> bool {
        is_unambiguous(format!("POST /a?b HTTP/1.1\r\n{lines}\r\n").as_bytes())
    }

    #[test]
    fn what_clients_send_has_one_reading() {
        for lines in [
            "",
            "Host: h\r\n",
            "content-length: 0012\r\nX-Y_z: \t a\u{e4}, b  \r\nEmpty:\r\n",
            "TRANSFER-encoding:Chunked \r\n",
        ] {
            assert!(head(lines), "{lines:?}");
        }
        assert!(is_unambiguous(b"\r\n\r\nGET /{x}|y HTTP/1.0\r\n\r\n"));
    }

    #[test]
    fn what_two_could_read_in_two_ways_has_none() {
        for lines in [
            "A: b\n",
            "A: b\rC: d\r\n",
            "A: b\r\r\n",
            "A: b\0\r\n",
            "A : b\r\n",
            "A: b\r\n c\r\n",
            ": b\r\n",
            "A\r\n",
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length:\r\n",
            "Content_Length: 1\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: \x0bchunked\r\n",
            "Transfer_Encoding: chunked\r\n",
        ] {
            assert!(!head(lines), "{lines:?}");
        }
        for whole in [
            "POST /a HTTP/1.1\nA: b\r\n\r\n",
            "POST /a HTTP/1.1\r\n\n",
            "\nPOST /a HTTP/1.1\r\n\r\n",
            "POST  /a HTTP/1.1\r\n\r\n",
            "POST /a#b HTTP/1.1\r\n\r\n",
            "POST /a b HTTP/1.1\r\n\r\n",
            "POST /a HTTP/1.1",
            "",
        ] {
            assert!(!is_unambiguous(whole.as_bytes()), "{whole:?}");
        }
    }

    #[test]
    fn a_target_in_absolute_form_is_put_into_origin_form() {
        for (target, expected) in [
            ("http://h/v1/x?y", Some("/v1/x?y")),
            ("HTTPS://h:80", Some("/")),
            ("http://h?http://i/", Some("/?http://i/")),
            ("http://h//x", Some("//x")),
            ("http:///x", None),
            ("/http://h/x", None),
            ("ftp://h/x", None),
            ("h:80", None),
            ("*", None),
        ] {
            let found = origin_form(target.as_bytes());
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{target}");
        }
    }

    #[test]
    fn a_length_of_http_2_is_told_once_and_in_digits() {
        let map = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("content-length", http::HeaderValue::from_static(value));
            }
            is_unambiguous_h2(&headers)
        };
        assert!(map(&[]) && map(&["12"]));
        assert!(!map(&["12", "12"]) && !map(&["1", "2"]) && !map(&["+1"]));
    }

    #[test]
    fn the_body_of_a_response_is_told_from_its_framing() {
        let body = |head: &str, body: &str| {
            let bytes = format!("HTTP/1.1 400 Bad\r\n{head}\r\n{body}");
            let read = response_body(bytes.as_bytes());
            read.map(|(body, whole)| (String::from_utf8(body).unwrap(), whole))
        };
        let text = |body: &str, whole| Some((body.to_owned(), whole));
        let (length, chunks) = ("Content-Length: 4\r\n", "transfer-encoding: chunked\r\n");
        assert_eq!(body(length, "abcd"), text("abcd", true));
        assert_eq!(body(length, "abcdef"), text("abcd", true));
        assert_eq!(body(length, "abc"), text("abc", false));
        assert_eq!(body("", "abc"), text("abc", false));
        assert_eq!(
            body(chunks, "2;x=y\r\nab\r\n00A\r\n0123456789\r\n0\r\n\r\n"),
            text("ab0123456789", true)
        );
        for (cut, whole) in [
            ("2", ""),
            ("2\r\na", "a"),
            ("2\r\nab\r\n", "ab"),
            ("2\r\nab\r\nff\r\nc", "abc"),
            ("x\r\nab", ""),
            ("ffffffffffffffff\r\nab", "ab"),
        ] {
            assert_eq!(body(chunks, cut), text(whole, false), "{cut:?}");
        }
        let bare = b"HTTP/1.0 400 Bad\nContent-Length: 1\n\na";
        assert_eq!(response_body(bare), Some((b"a".to_vec(), true)));
        assert_eq!(
            response_body(b"HTTP/1.1 400 Bad\r\nContent-Length: 4\r\n"),
            None
        );
        let hints = b"HTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 400 Bad\r\nContent-Length: 1\r\n\r\na";
        assert_eq!(response_body(hints), Some((b"a".to_vec(), true)));
    }

    #[test]
    fn an_answer_is_framed_once() {
        let answer = |lines: &[(&'static str, &'static str)]| {
            let lines = lines.iter().map(|(name, value)| {
                let value = http::HeaderValue::from_static(value);
                (http::HeaderName::from_static(name), value)
            });
            is_unambiguous_answer(&lines.collect())
        };
        let (length, coding) = (("content-length", "1"), ("transfer-encoding", "chunked"));
        assert!(answer(&[]) && answer(&[length]) && answer(&[coding]));
        assert!(answer(&[length, ("content_length", "2")]));
        assert!(!answer(&[length, coding]) && !answer(&[("transfer-encoding", "gzip, chunked")]));
    }
}
