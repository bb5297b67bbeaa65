//! What a service manager is told: against a socket of the test's own, at a path and at an abstract name.

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::Builder;
use std::time::Duration;

use rustix::process::Signal;

use crate::mounted::Mounted;
use crate::world::{Daemon, Setup, World, chat_lines, eventually};

/// Far beyond what anything here takes.
const DEADLINE: Duration = Duration::from_mins(1);

/// The watchdog's interval where it is looked at: pings come twice in it.
const WATCHDOG: Duration = Duration::from_millis(400);

/// Where work on a thread of its own is looked at, which is missing after five intervals.
const WORK_WATCHDOG: Duration = Duration::from_millis(200);

/// Where a manager listens, as it stands in `$NOTIFY_SOCKET`, and what it hears.
struct Manager {
    name: String,
    heard: Receiver<String>,
    /// Everything it has heard so far.
    all: Vec<String>,
}

impl Manager {
    fn at_path(world: &World) -> Self {
        let path = world.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Self::listening(path.display().to_string(), socket)
    }

    fn abstractly(world: &World) -> Self {
        let name = format!("batchd-e2e{}", world.path("notify").display());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        Self::listening(format!("@{name}"), UnixDatagram::bind_addr(&address).unwrap())
    }

    /// A kernel keeps few datagrams for who does not read them.
    fn listening(name: String, socket: UnixDatagram) -> Self {
        let (tell, heard) = channel();
        let listens = move || {
            let mut bytes = [0; 4096];
            while let Ok(length) = socket.recv(&mut bytes) {
                if tell.send(String::from_utf8(bytes[..length].to_vec()).unwrap()).is_err() {
                    return;
                }
            }
        };
        drop(Builder::new().spawn(listens).unwrap());
        Self { name, heard, all: Vec::new() }
    }

    fn start(&self, world: &World, more: &[(&str, &str)]) -> Daemon {
        let mut command = world.command(&["run"]);
        command.env("NOTIFY_SOCKET", &self.name).envs(more.iter().copied());
        world.spawn(command)
    }

    fn next(&mut self) -> String {
        self.next_within(DEADLINE).unwrap_or_else(|| panic!("nothing more is told after {:#?}", self.all))
    }

    fn next_within(&mut self, long: Duration) -> Option<String> {
        match self.heard.recv_timeout(long) {
            Ok(lines) => {
                self.all.push(lines.clone());
                Some(lines)
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("nobody listens any more"),
        }
    }

    /// The next datagram that is neither a ping nor only a status.
    fn next_step(&mut self) -> String {
        loop {
            let lines = self.next();
            if lines != "WATCHDOG=1" && !lines.starts_with("STATUS=") {
                return lines;
            }
        }
    }

    /// Waits for a datagram that holds this.
    fn wait_for(&mut self, text: &str) -> String {
        loop {
            let lines = self.next();
            if lines.contains(text) {
                return lines;
            }
        }
    }

    /// All that has come, when nothing more will.
    fn rest(&mut self) -> Vec<String> {
        // The process has ended, so it is all in the queue, and the listener empties that.
        while self.next_within(Duration::from_millis(100)).is_some() {}
        self.all.clone()
    }
}

fn value<'a>(lines: &'a str, name: &str) -> &'a str {
    let found = lines.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("no {name} in {lines}"))
}

