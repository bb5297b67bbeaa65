//! Schedules with the real binary, on the machine's clock: times of seconds, waited for by what they leave.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::world::{World, eventually, names};

const EVERY_SECOND: &str = "kind = 'completions'\nmodel = 'm'\n[[requests]]\nprompt = 'x'\n\
                            [schedule]\ncron = '*/1 * * * * *'\ntimezone = 'UTC'\n";
/// Never in the life of a test, but in time.
const YEARLY: &str = "name = 'news'\nkind = 'completions'\nmodel = 'm'\n[input]\nfile = 'inputs/rows.txt'\n\
                      [schedule]\ncron = '0 0 1 1 *'\ntimezone = 'Asia/Shanghai'\n";

/// The results of runs that are done, sorted by their times.
fn done(world: &World) -> Vec<String> {
    let results = world.path("root/results");
    let all = if results.exists() { names(&results) } else { Vec::new() };
    all.into_iter().filter(|run| world.results(run).has("summary.json")).collect()
}

#[test]
fn runs_come_at_their_times_over_a_restart_and_a_broken_file_and_none_comes_twice() {
    let world = World::new();
    world.drop("tick.toml", EVERY_SECOND);
    let mut daemon = world.start();
    daemon.wait_for_log("schedule found");
    let run = eventually("a run is done", || done(&world).pop());
    assert!(run.starts_with("tick-2") && run.len() == "tick-20261122T020000".len(), "{run}");
    assert_eq!(world.results(&run).text("job.toml"), EVERY_SECOND);
    assert_eq!(world.results(&run).outcome(), ("completed".to_owned(), 1, 1, 0));
    assert_eq!(world.batchd(&["run", "--until-idle"]).code, Some(75), "one runs already");

    // A version that is broken changes nothing but what is said about it.
    world.drop("tick.toml", EVERY_SECOND.replace("*/1 *", "99 *"));
    let report = eventually("the report on it", || world.report("tick.toml"));
    assert!(report.contains("tick.toml:6:8: error: ") && report.contains("`99`"), "{report}");
    let before = done(&world).len();
    eventually("the last good version goes on", || (done(&world).len() > before).then_some(()));
    assert_eq!(daemon.stop().code, Some(0));

    let before = done(&world).len();
    let daemon = world.start();
    eventually("it goes on after a restart", || (done(&world).len() > before).then_some(()));
    let listed = world.json(&["schedule", "list"]);
    assert!(listed[0]["problem"].as_str().unwrap().contains("`99`"), "{listed}");
    let text = world.batchd(&["schedule", "list"]);
    assert!(text.stderr.contains("tick.toml is broken: its last good version goes on"), "{text:?}");

    world.drop("tick.toml", EVERY_SECOND);
    eventually("the report is withdrawn", || world.report("tick.toml").is_none().then_some(()));
    fs::remove_file(world.jobs_dir().join("tick.toml")).unwrap();
    eventually("it is over", || {
        (world.json(&["schedule", "list"]) == Value::Array(Vec::new())).then_some(())
    });
    let runs = world.list();
    let mut dues: Vec<&str> = runs.iter().map(|run| run["due"].as_str().unwrap()).collect();
    dues.dedup();
    assert_eq!(dues.len(), runs.len(), "{runs:?}");
    assert!(runs.iter().all(|run| run["schedule"] == "tick.toml" && run["name"] != "tick"), "{runs:?}");
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!(world.ledger().requests, runs.len() as u64);
    // Schedules are nothing to wait for.
    world.drop("later.toml", EVERY_SECOND.replace("*/1 * * * * *", "0 0 1 1 *"));
    world.run_to_success();
    assert_eq!(names(&world.jobs_dir()), ["inputs", "later.toml", "rejected"]);
}

