//! The strict reader of JSON (RFC 8259): text in, a tree of slices out. Of members of one name the last wins, as most
//! readers have it. It never panics, and never reads deeper than `DEPTH`.

use super::{Node, Object, Text};
use std::borrow::Cow;
use std::collections::HashMap;

/// The most arrays and objects that may stand inside one another.
const DEPTH: usize = 512;

/// Up to so many members, looking for one of the same name is faster without a table.
const FEW_MEMBERS: usize = 12;

/// Digits of `\u0041`.
const CODE_UNIT: usize = 4;

/// What some programs write before UTF-8.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Why a text is no JSON. Offsets are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JsonFault {
    /// The byte there, or the end, is not what the grammar allows.
    Invalid { at: usize },
    /// The bytes are not UTF-8.
    Utf8 { at: usize },
    /// More arrays and objects stand inside one another than `DEPTH`.
    TooDeep,
}

/// A body as it came: a byte order mark may stand before its text (RFC 8259 §8.1).
pub(crate) fn parse_document(body: &[u8]) -> Result<Node<'_>, JsonFault> {
    parse(without_mark(body))
}

/// A body without its byte order mark.
pub(crate) fn without_mark(body: &[u8]) -> &[u8] {
    body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body)
}

/// Reads a whole document.
pub(crate) fn parse(bytes: &[u8]) -> Result<Node<'_>, JsonFault> {
    let text = std::str::from_utf8(bytes).map_err(|fault| JsonFault::Utf8 {
        at: fault.valid_up_to(),
    })?;
    let mut reader = Reader {
        text,
        at: 0,
        depth: 0,
    };
    let node = reader.value()?;
    reader.space();
    if reader.at < text.len() {
        return Err(reader.fault());
    }
    Ok(node)
}

/// Where in the text the reader stands.
struct Reader<'a> {
    text: &'a str,
    /// Offset of the next byte.
    at: usize,
    /// Arrays and objects around it.
    depth: usize,
}

impl<'a> Reader<'a> {
    /// Any value.
    fn value(&mut self) -> Result<Node<'a>, JsonFault> {
        self.space();
        match self.peek() {
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::list),
            Some(b'"') => Ok(Node::Text(Text::Slice(self.string()?))),
            Some(b't') => self.literal("true", Node::Bool(true)),
            Some(b'f') => self.literal("false", Node::Bool(false)),
            Some(b'n') => self.literal("null", Node::Null),
            _ => self.number(),
        }
    }

    /// An array or object, whose opening bracket is next.
    fn nested(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<Node<'a>, JsonFault>,
    ) -> Result<Node<'a>, JsonFault> {
        if self.depth == DEPTH {
            return Err(JsonFault::TooDeep);
        }
        self.depth += 1;
        self.at += 1;
        let node = read(self);
        self.depth -= 1;
        node
    }

    /// The members behind an opening brace.
    fn object(&mut self) -> Result<Node<'a>, JsonFault> {
        let mut members = Vec::new();
        self.space();
        if self.take(b'}') {
            return Ok(Node::Object(Object(members)));
        }
        loop {
            self.space();
            let name = canonical(self.string()?);
            self.space();
            self.need(b':')?;
            members.push((name, self.value()?));
            self.space();
            if !self.take(b',') {
                self.need(b'}')?;
                return Ok(Node::Object(Object(without_repeated(members))));
            }
        }
    }

    /// The items behind an opening bracket.
    fn list(&mut self) -> Result<Node<'a>, JsonFault> {
        let mut items = Vec::new();
        self.space();
        if self.take(b']') {
            return Ok(Node::List(items));
        }
        loop {
            items.push(self.value()?);
            self.space();
            if !self.take(b',') {
                self.need(b']')?;
                return Ok(Node::List(items));
            }
        }
    }

    /// The bytes between two quotes.
    fn string(&mut self) -> Result<&'a str, JsonFault> {
        self.need(b'"')?;
        let start = self.at;
        loop {
            let rest = &self.text.as_bytes()[self.at..];
            let plain = rest
                .iter()
                .position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20));
            self.at += plain.unwrap_or(rest.len());
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => self.escape()?,
                _ => return Err(self.fault()),
            }
        }
        self.at += 1;
        Ok(&self.text[start..self.at - 1])
    }

    /// One escape, whose backslash is next.
    fn escape(&mut self) -> Result<(), JsonFault> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                self.at += 1;
                for _ in 0..CODE_UNIT {
                    if !self.peek().is_some_and(|byte| byte.is_ascii_hexdigit()) {
                        return Err(self.fault());
                    }
                    self.at += 1;
                }
            }
            _ => return Err(self.fault()),
        }
        Ok(())
    }

    /// A number (RFC 8259 §6).
    fn number(&mut self) -> Result<Node<'a>, JsonFault> {
        let start = self.at;
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            if !self.take(b'+') {
                self.take(b'-');
            }
            self.digits()?;
        }
        Ok(Node::Number(Cow::Borrowed(&self.text[start..self.at])))
    }

    /// One digit or more.
    fn digits(&mut self) -> Result<(), JsonFault> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start {
            return Err(self.fault());
        }
        Ok(())
    }

    /// `true`, `false` or `null`.
    fn literal(&mut self, word: &str, node: Node<'a>) -> Result<Node<'a>, JsonFault> {
        for byte in word.bytes() {
            self.need(byte)?;
        }
        Ok(node)
    }

    /// Skips white space.
    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// The next byte.
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Goes past the next byte if it is this one.
    fn take(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    /// Goes past the next byte, which must be this one.
    fn need(&mut self, byte: u8) -> Result<(), JsonFault> {
        if self.take(byte) {
            Ok(())
        } else {
            Err(self.fault())
        }
    }

    /// A fault at this place.
    fn fault(&self) -> JsonFault {
        JsonFault::Invalid { at: self.at }
    }
}

/// A name in the spelling that names are compared in: with no escape that it can do without.
fn canonical(raw: &str) -> Cow<'_, str> {
    if !raw.contains('\\') {
        return Cow::Borrowed(raw);
    }
    let plain = unescape(raw);
    if plain.contains(char::REPLACEMENT_CHARACTER) {
        return Cow::Borrowed(raw); // perhaps a lone surrogate, which only the client's spelling can say
    }
    Cow::Owned(super::escape(&plain))
}

