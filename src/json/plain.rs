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

    #[target_feature(enable = "avx2")]
    pub(super) fn find_stop(bytes: &[u8], mut from: usize) -> usize {
        while let Some(block) = bytes.get(from..).and_then(|rest| rest.first_chunk::<64>()) {
            let mut hits = specials(block);
            let mut passed = 64;
            while hits != 0 {
                let index = hits.trailing_zeros() as usize;
                if !super::is_short_escape(bytes, from + index) {
                    return from + index;
                }
                // The escaped byte goes with its backslash, even into the next block.
                hits &= !(0b11 << index);
                passed = passed.max(index + 2);
            }
            from += passed;
        }
        super::find_stop(bytes, from)
    }

    /// One bit for every special byte.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn specials(block: &[u8; 64]) -> u64 {
        let (low, high) = block.split_at(32);
        u64::from(specials_of_half(low)) | u64::from(specials_of_half(high)) << 32
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn specials_of_half(half: &[u8]) -> u32 {
        assert!(half.len() == 32);
        // SAFETY: `half` is 32 readable bytes, as was just asserted, and the load has no need of alignment.
        let half = unsafe { _mm256_loadu_si256(half.as_ptr().cast()) };
        let quote = _mm256_cmpeq_epi8(half, _mm256_set1_epi8(b'"' as i8));
        let backslash = _mm256_cmpeq_epi8(half, _mm256_set1_epi8(b'\\' as i8));
        let last_control = _mm256_set1_epi8(0x1f);
        let control = _mm256_cmpeq_epi8(_mm256_max_epu8(half, last_control), last_control);
        _mm256_movemask_epi8(_mm256_or_si256(_mm256_or_si256(quote, backslash), control)) as u32
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
