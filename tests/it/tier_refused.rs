//! A tier that the upstream refuses, in a group whose requests are then sent once more without it: over HTTP with each framing
//! of a body, and for messages of a WebSocket.

use std::io::Read;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::read::GzEncoder;
use serde_json::{Value, json};

use crate::support::h2::{self, Framing};
use crate::support::proxy::{self, Proxy};
use crate::support::record::assert_told;
use crate::support::upstream::{self, Reply, Upstream, reply};
use crate::support::{eventually, object_of};
use crate::websocket_live::ends::{self, COMPLETED, CREATE, CREATED, DELTA, FORCED, Heard, Socket};

const POLICY: &str = "\
version: 1
groups:
  fast:
    platform: openai
    force_fast_mode: true
    on_tier_refused: retry_without
    budget: {usd: 0.000001, per: month, then: refuse}
  strict: {platform: openai, force_fast_mode: true}
keys:
  sk-fast: {group: fast, name: fiona}
  sk-strict: {group: strict, name: sven}
";
const PRICES: &str = "\
version: 1
prices:
  - models: ['m-*']
    tiers:
      default: {input: 1, cached_input: 1, output: 1}
      priority: {input: 2, cached_input: 2, output: 2}
";
const PATH: &str = "/v1/responses";
/// How long an error is kept back for its end.
const KEPT_TIME: Duration = Duration::from_secs(2);
const BODY: &str = r#"{"model":"m-1","service_tier":"flex","n":1.0}"#;
const REFUSAL: &str =
    r#"{"error":{"message":"no","code":"unsupported_value","param":"service_tier"}}"#;
const SERVED: &str =
    r#"{"id":"resp_1","model":"m-1","status":"completed","service_tier":"default"}"#;
/// What the upstream says to a message whose tier it refuses.
const REFUSED: &str = r#"{"type":"error","status":400,"error":{"type":"invalid_request_error","code":"unsupported_value","message":"no","param":"service_tier"}}"#;
/// CREATE without its tier, in as many bytes as FORCED.
const WITHOUT: &str = concat!(
    r#"{"type":"response.create","model":"m-1""#,
    "                      ",
    r#","n":1.0}"#
);

/// What a line says of a request that was sent once more.
fn told_twice() -> Value {
    json!({
        "outcome": "ok",
        "service_tier": null,
        "service_tier_client": "flex",
        "service_tier_billed": "default",
        "tier_reason": "group_force",
        "tier_refused": true,
        "upstream_error": null,
        "downgraded": false,
    })
}

// HTTP.

fn refusing() -> Upstream {
    upstream::script([reply(400).json(REFUSAL), reply(200).json(SERVED)]).run()
}

fn proxy_to(upstream: &impl proxy::Target) -> Proxy {
    proxy::new()
        .upstream(upstream)
        .policy(POLICY)
        .prices(PRICES)
        .tls()
        .run()
}

/// Whether the body that the upstream got says nothing of a tier, and all else.
fn assert_sent_twice(upstream: &Upstream) {
    let received = upstream.requests(2);
    assert!(received[0].text().contains("priority"));
    assert!(!received[1].text().contains("service_tier"));
    let sent: Value = serde_json::from_str(received[1].text()).unwrap();
    assert_eq!(sent["model"], "m-1");
    assert_eq!(
        received[1].header("content-length"),
        [received[1].text().len().to_string()]
    );
}

#[test]
fn a_request_is_sent_once_more_whatever_the_framing_of_its_body() {
    for framing in ["length", "chunks", "http/2 without a length"] {
        let upstream = refusing();
        let proxy = proxy_to(&upstream);
        let client = proxy.client("sk-fast");
        let (begin, end) = BODY.as_bytes().split_at(20);
        let answer = match framing {
            "length" => client.post(PATH, BODY),
            "chunks" => client.post_chunked(PATH, &[begin, end]),
            _ => {
                let headers = [("authorization", "Bearer sk-fast")];
                let body = BODY.as_bytes();
                h2::post(proxy.tls_address, &headers, PATH, body, Framing::NoLength)
            }
        };
        assert_eq!((answer.status, answer.text()), (200, SERVED), "{framing}");
        assert_sent_twice(&upstream);
        assert_told(&proxy.record(), &told_twice());
        assert_eq!(proxy.metric("tiergate_tier_refused_total"), 1.0);
    }
}

