//! Who holds which request now. Only in memory: a restart makes every lease void.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::domain::{RequestId, Timestamp};
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

    /// Notes that the lease's attempt is about to be sent. [`Error::Stale`] if it is not the one held.
    pub(super) fn begin(&self, lease: &Lease) -> Result<()> {
        match self.lock().held.get_mut(&lease.request) {
            Some(held) if held.epoch == lease.epoch => held.sent = true,
            Some(_) | None => return Err(Error::Stale(lease.request)),
        }
        Ok(())
    }

    /// Ends a lease. [`Error::Stale`] if it is not the one held: then nothing may be settled under it.
    pub(super) fn take(&self, lease: &Lease) -> Result<Held> {
        let mut table = self.lock();
        match table.held.get(&lease.request) {
            Some(held) if held.epoch == lease.epoch => {
                let held = *held;
                table.held.remove(&lease.request);
                Ok(held)
            }
            Some(_) | None => Err(Error::Stale(lease.request)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
