//! Heads as they travel: what of a client's reaches the upstream, what of the upstream's reaches the client, line by line, for
//! each kind of upstream; and what is answered without an upstream.

use std::time::Duration;

use serde_json::json;

use crate::support::client::Answer;
use crate::support::h2::{self, Framing, Reply};
use crate::support::h2_script;
use crate::support::proxy::{self, Builder, Proxy};
use crate::support::upstream::{self, Received, Upstream, reply, script};

const PATH: &str = "/v1/responses";
const BODY: &str = r#"{"input":"x"}"#;
/// What becomes of it in a forced group.
const FORCED: usize = BODY.len() + r#""service_tier":"priority","#.len();
const KINDS: [&str; 5] = ["openai", "codex", "gateway", "codex_gateway", "anthropic"];

/// What a client sends beside its key and a body: headers of every sort that is told apart.
const REQUEST: [(&str, &str); 39] = [
    ("user-agent", "client/1"),
    ("content-type", "application/json"),
    ("x-custom", "a"),
    ("accept", "application/json"),
    ("originator", "codex_cli_rs"),
    // Of an account.
    ("openai-organization", "org-client"),
    ("openai-project", "proj-client"),
    ("chatgpt-account-id", "account-client"),
    ("ocp-apim-subscription-key", "apim-client"),
    ("x-litellm-api-key", "litellm-client"),
    ("cookie", "session=client"),
    ("x-goog-api-key", "goog-client"),
    // Of what stands in front.
    ("x-forwarded-for", "198.51.100.1"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "front.test"),
    ("forwarded", "for=198.51.100.1"),
    ("x-real-ip", "198.51.100.1"),
    ("true-client-ip", "198.51.100.1"),
    ("x-client-ip", "198.51.100.1"),
    ("x-original-forwarded-for", "198.51.100.1"),
    ("x-azure-clientip", "198.51.100.1"),
    ("fastly-client-ip", "198.51.100.1"),
    ("fly-client-ip", "198.51.100.1"),
    ("via", "1.1 front"),
    ("cf-ray", "1-FRA"),
    ("cf-connecting-ip", "198.51.100.1"),
    ("cdn-loop", "cloudflare"),
    ("x-amzn-oidc-accesstoken", "eyJ.access.token"),
    ("x-goog-iap-jwt-assertion", "eyJ.iap.token"),
    ("x-ms-token-aad-access-token", "eyJ.aad.token"),
    ("x-auth-request-access-token", "gho_token"),
    ("x-envoy-external-address", "198.51.100.1"),
    // Of one connection. What the proxy sets itself stays, whatever a client says of it.
    ("connection", "accept-encoding, x-named"),
    ("x-named", "1"),
    ("te", "trailers"),
    ("trailer", "x-after"),
    ("keep-alive", "timeout=5"),
    ("proxy-authorization", "Basic Og=="),
    ("accept-encoding", "gzip"),
];

const ACCOUNT: [&str; 7] = [
    "chatgpt-account-id: account-client",
    "cookie: session=client",
    "ocp-apim-subscription-key: apim-client",
    "openai-organization: org-client",
    "openai-project: proj-client",
    "x-goog-api-key: goog-client",
    "x-litellm-api-key: litellm-client",
];

const IN_FRONT: [&str; 20] = [
    "cdn-loop: cloudflare",
    "cf-connecting-ip: 198.51.100.1",
    "cf-ray: 1-FRA",
    "fastly-client-ip: 198.51.100.1",
    "fly-client-ip: 198.51.100.1",
    "forwarded: for=198.51.100.1",
    "true-client-ip: 198.51.100.1",
    "via: 1.1 front",
    "x-amzn-oidc-accesstoken: eyJ.access.token",
    "x-auth-request-access-token: gho_token",
    "x-azure-clientip: 198.51.100.1",
    "x-client-ip: 198.51.100.1",
    "x-envoy-external-address: 198.51.100.1",
    "x-forwarded-for: 198.51.100.1",
    "x-forwarded-host: front.test",
    "x-forwarded-proto: https",
    "x-goog-iap-jwt-assertion: eyJ.iap.token",
    "x-ms-token-aad-access-token: eyJ.aad.token",
    "x-original-forwarded-for: 198.51.100.1",
    "x-real-ip: 198.51.100.1",
];

