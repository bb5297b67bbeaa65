//! What the index says, apart from how sled lays it out: to compare one index with another.

use std::collections::BTreeMap;
use std::path::Path;

use crate::domain::{Counts, JobId, JobStatus, Timestamp};
use crate::pulse::Member;
use crate::store::Result;
use crate::store::embedded::entry::Entry;
use crate::store::embedded::index::Index;
use crate::store::embedded::open::Open;
use crate::store::embedded::start;
use crate::store::lock::Lock;

/// The content of an index. The one that a daemon left behind and the one that is rebuilt from the files are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content(BTreeMap<JobId, JobContent>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct JobContent {
    status: JobStatus,
    finished_at: Option<Timestamp>,
    counts: Counts,
    /// Length of the journal that the index has taken in.
    acknowledged: u64,
    open: Open,
}

impl Content {
    /// Opens the index below `state` as a start would, and reads it. [`Locked`](crate::store::Error::Locked) while a
    /// daemon runs.
    pub fn read(state: &Path) -> Result<Self> {
        let _lock = Lock::take(state)?;
        Self::of(&start::index(state, &Member::default())?)
    }

    pub(super) fn of(index: &Index) -> Result<Self> {
        let content = |entry: &Entry| -> Result<_> {
            let content = JobContent {
                status: entry.status.clone(),
                finished_at: entry.finished_at,
                counts: entry.counts(),
                acknowledged: entry.row.acknowledged,
                open: if entry.is_lost { Open::default() } else { Open::read(index, entry.job.id)? },
            };
            Ok((entry.job.id, content))
        };
        index.entries().map(content).collect::<Result<_>>().map(Self)
    }
}
