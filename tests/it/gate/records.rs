//! The access log's record of a request, whole, for each way in which a request can go.

use serde_json::{Map, Value, json};
use tiergate::accounting::access_log::line::{FIELDS, OTEL_FIELDS};

use crate::support::proxy;
use crate::support::record::{normalised, with};
use crate::support::upstream::{self, reply};

/// The record of a forced request that was answered with JSON that says nothing of itself.
fn forced() -> Value {
    json!({
        "schema": 1,
        "event_id": "ID#TURN",
        "seq": 0,
        "instance": "INSTANCE",
        "time": "TIME",
        "duration_ms": "MS",
        "ttfb_ms": "MS",
        "request_id": "ID",
        "turn": 0,
        "client": "127.0.0.1",
        "user_agent": "codex/1",
        "key": "fiona",
        "group": "fast",
        "platform": "openai",
        "policy": "REVISION",
        "method": "POST",
        "path": "/v1/responses",
        "endpoint": "responses",
        "transport": "http",
        "model": "m-1",
        "service_tier": "priority",
        "service_tier_client": "flex",
        "service_tier_served": null,
        "service_tier_billed": "priority",
        "tier_reason": "group_force",
        "tier_billed_by": "sent",
        "downgraded": false,
        "upstream": "main",
        "upstream_status": 200,
        "upstream_request_id": "req_1",
        "response_id": null,
        "status": 200,
        "outcome": "ok",
        "error": null,
        "usage_state": "none",
        "terminal_event": null,
        "input_tokens": null,
        "cached_input_tokens": null,
        "cache_write_tokens": null,
        "output_tokens": null,
        "reasoning_tokens": null,
        "cost_usd": null,
        "request_bytes": 37,
        "upstream_request_bytes": 64,
        "response_bytes": 2,
        "model_served": null,
        "tier_refused": false,
        "upstream_error": null,
        "cache_write_long_tokens": null,
        "of_request": null,
        "bridge": null,
        "bridge_dropped": null,
        "key_id": "KEY ID",
        "prices": null,
        "model_upstream": null,
    })
}

const BODY: &str = r#"{"model":"m-1","service_tier":" FLEX"}"#;

/// The record of a request that never got to an upstream.
fn refused() -> Value {
    with(
        forced(),
        json!({
            "ttfb_ms": null,
            "service_tier": null,
            "service_tier_billed": null,
            "tier_billed_by": null,
            "upstream": null,
            "upstream_status": null,
            "upstream_request_id": null,
            "upstream_request_bytes": 0,
            "response_bytes": 0,
        }),
    )
}

#[test]
fn a_forced_request_answered_with_json() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast").header("User-Agent", "codex/1");
    let answer = client.post("/v1/responses?stream=false", BODY);
    assert_eq!((answer.status, answer.text()), (200, "{}"));
    let sent = upstream.request().body.len();
    let expected = with(
        forced(),
        json!({"request_bytes": BODY.len(), "upstream_request_bytes": sent}),
    );
    assert_eq!(proxy.stop(), [expected]);
}

