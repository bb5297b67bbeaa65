//! Answers as streams: what a job leaves is what it would have left without.

use std::time::Duration;

use batchd::simulate::{Latency, Settings};
use serde_json::Value;

use crate::world::{Results, Setup, World};

const REQUESTS: u64 = 12;

/// Two jobs of a kind that ask the same, the second of which says `stream`.
fn spec(kind: &str, request: &str, stream: bool) -> String {
    let requests = (0..REQUESTS).map(|number| {
        let request = request
            .replace("TEXT", &format!("question {number}, at some length — so that it comes in pieces"));
        format!("[[requests]]\ncustom_id = \"r-{number}\"\n{request}\n")
    });
    let stream = if stream { "stream = true\n" } else { "stream = false\n" };
    format!("kind = \"{kind}\"\nmodel = \"m\"\n{stream}{}", requests.collect::<Vec<_>>().concat())
}

/// The answers of a job, but for what tells two askings apart: ids, and the hash of what was sent.
fn answers(results: &Results) -> Vec<Value> {
    let mut records = results.output();
    for record in &mut records {
        record["id"].take();
        let response = &mut record["response"];
        response["request_id"].take();
        response["body"]["id"].take();
        for choice in response["body"]["choices"].as_array_mut().unwrap() {
            // Deltas don't have it as long as there are none.
            choice["message"].as_object_mut().and_then(|message| message.remove("annotations"));
            for place in ["/message/content", "/text"] {
                if let Some(text) = choice.pointer_mut(place).filter(|text| text.is_string()) {
                    *text = text.as_str().unwrap().split_once(']').unwrap().1.into();
                }
            }
        }
    }
    records
}

const CHAT: &str = "messages = [{ role = \"user\", content = \"TEXT\" }]\nn = 2";
const COMPLETION: &str = "prompt = \"TEXT\"\nmax_tokens = 9";

#[test]
fn a_job_that_is_streamed_leaves_what_it_leaves_without() {
    let latency = Latency::fixed(Duration::from_millis(20));
    // Every fourth reply or so is spoilt, most of them in the middle.
    let spoilt = ["cut", "drop", "half", "error"];
    let faults = "cut=0.1,drop=0.05,half=0.05,error=0.05".parse().unwrap();
    let server = Settings { latency, faults, ..Settings::default() };
    let world = World::with(&Setup {
        server,
        max_attempts: 60,
        provider: "stream = true".to_owned(),
        ..Setup::default()
    });
    for (kind, request) in [("chat", CHAT), ("completions", COMPLETION)] {
        world.drop(&format!("{kind}-streamed.toml"), spec(kind, request, true));
        world.drop(&format!("{kind}-whole.toml"), spec(kind, request, false));
    }
    world.run_to_success();
    for kind in ["chat", "completions"] {
        let streamed = world.results(&format!("{kind}-streamed"));
        assert_eq!(streamed.outcome(), ("completed".to_owned(), REQUESTS, REQUESTS, 0));
        assert_eq!(answers(&streamed), answers(&world.results(&format!("{kind}-whole"))));
    }
    let ledger = world.ledger();
    assert_eq!(ledger.by_outcome["ok"], 4 * REQUESTS, "who has an answer is not asked again");
    let spoilt = spoilt.map(|fault| ledger.by_outcome[&format!("fault:{fault}")]);
    assert_eq!(ledger.paid, 4 * REQUESTS + spoilt.iter().sum::<u64>());
}

#[test]
fn a_stream_that_stands_still_is_given_up_long_before_the_time_out() {
    let slow = Duration::from_hours(1);
    let server = Settings { faults: "stall=0.2".parse().unwrap(), slow, ..Settings::default() };
    let provider = "stream = true\ntimeout = \"1h\"\nidle_timeout = \"200ms\"".to_owned();
    let world = World::with(&Setup { server, max_attempts: 60, provider, ..Setup::default() });
    world.drop("job.toml", spec("chat", CHAT, true));
    world.run_to_success();
    assert_eq!(world.results("job").outcome(), ("completed".to_owned(), REQUESTS, REQUESTS, 0));
    assert!(world.ledger().by_outcome["fault:stall"] > 0);
}

#[test]
fn half_an_answer_is_none_however_often_it_comes() {
    for (fault, code) in [("cut", "truncated"), ("error", "invalid_answer")] {
        let server = Settings { faults: format!("{fault}=1").parse().unwrap(), ..Settings::default() };
        let world = World::with(&Setup { server, max_attempts: 2, ..Setup::default() });
        let request = "[[requests]]\nmessages = [{ role = \"user\", content = \"some words\" }]\n";
        world.drop("job.toml", format!("kind = \"chat\"\nmodel = \"m\"\nstream = true\n{request}"));
        assert_eq!(world.run_until_idle().code, Some(1));
        let results = world.results("job");
        assert_eq!(results.outcome(), ("completed".to_owned(), 1, 0, 1), "{fault}");
        assert_eq!(results.errors()[0]["error"]["code"], code, "{fault}");
        assert_eq!((results.output().len(), world.ledger().paid), (0, 2), "{fault}");
    }
}
