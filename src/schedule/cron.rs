//! Reads cron expressions as crontab(5) means them, and finds their times on a wall clock.
//!
//! # Format
//!
//! `minute hour day-of-month month day-of-week`, or six fields with the second first, or one of `@hourly`, `@daily`,
//! `@midnight`, `@weekly`, `@monthly`, `@yearly`, `@annually`. A field is a list of values, of ranges `a-b` and `*`,
//! and of steps `a-b/n` and `*/n`. Months and days of the week have names of three letters in any case; 0 and 7 are
//! Sunday. What Debian's cron 3.0 does where the manual leaves room was tried with its `crontab`:
//!
//! - A field that begins with `*` is unrestricted, `*/2` too. If day of month and day of week are both restricted, a day
//!   that matches either is meant, else one that matches both.
//! - `5/10` is refused, as Debian does: other crons disagree whether it ends at 5 or goes on.
//! - `*/90` is taken: it is the first value alone.
//! - A range that runs backwards is refused (Debian takes it for no time at all), but days of the week go over the end
//!   of the week: `Fri-Mon`.
//! - An expression without any time (February 30) is refused; Debian takes it and never runs it.
//!
//! The `cron` crate, which finds the times, wants seconds, counts the days of the week from 1 = Sunday, and knows only
//! days that match both fields: it is given each field as a list of numbers.

use std::collections::BTreeSet;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use cron::Schedule;

use crate::reading::problem::shown;

/// What may stand in a field.
struct Field {
    name: &'static str,
    expected: &'static str,
    first: u32,
    last: u32,
    /// Of the values from `first` on.
    names: &'static [&'static str],
}

const fn field(name: &'static str, expected: &'static str, first: u32, last: u32) -> Field {
    Field { name, expected, first, last, names: &[] }
}

const SECOND: Field = field("second", "0 to 59", 0, 59);
const MINUTE: Field = field("minute", "0 to 59", 0, 59);
const HOUR: Field = field("hour", "0 to 23", 0, 23);
const DAY: Field = field("day of the month", "1 to 31", 1, 31);
const MONTH: Field = Field { names: &MONTHS, ..field("month", "1 to 12 or Jan to Dec", 1, 12) };
const WEEKDAY: Field = Field { names: &WEEKDAYS, ..field("day of the week", "0 to 7 or Sun to Sat", 0, 7) };

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const WEEKDAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];

/// Words in place of the fields.
const WORDS: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

/// A cron expression that has times.
#[derive(Clone, Debug)]
pub(super) struct Expression {
    /// Its times are those of any of them.
    schedules: Vec<Schedule>,
    /// Second, minute or hour begins with `*`: see [`Expression::is_wild`].
    wild: bool,
}

impl Expression {
    /// Reads five fields, six (seconds first), or a word like `@daily`. An error is a phrase for a person.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut fields: Vec<&str> = text.split_whitespace().collect();
        if let [word] = fields.as_slice()
            && word.starts_with('@')
        {
            fields = meaning(word)?.split(' ').collect();
        }
        let (second, [minute, hour, day, month, weekday]) = match *fields.as_slice() {
            [minute, hour, day, month, weekday] => ("0", [minute, hour, day, month, weekday]),
            [second, minute, hour, day, month, weekday] => (second, [minute, hour, day, month, weekday]),
            _ => {
                let count = fields.len();
                let expected = "expected 5: minute hour day month weekday, or 6 with the second first";
                return Err(format!("{count} fields, {expected}"));
            }
        };
        let times = [SECOND.list(second)?, MINUTE.list(minute)?, HOUR.list(hour)?].join(" ");
        let (days, months, weekdays) = (DAY.list(day)?, MONTH.list(month)?, WEEKDAY.list(weekday)?);
        let either = !day.starts_with('*') && !weekday.starts_with('*');
        let written = if either {
            vec![format!("{times} {days} {months} *"), format!("{times} * {months} {weekdays}")]
        } else {
            vec![format!("{times} {days} {months} {weekdays}")]
        };
        let mut schedules = Vec::new();
        for written in written {
            let schedule = Schedule::from_str(&written).map_err(|_| "its fields do not go together")?;
            // Any day will do to see whether there is a next time: February 30 never comes.
            if schedule.after(&DateTime::UNIX_EPOCH).next().is_some() {
                schedules.push(schedule);
            }
        }
        if schedules.is_empty() {
            return Err("it never comes".to_owned());
        }
        Ok(Self { schedules, wild: [second, minute, hour].iter().any(|field| field.starts_with('*')) })
    }

    /// It is no particular time of the day (its second, minute or hour begins with `*`), so that it goes by the clock
    /// as it is when clocks are changed.
    pub(super) const fn is_wild(&self) -> bool {
        self.wild
    }

    /// The first time after `wall`: seconds on a clock that is never changed, 0 = 1970-01-01 00:00. None after 2100.
    pub(super) fn after(&self, wall: i64) -> Option<i64> {
        let wall: DateTime<Utc> = DateTime::from_timestamp(wall, 0)?;
        self.schedules
            .iter()
            .filter_map(|schedule| schedule.after(&wall).next())
            .map(|at| at.timestamp())
            .min()
    }
}

