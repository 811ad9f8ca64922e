//! What each process has spent: the fields of the sums, as far as they are known here. It sends nothing.

use std::collections::HashMap;

use jiff::Timestamp;
use redis::Cmd;
use rust_decimal::Decimal;

use crate::accounting::store::redis::commands;
use crate::accounting::store::{MAX_SUMS, decimal};
use crate::policy::budget::{Account, BudgetSum, Window};

/// For so long after its window a sum may still grow by what was spent at its end.
const ENDED_KEPT_SECONDS: i64 = 24 * 3600;

/// USD by process, as it is written.
pub(super) type Held = HashMap<String, String>;

/// The sums, by their keys.
pub(super) struct Counters {
    /// This process's name.
    process: String,
    sums: HashMap<String, Sum>,
}

struct Sum {
    account: Account,
    window: Window,
    /// In USD, by process.
    spent: HashMap<String, Decimal>,
}

impl Counters {
    pub(super) fn new(process: String) -> Counters {
        Counters {
            process,
            sums: HashMap::new(),
        }
    }

    /// Forgets what ended long ago.
    pub(super) fn forget(&mut self, now: Timestamp) {
        let oldest = now.as_second() - ENDED_KEPT_SECONDS;
        self.sums
            .retain(|_, sum| sum.window.ends.as_second() > oldest);
    }

    /// Takes over what the server says that each other process has spent; it is never taken for less than what is known here.
    /// What this one has spent it knows itself: the server may have more of it than it has confirmed.
    pub(super) fn merge(&mut self, key: &str, held: &Held) {
        if self.sums.len() >= MAX_SUMS && !self.sums.contains_key(key) {
            return;
        }
        let Some((account, window)) = commands::parse_sum_key(key) else {
            return;
        };
        let own = self.process.clone();
        let sum = self.sum(key, account, window);
        for (process, usd) in held.iter().filter(|(process, _)| **process != own) {
            let known = sum.spent.entry(process.clone()).or_default();
            *known = decimal(usd).max(*known);
        }
    }

    /// All that this process has spent by now, of the sums to which this adds something.
    pub(super) fn with(&self, unsaved: &[BudgetSum]) -> Vec<(String, BudgetSum)> {
        let with = unsaved.iter().map(|entry| {
            let key = commands::sum_key(entry);
            let sum = self.sums.get(&key);
            let before = sum.and_then(|sum| sum.spent.get(&self.process));
            let before = before.copied().unwrap_or_default();
            let usd = entry.usd.saturating_add(before);
            (
                key,
                BudgetSum {
                    usd,
                    ..entry.clone()
                },
            )
        });
        with.collect()
    }

    /// The server has what [`Counters::with`] said.
    pub(super) fn confirm(&mut self, key: &str, own: &BudgetSum) {
        let process = self.process.clone();
        let sum = self.sum(key, own.account.clone(), own.window);
        sum.spent.insert(process, own.usd);
    }

    /// What all processes together have spent.
    pub(super) fn totals<'k>(&self, keys: impl IntoIterator<Item = &'k String>) -> Vec<BudgetSum> {
        let sums = keys.into_iter().filter_map(|key| self.sums.get(key));
        sums.map(Sum::total).collect()
    }

    /// Gives back what is known here and the server does not have, or has only in part: it came back without it, or with a copy
    /// of earlier.
    pub(super) fn lost(&self, held: &HashMap<String, Held>, now: Timestamp) -> Vec<Cmd> {
        let mut lost = Vec::new();
        let counted = self.sums.iter().filter(|(_, sum)| sum.window.counts(now));
        for (key, sum) in counted {
            for (process, usd) in &sum.spent {
                let held = held.get(key).and_then(|spent| spent.get(process));
                if held.is_none_or(|held| decimal(held) < *usd) {
                    lost.push(commands::save(key, process, *usd, sum.window));
                }
            }
        }
        lost
    }

    fn sum(&mut self, key: &str, account: Account, window: Window) -> &mut Sum {
        self.sums.entry(key.to_owned()).or_insert_with(|| Sum {
            account,
            window,
            spent: HashMap::new(),
        })
    }
}

impl Sum {
    fn total(&self) -> BudgetSum {
        let add = |sum: Decimal, spent: &Decimal| sum.saturating_add(*spent);
        BudgetSum {
            account: self.account.clone(),
            window: self.window,
            usd: self.spent.values().fold(Decimal::ZERO, add),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounting::store::test::{NOW, at, rule, usd};
    use crate::policy::group::{Period, Scope};

    fn entry(spent: &str) -> BudgetSum {
        let rule = rule(Period::Month, Scope::Group);
        BudgetSum {
            account: rule.account(&"fast".into(), &[7; 32]),
            window: rule.window(at(NOW)),
            usd: usd(spent),
        }
    }

    fn held(spent: &[(&str, &str)]) -> Held {
        let spent = spent.iter();
        let owned = spent.map(|(process, usd)| ((*process).to_owned(), (*usd).to_owned()));
        owned.collect()
    }

    #[test]
    fn a_sum_is_what_all_processes_have_spent_and_never_falls() {
        let name = commands::sum_key(&entry("0"));
        let mut counters = Counters::new("own".to_owned());
        for (spent, total) in [
            (held(&[("own", "9")]), "0"),
            (
                held(&[("a", "0.1"), ("b", "0.000000000000002")]),
                "0.100000000000002",
            ),
            (held(&[("a", "0.05"), ("c", "3")]), "3.100000000000002"),
            (held(&[]), "3.100000000000002"),
            (
                held(&[("a", "0.2"), ("b", "nonsense")]),
                "3.200000000000002",
            ),
        ] {
            counters.merge(&name, &spent);
            assert_eq!(counters.totals([&name]), [entry(total)]);
        }
    }

    #[test]
    fn a_server_gets_back_what_it_has_lost_and_nothing_else() {
        let name = commands::sum_key(&entry("0"));
        let mut counters = Counters::new("own".to_owned());
        counters.merge(&name, &held(&[("a", "1"), ("b", "2"), ("c", "3")]));
        let lost = |spent: Option<Held>| {
            let held = spent.map(|spent| (name.clone(), spent));
            counters.lost(&held.into_iter().collect(), at(NOW)).len()
        };
        assert_eq!(lost(None), 3);
        assert_eq!(lost(Some(held(&[("a", "1.0"), ("b", "1"), ("c", "4")]))), 1);
        assert_eq!(lost(Some(held(&[("a", "1"), ("b", "2"), ("c", "3")]))), 0);
    }

    #[test]
    fn what_was_not_confirmed_is_added_to_what_was() {
        let name = commands::sum_key(&entry("0"));
        let mut counters = Counters::new("own".to_owned());
        for (unsaved, own, is_confirmed) in [("1", "1", false), ("3", "3", true), ("2", "5", true)]
        {
            // The server may have it, though it was not confirmed.
            counters.merge(&name, &held(&[("own", own), ("a", "10")]));
            let told = counters.with(&[entry(unsaved)]);
            assert_eq!(told, [(name.clone(), entry(own))]);
            if is_confirmed {
                counters.confirm(&name, &told[0].1);
            }
        }
        assert_eq!(counters.totals([&name]), [entry("15")]);
    }
}
