//! Whose request it is behind proxies: by the PROXY protocol's header before a connection, and by `x-forwarded-for` in a
//! request. Here the client is always on loopback, so any other address in the log was told.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::client::Connection;
use crate::support::proxy::{self, Proxy};
use crate::support::upstream::{self, Reply, Upstream, reply};
use crate::support::{PATIENCE, eventually, h2, tls};
use serde_json::{Value, json};

const PATH: &str = "/v1/responses";
const LINE: &[u8] = b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n";
const OWN: &str = "127.0.0.1";
const TOLD: &str = "192.0.2.7";

/// Version 2, of a TCP connection over IPv6 from 2001:db8::7.
fn binary() -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24".to_vec();
    header.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    header.extend([0; 16]);
    header.extend([1, 0, 1, 187]);
    header
}

fn behind_proxy(upstream: &Upstream) -> Proxy {
    proxy::new().upstream(upstream).proxy_protocol().tls().run()
}

fn connect(address: std::net::SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Fails if anything comes; returns when the proxy has closed.
fn assert_closed(mut socket: &TcpStream) {
    let mut rest = Vec::new();
    match socket.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(why) => assert_eq!(why.kind(), std::io::ErrorKind::ConnectionReset),
    }
    assert_eq!(rest, b"");
}

fn clients(proxy: &Proxy, count: usize) -> Vec<Value> {
    let records = proxy.access_log(count).into_iter();
    records.map(|record| record["client"].clone()).collect()
}

#[test]
fn the_log_names_the_client_that_the_header_before_the_connection_names() {
    let upstream = upstream::json("{}").run();
    let proxy = behind_proxy(&upstream);
    let client = proxy.client("sk-fast");
    for (at, (header, told)) in [
        (LINE.to_vec(), TOLD),
        (binary(), "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n".to_vec(), OWN),
        (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec(), OWN),
    ]
    .into_iter()
    .enumerate()
    {
        // In one segment with what follows, and byte by byte.
        for round in [2 * at, 2 * at + 1] {
            let mut connection = client.connect();
            if round % 2 == 0 {
                connection.send([&header[..], &client.message(PATH, b"{}")].concat());
            } else {
                header.chunks(1).for_each(|byte| connection.send(byte));
                connection.send(client.message(PATH, b"{}"));
            }
            assert_eq!(connection.answer().status, 200);
            // The connection is the same client's for all its requests.
            connection.send(client.message(PATH, b"{}"));
            assert_eq!(connection.answer().status, 200);
            let told = json!(told);
            assert_eq!(
                clients(&proxy, 2 * round + 2)[2 * round..],
                [told.clone(), told]
            );
        }
    }
    assert!(upstream.requests(16)[15].text().contains("priority"));
}

#[test]
fn the_header_stands_before_tls_and_before_http_2() {
    let upstream = upstream::json("{}").run();
    let proxy = behind_proxy(&upstream);
    let mut socket = connect(proxy.tls_address);
    socket.write_all(LINE).unwrap();
    let mut stream = tls::client(socket, b"http/1.1");
    let client = proxy.client("sk-fast").header("Connection", "close");
    stream.write_all(&client.message(PATH, b"{}")).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let headers = [("authorization", "Bearer sk-fast")];
    let answer = h2::post_behind(&binary(), proxy.tls_address, &headers, PATH, b"{}");
    assert_eq!(answer.status, 200);
    assert_eq!(clients(&proxy, 2), [json!(TOLD), json!("2001:db8::7")]);
}

#[test]
fn a_websocket_behind_the_header_is_the_clients_too() {
    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n";
    let upstream = upstream::script([Reply::default().before_body().send(switch).close()]).run();
    let proxy = behind_proxy(&upstream);
    let upgrade = proxy.client("sk-fast").upgrade();
    let mut connection = upgrade.connect();
    connection.send([LINE, &upgrade.head("GET", PATH)].concat());
    assert_eq!(connection.head().unwrap().status, 101);
    drop(connection);
    let record = proxy.record();
    assert_eq!(
        (&record["client"], &record["transport"]),
        (&json!(TOLD), &json!("websocket"))
    );
}

#[test]
fn a_connection_without_the_header_is_closed_without_a_word() {
    let upstream = upstream::json("{}").run();
    let proxy = behind_proxy(&upstream);
    let message = proxy.client("sk-fast").message(PATH, b"{}");
    for bytes in [
        message.clone(),
        [b"PROXY TCP4 1.2.3.4 nonsense 1 2\r\n", &message[..]].concat(),
        [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", &message[..]].concat(),
    ] {
        let mut socket = connect(proxy.address);
        socket.write_all(&bytes).unwrap();
        assert_closed(&socket);
    }
    eventually("no connection", || {
        (proxy.metric("tiergate_connections") == 0.0).then_some(())
    });
    upstream.assert_untouched();
    assert!(proxy.log_lines().is_empty());
    proxy.await_stderr("a connection is closed that does not begin with the header of the PROXY");
}

#[test]
fn a_header_before_the_connection_that_does_not_end_is_not_waited_for() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream_with("main", &upstream, "forwarded_headers: pass")
        .proxy_protocol()
        .setting("limits: {header_timeout: 300ms}")
        .run();
    for bytes in [&b""[..], b"PROXY TCP4 192.0.2.7", &binary()[..40]] {
        let begun = Instant::now();
        let mut socket = connect(proxy.address);
        socket.write_all(bytes).unwrap();
        assert_closed(&socket);
        assert!(begun.elapsed() < Duration::from_secs(4));
    }
}

