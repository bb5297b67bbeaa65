//! `now` in templates: a moment on the clocks of a zone, and the filter `date`, which writes it.
//!
//! # Format
//!
//! `{{ now }}` is RFC 3339 with the zone's offset, to the second. `{{ now | date('%Y-%m-%d') }}` has a format of
//! strftime; `days=-1` moves it by days of the calendar, which are longer or shorter when clocks are changed. A field
//! of the row that is called `now` goes before it.

use std::fmt::{self, Write};
use std::sync::Arc;

use chrono::format::{Item, StrftimeItems};
use chrono::{DateTime, SecondsFormat, TimeDelta, TimeZone};
use chrono_tz::Tz;
use minijinja::value::{Kwargs, Object, ObjectRepr, ViaDeserialize};
use minijinja::{Environment, Error, ErrorKind, Value};

use crate::reading::problem::shown;

/// A template moves `now` by so many days at most: a century.
const DAYS_MAX: i64 = 36_525;

/// The value of `now`.
#[derive(Debug)]
pub(super) struct Now(pub(super) DateTime<Tz>);

impl Object for Now {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_rfc3339_opts(SecondsFormat::Secs, false))
    }
}

/// Why a template with this filter gives no text for any row: the source of the error.
#[derive(Debug, thiserror::Error)]
#[error("no format of a date")]
pub(super) struct BadFormat;

/// Whether a text would, as a template, insert `now`.
pub(super) fn names_now(text: &str) -> bool {
    text.split("{{").skip(1).any(|inside| {
        let inside = inside.trim_start_matches(['-', '+']).trim_start();
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        inside.strip_prefix("now").is_some_and(|rest| !rest.starts_with(is_name))
    })
}

pub(super) fn add_filter(environment: &mut Environment<'static>) {
    environment.add_filter("date", date);
}

#[expect(clippy::needless_pass_by_value, reason = "minijinja hands options over so")]
fn date(now: &Value, format: &str, options: Kwargs) -> Result<String, Error> {
    if now.is_undefined() {
        return Err(ErrorKind::UndefinedError.into());
    }
    let invalid = |detail: String| Error::new(ErrorKind::InvalidOperation, detail);
    let Some(Now(now)) = now.downcast_object_ref() else {
        return Err(invalid("the filter `date` writes `now` alone, and no field of a row".to_owned()));
    };
    let days = options.get::<Option<ViaDeserialize<i64>>>("days")?.map_or(0, |days| days.0);
    options.assert_all_used()?;
    if !(-DAYS_MAX..=DAYS_MAX).contains(&days) {
        return Err(invalid(format!("`days` is {days}, expected -{DAYS_MAX} to {DAYS_MAX}")));
    }
    let items: Vec<Item<'_>> = StrftimeItems::new(format).collect();
    if items.contains(&Item::Error) {
        let detail = format!("{} is no format of a date", shown(format));
        return Err(invalid(detail).with_source(BadFormat));
    }
    let mut text = String::new();
    write!(text, "{}", moved(now, days).format_with_items(items.iter()))
        .map_err(|_| invalid(format!("{} can't be written", shown(format))))?;
    Ok(text)
}

/// The same time of the day, so many days later. In a gap of the clocks, so many times 24 hours later.
fn moved(now: &DateTime<Tz>, days: i64) -> DateTime<Tz> {
    let days = TimeDelta::days(days);
    let wall = now.naive_local() + days;
    now.timezone().from_local_datetime(&wall).earliest().unwrap_or_else(|| *now + days)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, String> {
        let mut environment = Environment::new();
        add_filter(&mut environment);
        let now = DateTime::parse_from_rfc3339("2026-03-30T00:30:05Z").unwrap();
        let now = Value::from_object(Now(now.with_timezone(&chrono_tz::Europe::Berlin)));
        let row = Value::from_iter([("now", now), ("text", Value::from("x"))]);
        environment.render_str(source, row).map_err(|error| error.detail().unwrap_or_default().to_owned())
    }

    #[test]
    fn it_is_written_on_the_clocks_of_the_zone() {
        for (source, expected) in [
            ("{{ now }}", "2026-03-30T02:30:05+02:00"),
            ("{{ now | date('%Y-%m-%d') }}", "2026-03-30"),
            ("{{ now | date('%a %d. %B, %H:%M %Z') }}", "Mon 30. March, 02:30 CEST"),
            ("{{ now | date('%Y%m%d', days=1) }}", "20260331"),
            ("{{ now | date('%Y-%m', days=-30) }}", "2026-02"),
            // 02:30 was left out on the day before.
            ("{{ now | date('%d %H:%M %z', days=-1) }}", "29 01:30 +0100"),
            ("{{ now | date('%d %H:%M %z', days=-2) }}", "28 02:30 +0100"),
            ("{{ now | date('') }}{{ now | date('%%') }}", "%"),
        ] {
            assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
        }
    }

    #[test]
    fn what_can_not_be_written_is_named() {
        for (source, expected) in [
            ("{{ now | date('%Q') }}", "`%Q` is no format of a date"),
            ("{{ now | date('%Y-%') }}", "`%Y-%` is no format of a date"),
            ("{{ text | date('%Y') }}", "the filter `date` writes `now` alone, and no field of a row"),
            ("{{ now | date('%Y', days=40000) }}", "`days` is 40000, expected -36525 to 36525"),
            (
                "{{ now | date('%Y', days=-9223372036854775808) }}",
                "`days` is -9223372036854775808, expected -36525 to 36525",
            ),
            ("{{ now | date('%Y', hours=1) }}", "unknown keyword argument 'hours'"),
        ] {
            assert_eq!(render(source).unwrap_err(), expected, "{source}");
        }
        for source in [
            "{{ now | date }}",
            "{{ now | date(5) }}",
            "{{ now | date('%Y', days='x') }}",
            "{{ no | date('%Y') }}",
        ] {
            assert!(render(source).is_err(), "{source}");
        }
    }
}
