//! The door for signals: a thread that hears them, and what was heard and waits to be acted on.
//!
//! # Invariants
//!
//! - One wish to stop counts once. `timeout`, and whoever signals a process and then its group, sends the same
//!   signal twice at one moment; a second stop would abandon requests that are in flight and paid for.
//! - A stop waits behind nothing and is crowded out by nothing: it is told of first, and of the other wishes each is
//!   kept once.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::{Handle, Signals as Heard};
use tokio::time::{Duration, Instant};

use crate::bell::{Bell, Listener};

/// Stops that may wait to be acted on; a person presses no more keys than that.
const STOPS_MAX: usize = 16;

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
    /// SIGUSR1.
    Report,
}

/// Hears signals until it is dropped.
#[derive(Debug)]
pub(super) struct Signals {
    inbox: Arc<Inbox>,
    news: Listener,
    stopped_at: Option<Instant>,
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

/// Filled by the thread that hears.
#[derive(Debug, Default)]
struct Inbox {
    waiting: Mutex<Waiting>,
    bell: Bell,
}

#[derive(Debug, Default)]
struct Waiting {
    /// When each was heard: the daemon may be busy before it asks.
    stops: VecDeque<Instant>,
    reload: bool,
    report: bool,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        let mut heard = Heard::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
        let handle = heard.handle();
        let inbox = Arc::new(Inbox::default());
        let filled = Arc::clone(&inbox);
        let thread = Builder::new().name("batchd-signals".to_owned()).spawn(move || {
            for number in heard.forever() {
                let signal = match number {
                    SIGHUP => Signal::Reload,
                    SIGUSR1 => Signal::Report,
                    _ => Signal::Stop,
                };
                filled.put(signal, Instant::now());
            }
        })?;
        Ok(Self { news: inbox.bell.listen(), inbox, stopped_at: None, handle, thread: Some(thread) })
    }

    /// The next wish: to stop goes first.
    pub(super) async fn next(&mut self) -> Signal {
        loop {
            self.news.mark_seen();
            if let Some(signal) = self.take() {
                return signal;
            }
            self.news.changed().await;
        }
    }

    fn take(&mut self) -> Option<Signal> {
        loop {
            let heard_at = self.inbox.lock().stops.pop_front();
            match heard_at {
                Some(heard_at) if self.is_echo(heard_at) => {
                    tracing::debug!("a signal to stop came twice at once");
                }
                Some(_) => return Some(Signal::Stop),
                None => break,
            }
        }
        let mut waiting = self.inbox.lock();
        if std::mem::take(&mut waiting.reload) {
            Some(Signal::Reload)
        } else {
            std::mem::take(&mut waiting.report).then_some(Signal::Report)
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

impl Inbox {
    fn put(&self, signal: Signal, at: Instant) {
        let mut waiting = self.lock();
        match signal {
            Signal::Stop if waiting.stops.len() < STOPS_MAX => waiting.stops.push_back(at),
            Signal::Stop => {} // so many already ask for the same
            Signal::Reload => waiting.reload = true,
            Signal::Report => waiting.report = true,
        }
        drop(waiting);
        self.bell.ring();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
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
    use futures_util::FutureExt;

    use super::*;

    fn signals() -> Signals {
        let inbox = Arc::new(Inbox::default());
        let handle = Heard::new([] as [i32; 0]).unwrap().handle();
        Signals { news: inbox.bell.listen(), inbox, stopped_at: None, handle, thread: None }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_that_comes_twice_at_once_counts_once() {
        let mut signals = signals();
        for signal in [Signal::Stop, Signal::Stop, Signal::Reload] {
            signals.inbox.put(signal, Instant::now());
        }
        assert_eq!(signals.next().await, Signal::Stop);
        assert_eq!(signals.next().await, Signal::Reload);
        assert_eq!(signals.next().now_or_never(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_person_who_asks_again_is_heard_even_by_a_daemon_that_is_late() {
        let mut signals = signals();
        for number in 0..3 {
            signals.inbox.put(Signal::Stop, Instant::now() + ECHO * number);
        }
        for _ in 0..3 {
            assert_eq!(signals.next().await, Signal::Stop);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_goes_before_all_else_and_other_wishes_are_kept_once() {
        let mut signals = signals();
        for _ in 0..1_000 {
            signals.inbox.put(Signal::Report, Instant::now());
            signals.inbox.put(Signal::Reload, Instant::now());
        }
        signals.inbox.put(Signal::Stop, Instant::now());
        for expected in [Signal::Stop, Signal::Reload, Signal::Report] {
            assert_eq!(signals.next().await, expected);
        }
        assert_eq!(signals.next().now_or_never(), None);
        // One that comes while the last is being carried out is a new one.
        signals.inbox.put(Signal::Reload, Instant::now());
        assert_eq!(signals.next().now_or_never(), Some(Signal::Reload));
    }
}
