//! How a daemon starts, stops, is killed, and goes on.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use batchd::simulate::{Latency, Settings};
use rustix::process::Signal;
use serde_json::Value;

use crate::world::{
    CONCURRENCY, Daemon, Setup, World, bare_command, chat_lines, eventually, names, sorted_ids,
};

/// A job on its way: answers take `latency`, and at least `requests` have been sent.
fn underway(setup: Setup, latency: Duration, requests: u64) -> (World, Daemon) {
    let server = Settings { latency: Latency::fixed(latency), ..setup.server };
    let world = World::with(&Setup { server, ..setup });
    world.drop("job.jsonl", chat_lines(60));
    let daemon = world.start();
    world.wait_for_requests(requests);
    (world, daemon)
}

fn check_whole(world: &World) {
    let results = world.results("job");
    assert_eq!(results.outcome(), ("completed".to_owned(), 60, 60, 0));
    assert_eq!(results.custom_ids(), sorted_ids(60));
}

#[test]
fn sigterm_lets_what_is_in_flight_finish_and_a_restart_repeats_nothing() {
    for signal in [Signal::TERM, Signal::INT] {
        let (world, daemon) = underway(Setup::default(), Duration::from_millis(100), 10);
        daemon.signal(signal);
        let output = daemon.wait();
        assert_eq!(output.code, Some(0), "{output:?}");
        assert!(world.ledger().requests < 60, "it was stopped midway");
        assert!(!world.results("job").has("summary.json"));

        world.answer_after(Duration::ZERO);
        world.run_to_success();
        check_whole(&world);
        let ledger = world.ledger();
        assert_eq!((ledger.requests, ledger.paid_twice), (60, 0), "{signal:?}");
    }
}

#[test]
fn second_sigterm_ends_the_daemon_at_once_and_what_was_in_flight_is_asked_once_more() {
    // Both far beyond what a test waits: only the signal can end it.
    let setup = Setup { grace: "10m", ..Setup::default() };
    let (world, mut daemon) = underway(setup, Duration::from_mins(10), CONCURRENCY.into());
    daemon.signal(Signal::TERM);
    daemon.wait_for_log("stopping: what is in flight may finish");
    let output = daemon.insist();
    assert!(matches!(output.code, Some(0 | 130)), "{output:?}");

    world.answer_after(Duration::ZERO);
    world.run_to_success();
    check_whole(&world);
    assert_eq!(world.ledger().requests, 60 + u64::from(CONCURRENCY));
}

#[test]
fn grace_bounds_the_drain() {
    let setup = Setup { grace: "50ms", ..Setup::default() };
    let (_world, daemon) = underway(setup, Duration::from_mins(10), CONCURRENCY.into());
    let output = daemon.stop();
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.stderr.contains("requests in flight are abandoned"), "{}", output.stderr);
}

#[test]
fn killed_daemon_repeats_no_more_than_what_was_in_flight() {
    for requests in [5, 30] {
        let (world, daemon) = underway(Setup::default(), Duration::from_millis(100), requests);
        let output = daemon.kill();
        assert_eq!(output.code, None, "a signal ended it");
        assert!(world.ledger().requests < 60, "it was killed midway");

        world.answer_after(Duration::ZERO);
        world.run_to_success();
        check_whole(&world);
        let repeated = world.ledger().requests - 60;
        assert!(repeated <= CONCURRENCY.into(), "{repeated} requests were sent twice");
    }
}

#[test]
fn killed_again_and_again_it_still_ends_every_request_in_one_line() {
    let (world, daemon) = underway(Setup::default(), Duration::from_millis(20), 5);
    daemon.kill();
    let mut kills = 1;
    for _ in 0..4 {
        let daemon = world.start();
        let completed = || world.listed("job").and_then(|job| job["counts"]["completed"].as_u64());
        // What was in flight at the last kill is sent first: after so many answers its own is there, and no request
        // is in flight at two kills, which would end it as uncertain.
        let before = completed().unwrap();
        let enough = (before + 2 * u64::from(CONCURRENCY)).min(60);
        eventually("more answers", || completed().filter(|now| *now >= enough));
        daemon.kill();
        kills += 1;
    }
    world.answer_after(Duration::ZERO);
    world.run_to_success();
    check_whole(&world);
    let repeated = world.ledger().requests - 60;
    assert!(repeated <= kills * u64::from(CONCURRENCY), "{repeated} requests were sent again");
}

