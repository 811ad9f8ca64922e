//! What monitoring reads: the rules and the dashboard in conf/ speak of metrics that there are, and the journal gets its lines.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::support::command::run;
use crate::support::tls::{self, Certificates};
use crate::support::{eventually, proxy, upstream};
use serde_json::{Value, json};
use tiergate::accounting::metrics::CATALOGUE;

fn conf(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(root.join("conf").join(name)).unwrap()
}

/// Every word of a text that is a metric's name, without what a histogram appends to it.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|sign: char| !(sign.is_ascii_lowercase() || sign == '_'));
    let names = words.filter(|word| word.starts_with("tiergate_") || word.starts_with("process_"));
    names
        .map(|name| {
            let parts = ["_seconds_bucket", "_seconds_count"].into_iter();
            let family = parts.filter_map(|part| name.strip_suffix(part)).next();
            family.map_or(name.to_owned(), |family| format!("{family}_seconds"))
        })
        .collect()
}

/// Those that a running proxy has, with traffic or without.
fn catalogue() -> BTreeSet<String> {
    CATALOGUE
        .iter()
        .map(|metric| metric.name.to_owned())
        .collect()
}

#[test]
fn the_alerts_and_the_dashboard_name_only_metrics_that_there_are() {
    let known = catalogue();
    for name in ["alerts.yml", "grafana-dashboard.json"] {
        let named = metrics_in(&conf(name));
        assert!(named.len() > 7, "{name} names {named:?}");
        let unknown: Vec<_> = named.difference(&known).collect();
        assert!(unknown.is_empty(), "{name} names {unknown:?}");
    }
}

#[test]
fn the_dashboard_shows_every_metric() {
    let shown = metrics_in(&conf("grafana-dashboard.json"));
    let missing: Vec<_> = catalogue().difference(&shown).cloned().collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_panel_has_a_place_and_a_query_of_its_own() {
    let dashboard: Value = serde_json::from_str(&conf("grafana-dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut places = BTreeSet::new();
    for panel in panels {
        assert!(places.insert(panel["gridPos"].to_string()), "{panel}");
        if panel["type"] == "row" {
            continue;
        }
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            assert!(!metrics_in(expression).is_empty(), "{expression}");
        }
    }
}

#[test]
fn every_alert_has_a_description_and_its_place_in_the_runbook() {
    let alerts = conf("alerts.yml");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let runbook = fs::read_to_string(root.join("docs/operations.md")).unwrap();
    let alerts: Vec<&str> = alerts.split("- alert: ").skip(1).collect();
    assert!(alerts.len() > 20);
    for alert in alerts {
        let name = alert.lines().next().unwrap();
        for part in ["labels: {severity: ", "summary: ", "description: "] {
            assert!(alert.contains(part), "{name} has no {part}");
        }
        let anchor = format!("runbook: docs/operations.md#{}", name.to_lowercase());
        assert!(alert.contains(&anchor), "{name}: {anchor}");
        assert!(runbook.contains(&format!("\n### {name}\n")), "{name}");
    }
}

#[test]
fn the_process_tells_of_itself() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    assert_eq!(
        proxy.client("sk-none").post("/v1/responses", "{}").status,
        401
    );
    let resident = proxy.metric("process_resident_memory_bytes");
    assert!(resident > 1e6 && resident < 1e9, "{resident}");
    assert!(proxy.metric("process_open_fds") < proxy.metric("process_max_fds"));
    assert!(proxy.metric("process_start_time_seconds") > 1.7e9);
    eventually("the refused request", || {
        (proxy.metric_of("tiergate_responses_total", "status=\"401\"") == 1.0).then_some(())
    });
}

#[test]
fn the_limit_of_the_buffer_is_told() {
    let upstream = upstream::json("{}").run();
    let limits = "limits: {buffered: 5MiB, body: 1MiB, decoded_body: 1MiB}";
    let proxy = proxy::new().upstream(&upstream).setting(limits).run();
    let told = proxy.metric("tiergate_buffered_limit_bytes");
    assert_eq!(told, f64::from(5 << 20));
}

#[test]
fn the_end_of_a_certificate_is_told_and_follows_its_file() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).tls().run();
    let ends = "tiergate_certificate_expiry_timestamp_seconds";
    let listener = format!("listener=\"{}\"", proxy.tls_address);
    assert_eq!(
        proxy.metric_of(ends, &listener),
        seconds("4000-01-01T00:00:00Z")
    );
    assert_eq!(
        proxy.metric(ends),
        proxy.metric_of(ends, &listener),
        "only listeners with TLS"
    );

    let renewed = Certificates::good_until(4005);
    fs::write(proxy.path("key.pem"), &renewed.key).unwrap();
    fs::write(proxy.path("cert.pem"), &renewed.certificate).unwrap();
    let told = eventually("the new certificate", || {
        let listeners = proxy.status()["listeners"].clone();
        (listeners[1]["certificate_expires_at"] != "4000-01-01T00:00:00Z").then_some(listeners)
    });
    let expected = json!([
        {"address": proxy.address.to_string(), "certificate_expires_at": null},
        {"address": proxy.tls_address.to_string(), "certificate_expires_at": "4005-01-01T00:00:00Z"},
    ]);
    assert_eq!(told, expected);
    assert_eq!(proxy.metric(ends), seconds("4005-01-01T00:00:00Z"));
}

