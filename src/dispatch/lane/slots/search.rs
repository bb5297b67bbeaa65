//! How many in flight a server serves best, by how long its answers take.
//!
//! # Operation
//!
//! A server with room for `C` answers in its own time up to there, and in time that grows with what is in flight
//! beyond: more only waits. So the search doubles [round](super::round) by round until answers take longer for it, and then
//! keeps to between a seventh and two fifths above the *floor*: the time that answers take when nothing waits. There it
//! loses nothing that the server could do, and what waits waits briefly.
//!
//! The floor is not known, and changes. Every step down tries it: if fewer in flight are answered no sooner, it is the
//! server that has become slower, and not a crowd; twice in a row, and the floor is what was seen, and the step is
//! taken back. Now and then, where something seems to wait, such a step is made on purpose.
//!
//! Only a lane that was really full says anything: one that waits for a limit, or has little to do, is left as it is.

use std::time::Duration;

use tokio::time::Instant;

use super::round::{Lengths, Round, Seen, as_number};

/// Where nothing is known.
const FIRST: usize = 8;

/// Of the slots, this share must have been taken for a round to say what more of them would do.
const FULL: f64 = 0.85;

/// Doubling ends where answers take this much longer, and so many errors of what was seen beyond that.
const SLOWER: f64 = 1.2;
const SLOWER_ERRORS: f64 = 2.5;
const SLOWER_MAX: f64 = 1.45;

/// How well a latency must be known, as its standard error beside it: while the slots double, and later.
const ERROR_START: f64 = 0.12;
const ERROR: f64 = 0.06;

/// Beside the floor: below the first there are more, above the last there are fewer, so many that it is about the
/// middle.
const MORE_BELOW: f64 = 1.15;
const AIM: f64 = 1.25;
const FEWER_ABOVE: f64 = 1.4;

/// By what share the slots grow where nothing waits: by more each time in a row, but no more than double.
const GROWTH: f64 = 0.25;
const NOTHING_WAITS: f64 = 1.05;

/// Slots beside those before, where the floor is tried.
const TRY: f64 = 0.7;

/// The floor is tried this often, and no more often than once in so many round trips.
const TRY_EVERY: Duration = Duration::from_secs(20);
const TRY_LATENCIES: f64 = 50.0;

/// A floor that was found to be this much lower may be lower still: the next step down follows at once.
const LOWER: f64 = 0.95;

/// What takes longer than so many times what was usual counts as no more than that: one among the fewest answers of a
/// round is no reason for fewer slots, and a crowd that is worse still shows in the next round, too.
const OUTLIER: f64 = 4.0;

/// By how much of what was seen the floor follows, down and up.
const FOLLOW_DOWN: f64 = 0.5;
const FOLLOW_UP: f64 = 0.1;
const FOLLOW_BELOW: f64 = 1.1;

/// See the module's words.
#[derive(Debug)]
pub(super) struct Search {
    slots: usize,
    phase: Phase,
    /// Seconds.
    floor: Option<f64>,
    round: Round,
    lengths: Lengths,
    /// Seconds, as the last round saw it.
    latency: f64,
    try_at: Instant,
    /// Steps up in a row.
    steps_up: u32,
    /// Steps down in a row after which answers came no sooner, and the slots before the first.
    in_vain: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Doubling.
    Start,
    Steady,
    /// After a step down from there.
    Down(Seen),
    /// The same, made to try the floor; the slots before.
    Try(Seen, usize),
}

