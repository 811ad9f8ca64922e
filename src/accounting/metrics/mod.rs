//! The catalogue of metrics, and the text that Prometheus scrapes. Labels are bounded: group and upstream names come from
//! the operator's files, all else from fixed sets.

mod quantiles;

use std::collections::BTreeMap;

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    Counter, CounterVec, Encoder, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter,
    IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::accounting::access_log::{AccessRecord, Millis, Transport};
use crate::accounting::process::{self, ProcessStats};
use crate::accounting::usage::{Usage, UsageState};
use crate::codec::service_tier::KNOWN_TIERS;
use crate::config::SocketAddress;

pub use crate::accounting::metrics::quantiles::Quantiles;

/// Seconds; a model's answer takes from some milliseconds (a refusal) to many minutes.
const DURATION_BUCKETS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];

/// Statuses that stand as labels; any other one is its class, as `4xx`.
const KNOWN_STATUSES: [(u16, &str); 17] = [
    (101, "101"),
    (200, "200"),
    (400, "400"),
    (401, "401"),
    (402, "402"),
    (403, "403"),
    (404, "404"),
    (408, "408"),
    (409, "409"),
    (413, "413"),
    (422, "422"),
    (429, "429"),
    (500, "500"),
    (502, "502"),
    (503, "503"),
    (504, "504"),
    (529, "529"),
];
/// What a translation may leave out and stands as a label; all else is `other`.
const KNOWN_DROPPED: [&str; 36] = [
    "assistant.reasoning_content",
    "assistant.server_tool_use",
    "assistant.web_search_tool_result",
    "billing_policy",
    "cache_control",
    "context_management",
    "diagnostics",
    "fallbacks",
    "frequency_penalty",
    "inference_geo",
    "logprobs",
    "max_tokens",
    "metadata",
    "prefill",
    "presence_penalty",
    "prompt_cache_retention",
    "reasoning_effort",
    "safeguards",
    "safety_identifier",
    "seed",
    "stop_sequences",
    "store",
    "system.billing_header",
    "temperature",
    "thinking",
    "thinking.foreign",
    "thread",
    "tool.orphan",
    "tool_choice.not_loaded",
    "tool_result.orphan",
    "tools.web_search.blocked_domains",
    "tools.web_search.max_uses",
    "top_k",
    "top_logprobs",
    "top_p",
    "user",
];

/// A metric of the catalogue.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Name of the metric, beginning with `tiergate_`.
    pub name: &'static str,
    /// Help text that Prometheus shows.
    pub help: &'static str,
    /// Names of its labels, in the order of the values.
    pub labels: &'static [&'static str],
}

