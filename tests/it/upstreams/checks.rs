//! Addresses that are asked whether they work.

use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::proxy::{self, Proxy};
use crate::support::upstream::{self, Reply, nobody, reply};

const PATH: &str = "/v1/responses";

fn proxy_to(urls: &[String], check: &str) -> Proxy {
    let settings = format!("health_check: {{{check}}}");
    proxy::new().upstream_at("main", urls, &settings).run()
}

fn await_check(proxy: &Proxy, place: usize, passes: bool) -> Value {
    eventually("checks", || {
        let told = proxy.status()["upstreams"]["main"]["addresses"][place].clone();
        (told["check_passes"] == passes).then_some(told)
    })
}

#[test]
fn an_address_that_fails_its_checks_gets_no_requests_until_it_passes_them() {
    let fails = reply(503).json("{}");
    let passes = upstream::silence().then_all(reply(200).json("{}"));
    let ill = upstream::script([fails.clone(), fails, passes]).run_plain();
    let well = upstream::json("{}").run_plain();
    let urls = [&ill, &well].map(|upstream| format!("http://{}/base", upstream.address));
    let check = "path: \"/healthz?full=1\", interval: 50ms, unhealthy_threshold: 2";
    let proxy = proxy_to(&urls, check);
    let told = await_check(&proxy, 0, false);
    assert_eq!(
        json!([told["healthy"], told["last_error"]["what"]]),
        json!([false, "check: answer 503"])
    );
    proxy.await_stderr("fails its checks: answer 503");
    let client = proxy.client("sk-fast");
    for _ in 0..6 {
        assert_eq!(client.post(PATH, "{}").status, 200);
    }
    let label = format!("address=\"{}\"", ill.address);
    let gauge = "tiergate_upstream_address_healthy";
    assert_eq!(proxy.metric_of(gauge, &label), 0.0);
    for check in ill.received() {
        assert_eq!(check.request_line(), "GET /healthz?full=1 HTTP/1.1");
        assert_eq!(check.header("host"), [ill.address.to_string()]);
        assert_eq!(check.header("authorization"), [""; 0]);
        assert!(check.header("user-agent")[0].starts_with("tiergate/"));
    }
    ill.release();
    await_check(&proxy, 0, true);
    assert_eq!(proxy.metric_of(gauge, &label), 1.0);
    for _ in 0..6 {
        assert_eq!(client.post(PATH, "{}").status, 200);
    }
    let received = ill.received();
    let posts = received
        .iter()
        .filter(|request| request.request_line().starts_with("POST /base/v1/"));
    assert_eq!(posts.count(), 3);
}

#[test]
fn without_a_path_a_connection_is_enough() {
    let (dead, live) = (nobody(), upstream::json("{}").run_plain());
    let urls = [dead, live.address].map(|address| format!("http://{address}"));
    let proxy = proxy_to(&urls, "interval: 20ms");
    await_check(&proxy, 0, false);
    await_check(&proxy, 1, true);
    assert!(live.received().is_empty());
    let back = upstream::json("{}").run_at(dead);
    await_check(&proxy, 0, true);
    assert!(back.received().is_empty());
}

#[test]
fn an_address_that_does_not_answer_its_checks_in_time_fails_them() {
    let hints = Reply::default().send("HTTP/1.1 103 Early Hints\r\n\r\n");
    for reply in [upstream::silence(), hints.hold()] {
        let silent = upstream::script([reply]).run_plain();
        let urls = [format!("http://{}", silent.address)];
        let proxy = proxy_to(&urls, "path: /, interval: 20ms, timeout: 50ms");
        let told = await_check(&proxy, 0, false);
        assert_eq!(told["last_error"]["what"], "check: no answer within 50ms");
        silent.release();
    }
}

#[test]
fn where_all_addresses_fail_their_checks_all_are_used() {
    let upstreams = [(); 2].map(|()| upstream::script([reply(500).json("{}")]).run_plain());
    let urls = upstreams
        .each_ref()
        .map(|upstream| format!("http://{}", upstream.address));
    let proxy = proxy_to(&urls, "path: /, interval: 1h, unhealthy_threshold: 1");
    for place in 0..2 {
        await_check(&proxy, place, false);
    }
    let client = proxy.client("sk-fast");
    for _ in 0..2 {
        // The upstream's own, not one of the proxy's.
        assert_eq!(client.post(PATH, "{}").status, 500);
    }
    for upstream in &upstreams {
        upstream.requests(2);
    }
    assert_eq!(proxy.admin("/readyz").status, 200);
}

#[test]
fn checks_end_when_the_drain_begins() {
    let held = upstream::silence().then_all(reply(200).json("{}"));
    let upstream = upstream::script([held]).run_plain();
    let urls = [format!("http://{}", upstream.address)];
    let mut proxy = proxy_to(&urls, "interval: 20ms");
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send(client.message(PATH, b"{}"));
    upstream.await_heads(1);
    let seen = upstream.connections();
    eventually("further checks", || {
        (upstream.connections() > seen + 3).then_some(())
    });
    proxy.signal(libc::SIGTERM);
    eventually("the drain", || {
        (proxy.status()["draining"] == true).then_some(())
    });
    let seen = upstream.connections();
    // That nothing happens can only be waited for.
    std::thread::sleep(std::time::Duration::from_millis(300));
    // One may have been under way.
    assert!(upstream.connections() <= seen + 1);
    upstream.release();
    assert_eq!(connection.answer().status, 200);
    assert_eq!(proxy.wait().code(), Some(0));
}
