//! The text that an escaped string spells. It trusts that the string was checked, and only must not panic if it was not.

use std::borrow::Cow;
use std::str::Chars;

use memchr::memchr;

/// The text of what stands between two quotes, checked, or of its beginning. It ends early where an escape was cut off; a
/// lone surrogate, which no Rust string can hold, is U+FFFD.
pub fn unescape(raw: &str) -> Cow<'_, str> {
    if memchr(b'\\', raw.as_bytes()).is_none() {
        return Cow::Borrowed(raw);
    }
    let mut text = String::with_capacity(raw.len());
    unescape_into(raw, &mut text);
    Cow::Owned(text)
}

/// The same, appended to `text`.
pub(super) fn unescape_into(mut raw: &str, text: &mut String) {
    while let Some(at) = memchr(b'\\', raw.as_bytes()) {
        text.push_str(&raw[..at]);
        let mut rest = raw[at + 1..].chars();
        let Some(letter) = escaped(&mut rest) else {
            return;
        };
        text.push(letter);
        raw = rest.as_str();
    }
    text.push_str(raw);
}

/// The bytes up to the first that is no UTF-8: a string may have been cut within a character, or not checked for that.
pub(super) fn valid_prefix(raw: &[u8]) -> &str {
    match std::str::from_utf8(raw) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&raw[..error.valid_up_to()]).unwrap_or_default(),
    }
}

/// The character that begins behind a backslash.
fn escaped(rest: &mut Chars<'_>) -> Option<char> {
    Some(match rest.next()? {
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'u' => return unicode(rest),
        itself => itself,
    })
}

/// Two escaped surrogates that make one character are joined; a lone one becomes U+FFFD.
fn unicode(rest: &mut Chars<'_>) -> Option<char> {
    let unit = code_unit(rest)?;
    if let 0xd800..0xdc00 = unit {
        let mut ahead = rest.clone();
        if let (Some('\\'), Some('u')) = (ahead.next(), ahead.next())
            && let Some(low @ 0xdc00..0xe000) = code_unit(&mut ahead)
        {
            *rest = ahead;
            return char::from_u32(0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00));
        }
    }
    Some(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER))
}

/// Four hexadecimal digits.
fn code_unit(rest: &mut Chars<'_>) -> Option<u32> {
    (0..4).try_fold(0, |unit, _| Some(unit << 4 | rest.next()?.to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_escape_is_undone() {
        assert_eq!(
            unescape(r#"a\"\\\/\b\f\n\r\t\u0041\u00e9é"#),
            "a\"\\/\u{8}\u{c}\n\r\tAéé"
        );
    }

    #[test]
    fn surrogates_are_joined_in_pairs_and_replaced_alone() {
        assert_eq!(unescape(r"\ud83d\ude00"), "\u{1f600}");
        assert_eq!(unescape(r"\ud83d\ud83d\ude00"), "\u{fffd}\u{1f600}");
        assert_eq!(unescape(r"\ude00\ud83dx"), "\u{fffd}\u{fffd}x");
        assert_eq!(unescape(r"\ud83d\u0041"), "\u{fffd}A");
    }

    #[test]
    fn what_is_cut_off_ends_the_text() {
        assert_eq!(unescape(r"a\"), "a");
        assert_eq!(unescape(r"a\u00"), "a");
        assert_eq!(valid_prefix(b"a\xc3"), "a");
    }
}
