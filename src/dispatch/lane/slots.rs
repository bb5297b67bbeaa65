//! How many requests of a lane may be in flight: as many as the configuration says, and after the server has told it
//! to come later again and again, one at first and then twice as many after each that is served.

use tokio::time::Instant;

use crate::config::{self, Concurrency};
use crate::dispatch::attempt::{Ended, EndedKind};
use crate::dispatch::lane::pace::HOLD_AFTER;

/// Slots of a queue whose concurrency is to be found.
const AUTO_SLOTS: u32 = 64;

/// See the module's words.
#[derive(Debug)]
pub(in crate::dispatch) struct Slots {
    most: usize,
    /// Fewer than `most` after the lane was told to hold still.
    allowed: usize,
    throttled_in_a_row: u32,
}

impl Slots {
    pub(super) fn new(limits: &config::Limits, now: Instant) -> Self {
        let _ = now;
        let most = most(limits);
        Self { most, allowed: most, throttled_in_a_row: 0 }
    }

    /// Other limits from now on; a lane that was told to come later goes on as carefully as before.
    pub(in crate::dispatch) fn change(&mut self, limits: &config::Limits, now: Instant) {
        let _ = now;
        let was_held = self.allowed < self.most;
        self.most = most(limits);
        self.allowed = if was_held { self.allowed.min(self.most) } else { self.most };
    }

    /// How many requests may be in flight.
    pub(in crate::dispatch) const fn allowed(&self) -> usize {
        self.allowed
    }

    /// Whether the lane goes on slowly after it was told to come later.
    pub(super) const fn is_careful(&self) -> bool {
        self.allowed < self.most
    }

    /// Learns from an attempt that has ended, one of `in_flight`.
    pub(super) fn on_ended(&mut self, ended: &Ended, in_flight: usize, now: Instant) {
        let _ = (in_flight, now);
        match ended.kind {
            EndedKind::Served | EndedKind::Waiting => {
                self.throttled_in_a_row = 0;
                self.allowed = (self.allowed * 2).min(self.most);
            }
            EndedKind::Throttled { .. } => {
                self.throttled_in_a_row += 1;
                if self.is_careful() || self.throttled_in_a_row >= HOLD_AFTER {
                    self.allowed = 1;
                }
            }
            EndedKind::Failed | EndedKind::Blocked => {}
        }
    }
}

/// How many a queue may have in flight at the most.
pub(in crate::dispatch) fn most(limits: &config::Limits) -> usize {
    let slots = match limits.concurrency {
        Concurrency::Fixed(slots) => slots.max(1),
        Concurrency::Auto => AUTO_SLOTS,
    };
    slots as usize
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::Shortage;

    pub(in crate::dispatch::lane) fn ended(kind: EndedKind) -> Ended {
        Ended { kind, ..Ended::in_lane(0) }
    }

    pub(in crate::dispatch::lane) fn throttled_for(retry_after: Duration) -> Ended {
        let short_of = Shortage::Requests;
        ended(EndedKind::Throttled { retry_after: Some(retry_after), short_of })
    }

    fn of(slots: u32) -> config::Limits {
        config::Limits { concurrency: Concurrency::Fixed(slots), ..config::Limits::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_throttled_lane_begins_with_one_and_doubles() {
        let now = Instant::now();
        let mut slots = Slots::new(&of(64), now);
        let throttled = throttled_for(Duration::from_secs(7));
        (0..HOLD_AFTER).for_each(|_| slots.on_ended(&throttled, 64, now));
        assert_eq!(slots.allowed(), 1);
        let served: Vec<usize> = (0..7)
            .map(|_| {
                slots.on_ended(&ended(EndedKind::Served), 1, now);
                slots.allowed()
            })
            .collect();
        assert_eq!(served, [2, 4, 8, 16, 32, 64, 64]);
    }

    #[tokio::test(start_paused = true)]
    async fn other_limits_hold_at_once_and_a_throttled_lane_stays_careful() {
        let now = Instant::now();
        let mut slots = Slots::new(&of(4), now);
        slots.change(&of(9), now);
        assert_eq!(slots.allowed(), 9);
        slots.change(&of(2), now);
        assert_eq!(slots.allowed(), 2);
        slots.change(&of(8), now);
        let throttled = throttled_for(Duration::from_secs(7));
        (0..HOLD_AFTER).for_each(|_| slots.on_ended(&throttled, 8, now));
        slots.change(&of(64), now);
        assert_eq!(slots.allowed(), 1);
        slots.on_ended(&ended(EndedKind::Served), 1, now);
        slots.on_ended(&ended(EndedKind::Served), 1, now);
        assert_eq!(slots.allowed(), 4);
        slots.change(&of(3), now);
        assert_eq!(slots.allowed(), 3);
    }
}
