//! Clients of Messages and of Chat Completions on an upstream that speaks only Responses: what the upstream gets, what the
//! client gets, and what the line says.

use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::{Answer, Client, Connection};
use crate::support::eventually;
use crate::support::h2::{self, Framing};
use crate::support::proxy::{self, Builder, Proxy, Target};
use crate::support::upstream::{self, Reply, Upstream, reply};

const MESSAGES: &str = "/v1/messages?beta=true";
const CHAT: &str = "/v1/chat/completions";
const COUNT: &str = "/v1/messages/count_tokens";
const BRIDGED: &str = "messages: responses, chat_completions: responses, \
    models: [{match: 'claude-*', model: gpt-5.5}, {match: 'gpt-*'}]";

const CREATED: &str = "data: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\",\"model\":\"gpt-5.5-2026\"}}\n\n";
const TEXT: &str =
    "data: {\"type\":\"response.output_text.delta\",\"output_index\":0,\"delta\":\"hello\"}\n\n";
const COMPLETED: &str = "data: {\"type\":\"response.completed\",\"response\":{\"id\":\"resp_1\",\
    \"model\":\"gpt-5.5-2026\",\"service_tier\":\"priority\",\"usage\":{\"input_tokens\":10,\
    \"input_tokens_details\":{\"cached_tokens\":4},\"output_tokens\":7}}}\n\n";

/// Long enough for the proxy to see that a client has left, or that an answer has ended.
const MOMENT: Duration = Duration::from_millis(100);

fn question(members: Value) -> Vec<u8> {
    let mut body = json!({"model": "claude-opus-5-5", "max_tokens": 100, "stream": true,
        "messages": [{"role": "user", "content": "hi"}]});
    let own = body.as_object_mut().unwrap();
    own.extend(members.as_object().unwrap().clone());
    body.to_string().into_bytes()
}

fn bridging(target: &impl Target, settings: &str) -> Builder {
    let settings = format!("{BRIDGED}, {settings}");
    proxy::new().upstream_with("main", target, &settings)
}

fn streaming() -> Upstream {
    upstream::sse(&[CREATED, TEXT, COMPLETED]).run()
}

/// As Claude Code sends its key.
fn claude(proxy: &Proxy, key: &str) -> Client {
    proxy
        .anonymous()
        .header("x-api-key", key)
        .header("anthropic-version", "2023-06-01")
        .header("User-Agent", "claude-cli/2")
}

/// The types of a stream's events.
fn events(text: &str) -> Vec<&str> {
    let lines = text.lines();
    lines
        .filter_map(|line| line.strip_prefix("event: "))
        .collect()
}

fn told(record: &Value, fields: &[&str]) -> Value {
    let told = fields
        .iter()
        .map(|name| ((*name).to_owned(), record[*name].clone()));
    Value::Object(told.collect())
}

fn sent_body(upstream: &Upstream) -> Value {
    serde_json::from_slice(&upstream.request().body).unwrap()
}

#[test]
fn an_upstream_that_takes_nothing_of_a_converted_request_for_its_idle_timeout() {
    let upstream = upstream::script([upstream::silence().before_body()]).run();
    let proxy = bridging(&upstream, "response_timeout: 1m, idle_timeout: 300ms").run();
    // More than socket buffers take.
    let long = json!({"system": "x".repeat(16_000_000)});
    let answer = claude(&proxy, "sk-fast").post(MESSAGES, question(long));
    assert_eq!(answer.status, 504);
    assert_eq!(proxy.record()["error"], "upstream_timeout");
    upstream.release();
}

