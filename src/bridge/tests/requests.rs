//! Requests: what is sent upstream for what clients send.

use super::*;

const CASES: &str = include_str!("../../../tests/fixtures/bridge/requests.json");

/// The upstream of a case.
fn upstream_of(case: &Value) -> UpstreamBridge {
    let mut upstream = upstream_of_kind(match case["kind"].as_str() {
        Some("codex") => UpstreamKind::Codex,
        Some("gateway") => UpstreamKind::Gateway,
        _ => UpstreamKind::OpenAi,
    });
    let set = &case["options"];
    let options = &mut upstream.options;
    options.reasoning_replay = set["reasoning_replay"] != json!(false);
    if set["reasoning_summary"] == "concise" {
        options.reasoning_summary = ReasoningSummary::Concise;
    }
    if set["system_as"] == "instructions" {
        options.system_as = SystemAs::Instructions;
    }
    if set["tool_media"] == "user_message" {
        options.tool_media = ToolMedia::UserMessage;
    }
    if set["stop_sequences"] == "refuse" {
        options.stop_sequences = StopSequences::Refuse;
    }
    if let Some(models) = case["models"].as_array() {
        upstream.models = models.iter().map(entry_of).collect();
    }
    upstream
}

fn entry_of(entry: &Value) -> ModelEntry {
    ModelEntry {
        phase: entry["phase"] == json!(true),
        max_output: entry["max_output"].as_u64(),
        ..ModelEntry::new(
            entry["pattern"].as_str().expect("pattern"),
            entry["model"].as_str(),
        )
    }
}

/// What came of a case, in the members of the fixture.
fn outcome(case: &Value) -> Value {
    let body = case["body"].to_string().replace("@carrier:", CARRIER);
    let endpoint = match case["endpoint"].as_str() {
        Some("chat") => Endpoint::Chat,
        Some("count_tokens") => Endpoint::CountTokens,
        _ => Endpoint::Messages,
    };
    match convert(&request(endpoint, &body), &upstream_of(case)) {
        Ok(sent) => json!({
            "sent": parsed(&sent.body),
            "dropped": sent.dropped,
            "client_tier": sent.client_tier,
            "refused": null,
        }),
        Err(refusal) => json!({
            "sent": null,
            "dropped": null,
            "client_tier": null,
            "refused": {"status": refusal.status, "message": refusal.message},
        }),
    }
}

fn sorted(names: &Value) -> Vec<String> {
    let mut names: Vec<String> = names
        .as_array()
        .into_iter()
        .flatten()
        .map(Value::to_string)
        .collect();
    names.sort();
    names
}

#[test]
fn every_request_of_the_fixtures_is_converted_as_they_say() {
    let cases: Vec<Value> = serde_json::from_str(CASES).expect("fixtures");
    for case in &cases {
        let outcome = outcome(case);
        for name in ["sent", "client_tier", "refused"] {
            assert_eq!(outcome[name], case[name], "{name} of {}", case["name"]);
        }
        // In any order: members of this body have lost theirs.
        let dropped = [sorted(&outcome["dropped"]), sorted(&case["dropped"])];
        assert_eq!(dropped[0], dropped[1], "dropped of {}", case["name"]);
    }
}

#[test]
fn the_upstream_gets_what_changes_least_first_and_every_number_as_it_was_spelled() {
    let body = r#"{"stop_sequences":[], "messages":[{"role":"assistant","content":[{"type":"tool_use","id":"a","name":"T",
        "input": {"z" : 1.50, "\u0061":[ 1e3, "\ud800", "\u00e9" ]} }]},{"role":"user","content":"x\u0041\/"}],
        "tools":[{"name":"T","input_schema":{"type":"object","properties":{"z":{"maximum":1.0}, "a":{}}}}],
        "max_tokens":20, "model":"claude-x", "top_p":0.10, "system":"S"}"#;
    let sent = text_of(messages(body).unwrap().body);
    let expected = concat!(
        r#"{"model":"gpt-5.5","tools":[{"type":"function","name":"T","parameters":{"type":"object","properties":"#,
        r#"{"z":{"maximum":1.0},"a":{}}},"strict":false}],"input":[{"type":"message","role":"developer","content":"#,
        r#"[{"type":"input_text","text":"S"}]},{"type":"function_call","call_id":"a","name":"T","arguments":"#,
        r#""{\"z\":1.50,\"a\":[1e3,\"\\ud800\",\"\\u00e9\"]}"},{"type":"function_call_output","call_id":"a","#,
        r#""output":"(no output recorded)"},{"type":"message","role":"user","content":[{"type":"input_text","#,
        r#""text":"x\u0041\/"}]}],"max_output_tokens":20,"store":false,"stream":true}"#,
    );
    assert_eq!(sent, expected);
}

