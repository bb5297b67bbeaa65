//! The two threads of the embedded store, and what is said to them.
//!
//! The *sync* thread makes journals durable: it takes all records that were appended since it last looked,
//! syncs each journal they are in once, and passes them on. A sync costs about the same whatever it
//! carries, so the more there is to do, the cheaper each record gets. The *index* thread alone touches sled.
//!
//! Any failure of either closes the store: its verbs answer [`Error::Closed`] from then on.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use crate::bell::Bell;
use crate::domain::{Job, JobId, JobState, JobStatus, QueueName, RequestId, Timestamp};
use crate::fault;
use crate::store::embedded::entry::Entry;
use crate::store::embedded::files::JobFiles;
use crate::store::embedded::index::{Index, Settled};
use crate::store::embedded::intents::Intent;
use crate::store::embedded::leases::{Held, Leases};
use crate::store::embedded::log::Log;
use crate::store::embedded::recover;
use crate::store::embedded::state::State;
use crate::store::folder::JobFolder;
use crate::store::{Error, Leased, QueueDepth, Result};

/// How far the index may lag the journals. What it lacks after a crash is read again from them.
const FLUSH_EVERY: Duration = Duration::from_millis(500);

/// Records one sync takes at most: bounds its memory and how long it keeps the next ones waiting.
const SYNC_MAX: usize = 4096;

/// How long the first record waits for others before it is synced. A sync costs the same for one record as for
/// hundreds, and sled as much again for what follows from it; no slot waits for it.
const GATHER: Duration = Duration::from_millis(10);

/// What both threads share with the store's callers.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: PathBuf,
    pub(super) leases: Leases,
    pub(super) changed: Bell,
    pub(super) progress: Bell,
    /// Why the store is closed, once it is.
    pub(super) closed: OnceLock<String>,
}

impl Shared {
    pub(super) fn tick(&self) {
        self.changed.ring();
    }

    /// Closes the store; the first reason stays.
    pub(super) fn close(&self, why: &str) {
        if self.closed.set(why.to_owned()).is_ok() {
            tracing::debug!(why, "the store is closed");
        }
        self.tick();
        self.progress.ring();
    }

    pub(super) fn refusal(&self) -> Error {
        Error::Closed(self.closed.get().cloned().unwrap_or_else(|| "it has stopped".to_owned()))
    }
}

/// A record that was appended to its journal.
#[derive(Debug)]
pub(super) enum Note {
    Appended { journal: Arc<Log>, settled: Settled },
    Close { reply: oneshot::Sender<Result<()>> },
}

type Reply<T> = oneshot::Sender<Result<T>>;

/// A verb for the index thread.
#[derive(Debug)]
pub(super) enum Command {
    Put { job: Box<Job>, reply: Reply<()> },
    Jobs { reply: Reply<Vec<JobState>> },
    Job { id: JobId, reply: Reply<JobState> },
    Queues { reply: Reply<Vec<QueueDepth>> },
    Lease { queue: QueueName, max: usize, now: Timestamp, reply: Reply<Leased> },
    Settled(Vec<Settled>),
    Wait { request: RequestId, held: Held, due: Timestamp, attempts: u32, maybe_paid: bool, reply: Reply<()> },
    Release { request: RequestId, held: Held, reply: Reply<()> },
    SetStatus { id: JobId, status: JobStatus, now: Timestamp, reply: Reply<JobState> },
    RetryNow { id: JobId, files: Arc<JobFiles>, reply: Reply<()> },
    Close { reply: Reply<()> },
}

