//! The text that an escaped string spells. It trusts that the string was checked, and only must not panic if it was not.

/// The characters of a string that is spelled with escapes. It ends early where the spelling was cut off.
pub(super) struct Unescaped<'a> {
    rest: std::str::Chars<'a>,
}

impl<'a> Unescaped<'a> {
    /// `raw` stands between two quotes, checked, or is the beginning of what does.
    pub fn new(raw: &'a [u8]) -> Unescaped<'a> {
        let whole = match std::str::from_utf8(raw) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&raw[..error.valid_up_to()]).unwrap_or_default(),
        };
        Unescaped {
            rest: whole.chars(),
        }
    }

    /// Two escaped surrogates that make one character are joined; a lone one becomes U+FFFD.
    fn unicode(&mut self) -> Option<char> {
        let unit = self.unit()?;
        if let 0xd800..0xdc00 = unit {
            let mut ahead = Unescaped {
                rest: self.rest.clone(),
            };
            if let (Some('\\'), Some('u')) = (ahead.rest.next(), ahead.rest.next())
                && let Some(low @ 0xdc00..0xe000) = ahead.unit()
            {
                self.rest = ahead.rest;
                return char::from_u32(0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00));
            }
        }
        Some(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    /// Four hexadecimal digits.
    fn unit(&mut self) -> Option<u32> {
        (0..4).try_fold(0, |unit, _| {
            Some(unit << 4 | self.rest.next()?.to_digit(16)?)
        })
    }
}

impl Iterator for Unescaped<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        match self.rest.next()? {
            '\\' => match self.rest.next()? {
                'b' => Some('\u{8}'),
                'f' => Some('\u{c}'),
                'n' => Some('\n'),
                'r' => Some('\r'),
                't' => Some('\t'),
                'u' => self.unicode(),
                itself => Some(itself),
            },
            plain => Some(plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(raw: &str) -> String {
        Unescaped::new(raw.as_bytes()).collect()
    }

    #[test]
    fn every_escape_is_undone() {
        assert_eq!(
            text(r#"a\"\\\/\b\f\n\r\t\u0041\u00e9é"#),
            "a\"\\/\u{8}\u{c}\n\r\tAéé"
        );
    }

    #[test]
    fn surrogates_are_joined_in_pairs_and_replaced_alone() {
        assert_eq!(text(r"\ud83d\ude00"), "\u{1f600}");
        assert_eq!(text(r"\ud83d\ud83d\ude00"), "\u{fffd}\u{1f600}");
        assert_eq!(text(r"\ude00\ud83dx"), "\u{fffd}\u{fffd}x");
        assert_eq!(text(r"\ud83d\u0041"), "\u{fffd}A");
    }

    #[test]
    fn what_is_cut_off_ends_the_text() {
        assert_eq!(text(r"a\"), "a");
        assert_eq!(text(r"a\u00"), "a");
        assert_eq!(Unescaped::new(b"a\xc3").collect::<String>(), "a");
    }
}
