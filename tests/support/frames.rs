//! Frames of HTTP/2 as a client may send them that keeps to no rule (RFC 9113 §6). What they mean is up to the tests.

use std::io::Write;
use std::net::TcpStream;

use rustls::{ClientConnection, StreamOwned};

use super::tls;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Types and flags of frames, and a reason.
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const CANCEL: &[u8] = &[0, 0, 0, 8];
/// Of `authorization` among the static fields (RFC 7541, appendix A).
const AUTHORIZATION: u8 = 23;
/// An index or a length of as much or more goes on in further bytes (RFC 7541 §5.1).
const SHORT_INDEX: u8 = 15;
const SHORT_LENGTH: usize = 127;

/// A connection over this socket, on which anything may be sent.
pub fn begin(socket: TcpStream) -> StreamOwned<ClientConnection, TcpStream> {
    let mut stream = tls::client(socket, b"h2");
    stream.write_all(PREFACE).unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, b"")).unwrap();
    stream
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The header block of a POST by this key.
pub fn head(key: &str, path: &str) -> Vec<u8> {
    // `:method: POST` and `:scheme: https`, then literals with the names `:path`, `:authority` and `authorization`.
    let block = vec![0x83, 0x87];
    let block = [block, vec![4], text(path), vec![1], text("proxy.test")].concat();
    let credential = text(&format!("Bearer {key}"));
    [
        block,
        vec![SHORT_INDEX, AUTHORIZATION - SHORT_INDEX],
        credential,
    ]
    .concat()
}

/// A field of a header block that is in no table.
pub fn field(name: &str, value: &str) -> Vec<u8> {
    [vec![0], text(name), text(value)].concat()
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    match text.len().checked_sub(SHORT_LENGTH) {
        None => bytes.push(text.len() as u8),
        Some(mut more) => {
            bytes.push(SHORT_LENGTH as u8);
            while more >= 128 {
                bytes.push((more % 128 + 128) as u8);
                more /= 128;
            }
            bytes.push(more as u8);
        }
    }
    bytes.extend(text.as_bytes());
    bytes
}
