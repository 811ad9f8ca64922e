//! How a request is changed, and how not: forced, not forced, asked for by the beta header; bodies under a coding;
//! headers; the upstream's credential.

use std::fs;
use std::io::Write;

use serde_json::{Value, json};

use crate::support::client::chunk;
use crate::support::eventually;
use crate::support::proxy::{self, Builder, Proxy};
use crate::support::upstream::{self, Received, Upstream};

const BETA: &str = "fast-mode-2026-02-01";

#[test]
fn a_forced_request_carries_the_tier_whatever_the_client_asked_for() {
    let cases = [
        (r#"{}"#, r#"{"service_tier":"priority"}"#),
        (
            r#"{"a":1.50,"b":"\ud800"}"#,
            r#"{"service_tier":"priority","a":1.50,"b":"\ud800"}"#,
        ),
        (
            r#"{"a":{"service_tier":"flex"},"service_tier":"flex"}"#,
            r#"{"service_tier":"priority","a":{"service_tier":"flex"}}"#,
        ),
        (
            r#"{"Service_Tier":null,"x":[1,{}],"service\u005ftier":{"a":1}}"#,
            r#"{"service_tier":"priority","x":[1,{}]}"#,
        ),
    ];
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    for (at, (sent, expected)) in cases.into_iter().enumerate() {
        assert_eq!(
            proxy.client("sk-fast").post("/v1/responses", sent).status,
            200
        );
        let request = &upstream.requests(at + 1)[at];
        assert_eq!(without_space(request.text()), expected);
        assert_eq!(
            request.header("content-length"),
            [request.body.len().to_string()]
        );
    }
}

#[test]
fn every_endpoint_with_a_tier_is_forced() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let paths = [
        "/v1/responses",
        "/v1/responses/compact",
        "/V1/Chat/Completions/",
        "/v1/messages?beta=true",
        "/v1/agents",
        "/v1/agents/sessions",
        "/backend-api/codex/responses",
    ];
    for (at, path) in paths.into_iter().enumerate() {
        proxy.client("sk-fast").post(path, r#"{"a":1}"#);
        let request = &upstream.requests(at + 1)[at];
        assert_eq!(request.request_line(), format!("POST {path} HTTP/1.1"));
        let body = without_space(request.text());
        assert_eq!(body, r#"{"service_tier":"priority","a":1}"#, "{path}");
    }
}

#[test]
fn a_group_that_is_not_forced_passes_every_byte() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let bodies: [&[u8]; 5] = [
        br#" {"service_tier" : "flex", "service_tier":"auto"} "#,
        b"not JSON",
        b"\xff\xfe\x00",
        b"",
        br#"{"a":"#,
    ];
    for (at, body) in bodies.into_iter().enumerate() {
        assert_eq!(
            proxy.client("sk-plain").post("/v1/responses", body).status,
            200
        );
        assert_eq!(upstream.requests(at + 1)[at].body, body);
    }
    let pieces: [&[u8]; 2] = [b"{\"a\":", b"1}"];
    proxy
        .client("sk-plain")
        .post_chunked("/v1/responses", &pieces);
    let last = upstream.requests(6).remove(5);
    assert_eq!(last.header("transfer-encoding"), ["chunked"]);
    assert_eq!(last.text(), r#"{"a":1}"#);
}

#[test]
fn other_endpoints_of_a_forced_group_pass_every_byte() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let body = br#"{"service_tier":"flex"}"#;
    let paths = [
        "/v1/embeddings",
        "/v1/responses/input_tokens",
        "/v1/responses/x/cancel",
    ];
    for (at, path) in paths.into_iter().enumerate() {
        proxy.client("sk-fast").post(path, body);
        assert_eq!(upstream.requests(at + 1)[at].body, body, "{path}");
    }
    assert_eq!(
        proxy.client("sk-fast").get("/v1/responses/resp_1").status,
        200
    );
    assert_eq!(upstream.requests(4)[3].body, b"");
}

/// The one request that an upstream with these settings gets for a `messages` request.
fn on_messages(key: &str, settings: &str, betas: &[&str], body: &str) -> Received {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream_with("main", &upstream, settings)
        .run();
    let mut client = proxy.client(key);
    for beta in betas {
        client = client.header("anthropic-beta", beta);
    }
    assert_eq!(client.post("/v1/messages", body).status, 200);
    upstream.request()
}

#[test]
fn messages_ask_for_the_tier_in_the_way_of_their_upstream() {
    let body = r#"{"service_tier":"auto","m":1}"#;
    let request = on_messages("sk-fast", "messages: tier", &["x-1"], body);
    assert_eq!(
        without_space(request.text()),
        r#"{"service_tier":"priority","m":1}"#
    );
    assert_eq!(request.header("anthropic-beta"), ["x-1"]);

    let request = on_messages("sk-fast", "messages: beta", &["x-1", "x-2"], body);
    assert_eq!(without_space(request.text()), r#"{"m":1}"#);
    let expected = format!("x-1,x-2,{BETA}");
    assert_eq!(request.header("anthropic-beta"), [expected.as_str()]);

    let betas = [BETA, "x-1, fast-mode-2026-02-01"];
    let request = on_messages("sk-fast", "kind: gateway", &betas, body);
    assert_eq!(
        without_space(request.text()),
        r#"{"service_tier":"priority","m":1}"#
    );
    let expected = format!("x-1,{BETA}");
    assert_eq!(request.header("anthropic-beta"), [expected.as_str()]);
}

#[test]
fn the_beta_header_asks_for_priority_where_nothing_is_forced() {
    let body = r#"{"m":1}"#;
    let betas = ["other-1", "x , fast-mode-2026-02-01"];
    let request = on_messages("sk-plain", "messages: tier", &betas, body);
    assert_eq!(
        without_space(request.text()),
        r#"{"service_tier":"priority","m":1}"#
    );
    for near_miss in ["fast-mode-2026-02-01x", "Fast-Mode-2026-02-01", "fast-mode"] {
        let request = on_messages("sk-plain", "messages: tier", &[near_miss], body);
        assert_eq!(request.text(), body, "{near_miss}");
    }
    let request = on_messages("sk-plain", "messages: off", &[BETA], body);
    assert_eq!(request.text(), body);
}

#[test]
fn a_body_that_was_read_as_json_is_sent_as_json_and_not_as_a_form() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let form = "Application/x-www-form-urlencoded";
    let text = "text/plain;charset=utf-8";
    let cases = [
        ("sk-fast", form, "application/json"),
        ("sk-fast", text, text),
        ("sk-plain", form, form),
    ];
    for (at, (key, kind, sent)) in cases.into_iter().enumerate() {
        let client = proxy.client(key).header("Content-Type", kind);
        let answer = client.post("/v1/responses", r#"{"a":"&service_tier=flex&"}"#);
        assert_eq!(answer.status, 200);
        assert_eq!(upstream.requests(at + 1)[at].header("content-type"), [sent]);
    }
}

#[test]
fn bodies_under_a_content_coding_are_sent_on_decoded() {
    let body = r#"{"a":"text that is coded","service_tier":"flex"}"#;
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    for (at, name) in ["gzip", "zstd", "br", "deflate"].into_iter().enumerate() {
        let client = proxy.client("sk-fast").header("Content-Encoding", name);
        assert_eq!(
            client.post("/v1/responses", coded(name, body)).status,
            200,
            "{name}"
        );
        let request = &upstream.requests(at + 1)[at];
        assert_eq!(
            without_space(request.text()),
            r#"{"service_tier":"priority","a":"textthatiscoded"}"#
        );
        assert_eq!(request.header("content-encoding"), [""; 0]);
        assert_eq!(
            request.header("content-length"),
            [request.body.len().to_string()]
        );
    }
    let plain = coded("gzip", body);
    let client = proxy.client("sk-plain").header("Content-Encoding", "gzip");
    client.post("/v1/responses", &plain);
    let untouched = upstream.requests(5).remove(4);
    assert_eq!(
        (untouched.body, untouched.head.contains("gzip")),
        (plain, true)
    );
}

/// A group that is not forced, at an upstream whose word on the tier does not count: what is sent is billed.
fn proxy_that_bills_what_is_sent(upstream: &Upstream) -> Builder {
    proxy::new()
        .upstream_with("main", upstream, "served_tier: ignored")
        .prices(
            "version: 1\nprices: [{models: ['*'], tiers: {default: {input: 1, output: 1}, \
             priority: {input: 100, output: 100}}}]\n",
        )
}

#[test]
fn a_tier_is_billed_in_whatever_form_a_server_may_read_it() {
    let answer =
        r#"{"id":"r","status":"completed","usage":{"input_tokens":1000,"output_tokens":0}}"#;
    let upstream = upstream::json(answer).run();
    let proxy = proxy_that_bills_what_is_sent(&upstream).run();
    let body = r#"{"model":"m","service_tier":"priority"}"#;
    let (first, second) = body.split_at(20);
    let members = [coded("gzip", first), coded("gzip", second)].concat();
    let utf_16: Vec<u8> = body.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let unknown = coded("gzip", body);
    let cases = [
        (
            "gzip",
            "application/json",
            members,
            "priority",
            json!("0.1"),
        ),
        (
            "gzip",
            "application/json",
            body.as_bytes().to_vec(),
            "priority",
            json!("0.1"),
        ),
        (
            "identity",
            "application/json",
            utf_16,
            "priority",
            json!("0.1"),
        ),
        (
            "gzip, gzip",
            "application/json",
            unknown,
            "<unknown>",
            Value::Null,
        ),
        (
            "identity",
            "application/x-www-form-urlencoded",
            b"model=m&service_tier=priority".to_vec(),
            "<unknown>",
            Value::Null,
        ),
    ];
    for (at, (coding, kind, bytes, tier, cost)) in cases.into_iter().enumerate() {
        let client = proxy.client("sk-plain").header("Content-Encoding", coding);
        let client = client.header("Content-Type", kind);
        assert_eq!(client.post("/v1/responses", &bytes).status, 200);
        assert_eq!(upstream.requests(at + 1)[at].body, bytes);
        let record = proxy.access_log(at + 1).remove(at);
        for member in ["service_tier", "service_tier_client", "service_tier_billed"] {
            assert_eq!(record[member], tier, "{coding} {member}");
        }
        assert_eq!(record["cost_usd"], cost, "{coding}");
    }
}

#[test]
fn a_coded_body_that_cannot_be_looked_at_to_its_end_has_a_tier_that_is_not_known() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {decoded_body: 8KiB}")
        .run();
    let filling = "x".repeat(20_000);
    let body = format!(
        r#"{{"model":"m","service_tier":"flex","input":"{filling}","service_tier":"priority"}}"#
    );
    let coded = coded("gzip", &body);
    let client = proxy.client("sk-plain").header("Content-Encoding", "gzip");
    assert_eq!(client.post("/v1/responses", &coded).status, 200);
    assert_eq!(upstream.requests(1)[0].body, coded);
    let record = proxy.record();
    for (member, told) in [
        ("service_tier", json!("<unknown>")),
        ("service_tier_client", json!("<unknown>")),
        ("model", Value::Null),
    ] {
        assert_eq!(record[member], told, "{member}");
    }
}

#[test]
fn the_hint_of_a_tier_agrees_with_a_body_whatever_its_framing() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .policy(
            "version: 1\ngroups: {fast: {platform: openai, force_fast_mode: true, except_models: [m-mini]}}\n\
             keys: {sk-fast: fast}\n",
        )
        .run();
    let client = proxy
        .client("sk-fast")
        .header("x-codex-routing-hint", "a=1;tier=default");
    for (model, framing) in [
        ("m", "length"),
        ("m-mini", "length"),
        ("m", "chunks"),
        ("m-mini", "chunks"),
    ] {
        let body = format!(r#"{{"model":"{model}"}}"#);
        match framing {
            "length" => client.post("/v1/responses", &body),
            _ => client.post_chunked("/v1/responses", &[body.as_bytes()]),
        };
        let received = upstream.requests(upstream.received().len());
        let request = received.last().unwrap();
        let hint = request.header("x-codex-routing-hint")[0] == "a=1;tier=priority";
        let forced = request.text().contains("priority");
        assert_eq!(hint, forced, "{model}, {framing}");
    }
}

#[test]
fn headers_pass_but_for_those_of_the_connection() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy
        .client("sk-fast")
        .header("Connection", "keep-alive, X-Mine")
        .header("X-Mine", "1")
        .header("Keep-Alive", "timeout=5")
        .header("X-Other", "a")
        .header("X-Other", "b")
        .header("Accept-Encoding", "gzip")
        .header("x-codex-routing-hint", "a=1;tier=default")
        .header("User-Agent", "codex/1");
    let answer = client.post("/v1/responses", "{}");
    let request = upstream.request();
    for gone in ["x-mine", "keep-alive", "connection"] {
        assert_eq!(request.header(gone), [""; 0], "{gone}");
    }
    assert_eq!(request.header("x-other"), ["a", "b"]);
    assert_eq!(request.header("accept-encoding"), ["identity"]);
    assert_eq!(
        request.header("x-codex-routing-hint"),
        ["a=1;tier=priority"]
    );
    assert_eq!(request.header("authorization"), ["Bearer sk-fast"]);
    let host = format!("localhost:{}", upstream.address.port());
    assert_eq!(request.header("host"), [host]);
    assert_eq!(answer.header("x-request-id"), Some("req_1"));
    assert_eq!(
        answer.header("x-tiergate-request-id").map(str::len),
        Some(36)
    );
}

