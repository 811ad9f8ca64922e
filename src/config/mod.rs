//! The server configuration: read once at start, every setting resolved and checked. It opens no socket and reads none
//! of the files that it names.

pub mod diagnostic;
pub mod file;
pub mod secret_file;
pub mod value;
pub mod watch;
pub mod yaml;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use crate::config::diagnostic::{Mistake, Place};
use crate::config::file::Draft;
use crate::policy::endpoint;
use crate::server::client_ip::TrustedProxies;

/// What `tiergate.yaml` says, with every default filled in and every path resolved against the file's folder.
#[derive(Clone, Debug)]
pub struct Config {
    pub path: PathBuf,
    /// At least one; no address twice.
    pub listen: Vec<Listen>,
    pub admin: SocketAddr,
    pub trusted_proxies: TrustedProxies,
    pub policy: PathBuf,
    pub prices: Option<PathBuf>,
    /// At least one, in the order of the file; no name twice.
    pub upstreams: Vec<Arc<Upstream>>,
    pub access_log: LogSettings,
    /// As [`endpoint::normalise`] returns them.
    pub tier_paths: Vec<String>,
    pub limits: Limits,
    pub server: ServerOptions,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    pub address: SocketAddr,
    pub tls: Option<TlsFiles>,
    /// Each connection begins with the PROXY protocol's header.
    pub proxy_protocol: bool,
}

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub name: String,
    /// At least one, none twice, all of them http or all https.
    pub urls: Vec<Url>,
    pub kind: UpstreamKind,
    pub served_tier: ServedTier,
    pub messages: MessagesMode,
    /// Holds the key that replaces the client's.
    pub credential_file: Option<PathBuf>,
    pub connect_timeout: Duration,
    /// Until the first byte of the response.
    pub response_timeout: Duration,
    /// Between two reads of the response.
    pub idle_timeout: Duration,
    /// For a connection that no request uses.
    pub keepalive_timeout: Duration,
    /// Further attempts for a request that nothing of has been taken.
    pub retries: usize,
    pub http2: Http2,
    pub tls: UpstreamTls,
    pub ejection: Ejection,
    /// None where addresses are judged by requests alone.
    pub health_check: Option<HealthCheck>,
    pub on_client_abort: OnClientAbort,
    /// How long an answer is read on without its client, where `on_client_abort` says so.
    pub abort_drain: Duration,
    /// Of its name in the configuration.
    pub place: Place,
}

/// Where an upstream is: `http(s)://host[:port][/prefix]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Then the host is a DNS name, or `tls.server_name` is one: TLS needs it for SNI, and without it nothing would be
    /// verified.
    pub tls: bool,
    /// A DNS name in lower case, or an IP address, IPv6 without brackets.
    pub host: String,
    pub port: u16,
    /// Put before each request's path: empty, or a path without a trailing slash.
    pub prefix: String,
}

/// HTTP/2 towards an upstream; it is used where TLS agrees on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http2 {
    /// Requests that share a connection at once.
    pub max_streams: usize,
    /// Between two pings; zero for none.
    pub ping_interval: Duration,
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
    /// Of a first ejection; each one that follows without a success between them takes twice as long.
    pub base_time: Duration,
    pub max_time: Duration,
    /// Whether an answer 502, 503 or 504 is a failure.
    pub gateway_errors: bool,
}

/// Addresses are asked whether they work, requests or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Of a GET, as it is sent; without it a connection is all that is asked for.
    pub path: Option<String>,
    pub interval: Duration,
    pub timeout: Duration,
    /// Checks that fail in a row before an address gets no more requests.
    pub unhealthy_threshold: u32,
    /// Checks that pass in a row before it gets them again.
    pub healthy_threshold: u32,
}

/// What stands behind an upstream's URL: a name for the defaults of two settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamKind {
    OpenAi,
    /// Its echo of the tier carries no information.
    Codex,
    /// sub2api, new-api, litellm and their like.
    Gateway,
    Anthropic,
}

/// Whether the tier that a response names may decide what is billed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServedTier {
    Trusted,
    Ignored,
}

/// How an upstream is asked for fast mode on `/v1/messages`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessagesMode {
    /// By `service_tier` in the body.
    Tier,
    /// By the fast-mode token in the `anthropic-beta` header.
    Beta,
    TierAndBeta,
    /// Not at all: a forced group is refused there.
    Off,
}

