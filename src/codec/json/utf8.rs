//! UTF-8 that arrives in pieces: splits each piece into whole code points and what is left of one. It does not look
//! at what the code points mean.

/// The first bytes of a code point whose rest has not arrived.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Carry {
    bytes: [u8; 4],
    len: usize,
}

/// A piece up to the place where it stops being whole, valid code points.
pub(super) struct Checked<'a> {
    pub whole: &'a [u8],
    /// The bytes after `whole`: empty, the beginning of a code point, or something that no byte can make valid.
    pub rest: &'a [u8],
    pub invalid: bool,
}

/// What the next bytes made of a carried beginning.
pub(super) enum Completion {
    Whole { code_point: [u8; 4], len: usize },
    Unfinished,
    Invalid,
}

impl Carry {
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps the beginning of a code point, at most three bytes.
    pub fn keep(&mut self, beginning: &[u8]) {
        self.bytes[..beginning.len()].copy_from_slice(beginning);
        self.len = beginning.len();
    }

    /// Takes bytes off the front of `piece` until the carried code point is whole or can no longer be.
    pub fn complete(&mut self, piece: &mut &[u8]) -> Completion {
        while let Some((&byte, rest)) = piece.split_first() {
            // Three bytes of a code point are the most that are ever left, so there is room for one more.
            self.bytes[self.len] = byte;
            self.len += 1;
            *piece = rest;
            match std::str::from_utf8(&self.bytes[..self.len]) {
                Ok(_) => {
                    let len = std::mem::take(&mut self.len);
                    return Completion::Whole {
                        code_point: self.bytes,
                        len,
                    };
                }
                Err(error) if error.error_len().is_some() => return Completion::Invalid,
                Err(_) => {}
            }
        }
        Completion::Unfinished
    }
}

/// Splits off the whole code points at the front of `piece`.
pub(super) fn check(piece: &[u8]) -> Checked<'_> {
    match simdutf8::compat::from_utf8(piece) {
        Ok(_) => Checked {
            whole: piece,
            rest: &[],
            invalid: false,
        },
        Err(error) => {
            let (whole, rest) = piece.split_at(error.valid_up_to());
            Checked {
                whole,
                rest,
                invalid: error.error_len().is_some(),
            }
        }
    }
}
