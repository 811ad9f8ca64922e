//! A client's connection as it goes from request to request, and the one deadline against which the current one runs. It
//! knows nothing of keys or tiers.

use std::future::Future;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use nix::time::ClockId;
use pingora_core::apps::{
    HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream,
};
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::H2Options;
use pingora_core::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::http1::client_stream::ClientSocket;
use crate::http1::intake::LINGER_TIME;
use crate::http1::relay::{Next, Relay};
use crate::proxy::Gate;

tokio::task_local! {
    /// The deadline of the request that the current task serves: of one after the other on a connection of HTTP/1, whose
    /// requests are served by its task; of the one request on HTTP/2.
    static DEADLINE: Arc<Deadline>;
}

/// What a request waits for when its deadline passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Waiting {
    /// For the next request on a connection that had one: the connection is closed.
    ForRequest,
    /// For the rest of a request head: the connection is closed.
    ForHead,
    /// For the client's body: reading it fails, so that the client gets a proper answer. On HTTP/2, whose connections are
    /// read by tasks of their own, the request is cut.
    ForBody,
    /// For the first byte of the answer: the upstream's connection is shut, so that the client gets a proper answer.
    ForAnswer,
    /// For the next byte of the answer, or the end of the drain: the request is cut.
    ForMore,
}

/// The one time limit that a request runs against, moved on by whoever makes progress. Pingora has a single read timeout
/// for the upstream and none for a whole request head or an HTTP/2 body; this stands in for those.
///
/// On HTTP/1 the requests of a connection share it one after the other: to make one, with its timer, for each request took
/// some 3 % of the CPU of a small one.
#[derive(Debug)]
pub struct Deadline {
    /// In milliseconds of [`now_ms`]; `NEVER` for none.
    at: AtomicU64,
    waiting: AtomicU8,
    /// How long a whole head may take, in milliseconds.
    head_time: u64,
    /// How many more bytes may be read for the head.
    head_left: AtomicU64,
    /// The client's stream is read by the task of the request, so that it can be told to fail.
    reads_stream: bool,
    /// Why the client's body is not waited for any longer: an [`Interruption`].
    interruption: AtomicU8,
    /// The reader of the client's stream is still to be told so.
    refuses_read: AtomicBool,
    /// The upstream's socket, where no other request uses it, else -1.
    upstream: AtomicI32,
    /// Nothing runs on an upgraded connection, so that a drain may end it.
    idle: AtomicBool,
    passed: AtomicBool,
    /// For how many milliseconds an answer is read on without its client; 0 for not at all.
    patience: AtomicU64,
    /// When that time is over, like `at`: `NEVER` as long as the client has not left.
    patience_ends: AtomicU64,
    /// Until when [`Deadline::passes`] sleeps, like `at`; a deadline set before it wakes it.
    asleep_until: AtomicU64,
    earlier: Notify,
}

/// Why the rest of a request's body is not waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Interruption {
    None,
    /// It took too long.
    Late,
    /// The process is about to end.
    Drain,
}

const NEVER: u64 = u64::MAX;
/// The longest step of the clock that deadlines go by, on a kernel with a hundred ticks a second.
const CLOCK_STEP_MS: u64 = 10;
const NO_SOCKET: RawFd = -1;
/// From the event that ends a stream to the end of its message.
const MESSAGE_END: Duration = Duration::from_secs(1);
/// How long the answer to a client may take whose body is not waited for.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// How long a deadline that is not set is slept through before it is looked at again.
const IDLE_LOOK: Duration = Duration::from_secs(3600);

/// The proxy behind its deadline: what Pingora's connection loop calls for each request.
pub struct Front {
    pub proxy: Arc<HttpProxy<Gate>>,
    /// For what need not go through it.
    pub relay: Relay,
    /// A whole request head.
    pub header_timeout: Duration,
    /// What is read of a connection for a head that does not end. A head that is over the limit and not over this is
    /// read, to be refused in good order.
    pub head_bytes: u64,
    /// An idle connection between two requests.
    pub keepalive_timeout: Duration,
    pub draining: CancellationToken,
    /// The drain has lasted as long as it may.
    pub drain_over: CancellationToken,
}

/// The client of the request that this task serves has left. Whether the request goes on without it.
pub fn outlives_client() -> bool {
    DEADLINE
        .try_with(|deadline| deadline.client_leaves())
        .unwrap_or(false)
}

