//! A job as the index has it in memory: its facts, its counts, and where the leasing of each of its queues stands.

use crate::domain::{Counts, Job, JobState, JobStatus, Timestamp};
use crate::store::embedded::claim::QueuePlace;
use crate::store::embedded::keys::Row;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) job: Job,
    pub(super) status: JobStatus,
    pub(super) finished_at: Option<Timestamp>,
    pub(super) row: Row,
    /// One for each of the job's queues; empty once the job has ended.
    pub(super) queues: Vec<QueuePlace>,
    pub(super) leased: u32,
    /// Its files can't be read: it is shown, and nothing can be done with it.
    pub(super) is_lost: bool,
}

impl Entry {
    /// See [`Job::may_send`].
    pub(super) const fn may_send(&self) -> bool {
        self.job.may_send(&self.status)
    }

    /// Nothing is in flight.
    pub(super) const fn is_still(&self) -> bool {
        self.leased == 0
    }

    /// Whether every request is in one place, while none is leased.
    pub(super) fn adds_up(&self) -> bool {
        let open: u64 = self.queues.iter().map(|q| u64::from(q.fresh) + u64::from(q.waiting)).sum();
        let settled = u64::from(self.row.completed) + u64::from(self.row.failed);
        open + settled == u64::from(self.job.total)
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            total: self.job.total,
            completed: self.row.completed,
            failed: self.row.failed,
            maybe_paid_twice: self.row.maybe_paid_twice,
        }
    }

    /// What has no answer when the job ends has failed.
    pub(super) fn counts_at_end(&self) -> Counts {
        let counts = self.counts();
        Counts { failed: counts.total.saturating_sub(counts.completed), ..counts }
    }

    pub(super) fn state(&self) -> JobState {
        JobState {
            job: self.job.clone(),
            status: self.status.clone(),
            counts: self.counts(),
            leased: self.leased,
            waiting: self.queues.iter().map(|place| place.waiting).sum(),
            finished_at: self.finished_at,
        }
    }
}
