//! Answers that two readers could take apart in two ways: whatever the upstream says to one request, the next one gets
//! its own answer, on the same connection and on others.

use std::time::Duration;

use super::wire::{self, Request};
use crate::support::client::{Answer, Client};
use crate::support::proxy;
use crate::support::upstream::{Reply, reply, script};

const OK: &str = "HTTP/1.1 200 OK\r\n";
const CHUNKS: &str = "\r\n2\r\n{}\r\n0\r\n\r\n";
/// What no client is to get.
const STOLEN: &str = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n\"stolen\"";

const CODINGS: [&str; 10] = [
    "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\nContent-Length: 300\r\n",
    "Transfer-Encoding: xchunked\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Transfer-Encoding: \x0bchunked\r\n",
    "Transfer-Encoding : chunked\r\n",
    "Transfer-Encoding:\r\n chunked\r\n",
    "X: y\nTransfer-Encoding: chunked\r\n",
];

const LENGTHS: [&str; 16] = [
    "Content-Length: 2\r\nContent-Length: 2\r\n",
    "Content-Length: 2\r\nContent-Length: 40\r\n",
    "Content-Length: 40\r\nContent-Length: 2\r\n",
    "Content-Length: 2, 2\r\n",
    "Content-Length: 2, 40\r\n",
    "Content-Length: +2\r\n",
    "Content-Length: -2\r\n",
    "Content-Length: 0x2\r\n",
    "Content-Length: 18446744073709551618\r\n",
    "Content-Length:\r\n",
    "Content-Length : 2\r\n",
    "Content-Length:\r\n 2\r\n",
    "X: \0\r\nContent-Length: 2\r\n",
    "X: y\rZ: z\r\nContent-Length: 2\r\n",
    "Content-Length: 0\r\n",
    "Connection: content-length\r\nContent-Length: 2\r\n",
];

const CHUNKED_BODIES: [&str; 5] = [
    "0x2\r\n{}\r\n0\r\n\r\n",
    "2\r\n{}0\r\n\r\n",
    "2;\n\r\n{}\r\n0\r\n\r\n",
    "fffffffffffffffff\r\n",
    "2\r\n{}\r\n0\r\nContent-Length: 9\r\n\r\n",
];

const BODYLESS: [&str; 2] = ["204 No Content", "304 Not Modified"];

const INTERIM: [&str; 5] = [
    "100 Continue",
    "102 Processing",
    "103 Early Hints\r\nContent-Length: 5",
    "199 X",
    "100 Continue\r\nTransfer-Encoding: chunked",
];

const STATUS_LINES: [&str; 8] = [
    "HTTP/1.0 200 OK",
    "HTTP/2.0 200 OK",
    "HTTP/1.1 099 X",
    "HTTP/1.1 20 X",
    "HTTP/1.1 2000 X",
    "HTTP/1.1  200 OK",
    "http/1.1 200 ok",
    "hello",
];

