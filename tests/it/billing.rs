//! What a line says of who is billed, for what, and by which prices: each kind of answer that people were billed wrongly
//! for, over real sockets.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tiergate::accounting::access_log::line::{FIELDS, OTEL_FIELDS};

use crate::support::command::{self, stdout};
use crate::support::proxy::{self, Proxy};
use crate::support::record::assert_told;
use crate::support::upstream::{self, Reply, reply};
use crate::support::{eventually, stored_create};

const PRICES: &str = "\
version: 1
prices:
  - models: ['big*']
    tiers:
      default: {input: 5, cached_input: 0.5, cache_write: 6, output: 30}
      priority: {input: 12.5, cached_input: 1.25, output: 75}
  - models: ['small*']
    tiers:
      default: {input: 1.75, cached_input: 0.175, output: 14}
      priority: {input: 3.5, cached_input: 0.35, output: 28}
";
const USAGE: &str = r#""usage":{"input_tokens":1000,"input_tokens_details":{"cached_tokens":200},"output_tokens":50}"#;

fn made(model: &str, tier: &str) -> String {
    format!(
        r#"{{"id":"resp_1","model":"{model}","status":"completed","service_tier":"{tier}",{USAGE}}}"#
    )
}

/// The line of a forced request for `big`, answered by this.
fn billed(answer: Reply, settings: &str) -> Value {
    let upstream = upstream::script([answer]).run();
    let proxy = proxy::new()
        .upstream_with("main", &upstream, settings)
        .prices(PRICES)
        .run();
    let client = proxy.client("sk-fast");
    client.post("/v1/responses", r#"{"model":"big"}"#);
    proxy.record()
}

#[test]
fn a_line_holds_its_fields_in_their_order_in_both_formats() {
    for (format, fields) in [("json", FIELDS), ("otel", OTEL_FIELDS)] {
        let upstream = upstream::json(&made("big", "priority")).run();
        let proxy = proxy::new().upstream(&upstream).log_format(format).run();
        proxy.client("sk-fast").post("/v1/responses", "{}");
        let line = &proxy.access_log_lines(1)[0];
        let record: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
        let names: Vec<&str> = record.keys().map(String::as_str).collect();
        assert_eq!(names, fields, "{format}");
    }
}

#[test]
fn a_stream_without_a_content_type_is_billed_as_one() {
    let event = format!(
        "event: response.completed\ndata: {{\"type\":\"response.completed\",\"response\":{}}}\n\n",
        made("big", "priority")
    );
    let answer = Reply::default().send(format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{event}\r\n0\r\n\r\n",
        event.len()
    ));
    let told = json!({
        "transport": "sse", "outcome": "ok", "usage_state": "final",
        "terminal_event": "response.completed", "input_tokens": 1000, "cost_usd": "0.014",
    });
    assert_told(&billed(answer, ""), &told);
}

