//! Typed values read from a YAML tree. A mistake is noted and the reading goes on, so that all mistakes of a file are told
//! at once. It knows the kinds of values that our files have, and no setting by name.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::diagnostic::{Mistakes, Place, any_of, nearest, shown};
use crate::config::yaml::{Entry, Node, Value, spells_nothing};

/// Longer than any timeout makes sense, and far from what clocks cannot add.
const MAX_DURATION: Duration = Duration::from_secs(7 * 24 * 3600);

/// A mapping whose keys are fixed words. Each word is taken once; [`Fields::finish`] reports the keys nobody took.
pub struct Fields<'n, 'a> {
    /// Where something that is missing is reported; none if nothing could be there, as this is no mapping.
    place: Option<Place>,
    entries: &'n [Entry<'a>],
    known: Vec<&'static str>,
    mistakes: &'n Mistakes,
}

/// What a value is, in the words of the mistakes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Null,
    Boolean,
    Number,
    String,
    List,
    Mapping,
}

impl<'a> Node<'a> {
    /// This mapping as one of fixed words; what is missing in it is reported at `place`.
    pub fn fields<'n>(&'n self, place: Place, mistakes: &'n Mistakes) -> Fields<'n, 'a> {
        Fields {
            place: self.is_mapping().then_some(place),
            entries: self.entries(mistakes),
            known: Vec::new(),
            mistakes,
        }
    }

    /// `null`, `~`, or nothing at all.
    pub fn is_null(&self) -> bool {
        self.kind() == Kind::Null
    }

    pub fn string(&self, mistakes: &Mistakes) -> Option<&str> {
        match (&self.value, self.kind()) {
            (Value::Scalar { text, .. }, Kind::String) => Some(text),
            (_, Kind::Boolean | Kind::Number) => {
                mistakes.add(
                    self.place,
                    format!(
                        "expected a string, found {}; put it in quotes",
                        self.kind().name()
                    ),
                );
                None
            }
            _ => self.unexpected("a string", mistakes),
        }
    }

    pub fn boolean(&self, mistakes: &Mistakes) -> Option<bool> {
        match (&self.value, self.kind()) {
            (Value::Scalar { text, .. }, Kind::Boolean) => Some(text == "true"),
            _ => self.unexpected("true or false", mistakes),
        }
    }

    pub fn integer(&self, range: RangeInclusive<u64>, mistakes: &Mistakes) -> Option<u64> {
        let (Value::Scalar { text, .. }, Kind::Number) = (&self.value, self.kind()) else {
            return self.unexpected("an integer", mistakes);
        };
        let value = parse_digits(text).filter(|value| range.contains(value));
        if value.is_none() {
            mistakes.add(
                self.place,
                format!(
                    "expected an integer from {} to {}",
                    range.start(),
                    range.end()
                ),
            );
        }
        value
    }

    /// A length of time: an integer and `ms`, `s`, `m` or `h`; at most a week.
    pub fn duration(&self, mistakes: &Mistakes) -> Option<Duration> {
        let value = self
            .spelling(&[Kind::String, Kind::Number])
            .and_then(parse_duration);
        match value {
            Some(value) if value <= MAX_DURATION => return Some(value),
            Some(_) => mistakes.add(self.place, "a duration is at most `168h`"),
            None => mistakes.add(
                self.place,
                "expected a duration like `100ms`, `5s`, `10m` or `1h`",
            ),
        }
        None
    }

    /// A number of bytes, at least one: an integer, alone or with `KiB`, `MiB`, `GiB` (powers of 1024), `KB`, `MB`, `GB`
    /// (powers of 1000).
    pub fn size(&self, mistakes: &Mistakes) -> Option<u64> {
        let value = self
            .spelling(&[Kind::String, Kind::Number])
            .and_then(parse_size);
        if value.is_none() {
            mistakes.add(
                self.place,
                "expected a size like `64MiB`, `1GiB` or a number of bytes, at least 1",
            );
        }
        value
    }

    /// One of a few words, and what it stands for.
    pub fn choice<T: Copy>(&self, words: &[(&'static str, T)], mistakes: &Mistakes) -> Option<T> {
        let text = self.string(mistakes)?;
        let found = words
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value);
        if found.is_none() {
            let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let message = match nearest(text, all.iter().copied()) {
                Some(near) => format!("unknown value `{text}`; did you mean `{near}`?"),
                None => format!("unknown value{}; expected {}", shown(text), any_of(&all)),
            };
            mistakes.add(self.place, message);
        }
        found
    }

    fn spelling(&self, kinds: &[Kind]) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } if kinds.contains(&self.kind()) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn unexpected<T>(&self, expected: &str, mistakes: &Mistakes) -> Option<T> {
        mistakes.add(
            self.place,
            format!("expected {expected}, found {}", self.kind().name()),
        );
        None
    }

    fn kind(&self) -> Kind {
        match &self.value {
            Value::List(_) => Kind::List,
            Value::Mapping(_) => Kind::Mapping,
            Value::Scalar { plain: false, .. } => Kind::String,
            Value::Scalar { text, .. } => Kind::of_plain(text),
        }
    }
}

