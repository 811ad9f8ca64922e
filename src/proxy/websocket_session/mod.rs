//! A WebSocket on the responses endpoint: every message of the client is judged before any of it goes on, and every
//! response has a turn and a line of its own. It is given the bytes of both sides and says what goes on; it reads and
//! writes no socket. What becomes of a message is [`judgement`]'s.

mod judgement;

use std::sync::Arc;

use bytes::Bytes;

use crate::accounting::record::{RequestInfo, RequestRecord, Termination};
use crate::accounting::usage::EventObserver;
use crate::codec::body_memory::Lease;
use crate::codec::error::{Cause, Refusal};
use crate::codec::websocket::{
    ClientReader, Opcode, ServerEvent, ServerReader, close_frame, text_frame,
};
use crate::policy::Credential;
use crate::proxy::websocket_relay::{HeldMessage, join};
use crate::proxy::websocket_turns::Turns;
use crate::state::State;
use crate::upstream::Upstream;
use judgement::{MessageError, MessageReader};

/// RFC 6455 §7.4.1, and the registry of close codes for the last two.
const POLICY_VIOLATION: u16 = 1008;
const INTERNAL_ERROR: u16 = 1011;
const SERVICE_RESTART: u16 = 1012;
const TRY_AGAIN_LATER: u16 = 1013;

/// What is awaited from the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// No message of a response is due.
    Nothing,
    /// More of a response that an error may have ended.
    PerhapsMore,
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
    /// The client's message under way.
    message: Option<MessageReader>,
    /// Messages of the client that are whole.
    messages: u64,
    server: ServerReader,
    held: HeldMessage,
    event: EventObserver,
    event_bytes: u64,
    turns: Turns,
    /// What the client is still to be told, once the server's message under way has ended.
    pending_close: Option<Bytes>,
    /// Nothing more goes on in either direction.
    closed: bool,
    /// Which side has closed first.
    client_closed: bool,
    server_closed: bool,
    /// Messages that began, went on with or ended a response, and pings of an upstream that is to go on with one; and how
    /// many of them were seen when something was last awaited.
    activity: u64,
    awaited_at: Option<(u64, Awaited)>,
}

/// What of a chunk goes on, and what the proxy itself has to say.
#[derive(Default)]
pub struct ClientOutput {
    /// Bytes for the upstream, maybe none.
    pub to_upstream: Bytes,
    /// Frames for the client, maybe none, after which both sides are to be closed.
    pub to_client: Option<Bytes>,
    /// Why the client is told to go, where that is so.
    pub refusal: Option<Refusal>,
}

/// What becomes of a chunk of the server's.
#[derive(Default)]
pub struct ServerOutput {
    /// Bytes for the client in place of the chunk; none where it goes on as it came.
    pub to_client: Option<Bytes>,
    /// Messages that are sent to the upstream once more.
    pub to_upstream: Vec<Bytes>,
    /// Both sides are to be closed.
    pub ends: bool,
}

impl ServerOutput {
    /// Both sides are closed after these frames, if there are any.
    fn closing(frames: Option<Bytes>) -> Self {
        Self {
            ends: frames.is_some(),
            to_client: frames,
            to_upstream: Vec::new(),
        }
    }
}

impl WebSocketSession {
    /// A session whose handshake was accepted and that has passed nothing yet. `connection`: the record of that request.
    pub fn new(
        state: &Arc<State>,
        upstream: Option<Arc<Upstream>>,
        credential: Credential,
        request_info: RequestInfo,
        connection: &RequestRecord,
    ) -> Result<Self, Refusal> {
        Ok(Self {
            state: state.clone(),
            turns: Turns::new(state, upstream.clone(), request_info, connection),
            upstream,
            credential,
            lease: state.body_memory.lease(0)?,
            client: ClientReader::new(state.limits.websocket_message as usize),
            message: None,
            messages: 0,
            server: ServerReader::new(),
            held: HeldMessage::default(),
            event: EventObserver::new(),
            event_bytes: 0,
            pending_close: None,
            closed: false,
            client_closed: false,
            server_closed: false,
            activity: 0,
            awaited_at: None,
        })
    }

