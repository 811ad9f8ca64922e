//! Holds the access log against the upstream's books and against what clients have seen.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use serde::Deserialize;

use super::books::Entry;
use super::operator::Operator;
use super::plan::{Asker, Coding, Framing, Plan, When, served, tokens};
use super::policies::Order;
use super::reading;
use super::sockets::Spoken;
use super::world::{World, offset};

/// A line is in the log this long after its answer, even if the process is then killed.
const LINE_TIME: Duration = Duration::from_millis(100);

/// What of a line is held against something.
#[derive(Clone, Debug, Deserialize)]
struct Line {
    event_id: String,
    seq: u64,
    instance: String,
    time: String,
    request_id: String,
    turn: u64,
    key: Option<String>,
    policy: String,
    path: String,
    model: Option<String>,
    service_tier: Option<String>,
    service_tier_served: Option<String>,
    upstream: Option<String>,
    status: Option<u16>,
    outcome: String,
    usage_state: String,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    upstream_request_bytes: u64,
    response_bytes: u64,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Looked {
    pub lines: usize,
    pub reached: usize,
    pub forced: usize,
    pub answered: usize,
}

struct Audit<'a> {
    world: &'a World,
    operator: &'a Operator,
    /// When the process was killed, if it was; lines of what then ran may be missing.
    killed: Option<Instant>,
    /// By the tag of the request, or of the message that began the response.
    lines: HashMap<u64, Vec<Line>>,
    looked: Looked,
}

/// Adds what is wrong to the findings of the world.
pub fn audit(world: &World, operator: &Operator, killed: Option<Instant>) -> Looked {
    let mut audit = Audit {
        world,
        operator,
        killed,
        lines: HashMap::new(),
        looked: Looked::default(),
    };
    audit.read_log();
    // A copy: whoever reports something looks into the books again.
    let entries = world.books.entries().clone();
    for (tag, entries) in &entries {
        audit.check_reached(*tag, entries);
    }
    audit.check_unreadable();
    audit.check_lines();
    audit.check_answered();
    audit.looked
}

impl Line {
    fn began(&self) -> SystemTime {
        let time: Timestamp = self.time.parse().unwrap_or(Timestamp::UNIX_EPOCH);
        time.into()
    }

    /// Of the request, or of the message that began the response.
    fn tag(&self) -> Option<u64> {
        if self.turn > 0 {
            return self.model.as_ref()?.strip_prefix("m-")?.parse().ok();
        }
        self.path.split('/').nth(1)?.parse().ok()
    }
}

