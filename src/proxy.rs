//! The way of a request through Pingora's phases. Control flow stands here; what is decided, checked, rewritten and
//! recorded stands in the modules that are called.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use pingora_core::connectors::TransportConnector;
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::{HttpTask, ServerSession};
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorSource, ErrorType, OrErr, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use crate::body::{HeldBody, ReadyBody, StreamedBody};
use crate::client_stream::{ClientSocket, DirectBody};
use crate::connection::{Deadline, Waiting};
use crate::endpoint::Endpoint;
use crate::error::{Cause, Refusal};
use crate::exchange::{Body, Exchange, LINGER_TIME, without_query};
use crate::framing;
use crate::head_edit::{HeadEdit, Length};
use crate::policy::{Head, Order};
use crate::relay;
use crate::service_tier::{Edit, PRIORITY, observed_tier};
use crate::state::State;
use crate::turn::Ending;
use crate::upstream::told_of;

/// What Pingora keeps of a body for another attempt. The rest of a body that is read here has to fit, for Pingora sends
/// a body only by replaying what it kept.
const PINGORA_REPLAY_BYTES: u64 = 64 * 1024;
/// What is still read of a refused request, so that its client gets to read the answer before the connection closes.
const LINGER_BYTES: usize = 1 << 20;

static REQUEST_ID: HeaderName = HeaderName::from_static("x-tiergate-request-id");

/// The error that carries a refusal through Pingora; the refusal itself is in the context.
const REFUSED: ErrorType = ErrorType::new("refused");

/// The proxy as Pingora runs it.
pub struct Gate {
    pub state: Arc<State>,
    /// Makes the connections of what is relayed; Pingora has one of its own.
    pub connector: TransportConnector,
}

#[async_trait]
impl ProxyHttp for Gate {
    /// Boxed, for Pingora moves it from future to future: inline it made each of them larger, for 3 % of the instructions of a small request.
    type CTX = Box<Exchange>;

    fn new_ctx(&self) -> Box<Exchange> {
        Box::new(Exchange::new(&self.state))
    }

    fn init_downstream_modules(&self, _modules: &mut pingora_core::modules::http::HttpModules) {
        // Pingora's default is a compressor; answers are not to be touched.
    }

