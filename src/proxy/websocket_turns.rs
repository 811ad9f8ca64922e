//! The responses on one WebSocket: which of them a message of the server belongs to, what is known of each, which of the
//! client's messages is sent once more because its tier was refused, and the line of each.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use crate::accounting::record::{Answered, RequestInfo, RequestRecord, Sent, Termination};
use crate::accounting::usage::{Event, EventTally, Observed};
use crate::codec::body_memory::BodyMemory;
use crate::codec::error::Cause;
use crate::codec::service_tier::{RequestFields, Rewriter};
use crate::codec::websocket::{Message, Opcode, apply_mask, encode_in_place};
use crate::config::Limits;
use crate::policy::api_key::RequestKey;
use crate::policy::{Decision, Denied, Group, Policy, TierAction};
use crate::proxy::request_body::waiting_piece;
use crate::state::State;
use crate::upstream::Upstream;

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
pub struct Turns {
    state: Arc<State>,
    upstream: Option<Arc<Upstream>>,
    /// The request that the connection began with, its keys, and what it was answered.
    request_info: RequestInfo,
    client_key: Option<RequestKey>,
    upstream_key: Option<RequestKey>,
    answer: Answered,
    /// Those that run, in the order in which their messages were sent.
    pub open: Vec<OpenTurn>,
    /// Responses that have ended, the newest last.
    ended: VecDeque<EndedResponse>,
    /// The newest end may be told once more, as `response.done` without an id.
    may_be_done_again: bool,
    /// Responses so far.
    count: u64,
    /// What a response that no message asked for inherits from the one before it, or from the connection.
    last: TurnTemplate,
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
    /// The newest event was an error without an id while it ran: the response may be over, or another message of the client was
    /// wrong.
    error: Option<Event>,
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
}

/// The policy's say on a message.
#[derive(Clone)]
pub struct Verdict {
    policy: Arc<Policy>,
    key: Option<Arc<str>>,
    group: Option<Arc<Group>>,
    action: Option<TierAction>,
}

/// The policy's say on a message, and what was sent for it.
struct TurnTemplate {
    verdict: Verdict,
    sent: Sent,
    facts: RequestFields,
}

impl Verdict {
    pub fn new(policy: Arc<Policy>, decided: &Result<Decision, Denied>) -> Self {
        let (key, group, action) = match decided {
            Ok(decision) => (&decision.key, Some(&decision.group), decision.action),
            Err(denied) => (&denied.key, denied.group.as_ref(), None),
        };
        Self {
            policy,
            key: key.clone(),
            group: group.cloned(),
            action,
        }
    }
}

impl TurnTemplate {
    fn of(record: &RequestRecord) -> Self {
        Self {
            verdict: Verdict {
                policy: record.policy.clone(),
                key: record.key.clone(),
                group: record.group.clone(),
                action: record.action,
            },
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
            error: None,
        }
    }

    fn new_tally(record: &RequestRecord) -> EventTally {
        let mut tally = EventTally::default();
        if record.facts.background == Some(true) {
            tally.expect_background();
        }
        tally
    }
}

impl Turns {
    /// None yet, on a connection that `connection` began.
    pub fn new(
        state: &Arc<State>,
        upstream: Option<Arc<Upstream>>,
        request_info: RequestInfo,
        connection: &RequestRecord,
    ) -> Self {
        let answer = &connection.answer;
        Self {
            state: state.clone(),
            upstream,
            request_info,
            client_key: connection.client_key.clone(),
            upstream_key: connection.upstream_key.clone(),
            answer: Answered {
                status: answer.status,
                upstream_status: answer.upstream_status,
                upstream_request_id: answer.upstream_request_id.clone(),
                transport: answer.transport,
                ..Answered::default()
            },
            open: Vec::new(),
            ended: VecDeque::new(),
            may_be_done_again: false,
            count: 0,
            last: TurnTemplate::of(connection),
        }
    }

