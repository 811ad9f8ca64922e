//! Every refusal: its status, its code, its shape in the caller's protocol, its line in the log, and an upstream that
//! was left alone.

use std::io::Read;
use std::time::Duration;

use serde_json::json;

use crate::support::client::{Answer, Client, chunk};
use crate::support::proxy::{self, Builder, Proxy};
use crate::support::upstream::{self, Upstream, reply};
use crate::support::{eventually, object_of};

const OPENAI: &str = "/v1/responses";
const ANTHROPIC: &str = "/v1/messages";

/// Limits that a test can reach, and a group for each way to be refused by the policy.
fn strict(upstream: &Upstream) -> Proxy {
    builder().upstream(upstream).run()
}

fn builder() -> Builder {
    proxy::new().setting("limits: {body: 4KiB, decoded_body: 8KiB, json_depth: 4}")
}

/// Fails unless the answer is a refusal as both the client and the log see it.
fn assert_refused(proxy: &Proxy, path: &str, answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{code}: {answer:?}");
    assert!(answer.whole);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let retry = matches!(status, 429 | 502 | 503 | 504);
    let expected = (!retry).then_some("false");
    assert_eq!(answer.header("x-should-retry"), expected, "{code}");
    let challenge = (status == 401).then_some("Bearer");
    assert_eq!(answer.header("www-authenticate"), challenge, "{code}");
    let id = answer.header("x-tiergate-request-id").expect("an id");
    let message = answer.json()["error"]["message"].to_string();
    assert!(
        message.starts_with("\"tiergate: ") && message.contains(id),
        "{message}"
    );
    if path == ANTHROPIC {
        let json = answer.json();
        assert_eq!(json["type"], "error");
        assert!(json["error"]["type"].is_string() && json["error"]["message"].is_string());
        assert_eq!(json.as_object().unwrap().len(), 2, "{json}");
    } else {
        assert_eq!(answer.openai_code(), code);
    }
    let line = eventually("the line of the request", || {
        proxy.log_lines().into_iter().find(|line| line.contains(id))
    });
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&line["error"], &line["status"]),
        (&json!(code), &json!(status))
    );
    assert_eq!(line["service_tier_billed"], json!(null), "{code}");
}

