//! Every reason for which a request is refused or fails, and the answer that a client gets for it, over HTTP or on a
//! WebSocket. Only the bridge's answers have shapes of their own.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use serde_json::json;

use crate::codec::framing::write_line;

use Outcome::{Denied, Rejected, Timeout, UpstreamError};
use Retry::{Never, Possible, Soon};

/// The status in the event with which OpenAI's API refuses a message of a WebSocket.
const REFUSED_MESSAGE: u16 = 400;

/// Whose shape of error the callers of an endpoint expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The shape of OpenAI's API.
    OpenAi,
    /// The shape of Anthropic's API.
    Anthropic,
}

/// Why a request was not answered by its upstream. Each has a code that clients and the access log see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The request came without an API key.
    MissingApiKey,
    /// The API key is not listed, and there is no default group.
    InvalidApiKey,
    /// The request came with two listed API keys that differ.
    ConflictingApiKeys,
    /// The API key is disabled in the policy.
    KeyDisabled,
    /// The key's group is disabled in the policy.
    GroupDisabled,
    /// The group forces a tier, which the lines of a batch would escape, and its policy does not allow batches.
    BatchesNotForced,
    /// The group forces a tier, and the upstream has `messages: off` for `/v1/messages`.
    MessagesNotForced,
    /// The group forces a tier, which cannot be set where the request asks for one.
    TierNotForced,
    /// An upstream could read the path as another one.
    AmbiguousPath,
    /// The message is not well-formed HTTP: a bad chunk, a body that is not as long as announced.
    InvalidHttp,
    /// The body is not valid JSON.
    InvalidJson,
    /// The body is JSON, but not an object.
    NotAJsonObject,
    /// Arrays and objects of the body are nested deeper than the limit.
    JsonTooDeep,
    /// The body is not valid UTF-8.
    InvalidUtf8,
    /// The body is not what its `content-encoding` says.
    InvalidContentEncoding,
    /// The request did not arrive within the time limit.
    RequestTimeout,
    /// The request's head is longer than the limit.
    HeaderTooLarge,
    /// More requests run at once than the process, the group or the key may have.
    TooManyRequests,
    /// The budget of the fast tier is used up, and its group has it that requests are refused then.
    BudgetExhausted,
    /// The request's body is longer than the limit.
    BodyTooLarge,
    /// The request's body is longer than the limit once it is decoded.
    DecodedBodyTooLarge,
    /// The `content-encoding` names several codings, or one that the proxy cannot decode.
    UnsupportedContentEncoding,
    /// The body is multipart, or in a charset other than UTF-8.
    UnsupportedContentType,
    /// There is no address of the upstream, no connection to one, or TLS failed.
    UpstreamUnreachable,
    /// The upstream closed the connection without a response, or sent one that is not well-formed.
    UpstreamReset,
    /// The upstream did not answer within the time limit.
    UpstreamTimeout,
    /// The upstream refused the key that the operator gave for it (bridge).
    UpstreamCredentialRefused,
    /// The bridge cannot convert the request without giving a wrong answer.
    UnsupportedByBridge,
    /// No entry of the upstream's `models` matches (bridge).
    ModelNotMapped,
    /// The memory for request bodies of the whole process is in use.
    BufferFull,
    /// The request had not arrived whole when the time to drain was over.
    Draining,
    /// The access log cannot be written and its backlog is full: what cannot be billed is not served.
    AccessLogUnavailable,
    /// A defect of the proxy's own; the request was not sent on.
    Internal,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::EnumString, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Outcome {
    /// Answered below 400 and ended properly.
    Ok,
    /// Refused for its key, group or path.
    Denied,
    /// Refused for its body or by a limit.
    Rejected,
    /// The client left before the end.
    ClientClosed,
    /// The upstream answered 4xx or 5xx, failed in its response, or could not be reached.
    UpstreamError,
    /// The upstream's body ended early, or a stream ended without its terminal event.
    UpstreamCut,
    /// The request or the response took longer than a time limit allows.
    Timeout,
}

/// A cause with the words for the client. The words never hold a body, a header value or a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why the request is refused.
    pub cause: Cause,
    /// One sentence without the name of who says it; [`Refusal::text`] has both.
    pub message: Cow<'static, str>,
    /// Seconds until the request may succeed, where more is known than what is usual for the cause.
    pub retry_after: Option<u64>,
}

