//! No request is missing from the access log: whatever happens to its file, and however the process ends.

use std::collections::HashSet;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use crate::support::client::Connection;
use crate::support::command::{Running, command};
use crate::support::frames::{self, DATA, END_HEADERS, END_STREAM, HEADERS, PING, head};
use crate::support::h2::{self, Framing};
use crate::support::proxy::{self, Proxy, lines_of};
use crate::support::upstream::{self, Reply, Upstream, reply};
use crate::support::websocket::frame;
use crate::support::{eventually, object_of, record, tls};
use serde_json::{Value, json};

const PATH: &str = "/v1/responses";
/// The first byte of a whole message of text.
const TEXT: u8 = 0x81;

fn post(proxy: &Proxy) {
    assert_eq!(proxy.client("sk-fast").post(PATH, "{}").status, 200);
}

/// Fails unless the lines are numbered from 0 without a gap, each once.
fn assert_no_gap(records: &[Value]) {
    let numbers: Vec<u64> = records
        .iter()
        .map(|record| record["seq"].as_u64().unwrap())
        .collect();
    let expected: Vec<u64> = (0..records.len() as u64).collect();
    assert_eq!(numbers, expected);
}

fn records_of(path: &std::path::Path) -> Vec<Value> {
    let lines = lines_of(path);
    lines.iter().map(|line| record::normalised(line)).collect()
}

#[test]
fn a_full_device_loses_nothing_and_is_told_of() {
    let upstream = upstream::json("{}").run();
    let folder = tempfile::tempdir().unwrap();
    symlink("/dev/full", folder.path().join("access.log")).unwrap();
    let proxy = proxy::new().upstream(&upstream).run_in(folder);
    assert_eq!(proxy.admin("/readyz").status, 200);
    for _ in 0..5 {
        post(&proxy);
    }
    let ready = eventually("/readyz tells", || {
        Some(proxy.admin("/readyz")).filter(|ready| ready.status == 503)
    });
    assert!(ready.text().contains("access log"), "{ready:?}");
    assert!(proxy.metric("tiergate_access_log_errors_total") >= 1.0);
    // The process lives all the same.
    assert_eq!(proxy.admin("/healthz").status, 200);
    fs::remove_file(proxy.log_path()).unwrap();
    proxy.signal(libc::SIGUSR1);
    assert_no_gap(&proxy.access_log(5));
    eventually("/readyz is good again", || {
        (proxy.admin("/readyz").status == 200).then_some(())
    });
    post(&proxy);
    assert_no_gap(&proxy.access_log(6));
}

#[test]
fn a_log_that_is_deleted_is_made_anew_and_misses_no_line() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    post(&proxy);
    let first = proxy.access_log(1);
    fs::remove_file(proxy.log_path()).unwrap();
    post(&proxy);
    let rest = proxy.access_log(1);
    assert_no_gap(&[first, rest].concat());
    proxy.await_stderr("the access log was deleted, and a new file is opened in its place");
    // Also where nobody asks for anything.
    fs::remove_file(proxy.log_path()).unwrap();
    eventually("a new log", || proxy.log_path().exists().then_some(()));
}

/// A proxy whose log has a folder of its own, `logs`.
fn logging_to_a_folder(upstream: &Upstream) -> Proxy {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("logs")).unwrap();
    proxy::new()
        .upstream(upstream)
        .log("logs/access.log")
        .run_in(folder)
}

