//! What a request tells the client's connection that it came on, and learns from it: when its head has been read, and
//! whether its response is read to the end although the client has left. The request's context holds one end, the
//! connection (`server/downstream.rs`) the other; Pingora carries it between them in the connection's digest.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::codec::framing::is_interim;
use crate::codec::request_scan::{BodyFraming, RequestScan};
use crate::upstream::connector::control::StreamControl;
use crate::upstream::waker_slot::WakerSlot;

/// From the event that ends a stream to the end of its message, where the client has left.
const MESSAGE_END: Duration = Duration::from_secs(1);
/// How long an idle connection stays at a drain: a request that is on its way is answered, with the word that it is the last.
const IDLE_TIME: Duration = Duration::from_millis(250);
/// From the end of a request to that of its client's side, where both are sent together.
const END_TIME: Duration = Duration::from_millis(100);

/// Limits for the heads of a connection's requests.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// For a whole head, from its first byte.
    pub time: Duration,
    /// What is read of a head that does not end, in bytes.
    pub bytes: u64,
    /// Between two requests.
    pub keepalive: Duration,
}

/// A connection of HTTP/1.1 as its requests come one after the other. All of it happens in the task of the connection, so
/// its lock is always free.
#[derive(Debug)]
pub struct ClientConnection(Mutex<State>);

#[derive(Debug)]
struct State {
    limits: HeadLimits,
    phase: Phase,
    head_bytes_left: u64,
    scan: RequestScan,
    /// The request's version knows interim responses.
    knows_interim: bool,
    /// The final response to the request has begun; and it did so before all of the request had come.
    has_begun: bool,
    began_early: bool,
    drains: bool,
    /// The drain has lasted as long as it may.
    drain_over: bool,
    /// More of the request's body is to come.
    awaits_body: bool,
    /// When the last of the request came.
    whole_since: Instant,
    /// It was not waited for because the drain was over.
    body_cut: bool,
    /// The upstream's connection of a WebSocket, which is told of a drain, and of a message that is late.
    socket: Option<Arc<StreamControl>>,
    /// The message of a WebSocket that is under way.
    message: Option<Underway>,
    /// It did not come in time.
    message_late: bool,
    /// For how long a response is read on without its client; none where the request ends with the client.
    abort_grace: Option<Duration>,
    /// Until when, once the client has left.
    grace_ends: Option<Instant>,
    waker: WakerSlot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The connection is new and nothing of its first request is here.
    New { until: Instant },
    /// Between two requests.
    Idle { until: Instant },
    /// A head is on its way.
    Head { until: Instant },
    /// A request runs.
    Request,
}

/// A message that has begun and has not ended.
#[derive(Clone, Copy, Debug)]
struct Underway {
    /// Its place among the client's messages.
    number: u64,
    /// How long its next bytes may take.
    idle: Duration,
    /// Since when they have been waited for; the time in which nobody reads is not the client's.
    since: Option<Instant>,
    /// When all of it is to be here.
    due: Instant,
}

/// How a connection is to go on that waits for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    Until(Instant),
    Forever,
    /// Its time is over.
    Over,
}

