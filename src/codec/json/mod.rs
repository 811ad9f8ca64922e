//! A strict, incremental scanner of JSON (RFC 8259): it checks every byte of a document that arrives in pieces, and
//! shows a visitor those members it asks for. It builds no tree, holds no input beyond one short token, and does not
//! know what a member means.

mod brackets;
mod deep;
mod number;
mod simd;
mod strings;
#[cfg(test)]
mod tests;
mod token;
mod unescape;
mod utf8;

use std::borrow::Cow;
use std::fmt;

use brackets::Brackets;
use deep::Deep;
use number::{Number, Word};
pub use simd::Kernel;
use simd::{Piece, is_escape_letter};
pub use strings::Strings;
use token::Token;
pub use unescape::unescape;
use unescape::{unescape_into, valid_prefix};
use utf8::{Carry, Completion};

/// The longest key, in bytes after unescaping, that is shown by name.
pub const KEY_BYTES: usize = 64;

/// The most bytes of a captured value that are kept: 256 bytes of text though each be spelled `\uXXXX`.
pub const CAPTURE_BYTES: usize = 256 * LONGEST_ESCAPE;

/// Digits of `\u0041`.
const CODE_UNIT: usize = 4;

/// `\u0041` spells one byte with six.
const LONGEST_ESCAPE: usize = 2 + CODE_UNIT;

/// What a document is refused for. Offsets count bytes from the beginning of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The byte at this offset, or the end of the input there, is not what the grammar allows.
    InvalidJson {
        /// Offset in bytes.
        at: u64,
    },
    /// The code point that begins at this offset is malformed, overlong, a surrogate, or cut short by the end.
    InvalidUtf8 {
        /// Offset in bytes.
        at: u64,
    },
    /// More arrays and objects stand inside one another than the limit.
    TooDeep,
}

/// What a visitor wants of the value that follows a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Only that it ends.
    Skip,
    /// The bytes of it, if it is no array or object.
    Capture,
    /// Its members, if it is an object; else its bytes, as for `Capture`.
    Enter,
}

/// Type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An object.
    Object,
    /// An array.
    Array,
    /// A string.
    String,
    /// A number.
    Number,
    /// `true` or `false`.
    Bool,
    /// `null`.
    Null,
}

/// The key of a member, shown at its closing quote.
#[derive(Clone, Copy, Debug)]
pub struct Key<'a> {
    /// The key after unescaping, in UTF-8, lone surrogates as U+FFFD; `None` if longer than `KEY_BYTES`.
    pub name: Option<&'a [u8]>,
    /// 1 for a member of the top-level object.
    pub depth: usize,
    /// Offset of the opening quote.
    pub start: u64,
}

/// The value of a member, shown when it is complete.
#[derive(Clone, Copy, Debug)]
pub struct Value<'a> {
    /// Type of the value.
    pub kind: Kind,
    /// The depth that its key had.
    pub depth: usize,
    /// Offset of the byte after it.
    pub end: u64,
    /// A captured string between its quotes, still escaped; a captured number or literal as spelled; else empty.
    pub raw: &'a [u8],
    /// Whether `raw` holds only the first `CAPTURE_BYTES` of it.
    pub cut: bool,
}

/// Is shown the members of the top-level object, and of each object it enters, in the order of the document.
pub trait Visitor {
    /// A key was read; the answer says what is to be shown of its value.
    fn key(&mut self, key: Key<'_>) -> Interest;

    /// The value of the latest key of this depth is complete.
    fn value(&mut self, value: Value<'_>);

    /// A comma stands at this offset between two members of a shown object.
    fn comma(&mut self, _at: u64) {}
}

/// The scanner of one document.
#[derive(Debug)]
pub struct Scanner {
    kernel: Kernel,
    state: State,
    /// How far the number under way has come.
    number: Number,
    word: Word,
    /// How many bytes of the word, or hexadecimal digits of the escape, have been seen.
    seen: usize,
    /// Whether the string under way is a key.
    in_key: bool,
    brackets: Brackets,
    depth_limit: usize,
    deep: Deep,
    /// How many of the open brackets are objects that are shown; these are always the outermost.
    shown: usize,
    /// What the visitor said of the latest shown key; the top-level object is always entered.
    interest: Interest,
    key_start: u64,
    token: Token,
    unescaped: String,
    carry: Carry,
    /// Offset of the piece under way.
    offset: u64,
    is_lenient: bool,
    fault: Option<Fault>,
}

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Value,
    FirstElement,
    FirstKey,
    NextKey,
    Colon,
    AfterMember,
    AfterElement,
    AfterDocument,
    String,
    Escape,
    Hex,
    Number,
    Word,
    Deep,
}

impl Scanner {
    /// A scanner that refuses more than `depth_limit` brackets inside one another; it needs a bit for each.
    pub fn new(depth_limit: usize) -> Scanner {
        Scanner::with_kernel(depth_limit, Kernel::detect())
    }

