//! What the benchmarks send, bodies and streams like those of real clients and upstreams, and the files of a proxy that has
//! one forced group.

// Each benchmark takes some of them.
#![allow(dead_code)]

use std::fmt::Write;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

/// A stream: 400 deltas between its first and its last events.
pub const DELTAS: usize = 400;

/// A tool schema, as responses echo them: 40 KB.
const TOOLS: usize = 400;

/// The body of a whole answer.
pub const ANSWER: &str = r#"{"id":"resp_1","object":"response","status":"completed","error":null,"model":"gpt-5.5","output":[{"type":"message","role":"assistant","content":[{"type":"output_text","text":"The function reads the configuration once at start, and keeps it.","annotations":[]}]}],"service_tier":"priority","store":false,"temperature":1.0,"tools":[],"usage":{"input_tokens":1234,"input_tokens_details":{"cached_tokens":1024},"output_tokens":87,"output_tokens_details":{"reasoning_tokens":64},"total_tokens":1321}}"#;

/// Files in this folder for a proxy with one thread, before the upstream at this URL. Where it listens.
pub fn install(folder: &Path, url: &str) -> io::Result<SocketAddr> {
    let address = free_address()?;
    let config = format!(
        "listen: {address}\nadmin: {}\npolicy: policy.yaml\nupstreams: {{up: {{url: \"{url}\"}}}}\n\
        access_log: {{path: access.log}}\nserver: {{threads: 1, drain: 1s}}\n",
        free_address()?
    );
    let policy = "version: 1\ngroups: {fast: {platform: openai, force_fast_mode: true}}\nkeys: {sk-fast: fast}\n";
    fs::write(folder.join("tiergate.yaml"), config)?;
    fs::write(folder.join("policy.yaml"), policy)?;
    Ok(address)
}

pub fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// A forced request, with this body.
pub fn request(name: &str) -> Vec<u8> {
    let body = body(name);
    let head = format!(
        "POST /v1/responses HTTP/1.1\r\nhost: tiergate\r\nauthorization: Bearer sk-fast\r\nuser-agent: bench/1.0\r\n\
        content-type: application/json\r\naccept: */*\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), &body].concat()
}

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
