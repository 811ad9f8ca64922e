//! Tests of the room as its users see it: requests and answers of `tests/fixtures/bridge/`, and what holds for any.

mod answers;
mod failures;
mod items;
mod properties;
mod requests;

use super::*;
use crate::config::bridge::{ReasoningSummary, StopSequences, SystemAs, ToolMedia};
use crate::config::{BridgeOptions, ModelEntry};
use serde_json::{Value, json};

/// What signatures of the upstream `main` and the model `gpt-5.5` begin with: `tg1.`, 12 hex digits of the SHA-256 of
/// both, joined by LF, and a dot. Fixtures write `@carrier:` for it.
const CARRIER: &str = "tg1.e1a0826a4f5a.";

fn upstream() -> UpstreamBridge {
    upstream_of_kind(UpstreamKind::OpenAi)
}

fn upstream_of_kind(kind: UpstreamKind) -> UpstreamBridge {
    UpstreamBridge {
        name: "main".to_owned(),
        kind,
        options: BridgeOptions::of(kind == UpstreamKind::Codex),
        models: vec![
            ModelEntry::new("claude-*", Some("gpt-5.5")),
            ModelEntry::new("gpt-*", None),
        ],
    }
}

fn request(endpoint: Endpoint, body: &str) -> ClientRequest<'_> {
    ClientRequest {
        endpoint,
        body: body.as_bytes(),
        session: None,
        group: "team",
    }
}

fn messages(body: &str) -> Result<Converted, Refusal> {
    convert(&request(Endpoint::Messages, body), &upstream())
}

fn chat(body: &str) -> Result<Converted, Refusal> {
    convert(&request(Endpoint::Chat, body), &upstream())
}

fn parsed(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("what the bridge writes is JSON")
}

fn text_of(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("what the bridge writes is UTF-8")
}

/// A converter for a request with these members beside a question.
fn converter(endpoint: Endpoint, members: &Value) -> ResponseConverter {
    let model = if endpoint == Endpoint::Chat {
        "gpt-5.5"
    } else {
        "claude-opus-5-5"
    };
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": "hi"}]});
    for (name, value) in members.as_object().expect("members") {
        body[name] = value.clone();
    }
    let body = body.to_string();
    let converted =
        convert(&request(endpoint, &body), &upstream()).expect("a request that can be converted");
    ResponseConverter::new(converted.context, delivery())
}

fn delivery() -> Delivery {
    Delivery {
        request_id: "req-1".to_owned(),
        created: 1_700_000_000,
        fallback_id: "own".to_owned(),
        sent_tier: None,
        tier_trusted: true,
        limits: Limits::default(),
    }
}

/// All that a client got.
#[derive(Debug, Default, PartialEq)]
struct Received {
    /// Bytes of a stream.
    stream: Vec<u8>,
    /// The stream has ended, and as it should.
    whole: Option<bool>,
    answer: Option<Answer>,
}

impl Received {
    fn take(&mut self, output: Output) {
        let over = self.whole.is_some() || self.answer.is_some();
        match output {
            Output::Nothing => {}
            _ if over => panic!("something came after the end: {output:?}"),
            Output::Write(bytes) => self.stream.extend(bytes),
            Output::End { bytes, whole } => {
                self.stream.extend(bytes);
                self.whole = Some(whole);
            }
            Output::Answer(answer) => {
                assert!(
                    self.stream.is_empty(),
                    "an answer came after a part of a stream"
                );
                self.answer = Some(answer);
            }
        }
    }

    /// The data of the stream's events.
    fn data(&self) -> Vec<Value> {
        let text = std::str::from_utf8(&self.stream).expect("UTF-8");
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.map(|data| serde_json::from_str(data).unwrap_or_else(|_| json!(data)))
            .collect()
    }
}

/// Feeds a body in pieces of so many bytes.
fn play(mut converter: ResponseConverter, body: &[u8], piece: usize) -> Received {
    let mut received = Received::default();
    converter.count(counts_in(body));
    for piece in body.chunks(piece) {
        received.take(converter.feed(piece));
    }
    received.take(converter.finish());
    received
}

/// What the last `usage` in a body of fixtures counts.
fn counts_in(body: &[u8]) -> Usage {
    let text = String::from_utf8_lossy(body);
    let at = text.rfind("\"usage\":{").map(|at| at + "\"usage\":".len());
    let rest = &text[at.unwrap_or(text.len())..];
    let usage = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
    let usage = usage
        .into_iter()
        .next()
        .and_then(Result::ok)
        .unwrap_or_default();
    let count = |path: &str| usage.pointer(path).and_then(Value::as_u64);
    Usage {
        input: count("/input_tokens").unwrap_or(0),
        cached: count("/input_tokens_details/cached_tokens").unwrap_or(0),
        cache_write: count("/input_tokens_details/cache_write_tokens"),
        output: count("/output_tokens").unwrap_or(0),
        reasoning: count("/output_tokens_details/reasoning_tokens").unwrap_or(0),
    }
}

/// The answer that a client of Messages gets who wants no stream.
fn answer_to(body: &[u8], piece: usize) -> Answer {
    let received = play(converter(Endpoint::Messages, &json!({})), body, piece);
    received.answer.expect("an answer")
}

/// The bytes of a stream of these events.
fn stream_of(events: &[Value], line_end: &str) -> Vec<u8> {
    let event = |event: &Value| {
        let name = event["type"].as_str().unwrap_or("message");
        format!("event: {name}{line_end}data: {event}{line_end}{line_end}")
    };
    events.iter().map(event).collect::<String>().into_bytes()
}
