//! A conversation without sockets: however the bytes of both sides are cut, the same bytes go on and the same lines are
//! written.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};
use tiergate::accounting::record::{RequestInfo, RequestRecord, Termination};
use tiergate::accounting::usage::Observed;
use tiergate::codec::websocket::{Opcode, encode};
use tiergate::config::Config;
use tiergate::policy::Head;
use tiergate::policy::endpoint::Endpoint;
use tiergate::proxy::websocket_session::{Awaited, WebSocketSession};
use tiergate::state::State;

const CONFIG: &str = "\
policy: policy.yaml
access_log: {path: access.log}
upstreams:
  main: {url: \"http://127.0.0.1:1\"}
";
const POLICY: &str = "\
version: 1
groups:
  fast: {platform: openai, force_fast_mode: true}
  again: {platform: openai, force_fast_mode: true, on_tier_refused: retry_without}
  plain: {platform: openai}
  one: {platform: openai, force_fast_mode: true, max_in_flight: 1}
keys:
  sk-fast: fast
  sk-one: one
  sk-again: again
  sk-plain: plain
";
const MASK: Option<[u8; 4]> = Some([7, 77, 177, 27]);

/// What a conversation came to.
#[derive(Debug, PartialEq)]
struct Outcome {
    to_upstream: Vec<u8>,
    to_client: Vec<u8>,
    lines: Vec<Value>,
}

/// The client's messages and what the server says to them.
#[derive(Clone, Debug)]
struct Script {
    key: &'static str,
    creates: Vec<String>,
    client: Vec<u8>,
    server: Vec<u8>,
}

fn script() -> impl Strategy<Value = Script> {
    let key = prop_oneof![Just("sk-fast"), Just("sk-plain")];
    let tier = prop_oneof![
        Just(r#""service_tier":"flex","#),
        Just(""),
        Just(r#""a":[1.0],"Service_Tier":null,"#),
    ];
    let turn = (tier, 0..300_usize, any::<bool>(), 1..4_usize);
    (key, vec(turn, 0..5)).prop_map(|(key, turns)| {
        let mut script = Script {
            key,
            creates: Vec::new(),
            client: Vec::new(),
            server: Vec::new(),
        };
        for (number, (tier, length, ping, fragments)) in turns.into_iter().enumerate() {
            let filler = "é".repeat(length);
            let create =
                format!(r#"{{"type":"response.create",{tier}"n":{number},"input":"{filler}"}}"#);
            fragment(&mut script.client, create.as_bytes(), fragments, ping, MASK);
            let completed = json!({
                "type": "response.completed",
                "response": {"id": format!("r{number}"), "usage": {"output_tokens": length}},
            });
            let delta = encode(true, Opcode::Text, None, br#"{"type":"delta"}"#);
            script.server.extend(delta);
            let completed = completed.to_string();
            fragment(
                &mut script.server,
                completed.as_bytes(),
                fragments,
                ping,
                None,
            );
            script.creates.push(create);
        }
        script
    })
}

/// Frames of one message, with a ping before the last of them where asked for.
fn fragment(out: &mut Vec<u8>, text: &[u8], count: usize, ping: bool, mask: Option<[u8; 4]>) {
    let pieces: Vec<&[u8]> = text.chunks(text.len().div_ceil(count)).collect();
    for (at, piece) in pieces.iter().enumerate() {
        let (first, last) = (at == 0, at + 1 == pieces.len());
        if ping && last {
            out.extend(encode(true, Opcode::Ping, mask, b"now"));
        }
        let opcode = if first {
            Opcode::Text
        } else {
            Opcode::Continuation
        };
        out.extend(encode(last, opcode, mask, piece));
    }
}

fn load(folder: &Path, config: &str) -> Arc<State> {
    let path = folder.join("tiergate.yaml");
    fs::write(&path, config).unwrap();
    fs::write(folder.join("policy.yaml"), POLICY).unwrap();
    let (config, _) = Config::load(&path).expect("a good configuration");
    let Ok((state, _)) = State::load(config) else {
        panic!("it loads");
    };
    state
}

/// A conversation that has just begun.
fn open(state: &Arc<State>, key: &str) -> WebSocketSession {
    let mut headers = HeaderMap::new();
    let key = HeaderValue::from_str(&format!("Bearer {key}")).unwrap();
    headers.insert("authorization", key);
    let policy = state.policy.current();
    let head = Head {
        method: &Method::GET,
        path: b"/v1/responses",
        query: b"",
        headers: &headers,
    };
    let Ok(decision) = policy.decide(&head) else {
        panic!("a key of the policy");
    };
    let mut connection = RequestRecord::new(0, policy);
    connection.answer.status = Some(101);
    connection.answer.upstream_status = Some(101);
    let upstream = state.upstream("main").cloned();
    let credential = decision.credential;
    let request = request("/v1/responses");
    let session = WebSocketSession::new(state, upstream, credential, request, &connection);
    let Ok(conversation) = session else {
        panic!("there is memory for it");
    };
    conversation
}

fn request(path: &str) -> RequestInfo {
    RequestInfo {
        id: uuid::Uuid::now_v7(),
        client: None,
        user_agent: None,
        method: Method::GET,
        path: path.to_owned(),
        endpoint: Endpoint::Responses,
        models: Vec::new(),
        trace: None,
    }
}

/// Runs a conversation over these chunks. All of the client comes first.
fn run(key: &str, client: &[Bytes], server: &[Bytes]) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let state = load(folder.path(), CONFIG);
    let mut conversation = open(&state, key);
    let (mut to_upstream, mut to_client) = (Vec::new(), Vec::new());
    for chunk in client {
        let passed = conversation.client_bytes(chunk.clone());
        to_upstream.extend(passed.to_upstream);
        to_client.extend(passed.to_client.unwrap_or_default());
    }
    for chunk in server {
        let relayed = conversation.server_bytes(chunk);
        to_client.extend(relayed.to_client.unwrap_or_else(|| chunk.clone()));
        to_upstream.extend(relayed.to_upstream.concat());
    }
    conversation.finish(Termination::Whole);
    let log = fs::read_to_string(folder.path().join("access.log")).unwrap();
    Outcome {
        to_upstream,
        to_client,
        lines: log.lines().map(lasting).collect(),
    }
}

/// A line without what differs from run to run.
fn lasting(line: &str) -> Value {
    let mut line: Value = serde_json::from_str(line).unwrap();
    for name in [
        "event_id",
        "instance",
        "time",
        "duration_ms",
        "ttfb_ms",
        "request_id",
    ] {
        line[name].take();
    }
    line
}

/// Cuts anywhere.
fn cut(bytes: &[u8], cuts: &[prop::sample::Index]) -> Vec<Bytes> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    let pieces = places.windows(2).map(|ends| &bytes[ends[0]..ends[1]]);
    pieces.map(Bytes::copy_from_slice).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_split_of_both_sides_gives_the_same_bytes_and_lines(
        script in script(),
        client_cuts in vec(any::<prop::sample::Index>(), 0..30),
        server_cuts in vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let one = |bytes: &[u8]| [Bytes::copy_from_slice(bytes)];
        let whole = run(script.key, &one(&script.client), &one(&script.server));
        prop_assert_eq!(&whole.to_client, &script.server);
        prop_assert_eq!(whole.lines.len(), script.creates.len());
        for (line, create) in whole.lines.iter().zip(&script.creates) {
            prop_assert_eq!(&line["request_bytes"], create.len());
            prop_assert_eq!(&line["outcome"], "ok");
            let forced = script.key == "sk-fast";
            prop_assert_eq!(line["service_tier"] == "priority", forced);
        }
        let cut = run(
            script.key,
            &cut(&script.client, &client_cuts),
            &cut(&script.server, &server_cuts),
        );
        if script.key == "sk-plain" {
            // Control frames go ahead of the message that they interrupt, so only the number of bytes is the same.
            prop_assert_eq!(whole.to_upstream.len(), script.client.len());
        }
        prop_assert_eq!(cut, whole);
    }
}

const REFUSED: &str =
    r#"{"type":"error","status":400,"error":{"code":"bad","message":"no","param":"service_tier"}}"#;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_refused_tier_is_taken_out_of_any_split_of_both_sides(
        turns in vec((any::<bool>(), 1..4_usize, any::<bool>()), 1..5),
        client_cuts in vec(any::<prop::sample::Index>(), 0..30),
        server_cuts in vec(any::<prop::sample::Index>(), 0..60),
    ) {
        let (mut client, mut server, mut heard) = (Vec::new(), Vec::new(), Vec::new());
        for (ping, fragments, delta) in &turns {
            fragment(&mut client, CREATE.as_bytes(), 1, false, MASK);
            fragment(&mut server, REFUSED.as_bytes(), *fragments, *ping, None);
            if *ping {
                heard.extend(encode(true, Opcode::Ping, None, b"now"));
            }
            if *delta {
                let delta = encode(true, Opcode::Text, None, br#"{"type":"delta"}"#);
                server.extend_from_slice(&delta);
                heard.extend(delta);
            }
        }
        let mut rest = Vec::new();
        for (number, (ping, fragments, _)) in turns.iter().enumerate() {
            let completed = COMPLETED.replace("r1", &format!("r{number}"));
            fragment(&mut rest, completed.as_bytes(), *fragments, *ping, None);
        }
        server.extend_from_slice(&rest);
        heard.extend(rest);
        let whole = run(
            "sk-again",
            &[Bytes::from(client.clone())],
            &[Bytes::from(server.clone())],
        );
        prop_assert_eq!(&whole.to_client, &heard);
        prop_assert_eq!(whole.lines.len(), turns.len());
        for line in &whole.lines {
            prop_assert_eq!(&line["outcome"], "ok");
            prop_assert_eq!(&line["service_tier"], &Value::Null);
            prop_assert_eq!(&line["tier_refused"], true);
        }
        let cut = run("sk-again", &cut(&client, &client_cuts), &cut(&server, &server_cuts));
        prop_assert_eq!(cut, whole);
    }
}

const CREATE: &str = r#"{"type":"response.create","input":[]}"#;
const CREATED: &str = r#"{"type":"response.created","response":{"id":"r1"}}"#;
const COMPLETED: &str =
    r#"{"type":"response.completed","response":{"id":"r1","usage":{"output_tokens":5}}}"#;

/// The lines of one connection on which the client creates so many responses and the server then says this.
fn lines(creates: usize, said: &[&str]) -> Vec<Value> {
    let frame = |text: &str, mask| Bytes::from(encode(true, Opcode::Text, mask, text.as_bytes()));
    let client = vec![frame(CREATE, MASK); creates];
    let server: Vec<Bytes> = said.iter().map(|text| frame(text, None)).collect();
    run("sk-fast", &client, &server).lines
}

#[test]
fn a_refusal_that_is_too_long_to_be_kept_back_is_the_clients() {
    let long = REFUSED.replace("no", &"no".repeat(9000));
    let frame = |text: &str, mask| encode(true, Opcode::Text, mask, text.as_bytes());
    let refusal = frame(&long, None);
    for size in [1000, refusal.len()] {
        let pieces: Vec<Bytes> = refusal.chunks(size).map(Bytes::copy_from_slice).collect();
        let done = run("sk-again", &[frame(CREATE, MASK).into()], &pieces);
        assert_eq!(done.to_client, refusal);
        assert_eq!(done.lines.len(), 1);
        assert_eq!(done.lines[0]["tier_refused"], true);
    }
}

#[test]
fn an_error_without_an_id_does_not_end_a_response_that_runs() {
    let error = r#"{"type":"error","status":400,"error":{"code":"response_not_found"}}"#;
    let lines = lines(1, &[CREATED, error, COMPLETED]);
    assert_eq!(lines.len(), 1);
    let told = (&lines[0]["outcome"], &lines[0]["output_tokens"]);
    assert_eq!(told, (&json!("ok"), &json!(5)));
}

#[test]
fn an_error_without_an_id_ends_the_response_that_waits_for_its_beginning() {
    let error = r#"{"type":"error","status":400,"error":{"code":"bad","param":"service_tier"}}"#;
    let lines = lines(2, &[CREATED, error, COMPLETED]);
    let told: Vec<_> = lines
        .iter()
        .map(|line| (&line["turn"], &line["outcome"], &line["upstream_error"]))
        .collect();
    let (failed, ok) = (json!("upstream_error"), json!("ok"));
    assert_eq!(
        told,
        [
            (&json!(2), &failed, &json!("bad")),
            (&json!(1), &ok, &json!(null)),
        ]
    );
    assert_eq!(lines[0]["tier_refused"], true);
}

#[test]
fn responses_whose_ids_begin_alike_are_told_apart() {
    let alike = "bGl0ZWxsbTpj".repeat(20);
    let said = |kind: &str, end: &str, output: u64| {
        let usage = json!({"output_tokens": output});
        json!({"type": kind, "response": {"id": format!("{alike}{end}"), "usage": usage}})
            .to_string()
    };
    let lines = lines(
        2,
        &[
            &said("response.created", "a", 0),
            &said("response.created", "b", 0),
            &said("response.completed", "b", 2),
            &said("response.completed", "a", 1),
        ],
    );
    let told: Vec<_> = lines
        .iter()
        .map(|line| (line["turn"].as_u64(), line["output_tokens"].as_u64()))
        .collect();
    assert_eq!(told, [(Some(2), Some(2)), (Some(1), Some(1))]);
}

#[test]
fn an_error_of_a_lane_ends_the_response_that_is_awaited_there() {
    let create = |lane: &str| format!(r#"{{"type":"response.create","stream_id":"{lane}"}}"#);
    let created = |lane: &str| {
        format!(
            r#"{{"type":"response.created","stream_id":"{lane}","response":{{"id":"{lane}"}}}}"#
        )
    };
    let error = r#"{"type":"error","stream_id":"b","error":{"code":"bad"}}"#;
    let frame = |text: &str, mask| Bytes::from(encode(true, Opcode::Text, mask, text.as_bytes()));
    let client = [frame(&create("a"), MASK), frame(&create("b"), MASK)];
    let server = [frame(&created("a"), None), frame(error, None)];
    let lines = run("sk-fast", &client, &server).lines;
    let told: Vec<_> = lines
        .iter()
        .map(|line| (&line["turn"], &line["outcome"]))
        .collect();
    let (failed, cut) = (json!("upstream_error"), json!("upstream_cut"));
    assert_eq!(told, [(&json!(2), &failed), (&json!(1), &cut)]);
}

#[test]
fn a_response_behind_one_that_an_error_has_ended_has_its_own_events() {
    let error = r#"{"type":"error","status":500,"error":{"code":"server_error"}}"#;
    let delta = r#"{"type":"response.output_text.delta","delta":"x"}"#;
    let [created, completed] = [CREATED, COMPLETED].map(|event| event.replace("r1", "r2"));
    // The first error is that of the message that waits; what comes next begins a response of its own.
    let lines = lines(2, &[CREATED, error, error, &created, delta, &completed]);
    let told: Vec<_> = lines
        .iter()
        .map(|line| (line["turn"].as_u64(), line["outcome"].as_str()))
        .collect();
    let failed = Some("upstream_error");
    assert_eq!(
        told,
        [(Some(2), failed), (Some(3), Some("ok")), (Some(1), failed)]
    );
}

/// It may be that of another message of the client, or that of the response.
#[test]
fn an_error_ends_a_response_that_runs_if_nothing_more_comes_of_it() {
    let error = r#"{"type":"error","status":500,"error":{"code":"server_error"}}"#;
    let delta = r#"{"type":"response.output_text.delta","delta":"x"}"#;
    for (events, told) in [
        (&[CREATED, error][..], ["upstream_error", "server_error"]),
        (&[CREATED, error, error], ["upstream_error", "server_error"]),
        (&[CREATED, error, delta], ["upstream_cut", ""]),
        (&[CREATED, error, COMPLETED], ["ok", ""]),
        (&[CREATED, error, delta, COMPLETED], ["ok", ""]),
    ] {
        let lines = lines(1, events);
        let [outcome, code] = told;
        assert_eq!(lines.len(), 1, "{events:?}");
        assert_eq!(lines[0]["outcome"], outcome, "{events:?}");
        assert_eq!(lines[0]["upstream_error"].as_str().unwrap_or(""), code);
    }
}

#[test]
fn a_response_that_may_have_failed_holds_no_place_and_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let state = load(folder.path(), CONFIG);
    let mut conversation = open(&state, "sk-fast");
    let frame = |mask, text: &str| Bytes::from(encode(true, Opcode::Text, mask, text.as_bytes()));
    let error = r#"{"type":"error","status":500,"error":{"code":"server_error"}}"#;
    conversation.client_bytes(frame(MASK, CREATE));
    conversation.newly_awaited();
    for (text, awaited) in [
        (CREATED, Awaited::Message),
        (error, Awaited::PerhapsMore),
        (CREATED, Awaited::Message),
        (COMPLETED, Awaited::Nothing),
    ] {
        conversation.server_bytes(&frame(None, text));
        assert_eq!(conversation.newly_awaited(), Some(awaited), "{text}");
    }
    // One place: the next message has it.
    let mut conversation = open(&state, "sk-one");
    for _ in 0..2 {
        let output = conversation.client_bytes(frame(MASK, CREATE));
        assert!(output.refusal.is_none() && !output.to_upstream.is_empty());
        conversation.server_bytes(&frame(None, CREATED));
        conversation.server_bytes(&frame(None, error));
    }
}

#[test]
fn a_response_whose_end_is_told_twice_ends_once() {
    let again = COMPLETED.replace("response.completed", "response.done");
    let second = COMPLETED.replace("r1", "r2");
    let told = lines(2, &[CREATED, COMPLETED, &again, &again, &second]);
    let ids: Vec<_> = told.iter().map(|line| &line["response_id"]).collect();
    assert_eq!(ids, [&json!("r1"), &json!("r2")]);
}

#[test]
fn a_response_ends_by_done_or_cancelled_and_the_next_one_has_its_own_end() {
    for kind in ["response.done", "response.cancelled", "response.canceled"] {
        let first = COMPLETED.replace("response.completed", kind);
        let second = COMPLETED.replace("r1", "r2");
        let lines = lines(2, &[CREATED, &first, &second]);
        let told: Vec<_> = lines
            .iter()
            .map(|line| (&line["turn"], &line["response_id"], &line["terminal_event"]))
            .collect();
        let completed = json!("response.completed");
        assert_eq!(
            told,
            [
                (&json!(1), &json!("r1"), &json!(kind)),
                (&json!(2), &json!("r2"), &completed),
            ]
        );
    }
}

#[test]
fn a_ping_of_the_upstream_tells_that_a_response_goes_on_but_not_that_one_begins() {
    let folder = tempfile::tempdir().unwrap();
    let state = load(folder.path(), CONFIG);
    let mut conversation = open(&state, "sk-fast");
    let frame = |opcode, mask, text: &str| Bytes::from(encode(true, opcode, mask, text.as_bytes()));
    let created = frame(Opcode::Text, None, CREATED);
    let completed = frame(Opcode::Text, None, COMPLETED);
    let ping = frame(Opcode::Ping, None, "now");
    let pong = frame(Opcode::Pong, None, "now");
    conversation.client_bytes(frame(Opcode::Text, MASK, CREATE));
    assert_eq!(conversation.newly_awaited(), Some(Awaited::Response));
    for (bytes, awaited) in [
        (&ping, None),
        (&created, Some(Awaited::Message)),
        (&ping, Some(Awaited::Message)),
        (&pong, None),
        (&completed, Some(Awaited::Nothing)),
    ] {
        conversation.server_bytes(bytes);
        assert_eq!(conversation.newly_awaited(), awaited);
    }
    // A client that is to go is told when the message under way has ended, which pings do not put off.
    conversation.client_bytes(frame(Opcode::Text, MASK, CREATE));
    conversation.server_bytes(&created);
    let fragment = encode(false, Opcode::Text, None, b"{");
    conversation.server_bytes(&fragment.into());
    conversation.client_bytes(frame(Opcode::Text, MASK, "{"));
    conversation.newly_awaited();
    conversation.server_bytes(&ping);
    assert_eq!(conversation.newly_awaited(), None);
}

#[test]
fn a_message_is_under_way_from_its_first_byte_to_its_last() {
    let folder = tempfile::tempdir().unwrap();
    let state = load(folder.path(), CONFIG);
    for key in ["sk-fast", "sk-plain"] {
        let mut conversation = open(&state, key);
        let frame = |fin, opcode, text: &str| encode(fin, opcode, MASK, text.as_bytes());
        let whole = frame(true, Opcode::Text, CREATE);
        let begins = frame(false, Opcode::Text, CREATE);
        let ends = frame(true, Opcode::Continuation, " ");
        let ping = frame(true, Opcode::Ping, "now");
        for (bytes, underway) in [
            (whole.clone(), None),
            (whole[..1].to_vec(), Some(1)),
            (whole[1..20].to_vec(), Some(1)),
            ([&whole[20..], &whole[..9]].concat(), Some(2)),
            (whole[9..].to_vec(), None),
            (begins, Some(3)),
            (ping, Some(3)),
            (ends, None),
        ] {
            conversation.client_bytes(bytes.into());
            assert_eq!(conversation.underway(), underway);
        }
    }
}

/// What cannot be billed is not served, on a connection that was there before as well.
#[test]
fn no_response_is_created_while_the_log_takes_no_more_lines() {
    let folder = tempfile::tempdir().unwrap();
    let state = load(folder.path(), &CONFIG.replace("access.log", "/dev/full"));
    let mut conversation = open(&state, "sk-fast");
    let create = Bytes::from(encode(true, Opcode::Text, MASK, CREATE.as_bytes()));
    let output = conversation.client_bytes(create.clone());
    assert!(output.refusal.is_none());
    // Control characters take six bytes each in JSON.
    let long = request(&"\u{1}".repeat(1024));
    while !state.log.is_full() {
        let record = RequestRecord::new(0, state.policy.current());
        let observed = Observed::default();
        record.log(&state.ledger(), &long, None, Termination::Whole, &observed);
    }
    let output = conversation.client_bytes(create);
    assert!(output.to_upstream.is_empty());
    let told = String::from_utf8_lossy(&output.to_client.unwrap()).into_owned();
    assert!(
        told.contains(r#""status":503"#) && told.contains("access_log_unavailable"),
        "{told}"
    );
}
