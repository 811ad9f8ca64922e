//! The public listeners: bound or taken over, with or without TLS and the PROXY protocol, and the connections that they
//! accept.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::{ALPN, Ssl, Stream};
use tokio::io::AsyncReadExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::SocketAddress;
use crate::config::watch::FileWatcher;
use crate::proxy::Proxy;
use crate::proxy::client_connection::{ClientConnection, HeadLimits};
use crate::server::connection_limit::{KeyedLimiter, Permit, subscriber};
use crate::server::downstream::Downstream;
use crate::server::proxy_app::Http2App;
use crate::server::proxy_protocol::{self, Header};
use crate::server::socket::{ListeningSocket, Socket, SocketFile};
use crate::server::socket_handover::InheritedSockets;
use crate::server::tls::HotReloadedAcceptor;
use crate::state::{DRAIN_WAIT, StartError, State};

/// How long accepting rests after it failed, mostly for want of descriptors.
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The sockets of a process, each listening.
pub struct Listeners {
    public: Vec<Listener>,
    pub admin: ListeningSocket,
}

struct Listener {
    socket: ListeningSocket,
    options: ListenerOptions,
}

/// What a connection goes through before it can bring requests.
#[derive(Clone)]
struct ListenerOptions {
    proxy_protocol: bool,
    acceptor: Option<Arc<HotReloadedAcceptor>>,
}

/// What all client connections share.
pub struct ServerContext {
    pub proxy: Arc<Proxy>,
    pub head_limits: HeadLimits,
    pub state: Arc<State>,
    /// True once the process is about to end.
    pub shutdown: watch::Receiver<bool>,
    pub tasks: TaskTracker,
    /// Connections accepted so far.
    pub accepted: AtomicU64,
    /// One for each connection that may be open.
    pub connection_permits: Arc<Semaphore>,
    /// The open connections of each client, where there is a limit for these.
    pub clients: KeyedLimiter<IpAddr>,
}

impl Listeners {
    /// Binds every address of the configuration that is not `inherited` from an older process. Followers of certificates are
    /// added to `followers`.
    ///
    /// # Errors
    /// Where an address cannot be had, or a certificate cannot be read.
    pub fn bind(
        state: &State,
        followers: &mut Vec<FileWatcher>,
        mut inherited: Option<&mut InheritedSockets>,
    ) -> Result<Self, StartError> {
        let mut public = Vec::new();
        for listen in &state.config.listen {
            let acceptor = match &listen.tls {
                None => None,
                Some(files) => {
                    let (acceptor, follows) = HotReloadedAcceptor::load(
                        files,
                        state.metrics.certificate_expiry(&listen.address),
                        &state.load_faults,
                    )
                    .map_err(|why| StartError::Io("TLS".to_owned(), why))?;
                    followers.extend(follows);
                    Some(acceptor)
                }
            };
            let only_v6 = state.config.leaves_ipv4(&listen.address);
            let socket = bind(&listen.address, only_v6, inherited.as_deref_mut())?;
            let options = ListenerOptions {
                proxy_protocol: listen.proxy_protocol,
                acceptor,
            };
            public.push(Listener { socket, options });
        }
        let only_v6 = state.config.leaves_ipv4(&state.config.admin);
        let admin = bind(&state.config.admin, only_v6, inherited)?;
        Ok(Self { public, admin })
    }

    /// A second handle on each socket, with its address, for a process that comes after this one.
    ///
    /// # Errors
    /// Where no further descriptor is to be had.
    pub fn handles(&self) -> io::Result<Vec<(SocketAddress, OwnedFd)>> {
        let public = self.public.iter().map(|listener| &listener.socket);
        public
            .chain([&self.admin])
            .map(|socket| Ok((socket.address()?, socket.handle()?)))
            .collect()
    }

    /// Files of the public listeners.
    pub fn files(&self) -> Vec<SocketFile> {
        let sockets = self.public.iter();
        sockets
            .filter_map(|listener| listener.socket.file())
            .collect()
    }

