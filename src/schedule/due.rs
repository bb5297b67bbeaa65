//! What is due of a schedule at a moment: decided here, done by who asked.
//!
//! # Operation
//!
//! Whoever keeps a schedule remembers the last time that was decided about: at first the moment at which the schedule
//! was first seen, so that what lies before it never comes. Each later time begins a little after itself, by its
//! jitter, and is due from then on. The last of those that are due is *on time* if it began after the looking did, and
//! no more than a minute ago: one that is later was slept through, came while its spec could not be seen, or was due
//! before the daemon ran. The others that are due, and the last if it is not on time, are *missed*.
//!
//! - On time: it gets its run. What was missed before it does not.
//! - Not on time: nothing runs (`catch_up = "skip"`), or the last one does (`"once"`).
//!
//! So a look makes one run at most, whatever was missed, and each time is decided about once.
//!
//! # Invariants
//!
//! A time begins before the next one does: jitter never takes it beyond the next time, so that times begin in their
//! order.

use std::time::Duration;

use super::{CatchUp, Schedule};
use crate::domain::Timestamp;

/// A run that begins later is not on time: looks are a second or a minute apart, but a machine that slept wakes later.
const ON_TIME: Duration = Duration::from_mins(1);
/// Missed times are counted up to here: a schedule of seconds misses millions in a month.
const COUNT_MAX: u32 = 1000;

/// What a look at a schedule found. Nothing is done before it is done by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// The time that gets its run now.
    pub run: Option<Timestamp>,
    /// Times that get none.
    pub missed: Option<Missed>,
    /// The last time that is decided about now: what the next look begins with.
    pub last: Timestamp,
    /// When to look again: the next time begins then. None: no time is left before the year 2101.
    pub next: Option<Timestamp>,
}

/// Times that passed without a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed {
    /// How many, if not [`more`](Self::more).
    pub count: u32,
    /// They were not counted to their end.
    pub more: bool,
    pub first: Timestamp,
    pub last: Timestamp,
}

impl Schedule {
    /// When the run of the time `at` of the spec file `spec` begins: `at` and less than [`jitter`](Self::jitter) later,
    /// the same at every look, and before the next time.
    pub fn begin(&self, spec: &str, at: Timestamp) -> Timestamp {
        if self.jitter.is_zero() {
            return at;
        }
        let room = self.calendar.after(at).map_or(self.jitter, |next| next.since(at)).min(self.jitter);
        let hash =
            blake3::Hasher::new().update(&at.as_millis().to_le_bytes()).update(spec.as_bytes()).finalize();
        let chance = u64::from_le_bytes(hash.as_bytes().first_chunk().copied().unwrap_or_default());
        let delay = (u128::from(chance) * room.as_millis()) >> u64::BITS;
        at + Duration::from_millis(u64::try_from(delay).unwrap_or_default())
    }

    /// What is due at `now` of the times after `last`; `started` is when the looking began, at the start of the daemon
    /// or when the schedule was first seen.
    ///
    /// A clock that was put back makes nothing due. It takes milliseconds at most, however long ago `last` is.
    pub fn look(&self, spec: &str, last: Timestamp, started: Timestamp, now: Timestamp) -> Look {
        let latest = self.last_until(last, now).and_then(|latest| {
            let is_due = self.begin(spec, latest) <= now;
            // The one before it began before it, and so before now.
            if is_due { Some(latest) } else { self.last_until(last, just_before(latest)) }
        });
        let mut look = Look { run: None, missed: None, last: latest.unwrap_or(last), next: None };
        look.next = self.calendar.after(look.last).map(|next| self.begin(spec, next));
        let Some(latest) = latest else { return look };
        let begin = self.begin(spec, latest);
        let is_on_time = begin > started && now.since(begin) <= ON_TIME;
        look.run = (is_on_time || self.catch_up == CatchUp::Once).then_some(latest);
        look.missed = self.missed(last, if look.run.is_some() { just_before(latest) } else { latest });
        look
    }

    fn missed(&self, last: Timestamp, until: Timestamp) -> Option<Missed> {
        let first = self.calendar.after(last).filter(|first| *first <= until)?;
        let mut missed = Missed { count: 1, more: false, first, last: self.last_until(last, until)? };
        let mut at = first;
        while let Some(next) = self.calendar.after(at).filter(|next| *next <= until) {
            if missed.count == COUNT_MAX {
                missed.more = true;
                break;
            }
            missed.count += 1;
            at = next;
        }
        Some(missed)
    }

    /// The last time after `last`, up to `until`.
    fn last_until(&self, last: Timestamp, until: Timestamp) -> Option<Timestamp> {
        let next = |at: u64| self.calendar.after(Timestamp::from_millis(at)).filter(|next| *next <= until);
        let mut found = next(last.as_millis())?;
        // No time lies after `end`: halved, since years of seconds may lie between.
        let mut end = until.as_millis();
        while end.saturating_sub(found.as_millis()) >= 1000 {
            let middle = found.as_millis().midpoint(end);
            match next(middle) {
                Some(later) => found = later,
                None => end = middle,
            }
        }
        Some(found)
    }
}

