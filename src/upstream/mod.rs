//! An upstream as it is now: its addresses, how each is reached, and the credential that is sent to it. How they fare is
//! [`outlier_detection`]'s; which of them a request goes to is that of its [`Attempts`].

mod attempts;
pub(crate) mod backoff;
pub(crate) mod connector;
mod credential;
pub(crate) mod delegated;
pub(crate) mod error_text;
pub(crate) mod health_check;
pub(crate) mod http2_reader;
pub(crate) mod outlier_detection;
pub(crate) mod output_queue;
pub(crate) mod peer;
pub(crate) mod resolver;
pub(crate) mod socket;
pub(crate) mod tls;
pub(crate) mod waker_slot;
pub(crate) mod write_buffer;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use http::HeaderValue;
use http::header::InvalidHeaderValue;
use parking_lot::Mutex;
use pingora_core::upstreams::peer::HttpPeer;

use crate::config::secret_file::FileBytes;
use crate::config::{self, SocketAddress, Url};
use crate::policy::CredentialHeader;
use crate::policy::api_key::RequestKey;
pub use crate::upstream::attempts::Attempts;
use crate::upstream::connector::own_peer;
use crate::upstream::credential::Credential;
use crate::upstream::outlier_detection::Health;
use crate::upstream::tls::UpstreamTlsConfig;

/// Addresses of one upstream that are used; those beyond are not.
const MAX_ADDRESSES: usize = 64;

/// An upstream with its addresses, their health, and the key that it is sent.
pub struct Upstream {
    /// Its entry in the configuration.
    pub config: Arc<config::Upstream>,
    /// One for each URL, in the order of the configuration.
    pub origins: Vec<Arc<Origin>>,
    addresses: ArcSwap<Vec<Arc<Address>>>,
    /// What `addresses` are made of; held while they are made anew.
    parts: Mutex<Parts>,
    /// Where the next request begins to look among the addresses, which is taken modulo their number.
    next_index: AtomicUsize,
    /// Ejections of its addresses, and attempts after the first of a request, since the start.
    ejections: AtomicU64,
    retries: AtomicU64,
    credential: ArcSwapOption<Credential>,
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

struct Parts {
    /// What each URL's host was last resolved to.
    found: Vec<Vec<SocketAddress>>,
    tls: UpstreamTlsConfig,
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
            next_index: AtomicUsize::new(0),
            ejections: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            credential: ArcSwapOption::empty(),
            origins,
            config,
        })
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
        let mut parts = self.parts.lock();
        if !change(&mut parts) {
            return;
        }
        let old = self.addresses.load();
        let pairs = self.origins.iter().zip(&parts.found);
        let pairs = pairs.flat_map(|(origin, found)| found.iter().map(move |at| (origin, at)));
        let new = pairs.take(MAX_ADDRESSES).map(|(origin, socket)| {
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

    /// A request had the beginning of a response from there.
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
        let credential = Credential::parse(&content?)?;
        self.credential.store(Some(Arc::new(credential)));
        Ok(())
    }

    /// Whether the proxy's own key is sent in place of the client's.
    pub fn has_credential(&self) -> bool {
        self.credential.load().is_some()
    }

    /// The key that replaces the client's, if one does.
    pub fn credential_key(&self) -> Option<RequestKey> {
        let credential = self.credential.load();
        credential.as_ref().map(|credential| credential.key.clone())
    }

    /// The header that replaces the client's own; none where the client's key goes upstream.
    pub fn credential(&self, like: CredentialHeader) -> Option<HeaderValue> {
        let credential = self.credential.load();
        credential
            .as_ref()
            .map(|credential| credential.header(like))
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
        if only_http1 {
            &self.only_http1
        } else {
            &self.any_version
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    pub(super) fn upstream(urls: &str) -> Upstream {
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
    pub(super) fn sockets(numbers: impl IntoIterator<Item = u16>) -> Vec<SocketAddress> {
        let hosts = numbers
            .into_iter()
            .map(|number| 0x0a00_0000 + u32::from(number));
        hosts
            .map(|host| SocketAddr::from((std::net::Ipv4Addr::from(host), 80)).into())
            .collect()
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
}
