//! L3, L4, L7 of each request: what the ledger says against the stops of the daemon.
//!
//! # Operation
//!
//! Every payment has a [`Fate`]. Its answer stands in a line; or the server itself spoilt it; or batchd was
//! stopped while it was in flight; or its asker gave up. One that has none of these was paid for and lost. As
//! every request has one line, what was paid beyond that is exactly what was not kept.

use std::collections::{BTreeMap, BTreeSet};

use super::evidence::{Evidence, JobEvidence, Stop, StopKind};
use super::{Findings, Law};
use crate::domain::OnUncertain;
use crate::simulate::{Entry, Fault, Outcome};

/// Times are kept in whole milliseconds.
pub(super) const ROUNDING_US: u64 = 1_000;

/// What became of a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Kept,
    /// The reply was dropped, cut or senseless.
    Spoilt,
    /// Its asker hung up before the reply.
    GivenUp,
    /// In flight at the stop of this number.
    Stopped(usize),
    /// Of a job whose results are not there yet.
    Open,
    Lost,
}

/// All requests with one body, and all that was sent of it.
#[derive(Debug, Default)]
struct Question<'a> {
    asked: Vec<(&'a JobEvidence, &'a str)>,
    sent: Vec<&'a Entry>,
}

pub(super) fn judge(evidence: &Evidence, findings: &mut Findings) {
    let report = &mut findings.report;
    report.sent = evidence.ledger.len() as u64;
    report.paid = evidence.ledger.iter().filter(|entry| entry.paid).count() as u64;
    report.stops = evidence.stops.iter().map(|stop| (*stop, 0)).collect();
    let questions = questions(evidence, findings);
    let kept: BTreeSet<&str> = evidence
        .jobs
        .iter()
        .filter_map(|job| job.results.as_ref())
        .flat_map(|results| results.lines().filter_map(|line| line.request_id.as_deref()))
        .collect();
    for question in questions.values() {
        judge_question(evidence, question, &kept, findings);
        judge_waits(evidence, question, findings);
    }
    judge_admissions(evidence, &questions, findings);
    judge_stops(evidence, findings);
}

fn questions<'a>(evidence: &'a Evidence, findings: &mut Findings) -> BTreeMap<[u8; 32], Question<'a>> {
    let mut questions: BTreeMap<[u8; 32], Question<'a>> = BTreeMap::new();
    let mut all_known = true;
    for job in &evidence.jobs {
        for asked in &job.asked {
            match asked.body {
                Some(body) => {
                    let question = questions.entry(*body.as_bytes()).or_default();
                    question.asked.push((job, &asked.custom_id));
                }
                None => all_known = false,
            }
        }
    }
    for entry in &evidence.ledger {
        let question = entry.fingerprint.and_then(|body| questions.get_mut(body.as_bytes()));
        match question {
            Some(question) => question.sent.push(entry),
            None if entry.paid && all_known && !evidence.jobs.is_empty() => {
                findings.broken(Law::L3, format!("{} was paid for, and nobody asked it", entry.request_id));
            }
            None => {}
        }
    }
    questions
}

/// L3 of one request, and L4.
fn judge_question(
    evidence: &Evidence,
    question: &Question<'_>,
    kept: &BTreeSet<&str>,
    findings: &mut Findings,
) {
    let asked = question.asked.len() as u64;
    let is_open = question.asked.iter().any(|(job, _)| job.results.is_none());
    let label = question.label();
    let mut bought: u64 = 0;
    let mut cut: u64 = 0;
    for (place, entry) in question.sent.iter().enumerate().filter(|(_, entry)| entry.paid) {
        let fate = fate(evidence, entry, kept, is_open);
        if fate != Fate::Spoilt && fate != Fate::GivenUp {
            bought += 1;
        }
        match fate {
            Fate::Spoilt => findings.report.spoilt += 1,
            Fate::GivenUp => findings.report.given_up += 1,
            Fate::Lost => {
                findings.report.lost += 1;
                findings.broken(Law::L4, format!("{label}: the answer {} is in no line", entry.request_id));
            }
            Fate::Stopped(stop) => {
                let was_repeated = question.sent.iter().skip(place + 1).any(|later| later.paid);
                cut +=
                    u64::from(evidence.stops.get(stop).is_some_and(|stop| stop.kind == StopKind::PowerCut));
                if let Some((_, repeats)) = findings.report.stops.get_mut(stop) {
                    *repeats += u64::from(was_repeated);
                }
            }
            Fate::Kept | Fate::Open => {}
        }
    }
    findings.report.payments_max = findings.report.payments_max.max(bought.div_ceil(asked.max(1)));
    let repeats = question.asked.iter().any(|(job, _)| job.on_uncertain == OnUncertain::Retry);
    // A power cut may take the note of a request along with it.
    let most = if repeats { asked * 2 + cut } else { asked + cut };
    if bought > most {
        let text = format!("{label}: paid for {bought} times though no reply was spoilt, at most {most}");
        findings.broken(Law::L3, text);
    }
}

