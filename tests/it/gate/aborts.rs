//! Clients that leave before the end of their answer, where the answer is read on for its usage.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};

use crate::support::client::Connection;
use crate::support::h2::{self, Framing, Leaving};
use crate::support::proxy::{self, Proxy};
use crate::support::upstream::{self, Reply, Upstream, reply};
use crate::support::{PATIENCE, eventually, object_of, tls};

const PATH: &str = "/v1/responses";
const BODY: &[u8] = br#"{"model":"m-1"}"#;
const CREATED: &str = "data: {\"type\":\"response.created\"}\n\n";
const DELTA: &str = "data: {\"type\":\"response.output_text.delta\",\"delta\":\"x\"}\n\n";
const COMPLETED: &str = "data: {\"type\":\"response.completed\",\"response\":{\"id\":\"resp_1\",\
    \"service_tier\":\"default\",\"usage\":{\"input_tokens\":10,\"output_tokens\":7}}}\n\n";
/// Long enough for the proxy to see that a client has left.
const MOMENT: Duration = Duration::from_millis(100);

/// A stream that waits for the test after its first event. Its pieces fill more than the socket of a client that is gone.
fn stream() -> Reply {
    let begun = reply(200).sse_begun(&[CREATED]).hold();
    let deltas = (0..20).fold(begun, |reply, _| reply.chunk(&DELTA.repeat(2000)));
    deltas.wait(MOMENT).chunk(COMPLETED).send("0\r\n\r\n")
}

fn patient(upstream: &Upstream) -> Proxy {
    let settings = "on_client_abort: drain";
    proxy::new()
        .upstream_with("main", upstream, settings)
        .tls()
        .run()
}

/// A client that has got the first event.
fn listener(proxy: &Proxy) -> Connection {
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send(client.message(PATH, BODY));
    assert_eq!(connection.head().unwrap().status, 200);
    assert_eq!(connection.chunk().unwrap(), CREATED.as_bytes());
    connection
}

fn reset_on_close(socket: &TcpStream) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(socket, sockopt::Linger, &linger).unwrap();
}

/// The fields that this is about.
fn told(record: &Value) -> Value {
    let fields = [
        "outcome",
        "status",
        "service_tier",
        "service_tier_served",
        "downgraded",
        "usage_state",
        "terminal_event",
        "input_tokens",
        "output_tokens",
    ];
    fields.iter().map(|name| record[name].clone()).collect()
}

fn drained() -> Value {
    let end = "response.completed";
    json!([
        "client_closed",
        200,
        "priority",
        "default",
        true,
        "final",
        end,
        10,
        7
    ])
}

#[test]
fn an_answer_is_read_on_when_its_client_closes() {
    let upstream = upstream::script([stream()]).run();
    let proxy = patient(&upstream);
    drop(listener(&proxy));
    upstream.release();
    assert_eq!(told(&proxy.record()), drained());
}

#[test]
fn an_answer_is_read_on_when_its_client_resets() {
    let upstream = upstream::script([stream()]).run();
    let proxy = patient(&upstream);
    let connection = listener(&proxy);
    reset_on_close(connection.socket());
    drop(connection);
    upstream.release();
    assert_eq!(told(&proxy.record()), drained());
}

#[test]
fn an_answer_is_read_on_when_its_client_ends_tls() {
    let upstream = upstream::script([stream()]).run();
    let proxy = patient(&upstream);
    let socket = TcpStream::connect(proxy.tls_address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream = tls::client(socket, b"http/1.1");
    let client = proxy.client("sk-fast");
    stream.write_all(&client.message(PATH, BODY)).unwrap();
    let mut read = Vec::new();
    while !read.ends_with(format!("{CREATED}\r\n").as_bytes()) {
        let mut piece = [0; 1024];
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&read));
        read.extend(&piece[..count]);
    }
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    drop(stream);
    upstream.release();
    assert_eq!(told(&proxy.record()), drained());
}

#[test]
fn an_answer_that_begins_after_its_client_left_is_read_and_has_no_status() {
    let answer =
        r#"{"id":"r","service_tier":"priority","usage":{"input_tokens":3,"output_tokens":4}}"#;
    let late = reply(200).json(answer);
    let upstream = upstream::script([Reply::default().hold().wait(MOMENT).then_all(late)]).run();
    let proxy = patient(&upstream);
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send(client.message(PATH, BODY));
    upstream.await_heads(1);
    drop(connection);
    upstream.release();
    let record = proxy.record();
    let expected = json!([
        "client_closed",
        null,
        "priority",
        "priority",
        false,
        "final",
        null,
        3,
        4
    ]);
    assert_eq!(told(&record), expected);
    assert_eq!(record["upstream_status"], 200);
}

