//! The policies of a run: what each of them says, known here without the proxy's own reader, and when it was in force.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::chance::Chance;
use super::plan::{Asker, Endpoint, GROUPS, KEYS, Plan};

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
    force: bool,
    beta: bool,
    batches: bool,
    enabled: bool,
    /// Of each key.
    keys: [bool; KEYS],
}

/// What a policy orders for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Denied,
    Forced,
    AsItCame,
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
            force: chance.one_in(2),
            beta: !chance.one_in(3),
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
                "  g{name}: {{platform: openai, upstream: {}, force_fast_mode: {}, fast_mode_beta: {}, enabled: {}{}}}\n",
                UPSTREAMS[name],
                group.force,
                group.beta,
                group.enabled,
                if group.batches { ", batches: allow" } else { "" },
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

    pub fn order(&self, plan: &Plan) -> Order {
        let Asker::Key { group, key } = plan.asker else {
            return Order::Denied;
        };
        let state = &self.groups[group];
        let batches = plan.endpoint == Endpoint::Batches && state.force && !state.batches;
        if !state.enabled || !state.keys[key] || batches {
            return Order::Denied;
        }
        let asked = plan.beta && plan.endpoint == Endpoint::Messages && state.beta;
        match plan.endpoint.takes_tier() && (state.force || asked) {
            true => Order::Forced,
            false => Order::AsItCame,
        }
    }
}

impl Policy {
    /// The same for a message that begins a response on a WebSocket.
    pub fn order_on_socket(&self, plan: &Plan) -> Order {
        let Asker::Key { group, key } = plan.asker else {
            return Order::Denied;
        };
        let state = &self.groups[group];
        match (state.enabled && state.keys[key], state.force) {
            (false, _) => Order::Denied,
            (true, true) => Order::Forced,
            (true, false) => Order::AsItCame,
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
            in_force && found.policy.order_on_socket(plan) == Order::AsItCame
        })
    }
}

fn revision(text: &[u8]) -> String {
    let digest = Sha256::digest(text);
    let digits = digest[..6].iter().map(|byte| format!("{byte:02x}"));
    format!("sha256:{}", digits.collect::<String>())
}
