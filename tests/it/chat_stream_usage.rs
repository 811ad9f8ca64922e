//! Usage of chat streams that nobody asked for: the body is changed to ask for it, and the chunk that comes of it is hidden
//! where it is to be.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::support::client::Answer;
use crate::support::h2_script;
use crate::support::proxy::{self, Proxy};
use crate::support::upstream::{self, Reply, Upstream, reply};

const PATH: &str = "/v1/chat/completions";
const BODY: &str = r#"{"model":"m-1","stream":true}"#;
const TEXT: &str = "data: {\"id\":\"c1\",\"choices\":[{\"delta\":{\"content\":\"x\"},\"finish_reason\":\"stop\"}],\"usage\":null}\n\n";
const USAGE: &str = "data: {\"id\":\"c1\",\"choices\":[],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":7}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

fn proxy_to(upstream: &Upstream, setting: &str) -> Proxy {
    let setting = format!("chat_stream_usage: {setting}");
    proxy::new().upstream_with("main", upstream, &setting).run()
}

fn post(proxy: &Proxy, body: &str) -> Answer {
    proxy.client("sk-plain").post(PATH, body)
}

/// What the body that the upstream got says of its stream.
fn asked(upstream: &Upstream) -> Value {
    let body: Value = serde_json::from_str(upstream.request().text()).unwrap();
    body["stream_options"].clone()
}

fn assert_billed(proxy: &Proxy) {
    let record = proxy.record();
    assert_eq!(record["usage_state"], "final");
    assert_eq!(
        (&record["input_tokens"], &record["output_tokens"]),
        (&json!(10), &json!(7))
    );
}

/// The stream with a length, as some gateways send it.
fn with_length() -> Reply {
    let body = [TEXT, USAGE, DONE].concat();
    Reply::default().send(format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ))
}

#[test]
fn a_chunk_that_the_client_did_not_ask_for_is_hidden_however_the_stream_is_framed() {
    for stream in [reply(200).sse(&[TEXT, USAGE, DONE]), with_length()] {
        let upstream = upstream::script([stream]).run();
        let proxy = proxy_to(&upstream, "request_and_hide");
        let answer = post(&proxy, BODY);
        assert_eq!(
            (answer.text(), answer.whole),
            ([TEXT, DONE].concat().as_str(), true)
        );
        assert_eq!(asked(&upstream), json!({"include_usage": true}));
        assert_billed(&proxy);
    }
}

#[test]
fn usage_is_asked_for_whatever_the_method_is_spelled() {
    let upstream = upstream::sse(&[TEXT, USAGE, DONE]).run();
    let proxy = proxy_to(&upstream, "request");
    let client = proxy.client("sk-plain");
    let length = BODY.len().to_string();
    let head = client
        .clone()
        .header("Content-Length", &length)
        .head("post", PATH);
    client.exchange(&[head.as_slice(), BODY.as_bytes()].concat());
    assert_eq!(asked(&upstream), json!({"include_usage": true}));
    assert_billed(&proxy);
}

#[test]
fn a_stream_is_searched_whatever_its_type_says() {
    for kind in ["", "Content-Type: application/json\r\n"] {
        let body = [TEXT, USAGE, DONE].concat();
        let stream = Reply::default().send(format!(
            "HTTP/1.1 200 OK\r\n{kind}Content-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        let upstream = upstream::script([stream]).run();
        let proxy = proxy_to(&upstream, "request_and_hide");
        assert_eq!(post(&proxy, BODY).text(), [TEXT, DONE].concat(), "{kind}");
        assert_billed(&proxy);
    }
}

/// A stream whose head names a coding.
fn under(coding: &str, body: &[u8]) -> Reply {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: {coding}\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    Reply::default().send([head.as_bytes(), body].concat())
}

#[test]
fn a_stream_is_searched_where_its_first_byte_refutes_the_coding_that_its_head_names() {
    let body = [TEXT, USAGE, DONE].concat();
    for coding in [
        "identity",
        "none",
        "UTF-8",
        "aws-chunked",
        "gzip",
        "gzip, br",
    ] {
        let upstream = upstream::script([under(coding, body.as_bytes())]).run();
        let proxy = proxy_to(&upstream, "request_and_hide");
        assert_eq!(post(&proxy, BODY).text(), [TEXT, DONE].concat(), "{coding}");
        assert_billed(&proxy);
    }
}

#[test]
fn a_stream_that_is_coded_goes_on_as_it_came() {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder
        .write_all([TEXT, USAGE, DONE].concat().as_bytes())
        .unwrap();
    let coded = encoder.finish().unwrap();
    let upstream = upstream::script([under("gzip", &coded)]).run();
    let proxy = proxy_to(&upstream, "request_and_hide");
    assert_eq!(post(&proxy, BODY).body, coded);
    assert_billed(&proxy);
}

#[test]
fn what_is_held_of_a_stream_that_trailers_end_reaches_the_client() {
    let upstream = h2_script::upstream(|peer| {
        peer.serve(|peer, stream| {
            peer.respond(stream, 200, &[("content-type", "text/event-stream")]);
            peer.data(stream, [TEXT, USAGE, DONE.trim_end()].concat().as_bytes());
            peer.trailers(stream);
        });
    });
    let proxy = proxy::new()
        .upstream_with("main", &upstream, "chat_stream_usage: request_and_hide")
        .run();
    let answer = post(&proxy, BODY);
    assert_eq!(
        (answer.text(), answer.whole),
        ([TEXT, DONE.trim_end()].concat().as_str(), true)
    );
    assert_billed(&proxy);
}

#[test]
fn a_chunk_that_the_client_asked_for_stays() {
    let body = r#"{"model":"m-1","stream":true,"stream_options":{"include_usage":true}}"#;
    let upstream = upstream::script([with_length()]).run();
    let proxy = proxy_to(&upstream, "request_and_hide");
    let answer = post(&proxy, body);
    assert_eq!(answer.text(), [TEXT, USAGE, DONE].concat());
    assert_eq!(upstream.request().text(), body);
    assert_billed(&proxy);
}

#[test]
fn a_chunk_that_is_not_to_be_hidden_reaches_the_client() {
    let upstream = upstream::sse(&[TEXT, USAGE, DONE]).run();
    let proxy = proxy_to(&upstream, "request");
    assert_eq!(post(&proxy, BODY).text(), [TEXT, USAGE, DONE].concat());
    assert_eq!(asked(&upstream), json!({"include_usage": true}));
    assert_billed(&proxy);
}

#[test]
fn a_body_that_two_readers_may_take_for_different_streams_is_refused() {
    let upstream = upstream::sse(&[TEXT, DONE]).run();
    let proxy = proxy_to(&upstream, "request");
    for body in [
        r#"{"model":"m-1","stream":true,"stream_options":{"include_usage":true},"stream_options":{}}"#,
        r#"{"model":"m-1","stream":true,"Stream_Options":{}}"#,
        r#"{"model":"m-1","stream":false,"stream":true}"#,
    ] {
        let answer = post(&proxy, body);
        assert_eq!(answer.status, 400, "{body}");
        assert!(
            answer.text().contains("stream_options"),
            "{}",
            answer.text()
        );
    }
    upstream.assert_untouched();
}
