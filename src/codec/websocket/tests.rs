//! Frames of the examples of RFC 6455, and of peers that break its rules.

use super::*;
use bytes::Bytes;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

fn client_events(bytes: &[u8]) -> Vec<Result<ClientEvent, ProtocolError>> {
    let mut reader = ClientReader::new(1000);
    reader.feed(Bytes::copy_from_slice(bytes));
    std::iter::from_fn(|| reader.next_event()).collect()
}

fn client_error(bytes: &[u8]) -> Option<ProtocolError> {
    client_events(bytes).pop()?.err()
}

fn server_error(bytes: &[u8]) -> Option<ProtocolError> {
    let mut stopped = None;
    ServerReader::new().feed(bytes, |event| {
        if let ServerEvent::Stopped(error) = event {
            stopped = Some(error);
        }
    });
    stopped
}

#[test]
fn frames_look_as_in_the_examples_of_the_rfc() {
    assert_eq!(text_frame("Hello", None), b"\x81\x05Hello");
    let masked = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
    assert_eq!(text_frame("Hello", Some(MASK)), masked);
    assert_eq!(encode(false, Opcode::Text, None, b"Hel"), b"\x01\x03Hel");
    assert_eq!(
        encode(true, Opcode::Continuation, None, b"lo"),
        b"\x80\x02lo"
    );
    assert_eq!(encode(true, Opcode::Ping, None, b"Hello"), b"\x89\x05Hello");
    let medium = encode(true, Opcode::Binary, None, &[0; 256]);
    assert_eq!(medium[..4], *b"\x82\x7e\x01\x00");
    let long = encode(true, Opcode::Binary, None, &[0; 65536]);
    assert_eq!(long[..10], *b"\x82\x7f\0\0\0\0\0\x01\0\0");
}

#[test]
fn the_shortest_length_encoding_is_chosen_at_every_border() {
    let cases = [(0, 2), (125, 2), (126, 4), (65535, 4), (65536, 10)];
    for (length, header) in cases {
        let frame = encode(true, Opcode::Binary, None, &vec![7; length]);
        assert_eq!(frame.len(), header + length);
    }
}

#[test]
fn each_breach_of_the_protocol_by_a_client_has_its_error() {
    use ProtocolError::*;
    let cases: [(&[u8], ProtocolError); 16] = [
        (b"\xc1\x80\0\0\0\0", Compressed),
        (b"\xa1\x80\0\0\0\0", ReservedBits),
        (b"\x91\x80\0\0\0\0", ReservedBits),
        (b"\x83\x80\0\0\0\0", UnknownOpcode(3)),
        (b"\x8b\x80\0\0\0\0", UnknownOpcode(11)),
        (b"\x81\x00", Unmasked),
        (b"\x81\xfe\x00\x7d\0\0\0\0", OverlongLength),
        (b"\x81\xff\0\0\0\0\0\0\xff\xff\0\0\0\0", OverlongLength),
        (b"\x81\xff\x80\0\0\0\0\0\0\0\0\0\0\0", ImpossibleLength),
        (b"\x09\x80\0\0\0\0", FragmentedControl),
        (b"\x89\xfe\x00\x7e\0\0\0\0", ControlTooLong),
        (b"\x88\x81\0\0\0\0\x03", MalformedClose),
        (b"\x80\x80\0\0\0\0", UnexpectedContinuation),
        (b"\x01\x80\0\0\0\0\x81\x80\0\0\0\0", InterleavedMessage),
        (b"\x01\x80\0\0\0\0\x02\x80\0\0\0\0", InterleavedMessage),
        (b"\x81\xfe\x03\xe9\0\0\0\0", MessageTooBig { limit: 1000 }),
    ];
    for (bytes, error) in cases {
        assert_eq!(client_error(bytes), Some(error), "{bytes:x?}");
    }
}

#[test]
fn the_observer_of_a_server_stops_at_a_breach_and_forgives_an_overlong_length() {
    assert_eq!(server_error(b"\xc1\x00"), Some(ProtocolError::Compressed));
    assert_eq!(
        server_error(b"\x81\x80\0\0\0\0"),
        Some(ProtocolError::Masked)
    );
    assert_eq!(server_error(b"\x81\x7e\x00\x01a"), None);
}

