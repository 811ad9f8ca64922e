//! The way of a request through Pingora's phases, and the only one. Control flow stands here; what is decided, checked,
//! rewritten and recorded stands in the modules that are called.

pub(crate) mod body_filter;
mod body_pipe;
pub(crate) mod bridge_exchange;
pub(crate) mod client_connection;
mod client_ip;
mod client_response;
pub(crate) mod client_stream;
pub(crate) mod context;
mod cors;
pub(crate) mod error_mapping;
mod forwarded_headers;
pub(crate) mod request_body;
mod time_slice;
pub(crate) mod upstream_request;
mod websocket_exchange;
mod websocket_relay;
pub mod websocket_session;
mod websocket_turns;

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header;
use http::{HeaderMap, Method, Version};
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::ServerSession;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorSource, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, HttpProxy, ProxyHttp, ProxyWarnLogContext, Session};

use crate::codec::error::{Cause, Refusal};
use crate::codec::framing;
use crate::codec::request_scan::BodyFraming;
use crate::policy::Head;
use crate::policy::endpoint::Endpoint;
use crate::proxy::body_filter::content_length;
use crate::proxy::bridge_exchange::Bridge;
use crate::proxy::client_response::{
    REQUEST_ID, Stop, check_response, drop_length, edit_response, local_response, send_local,
    send_refusal, withhold_interim,
};
use crate::proxy::client_stream::{ClientStream, LINGERING_CLOSE_IDLE};
use crate::proxy::context::{RequestContext, head_bytes, path_and_query};
use crate::proxy::error_mapping::{TIER_REFUSED, no_address, refused};
use crate::proxy::upstream_request::join_cookies;
use crate::state::State;
use crate::upstream::connector::UpstreamConnector;
use crate::upstream::connector::control::carried;

/// Pingora's loop over our phases and our connections.
pub type Proxy = HttpProxy<TierProxy, UpstreamConnector>;

/// The longest head, in bytes, of a request that shares a connection with others. nginx ends the whole connection of HTTP/2 for
/// a header of more than 8 KB or a head of 32, as it is set by default (its `large_client_header_buffers`); over HTTP/1.1
/// it refuses the request.
const SHARED_HEAD_BYTES: u64 = 8 * 1024;

/// The proxy as Pingora runs it.
pub struct TierProxy {
    /// What all requests share.
    pub state: Arc<State>,
    /// Serves requests whose upstream speaks another protocol.
    pub bridge: Bridge,
}

#[async_trait]
impl ProxyHttp for TierProxy {
    /// Boxed, for Pingora moves it from future to future: inline it made each of them larger, for 3 % of the instructions of
    /// a small request.
    type CTX = Box<RequestContext>;

    fn new_ctx(&self) -> Box<RequestContext> {
        Box::new(RequestContext::new(&self.state))
    }

    fn init_downstream_modules(&self, _modules: &mut pingora_core::modules::http::HttpModules) {
        // Pingora's default is a compressor; responses are not to be touched.
    }

    async fn early_request_filter(
        &self,
        session: &mut Session,
        context: &mut Box<RequestContext>,
    ) -> Result<()> {
        context.client = carried(session.digest());
        let extensions = &session.req_header().extensions;
        context.client_stream = extensions.get::<ClientStream>().cloned();
        if let Some(client) = &context.client {
            let head = session.req_header();
            client.head_is_read(body_framing(head), head.version >= Version::HTTP_11);
        }
        let limits = &self.state.limits;
        if session.get_keepalive().is_some() {
            // Not where the client asked for a close, or where its framing forbids another request.
            session.set_keepalive(Some(limits.keepalive_timeout.as_secs().max(1)));
        }
        session.set_pipelining_enabled(true);
        session.set_read_timeout(Some(limits.body_idle_timeout));
        session.set_write_timeout(Some(limits.write_timeout));
        Ok(())
    }

    /// Decides the request, and reads a body of known length that is to be rewritten. True: it is answered here, as refused
    /// and bridged requests are.
    async fn request_filter(
        &self,
        session: &mut Session,
        context: &mut Box<RequestContext>,
    ) -> Result<bool> {
        match self.handle_head(session, context).await {
            Ok(answered) => Ok(answered),
            Err(Stop::Refused(refusal)) => {
                context.refusal = Some(refusal);
                send_refusal(session, context).await?;
                Ok(true)
            }
            Err(Stop::Local(response)) => {
                send_local(session, context, *response).await?;
                Ok(true)
            }
            Err(Stop::Downstream(error)) => Err(error),
        }
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        context: &mut Box<RequestContext>,
    ) -> Result<Box<HttpPeer>> {
        // Pingora gives chunks to a client of HTTP/1.0 where the upstream speaks HTTP/2.
        let is_http10 = session.req_header().version == Version::HTTP_10;
        context.only_http1 |= context.upgrade || is_http10;
        let peer = context.next_peer().ok_or_else(no_address)?;
        Ok(Box::new(peer))
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        _reused: bool,
        _peer: &HttpPeer,
        _socket: RawFd,
        digest: Option<&Digest>,
        context: &mut Box<RequestContext>,
    ) -> Result<()> {
        context.stream = carried(digest);
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        head: &mut RequestHeader,
        context: &mut Box<RequestContext>,
    ) -> Result<()> {
        let request = session.req_header();
        if request.version == Version::HTTP_2 {
            join_cookies(head)?;
        }
        context.head_edit(request.raw_path())?.apply(head)?;
        context.begin_attempt();
        Ok(())
    }

