//! What `tiergate budget` says of a proxy that keeps its sums in a file, and of one that has them in memory only.

use std::process::Output;

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::command::{run, stdout};
use crate::support::eventually;
use crate::support::proxy::{self, Proxy};
use crate::support::upstream::{self, Upstream, reply};

const POLICY: &str = "\
version: 1
groups:
  shared: {platform: openai, force_fast_mode: true, budget: {usd: 1, per: month}}
  single: {platform: openai, force_fast_mode: true, budget: {usd: 2, per: week, scope: key}}
  unused: {platform: openai, force_fast_mode: true, budget: {usd: 3, per: day, scope: key}}
  free: {platform: openai, force_fast_mode: true}
keys:
  sk-1: {group: shared, name: anna}
  sk-2: {group: single, name: bert}
  sk-3: {group: single, name: carl}
";
const PRICES: &str = "\
version: 1
prices:
  - models: [m]
    tiers: {priority: {input: 250, output: 1}}
";

fn spending(settings: &str) -> (Proxy, Upstream) {
    spending_by(POLICY, settings)
}

fn spending_by(policy: &str, settings: &str) -> (Proxy, Upstream) {
    let answer = r#"{"id":"r","model":"m","status":"completed","service_tier":"priority","usage":{"input_tokens":1000,"output_tokens":0}}"#;
    let upstream = upstream::json(answer).run();
    let proxy = proxy::new()
        .policy(policy)
        .prices(PRICES)
        .upstream(&upstream)
        .setting(settings)
        .run();
    for key in ["sk-1", "sk-2", "sk-3", "sk-3"] {
        proxy.client(key).post("/v1/responses", r#"{"model":"m"}"#);
    }
    proxy.access_log(4);
    (proxy, upstream)
}

fn budget(proxy: &Proxy, options: &[&str]) -> Output {
    let fixed = ["budget", "--config", "tiergate.yaml"];
    run(proxy.path(""), &[&fixed, options].concat())
}

/// Without the moments at which budgets begin anew.
fn rows(output: &Output) -> Value {
    let mut rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    for row in rows.as_array_mut().unwrap() {
        let begins = row.as_object_mut().unwrap().remove("begins_anew");
        let begins = begins.unwrap();
        assert!(begins.as_str().unwrap().ends_with("T00:00:00Z"), "{begins}");
    }
    rows
}

fn row(group: &str, key: Option<&str>, per: &str, limit: &str, spent: &str, used: f64) -> Value {
    let used = serde_json::Number::from_f64(used).unwrap();
    let used = if used.as_f64() == Some(0.0) {
        json!(0)
    } else {
        json!(used)
    };
    json!({"group": group, "key": key, "period": per, "limit_usd": limit, "spent_usd": spent, "used": used})
}

#[test]
fn the_sums_of_a_file_are_shown_by_group_and_key() {
    let (proxy, _upstream) = spending("state: state.redb");
    let expected = json!([
        row("shared", None, "month", "1", "0.25", 0.25),
        row("single", Some("carl"), "week", "2", "0.5", 0.25),
        row("single", Some("bert"), "week", "2", "0.25", 0.125),
        row("unused", None, "day", "3", "0", 0.0),
    ]);
    // They are in the file within a second.
    eventually("the sums of the file", || {
        let told = budget(&proxy, &["--format", "json"]);
        (rows(&told) == expected).then_some(())
    });
    let told = budget(&proxy, &[]);
    assert_eq!((told.status.code(), &*told.stderr), (Some(0), &b""[..]));
    let told = String::from_utf8(told.stdout).unwrap();
    let words: Vec<&str> = told.lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!(
        words[..6],
        ["single", "carl", "week", "2.00", "0.5000", "25.0%"]
    );
}

#[test]
fn what_was_spent_a_moment_ago_survives_a_kill() {
    /// Far below the second between two exchanges of an idle process.
    const MOMENT: Duration = Duration::from_millis(300);
    for _ in 0..3 {
        let (mut proxy, _upstream) = spending("state: state.redb");
        std::thread::sleep(MOMENT);
        proxy.kill();
        let told = rows(&budget(&proxy, &["--format", "json"]));
        assert_eq!(told[0], row("shared", None, "month", "1", "0.25", 0.25));
        assert_eq!(
            told[1],
            row("single", Some("carl"), "week", "2", "0.5", 0.25)
        );
    }
}

#[test]
fn a_state_file_that_is_deleted_is_told_of_and_gets_back_what_was_spent_and_is_to_be_billed() {
    const PATH: &str = "/v1/responses";
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("state.redb");
    let done = r#"{"id":"resp_1","model":"m","status":"completed","service_tier":"priority","usage":{"input_tokens":1000,"output_tokens":0}}"#;
    let queued = r#"{"id":"resp_1","model":"m","status":"queued","background":true}"#;
    let replies = [done, queued, done].map(|body| reply(200).json(body));
    let upstream = upstream::script(replies).run();
    let run = || {
        proxy::new()
            .policy(POLICY)
            .prices(PRICES)
            .upstream(&upstream)
            .setting(&format!("state: {}", file.display()))
            .run()
    };
    let stored = |proxy: &Proxy| rows(&budget(proxy, &["--format", "json"]))[0].clone();
    let spent = |usd: &str, used: f64| row("shared", None, "month", "1", usd, used);
    let mut proxy = run();
    for body in [r#"{"model":"m"}"#, r#"{"model":"m","background":true}"#] {
        proxy.client("sk-1").post(PATH, body);
    }
    proxy.access_log(2);
    eventually("the sum is in the file", || {
        (stored(&proxy) == spent("0.25", 0.25)).then_some(())
    });
    std::fs::remove_file(&file).unwrap();
    let ready = eventually("/readyz tells", || {
        Some(proxy.admin("/readyz")).filter(|ready| ready.text().contains("the state file"))
    });
    assert_eq!(ready.status, 200);
    proxy.await_stderr("`state` had lost its sums and background responses: the state file was");
    assert_eq!(proxy.metric("tiergate_state_errors_total"), 1.0);
    eventually("/readyz is good again", || {
        (proxy.admin("/readyz").text() == "ok\n").then_some(())
    });
    assert_eq!(stored(&proxy), spent("0.25", 0.25));
    proxy.kill();

    let proxy = run();
    proxy.client("sk-1").get("/v1/responses/resp_1");
    assert_eq!(proxy.record()["cost_usd"], "0.25");
    eventually("both are in the file", || {
        (stored(&proxy) == spent("0.5", 0.5)).then_some(())
    });
}

#[test]
fn the_end_of_a_process_tells_what_its_state_does_not_have() {
    let (mut proxy, _upstream) = spending("state: state.redb");
    eventually("the sums of the file", || {
        let told = rows(&budget(&proxy, &["--format", "json"]));
        (told[0] == row("shared", None, "month", "1", "0.25", 0.25)).then_some(())
    });
    // Whatever stands there now cannot be used.
    std::fs::remove_file(proxy.path("state.redb")).unwrap();
    std::fs::create_dir(proxy.path("state.redb")).unwrap();
    proxy
        .client("sk-1")
        .post("/v1/responses", r#"{"model":"m"}"#);
    proxy.access_log(5);
    proxy.signal(libc::SIGTERM);
    assert_eq!(proxy.wait().code(), Some(1));
    proxy.await_stderr("0.25 USD of budgets and 0 background responses are lost to `state`: ");
}

/// It is the dearest of OpenAI's tiers.
#[test]
fn ultrafast_counts_and_is_refused_as_priority_is() {
    let policy = "version: 1\ngroups:\n  own: {platform: openai, budget: {usd: 0.25, per: month, then: refuse}}\n\
        keys: {sk-own: {group: own, name: olga}}\n";
    let prices = PRICES.replace("priority:", "ultrafast:");
    let answer = r#"{"model":"m","status":"completed","service_tier":"ultrafast","usage":{"input_tokens":1000,"output_tokens":0}}"#;
    let upstream = upstream::json(answer).run();
    let proxy = proxy::new()
        .policy(policy)
        .prices(&prices)
        .upstream(&upstream)
        .run();
    let client = proxy.client("sk-own");
    for (tier, status) in [
        ("ultrafast", 200),
        ("ultrafast", 429),
        ("priority", 429),
        ("default", 200),
    ] {
        let body = format!(r#"{{"model":"m","service_tier":"{tier}"}}"#);
        assert_eq!(client.post("/v1/responses", body).status, status, "{tier}");
    }
}

#[test]
fn without_state_the_running_process_is_asked() {
    let (mut proxy, _upstream) = spending("");
    let told = budget(&proxy, &["--format", "json"]);
    let note = String::from_utf8(told.stderr.clone()).unwrap();
    assert!(note.starts_with("without `state` sums are in the memory of the running process"));
    let expected = json!([
        row("shared", None, "month", "1", "0.25", 0.25),
        row("single", None, "week", "2", "0.5", 0.25),
        row("unused", None, "day", "3", "0", 0.0),
    ]);
    assert_eq!(rows(&told), expected);
    proxy.kill();
    let told = budget(&proxy, &[]);
    let note = String::from_utf8(told.stderr).unwrap();
    assert!(note.contains("no proxy answers at 127.0.0.1:"), "{note}");
    assert_eq!((told.status.code(), &*told.stdout), (Some(1), &b""[..]));
}

/// The rows of `explain` that tell of the tier and the budget, and its code of refusal.
fn explain(proxy: &Proxy, key: &str) -> (String, Value) {
    let explain = |options: &[&str]| {
        let fixed = ["explain", "--config", "tiergate.yaml", "--key", key];
        let output = run(proxy.path(""), &[&fixed, options].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        stdout(&output)
    };
    let record: Value = serde_json::from_str(&explain(&["--json"])).unwrap();
    (explain(&[]), record)
}

const SPENT: &str = "\
version: 1
groups:
  calm: {platform: openai, force_fast_mode: true, budget: {usd: 0.25, per: month}}
  shut: {platform: openai, force_fast_mode: true, budget: {usd: 0.25, per: month, then: refuse}}
  single: {platform: openai, force_fast_mode: true, budget: {usd: 0.5, per: week, scope: key}}
keys:
  sk-1: {group: calm, name: anna}
  sk-2: {group: shut, name: bert}
  sk-3: {group: single, name: carl}
  sk-4: {group: single, name: dora}
";

#[test]
fn explain_says_what_is_spent_and_decides_by_it() {
    for settings in ["state: state.redb", ""] {
        let (proxy, _upstream) = spending_by(SPENT, settings);
        // They are in the file within a second.
        eventually("the spent budgets", || {
            // Of a key's budget the process does not tell what this one has spent.
            let is_spent = |key| !explain(&proxy, key).0.contains("budget    0 of");
            (is_spent("sk-1") && is_spent("sk-2") && is_spent("sk-3")).then_some(())
        });
        let (text, record) = explain(&proxy, "sk-1");
        assert_eq!(record["service_tier"], Value::Null);
        assert!(
            text.contains("none: the budget of the fast tier is spent")
                && text.contains(
                    "budget    0.25 of 0.25 USD a month of the group, then standard; begins anew 2"
                ),
            "{text}"
        );
        let (text, record) = explain(&proxy, "sk-2");
        assert_eq!(record["denied"], "budget_exhausted", "{text}");
        assert!(text.contains("the group forces `priority`"), "{text}");
        let (text, record) = explain(&proxy, "sk-4");
        assert_eq!(record["service_tier"], "priority");
        let told = match settings {
            "" => {
                "budget    0.5 USD a week of the key, then standard; what is spent is not known: \
                   the running proxy tells no more than that no key has spent more than 0.5 USD"
            }
            _ => "budget    0 of 0.5 USD a week of the key, then standard; begins anew 2",
        };
        assert!(text.contains(told), "{text}");
    }
}
