//! Keys in files, also where they do not belong, and on the command line.

use std::fs;
use std::path::Path;
use std::process::Output;

use tiergate::policy::{Policy, hash_key};

use super::canary::{Planted, talkative};
use crate::support::command::{command, run_with_stdin};
use crate::support::eventually;
use crate::support::proxy;
use crate::support::upstream::{self, reply};

const GROUPS: &str = "version: 1\ngroups: {fast: {platform: openai, force_fast_mode: true}}\n";
const CONFIG: &str = "policy: policy.yaml\nupstreams: {u: {url: \"http://127.0.0.1:1\"}}\n";

/// Policies with a mistake in which `KEY` is a key.
const POLICIES: [&str; 34] = [
    "keys: {KEY: {grop: fast}}",
    "keys: {KEY: {group: fats}}",
    "keys: {KEY: nobody}",
    "keys: {KEY: [fast]}",
    "keys: {KEY: }",
    "keys: {KEY: {group: fast, enabled: maybe}}",
    "keys: {KEY: {group: fast, name: KEY}}",
    "keys: {KEY: {group: fast, name: \"KEY\\n\"}}",
    "keys: {KEY: {group: fast, KEY: KEY}}",
    "keys: {KEY: fast, KEY: fast}",
    "keys: {KEY: fast, DIGEST: fast}",
    "keys: {\"KEY \": fast}",
    "keys: {\"sha256:KEY\": fast}",
    "keys: {sha256:KEY: fast}",
    "keys: {alice: KEY}",
    "keys: {alice: {group: KEY}}",
    "keys: {alice: {group: fast, enabled: KEY}}",
    "keys: [KEY]",
    "keys: KEY",
    "keys: {KEY}",
    "KEY: fast",
    "KEY",
    "- KEY",
    "default_group: KEY",
    "keys: {\"KEY: fast}",
    "keys:\n\tKEY: fast",
    "keys:\n  KEY: fast\n KEY: fast",
    "keys: {&KEY a: fast}",
    "keys: {*KEY : fast}",
    "keys: {!KEY a: fast}",
    "keys: {@KEY: fast}",
    "keys: {\"KEY\\q\": fast}",
    "%KEY x\n---\n",
    "keys: {? {KEY: fast} : fast}",
];

const CONFIGS: [&str; 16] = [
    "url: \"http://h\", credential_file: KEY",
    "url: \"https://h\", tls: {ca: KEY, cert: cert.pem, key: KEY}",
    "url: \"http://user:KEY@h\"",
    "url: \"http://KEY@h\"",
    "url: \"http://h/?key=KEY\"",
    "url: \"http://h/#KEY\"",
    "url: \"KEY\"",
    "url: \"KEY://h\"",
    "url: \"http://h\", credential: KEY",
    "url: \"http://h\", credential_file: [KEY]",
    "url: \"http://h\", api_key: KEY",
    "url: \"http://h\", kind: KEY",
    "url: \"http://h\", connect_timeout: KEY",
    "url: \"http://h\", KEY: 1",
    "url: \"http://h\", served_tier: {KEY: KEY}",
    "url: \"http://h\", messages: [KEY, KEY]",
];

fn tiergate(folder: &Path, arguments: &[&str], stdin: &[u8]) -> Output {
    let mut command = command(folder, arguments);
    command
        .env("RUST_LOG", "trace")
        .env("RUST_BACKTRACE", "full");
    run_with_stdin(command, stdin)
}

fn assert_not_in_output(planted: &Planted, done: &Output, what: &str) {
    planted.assert_not_in(&done.stdout, what);
    planted.assert_not_in(&done.stderr, what);
}

fn filled(text: &str, key: &str) -> String {
    text.replace("KEY", key)
        .replace("DIGEST", &format!("\"{}\"", hash_key(key.as_bytes())))
}

