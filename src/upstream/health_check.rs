//! Asks the addresses of upstreams whether they work, where the configuration wants it: a connection, or a GET without
//! credentials, apart from all requests. What follows from the responses is that of
//! [`outlier_detection`](super::outlier_detection).

use std::sync::Arc;

use pingora_core::connectors::http::Connector;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_http::RequestHeader;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::HealthCheck;
use crate::upstream::{Address, Upstream};

const USER_AGENT: &str = concat!("tiergate/", env!("CARGO_PKG_VERSION"), " health check");

/// Checks those of the upstreams that are to be checked, each in a task of its own, until it is cancelled.
pub fn begin<'a>(upstreams: impl Iterator<Item = &'a Arc<Upstream>>, ended: &CancellationToken) {
    let checked =
        upstreams.filter_map(|upstream| Some((upstream, upstream.config.health_check.clone()?)));
    let mut checked = checked.peekable();
    if checked.peek().is_none() {
        return;
    }
    // Their own, so that no check ever takes a connection of the pool or leaves one there.
    let connector = Arc::new(Connector::new(None));
    for (upstream, settings) in checked {
        let rounds = keep_checking(connector.clone(), upstream.clone(), Arc::new(settings));
        tokio::spawn(ended.clone().run_until_cancelled_owned(rounds));
    }
}

async fn keep_checking(
    connector: Arc<Connector>,
    upstream: Arc<Upstream>,
    settings: Arc<HealthCheck>,
) {
    let mut ticks = interval(settings.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut round = JoinSet::new();
        for address in upstream.addresses().iter().cloned() {
            let (connector, settings) = (connector.clone(), settings.clone());
            round.spawn(async move {
                let failure = check(&connector, &address, &settings).await.err();
                (address, failure)
            });
        }
        for (address, failure) in round.join_all().await {
            take_result(&upstream, &address, failure.as_deref(), &settings);
        }
    }
}

fn take_result(
    upstream: &Upstream,
    address: &Address,
    failure: Option<&str>,
    settings: &HealthCheck,
) {
    let (name, socket) = (&upstream.config.name, &address.socket);
    match address.health.checked(failure, settings) {
        Some(true) => log::info!("upstream `{name}`: {socket} passes its checks again"),
        Some(false) => log::warn!(
            "upstream `{name}`: {socket} fails its checks: {}",
            failure.unwrap_or_default()
        ),
        None => {}
    }
}

/// # Errors
/// Why the address does not work.
async fn check(
    connector: &Connector,
    address: &Address,
    settings: &HealthCheck,
) -> Result<(), String> {
    let mut peer = address.peer.clone();
    // A connection that allows for more would be kept.
    peer.options.max_h2_streams = 1;
    let asking = ask(connector, &peer, address, settings.path.as_deref());
    match timeout(settings.timeout, asking).await {
        Ok(Ok(None | Some(..500))) => Ok(()),
        Ok(Ok(Some(status))) => Err(format!("answer {status}")),
        Ok(Err(why)) => Err(why.to_string().trim_start().to_owned()),
        Err(_) => Err(format!("no answer within {:?}", settings.timeout)),
    }
}

/// The status of the response; none where a connection was all that was asked for.
async fn ask(
    connector: &Connector,
    peer: &HttpPeer,
    address: &Address,
    path: Option<&str>,
) -> pingora_core::Result<Option<u16>> {
    let (mut session, _) = connector.get_http_session(peer).await?;
    let Some(path) = path else {
        return Ok(None);
    };
    let mut head = RequestHeader::build("GET", path.as_bytes(), Some(2))?;
    head.insert_header(http::header::HOST, address.origin.host.clone())?;
    head.insert_header(http::header::USER_AGENT, USER_AGENT)?;
    session.write_request_header(Box::new(head)).await?;
    session.finish_request_body().await?;
    loop {
        session.read_response_header().await?;
        let status = session.response_header().map(|answer| answer.status);
        // An interim response is none.
        if !status.is_some_and(|status| status.is_informational()) {
            return Ok(status.map(|status| status.as_u16()));
        }
    }
}
