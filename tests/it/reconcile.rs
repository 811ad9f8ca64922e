//! `tiergate reconcile`: a log of thousands of lines beside the books of a provider that answers OpenAI's usage API. Each
//! difference that is planted is named, and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::process::Output;

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tiergate::accounting::access_log::line::FIELDS;

use crate::support::command::{run, stderr};

/// 1 November 2026 in UTC.
const FIRST_DAY: i64 = 1_793_491_200;
const DAY: i64 = 86_400;
const DAYS: i64 = 4;
const REQUESTS: u64 = 6000;
/// What the log calls a model, and what the provider does.
const MODELS: [(&str, &str); 2] = [("gpt-a", "gpt-a-2026-04-24"), ("gpt-b", "gpt-b")];
/// Another name of a model, by which it is not asked for.
const SNAPSHOT: (&str, &str) = ("gpt-b-2026-05-05", "gpt-b-2026-05-05");
const TIERS: [&str; 2] = ["priority", "default"];

/// Day (from 0), model and tier.
type Place = (i64, &'static str, &'static str);
/// Requests, input, cached input and output tokens.
type Used = [u64; 4];

/// A log and the provider's books, which are kept apart.
#[derive(Clone, Default)]
struct Ledger {
    lines: Vec<Map<String, Value>>,
    books: BTreeMap<Place, Used>,
}

impl Ledger {
    /// Requests that both sides count alike, on the first three days.
    fn new() -> Ledger {
        let mut ledger = Ledger::default();
        for number in 0..REQUESTS {
            let place = place(number);
            ledger.request(place, used(number), json!({}));
        }
        ledger
    }

    /// One request, which both sides have. `changes`: members of its line.
    fn request(&mut self, place: Place, used: Used, changes: Value) -> String {
        self.book(place, used);
        self.line(place, used, changes)
    }

    fn book(&mut self, (day, model, tier): Place, used: Used) {
        let mut names = MODELS.iter().chain([&SNAPSHOT]);
        let name = names.find(|(alias, _)| *alias == model).unwrap().1;
        let entry = self.books.entry((day, name, tier)).or_default();
        entry
            .iter_mut()
            .zip(used)
            .for_each(|(sum, more)| *sum += more);
    }

    /// Returns its `event_id`.
    fn line(&mut self, (day, model, tier): Place, used: Used, changes: Value) -> String {
        let seq = self.lines.len();
        let second = FIRST_DAY + day * DAY + (seq as i64 * 7919) % (DAY - 60);
        let time = jiff::Timestamp::from_second(second).unwrap();
        let [_, input, cached, output] = used;
        let line = json!({
            "schema": 1, "event_id": format!("r{seq}#0"), "request_id": format!("r{seq}"), "seq": seq, "instance": "i",
            "time": time.to_string(), "duration_ms": 1500.5, "turn": 0, "key": "alice", "group": "fast",
            "endpoint": "responses", "transport": "http", "model": model, "service_tier_billed": tier,
            "tier_billed_by": "served", "upstream": "openai", "upstream_status": 200, "status": 200, "outcome": "ok",
            "usage_state": "final", "input_tokens": input, "cached_input_tokens": cached, "output_tokens": output,
        });
        let mut line: Map<String, Value> = line.as_object().unwrap().clone();
        line.extend(changes.as_object().unwrap().clone());
        self.lines.push(line);
        format!("r{seq}#0")
    }

    /// Pages of one day each, as the usage API answers.
    fn pages(&self) -> Vec<Value> {
        let pages = (0..DAYS).map(|day| {
            let entries = self.books.iter().filter(|((at, ..), _)| *at == day);
            let results: Vec<Value> = entries
                .map(|((_, model, tier), [requests, input, cached, output])| {
                    json!({"object": "organization.usage.completions.result", "num_model_requests": requests,
                        "input_tokens": input, "input_cached_tokens": cached, "output_tokens": output, "model": model,
                        "service_tier": tier, "project_id": null, "batch": null})
                })
                .collect();
            let start = FIRST_DAY + day * DAY;
            json!({"object": "page", "has_more": day + 1 < DAYS, "next_page": null, "data": [
                {"object": "bucket", "start_time": start, "end_time": start + DAY, "results": results}]})
        });
        pages.collect()
    }

    fn write(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let lines: Vec<String> = self
            .lines
            .iter()
            .map(|line| serde_json::to_string(line).unwrap())
            .collect();
        fs::write(folder.path().join("access.log"), lines.join("\n")).unwrap();
        let pages = serde_json::to_string(&self.pages()).unwrap();
        fs::write(folder.path().join("usage.json"), pages).unwrap();
        folder
    }
}

