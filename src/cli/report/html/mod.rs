//! The report as a page that can be sent on: one file without scripts and without anything from outside, with charts as inline
//! SVG. All texts of the log are escaped.

mod chart;

use std::collections::BTreeMap;
use std::fmt::Write;

use jiff::ToSpan;
use jiff::civil::Date;
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;

use crate::accounting::access_log::line::{self, Field, Line};
use crate::cli::report::Options;
use crate::cli::report::group_by::{GroupBy, Period, Values};
use crate::cli::report::html::chart::{Bar, bars, lines, stacks};
use crate::cli::report::sums::{SERVICE_TIER_BILLED, Sums};
use crate::cli::report::table::{Table, thousands};

const KEY: Field = Field::named("key");
const GROUP: Field = Field::named("group");

const STYLE: &str = include_str!("style.css");

/// Keys that the page shows.
const TOP_KEYS: usize = 10;
/// Days that the page shows one by one; more are put together into months.
const MAX_DAYS: usize = 92;
/// Length of `2026-11` in `2026-11-01`.
const MONTH: usize = 7;

/// Tiers that are told apart, in the order of their colours; all others are `other`.
const TIERS: [&str; 4] = ["priority", "default", "flex", "other"];

/// What the charts show.
#[derive(Default)]
pub(super) struct Charts {
    total: Sums,
    days: BTreeMap<Box<str>, Day>,
    /// By raw JSON of the key's name and its group's.
    keys: BTreeMap<Box<str>, Sums>,
}

/// What requests of a day come to.
#[derive(Clone, Copy, Default)]
struct Day {
    /// By [`TIERS`].
    tiers: [Sums; TIERS.len()],
}

impl Charts {
    pub(super) const FIELDS: [Field; 2] = [KEY, GROUP];

    pub(super) fn add(&mut self, line: &Line<'_>, values: &mut Values, sums: &Sums) {
        self.total.add(sums);
        let day = values.raw(GroupBy::Period(Period::Day), line);
        if let Some(day) = line::decode(day) {
            self.days.entry(day.into()).or_default().tiers[tier_of(line)].add(sums);
        }
        let [key, group] = [KEY, GROUP].map(|field| line::own_spelling(line.raw(field)));
        let key = format!("{key}\n{group}");
        self.keys.entry(key.into()).or_default().add(sums);
    }

