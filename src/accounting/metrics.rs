//! The catalogue of metrics, and the text that Prometheus scrapes. Labels are bounded: group and upstream names come from
//! the operator's files, all else from fixed sets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::accounting::access_log::AccessRecord;
use crate::accounting::usage::UsageState;
use crate::state::State;

/// Seconds; a model's answer takes from some milliseconds (a refusal) to many minutes.
const DURATION_BUCKETS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];
/// The tiers that stand as labels; any other one is `other`, none is `none`.
const KNOWN_TIERS: [&str; 9] = [
    "auto",
    "default",
    "flex",
    "scale",
    "priority",
    "fast",
    "ultrafast",
    "standard",
    "batch",
];

pub struct Metrics {
    registry: Registry,
    pub requests: IntCounterVec,
    pub downgraded: IntCounterVec,
    pub tokens: IntCounterVec,
    pub unpriced: IntCounterVec,
    pub duration: Histogram,
    pub time_to_first_byte: Histogram,
    /// Bodies of forced requests that were about to leave without the forced tier, read from the outgoing bytes. They
    /// are not sent; any value but 0 is a defect.
    pub unforced_forwarded: IntCounter,
    pub connections: IntGauge,
    pub accept_rests: IntCounter,
    pub connections_refused: IntCounter,
    pub in_flight: IntGauge,
    /// Held while a text is made: values that live elsewhere are brought up to date by the difference.
    rendering: Mutex<()>,
    reloads: IntCounterVec,
    policy_info: IntGaugeVec,
    policy_last_success: IntGauge,
    buffered_bytes: IntGauge,
    buffered_limit: IntGauge,
    access_log_errors: IntCounter,
    certificate_expiry: IntGaugeVec,
    address_healthy: IntGaugeVec,
    ejections: IntCounterVec,
    retries: IntCounterVec,
}

/// What one group has done since the start.
#[derive(Debug, Default)]
pub struct GroupSums {
    pub outcomes: BTreeMap<String, u64>,
    /// As sent upstream.
    pub service_tiers: BTreeMap<String, u64>,
    /// Input and output.
    pub tokens: u64,
    pub downgraded: u64,
}

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new();
        Self {
            rendering: Mutex::default(),
            requests: register(
                &registry,
                counters(
                    "tiergate_requests_total",
                    "Requests, and turns of WebSocket connections, by the tier that was sent upstream and how they ended.",
                    &["group", "endpoint", "service_tier", "outcome"],
                ),
            ),
            downgraded: register(
                &registry,
                counters(
                    "tiergate_tier_downgraded_total",
                    "Responses that a trusted upstream served on another tier than the priority it was asked for.",
                    &["group", "upstream"],
                ),
            ),
            tokens: register(
                &registry,
                counters(
                    "tiergate_tokens_total",
                    "Tokens used, by the tier that is billed.",
                    &["group", "service_tier", "kind"],
                ),
            ),
            unpriced: register(
                &registry,
                counters(
                    "tiergate_unpriced_total",
                    "Responses with usage for which the price file has no price.",
                    &["group"],
                ),
            ),
            duration: register(
                &registry,
                histogram(
                    "tiergate_request_duration_seconds",
                    "From the request's head to the end of the answer.",
                ),
            ),
            time_to_first_byte: register(
                &registry,
                histogram(
                    "tiergate_time_to_first_byte_seconds",
                    "From the request's head to the first byte of the upstream's answer.",
                ),
            ),
            unforced_forwarded: register(
                &registry,
                valid(IntCounter::new(
                    "tiergate_unforced_forwarded_total",
                    "Forced requests found without the forced tier in the outgoing bytes; any value but 0 is a defect.",
                )),
            ),
            connections: register(
                &registry,
                valid(IntGauge::new(
                    "tiergate_connections",
                    "Open client connections.",
                )),
            ),
            accept_rests: register(
                &registry,
                valid(IntCounter::new(
                    "tiergate_accept_rests_total",
                    "Times that no connection was accepted until another one ended, because of `limits.connections`.",
                )),
            ),
            connections_refused: register(
                &registry,
                valid(IntCounter::new(
                    "tiergate_connections_refused_total",
                    "Connections closed at once, because of `limits.connections_per_client`.",
                )),
            ),
            in_flight: register(
                &registry,
                valid(IntGauge::new(
                    "tiergate_requests_in_flight",
                    "Requests that are being served.",
                )),
            ),
            reloads: register(
                &registry,
                counters(
                    "tiergate_policy_reloads_total",
                    "Loads of the policy file, the first one included.",
                    &["outcome"],
                ),
            ),
            policy_info: register(
                &registry,
                gauges(
                    "tiergate_policy_info",
                    "The revision of the policy in force, as a label.",
                    &["revision"],
                ),
            ),
            policy_last_success: register(
                &registry,
                valid(IntGauge::new(
                    "tiergate_policy_last_success_timestamp_seconds",
                    "When the policy in force was loaded.",
                )),
            ),
            buffered_bytes: register(
                &registry,
                valid(IntGauge::new(
                    "tiergate_buffered_bytes",
                    "Request bodies held at the moment.",
                )),
            ),
            buffered_limit: register(
                &registry,
                valid(IntGauge::new(
                    "tiergate_buffered_limit_bytes",
                    "The limit of tiergate_buffered_bytes.",
                )),
            ),
            access_log_errors: register(
                &registry,
                valid(IntCounter::new(
                    "tiergate_access_log_errors_total",
                    "Failed writes to the access log; the lines wait and are tried again.",
                )),
            ),
            certificate_expiry: register(
                &registry,
                gauges(
                    "tiergate_certificate_expiry_timestamp_seconds",
                    "When the first certificate of the chain that a listener uses ends; 0 if that cannot be read.",
                    &["listener"],
                ),
            ),
            address_healthy: register(
                &registry,
                gauges(
                    "tiergate_upstream_address_healthy",
                    "1 for an address that is neither ejected nor failing its checks.",
                    &["upstream", "address"],
                ),
            ),
            ejections: register(
                &registry,
                counters(
                    "tiergate_upstream_ejections_total",
                    "Ejections of an upstream's addresses after requests that failed there.",
                    &["upstream"],
                ),
            ),
            retries: register(
                &registry,
                counters(
                    "tiergate_upstream_retries_total",
                    "Attempts after the first one of a request.",
                    &["upstream"],
                ),
            ),
            registry,
        }
    }
}

