//! Every time limit, and the limit on all bodies together. The limits are short and what they cut would last for much
//! longer, so that a limit that does nothing is seen.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::SockRef;

use crate::support::client::{Answer, Connection, chunk};
use crate::support::frames::{
    self, CONTINUATION, END_HEADERS, END_STREAM, HEADERS, field, frame, head,
};
use crate::support::h2::{self, Framing};
use crate::support::proxy::Proxy;
use crate::support::upstream::{self, Reply, Upstream, reply};
use crate::support::{eventually, object_of, proxy, tls};

const PATH: &str = "/v1/responses";
/// No limit of these tests is longer than this with all that stands around it.
const SOON: Duration = Duration::from_secs(4);

fn within<T>(most: Duration, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = work();
    assert!(begun.elapsed() < most, "it took {:?}", begun.elapsed());
    result
}

/// `timeouts` are those of the upstream: the one under test short, the others too long to be it.
fn proxy_that_waits(upstream: &Upstream, timeouts: &str) -> Proxy {
    proxy::new().upstream_with("main", upstream, timeouts).run()
}

fn assert_timed_out(answer: &Answer) {
    assert_eq!(
        (answer.status, answer.openai_code().as_str()),
        (504, "upstream_timeout")
    );
}

#[test]
fn an_upstream_that_says_nothing_within_its_response_timeout() {
    let upstream = upstream::script([upstream::silence()]).run();
    let proxy = proxy_that_waits(&upstream, "response_timeout: 300ms, idle_timeout: 20s");
    let answer = within(SOON, || proxy.client("sk-fast").post(PATH, "{}"));
    assert_timed_out(&answer);
    let record = proxy.record();
    assert_eq!(
        json!([
            record["outcome"],
            record["error"],
            record["service_tier_billed"]
        ]),
        json!(["timeout", "upstream_timeout", "priority"])
    );
    upstream.release();
}

#[test]
fn an_upstream_that_says_half_a_head_within_its_response_timeout() {
    let half = Reply::default()
        .send("HTTP/1.1 200 OK\r\nContent-Le")
        .hold();
    let upstream = upstream::script([half]).run();
    let proxy = proxy_that_waits(&upstream, "response_timeout: 500ms, idle_timeout: 300ms");
    let answer = within(SOON, || proxy.client("sk-fast").post(PATH, "{}"));
    assert_timed_out(&answer);
    assert_eq!(proxy.record()["error"], "upstream_timeout");
    upstream.release();
}

#[test]
fn an_upstream_that_says_no_more_than_hints_within_its_response_timeout() {
    let hints = Reply::default()
        .send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        .hold();
    let upstream = upstream::script([hints]).run();
    let proxy = proxy_that_waits(&upstream, "response_timeout: 500ms, idle_timeout: 20s");
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send(client.message(PATH, b"{}"));
    assert_eq!(connection.head().unwrap().status, 103);
    let answer = within(SOON, || connection.answer());
    assert_timed_out(&answer);
    let record = proxy.record();
    assert_eq!(
        json!([
            record["status"],
            record["upstream_status"],
            record["outcome"]
        ]),
        json!([504, null, "timeout"])
    );
    upstream.release();
}

