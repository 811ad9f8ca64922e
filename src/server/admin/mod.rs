//! The admin listener: health, readiness, status, metrics. It reads the state and changes nothing.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use http::{Method, Response, StatusCode};
use pingora_core::apps::http_app::ServeHttp;
use pingora_core::protocols::http::ServerSession;
use serde_json::json;

use crate::state::State;
use crate::upstream::Address;

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

const HTML: &str = "text/html; charset=utf-8";
/// Shows what `/status` says, and asks it again and again.
const PAGE: &str = include_str!("page.html");

pub struct Admin {
    pub state: Arc<State>,
}

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let head = session.req_header();
        if head.method != Method::GET && head.method != Method::HEAD {
            return answer(
                StatusCode::METHOD_NOT_ALLOWED,
                TEXT,
                "only GET is answered here\n",
            );
        }
        match head.uri.path() {
            "/" => answer(StatusCode::OK, HTML, PAGE),
            "/healthz" => answer(StatusCode::OK, TEXT, "ok\n"),
            "/readyz" => match self.state.not_ready() {
                None => answer(StatusCode::OK, TEXT, readiness(&self.state)),
                Some(why) => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{why}\n")),
            },
            "/status" => answer(StatusCode::OK, JSON, status(&self.state)),
            "/metrics" => answer(
                StatusCode::OK,
                METRICS,
                self.state.metrics.render(&self.state),
            ),
            _ => answer(
                StatusCode::NOT_FOUND,
                TEXT,
                "there are / /healthz /readyz /status /metrics\n",
            ),
        }
    }
}

fn answer(status: StatusCode, kind: &str, body: impl Into<Vec<u8>>) -> Response<Vec<u8>> {
    let body = body.into();
    // The parts are constants and a number.
    Response::builder()
        .status(status)
        .header(http::header::CONTENT_TYPE, kind)
        .header(http::header::CONTENT_LENGTH, body.len())
        .body(body)
        .expect("a constant head is well formed")
}

/// A policy file that could not be taken is told here too; it does not keep the proxy from serving.
fn readiness(state: &State) -> String {
    let Some(error) = state.policy.load_status().error() else {
        return "ok\n".to_owned();
    };
    format!("ok, with the last good policy:\n{error}\n")
}

/// What each group of the policy has done since the start. Others are gone from it, or refused before theirs was known.
fn groups(state: &State) -> serde_json::Map<String, serde_json::Value> {
    let mut sums = state.metrics.by_group();
    for group in state.policy.current().groups() {
        sums.entry(group.name.to_string()).or_default();
    }
    let told = sums.into_iter().map(|(name, sums)| {
        let in_flight = state.in_flight.of_group(&name);
        let told = json!({
            "outcomes": sums.outcomes,
            "service_tiers": sums.service_tiers,
            "tokens": sums.tokens,
            "downgraded": sums.downgraded,
            "in_flight": in_flight,
        });
        (name, told)
    });
    told.collect()
}

/// Where clients connect, and until when the certificate there is good; null without TLS.
fn listeners(state: &State) -> Vec<serde_json::Value> {
    let listeners = state.config.listen.iter();
    let told = listeners.map(|listen| {
        let expiry = listen.tls.as_ref().and_then(|_| {
            let seconds = state.metrics.certificate_expiry(listen.address).get();
            jiff::Timestamp::from_second(seconds).ok()
        });
        json!({
            "address": listen.address.to_string(),
            "certificate_expires_at": expiry.map(|time| time.to_string()),
        })
    });
    told.collect()
}

/// How an address fares.
fn told(address: &Address) -> serde_json::Value {
    let told = address.health.snapshot();
    let last_error = told.last_error;
    json!({
        "address": address.socket.to_string(),
        "url": address.origin.url.to_string(),
        "healthy": told.healthy,
        "failures": told.failures,
        "ejected_until": told.ejected_until.and_then(time),
        "check_passes": told.check_passes,
        "last_error": last_error.map(|error| json!({"at": time(error.at), "what": error.what})),
    })
}

fn time(at: SystemTime) -> Option<String> {
    let at = jiff::Timestamp::try_from(at).ok()?;
    Some(at.to_string())
}

fn status(state: &State) -> String {
    let policy = state.policy.current();
    let last = state.policy.load_status();
    let loaded_at = time(last.loaded_at);
    let upstreams: serde_json::Map<String, serde_json::Value> = state
        .upstreams()
        .map(|upstream| {
            let addresses = upstream.addresses();
            let addresses: Vec<_> = addresses.iter().map(|address| told(address)).collect();
            let kind = upstream.config.kind.as_str();
            (
                upstream.config.name.clone(),
                json!({"kind": kind, "addresses": addresses}),
            )
        })
        .collect();
    let value = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": state.started.elapsed().as_secs(),
        "draining": state.is_draining(),
        "policy": {
            "revision": policy.revision(),
            "groups": policy.groups().len(),
            "keys": policy.key_count(),
            "loaded_at": loaded_at,
            "outcome": last.outcome(),
            "last_error": last.error(),
        },
        "groups": groups(state),
        "listeners": listeners(state),
        "upstreams": upstreams,
        "connections": state.metrics.connections.get(),
        "requests_in_flight": state.metrics.in_flight.get(),
        "buffered_bytes": state.budget.used(),
        "access_log": {"errors": state.log.errors(), "written": !state.log.is_stalled()},
    });
    format!("{value}\n")
}
