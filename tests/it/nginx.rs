//! A real server between the proxy and the upstream: nginx, with TLS and HTTP/2, which ends streams late, connections by
//! GOAWAY, and answers early.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::support::proxy::{self, Target};
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

/// None where there is no nginx.
fn nginx_before(upstream: &upstream::Upstream) -> Option<Nginx> {
    let found = Command::new("nginx")
        .arg("-v")
        .stderr(Stdio::null())
        .status();
    if !found.is_ok_and(|status| status.success()) {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let made = tls::certificates();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("cert.pem", &made.certificate);
    write("key.pem", &made.key);
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary = temporary.map(|kind| format!("  {kind}_temp_path {kind};\n"));
    // So few requests on a connection that each client meets its end often.
    write(
        "nginx.conf",
        &format!(
            "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr error;\nevents {{}}\nhttp {{\n\
             {}  access_log off;\n  keepalive_requests 10;\n  server {{\n    listen {address} ssl http2;\n\
             ssl_certificate cert.pem;\n    ssl_certificate_key key.pem;\n    client_max_body_size 1m;\n\
             location / {{ proxy_pass http://{}; proxy_http_version 1.1; proxy_buffering off; }}\n\
             location /v1/models {{ return 200 \"{{}}\"; }}\n  }}\n}}\n",
            temporary.concat(),
            upstream.address
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
    Some(nginx)
}

#[test]
fn all_requests_through_an_nginx_with_http_2_are_answered_and_logged() {
    let upstream = upstream::json(r#"{"a":1}"#).run_plain();
    let Some(nginx) = nginx_before(&upstream) else {
        eprintln!("skipped: there is no `nginx` here");
        return;
    };
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
