//! The command line as a user meets it: the binary, its output and its exit codes.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Instant;

use serde_json::Value;
use tempfile::TempDir;
use tiergate::config::Config;
use tiergate::policy::Policy;

use crate::support::command::{Running, command, run_with_stdin, stderr, stdout};
use crate::support::{PATIENCE, eventually, upstream};

const POLICY: &str = "\
version: 1
groups:
  fast:
    platform: openai
    force_fast_mode: true
  calm: {platform: openai}
  shut: {platform: openai, enabled: false}
keys:
  sk-fast-1: {group: fast, name: alice}
  sk-calm-1: {group: calm, name: bob}
  sk-shut-1: {group: shut, name: carol}
";

/// A folder with a configuration in it.
struct Site {
    folder: TempDir,
}

impl Site {
    fn new(config: &str) -> Site {
        let site = Site {
            folder: tempfile::tempdir().unwrap(),
        };
        site.write("policy.yaml", POLICY);
        site.write("tiergate.yaml", config);
        site
    }

    /// For commands that open no socket.
    fn plain() -> Site {
        Site::new("policy: policy.yaml\nupstreams:\n  openai: {url: https://api.example}\n")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn config(&self) -> String {
        self.path("tiergate.yaml").to_str().unwrap().to_owned()
    }

    fn explain(&self, key: &str, arguments: &[&str], stdin: &str) -> Output {
        let config = self.config();
        let fixed = ["explain", "--config", &config, "--key", key];
        tiergate(&[&fixed, arguments].concat(), stdin)
    }

    fn explain_json(&self, key: &str, arguments: &[&str], stdin: &str) -> Value {
        let done = self.explain(key, &[arguments, &["--json"]].concat(), stdin);
        assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
        serde_json::from_str(&stdout(&done)).unwrap()
    }

    fn check(&self) -> Output {
        tiergate(&["check", "--config", &self.config()], "")
    }
}

fn tiergate(arguments: &[&str], stdin: &str) -> Output {
    run_with_stdin(command(".", arguments), stdin.as_bytes())
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
fn wrong_usage_ends_with_2_and_words_on_stderr() {
    let site = Site::plain();
    let config = site.config();
    for arguments in [
        &[][..],
        &["serve"],
        &["run"],
        &["explain", "--config", &config],
        &["explain", "--config", &config, "--key", "-", "--body", "-"],
        &[
            "explain", "--config", &config, "--key", "k", "--header", "nocolon",
        ],
        &["report"],
        &["report", "x.log", "--by", "gruop"],
        &["report", "x.log", "--since", "tomorrow"],
        &["report", "x.log", "--month", "2026-13"],
        &["report", "x.log", "--month", "2026-10", "--since", "7d"],
        &["report", "x.log", "--time-zone", "Mars/Olympus"],
        &["report", "x.log", "--columns", "price"],
        &["report", "x.log", "--where", "gruop=a"],
        &["report", "x.log", "--rate", "EURO"],
        &["reconcile", "x.log"],
        &["completions", "cmd"],
        &["init"],
        &["run", "--log-level", "loud", "--config", &config],
        &["explain", "--config", &config, "--name", "nobody"],
        &["explain", "--config", &config, "--digest", "sha256:00"],
        &["explain", "--config", &config, "--name", "a", "--key", "b"],
        &["report", "x.log", "--format", "xml"],
        &["hash-key", "sk-1"],
    ] {
        let done = tiergate(arguments, "");
        assert_eq!(done.status.code(), Some(2), "{arguments:?}");
        assert!(
            !done.stderr.is_empty() && done.stdout.is_empty(),
            "{arguments:?}"
        );
    }
}

#[test]
fn a_field_that_does_not_exist_gets_a_suggestion_and_the_list_of_all() {
    let done = tiergate(&["report", "x.log", "--by", "gruop"], "");
    assert!(
        stderr(&done).contains("did you mean `group`?"),
        "{}",
        stderr(&done)
    );
    assert!(
        stderr(&done).contains(", upstream_status, "),
        "{}",
        stderr(&done)
    );
}

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let done = tiergate(&["--help"], "");
    assert_eq!(done.status.code(), Some(0));
    for word in [
        "run",
        "check",
        "explain",
        "hash-key",
        "demo",
        "report",
        "reconcile",
        "new-key",
        "init",
        "completions",
        "man",
        "78 bad configuration",
    ] {
        assert!(stdout(&done).contains(word), "{word}");
    }
}

#[test]
fn hash_key_prints_what_the_policy_takes() {
    let site = Site::plain();
    let digest = stdout(&tiergate(&["hash-key"], "sk-fast-1\r\n"));
    site.write(
        "policy.yaml",
        &POLICY.replace("sk-fast-1", &format!("{:?}", digest.trim())),
    );
    assert_eq!(site.explain_json("sk-fast-1", &[], "")["key"], "alice");
}

#[test]
fn explain_says_what_the_log_of_live_traffic_says() {
    let (port, admin) = (free_port(), free_port());
    let upstream = upstream::json("{}").run_plain();
    let site = Site::new(&format!(
        "listen: 127.0.0.1:{port}\nadmin: 127.0.0.1:{admin}\npolicy: policy.yaml\naccess_log: {{path: access.log}}\n\
        upstreams:\n  here: {{url: \"http://127.0.0.1:{0}\", kind: gateway, chat_stream_usage: request}}\n  \
        codex: {{url: \"http://127.0.0.1:{0}\", kind: codex, messages: responses, chat_completions: responses, \
        models: [{{match: m, model: gpt-5.5}}]}}\n",
        upstream.address.port()
    ));
    let policy = POLICY
        .replace("platform: openai", "upstream: here, platform: openai")
        .replace("here, platform: openai\n", "here\n    platform: openai\n")
        .replace(
            "keys:\n",
            "  codex: {platform: openai, upstream: codex}\nkeys:\n  sk-codex-1: codex\n",
        );
    site.write("policy.yaml", &policy);
    let run = ["run", "--config", &site.config()];
    let running = command(".", &run).stderr(Stdio::null()).spawn();
    let _running = Running(running.unwrap());
    eventually("the proxy listens", || {
        TcpStream::connect(("127.0.0.1", port)).ok()
    });
    let beta = "anthropic-beta: fast-mode-2026-02-01";
    let flex = r#"{"model":"m","service_tier":" Flex "}"#;
    let chat_stream = r#"{"model":"m","stream":true}"#;
    let unmapped = flex.replace("\"m\"", "\"n\"");
    for (number, (key, path, header, body)) in [
        ("sk-fast-1", "/v1/responses", "x: y", flex),
        ("sk-fast-1", "/V1/Chat/Completions/?q=1", "x: y", "{}"),
        (
            "sk-fast-1",
            "/v1/messages",
            "x: y",
            r#"{"service_tier":null}"#,
        ),
        ("sk-fast-1", "/v1/embeddings", "x: y", flex),
        ("sk-fast-1", "/v1/batches", "x: y", "{}"),
        ("sk-fast-1", "/v1//responses", "x: y", "{}"),
        ("sk-fast-1", "/v1/responses", "x: y", "[1]"),
        (
            "sk-fast-1",
            "/v1/responses",
            "content-type: multipart/form-data",
            "{}",
        ),
        ("sk-calm-1", "/v1/responses", "x: y", flex),
        (
            "sk-calm-1",
            "/v1/responses",
            "x: y",
            r#"{"service_tier":null}"#,
        ),
        ("sk-calm-1", "/v1/responses", "x: y", "no json"),
        ("sk-calm-1", "/v1/chat/completions", "x: y", chat_stream),
        ("sk-fast-1", "/v1/chat/completions", "x: y", chat_stream),
        ("sk-calm-1", "/v1/chat/completions", "x: y", "no json"),
        ("sk-calm-1", "/v1/messages", beta, flex),
        ("sk-shut-1", "/v1/responses", "x: y", flex),
        ("sk-nobody", "/v1/responses", "x: y", flex),
        ("sk-fast-1", "/v1/responses", "x: y", &flex[1..]),
        (
            "sk-fast-1",
            "/v1/responses",
            "x: y",
            &flex.replace("\"m\",", "\"m\",,"),
        ),
        (
            "sk-codex-1",
            "/v1/messages",
            "x: y",
            &flex.replace("\"m\",", "\"m\",,"),
        ),
        (
            "sk-fast-1",
            "/v1/responses",
            "x: y",
            &flex[..flex.len() - 1],
        ),
        ("sk-codex-1", "/v1/chat/completions", "x: y", &unmapped),
        ("sk-codex-1", "/v1/chat/completions", "x: y", flex),
        (
            "sk-codex-1",
            "/v1/messages",
            "x: y",
            &flex[..flex.len() - 1],
        ),
        ("sk-codex-1", "/v1/messages/count_tokens", "x: y", flex),
        ("sk-codex-1", "/v1/models/none", "x: y", ""),
    ]
    .into_iter()
    .enumerate()
    {
        let arguments = ["--path", path, "--header", header, "--body", "-"];
        let told = site.explain_json(key, &arguments, body);
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {key}\r\n{header}\r\ncontent-length: {length}\r\n\
            connection: close\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
        let line = eventually("a line in the log", || {
            let log = fs::read_to_string(site.path("access.log")).unwrap();
            log.lines().nth(number).map(str::to_owned)
        });
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(told["denied"], line["error"], "{path} {body}");
        let told = told.as_object().unwrap();
        // The upstream's status is not foreseen, nor how much of a refused body is read.
        let refused = !line["error"].is_null();
        let unforeseen = if refused { "request_bytes" } else { "status" };
        for (name, value) in told
            .iter()
            .filter(|(name, _)| *name != "denied" && *name != unforeseen)
        {
            assert_eq!(*value, line[name], "{name} of {key} {path} {body}");
        }
    }
}

#[test]
fn explain_names_the_lines_that_decide_and_what_is_changed() {
    let site = Site::plain();
    site.write("body.json", r#"{"service_tier":"flex","model":"m"}"#);
    let body = site.path("body.json");
    let done = site.explain("sk-fast-1", &["--body", body.to_str().unwrap()], "");
    let text = stdout(&done);
    let row = |about: &str, holds: &str, place: &str| {
        let found = text
            .lines()
            .find(|line| line.trim_start().starts_with(about))
            .unwrap_or_default();
        assert!(
            found.contains(holds) && found.ends_with(place),
            "{about}: {text}"
        );
    };
    assert!(
        text.starts_with("POST /v1/responses is sent to `openai` with service_tier `priority`\n"),
        "{text}"
    );
    row("key", "alice", "policy.yaml:9:3");
    row("group", "fast", "policy.yaml:3:3");
    row("tier", "the group forces it", "policy.yaml:5:22");
    row("client", "`flex`", "");
    row("upstream", "https://api.example", "tiergate.yaml:3:3");
    row("header    host", "api.example", "");
    row("header    content-length", "39  (was 35)", "");
    assert!(
        text.contains(r#"{"service_tier":"priority","model":"m"}"#),
        "{text}"
    );
}

#[test]
fn explain_shows_that_a_chat_stream_is_asked_for_its_usage() {
    let site = Site::new(
        "policy: policy.yaml\nupstreams:\n  openai: {url: https://api.example, chat_stream_usage: request}\n",
    );
    let body = r#"{"model":"m","stream":true}"#;
    let chat = ["--path", "/v1/chat/completions", "--body", "-"];
    for key in ["sk-calm-1", "sk-fast-1"] {
        let text = stdout(&site.explain(key, &chat, body));
        assert!(text.contains("rewritten, 27 bytes"), "{text}");
        assert!(text.contains(r#""include_usage":true"#), "{text}");
    }
    // It is held for that, and refused as live traffic is.
    let refused = site.explain_json("sk-calm-1", &chat, "{");
    assert_eq!(refused["denied"], "invalid_json");
    let elsewhere = ["--path", "/v1/responses", "--body", "-"];
    let text = stdout(&site.explain("sk-calm-1", &elsewhere, body));
    assert!(text.contains("27 bytes, sent as they came"), "{text}");
}

#[test]
fn explain_of_a_refusal_names_code_and_line_and_ends_with_0() {
    let site = Site::plain();
    let done = site.explain("sk-shut-1", &[], "");
    assert_eq!(done.status.code(), Some(0));
    let text = stdout(&done);
    assert!(text.contains("is refused: 403 group_disabled"), "{text}");
    assert!(
        text.contains("policy.yaml:7:3") && text.contains("policy.yaml:11:3"),
        "{text}"
    );
    assert!(!text.contains("upstream"), "{text}");
}

#[test]
fn explain_reads_the_key_from_stdin_and_never_prints_one() {
    let site = Site::plain();
    let secret = "sk-calm-1";
    let arguments = [
        "--path",
        "/v1/messages",
        "--header",
        "anthropic-beta: sk-calm-1, fast-mode-2026-02-01",
    ];
    assert_eq!(site.explain_json("-", &[], "sk-calm-1\n")["key"], "bob");
    site.write(
        "body.json",
        r#"{"model":"sk-calm-1","service_tier":"sk-calm-1"}"#,
    );
    let body = site.path("body.json");
    for format in [&[][..], &["--json"]] {
        let body = ["--body", body.to_str().unwrap()];
        let done = site.explain(
            "-",
            &[&arguments[..], &body, format].concat(),
            "sk-calm-1\n",
        );
        assert_eq!(done.status.code(), Some(0));
        assert!(stdout(&done).contains("priority"), "{}", stdout(&done));
        assert!(!stdout(&done).contains(secret), "{}", stdout(&done));
    }
    let wrong = site.explain("-", &["--header", "sk-calm-1"], "sk-calm-1\n");
    assert!(!stderr(&wrong).contains(secret), "{}", stderr(&wrong));
}

#[test]
fn explain_of_an_empty_key_shows_the_path() {
    let site = Site::plain();
    let done = tiergate(&["explain", "--config", &site.config(), "--key", ""], "");
    let text = stdout(&done);
    assert!(
        text.starts_with("POST /v1/responses is refused: 401"),
        "{text}"
    );
}

#[test]
fn explain_of_an_upgrade_says_where_the_tier_is_set() {
    let site = Site::plain();
    let upgrade = [
        "--method",
        "GET",
        "--header",
        "connection: upgrade",
        "--header",
        "upgrade: websocket",
        "--header",
        "sec-websocket-extensions: permessage-deflate",
    ];
    let text = stdout(&site.explain("sk-fast-1", &upgrade, ""));
    assert!(
        text.contains("priority in each `response.create`"),
        "{text}"
    );
    assert!(text.contains("sec-websocket-extensions: removed"), "{text}");
    let plain = stdout(&site.explain("sk-fast-1", &["--method", "GET"], ""));
    assert!(!plain.contains("response.create"), "{plain}");
}

#[test]
fn explain_needs_no_secret_of_the_service() {
    let site = Site::new(
        "policy: policy.yaml\nupstreams:\n  a: {url: https://api.example, credential_file: nowhere}\n",
    );
    let text = stdout(&site.explain("sk-fast-1", &[], ""));
    assert!(
        text.contains("authorization: the key of `credential_file`"),
        "{text}"
    );
}

/// What the row says of a request by alice to `/v1/responses`, whose group has these settings.
fn row_of(about: &str, settings: &str, body: &str) -> String {
    let site = Site::plain();
    let policy = format!(
        "version: 1\ngroups: {{g: {{platform: openai{settings}}}}}\nkeys: {{sk-fast-1: {{group: g, name: alice}}}}\n"
    );
    site.write("policy.yaml", &policy);
    let text = stdout(&site.explain("sk-fast-1", &["--body", "-"], body));
    let mut lines = text.lines();
    let row = lines.find_map(|line| line.trim_start().strip_prefix(about));
    let row = row.unwrap_or_else(|| panic!("{text}")).trim_start();
    row.split("   ").next().unwrap().to_owned()
}

#[test]
fn explain_names_the_tier_that_is_sent_and_why() {
    let (asked, plain) = (
        r#"{"model":"m-mini","service_tier":"priority"}"#,
        r#"{"model":"m-mini"}"#,
    );
    for (settings, body, row) in [
        (", force_tier: flex", asked, "flex: the group forces it"),
        (
            ", force_tier: default",
            asked,
            "default: the group forces it",
        ),
        (
            ", force_tier: none",
            asked,
            "none: the group forces it, and takes every tier away",
        ),
        (
            "",
            asked,
            "priority: the client names it, and the group forces none",
        ),
        ("", plain, "none: neither client nor group names one"),
        (
            ", force_tier: flex, only_models: [x]",
            plain,
            "none: the force of the group is not for this model",
        ),
        // Of a body that is refused for what it is.
        (", force_tier: flex", "[]", "the group forces `flex`"),
    ] {
        assert_eq!(row_of("tier", settings, body), row, "{settings}");
    }
    let exempt = row_of(
        "tier",
        ", force_fast_mode: true, except_models: [\"*-mini\"]",
        asked,
    );
    assert!(
        exempt.ends_with("the force of the group is not for this model"),
        "{exempt}"
    );
}

#[test]
fn explain_of_an_upgrade_names_the_tier_of_its_messages() {
    let upgrade = [
        "--method",
        "GET",
        "--header",
        "connection: upgrade",
        "--header",
        "upgrade: websocket",
    ];
    let site = Site::plain();
    for tier in ["flex", "none"] {
        let force = format!("force_tier: {tier}");
        site.write(
            "policy.yaml",
            &POLICY.replace("force_fast_mode: true", &force),
        );
        let text = stdout(&site.explain("sk-fast-1", &upgrade, ""));
        let told =
            format!("{tier} in each `response.create` of the WebSocket: the group forces it");
        assert!(text.contains(&told), "{text}");
    }
}

#[test]
fn explain_says_what_codex_makes_of_the_fast_tier_over_http() {
    let site = Site::new(
        "policy: policy.yaml\nupstreams:\n  a: {url: https://api.example, kind: codex}\n",
    );
    let note = "Codex is reported to serve requests over HTTP at the standard tier";
    let text = stdout(&site.explain("sk-fast-1", &[], ""));
    assert!(text.contains(note), "{text}");
    let upgrade = ["--method", "GET", "--header", "upgrade: websocket"];
    for (key, arguments) in [("sk-calm-1", &[][..]), ("sk-fast-1", &upgrade)] {
        let text = stdout(&site.explain(key, arguments, ""));
        assert!(!text.contains(note), "{text}");
    }
}

#[test]
fn explain_of_a_bridged_request_says_whose_key_is_sent() {
    for (credential, told) in [
        ("null", None),
        (
            "nowhere",
            Some("authorization: the key of `credential_file`"),
        ),
    ] {
        let config = format!(
            "policy: policy.yaml\nupstreams:\n  a: {{url: https://api.example, messages: responses, \
             models: [{{match: '*', model: m}}], credential_file: {credential}}}\n"
        );
        let site = Site::new(&config);
        let arguments = ["--path", "/v1/messages", "--body", "-"];
        let body =
            r#"{"model":"claude-x","max_tokens":9,"messages":[{"role":"user","content":"a"}]}"#;
        let text = stdout(&site.explain("sk-fast-1", &arguments, body));
        assert!(text.contains("messages>responses"), "{text}");
        assert_eq!(text.contains("credential_file"), told.is_some(), "{text}");
        assert!(told.is_none_or(|told| text.contains(told)), "{text}");
    }
}

#[test]
fn explain_says_what_is_answered_here() {
    let site = Site::new(
        "policy: policy.yaml\nupstreams:\n  a: {url: https://api.example, messages: responses, \
         models: [{match: 'claude-*', model: m}], bridge: {list_models: true}}\n",
    );
    let asks = |path: &str| {
        let text = stdout(&site.explain("sk-fast-1", &["--method", "GET", "--path", path], ""));
        text.lines().next().unwrap().to_owned()
    };
    assert_eq!(
        asks("/v1/models"),
        "GET /v1/models is answered here, from the `models` of `a`"
    );
    assert_eq!(
        asks("/v1/models/other"),
        "GET /v1/models/other is refused: 404 model_not_mapped"
    );
}

#[test]
fn the_demo_shows_both_sides_and_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let done = command(".", &["demo"])
        .env("TMPDIR", temporary.path())
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    assert!(began.elapsed() < PATIENCE);
    let text = stdout(&done);
    for line in [
        r#"   client sent        {"model":"gpt-5.5","service_tier":"flex","input":"hello"}"#,
        r#"   upstream received  {"model":"gpt-5.5","service_tier":"flex","input":"hello"}"#,
        r#"   upstream received  {"service_tier":"priority","model":"gpt-5.5","stream":true,"input":"hello"}"#,
        "   upstream received  nothing",
    ] {
        assert!(text.lines().any(|other| other == line), "{line}\n{text}");
    }
    for word in [
        "group_force",
        "sse",
        "rejected",
        "denied",
        "invalid_json",
        "\"schema\":1",
        "{\"model\":\"claude-opus-5-5\",",
        "\"max_output_tokens\":99,",
        "tiergate check",
    ] {
        assert!(text.contains(word), "{word}\n{text}");
    }
    assert!(
        text.lines().count() <= 56 && text.lines().all(|line| line.chars().count() <= 110),
        "{text}"
    );
    assert!(
        !text.contains('\x1b') && done.stderr.is_empty(),
        "{text}{}",
        stderr(&done)
    );
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
}

fn log_line(number: usize, group: &str) -> String {
    format!(
        r#"{{"schema":1,"event_id":"e{number}#0","seq":{number},"instance":"i","time":"2026-11-0{number}T00:00:00.000000Z","turn":0,"group":"{group}","model":"m","service_tier_billed":"priority","input_tokens":1000000,"cached_input_tokens":0,"cache_write_tokens":0,"output_tokens":0,"reasoning_tokens":0,"cost_usd":null}}"#
    ) + "\n"
}

#[test]
fn report_groups_by_the_fields_within_the_window_and_prices() {
    let site = Site::plain();
    site.write(
        "access.log",
        &(1..=4)
            .map(|number| log_line(number, ["a", "b"][number % 2]))
            .collect::<String>(),
    );
    site.write(
        "prices.yaml",
        "version: 1\nprices:\n  - models: [m]\n    tiers: {priority: {input: 2.5, output: 1}}\n",
    );
    let (log, prices) = (site.path("access.log"), site.path("prices.yaml"));
    let (log, prices) = (log.to_str().unwrap(), prices.to_str().unwrap());
    let window = ["--since", "2026-11-02", "--until", "2026-11-04T00:00:00Z"];
    let by = [
        "report",
        log,
        "--by",
        "group,model",
        "--prices",
        prices,
        "--format",
        "csv",
    ];
    let done = tiergate(&[&by[..], &window].concat(), "");
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    let text = stdout(&done);
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split(',').take(9).collect())
        .collect();
    assert_eq!(rows[0][..3], ["group", "model", "requests"]);
    assert_eq!(
        rows[1],
        ["a", "m", "1", "1000000", "0", "0", "0", "0", "2.5"]
    );
    assert_eq!(
        rows[2],
        ["b", "m", "1", "1000000", "0", "0", "0", "0", "2.5"]
    );
    assert_eq!(rows[3], ["", "", "2", "2000000", "0", "0", "0", "0", "5"]);
    assert_eq!(rows.len(), 4);
}

#[test]
fn a_reports_page_overwrites_nothing_that_it_is_made_from() {
    let site = Site::plain();
    site.write("own.log", "");
    site.write("prices.yaml", "version: 1\nprices: []\n");
    fs::hard_link(site.path("own.log"), site.path("link.log")).unwrap();
    let at = |name: &str| site.path(name).to_str().unwrap().to_owned();
    for (page, input) in [
        ("own.log", "own.log"),
        ("./own.log", "own.log"),
        ("link.log", "own.log"),
        ("prices.yaml", "prices.yaml"),
    ] {
        let (log, prices, page) = (at("own.log"), at("prices.yaml"), at(page));
        let done = tiergate(&["report", &log, "--prices", &prices, "--html", &page], "");
        let told = format!("--html would overwrite `{}`", at(input));
        assert_eq!(done.status.code(), Some(2), "{}", stderr(&done));
        assert!(stderr(&done).contains(&told), "{}", stderr(&done));
    }
    assert_eq!(fs::read_to_string(site.path("own.log")).unwrap(), "");
}

#[test]
fn a_reports_page_is_a_file() {
    let site = Site::plain();
    site.write("access.log", &log_line(1, "fast"));
    let log = site.path("access.log").to_str().unwrap().to_owned();
    let done = tiergate(&["report", &log, "--html", "-"], "");
    assert_eq!(done.status.code(), Some(2));
    assert!(
        stderr(&done).contains("--html names the file of the page"),
        "{done:?}"
    );
    let page = site.path("none/page.html").to_str().unwrap().to_owned();
    let done = tiergate(&["report", &log, "--html", &page], "");
    assert_eq!(done.status.code(), Some(1));
    assert!(
        stderr(&done).contains(&format!("cannot write `{page}`")),
        "{done:?}"
    );
}

#[test]
fn report_ends_with_78_for_bad_prices_and_with_1_for_no_log() {
    let site = Site::plain();
    site.write("prices.yaml", "version: 1\nprices:\n  - {modles: [m]}\n");
    let prices = site.path("prices.yaml");
    let done = tiergate(&["report", "-", "--prices", prices.to_str().unwrap()], "");
    assert_eq!(done.status.code(), Some(78));
    assert!(
        stderr(&done).contains("prices.yaml:3:6: "),
        "{}",
        stderr(&done)
    );
    let missing = site.path("nowhere.log");
    assert_eq!(
        tiergate(&["report", missing.to_str().unwrap()], "")
            .status
            .code(),
        Some(1)
    );
}

#[test]
fn a_report_whose_reader_has_gone_ends_quietly() {
    let mut child = command(".", &["report", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    // The report is written when the log has ended, so its reader is gone by then.
    child
        .stdin
        .take()
        .unwrap()
        .write_all(log_line(1, "a").as_bytes())
        .unwrap();
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    assert!(!stderr(&done).contains("tiergate:"), "{}", stderr(&done));
}

#[test]
fn every_sample_passes_the_check() {
    let conf = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
    let site = Site::plain();
    for entry in fs::read_dir(&conf).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), site.path(entry.file_name().to_str().unwrap())).unwrap();
        }
    }
    let text = fs::read_to_string(conf.join("tiergate.yaml")).unwrap();
    let with_prices = text.replace("\n# prices: ", "\nprices: ");
    assert_ne!(text, with_prices);
    for text in [text, with_prices] {
        site.write("tiergate.yaml", &text);
        let done = site.check();
        assert_eq!(
            (done.status.code(), stdout(&done)),
            (Some(0), String::new())
        );
        assert!(stderr(&done).contains("no mistakes"), "{}", stderr(&done));
    }
}

#[test]
fn check_tells_the_faults_of_all_named_files_at_once() {
    let site = Site::new(
        "listen:\n  - address: 127.0.0.1:1\n    tls: {cert: cert.pem, key: key.pem}\npolicy: policy.yaml\n\
        prices: prices.yaml\nupstreams:\n  a:\n    url: http://h\n    credential_file: empty\n",
    );
    site.write("prices.yaml", "version: 1\nprices: {}\n");
    site.write("empty", "\n");
    site.write(
        "policy.yaml",
        &POLICY.replace("{group: calm", "{group: clam"),
    );
    let done = site.check();
    assert_eq!(done.status.code(), Some(78));
    let text = stdout(&done);
    for start in [
        "tiergate.yaml:3:10: ",
        "prices.yaml:2:9: ",
        "tiergate.yaml:9:22: ",
        "policy.yaml:10:",
    ] {
        assert!(text.contains(&format!("/{start}")), "{start}\n{text}");
    }
    assert!(
        text.contains("cert.pem") && text.contains("the file holds no key"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 4, "{text}");

    // Those of keys and certificates are the first and the third.
    let done = tiergate(
        &["check", "--without-secrets", "--config", &site.config()],
        "",
    );
    assert_eq!(done.status.code(), Some(78));
    let kept = ["prices.yaml:2:9: ", "policy.yaml:10:"];
    let kept = text
        .lines()
        .filter(|line| kept.iter().any(|start| line.contains(start)));
    assert_eq!(
        stdout(&done).lines().collect::<Vec<_>>(),
        kept.collect::<Vec<_>>()
    );
}

#[test]
fn check_warns_of_a_force_that_has_no_effect() {
    let site = Site::plain();
    site.write(
        "policy.yaml",
        &POLICY.replace(
            "  calm: {platform: openai}",
            "  calm: {platform: anthropic, force_fast_mode: true}",
        ),
    );
    let done = site.check();
    assert_eq!(done.status.code(), Some(0));
    assert!(
        stdout(&done).contains("policy.yaml:6:3: warning: `force_fast_mode` has no effect"),
        "{}",
        stdout(&done)
    );
}

#[test]
fn run_tells_a_port_in_use_in_one_line_and_ends_with_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let site = Site::new(&format!(
        "listen: {address}\nadmin: 127.0.0.1:{}\npolicy: policy.yaml\naccess_log: {{path: access.log}}\n\
        upstreams:\n  a: {{url: http://127.0.0.1:9, credential_file: null}}\n",
        free_port()
    ));
    let done = tiergate(&["run", "--config", &site.config()], "");
    assert_eq!(done.status.code(), Some(1));
    let told = stderr(&done);
    assert!(
        told.starts_with(&format!("tiergate: cannot listen on {address}: ")),
        "{told}"
    );
    assert_eq!(told.lines().count(), 1, "{told}");
}

#[test]
fn run_does_not_start_without_an_upstreams_key() {
    let site = Site::new(
        "policy: policy.yaml\naccess_log: {path: access.log}\nupstreams:\n  a: {url: http://h, credential_file: nowhere}\n",
    );
    let done = tiergate(&["run", "--config", &site.config()], "");
    assert_eq!(done.status.code(), Some(78));
    assert!(
        stderr(&done).contains("tiergate.yaml:4:39: "),
        "{}",
        stderr(&done)
    );
}

#[test]
fn hash_key_refuses_what_cannot_be_a_key_and_hashes_the_others() {
    let digest = stdout(&tiergate(&["hash-key"], "sk-1"));
    let lines = format!("sk-1\n\nBearer sk-1\nsk 1\n\"sk-1\"\n{digest}sk-1");
    let done = tiergate(&["hash-key"], &lines);
    assert_eq!(done.status.code(), Some(1));
    assert_eq!(stdout(&done), format!("{digest}{digest}"));
    let told: Vec<String> = stderr(&done).lines().map(str::to_owned).collect();
    assert_eq!(told.len(), 5, "{told:?}");
    for (line, number) in told.iter().zip(2..) {
        assert!(
            line.starts_with(&format!("line {number}: ")) && !line.contains("sk-"),
            "{line}"
        );
    }
}

#[test]
fn a_new_key_works_once_its_line_is_in_the_policy() {
    let site = Site::plain();
    let done = tiergate(&["new-key", "--name", "dora", "--group", "fast"], "");
    assert_eq!(done.status.code(), Some(0));
    let (key, line) = (stdout(&done), stderr(&done));
    let key = key.strip_suffix('\n').unwrap();
    assert!(
        key.starts_with("sk-tg-") && key.len() == 6 + 64 && !line.contains(key),
        "{key} {line}"
    );
    assert!(
        line.starts_with("  \"sha256:") && line.ends_with("\": {group: fast, name: dora}\n"),
        "{line}"
    );
    site.write("policy.yaml", &(POLICY.to_owned() + &line));
    assert_eq!(site.explain_json(key, &[], "")["key"], "dora");
}

#[test]
fn what_init_writes_passes_the_check_and_takes_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("site");
    let done = tiergate(&["init", path.to_str().unwrap()], "");
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    let text = stdout(&done);
    let key = text
        .split_whitespace()
        .find(|word| word.starts_with("sk-tg-"))
        .unwrap();
    let config = path.join("tiergate.yaml").to_str().unwrap().to_owned();
    let checked = tiergate(&["check", "-c", &config], "");
    assert_eq!(checked.status.code(), Some(0), "{}", stdout(&checked));
    let explained = tiergate(&["explain", "-c", &config, "--key", "-", "--json"], key);
    let told: Value = serde_json::from_str(&stdout(&explained)).unwrap();
    assert_eq!(
        (&told["denied"], &told["service_tier"]),
        (&Value::Null, &"priority".into())
    );
    for file in ["tiergate.yaml", "policy.yaml"] {
        assert!(
            !fs::read_to_string(path.join(file)).unwrap().contains(key),
            "{file}"
        );
    }
    let again = tiergate(&["init", path.to_str().unwrap()], "");
    assert_eq!(again.status.code(), Some(1));
    assert!(stdout(&again).is_empty());
}

