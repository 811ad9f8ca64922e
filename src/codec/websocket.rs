//! The frames of RFC 6455: bytes in, messages and control frames out, and frames back to bytes. Not
//! the opening handshake, no extension, and no opinion on what a message says.
//!
//! The two directions have different readers, because a proxy owes them different things.
//! [`ClientReader`] hands a message out only when it is whole, so that nothing of it has been sent
//! on before it was judged. [`ServerReader`] looks on while bytes are relayed, keeps none of them
//! and cannot fail.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;

/// The longest header of a frame, in bytes: two that are always there, eight of length, four of
/// mask.
pub const MAX_HEADER_BYTES: usize = 14;

/// The most frames one message from a client may be cut into. It bounds what headers (of empty
/// fragments, say) add to the bytes held for a message: below 1 MiB.
pub const MAX_FRAGMENTS: usize = 65_536;

/// The longest payload of a control frame, in bytes (RFC 6455 §5.5).
const MAX_CONTROL_BYTES: usize = 125;

/// Payload is unmasked for a consumer in runs of this many bytes, few enough to stay in the
/// first-level cache.
const UNMASK_BYTES: usize = 4096;

/// What a frame is (RFC 6455 §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// A further frame of the message that is open.
    Continuation = 0x0,
    /// The first frame of a message of UTF-8 text.
    Text = 0x1,
    /// The first frame of a message of bytes.
    Binary = 0x2,
    /// A control frame that ends the connection, with a status code or without.
    Close = 0x8,
    /// A control frame that asks for a pong.
    Ping = 0x9,
    /// A control frame that answers a ping.
    Pong = 0xa,
}

/// Why a peer's bytes are not a legal sequence of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// RSV1 is set: a compressed message, although no compression was agreed on.
    Compressed,
    /// RSV2 or RSV3 is set.
    ReservedBits,
    /// An opcode that the protocol keeps for later.
    UnknownOpcode(u8),
    /// A frame from a client without a mask.
    Unmasked,
    /// A frame from a server with a mask.
    Masked,
    /// A client wrote a length in more bytes than it needs. Parsers differ on it, and a frame that
    /// two of them read differently must not pass between them.
    OverlongLength,
    /// A length of 2^63 bytes or more.
    ImpossibleLength,
    /// A control frame in fragments.
    FragmentedControl,
    /// A control frame of more than 125 bytes.
    ControlTooLong,
    /// A close frame of one byte: half a status code.
    MalformedClose,
    /// A continuation where no message is open.
    UnexpectedContinuation,
    /// A new message before the last frame of the one that is open.
    InterleavedMessage,
    /// The joined payload would exceed the limit of this many bytes.
    MessageTooBig {
        /// The limit, in bytes of payload.
        limit: usize,
    },
    /// A message in more than [`MAX_FRAGMENTS`] frames.
    TooManyFragments,
}

/// Reads what a client sends. Every byte is held until the frame it belongs to (of a control frame)
/// or the message it belongs to is complete; after an error or a close frame the reader drops what
/// follows, so that it cannot be sent on.
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
    /// The next bytes of the message that is arriving, to be looked at and not to be sent on. An
    /// empty message has none.
    Payload(MaskedPayload),
    /// The message whose payload was shown before is complete.
    Message(Message),
    /// A control frame, which may stand between the fragments of a message. `raw` is the frame as
    /// it came.
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
    /// The mask of the first frame. It masks a rewritten message too: it is as unpredictable to
    /// whoever wrote the payload as the client made it, which is all that a mask is for (RFC 6455
    /// §10.3).
    pub mask: [u8; 4],
    /// The joined payload, in bytes.
    pub payload_length: usize,
    /// The message's frames exactly as they came, less the control frames between them. It shares
    /// memory with the chunk it came in where it lay whole in one.
    pub raw: Bytes,
}

/// A close, ping or pong frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlFrame {
    /// `Close`, `Ping` or `Pong`.
    pub opcode: Opcode,
    /// At most 125 bytes, unmasked.
    pub payload: Vec<u8>,
}

