//! The reader of a Responses stream: its events as one ordered stream of facts. One item at a time is shown;
//! events of the others wait, within a limit, because clients cannot read blocks that are mixed. It holds no text of the
//! answer beyond that, and knows neither client protocol.

use super::fact::{Fact, Final, Head, Incomplete};
use super::failure::Failure;
use super::item::{Item, Sent, Unreadable};
use super::item_table::{ENTRY_BYTES, ItemTable, Place};
use super::json::{Node, parse};
use super::report::Report;
use super::sse::Event;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// What some gateways end their streams with, after OpenAI's older API.
const END_MARK: &[u8] = b"[DONE]";

/// The reader of one answer.
#[derive(Debug)]
pub(crate) struct Reader {
    /// Nothing more is read: the answer has ended or failed.
    over: bool,
    /// All items of which something has come.
    items: ItemTable,
    /// The item that is shown.
    current: Option<Place>,
    item: Item,
    /// Facts that have not been given, but for those of the item that is shown.
    facts: Vec<Fact>,
    /// Texts of messages that are whole: some gateways end a message and go on with it.
    texts: BTreeMap<Place, Sent>,
    /// Events of other items.
    waiting: BTreeMap<Place, Vec<Event>>,
    /// Bytes that wait.
    held: usize,
    /// The most that may wait.
    limit: usize,
}

impl Reader {
    /// A reader that holds at most `limit` bytes of what has to wait.
    pub(crate) fn new(limit: usize) -> Self {
        Reader {
            over: false,
            items: ItemTable::default(),
            current: None,
            item: Item::default(),
            facts: Vec::new(),
            texts: BTreeMap::new(),
            waiting: BTreeMap::new(),
            held: 0,
            limit,
        }
    }

    /// The facts in the next event. After [`Fact::Done`] and [`Fact::Failed`] there are none.
    pub(crate) fn feed(&mut self, event: &Event) -> Vec<Fact> {
        let data = event.data.trim_ascii();
        if self.over || data.is_empty() || data == END_MARK {
            return Vec::new();
        }
        let read = self.event(event);
        self.take_facts(read)
    }

    /// The facts of an answer that is one response object: a gateway that does not stream.
    pub(crate) fn feed_whole(&mut self, body: &[u8]) -> Vec<Fact> {
        let read = match parse(body) {
            Ok(response) => self.whole(&response),
            Err(_) => Err(Unreadable("a body that is not JSON")),
        };
        self.take_facts(read)
    }

    /// What has been read; a fault is the last fact.
    fn take_facts(&mut self, read: Result<(), Unreadable>) -> Vec<Fact> {
        self.facts.append(&mut self.item.facts);
        if let Err(Unreadable(what)) = read {
            self.over = true;
            self.facts.push(Fact::Failed(Failure::Unreadable(what)));
        }
        std::mem::take(&mut self.facts)
    }

    fn event(&mut self, raw: &Event) -> Result<(), Unreadable> {
        let event = parsed(raw)?;
        let kind = kind_of(raw, &event);
        let response = event.member("response").unwrap_or(&Node::Null);
        match kind.as_ref() {
            "response.created" | "response.in_progress" | "response.queued" => {
                self.facts.push(Fact::Head(Head::read(response)));
                Ok(())
            }
            "response.completed"
            | "response.incomplete"
            | "response.failed"
            | "response.done"
            | "response.cancelled"
            | "response.canceled"
            | "error" => self.end(&kind, &event, response),
            "" if event.member("error").is_some() => self.end("error", &event, response),
            kind if kind.starts_with("response.") => self.item_event(kind, &event, raw),
            _ => Ok(()),
        }
    }

    /// A response object that is the whole answer.
    fn whole(&mut self, response: &Node<'_>) -> Result<(), Unreadable> {
        let is_response = response.member("output").and_then(Node::as_list).is_some();
        let is_error = || {
            response
                .member("error")
                .or(response.member("detail"))
                .is_some()
        };
        let kind = match response.member_text("status").unwrap_or_default().as_ref() {
            "incomplete" => "response.incomplete",
            "failed" => "response.failed",
            "cancelled" | "canceled" => "response.cancelled",
            "completed" | "" if is_response => "response.completed",
            _ if is_error() => {
                let inner = response.member("response").unwrap_or(&Node::Null);
                return self.end("error", response, inner);
            }
            _ => return Err(Unreadable("a body that is no finished response")),
        };
        self.end(kind, response, response)
    }

    /// An event of an item: shown, or put to those that wait.
    fn item_event(&mut self, kind: &str, event: &Node<'_>, raw: &Event) -> Result<(), Unreadable> {
        let Some(place) = self.items.find(kind, event, self.current)? else {
            return Ok(());
        };
        if let Some(current) = self.current
            && self.items.is_over(current, place, kind)
        {
            self.item.end()?;
            self.items.end(current);
            self.close(current)?;
            self.advance()?;
        }
        if place != *self.current.get_or_insert(place) {
            self.hold(raw.data.len() + raw.name.len())?;
            self.waiting.entry(place).or_default().push(raw.clone());
            return Ok(());
        }
        self.show(place, kind, event)?;
        self.advance()
    }

