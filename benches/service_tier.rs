//! How fast bodies are scanned and rewritten, in bytes of the body per second. A body arrives in chunks of 16 KiB.

mod samples;

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use samples::body;
use tiergate::json::Kernel;
use tiergate::service_tier::{Edit, Observer, Rewriter};

const CHUNK: usize = 16 << 10;
const DEPTH: usize = 512;
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
        let mut observer = Observer::new(DEPTH);
        black_box(&body)
            .chunks(CHUNK)
            .for_each(|chunk| observer.feed(chunk));
        observer.finish()
    });
}

fn run(bencher: Bencher, name: &str, kernel: Kernel) {
    let body = body(name);
    bencher.counter(BytesCount::new(body.len())).bench(|| {
        let mut rewriter = Rewriter::with_kernel(Edit::Set, DEPTH, body.len(), kernel);
        for chunk in black_box(&body).chunks(CHUNK) {
            rewriter.push(chunk).unwrap();
        }
        rewriter.finish().unwrap()
    });
}
