//! `state` on a server of Redis or Valkey: what two proxies share by it, and what is left where it is gone, slow, empty or
//! refuses. The server is the real one.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use redis::Commands;
use serde_json::{Value, json};

use crate::support::command::{self, stdout};
use crate::support::proxy::{self, Builder, Proxy};
use crate::support::redis::{redis, redis_with};
use crate::support::upstream::{self, Upstream, reply};
use crate::support::{eventually, tls};

const PATH: &str = "/v1/responses";
const BODY: &str = r#"{"model":"big"}"#;
/// A request is 0.014 USD.
const ANSWER: &str = r#"{"id":"resp_1","model":"big","status":"completed","service_tier":"priority","usage":{"input_tokens":1000,"input_tokens_details":{"cached_tokens":200},"output_tokens":50}}"#;
const COST: f64 = 0.014;
const PRICES: &str = "\
version: 1
prices:
  - models: [big]
    tiers:
      default: {input: 5, cached_input: 0.5, output: 30}
      priority: {input: 12.5, cached_input: 1.25, output: 75}
";
const PASSWORD: &str = "hunter-2-hunter-2";

fn policy(limit: &str, then: &str) -> String {
    format!(
        "version: 1\ngroups:\n  fast: {{platform: openai, force_fast_mode: true, \
         budget: {{usd: \"{limit}\", per: month, then: {then}}}}}\nkeys:\n  sk-fast: {{group: fast, name: fiona}}\n"
    )
}

/// A proxy of the fleet.
fn member(upstream: &Upstream, limit: &str, state: &str) -> Builder {
    proxy::new()
        .policy(&policy(limit, "standard"))
        .prices(PRICES)
        .upstream(upstream)
        .setting(&format!("state: {state}"))
}

fn ask(proxy: &Proxy) -> u16 {
    proxy.client("sk-fast").post(PATH, BODY).status
}

fn spent(proxy: &Proxy) -> f64 {
    let status = proxy.status();
    let spent = status["budgets"][0]["spent_usd"].as_str().unwrap();
    spent.parse().unwrap()
}

fn await_spent(proxy: &Proxy, requests: usize) {
    let sum = COST * requests as f64;
    eventually(&format!("{sum} USD are spent"), || {
        ((spent(proxy) - sum).abs() < 1e-9).then_some(())
    });
}

fn readiness(proxy: &Proxy) -> String {
    let answer = proxy.admin("/readyz");
    assert_eq!(answer.status, 200);
    answer.text().to_owned()
}

fn await_readiness(proxy: &Proxy, part: &str) {
    eventually(&format!("`{part}` at /readyz"), || {
        readiness(proxy).contains(part).then_some(())
    });
}

fn tiers(proxy: &Proxy, count: usize) -> Vec<Value> {
    let records = proxy.access_log(count);
    let tiers = records.iter().map(|record| record["service_tier"].clone());
    tiers.collect()
}

#[test]
fn two_proxies_share_one_limit_and_tell_each_other_at_once() {
    let Some(redis) = redis() else { return };
    let upstream = upstream::json(ANSWER).run();
    let proxies = [(); 2].map(|()| member(&upstream, "0.083", &redis.url()).run());
    let mut quickest = Duration::MAX;
    for request in 0..6 {
        let [asked, other] = [&proxies[request % 2], &proxies[1 - request % 2]];
        assert_eq!(ask(asked), 200);
        let asked_at = Instant::now();
        await_spent(other, request + 1);
        quickest = quickest.min(asked_at.elapsed());
    }
    assert!(quickest < Duration::from_millis(250), "{quickest:?}");
    // 0.084 USD are more than the limit.
    for proxy in &proxies {
        assert_eq!(ask(proxy), 200);
        let expected = json!(["priority", "priority", "priority", null]);
        assert_eq!(Value::from(tiers(proxy, 4)), expected);
        assert_eq!(readiness(proxy), "ok\n");
    }
    // Whatever is written has this program's name, and goes by itself.
    let mut client = redis.client();
    let keys: Vec<String> = client.keys("*").unwrap();
    assert!(keys.len() >= 3, "{keys:?}");
    for key in keys {
        assert!(key.starts_with("tiergate:"), "{key}");
        let left: i64 = client.ttl(&key).unwrap();
        assert!(left > 6 * 24 * 3600, "{key}: {left}");
    }
}