    /// Shows an event of the current item.
    fn show(&mut self, place: Place, kind: &str, event: &Node<'_>) -> Result<(), Unreadable> {
        if kind != "response.output_item.done" {
            return self.item.event(kind, event);
        }
        self.item
            .done(event.member("item").unwrap_or(&Node::Null))?;
        self.close(place)
    }

    /// The item that is shown is whole.
    fn close(&mut self, place: Place) -> Result<(), Unreadable> {
        self.facts.append(&mut self.item.facts);
        if let Some(text) = std::mem::take(&mut self.item).into_text() {
            self.items.count(size_of::<Sent>())?;
            self.texts.insert(place, text);
        }
        self.current = None;
        Ok(())
    }

    /// While no item is shown, shows the first that waits.
    fn advance(&mut self) -> Result<(), Unreadable> {
        while self.current.is_none()
            && let Some((place, events)) = self.waiting.pop_first()
        {
            self.current = Some(place);
            for raw in events {
                let bytes = raw.data.len() + raw.name.len();
                self.held = self.held.saturating_sub(bytes + ENTRY_BYTES);
                if self.current == Some(place) {
                    let event = parsed(&raw)?;
                    self.show(place, &kind_of(&raw, &event), &event)?;
                }
            }
        }
        Ok(())
    }

    /// An event that ends the answer, as its `response` tells it.
    fn end(&mut self, kind: &str, event: &Node<'_>, response: &Node<'_>) -> Result<(), Unreadable> {
        self.facts.push(Fact::Head(Head::read(response)));
        let status = response.member_text("status").unwrap_or_default();
        let error = response.member("error").or(event.member("error"));
        let has_failed = matches!(kind, "error" | "response.failed") || status == "failed";
        let is_cancelled = matches!(kind, "response.cancelled" | "response.canceled")
            || matches!(status.as_ref(), "cancelled" | "canceled");
        if has_failed || is_cancelled {
            self.over = true;
            let report = if has_failed {
                Report::in_stream(error.unwrap_or(event))
            } else {
                Report::cancelled(error)
            };
            self.facts.push(Fact::Failed(Failure::Reported(report)));
            return Ok(()); // what waits is neither shown nor closed
        }
        self.show_rest(response.member_list("output"))?;
        self.over = true;
        let is_incomplete = kind == "response.incomplete" || status == "incomplete";
        self.facts.push(Fact::Done(Final {
            incomplete: is_incomplete.then(|| incomplete(response)),
            ..Final::default()
        }));
        Ok(())
    }

    /// Shows and closes what is open or waits, and what of `output` has not been shown.
    fn show_rest(&mut self, output: &[Node<'_>]) -> Result<(), Unreadable> {
        let words = self.items.last_words(output);
        while let Some(place) = self.current {
            match words.seen.get(&place) {
                Some(item) => self.item.done(item)?,
                None => self.item.end()?,
            }
            self.close(place)?;
            self.advance()?;
        }
        for (place, item) in &words.seen {
            if let Some(text) = self.texts.get_mut(place) {
                self.facts.extend(text.rest_of_message(item));
            }
        }
        for item in words.unseen {
            let mut unseen = Item::default();
            let done = unseen.done(item);
            self.facts.append(&mut unseen.facts);
            done?;
        }
        Ok(())
    }

    /// Counts what has to wait.
    fn hold(&mut self, bytes: usize) -> Result<(), Unreadable> {
        self.held += bytes + ENTRY_BYTES;
        if self.held > self.limit {
            return Err(Unreadable(
                "too much of the answer has to wait for its turn",
            ));
        }
        Ok(())
    }
}

fn parsed(raw: &Event) -> Result<Node<'_>, Unreadable> {
    parse(&raw.data).map_err(|_| Unreadable("an event that is not JSON"))
}

/// What an event is: by its data, or where these do not tell, by its name.
fn kind_of<'e>(raw: &'e Event, event: &'e Node<'_>) -> Cow<'e, str> {
    let named = || {
        let name = str::from_utf8(&raw.name).ok()?;
        let is_ours = name == "error" || name.starts_with("response.");
        is_ours.then_some(name)
    };
    match event.member_text("type") {
        Some(kind) => kind,
        None => named().unwrap_or_default().into(),
    }
}

/// Why an answer is not complete.
fn incomplete(response: &Node<'_>) -> Incomplete {
    let reason = response
        .member("incomplete_details")
        .and_then(|details| details.member_text("reason"));
    match reason.as_deref() {
        Some("content_filter") => Incomplete::ContentFilter,
        _ => Incomplete::Limit,
    }
}
