//! What the headers of a request say of its key and of fast mode, held against a reading of them as text: the same key or
//! the same refusal, and a policy lets in those it lists and no other.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use http::{HeaderMap, HeaderValue, Method};
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};
use tiergate_fuzz::codec::error::Cause;
use tiergate_fuzz::policy::api_key::{Credential, NoKey};
use tiergate_fuzz::policy::{FAST_MODE_BETA, Head, Policy, asks_for_fast_mode};
use tiergate_fuzz::sample_config;

const POLICY: &str =
    "version: 1\ngroups: {a: {platform: other, upstream: one}}\nkeys: {k-1: a, k-2: a}\n";

/// The headers by the first byte of their line.
const NAMES: [(u8, &str); 4] = [
    (b'a', "authorization"),
    (b'x', "x-api-key"),
    (b'k', "api-key"),
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

const LISTED_KEYS: [&str; 2] = ["k-1", "k-2"];

fuzz_target!(|input: &[u8]| {
    let headers = headers(input);
    let expected = expected_key(&headers);
    let is_listed = |found: &[u8; 32]| LISTED_KEYS.iter().any(|key| digest(key) == *found);
    let found = Credential::of(&headers, is_listed);
    let digests = found.as_ref().map(|credential| credential.digest);
    assert_eq!(
        digests.map_err(|(none, _)| *none),
        expected.clone().map(|key| digest(&key))
    );
    if let Ok(credential) = &found {
        check_what_goes_on(credential, &headers);
    }
    assert_eq!(asks_for_fast_mode(&headers), expects_fast_mode(&headers));
    let decided = LISTED.decide(&Head {
        method: &Method::POST,
        path: b"/v1/responses",
        query: b"",
        headers: &headers,
    });
    let is_listed = expected.is_ok_and(|key| LISTED_KEYS.contains(&&*key));
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

/// Of all keys only the one that decides.
fn check_what_goes_on(credential: &Credential, headers: &HeaderMap) {
    let mut left = headers.clone();
    if let Some((removed, (name, value))) = credential.without_others(headers) {
        removed.iter().for_each(|name| drop(left.remove(*name)));
        left.insert(name, value);
    }
    let keys = keys_in(&left);
    assert!(!keys.is_empty());
    assert!(keys.iter().all(|key| digest(key) == credential.digest));
}

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

/// All keys, in the order in which they are looked at.
fn keys_in(headers: &HeaderMap) -> Vec<String> {
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
    keys.extend(texts(headers, "api-key"));
    let keys = keys.iter().map(|key| key.trim_matches(WHITE).to_owned());
    keys.filter(|key| !key.is_empty()).collect()
}

fn expected_key(headers: &HeaderMap) -> Result<String, NoKey> {
    let mut keys = keys_in(headers);
    keys.sort_unstable();
    keys.dedup();
    let listed: Vec<&String> = keys
        .iter()
        .filter(|key| LISTED_KEYS.contains(&&***key))
        .collect();
    match (&keys[..], &listed[..]) {
        ([], _) => Err(NoKey::Missing),
        ([key], _) => Ok(key.clone()),
        (_, [key]) => Ok((*key).clone()),
        (_, []) => Err(NoKey::Unlisted),
        _ => Err(NoKey::Conflicting),
    }
}

fn expects_fast_mode(headers: &HeaderMap) -> bool {
    let tokens = texts(headers, "anthropic-beta").join(",");
    tokens
        .split(',')
        .any(|token| token.trim_matches([' ', '\t']) == FAST_MODE_BETA)
}
