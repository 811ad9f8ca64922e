//! What is wrong in a file, and where. It reads nothing.
//!
//! Diagnostics never quote what could be an API key: unknown words are shown only where they are near to an expected one, or
//! plainly a word.

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::config::variable::{NOT_PUT_IN, has_variable};

/// Diagnostics of one file that are kept; whoever has more needs no list.
const MAX_MISTAKES: usize = 1000;
/// Edits between a word and the one that was meant.
const MAX_DISTANCE: usize = 3;
const MAX_NAME_BYTES: usize = 64;

/// A line and a column, both counted from 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// Number of the line, from 1.
    pub line: u32,
    /// Number of the character within the line, from 1.
    pub column: u32,
}

/// One thing that is wrong in a file. Displayed as `path:line:column: message`, with `warning: ` before the message of a
/// warning. It never holds a part of an API key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file in which it was found.
    pub path: PathBuf,
    /// Number of the line, from 1.
    pub line: u32,
    /// Number of the character within the line, from 1.
    pub column: u32,
    /// Whether the file can be used all the same.
    pub severity: Severity,
    /// What is wrong, in words for the operator.
    pub message: String,
}

/// Whether a file can be used in spite of what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The file is used, and does not do what somebody may think.
    Warning,
    /// The file is not used.
    Error,
}

/// The mistakes of one file, or the warnings about it, collected while it is read.
pub struct Diagnostics {
    path: PathBuf,
    severity: Severity,
    found: RefCell<Vec<Diagnostic>>,
}

impl Location {
    /// The first character of a file.
    pub const START: Location = Location { line: 1, column: 1 };
}

impl Diagnostic {
    /// A mistake at a place of a file.
    pub fn new(path: &Path, location: Location, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            path: path.to_owned(),
            line: location.line,
            column: location.column,
            severity: Severity::Error,
            message: message.into(),
        }
    }

    /// The same as a warning.
    pub fn warning(path: &Path, location: Location, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            severity: Severity::Warning,
            ..Diagnostic::new(path, location, message)
        }
    }

    /// Says it in the process's log, whose lines have a level in the place of the word.
    pub fn log(&self) {
        let (path, line, column) = (self.path.display(), self.line, self.column);
        let level = match self.severity {
            Severity::Warning => log::Level::Warn,
            Severity::Error => log::Level::Error,
        };
        log::log!(level, "{path}:{line}:{column}: {}", self.message);
    }

    /// The mistake of a file that cannot be read.
    pub fn unreadable(path: &Path, reason: &dyn fmt::Display) -> Diagnostic {
        Diagnostic::new(path, Location::START, format!("cannot read: {reason}"))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, line, column) = (self.path.display(), self.line, self.column);
        let word = match self.severity {
            Severity::Warning => "warning: ",
            Severity::Error => "",
        };
        write!(f, "{path}:{line}:{column}: {word}{}", self.message)
    }
}

impl std::error::Error for Diagnostic {}

impl Diagnostics {
    /// An empty collection of mistakes.
    pub fn new(path: &Path) -> Diagnostics {
        Diagnostics::of(path, Severity::Error)
    }

    /// A collection of warnings.
    pub fn warnings(path: &Path) -> Diagnostics {
        Diagnostics::of(path, Severity::Warning)
    }

    fn of(path: &Path, severity: Severity) -> Diagnostics {
        Diagnostics {
            path: path.to_owned(),
            severity,
            found: RefCell::default(),
        }
    }

    /// Adds a mistake or warning; beyond a fixed number of them it is dropped.
    pub fn add(&self, location: Location, message: impl Into<String>) {
        self.add_with(location, || message.into());
    }

    /// For a message that costs something to find: of very many mistakes most are not told.
    pub fn add_with(&self, location: Location, message: impl FnOnce() -> String) {
        let mut found = self.found.borrow_mut();
        if found.len() < MAX_MISTAKES {
            found.push(Diagnostic {
                severity: self.severity,
                ..Diagnostic::new(&self.path, location, message())
            });
        }
    }

