//! Connections to upstreams: how long and how many are kept, how many requests share one.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use rustls::{ServerConnection, StreamOwned};

use crate::support::client::Connection;
use crate::support::h2::{self, Reply};
use crate::support::upstream::{self, reply};
use crate::support::{PATIENCE, proxy, tls};

const PATH: &str = "/v1/responses";

#[test]
fn a_kept_connection_is_closed_after_its_keepalive_timeout() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream_with("main", &upstream, "keepalive_timeout: 200ms")
        .run();
    let client = proxy.client("sk-fast");
    for number in 1..3 {
        assert_eq!(client.post(PATH, "{}").status, 200);
        upstream.await_ended(number);
    }
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn no_more_connections_are_kept_than_the_limit() {
    for (limit, ended) in [(1, 3), (100, 0)] {
        let held = upstream::silence().then_all(reply(200).json("{}"));
        let upstream = upstream::script([held]).run();
        let proxy = proxy::new()
            .upstream(&upstream)
            .setting(&format!("limits: {{idle_upstream_connections: {limit}}}"))
            .setting("server: {threads: 1}")
            .run();
        let client = proxy.client("sk-fast");
        let mut open: Vec<Connection> = (0..4).map(|_| client.connect()).collect();
        for connection in &mut open {
            connection.send(client.message(PATH, b"{}"));
        }
        upstream.await_heads(4);
        upstream.release();
        for connection in &mut open {
            assert_eq!(connection.answer().status, 200);
        }
        proxy.access_log(4);
        if ended > 0 {
            upstream.await_ended(ended);
        } else {
            // All four are there for the next four.
            upstream.hold_again();
            for connection in &mut open {
                connection.send(client.message(PATH, b"{}"));
            }
            upstream.await_heads(8);
            upstream.release();
            assert_eq!(upstream.connections(), 4);
        }
    }
}

/// The connections that so many requests at once take.
fn connections_for(requests: usize, settings: &str) -> usize {
    let pause = Duration::from_secs(5);
    let reply = Reply::Paused("data: 1\n\n".to_owned(), pause, "data: 2\n\n".to_owned());
    let upstream = h2::upstream(reply);
    let proxy = proxy::new()
        .upstream_with("main", &upstream, settings)
        .run();
    let client = proxy.client("sk-fast");
    let mut open: Vec<Connection> = (0..requests).map(|_| client.connect()).collect();
    for connection in &mut open {
        connection.send(client.message(PATH, b"{}"));
        assert_eq!(connection.head().unwrap().status, 200);
    }
    let received = upstream.received();
    assert_eq!(received.len(), requests);
    let mut numbers: Vec<usize> = received.iter().map(|request| request.connection).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.len()
}

#[test]
fn so_many_requests_share_a_connection_of_http2() {
    assert_eq!(connections_for(3, ""), 1);
    assert_eq!(connections_for(3, "http2: {max_streams: 1}"), 3);
}

/// Agrees to HTTP/2 and never says a word in it.
fn frozen() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let config = tls::server_config(&[b"h2"]);
                let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), socket);
                // An empty SETTINGS frame: what both sides begin with (RFC 9113 section 3.4).
                stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
                let mut bytes = [0; 4096];
                while stream.read(&mut bytes).is_ok_and(|count| count > 0) {}
            });
        }
    });
    address
}

#[test]
fn a_connection_of_http2_that_answers_no_ping_is_given_up() {
    let upstream = format!("https://localhost:{}", frozen().port());
    let proxy = proxy::new()
        .upstream_at("main", &[upstream], "http2: {ping_interval: 100ms}")
        .run();
    let begun = std::time::Instant::now();
    let answer = proxy.client("sk-fast").post(PATH, "{}");
    assert_eq!(
        (answer.status, answer.openai_code().as_str()),
        (502, "upstream_reset")
    );
    // Pingora waits 5 s for the answer to a ping; without one, `response_timeout` would be 10 minutes.
    assert!(begun.elapsed() < PATIENCE);
}
