//! `batchd schedule`: what runs when, and a run right now.

use std::path::Path;

use clap::{Subcommand, value_parser};

use super::client::Client;
use super::report::{Printer, status};
use super::{Done, Exit, block_on, load_config};
use crate::config::Keys;
use crate::http::{ScheduleReport, UPCOMING_MAX, Upcoming};

#[derive(Debug, Subcommand)]
pub(super) enum ScheduleCommand {
    /// List the schedules: when each runs the next time, and how its last run stands
    List(ListSchedulesArgs),
    /// Show the next times over all schedules
    Next(NextArgs),
    /// Make a run of a schedule now, beside those that its times make
    Run(RunScheduleArgs),
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct ListSchedulesArgs {
    /// Print the data as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct NextArgs {
    /// How many
    #[arg(value_name = "N", default_value = "10", value_parser = value_parser!(u64).range(1..=UPCOMING_MAX as u64))]
    count: u64,

    /// Print the data as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct RunScheduleArgs {
    /// The schedule's name, or that of its file in the jobs folder
    #[arg(value_name = "NAME")]
    name: String,

    /// Print the data as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &ScheduleCommand, config: Option<&Path>, printer: &mut Printer<'_>) -> Done {
    let loaded = load_config(config, Keys::Ignored)?;
    match command {
        ScheduleCommand::List(args) => {
            let schedules = block_on(async { Client::new(&loaded.config)?.schedules().await })?;
            if args.json {
                printer.json(&schedules)?;
            } else if schedules.is_empty() {
                let jobs = loaded.config.jobs_dir();
                printer.note(&format!("no schedules: drop specs with `[schedule]` into {}", jobs.display()));
            } else {
                printer.table(HEADER, schedules.iter().map(row))?;
                for schedule in &schedules {
                    if let Some(problem) = &schedule.problem {
                        let goes_on = if schedule.name.is_some() {
                            "its last good version goes on"
                        } else {
                            "it does not run"
                        };
                        printer.note(&format!("{} is broken: {goes_on}\n  {problem}", schedule.file));
                    }
                }
            }
        }
        ScheduleCommand::Next(args) => {
            let times = block_on(async { Client::new(&loaded.config)?.upcoming(args.count).await })?;
            if args.json {
                printer.json(&times)?;
            } else if times.is_empty() {
                printer.note("no schedule has a next time");
            } else {
                printer.table(["AT", "LOCAL", "TIMEZONE", "NAME", "FILE"], times.into_iter().map(time))?;
            }
        }
        ScheduleCommand::Run(args) => {
            let job = block_on(async { Client::new(&loaded.config)?.run_schedule(&args.name).await })?;
            if args.json {
                printer.json(&job)?;
            } else {
                printer.note(&format!("{} is {}", job.name, status(&job)));
            }
        }
    }
    Ok(Exit::Done)
}

const HEADER: [&str; 7] = ["NAME", "FILE", "CRON", "TIMEZONE", "NEXT", "LAST RUN", "STATUS"];

fn row(schedule: &ScheduleReport) -> [String; 7] {
    let shown = |text: Option<&str>| text.unwrap_or("-").to_owned();
    let rule = schedule.rule.as_ref();
    let last = schedule.last.as_ref();
    [
        shown(schedule.name.as_deref()),
        schedule.file.clone(),
        shown(rule.map(|rule| rule.cron.as_str())),
        shown(rule.map(|rule| rule.timezone.as_str())),
        shown(schedule.next.as_deref()),
        shown(last.map(|job| job.name.as_str())),
        last.map_or_else(|| "-".to_owned(), status),
    ]
}

fn time(upcoming: Upcoming) -> [String; 5] {
    let Upcoming { at, local, timezone, name, file } = upcoming;
    [at, local, timezone, name, file]
}
