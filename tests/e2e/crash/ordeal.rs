//! A world whose daemon dies again and again, and the evidence of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use batchd::clock::Seed;
use batchd::domain::{Endpoint, OnUncertain};
use batchd::simulate::laws::{
    DroppedFile, Evidence, FileEnd, JobEvidence, Leak, Rebuilt, Report, Results, SeenFile, Stop, StopKind,
    check,
};
use batchd::simulate::{Entry, Latency, LedgerSettings, Settings};
use fastrand::Rng;
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::Instant;

use super::fine_tunes::Tune;
use crate::mounted::{Cutter, Mounted};
use crate::process::{Daemon, Output, bare_command};
use crate::world::{KEY, Setup, World, chat_line, names, sync};

/// Stands in every prompt.
pub(super) const PROMPT: &str = "canary-in-the-prompt";
/// The time of a fine-tune at the provider: short, as many rounds wait for one.
pub(super) const TUNE: Duration = Duration::from_millis(100);
/// A machine that does ten things at once needs its time between the server's last byte and the journal.
const KEPT_WITHIN: Duration = Duration::from_secs(3);

/// Answers that a power cut may take along beside what was in flight: what comes while the disk syncs once.
const UNSYNCED_MAX: u64 = 64;

/// Tens of thousands of requests may be left, and the program is not optimised.
const END_WITHIN: Duration = Duration::from_mins(15);

/// How one ordeal differs from the usual.
pub(super) struct Trial {
    pub(super) seed: u64,
    /// Over all queues.
    pub(super) concurrency: u32,
    pub(super) latency: Latency,
    pub(super) faults: &'static str,
}

impl Trial {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            concurrency: 8,
            latency: Latency::between(Duration::from_millis(5), Duration::from_millis(60)),
            faults: "500=0.02,502=0.01,429=0.01,drop=0.01,cut=0.01,garbage=0.01,empty=0.01",
        }
    }
}

/// See the module's words.
pub(super) struct Ordeal {
    /// Unmounted before the world goes.
    disk: Option<Mounted>,
    pub(super) world: World,
    pub(super) rng: Rng,
    concurrency: u32,
    /// What was dropped: the name of its file and of its job.
    dropped: Vec<(String, String)>,
    /// Jobs whose uncertain requests are not sent again.
    policies: BTreeMap<String, OnUncertain>,
    pub(super) tunes: Vec<Tune>,
    /// Jobs that use the model of a fine-tune, and its job.
    pub(super) users: BTreeMap<String, String>,
    stops: Vec<Stop>,
    published: BTreeMap<PathBuf, blake3::Hash>,
    /// What was asked in jobs that are published: their state may be removed.
    asked: BTreeMap<String, String>,
    rebuilt: Vec<Rebuilt>,
    /// The last that the daemon said of each job.
    promised: BTreeMap<String, Value>,
}

impl Ordeal {
    pub(super) fn new(trial: &Trial) -> Self {
        let server = Settings {
            latency: trial.latency,
            faults: trial.faults.parse().unwrap(),
            fine_tune_time: TUNE,
            file_processing_time: Duration::from_millis(50),
            ledger: LedgerSettings { entries_max: 10_000_000, ..LedgerSettings::default() },
            ..Settings::default()
        };
        let world = World::with(&Setup {
            server,
            concurrency: trial.concurrency,
            max_attempts: 50,
            settle: "20ms",
            // Bounds all queues together.
            provider: format!("concurrency = {}", trial.concurrency),
            ..Setup::default()
        });
        Self {
            disk: None,
            world,
            rng: Seed::fixed(trial.seed).derive("crash"),
            concurrency: trial.concurrency,
            dropped: Vec::new(),
            policies: BTreeMap::new(),
            tunes: Vec::new(),
            users: BTreeMap::new(),
            stops: Vec::new(),
            published: BTreeMap::new(),
            asked: BTreeMap::new(),
            rebuilt: Vec::new(),
            promised: BTreeMap::new(),
        }
    }

    /// One whose root is a disk of its own, whose power can be cut. None, and a word about it, where that can't be.
    pub(super) fn on_a_disk(trial: &Trial) -> Option<Self> {
        let mut ordeal = Self::new(trial);
        let disk = ordeal.disk.insert(Mounted::new(&ordeal.world, "ext4", 128)?);
        disk.cutter()?;
        Some(ordeal)
    }

