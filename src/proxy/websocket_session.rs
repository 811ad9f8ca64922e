//! A WebSocket on the responses endpoint: every message of the client is judged before any of it goes on, and every
//! response has a turn and a line of its own. It is given the bytes of both sides and says what goes on; it reads and
//! writes no socket.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::json;

use crate::accounting::record::{
    Answered, RequestInfo, RequestRecord, Sent, Termination, own_tier,
};
use crate::accounting::usage::{EventObserver, Observed};
use crate::codec::body_budget::Lease;
use crate::codec::error::{Cause, Refusal};
use crate::codec::service_tier::{BodyFault, Edits, Facts, Rewriter, Rewritten};
use crate::codec::websocket::{
    ClientEvent, ClientReader, Message, Opcode, ProtocolError, ServerEvent, ServerReader,
    close_frame, encode_in_place, text_frame,
};
use crate::config::UpstreamKind;
use crate::policy::endpoint::Endpoint;
use crate::policy::{Credential, Decision, Denied, Policy};
use crate::proxy::request_body::refuse_json;
use crate::proxy::websocket_relay::{Relay, join};
use crate::proxy::websocket_turns::{OpenTurn, SentMessage, Step, Turns};
use crate::state::State;
use crate::upstream::Upstream;

/// The message that begins a response (<https://platform.openai.com/docs/guides/websocket-mode>).
const RESPONSE_CREATE: &str = "response.create";
/// RFC 6455 §7.4.1, and the registry of close codes for the last two.
const POLICY_VIOLATION: u16 = 1008;
const INTERNAL_ERROR: u16 = 1011;
const SERVICE_RESTART: u16 = 1012;
const TRY_AGAIN_LATER: u16 = 1013;
/// The status that the API's own error event names for a message it refuses.
const REFUSED_STATUS: u16 = 400;

/// What is awaited from the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// No message of a response is due.
    Nothing,
    /// The first message of a response.
    Response,
    /// The next message of a response, or the end of one under way.
    Message,
}

/// One WebSocket: what passes between client and upstream is read, its requests are edited, its responses are recorded.
pub struct WebSocketSession {
    state: Arc<State>,
    upstream: Option<Arc<Upstream>>,
    credential: Credential,
    lease: Lease,
    client: ClientReader,
    /// The client's message under way, and the first fault in it.
    message: Option<Rewriter>,
    fault: Option<BodyFault>,
    server: ServerReader,
    relay: Relay,
    event: EventObserver,
    event_bytes: u64,
    turns: Turns,
    /// What the client is still to be told, once the server's message under way has ended.
    pending_close: Option<Bytes>,
    /// Nothing more goes on in either direction.
    over: bool,
    /// Which side has said that it closes.
    client_closed: bool,
    server_closed: bool,
    /// Messages that began, went on with or ended a response, and how many of them were seen when something was last
    /// awaited.
    activity: u64,
    awaited_at: Option<(u64, Awaited)>,
}

/// What of a chunk goes on, and what the proxy itself has to say.
#[derive(Default)]
pub struct Passed {
    /// Bytes for the upstream, maybe none.
    pub to_upstream: Bytes,
    /// Frames for the client, maybe none, after which both sides are to be closed.
    pub to_client: Option<Bytes>,
    /// Why the client is told to go, where that is so.
    pub refusal: Option<Refusal>,
}

/// What becomes of a chunk of the server's.
#[derive(Default)]
pub struct Relayed {
    /// Bytes for the client in place of the chunk; none where it goes on as it came.
    pub to_client: Option<Bytes>,
    /// Messages that are sent to the upstream once more.
    pub to_upstream: Vec<Bytes>,
    /// Both sides are to be closed.
    pub ends: bool,
}

impl Relayed {
    /// The proxy has the last word, if there is one.
    fn last(word: Option<Bytes>) -> Self {
        Self {
            ends: word.is_some(),
            to_client: word,
            to_upstream: Vec::new(),
        }
    }
}

