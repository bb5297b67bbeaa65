//! A disk that others fill to the last byte, on real small file systems: nothing that was received is lost or paid
//! for again, and the same process goes on when there is room. Needs root, to mount; CONTRIBUTING has the command.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use batchd::simulate::{Latency, Settings};
use tokio::time::Instant;

use crate::mounted::Mounted;
use crate::world::{Daemon, Setup, World, chat_line, chat_lines, eventually, sorted_ids};

/// Sending has to go on so soon after there is room.
const SOON: Duration = Duration::from_secs(15);

/// A world whose root is a file system of its own.
struct SmallDisk {
    /// Unmounted before the world goes.
    _mounted: Mounted,
    world: World,
}

impl SmallDisk {
    /// None, and a word about it, where nothing can be mounted.
    fn mount(kind: &str) -> Option<Self> {
        let latency = Latency::fixed(Duration::from_millis(40));
        let server = Settings { latency, ..Settings::default() };
        let storage = ""; // as it is by default
        let world = World::with(&Setup { server, concurrency: 8, storage, ..Setup::default() });
        let mounted = Mounted::new(&world, kind, if kind == "tmpfs" { 48 } else { 64 })?;
        Some(Self { _mounted: mounted, world })
    }

    fn filler(&self) -> PathBuf {
        self.world.path("root/filler")
    }

    /// Takes every byte that is free.
    fn fill(&self) {
        let mut file = File::create(self.filler()).unwrap();
        for chunk in [1 << 20, 1 << 12, 1] {
            while file.write_all(&vec![1; chunk]).is_ok() {}
        }
        drop(file.sync_all());
    }

    fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    /// Drops a file that lies on the disk already.
    fn drop_spec(&self, name: &str, content: &str) {
        self.prepare_spec(name, content);
        self.drop_prepared(name);
    }

    fn prepare_spec(&self, name: &str, content: &str) {
        fs::write(self.world.path("root").join(name), content).unwrap();
    }

    fn drop_prepared(&self, name: &str) {
        fs::rename(self.world.path("root").join(name), self.world.jobs_dir().join(name)).unwrap();
    }

    /// Waits until the daemon says that this job is paused for the disk, with a reason.
    fn wait_for_pause(&self, job: &str) {
        let paused = eventually("the job is paused for the disk", || {
            self.world.listed(job).filter(|listed| listed["reason"] == "disk")
        });
        assert_eq!(paused["status"], "paused", "{paused}");
        assert!(paused["message"].as_str().is_some_and(|why| why.contains("free")), "{paused}");
    }

    /// Frees the disk and says how long it took until the next request came.
    fn free_and_time(&self) -> Duration {
        let before = self.world.ledger().requests;
        self.free();
        let started = Instant::now();
        self.world.wait_for_requests(before + 1);
        let took = started.elapsed();
        assert!(took < SOON, "it took {took:?}");
        took
    }

    /// Waits for the job's end; every request has its answer, and none was paid for twice.
    fn check(&self, job: &str, requests: usize, paid: usize) {
        let results = self.world.results(job);
        eventually("the summary", || results.has("summary.json").then_some(()));
        let all = requests as u64;
        assert_eq!(results.outcome(), ("completed".to_owned(), all, all, 0));
        assert_eq!(results.custom_ids(), sorted_ids(requests));
        let ledger = self.world.ledger();
        assert_eq!((ledger.paid, ledger.paid_twice), (paid as u64, 0), "{ledger:?}");
    }
}

fn stop(daemon: Daemon) {
    assert_eq!(daemon.stop().code, Some(0));
}

/// Filled while requests are in flight, round after round.
fn in_mid_run(kind: &str, rounds: usize) {
    let Some(disk) = SmallDisk::mount(kind) else { return };
    let requests = 60 * (rounds + 1);
    disk.drop_spec("job.jsonl", &chat_lines(requests));
    let daemon = disk.world.start();
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        disk.world.wait_for_requests(disk.world.ledger().requests + 7 + round as u64 % 5);
        disk.fill();
        disk.wait_for_pause("job");
        // What was in flight had its room: it is written, and counts.
        let counted = eventually("nothing is in flight", || {
            disk.world.listed("job").filter(|listed| listed["leased"] == 0)
        });
        let ledger = disk.world.ledger();
        assert_eq!(counted["counts"]["completed"], ledger.paid, "round {round}: {ledger:?}");
        slowest = slowest.max(disk.free_and_time());
    }
    disk.check("job", requests, requests);
    stop(daemon);
    eprintln!("{kind}: {rounds} rounds in mid-run; at most {slowest:?} from space to the next request");
}

