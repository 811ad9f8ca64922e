//! What is said about bad files: each `tests/golden/NAME.yaml` gives exactly the lines of `NAME.txt`.
//! `UPDATE_GOLDEN=1 cargo test --test it config_errors` writes the lines anew.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tiergate::config::{Config, Diagnostic};
use tiergate::policy::Policy;

use crate::support::command::{run, stdout};
use crate::support::{proxy, upstream};

#[test]
fn every_mistake_is_told_with_its_place_and_no_key() {
    let mut different = Vec::new();
    for file in golden_files() {
        let told = mistakes_of(&file);
        assert!(
            !told.contains("SECR") && !told.contains("SHAPE"),
            "a key is printed: {told}"
        );
        let expected = file.with_extension("txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&expected, &told).unwrap();
        } else if fs::read_to_string(&expected).unwrap_or_default() != told {
            different.push(told);
        }
    }
    assert!(
        different.is_empty(),
        "not as expected:\n{}",
        different.join("\n")
    );
}

#[test]
fn the_sample_files_load_without_a_warning() {
    let (config, policy, warnings) =
        Policy::load_with_config(Path::new("conf/tiergate.yaml")).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(
        (
            config.upstreams.len(),
            policy.groups().len(),
            policy.key_count()
        ),
        (1, 3, 2)
    );
}

#[test]
fn the_sample_configuration_shows_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiergate.yaml");
    fs::write(
        &path,
        "policy: policy.yaml\nupstreams: {openai: {url: https://api.openai.com}}\n",
    )
    .unwrap();
    let (least, _) = Config::load(&path).unwrap();
    let (sample, _) = Config::load(Path::new("conf/tiergate.yaml")).unwrap();
    assert_eq!(sample.listen, least.listen);
    assert_eq!(sample.admin, least.admin);
    assert_eq!(sample.access_log, least.access_log);
    assert_eq!(sample.tier_paths, least.tier_paths);
    assert_eq!(sample.limits, least.limits);
    assert_eq!(sample.server, least.server);
    assert_eq!(sample.state, least.state);
    assert_eq!(sample.health_path, least.health_path);
    assert_eq!(sample.cors, least.cors);
    assert_eq!(sample.traces, least.traces);
    let least = tiergate::config::Upstream {
        location: sample.upstreams[0].location,
        ..(*least.upstreams[0]).clone()
    };
    assert_eq!(*sample.upstreams[0], least);
}

#[test]
fn a_missing_file_is_told_under_the_path_that_was_given() {
    let mistakes = Config::load(Path::new("nowhere/tiergate.yaml")).unwrap_err();
    assert!(
        mistakes[0]
            .to_string()
            .starts_with("nowhere/tiergate.yaml:1:1: cannot read: "),
        "{}",
        mistakes[0]
    );
}

#[test]
fn mistakes_of_both_files_come_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiergate.yaml");
    fs::write(
        &path,
        "policy: policy.yaml\nupstreams: {openai: {url: ftp://x}}\n",
    )
    .unwrap();
    fs::write(
        folder.path().join("policy.yaml"),
        "version: 1\ngroups: {a: {platform: b, upstream: openai}}\n",
    )
    .unwrap();
    let mistakes = Policy::load_with_config(&path).unwrap_err();
    let files: Vec<_> = mistakes
        .iter()
        .map(|mistake| mistake.path.file_name().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(files, ["tiergate.yaml", "policy.yaml"]);
}

/// The mistakes or, after the word, the warnings of a file, one a line. Policies are read with `upstreams.yaml`.
fn mistakes_of(file: &Path) -> String {
    let is_policy = file
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .starts_with("policy_");
    let outcome = if is_policy {
        let (config, _) = Config::load(Path::new("tests/golden/upstreams.yaml")).unwrap();
        Policy::load(file, &config).map(|(_, warnings)| warnings)
    } else {
        Config::load(file).map(|(_, warnings)| warnings)
    };
    match outcome {
        Ok(warnings) => format!("warnings:\n{}", lines(&warnings)),
        Err(mistakes) => lines(&mistakes),
    }
}

fn lines(mistakes: &[Diagnostic]) -> String {
    mistakes
        .iter()
        .map(|mistake| format!("{mistake}\n"))
        .collect()
}

fn golden_files() -> Vec<PathBuf> {
    let all = fs::read_dir("tests/golden")
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = all
        .filter(|path| {
            path.extension().is_some_and(|ext| ext == "yaml") && !path.ends_with("upstreams.yaml")
        })
        .collect();
    files.sort();
    files
}

