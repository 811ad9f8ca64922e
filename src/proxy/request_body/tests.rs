//! What is told of bodies that pass as they come.

use super::*;

use std::io::Write;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use http::header::{CONTENT_TYPE, HeaderName};

const TIERED: &str = r#"{"model":"m","service_tier":"priority"}"#;
const UNTIERED: &str = r#"{"model":"m","input":"service_tier"}"#;
const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";

const PRIORITY: Option<&str> = Some("priority");
const UNKNOWN: Option<&str> = Some("<unknown>");

/// The tier that the line has of a body that came with these headers, in pieces of any size, and its model.
fn told(coding: &str, kind: &str, body: &[u8]) -> (Option<String>, Option<String>) {
    told_within(&Limits::default(), coding, kind, body)
}

fn told_within(
    limits: &Limits,
    coding: &str,
    kind: &str,
    body: &[u8],
) -> (Option<String>, Option<String>) {
    let value = |(name, value): (HeaderName, &str)| (name, value.parse().unwrap());
    let headers = [(CONTENT_ENCODING, coding), (CONTENT_TYPE, kind)];
    let headers: HeaderMap = headers.into_iter().map(value).collect();
    let limits = Arc::new(limits.clone());
    let read = |step| {
        let memory = BodyMemory::new(limits.buffered);
        let mut streamed = StreamedBody::open(&headers, None, &limits, &memory).unwrap();
        for piece in body.chunks(step) {
            streamed.pass(piece).unwrap();
        }
        let facts = streamed.finish(true);
        (facts.asked_tier().map(str::to_owned), facts.model)
    };
    let whole = read(usize::MAX);
    for step in [1, 7] {
        assert_eq!(read(step), whole, "{coding:?} {kind} by {step}");
    }
    whole
}

fn tier(coding: &str, kind: &str, body: &[u8]) -> Option<String> {
    told(coding, kind, body).0
}

fn gzip(plain: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn zlib(plain: &str) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn raw_deflate(plain: &str) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn utf_16(plain: &str) -> Vec<u8> {
    plain.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[test]
fn a_tier_that_any_reader_of_the_coding_finds_is_told() {
    for (text, expected) in [(TIERED, PRIORITY), (UNTIERED, None)] {
        let (first, second) = text.split_at(20);
        let bodies = [
            ("gzip", gzip(text)),
            ("gzip", [gzip(first), gzip(second)].concat()),
            ("gzip", [gzip(text), gzip("")].concat()),
            ("gzip", [&gzip(text)[..], &[0; 8]].concat()),
            ("identity, gzip", gzip(text)),
            ("deflate", zlib(text)),
            ("deflate", raw_deflate(text)),
            ("zstd", zstd::encode_all(text.as_bytes(), 3).unwrap()),
        ];
        for (coding, body) in bodies {
            let expected = (expected.map(str::to_owned), Some("m".to_owned()));
            assert_eq!(told(coding, JSON, &body), expected, "{coding} {body:?}");
        }
    }
}

#[test]
fn a_tier_is_told_where_the_coding_is_not_looked_at() {
    for coding in [
        "",
        "identity",
        "none",
        "UTF-8",
        "gzip",
        "zstd",
        "br",
        "deflate",
        "gzip, gzip",
    ] {
        let read = tier(coding, JSON, TIERED.as_bytes());
        assert_eq!(read.as_deref(), PRIORITY, "{coding}");
        assert_eq!(tier(coding, JSON, UNTIERED.as_bytes()), None, "{coding}");
    }
}

#[test]
fn a_tier_is_told_in_every_encoding_that_readers_of_json_know() {
    for (text, expected) in [(TIERED, PRIORITY), (UNTIERED, None)] {
        let marked = format!("\u{feff}{text}");
        let utf_32 = |text: &str| -> Vec<u8> {
            let units = text.chars().map(|letter| u32::from(letter).to_be_bytes());
            units.flatten().collect()
        };
        for body in [utf_16(text), utf_16(&marked), utf_32(text), utf_32(&marked)] {
            for kind in [JSON, "application/json; charset=utf-16"] {
                assert_eq!(tier("", kind, &body).as_deref(), expected, "{body:?}");
            }
        }
        let coded = zstd::encode_all(&utf_16(text)[..], 3).unwrap();
        assert_eq!(tier("zstd", JSON, &coded).as_deref(), expected);
    }
}

#[test]
fn what_cannot_be_read_is_not_known() {
    let gzipped = gzip(UNTIERED);
    let mut broken = gzipped.clone();
    broken[12] ^= 0xff;
    let bodies = [
        ("gzip", gzip("")),
        ("gzip", broken),
        ("gzip, gzip", gzipped.clone()),
        ("compress", gzipped.clone()),
        ("none", gzipped.clone()),
        ("zstd", gzipped.clone()),
    ];
    for (coding, body) in bodies {
        assert_eq!(tier(coding, JSON, &body).as_deref(), UNKNOWN, "{coding}");
    }
    let padded = format!(r#"{{"service_tier":"{}priority"}}"#, " ".repeat(2000));
    for coding in ["identity", "gzip"] {
        let body = match coding {
            "gzip" => gzip(&padded),
            _ => padded.clone().into_bytes(),
        };
        assert_eq!(tier(coding, JSON, &body).as_deref(), UNKNOWN, "{coding}");
    }
    let cramped = Limits {
        buffered: 1000,
        ..Limits::default()
    };
    let read = told_within(&cramped, "gzip", JSON, &gzipped).0;
    assert_eq!(read.as_deref(), UNKNOWN);
    let short = Limits {
        decoded_body: 20,
        ..Limits::default()
    };
    let read = told_within(&short, "gzip", JSON, &gzipped).0;
    assert_eq!(read.as_deref(), UNKNOWN);
}

#[test]
fn what_servers_may_read_by_its_type_is_not_known() {
    let other = "application/json; charset=utf-7";
    let parts = "multipart/form-data; boundary=b";
    for (kind, body, expected) in [
        (FORM, "model=m&input=x", None),
        (FORM, "model=m&service_tier=priority", UNKNOWN),
        (FORM, "service%5Ftier=priority;model=m", UNKNOWN),
        (FORM, "model=m&a=&service_tier=flex&=", UNKNOWN),
        (FORM, "model=service_tier&a=b", None),
        (FORM, UNTIERED, None),
        (FORM, TIERED, PRIORITY),
        (FORM, r#"{"a":"&service_tier=priority&"}"#, UNKNOWN),
        (parts, UNTIERED, UNKNOWN),
        (parts, TIERED, PRIORITY),
        (other, UNTIERED, UNKNOWN),
        (other, r#"{"service_tier":"flex"}"#, UNKNOWN),
        (other, TIERED, PRIORITY),
        ("text/plain; charset=ISO-8859-1", UNTIERED, None),
        (JSON, "", None),
        (parts, "", None),
    ] {
        let read = tier("", kind, body.as_bytes());
        assert_eq!(read.as_deref(), expected, "{kind} {body}");
    }
}

#[test]
fn only_where_a_tier_belongs_can_one_be_missed() {
    let headers = HeaderMap::from_iter([(CONTENT_ENCODING, "compress".parse().unwrap())]);
    let limits = Arc::new(Limits::default());
    let memory = BodyMemory::new(limits.buffered);
    for (takes_tier, expected) in [(true, UNKNOWN), (false, None)] {
        let mut streamed = StreamedBody::open(&headers, None, &limits, &memory).unwrap();
        streamed.pass(b"\x1f\x9d").unwrap();
        assert_eq!(streamed.finish(takes_tier).asked_tier(), expected);
    }
}
