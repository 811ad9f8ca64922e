//! That the memory of observation is bounded whatever comes. It has the process, and so its allocator, to itself.

use http::HeaderMap;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tiergate::accounting::usage::{Observed, ResponseObserver};
use tiergate::policy::endpoint::Endpoint;

/// What an observer may hold at most, in bytes, beside the decoder of a coding.
const LIMIT: usize = 32 << 10;

const PIECE: usize = 16 << 10;

/// Counts what is allocated.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on as it is; only its sizes are counted.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(
            HELD.fetch_add(layout.size(), Relaxed) + layout.size(),
            Relaxed,
        );
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Feeds `start`, then `pieces` times `piece`, then `end`.
fn observe(
    endpoint: Endpoint,
    event_stream: bool,
    [start, piece, end]: [&str; 3],
    pieces: usize,
) -> Observed {
    let before = HELD.load(Relaxed);
    PEAK.store(before, Relaxed);
    let mut observer = ResponseObserver::new(endpoint, event_stream, &HeaderMap::new()).unwrap();
    observer.feed(start.as_bytes());
    (0..pieces).for_each(|_| observer.feed(piece.as_bytes()));
    observer.feed(end.as_bytes());
    let observed = observer.finish();
    let peak = PEAK.load(Relaxed) - before;
    assert!(
        peak < LIMIT,
        "{peak} bytes for {start:?} and {pieces} times {:?}",
        &piece[..piece.len().min(30)]
    );
    observed
}

// One test, so that nothing else allocates beside it.
#[test]
fn no_response_makes_an_observer_hold_more_than_a_few_kilobytes() {
    let endless = |byte: &str| byte.repeat(PIECE);
    let megabytes = |count: usize| count << 20 >> 14;
    let tail = r#""],"service_tier":"flex","usage":{"output_tokens":3}}}"#;
    let start = r#"data: {"type":"response.completed","response":{"output":[""#;

    let observed = observe(
        Endpoint::Responses,
        true,
        [start, &endless("x"), &format!("{tail}\n\n")],
        megabytes(30),
    );
    assert_eq!(observed.served_tier.as_deref(), Some("flex"));
    assert_eq!(observed.usage.output_tokens, Some(3));

    // Without a Content-Type, and with a plain document in the place of a stream.
    let observed = observe(
        Endpoint::Responses,
        false,
        [start, &endless("x"), &format!("{tail}\n\n")],
        megabytes(30),
    );
    assert_eq!(observed.usage.output_tokens, Some(3));
    let start = r#"{"output":[""#;
    let tail = r#""],"service_tier":"flex","usage":{"output_tokens":3}}"#;
    let observed = observe(
        Endpoint::Responses,
        true,
        [start, &endless("x"), tail],
        megabytes(30),
    );
    assert_eq!(observed.usage.output_tokens, Some(3));

    for endpoint in [
        Endpoint::Responses,
        Endpoint::ChatCompletions,
        Endpoint::Messages,
    ] {
        for opening in [
            "data: ",
            "data: {\"",
            "data: {\"id\":\"",
            "data: {\"type\":\"",
            "data: {\"choices\":",
            "",
            "event: ",
            "\u{feff}",
            "{\"usage\":{\"iterations\":[",
            "data: {\"type\":\"message_delta\",\"usage\":{\"iterations\":[{\"a\":",
            "data: {\"choices\":[{\"usage\":{\"a\":\"",
            "data: {\"error\":{\"message\":\"",
            "data: {\"error\":\"",
        ] {
            for byte in ["x", "[", "\n", " ", "\\u0000", "9", "{\"usage\":", "{},"] {
                observe(
                    endpoint,
                    true,
                    [opening, &endless(byte)[..PIECE], "\n\n"],
                    20,
                );
                observe(endpoint, false, [opening, &endless(byte)[..PIECE], ""], 20);
            }
        }
    }
    observe(Endpoint::Responses, true, ["", &endless("\n"), ""], 100);
    let delta = "data: {\"id\":\"a\",\"model\":\"b\",\"service_tier\":\"c\",\"type\":\"response.created\",\"choices\":[{}]}\n\n";
    for endpoint in [
        Endpoint::Responses,
        Endpoint::ChatCompletions,
        Endpoint::Messages,
    ] {
        observe(endpoint, true, ["", delta, ""], 20_000);
    }
}