/// Why a client's bytes are not passed on.
enum Stop {
    Refused(Refusal),
    Protocol(ProtocolError),
}

impl WebSocketSession {
    /// A session whose handshake was accepted and that has passed nothing yet.
    pub fn new(
        state: &Arc<State>,
        upstream: Option<Arc<Upstream>>,
        credential: Credential,
    ) -> Result<Self, Refusal> {
        Ok(Self {
            state: state.clone(),
            upstream,
            credential,
            lease: state.body_memory.lease(0)?,
            client: ClientReader::new(state.limits.websocket_message as usize),
            message: None,
            fault: None,
            server: ServerReader::new(),
            relay: Relay::default(),
            event: EventObserver::new(),
            event_bytes: 0,
            turns: Turns::default(),
            pending_close: None,
            over: false,
            client_closed: false,
            server_closed: false,
            activity: 0,
            awaited_at: None,
        })
    }

    /// What is awaited, where that is not what was awaited before.
    pub fn newly_awaited(&mut self) -> Option<Awaited> {
        let in_message = !self.server.at_message_boundary() && !self.server.has_ended();
        let has_begun = |open: &OpenTurn| open.record.answer.time_to_first_byte.is_some();
        let awaited = if self.pending_close.is_some() {
            Awaited::Message
        } else if self.turns.open.is_empty() {
            match in_message {
                true => Awaited::Message,
                false => Awaited::Nothing,
            }
        } else if self.turns.open.iter().all(has_begun) {
            Awaited::Message
        } else {
            Awaited::Response
        };
        let at = (self.activity, awaited);
        (self.awaited_at.replace(at) != Some(at)).then_some(awaited)
    }

    /// What came from the client. Messages are judged one by one, each by the policy of that moment.
    pub fn client_bytes(
        &mut self,
        chunk: Bytes,
        request_info: &RequestInfo,
        connection: &RequestRecord,
    ) -> Passed {
        if self.over || self.pending_close.is_some() {
            return Passed::default();
        }
        let already_open = self.turns.open.len();
        self.client.feed(chunk);
        let mut pieces = Vec::new();
        match self.judge(&mut pieces, connection) {
            Ok(()) => Passed {
                to_upstream: join(pieces),
                ..Passed::default()
            },
            Err(stop) => {
                // What was judged good in this chunk is not sent either.
                let unsent = self.turns.open.split_off(already_open);
                self.refuse(stop, unsent, request_info)
            }
        }
    }

