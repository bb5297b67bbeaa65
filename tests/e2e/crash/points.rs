//! Killed at every fault point.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::thread;
use std::time::Duration;

use batchd::clock::Seed;
use batchd::domain::{OnUncertain, TuningApi};
use batchd::fault::POINTS;
use batchd::simulate::Latency;
use batchd::simulate::laws::Report;

use super::kills::seed;
use super::ordeal::{Ordeal, TUNE, Trial};
use crate::world::{eventually, names};

/// Points that one process passes many times, so that later passings are worth a death, too.
const OFTEN: [&str; 12] = [
    "store-memo-written",
    "store-intent-written",
    "store-journal-appended",
    "store-journal-syncing",
    "store-journal-synced",
    "store-index-applied",
    "store-state-written",
    "dispatch-leased",
    "dispatch-sending",
    "dispatch-calling",
    "dispatch-answered",
    "dispatch-settled",
];

/// Points that a fine-tune with one file passes twice.
const TWICE: [&str; 4] = ["tuning-beginning", "tuning-creating", "tuning-created", "tuning-noted"];

/// Points that only fine-tunes pass, beside those called `tuning-…`.
const OF_FINE_TUNES: [&str; 4] =
    ["store-memo-written", "output-events-written", "output-artefact-written", "output-uploads-deleted"];

/// Long enough to be cancelled before it is over.
const LONG_TUNE: Duration = Duration::from_secs(4);

/// So many ordeals go on at a time.
const ORDEALS: usize = 3;

/// So many rounds have a fine-tune with a user of its model, whatever their point.
const TUNE_EVERY: usize = 8;

/// Lets the daemon die at `point`, with something of every kind to do on the way.
fn die_at(ordeal: &mut Ordeal, point: &str, round: usize) {
    if point.starts_with("store-removal-") {
        return die_while_removing(ordeal, point, round);
    }
    ordeal.drop_lines(&format!("lines{round}x"), 6);
    ordeal.drop_linked(&format!("linked{round}x"), 3);
    ordeal.drop_images(&format!("pictures{round}x"), 2);
    ordeal.drop_toml(&format!("failing{round}x"), 3, OnUncertain::Fail);
    let needs_tune = point.starts_with("tuning-") || OF_FINE_TUNES.contains(&point);
    let cancels = point.starts_with("tuning-cancel");
    if needs_tune || round.is_multiple_of(TUNE_EVERY) {
        let api = TuningApi::ALL[round % 2];
        ordeal.drop_fine_tune(&format!("tune{round}x"), api);
        if api == TuningApi::Jobs && !cancels {
            ordeal.drop_user(&format!("user{round}x"), &format!("tune{round}x"));
        }
    }
    if point.starts_with("recover-") {
        leave_work(ordeal);
    }
    match point {
        "recover-torn-kept" | "recover-torn-cut" => tear_journals(ordeal),
        "recover-index-set-aside" => spoil_index(ordeal),
        // Whatever is asked fails for a moment, so that something has to wait.
        "store-ended-written" => ordeal.world.fail("500=1"),
        "tuning-looked" => {
            let lost = if round.is_multiple_of(2) { "upload=drop,create=cut" } else { "create=drop" };
            ordeal.lose(lost);
        }
        _ => {}
    }
    let often = OFTEN.contains(&point);
    let most = if often {
        4
    } else if TWICE.contains(&point) {
        2
    } else {
        1
    };
    let passing = ordeal.rng.usize(1..=most);
    eprintln!("{point}:{passing}");
    if cancels {
        ordeal.tune_for(LONG_TUNE);
    }
    let daemon = ordeal.start(Some(&format!("{point}:{passing}")));
    if cancels {
        ordeal.cancel_last();
    }
    ordeal.await_death(daemon, point);
    ordeal.tune_for(TUNE);
    ordeal.world.fail("");
}

