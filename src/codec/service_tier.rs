//! The rewriter: makes a JSON request body say `service_tier` exactly once, or not at all, and changes no other byte. It
//! also reads what the client's own members say. It does not decide whose bodies are rewritten.

use crate::codec::json::{Fault, Interest, Kernel, Key, Kind, Scanner, Value, Visitor};
use std::fmt;
use std::ops::Range;

/// The member that asks for a tier.
pub const MEMBER: &str = "service_tier";

/// The tier that is asked for in place of the client's.
pub const PRIORITY: &str = "priority";

/// What a body begins with once the member is set; the comma goes where no other member follows.
const SET: &[u8] = br#"{"service_tier":"priority","#;
const REMOVED: &[u8] = b"{";

/// Room kept in front of the body, so that `SET` can end where its opening brace did.
const HEADROOM: usize = SET.len() - 1;

const TIER_BYTES: usize = 64;
const MODEL_BYTES: usize = 256;
const KIND_BYTES: usize = 64;
const STREAM_ID_BYTES: usize = 128;

/// What is done to the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    /// It gets exactly one member `service_tier`, of value `"priority"`.
    Set,
    /// It gets none.
    Remove,
}

/// Why a body cannot be rewritten. Offsets count bytes from its beginning; no text of the body is in here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFault {
    InvalidJson { at: u64 },
    NotAnObject,
    TooDeep,
    InvalidUtf8 { at: u64 },
}

/// What the client's own top-level members say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The last `model`, if a string, cut to 256 bytes.
    pub model: Option<String>,
    /// The tier the client named: of the last `service_tier`, else of the last member that a reader which ignores case
    /// would take for it.
    pub service_tier: Option<ClientTier>,
    /// The last `type` in any case, if a string, cut to 64 bytes.
    pub kind: Option<String>,
    /// Whether several members may be read as `type`, so that two readers may take the body for different things.
    pub several_types: bool,
    /// The last `stream`, if a boolean.
    pub stream: Option<bool>,
    /// The last `stream_id`, if a string, cut to 128 bytes: the lane of a WebSocket that the message belongs to.
    pub stream_id: Option<String>,
}

/// A tier as a client named it: trimmed, in lower case, cut to 64 bytes; a value that is no string as its type, `<object>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTier(String);

/// One body on its way through: held in one buffer, and edited there as it arrives.
#[derive(Debug)]
pub struct Rewriter {
    edit: Edit,
    /// `HEADROOM` bytes, then the body.
    buffer: Vec<u8>,
    /// How much of the buffer was checked.
    checked: usize,
    scanner: Scanner,
    reader: Reader,
    cuts: Cuts,
    fault: Option<BodyFault>,
}

/// A body that may be sent.
#[derive(Debug)]
pub struct Rewritten {
    buffer: Vec<u8>,
    start: usize,
    pub facts: Facts,
}

/// Reads the facts off a body that passes unchanged. It stops at the first fault, and never fails.
#[derive(Debug)]
pub struct Observer {
    scanner: Scanner,
    reader: Reader,
}

/// Which members go. Until the first that stays, everything behind the opening brace is left out; after it, a member that
/// goes is blanked together with the comma before it. All places are indexes into the buffer.
#[derive(Debug, Default)]
struct Cuts {
    /// Whether a byte other than white space has been seen.
    begun: bool,
    /// Where the part of the body that is sent begins, apart from its opening brace.
    front: usize,
    /// Whether a member before this one stays.
    kept: bool,
    /// The comma before the member under way, if one stays before it.
    comma: usize,
    /// The opening quote of the member under way.
    member: usize,
    /// Whether the member under way goes.
    goes: bool,
    /// What is to be blanked once the piece under way has been scanned.
    blanks: Vec<Range<usize>>,
}

/// Gathers the facts, whichever way the body goes.
#[derive(Debug, Default)]
struct Reader {
    facts: Facts,
    topic: Topic,
    /// Whether `service_tier` was seen in its own spelling.
    exact_tier: bool,
    /// Whether any member was seen that may be read as `type`.
    typed: bool,
}

/// What the member under way is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Topic {
    Model,
    Tier {
        exact: bool,
    },
    Type,
    Stream,
    StreamId,
    #[default]
    Other,
}

/// Shows the scanner's members to the reader, and notes which of them go.
struct Editor<'a> {
    cuts: &'a mut Cuts,
    reader: &'a mut Reader,
}

impl Rewriter {
    /// A rewriter of one body. `json_depth` is the most brackets inside one another, the outermost counted; `expected_len`
    /// the announced length in bytes, or 0. All of it is reserved at once: a buffer that grows is copied, and for a moment
    /// there twice. Memory that is reserved costs nothing until bytes arrive.
    pub fn new(edit: Edit, json_depth: usize, expected_len: usize) -> Rewriter {
        Rewriter::with_kernel(edit, json_depth, expected_len, Kernel::detect())
    }

