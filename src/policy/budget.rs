//! Budgets of the fast tier: how much a group, or each of its keys, may spend on it in a day, week or month. Sums are exact
//! decimals and live in memory; what was spent since they were last saved is kept apart, so that a store which several
//! processes share can add it up ([`Budgets::unsaved`], [`Budgets::saved`]). It reads no clock and no file.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use parking_lot::Mutex;
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;

use crate::codec::service_tier::is_fast;
use crate::policy::group::{AtLimit, BudgetRule, Period, Scope};
use crate::policy::{Group, TierAction, TierReason};

/// The most sums that are kept at once: keys of a default group are anybody's.
const MAX_ACCOUNTS: usize = 100_000;

/// By so much a clock may be set back without giving a budget anew. What was spent in a period that begins still later was
/// spent under a clock that was wrong, as one is that no battery kept: it would hold its budget until then.
const CLOCK_STEP: SignedDuration = SignedDuration::from_hours(24);

/// The days that a budget is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Window {
    /// The first moment of the period.
    pub begins: Timestamp,
    /// The first moment of the next.
    pub ends: Timestamp,
}

/// Whose sum it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account {
    /// Name of the group.
    pub group: Arc<str>,
    /// Digest of the key, where each key has its own.
    pub key: Option<[u8; 32]>,
    /// A budget that is changed to another period begins anew.
    pub per: Period,
}

/// How much of a budget is used.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// In USD.
    pub spent: Decimal,
    /// In USD.
    pub limit: Decimal,
    /// The period in which this was spent.
    pub window: Window,
}

/// What a budget says to a request for the fast tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may have it.
    Within,
    /// It is to go as it came.
    Standard,
    /// It is to be refused; the budget begins anew in so many seconds.
    Refuse {
        /// Seconds until the budget begins anew.
        retry_after: u64,
    },
}

/// What an account spent in one period, as it is handed to a store or told by one.
#[derive(Clone, Debug, PartialEq)]
pub struct BudgetSum {
    /// Group or key that spent it.
    pub account: Account,
    /// The period in which it was spent.
    pub window: Window,
    /// In USD.
    pub usd: Decimal,
}

/// The sums of all budgets.
#[derive(Debug, Default)]
pub struct Budgets {
    sums: Mutex<HashMap<Account, Sum>>,
}

#[derive(Clone, Copy, Debug)]
struct Sum {
    window: Window,
    /// Saved, by this process or another.
    saved: Decimal,
    /// Spent here and not saved yet.
    unsaved: Decimal,
}

impl Period {
    /// Its word in the policy.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The period in which this moment lies. Beyond the years that the calendar has, it is empty.
    pub fn window(self, at: Timestamp, time_zone: &TimeZone) -> Window {
        let day = at.to_zoned(time_zone.clone()).date();
        let begins = match self {
            Period::Day => Ok(day),
            Period::Week => day.checked_sub(i64::from(day.weekday().since(Weekday::Monday)).days()),
            Period::Month => Ok(day.first_of_month()),
        };
        let length = match self {
            Period::Day => 1.day(),
            Period::Week => 1.week(),
            Period::Month => 1.month(),
        };
        // A day may begin later than at midnight, where clocks are set forward then.
        let start = |day: Date| Some(day.to_zoned(time_zone.clone()).ok()?.timestamp());
        let bounds = begins.ok().and_then(|begins| {
            let next = begins.checked_add(length).ok()?;
            Some((start(begins)?, start(next)?))
        });
        let (begins, ends) = bounds.unwrap_or((at, at));
        Window { begins, ends }
    }
}

impl Window {
    /// Whether what was spent in it counts at this moment.
    pub fn counts(&self, now: Timestamp) -> bool {
        self.ends > now && self.begins.duration_since(now) <= CLOCK_STEP
    }
}

impl BudgetRule {
    /// The sum that a request of this group and key counts for.
    pub fn account(&self, group: &Arc<str>, key: &[u8; 32]) -> Account {
        Account {
            group: group.clone(),
            key: (self.scope == Scope::Key).then_some(*key),
            per: self.per,
        }
    }

    /// The days that it is for at this moment.
    pub fn window(&self, now: Timestamp) -> Window {
        self.per.window(now, &self.time_zone)
    }