#[test]
fn a_key_in_a_policy_with_a_mistake_is_not_quoted() {
    let mut planted = Planted::default();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("tiergate.yaml"), CONFIG).unwrap();
    fs::write(
        path("good.yaml"),
        GROUPS.to_owned() + "keys: {other: fast}\n",
    )
    .unwrap();
    for wrong in POLICIES {
        let key = planted.key(wrong);
        let start = if wrong.starts_with('%') { "" } else { GROUPS };
        fs::write(path("policy.yaml"), start.to_owned() + &filled(wrong, &key)).unwrap();
        let arguments: [&[&str]; 4] = [
            &["check", "--config", "tiergate.yaml"],
            &["run", "--config", "tiergate.yaml"],
            &["explain", "--config", "tiergate.yaml", "--key", &key],
            &[
                "diff",
                "good.yaml",
                "policy.yaml",
                "--config",
                "tiergate.yaml",
            ],
        ];
        for arguments in arguments {
            let done = tiergate(folder.path(), arguments, b"");
            assert_eq!(
                done.status.code(),
                Some(78),
                "{wrong}: {arguments:?}: {done:?}"
            );
            assert_not_in_output(&planted, &done, arguments[0]);
        }
    }
}

#[test]
fn a_key_in_a_configuration_with_a_mistake_is_not_quoted() {
    let mut planted = Planted::default();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("policy.yaml"), GROUPS).unwrap();
    for wrong in CONFIGS {
        let upstream = filled(wrong, &planted.key(wrong));
        let config = format!("policy: policy.yaml\nupstreams: {{u: {{{upstream}}}}}\n");
        let (password, headers) = (planted.key("password"), planted.key("headers"));
        let more = format!(
            "state: {{url: redis://h, password_file: \"{password}\"}}\n\
             traces: {{endpoint: \"http://h\", headers_file: \"{headers}\"}}\n"
        );
        let config = config + &more;
        fs::write(folder.path().join("tiergate.yaml"), config).unwrap();
        for command in ["check", "run"] {
            let done = tiergate(folder.path(), &[command, "--config", "tiergate.yaml"], b"");
            assert_eq!(done.status.code(), Some(78), "{wrong}: {done:?}");
            assert_not_in_output(&planted, &done, wrong);
        }
    }
}

#[test]
fn a_key_that_a_reload_brings_is_not_told_whether_it_is_taken_or_not() {
    let mut planted = Planted::default();
    let upstream = upstream::json("{}").run_plain();
    let proxy = talkative(proxy::new()).upstream(&upstream).run();
    let failures = || proxy.metric_of("tiergate_policy_reloads_total", "failure");
    for (number, wrong) in POLICIES[..12].iter().enumerate() {
        let text = GROUPS.to_owned() + &filled(wrong, &planted.key(wrong));
        fs::write(proxy.path("policy.yaml"), text).unwrap();
        eventually("a refused reload", || {
            (failures() > number as f64).then_some(())
        });
        planted.assert_not_told_by(&proxy);
    }
    let key = planted.key("taken");
    fs::write(
        proxy.path("policy.yaml"),
        format!("{GROUPS}keys: {{{key}: fast}}\n"),
    )
    .unwrap();
    let client = proxy.anonymous().header("x-api-key", &key);
    eventually("the new key", || {
        (client.post("/v1/responses", "{}").status == 200).then_some(())
    });
    planted.assert_not_told_by(&proxy);
}

