//! Between jobs of one queue: a small one beside a huge one, and one of a higher priority.

use std::time::Duration;

use batchd::simulate::{Latency, Settings};
use tokio::time::Instant;

use super::{Seen, server, setup};
use crate::process::eventually;
use crate::world::{World, chat_line, chat_lines};

fn world() -> World {
    let latency = Latency::fixed(Duration::from_millis(100));
    World::with(&setup(Settings { latency, ..server() }, "concurrency = 32"))
}

/// Chat lines whose bodies are no other job's.
fn lines(job: &str, count: usize) -> String {
    (0..count)
        .map(|number| chat_line(&format!("{job}-{number}"), &format!("{job} {number}")) + "\n")
        .collect()
}

/// How long a job takes from its drop to its summary.
fn time_of(world: &World, name: &str, job: &str) -> Duration {
    let dropped_at = Instant::now();
    world.drop(&format!("{name}.jsonl"), job);
    eventually("the summary", || world.results(name).has("summary.json").then_some(()));
    dropped_at.elapsed()
}

#[test]
#[ignore = "takes a minute"]
fn a_small_job_beside_a_huge_one_takes_at_most_three_times_its_time() {
    let world = world();
    let daemon = world.start();
    let small = ["alone", "beside", "again"].map(|name| (name, lines(name, 50)));
    let alone = time_of(&world, "alone", &small[0].1);
    let huge = chat_lines(20_000);
    world.drop("huge.jsonl", &huge);
    let sent = world.ledger().requests;
    world.wait_for_requests(sent + 1_000);
    let beside = ["beside", "again"].map(|name| {
        let job = &small.iter().find(|(other, _)| *other == name).unwrap().1;
        time_of(&world, name, job)
    });
    eprintln!("50 lines alone {alone:?}, beside 20,000 lines {beside:?}");
    eventually("the huge one", || world.results("huge").has("summary.json").then_some(()));
    assert_eq!(daemon.stop().code, Some(0));
    let jobs: Vec<(&str, &str)> =
        small.iter().map(|(name, job)| (*name, job.as_str())).chain([("huge", huge.as_str())]).collect();
    let seen = Seen::in_world("50 beside 20,000", &world, &jobs, Some(32));
    seen.print();
    seen.assert_whole(20_150);
    assert!(beside.iter().all(|time| *time <= alone * 3), "{alone:?} alone, {beside:?} beside");
}

#[test]
#[ignore = "takes half a minute"]
fn a_job_of_priority_9_overtakes() {
    let world = world();
    let (plain, urgent) = (lines("plain", 3_000), lines("urgent", 1_000));
    let daemon = world.start();
    world.drop("plain.jsonl", &plain);
    world.wait_for_requests(100);
    world.input("urgent.jsonl", &urgent);
    world.drop("urgent.toml", "kind = \"requests\"\npriority = 9\n[input]\nfile = \"inputs/urgent.jsonl\"\n");
    let began = Instant::now();
    eventually("the urgent one", || world.results("urgent").has("summary.json").then_some(()));
    let urgent_took = began.elapsed();
    let plain_was_done = world.results("plain").has("summary.json");
    eventually("the other", || world.results("plain").has("summary.json").then_some(()));
    eprintln!("1,000 lines of priority 9 {urgent_took:?}, 3,000 dropped before them {:?}", began.elapsed());
    assert_eq!(daemon.stop().code, Some(0));
    let jobs = [("plain", plain.as_str()), ("urgent", urgent.as_str())];
    let seen = Seen::in_world("priority 9", &world, &jobs, Some(32));
    seen.print();
    seen.assert_whole(4_000);
    assert!(!plain_was_done, "the urgent job came last");
}
