//! Pingora's loop, put together from the proxy's phases and our connector.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use async_trait::async_trait;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::connectors::ConnectorOptions;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::server::ShutdownWatch;
use pingora::server::configuration::ServerConf;
use pingora_proxy::ProxyServiceBuilder;

use crate::config::Limits;
use crate::proxy::bridge_exchange::Bridge;
use crate::proxy::client_stream::ClientStream;
use crate::proxy::{Proxy, TierProxy};
use crate::state::State;
use crate::upstream::connector::UpstreamConnector;

/// The largest head that Pingora reads over HTTP/1.1, in bytes.
const MAX_HEADER_BYTES: u32 = 1 << 20;
/// What HTTP/2 counts beyond the bytes of a head (RFC 9113 §6.5.2): 32 for each of 512 fields.
const H2_HEADER_SLACK_BYTES: u32 = 16 * 1024;
/// What a client of HTTP/2 may have sent of all its requests that nobody has read yet, in bytes: one whose upstream takes
/// nothing holds 64 KiB, and the others go on. The h2 crate takes small frames in proportion to it.
const H2_CONNECTION_WINDOW_BYTES: u32 = 1 << 20;

/// Streams of a client of HTTP/2 that run at once, which is Pingora's default. It may cancel as many before they are looked at
/// without an end of its connection, on which a balancer may have brought requests of others.
const H2_STREAMS: u32 = 100;

/// Pingora's proxy with this one's phases and connector.
pub fn build(state: &Arc<State>) -> Arc<Proxy> {
    let conf = ServerConf {
        threads: state.config.server.threads,
        // Pingora takes it times the threads.
        upstream_keepalive_pool_size: state
            .limits
            .idle_upstream_connections
            .div_ceil(state.config.server.threads),
        ..ServerConf::default()
    };
    let options = ConnectorOptions::from_server_conf(&conf);
    let phases = TierProxy {
        state: state.clone(),
        bridge: Bridge::new(state, options.clone()),
    };
    let connector = UpstreamConnector::new(options);
    let service = ProxyServiceBuilder::new(&Arc::new(conf), phases)
        .custom(connector, Arc::new(|_, _, _| Box::pin(async { None })))
        .server_options(server_options(&state.limits))
        .build();
    let mut proxy = take(service);
    proxy.h2_options = Some(h2_options());
    Arc::new(proxy)
}

/// Takes the loop out of Pingora's service, which has a listener of its own. Pingora 0.9.1 makes a loop with a connector of
/// one's own only inside of a service, and gives it to nobody.
#[allow(unsafe_code)] // No safe function gives the loop away; why this is sound stands at the block.
fn take(service: pingora::services::listening::Service<Proxy>) -> Proxy {
    let service = ManuallyDrop::new(service);
    let proxy = service.app_logic().expect("a new service has its logic");
    // SAFETY: `proxy` is valid and aligned, for it is a reference. The service is never used again and, being in a
    // `ManuallyDrop`, never dropped, so that what is read here is the only owner of the loop.
    unsafe { std::ptr::read(proxy) }
}

/// Pingora's proxy for the requests of a connection over HTTP/2, each of which ends when its client has had its time: the h2
/// crate then resets its stream with NO_ERROR behind the last byte of the response (RFC 9113 §8.1).
pub struct Http2App(pub Arc<Proxy>);

#[async_trait]
impl HttpServerApp for Http2App {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let stream = ClientStream::default();
        let extensions = session.req_header_mut().extensions_mut();
        extensions.insert(stream.clone());
        tokio::select! {
            biased;
            reused = self.0.process_new_http(session, shutdown) => reused,
            () = stream.over() => None,
        }
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        self.0.server_options()
    }

    fn h2_options(&self) -> Option<H2Options> {
        self.0.h2_options()
    }
}

/// Pingora's, with our limits for heads and cancelled streams, and a larger window.
fn h2_options() -> H2Options {
    let mut options = default_h2_options();
    // A head is refused by us, which has a line, and not by the h2 crate.
    options.max_header_list_size(MAX_HEADER_BYTES + H2_HEADER_SLACK_BYTES);
    options.max_concurrent_streams(H2_STREAMS);
    options.max_pending_accept_reset_streams(H2_STREAMS as usize);
    options.initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES);
    options
}

/// A connection of HTTP/2 is idle as one of HTTP/1.1 is: Pingora would keep it for ever. And CONNECT comes to our phases, which
/// refuse it: Pingora would do so without a line in the log.
fn server_options(limits: &Limits) -> HttpServerOptions {
    let mut options = HttpServerOptions::default();
    options.allow_connect_method_proxying = true;
    options.h2_idle_timeout = Some(limits.keepalive_timeout);
    options
}
