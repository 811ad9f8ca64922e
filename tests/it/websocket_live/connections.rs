//! How connections begin, stay and end.

use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::json;
use tungstenite::Message;
use tungstenite::protocol::frame::CloseFrame;

use super::ends::{self, COMPLETED, CREATE, CREATED, DELTA, FORCED, Heard, Socket};
use crate::support::command::command;
use crate::support::proxy::{self, Proxy};
use crate::support::{PATIENCE, eventually, upstream};

fn restart() -> Heard {
    Heard::Close(1012, "the proxy restarts".to_owned())
}

/// The client is told that the upstream is late, with the status by which clients send the message again.
fn assert_late(socket: &mut Socket) {
    let (kind, code) = ("server_error".to_owned(), "upstream_timeout".to_owned());
    assert_eq!(socket.client.hear_farewell(), (504, kind, code, 1011));
}

#[test]
fn a_socket_through_a_listener_with_tls() {
    let upstream = ends::upstream();
    let proxy = proxy::new().upstream(&upstream).tls().run();
    let mut socket = upstream.open_with_tls(&proxy, "sk-fast");
    socket.client.say(CREATE);
    assert_eq!(socket.server.hear_text(), FORCED);
    ends::answer(&mut socket, &[CREATED, COMPLETED]);
    assert_eq!(proxy.record()["service_tier"], "priority");
}

#[test]
fn a_silent_socket_outlives_every_timeout() {
    let upstream = ends::upstream();
    let proxy = proxy::new()
        .upstream_with(
            "main",
            &upstream,
            "idle_timeout: 200ms, response_timeout: 300ms",
        )
        .setting(
            "limits: {header_timeout: 200ms, body_idle_timeout: 200ms, body_timeout: 300ms, \
             keepalive_timeout: 1s}",
        )
        .run();
    let mut socket = upstream.open(&proxy, "sk-fast");
    // That nothing happens can only be waited for.
    std::thread::sleep(Duration::from_millis(1600));
    socket.client.say(CREATE);
    assert_eq!(socket.server.hear_text(), FORCED);
    ends::answer(&mut socket, &[COMPLETED]);
    assert_eq!(proxy.record()["outcome"], "ok");
}

#[test]
fn an_upstream_that_answers_at_once_keeps_its_sockets() {
    for upstream in [ends::upstream(), ends::plain_upstream()] {
        let proxy = proxy::new().upstream(&upstream).run();
        for _ in 0..100 {
            let mut socket = upstream.open(&proxy, "sk-fast");
            socket.client.say("{}");
            assert_eq!(socket.server.hear_text(), "{}");
            socket.server.say("{}");
            assert_eq!(socket.client.hear_text(), "{}");
        }
    }
}

#[test]
fn an_upstream_that_does_not_answer_the_handshake_is_timed_out() {
    let upstream = upstream::script([upstream::silence()]).run();
    let proxy = proxy::new()
        .upstream_with("main", &upstream, "response_timeout: 200ms")
        .run();
    let head = ends::handshake(&proxy.client("sk-fast"));
    let answer = proxy.anonymous().exchange(&head);
    assert_eq!(
        (answer.status, &*answer.openai_code()),
        (504, "upstream_timeout")
    );
    let line = proxy.record();
    assert_eq!(
        (&line["turn"], &line["outcome"]),
        (&json!(0), &json!("timeout"))
    );
}

#[test]
fn an_unknown_key_reaches_no_upstream() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let head = ends::handshake(&proxy.client("sk-unknown"));
    let answer = proxy.anonymous().exchange(&head);
    assert_eq!(
        (answer.status, &*answer.openai_code()),
        (401, "invalid_api_key")
    );
    upstream.assert_untouched();
}

#[test]
fn the_servers_close_comes_through_and_is_no_fault() {
    let upstream = ends::upstream();
    let proxy = proxy::new().upstream(&upstream).run();
    let mut socket = upstream.open(&proxy, "sk-fast");
    let close = CloseFrame {
        code: 4000.into(),
        reason: "an hour is over".into(),
    };
    socket.server.send(Message::Close(Some(close)));
    let heard = Heard::Close(4000, "an hour is over".to_owned());
    assert_eq!(socket.client.hear(), heard);
    socket.client.vanish();
    assert_eq!(proxy.record()["outcome"], "ok");
}

