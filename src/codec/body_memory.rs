//! How much memory all bodies together may take: a count that is exact, and refuses what would go over it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::codec::error::{Cause, Refusal};

/// The memory that all bodies held in the process and all decoders of bodies may take together (`limits.buffered`).
#[derive(Debug)]
pub struct BodyMemory {
    limit: u64,
    used: AtomicU64,
}

/// A share of the memory, given back when dropped.
#[derive(Debug)]
pub struct Lease {
    memory: Arc<BodyMemory>,
    bytes: u64,
}

impl BodyMemory {
    /// Memory of `limit` bytes, all of it free.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicU64::new(0),
        })
    }

    /// Bytes that are leased now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Leases so many bytes.
    ///
    /// # Errors
    /// [`Cause::BufferFull`] where they are not free.
    pub fn lease(self: &Arc<Self>, bytes: u64) -> Result<Lease, Refusal> {
        let mut lease = Lease {
            memory: self.clone(),
            bytes: 0,
        };
        lease.grow_to(bytes)?;
        Ok(lease)
    }

    /// Leases nothing yet.
    ///
    /// # Errors
    /// [`Cause::BufferFull`] where so many bytes are not free, which may come.
    pub fn lease_later(self: &Arc<Self>, bytes: u64) -> Result<Lease, Refusal> {
        match self.used().checked_add(bytes) {
            Some(sum) if sum <= self.limit => self.lease(0),
            _ => Err(Cause::BufferFull.into()),
        }
    }
}

impl Lease {
    /// # Errors
    /// `buffer_full` where all bodies together would take more than there is.
    pub fn grow_to(&mut self, bytes: u64) -> Result<(), Refusal> {
        let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) else {
            return Ok(());
        };
        let fits = |used: u64| {
            used.checked_add(more)
                .filter(|sum| *sum <= self.memory.limit)
        };
        match self
            .memory
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
        {
            Ok(_) => {
                self.bytes = bytes;
                Ok(())
            }
            Err(_) => Err(Cause::BufferFull.into()),
        }
    }

    /// Gives back what is beyond this many bytes.
    pub fn shrink_to(&mut self, bytes: u64) {
        let less = self.bytes.saturating_sub(bytes);
        self.memory.used.fetch_sub(less, Ordering::Relaxed);
        self.bytes -= less;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
