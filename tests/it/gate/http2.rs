//! HTTP/2 over TLS on either side and on both.

use std::time::{Duration, Instant};

use ::h2::Reason;
use serde_json::json;

use crate::support::h2::{self, Framing, Reply};
use crate::support::h2_script::{self, CANCEL, Event, Peer};
use crate::support::proxy::{self, Proxy, Target};
use crate::support::upstream::{self, Received, Reply as Http1Reply, Upstream, reply};
use crate::support::{client::Answer, eventually, object_of};

const PATH: &str = "/v1/responses";
const FRAMINGS: [Framing; 3] = [Framing::Length, Framing::NoLength, Framing::EmptyEnd];
const SIZES: [usize; 4] = [70, 16_384, 65_537, 300_000];

fn post(proxy: &Proxy, key: &str, body: &[u8], framing: Framing) -> Answer {
    let key = format!("Bearer {key}");
    let headers = [("authorization", key.as_str()), ("cookie", "a=1")];
    h2::post(proxy.tls_address, &headers, PATH, body, framing)
}

fn assert_forced(request: &Received, sent: &[u8]) {
    let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
    let mut expected: serde_json::Value = serde_json::from_slice(sent).unwrap();
    expected["service_tier"] = json!("priority");
    assert!(request.whole && body == expected, "{} bytes", sent.len());
}

/// That these many requests left no byte behind on the connections that they shared. An end that was sent twice would be a
/// head to the upstream, and the connection would not be used again.
fn assert_kept(upstream: &Upstream, requests: usize) {
    let received = upstream.requests(requests);
    assert!(
        received
            .iter()
            .all(|request| request.head.starts_with("POST "))
    );
    // Pingora opens another where whoever watches an idle one has not let go of it yet, which is seldom.
    assert!(upstream.connections() < requests);
}

#[test]
fn a_client_of_http_2_is_forced_however_it_frames_its_body() {
    let upstream = upstream::json(r#"{"a":1}"#).run();
    let proxy = proxy::new().upstream(&upstream).tls().run();
    let mut count = 0;
    for size in SIZES {
        for framing in FRAMINGS {
            let body = object_of(size);
            let answer = post(&proxy, "sk-fast", &body, framing);
            assert_eq!(
                (answer.status, answer.text()),
                (200, r#"{"a":1}"#),
                "{size} {framing:?}"
            );
            count += 1;
            let request = upstream.requests(count).pop().unwrap();
            assert_forced(&request, &body);
            let chunked = request.header("transfer-encoding") == ["chunked"];
            assert_eq!(chunked, framing != Framing::Length);
            // Its line is written when the connection is back in the pool.
            proxy.access_log(count);
        }
    }
    assert_kept(&upstream, count);
}

#[test]
fn a_client_of_http_2_that_is_not_forced_passes_every_byte() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).tls().run();
    for (at, framing) in FRAMINGS.into_iter().enumerate() {
        let body = object_of(200_000);
        assert_eq!(post(&proxy, "sk-plain", &body, framing).status, 200);
        assert!(upstream.requests(at + 1)[at].body == body, "{framing:?}");
        proxy.access_log(at + 1);
    }
    assert_kept(&upstream, FRAMINGS.len());
}

#[test]
fn a_client_of_http_2_is_refused_with_the_upstream_left_alone() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).tls().run();
    let answer = post(&proxy, "sk-nobody", b"{}", Framing::Length);
    assert_eq!(
        (answer.status, answer.openai_code().as_str()),
        (401, "invalid_api_key")
    );
    let answer = post(&proxy, "sk-fast", b"[]", Framing::Length);
    assert_eq!(
        (answer.status, answer.openai_code().as_str()),
        (400, "not_a_json_object")
    );
    upstream.assert_untouched();
    for framing in [Framing::NoLength, Framing::EmptyEnd] {
        let answer = post(&proxy, "sk-fast", b"[]", framing);
        assert_eq!(
            (answer.status, answer.openai_code().as_str()),
            (400, "not_a_json_object")
        );
    }
    for request in upstream.received() {
        assert_eq!((request.whole, request.text()), (false, ""));
    }
}

