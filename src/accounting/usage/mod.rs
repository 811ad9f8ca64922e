//! What a response says of the tokens it used, the model and the tier it was served on, and how it ended. It looks on at
//! a copy of the bytes: whatever they are, it neither fails nor holds more of them than a few short texts. It does not
//! decide what is billed.

mod content;
mod document;
mod elements;
mod list;
mod observer;
mod paths;
mod tally;
mod usage_tally;

pub use observer::{Event, EventObserver, EventTally, ResponseObserver, is_observed, refuses_tier};

/// Between the models of a list of answers, whose names have none.
pub const MODEL_SEPARATOR: char = ',';

/// How deep a document may be nested. It bounds the memory of the scanner, a bit for each.
const DEPTH_LIMIT: usize = 4096;

/// What an error names that refuses the tier.
const TIER_NAME: &[u8] = b"service_tier";

/// Token counts of one response; null where the upstream did not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All input, cached and cache-write tokens included, whatever the protocol.
    pub input_tokens: Option<u64>,
    /// Part of the input tokens: those that were read from a cache.
    pub cached_input_tokens: Option<u64>,
    /// Part of the input tokens: those that were written to a cache.
    pub cache_write_tokens: Option<u64>,
    /// Part of the cache-write tokens: those that live for an hour or longer.
    pub cache_write_long_tokens: Option<u64>,
    /// All output tokens, reasoning included.
    pub output_tokens: Option<u64>,
    /// Part of the output tokens.
    pub reasoning_tokens: Option<u64>,
}

/// How much of the usage the response told before it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum UsageState {
    /// The response was complete and reported its usage.
    Final,
    /// There were counts, but the response did not come to its end.
    Partial,
    /// The response reported no counts.
    #[default]
    None,
    /// The response is made in the background; its usage comes with a later request for it.
    Deferred,
}

impl UsageState {
    /// The word for it in the access log.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// What was read from a response. Its texts are as they were told, as far as a scanner keeps them: who writes them down looks for
/// credentials first, which are not found where they are cut through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The token counts that the response reported.
    pub usage: Usage,
    /// They cannot be made a cost of: they are not all of one price (of several media, such as text and audio, or of another model
    /// too, such as an advisor), or what tells which of them have another one was cut off.
    pub lacks_price: bool,
    /// How complete these counts are.
    pub usage_state: UsageState,
    /// Trimmed. Never `auto`, which says nothing.
    pub served_tier: Option<String>,
    /// Whole, for responses are told apart by it: LiteLLM's ids have some hundred bytes and begin alike
    /// (<https://docs.litellm.ai/docs/response_api>). One of more than a scanner keeps is none.
    pub response_id: Option<String>,
    /// The model that served.
    pub model: Option<String>,
    /// The type of the event that ended the stream, `[DONE]` for chat; of an `error` event too.
    pub terminal_event: Option<String>,
    /// The upstream said that the response failed.
    pub failed: bool,
    /// Code of the error that the upstream tells of, else its type.
    pub error: Option<String>,
    /// An error names the service tier in its code, parameter or message, and no other status than a 4xx.
    pub error_names_tier: bool,
    /// The response was told to be over, with what it used, or to have failed or been cancelled.
    pub settled: bool,
    /// Another response follows, with what its client has sent meanwhile.
    pub steered: bool,
    /// The stream ended with neither its terminal event nor an error.
    pub lacks_end: bool,
    /// Whether the body was an event stream, by its first bytes; none where it was empty.
    pub event_stream: Option<bool>,
}

impl Usage {
    /// Takes over newer counts. A zero never takes a count away that was there before
    /// (<https://github.com/envoyproxy/ai-gateway/pull/1631>).
    fn update(&mut self, newer: Self) {
        self.join(newer, |old, new| if new > 0 { new } else { old });
    }

    /// Takes over all counts that are told, zeros as well.
    fn replace(&mut self, newer: Self) {
        self.join(newer, |_, new| new);
        // They are part of these.
        let written = self.cache_write_tokens.unwrap_or(0);
        let long = &mut self.cache_write_long_tokens;
        *long = long.map(|long| long.min(written));
    }

    /// Whether any count is more than zero.
    fn has_counts(mut self) -> bool {
        self.counts_mut()
            .iter()
            .any(|count| count.is_some_and(|count| count > 0))
    }

    /// Whether it tells output that was made of no input. No completion is: what writes such zeros knows no better
    /// (<https://github.com/MiXaiLL76/auto_ai_router/pull/142>).
    fn lacks_input(&self) -> bool {
        let input = [
            self.input_tokens,
            self.cached_input_tokens,
            self.cache_write_tokens,
        ];
        let is_none = |count: Option<u64>| count.unwrap_or(0) == 0;
        !is_none(self.output_tokens) && input.into_iter().all(is_none)
    }