/// So many bytes of the client's stream have been read for the request that this task serves. The first of a head begin
/// its time. False where its head is too long to be read on.
pub fn has_read(count: usize) -> bool {
    let note = |deadline: &Arc<Deadline>| {
        if deadline.awaits(Waiting::ForRequest) {
            let limit = Duration::from_millis(deadline.head_time);
            deadline.set(Waiting::ForHead, limit);
        }
        !deadline.awaits(Waiting::ForHead) || deadline.take_head_bytes(count as u64)
    };
    DEADLINE.try_with(note).unwrap_or(true)
}

/// Whether the client's stream is to fail at this read, by the request that this task serves. It is told once: what the
/// client sends while it is answered may be read.
pub fn refuses_read() -> bool {
    let refuses = |deadline: &Arc<Deadline>| {
        deadline.refuses_read.load(Ordering::Relaxed)
            && deadline.refuses_read.swap(false, Ordering::Relaxed)
    };
    DEADLINE.try_with(refuses).unwrap_or(false)
}

impl Deadline {
    fn new(front: &Front, reads_stream: bool) -> Arc<Self> {
        let head_time = front.header_timeout.as_millis() as u64;
        Arc::new(Self::free(head_time, reads_stream))
    }

    /// A request is awaited, for whose first bytes a used connection waits for as long as it is kept. Nothing stays of the
    /// one before.
    fn begin_request(&self, front: &Front) {
        self.head_left.store(front.head_bytes, Ordering::Relaxed);
        self.interruption
            .store(Interruption::None as u8, Ordering::Relaxed);
        self.refuses_read.store(false, Ordering::Relaxed);
        self.hold_upstream(None);
        self.set_idle(false);
        self.forget_passed();
        self.patience.store(0, Ordering::Relaxed);
        self.patience_ends.store(NEVER, Ordering::Relaxed);
        self.set(Waiting::ForRequest, front.keepalive_timeout);
    }

    fn free(head_time: u64, reads_stream: bool) -> Self {
        Self {
            at: AtomicU64::new(NEVER),
            waiting: AtomicU8::new(Waiting::ForMore as u8),
            head_time,
            head_left: AtomicU64::new(0),
            reads_stream,
            interruption: AtomicU8::new(Interruption::None as u8),
            refuses_read: AtomicBool::new(false),
            upstream: AtomicI32::new(NO_SOCKET),
            idle: AtomicBool::new(false),
            passed: AtomicBool::new(false),
            patience: AtomicU64::new(0),
            patience_ends: AtomicU64::new(NEVER),
            asleep_until: AtomicU64::new(0),
            earlier: Notify::new(),
        }
    }

    /// The deadline of the request that this task serves; a free one in a task that serves none.
    pub fn current() -> Arc<Self> {
        DEADLINE
            .try_with(Arc::clone)
            .unwrap_or_else(|_| Arc::new(Self::free(0, false)))
    }

    pub fn set(&self, waiting: Waiting, after: Duration) {
        let after = after.as_millis() as u64;
        let at = now_ms().saturating_add(CLOCK_STEP_MS + after);
        self.waiting.store(waiting as u8, Ordering::Relaxed);
        self.set_at(at);
    }

    fn set_at(&self, at: u64) {
        let at = at.min(self.patience_ends.load(Ordering::Relaxed));
        self.at.store(at, Ordering::Relaxed);
        if at < self.asleep_until.load(Ordering::Relaxed) {
            self.earlier.notify_one();
        }
    }

    /// The client's body is awaited, under limits that are kept elsewhere.
    pub fn await_body(&self) {
        self.waiting
            .store(Waiting::ForBody as u8, Ordering::Relaxed);
        self.set_at(NEVER);
    }

    /// No limit for now, but for that of an answer without its client.
    pub fn clear(&self) {
        self.waiting
            .store(Waiting::ForMore as u8, Ordering::Relaxed);
        self.set_at(NEVER);
    }

    /// From now on, should the client leave, its answer is read on for so long.
    pub fn outlive_client(&self, patience: Duration) {
        let patience = patience.as_millis() as u64;
        self.patience.store(patience, Ordering::Relaxed);
    }

    /// The answer has told all that a client is outlived for. One that has left is so only for the message's end, that the
    /// upstream's connection may be used again.
    pub fn has_all(&self) {
        if self.has_client_left() {
            let ends = now_ms() + MESSAGE_END.as_millis() as u64;
            self.patience_ends.fetch_min(ends, Ordering::Relaxed);
            self.set_at(self.at.load(Ordering::Relaxed));
        } else {
            self.patience.store(0, Ordering::Relaxed);
        }
    }

