//! What is sent for a bridged request: its bytes, its tier and its head. The functions that serve live traffic serve
//! `tiergate explain` as well.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use pingora_core::Result;
use pingora_http::RequestHeader;

use crate::bridge::{
    self, ClientRequest, Converted, SESSION_HEADER, UpstreamBridge, is_kept_from_upstream,
};
use crate::codec::body_memory::BodyMemory;
use crate::codec::error::{Cause, Refusal};
use crate::codec::framing::connection_headers;
use crate::codec::service_tier::{Edit, Edits, RequestFields};
use crate::config::{self, ChatCompletionsMode, Limits, MessagesMode};
use crate::policy::endpoint::Endpoint;
use crate::policy::{Credential, CredentialHeader, Group, TierAction, asks_for_fast_mode};
use crate::proxy::request_body::{BufferedBody, ReadyBody};
use crate::proxy::upstream_request::{HOP_BY_HOP, HeadEdit};

/// How much deeper than the client's a converted body may be nested: its parts stand at other places.
const DEEPER: usize = 8;

/// Headers that speak of the client's body or its way here, beside those of its connection; those of this request are made
/// anew.
const NOT_COPIED: [&str; 5] = ["accept", "content-length", "content-type", "expect", "host"];

const ANTHROPIC_VERSION: &str = "anthropic-version";

/// What a request is converted from, and for whom.
#[derive(Clone)]
pub struct Conversion {
    pub endpoint: bridge::Endpoint,
    pub upstream: Arc<UpstreamBridge>,
}

/// The bytes that leave, `service_tier` in them, and how deep they may be nested.
pub struct Outgoing {
    pub bytes: Bytes,
    pub tier: Option<String>,
    pub json_depth: usize,
}

/// What of an endpoint is converted for an upstream, if anything is.
pub fn endpoint(
    settings: &config::Upstream,
    endpoint: Endpoint,
    method: &Method,
    path: &str,
) -> Option<bridge::Endpoint> {
    let messages = settings.messages == MessagesMode::Responses;
    let chat = settings.chat_completions == ChatCompletionsMode::Responses;
    match endpoint {
        _ if *method != Method::POST => None,
        Endpoint::Messages if messages => Some(bridge::Endpoint::Messages),
        Endpoint::Other if messages && is_count_tokens(path) => Some(bridge::Endpoint::CountTokens),
        Endpoint::ChatCompletions if chat => Some(bridge::Endpoint::Chat),
        _ => None,
    }
}

/// `/messages/count_tokens`, `…/v1/messages/count_tokens`, as [`Endpoint::Messages`] is told.
fn is_count_tokens(path: &str) -> bool {
    let path = path.strip_suffix('/').unwrap_or(path).to_ascii_lowercase();
    path.strip_suffix("/messages/count_tokens")
        .is_some_and(|before| before.is_empty() || before.ends_with("/v1"))
}

/// The model that a request asks about, where such requests are answered here: empty for `/models`, `…/v1/models`, which ask
/// for all.
pub fn asked_model<'p>(
    settings: &config::Upstream,
    method: &Method,
    path: &'p str,
) -> Option<&'p str> {
    const NAME: &str = "/models";
    if !settings.bridge.list_models || *method != Method::GET {
        return None;
    }
    let lower = path.to_ascii_lowercase();
    let mut places = lower.match_indices(NAME).map(|(at, _)| at);
    places.find_map(|at| {
        let before = &lower[..at];
        let behind = &path[at + NAME.len()..];
        let is_ours = before.is_empty() || before.ends_with("/v1");
        let model = match behind {
            "" => Some(behind),
            _ => behind.strip_prefix('/'),
        };
        let model = model.filter(|_| is_ours)?;
        Some(model.strip_suffix('/').unwrap_or(model))
    })
}

/// In whose words a client that asks for models is answered: Anthropic's SDKs name the version of their API.
pub fn models_protocol(headers: &HeaderMap) -> bridge::Protocol {
    match headers.contains_key(ANTHROPIC_VERSION) {
        true => bridge::Protocol::Messages,
        false => bridge::Protocol::Chat,
    }
}