/// What becomes of an answer whose client leaves before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnClientAbort {
    /// The request to the upstream ends too; the line has the usage that was told so far, mostly none.
    Cancel,
    /// The answer is read on, for its usage and served tier.
    Drain,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    pub target: LogTarget,
    pub format: LogFormat,
}

/// By which names a line of the access log calls its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Its own.
    Json,
    /// Those of OpenTelemetry, and `tiergate.*` where it has none.
    Otel,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    Stdout,
    File(PathBuf),
}

/// Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of one body as received.
    pub body: u64,
    /// Of one body after its content coding is undone.
    pub decoded_body: u64,
    /// Of all bodies that are held at once in the process.
    pub buffered: u64,
    pub websocket_message: u64,
    /// Of one request head: the target and the headers.
    pub header: u64,
    /// The top level counts as 1.
    pub json_depth: usize,
    /// Open client connections; beyond them none is accepted.
    pub connections: usize,
    /// Open connections of one client address; beyond them new ones are closed.
    pub connections_per_client: Option<u64>,
    /// Requests that run in the process at once.
    pub requests_in_flight: Option<u64>,
    /// Connections to all upstreams that are kept while no request uses them, of HTTP/1.1 and of HTTP/2 each.
    pub idle_upstream_connections: usize,
    /// For a whole request head; on a new connection, from its beginning.
    pub header_timeout: Duration,
    /// Between two reads of a request body.
    pub body_idle_timeout: Duration,
    /// For a whole request body.
    pub body_timeout: Duration,
    /// For a client that takes no byte of its answer.
    pub write_timeout: Duration,
    /// For an idle client connection.
    pub keepalive_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerOptions {
    /// At least 1.
    pub threads: usize,
    /// How long running requests may go on after the process was told to stop.
    pub drain: Duration,
    pub upgrade_socket: Option<PathBuf>,
}

pub(crate) const KINDS: [(&str, UpstreamKind); 4] = [
    ("openai", UpstreamKind::OpenAi),
    ("codex", UpstreamKind::Codex),
    ("gateway", UpstreamKind::Gateway),
    ("anthropic", UpstreamKind::Anthropic),
];
pub(crate) const SERVED_TIERS: [(&str, ServedTier); 2] = [
    ("trusted", ServedTier::Trusted),
    ("ignored", ServedTier::Ignored),
];
pub(crate) const LOG_FORMATS: [(&str, LogFormat); 2] =
    [("json", LogFormat::Json), ("otel", LogFormat::Otel)];
pub(crate) const ABORTS: [(&str, OnClientAbort); 2] = [
    ("cancel", OnClientAbort::Cancel),
    ("drain", OnClientAbort::Drain),
];
pub(crate) const MESSAGES_MODES: [(&str, MessagesMode); 4] = [
    ("tier", MessagesMode::Tier),
    ("beta", MessagesMode::Beta),
    ("tier_and_beta", MessagesMode::TierAndBeta),
    ("off", MessagesMode::Off),
];

impl Config {
    /// The configuration and warnings about it, or every mistake of the file.
    pub fn load(path: &Path) -> Result<(Config, Vec<Mistake>), Vec<Mistake>> {
        let draft = Draft::read(path)?;
        if draft.mistakes.is_empty() {
            Ok((draft.config, draft.warnings))
        } else {
            Err(draft.mistakes)
        }
    }

    pub fn upstream(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.upstreams.iter().find(|upstream| upstream.name == name)
    }
}

impl Listen {
    pub(crate) fn plain(address: SocketAddr) -> Self {
        Self {
            address,
            tls: None,
            proxy_protocol: false,
        }
    }
}

impl UpstreamKind {
    pub fn as_str(self) -> &'static str {
        word_for(&KINDS, self)
    }

    pub(crate) fn presets(self) -> (ServedTier, MessagesMode) {
        match self {
            UpstreamKind::OpenAi => (ServedTier::Trusted, MessagesMode::Tier),
            UpstreamKind::Codex => (ServedTier::Ignored, MessagesMode::Tier),
            UpstreamKind::Gateway => (ServedTier::Trusted, MessagesMode::TierAndBeta),
            UpstreamKind::Anthropic => (ServedTier::Trusted, MessagesMode::Off),
        }
    }
}

impl ServedTier {
    pub fn as_str(self) -> &'static str {
        word_for(&SERVED_TIERS, self)
    }
}

impl MessagesMode {
    pub fn as_str(self) -> &'static str {
        word_for(&MESSAGES_MODES, self)
    }
}

