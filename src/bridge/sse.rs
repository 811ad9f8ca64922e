//! Server-sent events (WHATWG HTML §9.2) that arrive in pieces, cut anywhere: gives the data of each event that is
//! whole, and its name, by which some gateways alone say what it is. All other fields are left aside.

use super::json::without_mark;

/// The reader of one stream.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// Most bytes of one event.
    limit: usize,
    /// The line under way.
    line: Vec<u8>,
    /// The data of the event under way; its lines are joined by LF.
    data: Vec<u8>,
    /// The event under way has a `data` field.
    has_data: bool,
    /// The name of the event under way.
    name: Vec<u8>,
    /// The last line was ended by CR: LF right behind it belongs to it.
    after_cr: bool,
    /// No line has ended yet, so that the first may begin with a byte order mark.
    at_start: bool,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// Its `event` field; empty where it has none.
    pub(crate) name: Vec<u8>,
    /// Its `data` fields.
    pub(crate) data: Vec<u8>,
}

/// An event has more bytes than the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLarge;

impl Decoder {
    /// A reader of events of at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Decoder {
            limit,
            line: Vec::new(),
            data: Vec::new(),
            has_data: false,
            name: Vec::new(),
            after_cr: false,
            at_start: true,
        }
    }

    /// Reads the next piece; gives the events that it ends.
    pub(crate) fn feed(&mut self, mut piece: &[u8]) -> Result<Vec<Event>, TooLarge> {
        let mut events = Vec::new();
        while let Some(&first) = piece.first() {
            if std::mem::take(&mut self.after_cr) && first == b'\n' {
                piece = &piece[1..];
                continue;
            }
            let end = piece.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            let more = &piece[..end.unwrap_or(piece.len())];
            if self.held() + more.len() > self.limit {
                return Err(TooLarge);
            }
            self.line.extend_from_slice(more);
            let Some(end) = end else {
                break;
            };
            self.after_cr = piece[end] == b'\r';
            piece = &piece[end + 1..];
            events.extend(self.end_line());
        }
        Ok(events)
    }

    /// Bytes of the event under way.
    pub(crate) fn held(&self) -> usize {
        self.line.len() + self.data.len() + self.name.len()
    }

    /// The stream has ended. A last event counts though the blank line behind it, or the end of its line, be missing;
    /// whether its data are whole is for their reader to tell.
    pub(crate) fn finish(&mut self) -> Option<Event> {
        if !self.line.is_empty() {
            self.end_line();
        }
        self.end_event()
    }

    /// The line under way has ended.
    fn end_line(&mut self) -> Option<Event> {
        let mut buffer = std::mem::take(&mut self.line);
        let event = self.take_line(&buffer);
        buffer.clear();
        self.line = buffer;
        event
    }

    /// Takes a line; one that is empty ends the event.
    fn take_line(&mut self, mut line: &[u8]) -> Option<Event> {
        if std::mem::take(&mut self.at_start) {
            line = without_mark(line);
        }
        if line.is_empty() {
            return self.end_event();
        }
        if let Some(name) = value_of(line, b"event") {
            self.name.clear();
            self.name.extend_from_slice(name);
        }
        if let Some(value) = value_of(line, b"data") {
            if self.has_data {
                self.data.push(b'\n');
            }
            self.has_data = true;
            self.data.extend_from_slice(value);
        }
        None
    }

    /// Gives the event under way, if it has any data.
    fn end_event(&mut self) -> Option<Event> {
        let event = Event {
            name: std::mem::take(&mut self.name),
            data: std::mem::take(&mut self.data),
        };
        std::mem::take(&mut self.has_data).then_some(event)
    }
}

/// The value of a line, if it is of this field.
fn value_of<'l>(line: &'l [u8], field: &[u8]) -> Option<&'l [u8]> {
    match line.strip_prefix(field)? {
        [] => Some(&[]),
        [b':', value @ ..] => Some(value.strip_prefix(b" ").unwrap_or(value)),
        _ => None,
    }
}

/// Writes an event of this name, or of none, whose data are one line.
pub(crate) fn write_event(name: Option<&str>, data: &str, out: &mut Vec<u8>) {
    if let Some(name) = name {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(name.as_bytes());
        out.push(b'\n');
    }
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(data.as_bytes());
    out.extend_from_slice(b"\n\n");
}
