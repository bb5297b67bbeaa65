//! How fast the daemon sends, beside a bare reqwest loop over the same requests to the same server.
//!
//! # Operation
//!
//! The binary's own `simulate` answers at once, as a process of its own. Then, in rotation so that a busy moment
//! of the machine hits both: a loop that only posts bodies and reads replies, with the settings of batchd's
//! own client, and `batchd run --until-idle` over the same requests as a JSONL file. Every line of
//! `output.jsonl` is checked: that it stands in its place, and holds the answer to its own request.
//!
//! Fails if an answer is wrong or missing, or if the daemon's memory ever exceeds [`MEMORY_MAX_KIB`].
//!
//! ```sh
//! cargo bench --bench throughput -- --lines 1000000 --concurrency 256 --rounds 3
//! ```

#![expect(clippy::print_stdout, reason = "what was measured")]

mod stand_in;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use batchd::output::Summary;
use bytes::Bytes;
use clap::Parser;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::stand_in::{BATCHD, Server, body, custom_id, prompt, write_job};

/// What the daemon may take, however long its jobs are.
const MEMORY_MAX_KIB: u32 = 64 << 10;

/// The kernel counts CPU time for user space in hundredths of a second.
const TICK: Duration = Duration::from_millis(10);

/// How often a running daemon is looked at.
const SAMPLE_EVERY: Duration = Duration::from_millis(10);

/// Name of the job, and so of its file and its results.
const JOB: &str = "throughput";

#[derive(Debug, Parser)]
struct Args {
    /// Requests of a round
    #[arg(long, default_value_t = 100_000)]
    lines: u32,

    /// Requests in flight
    #[arg(long, default_value_t = 64)]
    concurrency: u16,

    /// How often each contender runs
    #[arg(long, default_value_t = 5)]
    rounds: u8,

    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    batchd::provider::install_crypto();
    let server = Server::start()?;
    let bodies: Arc<[Bytes]> = (0..args.lines).map(body).collect();
    let (mut bare, mut daemon) = (Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        bare.push(run_bare(&server.base_url, &bodies, args.concurrency).await?);
        daemon.push(run_daemon(&server.base_url, &bodies, args.concurrency).await?);
    }
    let peak = daemon.iter().map(|run| run.peak_kib).max().unwrap_or_default();
    report(&args, &bare, &daemon, peak);
    ensure!(peak <= MEMORY_MAX_KIB, "the daemon took {peak} KiB of memory, more than {MEMORY_MAX_KIB}");
    Ok(())
}

/// One run of the bare loop.
struct Bare {
    elapsed: Duration,
    cpu: Duration,
}

/// Posts every body, by so many workers on one thread, which is faster than on two.
async fn run_bare(base_url: &str, bodies: &Arc<[Bytes]>, concurrency: u16) -> Result<Bare> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .pool_max_idle_per_host(concurrency.into())
        .tcp_nodelay(true)
        .build()?;
    let next = Arc::new(AtomicUsize::new(0));
    let url: reqwest::Url = format!("{base_url}/chat/completions").parse()?;
    let (started, cpu_before) = (Instant::now(), Process::read("self")?.cpu);
    let mut workers = JoinSet::new();
    for _ in 0..concurrency {
        let (client, url) = (client.clone(), url.clone());
        let (bodies, next) = (Arc::clone(bodies), Arc::clone(&next));
        workers.spawn(async move {
            while let Some(body) = bodies.get(next.fetch_add(1, Ordering::Relaxed)) {
                let request = client
                    .post(url.clone())
                    .header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                request.body(body.clone()).send().await?.error_for_status()?.bytes().await?;
            }
            reqwest::Result::Ok(())
        });
    }
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    Ok(Bare { elapsed: started.elapsed(), cpu: Process::read("self")?.cpu.saturating_sub(cpu_before) })
}