#[test]
fn a_client_that_leaves_behind_its_next_request_is_seen_to_leave() {
    for behind in [
        "\r\n",
        "P",
        "POST /v1/responses HTTP/1.1\r\nHost: h\r\n\r\n",
    ] {
        let replies = [upstream::silence(), reply(200).sse_begun(&[CREATED]).hold()];
        let upstream = upstream::script(replies).run();
        let proxy = proxy::new().upstream(&upstream).tls().run();
        let client = proxy.client("sk-fast");
        for number in 1..3 {
            let mut connection = client.connect();
            connection.send(client.message(PATH, BODY));
            upstream.await_heads(number);
            connection.send(behind);
            drop(connection);
            let record = proxy.access_log(number).remove(number - 1);
            assert_eq!(record["outcome"], "client_closed", "{behind}");
        }
        upstream.release();
    }
}

#[test]
fn a_client_that_resets_is_seen_to_leave_while_its_upstream_takes_nothing_of_its_body() {
    let upstream = upstream::script([upstream::silence().before_body()]).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-plain");
    // More than socket buffers take.
    let message = client.message(PATH, &object_of(16_000_000));
    let connection = client.connect();
    let socket = connection.socket().try_clone().unwrap();
    reset_on_close(&socket);
    let sending = std::thread::spawn(move || (&socket).write_all(&message));
    upstream.await_heads(1);
    std::thread::sleep(MOMENT);
    connection.socket().shutdown(Shutdown::Both).unwrap();
    drop(connection);
    sending.join().unwrap().unwrap_err();
    assert_eq!(proxy.record()["outcome"], "client_closed");
    upstream.release();
}

#[test]
fn a_client_that_has_ended_its_side_only_still_gets_its_answer() {
    let upstream = upstream::script([stream()]).run();
    let proxy = patient(&upstream);
    let mut connection = listener(&proxy);
    connection.socket().shutdown(Shutdown::Write).unwrap();
    upstream.release();
    let mut last = Vec::new();
    while let Some(piece) = connection.chunk() {
        last = piece;
    }
    assert!(last.ends_with(COMPLETED.as_bytes()));
    assert_eq!(told(&proxy.record()), drained());
}

#[test]
fn a_client_that_ends_its_side_behind_its_request_gets_its_answer() {
    // An end that comes behind the beginning of an answer would be that of a client that leaves.
    let late = |reply| Reply::default().wait(3 * MOMENT).then_all(reply);
    let json = || late(reply(200).json("{}"));
    let upstream = upstream::script([json(), json(), late(stream()), json()]).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-fast");
    let half_closed = |requests| {
        let mut connection = client.connect();
        connection.send(client.message(PATH, BODY).repeat(requests));
        connection.socket().shutdown(Shutdown::Write).unwrap();
        connection
    };
    let final_head = |connection: &mut Connection| loop {
        let head = connection.head().expect("an answer");
        if head.status != 100 {
            return head.status;
        }
    };
    let mut connection = half_closed(2);
    for _ in 0..2 {
        assert_eq!(final_head(&mut connection), 200);
        assert_eq!(connection.read(&mut [0; 2]), 2);
    }
    let mut connection = half_closed(1);
    assert_eq!(final_head(&mut connection), 200);
    upstream.release();
    let pieces = std::iter::from_fn(|| connection.chunk());
    assert!(pieces.last().unwrap().ends_with(COMPLETED.as_bytes()));
    // A version that knows no interim response.
    let mut old = client.connect();
    let message = String::from_utf8(client.message(PATH, BODY)).unwrap();
    old.send(message.replace("HTTP/1.1", "HTTP/1.0"));
    old.socket().shutdown(Shutdown::Write).unwrap();
    assert!(old.head().is_none());
    let records = proxy.access_log(4);
    let outcomes: Vec<_> = records.iter().map(|record| &record["outcome"]).collect();
    assert_eq!(outcomes, ["ok", "ok", "ok", "client_closed"]);
}

