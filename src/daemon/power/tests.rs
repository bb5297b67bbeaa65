//! The worlds, few at every run of the tests and many on demand.

use super::*;

/// What a machine at rest lives through in some seconds.
const FEW: u64 = 60;

const MANY: u64 = 1_500;

const WORLDS_OF_A_LIE: u64 = 150;

/// As many as it takes to see every kind of sync that there is.
const WORLDS_FOR_CLASSES: u64 = 400;

fn all_laws_hold(seeds: std::ops::Range<u64>) {
    match live_through_all(seeds, None) {
        Ok(figures) => println!("{figures:#?}"),
        Err(failed) => panic!(
            "{failed:#?}\nreplay with BATCHD_SEED=<seed> cargo test --lib power::tests::one_seed -- --ignored"
        ),
    }
}

#[test]
fn what_was_acknowledged_survives_power_cuts() {
    all_laws_hold(0..FEW);
}

#[test]
#[ignore = "takes minutes: see CONTRIBUTING"]
fn what_was_acknowledged_survives_a_thousand_power_cuts() {
    all_laws_hold(0..MANY);
}

#[test]
#[ignore = "replays the seed that BATCHD_SEED names"]
fn one_seed() {
    #[expect(clippy::disallowed_methods, reason = "who runs the test says which seed")]
    let seed: u64 = std::env::var("BATCHD_SEED").expect("BATCHD_SEED is set").parse().expect("a number");
    println!("{:#?}", live_through(seed, None));
}

/// What the laws say of a sync that is only pretended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Missed,
    NotMissed,
}
use Verdict::{Missed, NotMissed};

/// Each class of sync: what is said where it is left out, and where it comes three acts too late. Late is mostly in time:
/// what waits for the sync comes later still, or whoever was interrupted does it all again.
const VERDICTS: &[(&str, [Verdict; 2])] = &[
    ("content of jobs/rejected/.spec-#.jsonl.errors.txt.tmp", [Missed, Missed]),
    ("content of results/*/.errors.jsonl.tmp", [Missed, NotMissed]),
    ("content of results/*/.job.jsonl.tmp", [Missed, NotMissed]),
    ("content of results/*/.output.jsonl.tmp", [Missed, NotMissed]),
    ("content of results/*/.summary.json.tmp", [Missed, NotMissed]),
    ("content of state/jobs/*/.claim.json.tmp", [Missed, NotMissed]),
    // Intake syncs every input again before the job counts.
    ("content of state/jobs/*/.input.jsonl.tmp", [NotMissed, NotMissed]),
    // A log is written anew only where a cut left a hole in it, so these ought to be missed, but so few worlds come by
    // that and a second cut in time that none has shown it.
    ("content of state/jobs/*/.intents.log.tmp", [NotMissed, NotMissed]),
    ("content of state/jobs/*/.results.log.tmp", [NotMissed, NotMissed]),
    ("content of state/jobs/*/.state.json.tmp", [Missed, Missed]),
    ("content of state/jobs/*/input.jsonl", [Missed, NotMissed]),
    ("content of state/jobs/*/intents.log", [Missed, NotMissed]),
    // What is kept aside is for people, and no part of batchd reads it.
    ("content of state/jobs/*/intents.torn.#", [NotMissed, NotMissed]),
    ("content of state/jobs/*/lines.idx", [Missed, NotMissed]),
    ("content of state/jobs/*/results.log", [Missed, Missed]),
    // The same.
    ("content of state/jobs/*/results.torn.#", [NotMissed, NotMissed]),
    ("names of ", [Missed, NotMissed]),
    ("names of jobs", [Missed, NotMissed]),
    ("names of jobs/rejected", [Missed, NotMissed]),
    ("names of results", [Missed, NotMissed]),
    ("names of results/*", [Missed, NotMissed]),
    ("names of state", [Missed, NotMissed]),
    ("names of state/jobs", [Missed, NotMissed]),
    ("names of state/jobs/*", [Missed, Missed]),
];

/// A test of the tests: each kind of sync that is ever made is only pretended, and that must be noticed.
#[test]
#[ignore = "takes minutes: see CONTRIBUTING"]
fn every_sync_that_is_left_out_is_missed() {
    let classes = live_through_all(0..WORLDS_FOR_CLASSES, None).expect("all laws hold").syncs;
    let judged: BTreeSet<String> = VERDICTS.iter().map(|(class, _)| (*class).to_owned()).collect();
    let mut wrong: Vec<String> = classes.symmetric_difference(&judged).cloned().collect();
    for (class, expected) in VERDICTS {
        for (is_late, expected) in [false, true].into_iter().zip(expected) {
            let failed = live_through_all(0..WORLDS_OF_A_LIE, Some(Pretended { class, is_late })).err();
            let cause = failed.and_then(|mut failed| failed.pop());
            let verdict = if cause.is_some() { Missed } else { NotMissed };
            let said = format!("{class}, {}: {verdict:?} {cause:?}", if is_late { "late" } else { "never" });
            println!("{said}");
            if verdict != *expected {
                wrong.push(said);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
