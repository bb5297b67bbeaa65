//! What the daemon counts of itself, in Prometheus' words.
//!
//! # Operation
//!
//! [`Metrics`] is handed to the workers and cheap to clone. What happens is counted at the one place where it happens,
//! by an atomic; a dispatcher keeps the [`QueueMeter`] of its queue, so that nothing is looked up for an attempt. What
//! can be seen in the store and on the board is not counted but looked at when somebody asks ([`Snapshot`]).
//!
//! # Invariants
//!
//! - *Bounded.* Labels take their values from words of ours and from the names of queues. The first [`QUEUES_MAX`]
//!   queues of a process have labels of their own, all others share [`OTHER`]; so there are some thousand series at
//!   the most. Texts, names of jobs and ids are never labels.
//! - Counters begin with the process: what an earlier one did is in the jobs' own counts.

mod exposition;
mod process;
mod queue;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;

use crate::domain::{JobStatus, QueueName, Timestamp};

pub use self::exposition::{Disk, Format, InForce, Snapshot, Waiting, encode};
pub use self::process::Process;
pub use self::queue::{AttemptEnd, InFlight, QueueMeter};

use self::queue::Queue;

/// Queues with labels of their own. Each has about 35 series; a hundred of them make an answer of some 300 KiB.
pub const QUEUES_MAX: usize = 100;

/// The label of all the others.
pub const OTHER: &str = "other";

/// A model's name may be as long as its author likes; so much of it stands in a label.
const LABEL_CHARS_MAX: usize = 120;

/// What a group commit takes, from a fast disk to one that is in trouble.
const COMMIT_SECONDS: [f64; 13] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// How a request ended: with the one line that it has in the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Settled {
    Completed,
    Failed,
    /// Its job was cancelled before.
    Cancelled,
    /// Its job's deadline had passed before.
    Expired,
}

impl Settled {
    const ALL: [Self; 4] = [Self::Completed, Self::Failed, Self::Cancelled, Self::Expired];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

/// What went wrong last, with the words that belong in no label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    pub at: Timestamp,
    pub queue: String,
    /// A word for programs: `timeout`, `auth`, …
    pub reason: &'static str,
    /// On one line.
    pub message: String,
}

/// See the module's words.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started_at: Timestamp,
    /// By label.
    queues: Mutex<BTreeMap<String, Arc<Queue>>>,
    settled: Counters<Settled>,
    jobs_ended: Counters<&'static str>,
    commits: Histogram,
    reload: Mutex<Reload>,
    errors: Mutex<Errors>,
}

/// How the configuration was read last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reload {
    /// False: the file was wrong, and nothing of it holds.
    pub is_good: bool,
    /// When a configuration was taken over last.
    pub taken_at: Timestamp,
}

#[derive(Debug, Default)]
struct Errors {
    /// When each reason was seen last; the reasons are words of ours.
    at: BTreeMap<&'static str, Timestamp>,
    last: Option<LastError>,
}

impl Default for Inner {
    fn default() -> Self {
        Self::new(Timestamp::default())
    }
}

impl Inner {
    fn new(now: Timestamp) -> Self {
        let finals = [
            JobStatus::Completed,
            JobStatus::Failed { why: String::new() },
            JobStatus::Cancelled,
            JobStatus::Expired,
        ];
        Self {
            started_at: now,
            queues: Mutex::default(),
            settled: Counters::new(Settled::ALL),
            jobs_ended: Counters::new(finals.map(|status| status.as_str())),
            commits: Histogram::new(COMMIT_SECONDS),
            reload: Mutex::new(Reload { is_good: true, taken_at: now }),
            errors: Mutex::default(),
        }
    }
}

impl Metrics {
    /// Of a process that started, with a good configuration, `now`.
    pub fn new(now: Timestamp) -> Self {
        Self(Arc::new(Inner::new(now)))
    }

