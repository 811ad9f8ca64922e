//! What the rows of a report stand for: a field of the log, or the hour, day, week or month in which a request began.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use strum::{EnumIter, EnumString, IntoEnumIterator, IntoStaticStr};

use crate::accounting::access_log::line::{FIELDS, Field, Line, UnknownField};

const TIME: Field = Field::named("time");

/// In which no zone changes its offset, in seconds: what is worked out for one moment holds for all of a quarter of an hour.
const QUARTER: i64 = 900;

/// One of the values that a row is told from others by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupBy {
    /// The value of a field of the access log.
    Field(Field),
    /// The span of time in which the request began.
    Period(Period),
}

/// A span of civil time, by the time zone of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, EnumString, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Period {
    /// `2026-11-01T08:00+01:00`, with the offset, for an hour comes twice when clocks are set back.
    Hour,
    /// `2026-11-01`.
    Day,
    /// `2026-W44`, by ISO 8601: from Monday on.
    Week,
    /// `2026-11`.
    Month,
}

impl GroupBy {
    /// Groups by the field of this name. Panics where the access log has no such field.
    pub const fn field(name: &str) -> GroupBy {
        GroupBy::Field(Field::named(name))
    }

    /// The name of its column.
    pub fn name(self) -> &'static str {
        match self {
            GroupBy::Field(field) => field.name(),
            GroupBy::Period(period) => period.into(),
        }
    }

    /// The field of the log that it is read from.
    pub fn source(self) -> Field {
        match self {
            GroupBy::Field(field) => field,
            GroupBy::Period(_) => TIME,
        }
    }

    /// All names, periods first.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Period::iter().map(Into::into).chain(FIELDS)
    }
}

impl FromStr for GroupBy {
    /// Names the nearest field, and then all.
    type Err = String;

    fn from_str(name: &str) -> Result<GroupBy, String> {
        if let Ok(period) = name.parse() {
            return Ok(GroupBy::Period(period));
        }
        let field = name.parse().map(GroupBy::Field);
        field.map_err(|unknown: UnknownField| {
            let all: Vec<&str> = GroupBy::names().collect();
            format!("{unknown}\nFields: {}", all.join(", "))
        })
    }
}

/// As it is asked for.
impl fmt::Display for GroupBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Period {
    /// The period that a moment lies in.
    pub fn of(self, time: Timestamp, zone: &TimeZone) -> String {
        let time = time.to_zoned(zone.clone());
        match self {
            Period::Hour => time.strftime("%Y-%m-%dT%H:00%:z").to_string(),
            Period::Day => time.strftime("%Y-%m-%d").to_string(),
            Period::Week => time.strftime("%G-W%V").to_string(),
            Period::Month => time.strftime("%Y-%m").to_string(),
        }
    }
}

/// Works out the values of lines. Lines come nearly in the order of time, so the periods of the last moment are kept.
pub(crate) struct Values {
    zone: TimeZone,
    quarter: i64,
    /// By [`Period`], as raw JSON; empty where not worked out yet.
    periods: [String; 4],
}

impl Values {
    pub(crate) fn new(zone: TimeZone) -> Values {
        Values {
            zone,
            quarter: i64::MIN,
            periods: Default::default(),
        }
    }

    /// Raw JSON of the value: `null` where a line does not say it.
    pub(crate) fn raw<'v>(&'v mut self, by: GroupBy, line: &Line<'v>) -> &'v str {
        let period = match by {
            GroupBy::Field(field) => return line.raw(field),
            GroupBy::Period(period) => period,
        };
        let Some(time) = began(line) else {
            return "null";
        };
        let quarter = time.as_second().div_euclid(QUARTER);
        if quarter != self.quarter {
            self.quarter = quarter;
            self.periods.iter_mut().for_each(String::clear);
        }
        let text = &mut self.periods[period as usize];
        if text.is_empty() {
            *text = format!("\"{}\"", period.of(time, &self.zone));
        }
        text
    }
}

/// When the request of a line began.
pub(crate) fn began(line: &Line<'_>) -> Option<Timestamp> {
    line.text(TIME)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn periods(time: &str, zone: &str) -> Vec<String> {
        let zone = TimeZone::get(zone).unwrap();
        let time = time.parse().unwrap();
        Period::iter()
            .map(|period| period.of(time, &zone))
            .collect()
    }

    #[test]
    fn a_period_is_civil_time_in_the_zone() {
        assert_eq!(
            periods("2026-10-31T23:30:00Z", "UTC"),
            [
                "2026-10-31T23:00+00:00",
                "2026-10-31",
                "2026-W44",
                "2026-10"
            ]
        );
        assert_eq!(
            periods("2026-10-31T23:30:00Z", "Europe/Berlin"),
            [
                "2026-11-01T00:00+01:00",
                "2026-11-01",
                "2026-W44",
                "2026-11"
            ]
        );
    }

    #[test]
    fn a_week_begins_on_monday_and_belongs_to_the_year_of_its_thursday() {
        assert_eq!(periods("2026-11-02T00:00:00Z", "UTC")[2], "2026-W45");
        assert_eq!(periods("2027-01-01T00:00:00Z", "UTC")[2], "2026-W53");
    }

    #[test]
    fn the_hour_that_comes_twice_is_two_hours() {
        let first = periods("2026-10-25T00:30:00Z", "Europe/Berlin");
        let second = periods("2026-10-25T01:30:00Z", "Europe/Berlin");
        assert_eq!(
            (&*first[0], &*second[0]),
            ("2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00")
        );
    }
}
