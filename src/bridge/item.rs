//! One output item of a Responses stream: its events as facts. Text and arguments come from deltas, and from the events
//! that end them what the deltas did not bring. The order of the items is a matter of [`super::reader`].

use super::fact::{Call, Citation, Fact};
use super::input::CallKind;
use super::json::{Half, Node, to_string};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::HashMap;

/// Most content parts of one item.
const PARTS: usize = 1024;

/// Most bytes of arguments that are kept until the call's name is known.
const EARLY_ARGUMENTS: usize = 1 << 20;

/// Why an event cannot be understood. To go on without it would make an answer look whole that is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable(pub(crate) &'static str);

/// What has been sent of a text, as its length and digest: enough to tell whether a longer one continues it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent {
    length: usize,
    digest: Sha256,
}

/// The kinds of content parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum PartKind {
    /// `output_text`.
    Text,
    /// `refusal`.
    Refusal,
}

/// A text of an item that comes in deltas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    /// A content part.
    Part(PartKind, u64),
    /// The reasoning, or a part of its summary.
    Thinking(u64),
    /// A call's arguments.
    Arguments,
}

/// The item under way.
#[derive(Debug, Default)]
pub(crate) struct Item {
    /// What it has said and the reader has not taken.
    pub(crate) facts: Vec<Fact>,
    /// Its `type`, once it is known.
    kind: Option<String>,
    parts: HashMap<(PartKind, u64), Sent>,
    /// Some of the reasoning was sent.
    thought: bool,
    /// The last part of the reasoning's summary.
    summary_part: u64,
    /// The call was made known; what follows are its arguments.
    called: bool,
    arguments: Sent,
    /// Arguments that came before the call's name.
    early: String,
    /// The first half of a character whose second is to come in the next delta of that text.
    half: Option<(Stream, Half)>,
}

impl Sent {
    fn push(&mut self, more: &str) {
        self.length += more.len();
        self.digest.update(more);
    }

    /// What `whole` has beyond what was sent, if it continues that.
    fn rest<'t>(&mut self, whole: &'t str) -> &'t str {
        let (Some(had), Some(rest)) = (whole.get(..self.length), whole.get(self.length..)) else {
            return "";
        };
        if rest.is_empty() || Sha256::digest(had) != self.digest.clone().finalize() {
            return "";
        }
        self.push(rest);
        rest
    }

    /// What a message has beyond the one text that was sent of it.
    pub(crate) fn rest_of_message(&mut self, message: &Node<'_>) -> Vec<Fact> {
        let part = match message.member_list("content") {
            [part] if part.member_text("type").as_deref() == Some("output_text") => part,
            _ => return Vec::new(),
        };
        let whole = part.member_text("text").unwrap_or_default();
        match self.rest(&whole) {
            "" => Vec::new(),
            rest => vec![Fact::Text(rest.to_owned()), Fact::ItemEnd],
        }
    }
}

impl Item {
    /// Reads an event of this type.
    pub(crate) fn event(&mut self, kind: &str, event: &Node<'_>) -> Result<(), Unreadable> {
        match kind {
            "response.output_item.added" => {
                if let Some(item) = event.member("item") {
                    self.added(item);
                }
                Ok(())
            }
            "response.output_text.delta" => self.delta(PartKind::Text, event),
            "response.refusal.delta" => self.delta(PartKind::Refusal, event),
            "response.output_text.done" => self.part_done(PartKind::Text, index_of(event), event),
            "response.refusal.done" => self.part_done(PartKind::Refusal, index_of(event), event),
            "response.reasoning_summary_text.delta" | "response.reasoning_text.delta" => {
                self.thinking(event)
            }
            "response.function_call_arguments.delta" | "response.custom_tool_call_input.delta" => {
                let delta = self.delta_of(Stream::Arguments, event)?;
                self.more_arguments(delta)
            }
            "response.function_call_arguments.done" | "response.custom_tool_call_input.done" => {
                self.arguments_done(&arguments_of(event))
            }
            _ => Ok(()),
        }
    }

    /// The item as it is when it is whole.
    pub(crate) fn done(&mut self, item: &Node<'_>) -> Result<(), Unreadable> {
        let kind = item.member_text("type").map(Cow::into_owned);
        match kind.or(self.kind.take()).as_deref().unwrap_or("") {
            "message" => self.message_done(item)?,
            "reasoning" => self.reasoning_done(item)?,
            "function_call" => self.call_done(CallKind::Function, item)?,
            "custom_tool_call" => self.call_done(CallKind::Custom, item)?,
            "web_search_call" => self.facts.push(search(item)),
            _ => {}
        }
        self.give_half()?;
        self.facts.push(Fact::ItemEnd);
        Ok(())
    }

    /// The stream has ended well without a last word about this item.
    pub(crate) fn end(&mut self) -> Result<(), Unreadable> {
        self.give_half()?;
        if !self.called && !self.early.is_empty() {
            return Err(Unreadable("a tool call without a name"));
        }
        self.facts.push(Fact::ItemEnd);
        Ok(())
    }

