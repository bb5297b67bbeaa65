//! What others hold of a running intake: they see what it sees, and can ask it to look.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Settings;
use crate::bell::{Bell, Listener};

/// What the last look at the jobs folder left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Looks so far, with all that they brought taken in. 0: nobody knows yet what lies there.
    pub looks: u64,
    /// Specs that will be read yet: still settling, or more than one look takes in.
    pub pending: usize,
    /// Specs that can't be taken in for now because of `trouble`; they are tried again.
    pub blocked: usize,
    /// What stands in the way, in words.
    pub trouble: Option<String>,
    /// The last [`Handle::wake`] that was heard before the look began.
    pub(super) heard: u64,
}

impl Status {
    /// Everything that could be taken in at the time of the look has been. What is `blocked`, or a folder that
    /// could not be looked at (`trouble`), is not waited for.
    pub const fn is_idle(&self) -> bool {
        self.looks > 0 && self.pending == 0
    }
}

/// What others hold of a running intake. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Handle {
    pub(super) calls: Bell,
    seen: Arc<Mutex<Seen>>,
    /// Rings whenever `seen` has changed.
    changed: Bell,
}

#[derive(Debug, Default)]
struct Seen {
    status: Status,
    /// No look will follow.
    has_ended: bool,
    /// Those that hold from the next look on, if they have changed.
    settings: Option<Settings>,
}

impl Handle {
    /// Asks for a look at the folder now.
    pub fn wake(&self) {
        self.calls.ring();
    }

    /// Lets `settings` hold from now on, and looks at once. The folders stay those it began with.
    pub fn change(&self, settings: Settings) {
        self.lock().settings = Some(settings);
        self.wake();
    }

    /// What [`Handle::change`] has brought since the last call.
    pub(super) fn changed_settings(&self) -> Option<Settings> {
        self.lock().settings.take()
    }

    /// The outcome of the last look.
    pub fn status(&self) -> Status {
        self.lock().status.clone()
    }

    /// Ticks after every look.
    pub fn changes(&self) -> Listener {
        self.changed.listen()
    }

    /// The outcome of a look that began after this call: what was dropped before it is in it. The last one
    /// known, if intake has ended.
    pub async fn look(&self) -> Status {
        let call = self.calls.ring();
        self.until(|status| status.heard >= call).await
    }

    /// The outcome of the first look that `fits`, the last one included; the last one known, if intake has ended.
    pub(super) async fn until(&self, fits: impl Fn(&Status) -> bool) -> Status {
        let mut changes = self.changes();
        loop {
            let (status, has_ended) = {
                let seen = self.lock();
                (seen.status.clone(), seen.has_ended)
            };
            if has_ended || fits(&status) {
                return status;
            }
            changes.changed().await;
        }
    }

    /// Tells everyone what a look left.
    pub(super) fn publish(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.lock().status);
        self.changed.ring();
    }

    /// Nobody need wait for another look.
    pub(super) fn end(&self) {
        self.lock().has_ended = true;
        self.changed.ring();
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
