//! What observation promises of any response: the same facts however it is cut, none from the wrong place, and no panic.

use http::HeaderMap;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};
use tiergate::accounting::usage::{EventObserver, Observed, ResponseObserver, Usage, UsageState};
use tiergate::policy::endpoint::Endpoint;

const ENDPOINTS: [Endpoint; 8] = [
    Endpoint::Responses,
    Endpoint::ResponsesCompact,
    Endpoint::ChatCompletions,
    Endpoint::Messages,
    Endpoint::Extra,
    Endpoint::Embeddings,
    Endpoint::Completions,
    Endpoint::ResponsesItem,
];

/// Members of every path that is looked at, and of a few that are not.
const KEYS: [&str; 42] = [
    "type",
    "response",
    "id",
    "model",
    "service_tier",
    "status",
    "usage",
    "input_tokens",
    "output_tokens",
    "input_tokens_details",
    "output_tokens_details",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "prompt_tokens",
    "completion_tokens",
    "prompt_tokens_details",
    "completion_tokens_details",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "message",
    "delta",
    "stop_reason",
    "speed",
    "error",
    "choices",
    "finish_reason",
    "stream_id",
    "total_tokens",
    "cache_creation",
    "ephemeral_1h_input_tokens",
    "cache_write_tokens_details",
    "ttl_30m_tokens",
    "prompt_cache_hit_tokens",
    "num_cached_tokens",
    "iterations",
    "background",
    "code",
    "param",
    "detail",
    "thinking_tokens",
    "other",
];

const TEXTS: [&str; 17] = [
    "response.completed",
    "response.failed",
    "response.created",
    "response.done",
    "compaction",
    "auto",
    "response.output_text.delta",
    "message_start",
    "message_delta",
    "message_stop",
    "error",
    "priority",
    " FAST ",
    "in_progress",
    "é\u{1f600}\"\\\n",
    "data: {\"type\":\"response.completed\",\"response\":{\"service_tier\":\"flex\"}}\n\ndata: [DONE]\n\n",
    "",
];

fn observe(endpoint: Endpoint, event_stream: bool, pieces: &[&[u8]]) -> Observed {
    let mut observer = ResponseObserver::new(endpoint, event_stream, &HeaderMap::new()).unwrap();
    pieces.iter().for_each(|piece| observer.feed(piece));
    observer.finish()
}

fn cut(bytes: &[u8], at: &[prop::sample::Index]) -> Vec<Vec<u8>> {
    let mut at: Vec<usize> = at.iter().map(|at| at.index(bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    at.windows(2)
        .map(|pair| bytes[pair[0]..pair[1]].to_vec())
        .collect()
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    select(&ENDPOINTS[..])
}

fn cuts() -> impl Strategy<Value = Vec<prop::sample::Index>> {
    prop::collection::vec(any::<prop::sample::Index>(), 0..12)
}

/// Any JSON value that is made of what could be mistaken.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        select(&TEXTS[..]).prop_map(Value::from),
        (0u64..1000).prop_map(Value::from),
        select(vec![
            json!(null),
            json!(true),
            json!(-1),
            json!(1.5),
            json!(2.0),
            json!(u64::MAX)
        ]),
    ];
    leaf.prop_recursive(5, 40, 8, |inner| {
        prop_oneof![
            3 => prop::collection::btree_map(select(&KEYS[..]), inner.clone(), 0..8)
                .prop_map(|members| members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>().into()),
            1 => prop::collection::vec(inner, 0..4).prop_map(Value::from),
        ]
    })
}

/// A document that has most members of a response, of any type.
fn response() -> impl Strategy<Value = Value> {
    let usage = (value(), value(), value(), value(), 0u64..99).prop_map(|(a, b, c, d, count)| {
        json!({
            "input_tokens": count,
            "output_tokens": a,
            "input_tokens_details": {"cached_tokens": b, "cache_write_tokens": 1, "other": c},
            "output_tokens_details": {"reasoning_tokens": d},
        })
    });
    let usage = prop_oneof![usage, Just(json!(null)), Just(json!([{"input_tokens": 1}]))];
    (value(), value(), value(), usage, value()).prop_map(|(id, model, tier, usage, other)| {
        json!({"id": id, "model": model, "service_tier": tier, "usage": usage, "other": other, "status": "completed"})
    })
}

