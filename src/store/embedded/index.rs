//! The index: which requests are fresh, waiting or leased. Lives on one thread, which alone touches sled.
//!
//! # Invariants
//!
//! - A fresh request's bit is set in its range; a waiting one's key is there; a settled one has neither. A
//!   leased request keeps what it had until its settlement is durable, so a crash gives it back.
//! - sled gets at most [`BATCH_MAX`] items a batch (above a few hundred, 0.34 leaks without bound), and
//!   a job's row in the last of them: what the index acknowledges of a journal, it has taken in.
//!
//! # Operation
//!
//! Fresh requests are leased in input order by a cursor for each queue of each job, which only moves on;
//! what is given back behind it waits in `returned`. So no lease looks at what was leased before.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::domain::range::{BLOCK, Bits};
use crate::domain::{Counts, Job, JobId, JobState, JobStatus, QueueName, RequestId, Timestamp};
use crate::fault;
use crate::store::embedded::ahead::Ahead;
use crate::store::embedded::claim::{self, Claim, QueuePlace};
use crate::store::embedded::entry::Entry;
use crate::store::embedded::keys::{self, Row};
use crate::store::embedded::leases::{Held, Leases};
use crate::store::embedded::open::Open;
use crate::store::embedded::ranges::{range_change, read_range};
use crate::store::share::{Candidate, Turns};
use crate::store::weight::Weight;
use crate::store::{Error, Leased, QueueDepth, Result};

/// Items of one sled batch. Measured on 0.34.7: with 200 memory stays flat, with 400 it grows for ever. Even, so
/// that a key moved by removing and inserting is moved in one batch.
pub(super) const BATCH_MAX: usize = 100;

#[derive(Debug)]
pub(super) struct Index {
    tree: sled::Tree,
    /// sled's own file, synced by us behind every flush.
    file: Ahead,
    jobs: BTreeMap<JobId, Entry>,
    turns: Turns,
    /// Waiting requests that are leased, or settled and not yet durable: their keys are still there.
    out: BTreeSet<RequestId>,
    dirty: bool,
}

/// A settled request whose record is durable in its journal.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) request: RequestId,
    pub(super) held: Held,
    pub(super) success: bool,
    /// Length of the journal with this record.
    pub(super) journal_end: u64,
}

/// A change of one key.
pub(super) type Change = (Vec<u8>, Option<Vec<u8>>);

impl Index {
    pub(super) fn new(tree: sled::Tree, file: Ahead) -> Self {
        Self {
            tree,
            file,
            jobs: BTreeMap::new(),
            turns: Turns::default(),
            out: BTreeSet::new(),
            dirty: false,
        }
    }

    pub(super) fn tree(&self) -> &sled::Tree {
        &self.tree
    }

    /// Sees to it that the next changes, and `more` bytes, have room on the disk. Nothing may be changed without.
    pub(super) fn reserve(&mut self, more: u64) -> Result<()> {
        self.file.reserve(more)
    }

    /// How many bytes of the disk that takes.
    pub(super) const fn reserves(&self, more: u64) -> u64 {
        self.file.step(more)
    }

    /// Adds a job whose keys are in the tree, and counts what is open.
    pub(super) fn load(&mut self, job: Job, status: JobStatus, row: Row) -> Result<()> {
        let open = Open::read(self, job.id)?;
        let mut queues: Vec<QueuePlace> = job.queues.iter().map(|_| QueuePlace::default()).collect();
        let fresh = open.fresh.iter().map(|((_, queue), bits)| (*queue, bits.len(), 0));
        let waiting = open.waiting.values().map(|(queue, ..)| (*queue, 0, 1));
        for (queue, fresh, waiting) in fresh.chain(waiting) {
            let place = queues.get_mut(usize::from(queue)).ok_or_else(|| damaged("a queue's number"))?;
            place.fresh += fresh;
            place.waiting += waiting;
        }
        let entry = Entry { status, finished_at: None, row, queues, leased: 0, is_lost: false, job };
        self.jobs.insert(entry.job.id, entry);
        Ok(())
    }

