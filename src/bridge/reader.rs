//! The reader of a Responses stream: its events as one ordered stream of facts. One item at a time is shown;
//! events of the others wait, within a limit, because clients cannot read blocks that are mixed. It holds no text of the
//! answer beyond that, and knows neither client protocol.

use super::fact::{Fact, Final, Head, Incomplete};
use super::failure::Failure;
use super::item::{Item, Unreadable};
use super::json::{Node, parse};
use super::report::Report;
use super::sse::Event;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What an entry of one of the tables is taken to weigh besides its text, in bytes.
const ENTRY_BYTES: usize = 64;

/// The most that is kept of items to know them again, in bytes: ids and indexes.
const KNOWN_BYTES: usize = 16 << 20;

/// What some gateways end their streams with, after OpenAI's older API.
const END_MARK: &[u8] = b"[DONE]";

/// The reader of one answer.
#[derive(Debug)]
pub(crate) struct Reader {
    /// Nothing more is read: the answer has ended or failed.
    over: bool,
    /// Index of the item that is shown.
    current: Option<u64>,
    item: Item,
    /// Facts that have not been given, but for those of the item that is shown.
    facts: Vec<Fact>,
    /// Indexes of items that are whole.
    closed: BTreeSet<u64>,
    /// Events of other items, by index.
    waiting: BTreeMap<u64, Vec<Event>>,
    /// Indexes of items by their ids.
    by_id: HashMap<String, u64>,
    /// Bytes that wait.
    held: usize,
    /// Bytes in the other tables.
    known: usize,
    /// The most that may wait.
    limit: usize,
}

impl Reader {
    /// A reader that holds at most `limit` bytes of what has to wait.
    pub(crate) fn new(limit: usize) -> Self {
        Reader {
            over: false,
            current: None,
            item: Item::default(),
            facts: Vec::new(),
            closed: BTreeSet::new(),
            waiting: BTreeMap::new(),
            by_id: HashMap::new(),
            held: 0,
            known: 0,
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
        let Some(index) = self.index_of(kind, event)? else {
            return Ok(());
        };
        if self.closed.contains(&index) {
            return Ok(());
        }
        if index != *self.current.get_or_insert(index) {
            self.hold(raw.data.len() + raw.name.len())?;
            self.waiting.entry(index).or_default().push(raw.clone());
            return Ok(());
        }
        self.show(index, kind, event)?;
        self.advance()
    }

    /// The index of the item that an event is about, learning the item's id.
    fn index_of(&mut self, kind: &str, event: &Node<'_>) -> Result<Option<u64>, Unreadable> {
        let item_id = event.member("item").and_then(|item| item.member_text("id"));
        let index = match event.member_number("output_index") {
            Some(index) => Some(index),
            None => {
                let id = event.member_text("item_id").or_else(|| item_id.clone());
                let known = id.and_then(|id| self.by_id.get(id.as_ref()).copied());
                known.or_else(|| self.index_by_order(kind))
            }
        };
        if let (Some(index), Some(id)) = (index, item_id)
            && !self.by_id.contains_key(id.as_ref())
        {
            self.learn(id.len())?;
            self.by_id.insert(id.into_owned(), index);
        }
        Ok(index)
    }

    /// The index of an item that names none: the next for a new item, else that of the item that is shown.
    fn index_by_order(&self, kind: &str) -> Option<u64> {
        if kind != "response.output_item.added" {
            return self.current;
        }
        let items = self.closed.len() + self.waiting.len() + usize::from(self.current.is_some());
        Some(items as u64)
    }

    /// Shows an event of the current item.
    fn show(&mut self, index: u64, kind: &str, event: &Node<'_>) -> Result<(), Unreadable> {
        if kind != "response.output_item.done" {
            return self.item.event(kind, event);
        }
        self.item
            .done(event.member("item").unwrap_or(&Node::Null))?;
        self.close(index)
    }

    /// The item that is shown is whole.
    fn close(&mut self, index: u64) -> Result<(), Unreadable> {
        self.facts.append(&mut self.item.facts);
        self.item = Item::default();
        self.current = None;
        self.learn(0)?;
        self.closed.insert(index);
        Ok(())
    }

    /// While no item is shown, shows the first that waits.
    fn advance(&mut self) -> Result<(), Unreadable> {
        while self.current.is_none()
            && let Some((index, events)) = self.waiting.pop_first()
        {
            self.current = Some(index);
            for raw in events {
                let bytes = raw.data.len() + raw.name.len();
                self.held = self.held.saturating_sub(bytes + ENTRY_BYTES);
                if self.current == Some(index) {
                    let event = parsed(&raw)?;
                    self.show(index, &kind_of(&raw, &event), &event)?;
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

    /// Shows and closes what is open or waits, and the items of `output` that have not been seen.
    fn show_rest(&mut self, output: &[Node<'_>]) -> Result<(), Unreadable> {
        while let Some(index) = self.current {
            let last_word = usize::try_from(index).ok().and_then(|at| output.get(at));
            match last_word.filter(|item| self.item.is(item)) {
                Some(item) => self.item.done(item)?,
                None => self.item.end()?,
            }
            self.close(index)?;
            self.advance()?;
        }
        for (item, index) in output.iter().zip(0..) {
            let id = item.member_text("id");
            let known = id.is_some_and(|id| self.by_id.contains_key(id.as_ref()));
            if !known && self.closed.insert(index) {
                let mut unseen = Item::default();
                let done = unseen.done(item);
                self.facts.append(&mut unseen.facts);
                done?;
            }
        }
        Ok(())
    }

    /// Counts what is kept of an item until the end.
    fn learn(&mut self, bytes: usize) -> Result<(), Unreadable> {
        self.known += bytes + ENTRY_BYTES;
        if self.known > KNOWN_BYTES {
            return Err(Unreadable("too many items"));
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
