//! The strings of JSON, for whoever only looks for the brackets and commas outside of them.

/// Where bytes stand.
#[derive(Debug, Default)]
pub struct Strings {
    within: bool,
    /// The last byte of the string under way was a backslash that escapes the next.
    escaped: bool,
}

impl Strings {
    /// Whether a string is under way.
    pub fn is_within(&self) -> bool {
        self.within
    }

    /// Whether the next byte belongs to a string, its quotes included.
    pub fn take(&mut self, byte: u8) -> bool {
        if !self.within {
            self.within = byte == b'"';
            return self.within;
        }
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' => self.escaped = true,
            b'"' => self.within = false,
            _ => {}
        }
        true
    }
}
