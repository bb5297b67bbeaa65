//! The times of schedules when clocks are changed: a table of what people meet, and a model for the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use chrono::{DateTime, Datelike, Offset, TimeZone, Timelike, Weekday};
use chrono_tz::Tz;
use proptest::prelude::*;

use super::Calendar;
use crate::domain::Timestamp;

fn at(rfc3339: &str) -> Timestamp {
    let at = DateTime::parse_from_rfc3339(rfc3339)
        // Seconds may be left out.
        .or_else(|_| DateTime::parse_from_str(rfc3339, "%Y-%m-%dT%H:%M%:z"));
    let at = at.unwrap_or_else(|error| panic!("{rfc3339}: {error}"));
    Timestamp::from_millis(at.timestamp_millis().try_into().unwrap())
}

fn calendar(expression: &str, zone: &str) -> Calendar {
    Calendar::parse(expression, zone.parse().unwrap()).unwrap_or_else(|why| panic!("{expression}: {why}"))
}

/// Zone | expression | a time | the times after it. Clocks are put forward: a gap.
const GAPS: &str = "
# A particular time comes at the end of the gap.
Europe/Berlin       | 30 2 * * *         | 2026-03-28T03:00+01:00 | 2026-03-29T03:00+02:00 2026-03-30T02:30+02:00
Europe/Berlin       | 30 2 * * 0         | 2026-03-28T03:00+01:00 | 2026-03-29T03:00+02:00 2026-04-05T02:30+02:00
Europe/Berlin       | 30 2 29 3 *        | 2026-03-28T03:00+01:00 | 2026-03-29T03:00+02:00 2027-03-29T02:30+02:00
America/New_York    | 0 2 * * *          | 2026-03-08T00:00-05:00 | 2026-03-08T03:00-04:00 2026-03-09T02:00-04:00
# Two of them come as one, and as one with the first time behind the gap.
Europe/Berlin       | 0,30 2,3 * * *     | 2026-03-28T23:00+01:00 | 2026-03-29T03:00+02:00 2026-03-29T03:30+02:00 2026-03-30T02:00+02:00
Europe/Berlin       | 0,30 59 2 * * *    | 2026-03-29T01:00+01:00 | 2026-03-29T03:00+02:00 2026-03-30T02:59+02:00
Antarctica/Troll    | 30 1,2 * * *       | 2026-03-29T00:00+00:00 | 2026-03-29T03:00+02:00 2026-03-30T01:30+02:00
# What has a wildcard in its time of day goes by the clock: there is no such time.
Europe/Berlin       | */30 2 * * *       | 2026-03-28T12:00+01:00 | 2026-03-30T02:00+02:00 2026-03-30T02:30+02:00
Europe/Berlin       | 30 * * * *         | 2026-03-29T01:00+01:00 | 2026-03-29T01:30+01:00 2026-03-29T03:30+02:00
Europe/Berlin       | 0 */2 * * *        | 2026-03-29T00:30+01:00 | 2026-03-29T04:00+02:00
Europe/Berlin       | */30 30 2 * * *    | 2026-03-29T00:30+01:00 | 2026-03-30T02:30+02:00 2026-03-30T02:30:30+02:00
# Half an hour.
Australia/Lord_Howe | 15 2 * * *         | 2026-10-03T12:00+10:30 | 2026-10-04T02:30+11:00 2026-10-05T02:15+11:00
Australia/Lord_Howe | */15 * * * *       | 2026-10-04T01:40+10:30 | 2026-10-04T01:45+10:30 2026-10-04T02:30+11:00
# At midnight.
America/Havana      | @daily             | 2026-03-07T12:00-05:00 | 2026-03-08T01:00-04:00 2026-03-09T00:00-04:00
America/Havana      | 0 0,1 * * *        | 2026-03-07T12:00-05:00 | 2026-03-08T01:00-04:00 2026-03-09T00:00-04:00
Africa/Cairo        | 0 0 * * Fri        | 2026-04-23T12:00+02:00 | 2026-04-24T01:00+03:00 2026-05-01T00:00+03:00
Asia/Beirut         | @weekly            | 2026-03-28T12:00+02:00 | 2026-03-29T01:00+03:00 2026-04-05T00:00+03:00
Asia/Beirut         | @hourly            | 2026-03-28T22:30+02:00 | 2026-03-28T23:00+02:00 2026-03-29T01:00+03:00
# Over midnight: the day of the time that is left out counts.
Asia/Pyongyang      | 45 23 4 5 *        | 2018-05-04T12:00+08:30 | 2018-05-05T00:00+09:00 2019-05-04T23:45+09:00
Asia/Pyongyang      | @daily             | 2018-05-04T12:00+08:30 | 2018-05-05T00:00+09:00 2018-05-06T00:00+09:00
# Winter time is the one that is put back.
Europe/Dublin       | 30 1 * * *         | 2026-03-28T12:00+00:00 | 2026-03-29T02:00+01:00 2026-03-30T01:30+01:00
# To a clock that is right to the minute: 44 minutes and 30 seconds are left out.
Africa/Monrovia     | @daily             | 1972-01-06T12:00+00:00 | 1972-01-07T00:44:30+00:00 1972-01-08T00:00+00:00
Africa/Monrovia     | */20 * * * *       | 1972-01-07T00:40+00:00 | 1972-01-07T01:00+00:00
# A day that is left out is no summer time: what was due then does not come.
Pacific/Apia        | 0 2 * * *          | 2011-12-29T12:00-10:00 | 2011-12-31T02:00+14:00 2012-01-01T02:00+14:00
Pacific/Apia        | 0 0 30 12 *        | 2011-12-29T12:00-10:00 | 2012-12-30T00:00+14:00
Pacific/Apia        | @daily             | 2011-12-29T12:00-10:00 | 2011-12-31T00:00+14:00
Pacific/Apia        | @hourly            | 2011-12-29T22:30-10:00 | 2011-12-29T23:00-10:00 2011-12-31T00:00+14:00
Pacific/Kwajalein   | 0 12 * * *         | 1993-08-20T00:00-12:00 | 1993-08-20T12:00-12:00 1993-08-22T12:00+12:00
";