    /// Whether the client has left and its answer is read on.
    pub fn has_client_left(&self) -> bool {
        self.patience_ends.load(Ordering::Relaxed) != NEVER
    }

    /// The client has left. False where the request ends with it.
    pub fn client_leaves(&self) -> bool {
        let patience = self.patience.load(Ordering::Relaxed);
        if patience == 0 {
            return false;
        }
        if !self.has_client_left() {
            let ends = now_ms().saturating_add(patience);
            self.patience_ends.store(ends, Ordering::Relaxed);
            self.set_at(self.at.load(Ordering::Relaxed));
        }
        true
    }

    /// The upstream's socket, as long as this request alone has it: until this is called with none.
    pub fn hold_upstream(&self, socket: Option<RawFd>) {
        self.upstream
            .store(socket.unwrap_or(NO_SOCKET), Ordering::Relaxed);
    }

    /// Says whether a drain may end an upgraded connection now.
    pub fn set_idle(&self, idle: bool) {
        self.idle.store(idle, Ordering::Relaxed);
    }

    /// The process is about to end: an upgraded connection on which nothing runs ends now.
    fn drain(&self) {
        if self.idle.load(Ordering::Relaxed) {
            self.shut_upstream();
        }
    }

    /// Whether the request ended because its time was over.
    pub fn has_passed(&self) -> bool {
        self.passed.load(Ordering::Relaxed)
    }

    /// What was waited for was there after all.
    pub fn forget_passed(&self) {
        self.passed.store(false, Ordering::Relaxed);
    }

    /// Why the client's body was not waited for, if it was not.
    pub fn interruption(&self) -> Interruption {
        let is = |why: Interruption| self.interruption.load(Ordering::Relaxed) == why as u8;
        if is(Interruption::Drain) {
            Interruption::Drain
        } else if is(Interruption::Late) || (self.has_passed() && self.awaits(Waiting::ForBody)) {
            Interruption::Late
        } else {
            Interruption::None
        }
    }

    /// Only the task that reads the stream does this.
    fn take_head_bytes(&self, count: u64) -> bool {
        let left = self.head_left.load(Ordering::Relaxed);
        let after = left.checked_sub(count);
        self.head_left.store(after.unwrap_or(0), Ordering::Relaxed);
        after.is_some()
    }

    fn awaits(&self, what: Waiting) -> bool {
        self.waiting.load(Ordering::Relaxed) == what as u8
    }

    /// Has the next read of the client's body fail. False where there is none that could.
    fn interrupt(&self, why: Interruption) -> bool {
        let can_fail = self.reads_stream && self.awaits(Waiting::ForBody);
        if can_fail {
            self.interruption.store(why as u8, Ordering::Relaxed);
            self.refuses_read.store(true, Ordering::Relaxed);
            self.set(Waiting::ForMore, ANSWER_TIME);
        }
        can_fail
    }

    /// Returns when the request has to be cut, or its task to go on because reading its body now fails.
    async fn passes(&self) -> Passed {
        loop {
            let now = now_ms();
            // A head that begins moves the deadline to `head_time` from then, which is never sooner than this.
            let look = match self.awaits(Waiting::ForRequest) {
                true => self.head_time,
                false => IDLE_LOOK.as_millis() as u64,
            };
            let at = self.at.load(Ordering::Relaxed);
            let until = at.min(now + look);
            if until > now {
                self.asleep_until.store(until, Ordering::Relaxed);
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(until - now)) => {}
                    () = self.earlier.notified() => {}
                }
                continue;
            }
            if self.interrupt(Interruption::Late) {
                return Passed::Interrupted;
            }
            self.passed.store(true, Ordering::Relaxed);
            if !self.awaits(Waiting::ForAnswer) || self.has_client_left() {
                return Passed::Cut;
            }
            self.shut_upstream();
        }
    }

    /// Ends what is awaited from the upstream in a way that Pingora reports like an end of the upstream's own.
    pub fn shut_upstream(&self) {
        let socket = self.upstream.swap(NO_SOCKET, Ordering::Relaxed);
        self.clear();
        if socket != NO_SOCKET {
            // It is open: this runs in the task that owns the request, which holds the connection until it says otherwise.
            // Only reading ends, so that the peer cannot answer with a reset before Pingora has seen the end.
            let _ = nix::sys::socket::shutdown(socket, nix::sys::socket::Shutdown::Read);
        }
    }
}