#[test]
fn a_forced_stream_of_messages_is_sent_as_responses_with_priority_and_has_one_line_with_its_usage()
{
    let upstream = streaming();
    let proxy = bridging(&upstream, "").run();
    let client = claude(&proxy, "sk-fast").header("proxy-authorization", "Basic Og==");
    let answer = client.post(MESSAGES, question(json!({"top_k": 5})));
    assert!(answer.whole && answer.status == 200, "{answer:?}");
    assert_eq!(
        events(answer.text()),
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    assert_eq!(
        answer.header("content-type"),
        Some("text/event-stream; charset=utf-8")
    );
    assert_eq!(
        answer.header("x-tiergate-bridge"),
        Some("messages>responses; dropped=top_k")
    );
    assert_eq!(answer.header("request-id"), Some("req_1"));

    let request = upstream.request();
    assert_eq!(request.request_line(), "POST /v1/responses HTTP/1.1");
    assert_eq!(request.header("authorization"), ["Bearer sk-fast"]);
    assert_eq!(request.header("user-agent"), ["claude-cli/2"]);
    assert_eq!(request.header("accept"), ["text/event-stream"]);
    assert_eq!(
        request.header("content-length"),
        [request.body.len().to_string()]
    );
    for absent in [
        "x-api-key",
        "anthropic-version",
        "transfer-encoding",
        "proxy-authorization",
    ] {
        assert!(request.header(absent).is_empty(), "{request:?}");
    }
    assert_eq!(request.text().matches("service_tier").count(), 1);
    let body = sent_body(&upstream);
    assert_eq!(
        told(&body, &["model", "service_tier", "stream", "store"]),
        json!({"model": "gpt-5.5", "service_tier": "priority", "stream": true, "store": false})
    );

    let record = proxy.record();
    assert_eq!(
        told(
            &record,
            &[
                "endpoint",
                "bridge",
                "bridge_dropped",
                "model",
                "model_upstream",
                "model_served",
                "service_tier",
                "service_tier_served",
                "tier_reason",
                "status",
                "upstream_status",
                "outcome",
                "usage_state",
                "input_tokens",
                "cached_input_tokens",
                "output_tokens",
                "upstream_request_bytes",
            ]
        ),
        json!({
            "endpoint": "messages", "bridge": "messages>responses", "bridge_dropped": "top_k",
            "model": "claude-opus-5-5", "model_upstream": "gpt-5.5", "model_served": "gpt-5.5-2026",
            "service_tier": "priority", "service_tier_served": "priority", "tier_reason": "group_force",
            "status": 200, "upstream_status": 200, "outcome": "ok", "usage_state": "final",
            "input_tokens": 10, "cached_input_tokens": 4, "output_tokens": 7,
            "upstream_request_bytes": request.body.len(),
        })
    );
    let labels = "endpoint=\"messages\",group=\"fast\",outcome=\"ok\"";
    assert_eq!(proxy.metric_of("tiergate_bridged_total", labels), 1.0);
    let dropped = proxy.metric_of("tiergate_bridge_dropped_total", "what=\"top_k\"");
    assert_eq!(dropped, 1.0);
    assert_eq!(proxy.metric("tiergate_buffered_bytes"), 0.0);
}

#[test]
fn in_a_group_that_is_not_forced_the_clients_own_wish_is_sent_and_logged() {
    let cases = [
        (MESSAGES, json!({}), None, "none"),
        (
            MESSAGES,
            json!({"speed": "fast"}),
            Some("priority"),
            "fast_mode_beta",
        ),
        (
            CHAT,
            json!({"service_tier": "flex"}),
            Some("flex"),
            "client",
        ),
        (CHAT, json!({}), None, "none"),
    ];
    for (path, members, tier, reason) in cases {
        let upstream = streaming();
        let proxy = bridging(&upstream, "").run();
        let answer = proxy.client("sk-plain").post(path, question(members));
        assert!(answer.whole, "{answer:?}");
        assert_eq!(
            sent_body(&upstream).get("service_tier"),
            tier.map(Value::from).as_ref()
        );
        let record = proxy.record();
        assert_eq!(
            record["service_tier"],
            tier.map_or(Value::Null, Value::from)
        );
        assert_eq!(record["tier_reason"], reason, "{path}");
    }
}

#[test]
fn fast_mode_that_was_switched_off_asks_for_nothing_though_its_header_stays() {
    let upstream = streaming();
    let proxy = bridging(&upstream, "").run();
    let client = claude(&proxy, "sk-plain").header("anthropic-beta", "x, fast-mode-2026-02-01");
    assert!(
        client
            .post(MESSAGES, question(json!({"speed": "standard"})))
            .whole
    );
    assert!(client.post(MESSAGES, question(json!({}))).whole);
    let sent = upstream.requests(2);
    assert!(!sent[0].text().contains("service_tier"), "{sent:?}");
    assert!(
        sent[1].text().contains("\"service_tier\":\"priority\""),
        "{sent:?}"
    );
}

#[test]
fn a_client_that_wants_no_stream_gets_one_json_body() {
    let upstream = streaming();
    let proxy = bridging(&upstream, "").run();
    let quiet = question(json!({"stream": false}));
    let message = claude(&proxy, "sk-fast").post(MESSAGES, &quiet);
    assert_eq!(message.header("content-type"), Some("application/json"));
    assert_eq!(
        message.json()["content"],
        json!([{"type": "text", "text": "hello"}])
    );
    let completion = proxy.client("sk-fast").post(CHAT, &quiet);
    assert_eq!(
        completion.json()["choices"][0]["message"]["content"],
        "hello"
    );
    assert_eq!(completion.json()["usage"]["prompt_tokens"], 10);
    let lines = proxy.access_log(2);
    assert_eq!(lines[1]["bridge"], "chat>responses");
    assert_eq!(lines[1]["endpoint"], "chat_completions");
    assert_eq!(lines[1]["input_tokens"], 10);
}

#[test]
fn a_request_body_without_a_length_is_bridged_as_well_over_both_versions_of_http() {
    let upstream = streaming();
    let proxy = bridging(&upstream, "").tls().run();
    let body = question(json!({}));
    let (first, second) = body.split_at(20);
    let answer = claude(&proxy, "sk-fast").post_chunked(MESSAGES, &[first, second]);
    assert!(
        answer.whole && answer.text().contains("message_stop"),
        "{answer:?}"
    );
    let headers = [("authorization", "Bearer sk-fast")];
    let address = proxy.tls_address;
    for framing in [Framing::Length, Framing::NoLength, Framing::EmptyEnd] {
        let answer = h2::post(address, &headers, MESSAGES, &body, framing);
        assert!(
            answer.whole && answer.text().contains("message_stop"),
            "{answer:?}"
        );
    }
    for request in upstream.requests(4) {
        assert!(request.whole && request.text().starts_with("{\"service_tier\":\"priority\""));
    }
    proxy.access_log(4);
}

#[test]
fn what_cannot_be_converted_is_refused_in_the_clients_protocol_and_reaches_no_upstream() {
    let upstream = streaming();
    let proxy = bridging(&upstream, "").run();
    let client = claude(&proxy, "sk-fast");
    let cases: [(&str, Vec<u8>, u16, &str); 4] = [
        (
            MESSAGES,
            question(json!({"model": "mistral"})),
            404,
            "model_not_mapped",
        ),
        (
            MESSAGES,
            question(json!({"mcp_servers": [{"type": "url"}]})),
            400,
            "unsupported_by_bridge",
        ),
        (
            CHAT,
            question(json!({"n": 2})),
            400,
            "unsupported_by_bridge",
        ),
        (MESSAGES, b"{\"model\":".to_vec(), 400, "invalid_json"),
    ];
    for (number, (path, body, status, code)) in cases.into_iter().enumerate() {
        let answer = client.post(path, body);
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.header("x-should-retry"), Some("false"));
        assert!(answer.json()["error"]["message"].is_string());
        let record = proxy.access_log(number + 1).remove(number);
        assert_eq!(record["error"], code);
        assert_eq!(record["outcome"], "rejected");
        assert_eq!(record["upstream"], Value::Null);
        assert_eq!(record["service_tier"], Value::Null);
    }
    upstream.assert_untouched();
    assert_eq!(proxy.metric("tiergate_buffered_bytes"), 0.0);
}

