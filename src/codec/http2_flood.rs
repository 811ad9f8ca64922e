//! Tells a flood on a client's connection of HTTP/2: frames that bring nothing of a request, in numbers that nobody needs. The
//! h2 crate bounds resets and the frames of a head, and answers as many PING and SETTINGS frames as come.
//!
//! What the frames mean is for the h2 crate alone.

use crate::codec::http2_frames::{CONTINUATION, DATA, FrameScan, HEADERS, RST_STREAM};

/// Frames beyond what the connection has earned by requests and responses. The most that a client was seen to send at its
/// beginning is some tens.
const ALLOWANCE: i64 = 4096;
/// What a request earns.
const REQUEST_EARNS: i64 = 16;
/// Bytes to the client that earn a frame. Some clients give two WINDOW_UPDATE for each DATA frame, and an event of a stream
/// may be one, of some hundred bytes; the answer to a PING has 17.
const BYTES_EARN: u64 = 40;

/// What a connection has sent, and what it may.
#[derive(Debug)]
pub struct Http2Flood {
    frames: FrameScan,
    credit: i64,
    /// Bytes to the client that have not yet earned a frame.
    written: u64,
    /// Heads that have begun.
    heads: u64,
}

impl Default for Http2Flood {
    fn default() -> Self {
        Self {
            frames: FrameScan::default(),
            credit: ALLOWANCE,
            written: 0,
            heads: 0,
        }
    }
}

impl Http2Flood {
    /// Takes what came from the client behind its preface. False where it is a flood.
    pub fn record_read(&mut self, bytes: &[u8]) -> bool {
        let (credit, heads) = (&mut self.credit, &mut self.heads);
        self.frames.feed(bytes, |frame| match frame.kind {
            DATA if frame.length > 0 => {}
            RST_STREAM | CONTINUATION => {}
            HEADERS => {
                *heads += 1;
                *credit = credit.saturating_add(REQUEST_EARNS);
            }
            _ => *credit -= 1,
        });
        self.credit > 0
    }

    /// So many empty DATA frames came and are not in what is taken. False where it is a flood.
    pub fn record_left_out(&mut self, count: usize) -> bool {
        self.credit = self.credit.saturating_sub_unsigned(count as u64);
        self.credit > 0
    }

    /// Whether what came is whole frames, and whole heads.
    pub fn is_between_frames(&self) -> bool {
        self.frames.is_between_frames()
    }

    /// How many heads have begun so far, and whether the last of them is not whole.
    pub fn heads(&self) -> (u64, bool) {
        (self.heads, self.frames.is_in_head())
    }

    /// So many bytes went to the client.
    pub fn record_written(&mut self, count: usize) {
        self.written += count as u64;
        let earned = self.written / BYTES_EARN;
        self.written %= BYTES_EARN;
        self.credit = self.credit.saturating_add_unsigned(earned);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: u8 = 6;
    const WINDOW_UPDATE: u8 = 8;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, 0, 0, 0, 0, 0][..], payload].concat()
    }

    #[test]
    fn a_flood_is_told_however_it_is_cut() {
        let pings = frame(PING, &[7; 8]).repeat(ALLOWANCE as usize);
        for piece in [1, 7, 9, 17, 1000, pings.len()] {
            let mut flood = Http2Flood::default();
            let (last, before) = (pings.len() - 17, &pings[..pings.len() - 17]);
            assert!(before.chunks(piece).all(|piece| flood.record_read(piece)));
            assert!(!flood.record_read(&pings[last..]));
        }
    }

    #[test]
    fn answers_do_not_earn_the_frames_that_ask_for_them() {
        let mut flood = Http2Flood::default();
        let ping = frame(PING, &[7; 8]);
        let answered = (0..4 * ALLOWANCE).take_while(|_| {
            flood.record_written(17);
            flood.record_read(&ping)
        });
        assert!(answered.count() < 4 * ALLOWANCE as usize);
    }

    #[test]
    fn a_client_that_opens_its_windows_at_each_event_goes_on_for_ever() {
        let mut flood = Http2Flood::default();
        let update = frame(WINDOW_UPDATE, &[0, 0, 0, 90]).repeat(2);
        for _ in 0..10 * ALLOWANCE {
            flood.record_written(90);
            assert!(flood.record_read(&update));
        }
    }

    #[test]
    fn bodies_and_requests_cost_nothing() {
        let mut flood = Http2Flood::default();
        let request = [
            frame(HEADERS, b"head"),
            frame(DATA, &[PING; 200]),
            frame(DATA, b""),
        ];
        for _ in 0..10 * ALLOWANCE {
            assert!(flood.record_read(&request.concat()));
        }
    }
}