#[test]
fn a_response_that_falls_silent_is_given_up_its_idle_timeout_after_its_last_message() {
    let upstream = ends::upstream();
    let settings = "response_timeout: 1s, idle_timeout: 1s";
    let proxy = proxy::new()
        .upstream_with("main", &upstream, settings)
        .run();
    for _ in 0..4 {
        let mut socket = upstream.open_turn(&proxy, "sk-fast");
        ends::answer(&mut socket, &[CREATED]);
        let begun = Instant::now();
        assert_late(&mut socket);
        let time = begun.elapsed();
        assert!(time < Duration::from_millis(1700), "{time:?}");
    }
}

#[test]
fn a_response_is_waited_for_while_its_upstream_pings() {
    let upstream = ends::upstream();
    let settings = "response_timeout: 1m, idle_timeout: 800ms";
    let proxy = proxy::new()
        .upstream_with("main", &upstream, settings)
        .run();
    let mut socket = upstream.open_turn(&proxy, "sk-fast");
    ends::answer(&mut socket, &[CREATED]);
    for _ in 0..10 {
        ends::pass_ping(&mut socket, b"");
        std::thread::sleep(Duration::from_millis(150));
    }
    ends::answer(&mut socket, &[COMPLETED]);
    assert_eq!(proxy.record()["outcome"], "ok");
}

#[test]
fn a_response_that_does_not_begin_is_given_up_though_its_upstream_pings() {
    let upstream = ends::upstream();
    let settings = "response_timeout: 500ms, idle_timeout: 1m";
    let proxy = proxy::new()
        .upstream_with("main", &upstream, settings)
        .run();
    let mut socket = upstream.open_turn(&proxy, "sk-fast");
    let begun = Instant::now();
    let heard = loop {
        socket.server.try_send(Message::Ping("now".into()));
        match socket.client.hear() {
            Heard::Ping(_) => std::thread::sleep(Duration::from_millis(50)),
            heard => break heard,
        }
        assert!(begun.elapsed() < PATIENCE, "it is still waited for");
    };
    let is_late = matches!(&heard, Heard::Text(event) if event.contains("upstream_timeout"));
    assert!(is_late, "{heard:?}");
}

#[test]
fn a_server_that_takes_nothing_for_its_idle_timeout_is_left() {
    let upstream = ends::plain_upstream();
    let settings = "response_timeout: 1m, idle_timeout: 300ms";
    let proxy = proxy::new()
        .upstream_with("main", &upstream, settings)
        .run();
    let mut socket = upstream.open(&proxy, "sk-fast");
    let message = json!({"type": "x", "input": "y".repeat(60_000)});
    socket.client.insist(&message.to_string());
    let record = proxy.record();
    assert_eq!(
        (&record["turn"], &record["outcome"]),
        (&json!(0), &json!("timeout"))
    );
}

#[test]
fn a_drain_ends_an_idle_socket_at_once() {
    let upstream = ends::upstream();
    let mut proxy = proxy::new().upstream(&upstream).run();
    let mut socket = upstream.open_turn(&proxy, "sk-fast");
    ends::answer(&mut socket, &[COMPLETED]);
    proxy.signal(libc::SIGTERM);
    assert_eq!(socket.client.hear(), restart());
    socket.client.vanish();
    assert_eq!(proxy.wait().code(), Some(0));
    let line = &proxy.access_log(2)[1];
    assert_eq!((&line["turn"], &line["outcome"]), (&json!(0), &json!("ok")));
}

/// A socket on which a response runs as the drain begins.
fn draining_turn() -> (ends::Upstream, Proxy, Socket) {
    let upstream = ends::upstream();
    let proxy = proxy::new().upstream(&upstream).run();
    let mut socket = upstream.open_turn(&proxy, "sk-fast");
    ends::answer(&mut socket, &[CREATED]);
    proxy.signal(libc::SIGTERM);
    proxy.await_stderr("draining");
    (upstream, proxy, socket)
}

