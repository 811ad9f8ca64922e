//! What a client's request body says at its top level, as far as the proxy looks at it: the fields that the policy decides
//! by and that the log tells.

use std::borrow::Cow;

use super::is_fast;
use crate::codec::cut;
use crate::codec::json::{Interest, Key, Kind, Value, Visitor};

/// The member that asks for a tier.
pub const MEMBER: &str = "service_tier";

/// Members that name models to be tried where the one of `model` fails: OpenRouter's
/// (<https://openrouter.ai/docs/guides/routing/model-fallbacks>), and LiteLLM's, the first of which is Anthropic's as well
/// (<https://docs.litellm.ai/docs/proxy/client_side_fallbacks>).
const FURTHER_MODELS: [&str; 4] = [
    "models",
    "fallbacks",
    "context_window_fallbacks",
    "content_policy_fallbacks",
];

/// The tier of a body of which it is not known what its readers find in it.
pub const UNKNOWN: &str = "<unknown>";

/// A tier of this type asks for nothing.
const NULL: &str = "<null>";

const TIER_BYTES: usize = 64;
const MODEL_BYTES: usize = 256;
const KIND_BYTES: usize = 64;
const STREAM_ID_BYTES: usize = 128;

/// What the client's own top-level members say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestFields {
    /// The last `model`, if a string, cut to 256 bytes.
    pub model: Option<String>,
    /// Whether [`RequestFields::model`] is all that any reader could take for the model; see [`RequestFields::sole_model`].
    pub(super) model_is_sole: bool,
    /// Whether several members may name the model that is served.
    pub several_models: bool,
    /// The dearest tier that a top-level `service_tier` names.
    pub service_tier: Option<ClientTier>,
    /// The dearest tier of members that some readers only take for it: in other spellings, and in the `response` object of a
    /// WebSocket message.
    pub other_tier: Option<ClientTier>,
    /// Readers may find a tier that is not told here, for they may read the body in another way.
    pub tier_is_unknown: bool,
    /// The last `type` in any case, if a string, cut to 64 bytes.
    pub kind: Option<String>,
    /// Whether a member `agent` or `agent_id` says that the tier is that of an agent: sessions of OpenAI's Agents API have none at
    /// the top level (`SessionCreateParams` of its Python SDK 3.57.0).
    pub names_agent: bool,
    /// Whether several members may be read as `type`, so that two readers may take the body for different things.
    pub several_types: bool,
    /// The last `stream`, if a boolean.
    pub stream: Option<bool>,
    /// The last `background`, if a boolean: the response is fetched later.
    pub background: Option<bool>,
    /// Whether the last `speed` is `"fast"`, by which clients of Anthropic's API ask for fast mode.
    pub fast_speed: bool,
    /// The last `stream_id`, if a string, cut to 128 bytes: the lane of a WebSocket that the message belongs to.
    pub stream_id: Option<String>,
}

/// A tier as a client named it: trimmed, in lower case, cut to 64 bytes; a value that is no string as its type, `<object>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTier(String);

/// How tiers stand to one another in price.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Dearness {
    Slow,
    Standard,
    Fast,
    Fastest,
}

/// Gathers the facts of one body, whichever way the body goes.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub facts: RequestFields,
    /// The member of the top level under way.
    pub topic: Topic,
    /// The member of an entered object under way.
    pub inner: InnerTopic,
    /// Whether the body is a message of a WebSocket, whose `response` object is looked into.
    enters_response: bool,
    /// Whether any member was seen that may be read as `type`.
    typed: bool,
    /// Whether any member was seen that may be read as `model`.
    modelled: bool,
}

/// What the member of the top level under way is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Topic {
    Model {
        exact: bool,
    },
    FurtherModels,
    Tier {
        exact: bool,
    },
    Type,
    Stream {
        exact: bool,
    },
    StreamId,
    StreamOptions {
        exact: bool,
    },
    Speed {
        exact: bool,
    },
    Background,
    Response,
    Agent,
    #[default]
    Other,
}

/// What the member of an entered object under way is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum InnerTopic {
    /// `response.service_tier`
    Tier,
    /// `stream_options.include_usage`
    IncludeUsage { exact: bool },
    /// `response.model`, or one of its [`FURTHER_MODELS`]
    Model,
    #[default]
    Other,
}

impl Reader {
    /// A reader of a body, or of a message of a WebSocket.
    pub fn new(is_message: bool) -> Reader {
        Reader {
            enters_response: is_message,
            ..Reader::default()
        }
    }

    fn inner_key(&mut self, name: Option<&[u8]>) -> Interest {
        let name = name.unwrap_or_default();
        self.inner = match self.topic {
            Topic::Response if folds_to(name, MEMBER) => InnerTopic::Tier,
            Topic::Response if folds_to(name, "model") || names_further_models(name) => {
                InnerTopic::Model
            }
            Topic::StreamOptions { .. } if folds_to(name, "include_usage") => {
                let exact = name == b"include_usage";
                InnerTopic::IncludeUsage { exact }
            }
            _ => InnerTopic::Other,
        };
        match self.inner {
            InnerTopic::IncludeUsage { .. } | InnerTopic::Tier => Interest::Capture,
            _ => Interest::Skip,
        }
    }

