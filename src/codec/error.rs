//! Every reason for which a request is refused or fails, and the answer that a client gets for it. Nothing else in the
//! project knows status codes or the shape of an error body.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use serde_json::json;

use crate::codec::framing::write_line;
use crate::policy::endpoint::Protocol;

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
    /// The memory for request bodies of the whole process is in use.
    BufferFull,
    /// The request had not arrived whole when the time to drain was over.
    Draining,
    /// The access log cannot be written and its backlog is full: what cannot be billed is not served.
    AccessLogUnavailable,
    /// A defect of the proxy's own; the request was not sent on. Stands last: [`Cause::ALL`] counts on it.
    Internal,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// The words for the client.
    pub message: Cow<'static, str>,
}

/// An answer of the proxy's own, ready to be sent.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status of the answer.
    pub status: u16,
    /// The JSON body, in the shape of the endpoint's protocol.
    pub body: Bytes,
    /// Seconds after which a client may try again, where that helps.
    pub retry_after: Option<u32>,
    /// False tells the SDKs of OpenAI and Anthropic not to retry (`x-should-retry: false`).
    pub should_retry: bool,
}

impl Refusal {
    /// A refusal for this cause, with these words for the client.
    pub fn new(cause: Cause, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            cause,
            message: message.into(),
        }
    }

    /// The answer in the caller's protocol: OpenAI's `{"error":{"message","type","param","code"}}` or Anthropic's
    /// `{"type":"error","error":{"type","message"}}`.
    pub fn answer(&self, protocol: Protocol) -> Answer {
        let status = self.cause.status();
        let message = self.message.as_ref();
        let body = match protocol {
            Protocol::OpenAi => json!({"error": {
                "message": message,
                "type": self.cause.openai_type(),
                "param": null,
                "code": self.cause.code(),
            }}),
            Protocol::Anthropic => json!({
                "type": "error",
                "error": {"type": self.cause.anthropic_type(), "message": format!("{}: {message}", self.cause.code())},
            }),
        };
        Answer {
            status,
            body: Bytes::from(body.to_string()),
            retry_after: matches!(status, 429 | 503).then_some(1),
            should_retry: matches!(status, 429 | 502 | 503 | 504),
        }
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
        always.into_iter().chain(retry_after).chain(should_retry)
    }

    /// As HTTP/1.1 has it, for who speaks past Pingora. Where the request has an id, it is told; where the connection ends
    /// behind it, that too.
    pub fn message(
        &self,
        date: &HeaderValue,
        id: Option<&HeaderValue>,
        keeps_connection: bool,
    ) -> Vec<u8> {
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
        if let Some(id) = id {
            line("x-tiergate-request-id", id.as_bytes());
        }
        if !keeps_connection {
            line("connection", b"close");
        }
        message.extend_from_slice(b"\r\n");
        message.extend_from_slice(&self.body);
        message
    }
}

impl Outcome {
    /// The word for it in the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Denied => "denied",
            Outcome::Rejected => "rejected",
            Outcome::ClientClosed => "client_closed",
            Outcome::UpstreamError => "upstream_error",
            Outcome::UpstreamCut => "upstream_cut",
            Outcome::Timeout => "timeout",
        }
    }
}

impl Cause {
    /// In the order of the declaration.
    pub const ALL: [Cause; Cause::Internal as usize + 1] = [
        Cause::MissingApiKey,
        Cause::InvalidApiKey,
        Cause::ConflictingApiKeys,
        Cause::KeyDisabled,
        Cause::GroupDisabled,
        Cause::BatchesNotForced,
        Cause::MessagesNotForced,
        Cause::AmbiguousPath,
        Cause::InvalidHttp,
        Cause::InvalidJson,
        Cause::NotAJsonObject,
        Cause::JsonTooDeep,
        Cause::InvalidUtf8,
        Cause::InvalidContentEncoding,
        Cause::RequestTimeout,
        Cause::HeaderTooLarge,
        Cause::TooManyRequests,
        Cause::BudgetExhausted,
        Cause::BodyTooLarge,
        Cause::DecodedBodyTooLarge,
        Cause::UnsupportedContentEncoding,
        Cause::UnsupportedContentType,
        Cause::UpstreamUnreachable,
        Cause::UpstreamReset,
        Cause::UpstreamTimeout,
        Cause::BufferFull,
        Cause::Draining,
        Cause::AccessLogUnavailable,
        Cause::Internal,
    ];

