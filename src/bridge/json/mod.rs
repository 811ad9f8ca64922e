//! JSON as the room handles it: a tree whose strings and numbers are slices of the text they were read from, so that
//! what passes through keeps its spelling, its member order and its lone surrogates. It knows no protocol; a member's
//! type is checked in [`super::record`].

mod reader;
mod writer;

pub(crate) use reader::{parse, parse_document, without_mark};
pub(crate) use writer::{escape, to_string};

use crate::codec::json::unescape;
use std::borrow::Cow;

/// A JSON value.
#[derive(Clone, Debug)]
pub(crate) enum Node<'a> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number as it was spelled.
    Number(Cow<'a, str>),
    /// A string.
    Text(Text<'a>),
    /// An array.
    List(Vec<Node<'a>>),
    /// An object.
    Object(Object<'a>),
}

/// A JSON string, kept as the bytes between its quotes with all escapes in place.
#[derive(Clone, Debug)]
pub(crate) enum Text<'a> {
    /// A slice of the text that was read, a literal that needs no escape, or escaped text that was made here.
    Raw(Cow<'a, str>),
    /// Several texts that follow one another without a copy.
    Joined(Vec<Text<'a>>),
}

/// The first half of a pair of surrogates, as it was spelled: JavaScript cuts texts between UTF-16 code units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Half(String);

/// The members of an object, in order. No two have one name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Object<'a>(Vec<(Cow<'a, str>, Node<'a>)>);

/// An object of these members, in this order. A value of `None` leaves its member out.
macro_rules! object {
    ($($name:literal: $value:expr),* $(,)?) => {{
        let mut object = $crate::bridge::json::Object::default();
        $(object.push($name, $value);)*
        object
    }};
}
pub(crate) use object;

/// What can be the value of a member; of `None` there is none.
pub(crate) trait MemberValue<'a> {
    /// The value as it is kept.
    fn into_node(self) -> Option<Node<'a>>;
}

impl<'a, T: MemberValue<'a>> MemberValue<'a> for Option<T> {
    fn into_node(self) -> Option<Node<'a>> {
        self?.into_node()
    }
}

macro_rules! member_values {
    ($($from:ty: |$value:ident| $node:expr;)*) => {
        $(impl<'a> MemberValue<'a> for $from {
            fn into_node(self) -> Option<Node<'a>> {
                let $value = self;
                Some($node)
            }
        })*
    };
}

member_values! {
    Node<'a>: |node| node;
    Object<'a>: |object| Node::Object(object);
    Vec<Node<'a>>: |items| Node::List(items);
    Text<'a>: |text| Node::Text(text);
    &Text<'a>: |text| Node::Text(text.clone());
    // A word of a protocol, which needs no escape. Other texts are no constants, and have to be `Node::text`.
    &'static str: |word| Node::word(word);
    bool: |flag| Node::Bool(flag);
    u64: |number| Node::Number(number.to_string().into());
}

impl<'a> From<Object<'a>> for Node<'a> {
    fn from(object: Object<'a>) -> Self {
        Node::Object(object)
    }
}

impl<'a> Text<'a> {
    /// The JSON form of a plain text.
    pub(crate) fn of(plain: &str) -> Text<'static> {
        Text::Raw(escape(plain).into())
    }

    /// A text that needs no escape, or has them already.
    pub(crate) fn word(raw: &'a str) -> Self {
        Text::Raw(raw.into())
    }

    /// The texts one behind the other, with `separator` between them, which is a JSON form itself.
    pub(crate) fn join(texts: Vec<Text<'a>>, separator: &'static str) -> Self {
        let mut parts = Vec::with_capacity(texts.len() * 2);
        for text in texts {
            if !parts.is_empty() {
                parts.push(Text::word(separator));
            }
            parts.push(text);
        }
        if parts.len() == 1 {
            return parts.remove(0);
        }
        Text::Joined(parts)
    }

    /// Whether it is the empty string.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Text::Raw(raw) => raw.is_empty(),
            Text::Joined(parts) => parts.iter().all(Text::is_empty),
        }
    }

    /// The text without escapes behind `half`, the first half of a pair of surrogates by which another text has ended; and
    /// the first half by which this ends, which is left out.
    pub(crate) fn plain_behind(&self, half: Option<Half>) -> (String, Option<Half>) {
        let mut raw = half.map(|Half(raw)| raw).unwrap_or_default();
        writer::raw(self, &mut raw);
        let half = reader::first_half(&raw).map(|at| Half(raw.split_off(at)));
        (unescape(&raw).into_owned(), half)
    }

    /// The text without escapes. A lone surrogate, which no Rust string can hold, is U+FFFD.
    pub(crate) fn plain(&self) -> Cow<'_, str> {
        match self {
            Text::Raw(raw) => unescape(raw),
            Text::Joined(parts) => parts.iter().map(Text::plain).collect::<String>().into(),
        }
    }
}

