//! The answers of one list: LiteLLM serves a chat request for several models so
//! (<https://docs.litellm.ai/docs/completion/batching>).

/// Takes a JSON array apart at its elements. Whether they are valid is for whoever reads them to say.
#[derive(Debug, Default)]
pub(super) struct List {
    /// How many brackets are open, that of the array included.
    depth: u64,
    in_string: bool,
    /// The last byte of the string under way was a backslash that escapes the next.
    escaped: bool,
}

impl List {
    /// Whether the array has been closed, or has not begun.
    pub fn is_whole(&self) -> bool {
        self.depth == 0
    }

    /// How many of these bytes belong to the element under way, without what stands before it, and whether it ends with them;
    /// and what is left.
    pub fn split<'a>(&mut self, bytes: &'a [u8]) -> (&'a [u8], bool, &'a [u8]) {
        let mut begin = 0;
        for (at, byte) in bytes.iter().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => {
                    self.depth += 1;
                    if self.depth == 1 {
                        begin = at + 1;
                    }
                }
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 1 {
                        return (&bytes[begin..=at], true, &bytes[at + 1..]);
                    }
                }
                b',' if self.depth == 1 => begin = at + 1,
                _ => {}
            }
        }
        (&bytes[begin..], false, &[])
    }
}
