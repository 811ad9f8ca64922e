//! The policies of a run: what each of them says, known here without the proxy's own reader, and when it was in force.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::budgets::Account;
use super::chance::Chance;
use super::plan::{Asker, Coding, Endpoint, GROUPS, KEYS, Plan};
use super::reading;

/// A change of the file is in force within a second; the rest is for a busy machine.
const SEEN_WITHIN: Duration = Duration::from_secs(5);

/// Of the groups, in their order.
const UPSTREAMS: [&str; GROUPS] = ["main", "modern", "modern", "secure"];

#[derive(Clone, Debug)]
pub struct Policy {
    groups: [GroupState; GROUPS],
    /// Makes every file another one.
    number: u64,
}

#[derive(Clone, Copy, Debug)]
struct GroupState {
    force: Option<&'static str>,
    models: Models,
    /// A refused tier is left out in a second attempt.
    retries: bool,
    budget: Option<Budget>,
    /// What asks for fast mode on messages where nothing is forced, as it stands in the file.
    beta: &'static str,
    batches: bool,
    enabled: bool,
    /// Of each key.
    keys: [bool; KEYS],
}

/// The models that a force is for, by the last digit of their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Models {
    All,
    Except([u8; 2]),
    Only([u8; 2]),
}

/// A budget for the current month.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub usd: &'static str,
    pub by_key: bool,
    pub then: &'static str,
}

/// What a policy orders for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Denied,
    /// It is sent with this tier; none where fast mode is forbidden.
    Forced(Option<&'static str>),
    AsItCame,
}

/// What of a request a policy decides by, and what its line gives as the reason.
pub struct Asked<'a> {
    pub plan: &'a Plan,
    /// The body, decoded, or the message.
    pub body: Option<&'a [u8]>,
    /// It is a message on a WebSocket.
    pub is_message: bool,
    /// All of it is there before anything is sent.
    pub is_held: bool,
    pub reason: &'a str,
}

/// All policies that were ever written, by their revision.
#[derive(Default)]
pub struct Policies(HashMap<String, InForce>);

struct InForce {
    policy: Policy,
    /// From the first write to the moment in which another one took its place; none as long as it is the newest.
    times: Vec<(SystemTime, Option<SystemTime>)>,
}

impl Policy {
    pub fn choose(chance: &mut Chance, number: u64) -> Self {
        let groups = [(); GROUPS].map(|()| GroupState {
            force: chance.pick(&[
                None,
                None,
                Some("priority"),
                Some("priority"),
                Some("priority"),
                Some("flex"),
                Some("default"),
                Some("none"),
            ]),
            models: match chance.below(5) {
                0 => Models::Except([chance.below(10) as u8, 3]),
                1 => Models::Only([chance.below(10) as u8, 4]),
                _ => Models::All,
            },
            retries: chance.one_in(2),
            budget: (!chance.one_in(3)).then(|| Budget {
                usd: chance.pick(&["0.1", "0.5", "1000"]),
                by_key: chance.one_in(2),
                then: chance.pick(&["standard", "refuse", "alarm"]),
            }),
            beta: chance.pick(&["true", "true", "speed", "false"]),
            batches: chance.one_in(3),
            enabled: !chance.one_in(10),
            keys: [(); KEYS].map(|()| !chance.one_in(12)),
        });
        Self { groups, number }
    }

    pub fn text(&self) -> String {
        let mut text = format!("# {}\nversion: 1\ngroups:\n", self.number);
        for (name, group) in self.groups.iter().enumerate() {
            text.push_str(&format!(
                "  g{name}: {{platform: openai, upstream: {}, fast_mode_beta: {}, enabled: {}{}}}\n",
                UPSTREAMS[name],
                group.beta,
                group.enabled,
                group.settings(),
            ));
        }
        text.push_str("keys:\n");
        for (group, state) in self.groups.iter().enumerate() {
            for (key, enabled) in state.keys.iter().enumerate() {
                text.push_str(&format!(
                    "  sk-{group}-{key}: {{group: g{group}, name: key-{group}-{key}, enabled: {enabled}}}\n"
                ));
            }
        }
        text
    }

    /// What is to become of a request of which the line gives this reason.
    ///
    /// # Errors
    /// Why it cannot be the reason.
    pub fn order(&self, asked: &Asked<'_>) -> Result<Order, &'static str> {
        let plan = asked.plan;
        let Asker::Key { group, key } = plan.asker else {
            return Ok(Order::Denied);
        };
        let state = &self.groups[group];
        let escapes = !asked.is_message && plan.endpoint == Endpoint::Batches && !state.batches;
        if !state.enabled || !state.keys[key] || (escapes && state.force.is_some()) {
            return Ok(Order::Denied);
        }
        let takes_tier = asked.is_message || plan.endpoint.takes_tier();
        let by_beta = Some("priority").filter(|_| asked.for_fast_mode(state.beta));
        let Some(tier) = state.force.or(by_beta).filter(|_| takes_tier) else {
            return Ok(Order::AsItCame);
        };
        let is_exempt = state.force.is_some() && state.models.exempt(asked.body);
        let may_fall_back = state.budget.is_some_and(|budget| budget.then == "standard");
        match asked.reason {
            "model_exempt" if is_exempt => Ok(Order::AsItCame),
            "model_exempt" => Err("the force is for this model"),
            "budget_exhausted" if tier == "priority" && may_fall_back => Ok(Order::AsItCame),
            "budget_exhausted" => Err("it has no budget that lets it go as it came"),
            // The head is on its way before the body says what it names, and would be another one.
            _ if is_exempt && (asked.is_held || !asked.changes_head(tier)) => {
                Err("the force is not for this model")
            }
            _ => Ok(Order::Forced(Some(tier).filter(|tier| *tier != "none"))),
        }
    }

    /// Whether a refused tier is left out in a second attempt.
    pub fn retries(&self, asker: Asker) -> bool {
        matches!(asker, Asker::Key { group, .. } if self.groups[group].retries)
    }

    /// The budget of this group.
    pub fn budget(&self, group: usize) -> Option<Budget> {
        self.groups[group].budget
    }
}

impl Asked<'_> {
    /// Whether the client asks for fast mode by what counts for that.
    fn for_fast_mode(&self, signal: &str) -> bool {
        if self.is_message || self.plan.endpoint != Endpoint::Messages {
            return false;
        }
        match signal {
            "true" => self.plan.beta,
            "speed" if self.is_held || !self.changes_head("priority") => {
                self.body.is_some_and(reading::asks_for_fast)
            }
            _ => false,
        }
    }

