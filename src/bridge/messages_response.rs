//! Facts as the events of a Messages stream: blocks in order, never two open, and an end only for an answer that has
//! one. How an event is written stands in [`super::messages_event`].

use super::fact::{Call, Fact, Final, Head, Incomplete, Usage};
use super::messages_event::{Block, Delta, Ending, Event, MessagesUsage};
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
}

impl MessagesResponse {
    /// The request was sent again, without the tier that the upstream had refused.
    pub(crate) fn without_tier(&mut self) {
        self.sent_tier = None;
    }

    /// Starts with nothing given.
    pub(crate) fn new(
        context: &ResponseContext,
        sent_tier: Option<String>,
        tier_trusted: bool,
        fallback_id: String,
    ) -> Self {
        MessagesResponse {
            started: false,
            open: None,
            blocks: 0,
            calls: 0,
            searches: 0,
            refused: false,
            stops: StopSequences::new(context.stops.clone()),
            tier_trusted,
            sent_tier,
            fallback_id,
        }
    }

    /// Whether anything has been given.
    pub(crate) fn started(&self) -> bool {
        self.started
    }

    /// `message_start`, once.
    pub(crate) fn start(&mut self, head: &Head, out: &mut Vec<Event>) {
        if !self.started {
            self.started = true;
            let id = format!("msg_{}", head.bare_id().unwrap_or(&self.fallback_id));
            out.push(Event::Start { id });
        }
    }

    /// The events of a fact that is no failure.
    pub(crate) fn fact(
        &mut self,
        fact: Fact,
        context: &ResponseContext,
        head: &Head,
        out: &mut Vec<Event>,
    ) {
        let ended = self.stops.found().is_some();
        match fact {
            Fact::Done(last) => self.done(&last, context, head, out),
            Fact::ItemEnd => self.close(head, out),
            _ if ended => {} // the client's answer is over; the upstream's is read on for its usage
            Fact::Text(text) => self.text(&text, head, out),
            Fact::Refusal(text) => {
                self.refused = true;
                self.text(&text, head, out);
            }
            Fact::Thinking(text) if context.thinking => {
                self.thinking(Delta::Thinking(text), head, out);
            }
            Fact::Encrypted(encrypted) if context.thinking => {
                self.thinking(
                    Delta::Signature(context.carrier.sign(&encrypted)),
                    head,
                    out,
                );
            }
            Fact::Call(call) => self.call(&call, context, head, out),
            Fact::Arguments(arguments) if self.open == Some(Open::Tool) => {
                self.delta(Delta::Json(arguments), out)
            }
            Fact::Search { query, sources } if context.search => {
                self.search(&query, sources, head, out)
            }
            _ => {}
        }
    }

    /// More text, but for what may be the beginning of a stop sequence.
    fn text(&mut self, text: &str, head: &Head, out: &mut Vec<Event>) {
        let text = self.stops.push(text);
        if self.open != Some(Open::Text) {
            self.close_block(out);
        }
        self.send_text(text, head, out);
    }

    /// Sends text, in a block of its own; there is none without text.
    fn send_text(&mut self, text: String, head: &Head, out: &mut Vec<Event>) {
        if text.is_empty() {
            return;
        }
        if self.open != Some(Open::Text) {
            self.close_block(out);
            self.open_block(Open::Text, Block::Text, head, out);
        }
        self.delta(Delta::Text(text), out);
    }

    /// More thinking, or its signature.
    fn thinking(&mut self, delta: Delta, head: &Head, out: &mut Vec<Event>) {
        if self.open != Some(Open::Thinking) {
            self.close(head, out);
            self.open_block(Open::Thinking, Block::Thinking, head, out);
        }
        self.delta(delta, out);
    }

    /// A call of a tool.
    fn call(&mut self, call: &Call, context: &ResponseContext, head: &Head, out: &mut Vec<Event>) {
        self.close(head, out);
        self.calls += 1;
        let id = call_id(&call.id).into_owned();
        let name = context.names.client(&call.name).to_owned();
        self.open_block(Open::Tool, Block::ToolUse { id, name }, head, out);
    }

    /// A search is shown as if the server had run a tool: what it looked for, and what it found.
    fn search(&mut self, query: &str, sources: Vec<String>, head: &Head, out: &mut Vec<Event>) {
        self.close(head, out);
        self.searches += 1;
        let id = format!(
            "srvtoolu_{}_{}",
            head.bare_id().unwrap_or(&self.fallback_id),
            self.searches
        );
        self.open_block(Open::Other, Block::WebSearch { id: id.clone() }, head, out);
        self.delta(Delta::query(query), out);
        self.close_block(out);
        self.open_block(Open::Other, Block::SearchResult { id, sources }, head, out);
        self.close_block(out);
    }

    /// The end.
    fn done(&mut self, last: &Final, context: &ResponseContext, head: &Head, out: &mut Vec<Event>) {
        self.start(head, out);
        self.close(head, out);
        let ending = self.ending(last.incomplete);
        let usage = self.usage(&last.usage, context, head);
        out.push(Event::End { ending, usage });
    }

    /// Why the answer ends: the first that holds.
    fn ending(&self, incomplete: Option<Incomplete>) -> Ending {
        match incomplete {
            _ if self.stops.found().is_some() => {
                Ending::StopSequence(self.stops.found().unwrap_or_default().to_owned())
            }
            Some(Incomplete::ContentFilter) => Ending::Refusal,
            Some(Incomplete::Limit) => Ending::MaxTokens,
            None if self.calls > 0 => Ending::ToolUse,
            None if self.refused => Ending::Refusal,
            None => Ending::EndTurn,
        }
    }

    /// Tokens of the prompt are told apart by where they came from: with the cached ones counted twice, clients would
    /// shorten conversations too early.
    fn usage(&self, usage: &Usage, context: &ResponseContext, head: &Head) -> MessagesUsage {
        // `auto` is no tier that anything can run on: it says nothing.
        let served = head
            .tier
            .as_deref()
            .filter(|tier| self.tier_trusted && *tier != "auto");
        let fast = matches!(
            served.or(self.sent_tier.as_deref()),
            Some("priority" | "fast")
        );
        let cache_write = usage.cache_write.unwrap_or(0);
        MessagesUsage {
            input: usage
                .input
                .saturating_sub(usage.cached)
                .saturating_sub(cache_write),
            cache_write,
            cached: usage.cached,
            output: usage.output,
            thinking: usage.reasoning,
            searches: self.searches,
            fast,
            tell_speed: context.speed_asked,
        }
    }

    /// Closes the block under way, and gives the text that was held back.
    fn close(&mut self, head: &Head, out: &mut Vec<Event>) {
        let held = self.stops.flush();
        self.send_text(held, head, out);
        self.close_block(out);
    }

    /// Opens a block; the one before must be closed.
    fn open_block(&mut self, open: Open, block: Block, head: &Head, out: &mut Vec<Event>) {
        self.start(head, out);
        out.push(Event::Open {
            index: self.blocks,
            block,
        });
        self.open = Some(open);
        self.blocks += 1;
    }

    /// More of the open block.
    fn delta(&mut self, delta: Delta, out: &mut Vec<Event>) {
        let index = self.blocks.saturating_sub(1);
        out.push(Event::Delta { index, delta });
    }

    /// Closes the open block, if there is one.
    fn close_block(&mut self, out: &mut Vec<Event>) {
        if self.open.take().is_some() {
            let index = self.blocks.saturating_sub(1);
            out.push(Event::Close { index });
        }
    }
}