/// What the samples say, read by another parser through serde.
#[test]
fn the_samples_are_read_the_same_by_another_reader() {
    #[derive(serde::Deserialize)]
    struct Sample {
        groups: std::collections::BTreeMap<String, serde::de::IgnoredAny>,
        keys: std::collections::BTreeMap<String, serde::de::IgnoredAny>,
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
    let text = fs::read_to_string(root.join("policy.yaml")).unwrap();
    let sample: Sample = serde_yaml::from_str(&text).unwrap();
    let (config, _) = Config::load(&root.join("tiergate.yaml")).unwrap();
    let (policy, _) = Policy::load(&root.join("policy.yaml"), &config).unwrap();
    let groups: Vec<&str> = policy.groups().iter().map(|group| &*group.name).collect();
    let expected: Vec<&String> = sample.groups.keys().collect();
    let mut sorted = groups.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, expected);
    assert_eq!(policy.key_count(), sample.keys.len());
}

fn check(folder: &Path, more: &[&str]) -> (Option<i32>, String) {
    let fixed = ["check", "--config", "tiergate.yaml"];
    let done = run(folder, &[&fixed, more].concat());
    (done.status.code(), stdout(&done))
}

/// A folder with these two files.
fn site(config: &str, policy: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tiergate.yaml"), config).unwrap();
    fs::write(folder.path().join("policy.yaml"), policy).unwrap();
    folder
}

const POLICY: &str = "version: 1\ngroups: {a: {platform: openai}}\nkeys: {sk-1: a}\n";

/// A configuration whose addresses nobody uses.
fn config(upstream: &str, log: &str) -> String {
    let free = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (listen, admin) = (free(), free());
    format!(
        "listen: {}\nadmin: {}\npolicy: policy.yaml\naccess_log: {{path: {log}}}\nupstreams:\n  u: {upstream}\n",
        listen.local_addr().unwrap(),
        admin.local_addr().unwrap()
    )
}

#[test]
fn warnings_are_marked_and_make_a_strict_check_fail() {
    let calm = site(
        &config("{url: https://h, credential_file: null}", "\"-\""),
        POLICY,
    );
    assert_eq!(check(calm.path(), &["--strict"]), (Some(0), String::new()));
    let warned = site(
        &config("{url: https://h/v1, credential_file: null}", "\"-\""),
        POLICY,
    );
    let (code, told) = check(warned.path(), &[]);
    assert_eq!(code, Some(0));
    assert!(
        told.starts_with("tiergate.yaml:6:12: warning: the URL ends in `/v1`"),
        "{told}"
    );
    assert!(told.contains("`/v1/v1/responses`"), "{told}");
    assert_eq!(check(warned.path(), &["--strict"]), (Some(78), told));
}

#[test]
fn a_log_that_cannot_be_written_fails_the_check() {
    let upstream = "{url: https://h, credential_file: null}";
    let nowhere = site(&config(upstream, "nowhere/access.log"), POLICY);
    let (code, told) = check(nowhere.path(), &[]);
    assert_eq!(code, Some(78));
    assert!(
        told.starts_with(
            "tiergate.yaml:4:13: the access log cannot be written: nowhere/access.log: "
        ),
        "{told}"
    );
    let folder = site(&config(upstream, "."), POLICY);
    assert_eq!(check(folder.path(), &[]).0, Some(78));
    // What can be made is not made by the check.
    let free = site(&config(upstream, "access.log"), POLICY);
    assert_eq!(check(free.path(), &[]), (Some(0), String::new()));
    assert_eq!(fs::read_dir(free.path()).unwrap().count(), 2);
}

#[test]
fn an_address_that_another_program_uses_fails_the_check() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let text = config("{url: https://h, credential_file: null}", "\"-\"");
    let (_, rest) = text.split_once('\n').unwrap();
    let site = site(&format!("listen: {address}\n{rest}"), POLICY);
    let (code, told) = check(site.path(), &[]);
    assert_eq!(code, Some(78));
    assert!(
        told.contains(&format!("cannot listen on {address}: ")),
        "{told}"
    );
}

#[test]
fn an_address_that_a_running_proxy_uses_passes_the_check() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let folder = proxy.path("tiergate.yaml");
    let (code, told) = check(folder.parent().unwrap(), &[]);
    assert_eq!(code, Some(0), "{told}");
}

