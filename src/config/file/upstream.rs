//! The section of an upstream as written, and what it resolves to.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use serde::Deserialize;

use super::{ReferencedFile, Resolver};
use crate::config::bridge::{
    BridgeOptions, CLAUDE_CODE_MODELS, Effort, ModelEntry, ReasoningSummary, StopSequences,
    SystemAs, ToolMedia,
};
use crate::config::diagnostic::{Location, check_name};
use crate::config::field::{Field, List, Member, Members, OneOrMany, Section, Word};
use crate::config::header_name::{API_KEY, REQUEST_ID, X_API_KEY};
use crate::config::network::is_private;
use crate::config::pattern::{Pattern, check_model};
use crate::config::units::TimeSpan;
use crate::config::upstream::{
    ChatCompletionsMode, ChatStreamUsage, Ejection, ForwardedHeaders, HeaderEdits, HealthCheck,
    Http2, MessagesMode, OnClientAbort, Presets, ServedTier, Upstream, UpstreamKind, UpstreamTls,
};
use crate::config::url::{Destination, Url, is_dns_name};
use crate::config::variable::{NOT_PUT_IN, has_expression};
use crate::config::{TlsFiles, path};

/// How the URLs of whole endpoints end, and that of all of them; the longest first.
const ENDPOINT_ENDS: [&str; 7] = [
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
    "/chat/completions",
    "/responses",
    "/messages",
    "/v1",
];
/// Hosts whose kind is known, with its word.
const KINDS_OF_HOSTS: [(&str, &str); 2] =
    [("api.anthropic.com", "anthropic"), ("chatgpt.com", "codex")];
const MAX_URLS: usize = 64;
/// Pingora makes 16 attempts at most.
const MAX_RETRIES: u64 = 15;
const DEFAULT_RETRIES: usize = 3;
const MAX_H2_STREAMS: u64 = 10_000;
/// The most failures and checks in a row that a setting may ask for.
const MAX_IN_A_ROW: u64 = 1000;
const MAX_OUTPUT_TOKENS: u64 = 1_000_000_000;
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_RESPONSE_TIMEOUT: Duration = Duration::from_secs(600);
/// Before most servers close an idle connection first.
const DEFAULT_KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(50);
const DEFAULT_ABORT_DRAIN: Duration = Duration::from_secs(30);

