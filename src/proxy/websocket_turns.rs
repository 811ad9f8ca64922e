//! The responses on one WebSocket: which of them a message of the server belongs to, what is known of each, and which of the
//! client's messages is sent once more because its tier was refused.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::accounting::record::{RequestRecord, Sent};
use crate::accounting::usage::{Event, EventTally, Observed};
use crate::codec::body_memory::{BodyMemory, Lease};
use crate::codec::service_tier::{RequestFields, Rewriter};
use crate::codec::websocket::{Message, Opcode, apply_mask, encode_in_place};
use crate::config::Limits;
use crate::policy::{Group, Policy, TierAction};
use crate::proxy::request_body::waiting_piece;
use crate::state::State;

/// The event by which the server refuses a message, or ends a response.
const ERROR: &str = "error";
/// The event that begins a response.
const CREATED: &str = "response.created";
/// The event that some upstreams send behind the one that ended a response.
const DONE: &str = "response.done";
/// Responses that may run at once. The API allows 16; those beyond are judged and billed as well, up to here.
const MAX_OPEN_TURNS: usize = 1024;
/// Responses whose ends are remembered, in case they are told again.
const MAX_REMEMBERED: usize = 64;

/// The responses of one connection.
#[derive(Default)]
pub struct Turns {
    /// Those that run, in the order in which their messages were sent.
    pub open: Vec<OpenTurn>,
    /// Responses that have ended, the newest last.
    ended: VecDeque<EndedResponse>,
    /// The newest end may be told once more, as `response.done` without an id.
    may_be_done_again: bool,
    /// Responses so far.
    count: u64,
    /// What a response that no message asked for inherits from the one before it.
    last: Option<TurnTemplate>,
}

/// A response that runs, or is awaited.
pub struct OpenTurn {
    pub record: RequestRecord,
    tally: EventTally,
    /// The response was told of by another event than its end.
    has_begun: bool,
    response_id: Option<String>,
    stream_id: Option<String>,
    /// The message that began it, until the upstream has begun a response or refused it, where it may be sent once more.
    message: Option<SentMessage>,
}

struct EndedResponse {
    id: String,
    /// It was told of before its end.
    has_begun: bool,
}

/// A message as it went to the upstream, with a tier that may be refused.
pub struct SentMessage {
    opcode: Opcode,
    mask: [u8; 4],
    /// The whole frame, whose last bytes are the payload.
    frame: Bytes,
    payload_length: usize,
    _lease: Lease,
}

/// What an event of the server's means for its turn.
pub enum Step {
    /// The turn is over, and this is what it came to.
    Ended(Box<RequestRecord>, Observed),
    /// The upstream refuses the tier, and this message is sent without it. The client is not to see the event.
    Retried(Bytes),
}

/// The policy's say on a message, and what was sent for it.
#[derive(Clone)]
struct TurnTemplate {
    policy: Arc<Policy>,
    key: Option<Arc<str>>,
    group: Option<Arc<Group>>,
    action: Option<TierAction>,
    sent: Sent,
    facts: RequestFields,
}

impl TurnTemplate {
    fn of(record: &RequestRecord) -> Self {
        Self {
            policy: record.policy.clone(),
            key: record.key.clone(),
            group: record.group.clone(),
            action: record.action,
            sent: record.sent.without_bytes(),
            facts: record.facts.clone(),
        }
    }
}

impl OpenTurn {
    fn new(record: RequestRecord) -> Self {
        Self {
            tally: Self::new_tally(&record),
            record,
            has_begun: false,
            response_id: None,
            stream_id: None,
            message: None,
        }
    }

    fn new_tally(record: &RequestRecord) -> EventTally {
        let mut tally = EventTally::default();
        if record.facts.background == Some(true) {
            tally.expect_background();
        }
        tally
    }

    /// What its response has come to so far.
    pub fn observed(&self) -> Observed {
        self.tally.observed()
    }
}

