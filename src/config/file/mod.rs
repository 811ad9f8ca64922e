//! The configuration as written: `tiergate.yaml` as structs of [`Field`]s, and what they resolve to, with every mistake and
//! its place. It reads none of the files that are named, but lists them for whoever does.

mod addresses;
mod cors;
mod limits;
mod state;
#[cfg(test)]
mod tests;
mod upstream;

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::config::address::{SocketAddress, parse_unix_path, strip_unix};
use crate::config::diagnostic::{Diagnostic, Diagnostics, Location};
use crate::config::field::{Field, List, Members, OneOrMany, Section, TextOr, Word};
use crate::config::network::{UNIX_SOCKETS, parse_network};
use crate::config::units::{Ratio, TimeSpan};
use crate::config::upstream::UpstreamTls;
use crate::config::url::{Destination, Url};
use crate::config::variable::{NOT_PUT_IN, has_variable};
use crate::config::{
    Config, Listen, LogFormat, LogSettings, LogTarget, ServerOptions, TlsFiles, Traces,
    TrustedProxies, path, yaml,
};
use cors::CorsSection;
use limits::LimitsSection;
pub(crate) use limits::MAX_IN_FLIGHT;
use state::StateSection;
use upstream::UpstreamSection;

/// A configuration that has been read as far as it could be: settings with mistakes hold defaults, and only a file
/// without mistakes may be used to serve.
pub(crate) struct ParsedConfig {
    pub(crate) config: Config,
    pub(crate) diagnostics: Vec<Diagnostic>,
    pub(crate) warnings: Vec<Diagnostic>,
    /// The files that serving needs besides the policy, each with the place of its setting.
    pub(crate) files: Vec<(Location, ReferencedFile)>,
    /// What is listened on, the admin address last, each with its place.
    pub(crate) addresses: Vec<(Location, SocketAddress)>,
    /// The place of `health_path`.
    pub(crate) health_path_at: Location,
}

/// A file that the configuration names.
pub(crate) enum ReferencedFile {
    Prices(PathBuf),
    Tls(TlsFiles),
    UpstreamTls(UpstreamTls),
    Credential(PathBuf),
    AccessLog(PathBuf),
    State(PathBuf),
    RedisPassword(PathBuf),
    TraceHeaders(PathBuf),
    UpgradeSocket(PathBuf),
}

