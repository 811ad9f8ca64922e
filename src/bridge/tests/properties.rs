//! What holds for any body and any stream: no panic, a valid request or a refusal, and the grammar of events.

use super::*;
use proptest::prelude::*;
use proptest::sample::select;

/// Words of all protocols, so that what is made of them gets past the first checks.
const WORDS: [&str; 40] = [
    "model",
    "messages",
    "role",
    "content",
    "type",
    "text",
    "tool_use",
    "tool_result",
    "tool_use_id",
    "id",
    "name",
    "input",
    "tools",
    "input_schema",
    "thinking",
    "signature",
    "system",
    "user",
    "assistant",
    "image",
    "source",
    "base64",
    "data",
    "function",
    "tool_calls",
    "arguments",
    "tool",
    "tool_call_id",
    "custom",
    "properties",
    "array",
    "anyOf",
    "required",
    "claude-a",
    "gpt-5.5",
    "stop",
    "stop_sequences",
    "max_tokens",
    "tool_choice",
    "auto",
];

/// Types of events.
const EVENTS: [&str; 14] = [
    "response.created",
    "response.output_item.added",
    "response.output_item.done",
    "response.output_text.delta",
    "response.output_text.done",
    "response.refusal.delta",
    "response.reasoning_summary_text.delta",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.completed",
    "response.incomplete",
    "response.failed",
    "error",
    "response.unknown",
];

/// Types of items.
const KINDS: [&str; 6] = [
    "message",
    "function_call",
    "custom_tool_call",
    "reasoning",
    "web_search_call",
    "odd",
];

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        select(&WORDS[..]).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 60, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::vec((select(&WORDS[..]), inner), 0..6).prop_map(|members| {
                members
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect()
            }),
        ]
    })
}

/// A body that names a model, and has some message or other.
fn any_body() -> impl Strategy<Value = Value> {
    let message = (
        select(vec!["user", "assistant", "system", "tool"]),
        any_json(),
    )
        .prop_map(|(role, content)| json!({"role": role, "content": content, "tool_call_id": "a"}));
    (
        any_json(),
        proptest::collection::vec(message, 0..4),
        any::<bool>(),
    )
        .prop_map(|(rest, messages, given)| {
            let mut body = rest.as_object().cloned().unwrap_or_default();
            body.insert("model".to_owned(), json!("gpt-5.5"));
            if given {
                body.insert("messages".to_owned(), Value::from(messages));
            }
            Value::from(body)
        })
}

fn any_item() -> impl Strategy<Value = Value> {
    (select(&KINDS[..]), select(&["a", "b", ""][..]), ".{0,6}").prop_map(|(kind, id, text)| {
        json!({"type": kind, "id": id, "call_id": id, "name": "T", "arguments": text, "encrypted_content": text,
            "content": [{"type": "output_text", "text": text}], "summary": [{"text": text}], "action": {"query": text}})
    })
}

fn any_event() -> impl Strategy<Value = Value> {
    let index = proptest::option::of(0u64..4);
    (select(&EVENTS[..]), index, any_item(), ".{0,6}", proptest::collection::vec(any_item(), 0..3)).prop_map(
        |(kind, index, item, text, output)| {
            json!({"type": kind, "output_index": index, "item": item, "delta": text, "text": text, "arguments": text,
                "summary_index": index, "response": {"id": "resp_1", "output": output}})
        },
    )
}

/// Fails unless the events are a message as Anthropic's streaming protocol has it: a start, blocks in order and never
/// two open, deltas inside their blocks, and one end or an error.
fn check_messages(events: &[Value], whole: bool) {
    let mut open = None;
    let mut blocks = 0;
    let mut calls = 0;
    for (place, event) in events.iter().enumerate() {
        let last = place + 1 == events.len();
        let kind = event["type"].as_str().expect("a type");
        assert_eq!(kind == "message_start", place == 0, "{events:?}");
        match kind {
            "content_block_start" => {
                assert_eq!((open, &event["index"]), (None, &json!(blocks)));
                open = Some(blocks);
                blocks += 1;
                calls += u64::from(event["content_block"]["type"] == "tool_use");
            }
            "content_block_delta" => assert_eq!(json!(open), event["index"]),
            "content_block_stop" => assert_eq!(json!(open.take()), event["index"]),
            "message_delta" => {
                assert_eq!(open, None);
                assert!(event["delta"]["stop_reason"] != "tool_use" || calls > 0);
                assert_eq!(
                    events.get(place + 1),
                    Some(&json!({"type": "message_stop"}))
                );
            }
            "message_stop" => assert!(last && whole),
            "error" => assert!(last && !whole),
            _ => assert_eq!(kind, "message_start"),
        }
    }
}