impl Metrics {
    /// Counts what a line of the access log says.
    pub fn observe(
        &self,
        record: &AccessRecord<'_>,
        duration: Duration,
        time_to_first_byte: Option<Duration>,
    ) {
        let group = record.group.unwrap_or("");
        let outcome = record.outcome.as_str();
        self.requests
            .with_label_values(&[
                group,
                record.endpoint,
                tier_label(record.service_tier),
                outcome,
            ])
            .inc();
        if record.downgraded {
            self.downgraded
                .with_label_values(&[group, record.upstream.unwrap_or("")])
                .inc();
        }
        self.duration.observe(duration.as_secs_f64());
        if let Some(first) = time_to_first_byte {
            self.time_to_first_byte.observe(first.as_secs_f64());
        }
        if record.usage_state != UsageState::None && record.cost_usd.is_none() {
            self.unpriced.with_label_values(&[group]).inc();
        }
        let billed = tier_label(record.service_tier_billed);
        let usage = &record.usage;
        for (kind, count) in [
            ("input", usage.input_tokens),
            ("cached_input", usage.cached_input_tokens),
            ("cache_write", usage.cache_write_tokens),
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

    /// What the counters say of each group.
    pub fn by_group(&self) -> BTreeMap<String, GroupSums> {
        let mut groups: BTreeMap<String, GroupSums> = BTreeMap::new();
        for (labels, count) in samples(&self.requests) {
            let sums = groups.entry(labels("group")).or_default();
            *sums.outcomes.entry(labels("outcome")).or_default() += count;
            *sums
                .service_tiers
                .entry(labels("service_tier"))
                .or_default() += count;
        }
        for (labels, count) in samples(&self.downgraded) {
            groups.entry(labels("group")).or_default().downgraded += count;
        }
        for (labels, count) in samples(&self.tokens) {
            // The other kinds are parts of these.
            if matches!(labels("kind").as_str(), "input" | "output") {
                groups.entry(labels("group")).or_default().tokens += count;
            }
        }
        groups
    }

    /// When the certificate of a listener with TLS ends, in seconds since 1970; whoever loads it keeps it up to date.
    pub fn certificate_expiry(&self, listener: SocketAddr) -> IntGauge {
        self.certificate_expiry
            .with_label_values(&[&listener.to_string()])
    }

    /// The text exposition of everything, with the values that live elsewhere read anew.
    pub fn render(&self, state: &State) -> Vec<u8> {
        let _alone = self
            .rendering
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let loads = state.policy.counts();
        for (outcome, count) in [
            ("success", loads.succeeded),
            ("failure", loads.failed),
            ("held", loads.held),
        ] {
            raise_to(&self.reloads.with_label_values(&[outcome]), count);
        }
        self.policy_info.reset();
        self.policy_info
            .with_label_values(&[state.policy.current().revision()])
            .set(1);
        let loaded_at = state.policy.load_status().loaded_at;
        let since_epoch = loaded_at
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        self.policy_last_success.set(since_epoch.as_secs() as i64);
        self.buffered_bytes.set(state.budget.used() as i64);
        self.buffered_limit.set(state.limits.buffered as i64);
        raise_to(&self.access_log_errors, state.log.errors());
        self.read_upstreams(state);
        let mut out = Vec::new();
        // A `Vec` takes all that is written to it, and the families are well formed by construction.
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut out)
            .expect("metrics can be written to memory");
        out
    }

    /// Addresses come and go with their names, and with them their series.
    fn read_upstreams(&self, state: &State) {
        self.address_healthy.reset();
        for upstream in state.upstreams() {
            let name = upstream.config.name.as_str();
            raise_to(
                &self.ejections.with_label_values(&[name]),
                upstream.ejections(),
            );
            raise_to(&self.retries.with_label_values(&[name]), upstream.retries());
            let mut healthy = BTreeMap::new();
            for address in upstream.addresses().iter() {
                // Two URLs may lead to the same one, by another host or path.
                *healthy.entry(address.socket.to_string()).or_insert(true) &=
                    address.health.snapshot().healthy;
            }
            for (address, healthy) in healthy {
                let labels = [name, address.as_str()];
                let gauge = self.address_healthy.with_label_values(&labels);
                gauge.set(i64::from(healthy));
            }
        }
    }
}

/// A tier as a label: no client can make new ones.
pub fn tier_label(tier: Option<&str>) -> &'static str {
    match tier {
        None => "none",
        Some(tier) => KNOWN_TIERS
            .iter()
            .find(|known| **known == tier)
            .unwrap_or(&"other"),
    }
}

