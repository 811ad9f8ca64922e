//! The section `limits` as written, and what it resolves to.

use serde::Deserialize;

use super::Resolver;
use crate::config::Limits;
use crate::config::diagnostic::Location;
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
        let default = Limits::default();
        let Some(given) = field.section(&self.errors) else {
            return default;
        };
        let size = |field: &Field<ByteSize>, default| field.or(ByteSize(default), &self.errors).0;
        let count = |field: &Field<i64>, most, default| {
            let given = field.count(1..=most, &self.errors);
            given.unwrap_or(default)
        };
        let time = |name, field, default| self.timeout(name, field, default);
        let limits = Limits {
            header: size(&given.header, default.header),
            body: size(&given.body, default.body),
            decoded_body: size(&given.decoded_body, default.decoded_body),
            buffered: size(&given.buffered, default.buffered),
            websocket_message: size(&given.websocket_message, default.websocket_message),
            json_depth: count(&given.json_depth, MAX_JSON_DEPTH, default.json_depth),
            connections: count(&given.connections, MAX_CONNECTIONS, default.connections),
            idle_upstream_connections: count(
                &given.idle_upstream_connections,
                MAX_CONNECTIONS,
                default.idle_upstream_connections,
            ),
            connections_per_client: given
                .connections_per_client
                .integer_or_null(1..=MAX_CONNECTIONS, &self.errors),
            requests_in_flight: given
                .requests_in_flight
                .integer_or_null(1..=MAX_IN_FLIGHT, &self.errors),
            header_timeout: time(
                "header_timeout",
                &given.header_timeout,
                default.header_timeout,
            ),
            body_idle_timeout: time(
                "body_idle_timeout",
                &given.body_idle_timeout,
                default.body_idle_timeout,
            ),
            body_timeout: time("body_timeout", &given.body_timeout, default.body_timeout),
            write_timeout: time("write_timeout", &given.write_timeout, default.write_timeout),
            keepalive_timeout: time(
                "keepalive_timeout",
                &given.keepalive_timeout,
                default.keepalive_timeout,
            ),
        };
        self.check_sizes(&given, &limits);
        self.warn_of_relations(&limits, field.location());
        limits
    }

    /// Limits that another one is always reached before.
    fn warn_of_relations(&self, limits: &Limits, location: Location) {
        let per_client = limits.connections_per_client;
        for (is_so, message) in [
            (
                limits.body.max(limits.decoded_body) > limits.buffered,
                "`buffered` is less than `body` or `decoded_body`: the largest bodies are always refused",
            ),
            (
                limits.websocket_message > limits.buffered,
                "`buffered` is less than `websocket_message`: the largest messages are always refused",
            ),
            (
                limits.decoded_body < limits.body,
                "`decoded_body` is less than `body`: the largest compressed bodies are always refused",
            ),
            (
                limits.body_timeout < limits.body_idle_timeout,
                "`body_idle_timeout` is never reached: `body_timeout` is lower",
            ),
            (
                per_client.is_some_and(|most| most > limits.connections as u64),
                "`connections_per_client` is never reached: `connections` is lower",
            ),
        ] {
            if is_so {
                self.warnings.add(location, message);
            }
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
        if limits.json_depth < LEAST_DEPTH {
            let message =
                "ordinary requests are nested deeper than this `json_depth`, and are refused";
            self.warnings.add(given.json_depth.location(), message);
        }
    }
}
