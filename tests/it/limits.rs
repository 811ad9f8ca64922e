//! What is allowed at once, of requests and connections, and how large a head may be.

use std::fs;

use crate::support::client::{Answer, Connection};
use crate::support::h2::{self, Framing};
use crate::support::proxy::{self, Proxy};
use crate::support::upstream::{self, Reply, Upstream, reply};
use crate::support::{eventually, object_of};
use serde_json::json;
use tiergate::codec::websocket::{Opcode, encode};

const PATH: &str = "/v1/responses";
const ONE: &str = "\
version: 1
groups:
  fast: {platform: openai, force_fast_mode: true, max_in_flight: 1}
  plain: {platform: openai}
keys: {sk-fast: fast, sk-plain: plain}
";

/// The first request runs until it is released; all others are answered at once.
fn first_holds() -> Upstream {
    let hold = upstream::silence().send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
    upstream::script([hold, reply(200).json("{}")]).run()
}

/// A request that the upstream has and does not answer yet.
fn running(proxy: &Proxy, upstream: &Upstream, key: &str) -> Connection {
    let client = proxy.client(key);
    let mut connection = client.connect();
    connection.send(client.message(PATH, b"{}"));
    upstream.await_heads(1);
    connection
}

fn assert_too_many(answer: &Answer) {
    assert_eq!((answer.status, answer.whole), (429, true), "{answer:?}");
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(answer.header("x-should-retry"), None);
}

#[test]
fn a_group_has_no_more_requests_in_flight_than_it_may() {
    let upstream = first_holds();
    let proxy = proxy::new().upstream(&upstream).policy(ONE).run();
    let mut first = running(&proxy, &upstream, "sk-fast");
    let refused = proxy.client("sk-fast").post(PATH, "{}");
    assert_too_many(&refused);
    assert_eq!(refused.openai_code(), "too_many_requests");
    let refused = proxy.client("sk-fast").post("/v1/messages", "{}");
    assert_too_many(&refused);
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    assert_eq!(proxy.client("sk-plain").post(PATH, "{}").status, 200);
    upstream.release();
    assert_eq!(first.answer().status, 200);
    assert_eq!(proxy.client("sk-fast").post(PATH, "{}").status, 200);

    let refused = &proxy.access_log(5)[0];
    let told = (&refused["outcome"], &refused["error"], &refused["group"]);
    let expected = (json!("rejected"), json!("too_many_requests"), json!("fast"));
    assert_eq!(told, (&expected.0, &expected.1, &expected.2));
}

#[test]
fn requests_are_counted_over_a_change_of_the_policy() {
    let upstream = first_holds();
    let without = ONE.replace(", max_in_flight: 1", "");
    let proxy = proxy::new().upstream(&upstream).policy(&without).run();
    let mut first = running(&proxy, &upstream, "sk-fast");
    let before = proxy.status()["policy"]["revision"].clone();
    fs::write(proxy.path("policy.yaml"), ONE).unwrap();
    eventually("the new policy", || {
        (proxy.status()["policy"]["revision"] != before).then_some(())
    });
    assert_too_many(&proxy.client("sk-fast").post(PATH, "{}"));
    upstream.release();
    assert_eq!(first.answer().status, 200);
    assert_eq!(proxy.client("sk-fast").post(PATH, "{}").status, 200);
}

#[test]
fn the_process_has_a_limit_over_all_groups() {
    let upstream = first_holds();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {requests_in_flight: 1}")
        .run();
    let mut first = running(&proxy, &upstream, "sk-fast");
    assert_too_many(&proxy.client("sk-plain").post(PATH, "{}"));
    // Not even refused ones are let in by a key that nobody knows.
    assert_eq!(proxy.client("sk-unknown").post(PATH, "{}").status, 401);
    upstream.release();
    assert_eq!(first.answer().status, 200);
    assert_eq!(proxy.client("sk-plain").post(PATH, "{}").status, 200);
}

#[test]
fn no_key_takes_all_places_of_its_group() {
    let upstream = first_holds();
    let policy = "version: 1\ndefault_group: fast\ngroups:\n  fast: {platform: openai, force_fast_mode: true, \
        max_in_flight: 3, max_in_flight_per_key: 1}\nkeys: {sk-one: fast, sk-two: fast}\n";
    let proxy = proxy::new().upstream(&upstream).policy(policy).run();
    let mut first = running(&proxy, &upstream, "sk-one");
    let refused = proxy.client("sk-one").post(PATH, "{}");
    assert_too_many(&refused);
    let message = refused.json()["error"]["message"].to_string();
    assert!(message.contains("of this key"), "{message}");
    // Every other key has its own, those that are not listed too.
    for key in ["sk-two", "sk-three", "sk-four"] {
        assert_eq!(proxy.client(key).post(PATH, "{}").status, 200, "{key}");
    }
    upstream.release();
    assert_eq!(first.answer().status, 200);
    assert_eq!(proxy.client("sk-one").post(PATH, "{}").status, 200);
}

#[test]
fn a_client_that_waits_for_each_answer_is_never_one_too_many() {
    let upstream = upstream::script([
        reply(200).json("{}"),
        reply(200).sse(&["data: {}\n\n"]),
        reply(400).json("{}"),
        reply(200).json("{}"),
    ])
    .run();
    let proxy = proxy::new().upstream(&upstream).policy(ONE).run();
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    for round in 0..200 {
        connection.send(client.message(PATH, b"{}"));
        let answer = connection.answer();
        assert!(answer.status != 429, "request {round}: {answer:?}");
    }
}

