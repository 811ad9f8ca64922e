//! One request and its answer as the log knows them: an HTTP exchange, or one response on a WebSocket. Records are built
//! here and nowhere else.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName};
use jiff::Timestamp;
use rust_decimal::Decimal;
use uuid::Uuid;

use crate::accounting::access_log::{AccessLog, AccessRecord, Millis, Transport};
use crate::accounting::background::{BackgroundCreate, BackgroundResponses, background_id};
use crate::accounting::metrics::Metrics;
use crate::accounting::prices::Prices;
use crate::accounting::redaction::{KnownKeys, Search, redacted};
use crate::accounting::store::Store;
use crate::accounting::traces::Traces;
use crate::accounting::usage::{Observed, Usage, UsageState};
use crate::codec::cut;
use crate::codec::error::{Cause, Outcome};
use crate::codec::json::CAPTURE_BYTES;
use crate::codec::service_tier::{PRIORITY, RequestFields, canonical, is_fast};
use crate::codec::trace_context::TraceContext;
use crate::config::{ServedTier, Upstream};
use crate::policy::api_key::{RequestKey, key_id};
use crate::policy::budget::Budgets;
use crate::policy::endpoint::{Endpoint, response_id_in_path};
use crate::policy::in_flight::InFlightPermits;
use crate::policy::{ClientBeta, Group, Policy, TierAction};

/// The longest model, id or error that is logged, in bytes.
const TEXT_BYTES: usize = 128;
/// The longest tier that is logged, in bytes.
const TIER_BYTES: usize = 64;
/// HTTP allows any word of any length.
const METHOD_BYTES: usize = 32;
/// The longest id of an upstream's that is searched for credentials, in bytes, as long as what is kept of a body's texts.
const SEARCHED_BYTES: usize = CAPTURE_BYTES;
/// The upstream's own name of a request: OpenAI's, and Anthropic's.
static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// Who asks, and for what: the same for every turn of a connection.
#[derive(Clone)]
pub struct RequestInfo {
    /// Id of the request, a UUIDv7.
    pub id: Uuid,
    /// IP address of the client.
    pub client: Option<IpAddr>,
    /// The client's `user-agent`.
    pub user_agent: Option<String>,
    /// HTTP method of the request.
    pub method: http::Method,
    /// Without its query.
    pub path: String,
    /// Kind of endpoint that the path names.
    pub endpoint: Endpoint,
    /// Models that path and query name.
    pub models: Vec<String>,
    /// Its span, where spans are sent anywhere.
    pub trace: Option<TraceContext>,
}

/// All that is known of one request or one response on a WebSocket; its line in the access log is made of it.
pub struct RequestRecord {
    /// 0 for an HTTP request and for a WebSocket connection itself; the responses on it count from 1.
    pub number: u64,
    /// The policy that decided it, from its first to its last byte.
    pub policy: Arc<Policy>,
    /// Name of the key, where it is known.
    pub key: Option<Arc<str>>,
    /// The key that the request came with, known or not.
    pub client_key: Option<RequestKey>,
    /// The key that went upstream in its place, if another did.
    pub upstream_key: Option<RequestKey>,
    /// Group of the key, where it is known.
    pub group: Option<Arc<Group>>,
    /// What is done to set the tier.
    pub action: Option<TierAction>,
    /// What the client's own fast-mode token is to the upstream.
    pub client_beta: ClientBeta,
    /// What the client's body says; of a body that passes as it is, also what the upstream gets.
    pub facts: RequestFields,
    /// Bytes of the body that came from the client.
    pub request_bytes: u64,
    /// What the upstream was sent.
    pub sent: Sent,
    /// What the upstream and the client were answered.
    pub answer: Answered,
    /// The upstream refused the tier in an attempt after which another one was made without it.
    pub tier_refused: bool,
    /// The protocols that were translated, such as `messages>responses`, and what was left out in that.
    pub bridge: Option<(&'static str, String)>,
    /// The upstream's name of the model, where requests are translated.
    pub model_upstream: Option<String>,
    /// Who created the response that it fetched, where that is billed by this record.
    pub created_by: Option<BackgroundCreate>,
    /// Held while it runs.
    pub permits: Option<InFlightPermits>,
    /// When it began, on the monotonic clock, for durations.
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
    /// Bytes of the body that were sent.
    pub bytes: u64,
    /// Another attempt has begun since.
    outdated: bool,
}

/// What came back.
#[derive(Clone, Default)]
pub struct Answered {
    /// The status that the client was sent.
    pub status: Option<u16>,
    /// HTTP status of the upstream's response.
    pub upstream_status: Option<u16>,
    /// The upstream's `x-request-id` or `request-id`.
    pub upstream_request_id: Option<String>,
    /// Time from the request's beginning to the first byte of the upstream's response.
    pub time_to_first_byte: Option<Duration>,
    /// How the response was carried; none before there is one.
    pub transport: Option<Transport>,
    /// Bytes of the body that came from the upstream.
    pub bytes: u64,
}

/// How it ended, as far as the transport knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Termination {
    /// The messages ended as their framing says.
    Whole,
    /// The client closed the connection before the end.
    ClientClosed,
    /// The client left before the answer's end, which was read on without it.
    CompletedAfterAbort,
    /// The upstream closed or reset the connection before the response's end.
    UpstreamCut,
    /// The request or the response took longer than a time limit allows.
    Timeout,
    /// The process came to its end while the upstream was still working on the request.
    Drained,
    /// The proxy answered in the upstream's place, for this reason.
    Refused(Cause),
}