    async fn early_request_filter(
        &self,
        session: &mut Session,
        exchange: &mut Box<Exchange>,
    ) -> Result<()> {
        exchange.deadline.clear();
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

    /// Decides the request, and reads a body of known length that is to be rewritten. True: it is answered here.
    async fn request_filter(
        &self,
        session: &mut Session,
        exchange: &mut Box<Exchange>,
    ) -> Result<bool> {
        exchange.read_head(session);
        let drains = self.state.is_draining();
        if drains {
            session.set_keepalive(None);
        }
        let framed = check_framing(session);
        let admitted = self.admit(session, exchange);
        let taken = match framed.and(admitted) {
            Ok(()) if drains && self.state.is_drain_over() => {
                Err(Stop::Refused(Cause::Draining.into()))
            }
            Ok(()) => self.take_body(session, exchange).await,
            Err(refusal) => Err(Stop::Refused(refusal)),
        };
        match taken {
            Ok(()) if exchange.relayed => {
                self.relay(session, exchange).await?;
                Ok(true)
            }
            Ok(()) => Ok(false),
            Err(Stop::Refused(refusal)) => {
                exchange.refusal = Some(refusal);
                self.answer_refusal(session, exchange).await?;
                Ok(true)
            }
            Err(Stop::Broken(error)) => Err(error),
        }
    }

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        exchange: &mut Box<Exchange>,
    ) -> Result<Box<HttpPeer>> {
        let address = exchange.next_address().ok_or_else(no_address)?;
        let peer = address.peer_for(exchange.upgrade);
        match exchange.upgrade {
            true => Ok(Box::new(corked(peer, &exchange.deadline))),
            false => Ok(Box::new(peer)),
        }
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        _reused: bool,
        _peer: &HttpPeer,
        socket: RawFd,
        _digest: Option<&Digest>,
        exchange: &mut Box<Exchange>,
    ) -> Result<()> {
        exchange.deadline.hold_upstream(Some(socket));
        exchange.deadline.cork.close();
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        head: &mut RequestHeader,
        exchange: &mut Box<Exchange>,
    ) -> Result<()> {
        if head.version == http::Version::HTTP_2 {
            // Other requests share the connection.
            exchange.deadline.hold_upstream(None);
        }
        head_edit(session, exchange)?.write(head)?;
        exchange.begin_attempt();
        Ok(())
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        exchange: &mut Box<Exchange>,
    ) -> Result<()>
    where
        Self::CTX: Send + Sync,
    {
        if session.was_upgraded() {
            return self
                .filter_client_frames(session, body, end_of_stream, exchange)
                .await;
        }
        if exchange.is_settled() {
            // It was answered without this.
            return drop_piece(body, end_of_stream);
        }
        let filtered = self.filter_body(body, end_of_stream, exchange);
        if !end_of_stream
            && exchange.body_idle.is_some()
            && exchange.turn.answer.upstream_status.is_none()
        {
            exchange.await_body();
        }
        if let Err(refusal) = filtered {
            return Err(refused(exchange, refusal));
        }
        if end_of_stream {
            exchange.outlive_client(session);
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        answer: &mut ResponseHeader,
        exchange: &mut Box<Exchange>,
    ) -> Result<()> {
        self.take_answer(session, answer, exchange)
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        exchange: &mut Box<Exchange>,
    ) -> Result<Option<Duration>> {
        if let Some(bytes) = body {
            exchange.observe(bytes);
        }
        if exchange.conversation.is_some() {
            filter_server_frames(body, end_of_stream, exchange);
        }
        if end_of_stream {
            exchange.end_answer();
        }
        if !end_of_stream || exchange.conversation.is_some() {
            watch_next_byte(exchange);
        }
        Ok(None)
    }

    /// Tries again what a dead pooled connection swallowed, where that is safe.
    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        exchange: &mut Box<Exchange>,
        reused: bool,
    ) -> Box<Error> {
        self.attempt_failed(session, error, exchange, reused)
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        exchange: &mut Box<Exchange>,
        error: Box<Error>,
    ) -> Box<Error> {
        self.connect_failed(error, exchange)
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        exchange: &mut Box<Exchange>,
    ) -> FailToProxy {
        let ending = ending_of(error, exchange);
        if let Ending::Refused(cause) = ending {
            exchange.refusal.get_or_insert_with(|| cause.into());
            if cause.status() >= 500 {
                let (id, code) = (exchange.arrival.id, cause.code());
                log::warn!("request {id}: {code}: {}", told_of(error));
            }
            // A client that cannot be written to has gone; its line says what it would have been told.
            let _ = self.answer_refusal(session, exchange).await;
        }
        FailToProxy {
            error_code: exchange.turn.answer.status.unwrap_or(0),
            can_reuse_downstream: false,
        }
    }

    async fn logging(
        &self,
        _session: &mut Session,
        error: Option<&Error>,
        exchange: &mut Box<Exchange>,
    ) {
        exchange.deadline.clear();
        let ending = match error {
            Some(error) => ending_of(error, exchange),
            None => exchange.ending(),
        };
        exchange.settle(ending);
    }

    fn suppress_error_log(
        &self,
        _session: &Session,
        _exchange: &Box<Exchange>,
        _error: &Error,
    ) -> bool {
        // The access log has it. Pingora's own line would print the request's query.
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _exchange: &Box<Exchange>,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }

    fn request_summary(&self, _session: &Session, exchange: &Box<Exchange>) -> String {
        format!("request {}", exchange.arrival.id)
    }
}

/// Why a request goes no further.
enum Stop {
    Refused(Refusal),
    /// The connection to the client is at fault.
    Broken(Box<Error>),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Stop::Refused(refusal)
    }
}

impl Gate {
    /// Who asks, for what, and what is to be done about the tier.
    fn admit(&self, session: &Session, exchange: &mut Exchange) -> Result<(), Refusal> {
        let head = session.req_header();
        let asked = Head {
            method: &head.method,
            path: without_query(head.raw_path()),
            headers: &head.headers,
        };
        let decision = match exchange.turn.policy.decide(&asked) {
            Ok(decision) => decision,
            Err(denied) => {
                exchange.arrival.endpoint = denied.endpoint;
                exchange.turn.key = denied.key;
                exchange.turn.group = denied.group;
                return Err(denied.cause.into());
            }
        };
        exchange.arrival.endpoint = decision.endpoint;
        exchange.turn.key = decision.key;
        exchange.turn.order = decision.order;
        exchange.credential = Some(decision.credential);
        exchange.upstream = self.state.upstream(&decision.group.upstream.name).cloned();
        exchange.turn.group = Some(decision.group);
        if head_bytes(head) > self.state.limits.header {
            return Err(Cause::HeaderTooLarge.into());
        }
        if let Some(group) = &exchange.turn.group {
            let key = &decision.credential.digest;
            exchange.turn.places = Some(self.state.in_flight.enter(group, key)?);
        }
        if self.state.log.is_full() {
            return Err(Cause::AccessLogUnavailable.into());
        }
        let arrival = &exchange.arrival;
        exchange.upgrade =
            session.is_upgrade_req() && may_upgrade(&arrival.method, arrival.endpoint);
        if exchange.upgrade && announces_body(head) {
            // After the switch its bytes would be taken for frames.
            return Err(Cause::InvalidHttp.into());
        }
        Ok(())
    }

