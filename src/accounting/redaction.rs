//! Keeps credentials out of texts that others chose: an upstream may quote the key that it got, in an id, a model or an
//! error. A text is searched for the two keys of its own request and for parts of them, for words whose SHA-256 is that of a
//! listed key, and for words of the shape of a key.

use std::borrow::Cow;
use std::ops::Range;

use sha2::{Digest, Sha256};

use crate::policy::api_key::RequestKey;

/// What stands in the place of a credential.
pub const REDACTED: &str = "[redacted]";

/// The shortest part of a text that is held against the digests, in bytes. A key that is shorter is no secret.
const MIN_KEY_BYTES: usize = 8;

/// The shortest part of one of the request's own keys that is found without the rest, in bytes: some gateways keep keys without
/// their `sk-`.
const MIN_PART_BYTES: usize = 16;

/// Where parts of a key begin that are looked for, in bytes. Longer ones are tokens, which have a shape.
const SEARCHED_KEY_BYTES: usize = 512;

/// How many runs of letters and digits a key may have, to be found within a longer word: a UUID has five.
const MAX_RUNS: usize = 5;

/// How the keys of OpenAI, Anthropic and most gateways begin.
const KEY_PREFIX: &str = "sk-";

/// How many bytes behind `KEY_PREFIX` make a key, and no other word.
const KEY_SHAPE_BYTES: usize = 16;

/// How a JSON Web Token begins, and its second part: with an object in base64 (RFC 7519 §3).
const TOKEN_PREFIX: &str = "eyJ";

/// The keys that a text may quote.
pub struct KnownKeys<'k> {
    /// Those of the request that it is about: the client's, and the one that went upstream in its place.
    pub own: [Option<&'k RequestKey>; 2],
    /// Whether a key is listed, by its SHA-256.
    pub is_listed: &'k dyn Fn(&[u8; 32]) -> bool,
}

/// How closely a text is searched.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Search {
    /// For the request's own keys, whatever is around them; words of the shape of a key; words, and what stands between their
    /// slashes, that are a listed key.
    Words,
    /// Also for listed keys in parts of words, where they are made of no more than `MAX_RUNS` runs of letters and digits, and no
    /// letter or digit stands before or behind them.
    PartsOfWords,
    /// Also for parts of the request's own keys, in any case. Not for names: a key that somebody made up may have the name of a
    /// model in it.
    PartsOfKeys,
}

/// A text without credentials.
pub fn redacted<'a>(text: &'a str, search: Search, known: &KnownKeys<'_>) -> Cow<'a, str> {
    let mut clean = Cow::Borrowed(text);
    for key in known.own.iter().flatten() {
        clean = replaced(clean, |text| own_key_in(text, &key.secret, search));
    }
    replaced(clean, |text| credential_in(text, search, known.is_listed))
}

/// The text with all that is found in it replaced. What takes its place is not looked at again: it may be somebody's key.
fn replaced(text: Cow<'_, str>, find: impl Fn(&str) -> Option<Range<usize>>) -> Cow<'_, str> {
    let mut clean = String::new();
    let mut left = &text[..];
    while let Some(found) = find(left) {
        clean.push_str(&left[..found.start]);
        clean.push_str(REDACTED);
        left = &left[found.end..];
    }
    match clean.is_empty() {
        true => text,
        false => Cow::Owned(clean + left),
    }
}

/// A key that is no text is not quoted in one.
fn own_key_in(text: &str, key: &[u8], search: Search) -> Option<Range<usize>> {
    if key.len() < MIN_KEY_BYTES {
        return None;
    }
    let (shortest, begins) = match search {
        Search::PartsOfKeys => (
            key.len().min(MIN_PART_BYTES),
            key.len().min(SEARCHED_KEY_BYTES),
        ),
        _ => (key.len(), 1),
    };
    let bytes = text.as_bytes();
    let last = bytes.len().checked_sub(shortest)?;
    (0..=last).find_map(|at| {
        let longest = (0..begins)
            .map(|begin| common(&bytes[at..], &key[begin..]))
            .max()?;
        let found = at..at + longest;
        (longest >= shortest && text.get(found.clone()).is_some()).then_some(found)
    })
}

/// How long the beginning is that two texts share, in any case.
fn common(one: &[u8], other: &[u8]) -> usize {
    let pairs = one.iter().zip(other);
    pairs.take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count()
}

fn credential_in(
    text: &str,
    search: Search,
    is_known: &dyn Fn(&[u8; 32]) -> bool,
) -> Option<Range<usize>> {
    let mut from = 0;
    while let Some(word) = next_run(text, from, is_of_word) {
        from = word.end;
        if word.len() < MIN_KEY_BYTES {
            continue;
        }
        let is_credential = |part: &Range<usize>| {
            part.len() >= MIN_KEY_BYTES
                && is_known(&Sha256::digest(&text.as_bytes()[part.clone()]).into())
        };
        let found = key_shape(text, &word).or_else(|| {
            let whole = is_credential(&word).then(|| word.clone());
            let whole = whole.or_else(|| segments(text, &word).find(is_credential));
            whole.or_else(|| match search {
                Search::Words => None,
                _ => known_part(text, &word, is_credential),
            })
        });
        if found.is_some() {
            return found;
        }
    }
    None
}

/// What stands between the slashes of a word, as in a path; nothing where there are none.
fn segments(text: &str, word: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let mut begin = word.start;
    let all = text[word.clone()].split('/').map(move |segment| {
        let range = begin..begin + segment.len();
        begin = range.end + 1;
        range
    });
    all.filter(move |segment| segment != word)
}

/// A sign that a key may have (RFC 6750 §2.1: `b64token`).
fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte)
}

