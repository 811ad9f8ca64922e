//! The frames of RFC 6455: bytes in, messages and control frames out, and frames back to bytes. Not
//! the opening handshake, no extension, and no opinion on what a message says.
//!
//! The two directions have different readers, because a proxy owes them different things. [`ClientReader`] hands a message
//! out only when it is whole, so that nothing of it has been sent on before it was judged. [`ServerReader`] looks on while
//! bytes are relayed, keeps none of them and cannot fail.

mod client_reader;
mod encode;
mod parser;
mod server_reader;
#[cfg(test)]
mod tests;

use std::fmt;

pub use client_reader::{ClientEvent, ClientReader, MaskedPayload, Message};
pub use encode::{apply_mask, close_frame, encode, encode_in_place, text_frame};
pub use server_reader::{ServerEvent, ServerReader};

/// The longest header of a frame, in bytes: two that are always there, eight of length, four of mask.
pub const MAX_HEADER_BYTES: usize = 14;

/// The most frames one message from a client may be cut into. It bounds what headers (of empty
/// fragments, say) add to the bytes held for a message: below 1 MiB.
pub const MAX_FRAGMENTS: usize = 65_536;

/// The longest payload of a control frame, in bytes (RFC 6455 §5.5).
const MAX_CONTROL_BYTES: usize = 125;

/// What a frame is (RFC 6455 §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// A further frame of the message that is open.
    Continuation = 0x0,
    /// The first frame of a message of UTF-8 text.
    Text = 0x1,
    /// The first frame of a message of bytes.
    Binary = 0x2,
    /// A control frame that ends the connection, with a status code or without.
    Close = 0x8,
    /// A control frame that asks for a pong.
    Ping = 0x9,
    /// A control frame that answers a ping.
    Pong = 0xa,
}

/// Why a peer's bytes are not a legal sequence of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// RSV1 is set: a compressed message, although no compression was agreed on.
    Compressed,
    /// RSV2 or RSV3 is set.
    ReservedBits,
    /// An opcode that the protocol keeps for later.
    UnknownOpcode(u8),
    /// A frame from a client without a mask.
    Unmasked,
    /// A frame from a server with a mask.
    Masked,
    /// A client wrote a length in more bytes than it needs. Parsers differ on it, and a frame that
    /// two of them read differently must not pass between them.
    OverlongLength,
    /// A length of 2^63 bytes or more.
    ImpossibleLength,
    /// A control frame in fragments.
    FragmentedControl,
    /// A control frame of more than 125 bytes.
    ControlTooLong,
    /// A close frame of one byte: half a status code.
    MalformedClose,
    /// A continuation where no message is open.
    UnexpectedContinuation,
    /// A new message before the last frame of the one that is open.
    InterleavedMessage,
    /// The joined payload would exceed the limit of this many bytes.
    MessageTooBig {
        /// The limit, in bytes of payload.
        limit: usize,
    },
    /// A message in more than [`MAX_FRAGMENTS`] frames.
    TooManyFragments,
}

/// A close, ping or pong frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlFrame {
    /// `Close`, `Ping` or `Pong`.
    pub opcode: Opcode,
    /// At most 125 bytes, unmasked.
    pub payload: Vec<u8>,
}

impl Opcode {
    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

impl ProtocolError {
    /// The status with which the connection is to be closed (RFC 6455 §7.4.1).
    pub fn close_code(self) -> u16 {
        match self {
            Self::MessageTooBig { .. } => 1009,
            Self::TooManyFragments => 1008,
            _ => 1002,
        }
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compressed => f.write_str("compressed frame, although compression was declined"),
            Self::ReservedBits => f.write_str("frame with a reserved bit set"),
            Self::UnknownOpcode(opcode) => write!(f, "frame with the unknown opcode `{opcode:#x}`"),
            Self::Unmasked => f.write_str("client frame without a mask"),
            Self::Masked => f.write_str("server frame with a mask"),
            Self::OverlongLength => f.write_str("frame length in more bytes than it needs"),
            Self::ImpossibleLength => f.write_str("frame length of 2^63 bytes or more"),
            Self::FragmentedControl => f.write_str("control frame in fragments"),
            Self::ControlTooLong => f.write_str("control frame of more than 125 bytes"),
            Self::MalformedClose => f.write_str("close frame with half a status code"),
            Self::UnexpectedContinuation => f.write_str("continuation frame outside a message"),
            Self::InterleavedMessage => f.write_str("new message before the end of the last"),
            Self::MessageTooBig { limit } => write!(f, "message of more than {limit} bytes"),
            Self::TooManyFragments => write!(f, "message of more than {MAX_FRAGMENTS} frames"),
        }
    }
}

impl std::error::Error for ProtocolError {}

impl ControlFrame {
    /// The status of a close frame; `None` where it has none, and for ping and pong.
    pub fn close_code(&self) -> Option<u16> {
        match (self.opcode, &self.payload[..]) {
            (Opcode::Close, [high, low, ..]) => Some(u16::from_be_bytes([*high, *low])),
            _ => None,
        }
    }
}
