//! What a run shows, by the server's ledger.

use std::collections::BTreeMap;

use super::run::{Ran, custom_id};
use super::scenario::Scenario;
use crate::simulate::{Change, Entry, Outcome};

/// How much less or more than what is allowed counts as right, beside noise.
const TOLERANCE: f64 = 0.1;
/// More refusals than this are not right.
const REFUSED: f64 = 0.05;
/// A window is so many latencies wide, and at least a second.
const WINDOW_LATENCIES: f64 = 5.0;
/// A limit is followed where it is kept to and used for so many seconds.
const FOLLOWED_WITHIN: f64 = 10.0;

/// Times in seconds, shares in percent.
#[derive(Debug)]
pub(super) struct Measured {
    /// Of what server and configuration allowed while there was something to send; what a burst allows is beyond it.
    pub(super) use_percent: f64,
    /// Of all requests, those that were refused for a limit.
    pub(super) refused_percent: f64,
    /// From the start to the last answer.
    pub(super) makespan_seconds: f64,
    /// In the server, beside that of an empty one at the start.
    pub(super) median_latency_ratio: f64,
    pub(super) p99_latency_ratio: f64,
    /// From the start until 90 % of what is allowed are answered.
    pub(super) full_rate_seconds: f64,
    /// The longest time from the start, or a change, until rate, refusals and latency are right, and stay so.
    pub(super) settled_seconds: f64,
    /// Until the first stretch in which the server is used as its limit allows and refuses little; the longest after
    /// any change.
    pub(super) followed_seconds: f64,
    pub(super) most_in_flight: f64,
    /// Requests beside lines.
    pub(super) upstream_ratio: f64,
    /// Requests before the time that they were told to stay away.
    pub(super) early: usize,
    /// Lines without exactly one paid answer among the completed.
    pub(super) lost: usize,
    /// From its being dropped to its last answer, in the order of the scenario.
    pub(super) jobs: Vec<f64>,
}

/// What the server, within the configuration, allows from a moment on.
#[derive(Clone, Copy, Debug)]
struct Allowed {
    from: f64,
    /// Requests in a second; infinite without a bound.
    rate: f64,
    latency: f64,
}

pub(super) fn measure(scenario: &Scenario, ran: &Ran) -> Measured {
    let allowed = allowed(scenario, ran);
    let mut answered: Vec<(f64, f64)> =
        ran.entries.iter().filter(|entry| is_answered(entry)).map(|entry| (at(entry), left(entry))).collect();
    answered.sort_by(|a, b| a.1.total_cmp(&b.1));
    let end = answered.last().map_or(0.0, |(_, left)| *left);
    let last_admitted = answered.iter().map(|(at, _)| *at).fold(0.0, f64::max);
    let until = if scenario.server.capacity.is_some() { end } else { last_admitted };
    let latencies = sorted(answered.iter().map(|(at, left)| left - at));
    let unloaded = allowed[0].latency;
    let refused: Vec<f64> = ran.entries.iter().filter(|entry| is_refused(entry)).map(at).collect();
    let lines: u32 = scenario.jobs.iter().map(|job| job.lines).sum();
    let flow = Flow { allowed: &allowed, answered: &answered, refused: &refused, end: last_admitted };
    Measured {
        use_percent: 100.0 * answered.len() as f64 / integral(&allowed, until),
        refused_percent: 100.0 * refused.len() as f64 / ran.entries.len() as f64,
        makespan_seconds: end,
        median_latency_ratio: quantile(&latencies, 0.5) / unloaded,
        p99_latency_ratio: quantile(&latencies, 0.99) / unloaded,
        full_rate_seconds: flow.full_rate(),
        settled_seconds: flow.settled(),
        followed_seconds: flow.followed(),
        most_in_flight: ran.most_in_flight as f64,
        upstream_ratio: ran.entries.len() as f64 / f64::from(lines),
        early: early(&ran.entries),
        lost: lost(scenario, ran),
        jobs: jobs(scenario, ran),
    }
}

