//! See `batchd::fuzzing::data_rows`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchd::fuzzing::data_rows(data));
