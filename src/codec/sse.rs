//! Server-sent events (WHATWG HTML §9.2) that arrive in pieces: gives the data of each event as it comes, and its type at
//! its end. It holds no data, and of the type only a few bytes.

use memchr::memchr2;

use crate::codec::BYTE_ORDER_MARK;

const DATA: &[u8] = b"data";

const EVENT: &[u8] = b"event";

/// The longest type of an event that is told, in bytes; a longer one counts as none.
pub const EVENT_TYPE_BYTES: usize = 64;

/// What comes out of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Some more of the event's data, never empty. The lines of it are joined by `\n`.
    Data(&'a [u8]),
    /// The event is whole. It has had a `data` field, though perhaps an empty one. Its `event` field stands here, empty
    /// where it has none.
    End(&'a [u8]),
}

/// The reader of one stream.
#[derive(Debug)]
pub struct EventStream {
    line: Line,
    /// The last line was ended by CR: LF right behind it belongs to it.
    after_cr: bool,
    /// The event under way has a `data` field.
    has_data: bool,
    event_type: EventType,
}

/// The last `event` field of the event under way.
#[derive(Debug)]
struct EventType {
    bytes: [u8; EVENT_TYPE_BYTES],
    /// Length of the field; beyond `EVENT_TYPE_BYTES` its bytes are not all here.
    length: usize,
}

/// Where in a line the stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// So many bytes into the byte order mark that may open the stream.
    Mark(usize),
    /// All so far are so many bytes of `data`.
    Name(usize),
    /// All so far are so many bytes of `event`, at least one.
    EventName(usize),
    /// Behind the colon of `data`, where one space does not count.
    Space,
    /// Behind the colon of `event`.
    EventSpace,
    Data,
    Event,
    /// In another field or a comment.
    Other,
}

impl EventStream {
    /// A reader at the beginning of a stream.
    pub fn new() -> Self {
        Self {
            line: Line::Mark(0),
            after_cr: false,
            has_data: false,
            event_type: EventType {
                bytes: [0; EVENT_TYPE_BYTES],
                length: 0,
            },
        }
    }

