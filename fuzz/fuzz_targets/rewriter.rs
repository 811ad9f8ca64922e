//! The rewriter, held against a model that works on a parsed tree: the same bodies are taken, and the same bytes come out,
//! however they arrive and by whichever kernel. Readers of other rules find one tier in what comes out.

#![no_main]

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use libfuzzer_sys::fuzz_target;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use tiergate_fuzz::json::{CAPTURE_BYTES, Kernel};
use tiergate_fuzz::pieces;
use tiergate_fuzz::service_tier::{
    BodyFault, Edit, Facts, Observer, PRIORITY, Rewriter, observed_tier,
};

/// Low enough to be met by short inputs.
const DEPTH: usize = 20;

type Outcome = Result<(Vec<u8>, Facts), BodyFault>;

/// A member of the top-level object, as serde_json reads it.
struct Member<'a> {
    /// In UTF-8, lone surrogates as U+FFFD.
    key: String,
    value: &'a str,
    /// Offset of the comma before it; none before the first.
    comma: Option<usize>,
    /// Offset of its opening quote.
    start: usize,
    /// Offset of the byte after its value.
    end: usize,
}

/// All members of an object in their order, equal ones too.
struct Entries<K, V>(Vec<(K, V)>);

/// A string as serde_json gives it where bytes are asked for: a lone surrogate as if it were a character.
struct Wtf8(Vec<u8>);

/// What a reader makes of the top level.
type Reading = Entries<String, Value>;

#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Text(String),
    Other(IgnoredAny),
}

fuzz_target!(|input: &[u8]| {
    let Some((seed, body)) = input.split_first_chunk::<2>() else {
        return;
    };
    let pieces = pieces(body, u16::from_le_bytes(*seed));
    let members = members(body);
    for edit in [Edit::Set, Edit::Remove] {
        let outcome = rewrite_however_it_arrives(edit, body, &pieces);
        assert_eq!(outcome.is_ok(), members.is_some(), "{outcome:?}");
        if let (Ok((output, facts)), Some(members)) = (&outcome, &members) {
            assert_same(output, &expected(edit, body, members));
            check_facts(facts, members);
            check_readings(edit, output);
            let (again, _) = rewrite(edit, Kernel::detect(), &[output]).expect("it was JSON");
            assert_same(&again, output);
        }
    }
});

fn assert_same(left: &[u8], right: &[u8]) {
    assert!(left == right, "{}\n{}", shown(left), shown(right));
}

fn shown(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

fn rewrite(edit: Edit, kernel: Kernel, pieces: &[&[u8]]) -> Outcome {
    let mut rewriter = Rewriter::with_kernel(edit, DEPTH, 0, kernel);
    for piece in pieces {
        rewriter.push(piece)?;
    }
    let rewritten = rewriter.finish()?;
    Ok((rewritten.as_bytes().to_vec(), rewritten.facts))
}

/// Byte by byte once only: most of the time of a run goes there.
fn rewrite_however_it_arrives(edit: Edit, body: &[u8], pieces: &[&[u8]]) -> Outcome {
    let whole = rewrite(edit, Kernel::detect(), &[body]);
    assert_eq!(rewrite(edit, Kernel::PORTABLE, &[body]), whole);
    match edit {
        Edit::Set => {
            assert_eq!(rewrite(edit, Kernel::detect(), pieces), whole);
            check_observer(body, pieces);
        }
        Edit::Remove => {
            let single: Vec<&[u8]> = body.chunks(1).collect();
            assert_eq!(rewrite(edit, Kernel::PORTABLE, &single), whole);
        }
    }
    whole
}

/// The observer knows what the rewriter knows, also of a body that is refused.
fn check_observer(body: &[u8], pieces: &[&[u8]]) {
    let mut rewriter = Rewriter::new(Edit::Set, DEPTH, body.len());
    if let Err(BodyFault::NotAnObject) = rewriter.push(body) {
        return;
    }
    let mut observer = Observer::new(DEPTH);
    pieces.iter().for_each(|piece| observer.feed(piece));
    assert_eq!(&observer.finish(), rewriter.facts());
}

/// The members of a body that is to be taken, else none.
fn members(body: &[u8]) -> Option<Vec<Member<'_>>> {
    let text = std::str::from_utf8(body).ok()?;
    // A value that is skipped, so that lone surrogates pass, as they should.
    let whole: &RawValue = serde_json::from_str(text).ok()?;
    if !whole.get().starts_with('{') || depth(body) > DEPTH {
        return None;
    }
    let entries: Entries<Wtf8, &RawValue> = serde_json::from_str(text).expect("it was an object");
    let mut behind = text.find('{')? + 1;
    let located = entries.0.into_iter().map(|(key, value)| {
        let at = value.get().as_ptr() as usize - text.as_ptr() as usize;
        let (between, from) = (&text[behind..at], behind);
        behind = at + value.get().len();
        let start = from + between.find('"').expect("a key has quotes");
        Member {
            key: key.into_text(),
            value: value.get(),
            comma: text[from..start].find(',').map(|comma| from + comma),
            start,
            end: behind,
        }
    });
    Some(located.collect())
}

