//! The laws that hold whatever dies: a checker for every test that kills, cuts or starves batchd.
//!
//! A test gathers [`Evidence`]: what was accepted, what lies in the results folders, what the stand-in server's
//! ledger says, when batchd was stopped and how. [`check`] answers with the figures, or with every law that was
//! broken and by what. It is pure: who reads files and clocks is the test.
//!
//! | law | what it says |
//! |---|---|
//! | L1 | every accepted request has a line |
//! | L2 | and only one; a published file never changes |
//! | L3 | what a crash repeats was in flight, nothing is paid for more than twice by crashes, a drain repeats nothing |
//! | L4 | an answer that was sent whole, and not just before a stop, is the one that is kept |
//! | L5 | a line is what the server answered to that request, byte for byte, white space around it aside |
//! | L6 | after the first refusal of key or quota only a few more requests are sent |
//! | L7 | nobody comes back sooner than told, neither the request nor others of its key and model, nor are more in flight than allowed |
//! | L8 | every dropped file ends in exactly one place |
//! | L9 | lines stand in the order of the input |
//! | L10 | nothing leaks: no secret, no memory, no descriptor |
//! | L11 | an index that was built anew is the index that was |
//!
//! # What it does not do
//!
//! It does not judge how late a request comes back, which depends on the machine. A part of the evidence that is
//! absent is not judged: tests look at the [`Report`] to see that there was something to judge.

mod evidence;
mod lanes;
mod lines;
mod payments;
mod report;

use std::fmt;

pub use evidence::{
    Asked, DroppedFile, Evidence, FileEnd, Growth, JobEvidence, Leak, Line, Rebuilt, Results, SeenFile, Stop,
    StopKind,
};
pub use report::Report;

/// See the module's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Law {
    L1,
    L2,
    L3,
    L4,
    L5,
    L6,
    L7,
    L8,
    L9,
    L10,
    L11,
}

/// A law that was broken, and by what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub law: Law,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.law, self.what)
    }
}

/// What the judges find.
#[derive(Debug, Default)]
struct Findings {
    violations: Vec<Violation>,
    report: Report,
}

impl Findings {
    fn broken(&mut self, law: Law, what: String) {
        self.violations.push(Violation { law, what });
    }
}

/// Judges the evidence by all laws.
pub fn check(evidence: &Evidence) -> Result<Report, Vec<Violation>> {
    let mut findings = Findings::default();
    lines::judge(evidence, &mut findings);
    payments::judge(evidence, &mut findings);
    lanes::judge(evidence, &mut findings);
    judge_surroundings(evidence, &mut findings);
    if findings.violations.is_empty() { Ok(findings.report) } else { Err(findings.violations) }
}

/// L2 for files, L8, L10, L11: what needs no ledger.
fn judge_surroundings(evidence: &Evidence, findings: &mut Findings) {
    for SeenFile { path, first, last } in &evidence.published {
        if *last != Some(*first) {
            let became = if last.is_some() { "has changed" } else { "is gone" };
            findings.broken(Law::L2, format!("the published file {path} {became}"));
        }
    }
    findings.report.files = evidence.dropped.len() as u64;
    for DroppedFile { name, ends } in &evidence.dropped {
        if ends.len() != 1 {
            findings.broken(Law::L8, format!("`{name}` ended in {} places: {ends:?}", ends.len()));
        }
    }
    for Leak { secret, place } in &evidence.leaks {
        findings.broken(Law::L10, format!("{secret} stands in {place}"));
    }
    for Growth { what, before, after, allowed } in &evidence.growths {
        if after.saturating_sub(*before) > *allowed {
            let text = format!("{what} grew from {before} to {after}, by more than {allowed}");
            findings.broken(Law::L10, text);
        }
    }
    findings.report.rebuilt = evidence.rebuilt.len() as u64;
    for Rebuilt { what, live, rebuilt } in &evidence.rebuilt {
        if live != rebuilt {
            findings.broken(Law::L11, format!("the index of {what} was {live}, and built anew is {rebuilt}"));
        }
    }
}

#[cfg(test)]
mod tests;