    /// A scanner that also passes over what is no JSON and what many readers take all the same: bytes that are no UTF-8, control
    /// characters and unknown escapes in strings, and the numbers `NaN`, `Infinity` and `-Infinity`, as Python writes them. Of
    /// what is nested deeper than `depth_limit` it looks for the end.
    pub fn lenient(depth_limit: usize) -> Scanner {
        Scanner::new(depth_limit).made_lenient()
    }

    #[doc(hidden)]
    pub fn made_lenient(self) -> Scanner {
        Scanner {
            is_lenient: true,
            ..self
        }
    }

    #[doc(hidden)]
    pub fn with_kernel(depth_limit: usize, kernel: Kernel) -> Scanner {
        Scanner {
            kernel,
            state: State::Value,
            number: Number::Minus,
            word: Word::Null,
            seen: 0,
            in_key: false,
            brackets: Brackets::default(),
            depth_limit,
            deep: Deep::default(),
            shown: 0,
            interest: Interest::Enter,
            key_start: 0,
            token: Token::default(),
            unescaped: String::new(),
            carry: Carry::default(),
            offset: 0,
            is_lenient: false,
            fault: None,
        }
    }

    /// Scans the next piece.
    ///
    /// # Errors
    /// The first fault in the document, however it was split; once there is one, for every further piece.
    pub fn feed<V: Visitor>(&mut self, piece: &[u8], visitor: &mut V) -> Result<(), Fault> {
        if self.fault.is_none() {
            self.feed_code_points(piece, visitor);
        }
        self.fault.map_or(Ok(()), Err)
    }

    /// The document has ended.
    ///
    /// # Errors
    /// Where what was fed is not one whole document.
    pub fn finish(&self) -> Result<(), Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if !self.carry.is_empty() {
            return Err(Fault::InvalidUtf8 { at: self.offset });
        }
        match self.state {
            State::AfterDocument => Ok(()),
            State::Number if self.number.may_end() && self.brackets.depth == 0 => Ok(()),
            _ => Err(Fault::InvalidJson { at: self.offset }),
        }
    }

    /// Whether an array or object is open, in a document without a fault.
    pub fn is_within(&self) -> bool {
        self.fault.is_none() && self.brackets.depth > 0
    }

    /// Shows the grammar whole code points only, so that a fault of syntax and one of encoding at the same place are
    /// told apart in the same way wherever the pieces were split. Like all that it calls, it gives `None` where it has
    /// put down a fault.
    fn feed_code_points<V: Visitor>(&mut self, mut piece: &[u8], visitor: &mut V) -> Option<()> {
        if self.is_lenient {
            return self.scan(piece, visitor);
        }
        if !self.carry.is_empty() {
            match self.carry.complete(&mut piece) {
                Completion::Whole { code_point, len } => self.scan(&code_point[..len], visitor)?,
                Completion::Unfinished => return Some(()),
                Completion::Invalid => return self.refuse(Fault::InvalidUtf8 { at: self.offset }),
            }
        }
        let checked = utf8::check(piece);
        self.scan(checked.whole, visitor)?;
        if checked.invalid {
            return self.refuse(Fault::InvalidUtf8 { at: self.offset });
        }
        self.carry.keep(checked.rest);
        Some(())
    }

    fn scan<V: Visitor>(&mut self, bytes: &[u8], visitor: &mut V) -> Option<()> {
        let piece = &mut Piece::new(bytes, self.kernel);
        let mut at = 0;
        while at < bytes.len() {
            at = match self.state {
                State::String => self.string(piece, at, visitor)?,
                State::Escape => self.escape(bytes, at)?,
                State::Hex => self.hex(bytes, at)?,
                State::Number => self.number(bytes, at, visitor)?,
                State::Word => self.word(bytes, at, visitor)?,
                State::Deep => self.pass_deep(bytes, at, visitor),
                _ if self.brackets.depth > self.shown => {
                    self.walk::<_, false>(piece, at, visitor)?
                }
                _ => self.walk::<_, true>(piece, at, visitor)?,
            };
        }
        self.token.hold(bytes);
        self.offset += bytes.len() as u64;
        Some(())
    }

