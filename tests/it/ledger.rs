//! The whole account of a busy and faulty day: what `tiergate report` makes of the log against the books that the upstream
//! kept for itself, to the token, the tier and the millionth of a dollar.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::command::{run, stderr};
use crate::support::proxy::{self, Proxy};
use crate::support::{client::Client, eventually};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};

const REQUESTS: usize = 2000;
const AT_A_TIME: usize = 250;
/// Between two pieces of an answer whose client leaves in between.
const PAUSE: Duration = Duration::from_millis(30);

/// Whole dollars per million tokens, so that a sum of tokens times prices is in millionths of a dollar.
const PRICES: &str = "\
version: 1
prices:
  - models: [m-*]
    tiers:
      default: {input: 5, cached_input: 1, cache_write: 6, output: 30}
      priority: {input: 10, cached_input: 2, cache_write: 12, output: 60}
      flex: {input: 3, cached_input: 1, cache_write: 4, output: 15}
";

/// What happens to a request, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    Json,
    Stream,
    ChatJson,
    ChatStream,
    /// Its client did not ask for usage.
    ChatSilent,
    MessagesJson,
    MessagesStream,
    Downgraded,
    NotForced,
    Incomplete,
    Failed,
    Background,
    /// Asks for a response that was made in the background: what it used is no further use.
    Fetched,
    Status,
    Cut,
    ResetInside,
    ResetBefore,
    ClientEnds,
    ClientResets,
    WrongKey,
    WrongBody,
    ClientLeavesEarly,
}

const CASES: [Case; 22] = [
    Case::Json,
    Case::Stream,
    Case::ChatJson,
    Case::ChatStream,
    Case::ChatSilent,
    Case::MessagesJson,
    Case::MessagesStream,
    Case::Downgraded,
    Case::NotForced,
    Case::Incomplete,
    Case::Failed,
    Case::Background,
    Case::Fetched,
    Case::Status,
    Case::Cut,
    Case::ResetInside,
    Case::ResetBefore,
    Case::ClientEnds,
    Case::ClientResets,
    Case::WrongKey,
    Case::WrongBody,
    Case::ClientLeavesEarly,
];

impl Case {
    fn of(number: usize) -> Self {
        CASES[number % CASES.len()]
    }

    fn path(self, number: usize) -> String {
        match self {
            Case::ChatJson | Case::ChatStream | Case::ChatSilent => "/v1/chat/completions".into(),
            Case::MessagesJson | Case::MessagesStream => "/v1/messages".into(),
            Case::Fetched => format!("/v1/responses/resp_{number}"),
            _ => "/v1/responses".into(),
        }
    }

    fn served(self, sent: Option<&str>) -> String {
        match self {
            Case::Downgraded => "default".into(),
            _ => sent.unwrap_or("default").to_owned(),
        }
    }
}

/// Tokens of one response: input with all its parts, cached, written to the cache, output, reasoning.
fn tokens(number: usize) -> [u64; 5] {
    let number = number as u64;
    let (cached, written) = (number % 97, number % 31);
    let fresh = 1 + number * 7 % 1013;
    [
        fresh + cached + written,
        cached,
        written,
        1 + number * 13 % 509,
        number % 11,
    ]
}

/// What the upstream writes down about one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    requests: usize,
    sent: Option<String>,
    served: Option<String>,
    /// Of a response that it ended.
    tokens: Option<[u64; 5]>,
}

#[derive(Clone, Default)]
struct Books(Arc<Mutex<BTreeMap<String, Entry>>>);

impl Books {
    fn note(&self, model: &str, note: impl FnOnce(&mut Entry)) {
        note(self.0.lock().unwrap().entry(model.to_owned()).or_default());
    }
}

/// Serves until the test ends.
fn upstream(books: Books) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let books = books.clone();
            std::thread::spawn(move || {
                let mut wire = BufReader::new(socket);
                while serve(&mut wire, &books).is_some() {}
            });
        }
    });
    address
}

/// One request; none where the connection is over.
fn serve(wire: &mut BufReader<TcpStream>, books: &Books) -> Option<()> {
    let mut length = 0;
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        wire.read_line(&mut line).ok().filter(|count| *count > 0)?;
        if line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        lines.push(line);
    }
    let mut body = vec![0; length];
    wire.read_exact(&mut body).ok()?;
    if lines[0].starts_with("GET") {
        let answer = response(7, "completed", "priority", true);
        return send(wire.get_ref(), &plain(200, &answer));
    }
    let body: Value = serde_json::from_slice(&body).expect("the upstream gets JSON");
    let model = body["model"].as_str().unwrap().to_owned();
    let sent = body["service_tier"].as_str().map(str::to_owned);
    books.note(&model, |entry| {
        entry.requests += 1;
        entry.sent = sent.clone();
    });
    let number = model[2..].parse().unwrap();
    answer(wire.get_ref(), number, &model, sent.as_deref(), books)
}