    /// Reads a body that is to be rewritten, if its length is known; makes the others ready to be passed on.
    async fn take_body(&self, session: &mut Session, exchange: &mut Exchange) -> Result<(), Stop> {
        let head = session.req_header();
        let length = content_length(head)?;
        let limits = &self.state.limits;
        let direct = direct_body(session, exchange, length);
        let empty = direct.is_none() && session.as_downstream_mut().is_body_empty();
        exchange.body_idle = session
            .as_downstream()
            .is_http2()
            .then_some(limits.body_idle_timeout);
        let method = &exchange.arrival.method;
        let Some(order) = order_for_body(exchange.turn.order, method, empty) else {
            let headers = &session.req_header().headers;
            let body = StreamedBody::open(headers, length, limits, &self.state.budget)?;
            exchange.body = Body::Streamed(Box::new(body));
            exchange.has_come = empty;
            if !empty {
                exchange.await_body();
            }
            return continue_upload(session).await;
        };
        let headers = &session.req_header().headers;
        let held = HeldBody::open(headers, length, order.body, limits, &self.state.budget)?;
        continue_upload(session).await?;
        exchange.body = Body::Held(Box::new(held));
        let length = length.or(empty.then_some(0));
        exchange.relayed = length.is_some() && relay::can_carry(session, exchange);
        if let Some(direct) = direct {
            return self.read_directly(session, exchange, direct).await;
        }
        if let Some(length) = length {
            return self.read_body(session, exchange, length).await;
        }
        exchange.await_body();
        Ok(())
    }

    /// Reads a whole body before any upstream is chosen, straight into the buffer in which it is held. In Pingora's eyes it
    /// has one byte, or none where Pingora has not to send it.
    async fn read_directly(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        mut direct: DirectBody,
    ) -> Result<(), Stop> {
        let head = session.req_header_mut();
        let seen = if exchange.relayed {
            head.remove_header(&header::CONTENT_LENGTH);
            0
        } else {
            head.insert_header(header::CONTENT_LENGTH, 1)
                .map_err(Stop::Broken)?;
            direct.leave_first_byte();
            1
        };
        exchange.direct = Some(direct);
        self.read_body(session, exchange, seen).await
    }

    /// Reads a whole body before any upstream is chosen, through the filter that Pingora drives for other bodies.
    async fn read_body(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        length: u64,
    ) -> Result<(), Stop> {
        let limits = &self.state.limits;
        let deadline = Instant::now() + limits.body_timeout;
        exchange.deadline.await_body();
        while !session.is_body_done() {
            let left = length.saturating_sub(exchange.turn.request_bytes);
            if left <= PINGORA_REPLAY_BYTES && !exchange.relayed {
                session.enable_retry_buffering();
            }
            let read = session.read_request_body();
            let read = in_time(read, deadline, limits.body_idle_timeout).await?;
            let Some(chunk) = read else { break };
            self.filter_body(&mut Some(chunk), false, exchange)?;
        }
        read_rest(exchange, deadline, limits.body_idle_timeout).await?;
        exchange.deadline.clear();
        if length > 0 && !exchange.relayed && session.get_retry_buffer().is_none() {
            // Nothing would make Pingora send the body.
            return Err(Stop::Refused(Cause::Internal.into()));
        }
        self.finish_held(exchange)?;
        exchange.has_come = true;
        Ok(())
    }