/// Looks on at what a server sends. It never fails what it observes: at the first illegal frame it
/// says so and is silent from then on.
pub struct ServerReader {
    parser: FrameParser,
    /// The payload of the control frame being read; at most 125 bytes.
    control: Vec<u8>,
    ended: bool,
}

/// What [`ServerReader`] saw, in the order of the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerEvent<'a> {
    /// A message begins.
    MessageStart {
        /// `Text` or `Binary`.
        opcode: Opcode,
        /// Bytes of this call before the message; `None` where it began in an earlier one.
        begin: Option<usize>,
    },
    /// The next bytes of its payload, never empty.
    Payload(&'a [u8]),
    /// The message is complete. Its last byte is the last of the first `offset` bytes fed in this
    /// call: after them a message of the proxy's own may stand.
    MessageEnd {
        /// Bytes of this call up to the end of the message.
        offset: usize,
    },
    /// A control frame, which may stand between the fragments of a message.
    Control(ControlFrame),
    /// The bytes are not legal frames. This is the last event.
    Stopped(ProtocolError),
}

/// Who wrote the frames.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sender {
    Client,
    Server,
}

/// Walks frames byte by byte and enforces all rules that do not need the payload. What both readers
/// stand on.
struct FrameParser {
    sender: Sender,
    /// The header being read: its first `header_read` bytes are there.
    header: [u8; MAX_HEADER_BYTES],
    header_read: usize,
    frame: Option<FrameHeader>,
    /// Payload bytes of `frame` that are still to come.
    payload_left: u64,
    /// Whether a data message has begun and its last frame has not ended.
    in_message: bool,
}

#[derive(Clone, Copy)]
struct FrameHeader {
    fin: bool,
    opcode: Opcode,
    mask: Option<[u8; 4]>,
    /// Payload bytes, below 2^63.
    length: u64,
}

enum Step {
    /// A header is complete and legal at this place.
    Header(FrameHeader),
    /// Payload bytes have been taken, at least one.
    Payload(Run),
    /// The frame's last byte has been taken.
    End(FrameHeader),
}