#[test]
fn a_request_that_timed_out_on_a_pooled_connection_is_not_sent_again() {
    let replies = [
        reply(200).json("1"),
        upstream::silence(),
        reply(200).json("2"),
    ];
    let upstream = upstream::script(replies).run();
    let proxy = proxy_that_waits(&upstream, "response_timeout: 300ms, idle_timeout: 20s");
    let client = proxy.client("sk-fast");
    assert_eq!(client.post(PATH, "{}").text(), "1");
    // Its line says that the connection is back in the pool.
    proxy.access_log(1);
    assert_eq!(client.post(PATH, "{}").status, 504);
    upstream.release();
    upstream.requests(2);
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn an_upstream_that_falls_silent_for_its_idle_timeout() {
    let script = [reply(200).sse_begun(&["data: 1\n\n"]).hold()];
    let upstream = upstream::script(script).run();
    let proxy = proxy_that_waits(&upstream, "response_timeout: 20s, idle_timeout: 300ms");
    let answer = within(SOON, || proxy.client("sk-fast").post(PATH, "{}"));
    assert_eq!((answer.status, answer.whole), (200, false));
    assert_eq!(answer.text(), "data: 1\n\n");
    let record = proxy.record();
    assert_eq!(
        json!([record["status"], record["outcome"], record["error"]]),
        json!([200, "timeout", "upstream_timeout"])
    );
    upstream.release();
}

#[test]
fn an_upstream_that_takes_nothing_of_a_request_for_its_idle_timeout() {
    // More than socket buffers take.
    let body = object_of(16_000_000);
    let deaf = || upstream::silence().before_body();
    let upstream = upstream::script([deaf(), deaf(), deaf()]).run();
    let settings = "response_timeout: 20s, idle_timeout: 300ms";
    let proxy = proxy::new()
        .upstream_with("main", &upstream, settings)
        .tls()
        .run();
    let headers = [("authorization", "Bearer sk-plain")];
    let statuses = [
        within(SOON, || proxy.client("sk-plain").post(PATH, &body).status),
        within(SOON, || proxy.client("sk-fast").post(PATH, &body).status),
        within(SOON, || {
            h2::post(proxy.tls_address, &headers, PATH, &body, Framing::Length).status
        }),
    ];
    assert_eq!(statuses, [504; 3]);
    for record in proxy.access_log(3) {
        assert_eq!(record["error"], "upstream_timeout");
    }
    upstream.release();
}

/// The limits are for a piece of the request, and for a response from when its request was taken.
#[test]
fn an_upstream_that_takes_a_large_request_slowly_has_its_time() {
    const LENGTH: usize = 24 << 20;
    for key in ["sk-fast", "sk-plain"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // Else much of it is with the upstream's kernel, which counts as taken.
        let socket = SockRef::from(&listener);
        socket.set_recv_buffer_size(64 * 1024).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let proxy = proxy::new()
            .upstream_at("main", &[url], "response_timeout: 1s, idle_timeout: 1s")
            .setting("limits: {body: 32MiB}")
            .run();
        let upstream = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut piece = vec![0; LENGTH / 8];
            for _ in 0..8 {
                std::thread::sleep(Duration::from_millis(300));
                socket.read_exact(&mut piece).unwrap();
            }
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
            socket.write_all(answer).unwrap();
        });
        let begun = Instant::now();
        let answer = proxy.client(key).post(PATH, object_of(LENGTH));
        assert_eq!(answer.status, 200, "{key}: {answer:?}");
        assert!(begun.elapsed() > Duration::from_millis(1500));
        upstream.join().unwrap();
    }
}

