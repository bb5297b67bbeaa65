//! Bad hours by the script: the server is down, the key or the quota is refused, or it says to come back in every form.

use std::time::Duration;

use batchd::simulate::{Entry, Latency, Outcome, Script, Settings};

use super::{Seen, seconds, server, setup};
use crate::world::{World, chat_lines};

const LINES: usize = 3_000;
const CONCURRENCY: u64 = 16;
/// Requests that an outage may cost beside those in flight.
const TRIES: u64 = 5;
/// And of those that say how long to wait, or are for a person to mend, in each second.
const SELDOM: f64 = 0.2;

/// One outage in the middle of a job.
struct Outage {
    name: &'static str,
    /// What happens; see the script's words.
    what: String,
    /// How long it lasts, in seconds.
    lasts: u64,
    /// How long after its end the job may still hold still.
    resumes_within: f64,
    /// Requests that may come in each second of it, beside those in flight and [`TRIES`].
    tries: f64,
}

/// When it begins, seconds since the server's start: the job has work for a minute.
const AT: u64 = 5;

fn outage(outage: &Outage) {
    let Outage { name, what, lasts, resumes_within, tries } = outage;
    let script = format!("[[events]]\nat = \"{AT}s\"\nfor = \"{lasts}s\"\n{what}\n");
    let server = Settings {
        latency: Latency::fixed(Duration::from_millis(50)),
        requests_per_minute: Some(6_000),
        script: Script::parse("outage.toml", &script).unwrap(),
        ..server()
    };
    let limits = format!("concurrency = {CONCURRENCY}\nrequests_per_minute = 5000");
    let world = World::with(&setup(server, &limits));
    let job = chat_lines(LINES);
    world.drop("job.jsonl", &job);
    let within = Duration::from_secs(lasts + 600) + Duration::from_secs_f64(*resumes_within);
    // It runs on without a word from a person: a daemon, not `--until-idle`, which would end in a pause.
    let daemon = world.start();
    let deadline = tokio::time::Instant::now() + within;
    while !world.results("job").has("summary.json") && tokio::time::Instant::now() < deadline {
        std::thread::park_timeout(Duration::from_millis(100));
    }
    let output = daemon.stop();
    assert_eq!(output.code, Some(0), "{output:?}");
    let mut seen = Seen::in_world(name, &world, &[("job", &job)], Some(CONCURRENCY));
    seen.print();
    let (begins_us, ends_us) = (AT * 1_000_000, (AT + lasts) * 1_000_000);
    let during = seen.entries.iter().filter(|entry| (begins_us..ends_us).contains(&entry.at_us)).count();
    let answered = |entry: &&Entry| entry.outcome == Outcome::Ok && entry.at_us >= ends_us;
    let resumed = seen.entries.iter().find(answered).map(|entry| seconds(entry.at_us - ends_us));
    eprintln!("came during the {lasts} s: {during}; first answered after its end: {resumed:?} s");
    seen.assert_whole(LINES);
    seen.assert_patient();
    assert!(resumed.is_some_and(|resumed| resumed <= *resumes_within), "{resumed:?}");
    let allowed = (CONCURRENCY + TRIES) as f64 + *lasts as f64 * tries;
    assert!(during as f64 <= allowed, "{during} came, at most {allowed} may");
}

/// Goes down; its breaker and what is held wait at most `resumes_within` seconds too long.
fn down(lasts: u64, resumes_within: f64) {
    outage(&Outage {
        name: "down",
        what: "what = \"down\"".to_owned(),
        lasts,
        resumes_within,
        tries: SELDOM,
    });
}

#[test]
#[ignore = "takes two minutes"]
fn a_server_that_is_down_for_half_a_minute_is_waited_for() {
    down(30, 60.0);
}

#[test]
#[ignore = "takes a quarter of an hour"]
fn a_server_that_is_down_for_ten_minutes_is_waited_for() {
    down(600, 600.0);
}

#[test]
#[ignore = "takes two minutes"]
fn a_server_that_fails_for_half_a_minute_is_waited_for() {
    outage(&Outage {
        name: "500",
        what: "what = \"500\"".to_owned(),
        lasts: 30,
        resumes_within: 60.0,
        tries: SELDOM,
    });
}

#[test]
#[ignore = "takes two minutes"]
fn a_key_that_is_refused_for_half_a_minute_is_tried_again() {
    outage(&Outage {
        name: "401",
        what: "what = \"401\"".to_owned(),
        lasts: 30,
        resumes_within: 60.0,
        tries: SELDOM,
    });
}

#[test]
#[ignore = "takes a quarter of an hour"]
fn a_key_that_is_refused_for_five_minutes_is_tried_again() {
    outage(&Outage {
        name: "401",
        what: "what = \"401\"".to_owned(),
        lasts: 300,
        resumes_within: 300.0,
        tries: SELDOM,
    });
}

#[test]
#[ignore = "takes two minutes"]
fn a_quota_that_is_used_up_for_half_a_minute_is_tried_again() {
    outage(&Outage {
        name: "quota",
        what: "what = \"quota\"".to_owned(),
        lasts: 30,
        resumes_within: 60.0,
        tries: SELDOM,
    });
}

#[test]
#[ignore = "takes a quarter of an hour"]
fn a_quota_that_is_used_up_for_ten_minutes_is_tried_again() {
    outage(&Outage {
        name: "quota",
        what: "what = \"quota\"".to_owned(),
        lasts: 600,
        resumes_within: 600.0,
        tries: SELDOM,
    });
}

#[test]
#[ignore = "takes two minutes"]
fn a_model_that_is_gone_for_half_a_minute_is_tried_again() {
    outage(&Outage {
        name: "model",
        what: "what = \"model\"".to_owned(),
        lasts: 30,
        resumes_within: 60.0,
        tries: SELDOM,
    });
}

/// Everybody is refused and told to come back by `hint`.
fn refused(hint: &'static str, lasts: u64, resumes_within: f64) {
    let what = format!("what = \"429\"\nretry_after = \"{hint}\"");
    // Where nothing says how long, once a second is little enough.
    let tries = if hint.ends_with('s') { SELDOM } else { 2.0 };
    outage(&Outage { name: hint, what, lasts, resumes_within, tries });
}

#[test]
#[ignore = "takes a minute"]
fn retry_after_a_date_is_obeyed() {
    refused("date:20s", 15, 25.0);
}

#[test]
#[ignore = "takes a minute"]
fn retry_after_seconds_is_obeyed() {
    refused("seconds:20s", 15, 25.0);
}

#[test]
#[ignore = "takes ten minutes"]
fn retry_after_five_minutes_is_obeyed() {
    refused("300s", 60, 260.0);
}

#[test]
#[ignore = "takes ten minutes"]
fn retry_after_a_date_in_five_minutes_is_obeyed() {
    refused("date:300s", 60, 260.0);
}

#[test]
#[ignore = "takes a minute"]
fn retry_after_garbage_is_no_reason_to_stop() {
    refused("garbage", 15, 60.0);
}

#[test]
#[ignore = "takes a minute"]
fn retry_after_a_negative_time_is_no_reason_to_stop() {
    refused("negative", 15, 60.0);
}

#[test]
#[ignore = "takes a minute"]
fn retry_after_for_ever_is_no_reason_to_stop() {
    refused("1e18", 15, 60.0);
}

#[test]
#[ignore = "takes a minute"]
fn nothing_said_about_coming_back_is_no_reason_to_stop() {
    refused("none", 15, 60.0);
}
