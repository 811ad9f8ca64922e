//! The running process: what is assembled, the tasks beside the listeners, signals, the end. Requests are `proxy/`'s.

pub(crate) mod admin;
pub(crate) mod binary_upgrade;
pub(crate) mod connection_limit;
pub(crate) mod downstream;
mod half_close;
mod lingering_close;
pub(crate) mod listener;
pub mod logging;
mod proxy_app;
pub(crate) mod proxy_protocol;
pub(crate) mod reload;
mod shutdown;
mod signals;
pub(crate) mod socket;
pub(crate) mod socket_handover;
mod start_line;
mod stderr;
pub(crate) mod systemd;
pub(crate) mod tls;
mod trace_export;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use parking_lot::Mutex;
use pingora::apps::ServerApp;
use pingora::apps::http_app::HttpServer;
use pingora::protocols::Stream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::units::counted;
use crate::config::watch::{self as files, Reloaded};
use crate::config::{Config, Limits, SocketAddress};
use crate::proxy::client_connection::HeadLimits;
use crate::server::admin::Admin;
use crate::server::admin::overview::keep_history;
use crate::server::binary_upgrade::NewProcess;
use crate::server::connection_limit::KeyedLimiter;
use crate::server::listener::{ACCEPT_BACKOFF, Listeners, ServerContext};
use crate::server::reload::Reloads;
use crate::server::shutdown::drain;
use crate::server::signals::Signals;
pub(crate) use crate::server::signals::survive_early_signals;
use crate::server::socket::{ListeningSocket, SocketFile};
use crate::server::socket_handover::{InheritedSockets, SocketHandover};
use crate::server::start_line::start_line;
use crate::state::{StartError, State};

use crate::upstream::{health_check, resolver};

/// The most that Pingora takes at one read of a connection.
const READ_BYTES: u64 = 64 * 1024;
/// What waits for the access log is tried again this often.
const LOG_RETRY: Duration = Duration::from_millis(200);
/// How long a start waits for what was spent before, and elsewhere.
const FIRST_EXCHANGE: Duration = Duration::from_secs(2);
/// How long the tasks may take to end once they are told to, after the drain.
const ABORT_TIME: Duration = Duration::from_secs(2);

/// A process that is ready to serve: everything loaded, every listener bound.
pub struct Server {
    /// What all requests share.
    pub state: Arc<State>,
    runtime: Runtime,
    listeners: Listeners,
    reload_now: Sender<Reloaded>,
    reloads: Arc<Reloads>,
    inherited: Option<InheritedSockets>,
}

impl Server {
    /// Loads what the configuration names. With `takeover` the listening sockets come from the process that serves on the
    /// same `server.upgrade_socket`; it goes on until this one serves.
    ///
    /// # Errors
    /// Diagnostics in the files, or what else is in the way: a port in use, a log that cannot be opened.
    pub fn new(config: Config, takeover: bool) -> Result<Self, StartError> {
        let (state, mut followers) = State::load(config)?;
        let runtime = runtime(state.config.server.threads)?;
        let mut inherited = if takeover {
            Some(take_over(&state)?)
        } else {
            None
        };
        let listeners = {
            let _context = runtime.enter();
            Listeners::bind(&state, &mut followers, inherited.as_mut())?
        };
        let (reload_now, asked) = mpsc::channel();
        std::thread::Builder::new()
            .name("reload".to_owned())
            .spawn(move || files::follow(followers, &asked))
            .map_err(|why| StartError::Io("the reload thread".to_owned(), why))?;
        Ok(Self {
            state,
            runtime,
            listeners,
            reload_now,
            reloads: Arc::default(),
            inherited,
        })
    }

