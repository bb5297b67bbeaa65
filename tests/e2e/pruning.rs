//! What is kept of a job goes a while after its end; its results stay, and whoever needs it finds what it needs.

use std::fs;

use batchd::simulate::Settings;
use serde_json::Value;

use crate::world::{Setup, World, chat_line, chat_lines, eventually, names, sorted_ids};

const AT_ONCE: &str = "min_free = \"0B\"\nkeep_state = \"0s\"";

/// A job of two requests; one is refused by the server.
fn failing() -> String {
    let refused = chat_line("refused", "no").replace(r#""model":"m""#, r#""model":"m","n":0"#);
    format!("{refused}\n{}\n", chat_line("answered", "yes"))
}

fn wait_until_nothing_is_kept(world: &World) {
    eventually("nothing is listed", || world.list().is_empty().then_some(()));
    eventually("nothing is kept", || names(&world.path("root/state/jobs")).is_empty().then_some(()));
}

#[test]
fn ended_jobs_go_and_their_results_stay() {
    let world = World::with(&Setup { storage: AT_ONCE, ..Setup::default() });
    let daemon = world.start();
    world.drop("job.jsonl", chat_lines(20));
    eventually("its results", || world.results("job").has("summary.json").then_some(()));
    let before = world.results("job").names();
    wait_until_nothing_is_kept(&world);
    let results = world.results("job");
    assert_eq!(results.outcome(), ("completed".to_owned(), 20, 20, 0));
    assert_eq!((results.custom_ids(), results.names()), (sorted_ids(20), before));

    for command in ["show", "retry", "cancel"] {
        let unknown = world.batchd(&[command, "job"]);
        assert_eq!(unknown.code, Some(2), "{unknown:?}");
        assert!(unknown.stderr.contains("no job is called `job`\n  hint: "), "{unknown:?}");
        assert!(unknown.stderr.contains("only the results are kept"), "{unknown:?}");
    }
    // Nothing is overwritten, whoever remembers it.
    world.drop("job.jsonl", chat_lines(3));
    eventually("the next one's results", || world.results("job-2").has("summary.json").then_some(()));
    assert_eq!(world.results("job").outcome().1, 20);
    wait_until_nothing_is_kept(&world);
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!(world.json(&["rebuild"]), serde_json::json!([]));
    assert_eq!(world.ledger().requests, 23);
}

#[test]
fn failed_requests_can_be_asked_again_as_long_as_the_state_is_kept_and_until_idle_tells_of_them() {
    let world = World::with(&Setup { storage: AT_ONCE, ..Setup::default() });
    world.drop("job.jsonl", failing());
    let output = world.run_until_idle();
    assert_eq!(output.code, Some(1), "what failed is told, and so is kept until the next start: {output:?}");
    assert_eq!(names(&world.path("root/state/jobs")).len(), 1);
    let output = world.run_until_idle();
    assert_eq!(output.code, Some(0), "{output:?}");
    let daemon = world.start();
    wait_until_nothing_is_kept(&world);
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn models_of_fine_tunes_are_found_before_and_after_their_state_has_gone() {
    let server = Settings { models: vec!["base".to_owned()], strict_models: true, ..Settings::default() };
    let world = World::with(&Setup { server, storage: AT_ONCE, ..Setup::default() });
    let example = |n| {
        format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"{n}?\"}},{{\"role\":\"assistant\",\"content\":\"{n}.\"}}]}}\n"
        )
    };
    world.input("chat.jsonl", (0..10).map(example).collect::<String>());
    let user =
        "kind = 'chat'\nmodel = 'job:tune'\n[[requests]]\nmessages = [{ role = 'user', content = 'one' }]\n";
    let daemon = world.start();
    // One that waits for it, and one that comes when it is gone.
    world.drop("before.toml", user);
    world.drop(
        "tune.toml",
        "kind = 'fine_tune'\nmodel = 'base'\n[fine_tune]\ntraining_file = 'inputs/chat.jsonl'\n",
    );
    eventually("the first user's results", || world.results("before").has("summary.json").then_some(()));
    wait_until_nothing_is_kept(&world);
    world.drop("after.toml", user);
    eventually("the second user's results", || world.results("after").has("summary.json").then_some(()));
    let model = world.results("tune").summary()["fine_tuned_model"].clone();
    assert!(model.is_string(), "{model}");
    for user in ["before", "after"] {
        assert_eq!(world.results(user).output()[0]["response"]["body"]["model"], model, "{user}");
    }
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn the_last_run_of_a_schedule_goes_when_that_has_gone() {
    let world = World::with(&Setup { storage: AT_ONCE, ..Setup::default() });
    let nightly = "kind = 'chat'\nmodel = 'm'\n[[requests]]\nmessages = [{ role = 'user', content = 'one' }]\n\
                   [schedule]\ncron = '0 0 1 1 *'\n";
    world.drop("yearly.toml", nightly);
    let daemon = world.start();
    eventually("the schedule", || {
        (world.batchd(&["schedule", "run", "yearly"]).code == Some(0)).then_some(())
    });
    let is_published = |job: Value| world.results(job["name"].as_str().unwrap()).has("summary.json");
    eventually("its results", || world.list().into_iter().any(is_published).then_some(()));
    // Others have gone since.
    world.drop("job.jsonl", chat_lines(2));
    eventually("its results", || world.results("job").has("summary.json").then_some(()));
    eventually("all but the run have gone", || (world.list().len() == 1).then_some(()));
    fs::remove_file(world.jobs_dir().join("yearly.toml")).unwrap();
    wait_until_nothing_is_kept(&world);
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn what_a_kill_left_of_a_removal_goes_at_the_next_start() {
    let world = World::new();
    world.drop("job.jsonl", chat_lines(3));
    world.run_to_success();
    let jobs = world.path("root/state/jobs");
    let [id] = names(&jobs).try_into().unwrap();
    fs::rename(jobs.join(&id), jobs.join(format!("{id}.removed"))).unwrap();
    fs::remove_file(jobs.join(format!("{id}.removed/state.json"))).unwrap();
    assert_eq!(world.json(&["rebuild"]), serde_json::json!([]));
    assert!(names(&jobs).is_empty());
}