    /// Reads the next piece and gives `take` what is in it.
    pub fn feed(&mut self, mut piece: &[u8], take: &mut impl FnMut(Part<'_>)) {
        while let Some(&byte) = piece.first() {
            let read = match self.line {
                Line::Mark(seen) => self.mark(byte, seen),
                Line::Name(0) if piece.starts_with(b"data:") => {
                    self.begin_data(take);
                    DATA.len() + 1
                }
                Line::Name(0) if piece.starts_with(b"event:") => {
                    self.begin_type();
                    EVENT.len() + 1
                }
                Line::Name(seen) => self.name(byte, seen, take),
                Line::EventName(seen) => self.event_name(byte, seen),
                Line::Space | Line::EventSpace => self.space(byte),
                Line::Data | Line::Event | Line::Other => self.rest_of_line(piece, take),
            };
            piece = &piece[read..];
        }
    }

    /// The stream has ended. A last event counts though the blank line behind it, or the end of its line, be missing:
    /// whether its data are whole is for their reader to tell.
    pub fn finish(mut self, take: &mut impl FnMut(Part<'_>)) {
        self.end_event(take);
    }

    // Each of these gives the number of bytes it has read.

    fn mark(&mut self, byte: u8, seen: usize) -> usize {
        if byte != BYTE_ORDER_MARK[seen] {
            self.line = if seen == 0 {
                Line::Name(0)
            } else {
                Line::Other
            };
            return 0;
        }
        let whole = seen + 1 == BYTE_ORDER_MARK.len();
        self.line = if whole {
            Line::Name(0)
        } else {
            Line::Mark(seen + 1)
        };
        1
    }

    fn name(&mut self, byte: u8, seen: usize, take: &mut impl FnMut(Part<'_>)) -> usize {
        match byte {
            b'\n' if self.after_cr && seen == 0 => self.after_cr = false,
            b'\r' | b'\n' => {
                match seen {
                    0 => self.end_event(take),
                    _ if seen == DATA.len() => self.begin_data(take),
                    _ => {}
                }
                self.end_line(byte);
            }
            b':' if seen == DATA.len() => self.begin_data(take),
            _ if DATA.get(seen) == Some(&byte) => self.line = Line::Name(seen + 1),
            b'e' if seen == 0 => self.line = Line::EventName(1),
            _ => self.line = Line::Other,
        }
        1
    }

    fn event_name(&mut self, byte: u8, seen: usize) -> usize {
        match byte {
            b'\r' | b'\n' => {
                if seen == EVENT.len() {
                    self.begin_type();
                }
                self.end_line(byte);
            }
            b':' if seen == EVENT.len() => self.begin_type(),
            _ if EVENT.get(seen) == Some(&byte) => self.line = Line::EventName(seen + 1),
            _ => self.line = Line::Other,
        }
        1
    }

    fn space(&mut self, byte: u8) -> usize {
        self.line = match self.line {
            Line::Space => Line::Data,
            _ => Line::Event,
        };
        usize::from(byte == b' ')
    }

    fn rest_of_line(&mut self, piece: &[u8], take: &mut impl FnMut(Part<'_>)) -> usize {
        let end = memchr2(b'\r', b'\n', piece);
        let text = &piece[..end.unwrap_or(piece.len())];
        match self.line {
            Line::Data if !text.is_empty() => take(Part::Data(text)),
            Line::Event => self.event_type.push(text),
            _ => {}
        }
        let Some(end) = end else {
            return piece.len();
        };
        self.end_line(piece[end]);
        end + 1
    }

    fn begin_data(&mut self, take: &mut impl FnMut(Part<'_>)) {
        if self.has_data {
            take(Part::Data(b"\n"));
        }
        self.has_data = true;
        self.line = Line::Space;
    }

    /// A further `event` field replaces the one before.
    fn begin_type(&mut self) {
        self.event_type.length = 0;
        self.line = Line::EventSpace;
    }

    fn end_line(&mut self, byte: u8) {
        self.after_cr = byte == b'\r';
        self.line = Line::Name(0);
    }

    fn end_event(&mut self, take: &mut impl FnMut(Part<'_>)) {
        if std::mem::take(&mut self.has_data) {
            take(Part::End(self.event_type.text()));
        }
        self.event_type.length = 0;
    }
}

impl EventType {
    fn push(&mut self, text: &[u8]) {
        let room = self.bytes.iter_mut().skip(self.length);
        room.zip(text).for_each(|(kept, byte)| *kept = *byte);
        self.length = self.length.saturating_add(text.len());
    }

    fn text(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl Default for EventStream {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data of every event, however the stream is cut in two or taken byte by byte.
    fn events(stream: &[u8]) -> Vec<String> {
        let whole = read(&[stream]);
        for at in 0..=stream.len() {
            let (left, right) = stream.split_at(at);
            assert_eq!(read(&[left, right]), whole, "cut at {at}");
        }
        assert_eq!(read(&stream.chunks(1).collect::<Vec<_>>()), whole);
        whole
    }

    fn read(pieces: &[&[u8]]) -> Vec<String> {
        read_with_types(pieces).0
    }

    fn read_with_types(pieces: &[&[u8]]) -> (Vec<String>, Vec<String>) {
        let (mut events, mut kinds, mut data) = (Vec::new(), Vec::new(), Vec::new());
        let mut take = |part: Part<'_>| match part {
            Part::Data(bytes) => data.extend_from_slice(bytes),
            Part::End(kind) => {
                kinds.push(String::from_utf8_lossy(kind).into_owned());
                let event = std::mem::take(&mut data);
                events.push(String::from_utf8_lossy(&event).into_owned());
            }
        };
        let mut stream = EventStream::new();
        for piece in pieces {
            stream.feed(piece, &mut take);
        }
        stream.finish(&mut take);
        (events, kinds)
    }

    /// The type of every event, taken whole and byte by byte.
    fn types(stream: &str) -> Vec<String> {
        let whole = read_with_types(&[stream.as_bytes()]).1;
        let single: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
        assert_eq!(read_with_types(&single).1, whole);
        whole
    }

    #[test]
    fn an_event_has_the_type_of_its_last_event_field() {
        assert_eq!(types("event: a\ndata: 1\n\ndata: 2\n\n"), ["a", ""]);
        assert_eq!(types("data: 1\nevent:b\nevent:  c\n\n"), [" c"]);
        assert_eq!(types("event: a\n\ndata: 1\n\n"), [""]);
        assert_eq!(types("event: a\nevent\ndata: 1\n\n"), [""]);
        assert_eq!(
            types("events: a\neven: b\nEvent: c\n:event: d\ndata: 1"),
            [""]
        );
        assert_eq!(types("\u{feff}event: a\r\ndata: 1\r\n\r\n"), ["a"]);
    }

    #[test]
    fn a_type_that_is_too_long_is_none() {
        let fits = "t".repeat(EVENT_TYPE_BYTES);
        assert_eq!(
            types(&format!("event: {fits}\ndata: 1\n\n")),
            [fits.as_str()]
        );
        assert_eq!(types(&format!("event: {fits}t\ndata: 1\n\n")), [""]);
    }

    #[test]
    fn lines_end_with_lf_cr_or_both() {
        for end in ["\n", "\r", "\r\n"] {
            let stream = ["event: x", "data: 1", "", "", "data: 2", "", ""].join(end);
            assert_eq!(events(stream.as_bytes()), ["1", "2"], "{end:?}");
        }
        assert_eq!(
            events(b"data: 1\r\n\rdata: 2\n\r\ndata: 3\r\r"),
            ["1", "2", "3"]
        );
        assert_eq!(events(b"data: 1\r\n\ndata: 2\r\n\n"), ["1", "2"]);
    }

    #[test]
    fn the_lines_of_one_event_are_joined() {
        assert_eq!(
            events(b"data: a\nid: 1\ndata:b\n: no\ndata\ndata:  c\n\n"),
            ["a\nb\n\n c"]
        );
    }

    #[test]
    fn other_fields_and_comments_are_no_data() {
        let stream = b": data: 1\n\nevent: data: 2\nxdata: 3\ndatum: 4\ndatax: 5\n data: 6\nDATA: 7\nda\n:\n\n";
        assert_eq!(events(stream), [""; 0]);
    }

    #[test]
    fn an_event_without_a_data_field_is_none() {
        assert_eq!(events(b"event: ping\n\n\n\nretry: 1\r\r"), [""; 0]);
        assert_eq!(events(b"data\n\ndata:\n\ndata: \n\n"), ["", "", ""]);
    }

    #[test]
    fn one_space_behind_the_colon_does_not_count() {
        assert_eq!(
            events(b"data:1\n\ndata: 1\n\ndata:  1\n\n"),
            ["1", "1", " 1"]
        );
        assert_eq!(events(b"data:\tx\n\n"), ["\tx"]);
    }

    #[test]
    fn a_byte_order_mark_counts_at_the_beginning_only() {
        assert_eq!(events(b"\xef\xbb\xbfdata: 1\n\n"), ["1"]);
        assert_eq!(
            events(b"\xef\xbbdata: 1\n\n\xef\xbb\xbfdata: 2\n\n"),
            [""; 0]
        );
        assert_eq!(events(b"\xef\xbb\ndata: 1\n\n"), ["1"]);
        assert_eq!(events(b"\n\xef\xbb\xbfdata: 1\n\n"), [""; 0]);
    }

    #[test]
    fn the_last_event_needs_neither_blank_line_nor_line_end() {
        assert_eq!(events(b"data: 1\n"), ["1"]);
        assert_eq!(events(b"data: 1"), ["1"]);
        assert_eq!(events(b"data: 1\n\ndat"), ["1"]);
        assert_eq!(events(b"data: 1\n\n"), ["1"]);
    }
}