/// Filled before a spec is dropped, before results are published, and before a start.
fn at_each_other_step(kind: &str) {
    let Some(disk) = SmallDisk::mount(kind) else { return };
    disk.prepare_spec("accepted.jsonl", &chat_lines(20));
    disk.prepare_spec("job.jsonl", &large_lines(20));
    let daemon = disk.world.start();
    disk.fill();
    disk.drop_prepared("accepted.jsonl");
    eventually("it is told that nothing can be taken in", || {
        daemon.log().contains("can't be taken in").then_some(())
    });
    let accepted = disk.free_and_time();
    disk.check("accepted", 20, 20);

    disk.world.answer_after(Duration::from_secs(1));
    disk.drop_prepared("job.jsonl");
    disk.world.wait_for_requests(20 + 20);
    disk.fill();
    eventually("all are settled", || {
        disk.world.listed("job").filter(|listed| listed["counts"]["completed"] == 20)
    });
    std::thread::park_timeout(Duration::from_millis(500)); // for a publishing that must not be
    assert!(!disk.world.results("job").has("summary.json"));
    disk.free();
    let freed = Instant::now();
    disk.check("job", 20, 40);
    let published = freed.elapsed();
    assert!(published < SOON, "it took {published:?}");

    disk.drop_spec("last.jsonl", &chat_lines(20).replace("question", "last"));
    disk.world.wait_for_requests(40 + 1);
    stop(daemon);
    let paid = disk.world.ledger().paid;
    assert!(paid < 60, "it was stopped too late");
    disk.fill();
    let mut daemon = disk.world.spawn(disk.world.command(&["run"]));
    daemon.wait_for_log("batchd starts when there is room");
    assert!(disk.world.batchd(&["run"]).code == Some(75), "the state is locked while it waits");
    let started = disk.free_and_time();
    disk.check("last", 20, 60);
    stop(daemon);
    eprintln!(
        "{kind}: from space to the next request {accepted:?} after a spec, {started:?} at a start; {published:?} to results"
    );
}

/// A stop that comes while the disk is full ends it in order, and while it waits to start.
fn stops(kind: &str) {
    let Some(disk) = SmallDisk::mount(kind) else { return };
    disk.drop_spec("job.jsonl", &chat_lines(100));
    let daemon = disk.world.start();
    disk.world.wait_for_requests(20);
    disk.fill();
    disk.wait_for_pause("job");
    stop(daemon);
    let mut daemon = disk.world.spawn(disk.world.command(&["run"]));
    daemon.wait_for_log("batchd starts when there is room");
    stop(daemon);
    disk.free();
    let daemon = disk.world.start();
    disk.check("job", 100, 100);
    stop(daemon);
}

/// Whose answers are as long as they are.
fn large_lines(count: usize) -> String {
    let line = |n: usize| chat_line(&format!("r-{n}"), &format!("{n} {}", "x".repeat(200_000))) + "\n";
    (0..count).map(line).collect()
}

/// Answers larger than what was thought, while others fill the disk.
fn large_answers(kind: &str) {
    let Some(disk) = SmallDisk::mount(kind) else { return };
    disk.world.answer_after(Duration::from_secs(1));
    disk.drop_spec("job.jsonl", &large_lines(30));
    let daemon = disk.world.start();
    disk.world.wait_for_requests(8);
    disk.fill();
    disk.wait_for_pause("job");
    disk.free_and_time();
    disk.check("job", 30, 30);
    stop(daemon);
}

#[test]
#[ignore = "needs root, to mount"]
fn full_tmpfs_loses_nothing_and_pays_nothing_twice() {
    in_mid_run("tmpfs", 20);
    at_each_other_step("tmpfs");
    stops("tmpfs");
    large_answers("tmpfs");
}

#[test]
#[ignore = "needs root, to mount"]
fn full_ext4_loses_nothing_and_pays_nothing_twice() {
    in_mid_run("ext4", 20);
    at_each_other_step("ext4");
    stops("ext4");
    large_answers("ext4");
}
