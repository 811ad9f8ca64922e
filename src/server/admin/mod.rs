//! The admin listener: health, readiness, status, metrics. It reads the state and changes nothing.

mod host;
pub mod overview;
mod status;

use std::sync::Arc;

use async_trait::async_trait;
use http::response::Builder;
use http::{Method, Response, StatusCode, header};
use parking_lot::Mutex;
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;
use uuid::Uuid;

use crate::accounting::history::History;
use crate::server::reload::Reloads;
use crate::state::State;

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";
/// Nothing but the page has anything to load, and nothing is to be shown within another page.
const NO_CONTENT: &str = "default-src 'none'; frame-ancestors 'none'";
/// Shows what `/status` says, and asks it again and again. Its style and script have a nonce in the place of [`NONCE`].
const PAGE: &str = include_str!("page.html");
const NONCE: &str = "{{nonce}}";

/// Answers whoever reaches the admin listener.
pub struct Admin {
    pub state: Arc<State>,
    pub reloads: Arc<Reloads>,
    /// The last hour; [`overview::keep_history`] keeps it.
    pub history: Arc<Mutex<History>>,
}

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let head = session.req_header();
        if !host::is_known(&head.uri, &head.headers) {
            return respond(
                StatusCode::MISDIRECTED_REQUEST,
                TEXT,
                "this listener is asked by its address or as localhost\n",
            );
        }
        if head.method != Method::GET && head.method != Method::HEAD {
            return respond(
                StatusCode::METHOD_NOT_ALLOWED,
                TEXT,
                "only GET is answered here\n",
            );
        }
        match head.uri.path() {
            "/" => page(),
            "/healthz" => respond(StatusCode::OK, TEXT, "ok\n"),
            "/readyz" => match self.state.not_ready() {
                None => respond(StatusCode::OK, TEXT, status::readiness(&self.state)),
                Some(why) => respond(
                    StatusCode::SERVICE_UNAVAILABLE,
                    TEXT,
                    status::unreadiness(&self.state, why),
                ),
            },
            "/status" => respond(
                StatusCode::OK,
                JSON,
                status::status(&self.state, &self.reloads.last(), &self.history.lock()),
            ),
            "/metrics" => respond(
                StatusCode::OK,
                METRICS,
                self.state.metrics.render(&self.state.snapshot()),
            ),
            _ => respond(
                StatusCode::NOT_FOUND,
                TEXT,
                "there are / /healthz /readyz /status /metrics\n",
            ),
        }
    }
}

/// The page, whose own style and script are the only ones that a browser takes.
fn page() -> Response<Vec<u8>> {
    let nonce = Uuid::now_v7().simple().to_string();
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let response = head(StatusCode::OK, HTML, &policy);
    finish(response, PAGE.replace(NONCE, &nonce).into())
}

fn respond(status: StatusCode, kind: &str, body: impl Into<Vec<u8>>) -> Response<Vec<u8>> {
    finish(head(status, kind, NO_CONTENT), body.into())
}

fn head(status: StatusCode, kind: &str, policy: &str) -> Builder {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, kind)
        .header(header::CACHE_CONTROL, "no-store")
        .header(header::CONTENT_SECURITY_POLICY, policy)
        .header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")
        .header(header::X_FRAME_OPTIONS, "DENY")
        .header(header::REFERRER_POLICY, "no-referrer")
}

fn finish(head: Builder, body: Vec<u8>) -> Response<Vec<u8>> {
    // The parts are constants, hexadecimal digits and a number.
    head.header(header::CONTENT_LENGTH, body.len())
        .body(body)
        .expect("a constant head is well formed")
}
