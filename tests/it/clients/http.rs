//! Requests over HTTP: what of each reaches the upstream, what comes back, and what the log says of it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{FIXTURE_KEY, fixtures, split_tiers};
use crate::support::client::{Answer, Connection};
use crate::support::proxy::{self, Proxy};
use crate::support::upstream::{self, Received, Reply, Upstream, reply};

const FAST_MODE_BETA: &str = "fast-mode-2026-02-01";

/// A captured request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fixture {
    #[serde(skip)]
    name: String,
    /// Which client, and its major version where it matters.
    client: String,
    method: String,
    path: String,
    /// As the log is to name it.
    endpoint: String,
    headers: Vec<(String, String)>,
    /// Without its content coding.
    body: String,
}

/// One fixture, sent through the proxy, seen from all sides.
struct Replayed {
    fixture: Fixture,
    answer: Answer,
    received: Received,
    record: Value,
}

/// Who a client belongs to.
#[derive(Clone, Copy, PartialEq)]
enum Group {
    Forced,
    Plain,
}

impl Group {
    fn key(self) -> &'static str {
        match self {
            Group::Forced => "sk-fast",
            Group::Plain => "sk-plain",
        }
    }
}

impl Fixture {
    fn all() -> Vec<Fixture> {
        let named = |(name, fixture)| Fixture { name, ..fixture };
        fixtures("clients").into_iter().map(named).collect()
    }

    /// The bytes after the head.
    fn sent_body(&self) -> Vec<u8> {
        match self.header("content-encoding") {
            // As Codex does it.
            Some("zstd") => zstd::encode_all(self.body.as_bytes(), 3).unwrap(),
            None => self.body.clone().into_bytes(),
            Some(other) => panic!("{}: a body in {other}", self.name),
        }
    }

    /// What the body says; null where it is not JSON.
    fn json(&self) -> Value {
        // A lone surrogate, as Node writes it, is no text to serde_json.
        serde_json::from_str(&self.body.replace("\\ud800", "?")).unwrap_or_default()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter();
        let found = found.find(|(found, _)| found.eq_ignore_ascii_case(name))?;
        Some(&found.1)
    }

    /// The headers as they are sent with this key.
    fn sent_headers(&self, key: &str) -> Vec<(String, String)> {
        let value_of = |name: &str, value: &str| match name.to_ascii_lowercase().as_str() {
            "content-length" => self.sent_body().len().to_string(),
            _ => value.replace(FIXTURE_KEY, key),
        };
        let headers = self.headers.iter();
        headers
            .map(|(name, value)| (name.clone(), value_of(name, value)))
            .collect()
    }

    fn message(&self, key: &str) -> Vec<u8> {
        let mut message = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        for (name, value) in self.sent_headers(key) {
            message.push_str(&format!("{name}: {value}\r\n"));
        }
        message.push_str("\r\n");
        [message.as_bytes(), &self.sent_body()].concat()
    }

    fn takes_tier(&self) -> bool {
        !matches!(self.endpoint.as_str(), "other" | "embeddings")
    }

    /// Whether its answer is looked at, and so asked for without a coding.
    fn is_observed(&self) -> bool {
        self.endpoint != "other"
    }

    fn streams(&self) -> bool {
        self.json()["stream"] == true
    }

    fn asks_for_fast_mode(&self) -> bool {
        let betas = self.header("anthropic-beta").unwrap_or_default();
        self.endpoint == "messages" && betas.split(',').any(|beta| beta == FAST_MODE_BETA)
    }

    /// Whose tier is sent, as the log tells it.
    fn reason(&self, group: Group) -> &'static str {
        let names_tier = self.json()["service_tier"].is_string();
        match group {
            Group::Forced if self.takes_tier() => "group_force",
            Group::Plain if self.asks_for_fast_mode() => "fast_mode_beta",
            _ if names_tier => "client",
            _ => "none",
        }
    }

    fn is_rewritten(&self, group: Group) -> bool {
        matches!(self.reason(group), "group_force" | "fast_mode_beta")
    }

    /// The pieces of a stream such as this request gets, and the name of the event that ends it.
    fn stream(&self) -> (&'static [&'static str], &'static str) {
        match self.endpoint.as_str() {
            "responses" => (&RESPONSES_STREAM, "response.completed"),
            "chat_completions" => (&CHAT_STREAM, "[DONE]"),
            "messages" => (&MESSAGES_STREAM, "message_stop"),
            other => panic!("{}: {other} does not stream", self.name),
        }
    }

    fn reply(&self) -> Reply {
        match self.streams() {
            true => reply(200).sse(self.stream().0),
            false => reply(200).json(ANSWER),
        }
    }

    fn answer_body(&self) -> String {
        match self.streams() {
            true => self.stream().0.concat(),
            false => ANSWER.to_owned(),
        }
    }
}

