//! One request and its answer as the log knows them: an HTTP exchange, or one response on a WebSocket. Records are built
//! here and nowhere else.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName};
use jiff::Timestamp;
use uuid::Uuid;

use crate::accounting::access_log::{AccessRecord, Millis, Transport};
use crate::accounting::usage::Observed;
use crate::codec::error::{Cause, Outcome};
use crate::codec::service_tier::{Facts, PRIORITY};
use crate::config::ServedTier;
use crate::policy::endpoint::Endpoint;
use crate::policy::in_flight::Places;
use crate::policy::{Group, Order, Policy};
use crate::state::State;
use crate::upstream::Upstream;

/// The longest model that is logged, in bytes.
const MODEL_BYTES: usize = 128;
/// HTTP allows any word of any length.
const METHOD_BYTES: usize = 32;
const UPSTREAM_ID_BYTES: usize = 128;
/// The upstream's own name of a request: OpenAI's, and Anthropic's.
static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
/// A body that says `null` asks for nothing, like one without the member.
const NULL: &str = "<null>";

/// Who asks, and for what: the same for every turn of a connection.
pub struct RequestInfo {
    pub id: Uuid,
    pub client: Option<IpAddr>,
    pub user_agent: Option<String>,
    pub method: http::Method,
    /// Without its query.
    pub path: String,
    pub endpoint: Endpoint,
}

pub struct RequestRecord {
    /// 0 for an HTTP request and for a WebSocket connection itself; the responses on it count from 1.
    pub number: u64,
    /// The policy that decided it, from its first to its last byte.
    pub policy: Arc<Policy>,
    pub key: Option<Arc<str>>,
    pub group: Option<Arc<Group>>,
    /// What is done to set the tier.
    pub order: Option<Order>,
    /// What the client's body says; of a body that passes as it is, also what the upstream gets.
    pub facts: Facts,
    pub request_bytes: u64,
    pub sent: Sent,
    pub answer: Answered,
    /// Held while it runs.
    pub places: Option<Places>,
    pub began: Instant,
    time: Timestamp,
}

/// What went to the upstream in the newest attempt of which anything did.
#[derive(Clone, Default)]
pub struct Sent {
    /// Whether the upstream got a head, and of a held body the body as well: whether it may have acted.
    pub reached: bool,
    /// The tier as read from the bytes of a body that was rewritten, or from the header that was.
    pub tier: Option<String>,
    pub bytes: u64,
    /// Another attempt has begun since.
    outdated: bool,
}

/// What came back.
#[derive(Default)]
pub struct Answered {
    /// The status that the client was sent.
    pub status: Option<u16>,
    pub upstream_status: Option<u16>,
    pub upstream_request_id: Option<String>,
    pub time_to_first_byte: Option<Duration>,
    pub transport: Option<Transport>,
    pub bytes: u64,
}

/// How it ended, as far as the transport knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Termination {
    /// The messages ended as their framing says.
    Whole,
    ClientClosed,
    /// The client left before the answer's end, which was read on without it.
    Outlived,
    UpstreamCut,
    Timeout,
    /// The proxy answered in the upstream's place, for this reason.
    Refused(Cause),
}

/// The tiers of one turn, each as the log has it.
#[derive(Default)]
struct Tiers<'a> {
    client: Option<&'a str>,
    sent: Option<&'a str>,
    served: Option<&'a str>,
    billed: Option<&'a str>,
    billed_by: Option<&'static str>,
    downgraded: bool,
}

impl Sent {
    /// An attempt begins. Until something of its body leaves, all this tells of the one before, on which the upstream may
    /// have acted.
    pub fn begin(&mut self, reached: bool, tier: Option<String>) {
        self.reached |= reached;
        self.tier = self.tier.take().or(tier);
        self.outdated = true;
    }

    /// Something of the body is about to leave. True for the first of it in an attempt.
    pub fn renew(&mut self) -> bool {
        let is_first = std::mem::take(&mut self.outdated);
        if is_first {
            self.bytes = 0;
        }
        is_first
    }

