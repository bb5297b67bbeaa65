//! Who holds which request now. Only in memory: a restart makes every lease void.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::domain::{JobId, RequestId, Timestamp};
use crate::store::{Error, Lease, Result};

/// What a lease took, so that it can be settled or given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) epoch: u64,
    pub(super) attempt: u32,
    /// Number of the queue in the job.
    pub(super) queue: u16,
    /// Set if the request was waiting: together with the index it is its key.
    pub(super) due: Option<Timestamp>,
    /// An intent was written for it.
    pub(super) sent: bool,
}

/// Shared by the thread that leases and the tasks that settle. Bounded by what is in flight.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    held: BTreeMap<RequestId, Held>,
    /// How many of a job's are begun.
    begun: BTreeMap<JobId, u32>,
    epoch: u64,
}

impl Leases {
    /// Notes a lease and gives it out.
    pub(super) fn give(&self, request: RequestId, attempt: u32, queue: u16, due: Option<Timestamp>) -> Lease {
        let mut table = self.lock();
        table.epoch += 1;
        let epoch = table.epoch;
        table.held.insert(request, Held { epoch, attempt, queue, due, sent: false });
        Lease { request, attempt, epoch }
    }

    /// Notes that the lease's attempt is about to be sent; says how many of its job are now.
    /// [`Error::Stale`] if it is not the one held.
    pub(super) fn begin(&self, lease: &Lease) -> Result<u32> {
        let Table { held, begun, .. } = &mut *self.lock();
        let held = held.get_mut(&lease.request).filter(|held| held.epoch == lease.epoch);
        let held = held.ok_or(Error::Stale(lease.request))?;
        let count = begun.entry(lease.request.job).or_default();
        *count += u32::from(!held.sent);
        held.sent = true;
        Ok(*count)
    }

    /// It is not sent after all.
    pub(super) fn take_back(&self, lease: &Lease) {
        let mut table = self.lock();
        if let Some(held) = table.held.get_mut(&lease.request).filter(|held| held.epoch == lease.epoch) {
            let was_sent = std::mem::take(&mut held.sent);
            table.end(lease.request.job, was_sent);
        }
    }

    /// How many of a job's are begun.
    pub(super) fn begun(&self, job: JobId) -> u32 {
        self.lock().begun.get(&job).copied().unwrap_or_default()
    }

    /// Whether nothing of a job is begun.
    pub(super) fn is_still(&self, job: JobId) -> bool {
        self.begun(job) == 0
    }

    /// Ends a lease. [`Error::Stale`] if it is not the one held: then nothing may be settled under it.
    pub(super) fn take(&self, lease: &Lease) -> Result<Held> {
        let mut table = self.lock();
        match table.held.get(&lease.request) {
            Some(held) if held.epoch == lease.epoch => {
                let held = *held;
                table.held.remove(&lease.request);
                table.end(lease.request.job, held.sent);
                Ok(held)
            }
            Some(_) | None => Err(Error::Stale(lease.request)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn end(&mut self, job: JobId, was_sent: bool) {
        if was_sent && let Some(count) = self.begun.get_mut(&job) {
            *count -= 1;
            if *count == 0 {
                self.begun.remove(&job);
            }
        }
    }
}