    /// The one place that holds, checks and rewrites bodies. Pingora drives it for those that pass as they come and those
    /// without a length; [`body_filter::take_body`] for those of known length.
    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        context: &mut Box<RequestContext>,
    ) -> Result<()>
    where
        Self::CTX: Send + Sync,
    {
        if session.was_upgraded() {
            return websocket_exchange::from_client(session, body, end_of_stream, context).await;
        }
        let ends = end_of_stream || body.is_none();
        if context.is_logged() {
            return body_filter::drop_piece(body, ends, context);
        }
        if ends && !end_of_stream && context.is_sent() {
            body_filter::end_by_trailers(context)?;
        } else if let Err(refusal) = body_filter::filter_piece(body, ends, context).await {
            context.refusal = Some(refusal);
            // Over HTTP/2 Pingora would wait for the response all the same.
            context.end_upstream();
            return Err(refused());
        }
        if !ends {
            context.await_body();
            *body = body.take().map(|piece| context.in_pipe(piece));
            return Ok(());
        }
        body_filter::await_pipe(session, context).await?;
        context.await_response();
        if let Some(stream) = &context.stream {
            stream.request_ended();
        }
        context.ignore_client_abort();
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Box<RequestContext>,
    ) -> Result<()> {
        check_response(response, context)?;
        if client_response::is_interim(response.status) {
            // The response is still to come.
            return edit_response(session, context, response);
        }
        if body_filter::is_replayable(session, context) && context.drop_refused_tier(response) {
            let error = Error::explain(TIER_REFUSED, "it is sent once more without a tier");
            return Err(error.into_up());
        }
        edit_response(session, context, response)?;
        context.record_response_head(response.status, &response.headers);
        if context.hides_usage() {
            drop_length(session, response)?;
        }
        response.insert_header(&REQUEST_ID, context.request_id())?;
        context.await_more();
        if response.status == http::StatusCode::SWITCHING_PROTOCOLS {
            // A socket may stay silent for as long as its peers like.
            session.set_read_timeout(None);
            return websocket_exchange::begin(context);
        }
        if client_response::is_empty(response, context) {
            end_response(session, context);
        }
        Ok(())
    }

    fn response_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        context: &mut Box<RequestContext>,
    ) -> Result<Option<Duration>> {
        if let Some(bytes) = body {
            context.observe(bytes);
        }
        context.hide_usage(body, end_of_stream);
        context.follow_early(body);
        if context.websocket.is_some() {
            websocket_exchange::from_upstream(body, end_of_stream, context);
        } else if end_of_stream {
            end_response(session, context);
        }
        Ok(None)
    }

    /// Trailers end a response as its last piece does. What is still held of its body goes out in their place.
    async fn response_trailer_filter(
        &self,
        session: &mut Session,
        trailers: &mut HeaderMap,
        context: &mut Box<RequestContext>,
    ) -> Result<Option<Bytes>> {
        client_response::edit_trailers(context, trailers);
        let rest = context.rest_of_hidden();
        end_response(session, context);
        Ok(rest)
    }

    /// Tries again what the upstream cannot have worked on, where the same bytes can be sent again.
    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        context: &mut Box<RequestContext>,
        reused: bool,
    ) -> Box<Error> {
        let replayable = body_filter::is_replayable(session, context);
        context.attempt_failed(error, reused, replayable)
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        context: &mut Box<RequestContext>,
        error: Box<Error>,
    ) -> Box<Error> {
        context.connect_failed(error)
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        context: &mut Box<RequestContext>,
    ) -> FailToProxy {
        if context.conclude_failure(error) {
            session.set_keepalive(None);
            // A client that cannot be written to has gone; its line says what it would have been told.
            let _ = send_refusal(session, context).await;
        } else if *error.esource() == ErrorSource::Upstream {
            // Pingora resets a stream next.
            client_response::flush(session).await;
        }
        FailToProxy {
            error_code: context.record.answer.status.unwrap_or(0),
            can_reuse_downstream: false,
        }
    }

    /// Writes the line where nobody has written it before.
    async fn logging(
        &self,
        _session: &mut Session,
        error: Option<&Error>,
        context: &mut Box<RequestContext>,
    ) {
        let termination = match error {
            Some(error) => context.failure_context().termination_of(error),
            None => context.termination(),
        };
        context.claim().await;
        context.finish(termination);
    }

    fn suppress_error_log(
        &self,
        _session: &Session,
        _context: &Box<RequestContext>,
        _error: &Error,
    ) -> bool {
        // The access log has it. Pingora's own line would print the request's query.
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _request: &Box<RequestContext>,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }

    fn request_summary(&self, _session: &Session, context: &Box<RequestContext>) -> String {
        format!("request {}", context.request_info.id)
    }
}