fn meaning(word: &str) -> Result<&'static str, String> {
    if word.eq_ignore_ascii_case("@reboot") {
        return Err(
            "`@reboot` is no time: a spec without `[schedule]` runs once, when it is dropped".to_owned()
        );
    }
    let found = WORDS.iter().find(|(known, _)| word.eq_ignore_ascii_case(known));
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let known: Vec<String> = WORDS.iter().map(|(known, _)| format!("`{known}`")).collect();
        format!("{} is none of {}", shown(word), known.join(", "))
    })
}

impl Field {
    /// The field's values as the `cron` crate reads them.
    fn list(&self, text: &str) -> Result<String, String> {
        let mut values = BTreeSet::new();
        for part in text.split(',') {
            values.extend(self.values(part)?);
        }
        let is_weekday = self.name == WEEKDAY.name;
        let all = if is_weekday { 7 } else { self.last - self.first + 1 };
        if values.len() == all as usize {
            return Ok("*".to_owned());
        }
        let numbers = values.into_iter().map(|value| if is_weekday { value + 1 } else { value });
        Ok(numbers.map(|value| value.to_string()).collect::<Vec<_>>().join(","))
    }

    /// What one part of the list stands for; days of the week from 0 to 6.
    fn values(&self, part: &str) -> Result<Vec<u32>, String> {
        let wrong = |why: String| format!("{} is no {}{why}", shown(part), self.name);
        let unknown = || wrong(format!(", expected {}", self.expected));
        let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        let (first, mut last) = if range == "*" {
            (self.first, self.last)
        } else if let Some((first, last)) = range.split_once('-') {
            self.value(first).zip(self.value(last)).ok_or_else(unknown)?
        } else {
            let value = self.value(range).ok_or_else(unknown)?;
            if step.is_some() {
                let example = format!("`{value}-{}/…`", self.last);
                return Err(wrong(format!(": a step follows `*` or a range, as in {example}")));
            }
            (value, value)
        };
        let step = step.map_or(Some(1), |step| number(step).filter(|step| *step > 0));
        let step = step.ok_or_else(|| wrong(": a step is a number from 1".to_owned()))?;
        let week = if self.name == WEEKDAY.name { 7 } else { u32::MAX };
        if last < first {
            if week == u32::MAX {
                return Err(wrong(": the range runs backwards".to_owned()));
            }
            last += week;
        }
        Ok((first..=last).step_by(step as usize).map(|value| value % week).collect())
    }

    fn value(&self, text: &str) -> Option<u32> {
        if let Some(at) = self.names.iter().position(|name| name.eq_ignore_ascii_case(text)) {
            return u32::try_from(at).ok().map(|at| at + self.first);
        }
        number(text).filter(|value| (self.first..=self.last).contains(value))
    }
}

