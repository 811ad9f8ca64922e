//! Walks the headers of frames, and holds them to the rules that do not need the payload.

use super::{MAX_CONTROL_BYTES, MAX_HEADER_BYTES, Opcode, ProtocolError};

/// Who wrote the frames.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    Client,
    Server,
}

/// Walks frames byte by byte and enforces all rules that do not need the payload. What both readers stand on.
pub(super) struct FrameParser {
    sender: Sender,
    /// The header being read: its first `header_read` bytes are there.
    header: [u8; MAX_HEADER_BYTES],
    pub(super) header_read: usize,
    pub(super) frame: Option<FrameHeader>,
    /// Payload bytes of `frame` that are still to come.
    payload_left: u64,
    /// Whether a data message has begun and its last frame has not ended.
    pub(super) in_message: bool,
}

#[derive(Clone, Copy)]
pub(super) struct FrameHeader {
    pub(super) fin: bool,
    pub(super) opcode: Opcode,
    pub(super) mask: Option<[u8; 4]>,
    /// Payload bytes, below 2^63.
    pub(super) length: u64,
}

pub(super) enum Step {
    /// A header is complete and legal at this place.
    Header(FrameHeader),
    /// Payload bytes have been taken, at least one.
    Payload(Run),
    /// The frame's last byte has been taken.
    End(FrameHeader),
}

/// A run of `length` payload bytes, the first of which is byte `offset` of the frame's payload.
#[derive(Clone, Copy)]
pub(super) struct Run {
    pub(super) frame: FrameHeader,
    offset: u64,
    pub(super) length: usize,
}

impl FrameParser {
    pub(super) fn new(sender: Sender) -> Self {
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
    pub(super) fn step(&mut self, input: &mut &[u8]) -> Result<Option<Step>, ProtocolError> {
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

    /// Whether nothing has begun that has not ended: no header, no frame, no message between two fragments.
    pub(super) fn is_between_messages(&self) -> bool {
        self.header_read == 0 && self.frame.is_none() && !self.in_message
    }

    /// Payload bytes to come of the open message, where its last frame is the one being read.
    pub(super) fn left_of_message(&self) -> Option<u64> {
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
    pub(super) fn announced_header_length(&self) -> usize {
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
    pub(super) fn mask(&self) -> [u8; 4] {
        self.mask.unwrap_or_default()
    }

    pub(super) fn encoded_length(&self) -> usize {
        let length_bytes = match self.length {
            0..126 => 0,
            126..0x1_0000 => 2,
            _ => 8,
        };
        2 + length_bytes + if self.mask.is_some() { 4 } else { 0 }
    }

    /// Appends the header, its length in as few bytes as can be.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
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
    pub(super) fn mask(&self) -> [u8; 4] {
        let mut mask = self.frame.mask();
        mask.rotate_left((self.offset % 4) as usize);
        mask
    }
}
