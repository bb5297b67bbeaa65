//! A burst of files that overflows the kernel's queue of events: what lies in the folder is found all the same.

use std::fs;

use rustix::process::Signal;

use crate::world::{Setup, World, chat_line, eventually};

/// Above `fs.inotify.max_queued_events`, 16,384 as a rule: what comes behind those is told by one event that names
/// nothing.
const FILES: usize = 40_000;
const SPECS: usize = 20;

#[test]
fn specs_are_found_though_the_events_that_told_of_them_were_lost() {
    // Nobody looks by himself, and the events of the specs are lost: the kernel says only that some were.
    let world = World::with(&Setup { rescan: "1h", ..Setup::default() });
    let daemon = world.start();
    world.drop("first.jsonl", chat_line("first", "is anybody there?"));
    eventually("the first job", || world.results("first").has("summary.json").then_some(()));

    daemon.signal(Signal::STOP);
    for number in 0..FILES {
        fs::write(world.jobs_dir().join(format!("download-{number}.part")), "").unwrap();
    }
    for number in 0..SPECS {
        world.drop(&format!("late-{number}.jsonl"), chat_line("r", &format!("question {number}")));
    }
    daemon.signal(Signal::CONT);

    for number in 0..SPECS {
        let results = world.results(&format!("late-{number}"));
        eventually("a job that was dropped late", || results.has("summary.json").then_some(()));
        assert_eq!(results.outcome(), ("completed".to_owned(), 1, 1, 0));
    }
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!(world.ledger().requests, 1 + SPECS as u64);
    let left = fs::read_dir(world.jobs_dir())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".part"));
    assert_eq!(left.count(), FILES, "what is no spec stays where it is");
}
