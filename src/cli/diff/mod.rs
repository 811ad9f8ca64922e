//! `tiergate diff`: what one policy does that another does not, for each group and each key, and what of a log that
//! touches. It uses no network and takes no policy into force.

mod replay;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io::Write;
use std::path::PathBuf;

use rust_decimal::Decimal;
use serde::{Serialize, Serializer};

use crate::accounting::access_log::line::{Field, Line, Wanted};
use crate::accounting::prices::Prices;
use crate::cli::diff::replay::Replay;
use crate::cli::report::{Lines, Reading, ReportError, counts, is_connection, priced_tier};
use crate::policy::changes::{FORCE_FAST_MODE, FORCE_TIER, settings};
use crate::policy::endpoint::Endpoint;
use crate::policy::{Group, ListedKey, Policy};

const COST_USD: Field = Field::named("cost_usd");
const GROUP: Field = Field::named("group");
const INPUT_TOKENS: Field = Field::named("input_tokens");
const KEY: Field = Field::named("key");
const OUTPUT_TOKENS: Field = Field::named("output_tokens");

/// Of a [`Rule`]: the tier that is forced, else [`CLIENT`].
const TIER: &str = "tier";
/// Of a [`Rule`]: touches nothing but the log.
const NAME: &str = "name";
/// Of a [`Rule`]: whether requests pass at all.
const ENABLED: &str = "enabled";
/// Of a [`Rule`]'s tier: the client's word counts.
const CLIENT: &str = "client";
const NONE: &str = "none";

/// Of a [`Rule`]: what touches only requests that can have a tier.
const OF_TIER: [&str; 5] = [
    TIER,
    "models",
    "on_tier_refused",
    "fast_mode_beta",
    "budget",
];

/// So many keys that differ alike are told in one line.
const MANY_KEYS: usize = 4;
/// Keys of such a line that are named.
const KEYS_NAMED: usize = 3;

/// What differs. Names only: no key, whole or part, is in it.
#[derive(Debug, Default, Serialize)]
pub struct Diff {
    pub groups: Vec<Change>,
    pub keys: Vec<Change>,
    /// Keys that are not listed, where they are treated otherwise now.
    pub unlisted: Option<Change>,
    /// Of the logs that were read, if any.
    pub log: Option<LogImpact>,
}

/// One group or key in both policies.
#[derive(Debug, Serialize)]
pub struct Change {
    pub name: String,
    pub kind: Kind,
    /// What a request of it meets, before and after, as far as it differs.
    pub changes: BTreeMap<&'static str, [String; 2]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Added,
    Removed,
    Changed,
}

/// Requests of a log whose key or group is treated otherwise by the new policy.
#[derive(Debug, Default, Serialize)]
pub struct LogImpact {
    /// All that were read.
    pub requests: u64,
    pub affected: u64,
    pub input_tokens: u64,
    pub output_tokens: u64,
    #[serde(serialize_with = "as_text")]
    pub cost_usd: Decimal,
    /// Affected ones with tokens and without a cost.
    pub unpriced: u64,
    /// Lines that could not be read.
    pub unreadable: u64,
    /// What the change would have cost or saved, where prices are given; by the group that the log names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<BTreeMap<String, CostChange>>,
}

/// What affected requests of a group cost, and would have cost under the new policy, if every tier that it sends is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CostChange {
    pub requests: u64,
    #[serde(serialize_with = "as_text")]
    pub before_usd: Decimal,
    /// Requests that would be refused cost nothing.
    #[serde(serialize_with = "as_text")]
    pub after_usd: Decimal,
    #[serde(serialize_with = "as_text")]
    pub difference_usd: Decimal,
    /// Requests with tokens that have no price, before or after, and are in neither sum.
    pub unpriced: u64,
}

/// What a request of a group or of a key meets. What is not there is [`NONE`].
type Rule = BTreeMap<&'static str, String>;

impl Diff {
    /// Which groups, keys and unlisted keys the two policies treat otherwise.
    pub fn between(old: &Policy, new: &Policy) -> Self {
        Self {
            groups: differing_groups(old, new),
            keys: differing_keys(old, new),
            unlisted: Change::of("", Kind::Changed, &unlisted(old), &unlisted(new)),
            log: None,
        }
    }

