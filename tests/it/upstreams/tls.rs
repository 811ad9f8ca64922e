//! TLS towards upstreams: who is trusted, what is shown, which name is verified.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ResolvesServerCertUsingSni, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};

use crate::support::command::{run, stdout};
use crate::support::eventually;
use crate::support::proxy::{self, Proxy};
use crate::support::tls::{Certificates, certificates};
use crate::support::upstream::{self, Upstream};

const PATH: &str = "/v1/responses";

fn url(upstream: &Upstream) -> String {
    format!("https://localhost:{}", upstream.address.port())
}

fn trusting(upstream: &Upstream, authority: &str, settings: &str) -> Proxy {
    proxy::new()
        .distrusting()
        .file("ca.pem", authority)
        .upstream_at(
            "main",
            &[url(upstream)],
            &format!("tls: {{ca: ca.pem{settings}}}"),
        )
        .run()
}

fn ask(proxy: &Proxy) -> u16 {
    proxy.client("sk-fast").post(PATH, "{}").status
}

#[test]
fn the_authorities_of_an_upstream_are_trusted_in_place_of_the_systems() {
    let upstream = upstream::json("{}").run();
    let made = certificates();
    assert_eq!(ask(&trusting(&upstream, &made.authority, "")), 200);
    // One of several in a file.
    let others = Certificates::new().authority + &made.authority;
    assert_eq!(ask(&trusting(&upstream, &others, "")), 200);
    let wrong = proxy::new()
        .file("ca.pem", &Certificates::new().authority)
        .upstream_at("main", &[url(&upstream)], "tls: {ca: ca.pem}")
        .run();
    let answer = wrong.client("sk-fast").post(PATH, "{}");
    assert_eq!(
        (answer.status, answer.openai_code().as_str()),
        (502, "upstream_unreachable")
    );
    let status = wrong.status();
    let addresses = status["upstreams"]["main"]["addresses"].to_string();
    assert!(
        addresses.contains("invalid peer certificate"),
        "{addresses}"
    );
    assert_eq!(wrong.record()["service_tier"], serde_json::Value::Null);
    upstream.requests(2);
}

