//! See `batchd::fuzzing::intents`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchd::fuzzing::intents(data));
