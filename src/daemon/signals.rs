//! The door for signals: a thread that hears them and a channel that tells of them.

use std::io;
use std::thread::{Builder, JoinHandle};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals as Heard};
use tokio::sync::mpsc;

/// Signals that may wait to be acted on; a person presses no more keys than that.
const WAITING_MAX: usize = 16;

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
    waiting: mpsc::Receiver<Signal>,
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
                if tell.try_send(signal).is_err() {
                    tracing::debug!(number, "a signal is passed over: so many already ask for the same");
                }
            }
        })?;
        Ok(Self { waiting, handle, thread: Some(thread) })
    }

    pub(super) async fn next(&mut self) -> Signal {
        match self.waiting.recv().await {
            Some(signal) => signal,
            None => std::future::pending().await,
        }
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