    /// What was sent of its text, if it has no other.
    pub(crate) fn into_text(self) -> Option<Sent> {
        let mut parts = self.parts.into_iter();
        match (parts.next(), parts.next()) {
            (Some(((PartKind::Text, 0), text)), None) => Some(text),
            _ => None,
        }
    }

    /// `output_item.added`: the item's type, and the call it makes, if it is one.
    fn added(&mut self, item: &Node<'_>) {
        self.kind = item.member_text("type").map(Cow::into_owned);
        let kind = match self.kind.as_deref() {
            Some("function_call") => CallKind::Function,
            Some("custom_tool_call") => CallKind::Custom,
            _ => return,
        };
        let (id, name) = (item.some_text("call_id"), item.some_text("name"));
        if let (false, Some(id), Some(name)) = (self.called, id, name) {
            self.called = true;
            self.facts.push(Fact::Call(Call { id, name, kind }));
        }
    }

    /// More of a text.
    fn delta(&mut self, kind: PartKind, event: &Node<'_>) -> Result<(), Unreadable> {
        let index = index_of(event);
        let delta = self.delta_of(Stream::Part(kind, index), event)?;
        self.part(kind, index)?.push(&delta);
        self.say(kind, &delta);
        Ok(())
    }

    /// The text of a delta, but for the first half of a character at its end; one that is not there is empty.
    fn delta_of(&mut self, stream: Stream, event: &Node<'_>) -> Result<String, Unreadable> {
        let text = match event.member("delta") {
            None => return Ok(String::new()),
            Some(Node::Text(text)) => text,
            Some(_) => return Err(Unreadable("a delta that is no text")),
        };
        if self.half.as_ref().is_some_and(|(of, _)| *of != stream) {
            self.give_half()?;
        }
        let half = self.half.take().map(|(_, half)| half);
        let (plain, half) = text.plain_behind(half);
        self.half = half.map(|half| (stream, half));
        Ok(plain)
    }

    /// The second half of a character does not come.
    fn give_half(&mut self) -> Result<(), Unreadable> {
        let Some((stream, _)) = self.half.take() else {
            return Ok(());
        };
        let lost = char::REPLACEMENT_CHARACTER.to_string();
        match stream {
            Stream::Part(kind, index) => {
                self.part(kind, index)?.push(&lost);
                self.say(kind, &lost);
            }
            Stream::Thinking(_) => self.think(lost),
            Stream::Arguments => self.more_arguments(lost)?,
        }
        Ok(())
    }

    /// The whole of a text has come, with both halves of all characters.
    fn has_come(&mut self, stream: Stream, whole: &str) -> Result<(), Unreadable> {
        let is_of = |half: &(Stream, Half)| half.0 == stream;
        if !whole.is_empty() && self.half.as_ref().is_some_and(is_of) {
            self.half = None;
        }
        self.give_half()
    }

    /// The whole of a text, of which the rest is to be shown.
    fn part_done(&mut self, kind: PartKind, index: u64, part: &Node<'_>) -> Result<(), Unreadable> {
        let whole = part.member_text(match kind {
            PartKind::Text => "text",
            PartKind::Refusal => "refusal",
        });
        let whole = whole.unwrap_or_default();
        self.has_come(Stream::Part(kind, index), &whole)?;
        let rest = self.part(kind, index)?.rest(&whole);
        self.say(kind, rest);
        Ok(())
    }

    /// What has been sent of a part.
    fn part(&mut self, kind: PartKind, index: u64) -> Result<&mut Sent, Unreadable> {
        if self.parts.len() >= PARTS {
            return Err(Unreadable("too many content parts"));
        }
        Ok(self.parts.entry((kind, index)).or_default())
    }

    /// More of the reasoning. Parts of a summary are paragraphs.
    fn thinking(&mut self, event: &Node<'_>) -> Result<(), Unreadable> {
        let part = event.member_number("summary_index");
        let part = part.unwrap_or_else(|| index_of(event));
        let mut text = self.delta_of(Stream::Thinking(part), event)?;
        if part > self.summary_part {
            self.summary_part = part;
            text.insert_str(0, "\n\n");
        }
        if !text.is_empty() {
            self.think(text);
        }
        Ok(())
    }

    fn more_arguments(&mut self, delta: String) -> Result<(), Unreadable> {
        if !self.called {
            self.early.push_str(&delta);
            if self.early.len() > EARLY_ARGUMENTS {
                return Err(Unreadable("a tool call without a name"));
            }
            return Ok(());
        }
        self.arguments.push(&delta);
        if !delta.is_empty() {
            self.facts.push(Fact::Arguments(delta));
        }
        Ok(())
    }