    /// Where the first listener is reached from this machine, with the port that the system chose where none was given.
    ///
    /// # Errors
    /// Where the socket does not tell, or is no TCP socket.
    pub fn address(&self) -> io::Result<SocketAddr> {
        match self.listeners.reachable_at()? {
            SocketAddress::Tcp(address) => Ok(address),
            SocketAddress::Unix(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    }

    /// Serves until SIGTERM or SIGINT, or until another process has taken over, then drains.
    ///
    /// # Errors
    /// Where signals cannot be received, the program does not know itself, or lines of the access log, or sums of
    /// budgets, are lost because they could not be written up to the end.
    pub fn run(self) -> io::Result<()> {
        let new_process = NewProcess::of_this_process()?;
        let signals = {
            // Before anything is served: a signal that came sooner would end the process.
            let _context = self.runtime.enter();
            Signals::register()?
        };
        let (state, reload_now) = (self.state.clone(), self.reload_now.clone());
        let (reloads, end) = (self.reloads.clone(), CancellationToken::new());
        let acts = signals.act(state.clone(), reloads, reload_now, new_process, end.clone());
        self.runtime.spawn(acts);
        self.run_until(end.cancelled());
        match (state.log.finish(), state.all_is_stored()) {
            (Err(lines), Err(sums)) => Err(io::Error::other(format!("{lines}; {sums}"))),
            (written, stored) => written.and(stored),
        }
    }

    /// Serves until `stop` is ready, then drains: requests that run may end within `server.drain`.
    pub fn run_until(self, stop: impl Future<Output = ()>) {
        let Self {
            state,
            runtime,
            listeners,
            reload_now,
            reloads,
            inherited,
        } = self;
        let cut = runtime.block_on(serve(state.clone(), listeners, reloads, inherited, stop));
        // Whatever still runs is dropped here, and writes its line as it goes.
        runtime.shutdown_timeout(ABORT_TIME);
        state.exchange_with_store();
        drop(reload_now);
        state.log.retry();
        // What was held back as a repetition; "stopped" is the last word.
        log::logger().flush();
        log::info!("stopped, {} cut", counted(cut, "request"));
    }
}

/// Threads that give tasks their turns in the order in which they became ready, however many they are.
///
/// With several threads, each has a queue of 256 and moves what is too much to one that all share, into which Tokio looks
/// seldom as long as there is work in the first, and always first if told so: then those in the small one wait instead.
/// A third of the turns for the shared one is even enough. One thread has a queue without such a limit, and nothing in its
/// runtime has to be safe from other threads, so that a request takes a twentieth less. With 400 clients on a core that
/// cannot keep up, of which each should wait for 10 ms, one of a hundred waits for 12.
fn runtime(threads: usize) -> Result<Runtime, StartError> {
    let mut builder = match threads {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder
        .worker_threads(threads)
        .global_queue_interval(3)
        .enable_all()
        .thread_name("tiergate")
        .build()
        .map_err(|why| StartError::Io("threads".to_owned(), why))
}

fn take_over(state: &State) -> Result<InheritedSockets, StartError> {
    let Some(path) = &state.config.server.upgrade_socket else {
        let missing = io::Error::new(
            io::ErrorKind::NotFound,
            "the configuration has no `server.upgrade_socket`",
        );
        return Err(StartError::Io("takeover".to_owned(), missing));
    };
    InheritedSockets::from(path)
        .map_err(|why| StartError::Io(format!("takeover at {}", path.display()), why))
}

async fn serve(
    state: Arc<State>,
    listeners: Listeners,
    reloads: Arc<Reloads>,
    inherited: Option<InheritedSockets>,
    stop: impl Future<Output = ()>,
) -> i64 {
    start_background_tasks(&state).await;
    let export_ended = CancellationToken::new();
    let exporting = trace_export::run(state.clone(), export_ended.clone());
    let exporting = tokio::spawn(exporting);
    let (shut, shutdown) = watch::channel(false);
    let context = build_context(&state, shutdown);
    let (handover, address) = (offer_sockets(&state, &listeners), listeners.reachable_at());
    let (files, admin_file) = (listeners.files(), listeners.admin.file());
    let accepting = CancellationToken::new();
    tokio::spawn(serve_admin(
        listeners.accept(&context, &accepting),
        state.clone(),
        reloads,
    ));
    announce_ready(&state, inherited);
    // Cancelled when another process does it.
    let watching = CancellationToken::new();
    match address {
        Ok(address) => feed_watchdog(&context, address, &watching),
        Err(why) => log::error!("the watchdog cannot be fed: {why}"),
    }
    let is_replaced = await_stop(stop, handover, &files, &watching).await;
    accepting.cancel();
    state.drain();
    // A closed channel would mean that no connection is left to tell.
    let _ = shut.send(true);
    let cut = drain(&context).await;
    export_ended.cancel();
    // A collector that does not answer is not waited for.
    let _ = tokio::time::timeout(trace_export::FLUSH_TIME, exporting).await;
    if let Some(file) = admin_file.filter(|_| !is_replaced) {
        file.remove();
    }
    cut
}

/// Begins what goes on beside requests. Returns when upstreams have addresses and it is known what was spent, or either
/// has had its time.
async fn start_background_tasks(state: &Arc<State>) {
    resolver::begin(state.upstreams()).await;
    let exchanging = state.clone();
    let first = tokio::task::spawn_blocking(move || exchanging.exchange_with_store());
    // A server that does not answer is tried on in the background.
    let _ = tokio::time::timeout(FIRST_EXCHANGE, first).await;
    health_check::begin(state.upstreams(), &state.draining());
    tokio::spawn(retry_log(state.clone()));
    if state.config.state.is_some() {
        tokio::spawn(exchange_with_store(state.clone()));
    }
}

fn build_context(state: &Arc<State>, shutdown: watch::Receiver<bool>) -> Arc<ServerContext> {
    Arc::new(ServerContext {
        proxy: proxy_app::build(state),
        head_limits: head_limits(&state.limits),
        state: state.clone(),
        shutdown,
        tasks: TaskTracker::new(),
        accepted: AtomicU64::new(0),
        connection_permits: Arc::new(Semaphore::new(state.limits.connections)),
        clients: KeyedLimiter::default(),
    })
}

/// Tells systemd, the process before this one, and whoever reads the log, that this one serves.
fn announce_ready(state: &State, inherited: Option<InheritedSockets>) {
    // Before the old process may end: the service must have its new main process by then, or it counts as stopped.
    systemd::ready();
    if let Some(Err(why)) = inherited.map(InheritedSockets::confirm) {
        log::warn!("the process whose sockets were taken over has ended: {why}");
    }
    // What the files are warned of may be more than waits for stderr's reader at once.
    log::logger().flush();
    log::info!("{}", start_line(state));
}

/// Returns when `stop` is ready, or another process serves on the sockets: true then. `watching` is the feeding of the
/// watchdog.
async fn await_stop(
    stop: impl Future<Output = ()>,
    handover: Option<Arc<SocketHandover>>,
    files: &[SocketFile],
    watching: &CancellationToken,
) -> bool {
    let is_replaced = tokio::select! {
        () = stop => false,
        () = handed_over(handover.clone()) => true,
    };
    if is_replaced {
        // The new process is the service's main process by now, and it is not stopping.
        watching.cancel();
        return true;
    }
    systemd::stopping();
    // A new process would go on with these.
    files.iter().for_each(SocketFile::remove);
    if let Some(handover) = handover {
        handover.withdraw();
    }
    false
}

fn feed_watchdog(context: &Arc<ServerContext>, address: SocketAddress, stop: &CancellationToken) {
    let context = context.clone();
    let feeding = async move { systemd::feed_watchdog(&context, &address).await };
    tokio::spawn(stop.clone().run_until_cancelled_owned(feeding));
}

/// Offers the listening sockets to a process that comes after this one, where the configuration says how.
fn offer_sockets(state: &State, listeners: &Listeners) -> Option<Arc<SocketHandover>> {
    let path = state.config.server.upgrade_socket.as_ref()?;
    let policy = state.policy.clone();
    // A new process knows no policy to hold it against, and would take it at once.
    let refusal = move || match policy.load_status().newest {
        _ if std::process::id() == 1 => {
            Some("the end of process 1 ends its container, and every process in it".to_owned())
        }
        files::Load::Held(why) => Some(format!("{why}; SIGHUP takes it, an upgrade does not")),
        files::Load::Taken | files::Load::Failed(_) => None,
    };
    match listeners
        .handles()
        .and_then(|sockets| SocketHandover::offer(path, sockets, refusal))
    {
        Ok(handover) => Some(Arc::new(handover)),
        Err(why) => {
            log::error!(
                "no takeover is possible, upgrade_socket {}: {why}",
                path.display()
            );
            None
        }
    }
}

/// Returns when another process serves on the sockets.
async fn handed_over(handover: Option<Arc<SocketHandover>>) {
    let Some(handover) = handover else {
        return std::future::pending().await;
    };
    let (done, waits) = oneshot::channel();
    // A thread of its own: it may wait for as long as the process lives.
    let waiting = std::thread::Builder::new()
        .name("takeover".to_owned())
        .spawn(move || {
            let result = handover.wait();
            // Nobody is left to hear it where the process ends first.
            let _ = done.send(result);
        });
    match (waiting, waits.await) {
        (Ok(_), Ok(Ok(()))) => log::info!("another process has taken over"),
        _ => std::future::pending().await,
    }
}

fn head_limits(limits: &Limits) -> HeadLimits {
    HeadLimits {
        time: limits.header_timeout,
        // A read that finds the end of a head within the limit may have taken as much of what follows it.
        bytes: limits.header.saturating_add(limits.header.max(READ_BYTES)),
        keepalive: limits.keepalive_timeout,
    }
}

/// The admin listener goes on through the drain, so that its end can be watched.
async fn serve_admin(listener: ListeningSocket, state: Arc<State>, reloads: Arc<Reloads>) {
    let history = Arc::new(Mutex::default());
    tokio::spawn(keep_history(state.clone(), history.clone()));
    let app = Arc::new(HttpServer::new_app(Admin {
        state,
        reloads,
        history,
    }));
    // Never told to stop; the runtime ends it.
    let (_stop, shutdown) = watch::channel(false);
    loop {
        let Ok((socket, peer)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_BACKOFF).await;
            continue;
        };
        let (app, shutdown) = (app.clone(), shutdown.clone());
        tokio::spawn(async move {
            socket.tell_peer(peer);
            let stream: Stream = Box::new(socket);
            ServerApp::process_new(&app, stream, &shutdown).await;
        });
    }
}

/// Saves what was spent, where it is to outlive the process, and learns what others spent.
async fn exchange_with_store(state: Arc<State>) {
    loop {
        let exchanging = state.clone();
        // An error would be that of a runtime which ends; the end exchanges once more.
        let _ = tokio::task::spawn_blocking(move || exchanging.exchange_with_store()).await;
        state.next_exchange().await;
    }
}

async fn retry_log(state: Arc<State>) {
    loop {
        tokio::time::sleep(LOG_RETRY).await;
        state.log.retry();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[test]
    fn no_task_waits_for_many_turns_of_another() {
        const TASKS: usize = 1000;
        const TURNS: usize = 200;
        for threads in [1, 2] {
            let runtime = runtime(threads).unwrap();
            let turns: Arc<[AtomicUsize]> = (0..TASKS).map(|_| AtomicUsize::new(0)).collect();
            let (gate, first) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
            for index in 0..TASKS {
                let (turns, gate, first) = (turns.clone(), gate.clone(), first.clone());
                runtime.spawn(async move {
                    gate.acquire().await.unwrap().forget();
                    while turns[index].fetch_add(1, Ordering::Relaxed) < TURNS {
                        tokio::task::yield_now().await;
                    }
                    first.notify_one();
                });
            }
            gate.add_permits(TASKS);
            let ended =
                async { tokio::time::timeout(Duration::from_secs(60), first.notified()).await };
            runtime.block_on(ended).unwrap();
            let turns = turns.iter().map(|turns| turns.load(Ordering::Relaxed));
            let least = turns.min().unwrap();
            assert!(least > TURNS / 4, "{threads} threads: {least} of {TURNS}");
        }
    }
}
