//! `batchd run`: the daemon in the foreground.

use std::path::Path;

use super::args::RunArgs;
use super::{Done, Exit, Failure, block_on, load_config, start_logging};
use crate::config::{self, Keys, Supervisor};
use crate::control::JobReport;
use crate::daemon::{self, Ending, RunOptions, Stuck};
use crate::telemetry;

pub(super) fn run(args: &RunArgs, path: Option<&Path>) -> Done {
    let loaded = load_config(path, Keys::Required)?;
    let is_journal = config::journal_stream().is_some_and(|named| telemetry::is_journal(&named));
    let sink = if is_journal { telemetry::Sink::Journal } else { telemetry::Sink::Stderr };
    start_logging(&loaded.config.log, sink)?;
    let options = RunOptions { until_idle: args.until_idle, supervisor: Supervisor::of_this_process() };
    block_on(async { Ok(exit_of(Box::pin(daemon::run(loaded, options)).await)) })?
}

/// How a daemon's end looks from outside.
pub(super) fn exit_of(ended: Result<Ending, daemon::Error>) -> Done {
    match ended {
        Ok(Ending::Done | Ending::StoppedBySignal) => Ok(Exit::Done),
        Ok(Ending::SomeFailed) => Ok(Exit::SomeFailed),
        Ok(Ending::Stuck(stuck)) => Err(waits_for_a_person(&stuck)),
        Ok(Ending::Interrupted) => Ok(Exit::Interrupted),
        Err(error) => Err(failure_of(error)),
    }
}

/// Why nothing could be done with the root.
#[expect(clippy::needless_pass_by_value, reason = "it stands in `map_err`")]
pub(super) fn failure_of(error: daemon::Error) -> Failure {
    let exit = match error {
        daemon::Error::AlreadyRunning { .. } => {
            let hint = "one daemon serves a root: stop that one, or set another `root`";
            return Failure::new(Exit::AlreadyRunning, error.to_string()).hint(hint);
        }
        daemon::Error::State(_) => Exit::StateIo,
        daemon::Error::Internal(_) => Exit::Internal,
    };
    Failure::new(exit, error.to_string())
}

/// Names what waits, and says what to do.
fn waits_for_a_person(stuck: &Stuck) -> Failure {
    let job = |job: &JobReport| {
        let why = [&job.reason, &job.message].into_iter().flatten().map(String::as_str).collect::<Vec<_>>();
        format!("job `{}` is {} ({})", job.name, job.status, why.join(": "))
    };
    let intake = stuck.intake.iter().map(|trouble| format!("specs can't be taken in ({trouble})"));
    let waiting: Vec<String> = stuck.jobs.iter().map(job).chain(intake).collect();
    let hint = "put the reason right, then start batchd again; while `batchd run` runs, `batchd retry JOB` goes on with what is \
         held, and `batchd resume JOB` with what you paused";
    Failure::new(Exit::SomeFailed, format!("waiting for a person: {}", waiting.join("; "))).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::report::tests::printed;
    use crate::store;

    #[test]
    fn every_end_has_its_exit_and_every_error_its_words() {
        let already = |pid| daemon::Error::AlreadyRunning { pid, root: "/r".into() };
        let hint = "  hint: one daemon serves a root: stop that one, or set another `root`\n";
        let table = [
            (Ok(Ending::Done), Exit::Done, String::new()),
            (Ok(Ending::StoppedBySignal), Exit::Done, String::new()),
            (Ok(Ending::SomeFailed), Exit::SomeFailed, String::new()),
            (
                Ok(Ending::Stuck(Stuck { jobs: Vec::new(), intake: Some("disk full".to_owned()) })),
                Exit::SomeFailed,
                "error: waiting for a person: specs can't be taken in (disk full)\n  \
                 hint: put the reason right, then start batchd again; while `batchd run` runs, `batchd retry JOB` goes on with what is \
                 held, and `batchd resume JOB` with what you paused\n"
                    .to_owned(),
            ),
            (Ok(Ending::Interrupted), Exit::Interrupted, String::new()),
            (
                Err(already(Some(7))),
                Exit::AlreadyRunning,
                format!("error: another daemon (pid 7) holds `/r`\n{hint}"),
            ),
            (Err(already(None)), Exit::AlreadyRunning, format!("error: another daemon holds `/r`\n{hint}")),
            (
                Err(daemon::Error::State(store::Error::Closed("disk full".to_owned()))),
                Exit::StateIo,
                "error: the store is closed: disk full\n".to_owned(),
            ),
            (Err(daemon::Error::Internal("x".to_owned())), Exit::Internal, "error: x\n".to_owned()),
        ];
        for (ended, exit, said) in table {
            let shown = format!("{ended:?}");
            let printed =
                printed(|printer| exit_of(ended).unwrap_or_else(|failure| printer.failure(failure)));
            assert_eq!((printed.exit, printed.err), (exit, said), "{shown}");
        }
    }
}