#[test]
fn daemon_killed_while_it_takes_in_and_publishes_runs_each_spec_once() {
    let world = World::new();
    let job = |number: usize| format!("job-x{number}");
    for number in 0..30 {
        let lines = chat_lines(3).replace("question", &format!("{number}:"));
        world.drop(&format!("{}.jsonl", job(number)), lines);
    }
    let moments = [
        "batchd is running",
        "job accepted",
        "results are published",
        "job accepted",
        "results are published",
    ];
    for moment in moments {
        let mut daemon = world.start();
        daemon.wait_for_log(moment);
        daemon.kill();
    }
    world.run_to_success();
    for number in 0..30 {
        let results = world.results(&job(number));
        assert_eq!(results.outcome(), ("completed".to_owned(), 3, 3, 0), "{number}");
        assert_eq!(results.names(), ["job.jsonl", "output.jsonl", "summary.json"]);
    }
    assert_eq!(names(&world.path("root/results")).len(), 30);
    assert_eq!(names(&world.jobs_dir()), ["inputs", "rejected"]);
    let repeated = world.ledger().requests - 90;
    assert!(repeated <= moments.len() as u64 * u64::from(CONCURRENCY), "{repeated} requests were sent again");
}

#[test]
fn partial_results_can_be_read_while_the_job_runs() {
    let (world, daemon) = underway(Setup::default(), Duration::from_millis(200), 10);
    let results = world.results("job");
    let lines = eventually("partial results", || {
        let text = fs::read_to_string(results.dir.join("output.partial.jsonl")).ok()?;
        let (whole, _) = text.rsplit_once('\n')?;
        Some(whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>())
    });
    assert!(!lines.is_empty());
    // Whoever may read the results may read those that are not all there, although they lie in `state/`, too.
    let rights = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let partial = rights(&results.dir.join("output.partial.jsonl"));
    world.answer_after(Duration::ZERO);
    world.wait_for_status("job", "completed");
    assert!(!results.has("output.partial.jsonl"));
    assert_eq!(partial & 0o444, rights(&results.dir.join("output.jsonl")) & 0o444, "{partial:o}");
    assert_eq!((partial & 0o022, rights(&world.path("root/state"))), (0, 0o700));
    assert_eq!(daemon.stop().code, Some(0));
    check_whole(&world);
}

#[test]
fn second_daemon_of_a_root_ends_with_75_and_names_the_first() {
    let world = World::new();
    let daemon = world.start();
    let output = world.run_until_idle();
    assert_eq!(output.code, Some(75));
    assert!(output.stderr.contains(&format!("(pid {})", daemon.id())), "{}", output.stderr);
    assert!(output.stderr.contains("hint: "), "{}", output.stderr);
    world.drop("job.jsonl", chat_lines(1));
    world.wait_for_status("job", "completed");
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn bad_configuration_ends_with_78_and_names_every_problem() {
    let world = World::new();
    let bad = "rot = \"x\"\n[intake]\nsettle = 5\n[[providers]]\nname = \"a b\"\n[log]\nformat = \"xml\"\n";
    fs::write(world.config(), bad).unwrap();
    let output = world.run_until_idle();
    assert_eq!((output.code, output.stdout.as_str()), (Some(78), ""));
    for line in [1, 3, 4, 5, 7] {
        assert!(output.stderr.contains(&format!("batchd.toml:{line}:")), "line {line}: {}", output.stderr);
    }
    assert!(output.stderr.contains("did you mean `root`?"), "{}", output.stderr);
}

#[test]
fn without_a_configuration_a_key_is_asked_for_with_78() {
    let world = World::new();
    let folder = world.path("empty");
    fs::create_dir(&folder).unwrap();
    let mut command = bare_command();
    command.args(["run", "--until-idle"]).current_dir(&folder).env("HOME", &folder);
    let output = world.run(command);
    assert_eq!(output.code, Some(78));
    assert!(output.stderr.contains("OPENAI_API_KEY"), "{}", output.stderr);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "nothing was made");
}

#[test]
fn root_that_can_not_be_written_ends_with_74_and_names_it() {
    let world = World::new();
    fs::remove_dir_all(world.path("root")).unwrap();
    fs::write(world.path("root"), "a file").unwrap();
    let output = world.run_until_idle();
    assert_eq!((output.code, output.stdout.as_str()), (Some(74), ""));
    assert!(output.stderr.contains(&world.path("root").display().to_string()), "{}", output.stderr);
}

#[test]
fn idle_daemon_with_nothing_to_do_ends_with_0() {
    let world = World::new();
    world.run_to_success();
    assert_eq!(world.ledger().requests, 0);
}
