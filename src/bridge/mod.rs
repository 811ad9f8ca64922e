//! The bridge: lets clients of Anthropic's Messages API and of OpenAI's Chat Completions run on an upstream that speaks
//! only OpenAI's Responses API. Bytes in, bytes out.
//!
//! It is pure: no socket, no clock, no randomness, no Pingora, no log. It decides no tier and writes none; the rewriter
//! runs on its bytes, so that one place forces. What it cannot carry over without changing the answer's meaning it
//! refuses; what is lost without that it drops and names. It never makes an answer look whole that is not.
//!
//! # How an exchange drives it
//!
//! 1. [`convert`] the body. A [`Refusal`] is answered with [`Refusal::answer`], and logged as its [`Refusal::cause`].
//!    The same body gives the same bytes each time, and a longer history only adds to its `input`, so that the upstream's
//!    prompt cache is met.
//! 2. Decide the tier by the group, the client's headers and [`Converted::speed`].
//! 3. Where that is priority, run the rewriter on [`Converted::body`]. Where nobody decided, send
//!    [`Converted::with_client_tier`] instead, which has what the client asked for.
//! 4. Send it as `POST` to the upstream's prefix and [`UpstreamBridge::path`], with `accept: text/event-stream`,
//!    `content-type: application/json`, and no header that [`is_kept_from_upstream`].
//! 5. An answer of another status than 200 becomes [`UpstreamError::answer`]. For 200, make a [`ResponseConverter`] and give
//!    it the content type with [`ResponseConverter::upstream_head`], each piece of the body with [`ResponseConverter::feed`],
//!    and the end with [`ResponseConverter::finish`]; where the connection breaks, [`ResponseConverter::cut`], where time is
//!    up, [`ResponseConverter::timed_out`], and where the body cannot be decoded, [`ResponseConverter::undecodable`].
//!    Do after every call what its [`Output`] says: the head of a stream is written with the first bytes and not before,
//!    and a failure that comes earlier, like the answer to a client that wants no stream, is an [`Output::Answer`] with
//!    its own status. A converter gives one end or answer and nothing after it.
//! 6. Where [`BridgeOptions::commit_after`] has passed and [`ResponseConverter::has_begun`] is false, call
//!    [`ResponseConverter::commit`]. From then on, after [`BridgeOptions::ping`] without a byte to the client,
//!    [`ResponseConverter::ping`]. A client that wants no stream gets neither.
//!
//!    [`BridgeOptions::commit_after`]: crate::config::bridge::BridgeOptions::commit_after
//!    [`BridgeOptions::ping`]: crate::config::bridge::BridgeOptions::ping
//! 7. When the client goes, stop writing. Whether to read on for the usage is for the exchange to decide; a converter can
//!    be fed further all the same.
//!
//! 8. Log [`Protocol::log_word`], [`Converted::dropped`], [`ResponseContext::requested_model`] and
//!    [`ResponseContext::upstream_model`], and as error [`ResponseConverter::log_error`] or, where
//!    [`UpstreamError::credential_refused`], that. Where [`ResponseConverter::has_untold_failure`], an answer has failed
//!    which by its bytes is a good one. Client headers are [`STREAM_HEADERS`] or those of the [`Answer`], and
//!    [`REPORT_HEADER`] with [`Protocol::report`]. Usage is read from the upstream's bytes by who reads it everywhere, and the
//!    client is told the same: give it to [`ResponseConverter::count`] before the bytes that end the answer.
//!
//! `count_tokens` has the same first steps with [`Endpoint::CountTokens`], but no tier, and its answer is
//! [`token_count_answer`]. A list of models needs no upstream: [`models_answer`].
//!
//! # Its files
//!
//! What an operator sets: `options`, `models`. Requests: `request` has what both protocols share, `messages_request`
//! (with `messages_input`, `messages_content`, `messages_tools`) and `chat_request` (with `chat_input`, `chat_tools`)
//! what is theirs; `input`, `schema`, `names` and `carrier` are pieces of the Responses API. Answers: `sse` finds the
//! events, `reader`, `item_table` and `item` make facts of them, `messages_response` and `chat_response`, the two of `client_side`, events
//! and chunks of these, `response_converter` drives, with what `delivery` has. `error`, `report` and `failure` have what goes
//! wrong; `json` and `record` read and write JSON.

mod carrier;
mod chat_chunk;
mod chat_input;
mod chat_request;
mod chat_response;
mod chat_tools;
mod chat_whole;
mod client_side;
mod delivery;
mod error;
mod fact;
mod failure;
mod headers;
mod input;
mod item;
mod item_table;
mod json;
mod messages_content;
mod messages_event;
mod messages_input;
mod messages_request;
mod messages_response;
mod messages_tools;
mod messages_whole;
mod model_list;
mod models;
mod names;
mod options;
mod reader;
mod record;
mod report;
mod request;
mod response_context;
mod response_converter;
mod retry_after;
mod schema;
mod sse;
mod stop_sequences;
#[cfg(test)]
mod tests;
mod token_count;

