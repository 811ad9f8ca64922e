//! Turns: what goes to the upstream, and the whole lines of the log for each way in which a response can go.

use serde_json::{Value, json};
use tungstenite::Message;

use super::ends::{
    self, COMPLETED, CREATE, CREATED, DELTA, FORCED, Heard, Socket, answer, replace_policy,
};
use crate::support::proxy::{self, Proxy};
use crate::support::record::with;
use crate::support::upstream;
use crate::support::websocket::frame;

/// The first byte of a close frame.
const CLOSE: u8 = 0x88;

/// An event that ends or begins the response of this id.
fn event(kind: &str, id: &str) -> String {
    json!({"type": kind, "response": {"id": id}}).to_string()
}

/// The line of a forced turn that the upstream answered by CREATED, DELTA and COMPLETED.
fn forced_turn() -> Value {
    json!({
        "schema": 1,
        "event_id": "ID#TURN",
        "seq": 0,
        "instance": "INSTANCE",
        "time": "TIME",
        "duration_ms": "MS",
        "ttfb_ms": "MS",
        "request_id": "ID",
        "turn": 1,
        "client": "127.0.0.1",
        "user_agent": null,
        "key": "fiona",
        "group": "fast",
        "platform": "openai",
        "policy": "REVISION",
        "method": "GET",
        "path": "/v1/responses",
        "endpoint": "responses",
        "transport": "websocket",
        "model": "m-1",
        "service_tier": "priority",
        "service_tier_client": "flex",
        "service_tier_served": "default",
        "service_tier_billed": "default",
        "tier_reason": "group_force",
        "tier_billed_by": "served",
        "downgraded": true,
        "upstream": "main",
        "upstream_status": 101,
        "upstream_request_id": "req_ws",
        "response_id": "resp_1",
        "status": 101,
        "outcome": "ok",
        "error": null,
        "usage_state": "final",
        "terminal_event": "response.completed",
        "input_tokens": 10,
        "cached_input_tokens": 4,
        "cache_write_tokens": null,
        "output_tokens": 7,
        "reasoning_tokens": 3,
        "cost_usd": null,
        "request_bytes": CREATE.len(),
        "upstream_request_bytes": FORCED.len(),
        "response_bytes": CREATED.len() + DELTA.len() + COMPLETED.len(),
        "model_served": "m-1-2026",
        "tier_refused": false,
        "upstream_error": null,
        "cache_write_long_tokens": null,
        "of_request": null,
        "bridge": null,
        "bridge_dropped": null,
        "key_id": "KEY ID",
        "prices": null,
        "model_upstream": null,
    })
}

/// The line of a connection of the same key.
fn connection() -> Value {
    let nothing = json!({
        "turn": 0,
        "model": null,
        "service_tier": null,
        "service_tier_client": null,
        "service_tier_served": null,
        "service_tier_billed": null,
        "tier_reason": "none",
        "tier_billed_by": "sent",
        "downgraded": false,
        "response_id": null,
        "model_served": null,
        "usage_state": "none",
        "terminal_event": null,
        "input_tokens": null,
        "cached_input_tokens": null,
        "output_tokens": null,
        "reasoning_tokens": null,
    });
    with(forced_turn(), nothing)
}

/// What a response that told nothing leaves out of a line.
fn untold() -> Value {
    json!({
        "service_tier_served": null,
        "service_tier_billed": "priority",
        "tier_billed_by": "sent",
        "downgraded": false,
        "response_id": null,
        "model_served": null,
        "usage_state": "none",
        "terminal_event": null,
        "input_tokens": null,
        "cached_input_tokens": null,
        "output_tokens": null,
        "reasoning_tokens": null,
    })
}

fn proxy_to(upstream: &ends::Upstream) -> Proxy {
    proxy::new().upstream(upstream).run()
}

/// The lines so far, the connection's bytes left out: frames have headers of their own.
fn lines(proxy: &Proxy, count: usize) -> Vec<Value> {
    let lines = proxy.access_log(count);
    let without = |mut line: Value| {
        if line["turn"] == 0 {
            for name in ["request_bytes", "upstream_request_bytes", "response_bytes"] {
                assert!(line[name].as_u64().is_some());
                line[name] = json!("BYTES");
            }
        }
        line
    };
    lines.into_iter().map(without).collect()
}

fn bytes_unknown(line: Value) -> Value {
    with(
        line,
        json!({"request_bytes": "BYTES", "upstream_request_bytes": "BYTES", "response_bytes": "BYTES"}),
    )
}

