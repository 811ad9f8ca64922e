//! Everything that a client may have the proxy hold, by many clients at once: its memory stays below the figure that
//! docs/operations.md states, and whoever comes afterwards is served.

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use rustls::{ClientConnection, StreamOwned};
use support::client::{Client, Connection};
use support::frames::{self, CONTINUATION, END_HEADERS, HEADERS, field, frame, head};
use support::proxy::{self, Proxy};
use support::upstream::{self, Reply, reply};
use support::{eventually, tls};

const PATH: &str = "/v1/responses";
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const POLICY: &str = "\
version: 1
groups:
  fast: {platform: openai, force_fast_mode: true, upstream: silent}
  socket: {platform: openai, force_fast_mode: true, upstream: sockets}
  large: {platform: openai, upstream: large}
keys: {sk-fast: fast, sk-socket: socket, sk-large: large}
";

/// How many of each there are.
const HEADS: u64 = 300;
const IDLE: u64 = 200;
const IDLE_TLS: u64 = 100;
const SOCKETS: u64 = 100;
const BODIES: u64 = 12;
const BOMBS: u64 = 40;
const UNTAKEN: u64 = 150;
const H2_CONNECTIONS: u64 = 4;
const H2_STREAMS: u64 = 50;
const CONNECTIONS: u64 =
    HEADS + IDLE + IDLE_TLS + SOCKETS + BODIES + BOMBS + UNTAKEN + H2_CONNECTIONS;
const REQUESTS: u64 = SOCKETS + BODIES + BOMBS + UNTAKEN + H2_CONNECTIONS * H2_STREAMS;
const BUFFERED: u64 = 64 * MIB;
const BODY: u64 = 8 * MIB;
const HEADER: u64 = 64 * KIB;

const DECODED_BODY: u64 = 32 * MIB;
const THREADS: u64 = 2;

/// docs/operations.md, "Memory".
const PROCESS_BYTES: u64 = 64 * MIB;
const CONNECTION_BYTES: u64 = 100 * KIB;
const REQUEST_BYTES: u64 = MIB;
const WINDOW_BYTES: u64 = 16 * MIB;
const FIGURE: u64 = PROCESS_BYTES
    + BUFFERED
    + THREADS * (DECODED_BODY + WINDOW_BYTES)
    + CONNECTIONS * (CONNECTION_BYTES + 2 * HEADER)
    + REQUESTS * REQUEST_BYTES;

/// Whatever is held open.
#[derive(Default)]
struct Besiegers {
    connections: Vec<Connection>,
    streams: Vec<StreamOwned<ClientConnection, TcpStream>>,
}

impl Besiegers {
    fn send(&mut self, client: &Client, bytes: &[u8]) {
        let mut connection = client.connect();
        connection.send(bytes);
        self.connections.push(connection);
    }

    /// Heads as long as they are read, and no end.
    fn heads(&mut self, proxy: &Proxy) {
        let client = proxy.anonymous();
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nX: {}",
            "x".repeat(2 * HEADER as usize - 100)
        );
        (0..HEADS).for_each(|_| self.send(&client, head.as_bytes()));
    }

    fn idle(&mut self, proxy: &Proxy) {
        (0..IDLE).for_each(|_| self.send(&proxy.anonymous(), b""));
    }

    fn idle_with_tls(&mut self, proxy: &Proxy) {
        for _ in 0..IDLE_TLS {
            let mut stream =
                tls::client(TcpStream::connect(proxy.tls_address).unwrap(), b"http/1.1");
            stream.flush().unwrap();
            self.streams.push(stream);
        }
    }

    fn sockets(&mut self, proxy: &Proxy) {
        let client = proxy.client("sk-socket").upgrade();
        for _ in 0..SOCKETS {
            self.send(&client, &client.head("GET", PATH));
            let last = self.connections.last_mut().unwrap();
            assert_eq!(last.head().unwrap().status, 101);
        }
    }

    /// Of forced requests, all but their ends; some of them are more than may be held.
    fn bodies(&mut self, proxy: &Proxy) {
        let client = proxy.client("sk-fast");
        let body = [b"{\"input\":\"", &b"x".repeat(BODY as usize - 100)[..]].concat();
        let message = [client.head_of(PATH, BODY as usize), body].concat();
        (0..BODIES).for_each(|_| self.send(&client, &message));
    }

    /// The same of bodies that are small as they are sent.
    fn bombs(&mut self, proxy: &Proxy) {
        let plain = [b"{\"input\":\"", &b"x".repeat(3 * MIB as usize)[..]].concat();
        let zstd = zstd::encode_all(&plain[..], 3).unwrap();
        let mut br = Vec::new();
        brotli::BrotliCompress(
            &mut &plain[..],
            &mut br,
            &brotli::enc::BrotliEncoderParams {
                quality: 2,
                lgwin: 24,
                ..Default::default()
            },
        )
        .unwrap();
        for (coding, coded) in [("zstd", zstd), ("br", br)] {
            let client = proxy.client("sk-fast").header("Content-Encoding", coding);
            let message = [client.head_of(PATH, coded.len() + 1), coded].concat();
            (0..BOMBS / 2).for_each(|_| self.send(&client, &message));
        }
    }

    /// Requests whose answers are never read.
    fn untaken(&mut self, proxy: &Proxy) {
        let client = proxy.client("sk-large");
        let message = client.message(PATH, b"{}");
        (0..UNTAKEN).for_each(|_| self.send(&client, &message));
    }

    /// Requests over HTTP/2 with large heads, and bodies that do not come.
    fn http2(&mut self, proxy: &Proxy) {
        let filler = field("x", &"x".repeat(15_000));
        for _ in 0..H2_CONNECTIONS {
            let mut stream = frames::begin(TcpStream::connect(proxy.tls_address).unwrap());
            for number in (1..).step_by(2).take(H2_STREAMS as usize) {
                let begin = frame(HEADERS, 0, number, &head("sk-fast", PATH));
                let more = frame(CONTINUATION, 0, number, &filler).repeat(3);
                let end = frame(CONTINUATION, END_HEADERS, number, &field("y", "y"));
                stream.write_all(&[begin, more, end].concat()).unwrap();
            }
            self.streams.push(stream);
        }
    }
}

