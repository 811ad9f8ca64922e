//! An upstream as it is now: the addresses behind its name, the credential that is sent to it. What it is in the
//! configuration stands in `config.rs`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use http::HeaderValue;
use pingora_core::protocols::TcpKeepalive;
use pingora_core::upstreams::peer::HttpPeer;

use crate::config;
use crate::policy::CredentialHeader;
use crate::reload::FileBytes;

/// How often a name is resolved again. `getaddrinfo` tells no time to live; ten seconds follow a failover soon enough.
pub const RESOLVE_EVERY: Duration = Duration::from_secs(10);
/// Idle connections to an upstream are closed after this, before most servers close them first.
const POOL_IDLE: Duration = Duration::from_secs(50);
/// Streams on one HTTP/2 connection; the least that RFC 9113 §6.5.2 recommends servers to allow.
const H2_STREAMS: usize = 100;
const KEEPALIVE: TcpKeepalive = TcpKeepalive {
    idle: Duration::from_secs(30),
    interval: Duration::from_secs(10),
    count: 3,
    user_timeout: Duration::from_secs(60),
};

pub struct Upstream {
    pub config: Arc<config::Upstream>,
    /// `Host` of every request to it.
    pub host: HeaderValue,
    addresses: ArcSwap<Vec<SocketAddr>>,
    turn: AtomicUsize,
    credential: ArcSwapOption<Secret>,
}

/// The headers of one upstream key, marked sensitive so that no `Debug` prints them.
struct Secret {
    authorization: HeaderValue,
    x_api_key: HeaderValue,
}

impl Upstream {
    /// # Errors
    /// Where its host cannot stand in a header.
    pub fn new(config: Arc<config::Upstream>) -> Result<Self, http::header::InvalidHeaderValue> {
        let url = &config.url;
        let standard = if url.tls { 443 } else { 80 };
        let name = if url.host.contains(':') {
            format!("[{}]", url.host)
        } else {
            url.host.clone()
        };
        let host = if url.port == standard {
            name
        } else {
            format!("{name}:{}", url.port)
        };
        Ok(Self {
            host: HeaderValue::try_from(host)?,
            config,
            addresses: ArcSwap::default(),
            turn: AtomicUsize::new(0),
            credential: ArcSwapOption::empty(),
        })
    }

    /// Whether its host is a name, whose addresses may change.
    pub fn is_named(&self) -> bool {
        self.config.url.host.parse::<IpAddr>().is_err()
    }

    /// Asks for the addresses behind the name. The last good ones stay where none come back.
    pub async fn resolve(&self) {
        let url = &self.config.url;
        match tokio::net::lookup_host((url.host.as_str(), url.port)).await {
            Ok(found) => {
                let mut found: Vec<SocketAddr> = found.collect();
                found.sort_unstable();
                found.dedup();
                if !found.is_empty() && **self.addresses.load() != found {
                    self.addresses.store(Arc::new(found));
                }
            }
            Err(why) => log::warn!(
                "upstream `{}`: cannot resolve `{}`: {why}",
                self.config.name,
                url.host
            ),
        }
    }

    pub fn addresses(&self) -> Arc<Vec<SocketAddr>> {
        self.addresses.load_full()
    }

    /// Where a new request goes first among the addresses; the attempts after it take those that follow.
    pub fn next_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// The peer for one attempt; none while no address is known.
    ///
    /// An upgraded connection may stay silent for as long as its peers like, and HTTP/2 cannot carry one.
    pub fn peer(&self, turn: usize, upgrade: bool) -> Option<HttpPeer> {
        let addresses = self.addresses.load();
        let address = *addresses.get(turn % addresses.len().max(1))?;
        let config = &self.config;
        // The name is never empty for https (the configuration refuses it): without one, Pingora would not verify.
        let mut peer = HttpPeer::new(address, config.url.tls, config.url.host.clone());
        let options = &mut peer.options;
        options.connection_timeout = Some(config.connect_timeout);
        options.total_connection_timeout = Some(config.connect_timeout);
        options.read_timeout = (!upgrade).then(|| config.response_timeout.max(config.idle_timeout));
        options.write_timeout = Some(config.idle_timeout);
        options.idle_timeout = Some(POOL_IDLE);
        options.tcp_keepalive = Some(KEEPALIVE);
        options.max_h2_streams = H2_STREAMS;
        // On HTTP/2 Pingora has one limit for all reads, and the connection cannot be shut for one request alone.
        let waits_less_for_first = config.response_timeout < config.idle_timeout;
        if config.url.tls && !upgrade && !waits_less_for_first {
            options.set_http_version(2, 1);
        } else {
            options.set_http_version(1, 1);
        }
        Some(peer)
    }

    /// Takes the key that is sent to this upstream in place of the client's: the first line of its file.
    ///
    /// # Errors
    /// Where the file could not be read or holds no key that can stand in a header; the last good key stays.
    pub fn load_credential(&self, content: io::Result<FileBytes>) -> io::Result<()> {
        let content = content?;
        let text = std::str::from_utf8(&content)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let key = text.lines().next().unwrap_or_default().trim();
        if key.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the file holds no key",
            ));
        }
        let header = |value: String| {
            let mut value = HeaderValue::try_from(value).map_err(|_| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the key cannot stand in a header",
                )
            })?;
            value.set_sensitive(true);
            Ok::<_, io::Error>(value)
        };
        let secret = Secret {
            authorization: header(format!("Bearer {key}"))?,
            x_api_key: header(key.to_owned())?,
        };
        self.credential.store(Some(Arc::new(secret)));
        Ok(())
    }

    /// The header that replaces the client's own; none where the client's key goes upstream.
    pub fn credential(&self, like: CredentialHeader) -> Option<HeaderValue> {
        self.credential.load().as_ref().map(|secret| match like {
            CredentialHeader::Authorization => secret.authorization.clone(),
            CredentialHeader::XApiKey => secret.x_api_key.clone(),
        })
    }
}
