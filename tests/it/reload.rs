//! The policy changes while the proxy runs: by every way of saving a file, never for a bad one, and without a request
//! that notices.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::support::client::Answer;
use crate::support::proxy::{self, POLICY, Proxy};
use crate::support::upstream::{self, Upstream, reply};
use crate::support::{eventually, object_of};
use serde_json::Value;

const PATH: &str = "/v1/responses";
/// A change of the file is to be in force within a second of it; the rest is for a busy machine.
const SEEN_WITHIN: Duration = Duration::from_secs(5);

fn start() -> (Upstream, Proxy) {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    (upstream, proxy)
}

/// The usual policy with one more key.
fn with_key(name: &str) -> String {
    format!("{POLICY}  sk-{name}: {{group: fast, name: {name}}}\n")
}

fn status_of(proxy: &Proxy, name: &str) -> u16 {
    proxy.client(&format!("sk-{name}")).post(PATH, "{}").status
}

/// Fails unless the key is good in time.
fn assert_taken(proxy: &Proxy, name: &str) {
    let begun = Instant::now();
    eventually(&format!("the key of {name}"), || {
        (status_of(proxy, name) == 200).then_some(())
    });
    assert!(begun.elapsed() < SEEN_WITHIN, "{:?}", begun.elapsed());
}

fn revision(proxy: &Proxy) -> Value {
    proxy.status()["policy"]["revision"].clone()
}

#[test]
fn a_file_that_is_written_in_place_or_renamed_over_is_taken() {
    let (_upstream, proxy) = start();
    assert_eq!(status_of(&proxy, "one"), 401);
    fs::write(proxy.path("policy.yaml"), with_key("one")).unwrap();
    assert_taken(&proxy, "one");
    fs::write(proxy.path("policy.new"), with_key("two")).unwrap();
    fs::rename(proxy.path("policy.new"), proxy.path("policy.yaml")).unwrap();
    assert_taken(&proxy, "two");
    // The new file is all that counts.
    assert_eq!(status_of(&proxy, "one"), 401);
    assert_eq!(proxy.status()["policy"]["keys"], 5);
}

#[test]
fn a_file_behind_swapped_symlinks_is_taken() {
    let upstream = upstream::json("{}").run();
    let folder = tempfile::tempdir().unwrap();
    let version = |name: &str, policy: &str| {
        fs::create_dir(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join("policy.yaml"), policy).unwrap();
    };
    version("..1", &with_key("one"));
    version("..2", &with_key("two"));
    symlink("..1", folder.path().join("..data")).unwrap();
    // The configuration names a link to a link's content, as Kubernetes mounts it.
    symlink("..data/policy.yaml", folder.path().join("mounted.yaml")).unwrap();
    let proxy = proxy::new()
        .upstream(&upstream)
        .policy_file("mounted.yaml")
        .run_in(folder);
    assert_eq!(status_of(&proxy, "one"), 200);
    symlink("..2", proxy.path("..new")).unwrap();
    fs::rename(proxy.path("..new"), proxy.path("..data")).unwrap();
    assert_taken(&proxy, "two");
    assert_eq!(status_of(&proxy, "one"), 401);
}

#[test]
fn a_policy_in_force_decides_a_request_to_its_end() {
    let script = [reply(200)
        .sse_begun(&["data: 1\n\n"])
        .hold()
        .send("0\r\n\r\n")];
    let upstream = upstream::script(script).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send(client.head_of(PATH, 2));
    connection.send("{");
    eventually("the body is held", || {
        (proxy.status()["requests_in_flight"] == 1).then_some(())
    });
    let before = revision(&proxy);
    fs::write(
        proxy.path("policy.yaml"),
        POLICY.replace(
            "fast: {platform: openai,",
            "fast: {platform: openai, enabled: false,",
        ),
    )
    .unwrap();
    eventually("another revision", || {
        (revision(&proxy) != before).then_some(())
    });
    connection.send("}");
    assert_eq!(connection.head().unwrap().status, 200);
    assert!(upstream.request().text().contains("priority"));
    upstream.release();
    while connection.chunk().is_some() {}
    assert_eq!(status_of(&proxy, "fast"), 403);
}

#[test]
fn a_file_that_is_gone_changes_nothing_until_it_is_back() {
    let (_upstream, proxy) = start();
    let before = revision(&proxy);
    fs::remove_file(proxy.path("policy.yaml")).unwrap();
    eventually("an error on /status", || {
        proxy.status()["policy"]["last_error"]
            .as_str()
            .map(str::to_owned)
    });
    assert_eq!(status_of(&proxy, "fast"), 200);
    assert_eq!(revision(&proxy), before);
    fs::write(proxy.path("policy.yaml"), with_key("back")).unwrap();
    assert_taken(&proxy, "back");
    assert_eq!(proxy.status()["policy"]["last_error"], Value::Null);
}

