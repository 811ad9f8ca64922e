//! What is wrong at the moment, and how the last hour went: the part of `/status` that a glance is for.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::accounting::history::{History, STEP, Totals};
use crate::server::reload::LastReload;
use crate::state::State;

/// Shares are judged over so long.
const RECENT: Duration = Duration::from_secs(300);
const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);
const SECONDS_OF_DAY: i64 = 86_400;
/// As long before as the alert in conf/alerts.yml.
const CERTIFICATE_DAYS: i64 = 14;
/// Fewer bad requests than this are no reason to worry, whatever their share.
const FEW: u64 = 3;
/// A share of bad requests that is told of.
const BAD_SHARE: f64 = 0.05;
/// So many refused requests in [`RECENT`] are a burst.
const REFUSED_BURST: u64 = 20;

/// What is wrong, in words for people.
#[derive(Default)]
struct Problems {
    /// Requests fail, or are not billed.
    critical: Vec<String>,
    /// They may be soon, or some are.
    warnings: Vec<String>,
}

/// The counters at this moment, and what is kept of them.
pub(super) struct Overview<'s> {
    state: &'s State,
    now: Instant,
    totals: Totals,
    history: &'s History,
}

/// Takes samples for as long as the process lives.
pub async fn keep_history(state: Arc<State>, history: Arc<Mutex<History>>) {
    let mut beat = tokio::time::interval(STEP);
    loop {
        beat.tick().await;
        let totals = Totals::of(&state.metrics);
        let day = Timestamp::now().as_second().div_euclid(SECONDS_OF_DAY);
        history.lock().push(Instant::now(), day, totals);
    }
}

impl<'s> Overview<'s> {
    pub(super) fn new(state: &'s State, history: &'s History) -> Self {
        Self {
            state,
            now: Instant::now(),
            totals: Totals::of(&state.metrics),
            history,
        }
    }

    fn within(&self, time: Duration) -> (Totals, Duration) {
        self.history.within(time, self.now, &self.totals)
    }

    /// What is wrong, the worst first; empty while all is well.
    pub(super) fn problems(&self, last: &LastReload) -> Value {
        let mut problems = Problems::default();
        self.of_process(&mut problems);
        self.of_files(last, &mut problems);
        self.of_upstreams(&mut problems);
        self.of_certificates(&mut problems);
        self.of_requests(&mut problems);
        self.of_budgets(&mut problems);
        let told = |severity, what: Vec<String>| {
            let told = what.into_iter();
            told.map(move |what| json!({"severity": severity, "what": what}))
        };
        let critical = told("critical", problems.critical);
        critical.chain(told("warning", problems.warnings)).collect()
    }

    fn of_process(&self, problems: &mut Problems) {
        let state = self.state;
        if state.log.is_stalled() {
            let why = state.log.fault().unwrap_or_default();
            problems.critical(format!("the access log cannot be written: {why}"));
        }
        let unforced = state.metrics.unforced_forwarded.get();
        if unforced > 0 {
            problems.critical(format!(
                "{unforced} forced requests were about to leave without their tier, and were not sent: a defect, please report it"
            ));
        }
        if state.store_fault().is_some() {
            problems.warn("`state` cannot be used: budgets go by the last known sums");
        }
        if state.is_draining() {
            problems.warn("draining: no further requests are taken");
        }
        if state.body_memory.used() > state.limits.buffered / 5 * 4 {
            problems.warn("request bodies take more than 80 % of `limits.buffered`");
        }
        if self.within(HOUR).0.accept_rests > 0 {
            problems.warn("`limits.connections` was reached within the last hour");
        }
    }

    fn of_files(&self, last: &LastReload, problems: &mut Problems) {
        let state = self.state;
        if state.policy.load_status().error().is_some() {
            problems.warn("the policy file cannot be taken, the last good policy is in force");
        }
        let prices = state.prices.as_ref();
        if prices.is_some_and(|prices| prices.load_status().error().is_some()) {
            problems.warn("the price file cannot be taken, the last good prices are in force");
        }
        for (what, _) in state.load_faults.all() {
            problems.warn(format!(
                "{what}: what its file holds cannot be taken, the last good one is in force"
            ));
        }
        if !last.restart_needed.is_empty() {
            let settings = last.restart_needed.join(", ");
            problems.warn(format!(
                "tiergate.yaml has changed ({settings}), which takes effect at a restart"
            ));
        }
    }

