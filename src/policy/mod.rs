//! What the rules of the groups make of a request: a [`Policy`] is read once, nobody changes it afterwards, and
//! [`Policy::decide`] asks it.

pub mod api_key;
pub(crate) mod budget;
pub(crate) mod changes;
pub mod decide;
pub mod endpoint;
pub(crate) mod file;
pub mod group;
pub(crate) mod in_flight;
pub(crate) mod key_shape;
pub(crate) mod keyed_limiter;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::codec::error::Cause;
use crate::codec::framing::connection_headers;
use crate::config::Upstream;
pub use crate::config::diagnostic::{Diagnostic, Location};
pub use crate::policy::api_key::{Credential, CredentialHeader, hash_key};
use crate::policy::api_key::{KeyTable, NoKey, RequestKey};
pub use crate::policy::decide::{BetaHeader, ClientBeta, Condition, TierAction, TierReason};
use crate::policy::endpoint::Endpoint;
use crate::policy::group::BudgetRule;
pub use crate::policy::group::{FastModeSignal, ForcedTier, ModelRule, OnTierRefused};

/// The header in which a client of Anthropic's API asks for what is not general yet.
pub static ANTHROPIC_BETA: HeaderName = HeaderName::from_static("anthropic-beta");
/// The token of `anthropic-beta` by which Anthropic's clients ask for fast mode.
pub const FAST_MODE_BETA: &str = "fast-mode-2026-02-01";

/// What `policy.yaml` says, resolved against the configuration.
pub struct Policy {
    path: PathBuf,
    revision: String,
    groups: Vec<Arc<Group>>,
    default_group: Option<Arc<Group>>,
    keys: KeyTable,
    tier_paths: Vec<String>,
}

/// A group of keys, with the rules for their requests.
#[derive(Debug)]
pub struct Group {
    /// Name of the group in the policy file.
    pub name: Arc<str>,
    /// Whose API the group uses.
    pub platform: Platform,
    /// As written; [`Group::forced_tier`] says whether it acts.
    pub force: Option<ForcedTier>,
    /// Which models the force is for.
    pub models: ModelRule,
    /// What happens when an upstream refuses the forced tier.
    pub on_tier_refused: OnTierRefused,
    /// By what a client may ask for priority.
    pub fast_mode_beta: FastModeSignal,
    /// How much may be spent on the fast tier.
    pub budget: Option<BudgetRule>,
    /// Whether files of requests may be handed in (`…/batches`) although a tier is forced, which they escape.
    pub batches_allowed: bool,
    /// Most concurrent requests of the group; `None`: no limit.
    pub max_in_flight: Option<u64>,
    /// Most concurrent requests of one key; `None`: no limit.
    pub max_in_flight_per_key: Option<u64>,
    /// Whether its keys may be used; all are refused otherwise.
    pub enabled: bool,
    /// Where its requests go.
    pub upstream: Arc<Upstream>,
    /// Where the policy file names the group.
    pub location: Location,
    /// Where `force_tier` or `force_fast_mode` is written, if one is.
    pub force_location: Option<Location>,
}

/// A key as the policy lists it.
pub struct ListedKey<'p> {
    /// Tells it from others, also over policies; not for showing.
    pub(crate) id: &'p [u8; 32],
    /// Name of the key in the policy file.
    pub name: Arc<str>,
    /// The group that the key belongs to.
    pub group: &'p Group,
    /// Whether the key may be used; it is refused otherwise.
    pub enabled: bool,
}

/// Whose API a group uses. A tier is forced on OpenAI's only.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::EnumString, strum::IntoStaticStr, strum::VariantNames,
)]
#[strum(serialize_all = "snake_case")]
pub enum Platform {
    /// The API of OpenAI.
    #[strum(serialize = "openai")]
    OpenAi,
    /// The API of Anthropic.
    Anthropic,
    /// Any other API.
    Other,
}

/// What of a request the policy looks at.
pub struct Head<'a> {
    /// Lifts no rule: a body may come with any method.
    pub method: &'a Method,
    /// As received, without the query.
    pub path: &'a [u8],
    /// As received, without the question mark; empty where there is none.
    pub query: &'a [u8],
    /// Headers as received.
    pub headers: &'a HeaderMap,
}

