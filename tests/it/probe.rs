//! `tiergate probe` against upstreams that honour the tier, strip it, reject it, and say nothing, and through a running proxy.

use std::fs;
use std::process::Output;

use crate::support::command::{command, run_with_stdin};
use crate::support::proxy::{self, Target};
use crate::support::upstream::{self, Reply, Upstream, reply};
use serde_json::{Value, json};

/// Runs it for one group, which the given reply answers to everything.
fn probe(upstream: &Upstream, settings: &str, arguments: &[&str]) -> Output {
    const POLICY: &str = "version: 1\ngroups:\n  fast: {platform: openai, force_fast_mode: true}\n  \
         off: {platform: openai, enabled: false}\n  claude: {platform: anthropic}\n";
    probe_by(POLICY, upstream, settings, arguments)
}

fn probe_by(policy: &str, upstream: &Upstream, settings: &str, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let url = upstream.url();
    let config = format!(
        "listen: 127.0.0.1:1\npolicy: policy.yaml\naccess_log: {{path: live.log}}\n\
         upstreams: {{u: {{url: \"{url}\"{settings}}}}}\n"
    );
    fs::write(folder.path().join("tiergate.yaml"), config).unwrap();
    fs::write(folder.path().join("policy.yaml"), policy).unwrap();
    let fixed = ["probe", "--config", "tiergate.yaml", "--key", "-"];
    let command = command(
        &folder,
        &[&fixed[..], &["--model", "m-1"], arguments].concat(),
    );
    let output = run_with_stdin(command, b"sk-real\n");
    let told = [&output.stdout[..], &output.stderr].concat();
    assert!(
        !String::from_utf8_lossy(&told).contains("sk-"),
        "a key is printed"
    );
    assert!(
        !folder.path().join("live.log").exists(),
        "the live log is left alone"
    );
    output
}

fn rows(upstream: &Upstream, settings: &str) -> Vec<Value> {
    rows_of(&probe(upstream, settings, &["--format", "json"]))
}

/// The exit code has to be 1 where a tier was not honoured, or nothing answered, or with errors only.
fn rows_of(output: &Output) -> Vec<Value> {
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let failed = rows.iter().any(|row| {
        let verdict = row["verdict"].as_str().unwrap();
        verdict == "stripped" || verdict == "rejected" || row["why"] == "upstream_reset"
    });
    let failed = failed || rows.iter().all(|row| row["status"].as_u64() >= Some(400));
    assert_eq!(output.status.code(), Some(i32::from(failed)), "{output:?}");
    rows
}

fn verdicts(rows: &[Value]) -> Vec<&str> {
    rows.iter()
        .map(|row| row["verdict"].as_str().unwrap())
        .collect()
}

