//! Spans of requests as OTLP has them in JSON, and the queue in which they wait to be sent. A span is made of a request's
//! record; nobody waits for it.
//!
//! The names of attributes are those of OpenTelemetry's conventions for generative AI where these have one
//! (<https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/>,
//! <https://opentelemetry.io/docs/specs/semconv/gen-ai/openai/>), and those of the access log's `format: otel` else. How they
//! are written is said in <https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding>.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde::{Serialize, Serializer};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::accounting::access_log::line::Field;
use crate::accounting::access_log::{AccessRecord, Transport};
use crate::accounting::metrics::Metrics;
use crate::codec::error::Outcome;
use crate::codec::trace_context::{TraceContext, TraceParent};
use crate::config::{self, LogFormat, UpstreamKind};
use crate::policy::endpoint::Endpoint;

/// Spans that wait to be sent. Further ones are dropped.
const MAX_QUEUED: usize = 4096;
/// OTLP's numbers for a span of a caller, and for the status of one that failed.
const KIND_CLIENT: u8 = 3;
const STATUS_ERROR: u8 = 2;

/// One span, in JSON.
pub type Span = Box<str>;

/// Where the spans of requests go.
pub struct Traces {
    sample_ratio: f64,
    queue: mpsc::Sender<Span>,
    /// The other end, until somebody takes it to send what comes.
    queued: Mutex<Option<mpsc::Receiver<Span>>>,
    /// Whether the log has been told that spans are dropped.
    is_told: AtomicBool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OtlpSpan<'a> {
    trace_id: String,
    span_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_span_id: Option<String>,
    name: String,
    kind: u8,
    start_time_unix_nano: String,
    end_time_unix_nano: String,
    attributes: Vec<Attribute<'a>>,
    status: Status,
}

#[derive(Serialize)]
struct Status {
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u8>,
}

#[derive(Serialize)]
struct Attribute<'a> {
    key: &'static str,
    value: AttributeValue<'a>,
}

#[derive(Serialize)]
enum AttributeValue<'a> {
    #[serde(rename = "stringValue")]
    Text(&'a str),
    #[serde(rename = "boolValue")]
    Bool(bool),
    /// JSON's numbers have not the range of all 64 bits.
    #[serde(rename = "intValue", serialize_with = "decimal")]
    Count(u64),
}

fn decimal<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

impl Traces {
    /// Spans are queued until [`Self::take_queue`] has been called, and dropped beyond what fits.
    pub fn new(config: &config::Traces) -> Self {
        let (queue, queued) = mpsc::channel(MAX_QUEUED);
        Self {
            sample_ratio: config.sample_ratio,
            queue,
            queued: Mutex::new(Some(queued)),
            is_told: AtomicBool::new(false),
        }
    }

    /// What is to be sent; none the second time.
    pub fn take_queue(&self) -> Option<mpsc::Receiver<Span>> {
        self.queued.lock().take()
    }

    /// The span of a request of this id whose `traceparent` says this.
    pub fn begin(&self, request: Uuid, parent: Option<TraceParent>) -> TraceContext {
        TraceContext::begin(request.into_bytes(), parent, self.sample_ratio)
    }

    /// Queues the span of a request that has ended, or drops it where there is no room.
    pub fn record(
        &self,
        record: &AccessRecord<'_>,
        request: &TraceContext,
        kind: Option<UpstreamKind>,
        metrics: &Metrics,
    ) {
        if !request.sampled {
            return;
        }
        let context = match record.turn {
            0 => *request,
            _ => request.child(Uuid::now_v7().into_bytes()),
        };
        self.queue(span(record, &context, kind), metrics);
    }

    fn queue(&self, span: Span, metrics: &Metrics) {
        if self.queue.try_send(span).is_err() {
            metrics.trace_spans.with_label_values(&["dropped"]).inc();
            if !self.is_told.swap(true, Ordering::Relaxed) {
                // Once: the metric has the rest, and it may be many.
                log::warn!("spans are dropped: the collector of `traces` takes them too slowly");
            }
        }
    }
}

fn span(record: &AccessRecord<'_>, context: &TraceContext, kind: Option<UpstreamKind>) -> Span {
    let operation = operation(record);
    let name = match (operation, record.model) {
        (Some(operation), Some(model)) => format!("{operation} {model}"),
        (Some(operation), None) => operation.to_owned(),
        (None, _) => format!("{} {}", record.method, record.endpoint.as_str()),
    };
    let start = record.time.as_nanosecond();
    let end = start + record.duration_ms.0.as_nanos() as i128;
    let has_failed = !matches!(record.outcome, Outcome::Ok | Outcome::ClientClosed);
    let span = OtlpSpan {
        trace_id: hex::encode(context.trace),
        span_id: hex::encode(context.span),
        parent_span_id: context.parent.map(hex::encode),
        name,
        kind: KIND_CLIENT,
        start_time_unix_nano: start.to_string(),
        end_time_unix_nano: end.to_string(),
        attributes: attributes(record, operation, kind, has_failed),
        status: Status {
            code: has_failed.then_some(STATUS_ERROR),
        },
    };
    let text = serde_json::to_string(&span).expect("a span is valid JSON");
    text.into_boxed_str()
}

