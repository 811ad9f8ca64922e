//! Connections on both sides: kept, reused, closed, cut, gone stale; requests that come before they are asked for, and
//! answers that do.

use std::time::Duration;

use crate::support::client::{Answer, chunk};
use crate::support::proxy::{self, Proxy};
use crate::support::upstream::{self, Reply, Upstream, reply};
use crate::support::{eventually, object_of};

const PATH: &str = "/v1/responses";

#[test]
fn a_connection_serves_one_request_after_another() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    for body in ["{}", r#"{"a":1}"#, r#"{"a":2}"#] {
        connection.send(client.message(PATH, body.as_bytes()));
        assert_eq!(connection.answer().status, 200);
    }
    upstream.requests(3);
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn a_request_that_comes_while_another_runs_is_answered_behind_it() {
    let first = reply(200)
        .sse_begun(&["data: 1\n\n"])
        .hold()
        .chunk("data: 2\n\n")
        .send("0\r\n\r\n");
    let upstream = upstream::script([first, reply(200).json("{}")]).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-plain");
    let mut connection = client.connect();
    connection.send(client.message(PATH, b"{}"));
    assert_eq!(connection.head().unwrap().status, 200);
    assert_eq!(connection.chunk().unwrap(), b"data: 1\n\n");
    let next = object_of(100_000);
    connection.send(client.message(PATH, &next));
    upstream.release();
    assert_eq!(connection.chunk().unwrap(), b"data: 2\n\n");
    assert_eq!(connection.chunk(), None);
    assert_eq!(connection.answer().text(), "{}");
    assert_eq!(upstream.requests(2)[1].body, next);
}

