//! HTTP/1.1 past Pingora: heads of requests held against httparse's own reading and answers against a reader that has them
//! whole. The same is read however an answer arrives, and what a client is sent says what the upstream said.

#![no_main]

use http::HeaderName;
use libfuzzer_sys::fuzz_target;
use tiergate_fuzz::answer::{AnswerBody, AnswerHead, Framing, Piece};
use tiergate_fuzz::pieces;
use tiergate_fuzz::plain_request::PlainHead;

const REPLACED: HeaderName = HeaderName::from_static("x-tiergate-request-id");

fuzz_target!(|input: &[u8]| {
    let Some((seed, bytes)) = input.split_first_chunk::<2>() else {
        return;
    };
    check_request(bytes);
    check_answer(bytes, u16::from_le_bytes(*seed));
});

/// What is served past Pingora has one length, one host and a target without a host.
fn check_request(bytes: &[u8]) {
    let Some(head) = PlainHead::read(bytes.to_vec().into()) else {
        return;
    };
    let mut lines = [httparse::EMPTY_HEADER; 512];
    let mut parsed = httparse::Request::new(&mut lines);
    assert_eq!(
        parsed.parse(bytes),
        Ok(httparse::Status::Complete(bytes.len()))
    );
    assert_eq!(parsed.method, Some(head.method.as_str()));
    assert_eq!(parsed.path.map(str::as_bytes), Some(head.target()));
    assert!(head.target().starts_with(b"/"));
    let values = |name: &str| {
        let named = parsed.headers.iter();
        let named = named.filter(|line| line.name.eq_ignore_ascii_case(name));
        named.map(|line| line.value).collect::<Vec<_>>()
    };
    assert_eq!(values("host").len(), 1);
    assert_eq!(values("transfer-encoding"), [b""; 0]);
    match &values("content-length")[..] {
        [length] => assert_eq!(
            std::str::from_utf8(length).unwrap().parse(),
            Ok(head.length)
        ),
        none => assert!(none.is_empty() && head.upgrades && head.length == 0),
    }
    assert_eq!(values("upgrade").len(), usize::from(head.upgrades));
    let raw = bytes
        .windows(2)
        .filter(|pair| pair[1] == b'\n' && pair[0] != b'\r');
    assert_eq!(raw.count(), 0, "a bare line feed");
}

fn check_answer(bytes: &[u8], seed: u16) {
    let mut wire = Vec::new();
    let Ok(Some(head)) = AnswerHead::read(bytes, &REPLACED, &mut wire) else {
        return;
    };
    // The client's reading of the lines that it gets.
    let mut again = Vec::new();
    let passed = [&wire[..], b"\r\n"].concat();
    let read = AnswerHead::read(&passed, &REPLACED, &mut again)
        .unwrap()
        .unwrap();
    assert_eq!(
        (&again, read.status, read.bytes),
        (&wire, head.status, passed.len())
    );
    for (name, value) in &read.headers {
        assert!(head.headers.get_all(name).iter().any(|came| came == value));
    }
    if let Framing::Length(length @ 1..) = head.framing {
        assert_eq!(read.framing, Framing::Length(length));
    }
    let body = &bytes[head.bytes..];
    let expected = data(head.framing, &[body]);
    assert_eq!(data(head.framing, &pieces(body, seed)), expected);
    let single: Vec<&[u8]> = body.chunks(1).collect();
    assert_eq!(data(head.framing, &single), expected);
    if head.framing == Framing::Chunked {
        assert_eq!(expected, whole_chunks(body));
    }
}

/// The data of a body, and whether it has ended; none where it is not well-formed.
fn data(framing: Framing, pieces: &[&[u8]]) -> Option<(Vec<u8>, bool)> {
    let (mut body, mut data) = (AnswerBody::new(framing), Vec::new());
    for piece in pieces {
        let mut left = *piece;
        loop {
            match body.next(&mut left).ok()? {
                Piece::Data(more) => data.extend_from_slice(more),
                Piece::Pause => break,
                Piece::End => return Some((data, true)),
            }
        }
    }
    let ended = matches!(body.next(&mut &b""[..]), Ok(Piece::End));
    Some((data, ended))
}

/// RFC 9112 §7.1, read from the front of a body that is all there.
fn whole_chunks(mut body: &[u8]) -> Option<(Vec<u8>, bool)> {
    let mut data = Vec::new();
    loop {
        let Some(end) = body.windows(2).position(|pair| pair == b"\r\n") else {
            return is_begun(body, true).then_some((data, false));
        };
        let (line, rest) = (&body[..end], &body[end + 2..]);
        if !is_begun(line, false) {
            return None;
        }
        let digits = line
            .iter()
            .take_while(|byte| byte.is_ascii_hexdigit())
            .count();
        let size = usize::from_str_radix(std::str::from_utf8(&line[..digits]).unwrap(), 16).ok()?;
        if size == 0 {
            return trailer(rest).map(|ended| (data, ended));
        }
        data.extend_from_slice(&rest[..size.min(rest.len())]);
        let Some(rest) = rest.get(size..) else {
            return Some((data, false));
        };
        match rest {
            [b'\r', b'\n', behind @ ..] => body = behind,
            [] | [b'\r'] => return Some((data, false)),
            _ => return None,
        }
    }
}

/// Whether this is, or may become, the line of a chunk's length.
fn is_begun(line: &[u8], mut may_return: bool) -> bool {
    let line = match line.strip_suffix(b"\r") {
        Some(line) if may_return => {
            may_return = false;
            line
        }
        _ => line,
    };
    let digits = line
        .iter()
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    let (digits, behind) = line.split_at(digits);
    let is_plain = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
    let begins = matches!(behind, [] | [b';' | b' ' | b'\t', ..]);
    let is_empty = digits.is_empty() && behind.is_empty() && may_return;
    digits.len() <= 16
        && (is_empty || !digits.is_empty())
        && begins
        && behind.len() <= 16 * 1024 + 1
        && behind.iter().all(is_plain)
}

/// Whether a trailer has ended; none where it is not one.
fn trailer(mut rest: &[u8]) -> Option<bool> {
    let mut count = 0;
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n");
        let line = end.map_or(rest, |end| &rest[..end]);
        let line = match end {
            None => line.strip_suffix(b"\r").unwrap_or(line),
            Some(_) => line,
        };
        count += line.len();
        let is_plain = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
        if count > 16 * 1024 || !line.iter().all(is_plain) {
            return None;
        }
        match end {
            None => return Some(false),
            Some(0) => return Some(true),
            Some(end) => rest = &rest[end + 2..],
        }
    }
}
