//! An upgraded connection in Pingora's filters: the bytes of both sides go through the [`Conversation`], where their messages
//! are judged, and what it says is done.
//!
//! [`Conversation`]: crate::proxy::websocket_session::Conversation

use bytes::Bytes;
use pingora_core::Error;
use pingora_core::protocols::http::HttpTask;
use pingora_proxy::Session;

use crate::policy::endpoint::Endpoint;
use crate::proxy::context::Exchange;
use crate::proxy::error_mapping::REFUSED;
use crate::proxy::websocket_session::Awaited;
use crate::upstream::connector::control::Phase;

/// The upstream has agreed to a WebSocket.
///
/// # Errors
/// Where there is no room for one.
pub(super) fn begin(exchange: &mut Exchange) -> Result<(), Box<Error>> {
    exchange.enter(Phase::Upgraded, None);
    if exchange.arrival.endpoint != Endpoint::Responses {
        return Ok(());
    }
    exchange.begin_conversation().map_err(|refusal| {
        exchange.refusal = Some(refusal);
        Error::explain(REFUSED, "the upgrade is refused")
    })?;
    if let (Some(client), Some(stream)) = (&exchange.client, &exchange.stream) {
        client.upgrade(stream.clone());
    }
    await_message(exchange);
    Ok(())
}

/// Bounds what is awaited from the upstream, if anything is.
fn await_message(exchange: &mut Exchange) {
    let (Some(conversation), Some(upstream)) = (&mut exchange.conversation, &exchange.upstream)
    else {
        return;
    };
    let Some(awaited) = conversation.newly_awaited() else {
        return;
    };
    let settings = &upstream.config;
    let (phase, limit) = match awaited {
        Awaited::Nothing => (Phase::UpgradedIdle, None),
        Awaited::Response => (Phase::Upgraded, Some(settings.response_timeout)),
        Awaited::Message => (Phase::Upgraded, Some(settings.idle_timeout)),
    };
    exchange.enter(phase, limit);
}

/// What a client sends on an upgraded connection. Where its messages are judged, only what is good goes on.
///
/// # Errors
/// Where the client cannot be written to.
pub(super) async fn from_client(
    session: &mut Session,
    body: &mut Option<Bytes>,
    end_of_stream: bool,
    exchange: &mut Exchange,
) -> Result<(), Box<Error>> {
    let chunk = body.clone().unwrap_or_default();
    exchange.turn.request_bytes += chunk.len() as u64;
    let Some(conversation) = &mut exchange.conversation else {
        exchange.turn.sent.bytes += chunk.len() as u64;
        return Ok(());
    };
    if chunk.is_empty() && end_of_stream {
        conversation.client_ended();
        return Ok(());
    }
    let passed = conversation.client_bytes(chunk, &exchange.arrival, &exchange.turn);
    exchange.turn.sent.bytes += passed.to_upstream.len() as u64;
    *body = Some(passed.to_upstream);
    if let Some(refusal) = passed.refusal {
        exchange.refusal = Some(refusal);
    }
    await_message(exchange);
    if let Some(frames) = passed.to_client {
        if !frames.is_empty() {
            let last = vec![HttpTask::UpgradedBody(Some(frames), false)];
            session
                .as_downstream_mut()
                .response_duplex_vec(last)
                .await?;
        }
        exchange.end_upstream();
    }
    Ok(())
}

/// What the upstream sends on an upgraded connection goes on as it is, until the proxy has something to say itself.
pub(super) fn from_upstream(
    body: &mut Option<Bytes>,
    end_of_stream: bool,
    exchange: &mut Exchange,
) {
    let is_late = exchange.situation().expired.is_some();
    let Some(conversation) = &mut exchange.conversation else {
        return;
    };
    let last = match body {
        Some(bytes) if !bytes.is_empty() => {
            conversation.server_bytes(bytes, &exchange.arrival, &exchange.turn)
        }
        _ if end_of_stream && is_late => conversation.server_is_late(&exchange.arrival),
        _ if end_of_stream => conversation.server_ended(),
        _ => None,
    };
    await_message(exchange);
    if let Some(frames) = last {
        *body = Some(frames);
        exchange.end_upstream();
    }
}