/// What an upstream answers with, beside a body of two bytes.
const RESPONSE: [(&str, &str); 12] = [
    ("content-type", "application/json"),
    ("x-request-id", "req_1"),
    ("openai-processing-ms", "7"),
    ("x-ratelimit-remaining-requests", "9"),
    ("retry-after", "3"),
    ("set-cookie", "__cf_bm=1; path=/"),
    ("openai-organization", "org-operator"),
    ("openai-project", "proj-operator"),
    ("alt-svc", "h3=\":443\"; ma=86400"),
    ("proxy-authenticate", "Basic"),
    ("trailer", "x-after"),
    ("access-control-allow-origin", "*"),
];

const OF_OPERATOR: [&str; 4] = [
    "alt-svc: h3=\":443\"; ma=86400",
    "openai-organization: org-operator",
    "openai-project: proj-operator",
    "set-cookie: __cf_bm=1; path=/",
];

/// The upstream's answer, over HTTP/1.1.
fn answering() -> Upstream {
    let lines = RESPONSE.map(|(name, value)| format!("{name}: {value}\r\n"));
    let head = format!(
        "HTTP/1.1 200 OK\r\nte: x\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive, x-hop\r\nx-hop: 1\r\n{}Content-Length: 2\r\n\r\n{{}}",
        lines.concat()
    );
    script([upstream::Reply::default().send(head)]).run()
}

fn own_key(builder: Builder) -> Builder {
    builder.file("up.key", "own-key\n")
}

fn ask(proxy: &Proxy) -> Answer {
    let mut client = proxy.client("sk-fast");
    for (name, value) in REQUEST {
        client = client.header(name, value);
    }
    client.post(PATH, BODY)
}

/// The header lines, in order of the alphabet.
fn lines(request: &Received) -> Vec<String> {
    let lines = request.head.lines().skip(1).filter(|line| !line.is_empty());
    let mut lines: Vec<String> = lines.map(lower_name).collect();
    lines.sort_unstable();
    lines
}

fn lower_name(line: &str) -> String {
    let (name, value) = line.split_once(':').expect("a header line");
    format!("{}: {}", name.to_ascii_lowercase(), value.trim())
}

/// The same of an answer, without what differs from one to the next.
fn answer_lines(answer: &Answer) -> Vec<String> {
    let kept = answer
        .headers
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "date" | "x-tiergate-request-id"));
    let mut lines: Vec<String> = kept
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    lines.sort_unstable();
    lines
}

fn sorted<'a>(parts: &[&[&'a str]]) -> Vec<&'a str> {
    let mut all = parts.concat();
    all.sort_unstable();
    all
}

