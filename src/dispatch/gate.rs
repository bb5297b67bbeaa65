//! A gate before a provider, one of its sites or a model: how many may be inside at once, and whether anybody may
//! enter.
//!
//! A refused key, a used-up quota or a vanished model closes the gate for everybody. After a while one
//! request is let through to try: if it is answered the gate opens, if it is refused again the gate
//! stays closed twice as long. [`Gate::resume`] lets one try at once.
//!
//! A server that is down closes it too ([`Breaker`]), for less long, and anything that it answers opens it again.
//!
//! # Invariants
//!
//! - What was sent with a key that has been replaced since says nothing about the gate any more: its refusal
//!   neither closes it nor keeps it closed ([`Gate::renew`]).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::bell::{Bell, Listener};
use crate::control::QueuePause;
use crate::dispatch::breaker::{Breaker, Failing};
use crate::domain::{PauseReason, Timestamp};

/// The first wait before a try, and the longest. A person who tops up or changes a key need not wait for
/// it: `resume`, a reload and a restart all try at once.
const FIRST_WAIT: Duration = Duration::from_mins(1);
const LONGEST_WAIT: Duration = Duration::from_mins(30);

/// The same for a server that is down. It comes back by itself, unannounced: at the longest it idles for a minute then,
/// and a try a minute is nothing to one that is still down, nor to what the tries may use up of attempts.
const FIRST_OUTAGE_WAIT: Duration = Duration::from_secs(5);
const LONGEST_OUTAGE_WAIT: Duration = Duration::from_mins(1);

/// A server that is down again this soon after it came back, and has done no work, was not back: its waits go on where
/// they were.
const RELAPSE: Duration = Duration::from_mins(1);

/// Shared by all that send through it.
#[derive(Debug)]
pub(super) struct Gate {
    room: Mutex<Room>,
    changed: Bell,
}

#[derive(Debug)]
struct Room {
    slots: usize,
    /// May be more than `slots` for a while, when those were made fewer.
    taken: usize,
    /// Somebody found it full, and waits for the bell.
    is_wanted: bool,
    /// Grows with every other key.
    generation: u64,
    state: State,
    breaker: Breaker,
    /// When a try opened it after an outage, and how many had failed before.
    recovered: Option<(Instant, u32)>,
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
    /// Of the gate, when it was entered.
    generation: u64,
    /// This is the one that tries whether the gate may open.
    trying: bool,
}