fn place(number: u64) -> Place {
    let day = (number / (REQUESTS / 3)) as i64;
    let model = MODELS[(number % 2) as usize].0;
    (day, model, TIERS[(number / 2 % 2) as usize])
}

fn used(number: u64) -> Used {
    let cached = number % 97;
    [
        1,
        cached + 1 + number * 7 % 1013,
        cached,
        1 + number * 13 % 509,
    ]
}

fn reconcile(folder: &TempDir, arguments: &[&str]) -> Output {
    let fixed = ["reconcile", "access.log", "--usage", "usage.json"];
    run(folder, &[&fixed, arguments].concat())
}

/// The rows that differ, by day, model and tier, with why and the lines that are named; and the exit code.
fn differences(ledger: &Ledger) -> (BTreeMap<String, (String, Value)>, i32) {
    let output = reconcile(&ledger.write(), &["--differences", "--format", "json"]);
    let mut rows: Vec<Value> =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(&output)));
    rows.pop().expect("a total");
    let rows = rows.into_iter().map(|row| {
        let text = |name: &str| row[name].as_str().unwrap().to_owned();
        let place = format!("{} {} {}", text("day"), text("model"), text("service_tier"));
        (place, (text("why"), row["lines"].clone()))
    });
    (rows.collect(), output.status.code().unwrap())
}

