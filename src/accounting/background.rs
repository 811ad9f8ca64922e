//! Responses that are made in the background: who asked for them, until somebody fetches what they came to. The usage of
//! such a response is told by the first answer that has its terminal status, and is billed once, to who created it.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet, VecDeque};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::policy::hash_key;

/// Responses that are remembered at once. Beyond it the oldest is forgotten, and its usage is not billed.
pub const MAX_RESPONSES: usize = 100_000;

/// How long a response is remembered. OpenAI keeps what was made in the background for about ten minutes after its end,
/// and other responses for 30 days (<https://platform.openai.com/docs/guides/background>).
pub const MAX_AGE: SignedDuration = SignedDuration::from_hours(7 * 24);

/// So many are remembered however old they seem: a clock that is wrong for a moment makes all seem so.
const KEPT_ANYWAY: usize = 1000;

/// What the line of a background response's usage takes from the request that created it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackgroundCreate {
    pub request_id: Uuid,
    /// When it began.
    pub time: Timestamp,
    /// The key's name.
    pub key: Option<String>,
    /// SHA-256 of the key, whose budget is charged.
    pub key_digest: Option<[u8; 32]>,
    pub key_id: Option<String>,
    pub group: Option<String>,
    pub platform: Option<String>,
    pub model: Option<String>,
    /// Whether it may have asked for another.
    #[serde(default)]
    pub several_models: bool,
    /// As sent upstream.
    pub service_tier: Option<String>,
    pub service_tier_client: Option<String>,
    pub tier_reason: Option<String>,
}

/// What a response is remembered by: the name of its upstream, and its id there, or the digest of an id that is long or
/// quotes a credential, `is_secret`: a store is no place for one.
pub fn background_id(upstream: &str, response_id: &str, is_secret: bool) -> String {
    const LONGEST: usize = 128;
    let id = match is_secret || response_id.len() > LONGEST {
        true => Cow::Owned(hash_key(response_id.as_bytes())),
        false => Cow::Borrowed(response_id),
    };
    [upstream, "/", &id].concat()
}

/// Whether the oldest of so many responses is too old to be remembered.
pub fn is_forgotten(oldest: Timestamp, count: usize, now: Timestamp) -> bool {
    count > KEPT_ANYWAY && now.duration_since(oldest) > MAX_AGE
}

/// The responses that are still to be billed, by their ids.
#[derive(Debug, Default)]
pub struct BackgroundResponses {
    table: Mutex<Table>,
}

/// What changed since the table was last brought together with a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackgroundChanges {
    pub created: Vec<(String, BackgroundCreate)>,
    /// Ids of responses that were billed here.
    pub settled: Vec<String>,
}

#[derive(Debug, Default)]
struct Table {
    creates: HashMap<String, BackgroundCreate>,
    /// Ids in the order in which they came; of some of these the response is billed by now.
    order: VecDeque<(Timestamp, String)>,
    /// Whether changes are noted for a store.
    has_store: bool,
    /// Ids that the store does not have yet.
    unsaved: HashSet<String>,
    /// Billed since the store was last told.
    settled: Vec<String>,
}

impl BackgroundResponses {
    /// None yet, and from now on what changes is noted for a store.
    pub fn with_store() -> Self {
        let responses = Self::default();
        responses.table.lock().has_store = true;
        responses
    }

    /// A response is to be billed when it is fetched.
    pub fn remember(&self, response_id: &str, create: BackgroundCreate) {
        let mut table = self.table.lock();
        table.forget(create.time, MAX_RESPONSES - 1);
        let time = create.time;
        if table.has_store {
            table.unsaved.insert(response_id.to_owned());
        }
        if table
            .creates
            .insert(response_id.to_owned(), create)
            .is_none()
        {
            table.order.push_back((time, response_id.to_owned()));
        }
    }

    /// Its terminal status has come at this time: who created it, for the first who asks. For all others, and of responses
    /// that were not made in the background or are forgotten, none.
    pub fn take(&self, response_id: &str, now: Timestamp) -> Option<BackgroundCreate> {
        let mut table = self.table.lock();
        table.forget(now, MAX_RESPONSES);
        table.creates.remove(response_id)
    }

    /// Whether the store has not been told of it yet.
    pub fn is_unsaved(&self, response_id: &str) -> bool {
        self.table.lock().unsaved.contains(response_id)
    }

    /// It was taken, and the store knows whose bill it is on.
    pub fn note_claimed(&self, response_id: &str) {
        self.table.lock().unsaved.remove(response_id);
    }

    /// The store is to be told that this is billed. It is told even where it may not know of it: that may be on its way.
    pub fn note_settled(&self, response_id: &str) {
        let mut table = self.table.lock();
        table.creates.remove(response_id);
        table.unsaved.remove(response_id);
        if table.has_store {
            table.settled.push(response_id.to_owned());
        }
    }

    /// The store may have lost what it had, and is to be told of all that are still to be billed.
    pub fn save_anew(&self) {
        let mut table = self.table.lock();
        table.unsaved = table.creates.keys().cloned().collect();
    }

