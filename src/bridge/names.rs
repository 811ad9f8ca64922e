//! Names and ids that both sides have to agree on: tool names and call ids in the form that Responses takes, the way
//! back, and the keys that are derived by hashing. All of it depends on its input alone, so that every turn of a
//! conversation gets the same.

use super::error::Refusal;
use super::json::Text;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::HashMap;

/// Longest tool name and call id that Responses takes: `^[A-Za-z0-9_-]{1,64}$`.
const NAME_BYTES: usize = 64;

/// How much of a name that is too long is kept before its digest.
const KEPT_LETTERS: usize = 55;

/// Hex digits behind a shortened tool name.
const NAME_DIGEST: usize = 8;

/// Hex digits of a call id that was replaced.
const CALL_DIGEST: usize = 40;

/// Hex digits of a prompt cache key.
const CACHE_KEY_DIGEST: usize = 32;

/// Tool names as they were sent upstream, and what the client calls them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ToolNames(HashMap<String, String>);

impl ToolNames {
    /// The upstream's name for a tool. Two tools that would get one name cannot be told apart in the answer.
    pub(crate) fn upstream(&mut self, name: &str) -> Result<Text<'static>, Refusal> {
        let short = tool_name(name);
        let known = self
            .0
            .entry(short.to_string())
            .or_insert_with(|| name.to_owned());
        if known != name {
            return Err(Refusal::invalid("tools", format!("names collide: {name}")));
        }
        Ok(Text::of(&short))
    }

    /// The client's name for a tool of the answer.
    pub(crate) fn client<'s>(&'s self, name: &'s str) -> &'s str {
        self.0.get(name).map_or(name, String::as_str)
    }
}

/// A tool's name as Responses takes it. Anthropic allows 128 characters.
pub(crate) fn tool_name(name: &str) -> Cow<'_, str> {
    if is_plain(name) {
        return Cow::Borrowed(name);
    }
    let letter = |letter| if is_plain_letter(letter) { letter } else { '_' };
    let kept: String = name.chars().map(letter).take(KEPT_LETTERS).collect();
    Cow::Owned(format!("{kept}_{}", hex_digest(&[name], NAME_DIGEST)))
}

/// A call's id as Responses takes it; the same for a call and its result.
pub(crate) fn call_id(id: &str) -> Cow<'_, str> {
    if is_plain(id) {
        return Cow::Borrowed(id);
    }
    Cow::Owned(format!("tgc_{}", hex_digest(&[id], CALL_DIGEST)))
}

/// `prompt_cache_key` of a session in a group of keys: never the session itself, which is personal.
pub(crate) fn prompt_cache_key(group: &str, session: &str) -> String {
    format!("tg-{}", hex_digest(&[group, session], CACHE_KEY_DIGEST))
}

/// The first `digits` hex digits of the SHA-256 of the parts, joined by LF.
pub(crate) fn hex_digest(parts: &[&str], digits: usize) -> String {
    let digest = Sha256::digest(parts.join("\n"));
    let mut hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.truncate(digits);
    hex
}

/// Whether Responses takes it as it is.
fn is_plain(name: &str) -> bool {
    (1..=NAME_BYTES).contains(&name.len()) && name.chars().all(is_plain_letter)
}

/// Whether it may stand in a name.
fn is_plain_letter(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-')
}
