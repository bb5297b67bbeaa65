//! Whether a time that has passed was missed, or came while intake was busy: reading a spec of gigabytes, or waiting
//! for a provider's models. What comes while the daemon is awake gets its run, however late the loop is.

use std::time::Duration;

use tokio::time::Instant;

use crate::domain::Timestamp;

/// Clocks are set right by seconds; a machine that slept did so for longer.
const SLEPT_AT_LEAST: Duration = Duration::from_secs(30);

/// When the loop last came round.
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
}