#[test]
fn the_idle_timeout_does_not_end_a_wait_for_the_first_byte() {
    let script = [upstream::Reply::default()
        .wait(Duration::from_millis(900))
        .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")];
    let upstream = upstream::script(script).run();
    let proxy = proxy_that_waits(&upstream, "response_timeout: 20s, idle_timeout: 300ms");
    assert_eq!(proxy.client("sk-fast").post(PATH, "{}").status, 200);
}

#[test]
fn the_response_timeout_does_not_end_a_stream_that_has_begun() {
    let script = [reply(200)
        .sse_begun(&["data: 1\n\n"])
        .wait(Duration::from_millis(900))
        .chunk("data: 2\n\n")
        .send("0\r\n\r\n")];
    let upstream = upstream::script(script).run();
    let proxy = proxy_that_waits(&upstream, "response_timeout: 300ms, idle_timeout: 20s");
    let answer = proxy.client("sk-fast").post(PATH, "{}");
    assert_eq!(
        (answer.whole, answer.text()),
        (true, "data: 1\n\ndata: 2\n\n")
    );
}

/// Sends a byte of a head every 50 ms until the proxy closes, and says how long that took.
fn drip_head(connection: &Connection) -> Duration {
    let mut socket = connection.socket();
    let (begun, pause) = (Instant::now(), Duration::from_millis(50));
    socket.set_read_timeout(Some(pause)).unwrap();
    let mut sent = b"POST /v1/responses HTTP/1.1\r\nX: ".iter();
    while begun.elapsed() < SOON {
        let _ = socket.write_all(&[*sent.next().unwrap_or(&b'x')]);
        match socket.read(&mut [0]) {
            Err(why) if why.kind() != std::io::ErrorKind::ConnectionReset => {}
            _ => return begun.elapsed(),
        }
    }
    panic!("the connection is still open");
}

#[test]
fn a_head_that_does_not_end() {
    let upstream = upstream::json("{}").run();
    // The time of an idle connection is not added to it.
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {header_timeout: 300ms, keepalive_timeout: 20s}")
        .run();
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    drip_head(&connection);
    // Nor does a connection that was used before have more, once the next head has begun.
    connection = client.connect();
    connection.send(client.message(PATH, b"{}"));
    assert_eq!(connection.answer().status, 200);
    std::thread::sleep(Duration::from_millis(500));
    drip_head(&connection);
    proxy.access_log(1);
}

/// With half a second for a head of HTTP/2.
fn proxy_that_awaits_heads(upstream: &Upstream) -> Proxy {
    proxy::new()
        .upstream(upstream)
        .tls()
        .setting("limits: {header_timeout: 500ms, keepalive_timeout: 20s}")
        .run()
}

/// A frame in pieces, or a head in more and more frames, behind a request in good order.
#[test]
fn a_head_of_http_2_that_does_not_end() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy_that_awaits_heads(&upstream);
    let whole = frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        3,
        &head("sk-plain", PATH),
    );
    let begun = frame(HEADERS, END_STREAM, 3, &head("sk-plain", PATH));
    let more = frame(CONTINUATION, 0, 3, &field("x-more", "y"));
    for (at_once, then) in [
        (&b""[..], whole.chunks(1).cycle()),
        (&begun, more.chunks(more.len()).cycle()),
    ] {
        let connection = Connection::open(proxy.tls_address);
        let mut stream = frames::begin(connection.socket().try_clone().unwrap());
        let first = frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            1,
            &head("sk-plain", PATH),
        );
        stream.write_all(&[&first[..], at_once].concat()).unwrap();
        let started = Instant::now();
        let pause = Duration::from_millis(50);
        stream.sock.set_read_timeout(Some(pause)).unwrap();
        let mut pieces = then.take(whole.len() - 1);
        let ended = loop {
            let _ = pieces
                .next()
                .is_some_and(|piece| stream.write_all(piece).is_ok());
            match stream.read(&mut [0; 4096]) {
                Ok(1..) => {}
                Err(why) if why.kind() == std::io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => break started.elapsed(),
            }
            assert!(started.elapsed() < SOON, "the connection is open");
        };
        assert!(ended > Duration::from_millis(400), "{ended:?}");
    }
    assert_eq!(proxy.access_log(2).len(), 2);
}

#[test]
fn heads_of_http_2_that_follow_each_other_have_their_time_each() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy_that_awaits_heads(&upstream);
    let connection = Connection::open(proxy.tls_address);
    let mut stream = frames::begin(connection.socket().try_clone().unwrap());
    let requests: Vec<u8> = (0..10)
        .flat_map(|at| {
            frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                2 * at + 1,
                &head("sk-plain", PATH),
            )
        })
        .collect();
    // Each piece ends within a head.
    let length = requests.len() / 10;
    let (half, rest) = requests.split_at(length / 2);
    for piece in std::iter::once(half).chain(rest.chunks(length)) {
        stream.write_all(piece).unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
    proxy.access_log(10);
}

#[test]
fn a_head_may_begin_late_on_a_connection_that_was_used_and_take_its_whole_time() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {header_timeout: 1500ms, keepalive_timeout: 20s}")
        .run();
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send(client.message(PATH, b"{}"));
    assert_eq!(connection.answer().status, 200);
    // Longer together than the time for a head, and each alone shorter.
    std::thread::sleep(Duration::from_millis(1000));
    let message = client.message(PATH, b"{}");
    connection.send(&message[..20]);
    std::thread::sleep(Duration::from_millis(1000));
    connection.send(&message[20..]);
    assert_eq!(connection.answer().status, 200);
}

