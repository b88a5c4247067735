//! A hostile guest against the registers of virtio-mmio.
#![no_main]

use host_hv::testing::slot_fuzz;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| slot_fuzz::registers(bytes));
