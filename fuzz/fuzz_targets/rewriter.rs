//! The rewriter, held against a model that works on a parsed tree: the same bodies are taken, and the same bytes come out,
//! however they arrive and by whichever kernel. Readers of other rules find one tier in what comes out.

#![no_main]

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use libfuzzer_sys::fuzz_target;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use tiergate_fuzz::codec::json::{CAPTURE_BYTES, Kernel};
use tiergate_fuzz::codec::service_tier::{
    BodyFault, Edit, Edits, Observer, RequestFields, Rewriter, Tier, has_no_tier, observed_tier,
};
use tiergate_fuzz::pieces;

/// Low enough to be met by short inputs.
const DEPTH: usize = 20;

/// The output, the facts, and whether usage is asked for that was not before.
type Outcome = Result<(Vec<u8>, RequestFields, bool), BodyFault>;

/// What is done to a body.
#[derive(Clone, Copy, Debug)]
struct Task {
    edits: Edits,
    is_message: bool,
}

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
    let Some((seed, body)) = input.split_first_chunk::<3>() else {
        return;
    };
    let [low, high, task] = *seed;
    let task = Task::of(task);
    let pieces = pieces(body, u16::from_le_bytes([low, high]));
    let members = members(body);
    let outcome = rewrite_however_it_arrives(task, body, &pieces);
    assert_eq!(outcome.is_ok(), members.is_some(), "{outcome:?}");
    check_observer(task, body, &pieces);
    if let (Ok((output, facts, requested)), Some(members)) = (&outcome, &members) {
        let (expected, should_request) = expected(task, body, members);
        assert_same(output, &expected);
        assert_eq!(*requested, should_request);
        check_facts(task, facts, members);
        check_readings(task, output);
        let (again, _, requested) =
            rewrite(task, Kernel::detect(), &[output]).expect("it was JSON");
        assert_same(&again, output);
        assert!(!requested);
    }
});

impl Task {
    fn of(seed: u8) -> Task {
        let tier = match seed >> 3 {
            0..8 => Edit::Set(Tier::Priority),
            8..13 => Edit::Remove,
            13..18 => Edit::Keep,
            18..25 => Edit::Set(Tier::Flex),
            _ => Edit::Set(Tier::Default),
        };
        Task {
            edits: Edits {
                tier,
                remove_fast_speed: seed & 1 != 0,
                request_usage: seed & 2 != 0,
            },
            is_message: seed & 4 != 0,
        }
    }

    fn removes(&self, member: &Member<'_>) -> bool {
        let is_fast = || {
            string(member.value, usize::MAX)
                .is_some_and(|text| text.trim().eq_ignore_ascii_case("fast"))
        };
        is_tier(&member.key) && self.edits.tier != Edit::Keep
            || self.edits.remove_fast_speed && folded(&member.key) == "SPEED" && is_fast()
    }

    fn rewriter(&self, kernel: Kernel) -> Rewriter {
        match self.is_message {
            true => Rewriter::for_message(DEPTH, 0),
            false => Rewriter::with_kernel(DEPTH, 0, kernel),
        }
    }
}

fn assert_same(left: &[u8], right: &[u8]) {
    assert!(left == right, "{}\n{}", shown(left), shown(right));
}

fn shown(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

fn rewrite(task: Task, kernel: Kernel, pieces: &[&[u8]]) -> Outcome {
    let mut rewriter = task.rewriter(kernel);
    for piece in pieces {
        rewriter.push(piece)?;
    }
    let rewritten = rewriter.finish(task.edits)?;
    let output = rewritten.as_bytes().to_vec();
    Ok((output, rewritten.facts, rewritten.usage_requested))
}

/// Byte by byte for some tasks only: most of the time of a run goes there.
fn rewrite_however_it_arrives(task: Task, body: &[u8], pieces: &[&[u8]]) -> Outcome {
    let whole = rewrite(task, Kernel::detect(), &[body]);
    assert_eq!(rewrite(task, Kernel::PORTABLE, &[body]), whole);
    assert_eq!(rewrite(task, Kernel::detect(), pieces), whole);
    if task.edits.tier == Edit::Remove {
        let single: Vec<&[u8]> = body.chunks(1).collect();
        assert_eq!(rewrite(task, Kernel::PORTABLE, &single), whole);
    }
    whole
}

/// The observer knows what the rewriter knows; of a body that is refused it may know more.
fn check_observer(task: Task, body: &[u8], pieces: &[&[u8]]) {
    let mut rewriter = task.rewriter(Kernel::detect());
    if rewriter.push(body).is_err() {
        return;
    }
    let mut observer = match task.is_message {
        true => Observer::for_message(),
        false => Observer::new(),
    };
    pieces.iter().for_each(|piece| observer.feed(piece));
    assert_eq!(&observer.finish(), rewriter.facts());
}

/// The members of a body that is to be taken, else none.
fn members(body: &[u8]) -> Option<Vec<Member<'_>>> {
    let text = std::str::from_utf8(body).ok()?;
    let plain = text.strip_prefix('\u{feff}').unwrap_or(text);
    // A value that is skipped, so that lone surrogates pass, as they should.
    let whole: &RawValue = serde_json::from_str(plain).ok()?;
    if !whole.get().starts_with('{') || depth(body) > DEPTH {
        return None;
    }
    Some(members_of(plain, text.len() - plain.len()))
}

