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

use crate::config::address::SocketAddress;
use crate::config::diagnostic::{Diagnostic, Diagnostics, Location};
use crate::config::field::{Field, List, Members, OneOrMany, Section, TextOr, Word};
use crate::config::network::{UNIX_SOCKETS, parse_network};
use crate::config::units::{Ratio, TimeSpan};
use crate::config::upstream::UpstreamTls;
use crate::config::url::Url;
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
}

impl ParsedConfig {
    /// # Errors
    /// An unreadable file, or one without a tree, leaves nothing to go on with.
    pub(crate) fn read(path: &Path) -> Result<ParsedConfig, Vec<Diagnostic>> {
        let bytes = yaml::read(path).map_err(|diagnostic| vec![diagnostic])?;
        let resolver = Resolver {
            path,
            diagnostics: Diagnostics::new(path),
            warnings: Diagnostics::warnings(path),
            files: RefCell::default(),
            addresses: RefCell::default(),
            health_path_at: Cell::new(Location::START),
        };
        let root = yaml::parse::<Field<Section<ConfigFile<'_>>>>(&bytes, &resolver.diagnostics);
        let config = root.and_then(|root| resolver.config(&root));
        match config {
            Some(config) => Ok(ParsedConfig {
                config,
                diagnostics: resolver.diagnostics.into_vec(),
                warnings: resolver.warnings.into_vec(),
                files: resolver.files.into_inner(),
                addresses: resolver.addresses.into_inner(),
                health_path_at: resolver.health_path_at.get(),
            }),
            None => Err(resolver.diagnostics.into_vec()),
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
    diagnostics: Diagnostics,
    warnings: Diagnostics,
    files: RefCell<Vec<(Location, ReferencedFile)>>,
    addresses: RefCell<Vec<(Location, SocketAddress)>>,
    health_path_at: Cell<Location>,
}

impl Resolver<'_> {
    fn config(&self, root: &Field<Section<ConfigFile<'_>>>) -> Option<Config> {
        let section = root.whole_file(&self.diagnostics)?;
        let file = section.read(&self.diagnostics);
        let policy = section.required("policy", &file.policy, root.location(), &self.diagnostics);
        let upstreams = section.required(
            "upstreams",
            &file.upstreams,
            root.location(),
            &self.diagnostics,
        );
        let config = Config {
            path: self.path.to_owned(),
            listen: self.listen(&file.listen),
            admin: self.admin(&file.admin),
            trusted_proxies: self.trusted_proxies(&file.trusted_proxies),
            policy: policy
                .and_then(|text| self.file_at(text, file.policy.location()))
                .unwrap_or_default(),
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
        self.check_addresses(&config, file);
        Some(config)
    }

    fn listen(&self, field: &Field<OneOrMany<TextOr<'_, ListenerSection>>>) -> Vec<Listen> {
        let items = match field.value(&self.diagnostics) {
            None => {
                let default = Listen::plain(DEFAULT_LISTEN.into());
                self.note_address(field.location(), &default.address);
                return vec![default];
            }
            Some(OneOrMany::One(one)) => {
                return self.listener(one, field.location()).into_iter().collect();
            }
            Some(OneOrMany::Many(items)) => items,
        };
        if items.is_empty() {
            self.diagnostics
                .add(field.location(), "expected at least one address");
        }
        let mut listen: Vec<Listen> = Vec::new();
        for item in items.iter() {
            let value = item.value(&self.diagnostics);
            let Some(listener) = value.and_then(|value| self.listener(value, item.location()))
            else {
                continue;
            };
            if listen.iter().any(|other| other.address == listener.address) {
                let twice = format!("address `{}` is listed twice", listener.address);
                self.diagnostics.add(item.location(), twice);
            }
            listen.push(listener);
        }
        listen
    }

    fn listener(&self, value: &TextOr<'_, ListenerSection>, location: Location) -> Option<Listen> {
        let section = match value {
            TextOr::Text(text) => {
                let address = self.parse_address(text, location)?;
                self.note_address(location, &address);
                return Some(Listen::plain(address));
            }
            TextOr::Section(section) => section,
        };
        let listener = section.read(&self.diagnostics);
        let address = section.required("address", &listener.address, location, &self.diagnostics);
        let address =
            address.and_then(|text| self.parse_address(text, listener.address.location()));
        let tls = listener.tls.optional(&self.diagnostics);
        let tls = tls.and_then(|section| self.listener_tls(section, listener.tls.location()));
        let proxy_protocol = listener.proxy_protocol.or(false, &self.diagnostics);
        let address = address?;
        self.note_address(listener.address.location(), &address);
        Some(Listen {
            address,
            tls,
            proxy_protocol,
        })
    }

    fn listener_tls(
        &self,
        section: &Section<ListenerTlsSection>,
        location: Location,
    ) -> Option<TlsFiles> {
        let tls = section.read(&self.diagnostics);
        let cert = section.required("cert", &tls.cert, location, &self.diagnostics);
        let key = section.required("key", &tls.key, location, &self.diagnostics);
        let cert = cert.and_then(|text| self.file_at(text, tls.cert.location()));
        let key = key.and_then(|text| self.file_at(text, tls.key.location()));
        let files = TlsFiles {
            cert: cert?,
            key: key?,
        };
        self.refer(location, ReferencedFile::Tls(files.clone()));
        Some(files)
    }

    fn trusted_proxies(&self, field: &Field<List<String>>) -> TrustedProxies {
        let Some(list) = field.value(&self.diagnostics) else {
            return TrustedProxies::default();
        };
        let mut unix = false;
        let networks = self.texts(list, |text, location| {
            if text == UNIX_SOCKETS {
                unix = true;
                return None;
            }
            parse_network(text)
                .map_err(|reason| self.diagnostics.add(location, reason))
                .ok()
        });
        TrustedProxies::new(networks, unix)
    }

    fn upstreams(
        &self,
        upstreams: &Members<'_, Section<UpstreamSection<'_>>>,
        location: Location,
    ) -> Vec<Arc<crate::config::Upstream>> {
        if upstreams.is_empty() {
            self.diagnostics
                .add(location, "expected at least one upstream");
        }
        upstreams
            .unique(&self.diagnostics)
            .filter_map(|member| self.upstream(member))
            .map(Arc::new)
            .collect()
    }

    fn access_log(&self, field: &Field<Section<AccessLogSection>>) -> LogSettings {
        let mut settings = LogSettings {
            target: LogTarget::File(PathBuf::from(DEFAULT_ACCESS_LOG)),
            format: LogFormat::Json,
        };
        if let Some(section) = field.value(&self.diagnostics) {
            let log = section.read(&self.diagnostics);
            let path = section.required("path", &log.path, field.location(), &self.diagnostics);
            let target = path.and_then(|text| match text.as_str() {
                "-" => Some(LogTarget::Stdout),
                text => self
                    .log_file(text, log.path.location())
                    .map(LogTarget::File),
            });
            settings.target = target.unwrap_or(settings.target);
            settings.format = log.format.word(settings.format, &self.diagnostics);
        }
        if let LogTarget::File(file) = &settings.target {
            self.refer(field.location(), ReferencedFile::AccessLog(file.clone()));
        }
        settings
    }

    /// A file for lines of text, which a collector may read.
    fn log_file(&self, text: &str, location: Location) -> Option<PathBuf> {
        let is_compressed = [".gz", ".zst"].iter().any(|end| text.ends_with(end));
        if matches!(
            text,
            "syslog" | "journald" | "journal" | "stdout" | "stderr"
        ) {
            let message = "expected the path of a file; with `path: \"-\"` lines go to stdout, which systemd and containers take to their log";
            self.diagnostics.add(location, message);
            return None;
        }
        if is_compressed {
            let message = "the log is written as plain text; it is compressed when it is rotated";
            self.diagnostics.add(location, message);
            return None;
        }
        self.file_at(text, location)
    }

    fn health_path(&self, field: &Field<String>) -> Option<String> {
        let text = field.optional(&self.diagnostics)?;
        self.health_path_at.set(field.location());
        let is_plain = path::is_plain(text) && !text.ends_with('/');
        if !is_plain {
            self.diagnostics
                .add(field.location(), "expected a plain path like `/healthz`");
        }
        is_plain.then(|| text.clone())
    }

    fn traces(&self, field: &Field<Section<TracesSection>>) -> Option<Traces> {
        let section = field.optional(&self.diagnostics)?;
        let traces = section.read(&self.diagnostics);
        let endpoint = &traces.endpoint;
        let text = section.required("endpoint", endpoint, field.location(), &self.diagnostics);
        let url = text.and_then(|text| {
            let url = Url::parse(text).and_then(|url| {
                if url.tls && url.is_address() {
                    return Err("an https URL needs a host name: certificates are not verified for a bare IP address");
                }
                Ok(url)
            });
            url.map_err(|reason| self.diagnostics.add(endpoint.location(), reason))
                .ok()
        });
        let headers_file = self.referenced(&traces.headers_file, ReferencedFile::TraceHeaders);
        let Ratio(sample_ratio) = traces.sample_ratio.or(Ratio(1.0), &self.diagnostics);
        Some(Traces {
            endpoint: url?,
            headers_file,
            sample_ratio,
        })
    }

    fn tier_paths(&self, field: &Field<List<String>>) -> Vec<String> {
        let Some(list) = field.value(&self.diagnostics) else {
            return DEFAULT_TIER_PATHS.map(str::to_owned).to_vec();
        };
        self.texts(list, |text, location| {
            if text.contains(['*', '?', '{']) {
                let message = "paths are compared whole, and have no wildcards; list each path";
                self.diagnostics.add(location, message);
                return None;
            }
            let path = path::normalise(text);
            if path.is_none() {
                self.diagnostics.add(location, "expected a plain path like `/v1/agents`, without query, escapes and dot segments");
            }
            path
        })
    }

    /// The items of a list that are what they should be.
    fn texts<T>(
        &self,
        list: &List<String>,
        mut parse: impl FnMut(&str, Location) -> Option<T>,
    ) -> Vec<T> {
        let items = list.iter().filter_map(|item| {
            let text = item.value(&self.diagnostics)?;
            parse(text, item.location())
        });
        items.collect()
    }

    fn server(&self, field: &Field<Section<ServerSection>>) -> ServerOptions {
        let mut options = ServerOptions {
            threads: 0,
            drain: DEFAULT_DRAIN,
            upgrade_socket: None,
        };
        if let Some(section) = field.optional(&self.diagnostics) {
            let given = section.read(&self.diagnostics);
            let threads = given.threads.count(0..=MAX_THREADS, &self.diagnostics);
            options.threads = threads.unwrap_or(0);
            options.drain = given.drain.or(TimeSpan(options.drain), &self.diagnostics).0;
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
        let TimeSpan(value) = field.or(TimeSpan(default), &self.diagnostics);
        if value.is_zero() {
            let message = format!("`{name}` must be more than zero");
            self.diagnostics.add(field.location(), message);
        }
        value
    }

    fn admin(&self, field: &Field<String>) -> SocketAddress {
        let text = field.value(&self.diagnostics);
        let given = text.and_then(|text| self.parse_address(text, field.location()));
        let admin = given.unwrap_or_else(|| DEFAULT_ADMIN.into());
        self.note_address(field.location(), &admin);
        admin
    }

    fn note_address(&self, location: Location, address: &SocketAddress) {
        let noted = (location, address.clone());
        self.addresses.borrow_mut().push(noted);
    }

    fn parse_address(&self, text: &str, location: Location) -> Option<SocketAddress> {
        text.parse()
            .map_err(|reason| self.diagnostics.add(location, reason))
            .ok()
    }

    /// A path that is relative to the folder of the configuration.
    fn file(&self, field: &Field<String>) -> Option<PathBuf> {
        let text = field.optional(&self.diagnostics)?;
        self.file_at(text, field.location())
    }

    fn file_at(&self, text: &str, location: Location) -> Option<PathBuf> {
        if text.is_empty() {
            self.diagnostics
                .add(location, "expected the path of a file");
            return None;
        }
        if text.ends_with('/') {
            let message = "expected the path of a file; this one is that of a folder";
            self.diagnostics.add(location, message);
            return None;
        }
        Some(self.path.parent().unwrap_or(Path::new("")).join(text))
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
