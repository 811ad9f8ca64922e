//! `tiergate report`: reads access logs and sums requests, tokens and cost by any of their fields. It reads only; what it
//! knows of a request is what the log says.
//!
//! Memory: one row for each distinct combination of the grouping fields, and two bytes for each line ([`crate::cli::report::duplicates`]).
//! Grouping by a field that differs on every line, as `event_id` does, therefore takes memory by the line.

pub mod duplicates;
pub mod log_reader;
pub mod table;

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rust_decimal::Decimal;

use crate::accounting::access_log::line::{self, Field, Line, Wanted};
use crate::accounting::prices::Prices;
use crate::accounting::usage::Usage;
use crate::cli::report::duplicates::Seen;
use crate::cli::report::log_reader::{LogReader, RawLine};
use crate::cli::report::table::{Cell, Format, Table};

/// What billing asks for first; the default of `--by`.
pub const DEFAULT_BY: [Field; 3] = [
    Field::named("group"),
    Field::named("key"),
    Field::named("service_tier_billed"),
];

const COST_USD: Field = Field::named("cost_usd");
const DOWNGRADED: Field = Field::named("downgraded");
const EVENT_ID: Field = Field::named("event_id");
const INSTANCE: Field = Field::named("instance");
const MODEL: Field = Field::named("model");
const SEQ: Field = Field::named("seq");
const SERVICE_TIER: Field = Field::named("service_tier");
const SERVICE_TIER_BILLED: Field = Field::named("service_tier_billed");
const TIME: Field = Field::named("time");
const TRANSPORT: Field = Field::named("transport");
const TURN: Field = Field::named("turn");

/// The counts of [`Usage`], in its order.
const TOKENS: [Field; 5] = [
    Field::named("input_tokens"),
    Field::named("cached_input_tokens"),
    Field::named("cache_write_tokens"),
    Field::named("output_tokens"),
    Field::named("reasoning_tokens"),
];

/// What is summed; the columns after those of `--by`.
const SUMS: [&str; 12] = [
    "requests",
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cost_usd",
    "unpriced",
    "priority_requests",
    "priority_downgraded",
    "downgrade_rate",
    "priority_premium_usd",
];

/// Unreadable lines that are told one by one; beyond, they are only counted.
const LINES_TOLD: u64 = 10;

const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// Lines between two looks at the clock.
const PROGRESS_LINES: u64 = 4096;

/// What to report.
pub struct Options {
    /// Read in this order; `-` is the standard input.
    pub logs: Vec<PathBuf>,
    pub by: Vec<Field>,
    /// Reprices each request by these instead of taking the cost that its line holds.
    pub prices: Option<Prices>,
    /// Requests that began at this time or later.
    pub since: Option<Timestamp>,
    /// Requests that began before this time.
    pub until: Option<Timestamp>,
    pub format: Format,
    /// Show how far the reading is; only for notes that go to a terminal.
    pub progress: bool,
}

/// Why there is no report, or not a whole one.
#[derive(Debug)]
pub enum ReportError {
    /// A log cannot be opened. Nothing was read or written.
    Open { path: PathBuf, error: io::Error },
    /// The report was written, but without the rest of so many logs, each of which is told in the notes.
    Incomplete { logs: usize },
    /// The report or a note cannot be written.
    Write(io::Error),
}