    /// An address at which this machine reaches the first listener.
    ///
    /// # Errors
    /// Where the socket does not tell.
    pub fn reachable_at(&self) -> io::Result<SocketAddress> {
        let first = self.public.first().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let mut address = first.socket.address()?;
        if let SocketAddress::Tcp(address) = &mut address
            && address.ip().is_unspecified()
        {
            address.set_ip(match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        Ok(address)
    }

    /// Accepts on every public listener until `stop`; the admin listener is given back.
    pub fn accept(self, context: &Arc<ServerContext>, stop: &CancellationToken) -> ListeningSocket {
        for listener in self.public {
            let accepting = accept(listener, context.clone());
            tokio::spawn(stop.clone().run_until_cancelled_owned(accepting));
        }
        self.admin
    }
}

fn bind(
    address: &SocketAddress,
    only_v6: bool,
    inherited: Option<&mut InheritedSockets>,
) -> Result<ListeningSocket, StartError> {
    let bound = match inherited.and_then(|inherited| inherited.socket(address)) {
        Some(socket) => ListeningSocket::inherit(address, socket),
        None => ListeningSocket::bind(address, only_v6),
    };
    bound.map_err(|why| StartError::Io(format!("cannot listen on {address}"), why))
}

async fn accept(listener: Listener, context: Arc<ServerContext>) {
    let Listener { socket, options } = listener;
    loop {
        match socket.accept().await {
            Ok((client, peer)) => {
                context.accepted.fetch_add(1, Ordering::Relaxed);
                let Some(permit) = acquire_connection_permit(&context).await else {
                    return;
                };
                let (context, options) = (context.clone(), options.clone());
                let tasks = context.tasks.clone();
                tasks.spawn(async move {
                    let _permit = permit;
                    serve(client, peer, &options, &context).await;
                });
            }
            Err(why) => {
                log::error!("accepting a connection failed: {why}");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// A permit for one more connection. Until there is one, those that come wait in the kernel's queue. None: never again.
async fn acquire_connection_permit(context: &ServerContext) -> Option<OwnedSemaphorePermit> {
    let permits = context.connection_permits.clone();
    if let Ok(permit) = permits.clone().try_acquire_owned() {
        return Some(permit);
    }
    let rests = &context.state.metrics.accept_rests;
    if rests.get() == 0 {
        // Once: the metric has the rest, and it may be many.
        log::warn!("`limits.connections` is reached, new ones wait");
    }
    rests.inc();
    permits.acquire_owned().await.ok()
}

async fn serve(
    client: Socket,
    peer: Option<SocketAddr>,
    options: &ListenerOptions,
    context: &ServerContext,
) {
    let _open = OpenConnectionGauge::new(&context.state);
    client.prepare();
    let head_until = Instant::now() + context.state.limits.header_timeout;
    let handshake = options.accept_handshake(client, peer, head_until, context);
    let accepted = tokio::select! {
        accepted = timeout_at(head_until, handshake) => accepted.unwrap_or_else(|late| Err(late.into())),
        () = context.state.drain_waits() => return,
    };
    match accepted {
        Ok(entered) => entered.serve(context).await,
        // A scanner, a client that does not trust the certificate, or one too many.
        Err(why) => match peer {
            Some(peer) => log::debug!("a connection of {peer} is closed: {why}"),
            None => log::debug!("a connection to a UNIX socket is closed: {why}"),
        },
    }
}

/// A connection that may bring requests.
struct AcceptedConnection {
    /// As Pingora reads it.
    stream: Stream,
    /// None over HTTP/2.
    connection: Option<Arc<ClientConnection>>,
    /// Its slot among the connections of its client.
    _client_slot: Option<Permit<IpAddr>>,
}

impl AcceptedConnection {
    async fn serve(self, context: &ServerContext) {
        match self.connection {
            Some(connection) => serve_http1(self.stream, &connection, context).await,
            None => {
                let app = Arc::new(Http2App(context.proxy.clone()));
                ServerApp::process_new(&app, self.stream, &context.shutdown).await;
            }
        }
    }
}

/// Has Pingora serve the requests of a connection over HTTP/1.1, one after the other.
///
/// Pingora's own loop would close a connection at the begin of a drain whose request has come in part.
async fn serve_http1(stream: Stream, connection: &ClientConnection, context: &ServerContext) {
    let (draining, drain_over) = (context.state.draining(), context.state.drain_over());
    let serving = async {
        let mut session = ServerSession::new_http1(stream);
        session.set_keepalive(Some(context.head_limits.keepalive.as_secs().max(1)));
        while let Some(reused) = context
            .proxy
            .process_new_http(session, &context.shutdown)
            .await
        {
            connection.await_request();
            let (stream, settings) = reused.consume();
            session = ServerSession::new_http1(stream);
            if let Some(settings) = settings {
                settings.apply_to_session(&mut session);
            }
        }
    };
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        biased;
        () = &mut serving => return,
        () = draining.cancelled() => connection.drain(DRAIN_WAIT),
    }
    tokio::select! {
        biased;
        () = &mut serving => return,
        () = drain_over.cancelled() => connection.end_drain(),
    }
    serving.await;
}

impl ListenerOptions {
    /// A connection whose first head has to be whole at `head_until`.
    async fn accept_handshake(
        &self,
        mut client: Socket,
        peer: Option<SocketAddr>,
        head_until: Instant,
        context: &ServerContext,
    ) -> io::Result<AcceptedConnection> {
        let mut peer = peer;
        if self.proxy_protocol {
            peer = read_proxy_header(&mut client).await?.or(peer);
        }
        if let Some(peer) = &mut peer {
            // One that came to a socket for both families is told like any other.
            peer.set_ip(peer.ip().to_canonical());
        }
        let client_slot = match peer {
            Some(peer) => acquire_client_slot(peer.ip(), context)?,
            None => None,
        };
        client.tell_peer(peer);
        let connection = ClientConnection::new(context.head_limits, head_until);
        let mut is_http1 = true;
        let stream: Stream = match &self.acceptor {
            None => Box::new(Downstream::http1(client, connection.clone())),
            Some(acceptor) => {
                let stream = acceptor.current().tls_handshake(client).await;
                let stream = stream.map_err(io::Error::other)?;
                is_http1 = stream.selected_alpn_proto() != Some(ALPN::H2);
                match is_http1 {
                    true => Box::new(Downstream::http1(stream, connection.clone())),
                    false => {
                        let state = context.state.clone();
                        let drain = async move { state.drain_waits().await };
                        let header_timeout = context.state.limits.header_timeout;
                        Box::new(Downstream::http2(stream, head_until, header_timeout, drain))
                    }
                }
            }
        };
        Ok(AcceptedConnection {
            stream,
            connection: is_http1.then_some(connection),
            _client_slot: client_slot,
        })
    }
}

/// Whose connection a proxy in front says it is; none where it is the proxy's own.
async fn read_proxy_header(client: &mut Socket) -> io::Result<Option<SocketAddr>> {
    let mut header = Vec::new();
    loop {
        match proxy_protocol::parse(&header) {
            Ok(Header::Whole(client)) => return Ok(client),
            Ok(Header::Begun(more)) => {
                let read = header.len();
                header.resize(read + more, 0);
                client.read_exact(&mut header[read..]).await?;
            }
            Err(why) => {
                log::warn!(
                    "a connection is closed that does not begin with the header of the PROXY protocol, which a proxy in front sends where a listener has `proxy_protocol: true`"
                );
                let why = format!("no header of the PROXY protocol: {why}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
        }
    }
}

/// A slot among the connections of this client, where these are limited. Those of a trusted proxy have many clients.
fn acquire_client_slot(
    client: IpAddr,
    context: &ServerContext,
) -> io::Result<Option<Permit<IpAddr>>> {
    let Some(most) = context.state.limits.connections_per_client else {
        return Ok(None);
    };
    if context.state.config.trusted_proxies.contains(client) {
        return Ok(None);
    }
    let client_slot = context.clients.try_acquire(subscriber(client), most);
    if client_slot.is_none() {
        context.state.metrics.connections_refused.inc();
    }
    let refused = || io::Error::other("`limits.connections_per_client` is reached");
    client_slot.map(Some).ok_or_else(refused)
}

/// Counts a connection while it is open.
struct OpenConnectionGauge<'a>(&'a State);

impl<'a> OpenConnectionGauge<'a> {
    fn new(state: &'a State) -> Self {
        state.metrics.connections.inc();
        Self(state)
    }
}

impl Drop for OpenConnectionGauge<'_> {
    fn drop(&mut self) {
        self.0.metrics.connections.dec();
    }
}
