//! Holds the access log against the upstream's books and against what clients have seen.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use rust_decimal::Decimal;
use serde::Deserialize;

use super::books::Entry;
use super::budgets::{Account, Charge, Spending};
use super::operator::Operator;
use super::plan::{Asker, Coding, Endpoint, Framing, Plan, When, served, tokens};
use super::policies::{Asked, Budget, Order, Policy};
use super::reading;
use super::sockets::Spoken;
use super::world::{World, offset};

/// The tier of a body that could not be read.
const UNKNOWN: &str = "<unknown>";

/// A line is in the log this long after its answer, even if the process is then killed.
const LINE_TIME: Duration = Duration::from_millis(100);

/// What of a line is held against something.
#[derive(Clone, Debug, Deserialize)]
struct Line {
    event_id: String,
    seq: u64,
    instance: String,
    time: String,
    duration_ms: f64,
    request_id: String,
    turn: u64,
    key: Option<String>,
    group: Option<String>,
    policy: String,
    path: String,
    model: Option<String>,
    service_tier: Option<String>,
    service_tier_served: Option<String>,
    service_tier_billed: Option<String>,
    tier_reason: Option<String>,
    tier_refused: bool,
    cost_usd: Option<String>,
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
    /// Their model was one that the force is not for.
    pub exempt: usize,
    /// Sent once more, without the tier that was refused.
    pub retried: usize,
    /// Their budget was used up.
    pub over_budget: usize,
    pub answered: usize,
}

struct Audit<'a> {
    world: &'a World,
    operator: &'a Operator,
    /// When the process was killed, if it was; lines of what then ran may be missing.
    killed: Option<Instant>,
    /// By the tag of the request, or of the message that began the response.
    lines: HashMap<u64, Vec<Line>>,
    spending: Spending,
    looked: Looked,
}

