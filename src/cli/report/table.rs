//! Rows and columns, written for people, for spreadsheets or for programs. It knows nothing of what they mean.

use std::cmp::Ordering;
use std::io::{self, Write};

use clap::ValueEnum;
use rust_decimal::{Decimal, RoundingStrategy};

/// To this many characters a text may be cut in a table that is too wide.
const LEAST_TEXT: usize = 12;
/// Between two columns, in characters.
const GAP: usize = 2;

/// How a [`Table`] is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns; money is rounded, and long numbers are grouped by thousands.
    #[default]
    Table,
    /// RFC 4180 with lines ended by a line feed, exact. A text that a spreadsheet would take for a formula begins with a `'`.
    Csv,
    /// An array of objects, one a line, exact: money is a string.
    Json,
}

/// One value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// No value.
    Null,
    /// A number or a boolean, as JSON spells it.
    Bare(String),
    /// A whole number that is counted or summed.
    Count(u64),
    /// What one count is above another.
    Difference(i64),
    /// An exact amount: a string in JSON, where a number would be read as a float.
    Money(Decimal),
    /// A part of one; people are told percents.
    Share(Decimal),
    /// Any text.
    Text(String),
}

/// Rows of equal length under the names of their columns.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Names of the columns, from left to right.
    pub columns: Vec<String>,
    /// Values of the rows, one for each column.
    pub rows: Vec<Vec<Cell>>,
    /// The last row, in which the columns that rows are told by are null.
    pub total: Option<Vec<Cell>>,
}

/// A spreadsheet runs a text that begins so as a formula, and texts come from clients
/// (<https://owasp.org/www-community/attacks/CSV_Injection>).
const FORMULA_SIGNS: [char; 11] = ['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠'];

impl Cell {
    /// A cell that holds this text.
    pub fn text(text: impl Into<String>) -> Cell {
        Cell::Text(text.into())
    }

    fn rank(&self) -> u8 {
        match self {
            Cell::Null => 0,
            Cell::Text(_) => 3,
            _ if self.number().is_some() => 1,
            _ => 2,
        }
    }

    fn number(&self) -> Option<Decimal> {
        match self {
            Cell::Bare(text) => Decimal::from_str_exact(text).ok(),
            Cell::Count(count) => Some((*count).into()),
            Cell::Difference(count) => Some((*count).into()),
            Cell::Money(value) | Cell::Share(value) => Some(*value),
            Cell::Null | Cell::Text(_) => None,
        }
    }

    /// Exact, and empty for null.
    fn plain(&self) -> String {
        match self {
            Cell::Null => String::new(),
            Cell::Bare(text) | Cell::Text(text) => text.clone(),
            Cell::Count(count) => count.to_string(),
            Cell::Difference(count) => count.to_string(),
            Cell::Money(amount) => amount.normalize().to_string(),
            Cell::Share(share) => share.round_dp(4).normalize().to_string(),
        }
    }

    /// Values come from clients: a control character in one must not reach the terminal.
    fn for_people(&self, decimals: u32) -> String {
        match self {
            Cell::Null => "-".to_owned(),
            Cell::Count(count) => thousands(&count.to_string()),
            Cell::Difference(0) => "0".to_owned(),
            Cell::Difference(count) => thousands(&format!("{count:+}")),
            Cell::Money(amount) => money(*amount, decimals),
            Cell::Share(share) => percent(*share),
            Cell::Bare(text) | Cell::Text(text) if text.chars().any(char::is_control) => {
                text.escape_debug().to_string()
            }
            Cell::Bare(text) | Cell::Text(text) => text.clone(),
        }
    }

    fn csv(&self) -> String {
        match self {
            Cell::Text(text) if text.starts_with(FORMULA_SIGNS) => format!("'{text}"),
            _ => self.plain(),
        }
    }

    fn json(&self) -> String {
        match self {
            Cell::Null => "null".to_owned(),
            Cell::Text(text) => quote(text),
            Cell::Money(_) => quote(&self.plain()),
            _ => self.plain(),
        }
    }
}

/// Null, then numbers by value, then text.
impl Ord for Cell {
    fn cmp(&self, other: &Cell) -> Ordering {
        match (self.number(), other.number()) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => (self.rank(), self.plain()).cmp(&(other.rank(), other.plain())),
        }
    }
}