    /// This, as if nothing of a body had been in it.
    pub fn without_bytes(&self) -> Sent {
        Sent {
            bytes: 0,
            ..self.clone()
        }
    }
}

impl RequestRecord {
    pub fn new(number: u64, policy: Arc<Policy>) -> Self {
        Self {
            number,
            policy,
            key: None,
            group: None,
            order: None,
            facts: Facts::default(),
            request_bytes: 0,
            sent: Sent::default(),
            answer: Answered::default(),
            places: None,
            began: Instant::now(),
            time: Timestamp::now(),
        }
    }

    /// The whole of a forced body is on its way. Its tier is what stands in its bytes, or else in the header.
    pub fn sent_whole(&mut self, bytes: u64, tier_in_bytes: Option<&str>) {
        let tier = set_tier(self.order, tier_in_bytes).map(str::to_owned);
        self.sent = Sent {
            reached: true,
            tier,
            bytes,
            outdated: false,
        };
    }

    /// Writes its line and counts it.
    pub fn log(
        &self,
        state: &State,
        arrival: &RequestInfo,
        upstream: Option<&Upstream>,
        ending: Termination,
        observed: &Observed,
    ) {
        let duration = self.began.elapsed();
        let tiers = self.tiers(upstream, observed);
        let model = logged_model(&self.facts)
            .or_else(|| Some(cut(observed.model.as_deref()?, MODEL_BYTES)));
        let cost = state.cost(self.time, model, tiers.billed, observed);
        let record = AccessRecord {
            time: self.time,
            duration_ms: Millis(duration),
            ttfb_ms: self.answer.time_to_first_byte.map(Millis),
            request_id: arrival.id,
            turn: self.number,
            client: arrival.client,
            user_agent: arrival.user_agent.as_deref(),
            key: self.key.as_deref(),
            group: self.group.as_ref().map(|group| &*group.name),
            platform: self.group.as_ref().map(|group| group.platform.as_str()),
            policy: self.policy.revision(),
            method: cut(arrival.method.as_str(), METHOD_BYTES),
            path: &arrival.path,
            endpoint: arrival.endpoint.as_str(),
            transport: self.answer.transport.unwrap_or(Transport::Http),
            model,
            service_tier: tiers.sent,
            service_tier_client: tiers.client,
            service_tier_served: tiers.served,
            service_tier_billed: tiers.billed,
            tier_reason: self.tier_reason(ending),
            tier_billed_by: tiers.billed_by,
            downgraded: tiers.downgraded,
            upstream: upstream.map(|upstream| upstream.config.name.as_str()),
            upstream_status: self.answer.upstream_status,
            upstream_request_id: self.answer.upstream_request_id.as_deref(),
            response_id: observed.response_id.as_deref(),
            status: self.answer.status,
            outcome: self.outcome(ending, observed),
            error: error(ending),
            usage_state: observed.usage_state,
            terminal_event: observed.terminal_event.as_deref(),
            usage: observed.usage,
            cost_usd: cost.map(|cost| cost.to_string()),
            request_bytes: self.request_bytes,
            upstream_request_bytes: self.sent.bytes,
            response_bytes: self.answer.bytes,
        };
        state.log.append(&record);
        state
            .metrics
            .observe(&record, duration, self.answer.time_to_first_byte);
    }

    fn tiers<'a>(&'a self, upstream: Option<&Upstream>, observed: &'a Observed) -> Tiers<'a> {
        let client = self.facts.service_tier.as_ref().map(|tier| tier.as_str());
        if !self.sent.reached {
            return Tiers {
                client,
                ..Tiers::default()
            };
        }
        let sent = match self.order {
            Some(_) => self.sent.tier.as_deref(),
            None => own_tier(&self.facts),
        };
        let served = observed.served_tier.as_deref();
        let trusted =
            upstream.is_some_and(|upstream| upstream.config.served_tier == ServedTier::Trusted);
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

    fn tier_reason(&self, ending: Termination) -> Option<&'static str> {
        if matches!(ending, Termination::Refused(cause) if cause.outcome() == Outcome::Denied) {
            return None;
        }
        Some(tier_reason(self.order, &self.facts))
    }