#[test]
fn schedules_are_listed_foretold_and_run_by_a_person() {
    let world = World::new();
    fs::write(world.path("news.toml"), YEARLY).unwrap();
    let placed = world.batchd(&["submit", "news.toml"]);
    assert_eq!(placed.code, Some(65), "its data are not there: {placed:?}");
    world.input("rows.txt", "one\ntwo\n");
    let placed = world.batchd(&["submit", "news.toml"]);
    assert!(placed.stderr.contains("news.toml has a schedule: it runs when its time comes"), "{placed:?}");
    let mut daemon = world.start();
    daemon.wait_for_log("schedule found");
    let listed = eventually("it is listed", || world.json(&["schedule", "list"]).get(0).cloned());
    let members = ["name", "file", "kind", "cron", "timezone", "catch_up", "overlap"].map(|key| &listed[key]);
    let expected = ["news", "news.toml", "completions", "0 0 1 1 *", "Asia/Shanghai", "skip", "skip"];
    assert_eq!(members, expected.map(Value::from).each_ref());
    assert!(listed["next"].as_str().unwrap().ends_with("-12-31T16:00:00.000Z"), "{listed}");

    let waited = world.batchd(&["submit", "--wait", "news.toml"]);
    assert_eq!(waited.code, Some(0), "there is no end to wait for: {waited:?}");
    daemon.wait_for_log("news-2.toml");
    let next = world.json(&["schedule", "next", "3"]);
    assert_eq!(next.as_array().unwrap().len(), 3);
    assert!(next[0]["local"].as_str().unwrap().ends_with("0101T000000"), "{next}");
    let text = world.batchd(&["schedule", "next", "1"]);
    assert_eq!(text.stdout.lines().count(), 2, "{text:?}");

    let refused = world.batchd(&["schedule", "run", "news"]);
    assert_eq!(refused.code, Some(1), "two are called that: {refused:?}");
    let job = world.json(&["schedule", "run", "news.toml"]);
    assert!(job["name"].as_str().unwrap().starts_with("news-2") && job["due"] == Value::Null, "{job}");
    let name = job["name"].as_str().unwrap();
    world.wait_for_status(name, "completed");
    let shown = world.batchd(&["show", name]);
    assert!(shown.stdout.contains("run       asked for by a person\n"), "{shown:?}");
    let listed = world.json(&["schedule", "list"]);
    assert_eq!(
        listed.as_array().unwrap().iter().find(|s| s["file"] == "news.toml").unwrap()["last"]["name"],
        name
    );

    fs::remove_file(world.jobs_dir().join("inputs/rows.txt")).unwrap();
    let rejected = world.batchd(&["schedule", "run", "news.toml"]);
    assert_eq!(rejected.code, Some(65), "{rejected:?}");
    assert!(rejected.stderr.contains("news.toml:5:8: error: `file`: there is no file"), "{rejected:?}");
    let unknown = world.batchd(&["schedule", "run", "weekly"]);
    assert_eq!(unknown.code, Some(2), "{unknown:?}");
    let says = "error: no schedule is called `weekly`\n  hint: `batchd schedule list` shows the schedules\n";
    assert_eq!(unknown.stderr, says);
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!(world.batchd(&["schedule", "list"]).code, Some(69));
}

#[test]
fn what_asks_a_run_again_is_called_as_retry_said_and_is_no_run() {
    let world = World::new();
    // The server refuses it.
    world.drop(
        "tick.toml",
        "kind = 'chat'\nmodel = 'm'\n[[requests]]\nmessages = [{ role = 'user', content = 'x' }]\nn = 0\n\
         [schedule]\ncron = '0 0 1 1 *'\ntimezone = 'UTC'\n",
    );
    let mut daemon = world.start();
    daemon.wait_for_log("schedule found");
    let run = world.json(&["schedule", "run", "tick"])["name"].as_str().unwrap().to_owned();
    world.wait_for_status(&run, "completed");
    world.answer_after(Duration::from_hours(1));
    let told = world.batchd(&["retry", &run]);
    let again = format!("{run}-2");
    assert!(told.stderr.contains(&format!("asked again by `{again}`")), "{told:?}");
    let job = eventually("it is accepted", || world.listed(&again));
    assert_eq!((&job["schedule"], &job["due"]), (&Value::Null, &Value::Null), "{job}");
    let told = world.batchd(&["retry", &run]);
    assert!(told.code == Some(1) && told.stderr.contains(&format!("by `{again}`")), "{told:?}");
    let listed = world.json(&["schedule", "list"]);
    assert_eq!(listed[0]["last"]["name"], run, "{listed}");
    // It keeps no run waiting, nor from being made.
    let next = world.json(&["schedule", "run", "tick"]);
    assert_eq!(next["status"], "in_progress", "{next}");
    world.batchd(&["cancel", &again]);
    world.batchd(&["cancel", next["name"].as_str().unwrap()]);
}
