//! What a sum of costs does not have in it, and why: for a bill, what is left out is as important as what is in it.

use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::accounting::access_log::line::{Field, Line};
use crate::cli::report::sums::{
    OUTCOME, Reading, SERVICE_TIER_BILLED, Sums, USAGE_STATE, counts, is_partial,
};

const ENDPOINT: Field = Field::named("endpoint");
const ERROR: Field = Field::named("error");

/// Reasons that are counted one by one. Models are named by clients, who could name a new one each time.
const MAX_REASONS: usize = 1000;
/// Reasons that are told one by one.
const REASONS_TOLD: usize = 6;

/// Requests that add nothing, or not all that they used, to the sum of costs; by reason.
#[derive(Default)]
pub(super) struct NotInSum {
    unpriced: Reasons,
    without_usage: Reasons,
    /// Without a cost, for they do not tell their output.
    without_output: u64,
    /// Without a cost, for they tell their output only.
    without_input: u64,
    partial: u64,
}

#[derive(Default)]
struct Reasons {
    counts: BTreeMap<String, u64>,
    others: u64,
}

impl NotInSum {
    pub(super) const FIELDS: [Field; 3] = [ENDPOINT, ERROR, USAGE_STATE];

    /// Takes note of a line that was counted with these sums.
    pub(super) fn note(&mut self, line: &Line<'_>, sums: &Sums, reading: &Reading<'_>) {
        if sums.unpriced > 0 {
            let model = reading.priced_model(line, counts(line));
            self.unpriced.add(without_price(line, model.as_deref()));
        }
        if is_partial(line) && sums.cost.is_none() && sums.unpriced == 0 {
            let [_, _, _, output, ..] = counts(line);
            let without = match output {
                None => &mut self.without_output,
                Some(_) => &mut self.without_input,
            };
            *without += 1;
        } else if is_partial(line) {
            self.partial += 1;
        } else if sums.without_usage > 0 {
            self.without_usage.add(without_usage(line));
        }
    }

    pub(super) fn tell(&self, notes: &mut impl Write) -> io::Result<()> {
        self.unpriced.tell("requests without a price", notes)?;
        self.without_usage.tell("requests without usage", notes)?;
        for (requests, what) in [
            (self.without_output, "output"),
            (self.without_input, "input"),
        ] {
            if requests > 0 {
                writeln!(
                    notes,
                    "not in the sum: requests with partial usage, without their {what}: {requests}"
                )?;
            }
        }
        if self.partial > 0 {
            let partial = self.partial;
            writeln!(
                notes,
                "in the sum as far as it was told: requests with partial usage: {partial}"
            )?;
        }
        Ok(())
    }
}

impl Reasons {
    fn add(&mut self, reason: String) {
        if self.counts.len() < MAX_REASONS || self.counts.contains_key(&reason) {
            *self.counts.entry(reason).or_default() += 1;
        } else {
            self.others += 1;
        }
    }

    fn tell(&self, what: &str, notes: &mut impl Write) -> io::Result<()> {
        let all = self.counts.values().sum::<u64>() + self.others;
        if all == 0 {
            return Ok(());
        }
        let mut counts: Vec<_> = self.counts.iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let told = counts.iter().take(REASONS_TOLD);
        let mut parts: Vec<String> = told
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        let told: u64 = counts
            .iter()
            .take(REASONS_TOLD)
            .map(|(_, count)| **count)
            .sum();
        if told < all {
            parts.push(format!("{} for other reasons", all - told));
        }
        writeln!(
            notes,
            "not in the sum: {what}: {all} ({})",
            parts.join(", ")
        )
    }
}

/// Texts of clients are shown without control characters.
fn without_price(line: &Line<'_>, model: Option<&str>) -> String {
    let quoted = |text: Option<&str>, none: &str| match text {
        Some(text) => format!("`{}`", text.escape_debug()),
        None => none.to_owned(),
    };
    let tier = line.text(SERVICE_TIER_BILLED);
    format!(
        "of model {} on tier {}",
        quoted(model, "unknown"),
        quoted(tier.as_deref(), "`default`")
    )
}

fn without_usage(line: &Line<'_>) -> String {
    let text = |field: Field| {
        line.text(field)
            .unwrap_or_default()
            .escape_debug()
            .to_string()
    };
    if line.raw(USAGE_STATE) == "\"deferred\"" {
        return "deferred".to_owned();
    }
    match (line.raw(OUTCOME), line.text(ERROR)) {
        ("\"ok\"" | "null", _) => {
            format!("answered without usage on endpoint `{}`", text(ENDPOINT))
        }
        (_, Some(error)) => format!("{} `{}`", text(OUTCOME), error.escape_debug()),
        (_, None) => text(OUTCOME),
    }
}