impl Turns {
    /// A turn with what the connection knows of it.
    pub fn next(&mut self, policy: Arc<Policy>, connection: &RequestRecord) -> RequestRecord {
        self.count += 1;
        let mut record = RequestRecord::new(self.count, policy);
        record.answer.status = connection.answer.status;
        record.answer.upstream_status = connection.answer.upstream_status;
        record.answer.upstream_request_id = connection.answer.upstream_request_id.clone();
        record.answer.transport = connection.answer.transport;
        record.key_digest = connection.key_digest;
        record.sent_key_digest = connection.sent_key_digest;
        record
    }

    /// The message of a turn goes to the upstream. `message`: it may be sent once more.
    pub fn begin(&mut self, record: RequestRecord, message: Option<SentMessage>) {
        let stream_id = record.facts.stream_id.clone();
        self.last = Some(TurnTemplate::of(&record));
        self.open.push(OpenTurn {
            stream_id,
            message,
            ..OpenTurn::new(record)
        });
    }

    /// A turn of which nothing goes to the upstream; the refusal which follows will close it.
    pub fn begin_refused(&mut self, record: RequestRecord) {
        self.open.push(OpenTurn::new(record));
    }

    /// Whether another turn may begin.
    pub fn has_room(&self) -> bool {
        self.open.len() < MAX_OPEN_TURNS
    }

    /// Whether the next message of the server may refuse a tier without which the client's message would be sent once more.
    pub fn may_be_refused(&self) -> bool {
        self.open.iter().any(|open| open.message.is_some())
    }

    /// Takes note of a message of the server. Returns what it means for a turn, where that is more than that it goes on.
    /// `retries`: where there is memory for a message that is sent once more, if one may be.
    pub fn take_event(
        &mut self,
        event: Event,
        bytes: u64,
        connection: &RequestRecord,
        retries: Option<&State>,
    ) -> Option<Step> {
        let at = self.turn_of(&event, connection)?;
        if event.response_id.is_some() || event.observed.is_some() {
            // A response has begun, or will not begin.
            let message = self.open[at].message.take();
            if refuses_tier(&event)
                && let (Some(message), Some(state)) = (message, retries)
                && let Some(message) = self.retry(at, message, state)
            {
                return Some(Step::Retried(message));
            }
        }
        let open = &mut self.open[at];
        open.record.answer.bytes += bytes;
        open.record
            .answer
            .time_to_first_byte
            .get_or_insert(open.record.began.elapsed());
        open.tally.add(&event);
        open.has_begun |= event.observed.is_none();
        event.observed?;
        let ended = self.open.remove(at);
        let observed = ended.observed();
        self.may_be_done_again = !matches!(event.kind.as_deref(), Some(DONE | ERROR));
        if let Some(id) = ended.response_id {
            if self.ended.len() == MAX_REMEMBERED {
                self.ended.pop_front();
            }
            let has_begun = ended.has_begun;
            self.ended.push_back(EndedResponse { id, has_begun });
        }
        Some(Step::Ended(Box::new(ended.record), observed))
    }

    /// The message of a turn as it is sent once more, without the tier that was refused; the turn is the newest then. None, and
    /// the turn as it was, where it cannot be sent.
    fn retry(&mut self, at: usize, message: SentMessage, state: &State) -> Option<Bytes> {
        let action = self.open[at].record.action?.without_tier();
        let (frame, payload_length, tier) = message.without_tier(action, &state.limits)?;
        let frame = waiting_piece(frame, &state.body_memory).ok()?;
        let mut open = self.open.remove(at);
        open.response_id = None;
        open.tally = OpenTurn::new_tally(&open.record);
        open.record.tier_refused = true;
        open.record.action = Some(action);
        open.record.sent_whole(payload_length as u64, tier);
        self.last = Some(TurnTemplate::of(&open.record));
        self.open.push(open);
        Some(frame)
    }

    /// Which turn a message of the server belongs to. One that names a response which nobody waits for begins a turn: a
    /// steered response goes on in a successor that no message of the client created.
    fn turn_of(&mut self, event: &Event, connection: &RequestRecord) -> Option<usize> {
        let Some(id) = event.response_id.as_deref() else {
            return self.turn_without_id(event);
        };
        if self.has_ended(id, event) {
            return None;
        }
        if let Some(known) = self
            .open
            .iter()
            .position(|open| open.response_id.as_deref() == Some(id))
        {
            return Some(known);
        }
        let waits = |open: &OpenTurn| open.response_id.is_none();
        let in_lane = |open: &OpenTurn| waits(open) && open.stream_id == event.stream_id;
        let at = match self
            .open
            .iter()
            .position(in_lane)
            .or_else(|| self.open.iter().position(waits))
        {
            Some(at) => at,
            None => self.begin_successor(event, connection)?,
        };
        self.open[at].response_id = Some(id.to_owned());
        Some(at)
    }