fn answer(
    socket: &TcpStream,
    number: usize,
    model: &str,
    sent: Option<&str>,
    books: &Books,
) -> Option<()> {
    let case = Case::of(number);
    let served = case.served(sent);
    let begun = stream_of(&[json!({"type": "response.created", "response": {"model": model}})]);
    let end = |kind: &str| {
        let status = kind.trim_start_matches("response.");
        let usage = status != "failed";
        stream_of(&[json!({"type": kind, "response": response(number, status, &served, usage)})])
    };
    let bill = || {
        books.note(model, |entry| {
            entry.served = Some(served.clone());
            entry.tokens = Some(told_tokens(case, number));
        })
    };
    match case {
        Case::Json | Case::NotForced => {
            bill();
            send(
                socket,
                &plain(200, &response(number, "completed", &served, true)),
            )
        }
        Case::Stream | Case::Downgraded => {
            bill();
            send_stream(socket, &[&begun, &end("response.completed")])
        }
        Case::Incomplete => {
            bill();
            send_stream(socket, &[&begun, &end("response.incomplete")])
        }
        Case::ClientEnds | Case::ClientResets => {
            bill();
            send(socket, &begin_stream(&begun))?;
            std::thread::sleep(PAUSE);
            send(
                socket,
                &[chunk(&end("response.completed")), chunk("")].concat(),
            )
        }
        Case::ClientLeavesEarly => {
            bill();
            std::thread::sleep(PAUSE);
            send(
                socket,
                &plain(200, &response(number, "completed", &served, true)),
            )
        }
        Case::Failed => {
            books.note(model, |entry| entry.served = Some(served.clone()));
            send_stream(socket, &[&begun, &end("response.failed")])
        }
        Case::Background => send(
            socket,
            &plain(200, &response(number, "queued", "auto", false)),
        ),
        Case::ChatJson => {
            bill();
            send(socket, &plain(200, &chat(number, &served, true)))
        }
        Case::ChatStream => {
            bill();
            let last = [chat(number, &served, false), chat(number, &served, true)];
            send_stream(socket, &[&stream_of(&last), "data: [DONE]\n\n"])
        }
        Case::ChatSilent => {
            books.note(model, |entry| entry.served = Some(served.clone()));
            let only = stream_of(&[chat(number, &served, false)]);
            send_stream(socket, &[&only, "data: [DONE]\n\n"])
        }
        Case::MessagesJson => {
            bill();
            send(socket, &plain(200, &message(number, &served)))
        }
        Case::MessagesStream => {
            bill();
            send_stream(socket, &[&message_events(number, &served)])
        }
        Case::Status => send(
            socket,
            &plain(
                if (number / CASES.len()).is_multiple_of(2) {
                    429
                } else {
                    500
                },
                &json!({"error": {}}),
            ),
        ),
        Case::Cut => {
            send(socket, &begin_stream(&begun))?;
            let _ = socket.shutdown(std::net::Shutdown::Both);
            None
        }
        Case::ResetInside => {
            send(socket, &begin_stream(&begun))?;
            reset_on_close(socket);
            None
        }
        Case::ResetBefore => {
            reset_on_close(socket);
            None
        }
        Case::Fetched | Case::WrongKey | Case::WrongBody => {
            panic!("{case:?} is not for the upstream")
        }
    }
}

/// Of the counts, those that the case's protocol has, as the log has them.
fn told_tokens(case: Case, number: usize) -> [u64; 5] {
    let [input, cached, written, output, reasoning] = tokens(number);
    match case {
        Case::ChatJson | Case::ChatStream => [input, cached, 0, output, reasoning],
        Case::MessagesJson | Case::MessagesStream => [input, cached, written, output, 0],
        _ => [input, cached, written, output, reasoning],
    }
}

fn response(number: usize, status: &str, tier: &str, usage: bool) -> Value {
    let [input, cached, written, output, reasoning] = tokens(number);
    let usage = usage.then(|| {
        json!({
            "input_tokens": input,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": reasoning},
        })
    });
    json!({
        "id": format!("resp_{number}"), "object": "response", "status": status, "service_tier": tier,
        "usage": usage, "metadata": {"usage": {"input_tokens": 1}},
    })
}

