//! What a daemon with nothing to do costs: time of a processor, and memory. Takes more than a minute, and says something
//! only of a release build on a machine that is not busy; CONTRIBUTING has the command.

use std::fs;
use std::time::Duration;

use tokio::time::Instant;

use crate::world::{Daemon, Setup, World, chat_line, chat_lines, eventually};

/// How long it is looked at.
const LONG: Duration = Duration::from_mins(1);
/// Of one processor.
const CPU_MAX: f64 = 0.005;
const RESIDENT_MAX_KIB: u64 = 25 << 10;
const ENDED: usize = 1_000;
/// Of the job that is paused.
const LINES: usize = 100_000;

/// Hundredths of a second that a process has had so far, as Linux counts for every program.
fn ticks(daemon: &Daemon) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.id())).unwrap();
    // Its name, in brackets, may hold spaces.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn resident_kib(daemon: &Daemon) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", daemon.id())).unwrap();
    let line = text.lines().find(|line| line.starts_with("Rss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// As a user has it.
fn usual() -> World {
    World::with(&Setup { rescan: "5s", settle: "10ms", ..Setup::default() })
}

fn with_ended_jobs() -> World {
    let world = usual();
    for number in 0..ENDED {
        world.drop(&format!("job-{number}.jsonl"), chat_line("r", &format!("question {number}")));
    }
    world.run_to_success();
    world
}

fn with_paused_job() -> (World, Daemon) {
    let world = usual();
    world.answer_after(Duration::from_secs(1));
    world.drop("job.jsonl", chat_lines(LINES));
    let daemon = world.start();
    world.wait_for_requests(1);
    assert_eq!(world.batchd(&["pause", "job"]).code, Some(0));
    eventually("nothing is in flight", || world.listed("job").filter(|job| job["leased"] == 0));
    (world, daemon)
}

#[test]
#[ignore = "takes more than a minute, and needs a release build"]
fn idle_daemon_costs_next_to_nothing() {
    let (empty, ended) = (usual(), with_ended_jobs());
    let (first, second) = (empty.start(), ended.start());
    let (_paused, third) = with_paused_job();
    let daemons = [("an empty root", first), ("1,000 ended jobs", second), ("a paused job", third)];
    // What a start leaves to be done is done by then.
    std::thread::park_timeout(Duration::from_secs(5));
    let (before, began) = (daemons.each_ref().map(|(_, daemon)| ticks(daemon)), Instant::now());
    std::thread::park_timeout(LONG);
    let long = began.elapsed().as_secs_f64();
    let mut is_cheap = true;
    for ((what, daemon), before) in daemons.into_iter().zip(before) {
        let cpu = Duration::from_millis(10 * (ticks(&daemon) - before)).as_secs_f64() / long;
        let resident = resident_kib(&daemon);
        eprintln!("{what}: {:.2} % of a processor, {resident} KiB resident", cpu * 100.0);
        is_cheap &= cpu < CPU_MAX && resident <= RESIDENT_MAX_KIB;
        assert_eq!(daemon.stop().code, Some(0));
    }
    assert!(is_cheap || cfg!(debug_assertions), "it costs more than it may");
}