    /// What it says once nothing is left of it, so many seconds before it begins anew.
    pub fn exhausted(&self, retry_after: u64) -> Verdict {
        match self.then {
            AtLimit::Alarm => Verdict::Within,
            AtLimit::Standard => Verdict::Standard,
            AtLimit::Refuse => Verdict::Refuse { retry_after },
        }
    }
}

impl Standing {
    /// The part of the budget that is used: 1 where it is used up, and more beyond.
    pub fn used_ratio(&self) -> f64 {
        if self.limit.is_zero() {
            return 1.0;
        }
        let ratio = self.spent.checked_div(self.limit);
        ratio.and_then(|ratio| ratio.to_f64()).unwrap_or(f64::MAX)
    }

    /// Whether nothing is left.
    pub fn is_exhausted(&self) -> bool {
        self.spent >= self.limit
    }
}

impl Budgets {
    /// Counts what a request cost that was billed as priority.
    pub fn charge(&self, rule: &BudgetRule, account: &Account, usd: Decimal, now: Timestamp) {
        if usd <= Decimal::ZERO {
            return;
        }
        let mut sums = self.sums.lock();
        if let Some(sum) = sum_of(&mut sums, account, rule.window(now), now) {
            sum.unsaved = sum.unsaved.saturating_add(usd);
        }
    }

    /// How much of the budget is used.
    pub fn standing(&self, rule: &BudgetRule, account: &Account, now: Timestamp) -> Standing {
        let window = rule.window(now);
        let sums = self.sums.lock();
        let sum = sums.get(account).filter(|sum| sum.is_current(window, now));
        Standing {
            spent: sum.map_or(Decimal::ZERO, Sum::total),
            limit: rule.usd,
            window: sum.map_or(window, |sum| sum.window),
        }
    }

    /// How much of the budget this group has used, or each of its keys that used something.
    pub fn standings(
        &self,
        rule: &BudgetRule,
        group: &str,
        now: Timestamp,
    ) -> Vec<(Account, Standing)> {
        let accounts: Vec<Account> = {
            let sums = self.sums.lock();
            // Others are of what the rule was before.
            let is_of_rule = |account: &&Account| {
                let is_of_key = account.key.is_some();
                (&*account.group, account.per, is_of_key)
                    == (group, rule.per, rule.scope == Scope::Key)
            };
            sums.keys().filter(is_of_rule).cloned().collect()
        };
        let standings = accounts.into_iter().map(|account| {
            let standing = self.standing(rule, &account, now);
            (account, standing)
        });
        standings.collect()
    }

    /// How much of the budget this group has used; of a budget by key that of the key which used most.
    pub fn fullest(&self, rule: &BudgetRule, group: &str, now: Timestamp) -> Standing {
        let standings = self.standings(rule, group, now).into_iter();
        let fullest = standings.map(|(_, standing)| standing);
        let fullest = fullest.max_by_key(|standing| standing.spent);
        fullest.unwrap_or_else(|| Standing {
            spent: Decimal::ZERO,
            limit: rule.usd,
            window: rule.window(now),
        })
    }

    /// Whether a request may have the fast tier now. Requests that run already may go beyond the limit.
    pub fn verdict(&self, rule: &BudgetRule, account: &Account, now: Timestamp) -> Verdict {
        let standing = self.standing(rule, account, now);
        if !standing.is_exhausted() {
            return Verdict::Within;
        }
        let left = standing.window.ends.as_second() - now.as_second();
        rule.exhausted(u64::try_from(left).unwrap_or(0).max(1))
    }

    /// What was spent here and not saved yet.
    pub fn unsaved(&self) -> Vec<BudgetSum> {
        self.parts(|sum| sum.unsaved)
    }

    /// What the store has, or had, as far as is known here.
    pub fn in_store(&self) -> Vec<BudgetSum> {
        self.parts(|sum| sum.saved)
    }

    /// These were added to the store.
    pub fn saved(&self, entries: &[BudgetSum]) {
        let mut sums = self.sums.lock();
        for entry in entries {
            if let Some(sum) = sums.get_mut(&entry.account)
                && sum.window == entry.window
            {
                sum.unsaved -= entry.usd;
                sum.saved = sum.saved.saturating_add(entry.usd);
            }
        }
    }