    /// What is awaited, where that is not what was awaited before.
    pub fn newly_awaited(&mut self) -> Option<Awaited> {
        let in_message = !self.server.at_message_boundary() && !self.server.has_ended();
        let awaited = if self.pending_close.is_some() {
            Awaited::Message
        } else if self.turns.are_in_doubt() {
            match (in_message, self.turns.open.is_empty()) {
                (true, _) => Awaited::Message,
                (false, true) => Awaited::Nothing,
                (false, false) => Awaited::PerhapsMore,
            }
        } else if self.turns.have_begun() {
            Awaited::Message
        } else {
            Awaited::Response
        };
        let at = (self.activity, awaited);
        (self.awaited_at.replace(at) != Some(at)).then_some(awaited)
    }

    /// The place among the client's messages of the one that is under way, if one is.
    pub fn underway(&self) -> Option<u64> {
        let is_read = !self.closed && self.pending_close.is_none();
        (is_read && self.client.awaits_rest()).then_some(self.messages)
    }

    /// What came from the client. Messages are judged one by one, each by the policy of that moment.
    pub fn client_bytes(&mut self, chunk: Bytes) -> ClientOutput {
        if self.closed || self.pending_close.is_some() {
            return ClientOutput::default();
        }
        let already_open = self.turns.open.len();
        self.client.feed(chunk);
        let mut pieces = Vec::new();
        match self.judge(&mut pieces) {
            Ok(()) => ClientOutput {
                to_upstream: join(pieces),
                ..ClientOutput::default()
            },
            Err(error) => {
                // What was judged good in this chunk is not sent either.
                self.refuse(error, already_open)
            }
        }
    }

    /// What came from the upstream. It goes on as it is, but for an event that refuses a tier without which the message is sent
    /// once more; and the proxy may have something to add.
    pub fn server_bytes(&mut self, chunk: &Bytes) -> ServerOutput {
        if self.closed {
            return ServerOutput::closing(Some(Bytes::new()));
        }
        let mut boundary = None;
        let mut to_upstream = Vec::new();
        let may_retry = self.pending_close.is_none() && !self.client_closed;
        let Self {
            server,
            held,
            event,
            event_bytes,
            turns,
            server_closed,
            state,
            pending_close,
            activity,
            ..
        } = self;
        let (mut pass, mut is_pinged) = (held.pass(chunk), false);
        server.feed(chunk, |part| match part {
            ServerEvent::MessageStart { begin, .. } => {
                *event_bytes = 0;
                if may_retry && boundary.is_none() && turns.may_be_refused() {
                    pass.hold(begin);
                }
            }
            ServerEvent::Payload(piece) => {
                *event_bytes += piece.len() as u64;
                event.feed(piece);
            }
            ServerEvent::MessageEnd { offset } => {
                *activity += 1;
                let may_retry = may_retry && pass.holds_to(offset);
                let retried = turns.take_event(event.end(), *event_bytes, may_retry);
                pass.end_message(offset, retried.is_none());
                to_upstream.extend(retried);
                let may_close =
                    pending_close.is_some() || (state.is_draining() && turns.open.is_empty());
                boundary = boundary.or(may_close.then_some(offset));
            }
            ServerEvent::Control(frame) => {
                pass.control(&frame);
                *server_closed |= frame.opcode == Opcode::Close;
                is_pinged |= frame.opcode == Opcode::Ping;
            }
            ServerEvent::Stopped(why) => {
                let id = turns.request_id();
                log::warn!("request {id}: the upstream's frames cannot be read: {why}");
            }
        });
        // As comments do in an event stream, pings tell that a response goes on, but not that one will begin. A pong tells
        // nothing: clients' libraries ask for one every few seconds.
        if is_pinged && pending_close.is_none() && turns.have_begun() {
            *activity += 1;
        }
        if let Some(at) = boundary {
            self.closed = true;
            let last = self.pending_close.take().unwrap_or_else(restart_frame);
            return ServerOutput::closing(Some(pass.end_with(at, last)));
        }
        let header = match may_retry && turns.may_be_refused() {
            true => server.begun_header(),
            false => 0,
        };
        ServerOutput {
            to_client: pass.finish(header, server.has_ended()),
            to_upstream,
            ends: false,
        }
    }

    /// The upstream's side has ended. What the client is to be told, if that falls to the proxy.
    pub fn server_ended(&mut self) -> ServerOutput {
        if self.closed || self.server_closed {
            return ServerOutput::default();
        }
        self.closed = true;
        if !self.is_client_between_messages() {
            return ServerOutput::default();
        }
        let drained = self.state.is_draining() && self.turns.open.is_empty();
        let last = self.pending_close.take();
        ServerOutput::closing(last.or_else(|| drained.then(restart_frame)))
    }

