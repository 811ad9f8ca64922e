//! Mappings: those of fixed words, which are structs, and those of names that people choose.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};
use serde_yaml::Spanned;

use super::{Field, Text};
use crate::config::diagnostic::{Diagnostics, Location, any_of, nearest};
use crate::config::yaml::location_of;

/// Mappings up to this size are searched member by member.
const SMALL_MAPPING: usize = 8;
/// More words than any struct of ours has.
const MAX_WORDS: usize = 32;
const NO_STRING: &str = "a key must be a string";
/// Unknown keys of one mapping that are told; a list of keys on the wrong level may be a million long.
const MAX_NOTES: usize = 1000;

/// A mapping whose keys are names that people choose, in the order of the file.
pub(crate) struct Members<'a, T> {
    members: Vec<Member<'a, T>>,
    /// Where there are keys that are no strings.
    no_names: Vec<Location>,
}

/// The key of a mapping; `None` for one that is no string.
struct Key<'a>(Option<Text<'a>>);

pub(crate) struct Member<'a, T> {
    /// As spelled, whatever type a plain scalar of this spelling has.
    pub(crate) key: Text<'a>,
    /// Where the key stands.
    pub(crate) location: Location,
    pub(crate) value: Field<T>,
}

/// A mapping whose keys are fixed words: a struct with a derived `Deserialize`.
pub(crate) struct Section<T> {
    value: T,
    notes: Box<[Note]>,
}

/// A section that is read: its members, and where those that are missing are told of.
pub(crate) struct Given<'s, T> {
    section: &'s Section<T>,
    location: Location,
    errors: &'s Diagnostics,
}

/// A key of a struct's mapping that is not read, and what to say of it.
struct Note {
    location: Location,
    message: String,
    /// The word that was probably meant.
    meant: Option<&'static str>,
}

impl<'a, T> Members<'a, T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.no_names.is_empty()
    }

    /// The members. Of several with one key there is the first, and the others are mistakes.
    pub(crate) fn unique<'m>(
        &'m self,
        diagnostics: &Diagnostics,
    ) -> impl Iterator<Item = &'m Member<'a, T>> {
        for location in &self.no_names {
            diagnostics.add(*location, NO_STRING);
        }
        let repeated = self.repeated();
        for (index, first) in &repeated {
            diagnostics.add(self.members[*index].location, duplicate(*first));
        }
        let mut repeated = repeated.into_iter().peekable();
        let numbered = self.members.iter().enumerate();
        numbered.filter_map(move |(index, member)| {
            let is_repeated = repeated.next_if(|(at, _)| *at == index).is_some();
            (!is_repeated).then_some(member)
        })
    }

    /// The members whose key was there before, by index, and where it was.
    fn repeated(&self) -> Vec<(usize, Location)> {
        let members = || self.members.iter().enumerate();
        if self.members.len() <= SMALL_MAPPING {
            let first = |(index, member): (usize, &Member<'a, T>)| {
                let before = self.members[..index].iter();
                let mut same = before.filter(|other| *other.key == *member.key);
                same.next().map(|first| (index, first.location))
            };
            return members().filter_map(first).collect();
        }
        let mut seen: HashMap<&str, Location> = HashMap::with_capacity(self.members.len());
        let firsts = members().filter_map(|(index, member)| {
            let first = *seen.entry(&member.key).or_insert(member.location);
            (first != member.location).then_some((index, first))
        });
        firsts.collect()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The key has been read as a whole before: what is wrong with it does not touch what follows.
        Ok(Key(Text::deserialize(deserializer).ok()))
    }
}

impl<'de: 'a, 'a, T: Deserialize<'de>> Deserialize<'de> for Members<'a, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor(PhantomData))
    }
}

struct MembersVisitor<'a, T>(PhantomData<(&'a (), T)>);

impl<'de: 'a, 'a, T: Deserialize<'de>> Visitor<'de> for MembersVisitor<'a, T> {
    type Value = Members<'a, T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut members, mut no_names) = (Vec::new(), Vec::new());
        while let Some(key) = map.next_key::<Spanned<Key<'a>>>()? {
            let location = location_of(key.referenced);
            let value = map.next_value()?;
            match key.value {
                Key(Some(key)) => members.push(Member {
                    key,
                    location,
                    value,
                }),
                Key(None) => no_names.push(location),
            }
        }
        Ok(Members { members, no_names })
    }
}

impl<T> Section<T> {
    /// The members; keys that are unknown or stand there twice are told. `location` is where members are missed.
    pub(crate) fn read<'s>(&'s self, location: Location, errors: &'s Diagnostics) -> Given<'s, T> {
        for note in &self.notes {
            errors.add_with(note.location, || note.message.clone());
        }
        Given {
            section: self,
            location,
            errors,
        }
    }
}

