//! Upkeep: what must happen when time has passed, whether or not anything else does.
//!
//! Now: jobs whose deadline has passed begin to expire, and jobs that waited for others (fine-tunes, the run of a
//! schedule before) go on when those have ended, whatever came of them. The state of jobs that have ended is
//! [removed](prune) in time.

mod prune;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::prune::Pruner;
use crate::clock::Clock;
use crate::domain::{JobState, JobStatus, Timestamp};
use crate::intake;
use crate::store::{self, Store};

/// How long a job that could not be moved on, because the disk is full, waits for the next try.
const RETRY: Duration = Duration::from_secs(1);

/// See the module's words.
#[derive(Debug)]
pub struct Upkeep {
    store: Arc<dyn Store>,
    clock: Clock,
    pruner: Pruner,
}

impl Upkeep {
    /// Keeps the state of a job for so long after its end.
    pub fn new(store: Arc<dyn Store>, clock: Clock, keep_state: Duration) -> Self {
        let pruner = Pruner {
            store: Arc::clone(&store),
            clock: clock.clone(),
            keep: keep_state,
            spared_from: None,
            intake: intake::Handle::default(),
        };
        Self { store, clock, pruner }
    }

    /// Asks this intake which schedules there are.
    #[must_use]
    pub fn with_schedules(mut self, intake: intake::Handle) -> Self {
        self.pruner.intake = intake;
        self
    }

    /// Keeps the state of all jobs that end from now on: somebody wants to see in the end what became of them.
    #[must_use]
    pub fn sparing_what_ends_now(mut self) -> Self {
        self.pruner.spared_from = Some(self.clock.now());
        self
    }

    /// Runs until `stop`. An error is the store's.
    pub async fn run(self, stop: CancellationToken) -> store::Result<()> {
        tokio::try_join!(self.keep_time(&stop), self.pruner.run(&stop)).map(drop)
    }

    /// Deadlines and ends that others wait for.
    async fn keep_time(&self, stop: &CancellationToken) -> store::Result<()> {
        let mut news = self.store.changes();
        while !stop.is_cancelled() {
            news.mark_seen();
            let jobs = self.store.open_jobs().await?;
            let next = earlier(self.expire(&jobs).await?, self.go_on(&jobs).await?);
            let due = async {
                match next {
                    Some(due) => tokio::time::sleep(self.clock.until(due)).await,
                    None => std::future::pending().await,
                }
            };
            // Stopping first; news may bring an earlier deadline, so it goes before the timer.
            tokio::select! { biased;
                () = stop.cancelled() => {}
                () = news.changed() => {}
                () = due => {}
            }
        }
        Ok(())
    }

    /// Sends jobs past their deadline to their end; says when the next one is due.
    async fn expire(&self, jobs: &[JobState]) -> store::Result<Option<Timestamp>> {
        let now = self.clock.now();
        let mut next = None;
        for state in jobs {
            let Some(due) = state.job.expires_at().filter(|_| may_expire(state)) else { continue };
            if due > now {
                next = earlier(next, Some(due));
                continue;
            }
            tracing::info!(job = %state.job.id, name = %state.job.name, open = state.counts.open(), "the job's deadline has passed");
            next = earlier(next, self.move_to(state, JobStatus::Expiring, now).await?);
        }
        Ok(next)
    }

    /// Lets jobs go on for which others have ended; says when to try again what could not be written down.
    async fn go_on(&self, jobs: &[JobState]) -> store::Result<Option<Timestamp>> {
        let now = self.clock.now();
        let mut next = None;
        // Nobody else takes a job out of such a pause but to cancel or hold it.
        for state in jobs.iter().filter(|state| state.status.is_waiting()) {
            let status = state.job.next_status(jobs);
            if status == state.status {
                continue;
            }
            if status == JobStatus::InProgress {
                tracing::info!(job = %state.job.id, name = %state.job.name, "what the job waited for has ended");
            }
            next = earlier(next, self.move_to(state, status, now).await?);
        }
        Ok(next)
    }

    /// Says when to try again, if the disk is full.
    async fn move_to(
        &self,
        state: &JobState,
        status: JobStatus,
        now: Timestamp,
    ) -> store::Result<Option<Timestamp>> {
        match self.store.set_status(state.job.id, status, now).await {
            // It ended, or was cancelled, in the meantime.
            Ok(_) | Err(store::Error::Transition { .. }) => Ok(None),
            // Nothing of it is sent meanwhile. The store ticks when there is room; a quota may not.
            Err(error) if error.is_full() => Ok(Some(now + RETRY)),
            Err(error) => Err(error),
        }
    }
}

