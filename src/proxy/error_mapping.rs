//! What an error of Pingora's means for the request that it ended. Errors are told here and nowhere else, by their types.

use std::{fmt, io};

use pingora_core::protocols::http::date::get_cached_date;
use pingora_core::{Error, ErrorSource, ErrorType};

use crate::accounting::record::Termination;
use crate::codec::error::{Cause, Protocol, Refusal};
use crate::state::State;
use crate::upstream::connector::NOT_PROCESSED;
use crate::upstream::connector::control::AwaitedPhase;

/// The error that carries a refusal through Pingora; the refusal itself is in the request's context.
pub const REFUSED: ErrorType = ErrorType::new("refused");

/// The upstream refused the tier of an attempt, and another one is made without it.
pub const TIER_REFUSED: ErrorType = ErrorType::new("the tier was refused");

/// What Pingora 0.9.1 says of a chunked body that it cannot take apart.
const MALFORMED_BODY: [ErrorType; 2] = [
    ErrorType::Custom("InvalidChunk"),
    ErrorType::Custom("InvalidTrailerEnd"),
];

/// What is known of a request when an error ends it.
#[derive(Clone, Copy, Debug)]
pub struct FailureContext {
    /// Why the proxy itself answers, where it has decided to.
    pub refusal: Option<Cause>,
    /// The head of the upstream's response is here.
    pub is_answered: bool,
    /// What was waited for for too long.
    pub expired: Option<AwaitedPhase>,
    /// The client's body was not waited for because the drain was over.
    pub is_drained: bool,
}

/// What a client is told whose head is too long to be read: its request has no line, and its connection ends.
pub fn head_too_large() -> Vec<u8> {
    let answer = Refusal::from(Cause::HeaderTooLarge).answer(Protocol::OpenAi, None);
    answer.message(&get_cached_date())
}

/// Bytes that were to leave do not carry the tier that was decided, and are not sent. `what`: whose they are.
pub fn refuse_unforced(state: &State, what: fmt::Arguments<'_>) -> Refusal {
    state.metrics.unforced_forwarded.inc();
    log::error!("{what}: the outgoing bytes do not carry the forced tier; they are not sent");
    Cause::Internal.into()
}

/// The name of the upstream has no address: the upstream's fault, not the proxy's.
pub fn no_address() -> Box<Error> {
    let what = "the upstream's name has no address";
    Error::explain(ErrorType::ConnectNoRoute, what).into_up()
}

/// A body that is not sent: the client's fault, or an HTTP/2 upstream's side would swallow it.
pub fn refused() -> Box<Error> {
    Error::explain(REFUSED, "the body is refused").into_down()
}

/// Whether the upstream says that it has not worked on the request.
pub fn is_unprocessed(error: &Error) -> bool {
    let etype = error.etype();
    *etype == NOT_PROCESSED || *etype == ErrorType::H2Downgrade
}

/// Whether the error is that of a connection which the upstream had closed while it was pooled. A reset can be that of a
/// server that had read the request, for the kernel acknowledges what no program reads: nothing that this side knows tells
/// the two apart. So it counts only for a method that may be repeated in any case (`is_safe`, RFC 9110 §9.2.2).
pub fn is_stale_connection(error: &Error, is_safe: bool) -> bool {
    let is_closed = matches!(
        error.etype(),
        ErrorType::ConnectionClosed | ErrorType::WriteError
    );
    *error.esource() == ErrorSource::Upstream
        && (is_closed || (is_safe && is_connection_reset(error)))
}

fn is_connection_reset(error: &Error) -> bool {
    let cause = error.root_cause();
    let http2 = cause.downcast_ref::<h2::Error>();
    let cause = http2.map_or_else(|| cause.downcast_ref::<io::Error>(), h2::Error::get_io);
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::ConnectionReset)
}

