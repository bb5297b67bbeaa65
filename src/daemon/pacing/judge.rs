//! Holds what was measured against what was expected.

use std::fmt::Write;
use std::time::Duration;

use super::measure::{Measured, measure};
use super::run::run;
use super::scenario::{Range, Scenario, Slots};

/// What came of a scenario.
#[derive(Debug)]
pub(super) struct Judged {
    measured: Measured,
    /// What was measured, by its name and with its range.
    lines: Vec<(String, f64, Option<Range>)>,
    /// One sentence for each range that it left.
    pub(super) broken: Vec<String>,
}

impl Judged {
    /// What has a range, by its name.
    pub(super) fn ranged(&self) -> impl Iterator<Item = (&str, f64)> {
        self.lines
            .iter()
            .filter(|(_, _, range)| range.is_some())
            .map(|(name, value, _)| (name.as_str(), *value))
    }

    /// All that was measured, for a reader.
    pub(super) fn shown(&self) -> String {
        let mut text = String::new();
        for (name, value, range) in &self.lines {
            let range = range.map_or_else(String::new, |range| format!("   {} to {}", range.0, range.1));
            writeln!(text, "  {name:24} {value:>10.3}{range}").unwrap();
        }
        writeln!(text, "  early {}, lost {}", self.measured.early, self.measured.lost).unwrap();
        for broken in &self.broken {
            writeln!(text, "  BROKEN: {broken}").unwrap();
        }
        text
    }
}

/// Runs it, and whatever it is compared with.
pub(super) fn judge(scenario: &Scenario) -> Judged {
    let measured = measured(scenario);
    let expected = &scenario.expected;
    let mut lines: Vec<(String, f64, Option<Range>)> = [
        ("use_percent", measured.use_percent, expected.use_percent),
        ("refused_percent", measured.refused_percent, expected.refused_percent),
        ("makespan_seconds", measured.makespan_seconds, expected.makespan_seconds),
        ("median_latency_ratio", measured.median_latency_ratio, expected.median_latency_ratio),
        ("p99_latency_ratio", measured.p99_latency_ratio, expected.p99_latency_ratio),
        ("full_rate_seconds", measured.full_rate_seconds, expected.full_rate_seconds),
        ("settled_seconds", measured.settled_seconds, expected.settled_seconds),
        ("followed_seconds", measured.followed_seconds, expected.followed_seconds),
        ("most_in_flight", measured.most_in_flight, expected.most_in_flight),
        ("upstream_ratio", measured.upstream_ratio, expected.upstream_ratio),
    ]
    .into_iter()
    .map(|(name, value, range)| (name.to_owned(), value, range))
    .collect();
    if let Some(ratio) = expected.makespan_ratio {
        let mut other = scenario.clone();
        other.client.concurrency = Slots::Fixed(ratio.concurrency);
        let value = measured.makespan_seconds / self::measured(&other).makespan_seconds;
        lines.push(("makespan_ratio".to_owned(), value, Some(ratio.range)));
    }
    for (number, (plan, makespan)) in scenario.jobs.iter().zip(&measured.jobs).enumerate() {
        lines.push((format!("job {number} makespan_seconds"), *makespan, plan.expected.makespan_seconds));
        if let Some(range) = plan.expected.alone_ratio {
            let mut alone = scenario.clone();
            alone.jobs.swap(0, number);
            alone.jobs.truncate(1);
            alone.jobs[0].at = Duration::ZERO;
            let value = makespan / self::measured(&alone).makespan_seconds;
            lines.push((format!("job {number} alone_ratio"), value, Some(range)));
        }
    }
    let mut broken: Vec<String> = lines
        .iter()
        .filter_map(|(name, value, range)| Some((name, value, range.filter(|range| !range.holds(*value))?)))
        .map(|(name, value, range)| format!("{name} was {value:.3}, expected {} to {}", range.0, range.1))
        .collect();
    if measured.early > 0 {
        broken
            .push(format!("{} requests came before the time they were told, expected none", measured.early));
    }
    if measured.lost > 0 {
        broken.push(format!("{} lines have not exactly one answer, expected none", measured.lost));
    }
    Judged { measured, lines, broken }
}

fn measured(scenario: &Scenario) -> Measured {
    measure(scenario, &run(scenario))
}
