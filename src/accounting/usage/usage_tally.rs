//! What the counts of one response come to.

use super::Usage;
use super::document::Document;

/// How many choices of a response are told apart, the most that OpenAI makes
/// (`n` of <https://platform.openai.com/docs/api-reference/chat/create>). Those beyond it count as one.
const CHOICES_LIMIT: usize = 128;

/// The counts that the documents of one response have told. On messages, `input_tokens` is without cached and cache-write tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct UsageTally {
    /// Of the answer.
    answer: Usage,
    /// Of what a message took beside its own attempts; in no other count.
    beside: Usage,
    /// Of the choice that was the last to tell its own. Their prompt is the same.
    choice: Usage,
    /// Output and reasoning of each choice that told its own, by its index.
    outputs: Vec<[u64; 2]>,
}

impl UsageTally {
    /// Takes over what the next document tells. Whether it tells anything.
    pub fn add(&mut self, document: &Document) -> bool {
        let newer = document.usage();
        self.answer.update(newer);
        let mut tells = newer != Usage::default();
        if let Some((index, usage)) = document.choice() {
            self.add_choice(index, usage);
            tells = true;
        }
        if let Some(iterations) = document.iterations() {
            // With its zeros: the cache of an attempt that is not charged for is in the other counts.
            self.answer.replace(iterations.of_message());
            self.beside = iterations.beside();
            tells = true;
        }
        tells
    }

    /// Takes off the input what the next document of a message tells as read from a cache, or written to one, where it was in
    /// the input until then: some relays begin with the whole prompt. They say so by telling the cache as a part of the prompt,
    /// and no input (DashScope: <https://github.com/jeremychone/rust-genai/pull/258>); or by an input of zero
    /// (<https://github.com/maximhq/bifrost/pull/6598>). Anthropic tells its input wherever it tells the cache.
    pub fn move_input_to_cache(&mut self, document: &Document) {
        let newer = document.usage();
        let moved = newer.more_cached_than(self.answer);
        if moved == 0 || newer.input_tokens.is_some_and(|input| input > 0) {
            return;
        }
        if document.facts().tells_cache_within_input() {
            let input = &mut self.answer.input_tokens;
            *input = input.map(|input| input.saturating_sub(moved));
        } else if newer.input_tokens.is_some() {
            self.answer.input_tokens = newer.input_tokens;
        }
    }

    /// Takes over what a later document of the same response told.
    pub fn join(&mut self, newer: &Self) {
        self.answer.update(newer.total());
    }

    /// The counts of two answers.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            answer: self.total().plus(other.total()),
            ..Self::default()
        }
    }

    /// What was used, as far as it was told. Where the answer has counts of its own, those of its choices are in them.
    pub fn total(&self) -> Usage {
        let sum = |part: usize| {
            let counts = self.outputs.iter().map(|output| output[part]);
            counts.fold(0, u64::saturating_add)
        };
        let mut total = Usage {
            output_tokens: self.choice.output_tokens.map(|_| sum(0)),
            reasoning_tokens: self.choice.reasoning_tokens.map(|_| sum(1)),
            ..self.choice
        };
        total.update(self.answer);
        total.plus(self.beside)
    }
    /// What one choice tells is cumulative, too.
    fn add_choice(&mut self, index: u64, usage: Usage) {
        self.choice.update(usage);
        let index = index.min(CHOICES_LIMIT as u64 - 1) as usize;
        if self.outputs.len() <= index {
            self.outputs.resize(index + 1, [0; 2]);
        }
        let newer = [usage.output_tokens, usage.reasoning_tokens];
        for (count, newer) in self.outputs[index].iter_mut().zip(newer) {
            *count = newer.filter(|newer| *newer > 0).unwrap_or(*count);
        }
    }
}