/// Nothing may be put into an answer that has begun, to see whether its client is there.
#[test]
fn a_client_that_ends_its_side_behind_a_request_that_was_answered_early_gets_its_answer() {
    const REST: usize = 3000;
    let rest = "z".repeat(REST);
    let early = |coding: &str, first: &str, last: &str| {
        let head = format!("HTTP/1.1 200 OK\r\n{coding}\r\n\r\n{first}");
        Reply::default()
            .before_body()
            .send(head)
            .read_body()
            .wait(3 * MOMENT)
            .send(last)
    };
    let length = format!("Content-Length: {}", 2 + REST);
    let chunk = format!("{REST:x}\r\n{rest}\r\n0\r\n\r\n");
    let upstream = upstream::script([
        early(&length, "{}", &rest),
        early("Transfer-Encoding: chunked", "2\r\n{}\r\n", &chunk),
    ]);
    let upstream = upstream.run();
    let proxy = proxy::new().upstream(&upstream).run();
    let message = proxy.client("sk-plain").message(PATH, BODY);
    let (head, body) = message.split_at(message.len() - BODY.len());
    for _ in 0..2 {
        let mut connection = proxy.anonymous().connect();
        connection.send(head);
        let answer = connection.head().unwrap();
        assert_eq!(answer.status, 200);
        connection.send(body);
        connection.socket().shutdown(Shutdown::Write).unwrap();
        let read = String::from_utf8(connection.rest()).unwrap();
        assert!(!read.contains("HTTP/1.1"), "{read}");
        assert!(read.contains(&rest), "{read}");
    }
    for record in proxy.access_log(2) {
        assert_eq!(record["outcome"], "ok", "{record}");
    }
}

#[test]
fn a_client_that_ends_its_side_of_tls_behind_its_request_gets_its_answer() {
    let quiet = Reply::default()
        .wait(3 * MOMENT)
        .then_all(reply(200).json("{}"));
    let upstream = upstream::script([quiet.clone(), quiet]).run();
    let proxy = patient(&upstream);
    for tells in [true, false] {
        let tcp = TcpStream::connect(proxy.tls_address).unwrap();
        let mut stream = tls::client(tcp, b"http/1.1");
        stream
            .write_all(&proxy.client("sk-fast").message(PATH, BODY))
            .unwrap();
        if tells {
            stream.conn.send_close_notify();
        }
        stream.flush().unwrap();
        stream.sock.shutdown(Shutdown::Write).unwrap();
        let mut answer = [0; 1024];
        let mut read = String::new();
        while !read.ends_with("{}") {
            let count = stream.read(&mut answer).unwrap();
            assert!(count > 0, "{tells}: {read}");
            read.push_str(&String::from_utf8_lossy(&answer[..count]));
        }
        assert!(read.contains("HTTP/1.1 200 "), "{tells}: {read}");
    }
    for record in proxy.access_log(2) {
        assert_eq!(record["outcome"], "ok");
    }
}

#[test]
fn a_client_that_has_left_ends_its_request_at_once_however_it_left() {
    for resets in [false, true] {
        let upstream = upstream::script([upstream::silence()]).run();
        let proxy = proxy::new().upstream(&upstream).run();
        let client = proxy.client("sk-fast");
        let mut connection = client.connect();
        connection.send(client.message(PATH, BODY));
        upstream.await_heads(1);
        if resets {
            reset_on_close(connection.socket());
        }
        drop(connection);
        let left = Instant::now();
        assert_eq!(proxy.record()["outcome"], "client_closed");
        assert!(left.elapsed() < Duration::from_secs(5));
        upstream.release();
    }
}

#[test]
fn a_client_that_leaves_at_the_event_that_ends_the_stream_has_left_in_good_order() {
    let ended = reply(200)
        .sse_begun(&[CREATED])
        .wait(MOMENT)
        .chunk(COMPLETED);
    let upstream = upstream::script([ended.hold()]).run();
    let proxy = patient(&upstream);
    let mut connection = listener(&proxy);
    assert_eq!(connection.chunk().unwrap(), COMPLETED.as_bytes());
    drop(connection);
    // The upstream holds, but there is nothing more to wait for.
    let record = proxy.record();
    assert_eq!(record["outcome"], "ok");
    upstream.release();
    upstream.await_ended(1);
}

#[test]
fn an_answer_is_read_on_to_the_event_that_ends_it_and_no_further() {
    let pause = reply(200).sse_begun(&[CREATED]).hold().wait(MOMENT);
    let endless = pause.chunk(COMPLETED).wait(2 * PATIENCE);
    let upstream = upstream::script([endless]).run();
    let proxy = patient(&upstream);
    drop(listener(&proxy));
    upstream.release();
    assert_eq!(told(&proxy.record()), drained());
}