#[test]
fn lines_wait_for_a_log_whose_folder_is_gone() {
    let upstream = upstream::json("{}").run();
    let proxy = logging_to_a_folder(&upstream);
    let logs = proxy.path("logs");
    post(&proxy);
    let first = proxy.access_log(1);
    fs::remove_dir_all(&logs).unwrap();
    let ready = eventually("/readyz tells", || {
        Some(proxy.admin("/readyz")).filter(|ready| ready.status == 503)
    });
    let why = "the access log cannot be written: logs/access.log: No such file";
    assert!(ready.text().contains(why), "{ready:?}");
    assert_eq!(proxy.metric("tiergate_access_log_stalled"), 1.0);
    assert!(proxy.status()["problems"].to_string().contains(why));
    assert!(proxy.metric("tiergate_access_log_errors_total") >= 1.0);
    proxy.await_stderr(why.split_once(':').unwrap().0);
    post(&proxy);
    fs::create_dir(&logs).unwrap();
    let rest = proxy.access_log(1);
    assert_no_gap(&[first, rest].concat());
    eventually("/readyz is good again", || {
        (proxy.admin("/readyz").status == 200).then_some(())
    });
}

#[test]
fn a_renamed_log_gets_its_lines_until_the_signal_and_none_after_one_that_fails() {
    let upstream = upstream::json("{}").run();
    let proxy = logging_to_a_folder(&upstream);
    let (logs, moved) = (proxy.path("logs"), proxy.path("moved"));
    post(&proxy);
    fs::rename(&logs, &moved).unwrap();
    post(&proxy);
    let old = records_of(&moved.join("access.log"));
    assert_eq!(old.len(), 2);
    proxy.signal(libc::SIGUSR1);
    proxy.await_stderr("the access log cannot be reopened: logs/access.log: No such file");
    post(&proxy);
    assert_eq!(proxy.admin("/readyz").status, 503);
    fs::create_dir(&logs).unwrap();
    let new = proxy.access_log(1);
    assert_no_gap(&[old, new].concat());
    assert_eq!(records_of(&moved.join("access.log")).len(), 2);
}

/// A file system of its own that can be made to answer nothing, which takes root.
struct Disk {
    folder: TempDir,
}

/// It answers again when this is dropped.
struct Frozen<'d>(&'d Disk);

impl Disk {
    /// None where the system does not let it.
    fn mount() -> Option<Disk> {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        let disk = Disk { folder };
        fs::create_dir(disk.path()).unwrap();
        let (image, path) = (image.to_str()?, disk.path());
        let is_mounted = is_done("mkfs.ext4", &["-q", image])
            && is_done("mount", &["-o", "loop", image, path.to_str()?]);
        if !is_mounted || disk.freeze().is_none() {
            eprintln!("skipped: no disk can be mounted and frozen here");
            return None;
        }
        Some(disk)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn freeze(&self) -> Option<Frozen<'_>> {
        is_done("fsfreeze", &["-f", self.path().to_str()?]).then_some(Frozen(self))
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        is_done("fsfreeze", &["-u", self.0.path().to_str().unwrap()]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        is_done("umount", &["-l", self.path().to_str().unwrap()]);
    }
}

fn is_done(program: &str, arguments: &[&str]) -> bool {
    let output = Command::new(program).args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}

#[test]
fn a_disk_that_does_not_answer_stops_all_but_the_watchdogs_feeding_and_loses_no_line() {
    /// More than serve at once.
    const CLIENTS: usize = 8;
    let Some(disk) = Disk::mount() else { return };
    let folder = tempfile::tempdir().unwrap();
    let manager = UnixDatagram::bind(folder.path().join("manager")).unwrap();
    let limit = Duration::from_millis(1500);
    manager.set_read_timeout(Some(limit)).unwrap();
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("server: {threads: 2}")
        .log(disk.path().join("access.log").to_str().unwrap())
        .environment(
            "NOTIFY_SOCKET",
            folder.path().join("manager").to_str().unwrap(),
        )
        .environment("WATCHDOG_USEC", &limit.as_micros().to_string())
        .run_in(folder);
    post(&proxy);
    let mut fed = 0;
    std::thread::scope(|scope| {
        let frozen = disk.freeze().unwrap();
        let began = Instant::now();
        let clients = [(); CLIENTS].map(|()| scope.spawn(|| post(&proxy)));
        // Not so long that connecting to the upstream takes too long.
        while began.elapsed() < 2 * limit {
            let mut text = [0; 1024];
            let count = manager
                .recv(&mut text)
                .expect("something within the watchdog's time");
            fed += usize::from(&text[..count] == b"WATCHDOG=1");
        }
        drop(frozen);
        for client in clients {
            client.join().unwrap();
        }
    });
    assert!(fed >= 5, "{fed}");
    assert_no_gap(&proxy.access_log(CLIENTS + 1));
    proxy.await_stderr("the disk of the access log answers again");
}

#[test]
fn a_limit_of_file_sizes_is_like_a_full_device() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    post(&proxy);
    proxy.access_log(1);
    // Some of the next line still fits.
    let full = fs::metadata(proxy.log_path()).unwrap().len() + 100;
    proxy.limit_files(full);
    for _ in 0..3 {
        post(&proxy);
    }
    eventually("a failed write", || {
        (proxy.metric("tiergate_access_log_errors_total") >= 1.0).then_some(())
    });
    // What fitted of the line was taken back: another process may write to the file as well.
    assert_eq!(fs::metadata(proxy.log_path()).unwrap().len(), full - 100);
    proxy.limit_files(libc::RLIM_INFINITY);
    assert_no_gap(&proxy.access_log(4));
}

