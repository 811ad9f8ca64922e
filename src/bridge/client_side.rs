//! The client's half of an answer: facts in, bytes in the client's protocol out, as a stream or put together. It does
//! not know how the upstream's half is read.

use super::fact::Fact;
use std::fmt::Debug;

/// The writer of the client's protocol.
pub(crate) trait ClientSide: Debug + Send + Sync {
    /// Takes a fact that is no failure.
    fn fact(&mut self, fact: Fact);

    /// Begins a stream before there is a fact.
    fn begin(&mut self);

    /// Whether the client gets a stream, of which something was given: its status is gone.
    fn has_begun(&self) -> bool;

    /// What of the stream is written and not taken; `None` where the client wants none.
    fn stream(&mut self) -> Option<&mut Vec<u8>>;

    /// Bytes of text that are being put together.
    fn whole_length(&self) -> usize;

    /// The JSON text of the answer that was put together, of which nothing is held then; `None` before its end, and where the
    /// client gets a stream.
    fn take_whole(&mut self) -> Option<String>;

    /// The request was sent again, without the tier that the upstream had refused.
    fn without_tier(&mut self) {}

    /// What of the answer had no room in the client's protocol and is missed there.
    fn dropped(&self) -> Option<&'static str> {
        None
    }
}

/// Where the pieces of an answer go.
#[derive(Debug)]
pub(crate) enum Sink<W> {
    /// Into a stream, as they come.
    Stream(Vec<u8>),
    /// To the others: the client wants no stream.
    Whole(W),
}

impl<W: Default> Sink<W> {
    /// A stream, or a whole answer, of which nothing has come.
    pub(crate) fn new(stream: bool) -> Self {
        if stream {
            Sink::Stream(Vec::new())
        } else {
            Sink::Whole(W::default())
        }
    }

    pub(crate) fn stream(&mut self) -> Option<&mut Vec<u8>> {
        match self {
            Sink::Stream(out) => Some(out),
            Sink::Whole(_) => None,
        }
    }

    pub(crate) fn whole(&self) -> Option<&W> {
        match self {
            Sink::Stream(_) => None,
            Sink::Whole(whole) => Some(whole),
        }
    }

    /// Takes the whole answer, if it is one.
    pub(crate) fn take_whole(&mut self) -> Option<W> {
        match self {
            Sink::Stream(_) => None,
            Sink::Whole(whole) => Some(std::mem::take(whole)),
        }
    }
}