/// Declares the catalogue: for each metric a field of [`Metrics`] with its type, and its name, labels and help.
macro_rules! catalogue {
    ($($field:ident: $kind:ty = $name:literal [$($label:literal)*] $help:literal;)*) => {
        /// All metrics of the process, with the registry that renders them.
        pub struct Metrics {
            registry: Registry,
            /// Held while a text is made: values that live elsewhere are brought up to date by the difference.
            rendering: Mutex<()>,
            $(#[doc = $help] pub $field: $kind,)*
        }

        /// Every metric, in the order in which the documentation has them.
        pub const CATALOGUE: &[Metric] = &[
            $(Metric { name: $name, help: $help, labels: &[$($label),*] },)*
        ];

        impl Default for Metrics {
            fn default() -> Self {
                let registry = Registry::new();
                let metrics = Self {
                    $($field: register(&registry, Metric { name: $name, help: $help, labels: &[$($label),*] }),)*
                    rendering: Mutex::default(),
                    registry,
                };
                // They are made when the process begins.
                metrics.process_start_time.set(process::now_seconds());
                metrics
            }
        }
    };
}

catalogue! {
    requests: IntCounterVec = "tiergate_requests_total" ["group" "endpoint" "service_tier" "outcome"]
        "Requests, and turns of WebSocket connections, by the tier that was sent upstream and how they ended.";
    downgraded: IntCounterVec = "tiergate_tier_downgraded_total" ["group" "upstream"]
        "Responses that a trusted upstream served on another tier than the priority it was asked for.";
    tier_refused: IntCounterVec = "tiergate_tier_refused_total" ["group" "upstream"]
        "Requests whose service tier the upstream refused.";
    tokens: IntCounterVec = "tiergate_tokens_total" ["group" "service_tier" "kind"]
        "Tokens used, by the tier that is billed.";
    cost: CounterVec = "tiergate_cost_usd_total" ["group" "service_tier"]
        "Cost in USD by the price file, by the tier that is billed. The access log has it exactly.";
    unpriced: IntCounterVec = "tiergate_unpriced_total" ["group"]
        "Responses with usage for which the price file has no price.";
    usage_missing: IntCounterVec = "tiergate_usage_missing_total" ["group" "endpoint" "transport"]
        "Responses below status 400, on endpoints that tell usage, whose usage did not come or not to its end.";
    budget_used: GaugeVec = "tiergate_budget_used_ratio" ["group"]
        "Share of the group's budget of the fast tier that is used in the current period; of the key that used most, where each has its own.";
    state_errors: IntCounter = "tiergate_state_errors_total" []
        "Failed exchanges with `state`; what was spent counts in memory and is tried again.";
    bridged: IntCounterVec = "tiergate_bridged_total" ["group" "endpoint" "outcome"]
        "Requests that were translated to another protocol.";
    bridge_dropped: IntCounterVec = "tiergate_bridge_dropped_total" ["what"]
        "Parts of requests that the other protocol has not, and that were left out.";
    responses: IntCounterVec = "tiergate_responses_total" ["group" "upstream" "status"]
        "Answers to clients by status: 200, 401, 429 and other usual ones by themselves, the rest as 2xx to 5xx, `none` where a client got none.";
    duration: HistogramVec = "tiergate_request_duration_seconds" ["endpoint" "upstream"]
        "From the request's head to the end of the answer.";
    time_to_first_byte: HistogramVec = "tiergate_time_to_first_byte_seconds" ["endpoint" "upstream"]
        "From the request's head to the first byte of the upstream's answer.";
    unforced_forwarded: IntCounter = "tiergate_unforced_forwarded_total" []
        "Forced requests found without the forced tier in the outgoing bytes. They are not sent; any value but 0 is a defect.";
    connections: IntGauge = "tiergate_connections" []
        "Open client connections.";
    accept_rests: IntCounter = "tiergate_accept_rests_total" []
        "Times that no connection was accepted until another one ended, because of `limits.connections`.";
    connections_refused: IntCounter = "tiergate_connections_refused_total" []
        "Connections closed at once, because of `limits.connections_per_client`.";
    in_flight: IntGauge = "tiergate_requests_in_flight" []
        "Requests that are being served.";
    reloads: IntCounterVec = "tiergate_policy_reloads_total" ["outcome"]
        "Loads of the policy file, the first one included.";
    policy_info: IntGaugeVec = "tiergate_policy_info" ["revision"]
        "The revision of the policy in force, as a label.";
    policy_last_success: IntGauge = "tiergate_policy_last_success_timestamp_seconds" []
        "When the policy in force was loaded.";
    price_reloads: IntCounterVec = "tiergate_prices_reloads_total" ["outcome"]
        "Loads of the price file, the first one included.";
    prices_info: IntGaugeVec = "tiergate_prices_info" ["revision"]
        "The revision of the prices in force, as a label.";
    prices_last_success: IntGauge = "tiergate_prices_last_success_timestamp_seconds" []
        "When the prices in force were loaded; 0 without a price file.";
    files_not_loaded: IntGauge = "tiergate_files_not_loaded" []
        "Files whose newest content could not be taken: the last good one is in force.";
    buffered_bytes: IntGauge = "tiergate_buffered_bytes" []
        "Request bodies held at the moment.";
    buffered_limit: IntGauge = "tiergate_buffered_limit_bytes" []
        "The limit of tiergate_buffered_bytes.";
    access_log_errors: IntCounter = "tiergate_access_log_errors_total" []
        "Failed writes to the access log; the lines wait and are tried again.";
    access_log_stalled: IntGauge = "tiergate_access_log_stalled" []
        "1 while lines wait because the access log cannot be written or its reader does not read, and /readyz is 503.";
    trace_spans: IntCounterVec = "tiergate_trace_spans_total" ["outcome"]
        "Spans of `traces`: `exported`, or `dropped` because the collector did not take them or took them too slowly.";
    certificate_expiry: IntGaugeVec = "tiergate_certificate_expiry_timestamp_seconds" ["listener"]
        "When the first certificate of the chain that a listener uses ends; 0 if that cannot be read.";
    address_healthy: IntGaugeVec = "tiergate_upstream_address_healthy" ["upstream" "address"]
        "1 for an address that is neither ejected nor failing its checks.";
    ejections: IntCounterVec = "tiergate_upstream_ejections_total" ["upstream"]
        "Ejections of an upstream's addresses after requests that failed there.";
    retries: IntCounterVec = "tiergate_upstream_retries_total" ["upstream"]
        "Attempts after the first one of a request.";
    build_info: IntGaugeVec = "tiergate_build_info" ["version"]
        "1; the version of this process, as a label.";
    process_cpu: Counter = "process_cpu_seconds_total" []
        "User and system time of the process.";
    process_open_fds: IntGauge = "process_open_fds" []
        "Open file descriptors.";
    process_max_fds: IntGauge = "process_max_fds" []
        "The most file descriptors that the process may have open.";
    process_resident_memory: IntGauge = "process_resident_memory_bytes" []
        "Memory of the process that is in RAM.";
    process_virtual_memory: IntGauge = "process_virtual_memory_bytes" []
        "Address space of the process.";
    process_threads: IntGauge = "process_threads" []
        "Threads of the process.";
    process_start_time: Gauge = "process_start_time_seconds" []
        "When the process began, in seconds since 1970.";
}

/// Values that live elsewhere, as they are when the metrics are scraped.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The policy file.
    pub policy: FileSnapshot,
    /// None without a price file.
    pub prices: Option<FileSnapshot>,
    /// Bytes of request bodies that are held in memory now.
    pub buffered_bytes: u64,
    /// The most bytes of request bodies that may be held at once.
    pub buffered_limit: u64,
    /// Failed writes of the access log since the start.
    pub access_log_errors: u64,
    /// Whether lines of the access log wait for longer than it takes to write them.
    pub is_access_log_stalled: bool,
    /// Files that hold what could not be taken.
    pub files_not_loaded: usize,
    /// Every upstream of the configuration.
    pub upstreams: Vec<UpstreamSnapshot>,
    /// Every group of the policy, with the upstream that it sends to.
    pub groups: Vec<(String, String)>,
    /// Groups that have a budget, and the share of it that is used.
    pub budgets: Vec<(String, f64)>,
}