#[test]
fn a_chain_ends_with_the_first_of_its_certificates() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).tls().run();
    let made = tls::certificates();
    let chain = format!("{}{}", made.certificate, made.authority);
    fs::write(proxy.path("cert.pem"), chain).unwrap();
    let ends = || proxy.metric("tiergate_certificate_expiry_timestamp_seconds");
    eventually("the end of the authority's certificate", || {
        (ends() == seconds("3999-01-01T00:00:00Z")).then_some(())
    });
}

fn seconds(time: &str) -> f64 {
    let time: jiff::Timestamp = time.parse().unwrap();
    time.as_second() as f64
}

/// What the proxy says on stderr when it is told that its stderr is this stream of the journal.
fn said_to(stream: impl Fn(&fs::Metadata) -> String) -> String {
    let upstream = upstream::json("{}").run();
    let folder = tempfile::tempdir().unwrap();
    // The file is kept when the proxy is started with it.
    let stderr = fs::File::create(folder.path().join("stderr")).unwrap();
    let stream = stream(&stderr.metadata().unwrap());
    let proxy = proxy::new()
        .upstream(&upstream)
        .environment("JOURNAL_STREAM", &stream)
        .run_in(folder);
    proxy.await_stderr("serves on");
    proxy.stderr()
}

#[test]
fn lines_for_the_journal_begin_with_their_priority() {
    let said = said_to(|file| format!("{}:{}", file.dev(), file.ino()));
    assert!(said.starts_with("<6>tiergate "), "{said}");
    let elsewhere = said_to(|file| format!("{}:{}", file.dev(), file.ino() + 1));
    assert!(elsewhere.contains("Z INFO  tiergate "), "{elsewhere}");
}

#[test]
fn a_certificate_that_is_not_good_now_is_warned_of() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).tls().run();
    let write = |made: &Certificates| {
        // At once: between the two they do not fit.
        fs::write(proxy.path("key.pem"), &made.key).unwrap();
        fs::write(proxy.path("cert.pem"), &made.certificate).unwrap();
    };
    let expired = Certificates::good_until(2000);
    write(&expired);
    let told = "cert.pem: the certificate has expired on 2000-01-01";
    proxy.await_stderr(told);
    let checked = run(proxy.path("."), &["check", "--config", "tiergate.yaml"]);
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(said.contains(&format!("warning: {told}")), "{said}");
    assert_eq!(checked.status.code(), Some(0));
    // A key of another one keeps the last, and says so until it is put right.
    fs::write(proxy.path("key.pem"), Certificates::new().key).unwrap();
    let told = "ok, with the last good certificate cert.pem:\n";
    eventually("/readyz", || {
        proxy.admin("/readyz").text().contains(told).then_some(())
    });
    proxy.await_stderr("key.pem: the key is not that of the certificate cert.pem");
    fs::write(proxy.path("key.pem"), &expired.key).unwrap();
    eventually("/readyz", || {
        (proxy.admin("/readyz").text() == "ok\n").then_some(())
    });
}
