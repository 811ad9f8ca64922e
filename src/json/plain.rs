//! Where a run of plain string bytes ends: the inner loop that decides how fast a document is scanned, and the only
//! place with `unsafe`. It knows nothing of JSON beyond the bytes that may not stand in a string as they are.

/// The instructions that the search uses. Both kinds give the same results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// True only where the processor was asked and has AVX2; the soundness of `find_special` rests on it.
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

    /// Sixteen entries for each half of a 256-bit register.
    const fn twice(table: [u8; 16]) -> [u8; 32] {
        let mut both = [0; 32];
        let mut index = 0;
        while index < 32 {
            both[index] = table[index % 16];
            index += 1;
        }
        both
    }

    /// A byte makes an escape of two bytes if the entries for its two halves have a bit in common: the bits stand for the
    /// upper halves 2 (`"` and `/`), 5 (`\`), 6 (`b`, `f`, `n`) and 7 (`r`, `t`).
    const LOWER: [u8; 32] = twice([0, 0, 13, 0, 8, 0, 4, 0, 0, 0, 0, 0, 2, 0, 4, 1]);
    const UPPER: [u8; 32] = twice([0, 0, 1, 0, 0, 2, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0]);

    /// The classes of 64 bytes, one bit for each byte.
    #[derive(Default)]
    struct Classes {
        quote: u64,
        backslash: u64,
        control: u64,
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn find_stop(bytes: &[u8], mut from: usize) -> usize {
        while let Some(block) = bytes.get(from..).and_then(|rest| rest.first_chunk::<64>()) {
            let Classes {
                quote,
                backslash,
                control,
            } = classes(block);
            let escaped = escaped(backslash);
            let mut stops = (quote & !escaped) | control;
            if backslash != 0 {
                // All escapes of the block at once: one by one they took a third of the time for program text.
                let wrong = escaped & !escapes(block);
                stops |= wrong >> 1;
            }
            if stops != 0 {
                return from + stops.trailing_zeros() as usize;
            }
            // A backslash at the end begins the next block, together with the byte that it escapes.
            let cut_off = (backslash & !escaped) >> 63;
            from += 64 - cut_off as usize;
        }
        super::find_stop(bytes, from)
    }

    /// The bytes before which stands a backslash that is not escaped itself, where the byte before the block is none.
    ///
    /// A run of backslashes that begins at an odd index is added to the others, so that its carry comes out behind its
    /// end; the parity of that place tells the parity of the run
    /// (Langdale and Lemire, "Parsing Gigabytes of JSON per Second", 2019, section 3.1.1).
    #[inline]
    fn escaped(backslash: u64) -> u64 {
        const EVEN: u64 = u64::MAX / 3;
        let follows = backslash << 1;
        let odd_starts = backslash & !EVEN & !follows;
        let carried = odd_starts.wrapping_add(backslash) << 1;
        (EVEN ^ carried) & follows
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn classes(block: &[u8; 64]) -> Classes {
        let mut classes = Classes::default();
        for (index, half) in halves(block).into_iter().enumerate() {
            let bits = |found| u64::from(_mm256_movemask_epi8(found) as u32) << (32 * index);
            // A byte is below 0x20 exactly if the greater of it and 0x1f is 0x1f; there is no unsigned comparison.
            let last_control = _mm256_set1_epi8(0x1f);
            let control = _mm256_cmpeq_epi8(_mm256_max_epu8(half, last_control), last_control);
            classes.quote |= bits(_mm256_cmpeq_epi8(half, _mm256_set1_epi8(b'"' as i8)));
            classes.backslash |= bits(_mm256_cmpeq_epi8(half, _mm256_set1_epi8(b'\\' as i8)));
            classes.control |= bits(control);
        }
        classes
    }

    /// The bytes that make an escape of two bytes with a backslash before them.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn escapes(block: &[u8; 64]) -> u64 {
        let [lower, upper] = [load(&LOWER), load(&UPPER)];
        let nibble = _mm256_set1_epi8(0x0f);
        let mut escapes = 0;
        for (index, half) in halves(block).into_iter().enumerate() {
            // A byte beyond ASCII finds 0 in the first table.
            let low = _mm256_shuffle_epi8(lower, half);
            let high = _mm256_and_si256(_mm256_srli_epi16(half, 4), nibble);
            let common = _mm256_and_si256(low, _mm256_shuffle_epi8(upper, high));
            let none = _mm256_cmpeq_epi8(common, _mm256_setzero_si256());
            escapes |= u64::from(!_mm256_movemask_epi8(none) as u32) << (32 * index);
        }
        escapes
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn halves(block: &[u8; 64]) -> [__m256i; 2] {
        let (low, high) = block.split_at(32);
        [low, high].map(|half| load(half.first_chunk().expect("a half of 64 bytes has 32")))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(bytes: &[u8; 32]) -> __m256i {
        // SAFETY: these are 32 readable bytes, and the load has no need of alignment.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
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
