//! The items of an answer: each reaches the client once, whatever an upstream calls them.

use super::*;

/// How an upstream numbers its items.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Index {
    FromZero,
    FromOne,
    /// 0 for all of them.
    Same,
    Absent,
}

/// How it names them.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Id {
    Own,
    /// Another one in every event.
    Fresh,
    Absent,
}

/// When it says that they are whole.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    OneByOne,
    AllAtLast,
    Never,
}

/// The ways of an upstream.
#[derive(Clone, Copy, Debug)]
struct Ways {
    index: Index,
    id: Id,
    end: End,
    /// The last event has the items.
    output: bool,
}

impl Ways {
    /// The answer of these items, with or without what comes before an item is whole.
    fn events(self, kinds: &[&str], with_beginnings: bool) -> Vec<Value> {
        let (mut events, mut ends) = (Vec::new(), Vec::new());
        for (at, kind) in kinds.iter().enumerate() {
            let mut own = Vec::new();
            if with_beginnings {
                own.push(item_event("added", empty(kind, at)));
                own.extend(deltas(kind, at));
            }
            let done = item_event("done", whole(kind, at));
            match self.end {
                End::OneByOne => own.push(done),
                End::AllAtLast => ends.push(self.told(at, events.len(), done)),
                End::Never => {}
            }
            let before = events.len();
            let own = own.into_iter().enumerate();
            events.extend(own.map(|(nth, event)| self.told(at, before + nth, event)));
        }
        events.extend(ends);
        let items = kinds.iter().enumerate().filter(|_| self.output);
        let items = items.map(|(at, kind)| self.named(at, "end", whole(kind, at), "id"));
        let response = json!({"id": "resp_1", "output": items.collect::<Vec<Value>>()});
        events.push(json!({"type": "response.completed", "response": response}));
        events
    }

    /// An event of the item `at` as this upstream tells it.
    fn told(self, at: usize, number: usize, mut event: Value) -> Value {
        match self.index {
            Index::FromZero => event["output_index"] = json!(at),
            Index::FromOne => event["output_index"] = json!(at + 1),
            Index::Same => event["output_index"] = json!(0),
            Index::Absent => {}
        }
        let number = format!("{number}{}", event["type"]);
        if event["item"].is_null() {
            return self.named(at, &number, event, "item_id");
        }
        event["item"] = self.named(at, &number, event["item"].take(), "id");
        event
    }

    fn named(self, at: usize, number: &str, mut value: Value, member: &str) -> Value {
        match self.id {
            Id::Own => value[member] = json!(format!("item_{at}")),
            Id::Fresh => value[member] = json!(format!("item_{at}_{number}")),
            Id::Absent => {}
        }
        value
    }
}

fn item_event(what: &str, item: Value) -> Value {
    json!({"type": format!("response.output_item.{what}"), "item": item})
}

/// An item of which nothing has come.
fn empty(kind: &str, at: usize) -> Value {
    match kind {
        "message" => json!({"type": kind, "content": []}),
        "reasoning" => json!({"type": kind, "summary": []}),
        _ => json!({"type": kind, "call_id": format!("c{at}"), "name": "T", "arguments": ""}),
    }
}

fn whole(kind: &str, at: usize) -> Value {
    let mut item = empty(kind, at);
    let text = deltas(kind, at).map(|delta| delta["delta"].as_str().map(str::to_owned));
    let text: String = text.into_iter().flatten().collect();
    match kind {
        "message" => item["content"] = json!([{"type": "output_text", "text": text}]),
        "reasoning" => item["summary"] = json!([{"type": "summary_text", "text": text}]),
        _ => item["arguments"] = json!(text),
    }
    item
}

fn deltas(kind: &str, at: usize) -> [Value; 2] {
    let (name, first, second) = match kind {
        "message" => ("output_text", format!("{at}a"), format!("{at}b")),
        "reasoning" => ("reasoning_summary_text", format!("{at}a"), format!("{at}b")),
        _ => (
            "function_call_arguments",
            format!("{{\"a\":{at}"),
            "}".to_owned(),
        ),
    };
    let name = format!("response.{name}.delta");
    [first, second].map(|delta| json!({"type": name, "delta": delta}))
}

