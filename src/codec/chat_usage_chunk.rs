//! Takes out of a stream of chat chunks the one that tells the usage, which a client did not ask for: `choices` is empty
//! there and `usage` an object (<https://platform.openai.com/docs/api-reference/chat/create>, `include_usage`). All other
//! bytes go on as they came, each event as soon as it is whole.

use bytes::{Bytes, BytesMut};

use crate::codec::content_coding::{Coding, NamedCoding};
use crate::codec::json::{Interest, Key, Kind, Scanner, Value, Visitor};
use crate::codec::sse::{EventStream, Part};

/// The longest event that is held until its end, in bytes. A chunk that tells the usage is far shorter; what is longer
/// goes on.
pub const MAX_HELD_BYTES: usize = 64 * 1024;

/// How deep a chunk may be nested that is looked into.
const DEPTH_LIMIT: usize = 64;

/// One stream on its way through.
#[derive(Debug)]
pub struct UsageChunkFilter {
    /// What its head says of its coding. A stream that is coded goes on as it is.
    named: NamedCoding,
    /// Whether it is, which its first bytes tell.
    coded: Option<bool>,
    /// The beginning of the event under way, as it came; of the stream, while its first bytes do not tell.
    held: BytesMut,
    /// The event under way is longer than what is held, and goes on.
    passes: bool,
    line: Line,
    /// The last piece ended with the carriage return that ended an event, which was kept (true) or taken out: a line feed
    /// that begins the next piece belongs to it.
    after_event: Option<bool>,
}

/// Where in the lines the stream stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
    /// At the beginning of a line.
    #[default]
    Begin,
    Within,
    /// Behind the carriage return that ended a line: a line feed belongs to it.
    AfterReturn,
}

impl UsageChunkFilter {
    /// A filter at the beginning of a stream whose head names this coding.
    pub fn new(named: NamedCoding) -> Self {
        Self {
            named,
            coded: None,
            held: BytesMut::new(),
            passes: false,
            line: Line::default(),
            after_event: None,
        }
    }

    /// What goes on of the next piece, and of what was held before it.
    pub fn feed(&mut self, piece: Bytes) -> Bytes {
        let Some(piece) = self.begin(piece) else {
            return Bytes::new();
        };
        if self.coded == Some(true) {
            return piece;
        }
        let mut out = BytesMut::new();
        // Up to here the piece is in `out`, in `held`, or dropped.
        let mut done = 0;
        let mut only_passed = self.held.is_empty();
        let mut at = 0;
        if let (Some(kept), Some(b'\n')) = (self.after_event, piece.first()) {
            out.extend_from_slice(if kept { b"\n" } else { b"" });
            (at, done, only_passed) = (1, 1, false);
            self.line = Line::Begin;
        }
        if !piece.is_empty() {
            self.after_event = None;
        }
        while let Some(end) = self.end_of_event(&piece, at) {
            let event = &piece[done..end];
            let drops = !self.passes && {
                let length = self.held.len() + event.len();
                length <= MAX_HELD_BYTES && self.is_usage_chunk(event)
            };
            if drops {
                only_passed = false;
                self.held.clear();
            } else {
                out.extend_from_slice(&self.held);
                self.held.clear();
                out.extend_from_slice(event);
            }
            let ends_open = end == piece.len() && piece[end - 1] == b'\r';
            self.after_event = ends_open.then_some(!drops);
            self.passes = false;
            (at, done) = (end, end);
        }
        let rest = &piece[done..];
        if self.passes || self.held.len() + rest.len() > MAX_HELD_BYTES {
            self.passes = true;
            out.extend_from_slice(&self.held);
            self.held.clear();
            out.extend_from_slice(rest);
        } else {
            only_passed &= rest.is_empty();
            self.held.extend_from_slice(rest);
        }
        // Nearly always whole events come, and all of them go on: without a copy.
        if only_passed { piece } else { out.freeze() }
    }

    /// What goes on at the end of the stream, where the last event has no end.
    pub fn finish(mut self) -> Bytes {
        if self.is_usage_chunk(&[]) {
            self.held.clear();
        }
        self.held.freeze()
    }

