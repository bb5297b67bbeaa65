//! The first moments of a lane of whose server nothing is known: a few requests, and two more for each that is served.
//!
//! So the number in flight doubles with each round trip, as TCP begins (slow start, RFC 5681), and a server that admits
//! little is met by a few requests instead of all slots at once. Where answers take long, time does the same.

use std::time::Duration;

use tokio::time::Instant;

/// Sent at once at the beginning, as TCP does (RFC 6928).
const FIRST: f64 = 10.0;

/// More for each that is served: for itself and another one.
const FOR_SERVED: f64 = 2.0;

/// Requests per second whether any are served or not, at the beginning; twice as many each second.
const FROM: f64 = 20.0;

/// The ramp is over when so many might be sent at once, or per second.
const ENOUGH: f64 = 256.0;
const FAST_ENOUGH: f64 = 10_000.0;

/// Time in which nothing was asked for counts up to this.
const GAP: Duration = Duration::from_millis(100);

/// See the module's words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ramp {
    credit: f64,
    per_second: f64,
    filled_at: Option<Instant>,
}

impl Default for Ramp {
    fn default() -> Self {
        Self { credit: FIRST, per_second: FROM, filled_at: None }
    }
}

impl Ramp {
    /// One that begins with a single request, after a refusal.
    pub(super) fn again() -> Self {
        Self { credit: 1.0, ..Self::default() }
    }

    /// When a request may be sent; not later than `now` if at once.
    pub(super) fn ready_at(&mut self, now: Instant) -> Instant {
        let before = self.filled_at.replace(now).unwrap_or(now);
        let time = now.saturating_duration_since(before).min(GAP).as_secs_f64();
        self.credit = (self.credit + self.per_second * time).min(ENOUGH);
        self.per_second = (self.per_second * time.exp2()).min(FAST_ENOUGH);
        let missing = 1.0 - self.credit;
        if missing <= 0.0 { now } else { now + Duration::from_secs_f64(missing / self.per_second) }
    }

    pub(super) fn sent(&mut self) {
        self.credit -= 1.0;
    }

    pub(super) fn served(&mut self) {
        self.credit = (self.credit + FOR_SERVED).min(ENOUGH);
    }

    pub(super) fn is_over(&self) -> bool {
        self.credit >= ENOUGH || self.per_second >= FAST_ENOUGH
    }
}
