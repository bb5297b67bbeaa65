//! End to end: the real binary against the stand-in provider, judged by its files, its exit codes and the ledger.
//!
//! Every test has a [`world::World`] of its own: a root, a configuration, and a server within this process whose
//! ledger says what was asked and paid for. Tests wait for what they need to see, never for time to pass.

#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "this crate is tests throughout, but the lints know only their functions"
)]

mod exposition;
mod mounted;
mod process;
mod world;

mod at_the_provider;
mod bad_input;
mod burst;
mod commands;
mod crash;
mod endpoints;
mod faults;
mod fine_tunes;
mod full_disk;
mod idle;
mod lifecycle;
mod metrics;
mod pacing;
mod pauses;
mod placing;
mod pruning;
mod rebuild;
mod reload;
mod results;
mod schedules;
mod secrets;
mod sharing;
mod soak;
mod streams;
mod systemd;
mod vanishing;
