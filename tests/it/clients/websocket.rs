//! Sessions over a WebSocket: the handshake and every message as the upstream gets them, and a record of every turn.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{FIXTURE_KEY, fixtures, split_tiers};
use crate::support::PATIENCE;
use crate::support::proxy;
use crate::support::websocket::frame;

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
/// What the upstream says to every message.
const COMPLETED: &str = r#"{"type":"response.completed","response":{"id":"resp_1"}}"#;

/// A captured session.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Session {
    client: String,
    path: String,
    headers: Vec<(String, String)>,
    /// Of the client, without their frames and in the clear.
    messages: Vec<String>,
}

/// What the upstream got of one session.
struct Received {
    head: String,
    messages: Vec<String>,
}

impl Session {
    fn all() -> Vec<Session> {
        let found = fixtures("clients_websocket").into_iter();
        found.map(|(_, session)| session).collect()
    }

    fn handshake(&self, key: &str) -> String {
        let headers = self.headers.iter();
        let lines: String = headers
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let handshake = format!("GET {} HTTP/1.1\r\n{lines}\r\n", self.path);
        handshake.replace(FIXTURE_KEY, key)
    }

    /// Plays the client: sends each message when the one before is answered. The head of the proxy's answer comes back.
    fn play(&self, proxy: SocketAddr, key: &str) -> String {
        let mut socket = connect(proxy);
        socket.write_all(self.handshake(key).as_bytes()).unwrap();
        let head = read_head(&mut socket);
        for message in &self.messages {
            write_frame(&mut socket, TEXT, Some([7, 1, 200, 99]), message.as_bytes());
            let answer = read_frame(&mut socket).expect("an answer");
            assert_eq!(answer, (TEXT, COMPLETED.to_owned().into_bytes()));
        }
        write_frame(
            &mut socket,
            CLOSE,
            Some([1, 2, 3, 4]),
            &1000_u16.to_be_bytes(),
        );
        head
    }

    /// Sends the session through a proxy of its own, and gives what came of it: the upstream's side, and the records.
    fn replay(&self, key: &str) -> (Received, Vec<Value>) {
        let (address, upstream) = serve_one();
        let proxy = proxy::new().upstream(&address).run();
        let head = self.play(proxy.address, key);
        assert!(head.starts_with("HTTP/1.1 101 "), "{}: {head}", self.client);
        // Declined, or the proxy could not read what follows.
        let head = head.to_ascii_lowercase();
        assert!(!head.contains("sec-websocket-extensions"), "{head}");
        assert!(
            head.contains("\r\nx-codex-turn-state: state-1\r\n"),
            "{head}"
        );
        let records = proxy.access_log(self.messages.len() + 1);
        (upstream.join().unwrap(), records)
    }

    /// Whether the upstream got the client's handshake, but for the headers that the proxy has a reason to change.
    fn assert_handshake(&self, received: &Received, key: &str, hint: Option<&str>) {
        let is_open = |name: &str| {
            let open = [
                "host",
                "connection",
                "upgrade",
                "sec-websocket-extensions",
                "accept-encoding",
            ];
            open.contains(&name.to_ascii_lowercase().as_str())
        };
        let as_sent = |(name, value): &(String, String)| match name.as_str() {
            "x-codex-routing-hint" => (name.clone(), hint.unwrap_or(value).to_owned()),
            _ => (name.clone(), value.replace(FIXTURE_KEY, key)),
        };
        let mut expected: Vec<_> = self.headers.iter().map(as_sent).collect();
        let lines = received.head.trim_end().lines().skip(1);
        let mut got: Vec<_> = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        for headers in [&mut expected, &mut got] {
            headers.retain(|(name, _)| !is_open(name));
            headers.sort();
        }
        assert_eq!(got, expected, "{}", self.client);
        let offer = received.head.to_ascii_lowercase();
        assert!(!offer.contains("sec-websocket-extensions"), "{offer}");
    }

