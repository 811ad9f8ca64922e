//! The columns of a report: what the rows are told by, then what is summed, then the cost in other currencies.

use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;

use rust_decimal::Decimal;
use strum::{EnumIter, EnumString, IntoEnumIterator, IntoStaticStr};

use crate::cli::report::group_by::GroupBy;
use crate::cli::report::sums::Sums;
use crate::cli::report::table::Cell;

/// What is summed, in the order of the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Sum {
    /// Number of requests.
    Requests,
    /// Input tokens, cached and cache-write tokens included.
    InputTokens,
    /// Input tokens that were read from a cache.
    CachedInputTokens,
    /// Input tokens that were written to a cache.
    CacheWriteTokens,
    /// Output tokens, reasoning included.
    OutputTokens,
    /// Output tokens that were spent on reasoning.
    ReasoningTokens,
    /// Cost in USD.
    CostUsd,
    /// Requests with usage and without a price, whose cost is not in `cost_usd`.
    Unpriced,
    /// Requests that were sent as priority.
    PriorityRequests,
    /// Requests that were sent as priority, and that a trusted upstream served on another tier.
    PriorityDowngraded,
    /// Share of the requests sent as priority that were served on another tier, from 0 to 1.
    DowngradeRate,
    /// What priority cost above the default tier, in USD.
    PriorityPremiumUsd,
    /// Part of `requests`: those that were refused, which cost nothing.
    Refused,
    /// Requests whose `usage_state` is not `final`.
    WithoutUsage,
    /// Cache-write tokens that live for an hour or longer.
    CacheWriteLongTokens,
    /// Share of the whole cost, from 0 to 1.
    CostShare,
}

/// Sums that a table for people shows, from left to right, where something is in them.
const SHOWN: [Sum; 12] = [
    Sum::Requests,
    Sum::Refused,
    Sum::InputTokens,
    Sum::CachedInputTokens,
    Sum::CacheWriteTokens,
    Sum::OutputTokens,
    Sum::ReasoningTokens,
    Sum::CostUsd,
    Sum::CostShare,
    Sum::Unpriced,
    Sum::DowngradeRate,
    Sum::PriorityPremiumUsd,
];

/// In this order they are left out where a table would be too wide.
const LEFT_OUT: [Sum; 9] = [
    Sum::ReasoningTokens,
    Sum::CacheWriteTokens,
    Sum::CachedInputTokens,
    Sum::DowngradeRate,
    Sum::Unpriced,
    Sum::Refused,
    Sum::CostShare,
    Sum::PriorityPremiumUsd,
    Sum::OutputTokens,
];

/// How much of another currency a dollar is: `EUR=0.92`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rate {
    /// `cost_eur`.
    column: String,
    factor: Decimal,
}

/// The order of rows: by a column, and which way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sort {
    column: String,
    /// None: sums from the largest on, all else from the smallest on.
    descending: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Column {
    /// By its place in `--by`.
    By(usize),
    Sum(Sum),
    /// By its place among the rates.
    Rate(usize),
}

/// All columns that a report can have.
pub(super) struct Columns<'o> {
    pub(super) by: &'o [GroupBy],
    pub(super) rates: &'o [Rate],
}

impl Sum {
    /// The name of its column.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The names of all such columns, in their order.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Sum::iter().map(Sum::name)
    }

    /// `all`: the cost of all rows.
    fn cell(self, sums: &Sums, all: Option<Decimal>) -> Cell {
        let usd = |amount: Option<Decimal>| amount.map_or(Cell::Null, Cell::Money);
        let share = |part: Option<Decimal>| part.map_or(Cell::Null, Cell::Share);
        let [
            input,
            cached,
            cache_write,
            output,
            reasoning,
            cache_write_long,
        ] = sums.tokens;
        match self {
            Sum::Requests => Cell::Count(sums.requests),
            Sum::InputTokens => Cell::Count(input),
            Sum::CachedInputTokens => Cell::Count(cached),
            Sum::CacheWriteTokens => Cell::Count(cache_write),
            Sum::OutputTokens => Cell::Count(output),
            Sum::ReasoningTokens => Cell::Count(reasoning),
            Sum::CostUsd => usd(sums.cost),
            Sum::Unpriced => Cell::Count(sums.unpriced),
            Sum::PriorityRequests => Cell::Count(sums.priority),
            Sum::PriorityDowngraded => Cell::Count(sums.downgraded),
            Sum::DowngradeRate => share(sums.downgrade_rate()),
            Sum::PriorityPremiumUsd => usd(sums.premium),
            Sum::Refused => Cell::Count(sums.refused),
            Sum::WithoutUsage => Cell::Count(sums.without_usage),
            Sum::CacheWriteLongTokens => Cell::Count(cache_write_long),
            Sum::CostShare => share(sums.cost.and_then(|cost| cost.checked_div(all?))),
        }
    }

    fn is_always_shown(self) -> bool {
        matches!(self, Sum::Requests | Sum::CostUsd)
    }
}

