//! Fine-tunes from their data to their model in use, over both interfaces.

use std::fs;
use std::path::Path;
use std::time::Duration;

use batchd::simulate::Settings;
use serde_json::Value;

use crate::world::{Setup, World, eventually};

/// The least that a training file must have.
const EXAMPLES: usize = 10;

/// A world whose server makes a model in `time`, and knows no others but a few bases.
fn world(time: Duration) -> World {
    let server = Settings {
        fine_tune_time: time,
        file_processing_time: Duration::from_millis(20),
        models: vec!["gpt-4.1-mini".to_owned(), "curie".to_owned()],
        strict_models: true,
        ..Settings::default()
    };
    let world = World::with(&Setup { server, ..Setup::default() });
    let chat = |n| {
        format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"What is {n}?\"}},\
             {{\"role\":\"assistant\",\"content\":\"It is {n}.\"}}]}}\n"
        )
    };
    let pair = |n| format!("{{\"prompt\":\"What is {n}? ->\",\"completion\":\" It is {n}\\n\"}}\n");
    world.input("chat.jsonl", (0..EXAMPLES).map(chat).collect::<String>());
    world.input("pairs.jsonl", (0..EXAMPLES).map(pair).collect::<String>());
    world
}

fn modern(more: &str) -> String {
    format!(
        "kind = \"fine_tune\"\nmodel = \"gpt-4.1-mini\"\n[fine_tune]\ntraining_file = \"inputs/chat.jsonl\"\n{more}\n"
    )
}

/// A chat job of two requests with the model of a fine-tune.
fn user_of(fine_tune: &str) -> String {
    format!(
        "kind = \"chat\"\nmodel = \"job:{fine_tune}\"\n\
         [[requests]]\nmessages = [{{ role = \"user\", content = \"one\" }}]\n\
         [[requests]]\nmessages = [{{ role = \"user\", content = \"two\" }}]\n"
    )
}

fn effects(world: &World, what: &str) -> u64 {
    world.ledger().effects.get(what).copied().unwrap_or_default()
}