#[test]
fn each_error_has_the_status_to_close_with() {
    assert_eq!(ProtocolError::Compressed.close_code(), 1002);
    assert_eq!(ProtocolError::MessageTooBig { limit: 1 }.close_code(), 1009);
    assert_eq!(ProtocolError::TooManyFragments.close_code(), 1008);
}

#[test]
fn a_message_within_one_chunk_is_not_copied() {
    let chunk = Bytes::from(text_frame("hello", Some(MASK)));
    let mut reader = ClientReader::new(1000);
    reader.feed(chunk.clone());
    let events: Vec<_> = std::iter::from_fn(|| reader.next_event()).collect();
    let [
        Ok(ClientEvent::Payload(_)),
        Ok(ClientEvent::Message(message)),
    ] = &events[..]
    else {
        panic!("unexpected {events:?}");
    };
    assert_eq!(message.raw.as_ptr(), chunk.as_ptr());
}

#[test]
fn an_announced_length_takes_no_memory() {
    let mut reader = ClientReader::new(64 << 20);
    reader.feed(Bytes::from_static(
        b"\x81\xff\0\0\0\0\x03\xff\0\0\0\0\0\0abc",
    ));
    while reader.next_event().is_some() {}
    assert!(reader.held_bytes() < 100);
}

#[test]
fn a_message_of_endless_empty_fragments_is_refused() {
    let mut frames = encode(false, Opcode::Text, Some(MASK), b"");
    for _ in 0..MAX_FRAGMENTS {
        frames.extend(encode(false, Opcode::Continuation, Some(MASK), b""));
    }
    assert_eq!(client_error(&frames), Some(ProtocolError::TooManyFragments));
    frames.truncate(frames.len() - 6);
    assert_eq!(client_events(&frames), []);
}

#[test]
fn nothing_comes_after_a_close_frame() {
    let mut frames = close_frame(1000, "bye", Some(MASK));
    frames.extend(text_frame("more", Some(MASK)));
    let events = client_events(&frames);
    let [Ok(ClientEvent::Control { frame, .. })] = &events[..] else {
        panic!("unexpected {events:?}");
    };
    assert_eq!(
        (frame.close_code(), &frame.payload[2..]),
        (Some(1000), &b"bye"[..])
    );
}

#[test]
fn a_reader_that_has_ended_keeps_nothing() {
    let mut reader = ClientReader::new(1000);
    reader.feed(Bytes::from(encode(
        false,
        Opcode::Text,
        Some(MASK),
        b"held",
    )));
    while reader.next_event().is_some() {}
    assert_ne!(reader.held_bytes(), 0);
    reader.feed(Bytes::from(text_frame("interleaved", Some(MASK))));
    assert!(matches!(reader.next_event(), Some(Err(_))));
    assert_eq!(reader.held_bytes(), 0);
    let late = Bytes::from(text_frame("late", Some(MASK)));
    reader.feed(late.clone());
    assert_eq!(reader.next_event(), None);
    assert!(late.is_unique());
}

#[test]
fn nothing_of_a_server_is_observed_or_injected_after_its_close_frame() {
    let mut frames = close_frame(1000, "", None);
    frames.extend(text_frame("more", None));
    let mut reader = ServerReader::new();
    let mut events = 0;
    reader.feed(&frames, |_| events += 1);
    assert_eq!(events, 1);
    assert!(!reader.at_frame_boundary());
}

#[test]
fn a_close_frame_without_status_has_none() {
    let frame = ControlFrame {
        opcode: Opcode::Close,
        payload: Vec::new(),
    };
    assert_eq!(frame.close_code(), None);
}

#[test]
fn a_long_close_reason_is_cut_between_characters() {
    let frame = close_frame(1008, &"é".repeat(100), None);
    assert_eq!(frame.len(), 2 + 2 + 122);
    assert_eq!(server_error(&frame), None);
}
