//! One request from its head to its line in the access log: what is known of it, and the one place where its record is
//! built. Pingora hands it from phase to phase as the context.

use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use jiff::Timestamp;
use pingora_proxy::Session;
use uuid::Uuid;

use crate::access_log::{AccessRecord, Millis, Outcome, Transport, UsageState};
use crate::body::{HeldBody, StreamedBody};
use crate::config::ServedTier;
use crate::connection::{Deadline, Waiting};
use crate::endpoint::{Endpoint, Protocol};
use crate::error::{Cause, Refusal};
use crate::policy::{CredentialHeader, Group, Order, Policy};
use crate::service_tier::{Facts, PRIORITY};
use crate::state::State;
use crate::upstream::Upstream;
use crate::usage::{Observed, ResponseObserver};

/// The longest of each text that a client or an upstream chooses, in bytes, so that a line stays below 16 KiB even where
/// every byte of it takes six in JSON.
const PATH_BYTES: usize = 1024;
const USER_AGENT_BYTES: usize = 512;
const MODEL_BYTES: usize = 128;
const UPSTREAM_ID_BYTES: usize = 128;

/// A request that is being served.
pub struct Exchange {
    pub state: Arc<State>,
    /// The policy that decides the request from its first to its last byte.
    pub policy: Arc<Policy>,
    pub deadline: Arc<Deadline>,
    pub id: Uuid,
    began: Instant,
    time: Timestamp,
    client: Option<IpAddr>,
    user_agent: Option<String>,
    method: http::Method,
    path: String,
    pub key: Option<Arc<str>>,
    pub group: Option<Arc<Group>>,
    pub endpoint: Endpoint,
    /// What is done to the request to set its tier.
    pub order: Option<Order>,
    /// The header in which the client sent its key.
    pub credential: CredentialHeader,
    pub body: Body,
    /// How long the next piece of a body that Pingora reads may take, where Pingora has no limit for it.
    pub body_idle: Option<Duration>,
    /// Why the proxy itself answers, if it does.
    pub refusal: Option<Refusal>,
    /// What the client's body says; of a body that passes as it is, also what the upstream gets.
    pub facts: Facts,
    pub request_bytes: u64,
    pub sent: Sent,
    pub upstream: Option<Arc<Upstream>>,
    /// The turn of the first address that was tried, and how many were.
    pub turn: usize,
    pub attempts: usize,
    /// The upstream's connection, where no other request uses it.
    pub socket: Option<RawFd>,
    pub answer: Answered,
    settled: bool,
}

/// Where the request's body is.
pub enum Body {
    /// It passes as it comes and is looked at on the way.
    Streamed(Box<StreamedBody>),
    /// It is held, and Pingora drives: no length was announced.
    Held(Box<HeldBody>),
    /// It is known good and goes out whole; kept for another attempt until an answer begins.
    Ready(Bytes),
    /// There is none, or it is gone.
    None,
}

/// What went to the upstream in the newest attempt.
#[derive(Default)]
pub struct Sent {
    /// Whether the upstream got a head, and of a held body the body as well: whether it may have acted.
    pub reached: bool,
    /// The tier as read from the bytes that went out.
    pub tier: Option<String>,
    pub bytes: u64,
}

/// What came back.
#[derive(Default)]
pub struct Answered {
    /// The status that the client was sent.
    pub status: Option<u16>,
    pub upstream_status: Option<u16>,
    upstream_request_id: Option<String>,
    time_to_first_byte: Option<Duration>,
    transport: Option<Transport>,
    pub observer: Option<ResponseObserver>,
    pub bytes: u64,
}

/// How the request ended, as far as the transport knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Both messages ended as their framing says.
    Whole,
    ClientClosed,
    UpstreamCut,
    Timeout,
    /// The proxy answered in the upstream's place, for this reason.
    Refused(Cause),
}

impl Exchange {
    pub fn new(state: &Arc<State>) -> Self {
        state.metrics.in_flight.inc();
        Self {
            policy: state.policy.current(),
            state: state.clone(),
            deadline: Deadline::current(),
            id: Uuid::now_v7(),
            began: Instant::now(),
            time: Timestamp::now(),
            client: None,
            user_agent: None,
            method: http::Method::GET,
            path: String::new(),
            key: None,
            group: None,
            endpoint: Endpoint::Other,
            order: None,
            credential: CredentialHeader::Authorization,
            body: Body::None,
            body_idle: None,
            refusal: None,
            facts: Facts::default(),
            request_bytes: 0,
            sent: Sent::default(),
            upstream: None,
            turn: 0,
            attempts: 0,
            socket: None,
            answer: Answered::default(),
            settled: false,
        }
    }

