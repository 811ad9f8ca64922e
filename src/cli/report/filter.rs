//! Which requests a report counts: conditions on fields, and a window of time.

use std::fmt;
use std::str::FromStr;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan, Zoned};

use crate::accounting::access_log::line::{self, Line};
use crate::cli::report::group_by::{GroupBy, Values};

/// `field=value` or `field!=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The value of a request that is compared.
    pub by: GroupBy,
    equal: bool,
    value: String,
}

/// Requests that began at `since` or later, and before `until`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// The earliest beginning that counts; none for no bound.
    pub since: Option<Timestamp>,
    /// The first beginning that no longer counts; none for no bound.
    pub until: Option<Timestamp>,
}

impl Filter {
    pub(crate) fn takes(&self, values: &mut Values, line: &Line<'_>) -> bool {
        let raw = values.raw(self.by, line);
        let is = match line::decode(raw) {
            Some(text) => text == self.value,
            None => raw == self.value,
        };
        is == self.equal
    }
}

/// As it is written.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.equal { "=" } else { "!=" };
        write!(f, "{}{sign}{}", self.by, self.value)
    }
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Filter, String> {
        let (name, value) = text
            .split_once('=')
            .ok_or("expected `field=value` or `field!=value`")?;
        let (name, equal) = match name.strip_suffix('!') {
            Some(name) => (name, false),
            None => (name, true),
        };
        if value.starts_with('=') {
            return Err("expected `field=value` or `field!=value`, with one `=`".to_owned());
        }
        Ok(Filter {
            by: name.parse()?,
            equal,
            value: value.to_owned(),
        })
    }
}

impl Window {
    /// `now` gives the time zone as well.
    ///
    /// # Errors
    /// What is wrong with a text.
    pub fn new(since: Option<&str>, until: Option<&str>, now: &Zoned) -> Result<Window, String> {
        let bound = |text: Option<&str>| text.map(|text| parse_time(text, now)).transpose();
        let window = Window {
            since: bound(since)?,
            until: bound(until)?,
        };
        match (window.since, window.until) {
            (Some(since), Some(until)) if since >= until => Err(format!(
                "--since is not before --until, so that no request is between them: {since} and {until}"
            )),
            _ => Ok(window),
        }
    }

    /// A whole month, as `2026-10`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn month(text: &str, zone: &TimeZone) -> Result<Window, String> {
        let wrong = || format!("`{text}` is no month, as `2026-10` is");
        // A month alone is written with two digits, and so is this.
        let first: Date = match text.len() {
            7 => format!("{text}-01").parse().map_err(|_| wrong())?,
            _ => return Err(wrong()),
        };
        let start = |date: Date| date.to_zoned(zone.clone()).map(|zoned| zoned.timestamp());
        let next = first.checked_add(1.month()).map_err(|_| wrong())?;
        Ok(Window {
            since: Some(start(first).map_err(|_| wrong())?),
            until: Some(start(next).map_err(|_| wrong())?),
        })
    }

    pub(super) fn is_open(&self) -> bool {
        self.since.is_none() && self.until.is_none()
    }

    pub(super) fn takes(&self, time: Timestamp) -> bool {
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time < until)
    }
}

/// Reads the bound of a window: RFC 3339; a date, `today` or `yesterday`, which are their first moment in the zone of `now`; or
/// so many hours, days or weeks before now.
///
/// # Errors
/// A text that is none of these.
pub fn parse_time(text: &str, now: &Zoned) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let day = match text {
        "today" => Some(now.date()),
        "yesterday" => now.date().yesterday().ok(),
        _ => text.parse::<Date>().ok().filter(|_| text.len() == 10),
    };
    let zoned = match day {
        Some(day) => day.to_zoned(now.time_zone().clone()).ok(),
        None => ago(text).and_then(|span| now.checked_sub(span).ok()),
    };
    zoned.map(|zoned| zoned.timestamp()).ok_or_else(|| {
        format!(
            "`{text}` is no time; expected a date (`2026-11-01`), RFC 3339 (`2026-11-01T08:00:00Z`), `today`, \
             `yesterday`, or a time before now (`12h`, `7d`, `4w`)"
        )
    })
}

fn ago(text: &str) -> Option<Span> {
    let count = |unit: char| text.strip_suffix(unit)?.parse::<u32>().ok();
    let span = Span::new();
    match (count('h'), count('d'), count('w')) {
        (Some(hours), _, _) => span.try_hours(hours).ok(),
        (_, Some(days), _) => span.try_days(days).ok(),
        (_, _, Some(weeks)) => span.try_weeks(weeks).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Zoned {
        "2026-11-03T10:15:00+01:00[Europe/Berlin]".parse().unwrap()
    }

    #[test]
    fn a_time_is_read_in_each_of_its_forms() {
        for (text, expected) in [
            ("2026-11-01T08:00:00Z", "2026-11-01T08:00:00Z"),
            ("2026-11-01T08:00:00+02:00", "2026-11-01T06:00:00Z"),
            ("2026-11-01", "2026-10-31T23:00:00Z"),
            ("today", "2026-11-02T23:00:00Z"),
            ("yesterday", "2026-11-01T23:00:00Z"),
            ("12h", "2026-11-02T21:15:00Z"),
            // Clocks were set back on 25 October: a day is a day of the calendar.
            ("14d", "2026-10-20T08:15:00Z"),
            ("1w", "2026-10-27T09:15:00Z"),
        ] {
            let expected: Timestamp = expected.parse().unwrap();
            assert_eq!(parse_time(text, &now()), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "d",
            "7",
            "-7d",
            "7x",
            "2026-13-01",
            "2026-11",
            "tomorrow",
            "99999999999d",
        ] {
            assert!(parse_time(text, &now()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_month_ends_where_the_next_begins_in_its_zone() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let window = Window::month("2026-10", &berlin).unwrap();
        let [since, until] = ["2026-09-30T22:00:00Z", "2026-10-31T23:00:00Z"]
            .map(|time| Some(time.parse::<Timestamp>().unwrap()));
        assert_eq!(window, Window { since, until });
        for text in ["2026-13", "2026-1", "2026", "2026-10-01", "october"] {
            assert!(Window::month(text, &berlin).is_err(), "{text}");
        }
    }

    #[test]
    fn a_condition_names_a_field_that_exists() {
        assert!("group=fast".parse::<Filter>().is_ok());
        assert!("day!=2026-11-01".parse::<Filter>().is_ok());
        let why = "gruop=fast".parse::<Filter>().unwrap_err();
        assert!(why.contains("did you mean `group`?"), "{why}");
        assert!("group".parse::<Filter>().is_err());
    }
}
