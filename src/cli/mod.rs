//! The command line: one file per command, and [`report`] as the only printer (P8).
//!
//! A command takes its arguments and a [`Printer`] and gives an [`Exit`] or a [`Failure`]. Data goes to stdout,
//! all else to stderr.

mod args;
mod check;
mod client;
mod completions;
mod configuration;
mod data_files;
mod demo;
mod download;
mod files;
mod list;
mod man;
mod models;
mod prepare;
mod prepare_output;
mod prepare_person;
mod prepare_spec;
mod progress;
mod rebuild;
mod remote;
mod report;
mod run;
mod schedule;
mod schema;
mod show;
mod simulate;
mod spec_file;
mod steer;
mod submit;
mod wait;
mod watch;

use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use self::args::{Args, Command};
use self::report::Printer;
use crate::config::{self, Keys, Loaded};
use crate::diag;
use crate::telemetry;

/// How long threads that are still at work may hold up the end of the process.
const LINGER: Duration = Duration::from_millis(500);

/// How the process ends. The numbers from 64 on are those of `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Done,
    /// Some requests failed, or a command could not be carried out on a job.
    SomeFailed,
    /// The command line is wrong, or names a job that there is not.
    Usage,
    Rejected,
    /// No daemon or provider can be reached.
    Unreachable,
    Internal,
    /// State or specs can't be read or written.
    StateIo,
    AlreadyRunning,
    BadConfig,
    Interrupted,
}

impl Exit {
    const ALL: [Self; 10] = [
        Self::Done,
        Self::SomeFailed,
        Self::Usage,
        Self::Rejected,
        Self::Unreachable,
        Self::Internal,
        Self::StateIo,
        Self::AlreadyRunning,
        Self::BadConfig,
        Self::Interrupted,
    ];

    const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::SomeFailed => 1,
            Self::Usage => 2,
            Self::Rejected => 65,
            Self::Unreachable => 69,
            Self::Internal => 70,
            Self::StateIo => 74,
            Self::AlreadyRunning => 75,
            Self::BadConfig => 78,
            Self::Interrupted => 130,
        }
    }

    /// As the help and the manual have it.
    const fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::SomeFailed => "some requests failed",
            Self::Usage => "usage",
            Self::Rejected => "a spec was rejected",
            Self::Unreachable => "daemon or provider not reachable",
            Self::Internal => "internal",
            Self::StateIo => "state I/O",
            Self::AlreadyRunning => "another daemon holds the root",
            Self::BadConfig => "bad config",
            Self::Interrupted => "interrupted",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a command ends early.
#[derive(Debug)]
enum Failure {
    /// Something is wrong with a file that a person wrote.
    Findings(Exit, diag::Report),
    /// `message` as users read it: a lower-case phrase, values in backticks, no full stop.
    Message { exit: Exit, message: String, hint: Option<String> },
    /// stdout can't be written.
    Output(io::Error),
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self::Message { exit, message: message.into(), hint: None }
    }

    fn hint(self, text: impl Into<String>) -> Self {
        match self {
            Self::Message { exit, message, .. } => Self::Message { exit, message, hint: Some(text.into()) },
            Self::Findings(..) | Self::Output(_) => self,
        }
    }
}

/// What a command ends with.
type Done = Result<Exit, Failure>;

/// Runs the command that `args` (the program's name first) ask for.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    // Whoever came first has installed the same one.
    rustls::crypto::ring::default_provider().install_default().unwrap_or_default();
    run_with(args, &mut Printer::stdio()).into()
}

fn run_with(args: impl IntoIterator<Item = OsString>, printer: &mut Printer<'_>) -> Exit {
    let done = match Args::try_parse_from(args) {
        Ok(args) => dispatch(args, printer),
        Err(error) => printer.usage(&error),
    };
    done.unwrap_or_else(|failure| printer.failure(failure))
}

fn dispatch(args: Args, printer: &mut Printer<'_>) -> Done {
    let config = args.config.as_deref();
    match args.command {
        Command::Run(args) => run::run(&args, config),
        Command::Check(args) => check::run(&args, config, printer),
        Command::Submit(args) => submit::run(&args, config, printer),
        Command::List(args) => list::run(args, config, printer),
        Command::Show(args) => show::run(&args, config, printer),
        Command::Watch(args) => watch::run(&args, config, printer),
        Command::Cancel(args) => steer::run(steer::Verb::Cancel, &args, config, printer),
        Command::Pause(args) => steer::run(steer::Verb::Pause, &args, config, printer),
        Command::Resume(args) => steer::run(steer::Verb::Resume, &args, config, printer),
        Command::Retry(args) => steer::run(steer::Verb::Retry, &args, config, printer),
        Command::Schedule(command) => schedule::run(&command, config, printer),
        Command::Rebuild(args) => rebuild::run(args, config, printer),
        Command::Prepare(args) => prepare::run(&args, config, printer),
        Command::Models(args) => models::run(args, config, printer),
        Command::Files(command) => files::run(command, config, printer),
        Command::Simulate(args) => simulate::run(*args, printer),
        Command::Demo(args) => demo::run(args, printer),
        Command::Config(args) => configuration::run(args, config, printer),
        Command::Schema => schema::run(printer),
        Command::Completions(args) => completions::run(args, printer),
        Command::Man(args) => man::run(&args, printer),
    }
}

fn load_config(path: Option<&Path>, keys: Keys) -> Result<Loaded, Failure> {
    config::load(path, keys).map_err(|report| Failure::Findings(Exit::BadConfig, report))
}

fn start_logging(log: &config::Log, sink: telemetry::Sink) -> Result<(), Failure> {
    telemetry::init(&log.level, log.format, sink)
        .map_err(|message| Failure::new(Exit::BadConfig, message))?;
    telemetry::log_panics();
    Ok(())
}

/// Runs a command that talks over sockets.
fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Internal, format!("can't start the runtime: {error}")))?;
    let result = runtime.block_on(future);
    // What still blocks a thread now (a hung disk, a name server) has nothing left to tell.
    runtime.shutdown_timeout(LINGER);
    result
}
