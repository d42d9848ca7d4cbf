#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::open_walk_read::run(data));