    /// Goes from token to token. It leaves where the piece ends; at a token that the piece may not have whole, or a string
    /// with other than plain bytes and escapes of two, which is left to the functions below; and where members begin or
    /// cease to be shown.
    ///
    /// `SHOWN` says whether what it walks over is shown: members of objects that are, and the document as a whole. Within a
    /// value of which only the end is shown lies most of a large document, and there nothing is asked of the visitor.
    ///
    /// Each kind of place in the grammar has its own comparisons, for a processor foresees each by what became of it before:
    /// with one `match` over state and byte for all, bodies of 1 KB take half as long again, others a tenth longer.
    fn walk<V: Visitor, const SHOWN: bool>(
        &mut self,
        piece: &mut Piece<'_>,
        mut at: usize,
        visitor: &mut V,
    ) -> Option<usize> {
        let bytes = piece.bytes;
        loop {
            if let State::FirstKey | State::NextKey = self.state {
                at = skip_white(bytes, at);
                match bytes.get(at) {
                    Some(b'"') => at = self.members::<_, SHOWN>(piece, at, visitor),
                    Some(b'}') if self.state == State::FirstKey => self.state = State::AfterMember,
                    Some(_) => return self.invalid(at),
                    None => return Some(at),
                }
            }
            if self.state == State::Colon {
                at = skip_white(bytes, at);
                match bytes.get(at) {
                    Some(b':') => self.state = State::Value,
                    Some(_) => return self.invalid(at),
                    None => return Some(at),
                }
                at += 1;
            }
            if let State::Value | State::FirstElement = self.state {
                at = skip_white(bytes, at);
                match bytes.get(at) {
                    Some(b'"') => at = self.string_value::<_, SHOWN>(piece, at + 1, visitor),
                    Some(b'{') => {
                        self.open::<SHOWN>(true)?;
                        at += 1;
                        if SHOWN && !self.is_shown() {
                            return Some(at);
                        }
                        continue;
                    }
                    Some(b'[') => {
                        self.open::<SHOWN>(false)?;
                        at += 1;
                        if SHOWN {
                            return Some(at);
                        }
                        continue;
                    }
                    Some(b']') if self.state == State::FirstElement => {
                        self.state = State::AfterElement;
                    }
                    Some(_) => match find_scalar_end(bytes, at) {
                        Some((kind, end)) => {
                            let raw = &bytes[at..end];
                            self.end_value::<_, SHOWN>(kind, raw, end, visitor);
                            at = end;
                        }
                        None => return self.begin_scalar(bytes, at),
                    },
                    None => return Some(at),
                }
            }
            while let State::AfterMember | State::AfterElement = self.state {
                at = skip_white(bytes, at);
                let Some(&byte) = bytes.get(at) else {
                    return Some(at);
                };
                at += 1;
                match (self.state, byte) {
                    (State::AfterMember, b'}') => self.close::<_, SHOWN>(Kind::Object, at, visitor),
                    (State::AfterElement, b']') => self.close::<_, SHOWN>(Kind::Array, at, visitor),
                    (State::AfterMember, b',') => {
                        if SHOWN {
                            visitor.comma(self.offset + at as u64 - 1);
                        }
                        self.state = State::NextKey;
                        break;
                    }
                    (State::AfterElement, b',') => {
                        self.state = State::Value;
                        break;
                    }
                    _ => return self.invalid(at - 1),
                }
                if !SHOWN && self.brackets.depth == self.shown {
                    return Some(at);
                }
            }
            if self.state == State::AfterDocument {
                at = skip_white(bytes, at);
                return match bytes.get(at) {
                    Some(_) => self.invalid(at),
                    None => Some(at),
                };
            }
            if self.state.is_in_token() {
                return Some(at);
            }
        }
    }

