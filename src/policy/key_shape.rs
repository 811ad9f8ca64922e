//! Which texts can be API keys. What cannot is mostly something that was pasted with a key, or in its place: it would be a
//! key that nobody can send, or a digest that everybody who reads the file could.

use crate::policy::api_key::parse_digest;

/// SHA-256 of nothing: what `echo -n $UNSET | sha256sum` prints.
const DIGEST_OF_NOTHING: [u8; 32] = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
    0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];
/// SHA-256 of a line end: what `echo $UNSET | sha256sum` prints.
const DIGEST_OF_NEWLINE: [u8; 32] = [
    0x01, 0xba, 0x47, 0x19, 0xc8, 0x0b, 0x6f, 0xe9, 0x11, 0xb0, 0x91, 0xa7, 0xc0, 0x51, 0x24, 0xb6,
    0x4e, 0xee, 0xce, 0x96, 0x4e, 0x09, 0xc0, 0x58, 0xef, 0x8f, 0x98, 0x05, 0xda, 0xca, 0x54, 0x6b,
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
const DIGEST_STARTS: [&str; 9] = [
    "sha256", "sha512", "sha384", "sha224", "sha-256:", "sha-512:", "sha1:", "md5:", "blake",
];
/// What stands between the name of a digest and its digits.
const BEFORE_DIGITS: [char; 4] = [':', '=', '}', '$'];
/// Lengths of SHA-256, SHA-384 and SHA-512 as digits.
const DIGEST_DIGITS: [usize; 3] = [64, 96, 128];
/// The same of SHA-1 and SHA-224. The 32 of MD5 are no sign of one: Azure's keys have as many.
const SHORT_DIGEST_DIGITS: [usize; 2] = [40, 56];
const LOOKS_LIKE_DIGEST: &str = "this looks like a digest, not like an API key; digests are written `sha256:` and 64 hexadecimal digits, in lower case and without spaces";
/// In the name of a variable that holds a key.
const SECRET_WORDS: [&str; 3] = ["key", "token", "secret"];
/// What points to a key in the files of other programs, in lower case.
const REFERENCE_STARTS: [&str; 16] = [
    "env:",
    "file:",
    "vault:",
    "secret:",
    "secretref:",
    "sops:",
    "ssm:",
    "keyring:",
    "arn:",
    "projects/",
    "enc[",
    "-----begin",
    "./",
    "../",
    "~/",
    "@",
];
/// What stands around the name of a key where something is to put in the key itself.
const AROUND_NAMES: [(&str, &str); 8] = [
    ("${", "}"),
    ("$(", ")"),
    ("%(", ")s"),
    ("#{", "}"),
    ("{{", "}}"),
    ("{", "}"),
    ("[", "]"),
    ("<", ">"),
];
/// What people write until they have a key.
const PLACEHOLDERS: [&str; 5] = ["todo", "tbd", "fixme", "placeholder", "redacted"];
/// What clients send that have no key. An upstream of one's own may ask for nothing else.
const NO_KEYS: [&str; 4] = ["none", "null", "nil", "undefined"];
/// What they write into one, without hyphens and underscores.
const IN_PLACEHOLDERS: [&str; 10] = [
    "changeme",
    "replaceme",
    "replacewith",
    "yourkey",
    "yourapikey",
    "yourtoken",
    "yoursecret",
    "keyhere",
    "insertyour",
    "enteryour",
];
/// What stands for the part of a key that is not shown.
const ELLIPSES: [&str; 3] = ["...", "xxxxx", "XXXXX"];
/// Up to this length of a key in bytes; a long random key may have such a part by chance.
const MAX_ELLIPSED: usize = 40;
const QUOTES: [char; 10] = ['"', '\'', '`', '“', '”', '„', '‘', '’', '«', '»'];

/// Tells whether a text has a fault.
type IsFound = fn(&str) -> bool;

/// What no key has, and what is said of it. The first that is found is told.
const FAULTS: [(IsFound, &str); 12] = [
    (
        |key| key.is_empty() || key.trim() != key,
        "an API key is not empty and does not begin or end with white space",
    ),
    (
        |key| key.starts_with('\u{feff}'),
        "an API key has no byte order mark before it",
    ),
    (
        has_scheme,
        "an API key stands alone, without the header's name or scheme before it",
    ),
    (|key| key.contains(QUOTES), "an API key has no quotes in it"),
    (
        is_assignment,
        "an API key stands alone, without the name of a variable before it",
    ),
    (
        is_reference,
        "this says where a key is, and is none itself; variables and references are not put in here",
    ),
    (
        is_placeholder,
        "this stands for an API key that is still to be put in",
    ),
    (
        |key| key.contains('*'),
        "an API key has no `*` in it: keys are compared whole",
    ),
    (
        |key| key.chars().count() == 1,
        "an API key of one character is guessed at once",
    ),
    (
        |key| key.contains(char::is_whitespace),
        "an API key has no white space in it",
    ),
    (
        |key| !key.bytes().all(|byte| byte.is_ascii_graphic()),
        "an API key has only printable ASCII characters in it",
    ),
    (begins_as_digest, LOOKS_LIKE_DIGEST),
];

/// Whether a text can be an API key in clear.
///
/// # Errors
/// Why it cannot. The reason does not quote it.
pub fn check_key(key: &str) -> Result<(), &'static str> {
    check_credential(key)?;
    if key.contains([',', ';']) {
        return Err("an API key has no `,` or `;` in it; several keys are listed one by one");
    }
    if NO_KEYS.contains(&key.to_ascii_lowercase().as_str()) {
        return Err("this is what clients send that have no key");
    }
    let digits = key.rsplit(BEFORE_DIGITS).next().unwrap_or(key);
    let is_digits = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_digits && DIGEST_DIGITS.contains(&digits.len()) {
        return Err(LOOKS_LIKE_DIGEST);
    }
    if is_digits && SHORT_DIGEST_DIGITS.contains(&digits.len()) {
        return Err(
            "this looks like a SHA-1 digest; if it is an API key, list it as `sha256:` and what `sha256sum` makes of it",
        );
    }
    Ok(())
}