    /// The value of what could be read; adds why where it could not.
    pub fn note<T>(&self, location: Location, read: Result<T, impl Into<String>>) -> Option<T> {
        read.map_err(|reason| self.add(location, reason)).ok()
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.found.borrow().is_empty()
    }

    /// In the order of the file.
    pub fn into_vec(self) -> Vec<Diagnostic> {
        let mut found = self.found.into_inner();
        found.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
        found
    }
}

/// The known name that somebody who wrote `text` most likely meant, in whatever case.
pub fn nearest<'k>(text: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let lower = text.to_lowercase();
    known
        .filter(|name| name.len().abs_diff(text.len()) <= 4 * MAX_DISTANCE)
        .map(|name| {
            let distance = strsim::damerau_levenshtein(&lower, &name.to_lowercase());
            (distance, name)
        })
        .filter(|(distance, name)| *distance <= bearable_distance(name))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// `text` for the end of a phrase, in backticks, if it is plainly a word and cannot be an API key in the wrong place.
pub fn shown(text: &str) -> String {
    let is_word = text.len() <= 24
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || b"_-".contains(&byte));
    if is_word && !text.starts_with("sk-") && !text.is_empty() {
        format!(" `{text}`")
    } else {
        " (not shown: it could be an API key)".to_owned()
    }
}

/// The expected words, for the end of a phrase.
pub fn any_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    let one_of = if quoted.len() > 1 { "one of " } else { "" };
    format!("{one_of}{}", quoted.join(", "))
}

/// In edits. An API key is further than this from every word.
fn bearable_distance(name: &str) -> usize {
    (name.chars().count() * 2 / 5).clamp(1, MAX_DISTANCE)
}

/// Names of upstreams, groups and keys go into log lines and metrics.
pub(crate) fn check_name(name: &str, location: Location, diagnostics: &Diagnostics) {
    if let Some(fault) = name_fault(name) {
        diagnostics.add(location, fault);
    }
}

/// Why a text is no name.
pub(crate) fn name_fault(name: &str) -> Option<&'static str> {
    let fault = match name {
        "" => "the name is empty",
        name if name.len() > MAX_NAME_BYTES => "the name is longer than 64 bytes",
        name if name.chars().any(char::is_control) => "the name has a control character",
        name if name.chars().any(is_invisible) => "the name has an invisible character",
        name if name.trim() != name => "the name begins or ends with white space",
        name if has_variable(name) => NOT_PUT_IN,
        _ => return None,
    };
    Some(fault)
}

/// Characters without a shape of their own, that join others or turn their direction (Unicode, general category Cf): with them
/// two names look the same. Those that scripts and emoji are spelled with (U+200C and U+200D) are none.
fn is_invisible(sign: char) -> bool {
    matches!(
        sign,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_miss_is_found_and_a_far_one_is_not() {
        let known = ["keys", "groups", "force_fast_mode", "plain"];
        let near = |text| nearest(text, known.into_iter());
        assert_eq!(near("keyz"), Some("keys"));
        assert_eq!(near("plane"), Some("plain"));
        assert_eq!(near("Groups"), Some("groups"));
        assert_eq!(near("PLAIN"), Some("plain"));
        assert_eq!(near("froce_fast_mod"), Some("force_fast_mode"));
        for text in ["", "kz", "sk-plain-8f31c0", "version", "keys-and-more"] {
            assert_eq!(near(text), None, "{text}");
        }
    }

    #[test]
    fn only_words_are_shown() {
        assert_eq!(shown("no-body_x"), " `no-body_x`");
        for text in [
            "",
            "sk-abc",
            "abc1",
            "Abc",
            "a b",
            "abcdefghijklmnopqrstuvwxyz",
        ] {
            assert!(!shown(text).contains('`'), "{text}");
        }
    }

    #[test]
    fn mistakes_are_bounded_and_in_the_order_of_the_file() {
        let diagnostics = Diagnostics::new(Path::new("a/b.yaml"));
        for line in (1..=2000).rev() {
            diagnostics.add(Location { line, column: 2 }, "x");
        }
        let told = diagnostics.into_vec();
        assert_eq!(
            (told.len(), told[0].to_string()),
            (MAX_MISTAKES, "a/b.yaml:1001:2: x".to_owned())
        );
    }
}
