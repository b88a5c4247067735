//! How far a copy is: counters that the copying threads add to and a display reads.

use std::sync::atomic::{AtomicU64, Ordering};

/// A copy's counters. Nobody waits on them.
#[derive(Debug, Default)]
pub struct Progress {
    entries: AtomicU64,
    bytes: AtomicU64,
    total_entries: AtomicU64,
    total_bytes: AtomicU64,
}

impl Progress {
    /// Entries done.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Bytes of file content done, holes not included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Entries and bytes that there will be, once somebody has counted.
    #[must_use]
    pub fn total(&self) -> Option<(u64, u64)> {
        let entries = self.total_entries.load(Ordering::Acquire);
        (entries > 0).then(|| (entries, self.total_bytes.load(Ordering::Relaxed)))
    }

    /// One more entry.
    pub fn entry(&self) {
        self.entries.fetch_add(1, Ordering::Relaxed);
    }

    /// So many more bytes.
    pub fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What there will be.
    pub fn expect(&self, entries: u64, bytes: u64) {
        self.total_bytes.store(bytes, Ordering::Relaxed);
        self.total_entries.store(entries, Ordering::Release);
    }
}
