//! The head of a request as its upstream gets it, and what has become of the client's headers.

use http::{HeaderMap, HeaderName, header};
use pingora_http::RequestHeader;

use super::Request;
use super::body::OutgoingBody;
use crate::codec::error::{Cause, Refusal};
use crate::policy::{CredentialHeader, Decision};
use crate::proxy::bridge_exchange::conversion::Conversion;
use crate::proxy::upstream_request::{HeadEdit, Length};
use crate::upstream::Upstream;

/// The head as the upstream gets it with this body.
///
/// # Errors
/// Where a value cannot stand in a header.
pub(super) fn outgoing_head(
    request: &Request,
    decision: &Decision,
    upstream: &Upstream,
    conversion: Option<&Conversion>,
    carried: &OutgoingBody,
) -> Result<RequestHeader, Refusal> {
    let converted = conversion.map(|conversion| conversion.upstream.path(conversion.endpoint));
    let own_target = request.head.raw_path();
    let target = converted
        .as_ref()
        .map_or(own_target, |target| target.as_bytes());
    let edit = HeadEdit {
        is_http2: false,
        // Its ids are new for each request.
        trace: None,
        upstream,
        // Which one is a matter of turns; the first stands for all.
        origin: &upstream.origins[0],
        target,
        credential: Some(&decision.credential),
        endpoint: decision.endpoint,
        action: decision.action,
        client_beta: decision.client_beta,
        upgrade: conversion.is_none() && request.upgrades(decision.endpoint),
        length: match &carried.rewritten {
            Some(bytes) => Length::Known(bytes.len()),
            None => Length::Same,
        },
        is_held: carried.is_held,
    };
    let edited = match conversion {
        Some(conversion) => conversion
            .head(&request.head.headers, Some(&decision.credential), edit)
            .map(|head| *head),
        None => {
            let mut head = request.head.clone();
            edit.apply(&mut head).map(|()| head)
        }
    };
    edited.map_err(|_| Cause::Internal.into())
}

/// What becomes of the request's headers, a line each. `is_replaced`: the client's key, by that of the upstream.
pub(super) fn header_edits(
    request: &Request,
    outgoing: &RequestHeader,
    is_replaced: bool,
) -> Vec<String> {
    let (before, after) = (&request.head.headers, &outgoing.headers);
    let mut names: Vec<&HeaderName> = before.keys().chain(after.keys()).collect();
    names.sort_unstable_by_key(|name| name.as_str());
    names.dedup();
    let told = names.into_iter().filter_map(|name| {
        let (old, new) = (before.get_all(name), after.get_all(name));
        let (old_text, new_text) = (lines(before, name), lines(after, name));
        (old != new).then(|| header_edit(request, name, is_replaced, [&old_text, &new_text]))
    });
    told.collect()
}

fn header_edit(
    request: &Request,
    name: &HeaderName,
    is_replaced: bool,
    [old, new]: [&str; 2],
) -> String {
    let secret = CredentialHeader::ALL
        .iter()
        .any(|header| header.name() == name);
    match (old, new) {
        (_, "") => format!("{name}: removed"),
        _ if secret && is_replaced => {
            format!("{name}: the key of `credential_file`, in place of the client's")
        }
        _ if secret => format!("{name}: the key that decides, and no other"),
        ("", new) => format!("{name}: {new}"),
        // What was taken out of it is a key.
        (_, new) if name == header::SEC_WEBSOCKET_PROTOCOL => format!("{name}: {new}"),
        (old, new) => format!("{name}: {new}  (was {})", request.shown(old)),
    }
}

/// The values of a header in one text.
fn lines(headers: &HeaderMap, name: &HeaderName) -> String {
    let values = headers.get_all(name).iter();
    let texts: Vec<_> = values
        .map(|value| {
            if value.is_sensitive() {
                "a value of the configuration".into()
            } else {
                String::from_utf8_lossy(value.as_bytes())
            }
        })
        .collect();
    texts.join(", ")
}
