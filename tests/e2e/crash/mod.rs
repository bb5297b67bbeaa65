//! What survives a crash: the real binary killed at random moments and at every fault point, drained, and without power;
//! judged by the laws of [`batchd::simulate::laws`].
//!
//! A failing run prints its seed; `BATCHD_CRASH_SEED=<seed>` runs that one again. Moments are random by the seed, but
//! how far the process has come by then is the machine's: a replay comes close, it is not the same run.

mod fine_tunes;
mod kills;
mod ordeal;
mod panics;
mod points;
mod power_cut;
mod schedules;
mod uncertain;
