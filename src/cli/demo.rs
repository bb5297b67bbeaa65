//! `batchd demo`: an example of every kind of job, run by a real daemon against a stand-in server in this process.
//! Needs no key and no network.
//!
//! Everything lies in one fresh folder: the specs, the configuration, the results and the daemon's log. Faults
//! are built in, so that retries are to be seen.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::args::DemoArgs;
use super::client::Client;
use super::progress::Progress;
use super::report::Printer;
use super::run::exit_of;
use super::{Done, Exit, Failure, block_on, start_logging};
use crate::clock::{Clock, Seed};
use crate::config::{self, Keys, Loaded};
use crate::daemon::{self, RunOptions};
use crate::intake::{INPUTS, REJECTED, REPORT};
use crate::simulate::{Server, Settings};
use crate::telemetry;

/// The job specs of the repository's `jobs/`, and the data that they name.
macro_rules! samples {
    ($($name:literal),+ $(,)?) => {
        [$(($name, include_str!(concat!("../../jobs/", $name)))),+]
    };
}

const SAMPLES: [(&str, &str); 18] = samples![
    "bare.chat.jsonl",
    "batch.jsonl",
    "chat.toml",
    "completions.toml",
    "embeddings.toml",
    "fine-tune.toml",
    "images.toml",
    "moderations.toml",
    "requests.toml",
    "responses.toml",
    "tuned-replies.toml",
    "inputs/articles.csv",
    "inputs/comments.txt",
    "inputs/mixed.jsonl",
    "inputs/openings.txt",
    "inputs/products.jsonl",
    "inputs/reviews.csv",
    "inputs/support.jsonl",
];

/// Slow enough that a person sees something, quick enough that a fine-tune of a dozen exchanges and the job that waits
/// for it end within a few seconds.
const LATENCY: &str = "100ms..700ms";

/// About every fourth attempt fails; with twelve for each request none of these ends a job.
const FAULTS: &str = "429=0.08,500=0.08,503=0.05,cut=0.04";

/// A fine-tune is done so long after it was created, and another job waits for it.
const FINE_TUNE_TIME: Duration = Duration::from_millis(800);

/// So long an upload is worked on before it can be used.
const FILE_PROCESSING_TIME: Duration = Duration::from_millis(200);

/// Every demo meets the same faults.
const SEED: u64 = 20;

/// How often the bars move.
const POLL: Duration = Duration::from_millis(100);

/// A path that a Unix socket can have; see `config`.
const SOCKET_BYTES_MAX: usize = 107;

/// What a job's `summary.json` says of it.
#[derive(Debug, Deserialize, Serialize)]
struct Summary {
    #[serde(default)]
    name: String,
    kind: String,
    status: String,
    counts: Tally,
    /// Where the results are.
    #[serde(default)]
    results: PathBuf,
}

#[derive(Debug, Deserialize, Serialize)]
struct Tally {
    total: u64,
    completed: u64,
    failed: u64,
}

pub(super) fn run(args: DemoArgs, printer: &mut Printer<'_>) -> Done {
    let cant_write =
        |error: io::Error| Failure::new(Exit::StateIo, format!("can't write the demo's folder: {error}"));
    let folder = fresh_folder().map_err(cant_write)?;
    write_samples(&folder).map_err(cant_write)?;
    printer.note(&format!("demo in {}", folder.display()));
    let ended = block_on(rehearse(&folder, printer))?;
    let summaries = summaries(&folder).map_err(cant_write)?;
    if args.json {
        printer.json(&summaries)?;
    } else if !summaries.is_empty() {
        print(&summaries, printer)?;
    }
    let rejected = print_rejections(&folder, printer);
    exit_of(ended).map(|exit| if rejected { Exit::Rejected } else { exit })
}

