//! Failures: what clients are told when the upstream answers with an error.

use super::*;
use crate::codec::error::Cause;

/// Status, type, message and headers but `content-type`, for a client of Messages.
fn told(status: u16, body: &Value) -> (u16, String, String, Vec<(&'static str, String)>) {
    let body = body.to_string();
    let error = error(status, body.as_bytes());
    let answer = error.answer(Protocol::Messages, "req-1");
    let told = parsed(&answer.body);
    assert_eq!(
        (&told["type"], &told["request_id"]),
        (&json!("error"), &json!("req-1"))
    );
    let text = |name| told["error"][name].as_str().expect("a text").to_owned();
    let headers = answer
        .headers
        .into_iter()
        .filter(|(name, _)| *name != "content-type")
        .collect();
    (answer.status, text("type"), text("message"), headers)
}

fn error(status: u16, body: &[u8]) -> UpstreamError<'_> {
    UpstreamError {
        status,
        retry_after: None,
        body,
        own_credential: false,
        now: 0,
    }
}

fn coded(code: &str, message: &str) -> Value {
    json!({"error": {"code": code, "message": message}})
}

#[test]
fn each_rule_gives_its_status_type_and_text() {
    let never = vec![("x-should-retry", "false".to_owned())];
    let too_long = "prompt is too long: 300123 tokens > 272000 maximum";
    let overflow = "prompt is too long (capability_rejected: prompt_too_long): context window";
    let signature = "Invalid signature in thinking block (capability_rejected: thinking_signature)";
    let window = "maximum context length is 272000 tokens. However, you sent 300,123 tokens.";
    let odd = "the upstream's answer cannot be read: a status that is neither 200 nor an error";
    let unverified = "The encrypted content gAAA could not be verified.";
    #[rustfmt::skip]
    let cases = [
        (400, coded("x", window), 400, "invalid_request_error", too_long, true),
        (413, json!({"detail": "context window"}), 400, "invalid_request_error", overflow, true),
        (400, coded("invalid_encrypted_content", "m"), 400, "invalid_request_error", signature, true),
        (400, coded("x", unverified), 400, "invalid_request_error", signature, true),
        (429, coded("insufficient_quota", "m"), 429, "rate_limit_error", "m", true),
        (429, json!({"detail": "m"}), 429, "rate_limit_error", "m", false),
        (500, coded("rate_limit_exceeded", "m"), 429, "rate_limit_error", "m", false),
        (503, coded("slow_down", "m"), 529, "overloaded_error", "m", false),
        (529, Value::Null, 529, "overloaded_error", "upstream error", false),
        (401, json!({"error": "m"}), 401, "authentication_error", "m", true),
        (403, coded("x", "m"), 403, "permission_error", "m", true),
        (404, coded("x", "m"), 404, "not_found_error", "m", true),
        (400, coded("model_not_found", "m"), 404, "not_found_error", "m", true),
        (413, coded("x", "m"), 413, "request_too_large", "m", true),
        (504, coded("x", "m"), 504, "timeout_error", "m", false),
        (422, coded("x", "m"), 400, "invalid_request_error", "m", true),
        (409, coded("x", "m"), 409, "invalid_request_error", "m", true),
        (502, json!("<html>"), 502, "api_error", "upstream error", false),
        (302, Value::Null, 502, "api_error", odd, false),
        (206, json!({"error": {"message": "m"}}), 502, "api_error", odd, false),
        (304, json!("x"), 502, "api_error", odd, false),
    ];
    for (status, body, expected, kind, message, no_retry) in cases {
        let headers = if no_retry { never.clone() } else { Vec::new() };
        let expected = (expected, kind.to_owned(), message.to_owned(), headers);
        assert_eq!(told(status, &body), expected, "{status} {body}");
    }
}

#[test]
fn the_operators_credential_is_no_matter_of_the_client() {
    for protocol in [Protocol::Messages, Protocol::Chat] {
        let refused = UpstreamError {
            own_credential: true,
            ..error(401, b"{\"error\":{\"message\":\"sk-secret\"}}")
        };
        let answer = refused.answer(protocol, "r");
        assert!(refused.credential_refused() && answer.status == 502);
        assert!(!text_of(answer.body).contains("sk-secret"));
    }
}

