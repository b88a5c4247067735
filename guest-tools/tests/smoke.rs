//! The fuzz targets, with a seeded generator: some thousands of random inputs each time. `fuzz/` goes on from here.

#[path = "../fuzz/src/lib.rs"]
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::panic,
    reason = "test code that is a crate of its own elsewhere"
)]
mod fuzz;

use std::panic::catch_unwind;

#[test]
fn random_inputs_find_nothing() {
    for (name, target) in fuzz::TARGETS {
        // xorshift64, Marsaglia 2003: the same inputs every time.
        let mut state = 0x853c_49e6_748f_ea9b_u64;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for round in 0..5000 {
            let len = next() % 700;
            let input: Vec<u8> = (0..len).map(|_| next().to_le_bytes()[4]).collect();
            let outcome = catch_unwind(|| target(&input));
            assert!(outcome.is_ok(), "{name}, round {round}, input {input:02x?}");
        }
    }
}
