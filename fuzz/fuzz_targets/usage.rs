//! What is observed of responses, held against a tree of one answer: the same counts, tier and names, whether it comes as
//! one document, in an event, on a WebSocket or coded, and however it is cut. Of a document that is broken nothing is
//! final. Memory is bounded.

#![no_main]

use std::io::Write;

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tiergate_fuzz::endpoint::Endpoint;
use tiergate_fuzz::json::CAPTURE_BYTES;
use tiergate_fuzz::usage::{EventObserver, Observed, ResponseObserver, Usage, UsageState};
use tiergate_fuzz::{Meter, pieces};

const ENDPOINTS: [Endpoint; 4] = [
    Endpoint::Responses,
    Endpoint::ChatCompletions,
    Endpoint::Messages,
    Endpoint::Extra,
];

/// What an observer may take for a body that is not coded, in bytes, whatever its length: the few texts that it keeps, of
/// six bytes for each that they may spell, and a bit for each open bracket, once for a document and once for a choice.
const MEMORY: usize = 40_000;

/// Counts that stand elsewhere than in the endpoint's own API. The tree below does not know them; unit tests do.
const OTHER_SPELLINGS: [&str; 16] = [
    "audio_tokens",
    "image_tokens",
    "total_tokens",
    "num_cached_tokens",
    "prompt_cache_hit_tokens",
    "prompt_token_details",
    "cache_creation_tokens",
    "cache_creation",
    "cache_write_tokens_details",
    "thinking_tokens",
    "iterations",
    "choices",
    "background",
    "detail",
    "param",
    "response",
];

/// Names of the other APIs, which are read where the endpoint's own are missing.
fn foreign_names(endpoint: Endpoint) -> &'static [&'static str] {
    match endpoint {
        Endpoint::ChatCompletions => &[
            "input_tokens",
            "output_tokens",
            "input_tokens_details",
            "output_tokens_details",
            "cache_read_input_tokens",
            "cache_creation_input_tokens",
        ],
        Endpoint::Messages => &[
            "cached_tokens",
            "prompt_tokens_details",
            "prompt_cache_miss_tokens",
            "claude_cache_creation_5_m_tokens",
            "output_tokens_details",
        ],
        _ => &[
            "prompt_tokens",
            "completion_tokens",
            "prompt_tokens_details",
            "completion_tokens_details",
            "cache_read_input_tokens",
            "cache_creation_input_tokens",
        ],
    }
}

fuzz_target!(|input: &[u8]| {
    let Some(([low, high, mode], body)) = input.split_first_chunk::<3>() else {
        return;
    };
    let endpoint = ENDPOINTS[usize::from(mode & 3)];
    let as_stream = mode & 4 != 0;
    let pieces = pieces(body, u16::from_le_bytes([*low, *high]));
    let observed = observe_however_it_arrives(endpoint, as_stream, body, &pieces);
    check_bounds(&observed);
    check_memory(endpoint, as_stream, &pieces);
    match answer(endpoint, body) {
        // A document is one whatever it is announced as.
        Some(answer) => {
            check_deflate(endpoint, as_stream, body, &observed);
            assert_eq!(without_error(observed.clone()), expected(endpoint, &answer));
            check_events(endpoint, body, observed);
        }
        None if is_cut_document(body) => {
            assert!(observed.usage_state != UsageState::Final && observed.served_tier.is_none());
        }
        _ => {}
    }
});

/// Whether this begins a document as an observer sees it, and ends before its end.
fn is_cut_document(body: &[u8]) -> bool {
    body.starts_with(b"{") && serde_json::from_slice::<Value>(body).is_err_and(|why| why.is_eof())
}

fn observe(endpoint: Endpoint, as_stream: bool, coding: &str, pieces: &[&[u8]]) -> Observed {
    let mut headers = HeaderMap::new();
    let coding = HeaderValue::from_str(coding).expect("a plain word");
    headers.insert("content-encoding", coding);
    let observer = ResponseObserver::new(endpoint, as_stream, &headers);
    let mut observer = observer.expect("these are observed");
    pieces.iter().for_each(|piece| observer.feed(piece));
    observer.finish()
}

fn observe_however_it_arrives(
    endpoint: Endpoint,
    as_stream: bool,
    body: &[u8],
    pieces: &[&[u8]],
) -> Observed {
    let whole = observe(endpoint, as_stream, "identity", &[body]);
    let single: Vec<&[u8]> = body.chunks(1).collect();
    for pieces in [pieces, &single] {
        assert_eq!(observe(endpoint, as_stream, "identity", pieces), whole);
    }
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body).expect("memory can be written to");
    let coded = encoder.finish().expect("memory can be written to");
    assert_eq!(observe(endpoint, as_stream, "gzip", &[&coded]), whole);
    whole
}