    /// The whole arguments, of which the rest is to be shown.
    fn arguments_done(&mut self, whole: &str) -> Result<(), Unreadable> {
        self.has_come(Stream::Arguments, whole)?;
        if !self.called {
            if !whole.is_empty() {
                self.early.clear();
            }
            return self.more_arguments(whole.to_owned());
        }
        let rest = self.arguments.rest(whole);
        if !rest.is_empty() {
            self.facts.push(Fact::Arguments(rest.to_owned()));
        }
        Ok(())
    }

    /// The rest of a message's parts, and what they cite.
    fn message_done(&mut self, item: &Node<'_>) -> Result<(), Unreadable> {
        let (mut length, mut citations) = (0, Vec::new());
        for (part, index) in item.member_list("content").iter().zip(0..) {
            match part.member_text("type").as_deref() {
                Some("output_text") => {
                    self.part_done(PartKind::Text, index, part)?;
                    let annotations = part.member_list("annotations").iter();
                    citations.extend(annotations.filter_map(|cited| citation(cited, length)));
                    let text = part.member_text("text").unwrap_or_default();
                    length += text.chars().count() as u64;
                }
                Some("refusal") => self.part_done(PartKind::Refusal, index, part)?,
                _ => {}
            }
        }
        self.give_half()?;
        self.facts.extend(citations);
        Ok(())
    }

    /// The reasoning, if no delta brought it, and its encrypted form.
    fn reasoning_done(&mut self, item: &Node<'_>) -> Result<(), Unreadable> {
        self.give_half()?;
        if !self.thought {
            let texts = [texts_of(item, "summary"), texts_of(item, "content")];
            let text = texts.into_iter().find(|text| !text.is_empty());
            self.facts.extend(text.map(Fact::Thinking));
        }
        let encrypted = item.some_text("encrypted_content");
        self.facts.extend(encrypted.map(Fact::Encrypted));
        Ok(())
    }

    /// The call, if it was not made known, and the rest of its arguments.
    fn call_done(&mut self, kind: CallKind, item: &Node<'_>) -> Result<(), Unreadable> {
        let mut whole = arguments_of(item);
        if !self.called {
            let id = item.some_text("call_id").or_else(|| item.some_text("id"));
            let (Some(name), Some(id)) = (item.some_text("name"), id) else {
                return Err(Unreadable("a tool call without a name"));
            };
            if whole.is_empty() {
                self.give_half()?;
                whole = std::mem::take(&mut self.early);
            }
            self.called = true;
            self.facts.push(Fact::Call(Call { id, name, kind }));
        }
        self.arguments_done(&whole)
    }

    /// Adds text, if there is any.
    fn say(&mut self, kind: PartKind, text: &str) {
        if !text.is_empty() {
            self.facts.push(match kind {
                PartKind::Text => Fact::Text(text.to_owned()),
                PartKind::Refusal => Fact::Refusal(text.to_owned()),
            });
        }
    }

    fn think(&mut self, text: String) {
        self.thought = true;
        self.facts.push(Fact::Thinking(text));
    }
}

/// `content_index`; 0 where it is not there.
fn index_of(event: &Node<'_>) -> u64 {
    event.member_number("content_index").unwrap_or(0)
}

/// The whole arguments of a function, or input of a custom tool. They are a text that holds JSON; of gateways that have the
/// JSON itself there, this is the text of it.
fn arguments_of(event: &Node<'_>) -> String {
    let text_of = |name: &str| match event.member(name)? {
        Node::Text(text) => Some(text.plain().into_owned()),
        object @ Node::Object(_) => Some(to_string(object)),
        _ => None,
    };
    let whole = text_of("arguments").or_else(|| text_of("input"));
    whole.unwrap_or_default()
}

/// The texts of a list of parts, as paragraphs.
fn texts_of(item: &Node<'_>, member: &str) -> String {
    let parts = item.member_list(member).iter();
    let texts: Vec<String> = parts.filter_map(|part| part.some_text("text")).collect();
    texts.join("\n\n")
}

/// A page that is cited in a part, which stands behind so many characters of its item.
fn citation(annotation: &Node<'_>, before: u64) -> Option<Fact> {
    if annotation.member_text("type").as_deref() != Some("url_citation") {
        return None;
    }
    let [start, end] = ["start_index", "end_index"].map(|name| annotation.member_number(name));
    Some(Fact::Citation(Citation {
        place: before.saturating_add(start?)..before.saturating_add(end?),
        url: annotation.some_text("url")?,
        title: annotation.some_text("title").unwrap_or_default(),
    }))
}

/// A web search, or a page that was opened.
fn search(item: &Node<'_>) -> Fact {
    let action = item.member("action").unwrap_or(&Node::Null);
    let query = action
        .some_text("query")
        .or_else(|| action.some_text("url"));
    let sources = action.member_list("sources").iter();
    Fact::Search {
        query: query.unwrap_or_default(),
        sources: sources
            .filter_map(|source| source.some_text("url"))
            .collect(),
    }
}
