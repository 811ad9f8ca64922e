//! The way of a request through Pingora's phases, and the only one. Control flow stands here; what is decided, checked,
//! rewritten and recorded stands in the modules that are called.

pub(crate) mod bridge_exchange;
pub(crate) mod client_connection;
mod client_ip;
pub(crate) mod context;
mod cors;
pub(crate) mod error_mapping;
mod replies;
pub(crate) mod request_body;
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
use http::{HeaderName, Method, Version};
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::ServerSession;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorSource, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, HttpProxy, ProxyHttp, ProxyWarnLogContext, Session};
use tokio::time::{Instant, timeout_at};

use crate::codec::error::{Cause, Refusal};
use crate::codec::framing;
use crate::policy::endpoint::Endpoint;
use crate::policy::{Condition, Head, TierAction};
use crate::proxy::bridge_exchange::Bridge;
use crate::proxy::client_connection::ClientConnection;
use crate::proxy::context::{Body, RequestContext, head_bytes, without_query};
use crate::proxy::error_mapping::{REFUSED, TIER_REFUSED, no_address, refused};
use crate::proxy::replies::{
    LocalAnswer, answer_locally, answer_refusal, check_response, continue_upload, edit_response,
    local_answer, withhold_interim,
};
use crate::proxy::request_body::{BufferedBody, StreamedBody, waiting_piece};
use crate::state::State;
use crate::upstream::connector::UpstreamConnector;
use crate::upstream::connector::control::StreamControl;

/// Bytes that an upstream of HTTP/2 takes before it has said more (RFC 9113 §6.9.2). So much of a body hardly ever waits, and is
/// not counted.
const INITIAL_WINDOW: u64 = 65_535;
/// What Pingora keeps of a body for another attempt, in bytes. The rest of a body that is read before a peer is chosen has
/// to fit, for Pingora sends such a body only by replaying what it kept.
const PINGORA_REPLAY_BYTES: u64 = 64 * 1024;
/// What is read of a request that was answered before it was here: a close with bytes unread would take the answer away
/// from the client (RFC 9112 §9.6).
const LINGERING_CLOSE_TIME: Duration = Duration::from_secs(2);
const LINGERING_CLOSE_BYTES: usize = 1 << 20;
/// How long what a client of HTTP/2 is still to get may take to leave, before its stream is reset.
const FLUSH_TIME: Duration = Duration::from_millis(50);

pub(crate) static REQUEST_ID: HeaderName = HeaderName::from_static("x-tiergate-request-id");

/// Pingora's loop over our phases and our connections.
pub type Proxy = HttpProxy<TierProxy, UpstreamConnector>;

/// The proxy as Pingora runs it.
pub struct TierProxy {
    /// What all requests share.
    pub state: Arc<State>,
    /// Serves requests whose upstream speaks another protocol.
    pub bridge: Bridge,
}

/// Why a request goes no further.
enum Stop {
    Refused(Refusal),
    /// It is answered without an upstream.
    Answered(Box<LocalAnswer>),
    /// The client's connection failed.
    Downstream(Box<Error>),
}

