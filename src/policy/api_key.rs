//! API keys: how a request brings one, and the table of those that a policy lists, which has their SHA-256 digests only.

use std::fmt;
use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

use crate::config::diagnostic::{Diagnostics, Location};
use crate::config::header_name;

/// The header in which clients of Anthropic send a key.
pub static X_API_KEY: HeaderName = HeaderName::from_static(header_name::X_API_KEY);
/// The header in which clients of Azure OpenAI send a key.
pub static API_KEY: HeaderName = HeaderName::from_static(header_name::API_KEY);

/// The key that a request came with: of several, the one that decides.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// The key.
    pub key: RequestKey,
    /// The first header it came in.
    pub header: CredentialHeader,
    /// Whether other credentials came beside it, which are not to go on.
    pub has_others: bool,
}

/// A key of a request that is under way: to whom it belongs, and what must not be told of it.
#[derive(Clone, PartialEq, Eq)]
pub struct RequestKey {
    /// SHA-256 of the key.
    pub digest: [u8; 32],
    /// The key itself; nothing where only its digest is known.
    pub secret: Arc<[u8]>,
}

/// The header a key came in; the first of these where it came in several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialHeader {
    /// `authorization: Bearer KEY`.
    Authorization,
    /// `x-api-key`, as clients of Anthropic send it.
    XApiKey,
    /// `api-key`, as clients of Azure OpenAI send it.
    ApiKey,
}

/// Why a request has no key that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoKey {
    /// It came with none.
    Missing,
    /// It came with two that are listed.
    Conflicting,
    /// It came with several, and none is listed.
    Unlisted,
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
    pub(crate) location: Location,
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
    pub(crate) location: Location,
    pub(crate) group: u32,
    /// Empty: made of the digest. At most 255 bytes.
    pub(crate) name: &'n str,
    pub(crate) enabled: bool,
}

impl CredentialHeader {
    /// In the order in which they are looked at.
    pub const ALL: [CredentialHeader; 3] = [
        CredentialHeader::Authorization,
        CredentialHeader::XApiKey,
        CredentialHeader::ApiKey,
    ];

    /// Its name.
    pub fn name(self) -> &'static HeaderName {
        match self {
            CredentialHeader::Authorization => &AUTHORIZATION,
            CredentialHeader::XApiKey => &X_API_KEY,
            CredentialHeader::ApiKey => &API_KEY,
        }
    }

    /// The key in a line of it; none for another scheme than `Bearer`, and for an empty value.
    fn key(self, line: &HeaderValue) -> Option<&[u8]> {
        let key = match self {
            CredentialHeader::Authorization => bearer_key(line.as_bytes())?,
            CredentialHeader::XApiKey | CredentialHeader::ApiKey => line.as_bytes().trim_ascii(),
        };
        (!key.is_empty()).then_some(key)
    }
}

/// The first 8 hexadecimal digits of a key's digest, in ASCII: enough to find a key again, and nothing to guess it by.
pub fn key_id(digest: &[u8; 32]) -> [u8; 8] {
    let mut id = [0; 8];
    hex::encode_to_slice(&digest[..4], &mut id).expect("two digits for each byte");
    id
}

/// The name of a key that is not listed, or has none: made of its digest as [`key_id`] is.
pub fn made_name(digest: &[u8; 32]) -> String {
    format!("key-{}", hex::encode(&digest[..4]))
}

impl RequestKey {
    /// That a request brings, or goes on with.
    pub fn new(key: &[u8]) -> Self {
        Self {
            digest: digest(key),
            secret: key.into(),
        }
    }

    /// Of which nothing else is known.
    pub fn of_digest(digest: [u8; 32]) -> Self {
        Self {
            digest,
            secret: Arc::default(),
        }
    }
}

impl Credential {
    /// The key that decides over a request: its only one, or of several that differ the one that is listed. A header without a
    /// key (another scheme, an empty value) counts as not there.
    ///
    /// # Errors
    /// Where there is no such key; with the first that came, for the log.
    pub fn of(
        headers: &HeaderMap,
        is_listed: impl Fn(&[u8; 32]) -> bool,
    ) -> Result<Credential, (NoKey, Option<Credential>)> {
        let mut keys = keys(headers);
        let (key, header) = keys.next().ok_or((NoKey::Missing, None))?;
        let differ = keys.any(|(other, _)| other != key);
        let first = Credential {
            key: RequestKey::new(key),
            header,
            has_others: differ || has_other_scheme(headers),
        };
        if differ {
            return Self::listed(headers, is_listed).map_err(|none| (none, Some(first)));
        }
        Ok(first)
    }

