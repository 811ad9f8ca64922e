//! What an error of Pingora's means for the request that it ended, and whether to try again. Errors are told here and
//! nowhere else.

use std::io;

use pingora_core::protocols::http::date::get_cached_date;
use pingora_core::{Error, ErrorSource, ErrorType};

use crate::accounting::record::Termination;
use crate::codec::error::{Cause, Refusal};
use crate::policy::endpoint::Protocol;
use crate::proxy::context::Exchange;

/// The error that carries a refusal through Pingora; the refusal itself is in the context.
pub const REFUSED: ErrorType = ErrorType::new("refused");

/// What a client is told whose head is too long to be read: its request has no line, and its connection ends.
pub fn head_too_large() -> Vec<u8> {
    let answer = Refusal::from(Cause::HeaderTooLarge).answer(Protocol::OpenAi);
    answer.message(&get_cached_date(), None, false)
}

pub fn no_address() -> Box<Error> {
    Error::explain(
        ErrorType::ConnectNoRoute,
        "the upstream's name has no address",
    )
}

/// A body that is not sent: the client's fault, or an HTTP/2 upstream's side would swallow it.
pub fn refused(exchange: &mut Exchange, refusal: Refusal) -> Box<Error> {
    exchange.refusal = Some(refusal);
    Error::explain(REFUSED, "the body is refused").into_down()
}

/// What was being done.
const SENDING: &str = "sending a request";

/// The upstream took no more of a request.
pub fn unwritten(why: io::Error) -> Box<Error> {
    Error::because(ErrorType::WriteError, SENDING, why).into_up()
}

/// It took no more of a request for too long.
pub fn unwritten_in_time() -> Box<Error> {
    Error::explain(ErrorType::WriteTimedout, SENDING).into_up()
}

/// Whether the upstream had closed a pooled connection before it took the request: it ended without a byte or an error,
/// or took no more of the request before all of it was written, as happens to bodies that no socket buffer holds.
/// A reset after that may come from a server that has read the request, so it is not tried again; nor is what was answered
/// by a part of a head.
pub fn is_stale_connection(error: &Error) -> bool {
    *error.esource() == ErrorSource::Upstream
        && match error.etype() {
            ErrorType::ConnectionClosed => !has_begun_to_answer(error),
            ErrorType::WriteError => true,
            _ => false,
        }
}

/// Pingora says in words only how much of a head it has read.
fn has_begun_to_answer(error: &Error) -> bool {
    let context = error
        .context
        .as_ref()
        .map_or("", |context| context.as_str());
    let read = context.rsplit_once("bytes already read: ");
    read.is_some_and(|(_, count)| count != "0")
}

/// Whether the upstream ended a connection before it began to answer. That it takes its time says nothing of an address.
pub fn is_reset(error: &Error, exchange: &Exchange) -> bool {
    matches!(
        ending_of(error, exchange),
        Termination::Refused(Cause::UpstreamReset)
    )
}

/// What an error of Pingora's means for this request.
pub fn ending_of(error: &Error, exchange: &Exchange) -> Termination {
    if let Some(refusal) = &exchange.refusal {
        return Termination::Refused(refusal.cause);
    }
    if let Some(cause) = exchange.interruption() {
        return Termination::Refused(cause);
    }
    let answered = exchange.turn.answer.upstream_status.is_some();
    let timed_out = exchange.deadline.has_passed();
    match (error.esource(), error.etype()) {
        (ErrorSource::Downstream, ErrorType::ReadTimedout) if !answered => {
            Termination::Refused(Cause::RequestTimeout)
        }
        (
            ErrorSource::Downstream,
            ErrorType::ReadError | ErrorType::WriteError | ErrorType::WriteTimedout,
        ) => Termination::ClientClosed,
        (
            ErrorSource::Downstream,
            ErrorType::ConnectionClosed | ErrorType::ReadTimedout | ErrorType::H2Error,
        ) => Termination::ClientClosed,
        (ErrorSource::Downstream, _) if answered => Termination::ClientClosed,
        (ErrorSource::Downstream, _) => Termination::Refused(Cause::InvalidHttp),
        (ErrorSource::Upstream, ErrorType::ReadTimedout | ErrorType::WriteTimedout) if answered => {
            Termination::Timeout
        }
        (ErrorSource::Upstream, _) if answered && timed_out => Termination::Timeout,
        (ErrorSource::Upstream, _) if answered => Termination::UpstreamCut,
        (ErrorSource::Upstream, etype) => Termination::Refused(upstream_failure(etype, timed_out)),
        (_, ErrorType::WriteError | ErrorType::WriteTimedout) if answered => {
            Termination::ClientClosed
        }
        _ if answered => Termination::UpstreamCut,
        _ => Termination::Refused(Cause::Internal),
    }
}

/// Why there is no answer from the upstream.
fn upstream_failure(etype: &ErrorType, timed_out: bool) -> Cause {
    match etype {
        _ if timed_out => Cause::UpstreamTimeout,
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
