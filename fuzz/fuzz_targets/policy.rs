//! The loader of policies, which keeps mistakes and goes on, held against plain derived types that stop at the first one: what
//! is taken means what they read, and of what is not taken every mistake has a place in the file.

#![no_main]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use serde::Deserialize;
use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};
use tiergate_fuzz::codec::error::Cause;
use tiergate_fuzz::config::{Config, Diagnostic};
use tiergate_fuzz::policy::endpoint::Endpoint;
use tiergate_fuzz::policy::{Credential, CredentialHeader, ForcedTier, Group, Policy};
use tiergate_fuzz::sample_config;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AsWritten {
    version: u64,
    default_group: Option<String>,
    groups: BTreeMap<String, GroupAsWritten>,
    keys: Option<BTreeMap<String, KeyAsWritten>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
// All of them are named, so that others are refused.
#[allow(dead_code)]
struct GroupAsWritten {
    platform: String,
    upstream: String,
    #[serde(alias = "force_openai_fast")]
    force_fast_mode: Option<bool>,
    force_tier: Option<String>,
    except_models: Option<Vec<String>>,
    only_models: Option<Vec<String>>,
    on_tier_refused: Option<String>,
    fast_mode_beta: Option<Signal>,
    budget: Option<IgnoredAny>,
    batches: Option<String>,
    max_in_flight: Option<u64>,
    max_in_flight_per_key: Option<u64>,
    enabled: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Signal {
    Header(bool),
    Word(String),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum KeyAsWritten {
    Group(String),
    Long(LongKey),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LongKey {
    group: String,
    name: Option<String>,
    enabled: Option<bool>,
}

static CONFIG: LazyLock<Config> = LazyLock::new(sample_config);

fuzz_target!(|file: &[u8]| {
    match Policy::parse(Path::new("policy.yaml"), file, &CONFIG) {
        Ok((policy, warnings)) => {
            check_places(file, &warnings);
            let file = str::from_utf8(file).expect("it was read");
            check_meaning(&policy, &serde_yaml::from_str(file).expect("it was taken"));
        }
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            check_places(file, &mistakes);
        }
    }
});

/// A place may lie one column behind the end of its line, and one line behind the last.
fn check_places(file: &[u8], told: &[Diagnostic]) {
    let file = String::from_utf8_lossy(file).replace("\r\n", "\n");
    let lines: Vec<&str> = file.split(['\r', '\n']).collect();
    for mistake in told {
        let line = lines.get(mistake.line as usize - 1);
        let line = line.unwrap_or_else(|| panic!("no line for {mistake}"));
        let behind = line.chars().count() + 1;
        assert!(
            (1..=behind).contains(&(mistake.column as usize)),
            "{mistake}"
        );
    }
}

fn check_meaning(policy: &Policy, written: &AsWritten) {
    assert_eq!(written.version, 1);
    assert_eq!(policy.groups().len(), written.groups.len());
    for group in policy.groups() {
        check_group(group, &written.groups[&*group.name]);
    }
    let default_group = policy.default_group().map(|group| &*group.name);
    assert_eq!(default_group, written.default_group.as_deref());
    let no_keys = BTreeMap::new();
    let keys = written.keys.as_ref().unwrap_or(&no_keys);
    assert_eq!(policy.key_count(), keys.len());
    for (key, meaning) in keys {
        check_key(policy, key, meaning);
    }
}

fn check_group(group: &Group, written: &GroupAsWritten) {
    assert_eq!(group.platform.as_str(), written.platform);
    assert_eq!(group.upstream.name, written.upstream);
    let fast = written.force_fast_mode.unwrap_or(false);
    let forced = written.force_tier.as_deref();
    let forced = forced.or(fast.then_some("priority"));
    assert_eq!(group.force.map(ForcedTier::as_str), forced);
    let signal = match &written.fast_mode_beta {
        None => "true".to_owned(),
        Some(Signal::Header(by_header)) => by_header.to_string(),
        Some(Signal::Word(word)) => word.clone(),
    };
    assert_eq!(group.fast_mode_beta.as_str(), signal);
    assert_eq!(
        group.batches_allowed,
        written.batches.as_deref() == Some("allow")
    );
    assert_eq!(group.max_in_flight, written.max_in_flight);
    assert_eq!(group.max_in_flight_per_key, written.max_in_flight_per_key);
    assert_eq!(group.enabled, written.enabled.unwrap_or(true));
}

fn check_key(policy: &Policy, key: &str, written: &KeyAsWritten) {
    let (group, name, enabled) = match written {
        KeyAsWritten::Group(group) => (group, None, true),
        KeyAsWritten::Long(key) => (&key.group, key.name.as_deref(), key.enabled.unwrap_or(true)),
    };
    let credential = Credential {
        digest: digest(key),
        header: CredentialHeader::XApiKey,
        has_others: false,
    };
    let (found, in_group, cause) = match policy.decide_turn(&credential, Endpoint::Other, &[]) {
        Ok(decision) => (decision.key, Some(decision.group), None),
        Err(denied) => (denied.key, denied.group, Some(denied.cause)),
    };
    let in_group = in_group.expect("the key is known");
    assert_eq!(*in_group.name, **group);
    let expected = match (enabled, in_group.enabled) {
        (false, _) => Some(Cause::KeyDisabled),
        (true, false) => Some(Cause::GroupDisabled),
        (true, true) => None,
    };
    assert_eq!(cause, expected);
    let found = found.expect("the key is known");
    match name {
        Some(name) => assert_eq!(*found, *name),
        None => assert!(found.starts_with("key-")),
    }
}

fn digest(key: &str) -> [u8; 32] {
    let Some(digits) = key.strip_prefix("sha256:") else {
        return Sha256::digest(key).into();
    };
    let byte = |at: usize| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16);
    std::array::from_fn(|at| byte(at).expect("it was taken"))
}
