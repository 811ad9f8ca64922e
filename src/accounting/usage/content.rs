//! What came of an answer's content, against which the count of its output is held: none beside content is no count, and what
//! a message tells before its content is provisional.

/// With how many tokens of output a message begins at most, whatever it comes to: 1 in Anthropic's documentation
/// (<https://platform.claude.com/docs/en/build-with-claude/streaming>), and up to 8 were seen
/// (<https://github.com/anthropics/claude-code/issues/27361>).
const PROVISIONAL_TOKENS: u64 = 8;

/// More than a token spells on average, in bytes of JSON, whatever the language: English has some four, escapes up to twelve.
const TOKEN_BYTES: u64 = 16;

/// What an event of a message has around its content, in bytes: `{"type":"content_block_delta","index":0,"delta":{…}}`.
const FRAME_BYTES: u64 = 96;

/// The content of one answer, as far as its events show it, and when its output was told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    has_come: bool,
    /// Of a message, in bytes of JSON; no more than there is.
    bytes: u64,
    told: Told,
}

/// When the output was told. Each outweighs those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    /// By no event.
    #[default]
    Never,
    /// At the beginning, if at all.
    Before,
    /// By the end, which tells none.
    NoneBehind,
    /// By the end.
    Behind,
}

impl Content {
    /// An event has brought some. Of a message, whose events have little beside it, its length counts, in bytes.
    pub fn add(&mut self, length: u64) {
        self.has_come = true;
        let bytes = length.saturating_sub(FRAME_BYTES);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// The beginning tells what counts until the end tells more.
    pub fn begin(&mut self) {
        self.told = self.told.max(Told::Before);
    }

    /// What the end tells of the output, if it does.
    pub fn tell(&mut self, output: Option<u64>) {
        let told = match output {
            Some(0) => Told::NoneBehind,
            Some(_) => Told::Behind,
            None => return,
        };
        self.told = self.told.max(told);
    }

    /// Takes over what later events of the same answer brought.
    pub fn join(&mut self, newer: &Self) {
        self.has_come |= newer.has_come;
        self.bytes = self.bytes.saturating_add(newer.bytes);
        self.told = self.told.max(newer.told);
    }

    /// Whether this is not what an answer that has ended has made. A gateway that makes a stream of a whole answer may tell
    /// its output at the beginning and zeros at the end: that is a count where it is enough for what came.
    pub fn refutes(&self, output: Option<u64>) -> bool {
        let is_provisional = |output: u64| {
            output <= PROVISIONAL_TOKENS || output.saturating_mul(TOKEN_BYTES) < self.bytes
        };
        match self.told {
            Told::Never | Told::Behind => false,
            Told::NoneBehind if !self.has_come => false,
            Told::Before | Told::NoneBehind => output.is_none_or(is_provisional),
        }
    }
}