#[test]
fn a_refusal_is_seen_under_a_coding_that_its_head_names_and_its_first_byte_refutes() {
    for coding in ["none", "UTF-8", "gzip"] {
        let refusal = Reply::default().send(format!(
            "HTTP/1.1 400 X\r\nContent-Encoding: {coding}\r\nContent-Length: {}\r\n\r\n{REFUSAL}",
            REFUSAL.len()
        ));
        let upstream = upstream::script([refusal, reply(200).json(SERVED)]).run();
        let proxy = proxy_to(&upstream);
        let answer = proxy.client("sk-fast").post(PATH, BODY);
        assert_eq!((answer.status, answer.text()), (200, SERVED), "{coding}");
        assert_sent_twice(&upstream);
        assert_told(&proxy.record(), &told_twice());
    }
}

#[test]
fn whatever_else_asks_for_the_fast_tier_goes_with_it() {
    let upstream = refusing();
    let proxy = proxy::new()
        .upstream_with("main", &upstream, "messages: tier_and_beta")
        .policy(POLICY)
        .run();
    let client = proxy.client("sk-fast").header("Anthropic-Beta", "a");
    let body = r#"{"model":"m-1","speed":"fast","Speed":" FAST","max_tokens":1}"#;
    assert_eq!(client.post("/v1/messages", body).status, 200);
    let [first, second] = &upstream.requests(2)[..] else {
        panic!("two attempts")
    };
    assert!(first.text().contains(r#""speed":"fast""#));
    let beta = first.header("anthropic-beta").concat();
    assert!(beta.contains("fast-mode-2026-02-01"), "{beta}");
    let sent: Value = serde_json::from_str(second.text()).unwrap();
    assert_eq!(sent, json!({"model": "m-1", "max_tokens": 1}));
    assert_eq!(second.header("anthropic-beta"), ["a"]);
}

#[test]
fn a_body_without_a_length_that_is_too_long_to_be_read_again_is_not_sent_once_more() {
    let upstream = refusing();
    let proxy = proxy_to(&upstream);
    let body = object_of(70_000);
    let answer = proxy.client("sk-fast").post_chunked(PATH, &[&body]);
    assert_eq!((answer.status, answer.text()), (400, REFUSAL));
    let told =
        json!({"service_tier": "priority", "tier_refused": true, "outcome": "upstream_error"});
    assert_told(&proxy.record(), &told);
}

#[test]
fn what_is_refused_a_second_time_goes_to_the_client() {
    let upstream = upstream::script([reply(400).json(REFUSAL)]).run();
    let proxy = proxy_to(&upstream);
    let answer = proxy.client("sk-fast").post(PATH, BODY);
    assert_eq!((answer.status, answer.text()), (400, REFUSAL));
    upstream.requests(2);
    let told = json!({"service_tier": null, "tier_refused": true, "outcome": "upstream_error"});
    assert_told(&proxy.record(), &told);
}

/// What the client gets for an error of these bytes, which come with a pause between them, and how often it was asked for.
fn answer_to(pieces: &[Vec<u8>]) -> (u16, usize) {
    let mut error = Reply::default();
    for piece in pieces {
        error = error.send(piece.clone()).wait(Duration::from_millis(20));
    }
    let upstream = upstream::script([error, reply(200).json(SERVED)]).run();
    let proxy = proxy_to(&upstream);
    let answer = proxy.client("sk-fast").post(PATH, BODY);
    let refused = proxy.record()["tier_refused"] == true;
    let count = upstream.received().len();
    assert_eq!(refused, count == 2);
    (answer.status, count)
}

fn error_head(lines: &str) -> Vec<u8> {
    format!("HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n{lines}\r\n").into()
}

fn gzip(text: &str) -> Vec<u8> {
    let mut coded = Vec::new();
    let mut encoder = GzEncoder::new(text.as_bytes(), Compression::fast());
    encoder.read_to_end(&mut coded).unwrap();
    coded
}

#[test]
fn a_response_may_take_its_time_behind_hints() {
    let response = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: ";
    let hinted = Reply::default()
        .send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        .wait(KEPT_TIME + Duration::from_millis(500))
        .send(format!("{response}{}\r\n\r\n{SERVED}", SERVED.len()));
    let upstream = upstream::script([hinted]).run();
    let proxy = proxy_to(&upstream);
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send(client.message(PATH, BODY.as_bytes()));
    assert_eq!(connection.head().unwrap().status, 103);
    assert_eq!(connection.answer().text(), SERVED);
    assert_told(
        &proxy.record(),
        &json!({"outcome": "ok", "tier_refused": false}),
    );
}

#[test]
fn a_refusal_is_known_however_it_comes() {
    let length = |body: &[u8]| error_head(&format!("Content-Length: {}\r\n", body.len()));
    let hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".to_vec();
    let of_http10 = format!("HTTP/1.0 400 Bad\nContent-Length: {}\n\n", REFUSAL.len());
    let coded = gzip(REFUSAL);
    let gzip_head = format!(
        "Content-Encoding: gzip\r\nContent-Length: {}\r\n",
        coded.len()
    );
    let padded = REFUSAL.replacen("no", &"x".repeat(30_000), 1);
    let chunks: String = REFUSAL
        .as_bytes()
        .chunks(7)
        .map(|piece| {
            format!(
                "{:x}\r\n{}\r\n",
                piece.len(),
                str::from_utf8(piece).unwrap()
            )
        })
        .collect();
    let in_pieces: Vec<Vec<u8>> = [length(REFUSAL.as_bytes())]
        .into_iter()
        .chain(REFUSAL.as_bytes().chunks(9).map(<[u8]>::to_vec))
        .collect();
    for (way, pieces) in [
        ("in pieces", in_pieces),
        (
            "chunked",
            vec![
                error_head("Transfer-Encoding: chunked\r\n"),
                format!("{chunks}0\r\n\r\n").into(),
            ],
        ),
        ("coded", vec![error_head(&gzip_head), coded]),
        ("long", vec![length(padded.as_bytes()), padded.into()]),
        (
            "behind hints",
            vec![
                hints.clone(),
                hints,
                length(REFUSAL.as_bytes()),
                REFUSAL.into(),
            ],
        ),
        ("of HTTP/1.0", vec![of_http10.into(), REFUSAL.into()]),
    ] {
        assert_eq!(answer_to(&pieces), (200, 2), "{way}");
    }
}

#[test]
fn an_error_that_only_mentions_a_tier_refuses_none() {
    let echo = r#"{"error":{"message":"no","param":"input"},"body":{"service_tier":"priority"}}"#;
    let other = r#"{"error":{"message":"no","param":"model"}}"#;
    let length = |body: &str| format!("Content-Length: {}\r\n", body.len());
    let mentions = format!("X-Service_Tier: service_tier\r\n{}", length(other));
    for (way, head, body) in [
        ("in its head", mentions, other),
        ("in an echo", length(echo), echo),
        (
            "in a page",
            length("<p>service_tier</p>"),
            "<p>service_tier</p>",
        ),
    ] {
        let pieces = [error_head(&head), body.into()];
        assert_eq!(answer_to(&pieces), (400, 1), "{way}");
    }
}

#[test]
fn an_error_that_is_reset_while_it_is_kept_back_is_cut() {
    const PART: &str = r#"{"error":{"message":"no"#;
    let begun = [error_head("Connection: close\r\n"), PART.into()].concat();
    let cut = Reply::default().send(begun).reset();
    let upstream = upstream::script([cut]).run_plain();
    let proxy = proxy_to(&upstream);
    let answer = proxy.client("sk-fast").post(PATH, BODY);
    assert_eq!(
        (answer.status, answer.whole, answer.text()),
        (400, false, PART)
    );
    assert_told(&proxy.record(), &json!({"outcome": "upstream_cut"}));
}

#[test]
fn an_error_of_another_kind_is_not_waited_for() {
    let body = r#"{"error":{"message":"no","param":"model"}}"#;
    let upstream = upstream::script([reply(400).json(body)]).run();
    let proxy = proxy_to(&upstream);
    let client = proxy.client("sk-fast");
    let started = Instant::now();
    for _ in 0..10 {
        assert_eq!(client.post(PATH, BODY).status, 400);
    }
    assert!(started.elapsed() < Duration::from_secs(2));
}

// WebSockets.

/// A forced message that the upstream refuses, and that it has been sent again for.
fn refused(upstream: &ends::Upstream, proxy: &Proxy) -> Socket {
    let mut socket = upstream.open(proxy, "sk-fast");
    socket.client.say(CREATE);
    assert_eq!(socket.server.hear_text(), FORCED);
    socket.server.say(REFUSED);
    assert_eq!(socket.server.hear_text().trim_start(), WITHOUT);
    socket
}

#[test]
fn a_message_is_sent_once_more_and_its_client_hears_nothing_of_the_refusal() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = refused(&upstream, &proxy);
    ends::answer(&mut socket, &[CREATED, DELTA, COMPLETED]);
    let told = json!({
        "turn": 1, "cost_usd": "0.000017", "service_tier_served": "default",
        "response_bytes": CREATED.len() + DELTA.len() + COMPLETED.len(),
        "upstream_request_bytes": WITHOUT.len(), "request_bytes": CREATE.len(),
    });
    let record = proxy.record();
    assert_told(&record, &told_twice());
    assert_told(&record, &told);
    assert_eq!(proxy.metric("tiergate_tier_refused_total"), 1.0);
    assert_eq!(proxy.metric("tiergate_buffered_bytes"), 0.0);
    // It was not billed as priority, so the budget is as it was, and the next message is forced again.
    socket.client.say(CREATE);
    assert_eq!(socket.server.hear_text(), FORCED);
    ends::answer(&mut socket, &[CREATED, COMPLETED]);
    let told = json!({"turn": 2, "service_tier": "priority", "tier_refused": false});
    assert_told(&proxy.access_log(2)[1], &told);
    socket.close();
    proxy.access_log(3);
}

#[test]
fn a_failed_response_that_never_began_is_a_refusal_as_well() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = upstream.open_turn(&proxy, "sk-fast");
    socket.server.say(
        r#"{"type":"response.failed","response":{"id":"resp_0","status":"failed","error":{"code":"invalid_service_tier","message":"service_tier"}}}"#,
    );
    assert_eq!(socket.server.hear_text().trim_start(), WITHOUT);
    ends::answer(&mut socket, &[CREATED, COMPLETED]);
    let record = proxy.record();
    assert_told(&record, &told_twice());
    assert_eq!(record["response_id"], "resp_1");
}

