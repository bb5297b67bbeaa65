//! Jobs beside each other, and jobs that come to their deadline.

use std::time::Duration;

use batchd::simulate::{Auth, Entry, Latency, Settings};
use tokio::time::Instant;

use crate::world::{Setup, World, eventually};

const SMALL: usize = 50;

/// A spec of `kind = "requests"` takes its lines out of `inputs/`; `user` tells in the ledger whose each is.
fn drop_job(world: &World, name: &str, lines: usize, settings: &str) {
    let line = |n: usize| {
        let body =
            format!(r#"{{"model":"m","user":"{name}","messages":[{{"role":"user","content":"{n}"}}]}}"#);
        let head = format!(r#""custom_id":"r-{n}","method":"POST","url":"/v1/chat/completions""#);
        format!("{{{head},\"body\":{body}}}\n")
    };
    world.input(&format!("{name}.jsonl"), (0..lines).map(line).collect::<String>());
    let spec = format!("kind = 'requests'\n{settings}\n[input]\nfile = 'inputs/{name}.jsonl'\n");
    world.drop(&format!("{name}.toml"), spec);
}

fn world(slots: u32, millis: u64) -> World {
    let latency = Latency::fixed(Duration::from_millis(millis));
    World::with(&Setup {
        server: Settings { latency, ..Settings::default() },
        concurrency: slots,
        ..Setup::default()
    })
}

fn until_completed(world: &World, name: &str) {
    let results = world.results(name);
    eventually(&format!("the summary of {name}"), || results.has("summary.json").then_some(()));
    assert_eq!(results.outcome(), ("completed".to_owned(), SMALL as u64, SMALL as u64, 0));
}

/// How many requests of all jobs came from a job's first to its last.
fn span(entries: &[Entry], name: &str) -> usize {
    let is_ours = |entry: &Entry| entry.custom_id.as_deref() == Some(name);
    let first = entries.iter().position(is_ours).unwrap();
    let last = entries.iter().rposition(is_ours).unwrap();
    last + 1 - first
}

#[test]
fn a_small_job_beside_a_large_one_has_its_share_at_once_and_an_urgent_one_overtakes() {
    let world = world(8, 10);
    drop_job(&world, "large", 4_000, "");
    let daemon = world.start();
    world.wait_for_requests(100);
    drop_job(&world, "small", SMALL, "");
    until_completed(&world, "small");
    drop_job(&world, "urgent", SMALL, "priority = 9");
    until_completed(&world, "urgent");
    let listed = world.listed("large").unwrap();
    assert_eq!(listed["status"], "in_progress");

    let entries = world.engine().entries();
    // Those are in the order of arrival, which is nearly that in which they were sent.
    let [small, urgent] = ["small", "urgent"].map(|name| span(&entries, name));
    assert!((SMALL * 3 / 2..=SMALL * 2 + 24).contains(&small), "every second request: {small}");
    assert!(urgent <= SMALL + SMALL / 8 + 8, "16 of 17 requests: {urgent}");
    drop(daemon);
}

/// From the drop of 50 lines to their summary.
fn time_of_small(world: &World) -> Duration {
    let dropped_at = Instant::now();
    drop_job(world, "small", SMALL, "");
    until_completed(world, "small");
    dropped_at.elapsed()
}

#[test]
#[ignore = "measures time"]
fn fifty_lines_beside_twenty_thousand_take_less_than_three_times_their_time_alone() {
    for slots in [32, 64] {
        let [alone, beside] = [false, true].map(|has_large| {
            let world = world(slots, 200);
            let daemon = world.start();
            if has_large {
                drop_job(&world, "large", 20_000, "");
                world.wait_for_requests(500);
            }
            let took = time_of_small(&world);
            let entries = world.engine().entries();
            let of_small: Vec<u64> = entries
                .iter()
                .filter(|entry| entry.custom_id.as_deref() == Some("small"))
                .map(|entry| entry.at_us)
                .collect();
            let sending =
                Duration::from_micros(of_small[SMALL - 1] - of_small[0]) + Duration::from_millis(200);
            drop(daemon);
            (took, sending)
        });
        eprintln!(
            "{slots} slots: drop to summary {:?} alone, {:?} beside; first request to last answer {:?} and {:?}",
            alone.0, beside.0, alone.1, beside.1
        );
        assert!(beside.0 <= alone.0 * 3 && beside.1 <= alone.1 * 3);
    }
}

/// Whatever keeps a job from being done in time, each of its requests ends as expired, and so does the job.
fn check_expired(world: &World, name: &str) {
    let results = world.results(name);
    eventually(&format!("the summary of {name}"), || results.has("summary.json").then_some(()));
    assert_eq!(results.outcome(), ("expired".to_owned(), 3, 0, 3));
    let errors = results.errors();
    assert_eq!(errors.len(), 3);
    assert!(errors.iter().all(|record| record["error"]["code"] == "expired"), "{errors:?}");
    assert_eq!(world.ledger().paid, 0);
}

#[test]
fn a_job_whose_requests_wait_for_their_retry_expires_at_its_deadline() {
    let world = World::with(&Setup { base_delay: Duration::from_mins(9), ..Setup::default() });
    world.fail("500=1");
    drop_job(&world, "late", 3, "deadline = '1s'");
    let daemon = world.start();
    check_expired(&world, "late");
    assert_eq!(world.ledger().requests, 3, "they were asked once each, and wait");
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn a_job_behind_a_closed_gate_expires_at_its_deadline() {
    let server = Settings { auth: Auth::Key("another key".into()), ..Settings::default() };
    let world = World::with(&Setup { server, ..Setup::default() });
    drop_job(&world, "locked", 3, "deadline = '1s'");
    let daemon = world.start();
    check_expired(&world, "locked");
    assert_eq!(daemon.stop().code, Some(0));
}
