//! The frame codec, held against tungstenite: both see the same messages for as long as both go on, in both directions. The
//! same comes out however bytes arrive, no byte of a client is lost or changed, and what is written can be read.

#![no_main]

use std::io::{Cursor, Read, Result, Write};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tiergate_fuzz::codec::websocket::{
    ClientEvent, ClientReader, ControlFrame, MAX_HEADER_BYTES, Opcode, ServerEvent, ServerReader,
    encode, encode_in_place,
};
use tiergate_fuzz::pieces;
use tungstenite::Message;
use tungstenite::protocol::{Role, WebSocket, WebSocketConfig};

/// Of one message of a client, in bytes.
const LIMIT: usize = 3000;

/// A message or a control frame.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    opcode: Opcode,
    payload: Vec<u8>,
}

/// What a reader saw.
#[derive(Debug, PartialEq, Eq)]
struct Session {
    seen: Vec<Seen>,
    /// It refused what came next.
    failed: bool,
}

/// A peer that has said all it will say, and does not listen.
struct Peer<'a>(Cursor<&'a [u8]>);

fuzz_target!(|input: &[u8]| {
    let Some(([low, high, mode], bytes)) = input.split_first_chunk::<3>() else {
        return;
    };
    let pieces = pieces(bytes, u16::from_le_bytes([*low, *high]));
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    match mode & 3 {
        0 => check_client(bytes, &[&pieces, &single]),
        1 => check_server(bytes, &[&pieces, &single]),
        _ => check_written(bytes, *mode),
    }
});

fn check_client(bytes: &[u8], ways: &[&[&[u8]]]) {
    let session = read_client(&[bytes]);
    for pieces in ways {
        assert_eq!(read_client(pieces), session);
    }
    check_same(&session, &read_by_tungstenite(bytes, Role::Server));
}

fn check_server(bytes: &[u8], ways: &[&[&[u8]]]) {
    let session = read_server(&[bytes]);
    for pieces in ways {
        assert_eq!(read_server(pieces), session);
    }
    check_same(&session, &read_by_tungstenite(bytes, Role::Client));
}

/// Each may refuse what the other takes (text that is not UTF-8, a length in too many bytes, codes of a close frame), but
/// up to there they agree.
fn check_same(ours: &Session, theirs: &Session) {
    let both = ours.seen.len().min(theirs.seen.len());
    assert_eq!(ours.seen[..both], theirs.seen[..both]);
    assert!(ours.failed || ours.seen.len() >= theirs.seen.len());
    assert!(theirs.failed || theirs.seen.len() >= ours.seen.len());
}

fn read_client(pieces: &[&[u8]]) -> Session {
    let (mut reader, mut shown) = (ClientReader::new(LIMIT), Vec::new());
    let mut session = Session::new();
    for piece in pieces {
        reader.feed(Bytes::copy_from_slice(piece));
        while let Some(event) = reader.next_event() {
            match event {
                Ok(ClientEvent::Payload(payload)) => {
                    payload.for_each_unmasked(|bytes| shown.extend_from_slice(bytes));
                }
                Ok(ClientEvent::Message(message)) => {
                    let payload = std::mem::take(&mut shown);
                    assert_eq!(payload, message.payload());
                    assert_eq!(payload.len(), message.payload_length);
                    session.saw(message.opcode, payload);
                    check_raw(&message.raw, session.seen.last());
                }
                Ok(ClientEvent::Control { frame, raw }) => {
                    session.control(frame);
                    check_raw(&raw, session.seen.last());
                }
                Err(_) => session.failed = true,
            }
        }
        // Headers of fragments come on top, of which an input of a fuzzer has few.
        assert!(
            reader.held_bytes()
                <= 2 * (LIMIT + pieces.iter().map(|piece| piece.len()).sum::<usize>())
        );
    }
    session
}

/// The bytes that are sent on say what was seen.
fn check_raw(raw: &[u8], seen: Option<&Seen>) {
    let again = read_by_tungstenite(raw, Role::Server);
    assert!(again.failed || again.seen.last() == seen);
}