/// Gives the first of several members of one name the value of the last.
pub(super) fn without_repeated<'a>(
    members: Vec<(Cow<'a, str>, Node<'a>)>,
) -> Vec<(Cow<'a, str>, Node<'a>)> {
    let few = members.len() <= FEW_MEMBERS;
    if few
        && (1..members.len()).all(|at| members[..at].iter().all(|(name, _)| *name != members[at].0))
    {
        return members;
    }
    let mut places = HashMap::with_capacity(members.len());
    let mut kept: Vec<(Cow<'a, str>, Node<'a>)> = Vec::with_capacity(members.len());
    for (name, value) in members {
        let place = *places.entry(name.clone()).or_insert(kept.len());
        match kept.get_mut(place) {
            Some((_, old)) => *old = value,
            None => kept.push((name, value)),
        }
    }
    kept
}

/// The plain text of what stands between two quotes; lone surrogates become U+FFFD.
pub(super) fn unescape(raw: &str) -> Cow<'_, str> {
    if !raw.contains('\\') {
        return Cow::Borrowed(raw);
    }
    let mut plain = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let (letter, behind) = one_escape(rest);
        plain.push(letter);
        rest = behind;
    }
    plain.push_str(rest);
    Cow::Owned(plain)
}

/// The character that the text behind a backslash begins with, and what follows it.
fn one_escape(text: &str) -> (char, &str) {
    let mut letters = text.chars();
    let letter = match letters.next() {
        Some('b') => '\u{8}',
        Some('f') => '\u{c}',
        Some('n') => '\n',
        Some('r') => '\r',
        Some('t') => '\t',
        Some('u') => return code_point(letters.as_str()),
        Some(other) => other,
        None => char::REPLACEMENT_CHARACTER,
    };
    (letter, letters.as_str())
}

/// The character of one code unit, or of a pair of surrogates.
fn code_point(text: &str) -> (char, &str) {
    let (Some(high), Some(rest)) = (code_unit(text), text.get(CODE_UNIT..)) else {
        return (char::REPLACEMENT_CHARACTER, "");
    };
    if let Some(letter) = char::from_u32(high) {
        return (letter, rest);
    }
    let low = rest
        .strip_prefix("\\u")
        .and_then(code_unit)
        .filter(|low| (0xdc00..0xe000).contains(low));
    match low {
        Some(low) if high < 0xdc00 => {
            let letter = char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00));
            (
                letter.unwrap_or(char::REPLACEMENT_CHARACTER),
                &rest[2 + CODE_UNIT..],
            )
        }
        _ => (char::REPLACEMENT_CHARACTER, rest),
    }
}

/// Where, in what stands between two quotes, the escape of a high surrogate begins by which it ends.
pub(super) fn first_half(raw: &str) -> Option<usize> {
    let at = raw.len().checked_sub(2 + CODE_UNIT)?;
    let unit = code_unit(raw.get(at..)?.strip_prefix("\\u")?)?;
    // Behind a backslash that is escaped itself there is plain text.
    let slashes = raw.as_bytes()[..at].iter().rev();
    let is_escape = slashes.take_while(|byte| **byte == b'\\').count() % 2 == 0;
    ((0xd800..0xdc00).contains(&unit) && is_escape).then_some(at)
}

/// The code unit of four hex digits.
fn code_unit(text: &str) -> Option<u32> {
    u32::from_str_radix(text.get(..CODE_UNIT)?, 16).ok()
}
