//! Clients that are sent away: what they are told, when, and what the upstream and the log get to see of it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::Message;

use super::ends::{self, COMPLETED, CREATE, CREATED, DELTA, Heard, Socket};
use crate::support::proxy::{self, POLICY};
use crate::support::{PATIENCE, eventually};

const BROKEN: &str = r#"{"type":"response.create","input":"#;

/// Fails if the upstream hears anything before its end.
fn assert_sent_away(socket: &mut Socket, code: &str, close: u16) {
    assert_eq!(socket.client.hear_refusal(), (code.to_owned(), close));
    socket.server.hear_end();
}

/// What tells one line from another: turn, outcome, error, sent tier.
fn told(line: &Value) -> Value {
    let fields = ["turn", "outcome", "error", "service_tier", "upstream"];
    fields.iter().map(|name| line[name].clone()).collect()
}

#[test]
fn a_message_that_cannot_be_forced_is_refused() {
    let upstream = ends::upstream();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {json_depth: 3}")
        .run();
    let cases: [(&str, &[u8]); 8] = [
        ("invalid_json", BROKEN.as_bytes()),
        ("invalid_json", br#"{"type":"response.create"} {}"#),
        ("invalid_json", b"response.create"),
        ("invalid_json", br#"{"type":"response.create","Type":"x"}"#),
        (
            "invalid_json",
            br#"{"type":"x","ty\u0070e":"response.create"}"#,
        ),
        ("not_a_json_object", br#"["response.create"]"#),
        ("json_too_deep", br#"{"type":"response.create","a":[[[]]]}"#),
        (
            "invalid_utf8",
            b"{\"type\":\"response.create\",\"a\":\"\xff\"}",
        ),
    ];
    for (code, message) in cases {
        let mut socket = upstream.open(&proxy, "sk-fast");
        socket.client.send(Message::Binary(message.to_vec().into()));
        assert_sent_away(&mut socket, code, 1008);
    }
    let lines = proxy.access_log(2 * cases.len());
    for ((code, message), lines) in cases.iter().zip(lines.chunks(2)) {
        assert_eq!(told(&lines[0]), json!([1, "rejected", code, null, null]));
        assert_eq!(lines[0]["request_bytes"], message.len());
        assert_eq!(lines[0]["status"], 400);
        assert_eq!(lines[0]["key"], "fiona");
        assert_eq!(told(&lines[1]), json!([0, "rejected", code, null, "main"]));
    }
}

#[test]
fn a_group_that_is_not_forced_may_send_what_it_likes() {
    let upstream = ends::upstream();
    let proxy = proxy::new().upstream(&upstream).run();
    let mut socket = upstream.open(&proxy, "sk-plain");
    for message in [BROKEN, "ping", "[1", r#"{"type":"ping","x":NaN}"#] {
        socket.client.say(message);
        assert_eq!(socket.server.hear_text(), message);
    }
    drop(socket);
    assert_eq!(proxy.record()["turn"], 0);
    // A gateway may take a message without a type for a create, but not one without anything.
    let proxy = proxy::new()
        .upstream_with("main", &upstream, "kind: gateway")
        .run();
    let mut socket = upstream.open(&proxy, "sk-plain");
    for message in ["", " \n"] {
        socket.client.say(message);
        assert_eq!(socket.server.hear_text(), message);
    }
    drop(socket);
    assert_eq!(proxy.record()["turn"], 0);
}

/// It is no JSON, and yet Python, among others, reads in it what creates a response.
#[test]
fn a_message_for_lenient_readers_is_refused_where_a_budget_is_to_see_its_tier() {
    let upstream = ends::upstream();
    let policy = "version: 1\ngroups:\n  \
        own: {platform: openai, budget: {usd: 1, per: month, then: refuse}}\n\
        keys: {sk-own: {group: own, name: olga}}\n";
    let proxy = proxy::new().policy(policy).upstream(&upstream).run();
    let odd = r#"{"x":NaN,"type":"response.create","model":"m","service_tier":"priority"}"#;
    let mut bounded = upstream.open(&proxy, "sk-own");
    bounded.client.say(odd);
    assert_sent_away(&mut bounded, "invalid_json", 1008);
}

/// Types by which an upstream may begin a response, and spellings of them.
#[test]
fn a_message_that_may_create_a_response_is_forced() {
    let upstream = ends::upstream();
    let proxy = proxy::new().upstream(&upstream).run();
    let mut socket = upstream.open(&proxy, "sk-fast");
    for kind in [
        "",
        " ",
        " response.create ",
        "RESPONSE.Create",
        "response.create\\u0000",
        "response.append",
    ] {
        socket.client.say(format!(r#"{{"type":"{kind}"}}"#));
        let forced = format!(r#"{{"service_tier":"priority","type":"{kind}"}}"#);
        assert_eq!(socket.server.hear_text(), forced);
    }
}

/// Gateways take a message without a type for one that creates a response.
#[test]
fn a_message_without_a_type_is_forced_towards_a_gateway() {
    let upstream = ends::upstream();
    let forced = r#""service_tier":"priority","#;
    for (kind, front) in [
        ("gateway", forced),
        ("codex_gateway", forced),
        ("openai", ""),
    ] {
        let proxy = proxy::new()
            .upstream_with("main", &upstream, &format!("kind: {kind}"))
            .run();
        let mut socket = upstream.open(&proxy, "sk-fast");
        for rest in [r#""model":"m"}"#, r#""type":null}"#] {
            socket.client.say(format!("{{{rest}"));
            assert_eq!(socket.server.hear_text(), format!("{{{front}{rest}"));
        }
    }
}

#[test]
fn a_spent_budget_refuses_the_fast_tier_wherever_a_message_asks_for_it() {
    let upstream = ends::upstream();
    let policy = "version: 1\ngroups:\n  own: {platform: openai, budget: {usd: '0.000001', per: month, then: refuse}}\n\
        keys:\n  sk-own: {group: own, name: olga}\n";
    let prices = "version: 1\nprices: [{models: ['*'], tiers: {default: {input: 1, cached_input: 1, output: 1}, \
        priority: {input: 2, cached_input: 2, output: 2}}}]\n";
    let proxy = proxy::new()
        .policy(policy)
        .prices(prices)
        .upstream(&upstream)
        .run();
    let mut socket = upstream.open(&proxy, "sk-own");
    let create = |tier: &str| format!(r#"{{"type":"response.create","model":"m",{tier}}}"#);
    let slow = r#""response":{"service_tier":"flex"}"#;
    for tier in [r#""service_tier":"priority""#, slow] {
        socket.client.say(create(tier));
        assert_eq!(socket.server.hear_text(), create(tier));
        let served = COMPLETED.replace("default", "priority");
        ends::answer(&mut socket, &[CREATED, &served]);
    }
    proxy.access_log(2);
    for tier in [
        r#""response":{"Service_Tier":"fast"}"#,
        r#""service_tier":"priority","service_tier":"flex""#,
    ] {
        let mut socket = upstream.open(&proxy, "sk-own");
        socket.client.say(create(tier));
        assert_sent_away(&mut socket, "budget_exhausted", 1008);
    }
}

#[test]
fn what_came_with_a_refused_message_is_not_sent_either() {
    let upstream = ends::upstream();
    let proxy = proxy::new().upstream(&upstream).run();
    let mut socket = upstream.open(&proxy, "sk-fast");
    let frames = [CREATE, BROKEN].map(ends::masked).concat();
    socket.client.raw(&frames);
    assert_sent_away(&mut socket, "invalid_json", 1008);
    let lines = proxy.access_log(3);
    let refused = |turn: u64| json!([turn, "rejected", "invalid_json", null, null]);
    assert_eq!([told(&lines[0]), told(&lines[1])], [refused(1), refused(2)]);
}

#[test]
fn a_running_turn_has_its_line_when_its_client_is_sent_away() {
    let upstream = ends::upstream();
    let proxy = proxy::new().upstream(&upstream).run();
    let mut socket = upstream.open_turn(&proxy, "sk-fast");
    socket.client.say(BROKEN);
    assert_sent_away(&mut socket, "invalid_json", 1008);
    let lines = proxy.access_log(3);
    assert_eq!(
        told(&lines[1]),
        json!([1, "client_closed", null, "priority", "main"])
    );
}

#[test]
fn the_farewell_waits_for_the_end_of_the_servers_message() {
    let upstream = ends::upstream();
    let proxy = proxy::new().upstream(&upstream).run();
    let mut socket = upstream.open(&proxy, "sk-fast");
    let (start, end) = COMPLETED.split_at(30);
    socket.server.fragment(true, false, start);
    ends::pass_ping(&mut socket, b"");
    socket.client.say(BROKEN);
    assert_eq!(
        told(&proxy.record()),
        json!([1, "rejected", "invalid_json", null, null])
    );
    socket.server.fragment(false, true, end);
    assert_eq!(socket.client.hear_text(), COMPLETED);
    assert_sent_away(&mut socket, "invalid_json", 1008);
}

#[test]
fn nothing_of_the_server_comes_between_its_message_and_the_farewell() {
    let upstream = ends::upstream();
    let proxy = proxy::new().upstream(&upstream).run();
    let mut socket = upstream.open(&proxy, "sk-fast");
    let frames = [CREATED, COMPLETED].map(ends::unmasked).concat();
    let (start, rest) = frames.split_at(CREATED.len() / 2);
    ends::pass_ping(&mut socket, start);
    socket.client.say(BROKEN);
    proxy.record();
    socket.server.raw(rest);
    assert_eq!(socket.client.hear_text(), CREATED);
    assert_eq!(
        socket.client.hear_refusal(),
        ("invalid_json".to_owned(), 1008)
    );
}

#[test]
fn a_farewell_does_not_wait_for_a_server_that_has_stopped() {
    let upstream = ends::upstream();
    let proxy = proxy::new()
        .upstream_with("main", &upstream, "idle_timeout: 300ms")
        .run();
    let mut socket = upstream.open(&proxy, "sk-fast");
    ends::pass_bytes(&mut socket, &ends::unmasked(CREATED)[..20]);
    socket.client.say(BROKEN);
    assert_eq!(socket.client.hear(), Heard::Cut);
    assert_eq!(
        told(&proxy.access_log(2)[1]),
        json!([0, "rejected", "invalid_json", null, "main"])
    );
}

#[test]
fn nothing_is_said_in_the_middle_of_a_frame_that_the_server_will_not_end() {
    let upstream = ends::upstream();
    let proxy = proxy::new().upstream(&upstream).run();
    let mut socket = upstream.open(&proxy, "sk-fast");
    ends::pass_bytes(&mut socket, &ends::unmasked(CREATED)[..20]);
    socket.client.say(BROKEN);
    proxy.record();
    socket.server.vanish();
    assert_eq!(socket.client.rest(), b"");
}

#[test]
fn a_client_is_refused_also_where_the_servers_frames_cannot_be_read() {
    let upstream = ends::upstream();
    let proxy = proxy::new().upstream(&upstream).run();
    let mut socket = upstream.open(&proxy, "sk-fast");
    // A masked frame, as no server may send it.
    ends::pass_bytes(&mut socket, &ends::masked("x"));
    socket.client.say(BROKEN);
    assert_eq!(socket.client.rest(), b"");
    assert_eq!(
        told(&proxy.access_log(2)[1]),
        json!([0, "rejected", "invalid_json", null, "main"])
    );
}

#[test]
fn a_key_that_is_taken_away_ends_the_socket_at_its_next_turn() {
    let without = POLICY.replace("  sk-fast: {group: fast, name: fiona}\n", "");
    let disabled = POLICY.replace("name: fiona}", "name: fiona, enabled: false}");
    let closed = POLICY.replacen(
        "force_fast_mode: true}",
        "force_fast_mode: true, enabled: false}",
        1,
    );
    for (policy, code, key) in [
        (without, "invalid_api_key", json!(null)),
        (disabled, "key_disabled", json!("fiona")),
        (closed, "group_disabled", json!("fiona")),
    ] {
        let upstream = ends::upstream();
        let proxy = proxy::new().upstream(&upstream).run();
        let mut socket = upstream.open_turn(&proxy, "sk-fast");
        ends::replace_policy(&proxy, &policy);
        // What runs goes on, and so does what is no turn.
        socket.client.say("{}");
        assert_eq!(socket.server.hear_text(), "{}");
        ends::answer(&mut socket, &[CREATED, COMPLETED]);
        socket.client.say(CREATE);
        assert_sent_away(&mut socket, code, 1008);
        let lines = proxy.access_log(3);
        assert_eq!(lines[0]["outcome"], "ok");
        assert_eq!(told(&lines[1]), json!([2, "denied", code, null, null]));
        assert_eq!(
            (&lines[1]["key"], &lines[1]["tier_reason"]),
            (&key, &json!(null))
        );
    }
}

/// What is sent away with a message that did not come in time.
fn assert_too_slow(socket: &mut Socket) {
    let (kind, code) = ("invalid_request_error", "request_timeout");
    let farewell = (408, kind.to_owned(), code.to_owned(), 1008);
    assert_eq!(socket.client.hear_farewell(), farewell);
    socket.server.hear_end();
}

#[test]
fn a_message_that_stops_is_waited_for_as_long_as_a_body() {
    let upstream = ends::upstream();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {body_idle_timeout: 300ms, body_timeout: 20s}")
        .run();
    let create = ends::masked(CREATE);
    let in_fragments = [&[0x01, 0x82, 0, 0, 0, 0][..], b"{}"].concat();
    let message = &create[..create.len() - 1];
    for begun in [message, &create[..1], &in_fragments] {
        for key in ["sk-fast", "sk-plain"] {
            let mut socket = upstream.open(&proxy, key);
            socket.client.raw(begun);
            assert_too_slow(&mut socket);
        }
    }
    for line in proxy.access_log(6) {
        let slow = json!([0, "timeout", "request_timeout", null, "main"]);
        assert_eq!(told(&line), slow);
    }
    eventually("the memory of their messages", || {
        (proxy.metric("tiergate_buffered_bytes") == 0.0).then_some(())
    });
}

#[test]
fn a_message_that_drips_is_waited_for_as_long_as_a_body() {
    let upstream = ends::upstream();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {body_idle_timeout: 20s, body_timeout: 1s}")
        .run();
    let mut socket = upstream.open(&proxy, "sk-fast");
    let (whole, begun) = (ends::masked(CREATE), Instant::now());
    for byte in whole.chunks(1).take(10) {
        socket.client.raw(byte);
        std::thread::sleep(Duration::from_millis(80));
    }
    assert_too_slow(&mut socket);
    let time = begun.elapsed();
    assert!(time < Duration::from_millis(1700), "{time:?}");
}

#[test]
fn a_response_that_goes_on_does_not_prolong_the_wait_for_a_message() {
    let upstream = ends::upstream();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {body_idle_timeout: 500ms}")
        .run();
    let mut socket = upstream.open_turn(&proxy, "sk-fast");
    ends::answer(&mut socket, &[CREATED]);
    socket.client.raw(&ends::masked(CREATE)[..20]);
    let begun = Instant::now();
    let event = loop {
        socket.server.try_send(Message::text(DELTA));
        match socket.client.hear_text() {
            text if text == DELTA => std::thread::sleep(Duration::from_millis(50)),
            event => break event,
        }
        assert!(begun.elapsed() < PATIENCE, "it is still there");
    };
    assert!(event.contains("request_timeout"), "{event}");
    let lines = proxy.access_log(2);
    let turn = json!([1, "client_closed", null, "priority", "main"]);
    assert_eq!(told(&lines[0]), turn);
}

#[test]
fn a_client_that_stops_gets_the_rest_of_the_message_that_it_has_a_part_of() {
    let upstream = ends::upstream();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {body_idle_timeout: 300ms}")
        .run();
    let mut socket = upstream.open_turn(&proxy, "sk-fast");
    ends::answer(&mut socket, &[CREATED]);
    let (start, end) = DELTA.split_at(20);
    socket.server.fragment(true, false, start);
    ends::pass_ping(&mut socket, b"");
    socket.client.raw(&ends::masked(CREATE)[..20]);
    for byte in end.as_bytes().chunks(1).take(10) {
        std::thread::sleep(Duration::from_millis(80));
        socket
            .server
            .fragment(false, false, std::str::from_utf8(byte).unwrap());
    }
    socket.server.fragment(false, true, &end[10..]);
    assert_eq!(socket.client.hear_text(), DELTA);
    assert_too_slow(&mut socket);
    let lines = proxy.access_log(2);
    let turn = json!([1, "client_closed", null, "priority", "main"]);
    assert_eq!(told(&lines[0]), turn);
    let connection = json!([0, "timeout", "request_timeout", null, "main"]);
    assert_eq!(told(&lines[1]), connection);
}

/// It makes a response as a `response.create` does, with the settings of the one that runs.
#[test]
fn a_steer_is_asked_of_the_policy_and_has_the_tier_that_it_gives() {
    const STEER: &str =
        r#"{"type":"response.steer","previous_response_id":"resp_1","input":"go on"}"#;
    let disabled = POLICY.replace("name: fiona}", "name: fiona, enabled: false}");
    let slower = POLICY.replacen("force_fast_mode: true}", "force_tier: flex}", 1);
    let freed = POLICY.replacen(", force_fast_mode: true}", "}", 1);
    for (policy, code) in [
        (disabled, Some("key_disabled")),
        (slower, Some("tier_not_forced")),
        (freed, None),
    ] {
        let upstream = ends::upstream();
        let proxy = proxy::new().upstream(&upstream).run();
        let mut socket = upstream.open_turn(&proxy, "sk-fast");
        socket.client.say(STEER);
        assert_eq!(socket.server.hear_text(), STEER);
        if code.is_none() {
            // One that may be read as something else is none.
            let mut other = upstream.open_turn(&proxy, "sk-fast");
            other.client.say(format!("{STEER} {CREATE}"));
            assert_sent_away(&mut other, "invalid_json", 1008);
        }
        ends::replace_policy(&proxy, &policy);
        socket.client.say(STEER);
        match code {
            Some(code) => assert_sent_away(&mut socket, code, 1008),
            None => assert_eq!(socket.server.hear_text(), STEER),
        }
    }
}

#[test]
fn a_message_of_a_key_that_was_disabled_is_not_waited_for() {
    let disabled = POLICY.replace("name: fiona}", "name: fiona, enabled: false}");
    let closed = POLICY.replacen(
        "force_fast_mode: true}",
        "force_fast_mode: true, enabled: false}",
        1,
    );
    for (policy, code) in [(disabled, "key_disabled"), (closed, "group_disabled")] {
        let upstream = ends::upstream();
        let proxy = proxy::new().upstream(&upstream).run();
        let mut socket = upstream.open(&proxy, "sk-fast");
        let message = ends::masked(CREATE);
        socket.client.raw(&message[..20]);
        ends::replace_policy(&proxy, &policy);
        socket.client.raw(&message[20..21]);
        assert_sent_away(&mut socket, code, 1008);
        let line = json!([0, "denied", code, null, "main"]);
        assert_eq!(told(&proxy.record()), line);
    }
}

#[test]
fn a_message_over_the_limit_is_refused_before_it_is_sent() {
    let upstream = ends::upstream();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {websocket_message: 1KiB}")
        .run();
    for key in ["sk-fast", "sk-plain"] {
        let mut socket = upstream.open(&proxy, key);
        let start = r#"{"type":"response.create","a":""#;
        let fits = format!("{start}{}\"}}", "x".repeat(1022 - start.len()));
        assert_eq!(fits.len(), 1024);
        socket.client.say(fits);
        socket.server.hear_text();
        // A header alone: 1025 bytes are to follow.
        socket.client.raw(&[0x81, 0xfe, 4, 1, 0, 0, 0, 0]);
        assert_sent_away(&mut socket, "body_too_large", 1009);
    }
    let outcomes = proxy.access_log(4);
    assert_eq!(
        told(&outcomes[1]),
        json!([0, "rejected", "body_too_large", null, "main"])
    );
}

#[test]
fn a_breach_of_the_protocol_is_refused() {
    let upstream = ends::upstream();
    let proxy = proxy::new().upstream(&upstream).run();
    let compressed = [&[0xc1][..], &ends::masked(CREATE)[1..]].concat();
    for frame in [ends::unmasked(CREATE), compressed] {
        let mut socket = upstream.open(&proxy, "sk-plain");
        socket.client.raw(&frame);
        assert_sent_away(&mut socket, "invalid_http", 1002);
    }
}

#[test]
fn a_message_for_which_no_memory_is_left_is_refused() {
    let upstream = ends::upstream();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {buffered: 64KiB}")
        .run();
    let mut socket = upstream.open(&proxy, "sk-fast");
    let start = format!(r#"{{"type":"response.create","a":"{}"#, "x".repeat(100_000));
    socket.client.fragment(true, false, &start);
    let (kind, code) = ("server_error".to_owned(), "buffer_full".to_owned());
    assert_eq!(socket.client.hear_farewell(), (503, kind, code, 1013));
    assert_eq!(proxy.metric("tiergate_buffered_bytes"), 0.0);
}
