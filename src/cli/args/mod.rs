//! What can be written on the command line. The words here are the help texts.

mod simulate;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

pub(in crate::cli) use self::simulate::SimulateArgs;
use super::Exit;
use super::schedule::ScheduleCommand;

fn exit_codes() -> String {
    let codes = Exit::ALL.map(|exit| format!("{} {}", exit.code(), exit.meaning()));
    format!("Exit codes: {}.", codes.join(", "))
}

const CONFIG_HELP: &str = "The configuration file [default: $BATCHD_CONFIG, else batchd.toml here, in \
                           ~/.config/batchd or in /etc/batchd]";

/// Runs large batches of requests against OpenAI-compatible servers: drop a file, get answers, pay once.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = exit_codes()
)]
pub(in crate::cli) struct Args {
    #[arg(long, global = true, value_name = "FILE", help = CONFIG_HELP)]
    pub(in crate::cli) config: Option<PathBuf>,

    #[command(subcommand)]
    pub(in crate::cli) command: Command,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Command {
    /// Run the daemon in the foreground
    Run(RunArgs),
    /// Validate job specs and say what they would do; nothing is sent
    Check(CheckArgs),
    /// Place job specs into the watched folder; needs no daemon
    Submit(SubmitArgs),
    /// Show the jobs of the running daemon
    List(ListArgs),
    /// Show one job of the running daemon
    Show(JobArgs),
    /// Follow a job until it is done, or all that are at work
    Watch(WatchArgs),
    /// End a job: what is in flight may finish, the rest is recorded as cancelled
    Cancel(JobArgs),
    /// Send nothing more for a job until it is resumed
    Pause(JobArgs),
    /// End a job's pause, and try again now what a refused key or a used-up quota stopped
    Resume(JobArgs),
    /// Try a job's waiting requests again now, and go on with a job that is paused or held
    Retry(JobArgs),
    /// Look at the schedules of the running daemon, and run one now
    #[command(subcommand)]
    Schedule(ScheduleCommand),
    /// Rebuild the queue from the job folders, while no daemon runs
    Rebuild(RebuildArgs),
    /// Make a training file for a fine-tune of pairs of prompts and completions, or check one
    Prepare(PrepareArgs),
    /// Show the models of a provider, or one of them
    Models(ModelsArgs),
    /// Look at, upload, download and delete files at a provider
    #[command(subcommand)]
    Files(FilesCommand),
    /// Be a stand-in OpenAI-compatible server, to rehearse a job without paying
    Simulate(Box<SimulateArgs>),
    /// Run an example of every kind of job against a stand-in server: no key, no network
    Demo(DemoArgs),
    /// Print the configuration in force as TOML, or a sample with every key
    Config(ConfigArgs),
    /// Print the JSON Schema of TOML specs, for editors
    Schema,
    /// Print what makes a shell complete batchd's commands
    Completions(CompletionsArgs),
    /// Print a page of the manual, or write all pages into a folder
    Man(ManArgs),
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct RunArgs {
    /// End when everything is done, or waits for a person (exit code 1)
    #[arg(long)]
    pub(in crate::cli) until_idle: bool,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct CheckArgs {
    /// Job specs (.jsonl, .toml), or folders that hold a job.toml
    #[arg(required = true, value_name = "FILE")]
    pub(in crate::cli) files: Vec<PathBuf>,

    /// Print the data as JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct SubmitArgs {
    /// Job specs (.jsonl, .toml) with the data files that they name, or folders that hold a job.toml
    #[arg(required = true, value_name = "FILE")]
    pub(in crate::cli) files: Vec<PathBuf>,

    /// Wait until the jobs are done, and say how each ended; needs a running daemon
    #[arg(long)]
    pub(in crate::cli) wait: bool,

    /// Print the data as JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(in crate::cli) struct ListArgs {
    /// Print the data as JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct JobArgs {
    /// The job's name or id
    #[arg(value_name = "JOB")]
    pub(in crate::cli) job: String,

    /// Print the data as JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct WatchArgs {
    /// The job's name or id [default: every job that is at work, until you stop it]
    #[arg(value_name = "JOB")]
    pub(in crate::cli) job: Option<String>,

    /// Print the data as JSON, a line for every change
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(in crate::cli) struct RebuildArgs {
    /// Print the data as JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

/// Which provider is asked, and how it is printed.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct RemoteArgs {
    /// The provider of that name in the configuration [default: its first]
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) provider: Option<String>,

    /// Print the data as JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ModelsArgs {
    /// The one model to show [default: list all]
    #[arg(value_name = "ID")]
    pub(in crate::cli) id: Option<String>,

    #[command(flatten)]
    pub(in crate::cli) remote: RemoteArgs,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum FilesCommand {
    /// List the files, the newest first
    List(ListFilesArgs),
    /// Show one file
    Show(ShowFileArgs),
    /// Upload a file; in parts if it has more than 512 MB
    Upload(UploadArgs),
    /// Download the content of a file
    Get(GetFileArgs),
    /// Delete files
    Delete(DeleteFilesArgs),
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ListFilesArgs {
    /// Only files of this purpose: batch, `batch_output`, fine-tune, fine-tune-results, …
    #[arg(long, value_name = "PURPOSE")]
    pub(in crate::cli) purpose: Option<String>,

    #[command(flatten)]
    pub(in crate::cli) remote: RemoteArgs,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ShowFileArgs {
    #[arg(value_name = "ID")]
    pub(in crate::cli) id: String,

    #[command(flatten)]
    pub(in crate::cli) remote: RemoteArgs,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct UploadArgs {
    #[arg(value_name = "FILE")]
    pub(in crate::cli) file: PathBuf,

    /// What it is for: fine-tune, batch, assistants, vision, `user_data`, evals
    #[arg(long, value_name = "PURPOSE", default_value = "fine-tune")]
    pub(in crate::cli) purpose: String,

    /// When the provider deletes it, from its creation on: `1h` to `30d` [default: the provider's]
    #[arg(long, value_name = "TIME", value_parser = expiry)]
    pub(in crate::cli) expires_after: Option<Duration>,

    #[command(flatten)]
    pub(in crate::cli) remote: RemoteArgs,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct GetFileArgs {
    #[arg(value_name = "ID")]
    pub(in crate::cli) id: String,

    /// Where to put it [default: stdout]
    #[arg(short, long, value_name = "OUT")]
    pub(in crate::cli) out: Option<PathBuf>,

    /// Replace OUT if it exists
    #[arg(long, requires = "out")]
    pub(in crate::cli) force: bool,

    /// The provider of that name in the configuration [default: its first]
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) provider: Option<String>,

    /// Print as JSON what was downloaded, and where to
    #[arg(long, requires = "out")]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct DeleteFilesArgs {
    #[arg(required = true, value_name = "ID")]
    pub(in crate::cli) ids: Vec<String>,

    #[command(flatten)]
    pub(in crate::cli) remote: RemoteArgs,
}

/// What the API allows for `expires_after`.
fn expiry(text: &str) -> Result<Duration, String> {
    let expiry = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (Duration::from_hours(1)..=Duration::from_hours(30 * 24)).contains(&expiry) {
        Ok(expiry)
    } else {
        Err("providers take `1h` to `30d`".to_owned())
    }
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct PrepareArgs {
    /// The data: .csv, .tsv, .txt (a completion a line), .json or .jsonl
    #[arg(value_name = "FILE")]
    pub(in crate::cli) file: PathBuf,

    /// The training file to write; one that is there is never overwritten [default: `FILE_prepared.jsonl`]
    #[arg(short, long, value_name = "OUT")]
    pub(in crate::cli) output: Option<PathBuf>,

    /// Do all that is advised without asking
    #[arg(short, long)]
    pub(in crate::cli) yes: bool,

    /// What to write: pairs, for the first generation of models, or conversations
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "pairs")]
    pub(in crate::cli) to: Target,

    /// What each conversation begins with, as the system's message; with `--to chat`
    #[arg(long, value_name = "TEXT")]
    pub(in crate::cli) system: Option<String>,

    /// Print the data as JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

/// What `prepare` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum Target {
    Pairs,
    Chat,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(in crate::cli) struct DemoArgs {
    /// Print the data as JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(in crate::cli) struct ConfigArgs {
    /// Print a sample with every key, its default, its unit and its range instead
    #[arg(long, conflicts_with = "json")]
    pub(in crate::cli) sample: bool,

    /// Print the data as JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(in crate::cli) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(in crate::cli) shell: clap_complete::Shell,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ManArgs {
    /// The command that the page is about, like `files get` [default: batchd itself]
    #[arg(value_name = "COMMAND")]
    pub(in crate::cli) command: Vec<String>,

    /// Write all pages into this folder, which is made if it is missing
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    pub(in crate::cli) out_dir: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::report::tests::batchd;

    #[test]
    fn definitions_hold_together() {
        Args::command().debug_assert();
    }

    #[test]
    fn settings_that_exclude_each_other_or_make_no_sense_are_refused() {
        for args in [
            &["simulate", "--key", "k", "--any-key"][..],
            &["simulate", "--ledger", "l", "--no-ledger"],
            &["simulate", "--capacity", "0"],
            &["simulate", "--slow", "long"],
            &["simulate", "--fate", "win"],
            &["simulate", "--mishaps", "upload=lost"],
            &["check"],
            &["files"],
            &["files", "delete"],
            &["files", "get", "file-1", "--force"],
            &["files", "get", "file-1", "--json"],
            &["files", "upload", "f", "--expires-after", "59m"],
            &["files", "upload", "f", "--expires-after", "31d"],
            &["submit", "--wait"],
        ] {
            let printed = batchd(args);
            assert_eq!((printed.exit, printed.out.as_str()), (Exit::Usage, ""), "{args:?}");
        }
    }
}
