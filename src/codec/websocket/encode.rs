//! Frames as bytes.

use bytes::Bytes;

use super::parser::FrameHeader;
use super::{MAX_CONTROL_BYTES, MAX_HEADER_BYTES, Opcode};

/// One frame. `mask` is `Some` from client to server and `None` from server to client. That control
/// frames stay within 125 bytes and in one piece is the caller's business.
pub fn encode(fin: bool, opcode: Opcode, mask: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader {
        fin,
        opcode,
        mask,
        length: payload.len() as u64,
    };
    let mut frame = Vec::with_capacity(header.encoded_length() + payload.len());
    header.encode(&mut frame);
    let start = frame.len();
    frame.extend_from_slice(payload);
    if let Some(mask) = mask {
        apply_mask(&mut frame[start..], mask);
    }
    frame
}

/// One unfragmented frame whose payload is `buffer[start..]`. With [`MAX_HEADER_BYTES`] of room before `start` the frame is
/// built in place; with less the payload is copied. `start` must lie within the buffer.
pub fn encode_in_place(
    opcode: Opcode,
    mask: Option<[u8; 4]>,
    mut buffer: Vec<u8>,
    start: usize,
) -> Bytes {
    let header = FrameHeader {
        fin: true,
        opcode,
        mask,
        length: buffer[start..].len() as u64,
    };
    let Some(frame_start) = start.checked_sub(header.encoded_length()) else {
        return encode(true, opcode, mask, &buffer[start..]).into();
    };
    let mut encoded = Vec::with_capacity(MAX_HEADER_BYTES);
    header.encode(&mut encoded);
    buffer[frame_start..start].copy_from_slice(&encoded);
    if let Some(mask) = mask {
        apply_mask(&mut buffer[start..], mask);
    }
    Bytes::from(buffer).slice(frame_start..)
}

/// A whole text message in one frame.
pub fn text_frame(text: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    encode(true, Opcode::Text, mask, text.as_bytes())
}

/// A close frame. A reason longer than the 123 bytes there is room for is cut between two characters.
pub fn close_frame(code: u16, reason: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    let reason = &reason[..reason.floor_char_boundary(MAX_CONTROL_BYTES - 2)];
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(reason.as_bytes());
    encode(true, Opcode::Close, mask, &payload)
}

/// Masks or, being its own inverse, unmasks: byte `i` is combined with byte `i mod 4` of the mask (RFC 6455 §5.3).
pub fn apply_mask(bytes: &mut [u8], mask: [u8; 4]) {
    // A block as long as the mask is repeated is what the compiler turns into vector instructions.
    let key: [u8; 32] = std::array::from_fn(|i| mask[i % 4]);
    let (blocks, rest) = bytes.as_chunks_mut::<32>();
    for block in blocks {
        xor(block, &key);
    }
    xor(rest, &key);
}

fn xor(bytes: &mut [u8], key: &[u8; 32]) {
    for (byte, key) in bytes.iter_mut().zip(key) {
        *byte ^= key;
    }
}
