//! A server that fails: every request ends in exactly one line, and no more is paid than need be.

use std::time::Duration;

use batchd::simulate::Settings;
use serde_json::Value;

use crate::world::{Results, Setup, World, chat_lines, custom_ids, sorted_ids};

fn failing(faults: &str, max_attempts: u32) -> World {
    let server = Settings { faults: faults.parse().unwrap(), ..Settings::default() };
    World::with(&Setup { server, max_attempts, concurrency: 16, ..Setup::default() })
}

/// Every answer is the one to its own question.
fn check_answers(results: &Results) {
    for record in results.output() {
        let number = record["custom_id"].as_str().unwrap().strip_prefix("r-").unwrap().to_owned();
        let said = record["response"]["body"]["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(said.ends_with(&format!("question {number}")), "{record}");
    }
}

#[test]
fn every_request_ends_in_one_line_whatever_the_server_does() {
    let world = failing("500=0.05,502=0.05,503=0.05,drop=0.05,cut=0.05,garbage=0.05,empty=0.05", 30);
    // Each model's queue has a retry budget of its own.
    let jobs = ["m", "n", "o"];
    for model in jobs {
        let lines = chat_lines(50).replace(r#""model":"m""#, &format!(r#""model":"{model}""#));
        world.drop(&format!("{model}.jsonl"), lines);
    }
    world.run_to_success();
    for job in jobs {
        let results = world.results(job);
        assert_eq!(results.outcome(), ("completed".to_owned(), 50, 50, 0));
        assert_eq!(results.custom_ids(), sorted_ids(50));
        check_answers(&results);
    }

    let ledger = world.ledger();
    for fault in ["500", "502", "503", "drop", "cut", "garbage", "empty"] {
        assert!(
            ledger.by_outcome.contains_key(&format!("fault:{fault}")),
            "no `{fault}` was met: {ledger:?}"
        );
    }
    assert_eq!(ledger.by_outcome["ok"], 150, "who has an answer is not asked again");
    let lost = |fault: &str| ledger.by_outcome[&format!("fault:{fault}")];
    let again = ["drop", "cut", "garbage", "empty"].map(lost).iter().sum::<u64>();
    assert_eq!(ledger.paid, 150 + again);
}

#[test]
fn throttled_requests_use_up_no_attempt_and_come_back_when_told() {
    let world = failing("429=0.4", 1);
    world.drop("job.jsonl", chat_lines(12));
    world.run_to_success();
    let results = world.results("job");
    assert_eq!(results.outcome(), ("completed".to_owned(), 12, 12, 0));
    check_answers(&results);
    let ledger = world.ledger();
    assert!(ledger.by_outcome["fault:429"] > 0, "{ledger:?}");
    assert_eq!((ledger.paid, ledger.paid_twice), (12, 0));
}

#[test]
fn failure_is_recorded_after_the_last_attempt_with_what_the_server_said() {
    let world = failing("500=1", 3);
    // Fewer failures than are taken for an outage, which would be waited for.
    world.drop("job.jsonl", chat_lines(3));
    assert_eq!(world.run_until_idle().code, Some(1), "some failed");
    let results = world.results("job");
    assert_eq!(results.outcome(), ("completed".to_owned(), 3, 0, 3));
    for record in results.errors() {
        assert_eq!((&record["response"]["status_code"], &record["error"]), (&500.into(), &Value::Null));
        assert_eq!(record["response"]["body"]["error"]["type"], "server_error");
    }
    assert_eq!(world.ledger().requests, 3 * 3);
    assert_eq!(results.summary()["maybe_paid_twice"], 0, "an error is not billed");
}

#[test]
fn request_without_any_answer_is_recorded_with_an_error_of_our_own() {
    for (fault, code) in [("drop", "connection_lost"), ("cut", "truncated"), ("empty", "invalid_answer")] {
        let world = failing(&format!("{fault}=1"), 2);
        world.drop("job.jsonl", chat_lines(3));
        assert_eq!(world.run_until_idle().code, Some(1));
        let results = world.results("job");
        assert_eq!(results.outcome(), ("completed".to_owned(), 3, 0, 3));
        for record in results.errors() {
            assert_eq!(
                (&record["response"], &record["error"]["code"]),
                (&Value::Null, &code.into()),
                "{fault}"
            );
            assert!(record["error"]["message"].as_str().unwrap().ends_with("(attempt 2 of 2)"), "{record}");
        }
        assert_eq!(world.ledger().requests, 3 * 2, "{fault}");
        assert_eq!(results.summary()["maybe_paid_twice"], 3, "{fault}: the work may have been done");
    }
}

#[test]
fn answer_that_comes_too_late_is_a_failed_attempt() {
    let server =
        Settings { faults: "slow=1".parse().unwrap(), slow: Duration::from_mins(10), ..Settings::default() };
    let world = World::with(&Setup {
        server,
        max_attempts: 2,
        provider: "timeout = \"100ms\"".to_owned(),
        ..Setup::default()
    });
    world.drop("job.jsonl", chat_lines(2));
    assert_eq!(world.run_until_idle().code, Some(1));
    let errors = world.results("job").errors();
    assert_eq!(custom_ids(&errors), ["r-0", "r-1"]);
    assert!(errors.iter().all(|record| record["error"]["code"] == "timeout"), "{errors:?}");
    assert_eq!(world.ledger().requests, 4);
}

#[test]
fn mistyped_model_fails_its_requests_once_each_and_no_other() {
    let server = Settings { models: vec!["m".to_owned()], ..Settings::default() };
    let world = World::with(&Setup { server, ..Setup::default() });
    let typo = chat_lines(5).replace(r#""model":"m""#, r#""model":"mm""#).replace("r-", "typo-");
    world.drop("job.jsonl", chat_lines(5) + &typo);
    assert_eq!(world.run_until_idle().code, Some(1));
    let results = world.results("job");
    assert_eq!(results.outcome(), ("completed".to_owned(), 10, 5, 5));
    for record in results.errors() {
        assert_eq!(record["response"]["body"]["error"]["code"], "model_not_found", "{record}");
    }
    assert_eq!(world.ledger().requests, 10);
}

#[test]
fn attempts_of_the_spec_win_over_those_of_the_config() {
    let world = failing("500=1", 6);
    world.drop(
        "job.toml",
        "kind = 'completions'\nmodel = 'm'\n[retry]\nmax_attempts = 2\n[[requests]]\nprompt = 'x'\n",
    );
    assert_eq!(world.run_until_idle().code, Some(1));
    assert_eq!(world.ledger().requests, 2);
}
