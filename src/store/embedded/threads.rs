//! The index thread of the embedded store, and what is said to it. It alone touches sled.
//!
//! While there is no room for what sled writes, what settles requests is put off: it is in the jobs' files already.
//! Any other failure closes the store, as one of the [`sync`](super::sync) thread does: its verbs answer
//! [`Error::Closed`] from then on.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use crate::bell::Bell;
use crate::domain::{Job, JobId, JobState, JobStatus, QueueName, RequestId, Timestamp};
use crate::fault;
use crate::metrics::Metrics;
use crate::pulse::Member;
use crate::store::embedded::entry::Entry;
use crate::store::embedded::files::JobFiles;
use crate::store::embedded::index::{Index, Settled};
use crate::store::embedded::intents::Intent;
use crate::store::embedded::leases::{Held, Leases};
use crate::store::embedded::recover;
use crate::store::embedded::room::Room;
use crate::store::embedded::state::State;
use crate::store::folder::JobFolder;
use crate::store::{Error, Hold, Leased, QueueDepth, Result};

/// How far the index may lag the journals. What it lacks after a crash is read again from them.
const FLUSH_EVERY: Duration = Duration::from_millis(500);

/// What both threads share with the store's callers.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: PathBuf,
    pub(super) leases: Leases,
    pub(super) room: Room,
    pub(super) changed: Bell,
    pub(super) progress: Bell,
    /// Held by who works with jobs that have ended.
    pub(super) hold: Hold,
    /// Why the store is closed, once it is.
    pub(super) closed: OnceLock<String>,
    /// It is about to be closed: nothing is tried again for ever any more.
    pub(super) is_stopping: AtomicBool,
    pub(super) metrics: Metrics,
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

type Reply<T> = oneshot::Sender<Result<T>>;

/// A verb for the index thread.
#[derive(Debug)]
pub(super) enum Command {
    MakeRoom { requests: u32, reply: Reply<()> },
    Put { job: Box<Job>, reply: Reply<()> },
    Jobs { open_alone: bool, reply: Reply<Vec<JobState>> },
    Job { id: JobId, reply: Reply<JobState> },
    Queues { reply: Reply<Vec<QueueDepth>> },
    Rivals { queue: QueueName, reply: Reply<Vec<JobId>> },
    Lease { queue: QueueName, max: usize, now: Timestamp, reply: Reply<Leased> },
    Settled(Vec<Settled>),
    Wait { request: RequestId, held: Held, due: Timestamp, attempts: u32, maybe_paid: bool, reply: Reply<()> },
    Release { request: RequestId, held: Held, reply: Reply<()> },
    SetStatus { id: JobId, status: JobStatus, now: Timestamp, reply: Reply<JobState> },
    Remove { id: JobId, reply: Reply<bool> },
    RetryNow { id: JobId, files: Arc<JobFiles>, reply: Reply<()> },
    Close { reply: Reply<()> },
}

/// What the index thread has waited for.
enum Next {
    Verb(Command),
    /// Nobody can ask anything any more.
    Gone,
    /// It is time to look around.
    Round,
}

/// What sled takes for a request of a new job, generously: a bit in a range, and its part of the range's key.
const INDEX_BYTES: u64 = 8;

/// The index thread.
#[derive(Debug)]
pub(super) struct IndexThread {
    pub(super) shared: Arc<Shared>,
    pub(super) index: Index,
    /// What is to be taken in when there is room for it. It is in the jobs' files already. Bounded by what is in
    /// flight, since nothing is leased meanwhile.
    put_off: VecDeque<Command>,
    member: Member,
}

