#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::history_archive::run(data));
