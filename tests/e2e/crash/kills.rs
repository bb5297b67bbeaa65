//! Killed at random moments, and drained.

use std::time::Duration;

use batchd::domain::OnUncertain;
use batchd::simulate::Latency;
use batchd::simulate::laws::Report;
use rustix::process::Signal;

use super::ordeal::{Ordeal, Trial};
use crate::world::eventually;

/// The seed of a test: the one of the environment, if there is one.
pub(super) fn seed(own: u64) -> u64 {
    let seed = variable("BATCHD_CRASH_SEED").unwrap_or(own);
    eprintln!("seed {seed}; run it again with BATCHD_CRASH_SEED={seed}");
    seed
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test is no part of the program, whose environment has one door"
)]
pub(super) fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Drops something new: jobs of every form and both policies that need nobody.
pub(super) fn drop_some(ordeal: &mut Ordeal, number: usize, lines: usize) {
    match number % 4 {
        0 => ordeal.drop_lines(&format!("lines{number}x"), lines),
        1 => ordeal.drop_toml(&format!("rows{number}x"), lines / 2, OnUncertain::Retry),
        2 => {
            ordeal.drop_linked(&format!("linked{number}x"), lines / 4);
            ordeal.drop_toml(&format!("failing{number}x"), lines / 4, OnUncertain::Fail);
        }
        _ => ordeal.drop_images(&format!("pictures{number}x"), lines / 4),
    }
}

fn killed_at_random(trial: &Trial, kills: usize, lines: usize, jobs_every: usize) -> Report {
    let mut ordeal = Ordeal::new(trial);
    for number in 0..4 {
        drop_some(&mut ordeal, number, lines);
    }
    for kill in 0..kills {
        if kill % jobs_every == jobs_every - 1 {
            drop_some(&mut ordeal, 4 + kill / jobs_every, lines.min(4_000));
        }
        ordeal.kill_at_random(Duration::from_millis(900));
        if kill % 50 == 49 || kill + 1 == kills {
            ordeal.compare_indexes();
        }
    }
    let report = ordeal.finish();
    assert_eq!((report.kills(), report.lost, report.duplicates), (kills as u64, 0, 0));
    assert!(report.payments_max <= 2 && report.repeats_max() <= trial.concurrency.into());
    eprintln!("{report}");
    report
}

#[test]
fn killed_at_random_moments_it_loses_nothing_and_repeats_what_was_in_flight() {
    let report = killed_at_random(&Trial::new(seed(1)), 20, 160, 3);
    assert!(report.rebuilt > 0, "the index was compared");
    assert!(report.repeats() > 0, "some kills met requests in flight");
}

#[test]
#[ignore = "takes half an hour"]
fn killed_a_thousand_times_over_jobs_of_20_000_lines() {
    let kills = variable("BATCHD_CRASH_KILLS").unwrap_or(1000);
    let seed = seed(2);
    let mut total = Report::default();
    for round in 0..kills.div_ceil(200) {
        let kills = usize::try_from((kills - round * 200).min(200)).unwrap();
        let trial = Trial { concurrency: 32, ..Trial::new(seed + round) };
        eprintln!("seed {}", trial.seed);
        total.add(&killed_at_random(&trial, kills, 20_000, 60));
    }
    eprintln!("in all:\n{total}");
}

fn drained(trial: &Trial, drains: usize, lines: usize) -> Report {
    let mut ordeal = Ordeal::new(trial);
    ordeal.drop_lines("first", lines);
    ordeal.drop_toml("second", lines, OnUncertain::Retry);
    for _ in 0..drains {
        let before = ordeal.world.ledger().requests;
        let daemon = ordeal.start(None);
        let some = ordeal.rng.u64(1..60);
        eventually("requests are sent", || {
            let is_over = ["first", "second"].iter().all(|job| ordeal.world.results(job).has("summary.json"));
            (is_over || ordeal.world.ledger().requests >= before + some).then_some(())
        });
        if ordeal.world.ledger().requests > before {
            // It sends, so it listens.
            daemon.signal(Signal::HUP);
            daemon.signal(Signal::USR1);
        }
        ordeal.drain(daemon);
    }
    let report = ordeal.finish();
    assert_eq!((report.drains(), report.drains_with_repeats(), report.repeats()), (drains as u64, 0, 0));
    assert_eq!((report.payments_max, report.uncertain), (1, 0));
    eprintln!("{report}");
    report
}

#[test]
fn drained_again_and_again_it_repeats_nothing() {
    let report = drained(&Trial::new(seed(3)), 5, 200);
    assert_eq!(report.lost, 0);
}

#[test]
#[ignore = "takes minutes"]
fn drained_a_hundred_times_it_repeats_nothing() {
    let latency = Latency::between(Duration::from_millis(5), Duration::from_millis(200));
    let report = drained(&Trial { concurrency: 32, latency, ..Trial::new(seed(4)) }, 100, 4_000);
    assert_eq!(report.lost, 0);
}
