//! Settings as they stand in a file: each value with its place, and with what is wrong with it in its stead. So a mistake
//! does not end the reading, and all that a file has are told at once, when the file's `resolve` asks for the values.
//!
//! A mapping of fixed words is a struct of [`Field`]s with a derived `Deserialize` and `deny_unknown_fields`. serde stops at
//! its first error; here a `Field` catches errors of kind ("expected a list, found a number"), and a [`Section`] takes
//! unknown and duplicate keys out of the mapping before the derived code would stop at them.

mod fault;
mod mapping;
#[cfg(test)]
pub(crate) mod schema;

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, RangeInclusive};
use std::time::Duration;

use serde::de::value::{
    BorrowedStrDeserializer, MapAccessDeserializer, MapDeserializer, SeqAccessDeserializer,
    SeqDeserializer,
};
use serde::de::{self, DeserializeSeed, IgnoredAny, IntoDeserializer, MapAccess, SeqAccess};
use serde::{Deserialize, Deserializer};
use serde_yaml::Spanned;

use crate::config::diagnostic::{Diagnostics, Location};
use crate::config::units::TimeSpan;
use crate::config::yaml::location_of;
pub(crate) use fault::Fault;
pub(crate) use mapping::{Member, Members, Section};

/// A value as written, or what stands there instead. The default is a setting that is not there.
pub(crate) struct Field<T> {
    location: Location,
    content: Content<T>,
}

enum Content<T> {
    Absent,
    /// `null`, `~`, or nothing behind the colon; with what to say where a value has to stand.
    Null(Box<str>),
    Value(T),
    /// What is wrong with it.
    Wrong(Box<str>),
}

/// A string, borrowed from the file where it stands there without escapes: no copy of an API key is made.
#[derive(Default)]
pub(crate) struct Text<'a>(Cow<'a, str>);

/// One value, or a list of them.
pub(crate) enum OneOrMany<T> {
    One(T),
    Many(List<T>),
}

/// A list whose items all have their place.
pub(crate) struct List<T>(Vec<Field<T>>);

/// A string, or a mapping of fixed words.
pub(crate) enum TextOr<'a, T> {
    Text(Text<'a>),
    Section(Section<T>),
}

/// One of the words of an enum that strum knows.
pub(crate) struct Word<T>(pub(crate) T);

impl<T> Default for Field<T> {
    fn default() -> Self {
        Field {
            location: Location::START,
            content: Content::Absent,
        }
    }
}

impl<T> Field<T> {
    /// Where the value begins; the start of the file for one that is absent.
    pub(crate) fn location(&self) -> Location {
        self.location
    }

    fn is_absent(&self) -> bool {
        matches!(self.content, Content::Absent)
    }

    /// Whether it is there and is not `null`.
    pub(crate) fn is_given(&self) -> bool {
        !matches!(self.content, Content::Absent | Content::Null(_))
    }

    /// Whether it is there and says `null`.
    pub(crate) fn is_null(&self) -> bool {
        matches!(self.content, Content::Null(_))
    }

    /// The value of a setting that may be left out, and may not be `null`.
    pub(crate) fn value(&self, diagnostics: &Diagnostics) -> Option<&T> {
        if let Content::Null(why) = &self.content {
            diagnostics.add(self.location, &**why);
        }
        self.optional(diagnostics)
    }

    /// The value of a setting that may be left out, or be `null`, which says the same.
    pub(crate) fn optional(&self, diagnostics: &Diagnostics) -> Option<&T> {
        match &self.content {
            Content::Value(value) => Some(value),
            Content::Wrong(why) => {
                diagnostics.add(self.location, &**why);
                None
            }
            Content::Absent | Content::Null(_) => None,
        }
    }
}

impl<S: Deref<Target = str>> Field<S> {
    /// What a text that may be left out, or be `null`, is read as.
    pub(crate) fn parse<T, E: Into<String>>(
        &self,
        parse: impl FnOnce(&str) -> Result<T, E>,
        errors: &Diagnostics,
    ) -> Option<T> {
        errors.note(self.location, parse(self.optional(errors)?))
    }
}

impl<S: Deref<Target = str>> List<S> {
    /// What the items are read as; one that is wrong is left out.
    pub(crate) fn parse<T, E: Into<String>>(
        &self,
        mut parse: impl FnMut(&str) -> Result<T, E>,
        errors: &Diagnostics,
    ) -> Vec<T> {
        let items = self
            .iter()
            .filter_map(|item| errors.note(item.location, parse(item.value(errors)?)));
        items.collect()
    }
}

