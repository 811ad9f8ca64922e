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
    for outside in ["http://", "https://", "src=", "href=", "innerHTML"] {
        assert!(!text.contains(outside), "{outside}");
    }
    // Every place that the script fills is there.
    let filled = text.split("put(\"").chain(text.split("fill(\"")).skip(1);
    let ids = filled.filter_map(|rest| rest.split('"').next());
    let ids: Vec<&str> = ids
        .filter(|id| id.chars().all(|sign| sign.is_ascii_lowercase()))
        .collect();
    assert!(ids.len() > 5, "{ids:?}");
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
