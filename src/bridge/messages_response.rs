//! Facts as the events of a Messages stream: blocks in order, never two open, and an end only for an answer that has
//! one. How an event is written stands in [`super::messages_event`].

use super::client_side::{ClientSide, Sink};
use super::delivery::Delivery;
use super::fact::{Call, Fact, Final, Head, Incomplete, Usage};
use super::messages_event::{Block, Delta, Ending, Event, MessagesUsage};
use super::messages_whole::WholeMessage;
use super::names::call_id;
use super::response_context::ResponseContext;
use super::stop_sequences::StopSequences;

/// What of the block under way has to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    /// It may go on with more text.
    Text,
    /// It may go on with more thinking.
    Thinking,
    /// It takes arguments.
    Tool,
    /// It is closed where it was opened.
    Other,
}

/// The writer of one answer.
#[derive(Debug)]
pub(crate) struct MessagesResponse {
    context: ResponseContext,
    head: Head,
    /// `message_start` has been given: the status is gone.
    started: bool,
    /// The block under way.
    open: Option<Open>,
    /// Blocks so far.
    blocks: u64,
    calls: u64,
    searches: u64,
    refused: bool,
    stops: StopSequences,
    /// What the upstream has said about the tier counts; else what was sent.
    tier_trusted: bool,
    sent_tier: Option<String>,
    /// The message's id where the upstream names none.
    fallback_id: String,
    sink: Sink<WholeMessage>,
}

impl ClientSide for MessagesResponse {
    fn fact(&mut self, fact: Fact) {
        let ended = self.stops.found().is_some();
        match fact {
            Fact::Head(head) => self.head.update(head),
            Fact::Done(last) => self.done(&last),
            Fact::ItemEnd => self.close(),
            _ if ended => {} // the client's answer is over; the upstream's is read on for its usage
            Fact::Text(text) => self.text(&text),
            Fact::Refusal(text) => {
                self.refused = true;
                self.text(&text);
            }
            Fact::Thinking(text) if self.context.thinking => self.thinking(Delta::Thinking(text)),
            Fact::Encrypted(encrypted) if self.context.thinking => {
                let signature = self.context.carrier.sign(&encrypted);
                self.thinking(Delta::Signature(signature));
            }
            Fact::Call(call) => self.call(&call),
            Fact::Arguments(arguments) if self.open == Some(Open::Tool) => {
                self.delta(Delta::Json(arguments));
            }
            Fact::Search { query, sources } if self.context.search => self.search(&query, sources),
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
        self.sink.take_whole()?.json(&self.context.requested_model)
    }

    fn without_tier(&mut self) {
        self.sent_tier = None;
    }
}

impl MessagesResponse {
    pub(crate) fn new(context: ResponseContext, delivery: &Delivery) -> Self {
        MessagesResponse {
            head: Head::default(),
            started: false,
            open: None,
            blocks: 0,
            calls: 0,
            searches: 0,
            refused: false,
            stops: StopSequences::new(context.stops.clone()),
            tier_trusted: delivery.tier_trusted,
            sent_tier: delivery.sent_tier.clone(),
            fallback_id: delivery.fallback_id.clone(),
            sink: Sink::new(context.stream),
            context,
        }
    }

    /// The upstream's id for the answer, or what stands for it.
    fn id(&self) -> &str {
        self.head.bare_id().unwrap_or(&self.fallback_id)
    }

    /// `message_start`, once.
    fn start(&mut self) {
        if !self.started {
            self.started = true;
            let id = format!("msg_{}", self.id());
            self.give(Event::Start { id });
        }
    }

    /// Writes an event, or adds it to the message.
    fn give(&mut self, event: Event) {
        match &mut self.sink {
            Sink::Stream(out) => event.write(&self.context.requested_model, out),
            Sink::Whole(whole) => whole.add(event),
        }
    }