/// Fails unless the chunks are a completion: the role first, and `[DONE]` at its end only.
fn check_chat(chunks: &[Value], whole: bool) {
    for (place, chunk) in chunks.iter().enumerate() {
        let last = place + 1 == chunks.len();
        assert_eq!(
            chunk["choices"][0]["delta"].get("role").is_some(),
            place == 0
        );
        assert_eq!(chunk == "[DONE]", last && whole, "{chunks:?}");
        assert_eq!(chunk.get("error").is_some(), last && !whole);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_body_is_converted_to_a_valid_request_or_refused(body in any_body(), kind in 0..3) {
        let kind = [UpstreamKind::OpenAi, UpstreamKind::Codex, UpstreamKind::Gateway][kind as usize];
        let upstream = upstream_of_kind(kind);
        let text = body.to_string();
        for endpoint in [Endpoint::Messages, Endpoint::CountTokens, Endpoint::Chat] {
            let request = request(endpoint, &text);
            match (convert(&request, &upstream), convert(&request, &upstream)) {
                (Ok(first), Ok(second)) => {
                    prop_assert_eq!(&first.body, &second.body);
                    let sent = parsed(&first.body);
                    prop_assert!(sent["input"].is_array() && sent.get("service_tier").is_none());
                    prop_assert_eq!(sent.get("store"), (endpoint != Endpoint::CountTokens).then_some(&json!(false)));
                    prop_assert!(first.dropped.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_graphic())));
                    prop_assert!(parsed(&first.with_client_tier()).is_object());
                }
                (Err(first), Err(second)) => {
                    prop_assert_eq!(&first, &second);
                    prop_assert!(matches!(first.status, 400 | 404));
                    parsed(&first.answer(endpoint.protocol(), "r").body);
                }
                other => prop_assert!(false, "not the same twice: {:?}", other),
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let request = ClientRequest { endpoint: Endpoint::Messages, body: &bytes, session: None, group: "" };
        prop_assert!(convert(&request, &upstream()).is_err());
        for endpoint in [Endpoint::Messages, Endpoint::Chat] {
            let received = play(converter(endpoint, &json!({"stream": true})), &bytes, 7);
            prop_assert!(received.answer.is_some_and(|answer| answer.status == 502));
        }
        UpstreamError { status: 500, retry_after: None, body: &bytes, own_credential: false, now: 0 }
            .answer(Protocol::Chat, "");
    }

    #[test]
    fn any_stream_keeps_the_grammar_however_it_is_cut(
        events in proptest::collection::vec(any_event(), 0..14),
        piece in 1usize..40,
        stops in any::<bool>(),
    ) {
        let body = stream_of(&events, "\n");
        for endpoint in [Endpoint::Messages, Endpoint::Chat] {
            let stop = if endpoint == Endpoint::Chat { "stop" } else { "stop_sequences" };
            let sequences = if stops { json!(["a", "bc"]) } else { json!([]) };
            let asked = json!({"stream": true, "thinking": {"type": "adaptive"}, stop: sequences});
            let received = play(converter(endpoint, &asked), &body, piece);
            prop_assert_eq!(&received, &play(converter(endpoint, &asked), &body, usize::MAX));
            match (received.whole, endpoint) {
                (None, _) => prop_assert!(received.answer.is_some() && received.stream.is_empty()),
                (Some(whole), Endpoint::Chat) => check_chat(&received.data(), whole),
                (Some(whole), _) => check_messages(&received.data(), whole),
            }
        }
    }

    #[test]
    fn a_text_with_stop_sequences_is_what_stands_before_the_first(
        text in "[ab🙂]{0,30}",
        sequences in proptest::collection::vec("[ab🙂]{1,3}", 1..4),
        piece in 1usize..5,
    ) {
        let mut watch = super::super::stop_sequences::StopSequences::new(sequences.clone());
        let letters: Vec<char> = text.chars().collect();
        let mut sent: String = letters.chunks(piece).map(|piece| watch.push(&piece.iter().collect::<String>())).collect();
        sent.push_str(&watch.flush());
        let first = sequences.iter().filter_map(|sequence| text.find(sequence.as_str())).min();
        prop_assert_eq!(watch.found().is_some(), first.is_some());
        prop_assert!(text.starts_with(&sent));
        if first.is_none() {
            prop_assert_eq!(sent, text);
        } else if piece == 1 {
            prop_assert!(sequences.iter().all(|sequence| !sent.contains(sequence.as_str())));
        }
    }

    #[test]
    fn json_is_read_and_written_without_a_change(value in any_json()) {
        let text = value.to_string();
        let node = super::super::json::parse(text.as_bytes()).expect("JSON");
        prop_assert_eq!(super::super::json::to_string(&node), text);
        let spaced = serde_json::to_string_pretty(&value).expect("JSON");
        let node = super::super::json::parse(spaced.as_bytes()).expect("JSON");
        prop_assert_eq!(parsed(super::super::json::to_string(&node).as_bytes()), value);
    }

    #[test]
    fn strings_are_unescaped_as_serde_json_does(text in any::<String>()) {
        let escaped = super::super::json::escape(&text);
        let quoted = format!("\"{escaped}\"");
        prop_assert_eq!(serde_json::from_str::<String>(&quoted).expect("JSON"), text.clone());
        let units: String = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
        let quoted = format!("\"{units}\"");
        let node = super::super::json::parse(quoted.as_bytes()).expect("JSON");
        prop_assert_eq!(node.as_text().expect("a string").into_owned(), text);
    }

    #[test]
    fn what_is_json_is_decided_as_serde_json_does(text in "[ \\[\\]{}\":,0-9eE.+tfnrulase\\\\-]{0,12}") {
        let ours = super::super::json::parse(text.as_bytes()).is_ok();
        let theirs = serde_json::from_str::<Box<serde_json::value::RawValue>>(&text).is_ok();
        prop_assert_eq!(ours, theirs, "{}", text);
    }
}