/// Each is what the upstream says to a request for `/odd/N`.
fn odd_answers() -> Vec<String> {
    let codings = CODINGS.map(|coding| format!("{OK}{coding}{CHUNKS}{STOLEN}"));
    let lengths = LENGTHS.map(|length| format!("{OK}{length}\r\n{{}}{STOLEN}"));
    let chunked = "Transfer-Encoding: chunked\r\n\r\n";
    let chunks = CHUNKED_BODIES.map(|chunks| format!("{OK}{chunked}{chunks}{STOLEN}"));
    let bodyless = BODYLESS.map(|status| format!("HTTP/1.1 {status}\r\n\r\n{STOLEN}"));
    let with_length = BODYLESS
        .map(|status| format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\n{{}}{STOLEN}"));
    let with_chunks = BODYLESS.map(|status| {
        format!("HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n{CHUNKS}{STOLEN}")
    });
    let interim = INTERIM.map(|interim| {
        let interim = format!("HTTP/1.1 {interim}\r\n\r\n");
        format!("{interim}{interim}{OK}Content-Length: 2\r\n\r\n{{}}{STOLEN}")
    });
    let lines = STATUS_LINES.map(|line| format!("{line}\r\nContent-Length: 2\r\n\r\n{{}}{STOLEN}"));
    let twice = [format!("{OK}Content-Length: 2\r\n\r\n{{}}{STOLEN}")];
    let all: [&[String]; 9] = [
        &codings,
        &lengths,
        &chunks,
        &bodyless,
        &with_length,
        &with_chunks,
        &interim,
        &lines,
        &twice,
    ];
    all.concat()
}

fn answer(request: &Request) -> Vec<u8> {
    match request.target.strip_prefix("/odd/") {
        Some(number) => odd_answers()[number.parse::<usize>().unwrap()]
            .clone()
            .into(),
        None => wire::plain_answer(request),
    }
}

/// All that comes on a connection on which two requests were sent at once.
fn ask_twice(client: &Client, first: &str, second: &str) -> Vec<Answer> {
    let last = client.clone().header("Connection", "close");
    let mut connection = client.connect();
    connection.send([client.head("GET", first), last.head("GET", second)].concat());
    let mut answers = Vec::new();
    while let Some(answer) = connection.try_answer() {
        answers.push(answer);
    }
    answers
}

fn assert_is_for(answer: &Answer, path: &str, after: &str) {
    let expected = format!("{path:?}");
    assert_eq!(
        (answer.status, answer.text()),
        (200, &*expected),
        "{after:?}"
    );
}

/// What says how long the answer is, says it once and so that all understand. One that ends with the connection may hold
/// whatever came.
fn assert_one_reading(answer: &Answer, sent: &str) {
    let is_framing = |name: &str| matches!(name, "content-length" | "transfer-encoding");
    let is_told = |name| answer.header(name).is_some();
    match answer.status {
        100..200 | 204 => assert!(!is_told("content-length") && !is_told("transfer-encoding")),
        304 => assert!(!is_told("transfer-encoding"), "{sent:?}"),
        _ => {}
    }
    let mut framing = answer.headers.iter().filter(|(name, _)| is_framing(name));
    match (framing.next(), framing.next()) {
        (None, _) => {}
        (Some((name, value)), None) => {
            let digits = value.bytes().all(|byte| byte.is_ascii_digit());
            assert!(
                digits || (name == "transfer-encoding" && value == "chunked"),
                "{value}"
            );
            assert!(!answer.text().contains("stolen"), "{sent:?}");
        }
        (first, second) => panic!("{first:?}, {second:?} of {sent:?}"),
    }
}

#[test]
fn an_interim_answer_tells_of_no_body() {
    for framing in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
        let interim = format!("HTTP/1.1 103 X\r\nLink: </a>\r\n{framing}\r\n\r\n");
        let first = Reply::default().send(interim);
        let reply = first.then_all(reply(200).json("{}"));
        let upstream = script([reply]).run();
        let proxy = proxy::new().upstream(&upstream).run();
        let client = proxy.client("sk-plain").header("Connection", "close");
        let mut connection = client.connect();
        connection.send(client.head("GET", "/v1/models"));
        let told = String::from_utf8(connection.rest()).unwrap();
        let (interim, _) = told.split_once("\r\n\r\n").unwrap();
        assert!(interim.starts_with("HTTP/1.1 103") && interim.contains("</a>"));
        let (name, _) = framing.split_once(':').unwrap();
        assert!(
            !interim.to_lowercase().contains(&name.to_lowercase()),
            "{told}"
        );
    }
}

#[test]
fn an_odd_answer_is_no_answer_to_others() {
    let upstream = wire::upstream_with(answer);
    let proxy = proxy::new()
        .upstream_with(
            "main",
            &upstream.address,
            "idle_timeout: 300ms, response_timeout: 300ms",
        )
        // One thread has one pool, so that every connection to the upstream is met again.
        .setting("server: {threads: 1}")
        .run();
    let client = proxy.client("sk-plain");
    for (number, sent) in odd_answers().iter().enumerate() {
        let (odd, even) = (format!("/odd/{number}"), format!("/even/{number}"));
        let answers = ask_twice(&client, &odd, &even);
        assert_one_reading(&answers[0], sent);
        for own in &answers[1..] {
            assert_is_for(own, &even, sent);
        }
        // And to a request whose answer has no body.
        let mut bodyless = client.connect();
        bodyless.send(
            client
                .clone()
                .header("Connection", "close")
                .head("HEAD", &odd),
        );
        bodyless.rest();
        let other = format!("/other/{number}");
        assert_is_for(&client.get(&other), &other, sent);
    }
}

#[test]
fn a_second_answer_that_comes_while_nobody_asks_is_no_answer_to_others() {
    let late = reply(200)
        .json("1")
        .wait(Duration::from_millis(50))
        .send(STOLEN);
    let upstream = script([late, reply(200).json("2")]).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let client = proxy.client("sk-plain");
    assert_eq!(client.get("/a").text(), "1");
    // The proxy gives a connection up on which it finds bytes that it did not ask for.
    upstream.await_ended(1);
    assert_eq!(client.get("/b").text(), "2");
}
