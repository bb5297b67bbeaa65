//! The embedded store: files that are the truth, and beside them an index in sled that can be rebuilt.
//!
//! # Operation
//!
//! A record is appended to its job's journal by the task that has it (which frees its slot), made durable by
//! the sync thread together with all others of that moment, and only then taken into the index. Leases and
//! everything else about the queue are asked of the index thread, the only one that touches sled.
//!
//! sled 0.34 is not trusted with anything that cost money: its `flush` does not sync, a kill while it opens
//! can brick it, and one full disk poisons it until the process restarts. So the store keeps its own lock,
//! opens it by a [`ladder`], syncs its file itself and keeps room for it ([`ahead`]), keeps batches small, and stops at
//! its first error. What a disk does that is full or broken is told in [`room`].
//!
//! # What a start makes of what it finds
//!
//! | below `state/` | it becomes |
//! |---|---|
//! | `jobs/<JobId>.removed` | nothing: what is left of a removed job is removed ([`removal`]) |
//! | `jobs/<JobId>` with a final status | a job that has ended; what the index has of it is dropped |
//! | `jobs/<JobId>` with another status | a job, by its journal and its intents ([`recover`]) |
//! | `jobs/<JobId>` that can't be read | a job that is held and left alone ([`lost`]) |
//! | `jobs/<JobId>` without `state.json`, never accepted | not ours: intake puts the spec back |
//! | `sled/` that can't be opened or read | what the [`ladder`] makes of it; at its end an index built from `jobs/` |
//! | a job in the index without a folder | nothing: a person has taken the folder away |
//!
//! # What it does not do
//!
//! It does not read bodies into sled: a request is a bit there, and its line is read from the input by
//! offset when its turn comes.

mod ahead;
mod claim;
mod claimed;
mod close;
mod content;
mod entry;
mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod index;
mod intents;
mod keys;
mod ladder;
mod leases;
mod lines;
mod log;
mod lost;
mod memo;
mod mend;
mod open;
mod ranges;
mod recover;
mod removal;
mod room;
mod settle;
mod start;
mod state;
mod sync;
mod threads;
mod uncertain;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

pub use self::claimed::Claimed;
pub use self::content::Content;
pub use self::start::rebuild;

use self::files::{JobFiles, prepare};
use self::state::State;
use self::sync::Note;
use self::threads::{Command, Shared};
use crate::bell::Listener;
use crate::domain::{
    Job, JobId, JobState, JobStatus, LineEntry, QueueName, RequestId, Settlement, Timestamp,
};
use crate::pulse::Roll;
use crate::store::folder::JobFolder;
use crate::store::lock::Lock;
use crate::store::{Error, Hold, Input, Journal, Lease, Leased, Line, QueueDepth, Result, Store};

/// Records that may be appended and not yet durable: more wait, and with them their slots (P5).
const UNSYNCED_MAX: usize = 8192;

/// Verbs that may wait for the index thread.
const COMMANDS_MAX: usize = 1024;

/// Jobs whose files stay open, four each: well below the 1024 descriptors that a process has at the least.
const OPEN_JOBS_MAX: usize = 128;

/// See the module's words.
#[derive(Debug)]
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    notes: mpsc::Sender<Note>,
    files: Mutex<BTreeMap<JobId, Arc<JobFiles>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Which folder the jobs' folders are in.
    home: (u64, u64),
    /// Held until the value is dropped.
    _lock: Arc<Lock>,
}

impl EmbeddedStore {
    /// Opens the store below `state` (`<root>/state`), bringing the index level with the jobs' folders, and keeps
    /// nothing of the disk free. Blocks, for as long as there are journals to read; must be called within a tokio
    /// runtime.
    ///
    /// [`Error::Locked`] if another process has it open.
    pub fn open(state: &Path) -> Result<Self> {
        Claimed::take(state)?.open(Some(0), &Roll::default())
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command) -> Result<T> {
        self.check_open()?;
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| self.shared.refusal())?;
        answer.await.map_err(|_| self.shared.refusal())?
    }

    fn check_open(&self) -> Result<()> {
        if self.shared.closed.get().is_some() { Err(self.shared.refusal()) } else { Ok(()) }
    }

    /// The job's open files; opened at the first use, closed when the job has ended.
    fn files(&self, id: JobId) -> Result<Arc<JobFiles>> {
        self.check_open()?;
        self.files_even_if_closed(id)
    }

    fn files_even_if_closed(&self, id: JobId) -> Result<Arc<JobFiles>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = files.get(&id) {
            return Ok(Arc::clone(open));
        }
        let folder = self.job_folder(id);
        if !folder.path().is_dir() {
            return Err(Error::NoSuchJob(id));
        }
        if files.len() >= OPEN_JOBS_MAX {
            files.retain(|job, files| {
                let is_at_rest = files.is_at_rest();
                if is_at_rest && self.shared.leases.is_still(*job) {
                    files.give_back();
                }
                !is_at_rest
            });
        }
        // It may be removed in this very moment.
        let open = JobFiles::open(&folder)
            .map_err(|error| if folder.path().is_dir() { error } else { Error::NoSuchJob(id) });
        let open = Arc::new(open?);
        files.insert(id, Arc::clone(&open));
        Ok(open)
    }

    fn close_files(&self, id: JobId) {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some(files) = files {
            files.give_back();
        }
    }

    fn job_folder(&self, id: JobId) -> JobFolder {
        JobFolder::new(&self.shared.state, id)
    }

    /// Whether a job can be accepted so that it is found again: the folder may be hidden, or its file system gone.
    fn check_home(&self) -> Result<()> {
        let jobs = self.shared.state.join("jobs");
        if files::identity(&jobs).is_ok_and(|home| home == self.home) {
            return Ok(());
        }
        let path = jobs.display();
        Err(Error::Full(format!(
            "{path} is not the folder that it was at the start: is its file system mounted?"
        )))
    }

    async fn put(&self, job: Job, input: Input) -> Result<()> {
        if let Some(why) = self.shared.room.look() {
            return Err(Error::Full(why));
        }
        self.check_home()?;
        // Before the folder is made whole: what counts as accepted must be indexed.
        self.ask(|reply| Command::MakeRoom { requests: job.total, reply }).await?;
        let folder = self.job_folder(job.id);
        let state = State { status: job.first_status(), job: job.clone(), finished_at: None, counts: None };
        let prepared = tokio::task::spawn_blocking(move || prepare(&folder, &state, input)).await;
        prepared.map_err(|error| Error::Closed(error.to_string()))?.inspect_err(|error| {
            if error.is_full() {
                self.shared.room.failed(error, 0);
            }
        })?;
        self.ask(|reply| Command::Put { job: Box::new(job), reply }).await
    }
}