    /// The piece, with what was held before it was known whether the stream is coded; none while it is not.
    fn begin(&mut self, piece: Bytes) -> Option<Bytes> {
        if self.coded.is_some() {
            return Some(piece);
        }
        let opening = match self.held.is_empty() {
            true => piece,
            false => {
                self.held.extend_from_slice(&piece);
                self.held.split().freeze()
            }
        };
        match Coding::of_answer(self.named, &opening) {
            Some(coding) => self.coded = Some(coding != Ok(None)),
            None => self.held.extend_from_slice(&opening),
        }
        self.coded.map(|_| opening)
    }

    /// Where the event under way ends, behind the blank line, if it ends in this piece.
    fn end_of_event(&mut self, piece: &[u8], mut at: usize) -> Option<usize> {
        while at < piece.len() {
            match (self.line, piece[at]) {
                (Line::AfterReturn, b'\n') => self.line = Line::Begin,
                (Line::Begin | Line::AfterReturn, b'\r') => {
                    self.line = Line::AfterReturn;
                    // The line feed that may follow is a part of the same blank line.
                    let end = if piece.get(at + 1) == Some(&b'\n') {
                        self.line = Line::Begin;
                        at + 2
                    } else {
                        at + 1
                    };
                    return Some(end);
                }
                (Line::Begin, b'\n') => return Some(at + 1),
                (_, b'\r') => self.line = Line::AfterReturn,
                (_, b'\n') => self.line = Line::Begin,
                (Line::Begin | Line::AfterReturn, _) => self.line = Line::Within,
                (Line::Within, _) => {
                    let rest = &piece[at..];
                    let end = memchr::memchr2(b'\r', b'\n', rest);
                    at += end.unwrap_or(rest.len());
                    continue;
                }
            }
            at += 1;
        }
        None
    }

    /// Whether what is held and `rest` are an event that only tells the usage.
    fn is_usage_chunk(&self, rest: &[u8]) -> bool {
        let mut chunk = Chunk::default();
        let mut scanner = Scanner::new(DEPTH_LIMIT);
        let (mut whole, mut events) = (true, 0);
        let mut take = |part: Part<'_>| match part {
            Part::Data(data) => whole &= scanner.feed(data, &mut chunk).is_ok(),
            Part::End(_) => events += 1,
        };
        let mut stream = EventStream::new();
        stream.feed(&self.held, &mut take);
        stream.feed(rest, &mut take);
        stream.finish(&mut take);
        events == 1 && whole && scanner.finish().is_ok() && chunk.tells_only_usage()
    }
}

/// What of a chunk says what it is for.
#[derive(Debug, Default)]
struct Chunk {
    member: Option<Member>,
    has_usage: bool,
    has_choice: bool,
    has_error: bool,
}

#[derive(Clone, Copy, Debug)]
enum Member {
    Usage,
    Choices { value_from: u64 },
    Error,
}

impl Chunk {
    fn tells_only_usage(&self) -> bool {
        self.has_usage && !self.has_choice && !self.has_error
    }
}

impl Visitor for Chunk {
    fn key(&mut self, key: Key<'_>) -> Interest {
        self.member = match key.name {
            Some(b"usage") => Some(Member::Usage),
            Some(b"choices") => Some(Member::Choices {
                value_from: key.start,
            }),
            Some(b"error") => Some(Member::Error),
            _ => None,
        };
        Interest::Skip
    }

    fn value(&mut self, value: Value<'_>) {
        match self.member.take() {
            Some(Member::Usage) => self.has_usage |= value.kind == Kind::Object,
            Some(Member::Error) => self.has_error |= value.kind != Kind::Null,
            Some(Member::Choices { value_from }) => {
                self.has_choice |= !is_empty(value, value_from);
            }
            None => {}
        }
    }
}

