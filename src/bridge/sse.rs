//! Server-sent events (WHATWG HTML §9.2) that arrive in pieces, cut anywhere: gives the data of each event that is
//! whole. All other fields are left aside: what an event is, its data say.

/// What may open a stream, before its first line.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

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
    /// The last line was ended by CR: LF right behind it belongs to it.
    after_cr: bool,
    /// No line has ended yet, so that the first may begin with a byte order mark.
    at_start: bool,
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
            after_cr: false,
            at_start: true,
        }
    }

    /// Reads the next piece; gives the data of the events that it ends.
    pub(crate) fn feed(&mut self, mut piece: &[u8]) -> Result<Vec<Vec<u8>>, TooLarge> {
        let mut events = Vec::new();
        while let Some(&first) = piece.first() {
            if std::mem::take(&mut self.after_cr) && first == b'\n' {
                piece = &piece[1..];
                continue;
            }
            let end = piece.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            let more = &piece[..end.unwrap_or(piece.len())];
            if self.line.len() + self.data.len() + more.len() > self.limit {
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
        self.line.len() + self.data.len()
    }

    /// The stream has ended. A last event counts though the blank line behind it, or the end of its line, be missing;
    /// whether its data are whole is for their reader to tell.
    pub(crate) fn finish(&mut self) -> Option<Vec<u8>> {
        if !self.line.is_empty() {
            self.end_line();
        }
        self.end_event()
    }

    /// The line under way has ended.
    fn end_line(&mut self) -> Option<Vec<u8>> {
        let mut buffer = std::mem::take(&mut self.line);
        let event = self.take_line(&buffer);
        buffer.clear();
        self.line = buffer;
        event
    }

    /// Takes a line; one that is empty ends the event.
    fn take_line(&mut self, mut line: &[u8]) -> Option<Vec<u8>> {
        if std::mem::take(&mut self.at_start) {
            line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
        }
        if line.is_empty() {
            return self.end_event();
        }
        let value = match line.strip_prefix(b"data") {
            Some([]) => Some(&[][..]),
            Some([b':', value @ ..]) => Some(value.strip_prefix(b" ").unwrap_or(value)),
            _ => None,
        };
        if let Some(value) = value {
            if self.has_data {
                self.data.push(b'\n');
            }
            self.has_data = true;
            self.data.extend_from_slice(value);
        }
        None
    }

    /// Gives the data of the event under way, if it has any.
    fn end_event(&mut self) -> Option<Vec<u8>> {
        let data = std::mem::take(&mut self.data);
        std::mem::take(&mut self.has_data).then_some(data)
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