    /// What came from the upstream. It goes on as it is, but for an event that refuses a tier without which the message is sent
    /// once more; and the proxy may have something to add.
    pub fn server_bytes(
        &mut self,
        chunk: &Bytes,
        request_info: &RequestInfo,
        connection: &RequestRecord,
    ) -> Relayed {
        if self.over {
            return Relayed::last(Some(Bytes::new()));
        }
        let mut boundary = None;
        let mut to_upstream = Vec::new();
        let may_retry = self.pending_close.is_none() && !self.client_closed;
        let Self {
            server,
            relay,
            event,
            event_bytes,
            turns,
            server_closed,
            state,
            upstream,
            pending_close,
            activity,
            ..
        } = self;
        let upstream = upstream.as_deref().map(|upstream| &*upstream.config);
        let mut passage = relay.pass(chunk);
        server.feed(chunk, |part| match part {
            ServerEvent::MessageStart { begin, .. } => {
                *event_bytes = 0;
                if may_retry && boundary.is_none() && turns.may_be_refused() {
                    passage.hold(begin);
                }
            }
            ServerEvent::Payload(piece) => {
                *event_bytes += piece.len() as u64;
                event.feed(piece);
            }
            ServerEvent::MessageEnd { offset } => {
                *activity += 1;
                let retries = (may_retry && passage.holds_to(offset)).then_some(&**state);
                let step = turns.take_event(event.end(), *event_bytes, connection, retries);
                passage.end_message(offset, !matches!(step, Some(Step::Retried(_))));
                match step {
                    Some(Step::Ended(record, observed)) => {
                        let (ledger, whole) = (state.ledger(), Termination::Whole);
                        record.log(&ledger, request_info, upstream, whole, &observed);
                    }
                    Some(Step::Retried(message)) => to_upstream.push(message),
                    None => {}
                }
                let may_end =
                    pending_close.is_some() || (state.is_draining() && turns.open.is_empty());
                if may_end && boundary.is_none() {
                    boundary = Some(offset);
                }
            }
            ServerEvent::Control(frame) => {
                passage.control(&frame);
                *server_closed |= frame.opcode == Opcode::Close;
            }
            ServerEvent::Stopped(why) => {
                log::warn!(
                    "request {}: the upstream's frames cannot be read: {why}",
                    request_info.id
                );
            }
        });
        let Some(at) = boundary else {
            let header = match may_retry && turns.may_be_refused() {
                true => server.begun_header(),
                false => 0,
            };
            return Relayed {
                to_client: passage.finish(header, server.has_ended()),
                to_upstream,
                ends: false,
            };
        };
        self.over = true;
        let last = self.pending_close.take().unwrap_or_else(restart_frame);
        Relayed::last(Some(passage.end_with(at, last)))
    }

    /// The upstream's side has ended. What the client is to be told, if that falls to the proxy.
    pub fn server_ended(&mut self) -> Relayed {
        if self.over || self.server_closed {
            return Relayed::default();
        }
        self.over = true;
        if !self.is_client_between_messages() {
            return Relayed::default();
        }
        let drained = self.state.is_draining() && self.turns.open.is_empty();
        let last = self.pending_close.take();
        Relayed::last(last.or_else(|| drained.then(restart_frame)))
    }

    /// A response takes too long. What the client is told.
    pub fn server_is_late(&mut self, request_info: &RequestInfo) -> Relayed {
        if self.over || self.server_closed {
            return Relayed::default();
        }
        self.over = true;
        self.end_turns(Termination::Timeout, request_info);
        Relayed::last(self.is_client_between_messages().then(|| {
            let late = Refusal::from(Cause::UpstreamTimeout);
            let close = close_frame(INTERNAL_ERROR, late.cause.code(), None);
            Bytes::from([error_frame(&late), close].concat())
        }))
    }

    /// Whether a message of the proxy's own may follow what the client has. In the middle of a message the client would take
    /// anything for a part of it.
    fn is_client_between_messages(&self) -> bool {
        self.server.at_message_boundary() || self.relay.is_holding()
    }

    /// Whether the upstream has said that it closes; its client may then leave in any way.
    pub fn has_server_closed(&self) -> bool {
        self.server_closed
    }

    /// The client's side has ended.
    pub fn client_ended(&mut self) {
        self.client_closed = true;
    }

    /// The connection is gone: every response that still ran is accounted for. Returns how the connection ended.
    pub fn finish(&mut self, ending: Termination, request_info: &RequestInfo) -> Termination {
        let cut = match ending {
            Termination::Whole if self.client_closed => Termination::ClientClosed,
            Termination::Whole => Termination::UpstreamCut,
            // The client was sent away for another message of its own.
            Termination::Refused(_) => Termination::ClientClosed,
            other => other,
        };
        let cut_in_turn = !self.turns.open.is_empty();
        self.end_turns(cut, request_info);
        match ending {
            Termination::Whole if cut_in_turn => cut,
            other => other,
        }
    }

    /// Accounts for every response that still runs.
    fn end_turns(&mut self, ending: Termination, request_info: &RequestInfo) {
        let upstream = self.upstream.as_deref();
        let upstream = upstream.map(|upstream| &*upstream.config);
        for open in self.turns.open.drain(..) {
            let (ledger, observed) = (self.state.ledger(), Observed::default());
            open.record
                .log(&ledger, request_info, upstream, ending, &observed);
        }
    }

