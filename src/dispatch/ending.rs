//! What becomes of requests in flight when their job is cancelled or expires: they may finish within the grace,
//! and are given up after it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::domain::{JobId, JobState, JobStatus};

/// One entry for each job of which something was sent and that has not ended. Shared by all attempts.
#[derive(Debug, Default)]
pub(super) struct Endings {
    jobs: Mutex<BTreeMap<JobId, Ending>>,
}

#[derive(Debug, Default)]
struct Ending {
    given_up: CancellationToken,
    /// When the grace is over, once the job is on its way to its end.
    due: Option<Instant>,
}

impl Endings {
    /// Is cancelled when the job's requests in flight are to be given up.
    pub(super) fn of(&self, job: JobId) -> CancellationToken {
        self.lock().entry(job).or_default().given_up.clone()
    }

    /// Gives up what is due and forgets jobs that have ended. Says when it must be called again, if no job
    /// changes before.
    pub(super) fn look(&self, states: &[JobState], grace: Duration, now: Instant) -> Option<Instant> {
        let mut jobs = self.lock();
        let live: BTreeSet<JobId> =
            states.iter().filter(|state| !state.status.is_final()).map(|state| state.job.id).collect();
        jobs.retain(|id, _| live.contains(id));
        let ends = |status: &JobStatus| matches!(status, JobStatus::Cancelling | JobStatus::Expiring);
        let mut next: Option<Instant> = None;
        for state in states.iter().filter(|state| ends(&state.status)) {
            let Some(ending) = jobs.get_mut(&state.job.id) else { continue };
            let due = *ending.due.get_or_insert(now + grace);
            if due <= now {
                ending.given_up.cancel();
            } else {
                next = Some(next.map_or(due, |next| next.min(due)));
            }
        }
        next
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<JobId, Ending>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Counts;
    use crate::store::conformance;

    const GRACE: Duration = Duration::from_secs(30);

    fn state(number: u8, status: JobStatus) -> JobState {
        let job = conformance::job(number, 5, &["m"], 2);
        JobState { job, status, counts: Counts::default(), leased: 1, waiting: 0, finished_at: None }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_in_flight_is_given_up_after_the_grace_and_not_before() {
        let endings = Endings::default();
        let cancelled = state(1, JobStatus::Cancelling);
        let given_up = endings.of(cancelled.job.id);
        let running = state(2, JobStatus::InProgress);
        let kept = endings.of(running.job.id);
        let states = [cancelled, running];

        let due = Instant::now() + GRACE;
        assert_eq!(endings.look(&states, GRACE, Instant::now()), Some(due));
        tokio::time::advance(GRACE / 2).await;
        assert_eq!(endings.look(&states, GRACE, Instant::now()), Some(due), "it does not begin anew");
        assert!(!given_up.is_cancelled());
        tokio::time::advance(GRACE / 2).await;
        assert_eq!(endings.look(&states, GRACE, Instant::now()), None);
        assert!(given_up.is_cancelled() && !kept.is_cancelled());
        assert!(endings.of(states[0].job.id).is_cancelled(), "nor is anything of it begun now");
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_that_have_ended_are_forgotten() {
        let endings = Endings::default();
        let mut states = [state(1, JobStatus::Expiring)];
        endings.of(states[0].job.id);
        assert!(endings.look(&states, GRACE, Instant::now()).is_some());
        states[0].status = JobStatus::Expired;
        assert_eq!(endings.look(&states, GRACE, Instant::now()), None);
        assert!(endings.lock().is_empty());
    }
}