/// An answer of the proxy's own, ready to be sent.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status of the answer.
    pub status: u16,
    /// The JSON body, in the shape of the endpoint's protocol.
    pub body: Bytes,
    /// Seconds after which a client may try again, where that helps.
    pub retry_after: Option<u64>,
    /// A 401 says which scheme is expected (RFC 9110 section 11.6.1).
    pub challenge: Option<&'static str>,
    /// False tells the SDKs of OpenAI and Anthropic not to retry (`x-should-retry: false`).
    pub should_retry: bool,
}

impl Refusal {
    /// A refusal for this cause, with these words for the client.
    pub fn new(cause: Cause, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            cause,
            message: message.into(),
            retry_after: None,
        }
    }

    /// The same, with the seconds until the request may succeed.
    pub fn with_retry_after(self, seconds: u64) -> Self {
        Self {
            retry_after: Some(seconds),
            ..self
        }
    }

    /// The fast tier's budget is used up, for so many seconds more.
    pub fn over_budget(retry_after: u64) -> Self {
        Self::from(Cause::BudgetExhausted).with_retry_after(retry_after)
    }

    /// What a client gets to read: who refuses, and why.
    pub fn text(&self) -> String {
        format!("tiergate: {}", self.message)
    }

    /// The answer in the caller's protocol: OpenAI's `{"error":{"message","type","param","code"}}` or Anthropic's
    /// `{"type":"error","error":{"type","message"}}`, whose message holds the code. `request` is the request's id, by which
    /// its line is found; none where it has none.
    pub fn answer(&self, protocol: Protocol, request: Option<&str>) -> Answer {
        let row = self.cause.row();
        let text = self.text();
        let known = match protocol {
            Protocol::OpenAi => None,
            Protocol::Anthropic => Some(row.code.to_owned()),
        };
        let request = request.map(|id| format!("request {id}"));
        let details: Vec<String> = known.into_iter().chain(request).collect();
        let message = if details.is_empty() {
            text
        } else {
            format!("{text} ({})", details.join(", "))
        };
        let body = match protocol {
            Protocol::OpenAi => json!({"error": {
                "message": message,
                "type": row.openai_type,
                "param": null,
                "code": row.code,
            }}),
            Protocol::Anthropic => json!({
                "type": "error",
                "error": {"type": row.anthropic_type, "message": message},
            }),
        };
        Answer {
            status: row.status,
            body: Bytes::from(body.to_string()),
            retry_after: self.retry_after.or(row.retry.after()),
            challenge: (row.status == 401).then_some("Bearer"),
            should_retry: row.retry != Retry::Never,
        }
    }

    /// The event that tells it on a WebSocket, in the shape of the API's own.
    pub fn event(&self) -> String {
        let (row, status) = (self.cause.row(), self.cause.event_status());
        let kind = match status {
            REFUSED_MESSAGE => INVALID.0,
            _ => row.openai_type,
        };
        let event = json!({
            "type": "error",
            "status": status,
            "error": {
                "type": kind,
                "code": row.code,
                "message": self.text(),
                "param": null,
            },
        });
        event.to_string()
    }
}

impl Answer {
    /// All but its date, the request's id and what is said of the connection.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, String)> {
        let always = [
            ("content-type", "application/json".to_owned()),
            ("content-length", self.body.len().to_string()),
        ];
        let retry_after = self.retry_after;
        let retry_after = retry_after.map(|seconds| ("retry-after", seconds.to_string()));
        let should_retry = (!self.should_retry).then(|| ("x-should-retry", "false".to_owned()));
        let challenge = self.challenge;
        let challenge = challenge.map(|scheme| ("www-authenticate", scheme.to_owned()));
        always
            .into_iter()
            .chain(retry_after)
            .chain(challenge)
            .chain(should_retry)
    }

    /// The whole response in HTTP/1.1 wire format, for a head that Pingora never read. The connection ends with it.
    pub fn message(&self, date: &HeaderValue) -> Vec<u8> {
        let reason = StatusCode::from_u16(self.status)
            .ok()
            .and_then(|status| status.canonical_reason());
        let first = format!(
            "HTTP/1.1 {} {}\r\n",
            self.status,
            reason.unwrap_or_default()
        );
        let mut message = first.into_bytes();
        let mut line = |name: &str, value: &[u8]| write_line(&mut message, name.as_bytes(), value);
        for (name, value) in self.headers() {
            line(name, value.as_bytes());
        }
        line("date", date.as_bytes());
        line("connection", b"close");
        message.extend_from_slice(b"\r\n");
        message.extend_from_slice(&self.body);
        message
    }
}