/// Where the access log is unless the configuration says otherwise: in a folder that the package makes.
pub(crate) const DEFAULT_ACCESS_LOG: &str = "/var/log/tiergate/access.log";
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);
const DEFAULT_TIER_PATHS: [&str; 2] = ["/v1/agents", "/v1/agents/sessions"];
const DEFAULT_DRAIN: Duration = Duration::from_secs(60);
const MAX_THREADS: u64 = 1024;
/// Where collectors take spans by OTLP over HTTP, and the port of the other transport (OTLP 1.x, "OTLP/HTTP Default Port",
/// "OTLP/gRPC Default Port").
const OTLP_PATH: &str = "/v1/traces";
const OTLP_GRPC_PORT: u16 = 4317;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ConfigFile<'a> {
    #[serde(borrow)]
    listen: Field<OneOrMany<TextOr<'a, ListenerSection>>>,
    admin: Field<String>,
    trusted_proxies: Field<List<String>>,
    policy: Field<String>,
    prices: Field<String>,
    upstreams: Field<Members<'a, Section<UpstreamSection<'a>>>>,
    access_log: Field<Section<AccessLogSection>>,
    state: Field<TextOr<'a, StateSection>>,
    health_path: Field<String>,
    cors: Field<Section<CorsSection>>,
    traces: Field<Section<TracesSection>>,
    tier_paths: Field<List<String>>,
    limits: Field<Section<LimitsSection>>,
    server: Field<Section<ServerSection>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ListenerSection {
    address: Field<String>,
    tls: Field<Section<ListenerTlsSection>>,
    proxy_protocol: Field<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ListenerTlsSection {
    cert: Field<String>,
    key: Field<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AccessLogSection {
    path: Field<String>,
    format: Field<Word<LogFormat>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TracesSection {
    endpoint: Field<String>,
    headers_file: Field<String>,
    sample_ratio: Field<Ratio>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ServerSection {
    threads: Field<i64>,
    drain: Field<TimeSpan>,
    upgrade_socket: Field<String>,
}

impl ReferencedFile {
    /// The files, each with the setting that names it.
    pub(crate) fn paths(&self) -> Vec<(&'static str, &Path)> {
        let (name, file) = match self {
            ReferencedFile::Tls(files) => {
                return vec![("`cert`", &files.cert), ("`key`", &files.key)];
            }
            ReferencedFile::UpstreamTls(settings) => {
                return settings.files().map(|file| ("`tls`", file)).collect();
            }
            ReferencedFile::Prices(file) => ("`prices`", file),
            ReferencedFile::Credential(file) => ("`credential_file`", file),
            ReferencedFile::AccessLog(file) => ("`access_log`", file),
            ReferencedFile::State(file) => ("`state`", file),
            ReferencedFile::RedisPassword(file) => ("`password_file`", file),
            ReferencedFile::TraceHeaders(file) => ("`headers_file`", file),
            ReferencedFile::UpgradeSocket(file) => ("`upgrade_socket`", file),
        };
        vec![(name, file)]
    }

    /// Whether it is written to, and not only read.
    pub(crate) fn is_written(&self) -> bool {
        matches!(
            self,
            ReferencedFile::AccessLog(_)
                | ReferencedFile::State(_)
                | ReferencedFile::UpgradeSocket(_)
        )
    }
}

impl Config {
    /// The configuration and warnings about it.
    ///
    /// # Errors
    /// Every mistake of the file.
    pub fn load(path: &Path) -> Result<(Config, Vec<Diagnostic>), Vec<Diagnostic>> {
        ParsedConfig::read(path)?.finish()
    }

    /// The admin address that a file names, or that it leaves at the default, whatever mistakes are in the rest of it: a process
    /// that runs has read it before. Of a file that is no YAML any more, the line of the address is taken as it stands.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn admin_address(path: &Path) -> Result<SocketAddress, Diagnostic> {
        if let Ok(parsed) = ParsedConfig::read(path) {
            return Ok(parsed.config.admin);
        }
        let bytes = yaml::read(path)?;
        let text = String::from_utf8_lossy(&bytes);
        let value = text.lines().find_map(|line| line.strip_prefix("admin:"));
        let value = value.and_then(|value| value.split(" #").next());
        let address = value.and_then(|value| value.trim().trim_matches(['"', '\'']).parse().ok());
        Ok(address.unwrap_or(DEFAULT_ADMIN.into()))
    }
}

impl ParsedConfig {
    /// # Errors
    /// An unreadable file, or one without a tree, leaves nothing to go on with.
    pub(crate) fn read(path: &Path) -> Result<ParsedConfig, Vec<Diagnostic>> {
        let bytes = yaml::read(path).map_err(|diagnostic| vec![diagnostic])?;
        let resolver = Resolver {
            path,
            errors: Diagnostics::new(path),
            warnings: Diagnostics::warnings(path),
            files: RefCell::default(),
            addresses: RefCell::default(),
            health_path_at: Cell::new(Location::START),
        };
        let root = yaml::parse::<Field<Section<ConfigFile<'_>>>>(&bytes, &resolver.errors);
        let config = root.and_then(|root| resolver.config(&root));
        match config {
            Some(config) => Ok(ParsedConfig {
                config,
                diagnostics: resolver.errors.into_vec(),
                warnings: resolver.warnings.into_vec(),
                files: resolver.files.into_inner(),
                addresses: resolver.addresses.into_inner(),
                health_path_at: resolver.health_path_at.get(),
            }),
            None => Err(resolver.errors.into_vec()),
        }
    }

    /// The configuration and its warnings.
    ///
    /// # Errors
    /// Its mistakes, where it has any.
    pub(crate) fn finish(self) -> Result<(Config, Vec<Diagnostic>), Vec<Diagnostic>> {
        if self.diagnostics.is_empty() {
            Ok((self.config, self.warnings))
        } else {
            Err(self.diagnostics)
        }
    }
}

/// Resolves the sections of the file; every mistake is noted and a default put in its place.
struct Resolver<'m> {
    path: &'m Path,
    errors: Diagnostics,
    warnings: Diagnostics,
    files: RefCell<Vec<(Location, ReferencedFile)>>,
    addresses: RefCell<Vec<(Location, SocketAddress)>>,
    health_path_at: Cell<Location>,
}

impl Resolver<'_> {
    fn config(&self, root: &Field<Section<ConfigFile<'_>>>) -> Option<Config> {
        let file = root.whole_file(&self.errors)?;
        let policy = file.required_as("policy", &file.policy, |text| self.path_of(text));
        let upstreams = file.required("upstreams", &file.upstreams);
        let config = Config {
            path: self.path.to_owned(),
            listen: self.listen(&file.listen),
            admin: self.admin(&file.admin),
            trusted_proxies: self.trusted_proxies(&file.trusted_proxies),
            policy: policy.unwrap_or_default(),
            prices: self.referenced(&file.prices, ReferencedFile::Prices),
            upstreams: upstreams.map_or_else(Vec::new, |upstreams| {
                self.upstreams(upstreams, file.upstreams.location())
            }),
            access_log: self.access_log(&file.access_log),
            state: self.state(&file.state),
            health_path: self.health_path(&file.health_path),
            cors: self.cors(&file.cors),
            traces: self.traces(&file.traces),
            tier_paths: self.tier_paths(&file.tier_paths),
            limits: self.limits(&file.limits),
            server: self.server(&file.server),
        };
        self.check_addresses(&config, &file);
        Some(config)
    }

    fn listen(&self, field: &Field<OneOrMany<TextOr<'_, ListenerSection>>>) -> Vec<Listen> {
        let Some(given) = field.value(&self.errors) else {
            let default = Listen::plain(DEFAULT_LISTEN.into());
            self.note_address(field.location(), &default.address);
            return vec![default];
        };
        if given.len() == 0 {
            self.errors
                .add(field.location(), "expected at least one address");
        }
        let mut listen: Vec<Listen> = Vec::new();
        for (location, value) in given.items(field.location(), &self.errors) {
            let Some(listener) = self.listener(value, location) else {
                continue;
            };
            if listen.iter().any(|other| other.address == listener.address) {
                let twice = format!("address `{}` is listed twice", listener.address);
                self.errors.add(location, twice);
            }
            listen.push(listener);
        }
        listen
    }

    fn listener(&self, value: &TextOr<'_, ListenerSection>, location: Location) -> Option<Listen> {
        let section = match value {
            TextOr::Text(text) => {
                let address = self.errors.note(location, text.parse())?;
                self.note_address(location, &address);
                return Some(Listen::plain(address));
            }
            TextOr::Section(section) => section,
        };
        let given = section.read(location, &self.errors);
        let address = given.required_as("address", &given.address, str::parse);
        let tls = self.listener_tls(&given.tls);
        let proxy_protocol = given.proxy_protocol.or(false, &self.errors);
        let address = address?;
        self.note_address(given.address.location(), &address);
        Some(Listen {
            address,
            tls,
            proxy_protocol,
        })
    }

    fn listener_tls(&self, field: &Field<Section<ListenerTlsSection>>) -> Option<TlsFiles> {
        let tls = field.section(&self.errors)?;
        let cert = tls.required_as("cert", &tls.cert, |text| self.path_of(text));
        let key = tls.required_as("key", &tls.key, |text| self.path_of(text));
        let files = TlsFiles {
            cert: cert?,
            key: key?,
        };
        self.refer(field.location(), ReferencedFile::Tls(files.clone()));
        Some(files)
    }

    fn trusted_proxies(&self, field: &Field<List<String>>) -> TrustedProxies {
        let Some(list) = field.value(&self.errors) else {
            return TrustedProxies::default();
        };
        let mut unix = false;
        let networks = list.parse(
            |text| {
                let is_unix = text == UNIX_SOCKETS;
                unix |= is_unix;
                (!is_unix).then(|| parse_network(text)).transpose()
            },
            &self.errors,
        );
        let networks: Vec<_> = networks.into_iter().flatten().collect();
        if networks.iter().any(|network| network.prefix_len() == 0) {
            let message = "every client is trusted, and can name any address as its own";
            self.warnings.add(field.location(), message);
        }
        TrustedProxies::new(networks, unix)
    }

    fn upstreams(
        &self,
        upstreams: &Members<'_, Section<UpstreamSection<'_>>>,
        location: Location,
    ) -> Vec<Arc<crate::config::Upstream>> {
        if upstreams.is_empty() {
            self.errors.add(location, "expected at least one upstream");
        }
        upstreams
            .unique(&self.errors)
            .map(|member| Arc::new(self.upstream(member)))
            .collect()
    }

    fn access_log(&self, field: &Field<Section<AccessLogSection>>) -> LogSettings {
        let mut settings = LogSettings {
            target: LogTarget::File(PathBuf::from(DEFAULT_ACCESS_LOG)),
            format: LogFormat::Json,
        };
        if let Some(section) = field.value(&self.errors) {
            let log = section.read(field.location(), &self.errors);
            let target = log.required_as("path", &log.path, |text| self.log_target(text));
            settings.target = target.unwrap_or(settings.target);
            settings.format = log.format.word(settings.format, &self.errors);
        }
        if let LogTarget::File(file) | LogTarget::Socket(file) = &settings.target {
            self.refer(field.location(), ReferencedFile::AccessLog(file.clone()));
        }
        settings
    }

    /// Stdout, a file for lines of text, which a collector may read, or a socket.
    fn log_target(&self, text: &str) -> Result<LogTarget, &'static str> {
        match text {
            "-" => Ok(LogTarget::Stdout),
            "syslog" | "journald" | "journal" | "stdout" | "stderr" => Err(
                "expected the path of a file; with `path: \"-\"` lines go to stdout, which systemd and containers take to their log",
            ),
            text if [".gz", ".zst"].iter().any(|end| text.ends_with(end)) => {
                Err("the log is written as plain text; it is compressed when it is rotated")
            }
            text if has_conversion(text) => {
                Err("times are not put into the name of the log; it is renamed when it is rotated")
            }
            text => match strip_unix(text) {
                Some(path) => parse_unix_path(path).map(LogTarget::Socket),
                None => self.path_of(text).map(LogTarget::File),
            },
        }
    }

    fn health_path(&self, field: &Field<String>) -> Option<String> {
        self.health_path_at.set(field.location());
        field.parse(
            |text| match path::is_plain(text) && !text.ends_with('/') {
                true => Ok(text.to_owned()),
                false => Err("expected a plain path like `/healthz`"),
            },
            &self.errors,
        )
    }

    fn traces(&self, field: &Field<Section<TracesSection>>) -> Option<Traces> {
        let traces = field.section(&self.errors)?;
        let endpoint = traces.required_as("endpoint", &traces.endpoint, |text| {
            match Url::parse(text)? {
                url if url.tls && url.is_address() => Err(
                    "an https URL needs a host name: certificates are not verified for a bare IP address",
                ),
                url => Ok(url),
            }
        });
        if let Some(url) = &endpoint {
            self.warn_of_collector(url, traces.endpoint.location());
        }
        let headers_file = self.referenced(&traces.headers_file, ReferencedFile::TraceHeaders);
        let Ratio(sample_ratio) = traces.sample_ratio.or(Ratio(1.0), &self.errors);
        Some(Traces {
            endpoint: endpoint?,
            headers_file,
            sample_ratio,
        })
    }

    /// What a collector does not take spans at, mostly.
    fn warn_of_collector(&self, url: &Url, location: Location) {
        if matches!(
            url.destination,
            Destination::Tcp {
                port: OTLP_GRPC_PORT,
                ..
            }
        ) {
            let message = "4317 is the port of OTLP over gRPC; OTLP over HTTP is mostly on 4318";
            self.warnings.add(location, message);
        }
        if !url.prefix.is_empty() && !url.prefix.ends_with(OTLP_PATH) {
            let message =
                format!("the path does not end in `{OTLP_PATH}`, where collectors take spans");
            self.warnings.add(location, message);
        }
    }

    fn tier_paths(&self, field: &Field<List<String>>) -> Vec<String> {
        let Some(list) = field.value(&self.errors) else {
            return DEFAULT_TIER_PATHS.map(str::to_owned).to_vec();
        };
        list.parse(
            |text| {
                if text.contains(['*', '?', '{']) {
                    return Err("paths are compared whole, and have no wildcards; list each path");
                }
                path::normalise(text).ok_or("expected a plain path like `/v1/agents`, without query, escapes and dot segments")
            },
            &self.errors,
        )
    }

    fn server(&self, field: &Field<Section<ServerSection>>) -> ServerOptions {
        let mut options = ServerOptions {
            threads: 0,
            drain: DEFAULT_DRAIN,
            upgrade_socket: None,
        };
        if let Some(given) = field.section(&self.errors) {
            let threads = given.threads.count(0..=MAX_THREADS, &self.errors);
            options.threads = threads.unwrap_or(0);
            options.drain = given.drain.duration(options.drain, &self.errors);
            options.upgrade_socket =
                self.referenced(&given.upgrade_socket, ReferencedFile::UpgradeSocket);
        }
        if options.threads == 0 {
            options.threads = std::thread::available_parallelism().map_or(1, usize::from);
        }
        options
    }

    /// A duration in which something has to happen, so more than zero.
    fn timeout(&self, name: &str, field: &Field<TimeSpan>, default: Duration) -> Duration {
        let value = field.duration(default, &self.errors);
        if value.is_zero() {
            let message = format!("`{name}` must be more than zero");
            self.errors.add(field.location(), message);
        }
        value
    }

    fn admin(&self, field: &Field<String>) -> SocketAddress {
        let text = field.value(&self.errors);
        let given = text.and_then(|text| self.errors.note(field.location(), text.parse()));
        let admin = given.unwrap_or_else(|| DEFAULT_ADMIN.into());
        self.note_address(field.location(), &admin);
        admin
    }

    fn note_address(&self, location: Location, address: &SocketAddress) {
        let noted = (location, address.clone());
        self.addresses.borrow_mut().push(noted);
    }

    fn file(&self, field: &Field<String>) -> Option<PathBuf> {
        field.parse(|text| self.path_of(text), &self.errors)
    }

    /// A path that is relative to the folder of the configuration.
    fn path_of(&self, text: &str) -> Result<PathBuf, &'static str> {
        match text {
            "" => Err("expected the path of a file"),
            text if text.ends_with('/') => {
                Err("expected the path of a file; this one is that of a folder")
            }
            text if text.trim() != text => Err("the path begins or ends with white space"),
            text if text.starts_with("~/") => Err("`~` is not put in here; write out the path"),
            text if has_variable(text) => Err(NOT_PUT_IN),
            text => Ok(self.path.parent().unwrap_or(Path::new("")).join(text)),
        }
    }

    /// A file that is opened at start.
    fn referenced(
        &self,
        field: &Field<String>,
        kind: fn(PathBuf) -> ReferencedFile,
    ) -> Option<PathBuf> {
        let path = self.file(field)?;
        self.refer(field.location(), kind(path.clone()));
        Some(path)
    }

    fn refer(&self, location: Location, file: ReferencedFile) {
        self.files.borrow_mut().push((location, file));
    }
}

/// Whether a name is to hold a time, as by `strftime`.
fn has_conversion(name: &str) -> bool {
    let mut after_signs = name.split('%').skip(1);
    after_signs.any(|rest| rest.starts_with(|first: char| first.is_ascii_alphabetic()))
}
