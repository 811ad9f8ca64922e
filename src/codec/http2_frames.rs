//! The headers of the frames on a connection of HTTP/2, read along as bytes pass (RFC 9113 §4.1). What frames mean is for the
//! h2 crate; what it tells nobody is read here.

const HEADER_BYTES: usize = 9;
/// The identifier that a GOAWAY begins with.
const LAST_STREAM_BYTES: usize = 4;
/// A stream's identifier has 31 bits.
const STREAM_MASK: u32 = 0x7fff_ffff;

/// Types of frames (RFC 9113 §6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const GOAWAY: u8 = 7;
pub const CONTINUATION: u8 = 9;

/// A DATA frame of no bytes that ends nothing, but for its stream: its length, type and flags.
const EMPTY_DATA: [u8; 5] = [0, 0, 0, DATA, 0];
/// Of HEADERS and CONTINUATION: the last of its head.
const END_HEADERS: u8 = 4;

/// Where the bytes stand in their frames.
#[derive(Debug, Default)]
pub struct FrameScan {
    /// The beginning of the frame under way: its header, and of a GOAWAY the last stream.
    begin: [u8; HEADER_BYTES + LAST_STREAM_BYTES],
    length: usize,
    /// Bytes of its payload that are still to come and are passed over.
    payload: usize,
    /// The next frame is to go on with a head.
    in_head: bool,
}

/// A frame, when it has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Type of the frame.
    pub kind: u8,
    /// Length of its payload in bytes.
    pub length: usize,
    /// The stream that it is about, or 0.
    pub stream: u32,
    /// Of a GOAWAY: the last stream that may have been processed.
    pub last_stream: Option<u32>,
}

impl FrameScan {
    /// Takes what came next, and shows each frame that begins in it.
    pub fn feed(&mut self, mut bytes: &[u8], mut show: impl FnMut(FrameHeader)) {
        while !bytes.is_empty() {
            let skipped = self.payload.min(bytes.len());
            self.payload -= skipped;
            bytes = &bytes[skipped..];
            let taken = bytes.len().min(self.wanted() - self.length);
            self.begin[self.length..self.length + taken].copy_from_slice(&bytes[..taken]);
            self.length += taken;
            bytes = &bytes[taken..];
            if self.length > 0 && self.length == self.wanted() {
                show(self.header());
                self.payload = payload_bytes(&self.begin) + HEADER_BYTES - self.length;
                self.length = 0;
                let [_, _, _, kind, flags, ..] = self.begin;
                self.in_head = matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS == 0;
            }
        }
    }

    /// Whether a frame of any type may come next.
    pub fn is_between_frames(&self) -> bool {
        self.length == 0 && self.payload == 0 && !self.in_head
    }

    /// Whether a head has begun that is not whole.
    pub fn is_in_head(&self) -> bool {
        self.in_head || (self.payload > 0 && matches!(self.begin[3], HEADERS | CONTINUATION))
    }

    /// How much of a frame is read before it is shown.
    fn wanted(&self) -> usize {
        let is_goaway = self.length >= HEADER_BYTES && self.begin[3] == GOAWAY;
        match is_goaway && payload_bytes(&self.begin) >= LAST_STREAM_BYTES {
            true => HEADER_BYTES + LAST_STREAM_BYTES,
            false => HEADER_BYTES,
        }
    }

    fn header(&self) -> FrameHeader {
        let [_, _, _, kind, _, a, b, c, d, last @ ..] = self.begin;
        let has_last = self.length > HEADER_BYTES;
        FrameHeader {
            kind,
            length: payload_bytes(&self.begin),
            stream: u32::from_be_bytes([a, b, c, d]) & STREAM_MASK,
            last_stream: has_last.then(|| u32::from_be_bytes(last) & STREAM_MASK),
        }
    }
}

/// The length of a frame's payload, by its header.
fn payload_bytes(header: &[u8]) -> usize {
    u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize
}

/// Leaves the empty DATA frames out of what is read. They say nothing (RFC 9113 §6.1 allows any number), some servers send one
/// with each flush, and the h2 crate (0.4.20) closes a connection at its 101st, with every request on it.
#[derive(Debug, Default)]
pub struct EmptyFrameFilter {
    /// What is here of the next frame's header, which is held until it is whole.
    header: [u8; HEADER_BYTES],
    length: usize,
    /// Bytes that are still to come and pass whatever they are.
    passing: usize,
}