#[test]
fn the_end_waits_for_a_log_that_cannot_be_written() {
    let (_upstream, mut proxy, full) = with_a_full_log("server: {drain: 20s}");
    proxy.signal(libc::SIGTERM);
    proxy.await_stderr("draining");
    assert!(proxy.ended().is_none());
    // The administrator makes room.
    proxy.limit_files(full + 100_000);
    assert_eq!(proxy.wait().code(), Some(0));
    assert_no_gap(&proxy.access_log(2));
}

#[test]
fn lines_that_are_lost_at_the_end_are_told_of() {
    let (_upstream, mut proxy, _) = with_a_full_log("server: {drain: 200ms}");
    proxy.signal(libc::SIGTERM);
    assert_eq!(proxy.wait().code(), Some(1));
    proxy.await_stderr("the access log cannot be written, lines lost: 1");
    assert_no_gap(&proxy.access_log(1));
}

/// A proxy that has served two requests, and has no room for the line of the second. Its log has so many bytes.
fn with_a_full_log(setting: &str) -> (Upstream, Proxy, u64) {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).setting(setting).run();
    post(&proxy);
    proxy.access_log(1);
    // What the proxy says on stderr has room.
    let full = fs::metadata(proxy.log_path()).unwrap().len();
    proxy.limit_files(full);
    post(&proxy);
    eventually("a failed write", || {
        (proxy.metric("tiergate_access_log_errors_total") >= 1.0).then_some(())
    });
    (upstream, proxy, full)
}

/// A pipe with a name, and what reads it: for both, so that opening it waits for nobody.
fn pipe(path: &Path) -> fs::File {
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let both = OpenOptions::new().read(true).write(true).open(path);
    both.unwrap()
}

/// A program that runs the proxy with this redirection, in the folder that it is started in.
fn redirected(folder: &Path, redirection: &str) -> PathBuf {
    let program = folder.join("program");
    let proxy = env!("CARGO_BIN_EXE_tiergate");
    let script = format!("#!/bin/bash\nexec -a tiergate {proxy} \"$@\" {redirection}\n");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    program
}

