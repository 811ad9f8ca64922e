//! The reader of JSON (RFC 8259): text in, a tree of slices out. What is JSON is for the scanner of [`crate::codec::json`] to
//! say; what it lets pass is taken apart here. Of members of one name the last wins, as most readers have it.

use super::{Node, Object, Text};
use crate::codec::BYTE_ORDER_MARK;
use crate::codec::json::{Fault, Interest, Key, Scanner, Value, Visitor, unescape};
use memchr::memchr2;
use std::borrow::Cow;
use std::collections::HashMap;

/// The most arrays and objects that may stand inside one another.
const DEPTH: usize = 512;

/// Up to so many members, looking for one of the same name is faster without a table.
const FEW_MEMBERS: usize = 12;

/// Digits of `\u0041`.
const CODE_UNIT: usize = 4;

/// A body as it came: a byte order mark may stand before its text (RFC 8259 §8.1).
pub(crate) fn parse_document(body: &[u8]) -> Result<Node<'_>, Fault> {
    parse(without_mark(body))
}

/// A body without its byte order mark.
pub(crate) fn without_mark(body: &[u8]) -> &[u8] {
    body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body)
}

/// Reads a whole document.
pub(crate) fn parse(bytes: &[u8]) -> Result<Node<'_>, Fault> {
    let mut scanner = Scanner::new(DEPTH);
    scanner.feed(bytes, &mut Checked)?;
    scanner.finish()?;
    // The scanner has found it to be UTF-8.
    let rest = str::from_utf8(bytes).unwrap_or_default();
    Ok(Reader { rest }.value())
}

/// Lets the scanner check a document, and looks at nothing of it.
struct Checked;

impl Visitor for Checked {
    fn key(&mut self, _: Key<'_>) -> Interest {
        Interest::Skip
    }

    fn value(&mut self, _: Value<'_>) {}
}

/// Takes a document apart that has been checked; of any other it would make something or other, and not panic.
struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    /// Any value.
    fn value(&mut self) -> Node<'a> {
        match self.peek() {
            Some(b'{') => {
                let members = self.items(Self::member);
                Node::Object(Object(without_repeated(members)))
            }
            Some(b'[') => Node::List(self.items(Self::value)),
            Some(b'"') => Node::Text(Text::word(self.string())),
            _ => self.scalar(),
        }
    }

    /// All that stands between two brackets, of which the first is next.
    fn items<T>(&mut self, item: impl Fn(&mut Self) -> T) -> Vec<T> {
        let mut items = Vec::new();
        self.take(1);
        while !matches!(self.peek(), None | Some(b']' | b'}')) {
            items.push(item(self));
            if self.peek() == Some(b',') {
                self.take(1);
            }
        }
        self.take(1);
        items
    }

    /// A name and its value.
    fn member(&mut self) -> (Cow<'a, str>, Node<'a>) {
        self.peek();
        let name = canonical(self.string());
        self.peek(); // a colon
        self.take(1);
        (name, self.value())
    }

    /// What stands between two quotes, of which the first is next.
    fn string(&mut self) -> &'a str {
        self.take(1);
        let mut end = 0;
        while let Some(behind) = self.rest.as_bytes().get(end..)
            && let Some(at) = memchr2(b'"', b'\\', behind)
        {
            end += at;
            if behind[at] == b'"' {
                break;
            }
            end += 2; // a backslash and what it escapes
        }
        let text = self.take(end);
        self.take(1);
        text
    }

    /// A number or a literal.
    fn scalar(&mut self) -> Node<'a> {
        let end = self.rest.find([',', ']', '}', ' ', '\t', '\n', '\r']);
        match self.take(end.unwrap_or(self.rest.len())) {
            "true" => Node::Bool(true),
            "false" => Node::Bool(false),
            "null" => Node::Null,
            number => Node::Number(Cow::Borrowed(number)),
        }
    }

    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_ascii_start();
        self.rest.as_bytes().first().copied()
    }

    /// Takes so many bytes.
    fn take(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at_checked(bytes).unwrap_or((self.rest, ""));
        self.rest = rest;
        taken
    }
}

/// A name in the spelling that names are compared in: with no escape that it can do without.
fn canonical(raw: &str) -> Cow<'_, str> {
    match unescape(raw) {
        Cow::Borrowed(plain) => Cow::Borrowed(plain),
        // Perhaps a lone surrogate, which only the client's spelling can say.
        Cow::Owned(plain) if plain.contains(char::REPLACEMENT_CHARACTER) => Cow::Borrowed(raw),
        Cow::Owned(plain) => Cow::Owned(super::escape(&plain)),
    }
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

/// Where, in what stands between two quotes, the escape of a high surrogate begins by which it ends.
pub(super) fn first_half(raw: &str) -> Option<usize> {
    let at = raw.len().checked_sub(2 + CODE_UNIT)?;
    let digits = raw.get(at..)?.strip_prefix("\\u")?;
    let unit = u32::from_str_radix(digits, 16).ok()?;
    // Behind a backslash that is escaped itself there is plain text.
    let slashes = raw.as_bytes()[..at].iter().rev();
    let is_escape = slashes.take_while(|byte| **byte == b'\\').count() % 2 == 0;
    ((0xd800..0xdc00).contains(&unit) && is_escape).then_some(at)
}
