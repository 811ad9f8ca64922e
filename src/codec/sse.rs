//! Server-sent events (WHATWG HTML §9.2) that arrive in pieces: gives the data of each event as it comes. It holds none
//! of it, and leaves all fields but `data` aside: what an event is, its data say.

use memchr::memchr2;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

const DATA: &[u8] = b"data";

/// What comes out of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Some more of the event's data, never empty. The lines of it are joined by `\n`.
    Data(&'a [u8]),
    /// The event is whole. It has had a `data` field, though perhaps an empty one.
    End,
}

/// The reader of one stream.
#[derive(Debug)]
pub struct EventStream {
    line: Line,
    /// The last line was ended by CR: LF right behind it belongs to it.
    after_cr: bool,
    /// The event under way has a `data` field.
    has_data: bool,
}

/// Where in a line the stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// So many bytes into the byte order mark that may open the stream.
    Mark(usize),
    /// All so far are so many bytes of `data`.
    Name(usize),
    /// Behind the colon of `data`, where one space does not count.
    Space,
    Data,
    /// In another field or a comment.
    Other,
}

impl EventStream {
    pub fn new() -> Self {
        Self {
            line: Line::Mark(0),
            after_cr: false,
            has_data: false,
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
                Line::Name(seen) => self.name(byte, seen, take),
                Line::Space => self.space(byte),
                Line::Data | Line::Other => self.rest_of_line(piece, take),
            };
            piece = &piece[read..];
        }
    }

    /// The stream has ended. A last event counts though the blank line behind it, or the end of its line, be missing:
    /// whether its data are whole is for their reader to tell.
    pub fn finish(self, take: &mut impl FnMut(Part<'_>)) {
        if self.has_data {
            take(Part::End);
        }
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
            _ => self.line = Line::Other,
        }
        1
    }

    fn space(&mut self, byte: u8) -> usize {
        self.line = Line::Data;
        usize::from(byte == b' ')
    }

    fn rest_of_line(&mut self, piece: &[u8], take: &mut impl FnMut(Part<'_>)) -> usize {
        let end = memchr2(b'\r', b'\n', piece);
        let text = &piece[..end.unwrap_or(piece.len())];
        if self.line == Line::Data && !text.is_empty() {
            take(Part::Data(text));
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

    fn end_line(&mut self, byte: u8) {
        self.after_cr = byte == b'\r';
        self.line = Line::Name(0);
    }

    fn end_event(&mut self, take: &mut impl FnMut(Part<'_>)) {
        if std::mem::take(&mut self.has_data) {
            take(Part::End);
        }
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
        let (mut events, mut data) = (Vec::new(), Vec::new());
        let mut take = |part: Part<'_>| match part {
            Part::Data(bytes) => data.extend_from_slice(bytes),
            Part::End => {
                let event = std::mem::take(&mut data);
                events.push(String::from_utf8_lossy(&event).into_owned());
            }
        };
        let mut stream = EventStream::new();
        for piece in pieces {
            stream.feed(piece, &mut take);
        }
        stream.finish(&mut take);
        events
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
