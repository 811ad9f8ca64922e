//! What the requests of a log would have been sent with under another policy, and what they would have cost then: by the
//! functions that decide live requests, as far as a line tells what its request was.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use rust_decimal::Decimal;

use crate::accounting::access_log::line::{Field, Line};
use crate::codec::service_tier::{Edit, PRIORITY, canonical};
use crate::policy::budget::{Account, Verdict};
use crate::policy::endpoint::Endpoint;
use crate::policy::group::{BudgetRule, OnTierRefused};
use crate::policy::{Condition, Group, Policy, TierAction, TierReason};

const ENDPOINT: Field = Field::named("endpoint");
const KEY: Field = Field::named("key");
const MODEL: Field = Field::named("model");
const OF_REQUEST: Field = Field::named("of_request");
const PATH: Field = Field::named("path");
const SERVICE_TIER: Field = Field::named("service_tier");
const SERVICE_TIER_BILLED: Field = Field::named("service_tier_billed");
const SERVICE_TIER_CLIENT: Field = Field::named("service_tier_client");
const TIER_BILLED_BY: Field = Field::named("tier_billed_by");
const TIER_REASON: Field = Field::named("tier_reason");
const TIER_REFUSED: Field = Field::named("tier_refused");
const TIME: Field = Field::named("time");

/// The fields that it looks at.
pub(super) const FIELDS: [Field; 12] = [
    ENDPOINT,
    KEY,
    MODEL,
    OF_REQUEST,
    PATH,
    SERVICE_TIER,
    SERVICE_TIER_BILLED,
    SERVICE_TIER_CLIENT,
    TIER_BILLED_BY,
    TIER_REASON,
    TIER_REFUSED,
    TIME,
];

/// In the place of the digest of a key that the log does not name.
const UNLISTED: [u8; 32] = [0; 32];

/// The new policy, and what its budgets have spent.
pub(super) struct Replay<'p> {
    /// By the name that the log has for the key.
    callers: HashMap<Arc<str>, Caller<'p>>,
    unlisted: Caller<'p>,
    /// By account and by the beginning of the period. Within one it goes by the order in which lines are read.
    spent: HashMap<(Account, Timestamp), Decimal>,
}

/// Whom the new policy takes a key for.
#[derive(Clone, Copy)]
struct Caller<'p> {
    digest: [u8; 32],
    /// None: it is refused.
    group: Option<&'p Group>,
}

/// What would become of a request.
#[derive(Debug, PartialEq)]
enum Fate<'l> {
    Refused,
    /// It is sent as it was, and served as it was.
    AsBefore,
    Sent(Option<Cow<'l, str>>),
}

impl<'p> Replay<'p> {
    /// Of lines that were written under the old policy.
    pub(super) fn new(old: &Policy, new: &'p Policy) -> Self {
        let passing = |group: Option<&'p Group>| group.filter(|group| group.enabled);
        let unlisted = new.default_group().map(|group| &**group);
        let listed: HashMap<_, _> = new
            .keys()
            .map(|key| (*key.id, passing(Some(key.group).filter(|_| key.enabled))))
            .collect();
        let callers = old.keys().map(|key| {
            let digest = *key.id;
            let group = listed.get(&digest).copied();
            let group = group.unwrap_or_else(|| passing(unlisted));
            (key.name.clone(), Caller { digest, group })
        });
        Self {
            callers: callers.collect(),
            unlisted: Caller {
                digest: UNLISTED,
                group: passing(unlisted),
            },
            spent: HashMap::new(),
        }
    }

    /// What the request would have cost: `before` where nothing differs, else its price on the tier that it would have had.
    pub(super) fn cost(
        &mut self,
        line: &Line<'_>,
        before: Option<Decimal>,
        price: impl Fn(Option<&str>) -> Option<Decimal>,
    ) -> Option<Decimal> {
        let caller = self.caller(line);
        match self.fate(line, caller) {
            Fate::Refused => Some(Decimal::ZERO),
            Fate::AsBefore => {
                self.keep(line, before);
                before
            }
            Fate::Sent(tier) => {
                let cost = price(tier.as_deref());
                self.charge(line, caller, tier.as_deref(), cost);
                cost
            }
        }
    }

    /// Counts a request that goes its old way for the budget of its group.
    pub(super) fn keep(&mut self, line: &Line<'_>, cost: Option<Decimal>) {
        let billed = line.text(SERVICE_TIER_BILLED);
        self.charge(line, self.caller(line), billed.as_deref(), cost);
    }