impl ClientConnection {
    /// A new connection, whose first head is to be whole at `until`.
    pub fn new(limits: HeadLimits, until: Instant) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            limits,
            phase: Phase::New { until },
            head_bytes_left: limits.bytes,
            scan: RequestScan::default(),
            knows_interim: false,
            has_begun: false,
            began_early: false,
            drains: false,
            drain_over: false,
            awaits_body: false,
            whole_since: Instant::now(),
            body_cut: false,
            socket: None,
            message: None,
            message_late: false,
            abort_grace: None,
            grace_ends: None,
            waker: WakerSlot::default(),
        })))
    }

    /// The next request is awaited.
    pub fn await_request(&self) {
        let mut state = self.0.lock();
        state.head_bytes_left = state.limits.bytes;
        state.abort_grace = None;
        state.grace_ends = None;
        state.awaits_body = false;
        let time = match state.drains {
            true => state.limits.keepalive.min(IDLE_TIME),
            false => state.limits.keepalive,
        };
        state.phase = Phase::Idle {
            until: Instant::now() + time,
        };
    }

    /// Whether the connection is between two requests.
    pub fn awaits_request(&self) -> bool {
        matches!(self.0.lock().phase, Phase::Idle { .. })
    }

    /// The head of the request has been read. `knows_interim`: its version knows interim responses.
    pub fn head_is_read(&self, body: BodyFraming, knows_interim: bool) {
        let mut state = self.0.lock();
        state.phase = Phase::Request;
        state.knows_interim = knows_interim;
        state.has_begun = false;
        state.began_early = false;
        state.whole_since = Instant::now();
        state.scan.begin_body(body);
    }

    /// Whether the body that comes has chunks that another could take apart in another way.
    pub fn has_malformed_chunks(&self) -> bool {
        self.0.lock().scan.is_malformed()
    }

    /// These bytes came from the client. False where a head is too long to be read on.
    pub fn record_read(&self, bytes: &[u8]) -> bool {
        let mut state = self.0.lock();
        state.scan.feed(bytes);
        match state.phase {
            Phase::Request => return true,
            Phase::Head { .. } => {}
            Phase::New { until } => state.phase = Phase::Head { until },
            Phase::Idle { .. } => {
                let until = Instant::now() + state.limits.time;
                state.phase = Phase::Head { until };
            }
        }
        let left = state.head_bytes_left.checked_sub(bytes.len() as u64);
        state.head_bytes_left = left.unwrap_or(0);
        left.is_some()
    }

    /// The process is about to end. An idle connection ends in a moment, a new one in `new_time`; what has begun goes on.
    pub fn drain(&self, new_time: Duration) {
        let mut state = self.0.lock();
        state.drains = true;
        match &mut state.phase {
            Phase::New { until } => *until = (*until).min(Instant::now() + new_time),
            Phase::Idle { until } => *until = (*until).min(Instant::now() + IDLE_TIME),
            Phase::Head { .. } | Phase::Request => {}
        }
        if let Some(socket) = &state.socket {
            socket.drain();
        }
        state.waker.wake();
    }

    /// The drain is over: a request whose body has not come is not waited for, so that it can be answered.
    pub fn end_drain(&self) {
        let mut state = self.0.lock();
        state.drain_over = true;
        state.waker.wake();
    }

    /// Says whether more of the request's body is to come; the end of a drain interrupts the wait for it.
    pub fn set_awaits_body(&self, awaits: bool) {
        let mut state = self.0.lock();
        if state.awaits_body && !awaits {
            state.whole_since = Instant::now();
        }
        state.awaits_body = awaits;
    }

    /// Whether a request runs of which nothing more is to come.
    pub fn runs_whole_request(&self) -> bool {
        let state = self.0.lock();
        state.phase == Phase::Request && !state.awaits_body
    }

    /// These bytes of a response are written. True where the final one begins with them, to a request that is whole and could
    /// have had an interim one up to now.
    pub fn response_goes_on(&self, bytes: &[u8]) -> bool {
        if is_interim(bytes) {
            return false;
        }
        let mut state = self.0.lock();
        let begins = !std::mem::replace(&mut state.has_begun, true);
        state.began_early |= begins && state.awaits_body;
        begins && state.knows_interim && !state.awaits_body
    }

    /// Whether a client whose side ends now may wait for its response: that has not begun, or began early, and the side ends with
    /// the request.
    pub fn may_wait_for_response(&self) -> bool {
        let state = self.0.lock();
        let ends_with_request = || state.whole_since.elapsed() < END_TIME;
        state.knows_interim && (!state.has_begun || (state.began_early && ends_with_request()))
    }

    /// Whether an interim response may be sent to the request.
    pub fn takes_interim(&self) -> bool {
        let state = self.0.lock();
        state.knows_interim && !state.has_begun
    }

    /// Whether the rest of the body was not waited for because the drain was over.
    pub fn is_body_cut(&self) -> bool {
        self.0.lock().body_cut
    }

    /// The connection is a WebSocket now, and `socket` its upstream's side.
    pub fn upgrade(&self, socket: Arc<StreamControl>) {
        let mut state = self.0.lock();
        if state.drains {
            socket.drain();
        }
        state.socket = Some(socket);
        state.scan.end();
    }

    /// Bytes of this message of a WebSocket are still to come, of which something came just now; `None`: no message is under
    /// way. The next bytes may take `idle`, and all of it `whole`. Where it takes longer the upstream's connection reads as ended.
    pub fn await_message(&self, number: Option<u64>, idle: Duration, whole: Duration) {
        let mut state = self.0.lock();
        let began = state.message.filter(|known| Some(known.number) == number);
        state.message = number.map(|number| Underway {
            number,
            idle,
            since: None,
            due: began.map_or_else(|| Instant::now() + whole, |message| message.due),
        });
    }

    /// Whether a message of a WebSocket did not come in time.
    pub fn is_message_late(&self) -> bool {
        self.0.lock().message_late
    }

    /// How long to wait for the client's next bytes.
    pub fn wait(&self, cx: &Context<'_>) -> Wait {
        let mut state = self.0.lock();
        state.waker.register(cx);
        let until = match state.phase {
            Phase::Request if state.drain_over && state.awaits_body => {
                // Once: what the client sends while it is answered may be read.
                state.awaits_body = false;
                state.body_cut = true;
                return Wait::Over;
            }
            Phase::New { until } | Phase::Idle { until } | Phase::Head { until } => Some(until),
            Phase::Request => state.grace_ends.or_else(|| state.message_until()),
        };
        match until {
            Some(until) if until <= Instant::now() => Wait::Over,
            Some(until) => Wait::Until(until),
            None => Wait::Forever,
        }
    }

    /// From now on, should the client leave, its response is read on for so long.
    pub fn ignore_abort(&self, grace: Duration) {
        self.0.lock().abort_grace = Some(grace);
    }

    /// Takes note that the client has left. True where the request goes on without it, for a while.
    pub fn client_aborted(&self) -> bool {
        let mut state = self.0.lock();
        let Some(grace) = state.abort_grace else {
            return false;
        };
        state
            .grace_ends
            .get_or_insert_with(|| Instant::now() + grace);
        true
    }

    /// Whether the client has left and its response is read on.
    pub fn has_client_left(&self) -> bool {
        self.0.lock().grace_ends.is_some()
    }

    /// The response has told all that it is read on for. Where the client has left, the rest is read only to use the
    /// upstream's connection again.
    pub fn response_complete(&self) {
        let mut state = self.0.lock();
        let Some(ends) = &mut state.grace_ends else {
            state.abort_grace = None;
            return;
        };
        *ends = (*ends).min(Instant::now() + MESSAGE_END);
        state.waker.wake();
    }
}

