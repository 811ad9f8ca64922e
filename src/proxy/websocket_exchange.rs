//! An upgraded connection in Pingora's filters: the bytes of both sides go through the
//! [`WebSocketSession`](crate::proxy::websocket_session::WebSocketSession), where their messages are judged, and what it
//! says is done.

use bytes::Bytes;
use pingora_core::Error;
use pingora_core::protocols::http::HttpTask;
use pingora_proxy::Session;

use crate::codec::error::Cause;
use crate::policy::endpoint::Endpoint;
use crate::proxy::client_connection::ClientConnection;
use crate::proxy::context::RequestContext;
use crate::proxy::error_mapping::REFUSED;
use crate::proxy::websocket_session::{Awaited, ServerOutput};
use crate::upstream::connector::control::AwaitedPhase;

/// The upstream has agreed to a WebSocket.
///
/// # Errors
/// Where there is no room for one.
pub(super) fn begin(context: &mut RequestContext) -> Result<(), Box<Error>> {
    context.enter(AwaitedPhase::Upgraded, None);
    if context.request_info.endpoint != Endpoint::Responses {
        return Ok(());
    }
    context.begin_websocket().map_err(|refusal| {
        context.refusal = Some(refusal);
        Error::explain(REFUSED, "the upgrade is refused")
    })?;
    if let (Some(client), Some(stream)) = (&context.client, &context.stream) {
        client.upgrade(stream.clone());
    }
    await_message(context);
    Ok(())
}

/// Bounds what is awaited from the upstream, if anything is.
fn await_message(context: &mut RequestContext) {
    let (Some(websocket), Some(upstream)) = (&mut context.websocket, &context.upstream) else {
        return;
    };
    let Some(awaited) = websocket.newly_awaited() else {
        return;
    };
    let settings = &upstream.config;
    let (phase, limit) = match awaited {
        Awaited::Nothing => (AwaitedPhase::UpgradedIdle, None),
        Awaited::PerhapsMore => (AwaitedPhase::Upgraded, None),
        Awaited::Response => (AwaitedPhase::Upgraded, Some(settings.response_timeout)),
        Awaited::Message => (AwaitedPhase::Upgraded, Some(settings.idle_timeout)),
    };
    context.enter(phase, limit);
}

/// Bounds how long the rest of the client's message may take, if one is under way.
fn await_rest(context: &RequestContext) {
    let (Some(websocket), Some(client)) = (&context.websocket, &context.client) else {
        return;
    };
    let limits = &context.state.limits;
    client.await_message(
        websocket.underway(),
        limits.body_idle_timeout,
        limits.body_timeout,
    );
}

/// What a client sends on an upgraded connection. Where its messages are judged, only what is good goes on.
///
/// # Errors
/// Where the client cannot be written to.
pub(super) async fn from_client(
    session: &mut Session,
    body: &mut Option<Bytes>,
    end_of_stream: bool,
    context: &mut RequestContext,
) -> Result<(), Box<Error>> {
    let chunk = body.clone().unwrap_or_default();
    context.record.request_bytes += chunk.len() as u64;
    let Some(websocket) = &mut context.websocket else {
        context.record.sent.bytes += chunk.len() as u64;
        return Ok(());
    };
    if chunk.is_empty() && end_of_stream {
        websocket.client_ended();
        return Ok(());
    }
    let output = websocket.client_bytes(chunk);
    context.record.sent.bytes += output.to_upstream.len() as u64;
    *body = Some(match &context.stream {
        Some(stream) if !output.to_upstream.is_empty() => stream.pass(output.to_upstream),
        _ => output.to_upstream,
    });
    if let Some(refusal) = output.refusal {
        context.refusal = Some(refusal);
    }
    await_message(context);
    await_rest(context);
    if let Some(frames) = output.to_client {
        if !frames.is_empty() {
            let last = vec![HttpTask::UpgradedBody(Some(frames), false)];
            session
                .as_downstream_mut()
                .response_duplex_vec(last)
                .await?;
        }
        context.end_upstream();
    }
    Ok(())
}

/// What the upstream sends on an upgraded connection goes on as it is, until the proxy has something to say itself or a message
/// is to be sent once more.
pub(super) fn from_upstream(
    body: &mut Option<Bytes>,
    end_of_stream: bool,
    context: &mut RequestContext,
) {
    let is_late = context.failure_context().expired.is_some();
    let client = context.client.as_deref();
    let is_client_late = client.is_some_and(ClientConnection::is_message_late);
    let Some(websocket) = &mut context.websocket else {
        return;
    };
    if is_client_late {
        context.refusal = Some(Cause::RequestTimeout.into());
    }
    let output = match body {
        Some(bytes) if !bytes.is_empty() => {
            if is_client_late {
                websocket.close_behind_message(Cause::RequestTimeout);
            }
            websocket.server_bytes(bytes)
        }
        _ if end_of_stream && is_client_late => websocket.client_is_late(),
        _ if end_of_stream && is_late => websocket.server_is_late(),
        _ if end_of_stream => websocket.server_ended(),
        _ => ServerOutput::default(),
    };
    for message in output.to_upstream {
        context.record.sent.bytes += message.len() as u64;
        if let Some(stream) = &context.stream {
            stream.send(message);
        }
    }
    if let Some(stream) = &context.stream {
        stream.set_in_message(websocket.is_in_message());
    }
    await_message(context);
    if let Some(bytes) = output.to_client {
        *body = Some(bytes);
    }
    if output.ends {
        context.end_upstream();
    }
}