/// A run of `length` payload bytes, the first of which is byte `offset` of the frame's payload.
#[derive(Clone, Copy)]
struct Run {
    frame: FrameHeader,
    offset: u64,
    length: usize,
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

/// One frame. `mask` is `Some` from client to server and `None` from server to client. That control
/// frames stay within 125 bytes and in one piece is the caller's business.
pub fn encode(fin: bool, opcode: Opcode, mask: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader {
        fin,
        opcode,
        mask,
        length: payload.len() as u64,
    };
    let mut frame = Vec::with_capacity(header.encoded_length() + payload.len());
    header.encode(&mut frame);
    let start = frame.len();
    frame.extend_from_slice(payload);
    if let Some(mask) = mask {
        apply_mask(&mut frame[start..], mask);
    }
    frame
}

/// One unfragmented frame whose payload is `buffer[start..]`. With [`MAX_HEADER_BYTES`] of room
/// before `start` the frame is built in place; with less the payload is copied. `start` must lie
/// within the buffer.
pub fn encode_in_place(
    opcode: Opcode,
    mask: Option<[u8; 4]>,
    mut buffer: Vec<u8>,
    start: usize,
) -> Bytes {
    let header = FrameHeader {
        fin: true,
        opcode,
        mask,
        length: buffer[start..].len() as u64,
    };
    let Some(frame_start) = start.checked_sub(header.encoded_length()) else {
        return encode(true, opcode, mask, &buffer[start..]).into();
    };
    let mut encoded = Vec::with_capacity(MAX_HEADER_BYTES);
    header.encode(&mut encoded);
    buffer[frame_start..start].copy_from_slice(&encoded);
    if let Some(mask) = mask {
        apply_mask(&mut buffer[start..], mask);
    }
    Bytes::from(buffer).slice(frame_start..)
}

/// A whole text message in one frame.
pub fn text_frame(text: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    encode(true, Opcode::Text, mask, text.as_bytes())
}

/// A close frame. A reason longer than the 123 bytes there is room for is cut between two
/// characters.
pub fn close_frame(code: u16, reason: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    let reason = &reason[..reason.floor_char_boundary(MAX_CONTROL_BYTES - 2)];
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(reason.as_bytes());
    encode(true, Opcode::Close, mask, &payload)
}

/// Masks or, being its own inverse, unmasks: byte `i` is combined with byte `i mod 4` of the mask
/// (RFC 6455 §5.3).
pub fn apply_mask(bytes: &mut [u8], mask: [u8; 4]) {
    // A block as long as the mask is repeated is what the compiler turns into vector instructions.
    let key: [u8; 32] = std::array::from_fn(|i| mask[i % 4]);
    let (blocks, rest) = bytes.as_chunks_mut::<32>();
    for block in blocks {
        xor(block, &key);
    }
    xor(rest, &key);
}

fn xor(bytes: &mut [u8], key: &[u8; 32]) {
    for (byte, key) in bytes.iter_mut().zip(key) {
        *byte ^= key;
    }
}

impl Opcode {
    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

impl ProtocolError {
    /// The status with which the connection is to be closed (RFC 6455 §7.4.1).
    pub fn close_code(self) -> u16 {
        match self {
            Self::MessageTooBig { .. } => 1009,
            Self::TooManyFragments => 1008,
            _ => 1002,
        }
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compressed => f.write_str("compressed frame, although compression was declined"),
            Self::ReservedBits => f.write_str("frame with a reserved bit set"),
            Self::UnknownOpcode(opcode) => write!(f, "frame with the unknown opcode `{opcode:#x}`"),
            Self::Unmasked => f.write_str("client frame without a mask"),
            Self::Masked => f.write_str("server frame with a mask"),
            Self::OverlongLength => f.write_str("frame length in more bytes than it needs"),
            Self::ImpossibleLength => f.write_str("frame length of 2^63 bytes or more"),
            Self::FragmentedControl => f.write_str("control frame in fragments"),
            Self::ControlTooLong => f.write_str("control frame of more than 125 bytes"),
            Self::MalformedClose => f.write_str("close frame with half a status code"),
            Self::UnexpectedContinuation => f.write_str("continuation frame outside a message"),
            Self::InterleavedMessage => f.write_str("new message before the end of the last"),
            Self::MessageTooBig { limit } => write!(f, "message of more than {limit} bytes"),
            Self::TooManyFragments => write!(f, "message of more than {MAX_FRAGMENTS} frames"),
        }
    }
}

impl std::error::Error for ProtocolError {}

impl ClientReader {
    /// A reader that refuses messages of more than `limit` bytes, as soon as the header of a frame
    /// announces them.
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

    /// The next event, or `None` until more is fed. An error is the last event; so is a close
    /// frame.
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
        // A header that has begun is in the parser, and may yet turn out to be that of a control
        // frame.
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

impl ControlFrame {
    /// The status of a close frame; `None` where it has none, and for ping and pong.
    pub fn close_code(&self) -> Option<u16> {
        match (self.opcode, &self.payload[..]) {
            (Opcode::Close, [high, low, ..]) => Some(u16::from_be_bytes([*high, *low])),
            _ => None,
        }
    }

    /// The reason given with the status; empty where there is none.
    pub fn close_reason(&self) -> Cow<'_, str> {
        match self.close_code() {
            Some(_) => String::from_utf8_lossy(&self.payload[2..]),
            None => Cow::Borrowed(""),
        }
    }
}

impl ServerReader {
    /// A reader at the beginning of the connection's frames.
    pub fn new() -> Self {
        Self {
            parser: FrameParser::new(Sender::Server),
            control: Vec::new(),
            ended: false,
        }
    }

