//! A job in memory, and where each of its requests is.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::domain::{Counts, Job, JobState, JobStatus, QueueName, Record, RequestId, Timestamp};
use crate::store::Lease;

/// A job, and where its requests are.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) job: Job,
    pub(super) status: JobStatus,
    pub(super) finished_at: Option<Timestamp>,
    pub(super) lines: Vec<(u16, Bytes)>,
    pub(super) places: Vec<Place>,
    pub(super) completed: u32,
    pub(super) failed: u32,
    pub(super) maybe_paid_twice: u32,
    pub(super) journal: Vec<u8>,
    pub(super) memos: BTreeMap<u32, Bytes>,
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Fresh,
    Waiting { due: Timestamp, attempts: u32 },
    Leased { epoch: u64, attempt: u32, due: Option<Timestamp> },
    Settled,
}

impl Entry {
    pub(super) fn queue_number(&self, queue: &QueueName) -> Option<u16> {
        let at = self.job.queues.iter().position(|q| q == queue)?;
        u16::try_from(at).ok()
    }

    /// Whether it may send something in `queue`, now or later.
    pub(super) fn contends(&self, queue: &QueueName) -> bool {
        self.job.may_send(&self.status) && self.queue_number(queue).is_some() && self.unsettled() > 0
    }

    pub(super) fn unsettled(&self) -> u32 {
        self.job.total.saturating_sub(self.completed + self.failed)
    }

    /// The requests of `queue` that are neither leased nor settled, with their places.
    pub(super) fn open(&self, queue: &QueueName) -> impl Iterator<Item = (u32, Place)> {
        let number = self.queue_number(queue);
        (0u32..).zip(self.lines.iter().zip(&self.places)).filter_map(move |(index, ((of, _), place))| {
            let open = matches!(place, Place::Fresh | Place::Waiting { .. });
            (open && Some(*of) == number).then_some((index, *place))
        })
    }

    /// Due retries by due time, then fresh requests in input order: at most `max`.
    pub(super) fn claimable(&self, queue: &QueueName, now: Timestamp, max: usize) -> Vec<u32> {
        let mut due: Vec<(Timestamp, u32)> =
            self.open(queue).filter_map(|(i, p)| Some((p.due()?, i))).collect();
        due.retain(|(due, _)| *due <= now);
        due.sort_unstable();
        let fresh = self.open(queue).filter(|(_, place)| *place == Place::Fresh).map(|(index, _)| index);
        due.into_iter().map(|(_, index)| index).chain(fresh).take(max).collect()
    }

    pub(super) fn claim(&mut self, index: u32, epoch: u64) -> Lease {
        let request = RequestId { job: self.job.id, index };
        let Some(place) = self.places.get_mut(index as usize) else {
            return Lease { request, attempt: 1, epoch };
        };
        let (attempt, due) = match *place {
            Place::Waiting { due, attempts } => (attempts + 1, Some(due)),
            Place::Fresh | Place::Leased { .. } | Place::Settled => (1, None),
        };
        *place = Place::Leased { epoch, attempt, due };
        Lease { request, attempt, epoch }
    }

    pub(super) fn next_due(&self, queue: &QueueName) -> Option<Timestamp> {
        self.open(queue).filter_map(|(_, place)| place.due()).min()
    }

    pub(super) fn write(&mut self, record: &Record, attempt: u32) {
        self.journal.extend(record.to_journal_line(attempt));
    }

    pub(super) fn state(&self) -> JobState {
        let count = |matching: fn(&Place) -> bool| {
            u32::try_from(self.places.iter().filter(|place| matching(place)).count()).unwrap_or(u32::MAX)
        };
        JobState {
            job: self.job.clone(),
            status: self.status.clone(),
            counts: Counts {
                total: self.job.total,
                completed: self.completed,
                failed: self.failed,
                maybe_paid_twice: self.maybe_paid_twice,
            },
            leased: count(|place| matches!(place, Place::Leased { .. })),
            waiting: count(|place| matches!(place, Place::Waiting { .. })),
            finished_at: self.finished_at,
        }
    }
}

impl Place {
    pub(super) const fn due(self) -> Option<Timestamp> {
        match self {
            Self::Waiting { due, .. } => Some(due),
            Self::Fresh | Self::Leased { .. } | Self::Settled => None,
        }
    }
}
