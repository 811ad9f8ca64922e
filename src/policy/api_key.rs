//! API keys: how a request brings one, and the table of those that a policy lists. Keys are held as SHA-256 digests only.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};

use crate::config::diagnostic::{Mistakes, Place};

pub static X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The key that a request came with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Credential {
    /// SHA-256 of the key.
    pub digest: [u8; 32],
    pub header: CredentialHeader,
}

/// The header a key came in; [`CredentialHeader::Authorization`] where it came in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialHeader {
    Authorization,
    XApiKey,
}

/// Why a request has no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoKey {
    Missing,
    Conflicting,
}

/// The keys, 52 bytes each and their names. Digests are uniform, so an ordered array is found through quickly, and a
/// million keys need no spare room.
#[derive(Default)]
pub(crate) struct KeyTable {
    /// In the order of the digests, none twice.
    keys: Box<[Key]>,
    /// All names, end to end.
    names: Box<str>,
}

/// A listed key.
pub(crate) struct Key {
    pub(crate) digest: [u8; 32],
    pub(crate) place: Place,
    /// Index of its group in the policy.
    pub(crate) group: u32,
    /// Where its name begins in [`KeyTable::names`], which is shorter than the file.
    name_start: u32,
    /// Zero: the name is made of the digest.
    name_len: u8,
    pub(crate) enabled: bool,
}

/// A key as a policy lists it.
pub(crate) struct NewKey<'n> {
    pub(crate) digest: [u8; 32],
    pub(crate) place: Place,
    pub(crate) group: u32,
    /// Empty: made of the digest. At most 255 bytes.
    pub(crate) name: &'n str,
    pub(crate) enabled: bool,
}

impl Credential {
    /// The one key of a request. A header without a key (another scheme, an empty value) counts as not there.
    pub fn of(headers: &HeaderMap) -> Result<Credential, NoKey> {
        let bearer = headers
            .get_all("authorization")
            .iter()
            .filter_map(|line| bearer_key(line.as_bytes()));
        let direct = headers
            .get_all(&X_API_KEY)
            .iter()
            .map(|line| line.as_bytes().trim_ascii());
        let mut keys = bearer
            .map(|key| (key, CredentialHeader::Authorization))
            .chain(direct.map(|key| (key, CredentialHeader::XApiKey)))
            .filter(|(key, _)| !key.is_empty());
        let (key, header) = keys.next().ok_or(NoKey::Missing)?;
        if keys.any(|(other, _)| other != key) {
            return Err(NoKey::Conflicting);
        }
        Ok(Credential {
            digest: digest(key),
            header,
        })
    }
}

/// Without the digest, which would let whoever reads it test guesses of a weak key.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

impl KeyTable {
    /// Of keys in the order of the file. One that is listed twice, perhaps once in clear and once as a digest, is a
    /// mistake.
    pub(crate) fn new<'n>(
        listed: impl Iterator<Item = NewKey<'n>>,
        mistakes: &Mistakes,
    ) -> KeyTable {
        let mut names = String::new();
        let mut keys = Vec::with_capacity(listed.size_hint().1.unwrap_or(0));
        keys.extend(listed.filter_map(|key| Key::new(key, &mut names)));
        keys.sort_unstable_by(|a, b| (&a.digest, a.place).cmp(&(&b.digest, b.place)));
        for pair in keys
            .windows(2)
            .filter(|pair| pair[0].digest == pair[1].digest)
        {
            mistakes.add(
                pair[1].place,
                format!("this API key is already listed at {}", pair[0].place),
            );
        }
        KeyTable {
            keys: keys.into_boxed_slice(),
            names: names.into_boxed_str(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Key> {
        self.keys.iter()
    }

    /// The time it takes may tell how far digests agree, and nothing of a key: whoever sees a digest's first bytes agree
    /// cannot make the next ones do so but by trying keys.
    pub(crate) fn find(&self, digest: &[u8; 32]) -> Option<&Key> {
        let index = self
            .keys
            .binary_search_by(|key| key.digest.cmp(digest))
            .ok()?;
        Some(&self.keys[index])
    }

    pub(crate) fn name(&self, key: &Key) -> Arc<str> {
        if key.name_len == 0 {
            return format!("key-{}", hex(&key.digest[..4])).into();
        }
        let start = key.name_start as usize;
        self.names[start..start + usize::from(key.name_len)].into()
    }
}

impl Key {
    /// None where lengths do not fit: not for a name that has been checked, and a file below 4 GiB.
    fn new(key: NewKey<'_>, names: &mut String) -> Option<Key> {
        let NewKey {
            digest,
            place,
            group,
            name,
            enabled,
        } = key;
        let name_start = u32::try_from(names.len()).ok()?;
        let name_len = u8::try_from(name.len()).ok()?;
        names.push_str(name);
        Some(Key {
            digest,
            place,
            group,
            name_start,
            name_len,
            enabled,
        })
    }
}

/// A key as it may be listed in the policy: `sha256:` and 64 hexadecimal digits.
pub fn hash_key(key: &[u8]) -> String {
    format!("sha256:{}", hex(&digest(key)))
}

/// 64 hexadecimal digits in any case.
pub(crate) fn parse_digest(digits: &str) -> Option<[u8; 32]> {
    let digits = digits.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| (pair[at] as char).to_digit(16);
        *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
    }
    Some(digest)
}

pub(crate) fn digest(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
    ];
    let nibbles = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    nibbles.map(|nibble| DIGITS[usize::from(nibble)]).collect()
}

/// The key of a bearer `Authorization` (RFC 6750; the scheme's case does not matter); none for another scheme.
fn bearer_key(value: &[u8]) -> Option<&[u8]> {
    let value = value.trim_ascii();
    let (scheme, key) = value.split_at(value.iter().position(u8::is_ascii_whitespace)?);
    scheme
        .eq_ignore_ascii_case(b"bearer")
        .then(|| key.trim_ascii())
}
