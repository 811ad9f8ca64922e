//! `tiergate probe` against upstreams that honour the tier, strip it, reject it, and say nothing.

mod support;

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use support::upstream::{self, Reply, Upstream, reply};

/// Runs it for one group, which the given reply answers to everything.
fn probe(upstream: &Upstream, settings: &str, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let address = upstream.address;
    let config = format!(
        "listen: 127.0.0.1:1\npolicy: policy.yaml\naccess_log: {{path: live.log}}\n\
         upstreams: {{u: {{url: \"http://{address}\"{settings}}}}}\n"
    );
    fs::write(folder.path().join("tiergate.yaml"), config).unwrap();
    let policy = "version: 1\ngroups:\n  fast: {platform: openai, force_fast_mode: true}\n  \
         off: {platform: openai, enabled: false}\n  claude: {platform: anthropic}\n";
    fs::write(folder.path().join("policy.yaml"), policy).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tiergate"))
        .args([
            "probe",
            "--config",
            "tiergate.yaml",
            "--key",
            "-",
            "--model",
            "m-1",
        ])
        .args(arguments)
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"sk-real\n").unwrap();
    let output = child.wait_with_output().unwrap();
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
    let output = probe(upstream, settings, &["--format", "json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn verdicts(rows: &[Value]) -> Vec<&str> {
    rows.iter()
        .map(|row| row["verdict"].as_str().unwrap())
        .collect()
}

/// Answers to the three questions, each naming this tier.
fn served(tier: &str) -> [Reply; 3] {
    let named = format!(r#""service_tier":"{tier}""#);
    let event = format!("data: {{\"type\":\"response.completed\",\"response\":{{{named}}}}}\n\n");
    let usage = r#""usage":{"input_tokens":1,"output_tokens":1"#;
    [
        reply(200).json(&format!("{{{named}}}")),
        reply(200).sse(&[&event]),
        reply(200).json(&format!("{{\"type\":\"message\",{usage},{named}}}}}")),
    ]
}

#[test]
fn an_upstream_that_serves_the_tier_honours_it() {
    let upstream = upstream::script(served("priority")).run();
    let rows = rows(&upstream, "");
    assert_eq!(verdicts(&rows), ["honoured"; 3], "{rows:?}");
    let first = json!({"group": "fast", "upstream": "u", "asked": "responses, JSON", "sent": "priority",
        "served": "priority", "status": 200, "verdict": "honoured", "why": null});
    assert_eq!(rows[0], first);
    let requests = upstream.requests(3);
    for request in &requests {
        assert_eq!(request.header("authorization"), ["Bearer sk-real"]);
        assert!(request.text().contains(r#""service_tier":"priority""#));
        assert!(request.text().contains(r#""model":"m-1""#));
    }
    assert!(requests[2].request_line().starts_with("POST /v1/messages "));
}

#[test]
fn an_upstream_that_serves_another_tier_strips_it() {
    let upstream = upstream::script(served("default")).run();
    assert_eq!(verdicts(&rows(&upstream, "")), ["stripped"; 3]);
}

#[test]
fn an_upstream_that_refuses_rejects_it() {
    let upstream = upstream::script([reply(400).json("{}")]).run();
    let rows = rows(&upstream, "");
    assert_eq!(verdicts(&rows), ["rejected"; 3]);
    assert_eq!(rows[0]["status"], 400);
}

#[test]
fn an_upstream_whose_word_is_worth_nothing_leaves_it_open() {
    let upstream = upstream::script(served("priority")).run();
    let rows = rows(&upstream, ", kind: codex");
    assert_eq!(verdicts(&rows), ["cannot tell"; 3]);
    assert_eq!(
        rows[0]["why"],
        "what this upstream says of the tier is not trusted"
    );
}

#[test]
fn an_answer_that_names_no_tier_leaves_it_open_and_so_does_none() {
    let upstream = upstream::json("{}").run();
    let text = String::from_utf8(probe(&upstream, "", &[]).stdout).unwrap();
    assert_eq!(text.matches("cannot tell").count(), 3, "{text}");
    assert!(
        text.lines().next().unwrap().starts_with("group  upstream"),
        "{text}"
    );
    let reset = upstream::script([Reply::default().reset()]).run();
    let rows = rows(&reset, "");
    assert_eq!(verdicts(&rows), ["cannot tell"; 3]);
    assert_eq!(rows[0]["why"], "upstream_reset");
}

#[test]
fn a_group_that_can_have_no_tier_is_not_probed() {
    let upstream = upstream::json("{}").run();
    for group in ["claude", "nobody"] {
        let output = probe(&upstream, "", &["--group", group]);
        assert_eq!(output.status.code(), Some(1), "{group}");
    }
    upstream.assert_untouched();
}