/// Whether a text can be the key that an upstream asks for. Some of these are hexadecimal digits, as digests are.
///
/// # Errors
/// Why it cannot. The reason does not quote it.
pub fn check_credential(key: &str) -> Result<(), &'static str> {
    let mut faults = FAULTS.iter();
    match faults.find(|(is_found, _)| is_found(key)) {
        Some((_, why)) => Err(why),
        None => Ok(()),
    }
}

/// A word before the key, as in an `Authorization` header.
fn has_scheme(text: &str) -> bool {
    let Some((first, _)) = text.split_once([' ', '\t', ':', '=']) else {
        return false;
    };
    SCHEMES
        .iter()
        .any(|scheme| first.eq_ignore_ascii_case(scheme))
}

/// How other programs print a digest.
fn begins_as_digest(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let is_number = lower.strip_prefix("0x").is_some_and(|digits| {
        DIGEST_DIGITS.contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    });
    is_number || is_crypt(&lower) || DIGEST_STARTS.iter().any(|start| lower.starts_with(start))
}

/// `$2b$…`, `$argon2id$…` or `name:$apr1$…`, as crypt(3) and htpasswd have them, and `{SSHA}…` of RFC 2307.
fn is_crypt(lower: &str) -> bool {
    let hash = lower.rsplit(':').next().unwrap_or(lower);
    let after = |sign| hash.strip_prefix(sign);
    let scheme = after('$').and_then(|rest| rest.split_once('$'));
    let scheme = scheme.or_else(|| after('{').and_then(|rest| rest.split_once('}')));
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    scheme.is_some_and(|(scheme, rest)| {
        !scheme.is_empty() && scheme.bytes().all(is_letter) && !rest.is_empty()
    })
}

