//! See `batchd::fuzzing::prepared_pairs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchd::fuzzing::prepared_pairs(data));
