//! Upgrades that are none: what follows such a request is another request, and is judged as one.

use super::wire::{self, Answer, Upstream};
use crate::support::proxy::{self, Proxy};

const LIMITS: &str = "limits: {body_idle_timeout: 700ms, keepalive_timeout: 1s}";

/// A request with these header lines, and a whole one of the forced group behind it.
fn ask(proxy: &Proxy, method: &str, path: &str, headers: &str) -> Vec<u16> {
    let message = format!(
        "{method} {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer sk-fast\r\n{headers}\r\n\
         POST /hidden/responses HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer sk-fast\r\n\
         Content-Length: 2\r\n\r\n{{}}"
    );
    let mut connection = proxy.anonymous().connect();
    connection.send(message);
    let mut statuses = Vec::new();
    while let Some(answer) = connection.try_answer() {
        statuses.push(answer.status);
    }
    statuses
}

fn start(answer: Answer) -> (Upstream, Proxy) {
    let upstream = wire::upstream_with(answer);
    let proxy = proxy::new()
        .upstream(&upstream.address)
        .setting(LIMITS)
        .run();
    (upstream, proxy)
}

const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[test]
fn an_upgrade_that_the_upstream_does_not_agree_to_opens_nothing() {
    let (upstream, proxy) = start(wire::plain_answer);
    for path in ["/a/responses", "/a/realtime"] {
        let statuses = ask(&proxy, "GET", path, WEBSOCKET);
        assert!(
            [&[200, 200][..], &[200]].contains(&&statuses[..]),
            "{statuses:?}"
        );
    }
    let lines = proxy.stop();
    wire::assert_books_agree(&upstream.requests(), &lines);
}

#[test]
fn an_upgrade_to_something_else_is_not_passed_on() {
    let (upstream, proxy) = start(wire::plain_answer);
    let others = [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
        "Upgrade: websocket\r\n",
    ];
    for headers in others {
        for method in ["GET", "OPTIONS"] {
            ask(&proxy, method, "/a/other", headers);
        }
    }
    let lines = proxy.stop();
    let received = upstream.requests();
    wire::assert_books_agree(&received, &lines);
    assert!(
        received
            .iter()
            .filter(|request| request.path() == "/a/other")
            .count()
            >= 5
    );
    for request in received {
        assert_eq!(request.values("http2-settings"), [""; 0]);
        let upgrade = request.values("upgrade");
        assert!(
            upgrade.iter().all(|other| *other == "websocket"),
            "{upgrade:?}"
        );
        assert!(upgrade.len() <= 1);
    }
}

#[test]
fn an_upgrade_with_a_body_is_refused() {
    let (upstream, proxy) = start(wire::plain_answer);
    for framing in ["Content-Length: 30\r\n", "Transfer-Encoding: chunked\r\n"] {
        for path in ["/a/responses", "/a/realtime"] {
            let statuses = ask(&proxy, "GET", path, &format!("{WEBSOCKET}{framing}"));
            assert_eq!(statuses, [400], "{framing}");
        }
    }
    proxy.stop();
    assert!(upstream.requests().is_empty());
}

#[test]
fn an_upgrade_that_nobody_asked_for_opens_nothing() {
    let (upstream, proxy) = start(|_| {
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            .to_vec()
    });
    for (method, path) in [
        ("GET", "/a/other"),
        ("GET", "/a/responses"),
        ("DELETE", "/a/responses"),
    ] {
        let statuses = ask(&proxy, method, path, "");
        assert_eq!(statuses, [502], "{method} {path}");
    }
    proxy.stop();
    // What followed came to the upstream as requests, if at all: other bytes would be a fault there.
    for request in upstream.requests() {
        let body = String::from_utf8_lossy(&request.body);
        assert!(
            request.method != "POST" || body.contains("priority"),
            "{request:?}"
        );
    }
}

#[test]
fn an_upgrade_over_http_1_0_opens_nothing() {
    let (upstream, proxy) = start(|_| {
        b"HTTP/1.0 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            .to_vec()
    });
    for path in ["/a/other", "/a/responses"] {
        assert_eq!(ask(&proxy, "GET", path, WEBSOCKET), [502], "{path}");
    }
    for line in proxy.stop() {
        assert_eq!(line["error"], "upstream_reset");
    }
    assert_eq!(upstream.requests().len(), 2);
}
