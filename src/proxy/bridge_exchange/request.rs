//! A bridged request up to the bytes that leave: its body, what is converted, the tier, and its head.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, header};
use pingora_core::Result;
use pingora_http::RequestHeader;
use pingora_proxy::Session;
use tokio::time::{Instant, timeout_at};

use super::Conversion;
use crate::accounting::record::cut;
use crate::bridge::{
    self, ClientRequest, Context, Converted, Refusal as BridgeRefusal, SESSION_HEADER,
    is_kept_from_upstream,
};
use crate::codec::error::{Cause, Refusal};
use crate::codec::framing::list_members;
use crate::codec::service_tier::{Edit, Edits, observed_tier};
use crate::config::Limits;
use crate::policy::{CredentialHeader, TierAction, asks_for_fast_mode};
use crate::proxy::context::{Body, Exchange};
use crate::proxy::replies::continue_upload;
use crate::proxy::request_body::{HeldBody, ReadyBody};
use crate::proxy::{Stop, content_length, filter_body};
use crate::upstream::Upstream;

/// How much deeper than the client's a converted body may be nested: its parts stand at other places.
const DEEPER: usize = 8;

/// The longest `bridge_dropped`, in bytes: the names come from clients.
const DROPPED_BYTES: usize = 1024;

/// Headers that speak of the client's connection, its body or its way here; those of this request are made anew.
const NOT_COPIED: [&str; 13] = [
    "accept",
    "connection",
    "content-length",
    "content-type",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Reads the whole body, under the limits of every body that is held.
pub(super) async fn read(session: &mut Session, exchange: &mut Exchange) -> Result<(), Stop> {
    let length = content_length(session.req_header())?;
    let state = exchange.state.clone();
    let limits = &state.limits;
    let empty = session.as_downstream_mut().is_body_empty();
    exchange.body_complete = empty;
    if let Some(client) = &exchange.client {
        client.await_body(!empty);
    }
    let headers = &session.req_header().headers;
    let held = HeldBody::open(headers, length, false, limits, &state.budget)?;
    exchange.body = Body::Held(Box::new(held));
    continue_upload(session).await?;
    let deadline = Instant::now() + limits.body_timeout;
    let drain_over = state.drain_over();
    while !session.is_body_done() {
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
        filter_body(&mut Some(chunk), false, exchange)?;
    }
    exchange.complete_body();
    // What is ordered is done to the bytes that come of it.
    if let Body::Held(held) = std::mem::replace(&mut exchange.body, Body::None) {
        let ready = held.finish(Edits::default())?;
        exchange.turn.facts = ready.facts;
        exchange.body = Body::Ready(ready.bytes);
    }
    Ok(())
}

/// A request whose bytes are ready to leave; they are the body of the [`Exchange`].
pub(super) struct Prepared {
    /// Where it goes, behind the upstream's own prefix.
    pub target: String,
    /// What its answer is made with.
    pub context: Context,
    /// `service_tier` in its bytes.
    pub tier: Option<String>,
}

/// Converts the body, decides the tier by what the client said, and puts the bytes that will leave in the body's place.
/// The inner error is the bridge's own refusal.
pub(super) fn prepare(
    session: &Session,
    exchange: &mut Exchange,
    conversion: &Conversion,
) -> Result<Result<Prepared, BridgeRefusal>, Refusal> {
    let Body::Ready(bytes) = std::mem::replace(&mut exchange.body, Body::None) else {
        return Err(Cause::Internal.into());
    };
    // For the second body, as large as the first; what it really takes is counted when it is there.
    let mut lease = exchange.state.budget.lease(bytes.len() as u64)?;
    let headers = &session.req_header().headers;
    let session_id = headers.get(SESSION_HEADER);
    let group = exchange.turn.group.clone().ok_or(Cause::Internal)?;
    let request = ClientRequest {
        endpoint: conversion.endpoint,
        body: &bytes,
        session: session_id.and_then(|value| value.to_str().ok()),
        group: &group.name,
    };
    let converted = match bridge::convert(&request, &conversion.upstream) {
        Ok(converted) => converted,
        Err(refusal) => return Ok(Err(refusal)),
    };
    drop(bytes);
    let dropped = converted.dropped.join(",");
    let word = conversion.endpoint.protocol().log_word();
    exchange.turn.bridge = Some((word, cut(&dropped, DROPPED_BYTES).to_owned()));
    exchange.turn.model_upstream = Some(converted.context.upstream_model.clone());
    exchange.turn.order = decide(exchange, &converted, asks_for_fast_mode(headers))?;
    exchange.spend_budget()?;
    let edit = exchange.turn.order.map_or(Edit::Keep, |order| order.body);
    let body = match edit {
        Edit::Keep => converted.with_client_tier(),
        Edit::Set(_) | Edit::Remove => converted.body,
    };
    lease.grow_to(body.len() as u64)?;
    let ReadyBody { bytes, facts, .. } = rewrite(exchange, edit, &body)?;
    let tier = match edit {
        Edit::Keep => facts.service_tier.map(|tier| tier.as_str().to_owned()),
        Edit::Set(_) | Edit::Remove => observed_tier(&bytes).map(str::to_owned),
    };
    exchange.body = Body::Ready(bytes);
    Ok(Ok(Prepared {
        target: conversion.upstream.path(conversion.endpoint),
        context: converted.context,
        tier,
    }))
}

/// What is done about the tier. Claude Code goes on sending its fast-mode header after fast mode was switched off, so that
/// `speed` has the last word where it is there.
fn decide(
    exchange: &Exchange,
    converted: &Converted,
    beta_asked: bool,
) -> Result<Option<TierAction>, Cause> {
    let group = exchange.turn.group.as_ref().ok_or(Cause::Internal)?;
    let asked = match converted.speed.as_deref() {
        Some(speed) => speed == "fast",
        None => beta_asked,
    };
    let action = group.action(exchange.arrival.endpoint, asked)?;
    Ok(action.and_then(|action| group.settle(action, &exchange.turn.facts)))
}

/// The one place that sets tiers, on the bytes that will leave.
fn rewrite(exchange: &Exchange, edit: Edit, body: &[u8]) -> Result<ReadyBody, Refusal> {
    let state = &exchange.state;
    // What it was converted from has passed the limits; this is our own.
    let limits = Arc::new(Limits {
        body: u64::MAX,
        json_depth: state.limits.json_depth + DEEPER,
        ..(*state.limits).clone()
    });
    let length = Some(body.len() as u64);
    let mut held = HeldBody::open(&HeaderMap::new(), length, false, &limits, &state.budget)?;
    held.push(body)?;
    held.finish(Edits::tier(edit))
}

/// The head of the request that the upstream gets.
pub(super) fn upstream_head(
    session: &Session,
    exchange: &Exchange,
    prepared: &Prepared,
) -> Result<Box<RequestHeader>> {
    let target = prepared.target.as_bytes();
    let headers = &session.req_header().headers;
    let mut head = RequestHeader::build("POST", target, Some(headers.len() + 4))?;
    let named: Vec<&[u8]> = list_members(headers, &header::CONNECTION).collect();
    for (name, value) in headers {
        let is_named = || {
            let name = name.as_str().as_bytes();
            named.iter().any(|named| named.eq_ignore_ascii_case(name))
        };
        let name_text = name.as_str();
        if !is_kept_from_upstream(name_text) && !NOT_COPIED.contains(&name_text) && !is_named() {
            head.append_header(name, value)?;
        }
    }
    let accept = match exchange.arrival.endpoint.takes_tier() {
        true => "text/event-stream",
        false => "application/json",
    };
    head.insert_header(header::ACCEPT, accept)?;
    head.insert_header(header::CONTENT_TYPE, "application/json")?;
    set_bearer(&mut head, headers, exchange)?;
    let mut edit = exchange.head_edit(target)?;
    edit.credential = Some(CredentialHeader::Authorization);
    edit.apply(&mut head)?;
    Ok(Box::new(head))
}

/// The client's key, in the header that Responses servers read.
fn set_bearer(head: &mut RequestHeader, headers: &HeaderMap, exchange: &Exchange) -> Result<()> {
    let Some(credential) = exchange.credential else {
        return Ok(());
    };
    for header in CredentialHeader::ALL {
        head.remove_header(header.name());
    }
    let Some(value) = headers.get(credential.header.name()) else {
        return Ok(());
    };
    let mut value = match credential.header {
        CredentialHeader::Authorization => value.clone(),
        CredentialHeader::XApiKey | CredentialHeader::ApiKey => {
            let bearer = [b"Bearer ", value.as_bytes()].concat();
            HeaderValue::from_bytes(&bearer).unwrap_or_else(|_| value.clone())
        }
    };
    value.set_sensitive(true);
    head.insert_header(header::AUTHORIZATION, value)
}

/// Whether the operator's key goes to the upstream, and not the client's.
pub(super) fn has_own_credential(exchange: &Exchange) -> bool {
    let own = |upstream: &Arc<Upstream>| upstream.credential(CredentialHeader::Authorization);
    exchange.upstream.as_ref().and_then(own).is_some()
}
