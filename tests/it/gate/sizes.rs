//! Bodies of every size around Pingora's replay buffer of 64 KiB, whose tail alone makes Pingora send a body that was
//! read here.

use crate::support::client::Client;
use crate::support::proxy::{self, Proxy};
use crate::support::upstream::{self, Received, Upstream};
use crate::support::{client, object_of};

const SIZES: [usize; 6] = [70, 65_535, 65_536, 65_537, 131_072, 1_000_003];

fn forced() -> (Upstream, Proxy) {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    (upstream, proxy)
}

/// It is the body that `object_of` made, but for the tier and for white space.
fn assert_forced(request: &Received, sent: &[u8]) {
    let body = request.text();
    assert!(request.whole);
    let expected = String::from_utf8(sent.to_vec())
        .unwrap()
        .replacen('{', r#"{"service_tier":"priority","#, 1)
        .replacen(r#""service_tier":"default","#, "", 1);
    let without_space = body.split_ascii_whitespace().collect::<String>();
    assert!(without_space == expected, "{} bytes", sent.len());
}

#[test]
fn a_body_with_a_length_arrives_once_and_whole_however_it_is_cut_into_packets() {
    arrives_however_it_is_cut(|proxy| proxy.client("sk-fast"));
}

#[test]
fn so_does_one_that_says_that_it_is_not_coded() {
    arrives_however_it_is_cut(|proxy| {
        let client = proxy.client("sk-fast");
        client.header("Content-Encoding", "identity")
    });
}

#[test]
fn a_body_that_is_not_rewritten_arrives_as_it_came_however_it_is_cut_into_packets() {
    let (upstream, proxy) = forced();
    let mut count = 0;
    for size in SIZES {
        for with_head in [0, 1, 4096, size] {
            let body = object_of(size);
            let client = proxy.client("sk-plain");
            let mut connection = client.connect();
            let at = with_head.min(size);
            connection.send([client.head_of("/v1/responses", size), body[..at].to_vec()].concat());
            upstream.await_heads(count + 1);
            connection.send(&body[at..]);
            assert_eq!(connection.answer().status, 200);
            count += 1;
            let request = &upstream.requests(count)[count - 1];
            assert!(request.whole && request.body == body, "{size}, {with_head}");
            let record = &proxy.access_log(count)[count - 1];
            assert_eq!(record["service_tier"], "default");
            assert_eq!(record["request_bytes"], size);
            assert_eq!(record["upstream_request_bytes"], size);
        }
    }
}

fn arrives_however_it_is_cut(client: impl Fn(&Proxy) -> Client) {
    let (upstream, proxy) = forced();
    let mut count = 0;
    for size in SIZES {
        for with_head in [0, 1, 4096, size] {
            let body = object_of(size);
            let client = client(&proxy);
            let mut connection = client.connect();
            let at = with_head.min(size);
            connection.send([client.head_of("/v1/responses", size), body[..at].to_vec()].concat());
            if at < size {
                // The rest comes once the head is known to be there.
                std::thread::sleep(std::time::Duration::from_millis(5));
                connection.send(&body[at..]);
            }
            assert_eq!(
                connection.answer().status,
                200,
                "{size} bytes, {at} with the head"
            );
            count += 1;
            let request = upstream.requests(count).pop().unwrap();
            assert_forced(&request, &body);
            assert_eq!(
                request.header("content-length"),
                [request.body.len().to_string()]
            );
            assert_eq!(request.header("transfer-encoding"), [""; 0]);
        }
    }
    assert_eq!(proxy.metric("tiergate_buffered_bytes"), 0.0);
    assert_eq!(proxy.metric("tiergate_unforced_forwarded_total"), 0.0);
}

#[test]
fn a_chunked_body_arrives_once_and_whole() {
    let (upstream, proxy) = forced();
    let mut count = 0;
    for size in SIZES {
        for piece in [size, 1000, 65_536] {
            let body = object_of(size);
            let pieces: Vec<&[u8]> = body.chunks(piece).collect();
            let answer = proxy
                .client("sk-fast")
                .post_chunked("/v1/responses", &pieces);
            assert_eq!(answer.status, 200, "{size} bytes in pieces of {piece}");
            count += 1;
            let request = upstream.requests(count).pop().unwrap();
            assert_forced(&request, &body);
            assert_eq!(request.header("transfer-encoding"), ["chunked"]);
            assert_eq!(request.header("content-length"), [""; 0]);
        }
    }
}

#[test]
fn a_body_that_comes_byte_by_byte_arrives_whole() {
    let (upstream, proxy) = forced();
    let body = object_of(200);
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send(client.head_of("/v1/responses", body.len()));
    for byte in &body {
        connection.send([*byte]);
    }
    assert_eq!(connection.answer().status, 200);
    assert_forced(&upstream.request(), &body);
}

#[test]
fn a_body_that_is_not_forced_passes_at_every_size() {
    let (upstream, proxy) = forced();
    for (at, size) in SIZES.into_iter().enumerate() {
        let body = object_of(size);
        assert_eq!(
            proxy.client("sk-plain").post("/v1/responses", &body).status,
            200
        );
        assert!(upstream.requests(at + 1)[at].body == body);
    }
}

#[test]
fn a_body_that_passes_is_not_held() {
    let (upstream, proxy) = forced();
    let client = proxy
        .client("sk-plain")
        .header("Transfer-Encoding", "chunked");
    let mut connection = client.connect();
    connection.send(client.head("POST", "/v1/responses"));
    connection.send(client::chunk(b"first"));
    // Its head is with the upstream while the client still sends.
    upstream.await_heads(1);
    connection.send(client::chunk(b" last"));
    connection.send("0\r\n\r\n");
    assert_eq!(connection.answer().status, 200);
    assert_eq!(upstream.request().text(), "first last");
}

#[test]
fn a_body_in_too_many_small_pieces_does_not_pass() {
    let (upstream, proxy) = forced();
    let client = proxy.client("sk-plain");
    let pieces = vec![b"x".as_slice(); 1 << 17];
    assert_eq!(client.post_chunked("/v1/files", &pieces).status, 200);
    let answer = client.post_chunked("/v1/files", &[&pieces[..], &[b"x"]].concat());
    let told = (answer.status, answer.openai_code());
    assert_eq!(told, (400, "invalid_http".to_owned()));
    upstream.await_ended(1);
    assert!(!upstream.received()[1].whole);
}
