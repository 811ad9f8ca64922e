//! The value that a watched file last gave, and how the newest attempt to load it went. A bad file never replaces a good one.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::config::Diagnostic;

/// A value that is exchanged as a whole while others read it without a lock.
pub struct HotReloaded<T> {
    current: ArcSwap<T>,
    status: Mutex<LoadStatus>,
}

/// How loading went since the start, the first load included.
#[derive(Clone, Debug)]
pub struct LoadStatus {
    /// When the value in force was loaded.
    pub loaded_at: SystemTime,
    /// When loading was last tried.
    pub tried_at: SystemTime,
    /// How the newest attempt went.
    pub newest: Load,
    /// Loads whose value was taken.
    pub taken: u64,
    /// Loads that failed: the file could not be read or has mistakes.
    pub failed: u64,
    /// Loads whose value is good and was not taken all the same.
    pub held: u64,
}

/// How a load went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Load {
    /// The value is in force.
    Taken,
    /// It failed, by these diagnostics, one to a line.
    Failed(String),
    /// The value is good and not taken all the same, for this reason.
    Held(String),
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
        match self.newest {
            Load::Taken => "success",
            Load::Failed(_) => "failure",
            Load::Held(_) => "held",
        }
    }

    /// Why the file as it stands is not in force; none where it is.
    pub fn error(&self) -> Option<&str> {
        match &self.newest {
            Load::Taken => None,
            Load::Failed(why) | Load::Held(why) => Some(why),
        }
    }

    fn note(&mut self, newest: Load) {
        self.tried_at = SystemTime::now();
        match newest {
            Load::Taken => {
                self.loaded_at = self.tried_at;
                self.taken += 1;
            }
            Load::Failed(_) => self.failed += 1,
            Load::Held(_) => self.held += 1,
        }
        self.newest = newest;
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
                newest: Load::Taken,
                taken: 1,
                failed: 0,
                held: 0,
            }),
        })
    }

    /// The value in force.
    pub fn current(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// How loading went.
    pub fn load_status(&self) -> LoadStatus {
        self.status.lock().clone()
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
            Err(diagnostics) => {
                let lines: Vec<String> = diagnostics.iter().map(ToString::to_string).collect();
                let why = lines.join("\n");
                self.status.lock().note(Load::Failed(why.clone()));
                diagnostics.iter().for_each(Diagnostic::log);
                log::error!("{what} not loaded, the last good one stays in force");
                return Err(why);
            }
        };
        let Review { held, summary } = review(&self.current.load(), &value);
        if let Some(why) = held.filter(|_| !requested) {
            self.status.lock().note(Load::Held(why.clone()));
            log::error!(
                "{what} not loaded, the last good one stays in force: {why}; SIGHUP takes it"
            );
            return Err(why);
        }
        self.current.store(Arc::new(value));
        self.status.lock().note(Load::Taken);
        log::info!("{what} loaded: {summary}");
        warnings.iter().for_each(Diagnostic::log);
        Ok(())
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
            let status = value.load_status();
            assert_eq!(taken.err().as_deref(), status.error());
            (*value.current(), status.newest)
        };
        assert_eq!(offer(9, false), (20, Load::Held("9 of 20".to_owned())));
        assert_eq!(offer(30, false), (30, Load::Taken));
        assert_eq!(offer(8, false), (30, Load::Held("8 of 30".to_owned())));
        assert_eq!(offer(8, true), (8, Load::Taken));
        let status = value.load_status();
        assert_eq!((status.taken, status.failed, status.held), (3, 0, 2));
    }
}