#[test]
fn the_configuration_may_come_from_the_environment() {
    let site = Site::plain();
    let done = command(".", &["check"])
        .env("TIERGATE_CONFIG", site.config())
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    let short = tiergate(&["check", "-c", &site.config()], "");
    assert_eq!(short.status.code(), Some(0));
}

#[test]
fn a_strict_check_fails_for_a_warning() {
    let site = Site::new(
        "policy: policy.yaml\nupstreams:\n  openai: {url: https://api.example, credential_file: null}\n",
    );
    let code = |arguments: &[&str]| {
        let config = site.config();
        let done = tiergate(&[&["check", "--config", &config], arguments].concat(), "");
        done.status.code()
    };
    assert_eq!(code(&["--strict"]), Some(0));
    site.write(
        "policy.yaml",
        &POLICY.replace(
            "calm: {platform: openai}",
            "calm: {platform: anthropic, force_fast_mode: true}",
        ),
    );
    assert_eq!((code(&[]), code(&["--strict"])), (Some(0), Some(78)));
}

#[test]
fn explain_takes_a_name_or_a_digest_in_the_place_of_a_key() {
    let site = Site::plain();
    let digest = stdout(&tiergate(&["hash-key"], "sk-fast-1"));
    let config = site.config();
    let told = |caller: &[&str]| -> Value {
        let done = tiergate(
            &[&["explain", "--config", &config, "--json"], caller].concat(),
            "",
        );
        assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
        serde_json::from_str(&stdout(&done)).unwrap()
    };
    let by_key = site.explain_json("sk-fast-1", &[], "");
    assert_eq!(told(&["--name", "alice"]), by_key);
    assert_eq!(told(&["--digest", digest.trim()]), by_key);
    let stranger = format!("sha256:{}", "0".repeat(64));
    assert_eq!(told(&["--digest", &stranger])["denied"], "invalid_api_key");
}

