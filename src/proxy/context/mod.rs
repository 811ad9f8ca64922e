//! One request on its way through Pingora's phases: where it is, and that its line is written exactly once, whatever
//! happens to it.

mod attempts;
mod body;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use pingora_core::{Error, ErrorType};
use uuid::Uuid;

use crate::accounting::access_log::Transport;
use crate::accounting::record::{RequestInfo, RequestRecord, Termination, header_text};
use crate::accounting::usage::{Observed, ResponseObserver, Usage, is_observed};
use crate::codec::chat_usage_chunk::UsageChunkFilter;
use crate::codec::content_coding::Coding;
use crate::codec::cut;
use crate::codec::error::{Answer, Cause, Refusal};
use crate::config::{ChatStreamUsage, OnClientAbort};
use crate::policy::endpoint::Endpoint;
use crate::policy::{Credential, Decision, Denied, Head};
use crate::proxy::body_pipe::BodyPipe;
use crate::proxy::client_connection::ClientConnection;
use crate::proxy::client_stream::ClientStream;
use crate::proxy::request_body::{BufferedBody, StreamedBody};
use crate::proxy::upstream_request::{HeadEdit, Length, trace_parent};
use crate::proxy::websocket_session::WebSocketSession;
use crate::state::State;
use crate::upstream::connector::control::{AwaitedPhase, StreamControl};
use crate::upstream::{Attempts, Upstream};

/// The longest of each text that a client chooses, in bytes, so that a line stays below 16 KiB even where every byte of
/// it takes six in JSON.
const PATH_BYTES: usize = 1024;
const USER_AGENT_BYTES: usize = 512;

/// How long the line of a background response waits to know whether another process has billed it.
const CLAIM_TIME: Duration = Duration::from_secs(1);

/// A request that is being served; Pingora's context for it.
pub struct RequestContext {
    pub state: Arc<State>,
    pub request_info: RequestInfo,
    /// The client's key, once it was read.
    pub credential: Option<Credential>,
    pub record: RequestRecord,
    pub body: Body,
    /// The connection that it came on; none over HTTP/2.
    pub client: Option<Arc<ClientConnection>>,
    /// The stream that it came on; none over HTTP/1.1.
    pub client_stream: Option<ClientStream>,
    /// The connection of the newest attempt.
    pub stream: Option<Arc<StreamControl>>,
    /// What of the body is on its way to that connection, once a piece of it was.
    pub pipe: Option<BodyPipe>,
    /// When the newest attempt began.
    attempted: Instant,
    /// How long the next piece of a body may take, where Pingora has no limit for it.
    pub body_idle: Option<Duration>,
    /// Why the proxy itself answers, if it does.
    pub refusal: Option<Refusal>,
    pub upstream: Option<Arc<Upstream>>,
    /// The attempts so far, and the address of the newest.
    pub attempts: Attempts,
    pub observer: Option<ResponseObserver>,
    /// What it has seen, once the response has ended.
    observed: Option<Observed>,
    /// The background response that was fetched, until it is asked whether another process has billed it.
    unclaimed: Option<String>,
    /// The client asks for a WebSocket.
    pub upgrade: bool,
    /// The WebSocket, once the upstream has agreed to one whose messages are judged.
    pub websocket: Option<Box<WebSocketSession>>,
    /// All of the client's body has come, or there is none.
    pub body_complete: bool,
    /// The end of its body was told to Pingora without a piece.
    pub trailers_seen: bool,
    /// How deep the body that leaves may be nested: one that was converted is deeper than the client's.
    pub json_depth: usize,
    /// The body goes on as it came, although it was held.
    is_original: bool,
    /// The upstream was asked for a usage chunk that the client did not ask for.
    usage_requested: bool,
    /// Takes that chunk out of the response, where the client is not to see it.
    usage_filter: Option<UsageChunkFilter>,
    /// The upstream refused the tier, and the request is to be sent without it.
    without_tier: bool,
    /// It cannot go over HTTP/2, whatever the upstream speaks: it is a WebSocket, its client knows no chunks, its head could
    /// end a connection that others use, or the upstream has asked for HTTP/1.1.
    pub only_http1: bool,
    /// A pooled connection has ended as the request crossed its end.
    has_met_stale: bool,
    /// More of the response came after its client had left.
    outlived: bool,
    /// When its line was written.
    logged_at: Option<Instant>,
}

