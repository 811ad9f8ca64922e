//! The running process: listeners, the tasks beside them, signals, the end. It assembles; requests are `proxy.rs`'s.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use pingora_core::apps::ServerApp;
use pingora_core::apps::http_app::HttpServer;
use pingora_core::protocols::Stream;
use pingora_core::server::configuration::ServerConf;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::Admin;
use crate::config::Config;
use crate::connection::{ClientStream, Front};
use crate::proxy::Gate;
use crate::reload::{self, Follower};
use crate::state::{StartError, State};
use crate::tls::LiveAcceptor;
use crate::upstream::{RESOLVE_EVERY, Upstream};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;
/// Idle connections kept to all upstreams, for each thread.
const POOLED_CONNECTIONS: usize = 512;
/// How long a start waits for the upstreams' names. Those that do not resolve until then go on in the background.
const FIRST_RESOLVE: Duration = Duration::from_secs(5);
/// A client's TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// What waits for the access log is tried again this often.
const LOG_RETRY: Duration = Duration::from_millis(200);
/// How long the tasks may take to end once they are told to, after the drain.
const ABORT_TIME: Duration = Duration::from_secs(2);
/// How long accepting rests after it failed, mostly for want of descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// A process that is ready to serve: everything loaded, every listener bound.
pub struct Server {
    pub state: Arc<State>,
    runtime: Runtime,
    reload_now: Sender<()>,
    listeners: Vec<(TcpListener, Option<Arc<LiveAcceptor>>)>,
    admin: TcpListener,
}

/// What the connections of one listener share.
struct Site<App> {
    app: Arc<App>,
    state: Arc<State>,
    shutdown: watch::Receiver<bool>,
    tasks: TaskTracker,
    /// Ends the tasks that are left when the drain is over.
    abort: CancellationToken,
}

impl Server {
    /// # Errors
    /// Mistakes in the files, or what else is in the way: a port in use, a log that cannot be opened.
    pub fn new(config: Config) -> Result<Self, StartError> {
        let (state, mut followers) = State::load(config)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(state.config.server.threads)
            .enable_all()
            .thread_name("tiergate")
            .build()
            .map_err(|why| StartError::Io("threads".to_owned(), why))?;
        let (listeners, admin) = runtime.block_on(bind_all(&state, &mut followers))?;
        let (reload_now, pokes) = mpsc::channel();
        std::thread::Builder::new()
            .name("reload".to_owned())
            .spawn(move || reload::follow(followers, &pokes))
            .map_err(|why| StartError::Io("the reload thread".to_owned(), why))?;
        Ok(Self {
            state,
            runtime,
            reload_now,
            listeners,
            admin,
        })
    }

    /// The address of each listener, with the port that the system chose where none was given.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners
            .iter()
            .filter_map(|(listener, _)| listener.local_addr().ok())
            .collect()
    }

    /// Serves until SIGTERM or SIGINT, then drains.
    pub fn run(self) -> io::Result<()> {
        let signals = {
            // Before anything is served: a signal that came sooner would end the process.
            let _context = self.runtime.enter();
            Signals::register()?
        };
        let (state, reload_now) = (self.state.clone(), self.reload_now.clone());
        self.run_until(async move { signals.act(&state, &reload_now).await });
        Ok(())
    }

    /// Serves until `stop` is ready, then drains: requests that run may end within `server.drain`.
    pub fn run_until(self, stop: impl Future<Output = ()>) {
        let Self {
            state,
            runtime,
            listeners,
            admin,
            reload_now,
        } = self;
        runtime.block_on(serve(state.clone(), listeners, admin, stop));
        // Whatever still runs is dropped here, and writes its line as it goes.
        runtime.shutdown_timeout(ABORT_TIME);
        drop(reload_now);
        state.log.retry();
    }
}

type Listeners = Vec<(TcpListener, Option<Arc<LiveAcceptor>>)>;

async fn bind_all(
    state: &State,
    followers: &mut Vec<Follower>,
) -> Result<(Listeners, TcpListener), StartError> {
    let mut listeners = Vec::new();
    for listen in &state.config.listen {
        let acceptor = match &listen.tls {
            None => None,
            Some(files) => {
                let (acceptor, follows) = LiveAcceptor::load(files)
                    .map_err(|why| StartError::Io("TLS".to_owned(), why))?;
                followers.extend(follows);
                Some(acceptor)
            }
        };
        listeners.push((bind(listen.address)?, acceptor));
    }
    Ok((listeners, bind(state.config.admin)?))
}

fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    let bound = || {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bound().map_err(|why| StartError::Io(format!("cannot listen on {address}"), why))
}

