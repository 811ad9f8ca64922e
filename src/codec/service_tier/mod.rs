//! The rewriter: makes a JSON request body say `service_tier` exactly once, or not at all, and changes no other byte. It
//! also reads what the client's own members say, and sees to it that a chat stream tells its usage. It does not decide whose
//! bodies are rewritten: it scans a body as it arrives, and is told what to do when all of it is there.

mod fields;
mod layout;

use std::fmt;
use std::ops::Range;

use fields::Reader;
pub use fields::{ClientTier, MEMBER, RequestFields, UNKNOWN};
use layout::{Layout, Options, Removable, Surveyor};

use crate::codec::json::{Fault, Kernel, Scanner};
use crate::codec::text_encoding::{ByteOrderMark, TextDecoder};

/// The tier that is asked for where fast mode is.
pub const PRIORITY: &str = Tier::Priority.as_str();

/// The tiers that upstreams are known to serve, or to be asked for.
pub const KNOWN_TIERS: [&str; 9] = [
    "auto",
    "default",
    "flex",
    "scale",
    "priority",
    "fast",
    "ultrafast",
    "standard",
    "batch",
];

/// The name that a tier is compared by: `fast` is another name of `priority`, with which newer models answer
/// (<https://platform.openai.com/docs/guides/priority-processing>).
pub fn canonical(tier: &str) -> &str {
    if tier == "fast" { PRIORITY } else { tier }
}

/// Whether it is one of those that are faster and dearer than standard processing.
pub fn is_fast(tier: &str) -> bool {
    matches!(tier, PRIORITY | "fast" | "ultrafast")
}

/// How deep a body is looked at that passes unchanged: Go's `encoding/json` reads so deep. It bounds the memory of the scanner,
/// a bit for each.
const OBSERVED_DEPTH: usize = 10_000;

/// What a body begins with that asks for usage and did not before.
const STREAM_OPTIONS: &str = r#""stream_options":{"include_usage":true},"#;
/// A member of `stream_options` that asks for usage.
const INCLUDE_USAGE: &str = r#""include_usage":true,"#;

/// How much longer the first member of a `response` object may become: from `"service_tier":0`.
const INNER_GROWTH: usize = Tier::Priority.member().len() - r#""service_tier":0,"#.len();

/// Room kept in front of the body for all that an edit can add.
const HEADROOM: usize = Tier::Priority.member().len() + STREAM_OPTIONS.len() + INNER_GROWTH;

/// How much of an announced body is reserved before any of it is here, in bytes.
const BEGINNING: usize = 256 * 1024;

/// A tier that can be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Faster processing at a higher price: `priority`.
    Priority,
    /// Slower processing at a lower price: `flex`.
    Flex,
    /// Standard processing: `default`.
    Default,
}

/// What is done to the tier in a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Edit {
    /// It stays as it is.
    #[default]
    Keep,
    /// The body gets exactly one member `service_tier`, with this tier.
    Set(Tier),
    /// It gets none.
    Remove,
}

/// All that is done to a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// What is done to the tier.
    pub tier: Edit,
    /// Whether members `"speed": "fast"` go.
    pub remove_fast_speed: bool,
    /// Whether a body of chat completions that says `"stream": true` is to ask for usage (`stream_options.include_usage`).
    pub request_usage: bool,
}

/// Why a body cannot be rewritten. Offsets count bytes from its beginning; no text of the body is in here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFault {
    /// The body is not JSON (RFC 8259).
    InvalidJson {
        /// Offset of the byte, or of the end.
        at: u64,
    },
    /// The body is JSON, but not an object.
    NotAnObject,
    /// Arrays and objects are nested deeper than the limit.
    TooDeep,
    /// The body is not UTF-8.
    InvalidUtf8 {
        /// Offset at which the malformed code point begins.
        at: u64,
    },
}

/// One body on its way through: held in one buffer, read as it arrives, and edited in place at its end.
#[derive(Debug)]
pub struct Rewriter {
    /// `HEADROOM` bytes, then the body.
    buffer: Vec<u8>,
    /// The announced length in bytes, or 0.
    announced: usize,
    /// How much of the buffer was checked.
    checked: usize,
    mark: ByteOrderMark,
    /// Whether a byte other than white space has been seen.
    begun: bool,
    scanner: Scanner,
    reader: Reader,
    layout: Layout,
    fault: Option<BodyFault>,
}