    /// What the store says, with what others have spent, of those sums that count now. It is never taken for less than what is
    /// known here.
    pub fn learn(&self, entries: &[BudgetSum], now: Timestamp) {
        let mut sums = self.sums.lock();
        for entry in entries.iter().filter(|entry| entry.window.counts(now)) {
            if let Some(sum) = sum_of(&mut sums, &entry.account, entry.window, now) {
                sum.saved = sum.saved.max(entry.usd);
            }
        }
    }

    /// Of each sum this part, where there is any.
    fn parts(&self, part: impl Fn(&Sum) -> Decimal) -> Vec<BudgetSum> {
        let sums = self.sums.lock();
        let parts = sums.iter().filter_map(|(account, sum)| {
            let usd = part(sum);
            (!usd.is_zero()).then(|| BudgetSum {
                account: account.clone(),
                window: sum.window,
                usd,
            })
        });
        parts.collect()
    }
}

impl Sum {
    fn total(&self) -> Decimal {
        self.saved.saturating_add(self.unsaved)
    }

    /// Whether it still counts in this window, which is that of this moment or has been told of by a store.
    fn is_current(&self, window: Window, now: Timestamp) -> bool {
        let is_later = self.window.begins > window.begins;
        self.window == window || (is_later && self.window.counts(now))
    }
}

impl Group {
    /// The action on a request by this key, as far as the budget allows it. Where the action depends on the body, it is to be
    /// settled first. `own`: the tier that the client asks for itself, which a budget cannot take out of a request, but can
    /// have it refused for.
    ///
    /// # Errors
    /// Where the request is to be refused (`budget_exhausted`): the seconds after which the budget begins anew.
    pub fn within_budget(
        &self,
        action: Option<TierAction>,
        own: Option<&str>,
        key: &[u8; 32],
        budgets: &Budgets,
        now: Timestamp,
    ) -> Result<Option<TierAction>, u64> {
        self.allowed(action, own, |rule| {
            budgets.verdict(rule, &rule.account(&self.name, key), now)
        })
    }

    /// The same by another's verdict, which is asked for where the request would have the fast tier.
    ///
    /// # Errors
    /// As above.
    pub fn allowed(
        &self,
        action: Option<TierAction>,
        own: Option<&str>,
        verdict: impl FnOnce(&BudgetRule) -> Verdict,
    ) -> Result<Option<TierAction>, u64> {
        let is_changed = action.is_some_and(|action| action.changes());
        let is_set = action.is_some_and(|action| action.asks_for_priority());
        let is_fast = is_set || (!is_changed && own.is_some_and(is_fast));
        let Some(rule) = self.budget.as_ref().filter(|_| is_fast) else {
            return Ok(action);
        };
        match verdict(rule) {
            Verdict::Standard if is_set => Ok(Some(TierAction::none(TierReason::BudgetExhausted))),
            Verdict::Within | Verdict::Standard => Ok(action),
            Verdict::Refuse { retry_after } => Err(retry_after),
        }
    }

    /// Whether a body has to be here before its request is sent, because the tier that it asks for may be over the budget.
    pub fn holds_for_budget(&self) -> bool {
        let rule = self.budget.as_ref();
        rule.is_some_and(|rule| rule.then == AtLimit::Refuse)
    }

    /// Counts what a request by this key cost, if it was billed as a fast tier and there is a budget, and says whether it did.
    pub fn charge(
        &self,
        key: &[u8; 32],
        billed_tier: Option<&str>,
        usd: Decimal,
        budgets: &Budgets,
        now: Timestamp,
    ) -> bool {
        let rule = self.budget.as_ref();
        let Some(rule) = rule.filter(|_| billed_tier.is_some_and(is_fast)) else {
            return false;
        };
        budgets.charge(rule, &rule.account(&self.name, key), usd, now);
        true
    }
}

