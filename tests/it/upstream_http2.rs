//! What upstreams may do over HTTP/2 (RFC 9113), frame by frame, and what their requests come to: each is answered, billed
//! once, and no harm to the others on its connection.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::SockRef;

use crate::support::client::{Answer, Connection, chunk};
use crate::support::frames;
use crate::support::h2::{self, Framing};
use crate::support::h2_script::{
    ALL_STREAMS, ENHANCE_YOUR_CALM, Event, HTTP_1_1_REQUIRED, INTERNAL_ERROR,
    MAX_CONCURRENT_STREAMS, NO_ERROR, PROTOCOL_ERROR, Peer, REFUSED_STREAM, Upstream, upstream,
    upstream_with, upstream_without_http1,
};
use crate::support::proxy::{self, Proxy};
use crate::support::{eventually, object_of, upstream as http1};

const PATH: &str = "/v1/responses";
const BODY: &[u8] = br#"{"model":"m-1"}"#;
const KEYS: [&str; 2] = ["sk-fast", "sk-plain"];
const CREATED: &str = "data: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\"}}\n\n";
const COMPLETED: &str =
    "data: {\"type\":\"response.completed\",\"response\":{\"id\":\"resp_1\"}}\n\n";
const SSE: [(&str, &str); 1] = [("content-type", "text/event-stream")];
/// Long enough for what was sent before it to be looked at alone.
const MOMENT: Duration = Duration::from_millis(50);
/// What is to happen at once happens within this, far below any limit for an upstream.
const AT_ONCE: Duration = Duration::from_secs(5);
/// More than any window and all buffers on the way take.
const LARGE_BYTES: usize = 4 << 20;

fn behind(upstream: &Upstream) -> Proxy {
    proxy::new().upstream(upstream).run()
}

fn post(proxy: &Proxy, key: &str, body: &[u8]) -> Answer {
    proxy.client(key).post(PATH, body)
}

fn told(answer: &Answer) -> (u16, bool, &str) {
    (answer.status, answer.whole, answer.text())
}

fn outcomes(records: &[Value]) -> Vec<&Value> {
    records.iter().map(|record| &record["outcome"]).collect()
}

fn in_background(proxy: &Proxy, body: &'static [u8]) -> JoinHandle<Answer> {
    let client = proxy.client("sk-plain");
    std::thread::spawn(move || client.post(PATH, body))
}

/// A client that has the head of its response.
fn begun(proxy: &Proxy, body: &[u8]) -> Connection {
    let client = proxy.client("sk-plain");
    let mut connection = client.connect();
    connection.send(client.message(PATH, body));
    assert_eq!(connection.head().expect("a head").status, 200);
    connection
}

// Ends of requests.

/// The processor time of a second in which nobody asks for anything.
fn idle_time(proxy: &Proxy) -> Duration {
    let before = proxy.cpu_time();
    std::thread::sleep(Duration::from_secs(1));
    proxy.cpu_time() - before
}

/// `length`: the body's length is announced as well.
fn post_with_trailers(proxy: &Proxy, key: &str, length: bool) -> Answer {
    let (key, bytes) = (format!("Bearer {key}"), BODY.len().to_string());
    let headers = [("authorization", key.as_str()), ("content-length", &bytes)];
    let headers = &headers[..if length { 2 } else { 1 }];
    h2::post(proxy.tls_address, headers, PATH, BODY, Framing::Trailers)
}

#[test]
fn a_request_that_trailers_end_is_answered_and_spins_no_thread() {
    let over_http2 = upstream(|peer| peer.serve(|peer, stream| peer.json(stream, 200, "{}")));
    let over_http1 = http1::json("{}").run();
    let proxy = proxy::new().upstream(&over_http2).tls().run();
    let other = proxy::new().upstream(&over_http1).tls().run();
    let kinds = KEYS.into_iter().flat_map(|key| [(key, false), (key, true)]);
    for (at, (key, length)) in kinds.enumerate() {
        for proxy in [&proxy, &other] {
            let answer = post_with_trailers(proxy, key, length);
            assert_eq!(told(&answer), (200, true, "{}"), "{key}");
            assert_eq!(proxy.access_log(at + 1)[at]["outcome"], "ok");
        }
    }
    let bodies = &over_http2.seen().bodies;
    let over_http1 = over_http1.requests(4);
    for (at, body) in bodies.iter().enumerate() {
        assert_eq!(body, &over_http1[at].body);
        let sent: Value = serde_json::from_slice(body).unwrap();
        let expected = match at < 2 {
            true => json!({"service_tier": "priority", "model": "m-1"}),
            false => json!({"model": "m-1"}),
        };
        assert_eq!(sent, expected);
    }
    for proxy in [&proxy, &other] {
        let spent = idle_time(proxy);
        assert!(spent < Duration::from_millis(200), "{spent:?}");
    }
}

#[test]
fn a_request_that_trailers_end_waits_for_its_response_without_spinning() {
    let upstream = upstream(|peer| peer.serve(|_, _| {}));
    let settings = "response_timeout: 3s";
    let proxy = proxy::new()
        .upstream_with("main", &upstream, settings)
        .tls()
        .run();
    std::thread::scope(|scope| {
        let waiting = KEYS.map(|key| scope.spawn(|| post_with_trailers(&proxy, key, false)));
        upstream.await_heads(2);
        let spent = idle_time(&proxy);
        assert!(spent < Duration::from_millis(300), "{spent:?}");
        let statuses = waiting.map(|client| client.join().unwrap().status);
        assert_eq!(statuses, [504, 504]);
    });
    assert_eq!(outcomes(&proxy.stop()), ["timeout", "timeout"]);
}

// Ends of responses.

/// Asks again and again, and expects one connection on which nothing is reset.
fn assert_kept_whole(answer: impl Fn(&mut Peer, u32) + Send + Sync + 'static, expected: &str) {
    const REQUESTS: usize = 12;
    let upstream = upstream(move |peer| peer.serve(&answer));
    let proxy = behind(&upstream);
    for at in 0..REQUESTS {
        let answer = post(&proxy, KEYS[at % 2], BODY);
        assert_eq!((answer.whole, answer.text()), (true, expected));
    }
    let records = proxy.stop();
    assert_eq!(outcomes(&records), vec!["ok"; REQUESTS]);
    let seen = upstream.seen();
    assert_eq!((seen.connections, seen.heads), (1, REQUESTS));
    assert_eq!(seen.resets, [], "a whole response is reset");
}

