//! See `batchd::fuzzing::toml_spec`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchd::fuzzing::toml_spec(data));
