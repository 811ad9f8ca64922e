//! The body of a request on its way: which bodies are held until they are known good, how they are read before a peer is
//! chosen, and what of each piece goes on.

use bytes::Bytes;
use http::{Method, header};
use pingora_core::{Error, ErrorType, Result};
use pingora_http::RequestHeader;
use pingora_proxy::Session;
use tokio::time::{Instant, timeout_at};

use crate::codec::error::{Cause, Refusal};
use crate::codec::service_tier::Edits;
use crate::config::{self, ChatStreamUsage};
use crate::policy::endpoint::Endpoint;
use crate::policy::{Condition, TierAction};
use crate::proxy::client_connection::ClientConnection;
use crate::proxy::client_response::{Stop, continue_upload, is_lingering};
use crate::proxy::context::{Body, RequestContext};
use crate::proxy::error_mapping::REFUSED;
use crate::proxy::request_body::{BufferedBody, StreamedBody, waiting_piece};
use crate::proxy::time_slice::TimeSlice;
use crate::proxy::upstream_request::ROUTING_HINT;

/// Bytes that an upstream of HTTP/2 takes before it has said more (RFC 9113 §6.9.2). So much of a body hardly ever waits,
/// and is not counted.
const INITIAL_WINDOW: u64 = 65_535;
/// What Pingora keeps of a body for another attempt, in bytes. The rest of a body that is read before a peer is chosen has
/// to fit, for Pingora sends such a body only by replaying what it kept.
const PINGORA_REPLAY_BYTES: u64 = 64 * 1024;

/// Reads a body that is to be rewritten, if its length is known; makes the others ready to be passed on.
///
/// # Errors
/// Where the body cannot be sent, or its client has gone.
pub(super) async fn take_body(
    session: &mut Session,
    context: &mut RequestContext,
) -> Result<(), Stop> {
    let length = content_length(session.req_header())?;
    let is_empty = expect_body(session, context);
    let limits = context.state.limits.clone();
    let is_http2 = session.as_downstream().is_http2();
    context.body_idle = is_http2.then_some(limits.body_idle_timeout);
    let headers = &session.req_header().headers;
    let has_two_heads =
        headers.contains_key(header::CONTENT_ENCODING) || headers.contains_key(&ROUTING_HINT);
    let hold = hold_of(context, length, is_empty, has_two_heads)?;
    let memory = &context.state.body_memory;
    let Some(hold) = hold else {
        let body = StreamedBody::open(headers, length, &limits, memory)?;
        context.body = Body::Streamed(Box::new(body));
        return continue_upload(session).await;
    };
    let may_stay = hold == Hold::MayStay;
    let held = BufferedBody::open(headers, length, may_stay, &limits, memory)?;
    context.body = Body::Buffered(Box::new(held));
    continue_upload(session).await?;
    match length.or(is_empty.then_some(0)) {
        Some(length) => read_body(session, context, length).await,
        None => Ok(()),
    }
}

/// Why a body is held.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// It is rewritten.
    Rewritten,
    /// It may be found that it goes on as it came.
    MayStay,
}

/// Whether the whole body has to be here before anything is sent.
fn hold_of(
    context: &mut RequestContext,
    length: Option<u64>,
    is_empty: bool,
    has_two_heads: bool,
) -> Result<Option<Hold>, Refusal> {
    let method = &context.request_info.method;
    let mut action = action_for_body(context.record.action, method, is_empty);
    let has_length = length.is_some() || is_empty;
    if !has_length {
        context.resolve_without_body(has_two_heads)?;
        action = context.record.action;
    }
    let requests_usage = context.requests_usage();
    let for_budget = !is_empty && context.holds_for_budget();
    let is_held = is_held(action, requests_usage, for_budget);
    let may_stay = match has_length {
        true => {
            let is_settled = action.is_some_and(|action| action.condition == Condition::Always);
            !is_settled || context.has_budget()
        }
        // Its head says by now whether the body is still coded.
        false => !requests_usage && !action.is_some_and(|action| action.changes()),
    };
    let hold = if may_stay {
        Hold::MayStay
    } else {
        Hold::Rewritten
    };
    Ok(is_held.then_some(hold))
}

/// Reads a whole body before a peer is chosen: the upstream then gets an exact length, and nothing of a bad one. Pingora
/// replays the last of its bytes, and the filter answers with all of it.
async fn read_body(
    session: &mut Session,
    context: &mut RequestContext,
    length: u64,
) -> Result<(), Stop> {
    read_pieces(session, context, Some(length)).await?;
    if length > 0 && session.get_retry_buffer().is_none() {
        // Nothing would make Pingora send the body.
        return Err(Cause::Internal.into());
    }
    context.finish_buffered(false)?;
    context.complete_body();
    Ok(())
}