#[test]
fn memory_under_siege_stays_below_the_figure_that_is_stated() {
    let silent = upstream::script([upstream::silence().then_all(reply(200).json("{}"))]).run();
    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n";
    let sockets = Reply::default().before_body().send(switch).hold();
    let sockets = upstream::script([sockets]).run();
    let large = upstream::script([reply(200).json(&"x".repeat(16 * MIB as usize))]).run();
    let proxy = proxy::new()
        .upstream_with("silent", &silent, "")
        .upstream_with("sockets", &sockets, "")
        .upstream_with("large", &large, "")
        .policy(POLICY)
        .tls()
        .setting(&format!("server: {{threads: {THREADS}}}"))
        .setting(&format!(
            "limits: {{buffered: {BUFFERED}, body: {BODY}, decoded_body: {DECODED_BODY}, header: {HEADER}, \
             header_timeout: 10m, body_idle_timeout: 10m, keepalive_timeout: 10m, write_timeout: 10m}}"
        ))
        .run();
    let idle = proxy.memory("VmRSS:");
    let mut besiegers = Besiegers::default();
    besiegers.heads(&proxy);
    besiegers.idle(&proxy);
    besiegers.idle_with_tls(&proxy);
    besiegers.sockets(&proxy);
    besiegers.untaken(&proxy);
    besiegers.http2(&proxy);
    besiegers.bodies(&proxy);
    besiegers.bombs(&proxy);
    // Those whose bodies are more than may be held are refused; all others are here, and memory has come to rest.
    let refused = BODIES + BOMBS;
    eventually("all connections", || {
        let open = proxy.metric("tiergate_connections") as u64;
        (open >= CONNECTIONS - refused).then_some(())
    });
    eventually("all requests", || {
        let running = proxy.metric("tiergate_requests_in_flight") as u64;
        (running >= REQUESTS - refused).then_some(())
    });
    assert!(proxy.metric("tiergate_buffered_bytes") as u64 > BUFFERED / 2);
    let mut last = 0;
    eventually("memory at rest", || {
        std::thread::sleep(Duration::from_millis(500));
        let before = std::mem::replace(&mut last, proxy.memory("VmRSS:"));
        (last <= before + MIB).then_some(())
    });
    let peak = proxy.memory("VmHWM:");
    println!(
        "{} MiB at most, {} MiB idle, the figure is {} MiB",
        peak / MIB,
        idle / MIB,
        FIGURE / MIB
    );
    assert!(peak < FIGURE, "{peak} of {FIGURE} bytes");
    drop(besiegers);
    for gauge in [
        "tiergate_connections",
        "tiergate_requests_in_flight",
        "tiergate_buffered_bytes",
    ] {
        eventually(gauge, || (proxy.metric(gauge) == 0.0).then_some(()));
    }
    silent.release();
    assert_eq!(proxy.client("sk-fast").post(PATH, "{}").status, 200);
}
