#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| guest_tools_fuzz::mounts(data));