#[test]
fn a_new_connection_that_brings_nothing() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .tls()
        .setting("limits: {header_timeout: 300ms, keepalive_timeout: 20s}")
        .run();
    within(SOON, || proxy.anonymous().connect().assert_closed());
    // In the handshake of TLS, within it, and behind it on both versions of HTTP.
    for begun in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        let mut connection = Connection::open(proxy.tls_address);
        connection.send(begun);
        within(SOON, || await_end(connection.socket()));
    }
    for protocol in [&b"http/1.1"[..], b"h2"] {
        let connection = Connection::open(proxy.tls_address);
        let socket = connection.socket().try_clone().unwrap();
        let mut stream = tls::client(socket, protocol);
        stream.flush().unwrap();
        within(SOON, || await_end(&mut stream));
    }
    // A preface in pieces, each of them in time.
    let socket = Connection::open(proxy.tls_address);
    let mut stream = tls::client(socket.socket().try_clone().unwrap(), b"h2");
    let begun = Instant::now();
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r".chunks(1) {
        if stream.write_all(byte).is_err() || begun.elapsed() > SOON {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    within(SOON, || await_end(&mut stream));
    eventually("no connection", || {
        (proxy.metric("tiergate_connections") == 0.0).then_some(())
    });
    upstream.assert_untouched();
}

/// Reads to the end, be it in good order or by a reset, and fails where it does not come.
fn await_end(mut stream: impl Read) {
    let ended = stream.read_to_end(&mut Vec::new());
    let open = ended.is_err_and(|why| why.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!open, "the connection is still open");
}

#[test]
fn an_idle_connection_is_closed_after_its_keepalive_timeout() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {keepalive_timeout: 1s, header_timeout: 20s}")
        .run();
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send(client.message(PATH, b"{}"));
    assert_eq!(connection.answer().status, 200);
    within(SOON, || connection.assert_closed());
}

#[test]
fn an_idle_connection_of_http_2_is_closed_after_its_keepalive_timeout() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .tls()
        .setting("limits: {keepalive_timeout: 1s, header_timeout: 20s}")
        .run();
    let connection = Connection::open(proxy.tls_address);
    let mut stream = tls::client(connection.socket().try_clone().unwrap(), b"h2");
    // The preface and no settings of its own.
    let opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    stream.write_all(opening).unwrap();
    within(SOON, || await_end(&mut stream));
}

#[test]
fn a_body_that_stops_for_its_idle_timeout() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {body_idle_timeout: 300ms}")
        .run();
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send(client.head_of(PATH, 100));
    connection.send("{");
    let answer = within(SOON, || connection.answer());
    assert_eq!(
        (answer.status, answer.openai_code().as_str()),
        (408, "request_timeout")
    );
    upstream.assert_untouched();
    assert_eq!(proxy.access_log(1)[0]["outcome"], "timeout");
    let chunked = client.clone().header("Transfer-Encoding", "chunked");
    let mut connection = chunked.connect();
    connection.send(chunked.head("POST", PATH));
    connection.send(chunk(b"{"));
    let answer = within(SOON, || connection.answer());
    assert_eq!(
        (answer.status, answer.openai_code().as_str()),
        (408, "request_timeout")
    );
    assert_eq!(proxy.access_log(2)[1]["error"], "request_timeout");
    // Nothing of it is held any longer.
    assert_eq!(proxy.status()["buffered_bytes"], 0);
}

/// Sends a byte every 50 ms until the proxy closes.
fn drip(connection: &Connection, byte: &'static [u8]) -> JoinHandle<()> {
    let mut sender = connection.socket().try_clone().unwrap();
    std::thread::spawn(move || {
        let begun = Instant::now();
        while begun.elapsed() < SOON && sender.write_all(byte).is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    })
}

#[test]
fn a_body_that_takes_longer_than_its_timeout() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {body_timeout: 600ms}")
        .run();
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send(client.head_of(PATH, 1000));
    let dripping = drip(&connection, b" ");
    let answer = within(SOON, || connection.answer());
    assert_eq!(
        (answer.status, answer.openai_code().as_str()),
        (408, "request_timeout")
    );
    drop(connection);
    dripping.join().unwrap();
    upstream.assert_untouched();
    assert_eq!(proxy.record()["error"], "request_timeout");
}