#[test]
fn the_prefix_of_the_upstream_stands_before_the_path() {
    let upstream = upstream::json("{}").run();
    struct Prefixed(String);
    impl proxy::Target for Prefixed {
        fn url(&self) -> String {
            format!("{}/proxy/openai", self.0)
        }
    }
    let target = Prefixed(proxy::Target::url(&upstream));
    let proxy = proxy::new().upstream(&target).run();
    proxy.client("sk-fast").post("/v1/responses?a=%20b", "{}");
    assert_eq!(
        upstream.request().request_line(),
        "POST /proxy/openai/v1/responses?a=%20b HTTP/1.1"
    );
}

#[test]
fn the_upstreams_own_key_replaces_the_clients_and_is_read_again_when_it_changes() {
    let upstream = upstream::json("{}").run();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credential");
    fs::write(&file, "up-1\n").unwrap();
    let proxy = proxy::new()
        .upstream_with("main", &upstream, "credential_file: credential")
        .run_in(folder);
    proxy.client("sk-fast").post("/v1/responses", "{}");
    let client = proxy.anonymous().header("X-Api-Key", "sk-plain");
    client.post("/v1/messages", "{}");
    let requests = upstream.requests(2);
    assert_eq!(requests[0].header("authorization"), ["Bearer up-1"]);
    assert_eq!(requests[0].header("x-api-key"), [""; 0]);
    assert_eq!(requests[1].header("x-api-key"), ["up-1"]);
    assert_eq!(requests[1].header("authorization"), [""; 0]);
    fs::write(&file, "up-2\n").unwrap();
    eventually("the new key is used", || {
        proxy.client("sk-fast").post("/v1/responses", "{}");
        let last = upstream.received().pop()?;
        (last.header("authorization") == ["Bearer up-2"]).then_some(())
    });
}

