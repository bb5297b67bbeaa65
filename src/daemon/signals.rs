//! The door for signals: a thread that hears them and a channel that tells of them.
//!
//! # Invariants
//!
//! - One wish to stop counts once. `timeout`, and whoever signals a process and then its group, sends the same
//!   signal twice at one moment; a second stop would abandon requests that are in flight and paid for.

use std::io;
use std::thread::{Builder, JoinHandle};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals as Heard};
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant};

/// Signals that may wait to be acted on; a person presses no more keys than that.
const WAITING_MAX: usize = 16;

/// A stop that comes this soon after one is its echo. No person presses keys so fast, and none notices so short
/// a wait.
const ECHO: Duration = Duration::from_millis(50);

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
}

/// Hears signals until it is dropped.
#[derive(Debug)]
pub(super) struct Signals {
    /// With the time when each was heard: the daemon may be busy before it asks.
    waiting: mpsc::Receiver<(Signal, Instant)>,
    stopped_at: Option<Instant>,
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        let mut heard = Heard::new([SIGTERM, SIGINT, SIGHUP])?;
        let handle = heard.handle();
        let (tell, waiting) = mpsc::channel(WAITING_MAX);
        let thread = Builder::new().name("batchd-signals".to_owned()).spawn(move || {
            for number in heard.forever() {
                let signal = if number == SIGHUP { Signal::Reload } else { Signal::Stop };
                if tell.try_send((signal, Instant::now())).is_err() {
                    tracing::debug!(number, "a signal is passed over: so many already ask for the same");
                }
            }
        })?;
        Ok(Self { waiting, stopped_at: None, handle, thread: Some(thread) })
    }

    pub(super) async fn next(&mut self) -> Signal {
        loop {
            match self.waiting.recv().await {
                Some((Signal::Stop, heard_at)) if self.is_echo(heard_at) => {
                    tracing::debug!("a signal to stop came twice at once");
                }
                Some((signal, _)) => return signal,
                None => std::future::pending().await,
            }
        }
    }

    /// Whether a stop that was heard then belongs to the one before.
    fn is_echo(&mut self, heard_at: Instant) -> bool {
        let is_echo = self.stopped_at.is_some_and(|before| heard_at.duration_since(before) < ECHO);
        if !is_echo {
            self.stopped_at = Some(heard_at);
        }
        is_echo
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signals() -> (mpsc::Sender<(Signal, Instant)>, Signals) {
        let (tell, waiting) = mpsc::channel(WAITING_MAX);
        let handle = Heard::new([] as [i32; 0]).unwrap().handle();
        (tell, Signals { waiting, stopped_at: None, handle, thread: None })
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_that_comes_twice_at_once_counts_once() {
        let (tell, mut signals) = signals();
        for signal in [Signal::Stop, Signal::Stop, Signal::Reload] {
            tell.try_send((signal, Instant::now())).unwrap();
        }
        assert_eq!(signals.next().await, Signal::Stop);
        assert_eq!(signals.next().await, Signal::Reload);
    }

    #[tokio::test(start_paused = true)]
    async fn a_person_who_asks_again_is_heard_even_by_a_daemon_that_is_late() {
        let (tell, mut signals) = signals();
        for number in 0..3 {
            tell.try_send((Signal::Stop, Instant::now() + ECHO * number)).unwrap();
        }
        for _ in 0..3 {
            assert_eq!(signals.next().await, Signal::Stop);
        }
    }
}