#[test]
fn a_file_that_is_still_being_written_is_not_taken_by_halves() {
    let (_upstream, proxy) = start();
    // Every line that is there makes a valid policy; the keys come after the groups.
    let before = revision(&proxy);
    let whole = with_key("last");
    let path = proxy.path("policy.yaml");
    let mut revisions = vec![before];
    for end in (0..whole.len()).step_by(60).chain([whole.len()]) {
        fs::write(&path, &whole[..end]).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let now = proxy.status();
        assert_eq!(now["policy"]["last_error"], Value::Null);
        revisions.push(now["policy"]["revision"].clone());
    }
    assert_taken(&proxy, "last");
    revisions.push(revision(&proxy));
    revisions.dedup();
    assert_eq!(revisions.len(), 2, "{revisions:?}");
}

/// Twenty keys, the last of which is at the very end of the file, and before them one that is new in this `round`.
fn long_policy(round: usize) -> String {
    let keys: String = (0..20)
        .map(|number| format!("  sk-k{number}: {{group: fast, name: k{number}}}\n"))
        .collect();
    format!(
        "{POLICY}  sk-round-{round}: {{group: fast, name: round-{round}}}\n{keys}  sk-end: {{group: fast, name: end}}\n"
    )
}

/// A way to save a text as the file at a path.
type Save = fn(&Path, &str);

fn create(path: &Path) -> fs::File {
    fs::File::create(path).unwrap()
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program}: {status}");
}

fn new_file(path: &Path, text: &str) -> String {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    new.to_str().unwrap().to_owned()
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Writes it line by line with a pause after each, as what is behind a slow line does.
fn write_slowly(mut file: fs::File, text: &str, pause: Duration) {
    for line in text.split_inclusive('\n') {
        file.write_all(line.as_bytes()).unwrap();
        std::thread::sleep(pause);
    }
}

/// The first half, a long pause, and the rest; `half` is done where the first half is there.
fn write_with_a_pause(mut file: fs::File, text: &str, half: impl FnOnce()) {
    let middle = text.find("  sk-k3:").unwrap();
    file.write_all(&text.as_bytes()[..middle]).unwrap();
    half();
    std::thread::sleep(Duration::from_millis(1500));
    file.write_all(&text.as_bytes()[middle..]).unwrap();
}

const SAVES: [(&str, Save); 12] = [
    (
        "vim renames the old file and writes a new one",
        |path, text| {
            fs::rename(path, path.with_extension("yaml~")).unwrap();
            fs::write(path, text).unwrap();
            fs::remove_file(path.with_extension("yaml~")).unwrap();
        },
    ),
    ("nano writes in place", |path, text| {
        fs::write(path, text).unwrap()
    }),
    ("sed -i", |path, text| {
        fs::write(path, text.replace("name: end", "name: dne")).unwrap();
        run("sed", &["-i", "s/name: dne/name: end/", name(path)]);
    }),
    ("cp", |path, text| {
        run("cp", &[&new_file(path, text), name(path)])
    }),
    ("mv", |path, text| {
        run("mv", &[&new_file(path, text), name(path)])
    }),
    ("scp at 1 KB/s", |path, text| {
        write_slowly(create(path), text, Duration::from_millis(60));
    }),
    ("git checkout", |path, text| {
        fs::remove_file(path).unwrap();
        write_slowly(create(path), text, Duration::from_millis(15));
    }),
    ("an editor that truncates first", |path, text| {
        let mut file = create(path);
        std::thread::sleep(Duration::from_millis(1200));
        file.write_all(text.as_bytes()).unwrap();
    }),
    ("a generator that pauses", |path, text| {
        write_with_a_pause(create(path), text, || {});
    }),
    ("mv before the writer has done", |path, text| {
        let new = path.with_extension("new");
        write_with_a_pause(create(&new), text, || fs::rename(&new, path).unwrap());
    }),
    ("a symlink to what is being written", |path, text| {
        let new = path.with_extension("new");
        write_with_a_pause(create(&new), text, || {
            symlink(&new, path.with_extension("link")).unwrap();
            fs::rename(path.with_extension("link"), path).unwrap();
        });
    }),
    ("a crash half-way, and another attempt", |path, text| {
        let half = text.find("  sk-k0:").unwrap();
        fs::write(path, &text[..half]).unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        fs::write(path, text).unwrap();
    }),
];

#[test]
fn no_way_of_saving_locks_anybody_out() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .policy(&long_policy(0))
        .upstream(&upstream)
        .run();
    let done = AtomicBool::new(false);
    let taken =
        |proxy: &Proxy| proxy.metric_of("tiergate_policy_reloads_total", "outcome=\"success\"");
    std::thread::scope(|scope| {
        let load = scope.spawn(|| load_of(&proxy, "sk-end", b"{}", &done));
        // Also where an assertion fails, or the load would never end.
        let stop = StopAtEnd(&done);
        for (round, (way, save)) in (1..).zip(SAVES) {
            let before = taken(&proxy);
            save(&proxy.path("policy.yaml"), &long_policy(round));
            let saved = Instant::now();
            eventually(way, || {
                (status_of(&proxy, &format!("round-{round}")) == 200).then_some(())
            });
            assert!(
                saved.elapsed() < SEEN_WITHIN,
                "{way}: {:?}",
                saved.elapsed()
            );
            // Its old content may be read twice, and nothing in between was taken. It is counted when it is in force already.
            let loads = eventually("a load", || {
                Some(taken(&proxy) - before).filter(|loads| *loads > 0.0)
            });
            assert!(
                loads == 1.0 || way == "sed -i" && loads == 2.0,
                "{way}: {loads}"
            );
        }
        drop(stop);
        load.join().unwrap();
    });
}

