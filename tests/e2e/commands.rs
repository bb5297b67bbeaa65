//! Placing, looking at and steering jobs from the command line.

use std::fs;
use std::time::Duration;

use batchd::simulate::{Latency, Settings};
use serde_json::Value;

use crate::world::{Setup, World, chat_line, chat_lines, custom_ids, eventually, names, sorted_ids};

/// A world whose answers take their time, so that a running job can be seen.
fn slow(latency: Duration) -> World {
    let server = Settings { latency: Latency::fixed(latency), ..Settings::default() };
    World::with(&Setup { server, ..Setup::default() })
}

/// A world whose requests are sent away and wait for at least half an hour.
fn waiting() -> World {
    let server = Settings { faults: "503=1".parse().unwrap(), ..Settings::default() };
    World::with(&Setup { server, base_delay: Duration::from_hours(1), ..Setup::default() })
}

#[test]
fn submit_places_a_file_whole_and_needs_no_daemon() {
    let world = World::new();
    fs::write(world.path("news.jsonl"), chat_lines(2)).unwrap();
    for expected in ["news.jsonl", "news-2.jsonl"] {
        let placed = world.json(&["submit", "news.jsonl"]);
        assert_eq!((&placed[0]["file"], &placed[0]["name"]), (&"news.jsonl".into(), &expected.into()));
    }
    assert_eq!(names(&world.jobs_dir()), ["inputs", "news-2.jsonl", "news.jsonl"]);
    world.run_to_success();
    assert_eq!(names(&world.path("root/results")), ["news", "news-2"]);
    assert!(world.path("news.jsonl").exists(), "a copy was placed");
}

#[test]
fn submitted_toml_takes_its_data_along() {
    let world = World::new();
    fs::create_dir(world.path("data")).unwrap();
    fs::write(world.path("data/rows.csv"), "text\none\ntwo\n").unwrap();
    let spec = "kind = 'completions'\nmodel = 'm'\n[input]\nfile = 'data/*.csv'\nprompt = '{{ text }}'\n";
    fs::write(world.path("nightly.toml"), spec).unwrap();
    let output = world.batchd(&["submit", "nightly.toml"]);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
    assert_eq!(names(&world.jobs_dir().join("nightly")), ["data", "job.toml"]);
    world.run_to_success();
    assert_eq!(custom_ids(&world.results("nightly").output()), ["row-1", "row-2"]);
    assert_eq!(world.results("nightly").text("job.toml"), spec);
}