impl<T: Copy> Field<T> {
    /// The value, or a default where it is left out or wrong.
    pub(crate) fn or(&self, default: T, diagnostics: &Diagnostics) -> T {
        self.value(diagnostics).copied().unwrap_or(default)
    }
}

impl<T: Copy> Field<Word<T>> {
    /// What the word stands for, or a default where it is left out or wrong.
    pub(crate) fn word(&self, default: T, diagnostics: &Diagnostics) -> T {
        self.value(diagnostics).map_or(default, |word| word.0)
    }
}

impl Field<TimeSpan> {
    /// The length of time, or a default where it is left out or wrong.
    pub(crate) fn duration(&self, default: Duration, errors: &Diagnostics) -> Duration {
        self.value(errors).map_or(default, |span| span.0)
    }
}

impl Field<i64> {
    /// An integer within a range; `None` where it is left out or wrong.
    pub(crate) fn integer(
        &self,
        range: RangeInclusive<u64>,
        diagnostics: &Diagnostics,
    ) -> Option<u64> {
        self.value(diagnostics)?;
        self.integer_or_null(range, diagnostics)
    }

    /// The same of a setting that may be `null`, which says the same as to leave it out.
    pub(crate) fn integer_or_null(
        &self,
        range: RangeInclusive<u64>,
        diagnostics: &Diagnostics,
    ) -> Option<u64> {
        let given = *self.optional(diagnostics)?;
        let value = u64::try_from(given)
            .ok()
            .filter(|value| range.contains(value));
        if value.is_none() {
            let (start, end) = (range.start(), range.end());
            let expected = format!("expected an integer from {start} to {end}");
            diagnostics.add(self.location, expected);
        }
        value
    }

    /// [`Field::integer`] as a number of things that are counted in memory.
    pub(crate) fn count(
        &self,
        range: RangeInclusive<u64>,
        diagnostics: &Diagnostics,
    ) -> Option<usize> {
        usize::try_from(self.integer(range, diagnostics)?).ok()
    }
}

impl<T> OneOrMany<T> {
    /// The values, each with its place; `location` is that of the whole.
    pub(crate) fn items(&self, location: Location, errors: &Diagnostics) -> Vec<(Location, &T)> {
        match self {
            OneOrMany::One(one) => vec![(location, one)],
            OneOrMany::Many(items) => {
                let items = items.iter();
                let items = items.filter_map(|item| Some((item.location, item.value(errors)?)));
                items.collect()
            }
        }
    }

    /// How many values are written, those with mistakes among them.
    pub(crate) fn len(&self) -> usize {
        match self {
            OneOrMany::One(_) => 1,
            OneOrMany::Many(items) => items.len(),
        }
    }
}

impl<T> List<T> {
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Field<T>> {
        self.0.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Read<T>>::deserialize(deserializer)?;
        Ok(Field {
            location: location_of(spanned.referenced),
            content: spanned.value.0,
        })
    }
}

/// The content of a [`Field`] whose place is not known yet.
struct Read<T>(Content<T>);

impl<T> Read<T> {
    fn of(result: Result<T, Fault>) -> Self {
        Read(match result {
            Ok(value) => Content::Value(value),
            Err(fault) => Content::Wrong(fault.into_message()),
        })
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Read<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ReadVisitor(PhantomData))
    }
}

