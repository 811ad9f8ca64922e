//! The documentation against the program: the tables of `README.md` and `docs/` name every setting, field, code, metric, command and
//! target, and no other; YAML blocks pass `check`; the quick start does what it says; links lead somewhere.

mod files;
mod page;
mod reference;
mod walkthrough;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

/// Asserts that both have the same names.
#[track_caller]
fn assert_same(what: &str, documented: &BTreeSet<String>, known: &BTreeSet<String>) {
    let missing: Vec<_> = known.difference(documented).collect();
    let invented: Vec<_> = documented.difference(known).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "{what}: not documented: {missing:?}; not in the program: {invented:?}"
    );
}