/// A body that may be sent.
#[derive(Debug)]
pub struct Rewritten {
    buffer: Vec<u8>,
    start: usize,
    /// What the body said as it came.
    pub facts: RequestFields,
    /// Whether the body asks for usage now and did not before: a chunk will come for which the client did not ask.
    pub usage_requested: bool,
    /// Whether two readers may find different answers in it to whether a stream with its usage is asked for.
    pub usage_is_unclear: bool,
}

/// Reads the facts off a body that passes unchanged, also where it is JSON for lenient readers only, such as in UTF-16. It stops
/// at the first fault, and never fails.
#[derive(Debug)]
pub struct Observer {
    text: TextDecoder,
    reading: Reading,
}

/// What an observer reads, in UTF-8.
#[derive(Debug)]
struct Reading {
    mark: ByteOrderMark,
    scanner: Scanner,
    reader: Reader,
    /// The first byte that is no white space.
    first: Option<u8>,
}

/// Bytes of the buffer that are replaced by a text which may be longer.
type Patch = (Range<usize>, &'static str);

impl Tier {
    /// All of them.
    pub const ALL: [Tier; 3] = [Tier::Priority, Tier::Flex, Tier::Default];

    /// As it stands in a body.
    pub const fn as_str(self) -> &'static str {
        match self {
            Tier::Priority => "priority",
            Tier::Flex => "flex",
            Tier::Default => "default",
        }
    }

    /// The member that asks for it, and a comma.
    const fn member(self) -> &'static str {
        match self {
            Tier::Priority => r#""service_tier":"priority","#,
            Tier::Flex => r#""service_tier":"flex","#,
            Tier::Default => r#""service_tier":"default","#,
        }
    }
}

impl Rewriter {
    /// A rewriter of one body. `json_depth` is the most brackets inside one another, the outermost counted; `announced` the
    /// announced length in bytes, or 0. All of it is reserved once its beginning is here: a buffer that grows is copied, and
    /// for a moment there twice. Memory that is reserved costs nothing until bytes arrive, but has addresses.
    pub fn new(json_depth: usize, announced: usize) -> Rewriter {
        Rewriter::with_kernel(json_depth, announced, Kernel::detect())
    }

    /// The same for a message of a WebSocket, whose tier may stand in a `response` object as well.
    pub fn for_message(json_depth: usize, announced: usize) -> Rewriter {
        Rewriter {
            reader: Reader::new(true),
            ..Rewriter::new(json_depth, announced)
        }
    }

    #[doc(hidden)]
    pub fn with_kernel(json_depth: usize, announced: usize, kernel: Kernel) -> Rewriter {
        let mut buffer = Vec::with_capacity(HEADROOM + announced.min(BEGINNING));
        buffer.resize(HEADROOM, b' ');
        Rewriter {
            buffer,
            announced,
            checked: HEADROOM,
            mark: ByteOrderMark::default(),
            begun: false,
            scanner: Scanner::with_kernel(json_depth, kernel),
            reader: Reader::default(),
            layout: Layout::default(),
            fault: None,
        }
    }

