//! How many requests run at once, in the whole process and in each group, and the limits of both. A group is known by its
//! name, so that a change of the policy does not begin to count anew.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::error::{Cause, Refusal};
use crate::policy::Group;

type Counter = Arc<AtomicU64>;

pub struct InFlight {
    most: Option<u64>,
    all: Counter,
    /// Names come from the operator's policies, so there are not many.
    groups: RwLock<HashMap<Arc<str>, Counter>>,
}

/// A place among the requests that run; given back when dropped.
pub struct Place(Counter);

/// The places of one request: in the process and in its group.
pub type Places = [Place; 2];

impl InFlight {
    /// `most` requests may run in the whole process.
    pub fn new(most: Option<u64>) -> Self {
        Self {
            most,
            all: Counter::default(),
            groups: RwLock::default(),
        }
    }

    /// A request of this group begins.
    ///
    /// # Errors
    /// Where one of the limits is reached.
    pub fn enter(&self, group: &Group) -> Result<Places, Refusal> {
        let counter = self.counter(&group.name);
        let in_group = Place::take(&counter, group.max_in_flight).ok_or_else(|| {
            let message = "as many requests of this group run as may; try again";
            Refusal::new(Cause::TooManyRequests, message)
        })?;
        let in_process = Place::take(&self.all, self.most).ok_or(Cause::TooManyRequests)?;
        Ok([in_process, in_group])
    }

    /// Requests of the group of this name that run.
    pub fn of_group(&self, name: &str) -> u64 {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        groups
            .get(name)
            .map_or(0, |running| running.load(Ordering::Relaxed))
    }

    fn counter(&self, group: &Arc<str>) -> Counter {
        // Counters are whole at any time, whoever panics.
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(counter) = groups.get(group) {
            return counter.clone();
        }
        drop(groups);
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        groups.entry(group.clone()).or_default().clone()
    }
}

impl Place {
    /// Also counted where there is no limit: the next policy may have one.
    fn take(counter: &Counter, most: Option<u64>) -> Option<Self> {
        let one_more = |running: u64| {
            most.is_none_or(|most| running < most)
                .then_some(running + 1)
        };
        counter
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .ok()?;
        Some(Self(counter.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