impl fmt::Display for ReportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReportError::Open { path, error } => {
                write!(f, "cannot open `{}`: {error}", path.display())
            }
            ReportError::Incomplete { logs: 1 } => {
                write!(
                    f,
                    "the report is incomplete: a log could not be read to its end"
                )
            }
            ReportError::Incomplete { logs } => {
                write!(
                    f,
                    "the report is incomplete: {logs} logs could not be read to their end"
                )
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

/// Writes the report to `out`, and what is to be said about the logs (unreadable lines, repeated ones, missing ones) to
/// `notes`.
///
/// Lines that cannot be read are told and passed over. A log that breaks off, as a truncated archive does, is told, counted as
/// far as it goes, and makes the result an error once the report has been written.
pub fn run(
    options: &Options,
    out: &mut impl Write,
    notes: &mut impl Write,
) -> Result<(), ReportError> {
    let bytes = readable(&options.logs)?;
    let mut report = Report::new(options);
    let mut progress = Progress::new(options.progress, bytes);
    let mut incomplete = 0;
    for path in &options.logs {
        if let Err(error) = report.read(path, &mut progress, notes)? {
            progress.clear(notes)?;
            writeln!(notes, "{}: breaks off: {error}", path.display())?;
            incomplete += 1;
        }
    }
    progress.clear(notes)?;
    report.tell(notes)?;
    report.table().write(options.format, out)?;
    out.flush()?;
    if incomplete > 0 {
        Err(ReportError::Incomplete { logs: incomplete })
    } else {
        Ok(())
    }
}

/// Reads the bound of a window: RFC 3339, or a date, which is its first moment in UTC.
pub fn parse_time(text: &str) -> Result<Timestamp, String> {
    let midnight = || {
        text.parse::<jiff::civil::Date>()
            .ok()?
            .to_zoned(jiff::tz::TimeZone::UTC)
            .ok()
    };
    let time = text
        .parse::<Timestamp>()
        .ok()
        .or_else(|| midnight().map(|zoned| zoned.timestamp()));
    time.ok_or_else(|| {
        format!("`{text}` is neither a date nor an RFC 3339 time, as `2026-11-01` and `2026-11-01T08:00:00Z` are")
    })
}

/// Looks at each log, so that a wrong name is told before hours of reading and not after. Returns their bytes in all.
fn readable(logs: &[PathBuf]) -> Result<u64, ReportError> {
    let mut bytes = 0;
    for path in logs.iter().filter(|path| path.as_path() != Path::new("-")) {
        bytes += readable_bytes(path).map_err(|error| ReportError::Open {
            path: path.clone(),
            error,
        })?;
    }
    Ok(bytes)
}

/// The size of a log that can be opened. A pipe is left alone: who opens and closes it ends its writer.
fn readable_bytes(path: &Path) -> io::Result<u64> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if metadata.is_file() {
        std::fs::File::open(path)?;
    }
    Ok(metadata.len())
}

/// The sums so far.
struct Report<'o> {
    options: &'o Options,
    wanted: Wanted,
    seen: Seen,
    /// By the raw JSON of the grouping fields, each ended by a line feed, which JSON on one line cannot hold.
    groups: HashMap<Box<str>, Sums>,
    /// The key of the line under way, kept for its allocation.
    key: String,
    lines: u64,
    repeated: u64,
    unreadable: u64,
}

/// What is summed over the requests of one group.
#[derive(Clone, Copy, Default)]
struct Sums {
    requests: u64,
    /// By [`TOKENS`].
    tokens: [u64; TOKENS.len()],
    /// `None` until a cost is known.
    cost: Option<Decimal>,
    /// Requests with usage whose cost is not known, and so not in `cost`.
    unpriced: u64,
    /// Requests that were sent on tier priority to an upstream.
    priority: u64,
    /// Those of them that the upstream served on another tier.
    downgraded: u64,
    /// What requests billed as priority cost above the default tier; `None` until that is known of one.
    premium: Option<Decimal>,
}

