//! The access log: what a line says, and how it gets to the file so that none is lost. It knows nothing of requests;
//! `record.rs` builds the records.

mod backlog;
mod disk_time;
mod fields;
pub mod line;
mod sink;
mod writer;

use std::cell::RefCell;
use std::io::Write;

use jiff::Timestamp;
use jiff::fmt::StdIoWrite;
use jiff::fmt::temporal::DateTimePrinter;
use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::accounting::access_log::line::{Field, Line, Wanted};
use crate::accounting::usage::{Usage, UsageState};
use crate::codec::error::Outcome;
use crate::config::LogFormat;
use crate::policy::endpoint::Endpoint;

pub use crate::accounting::access_log::writer::AccessLog;

/// The version of the schema that [`AccessRecord`] writes.
const SCHEMA: u32 = 1;
/// The fields that a line gets when it is numbered, in their order.
const ADDED: [Field; 3] = [
    Field::named("schema"),
    Field::named("seq"),
    Field::named("instance"),
];

/// One line. The names of the fields are the names in the log; an event's id is made of those of request and turn.
#[derive(Debug)]
pub struct AccessRecord<'a> {
    /// When the request began.
    pub time: Timestamp,
    /// Time from the request's beginning to the end of the response, in milliseconds.
    pub duration_ms: Millis,
    /// Until the first byte of the upstream's answer.
    pub ttfb_ms: Option<Millis>,
    /// Id of the request, a UUIDv7; the client gets it as `x-tiergate-request-id`.
    pub request_id: Uuid,
    /// 0 for an HTTP request and for a WebSocket connection itself; the responses on a WebSocket count from 1.
    pub turn: u64,
    /// IP address of the client.
    pub client: Option<std::net::IpAddr>,
    /// The client's `user-agent`, cut to 512 bytes.
    pub user_agent: Option<&'a str>,
    /// The key's name, never the key.
    pub key: Option<&'a str>,
    /// Name of the key's group.
    pub group: Option<&'a str>,
    /// Platform of the group.
    pub platform: Option<&'a str>,
    /// Revision of the policy that decided: `sha256:` and 12 hexadecimal digits of the file.
    pub policy: &'a str,
    /// Method of the request, cut to 32 bytes.
    pub method: &'a str,
    /// Path of the request without its query, cut to 1024 bytes.
    pub path: &'a str,
    /// Kind of endpoint that the path names.
    pub endpoint: Endpoint,
    /// How the response was carried.
    pub transport: Transport,
    /// Model that the request names, else the one that the response names.
    pub model: Option<&'a str>,
    /// Read from the bytes that went to the upstream.
    pub service_tier: Option<&'a str>,
    /// Tier that the client asked for.
    pub service_tier_client: Option<&'a str>,
    /// Tier that the response names.
    pub service_tier_served: Option<&'a str>,
    /// Tier that is billed.
    pub service_tier_billed: Option<&'a str>,
    /// Why the tier is what it is; none where the request was denied.
    pub tier_reason: Option<&'a str>,
    /// Which tier is billed: `served` or `sent`.
    pub tier_billed_by: Option<&'static str>,
    /// Whether priority was sent, and a trusted upstream says that it served another tier.
    pub downgraded: bool,
    /// Name of the upstream; none where no upstream was reached.
    pub upstream: Option<&'a str>,
    /// HTTP status of the upstream's response.
    pub upstream_status: Option<u16>,
    /// The upstream's `x-request-id` or `request-id`.
    pub upstream_request_id: Option<&'a str>,
    /// Id of the response object.
    pub response_id: Option<&'a str>,
    /// HTTP status that the client was sent.
    pub status: Option<u16>,
    /// How the request ended.
    pub outcome: Outcome,
    /// Code of the proxy's own error, as [`crate::codec::error::Cause::code`] spells it.
    pub error: Option<&'static str>,
    /// How complete the usage is.
    pub usage_state: UsageState,
    /// Type of the event that ended a stream, such as `response.completed`.
    pub terminal_event: Option<&'a str>,
    /// Tokens that the response reports.
    pub usage: Usage,
    /// A decimal in USD.
    pub cost_usd: Option<String>,
    /// Bytes of the body that came from the client.
    pub request_bytes: u64,
    /// Bytes of the body that went to the upstream.
    pub upstream_request_bytes: u64,
    /// Bytes of the body that came from the upstream.
    pub response_bytes: u64,
    /// The model that the response names.
    pub model_served: Option<&'a str>,
    /// The upstream refused the tier that it was sent.
    pub tier_refused: bool,
    /// Code of the upstream's error, else its type.
    pub upstream_error: Option<&'a str>,
    /// The request that created the background response whose usage this line has.
    pub of_request: Option<Uuid>,
    /// The protocols that were translated, such as `messages>responses`.
    pub bridge: Option<&'a str>,
    /// What was left out in that, separated by commas.
    pub bridge_dropped: Option<&'a str>,
    /// The first 8 hexadecimal digits of the key's digest, whether the key is known or not.
    pub key_id: Option<&'a str>,
    /// Revision of the price file that `cost_usd` was computed by; none where there is no price file.
    pub prices: Option<&'a str>,
    /// The model that a translated request names to the upstream.
    pub model_upstream: Option<&'a str>,
}

