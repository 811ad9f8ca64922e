//! The items of an answer, told apart: which one an event is about, and what of the response's output has not been seen.
//! By the protocol every item has an index of its own and one id. Gateways that convert from another protocol give
//! several items one index, or one item a new id with every event; no item may be lost by that, or shown twice.

use super::item::Unreadable;
use super::json::Node;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What an entry of one of the tables is taken to weigh besides its text, in bytes.
pub(crate) const ENTRY_BYTES: usize = 64;

/// The most that is kept of items to know them again, in bytes.
const KNOWN_BYTES: usize = 16 << 20;

/// Where an item stands: at its index, behind so many others of the same index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    index: u64,
    nth: u64,
}

/// The kinds of items of which a client may be shown something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Message,
    Reasoning,
    /// Of a function or of a custom tool, whose events some gateways take for each other.
    Call,
    Search,
}

/// What an event is to its item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It makes the item known.
    Added,
    /// It brings more of it.
    Delta,
    /// It has the item whole.
    Done,
    /// It tells nothing that another would not.
    Other,
}

/// What an event tells about its item.
#[derive(Debug)]
struct Mention<'e> {
    step: Step,
    index: Option<u64>,
    id: Option<Cow<'e, str>>,
    /// `call_id`.
    call: Option<Cow<'e, str>>,
    /// By the item's own type.
    kind: Option<Kind>,
    /// The same, or else by what it says: some gateways stream reasoning inside of messages.
    said: Option<Kind>,
}

/// What is known of an item.
#[derive(Debug, Default)]
struct Known {
    /// The first of its ids.
    id: Option<String>,
    call: Option<String>,
    kind: Option<Kind>,
    /// It was made known by an event of its own.
    added: bool,
    /// Another event than that has come.
    begun: bool,
    /// Of its deltas, more than one had its id: they do not have a new one each.
    steady: bool,
    /// Nothing more is expected of it.
    done: bool,
}

/// The items of one answer.
#[derive(Debug, Default)]
pub(crate) struct ItemTable {
    items: BTreeMap<Place, Known>,
    by_id: HashMap<String, Place>,
    by_call: HashMap<String, Place>,
    /// Which items have said something of which kind.
    said: BTreeSet<(Kind, Place)>,
    /// What all this weighs, in bytes.
    bytes: usize,
}

/// The response's output, beside the items that have been seen.
#[derive(Debug, Default)]
pub(crate) struct LastWords<'o, 'a> {
    /// The items that have been seen, as they are when they are whole.
    pub(crate) seen: BTreeMap<Place, &'o Node<'a>>,
    /// Those that have not.
    pub(crate) unseen: Vec<&'o Node<'a>>,
}

impl ItemTable {
    /// The item that an event is about, which may be a new one; `None` where nothing more is expected of it. An event
    /// that names none is about `current`.
    pub(crate) fn find(
        &mut self,
        event_kind: &str,
        event: &Node<'_>,
        current: Option<Place>,
    ) -> Result<Option<Place>, Unreadable> {
        let mention = Mention::of(event_kind, event);
        let place = self.place_of(&mention, current);
        let is_done = |place: &Place| self.items.get(place).is_some_and(|known| known.done);
        let place = place.filter(|place| !is_done(place));
        if let Some(place) = place {
            self.learn(place, &mention)?;
        }
        Ok(place)
    }

    /// Nothing more is expected of an item.
    pub(crate) fn end(&mut self, place: Place) {
        if let Some(known) = self.items.get_mut(&place) {
            known.done = true;
        }
    }

