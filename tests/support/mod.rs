//! What the tests run against: the proxy's own binary between a client that sends exact bytes and an upstream that does
//! as it is told. Everything is on loopback, on free ports, and ends with the value that stands for it.

// Each test file compiles this module for itself and uses a part of it.
#![allow(dead_code)]

pub mod client;
pub mod command;
pub mod frames;
pub mod h2;
pub mod h2_script;
pub mod proxy;
pub mod record;
pub mod redis;
pub mod tls;
pub mod upstream;
pub mod websocket;

use std::path::Path;
use std::time::{Duration, Instant};

/// How long anything may take that is expected to happen. Generous: it is only waited out by a test that fails.
pub const PATIENCE: Duration = Duration::from_secs(45);

/// Looks again and again until there is something to see.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What is in this state file, once it has who created a background response.
pub fn stored_create(file: &Path) -> Vec<u8> {
    eventually("the create is in the state file", || {
        let stored = std::fs::read(file).ok()?;
        let has_create = stored.windows(10).any(|text| text == b"request_id");
        has_create.then_some(stored)
    })
}

/// A JSON object of exactly `bytes` bytes that names the standard tier.
pub fn object_of(bytes: usize) -> Vec<u8> {
    let (before, after) = (
        r#"{"model":"m-1","service_tier":"default","input":""#,
        r#""}"#,
    );
    let filler = bytes - before.len() - after.len();
    let text: String = (0..filler)
        .map(|at| char::from(b'a' + (at / 7 % 26) as u8))
        .collect();
    [before, &text, after].concat().into_bytes()
}