impl Audit<'_> {
    fn find(&self, tag: u64, what: impl AsRef<str>) {
        let lines = self.lines.get(&tag);
        let entries = self.world.books.entries().get(&tag).cloned();
        let what = what.as_ref();
        self.world.find(format!(
            "{tag}: {what}\n  books: {entries:?}\n  lines: {lines:?}"
        ));
    }

    fn read_log(&mut self) {
        let (mut ids, mut numbers) = (HashSet::new(), HashMap::<String, HashSet<u64>>::new());
        let (mut torn, mut all) = (Vec::new(), Vec::new());
        for path in self.operator.log_files() {
            let text = fs::read(&path).unwrap_or_default();
            for text in String::from_utf8_lossy(&text).lines() {
                match serde_json::from_str::<Line>(text) {
                    Ok(line) => all.push(line),
                    Err(_) => torn.push(text.to_owned()),
                }
            }
        }
        for line in all {
            if !ids.insert(line.event_id.clone()) {
                self.world.find(format!("two lines for {}", line.event_id));
            }
            let own = numbers.entry(line.instance.clone()).or_default();
            own.insert(line.seq);
            self.looked.lines += 1;
            match line.tag() {
                Some(tag) => self.lines.entry(tag).or_default().push(line),
                // A message without a model, or one that was refused.
                None if line.turn > 0 && line.upstream.is_none() => {}
                None => self.world.find(format!("whose line is {line:?}?")),
            }
        }
        for (instance, numbers) in numbers {
            let missing = (0..numbers.len() as u64).find(|number| !numbers.contains(number));
            if let Some(missing) = missing {
                self.world.find(format!(
                    "{instance}: line {missing} is missing; torn: {torn:?}"
                ));
            }
        }
    }

    /// A request, or a message, that the upstream has in its books.
    fn check_reached(&mut self, tag: u64, entries: &[Entry]) {
        self.looked.reached += 1;
        let lines = self.lines.get(&tag).cloned().unwrap_or_default();
        let message = offset(tag) > 0 && self.world.is_socket(tag);
        let recipe = self.world.recipe;
        if message && !Spoken::of(recipe, tag).creates {
            if !lines.is_empty() || !entries[0].as_it_came {
                self.find(
                    tag,
                    "a message that begins nothing is not passed as it came",
                );
            }
            return;
        }
        let [line] = &lines[..] else {
            if self.killed.is_none() || lines.len() > 1 {
                self.find(tag, format!("{} lines", lines.len()));
            }
            return;
        };
        let connection = tag - u64::from(message) * offset(tag);
        let plan = Plan::of(recipe, connection);
        if let Some(order) = self.order(line, &plan) {
            let judged = message || !self.world.is_socket(tag);
            self.check_entries(tag, entries, order, judged);
            let last = entries.last().filter(|_| judged);
            let wrong = wrong_line(line, last, order, &plan);
            wrong.into_iter().for_each(|what| self.find(tag, what));
        }
    }

    /// What the upstream got, against what the policy orders. The head of a WebSocket is not `judged`, its messages are.
    fn check_entries(&mut self, tag: u64, entries: &[Entry], order: Order, judged: bool) {
        let former = &entries[..entries.len() - 1];
        // What was answered before it was read may be lost by the reset that follows.
        if former.iter().any(|entry| entry.whole && entry.answered) {
            self.find(tag, "sent again after an answer");
        }
        if !judged {
            return;
        }
        self.looked.forced += usize::from(order == Order::Forced);
        for entry in entries {
            let some = entry.whole || entry.bytes > 0;
            let wrong = match order {
                Order::Denied => Some("it was to be denied"),
                Order::Forced if entry.bytes > 0 && entry.not_forced.is_some() => {
                    Some("A FORCED REQUEST WITHOUT ITS TIER")
                }
                Order::AsItCame if some && !entry.as_it_came => {
                    Some("a body that was to pass has changed")
                }
                _ if entry.head_changed => Some("a header or the path has changed"),
                _ => None,
            };
            wrong.into_iter().for_each(|what| self.find(tag, what));
        }
    }

    /// What the policy that decided orders.
    fn order(&self, line: &Line, plan: &Plan) -> Option<Order> {
        let policy = self
            .operator
            .policies
            .that_decided(&line.policy, line.began());
        if policy.is_none() {
            self.find(plan.tag, "its policy was not in force");
        }
        policy.map(|policy| match self.world.is_socket(plan.tag) {
            true => policy.order_on_socket(plan),
            false => policy.order(plan),
        })
    }

    /// What no reader understands may pass where nothing is forced, and nowhere else.
    fn check_unreadable(&self) {
        for unreadable in self.world.books.unreadable() {
            let plan = Plan::of(self.world.recipe, unreadable.tag);
            if !self.operator.policies.may_pass(&plan, unreadable.at) {
                let text = &unreadable.text;
                let what = format!("a forced message that no reader understands: {text:?}");
                self.find(plan.tag, what);
            }
        }
    }

    fn check_lines(&self) {
        for (tag, lines) in &self.lines {
            if lines.len() > 1 {
                self.find(*tag, "several lines");
            }
            let plan = Plan::of(
                self.world.recipe,
                tag - u64::from(self.world.is_socket(*tag)) * offset(*tag),
            );
            let expected = match plan.asker {
                Asker::Key { group, key } => Some(format!("key-{group}-{key}")),
                Asker::Stranger | Asker::Nobody => None,
            };
            let (input, output) = tokens(*tag);
            for line in lines {
                // A head that can be read in two ways is refused before its key is looked up.
                let is_unread = plan.framing == Framing::Both && line.status == Some(400);
                if line.key != expected && !(is_unread && line.key.is_none()) {
                    self.find(*tag, "the line names another key");
                }
                let told = [(line.input_tokens, input), (line.output_tokens, output)];
                if told
                    .iter()
                    .any(|(has, is)| has.is_some_and(|has| has != *is))
                {
                    self.find(*tag, "the line has other tokens than were told");
                }
            }
        }
    }

    /// Every answer that a client has whole has its line, and the line says the same.
    fn check_answered(&mut self) {
        for (tag, answered) in self.world.answered().iter() {
            if self
                .killed
                .is_some_and(|killed| answered.at + LINE_TIME > killed)
            {
                continue;
            }
            self.looked.answered += 1;
            let lines = self.lines.get(tag).map_or(&[][..], Vec::as_slice);
            let line = lines
                .iter()
                .find(|line| line.request_id == answered.request_id);
            let Some(line) = line else {
                self.find(*tag, format!("no line for {answered:?}"));
                continue;
            };
            if line.status != Some(answered.status) {
                self.find(*tag, format!("another status than in {answered:?}"));
            }
            let plan = Plan::of(self.world.recipe, *tag);
            if answered.status != 200 || !plan.reply.tells_usage() || !plan.endpoint.takes_tier() {
                continue;
            }
            if plan.reply.when != When::Afterwards || !plan.may_be_followed() {
                // What came of the rest of its body is another matter.
                continue;
            }
            // Who closes a connection of HTTP/2 at the end of the last answer may be taken for gone before it.
            let ended = line.outcome == "ok" || self.world.is_http2(*tag);
            let complete = line.usage_state == "final"
                && ended
                && line.input_tokens.is_some()
                && line.service_tier_served.as_deref() == Some(served(*tag))
                && line.response_bytes == answered.bytes;
            if !complete {
                self.find(*tag, "not all is told of an answer that was had whole");
            }
        }
    }
}

/// What is wrong with the line of a request that reached the upstream. Without an entry, it is that of a WebSocket.
fn wrong_line(line: &Line, entry: Option<&Entry>, order: Order, plan: &Plan) -> Option<String> {
    if line.upstream.is_none() {
        return Some("the line names no upstream".to_owned());
    }
    let entry = entry?;
    let sent = line.upstream_request_bytes;
    if sent < entry.bytes || (entry.whole && sent != entry.bytes) {
        return Some("the line counts other bytes to the upstream".to_owned());
    }
    // A coded body that passes is looked at only where there is room for the window of its coding.
    let unseen =
        order == Order::AsItCame && plan.coding != Coding::Identity && line.service_tier.is_none();
    if !entry.whole || unseen {
        return None;
    }
    let tier = match order {
        Order::Forced => Some("priority".to_owned()),
        _ if line.turn > 0 => entry.tier.clone(),
        // What a bad body says before the place where it is bad is nobody's promise.
        _ => {
            reading::members(plan.decoded()?)?;
            reading::tier(plan.decoded()?)
        }
    };
    (line.service_tier != tier).then(|| format!("the line has another tier than {tier:?}"))
}