/// `changeme`, `sk-...`, `sk-...abcd`, `sk-xxxx`, `sk-` or `your-key-here`.
fn is_placeholder(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let plain = lower.trim_matches(['[', ']', '(', ')', '<', '>']);
    let plain = plain.strip_prefix("sk-").unwrap_or(plain);
    let end = plain.rsplit('-').next().unwrap_or(plain).as_bytes();
    let is_filler =
        end.len() >= 3 && b"x*.".contains(&end[0]) && end.iter().all(|byte| *byte == end[0]);
    let is_prefix =
        plain.is_empty() || text.len() <= 16 && lower.starts_with("sk-") && lower.ends_with('-');
    // To search for words takes long with a hundred thousand keys, and a key that a program made has digits.
    let may_have_words = !text.bytes().any(|byte| byte.is_ascii_digit());
    let has_words = || {
        let squeezed = lower.replace(['-', '_'], "");
        IN_PLACEHOLDERS.iter().any(|words| squeezed.contains(words))
    };
    let has_ellipsis =
        || text.len() <= MAX_ELLIPSED && ELLIPSES.iter().any(|part| text.contains(part));
    is_filler
        || is_prefix
        || PLACEHOLDERS.contains(&plain)
        || has_ellipsis()
        || may_have_words && has_words()
}

/// `OPENAI_API_KEY=sk-…`, as in files of variables. Base64 has `=` at its end only.
fn is_assignment(text: &str) -> bool {
    let Some((name, value)) = text.split_once('=') else {
        return false;
    };
    let name = name.strip_prefix("export ").unwrap_or(name).trim_end();
    let lower = name.to_ascii_lowercase();
    let is_upper = !name.bytes().any(|byte| byte.is_ascii_lowercase());
    let is_of_key = SECRET_WORDS.iter().any(|word| lower.contains(word));
    is_name(name) && (is_upper || is_of_key) && !value.trim_start_matches('=').is_empty()
}

/// `$NAME`, `${NAME}`, `%NAME%`, `{{…}}`, `<…>`, `env:NAME`, `vault://…`, `/run/secrets/…` or `OPENAI_API_KEY`: what
/// somebody or something was to put a key in for.
fn is_reference(text: &str) -> bool {
    let between = |start: &str, end: &str| text.strip_prefix(start)?.strip_suffix(end);
    let is_constant = |name: &str| is_name(name) && name.to_ascii_uppercase() == name;
    let is_of_key = |name: &str| {
        let lower = name.to_ascii_lowercase();
        let mut words = lower.split('_').skip(1);
        words.any(|word| SECRET_WORDS.contains(&word))
    };
    let lower = text.to_ascii_lowercase();
    // Base64 may begin with a slash, but has capitals, or more than names of files have.
    let is_in_path = |byte: u8| byte.is_ascii_lowercase() || b"/._-".contains(&byte);
    let is_path = text.starts_with('/') && text.bytes().all(is_in_path);
    is_path
        || text.contains(':') && text.contains("://")
        || REFERENCE_STARTS
            .iter()
            .any(|start| lower.starts_with(start))
        || is_constant(text) && is_of_key(text)
        || text.strip_prefix('$').is_some_and(is_constant)
        || text.strip_prefix('!').is_some_and(is_name)
        || between("%", "%").is_some_and(is_constant)
        || AROUND_NAMES
            .iter()
            .any(|(start, end)| between(start, end).is_some())
}

/// Whether a text can be the name of a variable.
fn is_name(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.bytes().all(is_letter)
        && text
            .bytes()
            .next()
            .is_some_and(|first| !first.is_ascii_digit())
}

