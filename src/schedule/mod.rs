//! Schedules: when a spec with `[schedule]` comes due, as crontab would have it.
//!
//! Pure: an expression, a time zone and a time in, a time out. What comes due is made a job by
//! [`intake`](crate::intake).

mod cron;
mod due;
#[cfg(test)]
mod tests;
mod wall;

use std::time::Duration;

use chrono::{DateTime, SecondsFormat};
use chrono_tz::Tz;

use crate::domain::Timestamp;

pub use self::due::{Look, Missed};

/// Milliseconds of the last time that is written as a date: in the year 9999, in all zones.
const LAST: i64 = 253_402_214_400_000;

/// The `[schedule]` of a spec.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub calendar: Calendar,
    pub catch_up: CatchUp,
    pub overlap: Overlap,
    /// Each run begins up to so much later than its time, by chance that is the same at every look.
    pub jitter: Duration,
}

/// What becomes of times that passed while no daemon ran, the machine slept, or the jobs folder was away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CatchUp {
    /// The last of them gets its run.
    Once,
    /// None does.
    #[default]
    Skip,
}

impl CatchUp {
    /// As specs write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Once => "once",
            Self::Skip => "skip",
        }
    }
}

/// What becomes of a time that comes while the run before it has not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlap {
    /// It gets no run.
    #[default]
    Skip,
    /// Its run is accepted, and waits until the one before it has ended.
    Queue,
}

impl Overlap {
    /// As specs write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Queue => "queue",
        }
    }
}

/// The times of a schedule: a cron expression and the zone whose clocks it is read on.
#[derive(Clone, Debug)]
pub struct Calendar {
    text: String,
    expression: cron::Expression,
    zone: Tz,
}

impl Calendar {
    /// Reads five fields, six (seconds first), or a word like `@daily`.
    ///
    /// # Errors
    ///
    /// What is wrong with `text`, as a phrase for a person.
    pub fn parse(text: &str, zone: Tz) -> Result<Self, String> {
        Ok(Self { text: text.to_owned(), expression: cron::Expression::parse(text)?, zone })
    }

    /// The expression as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub const fn zone(&self) -> Tz {
        self.zone
    }

    /// The first time after `at`: a whole second. None after the year 2100.
    ///
    /// It takes microseconds, whatever the expression.
    pub fn after(&self, at: Timestamp) -> Option<Timestamp> {
        let seconds = i64::try_from(at.as_secs()).ok()?;
        let next = wall::after(&self.expression, self.zone, seconds)?;
        u64::try_from(next).ok()?.checked_mul(1000).map(Timestamp::from_millis)
    }

    /// `at` on the zone's clocks, as it stands in the names of runs: `20261122T020000`.
    pub fn stamp(&self, at: Timestamp) -> String {
        local(at, self.zone).map_or_else(String::new, |at| at.format("%Y%m%dT%H%M%S").to_string())
    }

    /// `at` on the zone's clocks, for a person: `2026-11-22T02:00:00+08:00`.
    pub fn shown(&self, at: Timestamp) -> String {
        local(at, self.zone)
            .map_or_else(|| at.to_string(), |at| at.to_rfc3339_opts(SecondsFormat::Secs, false))
    }
}

/// `at` on the clocks of `zone`; none after the year 9999.
pub fn local(at: Timestamp, zone: Tz) -> Option<DateTime<Tz>> {
    let millis = i64::try_from(at.as_millis()).ok().filter(|millis| *millis <= LAST)?;
    Some(DateTime::from_timestamp_millis(millis)?.with_timezone(&zone))
}