impl Conversion {
    /// Of a body that was read whole.
    ///
    /// # Errors
    /// What cannot be converted, or has no model here.
    pub fn convert(
        &self,
        group: &Group,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Converted, bridge::Refusal> {
        let session = headers.get(SESSION_HEADER);
        let request = ClientRequest {
            endpoint: self.endpoint,
            body,
            session: session.and_then(|value| value.to_str().ok()),
            group: &group.name,
        };
        bridge::convert(&request, &self.upstream)
    }

    /// What is done about the tier, but for budgets. Claude Code goes on sending its fast-mode header after fast mode was
    /// switched off, so that `speed` has the last word where it is there.
    ///
    /// # Errors
    /// Where the tier has to be forced and cannot be.
    pub fn decide(
        &self,
        group: &Group,
        headers: &HeaderMap,
        facts: &RequestFields,
        converted: &Converted,
    ) -> Result<Option<TierAction>, Cause> {
        let asked = match converted.speed.as_deref() {
            Some(speed) => speed == "fast",
            None => asks_for_fast_mode(headers),
        };
        let endpoint = match self.endpoint {
            bridge::Endpoint::Messages => Endpoint::Messages,
            bridge::Endpoint::Chat => Endpoint::ChatCompletions,
            bridge::Endpoint::CountTokens => return Ok(None),
        };
        // The upstream gets another target.
        let action = group.action(endpoint, &[], asked)?;
        Ok(action.and_then(|action| group.settle(action, facts)))
    }

    /// The head of the request that the upstream gets, from the client's headers. `edit` is what is done to every head, to
    /// [`UpstreamBridge::path`] as its target.
    ///
    /// # Errors
    /// Where a value cannot stand in a header.
    pub fn head(
        &self,
        headers: &HeaderMap,
        credential: Option<&Credential>,
        edit: HeadEdit<'_>,
    ) -> Result<Box<RequestHeader>> {
        let mut head = RequestHeader::build("POST", edit.target, Some(headers.len() + 4))?;
        let named = connection_headers(headers);
        for (name, value) in headers {
            let text = name.as_str();
            let is_anew = HOP_BY_HOP.contains(&text) || NOT_COPIED.contains(&text);
            if !is_anew && !is_kept_from_upstream(text) && !named.contains(name) {
                head.append_header(name, value)?;
            }
        }
        let accept = match self.endpoint {
            bridge::Endpoint::CountTokens => "application/json",
            bridge::Endpoint::Messages | bridge::Endpoint::Chat => "text/event-stream",
        };
        head.insert_header(header::ACCEPT, accept)?;
        head.insert_header(header::CONTENT_TYPE, "application/json")?;
        if let Some(credential) = credential {
            set_bearer(&mut head, headers, credential)?;
        }
        let bearer = credential.map(|credential| Credential {
            key: credential.key.clone(),
            header: CredentialHeader::Authorization,
            has_others: false,
        });
        let edit = HeadEdit {
            credential: bearer.as_ref(),
            ..edit
        };
        edit.apply(&mut head)?;
        Ok(Box::new(head))
    }
}

/// The bytes that leave: those of the conversion, with the tier that was decided, or the client's own where nobody decided.
/// Tiers are set by the rewriter and by nothing else.
///
/// # Errors
/// Where all bodies together would take more than may be held.
pub fn outgoing(
    converted: &mut Converted,
    action: Option<TierAction>,
    limits: &Limits,
    memory: &Arc<BodyMemory>,
) -> Result<Outgoing, Refusal> {
    let edit = action.map_or(Edit::Keep, |action| action.body);
    let body = match edit {
        Edit::Keep => converted.with_client_tier(),
        Edit::Set(_) | Edit::Remove => std::mem::take(&mut converted.body),
    };
    converted.body = Vec::new();
    // What it was converted from has passed the limits; this is our own.
    let json_depth = limits.json_depth + DEEPER;
    let limits = Arc::new(Limits {
        body: u64::MAX,
        json_depth,
        ..limits.clone()
    });
    let _lease = memory.lease(body.len() as u64)?;
    let length = Some(body.len() as u64);
    let mut held = BufferedBody::open(&HeaderMap::new(), length, false, &limits, memory)?;
    held.push(&body)?;
    let ReadyBody { bytes, facts, .. } = held.finish(Edits::tier(edit))?;
    let tier = match action.filter(|_| edit != Edit::Keep) {
        Some(action) => action
            .outgoing_tier(&bytes, json_depth, false)?
            .map(str::to_owned),
        None => facts.asked_tier().map(str::to_owned),
    };
    Ok(Outgoing {
        bytes,
        tier,
        json_depth,
    })
}

/// The bridge's refusal as one of the proxy's.
pub fn refusal_of(refusal: &bridge::Refusal) -> Refusal {
    Refusal::new(refusal.cause, refusal.message.clone())
}

/// The client's key, in the header that Responses servers read.
fn set_bearer(
    head: &mut RequestHeader,
    headers: &HeaderMap,
    credential: &Credential,
) -> Result<()> {
    for header in CredentialHeader::ALL {
        head.remove_header(header.name());
    }
    let sole = credential.without_others(headers);
    let value = match sole {
        Some((_, (_, value))) => Some(value),
        None => headers.get(credential.header.name()).cloned(),
    };
    let Some(value) = value else {
        return Ok(());
    };
    let mut value = match credential.header {
        CredentialHeader::Authorization => value,
        CredentialHeader::XApiKey | CredentialHeader::ApiKey => {
            let bearer = [b"Bearer ", value.as_bytes()].concat();
            HeaderValue::from_bytes(&bearer).unwrap_or(value)
        }
    };
    value.set_sensitive(true);
    head.insert_header(header::AUTHORIZATION, value)
}