#[test]
fn a_forced_turn_has_its_tier_set_and_its_line() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = upstream.open(&proxy, "sk-fast");
    socket.client.say(CREATE);
    assert_eq!(socket.server.hear_text(), FORCED);
    answer(&mut socket, &[CREATED, DELTA, COMPLETED]);
    assert_eq!(proxy.record(), forced_turn());
    socket.close();
    let line = bytes_unknown(with(connection(), json!({"seq": 1})));
    assert_eq!(lines(&proxy, 2)[1], line);
}

#[test]
fn the_line_of_a_connection_counts_the_bytes_of_both_ways() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = upstream.open_turn(&proxy, "sk-fast");
    answer(&mut socket, &[COMPLETED]);
    socket.client.vanish();
    let lines = proxy.access_log(2);
    // A header of 2 bytes up to 125 of payload, of 4 above; and the client's mask.
    assert_eq!(lines[1]["request_bytes"], CREATE.len() + 6);
    assert_eq!(lines[1]["upstream_request_bytes"], FORCED.len() + 6);
    assert_eq!(lines[1]["response_bytes"], COMPLETED.len() + 4);
}

#[test]
fn a_turn_that_is_not_forced_goes_on_as_it_came() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = upstream.open(&proxy, "sk-plain");
    socket.client.say(CREATE);
    assert_eq!(socket.server.hear_text(), CREATE);
    answer(&mut socket, &[CREATED, DELTA, COMPLETED]);
    let line = json!({
        "key": "paula",
        "group": "plain",
        "service_tier": "flex",
        "tier_reason": "client",
        "downgraded": false,
        "upstream_request_bytes": CREATE.len(),
    });
    assert_eq!(proxy.record(), with(forced_turn(), line));
}

#[test]
fn other_messages_of_a_forced_group_pass_and_have_no_line() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = upstream.open(&proxy, "sk-fast");
    for text in [
        r#"{"type":"response.steer","service_tier":"flex"}"#,
        r#"{"service_tier":"flex"}"#,
        r#"{"type":"response.created","service_tier":"flex"}"#,
        r#"{"event":{"type":"response.create"},"service_tier":"flex"}"#,
    ] {
        socket.client.say(text);
        assert_eq!(socket.server.hear_text(), text);
    }
    socket.client.vanish();
    assert_eq!(proxy.record()["turn"], 0);
}

#[test]
fn a_binary_message_is_judged_like_a_text_and_stays_binary() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = upstream.open(&proxy, "sk-fast");
    socket.client.send(Message::Binary(CREATE.into()));
    assert_eq!(socket.server.hear(), Heard::Binary(FORCED.into()));
    socket.client.vanish();
    assert_eq!(lines(&proxy, 2)[0]["service_tier"], "priority");
}

#[test]
fn fragments_with_control_frames_between_them_are_one_message() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    for (key, arrives) in [("sk-fast", FORCED), ("sk-plain", CREATE)] {
        let mut socket = upstream.open(&proxy, key);
        let (start, rest) = CREATE.split_at(20);
        let (middle, end) = rest.split_at(1);
        socket.client.fragment(true, false, start);
        socket.client.send(Message::Ping("between".into()));
        socket.client.fragment(false, false, middle);
        // It is on its way before the message is whole.
        assert_eq!(socket.server.hear(), Heard::Ping("between".into()));
        socket.client.fragment(false, true, end);
        assert_eq!(socket.server.hear_text(), arrives);
        assert_eq!(socket.client.hear(), Heard::Pong("between".into()));
    }
}

#[test]
fn a_message_that_comes_byte_by_byte_is_one_message() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = upstream.open(&proxy, "sk-fast");
    let mut frame = vec![0x81, 0x80 | CREATE.len() as u8, 1, 2, 3, 4];
    let mask = [1, 2, 3, 4].into_iter().cycle();
    frame.extend(CREATE.bytes().zip(mask).map(|(byte, mask)| byte ^ mask));
    for byte in frame {
        socket.client.raw(&[byte]);
    }
    assert_eq!(socket.server.hear_text(), FORCED);
}

#[test]
fn fragments_of_the_server_arrive_as_it_sent_them_and_are_read_as_one_event() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = upstream.open_turn(&proxy, "sk-fast");
    let (start, end) = COMPLETED.split_at(50);
    socket.server.fragment(true, false, start);
    socket.server.send(Message::Ping("mid".into()));
    assert_eq!(socket.client.hear(), Heard::Ping("mid".into()));
    assert!(proxy.log_lines().is_empty());
    socket.server.fragment(false, true, end);
    assert_eq!(socket.client.hear_text(), COMPLETED);
    let bytes = json!({"response_bytes": COMPLETED.len()});
    assert_eq!(proxy.record(), with(forced_turn(), bytes));
}

