//! A hostile guest, and a host that does what it likes, against the vsock device.
#![no_main]

use host_hv::testing::fuzz;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::run(bytes));