/// What records are written to, and what they are priced by.
pub struct Ledger<'a> {
    /// The log that gets a line for each record.
    pub log: &'a AccessLog,
    /// The metrics that count each record.
    pub metrics: &'a Metrics,
    /// The price file in force; none where none is configured.
    pub prices: Option<Arc<Prices>>,
    /// Responses that run in the background and have not been billed.
    pub background: &'a BackgroundResponses,
    /// What has been spent of the groups' budgets.
    pub budgets: &'a Budgets,
    /// Where spans go, if anywhere.
    pub traces: Option<&'a Traces>,
    /// What both are kept in, if anything.
    pub store: Option<&'a Store>,
}

/// What is known of a turn at its end, besides its record.
#[derive(Clone, Copy)]
struct End<'a> {
    request: &'a RequestInfo,
    upstream: Option<&'a Upstream>,
    termination: Termination,
    observed: &'a Observed,
}

/// What one turn is billed.
struct Bill<'a> {
    to: Billed<'a>,
    model: Option<&'a str>,
    tiers: Tiers<'a>,
    usage: Usage,
    usage_state: UsageState,
    /// In USD; none where nothing was used or there is no price.
    cost: Option<Decimal>,
    /// Revision of the price file.
    prices: Option<&'a str>,
}

/// The tiers of one turn, each as the log has it.
#[derive(Default)]
struct Tiers<'a> {
    client: Option<&'a str>,
    sent: Option<&'a str>,
    served: Option<&'a str>,
    billed: Option<&'a str>,
    /// What is billed, by its own name: there may be a price for `fast` beside that for `priority`.
    priced: Option<&'a str>,
    billed_by: Option<&'static str>,
    downgraded: bool,
}

/// Texts that the client and the upstream chose, as they may stand in a line.
struct Texts<'a> {
    user_agent: Option<Cow<'a, str>>,
    path: Cow<'a, str>,
    model: Option<Cow<'a, str>>,
    tier_client: Option<Cow<'a, str>>,
    tier_sent: Option<Cow<'a, str>>,
    tier_served: Option<Cow<'a, str>>,
    model_served: Option<Cow<'a, str>>,
    model_upstream: Option<Cow<'a, str>>,
    bridge_dropped: Option<Cow<'a, str>>,
    response_id: Option<Cow<'a, str>>,
    upstream_request_id: Option<Cow<'a, str>>,
    upstream_error: Option<Cow<'a, str>>,
}