#[test]
fn several_upstreams_are_told_apart_by_group() {
    let (first, second) = (upstream::json("{}").run(), upstream::json("{}").run());
    let proxy = proxy::new()
        .policy(
            "version: 1\n\
             groups:\n  a: {platform: openai, upstream: one}\n  b: {platform: anthropic, upstream: two}\n\
             keys: {sk-a: a, sk-b: b}\n",
        )
        .upstream_with("one", &first, "")
        .upstream_with("two", &second, "kind: anthropic")
        .run();
    proxy.client("sk-a").post("/v1/responses", "{}");
    proxy.client("sk-b").post("/v1/messages", r#"{"b":1}"#);
    assert_eq!(first.request().text(), "{}");
    assert_eq!(second.request().text(), r#"{"b":1}"#);
}

fn coded(name: &str, text: &str) -> Vec<u8> {
    let mut coded = Vec::new();
    match name {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(&mut coded, Default::default());
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.finish().unwrap();
        }
        "deflate" => {
            let mut encoder = flate2::write::ZlibEncoder::new(&mut coded, Default::default());
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.finish().unwrap();
        }
        "br" => {
            let mut encoder = brotli::CompressorWriter::new(&mut coded, 4096, 5, 22);
            encoder.write_all(text.as_bytes()).unwrap();
        }
        _ => coded = zstd::encode_all(text.as_bytes(), 3).unwrap(),
    }
    coded
}

/// The rewriter may put spaces in the place of what it dropped. None of the bodies here has one inside a name.
fn without_space(text: &str) -> String {
    text.split_ascii_whitespace().collect()
}

const RULES: &str = "\
version: 1
groups:
  rules: {platform: openai, force_fast_mode: true, except_models: ['*-mini']}
  spent: {platform: openai, force_fast_mode: true, budget: {usd: '0.5', per: month}}
  own: {platform: openai, budget: {usd: '0.5', per: month, then: refuse}}
  speed: {platform: openai, fast_mode_beta: speed}
keys:
  sk-rules: {group: rules, name: rita}
  sk-spent: {group: spent, name: saul}
  sk-own: {group: own, name: olga}
  sk-speed: {group: speed, name: svea}
";
const RULED_PRICES: &str = "\
version: 1
prices:
  - models: ['*']
    tiers: {default: {input: 500, output: 1}, priority: {input: 1000, output: 1}}
";

/// A proxy with these.
fn ruled(upstream: &Upstream) -> Proxy {
    proxy::new()
        .policy(RULES)
        .prices(RULED_PRICES)
        .upstream(upstream)
        .run()
}

/// An answer that does not say which tier served.
const UNNAMED: &str =
    r#"{"id":"r","status":"completed","usage":{"input_tokens":1000,"output_tokens":0}}"#;

#[test]
fn a_tier_that_stays_because_the_force_is_set_aside_is_told_and_billed() {
    let upstream = upstream::json(UNNAMED).run();
    let proxy = ruled(&upstream);
    let own = r#"{"model":"m-mini","service_tier":"priority"}"#;
    proxy.client("sk-rules").post("/v1/responses", own);
    // This one spends the whole budget, and the next goes as it came.
    proxy
        .client("sk-spent")
        .post("/v1/responses", r#"{"model":"m"}"#);
    proxy.client("sk-spent").post("/v1/responses", own);
    let told: Vec<_> = proxy
        .access_log(3)
        .iter()
        .map(|line| {
            let tier = line["service_tier"].as_str().unwrap().to_owned();
            (
                line["tier_reason"].as_str().unwrap().to_owned(),
                tier,
                line["cost_usd"].clone(),
            )
        })
        .collect();
    let expected = ["model_exempt", "group_force", "budget_exhausted"]
        .map(|reason| (reason.to_owned(), "priority".to_owned(), "1".into()));
    assert_eq!(told, expected);
}

#[test]
fn a_model_of_the_target_that_the_force_is_for_is_forced_whatever_the_body_names() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().policy(RULES).upstream(&upstream).run();
    let client = proxy.client("sk-rules");
    let cases = [
        (
            "/openai/deployments/gpt-5/chat/completions?api-version=1",
            true,
        ),
        (
            "/openai/deployments/gpt-5-mini/chat/completions?api-version=1",
            false,
        ),
        ("/engines/gpt-5-mini;x/chat/completions", true),
        ("/openai/deployments;x/gpt-5/chat/completions", true),
        ("/openai/deployments%20/gpt-5/chat/completions", true),
        ("/engines/gpt-5-mini./chat/completions", true),
        ("/v1/chat/completions?model=", false),
        ("/models/gpt-5/x-mini/chat/completions", true),
        ("/models/chat/completions", false),
        ("/v1/chat/completions?model=gpt-5", true),
        ("/v1/chat/completions?model=gpt-5-mini&mod%65l=gpt-5", true),
        ("/v1/chat/completions?model=gpt-5-mini&user=gpt-5", false),
    ];
    for (at, (path, forced)) in cases.into_iter().enumerate() {
        client.post(path, r#"{"model":"x-mini"}"#);
        let sent = upstream.requests(at + 1)[at].text().contains("priority");
        assert_eq!(sent, forced, "{path}");
        let record = &proxy.access_log(at + 1)[at];
        assert_eq!(record["tier_reason"] == "model_exempt", !forced, "{path}");
        assert_eq!(record["model"], "x-mini");
    }
    // It takes both, for a body that names no model is forced.
    client.post("/openai/deployments/gpt-5-mini/chat/completions", "{}");
    let record = &proxy.access_log(cases.len() + 1)[cases.len()];
    assert_eq!(record["tier_reason"], "group_force");
    assert_eq!(record["model"], serde_json::Value::Null);
}

#[test]
fn a_spent_budget_refuses_the_fast_tier_that_clients_ask_for_themselves() {
    let upstream = upstream::json(UNNAMED).run();
    let proxy = ruled(&upstream);
    let client = proxy.client("sk-own");
    let fast = r#"{"model":"m","service_tier":"priority"}"#;
    assert_eq!(client.post("/v1/responses", fast).status, 200);
    proxy.access_log(1);
    assert_eq!(client.post("/v1/responses", fast).status, 429);
    let chunked = client.post_chunked("/v1/responses", &[fast.as_bytes()]);
    assert_eq!(chunked.status, 429);
    for either in [
        r#"{"model":"m","service_tier":"priority","service_tier":"flex"}"#,
        r#"{"model":"m","service_tier":"flex","SERVICE_TIER":"priority"}"#,
    ] {
        assert_eq!(client.post("/v1/responses", either).status, 429, "{either}");
    }
    let slow = r#"{"model":"m","service_tier":"flex"}"#;
    assert_eq!(client.post("/v1/responses", slow).status, 200);
    assert_eq!(upstream.requests(2)[1].text(), slow);
}

#[test]
fn of_several_tiers_that_may_be_read_the_dearest_is_told_and_billed() {
    let upstream = upstream::json(UNNAMED).run();
    let proxy = proxy::new().prices(RULED_PRICES).upstream(&upstream).run();
    let body = r#"{"model":"m","service_tier":"priority","service_tier":"flex"}"#;
    proxy.client("sk-plain").post("/v1/responses", body);
    assert_eq!(upstream.request().text(), body);
    let record = proxy.record();
    for (member, value) in [
        ("service_tier", "priority"),
        ("service_tier_client", "priority"),
        ("tier_reason", "client"),
        ("cost_usd", "1"),
    ] {
        assert_eq!(record[member], value, "{member}");
    }
}

#[test]
fn a_fast_mode_header_that_its_upstream_reads_is_told_and_billed_or_taken_away() {
    let upstream = upstream::json(UNNAMED).run();
    let policy = RULES.replace(
        "keys:\n",
        "  off: {platform: openai, fast_mode_beta: false}\nkeys:\n  sk-off: {group: off, name: olaf}\n",
    );
    let proxy = proxy::new()
        .policy(&policy)
        .prices(RULED_PRICES)
        .upstream_with("main", &upstream, "messages: tier_and_beta")
        .run();
    let kept = format!("x-1,{BETA}");
    let cases = [
        (
            "sk-rules",
            r#"{"model":"m-mini"}"#,
            &*kept,
            Some("priority"),
        ),
        ("sk-spent", r#"{"model":"m"}"#, &*kept, Some("priority")),
        ("sk-spent", r#"{"model":"n"}"#, &*kept, Some("priority")),
        ("sk-speed", r#"{"model":"m"}"#, "x-1", None),
        (
            "sk-speed",
            r#"{"model":"m","speed":"fast"}"#,
            &*kept,
            Some("priority"),
        ),
        ("sk-off", r#"{"model":"m","speed":"fast"}"#, "x-1", None),
    ];
    for (at, (key, body, sent, tier)) in cases.into_iter().enumerate() {
        let client = proxy.client(key).header("anthropic-beta", &kept);
        client.post("/v1/messages", body);
        let request = &upstream.requests(at + 1)[at];
        assert_eq!(request.header("anthropic-beta"), [sent], "{key} {body}");
        let record = &proxy.access_log(at + 1)[at];
        assert_eq!(record["service_tier"].as_str(), tier, "{key} {body}");
        let cost = if tier.is_some() { "1" } else { "0.5" };
        assert_eq!(record["cost_usd"], cost, "{key} {body}");
    }
    let reasons: Vec<_> = proxy
        .access_log(cases.len())
        .iter()
        .map(|record| record["tier_reason"].as_str().unwrap().to_owned())
        .collect();
    let expected = [
        "model_exempt",
        "group_force",
        "budget_exhausted",
        "none",
        "fast_mode_beta",
        "none",
    ];
    assert_eq!(reasons, expected);
}

/// Some models take it without the header.
#[test]
fn a_body_that_asks_for_fast_mode_alone_asks_for_priority() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream_with("main", &upstream, "messages: tier_and_beta")
        .run();
    for (at, (path, body, tier)) in [
        ("/v1/messages", r#"{"speed":"fast"}"#, Some("priority")),
        ("/v1/messages", r#"{"speed":"standard"}"#, None),
        ("/v1/responses", r#"{"speed":"fast"}"#, None),
    ]
    .into_iter()
    .enumerate()
    {
        proxy.client("sk-plain").post(path, body);
        assert_eq!(upstream.requests(at + 1)[at].text(), body);
        let record = &proxy.access_log(at + 1)[at];
        assert_eq!(record["service_tier"].as_str(), tier, "{path} {body}");
        assert_eq!(
            record["service_tier_billed"].as_str(),
            tier,
            "{path} {body}"
        );
    }
}

#[test]
fn what_a_body_decides_holds_without_a_length_too() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().policy(RULES).upstream(&upstream).run();
    for (at, (key, path, body, tier)) in [
        ("sk-rules", "/v1/responses", r#"{"model":"m-mini"}"#, None),
        (
            "sk-rules",
            "/v1/responses",
            r#"{"model":"m"}"#,
            Some("priority"),
        ),
        (
            "sk-speed",
            "/v1/messages",
            r#"{"speed":"fast"}"#,
            Some("priority"),
        ),
        ("sk-speed", "/v1/messages", r#"{"speed":"slow"}"#, None),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = proxy.client(key).post_chunked(path, &[body.as_bytes()]);
        assert_eq!(answer.status, 200);
        let sent = upstream.requests(at + 1)[at].text().to_owned();
        let sent: serde_json::Value = serde_json::from_str(&sent).unwrap();
        assert_eq!(
            sent.get("service_tier").and_then(|tier| tier.as_str()),
            tier
        );
        let record = &proxy.access_log(at + 1)[at];
        assert_eq!(record["service_tier"].as_str(), tier);
    }
}

#[test]
fn a_coded_body_without_a_length_agrees_with_its_head() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .policy(RULES)
        .upstream_with("main", &upstream, "chat_stream_usage: request")
        .run();
    let coded = coded("gzip", r#"{"model":"m"}"#);
    let cases = [
        ("sk-spent", "/v1/responses", false),
        // Held for the budget, it goes on as it came.
        ("sk-own", "/v1/responses", true),
        // It might have had to ask for its usage.
        ("sk-own", "/v1/chat/completions", false),
    ];
    for (at, (key, path, is_same)) in cases.into_iter().enumerate() {
        let client = proxy.client(key).header("Content-Encoding", "gzip");
        client.post_chunked(path, &[&coded]);
        let request = &upstream.requests(at + 1)[at];
        let coding = request.header("content-encoding");
        if is_same {
            assert_eq!((&request.body, coding), (&coded, vec!["gzip"]));
        } else {
            assert!(request.text().contains(r#""model":"m""#), "{path}");
            assert_eq!(coding, [""; 0], "{path}");
        }
    }
}

#[test]
fn a_budget_that_is_spent_while_a_body_arrives_does_not_change_what_its_head_says() {
    let upstream = upstream::json(UNNAMED).run();
    let proxy = ruled(&upstream);
    let client = proxy.client("sk-spent");
    let coded = coded("gzip", r#"{"model":"m"}"#);
    let slow = client
        .clone()
        .header("Content-Encoding", "gzip")
        .header("Transfer-Encoding", "chunked");
    let mut connection = slow.connect();
    let (first, rest) = coded.split_at(5);
    connection.send([slow.head("POST", "/v1/responses"), chunk(first)].concat());
    eventually("a connection for it", || {
        (upstream.connections() == 1).then_some(())
    });
    client.post("/v1/responses", r#"{"model":"m"}"#);
    proxy.access_log(1);
    connection.send([chunk(rest), b"0\r\n\r\n".to_vec()].concat());
    assert_eq!(connection.answer().status, 200);
    let forced = r#"{"service_tier":"priority","model":"m"}"#;
    for received in upstream.requests(2) {
        assert_eq!(received.text(), forced);
    }
    let record = &proxy.access_log(2)[1];
    let told = [&record["tier_reason"], &record["service_tier"]];
    assert_eq!(told, ["group_force", "priority"]);
}

#[test]
fn a_spent_budget_leaves_the_header_of_a_client_whose_body_says_the_same() {
    let policy = RULES.replace(
        "fast_mode_beta: speed",
        "fast_mode_beta: speed, budget: {usd: '0.5', per: month}",
    );
    let upstream = upstream::json(UNNAMED).run();
    let proxy = proxy::new()
        .policy(&policy)
        .prices(RULED_PRICES)
        .upstream_with("main", &upstream, "kind: gateway")
        .run();
    let client = proxy.client("sk-speed").header("anthropic-beta", BETA);
    for at in 0..2 {
        client.post("/v1/messages", r#"{"model":"m","speed":"fast"}"#);
        let record = &proxy.access_log(at + 1)[at];
        assert_eq!(record["service_tier"], "priority", "{at}");
        let request = &upstream.requests(at + 1)[at];
        assert_eq!(request.header("anthropic-beta"), [BETA], "{at}");
    }
    assert_eq!(proxy.access_log(2)[1]["tier_reason"], "budget_exhausted");
    client.post("/v1/messages", r#"{"model":"m"}"#);
    assert_eq!(upstream.requests(3)[2].header("anthropic-beta"), [""; 0]);
}

#[test]
fn a_spent_budget_is_not_asked_before_the_body_has_told_its_model() {
    for then in ["standard", "refuse"] {
        let budget =
            format!("except_models: ['*-mini'], budget: {{usd: '0.5', per: month, then: {then}}}");
        let policy = RULES.replace("except_models: ['*-mini']", &budget);
        let upstream = upstream::json(UNNAMED).run();
        let proxy = proxy::new()
            .policy(&policy)
            .prices(RULED_PRICES)
            .upstream(&upstream)
            .run();
        let client = proxy.client("sk-rules");
        client.post("/v1/responses", r#"{"model":"m"}"#);
        proxy.access_log(1);
        let answer = client.post_chunked("/v1/responses", &[br#"{"model":"m-mini"}"#]);
        assert_eq!(answer.status, 200, "{then}");
        assert_eq!(proxy.access_log(2)[1]["tier_reason"], "model_exempt");
        let answer = client.post_chunked("/v1/responses", &[br#"{"model":"m"}"#]);
        let is_refused = then == "refuse";
        assert_eq!(answer.status == 429, is_refused, "{then}");
    }
}

#[test]
fn the_fast_mode_header_that_counts_is_the_one_that_is_sent() {
    let upstream = upstream::json(UNNAMED).run();
    let policy = RULES.replace(
        "keys:\n",
        "  claude: {platform: anthropic}\nkeys:\n  sk-claude: {group: claude, name: carl}\n",
    );
    let mut told = Vec::new();
    for headers in [
        "{}",
        "{remove: [anthropic-beta]}",
        "{set: {anthropic-beta: x-1}}",
        "{set: {anthropic-beta: 'x-1, fast-mode-2026-02-01'}}",
    ] {
        let settings = format!("messages: tier_and_beta, headers: {headers}");
        let proxy = proxy::new()
            .policy(&policy)
            .upstream_with("main", &upstream, &settings)
            .run();
        for key in ["sk-rules", "sk-claude"] {
            for header in ["anthropic-beta", "x-other"] {
                let client = proxy.client(key).header(header, BETA);
                client.post("/v1/messages", r#"{"model":"m-mini"}"#);
                let count = upstream.received().len();
                let request = &upstream.requests(count)[count - 1];
                let betas = request.header("anthropic-beta").concat();
                told.push((betas.contains(BETA), key));
            }
        }
        for (record, (is_sent, key)) in proxy.access_log(4).iter().zip(told.drain(..)) {
            let tier = is_sent.then_some("priority");
            assert_eq!(record["service_tier"].as_str(), tier, "{headers} {key}");
            let reason = match (key, is_sent) {
                ("sk-rules", _) => "model_exempt",
                (_, true) => "client",
                (_, false) => "none",
            };
            assert_eq!(record["tier_reason"], reason, "{headers} {key}");
        }
    }
}

#[test]
fn no_header_of_the_settings_takes_a_forced_tier_away() {
    for rule in ["set: {anthropic-beta: x-1}", "remove: [anthropic-beta]"] {
        let settings = format!("messages: beta, headers: {{{rule}}}");
        let request = on_messages("sk-fast", &settings, &["y-1"], r#"{"m":1}"#);
        let betas = request.header("anthropic-beta").join(",");
        assert!(betas.contains(BETA), "{rule}: {betas}");
        assert!(!betas.contains("y-1"), "{rule}: {betas}");
    }
}
