//! batchd runs large batches of requests against OpenAI and every server that speaks its API.

pub mod clock;
pub mod config;
pub mod control;
pub mod diag;
pub mod dispatch;
pub mod domain;
pub mod intake;
pub mod output;
pub mod provider;
pub mod simulate;
pub mod spec;
pub mod store;
pub mod telemetry;
pub mod upkeep;

pub mod cli;
pub mod daemon;
pub mod http;