/// What reaches an upstream of this kind, but for what differs.
fn plain_request(authorization: &'static str) -> Vec<&'static str> {
    vec![
        "accept: application/json",
        "accept-encoding: identity",
        authorization,
        "content-type: application/json",
        "originator: codex_cli_rs",
        "user-agent: client/1",
        "x-custom: a",
    ]
}

fn passes_forwarded(kind: &str) -> bool {
    kind.ends_with("gateway")
}

#[test]
fn the_whole_head_of_a_request_with_the_proxys_own_key() {
    for kind in KINDS {
        let upstream = answering();
        let settings = format!("kind: {kind}, credential_file: up.key");
        let proxy = own_key(proxy::new().upstream_with("main", &upstream, &settings)).run();
        assert_eq!(ask(&proxy).status, 200);
        let front = if passes_forwarded(kind) {
            &IN_FRONT[..]
        } else {
            &[]
        };
        let mut expected = sorted(&[&plain_request("authorization: Bearer own-key"), front]);
        let own = [
            format!("content-length: {FORCED}"),
            format!("host: localhost:{}", upstream.address.port()),
        ];
        expected.extend(own.iter().map(String::as_str));
        expected.sort_unstable();
        assert_eq!(lines(&upstream.request()), expected, "{kind}");
    }
}

#[test]
fn the_whole_head_of_a_request_with_the_clients_key() {
    for kind in KINDS {
        let upstream = answering();
        let settings = format!("kind: {kind}");
        let proxy = proxy::new()
            .upstream_with("main", &upstream, &settings)
            .run();
        assert_eq!(ask(&proxy).status, 200);
        let front = if passes_forwarded(kind) {
            &IN_FRONT[..]
        } else {
            &[]
        };
        let plain = plain_request("authorization: Bearer sk-fast");
        let own = [
            format!("content-length: {FORCED}"),
            format!("host: localhost:{}", upstream.address.port()),
        ];
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        let expected = sorted(&[&plain, &ACCOUNT, front, &own]);
        assert_eq!(lines(&upstream.request()), expected, "{kind}");
    }
}

#[test]
fn the_whole_head_of_a_request_over_http2() {
    for kind in KINDS {
        let upstream = h2::upstream(Reply::Json("{}".to_owned()));
        let settings = format!("kind: {kind}, credential_file: up.key");
        let proxy = own_key(proxy::new().upstream_with("main", &upstream, &settings)).run();
        assert_eq!(ask(&proxy).status, 200);
        let front = if passes_forwarded(kind) {
            &IN_FRONT[..]
        } else {
            &[]
        };
        let length = format!("content-length: {FORCED}");
        let plain = plain_request("authorization: Bearer own-key");
        let expected = sorted(&[&plain, front, &[&length]]);
        assert_eq!(lines(&upstream.request()), expected, "{kind}");
    }
}

#[test]
fn cookies_that_http2_splits_are_one_line_of_http1() {
    let upstream = answering();
    let proxy = proxy::new().upstream(&upstream).tls().run();
    let headers = [
        ("authorization", "Bearer sk-fast"),
        ("cookie", "a=1"),
        ("cookie", "b=2; c=3"),
    ];
    h2::post(proxy.tls_address, &headers, PATH, b"{}", Framing::Length);
    assert_eq!(upstream.request().header("cookie"), ["a=1; b=2; c=3"]);
}

#[test]
fn the_whole_head_of_a_response() {
    let kept = [
        "access-control-allow-origin: *",
        "connection: keep-alive",
        "content-length: 2",
        "content-type: application/json",
        "openai-processing-ms: 7",
        "retry-after: 3",
        "x-ratelimit-remaining-requests: 9",
        "x-request-id: req_1",
    ];
    for kind in KINDS {
        for (settings, of_operator) in [("credential_file: up.key", false), ("", true)] {
            let upstream = answering();
            let settings = format!("kind: {kind}, {settings}");
            let proxy = own_key(proxy::new().upstream_with("main", &upstream, &settings)).run();
            let more = if of_operator { &OF_OPERATOR[..] } else { &[] };
            let expected = sorted(&[&kept, more]);
            assert_eq!(answer_lines(&ask(&proxy)), expected, "{settings}");
        }
    }
}

#[test]
fn the_whole_head_of_a_response_over_http2_on_both_sides() {
    let kept = [
        "access-control-allow-origin: *",
        "content-type: application/json",
        "openai-processing-ms: 7",
        "retry-after: 3",
        "x-ratelimit-remaining-requests: 9",
        "x-request-id: req_1",
    ];
    for (settings, of_operator) in [("credential_file: up.key", false), ("", true)] {
        let upstream = h2::upstream(Reply::JsonWith(RESPONSE[1..].to_vec(), "{}".to_owned()));
        let proxy = own_key(proxy::new().upstream_with("main", &upstream, settings))
            .tls()
            .run();
        let more = if of_operator { &OF_OPERATOR[..] } else { &[] };
        let headers = [("authorization", "Bearer sk-fast")];
        let answer = h2::post(proxy.tls_address, &headers, PATH, b"{}", Framing::Length);
        assert_eq!(answer_lines(&answer), sorted(&[&kept, more]));
        // A client of HTTP/1.1 is told in chunks what came without a length.
        let framed = ["connection: keep-alive", "transfer-encoding: chunked"];
        let expected = sorted(&[&kept, more, &framed]);
        assert_eq!(answer_lines(&ask(&proxy)), expected);
    }
}

#[test]
fn the_trailers_of_a_response_do_not_name_the_operators_account() {
    const TRAILERS: [(&str, &str); 3] = [
        ("x-checksum", "1"),
        ("set-cookie", "a=b"),
        ("openai-organization", "org-operator"),
    ];
    for (settings, count) in [("credential_file: up.key", 1), ("", 3)] {
        let upstream = h2_script::upstream(|peer| {
            peer.serve(|peer, stream| {
                peer.respond(stream, 200, &[]);
                peer.data(stream, b"{}");
                peer.trailers_of(stream, &TRAILERS);
            });
        });
        let proxy = own_key(proxy::new().upstream_with("main", &upstream, settings))
            .tls()
            .run();
        let headers = [("authorization", "Bearer sk-fast")];
        let answer = h2::post(proxy.tls_address, &headers, PATH, b"{}", Framing::Length);
        let is_trailer = |name: &str| TRAILERS.iter().any(|(trailer, _)| *trailer == name);
        let trailers = answer.headers.iter().filter(|(name, _)| is_trailer(name));
        assert_eq!(trailers.count(), count, "{settings}");
    }
}

#[test]
fn an_upgrade_shows_no_cookie_of_the_operators_account() {
    let agreed = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Accept: x\r\nSet-Cookie: a=b\r\nAlt-Svc: h3\r\nX-Request-Id: r\r\n\r\n";
    let upstream = script([upstream::Reply::default().send(agreed).hold()]).run();
    let proxy =
        own_key(proxy::new().upstream_with("main", &upstream, "credential_file: up.key")).run();
    let client = proxy
        .client("sk-fast")
        .upgrade()
        .header("Cookie", "c=d")
        .header("OpenAI-Organization", "o");
    let mut connection = client.connect();
    connection.send(client.head("GET", PATH));
    let answer = connection.head().unwrap();
    assert_eq!(
        answer_lines(&answer),
        [
            "connection: Upgrade",
            "sec-websocket-accept: x",
            "upgrade: websocket",
            "x-request-id: r"
        ]
    );
    drop(connection);
    let request = upstream.requests(1).remove(0);
    assert_eq!(request.header("authorization"), ["Bearer own-key"]);
    assert!(
        request.header("cookie").is_empty() && request.header("openai-organization").is_empty()
    );
}

#[test]
fn the_subprotocols_of_a_browser_tell_the_clients_account_to_nobody_but_its_own_upstream() {
    const OFFER: &str = "realtime, openai-insecure-api-key.k, openai-organization.o, \
        openai-project.p, openai-beta.realtime-v1";
    const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Accept: x\r\nSec-WebSocket-Protocol: realtime\r\n\r\n";
    for (settings, offered) in [
        ("", OFFER),
        (
            "credential_file: up.key",
            "realtime, openai-beta.realtime-v1",
        ),
    ] {
        let upstream = script([upstream::Reply::default().send(AGREED).hold()]).run();
        let proxy = own_key(proxy::new().upstream_with("main", &upstream, settings)).run();
        let client = proxy
            .client("sk-fast")
            .upgrade()
            .header("Sec-WebSocket-Protocol", OFFER);
        let mut connection = client.connect();
        connection.send(client.head("GET", "/v1/realtime?model=m"));
        let answer = connection.head().unwrap();
        assert_eq!(answer.status, 101);
        assert_eq!(answer.header("sec-websocket-protocol"), Some("realtime"));
        drop(connection);
        let request = upstream.requests(1).remove(0);
        assert_eq!(request.header("sec-websocket-protocol"), [offered]);
    }
}

#[test]
fn a_key_that_does_not_decide_stays_here() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream_with("main", &upstream, "kind: gateway")
        .run();
    let client = proxy.anonymous().header("X-Api-Key", "sk-fast");
    for (name, other) in [
        ("Authorization", "Bearer foreign-session"),
        ("Authorization", "Basic Zm9yZWlnbjpzZXNzaW9u"),
        ("Api-Key", "left-over"),
    ] {
        let client = client.clone().header(name, other);
        assert_eq!(client.post("/v1/messages", "{}").status, 200);
    }
    for request in upstream.requests(3) {
        assert_eq!(request.header("x-api-key"), ["sk-fast"]);
        assert!(request.header("authorization").is_empty() && request.header("api-key").is_empty());
    }
    let records = proxy.access_log(3);
    assert!(records.iter().all(|record| record["key"] == "fiona"));
}