impl<'o> Report<'o> {
    fn new(options: &'o Options) -> Report<'o> {
        let fixed = [
            COST_USD,
            DOWNGRADED,
            EVENT_ID,
            INSTANCE,
            MODEL,
            SEQ,
            SERVICE_TIER,
            SERVICE_TIER_BILLED,
            TIME,
            TRANSPORT,
            TURN,
        ];
        Report {
            options,
            wanted: Wanted::new(options.by.iter().copied().chain(fixed).chain(TOKENS)),
            seen: Seen::default(),
            groups: HashMap::new(),
            key: String::new(),
            lines: 0,
            repeated: 0,
            unreadable: 0,
        }
    }

    /// Counts the lines of one log. The inner error is the log's, and leaves its rest uncounted; the outer one is of `notes`.
    fn read(
        &mut self,
        path: &Path,
        progress: &mut Progress,
        notes: &mut impl Write,
    ) -> io::Result<io::Result<()>> {
        let mut reader = match LogReader::open(path) {
            Ok(reader) => reader,
            Err(error) => return Ok(Err(error)),
        };
        let mut number = 0;
        loop {
            let failure = match reader.next_line() {
                Err(error) => return Ok(Err(error)),
                Ok(None) => break,
                Ok(Some(RawLine::TooLong)) => {
                    Err("too long for a line of the access log".to_owned())
                }
                Ok(Some(RawLine::Whole(line))) => self.count(line),
            };
            number += 1;
            if let Err(message) = failure {
                progress.clear(notes)?;
                self.unreadable(path, number, &message, notes)?;
            }
            self.lines += 1;
            if self.lines.is_multiple_of(PROGRESS_LINES) {
                progress.show(self.lines, reader.consumed(), notes)?;
            }
        }
        progress.finish_log(reader.consumed());
        Ok(Ok(()))
    }

    /// Counts one line, or says why it cannot be.
    fn count(&mut self, line: &[u8]) -> Result<(), String> {
        let line = Line::parse(line, &self.wanted).map_err(|error| not_a_log_line(&error))?;
        let event_id = line
            .text(EVENT_ID)
            .ok_or("not a line of the access log: no `event_id`")?;
        if !self.seen.insert(
            line.text(INSTANCE).as_deref(),
            line.count(SEQ),
            Some(&event_id),
        ) {
            self.repeated += 1;
            return Ok(());
        }
        if self.in_window(&line)? {
            let sums = Sums::of(&line, self.options.prices.as_ref());
            self.add(&line, &sums);
        }
        Ok(())
    }

    fn in_window(&self, line: &Line) -> Result<bool, String> {
        let (since, until) = (self.options.since, self.options.until);
        if since.is_none() && until.is_none() {
            return Ok(true);
        }
        let time = began(line).ok_or("no `time` that could be compared with the window")?;
        Ok(since.is_none_or(|since| time >= since) && until.is_none_or(|until| time < until))
    }

    fn add(&mut self, line: &Line, sums: &Sums) {
        // A WebSocket's connection line counts nothing. It must not make a row of zeros either.
        if sums.is_empty() {
            return;
        }
        self.key.clear();
        for field in &self.options.by {
            self.key.push_str(line.raw(*field));
            self.key.push('\n');
        }
        match self.groups.get_mut(self.key.as_str()) {
            Some(group) => group.add(sums),
            None => drop(self.groups.insert(self.key.as_str().into(), *sums)),
        }
    }

    fn unreadable(
        &mut self,
        path: &Path,
        number: u64,
        message: &str,
        notes: &mut impl Write,
    ) -> io::Result<()> {
        self.unreadable += 1;
        if self.unreadable <= LINES_TOLD {
            writeln!(notes, "{}:{number}: {message}", path.display())
        } else {
            Ok(())
        }
    }

    /// Says what is to be known about the lines that were read.
    fn tell(&self, notes: &mut impl Write) -> io::Result<()> {
        if self.unreadable > 0 {
            writeln!(notes, "unreadable lines, not counted: {}", self.unreadable)?;
        }
        if self.repeated > 0 {
            writeln!(notes, "repeated lines, counted once: {}", self.repeated)?;
        }
        self.seen
            .gaps()
            .try_for_each(|gaps| writeln!(notes, "{gaps}"))
    }

    fn table(&self) -> Table {
        // Of two columns by one name the summed one is left out: it would be the same value over and over.
        let summed: Vec<usize> = (0..SUMS.len())
            .filter(|sum| !self.is_grouped_by(SUMS[*sum]))
            .collect();
        let row = |group: Vec<Cell>, sums: &Sums| -> Vec<Cell> {
            let cells = sums.cells();
            group
                .into_iter()
                .chain(summed.iter().map(|sum| cells[*sum].clone()))
                .collect()
        };
        let mut rows: Vec<Vec<Cell>> = self
            .groups
            .iter()
            .map(|(key, sums)| row(group_cells(key), sums))
            .collect();
        rows.sort_by(|a, b| {
            a.iter()
                .zip(b)
                .map(|(a, b)| a.order(b))
                .find(|order| order.is_ne())
                .unwrap_or(std::cmp::Ordering::Equal)
        });
        let mut total = Sums::default();
        self.groups.values().for_each(|sums| total.add(sums));
        let mut heading = vec![Cell::Text(String::new()); self.options.by.len()];
        if let Some(first) = heading.first_mut() {
            *first = Cell::Text("total".to_owned());
        }
        Table {
            columns: self
                .options
                .by
                .iter()
                .map(|field| field.name())
                .chain(summed.iter().map(|sum| SUMS[*sum]))
                .collect(),
            rows,
            totals: row(heading, &total),
        }
    }

    fn is_grouped_by(&self, name: &str) -> bool {
        self.options.by.iter().any(|field| field.name() == name)
    }
}

impl Sums {
    /// What one line adds.
    fn of(line: &Line, prices: Option<&Prices>) -> Sums {
        let counts = TOKENS.map(|field| line.count(field));
        let has_usage = counts.iter().any(Option::is_some);
        let cost = match prices {
            Some(prices) if has_usage => {
                reprice(line, &usage(counts), prices, billed_tier(line).as_deref())
            }
            Some(_) => None,
            None => line
                .text(COST_USD)
                .and_then(|text| Decimal::from_str_exact(&text).ok()),
        };
        let reached_priority = is_priority(line, SERVICE_TIER) && billed_tier(line).is_some();
        Sums {
            requests: u64::from(!is_connection(line)),
            tokens: counts.map(Option::unwrap_or_default),
            cost,
            unpriced: u64::from(has_usage && cost.is_none()),
            priority: u64::from(reached_priority),
            downgraded: u64::from(reached_priority && line.is_true(DOWNGRADED)),
            premium: prices.and_then(|prices| premium(line, &usage(counts), prices, cost?)),
        }
    }

