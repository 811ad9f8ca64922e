//! Which arrays and objects are open.

use super::State;

/// The open brackets, one bit each (1 for an object), the innermost lowest. Full words are moved to `outer`.
#[derive(Debug, Default)]
pub(super) struct Brackets {
    inner: u64,
    outer: Vec<u64>,
    pub(super) depth: usize,
}

impl Brackets {
    pub(super) fn push(&mut self, object: bool) {
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.outer.push(self.inner);
        }
        self.inner = self.inner << 1 | u64::from(object);
        self.depth += 1;
    }

    pub(super) fn pop(&mut self) {
        self.depth -= 1;
        self.inner >>= 1;
        if self.depth.is_multiple_of(64) {
            self.inner = self.outer.pop().unwrap_or(0);
        }
    }

    pub(super) fn after_value(&self) -> State {
        match (self.depth, self.inner & 1) {
            (0, _) => State::AfterDocument,
            (_, 1) => State::AfterMember,
            _ => State::AfterElement,
        }
    }
}
