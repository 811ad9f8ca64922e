//! What is nested deeper than is looked at.

use super::{Kind, Strings};

/// An array or object of which only the end is looked for, whatever stands in it. What it needs does not grow with it.
#[derive(Debug, Default)]
pub(super) struct Deep {
    is_object: bool,
    /// How many brackets are open, its own included.
    depth: u64,
    strings: Strings,
}

impl Deep {
    /// One whose first bracket has been read.
    pub fn behind_bracket(is_object: bool) -> Self {
        Self {
            is_object,
            depth: 1,
            strings: Strings::default(),
        }
    }

    pub fn kind(&self) -> Kind {
        match self.is_object {
            true => Kind::Object,
            false => Kind::Array,
        }
    }

    /// How many of the next bytes belong to it, if it ends with them.
    pub fn find_end(&mut self, bytes: &[u8]) -> Option<usize> {
        for (at, byte) in bytes.iter().enumerate() {
            if self.strings.take(*byte) {
                continue;
            }
            match byte {
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth -= 1,
                _ => {}
            }
            if self.depth == 0 {
                return Some(at + 1);
            }
        }
        None
    }
}