/// A server that demands a certificate of this authority.
fn demanding(authority: &str) -> Arc<ServerConfig> {
    let made = certificates();
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(authority.as_bytes()).unwrap();
    roots.add(authority).unwrap();
    let provider = Arc::new(ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
    let certificate = CertificateDer::from_pem_slice(made.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(made.key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.unwrap())
        .with_single_cert(vec![certificate], key);
    Arc::new(config.unwrap())
}

#[test]
fn an_upstream_that_demands_a_certificate_gets_that_of_its_settings() {
    let clients = Certificates::new();
    let upstream = upstream::json("{}").run_with(demanding(&clients.authority));
    let run = |shown: &Certificates, settings: &str| {
        proxy::new()
            .file("client.pem", &shown.certificate)
            .file("client.key", &shown.key)
            .upstream_at("main", &[url(&upstream)], settings)
            .run()
    };
    let settings = "tls: {cert: client.pem, key: client.key}";
    assert_eq!(ask(&run(&clients, settings)), 200);
    let stranger = Certificates::new();
    for (shown, settings) in [(&stranger, settings), (&clients, "")] {
        let refused = run(shown, settings);
        assert_eq!(ask(&refused), 502);
        assert_eq!(refused.record()["outcome"], "upstream_error");
    }
    upstream.requests(1);
}

/// A server that has a certificate for this name alone, and none for who asks for another or for none.
fn named(name: &str, made: &Certificates) -> Arc<ServerConfig> {
    let certificate = CertificateDer::from_pem_slice(made.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(made.key.as_bytes()).unwrap();
    let provider = ring::default_provider();
    let certified = CertifiedKey::from_der(vec![certificate], key, &provider).unwrap();
    let mut by_name = ResolvesServerCertUsingSni::new();
    by_name.add(name, certified).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(by_name));
    Arc::new(config)
}

#[test]
fn the_name_of_the_settings_is_asked_for_and_verified() {
    let made = Certificates::of("api.internal");
    let upstream = upstream::json("{}").run_with(named("api.internal", &made));
    // By an address too, which could not be verified otherwise.
    let by_address = format!("https://{}", upstream.address);
    for url in [url(&upstream), by_address] {
        for (name, expected) in [("api.internal", 200), ("other.internal", 502)] {
            let proxy = proxy::new()
                .file("ca.pem", &made.authority)
                .upstream_at(
                    "main",
                    std::slice::from_ref(&url),
                    &format!("tls: {{ca: ca.pem, server_name: {name}}}"),
                )
                .run();
            assert_eq!(ask(&proxy), expected, "{url} as {name}");
        }
    }
    let hosts = upstream.requests(2);
    let port = upstream.address.port();
    assert_eq!(hosts[0].header("host"), [format!("localhost:{port}")]);
    assert_eq!(hosts[1].header("host"), [format!("127.0.0.1:{port}")]);
    let unnamed = trusting(&upstream, &made.authority, "");
    assert_eq!(ask(&unnamed), 502);
}

#[test]
fn a_certificate_of_another_name_is_refused() {
    // The server shows it to whoever asks.
    let upstream = upstream::json("{}").run();
    let authority = &certificates().authority;
    let proxy = trusting(&upstream, authority, ", server_name: api.internal");
    assert_eq!(ask(&proxy), 502);
    upstream.requests(0);
}

#[test]
fn changed_files_are_taken_and_kept_connections_of_before_are_not_used() {
    let upstream = upstream::json("{}").run();
    let good = &certificates().authority;
    let proxy = trusting(&upstream, good, "");
    assert_eq!(ask(&proxy), 200);
    let file = proxy.path("ca.pem");
    fs::write(&file, Certificates::new().authority).unwrap();
    eventually("the other authority", || (ask(&proxy) == 502).then_some(()));
    fs::write(&file, "no certificate").unwrap();
    proxy.await_stderr("tls not loaded, the last good one stays: ");
    assert_eq!(ask(&proxy), 502);
    fs::write(&file, good).unwrap();
    eventually("the authority again", || (ask(&proxy) == 200).then_some(()));
}

#[test]
fn kept_connections_outlast_a_reload_that_changes_nothing() {
    let upstream = upstream::json("{}").run();
    let proxy = trusting(
        &upstream,
        &certificates().authority,
        ", cert: cert.pem, key: key.pem",
    );
    assert_eq!(ask(&proxy), 200);
    proxy.signal(libc::SIGHUP);
    proxy.await_stderr("policy loaded");
    assert!(proxy.stderr().contains("upstream `main`: tls loaded"));
    assert_eq!(ask(&proxy), 200);
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn an_upstream_does_not_use_connections_that_another_one_trusts() {
    let upstream = upstream::json("{}").run();
    let policy = "\
version: 1
groups:
  trusting: {platform: openai, upstream: trusting}
  wary: {platform: openai, upstream: wary}
keys: {sk-fast: trusting, sk-plain: wary}
";
    let urls = [url(&upstream)];
    let proxy = proxy::new()
        .policy(policy)
        .file("ca.pem", &Certificates::new().authority)
        .upstream_at("trusting", &urls, "")
        .upstream_at("wary", &urls, "tls: {ca: ca.pem}")
        .run();
    for _ in 0..3 {
        assert_eq!(proxy.client("sk-fast").post(PATH, "{}").status, 200);
        assert_eq!(proxy.client("sk-plain").post(PATH, "{}").status, 502);
    }
    upstream.requests(3);
}

#[test]
fn checks_are_made_with_the_settings_too() {
    let clients = Certificates::new();
    let upstream = upstream::json("{}").run_with(demanding(&clients.authority));
    for (settings, expected) in [(", tls: {cert: c.pem, key: c.key}", true), ("", false)] {
        let settings = format!("health_check: {{path: /, interval: 20ms}}{settings}");
        let proxy = proxy::new()
            .file("c.pem", &clients.certificate)
            .file("c.key", &clients.key)
            .upstream_at(
                "main",
                &[format!("https://localhost:{}", upstream.address.port())],
                &settings,
            )
            .run();
        let here = upstream.address.to_string();
        eventually("checks", || {
            let status = proxy.status();
            let addresses = status["upstreams"]["main"]["addresses"].as_array()?.clone();
            let found = addresses.iter().find(|told| told["address"] == here)?;
            (found["check_passes"] == expected).then_some(())
        });
    }
}

fn check(folder: &Path) -> (Option<i32>, String) {
    let done = run(folder, &["check", "--config", "tiergate.yaml"]);
    (done.status.code(), stdout(&done))
}

#[test]
fn check_names_what_is_wrong_with_the_files_and_where_they_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let (made, other) = (Certificates::new(), Certificates::new());
    write("ca.pem", &made.authority);
    write("c.pem", &made.certificate);
    write("c.key", &made.key);
    write("other.key", &other.key);
    write("none.pem", "nothing");
    let torn = made.certificate.replacen("MII", "MIJ", 1);
    write("torn.pem", &torn);
    write(
        "policy.yaml",
        "version: 1\ngroups: {g: {platform: openai, upstream: a}}\nkeys: {}\n",
    );
    let config = |tls: &str| {
        format!(
            "policy: policy.yaml\nupstreams:\n  a:\n    url: https://h\n    tls: {{{tls}}}\n\
             access_log: {{path: access.log}}\n"
        )
    };
    write(
        "tiergate.yaml",
        &config("ca: ca.pem, cert: c.pem, key: c.key"),
    );
    assert_eq!(
        check(folder.path()).0,
        Some(0),
        "{:?}",
        check(folder.path())
    );
    for (tls, file) in [
        ("ca: gone.pem", "gone.pem"),
        ("ca: none.pem", "none.pem"),
        ("ca: torn.pem", "torn.pem"),
        ("cert: c.pem, key: other.key", "other.key"),
        ("cert: c.pem, key: none.pem", "none.pem"),
        ("cert: torn.pem, key: c.key", "torn.pem"),
    ] {
        write("tiergate.yaml", &config(tls));
        let (code, told) = check(folder.path());
        assert_eq!(code, Some(78), "{tls}: {told}");
        let beginning = format!("tiergate.yaml:5:10: {file}: ");
        assert!(told.starts_with(&beginning), "{tls}: {told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
}
