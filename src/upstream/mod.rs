//! An upstream as it is now: the addresses behind its names, which of them a request goes to, the credential that is sent
//! to it. What it is in the configuration stands in `config.rs`, how its addresses fare in `health.rs`.

pub(crate) mod connector;
pub(crate) mod health_check;
pub(crate) mod outlier_detection;
pub(crate) mod tls;

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use http::HeaderValue;
use http::header::InvalidHeaderValue;
use pingora_core::protocols::TcpKeepalive;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType};
use sha2::{Digest, Sha256};

use crate::config::secret_file::FileBytes;
use crate::config::url::Destination;
use crate::config::{self, SocketAddress, Url};
use crate::policy::CredentialHeader;
use crate::policy::key_shape::check_credential;
use crate::upstream::connector::own_peer;
use crate::upstream::outlier_detection::Health;
use crate::upstream::tls::UpstreamTlsConfig;

/// How often a name is resolved again. `getaddrinfo` tells no time to live; ten seconds follow a failover soon enough.
pub const RESOLVE_EVERY: Duration = Duration::from_secs(10);
/// Addresses of one upstream that are used; those beyond are not.
const MOST_ADDRESSES: usize = 64;
/// Attempts of a request that are not counted because the upstream refused them unseen.
const MAX_REFUSALS: usize = 10;
/// What may be under way of one response over HTTP/2, in bytes. The connection's window has room for all of its streams, so
/// that clients who read slowly do not stop the others.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const KEEPALIVE: TcpKeepalive = TcpKeepalive {
    idle: Duration::from_secs(30),
    interval: Duration::from_secs(10),
    count: 3,
    user_timeout: Duration::from_secs(60),
};

/// An upstream with its addresses, their health, and the key that it is sent.
pub struct Upstream {
    /// Its entry in the configuration.
    pub config: Arc<config::Upstream>,
    /// One for each URL, in the order of the configuration.
    pub origins: Vec<Arc<Origin>>,
    addresses: ArcSwap<Vec<Arc<Address>>>,
    /// What `addresses` are made of; held while they are made anew.
    parts: Mutex<Parts>,
    turn: AtomicUsize,
    /// Ejections of its addresses, and attempts after the first of a request, since the start.
    ejections: AtomicU64,
    retries: AtomicU64,
    credential: ArcSwapOption<Secret>,
}

/// One URL of an upstream.
pub struct Origin {
    /// The URL itself.
    pub url: Url,
    /// `Host` of every request to it.
    pub host: HeaderValue,
}

/// One address behind a URL, ready to be sent to.
pub struct Address {
    /// Where it is connected to.
    pub socket: SocketAddress,
    /// The URL whose host resolved to it.
    pub origin: Arc<Origin>,
    /// Successes and failures of requests and checks to it.
    pub health: Arc<Health>,
    /// How it is reached by Pingora's own connectors.
    pub peer: HttpPeer,
    /// The same for [`connector::UpstreamConnector`]: in any version of HTTP, and in HTTP/1.1.
    any_version: HttpPeer,
    only_http1: HttpPeer,
}

/// The attempts for one request, over addresses and dead pooled connections.
#[derive(Default)]
pub struct Attempts {
    attempts: usize,
    /// Attempts that did not get a connection.
    unconnected: usize,
    /// Attempts of which the upstream said that it had not looked at the request.
    refused: usize,
    /// Where among the addresses the first attempt began to look.
    turn: usize,
    /// A bit for each place among the addresses that was tried.
    tried: u64,
    address: Option<Arc<Address>>,
}

struct Parts {
    /// What each URL's host was last resolved to.
    found: Vec<Vec<SocketAddress>>,
    tls: UpstreamTlsConfig,
}

/// The headers of one upstream key, marked sensitive so that no `Debug` prints them.
struct Secret {
    authorization: HeaderValue,
    x_api_key: HeaderValue,
    /// SHA-256 of the key.
    digest: [u8; 32],
}

