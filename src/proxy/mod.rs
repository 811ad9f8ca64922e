//! The way of a request through Pingora's phases. Control flow stands here; what is decided, checked, rewritten and
//! recorded stands in the modules that are called.

pub mod context;
pub mod error_mapping;
pub mod request_body;
pub mod upstream_request;
pub mod websocket_session;

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header;
use http::{HeaderName, Method, StatusCode};
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::ServerSession;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use tokio::time::{Instant, timeout};

use crate::accounting::record::Termination;
use crate::codec::error::{Cause, Refusal};
use crate::codec::framing;
use crate::http1::client_stream::{ClientSocket, DirectBody};
use crate::http1::intake::{LINGER_BYTES, LINGER_TIME, Stop, in_time, read_past};
use crate::http1::patient_h2::make_patient;
use crate::policy::endpoint::Endpoint;
use crate::policy::{Head, Order};
use crate::proxy::context::{Body, Exchange, head_bytes, without_query};
use crate::proxy::error_mapping::{REFUSED, ending_of, no_address, refused};
use crate::proxy::request_body::{HeldBody, StreamedBody};
use crate::state::State;

/// What Pingora keeps of a body for another attempt. The rest of a body that is read here has to fit, for Pingora sends
/// a body only by replaying what it kept.
const PINGORA_REPLAY_BYTES: u64 = 64 * 1024;
/// What Pingora reads of a body that is read past it.
const STAND_IN_BYTES: u64 = 1;

pub(crate) static REQUEST_ID: HeaderName = HeaderName::from_static("x-tiergate-request-id");

/// The proxy as Pingora runs it.
pub struct Gate {
    pub state: Arc<State>,
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
        let client = session.client_addr().and_then(|address| address.as_inet());
        let client = client.map(|address| address.ip());
        exchange.read_head(&asked(session), client);
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
        Ok(Box::new(address.peer.clone()))
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
        exchange
            .head_edit(session.req_header().raw_path())?
            .write(head)?;
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
            outlive_client(session, exchange);
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        _session: &mut Session,
        answer: &mut ResponseHeader,
        exchange: &mut Box<Exchange>,
    ) -> Result<()> {
        check_answer(answer, exchange)?;
        exchange.take_answer(answer.status, &answer.headers);
        answer.insert_header(&REQUEST_ID, exchange.request_id())?;
        exchange.watch_next_byte();
        if is_empty(answer) {
            exchange.end_answer();
        }
        Ok(())
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
        if end_of_stream {
            exchange.end_answer();
        } else {
            exchange.watch_next_byte();
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
        let replayable = is_replayable(session, exchange);
        exchange.attempt_failed(error, reused, replayable)
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        exchange: &mut Box<Exchange>,
        error: Box<Error>,
    ) -> Box<Error> {
        exchange.connect_failed(error)
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        exchange: &mut Box<Exchange>,
    ) -> FailToProxy {
        if exchange.fails(error) {
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

impl Gate {
    /// Who asks, for what, and what is to be done about the tier.
    fn admit(&self, session: &Session, exchange: &mut Exchange) -> Result<(), Refusal> {
        let head = session.req_header();
        let decision = exchange.turn.policy.decide(&asked(session));
        let decision = decision.map_err(|denied| exchange.deny(denied))?;
        exchange.admit(decision, head_bytes(head.raw_path(), &head.headers))?;
        let arrival = &exchange.arrival;
        let upgrades = session.is_upgrade_req() && may_upgrade(&arrival.method, arrival.endpoint);
        if upgrades && announces_body(head) {
            // After a switch its bytes would be taken for frames.
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
        if let Some(client) = ClientSocket::current() {
            client.expect_body(match &direct {
                Some(_) => Some(STAND_IN_BYTES),
                None => length.or(empty.then_some(0)),
            });
        }
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
    /// has one byte.
    async fn read_directly(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        mut direct: DirectBody,
    ) -> Result<(), Stop> {
        let head = session.req_header_mut();
        head.insert_header(header::CONTENT_LENGTH, STAND_IN_BYTES)
            .map_err(Stop::Broken)?;
        direct.leave_first_byte();
        exchange.direct = Some(direct);
        self.read_body(session, exchange, STAND_IN_BYTES).await
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
            if left <= PINGORA_REPLAY_BYTES {
                session.enable_retry_buffering();
            }
            let read = session.read_request_body();
            let read = in_time(read, deadline, limits.body_idle_timeout).await?;
            let read = read.map_err(|error| Stop::Broken(error.into_down()))?;
            let Some(chunk) = read else { break };
            self.filter_body(&mut Some(chunk), false, exchange)?;
        }
        read_past(exchange, deadline).await?;
        exchange.deadline.clear();
        if length > 0 && session.get_retry_buffer().is_none() {
            // Nothing would make Pingora send the body.
            return Err(Stop::Refused(Cause::Internal.into()));
        }
        exchange.finish_held()?;
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
        exchange.begin_piece();
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
                    exchange.finish_held()?;
                    *body = Some(exchange.send_ready()?);
                }
            }
            Body::Ready(_) => {
                *body = Some(if end_of_stream {
                    exchange.send_ready()?
                } else {
                    Bytes::new()
                });
            }
            Body::None => {}
        }
        if end_of_stream {
            exchange.watch_answer();
        }
        Ok(())
    }

    /// Sends the answer for `exchange.refusal`, writes its line, and hears the client out for a moment.
    async fn answer_refusal(&self, session: &mut Session, exchange: &mut Exchange) -> Result<()> {
        if session
            .response_written()
            .is_some_and(|written| !written.status.is_informational())
        {
            return Ok(());
        }
        let Some((cause, answer)) = exchange.answer_refusal() else {
            return Ok(());
        };
        let mut head = ResponseHeader::build(answer.status, Some(6))?;
        for (name, value) in answer.headers() {
            head.insert_header(name, value)?;
        }
        head.insert_header(&REQUEST_ID, exchange.request_id())?;
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
        exchange.settle(Termination::Refused(cause));
        exchange.body = Body::None;
        if unread {
            linger(session, rest).await;
        }
        Ok(())
    }
}

/// The request is with the upstream.
fn outlive_client(session: &mut Session, exchange: &Exchange) {
    if exchange.outlive_client() {
        make_patient(session.as_downstream_mut(), &exchange.deadline);
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
    let upgrades = answer.status == StatusCode::SWITCHING_PROTOCOLS;
    if !upgrades && framing::is_unambiguous_answer(&answer.headers) {
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

/// A forced group's upgrade goes on only to where its messages are judged; elsewhere the request is an ordinary one.
pub(crate) fn may_upgrade(method: &Method, endpoint: Endpoint) -> bool {
    method == Method::GET && matches!(endpoint, Endpoint::Responses | Endpoint::Other)
}

fn announces_body(head: &RequestHeader) -> bool {
    let length = head.headers.get(header::CONTENT_LENGTH);
    head.headers.contains_key(header::TRANSFER_ENCODING)
        || length.is_some_and(|length| length != "0")
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

/// Whether the same bytes can be sent again.
fn is_replayable(session: &mut Session, exchange: &Exchange) -> bool {
    match &exchange.body {
        // Of a body without a length Pingora may have kept too little to begin again; it would wait for the rest forever.
        Body::Ready(_) => {
            session.get_retry_buffer().is_some() || session.as_downstream_mut().is_body_empty()
        }
        Body::Streamed(_) => session.is_body_done() && !session.retry_buffer_truncated(),
        Body::Held(_) => false,
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
