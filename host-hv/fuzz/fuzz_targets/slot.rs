//! A hostile guest against a device in its place in a machine.
#![no_main]

use host_hv::testing::slot_fuzz;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| slot_fuzz::run(bytes));