#[test]
fn a_message_that_is_refused_a_second_time_is_the_clients() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = refused(&upstream, &proxy);
    socket.server.say(REFUSED);
    assert_eq!(socket.client.hear_text(), REFUSED);
    let told = json!({"service_tier": null, "tier_refused": true, "outcome": "upstream_error", "upstream_error": "unsupported_value"});
    assert_told(&proxy.record(), &told);
}

#[test]
fn what_is_no_refusal_of_the_tier_before_the_response_is_the_clients() {
    let other = r#"{"type":"error","status":400,"error":{"code":"bad","message":"no"}}"#;
    let busy = REFUSED.replace("400", "503");
    let busy_in_other_words = busy.replace("status", "status_code");
    for (key, events, is_refused) in [
        ("sk-fast", &[other][..], false),
        ("sk-fast", &[&busy], false),
        ("sk-fast", &[&busy_in_other_words], false),
        ("sk-strict", &[REFUSED], true),
        (
            "sk-fast",
            &[
                CREATED,
                r#"{"type":"response.failed","response":{"id":"resp_1","error":{"code":"service_tier"}}}"#,
            ],
            true,
        ),
    ] {
        let upstream = ends::upstream();
        let proxy = proxy_to(&upstream);
        let mut socket = upstream.open_turn(&proxy, key);
        ends::answer(&mut socket, events);
        let told = json!({"service_tier": "priority", "outcome": "upstream_error", "tier_refused": is_refused});
        assert_told(&proxy.record(), &told);
    }
}