const CREATED: &str = "event: response.created\ndata: {\"type\":\"response.created\"}\n\n";
const COMPLETED: &str = "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":\
    {\"id\":\"resp_1\",\"model\":\"m-1\",\"service_tier\":\"default\",\"usage\":{\"input_tokens\":10,\
    \"input_tokens_details\":{\"cached_tokens\":4},\"output_tokens\":7,\
    \"output_tokens_details\":{\"reasoning_tokens\":3},\"total_tokens\":17}}}\n\n";

#[test]
fn a_forced_request_answered_with_events() {
    let upstream = upstream::sse(&[CREATED, COMPLETED]).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast").header("User-Agent", "codex/1");
    let answer = client.post("/v1/responses", BODY);
    assert!(answer.whole);
    assert_eq!(answer.text(), [CREATED, COMPLETED].concat());
    let expected = with(
        forced(),
        json!({
            "transport": "sse",
            "request_bytes": BODY.len(),
            "upstream_request_bytes": upstream.request().body.len(),
            "response_bytes": answer.body.len(),
        }),
    );
    let said = json!({
        "response_id": "resp_1",
        "model_served": "m-1",
        "service_tier_served": "default",
        "service_tier_billed": "default",
        "tier_billed_by": "served",
        "downgraded": true,
        "usage_state": "final",
        "terminal_event": "response.completed",
        "input_tokens": 10,
        "cached_input_tokens": 4,
        "output_tokens": 7,
        "reasoning_tokens": 3,
    });
    assert_eq!(proxy.stop(), [with(expected, said)]);
}

#[test]
fn a_record_under_the_names_of_opentelemetry_says_the_same() {
    let upstream = upstream::sse(&[CREATED, COMPLETED]).run();
    let line = |format: &str| {
        let proxy = proxy::new().upstream(&upstream).log_format(format).run();
        let client = proxy.client("sk-fast").header("User-Agent", "codex/1");
        client.post("/v1/responses", BODY);
        proxy.access_log_lines(1).remove(0)
    };
    let otel: Map<String, Value> = serde_json::from_str(&line("otel")).unwrap();
    for (name, value) in [
        ("openai.request.service_tier", json!("priority")),
        ("openai.response.service_tier", json!("default")),
        ("gen_ai.usage.input_tokens", json!(10)),
        ("gen_ai.usage.output_tokens", json!(7)),
        ("gen_ai.request.model", json!("m-1")),
        ("gen_ai.response.id", json!("resp_1")),
        ("http.request.method", json!("POST")),
        ("url.path", json!("/v1/responses")),
        ("http.response.status_code", json!(200)),
        ("client.address", json!("127.0.0.1")),
        ("user_agent.original", json!("codex/1")),
        ("tiergate.service_tier_billed", json!("default")),
    ] {
        assert_eq!(otel[name], value, "{name}");
    }
    assert_eq!(otel.len(), OTEL_FIELDS.len());
    let renamed = FIELDS.iter().zip(OTEL_FIELDS);
    let renamed: Map<String, Value> = renamed
        .map(|(plain, otel_name)| (plain.to_string(), otel[otel_name].clone()))
        .collect();
    let renamed = serde_json::to_string(&renamed).unwrap();
    assert_eq!(normalised(&renamed), normalised(&line("json")));
}

#[test]
fn a_request_that_is_not_forced() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-plain").header("User-Agent", "codex/1");
    client.post("/v1/responses", BODY);
    // A line is written once its answer is on its way, so the next request waits for it.
    proxy.access_log(1);
    client.post("/v1/responses", "{}");
    let plain = json!({
        "key": "paula", "group": "plain",
        "service_tier": "flex", "service_tier_billed": "flex", "tier_reason": "client",
        "request_bytes": BODY.len(), "upstream_request_bytes": BODY.len(),
    });
    let silent = json!({
        "key": "paula", "group": "plain", "seq": 1, "model": null,
        "service_tier": null, "service_tier_client": null, "service_tier_billed": null,
        "tier_reason": "none", "request_bytes": 2, "upstream_request_bytes": 2,
    });
    assert_eq!(
        proxy.stop(),
        [with(forced(), plain), with(forced(), silent)]
    );
}

#[test]
fn a_fast_mode_that_the_client_asked_for_in_a_header() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream_with("main", &upstream, "messages: beta")
        .run();
    let client = proxy
        .client("sk-plain")
        .header("User-Agent", "codex/1")
        .header("anthropic-beta", "fast-mode-2026-02-01");
    client.post("/v1/messages", r#"{"model":"m-1"}"#);
    let expected = json!({
        "key": "paula", "group": "plain", "path": "/v1/messages", "endpoint": "messages",
        "service_tier_client": null, "tier_reason": "fast_mode_beta",
        "request_bytes": 15, "upstream_request_bytes": 15,
    });
    assert_eq!(proxy.stop(), [with(forced(), expected)]);
}

#[test]
fn a_request_that_is_denied() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-nobody").header("User-Agent", "codex/1");
    let answer = client.post("/v1/responses", "");
    let nobody = json!({
        "key": null, "group": null, "platform": null, "model": null, "service_tier_client": null,
        "tier_reason": null, "status": 401, "outcome": "denied", "error": "invalid_api_key",
        "request_bytes": 0,
    });
    assert_eq!(answer.status, 401);
    proxy.access_log(1);
    let client = proxy.client("sk-closed").header("User-Agent", "codex/1");
    assert_eq!(client.post("/v1/chat/completions", "").status, 403);
    let closed = json!({
        "seq": 1, "key": "claus", "group": "closed", "model": null, "service_tier_client": null,
        "path": "/v1/chat/completions", "endpoint": "chat_completions",
        "tier_reason": null, "status": 403, "outcome": "denied", "error": "group_disabled",
        "request_bytes": 0,
    });
    upstream.assert_untouched();
    assert_eq!(
        proxy.stop(),
        [with(refused(), nobody), with(refused(), closed)]
    );
}