/// The digest of a key that is listed as `sha256:` and these digits, in any case.
///
/// # Errors
/// Why it is none.
pub fn check_digest(digits: &str) -> Result<[u8; 32], &'static str> {
    match parse_digest(digits) {
        None => Err("expected `sha256:` and 64 hexadecimal digits"),
        Some(DIGEST_OF_NOTHING | DIGEST_OF_NEWLINE) => {
            Err("this is the digest of nothing, not of an API key")
        }
        Some(digest) => Ok(digest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::hash_key;

    #[test]
    fn keys_of_all_providers_are_keys() {
        let keys = "sk-proj-Ab_9-xyz sk-ant-api03-x xai-1 0123 3f2504e04f8911d39a0c0305e82c33 QUJD= QUJDRA== $ecret a=b AIzaSyA-1 \
            sk-or-v1-0123456789abcdef eyJhbGciOi.eyJzdWIi.c2ln bearer sha-1 a+/=~! sk-alice-0001 sk-demo-x demo-key-alice \
            0f8fad5b-d9cb-469f-a165-70867728950e n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg= \
            /4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg= SK_LIVE_0F8FAD5B \
            sk-tg-1ff136d67b242b59bc474a62eb31be6202103b10b689381a4c78f10535c8f68e \
            0f8fad5b-d9cb-469f-a165-70867728950e:3f2504e04f8911d39a0c0305e82c3301 pa$$w0rd$1 a{b}c sk-test";
        for key in keys.split(' ') {
            assert_eq!(check_key(key), Ok(()), "{key}");
        }
    }

    #[test]
    fn what_was_pasted_with_a_key_or_in_its_place_is_none() {
        let digest = hash_key(b"k");
        let words = "bearer:sk-1 'sk-1' sha512:00 $2b$12$abcdefghijk $argon2id$v=19$x ${TIERGATE_KEY} $OPENAI_API_KEY \
            %OPENAI_API_KEY% <your-key> OPENAI_API_KEY=sk-1 api_key=sk-1 X=1 sha-256:0f8fad5bd9cb469fa16570867728950e sk-... \
            sk-*** sk-xxxx sk-proj-XXXXXXXX changeme TODO your-key-here sk-your_api_key env:KEY file:/run/secrets/key \
            @key.txt OPENAI_API_KEY GITHUB_TOKEN * sk-* k {SSHA}0123456789abcdefghij alice:$apr1$x$y $y$j9T$x$y \
            $pbkdf2-sha256$29000$x$y sk-...abcd sk-proj-...Ab12 sk-xxxxx1234 sk- sk-proj- REPLACE_ME sk-proj-YOUR_KEY_HERE \
            [REDACTED] none undefined %(key)s #{KEY} {key} !vault vault://secret/key https://vault.internal/key \
            arn:aws:secretsmanager:us-east-1:1:secret:x projects/p/secrets/s/versions/1 secretRef:x ENC[AES256_GCM] \
            /run/secrets/key ~/.key ./openai.key sk-1,sk-2 sk-1;sk-2";
        let others = [
            "",
            " k",
            "k\n",
            "Bearer sk-1",
            "x-api-key: sk-1",
            "API_KEY sk-1",
            "sk 1",
            "sk\u{a0}1",
            "“sk-1”",
            "sk-é",
            "sk-\u{200b}1",
            "sk-\u{1}",
            &digest[7..],
            &digest.replace("sha256", "SHA256"),
            &digest.replace(':', "="),
            "\u{feff}sk-1",
            "$(cat key)",
            "{{ key }}",
            "export KEY=sk-1",
            &digest.replace("sha256:", "0x"),
            &digest.replace("sha256:", "{SHA256}"),
            &digest.replace("sha256:", "hash:"),
            &digest.replace("sha256:", "sha3-256:"),
            &digest.replace("sha256:", "pbkdf2$"),
        ];
        for key in words.split(' ').chain(others) {
            assert!(check_key(key).is_err(), "{key}");
        }
        for digits in DIGEST_DIGITS.iter().chain(&SHORT_DIGEST_DIGITS) {
            assert!(check_key(&"0f".repeat(digits / 2)).is_err(), "{digits}");
        }
        assert_eq!(check_key(&"0f".repeat(16)), Ok(()));
    }

    #[test]
    fn the_key_of_an_upstream_may_be_digits() {
        let key = "3f2504e04f8911d39a0c0305e82c3301";
        assert_eq!(check_credential(key), Ok(()));
        assert_eq!(check_credential(&key.repeat(2)), Ok(()));
        assert_eq!(check_credential("none"), Ok(()));
        for text in [
            "",
            "Bearer sk-1",
            "A_KEY=sk-1",
            "\"sk-1\"",
            "sk 1",
            "sha256:00",
        ] {
            assert!(check_credential(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_digest_of_nothing_is_not_that_of_a_key() {
        assert!(check_digest(&hash_key(b"")[7..]).is_err());
        assert!(check_digest(&hash_key(b"")[7..].to_uppercase()).is_err());
        assert!(check_digest(&hash_key(b"\n")[7..]).is_err());
        assert!(check_digest("00").is_err());
        assert!(check_digest(&hash_key(b"k")[7..]).is_ok());
    }
}