impl UpstreamTls {
    /// Those that it names.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let identity = self.identity.iter();
        let identity = identity.flat_map(|files| [&files.cert, &files.key]);
        self.ca.iter().chain(identity).map(PathBuf::as_path)
    }
}

impl Default for Http2 {
    fn default() -> Http2 {
        Http2 {
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

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            body: 64 << 20,
            decoded_body: 128 << 20,
            buffered: 1 << 30,
            websocket_message: 64 << 20,
            header: 64 << 10,
            json_depth: 512,
            connections: 65_536,
            connections_per_client: None,
            requests_in_flight: None,
            idle_upstream_connections: 1024,
            header_timeout: Duration::from_secs(30),
            body_idle_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(600),
            write_timeout: Duration::from_secs(60),
            keepalive_timeout: Duration::from_secs(75),
        }
    }
}

impl Url {
    /// Reasons never quote the text: a URL may carry a password.
    pub(crate) fn parse(text: &str) -> Result<Url, &'static str> {
        let (tls, rest) = match text.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            _ => return Err("expected a URL that begins with `http://` or `https://`"),
        };
        if rest.contains(['?', '#']) {
            return Err("the URL of an upstream has no query and no fragment");
        }
        let (authority, path) = rest
            .find('/')
            .map_or((rest, ""), |slash| rest.split_at(slash));
        if authority.contains('@') {
            return Err(
                "the URL of an upstream has no user and no password; use `credential_file`",
            );
        }
        let (host, port) = split_port(authority, if tls { 443 } else { 80 })?;
        let host = parse_host(host)?;
        let prefix = path.strip_suffix('/').unwrap_or(path).to_owned();
        if !path.is_empty() && endpoint::classify(path.as_bytes(), &[]).ambiguous {
            return Err("the path of the URL has an empty or dot segment, or a needless escape");
        }
        Ok(Url {
            tls,
            host,
            port,
            prefix,
        })
    }

    /// Whether its host is an address, and no name that could be verified.
    pub fn is_address(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok()
    }

    /// Host and port as in a `Host` header: the port only where it is not the scheme's own.
    pub fn authority(&self) -> String {
        let standard = if self.tls { 443 } else { 80 };
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        if self.port == standard {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }

    /// Stands for a URL with a mistake while the rest of the file is read.
    pub(crate) fn placeholder() -> Url {
        Url {
            tls: false,
            host: "invalid".to_owned(),
            port: 80,
            prefix: String::new(),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.prefix)
    }
}

fn split_port(authority: &str, default: u16) -> Result<(&str, u16), &'static str> {
    let after_host = authority.rfind(']').map_or(0, |bracket| bracket + 1);
    let Some(colon) = authority[after_host..].find(':').map(|at| at + after_host) else {
        return Ok((authority, default));
    };
    match authority[colon + 1..].parse() {
        Ok(port) if port != 0 => Ok((&authority[..colon], port)),
        _ => Err("the port of the URL is not a number from 1 to 65535"),
    }
}

fn parse_host(host: &str) -> Result<String, &'static str> {
    let bracketed = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let is_address = match bracketed {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<Ipv4Addr>().is_ok(),
    };
    if is_address {
        return Ok(bracketed.unwrap_or(host).to_owned());
    }
    if is_dns_name(host) {
        Ok(host.to_ascii_lowercase())
    } else {
        Err("the URL has no valid host name")
    }
}

/// By RFC 1123, with the underscore that container networks use. A last label of digits would make it an address in a
/// spelling, like `127.1`, that resolvers understand and TLS does not.
pub(crate) fn is_dns_name(host: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = host.rsplit('.').next().unwrap_or(host);
    host.len() <= 253
        && host.split('.').all(is_label)
        && !last.bytes().all(|byte| byte.is_ascii_digit())
}