    pub(super) fn cutter(&self) -> Cutter {
        self.disk.as_ref().expect("it is on a disk").cutter().expect("there was one before")
    }

    /// Starts the daemon after a power cut: what it says now may be more than what it said before, never less.
    pub(super) fn start_again(&mut self) -> Daemon {
        let mut daemon = self.start(None);
        daemon.wait_for_log("batchd is running");
        for (job, promised) in std::mem::take(&mut self.promised) {
            let listed = self.world.listed(&job).unwrap_or_else(|| panic!("`{job}` is gone: {promised}"));
            for count in ["total", "completed", "failed"] {
                let [then, now] = [&promised, &listed].map(|job| job["counts"][count].as_u64().unwrap());
                assert!(now >= then, "`{job}` has lost {count}: {promised} became {listed}");
            }
            assert_ne!(listed["status"], "held", "{listed}");
        }
        daemon
    }

    /// Takes down what the daemon promises: jobs that it has, answers that count, results that are final.
    pub(super) fn take_down(&mut self) {
        let list = self.world.list();
        let is_done = |job: &&Value| ["completed", "failed"].iter().any(|status| job["status"] == *status);
        for job in list.iter().filter(is_done) {
            self.look_at(job["name"].as_str().unwrap());
        }
        let named = list.into_iter().map(|job| (job["name"].as_str().unwrap().to_owned(), job));
        self.promised.extend(named);
    }

    /// Cuts the power: of all at once, or of the disk a moment before the process.
    pub(super) fn cut_power(&mut self, daemon: Daemon, cutter: Cutter) {
        if self.rng.bool() {
            daemon.signal(Signal::STOP);
        }
        let (from_us, in_flight) = (self.now_us(), self.world.engine().in_flight());
        cutter.cut();
        daemon.kill();
        self.disk.as_ref().expect("it is on a disk").mount_again();
        self.stopped(StopKind::PowerCut, from_us, in_flight);
    }

    pub(super) fn stops(&self) -> usize {
        self.stops.len()
    }

