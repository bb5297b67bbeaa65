//! What one process remembers of the fine-tunes it watches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::domain::tuning::Progress;
use crate::domain::{Failure, RequestId, Timestamp};

/// Words that nobody knows are told once each, so many at most: a server that counts seconds in its status must not
/// fill the log.
const TOLD_MAX: usize = 8;

/// One entry for each fine-tune that is on its way; its attempts take it out and put it back.
#[derive(Debug, Default)]
pub(in crate::dispatch) struct Watches(Mutex<BTreeMap<RequestId, Watch>>);

/// See the module's words.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) progress: Progress,
    /// The memo lags.
    pub(super) is_unsaved: bool,
    /// When the step at hand began, or the job was first seen to run.
    pub(super) since: Instant,
    /// Creations that were refused because a file was not ready yet.
    pub(super) early: u32,
    /// Exchanges in a row that brought no answer.
    pub(super) trouble: u32,
    /// Since when the job is not found, and how often it was not.
    pub(super) gone: Option<(Instant, u32)>,
    /// When the provider was last asked to end the job.
    pub(super) asked_at: Option<Instant>,
    /// Why it is not known what came of the last creation.
    pub(super) failure: Option<Failure>,
    /// If no look finds it, it is not created again before this.
    pub(super) not_before: Option<Timestamp>,
    /// The job as it was last seen.
    pub(super) last: Option<Box<RawValue>>,
    /// Statuses nobody knows.
    told: BTreeSet<String>,
}

impl Watches {
    pub(super) fn take(&self, request: RequestId) -> Option<Watch> {
        self.lock().remove(&request)
    }

    pub(super) fn put(&self, request: RequestId, watch: Watch) {
        self.lock().insert(request, watch);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RequestId, Watch>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    pub(super) fn new(progress: Progress) -> Self {
        Self {
            progress,
            is_unsaved: false,
            since: Instant::now(),
            early: 0,
            trouble: 0,
            gone: None,
            asked_at: None,
            failure: None,
            not_before: None,
            last: None,
            told: BTreeSet::new(),
        }
    }

    /// Whether this status is news that should be told.
    pub(super) fn is_news(&mut self, status: &str) -> bool {
        self.told.len() < TOLD_MAX && self.told.insert(status.to_owned())
    }
}
