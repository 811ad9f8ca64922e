//! `tiergate report`: reads access logs and sums requests, tokens and cost by any of their fields. It reads only; what it
//! knows of a request is what the log says.
//!
//! Memory: one row for each distinct combination of the grouping fields, and two bytes for each line ([`dedup`]). Grouping by a
//! field that differs on every line, as `event_id` does, therefore takes memory by the line.

pub mod column;
pub mod dedup;
pub mod filter;
pub mod group_by;
mod html;
mod lines;
pub mod log_reader;
mod not_in_sum;
mod selection;
mod sums;
pub mod table;

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;

use jiff::tz::TimeZone;

use crate::accounting::access_log::line::{self, Line, Wanted};
use crate::accounting::prices::Prices;
use crate::cli::report::column::{Column, Columns, Rate, Sort};
use crate::cli::report::filter::{Filter, Window};
use crate::cli::report::group_by::{GroupBy, Values};
use crate::cli::report::html::Charts;
pub(crate) use crate::cli::report::lines::Lines;
use crate::cli::report::not_in_sum::NotInSum;
use crate::cli::report::selection::Selection;
use crate::cli::report::sums::Sums;
pub(crate) use crate::cli::report::sums::{
    Reading, counts, is_connection, is_refused, priced_tier,
};
use crate::cli::report::table::{Cell, Format, Table};

/// What billing asks for first; the default of `--by`.
pub const DEFAULT_BY: [GroupBy; 3] = [
    GroupBy::field("group"),
    GroupBy::field("key"),
    GroupBy::field("service_tier_billed"),
];

/// How wide a table is where no columns are asked for, in characters.
const WIDTH: usize = 120;

/// What to report.
pub struct Options {
    /// Read in this order; `-` is the standard input.
    pub logs: Vec<PathBuf>,
    /// What rows are grouped by, in the order of the columns.
    pub by: Vec<GroupBy>,
    /// Only requests that meet all of these.
    pub filters: Vec<Filter>,
    /// When the requests that count began.
    pub window: Window,
    /// Whose hours, days, weeks and months these are.
    pub time_zone: TimeZone,
    /// Prices each request by these, in the place of the cost that its line holds.
    pub prices: Option<Prices>,
    /// Tells what priority cost above the default tier, and leaves the cost as it is.
    pub premium: Option<Prices>,
    /// Further currencies in which the cost is shown.
    pub rates: Vec<Rate>,
    /// None: those that serve the format.
    pub columns: Option<Vec<String>>,
    /// Order of the rows; none for the order that serves what they are grouped by.
    pub sort: Option<Sort>,
    /// At most so many rows; the total has all.
    pub top: Option<usize>,
    /// How the report is written.
    pub format: Format,
    /// A page to be written as well.
    pub html: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            logs: Vec::new(),
            by: DEFAULT_BY.to_vec(),
            filters: Vec::new(),
            window: Window::default(),
            time_zone: TimeZone::UTC,
            prices: None,
            premium: None,
            rates: Vec::new(),
            columns: None,
            sort: None,
            top: None,
            format: Format::default(),
            html: None,
        }
    }
}

/// Why there is no report, or not a whole one.
#[derive(Debug)]
pub enum ReportError {
    /// There is no such column. Nothing was read or written.
    Column(String),
    /// A log cannot be opened. Nothing was read or written.
    Open {
        /// The log, as it was named.
        path: PathBuf,
        /// Why it cannot be opened.
        error: io::Error,
    },
    /// The report was written, but without what could not be read, which is told in the notes.
    Incomplete {
        /// Logs of which something could not be read.
        logs: usize,
        /// Lines that could not be read.
        lines: u64,
    },
    /// What a provider says was used cannot be read, or is no such answer.
    Usage {
        /// The file, as it was named.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The page cannot be written. The report was.
    Page {
        /// The page, as it was named.
        path: PathBuf,
        /// Why it cannot be written.
        error: io::Error,
    },
    /// The report or a note cannot be written.
    Write(io::Error),
}

impl fmt::Display for ReportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReportError::Column(why) => f.write_str(why),
            ReportError::Open { path, error } => {
                write!(f, "cannot open `{}`: {error}", path.display())
            }
            ReportError::Incomplete { logs: 0, lines } => {
                write!(
                    f,
                    "the report is incomplete: {lines} lines could not be read"
                )
            }
            ReportError::Incomplete { logs, .. } => {
                let what = if *logs == 1 {
                    "a log"
                } else {
                    &format!("{logs} logs")
                };
                write!(
                    f,
                    "the report is incomplete: {what} could not be read to the end"
                )
            }
            ReportError::Usage { path, why } => write!(f, "{}: {why}", path.display()),
            ReportError::Page { path, error } => {
                write!(f, "cannot write `{}`: {error}", path.display())
            }
            ReportError::Write(error) => write!(f, "cannot write the report: {error}"),
        }
    }
}

