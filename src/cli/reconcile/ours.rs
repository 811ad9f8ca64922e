//! What the log says was used, and which of its lines could have been counted otherwise by the provider.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use strum::{EnumCount, IntoEnumIterator};

use crate::accounting::access_log::line::{Field, Line};
use crate::cli::reconcile::background::{Background, Part, Response};
use crate::cli::reconcile::entry::{Cause, Entry};
use crate::cli::reconcile::provider::{Provider, tier_name};
use crate::cli::reconcile::{Dimension, Key, Used, day_of};
use crate::cli::report::group_by::began;
use crate::cli::report::{is_connection, is_refused};

const CACHED_INPUT_TOKENS: Field = Field::named("cached_input_tokens");
const DURATION_MS: Field = Field::named("duration_ms");
const ENDPOINT: Field = Field::named("endpoint");
const EVENT_ID: Field = Field::named("event_id");
const INPUT_TOKENS: Field = Field::named("input_tokens");
const MODEL: Field = Field::named("model");
const MODEL_SERVED: Field = Field::named("model_served");
const OF_REQUEST: Field = Field::named("of_request");
const OUTCOME: Field = Field::named("outcome");
const OUTPUT_TOKENS: Field = Field::named("output_tokens");
const REQUEST_ID: Field = Field::named("request_id");
const RESPONSE_ID: Field = Field::named("response_id");
const SERVICE_TIER_BILLED: Field = Field::named("service_tier_billed");
const TIER_BILLED_BY: Field = Field::named("tier_billed_by");
const TRANSPORT: Field = Field::named("transport");
const TURN: Field = Field::named("turn");
const UPSTREAM: Field = Field::named("upstream");
const UPSTREAM_STATUS: Field = Field::named("upstream_status");
const USAGE_STATE: Field = Field::named("usage_state");

/// The fields that it looks at.
pub(super) const FIELDS: [Field; 19] = [
    CACHED_INPUT_TOKENS,
    DURATION_MS,
    ENDPOINT,
    EVENT_ID,
    INPUT_TOKENS,
    MODEL,
    MODEL_SERVED,
    OF_REQUEST,
    OUTCOME,
    OUTPUT_TOKENS,
    REQUEST_ID,
    RESPONSE_ID,
    SERVICE_TIER_BILLED,
    TIER_BILLED_BY,
    TRANSPORT,
    TURN,
    UPSTREAM,
    UPSTREAM_STATUS,
    USAGE_STATE,
];

const NO_TIME: &str = "no `time` by which it could be compared";

/// Lines that are named for each cause.
const LINES_NAMED: usize = 3;

/// One row of the log.
#[derive(Clone, Default)]
pub(super) struct Row {
    pub(super) used: Used,
    /// By [`Cause`].
    pub(super) suspects: [Suspects; Cause::COUNT],
}

/// Lines with one cause.
#[derive(Clone, Default)]
pub(super) struct Suspects {
    pub(super) count: u64,
    /// `event_id` of the first.
    pub(super) lines: Vec<String>,
}

/// What was read of the log.
pub(super) struct Ours<'o> {
    by: &'o [Dimension],
    provider: &'o Provider,
    pub(super) rows: BTreeMap<Key, Row>,
    background: Background,
    /// Requests that began outside of what the provider's answer covers.
    pub(super) outside: u64,
}