impl Upstream {
    /// An upstream without addresses, credential and own TLS material.
    ///
    /// # Errors
    /// Where a host cannot stand in a header.
    pub fn new(config: Arc<config::Upstream>) -> Result<Self, InvalidHeaderValue> {
        let origins = config.urls.iter().cloned().map(Origin::new);
        let origins = origins.collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            addresses: ArcSwap::default(),
            parts: Mutex::new(Parts {
                found: vec![Vec::new(); origins.len()],
                tls: UpstreamTlsConfig::default(),
            }),
            turn: AtomicUsize::new(0),
            ejections: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            credential: ArcSwapOption::empty(),
            origins,
            config,
        })
    }

    /// Asks for the addresses behind the name of one URL. The last good ones stay where none come back.
    pub async fn resolve(&self, origin: usize) {
        match lookup(&self.origins[origin].url.destination).await {
            Ok(found) => self.take_sockets(origin, found),
            Err(why) => log::warn!("upstream `{}`: {why}", self.config.name),
        }
    }

    fn take_sockets(&self, origin: usize, found: Vec<SocketAddress>) {
        self.change(|parts| {
            let changed = !found.is_empty() && parts.found[origin] != found;
            if changed {
                parts.found[origin] = found;
            }
            changed
        });
    }

    /// Takes the files of `tls`. If they have changed, requests from now on use no connection of before.
    ///
    /// # Errors
    /// Where they cannot be used; those before them stay.
    pub fn load_tls(&self) -> io::Result<()> {
        let tls = UpstreamTlsConfig::load(&self.config.tls)?;
        self.change(|parts| {
            let changed = !parts.tls.is_same(&tls);
            if changed {
                parts.tls = tls;
            }
            changed
        });
        Ok(())
    }

    /// Makes the addresses anew where their parts have changed. Those that stay keep their health.
    fn change(&self, change: impl FnOnce(&mut Parts) -> bool) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if !change(&mut parts) {
            return;
        }
        let old = self.addresses.load();
        let pairs = self.origins.iter().zip(&parts.found);
        let pairs = pairs.flat_map(|(origin, found)| found.iter().map(move |at| (origin, at)));
        let new = pairs.take(MOST_ADDRESSES).map(|(origin, socket)| {
            let known = old
                .iter()
                .find(|known| known.socket == *socket && Arc::ptr_eq(&known.origin, origin));
            let mut peer = self.config.peer(socket, &origin.url);
            parts.tls.apply(&mut peer);
            Arc::new(Address {
                socket: socket.clone(),
                origin: origin.clone(),
                health: known.map(|known| known.health.clone()).unwrap_or_default(),
                any_version: own_peer(&peer, false),
                only_http1: own_peer(&peer, true),
                peer,
            })
        });
        self.addresses.store(Arc::new(new.collect()));
    }

    /// The addresses that are known now, those that get no requests included.
    pub fn addresses(&self) -> Arc<Vec<Arc<Address>>> {
        self.addresses.load_full()
    }

    /// Ejections of its addresses since the start.
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Ordering::Relaxed)
    }

    /// Attempts after the first one of a request, since the start.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// A request had the beginning of an answer from there.
    fn record_success(&self, address: &Address) {
        if address.health.record_success() {
            log::info!(
                "upstream `{}`: {} is back",
                self.config.name,
                address.socket
            );
        }
    }

    /// A request failed there, for a reason that lies there.
    fn record_failure(&self, address: &Address, why: &str) {
        if let Some(time) = address.health.record_failure(why, &self.config.ejection) {
            self.ejections.fetch_add(1, Ordering::Relaxed);
            log::warn!(
                "upstream `{}` {} is ejected for {time:?}: {why}",
                self.config.name,
                address.socket
            );
        }
    }

    /// Takes the key that is sent to this upstream in place of the client's: the one line of its file.
    ///
    /// # Errors
    /// Where the file could not be read or holds something else than a key; the last good key stays.
    pub fn load_credential(&self, content: io::Result<FileBytes>) -> io::Result<()> {
        let content = content?;
        let unusable = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
        let text = std::str::from_utf8(&content).map_err(|_| unusable("the file is not text"))?;
        let mut lines = text.lines();
        let key = lines.next().unwrap_or_default().trim();
        if key.is_empty() {
            return Err(unusable("the file holds no key in its first line"));
        }
        if lines.any(|line| !line.trim().is_empty()) {
            return Err(unusable(
                "the file holds more than one line; the key stands there alone",
            ));
        }
        check_credential(key).map_err(unusable)?;
        let header = |value: String| {
            let mut value = HeaderValue::try_from(value)
                .map_err(|_| unusable("the key cannot stand in a header"))?;
            value.set_sensitive(true);
            Ok::<_, io::Error>(value)
        };
        let secret = Secret {
            authorization: header(format!("Bearer {key}"))?,
            x_api_key: header(key.to_owned())?,
            digest: Sha256::digest(key).into(),
        };
        self.credential.store(Some(Arc::new(secret)));
        Ok(())
    }

    /// Whether the proxy's own key is sent in place of the client's.
    pub fn has_credential(&self) -> bool {
        self.credential.load().is_some()
    }

    /// SHA-256 of the key that replaces the client's, if one does.
    pub fn credential_digest(&self) -> Option<[u8; 32]> {
        self.credential.load().as_ref().map(|secret| secret.digest)
    }

    /// The header that replaces the client's own; none where the client's key goes upstream.
    pub fn credential(&self, like: CredentialHeader) -> Option<HeaderValue> {
        self.credential.load().as_ref().map(|secret| match like {
            CredentialHeader::Authorization => secret.authorization.clone(),
            CredentialHeader::XApiKey | CredentialHeader::ApiKey => secret.x_api_key.clone(),
        })
    }
}