    /// Whether an item is over because another of its index has come: nothing can be told any more of one without a name,
    /// and reasoning ends before what follows it goes on. The answer must not wait for an end that is never told.
    pub(crate) fn is_over(&self, place: Place, next: Place, event_kind: &str) -> bool {
        let Some(known) = self.items.get(&place) else {
            return false;
        };
        let has_said = |kind| self.has_said(place, Some(kind));
        // A call has to wait for its end: that may have the name, or the arguments.
        let is_nameless = known.id.is_none() && !has_said(Kind::Call);
        let goes_on = Step::of(event_kind) != Step::Added;
        let is_reasoning = has_said(Kind::Reasoning) && !has_said(Kind::Message);
        let shares_index = place.index == next.index && place < next;
        shares_index && known.begun && (is_nameless || is_reasoning && goes_on)
    }

    /// Compares the response's output with what has been seen; to be asked once. The surest way to know an item again is
    /// tried for all of them before the next. The last is to count those of a kind, for gateways that name all anew.
    pub(crate) fn last_words<'o, 'a>(&mut self, output: &'o [Node<'a>]) -> LastWords<'o, 'a> {
        let mut words = LastWords::default();
        let mut rest: Vec<(u64, &'o Node<'a>)> = (0..).zip(output).collect();
        for find in [Self::by_name, Self::by_index, Self::by_kind] {
            rest.retain(|(index, item)| {
                let kind = Kind::of_item(item);
                let Some(place) = find(self, *index, item, kind) else {
                    return true;
                };
                if let Some(kind) = kind {
                    self.said.remove(&(kind, place)); // each item is met once
                }
                words.seen.entry(place).or_insert(item);
                false
            });
        }
        words.unseen = rest.into_iter().map(|(_, item)| item).collect();
        words
    }

    /// Counts what is kept until the end.
    pub(crate) fn count(&mut self, bytes: usize) -> Result<(), Unreadable> {
        self.bytes += bytes + ENTRY_BYTES;
        if self.bytes > KNOWN_BYTES {
            return Err(Unreadable("too many items"));
        }
        Ok(())
    }

    /// The place of the item that is meant: one that is known, or a new one.
    fn place_of(&self, mention: &Mention<'_>, current: Option<Place>) -> Option<Place> {
        let named = self.named_by(mention);
        let Some(index) = mention.index else {
            let place = named.or(current.filter(|_| mention.step != Step::Added));
            let has_item = matches!(mention.step, Step::Added | Step::Done);
            return place.or_else(|| has_item.then(|| self.new_place(self.items.len() as u64)));
        };
        let place = named.or_else(|| self.meant_by(index, mention));
        place.or_else(|| Some(self.new_place(index)))
    }

    /// The item of this index that is meant by a mention which does not name it: the last one, or the last that says
    /// the like.
    fn meant_by(&self, index: u64, mention: &Mention<'_>) -> Option<Place> {
        let (latest, _) = self.latest(index)?;
        let speaker = mention
            .said
            .and_then(|kind| self.latest_speaker(index, kind));
        let speaker = speaker.filter(|place| {
            mention.step == Step::Done || self.items.get(place).is_some_and(|known| !known.done)
        });
        let place = match mention.step {
            Step::Added => latest,
            _ => speaker.unwrap_or(latest),
        };
        let has_said = self.has_said(place, mention.said);
        mention
            .may_mean(self.items.get(&place)?, has_said)
            .then_some(place)
    }

    /// The last item of this index that has said something of this kind.
    fn latest_speaker(&self, index: u64, kind: Kind) -> Option<Place> {
        let first = (kind, Place { index, nth: 0 });
        let last = (
            kind,
            Place {
                index,
                nth: u64::MAX,
            },
        );
        let (_, place) = self.said.range(first..=last).next_back()?;
        Some(*place)
    }

    /// The item that has the id of a mention, or is its call. Some gateways count on while an item is under way, so that
    /// its id tells; others have one id for all items, so that the index does.
    fn named_by(&self, mention: &Mention<'_>) -> Option<Place> {
        let by_id = mention.id.as_deref().and_then(|id| {
            let at_index = mention.index.and_then(|index| self.latest(index));
            let at_index = at_index.filter(|(_, known)| known.id.as_deref() == Some(id));
            let place = at_index.map(|(place, _)| place);
            place.or_else(|| self.by_id.get(id).copied())
        });
        let by_call = || self.by_call.get(mention.call.as_deref()?).copied();
        let place = by_id.or_else(by_call)?;
        let known = self.items.get(&place)?;
        let Some(index) = mention.index else {
            return Some(place);
        };
        let is_under_way = known.added && !known.done && mention.step != Step::Added;
        let is_moved = by_id.is_some() && is_under_way;
        let is_it = (index == place.index || is_moved) && !mention.contradicts(known);
        is_it.then_some(place)
    }

    /// The last item that came with this index.
    fn latest(&self, index: u64) -> Option<(Place, &Known)> {
        let all = Place { index, nth: 0 }..=Place {
            index,
            nth: u64::MAX,
        };
        let (place, known) = self.items.range(all).next_back()?;
        Some((*place, known))
    }

    /// Where the next item of this index stands.
    fn new_place(&self, index: u64) -> Place {
        let nth = self.latest(index).map_or(0, |(place, _)| place.nth + 1);
        Place { index, nth }
    }

    /// Takes over what an event tells. The ids of deltas are learned only where nothing else names the item: there is
    /// no end to them where each has another one.
    fn learn(&mut self, place: Place, mention: &Mention<'_>) -> Result<(), Unreadable> {
        let is_new = !self.items.contains_key(&place);
        let has_item = matches!(mention.step, Step::Added | Step::Done);
        let known = self.items.entry(place).or_default();
        known.kind = known.kind.or(mention.kind);
        known.added |= mention.step == Step::Added;
        known.begun |= mention.step != Step::Added;
        known.done = mention.step == Step::Done;
        let has_its_id = mention.id.is_some() && mention.id.as_deref() == known.id.as_deref();
        known.steady |= mention.step == Step::Delta && has_its_id;
        let mut bytes = if is_new { ENTRY_BYTES } else { 0 };
        if let Some(id) = mention.id.as_deref().filter(|_| is_new || has_item) {
            known.id.get_or_insert_with(|| id.to_owned());
            bytes += name(&mut self.by_id, id, place);
        }
        if let Some(call) = mention.call.as_deref() {
            known.call.get_or_insert_with(|| call.to_owned());
            bytes += name(&mut self.by_call, call, place);
        }
        if let Some(said) = mention.said {
            self.said.insert((said, place));
        }
        if bytes > 0 { self.count(bytes) } else { Ok(()) }
    }

    /// An item of the output that has a name of one that was seen.
    fn by_name(&self, index: u64, item: &Node<'_>, kind: Option<Kind>) -> Option<Place> {
        let named = |table: &HashMap<String, Place>, name: Option<String>| {
            name.and_then(|name| table.get(&name).copied())
        };
        let id = item.some_text("id");
        let first = Place { index, nth: 0 };
        let known = self.items.get(&first);
        let is_its_own = id.is_some() && known.is_some_and(|known| known.id == id);
        let places = [
            is_its_own.then_some(first),
            named(&self.by_id, id),
            named(&self.by_call, item.some_text("call_id")),
        ];
        let mut places = places.into_iter().flatten();
        places.find(|place| self.has_said(*place, kind))
    }

    /// One that has the index of one that was seen.
    fn by_index(&self, index: u64, _: &Node<'_>, kind: Option<Kind>) -> Option<Place> {
        let first = Place { index, nth: 0 };
        (self.items.contains_key(&first) && self.has_said(first, kind)).then_some(first)
    }

    /// One of the kind of one that was seen.
    fn by_kind(&self, _: u64, _: &Node<'_>, kind: Option<Kind>) -> Option<Place> {
        let kind = kind?;
        let start = Place { index: 0, nth: 0 };
        let (said, place) = self.said.range((kind, start)..).next()?;
        (*said == kind).then_some(*place)
    }

    /// Whether an item has said something of this kind, and the output not met it yet.
    fn has_said(&self, place: Place, kind: Option<Kind>) -> bool {
        kind.is_none_or(|kind| self.said.contains(&(kind, place)))
    }
}