impl PartialOrd for Cell {
    fn partial_cmp(&self, other: &Cell) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Table {
    /// Writes the table in the given format.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, format: Format, out: &mut impl Write) -> io::Result<()> {
        match format {
            Format::Table => self.write_for_people(out),
            Format::Csv => self.write_csv(out),
            Format::Json => self.write_json(out),
        }
    }

    /// How many characters wide each column is for people.
    pub(crate) fn widths(&self) -> Vec<usize> {
        widths(&self.lines())
    }

    /// How wide a table of such columns is.
    pub(crate) fn width(widths: &[usize]) -> usize {
        widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1)
    }

    /// Leaves out the columns that are not to be kept.
    pub(crate) fn retain(&mut self, keep: &[bool]) {
        let retain = |row: &mut Vec<Cell>| {
            let mut keep = keep.iter();
            row.retain(|_| keep.next().copied().unwrap_or(true));
        };
        self.rows.iter_mut().chain(&mut self.total).for_each(retain);
        let mut keep = keep.iter();
        self.columns
            .retain(|_| keep.next().copied().unwrap_or(true));
    }

    /// Cuts the longest texts, so that the table is at most so wide where that can be.
    pub(crate) fn shorten_texts(&mut self, width: usize) {
        let mut widths = self.widths();
        let mut over = Table::width(&widths).saturating_sub(width);
        while over > 0 {
            let texts = (0..widths.len()).filter(|column| self.is_text(*column));
            let Some(widest) = texts.max_by_key(|column| widths[*column]) else {
                return;
            };
            let least = LEAST_TEXT.max(self.columns[widest].len());
            let limit = widths[widest].saturating_sub(over).max(least);
            if limit >= widths[widest] {
                return;
            }
            over -= widths[widest] - limit;
            widths[widest] = limit;
            let rows = self.rows.iter_mut();
            rows.for_each(|row| shorten(&mut row[widest], limit));
        }
    }

    /// The lines as people read them, and which columns are numbers.
    pub(crate) fn lines_for_people(&self) -> (Vec<Vec<String>>, Vec<bool>) {
        let columns = 0..self.columns.len();
        let numbers = columns.map(|column| !self.is_text(column)).collect();
        (self.lines(), numbers)
    }

    fn write_for_people(&self, out: &mut impl Write) -> io::Result<()> {
        let lines = self.lines();
        let widths = widths(&lines);
        for line in &lines {
            let cells = line.iter().zip(&widths).enumerate();
            let cells = cells.map(|(column, (text, width))| {
                if self.is_text(column) {
                    format!("{text:<width$}")
                } else {
                    format!("{text:>width$}")
                }
            });
            let cells: Vec<String> = cells.collect();
            writeln!(out, "{}", cells.join(&" ".repeat(GAP)).trim_end())?;
        }
        Ok(())
    }

    /// Heading, rows and total, as people read them.
    fn lines(&self) -> Vec<Vec<String>> {
        let decimals: Vec<u32> = (0..self.columns.len())
            .map(|column| self.decimals(column))
            .collect();
        let line = |row: &Vec<Cell>| -> Vec<String> {
            let cells = row.iter().zip(&decimals);
            cells
                .map(|(cell, decimals)| cell.for_people(*decimals))
                .collect()
        };
        let mut lines = vec![self.columns.clone()];
        lines.extend(self.rows.iter().map(line));
        if let Some(total) = &self.total {
            let mut cells = line(total);
            let names = cells.iter_mut().zip(total).enumerate();
            for (column, (text, cell)) in names.filter(|(column, _)| self.is_text(*column)) {
                if *cell == Cell::Null {
                    *text = if column == 0 {
                        "total".to_owned()
                    } else {
                        String::new()
                    };
                }
            }
            lines.push(cells);
        }
        lines
    }

    /// How many decimals the money of a column is shown with: enough for the largest to be told.
    fn decimals(&self, column: usize) -> u32 {
        let largest = self.all_rows().filter_map(|row| match row[column] {
            Cell::Money(amount) => Some(amount.abs()),
            _ => None,
        });
        match largest.max() {
            Some(amount) if amount < Decimal::new(1, 2) => 6,
            Some(amount) if amount < Decimal::ONE => 4,
            _ => 2,
        }
    }

    fn write_csv(&self, out: &mut impl Write) -> io::Result<()> {
        let mut csv = csv::WriterBuilder::new().from_writer(out);
        csv.write_record(&self.columns)?;
        for row in self.all_rows() {
            csv.write_record(row.iter().map(Cell::csv))?;
        }
        csv.flush()
    }

    fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        let object = |row: &Vec<Cell>| {
            let members = self.columns.iter().zip(row);
            let members = members.map(|(name, cell)| format!("{}:{}", quote(name), cell.json()));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        };
        let objects: Vec<String> = self.all_rows().map(object).collect();
        if objects.is_empty() {
            return writeln!(out, "[]");
        }
        writeln!(out, "[\n{}\n]", objects.join(",\n"))
    }

    fn all_rows(&self) -> impl Iterator<Item = &Vec<Cell>> {
        self.rows.iter().chain(&self.total)
    }

    /// Whether a column holds text, which stands on the left; numbers stand on the right. The first one without any value
    /// does as well, for it has the word `total`.
    fn is_text(&self, column: usize) -> bool {
        let is_null = |row: &Vec<Cell>| row[column] == Cell::Null;
        self.rows
            .iter()
            .any(|row| matches!(row[column], Cell::Text(_)))
            || (column == 0 && self.total.as_ref().is_some_and(is_null))
    }
}

