//! Folders that vanish under a running daemon, and places where nothing can be watched: it waits, makes nothing in their
//! place, says so once, and goes on when they are back.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::mounted::succeeds;
use crate::world::{Daemon, World, chat_line, chat_lines, eventually, names};

const TROUBLE: &str = "job specs can't be taken in";

fn wait_for_results(world: &World, job: &str) {
    eventually(&format!("results of `{job}`"), || world.results(job).has("summary.json").then_some(()));
}

/// A daemon that has made its folders and looked into them.
fn started(world: &World) -> Daemon {
    world.drop("begin.jsonl", chat_line("r", "are you there?"));
    let daemon = world.start();
    world.wait_for_status("begin", "completed");
    daemon
}

fn stop(daemon: Daemon) {
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn jobs_folder_that_is_renamed_is_waited_for() {
    let world = World::new();
    let mut daemon = started(&world);
    let (jobs, away) = (world.jobs_dir(), world.path("root/away"));
    fs::rename(&jobs, &away).unwrap();
    daemon.wait_for_log(TROUBLE);
    fs::write(away.join("job.jsonl"), chat_lines(3)).unwrap();
    let again = world.batchd(&["retry", "none"]);
    assert_eq!(again.code, Some(2), "it still answers");
    assert!(!jobs.exists() && !world.results("job").dir.exists());
    fs::rename(&away, &jobs).unwrap();
    wait_for_results(&world, "job");
    daemon.wait_for_log("job specs can be taken in again");
    assert_eq!(daemon.log().matches(TROUBLE).count(), 1);
    stop(daemon);
}

#[test]
fn jobs_folder_that_was_removed_is_used_when_somebody_makes_another() {
    let world = World::new();
    let mut daemon = started(&world);
    fs::remove_dir_all(world.jobs_dir()).unwrap();
    daemon.wait_for_log(TROUBLE);
    assert!(!world.jobs_dir().exists(), "nobody makes it silently");
    fs::create_dir(world.jobs_dir()).unwrap();
    world.drop("bad.jsonl", "{}\n");
    world.drop("good.jsonl", chat_lines(1));
    wait_for_results(&world, "good");
    let report = eventually("the report", || world.report("bad.jsonl"));
    assert!(report.starts_with("bad.jsonl:1"), "{report}");
    // And again at once: events come from the new folder.
    world.drop("next.jsonl", chat_lines(1).replace("question", "other"));
    wait_for_results(&world, "next");
    stop(daemon);
}

#[test]
fn nothing_is_accepted_into_a_state_folder_that_is_not_the_one_there_was() {
    let world = World::new();
    let mut daemon = started(&world);
    let (jobs, away) = (world.path("root/state/jobs"), world.path("root/state/away"));
    fs::rename(&jobs, &away).unwrap();
    // What lies under a mount point looks like this.
    fs::create_dir(&jobs).unwrap();
    world.drop("job.jsonl", chat_lines(3));
    daemon.wait_for_log("is not the folder that it was at the start");
    assert!(names(&world.jobs_dir()).iter().any(|name| name == "job.jsonl"), "it waits where it was");
    assert!(names(&jobs).is_empty());
    fs::remove_dir(&jobs).unwrap();
    fs::rename(&away, &jobs).unwrap();
    wait_for_results(&world, "job");
    assert_eq!(world.ledger().requests, 1 + 3);
    stop(daemon);
}

#[test]
fn no_results_are_written_in_the_place_of_those_that_are_gone() {
    let world = World::new();
    let mut daemon = started(&world);
    let (results, away) = (world.path("root/results"), world.path("root/away"));
    fs::rename(&results, &away).unwrap();
    world.drop("job.jsonl", chat_lines(3));
    daemon.wait_for_log("results can't be read or written");
    assert!(!results.exists());
    fs::rename(&away, &results).unwrap();
    stop(daemon);
    world.run_to_success();
    assert_eq!(world.results("job").outcome(), ("completed".to_owned(), 3, 3, 0));
}

/// Runs the daemon where its user may have no inotify instance. None, and a word about it, where that can't be.
fn start_without_inotify(world: &World) -> Option<Daemon> {
    let probe = "echo 0 > /proc/sys/user/max_inotify_instances";
    if !succeeds(Command::new("unshare").args(["-Ur", "sh", "-c", probe])) {
        eprintln!("skipped: no user namespace with limits of its own can be made here");
        return None;
    }
    let daemon = world.command(&["run"]);
    let mut command = Command::new("unshare");
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir(world.path(""));
    command.args(["-Ur", "sh", "-c", &format!("{probe} && exec \"$0\" \"$@\"")]);
    command.arg(daemon.get_program()).args(daemon.get_args());
    let mut daemon = world.spawn(command);
    daemon.wait_for_log("batchd is running");
    Some(daemon)
}

#[test]
fn without_inotify_the_folder_is_looked_through_and_the_log_says_so_once() {
    let world = World::new();
    let Some(mut daemon) = start_without_inotify(&world) else { return };
    for round in 0..3 {
        world.drop(&format!("job-{round}.jsonl"), chat_line("r", &format!("question {round}")));
        wait_for_results(&world, &format!("job-{round}"));
    }
    daemon.wait_for_log("fs.inotify.max_user_instances");
    assert_eq!(daemon.log().matches("the jobs folder can't be watched").count(), 1);
    stop(daemon);
}

/// A file system in memory, unmounted when it is dropped.
struct Memory<'a>(&'a Path);