    /// Judges all messages that are whole, and gathers what goes on.
    fn judge(&mut self, pieces: &mut Vec<Bytes>, connection: &RequestRecord) -> Result<(), Stop> {
        while let Some(event) = self.client.next_event() {
            match event.map_err(Stop::Protocol)? {
                ClientEvent::Payload(piece) => {
                    self.read_piece(|take| piece.for_each_unmasked(take))
                }
                ClientEvent::Message(message) => {
                    pieces.push(self.judge_message(message, connection)?)
                }
                ClientEvent::Control { frame, raw } => {
                    // Behind the upstream's own it is an answer.
                    self.client_closed |= frame.opcode == Opcode::Close && !self.server_closed;
                    pieces.push(raw);
                }
            }
            self.account()?;
        }
        self.account()
    }

    fn read_piece(&mut self, unmasked: impl FnOnce(&mut dyn FnMut(&[u8]))) {
        let depth = self.state.limits.json_depth;
        let rewriter = self
            .message
            .get_or_insert_with(|| Rewriter::for_message(depth));
        let fault = &mut self.fault;
        unmasked(&mut |piece| {
            if fault.is_none() {
                *fault = rewriter.push(piece).err();
            }
        });
    }

    /// Keeps what is held within the budget of the process.
    fn account(&mut self) -> Result<(), Stop> {
        let held = self.client.held_bytes() + self.message.as_ref().map_or(0, Rewriter::capacity);
        self.lease.grow_to(held as u64).map_err(Stop::Refused)?;
        self.lease.shrink_to(held as u64);
        Ok(())
    }

    /// What goes on in place of a message.
    fn judge_message(
        &mut self,
        message: Message,
        connection: &RequestRecord,
    ) -> Result<Bytes, Stop> {
        let depth = self.state.limits.json_depth;
        let rewriter = self
            .message
            .take()
            .unwrap_or_else(|| Rewriter::for_message(depth));
        let policy = self.state.policy.current();
        let mut decided = policy.decide_turn(&self.credential, Endpoint::Responses, false);
        let is_create = self.may_create(rewriter.facts());
        let over_budget = match &mut decided {
            Ok(decision) if is_create => self.resolve_action(decision, rewriter.facts()).err(),
            _ => None,
        };
        let action = decided.as_ref().ok().and_then(|decision| decision.action);
        let edits = action.map_or(Edits::default(), |action| action.edits(false));
        let read = match self.fault.take() {
            Some(fault) => Err(fault),
            None => rewriter.finish(edits),
        };
        match (read, decided) {
            (Ok(body), Ok(decision)) if over_budget.is_some() => {
                let refusal = over_budget.unwrap_or_else(|| Cause::BudgetExhausted.into());
                let facts = Some(body.facts);
                Err(self.refuse_turn(refusal, policy, decision, facts, &message, connection))
            }
            // Whatever it is, it is nothing that a group without force would have changed.
            (Err(_), Ok(decision)) if decision.action.is_none() => Ok(message.raw),
            (Err(fault), Ok(decision)) => {
                let refusal = refuse_json(&fault, depth);
                Err(self.refuse_turn(refusal, policy, decision, None, &message, connection))
            }
            (Ok(body), Ok(decision)) if body.facts.several_types => {
                let refusal = Refusal::new(
                    Cause::InvalidJson,
                    "the message has several members that may be its `type`",
                );
                let facts = Some(body.facts);
                Err(self.refuse_turn(refusal, policy, decision, facts, &message, connection))
            }
            (Ok(body), _) if !is_create && !body.facts.several_types => Ok(message.raw),
            (Ok(body), Ok(decision)) => {
                self.begin_turn(policy, decision, body, message, connection)
            }
            (read, Err(denied)) => {
                let facts = read.ok().map(|body| body.facts);
                Err(self.deny_turn(denied, policy, facts, &message, connection))
            }
        }
    }

