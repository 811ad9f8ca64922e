//! `tiergate reconcile`: what the log says was used beside what the provider says, and which lines can explain a difference.

mod background;
mod entry;
mod ours;
mod provider;
mod reasons;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use strum::IntoStaticStr;

use crate::accounting::access_log::line::{Field, Wanted};
use crate::cli::reconcile::entry::Cause;
use crate::cli::reconcile::ours::{Ours, Row};
use crate::cli::reconcile::provider::{Provider, is_snapshot};
use crate::cli::reconcile::reasons::{Difference, Moved, Reasons, opposite};
use crate::cli::report::filter::Filter;
use crate::cli::report::group_by::Values;
use crate::cli::report::table::{Cell, Table};
use crate::cli::report::{Lines, ReportError};

/// What is compared.
#[derive(Args)]
pub struct Options {
    /// Access logs, as for `report`.
    #[arg(required = true, value_name = "LOG")]
    pub logs: Vec<PathBuf>,
    /// What the usage API said.
    #[arg(long, value_name = "FILE")]
    pub usage: PathBuf,
    /// What the rows are: days of UTC, models, service tiers.
    #[arg(
        long,
        value_enum,
        value_name = "DIMENSION,...",
        value_delimiter = ',',
        default_value = "day,model,service_tier"
    )]
    pub by: Vec<Dimension>,
    /// Only requests whose field has this value, or has not, such as those of one upstream.
    #[arg(long = "where", value_name = "FIELD=VALUE|FIELD!=VALUE")]
    pub filters: Vec<Filter>,
    /// Leave out rows that agree.
    #[arg(long)]
    pub differences: bool,
}

/// What rows are told by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, IntoStaticStr)]
#[value(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Dimension {
    /// Of UTC, as the provider's buckets are.
    Day,
    Model,
    ServiceTier,
}

/// What was found.
pub struct Findings {
    pub table: Table,
    /// Every row agrees to the token, and all was read.
    pub agrees: bool,
}

/// The values that a row is told by, in their order.
type Key = Vec<String>;

/// Requests, and input, cached input and output tokens that they used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Used([u64; 4]);

/// Compares, and says in `notes` what is to be known about the logs.
///
/// # Errors
/// See [`ReportError`].
pub fn run(options: &Options, notes: &mut impl Write) -> Result<Findings, ReportError> {
    let usage_error = |why: String| ReportError::Usage {
        path: options.usage.clone(),
        why,
    };
    let answer = std::fs::read(&options.usage).map_err(|why| usage_error(why.to_string()))?;
    let provider = Provider::parse(&answer, &options.by).map_err(usage_error)?;
    let mut ours = Ours::new(&options.by, &provider);
    let mut values = Values::new(TimeZone::UTC);
    let filters = options.filters.iter();
    let fields = ours::FIELDS.into_iter();
    let fields = fields.chain(filters.map(|filter| filter.by.source()));
    let time = Field::named("time");
    let wanted = Wanted::new(fields.chain([time]));
    let lines = Lines::read(&options.logs, &wanted, notes, |line| {
        let mut filters = options.filters.iter();
        if filters.all(|filter| filter.takes(&mut values, line)) {
            ours.count(line)
        } else {
            Ok(())
        }
    })?;
    ours.finish();
    tell(&ours, &provider, notes)?;
    let comparison = Comparison {
        options,
        provider: &provider,
        ours: &ours,
        keys: ours.rows.keys().chain(provider.rows.keys()).collect(),
        missing: lines.missing(),
    };
    let (table, differing) = comparison.table();
    Ok(Findings {
        table,
        agrees: differing == 0 && provider.missing.is_empty() && lines.result().is_ok(),
    })
}

/// Says what was not compared.
fn tell(ours: &Ours<'_>, provider: &Provider, notes: &mut impl Write) -> io::Result<()> {
    if ours.outside > 0 {
        writeln!(
            notes,
            "requests before or after what the usage answer covers, left out: {}",
            ours.outside
        )?;
    }
    for page in &provider.missing {
        writeln!(
            notes,
            "the usage answer has more pages (`has_more`), which are not in the file: {page}"
        )?;
    }
    Ok(())
}