    fn of_upstreams(&self, problems: &mut Problems) {
        for upstream in self.state.upstreams() {
            let name = &upstream.config.name;
            let addresses = upstream.addresses();
            let healthy = addresses.iter();
            let healthy = healthy.filter(|address| address.health.snapshot().healthy);
            match (healthy.count(), addresses.len()) {
                (0, 0) => {
                    problems.critical(format!("the name of upstream `{name}` has no address"))
                }
                (0, _) => problems.critical(format!("upstream `{name}` is down")),
                (healthy, all) if healthy < all => problems.warn(format!(
                    "upstream `{name}`: {} of {all} addresses are down",
                    all - healthy
                )),
                _ => {}
            }
        }
    }

    fn of_certificates(&self, problems: &mut Problems) {
        let now = Timestamp::now().as_second();
        let listeners = self.state.config.listen.iter();
        for listen in listeners.filter(|listen| listen.tls.is_some()) {
            let address = &listen.address;
            let expiry = self.state.metrics.certificate_expiry(address).get();
            match (expiry - now).div_euclid(SECONDS_OF_DAY) {
                ..0 => problems.critical(format!("the certificate of {address} has expired")),
                days @ 0..CERTIFICATE_DAYS => problems.warn(format!(
                    "the certificate of {address} expires in {days} days"
                )),
                _ => {}
            }
        }
    }

    fn of_requests(&self, problems: &mut Problems) {
        let (recent, _) = self.within(RECENT);
        let (hour, _) = self.within(HOUR);
        let reached = recent.requests.saturating_sub(recent.denied);
        if let Some(share) = bad_share(recent.failed, reached) {
            problems.critical(format!(
                "{share} of the requests of the last 5 minutes failed at their upstream"
            ));
        }
        let priority = recent.tiers.get("priority").copied().unwrap_or_default();
        if let Some(share) = bad_share(recent.downgraded, priority) {
            problems.warn(format!(
                "{share} of the priority requests of the last 5 minutes were served on another tier"
            ));
        }
        if recent.denied >= REFUSED_BURST {
            problems.warn(format!(
                "{} requests of the last 5 minutes were refused, by key, group or path",
                recent.denied
            ));
        }
        if let Some(share) = bad_share(hour.usage_missing, hour.requests) {
            problems.warn(format!(
                "{share} of the responses of the last hour told no usage, and are billed at nothing"
            ));
        }
        if self.state.prices.is_some() && hour.unpriced > 0 {
            let unpriced = hour.unpriced;
            problems.warn(format!(
                "{unpriced} responses of the last hour have no price"
            ));
        }
    }

    fn of_budgets(&self, problems: &mut Problems) {
        for (group, fullest) in self.state.budgets(&self.state.policy.current()) {
            let (name, used) = (&group.name, fullest.used_ratio());
            let percent = (used * 100.0).floor();
            match used {
                1.0.. => problems.warn(format!("the budget of group `{name}` is used up")),
                0.9.. => problems.warn(format!(
                    "{percent} % of the budget of group `{name}` is used"
                )),
                _ => {}
            }
        }
    }

    /// The last minute in figures.
    pub(super) fn last_minute(&self) -> Value {
        let (minute, time) = self.within(MINUTE);
        let seconds = time.as_secs_f64();
        let rate = |count: u64| (seconds > 0.0).then(|| rounded(count as f64 / seconds, 1e3));
        json!({
            "seconds": time.as_secs(),
            "requests_per_second": rate(minute.requests),
            "first_byte_p50": seconds_at(&minute, 0.5),
            "first_byte_p95": seconds_at(&minute, 0.95),
        })
    }