impl std::error::Error for ReportError {}

impl From<io::Error> for ReportError {
    fn from(error: io::Error) -> ReportError {
        ReportError::Write(error)
    }
}

/// Writes the report to `out`, and what is to be said about it (lines that could not be read, are repeated or missing, and what
/// is not in the sum) to `notes`.
///
/// Lines that cannot be read are told and passed over. A log that breaks off, as a truncated archive does, is told and counted
/// as far as it goes. Either makes the result an error once the report has been written.
///
/// # Errors
/// See [`ReportError`].
pub fn run(
    options: &Options,
    out: &mut impl Write,
    notes: &mut impl Write,
) -> Result<(), ReportError> {
    let layout = Layout::new(options).map_err(ReportError::Column)?;
    let mut report = Report::new(options);
    let lines = Lines::read(&options.logs, &report.wanted(), notes, |line| {
        report.count(line)
    })?;
    report.not_in_sum.tell(notes)?;
    if report.rows.is_empty() && lines.result().is_ok() {
        report.selection.tell_none(notes)?;
    }
    layout.table(&report, notes)?.write(options.format, out)?;
    out.flush()?;
    if let (Some(path), Some(charts)) = (&options.html, &report.charts) {
        let page = charts.page(&layout.table_for_people(&report), options);
        std::fs::write(path, page).map_err(|error| ReportError::Page {
            path: path.clone(),
            error,
        })?;
    }
    lines.result()
}

/// The sums so far.
struct Report<'o> {
    options: &'o Options,
    selection: Selection<'o>,
    reading: Reading<'o>,
    values: Values,
    /// By the raw JSON of the grouping values, each ended by a line feed, which JSON on one line cannot hold.
    rows: HashMap<Box<str>, Sums>,
    /// The key of the line under way, kept for its allocation.
    key: String,
    not_in_sum: NotInSum,
    charts: Option<Charts>,
}

impl<'o> Report<'o> {
    fn new(options: &'o Options) -> Report<'o> {
        Report {
            options,
            selection: Selection::new(options.window, &options.filters),
            reading: Reading::new(options.prices.as_ref(), options.premium.as_ref()),
            values: Values::new(options.time_zone.clone()),
            rows: HashMap::new(),
            key: String::new(),
            not_in_sum: NotInSum::default(),
            charts: options.html.is_some().then(Charts::default),
        }
    }

    /// The fields that it looks at.
    fn wanted(&self) -> Wanted {
        let by = self.options.by.iter().map(|by| by.source());
        let filters = self.options.filters.iter().map(|filter| filter.by.source());
        let fields = by.chain(filters).chain(Reading::fields());
        Wanted::new(fields.chain(NotInSum::FIELDS).chain(Charts::FIELDS))
    }

    /// Counts a line, or says why that cannot be.
    fn count(&mut self, line: &Line<'_>) -> Result<(), String> {
        if !self.selection.takes(line, &mut self.values)? {
            return Ok(());
        }
        let sums = self.reading.sums(line);
        // A WebSocket's connection line counts nothing. It must not make a row of zeros either.
        if sums.requests > 0 {
            self.not_in_sum.note(line, &sums, &self.reading);
            self.add(line, &sums);
        }
        Ok(())
    }

    fn add(&mut self, line: &Line<'_>, sums: &Sums) {
        self.key.clear();
        for by in &self.options.by {
            let raw = self.values.raw(*by, line);
            self.key.push_str(&line::own_spelling(raw));
            self.key.push('\n');
        }
        match self.rows.get_mut(self.key.as_str()) {
            Some(row) => row.add(sums),
            None => drop(self.rows.insert(self.key.as_str().into(), *sums)),
        }
        if let Some(charts) = &mut self.charts {
            charts.add(line, &mut self.values, sums);
        }
    }

    fn total(&self) -> Sums {
        let mut total = Sums::default();
        self.rows.values().for_each(|sums| total.add(sums));
        total
    }
}

/// Which columns are written and how rows are ordered.
struct Layout<'o> {
    columns: Columns<'o>,
    /// None: those that serve the format.
    chosen: Option<Vec<Column>>,
    sort: Option<(Sort, Column)>,
    options: &'o Options,
}