#[test]
fn a_drain_lets_a_running_turn_end() {
    let (_upstream, mut proxy, mut socket) = draining_turn();
    ends::answer(&mut socket, &[DELTA, COMPLETED]);
    assert_eq!(socket.client.hear(), restart());
    socket.client.vanish();
    assert_eq!(proxy.wait().code(), Some(0));
    let outcomes = proxy
        .access_log(2)
        .into_iter()
        .map(|line| line["outcome"].clone());
    assert_eq!(outcomes.collect::<Vec<_>>(), ["ok", "ok"]);
}

/// What the client has sent meanwhile is answered by another response, which nobody asks for any more.
#[test]
fn a_drain_waits_for_the_successor_of_a_steered_response() {
    const STEERED: &str = r#"{"type":"response.incomplete","response":{"id":"resp_1","incomplete_details":{"reason":"steered"}}}"#;
    for is_made in [true, false] {
        let (_upstream, mut proxy, mut socket) = draining_turn();
        ends::answer(&mut socket, &[STEERED]);
        ends::pass_ping(&mut socket, b"");
        if is_made {
            let successor =
                [CREATED, DELTA, COMPLETED].map(|event| event.replace("resp_1", "resp_2"));
            ends::answer(
                &mut socket,
                &successor.each_ref().map(|event| event.as_str()),
            );
            assert_eq!(socket.client.hear(), restart());
            socket.client.vanish();
        } else {
            socket.server.vanish();
        }
        assert_eq!(proxy.wait().code(), Some(0));
        let line = &proxy.access_log(3)[1];
        let outcome = if is_made { "ok" } else { "upstream_cut" };
        let told = [&line["turn"], &line["outcome"], &line["service_tier"]];
        assert_eq!(told, [&json!(2), &json!(outcome), &json!("priority")]);
    }
}

#[test]
fn a_drain_waits_for_the_end_of_the_servers_message() {
    let upstream = ends::upstream();
    let mut proxy = proxy::new().upstream(&upstream).run();
    let mut socket = upstream.open(&proxy, "sk-fast");
    let (start, end) = DELTA.split_at(20);
    socket.server.fragment(true, false, start);
    ends::pass_ping(&mut socket, b"");
    proxy.signal(libc::SIGTERM);
    proxy.await_stderr("draining");
    socket.server.fragment(false, true, end);
    assert_eq!(socket.client.hear_text(), DELTA);
    assert_eq!(socket.client.hear(), restart());
    socket.client.vanish();
    assert_eq!(proxy.wait().code(), Some(0));
}

#[test]
fn a_drain_says_nothing_in_the_middle_of_a_frame() {
    let upstream = ends::upstream();
    let mut proxy = proxy::new().upstream(&upstream).run();
    let mut socket = upstream.open(&proxy, "sk-fast");
    ends::pass_bytes(&mut socket, &ends::unmasked(CREATED)[..20]);
    proxy.signal(libc::SIGTERM);
    proxy.await_stderr("draining");
    socket.server.vanish();
    assert_eq!(socket.client.rest(), b"");
    assert_eq!(proxy.wait().code(), Some(0));
}

#[test]
fn the_end_of_a_drain_cuts_what_still_runs() {
    let upstream = ends::upstream();
    let mut proxy = proxy::new()
        .upstream(&upstream)
        .setting("server: {drain: 200ms}")
        .run();
    let mut socket = upstream.open_turn(&proxy, "sk-fast");
    proxy.signal(libc::SIGTERM);
    assert_eq!(socket.client.hear(), Heard::Cut);
    assert_eq!(proxy.wait().code(), Some(0));
    let lines = proxy.access_log(2);
    assert_eq!(lines[0]["service_tier"], "priority");
    assert_ne!(lines[0]["outcome"], "ok");
}