/// One run of the daemon.
struct Daemon {
    elapsed: Duration,
    /// From the start of the process to when the whole file was validated.
    intake: Duration,
    /// From then until the last record was in the journal.
    sending: Duration,
    /// From then until the summary was there.
    publishing: Duration,
    cpu: Duration,
    peak_kib: u32,
}

/// Runs the daemon in a fresh root over all requests, and checks its answers.
async fn run_daemon(base_url: &str, bodies: &[Bytes], concurrency: u16) -> Result<Daemon> {
    let root = tempfile::tempdir()?;
    let config = root.path().join("batchd.toml");
    fs::write(
        &config,
        format!(
            "root = \".\"\nintake = {{ settle = \"0s\" }}\n[[providers]]\nname = \"local\"\nbase_url = \"{base_url}\"\n\
             concurrency = {concurrency}\nlimits = {{ concurrency = {concurrency} }}\n"
        ),
    )?;
    let jobs = root.path().join("jobs");
    fs::create_dir(&jobs)?;
    write_job(&jobs.join(format!("{JOB}.jsonl")), bodies.iter().cloned())?;

    let log = root.path().join("log");
    let mut command = Command::new(BATCHD);
    command
        .args(["run", "--until-idle", "--config"])
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(File::create(&log)?);
    let started = Instant::now();
    let mut process = command.spawn()?;
    let ended = watch(process.id()).await;
    let (elapsed, status) = (started.elapsed(), process.wait()?);
    let Watched { cpu, peak_kib } = ended?;
    if !status.success() {
        bail!("the daemon ended with {status}:\n{}", fs::read_to_string(&log)?);
    }
    check(&root.path().join("results").join(JOB), bodies)?;
    let [intake, sending, publishing] = phases(root.path())?;
    Ok(Daemon { elapsed, intake, sending, publishing, cpu, peak_kib })
}

/// What a process took.
struct Watched {
    cpu: Duration,
    peak_kib: u32,
}

/// Looks at a process until it has ended; it must not be waited for before.
async fn watch(pid: u32) -> Result<Watched> {
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    let mut peak_kib = 0;
    loop {
        ticks.tick().await;
        let process = Process::read(&pid.to_string())?;
        if process.has_ended {
            return Ok(Watched { cpu: process.cpu, peak_kib });
        }
        peak_kib = peak_kib.max(process.peak_kib);
    }
}

/// What the kernel tells of a process.
struct Process {
    has_ended: bool,
    /// In user space and in the kernel, all threads.
    cpu: Duration,
    /// Largest memory that was resident; zero once it has ended.
    peak_kib: u32,
}

impl Process {
    fn read(pid: &str) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in parentheses, may hold anything.
        let (_, fields) = stat.rsplit_once(')').context("a process has a name")?;
        let mut fields = fields.split_ascii_whitespace();
        let has_ended = fields.next() == Some("Z");
        let mut ticks = fields.skip(10).map(str::parse::<u32>);
        let mut next = || -> Result<u32> { Ok(ticks.next().context("a process has its times")??) };
        let cpu = TICK * (next()? + next()?);
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB"));
        let peak_kib = peak.map_or(Ok(0), |kib| kib.trim().parse())?;
        Ok(Self { has_ended, cpu, peak_kib })
    }
}

/// How long intake, sending and publishing took, read off the times of the files they write last.
fn phases(root: &Path) -> Result<[Duration; 3]> {
    let state = root.join("state");
    let job = fs::read_dir(state.join("jobs"))?.next().context("there is one job")??.path();
    let written = |path: PathBuf| fs::metadata(path)?.modified();
    let started = written(state.join("lock"))?;
    let validated = written(job.join("lines.idx"))?;
    let answered = written(job.join("results.log"))?;
    let published = written(root.join("results").join(JOB).join("summary.json"))?;
    Ok([
        validated.duration_since(started)?,
        answered.duration_since(validated)?,
        published.duration_since(answered)?,
    ])
}