impl TierProxy {
    /// True where the request is answered.
    async fn handle_head(
        &self,
        session: &mut Session,
        context: &mut RequestContext,
    ) -> Result<bool, Stop> {
        if let Some(target) = framing::origin_form(session.req_header().raw_path()) {
            let set = session.req_header_mut().set_raw_path(&target);
            set.map_err(|error| Stop::Downstream(error.into_down()))?;
        }
        let client = session.client_addr().and_then(|address| address.as_inet());
        context.read_head(&policy_head(session), client.map(|address| address.ip()));
        let drains = self.state.is_draining();
        if drains {
            session.set_keepalive(None);
        }
        check_framing(session)?;
        withhold_interim(session);
        let response = local_response(&self.state, session).map_err(Stop::Downstream)?;
        if let Some(response) = response {
            return Err(Stop::Local(Box::new(response)));
        }
        self.admit(session, context)?;
        if drains && self.state.is_drain_over() {
            return Err(Cause::Draining.into());
        }
        if self.bridge.answer_models(session, context).await? {
            return Ok(true);
        }
        if let Some(conversion) = self.bridge.conversion(context) {
            let served = self.bridge.serve(session, context, &conversion);
            return Box::pin(served).await.map(|()| true);
        }
        body_filter::take_body(session, context)
            .await
            .map(|()| false)
    }

    /// Who asks, for what, and what is to be done about the tier.
    fn admit(&self, session: &Session, context: &mut RequestContext) -> Result<(), Refusal> {
        let head = session.req_header();
        let decision = context.record.policy.decide(&policy_head(session));
        let decision = decision.map_err(|denied| context.deny(denied))?;
        let head_bytes = head_bytes(head.raw_path(), &head.headers);
        context.admit(decision, head_bytes)?;
        context.only_http1 = head_bytes > SHARED_HEAD_BYTES;
        let request_info = &context.request_info;
        context.upgrade = session.is_upgrade_req() && may_upgrade(head, request_info.endpoint);
        if context.upgrade && announces_body(head) {
            // After a switch its bytes would be taken for frames.
            return Err(Cause::InvalidHttp.into());
        }
        Ok(())
    }
}

/// All of the response is here. Its request may still come, for a while.
fn end_response(session: &mut Session, context: &mut RequestContext) {
    context.end_response();
    if context.body_complete {
        return;
    }
    match &context.client_stream {
        Some(stream) => stream.end_response(),
        None => session.set_read_timeout(Some(LINGERING_CLOSE_IDLE)),
    }
}

/// How the body is framed, by a head that is unambiguous or refused.
fn body_framing(head: &RequestHeader) -> BodyFraming {
    if head.headers.contains_key(header::TRANSFER_ENCODING) {
        return BodyFraming::Chunked;
    }
    let length = content_length(head).ok().flatten();
    BodyFraming::Length(length.unwrap_or(0))
}

/// Refuses a head that an upstream, or a proxy before this one, could take apart in another way.
fn check_framing(session: &mut Session) -> Result<(), Refusal> {
    let unambiguous = match session.as_downstream() {
        // What follows would be for whoever is at the other end of a tunnel.
        other if other.req_header().method == Method::CONNECT => false,
        ServerSession::H1(session) => framing::is_unambiguous(&session.get_headers_raw_bytes()),
        other => framing::is_unambiguous_h2(&other.req_header().headers),
    };
    if unambiguous {
        return Ok(());
    }
    // Nobody knows where the next request would begin.
    session.set_keepalive(None);
    Err(Cause::InvalidHttp.into())
}

/// Whether the request asks for a WebSocket, where one may be: a forced group's goes on only to where its messages are judged.
/// All others are ordinary requests, those that offer `h2c` too (RFC 9110 §7.8).
pub(crate) fn may_upgrade(head: &RequestHeader, endpoint: Endpoint) -> bool {
    let mut protocols = framing::list_members(&head.headers, &header::UPGRADE);
    head.method == Method::GET
        && matches!(endpoint, Endpoint::Responses | Endpoint::Other)
        && protocols.any(|protocol| protocol.eq_ignore_ascii_case(b"websocket"))
}

fn announces_body(head: &RequestHeader) -> bool {
    let length = head.headers.get(header::CONTENT_LENGTH);
    head.headers.contains_key(header::TRANSFER_ENCODING)
        || length.is_some_and(|length| length != "0")
}

fn policy_head(session: &Session) -> Head<'_> {
    let head = session.req_header();
    let (path, query) = path_and_query(head.raw_path());
    Head {
        method: &head.method,
        path,
        query,
        headers: &head.headers,
    }
}
