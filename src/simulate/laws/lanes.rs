//! L6, and L7 of all together: whether a key or a model that is refused or told to wait is left alone.
//!
//! # Operation
//!
//! A lane is a key, and for L7 a model of it. Who is refused for good may try now and then: a spell of such refusals
//! begins with the first and ends with the next request that is let in, or with the process. Within it no more may be
//! sent than were on their way, some tries, and one more in each [`TRY_EVERY_US`].

use std::collections::BTreeMap;

use super::evidence::Evidence;
use super::payments::ROUNDING_US;
use super::{Findings, Law};
use crate::simulate::{Entry, KeyMark, Outcome};

/// Refusals that stop a lane: asking on can't help.
const REFUSALS: [&str; 3] = ["missing_api_key", "invalid_api_key", "insufficient_quota"];
/// How many requests may be refused so, beside those in flight.
const TRIES: u64 = 5;
/// And how often one more.
const TRY_EVERY_US: u64 = 5_000_000;

/// What was sent with a key for a model.
type Lane<'a> = (Option<KeyMark>, &'a str);

pub(super) fn judge(evidence: &Evidence, findings: &mut Findings) {
    judge_refusals(evidence, findings);
    judge_waits(evidence, findings);
    judge_in_flight(evidence, findings);
}

/// L6.
fn judge_refusals(evidence: &Evidence, findings: &mut Findings) {
    /// Refusals in a row.
    struct Spell {
        began_us: u64,
        /// A start forgets what the provider said before.
        ends_us: u64,
        refused: u64,
    }
    let Some(concurrency) = evidence.concurrency else { return };
    let mut spells: BTreeMap<Option<KeyMark>, Spell> = BTreeMap::new();
    for entry in &evidence.ledger {
        if !matches!(entry.outcome, Outcome::Refused(name) if REFUSALS.contains(&name)) {
            // Whoever asks without a key, or for what costs nothing, says nothing about the key.
            if entry.paid {
                spells.remove(&entry.key);
            }
            continue;
        }
        let ends_us = || evidence.next_stop(entry.at_us).map_or(u64::MAX, |(_, stop)| stop.from_us);
        let fresh = || Spell { began_us: entry.at_us, ends_us: ends_us(), refused: 0 };
        let spell = spells.entry(entry.key).or_insert_with(fresh);
        if spell.ends_us <= entry.at_us {
            *spell = fresh();
        }
        spell.refused += 1;
        let lasts_us = entry.at_us.saturating_sub(spell.began_us);
        let allowed = concurrency + TRIES + lasts_us / TRY_EVERY_US;
        if spell.refused > allowed {
            let text = format!(
                "{} requests were refused for good within {lasts_us} us of {} us, at most {allowed} may be",
                spell.refused, spell.began_us
            );
            findings.broken(Law::L6, text);
            return;
        }
    }
}

/// L7: who was told to wait has waited, whichever requests it was told with.
fn judge_waits(evidence: &Evidence, findings: &mut Findings) {
    let Some(on_its_way) = evidence.on_its_way else { return };
    let on_its_way_us = u64::try_from(on_its_way.as_micros()).unwrap_or(u64::MAX);
    let mut lanes: BTreeMap<Lane<'_>, Vec<&Entry>> = BTreeMap::new();
    for entry in &evidence.ledger {
        if let Some(model) = &entry.model {
            lanes.entry((entry.key, model)).or_default().push(entry);
        }
    }
    for entries in lanes.into_values() {
        let mut waits: Vec<(u64, u64)> = entries.iter().filter_map(|entry| wait(evidence, entry)).collect();
        for (from_us, _) in &mut waits {
            *from_us = from_us.saturating_add(on_its_way_us);
        }
        waits.sort_unstable();
        let (mut waits, mut until_us) = (waits.into_iter().peekable(), 0);
        for entry in entries {
            while let Some((_, end_us)) = waits.next_if(|(from_us, _)| *from_us <= entry.at_us) {
                until_us = until_us.max(end_us);
            }
            if entry.at_us < until_us {
                findings.report.early += 1;
                let early_us = until_us - entry.at_us;
                findings.broken(
                    Law::L7,
                    format!("{} came {early_us} us before its lane was to come back", entry.request_id),
                );
            }
        }
    }
}

/// From when until when a lane was told to stay away. The end of the process ends it: who starts knows nothing of it.
fn wait(evidence: &Evidence, entry: &Entry) -> Option<(u64, u64)> {
    let (wait_ms, left_us) = (entry.retry_after_ms?, entry.left_us?);
    let stopped_us = evidence.next_stop(entry.at_us).map_or(u64::MAX, |(_, stop)| stop.from_us);
    let due_us = left_us.saturating_add(wait_ms.saturating_mul(1_000)).saturating_sub(ROUNDING_US);
    Some((left_us, due_us.min(stopped_us)))
}

/// L7: never more in flight than allowed.
fn judge_in_flight(evidence: &Evidence, findings: &mut Findings) {
    let mut changes = Vec::with_capacity(evidence.ledger.len() * 2);
    for entry in &evidence.ledger {
        let stopped = evidence.next_stop(entry.at_us).map_or(u64::MAX, |(_, stop)| stop.from_us);
        let left = entry.left_us.unwrap_or(u64::MAX);
        // Whose asker hung up unstopped is in the server a moment longer than in flight.
        let hung_up = entry.answer.is_none() && matches!(entry.outcome, Outcome::Ok) && left < stopped;
        let end = left.min(stopped);
        if !hung_up && end > entry.at_us {
            // Who leaves makes room for who comes at the same moment.
            changes.extend([(entry.at_us, 1_i64), (end, -1)]);
        }
    }
    changes.sort_unstable();
    let mut in_flight = 0_i64;
    let mut most = 0;
    for (_, change) in changes {
        in_flight += change;
        most = most.max(in_flight);
    }
    let most = u64::try_from(most).unwrap_or(0);
    findings.report.in_flight_max = most;
    if let Some(concurrency) = evidence.concurrency.filter(|concurrency| most > *concurrency) {
        findings.broken(Law::L7, format!("{most} requests were in flight, {concurrency} may be"));
    }
}
