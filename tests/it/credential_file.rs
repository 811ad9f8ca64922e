//! What an upstream's `credential_file` may hold, as `check`, a start and a running proxy take it.

use std::fs;
use std::process::Output;

use tempfile::TempDir;

use crate::support::command::run;
use crate::support::eventually;
use crate::support::proxy;
use crate::support::upstream::{self, reply};

/// Contents that hold no key, or something beside it.
const NO_KEYS: [&str; 11] = [
    "",
    "\n",
    "Bearer sk-own-1\n",
    "OPENAI_API_KEY=sk-own-1\n",
    "\"sk-own-1\"\n",
    "\u{feff}sk-own-1\n",
    "sk-own-1\nsk-own-2\n",
    "sk own-1\n",
    "${OPENAI_API_KEY}\n",
    "{\"key\":\"sk-own-1\"}",
    "sha256:00sk-own-1",
];

fn tiergate(folder: &TempDir, command: &str) -> Output {
    run(folder, &[command, "--config", "tiergate.yaml"])
}

#[test]
fn check_and_a_start_refuse_a_file_that_holds_no_key() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("policy.yaml", "version: 1\ngroups: {}\nkeys: {}\n");
    write(
        "tiergate.yaml",
        "policy: policy.yaml\nlisten: 127.0.0.1:1\naccess_log: {path: \"-\"}\n\
         upstreams:\n  a: {url: https://api.example, credential_file: own.key}\n",
    );
    for content in NO_KEYS {
        write("own.key", content);
        let checked = tiergate(&folder, "check");
        let told = String::from_utf8(checked.stdout).unwrap();
        assert_eq!(checked.status.code(), Some(78), "{content}: {told}");
        assert!(
            told.contains("own.key") && !told.contains("own-1"),
            "{told}"
        );
        let started = tiergate(&folder, "run");
        let told = String::from_utf8(started.stderr).unwrap();
        assert_ne!(started.status.code(), Some(0), "{content}");
        assert!(
            told.contains("own.key") && !told.contains("own-1"),
            "{told}"
        );
    }
    for content in [
        "sk-own-1",
        "  sk-own-1  \r\n\r\n",
        "0123456789abcdef0123456789abcdef\n",
    ] {
        write("own.key", content);
        let checked = tiergate(&folder, "check");
        assert_eq!(checked.status.code(), Some(0), "{content}: {checked:?}");
    }
}

#[test]
fn a_running_proxy_keeps_the_last_good_key_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("own.key");
    fs::write(&file, "sk-own-0\n").unwrap();
    // Messages that differ, as equal ones are told once.
    let contents = [
        "",
        "Bearer sk-own-1\n",
        "sk-own-1\nsk-own-2\n",
        "\u{feff}sk-own-1",
    ];
    let answers = contents.iter().map(|_| reply(200).json("{}"));
    let upstream = upstream::script(answers).run_plain();
    let settings = format!("credential_file: \"{}\"", file.display());
    let proxy = proxy::new()
        .upstream_with("main", &upstream, &settings)
        .run();
    for (number, content) in contents.iter().enumerate() {
        fs::write(&file, content).unwrap();
        let told = || proxy.stderr().matches("the last good key stays").count();
        eventually("the refused key", || (told() > number).then_some(()));
        let answer = proxy.client("sk-fast").post("/v1/responses", "{}");
        assert_eq!(answer.status, 200);
    }
    for sent in upstream.requests(4) {
        assert_eq!(sent.header("authorization"), ["Bearer sk-own-0"]);
    }
    let ready = proxy.admin("/readyz");
    assert_eq!(ready.status, 200);
    let told = "ok, with the last good key of upstream `main`:\n";
    assert!(ready.text().contains(told), "{ready:?}");
    let problems = proxy.status()["problems"].to_string();
    assert!(problems.contains("key of upstream `main`: "), "{problems}");
    assert_eq!(proxy.metric("tiergate_files_not_loaded"), 1.0);
    fs::write(&file, "sk-own-2\n").unwrap();
    eventually("/readyz", || {
        (proxy.admin("/readyz").text() == "ok\n").then_some(())
    });
    assert!(!proxy.stderr().contains("own-1"), "{}", proxy.stderr());
}

#[test]
fn a_key_that_clients_and_the_upstream_have_in_common_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let free = upstream::nobody();
    write(
        "tiergate.yaml",
        &format!(
            "listen: {free}\npolicy: policy.yaml\naccess_log: {{path: \"-\"}}\n\
             upstreams: {{u: {{url: \"https://h\", credential_file: own.key}}}}\n"
        ),
    );
    write("own.key", "sk-own-1\n");
    let said = |keys: &str| {
        let policy = format!("version: 1\ngroups: {{g: {{platform: openai}}}}\nkeys: {keys}\n");
        write("policy.yaml", &policy);
        let checked = tiergate(&folder, "check");
        String::from_utf8(checked.stdout).unwrap()
    };
    let told = "tiergate.yaml:4:52: warning: the key of this upstream is listed in the policy too";
    assert!(
        said("{sk-own-1: g}").contains(told),
        "{}",
        said("{sk-own-1: g}")
    );
    assert!(!said("{sk-own-2: g}").contains("listed in the policy"));
}
