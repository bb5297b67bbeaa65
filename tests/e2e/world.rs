//! A root, its configuration, a stand-in provider within this process, and the binary.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use batchd::clock::Seed;
use batchd::simulate::{Change, Changes, Engine, Latency, Server, Settings, Summary};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) use crate::process::{Daemon, Output, bare_command, eventually};

/// What the daemon sends to the server. It must appear in no file and no log.
pub(crate) const KEY: &str = "sk-canary-5f1d0a77c2";
/// Requests in flight, unless a test says otherwise.
pub(crate) const CONCURRENCY: u32 = 4;

/// How a world differs from the usual one.
pub(crate) struct Setup {
    pub(crate) server: Settings,
    /// 0: `limits` say it.
    pub(crate) concurrency: u32,
    /// More lines of `[providers.limits]`.
    pub(crate) limits: String,
    pub(crate) max_attempts: u32,
    /// Of the wait between attempts; the longest is ten times that.
    pub(crate) base_delay: Duration,
    pub(crate) settle: &'static str,
    pub(crate) rescan: &'static str,
    pub(crate) grace: &'static str,
    pub(crate) log_level: &'static str,
    /// More lines of `[intake]`.
    pub(crate) intake: &'static str,
    /// More lines of the provider `sim`.
    pub(crate) provider: String,
    /// Lines of `[storage]`. No test but those of full disks should depend on what this machine's disk has free.
    pub(crate) storage: &'static str,
    /// More tables at the end.
    pub(crate) more: String,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            server: Settings::default(),
            concurrency: CONCURRENCY,
            limits: String::new(),
            max_attempts: 6,
            base_delay: Duration::from_millis(2),
            settle: "50ms",
            rescan: "100ms",
            grace: "30s",
            log_level: "info",
            intake: "",
            provider: String::new(),
            storage: "min_free = \"0B\"",
            more: String::new(),
        }
    }
}

