//! One process takes over from another: nothing is refused, nothing is broken, no line is missing, and the service manager
//! always knows whom to watch.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;
use support::client::Connection;
use support::proxy::{self, Builder, Proxy};
use support::upstream::{self, Upstream, reply};
use support::{eventually, object_of};
use tempfile::TempDir;

const TAKEOVERS: usize = 10;
const CLIENTS: usize = 3;
const EVENT: &str = "data: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n";
const END: &str =
    "data: {\"type\":\"response.completed\",\"response\":{\"service_tier\":\"priority\"}}\n\n";

/// The service manager's end of the notifications.
struct Manager {
    told: Arc<Mutex<Vec<String>>>,
}

impl Manager {
    fn listen(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = told.clone();
        std::thread::spawn(move || {
            let mut message = [0; 4096];
            while let Ok(length) = socket.recv(&mut message) {
                let text = String::from_utf8(message[..length].to_vec()).unwrap();
                heard.lock().unwrap().push(text);
            }
        });
        Self { told }
    }

    fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }

    /// The processes that have called themselves the main one, in order, once there are so many.
    fn main_processes(&self, count: usize) -> Vec<Pid> {
        eventually("a process that says it is the main one", || {
            let told = self.told();
            let ids = told.iter().filter_map(|text| {
                let id = text.strip_prefix("MAINPID=")?.strip_suffix("\nREADY=1")?;
                Some(Pid::from_raw(id.parse().unwrap()))
            });
            Some(ids.collect::<Vec<_>>()).filter(|ids| ids.len() >= count)
        })
    }

    /// Waits for this message to come once more.
    fn await_another(&self, message: &str) {
        let count = |told: &[String]| told.iter().filter(|text| *text == message).count();
        let before = count(&self.told());
        eventually(message, || (count(&self.told()) > before).then_some(()));
    }
}

/// A folder with the program in it as an installation has it, by a path that can be made to lead elsewhere.
fn folder_with_program() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    symlink(
        env!("CARGO_BIN_EXE_tiergate"),
        folder.path().join("program"),
    )
    .unwrap();
    folder
}

/// Puts another program into its place, in one step.
fn install(folder: &Path, script: &str) {
    let new = folder.join("program.new");
    fs::write(&new, script).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(new, folder.join("program")).unwrap();
}

/// A newer program: it writes down that it was started, and by which arguments, and goes on under its own name.
fn newer_program() -> String {
    let binary = env!("CARGO_BIN_EXE_tiergate");
    format!("#!/bin/bash\necho \"$@\" >> starts\nexec -a \"$0\" {binary} \"$@\"\n")
}

fn upgradable(folder: &TempDir, upstream: &Upstream) -> Builder {
    proxy::new()
        .upstream(upstream)
        .setting("server: {upgrade_socket: upgrade.sock, drain: 20s}")
        .program(folder.path().join("program"))
}

/// Orphans become this process's own children, so that it can wait for them. One test at a time: a child that another
/// one starts would hold a script open for writing for a moment, and the kernel runs no such script.
fn adopt_orphans() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a process that a former one has started to end in good order.
fn await_end(process: Pid) {
    let status = eventually("the end of a process", || {
        match waitpid(process, Some(WaitPidFlag::WNOHANG)).unwrap() {
            WaitStatus::StillAlive => None,
            status => Some(status),
        }
    });
    assert_eq!(status, WaitStatus::Exited(process, 0));
}