    /// Shows the next bytes from the server, cut anywhere, to `sink`.
    pub fn feed(&mut self, bytes: &[u8], mut sink: impl FnMut(ServerEvent<'_>)) {
        let mut rest = bytes;
        while !self.ended {
            match self.parser.step(&mut rest) {
                Ok(Some(step)) => self.show(step, &bytes[..bytes.len() - rest.len()], &mut sink),
                Ok(None) => return,
                Err(error) => {
                    self.ended = true;
                    sink(ServerEvent::Stopped(error));
                }
            }
        }
    }

    /// Whether a control frame of the proxy's own may follow the bytes fed so far. Never again
    /// after a close frame, or once the reader has lost its place.
    pub fn at_frame_boundary(&self) -> bool {
        !self.ended && self.parser.frame.is_none() && self.parser.header_read == 0
    }

    /// Whether the server has said that it closes, or the reader has lost its place: what follows is not read, and
    /// nothing of the proxy's own may follow it.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether a message of the proxy's own may follow the bytes fed so far: not inside a frame,
    /// nor between two fragments.
    pub fn at_message_boundary(&self) -> bool {
        self.at_frame_boundary() && !self.parser.in_message
    }

    /// Bytes that were fed of a header which is not whole, where it may begin a message: not between two fragments.
    pub fn begun_header(&self) -> usize {
        match self.ended || self.parser.in_message {
            true => 0,
            false => self.parser.header_read,
        }
    }

    fn show(&mut self, step: Step, taken: &[u8], sink: &mut impl FnMut(ServerEvent<'_>)) {
        match step {
            Step::Header(frame) if matches!(frame.opcode, Opcode::Text | Opcode::Binary) => {
                let header = self.parser.announced_header_length();
                sink(ServerEvent::MessageStart {
                    opcode: frame.opcode,
                    begin: taken.len().checked_sub(header),
                })
            }
            Step::Payload(run) => {
                let bytes = &taken[taken.len() - run.length..];
                if run.frame.opcode.is_control() {
                    self.control.extend_from_slice(bytes);
                } else {
                    sink(ServerEvent::Payload(bytes));
                }
            }
            Step::End(frame) if frame.opcode.is_control() => {
                self.ended = frame.opcode == Opcode::Close;
                let (opcode, payload) = (frame.opcode, std::mem::take(&mut self.control));
                sink(ServerEvent::Control(ControlFrame { opcode, payload }));
            }
            Step::End(frame) if frame.fin => sink(ServerEvent::MessageEnd {
                offset: taken.len(),
            }),
            Step::Header(_) | Step::End(_) => {}
        }
    }
}

impl Default for ServerReader {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameParser {
    fn new(sender: Sender) -> Self {
        Self {
            sender,
            header: [0; MAX_HEADER_BYTES],
            header_read: 0,
            frame: None,
            payload_left: 0,
            in_message: false,
        }
    }

    /// Takes from the front of `input` what makes the next step. `None` asks for more input; all
    /// there was has then been taken.
    fn step(&mut self, input: &mut &[u8]) -> Result<Option<Step>, ProtocolError> {
        match self.frame {
            None => self.read_header(input),
            Some(frame) if self.payload_left == 0 => Ok(Some(self.end_frame(frame))),
            Some(_) if input.is_empty() => Ok(None),
            Some(frame) => {
                let offset = frame.length - self.payload_left;
                let length = self.payload_left.min(input.len() as u64);
                self.payload_left -= length;
                let length = length as usize; // no more than `input.len()`
                *input = &input[length..];
                Ok(Some(Step::Payload(Run {
                    frame,
                    offset,
                    length,
                })))
            }
        }
    }

    /// Payload bytes to come of the open message, where its last frame is the one being read.
    fn left_of_message(&self) -> Option<u64> {
        self.frame
            .filter(|frame| frame.fin && !frame.opcode.is_control())
            .map(|_| self.payload_left)
    }

    fn read_header(&mut self, input: &mut &[u8]) -> Result<Option<Step>, ProtocolError> {
        while self.header_read < self.header_length() {
            let Some((byte, rest)) = input.split_first() else {
                return Ok(None);
            };
            self.header[self.header_read] = *byte;
            self.header_read += 1;
            *input = rest;
        }
        let frame = self.parse_header()?;
        self.check_place(&frame)?;
        self.header_read = 0;
        self.payload_left = frame.length;
        self.in_message |= !frame.opcode.is_control();
        self.frame = Some(frame);
        Ok(Some(Step::Header(frame)))
    }

    /// Bytes of the header being read, as far as can be told from what is there.
    fn header_length(&self) -> usize {
        if self.header_read < 2 {
            return 2;
        }
        self.announced_header_length()
    }

    /// The same by its first two bytes; of the newest header where none is being read.
    fn announced_header_length(&self) -> usize {
        let length_bytes = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask_bytes = if self.header[1] & 0x80 != 0 { 4 } else { 0 };
        2 + length_bytes + mask_bytes
    }

    /// Reads the header and applies the rules that hold at any place.
    fn parse_header(&self) -> Result<FrameHeader, ProtocolError> {
        let [first, second, after @ ..] = self.header;
        if first & 0x40 != 0 {
            return Err(ProtocolError::Compressed);
        }
        if first & 0x30 != 0 {
            return Err(ProtocolError::ReservedBits);
        }
        let opcode =
            Opcode::from_bits(first & 0x0f).ok_or(ProtocolError::UnknownOpcode(first & 0x0f))?;
        let [a, b, c, d, e, f, g, h, ..] = after;
        let (length, length_bytes) = match second & 0x7f {
            126 => (u64::from(u16::from_be_bytes([a, b])), 2),
            127 => (u64::from_be_bytes([a, b, c, d, e, f, g, h]), 8),
            short => (u64::from(short), 0),
        };
        let mask = &after[length_bytes..length_bytes + 4];
        let mask = (second & 0x80 != 0).then(|| [mask[0], mask[1], mask[2], mask[3]]);
        let frame = FrameHeader {
            fin: first & 0x80 != 0,
            opcode,
            mask,
            length,
        };
        if length > i64::MAX as u64 {
            return Err(ProtocolError::ImpossibleLength);
        }
        // From a server it is let pass: clients read it, so it must be billed.
        if self.sender == Sender::Client && self.header_read != frame.encoded_length() {
            return Err(ProtocolError::OverlongLength);
        }
        Ok(frame)
    }

    /// Applies the rules that depend on the sender and on what came before.
    fn check_place(&self, frame: &FrameHeader) -> Result<(), ProtocolError> {
        match (self.sender, frame.mask) {
            (Sender::Client, None) => return Err(ProtocolError::Unmasked),
            (Sender::Server, Some(_)) => return Err(ProtocolError::Masked),
            _ => {}
        }
        match frame.opcode {
            Opcode::Continuation if !self.in_message => Err(ProtocolError::UnexpectedContinuation),
            Opcode::Text | Opcode::Binary if self.in_message => {
                Err(ProtocolError::InterleavedMessage)
            }
            Opcode::Continuation | Opcode::Text | Opcode::Binary => Ok(()),
            _ if !frame.fin => Err(ProtocolError::FragmentedControl),
            _ if frame.length > MAX_CONTROL_BYTES as u64 => Err(ProtocolError::ControlTooLong),
            Opcode::Close if frame.length == 1 => Err(ProtocolError::MalformedClose),
            _ => Ok(()),
        }
    }

    fn end_frame(&mut self, frame: FrameHeader) -> Step {
        self.frame = None;
        if frame.fin && !frame.opcode.is_control() {
            self.in_message = false;
        }
        Step::End(frame)
    }
}

impl FrameHeader {
    /// The mask, or the one that changes nothing.
    fn mask(&self) -> [u8; 4] {
        self.mask.unwrap_or_default()
    }

    fn encoded_length(&self) -> usize {
        let length_bytes = match self.length {
            0..126 => 0,
            126..0x1_0000 => 2,
            _ => 8,
        };
        2 + length_bytes + if self.mask.is_some() { 4 } else { 0 }
    }

    /// Appends the header, its length in as few bytes as can be.
    fn encode(&self, out: &mut Vec<u8>) {
        let fin = if self.fin { 0x80 } else { 0 };
        let masked = if self.mask.is_some() { 0x80 } else { 0 };
        out.push(fin | self.opcode as u8);
        match self.length {
            short @ 0..126 => out.push(masked | short as u8),
            medium @ 126..0x1_0000 => {
                out.push(masked | 126);
                out.extend_from_slice(&(medium as u16).to_be_bytes());
            }
            long => {
                out.push(masked | 127);
                out.extend_from_slice(&long.to_be_bytes());
            }
        }
        out.extend_from_slice(self.mask.as_ref().map_or(&[], |mask| &mask[..]));
    }
}

impl Run {
    /// The frame's mask, turned so that its first byte belongs to the first byte of the run.
    fn mask(&self) -> [u8; 4] {
        let mut mask = self.frame.mask();
        mask.rotate_left((self.offset % 4) as usize);
        mask
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

    /// Copies `bytes`. `left` is what is known of the payload still to come; room is made for no
    /// more than that, and never for more than has already come, so that a length alone, which
    /// costs a client nothing, takes no memory.
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

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    fn client_events(bytes: &[u8]) -> Vec<Result<ClientEvent, ProtocolError>> {
        let mut reader = ClientReader::new(1000);
        reader.feed(Bytes::copy_from_slice(bytes));
        std::iter::from_fn(|| reader.next_event()).collect()
    }

    fn client_error(bytes: &[u8]) -> Option<ProtocolError> {
        client_events(bytes).pop()?.err()
    }

    fn server_error(bytes: &[u8]) -> Option<ProtocolError> {
        let mut stopped = None;
        ServerReader::new().feed(bytes, |event| {
            if let ServerEvent::Stopped(error) = event {
                stopped = Some(error);
            }
        });
        stopped
    }

    #[test]
    fn frames_look_as_in_the_examples_of_the_rfc() {
        assert_eq!(text_frame("Hello", None), b"\x81\x05Hello");
        let masked = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        assert_eq!(text_frame("Hello", Some(MASK)), masked);
        assert_eq!(encode(false, Opcode::Text, None, b"Hel"), b"\x01\x03Hel");
        assert_eq!(
            encode(true, Opcode::Continuation, None, b"lo"),
            b"\x80\x02lo"
        );
        assert_eq!(encode(true, Opcode::Ping, None, b"Hello"), b"\x89\x05Hello");
        let medium = encode(true, Opcode::Binary, None, &[0; 256]);
        assert_eq!(medium[..4], *b"\x82\x7e\x01\x00");
        let long = encode(true, Opcode::Binary, None, &[0; 65536]);
        assert_eq!(long[..10], *b"\x82\x7f\0\0\0\0\0\x01\0\0");
    }

    #[test]
    fn the_shortest_length_encoding_is_chosen_at_every_border() {
        let cases = [(0, 2), (125, 2), (126, 4), (65535, 4), (65536, 10)];
        for (length, header) in cases {
            let frame = encode(true, Opcode::Binary, None, &vec![7; length]);
            assert_eq!(frame.len(), header + length);
        }
    }

    #[test]
    fn each_breach_of_the_protocol_by_a_client_has_its_error() {
        use ProtocolError::*;
        let cases: [(&[u8], ProtocolError); 16] = [
            (b"\xc1\x80\0\0\0\0", Compressed),
            (b"\xa1\x80\0\0\0\0", ReservedBits),
            (b"\x91\x80\0\0\0\0", ReservedBits),
            (b"\x83\x80\0\0\0\0", UnknownOpcode(3)),
            (b"\x8b\x80\0\0\0\0", UnknownOpcode(11)),
            (b"\x81\x00", Unmasked),
            (b"\x81\xfe\x00\x7d\0\0\0\0", OverlongLength),
            (b"\x81\xff\0\0\0\0\0\0\xff\xff\0\0\0\0", OverlongLength),
            (b"\x81\xff\x80\0\0\0\0\0\0\0\0\0\0\0", ImpossibleLength),
            (b"\x09\x80\0\0\0\0", FragmentedControl),
            (b"\x89\xfe\x00\x7e\0\0\0\0", ControlTooLong),
            (b"\x88\x81\0\0\0\0\x03", MalformedClose),
            (b"\x80\x80\0\0\0\0", UnexpectedContinuation),
            (b"\x01\x80\0\0\0\0\x81\x80\0\0\0\0", InterleavedMessage),
            (b"\x01\x80\0\0\0\0\x02\x80\0\0\0\0", InterleavedMessage),
            (b"\x81\xfe\x03\xe9\0\0\0\0", MessageTooBig { limit: 1000 }),
        ];
        for (bytes, error) in cases {
            assert_eq!(client_error(bytes), Some(error), "{bytes:x?}");
        }
    }

    #[test]
    fn the_observer_of_a_server_stops_at_a_breach_and_forgives_an_overlong_length() {
        assert_eq!(server_error(b"\xc1\x00"), Some(ProtocolError::Compressed));
        assert_eq!(
            server_error(b"\x81\x80\0\0\0\0"),
            Some(ProtocolError::Masked)
        );
        assert_eq!(server_error(b"\x81\x7e\x00\x01a"), None);
    }

    #[test]
    fn each_error_has_the_status_to_close_with() {
        assert_eq!(ProtocolError::Compressed.close_code(), 1002);
        assert_eq!(ProtocolError::MessageTooBig { limit: 1 }.close_code(), 1009);
        assert_eq!(ProtocolError::TooManyFragments.close_code(), 1008);
    }

    #[test]
    fn a_message_within_one_chunk_is_not_copied() {
        let chunk = Bytes::from(text_frame("hello", Some(MASK)));
        let mut reader = ClientReader::new(1000);
        reader.feed(chunk.clone());
        let events: Vec<_> = std::iter::from_fn(|| reader.next_event()).collect();
        let [
            Ok(ClientEvent::Payload(_)),
            Ok(ClientEvent::Message(message)),
        ] = &events[..]
        else {
            panic!("unexpected {events:?}");
        };
        assert_eq!(message.raw.as_ptr(), chunk.as_ptr());
    }

    #[test]
    fn an_announced_length_takes_no_memory() {
        let mut reader = ClientReader::new(64 << 20);
        reader.feed(Bytes::from_static(
            b"\x81\xff\0\0\0\0\x03\xff\0\0\0\0\0\0abc",
        ));
        while reader.next_event().is_some() {}
        assert!(reader.held_bytes() < 100);
    }

    #[test]
    fn a_message_of_endless_empty_fragments_is_refused() {
        let mut frames = encode(false, Opcode::Text, Some(MASK), b"");
        for _ in 0..MAX_FRAGMENTS {
            frames.extend(encode(false, Opcode::Continuation, Some(MASK), b""));
        }
        assert_eq!(client_error(&frames), Some(ProtocolError::TooManyFragments));
        frames.truncate(frames.len() - 6);
        assert_eq!(client_events(&frames), []);
    }

    #[test]
    fn nothing_comes_after_a_close_frame() {
        let mut frames = close_frame(1000, "bye", Some(MASK));
        frames.extend(text_frame("more", Some(MASK)));
        let events = client_events(&frames);
        let [Ok(ClientEvent::Control { frame, .. })] = &events[..] else {
            panic!("unexpected {events:?}");
        };
        assert_eq!(
            (frame.close_code(), &*frame.close_reason()),
            (Some(1000), "bye")
        );
    }

    #[test]
    fn a_reader_that_has_ended_keeps_nothing() {
        let mut reader = ClientReader::new(1000);
        reader.feed(Bytes::from(encode(
            false,
            Opcode::Text,
            Some(MASK),
            b"held",
        )));
        while reader.next_event().is_some() {}
        assert_ne!(reader.held_bytes(), 0);
        reader.feed(Bytes::from(text_frame("interleaved", Some(MASK))));
        assert!(matches!(reader.next_event(), Some(Err(_))));
        assert_eq!(reader.held_bytes(), 0);
        let late = Bytes::from(text_frame("late", Some(MASK)));
        reader.feed(late.clone());
        assert_eq!(reader.next_event(), None);
        assert!(late.is_unique());
    }

    #[test]
    fn nothing_of_a_server_is_observed_or_injected_after_its_close_frame() {
        let mut frames = close_frame(1000, "", None);
        frames.extend(text_frame("more", None));
        let mut reader = ServerReader::new();
        let mut events = 0;
        reader.feed(&frames, |_| events += 1);
        assert_eq!(events, 1);
        assert!(!reader.at_frame_boundary());
    }

    #[test]
    fn a_close_frame_without_status_has_none() {
        let frame = ControlFrame {
            opcode: Opcode::Close,
            payload: Vec::new(),
        };
        assert_eq!((frame.close_code(), &*frame.close_reason()), (None, ""));
    }

    #[test]
    fn a_long_close_reason_is_cut_between_characters() {
        let frame = close_frame(1008, &"é".repeat(100), None);
        assert_eq!(frame.len(), 2 + 2 + 122);
        assert_eq!(server_error(&frame), None);
    }
}
