//! The words of batchd and its pure decisions: no I/O, no clock, no randomness of its own.
//!
//! Every other module speaks in these types, and everything that decides about money
//! ([`attempt::decide`], [`retry::RetryPolicy`], [`range::Bits`]) is here, where hours of traffic
//! can be tried in milliseconds.

pub mod attempt;
pub mod fine_tune;
pub mod id;
pub mod job;
pub mod line;
pub mod range;
pub mod record;
pub mod request;
pub mod retry;
pub mod run;
pub mod time;
pub mod tuning;

pub use attempt::{Blocked, Failure, Outcome, Settlement, Shortage};
pub use fine_tune::{FineTune, TunedModel, TuningApi, TuningData};
pub use id::{InvalidName, JobId, JobName, QueueName, RequestId};
pub use job::{Counts, Job, JobSettings, JobState, JobStatus, OnUncertain, Order, PauseReason};
pub use line::LineEntry;
pub use record::{Record, RecordError, Response};
pub use request::{Endpoint, Kind, Request};
pub use retry::RetryPolicy;
pub use run::Run;
pub use time::Timestamp;