#[test]
fn a_caller_that_may_not() {
    let upstream = upstream::json("{}").run();
    let proxy = strict(&upstream);
    let conflicting = proxy.client("sk-fast").header("X-Api-Key", "sk-plain");
    let twice = proxy
        .client("sk-fast")
        .header("Authorization", "Bearer sk-plain");
    let cases: [(Client, u16, &str); 6] = [
        (proxy.anonymous(), 401, "missing_api_key"),
        (proxy.client("sk-nobody"), 401, "invalid_api_key"),
        (conflicting, 401, "conflicting_api_keys"),
        (twice, 401, "conflicting_api_keys"),
        (proxy.client("sk-gone"), 403, "key_disabled"),
        (proxy.client("sk-closed"), 403, "group_disabled"),
    ];
    for (client, status, code) in cases {
        for path in [OPENAI, ANTHROPIC] {
            let answer = client.post(path, r#"{"a":1}"#);
            assert_refused(&proxy, path, &answer, status, code);
        }
    }
    upstream.assert_untouched();
}

#[test]
fn a_key_may_be_given_twice_where_it_is_the_same() {
    let upstream = upstream::json("{}").run();
    let proxy = strict(&upstream);
    let client = proxy
        .anonymous()
        .header("authorization", "bEARER sk-fast")
        .header("X-Api-Key", "sk-fast");
    assert_eq!(client.post(OPENAI, "{}").status, 200);
}

#[test]
fn what_would_escape_the_tier() {
    let upstream = upstream::json("{}").run();
    let proxy = builder()
        .policy(
            "version: 1\n\
             groups:\n  fast: {platform: openai, force_fast_mode: true}\n  \
             lax: {platform: openai, force_fast_mode: true, batches: allow}\n\
             keys: {sk-fast: fast, sk-lax: lax}\n",
        )
        .upstream_with("main", &upstream, "messages: off")
        .run();
    for path in ["/v1/batches", "/v1/batches/", "/openai/v1/Batches?x=1"] {
        let answer = proxy.client("sk-fast").post(path, "{}");
        assert_refused(&proxy, path, &answer, 403, "batches_not_forced");
    }
    let answer = proxy.client("sk-fast").post(ANTHROPIC, "{}");
    assert_refused(&proxy, ANTHROPIC, &answer, 403, "messages_not_forced");
    upstream.assert_untouched();
    assert_eq!(proxy.client("sk-lax").post("/v1/batches", "{}").status, 200);
}

#[test]
fn a_path_that_may_be_read_as_another() {
    let upstream = upstream::json("{}").run();
    let proxy = strict(&upstream);
    let paths = [
        "/v1//responses",
        "/v1/./responses",
        "/v1/x/../responses",
        "/v1\\responses",
        "/v1/%72esponses",
        "/v1%2fresponses",
        "/v1/%5Cresponses",
        "/v1/%2e%2e/responses",
    ];
    for path in paths {
        for key in ["sk-fast", "sk-plain"] {
            let answer = proxy.client(key).post(path, "{}");
            assert_refused(&proxy, path, &answer, 400, "ambiguous_path");
        }
    }
    upstream.assert_untouched();
    assert_eq!(
        proxy
            .client("sk-plain")
            .post("/v1/a%20b?c=//%2e/..", "{}")
            .status,
        200
    );
}

/// A head line, a body, and what comes of it.
type Case = (
    Option<(&'static str, &'static str)>,
    Vec<u8>,
    u16,
    &'static str,
);

fn bad_bodies() -> Vec<Case> {
    let gzip = Some(("Content-Encoding", "gzip"));
    let small = gzipped(b"{}");
    vec![
        (None, b"".to_vec(), 400, "invalid_json"),
        (None, b"{".to_vec(), 400, "invalid_json"),
        (None, b"{} {}".to_vec(), 400, "invalid_json"),
        (None, br#"{"a":01}"#.to_vec(), 400, "invalid_json"),
        (None, br#"{"a":"\x"}"#.to_vec(), 400, "invalid_json"),
        (None, b"{\"a\":\"\n\"}".to_vec(), 400, "invalid_json"),
        (
            None,
            b"\xef\xbb\xbf\xef\xbb\xbf{}".to_vec(),
            400,
            "invalid_json",
        ),
        (None, b"[]".to_vec(), 400, "not_a_json_object"),
        (None, b"\"text\"".to_vec(), 400, "not_a_json_object"),
        (
            None,
            br#"{"a":{"a":[{"a":[]}]}}"#.to_vec(),
            400,
            "json_too_deep",
        ),
        (None, b"{\"a\":\"\xff\"}".to_vec(), 400, "invalid_utf8"),
        (None, object_of(4097), 413, "body_too_large"),
        (gzip, b"{}".to_vec(), 400, "invalid_content_encoding"),
        (
            gzip,
            small[..small.len() - 1].to_vec(),
            400,
            "invalid_content_encoding",
        ),
        (
            gzip,
            [&small[..], b"x"].concat(),
            400,
            "invalid_content_encoding",
        ),
        (
            gzip,
            gzipped(&[b' '; 10_000]),
            413,
            "decoded_body_too_large",
        ),
        (
            Some(("Content-Encoding", "compress")),
            b"{}".to_vec(),
            415,
            "unsupported_content_encoding",
        ),
        (
            Some(("Content-Encoding", "gzip, br")),
            b"{}".to_vec(),
            415,
            "unsupported_content_encoding",
        ),
        (
            Some(("Content-Type", "multipart/form-data; boundary=x")),
            b"{}".to_vec(),
            415,
            "unsupported_content_type",
        ),
        (
            Some((
                "Content-Type",
                "application/json, multipart/form-data; boundary=x",
            )),
            b"{}".to_vec(),
            415,
            "unsupported_content_type",
        ),
        (
            Some(("Content-Type", "application/json; charset=UTF-16")),
            b"{}".to_vec(),
            415,
            "unsupported_content_type",
        ),
    ]
}

fn gzipped(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::read::GzEncoder::new(plain, flate2::Compression::fast());
    let mut coded = Vec::new();
    encoder.read_to_end(&mut coded).unwrap();
    coded
}

#[test]
fn a_body_that_is_not_good_in_a_message_with_a_length() {
    let upstream = upstream::json("{}").run();
    let proxy = strict(&upstream);
    for (header, body, status, code) in bad_bodies() {
        for path in [OPENAI, ANTHROPIC] {
            let mut client = proxy.client("sk-fast");
            if let Some((name, value)) = header {
                client = client.header(name, value);
            }
            let answer = client.post(path, &body);
            assert_refused(&proxy, path, &answer, status, code);
        }
    }
    upstream.assert_untouched();
}

#[test]
fn a_body_that_is_not_good_in_chunks_leaves_no_byte_upstream() {
    let upstream = upstream::json("{}").run();
    let proxy = strict(&upstream);
    for (header, body, status, code) in bad_bodies() {
        let mut client = proxy.client("sk-fast");
        if let Some((name, value)) = header {
            client = client.header(name, value);
        }
        let pieces: Vec<&[u8]> = body.chunks(1000).collect();
        let answer = client.post_chunked(OPENAI, &pieces);
        assert_refused(&proxy, OPENAI, &answer, status, code);
    }
    proxy.stop();
    for request in upstream.received() {
        assert_eq!((request.whole, request.text()), (false, ""), "{request:?}");
    }
}

#[test]
fn a_body_that_is_just_within_its_limits() {
    let upstream = upstream::json("{}").run();
    let proxy = strict(&upstream);
    for body in [object_of(4096), br#"{"a":{"a":[{"a":1}]}}"#.to_vec()] {
        assert_eq!(proxy.client("sk-fast").post(OPENAI, body).status, 200);
    }
    let client = proxy.client("sk-fast").header("Content-Encoding", "gzip");
    let body = gzipped(&object_of(8192));
    assert_eq!(client.post(OPENAI, body).status, 200);
}

#[test]
fn a_body_over_the_limit_of_a_group_that_is_not_forced() {
    let upstream = upstream::json("{}").run();
    let proxy = strict(&upstream);
    let answer = proxy.client("sk-plain").post(OPENAI, object_of(4097));
    assert_refused(&proxy, OPENAI, &answer, 413, "body_too_large");
    upstream.assert_untouched();
    let body = object_of(4097);
    let pieces: Vec<&[u8]> = body.chunks(1000).collect();
    let answer = proxy.client("sk-plain").post_chunked(OPENAI, &pieces);
    assert_eq!(
        (answer.status, answer.openai_code().as_str()),
        (413, "body_too_large")
    );
    let request = upstream.requests(1).remove(0);
    assert!(!request.whole && request.body.len() <= 4096, "{request:?}");
}

#[test]
fn the_connection_goes_on_after_a_refusal_whose_body_was_read() {
    let upstream = upstream::json("{}").run();
    let proxy = strict(&upstream);
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send(client.message(OPENAI, b"[]"));
    assert_eq!(connection.answer().status, 400);
    connection.send(client.message(OPENAI, b"{}"));
    assert_eq!(connection.answer().status, 200);
}

#[test]
fn a_large_body_that_is_refused_by_its_head_still_gets_its_answer() {
    let upstream = upstream::json("{}").run();
    let proxy = strict(&upstream);
    // More than socket buffers take. Some clients fail where not all of it is taken.
    let body = object_of(20_000_000);
    for (key, status, code) in [
        ("sk-fast", 413, "body_too_large"),
        ("sk-nobody", 401, "invalid_api_key"),
    ] {
        let client = proxy.client(key);
        let mut connection = client.connect();
        connection.send(client.head_of(OPENAI, body.len()));
        connection.send_whole(&body);
        let answer = connection.answer();
        assert_refused(&proxy, OPENAI, &answer, status, code);
        assert_eq!(answer.header("connection"), Some("close"));
        connection.assert_closed();
    }
}

#[test]
fn a_drain_does_not_wait_for_the_rest_of_a_request_that_is_answered() {
    let upstream = upstream::json("{}").run();
    let mut proxy = strict(&upstream);
    let client = proxy.client("sk-nobody");
    let mut connection = client.connect();
    connection.send(client.head_of(OPENAI, 20_000_000));
    assert_eq!(connection.answer().status, 401);
    proxy.signal(libc::SIGTERM);
    eventually("the end of the process", || {
        connection.send(" ");
        proxy.ended()
    });
}

#[test]
fn a_malformed_message_gets_an_answer_and_goes_no_further() {
    let upstream = upstream::json("{}").run();
    let proxy = strict(&upstream);
    let client = proxy
        .client("sk-fast")
        .header("Transfer-Encoding", "chunked");
    let mut connection = client.connect();
    connection.send(client.head("POST", OPENAI));
    connection.send(chunk(b"{"));
    connection.send("zz\r\n");
    assert_eq!(connection.answer().status, 400);
    proxy.stop();
    for request in upstream.received() {
        assert_eq!((request.whole, request.text()), (false, ""));
    }
}

/// The response has begun, so that only the line tells why it does not end.
#[test]
fn a_message_that_turns_out_malformed_behind_its_answer_is_told_in_its_line() {
    let begun = reply(200).sse_begun(&["data: {}\n\n"]).before_body();
    for rest in [
        "zz\r\n",
        "1\r\nxyz\r\n",
        "1;\u{1}\r\nx\r\n",
        "0\r\nno field\r\n\r\n",
    ] {
        let upstream = upstream::script([begun.clone()]).run();
        let proxy = proxy::new().upstream(&upstream).run();
        let client = proxy.client("sk-plain");
        let client = client.header("Transfer-Encoding", "chunked");
        let mut connection = client.connect();
        connection.send(client.head("POST", OPENAI));
        connection.send(chunk(b"{"));
        assert_eq!(connection.head().unwrap().status, 200);
        connection.send(rest);
        let line = proxy.record();
        let told = json!([line["status"], line["outcome"], line["error"]]);
        assert_eq!(told, json!([200, "rejected", "invalid_http"]), "{rest:?}");
    }
}

#[test]
fn a_request_for_a_tunnel_is_refused_and_has_a_line() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let target = "api.openai.com:443";
    let mut connection = proxy.anonymous().connect();
    connection.send(format!(
        "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nAuthorization: Bearer sk-fast\r\n\r\n"
    ));
    let answer = connection.answer();
    assert_refused(&proxy, target, &answer, 400, "invalid_http");
    connection.assert_closed();
    upstream.assert_untouched();
}

#[test]
fn an_upstream_that_cannot_be_reached_or_gives_no_answer() {
    let proxy = builder().upstream(&upstream::nobody()).run();
    for path in [OPENAI, ANTHROPIC] {
        let answer = proxy.client("sk-fast").post(path, "{}");
        assert_refused(&proxy, path, &answer, 502, "upstream_unreachable");
    }
    let scripts = [
        upstream::Reply::default().reset(),
        upstream::Reply::default().close(),
    ];
    let upstream = upstream::script(scripts).run();
    let proxy = strict(&upstream);
    for _ in 0..2 {
        // On a fresh connection nothing is tried again: the upstream may have begun to work.
        let answer = proxy.client("sk-fast").post(OPENAI, "{}");
        assert_eq!(
            (answer.status, answer.openai_code().as_str()),
            (502, "upstream_reset")
        );
    }
    upstream.requests(2);
    let records = proxy.access_log(2);
    for record in records {
        assert_eq!(record["outcome"], "upstream_error");
        assert_eq!(record["service_tier_billed"], "priority");
    }
}

#[test]
fn a_request_that_a_drain_crosses_on_a_kept_connection_is_answered() {
    let upstream = upstream::json("{}").run();
    let proxy = builder().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send(client.message(OPENAI, b"{}"));
    assert_eq!(connection.answer().status, 200);
    proxy.signal(libc::SIGTERM);
    connection.send(client.message(OPENAI, b"{}"));
    assert_eq!(connection.answer().status, 200);
    connection.assert_closed();
}

#[test]
fn a_proxy_that_drains() {
    let script = [reply(200)
        .sse_begun(&["data: 1\n\n"])
        .hold()
        .send("0\r\n\r\n")];
    let upstream = upstream::script(script).run();
    let proxy = builder().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    let mut running = client.connect();
    running.send(client.message(OPENAI, b"{}"));
    assert_eq!(running.head().unwrap().status, 200);
    proxy.signal(libc::SIGTERM);
    proxy.await_stderr("draining");
    assert_eq!(proxy.admin("/readyz").status, 503);
    eventually("the proxy to accept no more", || {
        let second = Duration::from_secs(1);
        let connected = std::net::TcpStream::connect_timeout(&proxy.address, second);
        connected.is_err().then_some(())
    });
    upstream.release();
    while running.chunk().is_some() {}
    running.assert_closed();
}

/// There the tier is a member of `agent`, or of the agent that is named.
#[test]
fn a_session_of_agents_is_refused_where_its_tier_would_be_forced() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    for body in [
        r#"{"agent":{"model":"m","service_tier":"flex"}}"#,
        r#"{"x":1,"Agent_ID":"agent_1"}"#,
    ] {
        let refused = proxy.client("sk-fast").post("/v1/agents/sessions", body);
        assert_refused(
            &proxy,
            "/v1/agents/sessions",
            &refused,
            403,
            "tier_not_forced",
        );
        let passed = proxy.client("sk-plain").post("/v1/agents/sessions", body);
        assert_eq!(passed.status, 200);
    }
    for request in upstream.received() {
        assert!(!request.text().contains("priority"), "{}", request.text());
    }
}
