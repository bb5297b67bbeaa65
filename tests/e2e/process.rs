//! A process of the binary: started, waited for, told to stop, killed.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

/// Far beyond what anything here takes, also on a machine that is busy with other things.
const DEADLINE: Duration = Duration::from_mins(1);
/// Between two looks at what another process does.
const LOOK: Duration = Duration::from_millis(5);

/// The binary without a configuration and without this process's environment.
pub(crate) fn bare_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_batchd"));
    command.env_clear();
    command
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Output {
    /// None if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A running process; killed when it is dropped.
pub(crate) struct Daemon {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Daemon {
    /// Starts it, with its stdout and stderr in two files.
    pub(crate) fn spawn(mut command: Command, [stdout, stderr]: [PathBuf; 2]) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&stdout).unwrap())
            .stderr(File::create(&stderr).unwrap())
            .spawn()
            .unwrap();
        Self { child, stdout, stderr }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap()
    }

    pub(crate) fn printed(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap()
    }

    /// Waits until stderr holds `text`.
    pub(crate) fn wait_for_log(&mut self, text: &str) {
        eventually(&format!("`{text}` is logged"), || {
            let log = self.log();
            if log.contains(text) {
                return Some(());
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "ended with {ended:?} before `{text}` was logged:\n{log}");
            None
        });
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) fn stop(self) -> Output {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(self) -> Output {
        self.signal(Signal::KILL);
        self.wait()
    }

    /// Asks it to stop again and again, as somebody in a hurry does, until it has.
    pub(crate) fn insist(mut self) -> Output {
        eventually("the process ends", || {
            self.signal(Signal::TERM);
            self.child.try_wait().unwrap()
        });
        self.wait()
    }

    /// Waits for its end.
    pub(crate) fn wait(self) -> Output {
        self.wait_at_most(DEADLINE)
    }

    /// Waits for the end of one that has much to do.
    pub(crate) fn wait_at_most(mut self, long: Duration) -> Output {
        let status: ExitStatus =
            eventually_within(long, "the process ends", || self.child.try_wait().unwrap());
        Output { code: status.code(), stdout: self.printed(), stderr: self.log() }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the log of the process:\n{}", self.log());
        }
        // Fails if it has ended already, which is as well.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Looks again and again until there is something to see.
pub(crate) fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    eventually_within(DEADLINE, what, look)
}

fn eventually_within<T>(long: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + long;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never seen: {what}");
        std::thread::park_timeout(LOOK);
    }
}
