//! The stand-in provider: an OpenAI-compatible server with latency, limits and faults, to rehearse a
//! job without paying.
//!
//! # Operation
//!
//! `engine` decides what becomes of a request: it is pure but for its own state (limits, dice,
//! ledger), takes the time as an argument and knows no sockets. Two doors lead to it: [`Server`] (axum)
//! turns its decisions into HTTP, broken connections included, and [`SimulatedTransport`] stands where
//! a provider's transport stands, for runs under tokio's paused clock.
//!
//! Answers are functions of the endpoint and the body alone, apart from their `id` and, for images by
//! url, the host. The text echoes the first 8 hex digits of the body's BLAKE3 and the last user text.
//!
//! `/_sim/ledger` says what was asked and paid for, `/_sim/faults` changes faults and limits of a
//! running server, and `/_sim/images/` serves the images.
//!
//! # What it does not do
//!
//! No streaming, files, fine-tunes or batches; token counts are bytes / 4; images are 8×8 PNG
//! whatever size and format was asked for.

mod admin;
mod answer;
mod bucket;
mod call;
mod engine;
mod fault;
mod image;
mod latency;
pub mod laws;
mod ledger;
mod limits;
mod member;
mod question;
mod refusal;
mod reply;
mod server;
mod settings;
mod transport;

pub use call::Request;
pub use engine::Engine;
pub use fault::{Fault, Faults};
pub use latency::Latency;
pub use ledger::{Entry, Outcome, Payments, Summary};
pub use reply::{Delivery, Reply};
pub use server::Server;
pub use settings::{Auth, Change, Changes, ImageForm, LedgerSettings, ParseError, Settings, WhenFull};
pub use transport::SimulatedTransport;
