//! Pacing: whole runs under tokio's paused clock against the simulated server, each with what is expected of it.
//!
//! # Operation
//!
//! A [`scenario`] is a file below `scenarios/`: a server and what becomes of it, batchd's limits, jobs, and the ranges
//! that the run has to keep. [`run`] lets the real fleet work over a store in memory; [`measure`] reads the server's
//! ledger; [`judge`] holds what was measured against the ranges. Minutes pass in milliseconds, and one seed is one run.
//!
//! ```text
//! cargo test --lib pacing::                                             # every scenario, with its own seed
//! cargo test --lib -- --ignored pacing::many_seeds seeds=100            # every scenario, with many
//! cargo test --lib -- --ignored --nocapture pacing::one_scenario name=auto-queue seed=7
//! ```
//!
//! # What it does not do
//!
//! No sockets and no disk: nothing here takes time but the server and what batchd waits for.

mod judge;
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "what is counted here is far from the bounds"
)]
mod measure;
mod quiet;
mod run;
mod scenario;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use self::judge::judge;
use self::scenario::Scenario;

/// Run in as many threads.
const THREADS: usize = 2;
/// Seeds of the long run, if it is not told how many.
const MANY: u64 = 20;

/// Every scenario by the name of its file.
fn scenarios() -> BTreeMap<String, Scenario> {
    let folder: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "src", "daemon", "pacing", "scenarios"].iter().collect();
    let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    files
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let scenario = Scenario::parse(&fs::read_to_string(&path).unwrap());
            (name.clone(), scenario.unwrap_or_else(|error| panic!("{name}: {error}")))
        })
        .collect()
}

/// Runs each, says between what figures it was, and panics over those that leave their ranges.
fn try_all(runs: &[(String, Scenario)]) {
    let failed = Mutex::new(Vec::new());
    let figures = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (failed, figures, mine) = (&failed, &figures, runs.iter().skip(thread));
            scope.spawn(move || {
                for (name, scenario) in mine.step_by(THREADS) {
                    let judged = judge(scenario);
                    let mut figures = figures.lock().unwrap();
                    for (what, value) in judged.ranged() {
                        let [least, most] =
                            figures.entry(format!("{name}: {what}")).or_insert([value, value]);
                        (*least, *most) = (value.min(*least), value.max(*most));
                    }
                    failed.lock().unwrap().extend(
                        judged.broken.into_iter().map(|what| {
                            format!("{name}, seed {}: {what} ({})", scenario.seed, scenario.story)
                        }),
                    );
                }
            });
        }
    });
    for (what, [least, most]) in figures.into_inner().unwrap() {
        println!("{what:44} {least:>8.3} to {most:>8.3}");
    }
    let mut failed = failed.into_inner().unwrap();
    failed.sort();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// An argument of the test binary, `name=value`: libtest takes it for one more filter.
fn argument(name: &str) -> Option<String> {
    std::env::args().find_map(|argument| Some(argument.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
}

#[test]
fn every_scenario_keeps_its_ranges() {
    let runs: Vec<_> = scenarios().into_iter().collect();
    assert!(!runs.is_empty());
    try_all(&runs);
}

#[test]
fn one_seed_gives_one_run() {
    let text = r#"
        story = "a server whose latency varies and that fails now and then"
        server = { latency = "100ms..1s", capacity = 8, when_full = "503", faults = "500=0.05,429=0.05" }
        client.concurrency = 16
        jobs = [{ lines = 200 }]
        expected = {}
    "#;
    let scenario = Scenario::parse(text).unwrap();
    let (first, second) = (run::run(&scenario), run::run(&scenario));
    assert_eq!(first.entries, second.entries);
    let other = Scenario { seed: 2, ..scenario };
    assert_ne!(first.entries, run::run(&other).entries);
}

#[test]
fn what_leaves_its_range_is_told_with_the_range() {
    let text = r#"
        story = "two requests at a server that takes a second for each"
        server.latency = "1s"
        client.concurrency = 1
        jobs = [{ lines = 2 }]
        expected = { makespan_seconds = [1.5, 1.9], most_in_flight = [1, 1] }
    "#;
    let judged = judge(&Scenario::parse(text).unwrap());
    assert_eq!(judged.broken, ["makespan_seconds was 2.000, expected 1.5 to 1.9"]);
    let strange = format!("{text}\nlatency = '1s'");
    assert!(Scenario::parse(&strange).unwrap_err().contains("unknown field"));
}

#[test]
#[ignore = "as long as it is told to"]
fn many_seeds() {
    let seeds = argument("seeds").map_or(MANY, |seeds| seeds.parse().unwrap());
    let one = argument("name");
    let wanted = scenarios().into_iter().filter(|(name, _)| one.as_ref().is_none_or(|one| one == name));
    let runs: Vec<_> = wanted
        .flat_map(|(name, scenario)| {
            (1..=seeds).map(move |seed| (name.clone(), Scenario { seed, ..scenario.clone() }))
        })
        .collect();
    try_all(&runs);
}

#[test]
#[ignore = "for looking at a scenario"]
fn one_scenario() {
    let one = argument("name");
    for (name, mut scenario) in
        scenarios().into_iter().filter(|(name, _)| one.as_ref().is_none_or(|one| one == name))
    {
        if let Some(seed) = argument("seed") {
            scenario.seed = seed.parse().unwrap();
        }
        let judged = judge(&scenario);
        println!("{name}, seed {}: {}\n{}", scenario.seed, scenario.story, judged.shown());
    }
}