/// Notes whether more of the request is to come than its head. True where it has no body.
pub(super) fn expect_body(session: &mut Session, context: &mut RequestContext) -> bool {
    let is_empty = session.as_downstream_mut().is_body_empty();
    context.body_complete = is_empty;
    if let Some(client) = &context.client {
        client.set_awaits_body(!is_empty);
    }
    is_empty
}

/// Reads a body that is held, to its end and within its limits. `replayed`: the length of one whose last bytes Pingora is to
/// keep, so that it sends it.
pub(super) async fn read_pieces(
    session: &mut Session,
    context: &mut RequestContext,
    replayed: Option<u64>,
) -> Result<(), Stop> {
    let limits = context.state.limits.clone();
    let deadline = Instant::now() + limits.body_timeout;
    let drain_over = context.state.drain_over();
    while !session.is_body_done() {
        let left = replayed.map(|length| length.saturating_sub(context.record.request_bytes));
        if left.is_some_and(|left| left <= PINGORA_REPLAY_BYTES) {
            session.enable_retry_buffering();
        }
        let until = deadline.min(Instant::now() + limits.body_idle_timeout);
        let read = tokio::select! {
            biased;
            read = timeout_at(until, session.read_request_body()) => read,
            () = drain_over.cancelled() => return Err(Cause::Draining.into()),
        };
        let read = read.map_err(|_| Cause::RequestTimeout)?;
        let Some(chunk) = read.map_err(|error| Stop::Downstream(error.into_down()))? else {
            break;
        };
        filter_piece(&mut Some(chunk), false, context).await?;
    }
    // Trailers show behind the last piece.
    check_chunks(context)?;
    Ok(())
}

/// One piece of a request body on its way to the upstream. A held body comes out as one piece, at its end. Others have their
/// turns while a coded one is decoded, which may be a thousand times as long.
///
/// # Errors
/// Where the body cannot be sent.
pub(super) async fn filter_piece(
    body: &mut Option<Bytes>,
    ends: bool,
    context: &mut RequestContext,
) -> Result<(), Refusal> {
    let is_late = context.record.began.elapsed() > context.state.limits.body_timeout;
    if is_late && !context.body_complete {
        return Err(Cause::RequestTimeout.into());
    }
    check_chunks(context)?;
    if ends {
        context.complete_body();
    }
    let piece = body.clone().unwrap_or_default();
    context.restart_where_new();
    let (mut left, mut time) = (&piece[..], TimeSlice::begin());
    match &mut context.body {
        Body::Streamed(streamed) => {
            context.record.request_bytes += piece.len() as u64;
            streamed.count_piece(&piece)?;
            while streamed.look_at(&mut left) {
                time.end_when_due().await;
            }
            pass_piece(body, piece, ends, context)?;
        }
        Body::Buffered(held) => {
            context.record.request_bytes += piece.len() as u64;
            while held.push_part(&mut left)? {
                time.end_when_due().await;
            }
            if ends {
                context.finish_buffered(true)?;
            }
            *body = Some(whole_at_end(ends, context)?);
        }
        Body::Ready(_) => *body = Some(whole_at_end(ends, context)?),
        // Nothing comes behind the end of a body, and nothing would have looked at it.
        Body::None => *body = body.take().map(|_| Bytes::new()),
    }
    if ends {
        context.release_body();
    }
    Ok(())
}

/// Refuses a body whose chunks a proxy before this one could have taken apart in another way.
fn check_chunks(context: &RequestContext) -> Result<(), Refusal> {
    let client = context.client.as_deref();
    match client.is_some_and(ClientConnection::has_malformed_chunks) {
        true => Err(Cause::InvalidHttp.into()),
        false => Ok(()),
    }
}

/// What goes on of a body that passes as it comes.
fn pass_piece(
    body: &mut Option<Bytes>,
    piece: Bytes,
    ends: bool,
    context: &mut RequestContext,
) -> Result<(), Refusal> {
    context.record.sent.bytes += piece.len() as u64;
    let may_wait = context.is_http2_upstream() && context.record.sent.bytes > INITIAL_WINDOW;
    if ends && piece.is_empty() {
        // Pingora would end a chunked message twice (cloudflare/pingora#935).
        *body = None;
    } else if may_wait && !piece.is_empty() {
        *body = Some(waiting_piece(piece, &context.state.body_memory)?);
    }
    Ok(())
}

