//! What can be written on the command line. The words here are the help texts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Parser, Subcommand, value_parser};

use super::Exit;
use super::schedule::ScheduleCommand;
use crate::simulate::{Fate, Faults, ImageForm, Latency, Mishaps, WhenFull};

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
    /// Print what makes a shell complete batchd's commands
    Completions(CompletionsArgs),
    /// Print a page of the manual, or write all pages into a folder
    Man(ManArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// End when everything is done, or waits for a person (exit code 1)
    #[arg(long)]
    pub(super) until_idle: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// Job specs (.jsonl, .toml), or folders that hold a job.toml
    #[arg(required = true, value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,

    /// Print the data as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct SubmitArgs {
    /// Job specs (.jsonl, .toml) with the data files that they name, or folders that hold a job.toml
    #[arg(required = true, value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,

    /// Wait until the jobs are done, and say how each ended; needs a running daemon
    #[arg(long)]
    pub(super) wait: bool,

    /// Print the data as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Print the data as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct JobArgs {
    /// The job's name or id
    #[arg(value_name = "JOB")]
    pub(super) job: String,

    /// Print the data as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct WatchArgs {
    /// The job's name or id [default: every job that is at work, until you stop it]
    #[arg(value_name = "JOB")]
    pub(super) job: Option<String>,

    /// Print the data as JSON, a line for every change
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct RebuildArgs {
    /// Print the data as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Which provider is asked, and how it is printed.
#[derive(Debug, clap::Args)]
pub(super) struct RemoteArgs {
    /// The provider of that name in the configuration [default: its first]
    #[arg(long, value_name = "NAME")]
    pub(super) provider: Option<String>,

    /// Print the data as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct ModelsArgs {
    /// The one model to show [default: list all]
    #[arg(value_name = "ID")]
    pub(super) id: Option<String>,

    #[command(flatten)]
    pub(super) remote: RemoteArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum FilesCommand {
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
pub(super) struct ListFilesArgs {
    /// Only files of this purpose: batch, `batch_output`, fine-tune, fine-tune-results, …
    #[arg(long, value_name = "PURPOSE")]
    pub(super) purpose: Option<String>,

    #[command(flatten)]
    pub(super) remote: RemoteArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct ShowFileArgs {
    #[arg(value_name = "ID")]
    pub(super) id: String,

    #[command(flatten)]
    pub(super) remote: RemoteArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct UploadArgs {
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,

    /// What it is for: fine-tune, batch, assistants, vision, `user_data`, evals
    #[arg(long, value_name = "PURPOSE", default_value = "fine-tune")]
    pub(super) purpose: String,

    /// When the provider deletes it, from its creation on: `1h` to `30d` [default: the provider's]
    #[arg(long, value_name = "TIME", value_parser = expiry)]
    pub(super) expires_after: Option<Duration>,

    #[command(flatten)]
    pub(super) remote: RemoteArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct GetFileArgs {
    #[arg(value_name = "ID")]
    pub(super) id: String,

    /// Where to put it [default: stdout]
    #[arg(short, long, value_name = "OUT")]
    pub(super) out: Option<PathBuf>,

    /// Replace OUT if it exists
    #[arg(long, requires = "out")]
    pub(super) force: bool,

    /// The provider of that name in the configuration [default: its first]
    #[arg(long, value_name = "NAME")]
    pub(super) provider: Option<String>,

    /// Print as JSON what was downloaded, and where to
    #[arg(long, requires = "out")]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct DeleteFilesArgs {
    #[arg(required = true, value_name = "ID")]
    pub(super) ids: Vec<String>,

    #[command(flatten)]
    pub(super) remote: RemoteArgs,
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
pub(super) struct PrepareArgs {
    /// The data: .csv, .tsv, .txt (a completion a line), .json or .jsonl
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,

    /// The training file to write; one that is there is never overwritten [default: `FILE_prepared.jsonl`]
    #[arg(short, long, value_name = "OUT")]
    pub(super) output: Option<PathBuf>,

    /// Do all that is advised without asking
    #[arg(short, long)]
    pub(super) yes: bool,

    /// What to write: pairs, for the first generation of models, or conversations
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "pairs")]
    pub(super) to: Target,

    /// What each conversation begins with, as the system's message; with `--to chat`
    #[arg(long, value_name = "TEXT")]
    pub(super) system: Option<String>,

    /// Print the data as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// What `prepare` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Target {
    Pairs,
    Chat,
}

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(super) struct SimulateArgs {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8089")]
    pub(super) listen: SocketAddr,

    /// How long an answer takes: `20ms`, or between two times: `5ms..60ms` [default: 0s]
    #[arg(long, value_name = "TIME")]
    pub(super) latency: Option<Latency>,

    /// Requests that are worked on at a time [default: unlimited]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(super) capacity: Option<u32>,

    /// What becomes of requests above the capacity: `queue` (they wait), `503` or `429` [default: queue]
    #[arg(long, value_name = "WHAT")]
    pub(super) when_full: Option<WhenFull>,

    /// Requests admitted in a minute [default: unlimited]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(super) requests_per_minute: Option<u32>,

    /// Tokens admitted in a minute, prompt and output together [default: unlimited]
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub(super) tokens_per_minute: Option<u64>,

    /// How much of both limits may be used at one moment after a rest [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(super) burst: Option<Duration>,

    /// Faults and how likely each is, like `500=0.02,cut=0.005`; of 429, 500, 502, 503, drop, cut, garbage,
    /// empty, slow
    #[arg(long, value_name = "FAULTS")]
    pub(super) faults: Option<Faults>,

    /// What the fault `slow` adds to the latency [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(super) slow: Option<Duration>,

    /// Decides which requests meet a fault: the same seed, the same faults
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,

    /// Let in only who sends this key [default: everybody]
    #[arg(long, value_name = "KEY", conflicts_with = "any_key")]
    pub(super) key: Option<String>,

    /// Let in everybody who sends a key
    #[arg(long)]
    pub(super) any_key: bool,

    /// A model that there is; may be given more than once [default: every model is known]
    #[arg(long = "model", value_name = "MODEL")]
    pub(super) models: Vec<String>,

    /// Know only the models that are listed: those of `--model`, else a built-in list, and what fine-tunes make
    #[arg(long)]
    pub(super) strict_models: bool,

    /// How long an uploaded file is `uploaded` before it is `processed` [default: 500ms]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(super) file_processing_time: Option<Duration>,

    /// The largest file that may be uploaded, like `100MB` [default: `512MiB`]
    #[arg(long, value_name = "SIZE")]
    pub(super) file_size_max: Option<ByteSize>,

    /// How long a fine-tune takes, from its creation to its success [default: 4s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(super) fine_tune_time: Option<Duration>,

    /// What becomes of fine-tunes half-way: `fail`, `cancel` (by somebody else), `vanish` (404 from then on) or `odd`
    /// (a status that nobody knows, then success). A fine-tune whose suffix contains `sim-fail`, `sim-cancel`,
    /// `sim-vanish` or `sim-odd` decides for itself [default: they succeed]
    #[arg(long, value_name = "WHAT")]
    pub(super) fate: Option<Fate>,

    /// What the first requests of a kind meet, once each, like `upload=drop,create=cut`: a fault of `--faults` under
    /// upload, begin, part, complete, abandon (an upload), create, cancel, pause, resume (a fine-tune), delete,
    /// `delete_model`, show, list or content
    #[arg(long, value_name = "MISHAPS")]
    pub(super) mishaps: Option<Mishaps>,

    /// Answers until the quota is used up [default: never]
    #[arg(long, value_name = "N")]
    pub(super) quota_after: Option<u64>,

    /// How images are answered where a request doesn't say: `b64_json` or `url` [default: `b64_json`]
    #[arg(long, value_name = "FORM")]
    pub(super) images: Option<ImageForm>,

    /// Append what was asked and paid for to this file, a JSON line a request
    #[arg(long, value_name = "FILE")]
    pub(super) ledger: Option<PathBuf>,

    /// Keep no ledger but its totals, for measuring
    #[arg(long, conflicts_with = "ledger")]
    pub(super) no_ledger: bool,

    /// Print the data as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct DemoArgs {
    /// Print the data as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct ConfigArgs {
    /// Print a sample with every key, its default, its unit and its range instead
    #[arg(long, conflicts_with = "json")]
    pub(super) sample: bool,

    /// Print the data as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(super) shell: clap_complete::Shell,
}

#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// The command that the page is about, like `files get` [default: batchd itself]
    #[arg(value_name = "COMMAND")]
    pub(super) command: Vec<String>,

    /// Write all pages into this folder, which is made if it is missing
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    pub(super) out_dir: Option<PathBuf>,
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