fn chat(number: usize, tier: &str, usage: bool) -> Value {
    let [input, cached, _, output, reasoning] = tokens(number);
    let choice = json!({"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"});
    let counts = json!({
        "prompt_tokens": input,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens": output,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    });
    json!({
        "id": format!("chatcmpl-{number}"), "service_tier": tier,
        "choices": [choice], "usage": usage.then_some(counts),
    })
}

fn message(number: usize, tier: &str) -> Value {
    let [input, cached, written, output, _] = tokens(number);
    json!({
        "id": format!("msg_{number}"), "type": "message", "stop_reason": "end_turn",
        "usage": {
            "input_tokens": input - cached - written, "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": written, "output_tokens": output, "service_tier": tier,
        },
    })
}

/// The last event repeats the output only.
fn message_events(number: usize, tier: &str) -> String {
    let mut begun = message(number, tier);
    begun["stop_reason"] = Value::Null;
    begun["usage"]["output_tokens"] = json!(1);
    let output = tokens(number)[3];
    stream_of(&[
        json!({"type": "message_start", "message": begun}),
        json!({
            "type": "message_delta", "delta": {"stop_reason": "end_turn"},
            "usage": {"output_tokens": output},
        }),
        json!({"type": "message_stop"}),
    ])
}

fn stream_of(events: &[Value]) -> String {
    events
        .iter()
        .map(|event| format!("data: {event}\n\n"))
        .collect()
}

fn plain(status: u16, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn begin_stream(first: &str) -> Vec<u8> {
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    [head.as_bytes(), &chunk(first)].concat()
}

fn chunk(piece: &str) -> Vec<u8> {
    crate::support::client::chunk(piece.as_bytes())
}

fn send_stream(socket: &TcpStream, pieces: &[&str]) -> Option<()> {
    let rest = pieces[1..]
        .iter()
        .chain(&[""])
        .flat_map(|piece| chunk(piece));
    let bytes: Vec<u8> = begin_stream(pieces[0]).into_iter().chain(rest).collect();
    send(socket, &bytes)
}

fn send(mut socket: &TcpStream, bytes: &[u8]) -> Option<()> {
    socket.write_all(bytes).ok()
}

fn reset_on_close(socket: &TcpStream) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(socket, sockopt::Linger, &linger).unwrap();
}

/// Does what a client does in this case.
fn ask(proxy: &Proxy, number: usize) {
    let case = Case::of(number);
    let path = case.path(number);
    let body = format!(r#"{{"service_tier":"flex","model":"m-{number}","input":"x"}}"#);
    let forced = proxy.client("sk-fast");
    match case {
        Case::Fetched => assert_eq!(forced.get(&path).status, 200),
        Case::WrongKey => assert_eq!(proxy.client("sk-none").post(&path, body).status, 401),
        Case::WrongBody => assert_eq!(forced.post(&path, &body[1..]).status, 400),
        Case::NotForced => assert_eq!(proxy.client("sk-plain").post(&path, body).status, 200),
        Case::ClientEnds | Case::ClientResets | Case::ClientLeavesEarly => {
            leave(&forced, case, &path, body.as_bytes());
        }
        Case::Status => assert!(forced.post(&path, body).status >= 429),
        Case::ResetBefore => assert_eq!(forced.post(&path, body).status, 502),
        Case::Cut | Case::ResetInside => {
            // A reset may take the answer's head with it.
            let mut connection = forced.connect();
            connection.send(forced.message(&path, body.as_bytes()));
            assert!(
                connection
                    .try_answer()
                    .is_none_or(|answer| !answer.whole || answer.status == 502)
            );
        }
        _ => {
            let answer = forced.post(&path, body);
            assert!(answer.status == 200 && answer.whole, "{case:?}: {answer:?}");
        }
    }
}

fn leave(client: &Client, case: Case, path: &str, body: &[u8]) {
    let mut connection = client.connect();
    connection.send(client.message(path, body));
    if case == Case::ClientLeavesEarly {
        // Not before the request has gone on, for then it might never have.
        std::thread::sleep(PAUSE / 2);
        return;
    }
    assert_eq!(connection.head().unwrap().status, 200);
    connection.chunk().unwrap();
    if case == Case::ClientResets {
        reset_on_close(connection.socket());
    }
}

fn run_all(proxy: &Proxy) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= REQUESTS {
                        return;
                    }
                    ask(proxy, number);
                }
            });
        }
    });
}

