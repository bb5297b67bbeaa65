//! Intake: takes job specs out of the watched folder and makes jobs of them.
//!
//! # Operation
//!
//! One loop ([`worker`]): look ([`scan`]), take in what is settled ([`accept`]), make the runs of schedules that are
//! due ([`schedules`]), sleep until something may have changed. A look comes at the latest after `rescan`; a hint of
//! the operating system ([`watch`]), a settling file, a schedule or [`Handle::wake`] brings it sooner. A spec with a
//! schedule stays where it is. Any other is claimed by a rename ([`claim`]), read to its end, and
//! becomes a job once [`store::Store::put_job`] has answered ([`admit`]), or goes aside with a report ([`reject`]). What a
//! crash left half done is finished or undone first ([`recover`]).
//!
//! # Invariants
//!
//! - Only this loop makes jobs, so that nobody else can make the same one.
//! - A spec is in one place at any time: the jobs folder, a job's folder, or `rejected/`. Wherever the
//!   process dies, the next one makes a job of it at most once.
//! - Only what a spec says can reject it. When our own files can't be written it goes back where it was,
//!   and is tried again.
//!
//! # What it does not do
//!
//! It holds no lock on the state folder: whoever starts it has made sure that no other daemon runs there.
//! A folder below `state/jobs/` that has no `state.json` yet is its business alone.

mod accept;
mod admit;
mod blocking;
mod claim;
mod copy;
mod dir;
#[cfg(test)]
mod evil;
#[cfg(test)]
mod fixture;
mod handle;
mod known;
mod lookout;
mod made;
mod models;
mod name;
mod recover;
mod reject;
mod remove;
mod round;
mod scan;
mod schedules;
mod watch;
mod worker;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::disk;
use crate::spec;
use crate::store;

pub use handle::{Handle, Refusal, Status};
pub use name::{is_numbered, numbered};
pub use scan::{is_never_read, unfit_folder};
pub use schedules::{Plan, ScheduleStatus};
pub use worker::Intake;

/// The folder for data that TOML specs name. Never looked into.
pub const INPUTS: &str = "inputs";
/// Where refused specs go. Never looked into.
pub const REJECTED: &str = "rejected";
/// What the name of the report on a refused spec adds to the spec's name there.
pub const REPORT: &str = ".errors.txt";
/// The spec in a dropped folder.
pub const FOLDER_SPEC: &str = "job.toml";

/// What intake needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The watched folder.
    pub jobs: PathBuf,
    /// Names taken there are not given to jobs.
    pub results: PathBuf,
    /// `<root>/state`.
    pub state: PathBuf,
    /// The longest time between two looks at the jobs folder.
    pub rescan: Duration,
    /// How long a spec must have rested.
    pub settle: Duration,
    /// Whether to ask the operating system for hints. A simulation doesn't: they come from a thread.
    pub watch: bool,
    pub spec: spec::Settings,
}

/// Why intake, or one step of it, can't go on.
#[derive(Debug, Error)]
pub enum Error {
    /// A file or folder of ours can't be read or written. What was being taken in is tried again later.
    #[error("{act} {}: {source}", path.display())]
    Io { act: &'static str, path: PathBuf, source: io::Error },
    /// The store has failed: intake is over.
    #[error(transparent)]
    Store(store::Error),
}

impl Error {
    /// Whether a file or folder is not as batchd would have left it: to try again helps nothing.
    fn is_lasting(&self) -> bool {
        use io::ErrorKind::{DirectoryNotEmpty, InvalidData, UnexpectedEof};
        match self {
            Self::Io { source, .. } => {
                matches!(source.kind(), DirectoryNotEmpty | InvalidData | UnexpectedEof)
            }
            Self::Store(_) => true,
        }
    }

    /// Whether there is no room, or nothing may be written: that passes, with somebody's help.
    fn is_passing(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                disk::is_full(source) || source.kind() == io::ErrorKind::ReadOnlyFilesystem
            }
            Self::Store(_) => false,
        }
    }
}

impl From<store::Error> for Error {
    /// The store's file helpers fail as our own files do.
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Io { act, path, source } => Self::Io { act, path, source },
            // Nothing was accepted; it is tried again like any file that can't be written.
            store::Error::Full(why) => Self::Io {
                act: "accept a job into",
                path: PathBuf::from("state"),
                source: io::Error::new(io::ErrorKind::StorageFull, why),
            },
            error @ (store::Error::NoSuchJob(_)
            | store::Error::Stale(_)
            | store::Error::Transition { .. }
            | store::Error::Damaged { .. }
            | store::Error::Locked { .. }
            | store::Error::Closed(_)) => Self::Store(error),
        }
    }
}

/// Turns an I/O error into one that says which act on which path failed.
fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io { act, path, source }
}
