//! Answers: what clients get for what the upstream streams.

use super::*;

const CASES: &str = include_str!("../../../tests/fixtures/bridge/answers.json");

fn cases() -> Vec<Value> {
    serde_json::from_str(CASES).expect("fixtures")
}

fn converter_of(case: &Value) -> ResponseConverter {
    let endpoint = if case["protocol"] == "chat" {
        Endpoint::Chat
    } else {
        Endpoint::Messages
    };
    let mut converter = converter(endpoint, &case["request"]);
    let head = converter.upstream_head(Some("text/event-stream; charset=utf-8"));
    assert_eq!(head, Output::Nothing);
    converter
}

fn events_of(case: &Value) -> &[Value] {
    case["events"].as_array().expect("events")
}

fn check(case: &Value, received: &Received, how: &str) {
    let name = &case["name"];
    match &received.answer {
        None => {
            assert_eq!(json!(received.data()), case["stream"], "{name}, {how}");
            assert_eq!(json!(received.whole), case["whole"], "{name}, {how}");
        }
        Some(answer) => {
            let headers = answer.headers.iter();
            let headers = headers.filter(|(name, _)| *name != "content-type");
            let headers = headers.map(|(name, value)| ((*name).to_owned(), json!(value)));
            let headers: serde_json::Map<String, Value> = headers.collect();
            let body = parsed(&answer.body);
            let answer = json!({"status": answer.status, "headers": headers, "body": body});
            assert_eq!(answer, case["answer"], "{name}, {how}");
        }
    }
}

#[test]
fn every_answer_of_the_fixtures_is_converted_as_they_say_however_it_is_cut() {
    for case in &cases() {
        for line_end in ["\n", "\r\n", "\r"] {
            let body = stream_of(events_of(case), line_end);
            for piece in [usize::MAX, 1, 2, 3, 7, 64] {
                let received = play(converter_of(case), &body, piece);
                check(case, &received, &format!("pieces of {piece}, {line_end:?}"));
            }
        }
    }
}

#[test]
fn a_body_that_breaks_off_at_any_byte_never_ends_well() {
    for case in &cases() {
        let body = stream_of(events_of(case), "\n");
        let last = body.iter().rposition(|byte| *byte == b'}');
        for end in (0..last.expect("an event")).step_by(5) {
            let received = play(converter_of(case), &body[..end], usize::MAX);
            let status = received.answer.as_ref().map(|answer| answer.status);
            assert!(
                received.whole != Some(true) && status != Some(200),
                "{} cut at {end}: {received:?}",
                case["name"]
            );
        }
    }
}

#[test]
fn every_event_of_messages_has_its_name_and_one_line_of_data() {
    let is_stream = |case: &&Value| case["protocol"] == "messages" && case["stream"].is_array();
    for case in cases().iter().filter(is_stream) {
        let body = stream_of(events_of(case), "\n");
        let text = text_of(play(converter_of(case), &body, usize::MAX).stream);
        let events = text.strip_suffix("\n\n").expect("a whole event");
        for event in events.split("\n\n") {
            let (name, data) = event.split_once('\n').expect("two lines");
            let data = parsed(data.strip_prefix("data: ").expect("data").as_bytes());
            let kind = data["type"].as_str().expect("a type");
            assert_eq!(name, format!("event: {kind}"));
        }
    }
}

#[test]
fn a_body_of_one_response_object_is_read_whatever_its_head_says() {
    let response = json!({"id": "resp_1", "object": "response", "status": "completed", "output": [
        {"type": "message", "id": "m", "content": [{"type": "output_text", "text": "Hi"}]}],
        "usage": {"input_tokens": 3, "output_tokens": 1}});
    for content_type in [Some("application/json"), Some("text/event-stream"), None] {
        let mut converter = converter(Endpoint::Messages, &json!({}));
        assert_eq!(converter.upstream_head(content_type), Output::Nothing);
        let received = play(converter, response.to_string().as_bytes(), 5);
        let answer = received.answer.expect("an answer");
        assert_eq!(answer.status, 200);
        assert_eq!(parsed(&answer.body)["content"][0]["text"], "Hi");
    }
}

