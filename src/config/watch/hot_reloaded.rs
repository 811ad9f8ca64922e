//! The value that a watched file last gave, and how the newest attempt to load it went. A bad file never replaces a good one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::config::Diagnostic;

/// A value that is exchanged as a whole while others read it without a lock.
pub struct HotReloaded<T> {
    current: ArcSwap<T>,
    status: Mutex<LoadStatus>,
    succeeded: AtomicU64,
    failed: AtomicU64,
    held: AtomicU64,
}

/// How loading went.
#[derive(Clone, Debug)]
pub struct LoadStatus {
    /// When the value in force was loaded.
    pub loaded_at: SystemTime,
    /// When loading was last tried.
    pub tried_at: SystemTime,
    /// Diagnostics of the newest attempt, one to a line; empty when it succeeded or was held.
    pub diagnostics: Vec<String>,
    /// Why the newest value is good and not taken all the same.
    pub held: Option<String>,
}

/// Loads since the start, the first one included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadCounts {
    /// Loads whose value was taken.
    pub succeeded: u64,
    /// Loads that failed: the file could not be read or has mistakes.
    pub failed: u64,
    /// Loads whose value is good and was not taken all the same.
    pub held: u64,
}

/// What a new value means beside the one in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Review {
    /// Why it is not to be taken before somebody asks for it.
    pub held: Option<String>,
    /// What it is and what changes by it, for the line that tells of it.
    pub summary: String,
}

impl LoadStatus {
    /// The newest attempt in one word: `success`, `failure` or `held`.
    pub fn outcome(&self) -> &'static str {
        match (&self.held, self.diagnostics.is_empty()) {
            (Some(_), _) => "held",
            (None, true) => "success",
            (None, false) => "failure",
        }
    }

    /// Why the file as it stands is not in force; none where it is.
    pub fn error(&self) -> Option<String> {
        let diagnostics = (!self.diagnostics.is_empty()).then(|| self.diagnostics.join("\n"));
        self.held.clone().or(diagnostics)
    }
}

impl<T> HotReloaded<T> {
    /// A value that has been loaded just now.
    pub fn new(first: T) -> Arc<Self> {
        let now = SystemTime::now();
        Arc::new(Self {
            current: ArcSwap::from_pointee(first),
            status: Mutex::new(LoadStatus {
                loaded_at: now,
                tried_at: now,
                diagnostics: Vec::new(),
                held: None,
            }),
            succeeded: AtomicU64::new(1),
            failed: AtomicU64::new(0),
            held: AtomicU64::new(0),
        })
    }

    /// The value in force.
    pub fn current(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// How the newest load went.
    pub fn load_status(&self) -> LoadStatus {
        self.status.lock().clone()
    }

    /// How many loads went which way.
    pub fn counts(&self) -> LoadCounts {
        LoadCounts {
            succeeded: self.succeeded.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            held: self.held.load(Ordering::Relaxed),
        }
    }

    /// Takes a new value, or keeps the last good one and every mistake of the new. `what` names the file in messages,
    /// `review(old, new)` compares the two; what it holds is taken only where the load was `requested`.
    ///
    /// # Errors
    /// Why the file as it stands is not in force.
    pub fn publish(
        &self,
        what: &str,
        parsed: Result<(T, Vec<Diagnostic>), Vec<Diagnostic>>,
        requested: bool,
        review: impl FnOnce(&T, &T) -> Review,
    ) -> Result<(), String> {
        let (value, warnings) = match parsed {
            Ok(parsed) => parsed,
            Err(diagnostics) => return Err(self.refuse(what, &diagnostics)),
        };
        let Review { held, summary } = review(&self.current.load(), &value);
        match held.filter(|_| !requested) {
            Some(why) => {
                self.hold(what, why.clone());
                Err(why)
            }
            None => {
                self.take(value);
                log::info!("{what} loaded: {summary}");
                warnings.iter().for_each(Diagnostic::log);
                Ok(())
            }
        }
    }

    fn take(&self, value: T) {
        self.current.store(Arc::new(value));
        let now = SystemTime::now();
        *self.status.lock() = LoadStatus {
            loaded_at: now,
            tried_at: now,
            diagnostics: Vec::new(),
            held: None,
        };
        self.succeeded.fetch_add(1, Ordering::Relaxed);
    }

    fn hold(&self, what: &str, why: String) {
        log::error!("{what} not loaded, the last good one stays in force: {why}; SIGHUP takes it");
        let mut status = self.status.lock();
        status.tried_at = SystemTime::now();
        status.diagnostics.clear();
        status.held = Some(why);
        self.held.fetch_add(1, Ordering::Relaxed);
    }

    fn refuse(&self, what: &str, diagnostics: &[Diagnostic]) -> String {
        let mut status = self.status.lock();
        status.tried_at = SystemTime::now();
        status.diagnostics = diagnostics.iter().map(ToString::to_string).collect();
        status.held = None;
        let told = status.diagnostics.join("\n");
        drop(status);
        self.failed.fetch_add(1, Ordering::Relaxed);
        diagnostics.iter().for_each(Diagnostic::log);
        log::error!("{what} not loaded, the last good one stays in force");
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values below ten are held.
    fn review(old: &u32, new: &u32) -> Review {
        Review {
            held: (*new < 10).then(|| format!("{new} of {old}")),
            summary: String::new(),
        }
    }

    #[test]
    fn what_is_held_is_taken_when_it_is_asked_for() {
        let value = HotReloaded::new(20);
        let offer = |number, requested| {
            let taken = value.publish("number", Ok((number, Vec::new())), requested, review);
            assert_eq!(taken.err(), value.load_status().error());
            let status = value.load_status();
            (*value.current(), status.outcome(), status.error())
        };
        assert_eq!(offer(9, false), (20, "held", Some("9 of 20".to_owned())));
        assert_eq!(offer(30, false), (30, "success", None));
        assert_eq!(offer(8, false), (30, "held", Some("8 of 30".to_owned())));
        assert_eq!(offer(8, true), (8, "success", None));
        let counts = LoadCounts {
            succeeded: 3,
            failed: 0,
            held: 2,
        };
        assert_eq!(value.counts(), counts);
    }
}
