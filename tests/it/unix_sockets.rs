//! UNIX sockets in the place of TCP, on both sides of the proxy: a web server in front and a gateway behind on the same host.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::client::{Answer, Connection};
use crate::support::command::{run, stdout};
use crate::support::eventually;
use crate::support::proxy::{self, Builder, Proxy, Target};
use crate::support::upstream::{self, Upstream, reply};
use crate::support::websocket::frame;

const PATH: &str = "/v1/responses";
const EVENT: &str = "data: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n";
const END: &str =
    "data: {\"type\":\"response.completed\",\"response\":{\"service_tier\":\"priority\"}}\n\n";
const TEXT: u8 = 0x81;

/// A folder with the sockets of a test.
struct Sockets(TempDir);

impl Sockets {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn address(&self, name: &str) -> String {
        format!("unix:{}", self.path(name).display())
    }

    /// A proxy that listens on `front` as well.
    fn proxy(&self, upstream: &Upstream) -> Builder {
        proxy::new()
            .upstream(upstream)
            .listener(&format!("{:?}", self.address("front")))
    }

    fn connect(&self) -> Connection<UnixStream> {
        Connection::open_unix(&self.path("front"))
    }

    fn post(&self, proxy: &Proxy, body: &[u8]) -> Answer {
        let mut connection = self.connect();
        connection.send(proxy.client("sk-fast").message(PATH, body));
        connection.answer()
    }
}

fn tiergate(folder: &Path, command: &str) -> Output {
    run(folder, &[command, "--config", "tiergate.yaml"])
}

/// A configuration that listens at these addresses, and its policy.
fn configure(folder: &Path, listen: &str, admin: &str) {
    let config = format!(
        "listen: {listen:?}\nadmin: {admin:?}\npolicy: policy.yaml\n\
         access_log: {{path: access.log}}\nupstreams: {{main: {{url: \"unix:/run/x:/base\", credential_file: null}}}}\n"
    );
    fs::write(folder.join("tiergate.yaml"), config).unwrap();
    fs::write(folder.join("policy.yaml"), proxy::POLICY).unwrap();
}