#[test]
fn an_answer_that_does_not_end_in_time_is_given_up() {
    let upstream = upstream::script([stream()]).run();
    let settings = "on_client_abort: drain, abort_drain: 200ms";
    let proxy = proxy::new()
        .upstream_with("main", &upstream, settings)
        .run();
    drop(listener(&proxy));
    // The upstream holds: the line is written because the time is over.
    let expected = json!([
        "client_closed",
        200,
        "priority",
        null,
        false,
        "none",
        null,
        null,
        null
    ]);
    assert_eq!(told(&proxy.record()), expected);
    upstream.release();
    upstream.await_ended(1);
}

#[test]
fn an_upstream_that_dies_after_the_client_left_changes_nothing_about_who_left() {
    let begun = reply(200).sse_begun(&[CREATED]).hold().wait(MOMENT);
    let upstream = upstream::script([begun.close()]).run();
    let proxy = patient(&upstream);
    drop(listener(&proxy));
    upstream.release();
    let expected = json!([
        "client_closed",
        200,
        "priority",
        null,
        false,
        "none",
        null,
        null,
        null
    ]);
    assert_eq!(told(&proxy.record()), expected);
}

#[test]
fn the_connection_that_a_client_left_is_read_to_its_end_and_used_again() {
    let upstream = upstream::script([stream(), reply(200).json("{}")]).run();
    let proxy = patient(&upstream);
    drop(listener(&proxy));
    upstream.release();
    proxy.access_log(1);
    // The line is there a little before the connection is back in the pool.
    eventually("a request on the connection", || {
        assert_eq!(proxy.client("sk-plain").post(PATH, BODY).status, 200);
        let received = upstream.received();
        let kept = received.iter().filter(|request| request.connection == 0);
        (kept.count() > 1).then_some(())
    });
}

const KEY: [(&str, &str); 1] = [("authorization", "Bearer sk-fast")];

#[test]
fn an_answer_is_read_on_from_an_upstream_of_http_2_as_well() {
    let upstream = h2::upstream(h2::Reply::Paused(
        CREATED.into(),
        MOMENT * 2,
        COMPLETED.into(),
    ));
    let settings = "on_client_abort: drain";
    let proxy = proxy::new()
        .upstream_with("main", &upstream, settings)
        .tls()
        .run();
    drop(listener(&proxy));
    assert_eq!(told(&proxy.record()), drained());
}

#[test]
fn a_client_of_http_2_that_leaves_ends_its_request_where_nothing_else_is_said() {
    let upstream = upstream::script([stream()]).run();
    let proxy = proxy::new().upstream(&upstream).tls().run();
    h2::leave(proxy.tls_address, &KEY, PATH, BODY, Leaving::Stream);
    // The upstream holds.
    let record = proxy.record();
    assert_eq!(
        (&record["outcome"], &record["usage_state"]),
        (&json!("client_closed"), &json!("none"))
    );
    upstream.release();
}

#[test]
fn an_upstream_that_is_cut_is_cut_for_a_client_of_http_2_that_would_be_outlived() {
    let upstream = upstream::script([reply(200).sse_begun(&[CREATED]).wait(MOMENT).close()]).run();
    let proxy = patient(&upstream);
    let answer = h2::post(proxy.tls_address, &KEY, PATH, BODY, Framing::Length);
    assert!(
        !answer.whole && answer.body == CREATED.as_bytes(),
        "{answer:?}"
    );
    assert_eq!(proxy.record()["outcome"], "upstream_cut");
}

#[test]
fn a_client_of_http_2_whose_upstream_says_nothing_is_told_so() {
    let upstream = upstream::script([reply(200).json("{}"), Reply::default().reset()]).run();
    let proxy = patient(&upstream);
    assert_eq!(
        h2::post(proxy.tls_address, &KEY, PATH, BODY, Framing::Length).status,
        200
    );
    let answer = h2::post(proxy.tls_address, &KEY, PATH, BODY, Framing::NoLength);
    assert_eq!(
        (answer.status, answer.openai_code().as_str()),
        (502, "upstream_reset")
    );
}

#[test]
fn a_client_of_http_2_is_served_as_ever() {
    let upstream = upstream::sse(&[CREATED, COMPLETED]).run();
    let proxy = patient(&upstream);
    let answer = h2::post(proxy.tls_address, &KEY, PATH, BODY, Framing::Length);
    assert!(answer.whole && answer.body.ends_with(COMPLETED.as_bytes()));
    assert_eq!(proxy.record()["outcome"], "ok");
}
