//! `tiergate diff`: what one policy does that another does not, for each group and each key, and what of a log that
//! touches. It uses no network and takes no policy into force.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rust_decimal::Decimal;
use serde::{Serialize, Serializer};

use crate::accounting::access_log::line::{Field, Line, Wanted};
use crate::cli::report::duplicates::Seen;
use crate::cli::report::log_reader::{LogReader, RawLine};
use crate::policy::{Group, ListedKey, Policy};

const COST_USD: Field = Field::named("cost_usd");
const ENDPOINT: Field = Field::named("endpoint");
const EVENT_ID: Field = Field::named("event_id");
const GROUP: Field = Field::named("group");
const INPUT_TOKENS: Field = Field::named("input_tokens");
const INSTANCE: Field = Field::named("instance");
const KEY: Field = Field::named("key");
const OUTPUT_TOKENS: Field = Field::named("output_tokens");
const SEQ: Field = Field::named("seq");
const TRANSPORT: Field = Field::named("transport");
const TURN: Field = Field::named("turn");

/// Of a [`Rule`]: touches only requests that can have a tier.
const TIER: &str = "tier";
/// Of a [`Rule`]: touches nothing but the log.
const NAME: &str = "name";
const NONE: &str = "none";

/// What differs. Names only: no key, whole or part, is in it.
#[derive(Debug, Default, Serialize)]
pub struct Diff {
    pub groups: Vec<Change>,
    pub keys: Vec<Change>,
    /// Keys that are not listed, where they are treated otherwise now.
    pub unlisted: Option<Change>,
    /// Of the logs that were read, if any.
    pub log: Option<Affected>,
}

/// One group or key in both policies.
#[derive(Debug, Serialize)]
pub struct Change {
    pub name: String,
    pub kind: Kind,
    /// What a request of it meets, before and after, as far as it differs.
    pub changes: BTreeMap<&'static str, [String; 2]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Added,
    Removed,
    Changed,
}

/// Requests of a log whose key or group is treated otherwise by the new policy.
#[derive(Debug, Default, Serialize)]
pub struct Affected {
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
}

