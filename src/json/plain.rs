//! Where a run of plain string bytes ends: the inner loop that decides how fast a document is scanned, and the only
//! place with `unsafe`. It knows nothing of JSON beyond the bytes that may not stand in a string as they are.

/// The instructions that the search uses. Both kinds give the same results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// True only where the processor was asked and has AVX2; the soundness of `find_stop` rests on it.
    avx2: bool,
}

impl Kernel {
    /// Works on every processor.
    pub const PORTABLE: Kernel = Kernel { avx2: false };

    /// The fastest kernel that this processor has.
    pub fn detect() -> Kernel {
        #[cfg(target_arch = "x86_64")]
        let avx2 = std::arch::is_x86_feature_detected!("avx2");
        #[cfg(not(target_arch = "x86_64"))]
        let avx2 = false;
        Kernel { avx2 }
    }

    /// The index of the first byte at or after `from` that cannot be passed over: the closing quote, a control character,
    /// or the `\` of an escape that is none of those of two bytes or is cut off. The length of `bytes` if there is none.
    #[inline]
    pub(super) fn find_stop(self, bytes: &[u8], from: usize) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.avx2 {
            // SAFETY: these may only be called where the processor has SSE2, which every x86-64 processor has, and
            // AVX2: `avx2` is true only where `is_x86_feature_detected!` has found it.
            return unsafe {
                // Most strings are short keys and words: they end within the first block, before a call would pay.
                match sse2::find_special(bytes, from) {
                    Some(at) if !is_short_escape(bytes, at) => at,
                    Some(at) => avx2::find_stop(bytes, at + 2),
                    None => avx2::find_stop(bytes, from),
                }
            };
        }
        find_stop(bytes, from)
    }
}

/// Whether an escape of two bytes stands at `at`, whole.
#[inline]
fn is_short_escape(bytes: &[u8], at: usize) -> bool {
    let escape = bytes.get(at..at + 2);
    matches!(
        escape,
        Some([
            b'\\',
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't'
        ])
    )
}

fn find_stop(bytes: &[u8], from: usize) -> usize {
    let mut at = find_special(bytes, from);
    while is_short_escape(bytes, at) {
        at = find_special(bytes, at + 2);
    }
    at
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

/// Classes of 64 bytes, one bit for each byte.
#[cfg(target_arch = "x86_64")]
struct Classes {
    quote: u64,
    backslash: u64,
    control: u64,
    /// Makes an escape of two bytes with a backslash before it.
    escape: u64,
}

/// A byte makes an escape of two bytes if the entries for its two halves have a bit in common: the bits stand for the
/// upper halves 2 (`"` and `/`), 5 (`\`), 6 (`b`, `f`, `n`) and 7 (`r`, `t`). A byte beyond ASCII has none.
#[cfg(target_arch = "x86_64")]
const LOWER: [u8; 16] = [0, 0, 13, 0, 8, 0, 4, 0, 0, 0, 0, 0, 2, 0, 4, 1];
#[cfg(target_arch = "x86_64")]
const UPPER: [u8; 16] = [0, 0, 1, 0, 0, 2, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0];

/// Blocks follow each other at a fixed stride, and nothing but a bit goes from one to the next, so that the processor works
/// on several at once; there is no branch for blocks without escapes, for program text has them in every other one. With
/// either, a body of an agent took a third longer.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn find_stop_by(bytes: &[u8], mut from: usize, classes: impl Fn(&[u8; 64]) -> Classes) -> usize {
    // Whether the byte before the block is a backslash that is not escaped itself.
    let mut begun = false;
    while let Some(block) = bytes.get(from..).and_then(|rest| rest.first_chunk::<64>()) {
        let classes = classes(block);
        let (escaped, begins) = escaped(classes.backslash, begun);
        let wrong = escaped & !classes.escape;
        let stops = (classes.quote & !escaped) | classes.control | (wrong >> 1);
        if wrong & 1 != 0 {
            return from - 1;
        }
        if stops != 0 {
            return from + stops.trailing_zeros() as usize;
        }
        begun = begins;
        from += 64;
    }
    find_stop(bytes, from - usize::from(begun))
}

/// The bytes before which stands a backslash that is not escaped itself, and whether such a one is the last byte.
///
/// A run of backslashes that begins at an odd index is added to the others, so that its carry comes out behind its end; the
/// parity of that place tells the parity of the run
/// (Langdale and Lemire, "Parsing Gigabytes of JSON per Second", 2019, section 3.1.1).
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn escaped(backslash: u64, begun: bool) -> (u64, bool) {
    const EVEN: u64 = u64::MAX / 3;
    let begun = u64::from(begun);
    let backslash = backslash & !begun;
    let follows = backslash << 1 | begun;
    let odd_starts = backslash & !EVEN & !follows;
    let (carried, begins) = odd_starts.overflowing_add(backslash);
    ((EVEN ^ (carried << 1)) & follows, begins)
}

