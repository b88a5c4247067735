//! A bounded byte queue for what a reader has not taken yet.

use std::collections::VecDeque;
use std::io::IoSlice;

use super::IoBuf;

/// Bytes that wait for a slow reader. Holds no memory while empty: most connections never need it.
#[derive(Default)]
pub struct ByteRing {
    bytes: VecDeque<u8>,
}

impl ByteRing {
    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends the pieces after their first `skip` bytes. The caller keeps the bound.
    pub fn push(&mut self, pieces: &[IoBuf<'_>], mut skip: usize) {
        let mut chunk = [0; 4096];
        for piece in pieces {
            let (skipped, mut rest) = piece.split_at(skip);
            skip -= skipped.len();
            while !rest.is_empty() {
                let count = rest.copy_to(&mut chunk);
                self.bytes.extend(&chunk[..count]);
                rest = rest.split_at(count).1;
            }
        }
    }

    /// Appends plain bytes. The caller keeps the bound.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// Moves bytes into the pieces; returns how many.
    pub fn pop(&mut self, pieces: &[IoBuf<'_>]) -> usize {
        let mut total = 0;
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                let count = rest.copy_from(self.bytes.as_slices().0);
                if count == 0 {
                    return total;
                }
                rest = rest.split_at(count).1;
                self.consume(count);
                total += count;
            }
        }
        total
    }

    /// The bytes that wait, oldest first, for one gathering write.
    pub fn as_io_slices(&self) -> [IoSlice<'_>; 2] {
        let (first, second) = self.bytes.as_slices();
        [IoSlice::new(first), IoSlice::new(second)]
    }

    /// Drops the oldest `count` bytes; the memory goes when the last one does.
    pub fn consume(&mut self, count: usize) {
        self.bytes.drain(..count.min(self.bytes.len()));
        if self.bytes.is_empty() {
            self.bytes = VecDeque::new();
        }
    }

    /// Drops all bytes; returns how many there were.
    pub fn clear(&mut self) -> usize {
        std::mem::take(&mut self.bytes).len()
    }
}
