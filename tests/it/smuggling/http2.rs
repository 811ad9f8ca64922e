//! The published cases of requests that come over HTTP/2 and leave over HTTP/1.1, frame by frame: what a value may hold
//! there, and what says how long a body is, is not the same on both sides.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use serde_json::json;

use super::wire;
use crate::support::client::Connection;
use crate::support::proxy::{self, Proxy};
use crate::support::upstream::{self, reply};
use crate::support::{eventually, frames, tls};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GO_AWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// One stream.
struct Case {
    name: &'static str,
    /// Whether it reaches the upstream as one request.
    passes: bool,
    change: Change,
}

/// How it differs from a plain POST.
enum Change {
    /// A header more.
    With(&'static str, &'static str),
    /// Two more.
    WithBoth([(&'static str, &'static str); 2]),
    /// Another value of a pseudo-header; `{PATH}` stands for the path.
    Instead(&'static str, &'static str),
    Without(&'static str),
    /// Behind the body.
    Trailer(&'static str, &'static str),
    /// A header more, and no body.
    Bodyless(&'static str, &'static str),
}
use Change::{Bodyless, Instead, Trailer, With, WithBoth, Without};

const fn passes(name: &'static str, change: Change) -> Case {
    Case {
        name,
        passes: true,
        change,
    }
}

const fn refused(name: &'static str, change: Change) -> Case {
    Case {
        name,
        passes: false,
        change,
    }
}

const FRAMING: &[Case] = &[
    passes("the right length", With("content-length", "2")),
    refused("too long", With("content-length", "3")),
    refused("too short", With("content-length", "1")),
    refused("of a missing body", Bodyless("content-length", "2")),
    refused("in a list", With("content-length", "2, 2")),
    refused("with a sign", With("content-length", "+2")),
    refused("hexadecimal", With("content-length", "0x2")),
    refused("empty", With("content-length", "")),
    refused("with a space", With("content-length", " 2")),
    refused("with an underscore", With("content_length", "2")),
    refused("coding, underscore", With("transfer_encoding", "chunked")),
    refused("a coding", With("transfer-encoding", "chunked")),
    refused("the coding identity", With("transfer-encoding", "identity")),
    refused("connection", With("connection", "content-length")),
    refused("upgrade", With("upgrade", "websocket")),
    refused("keep-alive", With("keep-alive", "timeout=5")),
    refused("proxy-connection", With("proxy-connection", "close")),
    refused("te of another value", With("te", "gzip")),
    passes("te: trailers", With("te", "trailers")),
    refused("twice the same length", WithBoth([LENGTH, LENGTH])),
    refused("two lengths", WithBoth([LENGTH, ("content-length", "3")])),
    passes("a trailer", Trailer("x-checksum", "1")),
    // Trailers go no further, so what is wrong with them does not either.
    passes("a pseudo-header as trailer", Trailer(":path", "/other")),
];

const LENGTH: (&str, &str) = ("content-length", "2");

const CHARACTERS: &[Case] = &[
    refused("CRLF in a value", With("x", "y\r\ncontent-length: 0")),
    refused("LF in a value", With("x", "y\ncontent-length: 0")),
    refused("CR in a value", With("x", "y\rcontent-length: 0")),
    refused("NUL in a value", With("x", "y\0z")),
    refused(
        "a request in a value",
        With("x", "y\r\n\r\nGET /a HTTP/1.1"),
    ),
    refused("CRLF in a name", With("x: y\r\ncontent-length", "0")),
    refused("LF in a name", With("x\ny", "z")),
    refused(
        "a colon in a name",
        With("transfer-encoding: chunked\r\nx", "y"),
    ),
    refused("a colon at a name's end", With("x:", "y")),
    refused("a space in a name", With("x y", "z")),
    refused("a space at a name's end", With("content-length ", "2")),
    refused("a capital letter in a name", With("X", "y")),
    refused("no name", With("", "y")),
    refused("a pseudo-header behind a header", With(":path", "/other")),
    refused("an unknown pseudo-header", Instead(":x", "y")),
    refused("a status", Instead(":status", "200")),
];

const PSEUDO_HEADERS: &[Case] = &[
    refused("space in the path", Instead(":path", "{PATH} HTTP/1.1")),
    refused(
        "CRLF in the path",
        Instead(":path", "{PATH} HTTP/1.1\r\nx: y"),
    ),
    refused("LF in the path", Instead(":path", "{PATH}\n")),
    refused("tab in the path", Instead(":path", "{PATH}\tx")),
    refused("NUL in the path", Instead(":path", "{PATH}\0")),
    refused("an empty path", Instead(":path", "")),
    refused("a path without a slash", Instead(":path", "v1/responses")),
    refused("an asterisk", Instead(":path", "*")),
    refused("an absolute path", Instead(":path", "https://other{PATH}")),
    refused("two slashes", Instead(":path", "//other{PATH}")),
    refused("no path", Without(":path")),
    refused("no method", Without(":method")),
    refused("no scheme", Without(":scheme")),
    refused(
        "space in the method",
        Instead(":method", "POST /a HTTP/1.1"),
    ),
    refused(
        "CRLF in the method",
        Instead(":method", "GET / HTTP/1.1\r\nx:"),
    ),
    refused("an empty method", Instead(":method", "")),
    refused("CONNECT", Instead(":method", "CONNECT")),
    refused("CRLF in the scheme", Instead(":scheme", "https\r\nx: y")),
    refused("a path in the scheme", Instead(":scheme", "http://other/?")),
    refused("CRLF in the authority", Instead(":authority", "h\r\nx: y")),
    refused("a user in the authority", Instead(":authority", "a@h")),
    refused("a path in the authority", Instead(":authority", "h/other")),
    refused("a space in the authority", Instead(":authority", "h h")),
    refused("no authority", Without(":authority")),
    refused("another host", With("host", "other")),
    passes("the same host", With("host", "h")),
    refused("two hosts", WithBoth([("host", "h"), ("host", "h")])),
];

/// What is sent, and the last frame of it.
fn frames_of(case: &Case, path: &str, key: &str) -> Vec<u8> {
    let pseudo = [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "h"),
        (":path", path),
    ];
    let mut headers: Vec<(&str, String)> =
        pseudo.map(|(name, value)| (name, value.to_owned())).into();
    let key = ("authorization", format!("Bearer {key}"));
    let mut trailer = None;
    match case.change {
        Instead(name, value) => {
            headers.retain(|(found, _)| *found != name);
            headers.push((name, value.replace("{PATH}", path)));
        }
        Without(name) => headers.retain(|(found, _)| *found != name),
        _ => {}
    }
    headers.push(key);
    match case.change {
        With(name, value) | Bodyless(name, value) => headers.push((name, value.to_owned())),
        WithBoth(both) => headers.extend(both.map(|(name, value)| (name, value.to_owned()))),
        Trailer(name, value) => trailer = Some((name, value.to_owned())),
        _ => {}
    }
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    sent.extend(frame(SETTINGS, 0, 0, b""));
    if matches!(case.change, Bodyless(..)) {
        sent.extend(frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            1,
            &block(&headers),
        ));
        return sent;
    }
    sent.extend(frame(HEADERS, END_HEADERS, 1, &block(&headers)));
    let last = if trailer.is_none() { END_STREAM } else { 0 };
    sent.extend(frame(DATA, last, 1, b"{}"));
    if let Some(trailer) = trailer {
        sent.extend(frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            1,
            &block(&[trailer]),
        ));
    }
    sent
}

