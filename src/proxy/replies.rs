//! What the client is told: the proxy's own answers, and what of an upstream's head goes no further.

use http::{Method, StatusCode, header};
use pingora_core::{Error, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use tokio::time::timeout;

use super::{LINGERING_CLOSE_BYTES, LINGERING_CLOSE_TIME, REQUEST_ID, Stop};
use crate::accounting::record::Termination;
use crate::codec::error::{Cause, Refusal};
use crate::codec::framing;
use crate::proxy::context::{Body, RequestContext};
use crate::proxy::error_mapping::REFUSED;

/// Headers that speak of the upstream's connection (RFC 9113 §8.2.2). Over HTTP/1.1 Pingora removes them.
const HOP_BY_HOP: [&str; 7] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
];

/// Sends the answer for the refusal of a request, writes its line, and reads on for a moment.
pub(super) async fn answer_refusal(
    session: &mut Session,
    context: &mut RequestContext,
) -> Result<()> {
    let has_begun = session.response_written().is_some_and(|written| {
        // What follows a switch of protocols is no response.
        let switched = written.status == StatusCode::SWITCHING_PROTOCOLS;
        switched || !written.status.is_informational()
    });
    if has_begun {
        return Ok(());
    }
    let Some((cause, answer)) = context.answer_refusal() else {
        return Ok(());
    };
    let mut head = ResponseHeader::build(answer.status, Some(6))?;
    for (name, value) in answer.headers() {
        head.insert_header(name, value)?;
    }
    head.insert_header(&REQUEST_ID, context.request_id())?;
    let unread = !session.is_body_done();
    if unread {
        session.set_keepalive(None);
    }
    let bodyless = context.request_info.method == Method::HEAD;
    session
        .write_response_header(Box::new(head), bodyless)
        .await?;
    if !bodyless {
        session.write_response_body(Some(answer.body), true).await?;
    }
    context.finish(Termination::Refused(cause));
    context.body = Body::None;
    if unread {
        linger(session).await;
    }
    Ok(())
}

/// Reads what a refused client still sends, for a while: a close with bytes unread would take the answer away from it.
async fn linger(session: &mut Session) {
    let read = async {
        let mut left = LINGERING_CLOSE_BYTES;
        while let Ok(Some(chunk)) = session.read_request_body().await {
            left = left.saturating_sub(chunk.len());
            if left == 0 {
                break;
            }
        }
    };
    // Time is up for whoever still sends.
    let _ = timeout(LINGERING_CLOSE_TIME, read).await;
}

/// Tells a client that waits for it to go on. The upstream is not asked: it may not even be HTTP/1.
pub(super) async fn continue_upload(session: &mut Session) -> Result<(), Stop> {
    let expects = session.get_header(header::EXPECT);
    if expects.is_none_or(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Ok(());
    }
    session.set_close_on_response_before_downstream_finish(false);
    session
        .write_continue_response()
        .await
        .map_err(|error| Stop::Downstream(error.into_down()))
}

/// Refuses a response that the client could take apart in another way than Pingora, and an upgrade that nobody asked for.
pub(super) fn check_response(
    response: &ResponseHeader,
    context: &mut RequestContext,
) -> Result<()> {
    let is_unasked = response.status == StatusCode::SWITCHING_PROTOCOLS && !context.upgrade;
    if !is_unasked && framing::is_unambiguous_answer(&response.headers) {
        return Ok(());
    }
    let words = "the upstream's answer is not well-formed HTTP";
    context.refusal = Some(Refusal::new(Cause::UpstreamReset, words));
    Error::e_explain(REFUSED, words)
}

/// Takes out of a head that came over HTTP/2 what a client over HTTP/1.1 would take for its own connection.
pub(super) fn clean_http2_head(response: &mut ResponseHeader) {
    for name in HOP_BY_HOP {
        response.remove_header(name);
    }
}

/// Whether the response has no body, whose end nobody would be told of.
pub(super) fn is_empty(response: &ResponseHeader) -> bool {
    let length = response.headers.get(header::CONTENT_LENGTH);
    let has_none = matches!(response.status.as_u16(), 204 | 304);
    !response.status.is_informational() && (has_none || length.is_some_and(|length| length == "0"))
}