    fn inner_value(&mut self, value: Value<'_>) {
        match self.inner {
            InnerTopic::Tier => ClientTier::of(value).raise(&mut self.facts.other_tier),
            // Which of the two models counts is the upstream's to say.
            InnerTopic::Model => self.further_model(),
            InnerTopic::IncludeUsage { .. } | InnerTopic::Other => {}
        }
    }

    fn model(&mut self, exact: bool, value: Value<'_>) {
        if exact {
            self.facts.model = text_of(value, MODEL_BYTES);
        }
        self.facts.model_is_sole = exact && !self.modelled && is_plain(value);
        self.facts.several_models |= self.modelled;
        self.modelled = true;
    }

    /// Another model than that of `model` may be served.
    fn further_model(&mut self) {
        self.facts.several_models |= self.modelled;
        self.modelled = true;
        self.facts.model_is_sole = false;
    }

    fn tier(&mut self, exact: bool, value: Value<'_>) {
        // What is left of one that is cut within the white space around it may be any other.
        let is_padded = || {
            value
                .text()
                .is_some_and(|text| text.trim().len() < TIER_BYTES)
        };
        self.facts.tier_is_unknown |= value.cut && is_padded();
        ClientTier::of(value).raise(match exact {
            true => &mut self.facts.service_tier,
            false => &mut self.facts.other_tier,
        });
    }
}

impl Visitor for Reader {
    fn key(&mut self, key: Key<'_>) -> Interest {
        if key.depth > 1 {
            return self.inner_key(key.name);
        }
        self.topic = key.name.map_or(Topic::Other, Topic::of);
        match self.topic {
            Topic::Other | Topic::Agent => Interest::Skip,
            Topic::StreamOptions { .. } => Interest::Enter,
            Topic::Response if self.enters_response => Interest::Enter,
            Topic::Response => Interest::Skip,
            _ => Interest::Capture,
        }
    }

    fn value(&mut self, value: Value<'_>) {
        if value.depth > 1 {
            return self.inner_value(value);
        }
        let facts = &mut self.facts;
        match self.topic {
            Topic::Other | Topic::Response | Topic::StreamOptions { .. } => {}
            Topic::Stream { exact: false } | Topic::Speed { exact: false } => {}
            Topic::Agent => facts.names_agent = true,
            Topic::Model { exact } => self.model(exact, value),
            Topic::FurtherModels if value.kind == Kind::Null => {}
            Topic::FurtherModels => self.further_model(),
            Topic::Tier { exact } => self.tier(exact, value),
            Topic::Stream { exact: true } => facts.stream = boolean(value),
            Topic::Background => facts.background = boolean(value),
            Topic::Speed { exact: true } => facts.fast_speed = says_fast(value),
            Topic::StreamId => facts.stream_id = text_of(value, STREAM_ID_BYTES),
            Topic::Type => {
                facts.kind = text_of(value, KIND_BYTES);
                facts.several_types |= self.typed;
                self.typed = true;
            }
        }
    }
}

impl Topic {
    #[inline]
    fn of(name: &[u8]) -> Topic {
        // Most keys begin with another letter; U+017F, which folds to `s`, with 0xc5.
        match name.first() {
            Some(
                b's' | b'm' | b't' | b'r' | b'b' | b'f' | b'c' | b'a' | b'S' | b'M' | b'T' | b'R'
                | b'F' | b'C' | b'A' | 0xc5,
            ) => Topic::of_candidate(name),
            _ => Topic::Other,
        }
    }

    fn of_candidate(name: &[u8]) -> Topic {
        // U+017F is one byte longer than the `s` it folds to.
        match name.len() {
            4 if folds_to(name, "type") => Topic::Type,
            5 if folds_to(name, "agent") => Topic::Agent,
            8 if folds_to(name, "agent_id") => Topic::Agent,
            5 if folds_to(name, "model") => Topic::Model {
                exact: name == b"model",
            },
            5 | 6 if folds_to(name, "speed") => Topic::Speed {
                exact: name == b"speed",
            },
            6 | 7 if folds_to(name, "stream") => Topic::Stream {
                exact: name == b"stream",
            },
            8..=10 if folds_to(name, "response") => Topic::Response,
            9 if name == b"stream_id" => Topic::StreamId,
            10 if name == b"background" => Topic::Background,
            12 | 13 if folds_to(name, MEMBER) => Topic::Tier {
                exact: name == MEMBER.as_bytes(),
            },
            14..=16 if folds_to(name, "stream_options") => Topic::StreamOptions {
                exact: name == b"stream_options",
            },
            _ if names_further_models(name) => Topic::FurtherModels,
            _ => Topic::Other,
        }
    }
}

