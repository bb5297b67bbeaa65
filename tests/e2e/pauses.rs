//! A key that is refused, a quota that is used up: the queue stops before it burns requests, and goes on after.

use batchd::simulate::{Auth, Change, Changes, Settings};
use rustix::process::Signal;

use crate::world::{CONCURRENCY, KEY, Setup, World, chat_lines, sorted_ids};

/// Refusals that a pause may cost: those in flight, and a few tries.
const REFUSED_MAX: u64 = CONCURRENCY as u64 + 5;

/// A server that lets our key in no more.
fn locked_out() -> World {
    let server = Settings { auth: Auth::Key("another key".into()), ..Settings::default() };
    // One attempt: if a refusal used one up, the requests would fail.
    World::with(&Setup { server, max_attempts: 1, ..Setup::default() })
}

fn check_whole(world: &World, job: &str) {
    let results = world.results(job);
    assert_eq!(results.outcome(), ("completed".to_owned(), 50, 50, 0));
    assert_eq!(results.custom_ids(), sorted_ids(50));
    let ledger = world.ledger();
    assert_eq!((ledger.paid, ledger.paid_twice), (50, 0));
    assert!(ledger.requests <= 50 + 2 * REFUSED_MAX, "{ledger:?}");
}

#[test]
fn refused_key_pauses_the_job_until_it_is_right_again_and_resumed() {
    let world = locked_out();
    world.drop("locked.jsonl", chat_lines(50));
    let daemon = world.start();
    let listed = world.wait_for_status("locked", "paused");
    assert!(world.ledger().requests <= REFUSED_MAX, "{:?}", world.ledger());
    assert_eq!(listed["reason"], "auth");
    assert!(listed["message"].as_str().unwrap().contains("Incorrect API key"), "{listed}");
    assert!(daemon.log().contains("401"), "the log names the status: {}", daemon.log());

    world.let_in(KEY);
    let resumed = world.json(&["resume", "locked"]);
    assert_eq!(resumed["name"], "locked");
    world.wait_for_status("locked", "completed");
    assert_eq!(daemon.stop().code, Some(0));
    check_whole(&world, "locked");
}

#[test]
fn until_idle_ends_with_1_and_names_the_job_that_waits_for_a_person() {
    let world = locked_out();
    world.drop("locked.jsonl", chat_lines(50));
    let output = world.run_until_idle();
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("job `locked` is paused (auth: "), "{}", output.stderr);
    assert!(output.stderr.contains("\n  hint: "), "{}", output.stderr);
    assert!(world.ledger().requests <= REFUSED_MAX, "{:?}", world.ledger());
    assert!(!world.results("locked").has("summary.json"));

    // A new start is as good as a `resume`.
    world.let_in(KEY);
    world.run_to_success();
    check_whole(&world, "locked");
}

#[test]
fn used_up_quota_pauses_the_job_and_sighup_lets_it_go_on() {
    let server = Settings { quota_after: Some(20), ..Settings::default() };
    let world = World::with(&Setup { server, max_attempts: 1, ..Setup::default() });
    world.drop("poor.jsonl", chat_lines(50));
    let daemon = world.start();
    let listed = world.wait_for_status("poor", "paused");
    assert_eq!(listed["reason"], "quota");
    assert!(daemon.log().contains("429"), "the log names the status: {}", daemon.log());
    let ledger = world.ledger();
    assert_eq!(ledger.paid, 20);
    assert!(ledger.requests <= 20 + REFUSED_MAX, "{ledger:?}");

    world.change(Changes { quota_after: Change::Clear, ..Changes::default() });
    daemon.signal(Signal::HUP);
    world.wait_for_status("poor", "completed");
    assert_eq!(daemon.stop().code, Some(0));
    check_whole(&world, "poor");
}

#[test]
fn refused_key_stops_its_own_provider_alone() {
    let server = Settings { auth: Auth::Key("another key".into()), ..Settings::default() };
    let scratch = World::with(&Setup { server, ..Setup::default() });
    let more = format!(
        "[[providers]]\nname = \"locked\"\nbase_url = \"{}\"\napi_key_file = \"key\"\n",
        scratch.base_url()
    );
    let world = World::with(&Setup { more, ..Setup::default() });
    let spec = |provider: &str| {
        format!("kind = 'completions'\nmodel = 'm'\nprovider = '{provider}'\n[[requests]]\nprompt = 'x'\n")
    };
    world.drop("a-stuck.toml", spec("locked"));
    world.drop("b-free.toml", spec("sim"));
    let output = world.run_until_idle();
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("`a-stuck`") && !output.stderr.contains("job `b-free` is"), "{output:?}");
    assert_eq!(world.results("b-free").outcome(), ("completed".to_owned(), 1, 1, 0));
}
