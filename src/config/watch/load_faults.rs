//! Files whose newest content could not be taken, and why, for whoever asks the process how it is. The policy and the prices
//! have a status of their own.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::watch::{FileRead, FileWatcher, WatchedFile};

/// By what the file is, or the files that are taken together.
#[derive(Default)]
pub struct LoadFaults(Mutex<BTreeMap<String, String>>);

impl LoadFaults {
    /// Has `load` take what the file holds by now, and notes how that goes. `what`: the file, or the files that are taken
    /// together.
    pub(crate) fn watch(
        self: &Arc<Self>,
        what: String,
        file: WatchedFile,
        mut load: impl FnMut(FileRead) -> Result<(), String> + Send + 'static,
    ) -> FileWatcher {
        let faults = self.clone();
        FileWatcher::new(file, move |read| {
            let loaded = load(read);
            faults.note(&what, &loaded);
            loaded
        })
    }

    /// How the newest load of `what` went; an error until the next one that goes well.
    fn note(&self, what: &str, loaded: &Result<(), String>) {
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