    /// The meter of one queue; to be kept by who needs it often.
    pub fn queue(&self, queue: &QueueName) -> QueueMeter {
        let label: String = queue.to_string().chars().take(LABEL_CHARS_MAX).collect();
        let mut queues = self.queues();
        let has_place = queues.len() < QUEUES_MAX || queues.contains_key(&label);
        let label = if has_place { label } else { OTHER.to_owned() };
        let cells = queues.entry(label.clone()).or_default();
        QueueMeter::new(self.clone(), label.into(), Arc::clone(cells))
    }

    /// Counts requests that have got their one line.
    pub fn settled(&self, how: Settled, requests: u32) {
        self.0.settled.add(how, requests.into());
    }

    /// Counts a job that has come to an end; any other status counts nothing.
    pub fn job_ended(&self, status: &JobStatus) {
        if status.is_final() {
            self.0.jobs_ended.add(status.as_str(), 1);
        }
    }

    /// Notes how long a group commit of the journals took.
    pub fn committed(&self, took: Duration) {
        self.0.commits.observe(took.as_secs_f64());
    }

    /// Notes that the configuration was read again: whether it holds now, or the old one was kept.
    pub fn reloaded(&self, is_good: bool, now: Timestamp) {
        let mut reload = self.0.reload.lock().unwrap_or_else(PoisonError::into_inner);
        reload.is_good = is_good;
        if is_good {
            reload.taken_at = now;
        }
    }

    /// What went wrong last, if anything has.
    pub fn last_error(&self) -> Option<LastError> {
        self.errors().last.clone()
    }

    fn failed(&self, error: LastError) {
        let mut errors = self.errors();
        errors.at.insert(error.reason, error.at);
        errors.last = Some(error);
    }

    /// How the configuration was read last, the start included.
    pub fn last_reload(&self) -> Reload {
        *self.0.reload.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queues(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Queue>>> {
        self.0.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn errors(&self) -> MutexGuard<'_, Errors> {
        self.0.errors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A counter for each of a few words.
#[derive(Debug)]
struct Counters<K>(BTreeMap<K, AtomicU64>);

impl<K: Ord + Copy> Counters<K> {
    fn new(words: impl IntoIterator<Item = K>) -> Self {
        Self(words.into_iter().map(|word| (word, AtomicU64::new(0))).collect())
    }

    fn add(&self, word: K, amount: u64) {
        if let Some(counter) = self.0.get(&word) {
            counter.fetch_add(amount, Ordering::Relaxed);
        }
    }

    fn each(&self) -> impl Iterator<Item = (K, u64)> {
        self.0.iter().map(|(word, counter)| (*word, counter.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_beyond_the_bound_share_a_label() {
        let metrics = Metrics::default();
        let queue = |number: usize| QueueName::new("p", Some(&format!("m-{number}")));
        for number in 0..QUEUES_MAX * 2 {
            metrics.queue(&queue(number)).used(1, 0);
        }
        assert_eq!(metrics.queues().len(), QUEUES_MAX + 1);
        assert_eq!(metrics.queue(&queue(0)).label(), "p/m-0");
        assert_eq!(metrics.queue(&queue(QUEUES_MAX)).label(), OTHER);
        let long = QueueName::new("p", Some(&"ü".repeat(5000)));
        let metrics = Metrics::default();
        assert_eq!(metrics.queue(&long).label().chars().count(), LABEL_CHARS_MAX);
    }

    #[test]
    fn a_reload_that_failed_keeps_the_time_of_the_last_good_one() {
        let at = Timestamp::from_millis;
        let metrics = Metrics::new(at(1000));
        metrics.reloaded(false, at(2000));
        assert!(!metrics.last_reload().is_good);
        assert_eq!(metrics.last_reload().taken_at, at(1000));
        metrics.reloaded(true, at(3000));
        assert!(metrics.last_reload().is_good);
        assert_eq!(metrics.last_reload().taken_at, at(3000));
    }
}