fn word_for<T: PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    // Every variant stands in its table; the tests walk them.
    words
        .iter()
        .find(|(_, other)| *other == value)
        .map_or("", |(word, _)| word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn url(text: &str) -> Result<(bool, String, u16, String), &'static str> {
        Url::parse(text).map(|url| (url.tls, url.host, url.port, url.prefix))
    }

    fn load(text: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiergate.yaml");
        fs::write(&path, format!("policy: policy.yaml\n{text}\n")).unwrap();
        Config::load(&path).unwrap().0
    }

    #[test]
    fn a_url_is_taken_apart() {
        let parts = |tls, host: &str, port, prefix: &str| {
            Ok((tls, host.to_owned(), port, prefix.to_owned()))
        };
        assert_eq!(
            url("https://API.openai.com"),
            parts(true, "api.openai.com", 443, "")
        );
        assert_eq!(
            url("http://127.0.0.1:8080/base/path/"),
            parts(false, "127.0.0.1", 8080, "/base/path")
        );
        assert_eq!(url("http://[::1]:81/"), parts(false, "::1", 81, ""));
        assert_eq!(url("http://[::1]"), parts(false, "::1", 80, ""));
        assert_eq!(
            url("https://new_api:3000/v1"),
            parts(true, "new_api", 3000, "/v1")
        );
    }

    #[test]
    fn a_url_that_would_not_be_understood_is_refused() {
        for text in "https://127.1 https:// ftp://host host HTTPS://host http://a@host \
            http://host?q http://host#f http://host:x http://host: http://host:70000 http://-a.b http://a..b http://a. \
            http://host/a//b http://host/../b http://[::1 http://::1 http://host/%61"
            .split_ascii_whitespace()
        {
            assert!(url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_url_is_shown_as_it_is_meant() {
        for text in [
            "https://api.openai.com",
            "http://127.0.0.1:8080/base",
            "http://[::1]:81",
            "http://[::1]",
        ] {
            assert_eq!(Url::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(
            Url::parse("https://A.b:443/").unwrap().to_string(),
            "https://a.b"
        );
    }

    #[test]
    fn an_upstream_has_one_url_or_a_list() {
        let config = load("upstreams: {a: {url: http://h}, b: {url: [http://h, http://i/x]}}");
        let counts = config.upstreams.iter().map(|upstream| upstream.urls.len());
        assert_eq!(counts.collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_bare_address_can_be_verified_by_a_name_that_is_given() {
        let config =
            load("upstreams: {a: {url: https://127.0.0.1, tls: {server_name: API.example}}}");
        let tls = &config.upstreams[0].tls;
        assert_eq!(tls.server_name.as_deref(), Some("api.example"));
    }

    #[test]
    fn the_kind_sets_what_is_not_said() {
        let config = load(
            "upstreams:
              a: {url: http://h}
              b: {url: http://h, kind: codex}
              c: {url: http://h, kind: gateway}
              d: {url: http://h, kind: anthropic, messages: beta}",
        );
        let settings: Vec<_> = config
            .upstreams
            .iter()
            .map(|upstream| (upstream.served_tier, upstream.messages))
            .collect();
        assert_eq!(
            settings,
            [
                (ServedTier::Trusted, MessagesMode::Tier),
                (ServedTier::Ignored, MessagesMode::Tier),
                (ServedTier::Trusted, MessagesMode::TierAndBeta),
                (ServedTier::Trusted, MessagesMode::Beta),
            ]
        );
    }

    #[test]
    fn files_are_named_relative_to_the_configuration() {
        let config = load(
            "prices: /etc/prices.yaml\nupstreams: {a: {url: http://h, credential_file: keys/a}}",
        );
        let folder = config.path.parent().unwrap();
        assert_eq!(config.policy, folder.join("policy.yaml"));
        assert_eq!(config.prices, Some(PathBuf::from("/etc/prices.yaml")));
        assert_eq!(
            config.upstreams[0].credential_file,
            Some(folder.join("keys/a"))
        );
    }

    #[test]
    fn listeners_are_one_address_or_a_list_with_tls() {
        let config = load(
            "listen: [\"localhost:1\", {address: \"[::]:2\", proxy_protocol: true, tls: {cert: /c, key: /k}}]\nupstreams: {a: {url: http://h}}",
        );
        let tls = TlsFiles {
            cert: "/c".into(),
            key: "/k".into(),
        };
        assert_eq!(
            config.listen,
            [
                Listen::plain("127.0.0.1:1".parse().unwrap()),
                Listen {
                    address: "[::]:2".parse().unwrap(),
                    tls: Some(tls),
                    proxy_protocol: true,
                },
            ]
        );
    }

    #[test]
    fn sections_without_content_mean_the_defaults() {
        let config = load("limits:\nserver: ~\nupstreams: {a: {url: http://h}}");
        assert_eq!(config.limits, Limits::default());
        assert!(config.server.threads >= 1);
    }

    #[test]
    fn every_variant_has_its_word() {
        for (word, kind) in KINDS {
            assert_eq!(kind.as_str(), word);
        }
        assert_eq!(
            (
                ServedTier::Ignored.as_str(),
                MessagesMode::TierAndBeta.as_str()
            ),
            ("ignored", "tier_and_beta")
        );
    }
}
