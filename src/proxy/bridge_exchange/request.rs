//! A bridged request up to the bytes that leave: its body is read, converted, and becomes the body of the [`RequestContext`].

use std::sync::Arc;

use pingora_core::Result;
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use super::conversion::{Conversion, Outgoing, outgoing};
use crate::bridge::{Refusal as BridgeRefusal, ResponseContext};
use crate::codec::cut;
use crate::codec::error::{Cause, Refusal};
use crate::codec::service_tier::Edits;
use crate::policy::CredentialHeader;
use crate::proxy::body_filter::{content_length, expect_body, read_pieces};
use crate::proxy::client_response::{Stop, continue_upload};
use crate::proxy::context::{Body, RequestContext};
use crate::proxy::request_body::BufferedBody;

use crate::upstream::Upstream;

/// The longest `bridge_dropped`, in bytes: the names come from clients.
const DROPPED_BYTES: usize = 1024;

/// A request whose bytes are ready to leave; they are the body of the [`RequestContext`].
pub(super) struct Prepared {
    pub conversion: Conversion,
    /// Where it goes, behind the upstream's own prefix.
    pub target: String,
    /// What its answer is made with.
    pub context: ResponseContext,
    /// `service_tier` in its bytes.
    pub tier: Option<String>,
}

/// Reads the whole body, under the limits of every body that is held.
pub(super) async fn read(session: &mut Session, context: &mut RequestContext) -> Result<(), Stop> {
    let length = content_length(session.req_header())?;
    let state = context.state.clone();
    expect_body(session, context);
    let headers = &session.req_header().headers;
    let held = BufferedBody::open(headers, length, false, &state.limits, &state.body_memory)?;
    context.body = Body::Buffered(Box::new(held));
    continue_upload(session).await?;
    read_pieces(session, context, None).await?;
    context.complete_body();
    // What is ordered is done to the bytes that come of it.
    if let Body::Buffered(held) = std::mem::replace(&mut context.body, Body::None) {
        context.record.facts = held.facts().clone();
        let ready = held.finish(Edits::default())?;
        context.record.facts = ready.facts;
        context.body = Body::Ready(ready.bytes);
    }
    Ok(())
}

/// Converts the body, decides the tier by what the client said, and puts the bytes that will leave in the body's place.
/// The inner error is the bridge's own refusal.
pub(super) fn prepare(
    session: &Session,
    context: &mut RequestContext,
    conversion: &Conversion,
) -> Result<Result<Prepared, BridgeRefusal>, Refusal> {
    let Body::Ready(body) = std::mem::replace(&mut context.body, Body::None) else {
        return Err(Cause::Internal.into());
    };
    let state = context.state.clone();
    // For the second body, as large as the first; what it really takes is counted when it is there.
    let lease = state.body_memory.lease(body.len() as u64)?;
    let headers = &session.req_header().headers;
    let group = context.record.group.clone().ok_or(Cause::Internal)?;
    let mut converted = match conversion.convert(&group, headers, &body) {
        Ok(converted) => converted,
        Err(refusal) => return Ok(Err(refusal)),
    };
    drop((body, lease));
    let dropped = converted.dropped.join(",");
    let word = conversion.endpoint.protocol().log_word();
    context.record.bridge = Some((word, cut(&dropped, DROPPED_BYTES).to_owned()));
    context.record.model_upstream = Some(converted.context.upstream_model.clone());
    let facts = &context.record.facts;
    context.record.action = conversion.decide(&group, headers, facts, &converted)?;
    context.spend_budget()?;
    let action = context.record.action;
    let Outgoing {
        bytes,
        tier,
        json_depth,
    } = outgoing(&mut converted, action, &state.limits, &state.body_memory)?;
    context.body = Body::Ready(bytes);
    context.json_depth = json_depth;
    Ok(Ok(Prepared {
        conversion: conversion.clone(),
        target: conversion.upstream.path(conversion.endpoint),
        context: converted.context,
        tier,
    }))
}

/// The head of the request that the upstream gets.
pub(super) fn upstream_head(
    session: &Session,
    context: &RequestContext,
    prepared: &Prepared,
) -> Result<Box<RequestHeader>> {
    let headers = &session.req_header().headers;
    let edit = context.head_edit(prepared.target.as_bytes())?;
    prepared
        .conversion
        .head(headers, context.credential.as_ref(), edit)
}

/// Whether the operator's key goes to the upstream, and not the client's.
pub(super) fn has_own_credential(context: &RequestContext) -> bool {
    let own = |upstream: &Arc<Upstream>| upstream.credential(CredentialHeader::Authorization);
    context.upstream.as_ref().and_then(own).is_some()
}
