//! The frame codec against a model: however a session is fragmented, interleaved and cut into
//! reads, the same messages come out and no byte is lost or changed.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use tiergate::codec::websocket::{
    ClientEvent, ClientReader, ControlFrame, MAX_HEADER_BYTES, Opcode, ProtocolError, ServerEvent,
    ServerReader, apply_mask, encode, encode_in_place,
};

/// More than any session here holds.
const LIMIT: usize = 16 << 20;

#[derive(Clone, Debug)]
struct Frame {
    fin: bool,
    opcode: Opcode,
    mask: [u8; 4],
    payload: Vec<u8>,
}

/// What a reader must find, whichever way the bytes are cut.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Message {
        opcode: Opcode,
        payload: Vec<u8>,
        raw: Vec<u8>,
    },
    Control {
        opcode: Opcode,
        payload: Vec<u8>,
        raw: Vec<u8>,
    },
    Failed(ProtocolError),
}

impl Frame {
    fn client_bytes(&self) -> Vec<u8> {
        encode(self.fin, self.opcode, Some(self.mask), &self.payload)
    }

    fn server_bytes(&self) -> Vec<u8> {
        encode(self.fin, self.opcode, None, &self.payload)
    }

    fn is_control(&self) -> bool {
        matches!(self.opcode, Opcode::Ping | Opcode::Pong | Opcode::Close)
    }
}

fn payload(lengths: impl Strategy<Value = usize>) -> impl Strategy<Value = Vec<u8>> {
    (lengths, any::<u8>()).prop_map(|(length, seed)| {
        (0..length)
            .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed))
            .collect()
    })
}

fn control() -> impl Strategy<Value = Frame> {
    let opcode = prop_oneof![Just(Opcode::Ping), Just(Opcode::Pong)];
    (opcode, any::<[u8; 4]>(), payload(0..126_usize)).prop_map(|(opcode, mask, payload)| Frame {
        fin: true,
        opcode,
        mask,
        payload,
    })
}

/// A message in one to five fragments, each with up to two control frames before it.
fn message() -> impl Strategy<Value = Vec<Frame>> {
    let lengths = prop_oneof![8 => 0..40_usize, 4 => 120..130_usize, 1 => 65_530..65_540_usize];
    let fragment = (vec(control(), 0..3), any::<[u8; 4]>(), payload(lengths));
    let opcode = prop_oneof![Just(Opcode::Text), Just(Opcode::Binary)];
    (opcode, vec(fragment, 1..6)).prop_map(|(opcode, fragments)| {
        let last = fragments.len() - 1;
        let mut frames = Vec::new();
        for (i, (controls, mask, payload)) in fragments.into_iter().enumerate() {
            let opcode = if i == 0 { opcode } else { Opcode::Continuation };
            frames.extend(controls);
            frames.push(Frame {
                fin: i == last,
                opcode,
                mask,
                payload,
            });
        }
        frames
    })
}

fn session() -> impl Strategy<Value = Vec<Frame>> {
    vec(message(), 0..5).prop_map(|messages| messages.concat())
}

/// Lengths of reads, taken in turn for as long as there are bytes.
fn cuts() -> impl Strategy<Value = Vec<usize>> {
    vec(
        prop_oneof![1..8_usize, 1..200_usize, 1..70_000_usize],
        1..12,
    )
}

fn cut(mut bytes: &[u8], cuts: &[usize]) -> Vec<Bytes> {
    let mut chunks = Vec::new();
    for length in cuts.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let (chunk, rest) = bytes.split_at(bytes.len().min(*length));
        chunks.push(Bytes::copy_from_slice(chunk));
        bytes = rest;
    }
    chunks
}

fn wire(frames: &[Frame], encode: impl Fn(&Frame) -> Vec<u8>) -> Vec<u8> {
    frames.iter().flat_map(encode).collect()
}

fn expected(frames: &[Frame], encode: impl Fn(&Frame) -> Vec<u8>) -> Vec<Seen> {
    let mut seen = Vec::new();
    let (mut opcode, mut payload, mut raw) = (Opcode::Text, Vec::new(), Vec::new());
    for frame in frames {
        if frame.is_control() {
            let (opcode, payload) = (frame.opcode, frame.payload.clone());
            seen.push(Seen::Control {
                opcode,
                payload,
                raw: encode(frame),
            });
            continue;
        }
        if frame.opcode != Opcode::Continuation {
            opcode = frame.opcode;
        }
        payload.extend(&frame.payload);
        raw.extend(encode(frame));
        if frame.fin {
            let (payload, raw) = (std::mem::take(&mut payload), std::mem::take(&mut raw));
            seen.push(Seen::Message {
                opcode,
                payload,
                raw,
            });
        }
    }
    seen
}

