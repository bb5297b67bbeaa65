//! Commands and status reports: what stands between the outside (HTTP, CLI) and the workers.
//!
//! A command is answered when its effect is durable (P6). Pauses that a provider caused are no state
//! of a job but of a queue: dispatchers write them on the [`Board`], reports read them there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::domain::{Counts, JobId, JobState, JobStatus, PauseReason, QueueName, Timestamp};
use crate::store::{self, Store};

/// Why nothing is sent for a queue now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuePause {
    pub reason: PauseReason,
    /// The provider's words.
    pub message: String,
    pub since: Timestamp,
}

/// Which queues are paused, and the bell that ends their pauses early. Shared by all workers.
#[derive(Clone, Debug)]
pub struct Board {
    pauses: Arc<Mutex<BTreeMap<QueueName, QueuePause>>>,
    resumed: Arc<watch::Sender<u64>>,
}

impl Default for Board {
    fn default() -> Self {
        Self { pauses: Arc::default(), resumed: Arc::new(watch::Sender::new(0)) }
    }
}

impl Board {
    pub fn pause(&self, queue: &QueueName, pause: QueuePause) {
        self.lock().insert(queue.clone(), pause);
    }

    pub fn clear(&self, queue: &QueueName) {
        self.lock().remove(queue);
    }

    pub fn pauses(&self) -> BTreeMap<QueueName, QueuePause> {
        self.lock().clone()
    }

    /// Ends every pause now: each paused queue tries again at once.
    pub fn resume(&self) {
        self.resumed.send_modify(|count| *count += 1);
    }

    /// Ticks at every [`Board::resume`].
    pub fn resumed(&self) -> watch::Receiver<u64> {
        self.resumed.subscribe()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<QueueName, QueuePause>> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One job, as `list --json` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobReport {
    pub name: String,
    pub id: JobId,
    pub kind: String,
    pub status: String,
    /// Of a paused, held or failed job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// More words about `reason`, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    pub counts: Counts,
    /// In flight now.
    pub leased: u32,
    /// Waiting for their next attempt.
    pub waiting: u32,
    pub priority: u8,
    pub queues: Vec<QueueName>,
    pub spec_file: String,
    /// RFC 3339.
    pub accepted_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
}

/// Why a command was not carried out.
#[derive(Debug, Error)]
pub enum Error {
    #[error("no job is called `{0}`")]
    NoSuchJob(String),
    #[error("job `{name}` is {status}: it can't be {verb}")]
    WrongStatus { name: String, status: &'static str, verb: &'static str },
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// The commands. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Control {
    store: Arc<dyn Store>,
    board: Board,
    clock: Clock,
}

impl Control {
    pub fn new(store: Arc<dyn Store>, board: Board, clock: Clock) -> Self {
        Self { store, board, clock }
    }

    /// Every job, in the order of acceptance.
    pub async fn list(&self) -> Result<Vec<JobReport>, Error> {
        let pauses = self.board.pauses();
        Ok(self.store.jobs().await?.iter().map(|job| report(job, &pauses)).collect())
    }

    /// One job, by its name or id.
    pub async fn show(&self, job: &str) -> Result<JobReport, Error> {
        let state = self.find(job).await?;
        Ok(report(&state, &self.board.pauses()))
    }

    /// Nothing more is sent; what is in flight may finish; the rest ends as `cancelled`.
    pub async fn cancel(&self, job: &str) -> Result<JobReport, Error> {
        self.change(job, "cancelled", JobStatus::Cancelling, |status| !status.is_final()).await
    }

    /// Nothing more is sent until [`Control::resume`].
    pub async fn pause(&self, job: &str) -> Result<JobReport, Error> {
        let paused = JobStatus::Paused { reason: PauseReason::User };
        self.change(job, "paused", paused, |status| *status == JobStatus::InProgress).await
    }

    /// Ends a pause, a person's or a provider's.
    pub async fn resume(&self, job: &str) -> Result<JobReport, Error> {
        let resumable =
            |status: &JobStatus| matches!(status, JobStatus::Paused { .. } | JobStatus::InProgress);
        let report = self.change(job, "resumed", JobStatus::InProgress, resumable).await;
        self.board.resume();
        report
    }

    /// Tries again at once: waiting requests fall due, pauses end, a held job goes on.
    pub async fn retry(&self, job: &str) -> Result<JobReport, Error> {
        let may_retry = |status: &JobStatus| {
            matches!(status, JobStatus::Paused { .. } | JobStatus::InProgress | JobStatus::Held { .. })
        };
        self.change(job, "retried", JobStatus::InProgress, may_retry).await?;
        let state = self.find(job).await?;
        self.store.retry_now(state.job.id).await?;
        self.board.resume();
        self.show(&state.job.id.to_string()).await
    }

    async fn change(
        &self,
        job: &str,
        verb: &'static str,
        to: JobStatus,
        allowed: impl FnOnce(&JobStatus) -> bool,
    ) -> Result<JobReport, Error> {
        let state = self.find(job).await?;
        let state = if state.status == to {
            state
        } else if allowed(&state.status) {
            self.store.set_status(state.job.id, to, self.clock.now()).await?
        } else {
            let (name, status) = (state.job.name.to_string(), state.status.as_str());
            return Err(Error::WrongStatus { name, status, verb });
        };
        Ok(report(&state, &self.board.pauses()))
    }

    /// By id, else the newest job of that name.
    async fn find(&self, job: &str) -> Result<JobState, Error> {
        let jobs = self.store.jobs().await?;
        let id = job.parse::<JobId>().ok();
        jobs.into_iter()
            .rev()
            .find(|state| Some(state.job.id) == id || state.job.name.as_str() == job)
            .ok_or_else(|| Error::NoSuchJob(job.to_owned()))
    }
}

/// A running job shows as paused while each of its queues with work is.
fn report(state: &JobState, pauses: &BTreeMap<QueueName, QueuePause>) -> JobReport {
    let job = &state.job;
    let stopped = state.status == JobStatus::InProgress
        && state.counts.open() > 0
        && job.queues.iter().all(|queue| pauses.contains_key(queue));
    let stopped_by = job.queues.iter().find_map(|queue| pauses.get(queue)).filter(|_| stopped);
    let (status, reason, message) = match (&state.status, stopped_by) {
        (_, Some(pause)) => ("paused", Some(pause.reason.to_string()), Some(pause.message.clone())),
        (JobStatus::Paused { reason }, None) => ("paused", Some(reason.to_string()), None),
        (status @ (JobStatus::Held { why } | JobStatus::Failed { why }), None) => {
            (status.as_str(), Some(why.clone()), None)
        }
        (status, None) => (status.as_str(), None, None),
    };
    JobReport {
        name: job.name.to_string(),
        id: job.id,
        kind: job.kind.to_string(),
        status: status.to_owned(),
        reason,
        message,
        counts: state.counts,
        leased: state.leased,
        waiting: state.waiting,
        priority: job.settings.priority,
        queues: job.queues.clone(),
        spec_file: job.spec_file.clone(),
        accepted_at: job.accepted_at.to_string(),
        finished_at: state.finished_at.map(|at| at.to_string()),
    }
}