#[test]
fn a_reader_of_stdout_that_stops_does_not_stop_the_proxy() {
    const REQUESTS: usize = 150;
    let upstream = upstream::json("{}").run();
    let folder = tempfile::tempdir().unwrap();
    let reader = pipe(&folder.path().join("pipe"));
    let program = redirected(folder.path(), "> pipe");
    let proxy = proxy::new()
        .upstream(&upstream)
        .program(program)
        .log("-")
        .run_in(folder);
    // More than a pipe holds.
    (0..REQUESTS).for_each(|_| post(&proxy));
    assert_eq!(proxy.admin("/healthz").status, 200);
    eventually("/readyz tells", || {
        (proxy.admin("/readyz").status == 503).then_some(())
    });
    proxy.await_stderr("the access log cannot be written");
    post(&proxy);
    assert_eq!(proxy.metric("tiergate_access_log_stalled"), 1.0);
    let lines = BufReader::new(reader).lines().take(REQUESTS + 1);
    let records: Vec<Value> = lines
        .map(|line| record::normalised(&line.unwrap()))
        .collect();
    assert_no_gap(&records);
    proxy.await_stderr("the access log is written again");
    assert_eq!(proxy.admin("/readyz").status, 200);
    assert_eq!(proxy.metric("tiergate_access_log_stalled"), 0.0);
}

/// Fills a pipe until it takes not a byte more.
fn fill(pipe: &Path) {
    let mut full = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(pipe)
        .unwrap();
    for piece in [&[b'x'; 4096][..], b"x"] {
        while full.write_all(piece).is_ok() {}
    }
}

#[test]
fn a_reader_of_stderr_that_stops_stops_no_request_and_not_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let (path, told) = (folder.path().join("pipe"), folder.path().join("stderr"));
    let reader = pipe(&path);
    // It reads until the proxy serves.
    let reading = std::thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = String::new();
        while !line.contains("serves on") {
            reader.read_line(&mut line).unwrap();
            fs::write(&told, &line).unwrap();
        }
        reader
    });
    let mut proxy = proxy::new()
        .upstream_at("main", &[format!("http://{}", upstream::nobody())], "")
        .program(redirected(folder.path(), "2> pipe"))
        .run_in(folder);
    let _reader = reading.join().unwrap();
    fill(&path);
    fs::write(proxy.path("policy.yaml"), "no policy").unwrap();
    eventually("a failed reload", || {
        (proxy.status()["policy"]["outcome"] == "failure").then_some(())
    });
    for _ in 0..20 {
        assert_eq!(proxy.client("sk-fast").post(PATH, "{}").status, 502);
    }
    assert_eq!(proxy.admin("/healthz").status, 200);
    proxy.signal(libc::SIGTERM);
    assert_eq!(proxy.wait().code(), Some(0));
}

#[test]
fn a_pipe_that_nobody_reads_stops_neither_the_start_nor_the_end() {
    let upstream = upstream::json("{}").run();
    let folder = tempfile::tempdir().unwrap();
    drop(pipe(&folder.path().join("access.log")));
    let mut proxy = proxy::new()
        .upstream(&upstream)
        .setting("server: {drain: 300ms}")
        .run_in(folder);
    (0..3).for_each(|_| post(&proxy));
    let begun = Instant::now();
    proxy.signal(libc::SIGTERM);
    assert_eq!(proxy.wait().code(), Some(1));
    assert!(begun.elapsed() < Duration::from_secs(5));
    proxy.await_stderr("the access log cannot be written, lines lost: 3");
    // Or the test would wait for its writer.
    fs::remove_file(proxy.log_path()).unwrap();
}

#[test]
fn a_rotation_under_load_loses_nothing() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let rotated = |number: usize| proxy.path(&format!("access.log.{number}"));
    std::thread::scope(|scope| {
        let load = scope.spawn(|| (0..200).for_each(|_| post(&proxy)));
        for number in 0..3 {
            let log = proxy.log_path();
            eventually("lines to rotate", || {
                (lines_of(&log).len() >= 10).then_some(())
            });
            fs::rename(&log, rotated(number)).unwrap();
            proxy.signal(libc::SIGUSR1);
            eventually("a new file", || log.exists().then_some(()));
        }
        load.join().unwrap();
    });
    let mut parts: Vec<Vec<Value>> = (0..3).map(|number| records_of(&rotated(number))).collect();
    let before: usize = parts.iter().map(Vec::len).sum();
    eventually("all lines", || {
        (proxy.log_lines().len() + before >= 200).then_some(())
    });
    parts.push(records_of(&proxy.log_path()));
    assert!(parts.iter().all(|part| !part.is_empty()));
    let all = parts.concat();
    assert_eq!(all.len(), 200);
    assert_no_gap(&all);
}