#[test]
fn a_refused_body_gives_its_place_back() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).policy(ONE).run();
    for _ in 0..3 {
        assert_eq!(proxy.client("sk-fast").post(PATH, "{").status, 400);
    }
    assert_eq!(proxy.client("sk-fast").post(PATH, "{}").status, 200);
}

#[test]
fn a_head_may_be_as_large_as_the_limit() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {header: 2KiB}")
        .run();
    let of = |bytes: usize| {
        let filler = "x".repeat(bytes);
        let client = proxy.client("sk-fast").header("X-Filler", &filler);
        client.post(PATH, "{}")
    };
    assert_eq!(of(1024).status, 200);
    let refused = of(2048);
    assert_eq!(refused.status, 431);
    assert_eq!(refused.openai_code(), "header_too_large");
    assert_eq!(refused.header("x-should-retry"), Some("false"));
    upstream.requests(1);
}

#[test]
fn a_head_over_http_2_may_be_as_large_as_one_over_http_1() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .tls()
        .setting("limits: {header: 200KB}")
        .run();
    let of = |bytes: usize| {
        let filler = "x".repeat(bytes);
        let headers = [("authorization", "Bearer sk-fast"), ("x-filler", &filler)];
        h2::post(proxy.tls_address, &headers, PATH, b"{}", Framing::Length)
    };
    assert_eq!(of(190_000).status, 200);
    assert_eq!(of(200_000).openai_code(), "header_too_large");
    assert_eq!(of(900_000).openai_code(), "header_too_large");
    // What is far too large is not read, and refused by the protocol's own means.
    assert_eq!(of(1_200_000).status, 431);
    for record in &proxy.stop()[1..] {
        assert_eq!(record["error"], "header_too_large");
    }
}

#[test]
fn a_head_that_goes_on_beyond_the_limit_is_not_read_on() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {header: 100KB}")
        .run();
    let client = proxy.client("sk-fast");
    // One that is too long and ends is refused in good order, and a long body behind a short head is none of it.
    let long = client.clone().header("X-Filler", &"x".repeat(150_000));
    assert_eq!(long.post(PATH, "{}").openai_code(), "header_too_large");
    let pipelined = [
        client.message(PATH, b"{}"),
        client.message(PATH, &object_of(900_000)),
    ];
    let mut connection = client.connect();
    connection.send(pipelined.concat());
    assert_eq!(connection.answer().status, 200);
    assert_eq!(connection.answer().status, 200);

    let mut connection = client.connect();
    connection.send("POST /v1/responses HTTP/1.1\r\nX: ");
    connection.send("x".repeat(500_000));
    // The rest of it is not read, which may cost the client the answer.
    let answer = connection.try_answer();
    assert!(answer.is_none_or(|answer| answer.openai_code() == "header_too_large"));
    assert!(connection.try_answer().is_none());
    proxy.access_log(3);
}

#[test]
fn connections_over_the_limit_wait_for_one_to_end() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {connections: 1}")
        .run();
    let client = proxy.client("sk-fast");
    let mut first = client.connect();
    first.send(client.message(PATH, b"{}"));
    assert_eq!(first.answer().status, 200);
    let mut second = client.connect();
    second.send(client.message(PATH, b"{}"));
    eventually("a connection that waits", || {
        (proxy.metric("tiergate_accept_rests_total") > 0.0).then_some(())
    });
    assert_eq!(proxy.metric("tiergate_connections"), 1.0);
    upstream.requests(1);
    drop(first);
    assert_eq!(second.answer().status, 200);
}

#[test]
fn a_response_on_a_websocket_is_a_request_in_flight_and_the_connection_is_none() {
    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n";
    let socket = Reply::default().before_body().send(switch).hold();
    let socket = upstream::script([socket, reply(200).json("{}")]).run();
    let proxy = proxy::new().upstream(&socket).policy(ONE).run();
    let client = proxy.client("sk-fast");
    let upgrade = client.clone().upgrade();
    let mut connection = upgrade.connect();
    connection.send(upgrade.head("GET", PATH));
    assert_eq!(connection.head().unwrap().status, 101);
    // It is idle, so there is room for a request.
    assert_eq!(client.post(PATH, "{}").status, 200);
    let create = br#"{"type":"response.create"}"#;
    let message = encode(true, Opcode::Text, Some([1, 2, 3, 4]), create);
    connection.send([&message[..], &message].concat());
    let told = connection.rest();
    let text = String::from_utf8_lossy(&told);
    // The line of the turn tells what its client was told: Codex would not try again after 429.
    assert!(text.contains(r#""status":503"#), "{text}");
    assert!(text.contains(r#""code":"too_many_requests""#), "{text}");
    let close = told.windows(2).any(|code| code == 1013_u16.to_be_bytes());
    assert!(close, "{text}");
    assert_eq!(client.post(PATH, "{}").status, 200);
    let lines = proxy.access_log(5);
    let refused = lines.iter().filter(|line| line["turn"] != 0);
    let told: Vec<_> = refused
        .map(|line| (&line["status"], &line["error"]))
        .collect();
    let too_many = (&json!(503), &json!("too_many_requests"));
    assert_eq!(told, [too_many, too_many]);
}
