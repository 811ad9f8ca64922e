//! The upstream's own books: what reached it, judged on the spot against what the client had to send, so that a long run
//! keeps no bodies.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::plan::Plan;
use super::reading;
use super::sockets::Spoken;

/// One request as it reached the upstream. One that was sent again has several.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Whether the body ended as its framing says.
    pub whole: bool,
    /// Bytes of the body.
    pub bytes: u64,
    /// Whether they are those that the client sent, or the first of them where it is not whole.
    pub as_it_came: bool,
    /// The tiers that they may have been forced to, each as [`reading::forced_to`] has it: one of a whole body, of another
    /// those that its beginning allows.
    pub forced_to: Vec<Option<&'static str>>,
    /// What is wrong with them as a forced body, if whole.
    pub not_forced: Option<String>,
    /// The tier that they ask for.
    pub tier: Option<String>,
    /// What its head says.
    pub head: Head,
    /// Whether a byte of an answer was sent.
    pub answered: bool,
    /// Whether all of the answer was handed to the connection.
    pub told: bool,
    /// Whether the answer is that the tier cannot be had.
    pub refused: bool,
}

/// What is looked at of a request's head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Whether a header that nobody is to touch, or the path, has changed.
    pub is_changed: bool,
    /// Whether the beta header asks for fast mode.
    pub asks_fast: bool,
}

/// A message on a WebSocket that no reader could make sense of.
#[derive(Clone, Debug)]
pub struct Unreadable {
    /// Of the connection.
    pub tag: u64,
    pub at: SystemTime,
    /// The message, as far as it is needed to know it again.
    pub text: String,
}

const UNREADABLE_CHARS: usize = 300;

#[derive(Default)]
pub struct Books {
    entries: Mutex<HashMap<u64, Vec<Entry>>>,
    unreadable: Mutex<Vec<Unreadable>>,
}

impl Books {
    /// A head has arrived. Returns the number of the attempt.
    pub fn open(&self, tag: u64, head: Head) -> usize {
        let mut entries = self.entries();
        let of_tag = entries.entry(tag).or_default();
        of_tag.push(Entry {
            head,
            ..Entry::default()
        });
        of_tag.len() - 1
    }

    pub fn note(&self, tag: u64, attempt: usize, note: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self
            .entries()
            .get_mut(&tag)
            .and_then(|all| all.get_mut(attempt))
        {
            note(entry);
        }
    }

    /// What came of a request's body.
    pub fn note_body(&self, plan: &Plan, attempt: usize, got: &[u8], whole: bool) {
        let (framed, can_be_whole) = plan.framed();
        let as_it_came = match whole {
            true => can_be_whole && got == framed,
            false => framed.starts_with(got),
        };
        let forced = match plan.decoded() {
            _ if !whole => Ok(None),
            Some(sent) => reading::forced_to(sent, got),
            None => Err("the client's body cannot be decoded".to_owned()),
        };
        let forced_to = match &forced {
            _ if !whole => {
                let all = reading::TIERS.map(Some).into_iter().chain([None]);
                all.filter(|tier| reading::begins_forced(got, *tier))
                    .collect()
            }
            forced => forced.iter().copied().collect(),
        };
        let tier = whole.then(|| reading::tier(got)).flatten();
        self.note(plan.tag, attempt, |entry| {
            entry.whole = whole;
            entry.bytes = got.len() as u64;
            entry.as_it_came = as_it_came;
            entry.forced_to = forced_to;
            entry.not_forced = forced.err();
            entry.tier = tier;
        });
    }

    /// A message on a WebSocket has arrived. Returns the number of the attempt.
    pub fn note_spoken(&self, spoken: &Spoken, got: &str) -> usize {
        let attempt = self.open(spoken.tag, Head::default());
        let forced = reading::forced_to(spoken.text.as_bytes(), got.as_bytes());
        self.note(spoken.tag, attempt, |entry| {
            entry.whole = true;
            entry.bytes = got.len() as u64;
            entry.as_it_came = got == spoken.text;
            entry.forced_to = forced.iter().copied().collect();
            entry.not_forced = forced.err();
            entry.tier = reading::tier(got.as_bytes());
        });
        attempt
    }

    /// The tier of this attempt cannot be had, if it names one.
    pub fn refuse(&self, tag: u64, attempt: usize) -> bool {
        let mut refused = false;
        self.note(tag, attempt, |entry| {
            entry.refused = entry.tier.is_some();
            entry.answered |= entry.refused;
            refused = entry.refused;
        });
        refused
    }

    pub fn note_unreadable(&self, tag: u64, text: &str) {
        let unreadable = Unreadable {
            tag,
            at: SystemTime::now(),
            text: text.chars().take(UNREADABLE_CHARS).collect(),
        };
        let mut all = self
            .unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.push(unreadable);
    }

    pub fn unreadable(&self) -> Vec<Unreadable> {
        let all = self
            .unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.clone()
    }

    pub fn entries(&self) -> MutexGuard<'_, HashMap<u64, Vec<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