/// Of a drain that was asked for, and that of the old process of an upgrade.
#[test]
fn a_rotation_in_a_drain_is_followed() {
    for is_upgrade in [false, true] {
        let held = Reply::default().hold().then_all(reply(200).json("{}"));
        let upstream = upstream::script([held]).run();
        let proxy = proxy::new().upstream(&upstream);
        let proxy = match is_upgrade {
            true => proxy
                .setting("server: {upgrade_socket: upgrade.sock}")
                .run(),
            false => proxy.run(),
        };
        let client = proxy.client("sk-fast");
        let mut connection = client.connect();
        connection.send(client.message(PATH, b"{}"));
        upstream.await_heads(1);
        let _new = if is_upgrade {
            let take_over = ["run", "--config", "tiergate.yaml", "--takeover"];
            let new = command(proxy.path(""), &take_over)
                .stderr(Stdio::null())
                .spawn();
            Some(Running(new.unwrap()))
        } else {
            proxy.signal(libc::SIGTERM);
            None
        };
        proxy.await_stderr("draining");
        fs::rename(proxy.log_path(), proxy.path("access.log.1")).unwrap();
        proxy.signal(libc::SIGUSR1);
        proxy.await_stderr("access log reopened");
        upstream.release();
        assert_eq!(connection.answer().status, 200);
        assert_eq!(
            lines_of(&proxy.log_path()).len(),
            1,
            "upgrade: {is_upgrade}"
        );
    }
}

#[test]
fn a_process_that_is_killed_has_the_lines_of_what_it_answered() {
    let upstream = upstream::json("{}").run();
    let mut proxy = proxy::new().upstream(&upstream).run();
    let mut answered: HashSet<String> = HashSet::new();
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    for _ in 0..100 {
        connection.send(client.message(PATH, b"{}"));
        let answer = connection.answer();
        let id = answer.header("x-tiergate-request-id").expect("an id");
        answered.insert(id.to_owned());
    }
    // This long ago the last of them was whole.
    std::thread::sleep(Duration::from_millis(100));
    proxy.kill();
    let logged: HashSet<String> = proxy
        .log_lines()
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|record| record["request_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(logged, answered);
}

#[test]
fn sigterm_lets_a_running_stream_end_within_the_drain() {
    let script = [reply(200)
        .sse_begun(&["data: 1\n\n"])
        .hold()
        .chunk("data: 2\n\n")
        .send("0\r\n\r\n")];
    let upstream = upstream::script(script).run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("server: {drain: 20s}")
        .run();
    let client = proxy.client("sk-plain");
    let mut connection = client.connect();
    connection.send(client.message("/v1/embeddings", b"{}"));
    assert_eq!(connection.head().unwrap().status, 200);
    assert_eq!(connection.chunk().unwrap(), b"data: 1\n\n");
    proxy.signal(libc::SIGTERM);
    proxy.await_stderr("draining");
    upstream.release();
    assert_eq!(connection.chunk().unwrap(), b"data: 2\n\n");
    assert_eq!(connection.chunk(), None);
    let begun = Instant::now();
    let records = ended(proxy);
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(records.len(), 1);
    assert_eq!(
        json!([records[0]["outcome"], records[0]["response_bytes"]]),
        json!(["ok", 18])
    );
}

#[test]
fn sigterm_cuts_a_stream_that_outlasts_the_drain_and_writes_its_line() {
    let script = [reply(200).sse_begun(&["data: 1\n\n"]).hold()];
    let upstream = upstream::script(script).run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("server: {drain: 500ms}")
        .run();
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send(client.message(PATH, b"{}"));
    assert_eq!(connection.head().unwrap().status, 200);
    assert_eq!(connection.chunk().unwrap(), b"data: 1\n\n");
    let begun = Instant::now();
    proxy.signal(libc::SIGTERM);
    let records = ended(proxy);
    let time = begun.elapsed();
    assert!(time >= Duration::from_millis(450), "cut after {time:?}");
    assert!(time < Duration::from_secs(5), "{time:?}");
    // It is cut, not ended as if it were whole.
    connection.assert_closed();
    assert_eq!(records.len(), 1);
    assert_eq!(
        json!([
            records[0]["status"],
            records[0]["outcome"],
            records[0]["error"],
            records[0]["service_tier"],
            records[0]["response_bytes"]
        ]),
        json!([200, "upstream_cut", "draining", "priority", 9])
    );
    upstream.release();
}

#[test]
fn requests_that_are_still_arriving_at_the_end_of_the_drain_are_told_to_try_again() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("server: {drain: 500ms}")
        .run();
    let with_length = proxy.client("sk-fast").head_of(PATH, 100);
    let chunked = ["sk-fast", "sk-plain"].map(|key| {
        let client = proxy.client(key).header("Transfer-Encoding", "chunked");
        [client.head("POST", PATH), b"1\r\n".to_vec()].concat()
    });
    let mut arriving: Vec<Connection> = [with_length]
        .into_iter()
        .chain(chunked)
        .map(|head| {
            let mut connection = proxy.anonymous().connect();
            connection.send([&head[..], b"{"].concat());
            connection
        })
        .collect();
    eventually("three requests", || {
        (proxy.status()["requests_in_flight"] == 3).then_some(())
    });
    proxy.signal(libc::SIGTERM);
    for connection in &mut arriving {
        let answer = connection.answer();
        assert_eq!(
            (answer.status, answer.openai_code().as_str()),
            (503, "draining")
        );
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert_eq!(answer.header("x-should-retry"), None);
    }
    let records = ended(proxy);
    assert_eq!(records.len(), 3);
    for record in records {
        assert_eq!(
            json!([record["outcome"], record["error"]]),
            json!(["rejected", "draining"])
        );
    }
}