/// Ends a load when it goes out of scope.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_policy_that_loses_most_of_its_keys_is_held_until_it_is_asked_for() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .policy(&long_policy(0))
        .upstream(&upstream)
        .run();
    fs::write(proxy.path("policy.yaml"), POLICY).unwrap();
    proxy.await_stderr("would lose more than half of its keys");
    let held = || proxy.metric_of("tiergate_policy_reloads_total", "outcome=\"held\"");
    assert_eq!(held(), 1.0);
    assert_eq!(status_of(&proxy, "end"), 200);
    let ready = proxy.admin("/readyz");
    assert_eq!(ready.status, 200);
    assert!(ready.text().contains("more than half"), "{ready:?}");
    assert!(ready.text().contains("; SIGHUP takes it"), "{ready:?}");
    assert_eq!(proxy.status()["policy"]["outcome"], "held");
    proxy.signal(libc::SIGHUP);
    eventually("the key is gone", || {
        (status_of(&proxy, "end") == 401).then_some(())
    });
    assert_eq!(held(), 1.0);
    assert_eq!(proxy.admin("/readyz").text(), "ok\n");
}

#[test]
fn a_reload_says_what_it_changes() {
    let (_upstream, proxy) = start();
    let changed = with_key("one").replace(
        "plain: {platform: openai}",
        "plain: {platform: openai, enabled: false}",
    );
    fs::write(proxy.path("policy.yaml"), &changed).unwrap();
    proxy.await_stderr("5 keys; keys +1, group plain: enabled true → false");
    let renamed = changed.replace("name: fiona", "name: frida");
    fs::write(proxy.path("policy.yaml"), renamed).unwrap();
    proxy.await_stderr("5 keys; keys (1 with another name, group or state)");
}

#[test]
fn a_bad_file_is_kept_out_and_told_of_with_its_place() {
    let (_upstream, proxy) = start();
    let before = revision(&proxy);
    let bad = POLICY
        .replace("{platform: openai}", "{platform: opanai}")
        .replace("group: fast, name: fiona", "group: slow, name: fiona");
    fs::write(proxy.path("policy.yaml"), bad).unwrap();
    let told = eventually("an error on /status", || {
        proxy.status()["policy"]["last_error"]
            .as_str()
            .map(str::to_owned)
    });
    for line in ["policy.yaml:4:", "policy.yaml:7:"] {
        assert!(told.contains(line), "{told}");
        proxy.await_stderr(line);
    }
    let ready = proxy.admin("/readyz");
    assert_eq!(ready.status, 200);
    assert!(ready.text().contains("policy.yaml:4:"), "{ready:?}");
    assert_eq!(revision(&proxy), before);
    assert_eq!(status_of(&proxy, "fast"), 200);
    let failed = proxy.metric_of("tiergate_policy_reloads_total", "outcome=\"fail");
    assert!(failed >= 1.0, "{failed}");
}

#[test]
fn sighup_waits_for_a_writer() {
    let (_upstream, proxy) = start();
    let before = revision(&proxy);
    let whole = with_key("last");
    let half = whole.len() / 2;
    let mut file = create(&proxy.path("policy.yaml"));
    file.write_all(&whole.as_bytes()[..half]).unwrap();
    proxy.signal(libc::SIGHUP);
    let failures = eventually("the end of the reload", || {
        let reload = proxy.status()["reload"].clone();
        (reload["count"] == 1).then(|| reload["failures"].to_string())
    });
    assert!(failures.contains("is being written"), "{failures}");
    assert_eq!(revision(&proxy), before);
    file.write_all(&whole.as_bytes()[half..]).unwrap();
    drop(file);
    assert_taken(&proxy, "last");
}