fn is_of_run(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
}

/// The next run of such signs from `from` on.
fn next_run(text: &str, from: usize, is_of: fn(u8) -> bool) -> Option<Range<usize>> {
    let bytes = text.as_bytes().get(from..)?;
    let begin = bytes.iter().position(|byte| is_of(*byte))?;
    let length = bytes[begin..].iter().position(|byte| !is_of(*byte));
    let length = length.unwrap_or(bytes.len() - begin);
    Some(from + begin..from + begin + length)
}

/// From where a word, or a part of one, begins as a key or a token does, to the end of the word.
fn key_shape(text: &str, word: &Range<usize>) -> Option<Range<usize>> {
    let word_text = &text[word.clone()];
    let is_shape = |at: usize| {
        let (before, rest) = word_text.split_at(at);
        let begins = before
            .bytes()
            .next_back()
            .is_none_or(|byte| !is_of_run(byte));
        let is_key =
            rest.starts_with(KEY_PREFIX) && rest.len() >= KEY_PREFIX.len() + KEY_SHAPE_BYTES;
        let mut parts = rest.split('.');
        let is_token = parts
            .by_ref()
            .take(2)
            .all(|part| part.starts_with(TOKEN_PREFIX))
            && parts.next().is_some();
        begins && (is_key || is_token)
    };
    let keys = word_text.match_indices(KEY_PREFIX);
    let mut places = keys.chain(word_text.match_indices(TOKEN_PREFIX));
    places
        .find(|(at, _)| is_shape(*at))
        .map(|(at, _)| word.start + at..word.end)
}

