//! See `batchd::fuzzing::streamed_answer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchd::fuzzing::streamed_answer(data));
