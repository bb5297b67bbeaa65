//! Who is next in a queue: a weighted fair queue of its jobs.
//!
//! Pure, and used by every store, so that all of them choose alike.
//!
//! # Operation
//!
//! Start-time fair queueing, as it is used for disks (SFQ(D)): the slots that serve are many, so what counts is what is
//! begun. Each queue has a virtual time. A request costs its job virtual time, the less the more the job [weighs](Weight),
//! and the job whose next request begins first in virtual time is next. The queue's time is where the last turn began.
//! A job that had nothing to send for a while, or is new, begins there: it has no credit for the past, and is not
//! punished for it either.
//!
//! A turn is several requests, in input order: prompts that share a long beginning stay neighbours, which servers that
//! cache prefixes reward. The heaviest job's turns are the longest: [`RUN_MAX`], or less where that would leave others
//! out of what is given out at once. The turns of the others are shorter by their weight.
//!
//! # What it does not do
//!
//! It shares requests begun, and not the time they take: beside a job whose answers take 60 seconds, one of the same
//! priority whose answers take one is begun as often, and has a sixtieth of its slots. Which of the two is right depends
//! on what is scarce. Where a provider counts requests a minute, each request costs the same, however long it takes; to
//! charge by time would leave the job with long answers next to nothing of the limit. Where slots are scarce, time would
//! be the fairer measure. A store sees neither limits nor slots, and knows the time of a request only when it has
//! ended. Who has short answers beside long ones at a server with few slots gives them the higher priority.
//!
//! # Invariants
//!
//! - Of two jobs that always have something to send, each gets by its weight, but for a turn more or less.
//! - While anybody has something to send, everything asked for is given out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::num::NonZeroU64;

use crate::domain::{JobId, QueueName};
use crate::store::weight::Weight;

/// Requests of one turn, at most: a small job that comes waits for one of those.
const RUN_MAX: usize = 8;

/// Each of the jobs gets at least so many turns of what is given out at once, so that they alternate where it is little.
const TURNS_MIN: usize = 2;

/// What a request of weight 1 costs. Far above the greatest weight, so that the quotient is exact enough; and a `u64` of
/// them lasts for ten thousand million requests.
const COST: u64 = 1 << 33;
const _: () = assert!(COST / Weight::MAX >= 1 << 13, "the quotient is exact to 0.01 %");

/// Jobs that a queue remembers beyond those that have something to send, before it looks which it may forget.
const IDLE_MAX: usize = 64;

/// A job that has something to send in the queue asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) job: JobId,
    pub(crate) weight: Weight,
}

/// Where each queue stands, and each job in it.
#[derive(Debug, Default)]
pub(crate) struct Turns(BTreeMap<QueueName, Round>);

/// The virtual time of one queue.
#[derive(Debug, Default)]
struct Round {
    now: u64,
    /// Turns so far.
    turns: u64,
    /// The last turn of each job.
    served: BTreeMap<JobId, Served>,
}

/// A job's last turn.
#[derive(Clone, Copy, Debug, Default)]
struct Served {
    /// In virtual time. What ended before the queue's time says nothing any more.
    end: u64,
    /// Its number, from 1.
    turn: u64,
}

/// A job in line. The first is the one whose next request begins first; then the heavier; then the one that waited
/// longest for a turn, so that jobs alternate, and a new one goes before one that was alone; then the older one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct InLine {
    begin: u64,
    weight: Reverse<Weight>,
    last_turn: u64,
    job: JobId,
}

impl Turns {
    pub(crate) fn forget(&mut self, job: JobId) {
        self.0.retain(|_, round| {
            round.served.remove(&job);
            !round.served.is_empty()
        });
    }

