//! UTF-16 and UTF-32 to UTF-8, piece by piece. JSON that is exchanged is UTF-8 (RFC 8259 §8.1), but some readers still tell the
//! others by their zeros, as RFC 4627 §3 had it: Python's `json.loads` of bytes does, which FastAPI reads requests with.

use crate::codec::BYTE_ORDER_MARK;

/// How many bytes tell the encoding.
const OPENING_BYTES: usize = 4;

/// The longest code unit, in bytes.
const UNIT_BYTES: usize = 4;

/// A text on its way through.
#[derive(Debug)]
pub(crate) enum TextDecoder {
    /// Its first bytes do not tell the encoding yet.
    Opening(Unit),
    /// It goes on as it comes.
    Utf8,
    /// It has units of several bytes.
    Units(Encoding, Unit, Option<u16>),
}

/// Bytes at the beginning of something.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Unit {
    bytes: [u8; UNIT_BYTES],
    length: usize,
}

/// How long a unit is, in bytes, and whether its highest byte comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Encoding {
    width: usize,
    is_big_endian: bool,
}

impl Default for TextDecoder {
    fn default() -> Self {
        TextDecoder::Opening(Unit::default())
    }
}

impl TextDecoder {
    /// Gives a piece to `take`, in UTF-8. What is no character becomes U+FFFD.
    pub fn feed(&mut self, mut piece: &[u8], take: &mut dyn FnMut(&[u8])) {
        if let TextDecoder::Opening(opening) = self {
            while encoding_of(opening.get()).is_none()
                && let Some((byte, rest)) = piece.split_first()
            {
                opening.push(*byte);
                piece = rest;
            }
            let Some(encoding) = encoding_of(opening.get()) else {
                return;
            };
            let opening = *opening;
            *self = match encoding {
                Some(encoding) => TextDecoder::Units(encoding, Unit::default(), None),
                None => TextDecoder::Utf8,
            };
            self.decode(opening.get(), take);
        }
        self.decode(piece, take);
    }

    /// The first byte, while it is not given on.
    pub fn held(&self) -> Option<u8> {
        match self {
            TextDecoder::Opening(opening) => opening.get().first().copied(),
            TextDecoder::Utf8 | TextDecoder::Units(..) => None,
        }
    }

    fn decode(&mut self, piece: &[u8], take: &mut dyn FnMut(&[u8])) {
        let TextDecoder::Units(encoding, unit, high) = self else {
            return take(piece);
        };
        let mut text = String::with_capacity(piece.len());
        for byte in piece {
            unit.push(*byte);
            if unit.length < encoding.width {
                continue;
            }
            let code = encoding.code(std::mem::take(unit));
            match (high.take(), code) {
                (Some(first), 0xdc00..0xe000) => {
                    let pair = char::decode_utf16([first, code as u16]);
                    text.extend(pair.flatten());
                    continue;
                }
                (Some(_), _) => text.push(char::REPLACEMENT_CHARACTER),
                (None, _) => {}
            }
            match u16::try_from(code) {
                Ok(first @ 0xd800..0xdc00) if encoding.width == 2 => *high = Some(first),
                _ => text.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)),
            }
        }
        take(text.as_bytes());
    }
}

impl Unit {
    fn push(&mut self, byte: u8) {
        self.bytes[self.length] = byte;
        self.length += 1;
    }

