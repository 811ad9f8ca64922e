//! An upstream's error and what it means to a client of Messages: the first rule that holds gives status, type and text.
//! The texts are those by which Claude Code shortens a conversation, strips thinking, waits or repeats. How an answer is
//! made of it stands in [`super::failure`].

use super::error::{ErrorWords, cut};
use super::failure::SERVER_ERROR;
use super::json::Node;
use super::retry_after::seconds_of;

/// The text of an error that has none.
const NO_MESSAGE: &str = "upstream error";

/// Numbers of fewer digits are no token counts.
const TOKEN_DIGITS: usize = 4;

/// An upstream's error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Status of its HTTP answer; `None` in a stream.
    pub(crate) status: Option<u16>,
    /// Its text.
    message: Option<String>,
    /// Its `type`.
    pub(crate) kind: Option<String>,
    /// Its `code`.
    pub(crate) code: Option<String>,
    /// The member of the request that it names.
    pub(crate) param: Option<String>,
    /// Seconds until a next try, of its header or its body.
    pub(crate) retry_after: Option<u64>,
    /// The operator's credential was sent, not the client's.
    pub(crate) own_credential: bool,
    /// No error object says that something failed: the status of an HTTP answer does, or that of a response.
    pub(crate) untold: bool,
}

/// What a client of Messages is told.
pub(crate) struct Verdict {
    /// Status of an HTTP answer.
    pub(crate) status: u16,
    /// `error.type`.
    pub(crate) kind: &'static str,
    /// `error.message`.
    pub(crate) message: String,
    /// Whether the same request may succeed later.
    pub(crate) retry: bool,
    /// Seconds until then.
    pub(crate) retry_after: Option<u64>,
}

impl Verdict {
    /// A failure that may pass.
    pub(crate) fn new(status: u16, kind: &'static str, message: String) -> Self {
        Verdict {
            status,
            kind,
            message,
            retry: true,
            retry_after: None,
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

    /// The members of the error.
    pub(crate) fn words(&self) -> ErrorWords<'_> {
        ErrorWords {
            kind: self.kind,
            message: &self.message,
            param: None,
            code: None,
        }
    }
}

impl Report {
    /// The error object of an event.
    pub(crate) fn in_stream(error: &Node<'_>) -> Self {
        let text = |name| {
            error
                .member_text(name)
                .filter(|text| !text.is_empty())
                .map(|text| text.into_owned())
        };
        let message = match error {
            Node::Text(text) => Some(text.plain().into_owned()),
            _ => text("message").or_else(|| text("detail")),
        };
        let code = text("code").or_else(|| {
            error
                .member("code")?
                .as_number()
                .map(|code| code.to_string())
        });
        Report {
            status: None,
            message,
            // The type of an event is none of its error.
            kind: text("type").filter(|kind| kind != "error" && !kind.starts_with("response.")),
            code,
            param: text("param"),
            retry_after: error.member("resets_in_seconds").and_then(seconds_of),
            own_credential: false,
            untold: false,
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
        let Some(error) = body.member("error") else {
            return false;
        };
        ["message", "type", "code"]
            .iter()
            .any(|name| error.member_text(name).is_some_and(|text| !text.is_empty()))
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
    pub(crate) fn text(&self) -> String {
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

    /// The first rule that holds.
    pub(crate) fn verdict(&self) -> Verdict {
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
            let message = "the upstream refused the gateway's credential";
            return Verdict::new(502, "api_error", message.to_owned()).never();
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

    /// The type for a client of Chat, where the upstream names none.
    pub(crate) fn chat_kind(&self) -> &str {
        let default = match self.status {
            Some(400..500) => "invalid_request_error",
            _ => SERVER_ERROR,
        };
        self.kind.as_deref().unwrap_or(default)
    }

    /// The status for a client of Chat: that of the upstream's own answer, else by its words.
    pub(crate) fn chat_status(&self) -> u16 {
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
