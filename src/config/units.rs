//! Lengths of time, numbers of bytes and amounts of money, as they are written in settings.

use std::fmt;
use std::time::Duration;

use rust_decimal::Decimal;
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

/// Digits of a number that YAML's floating-point numbers keep as they were written (IEEE 754 binary64: 15 decimal digits).
const EXACT_DIGITS: usize = 15;
/// Longer than any timeout makes sense, and far from what clocks cannot add.
const MAX_DURATION: Duration = Duration::from_secs(7 * 24 * 3600);

/// So many things: `1 key`, `2 keys`.
pub(crate) fn counted(number: impl Into<i128>, thing: &str) -> String {
    let number = number.into();
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// A length of time: an integer and `ms`, `s`, `m` or `h`; at most a week.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimeSpan(pub(crate) Duration);

/// A number of bytes, at least one: an integer, alone or with `KiB`, `MiB`, `GiB` (powers of 1024), `KB`, `MB`, `GB` (powers
/// of 1000).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteSize(pub(crate) u64);

/// An amount of money, exact: digits, and perhaps a point and digits, as a number or in quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Amount(pub(crate) Decimal);

/// A share of a whole, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio(pub(crate) f64);

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RatioVisitor)
    }
}

struct RatioVisitor;

impl Visitor<'_> for RatioVisitor {
    type Value = Ratio;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number from 0 to 1, like `0.1`")
    }

    fn visit_f64<E: Error>(self, ratio: f64) -> Result<Ratio, E> {
        match ratio {
            0.0..=1.0 => Ok(Ratio(ratio)),
            _ => Err(E::invalid_value(Unexpected::Float(ratio), &self)),
        }
    }

    fn visit_u64<E: Error>(self, ratio: u64) -> Result<Ratio, E> {
        self.visit_f64(ratio as f64)
    }

    fn visit_i64<E: Error>(self, ratio: i64) -> Result<Ratio, E> {
        self.visit_f64(ratio as f64)
    }
}

impl<'de> Deserialize<'de> for TimeSpan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TimeSpanVisitor)
    }
}

struct TimeSpanVisitor;

impl Visitor<'_> for TimeSpanVisitor {
    type Value = TimeSpan;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration like `100ms`, `5s`, `10m` or `1h`")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<TimeSpan, E> {
        match parse_duration(text) {
            Some(value) if value <= MAX_DURATION => Ok(TimeSpan(value)),
            Some(_) => Err(E::custom("a duration is at most `168h`")),
            None => Err(E::invalid_value(Unexpected::Other("text"), &self)),
        }
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ByteSizeVisitor)
    }
}

struct ByteSizeVisitor;

impl Visitor<'_> for ByteSizeVisitor {
    type Value = ByteSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size like `64MiB`, `1GiB` or a number of bytes, at least 1")
    }

    fn visit_u64<E: Error>(self, bytes: u64) -> Result<ByteSize, E> {
        if bytes == 0 {
            return Err(E::invalid_value(Unexpected::Unsigned(bytes), &self));
        }
        Ok(ByteSize(bytes))
    }

    fn visit_i64<E: Error>(self, bytes: i64) -> Result<ByteSize, E> {
        Err(E::invalid_value(Unexpected::Signed(bytes), &self))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<ByteSize, E> {
        let parsed = parse_size(text).map(ByteSize);
        parsed.ok_or_else(|| E::invalid_value(Unexpected::Other("text"), &self))
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AmountVisitor)
    }
}

struct AmountVisitor;

impl Visitor<'_> for AmountVisitor {
    type Value = Amount;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an amount in USD like `12.5`")
    }

    fn visit_u64<E: Error>(self, amount: u64) -> Result<Amount, E> {
        Ok(Amount(Decimal::from(amount)))
    }

    fn visit_i64<E: Error>(self, amount: i64) -> Result<Amount, E> {
        Err(E::invalid_value(Unexpected::Signed(amount), &self))
    }

    fn visit_f64<E: Error>(self, amount: f64) -> Result<Amount, E> {
        // The shortest decimal number that gives this one, and so the one that was written, if that has few digits.
        let text = amount.to_string();
        let digits = text.bytes().filter(u8::is_ascii_digit).count();
        if digits > EXACT_DIGITS + 1 {
            return Err(E::custom(
                "an amount with so many digits has to stand in quotes",
            ));
        }
        self.visit_str(&text)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Amount, E> {
        parse_amount(text)
            .map(Amount)
            .ok_or_else(|| E::invalid_value(Unexpected::Other("text"), &self))
    }
}

/// Digits, and perhaps a point and digits: nothing that a reader could take for another number.
fn parse_amount(text: &str) -> Option<Decimal> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    (is_digits(whole) && is_digits(decimals))
        .then(|| Decimal::from_str_exact(text).ok())
        .flatten()
}

fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}

fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    number.checked_mul(factor).filter(|&bytes| bytes > 0)
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    Some((parse_digits(&text[..end])?, text[end..].trim_start()))
}

/// A zero in front is refused: to readers of YAML 1.1 it makes an octal number.
fn parse_digits(text: &str) -> Option<u64> {
    let is_octal = text.len() > 1 && text.starts_with('0');
    text.parse().ok().filter(|_| !is_octal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        let seconds = |text| parse_duration(text).map(|duration| duration.as_secs_f64());
        assert_eq!(seconds("100ms"), Some(0.1));
        assert_eq!(
            (seconds("5s"), seconds("10m"), seconds("1h")),
            (Some(5.0), Some(600.0), Some(3600.0))
        );
        for text in [
            "",
            "5",
            "s",
            "5 sec",
            "-5s",
            "1.5s",
            "5S",
            "99999999999999999999s",
            "9999999999999999999h",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_bytes_or_have_a_unit() {
        assert_eq!(
            (parse_size("64MiB"), parse_size("1GiB"), parse_size("2 KiB")),
            (Some(64 << 20), Some(1 << 30), Some(2048))
        );
        assert_eq!(
            (parse_size("1KB"), parse_size("1MB"), parse_size("1GB")),
            (Some(1000), Some(1_000_000), Some(1_000_000_000))
        );
        assert_eq!(parse_size("4096"), Some(4096));
        for text in [
            "",
            "0",
            "0MiB",
            "64mib",
            "1.5GiB",
            "-1",
            "64M",
            "18446744073709551615GiB",
        ] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn no_number_has_a_zero_in_front() {
        assert_eq!((parse_digits("0"), parse_digits("10")), (Some(0), Some(10)));
        assert_eq!((parse_digits("010"), parse_digits("00")), (None, None));
        assert_eq!((parse_size("010"), parse_duration("05s")), (None, None));
    }
}
