use super::tally::Tally;
use super::*;
use crate::codec::json::CAPTURE_BYTES;
use crate::policy::endpoint::Endpoint;
use crate::policy::endpoint::Endpoint::{ChatCompletions, Extra, Messages, Other, Responses};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;

const COMPLETED: &str = r#"{"type":"response.completed","response":{"id":"resp_1","model":"gpt-5.5","status":"completed","service_tier":"priority","usage":{"input_tokens":90,"input_tokens_details":{"cached_tokens":40,"cache_write_tokens":7},"output_tokens":20,"output_tokens_details":{"reasoning_tokens":5},"total_tokens":110}}}"#;
const CREATED: &str = r#"{"type":"response.created","response":{"id":"resp_0","model":"gpt-early","service_tier":"auto","usage":{"input_tokens":1}}}"#;

fn usage(counts: [u64; 5]) -> Usage {
    let [input, cached, written, output, reasoning] = counts.map(Some);
    Usage {
        input_tokens: input,
        cached_input_tokens: cached,
        cache_write_tokens: written,
        cache_write_long_tokens: None,
        output_tokens: output,
        reasoning_tokens: reasoning,
    }
}

fn in_and_out(usage: Usage) -> [Option<u64>; 2] {
    [usage.input_tokens, usage.output_tokens]
}

