//! The answers of one list: LiteLLM serves a chat request for several models so
//! (<https://docs.litellm.ai/docs/completion/batching>), and Gemini's OpenAI door tells its errors so
//! (<https://github.com/Simpleyyt/ai-manus/issues/101>).

use crate::codec::json::Strings;

/// Takes a JSON array apart at its elements. Whether they are valid is for whoever reads them to say.
#[derive(Debug, Default)]
pub(super) struct List {
    /// How many brackets are open, that of the array included.
    depth: u64,
    strings: Strings,
}

impl List {
    /// Whether the array has been closed, or has not begun.
    pub fn is_whole(&self) -> bool {
        self.depth == 0
    }

    /// What of these bytes belongs to the object or array under way, or to the first that begins, and whether it ends with them;
    /// and what is left. Whatever else stands in the list is passed over.
    pub fn split<'a>(&mut self, bytes: &'a [u8]) -> (&'a [u8], bool, &'a [u8]) {
        let mut begin = if self.depth > 1 { 0 } else { bytes.len() };
        for (at, byte) in bytes.iter().enumerate() {
            if self.strings.take(*byte) {
                continue;
            }
            match byte {
                b'{' | b'[' => {
                    self.depth += 1;
                    if self.depth == 2 {
                        begin = at;
                    }
                }
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 1 {
                        return (&bytes[begin..=at], true, &bytes[at + 1..]);
                    }
                }
                _ => {}
            }
        }
        (&bytes[begin..], false, &[])
    }
}