/// The sum of an account in this window, begun anew where it is of an earlier one. None where there are too many.
fn sum_of<'s>(
    sums: &'s mut HashMap<Account, Sum>,
    account: &Account,
    window: Window,
    now: Timestamp,
) -> Option<&'s mut Sum> {
    if sums.len() >= MAX_ACCOUNTS && !sums.contains_key(account) {
        sums.retain(|_, sum| sum.window.counts(now) || !sum.unsaved.is_zero());
        if sums.len() >= MAX_ACCOUNTS {
            return None;
        }
    }
    let new = Sum {
        window,
        saved: Decimal::ZERO,
        unsaved: Decimal::ZERO,
    };
    let sum = sums.entry(account.clone()).or_insert(new);
    if !sum.is_current(window, now) {
        *sum = new;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn usd(text: &str) -> Decimal {
        text.parse().unwrap()
    }

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).unwrap()
    }

    fn rule(limit: &str, per: Period, scope: Scope, then: AtLimit) -> BudgetRule {
        BudgetRule {
            usd: usd(limit),
            per,
            scope,
            then,
            time_zone: TimeZone::UTC,
        }
    }

    /// Of a period in a zone at a moment, the first hours of it and of the next.
    #[track_caller]
    fn assert_windows(now: &str, table: &[(Period, &str, &str)]) {
        for (per, name, expected) in table {
            let window = per.window(at(now), &zone(name));
            let (begins, ends) = expected.split_once(' ').unwrap();
            let [begins, ends] = [begins, ends].map(|hour| at(&format!("{hour}:00:00Z")));
            assert_eq!(window, Window { begins, ends }, "{per:?} {name} {now}");
        }
    }

    #[test]
    fn a_window_is_the_day_week_or_month_of_its_time_zone() {
        let west = "America/Los_Angeles";
        let table = [
            (Period::Day, "UTC", "2026-11-30T00 2026-12-01T00"),
            (Period::Week, "UTC", "2026-11-30T00 2026-12-07T00"),
            (Period::Month, "UTC", "2026-11-01T00 2026-12-01T00"),
            (Period::Day, west, "2026-11-29T08 2026-11-30T08"),
            (Period::Week, west, "2026-11-23T08 2026-11-30T08"),
            // The month begins in summer time.
            (Period::Month, west, "2026-11-01T07 2026-12-01T08"),
        ];
        assert_windows("2026-11-30T03:00:00Z", &table);
    }

    #[test]
    fn days_on_which_clocks_are_set_are_shorter_or_longer() {
        for (now, expected) in [
            ("2026-03-29T12:00:00Z", "2026-03-28T23 2026-03-29T22"),
            ("2026-10-25T12:00:00Z", "2026-10-24T22 2026-10-25T23"),
        ] {
            assert_windows(now, &[(Period::Day, "Europe/Berlin", expected)]);
        }
    }

    #[test]
    fn a_budget_is_used_up_exactly_at_its_limit() {
        let budgets = Budgets::default();
        let rule = rule("0.03", Period::Day, Scope::Group, AtLimit::Standard);
        let account = rule.account(&"fast".into(), &[1; 32]);
        let now = at("2026-11-30T03:00:00Z");
        for spent in ["0.01", "0.01", "0.009999999999999"] {
            assert_eq!(budgets.verdict(&rule, &account, now), Verdict::Within);
            budgets.charge(&rule, &account, usd(spent), now);
        }
        assert_eq!(budgets.verdict(&rule, &account, now), Verdict::Within);
        budgets.charge(&rule, &account, usd("0.000000000000001"), now);
        let standing = budgets.standing(&rule, &account, now);
        assert_eq!((standing.spent, standing.used_ratio()), (usd("0.03"), 1.0));
        assert_eq!(budgets.verdict(&rule, &account, now), Verdict::Standard);
    }

    #[test]
    fn a_budget_begins_anew_with_its_window_and_not_when_the_clock_is_set_back() {
        let budgets = Budgets::default();
        let rule = rule("1", Period::Day, Scope::Group, AtLimit::Refuse);
        let account = rule.account(&"fast".into(), &[1; 32]);
        let evening = at("2026-11-30T23:59:50.5Z");
        budgets.charge(&rule, &account, usd("2"), evening);
        let refused = Verdict::Refuse { retry_after: 10 };
        assert_eq!(budgets.verdict(&rule, &account, evening), refused);
        let before = at("2026-11-29T12:00:00Z");
        assert!(budgets.standing(&rule, &account, before).is_exhausted());
        let long_before = at("2026-11-28T23:59:59Z");
        assert!(
            !budgets
                .standing(&rule, &account, long_before)
                .is_exhausted()
        );
        let morning = at("2026-12-01T00:00:00Z");
        assert_eq!(budgets.verdict(&rule, &account, morning), Verdict::Within);
        budgets.charge(&rule, &account, usd("0.5"), morning);
        assert_eq!(budgets.standing(&rule, &account, morning).spent, usd("0.5"));
    }

    #[test]
    fn what_was_spent_under_a_clock_that_stood_ahead_holds_no_budget() {
        let rule = rule("1", Period::Week, Scope::Group, AtLimit::Refuse);
        let account = rule.account(&"fast".into(), &[1; 32]);
        let (now, ahead) = (at("2026-11-30T12:00:00Z"), at("2027-10-04T12:00:00Z"));
        let spent = |budgets: &Budgets| budgets.standing(&rule, &account, now).spent;
        let early = Budgets::default();
        early.charge(&rule, &account, usd("2"), ahead);
        let [told] = &early.unsaved()[..] else {
            panic!("one sum")
        };
        assert_eq!(spent(&early), usd("0"));
        early.charge(&rule, &account, usd("0.5"), now);
        // Nor where others were ahead, or it was so before a restart.
        early.learn(std::slice::from_ref(told), now);
        assert_eq!(spent(&early), usd("0.5"));
    }

    #[test]
    fn keys_share_a_budget_or_have_their_own() {
        let budgets = Budgets::default();
        let now = at("2026-11-30T03:00:00Z");
        for (scope, expected) in [(Scope::Group, true), (Scope::Key, false)] {
            let group = format!("{scope:?}");
            let rule = rule("1", Period::Month, scope, AtLimit::Standard);
            let of_key = |key: u8| rule.account(&(*group).into(), &[key; 32]);
            budgets.charge(&rule, &of_key(1), usd("1"), now);
            assert!(budgets.standing(&rule, &of_key(1), now).is_exhausted());
            let other = budgets.standing(&rule, &of_key(2), now);
            assert_eq!(other.is_exhausted(), expected);
        }
    }

    #[test]
    fn an_alarm_lets_everything_pass() {
        let budgets = Budgets::default();
        let rule = rule("0", Period::Week, Scope::Group, AtLimit::Alarm);
        let account = rule.account(&"fast".into(), &[1; 32]);
        let now = at("2026-11-30T03:00:00Z");
        assert!(budgets.standing(&rule, &account, now).is_exhausted());
        assert_eq!(budgets.verdict(&rule, &account, now), Verdict::Within);
    }

    #[test]
    fn sums_are_bounded_and_old_ones_give_way() {
        let budgets = Budgets::default();
        let rule = rule("1", Period::Day, Scope::Key, AtLimit::Standard);
        let account = |index: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&index.to_le_bytes());
            rule.account(&"open".into(), &key)
        };
        let (today, tomorrow) = (at("2026-11-30T03:00:00Z"), at("2026-12-01T03:00:00Z"));
        for index in 0..=MAX_ACCOUNTS {
            budgets.charge(&rule, &account(index), usd("1"), today);
        }
        assert_eq!(budgets.sums.lock().len(), MAX_ACCOUNTS);
        budgets.saved(&budgets.unsaved());
        budgets.charge(&rule, &account(MAX_ACCOUNTS), usd("1"), tomorrow);
        assert_eq!(budgets.sums.lock().len(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever is saved when, and whoever else adds to the store.
        #[test]
        fn what_is_known_is_all_that_was_spent(steps in proptest::collection::vec((0..3u8, 1..1000i64), 0..40)) {
            let rule = rule("1", Period::Month, Scope::Group, AtLimit::Standard);
            let account = rule.account(&"fast".into(), &[1; 32]);
            let now = at("2026-11-30T03:00:00Z");
            let (budgets, mut stored, mut spent) = (Budgets::default(), Decimal::ZERO, Decimal::ZERO);
            for (step, amount) in steps {
                let amount = Decimal::new(amount, 9);
                if step < 2 {
                    spent += amount;
                }
                match step {
                    0 => budgets.charge(&rule, &account, amount, now),
                    1 => stored += amount,
                    _ => {
                        let unsaved = budgets.unsaved();
                        stored += unsaved.iter().map(|entry| entry.usd).sum::<Decimal>();
                        budgets.saved(&unsaved);
                        budgets.learn(&[BudgetSum { account: account.clone(), window: rule.window(now), usd: stored }], now);
                        prop_assert_eq!(budgets.standing(&rule, &account, now).spent, spent);
                    }
                }
            }
        }
    }
}