    /// Takes the key whose opening quote is at `at`, and all of its object as long as members are strings and there is no
    /// white space: as most are.
    #[inline]
    fn members<V: Visitor, const SHOWN: bool>(
        &mut self,
        piece: &mut Piece<'_>,
        mut at: usize,
        visitor: &mut V,
    ) -> usize {
        let bytes = piece.bytes;
        loop {
            let key = at + 1;
            at = piece.find_stop(key);
            if bytes.get(at) != Some(&b'"') {
                return self.leave_string(piece, key, at, true);
            }
            if SHOWN {
                self.show_key(&bytes[key..at], self.offset + key as u64 - 1, visitor);
            }
            let value = match bytes[at + 1..] {
                [b':', b'"', ..] => at + 3,
                [b':', ..] => {
                    self.state = State::Value;
                    return at + 2;
                }
                _ => {
                    self.state = State::Colon;
                    return at + 1;
                }
            };
            at = piece.find_stop(value);
            if bytes.get(at) != Some(&b'"') {
                return self.leave_string(piece, value, at, false);
            }
            if SHOWN {
                self.show_value(Kind::String, &bytes[value..at], at + 1, visitor);
            }
            at += 1;
            match bytes[at..] {
                [b',', b'"', ..] => {
                    if SHOWN {
                        visitor.comma(self.offset + at as u64);
                    }
                    at += 1;
                }
                _ => {
                    self.state = State::AfterMember;
                    return at;
                }
            }
        }
    }

    #[inline]
    fn string_value<V: Visitor, const SHOWN: bool>(
        &mut self,
        piece: &mut Piece<'_>,
        start: usize,
        visitor: &mut V,
    ) -> usize {
        let bytes = piece.bytes;
        let stop = piece.find_stop(start);
        if bytes.get(stop) != Some(&b'"') {
            return self.leave_string(piece, start, stop, false);
        }
        self.end_value::<_, SHOWN>(Kind::String, &bytes[start..stop], stop + 1, visitor);
        stop + 1
    }

    /// Leaves all but the first byte of a number or literal that this piece may not have whole to the states.
    fn begin_scalar(&mut self, bytes: &[u8], start: usize) -> Option<usize> {
        if self.is_shown() && self.interest != Interest::Skip {
            self.token.begin(start);
        }
        let first = bytes[start];
        if let Some(number) = Number::begin(first) {
            (self.state, self.number) = (State::Number, number);
        } else if let Some(word) = Word::begin(first).or_else(|| self.odd_number(first)) {
            (self.state, self.word, self.seen) = (State::Word, word, 1);
        } else {
            return self.invalid(start);
        }
        Some(start + 1)
    }

    /// A number that JSON does not have, where it is passed over.
    fn odd_number(&self, first: u8) -> Option<Word> {
        match first {
            b'N' if self.is_lenient => Some(Word::NotANumber),
            b'I' if self.is_lenient => Some(Word::Infinity),
            _ => None,
        }
    }

    /// Leaves the rest of a string that began at `start`, from a stop on that is not its end, to the states.
    fn leave_string(
        &mut self,
        piece: &Piece<'_>,
        start: usize,
        stop: usize,
        in_key: bool,
    ) -> usize {
        if self.is_shown() && (in_key || self.interest != Interest::Skip) {
            self.token.begin(start);
        }
        if in_key {
            self.key_start = self.offset + start as u64 - 1;
        }
        self.in_key = in_key;
        self.stop_string(piece, stop)
    }

    fn stop_string(&mut self, piece: &Piece<'_>, stop: usize) -> usize {
        // What no string can pass over is no second byte of an escape either, but for `u`.
        self.state = if stop < piece.bytes.len() || piece.is_cut_in_escape() {
            State::Escape
        } else {
            State::String
        };
        stop
    }

    #[inline]
    fn open<const SHOWN: bool>(&mut self, object: bool) -> Option<()> {
        if self.brackets.depth == self.depth_limit {
            return self.enter_deep(object);
        }
        if SHOWN && object && self.shown == self.brackets.depth && self.interest == Interest::Enter
        {
            self.shown += 1;
        }
        self.brackets.push(object);
        self.state = if object {
            State::FirstKey
        } else {
            State::FirstElement
        };
        Some(())
    }

    #[cold]
    fn enter_deep(&mut self, object: bool) -> Option<()> {
        if !self.is_lenient {
            return self.refuse(Fault::TooDeep);
        }
        self.deep = Deep::behind_bracket(object);
        self.state = State::Deep;
        Some(())
    }

    fn pass_deep<V: Visitor>(&mut self, bytes: &[u8], at: usize, visitor: &mut V) -> usize {
        let Some(length) = self.deep.find_end(&bytes[at..]) else {
            return bytes.len();
        };
        let end = at + length;
        self.end_value::<_, true>(self.deep.kind(), &[], end, visitor);
        end
    }

    #[inline]
    fn close<V: Visitor, const SHOWN: bool>(&mut self, kind: Kind, end: usize, visitor: &mut V) {
        if SHOWN && self.is_shown() {
            self.shown -= 1;
        }
        self.brackets.pop();
        self.end_value::<_, true>(kind, &[], end, visitor);
    }

