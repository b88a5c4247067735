//! A bounded byte queue for what a reader has not taken yet.

use std::io::IoSlice;

use super::IoBuf;

/// Memory that an empty queue may keep, so that a stream that fills and empties all the time does not allocate.
const KEPT: usize = 128 * 1024;

/// The first allocation.
const SMALLEST: usize = 4096;

/// Bytes that wait for a slow reader. Holds no memory until it is needed: most connections never do.
#[derive(Default)]
pub struct ByteRing {
    /// Empty, or a power of two.
    store: Vec<u8>,
    start: usize,
    len: usize,
}

impl ByteRing {
    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends the pieces after their first `skip` bytes. The caller keeps the bound.
    pub fn push(&mut self, pieces: &[IoBuf<'_>], mut skip: usize) {
        let total: usize = pieces.iter().map(IoBuf::len).sum();
        self.reserve(total.saturating_sub(skip));
        for piece in pieces {
            let (skipped, mut rest) = piece.split_at(skip);
            skip -= skipped.len();
            while !rest.is_empty() {
                let count = rest.copy_to(self.free_run());
                rest = rest.split_at(count).1;
                self.len += count;
            }
        }
    }

    /// Appends plain bytes. The caller keeps the bound.
    pub fn push_bytes(&mut self, mut bytes: &[u8]) {
        self.reserve(bytes.len());
        while !bytes.is_empty() {
            let run = self.free_run();
            let count = run.len().min(bytes.len());
            run[..count].copy_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            self.len += count;
        }
    }

    /// Moves bytes into the pieces; returns how many.
    pub fn pop(&mut self, pieces: &[IoBuf<'_>]) -> usize {
        let before = self.len;
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() && self.len > 0 {
                let count = rest.copy_from(self.runs().0);
                rest = rest.split_at(count).1;
                self.advance(count);
            }
        }
        self.release();
        before - self.len
    }

    /// The bytes that wait, oldest first, for one gathering write.
    pub fn as_io_slices(&self) -> [IoSlice<'_>; 2] {
        let (first, second) = self.runs();
        [IoSlice::new(first), IoSlice::new(second)]
    }

    /// Drops the oldest `count` bytes.
    pub fn consume(&mut self, count: usize) {
        self.advance(count.min(self.len));
        self.release();
    }

    /// Drops all bytes; returns how many there were.
    pub fn clear(&mut self) -> usize {
        let count = self.len;
        self.consume(count);
        count
    }

    /// The bytes that wait, as they lie.
    fn runs(&self) -> (&[u8], &[u8]) {
        let first = self.len.min(self.store.len() - self.start);
        (&self.store[self.start..self.start + first], &self.store[..self.len - first])
    }

    /// The first run of free bytes.
    fn free_run(&mut self) -> &mut [u8] {
        let capacity = self.store.len();
        let end = self.start + self.len;
        if end >= capacity { &mut self.store[end - capacity..self.start] } else { &mut self.store[end..] }
    }

    fn advance(&mut self, count: usize) {
        self.len -= count;
        let next = self.start + count;
        self.start = if next >= self.store.len() { next - self.store.len() } else { next };
    }

    fn reserve(&mut self, more: usize) {
        let needed = self.len + more;
        if needed <= self.store.len() {
            return;
        }
        let mut store = Vec::with_capacity(needed.next_power_of_two().max(SMALLEST));
        let (first, second) = self.runs();
        store.extend_from_slice(first);
        store.extend_from_slice(second);
        store.resize(store.capacity(), 0);
        (self.store, self.start) = (store, 0);
    }

    fn release(&mut self) {
        if self.len == 0 {
            self.start = 0;
            if self.store.len() > KEPT {
                self.store = Vec::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::{any, prop_assert_eq, proptest};
    use vm_memory::VolatileSlice;

    use super::*;

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(steps in proptest::collection::vec((any::<bool>(), 0usize..9000), 1..60)) {
            let mut ring = ByteRing::default();
            let mut model = VecDeque::new();
            let mut next = 0u8;
            for (push, count) in steps {
                if push {
                    let mut bytes: Vec<u8> = (0..count).map(|_| { next = next.wrapping_add(1); next }).collect();
                    model.extend(&bytes);
                    let (a, b) = bytes.split_at_mut(count / 3);
                    let pieces = [IoBuf::from(VolatileSlice::from(a)), IoBuf::from(VolatileSlice::from(b))];
                    ring.push(&pieces, 0);
                } else {
                    let mut bytes = vec![0; count];
                    let (a, b) = bytes.split_at_mut(count / 2);
                    let pieces = [IoBuf::from(VolatileSlice::from(a)), IoBuf::from(VolatileSlice::from(b))];
                    let got = ring.pop(&pieces);
                    let want: Vec<u8> = model.drain(..count.min(model.len())).collect();
                    prop_assert_eq!(got, want.len());
                    prop_assert_eq!(&bytes[..got], &want[..]);
                }
                prop_assert_eq!(ring.len(), model.len());
            }
        }
    }

    #[test]
    fn an_empty_ring_keeps_little_memory() {
        let mut ring = ByteRing::default();
        ring.push_bytes(&vec![1; 10 * KEPT]);
        ring.clear();
        assert_eq!(ring.store.capacity(), 0);
    }
}