impl Origin {
    fn new(url: Url) -> Result<Arc<Self>, InvalidHeaderValue> {
        let host = HeaderValue::try_from(url.authority())?;
        Ok(Arc::new(Self { url, host }))
    }
}

impl Address {
    /// Where a request goes. `only_http1`: whatever the upstream could speak.
    pub fn request_peer(&self, only_http1: bool) -> &HttpPeer {
        match only_http1 {
            true => &self.only_http1,
            false => &self.any_version,
        }
    }
}

impl config::Upstream {
    fn peer(&self, socket: &SocketAddress, url: &Url) -> HttpPeer {
        let mut peer = peer(socket, url, self.tls.server_name.as_deref());
        let options = &mut peer.options;
        options.connection_timeout = Some(self.connect_timeout);
        options.total_connection_timeout = Some(self.connect_timeout);
        // How long reads may take is up to the request ([`connector::control`]).
        options.read_timeout = None;
        options.write_timeout = Some(self.idle_timeout);
        options.idle_timeout = Some(self.keepalive_timeout);
        options.tcp_keepalive = Some(KEEPALIVE);
        options.max_h2_streams = self.http2.max_streams;
        options.h2_ping_interval = Some(self.http2.ping_interval);
        options.h2_stream_window_size = Some(STREAM_WINDOW_BYTES);
        options.h2_connection_window_size = Some(
            STREAM_WINDOW_BYTES
                .saturating_mul(self.http2.max_streams as u32)
                .min(i32::MAX as u32),
        );
        // HTTP/2 is agreed on by TLS alone.
        let most = if url.tls && self.http2.enabled { 2 } else { 1 };
        options.set_http_version(most, 1);
        peer
    }
}