    fn get(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Encoding {
    const fn new(width: usize, is_big_endian: bool) -> Self {
        Self {
            width,
            is_big_endian,
        }
    }

    fn code(self, unit: Unit) -> u32 {
        let bytes = unit.get().iter();
        let join = |code: u32, byte: &u8| code << 8 | u32::from(*byte);
        match self.is_big_endian {
            true => bytes.fold(0, join),
            false => bytes.rev().fold(0, join),
        }
    }
}

/// The encoding of a text that begins so, none where it is UTF-8; none at all while it is too early to say. A byte order mark
/// tells it, or a zero beside the first character, which is ASCII in JSON.
fn encoding_of(opening: &[u8]) -> Option<Option<Encoding>> {
    const UTF_16_BE: Option<Encoding> = Some(Encoding::new(2, true));
    const UTF_16_LE: Option<Encoding> = Some(Encoding::new(2, false));
    const UTF_32_BE: Option<Encoding> = Some(Encoding::new(4, true));
    const UTF_32_LE: Option<Encoding> = Some(Encoding::new(4, false));
    match *opening {
        [] | [_] => None,
        [0, 0, ..] => Some(UTF_32_BE),
        [0, _, ..] | [0xfe, 0xff, ..] => Some(UTF_16_BE),
        [0xff, 0xfe, ..] | [_, 0, ..] if opening.len() < OPENING_BYTES => None,
        [0xff, 0xfe, 0, 0] | [_, 0, 0, 0] => Some(UTF_32_LE),
        [0xff, 0xfe, ..] | [_, 0, ..] => Some(UTF_16_LE),
        _ => Some(None),
    }
}

/// Passes over a byte order mark at the beginning of a text in UTF-8.
#[derive(Debug, Default)]
pub(crate) struct ByteOrderMark {
    /// How many bytes of it were seen.
    seen: usize,
    /// Whether what comes is no part of it.
    passed: bool,
}

impl ByteOrderMark {
    /// What of a chunk is to be scanned, after bytes that came before and turned out not to be a mark.
    pub fn pass<'a>(&mut self, mut chunk: &'a [u8]) -> (&'static [u8], &'a [u8]) {
        while !self.passed
            && let Some((byte, rest)) = chunk.split_first()
        {
            if *byte != BYTE_ORDER_MARK[self.seen] {
                return (self.rest(), chunk);
            }
            chunk = rest;
            self.seen += 1;
            self.passed = self.seen == BYTE_ORDER_MARK.len();
        }
        (&[], chunk)
    }

    /// Bytes that looked like the beginning of a mark, which will not go on.
    pub fn rest(&mut self) -> &'static [u8] {
        let is_open = !std::mem::replace(&mut self.passed, true);
        let seen = if is_open {
            std::mem::take(&mut self.seen)
        } else {
            0
        };
        &BYTE_ORDER_MARK[..seen]
    }

    /// Bytes of the text before the first that was scanned.
    pub fn skipped(&self) -> usize {
        if self.passed { self.seen } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "{\"a\":\"é\u{20ac}\u{1f600}\"}";

    fn units(text: &str, width: usize, is_big_endian: bool) -> Vec<u8> {
        let codes: Vec<u32> = match width {
            2 => text.encode_utf16().map(u32::from).collect(),
            _ => text.chars().map(u32::from).collect(),
        };
        let bytes = |code: u32| match is_big_endian {
            true => code.to_be_bytes()[4 - width..].to_vec(),
            false => code.to_le_bytes()[..width].to_vec(),
        };
        codes.into_iter().flat_map(bytes).collect()
    }

    fn decoded(bytes: &[u8], step: usize) -> String {
        let (mut decoder, mut text) = (TextDecoder::default(), Vec::new());
        for piece in bytes.chunks(step) {
            decoder.feed(piece, &mut |piece| text.extend_from_slice(piece));
        }
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn every_encoding_of_json_is_told_by_its_first_bytes() {
        let marked = format!("\u{feff}{TEXT}");
        for text in [TEXT, &marked, "{}", " {}"] {
            for step in [1, 2, 3, 5, 1000] {
                assert_eq!(decoded(text.as_bytes(), step), text);
                for (width, order) in [(2, true), (2, false), (4, true), (4, false)] {
                    let bytes = units(text, width, order);
                    assert_eq!(decoded(&bytes, step), text, "{width} {order} by {step}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_character_is_replaced() {
        for (code, text) in [
            (&[0xd83d_u16, 0x78][..], "{\u{fffd}x"),
            (&[0xde00, 0x78], "{\u{fffd}x"),
            (&[0xd83d, 0xd83d, 0xde00], "{\u{fffd}\u{1f600}"),
        ] {
            let units = [&[0x7b], code].concat();
            let bytes: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
            assert_eq!(decoded(&bytes, 3), text);
        }
        let beyond = [b'{', 0, 0, 0, 0, 0, 0x11, 0, 0, 0xd8, 0, 0];
        assert_eq!(decoded(&beyond, 1), "{\u{fffd}\u{fffd}");
    }
}