    /// Counts what of these logs the difference between the two policies touches. Lines that stand in several of them count once.
    /// What is to be said about them goes to `notes`.
    ///
    /// # Errors
    /// Where a log cannot be opened, or not all of it could be read; the latter is counted as far as it goes.
    pub fn read_logs(
        &mut self,
        [old, new]: [&Policy; 2],
        logs: &[PathBuf],
        prices: Option<&Prices>,
        notes: &mut impl Write,
    ) -> Result<(), ReportError> {
        let mut count = Count::new(self, Replay::new(old, new), prices);
        let lines = Lines::read(logs, &Count::wanted(), notes, |line| {
            count.count(line);
            Ok(())
        })?;
        let mut impact = count.impact;
        impact.unreadable = lines.unreadable();
        self.log = Some(impact);
        lines.result()
    }

    /// Whether both policies treat every key alike.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.keys.is_empty() && self.unlisted.is_none()
    }
}

impl Change {
    /// None where nothing differs.
    fn of(name: &str, kind: Kind, old: &Rule, new: &Rule) -> Option<Self> {
        let names: BTreeSet<&'static str> = old.keys().chain(new.keys()).copied().collect();
        let value = |rule: &Rule, name: &str| rule.get(name).map_or(NONE, |value| value).to_owned();
        let pairs = names
            .into_iter()
            .map(|name| (name, [value(old, name), value(new, name)]));
        let changes: BTreeMap<_, _> = pairs
            .filter(|(_, [before, after])| before != after)
            .collect();
        (kind != Kind::Changed || !changes.is_empty()).then(|| Self {
            name: name.to_owned(),
            kind,
            changes,
        })
    }

    /// Whether a request to this endpoint goes another way now.
    fn touches(&self, endpoint: Option<Endpoint>) -> bool {
        self.changes.keys().any(|what| match *what {
            NAME => false,
            what if OF_TIER.contains(&what) => endpoint.is_some_and(Endpoint::takes_tier),
            _ => true,
        })
    }
}

/// Exact, as in the log.
fn as_text<S: Serializer>(value: &Decimal, out: S) -> Result<S::Ok, S::Error> {
    out.collect_str(value)
}

fn differing_groups(old: &Policy, new: &Policy) -> Vec<Change> {
    let before = |name: &str| old.groups().iter().find(|group| &*group.name == name);
    let after = |name: &str| new.groups().iter().find(|group| &*group.name == name);
    let kept = old.groups().iter().filter_map(|group| {
        let now = after(&group.name);
        let kind = now.map_or(Kind::Removed, |_| Kind::Changed);
        let rule = now.map_or_else(no_rule, |now| rule_of(now, true));
        Change::of(&group.name, kind, &rule_of(group, true), &rule)
    });
    let added = new.groups().iter();
    let added = added.filter(|group| before(&group.name).is_none());
    let added = added.filter_map(|group| {
        Change::of(&group.name, Kind::Added, &no_rule(), &rule_of(group, true))
    });
    kept.chain(added).collect()
}

/// In the order of their names. A key that is listed by one policy only is by the other one what unlisted keys are.
fn differing_keys(old: &Policy, new: &Policy) -> Vec<Change> {
    let after: HashMap<_, _> = new.keys().map(|key| (key.id, key)).collect();
    let before: HashMap<_, _> = old.keys().map(|key| (key.id, key)).collect();
    let kept = old.keys().filter_map(|key| {
        let now = after.get(&key.id);
        let kind = now.map_or(Kind::Removed, |_| Kind::Changed);
        let rule = now.map_or_else(|| unlisted(new), key_rule);
        Change::of(&key.name, kind, &key_rule(&key), &rule)
    });
    let added = new.keys().filter(|key| !before.contains_key(&key.id));
    let added =
        added.filter_map(|key| Change::of(&key.name, Kind::Added, &unlisted(old), &key_rule(&key)));
    let mut changes: Vec<Change> = kept.chain(added).collect();
    changes.sort_by(|a, b| a.name.cmp(&b.name));
    changes
}

fn key_rule(key: &ListedKey<'_>) -> Rule {
    let mut rule = rule_of(key.group, key.enabled);
    rule.insert("group", key.group.name.to_string());
    rule.insert(NAME, key.name.to_string());
    rule
}

fn unlisted(policy: &Policy) -> Rule {
    let group = policy.default_group();
    let mut rule = group.map_or_else(no_rule, |group| rule_of(group, true));
    rule.extend(group.map(|group| ("group", group.name.to_string())));
    rule
}