    fn is_empty(&self) -> bool {
        self.requests == 0 && self.tokens == [0; TOKENS.len()] && self.cost.is_none()
    }

    fn add(&mut self, more: &Sums) {
        self.requests += more.requests;
        for (sum, count) in self.tokens.iter_mut().zip(more.tokens) {
            *sum = sum.saturating_add(count);
        }
        match sum(self.cost, more.cost) {
            Ok(cost) => self.cost = cost,
            Err(TooLarge) => self.unpriced += more.requests,
        }
        self.unpriced += more.unpriced;
        self.priority += more.priority;
        self.downgraded += more.downgraded;
        self.premium = sum(self.premium, more.premium).unwrap_or(self.premium);
    }

    /// One for each of [`SUMS`].
    fn cells(&self) -> [Cell; SUMS.len()] {
        let count = |count: u64| Cell::Bare(count.to_string());
        let usd = |sum: Option<Decimal>| {
            sum.map_or(Cell::Null, |sum| Cell::Decimal(sum.normalize().to_string()))
        };
        let [input, cached, cache_write, output, reasoning] = self.tokens.map(count);
        [
            count(self.requests),
            input,
            cached,
            cache_write,
            output,
            reasoning,
            usd(self.cost),
            count(self.unpriced),
            count(self.priority),
            count(self.downgraded),
            self.downgrade_rate(),
            usd(self.premium),
        ]
    }

    /// The share of priority requests that were served on another tier, to four decimals.
    fn downgrade_rate(&self) -> Cell {
        let rate = Decimal::from(self.downgraded).checked_div(Decimal::from(self.priority));
        rate.map_or(Cell::Null, |rate| {
            Cell::Bare(rate.round_dp(4).normalize().to_string())
        })
    }
}

/// A sum beyond what a decimal holds exactly.
struct TooLarge;

/// Adds what is known.
fn sum(a: Option<Decimal>, b: Option<Decimal>) -> Result<Option<Decimal>, TooLarge> {
    match (a, b) {
        (Some(a), Some(b)) => a.checked_add(b).map(Some).ok_or(TooLarge),
        _ => Ok(a.or(b)),
    }
}

/// The parser's message, without its own count of lines.
fn not_a_log_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let (message, _) = text.split_once(" at line ").unwrap_or((&text, ""));
    format!(
        "not a line of the access log: {message}, at column {}",
        error.column()
    )
}

fn reprice(line: &Line, usage: &Usage, prices: &Prices, tier: Option<&str>) -> Option<Decimal> {
    prices.cost(began(line)?, &line.text(MODEL)?, tier, usage)
}