#[test]
fn an_end_that_comes_behind_a_body_with_a_length_resets_nothing() {
    let answer = |peer: &mut Peer, stream| {
        peer.respond(stream, 200, &[("content-length", "2")]);
        peer.data(stream, b"{}");
        std::thread::sleep(MOMENT);
        peer.last_data(stream, b"");
    };
    assert_kept_whole(answer, "{}");
}

#[test]
fn an_end_that_comes_behind_a_body_without_a_length_resets_nothing() {
    let answer = |peer: &mut Peer, stream| {
        peer.respond(stream, 200, &[]);
        peer.data(stream, b"{}");
        std::thread::sleep(MOMENT);
        peer.last_data(stream, b"");
    };
    assert_kept_whole(answer, "{}");
}

#[test]
fn an_end_that_comes_behind_the_head_of_a_204_resets_nothing() {
    let answer = |peer: &mut Peer, stream| {
        peer.respond(stream, 204, &[]);
        std::thread::sleep(MOMENT);
        peer.last_data(stream, b"");
    };
    assert_kept_whole(answer, "");
}

#[test]
fn an_end_that_comes_behind_the_head_of_an_empty_body_resets_nothing() {
    let answer = |peer: &mut Peer, stream| {
        peer.respond(stream, 200, &[("content-length", "0")]);
        std::thread::sleep(MOMENT);
        peer.last_data(stream, b"");
    };
    assert_kept_whole(answer, "");
}

#[test]
fn an_end_that_comes_behind_the_last_event_resets_nothing() {
    let answer = |peer: &mut Peer, stream| {
        peer.respond(stream, 200, &SSE);
        peer.data(stream, CREATED.as_bytes());
        peer.data(stream, COMPLETED.as_bytes());
        std::thread::sleep(MOMENT);
        peer.last_data(stream, b"");
    };
    assert_kept_whole(answer, &[CREATED, COMPLETED].concat());
}

#[test]
fn trailers_end_a_response_with_a_length() {
    let answer = |peer: &mut Peer, stream| {
        peer.respond(stream, 200, &[("content-length", "2")]);
        peer.data(stream, b"{}");
        std::thread::sleep(MOMENT);
        peer.trailers(stream);
    };
    assert_kept_whole(answer, "{}");
}

#[test]
fn trailers_end_a_response_without_a_length() {
    let answer = |peer: &mut Peer, stream| {
        peer.respond(stream, 200, &[]);
        peer.data(stream, b"{}");
        std::thread::sleep(MOMENT);
        peer.trailers(stream);
    };
    assert_kept_whole(answer, "{}");
}

#[test]
fn an_end_that_comes_behind_the_answer_to_head_resets_nothing() {
    let upstream = upstream(|peer| {
        peer.serve(|peer, stream| {
            peer.respond(stream, 200, &[("content-length", "700")]);
            std::thread::sleep(MOMENT);
            peer.last_data(stream, b"");
        });
    });
    let proxy = behind(&upstream);
    let client = proxy.client("sk-plain");
    let mut connection = client.connect();
    for _ in 0..3 {
        connection.send(client.head("HEAD", "/v1/models"));
        let head = connection.head().expect("a head");
        assert_eq!(
            (head.status, head.header("content-length")),
            (200, Some("700"))
        );
    }
    drop(connection);
    assert_eq!(outcomes(&proxy.stop()), ["ok"; 3]);
    let seen = upstream.seen();
    assert_eq!((seen.connections, seen.heads, seen.resets), (1, 3, vec![]));
}

#[test]
fn an_end_that_never_comes_holds_nobody_up() {
    let upstream = upstream(|peer| {
        peer.serve(|peer, stream| {
            peer.respond(stream, 200, &[("content-length", "2")]);
            peer.data(stream, b"{}");
        });
    });
    let proxy = behind(&upstream);
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(told(&post(&proxy, "sk-fast", BODY)), (200, true, "{}"));
    }
    assert!(begun.elapsed() < 2 * AT_ONCE, "{:?}", begun.elapsed());
    assert_eq!(outcomes(&proxy.access_log(20)), ["ok"; 20]);
}

#[test]
fn a_response_that_ends_before_its_length_is_cut() {
    let upstream = upstream(|peer| {
        peer.serve(|peer, stream| {
            peer.respond(stream, 200, &[("content-length", "10")]);
            peer.last_data(stream, b"{}");
        });
    });
    let proxy = behind(&upstream);
    assert!(!post(&proxy, "sk-fast", BODY).whole);
    assert_eq!(proxy.record()["outcome"], "upstream_cut");
}

#[test]
fn a_response_that_is_reset_is_cut_and_the_next_is_whole() {
    for reason in [INTERNAL_ERROR, NO_ERROR, REFUSED_STREAM] {
        let upstream = upstream(move |peer| {
            peer.serve(|peer, stream| match stream {
                1 => {
                    peer.respond(stream, 200, &SSE);
                    peer.data(stream, CREATED.as_bytes());
                    std::thread::sleep(MOMENT);
                    peer.reset(stream, reason);
                }
                _ => peer.json(stream, 200, "{}"),
            });
        });
        let proxy = behind(&upstream);
        let cut = post(&proxy, "sk-fast", BODY);
        assert_eq!(told(&cut), (200, false, CREATED), "{reason}");
        assert_eq!(told(&post(&proxy, "sk-fast", BODY)), (200, true, "{}"));
        assert_eq!(outcomes(&proxy.stop()), ["upstream_cut", "ok"], "{reason}");
        assert_eq!(
            upstream.seen().heads,
            2,
            "an answered request is sent again"
        );
    }
}

// Requests that were not looked at.