const fn just_before(at: Timestamp) -> Timestamp {
    Timestamp::from_millis(at.as_millis().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::schedule::{Calendar, Overlap};

    const SPEC: &str = "nightly.toml";

    fn schedule(expression: &str, catch_up: CatchUp, jitter: Duration) -> Schedule {
        let calendar = Calendar::parse(expression, chrono_tz::UTC).unwrap();
        Schedule { calendar, catch_up, overlap: Overlap::Skip, jitter }
    }

    /// Seconds of the day on which the schedule is looked at.
    fn at(hour: u64, minute: u64, second: u64) -> Timestamp {
        Timestamp::from_millis((20_000 * 86_400 + hour * 3600 + minute * 60 + second) * 1000)
    }

    #[test]
    fn what_is_on_time_runs_and_what_was_missed_is_skipped_or_made_good_once() {
        let nightly = |catch_up| schedule("0 2 * * *", catch_up, Duration::ZERO);
        let hourly = |catch_up| schedule("0 * * * *", catch_up, Duration::ZERO);
        let missed = |count, first, last| Some(Missed { count, more: false, first, last });
        let (skip, once) = (CatchUp::Skip, CatchUp::Once);
        let tomorrow = |hour: u64| at(hour + 24, 0, 0);
        // Schedule, last, started, now; run, missed, last, next.
        for (row, (schedule, [last, started, now], (run, missed, decided, next))) in [
            // Before its time, at it, a minute after it, and later: the machine slept.
            (
                nightly(skip),
                [at(1, 0, 0), at(0, 0, 0), at(1, 59, 59)],
                (None, None, at(1, 0, 0), at(2, 0, 0)),
            ),
            (
                nightly(skip),
                [at(1, 0, 0), at(0, 0, 0), at(2, 0, 0)],
                (Some(at(2, 0, 0)), None, at(2, 0, 0), tomorrow(2)),
            ),
            (
                nightly(skip),
                [at(1, 0, 0), at(0, 0, 0), at(2, 1, 0)],
                (Some(at(2, 0, 0)), None, at(2, 0, 0), tomorrow(2)),
            ),
            (
                nightly(skip),
                [at(1, 0, 0), at(0, 0, 0), at(2, 1, 1)],
                (None, missed(1, at(2, 0, 0), at(2, 0, 0)), at(2, 0, 0), tomorrow(2)),
            ),
            (
                nightly(once),
                [at(1, 0, 0), at(0, 0, 0), at(2, 1, 1)],
                (Some(at(2, 0, 0)), None, at(2, 0, 0), tomorrow(2)),
            ),
            // The daemon was started a moment after it.
            (
                nightly(skip),
                [at(1, 0, 0), at(2, 0, 0), at(2, 0, 5)],
                (None, missed(1, at(2, 0, 0), at(2, 0, 0)), at(2, 0, 0), tomorrow(2)),
            ),
            (
                nightly(once),
                [at(1, 0, 0), at(2, 0, 0), at(2, 0, 5)],
                (Some(at(2, 0, 0)), None, at(2, 0, 0), tomorrow(2)),
            ),
            // It has run.
            (nightly(once), [at(2, 0, 0), at(0, 0, 0), at(2, 0, 5)], (None, None, at(2, 0, 0), tomorrow(2))),
            // Several passed: the last is on time, or not.
            (
                hourly(skip),
                [at(1, 0, 0), at(0, 0, 0), at(5, 0, 10)],
                (Some(at(5, 0, 0)), missed(3, at(2, 0, 0), at(4, 0, 0)), at(5, 0, 0), at(6, 0, 0)),
            ),
            (
                hourly(once),
                [at(1, 0, 0), at(0, 0, 0), at(5, 0, 10)],
                (Some(at(5, 0, 0)), missed(3, at(2, 0, 0), at(4, 0, 0)), at(5, 0, 0), at(6, 0, 0)),
            ),
            (
                hourly(skip),
                [at(1, 0, 0), at(5, 10, 0), at(5, 10, 0)],
                (None, missed(4, at(2, 0, 0), at(5, 0, 0)), at(5, 0, 0), at(6, 0, 0)),
            ),
            (
                hourly(once),
                [at(1, 0, 0), at(5, 10, 0), at(5, 10, 0)],
                (Some(at(5, 0, 0)), missed(3, at(2, 0, 0), at(4, 0, 0)), at(5, 0, 0), at(6, 0, 0)),
            ),
            // The clock was put back behind what was decided.
            (hourly(once), [at(5, 0, 0), at(0, 0, 0), at(3, 0, 0)], (None, None, at(5, 0, 0), at(6, 0, 0))),
        ]
        .into_iter()
        .enumerate()
        {
            let expected = Look { run, missed, last: decided, next: Some(next) };
            assert_eq!(schedule.look(SPEC, last, started, now), expected, "row {row}");
        }
    }

    #[test]
    fn a_year_of_missed_seconds_is_told_at_once() {
        let seconds = schedule("* * * * * *", CatchUp::Once, Duration::ZERO);
        let now = at(0, 0, 0) + Duration::from_hours(365 * 24);
        let look = seconds.look(SPEC, at(0, 0, 0), now, now);
        let missed = Missed {
            count: COUNT_MAX,
            more: true,
            first: at(0, 0, 1),
            last: Timestamp::from_millis(now.as_millis() - 1000),
        };
        assert_eq!((look.run, look.missed), (Some(now), Some(missed)));
        let end = Timestamp::from_millis(u64::MAX);
        let look = seconds.look(SPEC, at(0, 0, 0), now, end);
        assert!(look.run.is_some_and(|run| run == look.last) && look.next.is_none());
        assert_eq!(
            seconds.look(SPEC, end, end, end),
            Look { run: None, missed: None, last: end, next: None }
        );
    }

    #[test]
    fn jitter_is_the_same_at_every_look_and_different_for_each_schedule() {
        let nightly = schedule("0 2 * * *", CatchUp::Skip, Duration::from_mins(10));
        let begin = |spec: &str| nightly.begin(spec, at(2, 0, 0)).since(at(2, 0, 0));
        assert_eq!(begin(SPEC), begin(SPEC));
        assert_ne!(begin(SPEC), begin("other.toml"));
        assert!(begin(SPEC) < Duration::from_mins(10) && begin("other.toml") < Duration::from_mins(10));
        // It is waited for: nothing is due at the time itself.
        let (last, late) = (at(1, 0, 0), at(2, 0, 0) + begin(SPEC));
        let look = nightly.look(SPEC, last, last, at(2, 0, 0));
        assert_eq!((look.run, look.next), (None, Some(late)));
        assert_eq!(nightly.look(SPEC, last, last, late).run, Some(at(2, 0, 0)));
    }

    const EXPRESSIONS: [&str; 5] =
        ["*/40 * * * * *", "* * * * *", "*/20 1-3 * * *", "0 2 * * *", "13,14 2 * * *"];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn each_time_is_decided_about_once(
            expression in prop::sample::select(&EXPRESSIONS[..]),
            once: bool,
            jitter in prop_oneof![Just(0), 0..7200_u64],
            looks in prop::collection::vec((prop_oneof![0..90_u64, 0..5000_u64], any::<bool>()), 1..6),
        ) {
            let catch_up = if once { CatchUp::Once } else { CatchUp::Skip };
            let schedule = schedule(expression, catch_up, Duration::from_secs(jitter));
            let (first, mut last, mut started, mut now) = (at(1, 0, 0), at(1, 0, 0), at(1, 0, 0), at(1, 0, 0));
            let mut decided = 0;
            for (later, restarts) in looks {
                now = now + Duration::from_secs(later);
                started = if restarts { now } else { started };
                let look = schedule.look(SPEC, last, started, now);
                // As the definition has it, one time after the other.
                let after = |at: Timestamp| schedule.calendar.after(at);
                let times = std::iter::successors(after(last), |at| after(*at)).take_while(|at| *at <= now);
                let due: Vec<_> = times.filter(|at| schedule.begin(SPEC, *at) <= now).collect();
                let begin = due.last().map(|at| schedule.begin(SPEC, *at));
                let on_time = begin.is_some_and(|begin| begin > started && now.since(begin) <= ON_TIME);
                prop_assert_eq!(look.run, due.last().copied().filter(|_| on_time || once));
                let missed = due.get(..due.len() - usize::from(look.run.is_some())).unwrap();
                prop_assert_eq!(look.missed.map(|missed| missed.first), missed.first().copied());
                prop_assert_eq!(look.missed.map(|missed| missed.last), missed.last().copied());
                let count = u32::try_from(missed.len()).unwrap();
                prop_assert_eq!(look.missed.map_or(0, |missed| missed.count), count.min(COUNT_MAX));
                prop_assert_eq!(look.missed.is_some_and(|missed| missed.more), count > COUNT_MAX);
                prop_assert_eq!(look.last, due.last().copied().unwrap_or(last));
                prop_assert!(look.next.is_some_and(|next| next > now));
                decided += due.len();
                last = look.last;
            }
            let all = std::iter::successors(schedule.calendar.after(first), |at| schedule.calendar.after(*at));
            let begins: Vec<_> = all.map(|at| schedule.begin(SPEC, at)).take_while(|at| *at <= now).collect();
            prop_assert_eq!(begins.len(), decided);
            prop_assert!(begins.is_sorted_by(|a, b| a < b));
        }
    }
}