/// Who is billed, and for what: the request itself, or the one that created what it fetched.
struct Billed<'a> {
    key: Option<&'a str>,
    key_digest: Option<[u8; 32]>,
    key_id: Option<&'a str>,
    group: Option<&'a str>,
    platform: Option<&'a str>,
    model: Option<&'a str>,
    /// Whether another may have been asked for.
    several_models: bool,
    tier_client: Option<&'a str>,
    tier_sent: Option<&'a str>,
    tier_reason: Option<&'a str>,
    /// When it began.
    time: Timestamp,
    of_request: Option<Uuid>,
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

    /// Whether nothing of the body has left in the newest attempt.
    pub fn is_outdated(&self) -> bool {
        self.outdated
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
    /// A record that begins now, of the turn `number`.
    pub fn new(number: u64, policy: Arc<Policy>) -> Self {
        Self {
            number,
            policy,
            key: None,
            client_key: None,
            upstream_key: None,
            group: None,
            action: None,
            client_beta: ClientBeta::Ignored,
            facts: RequestFields::default(),
            request_bytes: 0,
            sent: Sent::default(),
            answer: Answered::default(),
            tier_refused: false,
            bridge: None,
            model_upstream: None,
            created_by: None,
            permits: None,
            began: Instant::now(),
            time: Timestamp::now(),
        }
    }

    /// The whole of a forced body is on its way. Its tier is what stands in its bytes, or else in the header.
    pub fn sent_whole(&mut self, bytes: u64, tier_in_bytes: Option<&str>) {
        let tier = set_tier(self.action, tier_in_bytes).map(str::to_owned);
        self.sent = Sent {
            reached: true,
            tier,
            bytes,
            outdated: false,
        };
    }

    /// Of a response that is made in the background, the first record with its terminal status has the usage, and is billed to
    /// the request that created it. Returns what the response is remembered by, where it is yet to be asked whether another
    /// process has billed it.
    pub fn settle(
        &mut self,
        ledger: &Ledger<'_>,
        request: &RequestInfo,
        upstream: &str,
        observed: &Observed,
    ) -> Option<String> {
        let is_fetch = request.endpoint == Endpoint::ResponsesItem;
        let status = self.answer.upstream_status;
        if !is_fetch || !observed.settled || status.is_none_or(|status| status >= 400) {
            return None;
        }
        // Some gateways make the id of each answer anew: what was asked for is what the create was answered with.
        let asked = response_id_in_path(&request.path).into_iter();
        let ids = asked.chain(observed.response_id.as_deref());
        let mut names = ids
            .flat_map(|id| [false, true].map(|is_secret| background_id(upstream, id, is_secret)));
        let (id, create) = names.find_map(|id| {
            let create = ledger.background.take(&id, self.time)?;
            Some((id, create))
        })?;
        self.created_by = Some(create);
        ledger.store.is_some().then_some(id)
    }

    /// Writes its line and counts it.
    pub fn log(
        &self,
        ledger: &Ledger<'_>,
        request: &RequestInfo,
        upstream: Option<&Upstream>,
        termination: Termination,
        observed: &Observed,
    ) {
        let end = End {
            request,
            upstream,
            termination,
            observed,
        };
        let texts = self.texts(end);
        let key_id = self.key_digest().as_ref().map(key_id);
        let key_id = key_id.as_ref().and_then(|id| std::str::from_utf8(id).ok());
        let billed = match &self.created_by {
            Some(create) => Billed::to(create),
            None => self.billed(&texts, key_id, termination),
        };
        let prices = ledger.prices.as_deref();
        let bill = self.bill(billed, &texts, end, prices);
        self.charge(&bill, ledger);
        let line = self.line(&bill, &texts, end);
        if let (UsageState::Deferred, Some(id)) = (line.usage_state, &observed.response_id) {
            remember(ledger, id, &line, self);
        }
        ledger.log.append(&line);
        if let (Some(traces), Some(trace)) = (ledger.traces, &request.trace) {
            let kind = upstream.map(|upstream| upstream.kind);
            traces.record(&line, trace, kind, ledger.metrics);
        }
        ledger.metrics.observe(&line);
    }

    /// What was used, by which tier it is billed, and what that costs.
    fn bill<'a>(
        &self,
        to: Billed<'a>,
        texts: &'a Texts<'a>,
        end: End<'_>,
        prices: Option<&'a Prices>,
    ) -> Bill<'a> {
        let observed = end.observed;
        let served = texts.tier_served.as_deref();
        let (usage, usage_state, served) = if end.is_fetch() && to.of_request.is_none() {
            // It was billed before, or is still to be made.
            (Usage::default(), UsageState::None, None)
        } else {
            (observed.usage, observed.usage_state, served)
        };
        let tiers = self.tiers(&to, end.upstream, served);
        let model_served = texts.model_served.as_deref();
        let model = to.model.or(model_served);
        let priced_model = match model_served {
            Some(served) if is_trusted(end.upstream) => Some(served),
            // The upstream of a bridged request has never heard of the client's.
            _ => texts
                .model_upstream
                .as_deref()
                .or(model.filter(|_| !to.several_models)),
        };
        let cost = prices
            .filter(|_| usage != Usage::default() && !observed.lacks_price)
            .and_then(|prices| {
                let usage = priced_usage(end.request.endpoint, usage);
                prices.cost(to.time, priced_model?, tiers.priced, &usage)
            });
        Bill {
            to,
            model,
            tiers,
            usage,
            usage_state,
            cost,
            prices: prices.map(Prices::revision),
        }
    }

    /// Its line in the access log.
    fn line<'a>(&'a self, bill: &Bill<'a>, texts: &'a Texts<'a>, end: End<'a>) -> AccessRecord<'a> {
        let (request, observed) = (end.request, end.observed);
        let (billed, tiers) = (&bill.to, &bill.tiers);
        AccessRecord {
            time: self.time,
            duration_ms: Millis(self.began.elapsed()),
            ttfb_ms: self.answer.time_to_first_byte.map(Millis),
            request_id: request.id,
            turn: self.number,
            client: request.client,
            user_agent: texts.user_agent.as_deref(),
            key: billed.key,
            group: billed.group,
            platform: billed.platform,
            policy: self.policy.revision(),
            method: cut(request.method.as_str(), METHOD_BYTES),
            path: &texts.path,
            endpoint: request.endpoint,
            transport: self.transport(observed),
            model: bill.model,
            service_tier: tiers.sent,
            service_tier_client: tiers.client,
            service_tier_served: tiers.served,
            service_tier_billed: tiers.billed,
            tier_reason: billed.tier_reason,
            tier_billed_by: tiers.billed_by,
            downgraded: tiers.downgraded,
            upstream: end.upstream.map(|upstream| upstream.name.as_str()),
            upstream_status: self.answer.upstream_status,
            upstream_request_id: texts.upstream_request_id.as_deref(),
            response_id: texts.response_id.as_deref(),
            status: self.answer.status,
            outcome: self.outcome(end.termination, observed),
            error: error(end.termination),
            usage_state: bill.usage_state,
            terminal_event: observed.terminal_event.as_deref(),
            usage: bill.usage,
            cost_usd: bill.cost.map(|cost| cost.to_string()),
            request_bytes: self.request_bytes,
            upstream_request_bytes: self.sent.bytes,
            response_bytes: self.answer.bytes,
            model_served: texts.model_served.as_deref(),
            tier_refused: self.is_tier_refused(observed),
            upstream_error: texts.upstream_error.as_deref(),
            of_request: billed.of_request,
            bridge: self.bridge.as_ref().map(|(between, _)| *between),
            bridge_dropped: texts.bridge_dropped.as_deref(),
            key_id: billed.key_id,
            prices: bill.prices,
            model_upstream: texts.model_upstream.as_deref(),
        }
    }

    /// Counts the cost for the budget of whoever is billed. Of a response that another group's request created, that is the
    /// budget which the policy gives that group now, if any.
    fn charge(&self, bill: &Bill<'_>, ledger: &Ledger<'_>) {
        let to = &bill.to;
        let group = match to.of_request {
            Some(_) => to.group.and_then(|name| self.policy.group(name)),
            None => self.group.as_ref(),
        };
        if let (Some(cost), Some(group), Some(key)) = (bill.cost, group, &to.key_digest) {
            let tier = bill.tiers.billed;
            let has_counted = group.charge(key, tier, cost, ledger.budgets, Timestamp::now());
            if let Some(store) = ledger.store.filter(|_| has_counted) {
                store.wake();
            }
        }
    }

    fn key_digest(&self) -> Option<[u8; 32]> {
        self.client_key.as_ref().map(|key| key.digest)
    }

    fn billed<'a>(
        &'a self,
        texts: &'a Texts<'a>,
        key_id: Option<&'a str>,
        termination: Termination,
    ) -> Billed<'a> {
        Billed {
            key: self.key.as_deref(),
            key_digest: self.key_digest(),
            key_id,
            group: self.group.as_ref().map(|group| &*group.name),
            platform: self.group.as_ref().map(|group| group.platform.as_str()),
            model: texts.model.as_deref(),
            several_models: self.facts.several_models,
            tier_client: texts.tier_client.as_deref(),
            tier_sent: texts.tier_sent.as_deref(),
            tier_reason: self.tier_reason(termination),
            time: self.time,
            of_request: None,
        }
    }

    /// Known credentials never stand in a line, whoever brought them.
    fn texts<'a>(&'a self, end: End<'a>) -> Texts<'a> {
        let (request, observed) = (end.request, end.observed);
        let known = KnownKeys {
            own: [self.client_key.as_ref(), self.upstream_key.as_ref()],
            is_listed: &|digest| self.policy.lists_key(digest),
        };
        // A credential that is cut through is not known any more.
        let clean = |text: &'a str, search, most| shortened(redacted(text, search, &known), most);
        let clean_name = |name: &'a str| clean(name, Search::PartsOfWords, TEXT_BYTES);
        let clean_id = |id: &'a str| clean(id, Search::PartsOfKeys, TEXT_BYTES);
        let clean_tier = |tier: &'a str| clean(tier, Search::PartsOfKeys, TIER_BYTES);
        // These are long, and only the client's own.
        let clean_words = |text: &'a str| redacted(text, Search::Words, &known);
        let is_changed =
            self.bridge.is_some() || self.action.is_some_and(|action| action.changes());
        let sent = match is_changed {
            _ if !self.sent.reached => None,
            true => self.sent.tier.as_deref(),
            false => own_tier(self.client_beta, &self.facts),
        };
        let has_failed = observed.failed
            || self
                .answer
                .upstream_status
                .is_some_and(|status| status >= 400);
        let error = observed.error.as_deref().filter(|_| has_failed);
        Texts {
            user_agent: request.user_agent.as_deref().map(clean_words),
            path: clean_words(&request.path),
            // One that only the target names may be a deployment's name, which has no price.
            model: self.facts.model.as_deref().map(clean_name),
            tier_client: self.facts.named_tier().map(clean_tier),
            tier_sent: sent.map(clean_tier),
            tier_served: observed
                .served_tier
                .as_deref()
                .map(|tier| in_lower_case(clean_tier(tier))),
            model_served: observed.model.as_deref().map(clean_name),
            bridge_dropped: self
                .bridge
                .as_ref()
                .map(|(_, dropped)| clean_words(dropped)),
            model_upstream: self.model_upstream.as_deref().map(clean_name),
            response_id: observed.response_id.as_deref().map(clean_id),
            upstream_request_id: self.answer.upstream_request_id.as_deref().map(clean_id),
            upstream_error: error.map(clean_id),
        }
    }

    /// What came, told by its first bytes where there were any.
    fn transport(&self, observed: &Observed) -> Transport {
        match (self.answer.transport, observed.event_stream) {
            (Some(Transport::WebSocket), _) => Transport::WebSocket,
            (Some(_), Some(true)) => Transport::Sse,
            (Some(_), Some(false)) => Transport::Http,
            (told, _) => told.unwrap_or(Transport::Http),
        }
    }

    /// A 4xx, or an error in a response under way, that names the tier.
    fn is_tier_refused(&self, observed: &Observed) -> bool {
        let refuses = match self.answer.upstream_status {
            Some(400..500) => true,
            Some(..400) => observed.failed,
            _ => false,
        };
        self.tier_refused || (observed.error_names_tier && refuses)
    }

    fn tiers<'a>(
        &self,
        billed: &Billed<'a>,
        upstream: Option<&Upstream>,
        served: Option<&'a str>,
    ) -> Tiers<'a> {
        let client = billed.tier_client;
        if !self.sent.reached {
            return Tiers {
                client,
                ..Tiers::default()
            };
        }
        let sent = billed.tier_sent;
        let by_served = is_trusted(upstream) && served.is_some();
        let tier = if by_served { served } else { sent };
        Tiers {
            client,
            sent,
            served,
            billed: tier.map(canonical),
            priced: tier,
            billed_by: Some(if by_served { "served" } else { "sent" }),
            downgraded: by_served
                && sent.map(canonical) == Some(PRIORITY)
                && !served.is_some_and(is_fast),
        }
    }

    fn tier_reason(&self, termination: Termination) -> Option<&'static str> {
        if matches!(termination, Termination::Refused(cause) if cause.outcome() == Outcome::Denied)
        {
            return None;
        }
        let own = own_tier(self.client_beta, &self.facts);
        Some(tier_reason(self.action, own))
    }

    fn outcome(&self, termination: Termination, observed: &Observed) -> Outcome {
        match termination {
            Termination::Refused(cause) => cause.outcome(),
            Termination::UpstreamCut => Outcome::UpstreamCut,
            Termination::Drained if self.answer.upstream_status.is_some() => Outcome::UpstreamCut,
            Termination::Drained | Termination::Timeout => Outcome::Timeout,
            Termination::CompletedAfterAbort => Outcome::ClientClosed,
            // Codex and OpenAI's Python SDK leave at the event that ends the stream, before the end of the message.
            Termination::ClientClosed if observed.terminal_event.is_none() => Outcome::ClientClosed,
            _ if self.answer.status.is_none_or(|status| status >= 400) => Outcome::UpstreamError,
            _ if observed.failed => Outcome::UpstreamError,
            _ if observed.lacks_end => Outcome::UpstreamCut,
            _ => Outcome::Ok,
        }
    }
}

