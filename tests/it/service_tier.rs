//! What the rewriter promises, held against an independent parser over generated, mutated and arbitrary bodies. Every
//! property is checked with each kernel of the scanner.

use proptest::prelude::*;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;
use tiergate::codec::json::Kernel;
use tiergate::codec::service_tier::{
    BodyFault, Edit, Edits, Observer, RequestFields, Rewriter, Tier, has_no_tier, observed_tier,
};

const DEPTH: usize = 100;
const SET: Edit = Edit::Set(Tier::Priority);
const REMOVE: Edit = Edit::Remove;
const EDITS: [Edit; 5] = [
    SET,
    Edit::Set(Tier::Flex),
    Edit::Set(Tier::Default),
    REMOVE,
    Edit::Keep,
];

fn kernels() -> [Kernel; 2] {
    [Kernel::PORTABLE, Kernel::detect()]
}

fn rewrite_chunks(
    edit: Edit,
    kernel: Kernel,
    chunks: &[&[u8]],
) -> Result<(Vec<u8>, RequestFields), BodyFault> {
    let mut rewriter = Rewriter::with_kernel(DEPTH, 0, kernel);
    for chunk in chunks {
        rewriter.push(chunk)?;
    }
    let rewritten = rewriter.finish(Edits::tier(edit))?;
    Ok((rewritten.as_bytes().to_vec(), rewritten.facts))
}

fn rewrite(edit: Edit, body: &[u8]) -> Result<(Vec<u8>, RequestFields), BodyFault> {
    let [portable, detected] = kernels().map(|kernel| rewrite_chunks(edit, kernel, &[body]));
    assert_eq!(portable, detected);
    detected
}

/// The output, and whether usage is asked for now and was not before.
fn edited(edits: Edits, is_message: bool, pieces: &[&[u8]]) -> Result<(String, bool), BodyFault> {
    let mut rewriter = match is_message {
        true => Rewriter::for_message(DEPTH, 0),
        false => Rewriter::new(DEPTH, 0),
    };
    for piece in pieces {
        rewriter.push(piece)?;
    }
    let rewritten = rewriter.finish(edits)?;
    let output = String::from_utf8(rewritten.as_bytes().to_vec()).unwrap();
    Ok((output, rewritten.usage_requested))
}

fn with_usage(tier: Edit, body: &str) -> (String, bool) {
    let edits = Edits {
        request_usage: true,
        ..Edits::tier(tier)
    };
    edited(edits, false, &[body.as_bytes()]).unwrap()
}

/// What becomes of a message of a WebSocket.
fn message(tier: Edit, body: &str) -> String {
    edited(Edits::tier(tier), true, &[body.as_bytes()])
        .unwrap()
        .0
}

fn set(body: &str) -> String {
    String::from_utf8(rewrite(SET, body.as_bytes()).unwrap().0).unwrap()
}

fn remove(body: &str) -> String {
    String::from_utf8(rewrite(REMOVE, body.as_bytes()).unwrap().0).unwrap()
}

fn fault(body: &[u8]) -> BodyFault {
    let bytewise: Vec<&[u8]> = body.chunks(1).collect();
    let fault = rewrite(SET, body).unwrap_err();
    assert_eq!(rewrite_chunks(SET, Kernel::detect(), &bytewise), Err(fault));
    fault
}

fn facts(body: &str) -> RequestFields {
    rewrite(SET, body.as_bytes()).unwrap().1
}

fn client_tier(body: &str) -> String {
    facts(body).named_tier().unwrap().to_owned()
}

/// The members of an object in their order, duplicates kept, values as spelled.
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

fn members(body: &[u8]) -> Vec<(String, String)> {
    let Members(members) = serde_json::from_slice(body).unwrap();
    members
        .into_iter()
        .map(|(key, value)| (key, value.get().to_owned()))
        .collect()
}

/// Case folding by another road than the rewriter's: every code point that Go folds to ASCII is mapped before the comparison.
fn is_tier(key: &str) -> bool {
    key.replace('\u{17f}', "s")
        .replace('\u{212a}', "k")
        .eq_ignore_ascii_case("service_tier")
}

fn is_named(key: &str, name: &str) -> bool {
    key.replace('\u{17f}', "s")
        .replace('\u{212a}', "k")
        .eq_ignore_ascii_case(name)
}

/// Whether the other parser takes it for one object: skipped values, so that it accepts lone surrogate escapes too.
fn is_object(body: &[u8]) -> bool {
    serde_json::from_slice::<&RawValue>(body).is_ok_and(|raw| raw.get().starts_with('{'))
}

fn depth(body: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0, false, false);
    for &byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

fn white() -> impl Strategy<Value = String> {
    prop_oneof![4 => Just(String::new()), 1 => "[ \t\r\n]{0,20}"]
}

fn character() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => "[a-zA-Z0-9 _/:,{}\\[\\]]{1,40}",
        2 => "[^\"\\\\\u{0}-\u{1f}]",
        1 => prop::sample::select(vec![r#"\""#, r"\\", r"\/", r"\b", r"\f", r"\n", r"\r", r"\t"])
            .prop_map(str::to_owned),
        1 => "\\\\u[0-9a-fA-F]{4}",
    ]
}

fn string() -> impl Strategy<Value = String> {
    prop::collection::vec(character(), 0..6).prop_map(|parts| format!("\"{}\"", parts.concat()))
}

/// Spells some characters of `name` as escapes, and some letters in the other case or as U+017F.
fn spellings(name: &'static str) -> impl Strategy<Value = String> {
    prop::collection::vec(0..12u8, name.len()).prop_map(move |choices| {
        let spelled: String = name
            .chars()
            .zip(choices)
            .map(|(letter, choice)| spell(letter, choice))
            .collect();
        format!("\"{spelled}\"")
    })
}

