//! The elements of an array within a document, which the scanner of the document passes over.

use super::paths::{Paths, Shape};
use super::{DEPTH_LIMIT, Usage, add_model};
use crate::codec::json::{Scanner, Strings};

/// The first element of a chat document's `choices`.
#[derive(Debug)]
pub(super) struct Choice {
    opening: BeforeArray,
    scanner: Scanner,
    paths: Paths,
}

/// The elements of `usage.iterations` of a message: what each attempt and each compaction used
/// (<https://platform.claude.com/docs/en/build-with-claude/compaction>).
#[derive(Debug)]
pub(super) struct Iterations {
    opening: BeforeArray,
    scanner: Scanner,
    paths: Paths,
    /// How many brackets are open within the array.
    depth: u64,
    strings: Strings,
    ended: bool,
    /// Attempts at the message itself.
    attempts: Usage,
    fell_back: bool,
    /// Compaction, advisors and what else there may be.
    beside: Usage,
    /// The models that these name, and those that answered for one that declined.
    models: String,
}

/// What stands between a key and the array that is its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BeforeArray {
    /// In the key, which has no colon. It may have begun in an earlier piece.
    Key,
    Bracket,
    Passed,
    /// The value is no array.
    NoArray,
}

impl BeforeArray {
    /// What of these bytes is behind the bracket.
    fn skip<'a>(&mut self, mut bytes: &'a [u8]) -> &'a [u8] {
        while let [first, rest @ ..] = bytes {
            *self = match (*self, first) {
                (BeforeArray::Passed, _) => return bytes,
                (BeforeArray::NoArray, _) => return &[],
                (BeforeArray::Key, b':') => BeforeArray::Bracket,
                (BeforeArray::Key, _) => BeforeArray::Key,
                (BeforeArray::Bracket, b'[') => BeforeArray::Passed,
                (BeforeArray::Bracket, b' ' | b'\t' | b'\n' | b'\r') => BeforeArray::Bracket,
                (BeforeArray::Bracket, _) => BeforeArray::NoArray,
            };
            bytes = rest;
        }
        bytes
    }
}

impl Choice {
    pub fn new() -> Self {
        Self {
            opening: BeforeArray::Key,
            scanner: Scanner::lenient(DEPTH_LIMIT),
            paths: Paths::new(Shape::Choice),
        }
    }

    pub fn reset(&mut self) {
        if self.opening != BeforeArray::Key {
            self.opening = BeforeArray::Key;
            self.scanner = Scanner::lenient(DEPTH_LIMIT);
            self.paths.reset();
        }
    }

    /// Reads on from the key `choices`. What is behind the first element is a fault to its scanner, and ends it.
    pub fn feed(&mut self, bytes: &[u8]) {
        let elements = self.opening.skip(bytes);
        let _ = self.scanner.feed(elements, &mut self.paths);
    }

    /// Whether it names the reason for which it finished.
    pub fn is_finished(&self) -> bool {
        self.paths.facts.stopped
    }

    /// Its place among the choices; the first where it does not say.
    pub fn index(&self) -> u64 {
        self.paths.facts.index.unwrap_or(0)
    }

    pub fn usage(&self) -> Usage {
        self.paths.usage()
    }
}

impl Iterations {
    fn new() -> Self {
        Self {
            opening: BeforeArray::Key,
            scanner: Scanner::lenient(DEPTH_LIMIT),
            paths: Paths::new(Shape::Iteration),
            depth: 0,
            strings: Strings::default(),
            ended: false,
            attempts: Usage::default(),
            fell_back: false,
            beside: Usage::default(),
            models: String::new(),
        }
    }

    /// Reads on from the key `iterations`. That it is valid JSON is for the document's own scanner to say.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut rest = self.opening.skip(bytes);
        while !self.ended && !rest.is_empty() {
            if rest[0] == b',' && self.depth == 0 && !self.strings.is_within() {
                // What stood before it was no object, or has ended.
                self.restart();
                rest = &rest[1..];
                continue;
            }
            let (length, is_end) = self.rest_of_element(rest);
            let _ = self.scanner.feed(&rest[..length], &mut self.paths);
            if is_end {
                self.end_element();
            }
            rest = &rest[length..];
        }
    }

    pub fn have_counts(&self) -> bool {
        self.sum().has_counts()
    }

    /// What was used for the message itself: nothing of what was used beside it alone.
    pub fn of_message(&self) -> Usage {
        let mut usage = self.sum();
        usage.join(self.beside, u64::saturating_sub);
        usage
    }

    /// What was used beside it.
    pub fn beside(&self) -> Usage {
        self.beside
    }

    /// Without the attempts of a model that declined, after which another one answered: those are not charged for.
    fn sum(&self) -> Usage {
        self.attempts.plus(self.beside)
    }

    /// The models of what is in the sum beside the message's own attempts, as far as they are named: an advisor has another one
    /// (<https://platform.claude.com/docs/en/agents-and-tools/tool-use/advisor-tool>).
    pub fn models(&self) -> &str {
        &self.models
    }

    /// How many of these bytes belong to the element under way, or stand before the next, and whether it ends with them.
    fn rest_of_element(&mut self, bytes: &[u8]) -> (usize, bool) {
        for (at, byte) in bytes.iter().enumerate() {
            if self.strings.take(*byte) {
                continue;
            }
            match byte {
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth == 1 => {
                    self.depth = 0;
                    return (at + 1, true);
                }
                b'}' | b']' if self.depth == 0 => {
                    self.ended = true;
                    return (at, false);
                }
                b'}' | b']' => self.depth -= 1,
                b',' if self.depth == 0 => return (at, false),
                _ => {}
            }
        }
        (bytes.len(), false)
    }

    fn end_element(&mut self) {
        if self.scanner.finish().is_ok() {
            let used = self.paths.usage();
            let kind = self.paths.facts.kind.as_str();
            if kind != "message" && used.has_counts() {
                add_model(&mut self.models, &self.paths.facts.model);
            }
            match kind {
                "fallback_message" => {
                    if !std::mem::replace(&mut self.fell_back, true) {
                        self.attempts = Usage::default();
                    }
                    self.attempts = self.attempts.plus(used);
                }
                "message" => self.attempts = self.attempts.plus(used),
                _ => self.beside = self.beside.plus(used),
            }
        }
        self.restart();
    }

    fn restart(&mut self) {
        self.scanner = Scanner::lenient(DEPTH_LIMIT);
        self.paths.reset();
    }
}

impl Default for Iterations {
    fn default() -> Self {
        Self::new()
    }
}
