//! `tiergate diff`: what another policy would do, as the binary tells it.

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::command::run;

const OLD: &str = "\
version: 1
groups:
  fast: {platform: openai, force_fast_mode: true}
  calm: {platform: openai}
  gone: {platform: openai}
keys:
  sk-alice: {group: fast, name: alice}
  sk-bob: {group: calm, name: bob}
  sk-carol: {group: calm, name: carol}
  sk-dave: {group: gone, name: dave}
  sk-erin: {group: fast, name: erin}
";

const NEW: &str = "\
version: 1
groups:
  calm: {platform: openai, force_fast_mode: true}
  fast: {platform: openai, force_fast_mode: true}
  late: {platform: openai, max_in_flight: 3}
keys:
  sk-erin: {group: fast, name: erin, enabled: false}
  sk-alice: {group: fast, name: alice}
  sk-bob: {group: calm, name: bob}
  sk-carol: {group: late, name: carol}
  sk-frank: {group: late, name: frank}
";

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("old.yaml", OLD);
    write("new.yaml", NEW);
    // There is no such policy: only the two that are given are read.
    write(
        "tiergate.yaml",
        "policy: none.yaml\nupstreams: {u: {url: \"http://h\"}}\n",
    );
    folder
}

fn diff(folder: &Path, arguments: &[&str]) -> Output {
    let fixed = ["diff", "--config", "tiergate.yaml"];
    let output = run(folder, &[&fixed, arguments].concat());
    let told = [&output.stdout[..], &output.stderr].concat();
    assert!(
        !String::from_utf8_lossy(&told).contains("sk-"),
        "a key is printed"
    );
    output
}