/// A document is told from one in raw deflate, whose first byte may be that of a text.
fn check_deflate(endpoint: Endpoint, as_stream: bool, body: &[u8], observed: &Observed) {
    let level = flate2::Compression::default();
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
    encoder.write_all(body).expect("memory can be written to");
    let coded = encoder.finish().expect("memory can be written to");
    for body in [body, &coded] {
        let single: Vec<&[u8]> = body.chunks(1).collect();
        for pieces in [&[body][..], &single] {
            assert_eq!(observe(endpoint, as_stream, "deflate", pieces), *observed);
        }
    }
}

fn check_bounds(observed: &Observed) {
    for text in [
        &observed.served_tier,
        &observed.response_id,
        &observed.model,
    ] {
        assert!(text.as_ref().map_or(0, String::len) <= CAPTURE_BYTES);
    }
    let has_usage = observed.usage != Usage::default();
    let tells_usage = matches!(
        observed.usage_state,
        UsageState::Final | UsageState::Partial
    );
    assert_eq!(tells_usage, has_usage);
}

/// Also of a body that goes on and on.
fn check_memory(endpoint: Endpoint, as_stream: bool, pieces: &[&[u8]]) {
    let meter = Meter::start();
    let observer = ResponseObserver::new(endpoint, as_stream, &HeaderMap::new());
    let mut observer = observer.expect("these are observed");
    for _ in 0..10 {
        pieces.iter().for_each(|piece| observer.feed(piece));
    }
    let peak = meter.peak_bytes();
    assert!(peak <= MEMORY, "{peak} bytes");
}

/// The object that the body is, if every reader of JSON would say so.
fn answer(endpoint: Endpoint, body: &[u8]) -> Option<Value> {
    let value: Value = serde_json::from_slice(body).ok()?;
    // A tree keeps one of two equal members, and then its text has fewer of these signs than the body.
    let signs = |text: &[u8]| text.iter().filter(|byte| **byte == b':').count();
    let is_plain = signs(body) == signs(value.to_string().as_bytes());
    let is_told = |name: &&str| {
        let quoted = format!("\"{name}\"");
        let mut parts = body.windows(quoted.len());
        parts.any(|part| part == quoted.as_bytes())
    };
    let begins = body.first() == Some(&b'{');
    let foreign = foreign_names(endpoint).iter();
    let has_own_tests = OTHER_SPELLINGS.iter().chain(foreign).any(is_told);
    (is_plain && begins && !body.contains(&b'\\') && !has_own_tests).then_some(value)
}

fn expected(endpoint: Endpoint, answer: &Value) -> Observed {
    let usage = usage(endpoint, &answer["usage"]);
    let (error, kind) = (&answer["error"], &answer["type"]);
    let has_counts = counts(&usage)
        .iter()
        .any(|count| count.is_some_and(|count| count > 0));
    let status = answer["status"].as_str().filter(|_| is_responses(endpoint));
    let is_background = answer["background"] == true;
    let waits = matches!(status, Some("queued" | "in_progress")) && (is_background || !has_counts);
    let response_id = answer["id"].as_str().map(str::to_owned);
    let response_id = response_id.filter(|id| (1..=CAPTURE_BYTES).contains(&id.len()));
    let is_deferred = waits && response_id.is_some() && endpoint != Endpoint::Extra;
    let lacks_input = has_output_only(&usage);
    Observed {
        // Zeros alone are no usage.
        usage: if is_deferred || !has_counts {
            Usage::default()
        } else if lacks_input {
            output_only(usage)
        } else {
            with_cache_in_input(endpoint, usage)
        },
        usage_state: match has_counts {
            _ if is_deferred => UsageState::Deferred,
            true if waits || lacks_input => UsageState::Partial,
            true => UsageState::Final,
            false => UsageState::None,
        },
        served_tier: tier(endpoint, answer).filter(|_| !waits),
        response_id,
        model: text(&answer["model"]),
        failed: is_error(error) || status == Some("failed") || kind == "error",
        settled: match status.unwrap_or_default() {
            "" | "completed" | "incomplete" => has_counts,
            status => WITHOUT_COUNTS.contains(&status),
        },
        event_stream: Some(false),
        ..Observed::default()
    }
}

/// No completion is made of no input.
fn has_output_only(usage: &Usage) -> bool {
    let [input, cached, written, _, output, _] = counts(usage).map(Option::unwrap_or_default);
    output > 0 && [input, cached, written] == [0; 3]
}

fn output_only(usage: Usage) -> Usage {
    Usage {
        output_tokens: usage.output_tokens,
        reasoning_tokens: usage.reasoning_tokens,
        ..Usage::default()
    }
}

/// With these a response is over that may have used nothing.
const WITHOUT_COUNTS: [&str; 3] = ["failed", "cancelled", "canceled"];

fn counts(usage: &Usage) -> [Option<u64>; 6] {
    [
        usage.input_tokens,
        usage.cached_input_tokens,
        usage.cache_write_tokens,
        usage.cache_write_long_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
    ]
}

/// Whether an `error` member says something.
fn is_error(error: &Value) -> bool {
    let says = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    let code = &error["code"];
    says(error)
        || ["message", "type", "code"]
            .iter()
            .any(|name| says(&error[*name]))
        || (code.is_number() && code.to_string() != "0")
}

