//! What an operator does to a running proxy, and what it says to that.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::command::{command, run, stdout};
use crate::support::eventually;
use crate::support::proxy::{self, POLICY, Proxy};
use crate::support::upstream::{self, reply};

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;

fn reload(proxy: &Proxy) -> Output {
    let id = proxy.id().to_string();
    let arguments = ["reload", "--config", "tiergate.yaml", "--pid", &id];
    run(proxy.path("."), &arguments)
}

/// The exit code and what stands on stderr.
fn told(output: &Output) -> (Option<i32>, String) {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    (output.status.code(), text)
}

#[test]
fn a_reload_fails_where_the_policy_cannot_be_taken_and_says_why() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let (code, text) = told(&reload(&proxy));
    assert_eq!((code, text.as_str()), (Some(0), "reloaded\n"));
    fs::write(
        proxy.path("policy.yaml"),
        POLICY.replace("group: plain", "group: plian"),
    )
    .unwrap();
    let (code, text) = told(&reload(&proxy));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("did you mean `plain`?"), "{text}");
    assert_eq!(
        proxy.client("sk-plain").post("/v1/responses", "{}").status,
        200
    );
}

#[test]
fn a_policy_for_an_upstream_that_only_the_changed_configuration_has_fails_the_reload() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let config = fs::read_to_string(proxy.path("tiergate.yaml")).unwrap();
    let second = format!(
        "upstreams:\n  second: {{url: \"http://{}\", credential_file: null}}\n",
        upstream.address
    );
    fs::write(
        proxy.path("tiergate.yaml"),
        config.replace("upstreams:\n", &second),
    )
    .unwrap();
    let policy = POLICY
        .replace("fast: {", "fast: {upstream: second, ")
        .replace("plain: {", "plain: {upstream: main, ")
        .replace("closed: {", "closed: {upstream: main, ");
    fs::write(proxy.path("policy.yaml"), policy).unwrap();
    let (code, text) = told(&reload(&proxy));
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("changes of upstreams take effect at a restart"),
        "{text}"
    );
    assert!(text.contains("policy.yaml:"), "{text}");
    proxy.await_stderr("tiergate.yaml has changed (upstreams): that takes effect at a restart");
}

#[test]
fn a_reload_fails_where_the_new_key_of_an_upstream_is_missing() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream_with("main", &upstream, "credential_file: upstream.key")
        .file("upstream.key", "sk-upstream\n")
        .run();
    fs::remove_file(proxy.path("upstream.key")).unwrap();
    let (code, text) = told(&reload(&proxy));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("credential_file"), "{text}");
}

#[test]
fn a_reload_fails_where_a_file_that_is_read_when_needed_could_not_be_used() {
    let upstream = upstream::json("{}").run();
    let nobody = upstream::nobody();
    let proxy = proxy::new()
        .upstream(&upstream)
        .file("collector.headers", "x-team: a\n")
        .file("redis.key", "secret-1\n")
        .setting(&format!(
            "traces: {{endpoint: \"http://{nobody}\", headers_file: collector.headers}}\n\
             state: {{url: \"redis://{nobody}\", password_file: redis.key}}"
        ))
        .run();
    assert_eq!(told(&reload(&proxy)), (Some(0), "reloaded\n".to_owned()));
    for (file, content, setting) in [
        ("collector.headers", "secret-2\n", "headers_file"),
        ("redis.key", "Bearer secret-2\n", "password_file"),
    ] {
        let good = fs::read(proxy.path(file)).unwrap();
        fs::write(proxy.path(file), content).unwrap();
        let (code, text) = told(&reload(&proxy));
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(&format!("{setting} {file}: ")), "{text}");
        assert!(!text.contains("secret-2"), "{text}");
        let checked = run(proxy.path("."), &["check", "--config", "tiergate.yaml"]);
        assert_eq!(checked.status.code(), Some(78), "{checked:?}");
        fs::write(proxy.path(file), good).unwrap();
        assert_eq!(told(&reload(&proxy)).0, Some(0));
    }
}