    /// What the log is to say of each message, in order.
    fn assert_records(&self, records: &[Value], key: &str, forced: bool) {
        for (turn, message) in (1..).zip(&self.messages) {
            // A lone surrogate, as Node writes it, is no text to serde_json.
            let asked: Value = serde_json::from_str(&message.replace("\\ud800", "?")).unwrap();
            let client = &asked["service_tier"];
            let reason = match (forced, client.is_string()) {
                (true, _) => "group_force",
                (false, true) => "client",
                (false, false) => "none",
            };
            let tier = match forced {
                true => json!("priority"),
                false => client.clone(),
            };
            let expected = json!({
                "turn": turn,
                "key": key,
                "transport": "websocket",
                "endpoint": "responses",
                "model": asked["model"],
                "service_tier": tier,
                "service_tier_client": client,
                "tier_reason": reason,
                "terminal_event": "response.completed",
                "outcome": "ok",
            });
            let found = records.iter().find(|record| record["turn"] == turn);
            let found = found.unwrap_or_else(|| panic!("{}: no turn {turn}", self.client));
            for (name, value) in expected.as_object().unwrap() {
                assert_eq!(&found[name], value, "{}: {name}", self.client);
            }
        }
    }
}

/// An upstream for one session.
fn serve_one() -> (SocketAddr, JoinHandle<Received>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = read_head(&mut socket);
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: x\r\nx-codex-turn-state: state-1\r\n\r\n";
        socket.write_all(answer.as_bytes()).unwrap();
        let mut messages = Vec::new();
        while let Some((TEXT, message)) = read_frame(&mut socket) {
            messages.push(String::from_utf8(message).unwrap());
            write_frame(&mut socket, TEXT, None, COMPLETED.as_bytes());
        }
        Received { head, messages }
    };
    (address, thread::spawn(serve))
}

fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Reads up to the empty line, and no byte of what follows it.
fn read_head(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// One unfragmented frame: its opcode and payload. None at the end of the connection.
fn read_frame(socket: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut first = [0; 2];
    socket.read_exact(&mut first).ok()?;
    assert_eq!(first[0] & 0xf0, 0x80, "whole, and without an extension");
    let length_bytes = match first[1] & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mut length = [0; 8];
    socket.read_exact(&mut length[8 - length_bytes..]).unwrap();
    let length = match length_bytes {
        0 => usize::from(first[1] & 0x7f),
        _ => usize::try_from(u64::from_be_bytes(length)).unwrap(),
    };
    let mut mask = [0; 4];
    if first[1] & 0x80 != 0 {
        socket.read_exact(&mut mask).unwrap();
    }
    let mut payload = vec![0; length];
    socket.read_exact(&mut payload).unwrap();
    apply(mask, &mut payload);
    Some((first[0] & 0x0f, payload))
}

fn write_frame(socket: &mut TcpStream, opcode: u8, mask: Option<[u8; 4]>, payload: &[u8]) {
    socket
        .write_all(&frame(0x80 | opcode, payload, mask))
        .unwrap();
}

fn apply(mask: [u8; 4], payload: &mut [u8]) {
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

#[test]
fn each_message_of_a_forced_group_is_sent_on_with_the_tier_and_nothing_else_changed() {
    for session in Session::all() {
        let (received, records) = session.replay("sk-fast");
        let hint = Some("model=gpt-5.5;tier=priority");
        session.assert_handshake(&received, "sk-fast", hint);
        assert_eq!(received.messages.len(), session.messages.len());
        for (got, sent) in received.messages.iter().zip(&session.messages) {
            let (tiers, others) = split_tiers(got.as_bytes());
            assert_eq!(tiers, [br#""service_tier":"priority""#], "{got}");
            assert_eq!(others, split_tiers(sent.as_bytes()).1);
        }
        session.assert_records(&records, "fiona", true);
    }
}

#[test]
fn each_message_of_another_group_is_sent_on_as_it_came() {
    for session in Session::all() {
        let (received, records) = session.replay("sk-plain");
        session.assert_handshake(&received, "sk-plain", None);
        assert_eq!(received.messages, session.messages, "{}", session.client);
        session.assert_records(&records, "paula", false);
    }
}

#[test]
fn there_are_sessions_of_every_client_that_has_them() {
    let mut clients: Vec<_> = Session::all().into_iter().map(|one| one.client).collect();
    clients.sort();
    assert_eq!(
        clients,
        [
            "codex",
            "codex_chatgpt",
            "codex_tier_fast",
            "openai_node",
            "openai_python_2",
            "openai_python_3"
        ]
    );
}
