//! The fuzz targets, with a seeded generator: some thousands of random inputs and mutated golden vectors each time.

#[path = "../fuzz/src/lib.rs"]
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    reason = "test code that is a crate of its own elsewhere"
)]
mod fuzz;
mod seeds;

use std::panic::catch_unwind;

/// A small generator, the same inputs every time (xorshift64*, Vigna 2016).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap_or(0) % n.max(1)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.byte()).collect()
    }

    /// A golden vector with some bytes changed, cut, doubled or put in.
    fn mutated(&mut self, seed: &[u8]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(6) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                1 if !bytes.is_empty() => {
                    bytes[at] = [0, 1, 127, 128, 250, 251, 252, 253, 254, 255][self.below(10)];
                }
                2 => bytes.truncate(at),
                3 => bytes.insert(at, self.byte()),
                4 => {
                    let end = at + self.below(bytes.len() - at);
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
                _ => bytes.extend(self.bytes(16)),
            }
        }
        bytes
    }
}

#[test]
fn random_and_mutated_inputs_find_nothing() {
    let seeds = seeds::all();
    for (name, target) in fuzz::TARGETS {
        let seeds: Vec<_> = seeds.iter().filter(|(of, _)| of == name).map(|(_, bytes)| bytes).collect();
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for round in 0..1000 {
            let input = match seeds.get(random.below(seeds.len() * 3 / 2)) {
                Some(seed) => random.mutated(seed),
                None => random.bytes(400),
            };
            let outcome = catch_unwind(|| target(&input));
            assert!(outcome.is_ok(), "{name}, round {round}, input {input:02x?}");
        }
        for seed in seeds {
            target(seed);
        }
    }
}
