//! The page of the admin listener, and what it shows.

use std::fs;

use crate::support::client::Client;
use crate::support::upstream::{self, reply};
use crate::support::{eventually, proxy};
use serde_json::json;

#[test]
fn the_page_is_whole_in_itself() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let page = proxy.admin("/");
    assert_eq!(page.status, 200);
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    let text = page.text();
    for outside in ["http://", "https://", "src=", "url(", "innerHTML"] {
        assert!(!text.contains(outside), "{outside}");
    }
    let links = text.split("href=\"").skip(1);
    let links: Vec<&str> = links.filter_map(|rest| rest.split('"').next()).collect();
    assert_eq!(links, ["status", "metrics", "readyz", "healthz"]);
    // Every place that the script fills is there.
    let calls = ["put(\"", "fill(\"", "tile(\"", "chart(\""];
    let filled = calls.iter().flat_map(|call| text.split(call).skip(1));
    let ids = filled.filter_map(|rest| rest.split('"').next());
    let ids: Vec<&str> = ids
        .filter(|id| id.chars().all(|sign| sign.is_ascii_lowercase()))
        .collect();
    assert!(ids.len() > 15, "{ids:?}");
    for id in ids {
        assert!(text.contains(&format!("id=\"{id}\"")), "{id}");
    }
}

#[test]
fn the_status_has_what_each_group_has_done() {
    let answer = r#"{"service_tier":"default","usage":{"input_tokens":7,"output_tokens":3}}"#;
    let upstream = upstream::script([reply(200).json(answer)]).run();
    let proxy = proxy::new().upstream(&upstream).run();
    assert_eq!(
        proxy.client("sk-fast").post("/v1/responses", "{}").status,
        200
    );
    assert_eq!(
        proxy.client("sk-fast").post("/v1/responses", "{").status,
        400
    );
    proxy.access_log(2);
    let groups = eventually("the sums", || {
        let groups = proxy.status()["groups"].clone();
        (groups["fast"]["outcomes"]["rejected"] == 1).then_some(groups)
    });
    let fast = json!({"outcomes": {"ok": 1, "rejected": 1}, "service_tiers": {"none": 1, "priority": 1},
        "tokens": 10, "downgraded": 1, "in_flight": 0});
    assert_eq!(groups["fast"], fast);
    let plain =
        json!({"outcomes": {}, "service_tiers": {}, "tokens": 0, "downgraded": 0, "in_flight": 0});
    assert_eq!(groups["plain"], plain);
}

fn problems(proxy: &proxy::Proxy) -> Vec<(String, String)> {
    let status = proxy.status();
    let told = status["problems"].as_array().unwrap().iter();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    told.map(|problem| (text(&problem["severity"]), text(&problem["what"])))
        .collect()
}

#[test]
fn nothing_is_wrong_while_all_is_well() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let answer = proxy.client("sk-plain").post("/v1/responses", "{}");
    assert_eq!((answer.status, problems(&proxy)), (200, Vec::new()));
}

#[test]
fn what_is_wrong_is_told_the_worst_first() {
    let proxy = proxy::new()
        .upstream_with("main", &upstream::nobody(), "retries: 0")
        .run();
    fs::write(proxy.path("policy.yaml"), "version: 1\ngroups: 7\n").unwrap();
    let told = eventually("both", || {
        proxy.client("sk-plain").post("/v1/responses", "{}");
        let told = problems(&proxy);
        let has = |part: &str| told.iter().any(|(_, what)| what.contains(part));
        (has("policy file") && has("is down")).then_some(told)
    });
    let expected = ("critical".to_owned(), "upstream `main` is down".to_owned());
    assert_eq!(told[0], expected);
    assert_eq!(told.last().unwrap().0, "warning");
}

#[test]
fn the_last_hour_and_what_was_spent_are_told() {
    let answer = r#"{"model":"m","service_tier":"priority","usage":{"input_tokens":1000000,"output_tokens":0}}"#;
    let upstream = upstream::json(answer).run();
    let prices =
        "version: 1\nprices: [{models: [m], tiers: {priority: {input: 2.5, output: 1}}}]\n";
    let proxy = proxy::new().upstream(&upstream).prices(prices).run();
    // The first sample is of the start.
    assert_eq!(
        proxy.client("sk-fast").post("/v1/responses", "{}").status,
        200
    );
    let status = eventually("the request", || {
        let status = proxy.status();
        (status["history"]["hour"]["requests"] == 1).then_some(status)
    });
    let hour = &status["history"]["hour"];
    assert_eq!(hour["service_tiers"]["priority"], 1);
    assert!(hour["first_byte_p50"].as_f64().unwrap() > 0.0);
    assert_eq!(
        (&hour["failed"], &hour["denied"], &hour["downgraded"]),
        (&json!(0), &json!(0), &json!(0))
    );
    assert_eq!(status["spent_today"]["usd"], 2.5);
    assert_eq!(status["spent_today"]["groups"]["fast"], 2.5);
}

#[test]
fn a_page_of_another_site_learns_nothing_by_this_address() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let ask = |host: &str, path: &str| {
        let mut connection = Client::new(proxy.admin).connect();
        connection.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        connection.answer()
    };
    for path in ["/", "/status", "/metrics", "/readyz"] {
        assert_eq!(ask("rebound.example:9464", path).status, 421, "{path}");
        assert_eq!(ask("localhost:9464", path).status, 200, "{path}");
        assert_eq!(ask("[::1]:9464", path).status, 200, "{path}");
    }
}

#[test]
fn a_browser_takes_nothing_from_elsewhere_and_shows_it_in_no_frame() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    for path in ["/", "/status", "/metrics", "/healthz", "/nothing"] {
        let answer = proxy.admin(path);
        for (name, value) in [
            ("x-frame-options", "DENY"),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{path}");
        }
        let policy = answer.header("content-security-policy").expect(path);
        assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    }
    let nonce = || {
        let page = proxy.admin("/");
        let policy = page.header("content-security-policy").unwrap();
        let nonce = policy.split("'nonce-").nth(1).unwrap();
        let nonce = nonce.split('\'').next().unwrap().to_owned();
        let inline = page.text().matches(&format!("nonce=\"{nonce}\"")).count();
        assert_eq!(inline, 2, "{policy}");
        nonce
    };
    assert_ne!(nonce(), nonce());
}

#[test]
fn a_price_file_that_cannot_be_taken_is_told_of() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .prices("version: 1\nprices: []\n")
        .run();
    assert_eq!(proxy.status()["prices"]["outcome"], "success");
    fs::write(proxy.path("prices.yaml"), "version: 1\nprices: 7\n").unwrap();
    let told = eventually("the mistake", || {
        let prices = proxy.status()["prices"].clone();
        (prices["outcome"] == "failure").then_some(prices)
    });
    assert!(
        told["last_error"]
            .as_str()
            .unwrap()
            .contains("prices.yaml:2:")
    );
    let ready = proxy.admin("/readyz");
    assert_eq!(ready.status, 200);
    assert!(ready.text().contains("prices.yaml:2:"), "{ready:?}");
}