    #[doc(hidden)]
    pub fn with_kernel(
        edit: Edit,
        json_depth: usize,
        expected_len: usize,
        kernel: Kernel,
    ) -> Rewriter {
        let mut buffer = Vec::with_capacity(HEADROOM + expected_len);
        buffer.resize(HEADROOM, b' ');
        Rewriter {
            edit,
            buffer,
            checked: HEADROOM,
            scanner: Scanner::with_kernel(json_depth, kernel),
            reader: Reader::default(),
            cuts: Cuts::default(),
            fault: None,
        }
    }

    /// Takes the next bytes of the body. The first fault in the body is returned as soon as its byte has arrived, and
    /// again from then on; nothing more is held after it.
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

    /// Checks what was put behind the bytes that were checked before, like [`Rewriter::push`].
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

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes allocated for the body; a little more than [`Rewriter::len`] where it had to grow.
    pub fn capacity(&self) -> usize {
        self.buffer.capacity() - HEADROOM
    }

    /// What is known so far, for the log line of a body that is refused.
    pub fn facts(&self) -> &Facts {
        &self.reader.facts
    }

    /// The edited body, if what was pushed is one whole JSON object.
    pub fn finish(mut self) -> Result<Rewritten, BodyFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        self.scanner.finish()?;
        let beginning = match self.edit {
            Edit::Set if self.cuts.kept => SET,
            Edit::Set => &SET[..SET.len() - 1],
            Edit::Remove => REMOVED,
        };
        // The front lies behind the opening brace, and that behind the headroom, so every beginning has room.
        let start = self.cuts.front - beginning.len();
        self.buffer[start..self.cuts.front].copy_from_slice(beginning);
        Ok(Rewritten {
            buffer: self.buffer,
            start,
            facts: self.reader.facts,
        })
    }

    fn scan(&mut self) -> Result<(), BodyFault> {
        self.open()?;
        let Self {
            buffer,
            checked,
            cuts,
            reader,
            ..
        } = self;
        let scanned = self
            .scanner
            .feed(&buffer[*checked..], &mut Editor { cuts, reader });
        *checked = buffer.len();
        for blank in cuts.blanks.drain(..) {
            buffer[blank].fill(b' ');
        }
        Ok(scanned?)
    }

    /// Looks for the opening brace. Another type of value is refused at its first byte; whatever is no JSON at all is left
    /// to the scanner.
    fn open(&mut self) -> Result<(), BodyFault> {
        let is_white = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        if self.cuts.begun {
            return Ok(());
        }
        let chunk = &self.buffer[self.checked..];
        let Some(first) = chunk.iter().position(|byte| !is_white(byte)) else {
            return Ok(());
        };
        self.cuts.begun = true;
        match chunk[first] {
            b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => Err(BodyFault::NotAnObject),
            _ => {
                self.cuts.front = self.checked + first + 1;
                Ok(())
            }
        }
    }

    /// Makes room for `more` bytes beyond what was announced.
    fn reserve(&mut self, more: usize) {
        let needed = self.buffer.len() + more;
        if needed > self.buffer.capacity() {
            self.buffer.reserve_exact(2 * needed - self.buffer.len());
        }
    }
}

impl Rewritten {
    pub fn as_bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// The buffer, where in it the body begins (it ends with the buffer), and the facts.
    pub fn into_parts(self) -> (Vec<u8>, usize, Facts) {
        (self.buffer, self.start, self.facts)
    }
}

impl Observer {
    /// An observer that looks no further than `json_depth` brackets inside one another.
    pub fn new(json_depth: usize) -> Observer {
        Observer::with_kernel(json_depth, Kernel::detect())
    }

    #[doc(hidden)]
    pub fn with_kernel(json_depth: usize, kernel: Kernel) -> Observer {
        Observer {
            scanner: Scanner::with_kernel(json_depth, kernel),
            reader: Reader::default(),
        }
    }

    pub fn feed(&mut self, chunk: &[u8]) {
        // The scanner remembers a fault and looks at nothing more; what was seen before it stays true.
        let _ = self.scanner.feed(chunk, &mut self.reader);
    }

    pub fn finish(self) -> Facts {
        self.reader.facts
    }
}

