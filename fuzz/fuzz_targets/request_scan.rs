//! What is found of the chunks of a request's body, held against two readers that the same bytes may pass: one ends lines at
//! CRLF only, the other at a bare LF as well, and neither looks at extensions. A body that passes is the same to both, ends
//! at the same byte for all, and the next request begins behind it. However the bytes arrive, the same is found.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tiergate_fuzz::codec::request_scan::{BodyFraming, RequestScan};
use tiergate_fuzz::pieces;

const HEAD: &[u8] = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
const MALFORMED: &[u8] = b"1;\n";

/// How a reader ends its lines.
#[derive(Clone, Copy)]
enum LineEnd {
    CrLf,
    BareLf,
}

/// What a reader makes of a body.
#[derive(Debug, PartialEq, Eq)]
enum Reading {
    Whole { body: Vec<u8>, length: usize },
    Begun,
    Refused,
}

fuzz_target!(|input: &[u8]| {
    let Some(([low, high], bytes)) = input.split_first_chunk::<2>() else {
        return;
    };
    let scan = scanned(&[bytes]);
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    for pieces in [pieces(bytes, u16::from_le_bytes([*low, *high])), single] {
        assert_eq!(scanned(&pieces).is_malformed(), scan.is_malformed());
    }
    if scan.is_malformed() {
        return;
    }
    let reading = read(bytes, LineEnd::CrLf);
    // A body whose data ends in no line end is refused by Pingora's reader.
    if reading == Reading::Refused {
        return;
    }
    assert_eq!(read(bytes, LineEnd::BareLf), reading);
    if let Reading::Whole { length, .. } = reading {
        check_next(&bytes[..length]);
    }
});

/// A scan of one request with this body.
fn scanned(body: &[&[u8]]) -> RequestScan {
    let mut scan = RequestScan::default();
    scan.feed(HEAD);
    scan.begin_body(BodyFraming::Chunked);
    for piece in body {
        scan.feed(piece);
    }
    scan
}

/// The request behind this body is found where it begins: its own body is looked at from its first byte on.
fn check_next(body: &[u8]) {
    for (next, is_malformed) in [(&b"0\r\n\r\n"[..], false), (MALFORMED, true)] {
        let mut scan = scanned(&[body, HEAD, next]);
        assert!(!scan.is_malformed());
        scan.begin_body(BodyFraming::Chunked);
        assert_eq!(scan.is_malformed(), is_malformed);
    }
}

fn read(bytes: &[u8], line_end: LineEnd) -> Reading {
    let mut body = Vec::new();
    let mut rest = bytes;
    loop {
        let Some(line) = take_line(&mut rest, line_end) else {
            return Reading::Begun;
        };
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit());
        let digits = String::from_utf8(digits.copied().collect()).expect("they are ASCII");
        let Ok(size) = usize::from_str_radix(&digits, 16) else {
            return Reading::Refused;
        };
        if size == 0 {
            break;
        }
        let Some((data, behind)) = rest.split_at_checked(size) else {
            return Reading::Begun;
        };
        body.extend_from_slice(data);
        match behind {
            [] | [b'\r'] => return Reading::Begun,
            [b'\r', b'\n', more @ ..] => rest = more,
            _ => return Reading::Refused,
        }
    }
    loop {
        match take_line(&mut rest, line_end) {
            Some([]) => break,
            Some(_) => {}
            None => return Reading::Begun,
        }
    }
    let length = bytes.len() - rest.len();
    Reading::Whole { body, length }
}

/// A line without its end, if it is whole.
fn take_line<'a>(bytes: &mut &'a [u8], line_end: LineEnd) -> Option<&'a [u8]> {
    let end = match line_end {
        LineEnd::CrLf => bytes.windows(2).position(|pair| pair == b"\r\n")? + 1,
        LineEnd::BareLf => bytes.iter().position(|byte| *byte == b'\n')?,
    };
    let (line, rest) = bytes.split_at(end);
    *bytes = &rest[1..];
    Some(line.strip_suffix(b"\r").unwrap_or(line))
}
