//! How many connections are open at once for each client: the same count as of requests by key.

pub use crate::policy::keyed_limiter::{KeyedLimiter as Tally, Permit as Entry};
