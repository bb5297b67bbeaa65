//! The store in memory: the model of what the verbs mean, for tests and simulation.
//!
//! Written to be obviously right, not fast: every request is a place in a vector. Everything is durable at
//! once, and nothing survives the process.

mod entry;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};

use crate::bell::{Bell, Listener};
use crate::domain::{
    Job, JobId, JobState, JobStatus, LineEntry, QueueName, RequestId, Settlement, Timestamp,
};
use crate::store::memory::entry::{Entry, Place};
use crate::store::share::{Candidate, Turns};
use crate::store::weight::Weight;
use crate::store::{Error, Hold, Input, Journal, Lease, Leased, Line, QueueDepth, Result, Store};

/// See the module's words.
#[derive(Debug, Default)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
    changed: Bell,
    folders: Option<PathBuf>,
    hold: Hold,
}

#[derive(Debug, Default)]
struct Inner {
    jobs: BTreeMap<JobId, Entry>,
    turns: Turns,
    epoch: u64,
    closed: bool,
}

impl MemoryStore {
    /// One whose jobs have folders below `folders`, for files that belong to a job: it makes none itself.
    pub fn with_folders(folders: PathBuf) -> Self {
        Self { folders: Some(folders), ..Self::default() }
    }

    /// Forgets what a restart forgets although it is not about leases: whose turn it is.
    pub fn forget_turns(&self) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).turns = Turns::default();
    }

    fn lock(&self) -> Result<MutexGuard<'_, Inner>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.closed { Err(Error::Closed("it was closed".to_owned())) } else { Ok(inner) }
    }

    fn tick(&self) {
        self.changed.ring();
    }

    fn put(&self, job: Job, input: Input) -> Result<()> {
        let Input::Inline(lines) = input else {
            return Err(Error::Closed("a store in memory has no folders to take a job from".to_owned()));
        };
        let entry = Entry {
            places: vec![Place::Fresh; lines.len()],
            status: job.first_status(),
            finished_at: None,
            lines,
            completed: 0,
            failed: 0,
            maybe_paid_twice: 0,
            journal: Vec::new(),
            memos: BTreeMap::new(),
            job,
        };
        self.lock()?.jobs.insert(entry.job.id, entry);
        self.tick();
        Ok(())
    }

    fn settle_now(&self, lease: &Lease, settlement: Settlement) -> Result<()> {
        let mut inner = self.lock()?;
        let entry = inner.entry_mut(lease.request.job)?;
        let place = entry.places.get_mut(lease.request.index as usize);
        let Some(place @ Place::Leased { .. }) = place else { return Err(Error::Stale(lease.request)) };
        let Place::Leased { epoch, attempt, due } = *place else { return Err(Error::Stale(lease.request)) };
        if epoch != lease.epoch {
            return Err(Error::Stale(lease.request));
        }
        match settlement {
            Settlement::Complete(record) => {
                *place = Place::Settled;
                entry.completed += 1;
                entry.write(&record, attempt);
            }
            Settlement::Discard(record) => {
                *place = Place::Settled;
                entry.failed += 1;
                entry.write(&record, attempt);
            }
            Settlement::Retry { due, attempts, maybe_paid } => {
                *place = Place::Waiting { due, attempts };
                entry.maybe_paid_twice += u32::from(maybe_paid);
            }
            Settlement::Snooze { due, attempts } => *place = Place::Waiting { due, attempts },
            Settlement::Release => {
                *place = match due {
                    Some(due) => Place::Waiting { due, attempts: attempt - 1 },
                    None => Place::Fresh,
                }
            }
        }
        drop(inner);
        self.tick();
        Ok(())
    }

    fn change_status(&self, id: JobId, to: JobStatus, now: Timestamp) -> Result<JobState> {
        let mut inner = self.lock()?;
        let entry = inner.entry_mut(id)?;
        entry.status.check_transition(id, &to)?;
        if to.is_final() {
            entry.failed = entry.job.total - entry.completed;
            entry.finished_at = Some(now);
            entry.places.fill(Place::Settled);
        }
        entry.status = to;
        let state = entry.state();
        if state.status.is_final() {
            inner.turns.forget(id);
        }
        drop(inner);
        self.tick();
        Ok(state)
    }

    fn remove_now(&self, id: JobId) -> Result<bool> {
        let mut inner = self.lock()?;
        inner.entry(id)?.status.check_removal(id)?;
        let awaits =
            |entry: &Entry| !entry.status.is_final() && entry.job.waits_for().any(|maker| maker == id);
        let may_go = self.hold.is_alone() && !inner.jobs.values().any(awaits);
        if may_go {
            inner.jobs.remove(&id);
        }
        Ok(may_go)
    }
}

impl Inner {
    fn entry(&self, id: JobId) -> Result<&Entry> {
        self.jobs.get(&id).ok_or(Error::NoSuchJob(id))
    }

    fn entry_mut(&mut self, id: JobId) -> Result<&mut Entry> {
        self.jobs.get_mut(&id).ok_or(Error::NoSuchJob(id))
    }

    fn lease(&mut self, queue: &QueueName, max: usize, now: Timestamp) -> Result<Leased> {
        let Self { jobs, turns, epoch, .. } = self;
        let candidates: Vec<Candidate> = jobs
            .values()
            .filter(|entry| entry.contends(queue) && entry.open(queue).next().is_some())
            .map(|entry| Candidate {
                job: entry.job.id,
                weight: Weight::of(&entry.job, entry.unsettled(), now),
            })
            .collect();
        let mut leased = Leased::default();
        turns.share(queue, &candidates, max, |id, want| -> Result<usize> {
            let Some(entry) = jobs.get_mut(&id) else { return Ok(0) };
            let before = leased.leases.len();
            for index in entry.claimable(queue, now, want) {
                *epoch += 1;
                leased.leases.push(entry.claim(index, *epoch));
            }
            Ok(leased.leases.len() - before)
        })?;
        if leased.leases.len() < max {
            let waiting = candidates.iter().filter_map(|c| jobs.get(&c.job)?.next_due(queue));
            leased.next_due = waiting.min();
        }
        Ok(leased)
    }
}

