//! The configuration as written: reads `tiergate.yaml` into a [`Config`], with every mistake and its place.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::config::diagnostic::{Mistake, Mistakes, Place};
use crate::config::yaml::{self, Entry, Node};
use crate::config::{
    ABORTS, Config, Ejection, HealthCheck, Http2, KINDS, LOG_FORMATS, Limits, Listen, LogFormat,
    LogSettings, LogTarget, MESSAGES_MODES, OnClientAbort, SERVED_TIERS, ServerOptions, TlsFiles,
    Upstream, UpstreamKind, UpstreamTls, Url, is_dns_name,
};
use crate::policy::endpoint;
use crate::server::client_ip::{Network, TrustedProxies};

/// A configuration that has been read as far as it could be: settings with mistakes hold defaults, and only a file
/// without mistakes may be used to serve.
pub(crate) struct Draft {
    pub config: Config,
    pub mistakes: Vec<Mistake>,
    pub warnings: Vec<Mistake>,
    /// The files that serving needs besides the policy, each with the place of its setting.
    pub files: Vec<(Place, NamedFile)>,
}

/// A file that the configuration names.
pub(crate) enum NamedFile {
    Prices(PathBuf),
    Tls(TlsFiles),
    UpstreamTls(UpstreamTls),
    Credential(PathBuf),
}

const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);
const DEFAULT_ACCESS_LOG: &str = "/var/log/tiergate/access.log";
const DEFAULT_TIER_PATHS: [&str; 2] = ["/v1/agents", "/v1/agents/sessions"];
const MAX_THREADS: u64 = 1024;
const MAX_JSON_DEPTH: u64 = 65_536;
const MAX_CONNECTIONS: u64 = 1_000_000;
/// Of `requests_in_flight`, and of a group's `max_in_flight`.
pub(crate) const MAX_IN_FLIGHT: u64 = 1_000_000;
const MAX_NAME_BYTES: usize = 64;
const MAX_URLS: usize = 64;
/// Pingora makes 16 attempts at most.
const MAX_RETRIES: u64 = 15;
const MAX_H2_STREAMS: u64 = 10_000;
/// Of failures and of checks in a row.
const MAX_IN_A_ROW: u64 = 1000;

impl Draft {
    /// An unreadable file, or one without a tree, leaves nothing to go on with.
    pub(crate) fn read(path: &Path) -> Result<Draft, Vec<Mistake>> {
        let bytes = yaml::read(path).map_err(|mistake| vec![mistake])?;
        let mistakes = Mistakes::new(path);
        let warnings = Mistakes::new(path);
        let Some(root) = yaml::parse(&bytes, &mistakes) else {
            return Err(mistakes.into_vec());
        };
        let reader = Reader {
            path,
            mistakes: &mistakes,
            files: RefCell::default(),
        };
        let config = reader.config(&root);
        warn_of_limits(&config.limits, &root, &warnings);
        Ok(Draft {
            files: reader.files.into_inner(),
            config,
            mistakes: mistakes.into_vec(),
            warnings: warnings.into_vec(),
        })
    }
}

/// Reads the sections of the file; every mistake is noted and a default put in its place.
struct Reader<'m> {
    path: &'m Path,
    mistakes: &'m Mistakes,
    files: RefCell<Vec<(Place, NamedFile)>>,
}