/// Digits alone: no sign.
fn number(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expression | its first times in 2026 and after.
    const TIMES: &str = "
30 4 1,15 * 5        | Thu 01-01 04:30, Fri 01-02 04:30, Fri 01-09 04:30, Thu 01-15 04:30
# Restricted days of both kinds: either.
0 0 13 * Mon         | Mon 01-05 00:00, Mon 01-12 00:00, Tue 01-13 00:00, Mon 01-19 00:00
# A field that begins with `*` is unrestricted: both.
0 0 */2 * Mon        | Mon 01-05 00:00, Mon 01-19 00:00, Mon 02-09 00:00, Mon 02-23 00:00
0 0 5,6 * */2        | Tue 01-06 00:00, Thu 02-05 00:00, Thu 03-05 00:00, Sun 04-05 00:00
0 0 * * Mon          | Mon 01-05 00:00, Mon 01-12 00:00, Mon 01-19 00:00, Mon 01-26 00:00
# One that only ends in `*` is restricted.
0 0 1-31 * Mon       | Thu 01-01 00:00, Fri 01-02 00:00, Sat 01-03 00:00, Sun 01-04 00:00
0 0 1,*/31 * Mon     | Thu 01-01 00:00, Mon 01-05 00:00, Mon 01-12 00:00, Mon 01-19 00:00
0 9 * * 1-5          | Thu 01-01 09:00, Fri 01-02 09:00, Mon 01-05 09:00, Tue 01-06 09:00
0 9 * * 0            | Sun 01-04 09:00, Sun 01-11 09:00, Sun 01-18 09:00, Sun 01-25 09:00
0 9 * * 7            | Sun 01-04 09:00, Sun 01-11 09:00, Sun 01-18 09:00, Sun 01-25 09:00
0 9 * * 6-7          | Sat 01-03 09:00, Sun 01-04 09:00, Sat 01-10 09:00, Sun 01-11 09:00
0 9 * * fri-MON      | Fri 01-02 09:00, Sat 01-03 09:00, Sun 01-04 09:00, Mon 01-05 09:00
0 9 * * 5-1/2        | Fri 01-02 09:00, Sun 01-04 09:00, Fri 01-09 09:00, Sun 01-11 09:00
0 9 * * 7-1          | Sun 01-04 09:00, Mon 01-05 09:00, Sun 01-11 09:00, Mon 01-12 09:00
0 9 * * */3          | Sat 01-03 09:00, Sun 01-04 09:00, Wed 01-07 09:00, Sat 01-10 09:00
0 9 * * 1-7/3        | Thu 01-01 09:00, Sun 01-04 09:00, Mon 01-05 09:00, Thu 01-08 09:00
*/25 1-3/2 * * *     | Thu 01-01 01:00, Thu 01-01 01:25, Thu 01-01 01:50, Thu 01-01 03:00
10-30/15,7 00 * * *  | Thu 01-01 00:07, Thu 01-01 00:10, Thu 01-01 00:25, Fri 01-02 00:07
*/90 * * * *         | Thu 01-01 00:00, Thu 01-01 01:00, Thu 01-01 02:00, Thu 01-01 03:00
*/20 59 23 31 dec *  | Thu 12-31 23:59, Thu 12-31 23:59:20, Thu 12-31 23:59:40, Fri 12-31 23:59
0 0 1 */5 *          | Thu 01-01 00:00, Mon 06-01 00:00, Sun 11-01 00:00, Fri 01-01 00:00
@hourly              | Thu 01-01 00:00, Thu 01-01 01:00, Thu 01-01 02:00, Thu 01-01 03:00
@daily               | Thu 01-01 00:00, Fri 01-02 00:00, Sat 01-03 00:00, Sun 01-04 00:00
 @Midnight           | Thu 01-01 00:00, Fri 01-02 00:00, Sat 01-03 00:00, Sun 01-04 00:00
@weekly              | Sun 01-04 00:00, Sun 01-11 00:00, Sun 01-18 00:00, Sun 01-25 00:00
@monthly             | Thu 01-01 00:00, Sun 02-01 00:00, Sun 03-01 00:00, Wed 04-01 00:00
@yearly              | Thu 01-01 00:00, Fri 01-01 00:00, Sat 01-01 00:00, Mon 01-01 00:00
@annually            | Thu 01-01 00:00, Fri 01-01 00:00, Sat 01-01 00:00, Mon 01-01 00:00
0 0 29 2 *           | Tue 02-29 00:00, Sun 02-29 00:00, Fri 02-29 00:00, Wed 02-29 00:00
";

    /// The first times of an expression on the wall clock of 2026.
    fn times(expression: &str, count: usize) -> Vec<String> {
        let expression = Expression::parse(expression).unwrap();
        let mut at = DateTime::parse_from_rfc3339("2026-01-01T00:00:00Z").unwrap().timestamp() - 1;
        let next = || {
            at = expression.after(at)?;
            let format = if at % 60 == 0 { "%a %m-%d %H:%M" } else { "%a %m-%d %H:%M:%S" };
            Some(DateTime::from_timestamp(at, 0)?.format(format).to_string())
        };
        std::iter::from_fn(next).take(count).collect()
    }

    #[test]
    fn expressions_come_when_crontab_runs_them() {
        for row in TIMES.lines() {
            let Some((expression, expected)) = row.split_once(" | ") else {
                assert!(row.is_empty() || row.starts_with("# "), "{row}");
                continue;
            };
            assert_eq!(times(expression, 4).join(", "), expected, "{expression}");
        }
        // A day that never comes beside one that does.
        assert_eq!(times("0 0 30 2 Mon", 1), ["Mon 02-02 00:00"]);
    }

    #[test]
    fn particular_times_are_told_from_those_with_wildcards() {
        for (expression, wild) in [
            ("30 2 * * *", false),
            ("0-59 2 * * *", false),
            ("0,30 0-23 * * *", false),
            ("@daily", false),
            ("5 30 2 * * *", false),
            ("@hourly", true),
            ("30 * * * *", true),
            ("*/30 2 * * *", true),
            ("0 */2 * * *", true),
            ("*/10 30 2 * * *", true),
        ] {
            assert_eq!(Expression::parse(expression).unwrap().is_wild(), wild, "{expression}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_in_our_words() {
        const FIVE: &str = "expected 5: minute hour day month weekday, or 6 with the second first";
        for (expression, expected) in [
            ("60 * * * *", "`60` is no minute, expected 0 to 59"),
            ("1,60 * * * *", "`60` is no minute, expected 0 to 59"),
            ("1,,2 * * * *", "`` is no minute, expected 0 to 59"),
            ("+1 * * * *", "`+1` is no minute, expected 0 to 59"),
            ("*5 * * * *", "`*5` is no minute, expected 0 to 59"),
            ("61 * * * * *", "`61` is no second, expected 0 to 59"),
            ("0 25 * * 1-5", "`25` is no hour, expected 0 to 23"),
            ("0 22-2 * * *", "`22-2` is no hour: the range runs backwards"),
            ("0 0 1-x * *", "`1-x` is no day of the month, expected 1 to 31"),
            ("0 0 0 * *", "`0` is no day of the month, expected 1 to 31"),
            ("0 0 ? * 1", "`?` is no day of the month, expected 1 to 31"),
            ("0 0 L * *", "`L` is no day of the month, expected 1 to 31"),
            ("0 0 */0 * *", "`*/0` is no day of the month: a step is a number from 1"),
            ("0 0 1-9/-1 * *", "`1-9/-1` is no day of the month: a step is a number from 1"),
            ("5/10 * * * *", "`5/10` is no minute: a step follows `*` or a range, as in `5-59/…`"),
            ("0 0 * Foo *", "`Foo` is no month, expected 1 to 12 or Jan to Dec"),
            ("0 0 * dec-jan *", "`dec-jan` is no month: the range runs backwards"),
            ("0 0 * * 8", "`8` is no day of the week, expected 0 to 7 or Sun to Sat"),
            ("0 0 * * Monday", "`Monday` is no day of the week, expected 0 to 7 or Sun to Sat"),
            ("0 0 * * Mon#1", "`Mon#1` is no day of the week, expected 0 to 7 or Sun to Sat"),
            ("0 0 31 2 *", "it never comes"),
            ("0 0 31 4,6,9,11 *", "it never comes"),
            ("", &format!("0 fields, {FIVE}")),
            ("* * * *", &format!("4 fields, {FIVE}")),
            ("* * * * * * 2030", &format!("7 fields, {FIVE}")),
            ("@daily 5", &format!("2 fields, {FIVE}")),
            (
                "@never",
                "`@never` is none of `@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`, `@yearly`, `@annually`",
            ),
            ("@reboot", "`@reboot` is no time: a spec without `[schedule]` runs once, when it is dropped"),
        ] {
            assert_eq!(Expression::parse(expression).unwrap_err(), expected, "{expression}");
        }
    }
}