    /// Gives out `max` of `queue` among `candidates`. `take(job, n)` claims at most `n` requests of a job and says how
    /// many it got; fewer than asked means that the job has no more.
    pub(crate) fn share<E>(
        &mut self,
        queue: &QueueName,
        candidates: &[Candidate],
        max: usize,
        take: impl FnMut(JobId, usize) -> Result<usize, E>,
    ) -> Result<(), E> {
        if candidates.is_empty() {
            return Ok(());
        }
        if !self.0.contains_key(queue) {
            self.0.insert(queue.clone(), Round::default());
        }
        self.0.get_mut(queue).map_or(Ok(()), |round| round.share(candidates, max, take))
    }
}

impl Round {
    fn share<E>(
        &mut self,
        candidates: &[Candidate],
        max: usize,
        mut take: impl FnMut(JobId, usize) -> Result<usize, E>,
    ) -> Result<(), E> {
        let in_line = |candidate: &Candidate| {
            let Served { end, turn } = self.served.get(&candidate.job).copied().unwrap_or_default();
            let (weight, job) = (Reverse(candidate.weight), candidate.job);
            Reverse(InLine { begin: end.max(self.now), weight, last_turn: turn, job })
        };
        let mut line: BinaryHeap<_> = candidates.iter().map(in_line).collect();
        let longest = (max / (TURNS_MIN * candidates.len()).max(1)).clamp(1, RUN_MAX);
        let heaviest = candidates.iter().map(|candidate| candidate.weight).max();
        let mut left = max;
        while left > 0
            && let Some(Reverse(next)) = line.pop()
        {
            let InLine { begin, weight: Reverse(weight), job, .. } = next;
            let is_alone = line.is_empty();
            let want = if is_alone { left } else { turn(longest, weight, heaviest).min(left) };
            let got = take(job, want)?;
            left -= got;
            if got > 0 {
                let end = begin.saturating_add(cost(got, weight.get()));
                self.turns += 1;
                self.served.insert(job, Served { end, turn: self.turns });
                // Who is alone may take many at once, and owes nobody the time between.
                self.now = if is_alone { end } else { begin };
                if got == want {
                    line.push(Reverse(InLine { begin: end, last_turn: self.turns, ..next }));
                }
            }
        }
        if self.served.len() > candidates.len() + IDLE_MAX {
            self.served.retain(|_, served| served.end > self.now);
        }
        Ok(())
    }
}

/// How many requests a job's turn is long, where that of the heaviest is `longest`.
fn turn(longest: usize, weight: Weight, heaviest: Option<Weight>) -> usize {
    let heaviest = heaviest.unwrap_or(weight).get();
    let length = longest as u64 * weight.get().get() / heaviest;
    usize::try_from(length).unwrap_or(longest).max(1)
}

