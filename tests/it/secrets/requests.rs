//! Keys in requests and in answers, through every kind of success and failure.

use super::canary::{Planted, talkative};
use crate::support::client::Client;
use crate::support::h2::{self, Framing};
use crate::support::proxy::{self, Proxy};
use crate::support::upstream::{self, Reply, reply};
use crate::support::{eventually, stored_create};

const PATH: &str = "/v1/responses";

fn policy(planted: &mut Planted) -> String {
    format!(
        "version: 1\n\
         groups:\n  fast: {{platform: openai, force_fast_mode: true}}\n  \
         plain: {{platform: openai}}\n  closed: {{platform: openai, enabled: false}}\n\
         keys:\n  {}: fast\n  {}: {{group: plain, name: paula}}\n  {}: closed\n  \
         {}: {{group: fast, enabled: false}}\n",
        planted.key("fast"),
        planted.key("plain"),
        planted.key("closed"),
        planted.key("disabled"),
    )
}

/// What a client may do wrong, or right, with a key.
fn clients(proxy: &Proxy, planted: &mut Planted) -> Vec<Client> {
    let known = planted.key("fast");
    let mut with = |name: &str, before: &str, place: &str| {
        let key = planted.key(place);
        proxy.anonymous().header(name, &format!("{before}{key}"))
    };
    vec![
        with("Authorization", "Bearer ", "unknown bearer"),
        with("Authorization", "Bearer ", "fast"),
        with("Authorization", "Bearer ", "plain"),
        with("Authorization", "Bearer ", "closed"),
        with("Authorization", "Bearer ", "disabled"),
        with("Authorization", "Basic ", "basic"),
        with("Authorization", "", "no scheme"),
        with("Authorization", "Bearer Bearer ", "two schemes"),
        with("x-api-key", "", "unknown direct"),
        with("X-Api-Key", "", "plain"),
        with("api-key", "", "azure"),
        with("x-goog-api-key", "", "google"),
        with("Cookie", "session=", "cookie"),
        with("Referer", "https://a.test/?key=", "referer"),
        with("Proxy-Authorization", "Bearer ", "proxy"),
        with(
            "Sec-WebSocket-Protocol",
            "realtime, openai-insecure-api-key.",
            "protocol",
        ),
        with("Authorization", "Bearer ", "conflict 1").header("x-api-key", &known),
        with("x-api-key", "", "conflict 2").header("Authorization", &format!("Bearer {known}")),
        with("Authorization", "Bearer ", "conflict 3").header("Authorization", "Bearer other"),
        with("Transfer-Encoding", "chunked, ", "a coding"),
        with("Content-Encoding", "", "content coding").header("x-api-key", &known),
        with("Content-Type", "application/json; charset=", "charset").header("x-api-key", &known),
        with("Expect", "", "expectation").header("x-api-key", &known),
        with("Connection", "", "connection").header("x-api-key", &known),
        with("anthropic-beta", "", "beta").header("x-api-key", &known),
        with("Host", "", "second host").header("x-api-key", &known),
    ]
}