#[test]
fn the_settings_have_the_last_word_on_a_requests_headers() {
    let upstream = upstream::json("{}").run();
    let settings = "headers: {set: {x-team: billing, x-forwarded-for: 192.0.2.1}, remove: [x-custom, originator]}";
    let proxy = proxy::new()
        .upstream_with("main", &upstream, settings)
        .run();
    ask(&proxy);
    let request = upstream.request();
    assert_eq!(request.header("x-team"), ["billing"]);
    assert_eq!(request.header("x-forwarded-for"), ["192.0.2.1"]);
    assert!(request.header("x-custom").is_empty() && request.header("originator").is_empty());
}

#[test]
fn http2_is_agreed_on_only_where_the_settings_allow_it() {
    let settings = "http2: {enabled: false}, response_timeout: 300ms";
    let only_http2 = h2::upstream(Reply::Json("{}".to_owned()));
    let with = proxy::new().upstream(&only_http2).run();
    assert_eq!(with.client("sk-fast").post(PATH, BODY).status, 200);
    // It agrees to HTTP/1.1 too, and then says nothing.
    let without = proxy::new()
        .upstream_with("main", &only_http2, settings)
        .run();
    assert_eq!(without.client("sk-fast").post(PATH, BODY).status, 504);
    assert_eq!(only_http2.received().len(), 1);
    let http1 = upstream::json("{}").run();
    let proxy = proxy::new().upstream_with("main", &http1, settings).run();
    assert_eq!(proxy.client("sk-fast").post(PATH, BODY).status, 200);
}