#[test]
fn a_hangup_says_what_of_the_configuration_takes_effect_at_a_restart_only() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let config = fs::read_to_string(proxy.path("tiergate.yaml")).unwrap();
    let after = |count: u64| {
        proxy.signal(SIGHUP);
        eventually("the reload", || {
            let reload = proxy.status()["reload"].clone();
            (reload["count"] == count).then_some(reload)
        })
    };
    assert_eq!(after(1)["restart_needed"], serde_json::json!([]));
    assert!(!proxy.stderr().contains("has changed"));
    let changed = format!("{config}limits: {{body: 1MiB}}\nserver: {{drain: 5s}}\n");
    fs::write(proxy.path("tiergate.yaml"), changed).unwrap();
    let told = after(2);
    assert_eq!(
        told["restart_needed"],
        serde_json::json!(["limits", "server"])
    );
    proxy
        .await_stderr("tiergate.yaml has changed (limits, server): that takes effect at a restart");
    fs::write(proxy.path("tiergate.yaml"), "limits: 7\n").unwrap();
    assert!(
        after(3)["failures"][0]
            .as_str()
            .unwrap()
            .contains("tiergate.yaml:1:")
    );
    proxy.await_stderr("a restart would fail");
}

#[test]
fn health_is_that_of_the_running_proxy() {
    let upstream = upstream::json("{}").run();
    let mut proxy = proxy::new().upstream(&upstream).run();
    let health = |proxy: &Proxy| {
        let output = run(proxy.path("."), &["health", "--config", "tiergate.yaml"]);
        (output.status.code(), stdout(&output))
    };
    assert_eq!(health(&proxy), (Some(0), "ok\n".to_owned()));
    // It runs on with what it has read, whatever is written there since.
    let path = proxy.path("tiergate.yaml");
    let written = fs::read_to_string(&path).unwrap();
    let quoted = written.replace("\nadmin:", "\n\"admin\" :");
    assert_ne!(quoted, written);
    for other in [
        format!("{quoted}odd: 1\n"),
        format!("{written}odd: 1\n"),
        format!("{written}odd: [1\n"),
    ] {
        fs::write(&path, other).unwrap();
        assert_eq!(health(&proxy), (Some(0), "ok\n".to_owned()));
    }
    proxy.kill();
    assert_eq!(health(&proxy), (Some(1), String::new()));
}

#[test]
fn a_second_interrupt_ends_a_drain_at_once() {
    let upstream = upstream::script([reply(200).sse_begun(&["data: {}\n\n"]).hold()]).run();
    let mut proxy = proxy::new()
        .upstream(&upstream)
        .setting("server: {drain: 10m}")
        .run();
    let client = proxy.client("sk-plain");
    let mut connection = client.connect();
    connection.send(client.message("/v1/responses", b"{\"stream\":true}"));
    connection.head().unwrap();
    proxy.signal(SIGINT);
    proxy.await_stderr("draining for at most");
    assert!(proxy.ended().is_none());
    let begun = Instant::now();
    proxy.signal(SIGINT);
    assert_eq!(proxy.wait().code(), Some(0));
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    assert!(
        proxy.stderr().contains("1 request cut"),
        "{}",
        proxy.stderr()
    );
    // A request that is cut has its line.
    proxy.access_log(1);
}

#[test]
fn the_start_line_says_what_runs() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .prices("version: 1\nprices: []\n")
        .tls()
        .run();
    let said = proxy.stderr();
    let line = said
        .lines()
        .find(|line| line.contains("serves on"))
        .unwrap();
    for part in [
        format!(
            "serves on {}, {} (TLS); admin {}; ",
            proxy.address, proxy.tls_address, proxy.admin
        ),
        "configuration tiergate.yaml; policy policy.yaml sha256:".to_owned(),
        ", 3 groups, 4 keys; ".to_owned(),
        format!(
            "upstreams main https://localhost:{}; ",
            upstream.address.port()
        ),
        "prices prices.yaml sha256:".to_owned(),
        "; access log access.log".to_owned(),
    ] {
        assert!(line.contains(&part), "{part}\n{line}");
    }
}

