//! Bytes that carry something which is dropped with the last of them.

use bytes::Bytes;

struct Guarded<B, G> {
    bytes: B,
    _guard: G,
}

impl<B: AsRef<[u8]>, G> AsRef<[u8]> for Guarded<B, G> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

/// The bytes; `guard` lives for as long as any part of them does.
pub fn guarded(bytes: impl AsRef<[u8]> + Send + 'static, guard: impl Send + 'static) -> Bytes {
    Bytes::from_owner(Guarded {
        bytes,
        _guard: guard,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_guard_goes_with_the_last_part() {
        let guard = Arc::new(());
        let bytes = guarded("of two parts", guard.clone());
        let part = bytes.slice(3..6);
        drop(bytes);
        assert_eq!((&*part, Arc::strong_count(&guard)), (&b"two"[..], 2));
        drop(part);
        assert_eq!(Arc::strong_count(&guard), 1);
    }
}