#[test]
fn books_that_agree_to_the_token_end_with_0() {
    let mut ledger = Ledger::new();
    // What is none of the provider's completions, or was never one.
    let no = [0; 4];
    ledger.line(
        (0, "gpt-a", "default"),
        no,
        json!({"outcome": "denied", "upstream_status": null}),
    );
    ledger.line(
        (0, "gpt-a", "default"),
        no,
        json!({"outcome": "upstream_error", "upstream_status": 429}),
    );
    ledger.line((0, "gpt-a", "default"), no, json!({"endpoint": "other"}));
    ledger.line(
        (0, "gpt-a", "default"),
        no,
        json!({"transport": "websocket", "upstream_status": 101}),
    );
    let output = reconcile(&ledger.write(), &["--format", "json"]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert_eq!(stderr(&output), "");
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(rows.len(), 3 * 2 * 2 + 1);
    let total = rows.last().unwrap();
    assert_eq!(total["requests"], REQUESTS);
    assert_eq!(total["requests"], total["requests_theirs"]);
    assert_eq!(total["output_tokens_difference"], 0);
}

#[test]
fn each_difference_is_named_and_no_other() {
    let mut ledger = Ledger::new();
    let none = json!({"usage_state": "none", "input_tokens": null, "cached_input_tokens": null, "output_tokens": null});
    let with = |more: Value| {
        let mut changes = none.as_object().unwrap().clone();
        changes.extend(more.as_object().unwrap().clone());
        Value::from(changes)
    };
    let some = [1, 1000, 10, 100];
    // The provider made the answers; the log knows nothing of their usage.
    let cut = ledger.request(
        (0, "gpt-a", "priority"),
        some,
        with(json!({"outcome": "upstream_cut"})),
    );
    let left = ledger.request(
        (0, "gpt-a", "priority"),
        some,
        with(json!({"outcome": "client_closed"})),
    );
    let background = ledger.request(
        (0, "gpt-b", "priority"),
        some,
        with(json!({"usage_state": "deferred"})),
    );
    let silent = ledger.request((0, "gpt-b", "default"), some, with(json!({})));
    // One that never came by here.
    ledger.book((1, "gpt-b", "priority"), some);
    // Counted on another tier, and on another day.
    let tier = ledger.line(
        (2, "gpt-a", "priority"),
        some,
        json!({"tier_billed_by": "sent"}),
    );
    ledger.book((2, "gpt-a", "default"), some);
    let midnight = ledger.line(
        (2, "gpt-b", "priority"),
        some,
        json!({"time": "2026-11-03T23:59:59.5Z", "duration_ms": 2000.0}),
    );
    ledger.book((3, "gpt-b", "priority"), some);
    // One token that nobody can explain.
    ledger.book((2, "gpt-b", "default"), [0, 0, 0, 1]);

    // One that the log lost.
    let lost = ledger.lines.iter().position(|line| {
        let text = |name: &str| line[name].as_str().unwrap();
        (text("model"), text("service_tier_billed")) == ("gpt-a", "default")
            && text("time").starts_with("2026-11-02")
    });
    ledger.lines.remove(lost.unwrap());

    let (rows, code) = differences(&ledger);
    assert_eq!(code, 1);
    let expected = [
        (
            "2026-11-01 gpt-a-2026-04-24 priority",
            "2 cut off before the usage",
            json!(format!("{cut} {left}")),
        ),
        (
            "2026-11-01 gpt-b priority",
            "1 background, never fetched",
            json!(background),
        ),
        (
            "2026-11-01 gpt-b default",
            "1 answered without usage",
            json!(silent),
        ),
        (
            "2026-11-02 gpt-a-2026-04-24 default",
            "requests that are not in the log: 1; lines that it lacks: 1",
            Value::Null,
        ),
        (
            "2026-11-02 gpt-b priority",
            "requests that are not in the log: 1; lines that it lacks: 1",
            Value::Null,
        ),
        (
            "2026-11-03 gpt-a-2026-04-24 priority",
            "1 whose tier the answer did not confirm; the provider has them on another tier",
            json!(tier),
        ),
        (
            "2026-11-03 gpt-a-2026-04-24 default",
            "the provider has them on another tier",
            Value::Null,
        ),
        (
            "2026-11-03 gpt-b priority",
            "1 ran over midnight; the provider has them on another day",
            json!(midnight),
        ),
        (
            "2026-11-04 gpt-b priority",
            "the provider has them on another day",
            Value::Null,
        ),
        (
            "2026-11-03 gpt-b default",
            "nothing in the log explains it",
            Value::Null,
        ),
    ];
    let expected: BTreeMap<String, (String, Value)> = expected
        .into_iter()
        .map(|(place, why, lines)| (place.to_owned(), (why.to_owned(), lines)))
        .collect();
    assert_eq!(rows, expected);
}

/// Why the row of this day, model and tier differs; nothing where it does not.
fn why(rows: &BTreeMap<String, (String, Value)>, place: &str) -> String {
    rows.get(place).map(|row| row.0.clone()).unwrap_or_default()
}

#[test]
fn what_was_sent_and_not_answered_may_have_been_counted() {
    let some = [1, 1000, 10, 100];
    let unanswered = |outcome: &str| {
        json!({"outcome": outcome, "upstream_status": null, "usage_state": "none", "input_tokens": null,
            "cached_input_tokens": null, "output_tokens": null})
    };
    let place = (0, "gpt-a", "priority");
    let mut ledger = Ledger::new();
    let lines = ["upstream_error", "timeout", "client_closed"]
        .map(|outcome| ledger.line(place, some, unanswered(outcome)));
    // Such a line alone makes no row.
    ledger.line((3, "gpt-b", "flex"), some, unanswered("timeout"));
    assert_eq!(differences(&ledger), (BTreeMap::new(), 0));

    for _ in 0..3 {
        ledger.book(place, some);
    }
    let (rows, _) = differences(&ledger);
    let expected = (
        "3 sent upstream and not answered".to_owned(),
        json!(lines.join(" ")),
    );
    let place_told = "2026-11-01 gpt-a-2026-04-24 priority";
    assert_eq!(rows, BTreeMap::from([(place_told.to_owned(), expected)]));

    for _ in 0..2 {
        ledger.book(place, some);
    }
    let told = why(&differences(&ledger).0, place_told);
    assert!(told.contains("3 sent upstream and not answered"), "{told}");
    assert!(
        told.contains("requests that are not in the log: 2;"),
        "{told}"
    );
}

#[test]
fn a_failed_line_with_its_usage_explains_nothing() {
    let mut ledger = Ledger::new();
    let place = (0, "gpt-a", "priority");
    ledger.request(
        place,
        [1, 1000, 10, 100],
        json!({"outcome": "upstream_error"}),
    );
    for _ in 0..9 {
        ledger.line(place, [1, 1000, 10, 100], json!({}));
    }
    // A token more, on another tier.
    let other = (0, "gpt-a", "default");
    ledger.request(
        other,
        [1, 1000, 10, 100],
        json!({"outcome": "upstream_error"}),
    );
    ledger.book(other, [0, 1, 0, 0]);
    let (rows, _) = differences(&ledger);
    assert_eq!(rows.len(), 2);
    assert_eq!(
        rows["2026-11-01 gpt-a-2026-04-24 priority"],
        (
            "9 requests that the provider does not count".to_owned(),
            Value::Null
        )
    );
    assert_eq!(
        why(&rows, "2026-11-01 gpt-a-2026-04-24 default"),
        "nothing in the log explains it"
    );
}

#[test]
fn what_explains_most_comes_first_and_what_nothing_covers_is_told() {
    let mut ledger = Ledger::new();
    let failed = json!({"outcome": "upstream_error", "usage_state": "none", "input_tokens": null,
        "cached_input_tokens": null, "output_tokens": null});
    let cut = json!({"outcome": "upstream_cut", "usage_state": "none", "input_tokens": null,
        "cached_input_tokens": null, "output_tokens": null});
    // Two that failed cannot be nine that the provider lacks.
    for _ in 0..2 {
        ledger.line((0, "gpt-a", "priority"), [1, 0, 0, 0], failed.clone());
    }
    for _ in 0..7 {
        ledger.line((0, "gpt-a", "priority"), [1, 1000, 10, 100], json!({}));
    }
    // Three that failed, of which the provider lacks one.
    for number in 0..3 {
        ledger.line((0, "gpt-b", "priority"), [1, 0, 0, 0], failed.clone());
        ledger.book((0, "gpt-b", "priority"), [u64::from(number > 0), 0, 0, 0]);
    }
    // One that was cut cannot be 500 that went another way.
    ledger.request((1, "gpt-a", "priority"), [1, 0, 0, 0], cut.clone());
    ledger.book((1, "gpt-a", "priority"), [500, 90_000, 0, 5000]);
    // Nor can it have used five million tokens.
    ledger.request((1, "gpt-b", "priority"), [1, 0, 0, 0], cut);
    ledger.book((1, "gpt-b", "priority"), [0, 5_000_000, 0, 0]);

    let (rows, _) = differences(&ledger);
    assert_eq!(rows.len(), 4);
    let expected = [
        (
            "2026-11-01 gpt-a-2026-04-24 priority",
            "7 requests that the provider does not count; 2 failed upstream",
        ),
        ("2026-11-01 gpt-b priority", "1 of 3 failed upstream"),
        (
            "2026-11-02 gpt-a-2026-04-24 priority",
            "requests that are not in the log: 500; did they go another way?; 1 cut off before the usage",
        ),
        (
            "2026-11-02 gpt-b priority",
            "1 cut off before the usage; nothing in the log explains 3000000 tokens",
        ),
    ];
    for (place, told) in expected {
        assert_eq!(why(&rows, place), told, "{place}");
    }
}

#[test]
fn an_opposite_difference_explains_no_more_than_its_own_amount() {
    let some = [1, 1000, 10, 100];
    let mut ledger = Ledger::new();
    // 500 that went another way, beside one that is on the other tier.
    ledger.book((0, "gpt-a", "default"), [500, 90_000, 0, 5000]);
    ledger.line((0, "gpt-a", "priority"), some, json!({}));
    // Ten that went another way, on the day after one that ran over midnight.
    ledger.book((2, "gpt-b", "default"), [11, 11_000, 110, 1100]);
    for _ in 0..3 {
        ledger.line((1, "gpt-b", "default"), some, json!({}));
    }
    let late = json!({"time": "2026-11-02T23:59:59.5Z", "duration_ms": 2000.0});
    let late = ledger.line((1, "gpt-b", "default"), some, late);
    let (rows, _) = differences(&ledger);
    let expected = [
        (
            "2026-11-01 gpt-a-2026-04-24 default",
            "requests that are not in the log: 499; did they go another way?; 1 request that both sides have, on different tiers",
        ),
        (
            "2026-11-01 gpt-a-2026-04-24 priority",
            "the provider has them on another tier",
        ),
        (
            "2026-11-02 gpt-b default",
            "3 requests that the provider does not count; 1 ran over midnight; 1 request that both sides have, on different days",
        ),
        (
            "2026-11-03 gpt-b default",
            "requests that are not in the log: 10; did they go another way?; 1 request that both sides have, on different days",
        ),
    ];
    assert_eq!(rows.len(), expected.len());
    for (place, told) in expected {
        assert_eq!(why(&rows, place), told, "{place}");
    }
    assert_eq!(rows["2026-11-02 gpt-b default"].1, json!(late));
}

#[test]
fn what_was_not_answered_may_be_of_each_snapshot_of_its_model() {
    let some = [1, 1000, 10, 100];
    let mut ledger = Ledger::new();
    ledger.request((0, SNAPSHOT.0, "priority"), some, json!({}));
    let unanswered = json!({"outcome": "timeout", "upstream_status": null, "usage_state": "none", "input_tokens": null,
        "cached_input_tokens": null, "output_tokens": null});
    let line = ledger.line((0, "gpt-b", "priority"), some, unanswered);
    ledger.book((0, SNAPSHOT.0, "priority"), some);
    let expected = ("1 sent upstream and not answered".to_owned(), json!(line));
    let place = format!("2026-11-01 {} priority", SNAPSHOT.0);
    assert_eq!(
        differences(&ledger),
        (BTreeMap::from([(place, expected)]), 1)
    );
}

#[test]
fn a_model_that_has_two_names_is_told_as_one() {
    let some = [1, 1000, 10, 100];
    let mut ledger = Ledger::new();
    for _ in 0..3 {
        ledger.line((0, "gpt-b", "priority"), some, json!({}));
    }
    ledger.book((0, SNAPSHOT.0, "priority"), [4, 4000, 40, 400]);
    let (rows, _) = differences(&ledger);
    assert_eq!(rows.len(), 2);
    let told = "3 requests of the same model under two names";
    assert_eq!(
        why(&rows, "2026-11-01 gpt-b priority"),
        format!("{told}: `gpt-b` and `{}`", SNAPSHOT.0)
    );
    assert_eq!(
        why(&rows, &format!("2026-11-01 {} priority", SNAPSHOT.0)),
        format!(
            "{told}: `gpt-b` and `{}`; requests that are not in the log: 1; did they go another way?",
            SNAPSHOT.0
        )
    );
}

#[test]
fn a_background_response_that_was_fetched_counts_for_its_request() {
    if !FIELDS.contains(&"of_request") {
        return;
    }
    let mut ledger = Ledger::new();
    let some = [1, 1000, 10, 100];
    let created = ledger.request(
        (0, "gpt-a", "priority"),
        some,
        json!({"usage_state": "deferred", "input_tokens": null, "cached_input_tokens": null, "output_tokens": null}),
    );
    let created = created.trim_end_matches("#0");
    ledger.line(
        (1, "gpt-a", "priority"),
        some,
        json!({"endpoint": "responses_item", "of_request": created}),
    );
    assert_eq!(differences(&ledger), (BTreeMap::new(), 0));
}

/// The line of a create, without usage, at a time.
fn create(ledger: &mut Ledger, place: Place, changes: Value) -> String {
    let mut line = json!({"usage_state": "deferred", "input_tokens": null, "cached_input_tokens": null,
        "output_tokens": null, "tier_billed_by": "sent"});
    let changes = changes.as_object().unwrap().clone();
    line.as_object_mut().unwrap().extend(changes);
    let event = ledger.line(place, [1, 0, 0, 0], line);
    event.trim_end_matches("#0").to_owned()
}

/// The line that has the usage of a create.
fn fetch(ledger: &mut Ledger, place: Place, used: Used, create: &str, changes: Value) -> String {
    let mut line = json!({"endpoint": "responses_item", "of_request": create});
    let changes = changes.as_object().unwrap().clone();
    line.as_object_mut().unwrap().extend(changes);
    ledger.line(place, used, line)
}

#[test]
fn a_fetched_background_response_is_of_the_tier_that_served_it_and_suspect_no_more() {
    if !FIELDS.contains(&"of_request") {
        return;
    }
    let some = [1, 1000, 10, 100];
    let (asked, served) = ((0, "gpt-a", "priority"), (0, "gpt-a", "default"));
    let mut ledger = Ledger::new();
    let created = create(&mut ledger, asked, json!({}));
    fetch(
        &mut ledger,
        (1, "gpt-a", "default"),
        some,
        &created,
        json!({}),
    );
    // Two responses of one connection.
    let created = create(&mut ledger, asked, json!({"response_id": "resp_1"}));
    let twin = json!({"response_id": "resp_2", "request_id": created});
    create(&mut ledger, asked, twin);
    for id in ["resp_2", "resp_1"] {
        fetch(
            &mut ledger,
            served,
            some,
            &created,
            json!({"response_id": id}),
        );
    }
    for _ in 0..3 {
        ledger.book(served, some);
    }
    assert_eq!(differences(&ledger), (BTreeMap::new(), 0));

    // The creates explain nothing of what comes besides.
    ledger.book(asked, [0, 5, 0, 0]);
    ledger.book((0, "gpt-a", "flex"), [1, 1000, 10, 100]);
    ledger.line(asked, some, json!({}));
    let (rows, _) = differences(&ledger);
    assert_eq!(
        rows["2026-11-01 gpt-a-2026-04-24 priority"],
        (
            "the provider has them on another tier".to_owned(),
            Value::Null
        )
    );
}

#[test]
fn a_background_response_at_an_edge_of_the_buckets_is_named_so() {
    if !FIELDS.contains(&"of_request") {
        return;
    }
    let some = [1, 1000, 10, 100];
    let place = (0, "gpt-a", "priority");
    let (before, after) = ("2026-10-31T23:59:00Z", "2026-11-05T00:01:00Z");
    let mut ledger = Ledger::new();
    let created = create(&mut ledger, place, json!({}));
    let later = fetch(&mut ledger, place, some, &created, json!({"time": after}));
    let created = create(
        &mut ledger,
        (0, "gpt-b", "priority"),
        json!({"time": before}),
    );
    let earlier = fetch(
        &mut ledger,
        (0, "gpt-b", "priority"),
        some,
        &created,
        json!({}),
    );
    let unknown = fetch(
        &mut ledger,
        (0, "gpt-b", "default"),
        some,
        "elsewhere",
        json!({}),
    );

    // Counted by the days on which they were created.
    let mut by_start = ledger.clone();
    by_start.book(place, some);
    assert_eq!(differences(&by_start), (BTreeMap::new(), 0));

    // And by those on which they ended.
    ledger.book((0, "gpt-b", "priority"), some);
    ledger.book((0, "gpt-b", "default"), some);
    let (rows, _) = differences(&ledger);
    let expected = [
        (
            "2026-11-01 gpt-a-2026-04-24 priority",
            "1 background, fetched after the last bucket",
            later,
        ),
        (
            "2026-11-01 gpt-b priority",
            "1 background, created before the first bucket",
            earlier,
        ),
        (
            "2026-11-01 gpt-b default",
            "1 background, whose create is not in the log",
            unknown,
        ),
    ];
    let expected =
        expected.map(|(place, why, line)| (place.to_owned(), (why.to_owned(), json!(line))));
    assert_eq!(rows, BTreeMap::from(expected));
}

#[test]
fn only_some_requests_and_only_some_dimensions_may_be_compared() {
    let mut ledger = Ledger::new();
    ledger.line(
        (0, "gpt-a", "default"),
        [1, 5, 0, 5],
        json!({"upstream": "azure"}),
    );
    let folder = ledger.write();
    let code = |arguments: &[&str]| reconcile(&folder, arguments).status.code();
    assert_eq!(code(&[]), Some(1));
    assert_eq!(code(&["--where", "upstream=openai"]), Some(0));
    assert_eq!(
        code(&["--where", "upstream=openai", "--by", "model"]),
        Some(0)
    );
    let output = reconcile(
        &folder,
        &["--where", "upstream=openai", "--by", "service_tier"],
    );
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(
        text.starts_with("service_tier  requests  requests diff"),
        "{text}"
    );
}

#[test]
fn an_answer_that_lacks_pages_does_not_agree() {
    // Of the first three days; the fourth has nothing.
    let mut ledger = Ledger::new();
    let pages = ledger.pages();
    // What the log has of the second day is not what is looked at here.
    ledger
        .lines
        .retain(|line| !line["time"].as_str().unwrap().starts_with("2026-11-02"));
    for (lacks, begins) in [(3, "2026-11-04"), (1, "2026-11-02")] {
        let folder = ledger.write();
        let mut pages = pages.clone();
        pages.remove(lacks);
        fs::write(
            folder.path().join("usage.json"),
            serde_json::to_string(&pages).unwrap(),
        )
        .unwrap();
        let output = reconcile(&folder, &[]);
        assert_eq!(output.status.code(), Some(1));
        let told = format!(
            "the usage answer has more pages (`has_more`), which are not in the file: the one that begins at \
             {begins}T00:00:00Z\n"
        );
        assert!(stderr(&output).contains(&told), "{}", stderr(&output));
    }
}

#[test]
fn a_file_that_is_no_usage_answer_is_told() {
    let folder = Ledger::default().write();
    for (text, why) in [
        ("{\"error\":{}}", "not a page"),
        ("nothing", "not JSON"),
        ("[]", "no `data`"),
    ] {
        fs::write(folder.path().join("usage.json"), text).unwrap();
        let output = reconcile(&folder, &[]);
        assert_eq!(output.status.code(), Some(1));
        let told = stderr(&output);
        assert!(
            told.starts_with("tiergate: usage.json: ") && told.contains(why),
            "{told}"
        );
    }
}