/// Whether `choices` holds nothing. The scanner shows no elements: an array of a choice is longer than any white space
/// that is written in an empty one.
fn is_empty(value: Value<'_>, key_from: u64) -> bool {
    const SHORTEST_CHOICE: u64 = r#"{"index":0}"#.len() as u64;
    const AROUND: u64 = r#""choices":[]"#.len() as u64;
    match value.kind {
        Kind::Null => true,
        Kind::Array => value.end - key_from < AROUND + SHORTEST_CHOICE,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    const CHOICE: &str = "data: {\"id\":\"c1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}],\"usage\":null}\n\n";
    const USAGE: &str = "data: {\"id\":\"c1\",\"choices\":[],\"usage\":{\"prompt_tokens\":100,\"completion_tokens\":7}}\n\n";
    const DONE: &str = "data: [DONE]\n\n";

    /// What goes on, and in how many writes that are not empty.
    fn through(pieces: &[&[u8]]) -> (String, usize) {
        let mut filter = UsageChunkFilter::new(Ok(None));
        let (mut out, mut writes) = (Vec::new(), 0);
        for piece in pieces {
            let piece = filter.feed(Bytes::copy_from_slice(piece));
            writes += usize::from(!piece.is_empty());
            out.extend_from_slice(&piece);
        }
        out.extend_from_slice(&filter.finish());
        (String::from_utf8(out).unwrap(), writes)
    }

    /// The same however the stream is cut in two, and byte by byte.
    fn filtered(stream: &str) -> String {
        let bytes = stream.as_bytes();
        let whole = through(&[bytes]).0;
        for at in 0..=bytes.len() {
            let (left, right) = bytes.split_at(at);
            assert_eq!(through(&[left, right]).0, whole, "cut at {at}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(through(&single).0, whole);
        whole
    }

    #[test]
    fn the_chunk_that_only_tells_the_usage_is_taken_out() {
        for end in ["\n", "\r\n", "\r"] {
            let lines = |text: &str| text.replace('\n', end);
            let stream = lines(&[CHOICE, CHOICE, USAGE, DONE].concat());
            assert_eq!(filtered(&stream), lines(&[CHOICE, CHOICE, DONE].concat()));
        }
        let spaced = "event: x\nid: 7\ndata: { \"usage\" : { } , \"choices\" : [ ] }\n: c\n\n";
        assert_eq!(
            filtered(&[CHOICE, spaced, DONE].concat()),
            [CHOICE, DONE].concat()
        );
        let lines = "data: {\"choices\":[],\ndata: \"usage\":{\"prompt_tokens\":1}}\n\n";
        assert_eq!(filtered(lines), "");
        assert_eq!(filtered("data: {\"usage\":{\"prompt_tokens\":1}}\n\n"), "");
    }

    #[test]
    fn all_else_goes_on_as_it_came() {
        for kept in [
            CHOICE,
            DONE,
            ": keep-alive\n\n",
            "\n\n\n",
            "",
            "data: {\"choices\":[],\"usage\":null}\n\n",
            "data: {\"choices\":[],\"prompt_filter_results\":[{\"prompt_index\":0}]}\n\n",
            "data: {\"choices\":[{\"index\":0}],\"usage\":{\"prompt_tokens\":1}}\n\n",
            "data: {\"choices\":[],\"usage\":{},\"error\":{\"message\":\"no\"}}\n\n",
            "data: {\"choices\":\"x\",\"usage\":{}}\n\n",
            "data: {\"choices\":[],\"usage\":{}\n\n",
            "data: {\"choices\":[],\"usage\":{}}x\n\n",
            "data: \"\\\"choices\\\":[],\\\"usage\\\":{}\"\n\n",
            "{\"choices\":[],\"usage\":{}}",
            "\u{feff}data: {\"a\":{\"choices\":[],\"usage\":{}}}\r\rdata: é\n",
        ] {
            assert_eq!(filtered(kept), kept);
            assert_eq!(filtered(&[kept, CHOICE].concat()), [kept, CHOICE].concat());
        }
    }

    #[test]
    fn a_last_event_without_its_end_is_judged_as_well() {
        assert_eq!(filtered(&[CHOICE, USAGE.trim_end()].concat()), CHOICE);
        assert_eq!(filtered(CHOICE.trim_end()), CHOICE.trim_end());
    }

    #[test]
    fn each_event_that_is_kept_is_one_write_and_is_not_copied() {
        let events = [CHOICE, CHOICE, USAGE, DONE];
        let pieces: Vec<&[u8]> = events.iter().map(|event| event.as_bytes()).collect();
        assert_eq!(through(&pieces), ([CHOICE, CHOICE, DONE].concat(), 3));
        let piece = Bytes::from_static(CHOICE.as_bytes());
        let passed = UsageChunkFilter::new(Ok(None)).feed(piece.clone());
        assert_eq!(passed.as_ptr(), piece.as_ptr());
    }

    #[test]
    fn a_long_event_goes_on_before_its_end_and_the_next_one_is_judged() {
        let long = format!(
            "data: {{\"usage\":{{}},\"x\":\"{}\"}}\n\n",
            "x".repeat(3 * MAX_HELD_BYTES)
        );
        let mut filter = UsageChunkFilter::new(Ok(None));
        let mut out = Vec::new();
        for piece in long.as_bytes().chunks(1000) {
            out.extend_from_slice(&filter.feed(Bytes::copy_from_slice(piece)));
            assert!(filter.held.len() <= MAX_HELD_BYTES);
        }
        out.extend_from_slice(&filter.feed(Bytes::from_static(USAGE.as_bytes())));
        out.extend_from_slice(&filter.finish());
        assert!(out == long.as_bytes());
    }

    proptest! {
        #[test]
        fn any_cut_of_any_stream_gives_what_is_left_of_whole_events(
            events in prop::collection::vec(select(vec![CHOICE, USAGE, DONE, ": c\n\n", "\n", "data: {\"usage\":{}\n\n"]), 0..8),
            end in select(vec!["\n", "\r\n", "\r"]),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let expected: String = events.iter().filter(|event| **event != USAGE).copied().collect();
            let stream = events.concat().replace('\n', end);
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            at.extend([0, stream.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &stream.as_bytes()[pair[0]..pair[1]]).collect();
            prop_assert_eq!(through(&pieces).0, expected.replace('\n', end));
        }

        #[test]
        fn any_bytes_are_endured(bytes in prop::collection::vec(select(b"\r\n:{}[]\"data usge,choices".to_vec()), 0..200), step in 1usize..20) {
            let whole = {
                let mut filter = UsageChunkFilter::new(Ok(None));
                let mut out = filter.feed(Bytes::copy_from_slice(&bytes)).to_vec();
                out.extend_from_slice(&filter.finish());
                out
            };
            let mut filter = UsageChunkFilter::new(Ok(None));
            let mut out = Vec::new();
            for piece in bytes.chunks(step) {
                out.extend_from_slice(&filter.feed(Bytes::copy_from_slice(piece)));
            }
            out.extend_from_slice(&filter.finish());
            prop_assert_eq!(out, whole);
        }
    }

    #[test]
    fn a_stream_in_raw_deflate_goes_on_as_it_came_and_one_that_is_none_is_read() {
        use std::io::Write;
        let deflate = Ok(Some(Coding::Deflate));
        let through = |stream: &[u8], step: usize| {
            let mut filter = UsageChunkFilter::new(deflate);
            let mut out = Vec::new();
            for piece in stream.chunks(step) {
                out.extend_from_slice(&filter.feed(Bytes::copy_from_slice(piece)));
            }
            out.extend_from_slice(&filter.finish());
            out
        };
        let plain = [CHOICE, USAGE, DONE].concat();
        let level = flate2::Compression::default();
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
        encoder.write_all("\u{feff}: c\n\n".as_bytes()).unwrap();
        let coded = encoder.finish().unwrap();
        assert_eq!(coded[0], b'{', "as text may begin");
        for step in [1, 7, 1000] {
            assert_eq!(through(&coded, step), coded, "by {step}");
            let kept = [CHOICE, DONE].concat();
            assert_eq!(
                through(plain.as_bytes(), step),
                kept.as_bytes(),
                "by {step}"
            );
        }
    }
}