impl<'o> Ours<'o> {
    pub(super) fn new(by: &'o [Dimension], provider: &'o Provider) -> Ours<'o> {
        Ours {
            by,
            provider,
            rows: BTreeMap::new(),
            background: Background::default(),
            outside: 0,
        }
    }

    pub(super) fn count(&mut self, line: &Line<'_>) -> Result<(), String> {
        if is_told_elsewhere(line) || is_connection(line) || is_refused(line) {
            return Ok(());
        }
        if !is_answered(line) {
            return self.suspect_unanswered(line);
        }
        let time = began(line).ok_or(NO_TIME)?;
        let part = self.part(time);
        if let Some(request) = line.text(OF_REQUEST) {
            let mut response = self.response(line, time, request.into_owned());
            response.entry.used.0[0] = 0;
            self.background.fetch(response);
            return Ok(());
        }
        self.outside += u64::from(part != Part::Within);
        if line.raw(USAGE_STATE) == "\"deferred\"" {
            let request = line.text(REQUEST_ID).unwrap_or_default();
            let response = self.response(line, time, request.into_owned());
            self.background.create(response);
        } else if part == Part::Within {
            let entry = self.entry(line, time);
            self.add(entry);
        }
        Ok(())
    }

    /// Counts background responses, with the usage that was fetched for them.
    pub(super) fn finish(&mut self) {
        let background = std::mem::take(&mut self.background);
        for entry in background.entries(self.by) {
            self.add(entry);
        }
    }

    fn add(&mut self, entry: Entry) {
        let row = self.rows.entry(entry.key).or_default();
        row.used.add(&entry.used);
        for cause in entry.causes {
            row.suspects[cause as usize].add(&entry.event);
        }
    }

    fn response(&self, line: &Line<'_>, time: Timestamp, request: String) -> Response {
        Response {
            request,
            id: line.text(RESPONSE_ID).map(Cow::into_owned),
            part: self.part(time),
            entry: self.entry(line, time),
        }
    }

    fn entry(&self, line: &Line<'_>, time: Timestamp) -> Entry {
        Entry {
            key: self.key(line, time),
            used: used(line),
            causes: causes(line, time),
            event: line.text(EVENT_ID).unwrap_or_default().into_owned(),
        }
    }

    /// What an upstream refused used nothing. What it was sent and did not answer, it may have counted.
    fn suspect_unanswered(&mut self, line: &Line<'_>) -> Result<(), String> {
        if line.raw(UPSTREAM) == "null" || line.raw(UPSTREAM_STATUS) != "null" {
            return Ok(());
        }
        let time = began(line).ok_or(NO_TIME)?;
        if self.part(time) == Part::Within {
            let mut entry = self.entry(line, time);
            entry.used = Used::default();
            entry.causes = vec![Cause::Unanswered];
            self.add(entry);
        }
        Ok(())
    }

    fn part(&self, time: Timestamp) -> Part {
        match time.as_second() {
            second if second < self.provider.since => Part::Before,
            second if second < self.provider.until => Part::Within,
            _ => Part::After,
        }
    }

    fn key(&self, line: &Line<'_>, time: Timestamp) -> Key {
        let served = line.text(MODEL_SERVED);
        let parts = self.by.iter().map(|dimension| match dimension {
            Dimension::Day => day_of(time),
            Dimension::Model => {
                let model = served.clone().or_else(|| line.text(MODEL));
                self.provider.name_of(&model.unwrap_or_default()).to_owned()
            }
            Dimension::ServiceTier => {
                tier_name(line.text(SERVICE_TIER_BILLED).as_deref()).to_owned()
            }
        });
        parts.collect()
    }
}

impl Row {
    /// Each cause with its lines, where there are any.
    pub(super) fn causes(&self) -> impl Iterator<Item = (Cause, &Suspects)> {
        Cause::iter()
            .zip(&self.suspects)
            .filter(|(_, suspects)| suspects.count > 0)
    }
}

impl Suspects {
    pub(super) fn join(&mut self, others: &Suspects) {
        self.count += others.count;
        let room = LINES_NAMED.saturating_sub(self.lines.len());
        let more = others.lines.iter().take(room).cloned();
        self.lines.extend(more);
    }

    fn add(&mut self, event: &str) {
        self.count += 1;
        if self.lines.len() < LINES_NAMED {
            self.lines.push(event.to_owned());
        }
    }
}

/// The usage of embeddings is told elsewhere, and other requests have none.
fn is_told_elsewhere(line: &Line<'_>) -> bool {
    match line.raw(ENDPOINT) {
        "\"other\"" | "\"embeddings\"" => true,
        "\"responses_item\"" => line.raw(OF_REQUEST) == "null",
        _ => false,
    }
}

fn is_answered(line: &Line<'_>) -> bool {
    line.count(UPSTREAM_STATUS)
        .is_some_and(|status| status < 400)
}

fn used(line: &Line<'_>) -> Used {
    let count = |field| line.count(field).unwrap_or(0);
    Used([
        1,
        count(INPUT_TOKENS),
        count(CACHED_INPUT_TOKENS),
        count(OUTPUT_TOKENS),
    ])
}

fn causes(line: &Line<'_>, time: Timestamp) -> Vec<Cause> {
    let mut causes = Vec::new();
    match (line.raw(USAGE_STATE), line.raw(OUTCOME)) {
        ("\"deferred\"", _) => causes.push(Cause::Background),
        // Both sides know all of it.
        ("\"final\"", _) => {}
        (_, "\"upstream_error\"") => causes.push(Cause::Failed),
        (_, "\"ok\"") => causes.push(Cause::WithoutUsage),
        _ => causes.push(Cause::Cut),
    }
    let duration = line.raw(DURATION_MS).parse::<f64>().unwrap_or(0.0);
    let duration = SignedDuration::try_from_secs_f64(duration / 1000.0).unwrap_or_default();
    let end = time.checked_add(duration);
    if end.is_ok_and(|end| day_of(end) != day_of(time)) {
        causes.push(Cause::Midnight);
    }
    if line.raw(TIER_BILLED_BY) == "\"sent\"" {
        causes.push(Cause::TierUnconfirmed);
    }
    causes
}
