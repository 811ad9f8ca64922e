//! How an answer fails, and what the client is told: an upstream's error, in the stream or as an HTTP answer, in the
//! words by which the client's own recovery begins. Claude Code shortens a conversation, strips thinking, waits or
//! repeats by status and text.

use super::Protocol;
use super::error::Answer;
use super::json::{Node, Object, parse_document, without_mark};
use super::report::{Report, SERVER_ERROR, Verdict};
use super::retry_after::seconds;
use crate::codec::error::Cause;

/// How an answer fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The upstream says so.
    Reported(Report),
    /// The upstream ended before its answer did.
    Cut,
    /// The upstream took too long.
    TimedOut,
    /// What the upstream sent cannot be understood, or is more than is held.
    Unreadable(&'static str),
}

/// An HTTP answer of the upstream that is no success.
#[derive(Clone, Copy, Debug)]
pub struct UpstreamError<'h> {
    /// Its status.
    pub status: u16,
    /// Its `retry-after`: seconds or an HTTP date.
    pub retry_after: Option<&'h str>,
    /// The beginning of its body, decoded; what is cut is not understood.
    pub body: &'h [u8],
    /// Whether the operator's credential was sent, not the client's: its refusal is none of the client's.
    pub own_credential: bool,
    /// Seconds since 1970, for a `retry-after` that is a date.
    pub now: u64,
}

impl UpstreamError<'_> {
    /// The answer to the client, in its protocol.
    pub fn answer(&self, protocol: Protocol, request_id: &str) -> Answer {
        if self.is_no_error() {
            return self.failure().answer(protocol, request_id);
        }
        let body = parse_document(self.body).ok();
        let report = self.report(body.as_ref());
        let error = body.as_ref().and_then(|body| body.member("error"));
        let shaped = error.is_some_and(|error| error.as_object().is_some());
        if protocol == Protocol::Chat && shaped && !report.credential_refused() {
            return Answer::text(self.status, without_mark(self.body).to_vec())
                .retry_after(report.retry_after);
        }
        Failure::Reported(report).answer(protocol, request_id)
    }

    /// The same for an answer that has begun.
    pub(crate) fn failure(&self) -> Failure {
        if self.is_no_error() {
            return Failure::Unreadable("a status that is neither 200 nor an error");
        }
        Failure::Reported(self.report(parse_document(self.body).ok().as_ref()))
    }

    /// Whether it is another success, or sends elsewhere: neither means anything to a client that has not asked for it.
    fn is_no_error(&self) -> bool {
        self.status < 400
    }

    /// What its head and its body say.
    fn report(&self, body: Option<&Node<'_>>) -> Report {
        let retry_after = self.retry_after.and_then(|value| seconds(value, self.now));
        let mut report = Report::in_body(body);
        report.status = Some(self.status);
        report.untold = !body.is_some_and(Report::is_in);
        report.own_credential = self.own_credential;
        report.retry_after = retry_after.or(report.retry_after);
        report
    }

    /// Whether the upstream has refused the operator's credential: the log's `upstream_credential_refused`.
    pub fn credential_refused(&self) -> bool {
        self.own_credential && matches!(self.status, 401 | 403)
    }
}

impl Failure {
    /// The HTTP answer, while the status is free.
    pub(crate) fn answer(&self, protocol: Protocol, request_id: &str) -> Answer {
        self.verdict(protocol).answer(protocol, request_id)
    }

    /// The `error` object of an event, once the status is gone.
    pub(crate) fn error_object(&self, protocol: Protocol) -> Object<'static> {
        let mut words = self.verdict(protocol).words;
        let is_told = self.report().is_some_and(|report| report.kind.is_some());
        if protocol == Protocol::Chat && !is_told {
            words.kind = SERVER_ERROR.into(); // as in every stream: the status is gone
        }
        words.object(protocol)
    }

    /// The cause that the access log has for it; `None` where the upstream has reported it.
    pub(crate) fn cause(&self) -> Option<Cause> {
        match self {
            Failure::Reported(report) => report
                .credential_refused()
                .then_some(Cause::UpstreamCredentialRefused),
            Failure::Cut | Failure::Unreadable(_) => Some(Cause::UpstreamReset),
            Failure::TimedOut => Some(Cause::UpstreamTimeout),
        }
    }

    /// Whether the upstream has reported it without an error that names it.
    pub(crate) fn is_untold(&self) -> bool {
        self.report().is_some_and(|report| report.untold)
    }

    /// The upstream's error, if it is one.
    fn report(&self) -> Option<&Report> {
        match self {
            Failure::Reported(report) => Some(report),
            _ => None,
        }
    }

    fn verdict(&self, protocol: Protocol) -> Verdict {
        let (status, kind, message) = match self {
            Failure::Reported(report) => return report.verdict(protocol),
            Failure::TimedOut => {
                let message = "the upstream did not answer in time".to_owned();
                (504, "timeout_error", message)
            }
            Failure::Cut => {
                let message = "the upstream closed the stream before the end".to_owned();
                (502, "api_error", message)
            }
            Failure::Unreadable(what) => {
                let message = format!("the upstream's answer cannot be read: {what}");
                (502, "api_error", message)
            }
        };
        match protocol {
            Protocol::Messages => Verdict::new(status, kind, message),
            Protocol::Chat => {
                let mut verdict = Verdict::new(status, SERVER_ERROR, message);
                verdict.words.code = self.cause().map(|cause| cause.code().to_owned());
                verdict
            }
        }
    }
}
