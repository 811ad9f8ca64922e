//! YAML files as values of Rust types, by serde. What the types are stands with each file: `config/file`,
//! `policy/file.rs`, `accounting/prices/file.rs`. Every error is told by its kind and place, never by the text of the
//! library, which may quote an API key.

use std::path::Path;

use serde::Deserialize;
use serde_yaml::budget::BudgetBreach;
use serde_yaml::{DuplicateKeyPolicy, Error, MergeKeyPolicy, Options};
use sha2::{Digest, Sha256};

use crate::config::diagnostic::{Diagnostic, Diagnostics, Location};
use crate::config::secret_file::{FileBytes, MAX_BYTES};

/// The deepest of our files has five levels.
const MAX_NESTING: usize = 32;

/// The bytes of a file.
///
/// # Errors
/// One that cannot be read, or is beyond all sense large, is a mistake at its first line.
pub(crate) fn read(path: &Path) -> Result<FileBytes, Diagnostic> {
    FileBytes::read(path).map_err(|error| Diagnostic::unreadable(path, &error))
}

/// The value of a file that holds one YAML document. `None` after a mistake of syntax, which ends the reading.
pub(crate) fn parse<'a, T: Deserialize<'a>>(
    bytes: &'a [u8],
    diagnostics: &Diagnostics,
) -> Option<T> {
    if bytes.len() > MAX_BYTES {
        diagnostics.add(Location::START, "the file is larger than 1 GiB");
        return None;
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| {
            let location = location_after(&bytes[..error.valid_up_to()]);
            diagnostics.add(location, "this byte is not UTF-8");
        })
        .ok()?;
    serde_yaml::from_str_with_options(text, options(bytes.len()))
        .map_err(|error| {
            let location = error.location().map_or(Location::START, location_of);
            diagnostics.add(location, message(&error));
        })
        .ok()
}

/// The revision of a file: `sha256:` and the first 12 hexadecimal digits of its digest.
pub(crate) fn revision(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(&Sha256::digest(bytes)[..6]))
}

/// What a line says is to be read on that line: a policy in which one line changes another by reference is one in which
/// somebody will overlook whom it forces. So there are no anchors, aliases, merge keys and tags. It also leaves no way to
/// make a small file large; the budgets of the library are therefore as large as the file.
fn options(length: usize) -> Options {
    let most = 4 * length + 64;
    serde_yaml::options! {
        budget: serde_yaml::budget! {
            max_reader_input_bytes: None,
            max_aliases: 0,
            max_anchors: 0,
            max_merge_keys: 0,
            max_depth: MAX_NESTING,
            flow_nesting_limit: MAX_NESTING,
            max_documents: 1,
            max_events: most,
            max_nodes: most,
            max_total_scalar_bytes: most,
        },
        // Every mapping is read by `config/field`, which says where the first one stands; what it might let by is refused by
        // the derived types.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::Error,
        alias_limits: serde_yaml::alias_limits! {
            max_total_replayed_events: 0,
            max_replay_stack_depth: 0,
            max_alias_expansions_per_anchor: 0,
        },
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}

/// A message of our own for each kind of error that the library tells.
fn message(error: &Error) -> String {
    match error {
        // The parser's own; the one that would quote a character of the file says less.
        Error::ExternalMessage { msg, .. } if !msg.starts_with("unexpected character") => {
            msg.clone()
        }
        Error::ExternalMessage { .. } => {
            "unexpected character; a value that begins with it needs quotes".to_owned()
        }
        Error::MultipleDocuments { .. } => {
            "a second document begins here; the file holds one".to_owned()
        }
        Error::DuplicateMappingKey { .. } => "duplicate key".to_owned(),
        Error::MergeKeyNotAllowed { .. } => {
            "merge keys are not accepted; write the members out".to_owned()
        }
        Error::UnsupportedTag { .. } => "tags are not accepted".to_owned(),
        Error::Budget { breach, .. } => over_budget(breach).to_owned(),
        Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. }
        | Error::AliasError { .. }
        | Error::UnknownAnchor { .. } => NO_ALIASES.to_owned(),
        Error::NullIntoString { .. } | Error::Unexpected { .. } => {
            "a key must be a string".to_owned()
        }
        Error::Eof { .. } => "the file ends too early".to_owned(),
        _ => "this is not understood".to_owned(),
    }
}

const NO_ALIASES: &str = "anchors and aliases are not accepted; write the value out";

fn over_budget(breach: &BudgetBreach) -> &'static str {
    match breach {
        BudgetBreach::Depth { .. } => "nested too deep",
        BudgetBreach::Documents { .. } => "a second document begins here; the file holds one",
        BudgetBreach::MergeKeys { .. } => "merge keys are not accepted; write the members out",
        BudgetBreach::Aliases { .. }
        | BudgetBreach::Anchors { .. }
        | BudgetBreach::AliasAnchorRatio { .. }
        | BudgetBreach::RecordedAnchorEvents { .. }
        | BudgetBreach::RecordedAnchorBytes { .. } => NO_ALIASES,
        _ => "the file is too large",
    }
}

/// The place that the library means.
pub(crate) fn location_of(location: serde_yaml::Location) -> Location {
    let narrow = |number: u64| u32::try_from(number.max(1)).unwrap_or(u32::MAX);
    Location {
        line: narrow(location.line()),
        column: narrow(location.column()),
    }
}

/// The place behind a text. Lines end by LF, CR or both, as the parser counts them.
fn location_after(text: &[u8]) -> Location {
    let is_break = |byte: &u8| matches!(byte, b'\n' | b'\r');
    let line_start = text.iter().rposition(is_break).map_or(0, |at| at + 1);
    let breaks = text.iter().filter(|byte| is_break(byte)).count();
    let pairs = text.windows(2).filter(|pair| pair == b"\r\n").count();
    let column = String::from_utf8_lossy(&text[line_start..]).chars().count() + 1;
    // Lines and columns of a file below `MAX_BYTES` fit; saturation is for the types only.
    let narrow = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Location {
        line: narrow(breaks - pairs + 1),
        column: narrow(column),
    }
}
