//! An upstream and all that is set for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use strum::{EnumString, IntoStaticStr, VariantNames};

use crate::config::TlsFiles;
use crate::config::bridge::{BridgeOptions, ModelEntry};
use crate::config::diagnostic::Location;
use crate::config::url::Url;

/// An entry of `upstreams`, with every default filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Name by which policies and the access log refer to it.
    pub name: String,
    /// At least one, none twice, all of them http or all https.
    pub urls: Vec<Url>,
    /// What stands behind the URLs; other settings take their defaults from it.
    pub kind: UpstreamKind,
    /// Whether the tier that a response names may decide what is billed.
    pub served_tier: ServedTier,
    /// How fast mode is asked for on `/v1/messages`.
    pub messages: MessagesMode,
    /// What is sent for `/v1/chat/completions`.
    pub chat_completions: ChatCompletionsMode,
    /// Whether usage is asked for in chat streams that do not ask themselves.
    pub chat_stream_usage: ChatStreamUsage,
    /// What becomes of headers by which proxies in front name the client.
    pub forwarded_headers: ForwardedHeaders,
    /// What is done to request headers after all other rules.
    pub headers: HeaderEdits,
    /// The file of the key that replaces the client's.
    pub credential_file: Option<PathBuf>,
    /// Time for a connection, TLS included.
    pub connect_timeout: Duration,
    /// Time until the first byte of the response.
    pub response_timeout: Duration,
    /// Time between two reads of the response.
    pub idle_timeout: Duration,
    /// How long a connection is kept that no request uses.
    pub keepalive_timeout: Duration,
    /// Retries for a request of which the upstream has received nothing.
    pub retries: usize,
    /// Settings of HTTP/2 towards it.
    pub http2: Http2,
    /// Settings of TLS towards it.
    pub tls: UpstreamTls,
    /// When an address that fails gets no requests for a while.
    pub ejection: Ejection,
    /// `None` where addresses are judged by requests alone.
    pub health_check: Option<HealthCheck>,
    /// What becomes of a response whose client leaves before its end.
    pub on_client_abort: OnClientAbort,
    /// How long a response is read on without its client, where `on_client_abort` says so.
    pub abort_drain: Duration,
    /// Which models clients' names stand for, where requests are converted; the first that matches counts.
    pub models: Vec<ModelEntry>,
    /// How requests are converted to the Responses protocol.
    pub bridge: BridgeOptions,
    /// Where its name stands in the configuration.
    pub location: Location,
}

/// HTTP/2 towards an upstream; it is used where TLS agrees on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http2 {
    /// Whether it may be agreed on.
    pub enabled: bool,
    /// Requests that share a connection at once.
    pub max_streams: usize,
    /// Time between two pings; zero for none.
    pub ping_interval: Duration,
}

/// Request headers that are set and removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Replaces all values that a request came with. The values are marked as sensitive, and are not shown.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Headers that are removed.
    pub remove: Vec<HeaderName>,
}

/// TLS towards an upstream; what is not said is as the system has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Certificates of the authorities that are trusted in place of the system's, PEM.
    pub ca: Option<PathBuf>,
    /// What the proxy shows to an upstream that asks.
    pub identity: Option<TlsFiles>,
    /// The DNS name that is asked for and verified in place of the URL's host.
    pub server_name: Option<String>,
}

/// When an address that fails gets no requests for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// Failures without a success between them; 0 for never.
    pub consecutive_failures: u32,
    /// Length of a first ejection; each one that follows without a success between them takes twice as long.
    pub base_time: Duration,
    /// The longest ejection.
    pub max_time: Duration,
    /// Whether a response 502, 503 or 504 is a failure.
    pub gateway_errors: bool,
}

/// Addresses are asked whether they work, requests or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The target of a GET, as it is sent; without it a connection is all that is asked for.
    pub path: Option<String>,
    /// Time between two checks of one address.
    pub interval: Duration,
    /// How long one check may take before it counts as failed.
    pub timeout: Duration,
    /// Checks that fail in a row before an address gets no more requests.
    pub unhealthy_threshold: u32,
    /// Checks that pass in a row before it gets them again.
    pub healthy_threshold: u32,
}