/// Runs the sync thread until the store is closed or dropped.
pub(super) fn sync(shared: &Shared, notes: &mut mpsc::Receiver<Note>, commands: &mpsc::Sender<Command>) {
    let mut batch = Vec::new();
    while let Some(first) = notes.blocking_recv() {
        gather();
        let mut journals: BTreeMap<JobId, Arc<Log>> = BTreeMap::new();
        let mut closing = None;
        let mut next = Some(first);
        while let Some(note) = next {
            match note {
                Note::Appended { journal, settled } => {
                    journals.entry(settled.request.job).or_insert(journal);
                    batch.push(settled);
                }
                Note::Close { reply } => closing = Some(reply),
            }
            next = if batch.len() < SYNC_MAX && closing.is_none() { notes.try_recv().ok() } else { None };
        }
        fault::point("store-journal-syncing");
        if let Some(error) = journals.values().find_map(|journal| journal.sync().err()) {
            // Pages that failed to sync may be gone: what they held does not count, and nothing goes on.
            tracing::error!(error = %error, "a journal can't be made durable; nothing more is sent");
            shared.close(&error.to_string());
            return;
        }
        fault::point("store-journal-synced");
        let sent = commands.blocking_send(Command::Settled(std::mem::take(&mut batch)));
        let closed = closing.map(|reply| commands.blocking_send(Command::Close { reply }));
        if sent.is_err() || closed.is_some() {
            return;
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "time itself is meant, on a thread that has nothing else to do"
)]
fn gather() {
    std::thread::sleep(GATHER);
}

/// The index thread.
#[derive(Debug)]
pub(super) struct IndexThread {
    pub(super) shared: Arc<Shared>,
    pub(super) index: Index,
}

impl IndexThread {
    /// Runs until the store is closed or dropped, or the index fails.
    pub(super) fn run(mut self, mut commands: mpsc::Receiver<Command>, runtime: &Handle) {
        let shared = Arc::clone(&self.shared);
        // sled asserts on what it reads; a panic in it closes the store and nothing else.
        let ended = catch_unwind(AssertUnwindSafe(|| self.serve(&mut commands, runtime)));
        match ended {
            Ok(Ok(())) => shared.close("it was closed"),
            Ok(Err(error)) => {
                tracing::error!(error = %error, "the store failed; nothing more is sent");
                shared.close(&error.to_string());
            }
            Err(_) => {
                tracing::error!("the index panicked; nothing more is sent");
                shared.close("the index (sled) panicked");
            }
        }
    }

    fn serve(&mut self, commands: &mut mpsc::Receiver<Command>, runtime: &Handle) -> Result<()> {
        let mut flushed = Instant::now();
        loop {
            match runtime.block_on(async { timeout(FLUSH_EVERY, commands.recv()).await }) {
                Ok(Some(Command::Close { reply })) => {
                    let result = self.index.flush();
                    self.shared.close("it was closed");
                    answer(reply, result);
                    return Ok(());
                }
                Ok(Some(command)) => self.carry_out(command)?,
                Ok(None) => return self.index.flush(),
                Err(_) => {}
            }
            if flushed.elapsed() >= FLUSH_EVERY {
                self.index.flush()?;
                flushed = Instant::now();
            }
        }
    }

    /// Carries out one verb. Its own failure is its caller's; one that leaves the index in doubt is ours.
    fn carry_out(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Put { job, reply } => {
                let result = self.put(*job);
                self.reply(reply, result)
            }
            Command::Jobs { reply } => self.reply(reply, Ok(self.index.states())),
            Command::Job { id, reply } => self.reply(reply, self.index.entry(id).map(Entry::state)),
            Command::Queues { reply } => self.reply(reply, Ok(self.index.queues())),
            Command::Lease { queue, max, now, reply } => {
                let result = self.index.lease(&self.shared.leases, &queue, max, now);
                self.reply(reply, result)
            }
            Command::Settled(batch) => {
                if self.index.settled(&batch)? {
                    self.shared.tick();
                }
                self.shared.progress.ring();
                Ok(())
            }
            Command::Wait { request, held, due, attempts, maybe_paid, reply } => {
                let result = self.index.wait(request, &held, due, attempts, maybe_paid);
                self.given_back(request.job, reply, result)
            }
            Command::Release { request, held, reply } => {
                let result = self.index.release(request, &held);
                self.given_back(request.job, reply, result)
            }
            Command::SetStatus { id, status, now, reply } => {
                let result = self.set_status(id, status, now);
                self.shared.tick();
                self.reply(reply, result)
            }
            Command::RetryNow { id, files, reply } => {
                let result = self.retry_now(id, &files);
                self.shared.tick();
                self.reply(reply, result)
            }
            Command::Close { reply } => self.reply(reply, Ok(())),
        }
    }

    /// Indexes a job whose folder is whole and whose `state.json` is written.
    fn put(&mut self, job: Job) -> Result<()> {
        let folder = JobFolder::new(&self.shared.state, job.id);
        let row = recover::put(&mut self.index, &folder, &job)?;
        self.index.flush()?;
        fault::point("store-job-indexed");
        self.index.load(job, JobStatus::InProgress, row)?;
        self.shared.tick();
        Ok(())
    }

    pub(super) fn set_status(&mut self, id: JobId, status: JobStatus, now: Timestamp) -> Result<JobState> {
        let entry = self.index.entry(id)?;
        entry.status.check_transition(id, &status)?;
        if entry.is_lost {
            return Err(Error::Transition { job: id, from: entry.status.as_str(), to: status.as_str() });
        }
        let ends = status.is_final();
        let counts = ends.then(|| entry.counts_at_end());
        let finished_at = if ends { Some(now) } else { entry.finished_at };
        let state = State { job: entry.job.clone(), status, finished_at, counts };
        // The file first: the index may lag it, and never leads it.
        state.write(&JobFolder::new(&self.shared.state, id))?;
        self.index.entry_mut(id)?.status = state.status;
        if ends {
            self.index.end(id, now)?;
        }
        self.index.entry(id).map(Entry::state)
    }

    /// Written down before it takes effect, since a start gives what waits the due times that stand in the intents.
    fn retry_now(&mut self, id: JobId, files: &JobFiles) -> Result<()> {
        let waiting = self.index.waiting(id)?;
        let due = Timestamp::default();
        for &(index, attempts) in &waiting {
            let intent = Intent::Ended { index, attempts, due, maybe_paid: false };
            files.intents.append(&intent.to_line(), |_| ())?;
        }
        if !waiting.is_empty() {
            files.intents.sync()?;
        }
        self.index.retry_now(id)
    }

    /// A job with nothing in flight any more is waited for: it may have been cancelled, or its queues paused.
    fn given_back(&self, id: JobId, reply: Reply<()>, result: Result<()>) -> Result<()> {
        if self.index.entry(id).is_ok_and(Entry::is_still) {
            self.shared.tick();
        }
        self.reply(reply, result)
    }

    /// Answers; a failed index or disk is passed on, because nothing may go on from it.
    fn reply<T>(&self, reply: Reply<T>, result: Result<T>) -> Result<()> {
        let fatal = match &result {
            Err(error @ (Error::Closed(_) | Error::Io { .. } | Error::Damaged { .. })) => {
                Some(error.to_string())
            }
            Ok(_)
            | Err(Error::NoSuchJob(_) | Error::Stale(_) | Error::Transition { .. } | Error::Locked { .. }) => {
                None
            }
        };
        if let Some(why) = &fatal {
            self.shared.close(why);
        }
        answer(reply, result);
        fatal.map_or(Ok(()), |why| Err(Error::Closed(why)))
    }
}

/// A caller that has gone away needs no answer.
fn answer<T>(reply: Reply<T>, result: Result<T>) {
    drop(reply.send(result));
}