/// RFC 9113 §4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Literals without indexing and without Huffman's code (RFC 7541 §6.2.2).
fn block(headers: &[(&str, String)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name.as_bytes(), value.as_bytes()] {
            assert!(text.len() < 127, "a length in one byte");
            block.push(text.len() as u8);
            block.extend(text);
        }
    }
    block
}

/// Sends the frames and reads until the stream, or the connection, has ended.
fn exchange(proxy: &Proxy, sent: &[u8]) {
    let name = ServerName::from(proxy.tls_address.ip());
    let session = ClientConnection::new(tls::client_config(b"h2"), name).unwrap();
    let socket = Connection::open(proxy.tls_address)
        .socket()
        .try_clone()
        .unwrap();
    let mut stream = StreamOwned::new(session, socket);
    stream.write_all(sent).unwrap();
    while let Some((kind, flags, stream_id)) = read_frame(&mut stream) {
        let ends = matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0;
        if kind == GO_AWAY || (stream_id == 1 && (ends || kind == RST_STREAM)) {
            return;
        }
    }
}

/// Type and flags of the next frame, and its stream, which has a small number.
fn read_frame(stream: &mut impl Read) -> Option<(u8, u8, u8)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).ok()?;
    let [a, b, c, kind, flags, _, _, _, stream_id] = head;
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    stream.read_exact(&mut vec![0; length]).ok()?;
    Some((kind, flags, stream_id))
}

