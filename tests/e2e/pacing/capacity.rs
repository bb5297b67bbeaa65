//! A hidden capacity: the right number of requests in flight is found, on a server that queues and on one that refuses.

use std::time::Duration;

use batchd::simulate::{Latency, Script, Settings, WhenFull};

use super::{Seen, is_refused, seconds, server, setup};
use crate::world::chat_lines;

const CAPACITY: u32 = 32;
const LATENCY: Duration = Duration::from_millis(200);
const LINES: usize = 5_000;
const WITHIN: Duration = Duration::from_mins(15);
/// Answers in a second when every place is taken.
const FULL_RATE: f64 = 160.0;

fn run(name: &str, when_full: WhenFull, limits: &str, script: &str) -> Seen {
    let server = Settings {
        capacity: Some(CAPACITY),
        when_full,
        latency: Latency::fixed(LATENCY),
        script: Script::parse("script.toml", script).unwrap(),
        ..server()
    };
    Seen::of_job(name, &setup(server, limits), &chat_lines(LINES), WITHIN)
}

/// Answers that left in each second since the first request came.
fn answers(seen: &Seen) -> Vec<u64> {
    let answered = seen.entries.iter().filter(|entry| entry.answer.is_some() && !is_refused(entry));
    let mut seconds_of = Vec::new();
    for left_us in answered.filter_map(|entry| entry.left_us) {
        let second = usize::try_from((left_us - seen.began_us()) / 1_000_000).unwrap();
        seconds_of.resize(seconds_of.len().max(second + 1), 0);
        seconds_of[second] += 1;
    }
    seconds_of
}

/// Seconds from arrival to reply, of those that were let in between two times.
fn median_latency(seen: &Seen, from: f64, to: f64) -> f64 {
    let began_us = seen.began_us();
    let admitted = seen.entries.iter().filter(|entry| !is_refused(entry));
    let within = admitted.filter(|entry| (from..to).contains(&seconds(entry.at_us - began_us)));
    let mut latencies: Vec<f64> =
        within.filter_map(|entry| entry.left_us.map(|left| seconds(left - entry.at_us))).collect();
    latencies.sort_by(f64::total_cmp);
    latencies.get(latencies.len() / 2).copied().unwrap_or(0.0)
}

fn compare(mode: &str, when_full: WhenFull) {
    let fixed = run(&format!("{mode}, fixed 32"), when_full, "concurrency = 32", "events = []");
    fixed.print();
    let auto = run(&format!("{mode}, auto"), when_full, "concurrency = \"auto\"", "events = []");
    auto.print();
    let by_second = answers(&auto);
    let full_after = by_second.iter().position(|count| *count as f64 >= 0.9 * FULL_RATE);
    let ratio = auto.makespan() / fixed.makespan();
    let median = median_latency(&auto, 0.0, f64::MAX) / LATENCY.as_secs_f64();
    eprintln!("makespan x {ratio:.3} of fixed 32, 90 % of the full rate in second {full_after:?}");
    eprintln!("median latency x {median:.2} of unloaded; answers by the second {by_second:?}");
    fixed.assert_whole(LINES);
    auto.assert_whole(LINES);
    assert!(ratio <= 1.10, "{ratio}");
    assert!(full_after.is_some_and(|second| second <= 5), "{by_second:?}");
    assert!(auto.pace.refused_share <= 0.05, "{} refused", auto.pace.refused_share);
    assert!(median <= 1.5, "{median}");
}

#[test]
#[ignore = "takes a minute"]
fn the_capacity_of_a_server_that_queues_is_found() {
    compare("queueing", WhenFull::Queue);
}

#[test]
#[ignore = "takes a minute"]
fn the_capacity_of_a_server_that_refuses_with_429_is_found() {
    compare("429 when full", WhenFull::SlowDown);
}

#[test]
#[ignore = "takes a minute"]
fn the_capacity_of_a_server_that_refuses_with_503_is_found() {
    compare("503 when full", WhenFull::Overloaded);
}

/// The capacity falls to 8 after 12 s; looked at from 10 s after that.
fn fall(mode: &str, when_full: WhenFull) {
    const FALL: &str = "[[events]]\nat = \"12s\"\ncapacity = 8\n";
    let seen = run(&format!("{mode}, 32 falls to 8"), when_full, "concurrency = \"auto\"", FALL);
    seen.print();
    let (from, to) = (22.0, 62.0);
    let (admitted, refused) = seen.between(from, to);
    let used = admitted as f64 / (40.0 * (to - from));
    let median = median_latency(&seen, from, to) / LATENCY.as_secs_f64();
    let began_us = seen.began_us();
    let within = seen.entries.iter().filter(|entry| (from..to).contains(&seconds(entry.at_us - began_us)));
    let most = within.map(|entry| entry.in_flight).max().unwrap_or(0);
    eprintln!(
        "from 10 s after the fall: use {:.1} %, refused {:.2} %, median latency x {median:.2}, in flight at most {most}",
        used * 100.0,
        refused * 100.0
    );
    seen.assert_whole(LINES);
    assert!(used >= 0.9, "{used}");
    assert!(refused <= 0.05, "{refused}");
    assert!(median <= 1.5, "{median}");
}

#[test]
#[ignore = "takes two minutes"]
fn a_fallen_capacity_of_a_server_that_queues_is_followed() {
    fall("queueing", WhenFull::Queue);
}

#[test]
#[ignore = "takes two minutes"]
fn a_fallen_capacity_of_a_server_that_refuses_is_followed() {
    fall("429 when full", WhenFull::SlowDown);
}