/// A request that may go on, and all that later steps need to know of the policy.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The key that the request came with, and where.
    pub credential: Credential,
    /// The key's name; none for a key that is not listed and was taken by the default group.
    pub key: Option<Arc<str>>,
    /// Where the policy file lists the key.
    pub key_location: Option<Location>,
    /// The group whose rules apply.
    pub group: Arc<Group>,
    /// Kind of endpoint that the path names.
    pub endpoint: Endpoint,
    /// Models that path and query name, of which an upstream may serve any whatever the body says.
    pub models: Vec<String>,
    /// What the client's own fast-mode token is to the upstream.
    pub client_beta: ClientBeta,
    /// None: the request goes on as it is, but for that token.
    pub action: Option<TierAction>,
}

/// A request that may not go on, and what was found out about it before.
#[derive(Clone, Debug)]
pub struct Denied {
    /// Why the request is refused.
    pub cause: Cause,
    /// The key that the request came with, listed or not; the first where several did.
    pub credential: Option<Credential>,
    /// The key's name, where it is listed.
    pub key: Option<Arc<str>>,
    /// Where the policy file lists the key.
    pub key_location: Option<Location>,
    /// The key's group, where it is known.
    pub group: Option<Arc<Group>>,
    /// [`Endpoint::Other`] where the path is ambiguous.
    pub endpoint: Endpoint,
}

impl Policy {
    /// The file that the policy was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `sha256:` and the first 12 hexadecimal digits of the file's digest.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// In the order of the file.
    pub fn groups(&self) -> &[Arc<Group>] {
        &self.groups
    }

    /// The group of this name.
    pub fn group(&self, name: &str) -> Option<&Arc<Group>> {
        self.groups.iter().find(|group| &*group.name == name)
    }

    /// Takes the keys that are not listed.
    pub fn default_group(&self) -> Option<&Arc<Group>> {
        self.default_group.as_ref()
    }

    /// Whether a key of this SHA-256 is listed, enabled or not.
    pub fn lists_key(&self, digest: &[u8; 32]) -> bool {
        self.keys.find(digest).is_some()
    }

    /// How many keys are listed, enabled or not.
    pub fn key_count(&self) -> usize {
        self.keys.len()
    }

