//! The budgets of a run: what the lines of the log say that each group and key has spent, held against what was let pass
//! by it and against what the proxy says of itself.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use rust_decimal::Decimal;

use super::policies::Budget;

/// What a process has spent by so long before a request is known to it then.
const KNOWN_AFTER: Duration = Duration::from_millis(200);

/// Whose sum it is: a group, or one of its keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Account {
    pub group: String,
    pub key: Option<String>,
}

/// What a request has spent.
#[derive(Clone, Debug)]
pub struct Charge {
    pub instance: String,
    pub began: SystemTime,
    pub ended: SystemTime,
    pub usd: Decimal,
}

/// All that was spent.
#[derive(Debug, Default)]
pub struct Spending(HashMap<Account, Vec<Charge>>);

impl Account {
    /// The account of this budget that a request of this group and key counts for.
    pub fn of(budget: Budget, group: &str, key: &str) -> Account {
        Account {
            group: group.to_owned(),
            key: budget.by_key.then(|| key.to_owned()),
        }
    }

    /// Number of the group.
    pub fn group(&self) -> Option<usize> {
        self.group.strip_prefix('g')?.parse().ok()
    }
}

impl Spending {
    pub fn charge(&mut self, account: Account, charge: Charge) {
        self.0.entry(account).or_default().push(charge);
    }

    fn sum(&self, account: &Account, counts: impl Fn(&Charge) -> bool) -> Decimal {
        let charges = self.0.get(account).map_or(&[][..], Vec::as_slice);
        let counted = charges.iter().filter(|charge| counts(charge));
        counted.map(|charge| charge.usd).sum()
    }

    /// What has surely been known to this process at that time: what it spent itself.
    pub fn known(&self, account: &Account, instance: &str, at: SystemTime) -> Decimal {
        self.sum(account, |charge| {
            charge.instance == instance && charge.ended + KNOWN_AFTER < at
        })
    }

    /// The most that can have been known to anybody at that time.
    pub fn possible(&self, account: &Account, at: SystemTime) -> Decimal {
        self.sum(account, |charge| charge.began <= at)
    }

    /// By account, of all processes.
    pub fn totals(&self) -> impl Iterator<Item = (&Account, Decimal)> {
        self.0
            .keys()
            .map(|account| (account, self.sum(account, |_| true)))
    }
}