#[test]
fn a_message_that_may_be_sent_once_more_counts_as_held_until_its_response_begins() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = upstream.open(&proxy, "sk-fast");
    let input = "x".repeat(300_000);
    socket.client.say(format!(
        r#"{{"type":"response.create","model":"m-1","input":"{input}"}}"#
    ));
    socket.server.hear_text();
    assert!(proxy.metric("tiergate_buffered_bytes") > 300_000.0);
    socket.server.say(REFUSED);
    let again = socket.server.hear_text();
    assert!(again.contains(&input) && !again.contains("service_tier"));
    ends::answer(&mut socket, &[CREATED]);
    eventually("nothing held", || {
        (proxy.metric("tiergate_buffered_bytes") == 0.0).then_some(())
    });
}

#[test]
fn a_large_message_is_sent_once_more_in_one_piece_among_those_of_the_client() {
    const STEER: &str = r#"{"type":"response.steer","n":1}"#;
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = upstream.open(&proxy, "sk-fast");
    // More than fits into the buffers of both sockets.
    let input = "x".repeat(12 << 20);
    let create = format!(r#"{{"type":"response.create","model":"m-1","input":"{input}"}}"#);
    std::thread::scope(|scope| {
        let Socket { client, server, .. } = &mut socket;
        scope.spawn(move || {
            client.say(create);
            for _ in 0..500 {
                client.say(STEER);
            }
        });
        assert!(server.hear_text().contains("priority"));
        server.say(REFUSED);
        let mut again = 0;
        for _ in 0..501 {
            match server.hear_text() {
                text if text == STEER => {}
                text => {
                    assert!(text.contains(&input) && !text.contains("service_tier"));
                    again += 1;
                }
            }
        }
        assert_eq!(again, 1);
    });
    ends::answer(&mut socket, &[CREATED, COMPLETED]);
    assert_told(
        &proxy.record(),
        &json!({"outcome": "ok", "tier_refused": true}),
    );
}

#[test]
fn a_drain_waits_for_a_message_that_was_sent_once_more() {
    let upstream = ends::upstream();
    let mut proxy = proxy_to(&upstream);
    let mut socket = refused(&upstream, &proxy);
    proxy.signal(libc::SIGTERM);
    proxy.await_stderr("draining");
    ends::answer(&mut socket, &[CREATED, COMPLETED]);
    let restart = Heard::Close(1012, "the proxy restarts".to_owned());
    assert_eq!(socket.client.hear(), restart);
    socket.client.vanish();
    assert_eq!(proxy.wait().code(), Some(0));
    assert_told(&proxy.access_log(2)[0], &told_twice());
}

#[test]
fn a_second_attempt_that_takes_too_long_is_told_as_such() {
    let upstream = ends::upstream();
    let proxy = proxy::new()
        .upstream_with("main", &upstream, "response_timeout: 300ms")
        .policy(POLICY)
        .run();
    let mut socket = refused(&upstream, &proxy);
    assert_eq!(
        socket.client.hear_farewell(),
        (
            504,
            "server_error".to_owned(),
            "upstream_timeout".to_owned(),
            1011
        )
    );
    let told = json!({"outcome": "timeout", "service_tier": null, "tier_refused": true});
    assert_told(&proxy.access_log(2)[0], &told);
}

#[test]
fn an_upstream_that_ends_in_a_message_that_was_kept_back_is_told_as_cut() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = upstream.open_turn(&proxy, "sk-fast");
    socket.server.fragment(true, false, &REFUSED[..40]);
    socket.server.vanish();
    assert_eq!(socket.client.hear(), Heard::Cut);
    let told = json!({"turn": 1, "outcome": "upstream_cut", "service_tier": "priority", "tier_refused": false});
    assert_told(&proxy.access_log(2)[0], &told);
}