/// Server and daemon side by side, until the daemon has nothing left to do.
async fn rehearse(
    folder: &Path,
    printer: &mut Printer<'_>,
) -> Result<Result<daemon::Ending, daemon::Error>, Failure> {
    let settings = Settings {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        latency: LATENCY.parse().expect("our own latency is one"),
        faults: FAULTS.parse().expect("our own faults are some"),
        file_processing_time: FILE_PROCESSING_TIME,
        fine_tune_time: FINE_TUNE_TIME,
        ..Settings::default()
    };
    let cant_serve =
        |error: io::Error| Failure::new(Exit::Unreachable, format!("can't simulate a server: {error}"));
    let server = Server::bind(settings, Seed::fixed(SEED)).map_err(cant_serve)?;
    let engine = server.engine();
    let (loaded, _socket_folder) = configure(folder, server.address())?;
    let client = Client::new(&loaded.config)?;
    let mut progress = Progress::new(printer);
    let options = RunOptions { until_idle: true, ..RunOptions::default() };
    let ended = tokio::select! {
        biased; // The end first: what is shown after it comes from the results.
        ended = Box::pin(daemon::run(loaded, options)) => ended,
        served = server.run(CancellationToken::new()) => return Err(cant_serve(gone(served))),
        never = show_progress(&client, &mut progress, printer) => match never {},
    };
    progress.finish();
    let seen = engine.summary();
    printer.note(&format!(
        "the stand-in server saw {} requests; {} were paid for, {} of them again after a broken reply",
        seen.requests, seen.paid, seen.paid_again
    ));
    Ok(ended)
}

fn gone(served: io::Result<()>) -> io::Error {
    served.err().unwrap_or_else(|| io::Error::other("it ended too early"))
}

async fn show_progress(
    client: &Client,
    progress: &mut Progress,
    printer: &mut Printer<'_>,
) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(POLL).await;
        // While the daemon starts and ends nobody answers.
        if let Ok(jobs) = client.list().await {
            progress.update(&jobs, printer);
        }
    }
}

/// Writes the configuration, reads it back, and starts the log. The folder, if any, holds the socket.
fn configure(folder: &Path, address: SocketAddr) -> Result<(Loaded, Option<TempDir>), Failure> {
    let cant_write =
        |error: io::Error| Failure::new(Exit::StateIo, format!("can't write the demo's folder: {error}"));
    let socket = std::path::absolute(folder).map_err(cant_write)?.join("batchd.sock");
    let is_too_deep = socket.as_os_str().len() > SOCKET_BYTES_MAX;
    let socket_folder = is_too_deep.then(tempfile::tempdir).transpose().map_err(cant_write)?;
    let socket = socket_folder.as_ref().map_or(socket, |folder| folder.path().join("batchd.sock"));
    let socket = toml::Value::String(socket.to_string_lossy().into_owned());
    let text = format!(
        "# The configuration of this demo. Its stand-in server ended with it.\n\
         root = \".\"\n\n\
         [intake]\nrescan = \"100ms\"\nsettle = \"100ms\"\n\n\
         [[providers]]\nname = \"simulated\"\nbase_url = \"http://{address}/v1\"\n\n\
         [retry]\nmax_attempts = 12\nbase_delay = \"200ms\"\nmax_delay = \"2s\"\n\n\
         [control]\nsocket = {socket}\n"
    );
    let path = folder.join("batchd.toml");
    fs::write(&path, text).map_err(cant_write)?;
    let loaded = config::load(Some(&path), Keys::Required)
        .map_err(|report| Failure::Findings(Exit::BadConfig, report))?;
    let log = fs::File::create(folder.join("batchd.log")).map_err(cant_write)?;
    let settings = config::Log { format: config::LogFormat::Text, ..loaded.config.log.clone() };
    start_logging(&settings, telemetry::Sink::File(log.into()))?;
    Ok((loaded, socket_folder))
}

/// `results/demo-<time>` below the current folder, or below the system's folder for temporary files where that
/// can't be made.
fn fresh_folder() -> io::Result<PathBuf> {
    let now = Clock::System.now().to_string();
    let stamp: String = now.chars().filter(|c| c.is_ascii_digit() || *c == 'T').take(15).collect();
    fresh_folder_below(Path::new("results"), &stamp)
        .or_else(|_| fresh_folder_below(&std::env::temp_dir().join("results"), &stamp))
}

