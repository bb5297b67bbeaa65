//! See `batchd::fuzzing::error_reply`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchd::fuzzing::error_reply(data));