#[test]
fn without_the_setting_the_header_is_no_http() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream_with("main", &upstream, "forwarded_headers: pass")
        .run();
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send([LINE, &client.message(PATH, b"{}")].concat());
    assert!(
        connection
            .try_answer()
            .is_none_or(|answer| answer.status == 400)
    );
    upstream.assert_untouched();
}

/// Asks once with this header and gives the client that the log names.
fn logged(proxy: &Proxy, number: usize, forwarded: &str) -> Value {
    let client = proxy.client("sk-fast").header("X-Forwarded-For", forwarded);
    assert_eq!(client.post(PATH, "{}").status, 200);
    clients(proxy, number).remove(number - 1)
}

#[test]
fn what_a_proxy_that_is_not_trusted_says_of_the_client_is_passed_on_and_not_believed() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream_with("main", &upstream, "forwarded_headers: pass")
        .setting("trusted_proxies: [10.0.0.0/8]")
        .run();
    assert_eq!(logged(&proxy, 1, "203.0.113.9"), OWN);
    let request = upstream.request();
    assert_eq!(request.header("x-forwarded-for"), ["203.0.113.9"]);
}

#[test]
fn the_client_behind_trusted_proxies_is_the_right_most_that_is_not_one() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream_with("main", &upstream, "forwarded_headers: pass")
        .setting("trusted_proxies: [127.0.0.1, \"10.0.0.0/8\"]")
        .run();
    let forged = "198.51.100.1, 203.0.113.9, 10.1.1.1";
    assert_eq!(logged(&proxy, 1, forged), "203.0.113.9");
    assert_eq!(upstream.request().header("x-forwarded-for"), [forged]);
    assert_eq!(logged(&proxy, 2, "what is this?"), OWN);
}

#[test]
fn the_client_of_a_header_before_the_connection_may_be_a_trusted_proxy_itself() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .proxy_protocol()
        .setting("trusted_proxies: [192.0.2.0/24]")
        .run();
    let client = proxy
        .client("sk-fast")
        .header("X-Forwarded-For", "203.0.113.9");
    let mut connection = client.connect();
    connection.send([LINE, &client.message(PATH, b"{}")].concat());
    assert_eq!(connection.answer().status, 200);
    assert_eq!(proxy.record()["client"], "203.0.113.9");
}

/// A connection that the proxy keeps: it has answered a request on it.
fn kept(proxy: &Proxy, header: &[u8]) -> Option<Connection> {
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send([header, &client.message(PATH, b"{}")].concat());
    (connection.try_answer()?.status == 200).then_some(connection)
}

#[test]
fn a_client_has_no_more_connections_than_it_may() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .proxy_protocol()
        .setting("limits: {connections_per_client: 2}")
        .run();
    let held = [kept(&proxy, LINE), kept(&proxy, LINE)];
    assert!(held.iter().all(Option::is_some));
    assert!(kept(&proxy, LINE).is_none());
    assert_eq!(proxy.metric("tiergate_connections_refused_total"), 1.0);
    // Others are not concerned.
    assert!(kept(&proxy, b"PROXY TCP4 192.0.2.8 10.0.0.1 1 2\r\n").is_some());
    drop(held);
    eventually("a place for one more connection", || kept(&proxy, LINE));
}

#[test]
fn all_addresses_of_an_ipv6_network_are_one_client() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .proxy_protocol()
        .setting("limits: {connections_per_client: 1}")
        .run();
    let of = |address: &str| format!("PROXY TCP6 {address} ::1 1 2\r\n").into_bytes();
    let held = kept(&proxy, &of("2001:db8:1:1::1"));
    assert!(held.is_some());
    assert!(kept(&proxy, &of("2001:db8:1:1:ffff::2")).is_none());
    assert!(kept(&proxy, &of("2001:db8:1:2::1")).is_some());
}

#[test]
fn a_trusted_proxy_may_have_any_number_of_connections() {
    let upstream = upstream::script([reply(200).json("{}")]).run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {connections_per_client: 1}\ntrusted_proxies: [127.0.0.0/8]")
        .run();
    let held = [kept(&proxy, b""), kept(&proxy, b""), kept(&proxy, b"")];
    assert!(held.iter().all(Option::is_some));
}
