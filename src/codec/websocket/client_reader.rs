//! What a client sends, handed out only when it is whole.

use bytes::Bytes;

use super::encode::{apply_mask, encode};
use super::parser::{FrameHeader, FrameParser, Run, Sender, Step};
use super::{ControlFrame, MAX_FRAGMENTS, Opcode, ProtocolError};

/// Payload is unmasked for a consumer in runs of this many bytes, few enough to stay in the first-level cache.
const UNMASK_BYTES: usize = 4096;

/// Reads what a client sends. Every byte is held until the frame it belongs to (of a control frame) or the message it
/// belongs to is complete; after an error or a close frame the reader drops what follows, so that it cannot be sent on.
pub struct ClientReader {
    parser: FrameParser,
    /// The longest message in bytes of joined payload.
    limit: usize,
    /// The chunk being worked through. Its bytes before `position` have been taken, but those from
    /// `message.unheld` on belong to a message that is not complete.
    chunk: Bytes,
    position: usize,
    message: Option<MessageUnderway>,
    /// The payload of the control frame being read, still masked; at most 125 bytes.
    control: Vec<u8>,
    ended: bool,
}

/// What [`ClientReader`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientEvent {
    /// The next bytes of the message that is arriving, to be looked at and not to be sent on. An empty message has none.
    Payload(MaskedPayload),
    /// The message whose payload was shown before is complete.
    Message(Message),
    /// A control frame, which may stand between the fragments of a message. `raw` is the frame as it came.
    Control {
        /// The frame, decoded.
        frame: ControlFrame,
        /// The bytes of the frame.
        raw: Bytes,
    },
}

/// Payload bytes as they were on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaskedPayload {
    masked: Bytes,
    /// Turned so that its first byte belongs to the first byte of `masked`.
    mask: [u8; 4],
}

/// A complete message of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `Text` or `Binary`.
    pub opcode: Opcode,
    /// The mask of the first frame. It masks a rewritten message too: it is as unpredictable to whoever wrote the payload
    /// as the client made it, which is all that a mask is for (RFC 6455 §10.3).
    pub mask: [u8; 4],
    /// The joined payload, in bytes.
    pub payload_length: usize,
    /// The message's frames exactly as they came, less the control frames between them. It shares
    /// memory with the chunk it came in where it lay whole in one.
    pub raw: Bytes,
}

/// A message of which frames are still to come. Its bytes so far are `held`, then the chunk from
/// `unheld` to the current position.
struct MessageUnderway {
    opcode: Opcode,
    mask: [u8; 4],
    payload_length: usize,
    fragments: usize,
    held: Vec<u8>,
    /// A message that lies in one chunk is never copied: its bytes move to `held` only when the
    /// chunk ends or a control frame interrupts them.
    unheld: Option<usize>,
}

impl ClientReader {
    /// A reader that refuses messages of more than `limit` bytes, as soon as the header of a frame announces them.
    pub fn new(limit: usize) -> Self {
        Self {
            parser: FrameParser::new(Sender::Client),
            limit,
            chunk: Bytes::new(),
            position: 0,
            message: None,
            control: Vec::new(),
            ended: false,
        }
    }

    /// Takes the next bytes from the client, cut anywhere. Events are then drawn with
    /// [`Self::next_event`] until there are none.
    pub fn feed(&mut self, chunk: Bytes) {
        if self.ended {
            return;
        }
        let unread = self.chunk.slice(self.position..);
        self.hold_chunk();
        self.chunk = if unread.is_empty() {
            chunk
        } else {
            [unread, chunk].concat().into()
        };
    }

    /// The next event, or `None` until more is fed. An error is the last event; so is a close frame.
    pub fn next_event(&mut self) -> Option<Result<ClientEvent, ProtocolError>> {
        if self.ended {
            return None;
        }
        let event = self.read_event();
        if event.is_err() {
            self.end();
        }
        event.transpose()
    }

    /// Whether bytes are still to come of what has begun: of a frame, or of a message between two fragments.
    pub fn awaits_rest(&self) -> bool {
        !self.ended && !self.parser.is_between_messages()
    }

    /// The length of the message under way in bytes of payload, where a frame has announced its end; else 0.
    pub fn announced_bytes(&self) -> usize {
        let is_last = self.parser.left_of_message().is_some();
        let message = self.message.as_ref().filter(|_| is_last);
        message.map_or(0, |message| message.payload_length)
    }

    /// Memory held for a message of which bytes are still to come.
    pub fn held_bytes(&self) -> usize {
        self.message
            .as_ref()
            .map_or(0, |message| message.held.capacity())
    }

