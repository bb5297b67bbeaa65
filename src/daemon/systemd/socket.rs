//! The service manager's socket: datagrams of lines `NAME=value`, sent without ever waiting.
//!
//! # Invariants
//!
//! - A manager that is busy or gone costs nobody anything. What must arrive ([`Socket::insist`]) is kept while its
//!   queue is full, in order, and nothing overtakes it; what is soon said anew is dropped.
//!
//! # Why not a crate
//!
//! `sd-notify` 0.5 sends on a socket that blocks: a manager that does not read would stop the daemon. It reads the
//! environment itself, which has one door here, and takes the `@` of an abstract socket for a file's name.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::sleep;

use crate::bell::Bell;

/// How long a manager that takes nothing now is left alone.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

/// What must arrive and may wait: a start, a stop, and as many reloads as a manager may sleep through.
const WAITING_MAX: usize = 16;

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// The manager has it in its queue.
    Taken,
    /// The manager's queue is full.
    Full,
    /// Nobody is there, or nobody who would hear us.
    Gone,
}

/// See the module's words.
#[derive(Debug)]
pub(super) struct Socket {
    datagrams: UnixDatagram,
    manager: SocketAddr,
    /// What must arrive and has not, oldest first.
    waiting: Mutex<VecDeque<String>>,
    /// Rung when something begins to wait.
    kept: Bell,
    is_gone: AtomicBool,
}

