//! Asks for the addresses behind the names of upstreams, at the start and then every few seconds.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;

use crate::config::SocketAddress;
use crate::config::url::Destination;
use crate::upstream::Upstream;

/// How often a name is resolved again. `getaddrinfo` tells no time to live; ten seconds follow a failover soon enough.
const RESOLVE_EVERY: Duration = Duration::from_secs(10);

/// How long a start waits for the upstreams' names. Those that do not resolve until then go on in the background.
const FIRST_RESOLVE: Duration = Duration::from_secs(5);

/// Begins to ask for the addresses of these upstreams, and to ask again for those behind names. Returns when each has been
/// asked for once.
pub async fn begin<'a>(upstreams: impl Iterator<Item = &'a Arc<Upstream>>) {
    let first = TaskTracker::new();
    for upstream in upstreams {
        for (origin, to) in upstream.origins.iter().enumerate() {
            let (upstream, is_named) = (upstream.clone(), !to.url.is_address());
            first.spawn(async move {
                upstream.resolve(origin).await;
                if is_named {
                    tokio::spawn(keep_resolving(upstream, origin));
                }
            });
        }
    }
    first.close();
    // A name that takes longer is tried on in the background; its requests fail until then.
    let _ = tokio::time::timeout(FIRST_RESOLVE, first.wait()).await;
}

async fn keep_resolving(upstream: Arc<Upstream>, origin: usize) {
    loop {
        tokio::time::sleep(RESOLVE_EVERY).await;
        upstream.resolve(origin).await;
    }
}

impl Upstream {
    /// Asks for the addresses behind the name of one URL. The last good ones stay where none come back.
    async fn resolve(&self, origin: usize) {
        match lookup(&self.origins[origin].url.destination).await {
            Ok(found) => self.take_sockets(origin, found),
            Err(why) => log::warn!("upstream `{}`: {why}", self.config.name),
        }
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
