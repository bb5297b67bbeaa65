//! A run: the job that a schedule made at one of its times.

use serde::{Deserialize, Serialize};

use super::id::JobId;
use super::time::Timestamp;

/// Which schedule made a job, and for when. Kept with the [`Job`](super::Job), so that a run and the fact that it was
/// made become durable in one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The name of the schedule's file or folder in the jobs folder: no two schedules share it.
    pub spec: String,
    /// The time of the schedule that it was made for; none if a person asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<Timestamp>,
    /// The run before it, if that had not ended and this one is to wait for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<JobId>,
}
