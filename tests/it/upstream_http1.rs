//! What upstreams may do over HTTP/1.1 (RFC 9112), with TLS as they are spoken to and plain, and what their requests come
//! to: early answers, and ends of connections.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::{Connection, chunk};
use crate::support::proxy::{self, Proxy};
use crate::support::upstream::{self, Reply, Script, Upstream, reply};
use crate::support::{eventually, object_of};

const PATH: &str = "/v1/responses";
const BODY: &[u8] = br#"{"model":"m-1"}"#;
const REFUSAL: &str = r#"{"error":{}}"#;
/// More than all buffers on the way take.
const LARGE_BYTES: usize = 16 << 20;
/// What is to happen at once happens within this, far below any limit for an upstream.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Each script, with TLS and without.
fn both(script: impl Fn() -> Script) -> [Upstream; 2] {
    [script().run(), script().run_plain()]
}

#[test]
fn an_answer_of_http_1_0_goes_on_in_the_version_of_the_proxy() {
    let answer = "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    for upstream in both(|| upstream::script([Reply::default().send(answer).close()])) {
        let proxy = proxy::new().upstream(&upstream).run();
        let connection = proxy.anonymous().connect();
        let mut socket = connection.socket();
        let message = proxy.client("sk-fast").message(PATH, BODY);
        socket.write_all(&message).unwrap();
        let mut line = [0; 12];
        socket.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"HTTP/1.1 200");
    }
}

/// Sends a large body, which is held, streamed, or streamed without a length.
fn send_large(proxy: &Proxy, how: &str) -> Connection {
    let body = object_of(LARGE_BYTES);
    let message = match how {
        "held" => proxy.client("sk-fast").message(PATH, &body),
        "streamed" => proxy.client("sk-plain").message(PATH, &body),
        _ => {
            let client = proxy.client("sk-plain");
            let client = client.header("Transfer-Encoding", "chunked");
            [client.head("POST", PATH), chunk(&body), chunk(b"")].concat()
        }
    };
    let connection = proxy.anonymous().connect();
    let mut socket = connection.socket().try_clone().unwrap();
    // The proxy may take only a part of it.
    std::thread::spawn(move || socket.write_all(&message));
    connection
}

fn assert_answered_early(answer: impl Fn() -> Reply) {
    for how in ["held", "streamed", "chunked"] {
        for upstream in both(|| upstream::script([answer()])) {
            let proxy = proxy::new().upstream(&upstream).run();
            let begun = Instant::now();
            let told = send_large(&proxy, how).answer();
            assert_eq!((told.status, told.text()), (429, REFUSAL), "{how}");
            assert!(begun.elapsed() < AT_ONCE, "{how}: {:?}", begun.elapsed());
            let record = proxy.record();
            let line = json!([
                record["outcome"],
                record["status"],
                record["upstream_status"]
            ]);
            assert_eq!(line, json!(["upstream_error", 429, 429]), "{how}");
            eventually("the memory of its body", || {
                (proxy.metric("tiergate_buffered_bytes") == 0.0).then_some(())
            });
            upstream.release();
        }
    }
}

#[test]
fn an_answer_of_an_upstream_that_reads_no_further_reaches_its_client_at_once() {
    assert_answered_early(|| reply(429).json(REFUSAL).before_body().hold());
}

#[test]
fn an_answer_that_a_reset_follows_reaches_its_client() {
    let moment = Duration::from_millis(200);
    assert_answered_early(|| reply(429).json(REFUSAL).before_body().wait(moment).reset());
}

#[test]
fn an_answer_after_which_the_upstream_wants_no_more_reaches_its_client_at_once() {
    let head =
        "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nConnection: close\r\n";
    let answer = format!("{head}Content-Length: {}\r\n\r\n{REFUSAL}", REFUSAL.len());
    assert_answered_early(|| Reply::default().send(answer.clone()).before_body().hold());
}

#[test]
fn an_answer_that_a_close_follows_reaches_its_client() {
    assert_answered_early(|| reply(429).json(REFUSAL).before_body().close());
}

#[test]
fn an_upstream_that_answers_before_it_reads_gets_its_request_whole() {
    let moment = Duration::from_millis(200);
    let answer = || {
        let hint = Reply::default().send("HTTP/1.1 103 Early Hints\r\n\r\n");
        let head = hint
            .wait(moment)
            .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
        // Longer than it takes to see that it takes nothing.
        let pause = Duration::from_millis(1500);
        head.wait(pause).read_body().send("{}")
    };
    for how in ["held", "streamed", "chunked"] {
        for upstream in both(|| upstream::script([answer()])) {
            let proxy = proxy::new().upstream(&upstream).run();
            let mut connection = send_large(&proxy, how);
            assert_eq!(connection.head().unwrap().status, 103, "{how}");
            let answer = connection.answer();
            assert_eq!((answer.status, answer.text()), (200, "{}"), "{how}");
            assert!(upstream.request().body.len() >= LARGE_BYTES, "{how}");
            assert_eq!(proxy.record()["outcome"], "ok", "{how}");
        }
    }
}

/// Answers the first request, and ends its connection at the second.
fn ending(end: impl Fn() -> Reply) -> [Upstream; 2] {
    both(|| upstream::script([reply(200).json("{}"), end(), reply(200).json("{}")]))
}

#[test]
fn a_request_that_was_worked_on_is_not_sent_again_where_its_connection_then_closes() {
    let worked = || Reply::default().wait(Duration::from_secs(2));
    for end in [Reply::close, Reply::vanish] {
        for upstream in ending(|| end(worked())) {
            let proxy = proxy::new().upstream(&upstream).run();
            let client = proxy.client("sk-fast");
            assert_eq!(client.post(PATH, BODY).status, 200);
            let mut connection = client.connect();
            connection.send(client.message(PATH, BODY));
            let answer = connection.answer();
            assert_eq!(
                (answer.status, answer.header("connection")),
                (502, Some("close"))
            );
            connection.assert_closed();
            upstream.requests(2);
            assert_eq!(upstream.connections(), 1);
        }
    }
}

#[test]
fn a_request_that_a_close_of_its_connection_crossed_is_sent_again() {
    for end in [Reply::close, Reply::vanish] {
        for upstream in ending(|| end(Reply::default())) {
            let proxy = proxy::new().upstream(&upstream).run();
            for _ in 0..2 {
                assert_eq!(proxy.client("sk-fast").post(PATH, BODY).status, 200);
            }
            upstream.requests(3);
            proxy.access_log(2);
        }
    }
}

#[test]
fn a_response_that_only_the_end_of_its_connection_ends_is_whole_where_that_is_announced() {
    let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}";
    for (end, expected) in [(true, "ok"), (false, "upstream_cut")] {
        let reply = Reply::default().send(answer);
        let reply = match end {
            true => reply.close(),
            false => reply.vanish(),
        };
        let upstream = upstream::script([reply]).run();
        let proxy = proxy::new().upstream(&upstream).run();
        let answer = proxy.client("sk-fast").post(PATH, BODY);
        assert_eq!((answer.status, answer.whole), (200, end), "{expected}");
        assert_eq!(proxy.record()["outcome"], expected);
    }
}
