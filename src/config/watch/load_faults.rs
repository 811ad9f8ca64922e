//! Files whose newest content could not be taken, and why, for whoever asks the process how it is. The policy and the prices
//! have a status of their own.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// By what the file is, or the files that are taken together.
#[derive(Default)]
pub struct LoadFaults(Mutex<BTreeMap<String, String>>);

impl LoadFaults {
    /// How the newest load of `what` went; an error until the next one that goes well.
    pub(crate) fn note(&self, what: &str, loaded: &Result<(), String>) {
        let mut faults = self.0.lock();
        match loaded {
            Ok(()) => faults.remove(what),
            Err(why) => faults.insert(what.to_owned(), why.clone()),
        };
    }

    /// What could not be taken, each with the reason.
    pub fn all(&self) -> Vec<(String, String)> {
        self.0.lock().clone().into_iter().collect()
    }
}