#[test]
fn a_large_turn_passes_whole() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = upstream.open(&proxy, "sk-fast");
    let input = "é".repeat(1_500_000);
    let create = format!(r#"{{"type":"response.create","input":"{input}"}}"#);
    let forced = create.replacen('{', r#"{"service_tier":"priority","#, 1);
    let arrived = std::thread::scope(|scope| {
        let server = scope.spawn(|| socket.server.hear_text());
        socket.client.say(create.clone());
        server.join().unwrap()
    });
    assert!(
        arrived == forced,
        "{} bytes for {}",
        arrived.len(),
        forced.len()
    );
    socket.client.vanish();
    let turn = &lines(&proxy, 2)[0];
    assert_eq!(turn["request_bytes"], create.len());
    assert_eq!(turn["upstream_request_bytes"], forced.len());
}

#[test]
fn compression_is_declined() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let offer = [
        (
            "sec-websocket-extensions",
            "permessage-deflate; client_max_window_bits",
        ),
        ("openai-beta", "responses_websockets=2026-02-06"),
    ];
    for key in ["sk-fast", "sk-plain"] {
        let socket = upstream.open_at(&proxy, key, "/v1/responses?x=1", &offer);
        assert_eq!(socket.asked.target, "/v1/responses?x=1");
        assert!(
            !socket
                .asked
                .headers
                .contains_key("sec-websocket-extensions")
        );
        assert_eq!(socket.asked.headers["openai-beta"], offer[1].1);
        assert_eq!(socket.answered["x-codex-turn-state"], "state");
        assert!(socket.answered.contains_key("x-tiergate-request-id"));
        assert!(!socket.answered.contains_key("sec-websocket-extensions"));
    }
}

#[test]
fn a_socket_on_another_path_is_left_alone() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let offer = [("sec-websocket-extensions", "permessage-deflate")];
    let mut socket = upstream.open_at(&proxy, "sk-fast", "/v1/realtime", &offer);
    assert_eq!(
        socket.asked.headers["sec-websocket-extensions"],
        "permessage-deflate"
    );
    for text in [CREATE, r#"{"type":"response.create""#] {
        socket.client.say(text);
        assert_eq!(socket.server.hear_text(), text);
    }
    answer(&mut socket, &[COMPLETED]);
    socket.close();
    let line = json!({
        "seq": 0,
        "path": "/v1/realtime",
        "endpoint": "other",
    });
    assert_eq!(lines(&proxy, 1), [bytes_unknown(with(connection(), line))]);
}

#[test]
fn the_policy_is_asked_at_each_turn() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = upstream.open(&proxy, "sk-fast");
    let mut revisions = Vec::new();
    for (force, arrives) in [(true, FORCED), (false, CREATE), (true, FORCED)] {
        let policy = proxy::POLICY.replacen("true", if force { "true" } else { "false" }, 1);
        revisions.push(replace_policy(&proxy, &policy));
        socket.client.say(CREATE);
        assert_eq!(socket.server.hear_text(), arrives);
        answer(&mut socket, &[COMPLETED]);
    }
    let logged: Vec<Value> = proxy.log_lines().iter().map(|line| parsed(line)).collect();
    let told = logged.iter().map(|line| line["policy"].as_str().unwrap());
    assert_eq!(told.collect::<Vec<_>>(), revisions);
    let reasons = logged.iter().map(|line| &line["tier_reason"]);
    assert_eq!(
        reasons.collect::<Vec<_>>(),
        ["group_force", "client", "group_force"]
    );
}

fn parsed(line: &str) -> Value {
    serde_json::from_str(line).unwrap()
}

#[test]
fn two_lanes_at_once_have_a_line_each() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = upstream.open(&proxy, "sk-fast");
    for (lane, model) in [("a", "m-a"), ("b", "m-b")] {
        let create = json!({"type": "response.create", "stream_id": lane, "model": model});
        socket.client.say(create.to_string());
        socket.server.hear_text();
    }
    let said = |kind: &str, lane: &str, output: u64| {
        json!({
            "type": kind,
            "stream_id": lane,
            "response": {"id": format!("r-{lane}"), "usage": {"output_tokens": output}},
        })
        .to_string()
    };
    answer(
        &mut socket,
        &[
            &said("response.created", "b", 0),
            &said("response.created", "a", 0),
            &said("response.completed", "b", 2),
            &said("response.completed", "a", 1),
        ],
    );
    let lines = proxy.access_log(2);
    let told = lines.iter().map(|line| {
        let text = |name: &str| line[name].as_str().unwrap().to_owned();
        let numbers = (line["turn"].as_u64(), line["output_tokens"].as_u64());
        (numbers, text("model"), text("response_id"))
    });
    assert_eq!(
        told.collect::<Vec<_>>(),
        [
            ((Some(2), Some(2)), "m-b".to_owned(), "r-b".to_owned()),
            ((Some(1), Some(1)), "m-a".to_owned(), "r-a".to_owned()),
        ]
    );
}

