//! How much of each budget is used: read from where sums are kept, or asked of the running process that has them in memory.

use std::cmp::Reverse;
use std::collections::HashMap;

use jiff::Timestamp;
use rust_decimal::Decimal;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use crate::accounting::background::BackgroundResponses;
use crate::accounting::store::{self, Store, StoreError};
use crate::cli::admin_client::status_of;
use crate::cli::report::table::{Cell, Table};
use crate::config::{Config, StateStore};
use crate::policy::api_key::made_name;
use crate::policy::budget::{Account, BudgetSum, Budgets, Standing};
use crate::policy::group::{BudgetRule, Scope};
use crate::policy::{Group, Policy};

const COLUMNS: [&str; 7] = [
    "group",
    "key",
    "period",
    "limit_usd",
    "spent_usd",
    "used",
    "begins_anew",
];

/// A line of the table.
#[derive(Deserialize)]
struct Row {
    group: String,
    /// Name of the key, where each has its own budget.
    key: Option<String>,
    per: String,
    #[serde(deserialize_with = "decimal")]
    limit_usd: Decimal,
    #[serde(deserialize_with = "decimal")]
    spent_usd: Decimal,
    ends_at: String,
}

/// The part of `/status` that is read.
#[derive(Deserialize)]
struct Status {
    budgets: Vec<Row>,
}

/// All budgets of the policy, as the store knows them.
pub fn stored(state: &StateStore, policy: &Policy, now: Timestamp) -> Result<Table, StoreError> {
    let budgets = read(state, now)?;
    let names: HashMap<_, _> = policy.keys().map(|key| (*key.id, key.name)).collect();
    let name = |account: &Account| {
        let digest = account.key?;
        let listed = names.get(&digest).map(|name| name.to_string());
        Some(listed.unwrap_or_else(|| made_name(&digest)))
    };
    let mut rows = Vec::new();
    for group in policy.groups() {
        let Some(rule) = &group.budget else { continue };
        let mut standings = budgets.standings(rule, &group.name, now);
        standings.sort_by_key(|(_, standing)| Reverse(standing.spent));
        if standings.is_empty() {
            rows.push(row(
                group,
                rule,
                None,
                &budgets.fullest(rule, &group.name, now),
            ));
        }
        let told = standings.iter();
        rows.extend(told.map(|(account, standing)| row(group, rule, name(account), standing)));
    }
    Ok(table(rows))
}

/// The same as the running process has it in memory; of a budget by key the one that is used most.
///
/// # Errors
/// Where no process answers at the admin address, in words.
pub fn of_process(config: &Config) -> Result<Table, String> {
    Ok(table(ask(config)?))
}

/// The sum that a request of this group and key counts for, in the place of all others.
///
/// # Errors
/// Where it is not known, in words.
pub fn of_request(
    config: &Config,
    group: &Group,
    rule: &BudgetRule,
    key: &[u8; 32],
    now: Timestamp,
) -> Result<Budgets, String> {
    if let Some(state) = &config.state {
        return read(state, now).map_err(|why| why.to_string());
    }
    let rows = ask(config)?;
    let row = rows.into_iter().find(|row| row.group == *group.name);
    let row = row.ok_or("the running proxy has no budget of this group")?;
    let budgets = Budgets::default();
    if row.spent_usd.is_zero() {
        return Ok(budgets);
    }
    if rule.scope == Scope::Key {
        return Err(format!(
            "the running proxy tells no more than that no key has spent more than {} USD",
            row.spent_usd.normalize()
        ));
    }
    let sum = BudgetSum {
        account: rule.account(&group.name, key),
        window: rule.window(now),
        usd: row.spent_usd,
    };
    budgets.learn(&[sum], now);
    Ok(budgets)
}

fn read(state: &StateStore, now: Timestamp) -> Result<Budgets, StoreError> {
    let budgets = Budgets::default();
    // A file that is missing is not made: it would be of whoever asks.
    if !store::is_missing(state) {
        Store::open(state)?.exchange(&budgets, &BackgroundResponses::default(), now)?;
    }
    Ok(budgets)
}

fn ask(config: &Config) -> Result<Vec<Row>, String> {
    let admin = &config.admin;
    let answer = status_of(admin).map_err(|why| format!("no proxy answers at {admin}: {why}"))?;
    let status: Status = serde_json::from_slice(&answer)
        .map_err(|why| format!("what answers at {admin} is no proxy of this version: {why}"))?;
    Ok(status.budgets)
}

fn row(group: &Group, rule: &BudgetRule, key: Option<String>, standing: &Standing) -> Row {
    Row {
        group: group.name.to_string(),
        key: key.filter(|_| rule.scope == Scope::Key),
        per: rule.per.as_str().to_owned(),
        limit_usd: standing.limit,
        spent_usd: standing.spent,
        ends_at: standing.window.ends.to_string(),
    }
}

fn decimal<'d, D: Deserializer<'d>>(text: D) -> Result<Decimal, D::Error> {
    String::deserialize(text)?.parse().map_err(D::Error::custom)
}

fn table(rows: Vec<Row>) -> Table {
    let cells = |row: Row| {
        let used = row.spent_usd.checked_div(row.limit_usd);
        vec![
            Cell::Text(row.group),
            row.key.map_or(Cell::Null, Cell::Text),
            Cell::Text(row.per),
            Cell::Money(row.limit_usd),
            Cell::Money(row.spent_usd),
            used.map_or(Cell::Null, Cell::Share),
            Cell::Text(row.ends_at),
        ]
    };
    Table {
        columns: COLUMNS.map(str::to_owned).to_vec(),
        rows: rows.into_iter().map(cells).collect(),
        total: None,
    }
}
