//! The queue is built anew from the job folders: by `batchd rebuild`, and by itself.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use batchd::simulate::{Latency, Settings};
use serde_json::Value;

use crate::world::{CONCURRENCY, Daemon, Setup, World, chat_lines, names, sorted_ids};

/// A job of 60 requests on its way, some of them answered.
fn underway() -> (World, Daemon) {
    let server = Settings { latency: Latency::fixed(Duration::from_millis(50)), ..Settings::default() };
    let world = World::with(&Setup { server, ..Setup::default() });
    world.drop("job.jsonl", chat_lines(60));
    let daemon = world.start();
    world.wait_for_requests(20);
    (world, daemon)
}

/// Runs to the end: every request in one line, and only what was in flight at the kill sent again.
fn finish(world: &World) {
    world.answer_after(Duration::ZERO);
    world.run_to_success();
    let results = world.results("job");
    assert_eq!(results.outcome(), ("completed".to_owned(), 60, 60, 0));
    assert_eq!(results.custom_ids(), sorted_ids(60));
    let repeated = world.ledger().requests - 60;
    assert!(repeated <= CONCURRENCY.into(), "{repeated} requests were sent twice");
}

#[test]
fn rebuild_brings_every_job_back_and_pays_for_nothing_again() {
    let (world, daemon) = underway();
    let refused = world.batchd(&["rebuild"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(75), ""));
    assert!(refused.stderr.contains(&format!("another daemon (pid {}) holds", daemon.id())), "{refused:?}");
    daemon.kill();

    let sled = world.path("root/state/sled/db");
    fs::write(&sled, b"no database").unwrap();
    let rebuilt = world.json(&["rebuild"]);
    let job = &rebuilt[0];
    assert_eq!((&job["name"], &job["status"]), (&"job".into(), &"in_progress".into()));
    assert_eq!((&job["leased"], &job["counts"]["total"]), (&0.into(), &60.into()));
    let completed = job["counts"]["completed"].as_u64().unwrap();
    assert!((12..60).contains(&completed), "what was answered came back: {job}");
    let uncertain = job["counts"]["maybe_paid_twice"].as_u64().unwrap();
    assert!(uncertain <= CONCURRENCY.into(), "{job}");
    assert_eq!(world.json(&["rebuild"]), rebuilt, "as often as one likes");
    assert_eq!(names(&world.path("root/state/corrupt")), ["sled"], "of the old ones the last is kept");

    let table = world.batchd(&["rebuild"]);
    assert_eq!(table.code, Some(0));
    let columns = |line: &str| {
        line.split("  ").filter(|cell| !cell.is_empty()).map(str::trim).map(str::to_owned).collect::<Vec<_>>()
    };
    let lines: Vec<Vec<String>> = table.stdout.lines().map(columns).collect();
    assert_eq!(lines[0], ["NAME", "STATUS", "COMPLETED", "FAILED", "TOTAL", "MAYBE PAID TWICE"]);
    assert_eq!(lines[1], ["job", "in_progress", &completed.to_string(), "0", "60", &uncertain.to_string()]);
    finish(&world);
}

#[test]
fn a_root_without_jobs_has_nothing_to_rebuild() {
    let world = World::new();
    let output = world.batchd(&["rebuild"]);
    assert_eq!((output.code, output.stdout.as_str()), (Some(0), ""));
    assert!(output.stderr.contains("no jobs below"), "{output:?}");
    assert_eq!(world.json(&["rebuild"]), Value::Array(Vec::new()));
    assert!(!world.path("root/state").exists(), "nothing is made");
}

/// The folder of the one job below `state/jobs`.
fn job_folder(world: &World) -> PathBuf {
    fs::read_dir(world.path("root/state/jobs")).unwrap().next().unwrap().unwrap().path()
}

#[test]
fn a_job_whose_state_is_lost_is_shown_and_never_begun_anew() {
    let (world, daemon) = underway();
    daemon.kill();
    let state = job_folder(&world).join("state.json");
    let sound = fs::read(&state).unwrap();
    let before = world.ledger().requests;
    for lost in [Some(vec![0; 600]), None] {
        match lost {
            Some(bytes) => fs::write(&state, bytes).unwrap(),
            None => fs::remove_file(&state).unwrap(),
        }
        let output = world.run_until_idle();
        assert_eq!(output.code, Some(1), "{output:?}");
        assert!(output.stderr.contains("is held (state.json "), "{output:?}");
    }
    let daemon = world.start();
    let listed = &world.json(&["list"])[0];
    let id = listed["id"].as_str().unwrap();
    assert_eq!((&listed["status"], &listed["counts"]["total"]), (&"held".into(), &60.into()));
    assert!(listed["counts"]["completed"].as_u64().unwrap() >= 12, "{listed}");
    let shown = world.batchd(&["show", id]).stdout;
    assert!(shown.contains("state.json is missing") && shown.contains(id), "{shown}");
    assert_eq!(world.batchd(&["retry", id]).code, Some(1));
    assert_eq!(world.batchd(&["cancel", id]).code, Some(1));
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!(world.ledger().requests, before, "nothing was sent");

    fs::write(&state, sound).unwrap();
    finish(&world);
}

#[test]
fn jobs_that_wait_for_a_person_are_told_by_the_exit_code() {
    let (world, daemon) = underway();
    daemon.kill();
    let journal = job_folder(&world).join("results.log");
    let mut bytes = fs::read(&journal).unwrap();
    bytes[20] ^= 1;
    fs::write(&journal, bytes).unwrap();
    let output = world.batchd(&["rebuild"]);
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(
        output.stdout.contains("held (the journal results.log is damaged at byte 0; stop batchd"),
        "{output:?}"
    );
}
