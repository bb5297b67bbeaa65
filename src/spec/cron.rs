//! Reads cron expressions as crontab means them.
//!
//! The `cron` crate wants seconds first and counts the days of the week from 1 = Sunday, so that
//! crontab's `1-5` would run from Sunday to Thursday: days are rewritten to names before it sees them.

use std::str::FromStr;

use chrono::DateTime;
use cron::Schedule;

const DAYS: [&str; 8] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// Checks an expression of five fields, six (seconds first), or a word like `@daily`.
pub(super) fn check(expression: &str) -> Result<(), String> {
    let fields: Vec<&str> = expression.split_whitespace().collect();
    let rewritten = match fields.as_slice() {
        [word] if word.starts_with('@') => (*word).to_owned(),
        [minute, hour, day, month, weekday] => {
            format!("0 {minute} {hour} {day} {month} {}", weekdays(weekday)?)
        }
        [second, minute, hour, day, month, weekday] => {
            format!("{second} {minute} {hour} {day} {month} {}", weekdays(weekday)?)
        }
        _ => return Err(format!("{} fields, expected 5: minute hour day month weekday", fields.len())),
    };
    let schedule = Schedule::from_str(&rewritten).map_err(|error| error.to_string())?;
    // Any day will do to see whether there is a next time: February 31 never comes.
    if schedule.after(&DateTime::UNIX_EPOCH).next().is_none() {
        return Err("it never comes".to_owned());
    }
    Ok(())
}

/// The days of the week as names. 0 and 7 are Sunday; a range may go over the end of the week.
fn weekdays(field: &str) -> Result<String, String> {
    let parts: Result<Vec<String>, String> = field.split(',').map(weekday).collect();
    Ok(parts?.join(","))
}

fn weekday(part: &str) -> Result<String, String> {
    let (range, step) = part.split_once('/').unwrap_or((part, "1"));
    let Some((first, last)) = range.split_once('-') else {
        return match (day(range), part.contains('/')) {
            (Some(day), false) => Ok(name(day?).to_owned()),
            _ => Ok(part.to_owned()),
        };
    };
    let (Some(first), Some(last)) = (day(first), day(last)) else { return Ok(part.to_owned()) };
    let (first, mut last) = (first?, last?);
    let step: usize = step.parse().ok().filter(|step| *step > 0).ok_or("a step is a number from 1")?;
    if last < first {
        last += 7;
    }
    let days: Vec<&str> = (first..=last).step_by(step).map(|day| name(day % 7)).collect();
    Ok(days.join(","))
}

fn name(day: usize) -> &'static str {
    DAYS.get(day).copied().unwrap_or("Sun")
}

/// A day written as a number; none for names and `*`.
fn day(text: &str) -> Option<Result<usize, String>> {
    let day: usize = text.parse().ok()?;
    Some(if day < DAYS.len() { Ok(day) } else { Err(format!("weekday `{day}`, expected 0 to 7")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_crontab_takes_is_taken() {
        for good in [
            "0 2 * * 1-5",
            "*/5 * * * *",
            "0 0 1 1 *",
            "30 4 * * 0",
            "30 4 * * 7",
            "0 9 * * 5-1",
            "0 9 * * Mon-Fri",
            "0 9 * * 1,3,5",
            "*/10 * * * * *",
            "@daily",
            "0 0 29 2 *",
            "0 9 * * 1-5/2",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "* * * *",
            "60 * * * *",
            "0 25 * * *",
            "0 0 31 2 *",
            "0 2 * * 8",
            "hello",
            "@sometimes",
            "a b c d e",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_of_days_are_those_of_crontab() {
        assert_eq!(weekdays("1-5").unwrap(), "Mon,Tue,Wed,Thu,Fri");
        assert_eq!(weekdays("0,7").unwrap(), "Sun,Sun");
        assert_eq!(weekdays("5-1").unwrap(), "Fri,Sat,Sun,Mon");
        assert_eq!(weekdays("*").unwrap(), "*");
    }
}