/// What a request of a group or of a key meets.
type Rule = Vec<(&'static str, String)>;

impl Diff {
    pub fn between(old: &Policy, new: &Policy) -> Self {
        Self {
            groups: differing_groups(old, new),
            keys: differing_keys(old, new),
            unlisted: Change::of("", Kind::Changed, &unlisted(old), &unlisted(new)),
            log: None,
        }
    }

    /// Counts what of these logs the difference touches. Lines that stand in several of them count once.
    ///
    /// # Errors
    /// Where a log cannot be read to its end.
    pub fn read_logs(&mut self, logs: &[PathBuf]) -> Result<(), (PathBuf, io::Error)> {
        let mut count = Count::new(self);
        for path in logs {
            count.read(path).map_err(|why| (path.clone(), why))?;
        }
        self.log = Some(count.affected);
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.keys.is_empty() && self.unlisted.is_none()
    }
}

impl Change {
    /// None where nothing differs.
    fn of(name: &str, kind: Kind, old: &Rule, new: &Rule) -> Option<Self> {
        let pairs = old.iter().zip(new);
        let changes: BTreeMap<_, _> = pairs
            .filter(|(old, new)| old.1 != new.1)
            .map(|(old, new)| (old.0, [old.1.clone(), new.1.clone()]))
            .collect();
        (kind != Kind::Changed || !changes.is_empty()).then(|| Self {
            name: name.to_owned(),
            kind,
            changes,
        })
    }

    /// Whether a request to this endpoint goes another way now.
    fn touches(&self, endpoint: &str) -> bool {
        self.changes.keys().any(|what| match *what {
            TIER => endpoint != "other",
            NAME => false,
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
    rule.push(("group", key.group.name.to_string()));
    rule.push((NAME, key.name.to_string()));
    rule
}

fn unlisted(policy: &Policy) -> Rule {
    let group = policy.default_group();
    let mut rule = group.map_or_else(no_rule, |group| rule_of(group, true));
    let name = group.map_or(NONE, |group| &group.name);
    rule.push(("group", name.to_owned()));
    rule.push((NAME, NONE.to_owned()));
    rule
}

/// `enabled`: as far as it is for the key to say.
fn rule_of(group: &Group, enabled: bool) -> Rule {
    let tier = if group.is_forced() {
        "priority"
    } else {
        "client"
    };
    let most = |limit: Option<u64>| limit.map_or(NONE.to_owned(), |most| most.to_string());
    vec![
        ("enabled", (enabled && group.enabled).to_string()),
        ("platform", group.platform.as_str().to_owned()),
        (TIER, tier.to_owned()),
        ("upstream", group.upstream.name.clone()),
        ("fast_mode_beta", group.fast_mode_beta.as_str().to_owned()),
        ("batches", group.batches_allowed.to_string()),
        ("max_in_flight", most(group.max_in_flight)),
        ("max_in_flight_per_key", most(group.max_in_flight_per_key)),
    ]
}

/// What nobody lists is refused.
fn no_rule() -> Rule {
    let none = |what| (what, NONE.to_owned());
    let others = [
        TIER,
        "upstream",
        "fast_mode_beta",
        "batches",
        "max_in_flight",
        "max_in_flight_per_key",
    ];
    let mut rule = vec![("enabled", false.to_string()), none("platform")];
    rule.extend(others.map(none));
    rule
}

/// Goes through logs with what is to be looked for.
struct Count<'d> {
    keys: HashMap<&'d str, &'d Change>,
    unlisted: Option<&'d Change>,
    wanted: Wanted,
    seen: Seen,
    affected: Affected,
}

impl<'d> Count<'d> {
    fn new(diff: &'d Diff) -> Self {
        let keys = diff.keys.iter();
        let keys = keys.filter(|change| change.kind != Kind::Added);
        Self {
            keys: keys.map(|change| (&*change.name, change)).collect(),
            unlisted: diff.unlisted.as_ref(),
            wanted: Wanted::new([
                COST_USD,
                ENDPOINT,
                EVENT_ID,
                GROUP,
                INPUT_TOKENS,
                INSTANCE,
                KEY,
                OUTPUT_TOKENS,
                SEQ,
                TRANSPORT,
                TURN,
            ]),
            seen: Seen::default(),
            affected: Affected::default(),
        }
    }

    fn read(&mut self, path: &Path) -> io::Result<()> {
        let mut reader = LogReader::open(path)?;
        while let Some(line) = reader.next_line()? {
            let line = match line {
                RawLine::Whole(bytes) => Line::parse(bytes, &self.wanted).ok(),
                RawLine::TooLong => None,
            };
            match line.filter(|line| line.text(EVENT_ID).is_some()) {
                Some(line) => self.count(&line),
                None => self.affected.unreadable += 1,
            }
        }
        Ok(())
    }

    fn count(&mut self, line: &Line<'_>) {
        let (instance, id) = (line.text(INSTANCE), line.text(EVENT_ID));
        let new = self
            .seen
            .insert(instance.as_deref(), line.count(SEQ), id.as_deref());
        // A WebSocket's own line is no request; its responses have lines of theirs.
        let connection = line.raw(TRANSPORT) == "\"websocket\"" && line.count(TURN) == Some(0);
        if !new || connection {
            return;
        }
        self.affected.requests += 1;
        let endpoint = line.text(ENDPOINT).unwrap_or_default();
        let change = match line.text(KEY) {
            Some(key) => self.keys.get(&*key).copied(),
            None => self.unlisted.filter(|_| line.text(GROUP).is_some()),
        };
        if change.is_some_and(|change| change.touches(&endpoint)) {
            self.add(line);
        }
    }

    fn add(&mut self, line: &Line<'_>) {
        let sums = &mut self.affected;
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
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            writeln!(f, "no group and no key is treated otherwise")?;
        }
        for (title, changes) in [("groups", &self.groups), ("keys", &self.keys)] {
            if !changes.is_empty() {
                writeln!(f, "{title}")?;
            }
            changes.iter().try_for_each(|change| change.fmt(f))?;
        }
        if let Some(change) = &self.unlisted {
            writeln!(f, "keys that are not listed\n{change}")?;
        }
        self.log.iter().try_for_each(|affected| affected.fmt(f))
    }
}

/// One line: a sign, the name, what was and what is.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.kind {
            Kind::Added => '+',
            Kind::Removed => '-',
            Kind::Changed => '~',
        };
        let changes: Vec<String> = self
            .changes
            .iter()
            .map(|(what, [old, new])| format!("{what}: {old} -> {new}"))
            .collect();
        writeln!(f, "  {sign} {:16} {}", self.name, changes.join(", "))
    }
}

impl fmt::Display for Affected {
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
        Ok(())
    }
}
