//! What the log says was used, and which of its lines could have been counted otherwise by the provider.

use std::collections::{BTreeMap, HashMap};

use jiff::{SignedDuration, Timestamp};
use strum::{EnumCount, EnumIter, IntoEnumIterator, IntoStaticStr};

use crate::accounting::access_log::line::{Field, Line};
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
const OUTCOME: Field = Field::named("outcome");
const OUTPUT_TOKENS: Field = Field::named("output_tokens");
const REQUEST_ID: Field = Field::named("request_id");
const SERVICE_TIER_BILLED: Field = Field::named("service_tier_billed");
const TIER_BILLED_BY: Field = Field::named("tier_billed_by");
const TRANSPORT: Field = Field::named("transport");
const TURN: Field = Field::named("turn");
const UPSTREAM: Field = Field::named("upstream");
const UPSTREAM_STATUS: Field = Field::named("upstream_status");
const USAGE_STATE: Field = Field::named("usage_state");

const NO_TIME: &str = "no `time` by which it could be compared";

/// Lines that are named for each cause.
const LINES_NAMED: usize = 3;

/// Why the provider may have counted something else for a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, EnumIter, IntoStaticStr)]
pub(super) enum Cause {
    /// The upstream may have worked for it: it was reset, timed out, or its client left before the answer.
    #[strum(serialize = "sent upstream and not answered")]
    Unanswered,
    /// Its usage comes when somebody asks for the response.
    #[strum(serialize = "background, never fetched")]
    Background,
    #[strum(serialize = "cut off before the usage")]
    Cut,
    #[strum(serialize = "failed upstream")]
    Failed,
    #[strum(serialize = "answered without usage")]
    WithoutUsage,
    #[strum(serialize = "ran over midnight")]
    Midnight,
    #[strum(serialize = "whose tier the answer did not confirm")]
    TierUnconfirmed,
}

impl Cause {
    /// Whether the provider may count a request that the row has not.
    pub(super) fn adds_requests(self) -> bool {
        self == Cause::Unanswered
    }

    /// Whether the provider may leave a request out that the row has.
    pub(super) fn takes_requests(self) -> bool {
        self == Cause::Failed
    }

    /// By what the row differs that the provider may have it in.
    pub(super) fn moves(self) -> Option<Dimension> {
        match self {
            Cause::Midnight => Some(Dimension::Day),
            Cause::TierUnconfirmed => Some(Dimension::ServiceTier),
            _ => None,
        }
    }

    /// Whether the provider may know tokens that the log does not.
    pub(super) fn hides_tokens(self) -> bool {
        matches!(
            self,
            Cause::Background | Cause::Cut | Cause::Failed | Cause::WithoutUsage
        )
    }
}

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
    model_served: Option<Field>,
    of_request: Option<Field>,
    pub(super) rows: BTreeMap<Key, Row>,
    /// Background responses whose usage has not been seen, by the request that made them.
    deferred: HashMap<String, (Key, String)>,
    /// Usage of background responses, by the request that made them.
    fetched: HashMap<String, (Key, Used)>,
    /// Requests that began outside of what the provider's answer covers.
    pub(super) outside: u64,
}