impl Store for EmbeddedStore {
    fn put_job(&self, job: Job, input: Input) -> BoxFuture<'_, Result<()>> {
        self.put(job, input).boxed()
    }

    fn jobs(&self) -> BoxFuture<'_, Result<Vec<JobState>>> {
        self.ask(|reply| Command::Jobs { open_alone: false, reply }).boxed()
    }

    fn open_jobs(&self) -> BoxFuture<'_, Result<Vec<JobState>>> {
        self.ask(|reply| Command::Jobs { open_alone: true, reply }).boxed()
    }

    fn job(&self, id: JobId) -> BoxFuture<'_, Result<JobState>> {
        self.ask(move |reply| Command::Job { id, reply }).boxed()
    }

    fn queues(&self) -> BoxFuture<'_, Result<Vec<QueueDepth>>> {
        self.ask(|reply| Command::Queues { reply }).boxed()
    }

    fn rivals<'a>(&'a self, queue: &'a QueueName) -> BoxFuture<'a, Result<Vec<JobId>>> {
        self.ask(move |reply| Command::Rivals { queue: queue.clone(), reply }).boxed()
    }

    fn lease<'a>(
        &'a self,
        queue: &'a QueueName,
        max: usize,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Leased>> {
        self.ask(move |reply| Command::Lease { queue: queue.clone(), max, now, reply }).boxed()
    }

    fn line(&self, request: RequestId) -> BoxFuture<'_, Result<Line>> {
        self.read_line(request).boxed()
    }

    fn begin(&self, lease: &Lease) -> Result<()> {
        self.begin_lease(lease)
    }

    fn settle(&self, lease: Lease, settlement: Settlement) -> BoxFuture<'_, Result<()>> {
        self.settle_lease(lease, settlement).boxed()
    }

    fn write_memo(&self, request: RequestId, memo: Bytes) -> BoxFuture<'_, Result<()>> {
        self.keep_memo(request, memo).boxed()
    }

    fn memo(&self, request: RequestId) -> BoxFuture<'_, Result<Option<Bytes>>> {
        self.kept_memo(request).boxed()
    }

    fn set_status(&self, job: JobId, status: JobStatus, now: Timestamp) -> BoxFuture<'_, Result<JobState>> {
        let ends = status.is_final();
        async move {
            let state = self.ask(move |reply| Command::SetStatus { id: job, status, now, reply }).await?;
            if ends {
                self.close_files(job);
            }
            Ok(state)
        }
        .boxed()
    }

    fn remove(&self, job: JobId) -> BoxFuture<'_, Result<bool>> {
        self.remove_job(job).boxed()
    }

    fn hold(&self) -> Hold {
        self.shared.hold.clone()
    }

    fn retry_now(&self, job: JobId) -> BoxFuture<'_, Result<()>> {
        async move {
            let files = self.files(job)?;
            self.ask(move |reply| Command::RetryNow { id: job, files, reply }).await
        }
        .boxed()
    }

    fn journal(&self, job: JobId) -> Result<Box<dyn Journal>> {
        let files = self.files(job)?;
        if self.shared.leases.is_still(job) {
            // Who reads it now may be about to write as much again.
            files.give_back();
        }
        Ok(Box::new(files.journal.reader()?))
    }

    fn entry(&self, request: RequestId) -> Result<LineEntry> {
        self.read_entry(&*self.files(request.job)?, request)
    }

    fn folder(&self, job: JobId) -> Option<PathBuf> {
        Some(self.job_folder(job).path().to_owned())
    }

    fn changes(&self) -> Listener {
        self.shared.changed.listen()
    }

    fn progress(&self) -> Listener {
        self.shared.progress.listen()
    }

    fn in_flight(&self, job: JobId) -> Option<u32> {
        Some(self.shared.leases.begun(job))
    }

    fn shortage(&self) -> Option<String> {
        self.shared.room.look()
    }

    fn fits(&self, bytes: u64) -> Result<()> {
        self.shared.room.fits(bytes)
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.shut().boxed()
    }
}

#[cfg(test)]
mod damage;
#[cfg(test)]
mod healing;
#[cfg(test)]
mod in_flight;
#[cfg(test)]
mod model;
#[cfg(test)]
mod scarcity;
#[cfg(test)]
mod tests;