impl State {
    /// Until when the next bytes of a message are waited for. One that is late ends the connection from its other side, so
    /// that the client is told.
    fn message_until(&mut self) -> Option<Instant> {
        let (now, message) = (Instant::now(), self.message.as_mut()?);
        let since = *message.since.get_or_insert(now);
        let until = message.due.min(since + message.idle);
        if until > now {
            return Some(until);
        }
        self.message = None;
        self.message_late = true;
        if let Some(socket) = &self.socket {
            socket.end_behind_message();
        }
        None
    }
}

impl Wait {
    /// Ready where the time is over; `sleep` is armed else.
    pub fn poll(
        self,
        sleep: &mut Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let until = match self {
            Wait::Over => return Poll::Ready(()),
            Wait::Forever => return Poll::Pending,
            Wait::Until(until) => until,
        };
        let sleep = sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if sleep.deadline() != until {
            sleep.as_mut().reset(until);
        }
        sleep.as_mut().poll(cx)
    }
}

#[cfg(test)]
impl ClientConnection {
    /// One with time enough, on which a request without a body runs.
    pub(crate) fn with_request() -> Arc<Self> {
        const HOUR: Duration = Duration::from_secs(3600);
        let limits = HeadLimits {
            time: HOUR,
            bytes: 1000,
            keepalive: HOUR,
        };
        let connection = Self::new(limits, Instant::now() + HOUR);
        connection.head_is_read(BodyFraming::Length(0), true);
        connection
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn wait(connection: &ClientConnection) -> Wait {
        connection.wait(&Context::from_waker(Waker::noop()))
    }

    #[test]
    fn each_message_has_a_time_of_its_own() {
        let connection = ClientConnection::with_request();
        connection.await_message(Some(0), HOUR, HOUR);
        assert!(matches!(wait(&connection), Wait::Until(_)));
        // More of it does not give it more time, nor less.
        connection.await_message(Some(0), HOUR, Duration::ZERO);
        assert!(matches!(wait(&connection), Wait::Until(_)));
        connection.await_message(None, HOUR, Duration::ZERO);
        assert_eq!(wait(&connection), Wait::Forever);
        assert!(!connection.is_message_late());
        connection.await_message(Some(1), HOUR, Duration::ZERO);
        assert_eq!(wait(&connection), Wait::Forever);
        assert!(connection.is_message_late());
    }

    #[test]
    fn a_message_that_is_late_ends_the_upstreams_side_of_its_socket() {
        let connection = ClientConnection::with_request();
        let socket = StreamControl::new(false);
        connection.upgrade(socket.clone());
        connection.await_message(Some(0), Duration::ZERO, HOUR);
        assert_eq!(wait(&connection), Wait::Forever);
        assert!(connection.is_message_late() && socket.is_ended());
    }
}