/// Adds what is wrong to the findings of the world.
pub fn audit(world: &World, operator: &Operator, killed: Option<Instant>) -> Looked {
    let mut audit = Audit {
        world,
        operator,
        killed,
        lines: HashMap::new(),
        spending: Spending::default(),
        looked: Looked::default(),
    };
    for line in audit.read_log() {
        audit.take(line);
    }
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

/// What the log says by now that was spent on the fast tier.
pub fn spending(operator: &Operator) -> Spending {
    let mut spending = Spending::default();
    let lines = lines(operator);
    for line in lines.iter().filter_map(|line| line.as_ref().ok()) {
        charge(operator, line, &mut spending);
    }
    spending
}

/// All lines of the log; what is none as it stands.
fn lines(operator: &Operator) -> Vec<Result<Line, String>> {
    let mut lines = Vec::new();
    for path in operator.log_files() {
        let text = fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        lines.extend(
            text.lines()
                .map(|text| serde_json::from_str(text).map_err(|_| text.to_owned())),
        );
    }
    lines
}

/// Counts what a line has cost for the budget that its policy gives it, if one.
fn charge(operator: &Operator, line: &Line, spending: &mut Spending) {
    let is_fast = line.service_tier_billed.as_deref() == Some("priority");
    let usd = line.cost_usd.as_deref().filter(|_| is_fast);
    let (Some(usd), Some((_, account))) = (usd, budget(operator, line)) else {
        return;
    };
    let charge = Charge {
        instance: line.instance.clone(),
        began: line.began(),
        ended: line.ended(),
        usd: usd.parse().expect("a decimal"),
    };
    spending.charge(account, charge);
}

/// The budget that a line counts for.
fn budget(operator: &Operator, line: &Line) -> Option<(Budget, Account)> {
    let (group, key) = (line.group.as_deref()?, line.key.as_deref()?);
    let policy = operator.policies.by_revision(&line.policy)?;
    let budget = policy.budget(group.strip_prefix('g')?.parse().ok()?)?;
    Some((budget, Account::of(budget, group, key)))
}

impl Line {
    fn began(&self) -> SystemTime {
        let time: Timestamp = self.time.parse().unwrap_or(Timestamp::UNIX_EPOCH);
        time.into()
    }

    fn ended(&self) -> SystemTime {
        self.began() + Duration::from_secs_f64(self.duration_ms / 1000.0)
    }

    /// Of the request, or of the message that began the response.
    fn tag(&self) -> Option<u64> {
        if self.turn > 0 {
            return self.model.as_ref()?.strip_prefix("m-")?.parse().ok();
        }
        self.path.split('/').nth(1)?.parse().ok()
    }
}

impl<'a> Audit<'a> {
    fn find(&self, tag: u64, what: impl AsRef<str>) {
        let lines = self.lines.get(&tag);
        let entries = self.world.books.entries().get(&tag).cloned();
        let what = what.as_ref();
        self.world.find(format!(
            "{tag}: {what}\n  books: {entries:?}\n  lines: {lines:?}"
        ));
    }

    fn read_log(&self) -> Vec<Line> {
        let (mut ids, mut numbers) = (HashSet::new(), HashMap::<String, HashSet<u64>>::new());
        let (all, torn): (Vec<_>, Vec<_>) =
            lines(self.operator).into_iter().partition(Result::is_ok);
        let all: Vec<Line> = all.into_iter().flatten().collect();
        for line in &all {
            if !ids.insert(&line.event_id) {
                self.world.find(format!("two lines for {}", line.event_id));
            }
            let own = numbers.entry(line.instance.clone()).or_default();
            own.insert(line.seq);
        }
        for (instance, numbers) in numbers {
            let missing = (0..numbers.len() as u64).find(|number| !numbers.contains(number));
            if let Some(missing) = missing {
                self.world.find(format!(
                    "{instance}: line {missing} is missing; torn: {torn:?}"
                ));
            }
        }
        all
    }

    fn take(&mut self, line: Line) {
        self.looked.lines += 1;
        charge(self.operator, &line, &mut self.spending);
        match line.tag() {
            Some(tag) => self.lines.entry(tag).or_default().push(line),
            // A message without a model, or one that was refused.
            None if line.turn > 0 && line.upstream.is_none() => {}
            None => self.world.find(format!("whose line is {line:?}?")),
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
        let Some(policy) = self.policy(line, &plan) else {
            return;
        };
        if self.world.is_socket(tag) && !message {
            // Its messages are judged, and not its head.
            if line.upstream.is_none() {
                self.find(tag, "the line names no upstream");
            }
            return;
        }
        match order(
            policy,
            line,
            &plan,
            self.world.is_http2(tag),
            message.then(|| Spoken::of(recipe, tag)),
        ) {
            Ok(order) => self.check_sent(tag, entries, line, order, &plan, policy),
            Err(why) => self.find(tag, why),
        }
    }

    /// What the upstream got and what the line says of it, against what the policy orders.
    fn check_sent(
        &mut self,
        tag: u64,
        entries: &[Entry],
        line: &Line,
        order: Order,
        plan: &Plan,
        policy: &Policy,
    ) {
        let refused = entries.iter().position(|entry| entry.refused);
        let (first, again) = entries.split_at(refused.map_or(entries.len(), |at| at + 1));
        self.check_entries(tag, first, order);
        self.looked.exempt += usize::from(line.tier_reason.as_deref() == Some("model_exempt"));
        let mut order = order;
        if !again.is_empty() {
            self.looked.retried += 1;
            let was_set = matches!(order, Order::Forced(Some(_)));
            if !was_set || !policy.retries(plan.asker) {
                self.find(tag, "sent again after a refusal");
            }
            order = Order::Forced(None);
            self.check_entries(tag, again, order);
        }
        // The line is about the second attempt, which may have come to nothing.
        let is_lost = again.is_empty()
            && refused.is_some()
            && policy.retries(plan.asker)
            && line.service_tier.is_none()
            && line.outcome != "ok";
        let wrong = wrong_line(line, entries.last(), order, plan).filter(|_| !is_lost);
        wrong.into_iter().for_each(|what| self.find(tag, what));
        if line.tier_refused && refused.is_none() {
            self.find(tag, "the line tells of a refused tier that was not");
        }
        self.check_budget(tag, line, order);
    }

    /// Nothing goes fast beyond a budget, and nothing goes slowly within it.
    fn check_budget(&mut self, tag: u64, line: &Line, order: Order) {
        let Some((budget, account)) = budget(self.operator, line) else {
            return;
        };
        let limit: Decimal = budget.usd.parse().expect("a decimal");
        if line.tier_reason.as_deref() == Some("budget_exhausted") {
            self.looked.over_budget += 1;
            if self.spending.possible(&account, line.ended()) < limit {
                self.find(tag, "its budget was not used up");
            }
        }
        let is_fast = order == Order::Forced(Some("priority"));
        let known = self.spending.known(&account, &line.instance, line.began());
        if is_fast && budget.then != "alarm" && known >= limit {
            self.find(tag, format!("{known} USD of {limit} were spent before it"));
        }
    }

    /// What the upstream got, against what the policy orders.
    fn check_entries(&mut self, tag: u64, entries: &[Entry], order: Order) {
        let former = &entries[..entries.len() - 1];
        // What was answered before it was read may be lost by the reset that follows.
        if former.iter().any(|entry| entry.whole && entry.answered) {
            self.find(tag, "sent again after an answer");
        }
        self.looked.forced += usize::from(matches!(order, Order::Forced(_)));
        for entry in entries {
            let some = entry.whole || entry.bytes > 0;
            let wrong = match order {
                Order::Denied => Some("it was to be denied"),
                Order::Forced(tier) if entry.bytes > 0 && !entry.forced_to.contains(&tier) => {
                    Some("A FORCED REQUEST WITHOUT ITS TIER")
                }
                Order::Forced(tier) if entry.head.asks_fast && tier != Some("priority") => {
                    Some("FAST MODE IN THE HEAD OF A REQUEST THAT IS NOT TO HAVE IT")
                }
                Order::AsItCame if some && !entry.as_it_came => {
                    Some("a body that was to pass has changed")
                }
                _ if entry.head.is_changed => Some("a header or the path has changed"),
                _ => None,
            };
            wrong.into_iter().for_each(|what| self.find(tag, what));
        }
    }

    /// The policy that decided.
    fn policy(&self, line: &Line, plan: &Plan) -> Option<&'a Policy> {
        let policies = &self.operator.policies;
        let policy = policies.that_decided(&line.policy, line.began());
        if policy.is_none() {
            self.find(plan.tag, "its policy was not in force");
        }
        policy
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
            let takes_tier = plan.endpoint.takes_tier();
            let is_refused = {
                let entries = self.world.books.entries();
                let last = entries.get(tag).and_then(|entries| entries.last());
                takes_tier && last.is_some_and(|last| last.refused)
            };
            if is_refused && answered.status == 400 && !line.tier_refused {
                self.find(*tag, "the line does not tell that its tier was refused");
            }
            if answered.status != 200 || !plan.reply.tells_usage() || !takes_tier {
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

/// What the policy orders for a request, or for a message on a WebSocket.
fn order(
    policy: &Policy,
    line: &Line,
    plan: &Plan,
    is_http2: bool,
    spoken: Option<Spoken>,
) -> Result<Order, &'static str> {
    let body = match &spoken {
        Some(spoken) => Some(spoken.text.as_bytes()),
        None => plan.decoded(),
    };
    policy.order(&Asked {
        plan,
        body,
        is_message: spoken.is_some(),
        is_held: spoken.is_some() || plan.has_length(is_http2),
        reason: line.tier_reason.as_deref().unwrap_or_default(),
    })
}

/// What is wrong with the line of a request that reached the upstream.
fn wrong_line(line: &Line, entry: Option<&Entry>, order: Order, plan: &Plan) -> Option<String> {
    if line.upstream.is_none() {
        return Some("the line names no upstream".to_owned());
    }
    let entry = entry?;
    let sent = line.upstream_request_bytes;
    if sent < entry.bytes || (entry.whole && sent != entry.bytes) {
        return Some("the line counts other bytes to the upstream".to_owned());
    }
    // A coded body that passes is looked at only where there is room for the window of its coding. Where a tier is taken, its
    // line says so.
    let takes_tier = !matches!(
        plan.endpoint,
        Endpoint::Embeddings | Endpoint::Models | Endpoint::Batches
    );
    let unseen = order == Order::AsItCame
        && plan.coding != Coding::Identity
        && line.service_tier.as_deref() == takes_tier.then_some(UNKNOWN);
    if !entry.whole || unseen {
        return None;
    }
    let tier = match order {
        Order::Forced(tier) => tier.map(str::to_owned),
        _ if line.turn > 0 => entry.tier.clone(),
        // What a bad body says before the place where it is bad is nobody's promise.
        _ => {
            reading::members(plan.decoded()?)?;
            reading::tier(plan.decoded()?)
        }
    };
    (line.service_tier != tier).then(|| format!("the line has another tier than {tier:?}"))
}
