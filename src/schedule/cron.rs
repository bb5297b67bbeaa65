//! Reads cron expressions as crontab means them.
//!
//! The `cron` crate wants seconds first and counts the days of the week from 1 = Sunday, so that
//! crontab's `1-5` would run from Sunday to Thursday: days are rewritten to names before it sees them.

use std::str::FromStr;

use chrono::DateTime;
use cron::Schedule;

use crate::reading::problem::shown;

const DAYS: [&str; 8] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// What each field is called, and what may stand in it beside `*`, lists, ranges and steps.
const FIELDS: [(&str, &str); 6] = [
    ("second", "0 to 59"),
    ("minute", "0 to 59"),
    ("hour", "0 to 23"),
    ("day of the month", "1 to 31"),
    ("month", "1 to 12 or Jan to Dec"),
    ("day of the week", "0 to 7 or Sun to Sat"),
];

/// A cron expression.
#[derive(Clone, Debug)]
pub(super) struct Expression {
    pub(super) schedule: Schedule,
}

impl Expression {
    /// Reads five fields, six (seconds first), or a word like `@daily`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        parse(text).map(|schedule| Self { schedule })
    }
}

fn parse(expression: &str) -> Result<Schedule, String> {
    let mut fields: Vec<&str> = expression.split_whitespace().collect();
    if let [word] = fields.as_slice()
        && word.starts_with('@')
    {
        let unknown =
            || format!("{} is none of `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`", shown(word));
        return Schedule::from_str(word).map_err(|_| unknown());
    }
    match fields.len() {
        5 => fields.insert(0, "0"),
        6 => {}
        count => return Err(format!("{count} fields, expected 5: minute hour day month weekday")),
    }
    let mut rewritten: Vec<String> = fields.iter().map(|field| (*field).to_owned()).collect();
    if let Some(weekday) = rewritten.last_mut() {
        *weekday = weekdays(weekday)?;
    }
    let Ok(schedule) = Schedule::from_str(&rewritten.join(" ")) else {
        return Err(wrong(&fields, &rewritten));
    };
    // Any day will do to see whether there is a next time: February 31 never comes.
    if schedule.after(&DateTime::UNIX_EPOCH).next().is_none() {
        return Err("it never comes".to_owned());
    }
    Ok(schedule)
}

/// Which of the fields is wrong: the first that is no schedule by itself either.
fn wrong(fields: &[&str], rewritten: &[String]) -> String {
    let alone = |number: usize| {
        let others = rewritten.iter().enumerate().map(|(at, field)| if at == number { field } else { "*" });
        Schedule::from_str(&others.collect::<Vec<_>>().join(" "))
    };
    let mut named = fields.iter().zip(FIELDS).enumerate();
    let found = named.find(|(number, _)| alone(*number).is_err());
    found.map_or_else(
        || "its fields do not go together".to_owned(),
        |(_, (field, (name, expected)))| format!("{} is no {name}, expected {expected}", shown(field)),
    )
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
            assert!(parse(good).is_ok(), "{good}");
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
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_wrong_field_is_named_in_our_words() {
        for (expression, expected) in [
            ("60 * * * *", "`60` is no minute, expected 0 to 59"),
            ("61 * * * * *", "`61` is no second, expected 0 to 59"),
            ("0 25 * * 1-5", "`25` is no hour, expected 0 to 23"),
            ("0 0 1-x * *", "`1-x` is no day of the month, expected 1 to 31"),
            ("0 0 */0 * *", "`*/0` is no day of the month, expected 1 to 31"),
            ("0 0 * Foo *", "`Foo` is no month, expected 1 to 12 or Jan to Dec"),
            ("0 0 * * 8", "weekday `8`, expected 0 to 7"),
            ("0 0 * * Mon-Xyz", "`Mon-Xyz` is no day of the week, expected 0 to 7 or Sun to Sat"),
            ("@never", "`@never` is none of `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`"),
            ("0 0 31 2 *", "it never comes"),
        ] {
            assert_eq!(parse(expression).unwrap_err(), expected, "{expression}");
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
