//! What becomes of a client's message: it goes on as it came or with another tier and begins a turn, or it is refused.

use bytes::Bytes;
use jiff::Timestamp;

use super::{WebSocketSession, close_code};
use crate::accounting::record::RequestRecord;
use crate::codec::error::{Cause, Refusal};
use crate::codec::service_tier::{BodyFault, Edits, Observer, RequestFields, Rewriter, Rewritten};
use crate::codec::websocket::{ClientEvent, Message, Opcode, ProtocolError, encode_in_place};
use crate::policy::endpoint::Endpoint;
use crate::policy::in_flight::InFlightPermits;
use crate::policy::{Decision, TierAction};
use crate::proxy::error_mapping::refuse_unforced;
use crate::proxy::request_body::refuse_json;
use crate::proxy::websocket_turns::{SentMessage, Verdict};

/// The messages that begin a response: OpenAI's (<https://platform.openai.com/docs/guides/websocket-mode>), and that of Codex's
/// first version, by which gateways go on with the response before (router-for-me/CLIProxyAPI does).
const BEGINNINGS: [&str; 2] = ["response.create", "response.append"];

/// The message by which the response that runs goes on in another, with the settings that it has: `ResponseSteerEvent` of OpenAI's
/// Python SDK 3.57.0.
const STEER: &str = "response.steer";

/// Why bytes of the client are not passed on.
pub(super) enum MessageError {
    Refused(Refusal),
    Protocol(ProtocolError),
}

/// A message under way.
pub(super) enum MessageReader {
    /// It is good so far, and can be rewritten.
    Good(Box<Rewriter>),
    /// It is not, for this fault; what it says to lenient readers is looked at all the same.
    Faulty(BodyFault, Box<Observer>),
}

impl MessageReader {
    /// `announced`: the length of the message in bytes, or 0.
    fn new(json_depth: usize, announced: usize) -> Self {
        Self::Good(Rewriter::for_message(json_depth, announced).into())
    }

    fn push(&mut self, piece: &[u8]) {
        match self {
            Self::Good(rewriter) => {
                if let Err(fault) = rewriter.push(piece) {
                    let observer = rewriter.observer_of_message();
                    *self = Self::Faulty(fault, observer.into());
                }
            }
            Self::Faulty(_, observer) => observer.feed(piece),
        }
    }

    fn facts(&self) -> &RequestFields {
        match self {
            Self::Good(rewriter) => rewriter.facts(),
            Self::Faulty(_, observer) => observer.facts(),
        }
    }

    /// Bytes that are held of it.
    fn held(&self) -> usize {
        match self {
            Self::Good(rewriter) => rewriter.memory(),
            Self::Faulty(..) => 0,
        }
    }

    fn finish(self, edits: Edits) -> Result<Rewritten, BodyFault> {
        match self {
            Self::Good(rewriter) => rewriter.finish(edits),
            Self::Faulty(fault, _) => Err(fault),
        }
    }
}

impl MessageError {
    /// What the client is told, and the code that closes its connection.
    pub fn into_refusal(self) -> (Refusal, u16) {
        match self {
            MessageError::Refused(refusal) => {
                let code = close_code(refusal.cause);
                (refusal, code)
            }
            MessageError::Protocol(error) => {
                let cause = match error {
                    ProtocolError::MessageTooBig { .. } => Cause::BodyTooLarge,
                    _ => Cause::InvalidHttp,
                };
                (Refusal::new(cause, error.to_string()), error.close_code())
            }
        }
    }
}

impl WebSocketSession {
    /// Judges all messages that are whole, and gathers what goes on.
    pub(super) fn judge(&mut self, pieces: &mut Vec<Bytes>) -> Result<(), MessageError> {
        while let Some(event) = self.client.next_event() {
            match event.map_err(MessageError::Protocol)? {
                ClientEvent::Payload(piece) => {
                    self.read_piece(|take| piece.for_each_unmasked(take))
                }
                ClientEvent::Message(message) => {
                    self.messages += 1;
                    pieces.push(self.judge_message(message)?);
                }
                ClientEvent::Control { frame, raw } => {
                    if frame.opcode == Opcode::Close {
                        self.client_ended();
                    }
                    pieces.push(raw);
                }
            }
            self.account()?;
        }
        if self.client.awaits_rest() {
            self.check_key()?;
        }
        self.account()
    }

