//! Keys that look like nothing else, so that six bytes of one are enough to tell that it came out.

use std::collections::HashMap;
use std::fs;

use tiergate::policy::hash_key;

use crate::support::client::Answer;
use crate::support::proxy::{Builder, Proxy};

/// The shortest piece of a key that counts as one.
const PIECE: usize = 6;
const ADMIN: [&str; 5] = ["/", "/status", "/metrics", "/readyz", "/healthz"];

/// The keys that a test has planted, by what stands for their place.
#[derive(Default)]
pub struct Planted(HashMap<[u8; PIECE], String>);

impl Planted {
    /// A key of its own for this place.
    pub fn key(&mut self, place: &str) -> String {
        // Without the prefix; a digest's letters in upper and lower case are in no other text.
        let digest = hash_key(place.as_bytes());
        let letters = digest.bytes().skip(7).take(24).enumerate();
        let key: String = letters
            .map(|(at, byte)| match byte {
                b'0'..=b'9' if at % 2 == 0 => char::from(byte - b'0' + b'K'),
                b'0'..=b'9' => char::from(byte - b'0' + b'p'),
                _ if at % 2 == 0 => char::from(byte.to_ascii_uppercase()),
                _ => char::from(byte),
            })
            .collect();
        for piece in key.as_bytes().windows(PIECE) {
            self.0.insert(piece.try_into().unwrap(), place.to_owned());
        }
        key
    }

    pub fn assert_not_in(&self, text: &[u8], what: &str) {
        for (at, piece) in text.windows(PIECE).enumerate() {
            if let Some(place) = self.0.get(piece) {
                let shown = text[at.saturating_sub(80)..text.len().min(at + 40)].escape_ascii();
                panic!("{what} has a piece of the key in {place}: {shown}");
            }
        }
    }

    /// Head and body of an answer that the proxy has made itself.
    pub fn assert_not_in_answer(&self, answer: &Answer, what: &str) {
        let head = format!("{:?}", answer.headers);
        self.assert_not_in(head.as_bytes(), what);
        self.assert_not_in(&answer.body, what);
    }

    /// The log, both outputs, and every page of the admin listener.
    pub fn assert_not_told_by(&self, proxy: &Proxy) {
        for page in ADMIN {
            self.assert_not_in_answer(&proxy.admin(page), page);
        }
        for file in ["stdout", "stderr", "access.log"] {
            self.assert_not_in(&fs::read(proxy.path(file)).unwrap(), file);
        }
    }
}

/// Asks the process to tell all that it can.
pub fn talkative(builder: Builder) -> Builder {
    builder
        .environment("RUST_LOG", "trace")
        .environment("RUST_BACKTRACE", "full")
}
