//! The cases of the Autobahn test suite, sections 1 to 7 and 9, through the proxy: what is legal arrives byte for byte, and
//! of what is not, the upstream gets no byte. On a socket whose messages nobody judges, all of it passes.

use super::ends::{self, Heard, Socket};
use crate::support::proxy;
use crate::support::websocket::frame;

const FIN: u8 = 0x80;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// The section, what a client sends, and the code and the status that refuse it.
type Case = (&'static str, Vec<u8>, Option<(&'static str, u16)>);

const BREACH: Option<(&str, u16)> = Some(("invalid_http", 1002));
const NOT_TEXT: Option<(&str, u16)> = Some(("invalid_utf8", 1008));

fn from_client(first: u8, payload: &[u8]) -> Vec<u8> {
    frame(first, payload, Some(MASK))
}

/// Valid JSON of so many bytes; no less than 8 make an object.
fn object(length: usize) -> Vec<u8> {
    format!(r#"{{"a":"{}"}}"#, "x".repeat(length - 8)).into_bytes()
}

/// A message in frames of these pieces, with a ping before each but the first.
fn fragments(kind: u8, pieces: &[&[u8]], ping: bool) -> Vec<u8> {
    let mut sent = Vec::new();
    for (at, piece) in pieces.iter().enumerate() {
        if at > 0 && ping {
            sent.extend(from_client(FIN | PING, b"now"));
        }
        let last = if at + 1 == pieces.len() { FIN } else { 0 };
        let kind = if at == 0 { kind } else { 0 };
        sent.extend(from_client(last | kind, piece));
    }
    sent
}

fn framing() -> Vec<Case> {
    let sizes = [8, 125, 126, 127, 128, 65_535, 65_536, 1 << 20];
    let messages = sizes.into_iter().flat_map(|size| {
        [TEXT, BINARY].map(|kind| ("1", from_client(FIN | kind, &object(size)), None))
    });
    let lengths: [(Vec<u8>, Option<_>); 6] = [
        // In more bytes than it needs.
        (vec![FIN | TEXT, 0xfe, 0, 8], BREACH),
        (vec![FIN | TEXT, 0xff, 0, 0, 0, 0, 0, 0, 0, 8], BREACH),
        (vec![FIN | TEXT, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff], BREACH),
        // Beyond what a length may be, and beyond the limit.
        (vec![FIN | TEXT, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], BREACH),
        (
            vec![FIN | TEXT, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0],
            Some(("body_too_large", 1009)),
        ),
        // No mask.
        (frame(FIN | TEXT, b"{}", None), BREACH),
    ];
    let lengths = lengths.map(|(mut head, fate)| {
        head.extend([0; 12]);
        ("1", head, fate)
    });
    messages.chain(lengths).collect()
}

fn control_frames() -> Vec<Case> {
    let long = [b'x'; 126];
    let mut cases = vec![
        ("2", from_client(FIN | PING, b""), None),
        ("2", from_client(FIN | PING, b"hello"), None),
        (
            "2",
            from_client(FIN | PING, b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"),
            None,
        ),
        ("2", from_client(FIN | PING, &long[..125]), None),
        ("2", from_client(FIN | PING, &long), BREACH),
        ("2", from_client(FIN | PONG, b""), None),
        ("2", from_client(FIN | PONG, b"unasked"), None),
        ("2", from_client(FIN | PONG, &long), BREACH),
        ("2", from_client(FIN | PING, b"x").repeat(10), None),
    ];
    for reserved in 1..8 {
        for kind in [TEXT, BINARY, PING, PONG, CLOSE] {
            cases.push(("3", from_client(FIN | reserved << 4 | kind, b"{}"), BREACH));
        }
    }
    for kind in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        cases.push(("4", from_client(FIN | kind, b""), BREACH));
        let behind = [
            from_client(FIN | TEXT, b"{}"),
            from_client(FIN | kind, b"{}"),
        ];
        cases.push(("4", behind.concat(), BREACH));
    }
    cases
}

fn fragmentation() -> Vec<Case> {
    let bytewise: Vec<&[u8]> = br#"{"a":1}"#.chunks(1).collect();
    let unfinished = from_client(TEXT, b"{");
    vec![
        ("5", from_client(PING, b"x"), BREACH),
        ("5", from_client(PONG, b"x"), BREACH),
        ("5", from_client(CLOSE, b"\x03\xe8"), BREACH),
        ("5", fragments(TEXT, &[b"{", b"}"], false), None),
        ("5", fragments(TEXT, &[b"{", b"}"], true), None),
        (
            "5",
            fragments(BINARY, &[b"{", b"", b"", b"}", b""], true),
            None,
        ),
        ("5", fragments(TEXT, &bytewise, true), None),
        ("5", from_client(FIN, b"{}"), BREACH),
        ("5", from_client(0, b"{}"), BREACH),
        (
            "5",
            [
                &fragments(TEXT, &[b"{", b"}"], false)[..],
                &from_client(FIN, b"{}"),
            ]
            .concat(),
            BREACH,
        ),
        (
            "5",
            [&unfinished[..], &from_client(FIN | TEXT, b"}")].concat(),
            BREACH,
        ),
        (
            "5",
            [&unfinished[..], &from_client(FIN | BINARY, b"}")].concat(),
            BREACH,
        ),
        ("5", [&unfinished[..], &unfinished].concat(), BREACH),
    ]
}

/// Each is sent whole, and cut between any two of its bytes.
fn text() -> Vec<Case> {
    let good = [
        "κόσμε",
        "\u{80}\u{7ff}\u{800}\u{ffff}\u{10000}\u{10ffff}",
        "\u{fffe}\u{feff}",
        "\u{d7ff}\u{e000}",
    ];
    let bad: [&[u8]; 14] = [
        b"\x80",
        b"\xbf\xbf",
        b"\xc0\xaf",
        b"\xc1\xbf",
        b"\xc3",
        b"\xc3(",
        b"\xe0\x80\xaf",
        b"\xed\xa0\x80",
        b"\xed\xbf\xbf",
        b"\xed\xa0\x80\xed\xb0\x80",
        b"\xf0\x80\x80\xaf",
        b"\xf4\x90\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xff",
    ];
    let good = good.map(|text| (text.as_bytes(), None));
    let bad = bad.map(|text| (text, NOT_TEXT));
    let mut cases = Vec::new();
    for (text, fate) in good.into_iter().chain(bad) {
        let message = [br#"{"a":""#, text, br#""}"#].concat();
        cases.push(("6", from_client(FIN | TEXT, &message), fate));
        for cut in 6..=6 + text.len() {
            let (start, end) = message.split_at(cut);
            cases.push(("6", fragments(TEXT, &[start, end], false), fate));
        }
    }
    cases
}

fn closes() -> Vec<Case> {
    let with = |code: u16, reason: &[u8]| {
        from_client(FIN | CLOSE, &[&code.to_be_bytes()[..], reason].concat())
    };
    let mut cases = vec![
        ("7", from_client(FIN | CLOSE, b""), None),
        ("7", from_client(FIN | CLOSE, b"\x03"), BREACH),
        ("7", with(1000, &[b'x'; 123]), None),
        ("7", with(1000, &[b'x'; 124]), BREACH),
        ("7", with(1000, "κόσμε".as_bytes()), None),
    ];
    for code in [
        1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999,
    ] {
        cases.push(("7", with(code, b"bye"), None));
    }
    // What a status means is a matter between the two ends; no reader takes the frame for another.
    for code in [
        0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65_535,
    ] {
        cases.push(("7", with(code, b""), None));
    }
    cases
}

fn sizes() -> Vec<Case> {
    let large = object(4 << 20);
    let pieces = |size: usize| large.chunks(size).collect::<Vec<_>>();
    vec![
        ("9", from_client(FIN | TEXT, &large), None),
        ("9", fragments(TEXT, &pieces(64), false), None),
        ("9", fragments(BINARY, &pieces(65_536), true), None),
    ]
}

/// What a judge of messages lets through of this: control frames go on at once, and a message when it is whole.
fn controls_first(sent: &[u8]) -> Vec<u8> {
    let (mut controls, mut rest, mut left) = (Vec::new(), Vec::new(), sent);
    while let [first, second, ..] = left {
        let (header, length) = match second & 0x7f {
            126 => (8, usize::from(u16::from_be_bytes([left[2], left[3]]))),
            127 => (
                14,
                left[6..10]
                    .iter()
                    .fold(0, |length, byte| length << 8 | usize::from(*byte)),
            ),
            length => (6, usize::from(length)),
        };
        let (frame, others) = left.split_at(header + length);
        let to = if first & 8 == 0 {
            &mut rest
        } else {
            &mut controls
        };
        to.extend_from_slice(frame);
        left = others;
    }
    [controls, rest].concat()
}

/// The server hears just this when the client sends that.
fn assert_passes(socket: &mut Socket, section: &str, sent: &[u8], expected: &[u8]) {
    let shown = sent[..sent.len().min(40)].escape_ascii();
    std::thread::scope(|scope| {
        let Socket { client, server, .. } = &mut *socket;
        let heard = scope.spawn(|| server.read_raw(sent.len()));
        client.raw(sent);
        assert!(
            heard.join().unwrap() == expected,
            "section {section}: {shown}"
        );
    });
}

fn assert_cases(cases: &[Case]) {
    let upstream = ends::upstream();
    let proxy = proxy::new().upstream(&upstream).run();
    for (section, sent, fate) in cases {
        let mut socket = upstream.open(&proxy, "sk-fast");
        let Some((code, close)) = fate else {
            assert_passes(&mut socket, section, sent, &controls_first(sent));
            continue;
        };
        socket.client.raw(sent);
        let shown = sent[..sent.len().min(40)].escape_ascii();
        let refusal = socket.client.hear_refusal();
        assert_eq!(
            refusal,
            ((*code).to_owned(), *close),
            "section {section}: {shown}"
        );
        // Messages and control frames before it are whole, and nothing of it is there.
        let heard = socket.server.rest();
        assert!(
            sent.starts_with(&heard) && heard.len() < sent.len(),
            "{shown}"
        );
    }
}

#[test]
fn frames_of_every_length() {
    assert_cases(&framing());
}

#[test]
fn control_frames_reserved_bits_and_reserved_opcodes() {
    assert_cases(&control_frames());
}

#[test]
fn messages_in_fragments() {
    assert_cases(&fragmentation());
}

#[test]
fn text_that_is_utf_8_and_text_that_is_not() {
    assert_cases(&text());
}

#[test]
fn closes_of_every_status() {
    assert_cases(&closes());
}

#[test]
fn large_messages() {
    assert_cases(&sizes());
}

#[test]
fn nothing_comes_after_a_close() {
    let upstream = ends::upstream();
    let proxy = proxy::new().upstream(&upstream).run();
    let mut socket = upstream.open(&proxy, "sk-fast");
    let close = from_client(FIN | CLOSE, b"\x03\xe8");
    socket
        .client
        .raw(&[&close[..], &from_client(FIN | TEXT, b"{}")].concat());
    assert_eq!(socket.server.read_raw(close.len()), close);
    socket.client.vanish();
    assert_eq!(socket.server.rest(), b"");
}

#[test]
fn every_case_passes_where_nobody_judges_and_from_the_server() {
    let upstream = ends::upstream();
    let proxy = proxy::new().upstream(&upstream).run();
    let cases = [
        framing(),
        control_frames(),
        fragmentation(),
        text(),
        closes(),
    ]
    .concat();
    let all: Vec<u8> = cases.iter().flat_map(|(_, sent, _)| sent.clone()).collect();
    let mut other = upstream.open_at(&proxy, "sk-fast", "/v1/realtime", &[]);
    assert_passes(&mut other, "all", &all, &all);
    for (section, sent, _) in &cases {
        let mut socket = upstream.open(&proxy, "sk-fast");
        let shown = sent[..sent.len().min(40)].escape_ascii();
        std::thread::scope(|scope| {
            let Socket { client, server, .. } = &mut socket;
            let heard = scope.spawn(|| client.read_raw(sent.len()));
            server.raw(sent);
            assert!(heard.join().unwrap() == *sent, "section {section}: {shown}");
        });
    }
}

#[test]
fn a_close_of_the_server_is_heard_with_its_status() {
    let upstream = ends::upstream();
    let proxy = proxy::new().upstream(&upstream).run();
    for code in [1000_u16, 1001, 1011, 3000, 4999] {
        let mut socket = upstream.open(&proxy, "sk-fast");
        let payload = [&code.to_be_bytes()[..], b"bye"].concat();
        socket.server.raw(&frame(FIN | CLOSE, &payload, None));
        assert_eq!(socket.client.hear(), Heard::Close(code, "bye".to_owned()));
    }
}