/// Takes a value of any kind, and leaves it to `T` which of them will do.
struct ReadVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> de::Visitor<'de> for ReadVisitor<T> {
    type Value = Read<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Read<T>, E> {
        Ok(Read::of(T::deserialize(value.into_deserializer())))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Read<T>, E> {
        Ok(Read::of(T::deserialize(value.into_deserializer())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Read<T>, E> {
        Ok(Read::of(T::deserialize(value.into_deserializer())))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Read<T>, E> {
        Ok(Read::of(T::deserialize(value.into_deserializer())))
    }

    fn visit_str<E>(self, value: &str) -> Result<Read<T>, E> {
        Ok(Read::of(T::deserialize(value.into_deserializer())))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Read<T>, E> {
        Ok(Read::of(T::deserialize(BorrowedStrDeserializer::new(
            value,
        ))))
    }

    fn visit_string<E>(self, value: String) -> Result<Read<T>, E> {
        Ok(Read::of(T::deserialize(value.into_deserializer())))
    }

    fn visit_unit<E>(self) -> Result<Read<T>, E> {
        Ok(match T::deserialize(().into_deserializer()) {
            Ok(value) => Read(Content::Value(value)),
            Err(fault) => Read(Content::Null(Fault::into_message(fault))),
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Read<T>, A::Error> {
        let mut items = Started::new(items);
        match T::deserialize(SeqAccessDeserializer::new(&mut items)) {
            Ok(value) => Ok(Read::of(Ok(value))),
            Err(_) if !items.has_begun => {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                let nothing = std::iter::empty::<bool>();
                Ok(Read::of(T::deserialize(SeqDeserializer::new(nothing))))
            }
            Err(error) => Err(error),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Read<T>, A::Error> {
        let mut members = Started::new(members);
        match T::deserialize(MapAccessDeserializer::new(&mut members)) {
            Ok(value) => Ok(Read::of(Ok(value))),
            Err(_) if !members.has_begun => {
                while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                let nothing = std::iter::empty::<(bool, bool)>();
                Ok(Read::of(T::deserialize(MapDeserializer::new(nothing))))
            }
            Err(error) => Err(error),
        }
    }
}

/// A list or a mapping of which it is known whether anybody has taken from it: an error before that is one of kind.
struct Started<A> {
    inner: A,
    has_begun: bool,
}

impl<A> Started<A> {
    fn new(inner: A) -> Self {
        Started {
            inner,
            has_begun: false,
        }
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Started<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.has_begun = true;
        self.inner.next_element_seed(seed)
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Started<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.has_begun = true;
        self.inner.next_key_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.next_value_seed(seed)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor(PhantomData))
    }
}

struct TextVisitor<'a>(PhantomData<&'a ()>);

impl<'de: 'a, 'a> de::Visitor<'de> for TextVisitor<'a> {
    type Value = Text<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E>(self, value: &str) -> Result<Text<'a>, E> {
        Ok(Text(Cow::Owned(value.to_owned())))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Text<'a>, E> {
        Ok(Text(Cow::Borrowed(value)))
    }

    fn visit_string<E>(self, value: String) -> Result<Text<'a>, E> {
        Ok(Text(Cow::Owned(value)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListVisitor(PhantomData))
    }
}

struct ListVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> de::Visitor<'de> for ListVisitor<T> {
    type Value = List<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<List<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(List(list))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrManyVisitor(PhantomData))
    }
}

struct OneOrManyVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> de::Visitor<'de> for OneOrManyVisitor<T> {
    type Value = OneOrMany<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Self::Value, A::Error> {
        ListVisitor(PhantomData)
            .visit_seq(items)
            .map(OneOrMany::Many)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
        T::deserialize(value.into_deserializer()).map(OneOrMany::One)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
        T::deserialize(value.into_deserializer()).map(OneOrMany::One)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
        T::deserialize(value.into_deserializer()).map(OneOrMany::One)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Self::Value, E> {
        T::deserialize(value.into_deserializer()).map(OneOrMany::One)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Self::Value, E> {
        T::deserialize(value.into_deserializer()).map(OneOrMany::One)
    }

    fn visit_borrowed_str<E: de::Error>(self, value: &'de str) -> Result<Self::Value, E> {
        T::deserialize(BorrowedStrDeserializer::new(value)).map(OneOrMany::One)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        T::deserialize(().into_deserializer()).map(OneOrMany::One)
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(members)).map(OneOrMany::One)
    }
}

impl<'de: 'a, 'a, T: Deserialize<'de>> Deserialize<'de> for TextOr<'a, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrVisitor(PhantomData))
    }
}

struct TextOrVisitor<'a, T>(PhantomData<(&'a (), T)>);

impl<'de: 'a, 'a, T: Deserialize<'de>> de::Visitor<'de> for TextOrVisitor<'a, T> {
    type Value = TextOr<'a, T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Self::Value, E> {
        TextVisitor(PhantomData).visit_str(value).map(TextOr::Text)
    }

    fn visit_borrowed_str<E: de::Error>(self, value: &'de str) -> Result<Self::Value, E> {
        let text = TextVisitor(PhantomData).visit_borrowed_str(value);
        text.map(TextOr::Text)
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Self::Value, E> {
        TextVisitor(PhantomData)
            .visit_string(value)
            .map(TextOr::Text)
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Self::Value, A::Error> {
        Section::deserialize(MapAccessDeserializer::new(members)).map(TextOr::Section)
    }
}

impl<'de, T: std::str::FromStr + strum::VariantNames> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text::deserialize(deserializer)?;
        let word = text.parse().map(Word);
        word.map_err(|_| de::Error::unknown_variant(&text, T::VARIANTS))
    }
}
