//! See `batchd::fuzzing::retry_after`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchd::fuzzing::retry_after(data));
