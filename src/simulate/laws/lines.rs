//! L1, L2, L5, L9: what stands in the results, and whether it is what was asked and answered.

use std::collections::{BTreeMap, BTreeSet};

use super::evidence::{Asked, Evidence, JobEvidence, Line, Results};
use super::{Findings, Law};
use crate::domain::Order;
use crate::simulate::{Entry, Fault, Outcome};

pub(super) fn judge(evidence: &Evidence, findings: &mut Findings) {
    let replies: BTreeMap<&str, &Entry> =
        evidence.ledger.iter().map(|entry| (entry.request_id.as_str(), entry)).collect();
    let mut told = BTreeSet::new();
    for job in &evidence.jobs {
        findings.report.jobs += 1;
        findings.report.requests += job.asked.len() as u64;
        let Some(results) = &job.results else {
            if !job.is_running {
                findings.report.lost += job.asked.len() as u64;
                let text = format!("{}: {} requests, and no results", job.name, job.asked.len());
                findings.broken(Law::L1, text);
            }
            continue;
        };
        judge_count(job, results, findings);
        judge_order(job, results, findings);
        if !evidence.ledger.is_empty() {
            judge_content(job, results, &replies, &mut told, findings);
        }
    }
}

/// L1 and L2.
fn judge_count(job: &JobEvidence, results: &Results, findings: &mut Findings) {
    let mut counts: BTreeMap<&str, u64> =
        job.asked.iter().map(|asked| (asked.custom_id.as_str(), 0)).collect();
    let mut ids = BTreeSet::new();
    for line in results.lines() {
        findings.report.lines += 1;
        findings.report.uncertain += u64::from(line.error.as_deref() == Some("uncertain"));
        match counts.get_mut(line.custom_id.as_str()) {
            Some(count) => *count += 1,
            None => findings.broken(Law::L2, format!("{}: nobody asked `{}`", job.name, line.custom_id)),
        }
        if !ids.insert(line.id.as_str()) {
            findings.broken(Law::L2, format!("{}: the id `{}` stands twice", job.name, line.id));
        }
    }
    for (custom_id, count) in counts {
        if count == 0 {
            findings.report.lost += 1;
            findings.broken(Law::L1, format!("{}: `{custom_id}` has no line", job.name));
        } else if count > 1 {
            findings.report.duplicates += count - 1;
            findings.broken(Law::L2, format!("{}: `{custom_id}` has {count} lines", job.name));
        }
    }
}

/// L9.
fn judge_order(job: &JobEvidence, results: &Results, findings: &mut Findings) {
    let places: BTreeMap<&str, usize> =
        job.asked.iter().map(|asked| asked.custom_id.as_str()).zip(0..).collect();
    let files = [("output.jsonl", &results.output), ("errors.jsonl", &results.errors)];
    for (name, lines) in files {
        if name == "output.jsonl" && job.order != Order::Input {
            continue;
        }
        let found: Vec<_> = lines.iter().filter_map(|line| places.get(line.custom_id.as_str())).collect();
        if !found.is_sorted() {
            findings.broken(Law::L9, format!("{}: {name} is not in the order of the input", job.name));
        }
    }
}

/// L5.
fn judge_content<'a>(
    job: &JobEvidence,
    results: &'a Results,
    replies: &BTreeMap<&str, &Entry>,
    told: &mut BTreeSet<&'a str>,
    findings: &mut Findings,
) {
    let asked: BTreeMap<&str, &Asked> =
        job.asked.iter().map(|asked| (asked.custom_id.as_str(), asked)).collect();
    let successes = results.output.iter().map(|line| (line, true));
    let failures = results.errors.iter().map(|line| (line, false));
    for (line, is_success) in successes.chain(failures) {
        let problem = match &line.request_id {
            None if is_success => Some("counts as a success without an answer".to_owned()),
            None => None,
            Some(request_id) if !told.insert(request_id) => {
                Some(format!("holds {request_id} as another line does"))
            }
            Some(request_id) => match replies.get(request_id.as_str()) {
                None => Some(format!("holds {request_id}, which the server never sent")),
                Some(entry) => differs(line, asked.get(line.custom_id.as_str()).copied(), entry, is_success),
            },
        };
        if let Some(problem) = problem {
            findings.broken(Law::L5, format!("{}: the line of `{}` {problem}", job.name, line.custom_id));
        }
    }
}

/// Why the line is not that reply to that question.
fn differs(line: &Line, asked: Option<&Asked>, entry: &Entry, is_success: bool) -> Option<String> {
    let request_id = &entry.request_id;
    let body = asked.and_then(|asked| asked.body);
    if body.is_some() && body != entry.fingerprint {
        return Some(format!("holds {request_id}, the answer to another question"));
    }
    if entry.answer.is_none() {
        return Some(format!("holds {request_id}, which was not sent whole"));
    }
    if line.answer != entry.answer {
        return Some(format!("holds {request_id} with another body than was sent"));
    }
    let answered =
        matches!(entry.outcome, Outcome::Ok | Outcome::Fault(Fault::Slow | Fault::Drip | Fault::Stall));
    (answered != is_success).then(|| format!("holds {request_id}, whose outcome was {}", entry.outcome))
}

impl Results {
    /// Of both files.
    pub(super) fn lines(&self) -> impl Iterator<Item = &Line> {
        self.output.iter().chain(&self.errors)
    }
}