/// See the module's words. The binary and the server end with it.
pub(crate) struct World {
    folder: TempDir,
    server: StandIn,
    logs: AtomicU32,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(&Setup::default())
    }

    pub(crate) fn with(setup: &Setup) -> Self {
        // Below /tmp whatever $TMPDIR says: a socket's path has to be short.
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let world = Self { folder, server: StandIn::start(setup.server.clone()), logs: AtomicU32::new(0) };
        fs::create_dir_all(world.jobs_dir().join("inputs")).unwrap();
        fs::write(world.path("key"), format!("{KEY}\n")).unwrap();
        fs::write(world.config(), config_text(setup, &world.base_url())).unwrap();
        world
    }

    pub(crate) fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(below)
    }

    pub(crate) fn jobs_dir(&self) -> PathBuf {
        self.path("root/jobs")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path("batchd.toml")
    }

    pub(crate) fn base_url(&self) -> String {
        format!("http://{}/v1", self.server.address)
    }

    /// What stands behind the server.
    pub(crate) fn engine(&self) -> &Engine {
        &self.server.engine
    }

    pub(crate) fn ledger(&self) -> Summary {
        self.engine().summary()
    }

    pub(crate) fn change(&self, changes: Changes) {
        self.engine().change(changes, Instant::now());
    }

    /// From now on answers take this long; those on their way keep their time.
    pub(crate) fn answer_after(&self, latency: Duration) {
        self.change(Changes { latency: Some(Latency::fixed(latency)), ..Changes::default() });
    }

    /// From now on requests meet these faults.
    pub(crate) fn fail(&self, faults: &str) {
        self.change(Changes { faults: Some(faults.parse().unwrap()), ..Changes::default() });
    }

    /// From now on the server lets in this key alone.
    pub(crate) fn let_in(&self, key: &str) {
        self.change(Changes { key: Change::Set(key.to_owned().into()), ..Changes::default() });
    }

    /// How often this body came to the server.
    pub(crate) fn sent(&self, body: &str) -> u64 {
        self.engine().payments(blake3::hash(body.as_bytes())).requests
    }

    /// Drops a file into the watched folder, whole at once and synced, as a well-behaved user does.
    pub(crate) fn drop(&self, name: &str, content: impl AsRef<[u8]>) {
        let hidden = self.path("root/drop.tmp");
        write_synced(&hidden, content.as_ref());
        fs::rename(hidden, self.jobs_dir().join(name)).unwrap();
        sync(&self.jobs_dir());
    }

    /// Puts a file where specs may name it.
    pub(crate) fn input(&self, name: &str, content: impl AsRef<[u8]>) {
        let inputs = self.jobs_dir().join("inputs");
        write_synced(&inputs.join(name), content.as_ref());
        sync(&inputs);
    }

    /// The binary with the world's configuration and nothing of this process's environment.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = bare_command();
        command.arg("--config").arg(self.config()).args(args).current_dir(self.folder.path());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn batchd(&self, args: &[&str]) -> Output {
        self.run(self.command(args))
    }

    /// A command that must print JSON and exit with 0.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        let output = self.batchd(&args);
        assert_eq!(output.code, Some(0), "{args:?}: {output:?}");
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {output:?}"))
    }

    pub(crate) fn run(&self, command: Command) -> Output {
        self.spawn(command).wait()
    }

    pub(crate) fn run_until_idle(&self) -> Output {
        self.batchd(&["run", "--until-idle"])
    }

    /// Runs until idle; every request must have been answered.
    pub(crate) fn run_to_success(&self) {
        let output = self.run_until_idle();
        assert_eq!((output.code, output.stdout.as_str()), (Some(0), ""), "{output:?}");
    }

    /// Starts the daemon and waits until it runs: its socket is bound then.
    pub(crate) fn start(&self) -> Daemon {
        let mut daemon = self.spawn(self.command(&["run"]));
        daemon.wait_for_log("batchd is running");
        daemon
    }

    /// Starts a process; what it prints goes to files of this world.
    pub(crate) fn spawn(&self, command: Command) -> Daemon {
        let number = self.logs.fetch_add(1, Ordering::Relaxed);
        Daemon::spawn(command, ["out", "err"].map(|kind| self.path(format!("{kind}-{number}"))))
    }

    /// The folder of a job's results.
    pub(crate) fn results(&self, job: &str) -> Results {
        Results { dir: self.path("root/results").join(job) }
    }

    /// The job as the running daemon lists it.
    pub(crate) fn listed(&self, job: &str) -> Option<Value> {
        self.list().into_iter().find(|listed| listed["name"] == job)
    }

    /// All jobs as the running daemon lists them. Asked over its socket: a process for every look would take the
    /// machine's time from the one that is looked at.
    pub(crate) fn list(&self) -> Vec<Value> {
        let mut socket = UnixStream::connect(self.path("root/batchd.sock")).unwrap();
        socket.write_all(b"GET /jobs HTTP/1.0\r\nHost: batchd\r\n\r\n").unwrap();
        let mut reply = String::new();
        socket.read_to_string(&mut reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(" 200 "), "{reply}");
        serde_json::from_str(body).unwrap()
    }

    /// Waits until the running daemon lists a job with this status.
    pub(crate) fn wait_for_status(&self, job: &str, status: &str) -> Value {
        eventually(&format!("`{job}` is {status}"), || {
            self.listed(job).filter(|listed| listed["status"] == status)
        })
    }

    /// Waits until so many requests have come to the server.
    pub(crate) fn wait_for_requests(&self, count: u64) {
        eventually(&format!("{count} requests"), || (self.ledger().requests >= count).then_some(()));
    }

    /// The report on a rejected spec, once it is there.
    pub(crate) fn report(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.jobs_dir().join("rejected").join(format!("{name}.errors.txt"))).ok()
    }

    /// Every file below `folder` that holds `needle`.
    pub(crate) fn files_with(&self, folder: &str, needle: &str) -> Vec<String> {
        let mut found = Vec::new();
        for file in files_below(&self.path(folder)) {
            let bytes = fs::read(&file).unwrap();
            if memchr::memmem::find(&bytes, needle.as_bytes()).is_some() {
                found.push(file.strip_prefix(self.folder.path()).unwrap().display().to_string());
            }
        }
        found
    }
}

fn write_synced(path: &Path, content: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(content).unwrap();
    file.sync_all().unwrap();
}

/// Makes durable which names a folder has.
pub(crate) fn sync(folder: &Path) {
    File::open(folder).unwrap().sync_all().unwrap();
}