    fn without_input(self) -> Self {
        Self {
            output_tokens: self.output_tokens,
            reasoning_tokens: self.reasoning_tokens,
            ..Self::default()
        }
    }

    /// The sums of both.
    fn plus(mut self, other: Self) -> Self {
        self.join(other, u64::saturating_add);
        self
    }

    /// Joins each count that both have by `both`; where only one has it, it is kept.
    fn join(&mut self, other: Self, both: impl Fn(u64, u64) -> u64) {
        for (count, other) in self.counts_mut().into_iter().zip({ other }.counts_mut()) {
            *count = match (*count, *other) {
                (Some(count), Some(other)) => Some(both(count, other)),
                (count, other) => count.or(other),
            };
        }
    }

    fn counts_mut(&mut self) -> [&mut Option<u64>; 6] {
        [
            &mut self.input_tokens,
            &mut self.cached_input_tokens,
            &mut self.cache_write_tokens,
            &mut self.cache_write_long_tokens,
            &mut self.output_tokens,
            &mut self.reasoning_tokens,
        ]
    }

    /// Takes cached and cache-write tokens that are told as parts of the input out of it, where nothing is told of them beside it.
    fn with_parts(mut self, parts: Self) -> Self {
        let mut taken = 0_u64;
        for (count, part) in [
            (&mut self.cached_input_tokens, parts.cached_input_tokens),
            (&mut self.cache_write_tokens, parts.cache_write_tokens),
        ] {
            if count.is_none_or(|count| count == 0) {
                *count = part.or(*count);
                taken = taken.saturating_add(part.unwrap_or(0));
            }
        }
        Self {
            input_tokens: self.input_tokens.map(|input| input.saturating_sub(taken)),
            ..self
        }
    }

    /// How many more tokens are told here as read from a cache or written to one.
    fn more_cached_than(self, older: Self) -> u64 {
        let more = |newer: Option<u64>, older: Option<u64>| {
            let older = older.unwrap_or(0);
            newer.unwrap_or(0).saturating_sub(older)
        };
        more(self.cached_input_tokens, older.cached_input_tokens)
            .saturating_add(more(self.cache_write_tokens, older.cache_write_tokens))
    }

    /// Anthropic counts tokens that are read from the cache or written to it beside the input, not in it.
    fn with_cache_in_input(self) -> Self {
        let cached = self.cached_input_tokens.unwrap_or(0);
        let written = self.cache_write_tokens.unwrap_or(0);
        let sum = |input: u64| input.saturating_add(cached).saturating_add(written);
        Self {
            input_tokens: self.input_tokens.map(sum),
            ..self
        }
    }

    /// Some upstreams count what OpenAI includes beside the counts: xAI and Gemini the reasoning
    /// (<https://docs.x.ai/docs/key-information/consumption-and-rate-limits>,
    /// <https://github.com/openai/openai-python/issues/2544>), on Responses where a gateway converts its answers
    /// (<https://github.com/router-for-me/CLIProxyAPI/pull/5746>), gateways the cache. Their total gives it away.
    fn account_for(self, total: u64) -> Self {
        let (Some(input @ 1..), Some(output)) = (self.input_tokens, self.output_tokens) else {
            return self;
        };
        let rest = total.saturating_sub(input.saturating_add(output));
        let cached = self.cached_input_tokens.unwrap_or(0);
        let cache = cached.saturating_add(self.cache_write_tokens.unwrap_or(0));
        let reasoning = self.reasoning_tokens.unwrap_or(0);
        let (more_input, more_output) = if rest == reasoning {
            (0, reasoning)
        } else if rest == cache {
            (cache, 0)
        } else if rest == cache.saturating_add(reasoning) {
            (cache, reasoning)
        } else {
            // Whatever it is: output is the dearest class.
            (0, rest)
        };
        // No more than the total.
        Self {
            input_tokens: Some(input + more_input),
            output_tokens: Some(output + more_output),
            ..self
        }
    }
}

/// Adds a model to those that have answered. Of several, that there are is what counts.
fn add_model(models: &mut String, model: &str) {
    if models.is_empty() {
        models.push_str(model);
    } else if !(model.is_empty() || models == model || models.contains(MODEL_SEPARATOR)) {
        models.push(MODEL_SEPARATOR);
        models.push_str(model);
    }
}

/// A text that was told; none where it is empty.
fn text(told: &str) -> Option<String> {
    (!told.is_empty()).then(|| told.to_owned())
}

#[cfg(test)]
mod tests;
