//! How fast a lane may go: what is learnt of the server's rates, and holding still when told to.

use std::time::Duration;

use tokio::time::Instant;

use crate::dispatch::attempt::{Ended, EndedKind};
use crate::domain::QueueName;

/// After so many replies in a row that say *later* the whole lane holds still for as long as the last one asked: a
/// few may be chance, so many mean that every further request would be refused too.
pub(super) const HOLD_AFTER: u32 = 5;

/// A throttled queue is told of this often: enough to see why nothing happens, and no flood.
const TELL_EVERY: Duration = Duration::from_mins(1);

/// How long the lane holds still where the server doesn't say.
const HOLD_DEFAULT: Duration = Duration::from_secs(1);

/// See the module's words.
#[derive(Debug)]
pub(in crate::dispatch) struct Pace {
    queue: QueueName,
    throttled_in_a_row: u32,
    hold_until: Option<Instant>,
    told_at: Option<Instant>,
}

impl Pace {
    pub(super) const fn new(queue: QueueName) -> Self {
        Self { queue, throttled_in_a_row: 0, hold_until: None, told_at: None }
    }

    /// Whether a request may have to wait for more than a slot.
    #[expect(clippy::unused_self, reason = "until rates are learnt")]
    pub(in crate::dispatch) const fn is_paced(&self) -> bool {
        false
    }

    /// Whether it matters how many tokens a request is counted as.
    #[expect(clippy::unused_self, reason = "until rates are learnt")]
    pub(in crate::dispatch) const fn counts_tokens(&self) -> bool {
        false
    }

    /// When a request counted as `tokens` may be sent; not later than `now` if at once.
    pub(in crate::dispatch) fn ready_at(&mut self, tokens: u64, now: Instant) -> Instant {
        let _ = tokens;
        self.hold_until.unwrap_or(now).max(now)
    }

    /// Counts a request that is being sent.
    #[expect(clippy::unused_self, reason = "until rates are learnt")]
    pub(super) const fn spend(&mut self, tokens: u64, now: Instant) {
        let _ = (tokens, now);
    }

    /// Learns from an attempt that has ended. `is_careful`: the lane goes on slowly after it was held.
    pub(super) fn on_ended(&mut self, ended: &Ended, is_careful: bool, now: Instant) {
        match ended.kind {
            EndedKind::Served | EndedKind::Waiting => self.throttled_in_a_row = 0,
            EndedKind::Throttled { retry_after, .. } => {
                self.throttled_in_a_row += 1;
                if is_careful || self.throttled_in_a_row >= HOLD_AFTER {
                    let until = now + retry_after.unwrap_or(HOLD_DEFAULT);
                    self.hold_until = Some(self.hold_until.unwrap_or(until).max(until));
                    self.tell_of_hold(until, now);
                }
            }
            EndedKind::Failed | EndedKind::Blocked => {}
        }
    }

    /// Says in the log that the queue is throttled, at most once in [`TELL_EVERY`].
    fn tell_of_hold(&mut self, until: Instant, now: Instant) {
        if self.told_at.is_none_or(|told| now.duration_since(told) >= TELL_EVERY) {
            self.told_at = Some(now);
            let wait_ms = u64::try_from(until.duration_since(now).as_millis()).unwrap_or(u64::MAX);
            tracing::info!(queue = %self.queue, wait_ms, "the provider asks to come later; the queue holds still");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::lane::slots::tests::{ended, throttled_for};

    #[tokio::test(start_paused = true)]
    async fn the_lane_holds_still_only_after_several_refusals_in_a_row() {
        let mut pace = Pace::new(QueueName::new("p", None));
        let now = Instant::now();
        let throttled = throttled_for(Duration::from_secs(7));
        for _ in 0..3 {
            (0..HOLD_AFTER - 1).for_each(|_| pace.on_ended(&throttled, false, now));
            pace.on_ended(&ended(EndedKind::Served), false, now);
        }
        assert_eq!(pace.ready_at(1, now), now);
        (0..HOLD_AFTER).for_each(|_| pace.on_ended(&throttled, false, now));
        assert_eq!(pace.ready_at(1, now), now + Duration::from_secs(7));
    }
}