    /// The last hour, a value for each step, oldest first; and what happened since the last step.
    pub(super) fn history(&self) -> Value {
        let steps = self.history.steps();
        let column = |value: fn(&Totals) -> Value| steps.iter().map(value).collect::<Vec<_>>();
        let (hour, _) = self.within(HOUR);
        json!({
            "step_seconds": STEP.as_secs(),
            "requests": column(|step| json!(step.requests)),
            "failed": column(|step| json!(step.failed)),
            "denied": column(|step| json!(step.denied)),
            "downgraded": column(|step| json!(step.downgraded)),
            "first_byte_p50": column(|step| json!(seconds_at(step, 0.5))),
            "first_byte_p95": column(|step| json!(seconds_at(step, 0.95))),
            "hour": {
                "requests": hour.requests,
                "failed": hour.failed,
                "denied": hour.denied,
                "downgraded": hour.downgraded,
                "service_tiers": hour.tiers,
                "usage_missing": hour.usage_missing,
                "unpriced": hour.unpriced,
                "first_byte_p50": seconds_at(&hour, 0.5),
                "first_byte_p95": seconds_at(&hour, 0.95),
                "duration_p50": hour.duration.at(0.5).map(|at| rounded(at, 1e3)),
                "duration_p95": hour.duration.at(0.95).map(|at| rounded(at, 1e3)),
            },
        })
    }

    /// What was spent in this day of UTC, or in this process's part of it, in USD; null without prices.
    pub(super) fn spent_today(&self) -> Value {
        if self.state.prices.is_none() {
            return Value::Null;
        }
        let groups = self.history.spent_today(&self.totals);
        let sum: f64 = groups.values().sum();
        let now = SystemTime::now();
        let started = now.checked_sub(self.state.started.elapsed());
        let started = started.and_then(|at| Timestamp::try_from(at).ok());
        let today = Timestamp::now().as_second().div_euclid(SECONDS_OF_DAY) * SECONDS_OF_DAY;
        let since = started.map_or(today, |at| at.as_second().max(today));
        let groups = groups.into_iter();
        let groups = groups.map(|(name, usd)| (name, json!(rounded(usd, 1e6))));
        json!({
            "since": Timestamp::from_second(since).ok().map(|at| at.to_string()),
            "usd": rounded(sum, 1e6),
            "groups": groups.collect::<serde_json::Map<_, _>>(),
        })
    }

    /// Each budget, and the share of it that is used; of the key that used most where each has its own.
    pub(super) fn budgets(&self) -> Value {
        let budgets = self.state.budgets(&self.state.policy.current());
        let told = budgets.iter().filter_map(|(group, fullest)| {
            let rule = group.budget.as_ref()?;
            let scope: &str = rule.scope.into();
            Some(json!({
                "group": &*group.name,
                "used_ratio": rounded(fullest.used_ratio(), 1e4),
                "spent_usd": fullest.spent.to_string(),
                "limit_usd": rule.usd.to_string(),
                "per": rule.per.as_str(),
                "scope": scope,
                "ends_at": fullest.window.ends.to_string(),
            }))
        });
        told.collect()
    }
}

impl Problems {
    fn critical(&mut self, what: impl Into<String>) {
        self.critical.push(what.into());
    }

    fn warn(&mut self, what: impl Into<String>) {
        self.warnings.push(what.into());
    }
}

fn seconds_at(totals: &Totals, share: f64) -> Option<f64> {
    totals.first_byte.at(share).map(|at| rounded(at, 1e3))
}

fn rounded(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

/// The share in words, where it is worth a word.
fn bad_share(bad: u64, all: u64) -> Option<String> {
    // Counts are far below 2^53.
    let share = bad as f64 / all.max(1) as f64;
    (bad >= FEW && share > BAD_SHARE).then(|| format!("{:.0} %", (share * 100.0).min(100.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_bad_requests_are_not_told_of_and_many_are() {
        assert_eq!(bad_share(2, 2), None);
        assert_eq!(bad_share(3, 100), None);
        assert_eq!(bad_share(0, 0), None);
        assert_eq!(bad_share(12, 48).as_deref(), Some("25 %"));
    }
}
