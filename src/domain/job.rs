//! A job: the facts fixed when it was accepted ([`Job`]), and where it stands ([`JobState`]).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fine_tune::TunedModel;
use super::id::{JobId, JobName, QueueName};
use super::request::Kind;
use super::retry::RetryPolicy;
use super::run::Run;
use super::time::Timestamp;

/// What is fixed when a spec is accepted. Kept in the job's `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub id: JobId,
    /// Also the name of its folder below `results/`.
    pub name: JobName,
    pub kind: Kind,
    /// What bare request bodies in a JSONL input mean, by the file's ending (`bare.chat.jsonl`).
    #[serde(default)]
    pub ending: Option<Kind>,
    /// The dropped file's (or folder's) own name, for people.
    pub spec_file: String,
    pub accepted_at: Timestamp,
    /// Number of requests.
    pub total: u32,
    /// The queues its lines name by number; at most [`Job::QUEUES_MAX`].
    pub queues: Vec<QueueName>,
    /// BLAKE3 of the spec and its input, in hex: the same content dropped again has the same.
    pub content_hash: String,
    #[serde(default)]
    pub settings: JobSettings,
    /// Of a job that a schedule made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Run>,
}

impl Job {
    /// A job that names more queues than this is refused: each has limits and a task of its own.
    pub const QUEUES_MAX: usize = 1000;
    /// A job has at most this many requests (an index is 32 bits).
    pub const REQUESTS_MAX: u32 = u32::MAX - 1;

    /// When unfinished requests expire, if ever.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.settings.deadline.map(|deadline| self.accepted_at + deadline)
    }

    /// The status with which it is accepted: it waits for the fine-tunes whose models it uses, and for the run before
    /// it.
    pub fn first_status(&self) -> JobStatus {
        let before = self.run.as_ref().and_then(|run| run.after);
        let reason = match self.waits_for().next() {
            Some(_) => PauseReason::FineTune,
            None if before.is_some() => PauseReason::Overlap,
            None => return JobStatus::InProgress,
        };
        JobStatus::Paused { reason }
    }

    /// The fine-tunes whose models it uses that had not ended when it was accepted.
    pub fn waits_for(&self) -> impl Iterator<Item = JobId> {
        self.settings.models.values().filter_map(|model| match model {
            TunedModel::Of(job) => Some(*job),
            TunedModel::Named(_) => None,
        })
    }

    /// What it must wait for: a fine-tune whose model it uses, or a run before it, that is still among `jobs` and has
    /// not ended.
    pub fn must_wait(&self, jobs: &[JobState]) -> Option<PauseReason> {
        let mut open = jobs.iter().filter(|state| !state.status.is_final());
        if self.waits_for().any(|maker| open.clone().any(|state| state.job.id == maker)) {
            return Some(PauseReason::FineTune);
        }
        open.any(|state| self.comes_after(&state.job)).then_some(PauseReason::Overlap)
    }

    /// The status with which it goes on as `jobs` stand.
    pub fn next_status(&self, jobs: &[JobState]) -> JobStatus {
        match self.must_wait(jobs) {
            Some(reason) => JobStatus::Paused { reason },
            None => JobStatus::InProgress,
        }
    }

    /// Whether it is a run that waits for the run `other`. Not for the one before it alone: that may have waited
    /// itself, and been cancelled.
    fn comes_after(&self, other: &Self) -> bool {
        match (&self.run, &other.run) {
            (Some(Run { spec, after: Some(before), .. }), Some(run)) => {
                run.spec == *spec && other.id <= *before
            }
            _ => false,
        }
    }

    /// Whether requests of it go out while it is `status`. What runs at the provider has to be cancelled there, so a
    /// fine-tune goes out once more on its way to its end.
    pub const fn may_send(&self, status: &JobStatus) -> bool {
        match status {
            JobStatus::InProgress => true,
            JobStatus::Cancelling | JobStatus::Expiring => matches!(self.kind, Kind::FineTune),
            JobStatus::Paused { .. }
            | JobStatus::Held { .. }
            | JobStatus::Finalizing
            | JobStatus::Completed
            | JobStatus::Failed { .. }
            | JobStatus::Cancelled
            | JobStatus::Expired => false,
        }
    }
}

/// What a spec may say about how its job runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobSettings {
    /// 0..=9, default 5: a step doubles its share of a queue.
    pub priority: u8,
    /// Counted from acceptance.
    pub deadline: Option<Duration>,
    pub order: Order,
    /// What replaces the config's `[retry]` for this job.
    pub retry: RetryOverride,
    pub on_uncertain: Option<OnUncertain>,
    /// Whether answers come as streams; none leaves it to the provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// What each `job:<name>` of its requests' models stands for, by `<name>`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub models: BTreeMap<String, TunedModel>,
}

impl Default for JobSettings {
    fn default() -> Self {
        Self {
            priority: 5,
            deadline: None,
            order: Order::Input,
            retry: RetryOverride::default(),
            on_uncertain: None,
            stream: None,
            models: BTreeMap::new(),
        }
    }
}