impl<'e> Mention<'e> {
    fn of(event_kind: &str, event: &'e Node<'_>) -> Self {
        let item = event.member("item").unwrap_or(&Node::Null);
        let kind = Kind::of_item(item);
        let id = some(event.member_text("item_id")).or_else(|| some(item.member_text("id")));
        Mention {
            step: Step::of(event_kind),
            index: event.member_number("output_index"),
            id,
            call: some(item.member_text("call_id")),
            kind,
            said: kind.or(Kind::of_event(event_kind)),
        }
    }

    /// Whether it cannot be about this item though it has its id.
    fn contradicts(&self, known: &Known) -> bool {
        let is_next_call = known.done && self.calls(known) == Some(false);
        differ(known.kind, self.kind) || is_next_call
    }

    /// Whether it is about this item, which has its index but not its id. `has_said`: something of the same kind.
    fn may_mean(&self, known: &Known, has_said: bool) -> bool {
        if differ(known.kind, self.kind) {
            return false;
        }
        let has_id = self.id.is_some();
        let is_same_call = self.calls(known);
        match self.step {
            Step::Added if known.done => is_same_call == Some(true),
            Step::Added => is_same_call.unwrap_or(match (has_id, known.id.is_some()) {
                (true, true) => false,
                (false, false) => !known.begun, // it may be told twice
                _ => true,
            }),
            Step::Delta if known.done => !has_id,
            Step::Delta if !has_id || known.id.is_none() => true,
            Step::Delta => has_said && (known.added || !known.steady),
            // One that is told again, unless this upstream tells nothing but items that are whole.
            Step::Done => !known.done || is_same_call.unwrap_or(!has_id || known.added),
            Step::Other => true,
        }
    }