    /// Adds a job that has ended; it has no keys.
    pub(super) fn load_ended(
        &mut self,
        job: Job,
        status: JobStatus,
        counts: Counts,
        finished_at: Option<Timestamp>,
    ) {
        let row = Row {
            acknowledged: 0,
            completed: counts.completed,
            failed: counts.failed,
            maybe_paid_twice: counts.maybe_paid_twice,
        };
        let entry = Entry { status, finished_at, row, queues: Vec::new(), leased: 0, is_lost: false, job };
        self.jobs.insert(entry.job.id, entry);
    }

    /// Adds a job that can't be read, held for good; its keys, if it has any, stay.
    pub(super) fn load_lost(&mut self, job: Job, why: String, counts: Counts) {
        let id = job.id;
        self.load_ended(job, JobStatus::Held { why }, counts, None);
        if let Some(entry) = self.jobs.get_mut(&id) {
            entry.is_lost = true;
        }
    }

    /// The jobs that have a row.
    pub(super) fn rows(&self) -> Result<Vec<JobId>> {
        let keys = self.tree.range(keys::all_jobs()).keys();
        keys.filter_map(|key| key.map(|key| keys::parse_job(&key)).map_err(broken).transpose()).collect()
    }

    pub(super) fn entry(&self, id: JobId) -> Result<&Entry> {
        self.jobs.get(&id).ok_or(Error::NoSuchJob(id))
    }

    pub(super) fn entry_mut(&mut self, id: JobId) -> Result<&mut Entry> {
        self.jobs.get_mut(&id).ok_or(Error::NoSuchJob(id))
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.jobs.values()
    }

    pub(super) fn states(&self) -> Vec<JobState> {
        self.jobs.values().map(Entry::state).collect()
    }

    pub(super) fn queues(&self) -> Vec<QueueDepth> {
        let mut depths: BTreeMap<&QueueName, u64> = BTreeMap::new();
        for entry in self.jobs.values().filter(|entry| entry.may_send()) {
            for (queue, place) in entry.job.queues.iter().zip(&entry.queues) {
                *depths.entry(queue).or_default() += u64::from(place.fresh) + u64::from(place.waiting);
            }
        }
        let depths = depths.into_iter().filter(|(_, ready)| *ready > 0);
        depths.map(|(queue, ready)| QueueDepth { queue: queue.clone(), ready }).collect()
    }

    /// See [`Store::rivals`](crate::store::Store::rivals).
    pub(super) fn rivals(&self, queue: &QueueName) -> Vec<JobId> {
        let contends = |entry: &&Entry| {
            entry.may_send() && entry.counts().open() > 0 && entry.job.queues.contains(queue)
        };
        self.jobs.values().filter(contends).map(|entry| entry.job.id).collect()
    }

    pub(super) fn lease(
        &mut self,
        leases: &Leases,
        queue: &QueueName,
        max: usize,
        now: Timestamp,
    ) -> Result<Leased> {
        let Self { tree, jobs, turns, out, .. } = self;
        let mut numbers = BTreeMap::new();
        let mut candidates = Vec::new();
        for entry in jobs.values().filter(|entry| entry.may_send()) {
            let Some(number) = entry.job.queues.iter().position(|q| q == queue) else { continue };
            let open = entry.queues.get(number).is_some_and(|place| place.fresh + place.waiting > 0);
            if open && let Ok(number) = u16::try_from(number) {
                numbers.insert(entry.job.id, number);
                let weight = Weight::of(&entry.job, entry.counts().open(), now);
                candidates.push(Candidate { job: entry.job.id, weight });
            }
        }
        let mut leased = Leased::default();
        turns.share(queue, &candidates, max, |id, want| -> Result<usize> {
            let (Some(entry), Some(&number)) = (jobs.get_mut(&id), numbers.get(&id)) else { return Ok(0) };
            let Some(place) = entry.queues.get_mut(usize::from(number)) else { return Ok(0) };
            let mut claim = Claim { tree, id, number, total: entry.job.total, place, out, leases };
            let got = claim.take(want, now, &mut leased.leases)?;
            entry.leased += u32::try_from(got).unwrap_or(u32::MAX);
            Ok(got)
        })?;
        if leased.leases.len() < max {
            for (id, number) in numbers {
                let due = claim::next_due(tree, out, id, number)?;
                leased.next_due = [leased.next_due, due].into_iter().flatten().min();
            }
        }
        Ok(leased)
    }

