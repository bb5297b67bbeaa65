//! `batchd run`: the daemon in the foreground.

use std::path::Path;

use super::args::RunArgs;
use super::report::Printer;
use super::{Done, Exit, Failure, block_on, load_config, start_logging};
use crate::config::Keys;
use crate::daemon::{self, Ending, RunOptions};
use crate::telemetry;

pub(super) fn run(args: &RunArgs, config: Option<&Path>, printer: &mut Printer<'_>) -> Done {
    let loaded = load_config(config, Keys::Required, printer)?;
    start_logging(&loaded.config.log, telemetry::Sink::Stderr)?;
    let options = RunOptions { until_idle: args.until_idle };
    block_on(async { Ok(exit_of(Box::pin(daemon::run(loaded, options)).await)) })?
}

/// How a daemon's end looks from outside.
pub(super) fn exit_of(ended: Result<Ending, daemon::Error>) -> Done {
    match ended {
        Ok(Ending::Done | Ending::StoppedBySignal) => Ok(Exit::Done),
        Ok(Ending::SomeFailed | Ending::Stuck) => Ok(Exit::SomeFailed),
        Ok(Ending::Interrupted) => Ok(Exit::Interrupted),
        Err(error @ daemon::Error::AlreadyRunning { .. }) => {
            let hint = "one daemon serves a root: stop that one, or set another `root`";
            Err(Failure::new(Exit::AlreadyRunning, error.to_string()).hint(hint))
        }
        Err(error @ daemon::Error::State(_)) => Err(Failure::new(Exit::StateIo, error.to_string())),
        Err(error @ daemon::Error::Internal(_)) => Err(Failure::new(Exit::Internal, error.to_string())),
    }
}
