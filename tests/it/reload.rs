//! The policy changes while the proxy runs: by every way of saving a file, never for a bad one, and without a request
//! that notices.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::client::Answer;
use crate::support::proxy::{self, POLICY, Proxy};
use crate::support::upstream::{self, Upstream, reply};
use crate::support::{eventually, object_of};
use serde_json::Value;

const PATH: &str = "/v1/responses";
/// A change of the file is to be in force within a second of it; the rest is for a busy machine.
const SEEN_WITHIN: Duration = Duration::from_millis(2500);

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
        assert!(proxy.stderr().contains(line), "{}", proxy.stderr());
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
        for round in 1..=3 {
            fs::write(proxy.path("policy.new"), many_keys(10_000, round)).unwrap();
            fs::rename(proxy.path("policy.new"), proxy.path("policy.yaml")).unwrap();
            let last = format!("{round}-009999");
            eventually("the last key", || {
                (status_of(&proxy, &last) == 200).then_some(())
            });
        }
        done.store(true, Ordering::Relaxed);
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
    let client = proxy.client("sk-fast");
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
