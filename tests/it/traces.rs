//! Spans for a collector of OpenTelemetry, which is a scripted server here, and the headers by which clients, the proxy and
//! upstreams are parts of one trace.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::proxy::{self, Builder, Proxy, Target};
use crate::support::upstream::{self, Upstream, nobody, reply};
use crate::support::websocket::frame;

const PATH: &str = "/v1/responses";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const ANSWER: &str = r#"{"id":"resp_1","object":"response","status":"completed","model":"m-2026","service_tier":"priority","usage":{"input_tokens":11,"output_tokens":7,"total_tokens":18}}"#;
const TEXT: u8 = 0x81;

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{CALLER}-{flags}")
}

fn collector() -> Upstream {
    upstream::json("{}").run_plain()
}

fn traced(upstream: &Upstream, collector: &impl Target, more: &str) -> Builder {
    let endpoint = format!("{}/v1/traces", collector.url());
    proxy::new()
        .upstream(upstream)
        .setting(&format!("traces: {{endpoint: \"{endpoint}\"{more}}}"))
}

/// All spans that the collector was sent, once there are so many.
fn spans(collector: &Upstream, count: usize) -> Vec<Value> {
    let all = || {
        let requests = collector.received().into_iter();
        let spans = requests.flat_map(|request| {
            assert_eq!(request.request_line(), "POST /v1/traces HTTP/1.1");
            assert_eq!(request.header("content-type"), ["application/json"]);
            let body: Value = serde_json::from_str(request.text()).unwrap();
            let resource = &body["resourceSpans"][0];
            let name = &attributes(&resource["resource"])["service.name"];
            assert_eq!(name, "tiergate");
            let spans = resource["scopeSpans"][0]["spans"].as_array();
            spans.unwrap().clone()
        });
        spans.collect::<Vec<Value>>()
    };
    let spans = eventually("spans", || Some(all()).filter(|all| all.len() >= count));
    assert_eq!(spans.len(), count, "{spans:#?}");
    spans
}

fn attributes(of: &Value) -> BTreeMap<String, Value> {
    let list = of["attributes"].as_array().unwrap().iter();
    let pairs = list.map(|attribute| {
        let values = attribute["value"].as_object().unwrap();
        assert_eq!(values.len(), 1);
        let value = values.values().next().unwrap().clone();
        (attribute["key"].as_str().unwrap().to_owned(), value)
    });
    pairs.collect()
}

/// The request's id in the log, without hyphens: the ids of its trace and of its span are made of it.
fn request_id(record: &str) -> String {
    let record: Value = serde_json::from_str(record).unwrap();
    record["request_id"].as_str().unwrap().replace('-', "")
}