impl RequestFields {
    /// The model, if every reader of the body finds the same one: a single member that may be read as `model`, spelled so, of
    /// at most 256 visible ASCII characters and nothing else, and no member that names further models. Whatever an upstream
    /// might trim, fold or replace in a name would let it serve another model than the one that was looked at here; and a
    /// comma is for LiteLLM between two models.
    pub fn sole_model(&self) -> Option<&str> {
        self.model.as_deref().filter(|_| self.model_is_sole)
    }

    /// Takes over what else readers may find in the same bytes.
    pub fn join(&mut self, other: RequestFields) {
        let differ = self.model.is_some() && other.model.is_some() && self.model != other.model;
        self.several_models |= other.several_models || differ;
        self.model = self.model.take().or(other.model);
        self.model_is_sole = false;
        for (tier, other) in [
            (&mut self.service_tier, other.service_tier),
            (&mut self.other_tier, other.other_tier),
        ] {
            if let Some(other) = other {
                other.raise(tier);
            }
        }
        self.tier_is_unknown |= other.tier_is_unknown;
        self.background = self.background.or(other.background);
    }

    /// The tier that the bytes ask for as they are: the dearest that any reader may find, where one that looks for `service_tier`
    /// alone may find none. `null` asks for nothing, like no member.
    pub fn asked_tier(&self) -> Option<&str> {
        let own = self.service_tier.as_ref();
        let own_price = own.map_or(Dearness::Standard, ClientTier::dearness);
        let other = self.other_tier.as_ref();
        let dearest = other.filter(|other| other.dearness() > own_price).or(own);
        let is_fast = dearest.is_some_and(|tier| is_fast(tier.as_str()));
        if self.tier_is_unknown && !is_fast {
            return Some(UNKNOWN);
        }
        dearest.map(ClientTier::as_str).filter(|tier| *tier != NULL)
    }

    /// What the client asked for in any way, for the log.
    pub fn named_tier(&self) -> Option<&str> {
        let named = self.service_tier.as_ref().or(self.other_tier.as_ref());
        self.asked_tier().or(named.map(ClientTier::as_str))
    }
}

impl ClientTier {
    /// The normalised name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn of(value: Value<'_>) -> ClientTier {
        let type_name = match value.kind {
            Kind::String => {
                let named = value.text().unwrap_or_default().trim().to_lowercase();
                return ClientTier(cut(&named, TIER_BYTES).to_owned());
            }
            Kind::Object => "<object>",
            Kind::Array => "<array>",
            Kind::Number => "<number>",
            Kind::Bool => "<bool>",
            Kind::Null => NULL,
        };
        ClientTier(type_name.to_owned())
    }

    fn dearness(&self) -> Dearness {
        match self.as_str() {
            "ultrafast" => Dearness::Fastest,
            tier if is_fast(tier) => Dearness::Fast,
            "flex" | "batch" => Dearness::Slow,
            _ => Dearness::Standard,
        }
    }

    /// Takes the place of one that is no dearer.
    fn raise(self, known: &mut Option<ClientTier>) {
        if known
            .as_ref()
            .is_none_or(|known| self.dearness() >= known.dearness())
        {
            *known = Some(self);
        }
    }
}

/// Whether Go's `encoding/json` would take the key `name` for `member`: it compares by simple case folding, in which two
/// code points beyond ASCII equal a letter of it, U+017F (`s`) and U+212A (`k`).
pub(super) fn folds_to(name: &[u8], member: &str) -> bool {
    let mut rest = name;
    for &letter in member.as_bytes() {
        rest = match (letter, rest) {
            (b's', [0xc5, 0xbf, rest @ ..]) | (b'k', [0xe2, 0x84, 0xaa, rest @ ..]) => rest,
            (_, [byte, rest @ ..]) if byte.to_ascii_lowercase() == letter => rest,
            _ => return false,
        };
    }
    rest.is_empty()
}

/// Whether a member of this name has [`FURTHER_MODELS`].
fn names_further_models(name: &[u8]) -> bool {
    FURTHER_MODELS.iter().any(|member| folds_to(name, member))
}

/// Whether it is the string by which fast mode is asked for, as lenient readers take it.
pub(super) fn says_fast(value: Value<'_>) -> bool {
    let text = || value.text().unwrap_or_default();
    value.kind == Kind::String && text().trim().eq_ignore_ascii_case("fast")
}

fn is_plain(value: Value<'_>) -> bool {
    let is_visible = |text: Cow<'_, str>| {
        let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b',';
        text.len() <= MODEL_BYTES && text.bytes().all(is_plain)
    };
    !value.cut && value.text().is_some_and(is_visible)
}

fn boolean(value: Value<'_>) -> Option<bool> {
    (value.kind == Kind::Bool).then_some(value.raw == b"true")
}

fn text_of(value: Value<'_>, limit: usize) -> Option<String> {
    Some(cut(&value.text()?, limit).to_owned())
}