#[test]
fn of_members_of_one_name_the_last_counts_however_it_is_spelled() {
    let body = r#"{"model":"claude-a","messages":[],"m\u006fdel":"gpt-7","messages":[{"role":"user","content":"q"}]}"#;
    let sent = parsed(&messages(body).unwrap().body);
    assert_eq!(
        (&sent["model"], &sent["input"][0]["content"][0]["text"]),
        (&json!("gpt-7"), &json!("q"))
    );
}

#[test]
fn no_tier_is_written_but_the_clients_own_on_demand() {
    let body =
        r#"{"model":"gpt-5.5","service_tier":"a\"b","messages":[{"role":"user","content":"q"}]}"#;
    let converted = chat(body).unwrap();
    assert_eq!(parsed(&converted.body).get("service_tier"), None);
    assert_eq!(
        parsed(&converted.with_client_tier())["service_tier"],
        "a\"b"
    );
    let none = messages(
        r#"{"model":"claude-a","speed":"fast","messages":[{"role":"user","content":"q"}]}"#,
    )
    .unwrap();
    assert_eq!(
        (none.with_client_tier(), none.speed.as_deref()),
        (none.body, Some("fast"))
    );
}

#[test]
fn the_session_of_the_header_counts_before_that_of_the_body() {
    let body = r#"{"model":"claude-a","metadata":{"user_id":"{\"session_id\":\"b\"}"},"messages":[{"role":"user","content":"q"}]}"#;
    let with = |session, group| {
        let request = ClientRequest {
            session,
            group,
            ..request(Endpoint::Messages, body)
        };
        parsed(&convert(&request, &upstream()).unwrap().body)["prompt_cache_key"].clone()
    };
    let keys = [with(Some("a"), "g"), with(Some("a"), "h"), with(None, "g")];
    assert!(keys.iter().all(|key| {
        key.as_str()
            .is_some_and(|key| key.len() == 35 && key.starts_with("tg-"))
    }));
    assert!(keys[0] != keys[1] && keys[0] != keys[2]);
    assert_eq!(with(Some("b"), "g"), keys[2]);
}