fn spell(letter: char, choice: u8) -> String {
    match choice {
        0 => letter.to_ascii_uppercase().to_string(),
        1 => format!("\\u{:04x}", letter as u32),
        2 => format!("\\u{:04X}", letter.to_ascii_uppercase() as u32),
        3 if letter == 's' => "\u{17f}".into(),
        4 if letter == 's' => "\\u017F".into(),
        _ => letter.to_string(),
    }
}

/// Keys that the other parser can decode: no lone surrogates.
fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => spellings("service_tier"),
        1 => spellings("type"),
        1 => spellings("speed"),
        1 => spellings("response"),
        1 => spellings("stream_options"),
        1 => spellings("model"),
        1 => spellings("stream"),
        1 => Just("\"service_tier\\u0000\"".to_owned()),
        1 => Just("\"service_tie\"".to_owned()),
        1 => "[a-z]{60,70}".prop_map(|key| format!("\"{key}\"")),
        4 => "[a-zA-Z_é\u{10000}]{0,9}".prop_map(|key| format!("\"{key}\"")),
    ]
}

fn scalar() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => string(),
        2 => "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?",
        1 => prop::sample::select(vec!["true", "false", "null", "\"priority\"", "\" Flex \""])
            .prop_map(str::to_owned),
    ]
}

fn value() -> impl Strategy<Value = String> {
    scalar().prop_recursive(4, 24, 4, |inner| {
        let member = (key(), white(), inner.clone()).prop_map(|(k, w, v)| format!("{k}{w}:{w}{v}"));
        prop_oneof![
            (prop::collection::vec(inner, 0..4), white())
                .prop_map(|(values, w)| format!("[{w}{}{w}]", values.join(","))),
            (prop::collection::vec(member, 0..4), white())
                .prop_map(|(members, w)| format!("{{{w}{}{w}}}", members.join(&format!("{w},"))))
        ]
    })
}

fn object() -> impl Strategy<Value = String> {
    let member = (white(), key(), white(), white(), value(), white())
        .prop_map(|(a, k, b, c, v, d)| format!("{a}{k}{b}:{c}{v}{d}"));
    (white(), prop::collection::vec(member, 0..6), white())
        .prop_map(|(before, members, after)| format!("{before}{{{}}}{after}", members.join(",")))
}

/// An object with some bytes overwritten, dropped, doubled or put in.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        any::<u8>(),
        prop::sample::select(br#"{}[]",:\ utfn-+.eE019"#.to_vec()),
        prop::sample::select(vec![0xc0, 0xc5, 0xe2, 0xed, 0xf0, 0xf4, 0x80, 0xa0, 0xbf]),
    ];
    let change = (0..4u8, any::<prop::sample::Index>(), byte);
    (object(), prop::collection::vec(change, 1..4)).prop_map(|(body, changes)| {
        let mut body = body.into_bytes();
        for (change, place, byte) in changes {
            let place = place.index(body.len() + 1);
            match change {
                0 => body.insert(place, byte),
                1 if place < body.len() => body[place] = byte,
                2 if place < body.len() => drop(body.remove(place)),
                _ => body.truncate(place),
            }
        }
        body
    })
}

fn any_body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => object().prop_map(String::into_bytes),
        4 => mutated(),
        1 => value().prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 0..80),
    ]
}

fn edit() -> impl Strategy<Value = Edit> {
    prop::sample::select(EDITS.to_vec())
}

/// All that can be done to a body.
fn edits() -> impl Strategy<Value = Edits> {
    (edit(), any::<bool>(), any::<bool>()).prop_map(|(tier, remove_fast_speed, request_usage)| {
        Edits {
            tier,
            remove_fast_speed,
            request_usage,
        }
    })
}