impl<R: Into<Refusal>> From<R> for Stop {
    fn from(refusal: R) -> Self {
        Stop::Refused(refusal.into())
    }
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
        context.client = ClientConnection::of(session.digest());
        if let Some(client) = &context.client {
            client.head_is_read();
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
        match self.take_request(session, context).await {
            Ok(answered) => Ok(answered),
            Err(Stop::Refused(refusal)) => {
                context.refusal = Some(refusal);
                answer_refusal(session, context).await?;
                Ok(true)
            }
            Err(Stop::Answered(answer)) => {
                answer_locally(session, context, *answer).await?;
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
        let only_http1 = context.only_http1;
        let address = context.next_address().ok_or_else(no_address)?;
        Ok(Box::new(address.request_peer(only_http1).clone()))
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
        context.stream = StreamControl::of(digest);
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        head: &mut RequestHeader,
        context: &mut Box<RequestContext>,
    ) -> Result<()> {
        context
            .head_edit(session.req_header().raw_path())?
            .apply(head)?;
        context.begin_attempt();
        Ok(())
    }

    /// The one place that holds, checks and rewrites bodies. Pingora drives it for those that pass as they come and those
    /// without a length; [`Self::read_body`] for those of known length.
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
            return drop_piece(session, body, ends, context);
        }
        if ends && !end_of_stream && context.is_sent() {
            return end_by_trailers(context);
        }
        if let Err(refusal) = filter_body(body, ends, context) {
            context.refusal = Some(refusal);
            // Over HTTP/2 Pingora would wait for the response all the same.
            context.end_upstream();
            return Err(refused());
        }
        if !ends {
            context.await_body();
            return Ok(());
        }
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
        if is_replayable(session, context) && context.drop_refused_tier() {
            let error = Error::explain(TIER_REFUSED, "it is sent once more without a tier");
            return Err(error.into_up());
        }
        edit_response(session, context, response)?;
        context.take_answer(response.status, &response.headers);
        response.insert_header(&REQUEST_ID, context.request_id())?;
        context.await_more();
        if response.status == http::StatusCode::SWITCHING_PROTOCOLS {
            // A socket may stay silent for as long as its peers like.
            session.set_read_timeout(None);
            return websocket_exchange::begin(context);
        }
        if replies::is_empty(response) {
            context.end_answer();
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
        if context.websocket.is_some() {
            websocket_exchange::from_upstream(body, end_of_stream, context);
        } else if end_of_stream {
            context.end_answer();
            if !context.body_complete {
                session.set_read_timeout(Some(LINGERING_CLOSE_TIME));
            }
        }
        Ok(None)
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
        let replayable = is_replayable(session, context);
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
        if context.fails(error) {
            session.set_keepalive(None);
            // A client that cannot be written to has gone; its line says what it would have been told.
            let _ = answer_refusal(session, context).await;
        } else if session.as_downstream().is_http2() && *error.esource() == ErrorSource::Upstream {
            // Pingora resets the stream next, and the h2 crate then drops what it has not yet sent of the response.
            tokio::time::sleep(FLUSH_TIME).await;
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
        let ending = match error {
            Some(error) => context.situation().ending_of(error),
            None => context.ending(),
        };
        context.finish(ending);
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
    async fn take_request(
        &self,
        session: &mut Session,
        context: &mut RequestContext,
    ) -> Result<bool, Stop> {
        let client = session.client_addr().and_then(|address| address.as_inet());
        context.read_head(&asked(session), client.map(|address| address.ip()));
        let drains = self.state.is_draining();
        if drains {
            session.set_keepalive(None);
        }
        check_framing(session)?;
        withhold_interim(session);
        let answer = local_answer(&self.state, session).map_err(Stop::Downstream)?;
        if let Some(answer) = answer {
            return Err(Stop::Answered(Box::new(answer)));
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
        self.take_body(session, context).await.map(|()| false)
    }

    /// Who asks, for what, and what is to be done about the tier.
    fn admit(&self, session: &Session, context: &mut RequestContext) -> Result<(), Refusal> {
        let head = session.req_header();
        let decision = context.record.policy.decide(&asked(session));
        let decision = decision.map_err(|denied| context.deny(denied))?;
        context.admit(decision, head_bytes(head.raw_path(), &head.headers))?;
        let request_info = &context.request_info;
        context.upgrade =
            session.is_upgrade_req() && may_upgrade(&request_info.method, request_info.endpoint);
        if context.upgrade && announces_body(head) {
            // After a switch its bytes would be taken for frames.
            return Err(Cause::InvalidHttp.into());
        }
        Ok(())
    }

    /// Reads a body that is to be rewritten, if its length is known; makes the others ready to be passed on.
    async fn take_body(
        &self,
        session: &mut Session,
        context: &mut RequestContext,
    ) -> Result<(), Stop> {
        let length = content_length(session.req_header())?;
        let State {
            limits,
            body_memory,
            ..
        } = &*self.state;
        let empty = expect_body(session, context);
        let is_http2 = session.as_downstream().is_http2();
        context.body_idle = is_http2.then_some(limits.body_idle_timeout);
        let method = &context.request_info.method;
        let headers = &session.req_header().headers;
        let mut action = order_for_body(context.record.action, method, empty);
        if length.is_none() && !empty {
            context.resolve_without_body(headers.contains_key(header::CONTENT_ENCODING))?;
            action = context.record.action;
        }
        let is_held = action.is_some_and(|action| needs_body(&action))
            || context.requests_usage()
            || (!empty && context.holds_for_budget());
        if !is_held {
            let body = StreamedBody::open(headers, length, limits, body_memory)?;
            context.body = Body::Streamed(Box::new(body));
            return continue_upload(session).await;
        }
        let may_stay = action.is_none_or(|action| action.condition != Condition::Always)
            || context.has_budget();
        let held = BufferedBody::open(headers, length, may_stay, limits, body_memory)?;
        context.body = Body::Buffered(Box::new(held));
        continue_upload(session).await?;
        match length.or(empty.then_some(0)) {
            Some(length) => self.read_body(session, context, length).await,
            None => Ok(()),
        }
    }

    /// Reads a whole body before a peer is chosen: the upstream then gets an exact length, and nothing of a bad one. Pingora
    /// replays the last of its bytes, and the filter answers with all of it.
    async fn read_body(
        &self,
        session: &mut Session,
        context: &mut RequestContext,
        length: u64,
    ) -> Result<(), Stop> {
        read_pieces(session, context, Some(length)).await?;
        if length > 0 && session.get_retry_buffer().is_none() {
            // Nothing would make Pingora send the body.
            return Err(Cause::Internal.into());
        }
        context.finish_buffered()?;
        context.complete_body();
        Ok(())
    }
}

/// Notes whether more of the request is to come than its head. True where it has no body.
fn expect_body(session: &mut Session, context: &mut RequestContext) -> bool {
    let empty = session.as_downstream_mut().is_body_empty();
    context.body_complete = empty;
    if let Some(client) = &context.client {
        client.await_body(!empty);
    }
    empty
}

/// Reads a body that is held, to its end and within its limits. `replayed`: the length of one whose last bytes Pingora is to
/// keep, so that it sends it.
async fn read_pieces(
    session: &mut Session,
    context: &mut RequestContext,
    replayed: Option<u64>,
) -> Result<(), Stop> {
    let limits = context.state.limits.clone();
    let deadline = Instant::now() + limits.body_timeout;
    let drain_over = context.state.drain_over();
    while !session.is_body_done() {
        let left = replayed.map(|length| length.saturating_sub(context.record.request_bytes));
        if left.is_some_and(|left| left <= PINGORA_REPLAY_BYTES) {
            session.enable_retry_buffering();
        }
        let until = deadline.min(Instant::now() + limits.body_idle_timeout);
        let read = tokio::select! {
            biased;
            read = timeout_at(until, session.read_request_body()) => read,
            () = drain_over.cancelled() => return Err(Cause::Draining.into()),
        };
        let read = read.map_err(|_| Cause::RequestTimeout)?;
        let Some(chunk) = read.map_err(|error| Stop::Downstream(error.into_down()))? else {
            break;
        };
        filter_body(&mut Some(chunk), false, context)?;
    }
    Ok(())
}

/// One piece of a request body on its way to the upstream. A held body comes out as one piece, at its end.
fn filter_body(
    body: &mut Option<Bytes>,
    ends: bool,
    context: &mut RequestContext,
) -> Result<(), Refusal> {
    if context.record.began.elapsed() > context.state.limits.body_timeout && !context.body_complete
    {
        return Err(Cause::RequestTimeout.into());
    }
    if ends {
        context.complete_body();
    }
    let piece = body.clone().unwrap_or_default();
    context.begin_piece();
    match &mut context.body {
        Body::Streamed(streamed) => {
            context.record.request_bytes += piece.len() as u64;
            streamed.pass(&piece)?;
            context.record.sent.bytes += piece.len() as u64;
            if ends && piece.is_empty() {
                // Pingora would end a chunked message twice (cloudflare/pingora#935).
                *body = None;
            } else if context.is_http2_upstream()
                && context.record.sent.bytes > INITIAL_WINDOW
                && !piece.is_empty()
            {
                *body = Some(waiting_piece(piece, &context.state.body_memory)?);
            }
        }
        Body::Buffered(held) => {
            context.record.request_bytes += piece.len() as u64;
            held.push(&piece)?;
            // `None` would end the message here.
            *body = Some(Bytes::new());
            if ends {
                context.finish_buffered()?;
                *body = Some(context.send_ready()?);
            }
        }
        Body::Ready(_) => {
            *body = Some(match ends {
                true => context.send_ready()?,
                false => Bytes::new(),
            });
        }
        Body::None => {}
    }
    Ok(())
}

/// A piece that nobody waits for: the upstream has answered without it, or it is behind the end. Its message stays as it
/// is.
fn drop_piece(
    session: &Session,
    body: &mut Option<Bytes>,
    ends: bool,
    context: &RequestContext,
) -> Result<()> {
    let is_over = session.body_bytes_read() > LINGERING_CLOSE_BYTES
        || context
            .logged_at()
            .is_some_and(|since| since.elapsed() > LINGERING_CLOSE_TIME);
    if ends || is_over {
        let error = Error::explain(REFUSED, "the request goes on behind its response");
        return Err(error.into_down());
    }
    // `None` would be an end.
    *body = Some(Bytes::new());
    Ok(())
}

/// The end of a body that trailers end, after its last piece. Over HTTP/2 Pingora goes on asking for more of it, for it
/// takes END_STREAM in trailers for no end: the first time the request is to be ended, then its loop is to stop reading.
fn end_by_trailers(context: &mut RequestContext) -> Result<()> {
    match std::mem::replace(&mut context.trailers_seen, true) {
        false => Ok(()),
        true => Error::e_explain(REFUSED, "the request has ended by trailers"),
    }
}

/// Refuses a head that an upstream, or a proxy before this one, could take apart in another way.
fn check_framing(session: &mut Session) -> Result<(), Refusal> {
    let unambiguous = match session.as_downstream() {
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

/// A forced group's upgrade goes on only to where its messages are judged; elsewhere the request is an ordinary one.
pub(crate) fn may_upgrade(method: &Method, endpoint: Endpoint) -> bool {
    method == Method::GET && matches!(endpoint, Endpoint::Responses | Endpoint::Other)
}

fn announces_body(head: &RequestHeader) -> bool {
    let length = head.headers.get(header::CONTENT_LENGTH);
    head.headers.contains_key(header::TRANSFER_ENCODING)
        || length.is_some_and(|length| length != "0")
}

/// Whether an action needs the whole body before anything is sent.
fn needs_body(action: &TierAction) -> bool {
    action.changes() || action.condition != Condition::Always
}

/// What is to be done to the body. A request of some methods may go without one, and then has none that could carry a
/// tier.
pub(crate) fn order_for_body(
    action: Option<TierAction>,
    method: &Method,
    empty: bool,
) -> Option<TierAction> {
    action.filter(|_| !(empty && may_be_empty(method)))
}

pub(crate) fn may_be_empty(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE
    )
}

fn content_length(head: &RequestHeader) -> Result<Option<u64>, Refusal> {
    let Some(value) = head.headers.get(header::CONTENT_LENGTH) else {
        return Ok(None);
    };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    length.map(Some).ok_or_else(|| Cause::InvalidHttp.into())
}

/// Whether the same bytes can be sent again.
fn is_replayable(session: &mut Session, context: &RequestContext) -> bool {
    match &context.body {
        // Of a body without a length Pingora may have kept too little to begin again; it would wait for the rest forever.
        Body::Ready(_) => {
            session.get_retry_buffer().is_some() || session.as_downstream_mut().is_body_empty()
        }
        // Pingora keeps all of it up to its limit, and reads on from there.
        Body::Streamed(_) => !session.retry_buffer_truncated(),
        Body::Buffered(_) => false,
        Body::None => session.as_downstream_mut().is_body_empty(),
    }
}

fn asked(session: &Session) -> Head<'_> {
    let head = session.req_header();
    Head {
        method: &head.method,
        path: without_query(head.raw_path()),
        headers: &head.headers,
    }
}
