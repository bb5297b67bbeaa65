//! What can be written on the command line. The words here are the help texts.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

const CONFIG_HELP: &str = "The configuration file [default: $BATCHD_CONFIG, else batchd.toml here, in \
                           ~/.config/batchd or in /etc/batchd]";

/// Runs large batches of requests against OpenAI-compatible servers: drop a file, get answers, pay once.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 some requests failed, 2 usage, 65 a spec was rejected, 69 daemon not \
                  reachable, 70 internal, 74 state I/O, 75 another daemon holds the root, 78 bad config, 130 \
                  interrupted."
)]
pub(super) struct Args {
    #[arg(long, global = true, value_name = "FILE", help = CONFIG_HELP)]
    pub(super) config: Option<PathBuf>,

    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the daemon in the foreground
    Run(RunArgs),
    /// Validate job specs and say what they would do; nothing is sent
    Check(CheckArgs),
    /// Place job specs into the watched folder
    Submit(SubmitArgs),
    /// Show the jobs of the running daemon
    List(ListArgs),
    /// Show one job of the running daemon
    Show(JobArgs),
    /// End a job: what is in flight may finish, the rest is recorded as cancelled
    Cancel(JobArgs),
    /// Send nothing more for a job until it is resumed
    Pause(JobArgs),
    /// End a job's pause
    Resume(JobArgs),
    /// Try a job's waiting requests again at once, and go on with a job that is held
    Retry(JobArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// End when nothing can progress without a person
    #[arg(long)]
    pub(super) until_idle: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// Job specs (.jsonl, .toml), or folders that hold a job.toml
    #[arg(required = true, value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,

    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct SubmitArgs {
    /// Job specs (.jsonl, .toml); the data files that a .toml names go with it
    #[arg(required = true, value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,

    /// Wait until the jobs are done
    #[arg(long)]
    pub(super) wait: bool,

    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct JobArgs {
    /// The job's name or id
    #[arg(value_name = "JOB")]
    pub(super) job: String,

    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}
