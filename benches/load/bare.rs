//! The least that can be called a proxy on Pingora, for comparison.

use std::net::SocketAddr;

use async_trait::async_trait;
use pingora_core::protocols::ALPN;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

/// Of HTTP/2 on one connection, as tiergate has it where nothing is set.
const STREAMS: usize = 100;

struct Bare {
    upstream: SocketAddr,
    /// By HTTP/2 over TLS.
    tls: bool,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        _context: &mut (),
    ) -> pingora_core::Result<Box<HttpPeer>> {
        let name = if self.tls { "localhost" } else { "" };
        let mut peer = HttpPeer::new(self.upstream, self.tls, name.to_owned());
        if self.tls {
            peer.options.alpn = ALPN::H2H1;
            peer.options.max_h2_streams = STREAMS;
        }
        Ok(Box::new(peer))
    }
}

pub fn pass_on(address: &str, upstream: SocketAddr, tls: bool) -> ! {
    let settings = ServerConf {
        threads: 1,
        upstream_keepalive_pool_size: 1024,
        work_stealing: false,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, settings);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Bare { upstream, tls });
    service.add_tcp(address);
    server.add_service(service);
    server.run_forever()
}
