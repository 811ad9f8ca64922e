//! What a request tells the upstream connection that it runs on: how long the next bytes may take, whether the request may
//! leave yet, and when the connection is to read as ended. The request's context holds one end, the connection the other;
//! Pingora carries it between them in the connection's digest.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use pingora_core::protocols::Digest;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_http::ResponseHeader;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::upstream::waker_slot::WakerSlot;

/// What is awaited from the upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AwaitedPhase {
    /// Nothing: no request runs on the connection.
    #[default]
    Idle,
    /// The client's body is on its way; the limit is for its next piece.
    RequestBody,
    /// The upstream is to take more of the client's body, which is not read meanwhile.
    RequestWindow,
    /// The whole head of the response.
    ResponseHead,
    /// The next bytes of the response.
    ResponseBody,
    /// The next message on an upgraded connection, which reads as ended where it takes too long.
    Upgraded,
    /// Nothing in particular on an upgraded connection, which a drain may end.
    UpgradedIdle,
}

/// The end that the request's context holds. All of it happens in the task of the request, so its lock is always free.
#[derive(Debug)]
pub struct StreamControl(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    phase: AwaitedPhase,
    /// How long the connection may be waited for in this phase; none for as long as it takes.
    limit: Option<Duration>,
    /// Changes with each phase, so that a wait is measured from there.
    epoch: u32,
    expired: Option<AwaitedPhase>,
    /// How long the upstream may take to take a piece of the request; none for as long as it takes.
    write_limit: Option<Duration>,
    /// Something of the response came.
    has_received: bool,
    /// The connection ended before the upstream had all of the request.
    is_untaken: bool,
    /// All of the response came with its head.
    is_whole: bool,
    /// The connection is one of HTTP/2.
    is_http2: bool,
    /// Other requests run on the connection.
    is_shared: bool,
    /// Whether an error response is kept back before Pingora has its head.
    error: KeptError,
    /// The connection is to read as ended.
    is_ended: bool,
    /// An upgraded connection is to read as ended once the upstream is not in the middle of a message.
    ends_behind_message: bool,
    is_in_message: bool,
    /// The process is about to end, and with it an upgraded connection on which nothing runs.
    drains: bool,
    /// Nothing of the request is to leave yet.
    holds_request: bool,
    /// The request asks for a WebSocket.
    upgrades: bool,
    upgrade: UpgradeGate,
    /// Bytes of the client's that were passed on to an upgraded connection, which may not have them all yet.
    passed: u64,
    /// Messages of the proxy's own for it, oldest first, each with how much was passed on before.
    messages: VecDeque<(u64, Bytes)>,
    waker: WakerSlot,
}

/// Whether an error response is kept back until it is whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum KeptError {
    #[default]
    Unwanted,
    Wanted,
    /// Its body, or the beginning of one that is long.
    Kept(Bytes),
}

/// Whether an upgraded connection may be read.
///
/// Pingora queues the end of the (empty) request for the upstream, and picks at random between that and the response. Where
/// the 101 comes first, it takes the end for that of the upgraded connection and closes it (cloudflare/pingora#946). So the
/// response is read only once that end was taken: in the poll after the one in which it was queued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum UpgradeGate {
    #[default]
    Open,
    Opening,
    Closed,
}

/// What carries a value in the digest of a connection. Nothing is said of a proxy: this is the place that Pingora has for data
/// of ours.
pub fn carrying<T: Send + Sync + 'static>(value: &Arc<T>) -> Option<Arc<ProxyDigest>> {
    let head = ResponseHeader::build(200, Some(0)).ok()?;
    let data = Box::new(value.clone());
    Some(Arc::new(ProxyDigest::new(Box::new(head), Some(data))))
}

/// The value of this type that a connection's digest carries, if it does.
pub fn carried<T: Send + Sync + 'static>(digest: Option<&Digest>) -> Option<Arc<T>> {
    let data = digest?.proxy_digest.as_ref()?.user_data.as_ref()?;
    data.downcast_ref::<Arc<T>>().cloned()
}

