//! The bridge, in both directions. Any body is converted or refused, the same way each time, and what is converted is JSON
//! without a tier. Any stream of the upstream gives the client one that keeps its protocol's grammar: blocks in order and
//! never two open, one end or one error and nothing after it; and the same whatever pieces it comes in.
//!
//! An input is the two bytes of a seed, one that says what the client called, and either a body or what is taken for a
//! stream: lines of events, each of which is given its framing here unless it has it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tiergate_fuzz::bridge::{
    Answer, ClientRequest, Delivery, Endpoint, Limits, Output, ResponseConverter, UpstreamBridge,
    UpstreamError, UpstreamKind, convert,
};
use tiergate_fuzz::config::{BridgeOptions, ModelEntry};
use tiergate_fuzz::pieces;

const MESSAGES: &[u8] = br#"{"model":"claude-a","max_tokens":9,"stream":true,"thinking":{"type":"adaptive"},"stop_sequences":["ab"],
    "messages":[{"role":"user","content":"hi"}],"tools":[{"name":"T","input_schema":{"type":"object"}}]}"#;
const WHOLE: &[u8] =
    br#"{"model":"claude-a","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}"#;
const CHAT: &[u8] =
    br#"{"model":"gpt-5.5","stream":true,"stop":["ab"],"messages":[{"role":"user","content":"hi"}],
    "stream_options":{"include_usage":true}}"#;

#[derive(Debug, Default, PartialEq)]
struct Received {
    stream: Vec<u8>,
    /// The stream has ended, and as it should.
    whole: Option<bool>,
    answer: Option<Answer>,
}

fn upstream() -> UpstreamBridge {
    UpstreamBridge {
        name: "main".to_owned(),
        kind: UpstreamKind::OpenAi,
        options: BridgeOptions::of(false),
        models: vec![
            ModelEntry::new("claude-*", Some("gpt-5.5")),
            ModelEntry::new("gpt-*", None),
        ],
    }
}

fn request(endpoint: Endpoint, body: &[u8]) -> ClientRequest<'_> {
    ClientRequest {
        endpoint,
        body,
        session: None,
        group: "team",
    }
}

fn check_request(endpoint: Endpoint, body: &[u8]) {
    let (asked, upstream) = (request(endpoint, body), upstream());
    let (first, second) = (convert(&asked, &upstream), convert(&asked, &upstream));
    match (first, second) {
        (Ok(first), Ok(second)) => {
            assert_eq!(first.body, second.body, "not the same twice");
            let sent: Value = serde_json::from_slice(&first.body).expect("JSON");
            assert!(sent["input"].is_array() && sent.get("service_tier").is_none());
            let visible = |name: &String| name.bytes().all(|byte| byte.is_ascii_graphic());
            assert!(first.dropped.len() <= 64 && first.dropped.iter().all(visible));
            serde_json::from_slice::<Value>(&first.with_client_tier()).expect("JSON");
        }
        (Err(first), Err(second)) => {
            assert_eq!(first, second, "not the same twice");
            let answer = first.answer(endpoint.protocol(), "r").body;
            serde_json::from_slice::<Value>(&answer).expect("JSON");
        }
        other => panic!("not the same twice: {other:?}"),
    }
}

fn converter(endpoint: Endpoint, body: &[u8]) -> ResponseConverter {
    let converted = convert(&request(endpoint, body), &upstream()).expect("a good request");
    let limits = Limits {
        event: 4096,
        waiting: 4096,
        whole: 4096,
    };
    let delivery = Delivery {
        request_id: "req-1".to_owned(),
        created: 1_700_000_000,
        fallback_id: "own".to_owned(),
        sent_tier: None,
        tier_trusted: true,
        limits,
    };
    ResponseConverter::new(converted.context, delivery)
}

impl Received {
    fn take(&mut self, output: Output) {
        let is_over = self.whole.is_some() || self.answer.is_some();
        match output {
            Output::Nothing => {}
            _ if is_over => panic!("something comes after the end: {output:?}"),
            Output::Write(bytes) => self.stream.extend(bytes),
            Output::End { bytes, whole } => {
                self.stream.extend(bytes);
                self.whole = Some(whole);
            }
            Output::Answer(answer) => {
                assert!(self.stream.is_empty(), "an answer behind a stream");
                self.answer = Some(answer);
            }
        }
    }

    fn events(&self) -> Vec<Value> {
        let text = std::str::from_utf8(&self.stream).expect("UTF-8");
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let parsed = data.map(|data| serde_json::from_str(data).unwrap_or_else(|_| data.into()));
        parsed.collect()
    }
}