/// Where the request's body is.
pub enum Body {
    /// It passes as it comes and is looked at on the way.
    Streamed(Box<StreamedBody>),
    /// It is held, and Pingora drives: no length was announced.
    Buffered(Box<BufferedBody>),
    /// It is known good and goes out whole; kept for another attempt until a response begins.
    Ready(Bytes),
    /// Nothing of it is needed any more, or nobody has looked at it yet.
    None,
}

impl RequestContext {
    /// Of a request that the policy of this moment decides.
    pub fn new(state: &Arc<State>) -> Self {
        let policy = state.policy.current();
        state.metrics.in_flight.inc();
        Self {
            request_info: RequestInfo {
                id: Uuid::now_v7(),
                client: None,
                user_agent: None,
                method: http::Method::GET,
                path: String::new(),
                endpoint: Endpoint::Other,
                models: Vec::new(),
                trace: None,
            },
            credential: None,
            record: RequestRecord::new(0, policy),
            state: state.clone(),
            body: Body::None,
            client: None,
            client_stream: None,
            pipe: None,
            stream: None,
            attempted: Instant::now(),
            body_idle: None,
            refusal: None,
            upstream: None,
            attempts: Attempts::default(),
            observer: None,
            observed: None,
            unclaimed: None,
            upgrade: false,
            websocket: None,
            body_complete: false,
            trailers_seen: false,
            json_depth: state.limits.json_depth,
            is_original: false,
            usage_requested: false,
            usage_filter: None,
            without_tier: false,
            only_http1: false,
            has_met_stale: false,
            outlived: false,
            logged_at: None,
        }
    }

    /// Takes from the request's head what the log tells of it. `peer` is who the connection is with; none over a
    /// UNIX socket.
    pub fn read_head(&mut self, head: &Head<'_>, peer: Option<IpAddr>) {
        let request_info = &mut self.request_info;
        request_info.method = head.method.clone();
        request_info.path = logged_path(head.path);
        let trusted = &self.state.config.trusted_proxies;
        request_info.client = trusted.client(peer, head.headers);
        let traces = self.state.traces.as_ref();
        request_info.trace = traces.map(|traces| {
            let parent = trace_parent(head.headers);
            traces.begin(request_info.id, parent)
        });
        request_info.user_agent = header_text(head.headers, &header::USER_AGENT, USER_AGENT_BYTES);
    }

    /// The policy does not let it pass.
    pub fn deny(&mut self, denied: Denied) -> Refusal {
        self.request_info.endpoint = denied.endpoint;
        self.record.key = denied.key;
        self.record.client_key = denied.credential.map(|credential| credential.key);
        self.record.group = denied.group;
        denied.cause.into()
    }

    /// The policy lets it pass, with a head of so many bytes.
    ///
    /// # Errors
    /// Where it cannot be served for now, or its head is too large.
    pub fn admit(&mut self, decision: Decision, head_bytes: u64) -> Result<(), Refusal> {
        let state = &self.state;
        self.request_info.endpoint = decision.endpoint;
        self.request_info.models = decision.models;
        self.record.key = decision.key;
        self.record.action = decision.action;
        self.record.client_beta = decision.client_beta;
        let credential = self.credential.insert(decision.credential);
        self.record.client_key = Some(credential.key.clone());
        self.upstream = state.upstream(&decision.group.upstream.name).cloned();
        let upstream = self.upstream.as_ref();
        self.record.upstream_key = upstream.and_then(|upstream| upstream.credential_key());
        let group = self.record.group.insert(decision.group);
        if head_bytes > state.limits.header {
            return Err(Cause::HeaderTooLarge.into());
        }
        self.record.permits = Some(state.in_flight.enter(group, &credential.key.digest)?);
        if state.log.is_full() {
            return Err(Cause::AccessLogUnavailable.into());
        }
        Ok(())
    }

    /// Whether the newest attempt runs over HTTP/2.
    pub fn is_http2_upstream(&self) -> bool {
        let stream = self.stream.as_deref();
        stream.is_some_and(StreamControl::is_http2)
    }

    /// A piece of the body on its way to the newest attempt's connection. Over HTTP/2 there is no pipe.
    pub fn in_pipe(&mut self, piece: Bytes) -> Bytes {
        match self.is_http2_upstream() {
            true => piece,
            false => self.pipe.get_or_insert_default().put(piece),
        }
    }