/// The tier that a body asks for by the member that `Rewriter` puts in front, read from the bytes as they leave; `None` if it
/// does not begin with that member.
pub fn observed_tier(outgoing: &[u8]) -> Option<&'static str> {
    let rest = outgoing.strip_prefix(br#"{"service_tier":"priority""#)?;
    matches!(
        rest.first(),
        Some(b',' | b'}' | b' ' | b'\t' | b'\n' | b'\r')
    )
    .then_some(PRIORITY)
}

impl Visitor for Editor<'_> {
    fn key(&mut self, key: Key<'_>) -> Interest {
        let interest = self.reader.key(key);
        self.cuts.member = HEADROOM + key.start as usize;
        self.cuts.goes = matches!(self.reader.topic, Topic::Tier { .. });
        interest
    }

    fn value(&mut self, value: Value<'_>) {
        self.reader.value(value);
        let end = HEADROOM + value.end as usize;
        let cuts = &mut *self.cuts;
        match (cuts.goes, cuts.kept) {
            (false, _) => cuts.kept = true,
            (true, false) => cuts.front = end,
            (true, true) => {
                cuts.blanks.push(cuts.comma..cuts.comma + 1);
                cuts.blanks.push(cuts.member..end);
            }
        }
    }

    fn comma(&mut self, at: u64) {
        let at = HEADROOM + at as usize;
        if self.cuts.kept {
            self.cuts.comma = at;
        } else {
            self.cuts.front = at + 1;
        }
    }
}

impl Visitor for Reader {
    fn key(&mut self, key: Key<'_>) -> Interest {
        self.topic = key.name.map_or(Topic::Other, Topic::of);
        match self.topic {
            Topic::Other => Interest::Skip,
            _ => Interest::Capture,
        }
    }

    fn value(&mut self, value: Value<'_>) {
        match self.topic {
            Topic::Other => {}
            Topic::Model => self.facts.model = text_of(value, MODEL_BYTES),
            Topic::Stream => {
                self.facts.stream = (value.kind == Kind::Bool).then_some(value.raw == b"true")
            }
            Topic::StreamId => self.facts.stream_id = text_of(value, STREAM_ID_BYTES),
            Topic::Type => {
                self.facts.kind = text_of(value, KIND_BYTES);
                self.facts.several_types |= self.typed;
                self.typed = true;
            }
            Topic::Tier { exact } if exact || !self.exact_tier => {
                self.facts.service_tier = Some(ClientTier::of(value));
                self.exact_tier = exact;
            }
            Topic::Tier { .. } => {}
        }
    }
}

impl Topic {
    fn of(name: &[u8]) -> Topic {
        match name.len() {
            4 if folds_to(name, "type") => Topic::Type,
            5 if name == b"model" => Topic::Model,
            6 if name == b"stream" => Topic::Stream,
            9 if name == b"stream_id" => Topic::StreamId,
            12 if name == MEMBER.as_bytes() => Topic::Tier { exact: true },
            // U+017F is one byte longer than the `s` it folds to.
            12 | 13 if folds_to(name, MEMBER) => Topic::Tier { exact: false },
            _ => Topic::Other,
        }
    }
}

impl ClientTier {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn of(value: Value<'_>) -> ClientTier {
        let named = match value.kind {
            Kind::String => value.text().unwrap_or_default().trim().to_lowercase(),
            Kind::Object => "<object>".into(),
            Kind::Array => "<array>".into(),
            Kind::Number => "<number>".into(),
            Kind::Bool => "<bool>".into(),
            Kind::Null => "<null>".into(),
        };
        ClientTier(cut(named, TIER_BYTES))
    }
}

/// Whether Go's `encoding/json` would take the key `name` for `member`: it compares by simple case folding, in which two
/// code points beyond ASCII equal a letter of it, U+017F (`s`) and U+212A (`k`).
fn folds_to(name: &[u8], member: &str) -> bool {
    let mut rest = name;
    for &letter in member.as_bytes() {
        rest = match (letter, rest) {
            (b's', [0xc5, 0xbf, rest @ ..]) | (b'k', [0xe2, 0x84, 0xaa, rest @ ..]) => rest,
            (_, [byte, rest @ ..]) if byte.to_ascii_lowercase() == letter => rest,
            _ => return false,
        };
    }
    rest.is_empty()
}

fn text_of(value: Value<'_>, limit: usize) -> Option<String> {
    value.text().map(|text| cut(text, limit))
}

/// At most `limit` bytes of `text`, and no part of a character.
fn cut(mut text: String, limit: usize) -> String {
    text.truncate(text.floor_char_boundary(limit));
    text
}

impl From<Fault> for BodyFault {
    fn from(fault: Fault) -> BodyFault {
        match fault {
            Fault::InvalidJson { at } => BodyFault::InvalidJson { at },
            Fault::InvalidUtf8 { at } => BodyFault::InvalidUtf8 { at },
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