impl Socket {
    /// To a manager at `name`: an absolute path, or `@` and the name of an abstract socket.
    pub(super) fn to(name: &OsStr) -> io::Result<Self> {
        let manager = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            _ => return Err(io::Error::other("it is neither an absolute path nor `@` and a name")),
        };
        let datagrams = UnixDatagram::unbound()?;
        datagrams.set_nonblocking(true)?;
        let (waiting, kept, is_gone) = (Mutex::default(), Bell::default(), AtomicBool::new(false));
        Ok(Self { datagrams, manager, waiting, kept, is_gone })
    }

    /// Sends what is said anew before long.
    pub(super) fn send(&self, lines: &str) -> Sent {
        let mut waiting = self.waiting();
        self.send_waiting(&mut waiting);
        if waiting.is_empty() { self.try_send(lines) } else { Sent::Full }
    }

    /// Sends what must arrive: at once, or as soon as the manager takes it while [`Socket::send_again`] runs.
    pub(super) fn insist(&self, lines: String) {
        let mut waiting = self.waiting();
        self.send_waiting(&mut waiting);
        if waiting.is_empty() && self.try_send(&lines) != Sent::Full {
            return;
        }
        if waiting.len() == WAITING_MAX {
            waiting.pop_front();
        }
        waiting.push_back(lines);
        self.kept.ring();
    }

    /// Sends what waits, for ever.
    pub(super) async fn send_again(&self) -> Infallible {
        let mut kept = self.kept.listen();
        loop {
            let is_empty = {
                let mut waiting = self.waiting();
                self.send_waiting(&mut waiting);
                waiting.is_empty()
            };
            if is_empty {
                kept.changed().await;
            } else {
                sleep(AGAIN).await;
            }
        }
    }

    fn send_waiting(&self, waiting: &mut VecDeque<String>) {
        while let Some(lines) = waiting.front()
            && self.try_send(lines) != Sent::Full
        {
            waiting.pop_front();
        }
    }

    fn try_send(&self, lines: &str) -> Sent {
        match self.datagrams.send_to_addr(lines.as_bytes(), &self.manager) {
            Ok(_) => {
                self.is_gone.store(false, Ordering::Relaxed);
                Sent::Taken
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::Full,
            Err(error) => {
                if !self.is_gone.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "the service manager can't be told how the daemon is");
                }
                Sent::Gone
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::path::Path;

    use futures_util::FutureExt;
    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;

    /// A manager at a path, which reads when it is asked to.
    pub(in crate::daemon::systemd) struct Manager {
        pub(in crate::daemon::systemd) folder: TempDir,
        socket: UnixDatagram,
    }

    impl Manager {
        pub(in crate::daemon::systemd) fn new() -> Self {
            let folder = tempfile::tempdir_in("/tmp").unwrap();
            let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
            socket.set_nonblocking(true).unwrap();
            Self { folder, socket }
        }

        pub(in crate::daemon::systemd) fn path(&self) -> std::path::PathBuf {
            self.folder.path().join("notify")
        }

        /// The next datagram that has arrived.
        pub(in crate::daemon::systemd) fn next(&self) -> Option<String> {
            let mut bytes = [0; 4096];
            let length = self.socket.recv(&mut bytes).ok()?;
            Some(String::from_utf8(bytes[..length].to_vec()).unwrap())
        }

        /// All that have arrived.
        pub(in crate::daemon::systemd) fn all(&self) -> Vec<String> {
            std::iter::from_fn(|| self.next()).collect()
        }
    }

    fn fill(socket: &Socket) -> usize {
        (0..usize::MAX).take_while(|_| socket.send("STATUS=x") == Sent::Taken).count()
    }

    #[test]
    fn datagrams_arrive_at_a_path_and_at_an_abstract_name() {
        let manager = Manager::new();
        let socket = Socket::to(manager.path().as_os_str()).unwrap();
        assert_eq!(socket.send("STATUS=one\nX=2"), Sent::Taken);
        assert_eq!(manager.all(), ["STATUS=one\nX=2"]);

        let name = format!("batchd-test-{}", manager.folder.path().display());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let heard = UnixDatagram::bind_addr(&address).unwrap();
        let socket = Socket::to(OsStr::new(&format!("@{name}"))).unwrap();
        socket.insist("READY=1".to_owned());
        let mut bytes = [0; 64];
        let length = heard.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"READY=1");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let long = format!("/{}", "x".repeat(200));
        for name in ["notify", "./notify", "vsock:2:1234", "", long.as_str()] {
            assert!(Socket::to(OsStr::new(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn manager_that_is_gone_is_passed_over_and_found_again() {
        let manager = Manager::new();
        let path = manager.path();
        let socket = Socket::to(path.as_os_str()).unwrap();
        drop(manager.socket);
        assert_eq!(socket.send("STATUS=nobody listens"), Sent::Gone);
        fs::remove_file(&path).unwrap();
        assert_eq!(socket.send("STATUS=nobody is there"), Sent::Gone);
        socket.insist("READY=1".to_owned());
        assert_eq!(socket.send_again().now_or_never(), None, "it must not be tried for ever");
        assert!(socket.waiting().is_empty());
        let back = UnixDatagram::bind(Path::new(&path)).unwrap();
        assert_eq!(socket.send("STATUS=here"), Sent::Taken);
        let mut bytes = [0; 64];
        assert_eq!(back.recv(&mut bytes).unwrap(), 11);
    }

    #[tokio::test(start_paused = true)]
    async fn what_must_arrive_waits_for_a_full_manager_in_order_and_the_rest_is_dropped() {
        let manager = Manager::new();
        let socket = Socket::to(manager.path().as_os_str()).unwrap();
        let full = fill(&socket);
        assert!(full > 0);
        socket.insist("READY=1".to_owned());
        assert_eq!(socket.send("STATUS=dropped"), Sent::Full);
        socket.insist("STOPPING=1".to_owned());
        assert!(timeout(AGAIN * 3, socket.send_again()).await.is_err());
        assert_eq!(manager.all().len(), full, "it took no more than it could");
        assert!(timeout(AGAIN * 3, socket.send_again()).await.is_err());
        assert_eq!(manager.all(), ["READY=1", "STOPPING=1"]);
        assert_eq!(socket.send("STATUS=again"), Sent::Taken);
        assert_eq!(manager.all(), ["STATUS=again"]);
    }

    #[test]
    fn what_waits_has_a_bound_and_the_latest_stays() {
        let manager = Manager::new();
        let socket = Socket::to(manager.path().as_os_str()).unwrap();
        fill(&socket);
        for number in 0..=WAITING_MAX {
            socket.insist(number.to_string());
        }
        manager.all();
        let mut arrived = Vec::new();
        while socket.send("last") == Sent::Full {
            arrived.extend(manager.all());
        }
        arrived.extend(manager.all());
        assert_eq!(arrived.len(), WAITING_MAX + 1);
        assert_eq!((arrived[0].as_str(), arrived[WAITING_MAX].as_str()), ("1", "last"));
    }
}