/// What a client of Messages has to get of these items.
fn content(kinds: &[&str]) -> Vec<Value> {
    let block = |(at, kind): (usize, &&str)| match *kind {
        "message" => json!({"type": "text", "text": format!("{at}a{at}b")}),
        "reasoning" => {
            json!({"type": "thinking", "thinking": format!("{at}a{at}b"), "signature": ""})
        }
        _ => json!({"type": "tool_use", "id": format!("c{at}"), "name": "T", "input": {"a": at}}),
    };
    kinds.iter().enumerate().map(block).collect()
}

const ANSWERS: [&[&str]; 9] = [
    &["message"],
    &["function_call"],
    &["reasoning", "message"],
    &["reasoning", "function_call"],
    &["message", "function_call"],
    &["function_call", "message"],
    &["function_call", "function_call"],
    &["message", "message"],
    &["reasoning", "message", "function_call", "function_call"],
];

/// The content of the message that a client gets for these events.
fn content_of(events: &[Value]) -> Value {
    let asked = json!({"thinking": {"type": "adaptive"}});
    let converter = converter(Endpoint::Messages, &asked);
    let answer = play(converter, &stream_of(events, "\n"), usize::MAX).answer;
    parsed(&answer.expect("an answer").body)["content"].take()
}

fn check(ways: Ways, with_beginnings: bool) {
    for kinds in ANSWERS {
        let events = ways.events(kinds, with_beginnings);
        assert_eq!(
            content_of(&events),
            json!(content(kinds)),
            "{ways:?} {kinds:?}\n{events:#?}"
        );
    }
}

#[test]
fn every_item_is_shown_once_however_it_is_numbered_named_and_ended() {
    for index in [Index::FromZero, Index::FromOne, Index::Same] {
        for id in [Id::Own, Id::Fresh, Id::Absent] {
            for end in [End::OneByOne, End::AllAtLast, End::Never] {
                for output in [true, false] {
                    check(
                        Ways {
                            index,
                            id,
                            end,
                            output,
                        },
                        true,
                    );
                }
            }
        }
    }
}

#[test]
fn items_that_come_whole_are_told_apart_by_their_ids() {
    for index in [Index::FromZero, Index::FromOne, Index::Same, Index::Absent] {
        for (id, end) in [(Id::Own, End::OneByOne), (Id::Own, End::AllAtLast)] {
            for output in [true, false] {
                check(
                    Ways {
                        index,
                        id,
                        end,
                        output,
                    },
                    false,
                );
            }
        }
    }
}

fn event(kind: &str, index: u64, members: Value) -> Value {
    let mut event = members;
    event["type"] = json!(format!("response.{kind}"));
    event["output_index"] = json!(index);
    event
}

fn added(index: u64, kind: &str, id: &str) -> Value {
    let item = json!({"type": kind, "id": id, "call_id": id, "name": "T"});
    event("output_item.added", index, json!({"item": item}))
}

fn text(index: u64, id: &str, delta: &str) -> Value {
    let members = json!({"item_id": id, "delta": delta});
    event("output_text.delta", index, members)
}

fn message(id: &str, text: &str) -> Value {
    json!({"type": "message", "id": id, "content": [{"type": "output_text", "text": text}]})
}

fn call(id: &str, arguments: Value) -> Value {
    json!({"type": "function_call", "id": id, "call_id": id, "name": "T", "arguments": arguments})
}

fn done(index: u64, item: &Value) -> Value {
    event("output_item.done", index, json!({"item": item}))
}

fn completed(output: &[Value]) -> Value {
    json!({"type": "response.completed", "response": {"output": output}})
}