fn text_at(document: &Value, path: &str) -> Option<String> {
    let text = document.pointer(path)?.as_str()?;
    (!text.is_empty()).then(|| text.to_owned())
}

fn tier_at(document: &Value, path: &str) -> Option<String> {
    let tier = text_at(document, path)?.trim().to_owned();
    (!tier.is_empty() && !tier.eq_ignore_ascii_case("auto")).then_some(tier)
}

/// A count as the contract reads it: a fraction rounds up.
fn count_at(document: &Value, path: &str) -> Option<u64> {
    let number = document.pointer(path)?;
    let rounded = || {
        let number = number.as_f64()?;
        (number >= 0.0).then(|| number.ceil() as u64)
    };
    number.as_u64().or_else(rounded)
}

fn usage_at(document: &Value, path: &str) -> Usage {
    let count = |name: &str| count_at(document, &format!("{path}/{name}"));
    Usage {
        input_tokens: count("input_tokens"),
        cached_input_tokens: count("input_tokens_details/cached_tokens"),
        cache_write_tokens: count("input_tokens_details/cache_write_tokens"),
        cache_write_long_tokens: None,
        output_tokens: count("output_tokens"),
        reasoning_tokens: count("output_tokens_details/reasoning_tokens"),
    }
}

/// What a terminal event tells, read from a tree. Other spellings of counts have tests of their own.
fn expected(event: &Value) -> Observed {
    let usage = usage_at(event, "/response/usage");
    let has_failed = event["type"] == "response.failed" || event["response"]["status"] == "failed";
    Observed {
        usage,
        usage_state: if usage == Usage::default() {
            UsageState::None
        } else {
            UsageState::Final
        },
        served_tier: tier_at(event, "/response/service_tier"),
        response_id: text_at(event, "/response/id"),
        model: text_at(event, "/response/model"),
        terminal_event: text_at(event, "/type"),
        failed: has_failed,
        settled: true,
        event_stream: Some(true),
        ..Observed::default()
    }
}