fn report(proxy: &Proxy, by: &str) -> Vec<Value> {
    let arguments = ["report", "access.log", "--by", by, "--format", "json"];
    let output = run(proxy.path(""), &arguments);
    let notes = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{notes}");
    // Besides, it would say so if a line were missing, repeated or unreadable.
    assert!(
        notes
            .lines()
            .all(|note| note.starts_with("not in the sum: ")),
        "{notes}"
    );
    let mut rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    rows.pop().expect("a total");
    rows
}

const BY: &str = "model,service_tier,service_tier_served,service_tier_billed,usage_state";
const TOKENS: [&str; 5] = [
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
];

/// In millionths of a dollar, from the prices as they stand above.
fn cost(tier: &str, [input, cached, written, output, _]: [u64; 5]) -> u64 {
    let [fresh, read, write, out] = match tier {
        "priority" => [10, 2, 12, 60],
        "flex" => [3, 1, 4, 15],
        _ => [5, 1, 6, 30],
    };
    (input - cached - written) * fresh + cached * read + written * write + output * out
}

/// The decimal of so many millionths.
fn millionths(decimal: &Value) -> Option<u64> {
    let text = decimal.as_str()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    assert!(fraction.len() <= 6, "{text}");
    format!("{whole}{fraction:0<6}").parse().ok()
}

/// What a row of the report says, in the books' words.
fn entry_of(row: &Value) -> (Entry, Option<u64>) {
    let text = |name: &str| row[name].as_str().map(str::to_owned);
    let counts = TOKENS.map(|name| row[name].as_u64().unwrap());
    let entry = Entry {
        requests: row["requests"].as_u64().unwrap() as usize,
        sent: text("service_tier"),
        served: text("service_tier_served"),
        tokens: (row["usage_state"] == "final").then_some(counts),
    };
    (entry, millionths(&row["cost_usd"]))
}

fn billed(entry: &Entry) -> Option<&str> {
    entry.served.as_deref().or(entry.sent.as_deref())
}

#[test]
fn the_report_and_the_upstreams_books_agree() {
    let books = Books::default();
    let upstream = upstream(books.clone());
    let proxy = proxy::new()
        .upstream_with("main", &upstream, "on_client_abort: drain")
        .prices(PRICES)
        .run();
    run_all(&proxy);
    eventually("a line for every request", || {
        (proxy.log_lines().len() >= REQUESTS).then_some(())
    });
    let books = books.0.lock().unwrap().clone();
    let rows = report(&proxy, BY);
    let (known, unknown): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row["model"].is_string());

    let said: BTreeMap<String, Entry> = known
        .iter()
        .map(|row| (row["model"].as_str().unwrap().to_owned(), entry_of(row).0))
        .collect();
    assert_eq!(said.len(), known.len(), "a request has several rows");
    for (model, entry) in &books {
        assert_eq!(
            said.get(model),
            Some(entry),
            "{model}: {:?}",
            Case::of(model[2..].parse().unwrap())
        );
    }
    assert_eq!(said.len(), books.len());
    for row in &known {
        let (entry, priced) = entry_of(row);
        assert_eq!(row["service_tier_billed"].as_str(), billed(&entry), "{row}");
        let owed = entry
            .tokens
            .map(|tokens| cost(billed(&entry).unwrap(), tokens));
        assert_eq!(priced, owed, "{row}");
        assert_eq!(row["unpriced"], 0, "{row}");
        if entry.tokens.is_none() {
            assert!(
                matches!(row["usage_state"].as_str(), Some("none" | "deferred"))
                    && TOKENS.iter().all(|name| row[name] == 0),
                "{row}"
            );
        }
    }

    // What never got to the upstream, and what only asked for a response that was made before.
    let elsewhere = [Case::Fetched, Case::WrongKey, Case::WrongBody];
    let elsewhere = (0..REQUESTS).filter(|number| elsewhere.contains(&Case::of(*number)));
    assert_eq!(unknown.len(), 1, "{unknown:?}");
    let expected = Entry {
        requests: elsewhere.count(),
        ..Entry::default()
    };
    assert_eq!(entry_of(unknown[0]), (expected, None));

    let total = &report(&proxy, "schema")[0];
    let owed: u64 = books
        .values()
        .filter_map(|entry| Some(cost(billed(entry)?, entry.tokens?)))
        .sum();
    assert_eq!(total["requests"], REQUESTS);
    assert_eq!(millionths(&total["cost_usd"]), Some(owed));
    for (at, name) in TOKENS.iter().enumerate() {
        let sum: u64 = books
            .values()
            .filter_map(|entry| Some(entry.tokens?[at]))
            .sum();
        assert_eq!(total[name], sum, "{name}");
    }
}
