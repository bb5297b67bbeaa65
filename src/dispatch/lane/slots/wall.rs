//! How many in flight a server refuses, by its refusals for lack of room.
//!
//! # Operation
//!
//! A refusal alone may be chance, and counts the less the more of them were chance; two with hardly an answer between
//! them say that what was in flight then is too much: the *wall*. The lane goes on with one less, as often as it is
//! refused again. After a while it tries the wall with one more. If that is refused, it waits twice as long for the
//! next time; if it is served, the wall moves, by one at first and then by twice as many after each round without a
//! refusal, until it is met again or out of sight.

use std::time::Duration;

use tokio::time::Instant;

/// The first try comes after this, or so many round trips if that is longer: time enough for what was refused to be
/// served. The last is the longest wait: a try costs two refusals.
const WAIT: Duration = Duration::from_secs(1);
const WAIT_LATENCIES: f64 = 5.0;
const WAIT_MAX: Duration = Duration::from_mins(1);

/// Doubt is counted in refusals. So much of it is no chance: two, as a server that is full refuses all that come, and
/// one that fails now and then rarely two in a row. An answer takes some off; some is left after a step down, so that the
/// next takes fewer refusals; and there is never so much that it outlives its reason.
const NO_CHANCE: f64 = 2.0;
const FORGIVEN: f64 = 0.75;
const LEFT: f64 = 0.75;
const DOUBT_MAX: f64 = 4.0;

/// The share of refusals by chance is that of the last so many answers; the more there are of them, the less each says,
/// but never less than the last of these.
const CHANCE_AMONG: f64 = 256.0;
const CHANCE_WEIGHT: f64 = 10.0;
const WEIGHT_MIN: f64 = 0.25;

/// See the module's words.
#[derive(Debug)]
pub(super) struct Wall {
    /// So many in flight are refused.
    at: Option<usize>,
    doubt: f64,
    /// The fewest in flight at a refusal of which the doubt is made.
    doubt_at: usize,
    /// Refusals of which the doubt is made.
    doubted: f64,
    /// The share of refusals that meant nothing.
    chance: f64,
    trial: Option<Trial>,
    wait: Duration,
    try_at: Instant,
}

/// The wall is tried: so many may be in flight as were refused.
#[derive(Clone, Copy, Debug)]
struct Trial {
    /// By so many the wall moves if it gives way.
    step: usize,
    /// Answers since so many were in flight.
    answers: usize,
    is_reached: bool,
}

impl Wall {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            at: None,
            doubt: 0.0,
            doubt_at: usize::MAX,
            doubted: 0.0,
            chance: 0.0,
            trial: None,
            wait: WAIT,
            try_at: now,
        }
    }

    /// How many may be in flight for all that is known of it.
    pub(super) fn most(&self) -> usize {
        let behind = usize::from(self.trial.is_none());
        self.at.map_or(usize::MAX, |at| at.saturating_sub(behind).max(1))
    }

    /// One of `in_flight` was refused; answers take `latency` seconds.
    pub(super) fn on_refused(&mut self, in_flight: usize, latency: f64, now: Instant) {
        let weight = (1.0 - CHANCE_WEIGHT * self.chance).max(WEIGHT_MIN);
        self.doubt = (self.doubt + weight).min(DOUBT_MAX);
        self.doubted += 1.0;
        self.doubt_at = self.doubt_at.min(in_flight);
        let first = WAIT.max(Duration::from_secs_f64((latency * WAIT_LATENCIES).clamp(0.0, 60.0)));
        if self.doubt < NO_CHANCE {
            return;
        }
        let failed = self.trial.take().filter(|_| self.at.is_some_and(|at| in_flight >= at));
        if let Some(trial) = failed {
            // Where it had given way before, the wall is another one, and its waits begin anew.
            self.wait = if trial.step == 1 { (self.wait * 2).max(first).min(WAIT_MAX) } else { first };
        } else if self.at.is_none_or(|at| in_flight < at) {
            self.at = Some(in_flight);
            self.wait = first;
        } else {
            return;
        }
        (self.doubt, self.doubted, self.doubt_at) = (LEFT, 0.0, in_flight);
        self.try_at = now + self.wait;
    }

    /// One was served; a lane with this many in flight is as full as it may be.
    pub(super) fn on_served(&mut self, in_flight: usize, most: usize, now: Instant) {
        self.chance -= self.chance / CHANCE_AMONG;
        // What is served in a smaller crowd says nothing of the larger one that was refused.
        if in_flight >= self.doubt_at {
            self.doubt -= FORGIVEN;
            if self.doubt <= 0.0 {
                self.chance += self.doubted / CHANCE_AMONG;
                (self.doubt, self.doubted, self.doubt_at) = (0.0, 0.0, usize::MAX);
            }
        }
        let Some(at) = self.at else { return };
        match &mut self.trial {
            None if now >= self.try_at && in_flight + 1 >= at => {
                self.trial = Some(Trial { step: 1, answers: 0, is_reached: false });
            }
            None => {}
            Some(trial) => {
                trial.is_reached |= in_flight >= at;
                trial.answers += usize::from(trial.is_reached);
                if trial.answers > at {
                    let step = trial.step;
                    self.trial = Some(Trial { step: step * 2, answers: 0, is_reached: false });
                    self.at = Some(at + step).filter(|at| *at <= most);
                    if self.at.is_none() {
                        (self.trial, self.wait) = (None, WAIT);
                    }
                }
            }
        }
    }
}
