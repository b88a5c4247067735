//! The last bytes of an output, for whoever comes back to a command.

use std::collections::VecDeque;

/// A bounded window on a stream: its last bytes, and where in the stream they stand.
#[derive(Debug)]
pub(crate) struct Ring {
    bytes: VecDeque<u8>,
    /// The position of the first byte kept.
    start: u64,
    cap: usize,
}

impl Ring {
    /// An empty window at this position of the stream. It takes memory as it fills.
    pub(crate) const fn new(start: u64, cap: usize) -> Self {
        Self { bytes: VecDeque::new(), start, cap }
    }

    /// The position of the first byte kept: so many are lost.
    pub(crate) const fn start(&self) -> u64 {
        self.start
    }

    /// The position behind the last byte.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Appends bytes, dropping the oldest where there is no room.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let kept = &bytes[bytes.len().saturating_sub(self.cap)..];
        let over = (self.bytes.len() + kept.len()).saturating_sub(self.cap);
        self.bytes.drain(..over);
        self.start += (over + bytes.len() - kept.len()) as u64;
        self.bytes.extend(kept);
    }

    /// Copies bytes from `position` on into `buffer`; how many there were. A position before the window reads from
    /// its start: see [`start`](Self::start) first.
    pub(crate) fn copy_from(&self, position: u64, buffer: &mut [u8]) -> usize {
        let offset = usize::try_from(position.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let (a, b) = self.bytes.as_slices();
        let a = a.get(offset.min(a.len())..).unwrap_or(&[]);
        let b = b.get(offset.saturating_sub(self.bytes.as_slices().0.len()).min(b.len())..).unwrap_or(&[]);
        let first = a.len().min(buffer.len());
        buffer[..first].copy_from_slice(&a[..first]);
        let second = b.len().min(buffer.len() - first);
        buffer[first..first + second].copy_from_slice(&b[..second]);
        first + second
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_window_is_the_streams_end(start in 0u64..10, cap in 1usize..50, chunks in proptest::collection::vec(0usize..80, 0..20), buffer in 1usize..60) {
            let mut ring = Ring::new(start, cap);
            let mut all: Vec<u8> = Vec::new();
            for len in chunks {
                let chunk: Vec<u8> = (all.len()..all.len() + len).map(|n| u8::try_from(n % 251).unwrap()).collect();
                ring.push(&chunk);
                all.extend_from_slice(&chunk);
            }
            prop_assert_eq!(ring.end(), start + all.len() as u64);
            prop_assert!(ring.end() - ring.start() == (all.len().min(cap)) as u64);
            let mut read = Vec::new();
            let mut position = ring.start();
            let mut space = vec![0; buffer];
            loop {
                let n = ring.copy_from(position, &mut space);
                if n == 0 { break; }
                read.extend_from_slice(&space[..n]);
                position += n as u64;
            }
            prop_assert_eq!(&read[..], &all[all.len() - all.len().min(cap)..]);
        }
    }
}
