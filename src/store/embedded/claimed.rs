//! The state folder between lock and store: ours, and not open yet.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::metrics::Metrics;
use crate::store::Result;
use crate::store::embedded::{EmbeddedStore, start};
use crate::store::folder::make_private_dir;
use crate::store::lock::Lock;

/// The state, locked and not open yet: so long as its disk is full nothing must be opened.
#[derive(Debug)]
pub struct Claimed {
    pub(super) state: PathBuf,
    pub(super) lock: Arc<Lock>,
    pub(super) metrics: Metrics,
}

impl Claimed {
    /// Locks the state below `state`. [`Error::Locked`](crate::store::Error::Locked) if another process has it.
    pub fn take(state: &Path) -> Result<Self> {
        make_private_dir(&state.join("jobs"))?;
        let lock = Arc::new(Lock::take(state)?);
        Ok(Self { state: state.to_owned(), lock, metrics: Metrics::default() })
    }

    /// Notes there what the store's commits take.
    #[must_use]
    pub fn with_metrics(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// Opens the store as [`EmbeddedStore::open`] does. `min_free` bytes of the disk stay free; without it, a part of
    /// it. [`Error::is_full`](crate::store::Error::is_full) if there is no room to open it: nothing is harmed, and it may be tried again.
    pub fn open(&self, min_free: Option<u64>) -> Result<EmbeddedStore> {
        EmbeddedStore::start(self, start::index(&self.state)?, min_free)
    }
}
