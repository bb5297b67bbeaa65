//! How much of its queue a job may have beside the others: by its priority, and more as its deadline nears.
//!
//! A step of priority doubles the share. So what is more urgent plainly overtakes (beside a job of priority 5 one of
//! priority 9 gets 16 of 17 requests), and yet nothing starves: even priority 0 beside 9 gets one of 513.
//!
//! # Deadlines
//!
//! A job with a deadline has an even pace: that at which it would be done when [`MARGIN`] of its time is left. While it
//! keeps up it has the share of its priority. When it lags, so that what is open needs `u` times as long at that pace as
//! there is time, its weight is `u²` as large. That `u` settles where the job is as fast as it has to be from there on:
//! one that gets half of what it needs at `u = 2`, which gives it four times its weight, and it stays as late as that to
//! the end. With `u` for `u²` it would drift off until nothing helps. It is bounded by [`LIFT_MAX`], since a deadline
//! that can't be met must not stop the others.

use std::num::NonZeroU64;

use crate::domain::{Job, Timestamp};

/// The part of a job's time, `1 / MARGIN`, that is left for retries and for what is in flight at the end.
const MARGIN: u128 = 10;

/// As much as six steps of priority.
const LIFT_MAX: u64 = 64;

/// Weights are whole: a lift is counted in so many parts of one.
const PARTS: u64 = 16;

const PRIORITY_MAX: u8 = 9;

/// Of two jobs that both have enough to send, each gets a part of the requests by its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Weight(NonZeroU64);

impl Weight {
    /// The largest one.
    pub(crate) const MAX: u64 = (PARTS * LIFT_MAX) << PRIORITY_MAX;

    /// That of a job `open` of whose requests are not settled.
    pub(crate) fn of(job: &Job, open: u32, now: Timestamp) -> Self {
        let lift = job.expires_at().map_or(PARTS, |end| lift(job, open, [job.accepted_at, now, end]));
        let weight = lift << job.settings.priority.min(PRIORITY_MAX);
        Self(NonZeroU64::new(weight).unwrap_or(NonZeroU64::MIN))
    }

    pub(crate) const fn get(self) -> NonZeroU64 {
        self.0
    }
}

/// How much a deadline lifts a job, in [`PARTS`]: see the module's words. Once it has passed, nothing does.
fn lift(job: &Job, open: u32, [began, now, end]: [Timestamp; 3]) -> u64 {
    if now >= end || job.total == 0 {
        return PARTS;
    }
    let millis = |from: Timestamp, to: Timestamp| u128::from(to.as_millis().saturating_sub(from.as_millis()));
    let (whole, left) = (millis(began, end), millis(now, end));
    let margin = whole / MARGIN;
    let (needed, there) = (
        u128::from(open.min(job.total)) * (whole - margin),
        u128::from(job.total) * left.saturating_sub(margin),
    );
    // The bound of what is squared is exact: its root is a whole number.
    let most = PARTS * LIFT_MAX.isqrt();
    let lag = u64::try_from(needed * u128::from(PARTS) / there.max(1)).unwrap_or(most);
    let lag = lag.clamp(PARTS, most);
    lag * lag / PARTS
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::conformance::{self, NOW};

    fn weight(priority: u8, deadline: Option<u64>, open: u32, passed: u64) -> u64 {
        let mut job = conformance::job(1, priority, &["m"], 100);
        job.settings.deadline = deadline.map(Duration::from_secs);
        Weight::of(&job, open, NOW + Duration::from_secs(passed)).get().get()
    }

    #[test]
    fn a_step_of_priority_doubles_the_weight() {
        let weights = (0..=9).map(|priority| weight(priority, None, 100, 0) / PARTS);
        assert_eq!(weights.collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
        assert_eq!(weight(u8::MAX, None, 100, 0), 512 * PARTS, "state that nobody should have written");
    }

    #[test]
    fn a_deadline_lifts_what_lags_behind_and_only_that() {
        // A job of 100 requests and 1,000 s, 100 of which are the margin: (open, seconds passed, lift).
        let table = [
            (100, 0, 1),
            (0, 500, 1),
            (50, 450, 1), // exactly even
            (49, 450, 1),
            (100, 450, 4), // needs twice the time that is left
            (50, 675, 4),
            (100, 600, 9),
            (100, 675, 16),
            (1, 891, 1),
            (2, 891, 4),
            (10, 891, 64), // needs ten times the time that is left
            (1, 899, 64),
            (1, 900, 64), // the margin itself
            (100, 999, 64),
            (100, 1_000, 1), // over
            (100, 90_000, 1),
        ];
        for (open, passed, lift) in table {
            let seen = [0, 7].map(|priority| weight(priority, Some(1_000), open, passed));
            assert_eq!(seen, [lift * PARTS, 128 * lift * PARTS], "{open} open after {passed} s");
        }
        assert_eq!(weight(9, Some(1_000), 100, 999), Weight::MAX);
    }

    #[test]
    fn odd_jobs_have_a_weight_too() {
        for deadline in [0, 1, u64::MAX / 2_000] {
            for passed in [0, 1, 1_000_000] {
                let weight = weight(0, Some(deadline), u32::MAX, passed);
                assert!((PARTS..=64 * PARTS).contains(&weight), "{weight}");
            }
        }
        let mut empty = conformance::job(1, 5, &["m"], 0);
        empty.settings.deadline = Some(Duration::from_secs(5));
        assert_eq!(Weight::of(&empty, 0, NOW).get().get(), PARTS << 5);
    }

    /// A job with a deadline that with its usual share would need `slowness` tenths of the time that it has: how much of
    /// it is open when the deadline comes, in a world where it gets what its weight says.
    fn left_over(slowness: u64) -> u64 {
        let (seconds, total) = (1_000, 1_000_000);
        let mut job = conformance::job(1, 0, &["m"], u32::try_from(total).unwrap());
        job.settings.deadline = Some(Duration::from_secs(seconds));
        let usual = total * 10 / seconds / slowness;
        (0..seconds).fold(total, |open, passed| {
            let now = NOW + Duration::from_secs(passed);
            let weight = Weight::of(&job, u32::try_from(open).unwrap(), now).get().get();
            open.saturating_sub(usual * weight / PARTS)
        })
    }

    #[test]
    fn a_lifted_job_is_done_in_time_as_long_as_the_lift_can_help() {
        for slowness in [5, 10, 15, 20, 40, 70] {
            assert_eq!(left_over(slowness), 0, "{slowness}");
        }
        assert!(left_over(800) > 0, "nothing helps what is far too late");
    }
}