/// Tokens that were written to a cache, and those of them that live long.
fn written(usage: Usage) -> [Option<u64>; 2] {
    [usage.cache_write_tokens, usage.cache_write_long_tokens]
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn completed() -> Observed {
    Observed {
        usage: usage([90, 40, 7, 20, 5]),
        usage_state: UsageState::Final,
        served_tier: some("priority"),
        response_id: some("resp_1"),
        model: some("gpt-5.5"),
        terminal_event: some("response.completed"),
        ..Observed::default()
    }
}

fn observe(endpoint: Endpoint, event_stream: bool, body: &[u8], step: usize) -> Observed {
    let mut observer = ResponseObserver::new(endpoint, event_stream, &HeaderMap::new()).unwrap();
    body.chunks(step).for_each(|chunk| observer.feed(chunk));
    observer.finish()
}

/// The same however the body is cut.
fn observe_cut(endpoint: Endpoint, event_stream: bool, body: &str) -> Observed {
    let whole = observe(endpoint, event_stream, body.as_bytes(), usize::MAX);
    for step in [1, 2, 3, 7, 61] {
        let cut = observe(endpoint, event_stream, body.as_bytes(), step);
        assert_eq!(cut, whole, "by {step} bytes");
    }
    told(whole)
}

/// Without what has tests of its own.
fn told(observed: Observed) -> Observed {
    Observed {
        settled: false,
        event_stream: None,
        ..observed
    }
}

fn stream(endpoint: Endpoint, documents: &[&str]) -> Observed {
    let body: String = documents
        .iter()
        .map(|data| format!("data: {data}\n\n"))
        .collect();
    observe_cut(endpoint, true, &body)
}

fn plain(endpoint: Endpoint, body: &str) -> Observed {
    observe_cut(endpoint, false, body)
}

#[test]
fn the_terminal_event_of_a_responses_stream_tells_everything() {
    let delta = r#"{"type":"response.output_text.delta","delta":"x"}"#;
    assert_eq!(
        stream(Responses, &[CREATED, delta, COMPLETED, "[DONE]"]),
        completed()
    );
    assert_eq!(stream(Extra, &[COMPLETED]), completed());
}

#[test]
fn an_early_event_tells_id_and_model_and_what_is_counted_so_far_but_no_tier() {
    let expected = Observed {
        usage: Usage {
            input_tokens: Some(1),
            ..Usage::default()
        },
        usage_state: UsageState::Partial,
        response_id: some("resp_0"),
        model: some("gpt-early"),
        lacks_end: true,
        ..Observed::default()
    };
    assert_eq!(stream(Responses, &[CREATED]), expected);
}

#[test]
fn the_type_may_come_after_the_response() {
    let response = &COMPLETED[r#"{"type":"response.completed","#.len()..COMPLETED.len() - 1];
    let late = format!(r#"{{ {response}, "ty\u0070e" : "response.completed" }}"#);
    assert_eq!(stream(Responses, &[&late]), completed());
    let other = format!(r#"{{{response},"type":"response.steered"}}"#);
    assert!(stream(Responses, &[&other]).lacks_end);
    assert_eq!(stream(Responses, &[&other]).response_id, None);
}

#[test]
fn an_id_is_told_whole_or_not_at_all() {
    let told = |length: usize| {
        let id = "i".repeat(length);
        let answer = format!(r#"{{"id":"{id}","model":"{id}"}}"#);
        let observed = plain(Responses, &answer);
        assert_eq!(observed.model.unwrap().len(), length.min(CAPTURE_BYTES));
        observed.response_id.is_some_and(|told| told == id)
    };
    assert!(told(CAPTURE_BYTES));
    assert!(!told(CAPTURE_BYTES + 1));
}

#[test]
fn of_equal_members_the_first_counts() {
    let twice = COMPLETED.replacen('{', r#"{"type":"response.output_text.delta","#, 1);
    assert_eq!(stream(Responses, &[&twice]).usage, Usage::default());
    let twice = COMPLETED.replace("}}}", r#"}},"type":"x","response":{"id":"resp_2"}}"#);
    assert_eq!(stream(Responses, &[&twice]), completed());
}

#[test]
fn an_incomplete_response_is_final_and_a_failed_one_has_failed() {
    let incomplete = stream(
        Responses,
        &[&COMPLETED.replace("response.completed", "response.incomplete")],
    );
    assert_eq!(incomplete.usage_state, UsageState::Final);
    assert!(!incomplete.failed && !incomplete.lacks_end);
    let failed =
        r#"{"type":"response.failed","response":{"id":"r","service_tier":"default","usage":null}}"#;
    let expected = Observed {
        served_tier: some("default"),
        response_id: some("r"),
        terminal_event: some("response.failed"),
        failed: true,
        ..Observed::default()
    };
    assert_eq!(
        stream(Responses, &[CREATED, failed]).model,
        some("gpt-early")
    );
    assert_eq!(stream(Responses, &[failed]), expected);
}

#[test]
fn an_error_event_fails_any_stream() {
    let error = r#"{"type":"error","code":"server_error","message":"x"}"#;
    for endpoint in [Responses, Messages] {
        let observed = stream(endpoint, &[error]);
        assert!(observed.failed && !observed.lacks_end);
        assert_eq!(observed.terminal_event, some("error"));
    }
    for endpoint in [Responses, Messages, ChatCompletions] {
        assert!(stream(endpoint, &[r#"{"error":{"message":"x"}}"#]).failed);
        assert!(!stream(endpoint, &[r#"{"error":null}"#]).failed);
    }
}

#[test]
fn a_decoy_in_a_text_an_argument_or_a_tool_counts_for_nothing() {
    let text =
        r#"data: {\"type\":\"response.completed\",\"response\":{\"service_tier\":\"flex\"}}\n\n"#;
    let delta = format!(r#"{{"type":"response.output_text.delta","delta":"{text}"}}"#);
    let decoys = r#""response":{"tools":[{"service_tier":"flex","usage":{"input_tokens":1}}],"metadata":{"service_tier":"flex","id":"x"},"input_tokens":3,"#;
    let decoyed = COMPLETED.replace(r#""response":{"#, decoys);
    let outer = COMPLETED.replacen(
        '{',
        r#"{"service_tier":"flex","id":"evt","usage":{"input_tokens":2},"#,
        1,
    );
    for document in [&decoyed, &outer] {
        assert_eq!(stream(Responses, &[&delta, document, &delta]), completed());
    }
    let item = format!(r#"{{"type":"response.output_item.done","item":{COMPLETED}}}"#);
    assert!(stream(Responses, &[&item]).lacks_end);
}

#[test]
fn a_terminal_event_that_is_cut_off_has_partial_usage_and_no_tier() {
    let expected = Observed {
        terminal_event: None,
        served_tier: None,
        usage_state: UsageState::Partial,
        lacks_end: true,
        ..completed()
    };
    assert_eq!(
        stream(Responses, &[&COMPLETED[..COMPLETED.len() - 1]]),
        expected
    );
    assert_eq!(stream(Responses, &[&format!("{COMPLETED}x")]), expected);
}

/// The cached tokens, which cost less, stand behind the counts that they are a part of.
#[test]
fn a_usage_that_is_cut_off_has_no_cost() {
    let chat = r#"{"model":"m","usage":{"prompt_tokens":9,"completion_tokens":5,"total_tokens":14,"prompt_tokens_details":{"cached_tokens":8}},"x":1}"#;
    let message = r#"{"type":"message_start","message":{"usage":{"input_tokens":9,"output_tokens":5,"cache_read_input_tokens":8}}}"#;
    for (endpoint, whole) in [(ChatCompletions, chat), (Messages, message)] {
        let usage = whole.find("usage").unwrap();
        let end = usage + whole[usage..].find('}').unwrap() + 1;
        let end = end + usize::from(whole[end..].starts_with("},"));
        for cut in [usage + 8, end - 1, end, whole.len() - 1] {
            let observed = match endpoint {
                Messages => stream(endpoint, &[&whole[..cut]]),
                _ => plain(endpoint, &whole[..cut]),
            };
            let is_open = cut < end && observed.usage != Usage::default();
            assert_eq!(observed.lacks_price, is_open, "{}", &whole[..cut]);
        }
    }
}

#[test]
fn only_non_negative_numbers_count() {
    for wrong in [
        "-1",
        "1e400",
        "\"9\"",
        "{}",
        "[1]",
        "null",
        "true",
        "18446744073709551616",
    ] {
        let body = format!(r#"{{"usage":{{"input_tokens":{wrong},"output_tokens":1}}}}"#);
        let expected = Usage {
            output_tokens: Some(1),
            ..Usage::default()
        };
        assert_eq!(plain(Responses, &body).usage, expected, "{wrong}");
    }
}

#[test]
fn counts_are_read_as_the_world_writes_them() {
    for (told, count) in [
        ("1000.0", 1000),
        ("1000.000001", 1001),
        ("0.25", 1),
        ("-0.0", 0),
        ("1e3", 1000),
        ("18446744073709551615", u64::MAX),
    ] {
        let body = format!(r#"{{"usage":{{"input_tokens":1,"output_tokens":{told}}}}}"#);
        assert_eq!(
            plain(Responses, &body).usage.output_tokens,
            Some(count),
            "{told}"
        );
    }
}

#[test]
fn wrong_types_are_as_if_they_were_not_there() {
    for wrong in ["7", "[]", "{\"id\":\"x\"}", "null", "\"\""] {
        let body = format!(
            r#"{{"type":"response.completed","response":{{"id":{wrong},"model":{wrong},"service_tier":{wrong},"usage":{wrong}}}}}"#
        );
        let expected = Observed {
            terminal_event: some("response.completed"),
            ..Observed::default()
        };
        assert_eq!(stream(Responses, &[&body]), expected, "{wrong}");
    }
}

#[test]
fn texts_are_whole_and_as_they_were_told() {
    let long = "\u{e9}".repeat(100);
    let body = format!(r#"{{"service_tier":"{long}","model":"a{long}"}}"#);
    let observed = plain(Responses, &body);
    assert_eq!(observed.served_tier, some(&long));
    assert_eq!(observed.model, Some(format!("a{long}")));
    let spelled = plain(Responses, r#"{"service_tier":" Fl\u0045X\t"}"#);
    assert_eq!(spelled.served_tier, some("FlEX"));
    assert_eq!(
        plain(Responses, r#"{"service_tier":" "}"#).served_tier,
        None
    );
}

#[test]
fn the_answers_of_a_list_are_added_up() {
    let answer = |model: &str, prompt: u64| {
        format!(
            r#"{{"id":"c","model":"{model}","service_tier":"default","choices":[{{"message":{{"content":"],}}\""}}}}],
            "usage":{{"prompt_tokens":{prompt},"completion_tokens":2}}}}"#
        )
    };
    let of = |models: [&str; 2]| {
        let answers = [answer(models[0], 10), answer(models[1], 30)];
        plain(ChatCompletions, &format!(" [ {} ] ", answers.join(" , ")))
    };
    let observed = of(["m", "m"]);
    assert_eq!(observed.usage.input_tokens, Some(40));
    assert_eq!(observed.usage.output_tokens, Some(4));
    assert_eq!(observed.usage_state, UsageState::Final);
    assert_eq!(observed.model, some("m"));
    assert_eq!(of(["m", "n"]).model, some("m,n"));
    let three = ["m", "n", "m"].map(|model| answer(model, 1)).join(",");
    let three = plain(ChatCompletions, &format!("[{three}]"));
    assert_eq!(three.model, some("m,n"));
    let among = plain(
        ChatCompletions,
        &format!(r#"["x,", {}, 1, [2]]"#, answer("m", 10)),
    );
    assert_eq!(
        (among.usage.input_tokens, among.model),
        (Some(10), some("m"))
    );
    let cut = format!("[{},{}", answer("m", 10), &answer("m", 30)[..40]);
    assert_eq!(
        plain(ChatCompletions, &cut).usage_state,
        UsageState::Partial
    );
    assert_eq!(plain(ChatCompletions, "[]").usage_state, UsageState::None);
}

#[test]
fn the_answers_of_a_list_are_added_up_with_what_stands_within_them() {
    let twice = |endpoint, answer: &str| {
        let told = plain(endpoint, &format!("[{answer},{answer}]"));
        in_and_out(told.usage)
    };
    let compacted = r#"{"id":"m","usage":{"input_tokens":10,"output_tokens":1,"iterations":[{"type":"compaction","input_tokens":900,"output_tokens":30},{"type":"message","input_tokens":10,"output_tokens":1}]}}"#;
    assert_eq!(twice(Messages, compacted), [1820, 62].map(Some));
    let in_choice =
        r#"{"id":"c","choices":[{"usage":{"prompt_tokens":10,"completion_tokens":2}}]}"#;
    assert_eq!(twice(ChatCompletions, in_choice), [20, 4].map(Some));
}

#[test]
fn a_plain_response_has_its_facts_at_the_top() {
    let body = &COMPLETED[r#"{"type":"response.completed","response":"#.len()..COMPLETED.len() - 1];
    let expected = Observed {
        terminal_event: None,
        ..completed()
    };
    assert_eq!(plain(Responses, body), expected);
    assert_eq!(plain(Endpoint::ResponsesCompact, body), expected);
    let cut = plain(Responses, &body[..body.len() - 1]);
    assert_eq!(cut.usage_state, UsageState::Partial);
    assert!(cut.lacks_end);
    assert_eq!(
        (cut.usage, cut.served_tier),
        (expected.usage, expected.served_tier)
    );
}

#[test]
fn a_plain_answer_may_have_failed_or_be_still_to_be_made() {
    let failed = r#"{"status":"failed","error":{"code":"x"},"usage":null}"#;
    assert!(plain(Responses, failed).failed);
    assert!(plain(Messages, r#"{"type":"error","error":{"type":"x"}}"#).failed);
    let queued = r#"{"id":"r","status":"queued","service_tier":"auto","usage":null}"#;
    let expected = Observed {
        response_id: some("r"),
        usage_state: UsageState::Deferred,
        ..Observed::default()
    };
    assert_eq!(plain(Responses, queued), expected);
    assert_eq!(plain(Responses, "<html>"), Observed::default());
    assert_eq!(plain(Responses, ""), Observed::default());
}

const CHUNK: &str = r#"{"id":"c1","model":"gpt","service_tier":"priority","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}],"usage":null}"#;
const USED: &str = r#"{"id":"c1","model":"gpt","choices":[],"usage":{"prompt_tokens":19,"completion_tokens":10,"prompt_tokens_details":{"cached_tokens":8,"cache_write_tokens":1},"completion_tokens_details":{"reasoning_tokens":4}}}"#;

#[test]
fn a_chat_stream_tells_its_usage_in_one_chunk_and_its_tier_in_any() {
    let expected = Observed {
        usage: usage([19, 8, 1, 10, 4]),
        usage_state: UsageState::Final,
        served_tier: some("default"),
        response_id: some("c1"),
        model: some("gpt"),
        terminal_event: some("[DONE]"),
        ..Observed::default()
    };
    let default = CHUNK.replace("priority", "default");
    let odd = CHUNK.replace("\"priority\"", "null");
    let observed = stream(ChatCompletions, &[CHUNK, &default, &odd, USED, "[DONE] "]);
    assert_eq!(observed, expected);
}

#[test]
fn a_chat_stream_ends_with_done_or_a_finish_reason() {
    let finished = CHUNK.replace(r#""finish_reason":null"#, r#""finish_reason":"stop""#);
    let observed = stream(ChatCompletions, &[CHUNK, &finished, USED]);
    assert!(!observed.lacks_end);
    assert_eq!(observed.usage_state, UsageState::Final);
    assert_eq!(observed.terminal_event, None);
    let cut = stream(ChatCompletions, &[&finished, &USED[..USED.len() - 1]]);
    assert_eq!(cut.usage_state, UsageState::Partial);
    let cut = stream(ChatCompletions, &[CHUNK, USED]);
    assert!(cut.lacks_end);
    assert_eq!(cut.usage_state, UsageState::Partial);
}

#[test]
fn a_reason_that_says_nothing_ends_no_stream() {
    let counted = CHUNK.replacen(
        '{',
        r#"{"usage":{"prompt_tokens":9,"completion_tokens":2},"#,
        1,
    );
    for nothing in [r#""""#, r#""null""#, r#"" ""#, "null", "0", "false"] {
        let chunk = counted.replace(
            r#""finish_reason":null"#,
            &format!(r#""finish_reason":{nothing}"#),
        );
        let delta = MESSAGE_DELTA.replace(r#""end_turn""#, nothing);
        for observed in [
            stream(ChatCompletions, &[&chunk, &chunk]),
            stream(Messages, &[MESSAGE_START, &delta]),
        ] {
            assert_eq!(observed.usage_state, UsageState::Partial, "{nothing}");
            assert!(observed.lacks_end, "{nothing}");
        }
    }
}

#[test]
fn a_finish_reason_elsewhere_ends_no_chat_stream() {
    for decoy in [
        r#"{"finish_reason":"stop"}"#,
        r#"{"choices":{"a":[{"finish_reason":"stop"}]}}"#,
        r#"{"choices":null,"a":[{"finish_reason":"stop"}]}"#,
        r#"{"choices":[{"delta":{"finish_reason":"stop"}}]}"#,
        r#"{"choices":[{"delta":"\"finish_reason\":\"stop\""}]}"#,
        r#"{"a":[{"choices":[{"finish_reason":"stop"}]}]}"#,
        r#"{"choices":[],"a":[{"finish_reason":"stop"}]}"#,
        r#"{"choices":[{"finish_reason":"stop"}]"#,
        r#""[DONE]""#,
        "[DONE][DONE]",
        "[DONE",
    ] {
        assert!(stream(ChatCompletions, &[decoy]).lacks_end, "{decoy}");
    }
}

#[test]
fn a_plain_chat_completion_is_read_as_a_chunk_is() {
    let observed = plain(
        ChatCompletions,
        &USED.replacen('{', r#"{"service_tier":"flex","#, 1),
    );
    assert_eq!(observed.usage, usage([19, 8, 1, 10, 4]));
    assert_eq!(observed.usage_state, UsageState::Final);
    assert_eq!(observed.served_tier, some("flex"));
}

const MESSAGE_START: &str = r#"{"type":"message_start","message":{"id":"msg_1","type":"message","model":"claude","content":[],"usage":{"input_tokens":25,"cache_creation_input_tokens":10,"cache_read_input_tokens":5,"output_tokens":1,"service_tier":"standard"}}}"#;
const MESSAGE_DELTA: &str = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"cache_read_input_tokens":6,"output_tokens":15}}"#;
const MESSAGE_STOP: &str = r#"{"type":"message_stop"}"#;

fn message() -> Observed {
    Observed {
        usage: Usage {
            input_tokens: Some(41),
            cached_input_tokens: Some(6),
            cache_write_tokens: Some(10),
            cache_write_long_tokens: None,
            output_tokens: Some(15),
            reasoning_tokens: None,
        },
        usage_state: UsageState::Final,
        served_tier: some("standard"),
        response_id: some("msg_1"),
        model: some("claude"),
        terminal_event: some("message_stop"),
        ..Observed::default()
    }
}

#[test]
fn the_counts_of_a_message_are_merged_and_its_input_includes_the_cache() {
    let events = [
        MESSAGE_START,
        r#"{"type":"ping"}"#,
        MESSAGE_DELTA,
        MESSAGE_STOP,
    ];
    assert_eq!(stream(Messages, &events), message());
    let body = r#"{"id":"msg_1","type":"message","model":"claude","usage":{"input_tokens":25,"cache_creation_input_tokens":10,"cache_read_input_tokens":6,"output_tokens":15,"service_tier":"standard"}}"#;
    let expected = Observed {
        terminal_event: None,
        ..message()
    };
    assert_eq!(plain(Messages, body), expected);
}

#[test]
fn a_message_ends_with_its_stop_or_the_reason_for_it() {
    let expected = Observed {
        terminal_event: some("message_delta"),
        ..message()
    };
    assert_eq!(stream(Messages, &[MESSAGE_START, MESSAGE_DELTA]), expected);
    let going_on = MESSAGE_DELTA.replace("\"end_turn\"", "null");
    let expected = Observed {
        terminal_event: None,
        usage_state: UsageState::Partial,
        lacks_end: true,
        ..message()
    };
    assert_eq!(stream(Messages, &[MESSAGE_START, &going_on]), expected);
}

#[test]
fn a_message_in_fast_mode_was_served_fast() {
    let fast = MESSAGE_START.replace("\"standard\"", r#""standard","speed":"Fast""#);
    assert_eq!(stream(Messages, &[&fast]).served_tier, some("Fast"));
    let slow = MESSAGE_START.replace("\"standard\"", r#""priority","speed":"standard""#);
    assert_eq!(stream(Messages, &[&slow]).served_tier, some("priority"));
}

#[test]
fn a_standard_speed_is_the_tier_of_a_message_that_names_none() {
    for (tier, served) in [
        (r#""speed":"Standard""#, some("Standard")),
        (
            r#""service_tier":"auto","speed":"standard""#,
            some("standard"),
        ),
        (r#""service_tier":null,"speed":"120 tokens/s""#, None),
        (
            r#""service_tier":"batch","speed":"standard""#,
            some("batch"),
        ),
    ] {
        let body = format!(r#"{{"id":"m","usage":{{"input_tokens":1,"output_tokens":2,{tier}}}}}"#);
        assert_eq!(plain(Messages, &body).served_tier, served, "{tier}");
    }
}

#[test]
fn only_endpoints_with_a_tier_are_observed() {
    assert!(ResponseObserver::new(Other, true, &HeaderMap::new()).is_none());
    assert!(!observe(Extra, true, b"data: {}\n\n", 1).lacks_end);
    assert!(observe(Responses, true, b"", 1).lacks_end);
}

fn coded(value: &str) -> HeaderMap {
    let value = value.parse().expect("a header value");
    HeaderMap::from_iter([(CONTENT_ENCODING, value)])
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).expect("a vector takes all");
    encoder.finish().expect("a vector takes all")
}

#[test]
fn a_coded_body_is_decoded_on_the_side() {
    let body = gzip(format!("data: {COMPLETED}\n\n").as_bytes());
    for step in [1, 7, body.len()] {
        let mut observer =
            ResponseObserver::new(Responses, true, &coded("identity, GZip")).unwrap();
        body.chunks(step).for_each(|chunk| observer.feed(chunk));
        assert_eq!(told(observer.finish()), completed());
    }
}

#[test]
fn a_body_that_has_not_the_coding_it_names_is_read_as_it_is() {
    let event = format!("data: {COMPLETED}\n\n");
    let bodies = [event.clone(), format!("\u{feff}\r\n: c\n{event}")];
    for (body, step) in bodies
        .iter()
        .flat_map(|body| [(body, 1), (body, usize::MAX)])
    {
        for coding in ["gzip", "deflate", "zstd", "none", "UTF-8", "gzip, br"] {
            let mut observer = ResponseObserver::new(Responses, true, &coded(coding)).unwrap();
            observer.feed(b"");
            body.as_bytes()
                .chunks(step)
                .for_each(|piece| observer.feed(piece));
            assert_eq!(told(observer.finish()), completed(), "{coding}");
        }
    }
    // Of what is neither, nothing is seen, so that it proves nothing.
    let mut observer = ResponseObserver::new(Responses, true, &coded("gzip")).unwrap();
    observer.feed(b"\xab\x56\x4a");
    assert!(!observer.finish().lacks_end);
}

#[test]
fn what_was_seen_of_a_broken_coding_stands() {
    let mut body = gzip(format!("data: {COMPLETED}\n\n").as_bytes());
    body.extend_from_slice(b"behind its end");
    let mut observer = ResponseObserver::new(Responses, true, &coded("gzip")).unwrap();
    observer.feed(&body);
    observer.feed(&body);
    assert_eq!(told(observer.finish()), completed());
    let mut observer = ResponseObserver::new(Responses, true, &coded("br")).unwrap();
    observer.feed(b"\xff\xff\xff no brotli");
    assert_eq!(told(observer.finish()), Observed::default());
}

#[test]
fn an_answer_that_is_plain_under_a_word_that_is_no_coding_is_observed() {
    let event = format!("data: {COMPLETED}\n\n");
    let document =
        &COMPLETED[r#"{"type":"response.completed","response":"#.len()..COMPLETED.len() - 1];
    for coding in ["none", "UTF-8", "aws-chunked", "lzma", "gzip, br", "\u{e9}"] {
        let seen = |event_stream: bool, body: &[u8], step: usize| {
            let observer = ResponseObserver::new(Responses, event_stream, &coded(coding));
            let mut observer = observer.unwrap();
            body.chunks(step).for_each(|piece| observer.feed(piece));
            observer.finish()
        };
        for step in [1, 7, usize::MAX] {
            let streamed = told(seen(true, event.as_bytes(), step));
            assert_eq!(streamed, completed(), "{coding}");
            let whole = seen(false, document.as_bytes(), step);
            assert_eq!(whole.usage, completed().usage, "{coding}");
        }
    }
    let refusal = br#"{"error":{"code":"invalid_value","param":"service_tier"}}"#;
    assert!(refuses_tier(Responses, 400, &coded("none"), refusal));
}

#[test]
fn an_answer_whose_coding_cannot_be_read_proves_nothing() {
    for value in ["lzma", "gzip, br", "\u{e9}"] {
        let mut observer = ResponseObserver::new(Responses, true, &coded(value)).unwrap();
        observer.feed(b"\xfd7zXZ");
        assert_eq!(observer.finish(), Observed::default(), "{value}");
    }
}

/// An event by what it says alone, and not by what it adds to its response.
fn message_of(observer: &mut EventObserver, text: &str, step: usize) -> Event {
    let pieces = text.as_bytes().chunks(step);
    pieces.for_each(|piece| observer.feed(piece));
    Event {
        tally: Tally::default(),
        ..observer.end()
    }
}

#[test]
fn the_messages_of_a_websocket_are_told_one_by_one() {
    let lane = COMPLETED.replace("}}}", r#"}},"stream_id":"s2"}"#);
    for step in [1, 5, usize::MAX] {
        let mut observer = EventObserver::new();
        let created = Event {
            kind: some("response.created"),
            response_id: some("resp_0"),
            ..Event::default()
        };
        assert_eq!(message_of(&mut observer, CREATED, step), created);
        let delta = r#"{"stream_id":"s1","type":"response.output_text.delta","delta":"x"}"#;
        let event = Event {
            kind: some("response.output_text.delta"),
            ..Event::default()
        };
        assert_eq!(message_of(&mut observer, delta, step), event);
        let late =
            r#"{"n":1,"type":"response.output_text.delta","stream_id":"s1","response":{"id":"r"}}"#;
        assert_eq!(message_of(&mut observer, late, step), event);
        let ended = Event {
            kind: some("response.completed"),
            response_id: some("resp_1"),
            stream_id: some("s2"),
            observed: Some(Observed {
                settled: true,
                ..completed()
            }),
            ..Event::default()
        };
        assert_eq!(message_of(&mut observer, &lane, step), ended);
        assert_eq!(message_of(&mut observer, "x", step), Event::default());
    }
}

#[test]
fn an_error_on_a_websocket_refuses_a_tier_unless_its_status_is_the_servers() {
    for (status, names_tier) in [
        ("", true),
        (r#""status":400,"#, true),
        (r#""status_code":429,"#, true),
        (r#""status":500,"#, false),
        (r#""status_code":503,"#, false),
    ] {
        let error = format!(
            r#"{{"type":"error",{status}"error":{{"code":"x","param":"service_tier","status":1}}}}"#
        );
        let event = message_of(&mut EventObserver::new(), &error, 3);
        assert_eq!(event.kind, some("error"));
        let observed = event.observed.expect("an error ends the response");
        assert!(observed.failed);
        assert_eq!(observed.error_names_tier, names_tier, "{status}");
        assert_eq!(observed.terminal_event, some("error"));
    }
}

#[test]
fn an_observer_may_be_sent_and_shared() {
    fn check<T: Send + Sync + 'static>() {}
    check::<ResponseObserver>();
    check::<EventObserver>();
}

// What comes is told by its first bytes.

fn completed_stream() -> String {
    format!("event: response.completed\ndata: {COMPLETED}\n\n")
}

#[test]
fn the_first_bytes_tell_a_stream_from_a_document_whatever_the_header_says() {
    let response =
        &COMPLETED[r#"{"type":"response.completed","response":"#.len()..COMPLETED.len() - 1];
    for opening in [
        "",
        "\u{feff}",
        "\r\n\n",
        ": hello\n\n",
        "retry: 1\n",
        "id: 1\n",
        ":\n\n",
    ] {
        for event_stream in [true, false] {
            let body = format!("{opening}{}", completed_stream());
            assert_eq!(
                observe_cut(Responses, event_stream, &body),
                completed(),
                "{opening:?}"
            );
            let whole = observe(Responses, event_stream, body.as_bytes(), 1);
            assert_eq!((whole.event_stream, whole.settled), (Some(true), true));
        }
    }
    for opening in ["", "\u{feff}", " \n\t", "\u{feff} "] {
        for event_stream in [true, false] {
            let body = format!("{opening}{response}");
            let expected = Observed {
                terminal_event: None,
                ..completed()
            };
            assert_eq!(
                observe_cut(Responses, event_stream, &body),
                expected,
                "{opening:?}"
            );
            let whole = observe(Responses, event_stream, body.as_bytes(), 1);
            assert_eq!(whole.event_stream, Some(false));
        }
    }
}

#[test]
fn where_the_first_bytes_are_neither_the_header_counts() {
    for body in ["<html>", "eve", "\u{feff}", "dat\n\n"] {
        assert!(observe_cut(Responses, true, body).lacks_end, "{body}");
        assert_eq!(
            observe_cut(Responses, false, body),
            Observed::default(),
            "{body}"
        );
    }
    assert_eq!(observe(Responses, true, b" \n", 1).event_stream, None);
}

#[test]
fn a_json_error_in_the_place_of_a_stream_is_an_error_and_no_cut() {
    let error = r#"{"error":{"message":"no","type":"invalid_request_error","code":null}}"#;
    for endpoint in [Responses, ChatCompletions, Messages] {
        for body in [error.to_owned(), format!("data: {error}\n\n")] {
            let observed = observe_cut(endpoint, true, &body);
            assert!(observed.failed && !observed.lacks_end, "{body}");
            assert_eq!(
                observed.error.as_deref(),
                Some("invalid_request_error"),
                "{body}"
            );
        }
    }
    let named = "event: error\ndata: {\"message\":\"no\",\"code\":\"c\"}\n\n";
    for endpoint in [Responses, ChatCompletions, Messages] {
        let observed = observe_cut(endpoint, true, named);
        assert!(observed.failed && !observed.lacks_end);
        assert_eq!(observed.error.as_deref(), Some("c"));
    }
}

#[test]
fn the_type_may_stand_in_the_event_line_alone() {
    let data = COMPLETED.replace(r#""type":"response.completed","#, "");
    let created = CREATED.replace(r#""type":"response.created","#, "");
    let body = format!(
        "event: response.created\ndata: {created}\n\ndata: {data}\nevent: response.completed\n\n"
    );
    assert_eq!(observe_cut(Responses, true, &body), completed());
    // The data have the last word.
    let body = format!("event: response.created\ndata: {COMPLETED}\n\n");
    assert_eq!(observe_cut(Responses, true, &body), completed());
    let body = format!("event: response.output_item.done\ndata: {data}\n\n");
    let observed = observe_cut(Responses, true, &body);
    assert_eq!(
        (observed.usage, observed.lacks_end),
        (Usage::default(), true)
    );
    let start = MESSAGE_START.replace(r#""type":"message_start","#, "");
    let delta = MESSAGE_DELTA.replace(r#""type":"message_delta","#, "");
    let body = format!(
        "event: message_start\ndata: {start}\n\nevent: message_delta\ndata: {delta}\n\nevent: message_stop\ndata: {{}}\n\n"
    );
    assert_eq!(observe_cut(Messages, true, &body), message());
}

#[test]
fn a_response_ends_by_any_of_its_terminal_events() {
    for name in ["done", "cancelled", "canceled"] {
        let kind = format!("response.{name}");
        let event = COMPLETED.replace("response.completed", &kind);
        let expected = Observed {
            terminal_event: Some(kind),
            ..completed()
        };
        assert_eq!(stream(Responses, &[&event]), expected);
    }
    let failed = COMPLETED.replace("response.completed", "response.done");
    let failed = failed.replace("\"completed\"", "\"failed\"");
    assert!(stream(Responses, &[&failed]).failed);
}

#[test]
fn an_error_counts_where_it_says_something() {
    for nothing in [
        r#"{"message":"","type":"","param":"","code":null}"#,
        "{}",
        r#""""#,
        "null",
        "false",
        "0",
        r#"{"code":0}"#,
        r#"{"param":"x"}"#,
        "[]",
    ] {
        let body = format!(r#"{{"id":"c","error":{nothing}}}"#);
        for endpoint in [Responses, ChatCompletions, Messages] {
            let observed = plain(endpoint, &body);
            assert!(!observed.failed && observed.error.is_none(), "{nothing}");
            let observed = stream(endpoint, &[&body]);
            assert!(!observed.failed, "{nothing}");
        }
    }
    for (something, name) in [
        (r#"{"message":"m"}"#, None),
        (r#"{"type":"t","message":""}"#, Some("t")),
        (r#"{"type":"t","code":"c"}"#, Some("c")),
        (r#"{"code":429}"#, Some("429")),
        (r#""no""#, None),
    ] {
        let body = format!(r#"{{"error":{something}}}"#);
        for endpoint in [Responses, ChatCompletions, Messages] {
            let observed = plain(endpoint, &body);
            assert!(observed.failed, "{something}");
            assert_eq!(observed.error.as_deref(), name, "{something}");
        }
    }
}

#[test]
fn the_error_of_a_failed_response_is_told() {
    let failed = r#"{"type":"response.failed","response":{"id":"r","status":"failed","error":{"code":"\u00e9","message":"m"}}}"#;
    assert_eq!(stream(Responses, &[failed]).error, some("\u{e9}"));
    let event = r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#;
    assert_eq!(
        stream(Messages, &[event]).error.as_deref(),
        Some("overloaded_error")
    );
    let flat = r#"{"type":"error","code":"server_error","message":"x","param":null}"#;
    assert_eq!(
        stream(Responses, &[flat]).error.as_deref(),
        Some("server_error")
    );
}

#[test]
fn a_refusal_of_the_tier_names_it() {
    let refusals = [
        r#"{"error":{"message":"no","param":"service_tier","code":"unsupported_value"}}"#,
        r#"{"error":{"message":"Unknown parameter: 'service_tier'.","code":null}}"#,
        r#"{"error":{"code":"service_tier_not_available"}}"#,
        r#"{"detail":"Unsupported parameter: service_tier"}"#,
        r#"{"object":"error","message":"Service_Tier: Extra inputs are not permitted","code":400}"#,
        r#"{"type":"error","error":{"type":"invalid_request_error","message":"service_tier: no"}}"#,
    ];
    let others = [
        r#"{"error":{"message":"no","param":"model"}}"#,
        r#"{"service_tier":"priority","error":{"message":"no"}}"#,
        r#"{"error":{"message":"no","service_tier":"x"}}"#,
        "<html>service_tier</html>",
        "",
    ];
    for endpoint in [Responses, ChatCompletions, Messages] {
        let refuses =
            |status, body: &str| refuses_tier(endpoint, status, &HeaderMap::new(), body.as_bytes());
        for body in refusals {
            assert!(refuses(400, body) && !refuses(500, body), "{body}");
            let listed = format!("[{body}]");
            assert!(refuses(400, &listed) && !refuses(500, &listed), "{listed}");
            assert!(plain(endpoint, &listed).failed == plain(endpoint, body).failed);
        }
        for body in others {
            assert!(!refuses(400, body), "{body}");
        }
    }
}

#[test]
fn auto_says_nothing_of_the_tier() {
    let auto = COMPLETED.replace("priority", " Auto ");
    assert_eq!(stream(Responses, &[&auto]).served_tier, None);
    let auto = CHUNK.replace("priority", "auto");
    let observed = stream(ChatCompletions, &[CHUNK, &auto, "[DONE]"]);
    assert_eq!(observed.served_tier.as_deref(), Some("priority"));
}

// Counts.

fn chat_usage(usage: &str) -> Usage {
    let body = format!(r#"{{"id":"c","choices":[],"usage":{usage}}}"#);
    let streamed = stream(ChatCompletions, &[&body, "[DONE]"]).usage;
    let told = plain(ChatCompletions, &body).usage;
    assert_eq!(told, streamed);
    told
}

#[test]
fn cache_writes_are_read_in_the_spellings_of_compatible_upstreams() {
    for (upstream, usage, long) in [
        (
            "LiteLLM",
            r#""prompt_tokens_details":{"cache_creation_tokens":60,"cache_creation_token_details":{"ephemeral_5m_input_tokens":20,"ephemeral_1h_input_tokens":40}}"#,
            Some(40),
        ),
        (
            "new-api",
            r#""prompt_tokens_details":{"cached_creation_tokens":60},"claude_cache_creation_5_m_tokens":20,"claude_cache_creation_1_h_tokens":40"#,
            Some(40),
        ),
        (
            "Qwen",
            r#""prompt_tokens_details":{"cache_creation_input_tokens":60,"cache_creation":{"ephemeral_5m_input_tokens":60}}"#,
            None,
        ),
    ] {
        let told = chat_usage(&format!(
            r#"{{"prompt_tokens":100,"completion_tokens":7,"total_tokens":107,{usage}}}"#
        ));
        assert_eq!(told.cache_write_tokens, Some(60), "{upstream}");
        let told_long = told.cache_write_long_tokens.filter(|count| *count > 0);
        assert_eq!(told_long, long, "{upstream}");
    }
}

#[test]
fn groq_tells_the_usage_of_a_stream_beside_it() {
    let last = r#"{"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"x_groq":{"id":"r","usage":{"prompt_tokens":10,"completion_tokens":3}}}"#;
    let told = stream(ChatCompletions, &[last, "[DONE]"]);
    assert_eq!(told.usage.input_tokens, Some(10));
    assert_eq!(told.usage_state, UsageState::Final);
}

#[test]
fn zeros_at_the_end_take_no_count_of_a_response_away() {
    let under_way = r#"{"type":"response.in_progress","response":{"id":"r","usage":{"input_tokens":5,"output_tokens":1}}}"#;
    let end = r#"{"type":"response.completed","response":{"id":"r","status":"completed","usage":{"input_tokens":0,"output_tokens":0}}}"#;
    let told = stream(Responses, &[under_way, end]).usage;
    assert_eq!(in_and_out(told), [5, 1].map(Some));
}

#[test]
fn zeros_alone_are_no_usage_but_of_a_response_without_output() {
    let zeros = r#""usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0,"input_tokens":0,"output_tokens":0}"#;
    let none = (Usage::default(), UsageState::None);
    let counted = |observed: Observed| (observed.usage, observed.usage_state);
    let body = format!(r#"{{"id":"x","status":"completed","output":[{{}}],"choices":[],{zeros}}}"#);
    for endpoint in [Responses, ChatCompletions, Messages, Extra] {
        assert_eq!(counted(plain(endpoint, &body)), none, "{endpoint:?}");
    }
    assert_eq!(
        counted(media("/v1/images/generations", &body).unwrap()),
        none
    );
    let finished = CHUNK.replace(r#""finish_reason":null"#, r#""finish_reason":"stop""#);
    assert_eq!(
        counted(stream(ChatCompletions, &[&finished, &body, "[DONE]"])),
        none
    );
    let start = format!(r#"{{"type":"message_start","message":{{"id":"m",{zeros}}}}}"#);
    let delta = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":0}}"#;
    assert_eq!(
        counted(stream(Messages, &[&start, delta, MESSAGE_STOP])),
        none
    );
    let delta = r#"{"type":"response.output_text.delta","delta":"x"}"#;
    let end = format!(r#"{{"type":"response.completed","response":{{"id":"r",{zeros}}}}}"#);
    assert_eq!(counted(stream(Responses, &[delta, &end])), none);
    let created = r#"{"type":"response.created","response":{"id":"r","usage":null}}"#;
    let warm_up = stream(Responses, &[created, &end]);
    assert_eq!(in_and_out(warm_up.usage), [0, 0].map(Some));
    assert_eq!(warm_up.usage_state, UsageState::Final);
}

#[test]
fn cache_hits_are_read_in_the_spellings_of_compatible_upstreams() {
    for (upstream, usage) in [
        (
            "OpenAI, OpenRouter, vLLM, xAI, Gemini, Mistral",
            r#""prompt_tokens_details":{"cached_tokens":40}"#,
        ),
        (
            "DeepSeek",
            r#""prompt_cache_hit_tokens":40,"prompt_cache_miss_tokens":60"#,
        ),
        ("Moonshot", r#""cached_tokens":40"#),
        (
            "Mistral",
            r#""num_cached_tokens":40,"prompt_token_details":{"cached_tokens":40}"#,
        ),
        (
            "Mistral, the singular alone",
            r#""prompt_token_details":{"cached_tokens":40}"#,
        ),
        (
            "LiteLLM",
            r#""cache_read_input_tokens":40,"cache_creation_input_tokens":0"#,
        ),
        (
            "new-api",
            r#""prompt_tokens_details":{"cached_tokens":0},"input_tokens":0,"input_tokens_details":null,"prompt_cache_hit_tokens":40"#,
        ),
    ] {
        let usage =
            format!(r#"{{"prompt_tokens":100,"completion_tokens":7,"total_tokens":107,{usage}}}"#);
        let told = chat_usage(&usage);
        assert_eq!(told.cached_input_tokens, Some(40), "{upstream}");
        assert_eq!(in_and_out(told), [100, 7].map(Some), "{upstream}");
    }
    let written = r#"{"prompt_tokens":100,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":1,"cache_write_tokens":9}}"#;
    assert_eq!(chat_usage(written).cache_write_tokens, Some(9));
}

#[test]
fn the_other_api_s_names_count_where_its_own_say_nothing() {
    let told = chat_usage(
        r#"{"prompt_tokens":0,"completion_tokens":0,"input_tokens":5,"output_tokens":6,"output_tokens_details":{"reasoning_tokens":2}}"#,
    );
    assert_eq!(in_and_out(told), [5, 6].map(Some));
    assert_eq!(told.reasoning_tokens, Some(2));
    let body = r#"{"usage":{"prompt_tokens":5,"completion_tokens":6,"input_tokens":7}}"#;
    let told = plain(Responses, body).usage;
    assert_eq!(in_and_out(told), [7, 6].map(Some));
}

#[test]
fn what_an_upstream_counts_beside_its_counts_is_in_its_total() {
    // As reported of Grok 4.20, grok-3-mini, and of Gemini 2.5 Flash by its OpenAI door.
    let grok = chat_usage(
        r#"{"prompt_tokens":10120,"completion_tokens":1499,"total_tokens":14428,"prompt_tokens_details":{"cached_tokens":128},"completion_tokens_details":{"reasoning_tokens":2809}}"#,
    );
    assert_eq!(in_and_out(grok), [10_120, 4308].map(Some));
    let gemini =
        chat_usage(r#"{"completion_tokens":744,"prompt_tokens":1469,"total_tokens":2496}"#);
    assert_eq!(gemini.output_tokens, Some(1027));
    let cache_beside = chat_usage(
        r#"{"prompt_tokens":10,"completion_tokens":5,"total_tokens":55,"cache_read_input_tokens":40}"#,
    );
    assert_eq!(in_and_out(cache_beside), [50, 5].map(Some));
    let openai = chat_usage(
        r#"{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"completion_tokens_details":{"reasoning_tokens":4}}"#,
    );
    assert_eq!(openai.output_tokens, Some(5));
    for told in [
        r#"{"prompt_tokens":0,"completion_tokens":7,"total_tokens":107}"#,
        r#"{"completion_tokens":7,"total_tokens":107}"#,
        r#"{"prompt_tokens":10,"completion_tokens":7,"total_tokens":3}"#,
    ] {
        assert_eq!(chat_usage(told).output_tokens, Some(7), "{told}");
    }
}

/// The same counts in the names of chat.
fn as_chat(usage: &str) -> String {
    usage
        .replace("input_tokens", "prompt_tokens")
        .replace("output_tokens", "completion_tokens")
}

#[test]
fn what_the_total_has_beyond_the_counts_is_output_unless_it_is_the_cache() {
    for (usage, counts) in [
        (
            r#""input_tokens":21,"output_tokens":0,"total_tokens":81,"output_tokens_details":{"reasoning_tokens":60}"#,
            [21, 60],
        ),
        (
            r#""input_tokens":100,"output_tokens":20,"total_tokens":160"#,
            [100, 60],
        ),
        (
            r#""input_tokens":100,"output_tokens":20,"total_tokens":160,"output_tokens_details":{"reasoning_tokens":10}"#,
            [100, 60],
        ),
        (
            r#""input_tokens":100,"output_tokens":20,"total_tokens":160,"input_tokens_details":{"cached_tokens":40}"#,
            [140, 20],
        ),
        (
            r#""input_tokens":100,"output_tokens":20,"total_tokens":170,"input_tokens_details":{"cached_tokens":40},"output_tokens_details":{"reasoning_tokens":10}"#,
            [140, 30],
        ),
        (
            r#""input_tokens":100,"output_tokens":20,"total_tokens":175,"input_tokens_details":{"cached_tokens":40},"output_tokens_details":{"reasoning_tokens":10}"#,
            [100, 75],
        ),
        (
            r#""input_tokens":100,"output_tokens":20,"total_tokens":120,"input_tokens_details":{"cached_tokens":40},"output_tokens_details":{"reasoning_tokens":10}"#,
            [100, 20],
        ),
        (
            r#""input_tokens":100,"output_tokens":20,"total_tokens":90"#,
            [100, 20],
        ),
    ] {
        let body = format!(r#"{{"id":"r","usage":{{{usage}}}}}"#);
        let event = format!(r#"{{"type":"response.completed","response":{body}}}"#);
        for told in [
            plain(Responses, &body).usage,
            stream(Responses, &[&event]).usage,
            chat_usage(&as_chat(&format!("{{{usage}}}"))),
        ] {
            assert_eq!(in_and_out(told), counts.map(Some), "{usage}");
        }
    }
    // What is charged for by the minute is in the total only.
    let sound = r#"{"text":"x","usage":{"prompt_audio_seconds":203,"prompt_tokens":4,"total_tokens":3264,"completion_tokens":635}}"#;
    let told = media("/v1/audio/transcriptions", sound).unwrap().usage;
    assert_eq!(in_and_out(told), [4, 635].map(Some));
}

#[test]
fn tokens_of_an_orchestration_are_added_to_the_counts() {
    let counts = r#""input_tokens":5000,"input_tokens_details":{"cached_tokens":4000,"orchestration_input_tokens":5629,"orchestration_input_cached_tokens":7},"output_tokens":50,"output_tokens_details":{"reasoning_tokens":10,"orchestration_output_tokens":7}"#;
    for usage in [
        format!("{{{counts}}}"),
        format!(r#"{{{counts},"total_tokens":10686}}"#),
    ] {
        for told in [
            plain(Responses, &format!(r#"{{"id":"r","usage":{usage}}}"#)).usage,
            chat_usage(
                &as_chat(&usage)
                    .replace("orchestration_prompt", "orchestration_input")
                    .replace("orchestration_completion", "orchestration_output"),
            ),
        ] {
            assert_eq!(in_and_out(told), [10_629, 57].map(Some), "{usage}");
            assert_eq!(told.cached_input_tokens, Some(4007));
        }
    }
}

#[test]
fn moonshot_tells_its_usage_in_the_last_choice() {
    let last = r#"{"id":"c1","choices":[{"index":0,"delta":{},"finish_reason":"stop","usage":{"prompt_tokens":1336,"completion_tokens":31,"total_tokens":1367,"cached_tokens":1280}}]}"#;
    let observed = stream(ChatCompletions, &[CHUNK, last, "[DONE]"]);
    assert_eq!(in_and_out(observed.usage), [1336, 31].map(Some));
    assert_eq!(observed.usage.cached_input_tokens, Some(1280));
    assert_eq!(observed.usage_state, UsageState::Final);
}

#[test]
fn what_each_choice_tells_is_added_up_and_their_prompt_counts_once() {
    let choice = |index: &str, output: u64, reasoning: u64| {
        format!(
            r#"{{"id":"c1","choices":[{{{index}"delta":{{}},"finish_reason":"stop","usage":{{"prompt_tokens":1000,"completion_tokens":{output},"cached_tokens":400,"completion_tokens_details":{{"reasoning_tokens":{reasoning}}}}}}}]}}"#
        )
    };
    let [first, second] = [
        choice(r#""index":0,"#, 20, 4),
        choice(r#""index":1,"#, 30, 5),
    ];
    let early = choice(r#""index":1,"#, 7, 1);
    let unnamed = choice("", 20, 4);
    let far = choice(r#""index":18446744073709551615,"#, 30, 5);
    let zeros = r#"{"id":"c1","choices":[],"usage":{"prompt_tokens":0,"completion_tokens":0}}"#;
    for chunks in [
        vec![&*first, &second],
        vec![&second, &first],
        // What one choice tells is cumulative.
        vec![&early, &first, &second, &second],
        vec![&unnamed, &second, zeros],
        vec![&first, &far],
    ] {
        let observed = stream(ChatCompletions, &[&chunks[..], &["[DONE]"]].concat());
        let told = observed.usage;
        assert_eq!(in_and_out(told), [1000, 50].map(Some), "{chunks:?}");
        assert_eq!(told.cached_input_tokens, Some(400), "{chunks:?}");
        assert_eq!(told.reasoning_tokens, Some(9), "{chunks:?}");
    }
    // The usage of the answer is that of all its choices.
    let all = r#"{"id":"c1","choices":[],"usage":{"prompt_tokens":1000,"completion_tokens":51}}"#;
    for chunks in [[&*first, all, &second], [&*first, &second, all]] {
        let told = stream(ChatCompletions, &chunks).usage;
        assert_eq!(in_and_out(told), [1000, 51].map(Some), "{chunks:?}");
    }
}

#[test]
fn a_zero_that_comes_late_takes_no_count_away() {
    let zeros = r#"{"id":"c1","choices":[],"usage":{"prompt_tokens":0,"completion_tokens":0,"prompt_tokens_details":{"cached_tokens":0}}}"#;
    let finished = CHUNK.replace(r#""finish_reason":null"#, r#""finish_reason":"stop""#);
    let observed = stream(ChatCompletions, &[CHUNK, USED, &finished, zeros, "[DONE]"]);
    assert_eq!(observed.usage, usage([19, 8, 1, 10, 4]));
    let start = MESSAGE_START.replace(
        "\"cache_read_input_tokens\":5",
        "\"cache_read_input_tokens\":1000",
    );
    let delta = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"input_tokens":0,"cache_read_input_tokens":0,"output_tokens":15}}"#;
    let told = stream(Messages, &[&start, delta, MESSAGE_STOP]).usage;
    assert_eq!(in_and_out(told), [1035, 15].map(Some));
    assert_eq!(told.cached_input_tokens, Some(1000));
    // The last count that is none of these stands: they are cumulative.
    let delta = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"input_tokens":20,"output_tokens":3}}"#;
    let told = stream(Messages, &[MESSAGE_START, MESSAGE_DELTA, delta]).usage;
    assert_eq!(in_and_out(told), [36, 3].map(Some));
}

#[test]
fn cache_writes_are_told_apart_by_how_long_they_live() {
    let body = r#"{"usage":{"input_tokens":1,"cache_creation_input_tokens":70,"cache_creation":{"ephemeral_5m_input_tokens":20,"ephemeral_1h_input_tokens":50},"output_tokens":1}}"#;
    let without_sum = body.replace("\"cache_creation_input_tokens\":70,", "");
    for body in [body, &without_sum] {
        let told = plain(Messages, body).usage;
        assert_eq!(told.input_tokens, Some(71));
        assert_eq!(written(told), [70, 50].map(Some));
    }
    let details = r#"{"cached_tokens":0,"cache_write_tokens":100,"cache_write_tokens_details":{"ttl_30m_tokens":40,"ttl_12h_tokens":60}}"#;
    let body = format!(r#"{{"usage":{{"input_tokens":100,"input_tokens_details":{details}}}}}"#);
    let told = plain(Responses, &body).usage;
    assert_eq!(written(told), [100, 60].map(Some));
    let told = chat_usage(&format!(
        r#"{{"prompt_tokens":100,"prompt_tokens_details":{details}}}"#
    ));
    assert_eq!(written(told), [100, 60].map(Some));
}

#[test]
fn compaction_is_counted_and_an_attempt_that_was_declined_is_not() {
    let message = |iterations: &str| {
        let body = format!(
            r#"{{"id":"m","usage":{{"input_tokens":23000,"output_tokens":1000,"iterations":{iterations},"service_tier":"standard"}}}}"#
        );
        let told = plain(Messages, &body);
        assert_eq!(told.served_tier.as_deref(), Some("standard"));
        in_and_out(told.usage).map(Option::unwrap)
    };
    let compacted = r#"[{"type":"compaction","input_tokens":180000,"output_tokens":3500},{"type":"message","input_tokens":23000,"output_tokens":1000}]"#;
    assert_eq!(message(compacted), [203_000, 4500]);
    let cached = r#"[ {"type":"message","input_tokens":1,"cache_read_input_tokens":10,"cache_creation_input_tokens":5,"cache_creation":{"ephemeral_1h_input_tokens":5},"output_tokens":2} , {"type":"message","input_tokens":1,"cache_read_input_tokens":10,"output_tokens":2}]"#;
    assert_eq!(message(cached), [27, 4]);
    let declined = r#"[{"type":"message","input_tokens":500,"output_tokens":9},{"type":"fallback_message","input_tokens":510,"output_tokens":70}]"#;
    assert_eq!(message(declined), [510, 70]);
    for none in [
        "[]",
        "null",
        "[1,\"x\",[{\"input_tokens\":5}],null]",
        r#"{"a":[{"input_tokens":5}]}"#,
        r#""[{}]""#,
    ] {
        assert_eq!(message(none), [23_000, 1000], "{none}");
    }
    let tricky = r#"["]",{"type":"compaction","note":"}],\"{","input_tokens":7,"deep":{"input_tokens":1},"output_tokens":1}]"#;
    assert_eq!(message(tricky), [7, 1]);
}

#[test]
fn iterations_at_the_end_of_a_stream_count() {
    let delta = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":15,"iterations":[{"type":"compaction","input_tokens":1000,"output_tokens":50},{"type":"message","input_tokens":25,"output_tokens":15}]}}"#;
    let told = stream(Messages, &[MESSAGE_START, delta, MESSAGE_STOP]).usage;
    // And what only stands beside them: 5 read from the cache and 10 written.
    assert_eq!(in_and_out(told), [1040, 65].map(Some));
}

#[test]
fn counts_that_come_after_iterations_replace_those_of_the_message() {
    let start = |iterations: &str| {
        format!(
            r#"{{"type":"message_start","message":{{"id":"m","usage":{{"input_tokens":10,"output_tokens":1,"iterations":{iterations}}}}}}}"#
        )
    };
    let delta = |usage: &str| {
        format!(
            r#"{{"type":"message_delta","delta":{{"stop_reason":"end_turn"}},"usage":{{{usage}}}}}"#
        )
    };
    let message = r#"{"type":"message","input_tokens":10,"output_tokens":1}"#;
    let compaction = r#"{"type":"compaction","input_tokens":900,"output_tokens":30}"#;
    let [plain, compacted] = [format!("[{message}]"), format!("[{compaction},{message}]")];
    for (iterations, usage, counts) in [
        (&plain, r#""output_tokens":50"#, [10, 50]),
        (&plain, r#""output_tokens":50,"iterations":null"#, [10, 50]),
        (&plain, r#""output_tokens":50,"iterations":[]"#, [10, 50]),
        (&plain, r#""input_tokens":12,"output_tokens":50"#, [12, 50]),
        (&plain, r#""output_tokens":0"#, [10, 1]),
        // What compaction used is in no count beside the list.
        (&compacted, r#""output_tokens":50"#, [910, 80]),
        (
            &compacted,
            r#""input_tokens":12,"output_tokens":50"#,
            [912, 80],
        ),
        // A newer list tells all.
        (
            &compacted,
            r#""output_tokens":50,"iterations":[{"type":"compaction","input_tokens":950,"output_tokens":35},{"type":"message","input_tokens":10,"output_tokens":50}]"#,
            [960, 85],
        ),
    ] {
        let events = [&*start(iterations), &delta(usage), MESSAGE_STOP];
        let told = stream(Messages, &events).usage;
        assert_eq!(in_and_out(told), counts.map(Some), "{iterations} {usage}");
    }
}

#[test]
fn an_attempt_that_was_declined_leaves_nothing_of_its_cache() {
    let start = r#"{"type":"message_start","message":{"usage":{"input_tokens":100,"cache_read_input_tokens":20000,"cache_creation_input_tokens":300,"cache_creation":{"ephemeral_1h_input_tokens":300},"output_tokens":1}}}"#;
    let delta = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":1000,"iterations":[{"type":"message","input_tokens":100,"cache_read_input_tokens":20000,"cache_creation_input_tokens":300,"output_tokens":10},{"type":"fallback_message","input_tokens":24000,"cache_read_input_tokens":0,"cache_creation_input_tokens":0,"output_tokens":1000}]}}"#;
    let told = stream(Messages, &[start, delta, MESSAGE_STOP]).usage;
    assert_eq!(in_and_out(told), [24_000, 1000].map(Some));
    assert_eq!(told.cached_input_tokens, Some(0));
    assert_eq!(written(told), [0, 0].map(Some));
}

#[test]
fn the_usage_names_the_tier_where_the_answer_does_not() {
    let told = |tier: &str, usage: &str| {
        let usage = format!(r#""usage":{{"prompt_tokens":1,"completion_tokens":1,{usage}}}"#);
        let body = format!(r#"{{"id":"c","choices":[],{tier}{usage}}}"#);
        let served = plain(ChatCompletions, &body).served_tier;
        assert_eq!(
            stream(ChatCompletions, &[&body, "[DONE]"]).served_tier,
            served
        );
        served
    };
    let standard = r#""service_tier":"standard""#;
    let fast = r#""service_tier":"standard","speed":"fast""#;
    assert_eq!(told("", standard), some("standard"));
    assert_eq!(told("", fast), some("fast"));
    assert_eq!(
        told(r#""service_tier":"priority","#, standard),
        some("priority")
    );
    assert_eq!(
        told(r#""service_tier":"auto","#, standard),
        some("standard")
    );
    assert_eq!(told("", r#""service_tier":null,"speed":"standard""#), None);
}

#[test]
fn a_session_of_an_own_path_is_no_background_response() {
    let body = r#"{"id":"sess_1","status":"in_progress","background":true}"#;
    assert_eq!(plain(Extra, body).usage_state, UsageState::None);
    assert_eq!(plain(Responses, body).usage_state, UsageState::Deferred);
}

#[test]
fn media_that_have_prices_of_their_own_are_noted() {
    let mixes = |side: &str, details: &str| {
        let chat = format!(
            r#"{{"usage":{{"prompt_tokens":9,"completion_tokens":9,"{}":{{{details}}}}}}}"#,
            match side {
                "input" => "prompt_tokens_details",
                _ => "completion_tokens_details",
            }
        );
        let made =
            format!(r#"{{"usage":{{"input_tokens":9,"{side}_tokens_details":{{{details}}}}}}}"#);
        [
            plain(ChatCompletions, &chat).lacks_price,
            media("/v1/images/edits", &made).unwrap().lacks_price,
        ]
    };
    for (side, details, mixed) in [
        (
            "input",
            r#""text_tokens":9,"audio_tokens":0,"image_tokens":0"#,
            [false, false],
        ),
        ("input", r#""audio_tokens":9"#, [true, false]),
        ("input", r#""image_tokens":9"#, [false, false]),
        (
            "input",
            r#""text_tokens":1,"image_tokens":8"#,
            [false, true],
        ),
        ("output", r#""audio_tokens":5"#, [true, false]),
        ("output", r#""image_tokens":9"#, [true, false]),
        (
            "output",
            r#""text_tokens":1,"image_tokens":8"#,
            [true, true],
        ),
    ] {
        assert_eq!(mixes(side, details), mixed, "{side} {details}");
    }
    let transcribed = r#"{"text":"x","usage":{"input_tokens":9,"input_token_details":{"text_tokens":1,"audio_tokens":8},"output_tokens":2}}"#;
    assert!(
        media("/v1/audio/transcriptions", transcribed)
            .unwrap()
            .lacks_price
    );
}

#[test]
fn tokens_of_a_hosted_tool_have_a_price_of_their_own() {
    let body = &COMPLETED[r#"{"type":"response.completed","response":"#.len()..COMPLETED.len() - 1];
    for (tools, mixed) in [
        (
            r#"{"image_gen":{"input_tokens":30,"output_tokens":7024,"output_tokens_details":{"image_tokens":7024}}}"#,
            true,
        ),
        (r#"{"image_gen":{"total_tokens":9}}"#, true),
        (
            r#"{"image_gen":{"input_tokens":0,"output_tokens":0,"total_tokens":0},"web_search":{"num_requests":3}}"#,
            false,
        ),
        ("null", false),
        (r#"{"image_gen":null}"#, false),
    ] {
        let with_tools = format!(r#"{{"tool_usage":{tools},{}"#, &body[1..]);
        let answer = plain(Responses, &with_tools);
        assert_eq!(answer.lacks_price, mixed, "{tools}");
        let event = format!(r#"{{"type":"response.completed","response":{with_tools}}}"#);
        let expected = Observed {
            lacks_price: mixed,
            ..completed()
        };
        assert_eq!(stream(Responses, &[&event]), expected, "{tools}");
    }
}

#[test]
fn tokens_of_another_model_than_the_message_s_have_a_price_of_their_own() {
    let attempt = r#"{"type":"message","model":"m-1","input_tokens":9,"output_tokens":2}"#;
    let advice = |model: &str| {
        format!(
            r#"{{"type":"advisor_message","model":"{model}","input_tokens":5,"output_tokens":1}}"#
        )
    };
    for (iterations, mixed) in [
        (attempt.to_owned(), false),
        (format!("{attempt},{}", advice("m")), false),
        (format!("{attempt},{},{attempt}", advice("strong")), true),
        (
            format!("{},{},{}", advice("m"), advice("strong"), advice("m")),
            true,
        ),
        (
            r#"{"type":"advisor_message","model":"strong","input_tokens":0}"#.to_owned(),
            false,
        ),
        (
            r#"{"type":"compaction","input_tokens":7,"output_tokens":1}"#.to_owned(),
            false,
        ),
        (
            format!(r#"{attempt},{{"type":"fallback_message","model":"m","input_tokens":9}}"#),
            false,
        ),
        (
            format!(r#"{attempt},{{"type":"fallback_message","model":"other","input_tokens":9}}"#),
            true,
        ),
    ] {
        let usage = format!(
            r#""usage":{{"input_tokens":9,"output_tokens":2,"iterations":[{iterations}]}}"#
        );
        let body = format!(r#"{{"id":"msg","model":"m",{usage}}}"#);
        assert_eq!(plain(Messages, &body).lacks_price, mixed, "{iterations}");
        let start = r#"{"type":"message_start","message":{"id":"msg","model":"m"}}"#;
        let delta =
            format!(r#"{{"type":"message_delta","delta":{{"stop_reason":"end_turn"}},{usage}}}"#);
        assert_eq!(
            stream(Messages, &[start, &delta]).lacks_price,
            mixed,
            "{iterations}"
        );
    }
}

#[test]
fn thinking_is_told_as_reasoning() {
    let body = r#"{"usage":{"input_tokens":1,"output_tokens":9,"output_tokens_details":{"thinking_tokens":7}}}"#;
    assert_eq!(plain(Messages, body).usage.reasoning_tokens, Some(7));
}

#[test]
fn embeddings_and_legacy_completions_are_read() {
    let body = r#"{"object":"list","model":"e","data":[{"embedding":[0.1]}],"usage":{"prompt_tokens":15,"total_tokens":15}}"#;
    let observed = plain(Endpoint::Embeddings, body);
    assert_eq!(
        (observed.usage.input_tokens, observed.usage.output_tokens),
        (Some(15), None)
    );
    assert_eq!(
        (observed.usage_state, observed.model.as_deref()),
        (UsageState::Final, Some("e"))
    );
    let body = r#"{"id":"cmpl-1","object":"text_completion","model":"m","choices":[{"text":"x","finish_reason":"length"}],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}"#;
    assert_eq!(
        plain(Endpoint::Completions, body).usage.output_tokens,
        Some(5)
    );
    let observed = stream(Endpoint::Completions, &[body, "[DONE]"]);
    assert_eq!(
        (observed.usage_state, observed.lacks_end),
        (UsageState::Final, false)
    );
}

fn media(path: &str, body: &str) -> Option<Observed> {
    let request = (Endpoint::Other, &http::Method::POST, path.as_bytes());
    let mut observer = ResponseObserver::for_request(request, false, &HeaderMap::new())?;
    body.as_bytes()
        .chunks(7)
        .for_each(|piece| observer.feed(piece));
    Some(observer.finish())
}

#[test]
fn a_listed_path_is_read_as_what_it_is_without_the_list() {
    let chunk = "data: {\"id\":\"c\",\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2}}\n\n";
    for (path, state) in [
        ("/v1/completions", UsageState::Final),
        ("/v1/agents", UsageState::None),
    ] {
        let request = (Endpoint::Extra, &http::Method::POST, path.as_bytes());
        let mut observer = ResponseObserver::for_request(request, true, &HeaderMap::new()).unwrap();
        observer.feed(chunk.as_bytes());
        observer.feed(b"data: [DONE]\n\n");
        assert_eq!(observer.finish().usage_state, state, "{path}");
    }
    let images: &[u8] = b"/v1/images/generations";
    let made = r#"{"usage":{"input_tokens":5,"output_tokens":9,"output_tokens_details":{"image_tokens":9}}}"#;
    for endpoint in [Endpoint::Other, Endpoint::Extra] {
        let request = (endpoint, &http::Method::POST, images);
        let observer = ResponseObserver::for_request(request, false, &HeaderMap::new());
        let mut observer = observer.unwrap();
        observer.feed(made.as_bytes());
        assert!(!observer.finish().lacks_price, "{endpoint:?}");
    }
}

#[test]
fn auto_is_no_served_tier_wherever_it_stands() {
    let told = |tier: &str| {
        plain(
            ChatCompletions,
            &format!(r#"{{"choices":[],"usage":{{"prompt_tokens":1,"service_tier":"{tier}"}}}}"#),
        )
    };
    assert_eq!(told("auto").served_tier, None);
    assert_eq!(told("flex").served_tier, some("flex"));
}

#[test]
fn images_and_audio_are_read_where_they_tell_tokens() {
    let usage = r#""usage":{"total_tokens":100,"input_tokens":50,"output_tokens":50,"input_tokens_details":{"text_tokens":10,"image_tokens":40}}"#;
    let body = format!(r#"{{"created":1,"data":[{{"b64_json":"x"}}],{usage}}}"#);
    let image = media("/v1/images/generations", &body).unwrap();
    assert_eq!(in_and_out(image.usage), [50, 50].map(Some));
    assert_eq!(image.usage_state, UsageState::Final);
    let events = format!(
        "data: {{\"type\":\"image_generation.partial_image\",\"b64_json\":\"x\"}}\n\nevent: image_generation.completed\ndata: {{\"type\":\"image_generation.completed\",{usage}}}\n\n"
    );
    let streamed = media("/v1/images/edits/", &events).unwrap();
    assert_eq!(
        (streamed.usage, streamed.usage_state),
        (image.usage, UsageState::Final)
    );
    let tokens = r#"{"text":"x","usage":{"type":"tokens","input_tokens":14,"output_tokens":3}}"#;
    let text = media("/openai/v1/audio/transcriptions", tokens).unwrap();
    assert_eq!(
        (text.usage.input_tokens, text.usage_state),
        (Some(14), UsageState::Final)
    );
    let duration = r#"{"text":"x","usage":{"type":"duration","seconds":9}}"#;
    let seconds = media("/v1/audio/transcriptions", duration).unwrap();
    assert_eq!(
        (seconds.usage_state, seconds.lacks_end),
        (UsageState::None, false)
    );
    assert!(!media("/v1/audio/speech", "ID3 and sound").unwrap().failed);
    for other in [
        "/v1/images",
        "/v1/models",
        "/v1/audio/generations",
        "/images/x/generations",
        "/",
    ] {
        assert!(media(other, "").is_none(), "{other}");
    }
}

// Responses that are made in the background.

#[test]
fn a_response_that_is_still_to_be_made_is_deferred() {
    for status in ["queued", "in_progress"] {
        let body = format!(
            r#"{{"id":"r","status":"{status}","background":true,"service_tier":"auto","usage":null}}"#
        );
        let observed = observe(Responses, false, body.as_bytes(), 3);
        assert_eq!(observed.usage_state, UsageState::Deferred);
        assert!(!observed.settled);
    }
    let created =
        r#"{"type":"response.created","response":{"id":"r","status":"queued","background":true}}"#;
    let cut_off = stream(Responses, &[created]);
    assert_eq!(
        (cut_off.usage_state, cut_off.lacks_end),
        (UsageState::Deferred, false)
    );
    assert_eq!(
        stream(Responses, &[created, COMPLETED]).usage_state,
        UsageState::Final
    );
    let foreground = created.replace("true", "false");
    assert!(stream(Responses, &[&foreground]).lacks_end);
}

#[test]
fn counts_of_a_response_that_is_still_to_be_made_are_not_what_it_comes_to() {
    let zeros = r#""usage":{"input_tokens":0,"output_tokens":0}"#;
    let some = r#""usage":{"input_tokens":100,"output_tokens":3}"#;
    for counts in [zeros, some] {
        let body = format!(r#"{{"id":"r","status":"in_progress","background":true,{counts}}}"#);
        let observed = observe(Responses, false, body.as_bytes(), 7);
        assert_eq!(observed.usage_state, UsageState::Deferred);
        assert_eq!(
            (observed.usage, observed.settled),
            (Usage::default(), false)
        );
        let begun = format!(r#"{{"type":"response.in_progress","response":{body}}}"#);
        let observed = stream(Responses, &[&begun]);
        assert_eq!(observed.usage_state, UsageState::Deferred);
        assert_eq!(observed.usage, Usage::default());
    }
    let queued = format!(r#"{{"id":"r","status":"queued",{zeros}}}"#);
    assert_eq!(plain(Responses, &queued).usage_state, UsageState::Deferred);
    // Nobody says that it goes on in the background.
    let odd = format!(r#"{{"id":"r","status":"in_progress",{some}}}"#);
    let observed = plain(Responses, &odd);
    assert_eq!(
        (observed.usage_state, observed.settled),
        (UsageState::Final, false)
    );
}

#[test]
fn an_error_is_no_last_status_of_a_response_in_the_background() {
    let created =
        r#"{"type":"response.created","response":{"id":"r","status":"queued","background":true}}"#;
    let error = r#"{"type":"error","code":"rate_limit_exceeded","message":"later"}"#;
    let observed = stream(Responses, &[created, error]);
    assert!(observed.failed && !observed.settled);
    assert_eq!(observed.usage_state, UsageState::Deferred);
    let body = r#"{"id":"r","error":{"code":"server_error","message":"later"}}"#;
    let observed = plain(Endpoint::ResponsesItem, body);
    assert!(observed.failed && !observed.settled);
}

#[test]
fn a_response_that_was_asked_for_in_the_background_is_deferred_without_an_echo() {
    let expecting = |text: &str| {
        let mut observer = ResponseObserver::new(Responses, true, &HeaderMap::new()).unwrap();
        observer.expect_background();
        observer.feed(text.as_bytes());
        observer.finish()
    };
    let created = r#"{"type":"response.created","response":{"id":"r","status":"queued"}}"#;
    let begun = format!("data: {created}\n\n");
    assert_eq!(expecting(&begun).usage_state, UsageState::Deferred);
    let ended = format!("{begun}data: {COMPLETED}\n\n");
    assert_eq!(expecting(&ended).usage_state, UsageState::Final);
    // Nobody could fetch it.
    assert_eq!(expecting("data: {}\n\n").usage_state, UsageState::None);
}

#[test]
fn the_events_of_a_websocket_add_up_as_those_of_a_stream() {
    let counts = r#"{"type":"response.in_progress","response":{"id":"resp_1","usage":{"input_tokens":100,"output_tokens":10}}}"#;
    let zeros = r#"{"type":"response.completed","response":{"id":"resp_1","usage":{"input_tokens":0,"output_tokens":0}}}"#;
    let untold = r#"{"type":"response.completed","response":{"id":"resp_1","usage":null}}"#;
    for events in [
        &[counts, zeros][..],
        &[counts, untold],
        &[CREATED, COMPLETED],
        &[counts],
        &[
            r#"{"type":"response.output_text.delta","delta":"x"}"#,
            zeros,
        ],
        &[zeros],
    ] {
        let mut tally = EventTally::default();
        let mut observer = EventObserver::new();
        for event in events {
            observer.feed(event.as_bytes());
            tally.add(&observer.end());
        }
        let seen = Observed {
            lacks_end: false,
            event_stream: None,
            ..stream(Responses, events)
        };
        let told = tally.observed();
        assert_eq!(
            Observed {
                settled: seen.settled,
                ..told
            },
            seen
        );
    }
}

#[test]
fn a_response_that_was_made_is_settled_whatever_it_came_to() {
    for status in ["completed", "failed", "incomplete", "cancelled"] {
        let body = format!(r#"{{"id":"r","status":"{status}","usage":{{"input_tokens":1}}}}"#);
        assert!(observe(Endpoint::ResponsesItem, false, body.as_bytes(), 9).settled);
        let cut_off = &body.as_bytes()[..body.len() - 1];
        assert!(!observe(Endpoint::ResponsesItem, false, cut_off, 9).settled);
    }
}

#[test]
fn an_answer_is_observed_whatever_the_method_unless_it_has_no_body() {
    let observed = |endpoint, method: &str| {
        let method = method.parse().unwrap();
        is_observed(endpoint, &method, b"/v1/x")
    };
    for method in ["POST", "post", "GET", "get", "PUT", "QUERY"] {
        assert!(observed(Responses, method), "{method}");
        assert!(observed(Endpoint::ResponsesItem, method), "{method}");
        assert!(!observed(Other, method), "{method}");
    }
    assert!(!observed(Responses, "HEAD"));
}

// What is no JSON, and what clients read all the same.

#[test]
fn what_clients_pass_over_takes_no_counts_away() {
    let usage = r#""usage":{"prompt_tokens":10,"completion_tokens":7}"#;
    let odd: [&[u8]; 6] = [
        b"\"ab\xe4\xb8\"",
        b"\"a\tb\nc\"",
        br#""\x \u12""#,
        b"[NaN,-Infinity,Infinity]",
        b"{\"logprob\":-Infinity}",
        b"\"\xff\"",
    ];
    for value in odd {
        let body = [br#"{"id":"c","text":"#, value, b",", usage.as_bytes(), b"}"].concat();
        let event = [b"data: ", &body[..], b"\n\ndata: [DONE]\n\n"].concat();
        for step in [1, 3, usize::MAX] {
            let whole = observe(ChatCompletions, false, &body, step);
            assert_eq!(
                whole.usage.output_tokens,
                Some(7),
                "{}",
                body.escape_ascii()
            );
            assert_eq!(whole.usage_state, UsageState::Final);
            if !value.contains(&b'\n') {
                let streamed = observe(ChatCompletions, true, &event, step);
                assert_eq!(streamed.usage, whole.usage, "{}", body.escape_ascii());
                assert_eq!(streamed.usage_state, UsageState::Final);
            }
        }
    }
    for broken in ["{\"a\":Nan,", "{\"a\":-I,", "{\"a\":Inf,", "{a:1,"] {
        let body = format!("{broken}{usage}}}");
        assert_eq!(
            plain(ChatCompletions, &body).usage,
            Usage::default(),
            "{body}"
        );
    }
}

// What relays repeat.

fn message_usage(usage: &str) -> Usage {
    let body = format!(r#"{{"type":"message","usage":{{{usage}}}}}"#);
    plain(Messages, &body).usage
}

#[test]
fn lifetimes_that_are_told_in_two_places_count_once() {
    let once =
        r#""cache_creation":{"ephemeral_5m_input_tokens":100,"ephemeral_1h_input_tokens":200}"#;
    let again = r#""claude_cache_creation_5_m_tokens":100,"claude_cache_creation_1_h_tokens":200"#;
    let details = r#""prompt_tokens_details":{"cached_creation_tokens":300,"cache_creation_token_details":{"ephemeral_5m_input_tokens":100,"ephemeral_1h_input_tokens":200}}"#;
    let expected = [300, 200].map(Some);
    for told in [
        once,
        again,
        &format!("{once},{again}"),
        &format!("{again},{once}"),
    ] {
        let usage = message_usage(&format!(r#""input_tokens":1,"output_tokens":2,{told}"#));
        assert_eq!(written(usage), expected, "{told}");
    }
    for told in [
        details,
        &format!("{details},{again}"),
        &format!("{details},{once}"),
    ] {
        let usage = chat_usage(&format!(
            r#"{{"prompt_tokens":400,"completion_tokens":2,{told}}}"#
        ));
        assert_eq!(written(usage), expected, "{told}");
    }
    let more = r#""input_tokens":1,"cache_creation_input_tokens":30,"cache_creation":{"ephemeral_1h_input_tokens":40}"#;
    assert_eq!(written(message_usage(more)), [30, 30].map(Some));
}

#[test]
fn a_cache_hit_of_messages_may_be_told_by_another_name() {
    for name in ["cached_tokens", "prompt_cache_hit_tokens"] {
        let told = format!(
            r#""input_tokens":100,"cache_read_input_tokens":0,"{name}":40,"output_tokens":10"#
        );
        let usage = message_usage(&told);
        assert_eq!(
            (usage.cached_input_tokens, usage.input_tokens),
            (Some(40), Some(140))
        );
    }
}

#[test]
fn hits_are_in_the_input_where_it_is_the_sum_of_hits_and_misses() {
    for (told, counts) in [
        (
            r#""input_tokens":800,"prompt_cache_hit_tokens":200"#,
            [1000, 200],
        ),
        (
            r#""input_tokens":1000,"prompt_cache_hit_tokens":200"#,
            [1000, 200],
        ),
        (
            r#""input_tokens":1000,"cache_read_input_tokens":200,"prompt_cache_hit_tokens":200"#,
            [1000, 200],
        ),
        (
            r#""input_tokens":800,"prompt_cache_hit_tokens":0"#,
            [800, 0],
        ),
        (
            r#""input_tokens":900,"prompt_cache_hit_tokens":200"#,
            [1100, 200],
        ),
    ] {
        let usage = message_usage(&format!(
            r#"{told},"prompt_cache_miss_tokens":800,"output_tokens":50"#
        ));
        assert_eq!(
            [usage.input_tokens, usage.cached_input_tokens],
            counts.map(Some),
            "{told}"
        );
    }
}

#[test]
fn a_prompt_that_turns_out_to_be_cached_counts_once() {
    let start = r#"{"type":"message_start","message":{"id":"m","usage":{"input_tokens":1000,"output_tokens":0}}}"#;
    let delta = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"input_tokens":0,"cache_read_input_tokens":1000,"output_tokens":5}}"#;
    let usage = stream(Messages, &[start, delta]).usage;
    assert_eq!(
        (usage.input_tokens, usage.cached_input_tokens),
        (Some(1000), Some(1000))
    );
    let late_zero = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"input_tokens":0,"output_tokens":5}}"#;
    let usage = stream(Messages, &[start, late_zero]).usage;
    assert_eq!(in_and_out(usage), [1000, 5].map(Some));
}

#[test]
fn a_cache_hit_that_is_told_as_part_of_the_prompt_counts_once() {
    let start = |cache: &str| {
        format!(
            r#"{{"type":"message_start","message":{{"id":"m","usage":{{"input_tokens":3602,{cache}"output_tokens":0}}}}}}"#
        )
    };
    let delta = |usage: &str| {
        format!(
            r#"{{"type":"message_delta","delta":{{"stop_reason":"end_turn"}},"usage":{{{usage}"output_tokens":878}}}}"#
        )
    };
    let hit = |tokens: u64| {
        format!(
            r#""cache_read_input_tokens":{tokens},"prompt_tokens_details":{{"cached_tokens":{tokens}}},"#
        )
    };
    for (start, delta, counts) in [
        (start(""), delta(&hit(3604)), [3604, 3604]),
        (start(""), delta(&hit(3000)), [3602, 3000]),
        // What the API itself tells is beside the input.
        (
            start(""),
            delta(r#""cache_read_input_tokens":3000,"#),
            [6602, 3000],
        ),
        (
            start(r#""cache_read_input_tokens":3000,"#),
            delta(&hit(3000)),
            [6602, 3000],
        ),
        (
            start(""),
            delta(&format!(r#""input_tokens":602,{}"#, hit(3000))),
            [3602, 3000],
        ),
    ] {
        let usage = stream(Messages, &[&start, &delta, &delta, MESSAGE_STOP]).usage;
        assert_eq!(
            [usage.input_tokens, usage.cached_input_tokens],
            counts.map(Some),
            "{delta}"
        );
    }
}

#[test]
fn a_prompt_counts_once_whatever_of_it_turns_out_to_be_read_from_a_cache_or_written_to_one() {
    let start = |usage: &str| {
        format!(
            r#"{{"type":"message_start","message":{{"id":"m","usage":{{{usage},"output_tokens":0}}}}}}"#
        )
    };
    let delta = |usage: &str| {
        format!(
            r#"{{"type":"message_delta","delta":{{"stop_reason":"end_turn"}},"usage":{{{usage},"output_tokens":50}}}}"#
        )
    };
    let own = |read: u64, written: u64| {
        format!(r#""cache_read_input_tokens":{read},"cache_creation_input_tokens":{written}"#)
    };
    let details = |members: &str| format!(r#""prompt_tokens_details":{{{members}}}"#);
    let hits = |tokens: u64| details(&format!(r#""cached_tokens":{tokens}"#));
    let both = |read: u64, written: u64| format!("{},{}", own(read, written), hits(read));
    let zero = |cache: &str| format!(r#""input_tokens":0,{cache}"#);
    let prompt = r#""input_tokens":1000"#;
    let among_zeros = format!("{prompt},{}", own(0, 0));
    for (first, later, counts) in [
        // Beside OpenAI's member.
        (prompt, vec![both(1000, 0)], [1000, 1000, 0]),
        (prompt, vec![both(0, 1000)], [1000, 0, 1000]),
        (prompt, vec![both(300, 600)], [1000, 300, 600]),
        (&among_zeros, vec![both(0, 998)], [1000, 0, 998]),
        (prompt, vec![both(0, 300), both(500, 300)], [1000, 500, 300]),
        (prompt, vec![both(100, 0), both(500, 0)], [1000, 500, 0]),
        (
            prompt,
            vec![format!(
                r#"{},"cache_creation":{{"ephemeral_5m_input_tokens":600}}"#,
                hits(300)
            )],
            [1000, 300, 600],
        ),
        // By a zero that is one.
        (prompt, vec![zero(&own(1000, 0))], [1000, 1000, 0]),
        (prompt, vec![zero(&own(0, 1000))], [1000, 0, 1000]),
        (prompt, vec![zero(&own(300, 700))], [1000, 300, 700]),
        (prompt, vec![zero(&hits(1000))], [1000, 1000, 0]),
        // Among the details of the prompt alone.
        (
            prompt,
            vec![format!("{},{}", own(0, 0), hits(200))],
            [1000, 200, 0],
        ),
        (
            &among_zeros,
            vec![format!("{},{}", own(0, 0), hits(200))],
            [1000, 200, 0],
        ),
        (
            prompt,
            vec![format!(
                "{},{}",
                own(0, 0),
                details(
                    r#""cached_tokens":0,"cache_creation_tokens":0,"cache_creation_input_tokens":700"#
                )
            )],
            [1000, 0, 700],
        ),
        (
            prompt,
            vec![format!("{prompt},{},{}", own(0, 0), hits(200))],
            [1000, 200, 0],
        ),
        // What the API itself tells is beside the input, and so is what the beginning told.
        (prompt, vec![own(0, 1000)], [2000, 0, 1000]),
        (
            prompt,
            vec![format!("{prompt},{}", own(0, 400))],
            [1400, 0, 400],
        ),
        (
            &format!("{prompt},{}", own(200, 300)),
            vec![both(200, 300)],
            [1500, 200, 300],
        ),
        (
            &format!("{prompt},{}", own(200, 300)),
            vec![zero(&own(200, 300))],
            [1500, 200, 300],
        ),
    ] {
        let deltas: Vec<String> = later.iter().map(|usage| delta(usage)).collect();
        let mut events = vec![start(first)];
        // Told twice, it counts once.
        events.extend(
            deltas
                .iter()
                .flat_map(|delta| [delta.clone(), delta.clone()]),
        );
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        let usage = stream(Messages, &events).usage;
        let told = [
            usage.input_tokens,
            usage.cached_input_tokens,
            usage.cache_write_tokens,
        ];
        let told = told.map(Option::unwrap_or_default);
        assert_eq!(told, counts, "{first} {later:?}");
    }
    let whole = message_usage(&format!("{prompt},{},{}", own(0, 0), hits(200)));
    assert_eq!(
        [whole.input_tokens, whole.cached_input_tokens],
        [1000, 200].map(Some)
    );
}

#[test]
fn cache_and_reasoning_that_both_stand_beside_the_counts_are_added() {
    let usage = chat_usage(
        r#"{"prompt_tokens":60,"completion_tokens":10,"total_tokens":160,"prompt_tokens_details":{"cached_tokens":40},"completion_tokens_details":{"reasoning_tokens":50}}"#,
    );
    assert_eq!(in_and_out(usage), [100, 60].map(Some));
}

// Usage that stands elsewhere.

fn message_start(usage: &str) -> String {
    format!(r#"{{"type":"message_start","message":{{"id":"m","usage":{{{usage}}}}}}}"#)
}

fn text_delta(text: &str) -> String {
    format!(
        r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":"{text}"}}}}"#
    )
}

#[test]
fn the_usage_of_a_message_may_stand_in_its_delta() {
    let start = message_start(r#""input_tokens":25,"output_tokens":1"#);
    let within = |beside: &str| {
        let delta = r#""stop_reason":"end_turn","usage":{"output_tokens":150,"cache_creation":{"ephemeral_1h_input_tokens":5}}"#;
        let event = format!(r#"{{"type":"message_delta","delta":{{{delta}}}{beside}}}"#);
        stream(Messages, &[&start, &text_delta("Hi"), &event, MESSAGE_STOP])
    };
    for beside in ["", r#","usage":null"#, r#","usage":{"output_tokens":0}"#] {
        let told = within(beside);
        assert_eq!(in_and_out(told.usage), [30, 150].map(Some), "{beside}");
        assert_eq!(written(told.usage), [5, 5].map(Some), "{beside}");
        assert_eq!(told.usage_state, UsageState::Final, "{beside}");
    }
    // The usage beside it is that of the API.
    let both = within(r#","usage":{"output_tokens":15}"#);
    assert_eq!(in_and_out(both.usage), [25, 15].map(Some));
}

#[test]
fn the_usage_of_a_response_may_stand_in_any_event_of_it_and_counts_once() {
    const USAGE: &str = r#""usage":{"input_tokens":90,"input_tokens_details":{"cached_tokens":40,"cache_write_tokens":7},"output_tokens":20,"output_tokens_details":{"reasoning_tokens":5},"total_tokens":110}"#;
    let named = r#""id":"resp_1","model":"gpt-5.5","service_tier":"priority""#;
    let event = |kind: &str, response: &str, beside: &str| {
        format!(r#"{{"type":"response.{kind}","response":{{{named}{response}}}{beside}}}"#)
    };
    let told = format!(",{USAGE}");
    let zeros = r#","usage":{"input_tokens":0,"output_tokens":0}"#;
    let untold = event("completed", "", "");
    let own = format!(r#"{{"type":"response.usage",{USAGE}}}"#);
    for events in [
        vec![event("created", &told, ""), untold.clone()],
        vec![
            event("created", &told, ""),
            event("completed", r#","usage":null"#, ""),
        ],
        vec![event("in_progress", &told, ""), untold.clone()],
        vec![event("created", &told, ""), event("completed", zeros, "")],
        vec![event("completed", "", &told)],
        vec![event("completed", r#","usage":null"#, &told)],
        vec![event("completed", zeros, &told)],
        vec![event("completed", &told, zeros)],
        vec![event("created", "", &told), untold.clone()],
        vec![own.clone(), untold.clone()],
        // All of it at once.
        vec![
            event("created", &told, &told),
            own.clone(),
            event("completed", &told, &told),
        ],
    ] {
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        assert_eq!(stream(Responses, &events), completed(), "{events:?}");
    }
    // What stands where the API has it goes before what stands beside it.
    let other = r#","usage":{"input_tokens":1,"output_tokens":2}"#;
    let both = stream(Responses, &[&event("completed", &told, other)]);
    assert_eq!(both, completed());
}

#[test]
fn an_event_that_tells_only_usage_is_no_output() {
    let own = r#"{"type":"response.usage","usage":{"input_tokens":0,"output_tokens":0}}"#;
    let end = r#"{"type":"response.completed","response":{"id":"r","usage":{"input_tokens":0,"output_tokens":0}}}"#;
    let warm_up = stream(Responses, &[own, end]);
    assert_eq!(in_and_out(warm_up.usage), [0, 0].map(Some));
    assert_eq!(warm_up.usage_state, UsageState::Final);
}

#[test]
fn a_whole_answer_may_be_wrapped_as_an_event_is() {
    let expected = Observed {
        terminal_event: None,
        ..completed()
    };
    assert_eq!(plain(Responses, COMPLETED), expected);
    let twice = COMPLETED.replacen(
        '{',
        r#"{"usage":{"input_tokens":90,"output_tokens":20},"#,
        1,
    );
    assert_eq!(
        in_and_out(plain(Responses, &twice).usage),
        [90, 20].map(Some)
    );
    let failed = r#"{"type":"response.failed","response":{"id":"r","status":"failed","error":{"code":"c"}}}"#;
    let failed = plain(Responses, failed);
    assert_eq!((failed.failed, failed.error.as_deref()), (true, Some("c")));
    // Within a response there is none.
    let within = r#"{"id":"r","metadata":{"response":{"usage":{"input_tokens":1}}}}"#;
    assert_eq!(plain(Responses, within).usage, Usage::default());
}

#[test]
fn a_tool_of_a_response_whose_usage_stands_beside_it_has_a_price_of_its_own() {
    let event = r#"{"type":"response.completed","response":{"id":"r","tool_usage":{"image_gen":{"total_tokens":9}}},"usage":{"input_tokens":1,"output_tokens":2}}"#;
    assert!(stream(Responses, &[event]).lacks_price);
}

// Counts that cannot be what was used.

/// The end of a message, with these members beside its delta.
fn message_end(members: &str) -> String {
    format!(r#"{{"type":"message_delta","delta":{{"stop_reason":"end_turn"}}{members}}}"#)
}

/// A message that begins with these counts, brings the text in pieces, and ends so.
fn message_of_text(begin: &str, text: &[&str], end: &str) -> Observed {
    let begin = message_start(begin);
    let text = text.iter().map(|piece| text_delta(piece));
    let block =
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#;
    let end = [message_end(end), MESSAGE_STOP.to_owned()];
    let events = [begin, block.to_owned()].into_iter().chain(text).chain(end);
    let events: Vec<String> = events.collect();
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    stream(Messages, &events)
}

const NO_OUTPUT: [&str; 6] = [
    "",
    r#","usage":null"#,
    r#","usage":{}"#,
    r#","usage":{"output_tokens":null}"#,
    r#","usage":{"output_tokens":0}"#,
    r#","usage":{"input_tokens":0,"cache_read_input_tokens":0,"output_tokens":0}"#,
];

#[test]
fn what_a_message_tells_of_its_output_before_its_text_is_no_final_count() {
    let long = "a long answer of many tokens ".repeat(20);
    for end in NO_OUTPUT {
        for (provisional, text) in [
            ("0", "Hi"),
            ("1", "Hi"),
            ("8", "Hi"),
            ("1", &long),
            ("30", &long),
            ("null", &long),
        ] {
            let begin = format!(
                r#""input_tokens":10,"cache_read_input_tokens":5,"output_tokens":{provisional}"#
            );
            let told = message_of_text(&begin, &[text], end);
            assert_eq!(in_and_out(told.usage), [Some(15), None], "{begin} {end}");
            assert_eq!(told.usage_state, UsageState::Partial, "{begin} {end}");
            assert!(!told.lacks_end);
        }
    }
}

#[test]
fn what_a_message_tells_of_its_output_before_its_text_counts_where_it_is_enough_for_it() {
    let word = ["word "; 40];
    for end in NO_OUTPUT {
        for output in [41, 300] {
            let begin = format!(r#""input_tokens":10,"output_tokens":{output}"#);
            let told = message_of_text(&begin, &word, end);
            assert_eq!(in_and_out(told.usage), [10, output].map(Some), "{end}");
            assert_eq!(told.usage_state, UsageState::Final, "{end}");
        }
    }
}

#[test]
fn zeros_at_the_end_of_a_message_without_content_are_a_count() {
    let zeros = r#","usage":{"input_tokens":10,"output_tokens":0}"#;
    for (output, counted) in [(0, 0), (1, 1)] {
        let begin = message_start(&format!(r#""input_tokens":10,"output_tokens":{output}"#));
        let told = stream(Messages, &[&begin, &message_end(zeros), MESSAGE_STOP]);
        assert_eq!(in_and_out(told.usage), [10, counted].map(Some));
        assert_eq!(told.usage_state, UsageState::Final);
        let untold = stream(Messages, &[&begin, &message_end(""), MESSAGE_STOP]);
        assert_eq!(in_and_out(untold.usage), [Some(10), None]);
        assert_eq!(untold.usage_state, UsageState::Partial);
    }
}

#[test]
fn the_end_of_a_message_has_the_last_word_on_its_output() {
    let long = "a long answer of many tokens ".repeat(20);
    for end in [
        r#","usage":{"output_tokens":3}"#,
        r#","usage":{"output_tokens":0,"iterations":[{"type":"message","input_tokens":10,"output_tokens":3}]}"#,
    ] {
        let told = message_of_text(r#""input_tokens":10,"output_tokens":1"#, &[&long], end);
        assert_eq!(in_and_out(told.usage), [10, 3].map(Some), "{end}");
        assert_eq!(told.usage_state, UsageState::Final, "{end}");
    }
    // Of a message that was cut, what was told until then is known.
    let begin = message_start(r#""input_tokens":10,"output_tokens":1"#);
    let cut = stream(Messages, &[&begin, &text_delta(&long)]);
    assert_eq!(in_and_out(cut.usage), [10, 1].map(Some));
    assert_eq!(cut.usage_state, UsageState::Partial);
}

#[test]
fn what_a_response_counts_early_is_final_where_it_is_enough_for_what_came() {
    let early = |output: u64| {
        format!(
            r#"{{"type":"response.created","response":{{"id":"r","usage":{{"input_tokens":10,"output_tokens":{output}}}}}}}"#
        )
    };
    let delta = r#"{"type":"response.output_text.delta","delta":"x"}"#;
    let untold = r#"{"type":"response.completed","response":{"id":"r","usage":null}}"#;
    let zeros = r#"{"type":"response.completed","response":{"id":"r","usage":{"input_tokens":10,"output_tokens":0}}}"#;
    let read = |events: &[&str]| {
        let told = stream(Responses, events);
        (in_and_out(told.usage), told.usage_state)
    };
    let lacking = ([Some(10), None], UsageState::Partial);
    for end in [untold, zeros] {
        assert_eq!(read(&[&early(0), delta, end]), lacking, "{end}");
        assert_eq!(read(&[&early(1), delta, end]), lacking, "{end}");
        let counted = ([10, 50].map(Some), UsageState::Final);
        assert_eq!(read(&[&early(50), delta, end]), counted, "{end}");
    }
    assert_eq!(read(&[delta, zeros]), lacking);
    assert_eq!(read(&[zeros]), ([10, 0].map(Some), UsageState::Final));
}

#[test]
fn output_of_no_input_tells_that_the_input_is_missing() {
    let of_chat = |usage: &str| {
        let body = format!(r#"{{"id":"c","choices":[],"usage":{{{usage}}}}}"#);
        let streamed = stream(ChatCompletions, &[&body, "[DONE]"]);
        let told = plain(ChatCompletions, &body);
        assert_eq!(told.usage, streamed.usage);
        told
    };
    let of_response = |usage: &str| {
        let body = format!(r#"{{"id":"r","usage":{{{usage}}}}}"#);
        let event = format!(r#"{{"type":"response.completed","response":{body}}}"#);
        assert_eq!(
            plain(Responses, &body).usage,
            stream(Responses, &[&event]).usage
        );
        plain(Responses, &body)
    };
    let of_message = |usage: &str| plain(Messages, &format!(r#"{{"usage":{{{usage}}}}}"#));
    let missing = Usage {
        output_tokens: Some(120),
        ..Usage::default()
    };
    for told in [
        of_chat(r#""prompt_tokens":0,"completion_tokens":120,"total_tokens":120"#),
        of_chat(
            r#""prompt_tokens":0,"prompt_tokens_details":{"cached_tokens":0,"cache_write_tokens":0},"completion_tokens":120"#,
        ),
        of_chat(r#""prompt_tokens":null,"completion_tokens":120"#),
        of_response(r#""input_tokens":0,"output_tokens":120,"total_tokens":150"#),
        of_message(
            r#""input_tokens":0,"cache_read_input_tokens":0,"cache_creation_input_tokens":0,"output_tokens":120"#,
        ),
        message_of_text(
            r#""input_tokens":0,"output_tokens":0"#,
            &["Hi"],
            r#","usage":{"output_tokens":120}"#,
        ),
    ] {
        assert_eq!(told.usage, missing);
        assert_eq!(told.usage_state, UsageState::Partial);
    }
    // What is read from a cache is input.
    for told in [
        of_message(r#""input_tokens":0,"cache_read_input_tokens":9,"output_tokens":120"#),
        of_message(r#""input_tokens":0,"cache_creation_input_tokens":9,"output_tokens":120"#),
        message_of_text(
            r#""input_tokens":0,"output_tokens":0"#,
            &["Hi"],
            r#","usage":{"input_tokens":9,"output_tokens":120}"#,
        ),
    ] {
        assert_eq!(in_and_out(told.usage), [9, 120].map(Some));
        assert_eq!(told.usage_state, UsageState::Final);
    }
    // A picture may be charged for by what was made alone.
    let made = r#"{"usage":{"input_tokens":0,"output_tokens":120}}"#;
    let made = media("/v1/images/generations", made).unwrap();
    assert_eq!(in_and_out(made.usage), [0, 120].map(Some));
    assert_eq!(made.usage_state, UsageState::Final);
}

#[test]
fn what_is_nested_deeper_than_is_looked_at_takes_no_counts_away() {
    let deep = format!(
        r#""tools":{}"]"{}"#,
        r#"[{"a":"#.repeat(DEPTH_LIMIT),
        "}]".repeat(DEPTH_LIMIT)
    );
    let within = |text: &str| text.replace(r#""id":"resp_1""#, &format!(r#"{deep},"id":"resp_1""#));
    let event = format!("data: {}\n\n", within(COMPLETED));
    assert_eq!(observe_cut(Responses, true, &event), completed());
    let body = r#"{"id":"resp_1","model":"gpt-5.5","status":"completed","service_tier":"priority","usage":{"input_tokens":3,"output_tokens":2}}"#;
    let seen = observe_cut(Responses, false, &within(body));
    assert_eq!(seen, observe_cut(Responses, false, body));
    assert_eq!(in_and_out(seen.usage), [Some(3), Some(2)]);
}

#[test]
fn an_answer_that_is_cut_behind_its_usage_tells_its_tier_and_that_it_was_cut() {
    let body = r#"{"id":"resp_1","model":"gpt-5.5","service_tier":"priority","usage":{"input_tokens":3,"output_tokens":2},"x":"#;
    for (endpoint, usage) in [
        (Responses, body.to_owned()),
        (
            ChatCompletions,
            body.replace("input", "prompt")
                .replace("output", "completion"),
        ),
    ] {
        let seen = observe_cut(endpoint, false, &usage);
        assert_eq!(in_and_out(seen.usage), [Some(3), Some(2)]);
        assert_eq!(seen.served_tier.as_deref(), Some("priority"));
        assert!(seen.lacks_end && seen.usage_state == UsageState::Partial);
    }
    // What is made in the background is not done yet, and what is no JSON has no end that could be missing.
    let queued = body.replace(r#""model""#, r#""status":"queued","model""#);
    assert_eq!(observe_cut(Responses, false, &queued).served_tier, None);
    for whole in ["", "{}", "<html>{", "{]", "null"] {
        assert!(!observe_cut(Responses, false, whole).lacks_end, "{whole}");
    }
}
