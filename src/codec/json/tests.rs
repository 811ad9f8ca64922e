//! Documents and what the scanner says of them, however they are cut.

use super::*;

/// Enters the keys that begin with `e`, captures those that begin with `c`, and writes down what it is shown.
#[derive(Default)]
struct Recorder {
    events: Vec<String>,
}

impl Visitor for Recorder {
    fn key(&mut self, key: Key<'_>) -> Interest {
        let name = key.name.map(String::from_utf8_lossy);
        let shown = name.as_deref().unwrap_or("too long");
        self.events
            .push(format!("{} {shown} at {}", key.depth, key.start));
        match name.as_deref().and_then(|name| name.bytes().next()) {
            Some(b'e') => Interest::Enter,
            Some(b'c') => Interest::Capture,
            _ => Interest::Skip,
        }
    }

    fn value(&mut self, value: Value<'_>) {
        let raw = String::from_utf8_lossy(value.raw);
        let cut = if value.cut { " cut" } else { "" };
        let Value {
            kind, depth, end, ..
        } = value;
        self.events
            .push(format!("{depth} {kind:?} {raw}{cut} to {end}"));
    }

    fn comma(&mut self, at: u64) {
        self.events.push(format!("comma at {at}"));
    }
}

fn scan(pieces: &[&[u8]]) -> (Vec<String>, Result<(), Fault>) {
    let mut recorder = Recorder::default();
    let mut scanner = Scanner::new(100);
    let fed = pieces
        .iter()
        .try_for_each(|piece| scanner.feed(piece, &mut recorder));
    (recorder.events, fed.and_then(|()| scanner.finish()))
}

fn events(document: &str) -> Vec<String> {
    let (events, result) = scan(&[document.as_bytes()]);
    assert_eq!(result, Ok(()));
    events
}