fn diff_json(folder: &Path, arguments: &[&str]) -> Value {
    let output = diff(folder, &[arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn every_group_and_key_that_is_treated_otherwise_is_told_and_no_other() {
    let folder = folder();
    let told = diff_json(folder.path(), &["old.yaml", "new.yaml"]);
    let names = |what: &str| -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let list = told[what].as_array().unwrap().iter();
        list.map(|change| (text(&change["name"]), text(&change["kind"])))
            .collect()
    };
    let pairs = |list: &[(&str, &str)]| -> Vec<(String, String)> {
        list.iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect()
    };
    assert_eq!(
        names("groups"),
        pairs(&[("calm", "changed"), ("gone", "removed"), ("late", "added")])
    );
    assert_eq!(
        names("keys"),
        pairs(&[
            ("bob", "changed"),
            ("carol", "changed"),
            ("dave", "removed"),
            ("erin", "changed"),
            ("frank", "added"),
        ])
    );
    assert_eq!(
        told["keys"][0]["changes"],
        json!({"tier": ["client", "priority"]})
    );
    let carol = json!({"group": ["calm", "late"], "max_in_flight": ["none", "3"]});
    assert_eq!(told["keys"][1]["changes"], carol);
    assert_eq!(
        told["keys"][3]["changes"],
        json!({"enabled": ["true", "false"]})
    );
    assert_eq!(
        (&told["unlisted"], &told["log"]),
        (&Value::Null, &Value::Null)
    );
}

#[test]
fn a_default_group_is_what_a_removed_key_gets() {
    let folder = folder();
    let new = OLD
        .replace("groups:", "default_group: fast\ngroups:")
        .replace("  sk-dave: {group: gone, name: dave}\n", "");
    fs::write(folder.path().join("new.yaml"), new).unwrap();
    let told = diff_json(folder.path(), &["old.yaml", "new.yaml"]);
    let dave = &told["keys"][0];
    assert_eq!(
        (&dave["name"], &dave["kind"]),
        (&json!("dave"), &json!("removed"))
    );
    let changes = json!({"group": ["gone", "fast"], "name": ["dave", "none"], "tier": ["client", "priority"]});
    assert_eq!(dave["changes"], changes);
    assert_eq!(
        told["unlisted"]["changes"]["enabled"],
        json!(["false", "true"])
    );
}

/// A line with the fields that matter here.
fn line(number: u64, key: &str, endpoint: &str, cost: &str) -> String {
    format!(
        r#"{{"event_id":"e{number}#0","seq":{number},"instance":"i","key":{key},"group":"g","endpoint":"{endpoint}","transport":"http","turn":0,"input_tokens":100,"output_tokens":10,"cost_usd":{cost}}}"#
    )
}

#[test]
fn the_requests_of_a_log_that_are_touched_are_counted_once() {
    let folder = folder();
    let lines = [
        line(0, r#""alice""#, "responses", r#""1""#),
        line(1, r#""bob""#, "responses", r#""0.1""#),
        // Only the tier of bob changes, and this has none.
        line(2, r#""bob""#, "other", r#""0.2""#),
        line(3, r#""dave""#, "other", r#""0.25""#),
        line(4, r#""erin""#, "messages", "null"),
        line(1, r#""bob""#, "responses", r#""0.1""#),
        line(5, "null", "responses", "null"),
    ];
    fs::write(folder.path().join("log"), lines.join("\n")).unwrap();
    let told = diff_json(
        folder.path(),
        &["old.yaml", "new.yaml", "--log", "log", "--log", "log"],
    );
    let expected = json!({"requests": 6, "affected": 3, "input_tokens": 300, "output_tokens": 30,
        "cost_usd": "0.35", "unpriced": 1, "unreadable": 0});
    assert_eq!(told["log"], expected);
    let text = diff(folder.path(), &["old.yaml", "new.yaml", "--log", "log"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(
        text.contains("  ~ bob              tier: client -> priority\n"),
        "{text}"
    );
    assert!(text.contains("\n  3 of 6 requests are of keys"), "{text}");
}

#[test]
fn equal_policies_and_bad_ones_are_told() {
    let folder = folder();
    let same = diff(folder.path(), &["old.yaml", "old.yaml"]);
    assert_eq!(same.stdout, b"no group and no key is treated otherwise\n");
    fs::write(folder.path().join("new.yaml"), "version: 2\n").unwrap();
    let bad = diff(folder.path(), &["old.yaml", "new.yaml"]);
    assert_eq!(bad.status.code(), Some(78));
    let told = String::from_utf8(bad.stderr).unwrap();
    assert!(told.contains("new.yaml:1:10: unknown version"), "{told}");
    let missing = diff(folder.path(), &["old.yaml", "old.yaml", "--log", "nowhere"]);
    assert_eq!(missing.status.code(), Some(1));
}

#[test]
fn a_log_that_cannot_be_read_whole_is_counted_as_far_as_it_goes_and_fails() {
    let folder = folder();
    let lines = [
        line(1, r#""bob""#, "responses", r#""0.1""#),
        "no line".to_owned(),
    ];
    fs::write(folder.path().join("log"), lines.join("\n")).unwrap();
    let output = diff(
        folder.path(),
        &["old.yaml", "new.yaml", "--log", "log", "--json"],
    );
    assert_eq!(output.status.code(), Some(1));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&told["log"]["affected"], &told["log"]["unreadable"]),
        (&json!(1), &json!(1))
    );
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(
        notes.starts_with("log:2: not a line of the access log"),
        "{notes}"
    );
}

#[test]
fn the_exit_code_says_whether_policies_differ_where_it_is_asked_for() {
    let folder = folder();
    let code = |new: &str| {
        let output = diff(folder.path(), &["old.yaml", new, "--exit-code"]);
        output.status.code()
    };
    assert_eq!((code("old.yaml"), code("new.yaml")), (Some(0), Some(1)));
}

#[test]
fn prices_tell_what_the_change_would_have_cost_or_saved() {
    let folder = folder();
    let prices = "version: 1\nprices: [{models: [m], tiers: {default: {input: 1, output: 10}, priority: {input: 3, output: 30},
        flex: {input: 0.5, output: 5}}}]\n";
    fs::write(folder.path().join("prices.yaml"), prices).unwrap();
    let new = "version: 1\ngroups:\n  fast: {platform: openai}\n  calm: {platform: openai, force_fast_mode: true}\nkeys:\n  \
        sk-alice: {group: fast, name: alice}\n  sk-bob: {group: calm, name: bob}\n  sk-erin: {group: fast, name: erin}\n";
    fs::write(folder.path().join("new.yaml"), new).unwrap();
    let line = |number: u64, key: &str, group: &str, model: &str, client: &str, billed: &str| {
        format!(
            r#"{{"event_id":"e{number}#0","seq":{number},"instance":"i","time":"2026-11-01T00:00:00Z","key":"{key}","group":"{group}","endpoint":"responses","transport":"http","turn":0,"model":"{model}","service_tier_client":{client},"service_tier_billed":"{billed}","input_tokens":1000000,"output_tokens":100000,"cost_usd":null}}"#
        )
    };
    let lines = [
        // No longer forced: what her client asks for is flex, then nothing.
        line(0, "alice", "fast", "m", r#""flex""#, "priority"),
        line(1, "alice", "fast", "m", "null", "priority"),
        // Forced from now on.
        line(2, "bob", "calm", "m", "null", "default"),
        line(3, "bob", "calm", "unpriced", "null", "default"),
        // No longer listed.
        line(4, "dave", "gone", "m", "null", "default"),
    ];
    fs::write(folder.path().join("log"), lines.join("\n")).unwrap();
    let arguments = [
        "old.yaml",
        "new.yaml",
        "--log",
        "log",
        "--prices",
        "prices.yaml",
    ];
    let told = diff_json(folder.path(), &arguments);
    let cost = |requests: u64, before: &str, after: &str, difference: &str, unpriced: u64| {
        json!({"requests": requests, "before_usd": before, "after_usd": after, "difference_usd": difference,
            "unpriced": unpriced})
    };
    assert_eq!(
        told["log"]["groups"],
        json!({
            "fast": cost(2, "12", "3", "-9", 0),
            "calm": cost(2, "2", "6", "4", 1),
            "gone": cost(1, "2", "0", "-2", 0),
        })
    );
    let text = String::from_utf8(diff(folder.path(), &arguments).stdout).unwrap();
    assert!(
        text.contains("  fast             2 requests, 12.00 USD -> 3.00 USD (-9.00)\n"),
        "{text}"
    );
    assert!(text.contains("(+4.00), 1 without a price\n"), "{text}");
}

#[test]
fn many_keys_that_change_alike_are_told_in_one_line() {
    let folder = folder();
    let keys: String = (10..60)
        .map(|key| format!("  sk-{key}: {{group: g, name: key-{key}}}\n"))
        .collect();
    let policy = |force: bool| {
        format!(
            "version: 1\ngroups:\n  g: {{platform: openai, force_fast_mode: {force}}}\nkeys:\n{keys}"
        )
    };
    fs::write(folder.path().join("old.yaml"), policy(false)).unwrap();
    fs::write(folder.path().join("new.yaml"), policy(true)).unwrap();
    let text = String::from_utf8(diff(folder.path(), &["old.yaml", "new.yaml"]).stdout).unwrap();
    let expected = "groups\n  ~ g                tier: client -> priority\nkeys\n  \
        ~ 50 keys (key-10, key-11, key-12 and 47 more)  tier: client -> priority\n";
    assert_eq!(text, expected);
}

/// A policy of one group `g` with these settings, and its keys alice and bob.
fn policy_of(settings: &str) -> String {
    format!(
        "version: 1\ngroups:\n  g: {{platform: openai{settings}}}\nkeys:\n  sk-alice: {{group: g, name: alice}}\n  \
            sk-bob: {{group: g, name: bob}}\n"
    )
}

#[test]
fn every_setting_of_a_group_that_acts_on_its_requests_is_told() {
    let folder = folder();
    let write = |name: &str, settings: &str| {
        fs::write(folder.path().join(name), policy_of(settings)).unwrap();
    };
    let budget = "{usd: \"1\", per: day";
    for (old, new, told) in [
        (
            "",
            ", force_tier: flex",
            json!({"tier": ["client", "flex"]}),
        ),
        (
            ", force_tier: default",
            ", force_tier: none",
            json!({"tier": ["default", "none"]}),
        ),
        (
            ", force_fast_mode: true",
            ", force_fast_mode: true, except_models: [\"*-mini\", o9]",
            json!({"models": ["all", "all except *-mini, o9"]}),
        ),
        (
            ", force_fast_mode: true, except_models: [a]",
            ", force_fast_mode: true, only_models: [a]",
            json!({"models": ["all except a", "only a"]}),
        ),
        (
            "",
            ", on_tier_refused: retry_without",
            json!({"on_tier_refused": ["fail", "retry_without"]}),
        ),
        (
            "",
            &format!(", budget: {budget}}}"),
            json!({"budget": ["none", "1 USD a day (UTC) by group, then standard"]}),
        ),
        (
            &format!(", budget: {budget}}}"),
            &format!(", budget: {budget}, time_zone: Europe/Berlin}}"),
            json!({"budget": ["1 USD a day (UTC) by group, then standard",
                "1 USD a day (Europe/Berlin) by group, then standard"]}),
        ),
    ] {
        write("old.yaml", old);
        write("new.yaml", new);
        let compared = diff(
            folder.path(),
            &["old.yaml", "new.yaml", "--exit-code", "--json"],
        );
        assert_eq!(compared.status.code(), Some(1), "{new}");
        let compared: Value = serde_json::from_slice(&compared.stdout).unwrap();
        assert_eq!(compared["groups"][0]["changes"], told);
        assert_eq!(compared["keys"][0]["changes"], told);
        // The one setting is the short form of the other.
        write("old.yaml", ", force_tier: priority");
        write("new.yaml", ", force_fast_mode: true");
        let same = diff(folder.path(), &["old.yaml", "new.yaml", "--exit-code"]);
        assert_eq!(same.status.code(), Some(0));
    }
}

/// A line as the proxy writes it, of one million input tokens and 100,000 output tokens; with further members.
fn served_line(number: u64, key: &str, model: &str, tier: [&str; 2], more: &str) -> String {
    let [sent, billed] = tier;
    format!(
        r#"{{"event_id":"e{number}#0","seq":{number},"instance":"i","time":"2026-11-01T00:00:{number:02}Z","key":"{key}","group":"g","endpoint":"responses","transport":"http","turn":0,"model":"{model}","service_tier":{sent},"service_tier_billed":{billed},"tier_billed_by":"served","input_tokens":1000000,"output_tokens":100000,"cost_usd":null{more}}}"#
    )
}

/// The change of cost of group g, where these lines are in the log.
fn cost_of(folder: &Path, old: &str, new: &str, lines: &[String]) -> Value {
    let prices = "version: 1\nprices: [{models: [\"m*\"], tiers: {default: {input: 1, output: 10}, priority: {input: 3, output: 30},
        flex: {input: 0.5, output: 5}}}]\n";
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    write("prices.yaml", prices);
    write("old.yaml", &policy_of(old));
    write("new.yaml", &policy_of(new));
    write("log", &lines.join("\n"));
    let arguments = "old.yaml new.yaml --log log --prices prices.yaml";
    let arguments: Vec<&str> = arguments.split(' ').collect();
    diff_json(folder, &arguments)["log"]["groups"]["g"].clone()
}

const DEFAULT: [&str; 2] = ["null", "\"default\""];
const FAST: [&str; 2] = ["\"priority\"", "\"priority\""];

#[track_caller]
fn assert_cost(cost: &Value, requests: u64, before: &str, after: &str) {
    let told = (
        &cost["requests"],
        &cost["before_usd"],
        &cost["after_usd"],
        &cost["unpriced"],
    );
    let expected = (&json!(requests), &json!(before), &json!(after), &json!(0));
    assert_eq!(told, expected);
}

#[test]
fn the_cost_of_a_change_goes_by_its_tier_and_its_models() {
    let folder = folder();
    let folder = folder.path();
    let both = [
        served_line(0, "alice", "m", DEFAULT, ""),
        served_line(1, "bob", "m-mini", DEFAULT, ""),
    ];
    assert_cost(
        &cost_of(folder, "", ", force_tier: flex", &both),
        2,
        "4",
        "2",
    );
    let except = ", force_fast_mode: true, except_models: [\"*-mini\"]";
    assert_cost(&cost_of(folder, "", except, &both), 2, "4", "8");
    // Taken out of the force, a request has the tier that its client asked for.
    let forced = [
        served_line(0, "alice", "m", FAST, ""),
        served_line(1, "bob", "m-mini", FAST, r#","service_tier_client":"flex""#),
    ];
    let force = ", force_fast_mode: true";
    assert_cost(&cost_of(folder, force, except, &forced), 2, "12", "7");
    assert_cost(
        &cost_of(folder, force, ", force_tier: none", &forced),
        2,
        "12",
        "4",
    );
    // Sent as priority in both, and served on another tier: that stays.
    let downgraded = [served_line(
        0,
        "alice",
        "m",
        ["\"priority\"", "\"default\""],
        "",
    )];
    assert_cost(&cost_of(folder, force, except, &downgraded), 1, "2", "2");
    // Another name of the tier is no other tier.
    let renamed = [served_line(
        0,
        "alice",
        "m",
        ["\"priority\"", "\"default\""],
        r#","service_tier_client":"fast""#,
    )];
    let left_out = ", force_fast_mode: true, except_models: [m]";
    assert_cost(&cost_of(folder, force, left_out, &renamed), 1, "2", "2");
    // Asked for by the beta header, which no longer asks for anything.
    let beta = [
        served_line(0, "alice", "m", FAST, r#","tier_reason":"fast_mode_beta""#)
            .replace("responses", "messages"),
    ];
    assert_cost(
        &cost_of(folder, "", ", fast_mode_beta: false", &beta),
        1,
        "6",
        "2",
    );
}

#[test]
fn the_cost_of_a_change_goes_by_its_budget() {
    let folder = folder();
    let folder = folder.path();
    let force = ", force_fast_mode: true";
    let budget =
        |rest: &str| format!("{force}, budget: {{usd: \"11\", per: day, time_zone: UTC{rest}}}");
    // Two of them spend it, whatever day the third line of the other key is of.
    let mut lines: Vec<String> = (0..3)
        .map(|number| served_line(number, "alice", "m", FAST, ""))
        .collect();
    lines.push(served_line(3, "bob", "m", FAST, ""));
    lines.push(served_line(4, "bob", "m", FAST, "").replace("2026-11-01", "2026-11-02"));
    let cost = |settings: String| cost_of(folder, force, &settings, &lines);
    assert_cost(&cost(budget("")), 5, "30", "22");
    assert_cost(&cost(budget(", then: refuse")), 5, "30", "18");
    assert_cost(&cost(budget(", then: alarm")), 5, "30", "30");
    assert_cost(&cost(budget(", scope: key")), 5, "30", "26");
    // A model that is left out of the force may ask for the fast tier itself, and is refused as live requests are.
    let own = format!("{}, except_models: [m]", budget(", then: refuse"));
    let asked: Vec<String> = (0..3)
        .map(|number| {
            let asked = r#","service_tier_client":"fast""#;
            served_line(number, "alice", "m", FAST, asked)
        })
        .collect();
    assert_cost(&cost_of(folder, force, &own, &asked), 3, "18", "12");
    // What a budget kept back is had without it.
    let kept = [served_line(
        0,
        "alice",
        "m",
        DEFAULT,
        r#","tier_reason":"budget_exhausted""#,
    )];
    assert_cost(&cost_of(folder, &budget(""), force, &kept), 1, "2", "6");
}

#[test]
fn a_tier_that_was_refused_is_not_had_by_the_change_either() {
    let folder = folder();
    let folder = folder.path();
    let lines = [served_line(
        0,
        "alice",
        "m",
        DEFAULT,
        r#","tier_refused":true"#,
    )];
    let (fail, retry) = (
        ", force_fast_mode: true",
        ", force_fast_mode: true, on_tier_refused: retry_without",
    );
    assert_cost(&cost_of(folder, retry, fail, &lines), 1, "2", "0");
    let kept = format!("{retry}, max_in_flight: 9");
    assert_cost(&cost_of(folder, retry, &kept, &lines), 1, "2", "2");
}
