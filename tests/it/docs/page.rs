//! A page of the documentation: its tables, blocks, headings and links.

use super::{read, root};

/// The pages for readers of this project, by their path in it.
pub fn pages() -> Vec<String> {
    let mut pages: Vec<String> = ["README", "CONTRIBUTING", "SECURITY", "CHANGELOG"]
        .map(|name| format!("{name}.md"))
        .into();
    let docs = std::fs::read_dir(root().join("docs")).unwrap();
    let names = docs.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut docs: Vec<String> = names
        .filter(|name| name.ends_with(".md"))
        .map(|name| format!("docs/{name}"))
        .collect();
    docs.sort();
    pages.append(&mut docs);
    pages
}

/// The rows of the tables of that page whose first column has that heading, each cell as it is written.
pub fn table(page: &str, heading: &str) -> Vec<Vec<String>> {
    let text = read(page);
    let begin = format!("\n| {heading} |");
    let tables = text.split(&begin).skip(1);
    let rows: Vec<Vec<String>> = tables
        .flat_map(|table| {
            // The rest of the headings, and the line below them.
            let lines = table.lines().skip(2);
            lines.take_while(|line| line.starts_with('|')).map(cells)
        })
        .collect();
    assert!(!rows.is_empty(), "no table `{heading}` in {page}");
    rows
}

/// A bar that is escaped does not end a cell.
fn cells(row: &str) -> Vec<String> {
    let row = row.trim().replace("\\|", "\u{0}");
    let cells = row.split('|').map(|cell| cell.trim().replace('\u{0}', "|"));
    let cells: Vec<String> = cells.collect();
    // Before the first bar and behind the last one there is nothing.
    cells[1..cells.len() - 1].to_vec()
}

/// What stands between backticks.
pub fn quoted(text: &str) -> Vec<String> {
    let parts = text.split('`').skip(1).step_by(2);
    parts.map(str::to_owned).collect()
}

/// The one thing in backticks.
pub fn name(cell: &str) -> String {
    let names = quoted(cell);
    assert_eq!(names.len(), 1, "one name in `{cell}`");
    names.into_iter().next().unwrap()
}

/// The one thing in backticks of each row's first cell.
pub fn names(page: &str, heading: &str) -> Vec<String> {
    let rows = table(page, heading);
    rows.iter().map(|row| name(&row[0])).collect()
}

/// The fenced blocks in that language.
pub fn blocks(page: &str, language: &str) -> Vec<String> {
    let text = read(page);
    let fence = format!("```{language}\n");
    let blocks = text.split(&fence).skip(1);
    blocks
        .map(|block| block.split("```").next().unwrap().to_owned())
        .collect()
}

/// The text without fenced and indented blocks.
pub fn prose(page: &str) -> String {
    let text = read(page);
    let outside = text.split("```").step_by(2).collect::<Vec<_>>().join("\n");
    let lines = outside.lines().filter(|line| !line.starts_with("    "));
    lines.collect::<Vec<_>>().join("\n")
}

pub fn headings(page: &str) -> Vec<String> {
    let text = prose(page);
    let lines = text.lines().filter(|line| line.starts_with('#'));
    lines
        .map(|line| line.trim_start_matches('#').trim().to_owned())
        .collect()
}

/// What a heading is linked by.
pub fn anchor(heading: &str) -> String {
    let kept = heading
        .to_lowercase()
        .chars()
        .filter(|sign| sign.is_alphanumeric() || " -_".contains(*sign))
        .collect::<String>();
    kept.replace(' ', "-")
}

/// Where the links of a page lead, as they are written.
pub fn links(page: &str) -> Vec<String> {
    let text = prose(page);
    let targets = text.split("](").skip(1);
    targets
        .map(|rest| rest.split(')').next().unwrap().to_owned())
        .collect()
}