/// By the settings of the server from change to change.
fn allowed(scenario: &Scenario, ran: &Ran) -> Vec<Allowed> {
    let mut now = scenario.settings();
    let cost = tokens_each(scenario);
    let per_minute = |limit: Option<f64>| limit.map_or(f64::INFINITY, |limit| limit / 60.0);
    let client = &scenario.client;
    let of_client = per_minute(client.requests_per_minute.map(f64::from))
        .min(per_minute(client.tokens_per_minute.map(|tokens| tokens as f64 / cost)));
    let mut all = Vec::new();
    let mut changes = scenario.changes.iter();
    let mut from = 0.0;
    loop {
        let latency = now.latency.mean().as_secs_f64();
        let rate = per_minute(now.requests_per_minute.map(f64::from))
            .min(per_minute(now.tokens_per_minute.map(|tokens| tokens as f64 / cost)))
            .min(now.capacity.map_or(f64::INFINITY, |slots| f64::from(slots) / latency))
            .min(of_client);
        all.push(Allowed { from, rate, latency });
        let Some(change) = changes.next() else { break };
        from = change.at.as_secs_f64();
        now.latency = change.server.latency.unwrap_or(now.latency);
        apply(change.server.capacity, &mut now.capacity);
        apply(change.server.requests_per_minute, &mut now.requests_per_minute);
        apply(change.server.tokens_per_minute, &mut now.tokens_per_minute);
    }
    let end = ran.entries.last().map_or(0.0, at);
    all.retain(|allowed| allowed.from <= end);
    all
}

fn apply<T>(change: Change<T>, setting: &mut Option<T>) {
    match change {
        Change::Keep => {}
        Change::Clear => *setting = None,
        Change::Set(value) => *setting = Some(value),
    }
}

/// What the server counts a request as, on the average.
fn tokens_each(scenario: &Scenario) -> f64 {
    let (lines, tokens) = scenario.jobs.iter().fold((0.0, 0.0), |(lines, tokens), job| {
        let prompt = f64::from(job.prompt_bytes[0] + job.prompt_bytes[1]) / 2.0 / 4.0;
        let each = prompt + 0.5 + f64::from(job.max_tokens.unwrap_or(0));
        (lines + f64::from(job.lines), tokens + f64::from(job.lines) * each)
    });
    tokens / lines
}

/// How many requests are allowed from the start until then.
fn integral(allowed: &[Allowed], until: f64) -> f64 {
    let ends = allowed.iter().skip(1).map(|next| next.from).chain([f64::INFINITY]);
    allowed.iter().zip(ends).map(|(now, end)| now.rate * (end.min(until) - now.from).max(0.0)).sum()
}

/// A run as it went by.
struct Flow<'a> {
    allowed: &'a [Allowed],
    /// Arrival and end, by end.
    answered: &'a [(f64, f64)],
    refused: &'a [f64],
    /// Of what was sent.
    end: f64,
}