#[test]
fn the_members_of_the_top_level_are_shown_with_their_places() {
    assert_eq!(
        events(r#"{ "a" : [1, {"x":2}] , "b":{"x":{}}}"#),
        [
            "1 a at 2",
            "1 Array  to 20",
            "comma at 21",
            "1 b at 23",
            "1 Object  to 35"
        ]
    );
}

#[test]
fn the_members_of_an_entered_object_are_shown_too() {
    assert_eq!(
        events(r#"{"e":{"s":{"c":1},"e":{"c":2}},"c":3}"#),
        [
            "1 e at 1",
            "2 s at 6",
            "2 Object  to 17",
            "comma at 17",
            "2 e at 18",
            "3 c at 23",
            "3 Number 2 to 28",
            "2 Object  to 29",
            "1 Object  to 30",
            "comma at 30",
            "1 c at 31",
            "1 Number 3 to 36"
        ]
    );
}

#[test]
fn a_member_is_shown_whatever_stands_before_it() {
    for value in [
        "{}",
        "[]",
        "[[]]",
        r#"{"x":{}}"#,
        r#""""#,
        r#""\u0041""#,
        "0",
        "-1.5e3",
        "true",
        "null",
    ] {
        let document = format!(r#"{{"s":{value},"c":1,"e":{{"s":{value} , "c":2}},"t": {value}}}"#);
        for split in 0..=document.len() {
            let (head, tail) = document.as_bytes().split_at(split);
            let (events, result) = scan(&[head, tail]);
            assert_eq!(result, Ok(()), "{document} at {split}");
            let keys = events.iter().filter(|event| event.contains(" at "));
            let keys: Vec<&str> = keys.map(|event| &event[..3]).collect();
            let shown = "1 s, com, 1 c, com, 1 e, 2 s, com, 2 c, com, 1 t";
            assert_eq!(keys.join(", "), shown, "{document} at {split}");
            let values = events.len() - keys.len();
            assert_eq!(values, 6, "{document} at {split}");
        }
    }
}

#[test]
fn what_is_no_object_is_not_entered() {
    assert_eq!(
        events(r#"{"e":[{"c":1}],"e":"x"}"#),
        [
            "1 e at 1",
            "1 Array  to 14",
            "comma at 14",
            "1 e at 15",
            "1 String x to 22"
        ]
    );
}

#[test]
fn a_captured_scalar_is_shown_as_it_is_spelled() {
    let values = events(r#"{"c1":"a\n\u00e9\"","c2":-1.50e+3,"c3":true,"c4":null,"c5":[1]}"#);
    let values: Vec<&String> = values
        .iter()
        .filter(|event| event.contains(" to "))
        .collect();
    assert_eq!(
        values,
        [
            r#"1 String a\n\u00e9\" to 19"#,
            "1 Number -1.50e+3 to 33",
            "1 Bool true to 43",
            "1 Null null to 53",
            "1 Array  to 62"
        ]
    );
}

#[test]
fn a_key_is_too_long_by_what_it_says_and_not_by_how_it_is_spelled() {
    let shown = |key: &str| events(&format!(r#"{{"{key}":0}}"#))[0].clone();
    assert_eq!(shown(&"k".repeat(64)), format!("1 {} at 1", "k".repeat(64)));
    assert_eq!(
        shown(&"\\u006b".repeat(64)),
        format!("1 {} at 1", "k".repeat(64))
    );
    assert_eq!(shown(&"k".repeat(65)), "1 too long at 1");
    assert_eq!(shown(&"\\u006b".repeat(65)), "1 too long at 1");
    assert_eq!(shown(&"k".repeat(100_000)), "1 too long at 1");
}

#[test]
fn a_captured_value_is_cut_at_its_limit() {
    let shown = |len: usize| events(&format!(r#"{{"c":"{}"}}"#, "v".repeat(len)))[1].clone();
    let whole = "v".repeat(CAPTURE_BYTES);
    assert_eq!(shown(CAPTURE_BYTES), format!("1 String {whole} to 1543"));
    assert_eq!(
        shown(CAPTURE_BYTES + 1),
        format!("1 String {whole} cut to 1544")
    );
}

#[test]
fn any_split_shows_the_same() {
    let long = "é".repeat(CAPTURE_BYTES);
    let document = format!(
        r#" {{"e":{{"c\u0065":"\ud83d\ude00é😀","\u0065":{{"c":[false,null]}}}} , "c":12.5E-7,"ſ":true,"c":"{long}"}} "#
    );
    let whole = scan(&[document.as_bytes()]);
    assert_eq!(whole.1, Ok(()));
    for size in 1..40 {
        let pieces: Vec<&[u8]> = document.as_bytes().chunks(size).collect();
        assert_eq!(scan(&pieces), whole);
    }
}

#[test]
fn any_value_may_be_a_document_and_shows_no_members() {
    for document in [
        "[{\"c\":1}]",
        "\"c\"",
        " -0.1e1",
        "0",
        "true ",
        "null",
        "[]",
        "{}",
    ] {
        assert_eq!(events(document), [""; 0], "{document}");
    }
    assert_eq!(
        scan(&[b"1", b"2", b"."]).1,
        Err(Fault::InvalidJson { at: 3 })
    );
}

#[test]
fn what_was_shown_before_a_fault_stays_true() {
    let (events, result) = scan(&[br#"{"c":1,"c":x"#]);
    assert_eq!(
        events,
        ["1 c at 1", "1 Number 1 to 6", "comma at 6", "1 c at 7"]
    );
    assert_eq!(result, Err(Fault::InvalidJson { at: 11 }));
}

#[test]
fn what_is_too_deep_ends_the_document_or_is_passed_over_by_a_lenient_scanner() {
    const LIMIT: usize = 3;
    let deep = r#"{"e":{"a":[1,{"x":"]}\\\"]"},[[{"y":NaN,}]]],"c":2},"c":3}"#;
    let shallow = r#"{"e":{"a":[1,{},[]],"c":2},"c":3}"#;
    let shown = |document: &str, scanner: Scanner, step: usize| {
        let (mut recorder, mut scanner) = (Recorder::default(), scanner);
        let mut pieces = document.as_bytes().chunks(step);
        let fed = pieces.try_for_each(|piece| scanner.feed(piece, &mut recorder));
        let texts = recorder.events.iter().map(|event| {
            let cut = event.rfind(" at ").or(event.rfind(" to "));
            event[..cut.unwrap()].to_owned()
        });
        (
            texts.collect::<Vec<_>>(),
            fed.and_then(|()| scanner.finish()),
        )
    };
    for step in 1..=deep.len() {
        let strict = shown(deep, Scanner::new(LIMIT), step);
        assert_eq!(strict.1, Err(Fault::TooDeep), "{step}");
        let lenient = shown(deep, Scanner::lenient(LIMIT), step);
        assert_eq!(
            lenient,
            shown(shallow, Scanner::new(LIMIT + 1), step),
            "{step}"
        );
        let cut = &deep[..deep.find('y').unwrap()];
        assert!(
            shown(cut, Scanner::lenient(LIMIT), step).1.is_err(),
            "{step}"
        );
    }
    // Also where what is too deep is shown.
    for shown_value in [r#"{"c":[[]]}"#, r#"{"e":{"x":{}}}"#] {
        let lenient = shown(shown_value, Scanner::lenient(1), 1);
        assert_eq!(lenient.1, Ok(()), "{shown_value}");
        assert_eq!(lenient.0.len(), 2, "{shown_value}");
    }
}