/// A file that is read again when it changes.
#[derive(Debug, Default)]
pub struct FileSnapshot {
    /// Revision of the content in force.
    pub revision: String,
    /// Loads by how they went: `success`, `failure`, `held`.
    pub loads: Vec<(&'static str, u64)>,
    /// When what is in force was loaded, in seconds since 1970.
    pub loaded_at: i64,
}

/// What one upstream counts, for the metrics.
#[derive(Debug)]
pub struct UpstreamSnapshot {
    /// Name of the upstream in the configuration.
    pub name: String,
    /// Ejections of its addresses since the start.
    pub ejections: u64,
    /// Attempts beyond the first of a request since the start.
    pub retries: u64,
    /// Each address, and whether it is healthy. They come and go with their names, and with them their series.
    pub addresses: BTreeMap<String, bool>,
}

/// What one group has done since the start.
#[derive(Debug, Default)]
pub struct GroupSums {
    /// Requests, by the `outcome` of their lines in the access log.
    pub outcomes: BTreeMap<String, u64>,
    /// As sent upstream.
    pub service_tiers: BTreeMap<String, u64>,
    /// Input and output.
    pub tokens: u64,
    /// Requests that were sent as priority and served by another tier.
    pub downgraded: u64,
}

impl Metrics {
    /// Counts what a line of the access log says.
    pub fn observe(&self, record: &AccessRecord<'_>) {
        let group = record.group.unwrap_or("");
        let upstream = record.upstream.unwrap_or("");
        self.count_request(record, group, upstream);
        self.observe_times(record, upstream);
        self.count_tier(record, group, upstream);
        self.count_usage(record, group);
        self.count_bridge(record, group);
    }