/// What a failure does to a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Felt {
    /// It counts, if at all.
    Counted,
    /// It was one too many: the gate has closed.
    Down,
    /// It was the try whether the gate may open, which stays closed.
    Tried,
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
    /// Rings `changed` when it opens or closes, and when a place is free that somebody waits for.
    pub(super) fn new(slots: usize, changed: Bell) -> Arc<Self> {
        let (state, breaker) = (State::Open, Breaker::default());
        let room = Room { slots, taken: 0, is_wanted: false, generation: 0, state, breaker, recovered: None };
        Arc::new(Self { room: Mutex::new(room), changed })
    }

    pub(super) fn enter(self: &Arc<Self>, now: Instant) -> Result<Inside, Refused> {
        let mut room = self.lock();
        if let Some(refused) = room.state.refusal(now) {
            return Err(refused);
        }
        if room.taken >= room.slots {
            room.is_wanted = true;
            return Err(Refused::Full);
        }
        room.taken += 1;
        let trying = match &room.state {
            State::Closed { pause, strikes, .. } => {
                room.state = State::Trying { pause: pause.clone(), strikes: *strikes };
                true
            }
            State::Open | State::Trying { .. } => false,
        };
        Ok(Inside { gate: Arc::clone(self), generation: room.generation, trying })
    }

    /// Why nobody may enter now, places aside.
    pub(super) fn refusal(&self, now: Instant) -> Option<Refused> {
        self.lock().state.refusal(now)
    }

    /// Ticks when a place is free again and when the gate opens or closes.
    pub(super) fn changed(&self) -> Listener {
        self.changed.listen()
    }

    /// Why the gate is closed, if it is.
    pub(super) fn pause(&self) -> Option<QueuePause> {
        match &self.lock().state {
            State::Open => None,
            State::Closed { pause, .. } | State::Trying { pause, .. } => Some(pause.clone()),
        }
    }

    /// From now on so many may be inside; who is in, stays.
    pub(super) fn set_slots(&self, slots: usize) {
        let mut room = self.lock();
        room.slots = slots;
        let is_awaited = room.taken < slots && std::mem::take(&mut room.is_wanted);
        drop(room);
        if is_awaited {
            self.tick();
        }
    }

    /// The provider is asked with another key from now on. Call it when that is so.
    pub(super) fn renew(&self, now: Instant) {
        let mut room = self.lock();
        room.generation += 1;
        let (State::Closed { pause, .. } | State::Trying { pause, .. }) = &room.state else { return };
        // One that tries with the old key can't tell: another tries at once.
        room.state = State::Closed { pause: pause.clone(), strikes: 0, until: now };
        drop(room);
        self.tick();
    }

    /// Lets one try at once.
    pub(super) fn resume(&self, now: Instant) {
        if let State::Closed { until, .. } = &mut self.lock().state {
            *until = now;
        }
        self.tick();
    }

    fn tick(&self) {
        self.changed.ring();
    }

    fn lock(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
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
        let (mut room, now) = (self.gate.lock(), Instant::now());
        if self.is_the_try(&room) {
            room.open(now);
            drop(room);
            self.gate.tick();
        } else if matches!(room.state, State::Open) {
            room.breaker.served(now);
        }
    }

    /// The server has said something with sense in it, though it did not judge the request: it is not down.
    pub(super) fn heard(&self) {
        let mut room = self.gate.lock();
        let State::Trying { pause, .. } = &room.state else { return };
        if pause.reason == PauseReason::Outage && self.is_the_try(&room) {
            room.open(Instant::now());
            drop(room);
            self.gate.tick();
        }
    }

    /// The exchange failed for the server's sake. `words` say how, for people.
    pub(super) fn failed(&self, failing: Failing, words: &str, since: Timestamp, now: Instant) -> Felt {
        let mut room = self.gate.lock();
        let felt = if matches!(room.state, State::Open) && room.breaker.failed(failing, now) {
            Felt::Down
        } else if self.is_the_try(&room) {
            Felt::Tried
        } else {
            return Felt::Counted;
        };
        let (pause, strikes) = match &room.state {
            State::Trying { pause, strikes } if pause.reason == PauseReason::Outage => {
                (QueuePause { message: words.to_owned(), ..pause.clone() }, strikes + 1)
            }
            // It says nothing about the key, but the next one need not try at once.
            State::Trying { pause, strikes } => (pause.clone(), *strikes),
            State::Open | State::Closed { .. } => {
                let is_relapse =
                    |at| now.saturating_duration_since(at) < RELAPSE && !room.breaker.has_worked();
                let relapse = room.recovered.filter(|(at, _)| is_relapse(*at));
                let pause = QueuePause { reason: PauseReason::Outage, message: words.to_owned(), since };
                (pause, relapse.map_or(0, |(_, strikes)| strikes + 1))
            }
        };
        let until = now + wait(pause.reason, strikes).min(LONGEST_OUTAGE_WAIT);
        room.state = State::Closed { pause, strikes, until };
        drop(room);
        self.gate.tick();
        felt
    }

    /// The server has refused more than the request. Says whether that is news.
    pub(super) fn refused(&self, pause: QueuePause, retry_after: Option<Duration>, now: Instant) -> bool {
        let mut room = self.gate.lock();
        let (is_news, strikes, since) = match &room.state {
            _ if self.generation != room.generation => return false,
            // Those who were inside when it closed are refused too; that says nothing new.
            State::Closed { .. } => return false,
            State::Trying { .. } if !self.trying => return false,
            State::Trying { pause: before, strikes } if before.reason == pause.reason => {
                (false, strikes + 1, before.since)
            }
            State::Open | State::Trying { .. } => (true, 0, pause.since),
        };
        let wait = wait(pause.reason, strikes).max(retry_after.unwrap_or_default());
        let pause = QueuePause { since, ..pause };
        room.state = State::Closed { pause, strikes, until: now + wait };
        drop(room);
        self.gate.tick();
        is_news
    }

    /// Whether the gate waits for what comes of this one.
    fn is_the_try(&self, room: &Room) -> bool {
        self.trying && self.generation == room.generation && matches!(room.state, State::Trying { .. })
    }
}