    fn read_event(&mut self) -> Result<Option<ClientEvent>, ProtocolError> {
        loop {
            let mut rest = &self.chunk[self.position..];
            let step = self.parser.step(&mut rest)?;
            self.position = self.chunk.len() - rest.len();
            let event = match step {
                None => break,
                Some(Step::Header(frame)) => {
                    self.begin_frame(frame)?;
                    None
                }
                Some(Step::Payload(run)) => self.take_payload(run),
                Some(Step::End(frame)) => self.end_frame(frame),
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        self.hold_chunk();
        Ok(None)
    }

    fn begin_frame(&mut self, frame: FrameHeader) -> Result<(), ProtocolError> {
        // Without it the header began in an earlier chunk.
        let frame_start = self.position.checked_sub(frame.encoded_length());
        if frame.opcode.is_control() {
            self.hold_until(frame_start.unwrap_or(0));
            return Ok(());
        }
        let message = self
            .message
            .get_or_insert_with(|| MessageUnderway::new(&frame));
        message.add_fragment(frame.length, self.limit)?;
        message.unheld = message.unheld.or(frame_start).or_else(|| {
            // A legal client header has one spelling, so what is written here is what was read.
            frame.encode(&mut message.held);
            Some(self.position)
        });
        Ok(())
    }

    fn take_payload(&mut self, run: Run) -> Option<ClientEvent> {
        let start = self.position - run.length;
        let masked = self.chunk.slice(start..self.position);
        if run.frame.opcode.is_control() {
            self.control.extend_from_slice(&masked);
            return None;
        }
        if let Some(message) = &mut self.message {
            message.unheld.get_or_insert(start);
        }
        let mask = run.mask();
        Some(ClientEvent::Payload(MaskedPayload { masked, mask }))
    }

    fn end_frame(&mut self, frame: FrameHeader) -> Option<ClientEvent> {
        if frame.opcode.is_control() {
            return Some(self.end_control(frame));
        }
        if !frame.fin {
            return None;
        }
        let message = self.message.take()?;
        let message = message.finish(&self.chunk, self.position);
        Some(ClientEvent::Message(message))
    }

    fn end_control(&mut self, frame: FrameHeader) -> ClientEvent {
        let mut payload = std::mem::take(&mut self.control);
        apply_mask(&mut payload, frame.mask());
        let opcode = frame.opcode;
        // As with the headers of a message, there is one spelling.
        let raw = encode(true, opcode, frame.mask, &payload).into();
        if opcode == Opcode::Close {
            self.end();
        }
        let frame = ControlFrame { opcode, payload };
        ClientEvent::Control { frame, raw }
    }

    /// Lets the chunk go, after its share of an unfinished message has been copied.
    fn hold_chunk(&mut self) {
        // A header that has begun is in the parser, and may yet turn out to be that of a control frame.
        self.hold_until(self.position.saturating_sub(self.parser.header_read));
        self.chunk = Bytes::new();
        self.position = 0;
    }

    fn hold_until(&mut self, end: usize) {
        let left = self.parser.left_of_message();
        if let Some(message) = &mut self.message
            && let Some(start) = message.unheld.take()
        {
            message.hold(&self.chunk[start..end], left);
        }
    }

    fn end(&mut self) {
        self.ended = true;
        self.message = None;
        self.chunk = Bytes::new();
        self.position = 0;
    }
}

impl MaskedPayload {
    /// Hands the payload on in the clear, in order, in runs of a few kilobytes.
    pub fn for_each_unmasked(&self, mut consumer: impl FnMut(&[u8])) {
        let mut clear = [0; UNMASK_BYTES];
        // A run is a multiple of four bytes long, so the mask begins anew with each.
        for run in self.masked.chunks(UNMASK_BYTES) {
            let clear = &mut clear[..run.len()];
            clear.copy_from_slice(run);
            apply_mask(clear, self.mask);
            consumer(clear);
        }
    }
}

impl Message {
    /// Hands the joined payload on in the clear, in order, in runs of a few kilobytes.
    pub fn for_each_unmasked(&self, mut consumer: impl FnMut(&[u8])) {
        let mut parser = FrameParser::new(Sender::Client);
        let mut rest = &self.raw[..];
        // No error can come: these frames have been read before.
        while let Ok(Some(step)) = parser.step(&mut rest) {
            if let Step::Payload(run) = step {
                let end = self.raw.len() - rest.len();
                let masked = self.raw.slice(end - run.length..end);
                let mask = run.mask();
                MaskedPayload { masked, mask }.for_each_unmasked(&mut consumer);
            }
        }
    }

    /// The joined payload in the clear.
    pub fn payload(&self) -> Vec<u8> {
        let mut payload = Vec::with_capacity(self.payload_length);
        self.for_each_unmasked(|bytes| payload.extend_from_slice(bytes));
        payload
    }
}

impl MessageUnderway {
    fn new(first: &FrameHeader) -> Self {
        let mask = first.mask();
        Self {
            opcode: first.opcode,
            mask,
            payload_length: 0,
            fragments: 0,
            held: Vec::new(),
            unheld: None,
        }
    }

    /// Counts a frame of `length` payload bytes, before any of them is read.
    fn add_fragment(&mut self, length: u64, limit: usize) -> Result<(), ProtocolError> {
        let room = limit - self.payload_length; // which has passed this test before
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length <= room);
        self.payload_length += length.ok_or(ProtocolError::MessageTooBig { limit })?;
        self.fragments += 1;
        if self.fragments > MAX_FRAGMENTS {
            return Err(ProtocolError::TooManyFragments);
        }
        Ok(())
    }

    /// Copies `bytes`. `left` is what is known of the payload still to come; room is made for no more than that, and never
    /// for more than has already come, so that a length alone, which costs a client nothing, takes no memory.
    fn hold(&mut self, bytes: &[u8], left: Option<u64>) {
        let needed = self.held.len() + bytes.len();
        if needed > self.held.capacity() {
            let left = left
                .and_then(|left| usize::try_from(left).ok())
                .unwrap_or(usize::MAX);
            self.held.reserve_exact(bytes.len() + left.min(needed));
        }
        self.held.extend_from_slice(bytes);
    }

    fn finish(mut self, chunk: &Bytes, end: usize) -> Message {
        let start = self.unheld.unwrap_or(end);
        let raw = if self.held.is_empty() {
            chunk.slice(start..end)
        } else {
            self.hold(&chunk[start..end], Some(0));
            Bytes::from(self.held)
        };
        Message {
            opcode: self.opcode,
            mask: self.mask,
            payload_length: self.payload_length,
            raw,
        }
    }
}
