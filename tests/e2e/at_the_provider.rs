//! The commands that look at what lies at a provider: its models and its files. No daemon runs.

use std::fs;

use batchd::simulate::{Auth, Settings};

use crate::world::{Setup, World};

#[test]
fn a_file_goes_up_is_looked_at_comes_down_and_is_deleted() {
    let world = World::new();
    // Larger than any buffer on its way.
    let line = "{\"messages\":[{\"role\":\"user\",\"content\":\"2+2?\"},{\"role\":\"assistant\",\"content\":\"4\"}]}\n";
    let content = line.repeat(30_000);
    fs::write(world.path("train.jsonl"), &content).unwrap();

    let uploaded = world.batchd(&["files", "upload", "train.jsonl", "--expires-after", "2d"]);
    assert_eq!(uploaded.code, Some(0), "{uploaded:?}");
    let id = uploaded.stdout.trim_end();
    let listed = world.json(&["files", "list", "--purpose", "fine-tune"]);
    assert_eq!((&listed[0]["id"], &listed[0]["filename"]), (&id.into(), &"train.jsonl".into()));
    let shown = world.json(&["files", "show", id]);
    assert_eq!((&shown["bytes"], &shown["purpose"]), (&content.len().into(), &"fine-tune".into()));
    assert!(shown["expires_at"].is_u64(), "{shown}");

    let got = world.batchd(&["files", "get", id, "-o", "copy.jsonl"]);
    assert_eq!((got.code, got.stdout.as_str()), (Some(0), ""), "{got:?}");
    assert!(fs::read_to_string(world.path("copy.jsonl")).unwrap() == content, "it came back changed");
    assert!(world.batchd(&["files", "get", id]).stdout == content, "it came to stdout changed");
    assert_eq!(
        world.batchd(&["files", "get", id, "-o", "copy.jsonl"]).code,
        Some(2),
        "nothing is overwritten"
    );

    let deleted = world.batchd(&["files", "delete", id]);
    assert_eq!((deleted.code, deleted.stderr), (Some(0), format!("{id} is deleted\n")));
    for args in [&["files", "show", id][..], &["files", "get", id], &["files", "delete", id]] {
        let refused = world.batchd(args);
        assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""), "{refused:?}");
    }
    assert_eq!(world.batchd(&["files", "list"]).stdout, "");
}

#[test]
fn models_are_listed_and_those_that_end_are_warned_about() {
    let world = World::new();
    let listed = world.batchd(&["models"]);
    assert_eq!(listed.code, Some(0), "{listed:?}");
    assert!(listed.stdout.lines().any(|line| line.starts_with("gpt-4.1-mini ")), "{listed:?}");
    assert!(listed.stderr.contains("`gpt-4o-mini` w") && listed.stderr.contains("shut down on 2027-01-14"));
    assert_eq!(world.json(&["models", "gpt-4.1-mini"])["object"], "model");
    let server = Settings { models: vec!["gpt-4.1-mini".to_owned()], ..Settings::default() };
    let world = World::with(&Setup { server, ..Setup::default() });
    let unknown = world.batchd(&["models", "gpt-4.1-minni"]);
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    assert!(unknown.stderr.contains("hint: did you mean `gpt-4.1-mini`"), "{unknown:?}");
}

#[test]
fn a_provider_that_refuses_the_key_or_is_away_has_exits_of_its_own() {
    let server = Settings { auth: Auth::Key("another".into()), ..Settings::default() };
    let world = World::with(&Setup { server, ..Setup::default() });
    let refused = world.batchd(&["models"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""), "{refused:?}");
    assert!(refused.stderr.contains("refused the key (401)"), "{refused:?}");
    let config = world.path("batchd.toml");
    let away = "[[providers]]\nname = \"away\"\nbase_url = \"http://127.0.0.1:9/v1\"\n";
    fs::write(&config, away).unwrap();
    assert_eq!(world.batchd(&["files", "list"]).code, Some(69));
}