#[test]
fn life_of_a_daemon_is_told_step_by_step() {
    let world = World::new();
    let mut manager = Manager::at_path(&world);
    let daemon = manager.start(&world, &[]);
    let first = manager.next();
    assert_eq!(first, "STATUS=recovering\nEXTEND_TIMEOUT_USEC=120000000");
    assert_eq!(manager.next_step(), "READY=1\nSTATUS=running");
    assert!(world.list().is_empty(), "commands are answered when it is ready");

    world.answer_after(Duration::from_secs(2));
    world.drop("job.jsonl", chat_lines(4));
    manager.wait_for("STATUS=running 1 job, 0/4");
    world.wait_for_requests(4);

    daemon.signal(Signal::HUP);
    let reloading = manager.next_step();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert!(value(&reloading, "MONOTONIC_USEC").parse::<u64>().unwrap() > 0);
    assert!(manager.next_step().starts_with("READY=1\nSTATUS=running"));

    daemon.signal(Signal::TERM);
    let stopping = manager.next_step();
    assert!(stopping.starts_with("STOPPING=1\nSTATUS=stopping: "), "{stopping}");
    assert!(stopping.contains("4 requests in flight"), "{stopping}");
    assert_eq!(value(&stopping, "EXTEND_TIMEOUT_USEC"), "90000000", "the grace and a minute");
    assert_eq!(daemon.wait().code, Some(0));
    assert!(manager.rest().iter().all(|lines| lines != "WATCHDOG=1"), "there is no watchdog");
    assert_eq!((world.ledger().paid, world.ledger().paid_twice), (4, 0));
}

#[test]
fn manager_at_an_abstract_name_is_told_as_well() {
    let world = World::new();
    let mut manager = Manager::abstractly(&world);
    let daemon = manager.start(&world, &[]);
    manager.wait_for("READY=1");
    assert_eq!(daemon.stop().code, Some(0));
    manager.wait_for("STOPPING=1");
}

#[test]
fn daemon_is_not_ready_before_its_recovery_is_over() {
    let world = World::new();
    world.drop("job.jsonl", chat_lines(2));
    world.run_to_success();
    let mut manager = Manager::at_path(&world);
    let mut daemon = manager.start(&world, &[("BATCHD_FAULT_POINT", "recover-index-opened:hang")]);
    daemon.wait_for_log("hangs at a fault point");
    manager.wait_for("STATUS=recovering");
    daemon.kill();
    let told = manager.rest();
    assert!(!told.iter().any(|lines| lines.contains("READY=1")), "{told:#?}");
}

#[test]
fn manager_that_reads_nothing_or_has_gone_is_in_nobodys_way() {
    let world = World::new();
    let path = world.path("notify");
    let asleep = UnixDatagram::bind(&path).unwrap();
    fill(&path);
    let mut command = world.command(&["run"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "100000");
    let mut daemon = world.spawn(command);
    daemon.wait_for_log("batchd is running");
    world.drop("job.jsonl", chat_lines(4));
    world.wait_for_status("job", "completed");
    let mut bytes = [0; 64];
    eventually("it is told when it reads at last", || {
        let length = asleep.recv(&mut bytes).unwrap();
        bytes[..length].starts_with(b"READY=1").then_some(())
    });
    drop(asleep);
    daemon.wait_for_log("the service manager can't be told how the daemon is");
    world.drop("job2.jsonl", chat_lines(4).replace("question", "another"));
    world.wait_for_status("job2", "completed");
    assert_eq!(daemon.stop().code, Some(0));
}

/// Puts datagrams into the queue of who listens at `path` until it takes no more.
fn fill(path: &Path) {
    let socket = UnixDatagram::unbound().unwrap();
    socket.set_nonblocking(true).unwrap();
    loop {
        match socket.send_to(b"X=1", path) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("{error}"),
        }
    }
}

fn watchdog() -> String {
    micros(WATCHDOG)
}

fn micros(interval: Duration) -> String {
    interval.as_micros().to_string()
}

#[test]
fn watchdog_is_pinged_while_all_are_alive_also_in_a_drain() {
    let world = World::new();
    let mut manager = Manager::at_path(&world);
    let daemon = manager.start(&world, &[("WATCHDOG_USEC", &watchdog())]);
    manager.wait_for("READY=1");
    for _ in 0..2 {
        manager.wait_for("WATCHDOG=1");
    }
    world.answer_after(WATCHDOG * 4);
    world.drop("job.jsonl", chat_lines(2));
    world.wait_for_requests(2);
    daemon.signal(Signal::TERM);
    manager.wait_for("STOPPING=1");
    for _ in 0..2 {
        manager.wait_for("WATCHDOG=1");
    }
    assert_eq!(daemon.wait().code, Some(0));
}