fn read_client(chunks: Vec<Bytes>, limit: usize) -> Vec<Seen> {
    let mut reader = ClientReader::new(limit);
    let mut seen = Vec::new();
    let mut shown = Vec::new();
    for chunk in chunks {
        reader.feed(chunk);
        while let Some(event) = reader.next_event() {
            match event {
                Ok(ClientEvent::Payload(piece)) => {
                    piece.for_each_unmasked(|bytes| shown.extend_from_slice(bytes));
                }
                Ok(ClientEvent::Message(message)) => {
                    let payload = std::mem::take(&mut shown);
                    assert_eq!(payload, message.payload());
                    assert_eq!(payload.len(), message.payload_length);
                    let raw = message.raw.to_vec();
                    seen.push(Seen::Message {
                        opcode: message.opcode,
                        payload,
                        raw,
                    });
                }
                Ok(ClientEvent::Control {
                    frame: ControlFrame { opcode, payload },
                    raw,
                }) => {
                    seen.push(Seen::Control {
                        opcode,
                        payload,
                        raw: raw.to_vec(),
                    });
                }
                Err(error) => seen.push(Seen::Failed(error)),
            }
        }
        // Twice what may be held: the growth of a buffer.
        assert!(reader.held_bytes() <= 2 * (limit + (1 << 20)));
    }
    seen
}

/// What the observer saw; `raw` is not its business and left empty.
fn read_server(chunks: Vec<Bytes>) -> Vec<Seen> {
    let mut reader = ServerReader::new();
    let mut seen = Vec::new();
    let mut open = None;
    for chunk in chunks {
        let mut end = 0;
        reader.feed(&chunk, |event| match event {
            ServerEvent::MessageStart { opcode, .. } => {
                assert!(open.replace((opcode, Vec::new())).is_none());
            }
            ServerEvent::Payload(bytes) => {
                assert!(!bytes.is_empty());
                open.as_mut().unwrap().1.extend_from_slice(bytes);
            }
            ServerEvent::MessageEnd { offset } => {
                assert!(end <= offset && offset <= chunk.len());
                end = offset;
                let (opcode, payload) = open.take().unwrap();
                seen.push(Seen::Message {
                    opcode,
                    payload,
                    raw: Vec::new(),
                });
            }
            ServerEvent::Control(ControlFrame { opcode, payload }) => {
                seen.push(Seen::Control {
                    opcode,
                    payload,
                    raw: Vec::new(),
                });
            }
            ServerEvent::Stopped(error) => seen.push(Seen::Failed(error)),
        });
        assert_eq!(
            reader.at_message_boundary(),
            reader.at_frame_boundary() && open.is_none()
        );
    }
    seen
}

/// Bytes that begin as frames and go wrong somewhere.
fn damaged_session(encode: fn(&Frame) -> Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let damage = vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (session(), damage).prop_map(move |(frames, damage)| {
        let mut bytes = wire(&frames, encode);
        if !bytes.is_empty() {
            for (place, byte) in damage {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
        }
        bytes
    })
}

/// Short frames of random headers: more of the state machine than random bytes reach.
fn random_frames() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![4 => Just(0x81), 2 => Just(0x01), 2 => Just(0x80), 1 => any::<u8>()];
    let second = prop_oneof![4 => 0x80..0x88_u8, 1 => any::<u8>()];
    let frame = (first, second, vec(any::<u8>(), 0..14))
        .prop_map(|(first, second, rest)| [vec![first, second], rest].concat());
    vec(frame, 0..8).prop_map(|frames| frames.concat())
}