/// Both sides.
struct Comparison<'c> {
    options: &'c Options,
    provider: &'c Provider,
    ours: &'c Ours<'c>,
    /// Of the rows of both.
    keys: BTreeSet<&'c Key>,
    /// Lines that the log lacks between those that it has.
    missing: u64,
}

impl Comparison<'_> {
    /// The table, and how many rows differ.
    fn table(&self) -> (Table, usize) {
        let (mut rows, mut differing) = (Vec::new(), 0);
        let (mut all_ours, mut all_theirs) = (Used::default(), Used::default());
        for key in &self.keys {
            let (mut row, theirs) = self.sides(key);
            // A row of lines alone that may have been counted, and were not.
            if (row.used, theirs) == (Used::default(), Used::default()) {
                continue;
            }
            all_ours.add(&row.used);
            all_theirs.add(&theirs);
            let agrees = row.used == theirs;
            differing += usize::from(!agrees);
            if !agrees || !self.options.differences {
                let names = key.iter().map(|name| Cell::text(name.as_str()));
                let why = if agrees {
                    (Cell::Null, Cell::Null)
                } else {
                    self.add_unanswered(key, &mut row);
                    self.why(key, &row, theirs)
                };
                rows.push(cells(names, row.used, theirs, why));
            }
        }
        let names = self.options.by.iter().map(|_| Cell::Null);
        let table = Table {
            columns: self.columns(),
            rows,
            total: Some(cells(names, all_ours, all_theirs, (Cell::Null, Cell::Null))),
        };
        (table, differing)
    }

    fn columns(&self) -> Vec<String> {
        let by = self
            .options
            .by
            .iter()
            .map(|dimension| <&str>::from(dimension).to_owned());
        let counts = [
            "requests",
            "input_tokens",
            "cached_input_tokens",
            "output_tokens",
        ];
        let counts = counts.into_iter().flat_map(|name| {
            ["", "_theirs", "_difference"].map(|suffix| format!("{name}{suffix}"))
        });
        let why = ["why", "lines"].map(str::to_owned);
        by.chain(counts).chain(why).collect()
    }

    fn sides(&self, key: &Key) -> (Row, Used) {
        (
            self.ours.rows.get(key).cloned().unwrap_or_default(),
            self.provider.rows.get(key).copied().unwrap_or_default(),
        )
    }

    /// A line without an answer names no snapshot: it can be of each that the model of its name has.
    fn add_unanswered(&self, key: &Key, row: &mut Row) {
        let Some(at) = self.position(Dimension::Model) else {
            return;
        };
        for (other, of_name) in &self.ours.rows {
            if differs_only_at(other, key, at) && is_snapshot(&key[at], &other[at]) {
                let unanswered = &of_name.suspects[Cause::Unanswered as usize];
                row.suspects[Cause::Unanswered as usize].join(unanswered);
            }
        }
    }

    fn difference(&self, key: &Key) -> Difference {
        let ours = self.ours.rows.get(key).map(|row| row.used);
        let theirs = self.provider.rows.get(key).copied();
        theirs.unwrap_or_default().minus(ours.unwrap_or_default())
    }

    /// What can explain a difference, and the lines that it is about.
    fn why(&self, key: &Key, row: &Row, theirs: Used) -> (Cell, Cell) {
        let mut reasons = Reasons::new(row, theirs.minus(row.used));
        for dimension in [Dimension::Model, Dimension::ServiceTier, Dimension::Day] {
            if let Some(moved) = self.moved(key, reasons.left(), dimension) {
                reasons.moved(&moved);
            }
        }
        reasons.requests(self.missing);
        reasons.tokens();
        reasons.cells()
    }

    /// The part of a difference that rows which differ from this one in a dimension alone have with the opposite sign.
    fn moved<'k>(
        &'k self,
        key: &'k Key,
        difference: Difference,
        dimension: Dimension,
    ) -> Option<Moved<'k>> {
        let at = self.position(dimension)?;
        let mut there: Difference = [0; 4];
        let mut values = BTreeSet::from([&*key[at]]);
        let others = self.keys.iter();
        for other in others.filter(|other| differs_only_at(other, key, at)) {
            let mut of_other = self.difference(other);
            of_other[0] = match dimension {
                Dimension::Day => opposite(of_other[0], self.over_midnight(key, other, at)),
                Dimension::Model if !is_same_model(&key[at], &other[at]) => 0,
                _ => of_other[0],
            };
            if opposite(difference[0], of_other[0]) != 0 {
                there = std::array::from_fn(|count| there[count].saturating_add(of_other[count]));
                values.insert(&other[at]);
            }
        }
        let amounts = std::array::from_fn(|count| opposite(difference[count], there[count]));
        (there[0] != 0).then_some(Moved {
            dimension,
            values,
            amounts,
        })
    }

    /// Requests of the log that ran over the midnight between two days: more than 0 where the first day is the later one,
    /// which the provider can have more of, and less where it is the earlier.
    fn over_midnight(&self, key: &Key, other: &Key, day: usize) -> i64 {
        let (earlier, later, sign) = if key[day] < other[day] {
            (key, other, -1)
        } else {
            (other, key, 1)
        };
        let next = earlier[day].parse::<Date>().and_then(Date::tomorrow);
        let follows = next.is_ok_and(|next| next.to_string() == later[day]);
        let row = self.ours.rows.get(earlier).filter(|_| follows);
        let requests = row.map_or(0, |row| row.suspects[Cause::Midnight as usize].count);
        sign * requests.cast_signed()
    }

    fn position(&self, dimension: Dimension) -> Option<usize> {
        self.options.by.iter().position(|other| *other == dimension)
    }
}

