//! The board: which queues send nothing, why, and until when. Dispatchers write on it, reports read it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bell::{Bell, Listener};
use crate::domain::{PauseReason, QueueName, Timestamp};

/// Why nothing is sent for a queue now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuePause {
    pub reason: PauseReason,
    /// The provider's words.
    pub message: String,
    pub since: Timestamp,
}

/// Which queues are paused, and the bell that ends their pauses early. Shared by all workers.
#[derive(Clone, Debug, Default)]
pub struct Board {
    pauses: Arc<Mutex<BTreeMap<QueueName, QueuePause>>>,
    /// Queues that send nothing before a time that their provider named. That is no pause: it ends by itself, and soon.
    holds: Arc<Mutex<BTreeMap<QueueName, Timestamp>>>,
    changed: Bell,
    resumed: Bell,
}

impl Board {
    pub fn pause(&self, queue: &QueueName, pause: QueuePause) {
        let before = self.lock().insert(queue.clone(), pause.clone());
        if before != Some(pause) {
            self.changed.ring();
        }
    }

    /// Shows until when a queue holds still, if it does.
    pub fn hold(&self, queue: &QueueName, until: Option<Timestamp>) {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        match until {
            Some(until) => drop(holds.insert(queue.clone(), until)),
            None => drop(holds.remove(queue)),
        }
    }

    /// Until when queues hold still.
    pub(super) fn holds(&self, now: Timestamp) -> BTreeMap<QueueName, Timestamp> {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        // Of queues that have nothing to do any more, too.
        holds.retain(|_, until| *until > now);
        holds.clone()
    }

    pub fn clear(&self, queue: &QueueName) {
        if self.lock().remove(queue).is_some() {
            self.changed.ring();
        }
    }

    /// Ticks whenever a pause begins or ends.
    pub fn changes(&self) -> Listener {
        self.changed.listen()
    }

    pub fn pauses(&self) -> BTreeMap<QueueName, QueuePause> {
        self.lock().clone()
    }

    /// Ends every pause now: each paused queue tries again at once, and says so here if it must pause again.
    pub fn resume(&self) {
        // Before the bell: a pause that a queue writes after it heard the bell has to stay.
        self.lock().clear();
        self.changed.ring();
        self.resumed.ring();
    }

    /// Ticks at every [`Board::resume`].
    pub fn resumed(&self) -> Listener {
        self.resumed.listen()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<QueueName, QueuePause>> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