#[test]
fn requests_that_come_in_one_packet_are_told_apart() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    let large = object_of(100_000);
    let messages = [
        client.message(PATH, br#"{"a":1}"#),
        client.head("GET", "/v1/models"),
        client.message(PATH, &large),
        client.message(PATH, b"{}"),
        client.head("GET", "/v1/models"),
        client.message(PATH, br#"{"a":2}"#),
    ];
    let mut connection = client.connect();
    connection.send(messages.concat());
    for _ in &messages {
        assert_eq!(connection.answer().status, 200);
    }
    let received = upstream.requests(messages.len());
    let lengths = received.iter().map(|request| request.body.len());
    let member = r#""service_tier":"priority","#.len();
    // The empty object gets no comma.
    let expected = [
        7 + member,
        0,
        large.len() + member,
        1 + member,
        0,
        7 + member,
    ];
    assert_eq!(lengths.collect::<Vec<_>>(), expected);
    for request in received.iter().filter(|request| !request.body.is_empty()) {
        assert!(request.text().starts_with(r#"{"service_tier":"priority""#));
    }
}

#[test]
fn a_close_that_the_client_asks_for_is_respected() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    for key in ["sk-fast", "sk-plain", "sk-nobody"] {
        let client = proxy.client(key).header("Connection", "close");
        let mut connection = client.connect();
        connection.send(client.message(PATH, b"{}"));
        let answer = connection.answer();
        assert_eq!(answer.header("connection"), Some("close"), "{key}");
        connection.assert_closed();
    }
}

#[test]
fn a_client_of_http_1_0_gets_one_answer_and_a_close() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    let message = client.message(PATH, b"{}");
    let message = String::from_utf8(message)
        .unwrap()
        .replace("HTTP/1.1", "HTTP/1.0");
    let mut connection = client.connect();
    connection.send(message);
    assert_eq!(connection.answer().status, 200);
    connection.assert_closed();
    assert!(upstream.request().text().contains("priority"));
}

#[test]
fn requests_in_one_packet_are_answered_in_order() {
    let replies = ["1", "2", "3"].map(|body| reply(200).json(body));
    let upstream = upstream::script(replies).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    let plain = proxy.client("sk-plain");
    let mut connection = client.connect();
    let messages = [
        client.message(PATH, br#"{"n":1}"#),
        plain.message(PATH, br#"{"n":2}"#),
        client.message(PATH, br#"{"n":3}"#),
    ];
    connection.send(messages.concat());
    for expected in ["1", "2", "3"] {
        assert_eq!(connection.answer().text(), expected);
    }
    let requests = upstream.requests(3);
    let sizes: Vec<bool> = requests
        .iter()
        .map(|request| request.text().contains("priority"))
        .collect();
    assert_eq!(sizes, [true, false, true]);
    assert_eq!(proxy.stop().len(), 3);
}

#[test]
fn a_client_that_asks_first_is_told_to_go_on() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    for (at, key) in ["sk-fast", "sk-plain"].into_iter().enumerate() {
        let client = proxy.client(key).header("Expect", "100-continue");
        let mut connection = client.connect();
        let body = object_of(100_000);
        connection.send(client.head_of(PATH, body.len()));
        assert_eq!(connection.head().unwrap().status, 100, "{key}");
        connection.send(&body);
        assert_eq!(connection.answer().status, 200);
        let request = &upstream.requests(at + 1)[at];
        assert_eq!(request.header("expect"), [""; 0]);
        assert!(request.body.len() >= body.len());
        // The connection is good for another request.
        connection.send(client.head_of(PATH, 2));
        assert_eq!(connection.head().unwrap().status, 100, "{key}");
        drop(connection);
    }
}

#[test]
fn a_client_that_asks_first_is_refused_before_it_sends() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-nobody").header("Expect", "100-continue");
    let mut connection = client.connect();
    connection.send(client.head_of(PATH, 1000));
    assert_eq!(connection.head().unwrap().status, 401);
    upstream.assert_untouched();
}

#[test]
fn an_answer_that_comes_before_the_body_is_whole_is_passed_on_at_once() {
    let early = reply(400).json(r#"{"early":1}"#).before_body().hold();
    let upstream = upstream::script([early]).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy
        .client("sk-plain")
        .header("Transfer-Encoding", "chunked");
    let mut connection = client.connect();
    connection.send(client.head("POST", PATH));
    connection.send(chunk(b"{"));
    let answer = connection.answer();
    assert_eq!((answer.status, answer.text()), (400, r#"{"early":1}"#));
    upstream.release();
    connection.send([&chunk(b"}")[..], b"0\r\n\r\n"].concat());
    assert_eq!(proxy.record()["upstream_status"], 400);
}

#[test]
fn an_answer_that_comes_before_the_body_is_whole_has_its_line_and_the_rest_goes_nowhere() {
    let empty = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    // A forced request without a length does not reach the upstream before its body is whole.
    let key = "sk-plain";
    {
        for early in [reply(200).json("{}"), Reply::default().send(empty)] {
            let upstream = upstream::script([early.before_body().hold()]).run();
            let proxy = proxy::new().upstream(&upstream).run();
            let client = proxy.client(key).header("Transfer-Encoding", "chunked");
            let mut connection = client.connect();
            connection.send(client.head("POST", PATH));
            connection.send(chunk(b"{\"model\":"));
            assert_eq!(connection.answer().status, 200);
            // The client has not sent everything, and may never.
            let record = proxy.record();
            assert_eq!(
                (&record["outcome"], &record["status"]),
                (&"ok".into(), &200.into())
            );
            connection.send([&chunk(b"\"m\"}")[..], b"0\r\n\r\n"].concat());
            connection.assert_closed();
            upstream.release();
            let sent = &upstream.requests(1)[0];
            assert!(!sent.whole, "{key}");
            // What was under way as the answer came may not have arrived.
            let told = record["upstream_request_bytes"].as_u64().unwrap();
            assert!(sent.body.len() as u64 <= told && told <= 9, "{told}");
            assert_eq!(proxy.stop().len(), 1);
        }
    }
}

#[test]
fn events_are_passed_on_one_by_one() {
    let stream = reply(200)
        .sse_begun(&["data: 1\n\n"])
        .hold()
        .chunk("data: 2\n\n")
        .send("0\r\n\r\n");
    let upstream = upstream::script([stream]).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send(client.message(PATH, b"{}"));
    assert_eq!(connection.head().unwrap().status, 200);
    assert_eq!(connection.chunk().unwrap(), b"data: 1\n\n");
    upstream.release();
    assert_eq!(connection.chunk().unwrap(), b"data: 2\n\n");
    assert_eq!(connection.chunk(), None);
}

#[test]
fn an_answer_with_a_length_that_is_cut_is_cut_for_the_client() {
    let cut = Reply::default()
        .send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"half\":")
        .close();
    let upstream = upstream::script([cut]).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send(client.message(PATH, b"{}"));
    let answer = connection.try_answer();
    assert!(answer.is_none_or(|answer| !answer.whole));
    assert_eq!(proxy.record()["outcome"], "upstream_cut");
}

/// Pingora 0.9.1 takes it for the last chunk.
#[test]
fn an_answer_with_a_chunk_without_a_size_is_cut_for_the_client() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for rest in ["\r\n\r\n", "\r\n1\r\n}\r\n0\r\n\r\n"] {
        let begun = Reply::default().send(head).chunk("{\"half\":");
        let broken = begun.wait(Duration::from_millis(50)).send(rest);
        let upstream = upstream::script([broken, reply(200).json("{}")]).run();
        let proxy = proxy::new().upstream(&upstream).run();
        let client = proxy.client("sk-fast");
        let mut connection = client.connect();
        connection.send(client.message(PATH, b"{}"));
        let answer = connection.try_answer();
        assert!(answer.is_none_or(|answer| !answer.whole), "{rest:?}");
        assert_eq!(proxy.record()["outcome"], "upstream_cut");
        assert_eq!(client.post(PATH, "{}").text(), "{}");
        assert_eq!(upstream.connections(), 2);
    }
}

/// So long a request is under way that its connection does not end by itself any more.
const WORK_TIME: Duration = Duration::from_millis(100);

/// Answers its request, and takes nothing more before it closes the connection in good order.
fn closing(answer: Reply) -> Reply {
    answer.wait(WORK_TIME).take_nothing().hold().close()
}

/// What comes of a request on a connection whose close crosses it.
fn crossed(proxy: &Proxy, upstream: &Upstream, request: impl FnOnce() -> Answer + Send) -> Answer {
    std::thread::scope(|scope| {
        let request = scope.spawn(request);
        eventually("the request is under way", || {
            (proxy.status()["requests_in_flight"] == 1).then_some(())
        });
        std::thread::sleep(WORK_TIME);
        upstream.release();
        request.join().unwrap()
    })
}

#[test]
fn a_post_that_the_close_of_its_pooled_connection_crosses_is_sent_again_once_and_whole() {
    // A body that is sent with its head, and one that is not.
    for size in [100, 100_000] {
        let replies = [closing(reply(200).json("1")), reply(200).json("2")];
        let upstream = upstream::script(replies).run();
        let proxy = proxy::new().upstream(&upstream).run();
        let client = proxy.client("sk-fast");
        assert_eq!(client.post(PATH, "{}").text(), "1");
        upstream.await_deaf(1);
        let body = object_of(size);
        let answer = crossed(&proxy, &upstream, || client.post(PATH, &body));
        assert_eq!((answer.status, answer.text()), (200, "2"), "{size} bytes");
        let sent = &upstream.requests(2)[1];
        assert!(sent.connection == 1 && sent.whole && sent.body.len() >= body.len());
        let tiers = sent.body.windows(10).filter(|part| part == b"\"priority\"");
        assert_eq!(tiers.count(), 1);
        let records = proxy.stop();
        assert_eq!(records.len(), 2);
        assert_eq!(records[1]["upstream_request_bytes"], sent.body.len());
        assert_eq!(records[1]["outcome"], "ok");
    }
}

/// The upstream's kernel has acknowledged it, and no reset says that nobody had read it.
#[test]
fn a_post_that_was_read_whole_is_not_sent_again_where_its_connection_then_closes() {
    for (size, tls) in [(100, true), (100, false), (100_000, true)] {
        let reads = Reply::default().wait(WORK_TIME).close();
        let script = upstream::script([reply(200).json("1"), reads, reply(200).json("2")]);
        let upstream = if tls {
            script.run()
        } else {
            script.run_plain()
        };
        let proxy = proxy::new().upstream(&upstream).run();
        let client = proxy.client("sk-fast");
        assert_eq!(client.post(PATH, "{}").text(), "1");
        await_pooled(&proxy);
        let answer = client.post(PATH, object_of(size));
        assert_eq!(answer.openai_code(), "upstream_reset");
        let outcomes = proxy.stop();
        assert_eq!(outcomes[1]["outcome"], "upstream_error");
        upstream.requests(2);
    }
}

#[test]
fn a_post_is_sent_no_third_time_where_connections_go_on_to_close() {
    // So long that both are under way at once.
    let slow = || {
        let answer = Reply::default().wait(Duration::from_millis(300));
        closing(answer.then_all(reply(200).json("1")))
    };
    let replies = [slow(), slow(), Reply::default().close()];
    let upstream = upstream::script(replies).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    // Two connections are pooled.
    std::thread::scope(|scope| {
        (0..2).for_each(|_| drop(scope.spawn(|| client.post(PATH, "{}"))));
    });
    upstream.await_deaf(2);
    let answer = crossed(&proxy, &upstream, || client.post(PATH, "{}"));
    assert_eq!(answer.status, 502);
    upstream.requests(3);
    assert_eq!(upstream.connections(), 3);
    assert_eq!(proxy.stop()[2]["outcome"], "upstream_error");
}

#[test]
fn a_chunked_post_that_the_close_of_its_connection_crosses_is_sent_again_where_it_can_be() {
    for key in ["sk-fast", "sk-plain"] {
        for (size, status) in [(1000, 200), (60_000, 200), (100_000, 502)] {
            let replies = [closing(reply(200).json("1")), reply(200).json("2")];
            let upstream = upstream::script(replies).run();
            let proxy = proxy::new().upstream(&upstream).run();
            let client = proxy.client(key);
            assert_eq!(client.post_chunked(PATH, &[b"{}"]).text(), "1");
            upstream.await_deaf(1);
            let body = object_of(size);
            let pieces: Vec<&[u8]> = body.chunks(10_000).collect();
            let answer = crossed(&proxy, &upstream, || client.post_chunked(PATH, &pieces));
            assert_eq!(answer.status, status, "{key}, {size} bytes");
            if status == 200 {
                let sent = &upstream.requests(2)[1];
                assert!(sent.whole && sent.body.len() >= size);
                assert_eq!(sent.text().contains("\"priority\""), key == "sk-fast");
            }
        }
    }
}

#[test]
fn a_pooled_connection_that_closed_while_idle_is_not_used() {
    let upstream = upstream::script([reply(200).json("1").close(), reply(200).json("2")]).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    assert_eq!(client.post(PATH, "{}").text(), "1");
    upstream.await_ended(1);
    for _ in 0..3 {
        assert_eq!(client.post(PATH, "{}").text(), "2");
    }
    upstream.requests(4);
}

#[test]
fn a_post_that_was_read_and_then_reset_is_not_sent_again() {
    let replies = [
        reply(200).json("1"),
        Reply::default().reset(),
        reply(200).json("2"),
    ];
    let upstream = upstream::script(replies).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    assert_eq!(client.post(PATH, "{}").text(), "1");
    await_pooled(&proxy);
    let answer = client.post(PATH, r#"{"a":1}"#);
    assert_eq!(
        (answer.status, answer.openai_code().as_str()),
        (502, "upstream_reset")
    );
    upstream.requests(2);
    let records = proxy.stop();
    assert_eq!(
        (&records[1]["outcome"], &records[1]["service_tier"]),
        (&"upstream_error".into(), &"priority".into())
    );
    upstream.requests(2);
}

/// The same for a method that changes nothing may be sent again.
#[test]
fn a_get_on_a_pooled_connection_that_ends_is_sent_again_once() {
    let resets = || Reply::default().wait(WORK_TIME).reset();
    let closes = || Reply::default().wait(WORK_TIME).close();
    for (stale, answer) in [
        (vec![resets()], (200, "2")),
        (vec![closes()], (200, "2")),
        (vec![resets(), resets()], (502, "")),
    ] {
        let last = reply(200).json("2");
        let replies = [vec![reply(200).json("1")], stale, vec![last]].concat();
        let upstream = upstream::script(replies).run();
        let proxy = proxy::new().upstream(&upstream).run();
        let client = proxy.client("sk-plain");
        assert_eq!(client.get("/v1/models").text(), "1");
        await_pooled(&proxy);
        let told = client.get("/v1/models");
        assert_eq!(told.status, answer.0);
        assert!(told.text().starts_with(answer.1));
        upstream.requests(3);
        assert_eq!(proxy.stop().len(), 2);
    }
}

#[test]
fn a_post_that_was_answered_by_a_part_of_a_head_is_not_sent_again() {
    let replies = [
        reply(200).json("1"),
        Reply::default().send("HTTP/1.1 200").close(),
        reply(200).json("2"),
    ];
    let upstream = upstream::script(replies).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    assert_eq!(client.post(PATH, "{}").text(), "1");
    await_pooled(&proxy);
    assert_eq!(client.post(PATH, r#"{"a":1}"#).status, 502);
    assert_eq!(proxy.stop().len(), 2);
    upstream.requests(2);
}

#[test]
fn a_client_that_goes_ends_the_request_upstream() {
    let upstream = upstream::script([upstream::silence()]).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send(client.message(PATH, b"{}"));
    upstream.await_heads(1);
    drop(connection);
    let record = proxy.record();
    assert_eq!(
        (&record["outcome"], &record["service_tier"]),
        (&"client_closed".into(), &"priority".into())
    );
    eventually("nothing in flight", || {
        (proxy.status()["requests_in_flight"] == 0).then_some(())
    });
}

/// Waits until the connection of the one request so far is back in the pool, which is so when its line is written.
fn await_pooled(proxy: &Proxy) {
    proxy.access_log(1);
}

#[test]
fn a_drain_waits_for_requests_that_have_begun_and_for_the_first_of_a_connection() {
    let upstream = upstream::json("{}").run();
    let mut proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    let message = client.message(PATH, b"{}");
    let (begun, rest) = message.split_at(20);
    let mut fresh = client.connect();
    let mut half = client.connect();
    half.send(begun);
    let mut used = client.connect();
    used.send(&message);
    assert_eq!(used.answer().status, 200);
    let mut again = client.connect();
    again.send(&message);
    assert_eq!(again.answer().status, 200);
    again.send(begun);
    eventually("four connections", || {
        (proxy.metric("tiergate_connections") == 4.0).then_some(())
    });
    proxy.signal(libc::SIGTERM);
    // The one on which nothing is under way ends at once.
    assert!(used.try_answer().is_none());
    fresh.send(&message);
    assert_eq!(fresh.answer().status, 200);
    for mut connection in [half, again] {
        connection.send(rest);
        assert_eq!(connection.answer().status, 200);
    }
    assert_eq!(proxy.wait().code(), Some(0));
    assert_eq!(proxy.log_lines().len(), 5);
}

#[test]
fn an_answer_that_begins_in_a_drain_says_that_its_connection_ends() {
    let answers = [
        Reply::default().hold().then_all(reply(200).json("{}")),
        Reply::default().hold().reset(),
    ];
    let upstream = upstream::script(answers).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    proxy.assert_drain_is_told(&upstream, &client.message(PATH, b"{}"), [200, 502]);
}