#[test]
fn a_refused_stream_is_sent_again() {
    for key in KEYS {
        let upstream = upstream(|peer| {
            peer.serve(|peer, stream| match (peer.number, stream) {
                (0, 1) => peer.reset(stream, REFUSED_STREAM),
                _ => peer.json(stream, 200, "{}"),
            });
        });
        let proxy = behind(&upstream);
        assert_eq!(told(&post(&proxy, key, BODY)), (200, true, "{}"), "{key}");
        assert_eq!(proxy.record()["outcome"], "ok");
        assert_eq!(upstream.seen().heads, 2);
    }
}

#[test]
fn a_request_that_trailers_end_and_that_is_sent_again_waits_for_its_response() {
    let idle = Duration::from_secs(1);
    let upstream = upstream(move |peer| {
        peer.serve(|peer, stream| {
            if peer.seen_heads() == 1 {
                return peer.reset(stream, REFUSED_STREAM);
            }
            std::thread::sleep(2 * idle);
            peer.json(stream, 200, "{}");
        });
    });
    let proxy = proxy::new()
        .upstream(&upstream)
        .tls()
        .setting("limits: {body_idle_timeout: 1s}")
        .run();
    for key in ["sk-plain", "sk-fast"] {
        let answer = post_with_trailers(&proxy, key, false);
        assert_eq!(told(&answer), (200, true, "{}"), "{key}");
    }
    assert_eq!(outcomes(&proxy.stop()), ["ok", "ok"]);
}

#[test]
fn a_stream_that_is_refused_for_good_is_told_of_and_its_address_is_not_blamed() {
    let refuses = Arc::new(AtomicBool::new(true));
    let still_refuses = refuses.clone();
    let upstream = upstream(move |peer| {
        peer.serve(|peer, stream| match still_refuses.load(Ordering::SeqCst) {
            true => peer.reset(stream, REFUSED_STREAM),
            false => peer.json(stream, 200, "{}"),
        });
    });
    let proxy = behind(&upstream);
    for _ in 0..6 {
        assert_eq!(post(&proxy, "sk-fast", BODY).status, 502);
    }
    let attempts = upstream.seen().heads;
    assert!(
        (12..=6 * 16).contains(&attempts),
        "{attempts} attempts for six requests"
    );
    refuses.store(false, Ordering::SeqCst);
    assert_eq!(post(&proxy, "sk-fast", BODY).status, 200);
}

#[test]
fn a_request_above_the_last_stream_of_a_goaway_is_sent_again() {
    for reason in [NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, ENHANCE_YOUR_CALM] {
        for key in KEYS {
            let upstream = upstream(move |peer| {
                if peer.number == 0 {
                    peer.head();
                    peer.go_away(0, reason);
                    return peer.hear_out();
                }
                peer.serve(|peer, stream| peer.json(stream, 200, "{}"));
            });
            let proxy = behind(&upstream);
            let answer = post(&proxy, key, BODY);
            assert_eq!(told(&answer), (200, true, "{}"), "{key} {reason}");
            assert_eq!(proxy.record()["outcome"], "ok");
            let seen = upstream.seen();
            assert_eq!((seen.connections, seen.heads), (2, 2));
        }
    }
}

#[test]
fn a_goaway_behind_its_last_stream_cuts_no_response_and_the_next_goes_elsewhere() {
    let upstream = upstream(|peer| {
        peer.serve(|peer, stream| {
            peer.go_away(stream, NO_ERROR);
            std::thread::sleep(MOMENT);
            peer.json(stream, 200, "{}");
        });
    });
    let proxy = behind(&upstream);
    for _ in 0..4 {
        assert_eq!(told(&post(&proxy, "sk-fast", BODY)), (200, true, "{}"));
    }
    assert_eq!(outcomes(&proxy.stop()), ["ok"; 4]);
    let seen = upstream.seen();
    assert_eq!((seen.connections, seen.heads), (4, 4));
}

#[test]
fn a_goaway_leaves_the_streams_below_its_last_and_sends_the_others_again() {
    let upstream = upstream(|peer| {
        if peer.number > 0 {
            return peer.serve(|peer, stream| peer.json(stream, 200, "{}"));
        }
        let first = peer.request().unwrap();
        peer.respond(first, 200, &SSE);
        peer.data(first, CREATED.as_bytes());
        peer.request();
        peer.go_away(first, ENHANCE_YOUR_CALM);
        std::thread::sleep(2 * MOMENT);
        peer.last_data(first, COMPLETED.as_bytes());
        peer.hear_out();
    });
    let proxy = behind(&upstream);
    let mut first = begun(&proxy, BODY);
    assert_eq!(told(&post(&proxy, "sk-fast", BODY)), (200, true, "{}"));
    assert_eq!(first.chunk().as_deref(), Some(CREATED.as_bytes()));
    assert_eq!(first.chunk().as_deref(), Some(COMPLETED.as_bytes()));
    assert_eq!(first.chunk(), None);
    assert_eq!(outcomes(&proxy.access_log(2)), ["ok"; 2]);
    assert_eq!(upstream.seen().heads, 3);
}

/// What becomes of a request that the upstream has read whole on a kept connection, whose end comes next: by `end`, and the
/// close of the connection.
fn assert_not_sent_again(end: fn(&mut Peer, u32)) {
    let upstream = upstream(move |peer| {
        if peer.number > 0 {
            return peer.serve(|peer, stream| peer.json(stream, 200, "{}"));
        }
        let first = peer.request().unwrap();
        peer.json(first, 200, "{}");
        let second = peer.request().unwrap();
        end(peer, second);
    });
    let proxy = behind(&upstream);
    assert_eq!(post(&proxy, "sk-fast", BODY).status, 200);
    let begun = Instant::now();
    assert_eq!(post(&proxy, "sk-fast", BODY).status, 502);
    assert!(begun.elapsed() < AT_ONCE);
    assert_eq!(outcomes(&proxy.stop()), ["ok", "upstream_error"]);
    assert_eq!(upstream.seen().bodies.len(), 2);
}