/// The members of a spec's `[retry]`; absent ones keep the config's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RetryOverride {
    pub max_attempts: Option<u32>,
    pub base_delay: Option<Duration>,
    pub max_delay: Option<Duration>,
}

impl RetryOverride {
    pub fn over(&self, config: RetryPolicy) -> RetryPolicy {
        RetryPolicy {
            max_attempts: self.max_attempts.unwrap_or(config.max_attempts),
            base_delay: self.base_delay.unwrap_or(config.base_delay),
            max_delay: self.max_delay.unwrap_or(config.max_delay),
        }
    }
}

/// Order of the lines in `output.jsonl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    #[default]
    Input,
    Completion,
}

/// What becomes of a request that was in flight when the process died.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnUncertain {
    /// It is sent again, at most once.
    #[default]
    Retry,
    /// It waits for a person.
    Hold,
    /// It fails as `uncertain`.
    Fail,
}

/// Where a job stands. The words are those of OpenAI's Batch object, and `paused` and `held`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum JobStatus {
    InProgress,
    Paused {
        reason: PauseReason,
    },
    /// A person must decide; `why` says what about.
    Held {
        why: String,
    },
    /// Nothing more is sent; what is in flight may finish.
    Cancelling,
    /// As cancelling, because the deadline has passed.
    Expiring,
    /// Every request is settled; the results are being written.
    Finalizing,
    Completed,
    Failed {
        why: String,
    },
    Cancelled,
    Expired,
}

impl JobStatus {
    /// The word that users see.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Paused { .. } => "paused",
            Self::Held { .. } => "held",
            Self::Cancelling => "cancelling",
            Self::Expiring | Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Failed { .. } => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// Whether it waits for other jobs, and goes on by itself.
    pub const fn is_waiting(&self) -> bool {
        matches!(self, Self::Paused { reason } if reason.is_ours())
    }

    /// Nothing will change it any more.
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Completed | Self::Failed { .. } | Self::Cancelled | Self::Expired)
    }

    /// Whether a job that stands here may come to stand at `next`. Nothing follows a final status, and a
    /// job on its way to one can't be sent back to work.
    pub const fn may_become(&self, next: &Self) -> bool {
        match self {
            Self::InProgress | Self::Paused { .. } | Self::Held { .. } => true,
            Self::Finalizing => next.is_final() || matches!(next, Self::Finalizing),
            Self::Cancelling | Self::Expiring => {
                next.is_final() || matches!(next, Self::Finalizing | Self::Cancelling | Self::Expiring)
            }
            Self::Completed | Self::Failed { .. } | Self::Cancelled | Self::Expired => false,
        }
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why nothing is sent for a job or a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseReason {
    /// The provider says that the money or quota is used up.
    Quota,
    /// The provider refuses the key (401, 403).
    Auth,
    /// A model that had worked is gone (404).
    Model,
    /// The server is down: it can't be reached, or does nothing but fail.
    Outage,
    /// State or results can't be written.
    Disk,
    /// A model that it uses is being made by a fine-tune.
    FineTune,
    /// The run of its schedule before it has not ended.
    Overlap,
    /// A person said so.
    User,
}

impl PauseReason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Quota => "quota",
            Self::Auth => "auth",
            Self::Model => "model",
            Self::Outage => "outage",
            Self::Disk => "disk",
            Self::FineTune => "fine_tune",
            Self::Overlap => "overlap",
            Self::User => "user",
        }
    }

    /// Whether batchd itself made the pause, and ends it: a person can't.
    pub const fn is_ours(self) -> bool {
        match self {
            Self::FineTune | Self::Overlap => true,
            Self::Quota | Self::Auth | Self::Model | Self::Outage | Self::Disk | Self::User => false,
        }
    }
}

impl fmt::Display for PauseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How many requests of a job are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub total: u32,
    /// Have a record in the journal that counts as an answer.
    pub completed: u32,
    /// Failed for good; once a job is cancelled or expired, also those never answered.
    pub failed: u32,
    /// Attempts that may have been paid for though no answer came of them, and that were followed by another.
    #[serde(default)]
    pub maybe_paid_twice: u32,
}

impl Counts {
    pub const fn settled(&self) -> u32 {
        self.completed.saturating_add(self.failed)
    }

    pub const fn open(&self) -> u32 {
        self.total.saturating_sub(self.settled())
    }
}

/// A job and where it stands, as the store answers it.
#[derive(Clone, Debug, PartialEq)]
pub struct JobState {
    pub job: Job,
    pub status: JobStatus,
    pub counts: Counts,
    /// Requests out on a lease now, and those settled whose record is not durable yet: at zero, nothing
    /// more comes into the journal of a job that may not send.
    pub leased: u32,
    /// Requests waiting for the time of their next attempt.
    pub waiting: u32,
    pub finished_at: Option<Timestamp>,
}

impl JobState {
    /// See [`Job::may_send`].
    pub const fn may_send(&self) -> bool {
        self.job.may_send(&self.status)
    }
}
