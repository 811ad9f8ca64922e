//! What the headers of a request say of its key and of fast mode, held against a reading of them as text: the same key or
//! the same refusal, and a policy lets in those it lists and no other.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use http::{HeaderMap, HeaderValue, Method};
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};
use tiergate_fuzz::api_key::{Credential, NoKey};
use tiergate_fuzz::error::Cause;
use tiergate_fuzz::policy::{FAST_MODE_BETA, Head, Policy, asks_for_fast_mode};
use tiergate_fuzz::sample_config;

const POLICY: &str =
    "version: 1\ngroups: {a: {platform: other, upstream: one}}\nkeys: {k-1: a, k-2: a}\n";

/// The headers by the first byte of their line.
const NAMES: [(u8, &str); 3] = [
    (b'a', "authorization"),
    (b'x', "x-api-key"),
    (b'b', "anthropic-beta"),
];

static LISTED: LazyLock<Policy> = LazyLock::new(|| {
    let loaded = Policy::parse(
        Path::new("policy.yaml"),
        POLICY.as_bytes(),
        &sample_config(),
    );
    loaded.expect("it has no mistakes").0
});

fuzz_target!(|input: &[u8]| {
    let headers = headers(input);
    let expected = expected_key(&headers);
    let found = Credential::of(&headers);
    assert_eq!(
        found.map(|credential| credential.digest),
        expected.clone().map(|key| digest(&key))
    );
    assert_eq!(asks_for_fast_mode(&headers), expects_fast_mode(&headers));
    let decided = LISTED.decide(&Head {
        method: &Method::POST,
        path: b"/v1/responses",
        headers: &headers,
    });
    let is_listed = expected.is_ok_and(|key| key == "k-1" || key == "k-2");
    assert_eq!(decided.is_ok(), is_listed);
    if let Err(denied) = decided {
        let causes = [
            Cause::MissingApiKey,
            Cause::ConflictingApiKeys,
            Cause::InvalidApiKey,
        ];
        assert!(causes.contains(&denied.cause));
    }
});

/// One for each line whose first byte names one, as far as they can stand in a request.
fn headers(input: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in input.split(|&byte| byte == b'\n') {
        let Some((first, value)) = line.split_first() else {
            continue;
        };
        let name = NAMES.iter().find(|(byte, _)| byte == first);
        if let (Some((_, name)), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
            headers.append(*name, value);
        }
    }
    headers
}

fn digest(key: &str) -> [u8; 32] {
    let bytes: Vec<u8> = key.chars().map(|byte| byte as u8).collect();
    Sha256::digest(bytes).into()
}

/// Bytes as the code points of the same number.
fn texts(headers: &HeaderMap, name: &str) -> Vec<String> {
    let lines = headers.get_all(name).iter();
    lines
        .map(|line| line.as_bytes().iter().map(|&byte| byte as char).collect())
        .collect()
}

fn expected_key(headers: &HeaderMap) -> Result<String, NoKey> {
    const WHITE: [char; 2] = [' ', '\t'];
    let mut keys = Vec::new();
    for line in texts(headers, "authorization") {
        if let Some((scheme, key)) = line.trim_matches(WHITE).split_once(WHITE)
            && scheme.to_ascii_lowercase() == "bearer"
        {
            keys.push(key.to_owned());
        }
    }
    keys.extend(texts(headers, "x-api-key"));
    let mut keys: Vec<&str> = keys.iter().map(|key| key.trim_matches(WHITE)).collect();
    keys.retain(|key| !key.is_empty());
    keys.dedup();
    match keys[..] {
        [] => Err(NoKey::Missing),
        [key] => Ok(key.to_owned()),
        _ => Err(NoKey::Conflicting),
    }
}

fn expects_fast_mode(headers: &HeaderMap) -> bool {
    let tokens = texts(headers, "anthropic-beta").join(",");
    tokens
        .split(',')
        .any(|token| token.trim_matches([' ', '\t']) == FAST_MODE_BETA)
}
