//! Rows and columns, written for people, for spreadsheets or for programs. It knows nothing of what they mean.

use std::cmp::Ordering;
use std::io::{self, Write};
use std::str::FromStr;

/// How a [`Table`] is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Aligned columns with a line of totals.
    #[default]
    Table,
    /// Quoted as in RFC 4180, lines ended by a line feed, without the totals.
    Csv,
    /// An array of objects, one a line, without the totals.
    Json,
}

/// One value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    Null,
    /// A number or a boolean: in JSON as it stands.
    Bare(String),
    /// An exact decimal: a number to people, a string in JSON, where a number would be read as a float.
    Decimal(String),
    Text(String),
}

/// Rows of equal length under the names of their columns.
#[derive(Clone, Debug)]
pub struct Table {
    pub columns: Vec<&'static str>,
    pub rows: Vec<Vec<Cell>>,
    /// Empty: none are shown.
    pub totals: Vec<Cell>,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Format, String> {
        match name {
            "table" => Ok(Format::Table),
            "csv" => Ok(Format::Csv),
            "json" => Ok(Format::Json),
            _ => Err(format!(
                "unknown format `{name}`; expected `table`, `csv` or `json`"
            )),
        }
    }
}

impl Cell {
    /// The order of rows: null, then numbers by value, then text.
    pub fn order(&self, other: &Cell) -> Ordering {
        match (self, other) {
            (Cell::Bare(a), Cell::Bare(b)) => match (a.parse::<f64>(), b.parse::<f64>()) {
                (Ok(a), Ok(b)) => a.total_cmp(&b),
                _ => a.cmp(b),
            },
            _ => (self.rank(), self.text()).cmp(&(other.rank(), other.text())),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Cell::Null => 0,
            Cell::Bare(_) => 1,
            Cell::Decimal(_) => 2,
            Cell::Text(_) => 3,
        }
    }

    fn text(&self) -> &str {
        match self {
            Cell::Null => "",
            Cell::Bare(text) | Cell::Decimal(text) | Cell::Text(text) => text,
        }
    }

    /// For a terminal. Values come from clients: a control character in one must not reach the terminal.
    fn for_people(&self) -> String {
        match self {
            Cell::Null => "-".to_owned(),
            _ if self.text().chars().any(char::is_control) => {
                self.text().escape_debug().to_string()
            }
            _ => self.text().to_owned(),
        }
    }

    fn csv(&self) -> String {
        let text = self.text();
        if text.contains([',', '"', '\n', '\r']) {
            format!("\"{}\"", text.replace('"', "\"\""))
        } else {
            text.to_owned()
        }
    }

    fn json(&self) -> String {
        match self {
            Cell::Null => "null".to_owned(),
            Cell::Bare(text) => text.clone(),
            Cell::Decimal(text) | Cell::Text(text) => quote(text),
        }
    }
}

impl Table {
    pub fn write(&self, format: Format, out: &mut impl Write) -> io::Result<()> {
        match format {
            Format::Table => self.write_for_people(out),
            Format::Csv => self.write_csv(out),
            Format::Json => self.write_json(out),
        }
    }

    fn write_for_people(&self, out: &mut impl Write) -> io::Result<()> {
        let header = self.columns.iter().map(|name| (*name).to_owned()).collect();
        let rows = self
            .rows
            .iter()
            .chain(self.totals())
            .map(|row| row.iter().map(Cell::for_people).collect());
        let lines: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                lines
                    .iter()
                    .map(|line| line[column].chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        for line in &lines {
            let cells = line
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(column, (text, width))| match self.is_text(column) {
                    true => format!("{text:<width$}"),
                    false => format!("{text:>width$}"),
                });
            writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }

    fn write_csv(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{}", self.columns.join(","))?;
        for row in &self.rows {
            writeln!(
                out,
                "{}",
                row.iter().map(Cell::csv).collect::<Vec<_>>().join(",")
            )?;
        }
        Ok(())
    }

    fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        let object = |row: &Vec<Cell>| {
            let members = self
                .columns
                .iter()
                .zip(row)
                .map(|(name, cell)| format!("{}:{}", quote(name), cell.json()));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        };
        if self.rows.is_empty() {
            return writeln!(out, "[]");
        }
        writeln!(
            out,
            "[\n{}\n]",
            self.rows.iter().map(object).collect::<Vec<_>>().join(",\n")
        )
    }

    fn totals(&self) -> Option<&Vec<Cell>> {
        Some(&self.totals).filter(|totals| !totals.is_empty())
    }

    /// Whether a column holds text, which stands on the left; numbers stand on the right.
    fn is_text(&self, column: usize) -> bool {
        self.rows
            .iter()
            .chain(self.totals())
            .any(|row| matches!(row[column], Cell::Text(_)))
    }
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

    fn awkward() -> Table {
        let text = |text: &str| Cell::Text(text.to_owned());
        let bare = |text: &str| Cell::Bare(text.to_owned());
        Table {
            columns: vec!["name", "n", "usd"],
            rows: vec![
                vec![text("a,\"b\""), bare("1"), Cell::Null],
                vec![
                    text("\u{1b}[31mred\n"),
                    bare("20"),
                    Cell::Decimal("0.5".to_owned()),
                ],
                vec![Cell::Null, bare("true"), Cell::Null],
            ],
            totals: vec![text("total"), bare("21"), Cell::Decimal("0.5".to_owned())],
        }
    }

    #[test]
    fn people_get_aligned_columns_and_no_control_characters() {
        let expected = "\
name                n  usd
a,\"b\"               1    -
\\u{1b}[31mred\\n    20  0.5
-                true    -
total              21  0.5
";
        assert_eq!(written(&awkward(), Format::Table), expected);
    }

    #[test]
    fn csv_is_quoted_where_it_must_be() {
        let expected = "name,n,usd\n\"a,\"\"b\"\"\",1,\n\"\u{1b}[31mred\n\",20,0.5\n,true,\n";
        assert_eq!(written(&awkward(), Format::Csv), expected);
    }

    #[test]
    fn json_is_an_array_of_objects() {
        let value: serde_json::Value =
            serde_json::from_str(&written(&awkward(), Format::Json)).unwrap();
        let expected = serde_json::json!([
            {"name": "a,\"b\"", "n": 1, "usd": null},
            {"name": "\u{1b}[31mred\n", "n": 20, "usd": "0.5"},
            {"name": null, "n": true, "usd": null},
        ]);
        assert_eq!(value, expected);
    }

    #[test]
    fn rows_order_by_value() {
        let mut cells = ["10", "9.5", "-1"]
            .map(|text| Cell::Bare(text.to_owned()))
            .to_vec();
        cells.extend([Cell::Text("a".to_owned()), Cell::Null]);
        cells.sort_by(Cell::order);
        assert_eq!(
            cells.iter().map(Cell::text).collect::<Vec<_>>(),
            ["", "-1", "9.5", "10", "a"]
        );
    }
}
