//! How connections to upstreams are made and shared: Pingora's connectors and pools, reached by the place that Pingora has
//! for a connector of one's own, so that every stream is one of ours below Pingora's loop. What these add is said in
//! [`http1_stream`] and [`http2_session`]; most of it would be mended upstream by cloudflare/pingora#992 and by reading
//! HTTP/2 streams to END_STREAM there.

mod acknowledgement;
pub mod control;
mod error_prefix;
mod http1_stream;
mod http2_body;
mod http2_session;
mod http2_stream;

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora_core::connectors::ConnectorOptions;
use pingora_core::connectors::http::custom::{Connection, Connector};
use pingora_core::connectors::http::v2::{self, ConnectionRef, H2HandshakeSettings};
use pingora_core::protocols::ALPN;
use pingora_core::protocols::UniqueIDType;
use pingora_core::protocols::http::v2::client::Http2Session as PingoraSession;
use pingora_core::protocols::tls::CustomALPN;
use pingora_core::upstreams::peer::{HttpPeer, Peer};
use pingora_core::{Error, ErrorType, Result};

use control::carried;
use http1_stream::Http1Stream;
pub use http2_session::{Http2Session, NOT_PROCESSED};
use http2_stream::{Http2Stream, ServerNotes};

/// Streams that may be cancelled on a connection of HTTP/2 before it takes no further request.
///
/// What still comes for a stream that was reset some time ago counts against the connection in the h2 crate, which closes
/// it at 1,024. It remembers the last 50 resets of a second, so that the connection is retired before they can add up.
const CANCELLED_STREAMS: u32 = 40;

/// How long a server may take nothing of a body before its connection takes no further request, which might wait behind it:
/// several times what a window's update takes on its way.
const STALL_TIME: Duration = Duration::from_millis(500);

/// The names by which Pingora knows that a peer is ours; they are never on the wire.
const ANY_VERSION: &[u8] = b"tiergate";
const ONLY_HTTP1: &[u8] = b"tiergate-http1";

/// Makes connections of both versions, and keeps those of HTTP/2. Pingora keeps those of HTTP/1.1.
pub struct UpstreamConnector {
    http2: Arc<v2::Connector>,
    /// How many streams were cancelled on each connection.
    cancelled: Mutex<HashMap<UniqueIDType, u32>>,
}

/// A peer for Pingora to give to [`UpstreamConnector`]. `only_http1`: whatever the upstream could speak.
pub fn own_peer(peer: &HttpPeer, only_http1: bool) -> HttpPeer {
    let name = if only_http1 || peer.options.alpn == ALPN::H1 {
        ONLY_HTTP1
    } else {
        ANY_VERSION
    };
    let mut peer = peer.clone();
    peer.options.alpn = ALPN::Custom(CustomALPN::new(name.to_vec()));
    peer
}

impl UpstreamConnector {
    pub fn new(options: ConnectorOptions) -> Self {
        Self {
            http2: Arc::new(v2::Connector::new(Some(options))),
            cancelled: Mutex::default(),
        }
    }

    async fn connect(&self, peer: &HttpPeer) -> Result<Connection<Http2Session>> {
        let transport = self.http2.transport();
        let stream = transport.new_stream(peer).await.map_err(unconnected)?;
        if stream.selected_alpn_proto() == Some(ALPN::H2) {
            let session = self.begin_http2(Http2Stream::new(stream), peer).await?;
            return Ok(Connection::Session(Http2Session::new(session)));
        }
        Ok(Connection::Stream(Box::new(Http1Stream::new(stream))))
    }

    /// The first stream of a connection, on which others may follow.
    async fn begin_http2(&self, stream: Http2Stream, peer: &HttpPeer) -> Result<PingoraSession> {
        let options = &peer.options;
        let mut settings = H2HandshakeSettings::new();
        settings.max_streams = options.max_h2_streams;
        settings.ping_interval = options.h2_ping_interval;
        settings.stream_window_size = options.h2_stream_window_size;
        settings.connection_window_size = options.h2_connection_window_size;
        let connection = v2::handshake(Box::new(stream), settings).await?;
        self.cancelled.lock().remove(&connection.id());
        let session = connection.spawn_stream().await?.ok_or_else(|| {
            Error::explain(ErrorType::H2Error, "a new connection takes no stream")
        })?;
        if connection.more_streams_allowed() {
            let pool = self.http2.in_use_pool();
            pool.insert(peer.reuse_hash(), connection);
        }
        Ok(session)
    }

    /// A stream of this connection is cancelled.
    fn cancel(&self, session: &Http2Session) {
        let connection = session.connection();
        let mut cancelled = self.cancelled.lock();
        let count = cancelled.entry(connection.id()).or_default();
        *count += 1;
        if *count >= CANCELLED_STREAMS {
            cancelled.remove(&connection.id());
            connection.mark_shutdown();
        }
    }
}