#[test]
fn a_forced_request_goes_from_one_socket_to_the_other() {
    let sockets = Sockets::new();
    let upstream = upstream::json(r#"{"id":"resp_1","service_tier":"priority"}"#)
        .run_unix(&sockets.path("back"));
    let proxy = sockets.proxy(&upstream).run();
    let mut connection = sockets.connect();
    for _ in 0..2 {
        connection.send(proxy.client("sk-fast").message(PATH, br#"{"model":"m"}"#));
        let answer = connection.answer();
        assert_eq!((answer.status, answer.whole), (200, true));
    }
    for request in upstream.requests(2) {
        assert_eq!(request.request_line(), "POST /v1/responses HTTP/1.1");
        assert_eq!(request.header("host"), ["localhost"]);
        assert_eq!(request.text(), r#"{"service_tier":"priority","model":"m"}"#);
    }
    assert_eq!(upstream.connections(), 1);
    for record in proxy.access_log(2) {
        assert_eq!(
            json!([record["client"], record["service_tier"], record["outcome"]]),
            json!([null, "priority", "ok"])
        );
    }
    let status = proxy.status();
    let address = &status["upstreams"]["main"]["addresses"][0];
    assert_eq!(address["address"], sockets.address("back"));
    assert_eq!(status["listeners"][1]["address"], sockets.address("front"));
    let label = format!("address=\"{}\"", sockets.address("back"));
    let healthy = proxy.metric_of("tiergate_upstream_address_healthy", &label);
    assert_eq!(healthy, 1.0);
    proxy.await_stderr(&format!("upstreams main {}", sockets.address("back")));
}

#[test]
fn a_prefix_stands_behind_the_socket_and_a_colon() {
    let sockets = Sockets::new();
    let upstream = upstream::json("{}").run_unix(&sockets.path("back"));
    let url = format!("{}:/base/", sockets.address("back"));
    let proxy = proxy::new().upstream_at("main", &[url], "").run();
    assert_eq!(proxy.client("sk-fast").post(PATH, "{}").status, 200);
    let request = upstream.request();
    assert_eq!(request.request_line(), "POST /base/v1/responses HTTP/1.1");
}

#[test]
fn a_stream_comes_piece_by_piece() {
    let sockets = Sockets::new();
    let stream = reply(200)
        .sse_begun(&[EVENT])
        .hold()
        .chunk(END)
        .send("0\r\n\r\n");
    let upstream = upstream::script([stream]).run_unix(&sockets.path("back"));
    let proxy = sockets.proxy(&upstream).run();
    let mut connection = sockets.connect();
    connection.send(proxy.client("sk-fast").message(PATH, br#"{"stream":true}"#));
    assert_eq!(connection.head().unwrap().status, 200);
    assert_eq!(connection.chunk().unwrap(), EVENT.as_bytes());
    upstream.release();
    assert_eq!(connection.chunk().unwrap(), END.as_bytes());
    assert_eq!(connection.chunk(), None);
    let record = proxy.record();
    assert_eq!(
        json!([record["transport"], record["service_tier_served"]]),
        json!(["sse", "priority"])
    );
}

#[test]
fn a_websocket_goes_from_one_socket_to_the_other() {
    let sockets = Sockets::new();
    let event = r#"{"type":"response.completed","response":{}}"#;
    let upstream = upstream::script([upstream::websocket(event)]).run_unix(&sockets.path("back"));
    let proxy = sockets.proxy(&upstream).run();
    let upgrade = proxy.client("sk-fast").upgrade();
    let mut connection = sockets.connect();
    connection.send(upgrade.head("GET", PATH));
    assert_eq!(connection.head().unwrap().status, 101);
    connection.send(frame(TEXT, br#"{"type":"response.create"}"#, Some([1; 4])));
    let mut answer = vec![0; event.len() + 2];
    let mut read = 0;
    while read < answer.len() {
        read += connection.read(&mut answer[read..]);
    }
    assert_eq!(&answer[2..], event.as_bytes());
    drop(connection);
    let heard = upstream.requests(2).remove(1);
    assert!(heard.text().contains(r#""service_tier":"priority""#));
    let records = eventually("the lines of the turn and of the connection", || {
        Some(proxy.log_lines()).filter(|lines| lines.len() == 2)
    });
    let turn: Value = serde_json::from_str(&records[0]).unwrap();
    assert_eq!(
        json!([turn["client"], turn["transport"], turn["service_tier"]]),
        json!([null, "websocket", "priority"])
    );
}

#[test]
fn who_connects_to_a_socket_is_believed_where_the_configuration_says_so() {
    let sockets = Sockets::new();
    let upstream = upstream::json("{}").run_unix(&sockets.path("back"));
    for (trusted, client) in [
        ("[10.0.0.0/8]", json!(null)),
        ("[\"unix:\"]", json!("203.0.113.9")),
    ] {
        let proxy = sockets
            .proxy(&upstream)
            .setting(&format!("trusted_proxies: {trusted}"))
            .setting("limits: {connections_per_client: 1}")
            .run();
        // The limit is for addresses.
        let mut connections = [sockets.connect(), sockets.connect()];
        let client_of_proxy = proxy
            .client("sk-fast")
            .header("X-Forwarded-For", "203.0.113.9");
        for connection in &mut connections {
            connection.send(client_of_proxy.message(PATH, b"{}"));
            assert_eq!(connection.answer().status, 200);
        }
        for record in proxy.access_log(2) {
            assert_eq!(record["client"], client);
        }
        proxy.stop();
    }
}

#[test]
fn the_proxy_protocol_names_the_client_of_a_socket() {
    let sockets = Sockets::new();
    let upstream = upstream::json("{}").run_unix(&sockets.path("back"));
    let entry = format!(
        "{{address: {:?}, proxy_protocol: true}}",
        sockets.address("front")
    );
    let proxy = proxy::new().upstream(&upstream).listener(&entry).run();
    let mut connection = sockets.connect();
    connection.send("PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n");
    connection.send(proxy.client("sk-fast").message(PATH, b"{}"));
    assert_eq!(connection.answer().status, 200);
    assert_eq!(proxy.record()["client"], "192.0.2.7");
}

#[test]
fn the_file_is_for_owner_and_group_and_goes_with_the_process() {
    let sockets = Sockets::new();
    let upstream = upstream::json("{}").run_unix(&sockets.path("back"));
    let proxy = sockets.proxy(&upstream).run();
    let mode = fs::metadata(sockets.path("front")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o660);
    proxy.stop();
    assert!(!sockets.path("front").exists());
}

#[test]
fn a_file_that_has_taken_the_place_of_the_socket_stays() {
    let sockets = Sockets::new();
    let upstream = upstream::json("{}").run_unix(&sockets.path("back"));
    let proxy = sockets.proxy(&upstream).run();
    fs::remove_file(sockets.path("front")).unwrap();
    let _other = UnixListener::bind(sockets.path("front")).unwrap();
    proxy.stop();
    assert!(sockets.path("front").exists());
}

#[test]
fn the_file_of_a_dead_process_is_replaced() {
    let sockets = Sockets::new();
    let upstream = upstream::json("{}").run_unix(&sockets.path("back"));
    let mut dead = sockets.proxy(&upstream).run();
    dead.kill();
    assert!(sockets.path("front").exists());
    let proxy = sockets.proxy(&upstream).run();
    assert_eq!(sockets.post(&proxy, b"{}").status, 200);
}

#[test]
fn a_start_and_check_say_what_is_in_the_way() {
    let sockets = Sockets::new();
    let folder = sockets.0.path();
    let live = UnixListener::bind(sockets.path("live")).unwrap();
    drop(UnixListener::bind(sockets.path("stale")).unwrap());
    fs::write(sockets.path("file"), "").unwrap();
    let free = upstream::nobody().to_string();
    for (name, fault) in [
        ("live", Some("Address already in use")),
        ("file", Some("there is a file, and it is no socket")),
        ("nowhere/socket", Some("No such file or directory")),
        ("stale", None),
        ("new", None),
    ] {
        let address = sockets.address(name);
        for (listen, admin) in [(&address, &free), (&free, &address)] {
            configure(folder, listen, admin);
            let checked = tiergate(folder, "check");
            let Some(fault) = fault else {
                assert_eq!(stdout(&checked), "");
                assert_eq!(checked.status.code(), Some(0));
                continue;
            };
            let told = stdout(&checked);
            let line = format!(": cannot listen on {address}: {fault}");
            assert!(told.contains(&line), "{told}");
            assert_eq!(checked.status.code(), Some(78));
            let started = tiergate(folder, "run");
            let told = String::from_utf8(started.stderr).unwrap();
            let line = format!("cannot listen on {address}: {fault}");
            assert!(told.contains(&line), "{told}");
            assert_eq!(started.status.code(), Some(1));
        }
    }
    // A check leaves nothing behind, and nothing away.
    assert!(!sockets.path("new").exists() && sockets.path("stale").exists());
    drop(live);
}

#[test]
fn the_admin_listener_is_found_by_its_socket() {
    let sockets = Sockets::new();
    let upstream = upstream::json("{}").run_unix(&sockets.path("back"));
    let mut proxy = sockets
        .proxy(&upstream)
        .admin_at(&sockets.address("admin"))
        .run();
    let folder = proxy.path("");
    let health = tiergate(&folder, "health");
    assert_eq!(health.status.code(), Some(0), "{health:?}");
    let reload = tiergate(&folder, "reload");
    assert_eq!(reload.status.code(), Some(0), "{reload:?}");
    // The proxy that runs is to be replaced by that of the same files.
    let checked = tiergate(&folder, "check");
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    proxy.signal(libc::SIGTERM);
    assert_eq!(proxy.wait().code(), Some(0));
    assert!(!sockets.path("admin").exists());
    let health = tiergate(&folder, "health");
    let told = String::from_utf8(health.stderr).unwrap();
    let expected = format!("no proxy answers at {}", sockets.address("admin"));
    assert!(told.contains(&expected), "{told}");
}

#[test]
fn an_upstream_without_its_socket_is_unreachable_until_it_is_back() {
    let sockets = Sockets::new();
    let check = "health_check: {interval: 20ms}, retries: 0";
    let proxy = proxy::new()
        .upstream_at("main", &[sockets.address("back")], check)
        .run();
    let answer = proxy.client("sk-fast").post(PATH, "{}");
    assert_eq!(
        (answer.status, answer.openai_code().as_str()),
        (502, "upstream_unreachable")
    );
    let told = || proxy.status()["upstreams"]["main"]["addresses"][0].clone();
    eventually("a failed check", || {
        (told()["check_passes"] == false).then_some(())
    });
    proxy.await_stderr("no connection: no such file or directory");
    let _upstream = upstream::json("{}").run_unix(&sockets.path("back"));
    eventually("a check that passes", || {
        (told()["check_passes"] == true).then_some(())
    });
    assert_eq!(proxy.client("sk-fast").post(PATH, "{}").status, 200);
}

#[test]
fn a_socket_that_fails_is_ejected_and_others_take_its_requests() {
    let sockets = Sockets::new();
    let upstream = upstream::json("{}").run_unix(&sockets.path("back"));
    let urls = [sockets.address("dead"), upstream.url()];
    let proxy = proxy::new()
        .upstream_at("main", &urls, "ejection: {consecutive_failures: 1}")
        .run();
    for _ in 0..4 {
        assert_eq!(proxy.client("sk-fast").post(PATH, "{}").status, 200);
    }
    upstream.requests(4);
    let told = &proxy.status()["upstreams"]["main"]["addresses"][0];
    assert_eq!(
        json!([told["healthy"], told["last_error"]["what"]]),
        json!([false, "no connection: no such file or directory"])
    );
    assert_eq!(proxy.metric("tiergate_upstream_ejections_total"), 1.0);
}

#[test]
fn explain_shows_the_socket_and_the_path() {
    let folder = tempfile::tempdir().unwrap();
    configure(folder.path(), "127.0.0.1:1", "127.0.0.1:2");
    let arguments = ["explain", "--config", "tiergate.yaml", "--name", "fiona"];
    let explained = run(folder.path(), &arguments);
    let told = stdout(&explained);
    assert!(told.contains("unix:/run/x:/base/v1/responses"), "{told}");
}