    /// Takes in records that are durable. Says which jobs have nothing open, or nothing in flight, any more.
    pub(super) fn settled(&mut self, batch: &[Settled]) -> Result<bool> {
        let mut ranges: BTreeMap<Vec<u8>, Bits> = BTreeMap::new();
        let mut changes: Vec<Change> = Vec::new();
        let mut touched = BTreeSet::new();
        for settled in batch {
            let RequestId { job: id, index } = settled.request;
            if let Some(due) = settled.held.due {
                changes.push((keys::waiting(id, settled.held.queue, due, index), None));
            } else {
                let key = keys::range(id, settled.held.queue, index / BLOCK);
                if !ranges.contains_key(&key) {
                    ranges.insert(key.clone(), read_range(&self.tree, &key)?);
                }
                ranges.entry(key).or_default().remove(index % BLOCK);
            }
            self.out.remove(&settled.request);
            let entry = self.jobs.get_mut(&id).ok_or(Error::NoSuchJob(id))?;
            entry.leased = entry.leased.saturating_sub(1);
            entry.row.acknowledged = entry.row.acknowledged.max(settled.journal_end);
            if settled.success {
                entry.row.completed += 1;
            } else {
                entry.row.failed += 1;
            }
            touched.insert(id);
        }
        changes.extend(ranges.into_iter().map(range_change));
        let mut noteworthy = false;
        // The rows come last, see the invariants.
        changes.extend(touched.into_iter().filter_map(|id| self.jobs.get(&id)).map(|entry| {
            noteworthy |= entry.counts().open() == 0 || (entry.leased == 0 && !entry.may_send());
            (keys::job(entry.job.id), Some(entry.row.encode()))
        }));
        self.apply(changes)?;
        Ok(noteworthy)
    }

    /// Puts a leased request to wait until `due`.
    pub(super) fn wait(
        &mut self,
        request: RequestId,
        held: &Held,
        due: Timestamp,
        attempts: u32,
        maybe_paid: bool,
    ) -> Result<()> {
        let RequestId { job: id, index } = request;
        let mut changes = Vec::new();
        if let Some(old) = held.due {
            changes.push((keys::waiting(id, held.queue, old, index), None));
        } else {
            let key = keys::range(id, held.queue, index / BLOCK);
            let mut bits = read_range(&self.tree, &key)?;
            bits.remove(index % BLOCK);
            changes.push(range_change((key, bits)));
        }
        let entry = self.jobs.get_mut(&id).ok_or(Error::NoSuchJob(id))?;
        entry.leased = entry.leased.saturating_sub(1);
        if let Some(place) = entry.queues.get_mut(usize::from(held.queue)) {
            place.waiting += 1;
        }
        changes.push((keys::waiting(id, held.queue, due, index), Some(attempts.to_be_bytes().to_vec())));
        if maybe_paid {
            entry.row.maybe_paid_twice += 1;
            changes.push((keys::job(id), Some(entry.row.encode())));
        }
        self.out.remove(&request);
        self.apply(changes)
    }

    /// Puts a leased request back where it was.
    pub(super) fn release(&mut self, request: RequestId, held: &Held) -> Result<()> {
        self.out.remove(&request);
        let entry = self.entry_mut(request.job)?;
        entry.leased = entry.leased.saturating_sub(1);
        if let Some(place) = entry.queues.get_mut(usize::from(held.queue)) {
            place.give_back(request.index, held.due.is_some());
        }
        Ok(())
    }

    /// Index and attempts used up of every request that waits for a time to come.
    pub(super) fn waiting(&self, id: JobId) -> Result<Vec<(u32, u32)>> {
        let mut waiting = Vec::new();
        for item in self.tree.range(keys::all_waiting(id)) {
            let (key, attempts) = item.map_err(broken)?;
            let (_, due, index) = keys::parse_waiting(&key).ok_or_else(|| damaged("a waiting key"))?;
            let attempts = keys::u32_at(&attempts, 0).ok_or_else(|| damaged("a waiting value"))?;
            if due > Timestamp::default() && !self.out.contains(&RequestId { job: id, index }) {
                waiting.push((index, attempts));
            }
        }
        Ok(waiting)
    }

