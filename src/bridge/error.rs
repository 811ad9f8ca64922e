//! What the client gets instead of an answer: a refusal of the room itself, or an upstream's failure, each in the
//! client's protocol. How an upstream's failure is to be understood stands in [`super::failure`].

use super::Protocol;
use super::json::{Node, Object, object, to_string};
use crate::codec;
use crate::codec::error::Cause;
use crate::codec::json::Fault;
use std::borrow::Cow;

/// Longest text of an upstream's error that is handed on, in bytes.
const MESSAGE_BYTES: usize = 2048;

/// A request that is answered here and not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Status of the answer: 400 or 404.
    pub status: u16,
    /// Both protocols' `error.type`.
    pub kind: &'static str,
    /// `error.message`, which begins with the place in the request.
    pub message: String,
    /// Chat's `error.param`: the member at fault.
    pub param: Option<String>,
    /// Messages' `error.details`, its `error_code`: what the client may do about it.
    pub detail: Option<&'static str>,
    /// The cause that the access log and the error body name: [`Cause::UnsupportedByBridge`] or [`Cause::ModelNotMapped`].
    pub cause: Cause,
}

impl Refusal {
    /// 400: `message` says where and what.
    pub(crate) fn invalid(place: impl Into<String>, what: impl AsRef<str>) -> Self {
        let param = place.into();
        Refusal {
            status: 400,
            kind: "invalid_request_error",
            message: format!("{param}: {}", what.as_ref()),
            param: Some(param),
            detail: None,
            cause: Cause::UnsupportedByBridge,
        }
    }

    /// 400: the rest of the conversation is held by nobody. At this `error_code` Anthropic's SDKs send all of it, and go on
    /// so (`ThreadState` of its Python SDK 2.15.0).
    pub(crate) fn held_conversation(place: &'static str) -> Self {
        Refusal {
            detail: Some("thread_unsupported_request"),
            ..Self::invalid(
                place,
                "send the whole conversation: no part of it is kept here",
            )
        }
    }

    /// 404: no entry of the model map matches this name.
    pub(crate) fn unknown_model(name: &str) -> Self {
        Refusal {
            status: 404,
            kind: "not_found_error",
            message: format!("model: {name}"),
            param: Some("model".to_owned()),
            detail: None,
            cause: Cause::ModelNotMapped,
        }
    }

    /// 404: the upstream cannot count tokens, and no number is invented. Claude Code then estimates by itself.
    pub(crate) fn no_token_count() -> Self {
        Refusal {
            status: 404,
            kind: "not_found_error",
            message: "counting tokens is not available on this upstream".to_owned(),
            param: None,
            detail: None,
            cause: Cause::UnsupportedByBridge,
        }
    }

    /// 400: the body is not JSON.
    pub(crate) fn not_json(fault: Fault) -> Self {
        match fault {
            Fault::TooDeep => Self::invalid("body", "too many nested arrays and objects"),
            fault => Self::invalid("body", fault.to_string()),
        }
    }

    /// The refusal as the client gets it.
    pub fn answer(&self, protocol: Protocol, request_id: &str) -> Answer {
        let words = ErrorWords {
            kind: self.kind.into(),
            message: self.message.clone(),
            param: self.param.clone(),
            code: Some(self.cause.code().to_owned()),
            detail: self.detail,
        };
        Answer::error(self.status, protocol, &words, request_id).never_retry()
    }
}

/// A whole HTTP answer. Its body is JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status of the answer.
    pub status: u16,
    /// Headers besides those of the exchange itself; `content-type` is among them, `content-length` is not.
    pub headers: Vec<(&'static str, String)>,
    /// The JSON body.
    pub body: Vec<u8>,
}

impl Answer {
    /// An answer with this body.
    pub(crate) fn json(status: u16, body: Object<'_>) -> Self {
        Self::text(status, to_string(&body.into()).into_bytes())
    }

    /// An answer of this JSON text.
    pub(crate) fn text(status: u16, body: Vec<u8>) -> Self {
        let headers = vec![("content-type", "application/json".to_owned())];
        Answer {
            status,
            headers,
            body,
        }
    }

    /// An error in the protocol's own shape.
    pub(crate) fn error(
        status: u16,
        protocol: Protocol,
        words: &ErrorWords,
        request_id: &str,
    ) -> Self {
        let error = words.object(protocol);
        let body = match protocol {
            Protocol::Messages => {
                object! {"type": "error", "error": error, "request_id": Node::text(request_id)}
            }
            Protocol::Chat => object! {"error": error},
        };
        Self::json(status, body)
    }

    /// Tells SDKs of both vendors that the same request will fail again.
    pub(crate) fn never_retry(mut self) -> Self {
        self.headers.push(("x-should-retry", "false".to_owned()));
        self
    }

    /// Tells the client when to come again, in seconds.
    pub(crate) fn retry_after(mut self, seconds: Option<u64>) -> Self {
        if let Some(seconds) = seconds {
            self.headers.push(("retry-after", seconds.to_string()));
        }
        self
    }
}

/// The members of an error, before they are put in a protocol's shape.
#[derive(Clone, Debug)]
pub(crate) struct ErrorWords {
    pub(crate) kind: Cow<'static, str>,
    pub(crate) message: String,
    /// `param`, of Chat.
    pub(crate) param: Option<String>,
    /// `code`, of Chat.
    pub(crate) code: Option<String>,
    /// `details.error_code`, of Messages.
    pub(crate) detail: Option<&'static str>,
}

impl ErrorWords {
    pub(crate) fn object(&self, protocol: Protocol) -> Object<'static> {
        let (kind, message) = (Node::text(&self.kind), Node::text(&self.message));
        match protocol {
            Protocol::Messages => {
                let mut error = object! {"type": kind, "message": message};
                if let Some(detail) = self.detail {
                    error.push("details", object! {"error_code": Node::text(detail)});
                }
                error
            }
            Protocol::Chat => object! {
                "message": message,
                "type": kind,
                "param": Node::text_or_null(self.param.as_deref()),
                "code": Node::text_or_null(self.code.as_deref()),
            },
        }
    }
}

/// A text of the upstream, cut to what is handed on.
pub(crate) fn cut(message: &str) -> String {
    codec::cut(message, MESSAGE_BYTES).to_owned()
}
