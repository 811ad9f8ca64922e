//! What one JSON document from an upstream says: a whole answer, an event of a stream, or a WebSocket message. What the
//! facts come to over a whole response is not known here.

use super::elements::{Choice, Iterations};
use super::paths::{Paths, ResponseFields, Shape};
use super::{DEPTH_LIMIT, Usage};
use crate::codec::json::Scanner;
use memchr::memchr;

/// How far into an event the end of its first member is looked for, in bytes.
const FIRST_MEMBER_BYTES: usize = 256;

/// What ends a stream of chat chunks, in the place of a document
/// (<https://platform.openai.com/docs/api-reference/chat-streaming>).
const DONE: &[u8] = b"[DONE]";

/// How many of a document's first bytes are kept: `DONE` and a little white space.
const OPENING_BYTES: usize = 8;

/// The reader of one document after the other.
#[derive(Debug)]
pub(super) struct Document {
    scanner: Scanner,
    paths: Paths,
    array: Array,
    /// How many bytes of the document were fed.
    length: u64,
    /// The first bytes of the document, to know `DONE` by.
    opening: [u8; OPENING_BYTES],
}

/// The array of the document whose elements have facts. The scanner shows no members within an array.
#[derive(Debug)]
enum Array {
    None,
    /// `choices` of a chat document.
    Choices(Box<Choice>),
    /// `iterations` of a message's usage; made when there are any.
    Iterations(Option<Box<Iterations>>),
}

impl Document {
    pub fn new(shape: Shape) -> Self {
        Self {
            scanner: Scanner::lenient(DEPTH_LIMIT),
            paths: Paths::new(shape),
            array: match shape {
                Shape::Chat => Array::Choices(Box::new(Choice::new())),
                Shape::Message | Shape::MessagesEvent => Array::Iterations(None),
                _ => Array::None,
            },
            length: 0,
            opening: [0; OPENING_BYTES],
        }
    }

    /// Reads the next piece of the document.
    pub fn feed(&mut self, piece: &[u8]) {
        let room = self.opening.iter_mut().skip(self.length as usize);
        room.zip(piece).for_each(|(kept, &byte)| *kept = byte);
        // Nearly all bytes of a stream are in events without facts, and those nearly always name their type first.
        let first = if self.paths.awaits_kind() {
            first_member(piece)
        } else {
            0
        };
        for part in [&piece[..first], &piece[first..]] {
            self.scan(part);
        }
    }

    /// The type that stands in the stream beside the document counts where the document names none.
    pub fn name_kind(&mut self, kind: &[u8]) {
        self.paths.name_kind(kind);
    }

    /// The facts so far; nothing but the type of an event that is known to have none.
    pub fn facts(&self) -> &ResponseFields {
        &self.paths.facts
    }

    /// The counts of the answer itself so far.
    pub fn usage(&self) -> Usage {
        self.paths.usage()
    }

    /// The output that a message tells, with its attempts or without.
    pub fn told_output(&self) -> Option<u64> {
        let attempts = self.iterations().map(Iterations::of_message);
        let attempts = attempts.and_then(|usage| usage.output_tokens);
        self.usage().output_tokens.max(attempts)
    }

    /// How much was fed, in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The index of a chat document's first choice and the counts that this tells of its own, if it does.
    pub fn choice(&self) -> Option<(u64, Usage)> {
        let Array::Choices(choice) = &self.array else {
            return None;
        };
        let usage = choice.usage();
        (usage != Usage::default()).then(|| (choice.index(), usage))
    }

    /// Whether there are tokens that have prices of their own beside those of `model`, which made the answer.
    pub fn mixes_prices(&self, model: &str) -> bool {
        let others = match &self.array {
            Array::Iterations(Some(iterations)) => iterations.models(),
            _ => "",
        };
        self.paths.mixes_prices() || !(others.is_empty() || others == model)
    }

    /// Whether it was cut within its usage: the counts that are still missing may be parts of others with a price of their own.
    pub fn ends_in_usage(&self) -> bool {
        self.paths.is_in_usage() && !self.is_whole()
    }

    /// The iterations of a message, where they have counts: the counts beside them leave out what compaction used.
    pub fn iterations(&self) -> Option<&Iterations> {
        match &self.array {
            Array::Iterations(Some(iterations)) if !self.paths.is_settled() => {
                Some(&**iterations).filter(|iterations| iterations.have_counts())
            }
            _ => None,
        }
    }

    /// Whether what was fed is one whole document.
    pub fn is_whole(&self) -> bool {
        self.paths.is_settled() || self.scanner.finish().is_ok()
    }

    /// Whether it ends within its object.
    pub fn is_cut(&self) -> bool {
        !self.paths.is_settled() && self.scanner.is_within()
    }

    /// Whether it is the `[DONE]` of a chat stream.
    pub fn is_done_mark(&self) -> bool {
        match self.opening.get(..self.length as usize) {
            Some(document) => document.trim_ascii() == DONE,
            None => false,
        }
    }

    /// Whether it is a chat chunk that names the reason for which its first choice finished.
    pub fn is_finished_choice(&self) -> bool {
        matches!(&self.array, Array::Choices(choice) if choice.is_finished())
    }

    /// Makes it ready for the next document of the same shape.
    pub fn reset(&mut self) {
        self.scanner = Scanner::lenient(DEPTH_LIMIT);
        self.paths.reset();
        match &mut self.array {
            Array::Choices(choice) => choice.reset(),
            Array::Iterations(iterations) => *iterations = None,
            Array::None => {}
        }
        self.length = 0;
    }

    fn scan(&mut self, bytes: &[u8]) {
        let begin = self.length;
        self.length += bytes.len() as u64;
        if self.paths.is_settled() {
            return;
        }
        // A fault ends the scan; the document is then not whole.
        let _ = self.scanner.feed(bytes, &mut self.paths);
        if let Some(at) = self.paths.array_at {
            let from = at.saturating_sub(begin) as usize;
            self.array.feed(&bytes[from..]);
        }
    }
}

impl Array {
    /// Reads on from the key of the array.
    fn feed(&mut self, bytes: &[u8]) {
        match self {
            Array::None => {}
            Array::Choices(choice) => choice.feed(bytes),
            Array::Iterations(iterations) => iterations.get_or_insert_default().feed(bytes),
        }
    }
}

/// The length of what is likely the first member of an event; wherever it cuts, the result is the same.
fn first_member(piece: &[u8]) -> usize {
    let opening = &piece[..piece.len().min(FIRST_MEMBER_BYTES)];
    memchr(b',', opening).map_or(0, |comma| comma + 1)
}
