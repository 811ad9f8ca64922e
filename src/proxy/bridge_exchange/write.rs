//! What is written to the client of a bridged request: heads, bodies, and answers that are sent whole.

use bytes::Bytes;
use http::{HeaderName, header};
use pingora_core::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::client_left;
use super::conversion::refusal_of;
use crate::accounting::record::Termination;
use crate::bridge::{Answer, Protocol, REPORT_HEADER, Refusal as BridgeRefusal};
use crate::policy::endpoint::Endpoint;
use crate::proxy::client_response::{REQUEST_ID, Stop, end_connection_in_drain};
use crate::proxy::context::RequestContext;
use crate::proxy::cors;

static BRIDGE_REPORT: HeaderName = HeaderName::from_static(REPORT_HEADER);
static UPSTREAM_REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// Answers with the bridge's own refusal.
pub(super) async fn refuse(
    session: &mut Session,
    context: &mut RequestContext,
    protocol: Protocol,
    refusal: &BridgeRefusal,
) -> Result<(), Stop> {
    let cause = refusal_of(refusal).cause;
    context.refusal = Some(cause.into());
    let id = context.request_info.id.to_string();
    let answer = refusal.answer(protocol, &id);
    self::answer(session, context, &answer, Termination::Refused(cause)).await
}

/// Sends a whole answer; its line is written before.
pub(super) async fn answer(
    session: &mut Session,
    context: &mut RequestContext,
    answer: &Answer,
    termination: Termination,
) -> Result<(), Stop> {
    let headers: Vec<(&str, &str)> = answer
        .headers
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let mut head = head_of(context, answer.status, &headers).map_err(Stop::Downstream)?;
    head.insert_header(header::CONTENT_LENGTH, answer.body.len())
        .map_err(Stop::Downstream)?;
    set_client_status(context, answer.status);
    context.finish(termination);
    self::head(session, context, head).await?;
    body(session, context, answer.body.clone(), true).await
}

/// What a bridged answer's head says besides its own headers.
pub(super) fn head_of(
    context: &RequestContext,
    status: u16,
    headers: &[(&'static str, &str)],
) -> Result<ResponseHeader> {
    let mut head = ResponseHeader::build(status, Some(headers.len() + 4))?;
    for (name, value) in headers {
        head.insert_header(*name, *value)?;
    }
    let own = context.request_id();
    let upstreams = context.record.answer.upstream_request_id.as_deref();
    match upstreams.and_then(|id| http::HeaderValue::from_str(id).ok()) {
        Some(id) => head.insert_header(&UPSTREAM_REQUEST_ID, id)?,
        None => head.insert_header(&UPSTREAM_REQUEST_ID, own.clone())?,
    }
    head.insert_header(&REQUEST_ID, own)?;
    if let Some(report) = report(context) {
        head.insert_header(&BRIDGE_REPORT, report)?;
    }
    Ok(head)
}

/// What the bridge has done, for the client.
fn report(context: &RequestContext) -> Option<String> {
    let (_, dropped) = context.record.bridge.as_ref()?;
    let names = dropped.split(',').filter(|name| !name.is_empty());
    let names: Vec<String> = names.map(str::to_owned).collect();
    let protocol = match context.request_info.endpoint {
        Endpoint::ChatCompletions => Protocol::Chat,
        _ => Protocol::Messages,
    };
    Some(protocol.report(&names))
}

/// Notes the status that the client is sent, if it is still there.
fn set_client_status(context: &mut RequestContext, status: u16) {
    context.record.answer.status = (!context.has_client_left()).then_some(status);
}

pub(super) async fn head(
    session: &mut Session,
    context: &mut RequestContext,
    mut head: ResponseHeader,
) -> Result<(), Stop> {
    let state = context.state.clone();
    let asked = &session.req_header().headers;
    cors::allow(state.config.cors.as_ref(), asked, &mut head).map_err(Stop::Downstream)?;
    set_client_status(context, head.status.as_u16());
    end_connection_in_drain(session, context);
    let written = session.write_response_header(Box::new(head), false).await;
    written.map_err(|error| client_left(context, error))
}

pub(super) async fn body(
    session: &mut Session,
    context: &mut RequestContext,
    bytes: Vec<u8>,
    ends: bool,
) -> Result<(), Stop> {
    let written = session.write_response_body(Some(Bytes::from(bytes)), ends);
    written.await.map_err(|error| client_left(context, error))
}