impl<'n, 'a> Fields<'n, 'a> {
    /// The value of a key that may be left out.
    pub fn take(&mut self, name: &'static str) -> Option<&'n Node<'a>> {
        self.take_entry(name).map(|entry| &entry.value)
    }

    pub fn take_entry(&mut self, name: &'static str) -> Option<&'n Entry<'a>> {
        self.known.push(name);
        self.entries.iter().find(|entry| entry.key == name)
    }

    /// The value of a key that may be left out, or be `null`, which says the same.
    pub fn optional(&mut self, name: &'static str) -> Option<&'n Node<'a>> {
        self.optional_entry(name).map(|entry| &entry.value)
    }

    pub fn optional_entry(&mut self, name: &'static str) -> Option<&'n Entry<'a>> {
        self.take_entry(name).filter(|entry| !entry.value.is_null())
    }

    /// The value of a key that must be there.
    pub fn required(&mut self, name: &'static str) -> Option<&'n Node<'a>> {
        let node = self.take(name);
        if let (None, Some(place)) = (node, self.place)
            && !self.misspelled(name)
        {
            self.mistakes.add(place, format!("`{name}` is missing"));
        }
        node
    }

    pub fn boolean(&mut self, name: &'static str, default: bool) -> bool {
        self.take(name)
            .and_then(|node| node.boolean(self.mistakes))
            .unwrap_or(default)
    }

    pub fn integer(&mut self, name: &'static str, range: RangeInclusive<u64>, default: u64) -> u64 {
        self.take(name)
            .and_then(|node| node.integer(range, self.mistakes))
            .unwrap_or(default)
    }

    pub fn size(&mut self, name: &'static str, default: u64) -> u64 {
        self.take(name)
            .and_then(|node| node.size(self.mistakes))
            .unwrap_or(default)
    }

    /// A duration that may be zero.
    pub fn duration(&mut self, name: &'static str, default: Duration) -> Duration {
        self.take(name)
            .and_then(|node| node.duration(self.mistakes))
            .unwrap_or(default)
    }

    /// A duration in which something has to happen, so more than zero.
    pub fn timeout(&mut self, name: &'static str, default: Duration) -> Duration {
        let Some(node) = self.take(name) else {
            return default;
        };
        let value = node.duration(self.mistakes).unwrap_or(default);
        if value.is_zero() {
            self.mistakes
                .add(node.place, format!("`{name}` must be more than zero"));
        }
        value
    }

    pub fn choice<T: Copy>(
        &mut self,
        name: &'static str,
        words: &[(&'static str, T)],
        default: T,
    ) -> T {
        self.take(name)
            .and_then(|node| node.choice(words, self.mistakes))
            .unwrap_or(default)
    }

    /// To be called when every key that means something has been taken. An unknown key that is near to none of them is
    /// not quoted: after a slip of indentation it may be an API key.
    pub fn finish(self) {
        for entry in self.entries {
            let key = entry.key.as_ref();
            if self.known.contains(&key) {
                continue;
            }
            let free = self.known.iter().copied().filter(|name| !self.has(name));
            let message = match nearest(key, free) {
                Some(near) => format!("unknown key `{key}`; did you mean `{near}`?"),
                None => format!("unknown key; expected {}", any_of(&self.known)),
            };
            self.mistakes.add(entry.place, message);
        }
    }

    /// Whether a key stands here that will be reported as a misspelling of this one.
    fn misspelled(&self, name: &'static str) -> bool {
        self.entries
            .iter()
            .any(|entry| nearest(&entry.key, [name].into_iter()).is_some())
    }

    fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == name)
    }
}

impl Kind {
    /// By the core schema of YAML 1.2, but that only `true` and `false` are truth values: a `True` that is taken for a
    /// string is reported where a truth value is expected.
    fn of_plain(text: &str) -> Kind {
        match text {
            "true" | "false" => Kind::Boolean,
            _ if spells_nothing(text) => Kind::Null,
            _ if looks_numeric(text) => Kind::Number,
            _ => Kind::String,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Null => "nothing",
            Kind::Boolean => "true or false",
            Kind::Number => "a number",
            Kind::String => "a string",
            Kind::List => "a list",
            Kind::Mapping => "a mapping",
        }
    }
}

fn looks_numeric(text: &str) -> bool {
    let digits = text.trim_start_matches(['+', '-']);
    digits.starts_with(|first: char| first.is_ascii_digit() || first == '.')
        && digits.parse::<f64>().is_ok()
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

    #[test]
    fn plain_scalars_have_the_types_of_the_core_schema() {
        for text in ["0", "-1", "+2", "1.5", "1e5", ".5", "0123"] {
            assert!(looks_numeric(text), "{text}");
        }
        for text in [
            "",
            "-",
            ".",
            "5s",
            "127.0.0.1:80",
            "0x1f",
            "inf",
            "1_000",
            "e5",
        ] {
            assert!(!looks_numeric(text), "{text}");
        }
    }
}
