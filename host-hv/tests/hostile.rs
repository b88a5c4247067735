//! Programs of the fuzz targets' kind, the same ones each time; `fuzz/` goes on from here.

use host_hv::testing::{fuzz, slot_fuzz};

fn programs(count: usize, longest: u64, run: impl Fn(&[u8])) {
    let mut state = 0x853c_49e6_748f_ea9b_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..count {
        let length = next() % longest;
        let bytes: Vec<u8> = (0..length).map(|_| next().to_le_bytes()[4]).collect();
        run(&bytes);
    }
}

#[test]
fn no_program_breaks_the_vsock_device() {
    programs(1000, 2000, fuzz::run);
}

#[cfg(target_os = "linux")]
#[test]
fn no_program_breaks_the_file_server_or_leaves_its_share() {
    programs(300, 8000, host_hv::testing::fuse_fuzz::run);
}

#[test]
fn no_program_breaks_a_devices_registers() {
    programs(2000, 1000, slot_fuzz::registers);
}

#[test]
fn no_program_breaks_a_device_in_its_place() {
    programs(500, 3000, slot_fuzz::run);
}