#[test]
fn what_is_held_of_messages_is_given_back() {
    let upstream = ends::upstream();
    let proxy = proxy::new().upstream(&upstream).run();
    let held = || proxy.metric("tiergate_buffered_bytes");
    let mut socket = upstream.open(&proxy, "sk-fast");
    let (start, end) = (format!(r#"{{"a":"{}"#, "x".repeat(100_000)), r#""}"#);
    socket.client.fragment(true, false, &start);
    eventually("half a message is counted", || {
        (held() >= 100_000.0).then_some(())
    });
    socket.client.fragment(false, true, end);
    assert_eq!(socket.server.hear_text(), start.clone() + end);
    eventually("a whole one is not", || (held() == 0.0).then_some(()));
    socket.client.fragment(true, false, &start);
    eventually("half a message is counted again", || {
        (held() >= 100_000.0).then_some(())
    });
    socket.client.vanish();
    eventually("a client that has gone holds nothing", || {
        (held() == 0.0).then_some(())
    });
}

/// Once as it came and once in the clear; a buffer that grows by doubling would count up to twice that.
#[test]
fn a_message_whose_length_is_announced_counts_as_far_as_it_has_come() {
    let upstream = ends::upstream();
    let proxy = proxy::new().upstream(&upstream).run();
    let mut socket = upstream.open(&proxy, "sk-fast");
    let message = ends::masked(&format!(r#"{{"a":"{}"}}"#, "x".repeat(3_000_000)));
    socket.client.raw(&message[..message.len() - 1]);
    let held = eventually("nearly all of it is counted", || {
        let held = proxy.metric("tiergate_buffered_bytes");
        (held >= 5_990_000.0).then_some(held)
    });
    assert!(held < 6_100_000.0, "{held}");
    socket.client.raw(&message[message.len() - 1..]);
    socket.server.hear_text();
}

/// A process that has taken the listeners of another one over.
struct Successor(Child);

impl Successor {
    /// Returns when it serves.
    fn of(proxy: &Proxy) -> Self {
        let stderr = proxy.path("stderr-of-successor");
        let arguments = ["run", "--config", "tiergate.yaml", "--takeover"];
        let child = command(proxy.path(""), &arguments)
            .stderr(std::fs::File::create(&stderr).unwrap())
            .spawn()
            .unwrap();
        let successor = Self(child);
        eventually("the successor serves", || {
            let told = std::fs::read_to_string(&stderr).unwrap();
            told.contains("serves on").then_some(())
        });
        successor
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_takeover_lets_a_running_turn_end_in_the_old_process() {
    // The new process is not told to trust the tests' certificates.
    let upstream = ends::plain_upstream();
    let mut proxy = proxy::new()
        .upstream(&upstream)
        .setting("server: {upgrade_socket: upgrade.sock}")
        .run();
    let mut idle = upstream.open(&proxy, "sk-fast");
    let mut running = upstream.open(&proxy, "sk-fast");
    running.client.say(CREATE);
    assert_eq!(running.server.hear_text(), FORCED);
    ends::answer(&mut running, &[CREATED]);
    let _successor = Successor::of(&proxy);
    assert_eq!(idle.client.hear(), restart());
    idle.client.vanish();
    let mut new = upstream.open(&proxy, "sk-fast");
    new.client.say(CREATE);
    assert_eq!(new.server.hear_text(), FORCED);
    ends::answer(&mut running, &[DELTA, COMPLETED]);
    assert_eq!(running.client.hear(), restart());
    running.client.vanish();
    assert_eq!(proxy.wait().code(), Some(0));
    ends::answer(&mut new, &[COMPLETED]);
    // The idle connection, the turn and the connection of the old process, the turn of the new one.
    let told = proxy.access_log(4).into_iter();
    let told = told.map(|line| (line["turn"].clone(), line["outcome"].clone()));
    let ok = |turn: u64| (json!(turn), json!("ok"));
    assert_eq!(told.collect::<Vec<_>>(), [ok(0), ok(1), ok(0), ok(1)]);
}