#[test]
fn submit_that_waits_tells_how_the_job_ended() {
    let world = World::new();
    fs::write(world.path("good.jsonl"), chat_lines(2)).unwrap();
    fs::write(world.path("bad.jsonl"), "{}\n").unwrap();
    assert_eq!(world.batchd(&["submit", "--wait", "good.jsonl"]).code, Some(69), "nobody to wait for");
    let daemon = world.start();

    let waited = world.json(&["submit", "--wait", "good.jsonl"]);
    assert_eq!(waited[0]["job"]["status"], "completed");
    assert!(world.results("good").has("summary.json"), "done means that the results are there");
    let output = world.batchd(&["submit", "--wait", "bad.jsonl"]);
    assert_eq!(output.code, Some(65));
    assert!(output.stderr.contains(&world.report("bad.jsonl").unwrap()), "{output:?}");

    world.fail("500=1");
    let output = world.batchd(&["submit", "--wait", "good.jsonl"]);
    assert_eq!(output.code, Some(1), "some requests failed: {output:?}");
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn jobs_are_listed_and_shown_as_json_and_as_text() {
    let world = World::new();
    let daemon = world.start();
    assert_eq!(world.json(&["list"]), Value::Array(Vec::new()));
    world.drop("news.jsonl", chat_lines(3));
    let listed = world.wait_for_status("news", "completed");
    let members: Vec<&str> = listed.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "accepted_at",
        "counts",
        "finished_at",
        "id",
        "in_flight",
        "kind",
        "leased",
        "name",
        "priority",
        "queues",
        "spec_file",
        "status",
        "waiting",
    ];
    assert_eq!(members, expected);
    assert_eq!((&listed["kind"], &listed["spec_file"]), (&"requests".into(), &"news.jsonl".into()));
    assert_eq!((&listed["counts"]["total"], &listed["counts"]["completed"]), (&3.into(), &3.into()));
    assert_eq!(listed["queues"], serde_json::json!(["sim/m"]));
    assert_eq!(world.json(&["list"])[0], listed);
    assert_eq!(world.json(&["show", "news"]), listed);
    assert_eq!(world.json(&["show", listed["id"].as_str().unwrap()]), listed);

    let text = world.batchd(&["list"]).stdout;
    assert!(text.starts_with("NAME") && text.contains("completed"), "{text}");
    let text = world.batchd(&["show", "news"]).stdout;
    assert!(text.contains("requests  3 of 3 completed\n"), "{text}");
    assert!(text.contains(&world.results("news").dir.display().to_string()), "{text}");
    let output = world.batchd(&["show", "nothing"]);
    assert_eq!(output.code, Some(2));
    assert!(output.stderr.starts_with("error: no job is called `nothing`\n"), "{}", output.stderr);
    let output = world.batchd(&["pause", "news"]);
    assert_eq!(output.code, Some(1));
    assert!(
        output.stderr.starts_with("error: job `news` is completed: it can't be paused\n"),
        "{}",
        output.stderr
    );
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn commands_without_a_daemon_end_with_69() {
    let world = World::new();
    let commands: [&[&str]; 6] =
        [&["list"], &["show", "a"], &["cancel", "a"], &["pause", "a"], &["resume", "a"], &["retry", "a"]];
    for args in commands {
        let output = world.batchd(args);
        assert_eq!((output.code, output.stdout.as_str()), (Some(69), ""), "{args:?}");
        assert!(output.stderr.contains("batchd.sock"), "{args:?}: {output:?}");
    }
}

#[test]
fn paused_job_sends_nothing_until_it_is_resumed() {
    let world = slow(Duration::from_millis(200));
    let daemon = world.start();
    world.drop("long.jsonl", chat_lines(40));
    world.wait_for_requests(4);
    let paused = world.json(&["pause", "long"]);
    assert_eq!((&paused["status"], &paused["reason"]), (&"paused".into(), &"user".into()));
    eventually("what was in flight has ended", || (world.listed("long")?["leased"] == 0).then_some(()));
    let before = world.ledger().requests;
    assert!(before < 40, "it was paused midway");

    // Another job of the same queue runs to its end meanwhile.
    world.drop("short.jsonl", chat_line("a", "y"));
    world.wait_for_status("short", "completed");
    assert_eq!(world.ledger().requests, before + 1);
    world.answer_after(Duration::ZERO);
    assert_eq!(world.json(&["resume", "long"])["status"], "in_progress");
    world.wait_for_status("long", "completed");
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!(world.results("long").outcome(), ("completed".to_owned(), 40, 40, 0));
    assert_eq!((world.ledger().requests, world.ledger().paid_twice), (41, 0));
}

#[test]
fn pause_outlives_the_daemon() {
    let world = slow(Duration::from_millis(200));
    let daemon = world.start();
    world.drop("long.jsonl", chat_lines(40));
    world.wait_for_requests(4);
    world.json(&["pause", "long"]);
    assert_eq!(daemon.stop().code, Some(0));
    let before = world.ledger().requests;

    let output = world.run_until_idle();
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("job `long` is paused (user)"), "{}", output.stderr);
    assert_eq!(world.ledger().requests, before);
}