impl<'a> Object<'a> {
    /// The value of a member. The name must need no escape, as all names of the protocols do.
    pub(crate) fn get(&self, name: &str) -> Option<&Node<'a>> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
    }

    /// Sets a member, if there is a value for it: in its place if it is there, else at the end.
    pub(crate) fn set(&mut self, name: impl Into<Cow<'a, str>>, value: impl MemberValue<'a>) {
        let (name, Some(value)) = (name.into(), value.into_node()) else {
            return;
        };
        match self.0.iter_mut().find(|(key, _)| *key == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    /// Adds a member that is known not to be there, if there is a value for it.
    pub(crate) fn push(&mut self, name: impl Into<Cow<'a, str>>, value: impl MemberValue<'a>) {
        if let Some(value) = value.into_node() {
            self.0.push((name.into(), value));
        }
    }

    /// Takes a member out.
    pub(crate) fn remove(&mut self, name: &str) -> Option<Node<'a>> {
        let at = self.0.iter().position(|(key, _)| key == name)?;
        Some(self.0.remove(at).1)
    }

    /// The members in order; names are in their JSON form.
    pub(crate) fn members(&self) -> impl Iterator<Item = (&str, &Node<'a>)> {
        self.0.iter().map(|(name, value)| (name.as_ref(), value))
    }

    /// An object of these members; of those with one name the last counts, in the place of the first.
    pub(crate) fn of_members(members: Vec<(Cow<'a, str>, Node<'a>)>) -> Self {
        Object(reader::without_repeated(members))
    }

    /// The members; names are in their JSON form.
    pub(crate) fn into_members(self) -> Vec<(Cow<'a, str>, Node<'a>)> {
        self.0
    }

    /// The same members with other values.
    pub(crate) fn map_values(self, mut change: impl FnMut(&str, Node<'a>) -> Node<'a>) -> Self {
        let changed = self.0.into_iter().map(|(name, value)| {
            let value = change(&name, value);
            (name, value)
        });
        Object(changed.collect())
    }

    /// Only the members whose names are listed.
    pub(crate) fn only(mut self, names: &[&str]) -> Self {
        self.0.retain(|(name, _)| names.contains(&name.as_ref()));
        self
    }

    /// Whether it has no member.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The object, unless it has no member.
    pub(crate) fn or_none(self) -> Option<Self> {
        (!self.is_empty()).then_some(self)
    }
}

impl<'a> Node<'a> {
    /// A string that needs no escape: a word of a protocol.
    pub(crate) fn word(word: &'a str) -> Self {
        Node::Text(Text::word(word))
    }

    /// Any plain text as a string.
    pub(crate) fn text(plain: &str) -> Self {
        Node::Text(Text::of(plain))
    }

    /// A plain text, or null.
    pub(crate) fn text_or_null(plain: Option<&str>) -> Self {
        plain.map_or(Node::Null, Node::text)
    }

    /// The object, if it is one.
    pub(crate) fn as_object(&self) -> Option<&Object<'a>> {
        match self {
            Node::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The list, if it is one.
    pub(crate) fn as_list(&self) -> Option<&[Node<'a>]> {
        match self {
            Node::List(list) => Some(list),
            _ => None,
        }
    }

    /// The plain text of a string.
    pub(crate) fn as_text(&self) -> Option<Cow<'_, str>> {
        match self {
            Node::Text(text) => Some(text.plain()),
            _ => None,
        }
    }

    /// A whole number without sign. One that is too large is the largest; a fraction of zeros counts as none.
    pub(crate) fn as_number(&self) -> Option<u64> {
        let Node::Number(spelled) = self else {
            return None;
        };
        let (whole, fraction) = spelled.split_once('.').unwrap_or((spelled, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || fraction.bytes().any(|byte| byte != b'0') {
            return None;
        }
        Some(whole.parse().unwrap_or(u64::MAX))
    }

    /// A member of an object; `None` where this is no object, the member is not there, or it is null.
    pub(crate) fn member(&self, name: &str) -> Option<&Node<'a>> {
        self.as_object()?
            .get(name)
            .filter(|value| !matches!(value, Node::Null))
    }

    /// The plain text of a member that is a string.
    pub(crate) fn member_text(&self, name: &str) -> Option<Cow<'_, str>> {
        self.member(name)?.as_text()
    }

    /// The same, unless it is empty.
    pub(crate) fn some_text(&self, name: &str) -> Option<String> {
        let text = self.member_text(name)?;
        (!text.is_empty()).then(|| text.into_owned())
    }

    /// The whole number of a member.
    pub(crate) fn member_number(&self, name: &str) -> Option<u64> {
        self.member(name)?.as_number()
    }

    /// The list of a member, or none.
    pub(crate) fn member_list(&self, name: &str) -> &[Node<'a>] {
        self.member(name)
            .and_then(Node::as_list)
            .unwrap_or_default()
    }
}