    /// Takes from the request's head what the log tells of it.
    pub fn read_head(&mut self, session: &Session) {
        let head = session.req_header();
        self.method = head.method.clone();
        let path = head
            .raw_path()
            .split(|byte| *byte == b'?')
            .next()
            .unwrap_or_default();
        self.path = cut(&String::from_utf8_lossy(path), PATH_BYTES).to_owned();
        self.client = session
            .client_addr()
            .and_then(|address| address.as_inet())
            .map(|address| address.ip());
        self.user_agent = text(&head.headers, "user-agent", USER_AGENT_BYTES);
    }

    pub fn method(&self) -> &http::Method {
        &self.method
    }

    pub fn protocol(&self) -> Protocol {
        self.endpoint.protocol()
    }

    /// Whether answers to this request are read for usage and tier.
    pub fn is_observed(&self) -> bool {
        self.endpoint != Endpoint::Other
    }

    /// A head is about to go out. A body that passes as it comes will come from its beginning.
    pub fn begin_attempt(&mut self) {
        if let Body::Streamed(body) = &mut self.body {
            body.restart();
            self.request_bytes = 0;
        }
        let reached = !matches!(self.body, Body::Held(_));
        self.sent = Sent {
            reached,
            ..Sent::default()
        };
        if reached && self.order.is_some_and(|order| order.beta_header) {
            self.sent.tier = Some(PRIORITY.to_owned());
        }
    }

    /// The whole of a forced body has gone out. Its tier is what stands in its bytes.
    pub fn sent_whole(&mut self, bytes: &Bytes, tier_in_bytes: Option<&str>) {
        self.sent.reached = true;
        self.sent.bytes = bytes.len() as u64;
        let in_header = self
            .order
            .is_some_and(|order| order.beta_header)
            .then_some(PRIORITY);
        self.sent.tier = tier_in_bytes.or(in_header).map(str::to_owned);
    }

    /// The head of the upstream's answer is here.
    pub fn read_answer(&mut self, status: u16, headers: &HeaderMap) {
        self.answer.upstream_status = Some(status);
        self.answer.status = Some(status);
        self.answer
            .time_to_first_byte
            .get_or_insert(self.began.elapsed());
        self.answer.upstream_request_id = text(headers, "x-request-id", UPSTREAM_ID_BYTES)
            .or_else(|| text(headers, "request-id", UPSTREAM_ID_BYTES));
        let event_stream = headers.get(http::header::CONTENT_TYPE).is_some_and(|kind| {
            kind.as_bytes()
                .to_ascii_lowercase()
                .starts_with(b"text/event-stream")
        });
        self.answer.transport = Some(if event_stream {
            Transport::Sse
        } else {
            Transport::Http
        });
        if self.is_observed() && self.method == http::Method::POST {
            self.answer.observer = ResponseObserver::new(self.endpoint, event_stream, headers);
        }
    }

    /// How it ended where nobody said: the answer was whole, or the proxy refused.
    pub fn ending(&self) -> Ending {
        match &self.refusal {
            Some(refusal) => Ending::Refused(refusal.cause),
            None if self.deadline.has_passed_for_body() => Ending::Refused(Cause::RequestTimeout),
            None if self.deadline.has_passed() => Ending::Timeout,
            None => Ending::Whole,
        }
    }

    /// Pingora now waits for a piece of the client's body.
    pub fn await_body(&self) {
        let left = self
            .state
            .limits
            .body_timeout
            .saturating_sub(self.began.elapsed());
        let limit = self.body_idle.map_or(left, |idle| idle.min(left));
        self.deadline.set(Waiting::ForBody, limit);
    }