#[test]
fn what_is_in_flight_is_all_that_goes_over_a_shared_limit() {
    const IN_FLIGHT: usize = 4;
    let Some(redis) = redis() else { return };
    let held = upstream::script([upstream::silence().then_all(reply(200).json(ANSWER))]).run();
    let proxies = [(); 2].map(|()| member(&held, "0.01", &redis.url()).run());
    std::thread::scope(|scope| {
        let members = proxies.iter().cycle().take(IN_FLIGHT);
        let asking: Vec<_> = members
            .map(|proxy| scope.spawn(move || ask(proxy)))
            .collect();
        held.await_heads(IN_FLIGHT);
        held.release();
        for asked in asking {
            assert_eq!(asked.join().unwrap(), 200);
        }
    });
    proxies
        .iter()
        .for_each(|proxy| await_spent(proxy, IN_FLIGHT));
    for proxy in &proxies {
        assert_eq!(ask(proxy), 200);
        let tiers = tiers(proxy, IN_FLIGHT / 2 + 1);
        assert_eq!(tiers.last(), Some(&Value::Null));
    }
}

#[test]
fn sums_are_there_after_a_restart() {
    let Some(redis) = redis() else { return };
    let upstream = upstream::json(ANSWER).run();
    let run = || member(&upstream, "5", &redis.url()).run();
    for asked in 0..2 {
        let proxy = run();
        await_spent(&proxy, asked);
        ask(&proxy);
        proxy.stop();
    }
    let (mut killed, other) = (run(), run());
    ask(&killed);
    await_spent(&other, 3);
    killed.kill();
    other.stop();
    await_spent(&run(), 3);
}