fn jsonl(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn both_interfaces_make_models_that_other_jobs_use() {
    let world = world(Duration::from_millis(300));
    // All at the same moment, the users first.
    world.drop("ask.toml", user_of("support"));
    world.drop(
        "complete.toml",
        "kind = \"completions\"\nmodel = \"job:old\"\n[[requests]]\nprompt = \"one ->\"\n",
    );
    world.drop("support.toml", modern("suffix = \"support\"\ndelete_uploads = true"));
    let legacy =
        "kind = \"fine_tune\"\n[fine_tune]\napi = \"legacy\"\ntraining_file = \"inputs/pairs.jsonl\"\n";
    world.drop("old.toml", legacy);
    world.run_to_success();

    let support = world.results("support");
    let summary = support.summary();
    let model = summary["fine_tuned_model"].as_str().unwrap();
    assert!(model.starts_with("ft:gpt-4.1-mini") && model.contains("support"), "{summary}");
    assert!(summary["trained_tokens"].as_u64().unwrap() > 0, "{summary}");
    let untold = ["reason", "missing_files", "kept_uploads"];
    assert!(untold.iter().all(|key| summary.get(key).is_none()), "{summary}");
    assert_eq!((summary["kind"].as_str(), summary["tokens"]["total"].as_u64()), (Some("fine_tune"), Some(0)));
    assert_eq!(support.outcome(), ("completed".to_owned(), 1, 1, 0));
    let record = &support.output()[0];
    assert_eq!(record["response"]["body"]["fine_tuned_model"], model);
    assert_eq!(record["response"]["status_code"], 200);

    for (job, api) in [("support", "modern"), ("old", "legacy")] {
        let results = world.results(job);
        let events = jsonl(&results.text("events.jsonl"));
        let times: Vec<u64> = events.iter().map(|event| event["created_at"].as_u64().unwrap()).collect();
        assert!(events.len() > 2 && times.is_sorted(), "{api}: {events:?}");
        let files: Vec<String> = results.summary()["files"]
            .as_array()
            .unwrap()
            .iter()
            .map(|name| name.as_str().unwrap().to_owned())
            .collect();
        assert!(files.iter().all(|name| results.has(name)), "{api}: {files:?}");
        let metrics = files
            .iter()
            .find(|name| Path::new(name).extension().is_some_and(|ending| ending == "csv"))
            .unwrap();
        assert!(results.text(metrics).starts_with("step,"), "{api}: {}", results.text(metrics));
    }
    assert_eq!((effects(&world, "upload"), effects(&world, "create")), (2, 2));
    assert_eq!(effects(&world, "delete"), 1, "the upload of the one that asked for it");

    for (user, maker) in [("ask", "support"), ("complete", "old")] {
        let model = world.results(maker).summary()["fine_tuned_model"].clone();
        let answers = world.results(user).output();
        assert!(
            answers.iter().all(|answer| answer["response"]["body"]["model"] == model),
            "{user}: {answers:?}"
        );
        assert!(!world.results(user).has("errors.jsonl"));
    }
}

#[test]
fn status_that_nobody_knows_is_watched_on_and_told_once() {
    // Long enough that it is seen at several polls.
    let world = world(Duration::from_secs(6));
    world.drop("odd.toml", modern("suffix = \"sim-odd\""));
    let run = world.run_until_idle();
    assert_eq!(run.code, Some(0));
    assert_eq!(world.results("odd").outcome(), ("completed".to_owned(), 1, 1, 0));
    let told = "a fine-tune has a status that batchd does not know";
    assert_eq!(run.stderr.matches(told).count(), 1, "{}", run.stderr);
}

/// Each spec waits for one whose name comes after its own, and the last has to be found first.
#[test]
fn fine_tunes_of_fine_tunes_are_made_in_their_order_whatever_the_files_are_called() {
    let world = world(Duration::from_millis(100));
    world.drop("a.toml", user_of("b"));
    world.drop("b.toml", modern("").replace("gpt-4.1-mini", "job:c"));
    world.drop("c.toml", modern("").replace("gpt-4.1-mini", "job:d"));
    world.drop("d.toml", modern(""));
    world.run_to_success();
    let model = |job: &str| world.results(job).summary()["fine_tuned_model"].clone();
    for (job, base) in [("c", model("d")), ("b", model("c"))] {
        assert_eq!(world.results(job).output()[0]["response"]["body"]["model"], base, "{job}");
    }
    assert_eq!(world.results("a").output()[1]["response"]["body"]["model"], model("b"));
    assert_eq!(effects(&world, "create"), 3);
}

#[test]
fn fine_tune_that_waits_for_another_is_cancelled_and_creates_nothing() {
    let world = world(Duration::from_hours(1));
    world.drop("base.toml", modern(""));
    world.drop("next.toml", modern("").replace("gpt-4.1-mini", "job:base"));
    let daemon = world.start();
    eventually("the base runs", || (effects(&world, "create") == 1).then_some(()));
    world.wait_for_status("next", "paused");
    for job in ["next", "base"] {
        assert_eq!(world.batchd(&["cancel", job]).code, Some(0));
        world.wait_for_status(job, "cancelled");
        assert_eq!(world.results(job).outcome(), ("cancelled".to_owned(), 1, 0, 1));
    }
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!((effects(&world, "create"), effects(&world, "cancel")), (1, 1));
}

#[test]
fn why_there_is_no_model_is_told_to_all_who_wait_for_it() {
    let world = world(Duration::from_millis(200));
    world.drop("bad.toml", modern("suffix = \"sim-fail\""));
    world.drop("taken.toml", modern("suffix = \"sim-cancel\""));
    world.drop("ask.toml", user_of("bad"));
    assert_eq!(world.run_until_idle().code, Some(1));

    let bad = world.results("bad");
    assert_eq!(bad.outcome(), ("completed".to_owned(), 1, 0, 1));
    let record = &bad.errors()[0];
    let object = &record["response"]["body"];
    assert_eq!(
        (object["status"].as_str(), record["response"]["status_code"].as_u64()),
        (Some("failed"), Some(200))
    );
    let words = object["error"]["message"].as_str().unwrap();
    assert_eq!(bad.summary()["reason"], words);
    assert_eq!(record["error"]["message"], words);
    assert!(bad.summary().get("fine_tuned_model").is_none());
    assert!(bad.has("events.jsonl") && bad.text("output.jsonl").is_empty());

    let taken = &world.results("taken").errors()[0];
    assert_eq!(taken["response"]["body"]["status"], "cancelled");
    assert_eq!(taken["error"]["code"], "cancelled");

    let ask = world.results("ask");
    assert_eq!(ask.outcome(), ("completed".to_owned(), 2, 0, 2));
    for record in ask.errors() {
        assert!(record["error"]["message"].as_str().unwrap().contains(words), "{record}");
        assert!(record["response"].is_null(), "{record}");
    }
    assert_eq!(world.ledger().by_outcome.get("paid"), None, "nothing was asked of a model that is not there");
}

#[test]
fn what_waits_for_a_fine_tune_is_stuck_with_it_and_cancelled_with_it() {
    let world = world(Duration::from_hours(1));
    world.drop("support.toml", modern("delete_uploads = true"));
    world.drop("ask.toml", user_of("support"));
    let daemon = world.start();
    let remote = eventually("the fine-tune is begun", || {
        let shown = world.listed("support").map(|_| world.json(&["show", "support"]))?;
        shown["remote"].as_str().map(str::to_owned)
    });
    assert!(remote.starts_with("ftjob-"), "{remote}");
    let shown = world.batchd(&["show", "support"]).stdout;
    assert!(shown.contains(&format!("remote    {remote}\n")), "{shown}");
    let waiting = world.wait_for_status("ask", "paused");
    let says = "waits for the fine-tune `support`";
    assert_eq!((waiting["reason"].as_str(), waiting["message"].as_str()), (Some("fine_tune"), Some(says)));
    for verb in ["resume", "pause", "retry"] {
        let refused = world.batchd(&[verb, "ask"]);
        assert!(refused.code != Some(0) && refused.stderr.contains(says), "{verb}: {refused:?}");
    }

    // A person has paused it: nothing goes on without one, and both are named.
    assert_eq!(world.batchd(&["pause", "support"]).code, Some(0));
    assert_eq!(daemon.stop().code, Some(0));
    let stuck = world.run_until_idle();
    assert_eq!(stuck.code, Some(1));
    for named in ["`support` is paused (user)", &format!("`ask` is paused (fine_tune: {says})")] {
        assert!(stuck.stderr.contains(named), "{}", stuck.stderr);
    }

    let daemon = world.start();
    assert_eq!(world.batchd(&["cancel", "support"]).code, Some(0));
    world.wait_for_status("support", "cancelled");
    world.wait_for_status("ask", "completed");
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!((effects(&world, "create"), effects(&world, "cancel"), effects(&world, "delete")), (1, 1, 1));
    let record = &world.results("support").errors()[0];
    assert_eq!(
        (&record["response"]["body"]["status"], &record["error"]["code"]),
        (&"cancelled".into(), &"cancelled".into())
    );
    assert_eq!(world.results("ask").outcome().3, 2);
}

#[test]
fn fine_tune_goes_on_over_restarts_with_one_upload_and_one_job() {
    let world = world(Duration::from_millis(1500));
    world.drop("support.toml", modern("delete_uploads = true"));
    world.drop("ask.toml", user_of("support"));
    let daemon = world.start();
    eventually("the fine-tune is begun", || (effects(&world, "create") > 0).then_some(()));
    daemon.kill();
    world.run_to_success();
    let counts = ["upload", "create", "delete", "cancel"].map(|what| effects(&world, what));
    assert_eq!(counts, [1, 1, 1, 0]);
    let model = world.results("support").summary()["fine_tuned_model"].clone();
    let answers = world.results("ask").output();
    assert_eq!(answers.len(), 2);
    assert!(answers.iter().all(|answer| answer["response"]["body"]["model"] == model), "{answers:?}");
    assert!(fs::read_dir(world.results("support").dir).unwrap().count() >= 5);
}

#[test]
fn failed_fine_tune_is_asked_again_with_the_data_that_were_checked() {
    let world = world(Duration::from_millis(100));
    world.drop("support.toml", modern("suffix = \"sim-fail\""));
    let daemon = world.start();
    world.wait_for_status("support", "completed");
    fs::remove_file(world.jobs_dir().join("inputs/chat.jsonl")).unwrap();
    let told = world.batchd(&["retry", "support"]);
    assert_eq!(told.code, Some(0), "{told:?}");
    world.wait_for_status("support-2", "completed");
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!((effects(&world, "upload"), effects(&world, "create")), (2, 2));
    assert!(world.results("support-2").summary()["reason"].is_string());
}

/// Points at which only a fine-tune comes by, the first with its passings: the intent and the id of the upload, the
/// intent and the id of the job.
const POINTS: [&str; 7] = [
    "store-memo-written:1",
    "store-memo-written:2",
    "store-memo-written:3",
    "store-memo-written:4",
    "output-events-written",
    "output-artefact-written",
    "output-uploads-deleted",
];

#[test]
fn killed_at_each_of_its_points_a_fine_tune_has_one_upload_and_one_job() {
    let die_at = |point: &str| {
        let world = world(Duration::from_millis(100));
        world.drop("support.toml", modern("delete_uploads = true"));
        let mut command = world.command(&["run", "--until-idle"]);
        command.env("BATCHD_FAULT_POINT", point);
        let died = world.run(command);
        assert_eq!(died.code, None, "it should have died at {point}: {died:?}");
        world.run_to_success();
        let counts = ["upload", "create", "delete", "cancel"].map(|what| effects(&world, what));
        assert_eq!(counts, [1, 1, 1, 0], "{point}");
        let support = world.results("support");
        assert_eq!(support.outcome(), ("completed".to_owned(), 1, 1, 0), "{point}");
        let mut files: Vec<String> = vec!["summary.json".to_owned()];
        let listed = support.summary()["files"].clone();
        files.extend(listed.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()));
        files.sort();
        assert_eq!(support.names(), files, "{point}");
        assert_eq!(files.len(), 5, "{point}: {files:?}");
    };
    // They wait most of the time, for the server.
    std::thread::scope(|scope| {
        for point in POINTS {
            scope.spawn(move || die_at(point));
        }
    });
}
