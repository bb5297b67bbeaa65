//! The stand-in provider: an OpenAI-compatible server with latency, limits and faults, to rehearse a
//! job without paying.
//!
//! # Operation
//!
//! `engine` says what becomes of a request: it is pure but for its own state (limits, dice, ledger,
//! what it keeps), takes the time as an argument and knows no sockets. Two doors lead to it: [`Server`] (axum)
//! turns its decisions into HTTP, broken connections included, and [`SimulatedTransport`] stands where
//! a provider's transport stands, for runs under tokio's paused clock.
//!
//! Answers are functions of the endpoint and the body alone, apart from their `id` and, for images by
//! url, the host. The text echoes the first 8 hex digits of the body's BLAKE3 and the last user text.
//!
//! `objects` plays what the API keeps: files, uploads, models, and fine-tunes by both of their interfaces, from
//! `validating_files` to `succeeded`, in memory. A [`Fate`], in the settings or by a word in a fine-tune's suffix
//! (`sim-fail`, `sim-cancel`, `sim-vanish`, `sim-odd`), ends one otherwise; [`Mishaps`] lose or spoil the reply to
//! the first upload, create, cancel and so on.
//!
//! `/_sim/ledger` says what was asked and paid for, `/_sim/pace` how fast, `/_sim/faults` changes faults and limits of
//! a running server, and `/_sim/images/` serves the images. A [`Script`] says what changes when.
//!
//! # What it does not do
//!
//! No batches, and streams of chat and completions alone; token counts are bytes / 4; images are 8×8 PNG whatever size
//! and format was asked for; `md5` of an upload is not checked.

mod admin;
mod answer;
mod bucket;
mod call;
mod engine;
mod fate;
mod fault;
mod hint;
mod image;
mod judge;
mod latency;
pub mod laws;
mod ledger;
mod limits;
mod line;
mod member;
mod mishap;
mod objects;
mod pace;
mod question;
mod refusal;
mod reply;
mod script;
mod server;
mod settings;
mod stream;
mod timeline;
mod transport;

pub use call::Request;
pub use engine::Engine;
pub use fate::Fate;
pub use fault::{Fault, Faults};
pub use hint::{Hint, Hints};
pub use latency::Latency;
pub use ledger::{Entry, KeyMark, Outcome, Payments, Summary};
pub use mishap::{Act, Mishaps};
pub use pace::{Pace, Second};
pub use reply::{Delivery, Reply};
pub use script::{Conditions, Event, Script, Trouble};
pub use server::Server;
pub use settings::{
    Auth, Change, Changes, ImageForm, LedgerSettings, LimitsTold, ParseError, Settings, WhenFull,
};
pub use transport::SimulatedTransport;