/// Whether one name is that of a snapshot of the other.
fn is_same_model(a: &str, b: &str) -> bool {
    is_snapshot(a, b) || is_snapshot(b, a)
}

fn differs_only_at(a: &Key, b: &Key, at: usize) -> bool {
    a.iter()
        .zip(b)
        .enumerate()
        .all(|(index, (a, b))| (a == b) == (index != at))
}

fn cells(
    names: impl Iterator<Item = Cell>,
    ours: Used,
    theirs: Used,
    (why, lines): (Cell, Cell),
) -> Vec<Cell> {
    let counts = ours.0.into_iter().zip(theirs.0);
    let counts = counts.zip(theirs.minus(ours));
    let counts = counts.flat_map(|((ours, theirs), difference)| {
        [
            Cell::Count(ours),
            Cell::Count(theirs),
            Cell::Difference(difference),
        ]
    });
    names.chain(counts).chain([why, lines]).collect()
}

impl Findings {
    /// Requests, the differences and what explains them: for a terminal.
    pub fn table_for_people(&self) -> Table {
        let mut table = self.table.clone();
        let left_out = |name: &String| {
            name.ends_with("_theirs") || name.ends_with("_tokens") || name == "lines"
        };
        let keep: Vec<bool> = table.columns.iter().map(|name| !left_out(name)).collect();
        table.retain(&keep);
        for name in &mut table.columns {
            *name = name.replace("_tokens", "").replace("_difference", " diff");
        }
        table
    }
}

impl Used {
    fn add(&mut self, more: &Used) {
        for (sum, count) in self.0.iter_mut().zip(more.0) {
            *sum = sum.saturating_add(count);
        }
    }

    /// What this has more than another, by count.
    fn minus(self, other: Used) -> Difference {
        // Counts of tokens are far below 2^63.
        std::array::from_fn(|at| self.0[at].wrapping_sub(other.0[at]).cast_signed())
    }
}

fn day_of(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC)
        .strftime("%Y-%m-%d")
        .to_string()
}
