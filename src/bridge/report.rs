//! An upstream's error and what it means to a client: for one of Messages the first rule that holds gives status, type and
//! text. The texts are those by which Claude Code shortens a conversation, strips thinking, waits or repeats. How an answer is
//! made of it stands in [`super::failure`].

use super::Protocol;
use super::error::{Answer, ErrorWords, cut};
use super::json::Node;
use super::retry_after::seconds_of;
use crate::codec::error::Cause;
use std::borrow::Cow;

/// The `type` of an error of Chat that has none.
pub(crate) const SERVER_ERROR: &str = "server_error";

/// The text of an error that has none.
const NO_MESSAGE: &str = "upstream error";

/// What is told where the upstream has refused the operator's credential.
const CREDENTIAL_REFUSED: &str = "the upstream refused the gateway's credential";

/// Numbers of fewer digits are no token counts.
const TOKEN_DIGITS: usize = 4;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Status of its HTTP answer; `None` in a stream.
    pub(crate) status: Option<u16>,
    message: Option<String>,
    pub(crate) kind: Option<String>,
    code: Option<String>,
    /// The member of the request that it names.
    param: Option<String>,
    /// Seconds until a next try, of its header or its body.
    pub(crate) retry_after: Option<u64>,
    /// The operator's credential was sent, not the client's.
    pub(crate) own_credential: bool,
    /// No error object says that something failed: the status of an HTTP answer does, or that of a response.
    pub(crate) untold: bool,
}

/// What a client is told.
pub(crate) struct Verdict {
    status: u16,
    pub(crate) words: ErrorWords,
    /// Whether the same request may succeed later.
    retry: bool,
    /// Seconds until then.
    retry_after: Option<u64>,
}

impl Verdict {
    /// A failure that may pass.
    pub(crate) fn new(status: u16, kind: &'static str, message: String) -> Self {
        Verdict {
            status,
            words: ErrorWords {
                kind: kind.into(),
                message,
                param: None,
                code: None,
                detail: None,
            },
            retry: true,
            retry_after: None,
        }
    }

    pub(crate) fn answer(&self, protocol: Protocol, request_id: &str) -> Answer {
        let answer = Answer::error(self.status, protocol, &self.words, request_id);
        let answer = answer.retry_after(self.retry_after);
        if self.retry {
            answer
        } else {
            answer.never_retry()
        }
    }

    /// The same failure, if it will not pass.
    fn never(self) -> Self {
        Verdict {
            retry: false,
            ..self
        }
    }

    /// The same failure, with the time of a next try.
    fn after(self, retry_after: Option<u64>) -> Self {
        Verdict {
            retry_after,
            ..self
        }
    }
}

impl Report {
    /// The error object of an event.
    pub(crate) fn in_stream(error: &Node<'_>) -> Self {
        let message = match error {
            Node::Text(text) => Some(text.plain().into_owned()),
            _ => error
                .some_text("message")
                .or_else(|| error.some_text("detail")),
        };
        let code = error.some_text("code");
        let numeric = || Some(error.member_number("code")?.to_string());
        // The type of an event is none of its error.
        let is_own = |kind: &String| kind != "error" && !kind.starts_with("response.");
        Report {
            message,
            kind: error.some_text("type").filter(is_own),
            code: code.or_else(numeric),
            param: error.some_text("param"),
            retry_after: error.member("resets_in_seconds").and_then(seconds_of),
            ..Report::default()
        }
    }

    /// The report of a response that the upstream has cancelled.
    pub(crate) fn cancelled(error: Option<&Node<'_>>) -> Self {
        let mut report = error.map(Self::in_stream).unwrap_or_default();
        report.untold = true;
        report
    }

    /// Whether a body has an error object that says something.
    pub(crate) fn is_in(body: &Node<'_>) -> bool {
        let error = body.member("error").unwrap_or(&Node::Null);
        let mut names = ["message", "type", "code"].into_iter();
        names.any(|name| error.some_text(name).is_some())
    }

    /// The error in the body of an HTTP answer: its `error`, else its `detail`, as the ChatGPT backend has it.
    pub(crate) fn in_body(body: Option<&Node<'_>>) -> Self {
        let said = body.and_then(|body| body.member("error").or(body.member("detail")));
        said.map(Self::in_stream).unwrap_or_default()
    }

    /// Whether the upstream has refused the operator's credential.
    pub(crate) fn credential_refused(&self) -> bool {
        self.own_credential && matches!(self.status, Some(401 | 403))
    }

    /// Its message, cut to what is handed on.
    fn text(&self) -> String {
        cut(self.message.as_deref().unwrap_or(NO_MESSAGE))
    }

    /// Whether its code or its type contains one of these.
    fn says(&self, words: &[&str]) -> bool {
        let names = [self.code.as_deref(), self.kind.as_deref()];
        names
            .into_iter()
            .flatten()
            .any(|name| words.iter().any(|word| name.contains(word)))
    }

    /// What a client of this protocol is told.
    pub(crate) fn verdict(&self, protocol: Protocol) -> Verdict {
        match protocol {
            Protocol::Messages => self.messages_verdict(),
            Protocol::Chat => self.chat_verdict(),
        }
    }