#[test]
fn sighup_reads_the_file_at_once() {
    let (_upstream, proxy) = start();
    let before = proxy.status()["policy"]["loaded_at"].clone();
    // The file has not changed, so that nothing but the signal has it read.
    proxy.signal(libc::SIGHUP);
    eventually("the file is read again", || {
        (proxy.status()["policy"]["loaded_at"] != before).then_some(())
    });
    assert_eq!(status_of(&proxy, "fast"), 200);
}

fn many_keys(count: usize, revision: usize) -> String {
    let keys: String = (0..count)
        .map(|number| format!("  sk-{revision}-{number:06}: {{group: fast, name: n{number}}}\n"))
        .collect();
    POLICY.to_owned() + &keys
}

#[test]
fn ten_thousand_keys_are_exchanged_under_load_and_no_request_notices() {
    let (upstream, proxy) = start();
    let done = AtomicBool::new(false);
    let body = object_of(2000);
    let mut times = std::thread::scope(|scope| {
        let load: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| load(&proxy, &body, &done)))
            .collect();
        let stop = StopAtEnd(&done);
        for round in 1..=3 {
            fs::write(proxy.path("policy.new"), many_keys(10_000, round)).unwrap();
            fs::rename(proxy.path("policy.new"), proxy.path("policy.yaml")).unwrap();
            // Of those before nearly all are gone.
            proxy.signal(libc::SIGHUP);
            let last = format!("{round}-009999");
            eventually("the last key", || {
                (status_of(&proxy, &last) == 200).then_some(())
            });
        }
        drop(stop);
        let times = load.into_iter().map(|thread| thread.join().unwrap());
        times.flatten().collect::<Vec<_>>()
    });
    times.sort_unstable();
    let p99 = times[times.len() * 99 / 100];
    assert!(times.len() > 200, "{} requests", times.len());
    assert!(
        p99 < Duration::from_millis(500),
        "p99 is {p99:?} of {}",
        times.len()
    );
    let forced =
        |request: &upstream::Received| request.whole && request.text().contains("priority");
    assert!(upstream.received().iter().all(forced));
}

/// Asks on one connection until the test is done; how long each request took. None may fail.
fn load(proxy: &Proxy, body: &[u8], done: &AtomicBool) -> Vec<Duration> {
    load_of(proxy, "sk-fast", body, done)
}

fn load_of(proxy: &Proxy, key: &str, body: &[u8], done: &AtomicBool) -> Vec<Duration> {
    let client = proxy.client(key);
    let mut connection = client.connect();
    let mut times = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let begun = Instant::now();
        connection.send(client.message(PATH, body));
        let answer: Answer = connection.answer();
        assert_eq!(answer.status, 200);
        times.push(begun.elapsed());
        // The load is to be there, not to take the machine.
        std::thread::sleep(Duration::from_millis(2));
    }
    times
}

#[test]
fn a_hundred_thousand_keys_are_taken() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .policy(&many_keys(100_000, 1))
        .upstream(&upstream)
        .run();
    assert_eq!(proxy.status()["policy"]["keys"], 100_004);
    for name in ["1-000000", "1-099999", "fast"] {
        assert_eq!(status_of(&proxy, name), 200);
    }
    assert_eq!(status_of(&proxy, "1-100000"), 401);
}

#[test]
fn a_pipe_in_the_place_of_a_file_holds_up_neither_a_reload_nor_the_end() {
    let upstream = upstream::json("{}").run();
    let mut proxy = proxy::new()
        .upstream_with("main", &upstream, "credential_file: own.key")
        .file("own.key", "sk-own")
        .prices("version: 1\nprices: []\n")
        .tls()
        .run();
    let files = [
        "policy.yaml",
        "prices.yaml",
        "own.key",
        "cert.pem",
        "tiergate.yaml",
    ];
    for name in files {
        fs::remove_file(proxy.path(name)).unwrap();
        mkfifo(&proxy.path(name), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    }
    proxy.signal(libc::SIGHUP);
    let failures = eventually("the end of the reload", || {
        let reload = proxy.status()["reload"].clone();
        (reload["count"] == 1).then(|| reload["failures"].to_string())
    });
    assert_eq!(
        failures.matches("not a regular file").count(),
        files.len(),
        "{failures}"
    );
    assert_eq!(status_of(&proxy, "plain"), 200);
    let checked = Command::new(env!("CARGO_BIN_EXE_tiergate"))
        .args(["check", "--config", "tiergate.yaml"])
        .current_dir(proxy.path("."))
        .output()
        .unwrap();
    let told = String::from_utf8(checked.stdout).unwrap();
    assert!(told.contains("cannot read: not a regular file"), "{told}");
    proxy.signal(libc::SIGTERM);
    assert_eq!(proxy.wait().code(), Some(0));
}