#[test]
fn requests_over_http_2_that_outlast_the_drain_have_their_lines() {
    let upstream = upstream::script([upstream::silence()]).run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .tls()
        .setting("server: {drain: 500ms}")
        .run();
    let address = proxy.tls_address;
    let ask = |framing| {
        let headers = [("authorization", "Bearer sk-fast")];
        std::thread::spawn(move || h2::post(address, &headers, PATH, b"{}", framing))
    };
    let running = [
        Framing::Length,
        Framing::StalledLength,
        Framing::StalledNoLength,
    ]
    .map(ask);
    eventually("three requests", || {
        (proxy.status()["requests_in_flight"] == 3).then_some(())
    });
    // The one without a length does not reach the upstream before its body is whole.
    upstream.await_heads(1);
    proxy.signal(libc::SIGTERM);
    let records = ended(proxy);
    let told = |record: &Value| json!([record["outcome"], record["error"]]).to_string();
    let mut told: Vec<String> = records.iter().map(told).collect();
    told.sort_unstable();
    assert_eq!(
        told,
        [
            r#"["rejected","draining"]"#,
            r#"["rejected","draining"]"#,
            r#"["timeout","draining"]"#
        ]
    );
    // Only what has reached no upstream can still be answered.
    let [reached, with_length, without] = running.map(|asked| asked.join().unwrap());
    assert!(!reached.whole && !without.whole);
    assert_eq!(with_length.status, 503);
}

#[test]
fn an_idle_process_ends_at_once() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .tls()
        .setting("server: {drain: 60s}")
        .run();
    let client = proxy.client("sk-fast");
    let mut idle = client.connect();
    idle.send(client.message(PATH, b"{}"));
    assert_eq!(idle.answer().status, 200);
    // Nor does it wait for connections that have brought nothing, with TLS or without.
    let _new = [proxy.address, proxy.tls_address].map(Connection::open);
    eventually("three connections", || {
        (proxy.metric("tiergate_connections") == 3.0).then_some(())
    });
    let begun = Instant::now();
    let records = proxy.stop();
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(records.len(), 1);
    idle.assert_closed();
}

