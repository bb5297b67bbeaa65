//! See `batchd::fuzzing::line_index`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchd::fuzzing::line_index(data));