    fn count_request(&self, record: &AccessRecord<'_>, group: &str, upstream: &str) {
        let tier = tier_label(record.service_tier);
        let labels = [
            group,
            record.endpoint.as_str(),
            tier,
            record.outcome.as_str(),
        ];
        self.requests.with_label_values(&labels).inc();
        let labels = [group, upstream, status_label(record.status)];
        self.responses.with_label_values(&labels).inc();
    }

    fn observe_times(&self, record: &AccessRecord<'_>, upstream: &str) {
        let labels = [record.endpoint.as_str(), upstream];
        let observe = |times: &HistogramVec, Millis(time): Millis| {
            times.with_label_values(&labels).observe(time.as_secs_f64());
        };
        observe(&self.duration, record.duration_ms);
        if let Some(first) = record.ttfb_ms {
            observe(&self.time_to_first_byte, first);
        }
    }

    fn count_tier(&self, record: &AccessRecord<'_>, group: &str, upstream: &str) {
        let labels = [group, upstream];
        if record.downgraded {
            self.downgraded.with_label_values(&labels).inc();
        }
        if record.tier_refused {
            self.tier_refused.with_label_values(&labels).inc();
        }
    }

    fn count_usage(&self, record: &AccessRecord<'_>, group: &str) {
        if is_usage_missing(record) {
            let labels = [group, record.endpoint.as_str(), record.transport.as_str()];
            self.usage_missing.with_label_values(&labels).inc();
        }
        let billed = tier_label(record.service_tier_billed);
        let usage = &record.usage;
        let cost = record.cost_usd.as_deref();
        match cost.and_then(|cost| cost.parse::<f64>().ok()) {
            Some(cost) if cost > 0.0 => {
                self.cost.with_label_values(&[group, billed]).inc_by(cost);
            }
            None if *usage != Usage::default() && !lacks_count(record) => {
                self.unpriced.with_label_values(&[group]).inc();
            }
            _ => {}
        }
        for (kind, count) in [
            ("input", usage.input_tokens),
            ("cached_input", usage.cached_input_tokens),
            ("cache_write", usage.cache_write_tokens),
            ("cache_write_long", usage.cache_write_long_tokens),
            ("output", usage.output_tokens),
            ("reasoning", usage.reasoning_tokens),
        ] {
            if let Some(count) = count.filter(|count| *count > 0) {
                self.tokens
                    .with_label_values(&[group, billed, kind])
                    .inc_by(count);
            }
        }
    }

    fn count_bridge(&self, record: &AccessRecord<'_>, group: &str) {
        if record.bridge.is_none() {
            return;
        }
        let labels = [group, record.endpoint.as_str(), record.outcome.as_str()];
        self.bridged.with_label_values(&labels).inc();
        let dropped = record.bridge_dropped.unwrap_or_default().split(',');
        for what in dropped.map(str::trim).filter(|what| !what.is_empty()) {
            self.bridge_dropped
                .with_label_values(&[dropped_label(what)])
                .inc();
        }
    }

    /// What the counters say of each group.
    pub fn by_group(&self) -> BTreeMap<String, GroupSums> {
        let mut groups: BTreeMap<String, GroupSums> = BTreeMap::new();
        for (labels, count) in counts(&self.requests) {
            let sums = groups.entry(labels("group")).or_default();
            *sums.outcomes.entry(labels("outcome")).or_default() += count;
            *sums
                .service_tiers
                .entry(labels("service_tier"))
                .or_default() += count;
        }
        for (labels, count) in counts(&self.downgraded) {
            groups.entry(labels("group")).or_default().downgraded += count;
        }
        for (labels, count) in counts(&self.tokens) {
            // The other kinds are parts of these.
            if matches!(labels("kind").as_str(), "input" | "output") {
                groups.entry(labels("group")).or_default().tokens += count;
            }
        }
        groups
    }

