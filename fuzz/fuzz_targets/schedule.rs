//! See `batchd::fuzzing::schedule`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchd::fuzzing::schedule(data));
