//! What can explain the difference of one row, and how much of it: what explains most comes first, and what nothing explains
//! is told as well.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::cli::reconcile::Dimension;
use crate::cli::reconcile::entry::Cause;
use crate::cli::reconcile::ours::{Row, Suspects};
use crate::cli::report::table::Cell;
use crate::config::units::counted;

/// Requests, input, cached input and output tokens that the provider has more than the log.
pub(super) type Difference = [i64; 4];

/// More tokens than one request can use: twice the longest context of a model.
const MOST_TOKENS: u64 = 2_000_000;

/// The part of a difference that another row has with the opposite sign.
pub(super) struct Moved<'k> {
    pub(super) dimension: Dimension,
    /// By which both rows are told apart.
    pub(super) values: BTreeSet<&'k str>,
    pub(super) amounts: Difference,
}

/// The reasons of one row.
pub(super) struct Reasons<'r> {
    row: &'r Row,
    difference: Difference,
    /// What no reason explains yet.
    left: Difference,
    reasons: Vec<Reason>,
    /// Requests and lines that can have used tokens which one side alone has.
    users: u64,
}

struct Reason {
    /// Requests that it explains.
    requests: u64,
    text: String,
    lines: Vec<String>,
}

impl<'r> Reasons<'r> {
    pub(super) fn new(row: &'r Row, difference: Difference) -> Reasons<'r> {
        Reasons {
            row,
            difference,
            left: difference,
            reasons: Vec::new(),
            users: 0,
        }
    }

    /// What no reason explains yet.
    pub(super) fn left(&self) -> Difference {
        self.left
    }

    /// Both sides have these, in different rows.
    pub(super) fn moved(&mut self, moved: &Moved<'_>) {
        let requests = moved.amounts[0].unsigned_abs();
        // Lines of this row can be in another one of the provider, not the other way round.
        if moved.amounts[0] < 0 {
            let causes = self.row.causes();
            for (cause, suspects) in
                causes.filter(|(cause, _)| cause.moves() == Some(moved.dimension))
            {
                self.suspect(cause, suspects, requests.min(suspects.count));
            }
        }
        let is_all = moved.amounts[0] == self.difference[0];
        self.explained(requests, moved.text(is_all));
        for (left, moved) in self.left.iter_mut().zip(moved.amounts) {
            *left -= moved;
        }
    }

    /// Requests that one side alone has; `missing`: lines that the log lacks.
    pub(super) fn requests(&mut self, missing: u64) {
        let fits = if self.left[0] > 0 {
            Cause::adds_requests
        } else {
            Cause::takes_requests
        };
        for (cause, suspects) in self.row.causes().filter(|(cause, _)| fits(*cause)) {
            let requests = suspects.count.min(self.left[0].unsigned_abs());
            if requests > 0 {
                self.suspect(cause, suspects, requests);
                self.users += requests;
                self.left[0] -= self.left[0].signum() * requests.cast_signed();
            }
        }
        let requests = self.left[0].unsigned_abs();
        match self.left[0] {
            0 => {}
            1.. => self.explained(requests, not_in_the_log(requests, missing)),
            _ => {
                let requests_told = counted(requests, "request");
                self.explained(
                    requests,
                    format!("{requests_told} that the provider does not count"),
                );
            }
        }
    }

    /// Tokens that the provider alone has, and those that are too many for the lines that can explain them.
    pub(super) fn tokens(&mut self) {
        if self.left[1..].iter().any(|tokens| *tokens > 0) {
            for (cause, suspects) in self.row.causes().filter(|(cause, _)| cause.hides_tokens()) {
                self.suspect(cause, suspects, 0);
                self.users += suspects.count;
            }
        }
        let [_, input, _, output] = self.left;
        let tokens = input.unsigned_abs().saturating_add(output.unsigned_abs());
        let unexplained = tokens.saturating_sub(self.users.saturating_mul(MOST_TOKENS));
        if self.reasons.is_empty() {
            self.explained(0, "nothing in the log explains it".to_owned());
        } else if unexplained > 0 {
            let tokens = counted(unexplained, "token");
            self.explained(0, format!("nothing in the log explains {tokens}"));
        }
    }

    /// Why, and the lines that it is about.
    pub(super) fn cells(mut self) -> (Cell, Cell) {
        self.reasons.sort_by_key(|reason| Reverse(reason.requests));
        let texts: Vec<&str> = self.reasons.iter().map(|reason| &*reason.text).collect();
        let lines: Vec<&str> = self
            .reasons
            .iter()
            .flat_map(|reason| &reason.lines)
            .map(|line| &**line)
            .collect();
        let lines = if lines.is_empty() {
            Cell::Null
        } else {
            Cell::text(lines.join(" "))
        };
        (Cell::text(texts.join("; ")), lines)
    }

    /// `requests`: how many of them explain a request; 0 where they explain tokens alone.
    fn suspect(&mut self, cause: Cause, suspects: &Suspects, requests: u64) {
        let (name, count) = (<&str>::from(cause), suspects.count);
        let text = if (1..count).contains(&requests) {
            format!("{requests} of {count} {name}")
        } else {
            format!("{count} {name}")
        };
        self.reasons.push(Reason {
            requests,
            text,
            lines: suspects.lines.clone(),
        });
    }

    fn explained(&mut self, requests: u64, text: String) {
        self.users += requests;
        self.reasons.push(Reason {
            requests,
            text,
            lines: Vec::new(),
        });
    }
}

impl Moved<'_> {
    fn text(&self, is_all: bool) -> String {
        let requests = counted(self.amounts[0].unsigned_abs(), "request");
        let (one, several) = match self.dimension {
            Dimension::Day => ("day", "days"),
            Dimension::Model => {
                let names = self.values.iter().map(|name| format!("`{name}`"));
                let names = names.collect::<Vec<_>>().join(" and ");
                return format!("{requests} of the same model under two names: {names}");
            }
            Dimension::ServiceTier => ("tier", "tiers"),
        };
        if is_all {
            format!("the provider has them on another {one}")
        } else {
            format!("{requests} that both sides have, on different {several}")
        }
    }
}

fn not_in_the_log(requests: u64, missing: u64) -> String {
    let told = format!("requests that are not in the log: {requests}");
    match missing {
        0 => format!("{told}; did they go another way?"),
        _ if missing < requests => {
            format!("{told}; lines that it lacks: {missing}; did the others go another way?")
        }
        _ => format!("{told}; lines that it lacks: {missing}"),
    }
}

/// What two differences of opposite signs have in common, with the sign of the first; 0 where the signs are alike.
pub(super) fn opposite(one: i64, other: i64) -> i64 {
    if one.signum() == -other.signum() {
        one.signum() * one.abs().min(other.abs())
    } else {
        0
    }
}
