//! A limit that a server doesn't name: found by being refused, and tried again with care.
//!
//! After a refusal the lane goes a little below the rate that the server was seen to admit, comes near it quickly and
//! dwells there, and then goes beyond it, slowly at first and faster the longer nothing is refused: as TCP CUBIC does
//! (RFC 9438), since a limit that was right a moment ago mostly still is, and one that has been raised is to be found
//! within a minute. Only time in which the lane is really used counts.

use std::time::Duration;

use tokio::time::Instant;

/// Below the rate that was admitted, after a refusal; and at first, for this time, by so much more that no limit can be
/// near: what is refused there is refused by chance.
const CUT: f64 = 0.05;
const SLOW: f64 = 0.35;
const SLOW_TIME: f64 = 1.0;

/// Units of time until the rate is what was admitted.
const RISE: f64 = 5.0;

/// How fast it grows beyond: twice the rate 22 seconds later.
const LINEAR: f64 = 0.004;
const CUBIC: f64 = 8e-5;

/// The same of a guess: how long it dwells, and how long it takes to double.
const GUESS_RISE: f64 = 1.0;
const GUESS_DOUBLES: f64 = 2.0;

/// The unit of time: a second, or so many requests up to a bound.
const UNIT: f64 = 1.0;
const UNIT_REQUESTS: f64 = 3.0;
const UNIT_MAX: f64 = 20.0;

/// More than this of what was admitted is not remembered: it may never have been asked for.
const KEPT_MAX: f64 = 2.0;

/// The slowest that a lane goes, in requests of its average cost per second. A server that wants less says so by
/// `Retry-After`, which is obeyed.
const SLOWEST: f64 = 1.0 / 60.0;

/// See the module's words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    /// What the server was seen to admit, per second.
    peak: f64,
    /// In units, since the last refusal.
    used: f64,
    /// It was measured badly, and may be far too low: it is to be refused again soon.
    is_guess: bool,
}

impl Found {
    /// `cost` is that of a request on the average.
    pub(super) fn cut_to(peak: f64, is_guess: bool, cost: f64) -> Self {
        Self { peak: peak.max(SLOWEST * cost), used: 0.0, is_guess }
    }

    /// One that was found before.
    pub(super) fn known(per_second: f64, cost: f64) -> Self {
        Self { used: RISE, ..Self::cut_to(per_second, false, cost) }
    }

    /// What is worth remembering, per second: what the server was seen to admit, or more where it has borne more since.
    pub(super) fn kept(&self) -> f64 {
        self.rate().clamp(self.peak, self.peak * KEPT_MAX)
    }

    /// Per second.
    pub(super) fn rate(&self) -> f64 {
        if self.is_guess {
            return self.peak * ((self.used - GUESS_RISE) / GUESS_DOUBLES).exp2().max(1.0 - CUT);
        }
        if self.is_slow() {
            return self.peak * (1.0 - SLOW);
        }
        let beyond = self.used - RISE;
        let by = if beyond < 0.0 {
            -CUT * (-beyond / RISE).powi(3)
        } else {
            LINEAR * beyond + CUBIC * beyond.powi(3)
        };
        self.peak * (1.0 + by)
    }

    /// Whether it is certainly below the limit.
    pub(super) fn is_slow(&self) -> bool {
        !self.is_guess && self.used < SLOW_TIME
    }

    /// Whether it goes beyond what is known to be admitted.
    pub(super) fn is_probing(&self) -> bool {
        self.is_guess || self.used > RISE
    }

    /// Counts a time in which the lane was used.
    pub(super) fn advance(&mut self, time: Duration, cost: f64) {
        let unit = (UNIT_REQUESTS * cost / self.peak).clamp(UNIT, UNIT_MAX);
        self.used += time.as_secs_f64() / unit;
    }
}

/// Measures for how long a lane is really used: a gap that is longer than the pace asks for counts in part.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    last: Option<Instant>,
}

/// Gaps up to this count whole.
const GAP: f64 = 0.1;

impl Usage {
    /// The time that counts for a request of `cost` at `rate` per second.
    pub(super) fn spend(&mut self, cost: f64, rate: f64, now: Instant) -> Duration {
        let Some(last) = self.last.replace(now) else { return Duration::ZERO };
        let most = f64::max(GAP, 4.0 * cost / rate.max(f64::MIN_POSITIVE)).min(3600.0);
        now.saturating_duration_since(last).min(Duration::from_secs_f64(most))
    }
}