    /// Cost in USD since the start, by group.
    pub fn cost_by_group(&self) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for (labels, cost) in samples(&self.cost.collect()) {
            *sums.entry(labels("group")).or_default() += cost;
        }
        sums
    }

    /// Answered requests whose usage did not become known, since the start.
    pub fn usage_missing_count(&self) -> u64 {
        total(&self.usage_missing)
    }

    /// Requests with usage that no price was found for, since the start.
    pub fn unpriced_count(&self) -> u64 {
        total(&self.unpriced)
    }

    /// Quantiles of how long requests took, in seconds.
    pub fn duration_quantiles(&self) -> Quantiles {
        Quantiles::of(&self.duration)
    }

    /// Quantiles of the time to a response's first byte, in seconds.
    pub fn first_byte_quantiles(&self) -> Quantiles {
        Quantiles::of(&self.time_to_first_byte)
    }

    /// When the certificate of a listener with TLS ends, in seconds since 1970; whoever loads it keeps it up to date.
    pub fn certificate_expiry(&self, listener: &SocketAddress) -> IntGauge {
        self.certificate_expiry
            .with_label_values(&[&listener.to_string()])
    }

    /// The text exposition of everything.
    pub fn render(&self, snapshot: &Snapshot) -> Vec<u8> {
        let _alone = self.rendering.lock();
        self.take(snapshot);
        let mut out = Vec::new();
        // A `Vec` takes all that is written to it, and the families are well formed by construction.
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut out)
            .expect("metrics can be written to memory");
        out
    }

    fn take(&self, snapshot: &Snapshot) {
        let policy = &snapshot.policy;
        policy.show(&self.reloads, &self.policy_info, &self.policy_last_success);
        if let Some(prices) = &snapshot.prices {
            prices.show(
                &self.price_reloads,
                &self.prices_info,
                &self.prices_last_success,
            );
        }
        self.buffered_bytes.set(gauge(snapshot.buffered_bytes));
        self.buffered_limit.set(gauge(snapshot.buffered_limit));
        self.files_not_loaded
            .set(gauge(snapshot.files_not_loaded as u64));
        raise_to(&self.access_log_errors, snapshot.access_log_errors);
        self.access_log_stalled
            .set(i64::from(snapshot.is_access_log_stalled));
        self.build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        self.take_process(&ProcessStats::read());
        self.begin_series(&snapshot.groups);
        self.budget_used.reset();
        for (group, used) in &snapshot.budgets {
            self.budget_used.with_label_values(&[group]).set(*used);
        }
        self.address_healthy.reset();
        for upstream in &snapshot.upstreams {
            let name = upstream.name.as_str();
            raise_to(
                &self.ejections.with_label_values(&[name]),
                upstream.ejections,
            );
            raise_to(&self.retries.with_label_values(&[name]), upstream.retries);
            for (address, healthy) in &upstream.addresses {
                let gauge = self.address_healthy.with_label_values(&[name, address]);
                gauge.set(i64::from(*healthy));
            }
        }
    }

    /// Counters that alerts watch for a first event are there before it, at 0: `increase` of a series that begins with the event
    /// is 0.
    fn begin_series(&self, groups: &[(String, String)]) {
        for (group, upstream) in groups {
            self.unpriced.with_label_values(&[group]);
            for counters in [&self.downgraded, &self.tier_refused] {
                counters.with_label_values(&[group, upstream]);
            }
        }
    }

    fn take_process(&self, stats: &ProcessStats) {
        let more = stats.cpu_seconds - self.process_cpu.get();
        self.process_cpu.inc_by(more.max(0.0));
        self.process_open_fds.set(stats.open_fds);
        self.process_max_fds.set(stats.max_fds);
        self.process_resident_memory.set(stats.resident_memory);
        self.process_virtual_memory.set(stats.virtual_memory);
        self.process_threads.set(stats.threads);
    }
}