#[test]
fn a_body_that_is_no_finished_response_is_no_answer() {
    let bodies = [
        "",
        "{}",
        "{\"detail\":\"no\"}",
        "{\"error\":{\"message\":\"no\"}}",
        "<html>",
        "{\"output\":[]",
        "null",
    ];
    let running = json!({"status": "in_progress", "output": []}).to_string();
    for body in bodies.into_iter().chain([running.as_str()]) {
        let converter = converter(Endpoint::Messages, &json!({"stream": true}));
        let answer = play(converter, body.as_bytes(), 4).answer;
        assert!(answer.is_some_and(|answer| answer.status >= 500), "{body}");
    }
    let html = converter(Endpoint::Chat, &json!({})).upstream_head(Some("text/html"));
    assert!(matches!(html, Output::Answer(answer) if answer.status == 502));
}

#[test]
fn a_stream_that_waits_long_begins_without_a_fact_and_is_kept_alive() {
    let mut converter = converter(Endpoint::Messages, &json!({"stream": true}));
    assert_eq!(converter.ping(), Output::Nothing);
    let Output::Write(start) = converter.commit() else {
        panic!("nothing was written")
    };
    assert!(text_of(start).contains("\"id\":\"msg_own\""));
    let ping = b"event: ping\ndata: {\"type\":\"ping\"}\n\n".to_vec();
    assert_eq!(converter.ping(), Output::Write(ping));
    let failed = json!({"type": "response.failed", "response": {"error": {"message": "late"}}});
    let end = converter.feed(&stream_of(&[failed], "\n"));
    assert!(matches!(end, Output::End { whole: false, .. }));
    assert_eq!(converter.ping(), Output::Nothing);
    assert_eq!(converter.finish(), Output::Nothing);
}

#[test]
fn a_chat_stream_keeps_the_id_of_its_first_chunk() {
    let mut converter = converter(Endpoint::Chat, &json!({"stream": true}));
    let mut received = Received::default();
    received.take(converter.commit());
    received.take(converter.ping());
    let text = json!({"type": "response.output_text.delta", "output_index": 0, "delta": "x"});
    let created = json!({"type": "response.created", "response": {"id": "resp_9", "model": "m"}});
    received.take(converter.feed(&stream_of(&[created, text], "\n")));
    let mut chunks = received.data().into_iter();
    assert!(
        chunks.all(|chunk| chunk["id"] == "chatcmpl-own"),
        "{received:?}"
    );
}

#[test]
fn who_wants_no_stream_gets_nothing_before_the_end() {
    let mut converter = converter(Endpoint::Messages, &json!({}));
    assert_eq!(converter.commit(), Output::Nothing);
    assert_eq!(converter.ping(), Output::Nothing);
    let text = json!({"type": "response.output_text.delta", "output_index": 0, "delta": "x"});
    assert_eq!(converter.feed(&stream_of(&[text], "\n")), Output::Nothing);
    assert!(matches!(converter.timed_out(), Output::Answer(answer) if answer.status == 504));
}

#[test]
fn the_tier_that_is_told_is_the_served_if_it_is_trusted_else_the_sent() {
    for (served, trusted, told) in [
        ("default", true, "standard"),
        ("default", false, "priority"),
        ("auto", true, "priority"),
    ] {
        let done = json!({"type": "response.completed", "response": {"service_tier": served, "output": []}});
        let body =
            r#"{"model":"claude-a","stream":true,"messages":[{"role":"user","content":"q"}]}"#;
        let delivery = Delivery {
            sent_tier: Some("priority".to_owned()),
            tier_trusted: trusted,
            ..delivery()
        };
        let converter = ResponseConverter::new(messages(body).unwrap().context, delivery);
        let data = play(converter, &stream_of(std::slice::from_ref(&done), "\n"), 9).data();
        assert_eq!(data[1]["usage"]["service_tier"], told);
    }
}