#[test]
fn a_drain_does_not_wait_for_clients_of_http_2_that_have_fallen_silent() {
    let script = [
        reply(200).json("{}"),
        reply(200)
            .sse_begun(&["data: 1\n\n"])
            .hold()
            .chunk("data: 2\n\n")
            .send("0\r\n\r\n"),
        reply(200).json("{}"),
    ];
    let upstream = upstream::script(script).run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .tls()
        .setting("server: {drain: 60s}")
        .run();
    let connect = || frames::begin(TcpStream::connect(proxy.tls_address).unwrap());
    let request = |stream| {
        let head = frames::frame(
            HEADERS,
            END_HEADERS,
            stream,
            &head("sk-plain", "/v1/embeddings"),
        );
        [head, frames::frame(DATA, END_STREAM, stream, b"{}")].concat()
    };
    let _asked_nothing = connect();
    let mut preface = tls::client(TcpStream::connect(proxy.tls_address).unwrap(), b"h2");
    preface.write_all(b"PRI * ").unwrap();
    let mut answered = connect();
    answered.write_all(&request(1)).unwrap();
    proxy.access_log(1);
    let mut running = connect();
    running.write_all(&request(1)).unwrap();
    upstream.await_heads(2);
    proxy.signal(libc::SIGTERM);
    // It is heard for a while.
    answered.write_all(&request(3)).unwrap();
    eventually("the end of the others", || {
        (proxy.metric("tiergate_connections") == 1.0).then_some(())
    });
    upstream.release();
    let begun = Instant::now();
    let records = ended(proxy);
    let time = begun.elapsed();
    assert!(time < Duration::from_secs(5), "{time:?}");
    let told: Vec<_> = records
        .iter()
        .map(|record| json!([record["outcome"], record["response_bytes"]]))
        .collect();
    assert_eq!(
        told,
        [json!(["ok", 2]), json!(["ok", 2]), json!(["ok", 18])]
    );
    let mut read = Vec::new();
    // The proxy's part of the end of TLS may be missing.
    let _ = running.read_to_end(&mut read);
    let last = frames::frame(DATA, 0, 1, b"data: 2\n\n");
    assert!(read.windows(last.len()).any(|window| window == last));
}

/// An upstream whose answer has so many bytes, a proxy in front of it, and a socket to that which takes little at once.
fn slow_client_of(length: usize) -> (Upstream, Proxy, TcpStream) {
    let upstream = upstream::json(&"x".repeat(length)).run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .tls()
        .setting("server: {drain: 60s}")
        .run();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&proxy.tls_address.into()).unwrap();
    (upstream, proxy, socket.into())
}