impl Outcome {
    /// The word for it in the access log.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl Cause {
    /// In the order of the declaration, which is that of the table: whatever is compiled has a row for each.
    pub const ALL: [Cause; ROWS.len()] = {
        let mut all = [Cause::Internal; ROWS.len()];
        let mut at = 0;
        while at < ROWS.len() {
            all[at] = ROWS[at].cause;
            assert!(all[at] as usize == at);
            at += 1;
        }
        all
    };

    /// The code that clients and the access log see, such as `missing_api_key`.
    pub fn code(self) -> &'static str {
        self.row().code
    }

    /// HTTP status that the client gets.
    pub fn status(self) -> u16 {
        self.row().status
    }

    /// The status in the event that tells it on a WebSocket. Whatever a message is refused for, it is that of the API's own
    /// refusals. What passes has the status that it has over HTTP, for by it clients choose whether to send the message again;
    /// but 503 in place of 429, at which Codex gives up on a WebSocket (0.169).
    pub fn event_status(self) -> u16 {
        match self.status() {
            429 if self == Cause::TooManyRequests => 503,
            status @ (408 | 500..) => status,
            _ => REFUSED_MESSAGE,
        }
    }

    /// The outcome that the access log has for it.
    pub fn outcome(self) -> Outcome {
        self.row().outcome
    }

    /// All that belongs to it.
    fn row(self) -> &'static Row {
        &ROWS[self as usize]
    }
}

/// A row of the table of causes.
struct Row {
    cause: Cause,
    status: u16,
    code: &'static str,
    openai_type: &'static str,
    anthropic_type: &'static str,
    outcome: Outcome,
    retry: Retry,
    /// The default message.
    message: &'static str,
}

/// Whether a client that sends the same once more may succeed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Retry {
    Never,
    /// When it likes.
    Possible,
    /// After a second.
    Soon,
}

impl Retry {
    /// The seconds of `retry-after`.
    fn after(self) -> Option<u64> {
        (self == Retry::Soon).then_some(1)
    }
}

/// OpenAI's `error.type` (<https://platform.openai.com/docs/guides/error-codes>) and Anthropic's
/// (<https://docs.anthropic.com/en/api/errors>).
type Types = (&'static str, &'static str);

const AUTHENTICATION: Types = ("invalid_request_error", "authentication_error");
const PERMISSION: Types = ("permission_error", "permission_error");
const INVALID: Types = ("invalid_request_error", "invalid_request_error");
const NOT_FOUND: Types = ("invalid_request_error", "not_found_error");
const SLOW_CLIENT: Types = ("invalid_request_error", "timeout_error");
const TOO_LARGE: Types = ("invalid_request_error", "request_too_large");
const RATE_LIMIT: Types = ("rate_limit_error", "rate_limit_error");
/// Codex stops at this type and tells of it. At any other 429 it waits in silence for as long as `retry-after` says, which may
/// be to the end of the month (seen with Codex 0.169.0).
const USAGE_LIMIT: Types = ("usage_limit_reached", "rate_limit_error");
const SERVER: Types = ("server_error", "api_error");
const SLOW_SERVER: Types = ("server_error", "timeout_error");
const OVERLOADED: Types = ("server_error", "overloaded_error");

const fn row(
    cause: Cause,
    status: u16,
    code: &'static str,
    types: Types,
    outcome: Outcome,
    retry: Retry,
    message: &'static str,
) -> Row {
    Row {
        cause,
        status,
        code,
        openai_type: types.0,
        anthropic_type: types.1,
        outcome,
        retry,
        message,
    }
}

