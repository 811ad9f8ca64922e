//! How the sockets of an upstream are reached by Pingora's connectors.

use std::time::Duration;

use pingora_core::protocols::TcpKeepalive;
use pingora_core::upstreams::peer::HttpPeer;

use crate::config::url::Destination;
use crate::config::{self, SocketAddress, Url};

/// What may be under way of one response over HTTP/2, in bytes.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Of all responses on a connection: the most that there is, so that clients who read slowly do not stop the others. And
/// the h2 crate closes a connection on which more small frames wait for their readers than half of this is for.
const CONNECTION_WINDOW_BYTES: u32 = i32::MAX as u32;
const KEEPALIVE: TcpKeepalive = TcpKeepalive {
    idle: Duration::from_secs(30),
    interval: Duration::from_secs(10),
    count: 3,
    user_timeout: Duration::from_secs(60),
};

impl config::Upstream {
    /// How one socket of this upstream is reached, with the limits of its settings.
    pub(super) fn peer(&self, socket: &SocketAddress, url: &Url) -> HttpPeer {
        let mut peer = peer(socket, url, self.tls.server_name.as_deref());
        let options = &mut peer.options;
        options.connection_timeout = Some(self.connect_timeout);
        options.total_connection_timeout = Some(self.connect_timeout);
        // How long reads and writes may take is up to the request ([`connector::control`]).
        options.read_timeout = None;
        options.write_timeout = None;
        options.idle_timeout = Some(self.keepalive_timeout);
        options.tcp_keepalive = Some(KEEPALIVE);
        options.max_h2_streams = self.http2.max_streams;
        options.h2_ping_interval = Some(self.http2.ping_interval);
        options.h2_stream_window_size = Some(STREAM_WINDOW_BYTES);
        options.h2_connection_window_size = Some(CONNECTION_WINDOW_BYTES);
        // HTTP/2 is agreed on by TLS alone.
        let most = if url.tls && self.http2.enabled { 2 } else { 1 };
        options.set_http_version(most, 1);
        peer
    }
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

#[cfg(test)]
mod tests {
    use crate::upstream::tests::{sockets, upstream};

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