    /// The code that clients and the access log see, such as `missing_api_key`.
    pub fn code(self) -> &'static str {
        self.row().1
    }

    /// HTTP status that the client gets.
    pub fn status(self) -> u16 {
        self.row().0
    }

    /// The outcome that the access log has for it.
    pub fn outcome(self) -> Outcome {
        match self.status() {
            401 | 403 => Outcome::Denied,
            408 | 504 => Outcome::Timeout,
            502 => Outcome::UpstreamError,
            _ if self == Cause::AmbiguousPath => Outcome::Denied,
            _ => Outcome::Rejected,
        }
    }

    /// Status, code, default message.
    fn row(self) -> (u16, &'static str, &'static str) {
        match self {
            Cause::MissingApiKey => (
                401,
                "missing_api_key",
                "no API key: send it as `authorization: Bearer` or as `x-api-key`",
            ),
            Cause::InvalidApiKey => (401, "invalid_api_key", "the API key is not known here"),
            Cause::ConflictingApiKeys => (
                401,
                "conflicting_api_keys",
                "the request carries several API keys that differ",
            ),
            Cause::KeyDisabled => (403, "key_disabled", "the API key is disabled"),
            Cause::GroupDisabled => (
                403,
                "group_disabled",
                "the group of the API key is disabled",
            ),
            Cause::BatchesNotForced => (
                403,
                "batches_not_forced",
                "the group's service tier is forced, and the lines of a batch would escape it",
            ),
            Cause::MessagesNotForced => (
                403,
                "messages_not_forced",
                "the group's service tier is forced, and its upstream has no way to ask for it on messages",
            ),
            Cause::AmbiguousPath => (
                400,
                "ambiguous_path",
                "the path may be read as another path: it has an empty or dot segment, a backslash or a needless escape",
            ),
            Cause::InvalidHttp => (400, "invalid_http", "the request is not well-formed HTTP"),
            Cause::InvalidJson => (400, "invalid_json", "the body is not valid JSON"),
            Cause::NotAJsonObject => (400, "not_a_json_object", "the body is not a JSON object"),
            Cause::JsonTooDeep => (400, "json_too_deep", "the body is nested too deep"),
            Cause::InvalidUtf8 => (400, "invalid_utf8", "the body is not UTF-8"),
            Cause::InvalidContentEncoding => (
                400,
                "invalid_content_encoding",
                "the body is not what its content-encoding says",
            ),
            Cause::RequestTimeout => (
                408,
                "request_timeout",
                "the request took too long to arrive",
            ),
            Cause::HeaderTooLarge => (
                431,
                "header_too_large",
                "the request's head is larger than the limit",
            ),
            Cause::TooManyRequests => (
                429,
                "too_many_requests",
                "as many requests run as may; try again",
            ),
            Cause::BudgetExhausted => (
                429,
                "budget_exhausted",
                "the budget of the fast tier is used up for now",
            ),
            Cause::BodyTooLarge => (413, "body_too_large", "the body is larger than the limit"),
            Cause::DecodedBodyTooLarge => (
                413,
                "decoded_body_too_large",
                "the body is larger than the limit once it is decoded",
            ),
            Cause::UnsupportedContentEncoding => (
                415,
                "unsupported_content_encoding",
                "of content codings, one of gzip, zstd, br, deflate is understood",
            ),
            Cause::UnsupportedContentType => (
                415,
                "unsupported_content_type",
                "the body must be JSON in UTF-8, not multipart or another charset",
            ),
            Cause::UpstreamUnreachable => (
                502,
                "upstream_unreachable",
                "the upstream cannot be reached",
            ),
            Cause::UpstreamReset => (
                502,
                "upstream_reset",
                "the upstream closed the connection without an answer",
            ),
            Cause::UpstreamTimeout => (504, "upstream_timeout", "the upstream took too long"),
            Cause::BufferFull => (
                503,
                "buffer_full",
                "too many request bodies are held at once; try again",
            ),
            Cause::Draining => (503, "draining", "the proxy is about to stop; try again"),
            Cause::AccessLogUnavailable => (
                503,
                "access_log_unavailable",
                "requests cannot be accounted for at the moment; try again",
            ),
            Cause::Internal => (
                500,
                "internal_error",
                "the proxy failed; the request was not sent on",
            ),
        }
    }

    /// OpenAI's `error.type` (<https://platform.openai.com/docs/guides/error-codes>).
    fn openai_type(self) -> &'static str {
        match self.status() {
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// Anthropic's `error.type` (<https://docs.anthropic.com/en/api/errors>).
    fn anthropic_type(self) -> &'static str {
        match self.status() {
            401 => "authentication_error",
            403 => "permission_error",
            413 | 431 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            408 | 504 => "timeout_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        }
    }
}

impl From<Cause> for Refusal {
    fn from(cause: Cause) -> Self {
        Self::new(cause, cause.row().2)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.cause.code(), self.message)
    }
}