/// Whether the client's stream was reset for what the client has sent on it (RFC 9113 §8.1.1). The client is still there.
fn is_malformed_stream(error: &Error) -> bool {
    let cause = error.root_cause().downcast_ref::<h2::Error>();
    cause.is_some_and(|cause| cause.is_reset() && cause.is_library())
}

impl FailureContext {
    /// Whether the upstream ended a connection before it began to answer. That it takes its time says nothing of an
    /// address, nor does that it refuses a stream.
    pub fn is_reset(&self, error: &Error) -> bool {
        let termination = self.termination_of(error);
        termination == Termination::Refused(Cause::UpstreamReset) && !is_unprocessed(error)
    }

    /// What an error means for the request.
    pub fn termination_of(&self, error: &Error) -> Termination {
        if let Some(cause) = self.refusal.or(self.late_body()) {
            return Termination::Refused(cause);
        }
        match error.esource() {
            ErrorSource::Downstream if is_malformed_stream(error) => {
                Termination::Refused(Cause::InvalidHttp)
            }
            ErrorSource::Downstream => self.client_failure(error.etype()),
            ErrorSource::Upstream if self.is_answered => match error.etype() {
                ErrorType::ReadTimedout | ErrorType::WriteTimedout => Termination::Timeout,
                _ if self.expired.is_some() => Termination::Timeout,
                _ => Termination::UpstreamCut,
            },
            ErrorSource::Upstream => {
                Termination::Refused(upstream_failure(error.etype(), self.expired.is_some()))
            }
            _ => match error.etype() {
                ErrorType::WriteError | ErrorType::WriteTimedout if self.is_answered => {
                    Termination::ClientClosed
                }
                _ if self.is_answered => Termination::UpstreamCut,
                _ => Termination::Refused(Cause::Internal),
            },
        }
    }

    /// How a request ended that no error ended and nobody answered whole.
    pub fn termination(&self) -> Termination {
        match self.refusal.or(self.late_body()) {
            Some(cause) => Termination::Refused(cause),
            None if self.expired.is_some() => Termination::Timeout,
            None => Termination::Whole,
        }
    }

    /// Why the rest of the client's body was not waited for, if it was not.
    fn late_body(&self) -> Option<Cause> {
        match self.expired {
            Some(AwaitedPhase::RequestBody) => Some(Cause::RequestTimeout),
            _ if self.is_drained && !self.is_answered => Some(Cause::Draining),
            _ => None,
        }
    }

    fn client_failure(&self, etype: &ErrorType) -> Termination {
        match etype {
            // Only the rest of a body is waited for so.
            ErrorType::ReadTimedout => Termination::Refused(Cause::RequestTimeout),
            ErrorType::ReadError
            | ErrorType::WriteError
            | ErrorType::WriteTimedout
            | ErrorType::ConnectionClosed
            | ErrorType::H2Error => Termination::ClientClosed,
            etype if self.is_answered && !MALFORMED_BODY.contains(etype) => {
                Termination::ClientClosed
            }
            _ => Termination::Refused(Cause::InvalidHttp),
        }
    }
}

/// Why there is no response from the upstream.
fn upstream_failure(etype: &ErrorType, is_late: bool) -> Cause {
    match etype {
        _ if is_late => Cause::UpstreamTimeout,
        ErrorType::ConnectTimedout
        | ErrorType::TLSHandshakeTimedout
        | ErrorType::ReadTimedout
        | ErrorType::WriteTimedout => Cause::UpstreamTimeout,
        ErrorType::ConnectRefused
        | ErrorType::ConnectNoRoute
        | ErrorType::ConnectError
        | ErrorType::SocketError
        | ErrorType::BindError
        | ErrorType::TLSHandshakeFailure
        | ErrorType::InvalidCert
        | ErrorType::HandshakeError
        | ErrorType::ConnectProxyFailure => Cause::UpstreamUnreachable,
        _ => Cause::UpstreamReset,
    }
}