#[test]
fn a_response_that_nobody_asked_for_inherits_from_the_last() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = upstream.open_turn(&proxy, "sk-fast");
    answer(&mut socket, &[CREATED, DELTA, COMPLETED]);
    let successor = COMPLETED.replace("resp_1", "resp_2");
    answer(
        &mut socket,
        &[&event("response.created", "resp_2"), &successor],
    );
    let line = json!({
        "seq": 1,
        "turn": 2,
        "response_id": "resp_2",
        "request_bytes": 0,
        "upstream_request_bytes": 0,
        "response_bytes": CREATED.len() + COMPLETED.len(),
    });
    assert_eq!(proxy.access_log(2)[1], with(forced_turn(), line));
}

/// A socket on which two messages were sent.
fn with_two_turns(upstream: &ends::Upstream, proxy: &Proxy) -> Socket {
    let mut socket = upstream.open(proxy, "sk-fast");
    for _ in 0..2 {
        socket.client.say(CREATE);
        socket.server.hear_text();
    }
    socket
}

fn completed(id: &str, output: u64) -> String {
    let usage = json!({"input_tokens": 1, "output_tokens": output});
    json!({"type": "response.completed", "response": {"id": id, "usage": usage}}).to_string()
}

/// Turn, response and output tokens of each line.
fn billed(proxy: &Proxy, count: usize) -> Vec<(u64, String, Option<u64>)> {
    let lines = proxy.access_log(count);
    let told = lines.iter().map(|line| {
        let id = line["response_id"].as_str().unwrap_or_default();
        let turn = line["turn"].as_u64().unwrap();
        (turn, id.to_owned(), line["output_tokens"].as_u64())
    });
    told.collect()
}

#[test]
fn an_end_that_is_told_again_ends_no_turn_that_waits() {
    for again in [
        completed("r1", 10),
        completed("r1", 10).replace("completed", "done"),
        json!({"type": "response.done", "response": {}}).to_string(),
    ] {
        let upstream = ends::upstream();
        let proxy = proxy_to(&upstream);
        let mut socket = with_two_turns(&upstream, &proxy);
        answer(
            &mut socket,
            &[
                &event("response.created", "r1"),
                &completed("r1", 10),
                &again,
            ],
        );
        answer(
            &mut socket,
            &[&event("response.created", "r2"), &completed("r2", 50)],
        );
        let expected = [
            (1, "r1".to_owned(), Some(10)),
            (2, "r2".to_owned(), Some(50)),
        ];
        assert_eq!(billed(&proxy, 2), expected, "{again}");
    }
}

#[test]
fn an_error_that_names_a_response_ends_that_one() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = with_two_turns(&upstream, &proxy);
    let error = r#"{"type":"error","response_id":"r2","error":{"code":"server_error"}}"#;
    for id in ["r1", "r2"] {
        answer(&mut socket, &[&event("response.created", id)]);
    }
    answer(&mut socket, &[error, &completed("r1", 10)]);
    let expected = [(2, "r2".to_owned(), None), (1, "r1".to_owned(), Some(10))];
    assert_eq!(billed(&proxy, 2), expected);
    assert_eq!(proxy.access_log(2)[0]["upstream_error"], "server_error");
}

#[test]
fn an_error_of_a_lane_ends_no_turn_of_it_that_runs() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = upstream.open(&proxy, "sk-fast");
    let create = json!({"type": "response.create", "stream_id": "a", "model": "m-1"});
    socket.client.say(create.to_string());
    socket.server.hear_text();
    let error = r#"{"type":"error","stream_id":"a","error":{"code":"bad_message"}}"#;
    answer(
        &mut socket,
        &[
            &event("response.created", "r1"),
            error,
            &completed("r1", 10),
        ],
    );
    assert_eq!(billed(&proxy, 1), [(1, "r1".to_owned(), Some(10))]);
}

#[test]
fn a_turn_that_goes_on_in_the_background_is_billed_when_it_is_fetched() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = upstream.open(&proxy, "sk-fast");
    socket
        .client
        .say(r#"{"type":"response.create","model":"m-1","background":true}"#);
    socket.server.hear_text();
    answer(&mut socket, &[&event("response.created", "r1")]);
    socket.client.vanish();
    socket.server.hear_end();
    let lines = proxy.access_log(2);
    let turn = lines.iter().find(|line| line["turn"] == 1).unwrap();
    assert_eq!(
        (&turn["usage_state"], &turn["response_id"]),
        (&json!("deferred"), &json!("r1"))
    );
}