impl Reader<'_> {
    fn config(&self, root: &Node<'_>) -> Config {
        let mut fields = root.fields(root.place, self.mistakes);
        let listen = fields.take("listen").map(|node| self.listen(node));
        let admin = fields.take("admin").and_then(|node| self.address(node));
        let policy = fields.required("policy").and_then(|node| self.file(node));
        let config = Config {
            path: self.path.to_owned(),
            listen: listen.unwrap_or_else(|| vec![Listen::plain(DEFAULT_LISTEN)]),
            admin: admin.unwrap_or(DEFAULT_ADMIN),
            trusted_proxies: fields
                .take("trusted_proxies")
                .map_or_else(TrustedProxies::default, |node| self.trusted_proxies(node)),
            policy: policy.unwrap_or_default(),
            prices: fields
                .optional("prices")
                .and_then(|node| self.file_of(node, NamedFile::Prices)),
            upstreams: fields
                .required("upstreams")
                .map_or_else(Vec::new, |node| self.upstreams(node)),
            access_log: fields
                .take_entry("access_log")
                .map_or_else(default_log, |entry| self.access_log(entry)),
            tier_paths: fields
                .take("tier_paths")
                .map_or_else(default_tier_paths, |node| self.tier_paths(node)),
            limits: fields
                .optional_entry("limits")
                .map_or_else(Limits::default, |entry| self.limits(entry)),
            server: self.server(fields.optional_entry("server")),
        };
        self.check_addresses(&config, root);
        fields.finish();
        config
    }

    fn listen(&self, node: &Node<'_>) -> Vec<Listen> {
        if !node.is_list() {
            return self.listener(node).into_iter().collect();
        }
        let items = node.list(self.mistakes);
        if items.is_empty() {
            self.mistakes
                .add(node.place, "expected at least one address");
        }
        let mut listen: Vec<Listen> = Vec::new();
        for item in items {
            let Some(listener) = self.listener(item) else {
                continue;
            };
            if listen.iter().any(|other| other.address == listener.address) {
                self.mistakes.add(
                    item.place,
                    format!("address `{}` is listed twice", listener.address),
                );
            }
            listen.push(listener);
        }
        listen
    }

    fn listener(&self, node: &Node<'_>) -> Option<Listen> {
        if !node.is_mapping() {
            return self.address(node).map(Listen::plain);
        }
        let mut fields = node.fields(node.place, self.mistakes);
        let address = fields
            .required("address")
            .and_then(|node| self.address(node));
        let tls = fields.take_entry("tls").map(|entry| self.tls(entry));
        let proxy_protocol = fields.boolean("proxy_protocol", false);
        fields.finish();
        Some(Listen {
            address: address?,
            tls: tls.flatten(),
            proxy_protocol,
        })
    }

    fn tls(&self, entry: &Entry<'_>) -> Option<TlsFiles> {
        let mut fields = entry.value.fields(entry.place, self.mistakes);
        let cert = fields.required("cert").and_then(|node| self.file(node));
        let key = fields.required("key").and_then(|node| self.file(node));
        fields.finish();
        let files = TlsFiles {
            cert: cert?,
            key: key?,
        };
        self.files
            .borrow_mut()
            .push((entry.place, NamedFile::Tls(files.clone())));
        Some(files)
    }

    fn trusted_proxies(&self, node: &Node<'_>) -> TrustedProxies {
        let mut networks = Vec::new();
        for item in node.list(self.mistakes) {
            match item.string(self.mistakes).map(Network::parse) {
                Some(Ok(network)) => networks.push(network),
                Some(Err(reason)) => self.mistakes.add(item.place, reason),
                None => {}
            }
        }
        TrustedProxies::new(networks)
    }

    fn upstreams(&self, node: &Node<'_>) -> Vec<Arc<Upstream>> {
        let entries = node.entries(self.mistakes);
        if entries.is_empty() && node.is_mapping() {
            self.mistakes
                .add(node.place, "expected at least one upstream");
        }
        entries
            .iter()
            .map(|entry| Arc::new(self.upstream(entry)))
            .collect()
    }

    fn upstream(&self, entry: &Entry<'_>) -> Upstream {
        check_name(&entry.key, entry.place, self.mistakes);
        let mut fields = entry.value.fields(entry.place, self.mistakes);
        let kind = fields.choice("kind", &KINDS, UpstreamKind::OpenAi);
        let (served_tier, messages) = kind.presets();
        let tls = fields.optional_entry("tls");
        let url = fields.required("url");
        let (urls, tls) = self.urls_and_tls(url, tls);
        let upstream = Upstream {
            name: entry.key.to_string(),
            urls,
            kind,
            served_tier: fields.choice("served_tier", &SERVED_TIERS, served_tier),
            messages: fields.choice("messages", &MESSAGES_MODES, messages),
            credential_file: fields
                .optional("credential_file")
                .and_then(|node| self.file_of(node, NamedFile::Credential)),
            connect_timeout: fields.timeout("connect_timeout", Duration::from_secs(5)),
            response_timeout: fields.timeout("response_timeout", Duration::from_secs(600)),
            idle_timeout: fields.timeout("idle_timeout", Duration::from_secs(600)),
            // Before most servers close them first.
            keepalive_timeout: fields.timeout("keepalive_timeout", Duration::from_secs(50)),
            retries: fields.integer("retries", 0..=MAX_RETRIES, 3) as usize,
            http2: fields
                .optional_entry("http2")
                .map_or_else(Http2::default, |entry| self.http2(entry)),
            tls,
            ejection: fields
                .optional_entry("ejection")
                .map_or_else(Ejection::default, |entry| self.ejection(entry)),
            health_check: fields
                .optional_entry("health_check")
                .map(|entry| self.health_check(entry)),
            on_client_abort: fields.choice("on_client_abort", &ABORTS, OnClientAbort::Cancel),
            abort_drain: fields.timeout("abort_drain", Duration::from_secs(30)),
            place: entry.place,
        };
        fields.finish();
        upstream
    }

    /// Where the upstream is, and how TLS is spoken there: whether the one will do depends on the other.
    fn urls_and_tls(
        &self,
        url: Option<&Node<'_>>,
        tls: Option<&Entry<'_>>,
    ) -> (Vec<Url>, UpstreamTls) {
        let settings = tls.map_or_else(UpstreamTls::default, |entry| self.upstream_tls(entry));
        let mut urls = url.map_or_else(Vec::new, |node| self.urls(node));
        let named = settings.server_name.is_some();
        if let Some((place, _)) = urls.iter().find(|(_, url)| url.tls && url.is_address())
            && !named
        {
            self.mistakes.add(*place, "an https upstream needs a host name or `tls.server_name`: certificates are not verified for a bare IP address");
        }
        if let (Some(entry), Some((_, Url { tls: false, .. }))) = (tls, urls.first()) {
            self.mistakes
                .add(entry.place, "`tls` is for https, and the URL is http");
        }
        if urls.is_empty() {
            urls.push((Place::START, Url::placeholder()));
        }
        (urls.into_iter().map(|(_, url)| url).collect(), settings)
    }

    /// One URL, or a list of them.
    fn urls(&self, node: &Node<'_>) -> Vec<(Place, Url)> {
        if !node.is_list() {
            return self.url(node).into_iter().collect();
        }
        let items = node.list(self.mistakes);
        if items.is_empty() || items.len() > MAX_URLS {
            let expected = format!("expected 1 to {MAX_URLS} URLs");
            self.mistakes.add(node.place, expected);
        }
        let mut urls: Vec<(Place, Url)> = Vec::new();
        for (place, url) in items.iter().filter_map(|item| self.url(item)) {
            if urls.iter().any(|(_, other)| *other == url) {
                self.mistakes.add(place, "the URL is listed twice");
            }
            if urls.first().is_some_and(|(_, first)| first.tls != url.tls) {
                let all = "the URLs of an upstream are all http or all https";
                self.mistakes.add(place, all);
            }
            urls.push((place, url));
        }
        urls
    }

    fn url(&self, node: &Node<'_>) -> Option<(Place, Url)> {
        let text = node.string(self.mistakes)?;
        Url::parse(text)
            .map(|url| (node.place, url))
            .map_err(|reason| self.mistakes.add(node.place, reason))
            .ok()
    }

    fn upstream_tls(&self, entry: &Entry<'_>) -> UpstreamTls {
        let mut fields = entry.value.fields(entry.place, self.mistakes);
        let ca = fields.optional("ca").and_then(|node| self.file(node));
        let cert = fields.optional("cert");
        let key = fields.optional("key");
        if cert.is_some() != key.is_some() {
            let together = "`cert` and `key` are given together";
            self.mistakes.add(entry.place, together);
        }
        let cert = cert.and_then(|node| self.file(node));
        let key = key.and_then(|node| self.file(node));
        let tls = UpstreamTls {
            ca,
            identity: cert.zip(key).map(|(cert, key)| TlsFiles { cert, key }),
            server_name: fields
                .optional("server_name")
                .and_then(|node| self.server_name(node)),
        };
        fields.finish();
        self.files
            .borrow_mut()
            .push((entry.place, NamedFile::UpstreamTls(tls.clone())));
        tls
    }

    fn server_name(&self, node: &Node<'_>) -> Option<String> {
        let text = node.string(self.mistakes)?;
        if is_dns_name(text) {
            return Some(text.to_ascii_lowercase());
        }
        self.mistakes
            .add(node.place, "expected a host name like `api.example.com`");
        None
    }

    fn http2(&self, entry: &Entry<'_>) -> Http2 {
        let default = Http2::default();
        let mut fields = entry.value.fields(entry.place, self.mistakes);
        let most = default.max_streams as u64;
        let most = fields.integer("max_streams", 1..=MAX_H2_STREAMS, most);
        let http2 = Http2 {
            max_streams: usize::try_from(most).unwrap_or(default.max_streams),
            ping_interval: fields.duration("ping_interval", default.ping_interval),
        };
        fields.finish();
        http2
    }

    fn ejection(&self, entry: &Entry<'_>) -> Ejection {
        let default = Ejection::default();
        let mut fields = entry.value.fields(entry.place, self.mistakes);
        let failures = u64::from(default.consecutive_failures);
        let failures = fields.integer("consecutive_failures", 0..=MAX_IN_A_ROW, failures);
        let ejection = Ejection {
            consecutive_failures: failures as u32,
            base_time: fields.timeout("base_time", default.base_time),
            max_time: fields.timeout("max_time", default.max_time),
            gateway_errors: fields.boolean("gateway_errors", default.gateway_errors),
        };
        fields.finish();
        if ejection.max_time < ejection.base_time {
            self.mistakes
                .add(entry.place, "`max_time` is less than `base_time`");
        }
        ejection
    }

    fn health_check(&self, entry: &Entry<'_>) -> HealthCheck {
        let mut fields = entry.value.fields(entry.place, self.mistakes);
        let unhealthy = fields.integer("unhealthy_threshold", 1..=MAX_IN_A_ROW, 3);
        let healthy = fields.integer("healthy_threshold", 1..=MAX_IN_A_ROW, 1);
        let check = HealthCheck {
            path: fields
                .optional("path")
                .and_then(|node| self.check_path(node)),
            interval: fields.timeout("interval", Duration::from_secs(10)),
            timeout: fields.timeout("timeout", Duration::from_secs(3)),
            unhealthy_threshold: unhealthy as u32,
            healthy_threshold: healthy as u32,
        };
        fields.finish();
        check
    }

    fn check_path(&self, node: &Node<'_>) -> Option<String> {
        let text = node.string(self.mistakes)?;
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
        if text.starts_with('/') && text.bytes().all(plain) {
            return Some(text.to_owned());
        }
        self.mistakes
            .add(node.place, "expected a path like `/healthz`");
        None
    }

    fn access_log(&self, entry: &Entry<'_>) -> LogSettings {
        let mut fields = entry.value.fields(entry.place, self.mistakes);
        let target = match fields
            .required("path")
            .and_then(|node| Some((node, node.string(self.mistakes)?)))
        {
            Some((_, "-")) => LogTarget::Stdout,
            Some((node, _)) => self
                .file(node)
                .map_or_else(|| default_log().target, LogTarget::File),
            None => default_log().target,
        };
        let format = fields.choice("format", &LOG_FORMATS, LogFormat::Json);
        fields.finish();
        LogSettings { target, format }
    }

    fn tier_paths(&self, node: &Node<'_>) -> Vec<String> {
        let mut paths = Vec::new();
        for item in node.list(self.mistakes) {
            let Some(text) = item.string(self.mistakes) else {
                continue;
            };
            match endpoint::normalise(text) {
                Some(path) => paths.push(path),
                None => self.mistakes.add(item.place, "expected a plain path like `/v1/agents`, without query, escapes and dot segments"),
            }
        }
        paths
    }

    fn limits(&self, entry: &Entry<'_>) -> Limits {
        let default = Limits::default();
        let mut fields = entry.value.fields(entry.place, self.mistakes);
        let depth = fields.integer("json_depth", 1..=MAX_JSON_DEPTH, default.json_depth as u64);
        let connections = default.connections as u64;
        let connections = fields.integer("connections", 1..=MAX_CONNECTIONS, connections);
        let kept = default.idle_upstream_connections as u64;
        let kept = fields.integer("idle_upstream_connections", 1..=MAX_CONNECTIONS, kept);
        let limits = Limits {
            header: fields.size("header", default.header),
            connections: usize::try_from(connections).unwrap_or(default.connections),
            idle_upstream_connections: usize::try_from(kept)
                .unwrap_or(default.idle_upstream_connections),
            connections_per_client: fields
                .optional("connections_per_client")
                .and_then(|node| node.integer(1..=MAX_CONNECTIONS, self.mistakes)),
            requests_in_flight: fields
                .optional("requests_in_flight")
                .and_then(|node| node.integer(1..=MAX_IN_FLIGHT, self.mistakes)),
            body: fields.size("body", default.body),
            decoded_body: fields.size("decoded_body", default.decoded_body),
            buffered: fields.size("buffered", default.buffered),
            websocket_message: fields.size("websocket_message", default.websocket_message),
            json_depth: usize::try_from(depth).unwrap_or(default.json_depth),
            header_timeout: fields.timeout("header_timeout", default.header_timeout),
            body_idle_timeout: fields.timeout("body_idle_timeout", default.body_idle_timeout),
            body_timeout: fields.timeout("body_timeout", default.body_timeout),
            write_timeout: fields.timeout("write_timeout", default.write_timeout),
            keepalive_timeout: fields.timeout("keepalive_timeout", default.keepalive_timeout),
        };
        fields.finish();
        limits
    }

    fn server(&self, entry: Option<&Entry<'_>>) -> ServerOptions {
        let mut options = ServerOptions {
            threads: 0,
            drain: Duration::from_secs(60),
            upgrade_socket: None,
        };
        if let Some(entry) = entry {
            let mut fields = entry.value.fields(entry.place, self.mistakes);
            options.threads =
                usize::try_from(fields.integer("threads", 0..=MAX_THREADS, 0)).unwrap_or(0);
            options.drain = fields.duration("drain", options.drain);
            options.upgrade_socket = fields
                .optional("upgrade_socket")
                .and_then(|node| self.file(node));
            fields.finish();
        }
        if options.threads == 0 {
            options.threads = std::thread::available_parallelism().map_or(1, usize::from);
        }
        options
    }

    fn address(&self, node: &Node<'_>) -> Option<SocketAddr> {
        let text = node.string(self.mistakes)?;
        let numeric = match text.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None => text.to_owned(),
        };
        let address = numeric
            .parse()
            .ok()
            .filter(|address: &SocketAddr| address.port() != 0);
        if address.is_none() {
            self.mistakes.add(
                node.place,
                "expected an address like `127.0.0.1:8080` or `[::]:8080`",
            );
        }
        address
    }

    /// A path that is relative to the folder of the configuration.
    fn file(&self, node: &Node<'_>) -> Option<PathBuf> {
        let text = node.string(self.mistakes)?;
        if text.is_empty() {
            self.mistakes.add(node.place, "expected the path of a file");
            return None;
        }
        Some(self.path.parent().unwrap_or(Path::new("")).join(text))
    }

    /// As [`Reader::file`], for a file that is opened at start.
    fn file_of(&self, node: &Node<'_>, kind: fn(PathBuf) -> NamedFile) -> Option<PathBuf> {
        let path = self.file(node)?;
        self.files
            .borrow_mut()
            .push((node.place, kind(path.clone())));
        Some(path)
    }

    fn check_addresses(&self, config: &Config, root: &Node<'_>) {
        if config
            .listen
            .iter()
            .any(|listen| listen.address == config.admin)
        {
            let place = place_of_key(root, "admin")
                .or_else(|| place_of_key(root, "listen"))
                .unwrap_or(root.place);
            self.mistakes.add(
                place,
                format!("`admin` and `listen` are both `{}`", config.admin),
            );
        }
    }
}