#[test]
fn an_error_of_the_upstream_is_told_by_its_status_in_the_clients_words() {
    let limited = r#"{"error":{"code":"rate_limit_exceeded","message":"slow down"}}"#;
    let upstream = upstream::script([
        reply(429).json(limited),
        reply(500).json("null"),
        reply(200).sse(&[
            CREATED,
            "data: {\"type\":\"response.failed\",\"response\":{\"error\":{\"code\":\"server_is_overloaded\",\"message\":\"busy\"}}}\n\n",
        ]),
    ])
    .run();
    let proxy = bridging(&upstream, "").run();
    let client = claude(&proxy, "sk-fast");
    let statuses = [
        (429, "rate_limit_error"),
        (500, "api_error"),
        (529, "overloaded_error"),
    ];
    for (status, kind) in statuses {
        let answer = client.post(MESSAGES, question(json!({})));
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.json()["error"]["type"], kind);
        assert!(answer.whole && answer.header("x-tiergate-bridge").is_some());
    }
    let lines = proxy.access_log(3);
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            told(
                line,
                &[
                    "status",
                    "upstream_status",
                    "outcome",
                    "upstream_error",
                    "service_tier",
                ],
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            json!({"status": 429, "upstream_status": 429, "outcome": "upstream_error",
                "upstream_error": "rate_limit_exceeded", "service_tier": "priority"}),
            json!({"status": 500, "upstream_status": 500, "outcome": "upstream_error",
                "upstream_error": null, "service_tier": "priority"}),
            json!({"status": 529, "upstream_status": 200, "outcome": "upstream_error",
                "upstream_error": "server_is_overloaded", "service_tier": "priority"}),
        ]
    );
}