    /// A response takes too long. What the client is told.
    pub fn server_is_late(&mut self) -> ServerOutput {
        self.give_up(Cause::UpstreamTimeout, Termination::Timeout)
    }

    /// The client is told so when the message that it has a part of has ended, and goes then.
    pub fn close_behind_message(&mut self, cause: Cause) {
        self.pending_close.get_or_insert_with(|| farewell(cause));
    }

    /// Whether the client has a part of a message, of which more can come.
    pub fn is_in_message(&self) -> bool {
        !self.is_client_between_messages() && !self.server.has_ended()
    }

    /// The rest of the client's message takes too long. What the client is told.
    pub fn client_is_late(&mut self) -> ServerOutput {
        self.give_up(Cause::RequestTimeout, Termination::ClientClosed)
    }

    /// The upstream's side reads as ended because something took too long. `turns`: how the responses end that run.
    fn give_up(&mut self, cause: Cause, turns: Termination) -> ServerOutput {
        if self.closed || self.server_closed {
            return ServerOutput::default();
        }
        self.closed = true;
        self.turns.end_all(turns);
        let is_between = self.is_client_between_messages();
        ServerOutput::closing(is_between.then(|| farewell(cause)))
    }

    /// Whether a message of the proxy's own may follow what the client has. In the middle of a message the client would take
    /// anything for a part of it.
    fn is_client_between_messages(&self) -> bool {
        self.server.at_message_boundary() || self.held.is_holding()
    }

    /// The client has said that it closes, or its side has ended. Behind the upstream's own close it is an answer.
    pub fn client_ended(&mut self) {
        self.client_closed |= !self.server_closed;
    }

    /// The connection is gone: every response that still ran is accounted for. Returns how the connection ended.
    pub fn finish(&mut self, termination: Termination) -> Termination {
        let termination = match termination {
            // The upstream has said that it closes; its client may then leave in any way.
            Termination::ClientClosed if self.server_closed => Termination::Whole,
            other => other,
        };
        let cut = match termination {
            Termination::Whole if self.client_closed => Termination::ClientClosed,
            Termination::Whole => Termination::UpstreamCut,
            // The client was sent away for another message of its own.
            Termination::Refused(_) => Termination::ClientClosed,
            other => other,
        };
        let cut_in_turn = !self.turns.open.is_empty();
        self.turns.end_all(cut);
        match termination {
            Termination::Whole if cut_in_turn => cut,
            other => other,
        }
    }

    /// Tells the client why, now or when the server's message under way has ended. Of the turns from `first` on nothing was
    /// sent.
    fn refuse(&mut self, error: MessageError, first: usize) -> ClientOutput {
        let (refusal, code) = error.into_refusal();
        self.turns.refuse_from(first, refusal.cause);
        let frames = refusal_frames(&refusal, code);
        ClientOutput {
            to_upstream: Bytes::new(),
            to_client: self.close_client(frames),
            refusal: Some(refusal),
        }
    }

    /// These frames, if it is the moment for them; nothing, if no moment will come; else they wait for theirs.
    fn close_client(&mut self, frames: Bytes) -> Option<Bytes> {
        if self.is_client_between_messages() {
            self.closed = true;
            Some(frames)
        } else if self.server.has_ended() {
            self.closed = true;
            Some(Bytes::new())
        } else {
            self.pending_close = Some(frames);
            None
        }
    }
}

/// The event that tells why, and the close.
fn refusal_frames(refusal: &Refusal, close_code: u16) -> Bytes {
    let close = close_frame(close_code, refusal.cause.code(), None);
    Bytes::from([text_frame(&refusal.event(), None), close].concat())
}

/// What the client is told that goes for this cause.
fn farewell(cause: Cause) -> Bytes {
    refusal_frames(&cause.into(), close_code(cause))
}

/// The code that closes a connection for this cause.
fn close_code(cause: Cause) -> u16 {
    match cause.event_status() {
        503 => TRY_AGAIN_LATER,
        500.. => INTERNAL_ERROR,
        _ => POLICY_VIOLATION,
    }
}

fn restart_frame() -> Bytes {
    Bytes::from(close_frame(SERVICE_RESTART, "the proxy restarts", None))
}
