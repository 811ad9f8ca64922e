//! API keys on the command line: a new one is made, those that exist are hashed, and what cannot be a key is refused before it
//! becomes one that nobody can use.

use std::io;

use rustls::crypto::ring;

use crate::config::diagnostic::name_fault;
use crate::policy::hash_key;
use crate::policy::key_shape::check_key;

/// Of a new key, in bytes: 256 bits, so that nobody guesses it, and no digest of it tells anything.
const SECRET_LENGTH: usize = 32;
const PREFIX: &str = "sk-tg-";
/// A key that was just made. It is not shown by `Debug`.
pub(super) struct NewKey(String);

impl NewKey {
    /// A key of random bytes.
    ///
    /// # Errors
    /// Where the system has no random bytes.
    pub(super) fn generate() -> io::Result<NewKey> {
        let mut bytes = [0; SECRET_LENGTH];
        let random = ring::default_provider().secure_random;
        random
            .fill(&mut bytes)
            .map_err(|_| io::Error::other("the system has no random bytes"))?;
        Ok(NewKey(format!("{PREFIX}{}", hex::encode(bytes))))
    }

    /// The key itself.
    pub(super) fn secret(&self) -> &str {
        &self.0
    }

    /// What is appended to the policy's `keys`.
    ///
    /// # Errors
    /// Where a name cannot stand in a policy.
    pub(super) fn policy_line(&self, group: &str, name: Option<&str>) -> Result<String, String> {
        let digest = hash_key(self.0.as_bytes());
        let group = word(group)?;
        let name = name.map(word).transpose()?;
        let name = name.map_or(String::new(), |name| format!(", name: {name}"));
        Ok(format!("  \"{digest}\": {{group: {group}{name}}}"))
    }
}

/// A name as YAML: as it is where nothing in it means something else, in quotes otherwise.
fn word(name: &str) -> Result<String, String> {
    if let Some(fault) = name_fault(name) {
        return Err(fault.to_owned());
    }
    let mut letters = name.bytes();
    let first_is_letter = letters
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic());
    let is_plain = first_is_letter
        && letters.all(|letter| letter.is_ascii_alphanumeric() || b"-_.".contains(&letter))
        && !RESERVED.contains(&name.to_ascii_lowercase().as_str());
    if is_plain {
        return Ok(name.to_owned());
    }
    // JSON's strings are YAML's.
    Ok(serde_json::Value::from(name).to_string())
}

/// Words that YAML may take for something else than text.
const RESERVED: [&str; 9] = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"];

/// Asks for a key on the terminal, which does not show what is typed.
///
/// # Errors
/// Where there is no terminal.
pub(super) fn ask() -> io::Result<String> {
    rpassword::prompt_password("API key (not shown): ")
}

/// The digest of a key, as a policy lists it.
///
/// # Errors
/// Why it cannot be a key; the message quotes nothing of it.
pub(super) fn hash(key: &[u8]) -> Result<String, &'static str> {
    let text = std::str::from_utf8(key).map_err(|_| "a key has ASCII characters only")?;
    check_key(text).map(|()| hash_key(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_is_random_and_its_line_has_its_digest_only() {
        let key = NewKey::generate().unwrap();
        let digits = key.secret().strip_prefix(PREFIX).unwrap();
        assert_eq!(digits.len(), 2 * SECRET_LENGTH);
        assert_ne!(key.secret(), NewKey::generate().unwrap().secret());
        let line = key.policy_line("fast", Some("alice")).unwrap();
        let digest = hash(key.secret().as_bytes()).unwrap();
        assert_eq!(
            line,
            format!("  \"{digest}\": {{group: fast, name: alice}}")
        );
        assert!(!line.contains(digits));
    }

    #[test]
    fn a_name_that_yaml_would_take_for_something_else_is_quoted() {
        let key = NewKey::generate().unwrap();
        let line = |group: &str, name: &str| key.policy_line(group, Some(name));
        for (name, shown) in [
            ("null", "\"null\""),
            ("1e3", "\"1e3\""),
            ("a: b", "\"a: b\""),
            ("Jürgen", "\"Jürgen\""),
            ("a\"b", "\"a\\\"b\""),
            ("ci-bot_2.x", "ci-bot_2.x"),
        ] {
            let line = line("g", name).unwrap();
            assert!(
                line.ends_with(&format!("{{group: g, name: {shown}}}")),
                "{line}"
            );
        }
        for name in ["", "a\nb", " a", &"a".repeat(65), "a\u{200b}", "${NAME}"] {
            assert!(
                line("g", name).is_err() && line(name, "x").is_err(),
                "{name}"
            );
        }
    }

    #[test]
    fn what_cannot_be_a_key_is_refused() {
        let digest = hash(b"sk-1").unwrap();
        for text in [
            "",
            "  ",
            "sk one",
            " sk-1",
            "sk-1\t",
            "\"sk-1\"",
            "'sk-1'",
            "Bearer sk-1",
            "bearer sk-1",
            "Authorization: Bearer sk-1",
            &digest,
            &digest.to_uppercase(),
            &digest["sha256:".len()..],
            "sha512:00",
            "$2b$12$abcdefghijklmnopqrstuv",
            "“sk-1”",
            "sk-é",
            "${TIERGATE_KEY}",
            "OPENAI_API_KEY=sk-1",
            &"0f".repeat(20),
            &"0f".repeat(64),
        ] {
            assert!(hash(text.as_bytes()).is_err(), "{text}");
        }
        assert!(hash(b"sk-\xff").is_err());
        for text in ["sk-1", "key_2.A+B/C=", "0123456789abcdef", &"0f".repeat(16)] {
            assert!(hash(text.as_bytes()).is_ok(), "{text}");
        }
    }
}
