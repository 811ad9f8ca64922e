//! The rules and the dashboard in conf/ speak of metrics that there are.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use support::{proxy, upstream};

fn conf(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(root.join("conf").join(name)).unwrap()
}

/// Every word of a text that is a metric's name, without what a histogram appends to it.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|sign: char| !(sign.is_ascii_lowercase() || sign == '_'));
    let names = words.filter(|word| word.starts_with("tiergate_"));
    names
        .map(|name| name.trim_end_matches("_bucket").to_owned())
        .collect()
}

/// Those that a running proxy has, with traffic or without.
fn catalogue() -> BTreeSet<String> {
    let source = include_str!("../src/metrics.rs");
    let literals = source.split("\"tiergate_").skip(1);
    literals
        .map(|rest| format!("tiergate_{}", rest.split('"').next().unwrap()))
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
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            assert!(!metrics_in(expression).is_empty(), "{expression}");
        }
    }
}

#[test]
fn the_limit_of_the_buffer_is_told() {
    let upstream = upstream::json("{}").run();
    let limits = "limits: {buffered: 5MiB, body: 1MiB, decoded_body: 1MiB}";
    let proxy = proxy::new().upstream(&upstream).setting(limits).run();
    let told = proxy.metric("tiergate_buffered_limit_bytes");
    assert_eq!(told, f64::from(5 << 20));
}