/// What a task is to do now.
enum Passed {
    /// To end.
    Cut,
    /// To go on, for what it waits for has failed.
    Interrupted,
}

/// By a clock that is up to [`CLOCK_STEP_MS`] late and costs next to nothing.
fn now_ms() -> u64 {
    // Every kernel has it, and it counts from the start of the machine.
    let now = ClockId::CLOCK_MONOTONIC_COARSE.now();
    now.map_or(0, |now| Duration::from(now).as_millis() as u64)
}

impl Front {
    /// Serves the requests of a connection over HTTP/1, one after the other, under one deadline. The first head is to be here
    /// at `head_until`.
    pub async fn serve_http1(
        &self,
        stream: Stream,
        socket: ClientSocket,
        peer: IpAddr,
        head_until: Instant,
        shutdown: &ShutdownWatch,
    ) {
        let deadline = Deadline::new(self, true);
        let requests = self.serve_requests(&deadline, stream, &socket, peer, head_until, shutdown);
        let requests = socket.clone().serve(requests);
        self.watch(deadline.clone(), requests).await;
    }

    async fn serve_requests(
        &self,
        deadline: &Deadline,
        stream: Stream,
        socket: &ClientSocket,
        peer: IpAddr,
        head_until: Instant,
        shutdown: &ShutdownWatch,
    ) {
        let mut connection = (stream, None);
        let mut is_first = true;
        loop {
            let (mut stream, settings) = connection;
            deadline.begin_request(self);
            let first = std::mem::take(&mut is_first);
            if first {
                let left = head_until.saturating_duration_since(Instant::now());
                deadline.set(Waiting::ForHead, left);
            }
            // What Pingora has read too much of it keeps for itself.
            let next = match settings.is_none() || socket.is_at_end() {
                true => self.relay.serve_next(socket, peer, first).await,
                false => Next::Special,
            };
            connection = match next {
                Next::Answered => (stream, None),
                Next::End => {
                    deadline.set(Waiting::ForMore, LINGER_TIME);
                    stream.shutdown().await;
                    return;
                }
                Next::Special => {
                    deadline.begin_request(self);
                    socket.begin_request();
                    match self.serve_special(stream, settings, shutdown).await {
                        Some(reused) => reused.consume(),
                        None => return,
                    }
                }
            };
        }
    }

    /// Has Pingora serve the next request of a connection.
    async fn serve_special(
        &self,
        stream: Stream,
        settings: Option<HttpPersistentSettings>,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let mut session = ServerSession::new_http1(stream);
        match settings {
            Some(settings) => settings.apply_to_session(&mut session),
            None => session.set_keepalive(Some(self.keepalive_timeout.as_secs().max(1))),
        }
        self.proxy.process_new_http(session, shutdown).await
    }

    /// Does `work` under a deadline. None where it was cut.
    async fn watch<T>(&self, deadline: Arc<Deadline>, work: impl Future<Output = T>) -> Option<T> {
        let work = DEADLINE.scope(deadline.clone(), work);
        tokio::pin!(work);
        let passes = deadline.passes();
        let (draining, drain_over) = (self.draining.cancelled(), self.drain_over.cancelled());
        tokio::pin!(passes, draining, drain_over);
        let (mut drains, mut is_over) = (false, false);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                passed = &mut passes => match passed {
                    // The request's future is dropped: both connections end without a proper end of their messages, and
                    // the request's context writes its line.
                    Passed::Cut => return None,
                    Passed::Interrupted => passes.set(deadline.passes()),
                },
                () = &mut draining, if !drains => {
                    drains = true;
                    deadline.drain();
                }
                () = &mut drain_over, if drains && !is_over => {
                    is_over = true;
                    deadline.interrupt(Interruption::Drain);
                }
            }
        }
    }
}

#[async_trait]
impl HttpServerApp for Front {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        // A request of HTTP/2: it has a task of its own.
        let deadline = Deadline::new(self, false);
        deadline.begin_request(self);
        let request = self.proxy.process_new_http(session, shutdown);
        self.watch(deadline, request).await.flatten()
    }

    fn h2_options(&self) -> Option<H2Options> {
        self.proxy.h2_options()
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        self.proxy.server_options.as_ref()
    }

    async fn http_cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}
