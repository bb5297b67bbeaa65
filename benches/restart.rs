//! How long a daemon that was killed takes to its first request, with a large job half done.
//!
//! # Operation
//!
//! The binary runs a job against its own `simulate` until half of it is answered, and is killed (SIGKILL). Then it is
//! started, timed until one more request has come to the server, let run a moment so that there is something to lose,
//! and killed again: a few times with its index, and a few times with the index removed, which it builds anew. At last
//! it runs to the end: every request must be answered, and no more sent twice than were in flight at the kills.
//!
//! ```sh
//! cargo bench --bench restart -- --lines 1000000
//! ```

#![expect(clippy::print_stdout, reason = "what was measured")]

mod stand_in;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use batchd::output::Summary;
use clap::Parser;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use crate::stand_in::{BATCHD, Server, body, write_job};

/// How often the server is asked how much has come.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What a start sends before it is killed again.
const MOMENT: u64 = 2000;

#[derive(Debug, Parser)]
struct Args {
    /// Requests of the job
    #[arg(long, default_value_t = 1_000_000)]
    lines: u32,

    /// Requests in flight
    #[arg(long, default_value_t = 64)]
    concurrency: u16,

    /// Starts with the index, and as many without
    #[arg(long, default_value_t = 3)]
    rounds: u8,

    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// What the server has seen.
#[derive(Debug, Deserialize)]
struct Ledger {
    requests: u64,
}

/// A root with one job, and the server that it is sent to.
struct World {
    root: tempfile::TempDir,
    server: Server,
    client: reqwest::Client,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    batchd::provider::install_crypto();
    let world = World::new(&args)?;
    let lines = u64::from(args.lines);
    let mut daemon = world.start(&["run"])?;
    world.wait_for(lines / 2).await?;
    kill(&mut daemon)?;
    println!(
        "{lines} lines, {} of them sent, {} in flight at each kill",
        world.requests().await?,
        args.concurrency
    );
    let mut kills = 1;
    for has_index in [true, false] {
        let mut times = Vec::new();
        for _ in 0..args.rounds {
            if !has_index {
                fs::remove_dir_all(world.path("state/sled"))?;
            }
            times.push(world.time_to_first_request().await?);
            kills += 1;
        }
        times.sort_unstable();
        let shown: Vec<String> = times.iter().map(|time| format!("{:.2} s", time.as_secs_f64())).collect();
        let what = if has_index { "with its index" } else { "index removed" };
        println!("start to first request, {what}: {}", shown.join(", "));
    }
    let ended = world.start(&["run", "--until-idle"])?.wait()?;
    ensure!(ended.success(), "the daemon ended with {ended}: {}", fs::read_to_string(world.path("log"))?);
    let summary: Summary = serde_json::from_slice(&fs::read(world.path("results/restart/summary.json"))?)?;
    let repeated = world.requests().await? - lines;
    ensure!(u64::from(summary.counts.completed) == lines, "not every request was answered: {summary:?}");
    ensure!(repeated <= kills * u64::from(args.concurrency), "{repeated} requests were sent twice");
    println!("every request was answered; {repeated} were sent twice, over {kills} kills");
    Ok(())
}

impl World {
    fn new(args: &Args) -> Result<Self> {
        let root = tempfile::tempdir()?;
        let server = Server::start()?;
        let concurrency = args.concurrency;
        let config = format!(
            "root = \".\"\nintake = {{ settle = \"0s\" }}\n[[providers]]\nname = \"local\"\nbase_url = \"{}\"\n\
             concurrency = {concurrency}\nlimits = {{ concurrency = {concurrency} }}\n",
            server.base_url
        );
        fs::write(root.path().join("batchd.toml"), config)?;
        fs::create_dir(root.path().join("jobs"))?;
        write_job(&root.path().join("jobs/restart.jsonl"), (0..args.lines).map(body))?;
        Ok(Self { root, server, client: reqwest::Client::builder().no_proxy().build()? })
    }

    fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.root.path().join(below)
    }

    fn start(&self, args: &[&str]) -> Result<Child> {
        let mut command = Command::new(BATCHD);
        command
            .args(args)
            .arg("--config")
            .arg(self.path("batchd.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        Ok(command.stderr(File::create(self.path("log"))?).spawn()?)
    }

    /// Starts the daemon, and kills it when it has sent a little.
    async fn time_to_first_request(&self) -> Result<Duration> {
        let before = self.requests().await?;
        let started = Instant::now();
        let mut daemon = self.start(&["run"])?;
        self.wait_for(before + 1).await?;
        let elapsed = started.elapsed();
        self.wait_for(before + MOMENT).await?;
        kill(&mut daemon)?;
        Ok(elapsed)
    }

    async fn wait_for(&self, requests: u64) -> Result<()> {
        while self.requests().await? < requests {
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    async fn requests(&self) -> Result<u64> {
        let url = format!("{}/_sim/ledger", self.server.base_url.trim_end_matches("/v1"));
        let reply = self.client.get(url).send().await?.bytes().await?;
        Ok(serde_json::from_slice::<Ledger>(&reply)?.requests)
    }
}

fn kill(daemon: &mut Child) -> Result<()> {
    daemon.kill()?;
    daemon.wait()?;
    Ok(())
}
