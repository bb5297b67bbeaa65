//! `batchd rebuild`: the queue built anew from the job folders, while no daemon runs.

use std::path::Path;

use super::args::RebuildArgs;
use super::report::{Printer, status};
use super::run::failure_of;
use super::{Done, Exit, load_config, start_logging};
use crate::config::Keys;
use crate::control::JobReport;
use crate::daemon;
use crate::telemetry;

pub(super) fn run(args: RebuildArgs, config: Option<&Path>, printer: &mut Printer<'_>) -> Done {
    let loaded = load_config(config, Keys::Ignored)?;
    start_logging(&loaded.config.log, telemetry::Sink::Stderr)?;
    let jobs = daemon::rebuild(&loaded.config).map_err(failure_of)?;
    if args.json {
        printer.json(&jobs)?;
    } else if jobs.is_empty() {
        printer.note(&format!("no jobs below {}", loaded.config.state_dir().display()));
    } else {
        printer.table(HEADER, jobs.iter().map(row))?;
    }
    let waits = jobs.iter().any(|job| job.status == "held");
    Ok(if waits { Exit::SomeFailed } else { Exit::Done })
}

const HEADER: [&str; 6] = ["NAME", "STATUS", "COMPLETED", "FAILED", "TOTAL", "MAYBE PAID TWICE"];

fn row(job: &JobReport) -> [String; 6] {
    let counts = &job.counts;
    let numbers = [counts.completed, counts.failed, counts.total, counts.maybe_paid_twice];
    let [completed, failed, total, twice] = numbers.map(|number| number.to_string());
    [job.name.clone(), status(job), completed, failed, total, twice]
}