#[test]
fn what_must_be_held_is_bounded() {
    let limits = Limits {
        event: 200,
        waiting: 1000,
        whole: 300,
    };
    let told = |events: Vec<Value>, stream: bool, what: &str| {
        let body = format!(
            r#"{{"model":"claude-a","stream":{stream},"messages":[{{"role":"user","content":"q"}}]}}"#
        );
        let delivery = Delivery {
            limits,
            ..delivery()
        };
        let converter = ResponseConverter::new(messages(&body).unwrap().context, delivery);
        let answer = play(converter, &stream_of(&events, "\n"), 50).answer;
        let body = text_of(answer.expect("an answer").body);
        assert!(body.contains(what), "{body}");
    };
    let text = |length: usize| json!({"type": "response.output_text.delta", "output_index": 0, "delta": "x".repeat(length)});
    told(vec![text(300)], true, "an event of too many bytes");
    told(vec![text(100); 4], false, "an answer of too many bytes");
    let mut events = vec![
        json!({"type": "response.output_item.added", "output_index": 1, "item": {"type": "message"}}),
    ];
    events.extend(vec![text(50); 20]);
    told(events, true, "has to wait");
}

#[test]
fn tool_names_come_back_as_the_client_has_them() {
    let long = "mcp.server.".to_owned() + &"n".repeat(70);
    let tools = json!({"stream": true, "tools": [{"name": long}]});
    let body = json!({"model": "claude-a", "tools": [{"name": long}], "messages": [{"role": "user", "content": "q"}]});
    let sent = parsed(&messages(&body.to_string()).unwrap().body);
    let name = &sent["tools"][0]["name"];
    let item = json!({"type": "function_call", "id": "f", "call_id": "c", "name": name, "arguments": "{}"});
    let done = json!({"type": "response.output_item.done", "output_index": 0, "item": item});
    let converter = converter(Endpoint::Messages, &tools);
    let data = play(converter, &stream_of(&[done], "\n"), 9).data();
    assert_eq!(data[1]["content_block"]["name"], json!(long));
}

/// Data of events, as they are spelled.
fn raw_stream(events: &[&str]) -> Vec<u8> {
    let event = |data: &&str| format!("data: {data}\n\n");
    events.iter().map(event).collect::<String>().into_bytes()
}

const DONE: &str =
    r#"{"type":"response.completed","response":{"id":"resp_1","status":"completed","output":[]}}"#;