/// `enabled`: as far as it is for the key to say.
fn rule_of(group: &Group, enabled: bool) -> Rule {
    // Both say one thing, and nothing on a platform that has no tiers.
    let of_force = [FORCE_FAST_MODE, FORCE_TIER];
    let settings = settings(group).into_iter();
    let settings = settings.filter_map(|(name, value)| Some((name, value?)));
    let mut rule: Rule = settings
        .filter(|(name, _)| !of_force.contains(name))
        .collect();
    let forced = group.forced_tier();
    rule.insert(TIER, forced.map_or(CLIENT, |tier| tier.as_str()).to_owned());
    rule.insert(ENABLED, (enabled && group.enabled).to_string());
    rule
}

/// A key that is not listed, where no group takes it, is refused.
fn no_rule() -> Rule {
    Rule::from([(ENABLED, false.to_string())])
}

/// Goes through logs with what is to be looked for.
struct Count<'d> {
    keys: HashMap<&'d str, &'d Change>,
    unlisted: Option<&'d Change>,
    replay: Replay<'d>,
    reading: Reading<'d>,
    prices: Option<&'d Prices>,
    impact: LogImpact,
}

impl<'d> Count<'d> {
    fn new(diff: &'d Diff, replay: Replay<'d>, prices: Option<&'d Prices>) -> Self {
        let keys = diff.keys.iter();
        let keys = keys.filter(|change| change.kind != Kind::Added);
        Self {
            keys: keys.map(|change| (&*change.name, change)).collect(),
            unlisted: diff.unlisted.as_ref(),
            replay,
            reading: Reading::new(prices, None),
            prices,
            impact: LogImpact {
                groups: prices.map(|_| BTreeMap::new()),
                ..LogImpact::default()
            },
        }
    }

    fn wanted() -> Wanted {
        let own = [COST_USD, GROUP, INPUT_TOKENS, KEY, OUTPUT_TOKENS];
        let own = own.into_iter().chain(replay::FIELDS);
        Wanted::new(own.chain(Reading::fields()))
    }

    fn count(&mut self, line: &Line<'_>) {
        // A WebSocket's own line is no request; its responses have lines of theirs.
        if is_connection(line) {
            return;
        }
        self.impact.requests += 1;
        let change = match line.text(KEY) {
            Some(key) => self.keys.get(&*key).copied(),
            None => self.unlisted.filter(|_| line.text(GROUP).is_some()),
        };
        let endpoint = replay::endpoint(line);
        let is_affected = change.is_some_and(|change| change.touches(endpoint));
        if is_affected {
            self.add(line);
        }
        self.add_cost(line, is_affected);
    }

    fn add(&mut self, line: &Line<'_>) {
        let sums = &mut self.impact;
        let (input, output) = (line.count(INPUT_TOKENS), line.count(OUTPUT_TOKENS));
        sums.affected += 1;
        sums.input_tokens += input.unwrap_or(0);
        sums.output_tokens += output.unwrap_or(0);
        let cost = line.text(COST_USD);
        match cost.and_then(|cost| Decimal::from_str_exact(&cost).ok()) {
            Some(cost) => sums.cost_usd = sums.cost_usd.saturating_add(cost),
            None if input.or(output).is_some() => sums.unpriced += 1,
            None => {}
        }
    }

    /// What the request cost, and what it would have cost. One that goes its old way counts for its budget all the same.
    fn add_cost(&mut self, line: &Line<'_>, is_affected: bool) {
        let (Some(prices), Some(groups)) = (self.prices, &mut self.impact.groups) else {
            return;
        };
        let counts = counts(line);
        let price = |tier: Option<&str>| self.reading.price(prices, line, counts, tier);
        let tier = priced_tier(line);
        let has_usage = counts.iter().any(Option::is_some);
        let before = has_usage.then(|| price(tier.as_deref())).flatten();
        if !is_affected {
            return self.replay.keep(line, before);
        }
        let group = line.text(GROUP).unwrap_or_default().into_owned();
        let sums = groups.entry(group).or_default();
        sums.requests += 1;
        if !has_usage {
            return;
        }
        match (before, self.replay.cost(line, before, price)) {
            (Some(before), Some(after)) => sums.add(before, after),
            _ => sums.unpriced += 1,
        }
    }
}