#[test]
fn a_request_that_a_goaway_covers_is_not_sent_again() {
    assert_not_sent_again(|peer, stream| peer.go_away(stream, NO_ERROR));
    assert_not_sent_again(|peer, _| peer.go_away(ALL_STREAMS, NO_ERROR));
    assert_not_sent_again(|peer, stream| peer.go_away(stream, INTERNAL_ERROR));
    assert_not_sent_again(|peer, stream| peer.go_away(stream + 2, ENHANCE_YOUR_CALM));
    assert_not_sent_again(|peer, stream| {
        peer.go_away(ALL_STREAMS, NO_ERROR);
        peer.go_away(stream, NO_ERROR);
    });
}

#[test]
fn a_request_whose_connection_is_reset_is_not_sent_again() {
    assert_not_sent_again(|peer, _| peer.reset_connection());
}

#[test]
fn a_request_above_the_last_stream_is_sent_again_where_the_connection_ends_at_once() {
    let upstream = upstream(|peer| {
        if peer.number > 0 {
            return peer.serve(|peer, stream| peer.json(stream, 200, "{}"));
        }
        let first = peer.request().unwrap();
        peer.json(first, 200, "{}");
        peer.head();
        peer.go_away(first, NO_ERROR);
    });
    let proxy = behind(&upstream);
    for _ in 0..2 {
        assert_eq!(told(&post(&proxy, "sk-fast", BODY)), (200, true, "{}"));
    }
    assert_eq!(outcomes(&proxy.stop()), ["ok"; 2]);
}

#[test]
fn empty_frames_end_no_connection() {
    let upstream = upstream(|peer| {
        peer.serve(|peer, stream| {
            peer.respond(stream, 200, &SSE);
            for _ in 0..250 {
                peer.data(stream, b"");
            }
            peer.data(stream, CREATED.as_bytes());
            peer.data(stream, b"");
            peer.last_data(stream, COMPLETED.as_bytes());
        });
    });
    let proxy = behind(&upstream);
    let events = [CREATED, COMPLETED].concat();
    for _ in 0..20 {
        let answer = post(&proxy, "sk-plain", BODY);
        assert_eq!(told(&answer), (200, true, &*events));
    }
    assert_eq!(outcomes(&proxy.stop()), ["ok"; 20]);
    assert_eq!(upstream.seen().connections, 1);
}

#[test]
fn empty_frames_of_a_client_end_no_connection() {
    use frames::{DATA, END_HEADERS, HEADERS};
    let upstream = http1::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).tls().run();
    let mut client = frames::begin(TcpStream::connect(proxy.tls_address).unwrap());
    for number in 0..20 {
        let stream = 1 + 2 * number;
        let head = frames::head("sk-fast", PATH);
        let mut sent = frames::frame(HEADERS, END_HEADERS, stream, &head);
        sent.extend(frames::frame(DATA, 0, stream, b"").repeat(50));
        sent.extend(frames::frame(DATA, 0, stream, BODY));
        sent.extend(frames::frame(DATA, 0, stream, b"").repeat(50));
        sent.extend(frames::frame(DATA, 1, stream, b""));
        client.write_all(&sent).unwrap();
        assert_eq!(
            proxy.access_log(number as usize + 1).len(),
            number as usize + 1
        );
    }
    assert_eq!(outcomes(&proxy.stop()), ["ok"; 20]);
}

#[test]
fn an_upstream_that_asks_for_http_1_is_spoken_to_in_it() {
    for key in KEYS {
        let upstream =
            upstream(|peer| peer.serve(|peer, stream| peer.reset(stream, HTTP_1_1_REQUIRED)));
        let proxy = behind(&upstream);
        for _ in 0..2 {
            assert_eq!(told(&post(&proxy, key, BODY)), (200, true, "{}"), "{key}");
        }
        assert_eq!(outcomes(&proxy.stop()), ["ok"; 2]);
        assert_eq!(upstream.seen().http1, 2);
    }
}

#[test]
fn an_upstream_that_speaks_only_http_2_is_not_blamed_for_requests_that_cannot_go_over_it() {
    let upstream =
        upstream_without_http1(|peer| peer.serve(|peer, stream| peer.json(stream, 200, "{}")));
    let proxy = behind(&upstream);
    for _ in 0..5 {
        let client = proxy.client("sk-plain");
        let message = String::from_utf8(client.message(PATH, BODY)).unwrap();
        let mut connection = client.connect();
        connection.send(message.replace("HTTP/1.1", "HTTP/1.0").into_bytes());
        assert_eq!(connection.answer().status, 502);
    }
    assert_eq!(told(&post(&proxy, "sk-fast", BODY)), (200, true, "{}"));
    assert_eq!(proxy.metric("tiergate_upstream_ejections_total"), 0.0);
}

#[test]
fn a_request_that_offers_h2c_goes_to_an_upstream_that_speaks_only_http_2() {
    let upstream =
        upstream_without_http1(|peer| peer.serve(|peer, stream| peer.json(stream, 200, "{}")));
    let proxy = behind(&upstream);
    let client = proxy
        .client("sk-fast")
        .header("Connection", "Upgrade, HTTP2-Settings")
        .header("Upgrade", "h2c")
        .header("HTTP2-Settings", "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA");
    for path in ["/v1/models", "/v1/responses/resp_1"] {
        assert_eq!(client.exchange(&client.head("GET", path)).status, 200);
    }
    assert_eq!(client.post(PATH, BODY).status, 200);
}

#[test]
fn a_malformed_answer_does_not_switch_http_2_off() {
    let upstream = upstream(|peer| {
        let stream = peer.request();
        if peer.number == 0 {
            // A header block that no table can decode.
            peer.send(1, 5, stream.unwrap(), &[0xff; 12]);
            return peer.hear_out();
        }
        peer.json(stream.unwrap(), 200, "{}");
        peer.serve(|peer, stream| peer.json(stream, 200, "{}"));
    });
    let proxy = behind(&upstream);
    assert_eq!(post(&proxy, "sk-fast", BODY).status, 502);
    for _ in 0..3 {
        assert_eq!(told(&post(&proxy, "sk-fast", BODY)), (200, true, "{}"));
    }
    let seen = upstream.seen();
    assert_eq!((seen.http1, seen.heads), (0, 4));
}

// A window that stays shut, and answers that come early.

/// How a large body comes.
#[derive(Clone, Copy, Debug)]
enum Large {
    Held,
    Streamed,
    Chunked,
}