/// Reads up to `piece` bytes at a time, for longer than a drain waits for a next request, and says this each time, also where it
/// cannot be sent. The proxy ends with the client.
fn assert_read_slowly(
    mut client: impl Read + Write,
    proxy: Proxy,
    length: usize,
    piece: usize,
    says: &[u8],
) {
    const PACE: Duration = Duration::from_millis(100);
    let (mut read, mut room) = (0, vec![0; piece]);
    while read < length {
        let _ = client.write_all(says);
        std::thread::sleep(PACE);
        let count = client.read(&mut room).expect("the rest of the response");
        assert!(count > 0, "an end behind {read} bytes");
        read += count;
    }
    drop(client);
    let begun = Instant::now();
    assert_eq!(ended(proxy)[0]["outcome"], "ok");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

/// A part of it waits within the process.
#[test]
fn a_client_that_reads_slowly_gets_the_rest_of_its_response_in_a_drain() {
    const LENGTH: usize = 300_000;
    let (_upstream, proxy, socket) = slow_client_of(LENGTH);
    let mut client = tls::client(socket, b"http/1.1");
    let request = proxy.client("sk-plain").message("/v1/embeddings", b"{}");
    client.write_all(&request).unwrap();
    client.read_exact(&mut [0]).unwrap();
    proxy.signal(libc::SIGTERM);
    assert_read_slowly(client, proxy, LENGTH, 8 << 10, b"");
}

/// What it says meanwhile must not meet a socket that nobody has any more.
#[test]
fn a_client_of_http_2_that_reads_slowly_gets_the_rest_of_its_response_in_a_drain() {
    // Within the client's window, so that all of it leaves at once.
    const LENGTH: usize = 60_000;
    let (_upstream, proxy, socket) = slow_client_of(LENGTH);
    let mut client = frames::begin(socket);
    let block = head("sk-plain", "/v1/embeddings");
    let request = [
        frames::frame(HEADERS, END_HEADERS, 1, &block),
        frames::frame(DATA, END_STREAM, 1, b"{}"),
    ];
    client.write_all(&request.concat()).unwrap();
    proxy.access_log(1);
    proxy.signal(libc::SIGTERM);
    proxy.await_stderr("draining for at most");
    let ping = frames::frame(PING, 0, 0, &[0; 8]);
    assert_read_slowly(client, proxy, LENGTH, 2 << 10, &ping);
}

#[test]
fn every_kind_of_end_is_numbered_without_a_gap() {
    let event = r#"{"type":"response.completed","response":{}}"#;
    let script = [
        reply(200).json("{}"),
        upstream::Reply::default().reset(),
        reply(500).json("{}"),
        reply(200).sse(&["data: 1\n\n"]),
        upstream::websocket(event),
        upstream::silence(),
    ];
    let upstream = upstream::script(script).run();
    let proxy = proxy::new()
        .upstream_with("main", &upstream, "response_timeout: 500ms")
        .setting("limits: {body: 1KiB}")
        .run();
    for expected in [200, 502, 500, 200] {
        assert_eq!(proxy.client("sk-fast").post(PATH, "{}").status, expected);
    }
    open_socket(&proxy, event);
    let large = object_of(2000);
    for (key, body, expected) in [
        ("sk-fast", &b"{}"[..], 504),
        ("sk-x", b"{}", 401),
        ("sk-fast", b"[", 400),
        ("sk-fast", &large, 413),
    ] {
        assert_eq!(proxy.client(key).post(PATH, body).status, expected);
    }
    let client = proxy.client("sk-fast");
    let mut gone = client.connect();
    gone.send(client.head_of(PATH, 100));
    drop(gone);
    // The WebSocket has a line for its turn and one for itself.
    let count = 4 + 2 + 4 + 1;
    proxy.access_log(count);
    let records = proxy.stop();
    assert_eq!(records.len(), count);
    assert_no_gap(&records);
    upstream.release();
}

/// Opens a WebSocket, asks once, and leaves when the answer is here.
fn open_socket(proxy: &Proxy, answer: &str) {
    let client = proxy.client("sk-fast").upgrade();
    let mut connection = client.connect();
    connection.send(client.head("GET", PATH));
    assert_eq!(connection.head().unwrap().status, 101);
    connection.send(frame(TEXT, br#"{"type":"response.create"}"#, Some([1; 4])));
    let mut heard = vec![0; answer.len() + 2];
    let mut read = 0;
    while read < heard.len() {
        read += connection.read(&mut heard[read..]);
    }
    drop(connection);
    eventually("the lines of the turn and of the socket", || {
        (proxy.log_lines().len() == 6).then_some(())
    });
}

/// Waits for a process that was told to end, and gives its log.
fn ended(mut proxy: Proxy) -> Vec<Value> {
    let status = proxy.wait();
    assert_eq!(status.code(), Some(0), "{}", proxy.stderr());
    records_of(&proxy.log_path())
}
