//! Killed at every step from a time that has come to the run that is made for it.

use std::collections::BTreeSet;

use batchd::fault::POINTS;

use crate::world::{World, eventually};

const EVERY_SECOND: &str = "kind = 'completions'\nmodel = 'm'\n[[requests]]\nprompt = 'x'\n\
                            [schedule]\ncron = '* * * * * *'\ntimezone = 'UTC'\noverlap = 'queue'\n";

#[test]
fn killed_while_it_makes_a_run_it_makes_that_run_once() {
    let world = World::new();
    world.drop("tick.toml", EVERY_SECOND);
    let points = POINTS.into_iter().filter(|point| point.starts_with("schedule-"));
    let points: Vec<&str> = points.chain(["intake-put"]).collect();
    for point in points {
        let mut command = world.command(&["run"]);
        command.env("BATCHD_FAULT_POINT", point);
        let output = world.spawn(command).wait();
        assert_eq!(output.code, None, "it should have died at {point}: {output:?}");
    }
    let daemon = world.start();
    let before = world.list().len();
    eventually("three more runs", || {
        let list = world.list();
        let is_done = |job: &serde_json::Value| job["status"] == "completed";
        (list.len() >= before + 3 && list.iter().take(before).all(is_done)).then_some(())
    });
    let runs = world.list();
    let dues: BTreeSet<&str> = runs.iter().map(|run| run["due"].as_str().unwrap()).collect();
    assert_eq!(dues.len(), runs.len(), "a time has two runs: {runs:?}");
    let numbered = runs.iter().filter(|run| run["name"].as_str().unwrap().matches('-').count() != 1);
    assert_eq!(numbered.count(), 0, "{runs:?}");
    // What a crash left half made is gone.
    let folders = crate::world::names(&world.path("root/state/jobs"));
    assert!(folders.len() <= world.list().len(), "{folders:?}");
    assert!(world.report("tick.toml").is_none());
    assert_eq!(daemon.stop().code, Some(0));
}