    fn caller(&self, line: &Line<'_>) -> Caller<'p> {
        let key = line.text(KEY);
        let known = key.and_then(|key| self.callers.get(&*key).copied());
        known.unwrap_or(self.unlisted)
    }

    fn fate<'l>(&self, line: &Line<'l>, caller: Caller<'p>) -> Fate<'l> {
        let Some(group) = caller.group else {
            return Fate::Refused;
        };
        let client = line.text(SERVICE_TIER_CLIENT);
        let Ok(action) = action(line, group) else {
            return Fate::Refused;
        };
        let verdict = |rule: &BudgetRule| self.verdict(rule, line, caller);
        let action = match group.allowed(action, client.as_deref(), verdict) {
            Ok(Some(action)) => action,
            Ok(None) => return as_sent(line, client),
            Err(_) => return Fate::Refused,
        };
        // The log tells of a request that was answered in the end without the tier.
        if action.sets_tier() && line.is_true(TIER_REFUSED) {
            return match group.on_tier_refused {
                OnTierRefused::Fail => Fate::Refused,
                OnTierRefused::RetryWithout => Fate::AsBefore,
            };
        }
        let tier = match action.body {
            _ if action.asks_for_priority() => Some(PRIORITY.into()),
            Edit::Set(tier) => Some(tier.as_str().into()),
            Edit::Remove => None,
            Edit::Keep => client,
        };
        as_sent(line, tier)
    }

    /// What the budget of the group says, whose sum is that of the lines before.
    fn verdict(&self, rule: &BudgetRule, line: &Line<'_>, caller: Caller<'_>) -> Verdict {
        let spent = account(line, caller).and_then(|(_, sum)| self.spent.get(&sum));
        match spent.copied().unwrap_or_default() >= rule.usd {
            true => rule.exhausted(0),
            false => Verdict::Within,
        }
    }

    fn charge(
        &mut self,
        line: &Line<'_>,
        caller: Caller<'_>,
        billed: Option<&str>,
        cost: Option<Decimal>,
    ) {
        let is_fast = matches!(billed, Some(PRIORITY | "fast"));
        let Some(cost) = cost.filter(|_| is_fast) else {
            return;
        };
        if let Some((_, sum)) = account(line, caller) {
            let spent = self.spent.entry(sum).or_default();
            *spent = spent.saturating_add(cost);
        }
    }
}

/// The endpoint whose request is billed: of a background response that of its create.
pub(super) fn endpoint(line: &Line<'_>) -> Option<Endpoint> {
    match line.raw(OF_REQUEST) {
        "null" => line.text(ENDPOINT).as_deref().and_then(Endpoint::logged_as),
        _ => Some(Endpoint::Responses),
    }
}

/// The group cannot send such a request with its tier.
struct Refused;

/// What the group does to the tier, settled by what the line tells of the body. None: the client's word counts.
fn action(line: &Line<'_>, group: &Group) -> Result<Option<TierAction>, Refused> {
    let Some(endpoint) = endpoint(line) else {
        return Ok(None);
    };
    // Whichever way it asked then, it is taken to ask that way again.
    let asked = line.text(TIER_REASON).as_deref() == Some(TierReason::FastModeBeta.as_str());
    // Queries are not logged.
    let path = line.text(PATH).unwrap_or_default();
    let models = group.models_in_target(&path, b"", endpoint);
    let action = group.action(endpoint, &models, asked);
    let action = action.map_err(|_| Refused)?;
    Ok(action.and_then(|action| match action.condition {
        Condition::FastSpeed if !asked => None,
        Condition::ModelRule if group.models.exempts_model(line.text(MODEL).as_deref()) => {
            Some(TierAction::none(TierReason::ModelExempt))
        }
        _ => Some(action),
    }))
}

/// A tier that was sent already is served as it was; of another one it is assumed that it is served.
fn as_sent<'l>(line: &Line<'l>, tier: Option<Cow<'l, str>>) -> Fate<'l> {
    let was_told = line.raw(TIER_BILLED_BY) == "\"served\"";
    let sent = line.text(SERVICE_TIER);
    if was_told && sent.as_deref().map(canonical) == tier.as_deref().map(canonical) {
        return Fate::AsBefore;
    }
    Fate::Sent(tier)
}

/// The sum that the request counts for, where its group has a budget.
fn account<'p>(
    line: &Line<'_>,
    caller: Caller<'p>,
) -> Option<(&'p BudgetRule, (Account, Timestamp))> {
    let group = caller.group?;
    let rule = group.budget.as_ref()?;
    let time = line.text(TIME)?.parse().ok()?;
    let account = rule.account(&group.name, &caller.digest);
    Some((rule, (account, rule.window(time).begins)))
}
