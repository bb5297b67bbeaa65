//! See `batchd::fuzzing::jsonl_spec`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchd::fuzzing::jsonl_spec(data));