/// A body with the members that edits are about, among them.
fn chat_body() -> impl Strategy<Value = String> {
    let usage = prop_oneof![
        2 => Just(r#""include_usage":true"#),
        2 => Just(r#""include_usage" : false"#),
        1 => Just(r#""include_usage":null"#),
        1 => Just(r#""include_usage":0"#),
        1 => Just(r#""Include_Usage":false"#),
        2 => Just(r#""x":[1,{"include_usage":false}]"#),
        1 => Just(r#""service_tier":"y""#),
    ];
    let options = (white(), prop::collection::vec(usage, 0..3), white())
        .prop_map(|(before, members, after)| format!("{{{before}{}{after}}}", members.join(",")));
    let options = prop_oneof![4 => options, 1 => Just("null".to_owned()), 1 => value()];
    let inner = prop_oneof![
        3 => spellings("service_tier"), 1 => Just("\"model\"".to_owned()), 2 => Just("\"input\"".to_owned())
    ];
    let inner =
        (inner, white(), scalar(), white()).prop_map(|(k, a, v, b)| format!("{k}{a}:{v}{b}"));
    let response = (white(), prop::collection::vec(inner, 0..4), white())
        .prop_map(|(before, members, after)| format!("{{{before}{}{after}}}", members.join(",")));
    let member = prop_oneof![
        1 => Just(r#""stream":true"#.to_owned()),
        1 => Just(r#""stream":false"#.to_owned()),
        1 => Just(r#""Stream":true"#.to_owned()),
        3 => (white(), options).prop_map(|(white, value)| format!("\"stream_options\"{white}:{white}{value}")),
        1 => Just(r#""Stream_Options":{}"#.to_owned()),
        2 => response.prop_map(|value| format!("\"response\":{value}")),
        2 => spellings("speed").prop_map(|key| format!("{key}:\"fast\"")),
        1 => Just(r#""speed":"standard""#.to_owned()),
        2 => (spellings("service_tier"), value()).prop_map(|(key, value)| format!("{key}:{value}")),
        2 => (key(), value()).prop_map(|(key, value)| format!("{key}:{value}")),
    ];
    let member = (white(), member, white()).prop_map(|(a, member, b)| format!("{a}{member}{b}"));
    let before = prop::sample::select(vec!["", "\u{feff}", " \n"]);
    let first = prop_oneof![2 => Just(vec![r#""stream":true"#.to_owned()]), 1 => Just(Vec::new())];
    let members = (first, prop::collection::vec(member, 0..6))
        .prop_map(|(first, members)| [first, members].concat().join(","));
    (before, members, white())
        .prop_map(|(before, members, after)| format!("{before}{{{members}}}{after}"))
}

/// The members that should come out, and whether usage is asked for that was not before.
fn expected(body: &str, edits: Edits, is_message: bool) -> (Vec<(String, String)>, bool) {
    let came = members(body.trim_start_matches('\u{feff}').as_bytes());
    let of = |name: &str| came.iter().filter(|(key, _)| is_named(key, name)).count();
    let streams = of("stream") == 1 && came.contains(&("stream".into(), "true".into()));
    let options = came
        .iter()
        .find(|(key, _)| key == "stream_options")
        .map(|(_, value)| &**value);
    let new_options = match (of("stream_options"), options) {
        _ if !edits.request_usage || !streams => None,
        (0, _) | (1, Some("null")) => Some(vec![("include_usage".to_owned(), "true".to_owned())]),
        (1, Some(value)) if value.starts_with('{') => asking(members(value.as_bytes())),
        _ => None,
    };
    let mut responses = 0;
    let mut left = Vec::new();
    for (key, value) in &came {
        let is_fast = value.starts_with('"')
            && serde_json::from_str::<String>(value)
                .is_ok_and(|text| text.trim().eq_ignore_ascii_case("fast"));
        let mut value = value.clone();
        if is_tier(key) && edits.tier != Edit::Keep
            || is_named(key, "speed") && is_fast && edits.remove_fast_speed
        {
            continue;
        }
        if let (true, Some(options)) = (key == "stream_options", &new_options) {
            value = object_of(options);
        }
        if is_message && is_named(key, "response") {
            responses += 1;
            if value.starts_with('{') && edits.tier != Edit::Keep {
                let tier = match edits.tier {
                    Edit::Set(tier) if responses == 1 => Some(tier),
                    _ => None,
                };
                value = object_of(&forced_inside(members(value.as_bytes()), tier));
            }
        }
        left.push((key.clone(), value));
    }
    if let (0, Some(options)) = (of("stream_options"), &new_options) {
        left.insert(0, ("stream_options".to_owned(), object_of(options)));
    }
    if let Edit::Set(tier) = edits.tier {
        left.insert(0, ("service_tier".into(), format!("\"{}\"", tier.as_str())));
    }
    (left, new_options.is_some())
}

/// The members of `stream_options` so that they ask for usage; none where they do, or cannot be told.
fn asking(mut members: Vec<(String, String)>) -> Option<Vec<(String, String)>> {
    let usages = members
        .iter_mut()
        .filter(|(key, _)| is_named(key, "include_usage"));
    match &mut usages.collect::<Vec<_>>()[..] {
        [] => members.insert(0, ("include_usage".into(), "true".into())),
        [(key, value)] if key == "include_usage" && matches!(&**value, "false" | "null") => {
            *value = "true".into()
        }
        _ => return None,
    }
    Some(members)
}

fn forced_inside(members: Vec<(String, String)>, tier: Option<Tier>) -> Vec<(String, String)> {
    let mut tier = tier;
    let member = |(key, value): (String, String)| match is_tier(&key) {
        true => tier
            .take()
            .map(|tier| ("service_tier".into(), format!("\"{}\"", tier.as_str()))),
        false => Some((key, value)),
    };
    members.into_iter().filter_map(member).collect()
}

fn object_of(members: &[(String, String)]) -> String {
    let members: Vec<String> = members
        .iter()
        .map(|(key, value)| format!("{}:{value}", serde_json::to_string(key).unwrap()))
        .collect();
    format!("{{{}}}", members.join(","))
}

/// Values of objects that an edit may reach into are compared by their members, as white space may differ.
fn comparable(members: Vec<(String, String)>) -> Vec<(String, String)> {
    let shown = |(key, value): (String, String)| {
        let reaches = is_named(&key, "stream_options") || is_named(&key, "response");
        match reaches && value.starts_with('{') {
            true => (key, object_of(&self::members(value.as_bytes()))),
            false => (key, value),
        }
    };
    members.into_iter().map(shown).collect()
}

fn split<'a>(body: &'a [u8], places: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = places
        .iter()
        .map(|place| place.index(body.len() + 1))
        .collect();
    places.extend([0, body.len()]);
    places.sort();
    places
        .windows(2)
        .map(|pair| &body[pair[0]..pair[1]])
        .collect()
}

proptest! {
    #[test]
    fn any_split_gives_the_same_output_or_the_same_fault(
        body in any_body(),
        edit in edit(),
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let whole = rewrite(edit, &body);
        for kernel in kernels() {
            let bytewise: Vec<&[u8]> = body.chunks(1).collect();
            prop_assert_eq!(&rewrite_chunks(edit, kernel, &bytewise), &whole);
            prop_assert_eq!(&rewrite_chunks(edit, kernel, &split(&body, &places)), &whole);
        }
    }

    #[test]
    fn set_puts_one_member_in_front_and_keeps_the_others_as_they_were(
        body in object(),
        tier in prop::sample::select(Tier::ALL.to_vec()),
    ) {
        let (output, _) = rewrite(Edit::Set(tier), body.as_bytes()).unwrap();
        let mut expected = members(body.as_bytes());
        expected.retain(|(key, _)| !is_tier(key));
        expected.insert(0, ("service_tier".into(), format!("\"{}\"", tier.as_str())));
        prop_assert_eq!(members(&output), expected);
        prop_assert_eq!(observed_tier(&output), Some(tier.as_str()));
    }

    #[test]
    fn remove_leaves_none_and_keeps_the_others_as_they_were(body in object()) {
        let (output, _) = rewrite(REMOVE, body.as_bytes()).unwrap();
        let mut expected = members(body.as_bytes());
        expected.retain(|(key, _)| !is_tier(key));
        prop_assert_eq!(members(&output), expected);
    }

    #[test]
    fn no_byte_moves_and_none_turns_into_anything_but_a_space(body in object()) {
        let (output, _) = rewrite(SET, body.as_bytes()).unwrap();
        let behind = output.strip_prefix(br#"{"service_tier":"priority""#).unwrap();
        let behind = behind.strip_prefix(b",").unwrap_or(behind);
        let origin = &body.as_bytes()[body.len() - behind.len()..];
        for (new, old) in behind.iter().zip(origin) {
            prop_assert!(new == old || *new == b' ');
        }
    }

    #[test]
    fn what_comes_out_is_what_a_parser_would_make_of_it(
        body in chat_body(),
        edits in edits(),
        is_message in any::<bool>(),
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let (output, requested) = edited(edits, is_message, &[body.as_bytes()]).unwrap();
        let (expected, should_request) = expected(&body, edits, is_message);
        let found = members(output.trim_start_matches('\u{feff}').as_bytes());
        prop_assert_eq!(comparable(found), comparable(expected), "{} became {}", body, output);
        prop_assert_eq!(requested, should_request);
        let pieces = split(body.as_bytes(), &places);
        prop_assert_eq!(edited(edits, is_message, &pieces), Ok((output.clone(), requested)));
        let bytewise: Vec<&[u8]> = body.as_bytes().chunks(1).collect();
        prop_assert_eq!(edited(edits, is_message, &bytewise), Ok((output.clone(), requested)));
        let again = edited(edits, is_message, &[output.as_bytes()]);
        prop_assert_eq!(again, Ok((output.clone(), false)));
        match edits.tier {
            Edit::Set(tier) => prop_assert_eq!(observed_tier(output.as_bytes()), Some(tier.as_str())),
            Edit::Remove if is_message => prop_assert!(has_no_tier(output.as_bytes(), DEPTH, true)),
            Edit::Remove | Edit::Keep => {}
        }
    }

    #[test]
    fn without_an_edit_the_bytes_are_those_that_came(body in chat_body(), is_message in any::<bool>()) {
        let kept = edited(Edits::default(), is_message, &[body.as_bytes()]).unwrap();
        prop_assert_eq!(kept, (body, false));
    }

    #[test]
    fn a_second_pass_changes_nothing(body in object(), edit in edit()) {
        let (once, _) = rewrite(edit, body.as_bytes()).unwrap();
        let (twice, _) = rewrite(edit, &once).unwrap();
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn accepts_what_another_parser_accepts_as_an_object(body in any_body()) {
        prop_assume!(depth(&body) <= DEPTH);
        prop_assert_eq!(rewrite(SET, &body).is_ok(), is_object(&body));
    }

    #[test]
    fn a_fault_of_encoding_lies_where_the_standard_library_finds_it(body in any_body()) {
        if let Err(BodyFault::InvalidUtf8 { at }) = rewrite(SET, &body) {
            let error = std::str::from_utf8(&body).unwrap_err();
            prop_assert_eq!(at, error.valid_up_to() as u64);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..300), edit in edit()) {
        let _ = rewrite(edit, &body);
    }

    #[test]
    fn the_observer_sees_the_facts_that_the_rewriter_sees(
        body in any_body(),
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        for kernel in kernels() {
            let mut rewriter = Rewriter::with_kernel(DEPTH, 0, kernel);
            let mut observer = Observer::with_kernel(kernel);
            split(&body, &places).iter().for_each(|chunk| observer.feed(chunk));
            // Of a body that is refused it may see more.
            if rewriter.push(&body).is_ok() {
                prop_assert_eq!(rewriter.facts(), &observer.finish());
            }
        }
    }

    #[test]
    fn the_facts_are_those_of_another_parser(body in object()) {
        let facts = facts(&body);
        let members = members(body.as_bytes());
        let last = |name: &str| members.iter().rfind(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let text = |raw: &str| serde_json::from_str::<String>(raw).ok();
        if let Some(raw) = last("model") && let Some(model) = text(raw) && model.len() <= 256 {
            prop_assert_eq!(facts.model.as_ref(), Some(&model));
        }
        prop_assert_eq!(facts.stream, last("stream").and_then(|raw| raw.parse().ok()));
        let types = members.iter().filter(|(key, _)| key.eq_ignore_ascii_case("type")).count();
        prop_assert_eq!(facts.several_types, types > 1);
        let tiers = members.iter().filter(|(key, _)| is_tier(key)).count();
        prop_assert_eq!(facts.named_tier().is_some(), tiers > 0);
    }
}

#[test]
fn the_member_goes_in_front_of_the_others() {
    assert_eq!(set(r#"{"a":1}"#), r#"{"service_tier":"priority","a":1}"#);
    assert_eq!(
        set(" \n{ \"a\" : 1 } "),
        r#"{"service_tier":"priority", "a" : 1 } "#
    );
}

#[test]
fn a_byte_order_mark_is_taken_off_with_what_stands_before_the_brace() {
    for tier in Tier::ALL {
        let body = "\u{feff} {\"a\":1}";
        let output = edited(Edits::tier(Edit::Set(tier)), false, &[body.as_bytes()]).unwrap();
        let expected = format!(r#"{{"service_tier":"{}","a":1}}"#, tier.as_str());
        assert_eq!(output.0, expected);
    }
    assert_eq!(remove("\u{feff}{}"), "{}");
    let kept = edited(Edits::default(), false, &["\u{feff}{}".as_bytes()]);
    assert_eq!(kept, Ok(("\u{feff}{}".to_owned(), false)));
    assert_eq!(
        fault("\u{feff}\u{feff}{}".as_bytes()),
        BodyFault::InvalidJson { at: 3 }
    );
    assert_eq!(
        fault("\u{feff}{]".as_bytes()),
        BodyFault::InvalidJson { at: 4 }
    );
    assert_eq!(fault(b"\xef\xbb"), BodyFault::InvalidUtf8 { at: 0 });
    assert_eq!(fault(b"\xef\xbb{}"), BodyFault::InvalidUtf8 { at: 0 });
    assert_eq!(fault("\u{feff}[]".as_bytes()), BodyFault::NotAnObject);
}

#[test]
fn a_chat_stream_is_made_to_ask_for_usage_where_it_does_not() {
    for (body, expected) in [
        (
            r#" {"stream":true,"m":1}"#,
            r#"{"stream_options":{"include_usage":true},"stream":true,"m":1}"#,
        ),
        (
            r#"{"stream":true,"stream_options":{"include_usage":false},"m":1}"#,
            r#"{"stream":true,"stream_options":{"include_usage":true },"m":1}"#,
        ),
        (
            r#" {"stream":true,"stream_options": { "x" : 1 } }"#,
            r#" {"stream":true,"stream_options": { "include_usage":true,"x" : 1 } }"#,
        ),
        (
            r#"{"stream_options":{ },"stream":true}"#,
            r#"{"stream_options":{ "include_usage":true},"stream":true}"#,
        ),
        (
            r#"{"stream_options":null,"stream":true}"#,
            r#"{"stream_options":{"include_usage":true},"stream":true}"#,
        ),
        (
            r#"{"stream_options":{"include_usage":null},"stream":true}"#,
            r#"{"stream_options":{"include_usage":true},"stream":true}"#,
        ),
    ] {
        assert_eq!(
            with_usage(Edit::Keep, body),
            (expected.to_owned(), true),
            "{body}"
        );
        let (forced, requested) = with_usage(SET, body);
        assert!(
            requested && members(forced.as_bytes()).len() == members(expected.as_bytes()).len() + 1
        );
    }
}

#[test]
fn a_body_that_asks_for_usage_or_streams_nothing_stays() {
    for body in [
        r#" {"stream":true,"stream_options":{"include_usage":true}}"#,
        r#"{"stream":false}"#,
        r#"{"stream":"true"}"#,
        r#"{"stream_options":{}}"#,
        r#"{"stream":true,"stream_options":[1]}"#,
        r#"{"stream":true,"stream_options":"x"}"#,
        r#"{"stream":true,"stream_options":{"include_usage":0}}"#,
        r#"{"stream":true,"stream_options":{},"stream_options":{}}"#,
        r#"{"stream":true,"Stream_options":{}}"#,
        r#"{"stream":true,"stream":true}"#,
    ] {
        assert_eq!(
            with_usage(Edit::Keep, body),
            (body.to_owned(), false),
            "{body}"
        );
    }
}

#[test]
fn a_body_with_two_readings_of_what_it_streams_is_known() {
    let is_unclear = |body: &str| {
        let mut rewriter = Rewriter::new(64, 0);
        rewriter.push(body.as_bytes()).unwrap();
        rewriter.finish(Edits::default()).unwrap().usage_is_unclear
    };
    for body in [
        r#"{"stream":true,"Stream_Options":{}}"#,
        r#"{"stream":true,"stream_options":{},"stream_options":{}}"#,
        r#"{"stream":true,"stream_options":{"include_usage":true,"include_usage":false}}"#,
        r#"{"stream":true,"stream_options":{"Include_Usage":true}}"#,
        r#"{"stream":false,"stream":true}"#,
        r#"{"stream":true,"Stream":false}"#,
        r#"{"\u017ftream":true}"#,
        r#"{"stream":1}"#,
        r#"{"stream":"true","stream_options":{}}"#,
        r#"{"stream":true,"stream_options":{"include_usage":0}}"#,
        r#"{"stream":true,"stream_options":{"include_usage":"false"}}"#,
        r#"{"stream":true,"stream_options":[]}"#,
        r#"{"stream":true,"stream_options":false}"#,
    ] {
        assert!(is_unclear(body), "{body}");
    }
    for body in [
        r#"{"stream":true,"stream_options":{"include_usage":false,"x":{"include_usage":1}}}"#,
        r#"{"stream":true,"n":{"stream":false}}"#,
        r#"{"Stream":false,"stream":null}"#,
        r#"{"stream_options":{},"Stream_Options":{}}"#,
        r#"{"stream":true,"stream_options":null}"#,
        r#"{"stream":false,"stream_options":0}"#,
    ] {
        assert!(!is_unclear(body), "{body}");
    }
}

#[test]
fn fast_speed_goes_where_fast_mode_is_forbidden() {
    let edits = Edits {
        remove_fast_speed: true,
        ..Edits::tier(REMOVE)
    };
    let removed = |body: &str| edited(edits, false, &[body.as_bytes()]).unwrap().0;
    assert_eq!(removed(r#"{"speed":"fast","a":1}"#), r#"{"a":1}"#);
    assert_eq!(
        removed(r#"{"service_tier":1,"Speed":" FAST ","a":1}"#),
        r#"{"a":1}"#
    );
    assert_eq!(
        removed(r#"{"speed":"standard","speed":"fast"}"#),
        r#"{"speed":"standard"               }"#
    );
    assert_eq!(removed(r#"{"speed":"fast"}"#), "{}");
    assert!(facts(r#"{"speed":"fast"}"#).fast_speed);
    assert!(!facts(r#"{"speed":"fast","speed":"standard"}"#).fast_speed);
}

#[test]
fn the_tier_within_a_response_of_a_message_is_set_or_goes_too() {
    let body = r#"{"type":"response.create","response":{"a":1,"service_tier":"flex","b":2,"Service_Tier":0}}"#;
    assert_eq!(
        message(SET, body),
        r#"{"service_tier":"priority","type":"response.create","response":{"a":1,"service_tier":"priority","b":2                 }}"#
    );
    assert_eq!(
        message(REMOVE, body),
        r#"{"type":"response.create","response":{"a":1                      ,"b":2                 }}"#
    );
    assert_eq!(
        message(REMOVE, r#"{"response":{"service_tier":0,"b":2}}"#),
        r#"{"response":{                 "b":2}}"#
    );
    assert_eq!(
        message(SET, r#"{"response":{"service_tier":0}}"#),
        r#"{"service_tier":"priority","response":{"service_tier":"priority"}}"#
    );
    // What is no message has no such object.
    assert_eq!(remove(body), body);
}

#[test]
fn an_empty_object_gets_the_member_and_no_comma() {
    assert_eq!(set("{}"), r#"{"service_tier":"priority"}"#);
    assert_eq!(set(" { \n } "), "{\"service_tier\":\"priority\" \n } ");
}

#[test]
fn an_old_member_goes_with_one_comma_wherever_it_stands() {
    assert_eq!(
        set(r#"{"service_tier":"flex"}"#),
        r#"{"service_tier":"priority"}"#
    );
    assert_eq!(
        set(r#"{"service_tier":"flex","a":1}"#),
        r#"{"service_tier":"priority","a":1}"#
    );
    assert_eq!(
        set(r#"{"a":1,"service_tier":0}"#),
        r#"{"service_tier":"priority","a":1                 }"#
    );
    assert_eq!(
        set(r#"{"a":1,"service_tier":0,"b":2,"service_tier":0,"service_tier":0}"#),
        r#"{"service_tier":"priority","a":1                 ,"b":2                                  }"#
    );
}

#[test]
fn every_spelling_that_some_reader_takes_for_the_name_goes() {
    let all_escaped: String = "service_tier"
        .bytes()
        .map(|b| format!("\\u{b:04x}"))
        .collect();
    for key in [
        "Service_Tier",
        "SERVICE_TIER",
        "\u{17f}ervice_tier",
        "\\u017Fervice_tier",
    ] {
        assert_eq!(
            set(&format!(r#"{{"{key}":1}}"#)),
            r#"{"service_tier":"priority"}"#,
            "{key}"
        );
    }
    assert_eq!(
        set(&format!(r#"{{"{all_escaped}":1}}"#)),
        r#"{"service_tier":"priority"}"#
    );
}

#[test]
fn other_keys_stay() {
    for key in [
        "service_tier\\u0000",
        "service_tier\\/",
        "service-tier",
        "service_tıer",
        "x",
    ] {
        let body = format!(r#"{{"{key}":1}}"#);
        assert_eq!(
            set(&body),
            format!(r#"{{"service_tier":"priority",{}"#, &body[1..])
        );
    }
}

#[test]
fn nested_members_and_texts_stay() {
    let body =
        r#"{"m":{"service_tier":"x"},"l":[{"service_tier":"x"}],"s":"\",\"service_tier\":\"x"}"#;
    assert_eq!(
        set(body),
        format!(r#"{{"service_tier":"priority",{}"#, &body[1..])
    );
    assert_eq!(remove(body), body);
}

#[test]
fn remove_leaves_the_others() {
    assert_eq!(remove(r#"{"service_tier":"flex"}"#), "{}");
    assert_eq!(remove(r#"{"service_tier":"flex","a":1}"#), r#"{"a":1}"#);
    assert_eq!(
        remove(r#"{"a":1,"Service_Tier":0,"b":2}"#),
        r#"{"a":1                 ,"b":2}"#
    );
}

#[test]
fn lone_surrogates_and_numbers_stay_as_they_are_spelled() {
    let body = r#"{"a":"\ud800","\udfff":[-0.0,1e400,123456789012345678901234567890,1.10]}"#;
    assert_eq!(
        set(body),
        format!(r#"{{"service_tier":"priority",{}"#, &body[1..])
    );
}

#[test]
fn a_million_duplicates_are_no_more_work_than_their_bytes() {
    let body = format!(
        "{{{}\"a\":1{}}}",
        r#""service_tier":1,"#.repeat(500_000),
        r#","service_tier":1"#.repeat(500_000)
    );
    let output = set(&body);
    assert!(output.starts_with(r#"{"service_tier":"priority","a":1   "#));
    assert_eq!(output.len(), 26 + 1 + 5 + 17 * 500_000 + 1);
}

#[test]
fn the_top_level_must_be_an_object() {
    for body in ["[", "[1", "\"a\"", "1", "-", "true", "nul", " \n[]"] {
        assert_eq!(fault(body.as_bytes()), BodyFault::NotAnObject, "{body}");
    }
    for (body, at) in [
        ("", 0),
        (" \n", 2),
        ("\u{c}{}", 0),
        ("}", 0),
        ("N", 0),
        ("'a'", 0),
    ] {
        assert_eq!(
            fault(body.as_bytes()),
            BodyFault::InvalidJson { at },
            "{body:?}"
        );
    }
}

#[test]
fn what_the_grammar_does_not_allow_is_refused_where_it_stands() {
    for (body, at) in [
        (r#"{"a":1,}"#, 7),
        (r#"{"a":1]"#, 6),
        (r#"{"a" 1}"#, 5),
        (r#"{"a":NaN}"#, 5),
        (r#"{"a":nulL}"#, 8),
        (r#"{"a":01}"#, 6),
        (r#"{"a":1.}"#, 7),
        (r#"{"a":-}"#, 6),
        (r#"{"a":1e+}"#, 8),
        (r#"{"a":1.e1}"#, 7),
        (r#"{"a":1e1.0}"#, 8),
        (r#"{"a":-01}"#, 7),
        (r#"{"a":+1}"#, 5),
        (r#"{"a":.5}"#, 5),
        (r#"{"a":"\x"}"#, 7),
        (r#"{"a":"\u12g4"}"#, 10),
        (r#"{"a":"\u123g"}"#, 11),
        (r#"{"a":"\u123"}"#, 11),
        (r#"{"\u123g":1}"#, 7),
        ("{\"a\":\"\t\"}", 6),
        ("{\"a\":\"\u{0}\"}", 6),
        (r#"{"a":1} x"#, 8),
        ("{}\0", 2),
        ("{}\n{}", 3),
        (r#"{/*c*/"a":1}"#, 1),
        (r#"{a:1}"#, 1),
        (r#"{"a":1"#, 6),
        (r#"{"a":"b"#, 7),
        (r#"{"a":[1,]}"#, 8),
        (r#"{"a":{}"#, 7),
        ("{\"é\":1,é}", 8),
    ] {
        assert_eq!(
            fault(body.as_bytes()),
            BodyFault::InvalidJson { at },
            "{body}"
        );
    }
}

#[test]
fn what_is_not_utf_8_is_refused_where_it_begins() {
    for body in [
        &b"{\"a\":\"\xff\"}"[..],
        b"{\"a\":\"\xc0\xaf\"}",
        b"{\"a\":\"\xe0\x80\xaf\"}",
        b"{\"a\":\"\xed\xa0\x80\"}",
        b"{\"a\":\"\xf4\x90\x80\x80\"}",
        b"{\"a\":\"\xe2\x84\"}",
        b"{\"a\":\"\xe2\x84",
    ] {
        assert_eq!(fault(body), BodyFault::InvalidUtf8 { at: 6 }, "{body:?}");
    }
}

#[test]
fn the_first_fault_in_the_bytes_is_the_one_that_is_told() {
    assert_eq!(fault(b"{,\xff"), BodyFault::InvalidJson { at: 1 });
    assert_eq!(fault(b"{\xff,"), BodyFault::InvalidUtf8 { at: 1 });
    assert_eq!(fault(b"{\xc3\xa9,"), BodyFault::InvalidJson { at: 1 });
    assert_eq!(
        fault(format!("{{\"a\":{}x", "[".repeat(DEPTH - 1)).as_bytes()),
        BodyFault::InvalidJson { at: 104 }
    );
    assert_eq!(
        fault(format!("{{\"a\":{}x", "[".repeat(DEPTH)).as_bytes()),
        BodyFault::TooDeep
    );
}

#[test]
fn the_limit_of_depth_counts_the_top_level() {
    let nested = |depth: usize| {
        format!(
            "{{\"a\":{}1{}}}",
            "[".repeat(depth - 1),
            "]".repeat(depth - 1)
        )
    };
    assert!(rewrite(SET, nested(DEPTH).as_bytes()).is_ok());
    assert_eq!(fault(nested(DEPTH + 1).as_bytes()), BodyFault::TooDeep);
}

#[test]
fn a_fault_is_told_again() {
    let mut rewriter = Rewriter::new(DEPTH, 0);
    assert_eq!(rewriter.push(b"{]"), Err(BodyFault::InvalidJson { at: 1 }));
    assert_eq!(rewriter.push(b"}"), Err(BodyFault::InvalidJson { at: 1 }));
    assert_eq!(
        rewriter.finish(Edits::default()).unwrap_err(),
        BodyFault::InvalidJson { at: 1 }
    );
}

#[test]
fn the_tier_of_the_client_is_the_dearest_that_any_reader_may_find() {
    assert_eq!(client_tier(r#"{"service_tier":" Flex "}"#), "flex");
    assert_eq!(
        client_tier(r#"{"service_tier":"auto","service_tier":"flex","Service_Tier":"x"}"#),
        "auto"
    );
    for (body, asked) in [
        (
            r#"{"service_tier":"priority","service_tier":"flex"}"#,
            Some("priority"),
        ),
        (
            r#"{"service_tier":"flex","SERVICE_TIER":"fast"}"#,
            Some("fast"),
        ),
        (
            r#"{"service_tier":"flex","Service_Tier":"flex"}"#,
            Some("flex"),
        ),
        (
            r#"{"service_tier":"default","Service_Tier":"flex"}"#,
            Some("default"),
        ),
        (r#"{"service_tier":"flex","service_tier":null}"#, None),
        // A reader that knows the one spelling alone finds none.
        (r#"{"Service_Tier":"flex"}"#, None),
        (r#"{"Service_Tier":"scale"}"#, None),
        (r#"{"Service_Tier":"priority"}"#, Some("priority")),
        (r#"{"service_tier":null}"#, None),
    ] {
        assert_eq!(facts(body).asked_tier(), asked, "{body}");
    }
    assert_eq!(
        client_tier(r#"{"Service_Tier":"x","SERVICE_TIER":"y"}"#),
        "y"
    );
    assert_eq!(client_tier(r#"{"service\u005ftier":"fl\u0065x"}"#), "flex");
    assert_eq!(facts("{}").named_tier(), None);
}

#[test]
fn what_lenient_readers_take_is_observed_behind_what_is_no_json() {
    let deep = [&b"["[..]; 600].concat();
    let deep = [&deep[..], &[&b"]"[..]; 600].concat()].concat();
    for odd in [
        &b"NaN"[..],
        b"-Infinity",
        b"\"a\tb\"",
        b"\"\xff\"",
        b"\"\\q\"",
        &deep,
    ] {
        let body = [br#"{"x":"#, odd, br#","service_tier":"priority"}"#].concat();
        assert!(rewrite(SET, &body).is_err());
        let mut observer = Observer::new();
        observer.feed(&body);
        assert_eq!(observer.finish().asked_tier(), Some("priority"));
    }
}

#[test]
fn a_tier_that_is_no_string_is_told_by_its_type() {
    for (value, told) in [
        (r#"{"tier":"flex","service_tier":"x"}"#, "<object>"),
        ("[1]", "<array>"),
        ("-1", "<number>"),
        ("true", "<bool>"),
        ("null", "<null>"),
    ] {
        assert_eq!(client_tier(&format!(r#"{{"service_tier":{value}}}"#)), told);
    }
}

#[test]
fn long_values_are_cut_between_characters() {
    let tier = client_tier(&format!(r#"{{"service_tier":"{}"}}"#, "é".repeat(50_000)));
    assert_eq!(tier, "é".repeat(32));
    let tier = client_tier(&format!(r#"{{"service_tier":"x{}"}}"#, "é".repeat(50_000)));
    assert_eq!(tier, format!("x{}", "é".repeat(31)));
    let model = facts(&format!(r#"{{"model":"{}"}}"#, "\\u0061".repeat(50_000))).model;
    assert_eq!(model, Some("a".repeat(256)));
    let facts = facts(&format!(
        r#"{{"model":"{0}","type":"{0}"}}"#,
        "m".repeat(300)
    ));
    assert_eq!(facts.model, Some("m".repeat(256)));
    assert_eq!(facts.kind, Some("m".repeat(64)));
}

#[test]
fn a_tier_behind_more_white_space_than_is_looked_at_is_unknown() {
    for spaces in [10, 1529, 5000] {
        let body = format!(r#"{{"service_tier":"{}priority"}}"#, " ".repeat(spaces));
        let asked = facts(&body).asked_tier().map(str::to_owned);
        let expected = if spaces == 10 {
            "priority"
        } else {
            "<unknown>"
        };
        assert_eq!(asked.as_deref(), Some(expected), "{spaces}");
    }
}

#[test]
fn the_other_facts_are_those_of_the_top_level() {
    let facts = facts(
        r#"{"TYPE":"response.\u0063reate","model":"gpt","stream":true,"x":{"model":"y","type":"z"}}"#,
    );
    assert_eq!(facts.kind.as_deref(), Some("response.create"));
    assert_eq!(facts.model.as_deref(), Some("gpt"));
    assert_eq!(facts.stream, Some(true));
    assert!(!facts.several_types);
}

#[test]
fn two_members_that_may_be_read_as_the_type_are_noticed() {
    assert!(facts(r#"{"type":"response.create","Type":"x"}"#).several_types);
    assert!(facts(r#"{"type":1,"t\u0079pe":"x"}"#).several_types);
}

#[test]
fn the_tier_is_read_back_only_from_the_member_in_front() {
    assert_eq!(
        observed_tier(br#"{"service_tier":"priority","a":1}"#),
        Some("priority")
    );
    assert_eq!(
        observed_tier(br#"{"service_tier":"priority"}"#),
        Some("priority")
    );
    assert_eq!(observed_tier(br#"{"a":1,"service_tier":"priority"}"#), None);
    assert_eq!(observed_tier(br#"{"service_tier":"flex"}"#), Some("flex"));
    assert_eq!(observed_tier(br#"{"service_tier":"Flex"}"#), None);
    assert_eq!(observed_tier(br#"{"service_tier":"priority""#), None);
}

#[test]
fn a_body_of_unknown_length_takes_at_most_twice_what_arrived() {
    let mut rewriter = Rewriter::new(DEPTH, 0);
    rewriter.push(b"{\"a\":\"").unwrap();
    for _ in 0..40 {
        rewriter.push(&[b'a'; 100_000]).unwrap();
        assert!(rewriter.memory() <= 2 * rewriter.len() + 80);
    }
}

#[test]
fn a_body_of_announced_length_takes_what_arrived() {
    let mut rewriter = Rewriter::new(DEPTH, 3_000_006);
    rewriter.push(b"{\"a\":\"").unwrap();
    for _ in 0..30 {
        assert_eq!(rewriter.memory(), rewriter.len());
        rewriter.push(&[b'a'; 100_000]).unwrap();
    }
    assert_eq!(rewriter.len(), 3_000_006);
    assert_eq!(rewriter.memory(), 3_000_006);
}

/// A `response` member means something in a message of a WebSocket only; over HTTP it is the client's, and stays.
#[test]
fn an_inner_tier_counts_in_messages_only() {
    let body = br#"{"model":"m","response":{"service_tier":"flex"}}"#;
    assert!(has_no_tier(body, DEPTH, false) && !has_no_tier(body, DEPTH, true));
}