impl End<'_> {
    /// Whether it fetched a response that was created before.
    fn is_fetch(&self) -> bool {
        self.request.endpoint == Endpoint::ResponsesItem
    }
}

impl<'a> Billed<'a> {
    /// To whoever created a response in the background.
    fn to(create: &'a BackgroundCreate) -> Self {
        Self {
            key: create.key.as_deref(),
            key_digest: create.key_digest,
            key_id: create.key_id.as_deref(),
            group: create.group.as_deref(),
            platform: create.platform.as_deref(),
            model: create.model.as_deref(),
            several_models: create.several_models,
            tier_client: create.service_tier_client.as_deref(),
            tier_sent: create.service_tier.as_deref(),
            tier_reason: create.tier_reason.as_deref(),
            time: create.time,
            of_request: Some(create.request_id),
        }
    }
}

/// The usage of this request comes with a later one.
fn remember(
    ledger: &Ledger<'_>,
    response_id: &str,
    line: &AccessRecord<'_>,
    request: &RequestRecord,
) {
    // Of its id a line tells all but credentials.
    let is_secret = line.response_id != Some(response_id);
    let id = background_id(line.upstream.unwrap_or_default(), response_id, is_secret);
    let owned = |text: Option<&str>| text.map(str::to_owned);
    let create = BackgroundCreate {
        request_id: line.request_id,
        time: line.time,
        key: owned(line.key),
        key_digest: request.key_digest(),
        key_id: owned(line.key_id),
        group: owned(line.group),
        platform: owned(line.platform),
        model: owned(line.model),
        several_models: request.facts.several_models,
        service_tier: owned(line.service_tier),
        service_tier_client: owned(line.service_tier_client),
        tier_reason: owned(line.tier_reason),
    };
    ledger.background.remember(&id, create);
    if let Some(store) = ledger.store {
        store.wake();
    }
}

