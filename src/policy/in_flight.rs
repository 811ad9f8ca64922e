//! How many requests run at once, in the whole process, in each group and by each key, and the limits of these. A group
//! is known by its name, a key by its digest, so that a change of the policy does not begin to count anew.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::codec::error::{Cause, Refusal};
use crate::policy::Group;
use crate::policy::keyed_limiter::{KeyedLimiter, Permit};

type Counter = Arc<AtomicU64>;

/// Counts the requests that run, in the process, by group and by key, and holds them to their limits.
pub struct InFlight {
    most: Option<u64>,
    all: Counter,
    /// Names come from the operator's policies, so there are not many.
    groups: RwLock<HashMap<Arc<str>, Counter>>,
    /// By the key's digest; only those whose group limits them.
    keys: KeyedLimiter<[u8; 32]>,
}

/// Permission for one request to run; given back when dropped.
pub struct InFlightPermit(Counter);

/// The permits of one request: in the process, in its group and of its key.
pub struct InFlightPermits {
    _in_process: InFlightPermit,
    _in_group: InFlightPermit,
    /// Where its group has a limit for each key.
    _of_key: Option<Permit<[u8; 32]>>,
}

impl InFlight {
    /// `most` requests may run in the whole process.
    pub fn new(most: Option<u64>) -> Self {
        Self {
            most,
            all: Counter::default(),
            groups: RwLock::default(),
            keys: KeyedLimiter::default(),
        }
    }

    /// A request of this group begins, by the key with this digest.
    ///
    /// # Errors
    /// Where one of the limits is reached.
    pub fn enter(&self, group: &Group, key: &[u8; 32]) -> Result<InFlightPermits, Refusal> {
        let counter = self.counter(&group.name);
        let in_group = InFlightPermit::take(&counter, group.max_in_flight).ok_or_else(|| {
            let message = "too many concurrent requests of this group; retry later";
            Refusal::new(Cause::TooManyRequests, message)
        })?;
        let of_key = match group.max_in_flight_per_key {
            Some(most) => Some(self.keys.try_acquire(*key, most).ok_or_else(|| {
                let message = "too many concurrent requests of this key; retry later";
                Refusal::new(Cause::TooManyRequests, message)
            })?),
            None => None,
        };
        let in_process =
            InFlightPermit::take(&self.all, self.most).ok_or(Cause::TooManyRequests)?;
        Ok(InFlightPermits {
            _in_process: in_process,
            _in_group: in_group,
            _of_key: of_key,
        })
    }

    /// Requests of the group of this name that run.
    pub fn of_group(&self, name: &str) -> u64 {
        let groups = self.groups.read();
        groups
            .get(name)
            .map_or(0, |running| running.load(Ordering::Relaxed))
    }

    fn counter(&self, group: &Arc<str>) -> Counter {
        if let Some(counter) = self.groups.read().get(group) {
            return counter.clone();
        }
        self.groups
            .write()
            .entry(group.clone())
            .or_default()
            .clone()
    }
}

impl InFlightPermit {
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

impl Drop for InFlightPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