fn widths(lines: &[Vec<String>]) -> Vec<usize> {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    (0..columns)
        .map(|column| width(column).unwrap_or(0))
        .collect()
}

fn shorten(cell: &mut Cell, limit: usize) {
    let Cell::Text(text) = cell else { return };
    let shown = Cell::Text(std::mem::take(text)).for_people(0);
    *text = if shown.chars().count() > limit {
        shown.chars().take(limit - 1).chain(['…']).collect()
    } else {
        shown
    };
}

/// Rounded as in trade, and never to zero what is not zero.
fn money(amount: Decimal, decimals: u32) -> String {
    let strategy = RoundingStrategy::MidpointAwayFromZero;
    let mut rounded = amount.round_dp_with_strategy(decimals, strategy);
    if rounded.is_zero() && !amount.is_zero() {
        let least = Decimal::new(1, decimals);
        return if amount.is_sign_negative() {
            format!(">-{least}")
        } else {
            format!("<{least}")
        };
    }
    rounded.rescale(decimals);
    thousands(&rounded.to_string())
}

fn percent(share: Decimal) -> String {
    let mut percent = (share * Decimal::ONE_HUNDRED)
        .round_dp_with_strategy(1, RoundingStrategy::MidpointAwayFromZero);
    percent.rescale(1);
    format!("{percent}%")
}

/// A number with a comma before every three digits of its whole part.
pub(crate) fn thousands(number: &str) -> String {
    let digits = number
        .find(|letter: char| letter.is_ascii_digit())
        .unwrap_or(0);
    let (sign, number) = number.split_at(digits);
    let (whole, fraction) = number.split_at(number.find('.').unwrap_or(number.len()));
    let mut grouped = sign.to_owned();
    for (at, digit) in whole.char_indices() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + fraction
}

fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(table: &Table, format: Format) -> String {
        let mut out = Vec::new();
        table.write(format, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn usd(text: &str) -> Cell {
        Cell::Money(Decimal::from_str_exact(text).unwrap())
    }

    fn awkward() -> Table {
        let share = |text: &str| Cell::Share(Decimal::from_str_exact(text).unwrap());
        Table {
            columns: ["name", "n", "usd", "share"].map(str::to_owned).to_vec(),
            rows: vec![
                vec![
                    Cell::text("a,\"b\""),
                    Cell::Count(1),
                    Cell::Null,
                    Cell::Null,
                ],
                vec![
                    Cell::text("\u{1b}[31mred\n"),
                    Cell::Count(20_000),
                    usd("1234567.895"),
                    share("0.99996"),
                ],
                vec![
                    Cell::Null,
                    Cell::Bare("true".to_owned()),
                    usd("0.001"),
                    share("0.00004"),
                ],
            ],
            total: Some(vec![
                Cell::Null,
                Cell::Count(20_001),
                usd("1234567.896"),
                share("1"),
            ]),
        }
    }

    #[test]
    fn people_get_aligned_columns_and_no_control_characters() {
        let expected = "\
name                  n           usd   share
a,\"b\"                 1             -       -
\\u{1b}[31mred\\n  20,000  1,234,567.90  100.0%
-                  true         <0.01    0.0%
total            20,001  1,234,567.90  100.0%
";
        assert_eq!(written(&awkward(), Format::Table), expected);
    }

    #[test]
    fn csv_is_exact_and_quoted_where_it_must_be() {
        let expected = "name,n,usd,share\n\"a,\"\"b\"\"\",1,,\n\"\u{1b}[31mred\n\",20000,1234567.895,1\n,true,0.001,0\n,20001,1234567.896,1\n";
        assert_eq!(written(&awkward(), Format::Csv), expected);
    }

    #[test]
    fn json_is_an_array_of_objects_with_the_total_last() {
        let value: serde_json::Value =
            serde_json::from_str(&written(&awkward(), Format::Json)).unwrap();
        let expected = serde_json::json!([
            {"name": "a,\"b\"", "n": 1, "usd": null, "share": null},
            {"name": "\u{1b}[31mred\n", "n": 20000, "usd": "1234567.895", "share": 1},
            {"name": null, "n": true, "usd": "0.001", "share": 0},
            {"name": null, "n": 20001, "usd": "1234567.896", "share": 1},
        ]);
        assert_eq!(value, expected);
    }

    #[test]
    fn no_text_is_a_formula_to_a_spreadsheet() {
        for text in [
            "=1+1",
            "+1",
            "-1",
            "@SUM(A1)",
            "\tx",
            "\n=1",
            "＝1",
            "=cmd|'/c calc'!A1",
        ] {
            assert_eq!(Cell::text(text).csv(), format!("'{text}"));
        }
        assert_eq!(Cell::text("a=1").csv(), "a=1");
        assert_eq!(Cell::Difference(-5).csv(), "-5");
        assert_eq!(usd("-0.5").csv(), "-0.5");
    }

    #[test]
    fn money_has_as_many_decimals_as_tell_something() {
        let column = |amounts: &[&str]| {
            let rows = amounts.iter().map(|amount| vec![usd(amount)]).collect();
            let table = Table {
                columns: vec!["usd".to_owned()],
                rows,
                total: None,
            };
            let lines = written(&table, Format::Table);
            lines
                .lines()
                .skip(1)
                .map(|line| line.trim().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(column(&["12.345", "0.004"]), ["12.35", "<0.01"]);
        assert_eq!(column(&["0.12345", "0.5"]), ["0.1235", "0.5000"]);
        assert_eq!(column(&["0.001", "-0.0000001"]), ["0.001000", ">-0.000001"]);
        assert_eq!(column(&["-1234.5"]), ["-1,234.50"]);
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, expected) in [
            ("0", "0"),
            ("999", "999"),
            ("1000", "1,000"),
            ("-123456", "-123,456"),
            ("+1234567.12345", "+1,234,567.12345"),
        ] {
            assert_eq!(thousands(number), expected);
        }
    }

    #[test]
    fn rows_order_by_value() {
        let mut cells = [
            Cell::text("a"),
            Cell::Count(10),
            Cell::Bare("9.5".to_owned()),
            usd("100"),
            Cell::Null,
            Cell::Difference(-1),
        ];
        cells.sort();
        let order: Vec<String> = cells.iter().map(Cell::plain).collect();
        assert_eq!(order, ["", "-1", "9.5", "10", "100", "a"]);
    }

    #[test]
    fn long_texts_are_cut_until_the_table_fits() {
        let mut table = Table {
            columns: ["name", "n"].map(str::to_owned).to_vec(),
            rows: vec![vec![Cell::text("x".repeat(300)), Cell::Count(7)]],
            total: None,
        };
        table.shorten_texts(40);
        let text = written(&table, Format::Table);
        assert!(
            text.lines().all(|line| line.chars().count() <= 40),
            "{text}"
        );
        assert!(text.contains('…'), "{text}");
    }
}