fn is_trusted(upstream: Option<&Upstream>) -> bool {
    upstream.is_some_and(|upstream| upstream.served_tier == ServedTier::Trusted)
}

/// Embeddings have no output, and none of it costs nothing.
fn priced_usage(endpoint: Endpoint, usage: Usage) -> Usage {
    match endpoint {
        Endpoint::Embeddings => Usage {
            output_tokens: usage.output_tokens.or(Some(0)),
            ..usage
        },
        _ => usage,
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
            .find_map(|name| header_text(headers, name, SEARCHED_BYTES));
    }
}

/// Why a request asks for the tier that it asks for; `own`: the one that it came with.
pub fn tier_reason(action: Option<TierAction>, own: Option<&str>) -> &'static str {
    match action {
        Some(action) => action.reason.as_str(),
        None if own.is_some() => "client",
        None => "none",
    }
}

/// The tier of a request that goes as it came.
pub fn own_tier(beta: ClientBeta, facts: &RequestFields) -> Option<&str> {
    match beta {
        ClientBeta::Asks => Some(PRIORITY),
        ClientBeta::LeftToSpeed if facts.fast_speed => Some(PRIORITY),
        ClientBeta::Ignored | ClientBeta::LeftToSpeed | ClientBeta::Removed => facts.asked_tier(),
    }
}

/// The tier of a request that was changed to ask for it: what its bytes say, or else its header.
pub fn set_tier(action: Option<TierAction>, in_bytes: Option<&str>) -> Option<&str> {
    in_bytes.or(action.and_then(|action| action.tier_in_header()))
}

fn error(termination: Termination) -> Option<&'static str> {
    match termination {
        Termination::Refused(cause) => Some(cause.code()),
        Termination::Timeout => Some(Cause::UpstreamTimeout.code()),
        Termination::Drained => Some(Cause::Draining.code()),
        _ => None,
    }
}

/// The first bytes of a text, at most so many.
fn shortened(text: Cow<'_, str>, most: usize) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(cut(text, most)),
        Cow::Owned(text) => Cow::Owned(cut(&text, most).to_owned()),
    }
}

fn in_lower_case(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.chars().any(char::is_uppercase) {
        Cow::Owned(text.to_lowercase())
    } else {
        text
    }
}

/// A header as text, cut to a number of bytes.
pub fn header_text(headers: &HeaderMap, name: &HeaderName, most: usize) -> Option<String> {
    let value = headers.get(name)?;
    Some(cut(&String::from_utf8_lossy(value.as_bytes()), most).to_owned())
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