fn assert_one_reading(cases: &'static [Case]) {
    let upstream = wire::upstream();
    let proxy = proxy::new()
        .upstream(&upstream.address)
        .setting("limits: {body_idle_timeout: 700ms}")
        .tls()
        .run();
    let proxy = Arc::new(proxy);
    let askers = [
        ("sk-fast", "responses"),
        ("sk-plain", "responses"),
        ("sk-fast", "other"),
    ];
    let mut asked = Vec::new();
    std::thread::scope(|scope| {
        for (number, case) in cases.iter().enumerate() {
            for (asker, (key, endpoint)) in askers.into_iter().enumerate() {
                let path = format!("/{number}/{asker}/{endpoint}");
                let frames = frames_of(case, &path, key);
                let proxy = &proxy;
                scope.spawn(move || exchange(proxy, &frames));
                asked.push((path, case));
            }
        }
    });
    let lines = Arc::into_inner(proxy).unwrap().stop();
    let received = upstream.requests();
    wire::assert_books_agree(&received, &lines);
    let whole: Vec<&str> = received
        .iter()
        .filter(|one| one.whole)
        .map(|one| one.path())
        .collect();
    for (path, case) in &asked {
        let count = whole.iter().filter(|found| *found == path).count();
        assert_eq!(count, usize::from(case.passes), "{}: {path}", case.name);
    }
    let expected = asked.iter().filter(|(_, case)| case.passes).count();
    assert_eq!(whole.len(), expected, "under another path: {whole:?}");
}

#[test]
fn lengths_and_codings_of_a_stream() {
    assert_one_reading(FRAMING);
}

#[test]
fn a_length_of_none_before_a_body_is_one_empty_request_with_a_line() {
    let upstream = wire::upstream();
    let proxy = proxy::new().upstream(&upstream.address).tls().run();
    let case = passes("", With("content-length", "0"));
    exchange(&proxy, &frames_of(&case, "/0/other", "sk-fast"));
    proxy.access_log(1);
    let lines = proxy.stop();
    // Whether the stream's fault or the end of the head is seen first is a race; a line there is in any case.
    assert_eq!((lines.len(), &lines[0]["path"]), (1, &"/0/other".into()));
    for request in upstream.requests() {
        assert_eq!((request.path(), &request.body[..]), ("/0/other", &b""[..]));
    }
}

#[test]
fn a_body_of_another_length_than_announced_is_told_in_its_line() {
    for (key, length) in [
        ("sk-fast", "1"),
        ("sk-fast", "3"),
        ("sk-plain", "1"),
        ("sk-plain", "3"),
    ] {
        let upstream = wire::upstream();
        let proxy = proxy::new().upstream(&upstream.address).tls().run();
        let mut client = frames::begin(TcpStream::connect(proxy.tls_address).unwrap());
        let head = [
            frames::head(key, "/v1/responses"),
            frames::field("content-length", length),
        ];
        let head = frame(HEADERS, END_HEADERS, 1, &head.concat());
        client.write_all(&head).unwrap();
        eventually("the request", || {
            (proxy.status()["requests_in_flight"] == 1).then_some(())
        });
        client
            .write_all(&frame(DATA, END_STREAM, 1, b"{}"))
            .unwrap();
        let line = proxy.record();
        let told = json!([line["status"], line["outcome"], line["error"]]);
        let expected = json!([400, "rejected", "invalid_http"]);
        assert_eq!(told, expected, "{key}, {length}");
    }
}

#[test]
fn a_body_of_another_length_behind_the_beginning_of_its_answer_is_told_in_its_line() {
    let begun = reply(200).sse_begun(&["data: {}\n\n"]).before_body();
    for length in ["1", "3"] {
        let upstream = upstream::script([begun.clone()]).run();
        let proxy = proxy::new().upstream(&upstream).tls().run();
        let mut client = frames::begin(TcpStream::connect(proxy.tls_address).unwrap());
        let head = [
            frames::head("sk-plain", "/v1/responses"),
            frames::field("content-length", length),
        ];
        let head = frame(HEADERS, END_HEADERS, 1, &head.concat());
        client.write_all(&head).unwrap();
        while read_frame(&mut client).expect("a frame").0 != DATA {}
        client
            .write_all(&frame(DATA, END_STREAM, 1, b"{}"))
            .unwrap();
        let line = proxy.record();
        let told = json!([line["status"], line["outcome"], line["error"]]);
        assert_eq!(told, json!([200, "rejected", "invalid_http"]), "{length}");
    }
}

#[test]
fn characters_that_end_a_line_elsewhere() {
    assert_one_reading(CHARACTERS);
}

#[test]
fn pseudo_headers_that_become_a_request_line() {
    assert_one_reading(PSEUDO_HEADERS);
}
