//! A gate before a provider (or a model): how many may be inside at once, and whether anybody may enter.
//!
//! A refused key, a used-up quota or a vanished model closes the gate for everybody. After a while one
//! request is let through to try: if it is answered the gate opens, if it is refused again the gate
//! stays closed twice as long. [`Gate::resume`] lets one try at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::bell::{Bell, Listener};
use crate::control::QueuePause;

/// The first wait before a try, and the longest. A person who tops up or changes a key need not wait for
/// it: `resume`, a reload and a restart all try at once.
const FIRST_WAIT: Duration = Duration::from_mins(1);
const LONGEST_WAIT: Duration = Duration::from_mins(30);

/// Shared by all that send through it.
#[derive(Debug)]
pub(super) struct Gate {
    slots: Arc<Semaphore>,
    state: Mutex<State>,
    /// Somebody found it full, and waits for the bell. Changed under the lock of `state`.
    is_wanted: AtomicBool,
    changed: Bell,
}

#[derive(Debug)]
enum State {
    Open,
    Closed {
        pause: QueuePause,
        strikes: u32,
        until: Instant,
    },
    /// One request is on its way to see whether the gate may open.
    Trying {
        pause: QueuePause,
        strikes: u32,
    },
}

/// A place inside; dropping it leaves.
#[derive(Debug)]
pub(super) struct Inside {
    gate: Arc<Gate>,
    slot: Option<OwnedSemaphorePermit>,
    /// This is the one that tries whether the gate may open.
    trying: bool,
}

/// Why nobody may enter now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// All places are taken; [`Gate::changed`] ticks when one is free.
    Full,
    /// Closed until then; none while one is trying.
    Closed(Option<Instant>),
}

impl Gate {
    pub(super) fn new(slots: usize) -> Arc<Self> {
        let slots = Arc::new(Semaphore::new(slots.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self {
            slots,
            state: Mutex::new(State::Open),
            is_wanted: AtomicBool::new(false),
            changed: Bell::default(),
        })
    }

    pub(super) fn enter(self: &Arc<Self>, now: Instant) -> Result<Inside, Refused> {
        let mut state = self.lock();
        if let Some(refused) = state.refusal(now) {
            return Err(refused);
        }
        let trying = matches!(*state, State::Closed { .. });
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            self.is_wanted.store(true, Ordering::Relaxed);
            return Err(Refused::Full);
        };
        if let (true, State::Closed { pause, strikes, .. }) = (trying, &*state) {
            *state = State::Trying { pause: pause.clone(), strikes: *strikes };
        }
        Ok(Inside { gate: Arc::clone(self), slot: Some(slot), trying })
    }

    /// Why nobody may enter now, places aside.
    pub(super) fn refusal(&self, now: Instant) -> Option<Refused> {
        self.lock().refusal(now)
    }

    /// Ticks when a place is free again and when the gate opens or closes.
    pub(super) fn changed(&self) -> Listener {
        self.changed.listen()
    }

    /// Why the gate is closed, if it is.
    pub(super) fn pause(&self) -> Option<QueuePause> {
        match &*self.lock() {
            State::Open => None,
            State::Closed { pause, .. } | State::Trying { pause, .. } => Some(pause.clone()),
        }
    }

    /// Closes the gate, or keeps it closed for longer if a try was refused. Says whether it was open.
    fn close(&self, trying: bool, pause: QueuePause, retry_after: Option<Duration>, now: Instant) -> bool {
        let mut state = self.lock();
        let (was_open, strikes) = match &*state {
            State::Open => (true, 0),
            // Those who were inside when it closed are refused too; that says nothing new.
            State::Closed { .. } => return false,
            State::Trying { .. } if !trying => return false,
            State::Trying { strikes, .. } => (false, strikes + 1),
        };
        let wait = FIRST_WAIT.saturating_mul(1 << strikes.min(16)).min(LONGEST_WAIT);
        *state = State::Closed { pause, strikes, until: now + wait.max(retry_after.unwrap_or_default()) };
        drop(state);
        self.tick();
        was_open
    }