/// All of a held body in place of its last piece, and nothing in place of the others: `None` would end the message.
fn whole_at_end(ends: bool, context: &mut RequestContext) -> Result<Bytes, Refusal> {
    if ends {
        context.send_ready()
    } else {
        Ok(Bytes::new())
    }
}

/// A piece that nobody waits for: the upstream has answered without it, or it is behind the end. Its message stays as it
/// is.
pub(super) fn drop_piece(
    body: &mut Option<Bytes>,
    ends: bool,
    context: &RequestContext,
) -> Result<()> {
    let answered = context.logged_at();
    let is_over = answered.is_some_and(|answered| !is_lingering(answered, &context.state));
    if ends || is_over {
        let error = Error::explain(REFUSED, "the request goes on behind its response");
        return Err(error.into_down());
    }
    if let Some(stream) = &context.client_stream {
        stream.progressed();
    }
    // `None` would be an end.
    *body = Some(Bytes::new());
    Ok(())
}

/// Waits until the last piece of a body may go, or the client has gone.
pub(super) async fn await_pipe(session: &mut Session, context: &RequestContext) -> Result<()> {
    let Some(pipe) = &context.pipe else {
        return Ok(());
    };
    let left = tokio::select! {
        biased;
        () = pipe.has_room_for_last() => return Ok(()),
        left = session.as_downstream_mut().read_body_or_idle(true) => left,
    };
    left.map_err(|error| error.into_down())?;
    let error = Error::explain(ErrorType::ConnectionClosed, "nothing can come any more");
    Err(error.into_down())
}

/// The end of a body that trailers end, after its last piece. Over HTTP/2 Pingora goes on asking for more of it, for it
/// takes END_STREAM in trailers for no end: the first time the request is to be ended, then its loop is to stop reading.
pub(super) fn end_by_trailers(context: &mut RequestContext) -> Result<()> {
    match std::mem::replace(&mut context.trailers_seen, true) {
        false => Ok(()),
        true => Error::e_explain(REFUSED, "the request has ended by trailers"),
    }
}

/// Whether the whole body has to be here before anything is sent: to be changed, or to be decided by.
pub(crate) fn is_held(action: Option<TierAction>, requests_usage: bool, for_budget: bool) -> bool {
    let for_tier =
        action.is_some_and(|action| action.changes() || action.condition != Condition::Always);
    for_tier || requests_usage || for_budget
}

/// What is done to a body that is held.
pub(crate) fn edits(action: Option<TierAction>, requests_usage: bool) -> Edits {
    match action {
        Some(action) => action.edits(requests_usage),
        None => Edits {
            request_usage: requests_usage,
            ..Edits::default()
        },
    }
}

/// Whether this upstream is to be asked for the usage of a chat stream.
pub(crate) fn requests_usage(
    upstream: &config::Upstream,
    endpoint: Endpoint,
    method: &Method,
) -> bool {
    endpoint == Endpoint::ChatCompletions
        && !may_be_empty(method)
        && upstream.chat_stream_usage != ChatStreamUsage::Client
}

/// What is to be done to the body. A request of some methods may go without one, and then has none that could carry a
/// tier.
pub(crate) fn action_for_body(
    action: Option<TierAction>,
    method: &Method,
    is_empty: bool,
) -> Option<TierAction> {
    action.filter(|_| !(is_empty && may_be_empty(method)))
}

pub(crate) fn may_be_empty(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE
    )
}

pub(super) fn content_length(head: &RequestHeader) -> Result<Option<u64>, Refusal> {
    let Some(value) = head.headers.get(header::CONTENT_LENGTH) else {
        return Ok(None);
    };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    length.map(Some).ok_or_else(|| Cause::InvalidHttp.into())
}

/// Whether the same bytes can be sent again.
pub(super) fn is_replayable(session: &mut Session, context: &RequestContext) -> bool {
    match &context.body {
        // Of a body without a length Pingora may have kept too little to begin again; it would wait for the rest forever.
        Body::Ready(_) => {
            session.get_retry_buffer().is_some() || session.as_downstream_mut().is_body_empty()
        }
        // Pingora keeps all of it up to its limit, and reads on from there.
        Body::Streamed(_) => !session.retry_buffer_truncated(),
        Body::Buffered(_) => false,
        Body::None => session.as_downstream_mut().is_body_empty(),
    }
}
