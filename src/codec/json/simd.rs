//! Where runs of plain string bytes end: the inner loop that decides how fast a document is scanned. It knows nothing of JSON
//! beyond the bytes that may not stand in a string as they are.

// The instructions of AVX2 may be called only where the processor has them, which the compiler cannot see.
#![allow(unsafe_code)]

/// The instructions that the search uses. Both kinds give the same results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// True only where the processor was asked and has AVX2 and BMI1; the soundness of `Piece` rests on it.
    avx2: bool,
}

/// A piece of a document, and what is known of the places in it where a string stops.
///
/// AVX2 tells the stops of 64 bytes at once, and most strings are short keys and words, so that these 64 bytes hold several:
/// what is known of them is kept from one string to the next. Without, scanning an agent's body of 256 KB takes a fifth longer.
pub(super) struct Piece<'a> {
    pub bytes: &'a [u8],
    kernel: Kernel,
    /// Where the block begins whose stops are known; beyond every index if there is none.
    block: usize,
    /// The stops in it, one bit for each byte.
    stops: u64,
    /// 1 if what was searched, up to the end of the block or of the piece, ends with a backslash that is not escaped
    /// itself, else 0; a number, for the loop over the blocks reckons with it.
    begun: u64,
}

#[cfg(target_arch = "x86_64")]
const BLOCK: usize = 64;

impl Kernel {
    /// Works on every processor.
    pub const PORTABLE: Kernel = Kernel { avx2: false };

    /// The fastest kernel that this processor has.
    pub fn detect() -> Kernel {
        #[cfg(target_arch = "x86_64")]
        let avx2 = std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("bmi1");
        #[cfg(not(target_arch = "x86_64"))]
        let avx2 = false;
        Kernel { avx2 }
    }
}

impl<'a> Piece<'a> {
    pub fn new(bytes: &'a [u8], kernel: Kernel) -> Piece<'a> {
        Piece {
            bytes,
            kernel,
            block: usize::MAX / 2,
            stops: 0,
            begun: 0,
        }
    }

    /// The index of the first byte at or after `from` that a string cannot pass over: the closing quote, a control
    /// character, or what stands behind a backslash and makes no escape of two bytes with it. The length of the piece if
    /// there is none.
    ///
    /// `from` lies in a string and not behind a backslash that is waiting for it, and never before the `from` of an
    /// earlier call. A document that has a backslash outside its strings is searched no further than that.
    #[inline]
    pub fn find_stop(&mut self, from: usize) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.kernel.avx2 {
            let passed = from.wrapping_sub(self.block);
            if passed < BLOCK && self.stops >> passed != 0 {
                return from + (self.stops >> passed).trailing_zeros() as usize;
            }
            // SAFETY: it may only be called where the processor has AVX2 and BMI1: `avx2` is true only where
            // `is_x86_feature_detected!` has found them.
            return unsafe { avx2::find_stop(self, from) };
        }
        self.find_stop_bytewise(from)
    }

    /// Whether the search that came to the end of the piece ended within an escape.
    pub fn is_cut_in_escape(&self) -> bool {
        self.begun == 1
    }

    /// Like [`Piece::find_stop`] without blocks, and from behind a backslash if one is begun.
    fn find_stop_bytewise(&mut self, mut from: usize) -> usize {
        let bytes = self.bytes;
        loop {
            if self.begun == 1 {
                match bytes.get(from) {
                    Some(&byte) if is_escape_letter(byte) => from += 1,
                    None => return from,
                    Some(_) => {
                        self.begun = 0;
                        return from;
                    }
                }
            }
            from = find_special(bytes, from);
            self.begun = u64::from(bytes.get(from) == Some(&b'\\'));
            if self.begun == 0 {
                return from;
            }
            from += 1;
        }
    }
}

/// Whether it makes an escape of two bytes with a backslash before it (RFC 8259 §7).
pub(super) fn is_escape_letter(byte: u8) -> bool {
    matches!(byte, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't')
}

fn find_special(bytes: &[u8], mut from: usize) -> usize {
    while let Some(word) = bytes[from..].first_chunk::<8>() {
        let hits = specials(u64::from_le_bytes(*word));
        if hits != 0 {
            return from + hits.trailing_zeros() as usize / 8;
        }
        from += 8;
    }
    let is_special = |&byte: &u8| byte == b'"' || byte == b'\\' || byte < 0x20;
    bytes[from..]
        .iter()
        .position(is_special)
        .map_or(bytes.len(), |index| from + index)
}