#[test]
fn explain_shows_the_url_that_is_asked_and_takes_one() {
    let site =
        Site::new("policy: policy.yaml\nupstreams:\n  openai: {url: https://api.example/prefix}\n");
    let path = [
        "--path",
        "https://gateway.example:8443/v1/responses?stream=1",
    ];
    let text = stdout(&site.explain("sk-fast-1", &path, ""));
    assert!(text.starts_with("POST /v1/responses is sent to"), "{text}");
    assert!(
        text.contains("url       https://api.example/prefix/v1/responses?stream=1\n"),
        "{text}"
    );
}

#[test]
fn explain_ends_with_1_for_a_refusal_where_it_is_asked_to() {
    let site = Site::plain();
    let code = |key: &str| site.explain(key, &["--exit-code"], "").status.code();
    assert_eq!((code("sk-fast-1"), code("sk-shut-1")), (Some(0), Some(1)));
}

#[test]
fn every_shell_has_its_completions_and_every_command_its_page() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&tiergate(&["completions", shell], ""));
        assert!(
            script.contains("new-key") && script.contains("time-zone"),
            "{shell}"
        );
    }
    let page = stdout(&tiergate(&["man"], ""));
    assert!(page.contains(".TH tiergate 1"), "{page}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    assert_eq!(tiergate(&["man", "--dir", path], "").status.code(), Some(0));
    for page in [
        "tiergate.1",
        "tiergate-report.1",
        "tiergate-new-key.1",
        "tiergate-reconcile.1",
    ] {
        assert!(folder.path().join(page).is_file(), "{page}");
    }
}