impl<'o> Ours<'o> {
    pub(super) fn new(by: &'o [Dimension], provider: &'o Provider) -> Ours<'o> {
        Ours {
            by,
            provider,
            model_served: "model_served".parse().ok(),
            of_request: "of_request".parse().ok(),
            rows: BTreeMap::new(),
            deferred: HashMap::new(),
            fetched: HashMap::new(),
            outside: 0,
        }
    }

    /// The fields that it looks at.
    pub(super) fn fields(&self) -> impl Iterator<Item = Field> {
        let fixed = [
            CACHED_INPUT_TOKENS,
            DURATION_MS,
            ENDPOINT,
            EVENT_ID,
            INPUT_TOKENS,
            MODEL,
            OUTCOME,
            OUTPUT_TOKENS,
            REQUEST_ID,
            SERVICE_TIER_BILLED,
            TIER_BILLED_BY,
            TRANSPORT,
            TURN,
            UPSTREAM,
            UPSTREAM_STATUS,
            USAGE_STATE,
        ];
        let optional = [self.model_served, self.of_request];
        fixed.into_iter().chain(optional.into_iter().flatten())
    }

    pub(super) fn count(&mut self, line: &Line<'_>) -> Result<(), String> {
        if self.is_told_elsewhere(line) || is_connection(line) || is_refused(line) {
            return Ok(());
        }
        if !is_answered(line) {
            return self.suspect_unanswered(line);
        }
        let time = began(line).ok_or(NO_TIME)?;
        if !self.covers(time) {
            self.outside += 1;
            return Ok(());
        }
        let key = self.key(line, time);
        let text = |field| line.text(field).unwrap_or_default().into_owned();
        let created_by = self.of_request.and_then(|field| line.text(field));
        if let Some(request) = created_by {
            let used = Used {
                requests: 0,
                ..used(line)
            };
            self.fetched.insert(request.into_owned(), (key, used));
            return Ok(());
        }
        let row = self.rows.entry(key.clone()).or_default();
        row.used.add(&used(line));
        for cause in causes(line, time) {
            if cause == Cause::Background {
                self.deferred
                    .insert(text(REQUEST_ID), (key.clone(), text(EVENT_ID)));
            } else {
                row.suspects[cause as usize].add(&text(EVENT_ID));
            }
        }
        Ok(())
    }

    /// Brings the usage of background responses to the requests that made them.
    pub(super) fn finish(&mut self) {
        for (request, (own_key, used)) in std::mem::take(&mut self.fetched) {
            let made = self.deferred.remove(&request);
            let key = made.map_or(own_key, |(key, _)| key);
            self.rows.entry(key).or_default().used.add(&used);
        }
        let mut deferred: Vec<_> = std::mem::take(&mut self.deferred).into_values().collect();
        deferred.sort_unstable_by(|a, b| a.1.cmp(&b.1));
        for (key, event) in deferred {
            let row = self.rows.entry(key).or_default();
            row.suspects[Cause::Background as usize].add(&event);
        }
    }

    /// What an upstream refused used nothing. What it was sent and did not answer, it may have counted.
    fn suspect_unanswered(&mut self, line: &Line<'_>) -> Result<(), String> {
        if line.raw(UPSTREAM) == "null" || line.raw(UPSTREAM_STATUS) != "null" {
            return Ok(());
        }
        let time = began(line).ok_or(NO_TIME)?;
        if self.covers(time) {
            let row = self.rows.entry(self.key(line, time)).or_default();
            let event = line.text(EVENT_ID).unwrap_or_default();
            row.suspects[Cause::Unanswered as usize].add(&event);
        }
        Ok(())
    }

    fn covers(&self, time: Timestamp) -> bool {
        (self.provider.since..self.provider.until).contains(&time.as_second())
    }

    /// The usage of embeddings is told elsewhere, and other requests have none.
    fn is_told_elsewhere(&self, line: &Line<'_>) -> bool {
        let of_background = self
            .of_request
            .is_some_and(|field| line.raw(field) != "null");
        match line.raw(ENDPOINT) {
            "\"other\"" | "\"embeddings\"" => true,
            "\"responses_item\"" => !of_background,
            _ => false,
        }
    }

    fn key(&self, line: &Line<'_>, time: Timestamp) -> Key {
        let served = self.model_served.and_then(|field| line.text(field));
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
    fn add(&mut self, event: &str) {
        self.count += 1;
        if self.lines.len() < LINES_NAMED {
            self.lines.push(event.to_owned());
        }
    }
}

fn is_answered(line: &Line<'_>) -> bool {
    line.count(UPSTREAM_STATUS)
        .is_some_and(|status| status < 400)
}

fn used(line: &Line<'_>) -> Used {
    let count = |field| line.count(field).unwrap_or(0);
    Used {
        requests: 1,
        input: count(INPUT_TOKENS),
        cached_input: count(CACHED_INPUT_TOKENS),
        output: count(OUTPUT_TOKENS),
    }
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
