//! What is so of held requests to an upstream of HTTP/1.1, which are carried in one task with connections of their own.

use std::thread::sleep;
use std::time::Duration;

use crate::support::client::Client;
use crate::support::proxy;
use crate::support::upstream::{self, Reply, reply};

const PATH: &str = "/v1/responses";

/// A forced request with these lines behind its first ones.
fn message(client: &Client, lines: &str, body: &str) -> Vec<u8> {
    let head = String::from_utf8(client.head("POST", PATH)).unwrap();
    let head = head.strip_suffix("\r\n").unwrap();
    let length = body.len();
    format!("{head}{lines}Content-Length: {length}\r\n\r\n{body}").into_bytes()
}

#[test]
fn a_header_that_connection_names_goes_no_further() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    let lines = "Connection: keep-alive, x-hop\r\nX-Hop: 1\r\nX-Stays: 1\r\n";
    assert_eq!(client.exchange(&message(&client, lines, "{}")).status, 200);
    let head = upstream.requests(1)[0].head.to_lowercase();
    assert!(
        !head.contains("x-hop") && head.contains("x-stays"),
        "{head}"
    );
}

#[test]
fn the_time_that_a_client_takes_to_read_is_not_the_upstreams() {
    let piece = "x".repeat(256 << 10);
    let pieces = vec![piece.as_str(); 64];
    let upstream = upstream::script([reply(200).sse(&pieces)]).run();
    let proxy = proxy::new()
        .upstream_with(
            "main",
            &upstream,
            "response_timeout: 20s, idle_timeout: 400ms",
        )
        .run();
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send(client.message(PATH, b"{}"));
    // What no socket's buffer holds is still with the upstream by then.
    sleep(Duration::from_millis(1500));
    let answer = connection.answer();
    assert!(answer.whole);
    assert_eq!(answer.body.len(), 64 * piece.len());
    assert_eq!(proxy.record()["error"], serde_json::Value::Null);
}

#[test]
fn hints_before_the_answer_reach_the_client() {
    let hint = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let script = [Reply::default()
        .send(hint)
        .wait(Duration::from_millis(50))
        .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")];
    let upstream = upstream::script(script).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send(client.message(PATH, b"{}"));
    assert_eq!(connection.head().unwrap().status, 103);
    let answer = connection.answer();
    assert_eq!((answer.status, answer.text()), (200, "{}"));
    let record = proxy.record();
    assert_eq!(
        (&record["status"], &record["outcome"]),
        (&200.into(), &"ok".into())
    );
}

#[test]
fn hints_do_not_reach_a_client_that_knows_none() {
    let hints = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let script = [Reply::default()
        .send(hints)
        .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")];
    let upstream = upstream::script(script).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast").header("Expect", "100-continue");
    let message = String::from_utf8(client.message(PATH, b"{}")).unwrap();
    let mut connection = client.connect();
    connection.send(message.replace("HTTP/1.1", "HTTP/1.0").into_bytes());
    let answer = connection.answer();
    assert_eq!((answer.status, answer.text()), (200, "{}"));
}

#[test]
fn an_answer_that_ends_with_its_connection_ends_properly() {
    let answer =
        "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{\"service_tier\":\"flex\"}";
    let upstream = upstream::script([Reply::default().send(answer).close()]).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    for number in 1..3 {
        connection.send(client.message(PATH, b"{}"));
        let answer = connection.answer();
        assert!(answer.whole);
        assert_eq!(answer.text(), "{\"service_tier\":\"flex\"}");
        assert_eq!(
            proxy.access_log(number)[number - 1]["service_tier_served"],
            "flex"
        );
    }
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn an_upstream_that_answers_and_takes_no_more_is_heard() {
    let answer = "HTTP/1.1 413 X\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    let early = Reply::default().before_body().send(answer).close();
    let upstream = upstream::script([early]).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let body = format!("{{\"input\":\"{}\"}}", "x".repeat(8 << 20));
    let answer = proxy.client("sk-fast").post(PATH, body);
    // A reset of the upstream's may take its answer away, but the request is never taken for one that was refused.
    assert!(matches!(answer.status, 413 | 502), "{}", answer.status);
    let record = proxy.record();
    assert_eq!(record["outcome"], "upstream_error");
    assert_eq!(record["service_tier"], "priority");
}

#[test]
fn an_upstream_that_is_spoken_to_in_http_1_over_tls_keeps_its_connection() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream_with("main", &upstream, "response_timeout: 5s, idle_timeout: 10s")
        .run();
    let client = proxy.client("sk-fast");
    for _ in 0..3 {
        assert_eq!(client.post(PATH, "{}").status, 200);
    }
    assert_eq!(upstream.connections(), 1);
    assert!(
        upstream.requests(3)[2]
            .body
            .starts_with(b"{\"service_tier\":\"priority\"")
    );
}