/// Cause, status, code, types, outcome, retry, message.
#[rustfmt::skip]
const ROWS: [Row; Cause::Internal as usize + 1] = [
    row(Cause::MissingApiKey, 401, "missing_api_key", AUTHENTICATION, Denied, Never,
        "no API key; send it as `Authorization: Bearer <key>`, `x-api-key` or `api-key`"),
    row(Cause::InvalidApiKey, 401, "invalid_api_key", AUTHENTICATION, Denied, Never,
        "unknown API key"),
    row(Cause::ConflictingApiKeys, 401, "conflicting_api_keys", AUTHENTICATION, Denied, Never,
        "the request has several different API keys; send one"),
    row(Cause::KeyDisabled, 403, "key_disabled", PERMISSION, Denied, Never,
        "this API key is disabled"),
    row(Cause::GroupDisabled, 403, "group_disabled", PERMISSION, Denied, Never,
        "the group of this API key is disabled"),
    row(Cause::BatchesNotForced, 403, "batches_not_forced", PERMISSION, Denied, Never,
        "batches are not allowed for this API key: the service tier of its group could not be applied to them"),
    row(Cause::MessagesNotForced, 403, "messages_not_forced", PERMISSION, Denied, Never,
        "messages are not allowed for this API key: its upstream cannot apply the service tier of its group to them"),
    row(Cause::TierNotForced, 403, "tier_not_forced", PERMISSION, Rejected, Never,
        "the service tier of this API key's group cannot be set where such a request asks for one"),
    row(Cause::AmbiguousPath, 400, "ambiguous_path", INVALID, Denied, Never,
        "ambiguous path: it has an empty or dot segment, a backslash, or an escape of a plain character"),
    row(Cause::InvalidHttp, 400, "invalid_http", INVALID, Rejected, Never,
        "the request is not well-formed HTTP"),
    row(Cause::InvalidJson, 400, "invalid_json", INVALID, Rejected, Never,
        "the request body is not valid JSON"),
    row(Cause::NotAJsonObject, 400, "not_a_json_object", INVALID, Rejected, Never,
        "the request body must be a JSON object"),
    row(Cause::JsonTooDeep, 400, "json_too_deep", INVALID, Rejected, Never,
        "the JSON of the request body is nested too deeply"),
    row(Cause::InvalidUtf8, 400, "invalid_utf8", INVALID, Rejected, Never,
        "the request body is not valid UTF-8"),
    row(Cause::InvalidContentEncoding, 400, "invalid_content_encoding", INVALID, Rejected, Never,
        "the request body does not match its Content-Encoding"),
    row(Cause::RequestTimeout, 408, "request_timeout", SLOW_CLIENT, Timeout, Never,
        "timed out while waiting for the rest of the request"),
    row(Cause::HeaderTooLarge, 431, "header_too_large", TOO_LARGE, Rejected, Never,
        "the request headers are too large"),
    row(Cause::TooManyRequests, 429, "too_many_requests", RATE_LIMIT, Rejected, Soon,
        "too many concurrent requests; retry later"),
    row(Cause::BudgetExhausted, 429, "budget_exhausted", USAGE_LIMIT, Rejected, Soon,
        "the budget for the fast service tier is used up; retry later"),
    row(Cause::BodyTooLarge, 413, "body_too_large", TOO_LARGE, Rejected, Never,
        "the request body is too large"),
    row(Cause::DecodedBodyTooLarge, 413, "decoded_body_too_large", TOO_LARGE, Rejected, Never,
        "the request body is too large after decoding"),
    row(Cause::UnsupportedContentEncoding, 415, "unsupported_content_encoding", INVALID, Rejected, Never,
        "unsupported Content-Encoding; use one of gzip, zstd, br and deflate, or none"),
    row(Cause::UnsupportedContentType, 415, "unsupported_content_type", INVALID, Rejected, Never,
        "unsupported Content-Type; send JSON in UTF-8"),
    row(Cause::UpstreamUnreachable, 502, "upstream_unreachable", SERVER, UpstreamError, Possible,
        "cannot connect to the upstream"),
    row(Cause::UpstreamReset, 502, "upstream_reset", SERVER, UpstreamError, Possible,
        "the upstream closed the connection without a response"),
    row(Cause::UpstreamTimeout, 504, "upstream_timeout", SLOW_SERVER, Timeout, Possible,
        "timed out while waiting for the upstream"),
    row(Cause::UpstreamCredentialRefused, 502, "upstream_credential_refused", SERVER, UpstreamError, Never,
        "the upstream refused the gateway's credential"),
    row(Cause::UnsupportedByBridge, 400, "unsupported_by_bridge", INVALID, Rejected, Never,
        "the request cannot be converted for this upstream"),
    row(Cause::ModelNotMapped, 404, "model_not_mapped", NOT_FOUND, Rejected, Never,
        "this model is not available here"),
    row(Cause::BufferFull, 503, "buffer_full", OVERLOADED, Rejected, Soon,
        "too many large requests at once; retry later"),
    row(Cause::Draining, 503, "draining", OVERLOADED, Rejected, Soon,
        "the proxy is shutting down; retry"),
    row(Cause::AccessLogUnavailable, 503, "access_log_unavailable", OVERLOADED, Rejected, Soon,
        "the access log cannot be written; retry later"),
    row(Cause::Internal, 500, "internal_error", SERVER, Rejected, Never,
        "internal error; the request was not forwarded"),
];

