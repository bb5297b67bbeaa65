//! See `batchd::fuzzing::index_rows`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchd::fuzzing::index_rows(data));