#[test]
fn the_refusal_of_the_operators_key_is_none_of_the_clients() {
    let upstream = upstream::script([reply(401).json(r#"{"error":{"message":"bad key"}}"#)]).run();
    let proxy = bridging(&upstream, "credential_file: key")
        .file("key", "operators-own")
        .run();
    let answer = claude(&proxy, "sk-fast").post(MESSAGES, question(json!({})));
    assert_eq!(answer.status, 502, "{answer:?}");
    assert_eq!(
        upstream.request().header("authorization"),
        ["Bearer operators-own"]
    );
    let record = proxy.record();
    assert_eq!(record["error"], "upstream_credential_refused");
    assert_eq!(record["upstream_status"], 401);
}

#[test]
fn an_answer_that_is_cut_never_looks_whole() {
    let cut = reply(200).sse_begun(&[CREATED, TEXT]).close();
    for (path, end) in [(MESSAGES, "event: error"), (CHAT, "data: {\"error\"")] {
        let upstream = upstream::script([cut.clone()]).run();
        let proxy = bridging(&upstream, "").run();
        let answer = proxy.client("sk-fast").post(path, question(json!({})));
        assert_eq!(answer.status, 200);
        assert!(!answer.whole, "{answer:?}");
        assert!(answer.text().contains("hello") && answer.text().contains(end));
        assert!(!answer.text().contains("message_stop") && !answer.text().contains("[DONE]"));
        let record = proxy.record();
        assert_eq!(record["outcome"], "upstream_cut");
        assert_eq!(record["usage_state"], "none");
    }
}

#[test]
fn before_the_first_fact_a_cut_is_an_http_error() {
    let upstream = upstream::script([reply(200).sse_begun(&[CREATED]).close()]).run();
    let proxy = bridging(&upstream, "").run();
    let answer = claude(&proxy, "sk-fast").post(MESSAGES, question(json!({})));
    assert_eq!((answer.status, answer.whole), (502, true), "{answer:?}");
    let record = proxy.record();
    assert_eq!(record["outcome"], "upstream_error");
    assert_eq!(record["error"], "upstream_reset");
}

/// A client that has got the first text of an answer which waits for the test.
fn listener(proxy: &Proxy) -> Connection {
    let client = claude(proxy, "sk-fast");
    let mut connection = client.connect();
    connection.send(client.message(MESSAGES, &question(json!({}))));
    assert_eq!(connection.head().unwrap().status, 200);
    let mut text = String::new();
    while !text.contains("hello") {
        text += std::str::from_utf8(&connection.chunk().unwrap()).unwrap();
    }
    connection
}

fn held() -> Reply {
    let begun = reply(200).sse_begun(&[CREATED, TEXT]).hold();
    begun.chunk(COMPLETED).send("0\r\n\r\n")
}

#[test]
fn a_client_that_leaves_ends_the_request_at_the_upstream() {
    let upstream = upstream::script([reply(200).sse_begun(&[CREATED, TEXT]).send("")]).run();
    let proxy = bridging(&upstream, "").run();
    let connection = listener(&proxy);
    connection.socket().shutdown(Shutdown::Both).unwrap();
    drop(connection);
    let record = proxy.record();
    assert_eq!(record["outcome"], "client_closed");
    assert_eq!(record["usage_state"], "none");
    assert_eq!(record["service_tier"], "priority");
    upstream.await_ended(1);
}

#[test]
fn where_the_operator_says_so_an_answer_is_read_on_for_its_usage() {
    let upstream = upstream::script([held()]).run();
    let proxy = bridging(&upstream, "on_client_abort: drain").run();
    let connection = listener(&proxy);
    connection.socket().shutdown(Shutdown::Both).unwrap();
    drop(connection);
    std::thread::sleep(MOMENT);
    upstream.release();
    let record = proxy.record();
    assert_eq!(record["outcome"], "client_closed");
    assert_eq!(record["usage_state"], "final");
    assert_eq!(record["output_tokens"], 7);
}

#[test]
fn an_answer_that_begins_in_a_drain_says_that_its_connection_ends() {
    let answers = [
        reply(200).sse(&[CREATED, TEXT, COMPLETED]),
        reply(429).json("{\"error\":{\"message\":\"slow down\"}}"),
    ];
    let upstream = upstream::script(answers.map(|answer| Reply::default().hold().then_all(answer)));
    let upstream = upstream.run();
    let proxy = bridging(&upstream, "").run();
    let client = claude(&proxy, "sk-fast");
    proxy.assert_drain_is_told(
        &upstream,
        &client.message(MESSAGES, &question(json!({}))),
        [200, 429],
    );
}

#[test]
fn a_silent_upstream_is_waited_for_with_pings_but_not_for_ever() {
    let upstream = upstream::script([reply(200).sse_begun(&[CREATED]).hold()]).run();
    let settings = "idle_timeout: 1s, bridge: {commit_after: 100ms, ping: 100ms}";
    let proxy = bridging(&upstream, settings).run();
    let answer = claude(&proxy, "sk-fast").post(MESSAGES, question(json!({})));
    let events = events(answer.text());
    assert_eq!(events[..3], ["message_start", "ping", "ping"], "{answer:?}");
    assert_eq!(events.last(), Some(&"error"));
    assert!(!answer.whole);
    let record = proxy.record();
    assert_eq!(record["outcome"], "timeout");
    assert_eq!(record["error"], "upstream_timeout");
}

#[test]
fn an_upstream_without_a_head_is_a_timeout_before_and_an_error_event_after_the_commit() {
    let waiting = upstream::script([upstream::silence()]).run();
    let proxy = bridging(&waiting, "response_timeout: 300ms").run();
    let answer = claude(&proxy, "sk-fast").post(MESSAGES, question(json!({})));
    assert_eq!(answer.status, 504, "{answer:?}");
    assert_eq!(answer.json()["error"]["type"], "timeout_error");
    assert_eq!(proxy.record()["outcome"], "timeout");

    let settings = "response_timeout: 500ms, bridge: {commit_after: 100ms}";
    let proxy = bridging(&waiting, settings).run();
    let answer = claude(&proxy, "sk-fast").post(MESSAGES, question(json!({})));
    assert_eq!((answer.status, answer.whole), (200, false), "{answer:?}");
    assert_eq!(events(answer.text()), ["message_start", "error"]);
    let record = proxy.record();
    assert_eq!(
        (&record["outcome"], &record["status"]),
        (&json!("timeout"), &json!(200))
    );
}

#[test]
fn an_error_that_comes_after_the_commit_is_told_in_the_stream() {
    let late = Reply::default()
        .wait(Duration::from_millis(400))
        .then_all(reply(503).json(r#"{"error":{"code":"slow_down","message":"m"}}"#));
    let upstream = upstream::script([late]).run();
    let proxy = bridging(&upstream, "bridge: {commit_after: 50ms}").run();
    let answer = claude(&proxy, "sk-fast").post(MESSAGES, question(json!({})));
    assert_eq!(
        events(answer.text()),
        ["message_start", "error"],
        "{answer:?}"
    );
    assert!(answer.text().contains("overloaded_error") && !answer.whole);
    assert_eq!(proxy.record()["outcome"], "upstream_error");
}

/// Asks, and has the beginning of a stream before the upstream has said anything.
fn early(proxy: &Proxy, path: &str) -> Connection {
    let client = claude(proxy, "sk-fast");
    let mut connection = client.connect();
    connection.send(client.message(path, &question(json!({}))));
    assert_eq!(connection.head().unwrap().status, 200);
    connection.chunk().expect("the beginning of the stream");
    connection
}

/// What is left of a stream.
fn rest_of(connection: &mut Connection) -> String {
    let pieces = std::iter::from_fn(|| connection.chunk());
    pieces
        .map(|piece| String::from_utf8(piece).unwrap())
        .collect()
}

#[test]
fn an_answer_whose_head_comes_after_the_commit_has_the_status_that_the_client_was_sent() {
    let nameless = reply(500).json("null");
    let named = reply(429).json(r#"{"error":{"code":"rate_limit_exceeded","message":"m"}}"#);
    let good = reply(200).sse(&[CREATED, TEXT, COMPLETED]);
    let cases = [
        (good, "ok", Value::Null, json!("final")),
        (
            named,
            "upstream_error",
            json!("rate_limit_exceeded"),
            json!("none"),
        ),
        (nameless, "upstream_error", Value::Null, json!("none")),
    ];
    for (late, outcome, error, usage) in cases {
        for path in [MESSAGES, CHAT] {
            let upstream = upstream::script([upstream::silence().then_all(late.clone())]).run();
            let proxy = bridging(&upstream, "bridge: {commit_after: 50ms}").run();
            let mut connection = early(&proxy, path);
            upstream.release();
            let text = rest_of(&mut connection);
            let whole = text.contains("message_stop") || text.contains("[DONE]");
            assert_eq!(whole, outcome == "ok", "{text}");
            let record = proxy.record();
            assert_eq!(
                told(
                    &record,
                    &["status", "outcome", "upstream_error", "usage_state"]
                ),
                json!({"status": 200, "outcome": outcome, "upstream_error": error, "usage_state": usage}),
                "{record}"
            );
        }
    }
}

#[test]
fn a_response_that_was_cancelled_is_an_error_for_the_client_and_in_the_line() {
    let cancelled = COMPLETED.replace("\"id\"", "\"status\":\"cancelled\",\"id\"");
    for end in [cancelled.replace("completed", "cancelled"), cancelled] {
        let upstream = upstream::sse(&[CREATED, TEXT, &end]).run();
        let proxy = bridging(&upstream, "").run();
        let answer = claude(&proxy, "sk-fast").post(MESSAGES, question(json!({})));
        assert!(
            !answer.whole && answer.text().contains("event: error"),
            "{answer:?}"
        );
        let record = proxy.record();
        assert_eq!(
            told(
                &record,
                &["status", "outcome", "usage_state", "output_tokens"]
            ),
            json!({"status": 200, "outcome": "upstream_error", "usage_state": "final", "output_tokens": 7}),
            "{record}"
        );
    }
}

fn gzip(plain: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(plain.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// An answer of coded bytes.
fn coded(status: u16, kind: &str, coding: &str, body: &[u8]) -> Reply {
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Encoding: {coding}\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    Reply::default().send([head.as_bytes(), body].concat())
}

#[test]
fn an_answer_that_is_coded_though_none_was_asked_for_is_decoded() {
    const STREAM: &str = "text/event-stream";
    let stream = [CREATED, TEXT, COMPLETED].concat();
    let response = r#"{"id":"r","status":"completed","output":[{"type":"message","content":[
        {"type":"output_text","text":"hello"}]}],"usage":{"input_tokens":10,"output_tokens":7}}"#;
    let zstd = zstd::encode_all(stream.as_bytes(), 3).unwrap();
    let answers = [
        coded(200, STREAM, "gzip", &gzip(&stream)),
        coded(200, STREAM, "zstd", &zstd),
        coded(200, "application/json", "gzip", &gzip(response)),
    ];
    let upstream = upstream::script(answers).run();
    let proxy = bridging(&upstream, "").run();
    for _ in 0..3 {
        let answer = claude(&proxy, "sk-fast").post(MESSAGES, question(json!({})));
        assert!(
            answer.whole && answer.text().contains("hello"),
            "{answer:?}"
        );
        assert!(answer.text().contains("message_stop"), "{answer:?}");
    }
    for record in proxy.access_log(3) {
        assert_eq!(
            told(
                &record,
                &["status", "outcome", "usage_state", "output_tokens"]
            ),
            json!({"status": 200, "outcome": "ok", "usage_state": "final", "output_tokens": 7})
        );
    }
}

#[test]
fn an_answer_whose_first_byte_refutes_its_coding_is_read_as_it_is() {
    let stream = [CREATED, TEXT, COMPLETED].concat();
    for coding in ["none", "UTF-8", "aws-chunked", "gzip", "gzip, br"] {
        let answer = coded(200, "text/event-stream", coding, stream.as_bytes());
        let upstream = upstream::script([answer]).run();
        let proxy = bridging(&upstream, "").run();
        let answer = claude(&proxy, "sk-fast").post(MESSAGES, question(json!({})));
        assert!(
            answer.text().contains("message_stop"),
            "{coding}: {answer:?}"
        );
        assert_eq!(
            told(&proxy.record(), &["status", "outcome", "usage_state"]),
            json!({"status": 200, "outcome": "ok", "usage_state": "final"}),
            "{coding}"
        );
    }
}

#[test]
fn a_client_is_told_the_counts_that_the_line_has_by_whatever_names_they_come() {
    let response = |usage: &Value| {
        let output =
            json!([{"type": "message", "content": [{"type": "output_text", "text": "a"}]}]);
        json!({"id": "r", "status": "completed", "output": output, "usage": usage})
    };
    let event = |usage: &Value| {
        let response = response(usage);
        format!(
            "data: {}",
            json!({"type": "response.completed", "response": response})
        )
    };
    for usage in [
        json!({"input_tokens": 1000, "input_tokens_details": {"cached_tokens": 200},
            "output_tokens": 50, "total_tokens": 1050}),
        json!({"prompt_tokens": 1000, "prompt_tokens_details": {"cached_tokens": 200},
            "completion_tokens": 50, "total_tokens": 1050}),
        json!({"input_tokens": 1000.0, "input_tokens_details": {"cached_tokens": 200},
            "output_tokens": 40, "output_tokens_details": {"reasoning_tokens": 10}, "total_tokens": 1050}),
        json!({"input_tokens": 800, "cache_read_input_tokens": 200, "output_tokens": 50,
            "total_tokens": 1050}),
        json!({"input_tokens": 1000, "prompt_cache_hit_tokens": 200, "output_tokens": 50}),
    ] {
        let answers = [
            reply(200).sse(&[&format!("{}\n\n", event(&usage))]),
            // The last event has no blank line behind it.
            reply(200).sse(&[&event(&usage)]),
            reply(200).json(&response(&usage).to_string()),
        ];
        for answer in answers {
            let upstream = upstream::script([answer.clone(), answer]).run();
            let proxy = bridging(&upstream, "").run();
            let client = claude(&proxy, "sk-plain");
            let answer = client.post(MESSAGES, question(json!({"stream": false})));
            let message: Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!(
                told(
                    &message["usage"],
                    &["input_tokens", "cache_read_input_tokens", "output_tokens"]
                ),
                json!({"input_tokens": 800, "cache_read_input_tokens": 200, "output_tokens": 50}),
                "{usage}"
            );
            let chat = json!({"stream": false, "model": "gpt-5.5"});
            let answer = proxy.client("sk-plain").post(CHAT, question(chat));
            let completion: Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!(
                told(
                    &completion["usage"],
                    &["prompt_tokens", "completion_tokens", "total_tokens"]
                ),
                json!({"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050}),
                "{usage}"
            );
            for record in proxy.access_log(2) {
                assert_eq!(
                    told(
                        &record,
                        &["input_tokens", "cached_input_tokens", "output_tokens"]
                    ),
                    json!({"input_tokens": 1000, "cached_input_tokens": 200, "output_tokens": 50}),
                    "{usage}"
                );
            }
        }
    }
}

#[test]
fn an_error_that_is_coded_is_told_and_what_cannot_be_decoded_is_no_answer() {
    const JSON: &str = "application/json";
    let error = r#"{"error":{"code":"c","message":"zipped"}}"#;
    let stream = gzip(&[CREATED, TEXT].concat());
    let cases = [
        (coded(400, JSON, "gzip", &gzip(error)), 400, "zipped"),
        (coded(400, JSON, "compress", b"x"), 400, "upstream error"),
        (
            coded(200, JSON, "compress", b"\x1f\x9d"),
            502,
            "cannot be decoded",
        ),
        (coded(200, JSON, "br", b"{}"), 502, "cannot be decoded"),
        (
            coded(200, JSON, "gzip", &gzip("{}")[..15]),
            502,
            "cannot be decoded",
        ),
        (
            coded(200, "text/event-stream", "gzip", &stream[..20]),
            502,
            "cannot be decoded",
        ),
    ];
    for (reply, status, message) in cases {
        let upstream = upstream::script([reply]).run();
        let proxy = bridging(&upstream, "").run();
        let answer = claude(&proxy, "sk-fast").post(MESSAGES, question(json!({})));
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.text().contains(message), "{answer:?}");
        assert_eq!(proxy.record()["outcome"], "upstream_error");
    }
}

#[test]
fn a_byte_order_mark_before_a_request_is_taken_off_as_everywhere() {
    let upstream = streaming();
    let proxy = bridging(&upstream, "").run();
    for (path, key) in [(MESSAGES, "sk-fast"), (CHAT, "sk-plain")] {
        let body = [b"\xef\xbb\xbf".as_slice(), &question(json!({}))].concat();
        let answer = proxy.client(key).post(path, body);
        assert_eq!((answer.status, answer.whole), (200, true), "{answer:?}");
    }
    for request in upstream.requests(2) {
        assert_eq!(request.body[0], b'{');
    }
}

#[test]
fn what_speaks_of_the_clients_own_message_does_not_go_upstream() {
    const OWN: [&str; 8] = [
        "content-md5",
        "content-digest",
        "content-language",
        "digest",
        "range",
        "if-none-match",
        "priority",
        "prefer",
    ];
    let upstream = streaming();
    let proxy = bridging(&upstream, "").run();
    let client = claude(&proxy, "sk-fast").header("traceparent", "00-1-2-01");
    let client = OWN
        .iter()
        .fold(client, |client, name| client.header(name, "x"));
    let client = client.header("x-custom", "y");
    assert!(client.post(MESSAGES, question(json!({}))).whole);
    let request = upstream.request();
    for name in OWN {
        assert!(request.header(name).is_empty(), "{request:?}");
    }
    assert_eq!(request.header("x-custom"), ["y"]);
    assert_eq!(request.header("content-type"), ["application/json"]);
}

#[test]
fn a_success_of_another_kind_is_no_answer() {
    let replies = [206, 304].map(|status| match status {
        304 => Reply::default().send("HTTP/1.1 304 X\r\n\r\n"),
        _ => reply(status).sse(&[CREATED, TEXT, COMPLETED]),
    });
    let upstream = upstream::script(replies).run();
    let proxy = bridging(&upstream, "").run();
    for (number, path) in [MESSAGES, CHAT].into_iter().enumerate() {
        let answer = proxy.client("sk-fast").post(path, question(json!({})));
        assert_eq!((answer.status, answer.whole), (502, true), "{answer:?}");
        let record = proxy.access_log(number + 1).remove(number);
        assert_eq!(
            told(&record, &["status", "outcome", "error"]),
            json!({"status": 502, "outcome": "upstream_error", "error": "upstream_reset"})
        );
    }
}

#[test]
fn a_call_that_the_legacy_form_has_no_room_for_is_named_where_what_is_dropped_is() {
    let call = |index: u64| {
        let item = json!({"type": "function_call", "call_id": format!("c{index}"), "name": "f", "arguments": "{}"});
        let done =
            json!({"type": "response.output_item.done", "output_index": index, "item": item});
        format!("data: {done}\n\n")
    };
    let upstream = upstream::sse(&[CREATED, &call(0), &call(1), COMPLETED]).run();
    let proxy = bridging(&upstream, "").run();
    let functions = json!({"functions": [{"name": "f"}], "stream": false, "seed": 1});
    let answer = proxy.client("sk-fast").post(CHAT, question(functions));
    assert_eq!(
        answer.header("x-tiergate-bridge"),
        Some("chat>responses; dropped=seed,function_call.further"),
        "{answer:?}"
    );
    let record = proxy.record();
    assert_eq!(record["bridge_dropped"], "seed,function_call.further");
}

#[test]
fn an_address_that_cannot_be_reached_is_passed_over() {
    let upstream = upstream::sse(&[CREATED, TEXT, COMPLETED]).run_plain();
    let urls = [upstream::nobody().url(), upstream.url()];
    for _ in 0..2 {
        let proxy = proxy::new().upstream_at("main", &urls, BRIDGED).run();
        let answers: Vec<Answer> = (0..2)
            .map(|_| claude(&proxy, "sk-fast").post(MESSAGES, question(json!({}))))
            .collect();
        assert!(
            answers
                .iter()
                .all(|answer| answer.whole && answer.status == 200)
        );
    }
    let lost = proxy::new()
        .upstream_with("main", &upstream::nobody(), BRIDGED)
        .run();
    let answer = claude(&lost, "sk-fast").post(MESSAGES, question(json!({})));
    assert_eq!(answer.status, 502, "{answer:?}");
    assert_eq!(lost.record()["error"], "upstream_unreachable");
}

#[test]
fn connections_are_used_again_and_a_dead_one_is_passed_over() {
    let stream = [CREATED, TEXT, COMPLETED];
    let upstream = upstream::script([
        reply(200).sse(&stream),
        reply(200).sse(&stream),
        // The third request finds its connection closed.
        Reply::default().close(),
        reply(200).sse(&stream),
    ])
    .run();
    let proxy = bridging(&upstream, "").run();
    let client = claude(&proxy, "sk-fast");
    let mut connection = client.connect();
    for _ in 0..3 {
        connection.send(client.message(MESSAGES, &question(json!({}))));
        let answer = connection.answer();
        assert!(answer.whole && answer.status == 200, "{answer:?}");
        // The end of the upstream's message is read behind the client's.
        std::thread::sleep(MOMENT);
    }
    let received = upstream.requests(4);
    let connections: Vec<usize> = received.iter().map(|request| request.connection).collect();
    assert_eq!(connections, [0, 0, 0, 1]);
    proxy.access_log(3);
}

#[test]
fn an_upstream_of_http2_gets_and_gives_the_same() {
    let upstream = h2::upstream(h2::Reply::Paused(
        format!("{CREATED}{TEXT}"),
        Duration::from_millis(50),
        COMPLETED.to_owned(),
    ));
    let proxy = bridging(&upstream, "").run();
    for _ in 0..2 {
        let answer = claude(&proxy, "sk-fast").post(MESSAGES, question(json!({})));
        assert!(
            answer.whole && answer.text().contains("message_stop"),
            "{answer:?}"
        );
    }
    let received = upstream.received();
    assert_eq!(received.len(), 2);
    for request in &received {
        assert_eq!(request.connection, 0);
        assert!(request.head.contains("/v1/responses HTTP/2"), "{request:?}");
        assert_eq!(
            request.header("content-length"),
            [request.body.len().to_string()]
        );
        assert!(request.text().starts_with("{\"service_tier\":\"priority\""));
    }
    for record in proxy.access_log(2) {
        assert_eq!(record["usage_state"], "final");
    }
}

#[test]
fn a_stream_of_http2_that_is_reset_is_cut_for_the_client() {
    let upstream = h2::upstream(h2::Reply::Cut(format!("{CREATED}{TEXT}")));
    let proxy = bridging(&upstream, "").tls().run();
    let headers = [("authorization", "Bearer sk-fast")];
    let body = question(json!({}));
    let answer = h2::post(
        proxy.tls_address,
        &headers,
        MESSAGES,
        &body,
        Framing::Length,
    );
    assert!(
        !answer.whole && answer.text().contains("event: error"),
        "{answer:?}"
    );
    assert_eq!(proxy.record()["outcome"], "upstream_cut");
}

#[test]
fn a_client_of_http2_that_leaves_ends_the_request_at_the_upstream() {
    let upstream = upstream::script([reply(200).sse_begun(&[CREATED, TEXT])]).run();
    let proxy = bridging(&upstream, "").tls().run();
    let headers = [("authorization", "Bearer sk-fast")];
    let body = question(json!({}));
    for (number, how) in [h2::Leaving::Stream, h2::Leaving::Connection]
        .into_iter()
        .enumerate()
    {
        h2::leave(proxy.tls_address, &headers, MESSAGES, &body, how);
        let record = proxy.access_log(number + 1).remove(number);
        assert_eq!(record["outcome"], "client_closed");
        upstream.await_ended(number + 1);
    }
}

#[test]
fn token_counts_come_from_the_upstream_or_not_at_all() {
    let upstream = upstream::json(r#"{"input_tokens":42}"#).run();
    let proxy = bridging(&upstream, "").run();
    let answer = claude(&proxy, "sk-fast").post(COUNT, question(json!({})));
    assert_eq!(answer.json(), json!({"input_tokens": 42}));
    let request = upstream.request();
    assert_eq!(
        request.request_line(),
        "POST /v1/responses/input_tokens HTTP/1.1"
    );
    assert!(!request.text().contains("service_tier") && !request.text().contains("stream"));
    let record = proxy.record();
    assert_eq!(record["bridge"], "messages>responses");
    assert_eq!(record["service_tier"], Value::Null);

    let codex = bridging(&upstream, "kind: codex").run();
    let answer = claude(&codex, "sk-fast").post(COUNT, question(json!({})));
    assert_eq!(answer.status, 404);
    let lost = bridging(&upstream::nobody(), "").run();
    let answer = claude(&lost, "sk-fast").post(COUNT, question(json!({})));
    assert_eq!(answer.status, 404);
}

/// A proxy that answers for the models of its map.
fn listing(upstream: &Upstream, list_models: bool) -> Proxy {
    let models = "[{match: claude-opus-5-5, model: gpt-5.5}, {match: 'claude-*', model: gpt-5.5}, \
        {match: gpt-5.5}, {match: 'o4*'}]";
    let settings =
        format!("messages: responses, models: {models}, bridge: {{list_models: {list_models}}}");
    proxy::new()
        .upstream_with("main", upstream, &settings)
        .run()
}

#[test]
fn a_list_of_models_has_the_names_of_the_map_in_the_shape_of_the_clients_api() {
    let upstream = upstream::json("{}").run();
    let proxy = listing(&upstream, true);
    let answer = proxy.client("sk-fast").get("/v1/models");
    let model = |name| json!({"id": name, "object": "model", "created": 0, "owned_by": "tiergate"});
    assert_eq!(
        answer.json(),
        json!({"object": "list", "data": [model("claude-opus-5-5"), model("gpt-5.5")]})
    );
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("x-tiergate-bridge"), None);

    let claude = claude(&proxy, "sk-fast");
    let model = |name| json!({"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z"});
    let page = claude.get("/v1/models?limit=1");
    assert_eq!(
        page.json(),
        json!({"data": [model("claude-opus-5-5")], "has_more": true,
            "first_id": "claude-opus-5-5", "last_id": "claude-opus-5-5"})
    );
    let next = claude.get("/v1/models?limit=1&after_id=claude-opus-5-5");
    assert_eq!(
        next.json(),
        json!({"data": [model("gpt-5.5")], "has_more": false, "first_id": "gpt-5.5", "last_id": "gpt-5.5"})
    );
    // By a pattern, and with the suffix that clients append.
    let single = claude.get("/v1/models/claude-haiku-5-5%5B1m%5D");
    assert_eq!(single.json(), model("claude-haiku-5-5[1m]"));
    for record in proxy.access_log(4) {
        assert_eq!(
            told(
                &record,
                &[
                    "endpoint", "outcome", "status", "upstream", "bridge", "key", "error"
                ]
            ),
            json!({"endpoint": "other", "outcome": "ok", "status": 200, "upstream": null,
                "bridge": null, "key": "fiona", "error": null})
        );
    }
    upstream.assert_untouched();
}

#[test]
fn a_model_that_is_not_mapped_and_a_page_that_there_is_not_are_refused_in_the_clients_words() {
    let upstream = upstream::json("{}").run();
    let proxy = listing(&upstream, true);
    let claude = claude(&proxy, "sk-plain");
    let unknown = claude.get("/v1/models/gemini");
    assert_eq!(
        (unknown.status, &unknown.json()["type"]),
        (404, &json!("error"))
    );
    assert_eq!(unknown.json()["error"]["type"], "not_found_error");
    assert_eq!(claude.get("/v1/models?limit=0").status, 400);
    let unknown = proxy.client("sk-plain").get("/v1/models/gemini");
    assert_eq!(unknown.openai_code(), "model_not_mapped");
    let records = proxy.access_log(3);
    let errors = records.iter().map(|record| &record["error"]);
    assert_eq!(
        errors.collect::<Vec<_>>(),
        [
            "model_not_mapped",
            "unsupported_by_bridge",
            "model_not_mapped"
        ]
    );
    assert_eq!(proxy.client("sk-nobody").get("/v1/models").status, 401);
    upstream.assert_untouched();
}

#[test]
fn models_are_the_upstreams_where_the_map_does_not_answer_for_them() {
    let upstream = upstream::json("{}").run();
    let proxy = listing(&upstream, false);
    assert_eq!(proxy.client("sk-fast").get("/v1/models").text(), "{}");
    let proxy = listing(&upstream, true);
    for path in ["/v1/models-of-mine", "/v2/models"] {
        assert_eq!(proxy.client("sk-fast").get(path).text(), "{}", "{path}");
    }
    let posted = proxy.client("sk-fast").post("/v1/models", "{}");
    assert_eq!(posted.text(), "{}");
}

#[test]
fn an_endpoint_that_is_not_converted_is_relayed_as_ever() {
    let upstream = upstream::json("{}").run();
    let settings = "chat_completions: responses, models: [{match: '*'}]";
    let proxy = proxy::new()
        .upstream_with("main", &upstream, settings)
        .run();
    assert_eq!(proxy.client("sk-plain").post(MESSAGES, "{}").status, 200);
    let request = upstream.request();
    assert_eq!(
        request.request_line(),
        "POST /v1/messages?beta=true HTTP/1.1"
    );
    assert_eq!(request.text(), "{}");
    assert_eq!(proxy.record()["bridge"], Value::Null);
}

const REFUSING: &str = "\
version: 1
groups:
  fast: {platform: openai, force_tier: priority, on_tier_refused: retry_without, except_models: [claude-haiku*]}
keys:
  sk-fast: {group: fast, name: fiona}
";

#[test]
fn a_tier_that_is_refused_is_left_out_where_the_group_says_so() {
    let refusal = r#"{"error":{"code":"x","param":"service_tier","message":"no"}}"#;
    let upstream = upstream::script([
        reply(400).json(refusal),
        reply(200).sse(&[CREATED, TEXT, COMPLETED]),
    ])
    .run();
    let proxy = bridging(&upstream, "").policy(REFUSING).run();
    let answer = claude(&proxy, "sk-fast").post(MESSAGES, question(json!({})));
    assert!(answer.whole && answer.status == 200, "{answer:?}");
    let sent = upstream.requests(2);
    assert!(sent[0].text().contains("service_tier"), "{sent:?}");
    assert!(!sent[1].text().contains("service_tier"), "{sent:?}");
    let record = proxy.record();
    assert_eq!(record["tier_refused"], true);
    assert_eq!(record["service_tier"], Value::Null);
    assert_eq!(record["usage_state"], "final");
}

#[test]
fn a_model_that_is_exempt_is_told_by_the_clients_name() {
    let upstream = streaming();
    let proxy = bridging(&upstream, "").policy(REFUSING).run();
    let haiku = question(json!({"model": "claude-haiku-5-5"}));
    assert!(claude(&proxy, "sk-fast").post(MESSAGES, haiku).whole);
    assert!(!upstream.request().text().contains("service_tier"));
    let record = proxy.record();
    assert_eq!(record["tier_reason"], "model_exempt");
    assert_eq!(record["service_tier"], Value::Null);
}

#[test]
fn a_bridged_body_takes_its_part_of_the_memory_for_bodies_and_gives_it_back() {
    let upstream = streaming();
    let proxy = bridging(&upstream, "")
        .setting("limits: {body: 1MiB, buffered: 300KiB}")
        .run();
    let client = claude(&proxy, "sk-fast");
    let text = "x".repeat(200 * 1024);
    let large = question(json!({"messages": [{"role": "user", "content": text}]}));
    let answer = client.post(MESSAGES, large);
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(proxy.metric("tiergate_buffered_bytes"), 0.0);
    assert!(client.post(MESSAGES, question(json!({}))).whole);
    assert_eq!(proxy.access_log(2)[0]["error"], "buffer_full");
}

#[test]
fn an_answer_that_is_put_together_takes_its_part_of_the_memory_for_bodies_and_gives_it_back() {
    let delta = |length: usize| TEXT.replace("hello", &"x".repeat(length));
    let begun = |length: usize| reply(200).sse_begun(&[CREATED, &delta(length)]);
    let upstream = upstream::script([
        begun(200 * 1024).hold().chunk(COMPLETED).send("0\r\n\r\n"),
        begun(400 * 1024),
        begun(100 * 1024).chunk(COMPLETED).send("0\r\n\r\n"),
    ])
    .run();
    let proxy = bridging(&upstream, "")
        .setting("limits: {body: 100KiB, decoded_body: 1MiB, buffered: 300KiB}")
        .run();
    let body = question(json!({"stream": false}));
    std::thread::scope(|scope| {
        let asks = || claude(&proxy, "sk-fast").post(MESSAGES, &body);
        let first = scope.spawn(asks);
        eventually("the answer so far", || {
            let held = proxy.metric("tiergate_buffered_bytes");
            (held >= 200.0 * 1024.0).then_some(())
        });
        upstream.release();
        assert_eq!(first.join().unwrap().status, 200);
        let refused = asks();
        assert_eq!(refused.status, 503, "{refused:?}");
        assert_eq!(asks().status, 200);
    });
    eventually("the memory back", || {
        (proxy.metric("tiergate_buffered_bytes") == 0.0).then_some(())
    });
    let records = proxy.access_log(3);
    let errors = records.iter().map(|record| &record["error"]);
    let expected = [&Value::Null, &json!("buffer_full"), &Value::Null];
    assert_eq!(errors.collect::<Vec<_>>(), expected);
}

const NO_TIER: &str = "\
version: 1
groups:
  none: {platform: openai, force_tier: none, on_tier_refused: retry_without}
  fast: {platform: openai, force_tier: priority, on_tier_refused: retry_without}
keys:
  sk-none: {group: none, name: nora}
  sk-fast: {group: fast, name: fiona}
";

#[test]
fn what_is_converted_of_a_body_that_is_nested_to_the_limit_may_be_deeper_whatever_is_done_to_its_tier()
 {
    let refusal = r#"{"error":{"code":"x","param":"service_tier","message":"no"}}"#;
    for (key, refused) in [("sk-none", 0), ("sk-fast", 0), ("sk-fast", 1)] {
        let replies = std::iter::repeat_n(reply(400).json(refusal), refused);
        let answer = reply(200).sse(&[CREATED, TEXT, COMPLETED]);
        let upstream = upstream::script(replies.chain([answer])).run();
        let proxy = bridging(&upstream, "")
            .policy(NO_TIER)
            .setting("limits: {json_depth: 3}")
            .run();
        let answer = claude(&proxy, key).post(MESSAGES, question(json!({})));
        assert!(answer.whole && answer.status == 200, "{key} {answer:?}");
        assert_eq!(proxy.record()["outcome"], "ok");
        assert_eq!(proxy.metric("tiergate_unforced_forwarded_total"), 0.0);
        let deeper = question(json!({"metadata": {"a": [[]]}}));
        let answer = claude(&proxy, key).post(MESSAGES, deeper);
        assert_eq!(answer.status, 400);
        assert_eq!(proxy.access_log(2)[1]["error"], "json_too_deep");
    }
}
