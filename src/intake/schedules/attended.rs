//! Whether a time that has passed was missed, or came while intake was busy: reading a spec of gigabytes, or waiting
//! for a provider's models. What comes while the daemon is awake gets its run, however late the loop is.

use std::time::Duration;

use tokio::time::Instant;

use crate::domain::Timestamp;

/// Clocks are set right by seconds; a machine that slept did so for longer.
const SLEPT_AT_LEAST: Duration = Duration::from_secs(30);

/// A schedule whose runs take longer to make than its times to come would lag ever further behind: after so long the
/// times that are left count as missed.
const BEHIND_AT_MOST: Duration = Duration::from_mins(10);

/// When the loop last came round with nothing left to decide.
#[derive(Clone, Copy, Debug)]
pub(in crate::intake) struct Attended {
    at: Timestamp,
    /// On a clock that stands still while the machine sleeps.
    awake: Instant,
}

impl Attended {
    pub(in crate::intake) fn new(now: Timestamp) -> Self {
        Self { at: now, awake: Instant::now() }
    }

    /// A round has ended; `is_behind`: there are times left that came before it.
    pub(in crate::intake) fn round_ended(&mut self, is_behind: bool, now: Timestamp) {
        if !is_behind || self.awake.elapsed() > BEHIND_AT_MOST {
            *self = Self::new(now);
        }
    }

    /// The moment as of which is decided, at `now`, about a time that begins at `next`.
    pub(super) fn moment(&self, next: Option<Timestamp>, now: Timestamp) -> Timestamp {
        let slept = now.since(self.at).saturating_sub(self.awake.elapsed());
        let came = |next: &Timestamp| *next >= self.at && *next <= now;
        next.filter(came).filter(|_| slept < SLEPT_AT_LEAST).unwrap_or(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_came_while_intake_was_busy_is_not_missed_and_what_was_slept_through_is() {
        let noon = Timestamp::from_millis(1_893_456_000_000);
        let attended = Attended::new(noon);
        let minutes = |count| noon + Duration::from_mins(count);
        tokio::time::advance(Duration::from_mins(10)).await;
        assert_eq!(attended.moment(Some(minutes(3)), minutes(10)), minutes(3), "it was busy");
        assert_eq!(
            attended.moment(Some(minutes(3)), minutes(40)),
            minutes(40),
            "the machine slept half an hour"
        );
        assert_eq!(attended.moment(None, minutes(10)), minutes(10));
        let before = Timestamp::from_millis(noon.as_millis() - 1);
        assert_eq!(attended.moment(Some(before), minutes(10)), minutes(10), "that could have been seen");
        assert_eq!(attended.moment(Some(minutes(11)), minutes(10)), minutes(10));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_behind_catches_up_and_who_lags_for_ever_does_not() {
        let noon = Timestamp::from_millis(1_893_456_000_000);
        let mut attended = Attended::new(noon);
        let minutes = |count| noon + Duration::from_mins(count);
        tokio::time::advance(Duration::from_mins(10)).await;
        attended.round_ended(true, minutes(10));
        assert_eq!(attended.moment(Some(minutes(3)), minutes(10)), minutes(3));
        tokio::time::advance(Duration::from_mins(1)).await;
        attended.round_ended(true, minutes(11));
        assert_eq!(attended.moment(Some(minutes(3)), minutes(11)), minutes(11));
        attended.round_ended(false, minutes(11));
        assert_eq!(attended.moment(Some(minutes(10)), minutes(11)), minutes(11));
    }
}
