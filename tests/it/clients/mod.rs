//! Real clients: what the Codex CLI and the SDKs of OpenAI and Anthropic send, captured and replayed byte for byte.
//!
//! `tests/fixtures/clients/` holds one HTTP request a file, `tests/fixtures/clients_websocket/` one session. Their keys
//! and hosts are dummies, their long texts are cut, and what was compressed is in the clear; all else is as the client
//! wrote it, the order and spelling of the headers too.

mod http;
mod websocket;

use std::fs;
use std::path::Path;

use serde::de::DeserializeOwned;

/// The key in the fixtures. Each test puts one of its own in its place.
const FIXTURE_KEY: &str = "sk-client";

/// The fixtures of a folder and the names of their files, in the order of the names.
fn fixtures<T: DeserializeOwned>(folder: &str) -> Vec<(String, T)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(folder);
    let mut found: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let fixture = serde_json::from_str(&fs::read_to_string(path).unwrap());
            let fixture = fixture.unwrap_or_else(|why| panic!("{name}: {why}"));
            (name, fixture)
        })
        .collect();
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    found
}

/// The members of a JSON object as they are spelled: those named `service_tier`, and the others in order.
fn split_tiers(body: &[u8]) -> (Vec<&[u8]>, Vec<&[u8]>) {
    let body = body.trim_ascii();
    let inner = body.strip_prefix(b"{").unwrap().strip_suffix(b"}").unwrap();
    members(inner)
        .into_iter()
        .filter(|member| !member.is_empty())
        .partition(|member| member.starts_with(br#""service_tier""#))
}

/// Splits at the commas that stand in no string and no bracket.
fn members(inner: &[u8]) -> Vec<&[u8]> {
    let (mut depth, mut in_string, mut escaped) = (0, false, false);
    inner
        .split(|byte| {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = in_string,
                b'"' => in_string = !in_string,
                _ if in_string => {}
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            *byte == b',' && depth == 0 && !in_string
        })
        .map(<[u8]>::trim_ascii)
        .collect()
}
