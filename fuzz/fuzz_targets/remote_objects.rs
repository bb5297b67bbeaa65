//! See `batchd::fuzzing::remote_objects`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchd::fuzzing::remote_objects(data));