/// Lets the daemon die while it removes what has ended: nothing of it is missed, or comes back, and nothing is left of it.
fn die_while_removing(ordeal: &mut Ordeal, point: &str, round: usize) {
    ordeal.drop_lines(&format!("lines{round}x"), 6);
    ordeal.drop_toml(&format!("failing{round}x"), 3, OnUncertain::Fail);
    ordeal.end_all();
    let jobs = ordeal.world.path("root/state/jobs");
    let before = names(&jobs);
    ordeal.keep_state("0s");
    let passing = ordeal.rng.usize(1..=2);
    eprintln!("{point}:{passing}");
    let daemon = ordeal.start(Some(&format!("{point}:{passing}")));
    ordeal.await_death(daemon, point);
    ordeal.keep_state("7d");
    let mut daemon = ordeal.start(None);
    daemon.wait_for_log("batchd is running");
    let listed = ordeal.world.list();
    assert!(listed.iter().all(|job| job["status"] != "held"), "{listed:?}");
    let mut ids: Vec<&str> = listed.iter().map(|job| job["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(names(&jobs), ids, "whatever is there is a job");
    let removed = before.iter().filter(|id| !ids.contains(&id.as_str())).count();
    let expected = match point {
        "store-removal-begins" => passing - 1,
        // Once for each file.
        "store-removal-half-done" => 1,
        _ => passing,
    };
    assert_eq!(removed, expected, "{point}");
    ordeal.kill(daemon);
}

/// A daemon that was killed with requests in flight, also of a job that does not repeat them.
fn leave_work(ordeal: &mut Ordeal) {
    // What was left before may have to be answered first, and takes as long.
    ordeal.world.answer_after(Duration::from_secs(2));
    let daemon = ordeal.start(None);
    eventually("requests in flight", || {
        let entries = ordeal.world.engine().entries();
        let in_flight: Vec<_> = entries.iter().filter(|entry| entry.left_us.is_none()).collect();
        let is_there = in_flight.len() >= 3 && in_flight.iter().any(|entry| entry.endpoint == "/completions");
        is_there.then_some(())
    });
    ordeal.kill(daemon);
    ordeal.world.answer_after(Duration::from_millis(10));
}

/// Half a record at the end of every journal that may have one: of a job that was accepted.
fn tear_journals(ordeal: &Ordeal) {
    for job in fs::read_dir(ordeal.world.path("root/state/jobs")).unwrap() {
        let folder = job.unwrap().path();
        if folder.join("state.json").exists() {
            let mut journal = OpenOptions::new().append(true).open(folder.join("results.log")).unwrap();
            journal.write_all(br#"{"id":"batch_req_"#).unwrap();
        }
    }
}

fn spoil_index(ordeal: &Ordeal) {
    let db = ordeal.world.path("root/state/sled/db");
    fs::remove_file(&db).unwrap();
    fs::create_dir(&db).unwrap();
}

/// Dies at every point: in a few ordeals at a time, as most of each is waiting.
fn die_at_all(seed: u64) -> Report {
    // Those of schedules are passed at their times: see `schedules`.
    let mut points: Vec<_> = POINTS.into_iter().filter(|point| !point.starts_with("schedule-")).collect();
    Seed::fixed(seed).derive("points").shuffle(&mut points);
    let hands: Vec<_> = points.chunks(points.len().div_ceil(ORDEALS)).collect();
    thread::scope(|scope| {
        let ordeals: Vec<_> =
            hands.into_iter().map(|hand| scope.spawn(move || die_at_each(hand, seed))).collect();
        let mut total = Report::default();
        for ordeal in ordeals {
            total.add(&ordeal.join().unwrap());
        }
        total
    })
}

fn die_at_each(points: &[&str], seed: u64) -> Report {
    let mut ordeal = Ordeal::new(&trial(seed));
    for (round, point) in points.iter().enumerate() {
        die_at(&mut ordeal, point, round);
    }
    let deaths = ordeal.stops() as u64;
    let report = ordeal.finish();
    assert_eq!((report.kills(), report.lost, report.duplicates), (deaths, 0, 0));
    report
}

fn trial(seed: u64) -> Trial {
    let latency = Latency::between(Duration::from_millis(1), Duration::from_millis(20));
    Trial { concurrency: 16, latency, faults: "", ..Trial::new(seed) }
}

#[test]
fn killed_at_every_fault_point_it_loses_nothing() {
    let report = die_at_all(seed(5));
    eprintln!("{report}");
}

#[test]
#[ignore = "takes minutes"]
fn killed_at_every_fault_point_twenty_times() {
    let seed = seed(6);
    let mut total = Report::default();
    for round in 0..20 {
        eprintln!("seed {}", seed + round);
        total.add(&die_at_all(seed + round));
    }
    eprintln!("in all:\n{total}");
}