fn fresh_folder_below(results: &Path, stamp: &str) -> io::Result<PathBuf> {
    fs::create_dir_all(results)?;
    let mut number = 1;
    loop {
        let name = if number == 1 { format!("demo-{stamp}") } else { format!("demo-{stamp}-{number}") };
        match fs::create_dir(results.join(&name)) {
            Ok(()) => return Ok(results.join(name)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 1000 => number += 1,
            Err(error) => return Err(error),
        }
    }
}

fn write_samples(folder: &Path) -> io::Result<()> {
    let jobs = folder.join("jobs");
    fs::create_dir_all(jobs.join(INPUTS))?;
    SAMPLES.iter().try_for_each(|(name, text)| fs::write(jobs.join(name), text))
}

/// What every job that is done says of itself, by name.
fn summaries(folder: &Path) -> io::Result<Vec<Summary>> {
    let mut summaries = Vec::new();
    let results = match fs::read_dir(folder.join("results")) {
        Ok(results) => results,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(summaries),
        Err(error) => return Err(error),
    };
    for entry in results {
        let results = entry?.path();
        let text = match fs::read(results.join("summary.json")) {
            Ok(text) => text,
            // A job that is not done, and that the daemon has named.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut summary: Summary = serde_json::from_slice(&text)?;
        summary.name = results.file_name().unwrap_or_default().to_string_lossy().into_owned();
        summary.results = results;
        summaries.push(summary);
    }
    summaries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(summaries)
}

fn print(summaries: &[Summary], printer: &mut Printer<'_>) -> Result<(), Failure> {
    let row = |job: &Summary| {
        let [completed, failed] = [job.counts.completed, job.counts.failed].map(|count| count.to_string());
        let results = job.results.display().to_string();
        [job.name.clone(), job.kind.clone(), job.status.clone(), completed, failed, results]
    };
    let header = ["JOB", "KIND", "STATUS", "COMPLETED", "FAILED", "RESULTS"];
    printer.table(header, summaries.iter().map(row))
}

/// Whether there are any: then an example is wrong.
fn print_rejections(folder: &Path, printer: &mut Printer<'_>) -> bool {
    let mut rejected = false;
    for (name, _) in SAMPLES {
        if let Ok(text) =
            fs::read_to_string(folder.join("jobs").join(REJECTED).join(format!("{name}{REPORT}")))
        {
            printer.rejection(&text);
            rejected = true;
        }
    }
    rejected
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::report::tests::printed;

    /// Everything in a folder and below, as paths relative to it.
    fn files(folder: &Path) -> Vec<String> {
        let mut files = Vec::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        files.sort();
        files
    }

    #[test]
    fn demo_has_every_example_of_the_repository() {
        let mut names: Vec<&str> = SAMPLES.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        assert_eq!(files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs")), names);

        let dir = tempfile::tempdir().unwrap();
        write_samples(dir.path()).unwrap();
        assert_eq!(files(&dir.path().join("jobs")), names);
    }

    #[test]
    fn folders_are_fresh_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let results = dir.path().join("results");
        let first = fresh_folder_below(&results, "20261122T020000").unwrap();
        let second = fresh_folder_below(&results, "20261122T020000").unwrap();
        assert_eq!(first, results.join("demo-20261122T020000"));
        assert_eq!(second, results.join("demo-20261122T020000-2"));
    }

    #[test]
    fn demo_can_be_configured_in_a_folder_too_deep_for_a_socket() {
        let dir = tempfile::tempdir().unwrap();
        for folder in [dir.path().join("a \"quoted\" one"), dir.path().join("deep/".repeat(30))] {
            fs::create_dir_all(&folder).unwrap();
            let (loaded, socket_folder) = configure(&folder, SocketAddr::from(([127, 0, 0, 1], 5))).unwrap();
            let deep = folder.ends_with("deep");
            assert_eq!(socket_folder.is_some(), deep);
            assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
            assert_eq!(loaded.config.root, folder);
            assert_eq!(loaded.config.control.socket.starts_with(&folder), !deep);
            assert_eq!(loaded.config.providers[0].base_url.as_str(), "http://127.0.0.1:5/v1");
        }
    }

    #[test]
    fn table_shows_what_summaries_say() {
        let dir = tempfile::tempdir().unwrap();
        for (name, failed) in [("b", 1), ("a", 0)] {
            let folder = dir.path().join("results").join(name);
            fs::create_dir_all(&folder).unwrap();
            let summary = format!(
                "{{\"status\":\"completed\",\"kind\":\"chat\",\
                 \"counts\":{{\"total\":3,\"completed\":2,\"failed\":{failed}}},\"cost_usd\":null}}"
            );
            fs::write(folder.join("summary.json"), summary).unwrap();
        }
        fs::create_dir_all(dir.path().join("results/unfinished")).unwrap();
        let printed = printed(|printer| {
            print(&summaries(dir.path()).unwrap(), printer).unwrap();
            Exit::Done
        });
        let out = printed.out.replace(&*dir.path().to_string_lossy(), "DIR");
        insta::assert_snapshot!(out, @r#"
        JOB  KIND  STATUS     COMPLETED  FAILED  RESULTS
        a    chat  completed  2          0       DIR/results/a
        b    chat  completed  2          1       DIR/results/b
        "#);
    }
}
