//! Clients of HTTP/2 that send what costs them little and might cost a server much. Whatever they send, the connection
//! ends by itself, memory stays where it was, and others are served. And one client that is only slow, which is served too.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::support::frames::{
    CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, frame, head,
};
use crate::support::proxy::{self, Proxy};
use crate::support::upstream::{self, Upstream};
use crate::support::{PATIENCE, eventually, frames};
use rustls::{ClientConnection, StreamOwned};

const PATH: &str = "/v1/responses";
/// How long a client floods, if it can.
const FLOOD: Duration = Duration::from_secs(3);
/// What a flood may take of memory: the buffers of one connection, and what the allocator keeps of many short requests.
const MOST_BYTES: u64 = 24 << 20;

/// Requests whose answers a client does not take, and what is held of each: some pieces on their way, and never all of it.
const UNTAKEN: u64 = 90;
const UNTAKEN_BYTES: u64 = 1 << 20;
const ANSWER_BYTES: usize = 3 << 20;

/// A client that says whatever it likes.
struct Flooder {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

impl Flooder {
    fn connect(proxy: &Proxy) -> Self {
        let socket = TcpStream::connect(proxy.tls_address).unwrap();
        // A proxy that takes no more is seen by a write that does not end.
        socket
            .set_write_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(15)))
            .unwrap();
        let stream = frames::begin(socket);
        let mut flooder = Self { stream };
        flooder.ask_in_good_order(proxy);
        flooder
    }

    /// What it says is understood: its frames are not ended for being malformed.
    fn ask_in_good_order(&mut self, proxy: &Proxy) {
        let before = proxy.log_lines().len();
        let request = frame(HEADERS, END_HEADERS, 1, &head("sk-fast", PATH));
        let body = frame(DATA, END_STREAM, 1, b"{}");
        self.stream.write_all(&[request, body].concat()).unwrap();
        let record = proxy.access_log(before + 1).remove(before);
        assert_eq!(record["status"], 200);
    }

    /// Sends these bytes, made anew for each round, until the proxy takes no more or the time is over.
    fn flood(&mut self, mut make: impl FnMut(u32) -> Vec<u8>) {
        let begun = Instant::now();
        let mut round = 0;
        while begun.elapsed() < FLOOD && self.stream.write_all(&make(round)).is_ok() {
            round += 1;
        }
    }

    /// Sends these bytes again and again and takes the answers, until the proxy ends the connection.
    fn flood_and_read(mut self, bytes: &[u8]) {
        let soon = Some(Duration::from_millis(2));
        self.stream.sock.set_read_timeout(soon).unwrap();
        let begun = Instant::now();
        let mut room = [0; 16384];
        while self.stream.write_all(bytes).is_ok() {
            match self.stream.read(&mut room) {
                Ok(0) => return,
                Ok(_) => {}
                Err(why) if why.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
            assert!(begun.elapsed() < PATIENCE, "the connection is open");
        }
    }

    /// Waits for the end of the connection, by whatever, and fails where it does not come.
    fn await_end(mut self) {
        let ended = self.stream.sock.read_to_end(&mut Vec::new());
        let open = ended.is_err_and(|why| why.kind() == ErrorKind::WouldBlock);
        assert!(!open, "the connection is open");
    }
}

fn stream_of(round: u32) -> u32 {
    2 * round + 3
}

fn flooded(upstream: &Upstream) -> (Proxy, u64) {
    let proxy = proxy::new()
        .upstream(upstream)
        .tls()
        .setting("limits: {keepalive_timeout: 1s, header_timeout: 2s, body_idle_timeout: 2s, write_timeout: 2s}")
        .run();
    assert_eq!(proxy.client("sk-fast").post(PATH, "{}").status, 200);
    let idle = proxy.memory("VmHWM:");
    (proxy, idle)
}

/// Everything of the flood is over, it took no more memory than `most`, and others are served.
fn assert_unimpressed(proxy: &Proxy, idle: u64, most: u64) {
    for gauge in ["tiergate_connections", "tiergate_requests_in_flight"] {
        eventually(gauge, || (proxy.metric(gauge) == 0.0).then_some(()));
    }
    let taken = proxy.memory("VmHWM:") - idle;
    assert!(taken < most, "{taken} bytes");
    assert_eq!(proxy.client("sk-fast").post(PATH, "{}").status, 200);
}

#[test]
fn requests_that_are_reset_as_soon_as_they_are_sent() {
    for key in ["sk-fast", "sk-plain", "sk-nobody"] {
        let upstream = upstream::json("{}").run();
        let (proxy, idle) = flooded(&upstream);
        let mut flooder = Flooder::connect(&proxy);
        let block = head(key, PATH);
        flooder.flood(|round| {
            let stream = stream_of(round);
            let request = frame(HEADERS, END_HEADERS, stream, &block);
            [request, frame(RST_STREAM, 0, stream, CANCEL)].concat()
        });
        flooder.await_end();
        assert_unimpressed(&proxy, idle, MOST_BYTES);
    }
}