impl FileSnapshot {
    fn show(&self, reloads: &IntCounterVec, info: &IntGaugeVec, last_success: &IntGauge) {
        for (outcome, count) in &self.loads {
            raise_to(&reloads.with_label_values(&[outcome]), *count);
        }
        info.reset();
        info.with_label_values(&[&self.revision]).set(1);
        last_success.set(self.loaded_at);
    }
}

/// Whether this line should have usage, and has not all of it. A response that is made in the background tells it later, a
/// request that reads or deletes makes nothing, and the line of a WebSocket itself never has any.
fn is_usage_missing(record: &AccessRecord<'_>) -> bool {
    let is_connection = record.transport == Transport::WebSocket && record.turn == 0;
    // The turns of a WebSocket have the method of its handshake.
    let makes_nothing =
        record.turn == 0 && matches!(record.method, "GET" | "HEAD" | "OPTIONS" | "DELETE");
    let is_answered = record.upstream_status.is_some_and(|status| status < 400)
        && record.status.is_none_or(|status| status < 400);
    let is_missing = matches!(record.usage_state, UsageState::None | UsageState::Partial);
    record.endpoint.must_tell_usage()
        && !is_connection
        && !makes_nothing
        && is_answered
        && is_missing
}

/// Whether it is not told how much output was made, or of how much input, which no price can make a cost of.
fn lacks_count(record: &AccessRecord<'_>) -> bool {
    let Usage {
        input_tokens,
        output_tokens,
        ..
    } = record.usage;
    record.usage_state == UsageState::Partial && (input_tokens.is_none() || output_tokens.is_none())
}

/// A tier as a label: `none` for none, `other` for one that is not known, so that no client can make new ones.
pub fn tier_label(tier: Option<&str>) -> &'static str {
    match tier {
        None => "none",
        Some(tier) => KNOWN_TIERS
            .iter()
            .find(|known| **known == tier)
            .unwrap_or(&"other"),
    }
}

/// The status that a client got, as a label: upstreams may send any.
fn status_label(status: Option<u16>) -> &'static str {
    let Some(status) = status else {
        return "none";
    };
    let known = KNOWN_STATUSES.iter().find(|(known, _)| *known == status);
    match (known, status / 100) {
        (Some((_, label)), _) => label,
        (None, 2) => "2xx",
        (None, 3) => "3xx",
        (None, 4) => "4xx",
        (None, 5) => "5xx",
        _ => "other",
    }
}

/// What was left out in a translation, as a label: names come from the bodies of clients.
fn dropped_label(what: &str) -> &'static str {
    KNOWN_DROPPED
        .iter()
        .find(|known| **known == what)
        .unwrap_or(&"other")
}

fn total(counters: &IntCounterVec) -> u64 {
    counts(counters).into_iter().map(|(_, count)| count).sum()
}

/// As [`samples`], of counters of whole numbers.
fn counts(counters: &IntCounterVec) -> Vec<(impl Fn(&str) -> String, u64)> {
    let told = samples(&counters.collect()).into_iter();
    // Counts are integers far below 2^53.
    told.map(|(label, value)| (label, value as u64)).collect()
}

/// The value of each label by its name, and the value, of every series.
fn samples(families: &[MetricFamily]) -> Vec<(impl Fn(&str) -> String + use<>, f64)> {
    let series = families.iter().flat_map(|family| family.get_metric());
    let told = series.map(|metric| {
        let pairs = metric.get_label().iter();
        let labels: BTreeMap<String, String> = pairs
            .map(|pair| (pair.name().to_owned(), pair.value().to_owned()))
            .collect();
        let label = move |name: &str| labels.get(name).cloned().unwrap_or_default();
        (label, metric.get_counter().get_value())
    });
    told.collect()
}

/// Takes over a count that is kept elsewhere and only rises.
fn raise_to(counter: &IntCounter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}