async fn serve(
    state: Arc<State>,
    listeners: Listeners,
    admin: TcpListener,
    stop: impl Future<Output = ()>,
) {
    resolve_all(&state).await;
    tokio::spawn(retry_log(state.clone()));
    let (shut, shutdown) = watch::channel(false);
    let (tasks, abort) = (TaskTracker::new(), CancellationToken::new());
    let front = Arc::new(front(&state));
    let site = Site {
        app: front.clone(),
        state: state.clone(),
        shutdown,
        tasks: tasks.clone(),
        abort: abort.clone(),
    };
    let site = Arc::new(site);
    let accepting = CancellationToken::new();
    for (listener, acceptor) in listeners {
        tokio::spawn(accepting.clone().run_until_cancelled_owned(accept(
            listener,
            acceptor,
            site.clone(),
        )));
    }
    tokio::spawn(serve_admin(admin, state.clone()));
    for listen in &state.config.listen {
        log::info!(
            "tiergate {} serves on {}",
            env!("CARGO_PKG_VERSION"),
            listen.address
        );
    }
    stop.await;
    log::info!("draining for at most {:?}", state.config.server.drain);
    state.drain();
    accepting.cancel();
    // A closed channel would mean that no connection is left to tell.
    let _ = shut.send(true);
    pingora_core::apps::HttpServerApp::http_cleanup(&*front).await;
    tasks.close();
    if tokio::time::timeout(state.config.server.drain, drained(&state, &tasks))
        .await
        .is_err()
    {
        log::warn!(
            "the drain is over, {} requests are cut",
            state.metrics.in_flight.get()
        );
        abort.cancel();
        // Tasks that do not end are dropped with the runtime.
        let _ = tokio::time::timeout(ABORT_TIME, tasks.wait()).await;
    }
}

/// Connections have ended, and with them the requests; those of HTTP/2 run in tasks of their own.
async fn drained(state: &State, tasks: &TaskTracker) {
    tasks.wait().await;
    while state.metrics.in_flight.get() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn front(state: &Arc<State>) -> Front {
    let conf = ServerConf {
        threads: state.config.server.threads,
        upstream_keepalive_pool_size: POOLED_CONNECTIONS,
        ..ServerConf::default()
    };
    let proxy = pingora_proxy::http_proxy(
        &Arc::new(conf),
        Gate {
            state: state.clone(),
        },
    );
    Front {
        proxy: Arc::new(proxy),
        header_timeout: state.limits.header_timeout,
        keepalive_timeout: state.limits.keepalive_timeout,
        draining: state.draining(),
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: Option<Arc<LiveAcceptor>>,
    site: Arc<Site<Front>>,
) {
    loop {
        match listener.accept().await {
            Ok((socket, peer)) => {
                let (site, acceptor) = (site.clone(), acceptor.clone());
                let tasks = site.tasks.clone();
                tasks.spawn(async move {
                    let abort = site.abort.clone();
                    abort
                        .run_until_cancelled(serve_connection(socket, peer, acceptor, &site))
                        .await;
                });
            }
            Err(why) => {
                log::error!("accepting a connection failed: {why}");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

async fn serve_connection(
    socket: TcpStream,
    peer: SocketAddr,
    acceptor: Option<Arc<LiveAcceptor>>,
    site: &Site<Front>,
) {
    let _open = Open::new(&site.state);
    // Answers are written whole or flushed at once; Nagle's delay would only hold their last piece back.
    let _ = socket.set_nodelay(true);
    let stream = ClientStream::new(socket, peer);
    let stream: Stream = match acceptor {
        None => Box::new(stream),
        Some(acceptor) => {
            let handshake = async { acceptor.current().tls_handshake(stream).await };
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
                Ok(Ok(stream)) => Box::new(stream),
                // A scanner, or a client that does not trust the certificate.
                Ok(Err(_)) | Err(_) => return,
            }
        }
    };
    ServerApp::process_new(&site.app, stream, &site.shutdown).await;
}

/// Counts a connection while it is open.
struct Open<'a>(&'a State);

impl<'a> Open<'a> {
    fn new(state: &'a State) -> Self {
        state.metrics.connections.inc();
        Self(state)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.metrics.connections.dec();
    }
}

/// The admin listener goes on through the drain, so that its end can be watched.
async fn serve_admin(listener: TcpListener, state: Arc<State>) {
    let app = Arc::new(HttpServer::new_app(Admin { state }));
    // Never told to stop; the runtime ends it.
    let (_stop, shutdown) = watch::channel(false);
    loop {
        let Ok((socket, peer)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_REST).await;
            continue;
        };
        let (app, shutdown) = (app.clone(), shutdown.clone());
        tokio::spawn(async move {
            let stream: Stream = Box::new(ClientStream::new(socket, peer));
            ServerApp::process_new(&app, stream, &shutdown).await;
        });
    }
}

async fn resolve_all(state: &Arc<State>) {
    let first = TaskTracker::new();
    for upstream in state.upstreams() {
        let upstream = upstream.clone();
        first.spawn(async move {
            upstream.resolve().await;
            if upstream.is_named() {
                tokio::spawn(keep_resolving(upstream));
            }
        });
    }
    first.close();
    // A name that takes longer is tried on in the background; its requests fail until then.
    let _ = tokio::time::timeout(FIRST_RESOLVE, first.wait()).await;
}

async fn keep_resolving(upstream: Arc<Upstream>) {
    loop {
        tokio::time::sleep(RESOLVE_EVERY).await;
        upstream.resolve().await;
    }
}

async fn retry_log(state: Arc<State>) {
    loop {
        tokio::time::sleep(LOG_RETRY).await;
        state.log.retry();
    }
}

/// The signals that the process acts on.
struct Signals {
    hangup: Signal,
    reopen: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn register() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            reopen: signal(SignalKind::user_defined1())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Acts on them until one asks for the end.
    async fn act(mut self, state: &State, reload_now: &Sender<()>) {
        loop {
            tokio::select! {
                _ = self.hangup.recv() => {
                    // The other end lives as long as the process serves.
                    let _ = reload_now.send(());
                }
                _ = self.reopen.recv() => match state.log.reopen() {
                    Ok(()) => log::info!("access log reopened"),
                    Err(why) => log::error!("the access log cannot be reopened, the old file stays in use: {why}"),
                },
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
            }
        }
    }
}
