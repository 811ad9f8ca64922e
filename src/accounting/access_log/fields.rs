//! The fields of a line, in its order: what they are called, and how they are written.

use crate::accounting::access_log::{AccessRecord, Members};

/// Declares the fields: for each its name in the log, its name in `format: otel`, and what is written of a record. The first
/// have nothing to write: a line gets them when it is numbered.
macro_rules! fields {
    (|$record:ident| $($name:literal $otel:literal $(= $write:ident($value:expr))?;)*) => {
        /// The names of every field: the log's own, and those of `format: otel`.
        pub(super) const NAMES: &[[&str; 2]] = &[$([$name, $otel]),*];

        impl Members<'_> {
            /// Writes all that a record says.
            pub(super) fn record(&mut self, $record: &AccessRecord<'_>) {
                // Names in their quotes are made when the program is built, which saves a line some hundred small copies.
                $($(self.$write(concat!("\"", $name, "\":"), $value);)?)*
            }
        }
    };
}

// The names of `format: otel` are OpenTelemetry's where its conventions have one that means the same
// (<https://opentelemetry.io/docs/specs/semconv/gen-ai/>).
fields! { |record|
    "schema" "tiergate.schema";
    "seq" "tiergate.seq";
    "instance" "tiergate.instance";
    "event_id" "tiergate.event_id" = event_id(record);
    "time" "tiergate.time" = time(record.time);
    "duration_ms" "tiergate.duration_ms" = value(&record.duration_ms);
    "ttfb_ms" "tiergate.ttfb_ms" = value(&record.ttfb_ms);
    "request_id" "tiergate.request_id" = id(record.request_id);
    "turn" "tiergate.turn" = value(&record.turn);
    "client" "client.address" = value(&record.client);
    "user_agent" "user_agent.original" = text(record.user_agent);
    "key" "tiergate.key" = text(record.key);
    "group" "tiergate.group" = text(record.group);
    "platform" "tiergate.platform" = text(record.platform);
    "policy" "tiergate.policy" = text(Some(record.policy));
    "method" "http.request.method" = text(Some(record.method));
    "path" "url.path" = text(Some(record.path));
    "endpoint" "tiergate.endpoint" = text(Some(record.endpoint.as_str()));
    "transport" "tiergate.transport" = text(Some(record.transport.as_str()));
    "model" "gen_ai.request.model" = text(record.model);
    "service_tier" "openai.request.service_tier" = text(record.service_tier);
    "service_tier_client" "tiergate.service_tier_client" = text(record.service_tier_client);
    "service_tier_served" "openai.response.service_tier" = text(record.service_tier_served);
    "service_tier_billed" "tiergate.service_tier_billed" = text(record.service_tier_billed);
    "tier_reason" "tiergate.tier_reason" = text(record.tier_reason);
    "tier_billed_by" "tiergate.tier_billed_by" = text(record.tier_billed_by);
    "downgraded" "tiergate.downgraded" = value(&record.downgraded);
    "upstream" "tiergate.upstream" = text(record.upstream);
    "upstream_status" "tiergate.upstream_status" = value(&record.upstream_status);
    "upstream_request_id" "tiergate.upstream_request_id" = text(record.upstream_request_id);
    "response_id" "gen_ai.response.id" = text(record.response_id);
    "status" "http.response.status_code" = value(&record.status);
    "outcome" "tiergate.outcome" = text(Some(record.outcome.as_str()));
    "error" "tiergate.error" = text(record.error);
    "usage_state" "tiergate.usage_state" = text(Some(record.usage_state.as_str()));
    "terminal_event" "tiergate.terminal_event" = text(record.terminal_event);
    "input_tokens" "gen_ai.usage.input_tokens" = value(&record.usage.input_tokens);
    "cached_input_tokens" "gen_ai.usage.cache_read.input_tokens" = value(&record.usage.cached_input_tokens);
    "cache_write_tokens" "gen_ai.usage.cache_creation.input_tokens" = value(&record.usage.cache_write_tokens);
    "output_tokens" "gen_ai.usage.output_tokens" = value(&record.usage.output_tokens);
    "reasoning_tokens" "gen_ai.usage.reasoning.output_tokens" = value(&record.usage.reasoning_tokens);
    "cost_usd" "tiergate.cost_usd" = text(record.cost_usd.as_deref());
    "request_bytes" "tiergate.request_bytes" = value(&record.request_bytes);
    "upstream_request_bytes" "tiergate.upstream_request_bytes" = value(&record.upstream_request_bytes);
    "response_bytes" "tiergate.response_bytes" = value(&record.response_bytes);
    // Added since the first release, at the end, so that readers by place find what they know.
    "model_served" "gen_ai.response.model" = text(record.model_served);
    "tier_refused" "tiergate.tier_refused" = value(&record.tier_refused);
    "upstream_error" "tiergate.upstream_error" = text(record.upstream_error);
    "cache_write_long_tokens" "tiergate.cache_write_long_tokens" = value(&record.usage.cache_write_long_tokens);
    "of_request" "tiergate.of_request" = value(&record.of_request);
    "bridge" "tiergate.bridge" = text(record.bridge);
    "bridge_dropped" "tiergate.bridge_dropped" = text(record.bridge_dropped);
    "key_id" "tiergate.key_id" = text(record.key_id);
    "prices" "tiergate.prices" = text(record.prices);
    "model_upstream" "tiergate.model_upstream" = text(record.model_upstream);
}