impl Search {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            slots: FIRST,
            phase: Phase::Start,
            floor: None,
            round: Round::first(FIRST, now),
            lengths: Lengths::default(),
            latency: 0.0,
            try_at: now,
            steps_up: 0,
            in_vain: None,
        }
    }

    pub(super) const fn slots(&self) -> usize {
        self.slots
    }

    /// Whether it has found what it looks for.
    pub(super) const fn is_settled(&self) -> bool {
        !matches!(self.phase, Phase::Start)
    }

    /// Seconds that an answer takes lately; 0 where nothing is known.
    pub(super) const fn latency(&self) -> f64 {
        self.latency
    }

    /// Goes on from what was found before.
    pub(super) fn begin_with(&mut self, slots: usize, now: Instant) {
        self.phase = Phase::Steady;
        self.set(slots, now);
    }

    /// Keeps within bounds that have changed, or that a refusal has set.
    pub(super) fn keep_within(&mut self, least: usize, most: usize, now: Instant) {
        let slots = self.slots.min(most).max(least);
        if slots != self.slots {
            if slots < self.slots {
                self.phase = Phase::Steady;
            }
            self.set(slots, now);
        }
    }

    /// So many were in flight until now.
    pub(super) fn pass(&mut self, in_flight: usize, now: Instant) {
        self.round.pass(in_flight, now);
    }

    /// An answer has come after so many seconds; `tokens` are those written in it. At most `most` slots may be used.
    pub(super) fn on_answer(
        &mut self,
        latency: f64,
        tokens: Option<u64>,
        [least, most]: [usize; 2],
        now: Instant,
    ) {
        let latency = self.lengths.usual(latency, tokens);
        let usual = self.floor.map_or(f64::INFINITY, |floor| floor.max(self.latency));
        self.round.add(latency.min(usual * OUTLIER), now);
        let slots = self.slots.min(most);
        let error = if self.is_settled() { ERROR } else { ERROR_START };
        let Some(seen) = self.round.seen(slots, error) else { return };
        self.latency = seen.latency;
        let is_full = seen.in_flight >= FULL * as_number(slots);
        let next = if is_full { self.judge(seen, least, now) } else { self.look(seen) };
        self.follow_length();
        self.set(next.clamp(least, most.max(least)), now);
    }

    /// After a timeout, which says that it would have taken at least so long.
    pub(super) fn on_none(&mut self, latency: f64, bounds: [usize; 2], now: Instant) {
        if self.floor.is_some_and(|floor| latency > floor) {
            self.on_answer(latency, None, bounds, now);
        }
    }

    /// Times are those of answers of the usual length, which may have become another.
    fn follow_length(&mut self) {
        let longer = self.lengths.follow();
        self.latency *= longer;
        self.floor = self.floor.map(|floor| floor * longer);
        if let Phase::Down(before) | Phase::Try(before, _) = &mut self.phase {
            before.latency *= longer;
        }
    }

    fn set(&mut self, slots: usize, now: Instant) {
        // What is in flight was asked for before.
        let wait = if slots == self.slots { 0.0 } else { self.latency };
        self.slots = slots;
        self.round = Round::new(now + Duration::from_secs_f64(wait.clamp(0.0, 3600.0)), now);
    }

    /// A round in which the lane was not full shows the floor at most.
    fn look(&mut self, seen: Seen) -> usize {
        if let Some(floor) = &mut self.floor
            && seen.latency < *floor
        {
            *floor += (seen.latency - *floor) * FOLLOW_DOWN;
        }
        match self.phase {
            Phase::Try(_, before) => {
                self.phase = Phase::Steady;
                before
            }
            Phase::Start | Phase::Steady | Phase::Down(_) => self.slots,
        }
    }

    /// The slots after a round.
    fn judge(&mut self, seen: Seen, least: usize, now: Instant) -> usize {
        let floor = *self.floor.get_or_insert(seen.latency);
        let beside = seen.latency / floor;
        match self.phase {
            Phase::Start if beside <= (SLOWER + SLOWER_ERRORS * seen.error).min(SLOWER_MAX) => {
                if beside <= SLOWER {
                    self.floor = Some(f64::midpoint(floor, seen.latency));
                }
                return self.slots * 2;
            }
            Phase::Start | Phase::Steady => {}
            Phase::Down(before) => {
                if is_no_sooner(before, seen) {
                    if let Some(slots) = self.in_vain.take() {
                        return self.rise_floor(seen, slots);
                    }
                    self.in_vain = Some(slots_of(before.in_flight));
                } else {
                    self.in_vain = None;
                }
            }
            Phase::Try(before, slots) => {
                self.phase = Phase::Steady;
                if is_no_sooner(before, seen) {
                    return self.rise_floor(seen, slots);
                }
                if seen.latency < floor {
                    self.floor = Some(seen.latency);
                }
                if seen.latency < floor * LOWER && self.slots > least {
                    return self.try_fewer(seen);
                }
                return slots;
            }
        }
        self.steer(seen, floor, least, now)
    }

    /// The server itself has become slower.
    fn rise_floor(&mut self, seen: Seen, slots: usize) -> usize {
        self.floor = Some(seen.latency);
        self.phase = Phase::Steady;
        slots
    }

    fn steer(&mut self, seen: Seen, floor: f64, least: usize, now: Instant) -> usize {
        self.phase = Phase::Steady;
        let beside = seen.latency / floor;
        if beside < FOLLOW_BELOW {
            let follow = if beside < 1.0 { FOLLOW_DOWN } else { FOLLOW_UP };
            self.floor = Some(floor + (seen.latency - floor) * follow);
        }
        if beside > FEWER_ABOVE {
            if self.slots <= least {
                // What goes on alone waits for nobody of ours.
                return self.rise_floor(seen, least);
            }
            (self.phase, self.steps_up) = (Phase::Down(seen), 0);
            return slots_of(seen.in_flight * AIM / beside).min(self.slots - 1);
        }
        self.in_vain = None;
        if beside < MORE_BELOW {
            let growth = if beside < NOTHING_WAITS {
                self.steps_up += 1;
                (1.0 + GROWTH * f64::from(self.steps_up)).min(2.0)
            } else {
                AIM / beside
            };
            return slots_of(as_number(self.slots) * growth).max(self.slots + 1);
        }
        self.steps_up = 0;
        if now >= self.try_at && self.slots > least {
            let wait = Duration::from_secs_f64((seen.latency * TRY_LATENCIES).clamp(0.0, 3600.0));
            self.try_at = now + wait.max(TRY_EVERY);
            return self.try_fewer(seen);
        }
        self.slots
    }

    fn try_fewer(&mut self, seen: Seen) -> usize {
        self.phase = Phase::Try(seen, self.slots);
        slots_of((seen.in_flight * TRY).floor())
    }
}

/// Whether fewer in flight are answered no sooner than more were: in a crowd the time would fall as the number does.
fn is_no_sooner(before: Seen, seen: Seen) -> bool {
    let fewer = seen.in_flight / before.in_flight.max(1.0);
    fewer < 0.95 && seen.latency > before.latency * (1.0 + fewer) / 2.0
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "not negative, and what is too large saturates"
)]
fn slots_of(number: f64) -> usize {
    number.round() as usize
}
