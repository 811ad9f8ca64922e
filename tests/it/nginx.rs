//! A real server on either side of the proxy: nginx between it and the upstream, with TLS and HTTP/2, which ends streams late,
//! connections by GOAWAY, and answers early; and before it, by the sample of conf/.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::support::client::Client;
use crate::support::proxy::{self, Proxy, Target};
use crate::support::upstream::{Reply, reply};
use crate::support::{eventually, object_of, tls, upstream};

const PATH: &str = "/v1/responses";
const CLIENTS: usize = 6;
const REQUESTS: usize = 40;

struct Nginx {
    child: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Target for Nginx {
    fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where there is no nginx, the test says so.
fn is_installed() -> bool {
    let found = Command::new("nginx")
        .arg("-v")
        .stderr(Stdio::null())
        .status();
    let is_installed = found.is_ok_and(|status| status.success());
    if !is_installed {
        eprintln!("skipped: there is no `nginx` here");
    }
    is_installed
}

/// With what stands in its block `http`, which has it listen there.
fn run_nginx(address: SocketAddr, http: &str) -> Nginx {
    let folder = tempfile::tempdir().unwrap();
    let made = tls::certificates();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("cert.pem", &made.certificate);
    write("key.pem", &made.key);
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary = temporary.map(|kind| format!("  {kind}_temp_path {kind};\n"));
    write(
        "nginx.conf",
        &format!(
            "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr error;\nevents {{}}\nhttp {{\n\
             {}  access_log off;\n{http}}}\n",
            temporary.concat(),
        ),
    );
    let child = Command::new("nginx")
        .arg("-p")
        .arg(folder.path())
        .args(["-e", "stderr", "-c", "nginx.conf"])
        .stderr(fs::File::create(folder.path().join("stderr")).unwrap())
        .spawn()
        .unwrap();
    let mut nginx = Nginx {
        child,
        address,
        _folder: folder,
    };
    eventually("nginx listens", || {
        TcpStream::connect(address).ok().map(drop)
    });
    assert!(nginx.child.try_wait().unwrap().is_none(), "nginx ended");
    nginx
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

fn nginx_before_upstream(upstream: &upstream::Upstream) -> Nginx {
    let address = free_address();
    // So few requests on a connection that each client meets its end often.
    let http = format!(
        "  keepalive_requests 10;\n  server {{\n    listen {address} ssl http2;\n    ssl_certificate cert.pem;\n    \
         ssl_certificate_key key.pem;\n    client_max_body_size 1m;\n    \
         location / {{ proxy_pass http://{}; proxy_http_version 1.1; proxy_buffering off; }}\n    \
         location /v1/models {{ return 200 \"{{}}\"; }}\n  }}\n",
        upstream.address
    );
    run_nginx(address, &http)
}

/// The sample, with the addresses and files of a test.
fn nginx_before_proxy(proxy: &Proxy) -> Nginx {
    let address = free_address();
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/nginx.conf");
    let sample = fs::read_to_string(sample).unwrap();
    let here = [
        ("listen 443 ssl", format!("listen {address}")),
        ("127.0.0.1:8080", proxy.address.to_string()),
        ("/etc/ssl/gate.pem", "cert.pem".to_owned()),
        ("/etc/ssl/private/gate.key", "key.pem".to_owned()),
    ];
    let http = here.iter().fold(sample, |text, (sample, here)| {
        assert!(text.contains(sample), "{sample}");
        text.replace(sample, here)
    });
    run_nginx(address, &http)
}

#[test]
fn all_requests_through_an_nginx_with_http_2_are_answered_and_logged() {
    if !is_installed() {
        return;
    }
    let upstream = upstream::json(r#"{"a":1}"#).run_plain();
    let nginx = nginx_before_upstream(&upstream);
    let proxy = proxy::new().upstream(&nginx).run();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let proxy = &proxy;
            scope.spawn(move || {
                for request in 0..REQUESTS {
                    // What passes as it comes can be sent again up to the 64 KiB that Pingora keeps.
                    let (key, most) = [("sk-fast", 100_000), ("sk-plain", 60_000)][request % 2];
                    let body = object_of([70, 3_000, most][(client + request) % 3]);
                    let answer = proxy.client(key).post(PATH, &body);
                    let told = (answer.status, answer.whole, answer.text());
                    assert_eq!(told, (200, true, r#"{"a":1}"#), "{client} {request}");
                    // Answered without a look at the body, which may not even be read.
                    let early = proxy
                        .client("sk-plain")
                        .post("/v1/models", object_of(60_000));
                    assert_eq!((early.status, early.text()), (200, "{}"));
                }
            });
        }
    });
    // More than it takes of a body.
    for key in ["sk-fast", "sk-plain"] {
        let refused = proxy.client(key).post(PATH, object_of(3 << 20));
        assert_eq!(refused.status, 413, "{key}");
    }
    upstream.requests(CLIENTS * REQUESTS);
    let records = proxy.stop();
    assert_eq!(records.len(), 2 * CLIENTS * REQUESTS + 2);
    let failed: Vec<_> = records
        .iter()
        .filter(|record| record["status"] != 200)
        .collect();
    assert_eq!(failed.len(), 2, "{failed:#?}");
}

#[test]
fn a_head_that_nginx_finds_too_long_ends_no_other_request() {
    if !is_installed() {
        return;
    }
    let event = "data: {\"type\":\"response.completed\"}\n\n";
    let upstream = upstream::script([reply(200).sse_begun(&[event]).hold().chunk(event).chunk("")]);
    let upstream = upstream.run_plain();
    let nginx = nginx_before_upstream(&upstream);
    let proxy = proxy::new().upstream(&nginx).run();
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send(client.message(PATH, b"{}"));
    assert_eq!(connection.head().unwrap().status, 200);
    for length in [9_000, 40_000] {
        let client = client.clone().header("X-Long", &"l".repeat(length));
        assert_eq!(client.post(PATH, "{}").status, 400, "{length}");
    }
    upstream.release();
    let events = std::iter::from_fn(|| connection.chunk());
    assert_eq!(
        events.collect::<Vec<_>>().concat(),
        event.repeat(2).as_bytes()
    );
}

#[test]
fn the_sample_for_an_nginx_in_front_passes_everything_on_as_it_comes() {
    if !is_installed() {
        return;
    }
    let agreed = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Accept: x\r\n\r\n";
    let upstream = upstream::script([
        reply(200)
            .sse_begun(&["data: 1\n\n"])
            .hold()
            .send("0\r\n\r\n"),
        Reply::default().send(agreed).hold(),
    ])
    .run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("trusted_proxies: [127.0.0.1]")
        .run();
    let nginx = nginx_before_proxy(&proxy);
    let client = Client::new(nginx.address)
        .header("Authorization", "Bearer sk-fast")
        .header("session_id", "s-1")
        .header("X-Forwarded-For", "203.0.113.9");

    // More than nginx takes by default, and an event that does not wait for the end of its stream.
    let body = object_of(3 << 20);
    let mut connection = client.connect();
    connection.send(client.message(PATH, &body));
    assert_eq!(connection.head().unwrap().status, 200);
    assert_eq!(connection.chunk().unwrap(), b"data: 1\n\n");
    upstream.release();
    assert_eq!(connection.chunk(), None);
    let request = upstream.request();
    assert_eq!(request.header("session_id"), ["s-1"]);
    assert!(request.body.len() > 3 << 20);
    assert_eq!(proxy.record()["client"], "203.0.113.9");

    let client = client.upgrade();
    let mut connection = client.connect();
    connection.send(client.head("GET", PATH));
    assert_eq!(connection.head().unwrap().status, 101);
}