const LARGE: [Large; 3] = [Large::Held, Large::Streamed, Large::Chunked];

impl Large {
    fn send(self, proxy: &Proxy) -> Connection {
        let body = object_of(LARGE_BYTES);
        let message = match self {
            Large::Held => proxy.client("sk-fast").message(PATH, &body),
            Large::Streamed => proxy.client("sk-plain").message(PATH, &body),
            Large::Chunked => {
                let client = proxy
                    .client("sk-plain")
                    .header("Transfer-Encoding", "chunked");
                [
                    client.head("POST", PATH),
                    chunk(&body),
                    b"0\r\n\r\n".to_vec(),
                ]
                .concat()
            }
        };
        let mut connection = proxy.anonymous().connect();
        let socket = connection.socket().try_clone().unwrap();
        // The proxy may take only a part of it.
        std::thread::spawn(move || {
            let _ = (&socket).write_all(&message);
        });
        connection.send(b"");
        connection
    }
}

fn assert_answered_early(answer: impl Fn(&mut Peer, u32) + Send + Sync + 'static) {
    let answer = Arc::new(answer);
    for large in LARGE {
        let answer = answer.clone();
        let upstream = upstream(move |peer| {
            peer.opens_window = false;
            while let Some(stream) = peer.head() {
                answer(peer, stream);
            }
        });
        let proxy = behind(&upstream);
        let begun = Instant::now();
        let told_early = large.send(&proxy).answer();
        assert_eq!(
            told(&told_early),
            (429, true, r#"{"error":{}}"#),
            "{large:?}"
        );
        assert!(begun.elapsed() < AT_ONCE, "{large:?}");
        let record = proxy.record();
        let expected = json!(["upstream_error", 429, 429]);
        let line = json!([
            record["outcome"],
            record["status"],
            record["upstream_status"]
        ]);
        assert_eq!(line, expected, "{large:?}");
        assert_eq!(upstream.seen().heads, 1, "{large:?}");
        eventually("the memory of its body", || {
            (proxy.metric("tiergate_buffered_bytes") == 0.0).then_some(())
        });
    }
}

#[test]
fn an_early_answer_that_a_reset_without_error_follows_reaches_its_client() {
    assert_answered_early(|peer, stream| {
        peer.json(stream, 429, r#"{"error":{}}"#);
        peer.reset(stream, NO_ERROR);
    });
}

/// Such a reset ends no response: it asks to stop what is sent behind a whole one (RFC 9113 §8.1).
#[test]
fn an_early_answer_that_is_reset_without_error_before_its_end_is_cut() {
    const PART: &str = r#"{"half":"#;
    for large in LARGE {
        let upstream = upstream(|peer| {
            peer.opens_window = false;
            while let Some(stream) = peer.head() {
                peer.respond(stream, 200, &[("content-type", "application/json")]);
                peer.data(stream, PART.as_bytes());
                peer.reset(stream, NO_ERROR);
            }
        });
        let proxy = behind(&upstream);
        let cut = large.send(&proxy).answer();
        assert_eq!(told(&cut), (200, false, PART), "{large:?}");
        assert_eq!(proxy.record()["outcome"], "upstream_cut", "{large:?}");
    }
}

#[test]
fn an_early_answer_with_its_window_shut_reaches_its_client_at_once() {
    assert_answered_early(|peer, stream| peer.json(stream, 429, r#"{"error":{}}"#));
}

#[test]
fn an_early_answer_that_ends_late_reaches_its_client() {
    assert_answered_early(|peer, stream| {
        peer.respond(stream, 429, &[("content-length", "12")]);
        std::thread::sleep(MOMENT);
        peer.data(stream, br#"{"error":{}}"#);
        std::thread::sleep(MOMENT);
        peer.last_data(stream, b"");
        peer.reset(stream, NO_ERROR);
    });
}

#[test]
fn an_early_answer_that_trailers_end_has_its_line_at_once() {
    let upstream = upstream(|peer| {
        while let Some(stream) = peer.head() {
            peer.respond(stream, 200, &SSE);
            peer.data(stream, COMPLETED.as_bytes());
            peer.trailers(stream);
        }
    });
    let proxy = proxy::new().upstream(&upstream).tls().run();
    let key = [("authorization", "Bearer sk-plain")];
    let begun = Instant::now();
    let answer = h2::post(
        proxy.tls_address,
        &key,
        PATH,
        BODY,
        Framing::StalledNoLength,
    );
    assert_eq!(told(&answer), (200, true, COMPLETED));
    assert_eq!(proxy.record()["outcome"], "ok");
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_window_that_stays_shut_times_out() {
    for large in LARGE {
        let upstream = upstream(|peer| {
            peer.opens_window = false;
            peer.hear_out();
        });
        let settings = "response_timeout: 1s, idle_timeout: 1s";
        let proxy = proxy::new()
            .upstream_with("main", &upstream, settings)
            .setting("limits: {body_idle_timeout: 2s}")
            .run();
        let answer = large.send(&proxy).answer();
        assert!(matches!(answer.status, 504 | 408), "{large:?}: {answer:?}");
        let record = proxy.record();
        assert!(record["status"] == answer.status, "{record}");
        eventually("the memory of its body", || {
            (proxy.metric("tiergate_buffered_bytes") == 0.0).then_some(())
        });
    }
}

#[test]
fn a_response_is_awaited_from_when_its_request_was_taken() {
    const STEP: u32 = 512 << 10;
    for large in LARGE {
        let upstream = upstream(|peer| {
            peer.opens_window = false;
            let Some(stream) = peer.head() else {
                return;
            };
            for _ in 0..LARGE_BYTES / STEP as usize {
                std::thread::sleep(Duration::from_millis(300));
                peer.open_window(stream, STEP);
            }
            while !matches!(peer.event(), Some(Event::End(_)) | None) {}
            peer.json(stream, 200, "{}");
        });
        let settings = "response_timeout: 1s, idle_timeout: 1s";
        let proxy = proxy::new()
            .upstream_with("main", &upstream, settings)
            .run();
        assert_eq!(large.send(&proxy).answer().status, 200, "{large:?}");
    }
}

/// Else a request would have no end before an upstream that takes a byte each second.
#[test]
fn a_window_that_opens_by_a_few_bytes_stays_shut() {
    let upstream = upstream(|peer| {
        peer.opens_window = false;
        let Some(stream) = peer.head() else {
            return;
        };
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(100));
            peer.open_window(stream, 1000);
        }
    });
    let settings = "response_timeout: 1s, idle_timeout: 1s";
    let proxy = proxy::new()
        .upstream_with("main", &upstream, settings)
        .run();
    let begun = Instant::now();
    assert_eq!(Large::Held.send(&proxy).answer().status, 504);
    assert!(begun.elapsed() < AT_ONCE + Duration::from_secs(1));
}

#[test]
fn a_client_that_leaves_while_its_held_body_waits_for_a_window_has_its_line_at_once() {
    // Of a body that passes the rest is with the client, whose end is behind it.
    let upstream = upstream(|peer| {
        peer.opens_window = false;
        peer.hear_out();
    });
    let proxy = behind(&upstream);
    let connection = Large::Held.send(&proxy);
    upstream.await_heads(1);
    std::thread::sleep(2 * MOMENT);
    connection.socket().shutdown(Shutdown::Both).unwrap();
    drop(connection);
    let left = Instant::now();
    assert_eq!(proxy.record()["outcome"], "client_closed");
    assert!(left.elapsed() < AT_ONCE, "{:?}", left.elapsed());
    eventually("the memory of its body", || {
        (proxy.metric("tiergate_buffered_bytes") == 0.0).then_some(())
    });
}

#[test]
fn a_client_that_leaves_while_its_passing_body_waits_for_a_window_has_its_line_soon() {
    for large in [Large::Streamed, Large::Chunked] {
        let upstream = upstream(|peer| {
            peer.opens_window = false;
            peer.hear_out();
        });
        let proxy = behind(&upstream);
        let connection = large.send(&proxy);
        upstream.await_heads(1);
        std::thread::sleep(2 * MOMENT);
        // Without this its end would be behind what nobody has read.
        let linger = SockRef::from(connection.socket()).set_linger(Some(Duration::ZERO));
        linger.unwrap();
        connection.socket().shutdown(Shutdown::Both).unwrap();
        drop(connection);
        let left = Instant::now();
        assert_eq!(proxy.record()["outcome"], "client_closed", "{large:?}");
        assert!(
            left.elapsed() < 4 * AT_ONCE,
            "{large:?}: {:?}",
            left.elapsed()
        );
        eventually("the memory of its body", || {
            (proxy.metric("tiergate_buffered_bytes") == 0.0).then_some(())
        });
    }
}

/// The setting of RFC 9113 §6.5.2 for the window of a new stream.
const INITIAL_WINDOW_SIZE: u16 = 4;

#[test]
fn a_client_of_http_2_that_resets_while_its_body_waits_for_a_window_has_its_line_at_once() {
    use frames::{CANCEL, DATA, END_HEADERS, HEADERS, RST_STREAM};
    for key in KEYS {
        let upstream = upstream_with(&[(INITIAL_WINDOW_SIZE, 100)], |peer| {
            peer.opens_window = false;
            peer.hear_out();
        });
        let proxy = proxy::new().upstream(&upstream).tls().run();
        let mut client = frames::begin(TcpStream::connect(proxy.tls_address).unwrap());
        let body = object_of(30_000);
        let head = [
            frames::head(key, PATH),
            frames::field("content-length", "30000"),
        ];
        let (first, rest) = body.split_at(15_000);
        for frame in [
            frames::frame(HEADERS, END_HEADERS, 1, &head.concat()),
            frames::frame(DATA, 0, 1, first),
            frames::frame(DATA, 1, 1, rest),
        ] {
            client.write_all(&frame).unwrap();
        }
        upstream.await_heads(1);
        std::thread::sleep(2 * MOMENT);
        let left = Instant::now();
        client
            .write_all(&frames::frame(RST_STREAM, 0, 1, CANCEL))
            .unwrap();
        assert_eq!(proxy.record()["outcome"], "client_closed", "{key}");
        assert!(left.elapsed() < AT_ONCE, "{key}: {:?}", left.elapsed());
        eventually("the memory of its body", || {
            (proxy.metric("tiergate_buffered_bytes") == 0.0).then_some(())
        });
    }
}

#[test]
fn a_client_is_read_no_faster_than_its_upstream_takes_the_body() {
    for large in [Large::Streamed, Large::Chunked] {
        let upstream = upstream(|peer| {
            while let Some(stream) = peer.head() {
                // The proxy could take all of it meanwhile.
                std::thread::sleep(4 * MOMENT);
                while !matches!(peer.event(), Some(Event::End(_)) | None) {}
                peer.json(stream, 200, "{}");
            }
        });
        let proxy = proxy::new()
            .upstream(&upstream)
            .setting("limits: {buffered: 1MiB}")
            .run();
        let answer = large.send(&proxy).answer();
        assert_eq!(told(&answer), (200, true, "{}"), "{large:?}");
        assert_eq!(upstream.seen().bodies, [object_of(LARGE_BYTES)]);
    }
}

#[test]
fn what_waits_for_a_window_counts_against_the_memory_for_all_bodies() {
    for large in [Large::Streamed, Large::Chunked] {
        let upstream = upstream(|peer| {
            peer.opens_window = false;
            peer.hear_out();
        });
        let proxy = proxy::new()
            .upstream_with("main", &upstream, "idle_timeout: 1s")
            .setting("limits: {buffered: 1MiB}")
            .run();
        let _waiting: Vec<_> = (0..8).map(|_| large.send(&proxy)).collect();
        let records = proxy.access_log(8);
        let count = |error| records.iter().filter(|one| one["error"] == error).count();
        let (refused, late) = (count("buffer_full"), count("upstream_timeout"));
        assert!(refused > 0 && late > 0, "{large:?}: {records:?}");
        assert_eq!(refused + late, 8, "{large:?}: {records:?}");
        assert_eq!(proxy.metric("tiergate_buffered_bytes"), 0.0);
    }
}

// Requests beside each other.

#[test]
fn an_upstream_that_takes_one_stream_at_a_time_never_has_two_on_a_connection() {
    let most = Arc::new(AtomicUsize::new(0));
    let (seen_most, settings) = (most.clone(), [(MAX_CONCURRENT_STREAMS, 1)]);
    let upstream = upstream_with(&settings, move |peer| {
        // The settings of a new connection may cross further requests; those of the first are known by then.
        let is_known = peer.number == 0;
        let mut open = 0;
        while let Some(event) = peer.event() {
            match event {
                Event::Head(_) => open += 1,
                Event::Reset(_) => open -= 1,
                Event::End(stream) => {
                    if is_known {
                        seen_most.fetch_max(open, Ordering::SeqCst);
                    }
                    std::thread::sleep(MOMENT);
                    open -= 1;
                    peer.json(stream, 200, "{}");
                }
            }
        }
    });
    let proxy = behind(&upstream);
    assert_eq!(post(&proxy, "sk-fast", BODY).status, 200);
    let waiting: Vec<_> = (0..6).map(|_| in_background(&proxy, BODY)).collect();
    for client in waiting {
        assert_eq!(told(&client.join().unwrap()), (200, true, "{}"));
    }
    assert_eq!(outcomes(&proxy.stop()), ["ok"; 7]);
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

/// The first request of a connection stays under way, behind what `allow` sends; all others are answered at once.
fn assert_next_is_answered(settings: &[(u16, u32)], allow: fn(&mut Peer)) {
    let upstream = upstream_with(settings, move |peer| {
        let is_first = peer.number == 0;
        peer.serve(|peer, stream| {
            if !is_first {
                return peer.json(stream, 200, "{}");
            }
            allow(peer);
            peer.respond(stream, 200, &SSE);
            peer.data(stream, CREATED.as_bytes());
        });
    });
    let proxy = behind(&upstream);
    let first = begun(&proxy, BODY);
    let started = Instant::now();
    for _ in 0..3 {
        assert_eq!(told(&post(&proxy, "sk-fast", BODY)), (200, true, "{}"));
    }
    assert!(started.elapsed() < AT_ONCE);
    drop(first);
    let records = proxy.stop();
    assert_eq!(outcomes(&records), ["ok", "ok", "ok", "client_closed"]);
    assert_eq!(upstream.seen().heads, 4);
}

#[test]
fn a_request_waits_for_no_stream_that_its_connection_never_had() {
    assert_next_is_answered(&[(MAX_CONCURRENT_STREAMS, 1)], |_| {});
}

#[test]
fn a_request_waits_for_no_stream_that_its_connection_has_no_more() {
    assert_next_is_answered(&[], |peer| {
        let payload = [
            &MAX_CONCURRENT_STREAMS.to_be_bytes()[..],
            &1_u32.to_be_bytes(),
        ];
        peer.send(frames::SETTINGS, 0, 0, &payload.concat());
    });
}

#[test]
fn many_clients_that_leave_cut_nobody_else_off() {
    const LEAVING: usize = 60;
    let upstream = upstream(|peer| {
        let mut first = None;
        let mut left = 0;
        while let Some(event) = peer.event() {
            match event {
                Event::Head(_) => {}
                Event::End(stream) => {
                    first.get_or_insert(stream);
                    peer.respond(stream, 200, &SSE);
                    peer.data(stream, CREATED.as_bytes());
                }
                Event::Reset(stream) => {
                    left += 1;
                    // What was on its way when the client left.
                    peer.data(stream, CREATED.as_bytes());
                    peer.last_data(stream, COMPLETED.as_bytes());
                    if let Some(first) = first
                        && peer.number == 0
                        && left % 10 == 0
                    {
                        peer.data(first, CREATED.as_bytes());
                    }
                }
            }
        }
    });
    let proxy = behind(&upstream);
    let mut staying = begun(&proxy, BODY);
    assert_eq!(staying.chunk().as_deref(), Some(CREATED.as_bytes()));
    for at in 0..LEAVING {
        let mut leaving = begun(&proxy, BODY);
        assert_eq!(leaving.chunk().as_deref(), Some(CREATED.as_bytes()));
        drop(leaving);
        proxy.access_log(at + 1);
    }
    // It is still there, and has all that came so far.
    assert_eq!(staying.chunk().as_deref(), Some(CREATED.as_bytes()));
    let records = proxy.access_log(LEAVING);
    assert_eq!(outcomes(&records), vec!["client_closed"; LEAVING]);
    let mut next = begun(&proxy, BODY);
    assert_eq!(next.chunk().as_deref(), Some(CREATED.as_bytes()));
    assert_eq!(upstream.seen().resets.len(), LEAVING);
}

#[test]
fn slow_readers_hold_nobody_else_up() {
    const SLOW: usize = 4;
    let large = "x".repeat(12 << 20);
    let upstream = h2::upstream(h2::Reply::Json(large));
    let proxy = proxy::new().upstream(&upstream).run();
    let slow: Vec<_> = (0..SLOW).map(|_| begun(&proxy, BODY)).collect();
    // They read nothing more: what can wait for them does.
    eventually("the upstream has them all", || {
        (upstream.received().len() == SLOW).then_some(())
    });
    std::thread::sleep(10 * MOMENT);
    let mut other = begun(&proxy, BODY);
    let mut rest = [0; 1 << 16];
    let mut left = 1 << 20;
    let begun = Instant::now();
    while left > 0 {
        left -= other.read(&mut rest).min(left);
    }
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    drop(slow);
}

/// An upstream whose first connection is dead once it has taken a request: neither frames nor pings are answered.
fn dying() -> Upstream {
    upstream(|peer| match peer.number {
        0 => {
            peer.request();
            std::thread::sleep(4 * AT_ONCE);
        }
        _ => peer.serve(|peer, stream| peer.json(stream, 200, "{}")),
    })
}

#[test]
fn a_connection_on_which_a_response_is_overdue_takes_no_further_request() {
    let upstream = dying();
    let settings = "response_timeout: 500ms, idle_timeout: 500ms";
    let proxy = proxy::new()
        .upstream_with("main", &upstream, settings)
        .run();
    let statuses = [(); 3].map(|()| post(&proxy, "sk-fast", BODY).status);
    assert_eq!(statuses, [504, 200, 200]);
    assert_eq!(outcomes(&proxy.stop()), ["timeout", "ok", "ok"]);
}

/// Its window for the connection is shut for all.
#[test]
fn a_connection_on_which_a_body_waits_for_its_window_takes_no_further_request() {
    for large in LARGE {
        let upstream = upstream(|peer| match peer.number {
            0 => {
                peer.opens_window = false;
                peer.hear_out();
            }
            _ => peer.serve(|peer, stream| peer.json(stream, 200, "{}")),
        });
        let proxy = proxy::new().upstream(&upstream).run();
        let stalled = large.send(&proxy);
        eventually("the request", || {
            (proxy.status()["requests_in_flight"] == 1).then_some(())
        });
        std::thread::sleep(20 * MOMENT);
        let begun = Instant::now();
        assert_eq!(post(&proxy, "sk-plain", BODY).status, 200, "{large:?}");
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
        drop(stalled);
    }
}

#[test]
fn a_connection_that_answers_no_ping_ends_long_before_a_response_is_overdue() {
    let upstream = dying();
    let settings = "response_timeout: 5m, http2: {ping_interval: 1s}";
    let proxy = proxy::new()
        .upstream_with("main", &upstream, settings)
        .run();
    let begun = Instant::now();
    assert_eq!(post(&proxy, "sk-fast", BODY).status, 502);
    // Pingora waits 5 s for the answer to a ping.
    assert!(begun.elapsed() < 3 * AT_ONCE, "{:?}", begun.elapsed());
    assert_eq!(post(&proxy, "sk-fast", BODY).status, 200);
    assert_eq!(outcomes(&proxy.stop()), ["upstream_error", "ok"]);
}

// Ends of connections.

/// An upstream that answers one request on a connection, and closes in good order at the next, after a while.
fn closing_after(time: Duration, is_silent: bool) -> Upstream {
    upstream(move |peer| {
        let stream = peer.request().unwrap();
        peer.json(stream, 200, "{}");
        if peer.number > 0 {
            return peer.serve(|peer, stream| peer.json(stream, 200, "{}"));
        }
        peer.opens_window = !is_silent;
        peer.request();
        std::thread::sleep(time);
    })
}

#[test]
fn a_request_that_was_worked_on_is_not_sent_again_where_its_connection_then_closes() {
    // One that opens the window for it has read it, however soon it closes.
    for upstream in [
        closing_after(Duration::from_secs(2), true),
        closing_after(Duration::ZERO, false),
    ] {
        let proxy = behind(&upstream);
        assert_eq!(post(&proxy, "sk-fast", BODY).status, 200);
        let answer = post(&proxy, "sk-fast", BODY);
        assert_eq!(answer.status, 502);
        assert_eq!(answer.header("connection"), Some("close"));
        assert_eq!(upstream.seen().heads, 2);
        assert_eq!(outcomes(&proxy.stop()), ["ok", "upstream_error"]);
    }
}

#[test]
fn a_request_that_a_close_of_its_connection_crossed_is_sent_again() {
    let upstream = closing_after(Duration::ZERO, true);
    let proxy = behind(&upstream);
    for _ in 0..2 {
        assert_eq!(told(&post(&proxy, "sk-fast", BODY)), (200, true, "{}"));
    }
    assert_eq!(upstream.seen().heads, 3);
    assert_eq!(outcomes(&proxy.stop()), ["ok"; 2]);
}

/// Others use the connection, so it had not ended for being idle: the request may have been worked on (RFC 9113 §8.7).
#[test]
fn a_request_whose_shared_connection_is_cut_without_a_word_is_not_sent_again() {
    let upstream = upstream(|peer| {
        let first = peer.request().unwrap();
        peer.respond(first, 200, &SSE);
        peer.data(first, CREATED.as_bytes());
        peer.request();
    });
    let proxy = behind(&upstream);
    let mut first = begun(&proxy, BODY);
    assert_eq!(first.chunk().as_deref(), Some(CREATED.as_bytes()));
    assert_eq!(post(&proxy, "sk-fast", BODY).status, 502);
    let mut outcomes: Vec<String> = outcomes(&proxy.access_log(2))
        .into_iter()
        .map(ToString::to_string)
        .collect();
    outcomes.sort_unstable();
    assert_eq!(outcomes, ["\"upstream_cut\"", "\"upstream_error\""]);
    assert_eq!(upstream.seen().heads, 2);
}

// Heads.

#[test]
fn headers_of_the_upstreams_connection_do_not_reach_a_client() {
    const FIELDS: [(&str, &str); 9] = [
        ("connection", "close, x-secret"),
        ("x-secret", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-authenticate", "Basic"),
        ("proxy-connection", "keep-alive"),
        ("te", "trailers"),
        ("trailer", "x-checksum"),
        ("upgrade", "h2c"),
        ("x-request-id", "req_1"),
    ];
    // Those that the h2 crate refuses make the whole head malformed (RFC 9113 §8.2.2), so each is sent alone.
    for (name, value) in FIELDS {
        let upstream = upstream(move |peer| {
            peer.serve(|peer, stream| {
                peer.respond(stream, 200, &[(name, value)]);
                peer.last_data(stream, b"{}");
            });
        });
        let proxy = proxy::new().upstream(&upstream).tls().run();
        let key = [("authorization", "Bearer sk-plain")];
        let over_http2 = h2::post(proxy.tls_address, &key, PATH, BODY, Framing::Length);
        let connection_says = |answer: &Answer| {
            let found = answer
                .headers
                .iter()
                .find(|found| **found == (name.into(), value.into()));
            found.is_some()
        };
        let passes = name.starts_with("x-");
        for answer in [post(&proxy, "sk-plain", BODY), over_http2] {
            let is_refused = answer.status == 502 && !passes;
            assert!(answer.status == 200 || is_refused, "{name}: {answer:?}");
            assert_eq!(connection_says(&answer), passes, "{name}: {answer:?}");
        }
    }
}
