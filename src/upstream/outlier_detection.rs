//! What is known of an address: whether requests fare well there, and whether it passes its checks. It asks nothing and
//! chooses nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use once_cell::sync::Lazy;
use parking_lot::Mutex;

use crate::config::{Ejection, HealthCheck};

/// The health of one address. Requests read it without a lock; only those that fail, or that succeed after others have
/// failed, take one.
#[derive(Debug, Default)]
pub struct Health {
    /// Milliseconds of [`now`] until which no request is sent here: [`OPEN`] for none, [`CLOSED`] for no known end.
    closed_until: AtomicU64,
    /// Whether a success has something to undo.
    has_failures: AtomicBool,
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    /// Requests that failed since one succeeded.
    failures: u32,
    /// Ejections since a request succeeded.
    ejections: u32,
    /// Like `closed_until`; stays once it has passed, until a request shows that the address is back.
    ejected_until: Option<u64>,
    /// One request was let through when the ejection ended, and nothing is known of it yet.
    half_open: bool,
    check: Check,
    last_error: Option<LastError>,
}

/// How the checks of an address went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Check {
    /// Not checked, or not often enough to say.
    #[default]
    Unknown,
    /// So many checks have failed in a row, fewer than it takes.
    Failed(u32),
    Passing,
    /// Too many have failed; so many have passed since.
    Failing(u32),
}

/// Why a request or a check failed most recently.
#[derive(Clone, Debug)]
pub struct LastError {
    pub at: SystemTime,
    pub what: String,
}

/// What is told of an address to people and programs.
#[derive(Clone, Debug)]
pub struct HealthSnapshot {
    /// Neither ejected nor failing its checks.
    pub healthy: bool,
    pub failures: u32,
    pub ejected_until: Option<SystemTime>,
    /// None where nothing is known, or too few have failed to say.
    pub check_passes: Option<bool>,
    pub last_error: Option<LastError>,
}

/// Length of an error that is kept, in characters.
const MAX_ERROR_CHARS: usize = 300;
const OPEN: u64 = 0;
const CLOSED: u64 = u64::MAX;

static STARTED: Lazy<Instant> = Lazy::new(Instant::now);

/// Milliseconds of the process's clock, never [`OPEN`].
fn now() -> u64 {
    STARTED.elapsed().as_millis() as u64 + 1
}

impl Health {
    /// Whether a request is to be sent here. Where an ejection has ended it is so for one request, and for no other until
    /// that one has fared well or `trial` is over.
    pub fn admits(&self, trial: Duration) -> bool {
        self.admits_at(now, trial)
    }

    fn admits_at(&self, now: impl FnOnce() -> u64, trial: Duration) -> bool {
        match self.closed_until.load(Ordering::Relaxed) {
            OPEN => true,
            CLOSED => false,
            until => self.admits_after(until, trial, now()),
        }
    }

    fn admits_after(&self, until: u64, trial: Duration, now: u64) -> bool {
        if now < until {
            return false;
        }
        let mut record = self.record.lock();
        // Another request may have been let through, or have fared well, since.
        let ended = record.ejected_until.is_some_and(|until| now >= until);
        if ended {
            record.half_open = true;
            record.ejected_until = Some(now + millis(trial));
            self.publish(&record);
        }
        ended
    }

    /// A request has had the beginning of a response. True where the address was ejected until now.
    pub fn record_success(&self) -> bool {
        if !self.has_failures.load(Ordering::Relaxed) {
            return false;
        }
        let mut record = self.record.lock();
        let was_ejected = record.ejected_until.take().is_some();
        record.failures = 0;
        record.ejections = 0;
        record.half_open = false;
        self.publish(&record);
        was_ejected
    }

    /// A request has failed by the address's fault. Returns for how long the address is ejected, if it is so by this.
    pub fn record_failure(&self, why: &str, settings: &Ejection) -> Option<Duration> {
        self.record_failure_at(now(), why, settings)
    }

    fn record_failure_at(&self, now: u64, why: &str, settings: &Ejection) -> Option<Duration> {
        let mut record = self.record.lock();
        record.failures = record.failures.saturating_add(1);
        record.last_error = Some(LastError::new(why));
        let limit = settings.consecutive_failures;
        let enough = limit > 0 && record.failures >= limit;
        // Requests that were under way when it was ejected, or had nowhere else to go, do not prolong it.
        let is_due = record.ejected_until.is_none() || record.half_open;
        let time = (enough && is_due).then(|| record.eject(now, settings));
        self.publish(&record);
        time
    }

    /// A check has passed, or failed for this reason. Returns whether the address passes, where that has changed.
    pub fn checked(&self, failure: Option<&str>, settings: &HealthCheck) -> Option<bool> {
        let mut record = self.record.lock();
        if let Some(why) = failure {
            record.last_error = Some(LastError::new(&format!("check: {why}")));
        }
        let before = record.check;
        record.check = before.after(failure.is_none(), settings);
        self.publish(&record);
        (before.is_failing() != record.check.is_failing()).then(|| !record.check.is_failing())
    }

    /// How the address fares now, for `/status` and the metrics.
    pub fn snapshot(&self) -> HealthSnapshot {
        let record = self.record.lock();
        let left = |until: u64| Duration::from_millis(until.saturating_sub(now()));
        HealthSnapshot {
            healthy: record.ejected_until.is_none() && !record.check.is_failing(),
            failures: record.failures,
            ejected_until: record
                .ejected_until
                .map(|until| SystemTime::now() + left(until)),
            check_passes: match record.check {
                Check::Unknown | Check::Failed(_) => None,
                Check::Failing(_) => Some(false),
                Check::Passing => Some(true),
            },
            last_error: record.last_error.clone(),
        }
    }

