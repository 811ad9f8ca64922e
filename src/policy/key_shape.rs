//! Which texts can be API keys. What cannot is mostly something that was pasted with a key, or in its place: it would be a
//! key that nobody can send, or a digest that everybody who reads the file could.

use crate::policy::api_key::parse_digest;

/// SHA-256 of nothing: what `echo -n $UNSET | sha256sum` prints.
const DIGEST_OF_NOTHING: [u8; 32] = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
    0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];
/// What stands before a key in an `Authorization` header (RFC 9110 section 11.4), and in files of variables.
const SCHEMES: [&str; 6] = [
    "bearer",
    "basic",
    "apikey",
    "api-key",
    "x-api-key",
    "authorization",
];
/// How digests begin that other programs print.
const DIGEST_STARTS: [&str; 14] = [
    "sha256", "sha512", "sha384", "sha224", "sha1:", "md5:", "blake", "$2a$", "$2b$", "$2y$",
    "$argon2", "$5$", "$6$", "$scrypt$",
];
/// Lengths of SHA-256, SHA-384 and SHA-512 as digits. Shorter ones are keys of Azure and others.
const DIGEST_DIGITS: [usize; 3] = [64, 96, 128];

/// Whether a text can be an API key in clear.
///
/// # Errors
/// Why it cannot. The reason does not quote it.
pub fn check_key(key: &str) -> Result<(), &'static str> {
    if key.is_empty() || key.trim() != key {
        return Err("an API key is not empty and does not begin or end with white space");
    }
    let first = key.split([' ', '\t', ':', '=']).next().unwrap_or("");
    if first.len() < key.len()
        && SCHEMES
            .iter()
            .any(|scheme| first.eq_ignore_ascii_case(scheme))
    {
        return Err("an API key stands alone, without the header's name or scheme before it");
    }
    let is_quote = |c: char| {
        matches!(
            c,
            '"' | '\'' | '`' | '“' | '”' | '„' | '‘' | '’' | '«' | '»'
        )
    };
    if key.contains(is_quote) {
        return Err("an API key has no quotes in it");
    }
    if key.contains(char::is_whitespace) {
        return Err("an API key has no white space in it");
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("an API key has only printable ASCII characters in it");
    }
    let lower = key.to_ascii_lowercase();
    let is_digits = key.bytes().all(|byte| byte.is_ascii_hexdigit());
    if DIGEST_STARTS.iter().any(|start| lower.starts_with(start))
        || (is_digits && DIGEST_DIGITS.contains(&key.len()))
    {
        return Err(
            "this looks like a digest, not like an API key; digests are written `sha256:` and 64 hexadecimal digits, in lower case and without spaces",
        );
    }
    Ok(())
}

/// The digest of a key that is listed as `sha256:` and these digits, in any case.
///
/// # Errors
/// Why it is none.
pub fn check_digest(digits: &str) -> Result<[u8; 32], &'static str> {
    match parse_digest(digits) {
        None => Err("expected `sha256:` and 64 hexadecimal digits"),
        Some(DIGEST_OF_NOTHING) => Err("this is the digest of nothing, not of an API key"),
        Some(digest) => Ok(digest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::hash_key;

    #[test]
    fn keys_of_all_providers_are_keys() {
        for key in [
            "sk-proj-Ab_9-xyz",
            "sk-ant-api03-x",
            "xai-1",
            "0123",
            "3f2504e04f8911d39a0c0305e82c3301",
            "AIzaSyA-1",
            "sk-or-v1-0123456789abcdef",
            "eyJhbGciOi.eyJzdWIi.c2ln",
            "bearer",
            "sha-1",
            "a+/=~!",
        ] {
            assert_eq!(check_key(key), Ok(()), "{key}");
        }
    }

    #[test]
    fn what_was_pasted_with_a_key_or_in_its_place_is_none() {
        let digest = hash_key(b"k");
        for key in [
            "",
            " k",
            "k\n",
            "Bearer sk-1",
            "bearer:sk-1",
            "x-api-key: sk-1",
            "API_KEY sk-1",
            "sk 1",
            "sk\u{a0}1",
            "“sk-1”",
            "'sk-1'",
            "sk-é",
            "sk-\u{200b}1",
            "sk-\u{1}",
            &digest[7..],
            &digest.replace("sha256", "SHA256"),
            &digest.replace(':', "="),
            "sha512:00",
            "$2b$12$abcdefghijk",
            "$argon2id$v=19$x",
        ] {
            assert!(check_key(key).is_err(), "{key}");
        }
    }

    #[test]
    fn the_digest_of_nothing_is_not_that_of_a_key() {
        assert!(check_digest(&hash_key(b"")[7..]).is_err());
        assert!(check_digest(&hash_key(b"")[7..].to_uppercase()).is_err());
        assert!(check_digest("00").is_err());
        assert!(check_digest(&hash_key(b"k")[7..]).is_ok());
    }
}