    /// Whether both are the same call; `None` where one of them does not tell.
    fn calls(&self, known: &Known) -> Option<bool> {
        Some(self.call.as_deref()? == known.call.as_deref()?)
    }
}

impl Step {
    fn of(event_kind: &str) -> Self {
        match event_kind {
            "response.output_item.added" => Step::Added,
            "response.output_item.done" => Step::Done,
            other if other.ends_with(".delta") => Step::Delta,
            _ => Step::Other,
        }
    }
}

impl Kind {
    fn of_item(item: &Node<'_>) -> Option<Self> {
        match item.member_text("type")?.as_ref() {
            "message" => Some(Kind::Message),
            "reasoning" => Some(Kind::Reasoning),
            "function_call" | "custom_tool_call" => Some(Kind::Call),
            "web_search_call" => Some(Kind::Search),
            _ => None,
        }
    }

    fn of_event(kind: &str) -> Option<Self> {
        let (what, _) = kind.strip_prefix("response.")?.split_once('.')?;
        match what {
            "output_text" | "refusal" => Some(Kind::Message),
            "reasoning_text" | "reasoning_summary_text" => Some(Kind::Reasoning),
            "function_call_arguments" | "custom_tool_call_input" => Some(Kind::Call),
            _ => None,
        }
    }
}

/// A text that is not empty.
fn some(text: Option<Cow<'_, str>>) -> Option<Cow<'_, str>> {
    text.filter(|text| !text.is_empty())
}

/// Whether two items cannot be one, by their types.
fn differ(one: Option<Kind>, other: Option<Kind>) -> bool {
    matches!((one, other), (Some(one), Some(other)) if one != other)
}

/// Gives an item a name, unless another has it; tells what that weighs.
fn name(table: &mut HashMap<String, Place>, name: &str, place: Place) -> usize {
    if table.contains_key(name) {
        return 0;
    }
    table.insert(name.to_owned(), place);
    2 * name.len() + ENTRY_BYTES
}
