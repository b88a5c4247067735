//! A thousand programs of the fuzz target's kind, the same ones each time; `fuzz/` goes on from here.

use host_hv::testing::fuzz;

#[test]
fn no_program_breaks_the_device() {
    let mut state = 0x853c_49e6_748f_ea9b_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..1000 {
        let length = next() % 2000;
        let bytes: Vec<u8> = (0..length).map(|_| next().to_le_bytes()[4]).collect();
        fuzz::run(&bytes);
    }
}