/// Clients that ask again and again, each on a connection of its own, until they are told to stop.
fn load(
    proxy: &Proxy,
    stop: &Arc<AtomicBool>,
    done: &Arc<AtomicUsize>,
) -> Vec<std::thread::JoinHandle<()>> {
    let client = proxy.client("sk-plain");
    let ask = |_| {
        let (client, stop, done) = (client.clone(), stop.clone(), done.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let answer = client.post("/v1/responses", object_of(200));
                assert_eq!((answer.status, answer.whole), (200, true), "{answer:?}");
                done.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    (0..CLIENTS).map(ask).collect()
}

#[test]
fn ten_takeovers_under_load_break_nothing_and_lose_no_line() {
    let _alone = adopt_orphans();
    let folder = folder_with_program();
    let manager = Manager::listen(&folder.path().join("manager"));
    let answers = upstream::json(r#"{"id":"resp_1","service_tier":"default"}"#).run();
    let stream = reply(200)
        .sse_begun(&[EVENT])
        .hold()
        .chunk(END)
        .send("0\r\n\r\n");
    let streams = upstream::script([stream]).run();
    let policy = "version: 1\ngroups:\n  plain: {platform: openai, upstream: main}\n  \
         stream: {platform: openai, upstream: streams, force_fast_mode: true}\n\
         keys: {sk-plain: plain, sk-stream: stream}\n";
    // As a service manager starts it: with the id of the first process in the environment.
    let starter = folder.path().join("starter");
    let program = folder.path().join("program");
    fs::write(
        &starter,
        format!(
            "#!/bin/sh\nWATCHDOG_PID=$$ exec {} \"$@\"\n",
            program.display()
        ),
    )
    .unwrap();
    fs::set_permissions(&starter, fs::Permissions::from_mode(0o755)).unwrap();
    let mut proxy = upgradable(&folder, &answers)
        .upstream_with("streams", &streams, "")
        .policy(policy)
        .program(starter)
        .environment(
            "NOTIFY_SOCKET",
            folder.path().join("manager").to_str().unwrap(),
        )
        .environment("WATCHDOG_USEC", "600000")
        .run_in(folder);
    let mut main = manager.main_processes(1)[0];
    install(program.parent().unwrap(), &newer_program());

    let (stop, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let clients = load(&proxy, &stop, &done);
    for round in 1..=TAKEOVERS {
        streams.hold_again();
        let client = proxy.client("sk-stream");
        let mut running = client.connect();
        running.send(client.message("/v1/responses", b"{\"stream\":true}"));
        streams.await_heads(round);

        kill(main, Signal::SIGUSR2).unwrap();
        let new = manager.main_processes(round + 1)[round];
        let before = done.load(Ordering::Relaxed);
        eventually("requests after the takeover", || {
            (done.load(Ordering::Relaxed) > before + CLIENTS).then_some(())
        });
        kill(main, None).expect("the old process is there for as long as its stream runs");
        streams.release();
        let answer = running.answer();
        assert_eq!((answer.status, answer.whole), (200, true));
        assert_eq!(answer.text(), [EVENT, END].concat());
        if round == 1 {
            assert_eq!(proxy.wait().code(), Some(0));
        } else {
            await_end(main);
        }
        main = new;
    }
    // Nobody but the newest is left to feed it.
    manager.await_another("WATCHDOG=1");
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("no request of the load fails");
    }
    assert!(!manager.told().iter().any(|text| text == "STOPPING=1"));
    kill(main, Signal::SIGTERM).unwrap();
    await_end(main);
    assert!(manager.told().iter().any(|text| text == "STOPPING=1"));
    assert_eq!(manager.main_processes(TAKEOVERS + 1).len(), TAKEOVERS + 1);

    let starts = fs::read_to_string(proxy.path("starts")).unwrap();
    let expected = "run --config tiergate.yaml --takeover\n".repeat(TAKEOVERS);
    assert_eq!(starts, expected);
    assert!(!proxy.stderr().contains("watchdog"), "{}", proxy.stderr());
    assert_log_is_whole(&proxy, done.load(Ordering::Relaxed) + TAKEOVERS);
}

/// So many lines, all of different requests, those of each process numbered without a gap.
fn assert_log_is_whole(proxy: &Proxy, count: usize) {
    let lines = proxy.log_lines();
    assert_eq!(lines.len(), count);
    let (mut events, mut numbers) = (BTreeSet::new(), BTreeMap::<String, Vec<u64>>::new());
    for line in &lines {
        let record: Value = serde_json::from_str(line).unwrap();
        assert_eq!(record["outcome"], "ok", "{line}");
        events.insert(record["event_id"].as_str().unwrap().to_owned());
        let instance = record["instance"].as_str().unwrap().to_owned();
        numbers
            .entry(instance)
            .or_default()
            .push(record["seq"].as_u64().unwrap());
    }
    assert_eq!(events.len(), count);
    assert_eq!(numbers.len(), TAKEOVERS + 1);
    for numbers in numbers.values() {
        assert!(numbers.iter().copied().eq(0..numbers.len() as u64));
    }
}

#[test]
fn a_new_program_that_does_not_start_leaves_the_old_one_serving() {
    let _alone = adopt_orphans();
    let folder = folder_with_program();
    let manager = Manager::listen(&folder.path().join("manager"));
    let upstream = upstream::json("{}").run();
    let program = folder.path().join("program");
    let mut proxy = upgradable(&folder, &upstream)
        .environment(
            "NOTIFY_SOCKET",
            folder.path().join("manager").to_str().unwrap(),
        )
        .run_in(folder);
    install(program.parent().unwrap(), "#!/bin/sh\nexit 78\n");
    proxy.signal(libc::SIGUSR2);
    proxy.await_stderr("the new process does not take over (exit status: 78), this one goes on");
    assert_eq!(
        proxy.client("sk-fast").post("/v1/responses", "{}").status,
        200
    );

    install(program.parent().unwrap(), &newer_program());
    proxy.signal(libc::SIGUSR2);
    assert_eq!(proxy.wait().code(), Some(0));
    assert_eq!(
        proxy.client("sk-fast").post("/v1/responses", "{}").status,
        200
    );
    let processes = manager.main_processes(2);
    assert_eq!(processes.len(), 2);
    kill(processes[1], Signal::SIGTERM).unwrap();
    await_end(processes[1]);
}

#[test]
fn an_upgrade_does_not_take_a_policy_that_is_held() {
    let _alone = adopt_orphans();
    let folder = folder_with_program();
    let upstream = upstream::json("{}").run();
    let few = proxy::POLICY;
    let more: String = (0..20)
        .map(|key| format!("  sk-more-{key}: fast\n"))
        .collect();
    let proxy = upgradable(&folder, &upstream)
        .policy(&format!("{few}{more}"))
        .run_in(folder);
    fs::write(proxy.path("policy.yaml"), few).unwrap();
    proxy.await_stderr("would lose more than half of its keys");
    proxy.signal(libc::SIGUSR2);
    proxy.await_stderr("this one goes on");
    proxy.await_stderr("SIGHUP takes it, an upgrade does not");
    let status = |key| proxy.client(key).post("/v1/responses", "{}").status;
    assert_eq!(status("sk-more-7"), 200);
}

#[test]
fn a_unix_socket_is_served_on_over_a_takeover_and_goes_with_the_last_process() {
    let _alone = adopt_orphans();
    let folder = folder_with_program();
    let manager = Manager::listen(&folder.path().join("manager"));
    let path = folder.path().join("front");
    let held = reply(200)
        .sse_begun(&[EVENT])
        .hold()
        .chunk(END)
        .send("0\r\n\r\n");
    let upstream = upstream::script([held]).run_unix(&folder.path().join("back"));
    let mut proxy = upgradable(&folder, &upstream)
        .listener(&format!("\"unix:{}\"", path.display()))
        .environment(
            "NOTIFY_SOCKET",
            folder.path().join("manager").to_str().unwrap(),
        )
        .run_in(folder);
    let message = proxy
        .client("sk-fast")
        .message("/v1/responses", b"{\"stream\":true}");
    let mut running = Connection::open_unix(&path);
    running.send(&message);
    upstream.await_heads(1);
    let inode = fs::metadata(&path).unwrap().ino();
    proxy.signal(libc::SIGUSR2);
    let new = manager.main_processes(2)[1];
    let mut next = Connection::open_unix(&path);
    next.send(&message);
    upstream.await_heads(2);
    upstream.release();
    for mut connection in [running, next] {
        let answer = connection.answer();
        assert_eq!((answer.status, answer.whole), (200, true));
    }
    assert_eq!(proxy.wait().code(), Some(0));
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    let mut after = Connection::open_unix(&path);
    after.send(&message);
    assert_eq!(after.answer().status, 200);
    kill(new, Signal::SIGTERM).unwrap();
    await_end(new);
    assert!(!path.exists());
    assert_eq!(proxy.log_lines().len(), 3);
}

#[test]
fn without_an_upgrade_socket_the_signal_is_refused() {
    let _alone = adopt_orphans();
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    proxy.signal(libc::SIGUSR2);
    proxy.await_stderr("no upgrade: the configuration has no `server.upgrade_socket`");
    assert_eq!(
        proxy.client("sk-fast").post("/v1/responses", "{}").status,
        200
    );
    proxy.stop();
}