    fn publish(&self, record: &Record) {
        let until = match record.ejected_until {
            _ if record.check.is_failing() => CLOSED,
            Some(until) => until,
            None => OPEN,
        };
        self.closed_until.store(until, Ordering::Relaxed);
        let has_failures = record.failures > 0 || record.ejected_until.is_some();
        self.has_failures.store(has_failures, Ordering::Relaxed);
    }
}

impl Record {
    fn eject(&mut self, now: u64, settings: &Ejection) -> Duration {
        let doubled = 1u32.checked_shl(self.ejections).unwrap_or(u32::MAX);
        let time = settings.base_time.saturating_mul(doubled);
        let time = time.min(settings.max_time);
        self.ejections = self.ejections.saturating_add(1);
        self.ejected_until = Some(now + millis(time));
        self.half_open = false;
        time
    }
}

impl Check {
    fn after(self, passed: bool, settings: &HealthCheck) -> Check {
        let failed = match self {
            Check::Failed(times) => times,
            _ => 0,
        };
        match (self, passed) {
            (Check::Failing(passes), true) if passes + 1 >= settings.healthy_threshold => {
                Check::Passing
            }
            (Check::Failing(passes), true) => Check::Failing(passes + 1),
            (Check::Failing(_), false) => Check::Failing(0),
            (_, true) => Check::Passing,
            (_, false) if failed + 1 >= settings.unhealthy_threshold => Check::Failing(0),
            (_, false) => Check::Failed(failed + 1),
        }
    }

    fn is_failing(self) -> bool {
        matches!(self, Check::Failing(_))
    }
}

impl LastError {
    fn new(what: &str) -> Self {
        Self {
            at: SystemTime::now(),
            what: what.chars().take(MAX_ERROR_CHARS).collect(),
        }
    }
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIAL: Duration = Duration::from_millis(500);

    fn settings() -> Ejection {
        Ejection {
            consecutive_failures: 2,
            base_time: Duration::from_millis(1000),
            max_time: Duration::from_millis(3000),
            gateway_errors: false,
        }
    }

    fn fail(health: &Health, at: u64) -> Option<u64> {
        health
            .record_failure_at(at, "refused", &settings())
            .map(millis)
    }

    fn admits(health: &Health, at: u64) -> bool {
        health.admits_at(|| at, TRIAL)
    }

    /// So many checks in a row are enough.
    fn checks(threshold: u32) -> HealthCheck {
        HealthCheck {
            path: None,
            interval: Duration::ZERO,
            timeout: Duration::ZERO,
            unhealthy_threshold: threshold,
            healthy_threshold: threshold,
        }
    }

    #[test]
    fn failures_in_a_row_eject_an_address_and_others_do_not() {
        let health = Health::default();
        assert_eq!(fail(&health, 1), None);
        assert!(!health.record_success());
        assert_eq!(fail(&health, 2), None);
        assert!(admits(&health, 2));
        assert_eq!(fail(&health, 3), Some(1000));
        assert!(!admits(&health, 1002));
    }

    #[test]
    fn one_request_is_let_through_when_an_ejection_ends() {
        let health = Health::default();
        fail(&health, 1);
        fail(&health, 1);
        assert_eq!(
            [1000, 1001, 1002, 1500].map(|at| admits(&health, at)),
            [false, true, false, false]
        );
        // Nothing was heard of it.
        assert!(admits(&health, 1501));
    }

    #[test]
    fn an_ejection_takes_twice_as_long_as_the_one_before_it_up_to_a_limit() {
        let health = Health::default();
        fail(&health, 1);
        assert_eq!(fail(&health, 1), Some(1000));
        let mut now = 1;
        for expected in [2000, 3000, 3000, 3000] {
            now += 4000;
            assert!(admits(&health, now));
            assert_eq!(fail(&health, now), Some(expected));
        }
        assert!(health.record_success());
        assert!(admits(&health, now));
        assert_eq!(fail(&health, now), None);
        assert_eq!(fail(&health, now), Some(1000));
    }

    #[test]
    fn failures_during_an_ejection_do_not_prolong_it() {
        let health = Health::default();
        fail(&health, 1);
        fail(&health, 1);
        for at in [10, 500, 900] {
            assert_eq!(fail(&health, at), None);
        }
        assert!(admits(&health, 1001));
    }

    #[test]
    fn an_address_is_never_ejected_where_the_settings_say_so() {
        let health = Health::default();
        let never = Ejection {
            consecutive_failures: 0,
            ..settings()
        };
        for at in 1..100 {
            assert_eq!(health.record_failure_at(at, "refused", &never), None);
        }
        assert!(admits(&health, 100));
    }

    #[test]
    fn checks_close_an_address_and_open_it_again() {
        let settings = checks(2);
        let health = Health::default();
        let check = |passed: bool| {
            let failure = (!passed).then_some("refused");
            (health.checked(failure, &settings), admits(&health, 1))
        };
        assert_eq!(check(false), (None, true));
        assert_eq!(check(true), (None, true));
        assert_eq!(check(false), (None, true));
        assert_eq!(check(false), (Some(false), false));
        assert_eq!(check(true), (None, false));
        assert_eq!(check(false), (None, false));
        assert_eq!(check(true), (None, false));
        assert_eq!(check(true), (Some(true), true));
    }

    #[test]
    fn a_passed_check_does_not_end_an_ejection() {
        let health = Health::default();
        fail(&health, 1);
        fail(&health, 1);
        health.checked(None, &checks(1));
        assert!(!admits(&health, 500));
        assert!(!health.snapshot().healthy);
        assert!(health.record_success());
        assert!(health.snapshot().healthy);
    }
}