    /// What makes of the client's head the one that the upstream is to get.
    ///
    /// # Errors
    /// Where it is not known where it goes.
    pub fn head_edit<'a>(&'a self, target: &'a [u8]) -> Result<HeadEdit<'a>, Box<Error>> {
        let (Some(upstream), Some(origin)) = (&self.upstream, self.attempts.origin()) else {
            return Error::e_explain(ErrorType::InternalError, "no upstream was decided");
        };
        if matches!(self.body, Body::None) {
            // Without it nothing would check that the tier is in what leaves.
            return Error::e_explain(ErrorType::InternalError, "a body that was given up");
        }
        Ok(HeadEdit {
            upstream,
            origin,
            target,
            credential: self.credential.as_ref(),
            endpoint: self.request_info.endpoint,
            action: self.record.action,
            client_beta: self.record.client_beta,
            upgrade: self.upgrade,
            is_http2: self.is_http2_upstream(),
            trace: self.request_info.trace,
            length: match &self.body {
                Body::Ready(bytes) if !self.is_original => Length::Known(bytes.len()),
                Body::Buffered(held) if !held.may_stay() => Length::Unknown,
                Body::Buffered(_) | Body::Ready(_) | Body::Streamed(_) | Body::None => Length::Same,
            },
            is_held: matches!(self.body, Body::Ready(_) | Body::Buffered(_)),
        })
    }

    /// What names it in the header `X-Tiergate-Request-Id`.
    pub fn request_id(&self) -> HeaderValue {
        let mut text = Uuid::encode_buffer();
        let id = self.request_info.id.hyphenated().encode_lower(&mut text);
        // It is plain ASCII.
        HeaderValue::from_str(id).expect("a UUID can stand in a header")
    }

    /// Whether responses to this request are read for usage and tier.
    fn is_observed(&self) -> bool {
        let info = &self.request_info;
        // Of a WebSocket it is the messages that are read.
        !self.upgrade && is_observed(info.endpoint, &info.method, info.path.as_bytes())
    }

    /// The request is with the upstream, which may charge for it. Should the client leave now, the response is read on where
    /// the upstream's settings say so.
    pub fn ignore_client_abort(&self) {
        let (Some(upstream), Some(client)) = (&self.upstream, &self.client) else {
            return;
        };
        if self.is_observed() && upstream.config.on_client_abort == OnClientAbort::Drain {
            client.ignore_abort(upstream.config.abort_drain);
        }
    }

    /// Whether the client has left and its response is read on.
    pub fn has_client_left(&self) -> bool {
        let client = self.client.as_deref();
        client.is_some_and(ClientConnection::has_client_left)
    }

    /// Looks at the next piece of the response.
    pub fn observe(&mut self, bytes: &[u8]) {
        self.record.answer.bytes += bytes.len() as u64;
        let Some(observer) = &mut self.observer else {
            return;
        };
        // Many clients leave at the event that ends a stream, and have then left in good order.
        let client = self.client.as_deref();
        let client = client.filter(|_| !observer.has_terminal_event());
        self.outlived |= client.is_some_and(ClientConnection::has_client_left);
        observer.feed(bytes);
        if let Some(client) = client.filter(|_| observer.has_terminal_event()) {
            client.response_complete();
        }
    }

    /// Whether the client may get less of the response than the upstream sends.
    pub fn hides_usage(&self) -> bool {
        self.usage_filter.is_some()
    }

    /// Takes out of a piece of the response what the client is not to see. `ends`: it is the last one.
    pub fn hide_usage(&mut self, body: &mut Option<Bytes>, ends: bool) {
        let Some(filter) = &mut self.usage_filter else {
            return;
        };
        let passed = filter.feed(body.take().unwrap_or_default());
        let rest = if ends { self.rest_of_hidden() } else { None };
        *body = Some(match rest {
            Some(rest) => [passed, rest].concat().into(),
            None => passed,
        });
    }

    /// Has a piece of a response whose request is still to come tell when it has left.
    pub fn follow_early(&self, body: &mut Option<Bytes>) {
        if let (Some(stream), false) = (&self.client_stream, self.body_complete) {
            *body = body.take().map(|piece| stream.send(piece));
        }
    }

    /// What the client is still to see of the response at its end, if anything was held back.
    pub fn rest_of_hidden(&mut self) -> Option<Bytes> {
        let rest = self.usage_filter.take()?.finish();
        (!rest.is_empty()).then_some(rest)
    }

    /// The response has ended, and what is left is for the client to read.
    pub fn end_response(&mut self) {
        if self.websocket.is_some() {
            return;
        }
        self.enter(AwaitedPhase::Idle, None);
        self.settle();
        if self.unclaimed.is_some() && self.body_complete {
            // The server that several processes bill by is asked when the response is whole.
            self.record.permits = None;
            return;
        }
        // Nor is a client to have the end of what is not in the log; and it may ask again at once.
        self.finish(self.termination());
    }

