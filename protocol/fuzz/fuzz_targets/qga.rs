#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hospes_protocol_fuzz::qga(data));
