//! How fast bodies are scanned and rewritten, in bytes of the body per second. A body arrives in chunks of 16 KiB.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use std::fmt::Write;
use tiergate::json::Kernel;
use tiergate::service_tier::{Edit, Observer, Rewriter};

const CHUNK: usize = 16 << 10;
const DEPTH: usize = 512;
const BODIES: [&str; 9] = [
    "empty",
    "chat_1k",
    "agent_1k",
    "codex_256k",
    "text_256k",
    "chinese_256k",
    "base64_8m",
    "pretty_256k",
    "duplicates_1m",
];

fn main() {
    divan::main();
}

#[divan::bench(args = BODIES)]
fn rewrite(bencher: Bencher, name: &str) {
    run(bencher, name, Kernel::detect());
}

#[divan::bench(args = BODIES)]
fn rewrite_portably(bencher: Bencher, name: &str) {
    run(bencher, name, Kernel::PORTABLE);
}

#[divan::bench(args = BODIES)]
fn observe(bencher: Bencher, name: &str) {
    let body = body(name);
    bencher.counter(BytesCount::new(body.len())).bench(|| {
        let mut observer = Observer::new(DEPTH);
        black_box(&body)
            .chunks(CHUNK)
            .for_each(|chunk| observer.feed(chunk));
        observer.finish()
    });
}

fn run(bencher: Bencher, name: &str, kernel: Kernel) {
    let body = body(name);
    bencher.counter(BytesCount::new(body.len())).bench(|| {
        let mut rewriter = Rewriter::with_kernel(Edit::Set, DEPTH, body.len(), kernel);
        for chunk in black_box(&body).chunks(CHUNK) {
            rewriter.push(chunk).unwrap();
        }
        rewriter.finish().unwrap()
    });
}

fn body(name: &str) -> Vec<u8> {
    match name {
        "empty" => "{}".into(),
        "chat_1k" => format!(
            r#"{{"model":"gpt-5.5","messages":[{{"role":"system","content":"{}"}},{{"role":"user","content":"{}"}}],"stream":true}}"#,
            text(660),
            text(220)
        ),
        "agent_1k" => conversation(1 << 10, &[&text(150)], ""),
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