#[test]
fn a_chunked_body_that_takes_longer_than_its_timeout() {
    for key in ["sk-fast", "sk-plain"] {
        let upstream = upstream::json("{}").run();
        let proxy = proxy::new()
            .upstream(&upstream)
            .setting("limits: {body_timeout: 600ms}")
            .run();
        let client = proxy.client(key).header("Transfer-Encoding", "chunked");
        let mut connection = client.connect();
        connection.send(client.head("POST", PATH));
        let dripping = drip(&connection, b"1\r\n \r\n");
        let answer = within(SOON, || connection.answer());
        assert_eq!(
            (answer.status, answer.openai_code().as_str()),
            (408, "request_timeout")
        );
        drop(connection);
        dripping.join().unwrap();
        let record = proxy.record();
        assert_eq!(
            json!([record["outcome"], record["error"]]),
            json!(["timeout", "request_timeout"])
        );
    }
}

#[test]
fn bodies_beyond_the_buffer_are_refused_and_there_is_room_afterwards() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {buffered: 300KB, body: 200KB}")
        .run();
    let client = proxy.client("sk-fast");
    let mut half = client.connect();
    let body = object_of(190_000);
    half.send(client.head_of(PATH, body.len()));
    half.send(&body[..189_000]);
    eventually("the body is held", || {
        (proxy.status()["buffered_bytes"].as_u64() >= Some(189_000)).then_some(())
    });
    for (path, number) in [(PATH, 1), ("/v1/messages", 2)] {
        let answer = client.post(path, object_of(150_000));
        assert_eq!(answer.status, 503);
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert_eq!(answer.header("x-should-retry"), None);
        let record = &proxy.access_log(number)[number - 1];
        assert_eq!(
            json!([record["error"], record["outcome"]]),
            json!(["buffer_full", "rejected"])
        );
    }
    upstream.assert_untouched();
    // A small one still fits, and groups that are not forced need no room.
    assert_eq!(client.post(PATH, object_of(1000)).status, 200);
    assert_eq!(
        proxy
            .client("sk-plain")
            .post(PATH, object_of(150_000))
            .status,
        200
    );
    half.send(&body[189_000..]);
    assert_eq!(half.answer().status, 200);
    assert_eq!(client.post(PATH, object_of(150_000)).status, 200);
    assert_eq!(proxy.status()["buffered_bytes"], 0);
}

#[test]
fn bodies_that_are_only_announced_take_no_room() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {buffered: 300KB, body: 200KB}")
        .run();
    let client = proxy.client("sk-fast");
    let _announced: Vec<Connection> = (0..10)
        .map(|_| {
            let mut connection = client.connect();
            connection.send(client.head_of(PATH, 200_000));
            connection.send("{");
            connection
        })
        .collect();
    eventually("ten requests", || {
        (proxy.status()["buffered_bytes"].as_u64() >= Some(10)).then_some(())
    });
    assert_eq!(client.post(PATH, object_of(150_000)).status, 200);
}

#[test]
fn a_chunked_body_beyond_the_buffer_is_refused_too() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {buffered: 100KB, body: 100KB}")
        .run();
    let body = object_of(99_000);
    let client = proxy.client("sk-fast");
    let mut half = client.connect();
    half.send(client.head_of(PATH, body.len()));
    half.send(&body[..98_000]);
    eventually("the body is held", || {
        (proxy.status()["buffered_bytes"].as_u64() >= Some(98_000)).then_some(())
    });
    let pieces: Vec<&[u8]> = body.chunks(10_000).collect();
    let answer = client.post_chunked(PATH, &pieces);
    assert_eq!(
        (answer.status, answer.openai_code().as_str()),
        (503, "buffer_full")
    );
    drop(half);
    eventually("room again", || {
        (proxy.status()["buffered_bytes"] == 0).then_some(())
    });
    for request in upstream.received() {
        assert_eq!((request.whole, request.body.len()), (false, 0));
    }
}