    /// What the response has used, once that is told.
    pub fn final_usage(&self) -> Option<Usage> {
        let streamed = self.observer.as_ref();
        let streamed = streamed.filter(|observer| observer.has_terminal_event());
        let settled = self.observed.as_ref().map(|observed| observed.usage);
        settled.or(streamed.map(ResponseObserver::usage))
    }

    /// The response has told all that it will.
    pub fn settle(&mut self) {
        if let Some(observer) = self.observer.take() {
            let observed = self.observed.insert(observer.finish());
            let ledger = self.state.ledger();
            let upstream = self.upstream.as_ref();
            let name = upstream.map_or("", |upstream| &upstream.config.name);
            self.unclaimed = self
                .record
                .settle(&ledger, &self.request_info, name, observed);
        }
    }

    /// Asks whether a background response that was fetched is billed here, where other processes may have billed it. No thread
    /// that serves requests waits for it.
    pub async fn claim(&mut self) {
        self.settle();
        let Some(id) = self.unclaimed.take() else {
            return;
        };
        let state = self.state.clone();
        let claim = tokio::task::spawn_blocking(move || state.claim(&id));
        let claimed = tokio::time::timeout(CLAIM_TIME, claim).await;
        if matches!(claimed, Ok(Ok(false))) {
            self.record.created_by = None;
        }
    }

    /// The proxy's own response for `refusal`, which the client is now sent.
    pub fn refusal_response(&mut self) -> Option<(Cause, Answer)> {
        let refusal = self.refusal.as_ref()?;
        let (info, cause) = (&self.request_info, refusal.cause);
        let answer = refusal.answer(info.endpoint.protocol(), Some(&info.id.to_string()));
        self.record.permits = None;
        self.record.answer.status = Some(answer.status);
        Some((cause, answer))
    }

    /// The head of a response is here: what the line tells of it, and who looks at its body.
    pub fn record_response_head(&mut self, status: StatusCode, headers: &HeaderMap) {
        let status = status.as_u16();
        let transport = transport(status, headers);
        let time = self.record.began.elapsed();
        let answer = &mut self.record.answer;
        answer.read_head(status, headers, time, transport);
        if self.has_client_left() {
            // Nobody got it.
            self.record.answer.status = None;
        }
        if let Some(upstream) = &self.upstream {
            self.attempts.record_response(upstream, status);
            let hides = upstream.config.chat_stream_usage == ChatStreamUsage::RequestAndHide;
            if hides && self.usage_requested && status < 300 {
                self.usage_filter = Some(UsageChunkFilter::new(Coding::sole(headers)));
            }
        }
        if status != 101 {
            let event_stream = transport == Transport::Sse;
            let info = &self.request_info;
            let request = (info.endpoint, &info.method, info.path.as_bytes());
            self.observer = ResponseObserver::for_request(request, event_stream, headers);
            if let Some(observer) = &mut self.observer
                && self.record.facts.background == Some(true)
            {
                observer.expect_background();
            }
        }
        self.release_body();
    }

    /// The upstream has agreed to a WebSocket. From here on this is the connection; its responses are turns of their own.
    pub fn begin_websocket(&mut self) -> Result<(), Refusal> {
        let Some(credential) = self.credential.clone() else {
            return Err(Cause::Internal.into());
        };
        // It is the responses on it that count.
        self.record.permits = None;
        self.record.action = None;
        let (upstream, info) = (self.upstream.clone(), self.request_info.clone());
        let websocket =
            WebSocketSession::new(&self.state, upstream, credential, info, &self.record)?;
        self.websocket = Some(Box::new(websocket));
        Ok(())
    }

    /// How it ended where nobody said: the response was whole, or the proxy refused.
    pub fn termination(&self) -> Termination {
        self.failure_context().termination()
    }

    /// How it ended where the client had left before.
    fn termination_without_client(&self) -> Option<Termination> {
        match self.has_client_left() {
            true if self.outlived => Some(Termination::CompletedAfterAbort),
            true => Some(Termination::ClientClosed),
            false => None,
        }
    }

    /// All of the client's body has come.
    pub fn complete_body(&mut self) {
        self.body_complete = true;
        if let Some(client) = &self.client {
            client.set_awaits_body(false);
        }
    }

    /// A piece of the client's body is awaited while the upstream's connection is there.
    pub fn await_body(&self) {
        self.enter(AwaitedPhase::RequestBody, self.body_idle);
    }

    /// The request is with the upstream.
    pub fn await_response(&self) {
        if self.websocket.is_some() {
            return;
        }
        if self.record.answer.upstream_status.is_some() {
            return self.await_more();
        }
        let upstream = self.upstream.as_ref();
        let limit = upstream.map(|upstream| upstream.config.response_timeout);
        self.enter(AwaitedPhase::ResponseHead, limit);
    }