#[test]
fn a_client_of_http_2_gets_whole_answers_to_head_where_its_upstream_fails() {
    let proxy = proxy::new().upstream(&upstream::nobody()).tls().run();
    for (key, status) in [("sk-plain", 502), ("sk-nobody", 401)] {
        let key = format!("Bearer {key}");
        let answer = h2::head(proxy.tls_address, &[("authorization", &key)], "/v1/models");
        assert_eq!(
            (answer.status, answer.whole, answer.text()),
            (status, true, "")
        );
    }
}

#[test]
fn an_upstream_that_is_cut_is_cut_for_a_client_of_http_2_too() {
    let script = [reply(200).sse_begun(&["data: 1\n\n"]).close()];
    let upstream = upstream::script(script).run();
    let proxy = proxy::new().upstream(&upstream).tls().run();
    let answer = post(&proxy, "sk-fast", b"{}", Framing::Length);
    assert_eq!((answer.status, answer.whole), (200, false));
    assert_eq!(proxy.record()["outcome"], "upstream_cut");
}

#[test]
fn an_upstream_of_http_2_gets_what_one_of_http_1_would() {
    for size in [2, 70, 65_537, 300_000] {
        let upstream = h2::upstream(Reply::Json(r#"{"a":1}"#.to_owned()));
        let proxy = proxy::new().upstream(&upstream).run();
        let body = if size == 2 {
            b"{}".to_vec()
        } else {
            object_of(size)
        };
        let answer = proxy.client("sk-fast").post(PATH, &body);
        assert_eq!((answer.status, answer.text()), (200, r#"{"a":1}"#));
        let request = upstream.request();
        assert_forced(&request, &body);
        assert!(request.request_line().ends_with("/v1/responses HTTP/2"));
        assert_eq!(
            request.header("content-length"),
            [request.body.len().to_string()]
        );
        assert_eq!(request.header("authorization"), ["Bearer sk-fast"]);
        let record = proxy.record();
        assert_eq!(
            json!([
                record["outcome"],
                record["service_tier"],
                record["upstream_request_bytes"]
            ]),
            json!(["ok", "priority", request.body.len()])
        );
    }
}

#[test]
fn a_chunked_body_reaches_an_upstream_of_http_2_without_a_length() {
    let upstream = h2::upstream(Reply::Json("{}".to_owned()));
    let proxy = proxy::new().upstream(&upstream).run();
    let body = object_of(150_000);
    let pieces: Vec<&[u8]> = body.chunks(10_000).collect();
    assert_eq!(
        proxy.client("sk-fast").post_chunked(PATH, &pieces).status,
        200
    );
    let request = upstream.request();
    assert_forced(&request, &body);
    assert_eq!(request.header("content-length"), [""; 0]);
}

#[test]
fn a_chunked_body_that_is_not_good_is_refused_at_once_before_an_upstream_of_http_2() {
    let upstream = h2::upstream(Reply::Json("{}".to_owned()));
    let proxy = proxy::new().upstream(&upstream).run();
    let answer = proxy.client("sk-fast").post_chunked(PATH, &[b"{", b"]"]);
    assert_eq!(
        (answer.status, answer.openai_code().as_str()),
        (400, "invalid_json")
    );
    for request in upstream.received() {
        assert_eq!((request.whole, request.text()), (false, ""));
    }
}

#[test]
fn a_refused_body_is_not_sent_again_as_an_empty_one_on_a_connection_that_was_used() {
    let upstream = h2::upstream(Reply::Json("{}".to_owned()));
    let proxy = proxy::new().upstream(&upstream).run();
    for _ in 0..10 {
        assert_eq!(proxy.client("sk-fast").post(PATH, "{}").status, 200);
        let answer = proxy.client("sk-fast").post_chunked(PATH, &[]);
        assert_eq!(answer.status, 400);
    }
    for request in upstream.received() {
        assert_eq!(request.text(), r#"{"service_tier":"priority"}"#);
    }
    for record in proxy.access_log(20) {
        let reached = record["status"] == 200;
        assert_eq!(record["upstream"].is_string(), reached, "{record}");
    }
}

#[test]
fn http_2_on_both_sides() {
    for framing in FRAMINGS {
        for size in SIZES {
            let upstream = h2::upstream(Reply::Json("{}".to_owned()));
            let proxy = proxy::new().upstream(&upstream).tls().run();
            let body = object_of(size);
            assert_eq!(post(&proxy, "sk-fast", &body, framing).status, 200);
            assert_forced(&upstream.request(), &body);
            assert_eq!(proxy.record()["outcome"], "ok", "{framing:?}");
        }
    }
}

#[test]
fn a_stream_that_an_upstream_of_http_2_resets_is_cut_for_the_client() {
    let upstream = h2::upstream(Reply::Cut("data: 1\n\n".to_owned()));
    let proxy = proxy::new().upstream(&upstream).tls().run();
    let answer = proxy.client("sk-fast").post(PATH, "{}");
    assert_eq!(
        (answer.status, answer.whole, answer.text()),
        (200, false, "data: 1\n\n")
    );
    let answer = post(&proxy, "sk-fast", b"{}", Framing::Length);
    assert_eq!((answer.status, answer.whole), (200, false));
    for record in proxy.access_log(2) {
        assert_eq!(record["outcome"], "upstream_cut");
    }
}

#[test]
fn an_upstream_of_http_2_that_says_nothing_within_its_time() {
    let upstream = h2::upstream(Reply::Silence);
    for times in [
        "response_timeout: 300ms, idle_timeout: 300ms",
        "response_timeout: 300ms, idle_timeout: 20s",
    ] {
        assert_times_out(&proxy::new().upstream_with("main", &upstream, times).run());
    }
}

#[test]
fn a_client_of_http_2_whose_body_stops() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .tls()
        .setting("limits: {body_idle_timeout: 300ms}")
        .run();
    let begun = Instant::now();
    let answer = post(&proxy, "sk-fast", b"{", Framing::StalledLength);
    assert_eq!(
        (answer.status, answer.openai_code().as_str()),
        (408, "request_timeout")
    );
    upstream.assert_untouched();
    // Here the upstream has the head already, and the stream is reset.
    let answer = post(&proxy, "sk-fast", b"{", Framing::StalledNoLength);
    assert!(!answer.whole || answer.status == 408, "{answer:?}");
    let answer = post(&proxy, "sk-plain", b"{", Framing::StalledLength);
    assert!(!answer.whole || answer.status == 408, "{answer:?}");
    assert!(begun.elapsed() < Duration::from_secs(6));
    for record in proxy.access_log(3) {
        assert_eq!(
            json!([record["outcome"], record["error"]]),
            json!(["timeout", "request_timeout"])
        );
    }
}

#[test]
fn a_client_whose_body_stops_behind_the_beginning_of_its_response_was_too_late() {
    let begun = || {
        upstream::reply(200)
            .sse_begun(&["data: 1\n\n"])
            .before_body()
            .hold()
    };
    let upstream = upstream::script([begun(), begun()]).run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .tls()
        .setting("limits: {body_idle_timeout: 500ms}")
        .run();
    let started = Instant::now();
    let answer = post(&proxy, "sk-plain", b"{", Framing::StalledNoLength);
    assert_eq!((answer.status, answer.whole), (200, false));
    let client = proxy
        .client("sk-plain")
        .header("Transfer-Encoding", "chunked");
    let mut connection = client.connect();
    connection.send(client.head("POST", PATH));
    assert_eq!(connection.head().unwrap().status, 200);
    connection.rest();
    assert!(started.elapsed() < Duration::from_secs(6));
    for record in proxy.access_log(2) {
        let told = json!([record["status"], record["outcome"], record["error"]]);
        assert_eq!(told, json!([200, "timeout", "request_timeout"]));
    }
    upstream.release();
}

#[test]
fn an_upload_that_nobody_reads_holds_no_other_request_of_its_connection_up() {
    let unread = Http1Reply::default().hold().before_body();
    let upstream = upstream::script([unread, reply(200).json("{}")]).run();
    let proxy = proxy::new().upstream(&upstream).tls().run();
    let keys = [
        [("authorization", "Bearer sk-plain")],
        [("authorization", "Bearer sk-fast")],
    ];
    let body = object_of(16_384);
    let begun = Instant::now();
    let answer = h2::post_beside_upload(proxy.tls_address, &keys[0], &keys[1], PATH, &body);
    assert_eq!((answer.status, answer.text()), (200, "{}"));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

fn assert_times_out(proxy: &Proxy) {
    let begun = Instant::now();
    let answer = proxy.client("sk-fast").post(PATH, "{}");
    assert_eq!(
        (answer.status, answer.openai_code().as_str()),
        (504, "upstream_timeout")
    );
    assert!(begun.elapsed() < Duration::from_secs(4));
    assert_eq!(proxy.record()["outcome"], "timeout");
}

#[test]
fn an_upstream_with_tls_that_speaks_no_http_2() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let body = object_of(200_000);
    assert_eq!(proxy.client("sk-fast").post(PATH, &body).status, 200);
    assert_forced(&upstream.request(), &body);
}

#[test]
fn an_upstream_whose_certificate_is_not_trusted_gets_no_byte() {
    let upstream = h2::upstream(Reply::Json("{}".to_owned()));
    let proxy = proxy::new().upstream(&upstream).distrusting().run();
    let answer = proxy.client("sk-fast").post(PATH, "{}");
    assert_eq!(
        (answer.status, answer.openai_code().as_str()),
        (502, "upstream_unreachable")
    );
    assert!(upstream.received().is_empty());
}

/// That a client which never ends its request gets all of an answer to it, and is then let go, with the upstream: `pause`
/// long behind the head of the answer it goes on reading.
fn assert_let_go(upstream: &impl Target, body: &str, pause: Duration) {
    let policy = "\
version: 1
groups: {plain: {platform: openai, max_in_flight: 1}}
keys: {sk-plain: plain}
";
    let proxy = proxy::new().upstream(upstream).policy(policy).tls().run();
    let headers = [("authorization", "Bearer sk-plain")];
    let (answer, end) = h2::post_without_end(proxy.tls_address, &headers, PATH, b"{", || {
        assert_eq!(proxy.record()["upstream_status"], 404);
        // What is open upstream counts.
        let client = proxy.client("sk-plain");
        assert_eq!(client.post("/v1/models", "{}").status, 429);
        std::thread::sleep(pause);
    });
    assert_eq!((answer.status, answer.whole), (404, true));
    assert_eq!(answer.text(), body);
    assert_eq!(end, Some(Reason::NO_ERROR));
    let in_place = || proxy.client("sk-plain").get("/v1/models").status;
    eventually("a free place", || (in_place() != 429).then_some(()));
}

#[test]
fn a_client_of_http_2_that_does_not_end_its_request_is_let_go_behind_an_answer_of_http_1() {
    for body in ["{}", ""] {
        let early = reply(404).json(body).before_body();
        let upstream = upstream::script([early, reply(200).json("{}")]).run();
        assert_let_go(&upstream, body, Duration::ZERO);
        assert!(!upstream.requests(2)[0].whole);
    }
}

#[test]
fn a_client_of_http_2_that_does_not_end_its_request_is_let_go_behind_an_answer_of_http_2() {
    let answers: [fn(&mut Peer, u32); 3] = [
        |peer, stream| peer.json(stream, 404, "{}"),
        |peer, stream| {
            peer.respond(stream, 404, &[]);
            peer.data(stream, b"{}");
            peer.last_data(stream, b"");
        },
        |peer, stream| peer.respond_empty(stream, 404, &[]),
    ];
    for (answer, body) in answers.into_iter().zip(["{}", "{}", ""]) {
        let upstream = h2_script::upstream(move |peer| {
            while let Some(event) = peer.event() {
                if let Event::Head(stream) | Event::End(stream) = event {
                    answer(peer, stream);
                }
            }
        });
        assert_let_go(&upstream, body, Duration::ZERO);
        eventually("the end of the stream upstream", || {
            let resets = upstream.seen().resets;
            resets.contains(&(1, CANCEL)).then_some(())
        });
        assert_eq!(upstream.seen().connections, 1);
    }
}

#[test]
fn a_client_of_http_2_that_reads_an_early_answer_slowly_gets_all_of_it() {
    // More than its window, which stays shut for longer than it may be silent behind the answer.
    let body = format!("{{\"a\":\"{}\"}}", "a".repeat(80_000));
    let early = reply(404).json(&body).before_body();
    let upstream = upstream::script([early, reply(200).json("{}")]).run();
    assert_let_go(&upstream, &body, Duration::from_secs(3));
}
