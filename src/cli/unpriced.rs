//! `tiergate check --log`: the models of a log that the price file has no price for.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::accounting::access_log::line::{Line, Wanted};
use crate::accounting::prices::Prices;
use crate::cli::report::{Lines, Reading, ReportError, counts, is_connection, priced_tier};
use crate::config::diagnostic::{Diagnostic, Location};

const DEFAULT: &str = "default";

/// Models and tiers that are told one by one. Models are named by clients, who could name a new one each time.
const MAX_TOLD: usize = 100;

/// Requests of a log whose tokens have no price.
#[derive(Default)]
struct Unpriced {
    /// By model and tier.
    counts: BTreeMap<(String, String), u64>,
    others: u64,
}

/// A warning for each model and tier of these logs whose tokens have no price in this file. What is to be said about the logs
/// goes to `notes`.
///
/// # Errors
/// Where a log cannot be opened, or not all of it could be read.
pub fn warnings(
    prices: &Prices,
    path: &Path,
    logs: &[PathBuf],
    notes: &mut impl Write,
) -> Result<Vec<Diagnostic>, ReportError> {
    let reading = Reading::new(Some(prices), None);
    let mut unpriced = Unpriced::default();
    let wanted = Wanted::new(Reading::fields());
    let lines = Lines::read(logs, &wanted, notes, |line| {
        unpriced.count(prices, &reading, line);
        Ok(())
    })?;
    lines.result()?;
    Ok(unpriced.warnings(path))
}

impl Unpriced {
    fn count(&mut self, prices: &Prices, reading: &Reading<'_>, line: &Line<'_>) {
        let counts = counts(line);
        if is_connection(line) || counts.iter().all(Option::is_none) {
            return;
        }
        let tier = priced_tier(line);
        if reading
            .price(prices, line, counts, tier.as_deref())
            .is_some()
        {
            return;
        }
        let model = reading.priced_model(line, counts).unwrap_or_default();
        let tier = tier.as_deref().unwrap_or(DEFAULT).to_owned();
        let found = (model.into_owned(), tier);
        if self.counts.len() < MAX_TOLD || self.counts.contains_key(&found) {
            *self.counts.entry(found).or_default() += 1;
        } else {
            self.others += 1;
        }
    }

    fn warnings(self, path: &Path) -> Vec<Diagnostic> {
        let told = self.counts.into_iter().map(|((model, tier), count)| {
            let (model, tier) = (model.escape_debug(), tier.escape_debug());
            format!("no price for model `{model}` on tier `{tier}`; requests of the log: {count}")
        });
        let others = (self.others > 0).then(|| {
            format!(
                "no price for further models; requests of the log: {}",
                self.others
            )
        });
        let told = told.chain(others);
        told.map(|message| Diagnostic::warning(path, Location::START, message))
            .collect()
    }
}
