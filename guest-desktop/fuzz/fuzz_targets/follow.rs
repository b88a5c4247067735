#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| guest_desktop_fuzz::follow(data));