fn earlier(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    one.into_iter().chain(other).min()
}

/// A job on its way to an end is not sent to another, nor one whose requests are all settled.
fn may_expire(state: &JobState) -> bool {
    let open =
        matches!(state.status, JobStatus::InProgress | JobStatus::Paused { .. } | JobStatus::Held { .. });
    open && state.counts.open() > 0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::{Job, JobId, JobSettings, PauseReason, Run, TunedModel};
    use crate::store::conformance;
    use crate::store::memory::MemoryStore;

    /// Longer than these tests look.
    const KEEP: Duration = Duration::from_hours(1_000);

    #[tokio::test(start_paused = true)]
    async fn jobs_expire_at_their_deadline_and_not_before() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let clock = Clock::simulated(conformance::NOW);
        let mut job = conformance::job(1, 5, &["m"], 2);
        job.settings = JobSettings { deadline: Some(Duration::from_hours(6)), ..job.settings };
        conformance::put(&*store, &job).await;
        let stop = CancellationToken::new();
        let upkeep = Upkeep::new(Arc::clone(&store), clock, KEEP);
        let watched = async {
            tokio::time::sleep(Duration::from_hours(6) - Duration::from_secs(1)).await;
            assert_eq!(store.job(job.id).await.unwrap().status, JobStatus::InProgress);
            let mut news = store.changes();
            news.changed().await;
            assert_eq!(store.job(job.id).await.unwrap().status, JobStatus::Expiring);
            stop.cancel();
        };
        let (ran, ()) = tokio::join!(upkeep.run(stop.clone()), watched);
        ran.unwrap();
    }

    /// A job that uses the models of these fine-tunes.
    fn user(number: u8, makers: &[&Job]) -> Job {
        let model = |maker: &&Job| (maker.name.to_string(), TunedModel::Of(maker.id));
        let models = makers.iter().map(model).collect();
        let job = conformance::job(number, 5, &["m"], 2);
        Job { settings: JobSettings { models, ..job.settings.clone() }, ..job }
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_go_on_when_all_fine_tunes_they_wait_for_have_ended_in_whatever_way() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let [one, two, gone] = [1, 2, 3].map(|number| conformance::job(number, 5, &["m"], 1));
        let (both, first, none) = (user(4, &[&one, &two]), user(5, &[&one]), user(6, &[&gone]));
        let cancelled = user(7, &[&one]);
        for job in [&one, &two, &both, &first, &none, &cancelled] {
            conformance::put(&*store, job).await;
        }
        let now = conformance::NOW;
        store.set_status(cancelled.id, JobStatus::Cancelling, now).await.unwrap();
        let waiting = JobStatus::Paused { reason: PauseReason::FineTune };
        let stop = CancellationToken::new();
        let upkeep = Upkeep::new(Arc::clone(&store), Clock::simulated(now), KEEP);
        let becomes = async |id: JobId, status: JobStatus| {
            let mut news = store.changes();
            while store.job(id).await.unwrap().status != status {
                news.changed().await;
            }
        };
        let watched = async {
            becomes(none.id, JobStatus::InProgress).await;
            // On its way to an end, or held, it has not ended yet.
            store.set_status(one.id, JobStatus::Cancelling, now).await.unwrap();
            store.set_status(two.id, JobStatus::Held { why: String::new() }, now).await.unwrap();
            tokio::time::sleep(Duration::from_hours(1)).await;
            assert_eq!(store.job(first.id).await.unwrap().status, waiting);
            store.set_status(one.id, JobStatus::Cancelled, now).await.unwrap();
            becomes(first.id, JobStatus::InProgress).await;
            tokio::time::sleep(Duration::from_hours(1)).await;
            assert_eq!(store.job(both.id).await.unwrap().status, waiting);
            store.set_status(two.id, JobStatus::Completed, now).await.unwrap();
            becomes(both.id, JobStatus::InProgress).await;
            assert_eq!(store.job(cancelled.id).await.unwrap().status, JobStatus::Cancelling);
            stop.cancel();
        };
        let (ran, ()) = tokio::join!(upkeep.run(stop.clone()), watched);
        ran.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_waits_for_a_fine_tune_expires_at_its_deadline_and_is_not_let_go_on() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let maker = conformance::job(1, 5, &["m"], 1);
        let mut job = user(2, &[&maker]);
        job.settings.deadline = Some(Duration::from_hours(1));
        for job in [&maker, &job] {
            conformance::put(&*store, job).await;
        }
        let stop = CancellationToken::new();
        let upkeep = Upkeep::new(Arc::clone(&store), Clock::simulated(conformance::NOW), KEEP);
        let watched = async {
            let mut news = store.changes();
            news.changed().await;
            assert_eq!(store.job(job.id).await.unwrap().status, JobStatus::Expiring);
            store.set_status(maker.id, JobStatus::Completed, conformance::NOW).await.unwrap();
            tokio::time::sleep(Duration::from_hours(1)).await;
            assert_eq!(store.job(job.id).await.unwrap().status, JobStatus::Expiring);
            stop.cancel();
        };
        let (ran, ()) = tokio::join!(upkeep.run(stop.clone()), watched);
        ran.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_goes_on_when_every_run_before_it_has_ended() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let run = |number: u8, after: Option<&Job>| {
            let run = Run { spec: "nightly.toml".to_owned(), due: None, after: after.map(|job| job.id) };
            Job { run: Some(run), ..conformance::job(number, 5, &["m"], 1) }
        };
        let first = run(1, None);
        let second = run(2, Some(&first));
        let third = run(3, Some(&second));
        let mut other = run(4, Some(&first));
        other.run.as_mut().unwrap().spec = "another.toml".to_owned();
        for job in [&first, &second, &third, &other] {
            conformance::put(&*store, job).await;
        }
        let waiting = JobStatus::Paused { reason: PauseReason::Overlap };
        let stop = CancellationToken::new();
        let upkeep = Upkeep::new(Arc::clone(&store), Clock::simulated(conformance::NOW), KEEP);
        let is = async |job: &Job, status: &JobStatus| {
            assert_eq!(store.job(job.id).await.unwrap().status, *status, "{}", job.name);
        };
        let watched = async {
            tokio::time::sleep(Duration::from_hours(1)).await;
            is(&other, &JobStatus::InProgress).await;
            // The second was cancelled while it waited: the first is at work still.
            store.set_status(second.id, JobStatus::Cancelled, conformance::NOW).await.unwrap();
            tokio::time::sleep(Duration::from_hours(1)).await;
            is(&third, &waiting).await;
            store.set_status(first.id, JobStatus::Finalizing, conformance::NOW).await.unwrap();
            tokio::time::sleep(Duration::from_hours(1)).await;
            is(&third, &waiting).await;
            let failed = JobStatus::Failed { why: String::new() };
            store.set_status(first.id, failed, conformance::NOW).await.unwrap();
            tokio::time::sleep(Duration::from_hours(1)).await;
            is(&third, &JobStatus::InProgress).await;
            stop.cancel();
        };
        let (ran, ()) = tokio::join!(upkeep.run(stop.clone()), watched);
        ran.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_whose_fine_tune_has_ended_may_have_to_wait_for_the_run_before_it() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let (first, maker) = (conformance::job(1, 5, &["m"], 1), conformance::job(2, 5, &["m"], 1));
        let run = |after| Some(Run { spec: "nightly.toml".to_owned(), due: None, after });
        let first = Job { run: run(None), ..first };
        let job = Job { run: run(Some(first.id)), ..user(3, &[&maker]) };
        for job in [&first, &maker, &job] {
            conformance::put(&*store, job).await;
        }
        let stop = CancellationToken::new();
        let upkeep = Upkeep::new(Arc::clone(&store), Clock::simulated(conformance::NOW), KEEP);
        let watched = async {
            for (ends, status) in [
                (maker.id, JobStatus::Paused { reason: PauseReason::Overlap }),
                (first.id, JobStatus::InProgress),
            ] {
                store.set_status(ends, JobStatus::Completed, conformance::NOW).await.unwrap();
                tokio::time::sleep(Duration::from_hours(1)).await;
                assert_eq!(store.job(job.id).await.unwrap().status, status);
            }
            stop.cancel();
        };
        let (ran, ()) = tokio::join!(upkeep.run(stop.clone()), watched);
        ran.unwrap();
    }
}
