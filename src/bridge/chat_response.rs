//! Facts as the chunks of a Chat stream. How a chunk is written stands in [`super::chat_chunk`]. Reasoning and searches
//! have no place in Chat.

use std::ops::Range;

use super::chat_chunk::{Chunk, Envelope, Finish};
use super::chat_whole::WholeCompletion;
use super::client_side::{ClientSide, Sink};
use super::delivery::Delivery;
use super::fact::{Call, Citation, Fact, Final, Head, Incomplete};
use super::input::CallKind;
use super::names::call_id;
use super::response_context::ResponseContext;
use super::stop_sequences::StopSequences;

/// What a call is called that comes beside another one to a client of the legacy form.
const FURTHER_CALL: &str = "function_call.further";

/// The writer of one answer.
#[derive(Debug)]
pub(crate) struct ChatResponse {
    context: ResponseContext,
    head: Head,
    envelope: Envelope,
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
    /// Characters of text so far, and before the item under way.
    text_length: u64,
    before_item: u64,
    stops: StopSequences,
    sink: Sink<WholeCompletion>,
}

impl ClientSide for ChatResponse {
    fn fact(&mut self, fact: Fact) {
        match fact {
            Fact::Head(head) => self.head.update(head),
            Fact::Done(last) => self.done(last),
            Fact::ItemEnd => {
                self.flush();
                self.before_item = self.text_length;
            }
            _ if self.stops.found().is_some() => {} // the client's answer is over
            Fact::Text(text) => {
                let text = self.stops.push(&text);
                self.text(text);
            }
            Fact::Refusal(text) => {
                self.start();
                self.give(Chunk::Refusal(text));
            }
            Fact::Citation(citation) => self.cite(citation),
            Fact::Call(call) => self.call(call),
            Fact::Arguments(arguments) if self.calls > 0 && !self.hidden => {
                self.give(Chunk::Arguments {
                    index: self.calls - 1,
                    kind: self.kind,
                    arguments,
                });
            }
            _ => {}
        }
    }

    fn begin(&mut self) {
        if self.context.stream {
            self.start();
        }
    }

    fn has_begun(&self) -> bool {
        self.started && self.context.stream
    }

    fn stream(&mut self) -> Option<&mut Vec<u8>> {
        self.sink.stream()
    }

    fn whole_length(&self) -> usize {
        self.sink.whole().map_or(0, |whole| whole.length)
    }

    fn take_whole(&mut self) -> Option<String> {
        self.sink.take_whole()?.json(&self.context, &self.envelope)
    }

    fn dropped(&self) -> Option<&'static str> {
        self.has_hidden.then_some(FURTHER_CALL)
    }
}

impl ChatResponse {
    pub(crate) fn new(context: ResponseContext, delivery: &Delivery) -> Self {
        ChatResponse {
            head: Head::default(),
            envelope: Envelope {
                id: format!("chatcmpl-{}", delivery.fallback_id),
                created: delivery.created,
                tier: None,
            },
            started: false,
            calls: 0,
            kind: CallKind::Function,
            hidden: false,
            has_hidden: false,
            text_length: 0,
            before_item: 0,
            stops: StopSequences::new(context.stops.clone()),
            sink: Sink::new(context.stream),
            context,
        }
    }

    /// The chunk that names the role, once.
    fn start(&mut self) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        if let Some(id) = self.head.bare_id() {
            self.envelope.id = format!("chatcmpl-{id}"); // of the first chunk; it stays
        }
        self.give(Chunk::Role);
    }

    /// Writes a chunk, or adds it to the completion.
    fn give(&mut self, chunk: Chunk) {
        self.envelope.tier.clone_from(&self.head.tier);
        match &mut self.sink {
            Sink::Stream(out) => chunk.write(&self.context, &self.envelope, out),
            Sink::Whole(whole) => whole.add(chunk),
        }
    }

    fn text(&mut self, text: String) {
        if !text.is_empty() {
            self.text_length += text.chars().count() as u64;
            self.start();
            self.give(Chunk::Content(text));
        }
    }

    /// What is cited stands at its place in all of the text.
    fn cite(&mut self, citation: Citation) {
        let (Range { start, end }, before) = (citation.place, self.before_item);
        self.start();
        self.give(Chunk::Annotation(Citation {
            place: before.saturating_add(start)..before.saturating_add(end),
            ..citation
        }));
    }

    /// Gives the text that was held back.
    fn flush(&mut self) {
        let held = self.stops.flush();
        self.text(held);
    }

    fn call(&mut self, call: Call) {
        self.flush();
        self.hidden = self.context.legacy_functions && self.calls > 0;
        if self.hidden {
            self.has_hidden = true;
            return;
        }
        self.start();
        self.give(Chunk::Call {
            index: self.calls,
            kind: call.kind,
            id: call_id(&call.id).into_owned(),
            name: self.context.names.client(&call.name).to_owned(),
        });
        self.calls += 1;
        self.kind = call.kind;
    }

    fn done(&mut self, last: Final) {
        self.start();
        self.flush();
        let finish = match last.incomplete {
            _ if self.stops.found().is_some() => Finish::Stop,
            Some(Incomplete::ContentFilter) => Finish::ContentFilter,
            Some(Incomplete::Limit) => Finish::Length,
            None if self.calls == 0 => Finish::Stop,
            None if self.context.legacy_functions => Finish::FunctionCall,
            None => Finish::ToolCalls,
        };
        self.give(Chunk::Finish(finish));
        self.give(Chunk::Usage(last.usage));
    }
}