/// A whole response of two events, by chunks and with a length that is wrong.
fn doubly_framed() -> upstream::Reply {
    let event = "data: {\"type\":\"response.completed\",\"response\":{\"id\":\"r\",\"status\":\"completed\",\
        \"usage\":{\"input_tokens\":3,\"output_tokens\":4}}}\n\n";
    upstream::Reply::default()
        .send(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 7\r\n\
             Transfer-Encoding: chunked\r\n\r\n",
        )
        .chunk(event)
        .send("0\r\n\r\n")
}

/// A proxy that meets every idle connection to its upstream again: one thread has one pool.
fn proxy_with_one_pool(upstream: &Upstream) -> Proxy {
    proxy::new()
        .upstream(upstream)
        .setting("server: {threads: 1}")
        .run()
}

#[test]
fn a_response_with_a_length_and_chunks_is_read_by_its_chunks_and_its_connection_not_used_again() {
    let upstream = script([
        doubly_framed(),
        reply(200).json("{}"),
        reply(200).json("{}"),
    ])
    .run();
    let proxy = proxy_with_one_pool(&upstream);
    let client = proxy.client("sk-fast");
    let answer = client.post(PATH, BODY);
    assert_eq!((answer.status, answer.whole), (200, true));
    assert_eq!(answer.header("content-length"), None);
    let record = proxy.record();
    assert_eq!(
        (
            &record["usage_state"],
            &record["output_tokens"],
            &record["outcome"]
        ),
        (&json!("final"), &json!(4), &json!("ok"))
    );
    for _ in 0..2 {
        assert_eq!(client.post(PATH, BODY).status, 200);
    }
    let connections: Vec<usize> = upstream
        .requests(3)
        .iter()
        .map(|request| request.connection)
        .collect();
    assert_eq!(connections, [0, 1, 1]);
}