#[test]
fn help_of_report_lists_every_field() {
    let text = stdout(&tiergate(&["report", "--help"], ""));
    for name in tiergate::accounting::access_log::line::FIELDS
        .into_iter()
        .chain(["week", "cost_share"])
    {
        assert!(text.split_whitespace().any(|word| word == name), "{name}");
    }
}

#[test]
fn explain_shows_what_a_bridged_request_is_converted_to_and_what_is_lost() {
    let site = Site::new(
        "policy: policy.yaml\nupstreams:\n  here: {url: \"http://127.0.0.1:9\", messages: responses, \
         models: [{match: 'claude-*', model: gpt-5.5}]}\n",
    );
    let body = r#"{"model":"claude-x","top_k":3,"messages":[{"role":"user","content":"hi"}]}"#;
    let arguments = ["--path", "/v1/messages?beta=true", "--body", "-"];
    let told = stdout(&site.explain("sk-fast-1", &arguments, body));
    for part in [
        "messages>responses, model `gpt-5.5`; dropped: top_k",
        "http://127.0.0.1:9/v1/responses",
        r#"{"service_tier":"priority","model":"gpt-5.5","input":[{"type":"message","role":"user","#,
    ] {
        assert!(told.contains(part), "{part}\n{told}");
    }
    let json = site.explain_json("sk-fast-1", &arguments, body);
    assert_eq!(json["bridge"], "messages>responses");
    assert_eq!(json["bridge_dropped"], "top_k");
    assert_eq!(json["service_tier"], "priority");
    let unmapped = site.explain_json("sk-fast-1", &arguments, &body.replace("claude", "other"));
    assert_eq!(unmapped["denied"], "model_not_mapped");
}

