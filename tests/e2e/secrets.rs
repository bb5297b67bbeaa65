//! What must not be written anywhere: keys in no file at all, prompts in no log.

use batchd::simulate::{Auth, Settings};
use serde_json::Value;

use crate::world::{KEY, Setup, World, chat_lines, eventually};

/// Stands in every prompt.
const PROMPT: &str = "canary-in-the-prompt";

#[test]
fn key_is_in_no_file_and_prompts_are_in_no_log() {
    // Few enough of each that the server is not taken for one that is down.
    let server = Settings {
        auth: Auth::Key(KEY.into()),
        faults: "500=0.05,cut=0.05,garbage=0.05,empty=0.05,drop=0.05".parse().unwrap(),
        ..Settings::default()
    };
    let world = World::with(&Setup {
        server,
        // Of the libraries, too.
        log_level: "trace,batchd=trace",
        max_attempts: 3,
        concurrency: 16,
        ..Setup::default()
    });
    let daemon = world.start();
    world.drop("job.jsonl", chat_lines(40).replace("question", PROMPT));
    world.drop("bad.jsonl", format!("{{\"prompt\":\"{PROMPT}\",\"model\":\"m\",\"stream\":true}}\n"));
    world.drop("worse.jsonl", format!("{{\"{PROMPT}\n"));
    let pair = format!("{{\"prompt\":\"{PROMPT} ->\",\"completion\":\" {PROMPT} END\"}}\n");
    world.input("same.jsonl", pair.repeat(12));
    let differs = |n| pair.replace(" ->", &format!(" {n} ->")).replace(" END", &format!(" {n} END"));
    world.input("pairs.jsonl", (0..12).map(differs).collect::<String>());
    for data in ["same", "pairs"] {
        let legacy = format!(
            "kind = \"fine_tune\"\n[fine_tune]\napi = \"legacy\"\ntraining_file = \"inputs/{data}.jsonl\"\n"
        );
        world.drop(&format!("{data}.toml"), legacy);
    }
    world.wait_for_status("job", "completed");
    world.wait_for_status("pairs", "in_progress");
    let report = eventually("the report", || world.report("same.toml"));
    assert!(report.contains(PROMPT));
    world.let_in("another key");
    world.drop("locked.jsonl", chat_lines(5).replace("question", PROMPT));
    world.wait_for_status("locked", "paused");
    for args in [&["show", "locked"][..], &["cancel", "locked"], &["check", "root/jobs/rejected/bad.jsonl"]] {
        world.batchd(args);
    }
    world.wait_for_status("locked", "cancelled");
    let output = daemon.stop();
    assert_eq!(output.code, Some(0));
    assert!(output.stderr.lines().count() > 100, "it logged all it can: {}", output.stderr);
    for line in output.stderr.lines() {
        serde_json::from_str::<Value>(line)
            .unwrap_or_else(|error| panic!("{error}: {line}\n{}", output.stderr));
    }

    assert_eq!(world.files_with(".", KEY), ["key"]);
    let with_prompt = world.files_with(".", PROMPT);
    let logs: Vec<&String> =
        with_prompt.iter().filter(|name| name.contains("out-") || name.contains("err-")).collect();
    assert_eq!(logs, Vec::<&String>::new());
    assert!(
        with_prompt.iter().all(|name| !name.contains("/sled/")),
        "bodies stay out of the index: {with_prompt:?}"
    );
    assert!(!with_prompt.is_empty());
}
