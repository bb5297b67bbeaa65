//! Pacing, in real time: the binary against a stand-in server whose limits bite, judged by the server's ledger and the
//! laws. Each run prints its figures before anything is asserted.
//!
//! What takes longer than a moment is run by hand; CONTRIBUTING has the commands. The machine should have nothing else
//! to do then: figures are of time.

#![expect(clippy::cast_precision_loss, reason = "figures are of some thousands")]

mod capacity;
mod chaos;
mod outages;
mod rates;

use std::time::Duration;

use batchd::simulate::laws::{Evidence, JobEvidence, Report, Results, check};
use batchd::simulate::{Entry, LedgerSettings, Outcome, Pace, Settings};

use crate::world::{Setup, World};

/// What was sent before a hint had arrived may come so long after it: the test's own process and batchd share two cores.
const ON_ITS_WAY: Duration = Duration::from_millis(100);
/// Refusals by a limit, as the ledger has them.
const BY_LIMITS: [&str; 3] = ["rate_limit_exceeded", "slow_down", "server_is_overloaded"];

/// A server whose ledger keeps everything.
fn server() -> Settings {
    let ledger = LedgerSettings { entries_max: 1_000_000, ..LedgerSettings::default() };
    Settings { ledger, epoch: batchd::clock::Clock::System.now(), ..Settings::default() }
}

/// A world in which only failures are retried after a while.
fn setup(server: Settings, limits: &str) -> Setup {
    Setup {
        server,
        concurrency: 0,
        limits: limits.to_owned(),
        max_attempts: 10,
        base_delay: Duration::from_millis(200),
        settle: "20ms",
        rescan: "50ms",
        ..Setup::default()
    }
}

/// Chat lines that cost 50 tokens of prompt and 100 of answers, or nearly so.
fn token_lines(count: usize) -> String {
    let line = |number: usize| {
        let text = format!("{number:0>100}");
        let body =
            format!(r#"{{"model":"m","max_tokens":100,"messages":[{{"role":"user","content":"{text}"}}]}}"#);
        format!(
            "{{\"custom_id\":\"r-{number}\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{body}}}\n"
        )
    };
    (0..count).map(line).collect()
}

/// What a run was like.
struct Seen {
    name: String,
    entries: Vec<Entry>,
    pace: Pace,
    /// Total, completed, failed.
    counts: (u64, u64, u64),
    evidence: Evidence,
}

impl Seen {
    /// Runs one job until nothing is left to do.
    fn of_job(name: &str, setup: &Setup, job: &str, within: Duration) -> Self {
        let world = World::with(setup);
        world.drop("job.jsonl", job);
        let output = world.spawn(world.command(&["run", "--until-idle"])).wait_at_most(within);
        assert!(output.code.is_some(), "{output:?}");
        Self::in_world(name, &world, &[("job", job)], None)
    }

    /// What the jobs of a world have come to. `concurrency`: how many may have been in flight.
    fn in_world(name: &str, world: &World, jobs: &[(&str, &str)], concurrency: Option<u64>) -> Self {
        let mut counts = (0, 0, 0);
        let mut all = Vec::new();
        for (job, text) in jobs {
            let results = world.results(job);
            let mut evidence = JobEvidence::of_batch_lines(job, text).unwrap();
            evidence.is_running = !results.has("summary.json");
            if !evidence.is_running {
                let (_, total, completed, failed) = results.outcome();
                counts = (counts.0 + total, counts.1 + completed, counts.2 + failed);
                let text = |name| if results.has(name) { results.text(name) } else { String::new() };
                let read = Results::read(&text("output.jsonl"), &text("errors.jsonl"), &|_| None).unwrap();
                evidence.results = Some(read);
            }
            all.push(evidence);
        }
        let entries = world.engine().entries();
        let evidence = Evidence { jobs: all, ledger: entries.clone(), concurrency, ..Evidence::default() };
        Self { name: name.to_owned(), entries, pace: world.engine().pace(), counts, evidence }
    }

    /// The first of what breaks a law.
    fn laws(&self) -> Result<Report, Vec<String>> {
        check(&self.evidence)
            .map_err(|violations| violations.iter().map(ToString::to_string).take(10).collect())
    }

    /// Prints the figures.
    fn print(&self) {
        let Pace { admitted, refused, rejected, refused_share, max_in_flight, early, .. } = self.pace;
        let (total, completed, failed) = self.counts;
        eprintln!("== {}", self.name);
        eprintln!("lines {total}, completed {completed}, failed {failed}");
        eprintln!(
            "sent {}: admitted {admitted}, refused {refused} ({:.2} %), rejected {rejected}, early {early}, in flight at most {max_in_flight}",
            self.entries.len(),
            refused_share * 100.0,
        );
        eprintln!("first to last {:.1} s", self.makespan());
        match self.laws() {
            Ok(report) => eprintln!("laws hold; lost {}, duplicates {}", report.lost, report.duplicates),
            Err(violations) => eprintln!("laws broken:\n  {}", violations.join("\n  ")),
        }
    }

    /// Every line has been answered, once, and no law was broken.
    fn assert_whole(&self, lines: usize) {
        assert_eq!(self.counts, (lines as u64, lines as u64, 0), "{}", self.name);
        self.assert_lawful();
    }

    fn assert_lawful(&self) {
        assert_eq!(self.laws().err(), None, "{}", self.name);
    }

    /// No request came while its key and model had been told to stay away. Where a server refuses by chance, one that
    /// is told so says nothing of the others.
    fn assert_patient(&mut self) {
        self.evidence.on_its_way = Some(ON_ITS_WAY);
        self.assert_lawful();
    }

    /// Seconds from the first arrival to the last answer.
    fn makespan(&self) -> f64 {
        seconds(self.entries.iter().filter_map(|entry| entry.left_us).max().unwrap_or(0) - self.began_us())
    }

    /// When the first request came.
    fn began_us(&self) -> u64 {
        self.entries.first().map_or(0, |entry| entry.at_us)
    }

    /// Requests that were let in between two times, in seconds since the first came; and the share that was refused.
    fn between(&self, from: f64, to: f64) -> (u64, f64) {
        let began_us = self.began_us();
        let within = |entry: &&Entry| (from..to).contains(&seconds(entry.at_us - began_us));
        let (refused, admitted): (Vec<&Entry>, Vec<&Entry>) =
            self.entries.iter().filter(within).partition(|entry| is_refused(entry));
        let share = refused.len() as f64 / (refused.len() + admitted.len()).max(1) as f64;
        (admitted.len() as u64, share)
    }
}

fn is_refused(entry: &Entry) -> bool {
    matches!(entry.outcome, Outcome::Refused(name) if BY_LIMITS.contains(&name))
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// What is used of what is allowed: the time that the work takes at best, by the time that it took.
fn use_of(lines: u64, per_minute: u64, burst: f64, seen: &Seen) -> f64 {
    let per_second = per_minute as f64 / 60.0;
    ((lines as f64 - per_second * burst) / per_second) / seen.makespan()
}