    /// Whether an upstream may begin a response for a message: one whose `type` says so, also in other spellings of it. Some
    /// gateways take a message without a type for one (Wei-Shaw/sub2api does).
    fn may_create(&self, facts: &Facts) -> bool {
        let is_gateway = || {
            let upstream = self.upstream.as_ref();
            upstream.is_some_and(|upstream| upstream.config.kind == UpstreamKind::Gateway)
        };
        facts.kind.as_deref().map_or_else(is_gateway, |kind| {
            let kind = kind.trim_matches(|letter: char| letter.is_whitespace() || letter == '\0');
            kind.is_empty() || kind.eq_ignore_ascii_case(RESPONSE_CREATE)
        })
    }

    /// Decides what only the message itself tells, and what is left of the budget.
    fn resolve_action(&self, decision: &mut Decision, facts: &Facts) -> Result<(), Refusal> {
        let group = &decision.group;
        let action = decision.action;
        let settled = action.and_then(|action| group.settle(action, facts));
        let (key, budgets) = (&decision.credential.digest, &self.state.budgets);
        let (own, now) = (own_tier(facts), Timestamp::now());
        let allowed = group.within_budget(settled, own, key, budgets, now);
        decision.action = allowed.map_err(Refusal::over_budget)?;
        Ok(())
    }

    /// A `response.create` that may go on.
    fn begin_turn(
        &mut self,
        policy: Arc<Policy>,
        decision: Decision,
        body: Rewritten,
        message: Message,
        connection: &RequestRecord,
    ) -> Result<Bytes, Stop> {
        if !self.turns.has_room() {
            let refusal = Refusal::new(
                Cause::BufferFull,
                "too many responses run on this connection",
            );
            return Err(self.refuse_turn(
                refusal,
                policy,
                decision,
                Some(body.facts),
                &message,
                connection,
            ));
        }
        let permits = match self
            .state
            .in_flight
            .enter(&decision.group, &decision.credential.digest)
        {
            Ok(permits) => permits,
            Err(refusal) => {
                let facts = Some(body.facts);
                return Err(
                    self.refuse_turn(refusal, policy, decision, facts, &message, connection)
                );
            }
        };
        let mut record = self.turns.next(policy, connection);
        record.permits = Some(permits);
        record.request_bytes = message.payload_length as u64;
        record.key = decision.key.clone();
        record.group = Some(decision.group.clone());
        record.action = decision.action;
        let action = decision.action.filter(|action| action.changes());
        let mut sent_message = None;
        let goes_on = if let Some(action) = action {
            let (buffer, start, facts) = body.into_parts();
            let depth = self.state.limits.json_depth;
            let Ok(found) = action.outgoing_tier(&buffer[start..], depth, true) else {
                self.state.metrics.unforced_forwarded.inc();
                log::error!(
                    "turn {}: the outgoing message does not carry the forced tier; it is not sent",
                    record.number
                );
                self.open_refused(record, Some(facts), &message);
                return Err(Stop::Refused(Cause::Internal.into()));
            };
            let payload_length = buffer.len() - start;
            record.facts = facts;
            record.sent_whole(payload_length as u64, found);
            let frame = encode_in_place(message.opcode, Some(message.mask), buffer, start);
            if decision.group.retries_without_tier(action) {
                // What was counted for it so far is the frame by now.
                self.lease.shrink_to(self.client.held_bytes() as u64);
                let (frame, memory) = (frame.clone(), &self.state.body_memory);
                sent_message = SentMessage::keep(&message, frame, payload_length, memory);
            }
            frame
        } else {
            record.facts = body.facts;
            record.sent_whole(message.payload_length as u64, None);
            message.raw
        };
        self.activity += 1;
        self.turns.begin(record, sent_message);
        Ok(goes_on)
    }