    /// The record of the next turn, which begins now.
    pub fn next(&mut self, verdict: Verdict, facts: RequestFields) -> RequestRecord {
        self.count += 1;
        let mut record = RequestRecord::new(self.count, verdict.policy);
        record.key = verdict.key;
        record.group = verdict.group;
        record.action = verdict.action;
        record.facts = facts;
        record.answer = self.answer.clone();
        record.client_key = self.client_key.clone();
        record.upstream_key = self.upstream_key.clone();
        record
    }

    /// What a response asks for that no message asked for.
    pub fn inherited_facts(&self) -> &RequestFields {
        &self.last.facts
    }

    /// Whether such a response would have the tier that it gets by this action. One that is not changed any more goes on as it is.
    pub fn keeps_tier(&self, action: Option<TierAction>) -> bool {
        let edits = |action: TierAction| action.changes().then(|| action.edits(false));
        let wanted = action.and_then(edits);
        wanted.is_none() || wanted == self.last.verdict.action.and_then(edits)
    }

    /// The message of a turn goes to the upstream. `message`: it may be sent once more.
    pub fn begin(&mut self, record: RequestRecord, message: Option<SentMessage>) {
        let stream_id = record.facts.stream_id.clone();
        self.last = TurnTemplate::of(&record);
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

    /// The id of the request that the connection began with.
    pub fn request_id(&self) -> Uuid {
        self.request_info.id
    }

    /// The models that the target of that request named.
    pub fn models(&self) -> &[String] {
        &self.request_info.models
    }

    /// Whether no response is known to run; an error may have ended those that are open.
    pub fn are_in_doubt(&self) -> bool {
        self.open.iter().all(|open| open.error.is_some())
    }

    /// Whether something has come of every response that runs.
    pub fn have_begun(&self) -> bool {
        let has_begun = |open: &OpenTurn| open.record.answer.time_to_first_byte.is_some();
        self.open.iter().all(has_begun)
    }

    /// Whether another turn may begin.
    pub fn has_room(&self) -> bool {
        self.open.len() < MAX_OPEN_TURNS
    }

    /// Whether the next message of the server may refuse a tier without which the client's message would be sent once more.
    pub fn may_be_refused(&self) -> bool {
        self.open.iter().any(|open| open.message.is_some())
    }

    /// Takes note of a message of the server's, and writes the line of the turn that it ends. Returns the client's message that
    /// is sent once more, where the server's refuses a tier without which it is; the client is not to see the refusal then.
    pub fn take_event(&mut self, event: Event, bytes: u64, may_retry: bool) -> Option<Bytes> {
        let Some(at) = self.turn_of(&event) else {
            self.keep_error(event);
            return None;
        };
        self.open[at].error = None;
        if event.response_id.is_some() || event.observed.is_some() {
            // A response has begun, or will not begin.
            let message = self.open[at].message.take();
            if refuses_tier(&event)
                && let Some(message) = message.filter(|_| may_retry)
                && let Some(message) = self.retry(at, message)
            {
                return Some(message);
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
        let observed = event.observed.as_ref()?;
        let ended = self.open.remove(at);
        self.log(&ended, Termination::Whole);
        if observed.steered {
            self.last = TurnTemplate::of(&ended.record);
            self.begin_successor(&event);
        }
        self.may_be_done_again = !matches!(event.kind.as_deref(), Some(DONE | ERROR));
        if let Some(id) = ended.response_id {
            if self.ended.len() == MAX_REMEMBERED {
                self.ended.pop_front();
            }
            let has_begun = ended.has_begun;
            self.ended.push_back(EndedResponse { id, has_begun });
        }
        None
    }

    /// Accounts for every response that still runs. An error that came last has ended its response.
    pub fn end_all(&mut self, termination: Termination) {
        for mut open in std::mem::take(&mut self.open) {
            match open.error.take() {
                Some(error) => {
                    open.tally.add(&error);
                    self.log(&open, Termination::Whole);
                }
                None => self.log(&open, termination),
            }
        }
    }

    /// Of the turns from this one on nothing goes to the upstream after all.
    pub fn refuse_from(&mut self, first: usize, cause: Cause) {
        for mut open in self.open.split_off(first) {
            open.record.sent = Sent::default();
            open.record.answer = Answered {
                status: Some(cause.event_status()),
                transport: self.answer.transport,
                ..Answered::default()
            };
            let (ledger, info) = (self.state.ledger(), &self.request_info);
            let termination = Termination::Refused(cause);
            open.record
                .log(&ledger, info, None, termination, &Observed::default());
        }
    }

    fn log(&self, open: &OpenTurn, termination: Termination) {
        let (ledger, info) = (self.state.ledger(), &self.request_info);
        let upstream = self.upstream.as_deref();
        let upstream = upstream.map(|upstream| &*upstream.config);
        let observed = open.tally.observed();
        open.record
            .log(&ledger, info, upstream, termination, &observed);
    }

    /// The message of a turn as it is sent once more, without the tier that was refused; the turn is the newest then. None, and
    /// the turn as it was, where it cannot be sent.
    fn retry(&mut self, at: usize, message: SentMessage) -> Option<Bytes> {
        let action = self.open[at].record.action?.without_tier();
        let (frame, payload_length, tier) = message.without_tier(action, &self.state.limits)?;
        let frame = waiting_piece(frame, &self.state.body_memory).ok()?;
        let mut open = self.open.remove(at);
        open.response_id = None;
        open.tally = OpenTurn::new_tally(&open.record);
        open.record.tier_refused = true;
        open.record.action = Some(action);
        open.record.sent_whole(payload_length as u64, tier);
        self.last = TurnTemplate::of(&open.record);
        self.open.push(open);
        Some(frame)
    }

    /// Which turn a message of the server belongs to. One that names a response which nobody waits for begins a turn: a
    /// response that was steered may go on in a successor also where it does not say so.
    fn turn_of(&mut self, event: &Event) -> Option<usize> {
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
            None => self.begin_successor(event)?,
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
        if kind == Some(ERROR) {
            return self.oldest_in_lane(event, |open| open.response_id.is_none());
        }
        // One that an error may have ended comes last.
        self.oldest_in_lane(event, |open| open.error.is_none())
            .or_else(|| self.oldest_in_lane(event, |_| true))
    }

    /// The oldest turn of the event's lane, or where that has none, of all, among those that `may_be`.
    fn oldest_in_lane(&self, event: &Event, may_be: impl Fn(&OpenTurn) -> bool) -> Option<usize> {
        let in_lane =
            |open: &OpenTurn| event.stream_id.is_some() && open.stream_id == event.stream_id;
        let has_lane = self.open.iter().any(in_lane);
        let fits = |open: &OpenTurn| may_be(open) && (!has_lane || in_lane(open));
        self.open.iter().position(fits)
    }

    /// An error that ends no turn. If it was that of a response which runs, nothing more comes of it: until something does, it
    /// is not waited for, and takes no place.
    fn keep_error(&mut self, event: Event) {
        if event.kind.as_deref() != Some(ERROR) || event.response_id.is_some() {
            return;
        }
        if let Some(at) = self.oldest_in_lane(&event, |_| true) {
            let open = &mut self.open[at];
            open.record.permits = None;
            open.error = Some(event);
        }
    }

    /// A turn that no message of the client creates.
    fn begin_successor(&mut self, event: &Event) -> Option<usize> {
        if !self.has_room() {
            return None;
        }
        let TurnTemplate {
            verdict,
            sent,
            facts,
        } = &self.last;
        let (verdict, sent, facts) = (verdict.clone(), sent.clone(), facts.clone());
        let mut record = self.next(verdict, facts);
        record.sent = sent;
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
        Some(Self {
            opcode: message.opcode,
            mask: message.mask,
            frame: waiting_piece(frame, memory).ok()?,
            payload_length,
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
        let rewriter = Rewriter::for_message(limits.json_depth, payload.len());
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