#[test]
fn a_client_that_leaves_many_requests_at_once_keeps_the_others() {
    const LEFT: u32 = 60;
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).tls().run();
    let mut client = Flooder::connect(&proxy);
    let block = head("sk-fast", PATH);
    let begun = (0..=LEFT).map(|round| frame(HEADERS, END_HEADERS, stream_of(round), &block));
    let left = (0..LEFT).map(|round| frame(RST_STREAM, 0, stream_of(round), CANCEL));
    let kept = frame(DATA, END_STREAM, stream_of(LEFT), b"{}");
    let frames: Vec<_> = begun.chain(left).chain([kept]).collect();
    client.stream.write_all(&frames.concat()).unwrap();
    eventually("the answer to the request that was kept", || {
        let lines = proxy.log_lines();
        let answered = lines
            .iter()
            .filter(|line| line.contains("\"outcome\":\"ok\""));
        (answered.count() == 2).then_some(())
    });
}

#[test]
fn requests_that_are_reset_once_they_are_taken() {
    for key in ["sk-fast", "sk-plain", "sk-nobody"] {
        let upstream = upstream::json("{}").run();
        let (proxy, idle) = flooded(&upstream);
        let mut flooder = Flooder::connect(&proxy);
        let block = head(key, PATH);
        flooder.flood(|round| {
            std::thread::sleep(Duration::from_millis(2));
            let stream = stream_of(round);
            let reset = match round {
                ..32 => Vec::new(),
                _ => frame(RST_STREAM, 0, stream_of(round - 32), CANCEL),
            };
            [reset, frame(HEADERS, END_HEADERS, stream, &block)].concat()
        });
        flooder.await_end();
        assert_unimpressed(&proxy, idle, MOST_BYTES);
    }
}

#[test]
fn a_head_that_goes_on_in_frame_after_frame() {
    let upstream = upstream::json("{}").run();
    let (proxy, idle) = flooded(&upstream);
    for field in [&b"\x00\x01a\x01b"[..], b""] {
        let mut flooder = Flooder::connect(&proxy);
        flooder
            .stream
            .write_all(&frame(HEADERS, END_STREAM, 3, &head("sk-fast", PATH)))
            .unwrap();
        flooder.flood(|_| frame(CONTINUATION, 0, 3, &field.repeat(2000)));
        flooder.await_end();
    }
    assert_unimpressed(&proxy, idle, MOST_BYTES);
}

#[test]
fn frames_that_ask_for_an_answer_each() {
    let upstream = upstream::json("{}").run();
    let (proxy, idle) = flooded(&upstream);
    for asks in [
        frame(PING, 0, 0, &[7; 8]),
        frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]),
    ] {
        let mut flooder = Flooder::connect(&proxy);
        let many = asks.repeat(100);
        flooder.flood(|_| many.clone());
        flooder.await_end();
    }
    assert_unimpressed(&proxy, idle, MOST_BYTES);
}

#[test]
fn frames_that_bring_nothing_from_a_client_that_takes_their_answers() {
    let upstream = upstream::json("{}").run();
    let (proxy, idle) = flooded(&upstream);
    for frame in [
        frame(PING, 0, 0, &[7; 8]),
        frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]),
        frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
    ] {
        Flooder::connect(&proxy).flood_and_read(&frame.repeat(100));
    }
    assert_unimpressed(&proxy, idle, MOST_BYTES);
}

#[test]
fn answers_that_are_not_taken() {
    let upstream = upstream::json(&format!("\"{}\"", "x".repeat(ANSWER_BYTES))).run();
    let (proxy, idle) = flooded(&upstream);
    let mut flooder = Flooder::connect(&proxy);
    let block = head("sk-fast", PATH);
    // It grants no more than the first 64 KiB of all of them together.
    for round in 0..UNTAKEN as u32 {
        let request = frame(HEADERS, END_HEADERS, stream_of(round), &block);
        let body = frame(DATA, END_STREAM, stream_of(round), b"{}");
        let sent = flooder.stream.write_all(&[request, body].concat());
        sent.unwrap();
    }
    flooder.await_end();
    assert_unimpressed(&proxy, idle, UNTAKEN * UNTAKEN_BYTES);
}

#[test]
fn a_body_of_empty_pieces() {
    let upstream = upstream::json("{}").run();
    for key in ["sk-fast", "sk-plain"] {
        let (proxy, idle) = flooded(&upstream);
        let mut flooder = Flooder::connect(&proxy);
        flooder
            .stream
            .write_all(&frame(HEADERS, END_HEADERS, 3, &head(key, PATH)))
            .unwrap();
        let many = frame(DATA, 0, 3, b"").repeat(100);
        flooder.flood(|_| many.clone());
        flooder.await_end();
        assert_unimpressed(&proxy, idle, MOST_BYTES);
    }
}

#[test]
fn a_client_that_takes_a_little_now_and_then_gets_all_of_it() {
    let body = format!("\"{}\"", "x".repeat(8 * ANSWER_BYTES));
    let upstream = upstream::json(&body).run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {write_timeout: 500ms}")
        .run();
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    // Its kernel does not hide how slow it is.
    setsockopt(connection.socket(), sockopt::RcvBuf, &(128 << 10)).unwrap();
    connection.send(client.message(PATH, b"{}"));
    connection.head().unwrap();
    let (mut taken, mut room) = (0, vec![0; 100 << 10]);
    let slow = body.len() / 2..body.len() / 2 + (2 << 20);
    while taken < body.len() {
        // The kernel has learned by then to hold a lot for a client that was fast.
        if slow.contains(&taken) {
            std::thread::sleep(Duration::from_millis(100));
        }
        let count = connection.read(&mut room);
        assert!(count > 0, "cut after {taken} bytes");
        taken += count;
    }
    assert_eq!(proxy.record()["outcome"], "ok");
}