fn play<'b>(
    mut converter: ResponseConverter,
    pieces: impl IntoIterator<Item = &'b [u8]>,
) -> Received {
    let mut received = Received::default();
    for piece in pieces {
        received.take(converter.feed(piece));
    }
    received.take(converter.finish());
    received
}

/// The grammar of Anthropic's streaming protocol.
fn check_messages(events: &[Value], whole: bool) {
    let (mut open, mut blocks) = (None, 0_u64);
    for (place, event) in events.iter().enumerate() {
        let is_last = place + 1 == events.len();
        let kind = event["type"].as_str().expect("a type");
        assert_eq!(kind == "message_start", place == 0, "{events:?}");
        match kind {
            "content_block_start" => {
                assert_eq!((open, event["index"].as_u64()), (None, Some(blocks)));
                open = Some(blocks);
                blocks += 1;
            }
            "content_block_delta" => assert_eq!(open, event["index"].as_u64(), "{events:?}"),
            "content_block_stop" => assert_eq!(open.take(), event["index"].as_u64()),
            "message_delta" => assert_eq!(open, None, "{events:?}"),
            "message_stop" => assert!(is_last && whole),
            "error" => assert!(is_last && !whole),
            "ping" => {}
            _ => assert_eq!(kind, "message_start", "{events:?}"),
        }
    }
}

/// A role first, and `[DONE]` or an error at the end only.
fn check_chat(chunks: &[Value], whole: bool) {
    for (place, chunk) in chunks.iter().enumerate() {
        let is_last = place + 1 == chunks.len();
        let has_role = chunk["choices"][0]["delta"].get("role").is_some();
        assert_eq!(has_role, place == 0, "{chunks:?}");
        assert_eq!(chunk == "[DONE]", is_last && whole, "{chunks:?}");
        assert_eq!(chunk.get("error").is_some(), is_last && !whole);
    }
}

/// Lines as events, so that a fuzzer need not find out how these are framed.
fn stream_of(lines: &[u8]) -> Vec<u8> {
    let framed = |line: &[u8]| match line.starts_with(b"data:") || line.starts_with(b"event:") {
        true => [line, b"\n"].concat(),
        false => [b"data: ", line, b"\n\n"].concat(),
    };
    lines
        .split(|byte| *byte == b'\n')
        .flat_map(framed)
        .collect()
}

fn check_stream(endpoint: Endpoint, asked: &[u8], stream: &[u8], seed: u16) {
    let received = play(converter(endpoint, asked), [stream]);
    let in_pieces = play(converter(endpoint, asked), pieces(stream, seed));
    assert_eq!(received, in_pieces, "it depends on how it is cut");
    match (received.whole, endpoint) {
        (None, _) => assert!(received.answer.is_some() && received.stream.is_empty()),
        (Some(whole), Endpoint::Chat) => check_chat(&received.events(), whole),
        (Some(whole), _) => check_messages(&received.events(), whole),
    }
    // A connection that breaks, at any time.
    let mut cut = converter(endpoint, asked);
    let mut before = Received::default();
    before.take(cut.feed(&stream[..usize::from(seed).min(stream.len())]));
    before.take(cut.cut());
    assert!(before.whole.is_some() || before.answer.is_some());
}

fuzz_target!(|input: &[u8]| {
    let Some((&[low, high, kind], rest)) = input.split_first_chunk::<3>() else {
        return;
    };
    let seed = u16::from_le_bytes([low, high]);
    match kind % 8 {
        0 => check_request(Endpoint::Messages, rest),
        1 => check_request(Endpoint::CountTokens, rest),
        2 => check_request(Endpoint::Chat, rest),
        3 => check_stream(Endpoint::Messages, MESSAGES, &stream_of(rest), seed),
        4 => check_stream(Endpoint::Messages, WHOLE, &stream_of(rest), seed),
        5 => check_stream(Endpoint::Chat, CHAT, &stream_of(rest), seed),
        6 => check_stream(Endpoint::Messages, MESSAGES, rest, seed),
        _ => {
            let error = UpstreamError {
                status: 400 + seed % 200,
                retry_after: None,
                body: rest,
                own_credential: seed > 1000,
                now: 0,
            };
            for endpoint in [Endpoint::Messages, Endpoint::Chat] {
                let body = error.answer(endpoint.protocol(), "r").body;
                serde_json::from_slice::<Value>(&body).expect("JSON");
            }
        }
    }
});