/// A line of results, as far as it is checked.
#[derive(Deserialize)]
struct Line<'a> {
    custom_id: &'a str,
    #[serde(borrow)]
    response: Response<'a>,
    error: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Response<'a> {
    status_code: u16,
    #[serde(borrow)]
    body: Answer<'a>,
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    choices: [Choice<'a>; 1],
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    message: Message<'a>,
}

#[derive(Deserialize)]
struct Message<'a> {
    content: &'a str,
}

/// Checks that every request has its own answer, in the order of the input.
fn check(results: &Path, bodies: &[Bytes]) -> Result<()> {
    let summary: Summary = serde_json::from_slice(&fs::read(results.join("summary.json"))?)?;
    let counts = summary.counts;
    ensure!(
        (usize::try_from(counts.completed)?, counts.failed) == (bodies.len(), 0),
        "{} of {} requests were answered and {} failed",
        counts.completed,
        bodies.len(),
        counts.failed
    );
    let mut output = BufReader::new(File::open(results.join("output.jsonl"))?);
    let mut text = String::new();
    for (line, body) in (0..).zip(bodies) {
        text.clear();
        output.read_line(&mut text)?;
        let found: Line<'_> = serde_json::from_str(&text).with_context(|| format!("line {line}: {text}"))?;
        let hash = blake3::hash(body).to_hex();
        let [Choice { message }] = found.response.body.choices;
        ensure!(
            found.custom_id == custom_id(line)
                && found.response.status_code == 200
                && found.error.is_none()
                && message.content == format!("[{:.8}] {}", hash.as_str(), prompt(line)),
            "line {line} is not the answer to its request: {text}"
        );
    }
    text.clear();
    ensure!(output.read_line(&mut text)? == 0, "there are more answers than requests: {text}");
    Ok(())
}

fn report(args: &Args, bare: &[Bare], daemon: &[Daemon], peak_kib: u32) {
    let lines = f64::from(args.lines);
    let rate = |elapsed: Duration| lines / elapsed.as_secs_f64();
    let cpu = |cpu: Duration| cpu.as_secs_f64() * 1e6 / lines;
    let bare_rate = median(bare.iter().map(|run| rate(run.elapsed)));
    let bare_cpu = median(bare.iter().map(|run| cpu(run.cpu)));
    let daemon_cpu = median(daemon.iter().map(|run| cpu(run.cpu)));
    let seconds = |part: fn(&Daemon) -> Duration| median(daemon.iter().map(|run| part(run).as_secs_f64()));
    println!("{} lines, {} in flight, medians of {} rounds", args.lines, args.concurrency, args.rounds);
    println!("{:<24}{:>12}{:>14}", "", "requests/s", "CPU µs each");
    println!("{:<24}{bare_rate:>12.0}{bare_cpu:>14.1}", "bare reqwest");
    println!("{:<24}{:>12.0}", "batchd, sending", median(daemon.iter().map(|run| rate(run.sending))));
    println!(
        "{:<24}{:>12.0}{daemon_cpu:>14.1}",
        "batchd, whole run",
        median(daemon.iter().map(|run| rate(run.elapsed)))
    );
    for (what, part) in
        [("sending", (|run| run.sending) as fn(&Daemon) -> Duration), ("whole run", |run| run.elapsed)]
    {
        let ratios = || {
            bare.iter().zip(daemon).map(|(bare, run)| bare.elapsed.as_secs_f64() / part(run).as_secs_f64())
        };
        let shown: Vec<String> = ratios().map(|ratio| format!("{ratio:.2}")).collect();
        println!("{what} of bare reqwest: {:.2} (rounds: {})", median(ratios()), shown.join(" "));
    }
    println!(
        "intake {:.2} s, sending {:.2} s, publishing {:.2} s, whole run {:.2} s",
        seconds(|run| run.intake),
        seconds(|run| run.sending),
        seconds(|run| run.publishing),
        seconds(|run| run.elapsed)
    );
    println!("peak memory {:.1} MiB", f64::from(peak_kib) / 1024.0);
    println!("every answer is right and in its place");
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