impl CostChange {
    fn add(&mut self, before: Decimal, after: Decimal) {
        self.before_usd = self.before_usd.saturating_add(before);
        self.after_usd = self.after_usd.saturating_add(after);
        self.difference_usd = self.after_usd.saturating_sub(self.before_usd);
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            writeln!(f, "no group and no key is treated otherwise")?;
        }
        if !self.groups.is_empty() {
            writeln!(f, "groups")?;
            self.groups.iter().try_for_each(|change| change.fmt(f))?;
        }
        if !self.keys.is_empty() {
            writeln!(f, "keys")?;
            let alike = alike(&self.keys);
            alike.iter().try_for_each(|keys| write_keys(keys, f))?;
        }
        if let Some(change) = &self.unlisted {
            writeln!(f, "keys that are not listed\n{change}")?;
        }
        self.log.iter().try_for_each(|impact| impact.fmt(f))
    }
}

/// What keys of one line have in common.
type Alike<'c> = (Kind, Vec<(&'static str, &'c [String; 2])>);

/// Changes of keys that are the same, in the order of the first key of each.
fn alike(keys: &[Change]) -> Vec<Vec<&Change>> {
    let mut alike: Vec<Vec<&Change>> = Vec::new();
    let mut places: HashMap<Alike<'_>, usize> = HashMap::new();
    for key in keys {
        // Names differ in any case where keys come or go.
        let changes = key.changes.iter().filter(|(what, _)| **what != NAME);
        let changes = (
            key.kind,
            changes.map(|(what, values)| (*what, values)).collect(),
        );
        let place = *places.entry(changes).or_insert(alike.len());
        match alike.get_mut(place) {
            Some(others) => others.push(key),
            None => alike.push(vec![key]),
        }
    }
    alike
}

fn write_keys(keys: &[&Change], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let first = match keys {
        [first, ..] if keys.len() >= MANY_KEYS => first,
        few => return few.iter().try_for_each(|key| write!(f, "{key}")),
    };
    let names = keys.iter().take(KEYS_NAMED).map(|key| &*key.name);
    let names = names.collect::<Vec<_>>().join(", ");
    let (sign, more) = (first.kind.sign(), keys.len() - KEYS_NAMED);
    let changes = first.changes_text(|what| what != NAME);
    writeln!(
        f,
        "  {sign} {} keys ({names} and {more} more)  {changes}",
        keys.len()
    )
}

impl Kind {
    fn sign(self) -> char {
        match self {
            Kind::Added => '+',
            Kind::Removed => '-',
            Kind::Changed => '~',
        }
    }
}

impl Change {
    fn changes_text(&self, shown: impl Fn(&str) -> bool) -> String {
        let changes = self.changes.iter().filter(|(what, _)| shown(what));
        let changes = changes.map(|(what, [old, new])| format!("{what}: {old} -> {new}"));
        changes.collect::<Vec<_>>().join(", ")
    }
}

/// One line: a sign, the name, what was and what is.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, changes) = (self.kind.sign(), self.changes_text(|_| true));
        writeln!(f, "  {sign} {:16} {changes}", self.name)
    }
}

impl fmt::Display for CostChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cents = |amount: Decimal| {
            let mut amount = amount.round_dp(2);
            amount.rescale(2);
            amount
        };
        write!(
            f,
            "{} requests, {} USD -> {} USD ({:+})",
            self.requests,
            cents(self.before_usd),
            cents(self.after_usd),
            cents(self.difference_usd)
        )?;
        match self.unpriced {
            0 => Ok(()),
            unpriced => write!(f, ", {unpriced} without a price"),
        }
    }
}

impl fmt::Display for LogImpact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "log\n  {} of {} requests are of keys that are treated otherwise: {} input tokens, {} output tokens, {} USD",
            self.affected, self.requests, self.input_tokens, self.output_tokens, self.cost_usd
        )?;
        if self.unpriced > 0 {
            writeln!(f, "  {} of them have tokens and no cost", self.unpriced)?;
        }
        if self.unreadable > 0 {
            writeln!(f, "  {} lines cannot be read", self.unreadable)?;
        }
        for (group, cost) in self.groups.iter().flatten() {
            let name = if group.is_empty() {
                "(no group)"
            } else {
                group
            };
            writeln!(f, "  {name:16} {cost}")?;
        }
        Ok(())
    }
}