#[test]
fn a_restart_waits_for_the_address_of_a_process_that_is_just_ending() {
    let upstream = upstream::json("{}").run();
    let ending = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = ending.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        "listen: {address}\nadmin: 'unix:{}'\npolicy: policy.yaml\naccess_log: {{path: access.log}}\n\
         upstreams: {{main: {{url: 'http://{}', credential_file: null}}}}\n",
        folder.path().join("admin.sock").display(),
        upstream.address,
    );
    fs::write(folder.path().join("tiergate.yaml"), config).unwrap();
    fs::write(folder.path().join("policy.yaml"), POLICY).unwrap();
    let mut program = command(folder.path(), &["run", "--config", "tiergate.yaml"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It has found the address taken by now, or is about to.
    std::thread::sleep(Duration::from_millis(500));
    // What asks for something else than the end does not end it, though it serves nobody yet.
    let id = Pid::from_raw(program.id().cast_signed());
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2] {
        kill(id, signal).unwrap();
    }
    std::thread::sleep(Duration::from_millis(100));
    assert!(program.try_wait().unwrap().is_none());
    drop(ending);
    eventually("the process to listen", || {
        std::net::TcpStream::connect(address).ok()
    });
    program.kill().unwrap();
    program.wait().unwrap();
}

#[test]
fn an_upstream_that_is_down_is_one_line_and_its_ejection_another() {
    let nobody = upstream::nobody();
    let proxy = proxy::new()
        .upstream_with("codex", &nobody, "retries: 0")
        .run();
    for _ in 0..6 {
        assert_eq!(
            proxy.client("sk-plain").post("/v1/responses", "{}").status,
            502
        );
    }
    proxy.signal(SIGINT);
    proxy.await_stderr("stopped");
    let said = proxy.stderr();
    let about: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("refused"))
        .collect();
    let first = format!("upstream `codex` {nobody}: connection refused");
    assert!(about[0].ends_with(&first), "{said}");
    assert!(
        about[1].ends_with(&format!(
            "upstream `codex` {nobody} is ejected for 10s: connection refused"
        )),
        "{said}"
    );
    // What came again is told of with a count, at the end at the latest.
    assert!(
        about[2].contains(&format!("{first} (5 more times within ")),
        "{said}"
    );
    assert_eq!(about.len(), 3, "{said}");
}

#[test]
fn a_warning_at_the_start_is_said_once_and_in_one_way() {
    let upstream = upstream::json("{}").run();
    let policy = POLICY.replace("version: 1\n", "version: 1\ndefault_group: plain\n");
    let proxy = proxy::new()
        .upstream_with("main", &upstream, "credential_file: upstream.key")
        .file("upstream.key", "sk-upstream\n")
        .policy(&policy)
        .run();
    let said = proxy.stderr();
    let warnings: Vec<&str> = said
        .lines()
        .filter(|line| line.contains(" WARN "))
        .collect();
    assert_eq!(warnings.len(), 1, "{said}");
    assert!(warnings[0].contains("policy.yaml:"), "{said}");
    assert!(!warnings[0].contains("warning:"), "{said}");
}

#[test]
fn both_families_may_be_listened_on_by_two_addresses_of_a_port() {
    let upstream = upstream::json("{}").run();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let (v4, v6) = (format!("0.0.0.0:{port}"), format!("[::]:{port}"));
    for pair in [[&v4, &v6], [&v6, &v4]] {
        let proxy = pair.iter().fold(proxy::new(), |proxy, entry| {
            proxy.listener(&format!("'{entry}'"))
        });
        let proxy = proxy.upstream(&upstream).run();
        for client in ["127.0.0.1", "::1"] {
            TcpStream::connect((client, port)).unwrap();
        }
        proxy.stop();
    }
}
