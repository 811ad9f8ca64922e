//! `tiergate reconcile`: what the log says was used beside what the provider says, and which lines can explain a difference.

mod ours;
mod provider;

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::ValueEnum;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::accounting::access_log::line::{Field, Wanted};
use crate::cli::reconcile::ours::{Cause, Ours, Row};
use crate::cli::reconcile::provider::Provider;
use crate::cli::report::filter::Filter;
use crate::cli::report::group_by::Values;
use crate::cli::report::table::{Cell, Table};
use crate::cli::report::{Lines, ReportError, check_readable};
use crate::config::units::counted;

/// What is compared.
pub struct Options {
    /// Read in this order; `-` is the standard input.
    pub logs: Vec<PathBuf>,
    /// The provider's answer.
    pub usage: PathBuf,
    pub by: Vec<Dimension>,
    /// Only requests of the log that meet all of these.
    pub filters: Vec<Filter>,
    /// Leave out rows that agree.
    pub differences: bool,
}

/// What rows are told by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
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

/// Why nothing was compared.
#[derive(Debug)]
pub enum ReconcileError {
    /// The provider's answer is not to be had, or is none.
    Usage(PathBuf, String),
    Logs(ReportError),
}

/// The values that a row is told by, in their order.
type Key = Vec<String>;

/// What requests used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Used {
    requests: u64,
    input: u64,
    cached_input: u64,
    output: u64,
}

impl fmt::Display for ReconcileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReconcileError::Usage(path, why) => write!(f, "{}: {why}", path.display()),
            ReconcileError::Logs(why) => why.fmt(f),
        }
    }
}

impl std::error::Error for ReconcileError {}

impl From<io::Error> for ReconcileError {
    fn from(why: io::Error) -> Self {
        ReconcileError::Logs(ReportError::Write(why))
    }
}

