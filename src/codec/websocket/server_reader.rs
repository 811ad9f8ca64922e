//! What a server sends, looked on at while it is relayed.

use super::parser::{FrameParser, Sender, Step};
use super::{ControlFrame, Opcode, ProtocolError};

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

    /// Whether a message of the proxy's own may follow the bytes fed so far: not inside a frame, nor between two fragments.
    pub fn at_message_boundary(&self) -> bool {
        !self.ended && self.parser.is_between_messages()
    }

    /// Bytes that were fed of a header which is not whole, where it may begin a message: not between two fragments.
    pub fn begun_header(&self) -> usize {
        if self.ended || self.parser.in_message {
            0
        } else {
            self.parser.header_read
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
