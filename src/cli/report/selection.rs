//! Which lines a report selects, and if that is none, why: a misspelt condition must not look like a month without requests.

use std::io::{self, Write};

use jiff::Timestamp;

use crate::accounting::access_log::line::Line;
use crate::cli::report::filter::{Filter, Window};
use crate::cli::report::group_by::{Values, began};

/// A window and conditions, and what was met so far.
pub(super) struct Selection<'o> {
    window: Window,
    filters: &'o [Filter],
    /// The first and the last beginning of all requests; looked at only where there is a window.
    span: Option<(Timestamp, Timestamp)>,
    /// Whether there was a line in the window, and for each condition whether one of those met it.
    is_in_window: bool,
    met: Vec<bool>,
}

impl<'o> Selection<'o> {
    pub(super) fn new(window: Window, filters: &'o [Filter]) -> Selection<'o> {
        Selection {
            window,
            filters,
            span: None,
            is_in_window: false,
            met: vec![false; filters.len()],
        }
    }

    /// Whether a line is selected.
    ///
    /// # Errors
    /// Why that cannot be told.
    pub(super) fn takes(&mut self, line: &Line<'_>, values: &mut Values) -> Result<bool, String> {
        if !self.is_in_window(line)? {
            return Ok(false);
        }
        self.is_in_window = true;
        let mut takes = true;
        for (filter, met) in self.filters.iter().zip(&mut self.met) {
            let is_met = filter.takes(values, line);
            *met |= is_met;
            takes &= is_met;
        }
        Ok(takes)
    }

    fn is_in_window(&mut self, line: &Line<'_>) -> Result<bool, String> {
        if self.window.is_open() {
            return Ok(true);
        }
        let time = began(line).ok_or("no `time` that could be compared with the window")?;
        let (first, last) = self.span.unwrap_or((time, time));
        self.span = Some((first.min(time), last.max(time)));
        Ok(self.window.takes(time))
    }

    /// Says why no request was selected.
    pub(super) fn tell_none(&self, notes: &mut impl Write) -> io::Result<()> {
        let unmet = self.filters.iter().zip(&self.met);
        let mut unmet = unmet.filter(|(_, met)| !**met).peekable();
        match (self.is_in_window, self.span) {
            (false, Some((first, last))) => writeln!(
                notes,
                "no request is within that time: those of the logs began from {first} to {last}"
            ),
            (false, None) => writeln!(notes, "there is no request in the logs"),
            (true, _) if unmet.peek().is_none() => {
                writeln!(notes, "no request meets all conditions")
            }
            (true, _) => {
                unmet.try_for_each(|(filter, _)| writeln!(notes, "no request has `{filter}`"))
            }
        }
    }
}
