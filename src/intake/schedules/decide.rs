//! What is to be done about the times of a schedule that have passed.

use crate::domain::Timestamp;
use crate::schedule::{CatchUp, Schedule};

/// See [`decide`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// The time that gets a run now.
    pub(super) run: Option<Timestamp>,
    /// Times that passed and get none.
    pub(super) missed: Option<Missed>,
    /// Every time up to this one is decided about.
    pub(super) last: Timestamp,
    /// When to look again; none: never.
    pub(super) next: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Missed {
    pub(super) count: u64,
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
}

/// What becomes of the times after `last` up to `now`, of a schedule that is looked after since `since`.
pub(super) fn decide(schedule: &Schedule, last: Timestamp, since: Timestamp, now: Timestamp) -> Decision {
    const TIMES_MAX: usize = 100_000;
    let times = std::iter::successors(schedule.calendar.after(last), |at| schedule.calendar.after(*at));
    let passed: Vec<Timestamp> = times.take_while(|at| *at <= now).take(TIMES_MAX).collect();
    let newest = passed.last().copied();
    let run = newest.filter(|newest| *newest > since || schedule.catch_up == CatchUp::Once);
    let count = passed.len() - usize::from(run.is_some());
    let missed = passed.first().filter(|_| count > 0).and_then(|from| {
        let to = passed.get(count - 1)?;
        Some(Missed { count: count as u64, from: *from, to: *to })
    });
    let last = newest.unwrap_or(last);
    Decision { run, missed, last, next: schedule.calendar.after(last.max(now)) }
}