/// Instructions that every x86-64 processor has.
#[cfg(target_arch = "x86_64")]
mod sse2 {
    use std::arch::x86_64::*;

    /// The first special byte among the next sixteen; `None` also where there are fewer.
    #[inline]
    #[target_feature(enable = "sse2")]
    pub(super) fn find_special(bytes: &[u8], from: usize) -> Option<usize> {
        let block = bytes[from..].first_chunk::<16>()?;
        // SAFETY: `block` is sixteen readable bytes, and the load has no need of alignment.
        let block = unsafe { _mm_loadu_si128(block.as_ptr().cast()) };
        let quote = _mm_cmpeq_epi8(block, _mm_set1_epi8(b'"' as i8));
        let backslash = _mm_cmpeq_epi8(block, _mm_set1_epi8(b'\\' as i8));
        // A byte is below 0x20 exactly if the greater of it and 0x1f is 0x1f; there is no unsigned comparison.
        let last_control = _mm_set1_epi8(0x1f);
        let control = _mm_cmpeq_epi8(_mm_max_epu8(block, last_control), last_control);
        let hits = _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(quote, backslash), control));
        (hits != 0).then(|| from + hits.trailing_zeros() as usize)
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Classes, LOWER, UPPER};

    #[target_feature(enable = "avx2")]
    pub(super) fn find_stop(bytes: &[u8], from: usize) -> usize {
        super::find_stop_by(bytes, from, |block| {
            let (low, high) = block.split_at(32);
            let [low, high] = [low, high]
                .map(|half| half_classes(half.first_chunk().expect("a half of 64 bytes has 32")));
            let join = |class: usize| u64::from(low[class]) | u64::from(high[class]) << 32;
            Classes {
                quote: join(0),
                backslash: join(1),
                control: join(2),
                escape: join(3),
            }
        })
    }

    /// One bit for each byte: a quote, a backslash, a control character, the second of an escape.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn half_classes(bytes: &[u8; 32]) -> [u32; 4] {
        // SAFETY: these are 32 readable bytes, and the load has no need of alignment.
        let bytes = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
        // A byte is below 0x20 exactly if the greater of it and 0x1f is 0x1f; there is no unsigned comparison.
        let last_control = _mm256_set1_epi8(0x1f);
        let control = _mm256_cmpeq_epi8(_mm256_max_epu8(bytes, last_control), last_control);
        let nibble = _mm256_set1_epi8(0x0f);
        let low = _mm256_shuffle_epi8(table(&LOWER), bytes);
        let high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
        let common = _mm256_and_si256(low, _mm256_shuffle_epi8(table(&UPPER), high));
        let no_escape = _mm256_cmpeq_epi8(common, _mm256_setzero_si256());
        [
            _mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(b'"' as i8))) as u32,
            _mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(b'\\' as i8))) as u32,
            _mm256_movemask_epi8(control) as u32,
            !_mm256_movemask_epi8(no_escape) as u32,
        ]
    }

    /// The table for each half of a register.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn table(entries: &[u8; 16]) -> __m256i {
        // SAFETY: these are sixteen readable bytes, and the load has no need of alignment.
        _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(entries.as_ptr().cast()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernels() -> [Kernel; 2] {
        [Kernel::PORTABLE, Kernel::detect()]
    }

    /// What `find_stop` should give, one byte at a time.
    fn naive(bytes: &[u8], mut at: usize) -> usize {
        loop {
            match &bytes[at.min(bytes.len())..] {
                [] => return bytes.len(),
                [b'\\', next, ..] if br#""\/bfnrt"#.contains(next) => at += 2,
                [b'"' | b'\\' | 0..0x20, ..] => return at,
                _ => at += 1,
            }
        }
    }

    #[test]
    fn every_byte_value_is_told_from_the_others_at_every_place_of_a_block() {
        for kernel in kernels() {
            for place in 0..200 {
                for byte in 0..=255u8 {
                    let mut bytes = [b'a'; 200];
                    bytes[place] = byte;
                    let expected = naive(&bytes, 0);
                    assert_eq!(
                        kernel.find_stop(&bytes, 0),
                        expected,
                        "{kernel:?} {byte:#x} at {place}"
                    );
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
                    assert_eq!(
                        kernel.find_stop(&bytes, 0),
                        expected,
                        "{kernel:?} {byte:#x} at {place}"
                    );
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
                    assert_eq!(
                        kernel.find_stop(&bytes[..end], from),
                        expected,
                        "{kernel:?} {from}..{end}"
                    );
                }
            }
        }
    }
}
