//! How fast the server was asked: by the second, and who came back before they were told to.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::ledger::{KeyMark, Outcome};

/// Seconds that are told apart: a day. What comes later counts in the totals alone.
const SECONDS_MAX: usize = 24 * 60 * 60;
/// Keys and models that are told apart. What others come back with is not judged.
const LANES_MAX: usize = 1_000;
/// What was sent before a hint had arrived comes after it. Longer than any request is on its way to a server on the
/// same machine, however busy that is.
const ON_ITS_WAY: Duration = Duration::from_millis(100);
/// Hints are kept in whole milliseconds.
const ROUNDING: Duration = Duration::from_millis(1);

/// Refusals by a limit, as they stand in the ledger.
const LIMITS: [&str; 3] = ["rate_limit_exceeded", "slow_down", "server_is_overloaded"];

/// What the seconds of a server were like.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Pace {
    /// Questions that were let in, whatever became of them then.
    pub admitted: u64,
    /// Questions that were refused by a limit, or as if there were one: 429 but for a used-up quota, 503.
    pub refused: u64,
    /// Questions that were refused for anything else.
    pub rejected: u64,
    /// Of all questions.
    pub refused_share: f64,
    pub max_in_flight: u64,
    /// Questions that came while their key and model had been told to stay away. Those that may have been on their way
    /// when that was said (100 ms) are not counted.
    pub early: u64,
    /// Seconds in which something came, oldest first.
    pub seconds: Vec<Second>,
}

/// One of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Second {
    /// Whole seconds since the start of the server.
    pub at: u64,
    pub admitted: u64,
    pub refused: u64,
    pub rejected: u64,
    pub max_in_flight: u64,
}

/// Who was told to stay away: a key and a model.
pub(super) type LaneId = (Option<KeyMark>, blake3::Hash);

/// Counts.
#[derive(Debug, Default)]
pub(super) struct PaceMeter {
    total: Second,
    early: u64,
    seconds: BTreeMap<u64, Second>,
    holds: BTreeMap<(Option<KeyMark>, [u8; 32]), Hold>,
}

/// Nobody should come from `from` until `until`.
#[derive(Debug)]
struct Hold {
    from: Instant,
    until: Instant,
}

/// One question, as it is counted.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) lane: LaneId,
    pub(super) outcome: Outcome,
    pub(super) in_flight: u64,
    /// What its reply tells, and when that leaves.
    pub(super) told: Option<(Instant, Duration)>,
}

impl PaceMeter {
    pub(super) fn count(&mut self, asked: &Asked, at_us: u64, now: Instant) {
        let at = at_us / 1_000_000;
        self.total.count(asked);
        if self.seconds.len() < SECONDS_MAX || self.seconds.contains_key(&at) {
            self.seconds.entry(at).or_insert_with(|| Second { at, ..Second::default() }).count(asked);
        }
        let lane = (asked.lane.0, *asked.lane.1.as_bytes());
        if self.holds.get(&lane).is_some_and(|hold| hold.from <= now && now < hold.until) {
            self.early += 1;
        }
        let Some((told_at, wait)) = asked.told else { return };
        let (from, until) = (told_at + ON_ITS_WAY, told_at + wait.saturating_sub(ROUNDING));
        if from >= until {
            return;
        }
        let is_room = self.holds.len() < LANES_MAX;
        match self.holds.get_mut(&lane) {
            Some(hold) if from <= hold.until => hold.until = hold.until.max(until),
            Some(hold) => *hold = Hold { from, until },
            None if is_room => {
                self.holds.insert(lane, Hold { from, until });
            }
            None => {}
        }
    }

    pub(super) fn pace(&self) -> Pace {
        let Second { admitted, refused, rejected, max_in_flight, .. } = self.total;
        let float = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let refused_share = float(refused) / float((admitted + refused + rejected).max(1));
        let seconds = self.seconds.values().copied().collect();
        Pace { admitted, refused, rejected, refused_share, max_in_flight, early: self.early, seconds }
    }

    /// Forgets the counts, not who was told to stay away.
    pub(super) fn reset(&mut self) {
        (self.total, self.early) = (Second::default(), 0);
        self.seconds.clear();
    }
}

impl Second {
    fn count(&mut self, asked: &Asked) {
        let is_limit = match asked.outcome {
            Outcome::Ok => false,
            Outcome::Refused(name) => LIMITS.contains(&name),
            Outcome::Fault(fault) => fault.is_refusal(),
        };
        let count = match asked.outcome {
            _ if is_limit => &mut self.refused,
            Outcome::Refused(_) => &mut self.rejected,
            Outcome::Ok | Outcome::Fault(_) => &mut self.admitted,
        };
        *count += 1;
        self.max_in_flight = self.max_in_flight.max(asked.in_flight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::Fault;

    fn asked(model: &str, outcome: Outcome, told: Option<(Instant, Duration)>) -> Asked {
        Asked {
            lane: (Some(KeyMark::of("key")), blake3::hash(model.as_bytes())),
            outcome,
            in_flight: 3,
            told,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn seconds_tell_who_was_let_in_and_who_was_not() {
        let (mut meter, now) = (PaceMeter::default(), Instant::now());
        for (at_us, outcome) in [
            (0, Outcome::Ok),
            (900_000, Outcome::Fault(Fault::ServerError)),
            (999_999, Outcome::Refused("rate_limit_exceeded")),
            (1_000_000, Outcome::Fault(Fault::Overloaded)),
            (7_000_000, Outcome::Refused("invalid_api_key")),
        ] {
            meter.count(&asked("m", outcome, None), at_us, now);
        }
        let pace = meter.pace();
        assert_eq!((pace.admitted, pace.refused, pace.rejected, pace.max_in_flight), (2, 2, 1, 3));
        assert!((pace.refused_share - 0.4).abs() < 1e-9);
        let seconds: Vec<_> =
            pace.seconds.iter().map(|s| (s.at, s.admitted, s.refused, s.rejected)).collect();
        assert_eq!(seconds, [(0, 2, 1, 0), (1, 0, 1, 0), (7, 0, 0, 1)]);
        meter.reset();
        assert_eq!(meter.pace(), Pace::default());
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_back_before_it_was_told_to_is_early() {
        let (mut meter, start) = (PaceMeter::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        let told = |millis, wait| Some((at(millis), Duration::from_millis(wait)));
        let refused = Outcome::Refused("rate_limit_exceeded");
        let mut ask = |model: &str, millis: u64, told: Option<(Instant, Duration)>| {
            let outcome = if told.is_some() { refused } else { Outcome::Ok };
            meter.count(&asked(model, outcome, told), millis * 1000, at(millis));
            meter.pace().early
        };
        assert_eq!(ask("m", 0, told(0, 1_000)), 0);
        assert_eq!(ask("m", 99, None), 0, "it was on its way");
        assert_eq!(ask("other", 500, None), 0, "another model");
        assert_eq!(ask("m", 500, told(500, 2_000)), 1);
        assert_eq!(ask("m", 2_000, None), 2, "the second hint holds longer");
        assert_eq!(ask("m", 2_500, None), 2);
        assert_eq!(ask("m", 3_000, told(3_000, 20)), 2, "so short a hint can't be told from the way");
        assert_eq!(ask("m", 3_010, None), 2);
    }
}