/// What is asked of a model; none where the request asks none.
fn operation(record: &AccessRecord<'_>) -> Option<&'static str> {
    match record.endpoint {
        _ if record.transport == Transport::WebSocket && record.turn == 0 => None,
        Endpoint::Responses
        | Endpoint::ResponsesCompact
        | Endpoint::ChatCompletions
        | Endpoint::Messages => Some("chat"),
        Endpoint::Completions => Some("text_completion"),
        Endpoint::Embeddings => Some("embeddings"),
        Endpoint::Extra | Endpoint::ResponsesItem | Endpoint::Other => None,
    }
}

/// By the conventions' names, whoever stands in front of it.
fn provider(kind: UpstreamKind) -> &'static str {
    match kind {
        UpstreamKind::Anthropic => "anthropic",
        _ => "openai",
    }
}

/// A field of the access log; one that it has not does not compile.
macro_rules! field {
    ($name:literal) => {
        const { Field::named($name) }
    };
}

fn attributes<'a>(
    record: &'a AccessRecord<'_>,
    operation: Option<&'static str>,
    kind: Option<UpstreamKind>,
    has_failed: bool,
) -> Vec<Attribute<'a>> {
    use AttributeValue::{Bool, Count, Text};
    let error = record.error.or(record.upstream_error);
    let error = has_failed.then(|| error.unwrap_or(record.outcome.as_str()));
    let status = record.status.map(u64::from);
    let upstream_status = record.upstream_status.map(u64::from);
    let usage = &record.usage;
    let provider = operation.and(kind).map(provider);
    let of = |field: Field, value: Option<AttributeValue<'a>>| {
        Some((field.name_in(LogFormat::Otel), value?))
    };
    let text = |field: Field, value: Option<&'a str>| of(field, value.map(Text));
    let count = |field: Field, value: Option<u64>| of(field, value.map(Count));
    let attributes = [
        operation.map(|value| ("gen_ai.operation.name", Text(value))),
        provider.map(|value| ("gen_ai.provider.name", Text(value))),
        error.map(|value| ("error.type", Text(value))),
        text(field!("model"), record.model),
        text(field!("model_served"), record.model_served),
        text(field!("model_upstream"), record.model_upstream),
        text(field!("response_id"), record.response_id),
        text(field!("service_tier"), record.service_tier),
        text(field!("service_tier_client"), record.service_tier_client),
        text(field!("service_tier_served"), record.service_tier_served),
        text(field!("service_tier_billed"), record.service_tier_billed),
        text(field!("tier_reason"), record.tier_reason),
        of(field!("downgraded"), Some(Bool(record.downgraded))),
        count(field!("input_tokens"), usage.input_tokens),
        count(field!("cached_input_tokens"), usage.cached_input_tokens),
        count(field!("cache_write_tokens"), usage.cache_write_tokens),
        count(field!("output_tokens"), usage.output_tokens),
        count(field!("reasoning_tokens"), usage.reasoning_tokens),
        text(field!("cost_usd"), record.cost_usd.as_deref()),
        text(field!("method"), Some(record.method)),
        text(field!("path"), Some(record.path)),
        count(field!("status"), status),
        text(field!("endpoint"), Some(record.endpoint.as_str())),
        text(field!("transport"), Some(record.transport.as_str())),
        text(field!("key"), record.key),
        text(field!("group"), record.group),
        text(field!("upstream"), record.upstream),
        count(field!("upstream_status"), upstream_status),
        text(field!("upstream_request_id"), record.upstream_request_id),
        text(field!("outcome"), Some(record.outcome.as_str())),
        text(field!("bridge"), record.bridge),
        count(field!("turn"), Some(record.turn)),
    ];
    let attributes = attributes.into_iter().flatten();
    attributes
        .map(|(key, value)| Attribute { key, value })
        .collect()
}

/// A request to the collector with these spans.
pub fn export_request(spans: &[Span]) -> Vec<u8> {
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    let before = format!(
        r#"{{"resourceSpans":[{{"resource":{{"attributes":[{{"key":"service.name","value":{{"stringValue":"tiergate"}}}},{{"key":"service.version","value":{{"stringValue":"{VERSION}"}}}}]}},"scopeSpans":[{{"scope":{{"name":"tiergate","version":"{VERSION}"}},"spans":["#
    );
    let spans = spans.join(",");
    [before.as_bytes(), spans.as_bytes(), b"]}]}]}"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_into_the_queue_is_dropped_and_counted() {
        let traces = Traces::new(&config::Traces {
            endpoint: config::Url::parse("http://h").unwrap(),
            headers_file: None,
            sample_ratio: 1.0,
        });
        let metrics = Metrics::default();
        for _ in 0..MAX_QUEUED + 3 {
            traces.queue("{}".into(), &metrics);
        }
        let dropped = metrics.trace_spans.with_label_values(&["dropped"]);
        assert_eq!(dropped.get(), 3);
        let mut queue = traces.take_queue().unwrap();
        assert!(traces.take_queue().is_none());
        assert_eq!(queue.try_recv().as_deref(), Ok("{}"));
    }

    #[test]
    fn a_request_to_the_collector_is_one_document() {
        let body = export_request(&["{\"a\":1}".into(), "{\"b\":2}".into()]);
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let scope = &body["resourceSpans"][0]["scopeSpans"][0];
        assert_eq!(scope["spans"], serde_json::json!([{"a": 1}, {"b": 2}]));
    }
}