proptest! {
    #[test]
    fn any_split_fragmentation_and_interleaving_gives_the_same_messages(
        frames in session(),
        cuts in cuts(),
    ) {
        let bytes = wire(&frames, Frame::client_bytes);
        let seen = read_client(cut(&bytes, &cuts), LIMIT);
        prop_assert_eq!(seen, expected(&frames, Frame::client_bytes));
    }

    #[test]
    fn untouched_frames_leave_as_they_came(messages in vec(message(), 0..5), cuts in cuts()) {
        let mut frames = messages.concat();
        frames.retain(|frame| !frame.is_control());
        let bytes = wire(&frames, Frame::client_bytes);
        let sent: Vec<u8> = read_client(cut(&bytes, &cuts), LIMIT)
            .into_iter()
            .flat_map(|seen| match seen {
                Seen::Message { raw, .. } | Seen::Control { raw, .. } => raw,
                Seen::Failed(error) => panic!("{error}"),
            })
            .collect();
        prop_assert_eq!(sent, bytes);
    }

    #[test]
    fn the_observer_of_a_server_sees_the_same_messages(frames in session(), cuts in cuts()) {
        let bytes = wire(&frames, Frame::server_bytes);
        let seen = read_server(cut(&bytes, &cuts));
        prop_assert_eq!(seen, expected(&frames, |_| Vec::new()));
    }

    #[test]
    fn the_end_of_each_server_message_is_told(frames in session(), start in 0..20_usize) {
        let bytes = wire(&frames, Frame::server_bytes);
        let start = start.min(bytes.len());
        let mut reader = ServerReader::new();
        reader.feed(&bytes[..start], |_| ());
        let mut ends = Vec::new();
        reader.feed(&bytes[start..], |event| {
            if let ServerEvent::MessageEnd { offset } = event {
                ends.push(start + offset);
            }
        });
        let mut position = 0;
        let all = frames.iter().filter_map(|frame| {
            position += frame.server_bytes().len();
            (frame.fin && !frame.is_control() && position > start).then_some(position)
        });
        prop_assert_eq!(ends, all.collect::<Vec<_>>());
    }

    #[test]
    fn a_frame_of_the_proxy_fits_only_between_frames(frames in session()) {
        let mut reader = ServerReader::new();
        let mut in_message = false;
        prop_assert!(reader.at_message_boundary());
        for frame in frames {
            let bytes = frame.server_bytes();
            let (last, inside) = bytes.split_last().unwrap();
            for byte in inside.iter().take(200) {
                reader.feed(&[*byte], |_| ());
                prop_assert!(!reader.at_frame_boundary() && !reader.at_message_boundary());
            }
            reader.feed(inside.get(200..).unwrap_or_default(), |_| ());
            prop_assert!(!reader.at_frame_boundary() && !reader.at_message_boundary());
            reader.feed(&[*last], |_| ());
            in_message = if frame.is_control() { in_message } else { !frame.fin };
            prop_assert!(reader.at_frame_boundary());
            prop_assert_eq!(reader.at_message_boundary(), !in_message);
        }
    }

    #[test]
    fn damage_is_found_at_the_same_place_however_a_client_is_read(
        bytes in prop_oneof![damaged_session(Frame::client_bytes), random_frames()],
        cuts in cuts(),
        limit in prop_oneof![Just(LIMIT), 0..300_usize],
    ) {
        let whole = read_client(vec![Bytes::copy_from_slice(&bytes)], limit);
        prop_assert_eq!(read_client(cut(&bytes, &cuts), limit), whole);
    }

    #[test]
    fn damage_is_found_at_the_same_place_however_a_server_is_read(
        bytes in prop_oneof![damaged_session(Frame::server_bytes), random_frames()],
        cuts in cuts(),
    ) {
        let whole = read_server(vec![Bytes::copy_from_slice(&bytes)]);
        prop_assert_eq!(read_server(cut(&bytes, &cuts)), whole);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..300), cuts in cuts()) {
        read_client(cut(&bytes, &cuts), 1000);
        read_server(cut(&bytes, &cuts));
    }

    #[test]
    fn nothing_is_handed_out_after_an_error(bytes in random_frames(), cuts in cuts()) {
        for seen in [read_client(cut(&bytes, &cuts), 20), read_server(cut(&bytes, &cuts))] {
            let failed = seen.iter().position(|seen| matches!(seen, Seen::Failed(_)));
            prop_assert!(failed.is_none_or(|place| place == seen.len() - 1));
        }
    }

    #[test]
    fn chunks_fed_before_the_events_are_drawn_are_not_lost(frames in session(), cuts in cuts()) {
        let bytes = wire(&frames, Frame::client_bytes);
        let mut reader = ClientReader::new(LIMIT);
        let mut messages = Vec::new();
        for chunk in cut(&bytes, &cuts).iter().take(200) {
            reader.feed(chunk.clone());
            if let Some(Ok(ClientEvent::Message(message))) = reader.next_event() {
                messages.push(message.raw);
            }
        }
        while let Some(Ok(event)) = reader.next_event() {
            if let ClientEvent::Message(message) = event {
                messages.push(message.raw);
            }
        }
        let all = expected(&frames, Frame::client_bytes).into_iter().filter_map(|seen| match seen {
            Seen::Message { raw, .. } => Some(Bytes::from(raw)),
            _ => None,
        });
        prop_assert_eq!(&messages[..], &all.take(messages.len()).collect::<Vec<_>>()[..]);
    }

    #[test]
    fn a_message_passes_up_to_the_limit_and_not_beyond(
        frames in message(),
        cuts in cuts(),
        over in any::<bool>(),
    ) {
        let data = frames.iter().filter(|frame| !frame.is_control());
        let length: usize = data.map(|frame| frame.payload.len()).sum();
        prop_assume!(length > 0);
        let limit = if over { length - 1 } else { length };
        let seen = read_client(cut(&wire(&frames, Frame::client_bytes), &cuts), limit);
        let refused = Seen::Failed(ProtocolError::MessageTooBig { limit });
        prop_assert_eq!(seen.last() == Some(&refused), over);
    }

    #[test]
    fn a_frame_built_in_place_is_the_frame(
        room in 0..2 * MAX_HEADER_BYTES,
        payload in payload(prop_oneof![0..300_usize, 65_530..65_540_usize]),
        mask in any::<Option<[u8; 4]>>(),
    ) {
        let buffer = [vec![0xee; room], payload.clone()].concat();
        let frame = encode_in_place(Opcode::Text, mask, buffer, room);
        prop_assert_eq!(&frame[..], &encode(true, Opcode::Text, mask, &payload)[..]);
    }

    #[test]
    fn a_mask_is_applied_byte_by_byte_in_turn(
        bytes in vec(any::<u8>(), 0..200),
        mask in any::<[u8; 4]>(),
    ) {
        let mut masked = bytes.clone();
        apply_mask(&mut masked, mask);
        let slowly: Vec<u8> = bytes.iter().zip(mask.iter().cycle()).map(|(a, b)| a ^ b).collect();
        prop_assert_eq!(masked, slowly);
    }
}