    /// The first rule that holds.
    fn messages_verdict(&self) -> Verdict {
        let invalid = |message: String| Verdict::new(400, "invalid_request_error", message).never();
        let verdict = match self.status {
            _ if self.is_overflow() => {
                return invalid(overflow_message(&self.text())).after(self.retry_after);
            }
            _ if self.is_foreign_reasoning() => {
                return invalid(
                    "Invalid signature in thinking block (capability_rejected: thinking_signature)"
                        .to_owned(),
                );
            }
            _ if self.says(&[
                "insufficient_quota",
                "usage_limit_reached",
                "usage_not_included",
                "billing",
            ]) =>
            {
                Verdict::new(429, "rate_limit_error", self.text()).never()
            }
            _ if self.status == Some(429) || self.says(&["rate_limit"]) => {
                Verdict::new(429, "rate_limit_error", self.text())
            }
            _ if self.says(&["overloaded", "slow_down"]) => {
                Verdict::new(529, "overloaded_error", self.text())
            }
            Some(503 | 529) => Verdict::new(529, "overloaded_error", self.text()),
            Some(401 | 403) => return self.credential_verdict(),
            _ => return self.plain_verdict(),
        };
        verdict.after(self.retry_after)
    }

    /// Of a 401 or 403. Where the credential is the operator's, a 401 would tell the user that his own key is wrong.
    fn credential_verdict(&self) -> Verdict {
        if self.own_credential {
            return Verdict::new(502, "api_error", CREDENTIAL_REFUSED.to_owned()).never();
        }
        let (status, kind) = match self.status {
            Some(401) => (401, "authentication_error"),
            _ => (403, "permission_error"),
        };
        Verdict::new(status, kind, self.text()).never()
    }

    /// Of an error that no rule knows by its name.
    fn plain_verdict(&self) -> Verdict {
        let text = self.text();
        match self.status {
            Some(404) => Verdict::new(404, "not_found_error", text).never(),
            _ if self.code.as_deref() == Some("model_not_found") => {
                Verdict::new(404, "not_found_error", text).never()
            }
            Some(413) => Verdict::new(413, "request_too_large", text).never(),
            Some(504) => Verdict::new(504, "timeout_error", text).after(self.retry_after),
            _ if self.says(&["timeout"]) => {
                Verdict::new(504, "timeout_error", text).after(self.retry_after)
            }
            Some(422) => Verdict::new(400, "invalid_request_error", text).never(),
            Some(status @ 400..500) => Verdict::new(status, "invalid_request_error", text).never(),
            status if self.says(&["invalid_", "policy", "image_"]) => {
                Verdict::new(status.unwrap_or(400), "invalid_request_error", text).never()
            }
            status => {
                let status = status.filter(|status| *status >= 500).unwrap_or(500);
                Verdict::new(status, "api_error", text).after(self.retry_after)
            }
        }
    }

    /// Whether the prompt was too long.
    fn is_overflow(&self) -> bool {
        let words = [
            "context length",
            "context_length",
            "context window",
            "maximum context",
            "prompt is too long",
        ];
        let text = self.text().to_lowercase();
        self.code.as_deref() == Some("context_length_exceeded")
            || matches!(self.status, None | Some(400 | 413))
                && words.iter().any(|word| text.contains(word))
    }

    /// Whether encrypted reasoning was not taken back.
    fn is_foreign_reasoning(&self) -> bool {
        let text = self.text().to_lowercase();
        let behind = text
            .find("encrypted content")
            .map(|at| &text[at..])
            .unwrap_or_default();
        let refused = ["not be verified", "not be decrypted"]
            .iter()
            .any(|words| behind.contains(words));
        self.says(&["invalid_encrypted_content"])
            || text.contains("invalid_encrypted_content")
            || refused
    }

    /// The upstream's own words, as far as they are the client's business.
    fn chat_verdict(&self) -> Verdict {
        let status = self.chat_status();
        let mut verdict = Verdict::new(status, SERVER_ERROR, CREDENTIAL_REFUSED.to_owned());
        if self.credential_refused() {
            let cause = Cause::UpstreamCredentialRefused;
            verdict.words.code = Some(cause.code().to_owned());
        } else {
            let default = match self.status {
                Some(400..500) => "invalid_request_error",
                _ => SERVER_ERROR,
            };
            let kind = self.kind.clone().map(Cow::Owned);
            verdict.words = ErrorWords {
                kind: kind.unwrap_or(default.into()),
                message: self.text(),
                param: self.param.clone(),
                code: self.code.clone(),
                detail: None,
            };
        }
        verdict.retry = status >= 429;
        verdict.after(self.retry_after)
    }

    /// The status for a client of Chat: that of the upstream's own answer, else by its words.
    fn chat_status(&self) -> u16 {
        match self.status {
            _ if self.credential_refused() => 502,
            Some(status) => status,
            None if self.says(&["insufficient_quota", "usage_limit", "rate_limit"]) => 429,
            None if self.says(&["overloaded", "slow_down"]) => 503,
            None if self.says(&["context_length", "invalid", "policy", "image_"]) => 400,
            None => 500,
        }
    }
}

/// The text by which Claude Code learns that it has to shorten the conversation, with the numbers if the upstream named
/// them.
fn overflow_message(text: &str) -> String {
    let numbers = token_counts(text);
    match (numbers.iter().max(), numbers.iter().min()) {
        (Some(tokens), Some(most)) if numbers.len() >= 2 => {
            format!("prompt is too long: {tokens} tokens > {most} maximum")
        }
        _ => format!("prompt is too long (capability_rejected: prompt_too_long): {text}"),
    }
}

/// The numbers of four digits or more in a text, which may have commas.
fn token_counts(text: &str) -> Vec<u64> {
    let words =
        text.split(|letter: char| !(letter.is_alphanumeric() || matches!(letter, ',' | '_')));
    let numbers = words.map(|word| word.trim_matches(','));
    let numbers = numbers.filter(|word| {
        word.len() >= TOKEN_DIGITS && word.starts_with(|digit: char| digit.is_ascii_digit())
    });
    numbers
        .filter_map(|word| word.replace(',', "").parse().ok())
        .collect()
}
