//! The carrier of encrypted reasoning: the signature of a thinking block, which Claude Code stores unread and sends back
//! as it came. Only what this upstream made for this model is taken back: foreign reasoning is answered with 400 for the
//! rest of the session (`invalid_encrypted_content`). It reads nothing of the reasoning itself.

use super::json::Text;
use super::names::hex_digest;

/// Hex digits that stand for upstream and model.
const TAG_DIGEST: usize = 12;

/// The beginning of every signature that belongs to one upstream and model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Carrier {
    prefix: String,
}

impl Carrier {
    /// The carrier of an upstream, by its name in the configuration, and a model, by the upstream's name for it.
    pub(crate) fn new(upstream: &str, model: &str) -> Self {
        let tag = hex_digest(&[upstream, model], TAG_DIGEST);
        Carrier {
            prefix: format!("tg1.{tag}."),
        }
    }

    /// The signature that carries `encrypted`.
    pub(crate) fn sign(&self, encrypted: &str) -> String {
        format!("{}{encrypted}", self.prefix)
    }

    /// The encrypted reasoning in a signature of ours.
    pub(crate) fn open(&self, signature: &Text<'_>) -> Option<Text<'static>> {
        let plain = signature.plain();
        let encrypted = plain
            .strip_prefix(&self.prefix)
            .filter(|encrypted| !encrypted.is_empty())?;
        Some(Text::of(encrypted))
    }
}
