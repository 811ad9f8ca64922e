//! Stop sequences, which Responses does not have: watches a text that comes in pieces, and holds back what may be the
//! beginning of one. It does not end the answer by itself.

/// The watch over one answer's text.
#[derive(Clone, Debug)]
pub(crate) struct StopSequences {
    sequences: Vec<String>,
    /// Characters to hold back: one less than the longest sequence has.
    keep: usize,
    held: String,
    /// The sequence that was found.
    found: Option<String>,
}

impl StopSequences {
    /// Watches for these, none of which is empty.
    pub(crate) fn new(sequences: Vec<String>) -> Self {
        let longest = sequences
            .iter()
            .map(|sequence| sequence.chars().count())
            .max();
        StopSequences {
            keep: longest.unwrap_or(1).saturating_sub(1),
            sequences,
            held: String::new(),
            found: None,
        }
    }

    /// The sequence that was found; all text from it on is gone.
    pub(crate) fn found(&self) -> Option<&str> {
        self.found.as_deref()
    }

    /// What may be sent now that this text has come.
    pub(crate) fn push(&mut self, text: &str) -> String {
        if self.found.is_some() {
            return String::new();
        }
        if self.sequences.is_empty() {
            return text.to_owned();
        }
        self.held.push_str(text);
        let places = self
            .sequences
            .iter()
            .filter_map(|sequence| Some((self.held.find(sequence.as_str())?, sequence)));
        // The earliest counts; of several at one place, `min_by_key` takes the first that was listed.
        if let Some((at, sequence)) = places.min_by_key(|(at, _)| *at) {
            self.found = Some(sequence.clone());
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let kept = self
            .held
            .char_indices()
            .rev()
            .nth(self.keep.saturating_sub(1));
        let cut = match (self.keep, kept) {
            (0, _) => self.held.len(),
            (_, Some((at, _))) => at,
            (_, None) => 0,
        };
        let rest = self.held.split_off(cut);
        std::mem::replace(&mut self.held, rest)
    }

    /// The text has ended: what was held back may be sent.
    pub(crate) fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}
