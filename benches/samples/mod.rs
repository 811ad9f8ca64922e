//! What the benchmarks send: bodies and streams like those of real clients and upstreams.

// Each benchmark takes some of them.
#![allow(dead_code)]

use std::fmt::Write;

/// A stream: 400 deltas between its first and its last events.
pub const DELTAS: usize = 400;

/// A tool schema, as responses echo them: 40 KB.
const TOOLS: usize = 400;

/// A request body by its name.
pub fn body(name: &str) -> Vec<u8> {
    match name {
        "empty" => "{}".into(),
        "chat_1k" => format!(
            r#"{{"model":"gpt-5.5","messages":[{{"role":"system","content":"{}"}},{{"role":"user","content":"{}"}}],"stream":true}}"#,
            text(660),
            text(220)
        ),
        "agent_1k" => conversation(1 << 10, &[&text(150)], ""),
        "codex_16k" => conversation(16 << 10, &[&text(900), &text(200)], ""),
        "codex_2m" => conversation(
            2 << 20,
            &[&text(900), &text(6000), &text(200)],
            &image(300 << 10),
        ),
        "codex_256k" => conversation(
            256 << 10,
            &[&text(900), &text(6000), &text(200)],
            &image(60 << 10),
        ),
        "text_256k" => conversation(256 << 10, &[&text(20_000)], ""),
        "chinese_256k" => conversation(256 << 10, &[&"写一个函数，".repeat(60)], ""),
        "base64_8m" => conversation(8 << 20, &[&text(300)], &image(8 << 20)),
        "pretty_256k" => pretty(256 << 10),
        "duplicates_1m" => format!("{{{}\"a\":1}}", r#""service_tier":"flex","#.repeat(45_000)),
        other => panic!("no body is called {other}"),
    }
    .into_bytes()
}

/// The events of a stream of the Responses API.
pub fn responses_events() -> Vec<String> {
    let tool = r#"{"type":"function","name":"set_tier","parameters":{"type":"object","properties":{"a":{"type":"string"}}}}"#;
    let tools = vec![tool; TOOLS].join(",");
    let event = |kind: &str, usage: &str| {
        format!(
            "event: {kind}\ndata: {{\"type\":\"{kind}\",\"sequence_number\":1,\"response\":{{\"id\":\"resp_1\",\"model\":\"gpt-5.5\",\"tools\":[{tools}],\"service_tier\":\"priority\",\"usage\":{usage}}}}}\n\n"
        )
    };
    let delta = r#"event: response.output_text.delta
data: {"type":"response.output_text.delta","sequence_number":4,"item_id":"msg_68aa00026b1c81a1b2c3d4e5f6a7b8c9","output_index":0,"content_index":0,"delta":" token","logprobs":[],"obfuscation":"aB3xYz09"}"#;
    let mut events = vec![
        event("response.created", "null"),
        event("response.in_progress", "null"),
    ];
    events.extend(vec![format!("{delta}\n\n"); DELTAS]);
    events.push(event(
        "response.completed",
        r#"{"input_tokens":9,"output_tokens":8}"#,
    ));
    events
}

/// A request as the SDKs send it: one line, a list of messages with texts, images and tool calls.
fn conversation(len: usize, texts: &[&str], image: &str) -> String {
    let mut body =
        String::from(r#"{"model":"gpt-5.5","stream":true,"service_tier":"auto","input":["#);
    if !image.is_empty() {
        write!(
            body,
            r#"{{"type":"input_image","image_url":"data:image/png;base64,{image}"}},"#
        )
        .unwrap();
    }
    for index in 0.. {
        let text = texts[index % texts.len()];
        write!(body, r#"{{"type":"message","role":"user","content":[{{"type":"input_text","text":"{text}"}}]}}"#).unwrap();
        if body.len() >= len - 200 {
            break;
        }
        write!(body, r#",{{"type":"function_call","call_id":"call_{index}","name":"shell","arguments":"{{\"cmd\":[\"ls\"]}}"}},"#)
            .unwrap();
    }
    body + r#"],"tools":[{"type":"function","name":"shell","strict":false}],"temperature":0.7,"store":false,"metadata":null}"#
}

/// Prose and code with a line break about every 70 bytes.
fn text(len: usize) -> String {
    let line = r#"let upstream = config.upstreams.get(name).ok_or(Denied::Upstream)?;   \n"#;
    let prose = r#"The proxy reads the whole body before it chooses a peer, and says \"why\".\n"#;
    format!("{line}{prose}{prose}").repeat(len / 220 + 1)
}

fn image(len: usize) -> String {
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk".repeat(len / 64)
}

/// Small tokens, deeply indented: the worst shape that occurs.
fn pretty(len: usize) -> String {
    let item = "\n      {\n        \"id\": 12345,\n        \"on\": true,\n        \"box\": [\n          0.5,\n          -1e3\n        ],\n        \"tag\": \"a\"\n      }";
    format!(
        "{{\n  \"input\": {{\n    \"items\": [{}\n    ]\n  }}\n}}\n",
        vec![item; len / item.len()].join(",")
    )
}