/// Of a body that is JSON.
fn depth(body: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0, 0, false, false);
    for &byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// What should come out: the client's bytes, less what stood before the first member that stays, and blanks for what goes
/// behind it.
fn expected(edit: Edit, body: &[u8], members: &[Member<'_>]) -> Vec<u8> {
    let mut rest = body.to_vec();
    let brace = rest
        .iter()
        .position(|&byte| byte == b'{')
        .expect("an object");
    let (mut front, mut kept) = (brace + 1, false);
    for member in members {
        match (is_tier(&member.key), kept) {
            (true, false) => front = member.end,
            (false, false) => front = member.comma.map_or(front, |comma| comma + 1),
            (true, true) => {
                rest[member.comma.expect("it is not the first")] = b' ';
                rest[member.start..member.end].fill(b' ');
            }
            (false, true) => {}
        }
        kept |= !is_tier(&member.key);
    }
    let beginning = match (edit, kept) {
        (Edit::Set, true) => "{\"service_tier\":\"priority\",",
        (Edit::Set, false) => "{\"service_tier\":\"priority\"",
        (Edit::Remove, _) => "{",
    };
    [beginning.as_bytes(), &rest[front..]].concat()
}

/// Whether a reader written in Go takes the key for the tier: by simple case folding (`unicode.SimpleFold`), which makes
/// these two equal to letters of ASCII.
fn is_tier(key: &str) -> bool {
    folded(key) == "SERVICE_TIER"
}

fn folded(key: &str) -> String {
    let fold = |letter: char| match letter {
        '\u{17f}' => 'S',
        '\u{212a}' => 'K',
        other => other.to_ascii_uppercase(),
    };
    key.chars().map(fold).collect()
}

/// What the top level says, read from the tree.
fn check_facts(facts: &Facts, members: &[Member<'_>]) {
    let last = |name: &str| members.iter().rfind(|member| member.key == name);
    let text = |name: &str, limit| last(name).and_then(|member| string(member.value, limit));
    assert_eq!(facts.model, text("model", 256));
    assert_eq!(facts.stream_id, text("stream_id", 128));
    let stream = last("stream").and_then(|member| member.value.parse().ok());
    assert_eq!(facts.stream, stream);
    let types = || {
        members
            .iter()
            .filter(|member| folded(&member.key) == "TYPE")
    };
    let kind = types().last().and_then(|member| string(member.value, 64));
    assert_eq!(facts.kind, kind);
    assert_eq!(facts.several_types, types().count() > 1);
    let tier = last("service_tier").or_else(|| members.iter().rfind(|member| is_tier(&member.key)));
    let told = facts.service_tier.as_ref().map(|tier| tier.as_str());
    match tier.map(|member| member.value) {
        // White space may fill all that is kept of a value.
        Some(value) if value.len() > CAPTURE_BYTES => assert!(told.is_some()),
        value => assert_eq!(told, value.map(tier_of).as_deref()),
    }
}

fn tier_of(value: &str) -> String {
    match value.as_bytes()[0] {
        b'{' => "<object>".into(),
        b'[' => "<array>".into(),
        b't' | b'f' => "<bool>".into(),
        b'n' => "<null>".into(),
        b'"' => {
            let text = string(value, usize::MAX).expect("a string");
            cut(&text.trim().to_lowercase(), 64)
        }
        _ => "<number>".into(),
    }
}

/// The text of a value that is a string.
fn string(value: &str, limit: usize) -> Option<String> {
    let text: Wtf8 = serde_json::from_str(value).ok()?;
    Some(cut(&text.into_text(), limit))
}

fn cut(text: &str, limit: usize) -> String {
    text[..text.floor_char_boundary(limit)].to_owned()
}

/// Whoever can read the output finds the tier once and as it was set, or not at all.
fn check_readings(edit: Edit, output: &[u8]) {
    let tier = Some(PRIORITY);
    let (observed, expected) = match edit {
        Edit::Set => (tier, &[tier][..]),
        Edit::Remove => (None, &[][..]),
    };
    assert_eq!(observed_tier(output), observed);
    for (reader, reading) in readings(output) {
        let Some(Entries(members)) = reading else {
            continue;
        };
        let tiers = members.iter().filter(|(key, _)| is_tier(key));
        let tiers: Vec<_> = tiers.map(|(_, value)| value.text()).collect();
        assert_eq!(tiers, expected, "{reader} reads {}", shown(output));
    }
}

fn readings(output: &[u8]) -> [(&'static str, Option<Reading>); 5] {
    let text = std::str::from_utf8(output).expect("it was UTF-8");
    [
        ("serde_json", serde_json::from_slice(output).ok()),
        ("sonic-rs", sonic_rs::from_slice(output).ok()),
        (
            "simd-json",
            simd_json::from_slice(&mut output.to_vec()).ok(),
        ),
        ("json5", json5::from_str(text).ok()),
        ("jiter", by_jiter(output).ok()),
    ]
}

fn by_jiter(output: &[u8]) -> jiter::JiterResult<Reading> {
    let mut reader = jiter::Jiter::new(output).with_allow_inf_nan();
    let mut members = Vec::new();
    let mut key = reader.next_object()?.map(str::to_owned);
    while let Some(name) = key {
        let value = match reader.next_value()? {
            jiter::JsonValue::Str(text) => Value::Text(text.into_owned()),
            _ => Value::Other(IgnoredAny),
        };
        members.push((name, value));
        key = reader.next_key()?.map(str::to_owned);
    }
    reader.finish()?;
    Ok(Entries(members))
}

impl Value {
    fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            Value::Other(_) => None,
        }
    }
}

impl Wtf8 {
    fn into_text(self) -> String {
        let Wtf8(mut bytes) = self;
        for at in 0..bytes.len() {
            if let [0xed, 0xa0..=0xbf, _] = bytes[at..(at + 3).min(bytes.len())] {
                bytes[at..at + 3].copy_from_slice("\u{fffd}".as_bytes());
            }
        }
        String::from_utf8(bytes).expect("all surrogates are replaced")
    }
}

impl<'de, K: Deserialize<'de>, V: Deserialize<'de>> Deserialize<'de> for Entries<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<K, V>(PhantomData<(K, V)>);
        impl<'de, K: Deserialize<'de>, V: Deserialize<'de>> Visitor<'de> for InOrder<K, V> {
            type Value = Entries<K, V>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(InOrder(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Wtf8 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Wtf8;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Wtf8, E> {
                Ok(Wtf8(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}