    /// One piece of a request body on its way to the upstream. A held body comes out as one piece, at its end.
    fn filter_body(
        &self,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        exchange: &mut Exchange,
    ) -> Result<(), Refusal> {
        exchange.has_come |= end_of_stream;
        let piece = body.clone().unwrap_or_default();
        match &mut exchange.body {
            Body::Streamed(streamed) => {
                exchange.turn.request_bytes += piece.len() as u64;
                streamed.pass(&piece)?;
                exchange.turn.sent.bytes += piece.len() as u64;
                if end_of_stream && piece.is_empty() {
                    // Pingora would end a chunked message twice (cloudflare/pingora#935).
                    *body = None;
                }
            }
            Body::Held(held) => {
                exchange.turn.request_bytes += piece.len() as u64;
                held.push(&piece)?;
                // `None` would end the message here.
                *body = Some(Bytes::new());
                if end_of_stream {
                    self.finish_held(exchange)?;
                    *body = Some(self.send_ready(exchange)?);
                }
            }
            Body::Ready(_) => {
                *body = Some(if end_of_stream {
                    self.send_ready(exchange)?
                } else {
                    Bytes::new()
                });
            }
            Body::None => {}
        }
        if end_of_stream {
            watch_answer(exchange);
        }
        Ok(())
    }

    /// What a client sends on an upgraded connection. Where its messages are judged, only what is good goes on.
    async fn filter_client_frames(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        exchange: &mut Exchange,
    ) -> Result<()> {
        let chunk = body.clone().unwrap_or_default();
        exchange.turn.request_bytes += chunk.len() as u64;
        let Some(conversation) = &mut exchange.conversation else {
            exchange.turn.sent.bytes += chunk.len() as u64;
            return Ok(());
        };
        if chunk.is_empty() && end_of_stream {
            conversation.client_ended();
            return Ok(());
        }
        let passed = conversation.client_bytes(chunk, &exchange.arrival, &exchange.turn);
        exchange.deadline.set_idle(conversation.is_idle());
        exchange.turn.sent.bytes += passed.to_upstream.len() as u64;
        *body = Some(passed.to_upstream);
        if let Some(refusal) = passed.refusal {
            exchange.refusal = Some(refusal);
            watch_farewell(exchange);
        }
        if let Some(frames) = passed.to_client {
            if !frames.is_empty() {
                let farewell = vec![HttpTask::UpgradedBody(Some(frames), false)];
                session
                    .as_downstream_mut()
                    .response_duplex_vec(farewell)
                    .await?;
            }
            exchange.deadline.shut_upstream();
        }
        Ok(())
    }

    fn finish_held(&self, exchange: &mut Exchange) -> Result<(), Refusal> {
        if let Body::Held(held) = std::mem::replace(&mut exchange.body, Body::None) {
            let ReadyBody { bytes, facts } = held.finish()?;
            exchange.turn.facts = facts;
            exchange.body = Body::Ready(bytes);
        }
        Ok(())
    }

    /// The bytes that now leave for the upstream: the last place to find that they are not what was ordered.
    pub(crate) fn send_ready(&self, exchange: &mut Exchange) -> Result<Bytes, Refusal> {
        let Body::Ready(bytes) = &exchange.body else {
            return Err(Cause::Internal.into());
        };
        let bytes = bytes.clone();
        let Ok(found) = outgoing_tier(exchange.turn.order, &bytes) else {
            self.state.metrics.unforced_forwarded.inc();
            log::error!(
                "request {}: the outgoing body does not carry the forced tier; it is not sent",
                exchange.arrival.id
            );
            return Err(Cause::Internal.into());
        };
        exchange.turn.sent_whole(bytes.len() as u64, found);
        Ok(bytes)
    }

    /// The head of the upstream's answer is here, and becomes that of the client's.
    pub(crate) fn take_answer(
        &self,
        session: &mut Session,
        answer: &mut ResponseHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        check_answer(answer, exchange)?;
        exchange.read_answer(answer.status.as_u16(), &answer.headers);
        if let Some(upstream) = &exchange.upstream {
            let status = answer.status.as_u16();
            exchange.route.is_answered(upstream, status);
        }
        answer.insert_header(&REQUEST_ID, request_id(exchange))?;
        if answer.status == StatusCode::SWITCHING_PROTOCOLS {
            // A socket may stay silent for as long as its peers like.
            session.set_read_timeout(None);
            begin_conversation(exchange)?;
        }
        watch_next_byte(exchange);
        if is_empty(answer) {
            exchange.end_answer();
        }
        Ok(())
    }

    /// An attempt has failed after its connection was there. The error says whether there is to be another one: for what a
    /// dead pooled connection swallowed, where that is safe.
    pub(crate) fn attempt_failed(
        &self,
        session: &mut Session,
        mut error: Box<Error>,
        exchange: &mut Exchange,
        reused: bool,
    ) -> Box<Error> {
        exchange.deadline.clear();
        exchange.deadline.hold_upstream(None);
        let again = reused && is_stale_connection(&error) && may_retry(session, exchange);
        error.set_retry(again);
        if let Some(upstream) = &exchange.upstream
            && !reused
            && is_reset(&error, exchange)
        {
            exchange.route.fails(upstream, &error);
        }
        error
    }

