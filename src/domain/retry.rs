//! How long to wait before the next attempt: exponential backoff with full jitter.
//!
//! Full jitter (a uniform draw from zero to the exponential bound) spreads a crowd of retries best;
//! see "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Bounds of the retries of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Attempts in all, the first included; at least 1.
    pub max_attempts: u32,
    /// Upper bound of the wait after the first attempt.
    pub base_delay: Duration,
    /// Upper bound of every wait that batchd chooses itself; `Retry-After` may be longer.
    pub max_delay: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { max_attempts: 6, base_delay: Duration::from_secs(1), max_delay: Duration::from_mins(1) }
    }
}

impl RetryPolicy {
    /// What `max_attempts` may be, in the config and in a spec.
    pub const ATTEMPTS: RangeInclusive<u32> = 1..=1000;
    /// What `base_delay` may be. A wait of nothing would hammer a server that is in trouble.
    pub const BASE_DELAY: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_hours(1);
    /// What `max_delay` may be.
    pub const MAX_DELAY: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_hours(24);

    /// The wait after the `failures`-th failure in a row (from 1). `dice` is uniform in `0.0..1.0`.
    ///
    /// `retry_after`, when the server gave one, is a lower bound that `max_delay` does not cut; up to
    /// a tenth is added to it, so that a crowd told the same second does not come back in the same one.
    pub fn delay(&self, failures: u32, retry_after: Option<Duration>, dice: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let bound = self.base_delay.saturating_mul(1 << doublings).min(self.max_delay);
        let jittered = bound.mul_f64(dice.clamp(0.0, 1.0));
        match retry_after {
            Some(hint) => jittered.max(hint.saturating_add(hint.mul_f64(dice.clamp(0.0, 1.0) * 0.1))),
            None => jittered,
        }
    }

    /// Whether a request that has used up `attempts` may be tried again.
    pub const fn allows_another(&self, attempts: u32) -> bool {
        attempts < self.max_attempts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RetryPolicy = RetryPolicy {
        max_attempts: 3,
        base_delay: Duration::from_secs(1),
        max_delay: Duration::from_secs(8),
    };

    #[test]
    fn bound_doubles_up_to_max_delay() {
        let bounds: Vec<u64> = (1..=6).map(|n| POLICY.delay(n, None, 1.0).as_secs()).collect();
        assert_eq!(bounds, [1, 2, 4, 8, 8, 8]);
        assert_eq!(POLICY.delay(1, None, 0.0), Duration::ZERO);
        assert_eq!(POLICY.delay(u32::MAX, None, 1.0), POLICY.max_delay);
    }

    #[test]
    fn retry_after_is_a_lower_bound_beyond_max_delay() {
        let hint = Duration::from_secs(100);
        for dice in [0.0, 0.5, 1.0] {
            let wait = POLICY.delay(1, Some(hint), dice);
            assert!(wait >= hint && wait <= hint.mul_f64(1.1), "{wait:?}");
        }
        assert_eq!(POLICY.delay(3, Some(Duration::ZERO), 1.0), Duration::from_secs(4));
    }

    #[test]
    fn attempts_are_bounded() {
        assert!(POLICY.allows_another(2));
        assert!(!POLICY.allows_another(3));
    }
}