/// A part of a word, from the beginning of a run of letters and digits to the end of one.
fn known_part(
    text: &str,
    word: &Range<usize>,
    is_credential: impl Fn(&Range<usize>) -> bool,
) -> Option<Range<usize>> {
    // Where the newest runs begin, the oldest first.
    let mut begins = [word.start; MAX_RUNS];
    let mut count = 0;
    let mut from = word.start;
    while let Some(run) = next_run(&text[..word.end], from, is_of_run) {
        from = run.end;
        if count == MAX_RUNS {
            begins.rotate_left(1);
            count -= 1;
        }
        begins[count] = run.start;
        count += 1;
        let parts = begins[..count].iter().map(|begin| *begin..run.end);
        let found = parts
            .into_iter()
            .find(|part| part != word && is_credential(part));
        if found.is_some() {
            return found;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn without(key: &str, text: &str) -> String {
        with_listed(key, text, Search::PartsOfWords)
    }

    fn with_listed(key: &str, text: &str, search: Search) -> String {
        let digest: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        let known = KnownKeys {
            own: [None; 2],
            is_listed: &|known| *known == digest,
        };
        redacted(text, search, &known).into_owned()
    }

    /// Of a request that came with this key.
    fn of_request(key: &[u8], text: &str, search: Search) -> String {
        let known = KnownKeys {
            own: [Some(&RequestKey::new(key)), None],
            is_listed: &|_| false,
        };
        redacted(text, search, &known).into_owned()
    }

    #[test]
    fn a_key_of_the_request_itself_is_found_whatever_is_around_it() {
        for key in ["team-secret", "c2Vj+mV0/2Vj==", "sk-0123456789abcdef"] {
            for (around, expected) in [
                ("x{}y", "x[redacted]y"),
                ("no such key: n{}.", "no such key: n[redacted]."),
                ("?key={}&x=1", "?key=[redacted]&x=1"),
                ("{}{}_1", "[redacted][redacted]_1"),
                ("é{}é", "é[redacted]é"),
            ] {
                for search in [Search::Words, Search::PartsOfKeys] {
                    let found = of_request(key.as_bytes(), &around.replace("{}", key), search);
                    assert_eq!(found, expected);
                }
            }
        }
        for key in [
            &b"short"[..],
            b"",
            b"\x80\x80\x80\x80\x80\x80\x80\x80",
            b"not there",
        ] {
            let text = "a short text \u{10000}";
            assert_eq!(of_request(key, text, Search::PartsOfKeys), text);
        }
    }

    #[test]
    fn a_key_may_be_the_word_that_stands_for_keys() {
        let all = |key: &str, text| of_request(key.as_bytes(), text, Search::PartsOfKeys);
        assert_eq!(all("redacted", "x redacted"), "x [redacted]");
        assert_eq!(all(REDACTED, "[redacted]"), "[redacted]");
        assert_eq!(
            without("redacted", "redacted redacted"),
            "[redacted] [redacted]"
        );
    }

    #[test]
    fn a_known_credential_is_found_alone_and_within_a_word() {
        for key in [
            "team-secret",
            "0190a1b2-aaaa-bbbb-cccc-0123456789ab",
            "c2VjcmV0c2VjcmV0==",
            "tok.en/with+signs",
        ] {
            for (around, expected) in [
                ("{}", "[redacted]"),
                ("req_{}", "req_[redacted]"),
                ("{}_{}", "[redacted]_[redacted]"),
                (
                    "no such key: `{}`, {}",
                    "no such key: `[redacted]`, [redacted]",
                ),
                ("é{}é", "é[redacted]é"),
                ("Bearer {}", "Bearer [redacted]"),
            ] {
                if key.ends_with('=') && around.contains('_') {
                    continue;
                }
                assert_eq!(without(key, &around.replace("{}", key)), expected, "{key}");
            }
        }
    }

    #[test]
    fn a_word_of_the_shape_of_a_key_goes_though_nobody_knows_it() {
        for (text, expected) in [
            ("sk-proj-abc_DEF-0123456789", "[redacted]"),
            ("x sk-ant-api03-0123456789abcdef y", "x [redacted] y"),
            ("req_sk-0123456789abcdef", "req_[redacted]"),
            (
                "at eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
                "at [redacted]",
            ),
            (
                "req_eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.",
                "req_[redacted]",
            ),
            ("task-0123456789abcdef01", "task-0123456789abcdef01"),
            ("sk-short", "sk-short"),
            ("gpt-5.5-2026-04-24", "gpt-5.5-2026-04-24"),
            ("", ""),
        ] {
            assert_eq!(without("nobody's", text), expected);
        }
    }

    #[test]
    fn a_key_between_slashes_is_found_in_texts_that_are_not_searched() {
        for (text, expected) in [
            ("/v1/files/sk-bob-0001", "/v1/files/[redacted]"),
            ("/v1/sk-bob-0001/x", "/v1/[redacted]/x"),
            ("/v1/files/sk-bob-00012", "/v1/files/sk-bob-00012"),
        ] {
            assert_eq!(with_listed("sk-bob-0001", text, Search::Words), expected);
        }
    }

    #[test]
    fn parts_of_the_requests_own_key_are_found_where_they_are_looked_for() {
        let key = "sk-gpt-5.5-codex-max-0123";
        for (text, expected) in [
            ("gpt-5.5-codex-max-0123", "[redacted]"),
            ("SK-GPT-5.5-CODEX-MAX-0123", "[redacted]"),
            ("req_5.5-codex-max-0123", "req_[redacted]"),
            ("sk%2Dgpt-5.5-codex-max%2d0123", "sk%2D[redacted]%2d0123"),
            ("xgpt-5.5-codex-ma-", "x[redacted]-"),
            ("sk-gpt-5****0123", "sk-gpt-5****0123"),
        ] {
            let found = |search| of_request(key.as_bytes(), text, search);
            assert_eq!(found(Search::PartsOfKeys), expected);
            assert_eq!(found(Search::PartsOfWords) == text, !text.starts_with("SK"));
        }
        let long = [b'x'; 4096];
        assert_eq!(
            of_request(&long, &"x".repeat(1536), Search::PartsOfKeys),
            REDACTED
        );
    }

    proptest! {
        #[test]
        fn no_text_of_words_keeps_a_known_key(
            key in "[A-Za-z0-9]{4,12}(-[A-Za-z0-9]{2,8}){0,4}",
            before in "([a-z]{0,6}[ _:])?",
            after in "([ ,:_][a-z]{0,6})?",
        ) {
            prop_assume!(key.len() >= MIN_KEY_BYTES);
            let text = format!("{before}{key}{after}");
            prop_assert!(!without(&key, &text).contains(&key), "{}", text);
        }

        #[test]
        fn a_text_without_credentials_stays(text in "\\PC{0,100}") {
            prop_assume!(!text.contains(KEY_PREFIX));
            prop_assert_eq!(without("nobody's", &text), text);
        }
    }
}
