//! Headers of bridged requests and answers: which of the client's stay here, and what the bridge says about itself.

use super::Protocol;

/// Longest value of the header that names what was dropped, in bytes.
const REPORT_BYTES: usize = 512;

/// The header of an answer that says what the bridge has done: `messages>responses; dropped=a,b`.
pub const REPORT_HEADER: &str = "x-tiergate-bridge";

/// The header that names a session of Claude Code.
pub const SESSION_HEADER: &str = "x-claude-code-session-id";

/// The headers of a streamed answer, besides the exchange's own.
pub const STREAM_HEADERS: [(&str, &str); 3] = [
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
    ("x-accel-buffering", "no"),
];

/// Beginnings of names that belong to the client's protocol, or to its message: the upstream gets another body, and gives the
/// whole of an answer that the client does not get.
const OF_CLIENTS: [&str; 5] = [
    "anthropic-",
    "x-claude-code-",
    "x-stainless-",
    "content-",
    "if-",
];

/// Names that belong to the client's protocol or its message, or are secrets.
const KEPT: [&str; 13] = [
    "x-app",
    "x-api-key",
    "cookie",
    "accept-encoding",
    "digest",
    "prefer",
    "priority",
    "range",
    "repr-digest",
    "signature",
    "signature-input",
    "want-content-digest",
    "want-repr-digest",
];

/// Whether a request header of the client, its name in lower case, is kept from the upstream. The credential goes as
/// `authorization`, whatever header it came in.
pub fn is_kept_from_upstream(name: &str) -> bool {
    KEPT.contains(&name)
        || OF_CLIENTS
            .iter()
            .any(|beginning| name.starts_with(beginning))
}

impl Protocol {
    /// The access log's `bridge`.
    pub fn log_word(self) -> &'static str {
        match self {
            Protocol::Messages => "messages>responses",
            Protocol::Chat => "chat>responses",
        }
    }

    /// The value of [`REPORT_HEADER`], at most 512 bytes: names that do not fit are left out.
    pub fn report(self, dropped: &[String]) -> String {
        let mut report = self.log_word().to_owned();
        for (number, name) in dropped.iter().enumerate() {
            let before = if number == 0 { "; dropped=" } else { "," };
            if report.len() + before.len() + name.len() > REPORT_BYTES {
                break;
            }
            report.push_str(before);
            report.push_str(name);
        }
        report
    }
}
