#![no_main]
#[path = "../walk.rs"]
mod walk;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| walk::walk(data));