    /// Ends a value; `MAY_BE_SHOWN` is false where it is known that it is not.
    #[inline]
    fn end_value<V: Visitor, const MAY_BE_SHOWN: bool>(
        &mut self,
        kind: Kind,
        raw: &[u8],
        end: usize,
        visitor: &mut V,
    ) {
        self.state = self.brackets.after_value();
        if MAY_BE_SHOWN && self.is_shown() {
            self.show_value(kind, raw, end, visitor);
        }
    }

    fn show_value<V: Visitor>(&self, kind: Kind, raw: &[u8], end: usize, visitor: &mut V) {
        let raw = match self.interest {
            Interest::Capture | Interest::Enter => raw,
            Interest::Skip => &[],
        };
        visitor.value(Value {
            kind,
            depth: self.brackets.depth,
            end: self.offset + end as u64,
            raw: &raw[..raw.len().min(CAPTURE_BYTES)],
            cut: raw.len() > CAPTURE_BYTES,
        });
    }

    /// Ends a string, number or literal whose last own byte, quotes apart, is the one before `text_end`.
    fn end_scalar<V: Visitor>(
        &mut self,
        kind: Kind,
        bytes: &[u8],
        text_end: usize,
        end: usize,
        visitor: &mut V,
    ) {
        if !self.token.wanted {
            return self.end_value::<_, true>(kind, &[], end, visitor);
        }
        let mut token = std::mem::take(&mut self.token);
        self.end_value::<_, true>(kind, token.end(bytes, text_end), end, visitor);
        self.token = token;
    }

    /// Ends a key that was left to the states.
    fn end_key<V: Visitor>(&mut self, bytes: &[u8], at: usize, visitor: &mut V) -> usize {
        if self.is_shown() {
            let mut token = std::mem::take(&mut self.token);
            self.show_key(token.end(bytes, at), self.key_start, visitor);
            self.token = token;
        }
        self.state = State::Colon;
        at + 1
    }

    fn show_key<V: Visitor>(&mut self, raw: &[u8], start: u64, visitor: &mut V) {
        self.interest = visitor.key(Key {
            name: unescape_key(raw, &mut self.unescaped),
            depth: self.brackets.depth,
            start,
        });
    }

    fn string<V: Visitor>(
        &mut self,
        piece: &mut Piece<'_>,
        mut at: usize,
        visitor: &mut V,
    ) -> Option<usize> {
        let bytes = piece.bytes;
        loop {
            at = piece.find_stop(at);
            match bytes.get(at) {
                Some(b'"') if self.in_key => return Some(self.end_key(bytes, at, visitor)),
                Some(b'"') => {
                    self.end_scalar(Kind::String, bytes, at, at + 1, visitor);
                    return Some(at + 1);
                }
                // The rest of `\uXXXX`, where it lies whole in this piece, takes no detour by the states.
                Some(b'u') if is_code_unit(&bytes[at + 1..]) => at += 1 + CODE_UNIT,
                _ => return Some(self.stop_string(piece, at)),
            }
        }
    }

    fn escape(&mut self, bytes: &[u8], at: usize) -> Option<usize> {
        self.state = match bytes[at] {
            byte if is_escape_letter(byte) => State::String,
            b'u' => State::Hex,
            _ if self.is_lenient => State::String,
            _ => return self.invalid(at),
        };
        self.seen = 0;
        Some(at + 1)
    }

    fn hex(&mut self, bytes: &[u8], at: usize) -> Option<usize> {
        if !bytes[at].is_ascii_hexdigit() {
            if self.is_lenient {
                self.state = State::String;
                return Some(at);
            }
            return self.invalid(at);
        }
        self.seen += 1;
        if self.seen == CODE_UNIT {
            self.state = State::String;
        }
        Some(at + 1)
    }

    fn number<V: Visitor>(
        &mut self,
        bytes: &[u8],
        mut at: usize,
        visitor: &mut V,
    ) -> Option<usize> {
        while let Some(&byte) = bytes.get(at) {
            match self.number.step(byte) {
                Some(next) => self.number = next,
                None if self.number.may_end() => {
                    self.end_scalar(Kind::Number, bytes, at, at, visitor);
                    break;
                }
                None if self.number == Number::Minus
                    && let Some(word) = self.odd_number(byte) =>
                {
                    (self.state, self.word, self.seen) = (State::Word, word, 0);
                    break;
                }
                None => return self.invalid(at),
            }
            at += 1;
        }
        Some(at)
    }