    /// Takes the next bytes of the body.
    ///
    /// # Errors
    /// The first fault in the body, as soon as its byte has arrived, and again from then on; nothing more is held after it.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), BodyFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        self.reserve(chunk.len());
        self.buffer.extend_from_slice(chunk);
        self.check()
    }

    /// The held bytes, for who can put the next ones behind them without a copy; [`Rewriter::check`] is to follow. No other
    /// byte may be changed.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Checks what was put behind the bytes that were checked before.
    ///
    /// # Errors
    /// As [`Rewriter::push`].
    pub fn check(&mut self) -> Result<(), BodyFault> {
        if self.fault.is_none() {
            self.fault = self.scan().err();
        }
        self.fault.map_or(Ok(()), Err)
    }

    /// Bytes of the body that are held.
    pub fn len(&self) -> usize {
        self.buffer.len() - HEADROOM
    }

    /// Whether nothing has come yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether more has come than white space.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Bytes that the body and what is known of it take. What was reserved for an announced length counts as it is filled; a
    /// buffer that had to grow counts whole.
    pub fn memory(&self) -> usize {
        let capacity = self.buffer.capacity() - HEADROOM;
        let buffer = match capacity > self.announced {
            true => capacity,
            false => self.len(),
        };
        buffer + self.layout.memory()
    }

    /// What is known so far: for the decision on a whole body, and for the log line of one that is refused.
    pub fn facts(&self) -> &RequestFields {
        &self.reader.facts
    }

    /// Who reads on in a message that cannot be rewritten, and has read all that was pushed.
    pub fn observer_of_message(&self) -> Observer {
        let mut observer = Observer::for_message();
        observer.feed(&self.buffer[HEADROOM..]);
        observer
    }

    /// A whole body without all that asks for a tier: a buffer, and where in it the body begins (it ends with the buffer). `None` where it is
    /// none that could have been rewritten.
    pub fn without_tier(mut self, body: &[u8]) -> Option<(Vec<u8>, usize)> {
        self.push(body).ok()?;
        let rewritten = self.finish(Edits::no_tier()).ok()?;
        let (buffer, start, _) = rewritten.into_parts();
        Some((buffer, start))
    }

    /// The edited body. Without an edit it is the bytes that came.
    ///
    /// # Errors
    /// Where what was pushed is not one whole JSON object.
    pub fn finish(mut self, edits: Edits) -> Result<Rewritten, BodyFault> {
        self.end()?;
        let usage = self.usage_edit(edits);
        let mut patches = self.patches(edits, &usage);
        let (mut front, mut kept) = (self.layout.front, false);
        let mut blanks = Vec::new();
        for span in &self.layout.spans {
            kept |= span.after_plain;
            match (edits.removes(span.removable), kept) {
                (false, _) => kept = true,
                (true, false) => front = span.next,
                (true, true) => blanks.push(span.from..span.end),
            }
        }
        kept |= self.layout.has_plain();
        self.blank_inner(edits, &mut blanks);
        blanks
            .into_iter()
            .for_each(|range| blank(&mut self.buffer[range]));
        patches.sort_unstable_by_key(|(range, _)| range.start);
        let adds_options = usage == Some(Options::Missing);
        let keeps_beginning =
            edits.tier == Edit::Keep && !adds_options && front == self.layout.front;
        let start = if keeps_beginning {
            HEADROOM - self.patch(HEADROOM, &patches)
        } else {
            let front = front - self.patch(front, &patches);
            self.begin(front, edits.tier, adds_options, kept)
        };
        Ok(Rewritten {
            buffer: self.buffer,
            start,
            facts: self.reader.facts,
            usage_requested: usage.is_some(),
            usage_is_unclear: self.layout.stream_options.is_unclear(),
        })
    }

    /// Whether what was pushed is one whole JSON object.
    fn end(&mut self) -> Result<(), BodyFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        // A mark that was cut short is no JSON.
        let rest = self.mark.rest();
        let mut surveyor = Surveyor {
            layout: &mut self.layout,
            reader: &mut self.reader,
            origin: HEADROOM,
        };
        let scanned = self.scanner.feed(rest, &mut surveyor);
        let ended = scanned.and_then(|()| self.scanner.finish());
        ended.map_err(|fault| BodyFault::at(fault, self.mark.skipped()))
    }

    /// How the body comes to ask for usage, if it is to and does not.
    fn usage_edit(&self, edits: Edits) -> Option<Options> {
        if !edits.request_usage || self.reader.facts.stream != Some(true) {
            return None;
        }
        let options = self.layout.stream_options.editable();
        (!matches!(options, Options::On | Options::Other)).then_some(options)
    }

    fn patches(&self, edits: Edits, usage: &Option<Options>) -> Vec<Patch> {
        let mut patches: Vec<Patch> = Vec::new();
        if let (Edit::Set(tier), Some(member)) = (edits.tier, &self.layout.first_inner_tier) {
            let text = tier.member();
            patches.push((member.clone(), &text[..text.len() - 1]));
        }
        match usage {
            Some(Options::Off(range)) => patches.push((range.clone(), "true")),
            Some(Options::Null(range)) => {
                patches.push((range.clone(), r#"{"include_usage":true}"#));
            }
            Some(Options::Object { at, is_empty }) => {
                let comma = usize::from(!is_empty);
                let text = &INCLUDE_USAGE[..INCLUDE_USAGE.len() - 1 + comma];
                patches.push((*at..*at, text));
            }
            _ => {}
        }
        patches
    }

    /// Members of `response` objects that go: all tiers, but for the one that is set.
    fn blank_inner(&self, edits: Edits, blanks: &mut Vec<Range<usize>>) {
        if edits.tier == Edit::Keep {
            return;
        }
        let set = match edits.tier {
            Edit::Set(_) => self.layout.first_inner_tier.clone(),
            _ => None,
        };
        for span in &self.layout.inner_spans {
            blanks.push(match &set {
                // What follows the first in its run goes, with the comma between.
                Some(first) if first.start == span.start => first.end..span.end,
                _ if span.is_first => span.start..span.next,
                _ => span.from..span.end,
            });
        }
    }

    /// Replaces, and moves what stands from `first` to the last patch towards the beginning of the buffer to make room.
    /// Returns by how much `first` itself moves, in bytes.
    fn patch(&mut self, first: usize, patches: &[Patch]) -> usize {
        let added = |(range, text): &Patch| text.len().saturating_sub(range.len());
        let growth = patches.iter().map(added).sum();
        let (mut shift, mut from) = (growth, first);
        for patch in patches {
            let (range, text) = patch;
            self.buffer.copy_within(from..range.start, from - shift);
            let at = range.start - shift;
            shift -= added(patch);
            let end = range.end - shift;
            self.buffer[at..at + text.len()].copy_from_slice(text.as_bytes());
            self.buffer[at + text.len()..end].fill(b' ');
            from = range.end;
        }
        growth
    }

    /// Writes what the body begins with, up to `front`. Returns where that is.
    fn begin(&mut self, front: usize, tier: Edit, options: bool, kept: bool) -> usize {
        let tier = match tier {
            Edit::Set(tier) => tier.member(),
            Edit::Keep | Edit::Remove => "",
        };
        let mut start = front;
        let parts = ["{", tier, if options { STREAM_OPTIONS } else { "" }];
        let mut has_comma = true;
        for part in parts.into_iter().rev() {
            // The comma of the last member goes where no other follows.
            let part = match part.strip_suffix(',') {
                Some(bare) if !kept && has_comma => {
                    has_comma = false;
                    bare
                }
                _ => part,
            };
            start -= part.len();
            self.buffer[start..start + part.len()].copy_from_slice(part.as_bytes());
        }
        start
    }

    fn scan(&mut self) -> Result<(), BodyFault> {
        let chunk = &self.buffer[self.checked..];
        let (replayed, chunk) = self.mark.pass(chunk);
        if !self.begun {
            let white = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
            if let Some(first) = chunk.iter().position(|byte| !white(byte)) {
                self.begun = true;
                // Another type of value is refused at its first byte; whatever is no JSON at all is left to the scanner.
                if let b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n' = chunk[first]
                    && replayed.is_empty()
                {
                    return Err(BodyFault::NotAnObject);
                }
                self.layout.front = self.buffer.len() - chunk.len() + first + 1;
            }
        }
        let skipped = self.mark.skipped();
        let mut surveyor = Surveyor {
            layout: &mut self.layout,
            reader: &mut self.reader,
            origin: HEADROOM + skipped,
        };
        let scanner = &mut self.scanner;
        let scanned = scanner
            .feed(replayed, &mut surveyor)
            .and_then(|()| scanner.feed(chunk, &mut surveyor));
        self.checked = self.buffer.len();
        scanned.map_err(|fault| BodyFault::at(fault, skipped))
    }

    /// Makes room for `more` bytes: for all that was announced, and twice what is needed beyond.
    fn reserve(&mut self, more: usize) {
        let needed = self.buffer.len() + more;
        if needed > self.buffer.capacity() {
            let announced = HEADROOM + self.announced;
            let capacity = if needed <= announced {
                announced
            } else {
                2 * needed
            };
            self.buffer.reserve_exact(capacity - self.buffer.len());
        }
    }
}

impl Edits {
    /// Nothing but this to the tier.
    pub fn tier(tier: Edit) -> Edits {
        Edits {
            tier,
            ..Edits::default()
        }
    }

    /// Whatever asks for a tier goes.
    pub fn no_tier() -> Edits {
        Edits {
            remove_fast_speed: true,
            ..Edits::tier(Edit::Remove)
        }
    }

    fn removes(&self, removable: Removable) -> bool {
        match removable {
            Removable::Tier => self.tier != Edit::Keep,
            Removable::FastSpeed => self.remove_fast_speed,
        }
    }
}

impl Rewritten {
    /// The body.
    pub fn as_bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// The buffer, where in it the body begins (it ends with the buffer), and the facts.
    pub fn into_parts(self) -> (Vec<u8>, usize, RequestFields) {
        (self.buffer, self.start, self.facts)
    }
}

impl Observer {
    /// An observer of one body.
    pub fn new() -> Observer {
        Observer::with_kernel(Kernel::detect())
    }

    /// An observer of one message of a WebSocket.
    pub fn for_message() -> Observer {
        let mut observer = Observer::new();
        observer.reading.reader = Reader::new(true);
        observer
    }

    #[doc(hidden)]
    pub fn with_kernel(kernel: Kernel) -> Observer {
        Observer {
            text: TextDecoder::default(),
            reading: Reading {
                mark: ByteOrderMark::default(),
                scanner: Scanner::with_kernel(OBSERVED_DEPTH, kernel).made_lenient(),
                reader: Reader::default(),
                first: None,
            },
        }
    }

    /// Looks at the next bytes.
    pub fn feed(&mut self, chunk: &[u8]) {
        let Self { text, reading } = self;
        text.feed(chunk, &mut |piece| reading.feed(piece));
    }

    /// What was seen so far.
    pub fn facts(&self) -> &RequestFields {
        &self.reading.reader.facts
    }

    /// Whether it begins as an object does.
    pub fn is_object(&self) -> bool {
        self.reading.first.or(self.text.held()) == Some(b'{')
    }

    /// Whether it is one whole object.
    pub fn is_whole(&self) -> bool {
        self.is_object() && self.reading.scanner.finish().is_ok()
    }

    /// What was seen.
    pub fn finish(self) -> RequestFields {
        self.reading.reader.facts
    }
}

impl Reading {
    fn feed(&mut self, chunk: &[u8]) {
        let (replayed, chunk) = self.mark.pass(chunk);
        let first = || {
            chunk
                .iter()
                .copied()
                .find(|byte| !byte.is_ascii_whitespace())
        };
        self.first = self.first.or_else(first);
        // The scanner remembers a fault and looks at nothing more; what was seen before it stays true.
        let _ = self.scanner.feed(replayed, &mut self.reader);
        let _ = self.scanner.feed(chunk, &mut self.reader);
    }
}

impl Default for Observer {
    fn default() -> Observer {
        Observer::new()
    }
}

/// The tier that a body asks for by the member that `Rewriter` puts in front, read from the bytes as they leave; `None` if it
/// does not begin with such a member.
pub fn observed_tier(outgoing: &[u8]) -> Option<&'static str> {
    let rest = outgoing.strip_prefix(b"{")?;
    let is_in_front = |tier: &Tier| {
        let member = tier.member();
        let behind = rest.strip_prefix(&member.as_bytes()[..member.len() - 1]);
        let next = behind.and_then(|behind| behind.first());
        matches!(next, Some(b',' | b'}' | b' ' | b'\t' | b'\n' | b'\r'))
    };
    let tier = Tier::ALL.into_iter().find(is_in_front)?;
    Some(tier.as_str())
}