/// Clocks are put back: hours that are repeated.
const REPEATS: &str = "
# A particular time comes once, the first time.
Europe/Berlin       | 30 2 * * *         | 2026-10-24T12:00+02:00 | 2026-10-25T02:30+02:00 2026-10-26T02:30+01:00
Europe/Berlin       | 0-59/30 2 * * *    | 2026-10-25T01:00+02:00 | 2026-10-25T02:00+02:00 2026-10-25T02:30+02:00 2026-10-26T02:00+01:00
Europe/Berlin       | 0 3 * * *          | 2026-10-24T12:00+02:00 | 2026-10-25T03:00+01:00
Europe/Berlin       | 0 2-3 * * *        | 2026-10-25T02:15+01:00 | 2026-10-25T03:00+01:00 2026-10-26T02:00+01:00
Europe/Berlin       | 30 2 * * *         | 2026-10-25T02:29+01:00 | 2026-10-26T02:30+01:00
America/New_York    | 30 1 1 11 *        | 2026-10-01T00:00-04:00 | 2026-11-01T01:30-04:00 2027-11-01T01:30-04:00
# With a wildcard in its time of day it comes both times, in order.
Europe/Berlin       | */30 * * * *       | 2026-10-25T01:59:59+02:00 | 2026-10-25T02:00+02:00 2026-10-25T02:30+02:00 2026-10-25T02:00+01:00 2026-10-25T02:30+01:00 2026-10-25T03:00+01:00
Europe/Berlin       | */40 2 * * *       | 2026-10-24T12:00+02:00 | 2026-10-25T02:00+02:00 2026-10-25T02:40+02:00 2026-10-25T02:00+01:00 2026-10-25T02:40+01:00 2026-10-26T02:00+01:00
Europe/Berlin       | @hourly            | 2026-10-25T02:00+02:00 | 2026-10-25T02:00+01:00 2026-10-25T03:00+01:00
Europe/Berlin       | */30 59 2 * * *    | 2026-10-25T02:00+02:00 | 2026-10-25T02:59+02:00 2026-10-25T02:59:30+02:00 2026-10-25T02:59+01:00 2026-10-25T02:59:30+01:00
Europe/Berlin       | 0,30 59 2 * * *    | 2026-10-25T02:00+02:00 | 2026-10-25T02:59+02:00 2026-10-25T02:59:30+02:00 2026-10-26T02:59+01:00
# Half an hour.
Australia/Lord_Howe | 45 1 * * *         | 2026-04-04T12:00+11:00 | 2026-04-05T01:45+11:00 2026-04-06T01:45+10:30
Australia/Lord_Howe | */15 * * * *       | 2026-04-05T01:40+11:00 | 2026-04-05T01:45+11:00 2026-04-05T01:30+10:30 2026-04-05T01:45+10:30 2026-04-05T02:00+10:30
America/Caracas     | 45 2 * * *         | 2007-12-09T00:00-04:00 | 2007-12-09T02:45-04:00 2007-12-10T02:45-04:30
# Over midnight: the day begins twice.
America/Havana      | @daily             | 2026-10-31T12:00-04:00 | 2026-11-01T00:00-04:00 2026-11-02T00:00-05:00
America/Havana      | @hourly            | 2026-10-31T23:30-04:00 | 2026-11-01T00:00-04:00 2026-11-01T00:00-05:00 2026-11-01T01:00-05:00
Africa/Cairo        | 30 23 29 10 *      | 2026-10-29T12:00+03:00 | 2026-10-29T23:30+03:00 2027-10-29T23:30+02:00
Africa/Cairo        | @hourly            | 2026-10-29T22:30+03:00 | 2026-10-29T23:00+03:00 2026-10-29T23:00+02:00 2026-10-30T00:00+02:00
Asia/Beirut         | @daily             | 2026-10-24T12:00+03:00 | 2026-10-25T00:00+02:00
Europe/Dublin       | 30 1 * * *         | 2026-10-24T12:00+01:00 | 2026-10-25T01:30+01:00 2026-10-26T01:30+00:00
# Without summer time before or after it.
Europe/Moscow       | 30 1 * * *         | 2014-10-25T12:00+04:00 | 2014-10-26T01:30+04:00 2014-10-27T01:30+03:00
Africa/Casablanca   | 30 2 * * *         | 2026-02-14T12:00+01:00 | 2026-02-15T02:30+01:00 2026-02-16T02:30+00:00
";