    /// The page. `table`: the report as a table for people shows it.
    pub(super) fn page(&self, table: &Table, options: &Options) -> String {
        let title = format!("tiergate report, {}", self.span());
        let zone = options.time_zone.iana_name().unwrap_or("UTC");
        let measure = self.measure();
        let sections = [
            section(
                &format!("{measure} by day and service tier"),
                &self.by_day(),
            ),
            section(
                "Downgrade rate: priority requests that were served on another tier",
                &self.downgrades(),
            ),
            section(&format!("Top keys: {measure}"), &self.top_keys()),
            section("Report", &table_of(table)),
        ];
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
             <style>\n{STYLE}</style>\n<body>\n<h1>{title}</h1>\n<p class=\"note\">Days of {}. {}</p>\n{}\n{}\n</body>\n</html>\n",
            escape(zone),
            self.left_out(),
            self.figures(),
            sections.join("\n")
        )
    }

    /// The first and the last day.
    fn span(&self) -> String {
        match (self.days.keys().next(), self.days.keys().next_back()) {
            (Some(first), Some(last)) if first != last => {
                format!("{} to {}", escape(first), escape(last))
            }
            (Some(day), _) => escape(day),
            _ => "no requests".to_owned(),
        }
    }

    /// Where no cost is known at all, requests are shown in its place.
    fn measure(&self) -> &'static str {
        if self.total.cost.is_some() {
            "Spend in USD"
        } else {
            "Requests"
        }
    }

    fn value(&self, sums: &Sums) -> f64 {
        match self.total.cost {
            Some(_) => sums.cost.and_then(|cost| cost.to_f64()).unwrap_or(0.0),
            None => sums.requests as f64,
        }
    }

    fn shown(&self, value: f64) -> String {
        match self.total.cost {
            Some(_) => thousands(&format!("{value:.2}")),
            None => thousands(&format!("{value:.0}")),
        }
    }

    fn left_out(&self) -> String {
        let Sums {
            unpriced,
            without_usage,
            ..
        } = self.total;
        if unpriced + without_usage == 0 {
            return String::new();
        }
        format!(
            "Not in the spend: requests without a price ({}) and without usage ({}).",
            thousands(&unpriced.to_string()),
            thousands(&without_usage.to_string())
        )
    }

    fn figures(&self) -> String {
        let total = &self.total;
        let count = |count: u64| thousands(&count.to_string());
        let cost = total.cost.and_then(|cost| cost.to_f64());
        let rate = total.downgrade_rate().map(percent);
        let unknown = || "unknown".to_owned();
        let figures = [
            (
                "spend, USD",
                cost.map_or_else(unknown, |cost| thousands(&format!("{cost:.2}"))),
            ),
            ("requests", count(total.requests)),
            ("refused", count(total.refused)),
            ("input tokens", count(total.tokens[0])),
            ("output tokens", count(total.tokens[3])),
            ("downgraded", rate.unwrap_or_else(|| "none sent".to_owned())),
        ];
        let figures = figures
            .map(|(name, value)| format!("<div><strong>{value}</strong><span>{name}</span></div>"));
        format!("<div class=\"figures\">{}</div>", figures.concat())
    }

    /// By day, or by month where there are too many of them; all between the first and the last.
    fn periods(&self) -> Vec<(String, Day)> {
        let by_month = self.days.len() > MAX_DAYS;
        let mut periods: BTreeMap<String, Day> = BTreeMap::new();
        for day in self.all_days().filter(|_| !by_month) {
            periods.entry(day).or_default();
        }
        for (day, sums) in &self.days {
            let name = if by_month { day.get(..MONTH) } else { None };
            let period = periods.entry(name.unwrap_or(day).to_owned()).or_default();
            for (all, more) in period.tiers.iter_mut().zip(&sums.tiers) {
                all.add(more);
            }
        }
        periods.into_iter().collect()
    }

    /// From the first to the last, also those without requests. None where the log spans more than are shown one by one.
    fn all_days(&self) -> impl Iterator<Item = String> {
        let day = |text: Option<&Box<str>>| text.and_then(|text| text.parse::<Date>().ok());
        let (first, last) = (
            day(self.days.keys().next()),
            day(self.days.keys().next_back()),
        );
        let days = first.into_iter().flat_map(|first| first.series(1.day()));
        let days = days.take_while(move |day| Some(*day) <= last);
        let days: Vec<String> = days.take(MAX_DAYS + 1).map(|day| day.to_string()).collect();
        let few = days.len() <= MAX_DAYS;
        days.into_iter().filter(move |_| few)
    }

    fn by_day(&self) -> String {
        let periods = self.periods().into_iter().map(|(name, day)| {
            let values = day.tiers.map(|sums| self.value(&sums));
            (name, values)
        });
        stacks(&periods.collect::<Vec<_>>(), &TIERS, |value| {
            self.shown(value)
        })
    }

    fn downgrades(&self) -> String {
        let rates = self.periods().into_iter().map(|(name, day)| {
            let mut sums = Sums::default();
            day.tiers.iter().for_each(|tier| sums.add(tier));
            (name, sums.downgrade_rate().and_then(|rate| rate.to_f64()))
        });
        lines(&rates.collect::<Vec<_>>())
    }

    fn top_keys(&self) -> String {
        let mut keys: Vec<(&str, f64)> = self
            .keys
            .iter()
            .map(|(key, sums)| (&**key, self.value(sums)))
            .collect();
        keys.sort_by(|a, b| b.1.total_cmp(&a.1));
        let keys = keys.into_iter().take(TOP_KEYS).map(|(key, value)| Bar {
            name: key_name(key),
            value,
            shown: self.shown(value),
        });
        bars(&keys.collect::<Vec<_>>())
    }
}

fn tier_of(line: &Line<'_>) -> usize {
    let billed = line.text(SERVICE_TIER_BILLED);
    let tier = billed.as_deref().unwrap_or("default");
    let tier = if tier == "fast" { "priority" } else { tier };
    let known = TIERS.iter().position(|name| *name == tier);
    known.unwrap_or(TIERS.len() - 1)
}

/// Name and group of a key, out of a key of [`Charts::keys`].
fn key_name(raw: &str) -> String {
    let (key, group) = raw.split_once('\n').unwrap_or((raw, "null"));
    let name =
        line::decode(key).map_or_else(|| "(no listed key)".to_owned(), |key| key.into_owned());
    match line::decode(group) {
        Some(group) => format!("{name} ({group})"),
        None => name,
    }
}

fn section(title: &str, content: &str) -> String {
    format!("<section>\n<h2>{title}</h2>\n{content}\n</section>")
}

fn table_of(table: &Table) -> String {
    let mut html = String::from("<div class=\"scroll\"><table>\n");
    let (lines, numbers) = table.lines_for_people();
    for (number, cells) in lines.iter().enumerate() {
        let tag = if number == 0 { "th" } else { "td" };
        html.push_str("<tr>");
        for (cell, numeric) in cells.iter().zip(&numbers) {
            let class = if *numeric { " class=\"number\"" } else { "" };
            // Writing to a string does not fail.
            let _ = write!(html, "<{tag}{class}>{}</{tag}>", escape(cell));
        }
        html.push_str("</tr>\n");
    }
    html + "</table></div>"
}

fn percent(share: Decimal) -> String {
    format!(
        "{}%",
        (share * Decimal::ONE_HUNDRED).round_dp(1).normalize()
    )
}

/// For the text and the attributes of a page.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            letter if letter.is_control() => escaped.push('\u{fffd}'),
            letter => escaped.push(letter),
        }
    }
    escaped
}
