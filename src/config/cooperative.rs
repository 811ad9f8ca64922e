//! Work that is done beside requests, on a thread of its own, and lets them go first.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long such work runs before others may. A request that comes in the meantime waits for it where all processors are busy;
/// the kernel alone would change over after some milliseconds.
const TURN: Duration = Duration::from_micros(100);
/// Calls between two looks at the clock.
const CALLS: u32 = 16;

thread_local! {
    static CURRENT: Cell<Option<Turn>> = const { Cell::new(None) };
}

#[derive(Clone, Copy)]
struct Turn {
    began: Instant,
    calls: u32,
}

/// What this thread does from now on is such work.
pub fn enter() {
    CURRENT.set(Some(Turn {
        began: Instant::now(),
        calls: 0,
    }));
}

/// A place between two small pieces of work, where others may go first.
pub fn give_way() {
    let Some(mut turn) = CURRENT.get() else {
        return;
    };
    turn.calls += 1;
    if turn.calls == CALLS {
        turn.calls = 0;
        if turn.began.elapsed() >= TURN {
            std::thread::yield_now();
            turn.began = Instant::now();
        }
    }
    CURRENT.set(Some(turn));
}
