//! How fast bodies are scanned and rewritten, in bytes of the body per second, beside parsers that look for the same members
//! in a body that is there whole. Here a body arrives in chunks of 16 KiB.

mod samples;

use std::borrow::Cow;

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use samples::body;
use serde::Deserialize;
use tiergate::codec::json::Kernel;
use tiergate::codec::service_tier::{Edit, Edits, Observer, Rewriter, Tier};

const CHUNK: usize = 16 << 10;
const DEPTH: usize = 512;
const FORCED: Edits = Edits {
    tier: Edit::Set(Tier::Priority),
    remove_fast_speed: false,
    request_usage: false,
};
const BODIES: [&str; 9] = [
    "empty",
    "chat_1k",
    "agent_1k",
    "codex_256k",
    "text_256k",
    "chinese_256k",
    "base64_8m",
    "pretty_256k",
    "duplicates_1m",
];
/// The others refuse a member that is there twice.
const SINGLE_MEMBERS: &[&str] = BODIES.split_last().unwrap().1;

/// The members that the rewriter looks at. All others are checked and passed over.
#[derive(Deserialize)]
#[expect(dead_code)]
struct Members<'a> {
    #[serde(borrow)]
    model: Option<Cow<'a, str>>,
    stream: Option<bool>,
    service_tier: Option<Cow<'a, str>>,
}

fn main() {
    divan::main();
}

#[divan::bench(args = BODIES)]
fn rewrite(bencher: Bencher, name: &str) {
    run(bencher, name, Kernel::detect());
}

#[divan::bench(args = BODIES)]
fn rewrite_portably(bencher: Bencher, name: &str) {
    run(bencher, name, Kernel::PORTABLE);
}

#[divan::bench(args = BODIES)]
fn observe(bencher: Bencher, name: &str) {
    let body = body(name);
    bencher.counter(BytesCount::new(body.len())).bench(|| {
        let mut observer = Observer::new();
        black_box(&body)
            .chunks(CHUNK)
            .for_each(|chunk| observer.feed(chunk));
        observer.finish()
    });
}

#[divan::bench(args = SINGLE_MEMBERS)]
fn parse_with_serde_json(bencher: Bencher, name: &str) {
    parse(bencher, name, |body| serde_json::from_slice(body).unwrap());
}

#[divan::bench(args = SINGLE_MEMBERS)]
fn parse_with_sonic_rs(bencher: Bencher, name: &str) {
    parse(bencher, name, |body| sonic_rs::from_slice(body).unwrap());
}

fn parse(bencher: Bencher, name: &str, parse: impl Fn(&[u8]) -> Members<'_> + Sync) {
    let body = body(name);
    bencher
        .counter(BytesCount::new(body.len()))
        .bench(|| parse(black_box(&body)));
}

fn run(bencher: Bencher, name: &str, kernel: Kernel) {
    let body = body(name);
    bencher.counter(BytesCount::new(body.len())).bench(|| {
        let mut rewriter = Rewriter::with_kernel(DEPTH, body.len(), kernel);
        for chunk in black_box(&body).chunks(CHUNK) {
            rewriter.push(chunk).unwrap();
        }
        rewriter.finish(FORCED).unwrap()
    });
}