const ANSWER: &str = r#"{"id":"x_1"}"#;
const RESPONSES_STREAM: [&str; 2] = [
    "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"p",
    "ong\"}\n\nevent: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"resp_1\"}}\n\n",
];
const CHAT_STREAM: [&str; 2] = [
    "data: {\"id\":\"chatcmpl-1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"pong\"}}]}\n\n",
    "data: [DONE]\n\n",
];
const MESSAGES_STREAM: [&str; 2] = [
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\"}}\n\n",
    "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
];

/// Sends every fixture as a member of the group, one after the other.
fn replay(group: Group) -> Vec<Replayed> {
    let fixtures = Fixture::all();
    let upstream = upstream::script(fixtures.iter().map(Fixture::reply)).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let mut replayed = Vec::new();
    for (number, fixture) in fixtures.into_iter().enumerate() {
        let answer = proxy.anonymous().exchange(&fixture.message(group.key()));
        assert_eq!(answer.status, 200, "{}: {answer:?}", fixture.name);
        replayed.push(look(&proxy, &upstream, number, fixture, answer));
    }
    replayed
}

/// What became of the request of this number, counted from 0.
fn look(
    proxy: &Proxy,
    upstream: &Upstream,
    number: usize,
    fixture: Fixture,
    answer: Answer,
) -> Replayed {
    Replayed {
        fixture,
        answer,
        received: upstream.requests(number + 1).remove(number),
        record: proxy.access_log(number + 1).remove(number),
    }
}

