//! Bodies: good ones that hide a tier in every way known, and bad ones that a careless reader might take for good.

use std::io::Write;

use super::chance::Chance;

/// Members that name a tier to some reader.
const TIERS: [&str; 16] = [
    r#""service_tier":"flex""#,
    r#""service_tier" : "DEFAULT""#,
    r#""service_tier":null"#,
    r#""service_tier":{"service_tier":"flex"}"#,
    r#""service_tier":["flex"]"#,
    r#""service_tier":-1.50e3"#,
    r#""service_tier":"priority""#,
    r#""service_tier":"fl\u0065x""#,
    r#""service\u005ftier":"flex""#,
    r#""\u0073\u0065\u0072\u0076\u0069\u0063\u0065\u005F\u0074\u0069\u0065\u0072":"flex""#,
    r#""Service_Tier":"flex""#,
    r#""SERVICE_TIER":true"#,
    "\"\u{17f}ervice_tier\":\"flex\"",
    r#""\u017fervice_tier":"flex""#,
    r#""service_tier":"  Flex ""#,
    "\"service_tier\"\t:\r\n \"\\\"flex\"",
];

/// Members that ask for fast mode as Anthropic's API has it, or only look like it.
const SPEEDS: [&str; 4] = [
    r#""speed":"fast""#,
    r#""Speed":" FAST""#,
    r#""speed":"slow""#,
    r#""spe\u0065d" : "f\u0061st""#,
];

/// Members that some reader takes for the model.
const MODELS: [&str; 4] = [
    r#""Model":"m-0""#,
    r#""MODEL":null"#,
    r#""\u004dodel":["m-1"]"#,
    r#""mod\u0065L":{}"#,
];

/// Members that only look like it, and other things that are to arrive as they were sent.
const OTHERS: [&str; 14] = [
    r#""service_tier\u0000":"flex""#,
    r#""service_tier ":"flex""#,
    r#""metadata":{"service_tier":"flex","a":[{"service_tier":"flex"}]}"#,
    r#""note":"\"service_tier\":\"flex\",""#,
    r#""note":"}\\""#,
    r#""lone":"\ud800\udfff\ud800""#,
    r#""big":123456789012345678901234567890"#,
    r#""far":1e400"#,
    r#""zero":-0.0"#,
    r#""":[]"#,
    "\"text\":\"\u{e9}\u{4e16}\u{1f600}\"",
    r#""deep":[[[[[[[[[[{"a":[]}]]]]]]]]]]"#,
    r#""tier":"flex""#,
    " \"spaced\" :\n{ }\t",
];

/// What long texts are made of, as it stands in JSON.
const PATTERN: &str = r#"ab\n \u0041\"}],\"service_tier\":1,"#;

const SPACES: [&str; 6] = ["", "", "", " ", "\n", "\r\n\t "];

/// A body that names this model. `first` are members that it has in any case.
pub fn good(chance: &mut Chance, model: &str, first: &[&str], most: usize) -> Vec<u8> {
    let mut members: Vec<String> = first.iter().map(|member| (*member).to_owned()).collect();
    members.push(format!(r#""model":"{model}""#));
    for _ in 0..chance.below(4) {
        members.push(chance.pick(&TIERS).to_owned());
    }
    if chance.one_in(4) {
        members.push(chance.pick(&SPEEDS).to_owned());
    }
    if chance.one_in(8) {
        members.push(chance.pick(&MODELS).to_owned());
    }
    for _ in 0..chance.below(5) {
        members.push(chance.pick(&OTHERS).to_owned());
    }
    if chance.one_in(4) {
        members.push(filler(chance, most));
    }
    chance.shuffle(&mut members);
    let mut body = chance.pick(&SPACES).to_string() + "{";
    for (at, member) in members.iter().enumerate() {
        body.push_str(if at == 0 { "" } else { "," });
        body.push_str(chance.pick(&SPACES));
        body.push_str(member);
        body.push_str(chance.pick(&SPACES));
    }
    (body + "}" + chance.pick(&SPACES)).into_bytes()
}

/// A long text, often about as long as a buffer on the way.
fn filler(chance: &mut Chance, most: usize) -> String {
    let length = match chance.below(4) {
        0 => chance.between(65_300, 65_700),
        1 => chance.between(130_000, 132_000),
        2 => chance.between(1, 5_000),
        _ => chance.between(1, most),
    };
    let length = length.min(most);
    let text = PATTERN.repeat(length / PATTERN.len()) + &"x".repeat(length % PATTERN.len());
    format!(r#""filler":"{text}""#)
}

/// A body that no forced group may send.
pub fn bad(chance: &mut Chance, model: &str) -> Vec<u8> {
    let good = good(chance, model, &[], 2_000);
    let text = String::from_utf8_lossy(&good).trim().to_owned();
    let with = |before: &[u8], after: &[u8]| [before, text.as_bytes(), after].concat();
    match chance.below(12) {
        0 => text.as_bytes()[..chance.below(text.len())].to_vec(),
        1 => with(b"", b"}"),
        2 => with(b"", br#"{"service_tier":"flex"}"#),
        3 => with(b"\xef\xbb\xbf", b""),
        4 => with(b"[", b"]"),
        5 => with(b"", b"\0"),
        6 => with(b"", b"// tier"),
        7 => text.replace(':', ":\u{1}").into_bytes(),
        8 => [&text.as_bytes()[..text.len() - 1], b",\"a\":\"\xff\"}"].concat(),
        9 => [&text.as_bytes()[..text.len() - 1], b",}"].concat(),
        10 => with(b"{\"a\":", b""),
        _ => ["{\"a\":", &"[".repeat(600), &"]".repeat(600), "}"]
            .concat()
            .into_bytes(),
    }
}

pub fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).expect("a Vec takes all");
    encoder.finish().expect("a Vec takes all")
}

pub fn zstd(plain: &[u8]) -> Vec<u8> {
    zstd::encode_all(plain, 1).expect("memory is enough")
}