impl<'o> Layout<'o> {
    /// The error names the column that is not there.
    fn new(options: &'o Options) -> Result<Layout<'o>, String> {
        let columns = Columns {
            by: &options.by,
            rates: &options.rates,
        };
        let chosen = options.columns.as_ref().map(|names| {
            let columns = names.iter().map(|name| columns.find(name));
            columns.collect::<Result<Vec<_>, _>>()
        });
        let chosen = chosen.transpose()?;
        let sort = options
            .sort
            .clone()
            .or(options.top.map(|_| Sort::by_cost()));
        let sort = sort.map(|sort| sort.column(&columns).map(|column| (sort, column)));
        Ok(Layout {
            chosen,
            sort: sort.transpose()?,
            columns,
            options,
        })
    }

    fn table(&self, report: &Report<'_>, notes: &mut impl Write) -> io::Result<Table> {
        let top = self.options.top.unwrap_or(usize::MAX);
        let left_out = report.rows.len().saturating_sub(top);
        if left_out > 0 {
            writeln!(
                notes,
                "rows that are in the total and not shown: {left_out}"
            )?;
        }
        Ok(match (&self.chosen, self.options.format) {
            (Some(columns), _) => self.fill(report, columns),
            (None, Format::Table) => self.table_for_people(report),
            (None, Format::Csv | Format::Json) => self.fill(report, &self.columns.all()),
        })
    }

    /// As wide as a terminal may be.
    fn table_for_people(&self, report: &Report<'_>) -> Table {
        let mut columns = self.columns.for_people(&report.total());
        let mut table = self.fill(report, &columns);
        let mut widths = table.widths();
        for candidate in Columns::left_out_first() {
            if Table::width(&widths) <= WIDTH {
                break;
            }
            let keep: Vec<bool> = columns.iter().map(|column| *column != candidate).collect();
            table.retain(&keep);
            let mut kept = keep.iter();
            widths.retain(|_| *kept.next().unwrap_or(&true));
            columns.retain(|column| *column != candidate);
        }
        table.shorten_texts(WIDTH);
        table
    }

    fn fill(&self, report: &Report<'_>, columns: &[Column]) -> Table {
        let total = report.total();
        let cells = |group: &[Cell], sums: &Sums| -> Vec<Cell> {
            let cells = columns.iter();
            cells
                .map(|column| self.columns.cell(*column, group, sums, total.cost))
                .collect()
        };
        Table {
            columns: columns
                .iter()
                .map(|column| self.columns.name(*column))
                .collect(),
            rows: self
                .rows(report, &total)
                .iter()
                .map(|(group, sums)| cells(group, sums))
                .collect(),
            total: Some(cells(&[], &total)),
        }
    }

    /// In their order, and no more than are to be shown.
    fn rows<'r>(&self, report: &'r Report<'_>, total: &Sums) -> Vec<(Vec<Cell>, &'r Sums)> {
        let rows = report.rows.iter();
        let mut rows: Vec<_> = rows.map(|(key, sums)| (group_cells(key), sums)).collect();
        rows.sort_by(|(a, _), (b, _)| a.cmp(b));
        if let Some((sort, column)) = &self.sort {
            sort.sort(*column, &mut rows, |(group, sums)| {
                self.columns.cell(*column, group, sums, total.cost)
            });
        }
        rows.truncate(self.options.top.unwrap_or(usize::MAX));
        rows
    }
}

/// The grouping values, out of a key of [`Report::rows`].
fn group_cells(key: &str) -> Vec<Cell> {
    key.lines()
        .map(|raw| match (raw, line::decode(raw)) {
            ("null", _) => Cell::Null,
            (_, Some(text)) => Cell::text(text),
            (raw, None) => Cell::Bare(raw.to_owned()),
        })
        .collect()
}
