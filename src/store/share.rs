//! Who gets how many of a queue's free slots: priority first, then even shares.
//!
//! Pure, and used by every store, so that all of them choose alike.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::domain::JobId;

/// A job that has something to send in the queue asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) job: JobId,
    /// 0..=9, higher goes first.
    pub(crate) priority: u8,
}

/// When each job was last given something; whoever waited longest goes first.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    next: u64,
    last: BTreeMap<JobId, u64>,
}

impl Turns {
    pub(crate) fn forget(&mut self, job: JobId) {
        self.last.remove(&job);
    }

    /// Gives out `max` among `candidates`. `take(job, n)` claims at most `n` requests of a job and says how
    /// many it got; fewer than asked means that the job has no more.
    pub(crate) fn share<E>(
        &mut self,
        candidates: &[Candidate],
        max: usize,
        mut take: impl FnMut(JobId, usize) -> Result<usize, E>,
    ) -> Result<(), E> {
        let mut order = candidates.to_vec();
        order.sort_by_key(|c| (Reverse(c.priority), self.last.get(&c.job).copied().unwrap_or(0), c.job));
        let mut left = max;
        for class in order.chunk_by(|a, b| a.priority == b.priority) {
            let mut hungry: Vec<JobId> = class.iter().map(|c| c.job).collect();
            while left > 0 && !hungry.is_empty() {
                let quota = left.div_ceil(hungry.len());
                let mut still_hungry = Vec::with_capacity(hungry.len());
                for job in hungry {
                    let want = quota.min(left);
                    if want == 0 {
                        break;
                    }
                    let got = take(job, want)?;
                    left -= got;
                    if got > 0 {
                        self.next += 1;
                        self.last.insert(job, self.next);
                    }
                    if got == want {
                        still_hungry.push(job);
                    }
                }
                hungry = still_hungry;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn job(n: u8) -> JobId {
        JobId::from_bytes([n; 16])
    }

    /// Shares `max` among jobs that have `(id, priority, stock)` and returns what each got.
    fn share(turns: &mut Turns, jobs: &[(u8, u8, usize)], max: usize) -> Vec<usize> {
        let candidates: Vec<_> =
            jobs.iter().map(|(id, priority, _)| Candidate { job: job(*id), priority: *priority }).collect();
        let mut stock: BTreeMap<JobId, usize> = jobs.iter().map(|(id, _, n)| (job(*id), *n)).collect();
        let mut got: BTreeMap<JobId, usize> = BTreeMap::new();
        let Ok(()) = turns.share(&candidates, max, |job, want| -> Result<usize, Infallible> {
            let have = stock.get_mut(&job).unwrap();
            let taken = want.min(*have);
            *have -= taken;
            *got.entry(job).or_default() += taken;
            Ok(taken)
        });
        jobs.iter().map(|(id, ..)| got.get(&job(*id)).copied().unwrap_or(0)).collect()
    }

    #[test]
    fn jobs_of_one_priority_share_evenly_and_leave_nothing_unused() {
        assert_eq!(share(&mut Turns::default(), &[(1, 5, 100), (2, 5, 100)], 10), [5, 5]);
        assert_eq!(share(&mut Turns::default(), &[(1, 5, 2), (2, 5, 100), (3, 5, 100)], 12), [2, 5, 5]);
        assert_eq!(share(&mut Turns::default(), &[(1, 5, 1), (2, 5, 1)], 10), [1, 1]);
    }

    #[test]
    fn higher_priority_goes_first() {
        assert_eq!(share(&mut Turns::default(), &[(1, 5, 100), (2, 9, 4)], 10), [6, 4]);
        assert_eq!(share(&mut Turns::default(), &[(1, 5, 100), (2, 9, 100)], 10), [0, 10]);
    }

    #[test]
    fn single_slots_go_round() {
        let mut turns = Turns::default();
        let jobs = [(1, 5, 100), (2, 5, 100), (3, 5, 100)];
        let winners: Vec<Vec<usize>> = (0..4).map(|_| share(&mut turns, &jobs, 1)).collect();
        assert_eq!(winners, [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]);
    }
}
