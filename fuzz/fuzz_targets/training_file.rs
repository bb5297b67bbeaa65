//! See `batchd::fuzzing::training_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchd::fuzzing::training_file(data));
