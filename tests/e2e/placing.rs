//! Under which name a job runs, and where its requests go.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::world::{Setup, World, bare_command, chat_line, chat_lines, custom_ids, eventually, names};

#[test]
fn same_content_dropped_twice_runs_twice_and_overwrites_nothing() {
    let world = World::new();
    let daemon = world.start();
    for job in ["job", "job-2", "job-3"] {
        world.drop("job.jsonl", chat_lines(2));
        world.wait_for_status(job, "completed");
    }
    let output = daemon.stop();
    assert_eq!(names(&world.path("root/results")), ["job", "job-2", "job-3"]);
    assert_eq!(world.ledger().requests, 6);
    assert_eq!(output.stderr.matches("the same content was dropped before").count(), 2, "{}", output.stderr);
}

#[test]
fn name_of_the_spec_wins_over_the_name_of_its_file() {
    let world = World::new();
    let spec = "kind = 'completions'\nname = 'Nightly news'\nmodel = 'm'\n[[requests]]\nprompt = 'x'\n";
    world.drop("a.toml", spec);
    world.drop("b.toml", spec);
    world.drop("c.chat.jsonl", chat_line("a", "x"));
    world.run_to_success();
    assert_eq!(names(&world.path("root/results")), ["Nightly news", "Nightly news-2", "c"]);
}

#[test]
fn spec_chooses_its_provider_and_the_first_is_the_default() {
    // The other provider is the binary's own stand-in.
    let scratch = World::new();
    let ledger = scratch.path("ledger.jsonl");
    let mut simulate = bare_command();
    simulate.args(["simulate", "--listen", "127.0.0.1:0", "--json", "--ledger"]).arg(&ledger);
    let other = scratch.spawn(simulate);
    let base_url = eventually("the stand-in listens", || {
        let printed: Value = serde_json::from_str(&other.printed()).ok()?;
        printed["base_url"].as_str().map(str::to_owned)
    });

    let more = format!("[[providers]]\nname = \"other\"\nbase_url = \"{base_url}\"\n");
    let world = World::with(&Setup { more, ..Setup::default() });
    let spec = |provider: &str| {
        format!("kind = 'completions'\nmodel = 'm'\n{provider}\n[[requests]]\nprompt = 'x'\nuser = 'mine'\n")
    };
    world.drop("there.toml", spec("provider = 'other'"));
    world.drop("here.toml", spec(""));
    world.run_to_success();
    assert_eq!(world.ledger().requests, 1);
    let asked = fs::read_to_string(&ledger).unwrap();
    let asked: Vec<Value> = asked.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!((&asked[0]["custom_id"], &asked[0]["outcome"]), (&"mine".into(), &"ok".into()));
    for job in ["here", "there"] {
        assert_eq!(custom_ids(&world.results(job).output()), ["request-1"]);
    }
}

#[test]
fn results_folder_that_somebody_else_made_is_left_as_it_is() {
    let world = World::new();
    let theirs = world.results("job");
    fs::create_dir_all(&theirs.dir).unwrap();
    fs::write(theirs.dir.join("summary.json"), "theirs").unwrap();
    world.drop("job.jsonl", chat_lines(2));
    world.run_to_success();
    assert_eq!(
        (theirs.names(), theirs.text("summary.json")),
        (vec!["summary.json".to_owned()], "theirs".to_owned())
    );
    assert_eq!(world.results("job-2").outcome(), ("completed".to_owned(), 2, 2, 0));
}

#[test]
fn job_whose_provider_has_left_the_config_waits_and_is_named() {
    let more = "[[providers]]\nname = \"other\"\nbase_url = \"http://127.0.0.1:9/v1\"\n".to_owned();
    // Nobody listens there: the request waits for its next attempt.
    let world = World::with(&Setup { more, base_delay: Duration::from_hours(1), ..Setup::default() });
    world.drop(
        "job.toml",
        "kind = 'completions'\nmodel = 'm'\nprovider = 'other'\n[[requests]]\nprompt = 'x'\n",
    );
    let daemon = world.start();
    eventually("it waits", || (world.listed("job")?["waiting"] == 1).then_some(()));
    assert_eq!(daemon.stop().code, Some(0));
    let config = fs::read_to_string(world.config()).unwrap();
    fs::write(world.config(), config.replace("name = \"other\"", "name = \"renamed\"")).unwrap();
    let daemon = world.start();
    let listed = world.wait_for_status("job", "paused");
    assert!(listed["message"].as_str().unwrap().contains("`other` is not in the config"), "{listed}");
    assert_eq!(daemon.stop().code, Some(0));
    let output = world.run_until_idle();
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("job `job` is paused"), "{}", output.stderr);
}