    /// Writes the request's one line and counts it. A second call does nothing.
    pub fn settle(&mut self, ending: Ending) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        self.state.metrics.in_flight.dec();
        if let Body::Streamed(body) = std::mem::replace(&mut self.body, Body::None) {
            self.facts = body.finish();
        }
        let observed = self
            .answer
            .observer
            .take()
            .map(ResponseObserver::finish)
            .unwrap_or_default();
        let duration = self.began.elapsed();
        let time = self.time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let record = self.record(&time, duration, ending, &observed);
        self.state.log.append(&record);
        self.state
            .metrics
            .observe(&record, duration, self.answer.time_to_first_byte);
    }

    fn record<'a>(
        &'a self,
        time: &'a str,
        duration: Duration,
        ending: Ending,
        observed: &'a Observed,
    ) -> AccessRecord<'a> {
        let tiers = self.tiers(observed);
        AccessRecord {
            event_id: (self.id, 0),
            time,
            duration_ms: Millis(duration),
            ttfb_ms: self.answer.time_to_first_byte.map(Millis),
            request_id: self.id,
            turn: 0,
            client: self.client,
            user_agent: self.user_agent.as_deref(),
            key: self.key.as_deref(),
            group: self.group.as_ref().map(|group| &*group.name),
            platform: self.group.as_ref().map(|group| group.platform.as_str()),
            policy: self.policy.revision(),
            method: self.method.as_str(),
            path: &self.path,
            endpoint: self.endpoint.as_str(),
            transport: self.answer.transport.unwrap_or(Transport::Http),
            model: self
                .facts
                .model
                .as_deref()
                .or(observed.model.as_deref())
                .map(|model| cut(model, MODEL_BYTES)),
            service_tier: tiers.sent,
            service_tier_client: tiers.client,
            service_tier_served: tiers.served,
            service_tier_billed: tiers.billed,
            tier_reason: self.tier_reason(ending),
            tier_billed_by: tiers.billed_by,
            downgraded: tiers.downgraded,
            upstream: self.upstream_name(),
            upstream_status: self.answer.upstream_status,
            upstream_request_id: self.answer.upstream_request_id.as_deref(),
            response_id: observed.response_id.as_deref(),
            status: self.answer.status,
            outcome: self.outcome(ending, observed),
            error: self.error(ending),
            usage_state: if self.sent.reached {
                observed.usage_state
            } else {
                UsageState::None
            },
            terminal_event: observed.terminal_event.as_deref(),
            usage: observed.usage,
            cost_usd: None,
            request_bytes: self.request_bytes,
            upstream_request_bytes: self.sent.bytes,
            response_bytes: self.answer.bytes,
        }
    }

    fn tiers<'a>(&'a self, observed: &'a Observed) -> Tiers<'a> {
        let client = self.facts.service_tier.as_ref().map(|tier| tier.as_str());
        if !self.sent.reached {
            return Tiers {
                client,
                ..Tiers::default()
            };
        }
        let sent = match self.order {
            Some(_) => self.sent.tier.as_deref(),
            // `null` asks for nothing, like no member at all.
            None => client.filter(|tier| *tier != "<null>"),
        };
        let served = observed.served_tier.as_deref();
        let trusted = self
            .upstream
            .as_ref()
            .is_some_and(|upstream| upstream.config.served_tier == ServedTier::Trusted);
        let by_served = trusted && served.is_some();
        let billed = if by_served { served } else { sent };
        Tiers {
            client,
            sent,
            served,
            billed: billed.map(canonical),
            billed_by: Some(if by_served { "served" } else { "sent" }),
            downgraded: by_served
                && sent.map(canonical) == Some(PRIORITY)
                && served.map(canonical) != Some(PRIORITY),
        }
    }

    fn tier_reason(&self, ending: Ending) -> Option<&'static str> {
        match (self.order, &self.facts.service_tier) {
            _ if matches!(ending, Ending::Refused(cause) if cause.outcome() == Outcome::Denied) => {
                None
            }
            (Some(order), _) => Some(order.reason.as_str()),
            (None, Some(tier)) if tier.as_str() != "<null>" => Some("client"),
            (None, _) => Some("none"),
        }
    }

    fn upstream_name(&self) -> Option<&str> {
        let upstream = self.upstream.as_ref()?;
        (self.sent.reached || self.attempts > 0).then_some(upstream.config.name.as_str())
    }

    fn outcome(&self, ending: Ending, observed: &Observed) -> Outcome {
        match ending {
            Ending::Refused(cause) => cause.outcome(),
            Ending::ClientClosed => Outcome::ClientClosed,
            Ending::UpstreamCut => Outcome::UpstreamCut,
            Ending::Timeout => Outcome::Timeout,
            Ending::Whole if self.answer.status.is_none_or(|status| status >= 400) => {
                Outcome::UpstreamError
            }
            Ending::Whole if observed.failed => Outcome::UpstreamError,
            Ending::Whole if observed.lacks_end => Outcome::UpstreamCut,
            Ending::Whole => Outcome::Ok,
        }
    }

    fn error(&self, ending: Ending) -> Option<&'static str> {
        match ending {
            Ending::Refused(cause) => Some(cause.code()),
            Ending::Timeout => Some(Cause::UpstreamTimeout.code()),
            _ => None,
        }
    }
}

/// The tiers of one request, each as the log has it.
#[derive(Default)]
struct Tiers<'a> {
    client: Option<&'a str>,
    sent: Option<&'a str>,
    served: Option<&'a str>,
    billed: Option<&'a str>,
    billed_by: Option<&'static str>,
    downgraded: bool,
}

/// `fast` is another name of `priority`; newer models answer with it
/// (<https://platform.openai.com/docs/guides/priority-processing>).
fn canonical(tier: &str) -> &str {
    if tier == "fast" { PRIORITY } else { tier }
}

impl Drop for Exchange {
    /// For a request whose task ended without a word: a panic in a filter, a deadline, the end of the process. All
    /// others have settled by now.
    fn drop(&mut self) {
        let ending = match self.ending() {
            Ending::Whole if self.answer.upstream_status.is_some() => Ending::UpstreamCut,
            Ending::Whole => Ending::ClientClosed,
            other => other,
        };
        self.settle(ending);
    }
}

/// A header as text, cut to a number of bytes.
fn text(headers: &HeaderMap, name: &str, most: usize) -> Option<String> {
    let value = headers.get(name)?;
    Some(cut(&String::from_utf8_lossy(value.as_bytes()), most).to_owned())
}

/// The beginning of a text, cut between characters.
fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}
