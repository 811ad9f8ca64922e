//! The last hour as a row of samples, for people who look at the page of the admin listener without a monitoring beside it. It
//! holds what the counters said at each step, and tells differences. It reads no clock.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::accounting::metrics::{Metrics, Quantiles};
use crate::codec::error::Outcome;

/// How often a sample is taken.
pub const STEP: Duration = Duration::from_secs(10);
/// An hour, and the sample before it, from which its first difference is taken.
const MAX_SAMPLES: usize = 361;

/// What the counters say at one moment, each a sum since the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    pub requests: u64,
    /// Failed at the upstream: answered with an error, cut, late.
    pub failed: u64,
    /// Refused by key, group, path or policy.
    pub denied: u64,
    pub downgraded: u64,
    /// Answers that should have told usage, and did not.
    pub usage_missing: u64,
    pub unpriced: u64,
    /// Times that no connection was accepted because there were too many.
    pub accept_rests: u64,
    /// Requests by the tier that was sent.
    pub tiers: BTreeMap<String, u64>,
    /// In USD, by group.
    pub cost: BTreeMap<String, f64>,
    pub first_byte: Quantiles,
    pub duration: Quantiles,
}

/// The samples, oldest first.
#[derive(Debug, Default)]
pub struct History {
    samples: VecDeque<(Instant, Totals)>,
    /// The day that sums are kept for, as the caller counts days, and what the counters said when it began.
    day: Option<(i64, BTreeMap<String, f64>)>,
}

impl Totals {
    /// What the counters say now.
    pub fn of(metrics: &Metrics) -> Self {
        let mut totals = Totals {
            cost: metrics.cost_by_group(),
            first_byte: metrics.first_byte_quantiles(),
            duration: metrics.duration_quantiles(),
            usage_missing: metrics.usage_missing_count(),
            unpriced: metrics.unpriced_count(),
            accept_rests: metrics.accept_rests.get(),
            ..Totals::default()
        };
        for sums in metrics.by_group().into_values() {
            totals.downgraded += sums.downgraded;
            for (outcome, count) in sums.outcomes {
                totals.requests += count;
                match outcome.parse() {
                    Ok(Outcome::UpstreamError | Outcome::UpstreamCut | Outcome::Timeout) => {
                        totals.failed += count;
                    }
                    Ok(Outcome::Denied) => totals.denied += count,
                    _ => {}
                }
            }
            for (tier, count) in sums.service_tiers {
                *totals.tiers.entry(tier).or_default() += count;
            }
        }
        totals
    }

    /// What has happened since an earlier moment.
    pub fn since(&self, earlier: &Totals) -> Totals {
        let tiers = self.tiers.iter().map(|(name, count)| {
            let before = earlier.tiers.get(name).copied().unwrap_or_default();
            (name.clone(), count.saturating_sub(before))
        });
        Totals {
            requests: self.requests.saturating_sub(earlier.requests),
            failed: self.failed.saturating_sub(earlier.failed),
            denied: self.denied.saturating_sub(earlier.denied),
            downgraded: self.downgraded.saturating_sub(earlier.downgraded),
            usage_missing: self.usage_missing.saturating_sub(earlier.usage_missing),
            unpriced: self.unpriced.saturating_sub(earlier.unpriced),
            accept_rests: self.accept_rests.saturating_sub(earlier.accept_rests),
            tiers: tiers.collect(),
            cost: cost_since(&self.cost, &earlier.cost),
            first_byte: self.first_byte.since(&earlier.first_byte),
            duration: self.duration.since(&earlier.duration),
        }
    }
}

impl History {
    /// Takes a sample. `day` counts days, in whichever zone.
    pub fn push(&mut self, now: Instant, day: i64, totals: Totals) {
        if self.day.as_ref().is_none_or(|(begun, _)| *begun != day) {
            // The counters begin with the process, and so does its first day.
            let before = match self.day {
                Some(_) => totals.cost.clone(),
                None => BTreeMap::new(),
            };
            self.day = Some((day, before));
        }
        if self.samples.len() == MAX_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((now, totals));
    }

    /// What was spent in the day of the newest sample, in USD, by group.
    pub fn spent_today(&self, totals: &Totals) -> BTreeMap<String, f64> {
        match &self.day {
            Some((_, before)) => cost_since(&totals.cost, before),
            None => totals.cost.clone(),
        }
    }

    /// What happened in each step, oldest first.
    pub fn steps(&self) -> Vec<Totals> {
        let pairs = self.samples.iter().zip(self.samples.iter().skip(1));
        pairs
            .map(|((_, before), (_, after))| after.since(before))
            .collect()
    }

    /// What happened in the last `time` as far as there are samples of it, and how long that is.
    pub fn within(&self, time: Duration, now: Instant, totals: &Totals) -> (Totals, Duration) {
        let is_recent = |(at, _): &&(Instant, Totals)| now.saturating_duration_since(*at) <= time;
        match self.samples.iter().find(is_recent) {
            Some((at, before)) => (totals.since(before), now.saturating_duration_since(*at)),
            None => (Totals::default(), Duration::ZERO),
        }
    }
}

fn cost_since(
    now: &BTreeMap<String, f64>,
    before: &BTreeMap<String, f64>,
) -> BTreeMap<String, f64> {
    let differences = now.iter().map(|(group, usd)| {
        let before = before.get(group).copied().unwrap_or_default();
        (group.clone(), (usd - before).max(0.0))
    });
    differences.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(requests: u64, usd: f64) -> Totals {
        Totals {
            requests,
            tiers: [("priority".to_owned(), requests)].into(),
            cost: [("fast".to_owned(), usd)].into(),
            ..Totals::default()
        }
    }

    #[test]
    fn steps_are_differences_and_an_hour_of_them_is_kept() {
        let (mut history, start) = (History::default(), Instant::now());
        for step in 0..1000_u32 {
            history.push(start + STEP * step, 0, totals(u64::from(step) * 3, 0.0));
        }
        let steps = history.steps();
        assert_eq!(steps.len(), 360);
        assert!(
            steps
                .iter()
                .all(|step| step.requests == 3 && step.tiers["priority"] == 3)
        );
    }

    #[test]
    fn a_window_is_as_long_as_there_are_samples() {
        let (mut history, start) = (History::default(), Instant::now());
        history.push(start, 0, totals(0, 0.0));
        history.push(start + STEP, 0, totals(5, 0.0));
        let now = start + STEP * 2;
        let minute = history.within(Duration::from_secs(60), now, &totals(8, 0.0));
        assert_eq!((minute.0.requests, minute.1), (8, STEP * 2));
        let step = history.within(STEP, now, &totals(8, 0.0));
        assert_eq!((step.0.requests, step.1), (3, STEP));
    }

    #[test]
    fn a_new_day_begins_at_nothing() {
        let (mut history, start) = (History::default(), Instant::now());
        history.push(start, 7, totals(1, 0.5));
        assert_eq!(history.spent_today(&totals(1, 0.75))["fast"], 0.75);
        history.push(start + STEP, 8, totals(2, 1.0));
        assert_eq!(history.spent_today(&totals(2, 1.25))["fast"], 0.25);
    }
}