impl EmptyFrameFilter {
    /// For a connection that begins with a preface of so many bytes.
    pub fn behind(preface: usize) -> Self {
        Self {
            passing: preface,
            ..Self::default()
        }
    }

    /// Gives on, in pieces, what came next without empty frames, and says how many of these were in it.
    pub fn pass(&mut self, mut bytes: &[u8], mut give: impl FnMut(&[u8])) -> usize {
        let mut left_out = 0;
        while !bytes.is_empty() {
            let passed = bytes.split_off(..self.passing.min(bytes.len()));
            let passed = passed.unwrap_or_default();
            self.passing -= passed.len();
            give(passed);
            let wanted = (HEADER_BYTES - self.length).min(bytes.len());
            let more = bytes.split_off(..wanted).unwrap_or_default();
            self.header[self.length..self.length + wanted].copy_from_slice(more);
            self.length += wanted;
            if self.length < HEADER_BYTES {
                break;
            }
            self.length = 0;
            if self.header.starts_with(&EMPTY_DATA) {
                left_out += 1;
                continue;
            }
            give(&self.header);
            self.passing = payload_bytes(&self.header);
        }
        left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, 1][..], payload].concat()
    }

    #[test]
    fn frames_are_shown_however_their_bytes_come() {
        let bytes = [
            frame(HEADERS, 5, b"head"),
            frame(DATA, 0, b""),
            frame(GOAWAY, 0, &[0x80, 0, 1, 3, 0, 0, 0, 0, b'x']),
            frame(GOAWAY, 0, b"odd"),
            frame(DATA, 1, &[7; 200]),
        ]
        .concat();
        let shown = |kind, length, last_stream| FrameHeader {
            kind,
            length,
            stream: 1,
            last_stream,
        };
        let expected = [
            shown(HEADERS, 4, None),
            shown(DATA, 0, None),
            shown(GOAWAY, 9, Some(259)),
            shown(GOAWAY, 3, None),
            shown(DATA, 200, None),
        ];
        for step in [1, 2, 5, 9, 13, bytes.len()] {
            let (mut scan, mut seen) = (FrameScan::default(), Vec::new());
            let pieces = bytes.chunks(step);
            pieces.for_each(|piece| scan.feed(piece, |frame| seen.push(frame)));
            assert_eq!(seen, expected, "{step}");
        }
    }

    #[test]
    fn any_frame_may_come_where_none_has_begun_and_no_head() {
        let mut scan = FrameScan::default();
        assert!(scan.is_between_frames());
        let frames = [
            (frame(DATA, 0, b"body"), true),
            (frame(HEADERS, 1, b"he"), false),
            (frame(CONTINUATION, 0, b""), false),
            (frame(CONTINUATION, 4, b"ad"), true),
        ];
        for (bytes, is_between) in frames {
            let (last, before) = bytes.split_last().unwrap();
            for &byte in before {
                scan.feed(&[byte], |_| {});
                assert!(!scan.is_between_frames());
            }
            scan.feed(&[*last], |_| {});
            assert_eq!(scan.is_between_frames(), is_between);
        }
    }

    #[test]
    fn empty_data_frames_are_left_out_however_their_bytes_come() {
        let empty = || frame(DATA, 0, b"");
        let preface = b"PRI * with \0\0\0\0\0 in it".to_vec();
        let kept = [
            preface.clone(),
            frame(HEADERS, 4, b"head"),
            frame(DATA, 0, &empty()),
            frame(DATA, 1, b""),
            frame(CONTINUATION, 4, b""),
        ];
        let sent = kept.join(&[empty(), empty()].concat()[..]);
        let (first, rest) = sent.split_at(preface.len());
        let sent = [first, rest, &empty()].concat();
        for step in [1, 2, 5, 9, 13, sent.len()] {
            let mut filter = EmptyFrameFilter::behind(preface.len());
            let (mut passed, mut left_out) = (Vec::new(), 0);
            for piece in sent.chunks(step) {
                left_out += filter.pass(piece, |bytes| passed.extend_from_slice(bytes));
            }
            assert_eq!((left_out, &passed), (9, &kept.concat()), "{step}");
        }
    }
}