/// How a response was carried to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Transport {
    /// An HTTP response in one piece.
    Http,
    /// An HTTP response as a stream of server-sent events.
    Sse,
    /// Messages on a WebSocket.
    WebSocket,
}

impl Transport {
    /// The word for it in the access log.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Milliseconds with three decimals.
#[derive(Clone, Copy, Debug)]
pub struct Millis(pub std::time::Duration);

impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0.as_micros() as f64 / 1000.0)
    }
}

/// Writes a record's members, each with a comma behind it. serde's derive escapes every name anew, and took twice as many
/// instructions: 4 % of those for a small request.
struct Members<'a>(&'a mut Vec<u8>);

impl Members<'_> {
    /// Request and turn together are an event's id.
    fn event_id(&mut self, name: &str, record: &AccessRecord<'_>) {
        let mut id = Uuid::encode_buffer();
        let id = record.request_id.hyphenated().encode_lower(&mut id);
        self.name(name);
        self.0.push(b'"');
        self.0.extend_from_slice(id.as_bytes());
        self.0.push(b'#');
        serde_json::to_writer(&mut *self.0, &record.turn).expect("a number is valid JSON");
        self.0.extend_from_slice(b"\",");
    }

    fn id(&mut self, name: &str, id: Uuid) {
        let id = id.hyphenated();
        self.text(name, Some(id.encode_lower(&mut Uuid::encode_buffer())));
    }

    /// Here and below, names stand in their quotes, a colon behind them.
    fn name(&mut self, name: &str) {
        self.0.extend_from_slice(name.as_bytes());
    }

    /// RFC 3339 UTC with microseconds.
    fn time(&mut self, name: &str, time: Timestamp) {
        const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(6));
        self.name(name);
        self.0.push(b'"');
        let printed = PRINTER.print_timestamp(&time, StdIoWrite(&mut *self.0));
        printed.expect("a Vec takes all");
        self.0.extend_from_slice(b"\",");
    }

    fn text(&mut self, name: &str, text: Option<&str>) {
        let special = |byte: &u8| *byte < b' ' || matches!(byte, b'"' | b'\\');
        let Some(plain) = text.filter(|text| !text.as_bytes().iter().any(special)) else {
            return self.value(name, &text);
        };
        self.name(name);
        self.0.push(b'"');
        self.0.extend_from_slice(plain.as_bytes());
        self.0.extend_from_slice(b"\",");
    }

    fn value(&mut self, name: &str, value: &impl Serialize) {
        self.name(name);
        // These are texts, numbers and what stands for none, all of which JSON can say.
        serde_json::to_writer(&mut *self.0, value).expect("a field is valid JSON");
        self.0.push(b',');
    }
}

impl AccessLog {
    /// Writes the line of a request that has ended.
    pub fn append(&self, record: &AccessRecord<'_>) {
        thread_local!(static BODY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });
        let is_billed = record.upstream.is_some();
        BODY.with_borrow_mut(|body| {
            body.clear();
            body.push(b'{');
            Members(body).record(record);
            // The last comma.
            body.pop();
            body.push(b'}');
            match self.format() {
                LogFormat::Json => self.append_line(&body[1..], is_billed),
                LogFormat::Otel => self.append_line(&renamed(body), is_billed),
            }
        });
    }
}

/// The members of a record by their names in `format: otel`, as they stand behind those that are added.
fn renamed(record: &[u8]) -> Vec<u8> {
    let wanted = Wanted::without(ADDED);
    // It was written by this process, from a struct that has each field once.
    let line = Line::parse(record, &wanted).expect("an access record is one JSON object");
    let mut members = Vec::with_capacity(2 * record.len());
    for field in wanted.fields() {
        let name = field.name_in(LogFormat::Otel);
        write!(members, r#""{name}":{},"#, line.raw(field)).expect("a Vec takes all");
    }
    members.pop();
    members.push(b'}');
    members
}