    fn deny_turn(
        &mut self,
        denied: Denied,
        policy: Arc<Policy>,
        facts: Option<Facts>,
        message: &Message,
        connection: &RequestRecord,
    ) -> Stop {
        let mut record = self.turns.next(policy, connection);
        record.key = denied.key;
        record.group = denied.group;
        self.open_refused(record, facts, message);
        Stop::Refused(denied.cause.into())
    }

    fn refuse_turn(
        &mut self,
        refusal: Refusal,
        policy: Arc<Policy>,
        decision: Decision,
        facts: Option<Facts>,
        message: &Message,
        connection: &RequestRecord,
    ) -> Stop {
        let mut record = self.turns.next(policy, connection);
        record.key = decision.key;
        record.group = Some(decision.group);
        record.action = decision.action;
        self.open_refused(record, facts, message);
        Stop::Refused(refusal)
    }

    /// A turn that the refusal which follows will close.
    fn open_refused(&mut self, mut record: RequestRecord, facts: Option<Facts>, message: &Message) {
        record.facts = facts.unwrap_or_default();
        record.request_bytes = message.payload_length as u64;
        self.turns.begin_refused(record);
    }

    /// Tells the client why, now or when the server's message under way has ended.
    fn refuse(&mut self, stop: Stop, unsent: Vec<OpenTurn>, request_info: &RequestInfo) -> Passed {
        let (refusal, code) = match stop {
            Stop::Refused(refusal)
                if matches!(refusal.cause, Cause::BufferFull | Cause::TooManyRequests) =>
            {
                (refusal, TRY_AGAIN_LATER)
            }
            Stop::Refused(refusal) if refusal.cause == Cause::Internal => (refusal, INTERNAL_ERROR),
            Stop::Refused(refusal) => (refusal, POLICY_VIOLATION),
            Stop::Protocol(why @ ProtocolError::MessageTooBig { .. }) => (
                Refusal::new(Cause::BodyTooLarge, why.to_string()),
                why.close_code(),
            ),
            Stop::Protocol(why) => (
                Refusal::new(Cause::InvalidHttp, why.to_string()),
                why.close_code(),
            ),
        };
        for mut open in unsent {
            open.record.sent = Sent::default();
            let transport = open.record.answer.transport;
            open.record.answer = Answered {
                status: Some(REFUSED_STATUS),
                transport,
                ..Answered::default()
            };
            open.record.log(
                &self.state.ledger(),
                request_info,
                None,
                Termination::Refused(refusal.cause),
                &Observed::default(),
            );
        }
        let frames = Bytes::from(
            [
                error_frame(&refusal),
                close_frame(code, refusal.cause.code(), None),
            ]
            .concat(),
        );
        Passed {
            to_upstream: Bytes::new(),
            to_client: self.last_word(frames),
            refusal: Some(refusal),
        }
    }

    /// These frames, if it is the moment for them; nothing, if no moment will come; else they wait for theirs.
    fn last_word(&mut self, frames: Bytes) -> Option<Bytes> {
        if self.is_client_between_messages() {
            self.over = true;
            Some(frames)
        } else if self.server.has_ended() {
            self.over = true;
            Some(Bytes::new())
        } else {
            self.pending_close = Some(frames);
            None
        }
    }
}

/// The event with which the API itself refuses a message, so that clients need not know the proxy.
fn error_frame(refusal: &Refusal) -> Vec<u8> {
    let event = json!({
        "type": "error",
        "status": REFUSED_STATUS,
        "error": {
            "type": "invalid_request_error",
            "code": refusal.cause.code(),
            "message": refusal.text(),
            "param": null,
        },
    });
    text_frame(&event.to_string(), None)
}

fn restart_frame() -> Bytes {
    Bytes::from(close_frame(SERVICE_RESTART, "the proxy restarts", None))
}