/// The verbs are done when the future is made: nothing here waits.
fn now<'a, T: Send + 'a>(result: Result<T>) -> BoxFuture<'a, Result<T>> {
    ready(result).boxed()
}

impl Store for MemoryStore {
    fn put_job(&self, job: Job, input: Input) -> BoxFuture<'_, Result<()>> {
        now(self.put(job, input))
    }

    fn jobs(&self) -> BoxFuture<'_, Result<Vec<JobState>>> {
        now(self.lock().map(|inner| inner.jobs.values().map(Entry::state).collect()))
    }

    fn job(&self, id: JobId) -> BoxFuture<'_, Result<JobState>> {
        now(self.lock().and_then(|inner| inner.entry(id).map(Entry::state)))
    }

    fn queues(&self) -> BoxFuture<'_, Result<Vec<QueueDepth>>> {
        now(self.lock().map(|inner| {
            let mut ready: BTreeMap<QueueName, u64> = BTreeMap::new();
            for entry in inner.jobs.values().filter(|entry| entry.job.may_send(&entry.status)) {
                for queue in &entry.job.queues {
                    *ready.entry(queue.clone()).or_default() += entry.open(queue).count() as u64;
                }
            }
            let depths = ready.into_iter().filter(|(_, ready)| *ready > 0);
            depths.map(|(queue, ready)| QueueDepth { queue, ready }).collect()
        }))
    }

    fn rivals<'a>(&'a self, queue: &'a QueueName) -> BoxFuture<'a, Result<Vec<JobId>>> {
        now(self.lock().map(|inner| {
            inner.jobs.values().filter(|entry| entry.contends(queue)).map(|entry| entry.job.id).collect()
        }))
    }

    fn lease<'a>(&'a self, queue: &'a QueueName, max: usize, at: Timestamp) -> BoxFuture<'a, Result<Leased>> {
        now(self.lock().and_then(|mut inner| inner.lease(queue, max, at)))
    }

    fn line(&self, request: RequestId) -> BoxFuture<'_, Result<Line>> {
        now(self.lock().and_then(|inner| {
            let line = inner.entry(request.job)?.lines.get(request.index as usize);
            let (_, bytes) = line.ok_or(Error::Stale(request))?;
            Ok(Line { bytes: bytes.clone(), number: request.index + 1 })
        }))
    }

    fn begin(&self, lease: &Lease) -> Result<()> {
        self.lock()?.entry(lease.request.job).map(|_| ())
    }

    fn settle(&self, lease: Lease, settlement: Settlement) -> BoxFuture<'_, Result<()>> {
        now(self.settle_now(&lease, settlement))
    }

    fn write_memo(&self, request: RequestId, memo: Bytes) -> BoxFuture<'_, Result<()>> {
        let entry = |inner: &mut Inner| {
            inner.entry_mut(request.job).map(|entry| entry.memos.insert(request.index, memo)).map(drop)
        };
        now(self.lock().and_then(|mut inner| entry(&mut inner)))
    }

    fn memo(&self, request: RequestId) -> BoxFuture<'_, Result<Option<Bytes>>> {
        let memo = |inner: &Inner| Ok(inner.entry(request.job)?.memos.get(&request.index).cloned());
        now(self.lock().and_then(|inner| memo(&inner)))
    }

    fn set_status(&self, job: JobId, status: JobStatus, at: Timestamp) -> BoxFuture<'_, Result<JobState>> {
        now(self.change_status(job, status, at))
    }

    fn remove(&self, job: JobId) -> BoxFuture<'_, Result<bool>> {
        now(self.remove_now(job))
    }

    fn hold(&self) -> Hold {
        self.hold.clone()
    }

    fn retry_now(&self, job: JobId) -> BoxFuture<'_, Result<()>> {
        let result = self.lock().and_then(|mut inner| {
            for place in &mut inner.entry_mut(job)?.places {
                if let Place::Waiting { due, .. } = place {
                    *due = Timestamp::default();
                }
            }
            Ok(())
        });
        self.tick();
        now(result)
    }

    fn journal(&self, job: JobId) -> Result<Box<dyn Journal>> {
        let bytes = self.lock()?.entry(job)?.journal.clone();
        Ok(Box::new(Cursor::new(bytes)))
    }

    fn entry(&self, request: RequestId) -> Result<LineEntry> {
        let inner = self.lock()?;
        let lines = &inner.entry(request.job)?.lines;
        let (queue, bytes) = lines.get(request.index as usize).ok_or(Error::Stale(request))?;
        let offset = lines.iter().take(request.index as usize).map(|(_, line)| line.len() as u64 + 1).sum();
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Ok(LineEntry { offset, length, queue: *queue, line: request.index + 1 })
    }

    fn folder(&self, job: JobId) -> Option<PathBuf> {
        Some(self.folders.as_ref()?.join(job.to_string()))
    }

    fn changes(&self) -> Listener {
        self.changed.listen()
    }

    fn progress(&self) -> Listener {
        self.changed.listen()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        now(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::conformance;

    #[tokio::test]
    async fn behaves_as_a_store() {
        conformance::exercise(async || Arc::new(MemoryStore::default()) as Arc<dyn Store>).await;
    }
}
