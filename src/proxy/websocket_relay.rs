//! The bytes of a server on their way to the client of a WebSocket: they go on as they come, but for messages that are kept
//! back until they are whole, because the client may not be to see them. Frames are read elsewhere; here it is only known
//! where messages begin and end.

use bytes::Bytes;

use crate::codec::websocket::{ControlFrame, encode};

/// The longest message that is kept back, in bytes; a longer one goes on. The events that are looked for are short.
const MAX_HELD_BYTES: usize = 16 * 1024;

/// What is kept back from one chunk to the next.
#[derive(Default)]
pub struct HeldMessage {
    /// Bytes of a message that is kept back, or of a header that may begin one.
    kept: Vec<u8>,
    /// Whether a message is being kept back.
    in_message: bool,
    /// Control frames between the fragments of that message: they go on in any case.
    controls: Vec<u8>,
}

/// One chunk of the server's.
pub struct ChunkPass<'r> {
    held: &'r mut HeldMessage,
    chunk: Bytes,
    /// What goes on of the bytes before `done`.
    out: Vec<Bytes>,
    done: usize,
    /// Where in the chunk the message that is kept back begins, or goes on.
    held_from: Option<usize>,
}

impl HeldMessage {
    /// Whether the last of what came has not gone on: the client has whole messages only.
    pub fn is_holding(&self) -> bool {
        !self.kept.is_empty()
    }

    /// The next chunk.
    pub fn pass(&mut self, chunk: &Bytes) -> ChunkPass<'_> {
        ChunkPass {
            held_from: self.in_message.then_some(0),
            held: self,
            chunk: chunk.clone(),
            out: Vec::new(),
            done: 0,
        }
    }
}

impl ChunkPass<'_> {
    /// A message begins that is to be kept back, behind so many bytes of this chunk; `None` where it began in an earlier one.
    /// It goes on all the same where bytes of it have gone on.
    pub fn hold(&mut self, begin: Option<usize>) {
        match begin {
            Some(_) => {
                // The header that was kept back was that of a control frame.
                self.release();
                self.held_from = begin;
            }
            None if self.held.is_holding() => self.held_from = Some(0),
            None => {}
        }
    }

    /// Whether the message that ends behind so many bytes of this chunk was kept back, however it came.
    pub fn holds_to(&self, end: usize) -> bool {
        let length = |from: usize| self.held.kept.len() + end - from;
        self.held_from
            .is_some_and(|from| length(from) <= MAX_HELD_BYTES)
    }

    /// A control frame of the server's.
    pub fn control(&mut self, frame: &ControlFrame) {
        if self.held_from.is_some() {
            let frame = encode(true, frame.opcode, None, &frame.payload);
            self.held.controls.extend(frame);
        }
    }

    /// The message that is kept back ends behind so many bytes of this chunk. It goes on, or is dropped.
    pub fn end_message(&mut self, end: usize, goes_on: bool) {
        let Some(from) = self.held_from.take() else {
            return;
        };
        let controls = std::mem::take(&mut self.held.controls);
        if goes_on {
            self.release();
            return;
        }
        self.held.kept = Vec::new();
        self.push(from);
        self.out.push(controls.into());
        self.done = end;
    }

    /// What goes to the client of the bytes up to `end`, and then these; nothing of what comes behind.
    pub fn end_with(mut self, end: usize, last: Bytes) -> Bytes {
        self.release();
        self.push(end);
        self.out.push(last);
        join(self.out)
    }

    /// What goes to the client in place of the chunk; none where that is all of it. `header`: so many of the last bytes that
    /// came are of a header which may begin a message that is to be kept back. `is_last`: nothing of what follows is read.
    pub fn finish(mut self, header: usize, is_last: bool) -> Option<Bytes> {
        let length = self.chunk.len();
        if is_last || !self.holds_to(length) {
            self.held_from = None;
        }
        let from = match self.held_from {
            Some(from) => from,
            None if header <= length => length - header,
            None if self.held.is_holding() => 0,
            // It began when nothing was to be kept back.
            None => length,
        };
        let is_untouched = self.done == 0 && from == length && !self.held.is_holding();
        self.held.in_message = self.held_from.is_some();
        if !self.held.in_message {
            self.held.controls.clear();
        }
        if is_untouched && self.out.is_empty() {
            return None;
        }
        if from > 0 || is_last {
            self.release();
        }
        self.push(from);
        self.held.kept.extend_from_slice(&self.chunk[from..]);
        Some(join(self.out))
    }

    /// What was kept back of earlier chunks goes on.
    fn release(&mut self) {
        if self.held.is_holding() {
            self.out.push(std::mem::take(&mut self.held.kept).into());
        }
    }

    /// The bytes of the chunk up to there go on.
    fn push(&mut self, end: usize) {
        self.out.push(self.chunk.slice(self.done..end));
        self.done = end;
    }
}

/// One chunk of several; most often there is only one, and it is not copied.
pub fn join(mut pieces: Vec<Bytes>) -> Bytes {
    pieces.retain(|piece| !piece.is_empty());
    match pieces.len() {
        0 => Bytes::new(),
        1 => pieces.remove(0),
        _ => pieces.concat().into(),
    }
}