/// Heads and bodies that end in refusals of every kind.
fn broken(planted: &mut Planted) -> Vec<Vec<u8>> {
    let known = planted.key("fast");
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {known}\r\n");
    let mut broken = Vec::new();
    let mut add = |place: &str, text: &dyn Fn(&str) -> String| {
        broken.push(text(&planted.key(place)).into_bytes());
    };
    for (place, body) in [
        ("broken body", r#"{"input":"KEY""#),
        ("body of two", r#"{"input":"KEY"}{"KEY":1}"#),
        ("body with a bad escape", r#"{"KEY":"\x"}"#),
        ("body that is a string", r#""KEY""#),
        ("nested body", r#"{"a":{"b":{"c":{"KEY":{}}}}}"#),
    ] {
        add(place, &|key| {
            let body = body.replace("KEY", key);
            format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())
        });
    }
    add("broken chunk", &|key| {
        format!("{head}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n{key}\r\n")
    });
    add("trailer", &|key| {
        format!("{head}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\nX: {key}\r\n\r\n")
    });
    add("broken header", &|key| format!("{head}{key}\r\n\r\n"));
    add("header name", &|key| {
        format!("{head}{key}: {key}\r\nContent-Length: 2\r\n\r\n[]")
    });
    add("bare line end", &|key| {
        format!("{head}X: {key}\nContent-Length: 2\r\n\r\n{{}}")
    });
    add("NUL", &|key| {
        format!("{head}X: {key}\0\r\nContent-Length: 2\r\n\r\n{{}}")
    });
    add("length", &|key| {
        format!("{head}Content-Length: {key}\r\n\r\n{{}}")
    });
    add("version", &|key| format!("POST {PATH} HTTP/{key}\r\n\r\n"));
    add("host", &|key| {
        format!("GET {PATH} HTTP/1.1\r\nHost: {key}\r\n\r\n")
    });
    add("target", &|key| {
        format!("POST {PATH}?{key} {key} HTTP/1.1\r\nHost: h\r\nConnection: {key},:x\r\n\r\n")
    });
    add("nothing else", &|key| format!("{key}\r\n\r\n"));
    add("large head", &|key| {
        format!("{head}X: {}\r\n\r\n", key.repeat(1000))
    });
    add("query", &|key| {
        format!("GET /v1/models?api_key={key} HTTP/1.1\r\nHost: h\r\nx-api-key: {known}\r\n\r\n")
    });
    add("query of a refusal", &|key| {
        format!("GET /v1//models?api_key={key} HTTP/1.1\r\nHost: h\r\nx-api-key: {known}\r\n\r\n")
    });
    add("user of a host", &|key| {
        format!("GET /v1/models HTTP/1.1\r\nHost: {key}@h\r\nx-api-key: {known}\r\n\r\n")
    });
    add("tier", &|key| {
        let body = format!(r#"{{"service_tier":{{"{key}":1}},"input":"{key}"}}"#);
        format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())
    });
    broken
}

/// What an upstream may say that quotes the key it was asked with.
fn answers(planted: &mut Planted) -> Vec<Reply> {
    let mut quoting = |place: &str, text: &str| {
        let text = text.replace("KEY", &planted.key(place));
        Reply::default().send(text).close()
    };
    vec![
        quoting(
            "answer's header",
            "HTTP/1.1 401 X\r\nX-Key: KEY\r\nContent-Length: 2\r\n\r\n{}",
        ),
        quoting(
            "answer's body",
            "HTTP/1.1 401 X\r\nContent-Length: 26\r\n\r\n\"KEY\"",
        ),
        quoting(
            "answer's broken head",
            "HTTP/1.1 200 OK\r\nX: KEY\0\r\n\r\n",
        ),
        quoting("answer without a head", "KEY\r\n\r\n"),
        quoting("answer's status", "HTTP/1.1 KEY OK\r\n\r\n"),
        quoting(
            "answer's length",
            "HTTP/1.1 200 OK\r\nContent-Length: KEY\r\n\r\n",
        ),
        quoting(
            "answer's coding",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: KEY\r\n\r\n",
        ),
        quoting(
            "answer's chunk",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nKEY\r\n",
        ),
        quoting("answer's upgrade", "HTTP/1.1 101 KEY\r\nX: KEY\r\n\r\nKEY"),
        quoting(
            "answer's cut body",
            "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"error\":\"KEY",
        ),
        // What an upstream says is logged in part, but never the key that it was sent.
        quoting(
            "fast",
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Request-Id: KEY\r\n\r\ndata: {\"type\":\"error\",\"error\":{\"code\":\"KEY\",\"message\":\"KEY\"}}\n\n",
        ),
        // Where the log would cut it through.
        quoting(
            "fast",
            &format!(
                "HTTP/1.1 200 OK\r\nX-Request-Id: {pad}_KEY\r\n\r\n{{\"id\":\"{pad}_KEY\",\"model\":\"{pad}_KEY\",\"service_tier\":\"{half}_KEY\"}}",
                pad = "a".repeat(116),
                half = "a".repeat(52),
            ),
        ),
        quoting("fast", "HTTP/1.1 200 OK\r\n\r\n{\"service_tier\":\"KEY\"}"),
        quoting(
            "answer's event",
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {\"type\":\"error\",\"error\":{\"message\":\"KEY\"}}\n\n",
        ),
    ]
}

fn start(target: &impl proxy::Target, planted: &mut Planted) -> Proxy {
    let policy = policy(planted);
    talkative(proxy::new())
        .policy(&policy)
        .upstream_with("main", target, "idle_timeout: 1s, response_timeout: 1s")
        .setting("limits: {json_depth: 3, header: 16KiB, header_timeout: 700ms, body_idle_timeout: 700ms, keepalive_timeout: 1s}")
        .tls()
        .run()
}

#[test]
fn a_key_in_a_request_goes_nowhere_but_upstream() {
    let mut planted = Planted::default();
    let upstream = upstream::json("{}").run();
    let proxy = start(&upstream, &mut planted);
    let mut refused = 0;
    for client in clients(&proxy, &mut planted) {
        for path in [PATH, "/v1/messages", "/v1/models", "/v1/batches"] {
            let answer = client.post(path, "{}");
            refused += usize::from(answer.status != 200);
            planted.assert_not_in_answer(&answer, path);
        }
    }
    assert!(refused > 60 && !upstream.received().is_empty(), "{refused}");
    planted.assert_not_told_by(&proxy);
}

#[test]
fn a_key_in_a_broken_request_is_not_quoted() {
    let mut planted = Planted::default();
    let upstream = upstream::json("{}").run();
    let proxy = start(&upstream, &mut planted);
    let broken = broken(&mut planted);
    let (asked, told) = (&proxy, &planted);
    std::thread::scope(|scope| {
        for message in &broken {
            scope.spawn(move || {
                let mut connection = asked.anonymous().connect();
                connection.send(message);
                while let Some(answer) = connection.try_answer() {
                    told.assert_not_in_answer(&answer, "an answer");
                }
            });
        }
    });
    let bearer = format!("Bearer {}", planted.key("unknown over HTTP/2"));
    for (name, value) in [("authorization", &*bearer), ("content-length", "77")] {
        let answer = h2::post(
            proxy.tls_address,
            &[(name, value)],
            PATH,
            b"{}",
            Framing::NoLength,
        );
        planted.assert_not_in_answer(&answer, "an answer over HTTP/2");
    }
    planted.assert_not_told_by(&proxy);
}

#[test]
fn a_key_that_an_upstream_quotes_is_not_quoted_again() {
    let mut planted = Planted::default();
    let answers = answers(&mut planted);
    let count = answers.len();
    let upstream = upstream::script(answers).run();
    let proxy = start(&upstream, &mut planted);
    let bearer = format!("Bearer {}", planted.key("fast"));
    for _ in 0..count {
        let mut connection = proxy.anonymous().connect();
        let client = proxy.anonymous().header("Authorization", &bearer);
        connection.send(client.message(PATH, b"{}"));
        // Whatever it is, it comes from the upstream.
        let _ = connection.rest();
    }
    let nobody = start(&upstream::nobody(), &mut planted);
    let client = nobody.anonymous().header("Authorization", &bearer);
    assert_eq!(client.post(PATH, "{}").status, 502);
    planted.assert_not_told_by(&nobody);
    eventually("the lines of all", || {
        (proxy.log_lines().len() >= count).then_some(())
    });
    planted.assert_not_told_by(&proxy);
}

#[test]
fn a_key_that_is_glued_to_other_signs_is_not_told() {
    let mut planted = Planted::default();
    let key = planted.key("fast");
    let quoted = format!("nx{key}y");
    let error = format!(r#"{{"error":{{"code":"{quoted}","message":"{quoted}"}}}}"#);
    let length = error.len();
    let answer = Reply::default().send(format!(
        "HTTP/1.1 400 Bad\r\nX-Request-Id: req_{key}_1\r\nContent-Length: {length}\r\n\r\n{error}"
    ));
    let upstream = upstream::script([answer]).run();
    let proxy = start(&upstream, &mut planted);
    let client = proxy
        .anonymous()
        .header("Authorization", &format!("Bearer {key}"))
        .header("User-Agent", &quoted);
    assert_eq!(client.post(PATH, "{}").status, 400);
    proxy.access_log(1);
    planted.assert_not_told_by(&proxy);
}

/// Some gateways keep keys without their `sk-`, or in one case.
#[test]
fn a_part_of_the_requests_own_key_is_not_told() {
    let mut planted = Planted::default();
    let key = planted.key("fast");
    let parts = [&key[3..], &key[..key.len() - 1], &key[key.len() - 16..]];
    let parts = parts.map(str::to_owned);
    let quoted: Vec<String> = parts.into_iter().chain([key.to_uppercase()]).collect();
    let replies = quoted.iter().map(|part| {
        let error = format!(r#"{{"id":"{part}","service_tier":"{part}","error":{{"code":"{part}"}}}}"#);
        let length = error.len();
        Reply::default().send(format!(
            "HTTP/1.1 400 Bad\r\nX-Request-Id: req_{part}\r\nContent-Length: {length}\r\n\r\n{error}"
        ))
    });
    let upstream = upstream::script(replies.collect::<Vec<_>>()).run();
    let proxy = start(&upstream, &mut planted);
    let bearer = format!("Bearer {key}");
    let client = proxy.anonymous().header("Authorization", &bearer);
    for _ in &quoted {
        assert_eq!(client.post(PATH, "{}").status, 400);
    }
    for line in proxy.access_log_lines(quoted.len()) {
        let told = quoted.iter().find(|part| {
            let part = part.to_lowercase();
            line.to_lowercase().contains(&part)
        });
        assert_eq!(told, None, "{line}");
        assert!(
            line.contains(r#""upstream_request_id":"req_[redacted]""#),
            "{line}"
        );
    }
}

/// What it came to is billed all the same.
#[test]
fn a_key_in_the_id_of_a_background_response_is_not_stored() {
    let mut planted = Planted::default();
    let key = planted.key("fast");
    let id = format!("resp_{key}");
    let queued = format!(r#"{{"id":"{id}","status":"queued","background":true}}"#);
    let made = format!(
        r#"{{"id":"{id}","status":"completed","usage":{{"input_tokens":7,"output_tokens":1}}}}"#
    );
    let replies = [queued, made].map(|body| reply(200).json(&body));
    let upstream = upstream::script(replies).run();
    let proxy = proxy::new()
        .policy(&policy(&mut planted))
        .upstream(&upstream)
        .setting("state: state.redb")
        .run();
    let bearer = format!("Bearer {key}");
    let client = proxy.anonymous().header("Authorization", &bearer);
    client.post(PATH, r#"{"background":true}"#);
    planted.assert_not_in(&stored_create(&proxy.path("state.redb")), "the state");
    client.get(&format!("/v1/responses/{id}"));
    let billed = &proxy.access_log(2)[1];
    assert_eq!(billed["input_tokens"], 7);
    assert!(!billed["of_request"].is_null());
    planted.assert_not_told_by(&proxy);
}

#[test]
fn a_key_may_be_the_word_that_stands_for_keys() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    for key in ["redacted", "[redacted]"] {
        let client = proxy
            .anonymous()
            .header("Authorization", &format!("Bearer {key}"))
            .header("User-Agent", "a redacted [redacted]");
        assert_eq!(client.post(PATH, "{}").status, 401, "{key}");
    }
    proxy.access_log(2);
}

#[test]
fn a_key_on_a_websocket_is_not_told() {
    let mut planted = Planted::default();
    let switch = "HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    let upstream = upstream::script([Reply::default().send(switch), reply(200).json("{}")]).run();
    let proxy = start(&upstream, &mut planted);
    let protocol = format!("openai-insecure-api-key.{}", planted.key("protocol"));
    let client = proxy
        .anonymous()
        .header("Authorization", &format!("Bearer {}", planted.key("fast")))
        .upgrade()
        .header("Sec-WebSocket-Protocol", &protocol);
    let mut connection = client.connect();
    connection.send(client.head("GET", PATH));
    assert_eq!(connection.head().unwrap().status, 101);
    let message = format!(
        r#"{{"type":"response.create","input":"{}""#,
        planted.key("message")
    );
    let mut frame = vec![
        0x81,
        0x80 | u8::try_from(message.len()).unwrap(),
        0,
        0,
        0,
        0,
    ];
    frame.extend(message.bytes());
    connection.send(frame);
    planted.assert_not_in(&connection.rest(), "the farewell");
    let request = upstream.request();
    assert_eq!(request.header("sec-websocket-protocol"), [protocol]);
    proxy.access_log(2);
    planted.assert_not_told_by(&proxy);
}