/// What a request that is billed as priority cost above the default tier.
fn premium(line: &Line, usage: &Usage, prices: &Prices, cost: Decimal) -> Option<Decimal> {
    if !is_priority(line, SERVICE_TIER_BILLED) {
        return None;
    }
    cost.checked_sub(reprice(line, usage, prices, Some("default"))?)
}

fn usage([input, cached, cache_write, output, reasoning]: [Option<u64>; TOKENS.len()]) -> Usage {
    Usage {
        input_tokens: input,
        cached_input_tokens: cached,
        cache_write_tokens: cache_write,
        output_tokens: output,
        reasoning_tokens: reasoning,
        ..Usage::default()
    }
}

fn began(line: &Line) -> Option<Timestamp> {
    line.text(TIME)?.parse().ok()
}

fn billed_tier<'a>(line: &Line<'a>) -> Option<std::borrow::Cow<'a, str>> {
    line.text(SERVICE_TIER_BILLED)
}

/// `fast` is another word for it.
fn is_priority(line: &Line, tier: Field) -> bool {
    matches!(line.raw(tier), "\"priority\"" | "\"fast\"")
}

/// Whether the line is the one of a WebSocket's connection, beside those of the responses on it.
fn is_connection(line: &Line) -> bool {
    line.raw(TRANSPORT) == "\"websocket\"" && line.count(TURN) == Some(0)
}

/// The grouping values, out of a key of [`Report::groups`].
fn group_cells(key: &str) -> Vec<Cell> {
    key.lines()
        .map(|raw| match (raw, line::decode(raw)) {
            ("null", _) => Cell::Null,
            (_, Some(text)) => Cell::Text(text.into_owned()),
            (raw, None) => Cell::Bare(raw.to_owned()),
        })
        .collect()
}

/// One line of a terminal that tells how far the reading is.
struct Progress {
    shown: bool,
    enabled: bool,
    last: Instant,
    /// Of all logs.
    bytes: u64,
    /// Of the logs that have been read to their end.
    finished: u64,
}

impl Progress {
    fn new(enabled: bool, bytes: u64) -> Progress {
        Progress {
            shown: false,
            enabled,
            last: Instant::now(),
            bytes,
            finished: 0,
        }
    }

    fn show(&mut self, lines: u64, consumed: u64, notes: &mut impl Write) -> io::Result<()> {
        if !self.enabled || self.last.elapsed() < PROGRESS_INTERVAL {
            return Ok(());
        }
        self.last = Instant::now();
        self.shown = true;
        let mebibytes = |bytes: u64| bytes / (1 << 20);
        let (read, all) = (mebibytes(self.finished + consumed), mebibytes(self.bytes));
        write!(notes, "\r{lines} lines, {read} of {all} MiB")?;
        notes.flush()
    }

    fn finish_log(&mut self, consumed: u64) {
        self.finished += consumed;
    }

    /// Takes the line away, so that what is written next begins at the left.
    fn clear(&mut self, notes: &mut impl Write) -> io::Result<()> {
        if std::mem::take(&mut self.shown) {
            write!(notes, "\r\x1b[K")
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_one_line_that_is_taken_away_in_the_end() {
        let mut notes = Vec::new();
        let mut progress = Progress::new(true, 100 << 20);
        progress.show(1, 0, &mut notes).unwrap();
        assert_eq!(notes, b"");
        progress.finish_log(10 << 20);
        progress.last -= PROGRESS_INTERVAL;
        progress.show(4096, 5 << 20, &mut notes).unwrap();
        progress.clear(&mut notes).unwrap();
        progress.clear(&mut notes).unwrap();
        assert_eq!(
            String::from_utf8(notes).unwrap(),
            "\r4096 lines, 15 of 100 MiB\r\x1b[K"
        );
    }

    #[test]
    fn without_a_terminal_there_is_no_progress() {
        let mut notes = Vec::new();
        let mut progress = Progress::new(false, 0);
        progress.last -= PROGRESS_INTERVAL;
        progress.show(4096, 0, &mut notes).unwrap();
        progress.clear(&mut notes).unwrap();
        assert_eq!(notes, b"");
    }
}
