//! When to come again, as upstreams tell it: seconds with or without a fraction, or a date. Clients get whole seconds.

use std::time::UNIX_EPOCH;

use httpdate::parse_http_date;

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

/// `retry-after` in seconds: a number, or an HTTP date (RFC 9110 §5.6.7). `now`: seconds since 1970.
pub(crate) fn seconds(value: &str, now: u64) -> Option<u64> {
    let until = || {
        let date = parse_http_date(value).ok()?;
        let date = date.duration_since(UNIX_EPOCH).ok()?;
        Some(date.as_secs().saturating_sub(now))
    };
    whole_seconds(value).or_else(|| until().filter(|seconds| *seconds <= LONGEST))
}