/// Answers to the four questions, each naming this tier.
fn served(tier: &str) -> [Reply; 4] {
    let named = format!(r#""service_tier":"{tier}""#);
    let event = format!(r#"{{"type":"response.completed","response":{{{named}}}}}"#);
    let usage = r#""usage":{"input_tokens":1,"output_tokens":1"#;
    [
        reply(200).json(&format!("{{{named}}}")),
        reply(200).sse(&[&format!("data: {event}\n\n")]),
        upstream::websocket(&event),
        reply(200).json(&format!("{{\"type\":\"message\",{usage},{named}}}}}")),
    ]
}

#[test]
fn an_upstream_that_serves_the_tier_honours_it() {
    let upstream = upstream::script(served("priority")).run_plain();
    let rows = rows(&upstream, "");
    assert_eq!(verdicts(&rows), ["honoured"; 4], "{rows:?}");
    let first = json!({"group": "fast", "upstream": "u", "asked": "responses, JSON", "sent": "priority",
        "served": "priority", "status": 200, "verdict": "honoured", "why": null});
    assert_eq!(rows[0], first);
    let requests = upstream.requests(5);
    let (handshake, message) = (&requests[2], &requests[3]);
    assert!(
        handshake
            .request_line()
            .starts_with("GET /v1/responses HTTP")
    );
    assert!(message.text().contains(r#""type":"response.create""#));
    for request in requests.iter().filter(|request| !request.head.is_empty()) {
        assert_eq!(request.header("authorization"), ["Bearer sk-real"]);
    }
    for request in requests.iter().filter(|request| !request.body.is_empty()) {
        assert!(request.text().contains(r#""service_tier":"priority""#));
        assert!(request.text().contains(r#""model":"m-1""#));
    }
    assert!(requests[4].request_line().starts_with("POST /v1/messages "));
}

#[test]
fn an_upstream_on_a_unix_socket_is_asked_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream::script(served("priority")).run_unix(&folder.path().join("back"));
    assert_eq!(verdicts(&rows(&upstream, "")), ["honoured"; 4]);
}

#[test]
fn an_upstream_that_serves_another_tier_strips_it() {
    let upstream = upstream::script(served("default")).run_plain();
    assert_eq!(verdicts(&rows(&upstream, "")), ["stripped"; 4]);
}

#[test]
fn an_upstream_that_refuses_rejects_it() {
    let upstream = upstream::script([reply(400).json("{}")]).run_plain();
    let rows = rows(&upstream, "");
    let no_socket = "cannot tell";
    assert_eq!(
        verdicts(&rows),
        ["rejected", "rejected", no_socket, "rejected"]
    );
    assert_eq!(rows[0]["status"], 400);
    assert_eq!(rows[2]["why"], "no response came over a WebSocket");
}

#[test]
fn an_error_event_on_a_websocket_rejects_it() {
    let [json, sse, _, messages] = served("priority");
    let error = upstream::websocket(r#"{"type":"error","status":400,"error":{"code":"x"}}"#);
    let upstream = upstream::script([json, sse, error, messages]).run_plain();
    assert_eq!(
        verdicts(&rows(&upstream, "")),
        ["honoured", "honoured", "rejected", "honoured"]
    );
}

#[test]
fn a_key_that_the_upstream_does_not_take_says_nothing_of_the_tier() {
    let upstream = upstream::script([reply(401).json("{}")]).run_plain();
    let rows = rows(&upstream, "");
    assert_eq!(verdicts(&rows), ["cannot tell"; 4]);
    assert_eq!(rows[0]["status"], 401);
    assert_eq!(
        rows[0]["why"],
        "the upstream's status is not about the tier"
    );
}

#[test]
fn an_upstream_whose_word_is_worth_nothing_leaves_it_open() {
    let upstream = upstream::script(served("priority")).run_plain();
    let rows = rows(&upstream, ", kind: codex");
    assert_eq!(verdicts(&rows), ["cannot tell"; 4]);
    assert_eq!(
        rows[0]["why"],
        "what this upstream says of the tier is not trusted"
    );
    let said = probe(&upstream, ", kind: codex", &[]);
    let notes = String::from_utf8(said.stderr).unwrap();
    let note = "Codex is reported to serve requests over HTTP at the standard tier";
    assert!(notes.contains(note), "{notes}");
}

#[test]
fn an_answer_that_names_no_tier_leaves_it_open_and_so_does_none() {
    let upstream = upstream::json("{}").run_plain();
    let text = String::from_utf8(probe(&upstream, "", &[]).stdout).unwrap();
    assert_eq!(text.matches("cannot tell").count(), 4, "{text}");
    assert!(
        text.lines().next().unwrap().starts_with("group  upstream"),
        "{text}"
    );
    let reset = upstream::script([Reply::default().reset()]).run_plain();
    let rows = rows(&reset, "");
    assert_eq!(verdicts(&rows), ["cannot tell"; 4]);
    assert_eq!(rows[0]["why"], "upstream_reset");
}

#[test]
fn a_group_that_can_have_no_tier_is_not_probed() {
    let upstream = upstream::json("{}").run_plain();
    for group in ["claude", "nobody"] {
        let output = probe(&upstream, "", &["--group", group]);
        assert_eq!(output.status.code(), Some(1), "{group}");
    }
    upstream.assert_untouched();
}

const RUNNING: &str = "version: 1\ngroups:\n  fast: {platform: openai, force_fast_mode: true}\n  \
     plain: {platform: openai}\nkeys: {sk-real: GROUP}\n";

/// Through a running proxy that has the key in this group, with an upstream that serves this tier. The lines of its log
/// come back as well.
fn probe_through(group: &str, tier: &str) -> (Vec<Value>, Vec<Value>) {
    let policy = RUNNING.replace("GROUP", group);
    let upstream = upstream::script(served(tier)).run_plain();
    let proxy = proxy::new().policy(&policy).upstream(&upstream).run();
    let unasked = upstream::json("{}").run_plain();
    let url = format!("http://{}", proxy.address);
    let arguments = ["--format", "json", "--through", &url];
    let rows = rows_of(&probe_by(&policy, &unasked, "", &arguments));
    unasked.assert_untouched();
    let lines = proxy.access_log(5);
    let responses = lines
        .into_iter()
        .filter(|line| line["transport"] != "websocket" || line["turn"] == 1);
    (rows, responses.collect())
}

#[test]
fn a_running_proxy_forces_what_the_questions_do_not_name() {
    let (rows, lines) = probe_through("fast", "priority");
    assert_eq!(verdicts(&rows), ["honoured"; 4], "{rows:?}");
    for (row, line) in rows.iter().zip(&lines) {
        assert_eq!(
            (&row["group"], &row["sent"]),
            (&json!("fast"), &Value::Null)
        );
        let tiers = [&line["service_tier_client"], &line["service_tier"]];
        assert_eq!(tiers, [&Value::Null, &json!("priority")]);
    }
    let (rows, _) = probe_through("fast", "default");
    assert_eq!(verdicts(&rows), ["stripped"; 4]);
}

#[test]
fn a_running_proxy_that_does_not_force_is_asked_for_the_tier() {
    let (rows, lines) = probe_through("plain", "priority");
    assert_eq!(verdicts(&rows), ["honoured"; 4]);
    assert!(rows.iter().all(|row| row["sent"] == "priority"), "{rows:?}");
    assert!(lines.iter().all(|line| line["tier_reason"] == "client"));
}

#[test]
fn a_key_without_a_group_is_not_sent_to_a_running_proxy() {
    let upstream = upstream::json("{}").run_plain();
    let url = format!("http://{}", upstream.address);
    let output = probe(&upstream, "", &["--through", &url]);
    assert_eq!(output.status.code(), Some(1));
    upstream.assert_untouched();
}