#[test]
fn a_request_is_a_span_between_those_of_its_client_and_its_upstream() {
    let (upstream, collector) = (upstream::json(ANSWER).run(), collector());
    let proxy = traced(&upstream, &collector, "").run();
    let client = proxy
        .client("sk-fast")
        .header("Traceparent", &traceparent("01"))
        .header("Tracestate", "a=1,b=2");
    assert_eq!(client.post(PATH, r#"{"model":"m"}"#).status, 200);
    let span = spans(&collector, 1).remove(0);
    let id = &request_id(&proxy.access_log_lines(1)[0])[16..];
    let request = upstream.request();
    assert_eq!(
        request.header("traceparent"),
        [format!("00-{TRACE}-{id}-01")]
    );
    assert_eq!(request.header("tracestate"), ["a=1,b=2"]);
    assert_eq!(
        json!([span["traceId"], span["spanId"], span["parentSpanId"]]),
        json!([TRACE, id, CALLER])
    );
    assert_eq!(
        json!([span["name"], span["kind"], span["status"]]),
        json!(["chat m", 3, {}])
    );
    let nanos = |name: &str| span[name].as_str().unwrap().parse::<u64>().unwrap();
    let took = nanos("endTimeUnixNano") - nanos("startTimeUnixNano");
    assert!(took > 0 && took < 15_000_000_000);
    let told = attributes(&span);
    for (name, value) in [
        ("gen_ai.operation.name", json!("chat")),
        ("gen_ai.provider.name", json!("openai")),
        ("gen_ai.request.model", json!("m")),
        ("gen_ai.response.model", json!("m-2026")),
        ("gen_ai.response.id", json!("resp_1")),
        ("gen_ai.usage.input_tokens", json!("11")),
        ("gen_ai.usage.output_tokens", json!("7")),
        ("openai.request.service_tier", json!("priority")),
        ("openai.response.service_tier", json!("priority")),
        ("http.response.status_code", json!("200")),
        ("tiergate.group", json!("fast")),
        ("tiergate.key", json!("fiona")),
        ("tiergate.downgraded", json!(false)),
        ("tiergate.outcome", json!("ok")),
    ] {
        assert_eq!(told.get(name), Some(&value), "{name}: {told:#?}");
    }
    assert!(!told.contains_key("error.type"));
    assert!(!span.to_string().contains("sk-fast"));
    eventually("a count of what was sent", || {
        let sent = proxy.metric_of("tiergate_trace_spans_total", "exported");
        (sent == 1.0).then_some(())
    });
}

#[test]
fn a_trace_begins_here_where_the_client_names_none_that_can_be_read() {
    let (upstream, collector) = (upstream::json(ANSWER).run(), collector());
    let proxy = traced(&upstream, &collector, "").run();
    let client = proxy.client("sk-plain");
    let unreadable = client
        .clone()
        .header("Traceparent", "00-0-0-01")
        .header("Tracestate", "a=1");
    let twice = client
        .clone()
        .header("Traceparent", &traceparent("01"))
        .header("Traceparent", &traceparent("01"));
    for (at, client) in [client, unreadable, twice].iter().enumerate() {
        assert_eq!(client.post(PATH, "{}").status, 200);
        let id = request_id(&proxy.access_log_lines(at + 1)[at]);
        let request = upstream.requests(at + 1).remove(at);
        let expected = format!("00-{id}-{}-01", &id[16..]);
        assert_eq!(request.header("traceparent"), [expected]);
        assert_eq!(request.header("tracestate"), [""; 0]);
    }
    for span in spans(&collector, 3) {
        assert_eq!(span["parentSpanId"], Value::Null);
    }
}

#[test]
fn what_is_not_recorded_is_passed_on_and_not_sent() {
    let (upstream, collector) = (upstream::json(ANSWER).run(), collector());
    let proxy = traced(&upstream, &collector, ", sample_ratio: 0").run();
    let client = proxy.client("sk-plain");
    let unrecorded = client.clone().header("Traceparent", &traceparent("00"));
    let recorded = client.clone().header("Traceparent", &traceparent("01"));
    for client in [&client, &unrecorded, &recorded] {
        assert_eq!(client.post(PATH, "{}").status, 200);
    }
    let flags = |request: &upstream::Received| request.header("traceparent")[0][53..].to_owned();
    let flags: Vec<String> = upstream.requests(3).iter().map(flags).collect();
    assert_eq!(flags, ["00", "00", "01"]);
    let span = spans(&collector, 1).remove(0);
    assert_eq!(span["traceId"], TRACE);
}

#[test]
fn without_the_setting_headers_of_traces_pass_as_they_are() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy
        .client("sk-fast")
        .header("Traceparent", "what is this?")
        .header("Tracestate", "a=1");
    assert_eq!(client.post(PATH, "{}").status, 200);
    assert_eq!(proxy.client("sk-fast").post(PATH, "{}").status, 200);
    let requests = upstream.requests(2);
    assert_eq!(requests[0].header("traceparent"), ["what is this?"]);
    assert_eq!(requests[0].header("tracestate"), ["a=1"]);
    assert_eq!(requests[1].header("traceparent"), [""; 0]);
}

#[test]
fn a_span_of_a_request_that_failed_says_why() {
    let failing = reply(500).json(r#"{"error":{"message":"x","type":"server_error"}}"#);
    let (upstream, collector) = (upstream::script([failing]).run(), collector());
    let proxy = traced(&upstream, &collector, "").run();
    let client = proxy.client("sk-plain");
    assert_eq!(client.post(PATH, "{}").status, 500);
    assert_eq!(proxy.client("sk-unknown").post(PATH, "{}").status, 401);
    assert_eq!(client.get("/v1/models").status, 500);
    let told: Vec<Value> = spans(&collector, 3)
        .iter()
        .map(|span| {
            json!([
                span["name"],
                span["status"]["code"],
                attributes(span)["error.type"]
            ])
        })
        .collect();
    assert_eq!(
        told,
        [
            json!(["chat", 2, "server_error"]),
            json!(["chat", 2, "invalid_api_key"]),
            json!(["GET other", 2, "upstream_error"]),
        ]
    );
}

#[test]
fn a_turn_of_a_websocket_is_a_span_within_that_of_its_connection() {
    let event = r#"{"type":"response.completed","response":{}}"#;
    let upstream = upstream::script([upstream::websocket(event)]).run();
    let collector = collector();
    let proxy = traced(&upstream, &collector, "").run();
    let upgrade = proxy
        .client("sk-fast")
        .header("Traceparent", &traceparent("01"))
        .upgrade();
    let mut connection = upgrade.connect();
    connection.send(upgrade.head("GET", PATH));
    assert_eq!(connection.head().unwrap().status, 101);
    let create = br#"{"type":"response.create","model":"m"}"#;
    connection.send(frame(TEXT, create, Some([1; 4])));
    let mut seen = [0; 2];
    connection.read(&mut seen);
    drop(connection);
    let [turn, whole] = &spans(&collector, 2)[..] else {
        panic!("two spans");
    };
    assert_eq!(
        json!([turn["name"], whole["name"]]),
        json!(["chat m", "GET responses"])
    );
    assert_eq!(
        json!([turn["traceId"], turn["parentSpanId"], whole["parentSpanId"]]),
        json!([TRACE, whole["spanId"], CALLER])
    );
    let told = attributes(turn);
    assert_eq!(told["openai.request.service_tier"], "priority");
    assert_eq!(told["tiergate.turn"], "1");
}

#[test]
fn a_converted_request_is_in_the_trace_as_well() {
    let event = "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"resp_1\",\"status\":\"completed\",\"model\":\"m\",\"output\":[],\"usage\":{\"input_tokens\":1,\"output_tokens\":2,\"total_tokens\":3}}}\n\n";
    let (upstream, collector) = (upstream::sse(&[event]).run(), collector());
    let endpoint = format!("{}/v1/traces", collector.url());
    let models = "messages: responses, models: [{match: 'claude-*', model: m}]";
    let proxy = proxy::new()
        .upstream_with("main", &upstream, models)
        .setting(&format!("traces: {{endpoint: \"{endpoint}\"}}"))
        .run();
    let client = proxy
        .client("sk-fast")
        .header("Traceparent", &traceparent("01"));
    let body = r#"{"model":"claude-x","max_tokens":9,"messages":[{"role":"user","content":"a"}]}"#;
    client.post("/v1/messages", body);
    let span = spans(&collector, 1).remove(0);
    let id = span["spanId"].as_str().unwrap();
    let expected = format!("00-{TRACE}-{id}-01");
    assert_eq!(upstream.request().header("traceparent"), [expected]);
    let told = attributes(&span);
    assert_eq!(span["name"], "chat claude-x");
    assert_eq!(told["tiergate.bridge"], "messages>responses");
    assert_eq!(told["openai.request.service_tier"], "priority");
}

fn dropped(proxy: &Proxy) -> f64 {
    proxy.metric_of("tiergate_trace_spans_total", "dropped")
}

#[test]
fn a_collector_that_is_not_there_delays_and_fails_nothing() {
    let upstream = upstream::json(ANSWER).run();
    let dead = nobody();
    let proxy = traced(&upstream, &dead, "").run();
    let client = proxy.client("sk-fast");
    for count in 1..=2 {
        assert_eq!(client.post(PATH, "{}").status, 200);
        eventually("a dropped span", || {
            (dropped(&proxy) == f64::from(count)).then_some(())
        });
    }
    let told = proxy.stderr();
    let told: Vec<&str> = told.lines().filter(|line| line.contains("spans")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains(
        "spans are dropped: the collector of `traces` does not take them: connection refused"
    ));
    let collector = upstream::json("{}").run_at(dead);
    assert_eq!(client.post(PATH, "{}").status, 200);
    spans(&collector, 1);
    proxy.await_stderr("the collector of `traces` takes spans again");
}

#[test]
fn a_collector_that_refuses_is_told_by_its_status() {
    let upstream = upstream::json(ANSWER).run();
    let collector = upstream::script([reply(401).json("{}")]).run_plain();
    let proxy = traced(&upstream, &collector, "").run();
    assert_eq!(proxy.client("sk-fast").post(PATH, "{}").status, 200);
    proxy.await_stderr("does not take them: answer 401");
    assert_eq!(dropped(&proxy), 1.0);
}

#[test]
fn what_waits_is_sent_when_the_process_ends() {
    let (upstream, collector) = (upstream::json(ANSWER).run(), collector());
    let proxy = traced(&upstream, &collector, "").run();
    assert_eq!(proxy.client("sk-fast").post(PATH, "{}").status, 200);
    proxy.stop();
    spans(&collector, 1);
}

#[test]
fn a_collector_that_says_nothing_is_not_waited_for_at_the_end() {
    let upstream = upstream::json(ANSWER).run();
    let collector = upstream::script([upstream::silence()]).run_plain();
    let proxy = traced(&upstream, &collector, "").run();
    assert_eq!(proxy.client("sk-fast").post(PATH, "{}").status, 200);
    collector.await_heads(1);
    let begun = Instant::now();
    proxy.stop();
    assert!(begun.elapsed() < Duration::from_secs(8));
    collector.release();
}

#[test]
fn a_collector_may_ask_for_headers_and_be_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream::json(ANSWER).run();
    let collector = upstream::json("{}").run_unix(&folder.path().join("collector"));
    let endpoint = collector.url();
    let proxy = proxy::new()
        .upstream(&upstream)
        .file(
            "collector.headers",
            "# for the collector\nx-team: secret-1\n",
        )
        .setting(&format!(
            "traces: {{endpoint: \"{endpoint}\", headers_file: collector.headers}}"
        ))
        .run();
    assert_eq!(proxy.client("sk-fast").post(PATH, "{}").status, 200);
    spans(&collector, 1);
    let request = collector.request();
    assert_eq!(request.header("x-team"), ["secret-1"]);
    assert_eq!(request.header("host"), ["localhost"]);
    assert_eq!(request.header("authorization"), [""; 0]);
    assert!(!proxy.stderr().contains("secret-1"));
}
