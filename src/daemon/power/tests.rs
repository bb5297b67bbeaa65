//! The worlds, few at every run of the tests and many on demand.

use super::*;

/// What a machine at rest lives through in some seconds.
const FEW: u64 = 60;

const MANY: u64 = 1_500;

const WORLDS_OF_A_LIE: u64 = 150;

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

/// A test of the tests: each kind of sync that is ever made is only pretended, and that must be noticed.
#[test]
#[ignore = "takes minutes: see CONTRIBUTING"]
fn every_sync_that_is_left_out_is_missed() {
    let classes = live_through_all(0..100, None).expect("all laws hold").syncs;
    for class in classes {
        let noticed = live_through_all(0..WORLDS_OF_A_LIE, Some(&class)).is_err();
        println!("{} {class}", if noticed { "missed     " } else { "NOT NOTICED" });
    }
}