pub use delivery::{Delivery, Limits};
pub use error::{Answer, Refusal};
pub use fact::Usage;
pub use failure::UpstreamError;
pub use headers::{REPORT_HEADER, SESSION_HEADER, STREAM_HEADERS, is_kept_from_upstream};
pub use model_list::{ModelsRequest, models_answer};
pub use options::{UpstreamBridge, UpstreamKind};
pub use response_context::ResponseContext;
pub use response_converter::{Output, ResponseConverter};
pub use token_count::token_count_answer;

use record::{Path, PathStyle, Record};

/// The client's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Anthropic's Messages API.
    Messages,
    /// OpenAI's Chat Completions.
    Chat,
}

/// What the client called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/messages`.
    Messages,
    /// `/v1/messages/count_tokens`.
    CountTokens,
    /// `/v1/chat/completions`.
    Chat,
}

impl Endpoint {
    /// The protocol that it belongs to.
    pub fn protocol(self) -> Protocol {
        match self {
            Endpoint::Messages | Endpoint::CountTokens => Protocol::Messages,
            Endpoint::Chat => Protocol::Chat,
        }
    }
}

/// A client's request.
#[derive(Clone, Copy, Debug)]
pub struct ClientRequest<'r> {
    /// What it called.
    pub endpoint: Endpoint,
    /// Its body, decoded and whole.
    pub body: &'r [u8],
    /// The value of [`SESSION_HEADER`], if it is there: what the prompt cache is kept by.
    pub session: Option<&'r str>,
    /// The name of its group of keys: no group meets the cache of another.
    pub group: &'r str,
}

/// A request for the upstream.
#[derive(Clone, Debug)]
pub struct Converted {
    /// The JSON body. It has no `service_tier`.
    pub body: Vec<u8>,
    /// What [`ResponseConverter::new`] needs.
    pub context: ResponseContext,
    /// The tier that the client itself asks for, in the upstream's words; `None` where it asks for none, or for one that
    /// the upstream does not have. Fast mode is not in here: it is the tier decision's.
    pub client_tier: Option<String>,
    /// `speed` of a Messages request: Claude Code sends `fast` in its fast mode, which is a wish for priority.
    pub speed: Option<String>,
    /// The log's `bridge_dropped`: names of what was left out, each once, at most 64, fit for a header.
    pub dropped: Vec<String>,
}

impl Converted {
    /// The body with the tier that the client asked for: for a request whose tier nobody else decides.
    pub fn with_client_tier(&self) -> Vec<u8> {
        let mut body = self.body.clone();
        if let Some(tier) = &self.client_tier
            && body.pop_if(|last| *last == b'}').is_some()
        {
            let member = format!(",\"service_tier\":\"{}\"}}", json::escape(tier));
            body.extend_from_slice(member.as_bytes());
        }
        body
    }
}

/// Makes the request for the upstream.
///
/// # Errors
/// The answer to the client: 400 for what cannot be carried over and for members of a wrong type, 404 for a model that is not
/// mapped and for token counts of an upstream that has none.
pub fn convert(
    request: &ClientRequest<'_>,
    upstream: &UpstreamBridge,
) -> Result<Converted, Refusal> {
    if request.endpoint == Endpoint::CountTokens && upstream.kind != UpstreamKind::OpenAi {
        return Err(Refusal::no_token_count());
    }
    let node = json::parse_document(request.body).map_err(Refusal::not_json)?;
    let protocol = request.endpoint.protocol();
    let style = match protocol {
        Protocol::Messages => PathStyle::Dots,
        Protocol::Chat => PathStyle::Brackets,
    };
    let body = Record::new(&node, Path::root(style))?;
    let mut draft = match protocol {
        Protocol::Messages => messages_request::convert(&body, request, upstream)?,
        Protocol::Chat => chat_request::convert(&body, upstream)?,
    };
    let client_tier = match request.endpoint {
        Endpoint::Messages => messages_request::client_tier(&body, upstream.kind)?,
        Endpoint::Chat => chat_request::client_tier(&body, upstream.kind)?,
        Endpoint::CountTokens => None,
    };
    let speed = match protocol {
        Protocol::Messages => body.text("speed")?.map(|speed| speed.plain().into_owned()),
        Protocol::Chat => None,
    };
    let body = match request.endpoint {
        Endpoint::CountTokens => draft.take_count_body(),
        Endpoint::Messages | Endpoint::Chat => draft.take_body(),
    };
    Ok(Converted {
        body,
        context: draft.context,
        client_tier,
        speed,
        dropped: draft.dropped.into_names(),
    })
}
