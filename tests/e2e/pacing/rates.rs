//! Requests and tokens per minute: used up, not overrun, found where nobody says them, and followed when they change.

use std::time::Duration;

use batchd::simulate::{Latency, LimitsTold, Script, Settings};
use tokio::time::Instant;

use super::{Seen, server, setup, token_lines, use_of};
use crate::world::{World, chat_lines};

const PER_MINUTE: u32 = 3_000;
/// A minute's worth.
const LINES: usize = 3_000;
const WITHIN: Duration = Duration::from_mins(10);

/// A strict server: a bucket of one second, 100 ms an answer.
fn strict(limits_told: LimitsTold) -> Settings {
    let latency = Latency::fixed(Duration::from_millis(100));
    Settings { requests_per_minute: Some(PER_MINUTE), latency, limits_told, ..server() }
}

/// Runs a minute's worth; `used` and `refused` are the least and the most that may be.
fn minute(name: &str, server: Settings, limits: &str, used: f64, refused: f64) {
    let mut seen = Seen::of_job(name, &setup(server, limits), &chat_lines(LINES), WITHIN);
    seen.print();
    let share = use_of(LINES as u64, PER_MINUTE.into(), 1.0, &seen);
    eprintln!("use {:.1} %", share * 100.0);
    seen.assert_whole(LINES);
    seen.assert_patient();
    assert!(seen.pace.refused_share <= refused, "{} refused", seen.pace.refused_share);
    assert!(share >= used, "{share} used");
}

#[test]
#[ignore = "takes a minute"]
fn a_known_limit_is_used_up() {
    minute(
        "3,000 a minute, known",
        strict(LimitsTold::All),
        "concurrency = 64\nrequests_per_minute = 3000",
        0.95,
        0.01,
    );
}

#[test]
#[ignore = "takes a minute"]
fn a_known_limit_is_used_up_though_the_server_says_nothing() {
    let limits = "concurrency = 64\nrequests_per_minute = 3000";
    minute("3,000 a minute, known, nothing told", strict(LimitsTold::Nothing), limits, 0.95, 0.01);
}

#[test]
#[ignore = "takes a minute"]
fn an_unknown_limit_is_learnt_from_headers() {
    minute("3,000 a minute, told by headers", strict(LimitsTold::All), "concurrency = 64", 0.90, 0.03);
}

#[test]
#[ignore = "takes a minute"]
fn an_unknown_limit_is_learnt_from_hints() {
    minute("3,000 a minute, told by hints", strict(LimitsTold::Hints), "concurrency = 64", 0.90, 0.03);
}

#[test]
#[ignore = "takes a minute"]
fn an_unknown_limit_is_learnt_from_refusals_alone() {
    minute("3,000 a minute, nothing told", strict(LimitsTold::Nothing), "concurrency = 64", 0.90, 0.03);
}

#[test]
#[ignore = "takes a minute"]
fn an_unknown_limit_is_learnt_though_concurrency_is_too() {
    minute("3,000 a minute, auto", strict(LimitsTold::All), "concurrency = \"auto\"", 0.90, 0.03);
}

/// Tokens a minute, 50 requests a second of them.
fn tokens(name: &str, limits_told: LimitsTold, known: bool, used: f64, refused: f64) {
    let job = token_lines(LINES);
    // 100 of the answer, and the prompt: that is what the server counts.
    let cost = 100 + 100 / 4;
    let per_minute = u64::from(PER_MINUTE) * cost;
    let latency = Latency::fixed(Duration::from_millis(100));
    let server = Settings { tokens_per_minute: Some(per_minute), latency, limits_told, ..server() };
    let limits = if known { format!("tokens_per_minute = {per_minute}") } else { String::new() };
    let setup = setup(server, &format!("concurrency = 64\n{limits}"));
    let mut seen = Seen::of_job(name, &setup, &job, WITHIN);
    seen.print();
    let share = use_of(LINES as u64, PER_MINUTE.into(), 1.0, &seen);
    eprintln!("use {:.1} %", share * 100.0);
    seen.assert_whole(LINES);
    seen.assert_patient();
    assert!(seen.pace.refused_share <= refused, "{} refused", seen.pace.refused_share);
    assert!(share >= used, "{share} used");
}