#[test]
fn a_failed_response_is_the_upstreams_error() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = upstream.open_turn(&proxy, "sk-fast");
    let failed = event("response.failed", "resp_1");
    answer(&mut socket, &[&failed]);
    let line = json!({
        "response_id": "resp_1",
        "outcome": "upstream_error",
        "terminal_event": "response.failed",
        "response_bytes": failed.len(),
    });
    let expected = with(with(forced_turn(), untold()), line);
    assert_eq!(proxy.record(), expected);
    assert_eq!(proxy.metric("tiergate_usage_missing_total"), 1.0);
}

#[test]
fn an_error_event_ends_the_turn_and_the_socket_goes_on() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = upstream.open_turn(&proxy, "sk-fast");
    let error = r#"{"type":"error","status":429,"error":{"code":"rate_limit_exceeded"}}"#;
    answer(&mut socket, &[error]);
    let line = json!({
        "outcome": "upstream_error",
        "terminal_event": "error",
        "upstream_error": "rate_limit_exceeded",
        "response_bytes": error.len(),
    });
    assert_eq!(proxy.record(), with(with(forced_turn(), untold()), line));
    socket.client.say(CREATE);
    socket.server.hear_text();
    answer(&mut socket, &[CREATED, DELTA, COMPLETED]);
    let line = json!({"seq": 1, "turn": 2});
    assert_eq!(proxy.access_log(2)[1], with(forced_turn(), line));
}

#[test]
fn a_turn_that_the_upstream_cuts() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = upstream.open_turn(&proxy, "sk-fast");
    answer(&mut socket, &[CREATED]);
    socket.server.vanish();
    assert_eq!(socket.client.hear(), Heard::Cut);
    let turn = json!({
        "outcome": "upstream_cut",
        "response_id": "resp_1",
        "response_bytes": CREATED.len(),
    });
    let connection_line = json!({"seq": 1, "outcome": "upstream_cut"});
    assert_eq!(
        lines(&proxy, 2),
        [
            with(with(forced_turn(), untold()), turn),
            bytes_unknown(with(connection(), connection_line)),
        ]
    );
}

#[test]
fn a_turn_that_the_upstream_closes_is_cut_by_it_however_the_client_leaves() {
    let upstream = ends::upstream();
    for answers in [true, false] {
        let proxy = proxy_to(&upstream);
        let mut socket = upstream.open_turn(&proxy, "sk-fast");
        answer(&mut socket, &[CREATED]);
        let close = |mask| frame(CLOSE, &1011_u16.to_be_bytes(), mask);
        socket.server.raw(&close(None));
        assert_eq!(socket.client.read_raw(4), close(None));
        if answers {
            socket.client.raw(&close(Some([1, 2, 3, 4])));
        }
        socket.client.vanish();
        let told: Vec<_> = proxy
            .access_log(2)
            .iter()
            .map(|line| json!([line["turn"], line["outcome"]]))
            .collect();
        let cut = [json!([1, "upstream_cut"]), json!([0, "upstream_cut"])];
        assert_eq!(told, cut, "{answers}");
    }
}

#[test]
fn a_turn_whose_client_goes() {
    let upstream = ends::upstream();
    let proxy = proxy_to(&upstream);
    let mut socket = upstream.open_turn(&proxy, "sk-fast");
    answer(&mut socket, &[CREATED]);
    socket.client.vanish();
    socket.server.hear_end();
    let turn = json!({
        "outcome": "client_closed",
        "response_id": "resp_1",
        "response_bytes": CREATED.len(),
    });
    let connection_line = json!({"seq": 1, "outcome": "client_closed"});
    assert_eq!(
        lines(&proxy, 2),
        [
            with(with(forced_turn(), untold()), turn),
            bytes_unknown(with(connection(), connection_line)),
        ]
    );
}

#[test]
fn an_upgrade_that_the_upstream_declines_is_an_ordinary_answer() {
    let upstream = upstream::script([upstream::reply(426).json("{}")]).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let head = ends::handshake(&proxy.client("sk-fast"));
    let answer = proxy.anonymous().exchange(&head);
    assert_eq!((answer.status, answer.text()), (426, "{}"));
    let line = proxy.record();
    assert_eq!((&line["status"], &line["turn"]), (&json!(426), &json!(0)));
    assert_eq!(line["outcome"], "upstream_error");
}