    /// Whether the event is about a response that has ended. An id is a new response's where it begins again, and where a
    /// message waits for its response; but an end is another one of the same response where that would have begun first, or
    /// ends by another name.
    fn has_ended(&mut self, id: &str, event: &Event) -> bool {
        let Some(at) = self.ended.iter().position(|ended| ended.id == id) else {
            return false;
        };
        let is_new = match event.kind.as_deref() {
            Some(CREATED) => true,
            Some(DONE) => false,
            _ if event.observed.is_some() && self.ended[at].has_begun => false,
            _ => self.open.iter().any(|open| open.response_id.is_none()),
        };
        if is_new {
            self.ended.remove(at);
        }
        !is_new
    }

    /// A message that names no response belongs to the oldest turn of its lane, or else to the oldest. But an error ends a
    /// turn only where the turn waits for its `response.created`: one that runs has an end of its own, and the error may be
    /// about another message of the client. And the end of a response may be told by two names.
    fn turn_without_id(&mut self, event: &Event) -> Option<usize> {
        let kind = event.kind.as_deref();
        if kind == Some(DONE) && std::mem::take(&mut self.may_be_done_again) {
            return None;
        }
        let in_lane =
            |open: &OpenTurn| event.stream_id.is_some() && open.stream_id == event.stream_id;
        let has_lane = self.open.iter().any(in_lane);
        let may_be = |open: &OpenTurn| {
            (kind != Some(ERROR) || open.response_id.is_none()) && (!has_lane || in_lane(open))
        };
        self.open.iter().position(may_be)
    }

    fn begin_successor(&mut self, event: &Event, connection: &RequestRecord) -> Option<usize> {
        if !self.has_room() {
            return None;
        }
        let last = self
            .last
            .clone()
            .unwrap_or_else(|| TurnTemplate::of(connection));
        let mut record = self.next(last.policy, connection);
        record.key = last.key;
        record.group = last.group;
        record.action = last.action;
        record.facts = last.facts;
        record.sent = last.sent;
        self.open.push(OpenTurn {
            stream_id: event.stream_id.clone(),
            ..OpenTurn::new(record)
        });
        Some(self.open.len() - 1)
    }
}

impl SentMessage {
    /// None where there is no memory to keep it: the client will then get the refusal.
    pub fn keep(
        message: &Message,
        frame: Bytes,
        payload_length: usize,
        memory: &Arc<BodyMemory>,
    ) -> Option<Self> {
        let lease = memory.lease(frame.len() as u64).ok()?;
        Some(Self {
            opcode: message.opcode,
            mask: message.mask,
            frame,
            payload_length,
            _lease: lease,
        })
    }

    /// The message without a tier: its frame, the length of its payload, and the tier in its bytes.
    fn without_tier(
        self,
        action: TierAction,
        limits: &Limits,
    ) -> Option<(Bytes, usize, Option<&'static str>)> {
        let begin = self.frame.len() - self.payload_length;
        let mut payload = self.frame[begin..].to_vec();
        apply_mask(&mut payload, self.mask);
        let rewriter = Rewriter::for_message(limits.json_depth);
        let (buffer, start) = rewriter.without_tier(&payload)?;
        let tier = action.outgoing_tier(&buffer[start..], limits.json_depth, true);
        let (tier, length) = (tier.ok()?, buffer.len() - start);
        let frame = encode_in_place(self.opcode, Some(self.mask), buffer, start);
        Some((frame, length, tier))
    }
}

/// Whether an event says that a response fails for the tier that it was asked for with.
fn refuses_tier(event: &Event) -> bool {
    let observed = event.observed.as_ref();
    observed.is_some_and(|observed| observed.failed && observed.error_names_tier)
}
