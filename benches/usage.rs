//! What observation costs, in bytes of the response per second. A stream arrives one event at a time, as from an
//! upstream that writes each delta at once.

mod samples;

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use http::HeaderMap;
use samples::{DELTAS, responses_events};
use tiergate::accounting::usage::ResponseObserver;
use tiergate::policy::endpoint::Endpoint;

fn main() {
    divan::main();
}

#[divan::bench]
fn responses_stream(bencher: Bencher) {
    run(bencher, Endpoint::Responses, &responses_events());
}

#[divan::bench]
fn responses_deltas(bencher: Bencher) {
    let deltas = &responses_events()[2..2 + DELTAS];
    run(bencher, Endpoint::Responses, deltas);
}

#[divan::bench]
fn chat_stream(bencher: Bencher) {
    let chunk = r#"data: {"id":"chatcmpl-Bx12","object":"chat.completion.chunk","created":1760000000,"model":"gpt-5.5-2026-04-01","service_tier":"priority","system_fingerprint":"fp_1","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}],"usage":null,"obfuscation":"aB3xYz"}"#;
    let mut events = vec![format!("{chunk}\n\n"); DELTAS];
    events.push("data: [DONE]\n\n".into());
    run(bencher, Endpoint::ChatCompletions, &events);
}

#[divan::bench]
fn messages_stream(bencher: Bencher) {
    let delta = r#"event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" token"}}"#;
    let mut events = vec![format!("{delta}\n\n"); DELTAS];
    events.push("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n".into());
    run(bencher, Endpoint::Messages, &events);
}

fn run(bencher: Bencher, endpoint: Endpoint, events: &[String]) {
    let bytes: usize = events.iter().map(String::len).sum();
    bencher.counter(BytesCount::new(bytes)).bench(|| {
        let mut observer = ResponseObserver::new(endpoint, true, &HeaderMap::new())
            .expect("the endpoint is observed");
        for event in events {
            observer.feed(black_box(event.as_bytes()));
        }
        observer.finish()
    });
}
