//! From the wall clock of a zone to instants: what becomes of a time when the clocks are changed.
//!
//! # Operation
//!
//! As Debian's cron(8) has it. An expression with a wildcard in its time of day goes by the clock as it is: a time that
//! the clocks leave out does not come, one that they show twice comes twice. An expression with a particular time of
//! the day comes once: at the first instant after the gap if its time is left out (once for all its times in the
//! gap), the first time if it is shown twice. Changes of three hours and more are corrections, not summer time: the
//! new time holds at once, for both.
//!
//! A walk goes from one change of the clocks to the next. Between two of them the wall clock runs evenly, so that the
//! next time on it is the next instant; days in which nothing can come are leapt over.

use chrono::{Offset, TimeZone};
use chrono_tz::Tz;

use super::cron::Expression;

/// Clocks changed by less are those of summer time; by so much or more, they are corrected. In seconds.
const CORRECTION: i64 = 3 * 60 * 60;
/// How far clocks are looked at in one step, in seconds: within it they are changed once at most (the zones' shortest
/// stretch between two changes is a week), and more than the largest difference between two offsets (26 h) passes.
const STEP: i64 = 2 * 24 * 60 * 60;
/// No expression has times later: the end of 2101, in seconds.
const END: i64 = 4_165_516_800;

/// The first instant after `at`, both in seconds since the epoch, at which `expression` comes on the clocks of `zone`.
pub(super) fn after(expression: &Expression, zone: Tz, at: i64) -> Option<i64> {
    if at > END {
        return None;
    }
    // From before the last change of the clocks whose repeated hours may still run.
    let mut begin = at - CORRECTION;
    let mut offset = offset_at(zone, begin);
    // What stands on the wall clock up to here has come, or does not.
    let mut reached = begin + offset;
    loop {
        let now = if begin <= at { at + offset } else { i64::MIN };
        let wall = expression.after(reached.max(now))?;
        let found = (wall - offset).max(begin);
        if let Some(change) = change_between(zone, begin, found.min(begin + STEP)) {
            let before = offset;
            offset = offset_at(zone, change);
            reached = reached.max(change - 1 + before);
            if expression.is_wild() || (offset - before).abs() >= CORRECTION {
                reached = change - 1 + offset;
            }
            begin = change;
        } else if found <= begin + STEP {
            return Some(found);
        } else {
            // Nothing comes before `found`, give or take a change of the clocks.
            begin = (begin + STEP).max(found - STEP);
            offset = offset_at(zone, begin);
            reached = begin + offset;
        }
    }
}

/// The first second after `begin`, up to `end`, from which on the clocks are at another offset. They are at most a
/// [`STEP`] apart.
fn change_between(zone: Tz, begin: i64, end: i64) -> Option<i64> {
    let offset = offset_at(zone, begin);
    if offset_at(zone, end) == offset {
        return None;
    }
    let (mut same, mut other) = (begin, end);
    while other - same > 1 {
        let middle = same.midpoint(other);
        if offset_at(zone, middle) == offset {
            same = middle;
        } else {
            other = middle;
        }
    }
    Some(other)
}

/// Seconds that the wall clock is ahead of UTC.
fn offset_at(zone: Tz, at: i64) -> i64 {
    zone.timestamp_opt(at, 0).single().map_or(0, |at| at.offset().fix().local_minus_utc().into())
}