/// What stands behind an upstream's URL: a name for the defaults of other settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum UpstreamKind {
    /// The API of OpenAI.
    #[strum(serialize = "openai")]
    OpenAi,
    /// The backend of Codex. Its echo of the tier carries no information.
    Codex,
    /// sub2api, new-api, litellm and their like.
    Gateway,
    /// A gateway in front of Codex accounts, which passes their empty echo on.
    CodexGateway,
    /// The API of Anthropic.
    Anthropic,
}

/// Whether the tier that a response names may decide what is billed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum ServedTier {
    /// A tier that the response names is billed.
    Trusted,
    /// The tier that was sent is billed, whatever the response names.
    Ignored,
}

/// How an upstream is asked for fast mode on `/v1/messages`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum MessagesMode {
    /// By `service_tier` in the body.
    Tier,
    /// By the fast-mode token in the `anthropic-beta` header.
    Beta,
    /// By both: `service_tier` in the body and the fast-mode token in the header.
    TierAndBeta,
    /// Not at all: a forced group is refused there.
    Off,
    /// By `service_tier` in the body of the Responses request that the request is converted to.
    Responses,
}

/// What an upstream is sent for `/v1/chat/completions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum ChatCompletionsMode {
    /// The request as it is.
    Relay,
    /// The Responses request that it is converted to.
    Responses,
}

/// Whether the usage of chat streams is asked for that do not ask themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum ChatStreamUsage {
    /// It is left to the client.
    Client,
    /// `stream_options.include_usage: true` is set.
    Request,
    /// The same, and the chunk that comes of it is taken out of the client's stream.
    RequestAndHide,
}

/// What becomes of headers by which proxies in front name the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum ForwardedHeaders {
    /// They are not sent to the upstream.
    Remove,
    /// They are sent to the upstream as the client sent them.
    Pass,
}

/// What becomes of a response whose client leaves before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum OnClientAbort {
    /// The request to the upstream ends too; the line has the usage that was told so far, mostly none.
    Cancel,
    /// The response is read on, for its usage and served tier.
    Drain,
}

/// What a kind of upstream says about settings that are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Presets {
    pub(crate) served_tier: ServedTier,
    pub(crate) messages: MessagesMode,
    pub(crate) forwarded_headers: ForwardedHeaders,
}

impl UpstreamKind {
    /// Its word in the configuration.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Whether it is a gateway to further upstreams.
    pub fn is_gateway(self) -> bool {
        matches!(self, UpstreamKind::Gateway | UpstreamKind::CodexGateway)
    }

    /// What settings of such an upstream are where the configuration does not say otherwise.
    pub(crate) fn presets(self) -> Presets {
        use ServedTier::{Ignored, Trusted};
        let (served_tier, messages) = match self {
            UpstreamKind::OpenAi => (Trusted, MessagesMode::Tier),
            UpstreamKind::Codex => (Ignored, MessagesMode::Tier),
            UpstreamKind::Gateway => (Trusted, MessagesMode::TierAndBeta),
            UpstreamKind::CodexGateway => (Ignored, MessagesMode::TierAndBeta),
            UpstreamKind::Anthropic => (Trusted, MessagesMode::Off),
        };
        let forwarded_headers = match self.is_gateway() {
            true => ForwardedHeaders::Pass,
            false => ForwardedHeaders::Remove,
        };
        Presets {
            served_tier,
            messages,
            forwarded_headers,
        }
    }
}

impl ServedTier {
    /// Its word in the configuration.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl MessagesMode {
    /// Its word in the configuration.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl UpstreamTls {
    /// The files that it names.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let identity = self.identity.iter();
        let identity = identity.flat_map(|files| [&files.cert, &files.key]);
        self.ca.iter().chain(identity).map(PathBuf::as_path)
    }
}

impl Default for Http2 {
    fn default() -> Http2 {
        Http2 {
            enabled: true,
            // The least that RFC 9113 section 6.5.2 recommends servers to allow.
            max_streams: 100,
            ping_interval: Duration::ZERO,
        }
    }
}

impl Default for Ejection {
    fn default() -> Ejection {
        Ejection {
            consecutive_failures: 3,
            base_time: Duration::from_secs(10),
            max_time: Duration::from_secs(300),
            gateway_errors: false,
        }
    }
}

impl Default for HealthCheck {
    fn default() -> HealthCheck {
        HealthCheck {
            path: None,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(3),
            unhealthy_threshold: 3,
            healthy_threshold: 1,
        }
    }
}
