//! One round of the loop: what of a scan is tried now, what must wait, and for how long.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::time::Duration;

use super::Error;
use super::scan::{Candidate, Remark, Scan, Why};
use crate::domain::Timestamp;

/// Specs taken in between two looks: at 5 to 10 ms each (nine syncs), a few seconds of work.
const BATCH_MAX: usize = 1000;

/// What one round came to.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) pending: usize,
    pub(super) blocked: usize,
    pub(super) trouble: Option<Error>,
    /// Until the next look.
    pub(super) wait: Duration,
    /// Specs of which nobody knows yet what they are.
    unjudged: BTreeSet<OsString>,
    /// There are more of them than a look takes in.
    is_beyond: bool,
}

impl Round {
    pub(super) const fn new(wait: Duration) -> Self {
        Self { pending: 0, blocked: 0, trouble: None, wait, unjudged: BTreeSet::new(), is_beyond: false }
    }

    /// Notes what is to be judged, now or in rounds to come.
    pub(super) fn begin(&mut self, scan: &Scan) {
        let ready = scan.ready.iter().map(|candidate| candidate.name.clone());
        self.unjudged = ready.chain(scan.settling.iter().cloned()).collect();
        self.is_beyond = scan.beyond > 0;
    }

    pub(super) fn judged(&mut self, name: &OsStr) {
        self.unjudged.remove(name);
    }

    pub(super) fn is_unjudged(&self, name: &OsStr) -> bool {
        self.unjudged.contains(name)
    }

    /// Whether specs other than `name` are to be judged yet. Those that are `deferred` wait for others themselves:
    /// were they counted, two of them would wait for each other for ever.
    pub(super) fn may_bring_more(&self, name: &OsStr, deferred: &BTreeMap<OsString, u64>) -> bool {
        self.is_beyond || self.unjudged.iter().any(|other| other != name && !deferred.contains_key(other))
    }

    pub(super) fn sooner(&mut self, wait: Option<Duration>) {
        self.wait = wait.map_or(self.wait, |wait| wait.min(self.wait));
    }

    /// Something of a job that is accepted could not be removed.
    pub(super) fn left(&mut self, error: Option<Error>, retry: Duration) {
        if let Some(error) = error {
            self.blocked += 1;
            self.trouble(error, retry);
        }
    }

    /// Of many troubles the first is told.
    pub(super) fn trouble(&mut self, error: Error, retry: Duration) {
        self.trouble.get_or_insert(error);
        self.sooner(Some(retry));
    }
}

/// What the log was told about names in the jobs folder. Those that are gone are forgotten.
#[derive(Debug, Default)]
pub(super) struct Told(BTreeMap<OsString, Why>);

impl Told {
    /// What of a scan's remarks was not told before.
    pub(super) fn news(&mut self, remarks: Vec<Remark>) -> Vec<Remark> {
        let before = std::mem::take(&mut self.0);
        self.0.extend(remarks.iter().map(|remark| (remark.name.clone(), remark.why.clone())));
        let is_new = |remark: &Remark| before.get(&remark.name) != Some(&remark.why);
        remarks.into_iter().filter(is_new).collect()
    }
}

/// Names that failed because of us, and when each is tried again. Those that are gone are forgotten.
#[derive(Debug, Default)]
pub(super) struct Failures(BTreeMap<OsString, Timestamp>);

impl Failures {
    pub(super) fn add(&mut self, name: OsString, due: Timestamp) {
        self.0.insert(name, due);
    }

    /// What of a scan is to be tried now. What failed is blocked until it is tried again: to put it back made
    /// it look new, but it is not.
    pub(super) fn sift(&mut self, scan: Scan, round: &mut Round, now: Timestamp) -> Vec<Candidate> {
        let mut kept = BTreeMap::new();
        for name in scan.settling {
            match self.0.remove_entry(&name) {
                Some((name, due)) => {
                    kept.insert(name, due);
                }
                None => round.pending += 1,
            }
        }
        let mut ready = Vec::new();
        for candidate in scan.ready {
            match self.0.remove(&candidate.name) {
                Some(due) if due > now => {
                    round.sooner(Some(due.since(now)));
                    kept.insert(candidate.name, due);
                }
                _ => ready.push(candidate),
            }
        }
        self.0 = kept;
        round.blocked += self.0.len();
        round.pending += scan.beyond;
        round.sooner(scan.next);
        if ready.len() > BATCH_MAX {
            round.pending += ready.len() - BATCH_MAX;
            round.sooner(Some(Duration::ZERO));
            ready.truncate(BATCH_MAX);
        }
        ready
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;
    use crate::intake::dir::Stamp;
    use crate::intake::scan::Find;

    fn candidate(name: &str) -> Candidate {
        let stamp = Stamp { device: 0, inode: 0, size: 0, modified_ns: 0, changed_ns: 0 };
        Candidate { name: name.into(), find: Find::Unfit(""), stamp }
    }

    fn scan(ready: &[&str], settling: &[&str]) -> Scan {
        Scan {
            ready: ready.iter().map(|name| candidate(name)).collect(),
            settling: settling.iter().map(OsString::from).collect(),
            ..Scan::default()
        }
    }

    #[test]
    fn what_failed_waits_for_its_time_and_holds_nothing_else_up() {
        let at = Timestamp::from_millis;
        let mut failures = Failures::default();
        failures.add("bad".into(), at(5000));
        let mut sift = |scan, now| {
            let mut round = Round::new(Duration::from_mins(1));
            let tried: Vec<_> =
                failures.sift(scan, &mut round, at(now)).into_iter().map(|c| c.name).collect();
            (tried, round.blocked, round.pending, round.wait.as_millis())
        };
        let names = |names: &[&str]| names.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(sift(scan(&["good"], &["bad", "new"]), 1000), (names(&["good"]), 1, 1, 60_000));
        assert_eq!(sift(scan(&["bad", "new"], &[]), 2000), (names(&["new"]), 1, 0, 3000));
        assert_eq!(sift(scan(&["bad"], &[]), 5000), (names(&["bad"]), 0, 0, 60_000));
        assert_eq!(sift(scan(&["bad"], &[]), 5001), (names(&["bad"]), 0, 0, 60_000), "it is forgotten");
    }

    #[test]
    fn a_remark_is_told_once_and_again_when_it_changes_or_its_name_comes_back() {
        let remark = |name: &str, why: &str| Remark { name: name.into(), why: Why::Closed(why.to_owned()) };
        let mut told = Told::default();
        let mut told_of = |remarks: &[Remark]| told.news(remarks.to_vec()).len();
        let (a, b, changed) = (remark("a", "x"), remark("b", "x"), remark("a", "y"));
        let looks: [(&[Remark], usize); 6] = [
            (from_ref(&a), 1),
            (&[a.clone(), b.clone()], 1),
            (&[b.clone(), a.clone()], 0),
            (&[changed, b.clone()], 1),
            (from_ref(&b), 0),
            (from_ref(&a), 1),
        ];
        for (remarks, expected) in looks {
            assert_eq!(told_of(remarks), expected, "{remarks:?}");
        }
    }

    #[test]
    fn more_than_a_batch_is_looked_for_again_at_once() {
        let ready = vec![candidate("x"); BATCH_MAX + 3];
        let mut round = Round::new(Duration::from_mins(1));
        let scan = Scan { ready, beyond: 4, ..Scan::default() };
        let tried = Failures::default().sift(scan, &mut round, Timestamp::from_millis(0));
        assert_eq!((tried.len(), round.pending, round.wait), (BATCH_MAX, 7, Duration::ZERO));
    }
}