    /// A message under way may take long and hold much: a client whose key was disabled is not waited for.
    fn check_key(&self) -> Result<(), MessageError> {
        let policy = self.state.policy.current();
        let decided =
            policy.decide_turn(&self.credential, Endpoint::Responses, self.turns.models());
        match decided {
            Ok(_) => Ok(()),
            Err(denied) => Err(MessageError::Refused(denied.cause.into())),
        }
    }

    fn read_piece(&mut self, unmasked: impl FnOnce(&mut dyn FnMut(&[u8]))) {
        let (depth, announced) = (self.state.limits.json_depth, self.client.announced_bytes());
        let reader = self
            .message
            .get_or_insert_with(|| MessageReader::new(depth, announced));
        unmasked(&mut |piece| reader.push(piece));
    }

    /// Keeps what is held within the budget of the process.
    fn account(&mut self) -> Result<(), MessageError> {
        let held = self.client.held_bytes() + self.message.as_ref().map_or(0, MessageReader::held);
        self.lease
            .grow_to(held as u64)
            .map_err(MessageError::Refused)?;
        self.lease.shrink_to(held as u64);
        Ok(())
    }

    /// What goes on in place of a message.
    fn judge_message(&mut self, message: Message) -> Result<Bytes, MessageError> {
        let depth = self.state.limits.json_depth;
        let reader = self.message.take();
        let reader = reader.unwrap_or_else(|| MessageReader::new(depth, 0));
        let facts = reader.facts().clone();
        let policy = self.state.policy.current();
        let mut decided =
            policy.decide_turn(&self.credential, Endpoint::Responses, self.turns.models());
        let is_create = self.may_create(&reader);
        let is_steer = !self.turns.open.is_empty() && has_type(&facts, STEER);
        let over_budget = match &mut decided {
            Ok(decision) if is_create => self.resolve_action(decision, &facts).err(),
            // The response that follows asks for what the one before did.
            Ok(decision) if is_steer => {
                let inherited = self.turns.inherited_facts();
                self.resolve_action(decision, inherited).err()
            }
            _ => None,
        };
        let action = decided.as_ref().ok().and_then(|decision| decision.action);
        let edits = action.map_or(Edits::default(), |action| action.edits(false));
        let read = reader.finish(edits);
        let verdict = Verdict::new(policy, &decided);
        let may_begin = is_create || facts.several_types;
        let (body, decision) = match (read, decided) {
            (Ok(_), _) if !may_begin && !is_steer => return Ok(message.raw),
            (read, Err(denied)) => {
                let facts = read.map(|body| body.facts).unwrap_or_default();
                return Err(self.refuse_turn(verdict, &message, facts, denied.cause.into()));
            }
            (Err(fault), Ok(decision)) if must_be_good(&decision, may_begin) => {
                let facts = RequestFields::default();
                return Err(self.refuse_turn(verdict, &message, facts, refuse_json(&fault, depth)));
            }
            // Whether its upstream makes anything of it is told by what comes: taken for a create, it would be given the response
            // of the next one where it does not.
            (Err(_), Ok(_)) => return Ok(message.raw),
            (Ok(body), Ok(decision)) => (body, decision),
        };
        let ambiguous = facts.several_types.then(|| {
            Refusal::new(
                Cause::InvalidJson,
                "the message has several members that may be its `type`",
            )
        });
        let unforced = (is_steer && !self.turns.keeps_tier(decision.action))
            .then(|| Refusal::from(Cause::TierNotForced));
        match over_budget.or(ambiguous).or(unforced) {
            Some(refusal) => Err(self.refuse_turn(verdict, &message, facts, refusal)),
            None if is_steer => Ok(message.raw),
            None => self.begin_turn(verdict, &message, &decision, facts, body),
        }
    }

    /// Whether an upstream may begin a response for a message: one whose `type` says so, also in other spellings of it. Some
    /// gateways take a message without a type for one (Wei-Shaw/sub2api does), and of an object with a fault the type may not be
    /// known.
    fn may_create(&self, reader: &MessageReader) -> bool {
        let is_gateway = || {
            let upstream = self.upstream.as_ref();
            upstream.is_some_and(|upstream| upstream.config.kind.is_gateway())
        };
        let without_type = || match reader {
            MessageReader::Good(rewriter) => rewriter.has_begun() && is_gateway(),
            MessageReader::Faulty(_, observer) => observer.is_object(),
        };
        let facts = reader.facts();
        if facts.kind.is_none() {
            return without_type();
        }
        let begins = |other: &&str| has_type(facts, other);
        has_type(facts, "") || BEGINNINGS.iter().any(begins)
    }

