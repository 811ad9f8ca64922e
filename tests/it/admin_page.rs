//! The page of the admin listener, and what it shows.

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
