//! Bytes in, values out: the formats that requests and responses are made of. Nothing here does I/O, reads a clock, or
//! knows Pingora, so that all of it is fuzzed and property-tested without them.

pub mod body_memory;
pub(crate) mod chat_usage_chunk;
pub mod content_coding;
pub mod error;
pub(crate) mod framing;
pub(crate) mod guarded_bytes;
pub(crate) mod http2_flood;
pub(crate) mod http2_frames;
pub mod json;
pub mod request_scan;
pub(crate) mod response_scan;
pub mod service_tier;
pub mod sse;
pub(crate) mod text_encoding;
pub mod trace_context;
pub mod websocket;

/// What some programs put in front of UTF-8, and readers of JSON refuse (RFC 8259 §8.1).
pub const BYTE_ORDER_MARK: &[u8; 3] = b"\xef\xbb\xbf";

/// At most `limit` bytes of the beginning of a text, and no part of a character.
pub fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}
