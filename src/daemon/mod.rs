//! The daemon: builds the workers from the configuration, runs them, and ends them in order.

use std::path::PathBuf;

use thiserror::Error;

use crate::config;
use crate::store;

/// How a daemon is to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// End when nothing can progress without a person.
    pub until_idle: bool,
}

/// How a daemon's run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Everything is done, and every request that was settled has its answer.
    Done,
    /// Everything is done, but some requests failed.
    SomeFailed,
    /// A signal asked it to stop, and it stopped in order.
    StoppedBySignal,
    /// What is left waits for a person: paused or held jobs, which it named on stderr.
    Stuck,
    /// A second signal cut the drain short.
    Interrupted,
}

/// Why a daemon could not run, or had to stop.
#[derive(Debug, Error)]
pub enum Error {
    #[error("another daemon{} holds `{}`", pid.map_or_else(String::new, |pid| format!(" (pid {pid})")), root.display())]
    AlreadyRunning { pid: Option<u32>, root: PathBuf },
    #[error(transparent)]
    State(store::Error),
    #[error("{0}")]
    Internal(String),
}

/// Runs the daemon in the foreground until it is done, told to stop, or can't go on.
#[expect(clippy::unused_async, reason = "the signature that commands are written against")]
pub async fn run(loaded: config::Loaded, options: RunOptions) -> Result<Ending, Error> {
    Err(Error::Internal(format!("{} can't be run ({options:?})", loaded.config.root.display())))
}