/// What is compared: the name of an error has tests of its own.
fn without_error(observed: Observed) -> Observed {
    Observed {
        error: None,
        error_names_tier: false,
        ..observed
    }
}

fn is_responses(endpoint: Endpoint) -> bool {
    matches!(endpoint, Endpoint::Responses | Endpoint::Extra)
}

fn usage(endpoint: Endpoint, told: &Value) -> Usage {
    let count = |path: &str| {
        let number = told.pointer(path)?;
        let rounded = || {
            let number = number.as_f64()?;
            (0.0..18_446_744_073_709_551_616.0)
                .contains(&number)
                .then(|| number.ceil() as u64)
        };
        number.as_u64().or_else(rounded)
    };
    match endpoint {
        Endpoint::Messages => Usage {
            input_tokens: count("/input_tokens"),
            cached_input_tokens: count("/cache_read_input_tokens"),
            cache_write_tokens: count("/cache_creation_input_tokens"),
            output_tokens: count("/output_tokens"),
            ..Usage::default()
        },
        Endpoint::ChatCompletions => Usage {
            input_tokens: count("/prompt_tokens"),
            cached_input_tokens: count("/prompt_tokens_details/cached_tokens"),
            cache_write_tokens: count("/prompt_tokens_details/cache_write_tokens"),
            output_tokens: count("/completion_tokens"),
            reasoning_tokens: count("/completion_tokens_details/reasoning_tokens"),
            ..Usage::default()
        },
        _ => Usage {
            input_tokens: count("/input_tokens"),
            cached_input_tokens: count("/input_tokens_details/cached_tokens"),
            cache_write_tokens: count("/input_tokens_details/cache_write_tokens"),
            output_tokens: count("/output_tokens"),
            reasoning_tokens: count("/output_tokens_details/reasoning_tokens"),
            ..Usage::default()
        },
    }
}

fn with_cache_in_input(endpoint: Endpoint, usage: Usage) -> Usage {
    let cache = [usage.cached_input_tokens, usage.cache_write_tokens];
    let sum = |input: u64| {
        cache
            .iter()
            .flatten()
            .fold(input, |sum, more| sum.saturating_add(*more))
    };
    match endpoint {
        Endpoint::Messages => Usage {
            input_tokens: usage.input_tokens.map(sum),
            ..usage
        },
        _ => usage,
    }
}

fn tier(endpoint: Endpoint, answer: &Value) -> Option<String> {
    let named = |value: &Value| {
        let name = text(value)?.trim().to_owned();
        (!name.is_empty() && !name.eq_ignore_ascii_case("auto")).then_some(name)
    };
    let usage = &answer["usage"];
    let speed = |name: &str| named(&usage["speed"]).filter(|told| told.eq_ignore_ascii_case(name));
    let at_the_top = match endpoint {
        Endpoint::Messages => None,
        _ => named(&answer["service_tier"]),
    };
    speed("fast")
        .or(at_the_top)
        .or_else(|| named(&usage["service_tier"]))
        .or_else(|| speed("standard").filter(|_| endpoint == Endpoint::Messages))
}

fn text(value: &Value) -> Option<String> {
    let text = value.as_str()?;
    let text = &text[..text.floor_char_boundary(CAPTURE_BYTES)];
    (!text.is_empty()).then(|| text.to_owned())
}

/// The answer within the event that ends a stream, or a message of a WebSocket, tells the same.
fn check_events(endpoint: Endpoint, body: &[u8], observed: Observed) {
    let Ok(body) = str::from_utf8(body) else {
        return;
    };
    // An event that ends a response may tell zeros that are what was used.
    let is_final = observed.settled && observed.usage != Usage::default();
    if body.contains(['\r', '\n']) || !is_final {
        return;
    }
    let told = |observed: Observed| {
        (
            observed.usage,
            observed.usage_state == UsageState::Partial,
            observed.served_tier,
            observed.response_id,
            observed.model,
        )
    };
    let observed = told(observed);
    match endpoint {
        Endpoint::Responses => {
            let event = format!("{{\"type\":\"response.completed\",\"response\":{body}}}");
            let stream = format!("event: response.completed\ndata: {event}\n\n");
            let streamed = observe(endpoint, true, "", &[stream.as_bytes()]);
            assert!(!streamed.lacks_end);
            assert_eq!(told(streamed), observed);
            let mut observer = EventObserver::new();
            observer.feed(event.as_bytes());
            let event = observer.end().observed.expect("it ends the response");
            assert_eq!(told(event), observed);
        }
        Endpoint::ChatCompletions => {
            let stream = format!("data: {body}\n\ndata: [DONE]\n\n");
            let streamed = observe(endpoint, true, "", &[stream.as_bytes()]);
            assert!(!streamed.lacks_end);
            assert_eq!(told(streamed), observed);
        }
        _ => {}
    }
}