impl Flow<'_> {
    fn full_rate(&self) -> f64 {
        let Some(first) = self.allowed.first() else { return f64::INFINITY };
        let (wide, mut from) = (width(first.latency), 0.0);
        while from + wide <= self.end {
            if self.count(from, from + wide) >= 0.9 * first.rate * wide {
                return from;
            }
            from += wide / 10.0;
        }
        f64::INFINITY
    }

    fn settled(&self) -> f64 {
        let ends = self.allowed.iter().skip(1).map(|next| next.from).chain([self.end]);
        self.allowed.iter().zip(ends).map(|(now, end)| self.settled_within(*now, end)).fold(0.0, f64::max)
    }

    fn followed(&self) -> f64 {
        let after = |now: &Allowed| {
            let mut from = now.from;
            while from + FOLLOWED_WITHIN <= self.end {
                let share = self.count(from, from + FOLLOWED_WITHIN) / (now.rate * FOLLOWED_WITHIN);
                let refused =
                    self.refused.iter().filter(|at| (from..from + FOLLOWED_WITHIN).contains(*at)).count();
                if (0.9..=1.1).contains(&share) && refused as f64 <= REFUSED * now.rate * FOLLOWED_WITHIN {
                    return from - now.from;
                }
                from += 1.0;
            }
            f64::INFINITY
        };
        self.allowed.iter().map(after).fold(0.0, f64::max)
    }

    fn settled_within(&self, now: Allowed, end: f64) -> f64 {
        let (wide, mut from, mut since) = (width(now.latency), now.from, now.from);
        while from + wide <= end {
            let next = from + wide / 4.0;
            if !self.is_right(now, from, from + wide) {
                since = next;
            }
            from = next;
        }
        since - now.from
    }

    fn is_right(&self, now: Allowed, from: f64, to: f64) -> bool {
        let served = self.count(from, to);
        let due = now.rate * (to - from);
        // Random arrivals spread by their root.
        let slack = TOLERANCE * due + due.sqrt().min(0.1 * due);
        let refused = self.refused.iter().filter(|at| (from..to).contains(*at)).count() as f64;
        let within = self.answered.iter().filter(|(_, left)| (from..to).contains(left));
        let latency = quantile(&sorted(within.map(|(at, left)| left - at)), 0.5);
        (served - due).abs() <= slack && refused <= REFUSED * due && latency <= 1.5 * now.latency
    }

    fn count(&self, from: f64, to: f64) -> f64 {
        self.answered.iter().filter(|(_, left)| (from..to).contains(left)).count() as f64
    }
}

fn width(latency: f64) -> f64 {
    (WINDOW_LATENCIES * latency).max(1.0)
}

fn is_answered(entry: &Entry) -> bool {
    entry.outcome == Outcome::Ok
}

/// For a limit, and not by chance.
fn is_refused(entry: &Entry) -> bool {
    matches!(entry.outcome, Outcome::Refused(_))
}

fn at(entry: &Entry) -> f64 {
    entry.at_us as f64 / 1e6
}

fn left(entry: &Entry) -> f64 {
    entry.left_us.unwrap_or(entry.at_us) as f64 / 1e6
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = (share * sorted.len() as f64) as usize;
    sorted.get(place.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

fn early(entries: &[Entry]) -> usize {
    let mut until: BTreeMap<&str, u64> = BTreeMap::new();
    let mut early = 0;
    for entry in entries {
        let Some(id) = entry.custom_id.as_deref() else { continue };
        early += usize::from(until.get(id).is_some_and(|until| entry.at_us < *until));
        if let Some(wait) = entry.retry_after_ms {
            until.insert(id, entry.at_us + wait * 1_000);
        }
    }
    early
}

fn lost(scenario: &Scenario, ran: &Ran) -> usize {
    let mut paid: BTreeMap<&str, u32> = BTreeMap::new();
    for entry in ran.entries.iter().filter(|entry| is_answered(entry)) {
        *paid.entry(entry.custom_id.as_deref().unwrap_or_default()).or_default() += 1;
    }
    let ids = scenario
        .jobs
        .iter()
        .enumerate()
        .flat_map(|(job, plan)| (0..plan.lines).map(move |line| custom_id(job, line)));
    let unpaid = ids.filter(|id| paid.get(id.as_str()) != Some(&1)).count();
    let failed: u32 = ran.states.iter().map(|state| state.counts.total - state.counts.completed).sum();
    unpaid + failed as usize
}

fn jobs(scenario: &Scenario, ran: &Ran) -> Vec<f64> {
    let jobs = scenario.jobs.iter().enumerate();
    jobs.map(|(number, plan)| {
        let prefix = format!("{number}/");
        let ours = ran.entries.iter().filter(|entry| {
            is_answered(entry) && entry.custom_id.as_ref().is_some_and(|id| id.starts_with(&prefix))
        });
        ours.map(left).fold(0.0, f64::max) - plan.at.as_secs_f64()
    })
    .collect()
}