impl<'a> Memory<'a> {
    fn mount(at: &'a Path) -> Option<Self> {
        if succeeds(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(at)) {
            return Some(Self(at));
        }
        eprintln!("skipped: nothing can be mounted here; are you root?");
        None
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        succeeds(Command::new("umount").arg("-l").arg(self.0));
    }
}

#[test]
#[ignore = "needs root, to mount"]
fn unmounted_jobs_folder_is_waited_for() {
    let world = World::new();
    let jobs = world.jobs_dir();
    let Some(mounted) = Memory::mount(&jobs) else { return };
    let mut daemon = world.start();
    fs::write(jobs.join("job.jsonl"), chat_lines(1)).unwrap();
    wait_for_results(&world, "job");
    drop(mounted);
    // It lies under the mount point.
    fs::write(jobs.join("beneath.jsonl"), chat_lines(1)).unwrap();
    daemon.wait_for_log("its file system is not mounted any more");
    let Some(again) = Memory::mount(&jobs) else { panic!("it was possible before") };
    daemon.wait_for_log("job specs can be taken in again");
    fs::write(jobs.join("good.jsonl"), chat_lines(1).replace("question", "another")).unwrap();
    fs::write(jobs.join("bad.jsonl"), "{}\n").unwrap();
    wait_for_results(&world, "good");
    eventually("the report", || world.report("bad.jsonl"));
    assert!(!world.results("beneath").dir.exists());
    assert_eq!(daemon.log().matches(TROUBLE).count(), 1);
    stop(daemon);
    drop(again);
}

#[test]
#[ignore = "needs root, to mount"]
fn unmounted_results_folder_is_waited_for() {
    let world = World::new();
    let results = world.path("root/results");
    fs::create_dir(&results).unwrap();
    let Some(mounted) = Memory::mount(&results) else { return };
    world.answer_after(Duration::from_millis(300));
    let mut daemon = world.start();
    world.drop("job.jsonl", chat_lines(1));
    world.wait_for_requests(1);
    drop(mounted);
    daemon.wait_for_log("its file system is not mounted any more");
    assert!(names(&results).is_empty(), "nothing lies under the mount point");
    let Some(again) = Memory::mount(&results) else { panic!("it was possible before") };
    wait_for_results(&world, "job");
    stop(daemon);
    drop(again);
}

#[test]
#[ignore = "needs root, to mount"]
fn overlay_is_looked_through_and_watched() {
    let world = World::new();
    let layers = world.path("layers");
    fs::create_dir(&layers).unwrap();
    let Some(memory) = Memory::mount(&layers) else { return };
    for name in ["lower", "upper", "work"] {
        fs::create_dir(layers.join(name)).unwrap();
    }
    fs::write(layers.join("lower/beneath.jsonl"), chat_lines(1)).unwrap();
    let jobs = world.jobs_dir();
    let path = |name: &str| layers.join(name).display().to_string();
    let options = format!("lowerdir={},upperdir={},workdir={}", path("lower"), path("upper"), path("work"));
    let mut mount = Command::new("mount");
    if !succeeds(mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(&jobs)) {
        eprintln!("skipped: no overlay can be mounted here");
        return;
    }
    let overlay = Memory(&jobs);
    let mut daemon = world.start();
    daemon.wait_for_log("events may not come from this file system");
    wait_for_results(&world, "beneath");
    fs::write(jobs.join("above.jsonl"), chat_lines(1).replace("question", "another")).unwrap();
    wait_for_results(&world, "above");
    stop(daemon);
    drop(overlay);
    drop(memory);
}
