//! What outlives a process and is shared with others: the sums of budgets, and the responses that are still to be billed.
//! Requests are judged by what is in memory and never wait for the store; [`Store::exchange`] brings both together. Only the
//! line by which a background response is billed may wait for a moment, see [`Store::claim`].

mod file;
mod redis;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rust_decimal::Decimal;

use crate::accounting::background::BackgroundResponses;
use crate::accounting::store::file::StateFile;
use crate::accounting::store::redis::RedisStore;
use crate::config::StateStore;
use crate::policy::budget::Budgets;

/// How long a sum is kept after its window, for whoever wants to look.
const KEPT_SECONDS: i64 = 7 * 24 * 3600;
/// The most sums that are kept.
const MAX_SUMS: usize = 100_000;
/// Between two exchanges, unless there is a reason to be quicker.
const EXCHANGE_EVERY: Duration = Duration::from_secs(1);

/// Where state is kept.
#[derive(Debug)]
pub enum Store {
    /// A file of this machine, for processes that follow each other.
    File(StateFile),
    /// A server, for processes of many machines.
    Redis(Box<RedisStore>),
}

/// What is wrong with the store. The sums in memory are right all the same.
#[derive(Debug)]
pub enum StoreError {
    /// Another process holds the file for longer than it should.
    FileLocked,
    /// The file cannot be read or written, or is none of redb's.
    File(Box<redb::Error>),
    /// A part of the file is not what redb wrote.
    FileDamaged,
    /// The file was not the one that it had been. What is known here has been written to it.
    FileReplaced,
    /// The server cannot be reached, does not answer in time, or refuses.
    Server(String),
}

impl Store {
    /// The store of this configuration. A file is opened to see that it can be; a server may come later.
    ///
    /// # Errors
    /// Where the file cannot be used.
    pub fn open(config: &StateStore) -> Result<Store, StoreError> {
        Ok(match config {
            StateStore::File(path) => Store::File(StateFile::open(path)?),
            StateStore::Redis(server) => Store::Redis(Box::new(RedisStore::new(server.clone()))),
        })
    }

    /// Adds to the store what was spent and made here, and learns what others did. It waits for the disk or the network: not
    /// for a thread that serves requests.
    ///
    /// # Errors
    /// Where the store cannot be used; what is in memory goes on without it.
    pub fn exchange(
        &self,
        budgets: &Budgets,
        background: &BackgroundResponses,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        match self {
            Store::File(file) => file.exchange(budgets, background, now),
            Store::Redis(server) => server.exchange(budgets, background, now),
        }
    }

    /// Returns when the next exchange is due, which is soon after [`Store::wake`].
    pub async fn next_exchange(&self, has_failed: bool) {
        match self {
            _ if has_failed => tokio::time::sleep(EXCHANGE_EVERY).await,
            Store::File(file) => file.next_exchange().await,
            Store::Redis(server) => server.next_exchange().await,
        }
    }

    /// Something was spent that is to be kept.
    pub fn wake(&self) {
        match self {
            Store::File(file) => file.wake(),
            Store::Redis(server) => server.wake(),
        }
    }

    /// Whether a response whose terminal status has come, and which was taken, is billed here: false where another process has
    /// billed it. Where the store does not tell in time it is: rather twice than never. It may wait for the disk or the network:
    /// not on a thread that serves requests.
    pub fn claim(&self, background: &BackgroundResponses, id: &str) -> bool {
        let claimed = match self {
            Store::File(file) => file.claim(background, id),
            Store::Redis(server) => server.claim(id),
        };
        match claimed {
            Some(_) => background.note_claimed(id),
            None => {
                background.note_settled(id);
                self.wake();
            }
        }
        claimed.unwrap_or(true)
    }
}

/// Whether this is a file that no process has made yet.
pub fn is_missing(config: &StateStore) -> bool {
    matches!(config, StateStore::File(path) if !Path::exists(path))
}

/// An amount that this program wrote; anything else is nothing.
fn decimal(text: &str) -> Decimal {
    text.parse().unwrap_or_default()
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::FileLocked => f.write_str("another process holds the state file"),
            StoreError::FileDamaged => {
                f.write_str("the state file is damaged; where it is moved away, another is made")
            }
            StoreError::FileReplaced => f.write_str(
                "the state file was deleted or replaced, and gets back what is known here",
            ),
            StoreError::File(error) => write!(f, "the state file cannot be used: {error}"),
            StoreError::Server(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for StoreError {}

#[cfg(test)]
mod test {
    use super::*;
    use crate::policy::group::{AtLimit, BudgetRule, Period, Scope};
    use jiff::tz::TimeZone;

    pub const NOW: &str = "2026-11-30T03:00:00Z";

    pub fn usd(text: &str) -> Decimal {
        text.parse().unwrap()
    }

    pub fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    pub fn rule(per: Period, scope: Scope) -> BudgetRule {
        BudgetRule {
            usd: usd("10"),
            per,
            scope,
            then: AtLimit::Standard,
            time_zone: TimeZone::UTC,
        }
    }
}
