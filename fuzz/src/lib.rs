//! What the fuzz targets share: the proxy's modules that do no I/O, compiled as they stand but without Pingora, whose build
//! would take longer than a short run of all targets; and pieces to cut inputs into. The targets themselves say what they
//! hold.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

// Their own paths begin with `crate::`, so they have to lie at the top of this crate, too.
pub use source::*;

#[path = "../../src"]
#[allow(dead_code)]
mod source {
    pub mod bridge;
    pub mod codec;
    pub mod config;
    pub mod policy;

    // Of these rooms what has no Pingora in it.
    pub mod accounting {
        pub mod access_log;
        pub mod usage;
    }
    pub mod upstream {
        pub mod output_queue;
    }
    pub mod proxy {
        pub mod client_ip;
        pub mod request_body;
    }
    pub mod server {
        pub mod connection_limit;
        pub mod proxy_protocol;
    }
}

// Names by which targets have known them.
pub use accounting::usage;
pub use codec::{error, json, service_tier, sse};
pub use config::diagnostic as mistake;
pub use policy::{api_key, endpoint};

/// Counts what is allocated from when it was started; not what C allocates for itself. One at a time.
pub struct Meter {
    before: usize,
}

/// The allocator that [`Meter`] asks.
struct Counted;

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// Bytes that are allocated, and the most that were since the last start of a meter.
static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

impl Meter {
    pub fn start() -> Meter {
        let before = HELD.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        Meter { before }
    }

    /// The most that was held at once beyond what was there at the start, in bytes.
    pub fn peak_bytes(&self) -> usize {
        PEAK.load(Ordering::Relaxed) - self.before
    }
}

// SAFETY: all calls go to the system's allocator as they come; counting allocates nothing.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of this very method.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of this very method.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// A configuration with two upstreams.
pub fn sample_config() -> config::Config {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tiergate.yaml"));
    config::Config::load(path).expect("it has no mistakes").0
}

/// `bytes`, cut as the seed says. Inputs of targets begin with the two bytes of it.
pub fn pieces(mut bytes: &[u8], seed: u16) -> Vec<&[u8]> {
    const LONGEST: [usize; 8] = [1, 2, 3, 7, 16, 40, 130, 1000];
    // Xorshift: any but 0, which it keeps.
    let mut state = u32::from(seed) + 1;
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let (size, longest) = (state as usize >> 8, LONGEST[state as usize & 7]);
        let (piece, rest) = bytes.split_at(bytes.len().min(size % (longest + 1)));
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}