impl Replayed {
    /// Whether the upstream got the client's body, but for the tier in it where that is the proxy's to set.
    fn assert_body(&self, group: Group) {
        let (name, got) = (&self.fixture.name, &self.received.body);
        assert!(self.received.whole, "{name}");
        if !self.fixture.is_rewritten(group) {
            assert_eq!(got, &self.fixture.sent_body(), "{name}");
            return;
        }
        let sent = self.fixture.body.as_bytes();
        let (tiers, others) = split_tiers(got);
        assert_eq!(tiers, [br#""service_tier":"priority""#], "{name}");
        assert_eq!(others, split_tiers(sent).1, "{name}");
        let length = got.len().to_string();
        assert_eq!(self.received.header("content-length"), [length], "{name}");
    }

    /// Whether the upstream got the client's headers, but for those that the proxy has a reason to change.
    fn assert_headers(&self, group: Group) {
        let fixture = &self.fixture;
        let sent = fixture.sent_headers(group.key());
        let mut expected: BTreeMap<_, _> = sent.into_iter().collect();
        let mut got = BTreeMap::new();
        for line in self.received.head.trim_end().lines().skip(1) {
            let (name, value) = line.split_once(": ").unwrap();
            let twice = got.insert(name.to_owned(), value.to_owned());
            assert_eq!(twice, None, "{}: {name}", fixture.name);
        }
        let is_open = |name: &str| {
            let mut open = vec!["host", "connection"];
            if fixture.is_observed() {
                open.push("accept-encoding");
            }
            if fixture.is_rewritten(group) {
                open.extend(["content-length", "content-encoding", "x-codex-routing-hint"]);
            }
            open.contains(&name.to_ascii_lowercase().as_str())
        };
        expected.retain(|name, _| !is_open(name));
        got.retain(|name, _| !is_open(name));
        assert_eq!(got, expected, "{}", fixture.name);
        let line = format!("{} {} HTTP/1.1", fixture.method, fixture.path);
        assert_eq!(self.received.request_line(), line, "{}", fixture.name);
    }

    fn assert_answer(&self) {
        let expected = self.fixture.answer_body();
        assert_eq!(self.answer.text(), expected, "{}", self.fixture.name);
        assert!(self.answer.whole, "{}", self.fixture.name);
    }

    fn assert_record(&self, group: Group) {
        let fixture = &self.fixture;
        let asked = fixture.json();
        let client = &asked["service_tier"];
        let tier = match fixture.is_rewritten(group) {
            true => &json!("priority"),
            false => client,
        };
        let expected = json!({
            "key": if group == Group::Forced { "fiona" } else { "paula" },
            "method": fixture.method,
            "path": fixture.path.split('?').next(),
            "user_agent": fixture.header("user-agent"),
            "endpoint": fixture.endpoint,
            "transport": if fixture.streams() { "sse" } else { "http" },
            "model": asked["model"],
            "service_tier": tier,
            "service_tier_client": client,
            "tier_reason": fixture.reason(group),
            "status": 200,
            "outcome": "ok",
            "request_bytes": fixture.sent_body().len(),
            "upstream_request_bytes": self.received.body.len(),
            "response_bytes": self.answer.body.len(),
        });
        let names = expected.as_object().unwrap().keys();
        let found: Value = names
            .map(|name| (name.clone(), self.record[name].clone()))
            .collect::<serde_json::Map<_, _>>()
            .into();
        assert_eq!(found, expected, "{}", fixture.name);
    }
}

#[test]
fn each_client_of_a_forced_group_is_sent_on_with_the_tier_and_nothing_else_changed() {
    for replayed in replay(Group::Forced) {
        replayed.assert_body(Group::Forced);
        replayed.assert_headers(Group::Forced);
        replayed.assert_answer();
        replayed.assert_record(Group::Forced);
    }
}

#[test]
fn each_client_of_another_group_is_sent_on_as_it_came_unless_it_asks_for_fast_mode() {
    for replayed in replay(Group::Plain) {
        replayed.assert_body(Group::Plain);
        replayed.assert_headers(Group::Plain);
        replayed.assert_answer();
        replayed.assert_record(Group::Plain);
    }
}

/// Codex compresses its requests when it is logged in with ChatGPT, and names the tier in a header as well.
#[test]
fn a_compressed_request_of_codex_arrives_in_the_clear_with_a_hint_that_agrees() {
    let mut seen = 0;
    for replayed in replay(Group::Forced) {
        let Some(hint) = replayed.fixture.header("x-codex-routing-hint") else {
            continue;
        };
        let name = &replayed.fixture.name;
        let model = hint.split(';').next().unwrap();
        let expected = format!("{model};tier=priority");
        let received = &replayed.received;
        assert_eq!(
            received.header("x-codex-routing-hint"),
            [expected],
            "{name}"
        );
        assert_eq!(replayed.fixture.header("content-encoding"), Some("zstd"));
        assert_eq!(received.header("content-encoding"), [""; 0], "{name}");
        assert!(received.body.starts_with(b"{"), "{name}");
        seen += 1;
    }
    assert_eq!(seen, 2, "one that names the tier and one that does not");
}

/// Codex and OpenAI's Python SDK close their connection at the event that ends the stream. If the end of the message
/// comes in a later packet, they are gone by then, with nothing amiss.
#[test]
fn a_client_that_leaves_at_the_last_event_has_been_served() {
    let mut tried = BTreeMap::new();
    for fixture in Fixture::all() {
        if !fixture.streams() || tried.contains_key(&fixture.endpoint) {
            continue;
        }
        let name = &fixture.name;
        let (pieces, terminal) = fixture.stream();
        let upstream = upstream::script([reply(200).sse_begun(pieces).hold()]).run();
        let proxy = proxy::new().upstream(&upstream).run();
        let mut connection = proxy.anonymous().connect();
        connection.send(fixture.message("sk-fast"));
        assert_eq!(connection.head().unwrap().status, 200, "{name}");
        read_chunks(&mut connection, &pieces.concat());
        drop(connection);
        let record = proxy.record();
        assert_eq!(record["terminal_event"], terminal, "{name}");
        assert_eq!(record["outcome"], "ok", "{name}");
        tried.insert(fixture.endpoint.clone(), ());
        upstream.release();
    }
    let endpoints: Vec<_> = tried.into_keys().collect();
    assert_eq!(endpoints, ["chat_completions", "messages", "responses"]);
}

#[test]
fn a_client_that_leaves_before_the_last_event_has_gone() {
    let fixture = Fixture::all().into_iter().find(Fixture::streams).unwrap();
    let (pieces, _) = fixture.stream();
    let upstream = upstream::script([reply(200).sse_begun(&pieces[..1]).hold()]).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let mut connection = proxy.anonymous().connect();
    connection.send(fixture.message("sk-fast"));
    assert_eq!(connection.head().unwrap().status, 200);
    read_chunks(&mut connection, pieces[0]);
    drop(connection);
    assert_eq!(proxy.record()["outcome"], "client_closed");
    upstream.release();
}

/// Reads chunks until they have brought this text.
fn read_chunks(connection: &mut Connection, text: &str) {
    let mut read = Vec::new();
    while read.len() < text.len() {
        read.extend(connection.chunk().expect("a chunk"));
    }
    assert_eq!(String::from_utf8(read).unwrap(), text);
}

/// The SDKs take the text of an error from where their own protocol has it, and retry unless they are told not to.
#[test]
fn each_client_learns_in_its_own_protocol_that_its_key_is_unknown() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    for fixture in Fixture::all() {
        let name = &fixture.name;
        let answer = proxy.anonymous().exchange(&fixture.message("sk-unknown"));
        assert_eq!(answer.status, 401, "{name}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("x-should-retry"), Some("false"), "{name}");
        let error = &answer.json()["error"];
        if fixture.endpoint == "messages" {
            assert_eq!(answer.json()["type"], "error", "{name}");
            assert_eq!(error["type"], "authentication_error", "{name}");
        } else {
            assert_eq!(answer.openai_code(), "invalid_api_key", "{name}");
            assert_eq!(error["type"], "invalid_request_error", "{name}");
        }
    }
    upstream.assert_untouched();
}

/// A capture that is lost would otherwise go unnoticed.
#[test]
fn there_are_captures_of_every_client() {
    let fixtures = Fixture::all();
    for client in [
        "codex",
        "openai-python-1",
        "openai-python-2",
        "openai-python-3",
        "openai-node",
        "anthropic-python-0",
        "anthropic-python-1",
        "anthropic-python-2",
        "anthropic-node",
    ] {
        let of_client = fixtures.iter().filter(|fixture| fixture.client == client);
        assert!(of_client.clone().count() > 0, "{client}");
        assert!(
            of_client.clone().any(Fixture::takes_tier),
            "{client}: nothing that takes a tier"
        );
    }
}