    /// What a store is to be told.
    pub fn changes(&self) -> BackgroundChanges {
        let table = self.table.lock();
        let created = table.unsaved.iter().filter_map(|id| {
            let create = table.creates.get(id)?.clone();
            Some((id.clone(), create))
        });
        BackgroundChanges {
            created: created.collect(),
            settled: table.settled.clone(),
        }
    }

    /// The store has these changes now, and says what is known there: responses of other processes that are still to be billed
    /// here as well, and which of those that are known here another process has billed.
    pub fn learn(
        &self,
        changes: &BackgroundChanges,
        known: Vec<(String, BackgroundCreate)>,
        is_gone: impl Fn(&str) -> bool,
    ) {
        let mut table = self.table.lock();
        for (id, create) in known {
            if table.settled.contains(&id) || table.creates.contains_key(&id) {
                continue;
            }
            table.order.push_back((create.time, id.clone()));
            table.creates.insert(id, create);
        }
        for (id, _) in &changes.created {
            table.unsaved.remove(id);
        }
        table.settled.drain(..changes.settled.len());
        let Table {
            creates, unsaved, ..
        } = &mut *table;
        creates.retain(|id, _| unsaved.contains(id) || !is_gone(id));
    }

    /// How many are still to be billed.
    pub fn len(&self) -> usize {
        self.table.lock().creates.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Table {
    /// Forgets what is too old, and the oldest beyond so many. The order holds ids that are billed as well, and must not
    /// outgrow the table for them.
    fn forget(&mut self, now: Timestamp, most: usize) {
        while let Some((time, id)) = self.order.front() {
            let create = self.creates.get(id);
            let is_billed = create.is_none_or(|create| create.time != *time);
            let is_old = is_forgotten(*time, self.creates.len(), now);
            if !is_billed && !is_old && self.order.len() <= most {
                return;
            }
            if !is_billed {
                self.creates.remove(id);
            }
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
impl BackgroundCreate {
    /// One for tests.
    pub(crate) fn sample(time: Timestamp) -> BackgroundCreate {
        BackgroundCreate {
            request_id: Uuid::nil(),
            time,
            key: Some("alice".to_owned()),
            key_digest: Some([7; 32]),
            key_id: None,
            group: None,
            platform: None,
            model: None,
            several_models: false,
            service_tier: Some("priority".to_owned()),
            service_tier_client: None,
            tier_reason: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(at: i64) -> BackgroundCreate {
        BackgroundCreate::sample(Timestamp::from_second(at).unwrap())
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_first_who_asks_gets_the_create_and_all_others_get_none() {
        let responses = BackgroundResponses::default();
        responses.remember("r", create(5));
        assert_eq!(responses.take("other", at(6)), None);
        assert_eq!(responses.take("r", at(6)), Some(create(5)));
        assert_eq!(responses.take("r", at(6)), None);
        assert!(responses.is_empty());
    }

    #[test]
    fn of_many_who_ask_at_once_one_gets_it() {
        let responses = BackgroundResponses::default();
        for round in 0..100 {
            let id = round.to_string();
            responses.remember(&id, create(round));
            let settled = std::thread::scope(|scope| {
                let asks = || responses.take(&id, at(round)).is_some();
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(asks)).collect();
                let asked = threads.into_iter().map(|thread| thread.join().unwrap());
                asked.filter(|settled| *settled).count()
            });
            assert_eq!(settled, 1);
        }
    }

    #[test]
    fn what_is_older_than_a_week_is_forgotten_but_for_the_newest() {
        let responses = BackgroundResponses::default();
        for number in 0..KEPT_ANYWAY + 10 {
            responses.remember(&number.to_string(), create(number as i64));
        }
        let years = at(100 * MAX_AGE.as_secs());
        assert_eq!(responses.take("9", years), None);
        assert_eq!(responses.len(), KEPT_ANYWAY);
        assert!(responses.take("10", years).is_some());
        responses.remember("new", create(years.as_second()));
        let newer = at(years.as_second() + MAX_AGE.as_secs());
        responses.remember("newer", create(newer.as_second()));
        assert!(responses.take("new", newer).is_some());
    }

    #[test]
    fn beyond_the_limit_the_oldest_goes_and_those_that_are_billed_take_no_room() {
        let responses = BackgroundResponses::default();
        for number in 0..MAX_RESPONSES + 10 {
            responses.remember(&number.to_string(), create(number as i64));
        }
        assert_eq!(responses.len(), MAX_RESPONSES);
        let last = at((MAX_RESPONSES + 10) as i64);
        assert_eq!(responses.take("9", last), None);
        assert!(responses.take("10", last).is_some());
        for number in 0..3 * MAX_RESPONSES {
            responses.remember("x", create(number as i64));
            responses.take("x", at(number as i64));
        }
        let table = responses.table.lock();
        assert!(table.order.len() <= MAX_RESPONSES);
    }

    #[test]
    fn a_create_survives_being_written_down() {
        let text = serde_json::to_string(&create(7)).unwrap();
        assert_eq!(
            serde_json::from_str::<BackgroundCreate>(&text).unwrap(),
            create(7)
        );
    }
}
