//! What an answer comes with besides the request, and within which limits.

/// Limits of what is held of one answer, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// One event of the upstream; the last holds the whole answer once more.
    pub event: usize,
    /// Events that wait until the item before theirs is whole.
    pub waiting: usize,
    /// An answer that is not streamed: the upstream's body, and the text that is put together for the client.
    pub whole: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            event: 32 << 20,
            waiting: 1 << 20,
            whole: 32 << 20,
        }
    }
}

/// What the exchange knows about an answer besides the request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// The id of the request in the log; `request_id` of error bodies.
    pub request_id: String,
    /// Seconds since 1970; `created` of Chat answers.
    pub created: u64,
    /// Stands for the response's id where the answer has to begin before the upstream has named one, or it names none.
    /// It must differ from answer to answer: Claude Code merges turns whose ids are equal.
    pub fallback_id: String,
    /// `service_tier` in the bytes that were sent upstream.
    pub sent_tier: Option<String>,
    /// Whether what the upstream says about the tier it served counts.
    pub tier_trusted: bool,
    /// What may be held.
    pub limits: Limits,
}