/// Whether no member that may be read as `service_tier` is in these bytes as they leave, at the top level or, in a message of a
/// WebSocket, in a `response` object of it. It reads all of them once more, so it is for those few bodies that may have none.
pub fn has_no_tier(outgoing: &[u8], json_depth: usize, is_message: bool) -> bool {
    let (mut scanner, mut reader) = (Scanner::new(json_depth), Reader::new(is_message));
    let scanned = scanner.feed(outgoing, &mut reader);
    let is_whole = scanned.and_then(|()| scanner.finish()).is_ok();
    is_whole && reader.facts.named_tier().is_none()
}

/// Puts spaces in the place of all but white space.
fn blank(bytes: &mut [u8]) {
    // Written without a branch, so that it becomes vector instructions.
    for byte in bytes {
        let is_white = matches!(*byte, b'\t' | b'\n' | b'\r');
        *byte = if is_white { *byte } else { b' ' };
    }
}

impl BodyFault {
    /// A fault of the scanner, which began so many bytes behind the beginning of the body.
    fn at(fault: Fault, skipped: usize) -> BodyFault {
        let skipped = skipped as u64;
        match fault {
            Fault::InvalidJson { at } => BodyFault::InvalidJson { at: at + skipped },
            Fault::InvalidUtf8 { at } => BodyFault::InvalidUtf8 { at: at + skipped },
            Fault::TooDeep => BodyFault::TooDeep,
        }
    }
}

impl fmt::Display for BodyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BodyFault::InvalidJson { at } => {
                write!(f, "the request body is not valid JSON at byte {at}")
            }
            BodyFault::NotAnObject => write!(f, "the request body must be a JSON object"),
            BodyFault::TooDeep => write!(f, "the request body is nested too deeply"),
            BodyFault::InvalidUtf8 { at } => {
                write!(f, "the request body is not valid UTF-8 at byte {at}")
            }
        }
    }
}

impl std::error::Error for BodyFault {}
