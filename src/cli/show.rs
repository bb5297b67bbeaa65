//! `batchd show`: one job of the running daemon, with everything that is known about it.

use std::iter;
use std::path::Path;

use super::args::JobArgs;
use super::client::Client;
use super::report::{Printer, status};
use super::{Done, Exit, Failure, block_on, load_config};
use crate::config::{Config, Keys};
use crate::control::JobReport;

pub(super) fn run(args: &JobArgs, config: Option<&Path>, printer: &mut Printer<'_>) -> Done {
    let loaded = load_config(config, Keys::Ignored)?;
    let job = block_on(async { Client::new(&loaded.config)?.show(&args.job).await })?;
    if args.json {
        printer.json(&job)?;
    } else {
        print(&job, &loaded.config, printer)?;
    }
    Ok(Exit::Done)
}

/// One line a fact; what a job doesn't have is left out.
pub(super) fn print(job: &JobReport, config: &Config, printer: &mut Printer<'_>) -> Result<(), Failure> {
    let counts = &job.counts;
    let others = [
        (counts.failed, "failed"),
        (job.leased, "in flight"),
        (job.waiting, "waiting for another attempt"),
        (counts.maybe_paid_twice, "maybe paid twice"),
    ];
    let others =
        others.into_iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}"));
    let requests = format!("{} of {} completed", counts.completed, counts.total);
    let requests = iter::once(requests).chain(others).collect::<Vec<_>>().join(", ");
    let queues = job.queues.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let results = config.results_dir().join(&job.name).display().to_string();
    let facts = [
        ("name", Some(job.name.clone())),
        ("id", Some(job.id.to_string())),
        ("kind", Some(job.kind.clone())),
        ("status", Some(status(job))),
        ("remote", job.remote.clone()),
        ("message", job.message.clone()),
        ("requests", Some(requests)),
        ("queues", Some(queues)),
        ("priority", Some(job.priority.to_string())),
        ("spec", Some(job.spec_file.clone())),
        ("accepted", Some(job.accepted_at.clone())),
        ("finished", job.finished_at.clone()),
        ("results", Some(results)),
    ];
    printer.facts(facts)
}