    /// More text, but for what may be the beginning of a stop sequence.
    fn text(&mut self, text: &str) {
        let text = self.stops.push(text);
        if self.open != Some(Open::Text) {
            self.close_block();
        }
        self.send_text(text);
    }

    /// Sends text, in a block of its own; there is none without text.
    fn send_text(&mut self, text: String) {
        if text.is_empty() {
            return;
        }
        if self.open != Some(Open::Text) {
            self.close_block();
            self.open_block(Open::Text, Block::Text);
        }
        self.delta(Delta::Text(text));
    }

    /// More thinking, or its signature.
    fn thinking(&mut self, delta: Delta) {
        if self.open != Some(Open::Thinking) {
            self.close();
            self.open_block(Open::Thinking, Block::Thinking);
        }
        self.delta(delta);
    }

    fn call(&mut self, call: &Call) {
        self.close();
        self.calls += 1;
        let id = call_id(&call.id).into_owned();
        let name = self.context.names.client(&call.name).to_owned();
        self.open_block(Open::Tool, Block::ToolUse { id, name });
    }

    /// A search is shown as if the server had run a tool: what it looked for, and what it found.
    fn search(&mut self, query: &str, sources: Vec<String>) {
        self.close();
        self.searches += 1;
        let id = format!("srvtoolu_{}_{}", self.id(), self.searches);
        self.open_block(Open::Other, Block::WebSearch { id: id.clone() });
        self.delta(Delta::query(query));
        self.close_block();
        self.open_block(Open::Other, Block::SearchResult { id, sources });
        self.close_block();
    }

    fn done(&mut self, last: &Final) {
        self.start();
        self.close();
        let ending = self.ending(last.incomplete);
        let usage = self.usage(&last.usage);
        self.give(Event::End { ending, usage });
    }

    /// Why the answer ends: the first that holds.
    fn ending(&self, incomplete: Option<Incomplete>) -> Ending {
        if let Some(sequence) = self.stops.found() {
            return Ending::StopSequence(sequence.to_owned());
        }
        match incomplete {
            Some(Incomplete::ContentFilter) => Ending::Refusal,
            Some(Incomplete::Limit) => Ending::MaxTokens,
            None if self.calls > 0 => Ending::ToolUse,
            None if self.refused => Ending::Refusal,
            None => Ending::EndTurn,
        }
    }

    /// Tokens of the prompt are told apart by where they came from: with the cached ones counted twice, clients would
    /// shorten conversations too early.
    fn usage(&self, usage: &Usage) -> MessagesUsage {
        // `auto` is no tier that anything can run on: it says nothing.
        let served = self.head.tier.as_deref();
        let served = served.filter(|tier| self.tier_trusted && *tier != "auto");
        let tier = served.or(self.sent_tier.as_deref());
        let cache_write = usage.cache_write.unwrap_or(0);
        MessagesUsage {
            input: usage
                .input
                .saturating_sub(usage.cached.saturating_add(cache_write)),
            cache_write,
            cached: usage.cached,
            output: usage.output,
            thinking: usage.reasoning,
            searches: self.searches,
            fast: matches!(tier, Some("priority" | "fast")),
            tell_speed: self.context.speed_asked,
        }
    }

    /// Closes the block under way, and gives the text that was held back.
    fn close(&mut self) {
        let held = self.stops.flush();
        self.send_text(held);
        self.close_block();
    }

    /// Opens a block; the one before must be closed.
    fn open_block(&mut self, open: Open, block: Block) {
        self.start();
        let index = self.blocks;
        self.give(Event::Open { index, block });
        self.open = Some(open);
        self.blocks += 1;
    }

    /// More of the open block.
    fn delta(&mut self, delta: Delta) {
        let index = self.blocks.saturating_sub(1);
        self.give(Event::Delta { index, delta });
    }

    /// Closes the open block, if there is one.
    fn close_block(&mut self) {
        if self.open.take().is_some() {
            let index = self.blocks.saturating_sub(1);
            self.give(Event::Close { index });
        }
    }
}
