//! Server-sent events (WHATWG HTML §9.2) as the bridge reads and writes them: whole, with their names, by which some
//! gateways alone say what an event is.

use crate::codec::sse::{EventStream, Part};

/// Puts the events of one stream together, which arrives in pieces, cut anywhere.
#[derive(Debug)]
pub(crate) struct Decoder {
    stream: EventStream,
    /// Most bytes of the data of one event.
    limit: usize,
    /// The data of the event under way; its lines are joined by LF.
    data: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// Its `event` field; empty where it has none, or one that is longer than any that is known.
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
            stream: EventStream::new(),
            limit,
            data: Vec::new(),
        }
    }

    /// Reads the next piece; gives the events that it ends. Where an event is too large, the rest is not read.
    pub(crate) fn feed(&mut self, piece: &[u8]) -> Result<Vec<Event>, TooLarge> {
        let (mut events, mut fits) = (Vec::new(), true);
        let (data, limit) = (&mut self.data, self.limit);
        self.stream.feed(piece, &mut |part| match part {
            Part::Data(more) => {
                fits &= data.len() + more.len() <= limit;
                if fits {
                    data.extend_from_slice(more);
                }
            }
            Part::End(name) => events.push(Event::new(name, data)),
        });
        if fits { Ok(events) } else { Err(TooLarge) }
    }

    /// Bytes of the event under way.
    pub(crate) fn held(&self) -> usize {
        self.data.len()
    }

    /// The stream has ended. A last event counts though the blank line behind it, or the end of its line, be missing;
    /// whether its data are whole is for their reader to tell.
    pub(crate) fn finish(&mut self) -> Option<Event> {
        let mut last = None;
        let data = &mut self.data;
        std::mem::take(&mut self.stream).finish(&mut |part| {
            if let Part::End(name) = part {
                last = Some(Event::new(name, data));
            }
        });
        last
    }
}

impl Event {
    fn new(name: &[u8], data: &mut Vec<u8>) -> Self {
        Event {
            name: name.to_vec(),
            data: std::mem::take(data),
        }
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