impl Room {
    /// For everybody; what failed before counts no more.
    fn open(&mut self, now: Instant) {
        if let State::Trying { pause, strikes } = &self.state
            && pause.reason == PauseReason::Outage
        {
            self.recovered = Some((now, *strikes));
        }
        self.state = State::Open;
        self.breaker = Breaker::default();
    }
}

/// How long the gate stays closed for this, after so many tries in vain.
fn wait(reason: PauseReason, strikes: u32) -> Duration {
    let (first, longest) = match reason {
        PauseReason::Outage => (FIRST_OUTAGE_WAIT, LONGEST_OUTAGE_WAIT),
        PauseReason::Auth
        | PauseReason::Quota
        | PauseReason::Model
        | PauseReason::Disk
        | PauseReason::FineTune
        | PauseReason::Overlap
        | PauseReason::User => (FIRST_WAIT, LONGEST_WAIT),
    };
    first.saturating_mul(1 << strikes.min(16)).min(longest)
}

impl Drop for Inside {
    fn drop(&mut self) {
        let mut room = self.gate.lock();
        room.taken -= 1;
        // Under the lock: who found no place before this has said so.
        let is_awaited = room.taken < room.slots && std::mem::take(&mut room.is_wanted);
        let undecided = self.is_the_try(&room);
        if undecided && let State::Trying { pause, strikes } = &room.state {
            // Neither passed nor refused (given up, say): the next one tries.
            let (pause, strikes) = (pause.clone(), *strikes);
            room.state = State::Closed { pause, strikes, until: Instant::now() };
        }
        drop(room);
        if is_awaited || undecided {
            self.gate.tick();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause() -> QueuePause {
        QueuePause { reason: PauseReason::Auth, message: String::new(), since: Timestamp::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn places_are_bounded_and_freed() {
        let gate = Gate::new(2, Bell::default());
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
        let gate = Gate::new(9, Bell::default());
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

    fn fail(inside: &Inside) -> Felt {
        inside.failed(Failing::Broken, "the server answered 502", Timestamp::default(), Instant::now())
    }

    /// A gate that has closed for an outage.
    fn down() -> Arc<Gate> {
        let gate = Gate::new(99, Bell::default());
        let inside: Vec<Inside> = (0..10).map(|_| gate.enter(Instant::now()).unwrap()).collect();
        assert!(inside[..9].iter().all(|inside| fail(inside) == Felt::Counted));
        assert_eq!(fail(&inside[9]), Felt::Down);
        assert_eq!(fail(&inside[0]), Felt::Counted, "what was in flight says nothing new");
        inside[1].passed();
        assert_eq!(gate.pause().unwrap().reason, PauseReason::Outage);
        gate
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_down_is_tried_by_one_at_a_time_at_growing_intervals_of_a_minute_at_most() {
        let gate = down();
        for seconds in [5, 10, 20, 40, 60, 60] {
            let until = Instant::now() + Duration::from_secs(seconds);
            assert_eq!(gate.enter(Instant::now()).unwrap_err(), Refused::Closed(Some(until)));
            tokio::time::advance(Duration::from_secs(seconds)).await;
            let trying = gate.enter(Instant::now()).unwrap();
            assert_eq!(gate.enter(Instant::now()).unwrap_err(), Refused::Closed(None));
            assert_eq!(fail(&trying), Felt::Tried);
        }
        assert_eq!(gate.pause().unwrap().since, Timestamp::default(), "one outage, since its beginning");
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_a_server_says_that_was_down_opens_the_gate() {
        for say in [Inside::passed, Inside::heard] {
            let gate = down();
            gate.resume(Instant::now());
            say(&gate.enter(Instant::now()).unwrap());
            assert!(gate.pause().is_none());
            // What failed before counts no more.
            assert_eq!(fail(&gate.enter(Instant::now()).unwrap()), Felt::Counted);
        }
        let gate = down();
        gate.resume(Instant::now());
        let trying = gate.enter(Instant::now()).unwrap();
        assert!(trying.refused(pause(), None, Instant::now()), "the key is refused: that is news");
        assert_eq!(gate.pause().unwrap().reason, PauseReason::Auth);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_falls_down_again_at_once_is_left_alone_for_longer() {
        let gate = down();
        gate.resume(Instant::now());
        gate.enter(Instant::now()).unwrap().passed();
        let inside = gate.enter(Instant::now()).unwrap();
        assert!((0..10).any(|_| fail(&inside) == Felt::Down));
        let until = Instant::now() + FIRST_OUTAGE_WAIT * 2;
        assert_eq!(gate.enter(Instant::now()).unwrap_err(), Refused::Closed(Some(until)));

        // One that works in between is only sick.
        gate.resume(Instant::now());
        gate.enter(Instant::now()).unwrap().passed();
        let inside = gate.enter(Instant::now()).unwrap();
        (0..20).for_each(|_| inside.passed());
        assert!((0..10).any(|_| fail(&inside) == Felt::Down));
        let until = Instant::now() + FIRST_OUTAGE_WAIT;
        assert_eq!(gate.enter(Instant::now()).unwrap_err(), Refused::Closed(Some(until)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_with_a_refused_key_that_finds_the_server_down_waits_for_the_next() {
        let gate = Gate::new(9, Bell::default());
        gate.enter(Instant::now()).unwrap().refused(pause(), None, Instant::now());
        gate.resume(Instant::now());
        let trying = gate.enter(Instant::now()).unwrap();
        trying.heard();
        assert_eq!(fail(&trying), Felt::Tried);
        drop(trying);
        assert_eq!(gate.pause().unwrap().reason, PauseReason::Auth);
        let until = Instant::now() + LONGEST_OUTAGE_WAIT;
        assert_eq!(gate.enter(Instant::now()).unwrap_err(), Refused::Closed(Some(until)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_undecided_try_lets_the_next_one_try() {
        let gate = Gate::new(9, Bell::default());
        gate.enter(Instant::now()).unwrap().refused(pause(), None, Instant::now());
        gate.resume(Instant::now());
        drop(gate.enter(Instant::now()).unwrap());
        assert!(gate.pause().is_some());
        assert!(gate.enter(Instant::now()).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn fewer_places_hold_at_once_and_more_wake_who_waits() {
        let gate = Gate::new(3, Bell::default());
        let mut inside: Vec<Inside> = (0..3).map(|_| gate.enter(Instant::now()).unwrap()).collect();
        gate.set_slots(1);
        let mut changed = gate.changed();
        for _ in 0..2 {
            assert_eq!(gate.enter(Instant::now()).unwrap_err(), Refused::Full);
            assert!(inside.pop().is_some());
        }
        assert_eq!(gate.enter(Instant::now()).unwrap_err(), Refused::Full);
        assert!(!changed.has_changed(), "nobody is woken for a place that there is not");
        gate.set_slots(2);
        assert!(changed.has_changed());
        changed.mark_seen();
        inside.push(gate.enter(Instant::now()).unwrap());
        assert_eq!(gate.enter(Instant::now()).unwrap_err(), Refused::Full);
        gate.set_slots(1);
        assert!(inside.pop().is_some());
        assert!(!changed.has_changed());
        assert!(inside.pop().is_some());
        assert!(changed.has_changed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_sent_with_an_old_key_says_nothing_about_the_new_one() {
        let gate = Gate::new(9, Bell::default());
        let enter = || gate.enter(Instant::now());
        let (first, late) = (enter().unwrap(), enter().unwrap());
        assert!(first.refused(pause(), None, Instant::now()));
        gate.resume(Instant::now());
        let old_try = enter().unwrap();

        // The key is replaced while the old one is being tried: nobody waits for what comes of that.
        let mut changed = gate.changed();
        gate.renew(Instant::now());
        assert!(changed.has_changed());
        changed.mark_seen();
        let new_try = enter().unwrap();
        assert!(!old_try.refused(pause(), None, Instant::now()));
        old_try.passed();
        drop(old_try);
        assert_eq!(enter().unwrap_err(), Refused::Closed(None), "the new try decides");
        new_try.passed();
        assert!(gate.pause().is_none());
        assert!(!late.refused(pause(), None, Instant::now()) && gate.pause().is_none());
        assert!(
            enter().unwrap().refused(pause(), None, Instant::now()),
            "the new key may be refused as well"
        );
    }
}