    /// Whether the head of the request, made before its body is here, is another one where this tier is forced.
    fn changes_head(&self, tier: &str) -> bool {
        tier != "priority" || self.plan.coding != Coding::Identity
    }
}

impl GroupState {
    /// As they stand in the file behind the others.
    fn settings(&self) -> String {
        let mut text = match self.force {
            None => ", force_fast_mode: false".to_owned(),
            Some("priority") => ", force_fast_mode: true".to_owned(),
            Some(tier) => format!(", force_tier: {tier}"),
        };
        if let (Some(_), Some((setting, digits))) = (self.force, self.models.setting()) {
            let patterns = digits.map(|digit| format!("\"m-*{digit}\""));
            text.push_str(&format!(", {setting}: [{}]", patterns.join(", ")));
        }
        if self.retries {
            text.push_str(", on_tier_refused: retry_without");
        }
        if let Some(Budget { usd, by_key, then }) = self.budget {
            let scope = if by_key { "key" } else { "group" };
            text.push_str(&format!(
                ", budget: {{usd: \"{usd}\", per: month, scope: {scope}, then: {then}}}"
            ));
        }
        if self.batches {
            text.push_str(", batches: allow");
        }
        text
    }
}

impl Models {
    fn setting(self) -> Option<(&'static str, [u8; 2])> {
        match self {
            Models::All => None,
            Models::Except(digits) => Some(("except_models", digits)),
            Models::Only(digits) => Some(("only_models", digits)),
        }
    }

    /// Whether the force is not for the model of this body; it is where there is none, or more than one.
    fn exempt(self, body: Option<&[u8]>) -> bool {
        let model = body.and_then(reading::sole_model);
        let digit = model
            .and_then(|model| model.bytes().last())
            .map(|last| last - b'0');
        match (self, digit) {
            (Models::Except(digits), Some(digit)) => digits.contains(&digit),
            (Models::Only(digits), Some(digit)) => !digits.contains(&digit),
            _ => false,
        }
    }
}

impl Policies {
    /// This policy is in the file from now on. Returns its revision.
    pub fn written(&mut self, policy: &Policy) -> String {
        let now = SystemTime::now();
        for other in self.0.values_mut() {
            if let Some((_, until @ None)) = other.times.last_mut() {
                *until = Some(now);
            }
        }
        let revision = revision(policy.text().as_bytes());
        let in_force = self.0.entry(revision.clone()).or_insert_with(|| InForce {
            policy: policy.clone(),
            times: Vec::new(),
        });
        in_force.times.push((now, None));
        revision
    }

    /// The file is no policy from now on. One that was written just before may never have been read, so that the one
    /// before it stays in force.
    pub fn broken(&mut self) {
        let recently = SystemTime::now() - SEEN_WITHIN;
        for found in self.0.values_mut() {
            if let Some((_, until)) = found.times.last_mut() {
                *until = until.filter(|until| *until < recently);
            }
        }
    }

    /// Whether the policy that was written last has a budget for this account.
    pub fn newest_has(&self, account: &Account) -> bool {
        let written = |found: &&InForce| found.times.last().map(|(from, _)| *from);
        let newest = self.0.values().max_by_key(written);
        let budget = newest.and_then(|newest| newest.policy.budget(account.group()?));
        budget.is_some_and(|budget| budget.by_key == account.key.is_some())
    }

    pub fn by_revision(&self, revision: &str) -> Option<&Policy> {
        self.0.get(revision).map(|found| &found.policy)
    }

    /// The policy of this revision, if it may have decided a request that began then.
    pub fn that_decided(&self, revision: &str, began: SystemTime) -> Option<&Policy> {
        let found = self.0.get(revision)?;
        let in_force = found.times.iter().any(|(from, until)| {
            // The proxy's clock is ours, but it may look at it before it asks for the policy.
            let early = *from <= began + Duration::from_millis(50);
            early && until.is_none_or(|until| began <= until + SEEN_WITHIN)
        });
        in_force.then_some(&found.policy)
    }

    /// Whether a message of this client may pass at this time whatever it is.
    pub fn may_pass(&self, plan: &Plan, at: SystemTime) -> bool {
        self.0.values().any(|found| {
            let began = at - SEEN_WITHIN;
            let in_force = found
                .times
                .iter()
                .any(|(from, until)| *from <= at && until.is_none_or(|until| began <= until));
            let asked = Asked {
                plan,
                body: None,
                is_message: true,
                is_held: true,
                reason: "",
            };
            in_force && found.policy.order(&asked) == Ok(Order::AsItCame)
        })
    }
}

fn revision(text: &[u8]) -> String {
    let digest = Sha256::digest(text);
    let digits = digest[..6].iter().map(|byte| format!("{byte:02x}"));
    format!("sha256:{}", digits.collect::<String>())
}