    /// Something of the response has come. Where the client is to send more meanwhile and nothing else measures its time, it is
    /// the client who is waited for: an upstream that has begun may need the rest.
    pub fn await_more(&self) {
        if !self.body_complete && self.body_idle.is_some() {
            return self.await_body();
        }
        if let Some(upstream) = &self.upstream {
            let limit = Some(upstream.config.idle_timeout);
            self.enter(AwaitedPhase::ResponseBody, limit);
        }
    }

    /// Whether the request's line is written.
    pub fn is_logged(&self) -> bool {
        self.logged_at.is_some()
    }

    pub fn logged_at(&self) -> Option<Instant> {
        self.logged_at
    }

    /// The request is to have no line, and is not counted: a health check.
    pub fn leave_unlogged(&mut self) {
        if self.logged_at.replace(Instant::now()).is_none() {
            self.state.metrics.in_flight.dec();
        }
    }

    /// Writes the request's line and counts it. A second call does nothing.
    pub fn finish(&mut self, termination: Termination) {
        if self.logged_at.replace(Instant::now()).is_some() {
            return;
        }
        if self.body_complete {
            // While a request still comes, its connection upstream is not free either.
            self.record.permits = None;
        }
        let termination = self.termination_without_client().unwrap_or(termination);
        self.state.metrics.in_flight.dec();
        self.drop_body();
        let termination = match &mut self.websocket {
            Some(websocket) => websocket.finish(termination),
            None => termination,
        };
        self.settle();
        if let Some(id) = self.unclaimed.take() {
            self.state.background.note_settled(&id);
        }
        let observed = self.observed.take().unwrap_or_default();
        let refusal = self.refusal.as_ref();
        let is_refused = refusal.is_some_and(|refusal| refusal.cause.status() < 500);
        // Of a held body that is refused nothing has left.
        let has_tried = self.attempts.has_begun() && (self.record.sent.reached || !is_refused);
        let tried = self.upstream.as_deref().filter(|_| has_tried);
        let tried = tried.map(|upstream| &*upstream.config);
        let ledger = self.state.ledger();
        self.record
            .log(&ledger, &self.request_info, tried, termination, &observed);
    }
}

impl Drop for RequestContext {
    /// For a request whose task ended without a word: a panic in a filter, a deadline, the end of the process. All
    /// others have settled by now.
    fn drop(&mut self) {
        let termination = match self.termination() {
            Termination::Whole if self.state.is_drain_over() => match self.record.sent.reached {
                true => Termination::Drained,
                false => Termination::Refused(Cause::Draining),
            },
            Termination::Whole if self.record.answer.upstream_status.is_some() => {
                Termination::UpstreamCut
            }
            Termination::Whole => Termination::ClientClosed,
            other => other,
        };
        self.finish(termination);
    }
}

/// The target and the headers, as HTTP/1.1 writes them.
pub(crate) fn head_bytes(target: &[u8], headers: &HeaderMap) -> u64 {
    const SEPARATORS: usize = ": \r\n".len();
    let headers = headers.iter();
    let headers = headers.map(|(name, value)| name.as_str().len() + value.len() + SEPARATORS);
    (target.len() + headers.sum::<usize>()) as u64
}

/// The part of a request's target that is compared and logged.
pub(crate) fn without_query(target: &[u8]) -> &[u8] {
    path_and_query(target).0
}

/// A request's target, taken apart at its question mark.
pub(crate) fn path_and_query(target: &[u8]) -> (&[u8], &[u8]) {
    match target.iter().position(|byte| *byte == b'?') {
        Some(at) => (&target[..at], &target[at + 1..]),
        None => (target, b""),
    }
}

pub(crate) fn logged_path(path: &[u8]) -> String {
    cut(&String::from_utf8_lossy(path), PATH_BYTES).to_owned()
}

fn transport(status: u16, headers: &HeaderMap) -> Transport {
    const EVENT_STREAM: &[u8] = b"text/event-stream";
    let kind = headers.get(header::CONTENT_TYPE);
    let start = kind.and_then(|kind| kind.as_bytes().get(..EVENT_STREAM.len()));
    let event_stream = start.is_some_and(|start| start.eq_ignore_ascii_case(EVENT_STREAM));
    match (status, event_stream) {
        (101, _) => Transport::WebSocket,
        (_, true) => Transport::Sse,
        (_, false) => Transport::Http,
    }
}
