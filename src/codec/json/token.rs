//! The bytes of one key or value, which may lie in several pieces.

use super::CAPTURE_BYTES;

/// The key or value under way whose bytes are wanted. It is read from the piece itself where it lies in one piece, else
/// gathered in `held`, which never grows beyond `CAPTURE_BYTES + 1`.
#[derive(Debug, Default)]
pub(super) struct Token {
    pub(super) wanted: bool,
    /// Where it begins, or goes on, in the piece under way.
    start: usize,
    held: Vec<u8>,
}

impl Token {
    pub(super) fn begin(&mut self, start: usize) {
        self.wanted = true;
        self.start = start;
        self.held.clear();
    }

    /// Keeps what this piece has of it, before the piece goes.
    pub(super) fn hold(&mut self, bytes: &[u8]) {
        if self.wanted {
            self.append(&bytes[self.start..]);
            self.start = 0;
        }
    }

    /// The whole of it, or at least its first `CAPTURE_BYTES + 1` bytes.
    pub(super) fn end<'a>(&'a mut self, bytes: &'a [u8], end: usize) -> &'a [u8] {
        self.wanted = false;
        let last = &bytes[self.start..end];
        if self.held.is_empty() {
            return last;
        }
        self.append(last);
        &self.held
    }

    fn append(&mut self, bytes: &[u8]) {
        let room = CAPTURE_BYTES + 1 - self.held.len();
        self.held.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}