fn cost(requests: usize, weight: NonZeroU64) -> u64 {
    (COST / weight).saturating_mul(requests as u64)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;
    use crate::store::conformance::{self, NOW};

    fn queue() -> QueueName {
        conformance::queue("m")
    }

    fn job(n: u8) -> JobId {
        JobId::from_bytes([n; 16])
    }

    /// Jobs of one queue, by number: `(priority, requests that it has to send)`.
    struct World {
        turns: Turns,
        jobs: BTreeMap<u8, (u8, usize)>,
    }

    impl World {
        fn new(jobs: &[(u8, u8, usize)]) -> Self {
            let jobs = jobs.iter().map(|(n, priority, stock)| (*n, (*priority, *stock))).collect();
            Self { turns: Turns::default(), jobs }
        }

        /// Whose the requests are that are given out, in their order.
        fn share(&mut self, max: usize) -> Vec<u8> {
            let candidate = |(n, (priority, _)): (&u8, &(u8, usize))| {
                let weight = Weight::of(&conformance::job(*n, *priority, &[], 0), 0, NOW);
                Candidate { job: job(*n), weight }
            };
            let candidates: Vec<_> = self.jobs.iter().map(candidate).collect();
            let mut given = Vec::new();
            let jobs = &mut self.jobs;
            let Ok(()) =
                self.turns.share(&queue(), &candidates, max, |id, want| -> Result<usize, Infallible> {
                    let (n, (_, stock)) = jobs.iter_mut().find(|(n, _)| job(**n) == id).unwrap();
                    let got = want.min(*stock);
                    *stock -= got;
                    given.extend(std::iter::repeat_n(*n, got));
                    Ok(got)
                });
            given
        }

        /// How many each gets.
        fn counts(&mut self, max: usize) -> Vec<usize> {
            let given = self.share(max);
            self.jobs.keys().map(|n| count(&given, *n)).collect()
        }
    }

    fn count(given: &[u8], n: u8) -> usize {
        given.iter().map(|of| usize::from(*of == n)).sum()
    }

    #[test]
    fn jobs_of_one_priority_share_evenly_and_leave_nothing_unused() {
        assert_eq!(World::new(&[(1, 5, 100), (2, 5, 100)]).counts(12), [6, 6]);
        assert_eq!(World::new(&[(1, 5, 2), (2, 5, 100), (3, 5, 100)]).counts(14), [2, 6, 6]);
        assert_eq!(World::new(&[(1, 5, 1), (2, 5, 1)]).counts(10), [1, 1]);
        assert_eq!(World::new(&[(1, 5, 1)]).counts(0), [0]);
        assert!(World::new(&[]).share(5).is_empty());
    }

    #[test]
    fn single_slots_go_round() {
        let mut world = World::new(&[(1, 5, 100), (2, 5, 100), (3, 5, 100)]);
        let winners: Vec<u8> = (0..6).flat_map(|_| world.share(1)).collect();
        assert_eq!(winners, [1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn turns_are_short_where_slots_are_few_and_bounded_where_they_are_many() {
        assert_eq!(World::new(&[(1, 5, 100), (2, 5, 100)]).share(8), [1, 1, 2, 2, 1, 1, 2, 2]);
        let given = World::new(&[(1, 5, 1_000), (2, 5, 1_000)]).share(512);
        assert!(given.chunk_by(|a, b| a == b).all(|turn| turn.len() == RUN_MAX));
        assert_eq!(World::new(&[(1, 5, 10), (2, 5, 10), (3, 5, 10)]).share(3), [1, 2, 3]);
    }

    #[test]
    fn a_higher_priority_overtakes_and_starves_nobody() {
        let mut world = World::new(&[(1, 5, 100_000)]);
        world.share(5_000);
        world.jobs.insert(2, (9, 50));
        assert!(count(&world.share(64)[..17], 2) >= 15, "its share is due at once");
        let counts = World::new(&[(1, 5, 100_000), (2, 9, 100_000)]).counts(17_000);
        assert!(counts[0].abs_diff(1_000) <= RUN_MAX, "one of 17 is left to the lower one, not {counts:?}");
        let counts = World::new(&[(1, 0, 100_000), (2, 9, 100_000)]).counts(51_300);
        assert!(counts[0].abs_diff(100) <= RUN_MAX, "nor does the lowest starve: {counts:?}");
    }

    #[test]
    fn a_late_job_begins_where_the_others_are() {
        for alone in [1, 7, 100, 30_000] {
            let mut world = World::new(&[(1, 5, 1_000_000)]);
            for _ in 0..alone {
                world.share(16);
            }
            world.jobs.insert(2, (5, 10_000));
            let given = world.share(100);
            assert_eq!(given[..RUN_MAX], [2; RUN_MAX]);
            let first = count(&given, 1);
            assert!(first.abs_diff(50) <= RUN_MAX, "{first} of 100 after {alone} leases that it had alone");
        }
    }

    #[test]
    fn an_idle_job_saves_nothing_up() {
        let mut world = World::new(&[(1, 5, 100_000), (2, 5, 10)]);
        world.share(20);
        world.share(5_000); // the second one's other requests wait for their retry
        world.jobs.insert(2, (5, 1_000));
        let counts = world.counts(100);
        assert!(counts[0].abs_diff(50) <= RUN_MAX, "{counts:?}");
    }

    #[test]
    fn queues_have_turns_of_their_own() {
        let mut turns = Turns::default();
        let weight = |n| Weight::of(&conformance::job(n, 5, &[], 0), 0, NOW);
        let candidates = [1, 2].map(|n| Candidate { job: job(n), weight: weight(n) });
        let mut next = |queue: &str| {
            let mut given = Vec::new();
            let take = |id, want| {
                given.push(id);
                Ok::<usize, Infallible>(want)
            };
            let Ok(()) = turns.share(&conformance::queue(queue), &candidates, 1, take);
            given
        };
        let given = ["a", "b", "a", "b"].map(&mut next);
        assert_eq!(given, [[job(1)], [job(1)], [job(2)], [job(2)]]);
    }

    #[test]
    fn what_has_ended_is_forgotten() {
        let mut world = World::new(&[]);
        for n in 0..=u8::MAX {
            world.jobs = BTreeMap::from([(n, (5, 3))]);
            world.share(2);
        }
        let remembered =
            |world: &World| world.turns.0.values().map(|round| round.served.len()).sum::<usize>();
        assert!(remembered(&world) <= IDLE_MAX + 1, "{}", remembered(&world));
        (0..=u8::MAX).for_each(|n| world.turns.forget(job(n)));
        assert!(world.turns.0.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn shares_are_as_the_weights_in_the_long_run(
            priorities in prop::collection::vec(2_u8..=8, 2..6),
            batches in prop::collection::vec(1_usize..100, 1..20),
        ) {
            let jobs: Vec<_> = (0..).zip(&priorities).map(|(n, p)| (n, *p, usize::MAX / 2)).collect();
            let mut world = World::new(&jobs);
            let mut got = vec![0; jobs.len()];
            let mut all = 0;
            while all < 10_000 {
                for batch in &batches {
                    all += batch;
                    got.iter_mut().zip(world.counts(*batch)).for_each(|(sum, n)| *sum += n);
                }
            }
            let weights: usize = priorities.iter().map(|p| 1_usize << p).sum();
            for (got, priority) in got.into_iter().zip(&priorities) {
                let due = all * (1 << priority) / weights;
                let slack = due / 50 + 2 * RUN_MAX;
                prop_assert!(got.abs_diff(due) <= slack, "{got} of {all} at priority {priority}, not {due}");
            }
        }

        #[test]
        fn nobody_who_has_something_to_send_waits_for_ever(
            events in prop::collection::vec((0_u8..6, 0_u8..=9, 1_usize..200, 1_usize..70), 1..60),
        ) {
            // Jobs come at any time, and with anything; one of the lowest priority is there all the time.
            let mut world = World::new(&[(9, 0, usize::MAX / 2)]);
            let mut since = 0;
            for (n, priority, stock, batch) in events {
                world.jobs.insert(n, (priority, stock));
                let (stock_before, given) = (stock_of(&world), world.share(batch));
                prop_assert_eq!(given.len(), batch.min(stock_before));
                since = if count(&given, 9) > 0 { 0 } else { since + given.len() };
                // At the most six others of priority 9, of which each gets 512 and a turn for one of ours.
                prop_assert!(since <= 6 * 513 * RUN_MAX, "{since} requests of others in a row");
            }
        }

        #[test]
        fn a_small_job_that_comes_late_gets_its_share_at_once(
            batches in prop::collection::vec(1_usize..100, 0..50),
            others in 1_u8..5,
            max in 1_usize..64,
        ) {
            let jobs: Vec<_> = (1..=others).map(|n| (n, 5, usize::MAX / 8)).collect();
            let mut world = World::new(&jobs);
            for batch in batches {
                world.share(batch);
            }
            world.jobs.insert(0, (5, 50));
            let mut given = Vec::new();
            while count(&given, 0) < 50 {
                given.extend(world.share(max));
            }
            let most = 50 * (usize::from(others) + 1) + (usize::from(others) + 1) * 2 * RUN_MAX + max;
            prop_assert!(given.len() <= most, "it took {} requests to give it 50", given.len());
        }
    }

    fn stock_of(world: &World) -> usize {
        world.jobs.values().map(|(_, stock)| *stock).fold(0, usize::saturating_add)
    }
}
