//! Soak: hours of ordinary work with a sick server, in one process, whose memory and descriptors must stay where
//! they were. Run by hand; CONTRIBUTING has the command.

use std::fs;
use std::time::Duration;

use batchd::simulate::{Latency, Settings};
use tokio::time::Instant;

use crate::world::{Daemon, Setup, World, chat_line, eventually};

/// Requests of one job: some seconds of work.
const LINES: usize = 2_000;
/// What the last quarter of the samples may have in memory above the second, KiB. An ended job is remembered
/// with some hundred bytes, and the allocator keeps what a peak took.
const GROWTH_MAX_KIB: u64 = 8 * 1024;

/// What a process has.
#[derive(Clone, Copy, Debug)]
struct Sample {
    resident_kib: u64,
    descriptors: usize,
}

impl Sample {
    fn of(daemon: &Daemon) -> Self {
        let process = format!("/proc/{}", daemon.id());
        let status = fs::read_to_string(format!("{process}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let resident_kib = resident.trim().trim_end_matches(" kB").parse().unwrap();
        Self { resident_kib, descriptors: fs::read_dir(format!("{process}/fd")).unwrap().count() }
    }
}

fn job(number: usize) -> String {
    let line = |n: usize| chat_line(&format!("r-{n}"), &format!("job {number}, question {n}")) + "\n";
    (0..LINES).map(line).collect()
}

/// Works for `duration`, a job after the other, each looked through, with a bad spec beside every tenth.
fn soak(duration: Duration) {
    let latency = Latency::fixed(Duration::from_millis(10));
    let faults = "429=0.005,500=0.005,503=0.002,drop=0.002,cut=0.002,garbage=0.001";
    let server = Settings { latency, faults: faults.parse().unwrap(), ..Settings::default() };
    let world = World::with(&Setup { server, concurrency: 32, log_level: "warn", ..Setup::default() });
    let daemon = world.spawn(world.command(&["run"]));
    let (started, mut samples, mut jobs) = (Instant::now(), Vec::new(), 0);
    while started.elapsed() < duration {
        let name = format!("job-{jobs}");
        world.drop(&format!("{name}.jsonl"), job(jobs));
        if jobs % 10 == 0 {
            world.drop(&format!("bad-{jobs}.jsonl"), "{\"no\": \"request\"}\n");
            eventually("the report", || world.report(&format!("bad-{jobs}.jsonl")));
        }
        let results = world.results(&name);
        eventually("the summary", || results.has("summary.json").then_some(()));
        assert_eq!(results.outcome(), ("completed".to_owned(), LINES as u64, LINES as u64, 0));
        assert_eq!(results.custom_ids().len(), LINES);
        fs::remove_dir_all(&results.dir).unwrap();
        samples.push(Sample::of(&daemon));
        jobs += 1;
    }
    let output = daemon.stop();
    assert_eq!(output.code, Some(0), "{output:?}");
    judge(&samples, jobs);
}

fn judge(samples: &[Sample], jobs: usize) {
    let quarter = samples.len() / 4;
    assert!(quarter > 0, "too few jobs to judge by: {jobs}");
    let [early, late] = [&samples[quarter..2 * quarter], &samples[samples.len() - quarter..]];
    let resident = |samples: &[Sample]| median(samples.iter().map(|sample| sample.resident_kib).collect());
    let most = |samples: &[Sample]| samples.iter().map(|sample| sample.descriptors).max().unwrap_or_default();
    eprintln!(
        "{jobs} jobs of {LINES} lines: resident {} KiB in the second quarter, {} KiB in the last; descriptors at most {} and {}",
        resident(early),
        resident(late),
        most(early),
        most(late),
    );
    assert!(resident(late) <= resident(early) + GROWTH_MAX_KIB, "memory grows");
    // Connections to the server and files of one job come and go.
    assert!(most(late) <= most(early) + 8, "descriptors grow");
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}

#[test]
#[ignore = "takes an hour"]
fn memory_and_descriptors_stay_flat_over_an_hour() {
    soak(Duration::from_hours(1));
}

#[test]
#[ignore = "takes five minutes"]
fn memory_and_descriptors_stay_flat_over_five_minutes() {
    soak(Duration::from_mins(5));
}
