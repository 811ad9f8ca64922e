//! What the build is made of, against `deny.toml`: licences, bans and sources. It needs no network and no tool, so that
//! nothing slips in between two runs of `make audit`.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

const DENY: &str = include_str!("../../deny.toml");
const LOCK: &str = include_str!("../../Cargo.lock");

/// The text of a section of `deny.toml`, without its comments.
fn section(name: &str) -> String {
    let (_, text) = DENY
        .split_once(&format!("\n{name}\n"))
        .unwrap_or_else(|| panic!("no section `{name}`"));
    let lines = text.lines().take_while(|line| !line.starts_with('['));
    let lines = lines.filter(|line| !line.trim_start().starts_with('#'));
    lines.map(|line| format!("{line}\n")).collect()
}

/// What stands between quotes in the list, or the value, of a key.
fn strings(section: &str, key: &str) -> Vec<String> {
    let (_, text) = section
        .split_once(&format!("{key} = "))
        .unwrap_or_else(|| panic!("no key `{key}`"));
    let end = if text.starts_with('[') { "]" } else { "\n" };
    let text = text.split(end).next().unwrap();
    let quoted = text.split('"').skip(1).step_by(2);
    quoted.map(str::to_owned).collect()
}

/// Everything that a build for this machine is made of, tests included.
fn packages() -> Vec<Value> {
    let version = Command::new("rustc").arg("-vV").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .expect("the compiler's host");
    let told = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", host])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success(), "{error}");
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    told["packages"].as_array().unwrap().clone()
}

/// Whether an SPDX expression can be met with these licences. Old manifests have a slash for `OR`.
fn is_met(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let met = any(&mut words, allowed);
    assert_eq!(words.next(), None, "the end of `{expression}`");
    met
}

type Words<'w> = std::iter::Peekable<std::str::SplitWhitespace<'w>>;

fn any(words: &mut Words, allowed: &BTreeSet<String>) -> bool {
    let mut met = all(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        met |= all(words, allowed);
    }
    met
}

fn all(words: &mut Words, allowed: &BTreeSet<String>) -> bool {
    let mut met = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Words, allowed: &BTreeSet<String>) -> bool {
    let word = words.next().expect("a licence");
    if word == "(" {
        let met = any(words, allowed);
        assert_eq!(words.next(), Some(")"));
        return met;
    }
    // An exception makes it another licence.
    let excepted = words.next_if_eq(&"WITH").and_then(|_| words.next());
    excepted.is_none() && allowed.contains(word)
}

#[test]
fn every_licence_is_one_that_is_allowed() {
    let allowed: BTreeSet<String> = strings(&section("[licenses]"), "allow")
        .into_iter()
        .collect();
    let exception = section("[[licenses.exceptions]]");
    let mut excepted = allowed.clone();
    excepted.extend(strings(&exception, "allow"));
    let names = strings(&exception, "crate");
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        let licence = package["license"].as_str().expect("a licence");
        let is_exception = names.iter().any(|other| other == name);
        let allowed = if is_exception { &excepted } else { &allowed };
        assert!(is_met(licence, allowed), "{name}: {licence}");
    }
}

#[test]
fn an_expression_is_read_as_it_is_meant() {
    let allowed = BTreeSet::from(["MIT", "ISC"].map(str::to_owned));
    for met in [
        "MIT",
        "GPL-3.0 OR MIT",
        "GPL-3.0/MIT",
        "(GPL-3.0 OR ISC) AND MIT",
    ] {
        assert!(is_met(met, &allowed), "{met}");
    }
    for unmet in ["GPL-3.0", "MIT AND GPL-3.0", "MIT WITH LLVM-exception"] {
        assert!(!is_met(unmet, &allowed), "{unmet}");
    }
}

#[test]
fn nothing_is_there_that_is_banned() {
    let banned = section("[bans]");
    let banned: Vec<String> = banned
        .split("crate = \"")
        .skip(1)
        .map(|rest| format!("\nname = \"{}\"\n", rest.split('"').next().unwrap()))
        .collect();
    assert!(banned.len() > 3, "{banned:?}");
    for name in banned {
        assert!(!LOCK.contains(&name), "{name}");
    }
}

/// Cargo takes a package only if it has the digest that stands here.
#[test]
fn everything_comes_from_the_registry_and_has_a_digest() {
    let sources = strings(&section("[sources]"), "allow-registry");
    let from: Vec<String> = sources
        .iter()
        .map(|source| format!("source = \"registry+{source}\"\nchecksum = \""))
        .collect();
    let mut own = Vec::new();
    for package in LOCK.split("[[package]]\n").skip(1) {
        if !package.contains("\nsource = ") {
            own.push(package.lines().next().unwrap());
            continue;
        }
        assert!(from.iter().any(|from| package.contains(from)), "{package}");
    }
    assert_eq!(own, ["name = \"tiergate\""]);
}