#[test]
fn when_to_come_again_is_told_in_whole_seconds() {
    let told = |value: Option<&str>, body: &str| {
        let error = UpstreamError {
            retry_after: value,
            now: 784_111_700,
            ..error(429, body.as_bytes())
        };
        let headers = error.answer(Protocol::Messages, "r").headers;
        headers
            .into_iter()
            .find(|(name, _)| *name == "retry-after")
            .map(|(_, value)| value)
    };
    let limited = r#"{"error":{"type":"usage_limit_reached","resets_in_seconds":12.1}}"#;
    assert_eq!(told(Some("2.2"), "{}").as_deref(), Some("3"));
    for date in [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
    ] {
        assert_eq!(told(Some(date), "{}").as_deref(), Some("77"), "{date}");
    }
    assert_eq!(
        told(Some("Sun, 06 Nov 1983 08:49:37 GMT"), "{}").as_deref(),
        Some("0")
    );
    assert_eq!(told(None, limited).as_deref(), Some("13"));
    for odd in [
        "soon",
        "-1",
        "inf",
        "1e400",
        "99999999999999999999",
        "Sun, 06 Nov 2094 08:49:37 GMT",
        "Sun, 99999999999999999999 Nov 1994 08:49:37 GMT",
        "Sun, 00 Nov 1994 08:49:37 GMT",
    ] {
        assert_eq!(told(Some(odd), "{}"), None, "{odd}");
    }
}

#[test]
fn errors_of_the_same_vendor_pass_to_chat_as_they_are() {
    let body = br#"{"error": {"message":"m","type":"t","param":null,"code":"c"}, "extra": 1.0}"#;
    let answer = error(418, body).answer(Protocol::Chat, "r");
    assert_eq!(
        (answer.status, answer.body.as_slice()),
        (418, body.as_slice())
    );
    let detail = error(400, br#"{"detail":"Unsupported parameter"}"#).answer(Protocol::Chat, "r");
    assert_eq!(
        parsed(&detail.body)["error"]["message"],
        "Unsupported parameter"
    );
    let html = error(503, b"<html>").answer(Protocol::Chat, "r");
    assert_eq!(parsed(&html.body)["error"]["message"], "upstream error");
}

#[test]
fn long_texts_are_cut_between_characters() {
    let (_, _, message, _) = told(400, &coded("x", &"é".repeat(2000)));
    assert!(message.len() <= 2048 && message.chars().all(|letter| letter == 'é'));
}

#[test]
fn refusals_have_the_shape_of_the_protocol() {
    let refusal = messages(r#"{"model":"claude-a"}"#).unwrap_err();
    let body = parsed(&refusal.answer(Protocol::Messages, "r").body);
    let error = json!({"type": "invalid_request_error", "message": "messages: Field required"});
    assert_eq!(
        body,
        json!({"type": "error", "error": error, "request_id": "r"})
    );
    let refusal = chat(r#"{"model":"llama","messages":[]}"#).unwrap_err();
    assert_eq!(refusal.cause, Cause::ModelNotMapped);
    let answer = refusal.answer(Protocol::Chat, "r");
    let error = json!({"message": "model: llama", "type": "not_found_error", "param": "model", "code": "model_not_mapped"});
    assert_eq!(
        (answer.status, parsed(&answer.body)),
        (404, json!({"error": error}))
    );
}

#[test]
fn tokens_are_counted_by_the_upstream_or_not_at_all() {
    let counted = token_count_answer(200, b"{\"input_tokens\":41,\"object\":\"x\"}", "r");
    assert_eq!(
        (counted.status, counted.body.as_slice()),
        (200, b"{\"input_tokens\":41}".as_slice())
    );
    for (status, body) in [
        (500, "{\"input_tokens\":41}"),
        (200, "{}"),
        (200, "<html>"),
        (0, ""),
    ] {
        let answer = token_count_answer(status, body.as_bytes(), "r");
        assert_eq!(
            (answer.status, &parsed(&answer.body)["error"]["type"]),
            (404, &json!("not_found_error"))
        );
    }
}

#[test]
fn a_byte_order_mark_before_a_body_is_taken_off() {
    let body = "\u{feff}{\"error\":{\"code\":\"c\",\"message\":\"m\"}}";
    let answer = error(400, body.as_bytes()).answer(Protocol::Messages, "r");
    assert_eq!(parsed(&answer.body)["error"]["message"], "m");
    let answer = error(400, body.as_bytes()).answer(Protocol::Chat, "r");
    assert_eq!(parsed(&answer.body)["error"]["code"], "c");
    let counted = token_count_answer(200, "\u{feff}{\"input_tokens\":4}".as_bytes(), "r");
    assert_eq!(counted.status, 200);
}

#[test]
fn an_error_without_a_type_that_comes_in_a_stream_has_the_type_of_every_such_event() {
    for (status, body, kind) in [
        (429, r#"{"error":{"message":"m"}}"#, "server_error"),
        (500, "<html>", "server_error"),
        (
            429,
            r#"{"error":{"message":"m","type":"requests"}}"#,
            "requests",
        ),
    ] {
        let mut converter = converter(Endpoint::Chat, &json!({"stream": true}));
        let mut received = Received::default();
        received.take(converter.commit());
        received.take(converter.upstream_error(&error(status, body.as_bytes())));
        assert_eq!(received.data().last().unwrap()["error"]["type"], kind);
    }
    let html = error(429, b"<html>").answer(Protocol::Chat, "r");
    assert_eq!(parsed(&html.body)["error"]["type"], "invalid_request_error");
}