    fn word<V: Visitor>(&mut self, bytes: &[u8], mut at: usize, visitor: &mut V) -> Option<usize> {
        let (spelling, kind) = self.word.spelling();
        while let Some(&byte) = bytes.get(at) {
            if byte != spelling[self.seen] {
                return self.invalid(at);
            }
            at += 1;
            self.seen += 1;
            if self.seen == spelling.len() {
                self.end_scalar(kind, bytes, at, at, visitor);
                break;
            }
        }
        Some(at)
    }

    /// Whether the innermost open bracket is an object whose members are shown.
    fn is_shown(&self) -> bool {
        self.shown == self.brackets.depth && self.shown != 0
    }

    fn invalid<T>(&mut self, at: usize) -> Option<T> {
        self.refuse(Fault::InvalidJson {
            at: self.offset + at as u64,
        })
    }

    #[cold]
    fn refuse<T>(&mut self, fault: Fault) -> Option<T> {
        self.fault = Some(fault);
        None
    }
}

impl State {
    /// Whether the next byte belongs to the token of the one before, or to what is passed over.
    fn is_in_token(self) -> bool {
        use State::*;
        matches!(self, String | Escape | Hex | Number | Word | Deep)
    }
}

impl<'a> Value<'a> {
    /// The text of a captured string, as far as it was kept; `None` for any other kind.
    pub fn text(&self) -> Option<Cow<'a, str>> {
        (self.kind == Kind::String).then(|| unescape(valid_prefix(self.raw)))
    }
}

/// The key that `raw` spells, or `None` if it is longer than `KEY_BYTES`. Uses `scratch` only where there are escapes.
fn unescape_key<'a>(raw: &'a [u8], scratch: &'a mut String) -> Option<&'a [u8]> {
    if raw.len() > KEY_BYTES * LONGEST_ESCAPE {
        return None;
    }
    if memchr::memchr(b'\\', raw).is_none() {
        return (raw.len() <= KEY_BYTES).then_some(raw);
    }
    scratch.clear();
    unescape_into(valid_prefix(raw), scratch);
    (scratch.len() <= KEY_BYTES).then_some(scratch.as_bytes())
}

/// Whether `bytes` begin with the four hexadecimal digits of a `\u`.
#[inline]
fn is_code_unit(bytes: &[u8]) -> bool {
    let digits = bytes.first_chunk::<CODE_UNIT>();
    digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
}

/// The kind of the number or literal that begins at `at`, and the index of the byte after it; `None` if there is none, or not
/// all of it, or if it may go on behind these bytes.
fn find_scalar_end(bytes: &[u8], at: usize) -> Option<(Kind, usize)> {
    let rest = &bytes[at..];
    let (&first, digits) = rest.split_first()?;
    if let Some(word) = Word::begin(first) {
        let (spelling, kind) = word.spelling();
        return rest
            .starts_with(spelling)
            .then_some((kind, at + spelling.len()));
    }
    let mut number = Number::begin(first)?;
    for (index, &byte) in digits.iter().enumerate() {
        match number.step(byte) {
            Some(next) => number = next,
            None => return number.may_end().then_some((Kind::Number, at + 1 + index)),
        }
    }
    None
}

/// The index of the first byte at or after `at` that is no white space, or the length of `bytes`.
#[inline]
fn skip_white(bytes: &[u8], at: usize) -> usize {
    match bytes[at..] {
        [b'!'..=u8::MAX, ..] => at,
        [b' ', b'!'..=u8::MAX, ..] => at + 1,
        _ => skip_indent(bytes, at),
    }
}

fn skip_indent(bytes: &[u8], mut at: usize) -> usize {
    loop {
        match bytes.get(at) {
            Some(b' ') => at += leading_spaces(&bytes[at..]),
            Some(b'\n' | b'\r' | b'\t') => at += 1,
            _ => return at,
        }
    }
}

/// How many spaces `bytes`, which begin with one, begin with; eight if they are more.
#[inline]
fn leading_spaces(bytes: &[u8]) -> usize {
    const SPACES: u64 = u64::MAX / 0xff * 0x20;
    bytes.first_chunk().map_or(1, |word| {
        (u64::from_le_bytes(*word) ^ SPACES).trailing_zeros() as usize / 8
    })
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::InvalidJson { at } => write!(f, "invalid JSON at byte {at}"),
            Fault::InvalidUtf8 { at } => write!(f, "invalid UTF-8 at byte {at}"),
            Fault::TooDeep => write!(f, "nested too deeply"),
        }
    }
}

impl std::error::Error for Fault {}