impl StreamControl {
    pub fn new(is_http2: bool) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            is_http2,
            ..State::default()
        })))
    }

    /// A request begins on the connection. `holds_request`: nothing of it is to leave before [`Self::release_request`].
    /// `upgrades`: it asks for a WebSocket. `write_limit`: for each of its pieces to be taken.
    pub fn begin(&self, holds_request: bool, upgrades: bool, write_limit: Option<Duration>) {
        let mut state = self.0.lock();
        state.expired = None;
        state.write_limit = write_limit;
        state.has_received = false;
        state.is_untaken = false;
        state.is_whole = false;
        state.error = KeptError::Unwanted;
        state.is_ended = false;
        state.ends_behind_message = false;
        state.is_in_message = false;
        state.drains = false;
        state.holds_request = holds_request;
        state.upgrades = upgrades;
        state.passed = 0;
        state.messages.clear();
        state.upgrade = if upgrades {
            UpgradeGate::Closed
        } else {
            UpgradeGate::Open
        };
    }

    /// From now on this is awaited, for so long. Gives back what was awaited before.
    pub fn enter(
        &self,
        phase: AwaitedPhase,
        limit: Option<Duration>,
    ) -> (AwaitedPhase, Option<Duration>) {
        let mut state = self.0.lock();
        let before = (state.phase, state.limit);
        state.phase = phase;
        state.limit = limit;
        state.epoch = state.epoch.wrapping_add(1);
        // Where the connection is waited for already, the limit is measured from now.
        if state.drains || limit.is_some() {
            state.waker.wake();
        }
        before
    }

    /// The request may leave.
    pub fn release_request(&self) {
        let mut state = self.0.lock();
        if std::mem::take(&mut state.holds_request) {
            state.waker.wake();
        }
    }

    /// An error response (4xx) to this attempt is to be kept back until its body is here.
    pub fn keep_error(&self) {
        self.0.lock().error = KeptError::Wanted;
    }

    /// The body of the error response that was kept back, if there is one.
    pub fn kept_error(&self) -> Option<Bytes> {
        match &self.0.lock().error {
            KeptError::Kept(body) => Some(body.clone()),
            KeptError::Unwanted | KeptError::Wanted => None,
        }
    }

    /// The end of a request that asks for an upgrade was queued for the upstream.
    pub fn request_ended(&self) {
        let mut state = self.0.lock();
        if state.upgrade == UpgradeGate::Closed {
            state.upgrade = UpgradeGate::Opening;
            state.waker.wake();
        }
    }

    /// Whole frames that go to the upstream of an upgraded connection behind those of the client that were passed on before: by
    /// their order it is known which response is whose.
    pub fn send(&self, message: Bytes) {
        let mut state = self.0.lock();
        let place = (state.passed, message);
        state.messages.push_back(place);
        state.waker.wake();
    }

    /// Whole frames of the client's as they are passed on: behind those of the proxy's own that have not begun to leave.
    pub fn pass(&self, frames: Bytes) -> Bytes {
        let mut state = self.0.lock();
        let own = std::mem::take(&mut state.messages).into_iter();
        let mut pieces: Vec<Bytes> = own.map(|(_, message)| message).collect();
        let passed = match pieces.is_empty() {
            true => frames,
            false => {
                pieces.push(frames);
                pieces.concat().into()
            }
        };
        state.passed += passed.len() as u64;
        passed
    }

    /// The connection is to read as ended.
    pub fn end(&self) {
        let mut state = self.0.lock();
        state.is_ended = true;
        state.waker.wake();
    }

    /// An upgraded connection is to read as ended, but that the client gets the rest of a message that it has a part of.
    pub fn end_behind_message(&self) {
        let mut state = self.0.lock();
        state.ends_behind_message = true;
        state.waker.wake();
    }

    /// Whether the client has a part of a message that came on an upgraded connection.
    pub fn set_in_message(&self, is_in_message: bool) {
        self.0.lock().is_in_message = is_in_message;
    }

    /// The process is about to end: an upgraded connection on which nothing runs is to read as ended.
    pub fn drain(&self) {
        let mut state = self.0.lock();
        state.drains = true;
        state.waker.wake();
    }

    /// In which phase the upstream took too long, if it did.
    pub fn expired(&self) -> Option<AwaitedPhase> {
        self.0.lock().expired
    }

    /// The upstream took too long in this phase.
    pub(super) fn expire(&self, phase: AwaitedPhase) {
        self.0.lock().expired = Some(phase);
    }

    /// How long the upstream may take to take a piece of the request, where there is a limit.
    pub(super) fn write_limit(&self) -> Option<Duration> {
        self.0.lock().write_limit
    }

    /// The connection ended before the upstream had all of the request.
    pub(super) fn note_untaken(&self) {
        self.0.lock().is_untaken = true;
    }

    /// Whether the connection ended before the upstream had all of the request, so that nobody can have worked on it.
    pub fn is_untaken(&self) -> bool {
        self.0.lock().is_untaken
    }

    /// The upstream has shown that it knows of the request.
    pub(super) fn note_received(&self) {
        self.0.lock().has_received = true;
    }

    /// Whether anything of the response came, or the upstream has shown otherwise that it knows of the request.
    pub fn has_received(&self) -> bool {
        self.0.lock().has_received
    }

    /// The head of the response has ended it.
    pub(super) fn note_whole(&self) {
        self.0.lock().is_whole = true;
    }

    /// Whether the head of the response has ended it.
    pub fn is_whole(&self) -> bool {
        self.0.lock().is_whole
    }

    /// Other requests run on the connection, so that it was alive a moment ago.
    pub(super) fn note_shared(&self) {
        self.0.lock().is_shared = true;
    }

    /// Whether other requests run on the connection.
    pub fn is_shared(&self) -> bool {
        self.0.lock().is_shared
    }

    /// Whether the connection is one of HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.0.lock().is_http2
    }

    /// Whether an error response is to be kept back, and none was.
    pub(super) fn wants_error(&self) -> bool {
        self.0.lock().error == KeptError::Wanted
    }

    /// The error response is here, or the response is none.
    pub(super) fn end_error(&self, body: Option<Bytes>) {
        self.0.lock().error = body.map_or(KeptError::Unwanted, KeptError::Kept);
    }

    /// What is awaited now.
    pub(super) fn phase(&self) -> AwaitedPhase {
        self.0.lock().phase
    }

    /// Whether the connection speaks another protocol by now.
    pub(super) fn is_upgraded(&self) -> bool {
        matches!(
            self.phase(),
            AwaitedPhase::Upgraded | AwaitedPhase::UpgradedIdle
        )
    }

    /// Whether the connection was asked for an upgrade. Where that is refused, Pingora may have written the end of a body
    /// that nobody announced.
    pub(super) fn is_used_up(&self) -> bool {
        let state = self.0.lock();
        state.upgrades && state.phase == AwaitedPhase::Idle
    }

    /// Whether the connection is to read as ended.
    pub fn is_ended(&self) -> bool {
        let state = self.0.lock();
        state.is_ended
            || (state.ends_behind_message && !state.is_in_message)
            || (state.drains && state.phase == AwaitedPhase::UpgradedIdle)
    }

    /// The next message of the proxy's own, where there is one that goes behind these many bytes of the client's.
    pub(super) fn next_message(&self, taken: u64) -> Option<Bytes> {
        let messages = &mut self.0.lock().messages;
        let next = messages.pop_front_if(|(passed, _)| *passed <= taken)?;
        Some(next.1)
    }

    /// Whether nothing of the request is to leave yet.
    pub(super) fn holds_request(&self) -> bool {
        self.0.lock().holds_request
    }

    /// Ready when the response may be read.
    pub(super) fn poll_upgrade(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        match state.upgrade {
            UpgradeGate::Open => return Poll::Ready(()),
            UpgradeGate::Opening => {
                state.upgrade = UpgradeGate::Open;
                cx.waker().wake_by_ref();
            }
            UpgradeGate::Closed => state.waker.register(cx),
        }
        Poll::Pending
    }
}