/// Headers that frame a message, or that belong to one connection (RFC 9110 section 7.6.1): the proxy writes them.
const FRAMING_HEADERS: [&str; 13] = [
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    REQUEST_ID,
];
/// Headers that carry a key: it belongs into a file.
const CREDENTIAL_HEADERS: [&str; 3] = ["authorization", X_API_KEY, API_KEY];

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct UpstreamSection<'a> {
    url: Field<OneOrMany<String>>,
    kind: Field<Word<UpstreamKind>>,
    served_tier: Field<Word<ServedTier>>,
    messages: Field<Word<MessagesMode>>,
    chat_completions: Field<Word<ChatCompletionsMode>>,
    chat_stream_usage: Field<Word<ChatStreamUsage>>,
    forwarded_headers: Field<Word<ForwardedHeaders>>,
    #[serde(borrow)]
    headers: Field<Section<HeadersSection<'a>>>,
    credential_file: Field<String>,
    connect_timeout: Field<TimeSpan>,
    response_timeout: Field<TimeSpan>,
    idle_timeout: Field<TimeSpan>,
    keepalive_timeout: Field<TimeSpan>,
    retries: Field<i64>,
    http2: Field<Section<Http2Section>>,
    tls: Field<Section<TlsSection>>,
    ejection: Field<Section<EjectionSection>>,
    health_check: Field<Section<HealthCheckSection>>,
    on_client_abort: Field<Word<OnClientAbort>>,
    abort_drain: Field<TimeSpan>,
    models: Field<List<Section<ModelSection>>>,
    bridge: Field<Section<BridgeSection>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HeadersSection<'a> {
    #[serde(borrow)]
    set: Field<Members<'a, String>>,
    remove: Field<List<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Http2Section {
    enabled: Field<bool>,
    max_streams: Field<i64>,
    ping_interval: Field<TimeSpan>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TlsSection {
    ca: Field<String>,
    cert: Field<String>,
    key: Field<String>,
    server_name: Field<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EjectionSection {
    consecutive_failures: Field<i64>,
    base_time: Field<TimeSpan>,
    max_time: Field<TimeSpan>,
    gateway_errors: Field<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HealthCheckSection {
    path: Field<String>,
    interval: Field<TimeSpan>,
    timeout: Field<TimeSpan>,
    unhealthy_threshold: Field<i64>,
    healthy_threshold: Field<i64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ModelSection {
    r#match: Field<String>,
    model: Field<String>,
    effort: Field<Word<Effort>>,
    max_effort: Field<Word<Effort>>,
    effort_off: Field<Word<Effort>>,
    reasoning: Field<bool>,
    max_output: Field<i64>,
    phase: Field<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BridgeSection {
    reasoning_replay: Field<bool>,
    reasoning_summary: Field<Word<ReasoningSummary>>,
    stop_sequences: Field<Word<StopSequences>>,
    tool_media: Field<Word<ToolMedia>>,
    system_as: Field<Word<SystemAs>>,
    path: Field<String>,
    commit_after: Field<TimeSpan>,
    ping: Field<TimeSpan>,
    list_models: Field<bool>,
}

impl Resolver<'_> {
    /// Also one with mistakes is an upstream, so that groups that name it do not seem to have one more.
    pub(super) fn upstream(&self, member: &Member<'_, Section<UpstreamSection<'_>>>) -> Upstream {
        check_name(&member.key, member.location, &self.errors);
        let Some(section) = member.value.value(&self.errors) else {
            return self.settings(member, &UpstreamSection::default(), &[]);
        };
        let given = section.read(member.location, &self.errors);
        let url = given.required("url", &given.url);
        let urls = url.map_or_else(Vec::new, |url| self.urls(url, given.url.location()));
        let upstream = self.settings(member, &given, &urls);
        self.check_urls(&urls, &upstream, &given);
        self.warn_of(&upstream, &given, &urls);
        upstream
    }

    fn settings(
        &self,
        member: &Member<'_, Section<UpstreamSection<'_>>>,
        given: &UpstreamSection<'_>,
        urls: &[(Location, Url)],
    ) -> Upstream {
        let errors = &self.errors;
        let kind = given.kind.word(UpstreamKind::OpenAi, errors);
        let Presets {
            served_tier,
            messages,
            forwarded_headers,
        } = kind.presets();
        let mut urls: Vec<Url> = urls.iter().map(|(_, url)| url.clone()).collect();
        if urls.is_empty() {
            urls.push(Url::placeholder());
        }
        Upstream {
            name: member.key.to_string(),
            urls,
            kind,
            served_tier: given.served_tier.word(served_tier, errors),
            messages: given.messages.word(messages, errors),
            chat_completions: given
                .chat_completions
                .word(ChatCompletionsMode::Relay, errors),
            chat_stream_usage: given
                .chat_stream_usage
                .word(ChatStreamUsage::Client, errors),
            forwarded_headers: given.forwarded_headers.word(forwarded_headers, errors),
            headers: self.headers(&given.headers),
            credential_file: self.referenced(&given.credential_file, ReferencedFile::Credential),
            connect_timeout: self.timeout(
                "connect_timeout",
                &given.connect_timeout,
                DEFAULT_CONNECT_TIMEOUT,
            ),
            response_timeout: self.timeout(
                "response_timeout",
                &given.response_timeout,
                DEFAULT_RESPONSE_TIMEOUT,
            ),
            idle_timeout: self.timeout(
                "idle_timeout",
                &given.idle_timeout,
                DEFAULT_RESPONSE_TIMEOUT,
            ),
            keepalive_timeout: self.timeout(
                "keepalive_timeout",
                &given.keepalive_timeout,
                DEFAULT_KEEPALIVE_TIMEOUT,
            ),
            retries: given
                .retries
                .count(0..=MAX_RETRIES, errors)
                .unwrap_or(DEFAULT_RETRIES),
            http2: self.http2(&given.http2),
            tls: self.upstream_tls(&given.tls),
            ejection: self.ejection(&given.ejection),
            health_check: self.health_check(&given.health_check),
            on_client_abort: given.on_client_abort.word(OnClientAbort::Cancel, errors),
            abort_drain: self.timeout("abort_drain", &given.abort_drain, DEFAULT_ABORT_DRAIN),
            models: self.models(&given.models),
            bridge: self.bridge(&given.bridge, kind),
            location: member.location,
        }
    }

    /// One URL, or a list of them.
    fn urls(&self, given: &OneOrMany<String>, location: Location) -> Vec<(Location, Url)> {
        if !(1..=MAX_URLS).contains(&given.len()) {
            let expected = format!("expected 1 to {MAX_URLS} URLs");
            self.errors.add(location, expected);
        }
        let mut urls: Vec<(Location, Url)> = Vec::new();
        for (location, text) in given.items(location, &self.errors) {
            let Some(url) = self.errors.note(location, Url::parse(text)) else {
                continue;
            };
            if urls.iter().any(|(_, other)| *other == url) {
                self.errors.add(location, "the URL is listed twice");
            }
            if urls.first().is_some_and(|(_, first)| first.tls != url.tls) {
                let all = "the URLs of an upstream are all http or all https";
                self.errors.add(location, all);
            }
            urls.push((location, url));
        }
        urls
    }

    /// Whether the URLs and how TLS is spoken there go together.
    fn check_urls(
        &self,
        urls: &[(Location, Url)],
        upstream: &Upstream,
        given: &UpstreamSection<'_>,
    ) {
        let bare = urls.iter().find(|(_, url)| url.tls && url.is_address());
        if let Some((location, _)) = bare
            && upstream.tls.server_name.is_none()
        {
            self.errors.add(*location, "an https upstream needs a host name or `tls.server_name`: certificates are not verified for a bare IP address");
        }
        if given.tls.is_given() && urls.first().is_some_and(|(_, url)| !url.tls) {
            self.errors.add(
                given.tls.location(),
                "`tls` is for https, and the URL is not",
            );
        }
    }

    fn warn_of(&self, upstream: &Upstream, given: &UpstreamSection<'_>, urls: &[(Location, Url)]) {
        for (location, url) in urls {
            self.warn_of_url(upstream, given, url, *location);
        }
        if upstream.kind == UpstreamKind::Gateway && !given.served_tier.is_given() {
            self.warnings.add(
                given.kind.location(),
                "the tier in this gateway's responses decides what is billed; if it has Codex accounts, their echo is empty or always the same: then use `kind: codex_gateway`, or say `served_tier: trusted`",
            );
        }
        if !given.credential_file.is_given() && !given.credential_file.is_null() {
            self.warnings.add(
                upstream.location,
                "the clients' own keys are sent to this upstream; name its key by `credential_file`, or say `credential_file: null` if that is meant",
            );
        }
        self.warn_of_models(upstream, given);
        self.warn_of_no_effect(upstream, given);
    }

    /// Settings of what is switched off, other than the defaults.
    fn warn_of_no_effect(&self, upstream: &Upstream, given: &UpstreamSection<'_>) {
        let no_http2 = Http2 {
            enabled: false,
            ..Http2::default()
        };
        let no_ejection = Ejection {
            consecutive_failures: 0,
            ..Ejection::default()
        };
        let is_plain = upstream.urls.iter().all(|url| !url.tls);
        let Upstream {
            http2, ejection, ..
        } = upstream;
        for (is_so, location, message) in [
            (
                upstream.on_client_abort == OnClientAbort::Cancel
                    && upstream.abort_drain != DEFAULT_ABORT_DRAIN,
                given.abort_drain.location(),
                "`abort_drain` has no effect without `on_client_abort: drain`",
            ),
            (
                is_plain && http2.enabled && *http2 != Http2::default(),
                given.http2.location(),
                "`http2` has no effect without https: TLS is where HTTP/2 is agreed on",
            ),
            (
                !http2.enabled && *http2 != no_http2,
                given.http2.location(),
                "with `enabled: false` the other settings of `http2` have no effect",
            ),
            (
                ejection.consecutive_failures == 0 && *ejection != no_ejection,
                given.ejection.location(),
                "with `consecutive_failures: 0` the other settings of `ejection` have no effect",
            ),
        ] {
            if is_so {
                self.warnings.add(location, message);
            }
        }
    }

    /// URLs that are good, and mostly not what was meant.
    fn warn_of_url(
        &self,
        upstream: &Upstream,
        given: &UpstreamSection<'_>,
        url: &Url,
        location: Location,
    ) {
        let prefix = url.prefix.to_ascii_lowercase();
        let end = ENDPOINT_ENDS.iter().find(|end| prefix.ends_with(*end));
        if let Some(end) = end {
            let message = format!(
                "the URL ends in `{end}`, and clients' paths follow it: `/v1/responses` becomes `{}/v1/responses`; leave it out",
                url.prefix
            );
            self.warnings.add(location, message);
        }
        let Destination::Tcp { host, port } = &url.destination else {
            return;
        };
        if given.credential_file.is_given() && !url.tls && !is_private(host) {
            let message =
                "the key of this upstream crosses the network in the clear; `https://` encrypts it";
            self.warnings.add(location, message);
        }
        if (url.tls, *port) == (true, 80) || (url.tls, *port) == (false, 443) {
            let message = "port 80 is that of http, and 443 that of https";
            self.warnings.add(location, message);
        }
        let of_host = KINDS_OF_HOSTS.iter().find(|(known, _)| known == host);
        if let Some((host, kind)) = of_host
            && upstream.kind == UpstreamKind::OpenAi
        {
            let message = format!("`{host}` is not the API of OpenAI; use `kind: {kind}`");
            self.warnings.add(location, message);
        }
    }

    fn warn_of_models(&self, upstream: &Upstream, given: &UpstreamSection<'_>) {
        let converts_messages = upstream.messages == MessagesMode::Responses;
        let converts =
            converts_messages || upstream.chat_completions == ChatCompletionsMode::Responses;
        let is_set = given.models.is_given() || given.bridge.is_given();
        if is_set && !converts {
            let message = "`models` and `bridge` have no effect without `messages: responses` or `chat_completions: responses`";
            self.warnings.add(upstream.location, message);
        }
        let missing = CLAUDE_CODE_MODELS
            .into_iter()
            .filter(|name| !upstream.models.iter().any(|entry| entry.matches(name)));
        let missing: Vec<&str> = missing.collect();
        if converts_messages && !missing.is_empty() {
            let message = format!(
                "no entry of `models` matches {}, which Claude Code asks for",
                missing.join(", ")
            );
            self.warnings.add(upstream.location, message);
        }
    }

    fn upstream_tls(&self, field: &Field<Section<TlsSection>>) -> UpstreamTls {
        let Some(given) = field.section(&self.errors) else {
            return UpstreamTls::default();
        };
        if given.cert.is_given() != given.key.is_given() {
            let together = "`cert` and `key` are given together";
            self.errors.add(field.location(), together);
        }
        let cert = self.file(&given.cert);
        let key = self.file(&given.key);
        let tls = UpstreamTls {
            ca: self.file(&given.ca),
            identity: cert.zip(key).map(|(cert, key)| TlsFiles { cert, key }),
            server_name: given.server_name.parse(server_name, &self.errors),
        };
        self.refer(field.location(), ReferencedFile::UpstreamTls(tls.clone()));
        tls
    }

    fn headers(&self, field: &Field<Section<HeadersSection<'_>>>) -> HeaderEdits {
        let Some(given) = field.section(&self.errors) else {
            return HeaderEdits::default();
        };
        let set = given.set.optional(&self.errors);
        let set = set.iter().flat_map(|members| members.unique(&self.errors));
        let remove = given.remove.optional(&self.errors);
        let of_key = "the header of the key cannot be removed; it is written by the proxy itself";
        let edits = HeaderEdits {
            set: set.filter_map(|member| self.header(member)).collect(),
            remove: remove.map_or_else(Vec::new, |names| {
                names.parse(|text| header_name(text, of_key), &self.errors)
            }),
        };
        self.check_edits(&edits, field.location());
        edits
    }

    /// Of two edits of one header the one would undo the other.
    fn check_edits(&self, edits: &HeaderEdits, location: Location) {
        for (at, (name, _)) in edits.set.iter().enumerate() {
            if edits.set[..at].iter().any(|(before, _)| before == name) {
                let message = format!("header `{name}` is set twice");
                self.errors.add(location, message);
            }
            if edits.remove.contains(name) {
                let message = format!("header `{name}` is set and removed");
                self.errors.add(location, message);
            }
        }
    }

    fn header(&self, member: &Member<'_, String>) -> Option<(HeaderName, HeaderValue)> {
        let of_key = "a key does not stand in the configuration; use `credential_file`";
        let name = header_name(&member.key, of_key);
        let name = self.errors.note(member.location, name);
        let value = member.value.value(&self.errors)?;
        let value = if has_expression(value) {
            Err(NOT_PUT_IN)
        } else {
            HeaderValue::from_str(value)
                .map_err(|_| "the value of a header has no control characters")
        };
        let mut value = self.errors.note(member.value.location(), value)?;
        value.set_sensitive(true);
        Some((name?, value))
    }

    fn http2(&self, field: &Field<Section<Http2Section>>) -> Http2 {
        let mut http2 = Http2::default();
        if let Some(given) = field.section(&self.errors) {
            let most = given.max_streams.count(1..=MAX_H2_STREAMS, &self.errors);
            let interval = &given.ping_interval;
            http2.enabled = given.enabled.or(http2.enabled, &self.errors);
            http2.max_streams = most.unwrap_or(http2.max_streams);
            http2.ping_interval = interval.duration(http2.ping_interval, &self.errors);
        }
        http2
    }

    fn ejection(&self, field: &Field<Section<EjectionSection>>) -> Ejection {
        let default = Ejection::default();
        let Some(given) = field.section(&self.errors) else {
            return default;
        };
        let failures = self.in_a_row(&given.consecutive_failures, 0);
        let ejection = Ejection {
            consecutive_failures: failures.unwrap_or(default.consecutive_failures),
            base_time: self.timeout("base_time", &given.base_time, default.base_time),
            max_time: self.timeout("max_time", &given.max_time, default.max_time),
            gateway_errors: given
                .gateway_errors
                .or(default.gateway_errors, &self.errors),
        };
        if ejection.max_time < ejection.base_time {
            self.errors
                .add(field.location(), "`max_time` is less than `base_time`");
        }
        ejection
    }

    fn health_check(&self, field: &Field<Section<HealthCheckSection>>) -> Option<HealthCheck> {
        let default = HealthCheck::default();
        let given = field.section(&self.errors)?;
        let unhealthy = self.in_a_row(&given.unhealthy_threshold, 1);
        let healthy = self.in_a_row(&given.healthy_threshold, 1);
        Some(HealthCheck {
            path: given.path.parse(check_path, &self.errors),
            interval: self.timeout("interval", &given.interval, default.interval),
            timeout: self.timeout("timeout", &given.timeout, default.timeout),
            unhealthy_threshold: unhealthy.unwrap_or(default.unhealthy_threshold),
            healthy_threshold: healthy.unwrap_or(default.healthy_threshold),
        })
    }

    fn in_a_row(&self, field: &Field<i64>, least: u64) -> Option<u32> {
        let count = field.integer(least..=MAX_IN_A_ROW, &self.errors)?;
        u32::try_from(count).ok()
    }

    fn models(&self, field: &Field<List<Section<ModelSection>>>) -> Vec<ModelEntry> {
        let items = field.optional(&self.errors);
        let items = items.iter().flat_map(|list| list.iter());
        let mut entries: Vec<ModelEntry> = Vec::new();
        for item in items {
            let Some(entry) = self.model(item) else {
                continue;
            };
            if entries.iter().any(|above| above.covers(&entry)) {
                let message = "this entry never applies: one above it has all of its models";
                self.warnings.add(item.location(), message);
            }
            entries.push(entry);
        }
        entries
    }

    fn model(&self, item: &Field<Section<ModelSection>>) -> Option<ModelEntry> {
        let given = item.value(&self.errors)?;
        let given = given.read(item.location(), &self.errors);
        let pattern = given.required("match", &given.r#match);
        let default = ModelEntry::new(pattern.map_or("", String::as_str), None);
        let entry = ModelEntry {
            model: given.model.parse(upstream_model, &self.errors),
            effort: given.effort.optional(&self.errors).map(|word| word.0),
            max_effort: given.max_effort.word(default.max_effort, &self.errors),
            effort_off: given.effort_off.word(default.effort_off, &self.errors),
            reasoning: given.reasoning.optional(&self.errors).copied(),
            max_output: given
                .max_output
                .integer_or_null(1..=MAX_OUTPUT_TOKENS, &self.errors),
            phase: given.phase.or(default.phase, &self.errors),
            pattern: default.pattern,
        };
        let place = given.r#match.location();
        pattern.and_then(|text| self.errors.note(place, check_match(text)));
        pattern.map(|_| entry)
    }

    fn bridge(&self, field: &Field<Section<BridgeSection>>, kind: UpstreamKind) -> BridgeOptions {
        let default = BridgeOptions::of(kind == UpstreamKind::Codex);
        let Some(given) = field.section(&self.errors) else {
            return default;
        };
        let errors = &self.errors;
        BridgeOptions {
            reasoning_replay: given.reasoning_replay.or(default.reasoning_replay, errors),
            reasoning_summary: given
                .reasoning_summary
                .word(default.reasoning_summary, errors),
            stop_sequences: given.stop_sequences.word(default.stop_sequences, errors),
            tool_media: given.tool_media.word(default.tool_media, errors),
            system_as: given.system_as.word(default.system_as, errors),
            path: given
                .path
                .parse(bridge_path, errors)
                .unwrap_or(default.path),
            commit_after: self.timeout("commit_after", &given.commit_after, default.commit_after),
            ping: self.timeout("ping", &given.ping, default.ping),
            list_models: given.list_models.or(default.list_models, errors),
        }
    }
}

fn server_name(text: &str) -> Result<String, &'static str> {
    if is_dns_name(text) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("expected a host name like `api.example.com`")
    }
}

/// `of_key`: what is said of the name of a header that carries a key.
fn header_name(text: &str, of_key: &'static str) -> Result<HeaderName, &'static str> {
    if text.contains('*') {
        return Err("names of headers are compared whole, and have no wildcards; list each name");
    }
    let name = HeaderName::from_bytes(text.as_bytes());
    let name = name.map_err(|_| "expected the name of a header, like `x-team`")?;
    if FRAMING_HEADERS.contains(&name.as_str()) {
        Err("this header is written by the proxy itself")
    } else if CREDENTIAL_HEADERS.contains(&name.as_str()) {
        Err(of_key)
    } else {
        Ok(name)
    }
}

fn check_path(text: &str) -> Result<String, &'static str> {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
    if text.starts_with('/') && text.bytes().all(is_plain) {
        Ok(text.to_owned())
    } else {
        Err("expected a path like `/healthz`")
    }
}

fn check_match(text: &str) -> Result<(), &'static str> {
    let beginning = text.strip_suffix('*').unwrap_or(text);
    if text.is_empty() || beginning.contains('*') {
        Err("expected the name of a model, or its beginning and `*`")
    } else if beginning.contains('[') {
        Err("`[1m]` is cut off before names are compared; leave it out")
    } else {
        Pattern::parse(text).map(drop)
    }
}

/// What the upstream is asked for in the place of the client's model.
fn upstream_model(text: &str) -> Result<String, &'static str> {
    check_model(text)?;
    if text.contains('*') {
        return Err(
            "`model` is sent to the upstream as it stands, and no model has a `*` in its name; without it the client's own name is sent",
        );
    }
    Ok(text.to_owned())
}

fn bridge_path(text: &str) -> Result<String, &'static str> {
    if path::is_plain(text) {
        Ok(text.to_owned())
    } else {
        Err("expected a plain path like `/v1/responses`")
    }
}

/// The words of all sections below an upstream, each with its pointer there, for the test of the schema.
#[cfg(test)]
pub(super) fn words() -> [(&'static str, Vec<String>); 8] {
    use crate::config::field::schema::words_of;
    [
        ("", words_of::<UpstreamSection<'_>>()),
        ("/properties/headers", words_of::<HeadersSection<'_>>()),
        ("/properties/http2", words_of::<Http2Section>()),
        ("/properties/tls", words_of::<TlsSection>()),
        ("/properties/ejection", words_of::<EjectionSection>()),
        ("/properties/health_check", words_of::<HealthCheckSection>()),
        (
            "/properties/models/anyOf/0/items",
            words_of::<ModelSection>(),
        ),
        ("/properties/bridge", words_of::<BridgeSection>()),
    ]
}