    /// No connection could be made for an attempt. The error says whether there is to be another one.
    pub(crate) fn connect_failed(
        &self,
        mut error: Box<Error>,
        exchange: &mut Exchange,
    ) -> Box<Error> {
        let again = exchange
            .upstream
            .as_ref()
            .is_some_and(|upstream| exchange.route.fails_to_connect(upstream, &error));
        error.set_retry(again);
        error
    }

    /// Sends the answer for `exchange.refusal`, writes its line, and hears the client out for a moment.
    async fn answer_refusal(&self, session: &mut Session, exchange: &mut Exchange) -> Result<()> {
        let Some(refusal) = exchange.refusal.clone() else {
            return Ok(());
        };
        if session
            .response_written()
            .is_some_and(|written| !written.status.is_informational())
        {
            return Ok(());
        }
        exchange.turn.places = None;
        let answer = refusal.answer(exchange.protocol());
        exchange.turn.answer.status = Some(answer.status);
        let mut head = ResponseHeader::build(answer.status, Some(6))?;
        head.insert_header(header::CONTENT_TYPE, "application/json")?;
        head.insert_header(header::CONTENT_LENGTH, answer.body.len())?;
        head.insert_header(&REQUEST_ID, request_id(exchange))?;
        if let Some(seconds) = answer.retry_after {
            head.insert_header(header::RETRY_AFTER, seconds)?;
        }
        if !answer.should_retry {
            head.insert_header("x-should-retry", "false")?;
        }
        let rest = exchange.direct.take().and_then(|mut rest| {
            rest.skip_ahead();
            (rest.left() > 0).then_some(rest)
        });
        let unread = rest.is_some() || !session.is_body_done();
        if unread {
            session.set_keepalive(None);
        }
        let bodyless = exchange.arrival.method == Method::HEAD;
        session
            .write_response_header(Box::new(head), bodyless)
            .await?;
        if !bodyless {
            session.write_response_body(Some(answer.body), true).await?;
        }
        exchange.settle(Ending::Refused(refusal.cause));
        exchange.body = Body::None;
        if unread {
            linger(session, rest).await;
        }
        Ok(())
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

/// Refuses an answer that the client could take apart in another way than Pingora, and an upgrade that nobody asked for.
fn check_answer(answer: &ResponseHeader, exchange: &mut Exchange) -> Result<()> {
    let unasked = answer.status == StatusCode::SWITCHING_PROTOCOLS && !exchange.upgrade;
    if !unasked && framing::is_unambiguous_answer(&answer.headers) {
        return Ok(());
    }
    let words = "the upstream's answer is not well-formed HTTP";
    exchange.refusal = Some(Refusal::new(Cause::UpstreamReset, words));
    Error::e_explain(REFUSED, words)
}

/// The message to the upstream is to stay without its end.
fn drop_piece(body: &mut Option<Bytes>, end_of_stream: bool) -> Result<()> {
    if end_of_stream {
        let error = Error::explain(REFUSED, "the upstream has answered without the rest");
        return Err(error.into_down());
    }
    // `None` would be an end.
    *body = Some(Bytes::new());
    Ok(())
}

/// An answer without a body, whose end nobody is told of.
fn is_empty(answer: &ResponseHeader) -> bool {
    let length = answer.headers.get(header::CONTENT_LENGTH);
    let has_none = matches!(answer.status.as_u16(), 204 | 304);
    !answer.status.is_informational() && (has_none || length.is_some_and(|length| length == "0"))
}

/// The target and the headers, as HTTP/1.1 writes them.
fn head_bytes(head: &RequestHeader) -> u64 {
    const SEPARATORS: usize = ": \r\n".len();
    let headers = head.headers.iter();
    let headers = headers.map(|(name, value)| name.as_str().len() + value.len() + SEPARATORS);
    (head.raw_path().len() + headers.sum::<usize>()) as u64
}

/// A peer to which an upgrade goes: its connection is a fresh one, for only those can be corked.
fn corked(mut peer: HttpPeer, deadline: &Arc<Deadline>) -> HttpPeer {
    let deadline = deadline.clone();
    peer.options.upstream_tcp_sock_tweak_hook = Some(Arc::new(move |socket| {
        let taken = deadline.cork.take(socket);
        taken.map_err(|why| Error::because(ErrorType::SocketError, "duplicating a socket", why))
    }));
    peer
}

/// The request is with the upstream. Pingora has one time limit for the first byte of the answer and for those that
/// follow; where the first has the shorter one, it is kept here.
pub(crate) fn watch_answer(exchange: &Exchange) {
    exchange.deadline.clear();
    let Some(upstream) = &exchange.upstream else {
        return;
    };
    let settings = &upstream.config;
    let differ = settings.response_timeout < settings.idle_timeout;
    let kept_here = exchange.upgrade || exchange.relayed || differ;
    if kept_here && exchange.turn.answer.upstream_status.is_none() {
        let limit = settings.response_timeout;
        exchange.deadline.set(Waiting::ForAnswer, limit);
    }
}

/// A client is to be sent away once the server's message under way has ended, which may take no longer than this.
fn watch_farewell(exchange: &Exchange) {
    if let Some(upstream) = &exchange.upstream {
        let limit = upstream.config.idle_timeout;
        exchange.deadline.set(Waiting::ForMore, limit);
    }
}

/// Something of the answer has come; where what follows has the shorter time limit, it is kept here.
fn watch_next_byte(exchange: &Exchange) {
    if exchange.conversation.is_some() && exchange.refusal.is_some() {
        // The time for the farewell is running.
        return;
    }
    let Some(upstream) = &exchange.upstream else {
        return;
    };
    let upgraded = exchange.turn.answer.upstream_status == Some(101);
    if !exchange.relayed
        && upstream.config.idle_timeout < upstream.config.response_timeout
        && !upgraded
    {
        exchange
            .deadline
            .set(Waiting::ForMore, upstream.config.idle_timeout);
    } else {
        exchange.deadline.clear();
    }
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

fn begin_conversation(exchange: &mut Exchange) -> Result<()> {
    if exchange.arrival.endpoint != Endpoint::Responses {
        return Ok(());
    }
    if let Err(refusal) = exchange.begin_conversation() {
        exchange.refusal = Some(refusal);
        return Error::e_explain(REFUSED, "the upgrade is refused");
    }
    exchange.deadline.set_idle(true);
    Ok(())
}

/// What the upstream sends on an upgraded connection goes on as it is, until the proxy has a last word.
fn filter_server_frames(body: &mut Option<Bytes>, end_of_stream: bool, exchange: &mut Exchange) {
    let Some(conversation) = &mut exchange.conversation else {
        return;
    };
    let last_word = match body {
        Some(bytes) => conversation.server_bytes(bytes, &exchange.arrival, &exchange.turn),
        None if end_of_stream => conversation.server_ended(),
        None => None,
    };
    exchange.deadline.set_idle(conversation.is_idle());
    if let Some(frames) = last_word {
        *body = Some(frames);
        exchange.deadline.shut_upstream();
    }
}

/// What is to be done to the body. A request of some methods may go without one, and then has none that could carry a
/// tier.
pub(crate) fn order_for_body(order: Option<Order>, method: &Method, empty: bool) -> Option<Order> {
    order.filter(|_| !(empty && may_be_empty(method)))
}

pub(crate) fn may_be_empty(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE
    )
}

/// The tier in a rewritten body, read from the bytes that leave.
///
/// # Errors
/// Where it is not the one that was ordered.
pub(crate) fn outgoing_tier(
    order: Option<Order>,
    bytes: &[u8],
) -> Result<Option<&'static str>, Cause> {
    let found = observed_tier(bytes);
    if order.is_some_and(|order| order.body == Edit::Set) && found != Some(PRIORITY) {
        return Err(Cause::Internal);
    }
    Ok(found)
}

fn content_length(head: &RequestHeader) -> Result<Option<u64>, Refusal> {
    let Some(value) = head.headers.get(header::CONTENT_LENGTH) else {
        return Ok(None);
    };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    length.map(Some).ok_or_else(|| Cause::InvalidHttp.into())
}

/// The body, if it can be read past Pingora: it comes next, and as it is.
fn direct_body(session: &Session, exchange: &Exchange, length: Option<u64>) -> Option<DirectBody> {
    let session = session.as_downstream().as_http1()?;
    let head = session.req_header();
    let detours = [header::CONTENT_ENCODING, header::EXPECT];
    if exchange.turn.order.is_none() || detours.iter().any(|name| head.headers.contains_key(name)) {
        return None;
    }
    ClientSocket::current()?.body_behind(session.get_headers_raw_bytes().len(), length?)
}

/// What a read of a client's body gives, if it gives anything before the whole body's time and that of one read are over.
async fn in_time<T>(
    read: impl Future<Output = Result<T>>,
    deadline: Instant,
    idle_timeout: Duration,
) -> Result<T, Stop> {
    timeout_at(deadline.min(Instant::now() + idle_timeout), read)
        .await
        .map_err(|_| Stop::Refused(Cause::RequestTimeout.into()))?
        .map_err(|error| Stop::Broken(error.into_down()))
}

/// Reads what of a body is read past Pingora.
async fn read_rest(
    exchange: &mut Exchange,
    deadline: Instant,
    idle_timeout: Duration,
) -> Result<(), Stop> {
    let Some(direct) = &mut exchange.direct else {
        return Ok(());
    };
    let Body::Held(held) = &mut exchange.body else {
        return Err(Stop::Refused(Cause::Internal.into()));
    };
    while direct.left() > 0 {
        let buffer = held.buffer().ok_or(Stop::Refused(Cause::Internal.into()))?;
        let mut read = direct.take_ahead(buffer);
        if read == 0 {
            let more = direct.read(buffer);
            let more = async { more.await.or_err(ErrorType::ReadError, "reading a body") };
            read = in_time(more, deadline, idle_timeout).await?;
        }
        if read == 0 {
            let error = Error::explain(ErrorType::ConnectionClosed, "a body was cut");
            return Err(Stop::Broken(error.into_down()));
        }
        exchange.turn.request_bytes += read as u64;
        held.check(read as u64)?;
    }
    Ok(())
}

/// Tells a client that waits for it to go on. The upstream is not asked: it may not even be HTTP/1.
async fn continue_upload(session: &mut Session) -> Result<(), Stop> {
    let expects = session.get_header(header::EXPECT);
    if expects.is_none_or(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Ok(());
    }
    session.set_close_on_response_before_downstream_finish(false);
    session
        .write_continue_response()
        .await
        .map_err(|error| Stop::Broken(error.into_down()))
}

/// Reads what a refused client still sends, for a while: a close with bytes unread would take the answer away from it.
async fn linger(session: &mut Session, rest: Option<DirectBody>) {
    let read = async {
        let mut left = LINGER_BYTES;
        if let Some(mut rest) = rest {
            return rest.discard(left).await;
        }
        while let Ok(Some(chunk)) = session.read_request_body().await {
            left = left.saturating_sub(chunk.len());
            if left == 0 {
                break;
            }
        }
    };
    // Time is up for whoever still sends.
    let _ = timeout(LINGER_TIME, read).await;
}

pub(crate) fn no_address() -> Box<Error> {
    Error::explain(
        ErrorType::ConnectNoRoute,
        "the upstream's name has no address",
    )
}

/// A body that is not sent: the client's fault, or an HTTP/2 upstream's side would swallow it.
pub(crate) fn refused(exchange: &mut Exchange, refusal: Refusal) -> Box<Error> {
    exchange.refusal = Some(refusal);
    Error::explain(REFUSED, "the body is refused").into_down()
}

/// What makes of the client's head the one that the upstream is to get.
pub(crate) fn head_edit<'a>(session: &'a Session, exchange: &'a Exchange) -> Result<HeadEdit<'a>> {
    let (Some(upstream), Some(origin)) = (&exchange.upstream, exchange.route.origin()) else {
        return Error::e_explain(ErrorType::InternalError, "no upstream was decided");
    };
    Ok(HeadEdit {
        upstream,
        origin,
        target: session.req_header().raw_path(),
        credential: exchange.credential.map(|credential| credential.header),
        endpoint: exchange.arrival.endpoint,
        order: exchange.turn.order,
        upgrade: exchange.upgrade,
        length: match &exchange.body {
            Body::Ready(bytes) => Length::Known(bytes.len()),
            Body::Held(_) => Length::Unknown,
            Body::Streamed(_) | Body::None => Length::Same,
        },
    })
}

fn request_id(exchange: &Exchange) -> HeaderValue {
    let mut text = Uuid::encode_buffer();
    let id = exchange.arrival.id.hyphenated().encode_lower(&mut text);
    // It is plain ASCII.
    HeaderValue::from_str(id).expect("a UUID can stand in a header")
}

/// Whether the upstream had closed a pooled connection before it took the request: it ended without a byte or an error,
/// or took no more of the request before all of it was written, as happens to bodies that no socket buffer holds.
/// A reset after that may come from a server that has read the request, so it is not tried again; nor is what was answered
/// by a part of a head.
fn is_stale_connection(error: &Error) -> bool {
    *error.esource() == ErrorSource::Upstream
        && match error.etype() {
            ErrorType::ConnectionClosed => !has_begun_to_answer(error),
            ErrorType::WriteError => true,
            _ => false,
        }
}

/// Pingora says in words only how much of a head it has read.
fn has_begun_to_answer(error: &Error) -> bool {
    let context = error
        .context
        .as_ref()
        .map_or("", |context| context.as_str());
    let read = context.rsplit_once("bytes already read: ");
    read.is_some_and(|(_, count)| count != "0")
}

/// Whether the upstream ended a connection before it began to answer. That it takes its time says nothing of an address.
fn is_reset(error: &Error, exchange: &Exchange) -> bool {
    matches!(
        ending_of(error, exchange),
        Ending::Refused(Cause::UpstreamReset)
    )
}

/// Whether the same bytes can be sent again to an upstream that did not begin to answer.
fn may_retry(session: &mut Session, exchange: &Exchange) -> bool {
    let replayable = match &exchange.body {
        // Of a body without a length Pingora may have kept too little to begin again; it would wait for the rest forever.
        Body::Ready(_) => {
            exchange.relayed
                || session.get_retry_buffer().is_some()
                || session.as_downstream_mut().is_body_empty()
        }
        Body::Streamed(_) => session.is_body_done() && !session.retry_buffer_truncated(),
        Body::Held(_) => false,
        Body::None => session.as_downstream_mut().is_body_empty(),
    };
    let upstream = exchange.upstream.as_ref();
    replayable
        && exchange.turn.answer.upstream_status.is_none()
        // The end of a connection may be that of our own patience.
        && !exchange.deadline.has_passed()
        && upstream.is_some_and(|upstream| exchange.route.may_go_on(upstream))
}

/// What an error of Pingora's means for this request.
fn ending_of(error: &Error, exchange: &Exchange) -> Ending {
    if let Some(refusal) = &exchange.refusal {
        return Ending::Refused(refusal.cause);
    }
    if let Some(cause) = exchange.interruption() {
        return Ending::Refused(cause);
    }
    let answered = exchange.turn.answer.upstream_status.is_some();
    let timed_out = exchange.deadline.has_passed();
    match (error.esource(), error.etype()) {
        (ErrorSource::Downstream, ErrorType::ReadTimedout) if !answered => {
            Ending::Refused(Cause::RequestTimeout)
        }
        (
            ErrorSource::Downstream,
            ErrorType::ReadError | ErrorType::WriteError | ErrorType::WriteTimedout,
        ) => Ending::ClientClosed,
        (
            ErrorSource::Downstream,
            ErrorType::ConnectionClosed | ErrorType::ReadTimedout | ErrorType::H2Error,
        ) => Ending::ClientClosed,
        (ErrorSource::Downstream, _) if answered => Ending::ClientClosed,
        (ErrorSource::Downstream, _) => Ending::Refused(Cause::InvalidHttp),
        (ErrorSource::Upstream, ErrorType::ReadTimedout | ErrorType::WriteTimedout) if answered => {
            Ending::Timeout
        }
        (ErrorSource::Upstream, _) if answered && timed_out => Ending::Timeout,
        (ErrorSource::Upstream, _) if answered => Ending::UpstreamCut,
        (ErrorSource::Upstream, etype) => Ending::Refused(upstream_failure(etype, timed_out)),
        (_, ErrorType::WriteError | ErrorType::WriteTimedout) if answered => Ending::ClientClosed,
        _ if answered => Ending::UpstreamCut,
        _ => Ending::Refused(Cause::Internal),
    }
}

/// Why there is no answer from the upstream.
fn upstream_failure(etype: &ErrorType, timed_out: bool) -> Cause {
    match etype {
        _ if timed_out => Cause::UpstreamTimeout,
        ErrorType::ConnectTimedout
        | ErrorType::TLSHandshakeTimedout
        | ErrorType::ReadTimedout
        | ErrorType::WriteTimedout => Cause::UpstreamTimeout,
        ErrorType::ConnectRefused
        | ErrorType::ConnectNoRoute
        | ErrorType::ConnectError
        | ErrorType::SocketError
        | ErrorType::BindError
        | ErrorType::TLSHandshakeFailure
        | ErrorType::InvalidCert
        | ErrorType::HandshakeError
        | ErrorType::ConnectProxyFailure => Cause::UpstreamUnreachable,
        _ => Cause::UpstreamReset,
    }
}
