//! A hostile guest against the file system's server.
#![no_main]

use host_hv::testing::fuse_fuzz;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuse_fuzz::run(bytes));