fn config_text(setup: &Setup, base_url: &str) -> String {
    let Setup {
        concurrency,
        limits,
        max_attempts,
        settle,
        rescan,
        grace,
        log_level,
        intake,
        provider,
        storage,
        more,
        ..
    } = setup;
    let concurrency = match concurrency {
        0 => String::new(),
        slots => format!("concurrency = {slots}"),
    };
    let [base_delay, max_delay] =
        [1, 10].map(|times| humantime::format_duration(setup.base_delay * times).to_string());
    format!(
        r#"root = "root"

[intake]
rescan = "{rescan}"
settle = "{settle}"
{intake}

[[providers]]
name = "sim"
base_url = "{base_url}"
api_key_file = "key"
{provider}
[providers.limits]
{concurrency}
{limits}

[retry]
max_attempts = {max_attempts}
base_delay = "{base_delay}"
max_delay = "{max_delay}"

[shutdown]
grace = "{grace}"

[storage]
{storage}

[log]
level = "{log_level}"
format = "json"
{more}
"#
    )
}

/// What a job left in its folder.
pub(crate) struct Results {
    pub(crate) dir: PathBuf,
}

impl Results {
    pub(crate) fn text(&self, name: &str) -> String {
        let path = self.dir.join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.dir.join(name).exists()
    }

    /// The records of `output.jsonl`.
    pub(crate) fn output(&self) -> Vec<Value> {
        records(&self.text("output.jsonl"))
    }

    /// The records of `errors.jsonl`; none without the file.
    pub(crate) fn errors(&self) -> Vec<Value> {
        if self.has("errors.jsonl") { records(&self.text("errors.jsonl")) } else { Vec::new() }
    }

    pub(crate) fn summary(&self) -> Value {
        serde_json::from_str(&self.text("summary.json")).unwrap()
    }

    /// `status`, `total`, `completed`, `failed`.
    pub(crate) fn outcome(&self) -> (String, u64, u64, u64) {
        let summary = self.summary();
        let count = |name: &str| summary["counts"][name].as_u64().unwrap();
        (summary["status"].as_str().unwrap().to_owned(), count("total"), count("completed"), count("failed"))
    }

    /// Names in the folder, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        names(&self.dir)
    }

    /// Every `custom_id` of both files, sorted: each must stand there once.
    pub(crate) fn custom_ids(&self) -> Vec<String> {
        let output = if self.has("output.jsonl") { self.output() } else { Vec::new() };
        let mut ids = custom_ids(&output);
        ids.extend(custom_ids(&self.errors()));
        ids.sort();
        ids
    }
}

pub(crate) fn custom_ids(records: &[Value]) -> Vec<String> {
    records.iter().map(|record| record["custom_id"].as_str().unwrap().to_owned()).collect()
}

fn records(text: &str) -> Vec<Value> {
    assert!(text.is_empty() || text.ends_with('\n'), "the last line has no end: {text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Names in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Regular files at any depth.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files.extend(files_below(&entry.path()));
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    files
}

/// The stand-in server on a thread of its own.
struct StandIn {
    engine: Arc<Engine>,
    address: SocketAddr,
    /// Ends the server when it is dropped.
    _runtime: Runtime,
}

impl StandIn {
    fn start(settings: Settings) -> Self {
        let settings = Settings { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), ..settings };
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let entered = runtime.enter();
        let server = Server::bind(settings, Seed::fixed(7)).unwrap();
        drop(entered);
        let (engine, address) = (server.engine(), server.address());
        drop(runtime.spawn(server.run(CancellationToken::new())));
        Self { engine, address, _runtime: runtime }
    }
}

/// A line of OpenAI's batch format that asks a chat model.
pub(crate) fn chat_line(custom_id: &str, text: &str) -> String {
    format!(
        r#"{{"custom_id":"{custom_id}","method":"POST","url":"/v1/chat/completions","body":{}}}"#,
        chat_body(text)
    )
}

/// The body of such a line.
pub(crate) fn chat_body(text: &str) -> String {
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}"#)
}

/// A file of `count` such lines: `r-0`, `r-1`, …
pub(crate) fn chat_lines(count: usize) -> String {
    (0..count).map(|number| chat_line(&format!("r-{number}"), &format!("question {number}")) + "\n").collect()
}

/// `r-0`, `r-1`, … as they stand in a sorted list.
pub(crate) fn sorted_ids(count: usize) -> Vec<String> {
    let mut ids: Vec<String> = (0..count).map(|number| format!("r-{number}")).collect();
    ids.sort();
    ids
}