/// Clocks that run evenly.
const EVEN: &str = "
UTC                 | 0 2 * * 1-5        | 2026-11-20T02:00+00:00 | 2026-11-23T02:00+00:00 2026-11-24T02:00+00:00
Asia/Shanghai       | 0 2 * * *          | 2026-11-22T02:00+08:00 | 2026-11-23T02:00+08:00
Asia/Kathmandu      | 0 0 1 1 *          | 2026-06-01T00:00+05:45 | 2027-01-01T00:00+05:45
Europe/Berlin       | */20 * * * * *     | 2026-11-22T02:00:00.999+01:00 | 2026-11-22T02:00:20+01:00 2026-11-22T02:00:40+01:00
# Once in 28 years.
Europe/Berlin       | 0 0 29 2 */7       | 2026-01-01T00:00+01:00 | 2032-02-29T00:00+01:00 2060-02-29T00:00+01:00 2088-02-29T00:00+01:00
America/Havana      | 0 0 29 2 *         | 2025-06-01T00:00-04:00 | 2028-02-29T00:00-05:00 2032-02-29T00:00-05:00
";

#[test]
fn times_come_as_debian_runs_them_when_clocks_are_changed() {
    let mut wrong = Vec::new();
    for row in [GAPS, REPEATS, EVEN].iter().flat_map(|table| table.lines()) {
        let [zone, expression, from, expected] = row.split(" | ").collect::<Vec<_>>()[..] else {
            assert!(row.is_empty() || row.starts_with("# "), "{row}");
            continue;
        };
        let calendar = calendar(expression, zone.trim());
        let mut now = at(from);
        let mut found = Vec::new();
        for _ in expected.split(' ') {
            now = calendar.after(now).unwrap();
            found.push(calendar.shown(now).replacen(":00+", "+", 1).replacen(":00-", "-", 1));
        }
        if found.join(" ") != expected {
            wrong.push(format!("{row}\n  found {}", found.join(" ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn any_time_is_answered_at_once() {
    let end = Timestamp::from_millis(u64::MAX);
    for expression in ["* * * * * *", "0 0 29 2 *", "0 0 29 2 */7", "@yearly", "*/7 3,4 1-9 */2 Mon"] {
        for zone in ["UTC", "Pacific/Apia", "Pacific/Niue", "Africa/Monrovia"] {
            let calendar = calendar(expression, zone);
            assert!(calendar.after(Timestamp::default()).is_some());
            for millis in [4_102_444_800_000, 253_402_300_799_999, i64::MAX as u64, u64::MAX - 1, u64::MAX] {
                let after = calendar.after(Timestamp::from_millis(millis));
                assert!(after.is_none_or(|after| after.as_millis() > millis));
                assert!(!calendar.shown(Timestamp::from_millis(millis)).is_empty());
            }
            assert_eq!((calendar.after(end), calendar.stamp(end)), (None, String::new()));
        }
    }
}

#[test]
fn stamps_are_those_of_the_wall_clock() {
    let calendar = calendar("@daily", "Asia/Shanghai");
    assert_eq!(calendar.stamp(at("2026-11-21T18:00:00Z")), "20261122T020000");
    assert_eq!(calendar.shown(at("2026-11-21T18:00:00.7Z")), "2026-11-22T02:00:00+08:00");
}

/// Zones of the model, with offsets of whole minutes since 1972.
const ZONES: [&str; 18] = [
    "UTC",
    "Europe/Berlin",
    "Europe/Dublin",
    "Europe/Moscow",
    "America/New_York",
    "America/Havana",
    "America/Sao_Paulo",
    "America/Caracas",
    "America/Scoresbysund",
    "Africa/Cairo",
    "Africa/Casablanca",
    "Asia/Beirut",
    "Asia/Gaza",
    "Asia/Pyongyang",
    "Australia/Lord_Howe",
    "Antarctica/Troll",
    "Pacific/Apia",
    "Pacific/Kwajalein",
];

/// A field as it is written, and the values that it stands for.
#[derive(Clone)]
struct Field {
    text: String,
    values: BTreeSet<u32>,
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn listed(values: BTreeSet<u32>) -> Field {
    Field { text: values.iter().map(u32::to_string).collect::<Vec<_>>().join(","), values }
}

fn field(first: u32, last: u32) -> impl Strategy<Value = Field> {
    let range = (first..=last, first..=last, 1..=4_u32).prop_map(|(a, b, step)| {
        let (a, b) = (a.min(b), a.max(b));
        Field { text: format!("{a}-{b}/{step}"), values: (a..=b).step_by(step as usize).collect() }
    });
    let steps = (1..=20_u32).prop_map(move |step| Field {
        text: format!("*/{step}"),
        values: (first..=last).step_by(step as usize).collect(),
    });
    let list = prop::collection::btree_set(first..=last, 1..4).prop_map(listed);
    let all = Just(Field { text: "*".to_owned(), values: (first..=last).collect() });
    prop_oneof![2 => all, 1 => steps, 1 => range, 3 => list]
}

/// Days are mostly all: few times would be left otherwise.
fn days(first: u32, last: u32) -> impl Strategy<Value = Field> {
    let all = Just(Field { text: "*".to_owned(), values: (first..=last).collect() });
    prop_oneof![5 => all, 1 => field(first, last)]
}

/// Second, minute, hour, day, month, weekday.
fn fields(with_seconds: bool) -> impl Strategy<Value = [Field; 6]> {
    let zero = Just(Field { text: "0".to_owned(), values: [0].into() });
    let second = if with_seconds { field(0, 59).boxed() } else { zero.boxed() };
    // Hours in which clocks are changed.
    let early = prop::collection::btree_set(0..=4_u32, 1..4);
    let hour = prop_oneof![field(0, 23), early.prop_map(listed)];
    (second, field(0, 59), hour, days(1, 31), days(1, 12), days(0, 6))
        .prop_map(|(second, minute, hour, day, month, weekday)| [second, minute, hour, day, month, weekday])
}

fn is_star(field: &Field) -> bool {
    field.text.starts_with('*')
}

/// Whether a wall clock that shows `wall` shows a time of the fields.
fn matches([second, minute, hour, day, month, weekday]: &[Field; 6], wall: i64) -> bool {
    let wall = DateTime::from_timestamp(wall, 0).unwrap();
    let on = [
        day.values.contains(&wall.day()),
        weekday.values.contains(&(wall.weekday().days_since(Weekday::Sun))),
    ];
    let on = if is_star(day) || is_star(weekday) { on == [true, true] } else { on != [false, false] };
    let at = second.values.contains(&wall.second()) && minute.values.contains(&wall.minute());
    on && at && hour.values.contains(&wall.hour()) && month.values.contains(&wall.month())
}

fn wall(zone: Tz, at: i64) -> i64 {
    at + i64::from(zone.timestamp_opt(at, 0).unwrap().offset().fix().local_minus_utc())
}

/// The times from `from` on up to `to`, found by looking at the wall clock at each of them.
fn model(fields: &[Field; 6], zone: Tz, from: i64, to: i64, step: i64) -> Vec<i64> {
    let wild = fields.iter().take(3).any(is_star);
    let mut shown: BTreeMap<i64, i64> = BTreeMap::new();
    let mut times = BTreeSet::new();
    let mut before = wall(zone, from - 3 * 3600 - step);
    let mut now = from - 3 * 3600;
    while now <= to {
        let on_the_wall = wall(zone, now);
        let change = on_the_wall - before - step;
        if change.abs() >= 3 * 3600 {
            shown.clear();
        } else if !wild {
            let mut left_out = before + step;
            while left_out < on_the_wall {
                if matches(fields, left_out) && !shown.contains_key(&left_out) {
                    times.insert(now);
                }
                left_out += step;
            }
        }
        if matches(fields, on_the_wall) && (wild || !shown.contains_key(&on_the_wall)) {
            times.insert(now);
        }
        shown.entry(on_the_wall).or_insert(now);
        before = on_the_wall;
        now += step;
    }
    times.into_iter().filter(|time| *time > from).collect()
}

/// The next time after `at` that the clocks of a zone are changed, or `at`.
fn next_change(zone: Tz, at: i64) -> i64 {
    let offset = |at: i64| wall(zone, at) - at;
    let Some(week) =
        (0..60).map(|week| at + week * 7 * 86400).find(|end| offset(end + 7 * 86400) != offset(at))
    else {
        return at;
    };
    let hour = (week..).step_by(3600).find(|now| offset(now + 3600) != offset(at)).unwrap();
    (hour..).step_by(60).find(|now| offset(*now) != offset(at)).unwrap()
}

fn check(fields: &[Field; 6], zone: &str, from: i64, hours: i64, step: i64) -> Result<(), TestCaseError> {
    let texts: Vec<&str> = fields.iter().map(|field| field.text.as_str()).collect();
    let zone: Tz = zone.parse().unwrap();
    let Ok(calendar) = Calendar::parse(&texts.join(" "), zone) else { return Ok(()) };
    let expected = model(fields, zone, from, from + hours * 3600, step);
    let mut now = from;
    let mut found = Vec::new();
    while let Some(next) = calendar.after(Timestamp::from_millis(u64::try_from(now).unwrap() * 1000)) {
        prop_assert_eq!(next.as_millis() % 1000, 0);
        let next = i64::try_from(next.as_secs()).unwrap();
        prop_assert!(next > now, "{} after {}", next, now);
        if next > from + hours * 3600 {
            break;
        }
        found.push(next);
        now = next;
    }
    let end = [i64::MAX];
    let mut pairs = found.iter().chain(&end).zip(expected.iter().chain(&end));
    if let Some((found, expected)) = pairs.find(|(found, expected)| found != expected) {
        let message = format!("`{}` in {zone}: found {found}, expected {expected}", calendar.text());
        return Err(TestCaseError::fail(message));
    }
    Ok(())
}

// Thousands of cases were tried; so many are enough to find a fault again.
proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn times_are_those_that_the_wall_clock_shows(
        fields in fields(false),
        zone in prop::sample::select(&ZONES[..]),
        year in 1972..2099_i64,
        hour in 0..8000_i64,
        before in 0..30 * 60_i64,
    ) {
        let change = next_change(zone.parse().unwrap(), (year - 1970) * 31_556_952 / 60 * 60 + hour * 3600);
        check(&fields, zone, change / 60 * 60 - before * 60, 36, 60)?;
    }

    #[test]
    fn seconds_are_those_that_the_wall_clock_shows(
        fields in fields(true),
        zone in prop::sample::select(&ZONES[..]),
        year in 1972..2099_i64,
        before in 0..7200_i64,
    ) {
        let change = next_change(zone.parse().unwrap(), (year - 1970) * 31_556_952 / 60 * 60);
        check(&fields, zone, change - before, 1, 1)?;
    }

    #[test]
    fn each_time_is_after_the_one_before(
        fields in fields(true),
        zone in prop::sample::select(chrono_tz::TZ_VARIANTS.to_vec()),
        millis in prop_oneof![0..4_200_000_000_000_u64, any::<u64>()],
    ) {
        let texts: Vec<&str> = fields.iter().map(|field| field.text.as_str()).collect();
        if let Ok(calendar) = Calendar::parse(&texts.join(" "), zone) {
            let mut now = Timestamp::from_millis(millis);
            for _ in 0..20 {
                let Some(next) = calendar.after(now) else { break };
                prop_assert!(next > now);
                // A time from which on nothing has come yet leads to the same one.
                let between = Timestamp::from_millis(now.as_millis().midpoint(next.as_millis()));
                prop_assert!(between == next || calendar.after(between) == Some(next));
                now = next;
            }
        }
    }
}