/// The stream, if it can begin at once on a connection that lasts. Pingora opens streams by its own limit only; above the
/// server's, which may have come or changed since the connection was pooled (RFC 9113 §6.5.2), they would wait in the h2
/// crate until others end.
async fn within_limit(session: PingoraSession) -> Option<PingoraSession> {
    let connection = session.conn.clone();
    let is_over = |notes: Arc<ServerNotes>| notes.goes_away() || notes.has_stalled(STALL_TIME);
    if notes_of(&connection).is_some_and(is_over) {
        // What runs on it may end.
        connection.mark_shutdown();
        return None;
    }
    if connection.free_stream_slots() > 0 {
        return Some(session);
    }
    // Pingora counts no further than to the limit: this stream is the last that it allows, or above it.
    drop(session);
    if connection.can_accept_streams(1) {
        connection.spawn_stream().await.ok()?
    } else {
        None
    }
}

/// What the server has said of a connection.
fn notes_of(connection: &ConnectionRef) -> Option<Arc<ServerNotes>> {
    carried(Some(connection.digest()))
}

/// The peer as Pingora hands it to a connector, which is always one of [`own_peer`].
fn http_peer<P: Peer + 'static>(peer: &P) -> Option<&HttpPeer> {
    (peer as &dyn Any).downcast_ref()
}

/// Whether HTTP/2 may be agreed on with this peer.
fn takes_http2(peer: &HttpPeer) -> bool {
    matches!(&peer.options.alpn, ALPN::Custom(name) if name.protocol() == ANY_VERSION)
}

/// The peer as the transport is to see it.
fn transport_peer<P: Peer + 'static>(peer: &P) -> Option<HttpPeer> {
    let mut peer = http_peer(peer)?.clone();
    peer.options.alpn = if takes_http2(&peer) {
        ALPN::H2H1
    } else {
        ALPN::H1
    };
    Some(peer)
}

/// An error of a connection as one that was not made. What the operating system forbids, Pingora calls internal: a packet
/// filter's, or a UNIX socket whose mode does not let the proxy in; and what it has no more of is an error of a socket.
fn unconnected(mut error: Box<Error>) -> Box<Error> {
    let of_system = [
        ErrorType::InternalError,
        ErrorType::SocketError,
        ErrorType::BindError,
    ];
    if of_system.contains(error.root_etype()) {
        error.etype = ErrorType::ConnectError;
    }
    error
}

fn not_ours() -> Box<Error> {
    Error::explain(ErrorType::InternalError, "a peer of another connector")
}

#[async_trait]
impl Connector for UpstreamConnector {
    type Session = Http2Session;

    async fn get_http_session<P: Peer + Send + Sync + 'static>(
        &self,
        peer: &P,
    ) -> Result<(Connection<Self::Session>, bool)> {
        let peer = transport_peer(peer).ok_or_else(not_ours)?;
        Ok((self.connect(&peer).await?, false))
    }

    async fn reused_http_session<P: Peer + Send + Sync + 'static>(
        &self,
        peer: &P,
    ) -> Option<Self::Session> {
        let peer = http_peer(peer).filter(|peer| takes_http2(peer))?;
        // A connection that cannot take another stream is no reason to fail: the next one is a new one.
        let session = loop {
            let session = self.http2.reused_http_session(peer).await.ok()??;
            if let Some(session) = within_limit(session).await {
                break session;
            }
        };
        // Where the server allows fewer streams than we do, a connection seems shared that is not.
        let is_shared = session.conn.free_stream_slots() + 1 < peer.options.max_h2_streams;
        let session = Http2Session::new(session);
        if is_shared {
            session.control().note_shared();
        }
        Some(session)
    }

    async fn release_http_session<P: Peer + Send + Sync + 'static>(
        &self,
        session: Self::Session,
        peer: &P,
        idle_timeout: Option<Duration>,
    ) {
        let Some(peer) = transport_peer(peer) else {
            return;
        };
        if session.ends_later() {
            let http2 = self.http2.clone();
            tokio::spawn(async move {
                let session = session.read_to_end().await;
                http2.release_http_session(session, &peer, idle_timeout);
            });
            return;
        }
        if session.is_overdue() || session.is_refused() {
            // Its other requests go on; the next one is not to wait for nothing, or to be refused, as well.
            session.connection().mark_shutdown();
        }
        if !session.is_complete() {
            self.cancel(&session);
        }
        self.http2
            .release_http_session(session.into_inner(), &peer, idle_timeout);
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::upstream::error_text::describe_error;

    #[test]
    fn a_connection_that_the_system_does_not_make_is_none_of_our_own_errors() {
        for (kind, number, told) in [
            (ErrorType::InternalError, 13, "permission denied"),
            (ErrorType::SocketError, 24, "too many open files"),
        ] {
            let why = io::Error::from_raw_os_error(number);
            let error = Error::because(kind, "connect", why).more_context("a peer");
            let error = unconnected(error);
            assert_eq!(*error.etype(), ErrorType::ConnectError);
            assert_eq!(describe_error(&error), format!("no connection: {told}"));
        }
    }
}