    /// Makes every waiting request of a job due at once.
    pub(super) fn retry_now(&mut self, id: JobId) -> Result<()> {
        let mut changes = Vec::new();
        for item in self.tree.range(keys::all_waiting(id)) {
            let (key, attempts) = item.map_err(broken)?;
            let (queue, due, index) = keys::parse_waiting(&key).ok_or_else(|| damaged("a waiting key"))?;
            // A pair is never split over two batches: their size is even.
            if due > Timestamp::default() && !self.out.contains(&RequestId { job: id, index }) {
                changes.push((key.to_vec(), None));
                changes
                    .push((keys::waiting(id, queue, Timestamp::default(), index), Some(attempts.to_vec())));
            }
        }
        self.apply(changes)
    }

    /// Drops every key of a job that has ended, and the room it took.
    pub(super) fn end(&mut self, id: JobId, now: Timestamp) -> Result<()> {
        self.clear(id)?;
        self.turns.forget(id);
        let entry = self.entry_mut(id)?;
        entry.row.failed = entry.counts_at_end().failed;
        entry.finished_at = Some(now);
        entry.queues = Vec::new();
        Ok(())
    }

    /// Shows a job no more. It must have no keys.
    pub(super) fn forget(&mut self, id: JobId) {
        self.jobs.remove(&id);
    }

    /// Whether anything of a job is left, its row or, after a crash while it was dropped, something of the rest.
    pub(super) fn has_keys(&self, id: JobId) -> Result<bool> {
        let mut found = self.tree.contains_key(keys::job(id)).map_err(broken)?;
        for range in [keys::all_ranges(id), keys::all_waiting(id)] {
            found |= self.tree.range(range).next().transpose().map_err(broken)?.is_some();
        }
        Ok(found)
    }

    /// Drops every key of a job.
    pub(super) fn clear(&mut self, id: JobId) -> Result<()> {
        // The row first: without it the job counts as not indexed, so a crash in between rebuilds it.
        self.apply(vec![(keys::job(id), None)])?;
        for range in [keys::all_ranges(id), keys::all_waiting(id)] {
            let keys: Result<Vec<Change>, _> =
                self.tree.range(range).keys().map(|k| k.map(|k| (k.to_vec(), None))).collect();
            self.apply(keys.map_err(broken)?)?;
        }
        Ok(())
    }

    /// Writes changes in batches that sled bears.
    pub(super) fn apply(&mut self, changes: Vec<Change>) -> Result<()> {
        let mut left = VecDeque::from(changes);
        while !left.is_empty() {
            let mut batch = sled::Batch::default();
            for (key, value) in left.drain(..left.len().min(BATCH_MAX)) {
                match value {
                    Some(value) => batch.insert(key, value),
                    None => batch.remove(key),
                }
            }
            self.tree.apply_batch(batch).map_err(broken)?;
            fault::point("store-index-applied");
            self.dirty = true;
        }
        Ok(())
    }

    /// Makes the index durable: sled's flush, and the fdatasync that it leaves out.
    pub(super) fn flush(&mut self) -> Result<()> {
        if self.dirty {
            fault::point("store-index-flushing");
            self.tree.flush().map_err(broken)?;
            self.file.sync().map_err(|error| broken(sled::Error::Io(error)))?;
            self.dirty = false;
            fault::point("store-index-flushed");
        }
        Ok(())
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it stands in `map_err`")]
pub(super) fn broken(error: sled::Error) -> Error {
    Error::Closed(format!("the index (sled) failed: {error}"))
}

/// The index holds what can't be read. Closes the store; the next start builds what is needed of it anew.
pub(super) fn damaged(what: &str) -> Error {
    let what = format!("{what} can't be read; stop batchd and run `batchd rebuild`");
    Error::Damaged { path: "state/sled".into(), what }
}