#[test]
fn the_model_that_served_is_told_and_priced_where_the_upstream_is_trusted() {
    let answer = || reply(200).json(&made("small-2026-04-24", "priority"));
    let told = json!({"model": "big", "model_served": "small-2026-04-24", "cost_usd": "0.00427"});
    assert_told(&billed(answer(), ""), &told);
    let told = json!({"model": "big", "model_served": "small-2026-04-24", "cost_usd": "0.014"});
    assert_told(&billed(answer(), "served_tier: ignored"), &told);
    let nameless = reply(200).json(&format!(r#"{{"service_tier":"priority",{USAGE}}}"#));
    let told = json!({"model": "big", "model_served": null, "cost_usd": "0.014"});
    assert_told(&billed(nameless, ""), &told);
}

/// It is not known which of them is served.
#[test]
fn a_request_that_may_ask_for_several_models_has_no_cost_where_the_upstreams_word_does_not_count() {
    let cases = [
        (r#"{"model":"small","model":"big"}"#, json!(null)),
        (r#"{"Model":"small","model":"big"}"#, json!(null)),
        (r#"{"model":"big","fallbacks":["small"]}"#, json!(null)),
        (r#"{"model":"big","x":{"model":"small"}}"#, json!("0.014")),
    ];
    let answers = || {
        cases
            .each_ref()
            .map(|_| reply(200).json(&made("big", "priority")))
    };
    for (settings, is_trusted) in [("served_tier: ignored", false), ("", true)] {
        let upstream = upstream::script(answers()).run();
        let proxy = proxy::new()
            .upstream_with("main", &upstream, settings)
            .prices(PRICES)
            .run();
        for (at, (body, cost)) in cases.iter().enumerate() {
            proxy.client("sk-fast").post("/v1/responses", body);
            let expected = if is_trusted { &json!("0.014") } else { cost };
            assert_eq!(
                &proxy.access_log(at + 1)[at]["cost_usd"],
                expected,
                "{body}"
            );
        }
    }
}

#[test]
fn a_line_names_the_prices_it_was_priced_by() {
    let revision = format!("sha256:{}", hex::encode(&Sha256::digest(PRICES)[..6]));
    let record = billed(reply(200).json(&made("big", "priority")), "");
    assert_told(&record, &json!({"prices": revision}));
}

#[test]
fn a_tier_has_the_price_of_its_own_name_where_there_is_one() {
    let prices = "\
version: 1
prices:
  - models: [both]
    tiers: {default: {input: 1, output: 1}, priority: {input: 2, output: 2}, fast: {input: 6, output: 6}}
  - models: [fast]
    tiers: {default: {input: 1, output: 1}, fast: {input: 6, output: 6}}
  - models: [priority]
    tiers: {default: {input: 1, output: 1}, priority: {input: 2, output: 2}}
";
    for (model, cost) in [("both", "0.006"), ("fast", "0.006"), ("priority", "0.002")] {
        let usage = r#""usage":{"input_tokens":1000,"output_tokens":0}"#;
        let answer = format!(r#"{{"id":"r","model":"{model}","service_tier":"fast",{usage}}}"#);
        let upstream = upstream::json(&answer).run();
        let proxy = proxy::new().upstream(&upstream).prices(prices).run();
        proxy.client("sk-fast").post("/v1/responses", "{}");
        let told = json!({"service_tier_billed": "priority", "cost_usd": cost});
        assert_told(&proxy.record(), &told);
        let arguments = [
            "report",
            "--prices",
            "prices.yaml",
            "--format",
            "csv",
            "access.log",
        ];
        let report = stdout(&command::run(proxy.path(""), &arguments));
        assert!(report.contains(cost), "{report}");
    }
}

#[test]
fn text_and_audio_together_have_no_price() {
    let usage = r#""usage":{"prompt_tokens":100,"prompt_tokens_details":{"audio_tokens":30},"completion_tokens":9}"#;
    let answer = format!(r#"{{"id":"c","model":"big","choices":[],{usage}}}"#);
    let upstream = upstream::json(&answer).run();
    let proxy = proxy::new().upstream(&upstream).prices(PRICES).run();
    proxy.client("sk-plain").post("/v1/chat/completions", "{}");
    let told = json!({"usage_state": "final", "input_tokens": 100, "cost_usd": null});
    assert_told(&proxy.record(), &told);
    assert_eq!(proxy.metric("tiergate_unpriced_total"), 1.0);
}

#[test]
fn an_echo_of_auto_does_not_decide_what_is_billed() {
    let told = json!({
        "service_tier_served": null, "service_tier_billed": "priority", "tier_billed_by": "sent",
        "downgraded": false, "cost_usd": "0.014",
    });
    assert_told(&billed(reply(200).json(&made("big", "auto")), ""), &told);
}

#[test]
fn a_refusal_of_the_tier_is_told_and_counted() {
    let error = r#"{"error":{"message":"no","type":"invalid_request_error","param":"service_tier","code":"unsupported_value"}}"#;
    let upstream = upstream::script([reply(400).json(error)]).run();
    let proxy = proxy::new().upstream(&upstream).run();
    proxy.client("sk-fast").post("/v1/responses", "{}");
    let told = json!({"tier_refused": true, "upstream_error": "unsupported_value", "status": 400});
    assert_told(&proxy.record(), &told);
    assert_eq!(proxy.metric("tiergate_tier_refused_total"), 1.0);
}

#[test]
fn another_error_is_told_and_is_no_refusal_of_the_tier() {
    let error = r#"{"error":{"message":"slow down","type":"rate_limit_error","code":null}}"#;
    let record = billed(reply(429).json(error), "");
    let told = json!({"tier_refused": false, "upstream_error": "rate_limit_error"});
    assert_told(&record, &told);
}

#[test]
fn a_good_answer_has_no_error_though_relays_add_an_empty_one() {
    let answer =
        made("big", "priority").replacen('{', r#"{"error":{"message":"","code":null},"#, 1);
    let told = json!({"outcome": "ok", "upstream_error": null});
    assert_told(&billed(reply(200).json(&answer), ""), &told);
}

#[test]
fn long_lived_cache_writes_without_a_price_make_the_cost_unknown() {
    let usage = |long: u64| {
        let details = json!({
            "cache_write_tokens": 100,
            "cache_write_tokens_details": {"ttl_30m_tokens": 100 - long, "ttl_12h_tokens": long},
        });
        let usage =
            json!({"input_tokens": 100, "input_tokens_details": details, "output_tokens": 0});
        json!({"service_tier": "default", "usage": usage}).to_string()
    };
    let told = json!({"cache_write_long_tokens": 100, "cost_usd": null});
    assert_told(&billed(reply(200).json(&usage(100)), ""), &told);
    let told = json!({"cache_write_long_tokens": 0, "cost_usd": "0.0006"});
    assert_told(&billed(reply(200).json(&usage(0)), ""), &told);
}

#[test]
fn embeddings_cost_their_input_and_legacy_completions_both() {
    let prices = "version: 1\nprices: [{models: ['*'], tiers: {default: {input: 1, output: 2}}}]\n";
    let embeddings =
        r#"{"object":"list","model":"e","data":[],"usage":{"prompt_tokens":15,"total_tokens":15}}"#;
    let completion =
        r#"{"id":"c","model":"i","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5}}"#;
    let upstream =
        upstream::script([reply(200).json(embeddings), reply(200).json(completion)]).run();
    let proxy = proxy::new().upstream(&upstream).prices(prices).run();
    let client = proxy.client("sk-plain");
    client.post("/v1/embeddings", r#"{"model":"e","input":"x"}"#);
    proxy.access_log(1);
    client.post("/v1/completions", r#"{"model":"i","prompt":"x"}"#);
    let records = proxy.access_log(2);
    let told = json!({"endpoint": "embeddings", "input_tokens": 15, "output_tokens": null, "cost_usd": "0.000015"});
    assert_told(&records[0], &told);
    let told = json!({"endpoint": "completions", "input_tokens": 10, "output_tokens": 5, "cost_usd": "0.00002"});
    assert_told(&records[1], &told);
}

#[test]
fn what_tells_usage_is_billed_whatever_the_method_is_spelled() {
    for method in ["post", "Post", "PUT", "QUERY"] {
        let upstream = upstream::json(&made("big", "priority")).run();
        let proxy = proxy::new().upstream(&upstream).prices(PRICES).run();
        let client = proxy.client("sk-fast");
        let body = r#"{"model":"big"}"#;
        let length = body.len().to_string();
        let mut request = client
            .clone()
            .header("Content-Length", &length)
            .head(method, "/v1/responses");
        request.extend(body.as_bytes());
        client.exchange(&request);
        let told = json!({"method": method, "service_tier": "priority", "usage_state": "final", "cost_usd": "0.014"});
        assert_told(&proxy.record(), &told);
    }
}

#[test]
fn a_key_has_the_same_id_in_every_line() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    client.post("/v1/responses", "{}");
    proxy.access_log(1);
    client.get("/v1/models");
    let id = hex::encode(&Sha256::digest("sk-fast")[..4]);
    for line in proxy.access_log_lines(2) {
        let record: Value = serde_json::from_str(&line).unwrap();
        assert_told(&record, &json!({"key_id": id}));
    }
}

const BUDGETS: &str = "\
version: 1
groups:
  creators: {platform: openai, force_fast_mode: true, budget: {usd: 0.01, per: month, scope: SCOPE, then: refuse}}
  fetchers: {platform: openai, force_fast_mode: true, budget: {usd: 0.01, per: month, scope: SCOPE, then: refuse}}
keys:
  sk-carla: {group: creators, name: carla}
  sk-frank: {group: fetchers, name: frank}
";

/// An upstream that makes one response in the background, and is done with it when it is asked for.
fn background_upstream() -> upstream::Upstream {
    upstream::script([
        reply(200).json(r#"{"id":"resp_1","status":"queued","background":true}"#),
        reply(200).json(&made("big", "priority")),
        reply(200).json(r#"{"id":"resp_2","status":"queued","background":true}"#),
    ])
    .run()
}

#[test]
fn a_background_response_is_charged_to_the_budget_of_who_created_it_and_not_of_who_fetched_it() {
    for scope in ["group", "key"] {
        let upstream = background_upstream();
        let proxy = proxy::new()
            .upstream(&upstream)
            .policy(&BUDGETS.replace("SCOPE", scope))
            .setting("state: state.redb")
            .prices(PRICES)
            .run();
        let (creator, fetcher) = (proxy.client("sk-carla"), proxy.client("sk-frank"));
        let create = r#"{"model":"big","background":true}"#;
        creator.post("/v1/responses", create);
        proxy.access_log(1);
        fetcher.get("/v1/responses/resp_1");
        let told = json!({"key": "carla", "group": "creators", "cost_usd": "0.014"});
        assert_told(&proxy.access_log(2)[1], &told);
        let used = |group: &str| {
            let label = format!(r#"group="{group}""#);
            proxy.metric_of("tiergate_budget_used_ratio", &label)
        };
        assert_eq!((used("creators"), used("fetchers")), (1.4, 0.0), "{scope}");
        let refused = creator.post("/v1/responses", create);
        assert_eq!(refused.status, 429, "{scope}");
        let served = fetcher.post("/v1/responses", create);
        assert_eq!(served.status, 200, "{scope}");
    }
}

/// Gateways may count a response some time behind its end.
#[test]
fn a_background_response_is_billed_by_the_first_answer_that_tells_its_usage() {
    let over = |status: &str, usage: &str| {
        let body = format!(r#"{{"id":"resp_1","status":"{status}","usage":{usage}}}"#);
        reply(200).json(&body)
    };
    for (first, of_request) in [
        (over("completed", "null"), [false, true]),
        (
            over("completed", r#"{"input_tokens":0,"output_tokens":0}"#),
            [false, true],
        ),
        (over("incomplete", "null"), [false, true]),
        (over("failed", "null"), [true, false]),
        (over("cancelled", "null"), [true, false]),
    ] {
        let queued = reply(200).json(r#"{"id":"resp_1","status":"queued","background":true}"#);
        let counted = reply(200).json(&made("big", "priority"));
        let upstream = upstream::script([queued, first, counted]).run();
        let proxy = proxy::new().upstream(&upstream).prices(PRICES).run();
        let client = proxy.client("sk-fast");
        client.post("/v1/responses", r#"{"model":"big","background":true}"#);
        for count in 2..4 {
            client.get("/v1/responses/resp_1");
            proxy.access_log(count);
        }
        let records = proxy.stop();
        let told = [&records[1], &records[2]].map(|record| !record["of_request"].is_null());
        assert_eq!(told, of_request);
        assert_eq!(records[2]["cost_usd"].is_null(), !of_request[1]);
    }
}

#[test]
fn an_id_of_one_upstream_settles_nothing_of_another() {
    let queued = r#"{"id":"resp_1","status":"queued","background":true}"#;
    let ours = upstream::script([
        reply(200).json(queued),
        reply(200).json(&made("big", "priority")),
    ])
    .run();
    let theirs = upstream::json(&made("small", "priority")).run();
    let policy = "\
version: 1
groups:
  ours: {platform: openai, upstream: ours, force_fast_mode: true}
  theirs: {platform: openai, upstream: theirs}
keys:
  sk-ours: {group: ours, name: ours}
  sk-theirs: {group: theirs, name: theirs}
";
    let proxy = proxy::new()
        .upstream_with("ours", &ours, "")
        .upstream_with("theirs", &theirs, "")
        .policy(policy)
        .run();
    let (us, them) = (proxy.client("sk-ours"), proxy.client("sk-theirs"));
    us.post("/v1/responses", r#"{"model":"big","background":true}"#);
    proxy.access_log(1);
    them.get("/v1/responses/resp_1");
    let told = json!({"key": "theirs", "of_request": null, "usage_state": "none"});
    assert_told(&proxy.access_log(2)[1], &told);
    us.get("/v1/responses/resp_1");
    let told = json!({"key": "ours", "usage_state": "final", "model_served": "big"});
    assert_told(&proxy.access_log(3)[2], &told);
}

/// As in an upgrade, in which the old process has requests to finish.
#[test]
fn a_background_response_is_billed_once_by_two_processes_with_one_state_file() {
    const FETCHES: usize = 8;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state.redb");
    let queued = reply(200).json(r#"{"id":"resp_1","status":"queued","background":true}"#);
    let done = (0..FETCHES).map(|_| reply(200).json(&made("big", "priority")));
    let upstream = upstream::script([queued].into_iter().chain(done).collect::<Vec<_>>()).run();
    let run = || {
        proxy::new()
            .upstream(&upstream)
            .setting(&format!("state: {}", file.display()))
            .prices(PRICES)
            .run()
    };
    let old = run();
    let create = r#"{"model":"big","background":true}"#;
    old.client("sk-fast").post("/v1/responses", create);
    stored_create(&file);
    let proxies = [old, run()];
    std::thread::scope(|scope| {
        for fetch in 0..FETCHES {
            let proxy = &proxies[fetch % 2];
            scope.spawn(move || proxy.client("sk-fast").get("/v1/responses/resp_1"));
        }
    });
    let lines = [1, 0].into_iter().zip(&proxies);
    let lines = lines.flat_map(|(creates, proxy)| proxy.access_log(creates + FETCHES / 2));
    let billed = lines.filter(|line| !line["cost_usd"].is_null());
    assert_eq!(billed.count(), 1);
}

#[test]
fn a_background_response_of_a_group_that_is_gone_charges_no_budget() {
    let upstream = background_upstream();
    let policy = BUDGETS.replace("SCOPE", "group");
    let proxy = proxy::new()
        .upstream(&upstream)
        .policy(&policy)
        .prices(PRICES)
        .run();
    let create = r#"{"model":"big","background":true}"#;
    proxy.client("sk-carla").post("/v1/responses", create);
    proxy.access_log(1);
    let without: Vec<&str> = policy
        .lines()
        .filter(|line| !line.contains("creators"))
        .collect();
    std::fs::write(proxy.path("policy.yaml"), without.join("\n")).unwrap();
    eventually("the policy without the group", || {
        let groups = &proxy.status()["policy"]["groups"];
        (*groups == 1).then_some(())
    });
    proxy.client("sk-frank").get("/v1/responses/resp_1");
    let told = json!({"key": "carla", "group": "creators", "cost_usd": "0.014"});
    assert_told(&proxy.access_log(2)[1], &told);
    assert_eq!(proxy.metric("tiergate_budget_used_ratio"), 0.0);
}

/// What an answer without usage counts.
fn missing(proxy: &Proxy) -> f64 {
    proxy.metric("tiergate_usage_missing_total")
}

#[test]
fn an_answer_without_usage_is_counted_and_one_with_it_or_an_error_is_not() {
    let upstream = upstream::script([
        reply(200).json(&made("big", "priority")),
        reply(400).json(r#"{"error":{"message":"no"}}"#),
        reply(200).json(r#"{"id":"resp_1","status":"queued","background":true}"#),
        reply(200).json(r#"{"id":"resp_1","status":"completed"}"#),
    ])
    .run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    for (number, counted) in [(1, 0.0), (2, 0.0), (3, 0.0), (4, 1.0)] {
        client.post("/v1/responses", "{}");
        proxy.access_log(number);
        assert_eq!(missing(&proxy), counted, "after {number}");
    }
    let labels = r#"endpoint="responses",group="fast",transport="http""#;
    assert_eq!(proxy.metric_of("tiergate_usage_missing_total", labels), 1.0);
    client.get("/v1/models");
    proxy.access_log(5);
    assert_eq!(missing(&proxy), 1.0);
}

#[test]
fn counts_that_cannot_be_have_no_cost_and_count_as_missing() {
    let start = r#"{"type":"message_start","message":{"id":"m","model":"big","usage":{"input_tokens":10,"output_tokens":1}}}"#;
    let text = r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a long answer"}}"#;
    let end = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":0}}"#;
    let stop = r#"{"type":"message_stop"}"#;
    let events = [start, text, end, stop].map(|event| format!("data: {event}\n\n"));
    let chat = r#"{"id":"c","model":"big","choices":[],"usage":{"prompt_tokens":0,"completion_tokens":120}}"#;
    let upstream =
        upstream::script([reply(200).sse(&[&events.concat()]), reply(200).json(chat)]).run();
    let proxy = proxy::new().upstream(&upstream).prices(PRICES).run();
    let client = proxy.client("sk-plain");
    client.post("/v1/messages", r#"{"model":"big","stream":true}"#);
    client.post("/v1/chat/completions", r#"{"model":"big"}"#);
    let lines = proxy.access_log(2);
    for (line, input, output) in [(&lines[0], Some(10), None), (&lines[1], None, Some(120))] {
        let told = json!({
            "outcome": "ok", "usage_state": "partial", "cost_usd": null,
            "input_tokens": input, "output_tokens": output,
        });
        assert_told(line, &told);
    }
    assert_eq!(missing(&proxy), 2.0);
    assert_eq!(proxy.metric("tiergate_unpriced_total"), 0.0);
}

#[test]
fn a_request_that_reads_or_deletes_has_no_usage_to_miss() {
    let upstream = upstream::json(r#"{"object":"list","data":[]}"#).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    client.get("/v1/chat/completions");
    client.exchange(&client.head("DELETE", "/v1/chat/completions"));
    client.post("/v1/chat/completions", "{}");
    proxy.access_log(3);
    assert_eq!(missing(&proxy), 1.0);
}

#[test]
fn what_was_spent_is_a_metric() {
    let upstream = upstream::json(&made("big", "priority")).run();
    let proxy = proxy::new().upstream(&upstream).prices(PRICES).run();
    let client = proxy.client("sk-fast");
    for number in 1..=2 {
        client.post("/v1/responses", r#"{"model":"big"}"#);
        proxy.access_log(number);
    }
    let spent = proxy.metric_of(
        "tiergate_cost_usd_total",
        r#"group="fast",service_tier="priority""#,
    );
    assert!((spent - 0.028).abs() < 1e-9, "{spent}");
}

#[test]
fn a_credential_that_the_upstream_quotes_does_not_get_into_the_line() {
    let policy = "\
version: 1
groups:
  fast: {platform: openai, force_fast_mode: true}
keys:
  team-secret-one: {group: fast, name: fiona}
  other-secret-two: {group: fast, name: olga}
";
    let quoting = r#"{"id":"resp_team-secret-one","model":"other-secret-two","service_tier":"sk-proj-0123456789abcdef","error":{"message":"m","code":"bad key team-secret-one"}}"#;
    let answer = Reply::default().send(format!(
        "HTTP/1.1 400 X\r\nContent-Type: application/json\r\nX-Request-Id: req_team-secret-one\r\n\
         Content-Length: {}\r\n\r\n{quoting}",
        quoting.len()
    ));
    let upstream = upstream::script([answer]).run();
    let proxy = proxy::new().upstream(&upstream).policy(policy).run();
    let client = proxy
        .client("team-secret-one")
        .header("User-Agent", "mine is team-secret-one");
    client.post("/v1/responses", r#"{"model":"other-secret-two"}"#);
    let line = &proxy.access_log_lines(1)[0];
    for secret in ["team-secret-one", "other-secret-two", "sk-proj"] {
        assert!(!line.contains(secret), "{line}");
    }
    let told = json!({
        "response_id": "resp_[redacted]", "model": "[redacted]", "model_served": "[redacted]",
        "service_tier_served": "[redacted]", "upstream_request_id": "req_[redacted]",
        "upstream_error": "bad key [redacted]", "user_agent": "mine is [redacted]",
    });
    assert_told(&serde_json::from_str(line).unwrap(), &told);
}