/// The members of an object whose text begins at this offset of the body.
fn members_of(text: &str, offset: usize) -> Vec<Member<'_>> {
    let entries: Entries<Wtf8, &RawValue> = serde_json::from_str(text).expect("it is an object");
    let mut behind = text.find('{').expect("an object") + 1;
    let located = entries.0.into_iter().map(|(key, value)| {
        let at = value.get().as_ptr() as usize - text.as_ptr() as usize;
        let (between, from) = (&text[behind..at], behind);
        behind = at + value.get().len();
        let start = from + between.find('"').expect("a key has quotes");
        let comma = text[from..start].find(',').map(|comma| from + comma);
        Member {
            key: key.into_text(),
            value: value.get(),
            comma: comma.map(|comma| offset + comma),
            start: offset + start,
            end: offset + behind,
        }
    });
    located.collect()
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

/// Bytes of the body and what stands in their place.
type Change = (Range<usize>, Vec<u8>);

/// What should come out: the client's bytes, less what stood before the first member that stays, blanks for what goes behind
/// it, and what is set. And whether usage is asked for that was not before.
fn expected(task: Task, body: &[u8], members: &[Member<'_>]) -> (Vec<u8>, bool) {
    let brace = body
        .iter()
        .position(|&byte| byte == b'{')
        .expect("an object");
    let (mut front, mut kept, mut cut) = (brace + 1, false, false);
    let mut changes: Vec<Change> = Vec::new();
    for member in members {
        let from = member.comma.unwrap_or(member.start);
        match (task.removes(member), kept) {
            (true, false) => (front, cut) = (member.end, true),
            (true, true) => changes.push(blanked(body, from..member.end)),
            // What goes at the front goes with the comma behind it.
            (false, false) => front = member.comma.map_or(front, |comma| comma + 1),
            (false, true) => {}
        }
        kept |= !task.removes(member);
    }
    change_responses(task, body, members, &mut changes);
    let options = usage_change(task, members);
    let mut beginning = Vec::new();
    if let Edit::Set(tier) = task.edits.tier {
        beginning.push(format!("\"service_tier\":\"{}\"", tier.as_str()));
    }
    match &options {
        Some(None) => beginning.push(r#""stream_options":{"include_usage":true}"#.to_owned()),
        Some(Some((range, text))) => changes.push((range.clone(), fill(text, range.len()))),
        None => {}
    }
    let keeps_beginning = task.edits.tier == Edit::Keep && beginning.is_empty() && !cut;
    let mut output = match keeps_beginning {
        true => {
            front = 0;
            String::new()
        }
        false => format!("{{{}", beginning.join(",")),
    };
    if kept && !beginning.is_empty() {
        output.push(',');
    }
    let mut output = output.into_bytes();
    changes.sort_by_key(|(range, _)| range.start);
    for (range, text) in changes {
        output.extend_from_slice(&body[front..range.start]);
        output.extend_from_slice(&text);
        front = range.end;
    }
    output.extend_from_slice(&body[front..]);
    (output, options.is_some())
}

/// The tiers within `response` objects of a message.
fn change_responses(task: Task, body: &[u8], members: &[Member<'_>], changes: &mut Vec<Change>) {
    if !task.is_message || task.edits.tier == Edit::Keep {
        return;
    }
    let mut tier = match task.edits.tier {
        Edit::Set(tier) => Some(tier),
        _ => None,
    };
    for response in members
        .iter()
        .filter(|member| folded(&member.key) == "RESPONSE")
    {
        let inner = inner_members(response);
        let mut kept = false;
        for (index, member) in inner.iter().enumerate() {
            if !is_tier(&member.key) {
                kept = true;
            } else if let Some(tier) = tier.take() {
                let text = format!("\"service_tier\":\"{}\"", tier.as_str());
                let range = member.start..member.end;
                changes.push((range.clone(), fill(&text, range.len())));
                kept = true;
            } else if kept {
                changes.push(blanked(
                    body,
                    member.comma.expect("one is before it")..member.end,
                ));
            } else {
                let next = inner.get(index + 1).and_then(|next| next.comma);
                changes.push(blanked(
                    body,
                    member.start..next.map_or(member.end, |comma| comma + 1),
                ));
            }
        }
        // Only the first may carry one.
        tier = None;
    }
}

/// The change by which a body comes to ask for usage: none where it is not to; no place where the member is missing.
fn usage_change(
    task: Task,
    members: &[Member<'_>],
) -> Option<Option<(Range<usize>, &'static str)>> {
    let count = |members: &[Member<'_>], name: &str| {
        members
            .iter()
            .filter(|member| folded(&member.key) == name)
            .count()
    };
    let streams = members
        .iter()
        .any(|member| member.key == "stream" && member.value == "true");
    if !task.edits.request_usage || !streams || count(members, "STREAM") != 1 {
        return None;
    }
    if count(members, "STREAM_OPTIONS") == 0 {
        return Some(None);
    }
    let options = members
        .iter()
        .find(|member| member.key == "stream_options")?;
    if count(members, "STREAM_OPTIONS") != 1 {
        return None;
    }
    let value = options.end - options.value.len()..options.end;
    if options.value == "null" {
        return Some(Some((value, r#"{"include_usage":true}"#)));
    }
    if !options.value.starts_with('{') {
        return None;
    }
    let inner = inner_members(options);
    match (count(&inner, "INCLUDE_USAGE"), inner.first()) {
        (_, None) => Some(Some((
            value.end - 1..value.end - 1,
            r#""include_usage":true"#,
        ))),
        (0, Some(first)) => Some(Some((first.start..first.start, r#""include_usage":true,"#))),
        (1, _) => {
            let usage = inner.iter().find(|member| member.key == "include_usage")?;
            matches!(usage.value, "false" | "null")
                .then_some(Some((usage.end - usage.value.len()..usage.end, "true")))
        }
        _ => None,
    }
}

fn inner_members<'a>(member: &Member<'a>) -> Vec<Member<'a>> {
    match member.value.starts_with('{') {
        true => members_of(member.value, member.end - member.value.len()),
        false => Vec::new(),
    }
}

/// The text, and spaces up to this length.
fn fill(text: &str, len: usize) -> Vec<u8> {
    format!("{text:len$}").into_bytes()
}

fn blanked(body: &[u8], range: Range<usize>) -> Change {
    let blank = |byte: &u8| match byte {
        b'\t' | b'\n' | b'\r' => *byte,
        _ => b' ',
    };
    (range.clone(), body[range].iter().map(blank).collect())
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
fn check_facts(task: Task, facts: &RequestFields, members: &[Member<'_>]) {
    let last = |name: &str| members.iter().rfind(|member| member.key == name);
    let text = |name: &str, limit| last(name).and_then(|member| string(member.value, limit));
    assert_eq!(facts.model, text("model", 256));
    assert_eq!(facts.sole_model(), sole_model(task, members).as_deref());
    let background = last("background").and_then(|member| member.value.parse().ok());
    assert_eq!(facts.background, background);
    let speed = last("speed").and_then(|member| string(member.value, usize::MAX));
    let is_fast = speed.is_some_and(|speed| speed.trim().eq_ignore_ascii_case("fast"));
    if last("speed").is_none_or(|member| member.value.len() <= CAPTURE_BYTES) {
        assert_eq!(facts.fast_speed, is_fast);
    }
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
    let tiers = members.iter().filter(|member| member.key == "service_tier");
    let told = facts.service_tier.as_ref().map(|tier| tier.as_str());
    // White space may fill all that is kept of a value.
    match tiers.clone().any(|tier| tier.value.len() > CAPTURE_BYTES) {
        true => assert!(told.is_some()),
        false => {
            // Of equally dear ones the last.
            let dearest = tiers.map(|tier| tier_of(tier.value)).max_by_key(dearness);
            assert_eq!(told, dearest.as_deref());
        }
    }
}

/// The model that every reader finds.
fn sole_model(task: Task, members: &[Member<'_>]) -> Option<String> {
    let is_model = |member: &&Member<'_>| folded(&member.key) == "MODEL";
    let mut models = members.iter().filter(is_model);
    let (model, None) = (models.next()?, models.next()) else {
        return None;
    };
    let inner = members
        .iter()
        .filter(|member| folded(&member.key) == "RESPONSE");
    if task.is_message
        && inner
            .flat_map(inner_members)
            .any(|member| is_model(&&member))
    {
        return None;
    }
    let names_further = |member: &Member<'_>| {
        let name = folded(&member.key);
        let lists = [
            "MODELS",
            "FALLBACKS",
            "CONTEXT_WINDOW_FALLBACKS",
            "CONTENT_POLICY_FALLBACKS",
        ];
        lists.contains(&&*name) && member.value != "null"
    };
    if members.iter().any(names_further) {
        return None;
    }
    let text = string(model.value, usize::MAX)?;
    let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b',';
    let is_plain = text.len() <= 256 && text.bytes().all(is_plain);
    (model.key == "model" && is_plain).then_some(text)
}

fn dearness(tier: &String) -> u8 {
    match tier.as_str() {
        "flex" | "batch" => 0,
        "priority" | "fast" => 2,
        _ => 1,
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
fn check_readings(task: Task, output: &[u8]) {
    let expected = match task.edits.tier {
        Edit::Set(tier) => {
            assert_eq!(observed_tier(output), Some(tier.as_str()));
            vec![Some(tier.as_str())]
        }
        Edit::Remove => {
            assert!(!task.is_message || has_no_tier(output, DEPTH, true));
            Vec::new()
        }
        Edit::Keep => return,
    };
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