    fn outcome(&self, ending: Termination, observed: &Observed) -> Outcome {
        match ending {
            Termination::Refused(cause) => cause.outcome(),
            Termination::UpstreamCut => Outcome::UpstreamCut,
            Termination::Timeout => Outcome::Timeout,
            Termination::Outlived => Outcome::ClientClosed,
            // Codex and OpenAI's Python SDK leave at the event that ends the stream, before the end of the message.
            Termination::ClientClosed if observed.terminal_event.is_none() => Outcome::ClientClosed,
            _ if self.answer.status.is_none_or(|status| status >= 400) => Outcome::UpstreamError,
            _ if observed.failed => Outcome::UpstreamError,
            _ if observed.lacks_end => Outcome::UpstreamCut,
            _ => Outcome::Ok,
        }
    }
}

impl Answered {
    /// Takes from the answer's head what the log tells of it.
    pub fn read_head(
        &mut self,
        status: u16,
        headers: &HeaderMap,
        after: Duration,
        transport: Transport,
    ) {
        self.status = Some(status);
        self.upstream_status = Some(status);
        self.time_to_first_byte.get_or_insert(after);
        self.transport = Some(transport);
        self.upstream_request_id = [&X_REQUEST_ID, &REQUEST_ID]
            .iter()
            .find_map(|name| header_text(headers, name, UPSTREAM_ID_BYTES));
    }
}

/// Why a body asks for the tier that it asks for.
pub fn tier_reason(order: Option<Order>, facts: &Facts) -> &'static str {
    match order {
        Some(order) => order.reason.as_str(),
        None if own_tier(facts).is_some() => "client",
        None => "none",
    }
}

/// The tier of a body that goes on as it came.
pub fn own_tier(facts: &Facts) -> Option<&str> {
    let tier = facts.service_tier.as_ref()?.as_str();
    (tier != NULL).then_some(tier)
}

/// The tier of a request that was changed to ask for it: what its bytes say, or else its header.
pub fn set_tier(order: Option<Order>, in_bytes: Option<&str>) -> Option<&str> {
    let in_header = order.is_some_and(|order| order.beta_header);
    in_bytes.or(in_header.then_some(PRIORITY))
}

/// The model that a body names, as it is logged.
pub fn logged_model(facts: &Facts) -> Option<&str> {
    Some(cut(facts.model.as_deref()?, MODEL_BYTES))
}

fn error(ending: Termination) -> Option<&'static str> {
    match ending {
        Termination::Refused(cause) => Some(cause.code()),
        Termination::Timeout => Some(Cause::UpstreamTimeout.code()),
        _ => None,
    }
}

/// `fast` is another name of `priority`, with which newer models answer
/// (<https://platform.openai.com/docs/guides/priority-processing>).
fn canonical(tier: &str) -> &str {
    if tier == "fast" { PRIORITY } else { tier }
}

/// A header as text, cut to a number of bytes.
pub fn header_text(headers: &HeaderMap, name: &HeaderName, most: usize) -> Option<String> {
    let value = headers.get(name)?;
    Some(cut(&String::from_utf8_lossy(value.as_bytes()), most).to_owned())
}

/// The beginning of a text, cut between characters.
pub fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_of_which_nothing_left_hides_none_of_which_something_did() {
        let mut sent = Sent::default();
        sent.begin(true, Some("priority".to_owned()));
        assert!(sent.renew());
        sent.bytes += 5;
        assert!(!sent.renew());
        sent.begin(true, None);
        let told = (sent.reached, sent.tier.as_deref(), sent.bytes);
        assert_eq!(told, (true, Some("priority"), 5));
        assert!(sent.renew());
        assert_eq!(sent.bytes, 0);
    }
}
