//! The store: which requests are open, waiting or settled, and the records of those that are.
//!
//! The trait is cut at the verbs of the domain, not at rows and keys, so that a batch of work is one
//! call on every backend. [`memory::MemoryStore`] is the model of what the verbs mean; the embedded
//! store keeps an index in sled beside the job's files, which are the truth ([`embedded`]).
//! One suite, `conformance`, runs over both.
//!
//! # Invariants
//!
//! - A request is in exactly one place: *fresh* (never leased, or given back), *leased*, *waiting*
//!   until a due time, or *settled*. Leases live in memory: after a restart all of them are void.
//! - A record counts once it is durable in the job's journal. The index may lag the journal and
//!   never leads it.
//! - Every verb that changes a job ([`Store::put_job`], [`Store::set_status`], [`Store::write_memo`], [`Store::remove`])
//!   is durable when it returns.

#[cfg(test)]
pub(crate) mod conformance;
pub mod embedded;
pub mod folder;
pub mod lock;
pub mod memory;
mod share;
mod weight;

use std::fmt;
use std::io::{Read, Seek};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use thiserror::Error;

use crate::bell::Listener;
use crate::disk;
use crate::domain::{
    Job, JobId, JobState, JobStatus, LineEntry, QueueName, RequestId, Settlement, Timestamp,
};

/// What a caller can do about a store's failure.
#[derive(Debug, Error)]
pub enum Error {
    /// A verb named a job that the store does not have.
    #[error("no job {0}")]
    NoSuchJob(JobId),
    /// The lease is void: the request was settled, or leased again after a restart.
    #[error("the lease on request {0} is void")]
    Stale(RequestId),
    /// The status can't follow the one the job has.
    #[error("job {job} is {from} and can't become {to}")]
    Transition { job: JobId, from: &'static str, to: &'static str },
    /// Another daemon holds the state.
    #[error("another batchd{} holds {}", pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), path.display())]
    Locked { pid: Option<u32>, path: PathBuf },
    /// State can't be read or written. After this nothing may be sent: the store refuses every verb.
    #[error("{act} {}: {source}", path.display())]
    Io { act: &'static str, path: PathBuf, source: std::io::Error },
    /// There is no room on the disk, or it does not take what is written. Nothing was changed; it may be tried again.
    #[error("{0}")]
    Full(String),
    /// The state holds what batchd never wrote there.
    #[error("{} is damaged: {what}", path.display())]
    Damaged { path: PathBuf, what: String },
    /// An earlier failure closed the store.
    #[error("the store is closed: {0}")]
    Closed(String),
}

impl Error {
    /// Whether it lasts only as long as the disk has no room.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Full(_) => true,
            Self::Io { source, .. } => disk::is_full(source),
            Self::NoSuchJob(_)
            | Self::Stale(_)
            | Self::Transition { .. }
            | Self::Locked { .. }
            | Self::Damaged { .. }
            | Self::Closed(_) => false,
        }
    }
}

impl JobStatus {
    /// Refuses a status that can't follow this one.
    fn check_transition(&self, job: JobId, to: &Self) -> Result<()> {
        if self.may_become(to) {
            return Ok(());
        }
        Err(Error::Transition { job, from: self.as_str(), to: to.as_str() })
    }

    /// Refuses to remove a job that stands here and has not ended.
    fn check_removal(&self, job: JobId) -> Result<()> {
        if self.is_final() {
            return Ok(());
        }
        Err(Error::Transition { job, from: self.as_str(), to: "removed" })
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A claim on one request. Used once: [`Store::settle`] takes it by value.
#[derive(Debug, PartialEq, Eq)]
pub struct Lease {
    pub request: RequestId,
    /// Number of the attempt that this lease is for, from 1.
    pub attempt: u32,
    /// Grows with every lease; a settlement under an older one is [`Error::Stale`].
    pub epoch: u64,
}

/// The answer to [`Store::lease`].
#[derive(Debug, Default)]
pub struct Leased {
    pub leases: Vec<Lease>,
    /// When the next waiting request of the queue falls due, if there is one and nothing is due now.
    pub next_due: Option<Timestamp>,
}

/// A queue that has unsettled requests, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueDepth {
    pub queue: QueueName,
    /// Neither settled nor leased, waiting ones included, in jobs that may send.
    pub ready: u64,
}

/// A job's input, when it is put into the store.
#[derive(Debug)]
pub enum Input {
    /// `input.jsonl` and `lines.idx` lie, synced, in the job's folder below `state/jobs/`.
    Spooled,
    /// The lines themselves with the number of their queue, for tests and simulation.
    Inline(Vec<(u16, Bytes)>),
}

/// One line of a job's input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub bytes: Bytes,
    /// Its number in the input file, from 1.
    pub number: u32,
}

/// A job's journal, opened for reading from its first byte. Ends at what is durable.
pub trait Journal: Read + Seek + Send {}

impl<T: Read + Seek + Send> Journal for T {}

/// While one of a store's lives, that store [removes](Store::remove) no job: for whoever works on with what has ended.
#[derive(Clone, Debug, Default)]
pub struct Hold(Arc<()>);

impl Hold {
    /// Whether nobody else has one of the same store.
    fn is_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

/// Where jobs, requests and records are kept.
pub trait Store: Send + Sync + fmt::Debug {
    /// Accepts a job in its [first status](Job::first_status): durable when it returns.
    fn put_job(&self, job: Job, input: Input) -> BoxFuture<'_, Result<()>>;