/// The top bit of every byte that is special. A borrow can set it for other bytes too, but only above one that is, so the
/// lowest is always right.
#[inline]
fn specials(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 0xff;
    let below = |word: u64, limit: u8| word.wrapping_sub(ONES * u64::from(limit)) & !word;
    let equal = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    (below(word, 0x20) | equal(b'"') | equal(b'\\')) & (ONES << 7)
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{BLOCK, Piece};

    /// Classes of the bytes of a block, one bit for each byte.
    struct Classes {
        /// A quote or a control character.
        end: u64,
        backslash: u64,
        /// Makes an escape of two bytes with a backslash before it.
        letter: u64,
    }

    /// The bytes that make an escape of two bytes, but the quote, which is compared with in any case. Each stands where half
    /// of it, rounded up, points to with its lower four bits; no other byte points to its own value.
    const LETTERS: [u8; 16] = {
        let letters = *br"\/bfnrt";
        let mut table = [u8::MAX; 16];
        let mut index = 0;
        while index < letters.len() {
            table[letters[index].div_ceil(2) as usize % 16] = letters[index];
            index += 1;
        }
        table
    };

    /// Goes on from block to block until one has a stop. There is no branch for blocks without escapes, for program text has
    /// them in every other one: with it, a body of an agent took a third longer.
    #[target_feature(enable = "avx2,bmi1")]
    pub(super) fn find_stop(piece: &mut Piece<'_>, from: usize) -> usize {
        let (mut at, mut begun) = match from.wrapping_sub(piece.block) {
            // The rest of this block has no stops.
            0..BLOCK => (piece.block + BLOCK, piece.begun),
            _ => (from, 0),
        };
        while let Some(block) = piece.bytes.get(at..at + BLOCK) {
            let classes = classes(block.first_chunk().expect("it is a block"));
            let (escaped, begins) = escaped(classes.backslash, begun);
            let stops = (classes.end & !escaped) | (escaped & !classes.letter);
            if stops != 0 {
                (piece.block, piece.stops, piece.begun) = (at, stops, begins);
                return at + stops.trailing_zeros() as usize;
            }
            begun = begins;
            at += BLOCK;
        }
        piece.begun = begun;
        piece.find_stop_bytewise(at)
    }

    /// The bytes before which stands a backslash that is not escaped itself, and 1 if such a one is the last byte, else 0.
    ///
    /// In a run of backslashes, and the byte after it, every second one is escaped, counted from where the run begins. A
    /// subtraction marks every other bit of each run and stops at its end, whether that place is even or odd (Langdale and
    /// Lemire, "Parsing Gigabytes of JSON per Second", 2019, section 3.1.1; by subtraction as in simdjson since 2023).
    #[inline(always)]
    fn escaped(backslash: u64, begun: u64) -> (u64, u64) {
        const ODD: u64 = u64::MAX / 3 * 2;
        let runs = backslash & !begun;
        let marks = (runs << 1 | ODD).wrapping_sub(runs) ^ ODD;
        (marks ^ (backslash | begun), (marks & backslash) >> 63)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn classes(block: &[u8; BLOCK]) -> Classes {
        let (low, high) = block.split_at(32);
        let [low, high] = [low, high]
            .map(|half| half_classes(half.first_chunk().expect("a half of 64 bytes has 32")));
        let join = |class: usize| u64::from(low[class]) | u64::from(high[class]) << 32;
        Classes {
            end: join(0),
            backslash: join(1),
            letter: join(2),
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn half_classes(bytes: &[u8; 32]) -> [u32; 3] {
        // SAFETY: these are 32 readable bytes, and the load has no need of alignment.
        let bytes = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
        // SAFETY: these are sixteen readable bytes, and the load has no need of alignment.
        let letters = unsafe { _mm_loadu_si128(LETTERS.as_ptr().cast()) };
        let quote = _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(b'"' as i8));
        let backslash = _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(b'\\' as i8));
        // A byte is below 0x20 exactly if the greater of it and 0x1f is 0x1f; there is no unsigned comparison.
        let last_control = _mm256_set1_epi8(0x1f);
        let control = _mm256_cmpeq_epi8(_mm256_max_epu8(bytes, last_control), last_control);
        // The average of a byte and 0 is half of it, rounded up. Where that is above 0x7f the shuffle gives 0.
        let half = _mm256_avg_epu8(bytes, _mm256_setzero_si256());
        let nearest = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(letters), half);
        let letter = _mm256_cmpeq_epi8(bytes, nearest);
        [
            _mm256_movemask_epi8(_mm256_or_si256(quote, control)) as u32,
            _mm256_movemask_epi8(backslash) as u32,
            _mm256_movemask_epi8(_mm256_or_si256(quote, letter)) as u32,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernels() -> [Kernel; 2] {
        [Kernel::PORTABLE, Kernel::detect()]
    }

    /// What `find_stop` should give, one byte at a time, and whether the end cuts an escape.
    fn naive(bytes: &[u8], mut at: usize) -> (usize, bool) {
        loop {
            match &bytes[at..] {
                [] => return (at, false),
                [b'\\'] => return (at + 1, true),
                [b'\\', next, ..] if br#""\/bfnrt"#.contains(next) => at += 2,
                [b'\\', ..] => return (at + 1, false),
                [b'"' | 0..0x20, ..] => return (at, false),
                _ => at += 1,
            }
        }
    }

    fn found(bytes: &[u8], from: usize, kernel: Kernel) -> (usize, bool) {
        let mut piece = Piece::new(bytes, kernel);
        let at = piece.find_stop(from);
        (at, at == bytes.len() && piece.is_cut_in_escape())
    }

    #[test]
    fn every_byte_value_is_told_from_the_others_at_every_place_of_a_block() {
        for kernel in kernels() {
            for place in 0..200 {
                for byte in 0..=255u8 {
                    let mut bytes = [b'a'; 200];
                    bytes[place] = byte;
                    let expected = naive(&bytes, 0);
                    let found = found(&bytes, 0, kernel);
                    assert_eq!(found, expected, "{kernel:?} {byte:#x} at {place}");
                }
            }
        }
    }

    #[test]
    fn every_escape_is_passed_over_or_stopped_at_in_every_place_of_a_block() {
        for kernel in kernels() {
            for place in 0..199 {
                for byte in 0..=255u8 {
                    let mut bytes = [b' '; 200];
                    bytes[place..place + 2].copy_from_slice(&[b'\\', byte]);
                    let expected = naive(&bytes, 0);
                    let found = found(&bytes, 0, kernel);
                    assert_eq!(found, expected, "{kernel:?} {byte:#x} at {place}");
                }
            }
        }
    }

    #[test]
    fn runs_of_backslashes_are_paired_from_any_start_in_any_length() {
        let mut bytes = [b'n'; 150];
        for run in [
            0..1,
            3..5,
            14..17,
            30..33,
            60..65,
            70..100,
            127..130,
            149..150,
        ] {
            bytes[run].fill(b'\\');
        }
        for kernel in kernels() {
            for end in 0..=bytes.len() {
                for from in 0..=end {
                    let expected = naive(&bytes[..end], from);
                    let found = found(&bytes[..end], from, kernel);
                    assert_eq!(found, expected, "{kernel:?} {from}..{end}");
                }
            }
        }
    }

    /// As a scanner does: what lies between two strings is passed over by somebody else.
    #[test]
    fn what_is_known_of_a_block_serves_the_strings_that_begin_in_it() {
        let mut text = Vec::new();
        for len in 0..150 {
            text.extend_from_slice(&b"\n"[..len % 2]);
            text.extend_from_slice(
                format!(r#"{}"{}\""#, ",".repeat(len / 3), r"a\\".repeat(len)).as_bytes(),
            );
            text.extend_from_slice(br#"","#);
        }
        for kernel in kernels() {
            let mut piece = Piece::new(&text, kernel);
            let mut at = 0;
            while let Some(gap) = text[at..].iter().position(|&byte| byte == b'"') {
                let from = at + gap + 1;
                at = piece.find_stop(from);
                assert_eq!(at, naive(&text, from).0, "{kernel:?} {from}");
                at += 1;
            }
        }
    }
}