    /// All keys that are listed, in no order that means anything.
    pub fn keys(&self) -> impl Iterator<Item = ListedKey<'_>> {
        self.keys.iter().map(|key| ListedKey {
            id: &key.digest,
            name: self.keys.name(key),
            group: &self.groups[key.group as usize],
            enabled: key.enabled,
        })
    }

    /// Key first, then path, then tier: nobody without a key learns anything about the rest.
    ///
    /// # Errors
    /// Why the request may not go on.
    pub fn decide(&self, request: &Head<'_>) -> Result<Decision, Denied> {
        let is_listed = |digest: &[u8; 32]| self.lists_key(digest);
        let credential = Credential::of(request.headers, is_listed).map_err(|(none, first)| {
            let path = endpoint::classify(request.path, &self.tier_paths);
            Denied::unknown(none.into(), first, path.endpoint)
        })?;
        self.decide_for(credential, request)
    }

    /// [`Policy::decide`] for a key that is known by its digest alone, whatever key the request brings.
    ///
    /// # Errors
    /// As [`Policy::decide`].
    pub fn decide_as(&self, digest: &[u8; 32], request: &Head<'_>) -> Result<Decision, Denied> {
        let credential = Credential {
            key: RequestKey::of_digest(*digest),
            header: CredentialHeader::Authorization,
            has_others: false,
        };
        self.decide_for(credential, request)
    }

    fn decide_for(&self, credential: Credential, request: &Head<'_>) -> Result<Decision, Denied> {
        let path = endpoint::classify(request.path, &self.tier_paths);
        let key_context = self.key_context(&credential, path.endpoint)?;
        if path.ambiguous {
            return Err(key_context.denied(Cause::AmbiguousPath));
        }
        if path.batches && key_context.group.is_forced() && !key_context.group.batches_allowed {
            return Err(key_context.denied(Cause::BatchesNotForced));
        }
        // A path that is not ambiguous is plain ASCII.
        let plain = String::from_utf8_lossy(request.path);
        let group = &key_context.group;
        let models = group.models_in_target(&plain, request.query, path.endpoint);
        key_context.decide(models, asks_for_fast_mode(request.headers))
    }

    /// The decision on a further turn of a connection whose first request was decided by this policy or an earlier one.
    /// `models`: those that the connection's request named in its target.
    ///
    /// # Errors
    /// As [`Policy::decide`].
    pub fn decide_turn(
        &self,
        credential: &Credential,
        endpoint: Endpoint,
        models: &[String],
    ) -> Result<Decision, Denied> {
        let key_context = self.key_context(credential, endpoint)?;
        key_context.decide(models.to_vec(), false)
    }

    fn key_context(
        &self,
        credential: &Credential,
        endpoint: Endpoint,
    ) -> Result<KeyContext, Denied> {
        let (key, group) = match (self.keys.find(&credential.key.digest), &self.default_group) {
            (Some(key), _) => (Some(key), &self.groups[key.group as usize]),
            (None, Some(group)) => (None, group),
            (None, None) => {
                let cause = Cause::InvalidApiKey;
                return Err(Denied::unknown(cause, Some(credential.clone()), endpoint));
            }
        };
        let key_context = KeyContext {
            credential: credential.clone(),
            key: key.map(|key| self.keys.name(key)),
            key_location: key.map(|key| key.location),
            group: group.clone(),
            endpoint,
        };
        if key.is_some_and(|key| !key.enabled) {
            return Err(key_context.denied(Cause::KeyDisabled));
        }
        if !key_context.group.enabled {
            return Err(key_context.denied(Cause::GroupDisabled));
        }
        Ok(key_context)
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("path", &self.path)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

impl Platform {
    /// The word for it in the access log.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl Denied {
    fn unknown(cause: Cause, credential: Option<Credential>, endpoint: Endpoint) -> Denied {
        Denied {
            cause,
            credential,
            key: None,
            key_location: None,
            group: None,
            endpoint,
        }
    }
}

/// Whether a client asks for fast mode: the token exactly, in the comma lists of all lines of `anthropic-beta`. Not where the
/// header is for one connection only.
pub fn asks_for_fast_mode(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(&ANTHROPIC_BETA);
    lines.iter().any(has_fast_mode_token) && !connection_headers(headers).contains(&ANTHROPIC_BETA)
}

/// Whether a line of `anthropic-beta` has the token.
fn has_fast_mode_token(line: &HeaderValue) -> bool {
    let mut tokens = line.as_bytes().split(|byte| *byte == b',');
    tokens.any(|token| token.trim_ascii() == FAST_MODE_BETA.as_bytes())
}

impl From<NoKey> for Cause {
    fn from(none: NoKey) -> Cause {
        match none {
            NoKey::Missing => Cause::MissingApiKey,
            NoKey::Conflicting => Cause::ConflictingApiKeys,
            NoKey::Unlisted => Cause::InvalidApiKey,
        }
    }
}

/// A key that may be used, and the group it is in.
struct KeyContext {
    credential: Credential,
    key: Option<Arc<str>>,
    key_location: Option<Location>,
    group: Arc<Group>,
    endpoint: Endpoint,
}

impl KeyContext {
    fn denied(self, cause: Cause) -> Denied {
        Denied {
            cause,
            credential: Some(self.credential),
            key: self.key,
            key_location: self.key_location,
            group: Some(self.group),
            endpoint: self.endpoint,
        }
    }

    fn decide(self, models: Vec<String>, beta_asked: bool) -> Result<Decision, Denied> {
        let action = match self.group.action(self.endpoint, &models, beta_asked) {
            Ok(action) => action,
            Err(cause) => return Err(self.denied(cause)),
        };
        let client_beta = self.group.client_beta(self.endpoint, beta_asked);
        Ok(Decision {
            credential: self.credential,
            key: self.key,
            key_location: self.key_location,
            group: self.group,
            endpoint: self.endpoint,
            models,
            client_beta,
            action,
        })
    }
}