fn fate(evidence: &Evidence, entry: &Entry, kept: &BTreeSet<&str>, is_open: bool) -> Fate {
    if kept.contains(entry.request_id.as_str()) {
        return Fate::Kept;
    }
    if !matches!(entry.outcome, Outcome::Ok | Outcome::Fault(Fault::Slow | Fault::Drip | Fault::Stall)) {
        return Fate::Spoilt;
    }
    let kept_within_us = evidence.kept_within_us();
    let next_stop = evidence.next_stop(entry.at_us);
    let just_before = |stop: &Stop| entry.left_us.is_none_or(|left| left + kept_within_us > stop.from_us);
    match next_stop {
        // A drain waits for what is in flight: what its process has got it has to keep.
        Some((number, stop))
            if just_before(stop) && !(stop.kind == StopKind::Drain && entry.answer.is_some()) =>
        {
            Fate::Stopped(number)
        }
        _ if entry.answer.is_none() && entry.left_us.is_some() => Fate::GivenUp,
        _ if is_open => Fate::Open,
        _ => Fate::Lost,
    }
}

/// L3: what was paid for twice is admitted in the summary.
fn judge_admissions(
    evidence: &Evidence,
    questions: &BTreeMap<[u8; 32], Question<'_>>,
    findings: &mut Findings,
) {
    if evidence.stops.iter().any(|stop| stop.kind == StopKind::PowerCut) {
        return;
    }
    for job in &evidence.jobs {
        let Some(admitted) = job.results.as_ref().and_then(|results| results.maybe_paid_twice) else {
            continue;
        };
        let twice = |question: &&Question<'_>| {
            let is_alone = matches!(question.asked.as_slice(), [(asker, _)] if std::ptr::eq(*asker, job));
            is_alone && question.sent.iter().filter(|entry| entry.paid).count() > 1
        };
        let twice = questions.values().filter(twice).count() as u64;
        if twice > admitted {
            let text =
                format!("{}: {twice} requests were paid for twice, its summary admits {admitted}", job.name);
            findings.broken(Law::L3, text);
        }
    }
}

/// L3 of each stop.
fn judge_stops(evidence: &Evidence, findings: &mut Findings) {
    for (number, (stop, repeats)) in findings.report.stops.clone().into_iter().enumerate() {
        let most = match stop.kind {
            StopKind::Drain => Some(0),
            StopKind::Kill => evidence.concurrency,
            StopKind::PowerCut => evidence.concurrency.map(|slots| slots + evidence.unsynced_max),
        };
        if most.is_some_and(|most| repeats > most) {
            let text = format!(
                "stop {number} ({:?} at {} us) made {repeats} payments repeat, at most {}",
                stop.kind,
                stop.from_us,
                most.unwrap_or_default()
            );
            findings.broken(Law::L3, text);
        }
    }
}

/// L7: who was told to wait has waited.
fn judge_waits(evidence: &Evidence, question: &Question<'_>, findings: &mut Findings) {
    if question.asked.len() != 1 {
        return;
    }
    for pair in question.sent.windows(2) {
        let [told, next] = pair else { continue };
        let (Some(wait_ms), Some(left_us)) = (told.retry_after_ms, told.left_us) else { continue };
        let known_by = left_us + evidence.kept_within_us();
        let is_forgotten = evidence.next_stop(told.at_us).is_some_and(|(_, stop)| stop.from_us < known_by);
        let due = left_us.saturating_add(wait_ms.saturating_mul(1000)).saturating_sub(ROUNDING_US);
        if !is_forgotten && next.at_us < due {
            let text = format!(
                "{}: told to wait {wait_ms} ms, came back {} us early",
                question.label(),
                due - next.at_us
            );
            findings.broken(Law::L7, text);
        }
    }
}

impl Question<'_> {
    fn label(&self) -> String {
        self.asked.first().map_or_else(String::new, |(job, custom_id)| format!("{}/{custom_id}", job.name))
    }
}

impl Evidence {
    pub(super) fn kept_within_us(&self) -> u64 {
        u64::try_from(self.kept_within.as_micros()).unwrap_or(u64::MAX)
    }

    /// The stop that ended the process which sent something at `at_us`.
    pub(super) fn next_stop(&self, at_us: u64) -> Option<(usize, &Stop)> {
        let number = self.stops.partition_point(|stop| stop.to_us <= at_us);
        self.stops.get(number).map(|stop| (number, stop))
    }
}