#[test]
fn a_character_that_is_cut_into_two_deltas_is_one_for_the_client() {
    let text = |delta: &str| {
        format!(r#"{{"type":"response.output_text.delta","output_index":0,"delta":"{delta}"}}"#)
    };
    let whole = |text: &str| {
        format!(r#"{{"type":"response.output_text.done","output_index":0,"text":"{text}"}}"#)
    };
    let refusal =
        r#"{"type":"response.refusal.delta","output_index":0,"content_index":1,"delta":"no"}"#;
    let cases: [(&[String], &str); 8] = [
        (
            &[text(r"a\ud83d"), text(r"\ude42b"), whole(r"a\ud83d\ude42b")],
            "a🙂b",
        ),
        (&[text(r"\uD83D"), text(""), text(r"\uDE42")], "🙂"),
        (&[text(r"\ud83d"), whole("🙂!")], "🙂!"),
        (&[text(r"a\ud83d"), text("b")], "a\u{fffd}b"),
        (&[text(r"a\ud83d"), whole(r"a\ud83d")], "a\u{fffd}"),
        (&[text(r"a\ud83d")], "a\u{fffd}"),
        (&[text(r"a\ud83d"), refusal.to_owned()], "a\u{fffd}no"),
        (&[text(r"a\\ud83d"), text(r"\ude42")], "a\\ud83d\u{fffd}"),
    ];
    for (events, expected) in cases {
        let mut events: Vec<&str> = events.iter().map(String::as_str).collect();
        events.push(DONE);
        let message = parsed(&answer_to(&raw_stream(&events), 9).body);
        assert_eq!(message["content"][0]["text"], expected, "{events:?}");
    }
}

#[test]
fn so_it_is_in_arguments_and_in_thinking() {
    let call = r#"{"type":"response.output_item.added","output_index":0,"item":{"type":"function_call","id":"f","call_id":"c","name":"T"}}"#;
    let unnamed = r#"{"type":"response.output_item.added","output_index":0,"item":{"type":"function_call","id":"f"}}"#;
    let first = r#"{"type":"response.function_call_arguments.delta","output_index":0,"delta":"{\"a\":\"\ud83d"}"#;
    let second =
        r#"{"type":"response.function_call_arguments.delta","output_index":0,"delta":"\ude42\"}"}"#;
    let done = r#"{"type":"response.output_item.done","output_index":0,"item":{"type":"function_call","id":"f","call_id":"c","name":"T"}}"#;
    for added in [call, unnamed] {
        let body = raw_stream(&[added, first, second, done, DONE]);
        let message = parsed(&answer_to(&body, 9).body);
        assert_eq!(message["content"][0]["input"], json!({"a": "🙂"}));
    }
    let first = r#"{"type":"response.reasoning_summary_text.delta","output_index":0,"summary_index":0,"delta":"\ud83d"}"#;
    let second = r#"{"type":"response.reasoning_summary_text.delta","output_index":0,"summary_index":0,"delta":"\ude42"}"#;
    let body = raw_stream(&[first, second, DONE]);
    let thinks = json!({"thinking": {"type": "adaptive"}});
    let answer = play(converter(Endpoint::Messages, &thinks), &body, 9).answer;
    let message = parsed(&answer.expect("an answer").body);
    assert_eq!(message["content"][0]["thinking"], "🙂");
}

#[test]
fn an_event_whose_data_do_not_say_what_it_is_is_what_its_name_says() {
    let named = |line_end: &str| {
        let events = [
            ("output_text.delta", r#"{"output_index":1,"delta":"b"}"#),
            (
                "output_item.done",
                r#"{"output_index":1,"item":{"type":"message"}}"#,
            ),
            ("completed", r#"{"response":{"output":[]}}"#),
        ];
        let first =
            r#"{"type":"response.output_item.added","output_index":0,"item":{"type":"reasoning"}}"#;
        let mut body = format!("event: x{line_end}data: {first}{line_end}{line_end}");
        for (name, data) in events {
            body += &format!("data: {data}{line_end}event:response.{name}{line_end}{line_end}");
        }
        body
    };
    for line_end in ["\n", "\r\n"] {
        let message = parsed(&answer_to(named(line_end).as_bytes(), 5).body);
        assert_eq!(message["content"], json!([{"type": "text", "text": "b"}]));
    }
    for name in ["error", "message", "response.failed"] {
        let error = r#"{"error":{"code":"rate_limit_exceeded","message":"m"}}"#;
        let body = format!("event: {name}\ndata: {error}\n\n");
        assert_eq!(answer_to(body.as_bytes(), 5).status, 429, "{name}");
    }
}

#[test]
fn a_response_that_was_cancelled_is_a_failure_however_that_is_told() {
    let text = r#"{"type":"response.output_text.delta","output_index":0,"delta":"a"}"#;
    let ends = [
        r#"{"type":"response.cancelled","response":{"status":"cancelled","output":[]}}"#,
        r#"{"type":"response.canceled","response":{"status":"canceled","output":[]}}"#,
        r#"{"type":"response.cancelled","response":{}}"#,
        r#"{"type":"response.completed","response":{"status":"cancelled","output":[]}}"#,
        r#"{"type":"response.done","response":{"status":"canceled","output":[]}}"#,
    ];
    for end in ends {
        let mut converter = converter(Endpoint::Messages, &json!({"stream": true}));
        let mut received = Received::default();
        received.take(converter.feed(&raw_stream(&[text, end])));
        assert_eq!(received.whole, Some(false), "{end}");
        assert!(converter.has_untold_failure() && converter.log_error().is_none());
        let error = json!({"type": "api_error", "message": "upstream error"});
        assert_eq!(received.data().last().unwrap()["error"], error);
    }
    let whole = r#"{"id":"r","status":"cancelled","output":[]}"#;
    let answer = play(converter(Endpoint::Chat, &json!({})), whole.as_bytes(), 9).answer;
    assert_eq!(answer.map(|answer| answer.status), Some(500));
    let done = r#"{"type":"response.done","response":{"status":"incomplete","output":[]}}"#;
    let message = parsed(&answer_to(&raw_stream(&[text, done]), 9).body);
    assert_eq!(message["stop_reason"], "max_tokens");
}

#[test]
fn a_byte_order_mark_before_an_answer_is_taken_off_however_it_is_cut() {
    let text = r#"{"type":"response.output_text.delta","output_index":0,"delta":"Hi"}"#;
    let response = r#"{"status":"completed","output":[{"type":"message","content":[{"type":"output_text","text":"Hi"}]}]}"#;
    let stream = raw_stream(&[text, DONE]);
    for body in [response.as_bytes(), b" \n{}".as_slice(), &stream] {
        for (mark, piece) in [
            ("", 1),
            ("\u{feff}", 1),
            ("\u{feff}", 2),
            ("\u{feff}", 3),
            ("\u{feff}", 500),
        ] {
            let body = [mark.as_bytes(), body].concat();
            let answer = answer_to(&body, piece);
            if body.ends_with(b" \n{}") {
                let told = text_of(answer.body);
                assert!(told.contains("no finished response"), "{told}");
            } else {
                let message = parsed(&answer.body);
                assert_eq!(message["content"][0]["text"], "Hi", "{mark:?} {piece}");
            }
        }
    }
    for body in [b"\xef\xbb".as_slice(), b"\xef\xbb\xbf", b" \xef"] {
        assert_eq!(answer_to(body, 1).status, 502);
    }
}

#[test]
fn many_items_that_are_done_leave_room_for_what_waits() {
    let mut events = Vec::new();
    for index in 0..10_000 {
        let id = format!("fc_{index}");
        events.push(
            json!({"type": "response.output_item.added", "output_index": index,
            "item": {"type": "function_call", "id": id, "call_id": id, "name": "T"}}),
        );
        events.push(json!({"type": "response.output_item.done", "output_index": index,
            "item": {"type": "function_call", "id": id, "call_id": id, "name": "T", "arguments": "{}"}}));
    }
    events.push(json!({"type": "response.completed", "response": {"output": []}}));
    let message = parsed(&answer_to(&stream_of(&events, "\n"), 1 << 16).body);
    assert_eq!(message["content"].as_array().map(Vec::len), Some(10_000));
}

#[test]
fn a_call_that_has_no_room_in_the_legacy_form_is_told() {
    let call = |index: u64| {
        json!({"type": "response.output_item.done", "output_index": index,
            "item": {"type": "function_call", "id": format!("f{index}"), "call_id": format!("c{index}"), "name": "T", "arguments": "{}"}})
    };
    let functions = json!({"functions": [{"name": "T"}], "stream": true});
    for (calls, dropped) in [(1, None), (2, Some("function_call.further"))] {
        let mut converter = converter(Endpoint::Chat, &functions);
        let calls: Vec<Value> = (0..calls).map(call).collect();
        converter.feed(&stream_of(&calls, "\n"));
        assert_eq!(converter.dropped(), dropped);
    }
}