impl<'s, T> Given<'s, T> {
    /// The members, for as long as the file is there.
    pub(crate) fn members(&self) -> &'s T {
        &self.section.value
    }

    /// The value of a member that has to be there. What is misspelled is not missing.
    pub(crate) fn required<'f, U>(
        &self,
        name: &'static str,
        member: &'f Field<U>,
    ) -> Option<&'f U> {
        let mut notes = self.section.notes.iter();
        if member.is_absent() && !notes.any(|note| note.meant == Some(name)) {
            self.errors
                .add(self.location, format!("`{name}` is missing"));
        }
        member.value(self.errors)
    }

    /// What the text of a member that has to be there is read as.
    pub(crate) fn required_as<U, E: Into<String>>(
        &self,
        name: &'static str,
        member: &Field<String>,
        parse: impl FnOnce(&str) -> Result<U, E>,
    ) -> Option<U> {
        let text = self.required(name, member)?;
        self.errors.note(member.location, parse(text))
    }

    /// Checks the version that a file says it is of; `place` is where it is missed.
    pub(crate) fn check_version(&self, version: &Field<i64>, place: Location) {
        let given = Given {
            location: place,
            ..*self
        };
        let given = given.required("version", version);
        if given.is_some_and(|given| *given != 1) {
            let message = "unknown version; this release reads version 1";
            self.errors.add(version.location(), message);
        }
    }
}

impl<T> Deref for Given<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.section.value
    }
}

impl<T> Field<Section<T>> {
    /// The members of a section that may be left out, or be `null`, which says the same.
    pub(crate) fn section<'s>(&'s self, errors: &'s Diagnostics) -> Option<Given<'s, T>> {
        let section = self.optional(errors)?;
        Some(section.read(self.location, errors))
    }

    /// The section that a whole file is. A file that holds nothing is a mistake.
    pub(crate) fn whole_file<'s>(&'s self, errors: &'s Diagnostics) -> Option<Given<'s, T>> {
        if self.is_null() {
            errors.add(Location::START, "the file is empty");
        }
        self.section(errors)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Section<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(SectionVisitor(PhantomData))
    }
}

struct SectionVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for SectionVisitor<T> {
    type Value = Section<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Section<T>, A::Error> {
        let mut notes = Vec::new();
        let known = KnownKeys {
            map,
            notes: &mut notes,
        };
        let value = T::deserialize(known)?;
        Ok(Section {
            value,
            notes: notes.into(),
        })
    }
}

/// The deserializer of a struct's mapping. It shows the keys that the struct knows, each once, and notes the others.
struct KnownKeys<'n, A> {
    map: A,
    notes: &'n mut Vec<Note>,
}

impl<'de, A: MapAccess<'de>> Deserializer<'de> for KnownKeys<'_, A> {
    type Error = A::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        // By reference: it is large, and would be copied several times for each of a million keys.
        visitor.visit_map(&mut StructMap {
            map: self.map,
            notes: self.notes,
            words,
            seen: [None; MAX_WORDS],
            unknown: Vec::new(),
        })
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, A::Error> {
        visitor.visit_map(self.map)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string
        bytes byte_buf option unit unit_struct newtype_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

struct StructMap<'n, 'de, A> {
    map: A,
    notes: &'n mut Vec<Note>,
    words: &'static [&'static str],
    /// Where each of the words was given.
    seen: [Option<Location>; MAX_WORDS],
    unknown: Vec<(Text<'de>, Location)>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for StructMap<'_, 'de, A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        while let Some(key) = self.map.next_key::<Spanned<Key<'de>>>()? {
            let location = location_of(key.referenced);
            let Key(Some(key)) = key.value else {
                self.note(location, NO_STRING.to_owned());
                self.map.next_value::<IgnoredAny>()?;
                continue;
            };
            let index = self.words.iter().position(|word| *word == &*key);
            match index.and_then(|index| self.seen.get_mut(index)) {
                Some(seen @ None) => {
                    *seen = Some(location);
                    // The word lives longer than the file.
                    let word = BorrowedStrDeserializer::new(self.words[index.unwrap_or(0)]);
                    return seed.deserialize(word).map(Some);
                }
                Some(Some(first)) => {
                    let message = duplicate(*first);
                    self.note(location, message);
                }
                None if self.unknown.len() < MAX_NOTES => self.unknown.push((key, location)),
                None => {}
            }
            self.map.next_value::<IgnoredAny>()?;
        }
        self.tell_unknown();
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

impl<A> StructMap<'_, '_, A> {
    fn note(&mut self, location: Location, message: String) {
        self.notes.push(Note {
            location,
            message,
            meant: None,
        });
    }

    /// An unknown key that is near to none of the words is not quoted: after a slip of indentation it may be an API key.
    fn tell_unknown(&mut self) {
        if self.unknown.is_empty() {
            return;
        }
        let numbered = self.words.iter().zip(&self.seen);
        let free = numbered.filter_map(|(word, seen)| seen.is_none().then_some(*word));
        let free: Vec<&'static str> = free.collect();
        for (key, location) in self.unknown.drain(..) {
            let meant = nearest(&key, free.iter().copied());
            let message = match meant {
                Some(near) => format!("unknown key `{}`; did you mean `{near}`?", &*key),
                None => format!("unknown key; expected {}", any_of(self.words)),
            };
            self.notes.push(Note {
                location,
                message,
                meant,
            });
        }
    }
}

fn duplicate(first: Location) -> String {
    format!("duplicate key; it was first given at {first}")
}