#[test]
fn a_request_that_is_rejected_for_its_body() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast").header("User-Agent", "codex/1");
    assert_eq!(
        client.post("/v1/responses", r#"{"model":"m-1",}"#).status,
        400
    );
    upstream.assert_untouched();
    let expected = json!({
        "model": "m-1", "service_tier_client": null, "status": 400, "outcome": "rejected",
        "error": "invalid_json", "request_bytes": 16,
    });
    assert_eq!(proxy.stop(), [with(refused(), expected)]);
}

#[test]
fn a_response_in_the_background_is_billed_once_to_who_created_it() {
    let counts = r#""usage":{"input_tokens":10,"output_tokens":7}"#;
    let queued = r#"{"id":"resp_1","status":"queued","service_tier":"auto","usage":null}"#;
    let made =
        format!(r#"{{"id":"resp_1","status":"completed","service_tier":"default",{counts}}}"#);
    let event = format!(
        "data: {{\"type\":\"response.completed\",\"response\":{{\"id\":\"resp_1\",{counts}}}}}\n\n"
    );
    let upstream = upstream::script([
        reply(200).json(queued),
        reply(200).json(queued),
        reply(200).json(&made),
        reply(200).sse(&[&event]),
        reply(200).json(&made),
    ])
    .run();
    let proxy = proxy::new().upstream(&upstream).run();
    let create = proxy.client("sk-fast");
    let fetch = proxy.client("sk-plain");
    create.post("/v1/responses", r#"{"model":"m-1","background":true}"#);
    proxy.access_log(1);
    fetch.get("/v1/responses/resp_1");
    proxy.access_log(2);
    fetch.get("/v1/responses/resp_1");
    proxy.access_log(3);
    fetch.get("/v1/responses/resp_1?stream=true");
    proxy.access_log(4);
    fetch.post("/v1/responses/resp_1/cancel", "");
    let lines = proxy.access_log_lines(5);
    let records: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let states: Vec<&str> = records
        .iter()
        .map(|record| record["usage_state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["deferred", "none", "final", "none", "none"]);
    let billed = &records[2];
    for (name, value) in [
        ("of_request", &records[0]["request_id"]),
        ("key_id", &records[0]["key_id"]),
        ("endpoint", &json!("responses_item")),
        ("key", &json!("fiona")),
        ("group", &json!("fast")),
        ("model", &json!("m-1")),
        ("service_tier", &json!("priority")),
        ("tier_reason", &json!("group_force")),
        ("service_tier_billed", &json!("default")),
        ("downgraded", &json!(true)),
        ("input_tokens", &json!(10)),
        ("output_tokens", &json!(7)),
    ] {
        assert_eq!(&billed[name], value, "{name}");
    }
    for record in [&records[1], &records[3], &records[4]] {
        assert_eq!(record["outcome"], "ok");
        for name in ["of_request", "input_tokens", "output_tokens", "cost_usd"] {
            assert_eq!(record[name], json!(null), "{name}");
        }
    }
}

/// LiteLLM's ids begin alike for some hundred bytes, and it makes one anew for each answer.
#[test]
fn responses_in_the_background_are_told_apart_by_whole_ids_in_the_path_or_in_the_answer() {
    let id = |end: &str| format!("resp_{}{end}", "bGl0ZWxsbTpj".repeat(20));
    let answer = |id: &str, status: &str, output: u64| {
        let rest = json!({"id": id, "status": status, "usage": {"output_tokens": output}});
        reply(200).json(&rest.to_string())
    };
    let [a, b, c] = ["a", "b", "c"].map(id);
    let upstream = upstream::script([
        answer(&a, "queued", 0),
        answer(&b, "queued", 0),
        answer(&c, "queued", 0),
        answer(&a, "completed", 1),
        answer(&c, "completed", 3),
        answer(&id("another"), "completed", 2),
    ])
    .run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    for count in 1..=3 {
        client.post("/v1/responses", r#"{"model":"m-1","background":true}"#);
        proxy.access_log(count);
    }
    let paths = [a, "elsewhere".to_owned(), b];
    for (count, path) in paths.iter().enumerate() {
        client.get(&format!("/v1/responses/{path}"));
        proxy.access_log(count + 4);
    }
    let lines = proxy.access_log_lines(6);
    let lines: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for (create, fetch, output) in [(0, 3, 1), (2, 4, 3), (1, 5, 2)] {
        assert_eq!(lines[fetch]["of_request"], lines[create]["request_id"]);
        assert_eq!(lines[fetch]["output_tokens"], output);
        assert_eq!(lines[fetch]["response_id"].as_str().unwrap().len(), 128);
    }
}

#[test]
fn a_client_that_goes_away_in_mid_stream() {
    let script = [reply(200).sse_begun(&[CREATED]).hold()];
    let upstream = upstream::script(script).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast").header("User-Agent", "codex/1");
    let mut connection = client.connect();
    connection.send(client.message("/v1/responses", BODY.as_bytes()));
    assert_eq!(connection.head().unwrap().status, 200);
    assert_eq!(connection.chunk().unwrap(), CREATED.as_bytes());
    drop(connection);
    let expected = json!({
        "transport": "sse", "outcome": "client_closed",
        "request_bytes": BODY.len(), "upstream_request_bytes": upstream.request().body.len(),
        "response_bytes": CREATED.len(),
    });
    // The upstream still holds: the line is written because the client went.
    assert_eq!(proxy.record(), with(forced(), expected));
    upstream.release();
    upstream.await_ended(1);
}

#[test]
fn a_client_that_goes_away_before_its_body_is_whole() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast").header("User-Agent", "codex/1");
    let mut connection = client.connect();
    connection.send(client.head_of("/v1/responses", 100));
    connection.send(r#"{"model":"#);
    drop(connection);
    let record = proxy.record();
    upstream.assert_untouched();
    assert_eq!(
        (
            &record["outcome"],
            &record["service_tier"],
            &record["upstream"]
        ),
        (&json!("client_closed"), &json!(null), &json!(null))
    );
}

#[test]
fn an_upstream_that_answers_with_an_error() {
    let upstream = upstream::script([reply(429).json("{}")]).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast").header("User-Agent", "codex/1");
    assert_eq!(client.post("/v1/responses", BODY).status, 429);
    let expected = json!({
        "status": 429, "upstream_status": 429, "outcome": "upstream_error",
        "request_bytes": BODY.len(), "upstream_request_bytes": upstream.request().body.len(),
    });
    assert_eq!(proxy.stop(), [with(forced(), expected)]);
}

#[test]
fn an_upstream_that_is_cut_in_mid_stream() {
    let script = [reply(200).sse_begun(&[CREATED]).close()];
    let upstream = upstream::script(script).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast").header("User-Agent", "codex/1");
    let answer = client.post("/v1/responses", BODY);
    assert_eq!((answer.status, answer.whole), (200, false));
    assert_eq!(answer.text(), CREATED);
    let expected = json!({
        "transport": "sse", "outcome": "upstream_cut", "response_bytes": CREATED.len(),
        "request_bytes": BODY.len(), "upstream_request_bytes": upstream.request().body.len(),
    });
    assert_eq!(proxy.stop(), [with(forced(), expected)]);
}

#[test]
fn texts_that_others_choose_are_cut_and_escaped() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let (long, tier) = ("\u{1}".repeat(3000), "x".repeat(100));
    let client = proxy
        .client("sk-plain")
        .header("User-Agent", &"\"\u{fc}".repeat(2000));
    let body = json!({"model": long, "service_tier": tier}).to_string();
    let path = format!("/v1/responses/{}/responses", "a\"".repeat(1000));
    assert_eq!(client.post(&path, body).status, 200);
    // `record` checks the line's length, its fields and their order.
    let record = proxy.record();
    assert_eq!(record["service_tier_client"], "x".repeat(64));
    for (name, most) in [("model", 128), ("user_agent", 512), ("path", 1024)] {
        assert!(record[name].as_str().unwrap().len() <= most, "{name}");
    }
    let head = client.head(&"M".repeat(20_000), "/v1/models");
    assert_eq!(client.exchange(&head).status, 200);
    assert_eq!(proxy.access_log(2)[1]["method"], "M".repeat(32));
}