    /// Decides what only the message itself tells, and what is left of the budget.
    fn resolve_action(
        &self,
        decision: &mut Decision,
        facts: &RequestFields,
    ) -> Result<(), Refusal> {
        let group = &decision.group;
        let action = decision.action;
        let settled = action.and_then(|action| group.settle(action, facts));
        let (key, budgets) = (&decision.credential.key.digest, &self.state.budgets);
        let (own, now) = (facts.asked_tier(), Timestamp::now());
        let allowed = group.within_budget(settled, own, key, budgets, now);
        decision.action = allowed.map_err(Refusal::over_budget)?;
        Ok(())
    }

    /// A `response.create` that may go on.
    fn begin_turn(
        &mut self,
        verdict: Verdict,
        message: &Message,
        decision: &Decision,
        facts: RequestFields,
        body: Rewritten,
    ) -> Result<Bytes, MessageError> {
        let permits = match self.acquire_permits(decision) {
            Ok(permits) => permits,
            Err(refusal) => return Err(self.refuse_turn(verdict, message, facts, refusal)),
        };
        let mut record = self.turns.next(verdict, facts);
        record.request_bytes = message.payload_length as u64;
        record.permits = Some(permits);
        let sent = match decision.action.filter(|action| action.changes()) {
            Some(action) => self.rewritten_frame(&mut record, message, action, body),
            None => {
                record.sent_whole(message.payload_length as u64, None);
                Ok((message.raw.clone(), None))
            }
        };
        match sent {
            Ok((frame, kept)) => {
                self.activity += 1;
                self.turns.begin(record, kept);
                Ok(frame)
            }
            Err(refusal) => {
                self.turns.begin_refused(record);
                Err(MessageError::Refused(refusal))
            }
        }
    }

    fn acquire_permits(&self, decision: &Decision) -> Result<InFlightPermits, Refusal> {
        if !self.turns.has_room() {
            return Err(Refusal::new(
                Cause::BufferFull,
                "too many responses run on this connection",
            ));
        }
        if self.state.log.is_full() {
            return Err(Cause::AccessLogUnavailable.into());
        }
        let in_flight = &self.state.in_flight;
        in_flight.enter(&decision.group, &decision.credential.key.digest)
    }

    /// The message with the tier that was decided, and a copy of it where it may have to be sent without the tier.
    fn rewritten_frame(
        &mut self,
        record: &mut RequestRecord,
        message: &Message,
        action: TierAction,
        body: Rewritten,
    ) -> Result<(Bytes, Option<SentMessage>), Refusal> {
        let (buffer, start, _) = body.into_parts();
        let (depth, turn) = (self.state.limits.json_depth, record.number);
        let tier = action
            .outgoing_tier(&buffer[start..], depth, true)
            .map_err(|_| refuse_unforced(&self.state, format_args!("turn {turn}")))?;
        let payload_length = buffer.len() - start;
        record.sent_whole(payload_length as u64, tier);
        let frame = encode_in_place(message.opcode, Some(message.mask), buffer, start);
        let group = record.group.as_ref();
        if !group.is_some_and(|group| group.retries_without_tier(action)) {
            return Ok((frame, None));
        }
        // What was counted for it so far is the frame by now.
        self.lease.shrink_to(self.client.held_bytes() as u64);
        let memory = &self.state.body_memory;
        let kept = SentMessage::keep(message, frame.clone(), payload_length, memory);
        Ok((frame, kept))
    }

    /// A turn of which nothing goes to the upstream; the refusal which follows will close it.
    fn refuse_turn(
        &mut self,
        verdict: Verdict,
        message: &Message,
        facts: RequestFields,
        refusal: Refusal,
    ) -> MessageError {
        let mut record = self.turns.next(verdict, facts);
        record.request_bytes = message.payload_length as u64;
        self.turns.begin_refused(record);
        MessageError::Refused(refusal)
    }
}

/// Whether a message is of this type, also in other spellings of it.
fn has_type(facts: &RequestFields, other: &str) -> bool {
    let is_padding = |letter: char| letter.is_whitespace() || letter == '\0';
    let kind = facts.kind.as_deref();
    kind.is_some_and(|kind| kind.trim_matches(is_padding).eq_ignore_ascii_case(other))
}

/// Whether a message that cannot be read is refused: where it would have been rewritten, and where a budget is to see its tier,
/// as over HTTP. What such a message would have begun goes on as it came elsewhere.
fn must_be_good(decision: &Decision, may_begin: bool) -> bool {
    decision.action.is_some() || (may_begin && decision.group.holds_for_budget())
}
