//! Which address a request goes to, and what becomes of addresses that fail.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::command::{run, stdout};
use crate::support::proxy::{self, Proxy};
use crate::support::upstream::{self, Reply, Upstream, nobody, reply};
use crate::support::{eventually, object_of};

const PATH: &str = "/v1/responses";
/// An ejection that no test waits out.
const FOR_GOOD: &str = "ejection: {base_time: 1h, max_time: 1h}";

fn url(address: impl ToString) -> String {
    format!("http://{}", address.to_string())
}

fn proxy_to(urls: &[String], settings: &str) -> Proxy {
    proxy::new().upstream_at("main", urls, settings).run()
}

/// What the status says of the address at that place among the URLs.
fn told(proxy: &Proxy, place: usize) -> Value {
    proxy.status()["upstreams"]["main"]["addresses"][place].clone()
}

fn retries(proxy: &Proxy) -> f64 {
    proxy.metric("tiergate_upstream_retries_total")
}

fn ejections(proxy: &Proxy) -> f64 {
    proxy.metric("tiergate_upstream_ejections_total")
}

fn healthy(proxy: &Proxy, address: SocketAddr) -> f64 {
    let label = format!("address=\"{address}\"");
    proxy.metric_of("tiergate_upstream_address_healthy", &label)
}

fn statuses(proxy: &Proxy, count: usize) -> Vec<u16> {
    let client = proxy.client("sk-fast");
    (0..count).map(|_| client.post(PATH, "{}").status).collect()
}

#[test]
fn requests_go_to_all_addresses_in_turn_each_with_its_host_and_prefix() {
    let (first, second) = (
        upstream::json("1").run_plain(),
        upstream::json("2").run_plain(),
    );
    let urls = [url(first.address), url(second.address) + "/base"];
    let proxy = proxy_to(&urls, "");
    let client = proxy.client("sk-fast");
    let answers = [(); 6].map(|()| client.post(PATH, "{}").text().to_owned());
    assert_eq!(answers.join(""), "121212");
    for request in first.requests(3) {
        assert_eq!(request.request_line(), "POST /v1/responses HTTP/1.1");
        assert_eq!(request.header("host"), [first.address.to_string()]);
    }
    for request in second.requests(3) {
        assert_eq!(request.request_line(), "POST /base/v1/responses HTTP/1.1");
        assert_eq!(request.header("host"), [second.address.to_string()]);
    }
    assert_eq!(retries(&proxy), 0.0);
    let told = [told(&proxy, 0), told(&proxy, 1)].map(|told| told["url"].clone());
    assert_eq!(told, urls.map(Value::from));
}

#[test]
fn explain_names_every_url() {
    let proxy = proxy_to(&["http://a.test/x".to_owned(), url("b.test:81")], "");
    let arguments = ["explain", "--key", "sk-fast", "--config", "tiergate.yaml"];
    let told = stdout(&run(proxy.path(""), &arguments));
    assert!(
        told.contains("main, http://a.test/x, http://b.test:81 "),
        "{told}"
    );
}