#[test]
fn a_state_file_that_a_start_could_not_use_is_a_mistake_and_stays_as_it_is() {
    let text = config("{url: https://h, credential_file: null}", "\"-\"");
    let site = site(&format!("{text}state: state.redb\n"), POLICY);
    let state = site.path().join("state.redb");
    let code = || check(site.path(), &[]);
    assert_eq!(code().0, Some(0));
    assert!(!state.exists(), "check makes no file");
    for content in ["not a database\n".to_owned(), "x".repeat(100_000)] {
        fs::write(&state, &content).unwrap();
        let (code, told) = code();
        assert_eq!(code, Some(78), "{told}");
        let place = "tiergate.yaml:";
        let message = "state.redb: the state file cannot be used: ";
        assert!(told.contains(place) && told.contains(message), "{told}");
        assert_eq!(fs::read_to_string(&state).unwrap(), content);
    }
}

#[test]
fn a_file_that_is_written_to_is_not_one_that_is_read() {
    for (settings, told) in [
        (
            "access_log: {path: policy.yaml}",
            "`access_log` and `policy` are the same file",
        ),
        (
            "access_log: {path: ./tiergate.yaml}",
            "`access_log` and the configuration are the same file",
        ),
        (
            "access_log: {path: link}",
            "`access_log` and `policy` are the same file",
        ),
        (
            "access_log: {path: prices.yaml}\nprices: prices.yaml",
            "`access_log` and `prices` are the same file",
        ),
        (
            "access_log: {path: own.key}",
            "`access_log` and `credential_file` are the same file",
        ),
        (
            "access_log: {path: log}\nstate: ./log",
            "`state` and `access_log` are the same file",
        ),
        (
            "access_log: {path: log}\nstate: policy.yaml",
            "`state` and `policy` are the same file",
        ),
        (
            "access_log: {path: \"unix:/run/own.sock\"}\nlisten: unix:/run/own.sock",
            "`access_log` and the socket of a listener are the same file",
        ),
        (
            "access_log: {path: /run/own.sock}\nadmin: unix:/run/own.sock",
            "`access_log` and the socket of a listener are the same file",
        ),
        (
            "server: {upgrade_socket: /run/own.sock}\nlisten: unix:/run/own.sock",
            "`upgrade_socket` and the socket of a listener are the same file",
        ),
    ] {
        let text = format!(
            "policy: policy.yaml\nupstreams: {{a: {{url: https://h, credential_file: own.key}}}}\n{settings}\n"
        );
        let site = site(&text, POLICY);
        fs::write(site.path().join("own.key"), "sk-1").unwrap();
        fs::write(site.path().join("prices.yaml"), "version: 1\nprices: []\n").unwrap();
        std::os::unix::fs::symlink("policy.yaml", site.path().join("link")).unwrap();
        let (code, said) = check(site.path(), &[]);
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains(told), "{said}");
        let policy = fs::read_to_string(site.path().join("policy.yaml")).unwrap();
        assert_eq!(policy, POLICY);
    }
}

#[test]
fn the_path_of_health_is_none_that_an_upstream_serves() {
    for (path, is_free) in [
        ("/healthz", true),
        ("/up", true),
        ("/v1/responses", false),
        ("/V1/Models", false),
        ("/chat/completions", false),
        ("/v1/messages", false),
        ("/openai/batches", false),
        ("/v1/agents", false),
    ] {
        let text = config("{url: https://h, credential_file: null}", "\"-\"");
        let site = site(&format!("{text}health_path: {path}\n"), POLICY);
        let (code, told) = check(site.path(), &[]);
        assert_eq!(code == Some(0), is_free, "{path}: {told}");
        let message = "requests to this path are for an upstream";
        assert_eq!(told.contains(message), !is_free, "{told}");
    }
}

#[test]
fn the_header_of_a_key_can_be_neither_set_nor_removed() {
    for name in ["authorization", "X-Api-Key", "api-key"] {
        for edit in [
            format!("set: {{{name}: x}}"),
            format!("remove: [x-a, {name}]"),
        ] {
            let upstream =
                format!("{{url: https://h, credential_file: null, headers: {{{edit}}}}}");
            let site = site(&config(&upstream, "\"-\""), POLICY);
            let (code, told) = check(site.path(), &[]);
            assert_eq!(code, Some(78), "{edit}: {told}");
        }
    }
}

