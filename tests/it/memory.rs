//! How much memory bodies take, as the kernel counts it for the process.

use std::io::Write;

use crate::support::client::{self, Connection};
use crate::support::proxy::{self, Proxy};
use crate::support::upstream;
use crate::support::{eventually, object_of};
use brotli::enc::BrotliEncoderParams;

const PATH: &str = "/v1/responses";
const MB: u64 = 1_000_000;
/// The highest resident size so far, and the one of this moment.
const PEAK: &str = "VmHWM:";
const NOW: &str = "VmRSS:";

/// Whatever a first request leaves allocated is no matter of the body that is measured.
fn warm_up(proxy: &Proxy) {
    assert_eq!(
        proxy.client("sk-fast").post(PATH, object_of(1000)).status,
        200
    );
    proxy.access_log(1);
}

#[test]
fn a_large_body_takes_little_more_than_its_own_size() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    warm_up(&proxy);
    let body = object_of(50_000_000);
    let idle = proxy.memory(PEAK);
    assert_eq!(proxy.client("sk-fast").post(PATH, &body).status, 200);
    let taken = proxy.memory(PEAK) - idle;
    let request = upstream.requests(2).remove(1);
    assert!(request.whole && request.body.len() >= body.len());
    assert_eq!(
        request.header("content-length"),
        [request.body.len().to_string()]
    );
    let size = body.len() as u64;
    assert!(
        taken * 10 >= size * 9,
        "{taken} bytes for {size}: it was not held at all"
    );
    assert!(taken * 10 <= size * 11, "{taken} bytes for {size}");
    assert_eq!(proxy.status()["buffered_bytes"], 0);
}

#[test]
fn a_large_body_that_is_not_forced_takes_nothing_of_its_size() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).run();
    warm_up(&proxy);
    let body = object_of(50_000_000);
    let idle = proxy.memory(PEAK);
    assert_eq!(proxy.client("sk-plain").post(PATH, &body).status, 200);
    let taken = proxy.memory(PEAK) - idle;
    assert!(upstream.requests(2)[1].body == body);
    assert!(taken < 10 * MB, "{taken} bytes");
}

#[test]
fn forty_stalled_bodies_stay_within_the_buffer() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {buffered: 41MB, body: 10MB}")
        .run();
    warm_up(&proxy);
    let idle = proxy.memory(NOW);
    let body = object_of(4_000_000);
    let client = proxy.client("sk-fast");
    let begin = |_| {
        let mut connection = client.connect();
        connection.send(client.head_of(PATH, body.len()));
        connection.send(&body[..body.len() / 2]);
        connection
    };
    let held = || proxy.status()["buffered_bytes"].as_u64().unwrap();
    // Nineteen halves fit, with what is remembered of each, before there is no room for another whole.
    let mut stalled: Vec<Connection> = (0..19).map(begin).collect();
    eventually("the halves", || (held() >= 38 * MB).then_some(()));
    // The others are refused by their heads, and their lines are there.
    stalled.extend((0..21).map(begin));
    let refused = proxy.access_log(1 + 21);
    let causes = refused[1..].iter().map(|record| &record["error"]);
    assert!(causes.into_iter().all(|cause| cause == "buffer_full"));
    assert!(proxy.memory(NOW) >= idle + 30 * MB);
    assert!((38 * MB..=41 * MB).contains(&held()), "{}", held());
    let taken = proxy.memory(PEAK) - idle;
    assert!(taken <= 50 * MB, "{taken} bytes");
    drop(stalled);
    eventually("room again", || {
        (proxy.status()["buffered_bytes"] == 0).then_some(())
    });
    assert_eq!(client.post(PATH, &body).status, 200);
    assert_eq!(proxy.access_log(1 + 40 + 1)[41]["outcome"], "ok");
}