#[test]
fn a_forced_request_is_forced_wherever_it_ends_up() {
    let (dead, live) = (nobody(), upstream::json("{}").run_plain());
    let proxy = proxy_to(
        &[url(dead), url(live.address)],
        "ejection: {consecutive_failures: 0}",
    );
    let client = proxy.client("sk-fast");
    for size in [100, 100_000, 3_000_000] {
        for _ in 0..2 {
            assert_eq!(client.post(PATH, object_of(size)).status, 200);
            let chunked = client.post_chunked(PATH, &[br#"{"input""#, br#":"x"}"#]);
            assert_eq!(chunked.status, 200);
        }
    }
    for request in live.requests(12) {
        assert!(request.whole && request.text().starts_with(r#"{"service_tier":"priority""#));
    }
    assert_eq!(retries(&proxy), 6.0);
    for record in proxy.stop() {
        assert_eq!(
            json!([
                record["service_tier"],
                record["outcome"],
                record["upstream"]
            ]),
            json!(["priority", "ok", "main"])
        );
    }
}

#[test]
fn an_address_that_refuses_is_ejected() {
    let (dead, live) = (nobody(), upstream::json("{}").run_plain());
    let proxy = proxy_to(&[url(dead), url(live.address)], FOR_GOOD);
    assert_eq!(statuses(&proxy, 20), [200; 20]);
    // Three requests met it.
    assert_eq!((retries(&proxy), ejections(&proxy)), (3.0, 1.0));
    assert_eq!(
        (healthy(&proxy, dead), healthy(&proxy, live.address)),
        (0.0, 1.0)
    );
    let told = [told(&proxy, 0), told(&proxy, 1)];
    assert_eq!(
        json!([
            told[0]["address"],
            told[0]["healthy"],
            told[0]["failures"],
            told[0]["check_passes"]
        ]),
        json!([dead.to_string(), false, 3, null])
    );
    let what = told[0]["last_error"]["what"].as_str().unwrap();
    assert!(what.contains("connection refused"), "{what}");
    assert!(told[0]["ejected_until"].is_string() && told[0]["last_error"]["at"].is_string());
    assert_eq!(
        json!([
            told[1]["healthy"],
            told[1]["ejected_until"],
            told[1]["last_error"]
        ]),
        json!([true, null, null])
    );
    proxy.await_stderr(&format!("{dead} is ejected for 3600s: "));
    // Requests find their way, so the proxy can serve.
    assert_eq!(proxy.admin("/readyz").status, 200);
}

#[test]
fn an_address_gets_one_request_after_its_ejection_and_all_of_its_share_once_that_fares_well() {
    let (back, live) = (nobody(), upstream::json("{}").run_plain());
    let settings = "ejection: {consecutive_failures: 1, base_time: 100ms, max_time: 200ms}";
    let proxy = proxy_to(&[url(back), url(live.address)], settings);
    eventually("ejections one after the other", || {
        assert_eq!(statuses(&proxy, 1), [200]);
        (ejections(&proxy) >= 3.0).then_some(())
    });
    assert_eq!(healthy(&proxy, back), 0.0);
    let back = upstream::json("{}").run_at(back);
    eventually("a request at the address", || {
        assert_eq!(statuses(&proxy, 1), [200]);
        (!back.received().is_empty()).then_some(())
    });
    assert_eq!(healthy(&proxy, back.address), 1.0);
    proxy.await_stderr(&format!("{} is back", back.address));
    let before = back.received().len();
    assert_eq!(statuses(&proxy, 6), [200; 6]);
    back.requests(before + 3);
}

#[test]
fn where_all_addresses_are_ejected_all_are_used() {
    let [first, second] = [nobody(), nobody()];
    let proxy = proxy_to(&[url(first), url(second)], FOR_GOOD);
    for status in statuses(&proxy, 4) {
        assert_eq!(status, 502);
    }
    assert_eq!(ejections(&proxy), 2.0);
    for record in proxy.access_log(4) {
        assert_eq!(record["error"], "upstream_unreachable");
    }
    assert_eq!(proxy.admin("/readyz").status, 200);
    let second = upstream::json("{}").run_at(second);
    assert_eq!(statuses(&proxy, 4), [200; 4]);
    assert_eq!(
        (healthy(&proxy, first), healthy(&proxy, second.address)),
        (0.0, 1.0)
    );
}

#[test]
fn the_only_address_is_used_whatever_happens_there() {
    let dead = nobody();
    let proxy = proxy_to(&[url(dead)], FOR_GOOD);
    assert_eq!(statuses(&proxy, 5), [502; 5]);
    assert_eq!((retries(&proxy), healthy(&proxy, dead)), (0.0, 0.0));
    let live = upstream::json("{}").run_at(dead);
    assert_eq!(statuses(&proxy, 1), [200]);
    assert_eq!(healthy(&proxy, live.address), 1.0);
}

/// So many requests, each of which goes to the failing address in its turn, and how that fares then.
fn turns(failing: &Upstream, settings: &str, count: usize) -> (Vec<u16>, f64) {
    let live = upstream::json("{}").run_plain();
    let proxy = proxy_to(&[url(failing.address), url(live.address)], settings);
    let statuses = statuses(&proxy, count);
    let healthy = healthy(&proxy, failing.address);
    (statuses, healthy)
}

#[test]
fn an_address_that_ends_new_connections_without_an_answer_is_ejected() {
    for reply in [Reply::default().reset(), Reply::default().close()] {
        let failing = upstream::script([reply]).run_plain();
        let (statuses, healthy) = turns(&failing, FOR_GOOD, 10);
        // The server may have begun to work on it, so no request is sent again.
        assert_eq!(statuses, [502, 200, 502, 200, 502, 200, 200, 200, 200, 200]);
        assert_eq!(healthy, 0.0);
        failing.requests(3);
    }
}

#[test]
fn the_end_of_a_kept_connection_does_not_speak_against_its_address() {
    let turns_of = |first: Reply| [first, Reply::default().reset()];
    let replies = [(); 6].map(|()| turns_of(reply(200).json("{}")));
    let failing = upstream::script(replies.concat()).run_plain();
    let settings = "ejection: {consecutive_failures: 1, base_time: 1h, max_time: 1h}";
    let (statuses, healthy) = turns(&failing, settings, 12);
    assert_eq!(
        statuses,
        [200, 200, 502, 200, 200, 200, 502, 200, 200, 200, 502, 200]
    );
    assert_eq!(healthy, 1.0);
}

#[test]
fn an_answer_does_not_speak_against_its_address_whatever_its_status() {
    for status in [400, 429, 500, 503] {
        let failing = upstream::script([reply(status).json("{}")]).run_plain();
        let (statuses, healthy) = turns(&failing, FOR_GOOD, 10);
        assert_eq!(statuses, [status, 200].repeat(5));
        assert_eq!(healthy, 1.0);
    }
}

#[test]
fn gateway_errors_speak_against_their_address_where_the_settings_say_so() {
    let settings =
        "ejection: {consecutive_failures: 2, base_time: 1h, max_time: 1h, gateway_errors: true}";
    for (status, expected) in [(502, 0.0), (503, 0.0), (504, 0.0), (500, 1.0), (429, 1.0)] {
        let failing = upstream::script([reply(status).json("{}")]).run_plain();
        let (statuses, healthy) = turns(&failing, settings, 8);
        let failed = statuses.iter().filter(|found| **found == status).count();
        assert_eq!(failed, if expected == 0.0 { 2 } else { 4 }, "{status}");
        assert_eq!(healthy, expected, "{status}");
    }
}

#[test]
fn a_slow_answer_does_not_speak_against_its_address() {
    let failing = upstream::script([upstream::silence()]).run_plain();
    let settings =
        "response_timeout: 200ms, ejection: {consecutive_failures: 1, base_time: 1h, max_time: 1h}";
    let (statuses, healthy) = turns(&failing, settings, 4);
    assert_eq!(statuses, [504, 200, 504, 200]);
    assert_eq!(healthy, 1.0);
    failing.release();
}

#[test]
fn so_many_attempts_are_made_and_no_more() {
    let live = upstream::json("{}").run_plain();
    let dead = [(); 3].map(|()| nobody());
    let urls: Vec<String> = dead
        .map(url)
        .into_iter()
        .chain([url(live.address)])
        .collect();
    for (retries, expected) in [(0, 502), (2, 502), (3, 200), (9, 200)] {
        let proxy = proxy_to(&urls, &format!("retries: {retries}"));
        assert_eq!(statuses(&proxy, 1), [expected], "{retries} retries");
        let made = proxy.metric("tiergate_upstream_retries_total");
        assert_eq!(made, f64::from(retries.min(3)));
        proxy.access_log(1);
    }
}

#[test]
fn no_address_is_tried_twice_for_one_request_that_got_no_connection() {
    let proxy = proxy_to(&[url(nobody()), url(nobody())], "retries: 9");
    assert_eq!(statuses(&proxy, 1), [502]);
    assert_eq!(retries(&proxy), 1.0);
}

#[test]
fn a_web_socket_goes_to_an_address_that_works() {
    let switch = Reply::default()
        .send("HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .hold();
    let (dead, live) = (nobody(), upstream::script([switch]).run_plain());
    let proxy = proxy_to(&[url(dead), url(live.address)], FOR_GOOD);
    let client = proxy.client("sk-fast").upgrade();
    let open: Vec<_> = (0..8)
        .map(|_| {
            let mut connection = client.connect();
            connection.send(client.head("GET", PATH));
            assert_eq!(connection.head().unwrap().status, 101);
            connection
        })
        .collect();
    live.await_heads(8);
    assert_eq!((retries(&proxy), ejections(&proxy)), (3.0, 1.0));
    drop(open);
    live.release();
}

/// A socket that takes no connection and refuses none: its queue is full.
struct Mute {
    listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl Mute {
    #[allow(unsafe_code)]
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // SAFETY: the descriptor is open; listening again only makes the queue shorter.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
        let address = listener.local_addr().unwrap();
        let limit = Duration::from_millis(100);
        let queued = std::iter::from_fn(|| TcpStream::connect_timeout(&address, limit).ok());
        let queued = queued.take(10).collect();
        Self {
            listener,
            _queued: queued,
        }
    }
}

#[test]
fn an_address_that_takes_no_connection_is_ejected() {
    let (mute, live) = (Mute::new(), upstream::json("{}").run_plain());
    let address = mute.listener.local_addr().unwrap();
    let proxy = proxy_to(
        &[url(address), url(live.address)],
        &format!("connect_timeout: 150ms, {FOR_GOOD}"),
    );
    assert_eq!(statuses(&proxy, 12), [200; 12]);
    assert_eq!((retries(&proxy), ejections(&proxy)), (3.0, 1.0));
    let told = told(&proxy, 0);
    let what = told["last_error"]["what"].as_str().unwrap();
    assert!(
        what.contains("no connection within the time for it"),
        "{what}"
    );
}

#[test]
fn a_request_without_any_address_that_answers_in_time_is_timed_out() {
    let mute = Mute::new();
    let address = mute.listener.local_addr().unwrap();
    let proxy = proxy_to(&[url(address)], "connect_timeout: 150ms");
    let answer = proxy.client("sk-fast").post(PATH, "{}");
    assert_eq!(
        (answer.status, answer.openai_code().as_str()),
        (504, "upstream_timeout")
    );
}

#[test]
fn a_name_without_an_address_is_an_upstream_that_cannot_be_reached() {
    for settings in ["", "messages: responses, models: [{match: \"*\"}]"] {
        let proxy = proxy_to(&["http://nowhere.invalid".to_owned()], settings);
        proxy.await_stderr("cannot resolve `nowhere.invalid`");
        let path = if settings.is_empty() {
            PATH
        } else {
            "/v1/messages"
        };
        let body = r#"{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"a"}]}"#;
        assert_eq!(proxy.client("sk-fast").post(path, body).status, 502);
        let record = proxy.record();
        assert_eq!(record["outcome"], "upstream_error");
        assert_eq!(record["error"], "upstream_unreachable");
    }
}

#[test]
fn an_address_is_not_blamed_where_the_proxy_has_no_descriptor_for_it() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    let mut connections: Vec<_> = (0..5).map(|_| client.connect()).collect();
    eventually("they are accepted", || {
        (proxy.metric("tiergate_connections") == 5.0).then_some(())
    });
    proxy.limit_descriptors(0);
    for connection in &mut connections {
        connection.send(client.message("/v1/responses", b"{}"));
        let answer = connection.answer();
        assert_eq!(answer.status, 502);
        assert!(answer.text().contains("upstream_unreachable"), "{answer:?}");
    }
    proxy.limit_descriptors(u64::MAX);
    assert_eq!(client.post("/v1/responses", b"{}").status, 200);
    assert_eq!(ejections(&proxy), 0.0);
}
