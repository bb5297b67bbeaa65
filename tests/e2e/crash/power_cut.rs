//! The power of a real ext4 cut under the real binary, again and again. Needs root, to mount, and python3, to ask the
//! file system for it.
//!
//! What a cut leaves is what the kernel had written by then: syncs, and whatever its own timers wrote. Which writes a
//! disk may swap is not covered here; the cuts over the seam (`src/daemon/power`) are worse to batchd than this disk.

use std::time::Duration;

use batchd::simulate::laws::Report;

use super::kills::{drop_some, seed, variable};
use super::ordeal::{Ordeal, Trial};
use crate::process::Daemon;
use crate::world::eventually;

/// In all, unless the environment says otherwise: some thirty rounds.
const CUTS: u64 = 120;

/// One life, to its cut: 1 in 10 dies while it starts, 2 in 10 take a job in, 5 in 10 send, 2 in 10 publish.
fn live_and_die(ordeal: &mut Ordeal, number: usize) {
    let cutter = ordeal.cutter();
    let moment = ordeal.rng.u8(..10);
    if moment == 0 {
        let daemon = ordeal.start(None);
        park(ordeal, 250);
        ordeal.cut_power(daemon, cutter);
        return;
    }
    let daemon = ordeal.start_again();
    match moment {
        1..3 => {
            drop_some(ordeal, number, 80);
            park(ordeal, 120);
        }
        3..8 => {
            drop_some(ordeal, number, 120);
            wait_until_it_sends(ordeal);
        }
        _ => wait_until_it_publishes(ordeal, number, &daemon),
    }
    ordeal.take_down();
    // What is promised is taken down, and more is done on top of it.
    park(ordeal, 30);
    ordeal.cut_power(daemon, cutter);
}

fn wait_until_it_sends(ordeal: &mut Ordeal) {
    let enough = ordeal.world.ledger().requests + ordeal.rng.u64(1..90);
    let is_idle = |ordeal: &Ordeal| {
        let list = ordeal.world.list();
        !list.is_empty() && list.iter().all(|job| job["status"] == "completed")
    };
    eventually("requests are sent", || {
        (ordeal.world.ledger().requests >= enough || is_idle(ordeal)).then_some(())
    });
}

fn wait_until_it_publishes(ordeal: &mut Ordeal, number: usize, daemon: &Daemon) {
    let job = format!("small{number}x");
    ordeal.drop_lines(&job, 6);
    eventually("its results are written", || {
        let listed = ordeal.world.listed(&job)?;
        let count = |name: &str| listed["counts"][name].as_u64();
        assert_ne!(listed["status"], "held", "{listed}: {}", daemon.log());
        (count("completed")? + count("failed")? == count("total")?).then_some(())
    });
}

fn park(ordeal: &mut Ordeal, most_ms: u64) {
    std::thread::park_timeout(Duration::from_millis(most_ms).mul_f64(ordeal.rng.f64()));
}

fn round(seed: u64) -> Option<Report> {
    let mut ordeal = Ordeal::on_a_disk(&Trial::new(seed))?;
    drop_some(&mut ordeal, 0, 120);
    drop_some(&mut ordeal, 1, 120);
    let cuts = ordeal.rng.u64(3..6);
    for number in 2..2 + usize::try_from(cuts).unwrap() {
        live_and_die(&mut ordeal, number);
    }
    let daemon = ordeal.start_again();
    ordeal.kill(daemon);
    ordeal.compare_indexes();
    let report = ordeal.finish();
    assert_eq!((report.power_cuts(), report.lost, report.duplicates), (cuts, 0, 0));
    assert!(report.payments_max <= 1 + cuts && report.rebuilt > 0);
    Some(report)
}

#[test]
#[ignore = "needs root, to mount"]
fn power_is_cut_on_ext4_and_nothing_that_was_promised_is_lost() {
    let first = seed(5);
    let mut total = Report::default();
    let cuts = variable("BATCHD_CRASH_KILLS").unwrap_or(CUTS);
    for seed in first.. {
        eprintln!("seed {seed}, after {} cuts and {} repeats", total.power_cuts(), total.repeats());
        let Some(report) = round(seed) else { return };
        total.add(&report);
        if total.power_cuts() >= cuts {
            break;
        }
    }
    assert!(total.repeats() > 0, "some cuts met requests in flight");
    eprintln!("in all:\n{total}");
}