/// The end that the connection holds: it measures how long the connection has been waited for. The time that a client takes
/// to read is not counted, for nobody waits for the upstream then.
#[derive(Debug)]
pub(super) struct Watchdog {
    pub control: Arc<StreamControl>,
    epoch: u32,
    since: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Watchdog {
    pub fn new(control: Arc<StreamControl>) -> Self {
        Self {
            control,
            epoch: 0,
            since: None,
            sleep: None,
        }
    }

    /// Something came. A head has one limit for all of it, and so has a message.
    pub fn progressed(&mut self) {
        let mut state = self.control.0.lock();
        state.has_received = true;
        if !matches!(
            state.phase,
            AwaitedPhase::ResponseHead | AwaitedPhase::Upgraded
        ) {
            self.since = None;
        }
    }

    /// The upstream has taken another piece of the request: its response is awaited from now on. What goes to an upgraded
    /// connection asks for nothing at once.
    pub fn request_taken(&mut self) {
        if matches!(
            self.control.phase(),
            AwaitedPhase::ResponseHead | AwaitedPhase::ResponseBody
        ) {
            self.since = None;
        }
    }

    /// Ready when what is awaited has taken too long.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<AwaitedPhase> {
        let mut state = self.control.0.lock();
        state.waker.register(cx);
        if self.epoch != state.epoch {
            self.epoch = state.epoch;
            self.since = None;
        }
        let Some(limit) = state.limit else {
            return Poll::Pending;
        };
        let due = *self.since.get_or_insert_with(Instant::now) + limit;
        loop {
            if Instant::now() >= due {
                state.expired = Some(state.phase);
                return Poll::Ready(state.phase);
            }
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if sleep.deadline() > due || sleep.is_elapsed() {
                sleep.as_mut().reset(due);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}