#[test]
fn others_have_their_turns_while_a_few_bytes_are_decoded_to_very_many() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("server: {threads: 1}")
        .run();
    let mut zstd = zstd::Encoder::new(Vec::new(), 1).unwrap();
    zstd.write_all(b"{\"a\":[").unwrap();
    let numbers = "1,".repeat(500_000);
    for _ in 0..50 {
        zstd.write_all(numbers.as_bytes()).unwrap();
    }
    zstd.write_all(b"1]}").unwrap();
    let coded = zstd.finish().unwrap();
    assert!(coded.len() < 20_000, "{} bytes", coded.len());
    let client = proxy.client("sk-fast").header("Content-Encoding", "zstd");
    let mut connection = client.connect();
    connection.send(client.message(PATH, &coded));
    eventually("a part of the body", || {
        let held = proxy.status()["buffered_bytes"].as_u64().unwrap();
        (MB..25 * MB).contains(&held).then_some(())
    });
    assert_eq!(proxy.client("sk-fast").post(PATH, "{}").status, 200);
    assert_eq!(proxy.access_log(1)[0]["request_bytes"], 2);
    assert_eq!(connection.answer().status, 200);
}

/// Short bodies whose codings ask for the largest windows that are taken: 8 MiB and 16 MiB.
fn wide_windows() -> [(&'static str, Vec<u8>); 2] {
    let body = object_of(1000);
    let mut zstd = zstd::Encoder::new(Vec::new(), 1).unwrap();
    zstd.window_log(23).unwrap();
    zstd.write_all(&body).unwrap();
    let wide = BrotliEncoderParams {
        lgwin: 24,
        ..Default::default()
    };
    let mut brotli = brotli::CompressorWriter::with_params(Vec::new(), 4096, &wide);
    // A body that goes on behind its first bytes has the whole window.
    brotli.write_all(&body[..1]).unwrap();
    brotli.flush().unwrap();
    brotli.write_all(&body[1..]).unwrap();
    [
        ("zstd", zstd.finish().unwrap()),
        ("br", brotli.into_inner()),
    ]
}

#[test]
fn what_decodes_a_body_counts_as_held() {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .upstream(&upstream)
        .setting("limits: {buffered: 4MiB, body: 1MiB, decoded_body: 1MiB}")
        .run();
    for (coding, coded) in wide_windows() {
        let post = |key| {
            let client = proxy.client(key).header("Content-Encoding", coding);
            client.post(PATH, &coded)
        };
        let refused = post("sk-fast");
        assert_eq!(refused.status, 503, "{coding}");
        assert_eq!(refused.openai_code(), "buffer_full");
        // One that is only looked at passes without.
        assert_eq!(post("sk-plain").status, 200, "{coding}");
    }
    assert_eq!(proxy.client("sk-fast").post(PATH, "{}").status, 200);
    assert_eq!(proxy.status()["buffered_bytes"], 0);
}

#[test]
fn a_body_is_let_go_of_when_its_response_begins() {
    let begun = upstream::reply(200).sse_begun(&["data: 1\n\n"]).hold();
    let upstream = upstream::script([begun.send("0\r\n\r\n")]).run();
    let proxy = proxy::new().upstream(&upstream).run();
    let body = object_of(1_000_000);
    let coded = &wide_windows()[1].1;
    let coding = proxy.client("sk-plain").header("Content-Encoding", "br");
    let (client, chunked) = (proxy.client("sk-fast"), "Transfer-Encoding");
    let chunked = client.clone().header(chunked, "chunked");
    let chunked = [
        chunked.head("POST", PATH),
        client::chunk(&body),
        client::chunk(b""),
    ];
    let messages = [
        client.message(PATH, &body),
        chunked.concat(),
        coding.message(PATH, coded),
    ];
    for message in messages {
        let mut connection = client.connect();
        connection.send(message);
        assert_eq!(connection.head().unwrap().status, 200);
        eventually("nothing held", || {
            (proxy.status()["buffered_bytes"] == 0).then_some(())
        });
        assert_eq!(proxy.status()["requests_in_flight"], 1);
        upstream.release();
        while connection.chunk().is_some_and(|chunk| !chunk.is_empty()) {}
        upstream.hold_again();
        eventually("the end of the response", || {
            (proxy.status()["requests_in_flight"] == 0).then_some(())
        });
    }
    let records = proxy.stop();
    assert!(
        records.iter().all(|record| record["model"] == "m-1"),
        "{records:?}"
    );
}