/// A gauge has 63 bits; what it tells here is far below.
fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// What a metric of a type is made of.
trait Make: Collector + Clone + 'static {
    fn make(opts: Opts, labels: &[&str]) -> prometheus::Result<Self>;
}

macro_rules! make {
    ($($single:ty)*; $($labelled:ty)*) => {
        $(impl Make for $single {
            fn make(opts: Opts, _: &[&str]) -> prometheus::Result<Self> {
                Self::with_opts(opts)
            }
        })*
        $(impl Make for $labelled {
            fn make(opts: Opts, labels: &[&str]) -> prometheus::Result<Self> {
                Self::new(opts, labels)
            }
        })*
    };
}

make!(Counter Gauge IntCounter IntGauge; IntCounterVec IntGaugeVec CounterVec GaugeVec);

impl Make for HistogramVec {
    fn make(opts: Opts, labels: &[&str]) -> prometheus::Result<Self> {
        Self::new(
            HistogramOpts::from(opts).buckets(DURATION_BUCKETS.to_vec()),
            labels,
        )
    }
}

fn register<M: Make>(registry: &Registry, metric: Metric) -> M {
    let made = M::make(Opts::new(metric.name, metric.help), metric.labels);
    // Names and labels are constants, so that a failure is a mistake in this file that every test run shows.
    let made = made.expect("the catalogue of metrics is well formed");
    let registered = registry.register(Box::new(made.clone()));
    registered.expect("no name stands twice in the catalogue");
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_in_the_text_once_it_has_a_value() {
        let metrics = Metrics::default();
        let snapshot = Snapshot {
            prices: Some(FileSnapshot::default()),
            budgets: vec![("fast".to_owned(), 0.25)],
            ..Snapshot::default()
        };
        let text = String::from_utf8(metrics.render(&snapshot)).unwrap();
        for metric in CATALOGUE.iter().filter(|metric| metric.labels.is_empty()) {
            let help = format!("# HELP {} {}", metric.name, metric.help);
            assert!(text.contains(&help), "{}", metric.name);
        }
        assert!(
            text.contains("tiergate_budget_used_ratio{group=\"fast\"} 0.25"),
            "{text}"
        );
        let version = format!(
            "tiergate_build_info{{version=\"{}\"}} 1",
            env!("CARGO_PKG_VERSION")
        );
        assert!(text.contains(&version), "{text}");
    }

    #[test]
    fn what_alerts_watch_of_a_group_is_counted_from_0() {
        let metrics = Metrics::default();
        let snapshot = Snapshot {
            groups: vec![("fast".to_owned(), "main".to_owned())],
            ..Snapshot::default()
        };
        let text = String::from_utf8(metrics.render(&snapshot)).unwrap();
        for series in [
            "tiergate_unpriced_total{group=\"fast\"} 0",
            "tiergate_tier_refused_total{group=\"fast\",upstream=\"main\"} 0",
            "tiergate_tier_downgraded_total{group=\"fast\",upstream=\"main\"} 0",
        ] {
            assert!(text.lines().any(|line| line == series), "{text}");
        }
    }

    #[test]
    fn a_budget_that_is_gone_has_no_series() {
        let metrics = Metrics::default();
        let budgets = vec![("fast".to_owned(), 1.0)];
        metrics.render(&Snapshot {
            budgets,
            ..Snapshot::default()
        });
        let text = String::from_utf8(metrics.render(&Snapshot::default())).unwrap();
        assert!(!text.contains("tiergate_budget_used_ratio{"), "{text}");
    }

    #[test]
    fn labels_that_others_choose_are_bounded() {
        assert_eq!(dropped_label("top_k"), "top_k");
        assert_eq!(dropped_label("made up"), "other");
        assert_eq!(tier_label(Some("made up")), "other");
        assert_eq!(tier_label(None), "none");
        let statuses = [Some(429), Some(418), Some(999), None].map(status_label);
        assert_eq!(statuses, ["429", "4xx", "other", "none"]);
    }
}