/// The sockets behind a URL, in order and none twice. A name is resolved.
///
/// # Errors
/// Where the name cannot be resolved.
pub async fn lookup(destination: &Destination) -> io::Result<Vec<SocketAddress>> {
    let (host, port) = match destination {
        Destination::Tcp { host, port } => (host, *port),
        Destination::Unix(path) => return Ok(vec![SocketAddress::Unix(path.clone())]),
    };
    let found = tokio::net::lookup_host((host.as_str(), port)).await;
    let found = found
        .map_err(|why| io::Error::new(why.kind(), format!("cannot resolve `{host}`: {why}")))?;
    let mut found: Vec<SocketAddress> = found.map(SocketAddress::from).collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// How a socket is reached by Pingora's connectors, with Pingora's own settings. `server_name` is verified in place of the
/// URL's host.
pub fn peer(socket: &SocketAddress, url: &Url, server_name: Option<&str>) -> HttpPeer {
    // The name is never empty for https (the configuration refuses it): without one, Pingora would not verify.
    let name = match (server_name, &url.destination) {
        (Some(name), _) if url.tls => name.to_owned(),
        (None, Destination::Tcp { host, .. }) if url.tls => host.clone(),
        _ => String::new(),
    };
    match socket {
        SocketAddress::Tcp(socket) => HttpPeer::new(*socket, url.tls, name),
        SocketAddress::Unix(path) => HttpPeer::new_uds(&path.to_string_lossy(), url.tls, name)
            .expect("the configuration has seen to it that the path fits an address"),
    }
}

impl Attempts {
    /// Whether there was an attempt.
    pub fn has_begun(&self) -> bool {
        self.attempts > 0
    }

    /// The URL to whose address the newest attempt goes.
    pub fn origin(&self) -> Option<&Origin> {
        self.address.as_deref().map(|address| &*address.origin)
    }

    /// Where the next attempt goes; none while no address is known.
    pub fn next(&mut self, upstream: &Upstream) -> Option<&Arc<Address>> {
        let addresses = upstream.addresses.load();
        if self.attempts > 0 {
            upstream.retries.fetch_add(1, Ordering::Relaxed);
        } else if addresses.len() > 1 {
            self.turn = upstream.turn.fetch_add(1, Ordering::Relaxed);
        }
        self.attempts += 1;
        let place = self.place(&addresses, upstream.config.connect_timeout)?;
        self.tried |= 1 << place;
        Some(self.address.insert(addresses[place].clone()))
    }

    /// The next address in turn that is healthy; where none is left, one that was not tried; else any.
    fn place(&self, addresses: &[Arc<Address>], trial: Duration) -> Option<usize> {
        let count = addresses.len();
        if count == 0 {
            return None;
        }
        let first = self.turn % count;
        // What an address does not get goes to each of the others in turn, not all to the one behind it.
        let next = first + 1 + self.turn / count % (count - 1).max(1);
        let others = (next..next + count).map(|place| place % count);
        let mut places = std::iter::once(first).chain(others);
        let is_new = |place: &usize| self.tried & (1 << place) == 0;
        let is_healthy = |place: &usize| addresses[*place].health.admits(trial);
        places
            .clone()
            .find(|place| is_new(place) && is_healthy(place))
            .or_else(|| places.find(is_new))
            .or(Some(first))
    }

    /// Of the newest attempt.
    pub fn address(&self) -> Option<&Arc<Address>> {
        self.address.as_ref()
    }

    /// No connection could be made for the newest attempt, so nothing was sent. Whether there is to be another one.
    /// `only_http1`: HTTP/2 was not offered.
    pub fn fails_to_connect(
        &mut self,
        upstream: &Upstream,
        error: &Error,
        only_http1: bool,
    ) -> bool {
        // An HTTP/2 connection of the pool has ended; the next attempt makes a new one.
        let was_stale = *error.etype() == ErrorType::H2Error;
        if !was_stale {
            self.unconnected += 1;
            // An upstream that speaks only HTTP/2 ends such a handshake, and serves all other requests.
            let lacks_http1 = only_http1
                && upstream.config.http2.enabled
                && *error.root_etype() == ErrorType::TLSHandshakeFailure;
            if !lacks_http1 {
                self.fails(upstream, error);
            }
        }
        let others_left = self.unconnected < upstream.addresses.load().len();
        (was_stale || others_left) && self.may_go_on(upstream)
    }

    /// The newest attempt failed, for a reason that lies with the address.
    pub fn fails(&self, upstream: &Upstream, error: &Error) {
        if let Some(address) = &self.address {
            upstream.record_failure(address, &describe_error(error));
        }
    }

    /// The head of an answer is here.
    pub fn is_answered(&self, upstream: &Upstream, status: u16) {
        let Some(address) = &self.address else {
            return;
        };
        if upstream.config.ejection.gateway_errors && matches!(status, 502..=504) {
            upstream.record_failure(address, &format!("answer {status}"));
        } else {
            upstream.record_success(address);
        }
    }

    /// The upstream has not looked at the newest attempt. It says so of its own accord, so that this is none of the retries
    /// that its settings allow.
    pub fn is_refused(&mut self) {
        self.refused += 1;
    }

    /// Whether the upstream's settings allow for another attempt.
    pub fn may_go_on(&self, upstream: &Upstream) -> bool {
        let retries = upstream.config.retries;
        let refused = if retries == 0 { 0 } else { self.refused };
        self.attempts - refused.min(MAX_REFUSALS) <= retries
    }
}

const TLS_FAILED: &str = "TLS failed";

/// An error of Pingora in words for operators: what its type means, and the operating system's or the TLS library's word where
/// that says more. Neither quotes what a peer has sent.
pub fn describe_error(error: &Error) -> String {
    // A connection that failed is told as one, whatever its cause is called.
    let kind = match error.etype() {
        ErrorType::ConnectError => error.etype(),
        _ => error.root_etype(),
    };
    let words = match kind {
        ErrorType::ConnectRefused => return "connection refused".to_owned(),
        ErrorType::ConnectTimedout => return "no connection within the time for it".to_owned(),
        ErrorType::ConnectNoRoute => "no route",
        ErrorType::ConnectError => "no connection",
        ErrorType::TLSHandshakeTimedout => return "no TLS within the time for it".to_owned(),
        ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert => TLS_FAILED,
        ErrorType::ReadTimedout => return "no answer within the time for it".to_owned(),
        ErrorType::WriteTimedout => return "it takes no bytes of the request".to_owned(),
        ErrorType::ConnectionClosed => return "the connection was closed".to_owned(),
        ErrorType::InvalidHTTPHeader => return "an answer that is no HTTP".to_owned(),
        other => other.as_str(),
    };
    let cause = error.root_cause();
    let detail = match cause.downcast_ref::<io::Error>() {
        Some(why) => Some(why.to_string()),
        // Where a handshake fails, Pingora has its library's words within its own.
        None if words == TLS_FAILED => {
            let text = error.to_string();
            let told = text.split("TLS connect() failed: ").nth(1);
            let told = told.and_then(|told| told.split(", SNI").next());
            told.and_then(|told| told.rsplit("cause: ").next().map(str::to_owned))
        }
        None => None,
    };
    let detail = detail.map(|detail| match detail.split_once(" (os error") {
        Some((text, _)) => text.to_ascii_lowercase(),
        None => detail,
    });
    match detail {
        Some(detail) => format!("{words}: {detail}"),
        None => words.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn upstream(urls: &str) -> Upstream {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiergate.yaml");
        let text = format!(
            "policy: p\nupstreams: {{u: {{url: {urls}, ejection: {{consecutive_failures: 1}}}}}}\n"
        );
        std::fs::write(&path, text).unwrap();
        let (config, _) = config::Config::load(&path).unwrap();
        Upstream::new(config.upstreams[0].clone()).unwrap()
    }

    /// One address for each of these numbers.
    fn sockets(numbers: impl IntoIterator<Item = u16>) -> Vec<SocketAddress> {
        let hosts = numbers
            .into_iter()
            .map(|number| 0x0a00_0000 + u32::from(number));
        hosts
            .map(|host| SocketAddr::from((std::net::Ipv4Addr::from(host), 80)).into())
            .collect()
    }

    /// The last number of the address that a new request would go to.
    fn next(upstream: &Upstream) -> u8 {
        let mut route = Attempts::default();
        route.next(upstream).unwrap();
        number(&route)
    }

    fn number(route: &Attempts) -> u8 {
        match &route.address.as_ref().unwrap().socket {
            SocketAddress::Tcp(SocketAddr::V4(socket)) => socket.ip().octets()[3],
            _ => 0,
        }
    }

    fn refused() -> Box<Error> {
        Error::new(ErrorType::ConnectRefused)
    }

    #[test]
    fn an_address_that_stays_keeps_its_health() {
        let upstream = upstream("http://h");
        upstream.take_sockets(0, sockets([1, 2]));
        upstream.record_failure(&upstream.addresses()[1], "x");
        upstream.take_sockets(0, sockets([2, 3]));
        let healthy = |at: usize| upstream.addresses()[at].health.snapshot().healthy;
        assert_eq!((healthy(0), healthy(1)), (false, true));
    }

    #[test]
    fn the_last_addresses_of_each_name_stay() {
        let upstream = upstream("[http://h, http://i]");
        upstream.take_sockets(0, sockets([1]));
        upstream.take_sockets(1, sockets([2, 3]));
        upstream.take_sockets(1, Vec::new());
        assert_eq!([(); 6].map(|()| next(&upstream)), [1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn no_more_addresses_are_used_than_there_is_room_for() {
        let upstream = upstream("[http://h, http://i]");
        upstream.take_sockets(0, sockets(0..100));
        upstream.take_sockets(1, sockets(100..200));
        assert_eq!(upstream.addresses().len(), MOST_ADDRESSES);
        let mut route = Attempts {
            turn: 63,
            ..Attempts::default()
        };
        for _ in 0..MOST_ADDRESSES + 1 {
            assert!(route.next(&upstream).is_some());
        }
    }

    #[test]
    fn what_an_ejected_address_does_not_get_goes_to_all_others() {
        let upstream = upstream("http://h");
        upstream.take_sockets(0, sockets(0..4));
        upstream.record_failure(&upstream.addresses()[1], "x");
        let mut counts = [0; 4];
        for _ in 0..120 {
            counts[usize::from(next(&upstream))] += 1;
        }
        assert_eq!(counts, [40, 0, 40, 40]);
    }

    #[test]
    fn attempts_go_to_healthy_addresses_first_then_to_the_others_and_to_none_twice() {
        let upstream = upstream("http://h");
        upstream.take_sockets(0, sockets(0..4));
        for ejected in [0, 2] {
            upstream.record_failure(&upstream.addresses()[ejected], "x");
        }
        let mut route = Attempts::default();
        let mut tried = Vec::new();
        while tried.is_empty() || route.fails_to_connect(&upstream, &refused(), false) {
            route.next(&upstream).unwrap();
            tried.push(number(&route));
        }
        tried[..2].sort_unstable();
        tried[2..].sort_unstable();
        assert_eq!(tried, [1, 3, 0, 2]);
    }

    #[test]
    fn a_dead_connection_of_the_pool_does_not_speak_against_its_address() {
        let upstream = upstream("http://h");
        upstream.take_sockets(0, sockets([1]));
        let mut route = Attempts::default();
        route.next(&upstream).unwrap();
        let dead = Error::new(ErrorType::H2Error);
        assert!(route.fails_to_connect(&upstream, &dead, false));
        assert!(upstream.addresses()[0].health.snapshot().healthy);
        route.next(&upstream).unwrap();
        assert!(!route.fails_to_connect(&upstream, &refused(), false));
    }

    #[test]
    fn a_peer_of_https_always_has_a_name_and_may_speak_http_2_unless_told_otherwise() {
        for (urls, most) in [
            ("https://h", 2),
            ("https://h, http2: {enabled: true}", 2),
            ("https://h, http2: {enabled: false}", 1),
        ] {
            let upstream = upstream(urls);
            upstream.take_sockets(0, sockets([1]));
            let peer = &upstream.addresses()[0].peer;
            assert_eq!(peer.sni.as_str(), "h");
            assert_eq!(peer.options.alpn.get_max_http_version(), most, "{urls}");
        }
    }
}
