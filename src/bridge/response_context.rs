//! What the answer needs to know of the request. It is made with the request and not changed afterwards.

use super::Protocol;
use super::carrier::Carrier;
use super::models::Model;
use super::names::ToolNames;
use super::options::UpstreamBridge;

/// What a request leaves behind for its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseContext {
    /// The client's protocol.
    pub protocol: Protocol,
    /// The model's name as the client wrote it: the log's `model`, and what the answer calls it.
    pub requested_model: String,
    /// The model's name upstream: the log's `model_upstream`.
    pub upstream_model: String,
    /// Whether the client wants a stream; the upstream is always asked for one.
    pub stream: bool,
    /// Whether the client wants to see the thinking.
    pub(crate) thinking: bool,
    /// Whether it asked for a web search, whose blocks it then gets.
    pub(crate) search: bool,
    /// Whether it named a `speed`, which it then gets told.
    pub(crate) speed_asked: bool,
    /// Whether a Chat stream ends with a chunk of the usage.
    pub(crate) usage_chunk: bool,
    /// Whether Chat's calls come in their legacy form, `function_call`.
    pub(crate) legacy_functions: bool,
    /// Texts that end the answer.
    pub(crate) stops: Vec<String>,
    /// Tool names that were changed, and the way back.
    pub(crate) names: ToolNames,
    /// What thinking signatures are made with.
    pub(crate) carrier: Carrier,
}

impl ResponseContext {
    /// Of a request for the model `asked`, which runs on `model`, and in which nothing else is asked for.
    pub(crate) fn new(
        protocol: Protocol,
        asked: &str,
        model: &Model<'_>,
        upstream: &UpstreamBridge,
    ) -> Self {
        ResponseContext {
            protocol,
            requested_model: asked.to_owned(),
            upstream_model: model.name.clone(),
            stream: false,
            thinking: false,
            search: false,
            speed_asked: false,
            usage_chunk: false,
            legacy_functions: false,
            stops: Vec::new(),
            names: ToolNames::default(),
            carrier: Carrier::new(&upstream.name, &model.name),
        }
    }
}