fn said(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

fn called(id: &str, input: Value) -> Value {
    json!({"type": "tool_use", "id": id, "name": "T", "input": input})
}

#[test]
fn an_item_that_is_under_way_is_told_by_its_id_though_its_index_changes() {
    let (message, call) = (message("m", "a"), call("f", json!("{}")));
    let late = event("output_text.done", 1, json!({"item_id": "m", "text": "a"}));
    let events = [
        added(0, "message", "m"),
        text(0, "m", "a"),
        added(0, "function_call", "f"),
        done(0, &call),
        late,
        done(1, &message),
        completed(&[call, message]),
    ];
    assert_eq!(
        content_of(&events),
        json!([said("a"), called("f", json!({}))])
    );
}

#[test]
fn items_of_one_index_may_come_mixed() {
    let more = |id: &str, delta: &str| {
        let members = json!({"item_id": id, "delta": delta});
        event("function_call_arguments.delta", 0, members)
    };
    let calls = [call("f", json!("{\"a\":1}")), call("g", json!("{\"a\":2}"))];
    let events = [
        added(0, "function_call", "f"),
        added(0, "function_call", "g"),
        more("g", "{\"a\":"),
        more("f", "{\"a\":1"),
        more("g", "2}"),
        more("f", "}"),
        done(0, &calls[1]),
        done(0, &calls[0]),
        completed(&calls),
    ];
    let expected = json!([called("f", json!({"a": 1})), called("g", json!({"a": 2}))]);
    assert_eq!(content_of(&events), expected);
}

#[test]
fn text_of_an_id_that_nobody_announced_is_no_more_of_an_item_that_is_done() {
    let call = call("f", json!("{}"));
    let mut events = vec![
        added(0, "function_call", "f"),
        done(0, &call),
        text(0, "x", "a"),
    ];
    events.push(completed(&[call, message("m", "a")]));
    assert_eq!(
        content_of(&events),
        json!([called("f", json!({})), said("a")])
    );
}

#[test]
fn texts_that_nobody_announced_are_told_apart_by_their_ids() {
    let messages = [message("m", "ab"), message("n", "cd")];
    let deltas = [("m", "a"), ("m", "b"), ("n", "c"), ("n", "d")];
    let mut events: Vec<Value> = deltas
        .iter()
        .map(|(id, delta)| text(0, id, delta))
        .collect();
    events.extend(messages.iter().map(|message| done(0, message)));
    events.push(completed(&messages));
    assert_eq!(content_of(&events), json!([said("ab"), said("cd")]));
    let new_ids = [
        text(0, "m", "a"),
        text(0, "n", "b"),
        completed(&[message("o", "ab")]),
    ];
    assert_eq!(content_of(&new_ids), json!([said("ab")]));
}

#[test]
fn what_a_message_lacks_that_was_ended_too_early_comes_from_the_whole_response() {
    let ended = [
        added(0, "message", "m"),
        text(0, "m", "a"),
        done(0, &message("m", "a")),
    ];
    for (last, expected) in [
        ("a", json!([said("a")])),
        ("ab", json!([said("a"), said("b")])),
        ("other", json!([said("a")])),
    ] {
        let mut events = ended.to_vec();
        events.extend([text(0, "m", "b"), completed(&[message("m", last)])]);
        assert_eq!(content_of(&events), expected, "{last}");
    }
}

#[test]
fn a_text_does_not_wait_for_the_end_of_reasoning_that_has_its_index() {
    let thinks = json!({"stream": true, "thinking": {"type": "adaptive"}});
    let mut converter = converter(Endpoint::Messages, &thinks);
    let thought = json!({"item_id": "r", "delta": "t"});
    let events = [
        added(0, "reasoning", "r"),
        event("reasoning_summary_text.delta", 0, thought),
        added(0, "message", "m"),
        text(0, "m", "a"),
    ];
    let Output::Write(written) = converter.feed(&stream_of(&events, "\n")) else {
        panic!("nothing was written")
    };
    assert!(text_of(written).contains(r#""text":"a""#));
}

#[test]
fn arguments_that_are_an_object_are_its_text() {
    let odd = json!({"a": [1.0, "é\"", null], "b": {}});
    let call = call("f", odd.clone());
    let arguments = json!({"item_id": "f", "arguments": odd});
    let told = event("function_call_arguments.done", 0, arguments);
    let start = added(0, "function_call", "f");
    let ends = completed(std::slice::from_ref(&call));
    for events in [
        vec![ends.clone()],
        vec![start.clone(), done(0, &call), ends.clone()],
        vec![start, told, completed(&[])],
    ] {
        assert_eq!(content_of(&events), json!([called("f", odd.clone())]));
    }
    let whole = r#"{"output":[{"type":"function_call","call_id":"f","name":"T","arguments":{"a":1.0,"b":"\u00e9"}}]}"#;
    let answer = play(converter(Endpoint::Chat, &json!({})), whole.as_bytes(), 9).answer;
    let message = &parsed(&answer.expect("an answer").body)["choices"][0]["message"];
    let arguments = &message["tool_calls"][0]["function"]["arguments"];
    assert_eq!(arguments, r#"{"a":1.0,"b":"\u00e9"}"#);
}