#[test]
#[ignore = "takes a minute"]
fn a_known_limit_of_tokens_is_used_up() {
    tokens("tokens a minute, known", LimitsTold::All, true, 0.95, 0.01);
}

#[test]
#[ignore = "takes a minute"]
fn an_unknown_limit_of_tokens_is_learnt() {
    tokens("tokens a minute, told by headers", LimitsTold::All, false, 0.90, 0.03);
}

#[test]
#[ignore = "takes a minute"]
fn an_unknown_limit_of_tokens_is_learnt_from_hints() {
    tokens("tokens a minute, told by hints", LimitsTold::Hints, false, 0.90, 0.03);
}

/// Halves the limit after a minute, doubles it after two and a half, and looks a minute after each.
fn changing(name: &str, limits_told: LimitsTold) {
    const CHANGES: &str = r#"
        [[events]]
        at = "60s"
        for = "90s"
        requests_per_minute = 1500
    "#;
    let script = Script::parse("changes.toml", CHANGES).unwrap();
    let world = World::with(&setup(Settings { script, ..strict(limits_told) }, "concurrency = 64"));
    let job = chat_lines(12_000);
    world.drop("job.jsonl", &job);
    let daemon = world.spawn(world.command(&["run"]));
    let until = Instant::now() + Duration::from_mins(4);
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
    assert_eq!(daemon.stop().code, Some(0));
    let mut seen = Seen::in_world(name, &world, &[("job", &job)], None);
    seen.print();
    let spans = [("3,000", 30.0, 59.0, 50.0), ("1,500", 120.0, 149.0, 25.0), ("3,000", 210.0, 235.0, 50.0)];
    let figures = spans.map(|(limit, from, to, per_second)| {
        let (admitted, refused) = seen.between(from, to);
        let used = admitted as f64 / (per_second * (to - from));
        eprintln!(
            "{from} s to {to} s at {limit}: use {:.1} %, refused {:.2} %",
            used * 100.0,
            refused * 100.0
        );
        (used, refused)
    });
    seen.assert_lawful();
    seen.assert_patient();
    for (used, refused) in figures {
        assert!(used >= 0.90 && refused <= 0.03, "{used} used, {refused} refused");
    }
}

#[test]
#[ignore = "takes four minutes"]
fn a_limit_that_changes_is_followed() {
    changing("halved and doubled, told by headers", LimitsTold::All);
}

#[test]
#[ignore = "takes four minutes"]
fn a_limit_that_changes_is_followed_though_nothing_is_told() {
    changing("halved and doubled, nothing told", LimitsTold::Nothing);
}

#[test]
fn a_configured_limit_is_never_overrun() {
    // A server that bears a tenth more than batchd may use refuses nothing, whatever this machine has to do.
    let server = Settings { requests_per_minute: Some(6_600), ..server() };
    let setup = setup(server, "concurrency = 64\nrequests_per_minute = 6000");
    let seen = Seen::of_job("6,000 a minute", &setup, &chat_lines(250), WITHIN);
    seen.assert_whole(250);
    assert_eq!((seen.pace.admitted, seen.pace.refused), (250, 0));
}

#[test]
fn a_refusing_server_loses_nothing() {
    let server = Settings { requests_per_minute: Some(6_000), ..server() };
    let mut seen =
        Seen::of_job("6,000 a minute, unknown", &setup(server, "concurrency = 16"), &chat_lines(200), WITHIN);
    seen.assert_whole(200);
    seen.assert_patient();
    assert_eq!(seen.pace.admitted, 200);
}