#[test]
fn what_can_find_nothing_is_refused_before_it_looks() {
    let site = Site::plain();
    site.write("own.log", "");
    let log = site.path("own.log");
    let log = log.to_str().unwrap();
    let config = site.config();
    for (arguments, code, told) in [
        (
            &[
                "report",
                log,
                "--since",
                "2026-11-02",
                "--until",
                "2026-11-01",
            ][..],
            2,
            "--since is not before --until",
        ),
        (
            &["report", log, "--where", "group==fast"],
            2,
            "with one `=`",
        ),
        (&["hash-key"], 2, "stdin holds no key"),
        (
            &["reload", "--config", &config, "--pid", "999999999"],
            1,
            "there is no process 999999999",
        ),
    ] {
        let done = tiergate(arguments, "");
        assert_eq!(done.status.code(), Some(code), "{}", stderr(&done));
        assert!(stderr(&done).contains(told), "{}", stderr(&done));
    }
}

#[test]
fn the_line_of_a_new_key_can_be_appended_to_every_policy_that_is_shipped() {
    let site = Site::plain();
    let made = site.path("made");
    let done = tiergate(&["init", made.to_str().unwrap()], "");
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (config, _) = Config::load(&root.join("conf/tiergate.yaml")).unwrap();
    for policy in [
        root.join("conf/policy.yaml"),
        root.join("systemd/debian/policy.yaml"),
        made.join("policy.yaml"),
    ] {
        let done = tiergate(&["new-key", "--name", "zoe", "--group", "codex-fast"], "");
        let text = fs::read_to_string(&policy).unwrap();
        let keys = |text: &str| {
            let (policy, _) = Policy::parse(&policy, text.as_bytes(), &config).unwrap();
            policy.key_count()
        };
        assert_eq!(keys(&(text.clone() + &stderr(&done))), keys(&text) + 1);
    }
}

#[test]
fn an_error_of_usage_shows_the_usage_of_its_command() {
    let site = Site::plain();
    let config = site.config();
    for (arguments, usage, told) in [
        (
            &[
                "explain",
                "--config",
                &config,
                "--key",
                "sk-fast-1",
                "--path",
                "v1/responses",
            ][..],
            "Usage: tiergate explain",
            "a path begins with `/`: `/v1/responses`",
        ),
        (
            &["report", "own.log", "--time-zone", "Nowhere"],
            "Usage: tiergate report",
            "unknown time zone `Nowhere`",
        ),
        (
            &["hash-key"],
            "Usage: tiergate hash-key",
            "stdin holds no key",
        ),
    ] {
        let done = tiergate(arguments, "");
        assert_eq!(done.status.code(), Some(2), "{}", stderr(&done));
        for part in [usage, told] {
            assert!(stderr(&done).contains(part), "{}", stderr(&done));
        }
    }
}