impl IndexThread {
    pub(super) const fn new(shared: Arc<Shared>, index: Index, member: Member) -> Self {
        Self { shared, index, put_off: VecDeque::new(), member }
    }

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
            // Verbs are answered at once while the disk is full, so a full disk keeps no round from its end.
            self.member.answer();
            let next = runtime.block_on(self.next(commands));
            self.shared.room.try_to_go_on();
            self.catch_up()?;
            match next {
                Next::Verb(Command::Close { reply }) => {
                    // What is still put off is read from the jobs' files at the next start.
                    let result = self.index.flush();
                    self.shared.close("it was closed");
                    answer(reply, result);
                    return Ok(());
                }
                Next::Verb(command) => self.take(command)?,
                Next::Gone => return self.index.flush(),
                Next::Round => {}
            }
            if flushed.elapsed() >= FLUSH_EVERY {
                self.index.flush()?;
                flushed = Instant::now();
            }
        }
    }

    async fn next(&self, commands: &mut mpsc::Receiver<Command>) -> Next {
        // Verbs first: the round that follows one looks around, too.
        tokio::select! { biased;
            command = commands.recv() => command.map_or(Next::Gone, Next::Verb),
            () = self.member.called() => Next::Round,
            () = sleep(FLUSH_EVERY) => Next::Round,
        }
    }

    /// Takes in what was put off, as far as there is room.
    fn catch_up(&mut self) -> Result<()> {
        while !self.put_off.is_empty() && self.has_room().is_ok() {
            let Some(command) = self.put_off.pop_front() else { break };
            self.carry_out(command)?;
            if self.put_off.is_empty() {
                self.shared.tick(); // for who was refused leases because of it
            }
        }
        Ok(())
    }

    /// Carries out one verb, or puts off what settles requests while there is no room to take it in.
    fn take(&mut self, mut command: Command) -> Result<()> {
        let settles = matches!(command, Command::Settled(_) | Command::Wait { .. });
        if !settles || (self.put_off.is_empty() && self.has_room().is_ok()) {
            return self.carry_out(command);
        }
        if let Command::Wait { reply, .. } = &mut command {
            // The intents have it: the slot need not wait.
            answer(std::mem::replace(reply, oneshot::channel().0), Ok(()));
        }
        self.put_off.push_back(command);
        Ok(())
    }

    /// Whether sled may write what comes next. If not, nothing is leased until it may.
    pub(super) fn has_room(&mut self) -> Result<()> {
        self.index.reserve(0).map_err(|error| {
            self.shared.room.failed(&error, self.index.reserves(0));
            Error::Full(error.to_string())
        })
    }

    /// Whether sled may write so much for a new job. If not, the others go on without it.
    fn make_room(&mut self, bytes: u64) -> Result<()> {
        self.has_room()?;
        self.index.reserve(bytes).map_err(|error| Error::Full(error.to_string()))
    }

    /// Carries out one verb. Its own failure is its caller's; one that leaves the index in doubt is ours.
    fn carry_out(&mut self, command: Command) -> Result<()> {
        match command {
            Command::MakeRoom { requests, reply } => {
                let result = self.make_room(u64::from(requests) * INDEX_BYTES);
                self.reply(reply, result)
            }
            Command::Put { job, reply } => {
                let result = self.put(*job);
                self.reply(reply, result)
            }
            Command::Jobs { open_alone, reply } => {
                let entries = self.index.entries().filter(|entry| !open_alone || !entry.status.is_final());
                let states = entries.map(Entry::state).collect();
                self.reply(reply, Ok(states))
            }
            Command::Job { id, reply } => self.reply(reply, self.index.entry(id).map(Entry::state)),
            Command::Queues { reply } => self.reply(reply, Ok(self.index.queues())),
            Command::Rivals { queue, reply } => self.reply(reply, Ok(self.index.rivals(&queue))),
            Command::Lease { queue, max, now, reply } => {
                // What was put off is bounded by what was in flight when it began.
                let result = if self.shared.room.look().is_some() || !self.put_off.is_empty() {
                    Ok(Leased::default())
                } else {
                    self.index.lease(&self.shared.leases, &queue, max, now)
                };
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
            Command::Remove { id, reply } => {
                let result = self.remove(id);
                self.reply(reply, result)
            }
            Command::RetryNow { id, files, reply } => {
                let result = self.has_room().and_then(|()| self.retry_now(id, &files));
                self.shared.tick();
                self.reply(reply, result)
            }
            Command::Close { reply } => self.reply(reply, Ok(())),
        }
    }

    /// Indexes a job whose folder is whole and whose `state.json` is written.
    fn put(&mut self, job: Job) -> Result<()> {
        let folder = JobFolder::new(&self.shared.state, job.id);
        let row = recover::put(&mut self.index, &folder, &job, &self.member)?;
        self.index.flush()?;
        fault::point("store-job-indexed");
        let status = job.first_status();
        self.index.load(job, status, row)?;
        self.shared.tick();
        Ok(())
    }

    /// First the job's file, then the index, so that a crash in between ends a job that is to end.
    pub(super) fn set_status(&mut self, id: JobId, status: JobStatus, now: Timestamp) -> Result<JobState> {
        let entry = self.index.entry(id)?;
        entry.status.check_transition(id, &status)?;
        if entry.is_lost {
            return Err(Error::Transition { job: id, from: entry.status.as_str(), to: status.as_str() });
        }
        let ends = status.is_final();
        let job = entry.job.clone();
        let before =
            State { job, status: entry.status.clone(), finished_at: entry.finished_at, counts: None };
        let mut after = State { status: status.clone(), ..before.clone() };
        if ends {
            after.finished_at = Some(now);
            after.counts = Some(entry.counts_at_end());
            self.has_room()?;
        }
        self.replace(&JobFolder::new(&self.shared.state, id), &before, &after)?;
        self.index.entry_mut(id)?.status = status;
        if ends {
            self.index.end(id, now)?;
        }
        Ok(self.index.entry(id)?.state())
    }

    /// Replaces a job's file. [`Error::Full`] if it could not be written and says what it said before.
    fn replace(&self, folder: &JobFolder, before: &State, after: &State) -> Result<()> {
        let Err(mut error) = after.write(folder) else { return Ok(()) };
        if self.shared.room.failed(&error, 0) {
            match after.write(folder) {
                Ok(()) => return Ok(()),
                Err(again) => error = again,
            }
        }
        match State::read(folder) {
            Ok(Some(state)) if state == *before => Err(Error::Full(error.to_string())),
            _ => Err(error),
        }
    }

    /// Written down before it takes effect, since a start gives what waits the due times that stand in the intents.
    fn retry_now(&mut self, id: JobId, files: &JobFiles) -> Result<()> {
        let waiting = self.index.waiting(id)?;
        let due = Timestamp::default();
        let written = waiting.iter().try_for_each(|&(index, attempts)| {
            let intent = Intent::Ended { index, attempts, due, maybe_paid: false };
            files.intents.append(&intent.to_line(), |_| ())
        });
        let synced = if waiting.is_empty() { written } else { written.and_then(|()| files.intents.sync()) };
        synced.map_err(|error| {
            // Those that are written are due at the next start, and else as they were: that harms nobody.
            self.shared.room.failed(&error, 0);
            Error::Full(error.to_string())
        })?;
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
            | Err(
                Error::NoSuchJob(_)
                | Error::Stale(_)
                | Error::Transition { .. }
                | Error::Locked { .. }
                | Error::Full(_),
            ) => None,
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
