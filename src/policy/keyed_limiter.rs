//! How many of something are open at once for each of very many keys, of which most have none: requests of an API key,
//! connections of a client. A key takes memory only while something of its is open.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

type Counts<K> = Arc<Mutex<HashMap<K, u64>>>;

/// Counts what is open for each key.
#[derive(Debug)]
pub struct KeyedLimiter<K> {
    open: Counts<K>,
}

/// Stands for one that is open, until it is dropped.
#[derive(Debug)]
pub struct Permit<K: Eq + Hash> {
    open: Counts<K>,
    key: K,
}

impl<K: Copy + Eq + Hash> KeyedLimiter<K> {
    /// Counts one more. None where `limit` of that key are open.
    pub fn try_acquire(&self, key: K, limit: u64) -> Option<Permit<K>> {
        let mut open = self.open.lock();
        let count = open.entry(key).or_default();
        // A key without one has been entered just now, so the limit is reached only where it stays.
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Permit {
            open: self.open.clone(),
            key,
        })
    }
}

impl<K> Default for KeyedLimiter<K> {
    fn default() -> Self {
        Self {
            open: Arc::default(),
        }
    }
}

impl<K: Eq + Hash> Drop for Permit<K> {
    fn drop(&mut self) {
        let mut open = self.open.lock();
        if let Some(count) = open.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_own_count_and_none_is_kept_for_nothing() {
        let limiter = KeyedLimiter::default();
        let first = limiter.try_acquire("a", 2);
        let second = limiter.try_acquire("a", 2);
        assert!(first.is_some() && second.is_some());
        assert!(limiter.try_acquire("a", 2).is_none());
        assert!(limiter.try_acquire("b", 1).is_some());
        assert_eq!(limiter.open.lock().len(), 1);
        drop(first);
        assert!(limiter.try_acquire("a", 2).is_some());
        drop(second);
        assert!(limiter.open.lock().is_empty());
    }
}
