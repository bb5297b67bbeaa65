//! `batchd show`: one job of the running daemon, with everything that is known about it.

use std::iter;
use std::path::Path;

use super::args::JobArgs;
use super::client::Client;
use super::report::{Printer, status};
use super::{Done, Exit, Failure, block_on, load_config};
use crate::config::{Config, Keys};
use crate::control::JobReport;
use crate::domain::Kind;

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
    let queues = job.queues.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let results = config.results_dir().join(&job.name).display().to_string();
    let due = job.due.as_ref().map_or_else(|| "asked for by a person".to_owned(), |due| format!("due {due}"));
    let facts = [
        ("name", Some(job.name.clone())),
        ("id", Some(job.id.to_string())),
        ("kind", Some(job.kind.clone())),
        ("status", Some(status(job))),
        ("remote", job.remote.clone()),
        ("message", job.message.clone()),
        ("requests", Some(requests(job))),
        ("queues", Some(queues)),
        ("priority", Some(job.priority.to_string())),
        ("spec", Some(job.spec_file.clone())),
        ("run", job.schedule.as_ref().map(|_| due)),
        ("accepted", Some(job.accepted_at.clone())),
        ("finished", job.finished_at.clone()),
        ("results", Some(results)),
    ];
    printer.facts(facts)
}

/// How its requests stand.
fn requests(job: &JobReport) -> String {
    let counts = &job.counts;
    let is_fine_tune = job.kind == Kind::FineTune.as_str();
    // It is asked about again and again, which is no failure.
    let waits = if is_fine_tune { "waiting for the next look at it" } else { "waiting for another attempt" };
    let others = [
        (counts.failed, "failed"),
        (job.in_flight, "in flight"),
        (job.waiting, waits),
        (counts.maybe_paid_twice, "maybe paid twice"),
    ];
    let others =
        others.into_iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}"));
    let requests = format!("{} of {} completed", counts.completed, counts.total);
    iter::once(requests).chain(others).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_fine_tune_between_two_polls_waits_for_no_other_attempt() {
        let job = |kind: Kind| -> JobReport {
            let report = json!({
                "name": "support", "id": "01010101-0101-0101-0101-010101010101", "kind": kind.as_str(),
                "status": "in_progress", "leased": 0, "waiting": 1, "priority": 5, "queues": [],
                "counts": {"total": 1, "completed": 0, "failed": 0, "maybe_paid_twice": 0},
                "spec_file": "support.toml", "accepted_at": "",
            });
            serde_json::from_value(report).unwrap()
        };
        assert_eq!(requests(&job(Kind::FineTune)), "0 of 1 completed, 1 waiting for the next look at it");
        assert_eq!(requests(&job(Kind::Chat)), "0 of 1 completed, 1 waiting for another attempt");
    }
}