/// Arrays have no members that a path of objects leads to, but a JSON pointer looks into them by index only.
fn event(kind: &str, response: Value, other: Value, type_last: bool) -> (Value, String) {
    let event = json!({"type": kind, "response": response, "zzz": other});
    let (kind, response, other) = (
        event["type"].to_string(),
        event["response"].to_string(),
        event["zzz"].to_string(),
    );
    let text = if type_last {
        format!(r#"{{"zzz": {other}, "response": {response} ,"type":{kind}}}"#)
    } else {
        format!(r#"{{"type":{kind},"response":{response},"zzz":{other}}}"#)
    };
    (event, text)
}

proptest! {
    #[test]
    fn a_terminal_event_tells_what_stands_at_its_paths_and_nothing_else(
        kind in select(vec!["response.completed", "response.incomplete", "response.failed"]),
        (response, other) in (response(), value()),
        type_last in any::<bool>(),
        noise in prop::collection::vec(value(), 0..4),
    ) {
        let (event, text) = event(kind, response, other, type_last);
        let mut stream = String::new();
        for noise in noise {
            // Whatever stands in an event of another type counts for nothing.
            stream += &format!("data: {{\"type\":\"response.output_item.done\",\"item\":{noise},\"response\":{noise}}}\n\n");
        }
        stream += &format!("event: x\ndata: {text}\n\n");
        let observed = observe(Endpoint::Responses, true, &[stream.as_bytes()]);
        prop_assert_eq!(observed, expected(&event));
    }

    #[test]
    fn a_plain_response_tells_what_stands_at_its_paths(response in response()) {
        let observed = observe(Endpoint::Responses, false, &[response.to_string().as_bytes()]);
        let event = json!({"response": response});
        let expected = expected(&event);
        let has_counts = expected.usage_state == UsageState::Final;
        let expected = Observed { event_stream: Some(false), settled: has_counts, ..expected };
        prop_assert_eq!(observed, expected);
    }

    #[test]
    fn a_websocket_message_is_read_as_the_data_of_an_event(
        kind in select(&TEXTS[..]), response in response(), other in value(), type_last in any::<bool>(), cuts in cuts(),
    ) {
        let (_, text) = event(kind, response, other, type_last);
        let stream = format!("data: {text}\n\n");
        let streamed = observe(Endpoint::Responses, true, &[stream.as_bytes()]);
        let mut observer = EventObserver::new();
        cut(text.as_bytes(), &cuts).iter().for_each(|piece| observer.feed(piece));
        let event = observer.end();
        prop_assert_eq!(event.kind.as_deref().unwrap_or_default(), kind);
        if let Some(observed) = event.observed {
            let observed = Observed { event_stream: Some(true), ..observed };
            prop_assert_eq!(observed, streamed);
        } else {
            prop_assert!(streamed.lacks_end);
        }
    }

    #[test]
    fn any_cut_of_a_stream_gives_the_same(
        endpoint in endpoint(),
        documents in prop::collection::vec(value().prop_map(|value| value.to_string()), 0..6),
        pretty in any::<bool>(),
        line_end in select(vec!["\n", "\r", "\r\n"]),
        event in select(vec!["e", "error", "response.completed", "message_start", "response.output_text.delta"]),
        cuts in cuts(),
    ) {
        let mut stream = String::new();
        for document in documents.iter().map(String::as_str).chain(["[DONE]"]) {
            let document = if pretty { document.replace(",\"", ",\ndata:\"") } else { document.to_owned() };
            stream += &format!("event: {event}\ndata: {document}\n: c\n\n");
        }
        let stream = stream.replace('\n', line_end);
        check_cuts(endpoint, true, stream.as_bytes(), &cuts)?;
    }

    #[test]
    fn any_cut_of_an_answer_gives_the_same(endpoint in endpoint(), document in value(), cuts in cuts()) {
        check_cuts(endpoint, false, document.to_string().as_bytes(), &cuts)?;
    }

    #[test]
    fn any_bytes_are_endured_and_cut_alike(
        endpoint in endpoint(),
        event_stream in any::<bool>(),
        coding in select(vec!["identity", "gzip", "zstd", "br", "deflate"]),
        parts in prop::collection::vec(prop_oneof![
            prop::collection::vec(any::<u8>(), 0..20),
            select(&TEXTS[..]).prop_map(|text| text.as_bytes().to_vec()),
            select(vec!["data:", "data: {", "\n", "\r", "\r\n", "\n\n", "\u{feff}", "{\"type\":\"", "\"response\":{", "\"usage\":{", "}", "[", "]", ",", "\\u", "\\ud800"])
                .prop_map(|text| text.as_bytes().to_vec()),
        ], 0..20),
        cuts in cuts(),
    ) {
        let bytes = parts.concat();
        check_cuts(endpoint, event_stream, &bytes, &cuts)?;
        let headers = HeaderMap::from_iter([(http::header::CONTENT_ENCODING, coding.parse().unwrap())]);
        let mut observer = ResponseObserver::new(endpoint, event_stream, &headers).unwrap();
        cut(&bytes, &cuts).iter().for_each(|piece| observer.feed(piece));
        observer.finish();
    }
}

fn check_cuts(
    endpoint: Endpoint,
    event_stream: bool,
    body: &[u8],
    cuts: &[prop::sample::Index],
) -> Result<(), TestCaseError> {
    let whole = observe(endpoint, event_stream, &[body]);
    let pieces = cut(body, cuts);
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    prop_assert_eq!(&observe(endpoint, event_stream, &pieces), &whole);
    let bytes: Vec<&[u8]> = body.chunks(1).collect();
    prop_assert_eq!(observe(endpoint, event_stream, &bytes), whole);
    Ok(())
}
