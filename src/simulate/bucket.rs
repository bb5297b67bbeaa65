//! A token bucket that admits exactly what its limit says.
//!
//! The level is kept in units of one nanosecond's share of a minute, in whole numbers: a request costs
//! its size times [`MINUTE_NS`], and every nanosecond brings `per_minute`. Nothing is ever rounded, so a
//! minute admits the limit and the burst, not one more or less.

use std::time::Duration;

use tokio::time::Instant;

const MINUTE_NS: i128 = 60_000_000_000;
/// No level leaves `-LEVEL_MAX..=LEVEL_MAX`, so that no sum of two overflows. More than any limit for
/// any time that matters: a billion units a second for a thousand years.
const LEVEL_MAX: i128 = i128::MAX / 4;

/// Fills evenly up to a burst.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    per_minute: i128,
    full: i128,
    level: i128,
    filled_at: Instant,
}

impl Bucket {
    /// Begins full. Holds at least one unit; a limit of 0 counts as 1.
    pub(super) fn new(per_minute: u64, burst: Duration, now: Instant) -> Self {
        let per_minute = i128::from(per_minute.max(1));
        let full = per_minute.saturating_mul(nanos(burst)).clamp(MINUTE_NS, LEVEL_MAX);
        Self { per_minute, full, level: full, filled_at: now }
    }

    /// How long until `cost` would be admitted; zero = now. Takes nothing.
    ///
    /// What is larger than the burst is admitted by a full bucket, which then owes the rest: otherwise
    /// a large request would wait for ever.
    pub(super) fn wait(&mut self, cost: u64, now: Instant) -> Duration {
        self.fill(now);
        let missing = units(cost).min(self.full) - self.level;
        if missing <= 0 { Duration::ZERO } else { self.time_for(missing) }
    }

    /// Takes `cost`, even below zero.
    pub(super) fn take(&mut self, cost: u64) {
        self.level -= units(cost);
    }

    /// A minute's worth.
    pub(super) fn limit(&self) -> u64 {
        whole(self.per_minute)
    }

    /// Whole units that would be admitted now.
    pub(super) fn remaining(&self) -> u64 {
        whole(self.level / MINUTE_NS)
    }

    /// Until it is full again.
    pub(super) fn reset(&self) -> Duration {
        self.time_for(self.full - self.level)
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = nanos(now.saturating_duration_since(self.filled_at));
        self.level = self.full.min(self.level.saturating_add(elapsed.saturating_mul(self.per_minute)));
        self.filled_at = self.filled_at.max(now);
    }

    /// Rounded up to a whole nanosecond, so that what waits this long is admitted.
    fn time_for(&self, missing: i128) -> Duration {
        let nanos = (missing.max(0) + self.per_minute - 1) / self.per_minute;
        Duration::from_nanos(whole(nanos))
    }
}

fn units(cost: u64) -> i128 {
    i128::from(cost) * MINUTE_NS
}

fn nanos(time: Duration) -> i128 {
    i128::try_from(time.as_nanos()).unwrap_or(i128::MAX)
}

fn whole(value: i128) -> u64 {
    u64::try_from(value.max(0)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks every `step` for `time`; says how many were admitted.
    fn admitted(mut bucket: Bucket, cost: u64, step: Duration, time: Duration) -> u32 {
        let start = bucket.filled_at;
        let mut count = 0;
        let mut at = Duration::ZERO;
        while at <= time {
            if bucket.wait(cost, start + at).is_zero() {
                bucket.take(cost);
                count += 1;
            }
            at += step;
        }
        count
    }

    #[test]
    fn a_minute_admits_the_limit_and_the_burst() {
        let now = Instant::now();
        let minute = Duration::from_mins(1);
        let bucket = Bucket::new(600, Duration::from_secs(1), now);
        assert_eq!(admitted(bucket, 1, Duration::from_millis(10), minute), 610);
        // 7 a minute and no burst to speak of: one at once, then one each 60/7 s.
        let bucket = Bucket::new(7, Duration::ZERO, now);
        assert_eq!(admitted(bucket, 1, Duration::from_millis(1), minute), 7);
        let bucket = Bucket::new(60_000, Duration::from_secs(1), now);
        assert_eq!(admitted(bucket, 100, Duration::from_millis(10), minute), 610);
    }

    #[test]
    fn what_exceeds_the_burst_is_admitted_by_a_full_bucket_and_owed() {
        let now = Instant::now();
        let mut bucket = Bucket::new(6_000, Duration::from_secs(1), now);
        assert_eq!(bucket.wait(300, now), Duration::ZERO);
        bucket.take(300);
        assert_eq!(bucket.remaining(), 0);
        assert_eq!(bucket.reset(), Duration::from_secs(3));
        assert_eq!(bucket.wait(1, now), Duration::from_millis(2_010));
        assert!(bucket.wait(1, now + Duration::from_millis(2_010)).is_zero());
    }

    #[test]
    fn absurd_limits_do_not_overflow() {
        let now = Instant::now();
        let mut bucket = Bucket::new(u64::MAX, Duration::MAX, now);
        assert!(bucket.wait(u64::MAX, now).is_zero());
        bucket.take(u64::MAX);
        assert!(bucket.reset() > Duration::ZERO);
        assert!(bucket.wait(1, now + Duration::from_hours(1)).is_zero());
    }

    #[test]
    fn waiting_exactly_as_told_is_enough() {
        let now = Instant::now();
        for per_minute in [1, 7, 59, 61, 1_000_003] {
            let mut bucket = Bucket::new(per_minute, Duration::ZERO, now);
            bucket.take(1);
            let wait = bucket.wait(1, now);
            assert!(!bucket.wait(1, now + wait - Duration::from_nanos(1)).is_zero());
            assert!(bucket.wait(1, now + wait).is_zero());
        }
    }
}
