//! What a response says of the tier it was served on and of the tokens it used.

use http::HeaderMap;
use serde::Serialize;

use crate::access_log::UsageState;
use crate::endpoint::Endpoint;

/// Token counts of one response; null where the upstream did not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// All input, cached and cache-write tokens included, whatever the protocol.
    pub input_tokens: Option<u64>,
    pub cached_input_tokens: Option<u64>,
    pub cache_write_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    /// Part of the output tokens.
    pub reasoning_tokens: Option<u64>,
}

/// What was read from a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    pub usage: Usage,
    pub usage_state: UsageState,
    pub served_tier: Option<String>,
    pub response_id: Option<String>,
    pub model: Option<String>,
    pub terminal_event: Option<String>,
    pub failed: bool,
    pub lacks_end: bool,
}

impl Default for Observed {
    fn default() -> Self {
        Self {
            usage: Usage::default(),
            usage_state: UsageState::None,
            served_tier: None,
            response_id: None,
            model: None,
            terminal_event: None,
            failed: false,
            lacks_end: false,
        }
    }
}

pub struct ResponseObserver;

impl ResponseObserver {
    pub fn new(_endpoint: Endpoint, _event_stream: bool, _headers: &HeaderMap) -> Option<Self> {
        None
    }
    pub fn feed(&mut self, _chunk: &[u8]) {}
    pub fn finish(self) -> Observed {
        Observed::default()
    }
}
