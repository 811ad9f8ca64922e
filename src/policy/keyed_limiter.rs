//! How many of something are open at once for each of very many names, of which most have none. A name takes memory only
//! while something of its is open.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts of what is open, by name.
#[derive(Debug)]
pub struct KeyedLimiter<K> {
    open: Arc<Mutex<HashMap<K, u64>>>,
}

/// One that is open, until it is dropped.
#[derive(Debug)]
pub struct Permit<K: Eq + Hash> {
    limiter: Arc<Mutex<HashMap<K, u64>>>,
    name: K,
}

impl<K: Copy + Eq + Hash> KeyedLimiter<K> {
    /// Counts one more. None where `most` of that name are open.
    pub fn enter(&self, name: K, most: u64) -> Option<Permit<K>> {
        let mut open = lock(&self.open);
        let count = open.entry(name).or_default();
        // A name without one has been entered just now, so `most` is reached only where it stays.
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Permit {
            limiter: self.open.clone(),
            name,
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
        let mut open = lock(&self.limiter);
        if let Some(count) = open.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.name);
            }
        }
    }
}

fn lock<K>(open: &Mutex<HashMap<K, u64>>) -> MutexGuard<'_, HashMap<K, u64>> {
    // Counts are whole at any time, whoever panics.
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_its_own_count_and_none_is_kept_for_nothing() {
        let limiter = KeyedLimiter::default();
        let first = limiter.enter("a", 2);
        let second = limiter.enter("a", 2);
        assert!(first.is_some() && second.is_some());
        assert!(limiter.enter("a", 2).is_none());
        assert!(limiter.enter("b", 1).is_some());
        assert_eq!(lock(&limiter.open).len(), 1);
        drop(first);
        assert!(limiter.enter("a", 2).is_some());
        drop(second);
        assert!(lock(&limiter.open).is_empty());
    }
}