/// Lets one worker hang for ever: the pings end, and the log names it.
fn hangs(point: &str, name: &str) {
    hangs_within(point, name, WATCHDOG);
}

fn hangs_within(point: &str, name: &str, interval: Duration) {
    let world = World::new();
    let mut manager = Manager::at_path(&world);
    let hang = format!("{point}:hang");
    let told = [("WATCHDOG_USEC", micros(interval)), ("BATCHD_FAULT_POINT", hang)];
    let told = told.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut daemon = manager.start(&world, &told);
    manager.wait_for("READY=1");
    manager.wait_for("WATCHDOG=1");
    world.drop("job.jsonl", chat_lines(20));
    daemon.wait_for_log("hangs at a fault point");
    let names = |line: &str| line.contains("no sign of life") && line.contains(name);
    eventually(&format!("{name} is named"), || daemon.log().lines().any(names).then_some(()));
    // Those that were sent before it was missed.
    while manager.next_within(Duration::from_millis(1)).is_some() {}
    let pinged = std::iter::from_fn(|| manager.next_within(interval * 2)).any(|lines| lines == "WATCHDOG=1");
    assert!(!pinged, "it is pinged though {name} hangs");
    daemon.kill();
}

#[test]
fn hung_dispatcher_trips_the_watchdog() {
    hangs("dispatch-leased", "the dispatcher of sim/m");
}

#[test]
fn hung_index_trips_the_watchdog() {
    hangs("store-index-applied", "the index of the store");
}

#[test]
fn hung_sync_of_a_journal_trips_the_watchdog() {
    hangs("store-journal-syncing", "the journals of the store");
}

#[test]
fn hung_results_writer_trips_the_watchdog() {
    hangs("output-linked", "the results writer");
}

#[test]
fn publication_that_hangs_on_a_thread_of_its_own_trips_the_watchdog() {
    for point in ["output-line-written", "output-lines-published"] {
        hangs_within(point, "the results of job", WORK_WATCHDOG);
    }
}

#[test]
fn publication_that_is_slow_and_comes_on_does_not_trip_the_watchdog() {
    let world = World::new();
    let mut manager = Manager::at_path(&world);
    let slow =
        [("WATCHDOG_USEC", &*micros(WORK_WATCHDOG)), ("BATCHD_FAULT_POINT", "output-line-written:slow")];
    let daemon = manager.start(&world, &slow);
    manager.wait_for("READY=1");
    // 50 ms a line: more than twice the patience.
    world.drop("job.jsonl", chat_lines(48));
    world.wait_for_status("job", "completed");
    let log = daemon.stop().stderr;
    let missing = |line: &&str| line.contains("no sign of life") && line.contains("the results of");
    assert_eq!(log.lines().find(missing), None);
    let pings = manager.rest().iter().filter(|lines| *lines == "WATCHDOG=1").count();
    assert!(pings > 10, "{pings} pings");
}

#[test]
#[ignore = "needs root, to mount"]
fn start_on_a_full_disk_asks_for_time_until_there_is_room() {
    let world = World::with(&Setup { storage: "", ..Setup::default() });
    let Some(mounted) = Mounted::new(&world, "tmpfs", 48) else { return };
    let filler = world.path("root/filler");
    let filled =
        Command::new("dd").args(["if=/dev/zero", "bs=1M"]).arg(format!("of={}", filler.display())).status();
    assert!(!filled.unwrap().success(), "it fits");
    let mut manager = Manager::at_path(&world);
    let daemon = manager.start(&world, &[]);
    manager.wait_for("STATUS=recovering");
    let waiting = manager.wait_for("STATUS=waiting for room on the disk: ");
    assert!(waiting.contains("\nEXTEND_TIMEOUT_USEC="), "{waiting}");
    for _ in 0..2 {
        assert_eq!(manager.next(), "EXTEND_TIMEOUT_USEC=120000000");
    }
    std::fs::remove_file(filler).unwrap();
    assert_eq!(manager.next_step(), "READY=1\nSTATUS=running");
    assert_eq!(daemon.stop().code, Some(0));
    drop(mounted);
}
