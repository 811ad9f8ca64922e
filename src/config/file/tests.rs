//! What settings resolve to, and that the schemas for editors know them all.

use std::fs;
use std::path::PathBuf;

use strum::VariantNames;

use super::*;
use crate::config::bridge::{Effort, ReasoningSummary, StopSequences, SystemAs, ToolMedia};
use crate::config::field::schema::{assert_schema, words_of};
use crate::config::upstream::{
    ChatStreamUsage, ForwardedHeaders, OnClientAbort, ServedTier, UpstreamKind,
};
use crate::config::{BridgeOptions, ChatCompletionsMode, Limits, MessagesMode, Redis, StateStore};

fn load(text: &str) -> Config {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiergate.yaml");
    fs::write(&path, format!("policy: policy.yaml\n{text}\n")).unwrap();
    Config::load(&path).unwrap().0
}

#[test]
fn an_upstream_has_one_url_or_a_list() {
    let config = load("upstreams: {a: {url: http://h}, b: {url: [http://h, http://i/x]}}");
    let counts = config.upstreams.iter().map(|upstream| upstream.urls.len());
    assert_eq!(counts.collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_bare_address_can_be_verified_by_a_name_that_is_given() {
    let config = load("upstreams: {a: {url: https://127.0.0.1, tls: {server_name: API.example}}}");
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
    let config =
        load("prices: /etc/prices.yaml\nupstreams: {a: {url: http://h, credential_file: keys/a}}");
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
fn headers_are_set_and_removed_but_not_those_that_frame_a_message() {
    let config =
        load("upstreams: {a: {url: http://h, headers: {set: {X-Team: blue}, remove: [Cookie]}}}");
    let headers = &config.upstreams[0].headers;
    assert_eq!(headers.set.len(), 1);
    assert_eq!(headers.set[0].0, "x-team");
    assert_eq!(headers.remove, ["cookie"]);
    // The value may be a secret.
    assert!(!format!("{config:?}").contains("blue"));
}

#[test]
fn models_and_bridge_of_an_upstream_have_the_defaults_of_its_kind() {
    let config = load(
        "upstreams:
  a: {url: http://h, kind: codex, messages: responses, models: [{match: claude-*, model: gpt-5.5, max_effort: max}]}
  b: {url: http://h, chat_completions: responses, bridge: {stop_sequences: refuse, ping: 5s}}",
    );
    let [codex, other] = &config.upstreams[..] else {
        panic!("two upstreams");
    };
    assert_eq!(codex.messages, MessagesMode::Responses);
    assert_eq!(codex.bridge, BridgeOptions::of(true));
    assert_eq!(codex.bridge.path, "/responses");
    let entry = &codex.models[0];
    assert_eq!(
        (entry.pattern.as_str(), entry.model.as_deref()),
        ("claude-*", Some("gpt-5.5"))
    );
    assert!(entry.matches("claude-opus-5") && !entry.matches("gpt-5.5"));
    assert_eq!(other.bridge.path, "/v1/responses");
    assert_eq!(other.bridge.ping, Duration::from_secs(5));
    assert_eq!(other.chat_completions, ChatCompletionsMode::Responses);
}

#[test]
fn state_is_a_file_or_a_server() {
    let state = |text: &str| {
        load(&format!(
            "state: {text}\nupstreams: {{a: {{url: http://h}}}}"
        ))
        .state
    };
    assert_eq!(state("null"), None);
    assert_eq!(state("/s.redb"), Some(StateStore::File("/s.redb".into())));
    let redis = Redis {
        tls: true,
        host: "cache.example".to_owned(),
        port: 6379,
        database: 2,
        user: Some("tg".to_owned()),
        password_file: None,
    };
    assert_eq!(
        state("rediss://tg@Cache.example/2"),
        Some(StateStore::Redis(redis.clone()))
    );
    assert_eq!(
        state("{url: \"rediss://tg@cache.example:6379/2\", password_file: /p}"),
        Some(StateStore::Redis(Redis {
            password_file: Some("/p".into()),
            ..redis
        }))
    );
}

#[test]
fn origins_are_those_that_browsers_send() {
    let cors = |text: &str| {
        load(&format!(
            "cors: {text}\nupstreams: {{a: {{url: http://h}}}}"
        ))
        .cors
    };
    assert_eq!(cors("null"), None);
    let any = cors("{allow_origins: [\"*\"]}").unwrap();
    assert!(any.allow_origins.allow("https://x"));
    let one = cors("{allow_origins: [\"https://App.example:8443\"]}").unwrap();
    assert!(one.allow_origins.allow("https://app.example:8443"));
    assert!(!one.allow_origins.allow("https://app.example"));
}

#[test]
fn the_schema_for_editors_has_every_setting() {
    let upstream = |path: &str| format!("/definitions/upstream{path}");
    let model = |name: &str| {
        upstream(&format!(
            "/properties/models/anyOf/0/items/properties/{name}"
        ))
    };
    let bridge = |name: &str| upstream(&format!("/properties/bridge/properties/{name}"));
    let mappings = [
        ("", words_of::<ConfigFile<'_>>()),
        ("/definitions/listener", words_of::<ListenerSection>()),
        (
            "/definitions/listener/properties/tls",
            words_of::<ListenerTlsSection>(),
        ),
        ("/properties/access_log", words_of::<AccessLogSection>()),
        ("/properties/state/anyOf/1", words_of::<StateSection>()),
        ("/properties/cors", words_of::<CorsSection>()),
        ("/properties/traces", words_of::<TracesSection>()),
        ("/properties/limits", words_of::<LimitsSection>()),
        ("/properties/server", words_of::<ServerSection>()),
    ];
    let mappings = mappings.map(|(path, words)| (path.to_owned(), words));
    let of_upstream = super::upstream::words().map(|(path, words)| (upstream(path), words));
    let enums: [(String, &[&str]); 15] = [
        (
            "/properties/access_log/properties/format".to_owned(),
            LogFormat::VARIANTS,
        ),
        (upstream("/properties/kind"), UpstreamKind::VARIANTS),
        (upstream("/properties/served_tier"), ServedTier::VARIANTS),
        (upstream("/properties/messages"), MessagesMode::VARIANTS),
        (
            upstream("/properties/chat_completions"),
            ChatCompletionsMode::VARIANTS,
        ),
        (
            upstream("/properties/chat_stream_usage"),
            ChatStreamUsage::VARIANTS,
        ),
        (
            upstream("/properties/forwarded_headers"),
            ForwardedHeaders::VARIANTS,
        ),
        (
            upstream("/properties/on_client_abort"),
            OnClientAbort::VARIANTS,
        ),
        (model("effort/anyOf/0"), Effort::VARIANTS),
        (model("max_effort"), Effort::VARIANTS),
        (model("effort_off"), Effort::VARIANTS),
        (bridge("reasoning_summary"), ReasoningSummary::VARIANTS),
        (bridge("stop_sequences"), StopSequences::VARIANTS),
        (bridge("tool_media"), ToolMedia::VARIANTS),
        (bridge("system_as"), SystemAs::VARIANTS),
    ];
    let mappings: Vec<_> = mappings.into_iter().chain(of_upstream).collect();
    assert_schema("tiergate.schema.json", &mappings, &enums);
}