/// The value of each label by its name, and the count, of every series.
fn samples(counters: &IntCounterVec) -> Vec<(impl Fn(&str) -> String, u64)> {
    let families = counters.collect();
    let series = families.iter().flat_map(|family| family.get_metric());
    let told = series.map(|metric| {
        let pairs = metric.get_label().iter();
        let labels: BTreeMap<String, String> = pairs
            .map(|pair| (pair.name().to_owned(), pair.value().to_owned()))
            .collect();
        let label = move |name: &str| labels.get(name).cloned().unwrap_or_default();
        // Counts are integers far below 2^53.
        (label, metric.get_counter().get_value() as u64)
    });
    told.collect()
}

/// Takes over a count that is kept elsewhere and only rises.
fn raise_to(counter: &IntCounter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}

fn counters(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    valid(IntCounterVec::new(Opts::new(name, help), labels))
}

fn gauges(name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    valid(IntGaugeVec::new(Opts::new(name, help), labels))
}

fn histogram(name: &str, help: &str) -> Histogram {
    valid(Histogram::with_opts(
        HistogramOpts::new(name, help).buckets(DURATION_BUCKETS.to_vec()),
    ))
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    valid(registry.register(Box::new(collector.clone())));
    collector
}

/// Names and labels above are constants, so that a failure is a mistake in this file that every test run shows.
fn valid<T>(made: prometheus::Result<T>) -> T {
    made.expect("the catalogue of metrics is well formed")
}
