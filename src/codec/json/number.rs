//! Numbers and literals, byte by byte.

use super::Kind;

/// How far a number has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    Exponent,
    Sign,
    Power,
}

/// A literal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    True,
    False,
    Null,
    /// `NaN`
    NotANumber,
    Infinity,
}

impl Number {
    pub(super) fn begin(byte: u8) -> Option<Number> {
        match byte {
            b'-' => Some(Number::Minus),
            b'0' => Some(Number::Zero),
            b'1'..=b'9' => Some(Number::Integer),
            _ => None,
        }
    }

    pub(super) fn step(self, byte: u8) -> Option<Number> {
        use Number::*;
        match (self, byte) {
            (Minus, b'0') => Some(Zero),
            (Minus, b'1'..=b'9') | (Integer, b'0'..=b'9') => Some(Integer),
            (Zero | Integer, b'.') => Some(Point),
            (Point | Fraction, b'0'..=b'9') => Some(Fraction),
            (Zero | Integer | Fraction, b'e' | b'E') => Some(Exponent),
            (Exponent, b'+' | b'-') => Some(Sign),
            (Exponent | Sign | Power, b'0'..=b'9') => Some(Power),
            _ => None,
        }
    }

    pub(super) fn may_end(self) -> bool {
        matches!(
            self,
            Number::Zero | Number::Integer | Number::Fraction | Number::Power
        )
    }
}

impl Word {
    pub(super) fn begin(byte: u8) -> Option<Word> {
        match byte {
            b't' => Some(Word::True),
            b'f' => Some(Word::False),
            b'n' => Some(Word::Null),
            _ => None,
        }
    }

    pub(super) fn spelling(self) -> (&'static [u8], Kind) {
        match self {
            Word::True => (b"true", Kind::Bool),
            Word::False => (b"false", Kind::Bool),
            Word::Null => (b"null", Kind::Null),
            Word::NotANumber => (b"NaN", Kind::Number),
            Word::Infinity => (b"Infinity", Kind::Number),
        }
    }
}