    /// Drops a JSONL job over two queues.
    pub(super) fn drop_lines(&mut self, job: &str, count: usize) {
        let line = |n: usize| {
            let line = chat_line(&format!("r-{n}"), &format!("{PROMPT} {job} {n}")) + "\n";
            if n.is_multiple_of(3) { line.replace(r#""model":"m""#, r#""model":"m2""#) } else { line }
        };
        self.world.drop(&format!("{job}.jsonl"), (0..count).map(line).collect::<String>());
        self.note(job, ".jsonl");
    }

    /// Drops one that has a second name, and so has to be copied; one of its lines is refused by the server.
    pub(super) fn drop_linked(&mut self, job: &str, count: usize) {
        let line = |n: usize| chat_line(&format!("l-{n}"), &format!("{PROMPT} {job} {n}")) + "\n";
        let refused = line(0).replace(r#""model":"m""#, r#""model":"m","n":0"#);
        let text = refused + &(1..count).map(line).collect::<String>();
        let other = self.world.path(format!("root/{job}.linked"));
        fs::write(&other, text).unwrap();
        File::open(&other).unwrap().sync_all().unwrap();
        fs::hard_link(&other, self.world.jobs_dir().join(format!("{job}.jsonl"))).unwrap();
        sync(&self.world.jobs_dir());
        self.note(job, ".jsonl");
    }

    pub(super) fn drop_images(&mut self, job: &str, count: usize) {
        let line = |n: usize| format!("{{\"model\":\"gpt-image-2\",\"prompt\":\"{PROMPT} {job} {n}\"}}\n");
        self.world.drop(&format!("{job}.images.jsonl"), (0..count).map(line).collect::<String>());
        self.note(job, ".images.jsonl");
    }

    /// Drops a TOML spec with its rows in a file; with a policy of its own for uncertain requests.
    pub(super) fn drop_toml(&mut self, job: &str, count: usize, policy: OnUncertain) {
        let rows: Vec<String> = (0..count).map(|n| format!("{PROMPT} {job} {n}\n")).collect();
        self.world.input(&format!("{job}.txt"), rows.concat());
        let word = match policy {
            OnUncertain::Retry => "retry",
            OnUncertain::Hold => "hold",
            OnUncertain::Fail => "fail",
        };
        let spec = format!(
            "kind = 'completions'\nmodel = 'f'\non_uncertain = '{word}'\n[input]\nfile = 'inputs/{job}.txt'\n"
        );
        self.world.drop(&format!("{job}.toml"), spec);
        self.policies.insert(job.to_owned(), policy);
        self.note(job, ".toml");
    }

    pub(super) fn note(&mut self, job: &str, ending: &str) {
        self.dropped.push((format!("{job}{ending}"), job.to_owned()));
    }

    /// The daemon, to die at a fault point if one is named.
    pub(super) fn start(&self, point: Option<&str>) -> Daemon {
        let mut command = self.world.command(&["run"]);
        if let Some(point) = point {
            command.env("BATCHD_FAULT_POINT", point);
        }
        self.world.spawn(command)
    }

    /// Kills a daemon: 4 times in 10 while it starts, 3 times in 10 at any time, 3 times in 10 while it sends.
    pub(super) fn kill_at_random(&mut self, longest: Duration) {
        let before = self.world.ledger().requests;
        let daemon = self.start(None);
        let (most, waits) = match self.rng.u8(..10) {
            0..4 => (Duration::from_millis(300), false),
            4..7 => (longest, false),
            _ => (Duration::from_millis(200), true),
        };
        let deadline = Instant::now() + longest * 2;
        while waits && self.world.ledger().requests == before && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(2));
        }
        std::thread::park_timeout(most.mul_f64(self.rng.f64()));
        self.kill(daemon);
    }

    pub(super) fn kill(&mut self, daemon: Daemon) {
        let (from_us, in_flight) = (self.now_us(), self.world.engine().in_flight());
        assert_eq!(daemon.kill().code, None, "it was alive until it was killed");
        self.stopped(StopKind::Kill, from_us, in_flight);
    }

    /// Waits until a daemon dies at its fault point.
    pub(super) fn await_death(&mut self, daemon: Daemon, point: &str) {
        let output = daemon.wait();
        let (from_us, in_flight) = (self.now_us(), self.world.engine().in_flight());
        assert_eq!(output.code, None, "it should have died at {point}: {output:?}");
        self.stopped(StopKind::Kill, from_us, in_flight);
    }

    pub(super) fn drain(&mut self, daemon: Daemon) {
        let (from_us, in_flight) = (self.now_us(), self.world.engine().in_flight());
        let output = daemon.stop();
        assert_eq!(output.code, Some(0), "{output:?}");
        self.stopped(StopKind::Drain, from_us, in_flight);
    }

    fn stopped(&mut self, kind: StopKind, from_us: u64, in_flight: u64) {
        // Connections are served in the order in which they came: when these are answered, everything that the
        // dead process sent has come to the ledger.
        for _ in 0..2 {
            let address =
                self.world.base_url().trim_start_matches("http://").trim_end_matches("/v1").to_owned();
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /_sim/faults HTTP/1.0\r\n\r\n").unwrap();
            stream.read_to_string(&mut String::new()).unwrap();
        }
        self.stops.push(Stop { kind, from_us, to_us: self.now_us(), in_flight });
        self.look_at_published();
    }

    fn now_us(&self) -> u64 {
        self.world.engine().at_us(Instant::now())
    }

    /// Whatever lies beside a summary is published, and must stay as it is.
    fn look_at_published(&mut self) {
        let tunes = self.tunes.iter().map(|tune| &tune.job);
        for job in self.dropped.iter().map(|(_, job)| job).chain(tunes).cloned().collect::<Vec<_>>() {
            self.look_at(&job);
        }
    }

    fn look_at(&mut self, job: &str) {
        let results = self.world.results(job);
        if !results.has("summary.json") || self.published.contains_key(&results.dir.join("summary.json")) {
            return;
        }
        for name in ["summary.json", "output.jsonl", "errors.jsonl"].iter().filter(|name| results.has(name)) {
            let path = results.dir.join(name);
            let hash = blake3::hash(&fs::read(&path).unwrap());
            self.published.insert(path, hash);
        }
        // What was sent is what was accepted: the lines that batchd rendered, or the file as it was dropped.
        let id = results.summary()["id"].as_str().unwrap().to_owned();
        let input = self.world.path("root/state/jobs").join(id).join("input.jsonl");
        self.asked.insert(job.to_owned(), fs::read_to_string(input).unwrap());
    }

    /// Lets everything end.
    pub(super) fn end_all(&mut self) {
        let output = self.world.spawn(self.world.command(&["run", "--until-idle"])).wait_at_most(END_WITHIN);
        assert!(matches!(output.code, Some(0 | 1)), "{output:?}");
        self.look_at_published();
    }

    /// From the next start on the state of jobs that have ended is kept so long.
    pub(super) fn keep_state(&self, long: &str) {
        let config = fs::read_to_string(self.world.config()).unwrap();
        let others = config.lines().filter(|line| !line.starts_with("keep_state"));
        let lines = others.map(|line| {
            let more = if line == "[storage]" { format!("\nkeep_state = \"{long}\"") } else { String::new() };
            format!("{line}{more}\n")
        });
        fs::write(self.world.config(), lines.collect::<String>()).unwrap();
    }

    /// Compares the index as a start finds it with one that is built anew, in copies of the root.
    pub(super) fn compare_indexes(&mut self) {
        let [live, anew] = ["copy-live", "copy-anew"].map(|name| self.world.path(name));
        let run = |copy: &Path, args: &[&str]| {
            let mut command = bare_command();
            command.current_dir(copy).args(["--config", "batchd.toml"]).args(args);
            self.world.spawn(command)
        };
        for copy in [&live, &anew] {
            copy_root(&self.world, copy);
        }
        let rebuilt = counts(&run(&anew, &["rebuild", "--json"]).wait());
        let mut daemon = run(&live, &["run"]);
        daemon.wait_for_log("batchd is running");
        let listed = counts(&run(&live, &["list", "--json"]).wait());
        daemon.kill();
        for (job, rebuilt) in rebuilt {
            let mut live = listed.get(&job).cloned().unwrap_or_default();
            if self.disk.is_some() {
                // A power cut may take notes of failed attempts out of the log and leave what they were counted as.
                let maybe_paid = &rebuilt["maybe_paid_twice"];
                assert!(live["maybe_paid_twice"].as_u64() >= maybe_paid.as_u64(), "{job}: {live}, {rebuilt}");
                live["maybe_paid_twice"] = maybe_paid.clone();
            }
            let [live, rebuilt] = [live, rebuilt].map(|counts| counts.to_string());
            self.rebuilt.push(Rebuilt { what: job, live, rebuilt });
        }
        for copy in [live, anew] {
            fs::remove_dir_all(copy).unwrap();
        }
    }

    /// Lets everything end, and judges it by all laws. Uncertain requests apart, none may have failed.
    pub(super) fn finish(mut self) -> Report {
        self.end_all();
        let evidence = Evidence {
            jobs: self.dropped.iter().map(|(_, job)| self.job_evidence(job)).collect(),
            ledger: self.questions(),
            stops: self.stops.clone(),
            concurrency: Some(self.concurrency.into()),
            kept_within: KEPT_WITHIN,
            unsynced_max: UNSYNCED_MAX,
            published: self.published.iter().map(|(path, hash)| seen(path, *hash)).collect(),
            dropped: self.ends(),
            leaks: self.leaks(),
            rebuilt: self.rebuilt.clone(),
            ..Evidence::default()
        };
        self.judge_fine_tunes();
        for job in &evidence.jobs {
            let errors = job.results.iter().flat_map(|results| &results.errors);
            let failed: Vec<_> = errors
                .filter(|line| line.error.as_deref() != Some("uncertain") && line.custom_id != "l-0")
                .collect();
            assert!(failed.is_empty(), "{}: {failed:?}", job.name);
        }
        check(&evidence).unwrap_or_else(|violations| {
            let shown: Vec<String> = violations.iter().take(20).map(ToString::to_string).collect();
            panic!("{} laws are broken:\n{}", violations.len(), shown.join("\n"));
        })
    }

    /// What was asked of models. Files, lists and fine-tunes are not bounded with it, and judged apart.
    fn questions(&self) -> Vec<Entry> {
        let asks = |entry: &Entry| Endpoint::ALL.iter().any(|endpoint| endpoint.path() == entry.endpoint);
        self.world.engine().entries().into_iter().filter(asks).collect()
    }

    fn job_evidence(&self, job: &str) -> JobEvidence {
        let results = self.world.results(job);
        if !results.has("summary.json") {
            return JobEvidence { name: job.to_owned(), ..JobEvidence::default() };
        }
        let summary = results.summary();
        let text = self.asked.get(job).cloned().unwrap_or_default();
        let mut evidence = batch_lines(job, &self.with_model(job, text));
        let errors = if results.has("errors.jsonl") { results.text("errors.jsonl") } else { String::new() };
        let image = |name: &str| fs::read(results.dir.join(name)).ok();
        let mut read = Results::read(&results.text("output.jsonl"), &errors, &image).unwrap();
        read.maybe_paid_twice = summary["maybe_paid_twice"].as_u64();
        evidence.results = Some(read);
        evidence.on_uncertain = self.policies.get(job).copied().unwrap_or_default();
        evidence
    }

    fn ends(&self) -> Vec<DroppedFile> {
        let ends = self.dropped.iter().map(|(file, job)| self.end_of(file, job));
        let tunes = self.tunes.iter().map(|tune| self.end_of(&format!("{}.toml", tune.job), &tune.job));
        ends.chain(tunes).collect()
    }

    fn end_of(&self, file: &str, job: &str) -> DroppedFile {
        let results = names(&self.world.path("root/results"));
        // A file that was taken twice has a second folder: `job-2`.
        let jobs = results.into_iter().filter(|name| name == job || name.starts_with(&format!("{job}-")));
        let mut ends: Vec<FileEnd> = jobs.map(FileEnd::Job).collect();
        if self.world.jobs_dir().join("rejected").join(file).exists() {
            ends.push(FileEnd::Rejected);
        }
        if self.world.jobs_dir().join(file).exists() {
            ends.push(FileEnd::Ignored);
        }
        DroppedFile { name: file.to_owned(), ends }
    }

    fn leaks(&self) -> Vec<Leak> {
        let leak = |secret: &str, place: String| Leak { secret: secret.to_owned(), place };
        let with_key = self.world.files_with(".", KEY).into_iter().filter(|name| name != "key");
        let with_prompt = self.world.files_with(".", PROMPT).into_iter();
        let in_logs = with_prompt.filter(|name| name.contains("err-") || name.contains("out-"));
        with_key
            .map(|place| leak("the key", place))
            .chain(in_logs.map(|place| leak("a prompt", place)))
            .collect()
    }
}

/// What a job asked. Bare bodies become batch lines; the `custom_id` is then the line's number.
fn batch_lines(job: &str, text: &str) -> JobEvidence {
    if text.contains("\"custom_id\"") {
        return JobEvidence::of_batch_lines(job, text).unwrap();
    }
    let lines = text.lines().zip(1..);
    let lines: Vec<String> = lines
        .map(|(body, number)| format!("{{\"custom_id\":\"line-{number}\",\"body\":{body}}}\n"))
        .collect();
    JobEvidence::of_batch_lines(job, &lines.concat()).unwrap()
}

fn seen(path: &Path, first: blake3::Hash) -> SeenFile {
    let last = fs::read(path).ok().map(|bytes| blake3::hash(&bytes));
    SeenFile { path: path.display().to_string(), first, last }
}

/// The root and the configuration, with a server that nobody can reach: what is counted stays as it is.
fn copy_root(world: &World, to: &Path) {
    fs::create_dir(to).unwrap();
    let copied = Command::new("cp").arg("-a").arg(world.path("root")).arg(to).status().unwrap();
    assert!(copied.success());
    drop(fs::remove_file(to.join("root/batchd.sock")));
    let config = fs::read_to_string(world.config()).unwrap();
    let config =
        config.replace(&world.base_url(), "http://127.0.0.1:9/v1").replace("api_key_file = \"key\"", "");
    let config = config.replace("base_delay = \"2ms\"", "base_delay = \"1h\"");
    fs::write(to.join("batchd.toml"), config.replace("max_delay = \"20ms\"", "max_delay = \"1h\"")).unwrap();
}

/// What is counted of each job that a command listed, by the job's name.
fn counts(output: &Output) -> BTreeMap<String, Value> {
    let list: Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let jobs = list.as_array().unwrap().iter();
    jobs.map(|job| (job["name"].as_str().unwrap().to_owned(), job["counts"].clone())).collect()
}