impl From<Cause> for Refusal {
    fn from(cause: Cause) -> Self {
        Self::new(cause, cause.row().message)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.cause.code(), self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_code_is_there_twice() {
        for (at, row) in ROWS.iter().enumerate() {
            let others = &ROWS[at + 1..];
            assert!(
                others.iter().all(|other| other.code != row.code),
                "{}",
                row.code
            );
        }
    }

    #[test]
    fn a_status_tells_what_clients_may_do() {
        for row in &ROWS {
            // Another key is the operator's to give.
            let may_retry = matches!(row.status, 429 | 502 | 503 | 504)
                && row.cause != Cause::UpstreamCredentialRefused;
            assert_eq!(row.retry != Retry::Never, may_retry, "{}", row.code);
            let answer = Refusal::from(row.cause).answer(Protocol::OpenAi, None);
            assert_eq!(
                answer.retry_after.is_some(),
                matches!(row.status, 429 | 503)
            );
            assert_eq!(
                answer.challenge.is_some(),
                row.status == 401,
                "{}",
                row.code
            );
        }
    }

    #[test]
    fn a_message_says_who_refuses_and_which_request() {
        let refusal = Refusal::from(Cause::InvalidApiKey);
        let told = |protocol| {
            let answer = refusal.answer(protocol, Some("r1"));
            String::from_utf8(answer.body.to_vec()).unwrap()
        };
        assert_eq!(
            told(Protocol::OpenAi),
            r#"{"error":{"message":"tiergate: unknown API key (request r1)","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}"#
        );
        assert_eq!(
            told(Protocol::Anthropic),
            r#"{"type":"error","error":{"type":"authentication_error","message":"tiergate: unknown API key (invalid_api_key, request r1)"}}"#
        );
    }

    #[test]
    fn a_websocket_is_told_by_which_status_to_try_again() {
        use Cause::*;
        let passing = [
            (RequestTimeout, 408),
            (TooManyRequests, 503),
            (UpstreamUnreachable, 502),
            (UpstreamReset, 502),
            (UpstreamTimeout, 504),
            (UpstreamCredentialRefused, 502),
            (BufferFull, 503),
            (Draining, 503),
            (AccessLogUnavailable, 503),
            (Internal, 500),
        ];
        for cause in Cause::ALL {
            let told = passing.iter().find(|(passing, _)| *passing == cause);
            let status = told.map_or(400, |(_, status)| *status);
            assert_eq!(cause.event_status(), status, "{cause:?}");
        }
        assert_eq!(
            Refusal::from(KeyDisabled).event(),
            r#"{"type":"error","status":400,"error":{"type":"invalid_request_error","code":"key_disabled","message":"tiergate: this API key is disabled","param":null}}"#
        );
        assert!(
            Refusal::from(TooManyRequests)
                .event()
                .contains(r#""type":"rate_limit_error""#)
        );
    }

    #[test]
    fn a_refusal_may_know_how_long_it_lasts() {
        let refusal = Refusal::from(Cause::BudgetExhausted).with_retry_after(3600);
        let answer = refusal.answer(Protocol::OpenAi, None);
        assert_eq!(answer.retry_after, Some(3600));
        let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body["error"]["type"], "usage_limit_reached");
    }
}
