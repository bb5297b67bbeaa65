//! A bug of batchd's own: it takes one request with it, or ends the daemon in order.

use std::time::Duration;

use batchd::simulate::{Latency, Settings};

use crate::world::{CONCURRENCY, Output, Setup, World, chat_lines, sorted_ids};

/// Runs until idle, with a panic at a fault point.
fn run_with(world: &World, point: &str) -> Output {
    let mut command = world.command(&["run", "--until-idle"]);
    command.env("BATCHD_FAULT_POINT", point);
    world.run(command)
}

#[test]
fn attempt_that_panics_fails_its_request_alone_and_names_it() {
    let world = World::new();
    world.drop("job.jsonl", chat_lines(20));
    let output = run_with(&world, "dispatch-calling:5:panic");
    assert_eq!(output.code, Some(1), "{output:?}");
    let results = world.results("job");
    assert_eq!(results.outcome(), ("completed".to_owned(), 20, 19, 1));
    assert_eq!(results.custom_ids(), sorted_ids(20));
    let failed = &results.errors()[0];
    assert_eq!(failed["error"]["code"], "internal_error");
    assert!(failed["error"]["message"].as_str().unwrap().contains("please report it"), "{failed}");
    let custom_id = failed["custom_id"].as_str().unwrap();
    let printed = |line: &&str| line.is_empty() || line.starts_with("thread ");
    assert_eq!(output.stderr.lines().find(printed), None, "{}", output.stderr);
    let hook = output.stderr.lines().find(|line| line.contains("batchd panicked")).unwrap();
    for part in ["src/fault.rs:", "the fault point `dispatch-calling` was reached"] {
        assert!(hook.contains(part), "{part}: {hook}");
    }
    let named = output.stderr.lines().find(|line| line.contains("an attempt panicked")).unwrap();
    assert!(named.contains(&format!("\"{custom_id}\"")), "{named}");
    assert_eq!(world.ledger().requests, 19, "the one that panicked was not sent again");
}

#[test]
fn panic_in_a_worker_drains_the_daemon_and_ends_it_with_70() {
    let latency = Latency::fixed(Duration::from_millis(100));
    // The task, and what its panic leaves in flight.
    for (point, task) in [
        ("dispatch-sending:9:panic", "the dispatcher of sim/m"),
        ("dispatch-answered:6:panic", "an attempt"),
        ("output-linked:panic", "the output worker"),
        ("intake-putting:2:panic", "the intake worker"),
    ] {
        let world =
            World::with(&Setup { server: Settings { latency, ..Settings::default() }, ..Setup::default() });
        world.drop("job.jsonl", chat_lines(30));
        world.drop("second.jsonl", chat_lines(1).replace("question", "second"));
        let output = run_with(&world, point);
        assert_eq!(output.code, Some(70), "{point}: {output:?}");
        let error = output.stderr.lines().find(|line| line.starts_with("error: ")).unwrap();
        assert!(error.contains(task) && error.contains("panicked"), "{point}: {error}");

        world.answer_after(Duration::ZERO);
        world.run_to_success();
        assert_eq!(world.results("job").outcome(), ("completed".to_owned(), 30, 30, 0), "{point}");
        let again = world.ledger().paid_again;
        let lost = u64::from(point.starts_with("dispatch-answered"));
        assert!(again <= lost, "{point}: {again} were paid for again; {CONCURRENCY} were in flight");
    }
}