impl Columns<'_> {
    /// Each of them. A sum by the name of a field that is grouped by is left out: it would be the same value over and over.
    pub(super) fn all(&self) -> Vec<Column> {
        let by = (0..self.by.len()).map(Column::By);
        let sums = Sum::iter().filter(|sum| !self.is_grouped_by(*sum));
        let rates = (0..self.rates.len()).map(Column::Rate);
        by.chain(sums.map(Column::Sum)).chain(rates).collect()
    }

    /// Those for people, where none are asked for. `total` tells what has something in it.
    pub(super) fn for_people(&self, total: &Sums) -> Vec<Column> {
        let by = (0..self.by.len()).map(Column::By);
        let shown = SHOWN.into_iter().filter(|sum| {
            let empty = matches!(sum.cell(total, total.cost), Cell::Null | Cell::Count(0));
            !self.is_grouped_by(*sum) && (sum.is_always_shown() || !empty)
        });
        let rates = (0..self.rates.len()).map(Column::Rate);
        let mut columns: Vec<Column> = by.chain(shown.map(Column::Sum)).collect();
        let cost = columns
            .iter()
            .position(|column| *column == Column::Sum(Sum::CostUsd));
        let behind_cost = cost.map_or(columns.len(), |cost| cost + 1);
        columns.splice(behind_cost..behind_cost, rates);
        columns
    }

    /// What to leave out first of a table that is too wide.
    pub(super) fn left_out_first() -> impl Iterator<Item = Column> {
        LEFT_OUT.into_iter().map(Column::Sum)
    }

    /// The column of this name.
    ///
    /// # Errors
    /// Where there is no column of that name; the message names those that there are.
    pub(super) fn find(&self, name: &str) -> Result<Column, String> {
        let mut all = self.all().into_iter();
        all.find(|column| self.name(*column) == name)
            .ok_or_else(|| {
                let all = self.all().into_iter().map(|column| self.name(column));
                format!(
                    "unknown column `{name}`; this report has {}",
                    all.collect::<Vec<_>>().join(", ")
                )
            })
    }

    pub(super) fn name(&self, column: Column) -> String {
        match column {
            Column::By(at) => self.by[at].name().to_owned(),
            Column::Sum(sum) => sum.name().to_owned(),
            Column::Rate(at) => self.rates[at].column.clone(),
        }
    }

    /// `group`: the values of the grouping fields; empty in the total, where they are null.
    pub(super) fn cell(
        &self,
        column: Column,
        group: &[Cell],
        sums: &Sums,
        all: Option<Decimal>,
    ) -> Cell {
        match column {
            Column::By(at) => group.get(at).cloned().unwrap_or(Cell::Null),
            Column::Sum(sum) => sum.cell(sums, all),
            Column::Rate(at) => {
                let factor = self.rates[at].factor;
                let cost = sums.cost.and_then(|cost| cost.checked_mul(factor));
                cost.map_or(Cell::Null, Cell::Money)
            }
        }
    }

    fn is_grouped_by(&self, sum: Sum) -> bool {
        self.by.iter().any(|by| by.name() == sum.name())
    }
}

impl Sort {
    /// The costliest first: the order of `--top` where none is asked for.
    pub(super) fn by_cost() -> Sort {
        Sort {
            column: Sum::CostUsd.name().to_owned(),
            descending: None,
        }
    }

    pub(super) fn column(&self, columns: &Columns<'_>) -> Result<Column, String> {
        columns.find(&self.column)
    }

    /// Puts rows into the order of one of their cells. Those that are equal in it stay as they are.
    pub(super) fn sort<T>(&self, column: Column, rows: &mut [T], cell: impl Fn(&T) -> Cell) {
        let descending = self.descending.unwrap_or(!matches!(column, Column::By(_)));
        if descending {
            rows.sort_by_cached_key(|row| Reverse(cell(row)));
        } else {
            rows.sort_by_cached_key(cell);
        }
    }
}

impl FromStr for Sort {
    type Err = String;

    fn from_str(text: &str) -> Result<Sort, String> {
        let (column, descending) = match text.split_once(':') {
            None => (text, None),
            Some((column, "asc")) => (column, Some(false)),
            Some((column, "desc")) => (column, Some(true)),
            Some(_) => return Err("expected a column, or `column:asc` or `column:desc`".to_owned()),
        };
        Ok(Sort {
            column: column.to_owned(),
            descending,
        })
    }
}

impl FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Rate, &'static str> {
        const EXPECTED: &str = "expected a currency and how much of it a dollar is, as `EUR=0.92`";
        let (currency, factor) = text.split_once('=').ok_or(EXPECTED)?;
        let is_code =
            currency.len() == 3 && currency.bytes().all(|byte| byte.is_ascii_alphabetic());
        let factor = Decimal::from_str_exact(factor).map_err(|_| EXPECTED)?;
        if !is_code || factor <= Decimal::ZERO || currency.eq_ignore_ascii_case("usd") {
            return Err(EXPECTED);
        }
        Ok(Rate {
            column: format!("cost_{}", currency.to_ascii_lowercase()),
            factor,
        })
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_currency_and_a_factor() {
        let rate: Rate = "EUR=0.92".parse().unwrap();
        assert_eq!(
            (&*rate.column, rate.factor.to_string()),
            ("cost_eur", "0.92".to_owned())
        );
        for text in [
            "EUR", "EUR=", "EUR=-1", "EUR=0", "E=1", "EURO=1", "USD=1", "=1", "E,R=1",
        ] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_unknown_column_is_told_with_those_that_there_are() {
        let by = [GroupBy::field("group")];
        let columns = Columns {
            by: &by,
            rates: &[],
        };
        let why = columns.find("cost").unwrap_err();
        assert!(
            why.starts_with("unknown column `cost`; this report has group, requests, "),
            "{why}"
        );
        assert_eq!(columns.find("group"), Ok(Column::By(0)));
    }

    #[test]
    fn all_that_a_table_shows_or_leaves_out_are_different() {
        let names: std::collections::HashSet<_> = SHOWN.map(Sum::name).into();
        assert_eq!(names.len(), SHOWN.len());
        assert!(
            LEFT_OUT
                .iter()
                .all(|sum| SHOWN.contains(sum) && !sum.is_always_shown())
        );
    }
}
