//! The index at a start: sled opened by the [`ladder`] and brought level with the jobs' folders; built anew from
//! them where sled fails in between, or where a person asks for it.
//!
//! # Operation
//!
//! sled may open and still be unable to read what it holds: it then answers with an error, or panics. Since the
//! files are the truth, either costs no more than time: what is left of it is set aside, and the index built anew.
//! What else goes wrong (a job's file that can't be read, a disk that is full) is not sled's fault and ends the start.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::domain::JobState;
use crate::pulse::Member;
use crate::store::embedded::index::{Index, broken};
use crate::store::embedded::ladder::{self, Opened};
use crate::store::embedded::{recover, removal};
use crate::store::lock::Lock;
use crate::store::{Error, Result};

/// Why the index could not be brought level.
#[derive(Debug)]
enum Failed {
    /// sled: another one can be built from the files.
    Index(Error),
    Other(Error),
}

/// Builds the index below `state` (`<root>/state`) anew from the jobs' folders; the old one is set aside. What was in
/// flight when a daemon died is decided about as at any start. Blocks, for as long as there are journals to read.
///
/// The jobs as they came back, in the order of acceptance; none, and nothing is made, where there is no state.
/// [`Error::Locked`] while a daemon runs.
pub fn rebuild(state: &Path) -> Result<Vec<JobState>> {
    if !state.join("jobs").is_dir() {
        return Ok(Vec::new());
    }
    let _lock = Lock::take(state)?;
    ladder::set_aside(&state.join("sled"), &state.join("corrupt"))?;
    Ok(index(state, &Member::default())?.states())
}

/// The index, level with the jobs' folders and durable. The lock must be held. `member` answers as long as it comes on.
pub(super) fn index(state: &Path, member: &Member) -> Result<Index> {
    let (path, corrupt) = (state.join("sled"), state.join("corrupt"));
    removal::finish_all(state)?;
    let opened = ladder::open(&path, &corrupt)?;
    if opened.fresh {
        tracing::debug!("the index is new and is built from the job folders");
    }
    let error = match level(state, opened, member) {
        Ok(index) => return Ok(index),
        Err(Failed::Other(error)) => return Err(error),
        Err(Failed::Index(error)) => error,
    };
    tracing::error!(%error, "the index can't be read; setting it aside and building it anew from the job folders");
    ladder::set_aside(&path, &corrupt)?;
    level(state, ladder::open(&path, &corrupt)?, member)
        .map_err(|(Failed::Index(error) | Failed::Other(error))| error)
}

fn level(state: &Path, opened: Opened, member: &Member) -> Result<Index, Failed> {
    let Opened { db, file, .. } = opened;
    // sled asserts on what it reads.
    let leveled = catch_unwind(AssertUnwindSafe(|| {
        let mut index = Index::new(db.open_tree("queue").map_err(broken)?, file);
        index.reserve(0)?;
        recover::all(&mut index, state, member)?;
        Ok(index)
    }));
    let failed = match leveled {
        Ok(Ok(index)) => return Ok(index),
        Ok(Err(error @ (Error::Closed(_) | Error::Damaged { .. }))) => error,
        Ok(Err(error)) => return Err(Failed::Other(error)),
        Err(_) => Error::Closed("the index (sled) panicked".to_owned()),
    };
    // After its first error sled is not touched again, not even to be closed: that could hang, or panic anew. Its
    // file, which stays open, is set aside; what is opened next is another.
    std::mem::forget(db);
    Err(Failed::Index(failed))
}