/// Compares, and says in `notes` what is to be known about the logs.
///
/// # Errors
/// See [`ReconcileError`].
pub fn run(options: &Options, notes: &mut impl Write) -> Result<Findings, ReconcileError> {
    let usage_error = |why: String| ReconcileError::Usage(options.usage.clone(), why);
    let answer = std::fs::read(&options.usage).map_err(|why| usage_error(why.to_string()))?;
    let provider = Provider::parse(&answer, &options.by).map_err(usage_error)?;
    check_readable(&options.logs).map_err(ReconcileError::Logs)?;
    let mut ours = Ours::new(&options.by, &provider);
    let mut values = Values::new(TimeZone::UTC);
    let filters = options.filters.iter();
    let fields = ours
        .fields()
        .chain(filters.map(|filter| filter.by.source()));
    let time = Field::named("time");
    let mut lines = Lines::new(Wanted::new(fields.chain([time])));
    for path in &options.logs {
        lines.read(path, notes, |line| {
            let mut filters = options.filters.iter();
            if filters.all(|filter| filter.takes(&mut values, line)) {
                ours.count(line)
            } else {
                Ok(())
            }
        })?;
    }
    ours.finish();
    lines.tell(notes)?;
    tell(&ours, &provider, notes)?;
    let comparison = Comparison {
        options,
        provider: &provider,
        ours: &ours,
        missing: lines.missing(),
    };
    let (table, differing) = comparison.table();
    Ok(Findings {
        table,
        agrees: differing == 0 && !provider.is_cut && lines.result().is_ok(),
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
    if provider.is_cut {
        writeln!(
            notes,
            "the usage answer has more pages (`has_more`), which are not in the file"
        )?;
    }
    Ok(())
}

/// Both sides.
struct Comparison<'c> {
    options: &'c Options,
    provider: &'c Provider,
    ours: &'c Ours<'c>,
    /// Lines that the log lacks between those that it has.
    missing: u64,
}

impl Comparison<'_> {
    /// The table, and how many rows differ.
    fn table(&self) -> (Table, usize) {
        let keys: BTreeSet<&Key> = self
            .ours
            .rows
            .keys()
            .chain(self.provider.rows.keys())
            .collect();
        let (mut rows, mut differing) = (Vec::new(), 0);
        let (mut all_ours, mut all_theirs) = (Used::default(), Used::default());
        for key in keys {
            let (row, theirs) = self.sides(key);
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
            .map(|dimension| dimension.name().to_owned());
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

    /// What can explain a difference, and the lines that it is about.
    fn why(&self, key: &Key, row: &Row, theirs: Used) -> (Cell, Cell) {
        let (mut reasons, mut lines) = (Vec::new(), Vec::new());
        let difference = theirs.minus(row.used);
        let unanswered = row.suspects[Cause::Unanswered as usize].count;
        let beyond_unanswered = difference[0].saturating_sub_unsigned(unanswered);
        let more_tokens = difference[1..].iter().any(|tokens| *tokens > 0);
        for (cause, suspects) in row.causes() {
            let fits = match cause {
                Cause::Midnight => self.has_opposite(key, difference, Dimension::Day),
                Cause::TierUnconfirmed => {
                    self.has_opposite(key, difference, Dimension::ServiceTier)
                }
                // The provider does not count one that failed, or counts what it used up to then.
                Cause::Failed => more_tokens || difference[0] < 0,
                _ if cause.adds_requests() => difference[0] > 0,
                _ => cause.hides_tokens() && more_tokens,
            };
            if fits {
                reasons.push(format!("{} {}", suspects.count, <&str>::from(cause)));
                lines.extend(suspects.lines.iter().cloned());
            }
        }
        if self.has_opposite(key, difference, Dimension::ServiceTier) {
            reasons.push("the provider has them on another tier".to_owned());
        } else if self.has_opposite(key, difference, Dimension::Day) {
            reasons.push("the provider has them on another day".to_owned());
        } else if beyond_unanswered > 0 {
            reasons.push(self.not_in_the_log(beyond_unanswered));
        } else if difference[0] < 0 && reasons.is_empty() {
            let requests = counted(-difference[0], "request");
            reasons.push(format!("{requests} that the provider does not count"));
        }
        if reasons.is_empty() {
            reasons.push("nothing in the log explains it".to_owned());
        }
        let lines = if lines.is_empty() {
            Cell::Null
        } else {
            Cell::text(lines.join(" "))
        };
        (Cell::text(reasons.join("; ")), lines)
    }

    fn not_in_the_log(&self, requests: i64) -> String {
        if self.missing > 0 {
            let missing = self.missing;
            format!("requests that are not in the log: {requests}; lines that it lacks: {missing}")
        } else {
            format!("requests that are not in the log: {requests}; did they go another way?")
        }
    }

    /// Whether another row, which differs from this one in a dimension alone, has requests too few where this one has too many,
    /// or the other way round. Of two days the earlier one must have requests that ran into the other.
    fn has_opposite(&self, key: &Key, difference: [i64; 4], dimension: Dimension) -> bool {
        let Some(at) = self.position(dimension) else {
            return false;
        };
        let others = self.ours.rows.keys().chain(self.provider.rows.keys());
        let mut others = others.filter(|other| differs_only_at(other, key, at));
        difference[0] != 0
            && others.any(|other| {
                let (row, theirs) = self.sides(other);
                let there = theirs.minus(row.used)[0];
                there.signum() == -difference[0].signum()
                    && (dimension != Dimension::Day || self.runs_over_midnight(key, other, at))
            })
    }

    fn runs_over_midnight(&self, a: &Key, b: &Key, day: usize) -> bool {
        let (earlier, later) = if a[day] < b[day] { (a, b) } else { (b, a) };
        let next = earlier[day].parse::<Date>().and_then(Date::tomorrow);
        let follows = next.is_ok_and(|next| next.to_string() == later[day]);
        let runs_over = |row: &Row| row.causes().any(|(cause, _)| cause == Cause::Midnight);
        follows && self.ours.rows.get(earlier).is_some_and(runs_over)
    }

    fn position(&self, dimension: Dimension) -> Option<usize> {
        self.options.by.iter().position(|other| *other == dimension)
    }
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
    let counts = ours.counts().into_iter().zip(theirs.counts());
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

impl Dimension {
    fn name(self) -> &'static str {
        match self {
            Dimension::Day => "day",
            Dimension::Model => "model",
            Dimension::ServiceTier => "service_tier",
        }
    }
}

impl Used {
    fn add(&mut self, more: &Used) {
        self.requests = self.requests.saturating_add(more.requests);
        self.input = self.input.saturating_add(more.input);
        self.cached_input = self.cached_input.saturating_add(more.cached_input);
        self.output = self.output.saturating_add(more.output);
    }

    fn counts(self) -> [u64; 4] {
        [self.requests, self.input, self.cached_input, self.output]
    }

    /// What this has more than another, by count.
    fn minus(self, other: Used) -> [i64; 4] {
        let (these, others) = (self.counts(), other.counts());
        // Counts of tokens are far below 2^63.
        std::array::from_fn(|at| these[at].wrapping_sub(others[at]).cast_signed())
    }
}

fn day_of(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC)
        .strftime("%Y-%m-%d")
        .to_string()
}