#[test]
fn models_of_a_log_that_have_no_price_are_warned_of() {
    let upstream = "{url: https://h, credential_file: null}";
    let text = config(upstream, "\"-\"");
    let site = site(&format!("{text}prices: prices.yaml\n"), POLICY);
    let write = |name: &str, text: &str| fs::write(site.path().join(name), text).unwrap();
    write(
        "prices.yaml",
        "version: 1\nprices: [{models: [m], tiers: {default: {input: 1, output: 1}, fast: {input: 2}}}]\n",
    );
    let line = |seq: u64, model: &str, tier: &str, tokens: &str| {
        format!(
            r#"{{"event_id":"e{seq}#0","seq":{seq},"instance":"i","time":"2026-11-01T00:00:00Z","turn":0,"transport":"http","model":"{model}","service_tier_billed":{tier},"input_tokens":{tokens},"output_tokens":{tokens}}}"#
        )
    };
    let lines = [
        line(0, "m", "\"default\"", "5"),
        line(1, "m", "\"priority\"", "5"),
        line(2, "m", "\"priority\"", "5"),
        line(3, "new", "null", "5"),
        line(4, "other", "null", "null"),
    ];
    write("log", &lines.join("\n"));
    let (code, told) = check(site.path(), &["--log", "log"]);
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(
        told,
        "prices.yaml:1:1: warning: no price for model `m` on tier `priority`; requests of the log: 2\n\
         prices.yaml:1:1: warning: no price for model `new` on tier `default`; requests of the log: 1\n"
    );
    let strict = check(site.path(), &["--log", "log", "--strict"]);
    assert_eq!(strict.0, Some(78));
    assert_eq!(check(site.path(), &[]), (Some(0), String::new()));
    assert_eq!(check(site.path(), &["--log", "nowhere"]).0, Some(1));
    write("log", "no line\n");
    assert_eq!(check(site.path(), &["--log", "log"]).0, Some(1));
    write("tiergate.yaml", &text);
    write("log", &lines[0]);
    let (_, told) = check(site.path(), &["--log", "log"]);
    let message = "warning: without `prices` nothing of the log has a price";
    assert!(told.contains(message), "{told}");
}

/// More than the budgets of a YAML reader are made for.
#[test]
fn a_policy_of_eighty_thousand_keys_loads() {
    let mut text =
        String::from("version: 1\ngroups: {a: {platform: openai, upstream: u}}\nkeys:\n");
    let many = 80_000;
    for index in 0..many {
        text += &format!("  sk-{index:07}: {{group: a, name: n{index}}}\n");
    }
    let folder = site(
        "policy: policy.yaml\nupstreams: {u: {url: http://u}}\n",
        &text,
    );
    let (_, policy, _) = Policy::load_with_config(&folder.path().join("tiergate.yaml")).unwrap();
    assert_eq!(policy.key_count(), many);
}

#[test]
fn an_upgrade_socket_takes_the_place_of_no_other_file() {
    let text = config("{url: https://h, credential_file: null}", "access.log");
    for (name, told) in [
        ("precious.txt", "there is a file, and it is no socket"),
        ("policy.yaml", "there is a file, and it is no socket"),
        ("tiergate.yaml", "there is a file, and it is no socket"),
        (".", "there is a file, and it is no socket"),
        ("nowhere/upgrade.sock", "No such file or directory"),
        (&"a".repeat(108), "path must be shorter than SUN_LEN"),
    ] {
        let site = site(
            &format!("{text}server: {{upgrade_socket: {name}}}\n"),
            POLICY,
        );
        fs::write(site.path().join("precious.txt"), "precious").unwrap();
        for command in ["check", "run"] {
            let done = run(site.path(), &[command, "--config", "tiergate.yaml"]);
            let said = String::from_utf8([done.stdout, done.stderr].concat()).unwrap();
            assert_eq!(done.status.code(), Some(78), "{said}");
            assert!(
                said.contains("tiergate.yaml:7:26: `upgrade_socket` "),
                "{said}"
            );
            assert!(said.contains(told), "{said}");
        }
        for (file, content) in [("precious.txt", "precious"), ("policy.yaml", POLICY)] {
            let found = fs::read_to_string(site.path().join(file)).unwrap();
            assert_eq!(found, content);
        }
    }
}

/// The configuration in which these two settings are otherwise.
fn with_addresses(text: &str, listen: &str, admin: &str) -> String {
    let rest: Vec<&str> = text.lines().skip(2).collect();
    format!("listen: {listen}\nadmin: {admin}\n{}\n", rest.join("\n"))
}

#[test]
fn what_would_keep_a_start_from_opening_its_files_fails_the_check() {
    let config = |log: &str| config("{url: https://h, credential_file: null}", log);
    let dangling = "expected the path of a file; this one is that of a folder";
    for (text, told) in [
        (config("logs/"), dangling),
        (config("dangling"), "No such file"),
        (
            config("\"-\"") + "state: /dev/null\n",
            "/dev/null: not a regular file",
        ),
        (config("\"-\"") + "state: dangling\n", "No such file"),
    ] {
        let site = site(&text, POLICY);
        std::os::unix::fs::symlink("nowhere/file", site.path().join("dangling")).unwrap();
        let (code, said) = check(site.path(), &[]);
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains(told), "{said}");
    }
}