/// Names of upstreams, groups and keys go into log lines and metrics.
pub(crate) fn check_name(name: &str, place: Place, mistakes: &Mistakes) {
    if name.is_empty() {
        mistakes.add(place, "the name is empty");
    } else if name.len() > MAX_NAME_BYTES {
        mistakes.add(place, "the name is longer than 64 bytes");
    } else if name.chars().any(char::is_control) {
        mistakes.add(place, "the name has a control character");
    }
}

fn warn_of_limits(limits: &Limits, root: &Node<'_>, warnings: &Mistakes) {
    let place = place_of_key(root, "limits").unwrap_or(root.place);
    if limits.body.max(limits.decoded_body) > limits.buffered {
        warnings.add(place, "`buffered` is less than `body` or `decoded_body`: the largest bodies are always refused");
    }
}

fn place_of_key(root: &Node<'_>, name: &str) -> Option<Place> {
    root.member(name).map(|entry| entry.place)
}

fn default_log() -> LogSettings {
    LogSettings {
        target: LogTarget::File(PathBuf::from(DEFAULT_ACCESS_LOG)),
        format: LogFormat::Json,
    }
}

fn default_tier_paths() -> Vec<String> {
    DEFAULT_TIER_PATHS.map(str::to_owned).to_vec()
}
