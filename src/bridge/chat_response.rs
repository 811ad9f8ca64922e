//! Facts as the chunks of a Chat stream. How a chunk is written stands in [`super::chat_chunk`]. Reasoning and searches
//! have no place in Chat.

use super::chat_chunk::{Chunk, Finish};
use super::fact::{Call, Fact, Final, Incomplete};
use super::input::CallKind;
use super::names::call_id;
use super::response_context::ResponseContext;
use super::stop_sequences::StopSequences;

/// The writer of one answer.
#[derive(Debug)]
pub(crate) struct ChatResponse {
    /// The first chunk has been given: the status is gone.
    started: bool,
    /// Calls so far.
    calls: u64,
    /// Kind of the last call.
    kind: CallKind,
    /// The last call is not shown: the legacy form has room for one.
    hidden: bool,
    /// A call was not shown.
    has_hidden: bool,
    stops: StopSequences,
}

impl ChatResponse {
    /// Starts with nothing given.
    pub(crate) fn new(context: &ResponseContext) -> Self {
        ChatResponse {
            started: false,
            calls: 0,
            kind: CallKind::Function,
            hidden: false,
            has_hidden: false,
            stops: StopSequences::new(context.stops.clone()),
        }
    }

    /// Whether anything has been given.
    pub(crate) fn started(&self) -> bool {
        self.started
    }

    /// Whether a call had no room in the answer.
    pub(crate) fn has_hidden(&self) -> bool {
        self.has_hidden
    }

    /// The chunk that names the role, once.
    pub(crate) fn start(&mut self, out: &mut Vec<Chunk>) {
        if !self.started {
            self.started = true;
            out.push(Chunk::Role);
        }
    }

    /// The chunks of a fact that is no failure.
    pub(crate) fn fact(&mut self, fact: Fact, context: &ResponseContext, out: &mut Vec<Chunk>) {
        match fact {
            Fact::Done(last) => self.done(last, context, out),
            Fact::ItemEnd => self.flush(out),
            _ if self.stops.found().is_some() => {} // the client's answer is over
            Fact::Text(text) => {
                let text = self.stops.push(&text);
                self.text(text, out);
            }
            Fact::Refusal(text) => {
                self.start(out);
                out.push(Chunk::Refusal(text));
            }
            Fact::Call(call) => self.call(call, context, out),
            Fact::Arguments(arguments) if self.calls > 0 && !self.hidden => {
                let index = self.calls - 1;
                out.push(Chunk::Arguments {
                    index,
                    kind: self.kind,
                    arguments,
                });
            }
            _ => {}
        }
    }

    /// Gives text, if there is any.
    fn text(&mut self, text: String, out: &mut Vec<Chunk>) {
        if !text.is_empty() {
            self.start(out);
            out.push(Chunk::Content(text));
        }
    }

    /// Gives the text that was held back.
    fn flush(&mut self, out: &mut Vec<Chunk>) {
        let held = self.stops.flush();
        self.text(held, out);
    }

    /// Gives a call as it begins.
    fn call(&mut self, call: Call, context: &ResponseContext, out: &mut Vec<Chunk>) {
        self.flush(out);
        self.hidden = context.legacy_functions && self.calls > 0;
        if self.hidden {
            self.has_hidden = true;
            return;
        }
        self.start(out);
        let name = context.names.client(&call.name).to_owned();
        let id = call_id(&call.id).into_owned();
        out.push(Chunk::Call {
            index: self.calls,
            kind: call.kind,
            id,
            name,
        });
        self.calls += 1;
        self.kind = call.kind;
    }

    /// Gives the end.
    fn done(&mut self, last: Final, context: &ResponseContext, out: &mut Vec<Chunk>) {
        self.start(out);
        self.flush(out);
        let finish = match last.incomplete {
            _ if self.stops.found().is_some() => Finish::Stop,
            Some(Incomplete::ContentFilter) => Finish::ContentFilter,
            Some(Incomplete::Limit) => Finish::Length,
            None if self.calls == 0 => Finish::Stop,
            None if context.legacy_functions => Finish::FunctionCall,
            None => Finish::ToolCalls,
        };
        out.push(Chunk::Finish(finish));
        out.push(Chunk::Usage(last.usage));
    }
}
