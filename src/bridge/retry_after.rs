//! When to come again, as upstreams tell it: seconds with or without a fraction, or a date. Clients get whole seconds.

use super::json::{Node, to_string};

/// The longest that is told, in seconds: a year. Of what is longer nobody has thought.
const LONGEST: u64 = 366 * 24 * 3600;

/// A number of seconds, rounded up.
pub(crate) fn seconds_of(node: &Node<'_>) -> Option<u64> {
    whole_seconds(&match node {
        Node::Text(text) => text.plain().into_owned(),
        node => to_string(node),
    })
}

/// Seconds from their decimal spelling, rounded up.
fn whole_seconds(spelled: &str) -> Option<u64> {
    let seconds: f64 = spelled.trim().parse().ok()?;
    (0.0..=LONGEST as f64)
        .contains(&seconds)
        .then_some(seconds.ceil() as u64)
}

/// `retry-after` in seconds: a number, or an HTTP date (RFC 9110 §5.6.7) in its preferred form.
pub(crate) fn seconds(value: &str, now: u64) -> Option<u64> {
    let until = || Some(http_date(value)?.saturating_sub(now));
    whole_seconds(value).or_else(|| until().filter(|seconds| *seconds <= LONGEST))
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (_, date) = text.trim().split_once(", ")?;
    let fields: Vec<&str> = date.split([' ', ':']).collect();
    let [day, month, year, hour, minute, second, "GMT"] = fields[..] else {
        return None;
    };
    let month = MONTHS.iter().position(|name| *name == month)? as u64;
    let number = |text: &str| text.parse::<u64>().ok().filter(|number| *number < 10_000);
    let days = days_since_1970(number(year)?, month, number(day)?)?;
    Some(((days * 24 + number(hour)?) * 60 + number(minute)?) * 60 + number(second)?)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar; January is month 0.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    const BEFORE: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    let is_leap = leaps(year) > leaps(year.checked_sub(1)?);
    let this_year =
        BEFORE.get(month as usize)? + day.checked_sub(1)? + u64::from(is_leap && month > 1);
    Some(year.checked_sub(1970)? * 365 + leaps(year - 1) - leaps(1969) + this_year)
}