    /// The one of several that is listed.
    fn listed(
        headers: &HeaderMap,
        is_listed: impl Fn(&[u8; 32]) -> bool,
    ) -> Result<Credential, NoKey> {
        let mut chosen: Option<Credential> = None;
        for (key, header) in keys(headers) {
            let key = RequestKey::new(key);
            match &chosen {
                Some(chosen) if chosen.key == key => {}
                _ if !is_listed(&key.digest) => {}
                Some(_) => return Err(NoKey::Conflicting),
                None => {
                    chosen = Some(Credential {
                        key,
                        header,
                        has_others: true,
                    })
                }
            }
        }
        chosen.ok_or(NoKey::Unlisted)
    }

    /// The headers that are removed, and the one value that takes the place of all lines of its header, so that no other
    /// credential goes on; none where no others came.
    pub fn without_others(
        &self,
        headers: &HeaderMap,
    ) -> Option<([&'static HeaderName; 2], (&'static HeaderName, HeaderValue))> {
        if !self.has_others {
            return None;
        }
        let own = self.header.name();
        let is_own = |line: &&HeaderValue| {
            let key = self.header.key(line);
            key.is_some_and(|key| digest(key) == self.key.digest)
        };
        let line = headers.get_all(own).iter().find(is_own)?.clone();
        let [first, second, third] = CredentialHeader::ALL.map(CredentialHeader::name);
        let removed = match self.header {
            CredentialHeader::Authorization => [second, third],
            CredentialHeader::XApiKey => [first, third],
            CredentialHeader::ApiKey => [first, second],
        };
        Some((removed, (own, line)))
    }
}

/// Whether it has credentials that are no key.
fn has_other_scheme(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(AUTHORIZATION).iter();
    lines.any(|line| !line.is_empty() && bearer_key(line.as_bytes()).is_none())
}

/// All keys of a request, in the order of their headers.
fn keys(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], CredentialHeader)> {
    CredentialHeader::ALL.into_iter().flat_map(move |header| {
        let lines = headers.get_all(header.name()).iter();
        lines.filter_map(move |line| Some((header.key(line)?, header)))
    })
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
        diagnostics: &Diagnostics,
    ) -> KeyTable {
        let mut names = String::new();
        let mut keys = Vec::with_capacity(listed.size_hint().1.unwrap_or(0));
        keys.extend(listed.filter_map(|key| Key::new(key, &mut names)));
        keys.sort_unstable_by(|a, b| (&a.digest, a.location).cmp(&(&b.digest, b.location)));
        for pair in keys
            .windows(2)
            .filter(|pair| pair[0].digest == pair[1].digest)
        {
            diagnostics.add(
                pair[1].location,
                format!("this API key is already listed at {}", pair[0].location),
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
            return made_name(&key.digest).into();
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
            location,
            group,
            name,
            enabled,
        } = key;
        let name_start = u32::try_from(names.len()).ok()?;
        let name_len = u8::try_from(name.len()).ok()?;
        names.push_str(name);
        Some(Key {
            digest,
            location,
            group,
            name_start,
            name_len,
            enabled,
        })
    }
}

/// A key as it may be listed in the policy: `sha256:` and 64 hexadecimal digits.
pub fn hash_key(key: &[u8]) -> String {
    format!("sha256:{}", hex::encode(digest(key)))
}

/// 64 hexadecimal digits in any case.
pub(crate) fn parse_digest(digits: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    hex::decode_to_slice(digits, &mut digest).ok()?;
    Some(digest)
}

pub(crate) fn digest(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// The key of a bearer `Authorization` (RFC 6750; the scheme's case does not matter); none for another scheme.
fn bearer_key(value: &[u8]) -> Option<&[u8]> {
    let value = value.trim_ascii();
    let (scheme, key) = value.split_at(value.iter().position(u8::is_ascii_whitespace)?);
    scheme
        .eq_ignore_ascii_case(b"bearer")
        .then(|| key.trim_ascii())
}