#[test]
fn a_longer_history_only_adds_to_what_was_sent() {
    let mut history = vec![json!({"role": "user", "content": "q"})];
    let mut before = String::new();
    for turn in 0..4 {
        let id = format!("call_{turn}");
        history.push(json!({"role": "assistant", "content": [
            {"type": "thinking", "thinking": "", "signature": format!("{CARRIER}g{turn}")},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": id, "name": "Read", "input": {"n": turn}},
        ]}));
        history.push(json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": id, "content": "ok"}]}));
        history.push(json!({"role": "system", "content": "Go on."}));
        let body = json!({"model": "claude-a", "messages": history, "tools": [{"name": "Read"}]})
            .to_string();
        let sent = text_of(messages(&body).unwrap().body);
        let input_end = sent.rfind("],\"store\"").expect("the end of the input");
        assert!(sent.starts_with(&before), "turn {turn}");
        before = sent[..input_end].to_owned();
    }
}

#[test]
fn what_was_dropped_is_told_in_a_header_of_bounded_length() {
    let members: String = (0..99)
        .map(|number| format!("\"unknown_{number}\":1,"))
        .collect();
    let body = format!(
        "{{{members}\"model\":\"claude-a\",\"messages\":[{{\"role\":\"user\",\"content\":\"q\"}}]}}"
    );
    let dropped = messages(&body).unwrap().dropped;
    let report = Protocol::Messages.report(&dropped);
    assert!(
        report.starts_with("messages>responses; dropped=unknown_0,unknown_1,")
            && report.len() <= 512
    );
    assert_eq!(dropped.len(), 64);
    assert_eq!(Protocol::Chat.report(&[]), "chat>responses");
}

#[test]
fn a_body_that_is_no_json_object_is_refused() {
    for body in [
        "",
        "[]",
        "{",
        "{\"model\":\"\\x\"}",
        "{}x",
        "{\"a\":01}",
        "\u{feff}{}",
    ] {
        assert_eq!(
            messages(body).map(|_| ()).map_err(|refusal| refusal.status),
            Err(400),
            "{body}"
        );
    }
    let deep = format!("{{\"model\":{}{}}}", "[".repeat(600), "]".repeat(600));
    assert_eq!(
        messages(&deep).unwrap_err().message,
        "body: too many nested arrays and objects"
    );
    let deep = format!("{{\"future\":{}{}}}", "[".repeat(511), "]".repeat(511));
    assert_eq!(
        messages(&deep).unwrap_err().message,
        "model: Field required"
    );
}

#[test]
fn where_requests_go_and_which_headers_stay() {
    let mut codex = upstream_of_kind(UpstreamKind::Codex);
    assert_eq!(codex.path(Endpoint::Messages), "/responses");
    assert_eq!(
        upstream().path(Endpoint::CountTokens),
        "/v1/responses/input_tokens"
    );
    codex.options.path = "/x".to_owned();
    assert_eq!(codex.path(Endpoint::Chat), "/x");
    for kept in [
        "anthropic-version",
        "x-claude-code-session-id",
        "x-stainless-lang",
        "x-api-key",
        "cookie",
        "content-md5",
        "content-digest",
        "content-encoding",
        "content-language",
        "digest",
        "if-none-match",
        "if-range",
        "prefer",
        "priority",
        "range",
        "signature-input",
    ] {
        assert!(is_kept_from_upstream(kept), "{kept}");
    }
    for sent in [
        "user-agent",
        "traceparent",
        "x-request-id",
        "accept-language",
    ] {
        assert!(!is_kept_from_upstream(sent), "{sent}");
    }
}

#[test]
fn reasoning_models_are_told_by_their_names() {
    let sampled = |model: &str| {
        let body = format!(
            r#"{{"model":"{model}","top_p":1,"messages":[{{"role":"user","content":"q"}}]}}"#
        );
        let upstream = UpstreamBridge {
            models: vec![ModelEntry::new("*", None)],
            ..upstream()
        };
        parsed(
            &convert(&request(Endpoint::Chat, &body), &upstream)
                .unwrap()
                .body,
        )
        .get("top_p")
        .is_some()
    };
    assert!(
        ["gpt-4.1", "gpt-5-chat-latest", "opus", "omni", "llama"]
            .into_iter()
            .all(sampled)
    );
    assert!(
        !["gpt-5", "gpt-6-x", "o3", "o4-mini", "codex-1"]
            .into_iter()
            .any(sampled)
    );
}

#[test]
fn stop_sequences_are_bounded_in_number_and_in_all() {
    let refused = |name: &str, stops: Value| {
        let mut body = json!({"model": "gpt-5.5", "messages": [{"role": "user", "content": "q"}]});
        body[name] = stops;
        let body = body.to_string();
        let endpoint = if name == "stop" {
            Endpoint::Chat
        } else {
            Endpoint::Messages
        };
        convert(&request(endpoint, &body), &upstream())
            .err()
            .map(|refusal| refusal.message)
    };
    let half = "y".repeat(8 * 1024);
    for name in ["stop", "stop_sequences"] {
        assert_eq!(refused(name, json!([half, half])), None);
        let most = format!("{name}: at most 16384 bytes in all");
        assert_eq!(refused(name, json!([half, half, "z"])), Some(most));
        assert_eq!(refused(name, json!(vec!["x"; 64])), None);
        assert_eq!(
            refused(name, json!(vec!["x"; 65])),
            Some(format!("{name}: at most 64"))
        );
    }
}