#[test]
fn addresses_that_get_in_each_others_way_fail_the_check() {
    let text = config("{url: https://h, credential_file: null}", "\"-\"");
    let (_, admin) = text.split_once("admin: ").unwrap();
    let admin = admin.lines().next().unwrap();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    for (listen, admin) in [
        (format!("['127.0.0.1:{port}', '0.0.0.0:{port}']"), admin),
        (format!("['[::]:{port}', '[::1]:{port}']"), admin),
        (format!("0.0.0.0:{port}"), &*format!("127.0.0.1:{port}")),
    ] {
        let site = site(&with_addresses(&text, &listen, admin), POLICY);
        let (code, said) = check(site.path(), &[]);
        assert_eq!(code, Some(78), "{listen}: {said}");
        assert!(said.contains("listen"), "{said}");
        assert!(!said.contains("yaml:1:1:"), "{said}");
    }
}

#[test]
fn an_admin_address_of_another_proxy_fails_the_check_and_is_not_asked() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let text = config("{url: https://h, credential_file: null}", "\"-\"");
    let listen = text
        .lines()
        .next()
        .unwrap()
        .strip_prefix("listen: ")
        .unwrap();
    let text = with_addresses(&text, listen, &proxy.admin.to_string());
    let site = site(&text, POLICY);
    let (code, said) = check(site.path(), &[]);
    assert_eq!(code, Some(78), "{said}");
    let told = format!("tiergate.yaml:2:8: cannot listen on {}: ", proxy.admin);
    assert!(said.starts_with(&told), "{said}");
    for command in ["reload", "health", "budget"] {
        let done = run(site.path(), &[command, "--config", "tiergate.yaml"]);
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(1), "{said}");
        let told = format!(
            "the process at {} runs with another configuration, ",
            proxy.admin
        );
        assert!(said.contains(&told), "{said}");
    }
    assert_eq!(proxy.status()["reload"]["count"], 0);
}

#[test]
fn what_only_this_user_may_not_do_is_warned_of() {
    let text = config("{url: https://h, credential_file: null}", "\"-\"");
    let (_, admin) = text.split_once("admin: ").unwrap();
    let admin = admin.lines().next().unwrap();
    let site = site("", POLICY);
    let folder = site.path().join("closed");
    let socket = format!("unix:{}/http.sock", folder.display());
    fs::write(
        site.path().join("tiergate.yaml"),
        with_addresses(&text, &socket, admin),
    )
    .unwrap();
    fs::create_dir(&folder).unwrap();
    for (path, mode) in [(site.path(), 0o755), (folder.as_path(), 0o555)] {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    let program = env!("CARGO_BIN_EXE_tiergate");
    let nobody = ["--reuid=65534", "--clear-groups", program];
    // Root may write everywhere.
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(nobody);
        command
    } else {
        Command::new(program)
    };
    let done = command
        .args(["check", "--config", "tiergate.yaml"])
        .current_dir(site.path())
        .output()
        .unwrap();
    let said = String::from_utf8(done.stdout).unwrap();
    assert_eq!(done.status.code(), Some(0), "{said}");
    let told = format!("tiergate.yaml:1:9: warning: cannot listen on {socket}: ");
    assert!(said.starts_with(&told), "{said}");
}

#[test]
fn a_budget_without_a_price_of_the_fast_tier_is_warned_of() {
    let text = config("{url: https://h, credential_file: null}", "\"-\"");
    let policy =
        "version: 1\ngroups:\n  a: {platform: openai, budget: {usd: 1, per: day}}\nkeys: {}\n";
    let site = site(
        &format!("{text}prices: prices.yaml\nstate: s.redb\n"),
        policy,
    );
    let told = |entries: &str| {
        let prices = format!("version: 1\nprices: [{entries}]\n");
        fs::write(site.path().join("prices.yaml"), prices).unwrap();
        let (code, said) = check(site.path(), &[]);
        assert_eq!(code, Some(0), "{said}");
        said
    };
    let never = "policy.yaml:3:3: warning: no model has a price of tier `priority` today: the budget of this group is never used up\n";
    assert!(told("").ends_with(never));
    assert_eq!(told("{models: [m], tiers: {default: {input: 1}}}"), never);
    let later = "{models: [m], effective_from: 2999-01-01, tiers: {fast: {input: 1}}}";
    assert_eq!(told(later), never);
    assert_eq!(told("{models: [m], tiers: {fast: {input: 1}}}"), "");
    assert_eq!(told("{models: [m], tiers: {priority: {input: 1}}}"), "");
}
