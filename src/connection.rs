//! A client's connection as it goes from request to request, and the one deadline against which the current one runs. It
//! knows nothing of keys or tiers.

use std::future::{Future, poll_fn};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use once_cell::sync::Lazy;
use pingora_core::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::H2Options;
use pingora_core::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client_stream::ClientSocket;
use crate::cork::Cork;
use crate::proxy::Gate;

tokio::task_local! {
    /// The deadline of the request that the current task serves; set around each request by [`Front`].
    static DEADLINE: Arc<Deadline>;
}

/// What a request waits for when its deadline passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Waiting {
    /// For the rest of a request head: the connection is closed.
    ForHead,
    /// For the client's body, on connections where Pingora sets no time limit: the request is cut.
    ForBody,
    /// For the first byte of the answer: the upstream's connection is shut, so that the client gets a proper answer.
    ForAnswer,
    /// For the next byte of the answer, or the end of the drain: the request is cut.
    ForMore,
}

/// The one time limit that a request runs against, moved on by whoever makes progress. Pingora has a single read timeout
/// for the upstream and none for a whole request head or an HTTP/2 body; this stands in for those.
#[derive(Debug)]
pub struct Deadline {
    /// Milliseconds after [`EPOCH`]; `NEVER` for none.
    at: AtomicU64,
    waiting: AtomicU8,
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
    /// What holds the head of an upgrade request back.
    pub cork: Cork,
}

const NEVER: u64 = u64::MAX;
const NO_SOCKET: RawFd = -1;
/// From the event that ends a stream to the end of its message.
const MESSAGE_END: Duration = Duration::from_secs(1);
/// How long a deadline that is not set is slept through before it is looked at again.
const IDLE_LOOK: Duration = Duration::from_secs(3600);

/// The proxy behind its deadline: what Pingora's connection loop calls for each request.
pub struct Front {
    pub proxy: Arc<HttpProxy<Gate>>,
    /// A whole request head.
    pub header_timeout: Duration,
    /// An idle connection between two requests.
    pub keepalive_timeout: Duration,
    pub draining: CancellationToken,
}

/// The client of the request that this task serves has left. Whether the request goes on without it.
pub fn outlives_client() -> bool {
    DEADLINE
        .try_with(|deadline| deadline.client_leaves())
        .unwrap_or(false)
}

impl Deadline {
    fn new(waiting: Waiting, after: Duration) -> Arc<Self> {
        let deadline = Self {
            at: AtomicU64::new(NEVER),
            waiting: AtomicU8::new(0),
            upstream: AtomicI32::new(NO_SOCKET),
            idle: AtomicBool::new(false),
            passed: AtomicBool::new(false),
            patience: AtomicU64::new(0),
            patience_ends: AtomicU64::new(NEVER),
            asleep_until: AtomicU64::new(0),
            earlier: Notify::new(),
            cork: Cork::default(),
        };
        deadline.set(waiting, after);
        Arc::new(deadline)
    }

    /// The deadline of the request that this task serves; a free one in a task that serves none.
    pub fn current() -> Arc<Self> {
        DEADLINE.try_with(Arc::clone).unwrap_or_else(|_| {
            let free = Self::new(Waiting::ForMore, Duration::ZERO);
            free.clear();
            free
        })
    }

    pub fn set(&self, waiting: Waiting, after: Duration) {
        let at = now_ms().saturating_add(after.as_millis() as u64);
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

    /// No limit for now, but for that of an answer without its client.
    pub fn clear(&self) {
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

    /// Whether it was the client's body that did not come in time.
    pub fn has_passed_for_body(&self) -> bool {
        self.has_passed() && self.waiting.load(Ordering::Relaxed) == Waiting::ForBody as u8
    }

    /// Returns when the request has to be cut.
    async fn passes(&self) {
        loop {
            let now = now_ms();
            let until = self
                .at
                .load(Ordering::Relaxed)
                .min(now + IDLE_LOOK.as_millis() as u64);
            if until > now {
                self.asleep_until.store(until, Ordering::Relaxed);
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(until - now)) => {}
                    () = self.earlier.notified() => {}
                }
                continue;
            }
            self.passed.store(true, Ordering::Relaxed);
            let for_answer = self.waiting.load(Ordering::Relaxed) == Waiting::ForAnswer as u8;
            if !for_answer || self.has_client_left() {
                return;
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

/// What deadlines are counted from.
static EPOCH: Lazy<Instant> = Lazy::new(Instant::now);

fn now_ms() -> u64 {
    EPOCH.elapsed().as_millis() as u64
}

#[async_trait]
impl HttpServerApp for Front {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if let Some(client) = ClientSocket::current() {
            client.begin_request();
        }
        let deadline = Deadline::new(
            Waiting::ForHead,
            self.header_timeout + self.keepalive_timeout,
        );
        let request = DEADLINE.scope(
            deadline.clone(),
            self.proxy.process_new_http(session, shutdown),
        );
        tokio::pin!(request);
        let mut request = poll_fn(|context| {
            let polled = request.as_mut().poll(context);
            deadline.cork.count_poll(context);
            polled
        });
        let mut told = false;
        loop {
            tokio::select! {
                biased;
                reusable = &mut request => return reusable,
                // The request's future is dropped: both connections end without a proper end of their messages, and the
                // request's context writes its line.
                () = deadline.passes() => return None,
                () = self.draining.cancelled(), if !told => {
                    told = true;
                    deadline.drain();
                }
            }
        }
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