#[test]
fn cancelled_job_keeps_its_answers_and_records_the_rest_as_cancelled() {
    let world = slow(Duration::from_millis(200));
    let daemon = world.start();
    world.drop("long.jsonl", chat_lines(60));
    world.wait_for_requests(8);
    let cancelled = world.json(&["cancel", "long"]);
    assert!(["cancelling", "cancelled"].contains(&cancelled["status"].as_str().unwrap()), "{cancelled}");
    world.wait_for_status("long", "cancelled");
    let output = world.batchd(&["resume", "long"]);
    assert_eq!(output.code, Some(1), "a cancelled job stays cancelled: {output:?}");
    assert_eq!(daemon.stop().code, Some(0));

    let results = world.results("long");
    let (status, total, completed, failed) = results.outcome();
    assert_eq!((status.as_str(), total), ("cancelled", 60));
    assert_eq!(results.custom_ids(), sorted_ids(60));
    assert_eq!(completed, world.ledger().paid, "what was in flight may finish and is kept");
    assert!(completed >= 4 && failed > 0, "it was cancelled midway: {completed}, {failed}");
    for record in results.errors() {
        assert_eq!((&record["response"], &record["error"]["code"]), (&Value::Null, &"cancelled".into()));
    }
    // Not even after a new start.
    let before = world.ledger().requests;
    assert_eq!(world.run_until_idle().code, Some(0));
    assert_eq!(world.ledger().requests, before);
}

#[test]
fn cancelled_job_waits_for_what_is_in_flight_no_longer_than_the_grace() {
    let server = Settings { latency: Latency::fixed(Duration::from_mins(10)), ..Settings::default() };
    let world = World::with(&Setup { server, grace: "50ms", ..Setup::default() });
    let daemon = world.start();
    world.drop("stuck.jsonl", chat_lines(10));
    world.wait_for_requests(4);
    world.json(&["cancel", "stuck"]);
    world.wait_for_status("stuck", "cancelled");
    let results = world.results("stuck");
    assert_eq!(results.outcome(), ("cancelled".to_owned(), 10, 0, 10));
    assert_eq!(results.custom_ids(), sorted_ids(10));
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!(world.ledger().requests, 4);
}

#[test]
fn retry_asks_again_at_once_what_waits() {
    let world = waiting();
    let daemon = world.start();
    world.drop("job.jsonl", chat_lines(5));
    eventually("all of them wait", || (world.listed("job")?["waiting"] == 5).then_some(()));
    world.fail("");
    assert_eq!(world.json(&["retry", "job"])["status"], "in_progress");
    world.wait_for_status("job", "completed");
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!(world.results("job").outcome(), ("completed".to_owned(), 5, 5, 0));
    assert_eq!(world.ledger().requests, 10);
}

#[test]
fn waiting_survives_a_restart() {
    let world = waiting();
    let daemon = world.start();
    world.drop("job.jsonl", chat_lines(5));
    eventually("all of them wait", || (world.listed("job")?["waiting"] == 5).then_some(()));
    assert_eq!(daemon.stop().code, Some(0));

    let daemon = world.start();
    assert_eq!(world.listed("job").unwrap()["waiting"], 5, "they still wait, and were not asked again");
    assert_eq!(world.ledger().requests, 5);
    world.fail("");
    world.json(&["retry", "job"]);
    world.wait_for_status("job", "completed");
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn job_past_its_deadline_expires_with_what_it_has() {
    let world = waiting();
    world.fail("503=0.5");
    world.input("lines.jsonl", chat_lines(20));
    world.drop("job.toml", "kind = 'requests'\ndeadline = '400ms'\n[input]\nfile = 'inputs/lines.jsonl'\n");
    assert_eq!(world.run_until_idle().code, Some(1));
    let results = world.results("job");
    let (status, total, completed, failed) = results.outcome();
    assert_eq!((status.as_str(), total, completed + failed), ("expired", 20, 20));
    assert_eq!(results.custom_ids(), sorted_ids(20));
    assert_eq!(completed, world.ledger().paid);
    assert!(completed > 0 && failed > 0, "half of them, by the dice: {completed}, {failed}");
    assert!(results.errors().iter().all(|record| record["error"]["code"] == "expired"));
}

#[test]
fn control_socket_is_its_owners_alone() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let world = World::new();
    let daemon = world.start();
    let socket = world.path("root/batchd.sock");
    let metadata = fs::metadata(&socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(world.path("root/state")).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(daemon.stop().code, Some(0));
}