fn read_server(pieces: &[&[u8]]) -> Session {
    let (mut reader, mut session) = (ServerReader::new(), Session::new());
    let mut open: Option<Seen> = None;
    for piece in pieces {
        reader.feed(piece, |event| match event {
            ServerEvent::MessageStart { opcode, .. } => {
                let payload = Vec::new();
                assert!(open.replace(Seen { opcode, payload }).is_none());
            }
            ServerEvent::Payload(bytes) => {
                let message = open.as_mut().expect("a message is open");
                message.payload.extend_from_slice(bytes);
            }
            ServerEvent::MessageEnd { offset } => {
                assert!(offset <= piece.len());
                session.seen.push(open.take().expect("a message is open"));
            }
            ServerEvent::Control(frame) => session.control(frame),
            ServerEvent::Stopped(_) => session.failed = true,
        });
        assert!(!reader.at_message_boundary() || open.is_none());
    }
    session
}

fn read_by_tungstenite(bytes: &[u8], role: Role) -> Session {
    // A server may send what it likes, but this one reserves what is announced.
    let limit = if role == Role::Server { LIMIT } else { 1 << 20 };
    let config = WebSocketConfig::default()
        .read_buffer_size(1024)
        .max_message_size(Some(limit))
        .max_frame_size(Some(limit));
    let mut socket = WebSocket::from_raw_socket(Peer(Cursor::new(bytes)), role, Some(config));
    let mut session = Session::new();
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => session.saw(Opcode::Text, text.as_bytes().to_vec()),
            Ok(Message::Binary(bytes)) => session.saw(Opcode::Binary, bytes.to_vec()),
            Ok(Message::Ping(payload)) => session.saw(Opcode::Ping, payload.to_vec()),
            Ok(Message::Pong(payload)) => session.saw(Opcode::Pong, payload.to_vec()),
            // It puts this in the place of a code that nobody may send.
            Ok(Message::Close(Some(frame))) if frame.reason == "Protocol violation" => {
                session.failed = true;
                return session;
            }
            Ok(Message::Close(frame)) => {
                let payload = frame.map_or_else(Vec::new, |frame| {
                    let code = u16::from(frame.code).to_be_bytes();
                    [&code, frame.reason.as_bytes()].concat()
                });
                session.saw(Opcode::Close, payload);
                return session;
            }
            Ok(Message::Frame(_)) => unreachable!("it is never read"),
            Err(tungstenite::Error::Io(_)) => return session,
            Err(_) => {
                session.failed |= socket.get_ref().0.position() > 0;
                return session;
            }
        }
    }
}

/// A frame that was written is read as what it was written for, by both, and so is the one that is built in place.
fn check_written(payload: &[u8], mode: u8) {
    let opcode = if mode & 4 == 0 {
        Opcode::Text
    } else {
        Opcode::Binary
    };
    let mask = [mode, mode.rotate_left(3), !mode, 0x55];
    let room = usize::from(mode >> 3) % (MAX_HEADER_BYTES + 2);
    for (mask, role) in [(Some(mask), Role::Server), (None, Role::Client)] {
        let frame = encode(true, opcode, mask, payload);
        let buffer = [&vec![0; room][..], payload].concat();
        assert_eq!(encode_in_place(opcode, mask, buffer, room), frame);
        let read = match role {
            Role::Server => read_client(&[&frame]),
            Role::Client => read_server(&[&frame]),
        };
        let is_taken = matches!(role, Role::Client) || payload.len() <= LIMIT;
        assert_eq!(read.failed, !is_taken);
        assert_eq!(read.seen.len(), usize::from(is_taken));
        assert!(read.seen.iter().all(|seen| seen.payload == payload));
        check_same(&read, &read_by_tungstenite(&frame, role));
    }
}

impl Session {
    fn new() -> Session {
        Session {
            seen: Vec::new(),
            failed: false,
        }
    }

    fn saw(&mut self, opcode: Opcode, payload: Vec<u8>) {
        self.seen.push(Seen { opcode, payload });
    }

    fn control(&mut self, frame: ControlFrame) {
        self.saw(frame.opcode, frame.payload);
    }
}

impl Read for Peer<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(std::io::ErrorKind::WouldBlock.into()),
            read => Ok(read),
        }
    }
}

impl Write for Peer<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}