    /// Opens the gate if it was being tried.
    fn open(&self) {
        let mut state = self.lock();
        if matches!(*state, State::Trying { .. }) {
            *state = State::Open;
            drop(state);
            self.tick();
        }
    }

    /// Lets one try at once.
    pub(super) fn resume(&self, now: Instant) {
        if let State::Closed { until, .. } = &mut *self.lock() {
            *until = now;
        }
        self.tick();
    }

    fn tick(&self) {
        self.changed.ring();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn refusal(&self, now: Instant) -> Option<Refused> {
        match self {
            Self::Open => None,
            Self::Closed { until, .. } => (*until > now).then_some(Refused::Closed(Some(*until))),
            Self::Trying { .. } => Some(Refused::Closed(None)),
        }
    }
}

impl Inside {
    /// The server has judged the request itself: whatever it said, the key, quota and model are good.
    pub(super) fn passed(&self) {
        if self.trying {
            self.gate.open();
        }
    }
}

impl Inside {
    /// The server has refused more than the request. Says whether the gate was open.
    pub(super) fn refused(&self, pause: QueuePause, retry_after: Option<Duration>, now: Instant) -> bool {
        self.gate.close(self.trying, pause, retry_after, now)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        drop(self.slot.take());
        // Behind the slot and under the lock: who found no place before this has said so.
        let mut state = self.gate.lock();
        let is_wanted = self.gate.is_wanted.swap(false, Ordering::Relaxed);
        let mut undecided = false;
        if self.trying {
            // Neither passed nor refused (a time-out, say): the next one tries.
            if let State::Trying { pause, strikes } = &*state {
                let (pause, strikes) = (pause.clone(), *strikes);
                *state = State::Closed { pause, strikes, until: Instant::now() };
                undecided = true;
            }
        }
        drop(state);
        if is_wanted || undecided {
            self.gate.tick();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{PauseReason, Timestamp};

    fn pause() -> QueuePause {
        QueuePause { reason: PauseReason::Auth, message: String::new(), since: Timestamp::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn places_are_bounded_and_freed() {
        let gate = Gate::new(2);
        let (first, _second) = (gate.enter(Instant::now()).unwrap(), gate.enter(Instant::now()).unwrap());
        assert_eq!(gate.enter(Instant::now()).unwrap_err(), Refused::Full);
        let mut changed = gate.changed();
        drop(first);
        assert!(changed.has_changed());
        changed.mark_seen();
        gate.enter(Instant::now()).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn one_tries_after_the_wait_and_opens_or_doubles_it() {
        let gate = Gate::new(9);
        let inside = gate.enter(Instant::now()).unwrap();
        assert!(inside.refused(pause(), None, Instant::now()));
        assert!(!inside.refused(pause(), None, Instant::now()), "the second refusal says nothing new");
        inside.passed();
        assert!(gate.pause().is_some(), "who was inside before it closed does not open it");
        let until = Instant::now() + FIRST_WAIT;
        assert_eq!(gate.enter(Instant::now()).unwrap_err(), Refused::Closed(Some(until)));

        tokio::time::advance(FIRST_WAIT).await;
        let trying = gate.enter(Instant::now()).unwrap();
        assert_eq!(gate.enter(Instant::now()).unwrap_err(), Refused::Closed(None));
        inside.refused(pause(), None, Instant::now());
        assert_eq!(gate.enter(Instant::now()).unwrap_err(), Refused::Closed(None), "the try decides");
        trying.refused(pause(), None, Instant::now());
        drop(trying);
        let until = Instant::now() + FIRST_WAIT * 2;
        assert_eq!(gate.enter(Instant::now()).unwrap_err(), Refused::Closed(Some(until)));

        gate.resume(Instant::now());
        let trying = gate.enter(Instant::now()).unwrap();
        trying.passed();
        assert!(gate.pause().is_none());
        gate.enter(Instant::now()).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_undecided_try_lets_the_next_one_try() {
        let gate = Gate::new(9);
        gate.enter(Instant::now()).unwrap().refused(pause(), None, Instant::now());
        gate.resume(Instant::now());
        drop(gate.enter(Instant::now()).unwrap());
        assert!(gate.pause().is_some());
        assert!(gate.enter(Instant::now()).is_ok());
    }
}
