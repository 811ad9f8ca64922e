//! Background responses: creates, which have no usage, and the lines that fetched it for them.

use std::collections::{HashMap, HashSet};

use crate::cli::reconcile::entry::{Cause, Entry};
use crate::cli::reconcile::{Dimension, Key};

/// When something was, by the provider's buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Before,
    Within,
    After,
}

/// A line of a background response.
pub(super) struct Response {
    /// The request that created it.
    pub(super) request: String,
    pub(super) id: Option<String>,
    pub(super) part: Part,
    pub(super) entry: Entry,
}

/// Those of a log.
#[derive(Default)]
pub(super) struct Background {
    /// Within the provider's buckets, by request: each response on a WebSocket may have its own.
    created: HashMap<String, Vec<Response>>,
    created_before: HashSet<String>,
    fetched: Vec<Response>,
}

impl Background {
    pub(super) fn create(&mut self, response: Response) {
        match response.part {
            Part::Before => drop(self.created_before.insert(response.request)),
            Part::Within => {
                let request = response.request.clone();
                self.created.entry(request).or_default().push(response);
            }
            Part::After => {}
        }
    }

    pub(super) fn fetch(&mut self, response: Response) {
        self.fetched.push(response);
    }

    /// What is to be counted: creates with their usage where it was fetched, and fetches alone, which count no request and can
    /// explain one that only the provider has.
    pub(super) fn entries(mut self, by: &[Dimension]) -> Vec<Entry> {
        let mut entries = Vec::new();
        for fetched in std::mem::take(&mut self.fetched) {
            let entry = match self.take_created(&fetched) {
                Some(created) => Some(created.entry.with_usage_of(fetched, by)),
                None => self.without_create(fetched),
            };
            entries.extend(entry);
        }
        let mut never_fetched: Vec<_> = self.created.into_values().flatten().collect();
        never_fetched.sort_unstable_by(|a, b| a.entry.event.cmp(&b.entry.event));
        entries.extend(never_fetched.into_iter().map(|response| response.entry));
        entries
    }

    fn take_created(&mut self, fetched: &Response) -> Option<Response> {
        let created = self.created.get_mut(&fetched.request)?;
        let same = created
            .iter()
            .position(|response| response.id == fetched.id);
        let at = same.unwrap_or(0);
        (at < created.len()).then(|| created.remove(at))
    }

    fn without_create(&self, fetched: Response) -> Option<Entry> {
        let cause = if self.created_before.contains(&fetched.request) {
            Cause::CreatedBefore
        } else {
            Cause::CreateUnknown
        };
        (fetched.part == Part::Within).then(|| Entry {
            used: Default::default(),
            causes: vec![cause],
            ..fetched.entry
        })
    }
}

impl Entry {
    /// The day is that of the create; the tier and the model are known when the response has ended.
    fn with_usage_of(mut self, fetched: Response, by: &[Dimension]) -> Entry {
        self.used.add(&fetched.entry.used);
        Entry {
            key: joined(self.key, fetched.entry.key, by),
            used: self.used,
            causes: causes(fetched.entry.causes, fetched.part),
            event: fetched.entry.event,
        }
    }
}

fn joined(created: Key, fetched: Key, by: &[Dimension]) -> Key {
    let parts = by.iter().zip(created.into_iter().zip(fetched));
    let parts = parts.map(|(dimension, (created, fetched))| match dimension {
        Dimension::Day => created,
        Dimension::Model if fetched.is_empty() => created,
        _ => fetched,
    });
    parts.collect()
}

/// When the fetching began and ended tells nothing about the response.
fn causes(mut causes: Vec<Cause>, part: Part) -> Vec<Cause> {
    causes.retain(|cause| *cause != Cause::Midnight);
    if part == Part::After {
        causes.push(Cause::FetchedAfter);
    }
    causes
}
