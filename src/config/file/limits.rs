//! The section `limits` as written, and what it resolves to.

use serde::Deserialize;

use super::Resolver;
use crate::config::Limits;
use crate::config::field::{Field, Section};
use crate::config::units::{ByteSize, TimeSpan};

/// The largest head that is held for each connection, in bytes.
const MAX_HEADER: u64 = 1 << 20;
/// Even a short question with its headers may have as much, in bytes.
const LEAST_SIZE: u64 = 1 << 10;
/// A message with a text in it is nested so deep, and tools deeper.
const LEAST_DEPTH: usize = 6;
const MAX_JSON_DEPTH: u64 = 65_536;
const MAX_CONNECTIONS: u64 = 1_000_000;
/// The most that `requests_in_flight`, and a group's `max_in_flight`, may be.
pub(crate) const MAX_IN_FLIGHT: u64 = 1_000_000;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitsSection {
    header: Field<ByteSize>,
    connections: Field<i64>,
    connections_per_client: Field<i64>,
    requests_in_flight: Field<i64>,
    idle_upstream_connections: Field<i64>,
    body: Field<ByteSize>,
    decoded_body: Field<ByteSize>,
    buffered: Field<ByteSize>,
    websocket_message: Field<ByteSize>,
    json_depth: Field<i64>,
    header_timeout: Field<TimeSpan>,
    body_idle_timeout: Field<TimeSpan>,
    body_timeout: Field<TimeSpan>,
    write_timeout: Field<TimeSpan>,
    keepalive_timeout: Field<TimeSpan>,
}

impl Resolver<'_> {
    pub(super) fn limits(&self, field: &Field<Section<LimitsSection>>) -> Limits {
        let mut limits = Limits::default();
        let Some(given) = field.section(&self.errors) else {
            return limits;
        };
        self.sizes(&given, &mut limits);
        self.check_sizes(&given, &limits);
        self.counts(&given, &mut limits);
        self.timeouts(&given, &mut limits);
        if limits.body.max(limits.decoded_body) > limits.buffered {
            self.warnings.add(field.location(), "`buffered` is less than `body` or `decoded_body`: the largest bodies are always refused");
        }
        limits
    }

    fn sizes(&self, given: &LimitsSection, limits: &mut Limits) {
        for (field, value) in [
            (&given.header, &mut limits.header),
            (&given.body, &mut limits.body),
            (&given.decoded_body, &mut limits.decoded_body),
            (&given.buffered, &mut limits.buffered),
            (&given.websocket_message, &mut limits.websocket_message),
        ] {
            *value = field.or(ByteSize(*value), &self.errors).0;
        }
    }

    /// Limits that no server would have, or that ordinary requests are above.
    fn check_sizes(&self, given: &LimitsSection, limits: &Limits) {
        if limits.header > MAX_HEADER {
            let message = "`header` is at most 1MiB";
            self.errors.add(given.header.location(), message);
        }
        for (name, field, value) in [
            ("header", &given.header, limits.header),
            ("body", &given.body, limits.body),
            ("decoded_body", &given.decoded_body, limits.decoded_body),
            (
                "websocket_message",
                &given.websocket_message,
                limits.websocket_message,
            ),
        ] {
            if value < LEAST_SIZE {
                let message =
                    format!("ordinary requests are larger than this `{name}`, and are refused");
                self.warnings.add(field.location(), message);
            }
        }
    }

    fn counts(&self, given: &LimitsSection, limits: &mut Limits) {
        for (field, most, value) in [
            (&given.json_depth, MAX_JSON_DEPTH, &mut limits.json_depth),
            (&given.connections, MAX_CONNECTIONS, &mut limits.connections),
            (
                &given.idle_upstream_connections,
                MAX_CONNECTIONS,
                &mut limits.idle_upstream_connections,
            ),
        ] {
            *value = field.count(1..=most, &self.errors).unwrap_or(*value);
        }
        if limits.json_depth < LEAST_DEPTH {
            let message =
                "ordinary requests are nested deeper than this `json_depth`, and are refused";
            self.warnings.add(given.json_depth.location(), message);
        }
        limits.connections_per_client = given
            .connections_per_client
            .integer(1..=MAX_CONNECTIONS, &self.errors);
        limits.requests_in_flight = given
            .requests_in_flight
            .integer(1..=MAX_IN_FLIGHT, &self.errors);
    }

    fn timeouts(&self, given: &LimitsSection, limits: &mut Limits) {
        for (name, field, value) in [
            (
                "header_timeout",
                &given.header_timeout,
                &mut limits.header_timeout,
            ),
            (
                "body_idle_timeout",
                &given.body_idle_timeout,
                &mut limits.body_idle_timeout,
            ),
            (
                "body_timeout",
                &given.body_timeout,
                &mut limits.body_timeout,
            ),
            (
                "write_timeout",
                &given.write_timeout,
                &mut limits.write_timeout,
            ),
            (
                "keepalive_timeout",
                &given.keepalive_timeout,
                &mut limits.keepalive_timeout,
            ),
        ] {
            *value = self.timeout(name, field, *value);
        }
    }
}