#[test]
fn the_key_of_an_upstream_is_not_told() {
    let mut planted = Planted::default();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let own = planted.key("credential");
    fs::write(&file, format!("{own}\n")).unwrap();
    let upstream = upstream::script([reply(401).json("{}")]).run_plain();
    let settings = format!("credential_file: \"{}\"", file.display());
    let proxy = talkative(proxy::new())
        .upstream_with("main", &upstream, &settings)
        .run();
    let client = proxy.client("sk-fast");
    assert_eq!(client.post("/v1/responses", "{}").status, 401);
    assert_eq!(
        upstream.request().header("authorization"),
        [format!("Bearer {own}")]
    );
    let bad = [
        format!("{}\u{1}\n", planted.key("control character")),
        format!("\n{}\n", planted.key("second line")),
    ];
    for (number, content) in bad.iter().enumerate() {
        fs::write(&file, content).unwrap();
        let told = || proxy.stderr().matches("credential_file").count();
        eventually("a refused key", || (told() > number).then_some(()));
    }
    planted.assert_not_told_by(&proxy);
}

#[test]
fn commands_do_not_print_the_keys_that_they_are_given() {
    let mut planted = Planted::default();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (listed, unknown) = (planted.key("listed"), planted.key("unknown"));
    let quoted =
        format!(r#"{{"error":{{"message":"Incorrect API key: {listed}","code":"{listed}"}}}}"#);
    let upstream = upstream::script([reply(401).json(&quoted)]).run_plain();
    let config = CONFIG.replace("127.0.0.1:1", &upstream.address.to_string());
    fs::write(path("tiergate.yaml"), config).unwrap();
    fs::write(
        path("policy.yaml"),
        format!("{GROUPS}keys: {{{listed}: fast}}\n"),
    )
    .unwrap();
    fs::write(
        path("other.yaml"),
        format!("{GROUPS}keys: {{{unknown}: fast}}\n"),
    )
    .unwrap();
    let header = format!("x-api-key: {unknown}");
    let config = ["--config", "tiergate.yaml"];
    for key in [&listed, &unknown] {
        for more in [
            &[][..],
            &["--json"],
            &["--header", &header],
            &["--path", "/v1//x", "--json"],
        ] {
            let arguments = [&["explain", "--key", "-"], &config[..], more].concat();
            let done = tiergate(folder.path(), &arguments, key.as_bytes());
            assert_eq!(done.status.code(), Some(0), "{done:?}");
            assert_not_in_output(&planted, &done, "explain");
        }
    }
    let diff = [&["diff", "policy.yaml", "other.yaml"], &config[..]].concat();
    assert_not_in_output(&planted, &tiergate(folder.path(), &diff, b""), "diff");
    assert_not_in_output(
        &planted,
        &tiergate(folder.path(), &["hash-key"], listed.as_bytes()),
        "hash-key",
    );
    let probe = [&["probe", "--key", "-", "--model", "m-1"], &config[..]].concat();
    let done = tiergate(folder.path(), &probe, listed.as_bytes());
    assert!(!upstream.received().is_empty(), "{done:?}");
    assert_not_in_output(&planted, &done, "probe");
}

#[test]
fn no_debug_form_holds_a_key_or_its_digest() {
    let mut planted = Planted::default();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiergate.yaml");
    let key = planted.key("listed");
    fs::write(&path, CONFIG).unwrap();
    fs::write(
        folder.path().join("policy.yaml"),
        format!("{GROUPS}keys: {{{key}: fast}}\n"),
    )
    .unwrap();
    let (config, policy, _) = Policy::load_with_config(&path).unwrap();
    let mut headers = http::HeaderMap::new();
    headers.insert("authorization", format!("Bearer {key}").parse().unwrap());
    let asked = tiergate::policy::Head {
        method: &http::Method::POST,
        path: b"/v1/responses",
        query: b"",
        headers: &headers,
    };
    let decision = policy.decide(&asked).unwrap();
    let shown = format!(
        "{config:?} {decision:?} {:?} {:?}",
        policy.groups(),
        decision.credential
    );
    planted.assert_not_in(shown.as_bytes(), "a debug form");
    // Its name is made of the first eight digits.
    assert!(
        !shown.contains(&hash_key(key.as_bytes())[15..31]),
        "{shown}"
    );
    assert!(
        !shown.contains(&format!("{:?}", decision.credential.key.digest)),
        "{shown}"
    );
}
