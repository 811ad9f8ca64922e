//! The server configuration: read once at start, every setting resolved and checked. It opens no socket and reads none
//! of the files that it names. How it is written stands in `file`.

pub mod address;
pub mod bridge;
pub mod diagnostic;
pub(crate) mod field;
pub(crate) mod file;
pub(crate) mod header_name;
pub(crate) mod limits;
pub(crate) mod network;
pub(crate) mod path;
pub(crate) mod pattern;
pub(crate) mod pem;
pub(crate) mod redis;
pub(crate) mod secret_file;
pub mod traces;
pub(crate) mod units;
pub mod upstream;
pub mod url;
pub(crate) mod variable;
pub mod watch;
pub(crate) mod yaml;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use strum::{EnumString, IntoStaticStr, VariantNames};

pub use crate::config::address::SocketAddress;
pub use crate::config::bridge::{BridgeOptions, ModelEntry};
pub use crate::config::diagnostic::{Diagnostic, Location};
pub use crate::config::limits::Limits;
pub use crate::config::network::TrustedProxies;
pub use crate::config::redis::Redis;
pub use crate::config::traces::Traces;
pub use crate::config::upstream::{
    ChatCompletionsMode, ChatStreamUsage, Ejection, ForwardedHeaders, HeaderEdits, HealthCheck,
    Http2, MessagesMode, OnClientAbort, ServedTier, Upstream, UpstreamKind, UpstreamTls,
};
pub use crate::config::url::Url;

/// What `tiergate.yaml` says, with every default filled in and every path resolved against the file's folder.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file itself.
    pub path: PathBuf,
    /// At least one; no address twice.
    pub listen: Vec<Listen>,
    /// Address of the listener for health, status and metrics.
    pub admin: SocketAddress,
    /// The proxies in front whose word on a request's origin is taken.
    pub trusted_proxies: TrustedProxies,
    /// The policy file.
    pub policy: PathBuf,
    /// The price file; without one there are no costs.
    pub prices: Option<PathBuf>,
    /// At least one, in the order of the file; no name twice.
    pub upstreams: Vec<Arc<Upstream>>,
    /// Where the access log goes, and in which format.
    pub access_log: LogSettings,
    /// Where budgets and background responses are kept over restarts, and shared; `None`: in memory.
    pub state: Option<StateStore>,
    /// A path on the public listeners that answers as `/readyz` does, without a key and without a line in the log.
    pub health_path: Option<String>,
    /// Which browser pages may call the proxy; `None` for none.
    pub cors: Option<Cors>,
    /// Where spans of requests are sent; `None` for nowhere, and then no header of traces is touched.
    pub traces: Option<Traces>,
    /// Further paths whose JSON body takes a tier, in lower case and without a trailing slash.
    pub tier_paths: Vec<String>,
    /// Limits of sizes, times and numbers.
    pub limits: Limits,
    /// Threads, and how the process ends.
    pub server: ServerOptions,
}

/// A public listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Address to listen on.
    pub address: SocketAddress,
    /// Certificate and key of the listener; `None` for plain text.
    pub tls: Option<TlsFiles>,
    /// Each connection begins with the PROXY protocol's header.
    pub proxy_protocol: bool,
}

/// A certificate and its key, as PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain, the listener's own certificate first.
    pub cert: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
}

/// The section `access_log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Where lines go.
    pub target: LogTarget,
    /// How lines name their fields.
    pub format: LogFormat,
}

/// By which names a line of the access log calls its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum LogFormat {
    /// Its own.
    Json,
    /// Those of OpenTelemetry, and `tiergate.*` where it has none.
    Otel,
}

/// Where lines of the access log go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// The standard output of the process.
    Stdout,
    /// A file, a named pipe, or a UNIX socket that is there at the start.
    File(PathBuf),
    /// A UNIX socket, which may be there later than this process.
    Socket(PathBuf),
}

/// What outlives the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateStore {
    /// A redb file of this machine.
    File(PathBuf),
    /// A server of Redis or Valkey that a fleet shares.
    Redis(Redis),
}

/// Pages of which origins may call the proxy from a browser (the Fetch standard's CORS protocol).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    /// The origins whose pages may call.
    pub allow_origins: AllowedOrigins,
}

/// The origins that [`Cors`] allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedOrigins {
    /// Every origin.
    Any,
    /// As browsers send them: `scheme://host[:port]` in lower case.
    Listed(Vec<String>),
}

/// The section `server`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerOptions {
    /// At least 1.
    pub threads: usize,
    /// How long running requests may go on after the process was told to stop.
    pub drain: Duration,
    /// Socket on which a process that takes over gets the listening sockets; `None` for no takeover.
    pub upgrade_socket: Option<PathBuf>,
}

impl Config {
    /// The upstream of that name.
    pub fn upstream(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.upstreams.iter().find(|upstream| upstream.name == name)
    }

    /// Whether an address that is listened on leaves the clients of IPv4 to another one.
    pub fn leaves_ipv4(&self, address: &SocketAddress) -> bool {
        let listen = self.listen.iter().map(|listen| &listen.address);
        let mut all = listen.chain([&self.admin]);
        all.any(|other| address.leaves_ipv4_to(other))
    }

    /// Names of the settings that another configuration has otherwise, in the order of the reference.
    pub fn differences(&self, other: &Config) -> Vec<&'static str> {
        let settings = [
            ("listen", self.listen == other.listen),
            ("admin", self.admin == other.admin),
            (
                "trusted_proxies",
                self.trusted_proxies == other.trusted_proxies,
            ),
            ("policy", self.policy == other.policy),
            ("prices", self.prices == other.prices),
            ("upstreams", self.upstreams == other.upstreams),
            ("access_log", self.access_log == other.access_log),
            ("state", self.state == other.state),
            ("health_path", self.health_path == other.health_path),
            ("cors", self.cors == other.cors),
            ("traces", self.traces == other.traces),
            ("tier_paths", self.tier_paths == other.tier_paths),
            ("limits", self.limits == other.limits),
            ("server", self.server == other.server),
        ];
        let differing = settings.into_iter().filter(|(_, is_same)| !is_same);
        differing.map(|(name, _)| name).collect()
    }
}

impl Listen {
    pub(crate) fn plain(address: SocketAddress) -> Self {
        Self {
            address,
            tls: None,
            proxy_protocol: false,
        }
    }
}

impl AllowedOrigins {
    /// Whether pages of this origin, as a browser names it, may call the proxy.
    pub fn allow(&self, origin: &str) -> bool {
        match self {
            AllowedOrigins::Any => true,
            AllowedOrigins::Listed(origins) => origins.iter().any(|listed| listed == origin),
        }
    }
}
