//! `batchd list`: the jobs of the running daemon.

use std::path::Path;

use super::args::ListArgs;
use super::client::Client;
use super::report::{Printer, status};
use super::{Done, Exit, block_on, load_config};
use crate::config::Keys;
use crate::control::JobReport;

pub(super) fn run(args: ListArgs, config: Option<&Path>, printer: &mut Printer<'_>) -> Done {
    let loaded = load_config(config, Keys::Ignored)?;
    let jobs = block_on(async { Client::new(&loaded.config)?.list().await })?;
    if args.json {
        printer.json(&jobs)?;
    } else if jobs.is_empty() {
        printer.note(&format!("no jobs yet: drop job specs into {}", loaded.config.jobs_dir().display()));
    } else {
        printer.table(HEADER, jobs.iter().map(row))?;
    }
    Ok(Exit::Done)
}

const HEADER: [&str; 7] = ["NAME", "STATUS", "COMPLETED", "FAILED", "TOTAL", "KIND", "ACCEPTED"];

fn row(job: &JobReport) -> [String; 7] {
    [
        job.name.clone(),
        status(job),
        job.counts.completed.to_string(),
        job.counts.failed.to_string(),
        job.counts.total.to_string(),
        job.kind.clone(),
        job.accepted_at.clone(),
    ]
}