#[test]
fn a_server_that_dies_under_load_and_comes_back_empty_fails_no_request_and_gets_its_sums_back() {
    let Some(mut redis) = redis() else { return };
    let upstream = upstream::json(ANSWER).run();
    // One that has ended by then: nobody but the others knows what it spent.
    let ended = member(&upstream, "1000", &redis.url()).run();
    ask(&ended);
    ended.stop();
    let proxies = [(); 2].map(|()| member(&upstream, "1000", &redis.url()).run());
    proxies.iter().for_each(|proxy| await_spent(proxy, 1));
    let (over, asked) = (AtomicBool::new(false), AtomicUsize::new(1));
    std::thread::scope(|scope| {
        for proxy in &proxies {
            let (over, asked) = (&over, &asked);
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    assert_eq!(ask(proxy), 200);
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let seen = asked.load(Ordering::SeqCst);
        let goes_on = |seen: usize| {
            eventually("requests go on", || {
                (asked.load(Ordering::SeqCst) > seen + 20).then_some(())
            });
        };
        goes_on(seen);
        redis.kill();
        for proxy in &proxies {
            await_readiness(
                proxy,
                "ok, with the last known sums of budgets:\nRedis at 127.0.0.1:",
            );
            proxy.await_stderr("`state` cannot be used");
        }
        goes_on(asked.load(Ordering::SeqCst));
        redis.start_again();
        for proxy in &proxies {
            proxy.await_stderr("`state` is used again, after ");
            assert_eq!(readiness(proxy), "ok\n");
        }
        over.store(true, Ordering::SeqCst);
    });
    let asked = asked.into_inner();
    let fresh = member(&upstream, "1000", &redis.url()).run();
    for proxy in proxies.iter().chain([&fresh]) {
        await_spent(proxy, asked);
    }
    for proxy in &proxies {
        let told = proxy.stderr().matches("`state` cannot be used").count();
        assert_eq!(told, 1, "{}", proxy.stderr());
        assert!(proxy.metric("tiergate_state_errors_total") >= 1.0);
    }
}

#[test]
fn a_server_that_is_emptied_gets_its_sums_back() {
    let Some(redis) = redis() else { return };
    let upstream = upstream::json(ANSWER).run();
    let run = || member(&upstream, "5", &redis.url()).run();
    let proxies = [run(), run()];
    for proxy in &proxies {
        ask(proxy);
    }
    proxies.iter().for_each(|proxy| await_spent(proxy, 2));
    let mut client = redis.client();
    let () = redis::cmd("FLUSHALL").query(&mut client).unwrap();
    eventually("what the server has lost", || {
        let keys: Vec<String> = client.keys("tiergate:budget:*").unwrap();
        let spent: usize = client.hlen(keys.first()?).unwrap();
        (spent == 2).then_some(())
    });
    await_spent(&run(), 2);
}

#[test]
fn what_is_over_or_gone_leaves_the_index() {
    let Some(redis) = redis() else { return };
    let over = "tiergate:budget:day:0:86400:-:fast";
    let mut client = redis.client();
    let () = client.hset(over, "another", "1").unwrap();
    let () = client.zadd("tiergate:index", over, 1).unwrap();
    let upstream = upstream::json(ANSWER).run();
    let proxy = member(&upstream, "5", &redis.url()).run();
    assert_eq!(readiness(&proxy), "ok\n");
    // Though nothing was written yet.
    let left: i64 = client.ttl("tiergate:sequence").unwrap();
    assert!(left > 0, "{left}");
    let () = client
        .zadd("tiergate:index", "tiergate:background:gone", 2)
        .unwrap();
    ask(&proxy);
    eventually("an index of what there is", || {
        let keys: Vec<String> = client.zrange("tiergate:index", 0, -1).unwrap();
        (keys.len() == 1 && keys[0].starts_with("tiergate:budget:month:")).then_some(())
    });
    assert_eq!(readiness(&proxy), "ok\n");
}

/// Passes everything on to the server, but for the answer to the first exchange that writes something once it is told to.
fn losing_an_answer(server: SocketAddr, loses: &Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, loses) = (listener.local_addr().unwrap(), loses.clone());
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut to = TcpStream::connect(server).unwrap();
            let (mut from, mut back) = (to.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut back));
            let loses = loses.clone();
            std::thread::spawn(move || {
                let mut piece = [0; 65_536];
                while let Ok(length @ 1..) = client.read(&mut piece) {
                    let text = String::from_utf8_lossy(&piece[..length]);
                    if text.contains("EXPIREAT") && loses.swap(false, Ordering::SeqCst) {
                        client.shutdown(Shutdown::Both).unwrap();
                    }
                    if to.write_all(&piece[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[test]
fn what_was_written_though_the_answer_was_lost_counts_once() {
    let Some(redis) = redis() else { return };
    let upstream = upstream::json(ANSWER).run();
    let loses = Arc::new(AtomicBool::new(false));
    let relay = losing_an_answer(redis.address, &loses);
    let proxy = member(&upstream, "5", &format!("redis://{relay}")).run();
    let other = member(&upstream, "5", &redis.url()).run();
    for round in 1..=3 {
        loses.store(true, Ordering::SeqCst);
        ask(&proxy);
        await_spent(&other, round);
        assert!(!loses.load(Ordering::SeqCst));
        eventually("the server is used again", || {
            (proxy.stderr().matches("is used again").count() == round).then_some(())
        });
        await_spent(&proxy, round);
    }
    ask(&proxy);
    await_spent(&proxy, 4);
    await_spent(&other, 4);
}

#[test]
fn a_server_that_does_not_answer_keeps_no_request_waiting() {
    let Some(redis) = redis() else { return };
    let upstream = upstream::json(ANSWER).run_plain();
    let proxy = member(&upstream, "1000", &redis.url()).run();
    ask(&proxy);
    redis.signal(libc::SIGSTOP);
    let mut times = Vec::new();
    let begun = Instant::now();
    let mut asked = 1;
    while begun.elapsed() < Duration::from_secs(3) {
        let asked_at = Instant::now();
        assert_eq!(ask(&proxy), 200);
        // The end of a response that may have been made in the background.
        let fetched = proxy.client("sk-fast").get("/v1/responses/resp_1");
        assert_eq!(fetched.status, 200);
        times.push(asked_at.elapsed());
        asked += 1;
    }
    await_readiness(&proxy, "no answer within 1 s");
    times.sort_unstable();
    let usual = times[times.len() / 2];
    assert!(usual < Duration::from_millis(20), "{usual:?}");
    assert!(
        *times.last().unwrap() < Duration::from_millis(500),
        "{times:?}"
    );
    redis.signal(libc::SIGCONT);
    proxy.await_stderr("`state` is used again");
    let other = member(&upstream, "1000", &redis.url()).run();
    await_spent(&other, asked);
}

#[test]
fn without_its_server_a_proxy_starts_and_counts_in_memory() {
    let Some(mut redis) = redis() else { return };
    redis.kill();
    let upstream = upstream::json(ANSWER).run();
    let proxy = member(&upstream, "0.02", &redis.url()).run();
    await_readiness(&proxy, "last known sums");
    for _ in 0..3 {
        assert_eq!(ask(&proxy), 200);
    }
    assert_eq!(tiers(&proxy, 3)[2], Value::Null);
    redis.start_again();
    proxy.await_stderr("`state` is used again");
    let other = member(&upstream, "0.02", &redis.url()).run();
    await_spent(&other, 3);
}

#[test]
fn a_wrong_password_is_told_once_and_a_corrected_one_is_taken() {
    let Some(redis) = redis_with(|port, _| format!("--port {port} --requirepass {PASSWORD}"))
    else {
        return;
    };
    let upstream = upstream::json(ANSWER).run();
    let state = format!("{{url: \"{}\", password_file: password}}", redis.url());
    let run = |password: &str| {
        member(&upstream, "5", &state)
            .file("password", password)
            .run()
    };
    let proxy = run("not-the-password\n");
    await_readiness(&proxy, "last known sums");
    assert_eq!(ask(&proxy), 200);
    eventually("further attempts", || {
        (proxy.metric("tiergate_state_errors_total") >= 3.0).then_some(())
    });
    fs::write(proxy.path("password"), format!("{PASSWORD}\n")).unwrap();
    proxy.await_stderr("`state` is used again");
    let other = run(PASSWORD);
    await_spent(&other, 1);
    let told = proxy.stderr();
    assert_eq!(told.matches("cannot be used").count(), 1, "{told}");
    for secret in [PASSWORD, "not-the-password"] {
        assert!(!told.contains(secret), "{told}");
        assert!(!proxy.status().to_string().contains(secret));
    }
}

#[test]
fn a_server_with_tls_is_used_if_its_certificate_is_trusted() {
    let with_tls = |port: u16, folder: &Path| {
        let made = tls::certificates();
        fs::write(folder.join("cert.pem"), &made.certificate).unwrap();
        fs::write(folder.join("key.pem"), &made.key).unwrap();
        format!(
            "--port 0 --tls-port {port} --tls-cert-file cert.pem --tls-key-file key.pem --tls-auth-clients no"
        )
    };
    let Some(redis) = redis_with(with_tls) else {
        return;
    };
    let upstream = upstream::json(ANSWER).run_plain();
    let url = format!("rediss://localhost:{}/3", redis.address.port());
    let proxy = member(&upstream, "5", &url).run();
    assert_eq!(ask(&proxy), 200);
    assert_eq!(readiness(&proxy), "ok\n");
    let other = member(&upstream, "5", &url).run();
    await_spent(&other, 1);
    let distrusting = member(&upstream, "5", &url).distrusting().run();
    await_readiness(&distrusting, "last known sums");
    assert!(
        distrusting.stderr().contains("certificate"),
        "{}",
        distrusting.stderr()
    );
    assert_eq!(ask(&distrusting), 200);
}

#[test]
fn a_user_with_the_documented_rights_is_enough() {
    let manual = fs::read_to_string("docs/operations.md").unwrap();
    let user = manual
        .lines()
        .find(|line| line.starts_with("user tiergate "));
    let user = user.unwrap().replace("PASSWORD", PASSWORD);
    let Some(redis) = redis_with(|port, _| format!("--port {port} --{user}")) else {
        return;
    };
    let upstream = background();
    let state = format!(
        "{{url: \"redis://tiergate@{}/1\", password_file: password}}",
        redis.address
    );
    let run = || {
        member(&upstream, "5", &state)
            .file("password", PASSWORD)
            .run()
    };
    let proxies = [run(), run()];
    for proxy in &proxies {
        assert_eq!(readiness(proxy), "ok\n");
    }
    let client = |proxy: &Proxy| proxy.client("sk-fast");
    client(&proxies[0]).post(PATH, r#"{"model":"big","background":true}"#);
    proxies[0].access_log(1);
    client(&proxies[1]).get("/v1/responses/resp_1");
    client(&proxies[0]).get("/v1/responses/resp_1");
    assert_eq!(billed(&proxies, [2, 1]), 1);
    await_spent(&proxies[0], 1);
    for proxy in &proxies {
        assert_eq!(readiness(proxy), "ok\n");
    }
    let arguments = ["budget", "--config", "tiergate.yaml", "--format", "csv"];
    let told = stdout(&command::run(proxies[0].path(""), &arguments));
    assert!(told.contains("fast,,month,5,0.014,0.0028,"), "{told}");
    redis.assert_no_denials();
}

/// An upstream that makes a response in the background, which is done at once.
fn background() -> Upstream {
    let queued = r#"{"id":"resp_1","status":"queued","background":true}"#;
    upstream::script([reply(200).json(queued), reply(200).json(ANSWER)]).run()
}

/// How many lines have the usage of the response, whoever wrote them.
fn billed(proxies: &[Proxy], counts: [usize; 2]) -> usize {
    let lines = proxies.iter().zip(counts);
    let lines = lines.flat_map(|(proxy, count)| proxy.access_log_lines(count));
    lines
        .map(|line| serde_json::from_str::<Value>(&line).unwrap())
        .filter(|record| record["of_request"] != Value::Null)
        .inspect(|record| assert_eq!(record["cost_usd"], "0.014"))
        .count()
}

#[test]
fn a_background_response_is_billed_once_whichever_proxy_sees_its_end() {
    const FETCHES: usize = 8;
    let Some(redis) = redis() else { return };
    let upstream = background();
    let proxies = [(); 2].map(|()| member(&upstream, "5", &redis.url()).run());
    let create = proxies[0].client("sk-fast");
    create.post(PATH, r#"{"model":"big","background":true}"#);
    proxies[0].access_log(1);
    // The other one has heard of it once it knows the server's newest number.
    ask(&proxies[0]);
    await_spent(&proxies[1], 1);
    std::thread::scope(|scope| {
        for fetch in 0..FETCHES {
            let proxy = &proxies[fetch % 2];
            scope.spawn(move || proxy.client("sk-fast").get("/v1/responses/resp_1"));
        }
    });
    assert_eq!(billed(&proxies, [2 + FETCHES / 2, FETCHES / 2]), 1);
    proxies.iter().for_each(|proxy| await_spent(proxy, 2));
}

#[test]
fn a_response_that_is_fetched_asks_the_server_only_where_it_is_to_be_billed() {
    let Some(redis) = redis() else { return };
    let upstream = background();
    let proxy = member(&upstream, "5", &redis.url()).run();
    let client = proxy.client("sk-fast");
    client.post(PATH, r#"{"model":"big","background":true}"#);
    // What is told of responses goes by scripts, and what others told is read.
    let asked = || {
        let told: String = redis::cmd("INFO")
            .arg("commandstats")
            .query(&mut redis.client())
            .unwrap();
        let calls = |command: &str| {
            let (_, rest) = told.split_once(&format!("cmdstat_{command}:calls="))?;
            rest.split_once(',')?.0.parse::<u64>().ok()
        };
        ["eval", "get"].map(|command| calls(command).unwrap_or_default())
    };
    eventually("the server has heard of it", || {
        (asked()[0] == 1).then_some(())
    });
    client.get("/v1/responses/resp_1");
    eventually("it is billed", || (asked()[0] >= 2).then_some(()));
    assert_eq!(billed(std::slice::from_ref(&proxy), [2, 0]), 1);
    await_spent(&proxy, 1);
    eventually("the sum is saved", || (asked()[0] == 3).then_some(()));
    let before = asked();
    for _ in 0..20 {
        client.get("/v1/responses/resp_1");
    }
    assert_eq!(asked(), before);
}

#[test]
fn a_background_response_is_billed_though_the_server_is_gone() {
    let Some(mut redis) = redis() else { return };
    let upstream = background();
    let proxies = [(); 2].map(|()| member(&upstream, "5", &redis.url()).run());
    let create = proxies[0].client("sk-fast");
    create.post(PATH, r#"{"model":"big","background":true}"#);
    proxies[0].access_log(1);
    // The other one has heard of it once it knows the server's newest number.
    ask(&proxies[0]);
    await_spent(&proxies[1], 1);
    redis.kill();
    await_readiness(&proxies[1], "last known sums");
    let fetch = proxies[1].client("sk-fast");
    assert_eq!(fetch.get("/v1/responses/resp_1").status, 200);
    assert_eq!(billed(&proxies, [2, 1]), 1);
    // It is told as soon as there is somebody to tell.
    redis.start_again();
    proxies.iter().for_each(|proxy| await_spent(proxy, 2));
    proxies[0].client("sk-fast").get("/v1/responses/resp_1");
    assert_eq!(billed(&proxies, [3, 1]), 1);
}
