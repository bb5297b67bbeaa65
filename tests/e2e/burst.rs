//! A burst that overflows the kernel's queue of events: what lies in the folder is found all the same.

use std::fs::{self, File};

use rustix::process::Signal;

use crate::world::{Setup, World, chat_line, eventually};

const SPECS: usize = 20;

/// Events that the kernel keeps for who does not read them. What comes behind them is told by one that names nothing.
fn queue() -> usize {
    let text = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    text.trim().parse().unwrap()
}

#[test]
fn specs_are_found_though_the_events_that_told_of_them_were_lost() {
    // Nobody looks by himself, and what fills the queue is no reason to look: that files were opened, in turns, since
    // equal events in a row are one. So it is the loss itself that makes the daemon look.
    let world = World::with(&Setup { rescan: "1h", ..Setup::default() });
    let parts = ["one", "two"].map(|name| world.jobs_dir().join(format!("{name}.part")));
    fs::create_dir_all(world.jobs_dir()).unwrap();
    for part in &parts {
        fs::write(part, "").unwrap();
    }
    let daemon = world.start();
    world.drop("first.jsonl", chat_line("first", "is anybody there?"));
    eventually("the first job", || world.results("first").has("summary.json").then_some(()));

    daemon.signal(Signal::STOP);
    for part in parts.iter().cycle().take(2 * queue()) {
        drop(File::open(part).unwrap());
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
    assert!(parts.iter().all(|part| part.exists()), "what is no spec stays where it is");
}