    /// Every job, in the order of acceptance.
    fn jobs(&self) -> BoxFuture<'_, Result<Vec<JobState>>>;

    /// Those of [`Store::jobs`] that have not ended: for who asks again and again, and whom thousands of others that
    /// have must cost nothing.
    fn open_jobs(&self) -> BoxFuture<'_, Result<Vec<JobState>>> {
        let open = async move {
            let mut jobs = self.jobs().await?;
            jobs.retain(|state| !state.status.is_final());
            Ok(jobs)
        };
        open.boxed()
    }

    fn job(&self, id: JobId) -> BoxFuture<'_, Result<JobState>>;

    /// The queues in which something is left to do.
    fn queues(&self) -> BoxFuture<'_, Result<Vec<QueueDepth>>>;

    /// The jobs among which `queue` is shared: those that may send and are not settled, in the order of acceptance.
    fn rivals<'a>(&'a self, queue: &'a QueueName) -> BoxFuture<'a, Result<Vec<JobId>>> {
        let rivals = async move {
            let mut jobs = self.open_jobs().await?;
            jobs.retain(|s| s.may_send() && s.counts.open() > 0 && s.job.queues.contains(queue));
            Ok(jobs.into_iter().map(|state| state.job.id).collect())
        };
        rivals.boxed()
    }

    /// Claims at most `max` requests of `queue`. Its jobs share them by their [weights](weight): a step of priority
    /// doubles the share, and a deadline that nears lifts it; none starves. Within a job: due retries first, then fresh
    /// requests in input order.
    fn lease<'a>(&'a self, queue: &'a QueueName, max: usize, now: Timestamp)
    -> BoxFuture<'a, Result<Leased>>;

    /// The input line of a request.
    fn line(&self, request: RequestId) -> BoxFuture<'_, Result<Line>>;

    /// Notes that the lease's attempt is about to be sent. Survives a crash of the process; one of the machine, too, a
    /// moment later (some 20 ms), which is not waited for.
    /// [`Error::Full`] if there may be no room for the answer: then it must not be sent.
    fn begin(&self, lease: &Lease) -> Result<()>;

    /// Carries out what was decided. Returns when the record is in the journal (which frees the slot);
    /// it counts, and shows in [`Store::job`], once it is durable there.
    fn settle(&self, lease: Lease, settlement: Settlement) -> BoxFuture<'_, Result<()>>;

    /// Keeps what a request's next attempt must know of this one, in place of what was kept before: durable when it
    /// returns. For work that goes on at the provider between attempts.
    ///
    /// # Errors
    ///
    /// [`Error::Full`] if there is no room: then what was kept before still is.
    fn write_memo(&self, request: RequestId, memo: Bytes) -> BoxFuture<'_, Result<()>>;

    /// What [`Store::write_memo`] kept last, also of a job that has ended.
    fn memo(&self, request: RequestId) -> BoxFuture<'_, Result<Option<Bytes>>>;

    /// Moves a job to `status`: durable when it returns. `now` becomes `finished_at` of a final status.
    /// Requests still open in a job that ends as cancelled or expired count as failed from then on.
    fn set_status(&self, job: JobId, status: JobStatus, now: Timestamp) -> BoxFuture<'_, Result<JobState>>;

    /// Removes what is kept of a job that has ended; its results stay. When it returns, also where whoever asked has
    /// stopped listening, nothing brings the job back, and its files are gone or go at the next start.
    ///
    /// Says whether it did. It does not, for now, while somebody [holds](Store::hold) what has ended, while a job that has
    /// not ended [waits](Job::waits_for) for this one, while something of it is leased, and while its claim is not over.
    ///
    /// # Errors
    ///
    /// [`Error::Transition`] if it has not ended. [`Error::Full`] if the disk does not take it.
    fn remove(&self, job: JobId) -> BoxFuture<'_, Result<bool>>;

    /// Until what this returns is dropped, no job is removed. Take it before asking for what must stay.
    fn hold(&self) -> Hold;

    /// Makes every waiting request of the job due at once.
    fn retry_now(&self, job: JobId) -> BoxFuture<'_, Result<()>>;

    /// The job's records in the order of completion.
    fn journal(&self, job: JobId) -> Result<Box<dyn Journal>>;

    /// The entry of the line index for one request.
    fn entry(&self, request: RequestId) -> Result<LineEntry>;

    /// The job's folder below `state/jobs/`, where the store keeps one.
    fn folder(&self, job: JobId) -> Option<PathBuf>;

    /// Ticks whenever something may have become leasable or a job settled. Listen before you look,
    /// so that no tick is lost.
    fn changes(&self) -> Listener;

    /// Ticks whenever records became durable.
    fn progress(&self) -> Listener;

    /// Why nothing is leased or begun: the disk has no room. It goes on by itself, with a tick of [`Store::changes`].
    fn shortage(&self) -> Option<String> {
        None
    }

    /// How many requests of a job are begun and not settled: they are at the provider, or what came of them is being
    /// written. None where the store does not know; then it is no more than are leased.
    fn in_flight(&self, job: JobId) -> Option<u32> {
        let _ = job;
        None
    }

    /// Whether `bytes` of what can wait, like a new job's files, may be written below `state/`: what must stay free
    /// stays free.
    ///
    /// # Errors
    ///
    /// [`Error::Full`] if they may not.
    fn fits(&self, bytes: u64) -> Result<()> {
        let _ = bytes;
        Ok(())
    }

    /// Waits until everything settled so far is durable, and closes the store.
    fn close(&self) -> BoxFuture<'_, Result<()>>;
}