#[test]
fn a_response_that_says_twice_alike_how_long_it_is_is_read_and_its_connection_not_used_again() {
    let told_twice = [
        "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        "Content-Length: 2, 2\r\n\r\n{}",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ];
    for told in told_twice {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{told}");
        let upstream = script([upstream::Reply::default().send(head), reply(200).json("{}")]).run();
        let proxy = proxy_with_one_pool(&upstream);
        let client = proxy.client("sk-fast");
        let answer = client.post(PATH, BODY);
        assert_eq!((answer.status, answer.text()), (200, "{}"), "{told}");
        let is_framing = |name: &str| matches!(name, "content-length" | "transfer-encoding");
        let framings = answer.headers.iter().filter(|(name, _)| is_framing(name));
        assert_eq!(framings.count(), 1, "{told}");
        assert_eq!(client.post(PATH, BODY).status, 200);
        let requests = upstream.requests(2);
        assert_eq!([0, 1].map(|at: usize| requests[at].connection), [0, 1]);
    }
}

#[test]
fn a_redirect_to_the_upstreams_own_address_stays_with_the_proxy() {
    let cases = [
        ("{URL}/v1/responses?a=b", "/v1/responses?a=b"),
        ("https://127.0.0.1:{PORT}/base/v1/x", "/v1/x"),
        ("/base/v1/x", "/v1/x"),
        ("//127.0.0.1:{PORT}/base/v1/x", "/v1/x"),
        ("http://user:word@127.0.0.1:{PORT}/base/v1/x", "/v1/x"),
        ("//other.test/base/v1/x", "//other.test/base/v1/x"),
        (
            "http://127.0.0.1:{PORT}@other.test/x",
            "http://127.0.0.1:{PORT}@other.test/x",
        ),
        ("{URL}/basement", "/basement"),
        ("/base//other.test/x", "/base//other.test/x"),
        ("{URL}", "/"),
        ("http://127.0.0.1/v1/x", "http://127.0.0.1/v1/x"),
        (
            "https://other.test:{PORT}/base/v1/x",
            "https://other.test:{PORT}/base/v1/x",
        ),
    ];
    for (told, expected) in cases {
        let address = upstream::nobody();
        let (url, port) = (format!("http://{address}"), address.port().to_string());
        let here = |text: &str| text.replace("{URL}", &url).replace("{PORT}", &port);
        let head = format!(
            "HTTP/1.1 307 X\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n",
            here(told)
        );
        let _upstream = script([upstream::Reply::default().send(head)]).run_at(address);
        let proxy = proxy::new()
            .upstream_at("main", &[format!("{url}/base")], "")
            .run();
        let answer = proxy.client("sk-fast").post(PATH, BODY);
        let location = answer.header("location");
        assert_eq!(
            (answer.status, location),
            (307, Some(&*here(expected))),
            "{told}"
        );
    }
}

/// All that a client of HTTP/1.0 gets.
fn ask_http10(proxy: &Proxy) -> String {
    let mut connection = proxy.anonymous().connect();
    connection.send(format!(
        "POST {PATH} HTTP/1.0\r\nAuthorization: Bearer sk-fast\r\nConnection: keep-alive\r\n\
         Content-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    ));
    String::from_utf8(connection.rest()).unwrap()
}

#[test]
fn a_client_of_http_1_0_gets_no_chunks() {
    let event = "data: {\"type\":\"response.completed\"}\n\n";
    let in_chunks = upstream::sse(&[event, event]);
    let to_the_end = script([upstream::Reply::default()
        .send(format!("HTTP/1.0 200 OK\r\nX: y\r\n\r\n{event}{event}"))
        .close()]);
    for script in [in_chunks, to_the_end] {
        let upstream = script.run();
        let proxy = proxy::new().upstream(&upstream).run();
        let told = ask_http10(&proxy);
        let (head, body) = told.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, [event, event].concat(), "{head}");
        assert!(
            !head.to_ascii_lowercase().contains("transfer-encoding"),
            "{head}"
        );
        assert!(
            head.to_ascii_lowercase().contains("connection: close"),
            "{head}"
        );
        assert_eq!(proxy.record()["outcome"], "ok");
    }
}

#[test]
fn a_client_of_http_1_0_is_served_by_an_upstream_that_could_speak_http2() {
    let upstream = script([reply(200).sse(&["data: 1\n\n"])])
        .run_with(crate::support::tls::server_config(&[b"http/1.1"]));
    let proxy = proxy::new().upstream(&upstream).run();
    let told = ask_http10(&proxy);
    assert!(told.ends_with("\r\n\r\ndata: 1\n\n"), "{told}");
}

#[test]
fn a_response_that_ends_its_connection_says_so() {
    let reset = script([upstream::Reply::default().reset()]).run();
    let proxy = proxy::new()
        .upstream_with("main", &reset, "retries: 0")
        .run();
    let client = proxy.client("sk-fast");
    let mut connection = client.connect();
    connection.send(client.message(PATH, BODY.as_bytes()));
    let answer = connection.answer();
    assert_eq!(answer.status, 502);
    assert_eq!(answer.header("connection"), Some("close"));
    connection.assert_closed();
}

#[test]
fn a_health_path_needs_no_key_and_leaves_no_line() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .tls()
        .setting("health_path: /health")
        .run();
    let client = proxy.anonymous();
    let mut connection = client.connect();
    for _ in 0..2 {
        connection.send(client.head("GET", "/health?from=balancer"));
        let answer = connection.answer();
        assert_eq!((answer.status, answer.text()), (200, "ok\n"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    let headers = client.exchange(
        &client
            .clone()
            .header("Connection", "close")
            .head("HEAD", "/health"),
    );
    assert_eq!((headers.status, headers.whole), (200, false));
    for path in [
        "/health/",
        "/Health/?from=balancer",
        "http://proxy.test/health",
    ] {
        assert_eq!(client.get(path).status, 200, "{path}");
    }
    for path in ["/health//", "/healthz", "/v1/health"] {
        assert_eq!(client.get(path).status, 401, "{path}");
    }
    assert_eq!(client.post("/health", "{}").status, 401);
    proxy.access_log(4);
    assert_eq!(proxy.metric("tiergate_requests_in_flight"), 0.0);
    assert_eq!(proxy.metric("tiergate_requests_total"), 4.0);
    upstream.assert_untouched();
}

#[test]
fn a_health_path_says_that_the_proxy_drains() {
    let upstream = script([upstream::silence()]).run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("health_path: /health\nserver: {drain: 10s}")
        .run();
    // The request keeps the process, its connection the listener's client.
    let busy = proxy.client("sk-fast");
    let mut running = busy.connect();
    running.send(busy.message(PATH, BODY.as_bytes()));
    upstream.await_heads(1);
    let client = proxy.anonymous();
    let mut connection = client.connect();
    connection.send(client.head("GET", "/health"));
    assert_eq!(connection.answer().status, 200);
    // The next one is half sent when the drain begins.
    let head = client.head("GET", "/health");
    connection.send(&head[..10]);
    std::thread::sleep(Duration::from_millis(50));
    proxy.signal(libc::SIGTERM);
    proxy.await_stderr("drain");
    connection.send(&head[10..]);
    let answer = connection.answer();
    assert_eq!((answer.status, answer.text()), (503, "draining\n"));
    assert_eq!(answer.header("connection"), Some("close"));
}

const PAGE: &str = "https://chat.example.com";

fn for_pages(upstream: &Upstream, origins: &str) -> Proxy {
    proxy::new()
        .upstream(upstream)
        .setting(&format!("cors: {{allow_origins: [{origins}]}}"))
        .setting("health_path: /health")
        .run()
}

/// What of a response is for browsers.
fn for_browsers(answer: &Answer) -> Vec<String> {
    let mut lines = answer_lines(answer);
    lines.retain(|line| line.starts_with("access-control-") || line.starts_with("vary"));
    lines
}

#[test]
fn a_preflight_is_answered_without_a_key_and_has_a_line() {
    let upstream = upstream::json("{}").run();
    let proxy = for_pages(&upstream, "\"https://chat.example.com\"");
    let page = proxy
        .anonymous()
        .header("Origin", PAGE)
        .header("Access-Control-Request-Method", "POST")
        .header(
            "Access-Control-Request-Headers",
            "authorization,content-type",
        );
    let answer = page.exchange(&page.head("OPTIONS", "/v1/chat/completions"));
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    assert_eq!(
        for_browsers(&answer),
        [
            "access-control-allow-headers: authorization,content-type",
            "access-control-allow-methods: GET, HEAD, POST, PUT, PATCH, DELETE",
            "access-control-allow-origin: https://chat.example.com",
            "access-control-max-age: 7200",
            "vary: Origin, Access-Control-Request-Headers",
        ]
    );
    let record = proxy.record();
    assert_eq!(
        (&record["status"], &record["outcome"], &record["key"]),
        (&json!(204), &json!("ok"), &json!(null))
    );
    upstream.assert_untouched();
}

#[test]
fn a_page_of_another_origin_is_answered_as_any_client_is() {
    let upstream = upstream::json("{}").run();
    let proxy = for_pages(&upstream, "\"https://chat.example.com\"");
    let page = proxy
        .anonymous()
        .header("Origin", "https://other.example")
        .header("Access-Control-Request-Method", "POST");
    let answer = page.exchange(&page.head("OPTIONS", PATH));
    assert_eq!(answer.status, 401);
    assert_eq!(for_browsers(&answer), ["vary: Origin"]);
    upstream.assert_untouched();
}

#[test]
fn every_response_may_be_read_by_an_allowed_page() {
    let sse = reply(200).sse(&["data: 1\n\n"]);
    let upstream = script([sse, reply(200).json("{}"), reply(429).json("{}")]).run();
    for origins in ["\"*\"", "\"https://chat.example.com\""] {
        let proxy = for_pages(&upstream, origins);
        let expected = [
            "access-control-allow-origin: https://chat.example.com",
            "access-control-expose-headers: *",
            "vary: Origin",
        ];
        for _ in 0..3 {
            let answer = proxy
                .client("sk-fast")
                .header("Origin", PAGE)
                .post(PATH, BODY);
            assert_eq!(for_browsers(&answer), expected);
        }
        for (key, body, status) in [
            ("sk-nobody", BODY, 401),
            ("sk-gone", BODY, 403),
            ("sk-fast", "[", 400),
        ] {
            let answer = proxy.client(key).header("Origin", PAGE).post(PATH, body);
            assert_eq!(answer.status, status);
            assert_eq!(for_browsers(&answer), expected);
        }
        let page = proxy.anonymous().header("Origin", PAGE);
        let answer = page.exchange(&page.head("GET", "/health"));
        assert_eq!((answer.status, for_browsers(&answer).len()), (200, 3));
    }
}
