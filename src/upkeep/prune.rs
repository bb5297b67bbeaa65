//! Pruning: the state of a job that has ended goes after a while. Its results are never touched.
//!
//! # Operation
//!
//! Nobody polls. What falls due next is known from the jobs that have ended; where none has, none can fall due before
//! the store has ticked and the whole time has passed once more. Jobs go one after the other, the one that ended first
//! before the others, and each with all its files before the next: the disk has others to serve.
//!
//! # What stays
//!
//! A job has its final status only when its results lie there whole. Beside those that have not ended, these stay:
//!
//! - the last run of a schedule that is still there: it says when that fired;
//! - a job that asks again for what failed in one that is still there: without it, that one could be asked again, and
//!   paid for, once more.
//!
//! The store itself refuses to remove what somebody works with or waits for ([`Store::remove`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::earlier;
use crate::clock::Clock;
use crate::domain::{Job, JobId, JobState, Timestamp};
use crate::intake;
use crate::store::folder::{JobFolder, ORIGIN};
use crate::store::{self, Store};

/// Jobs removed between two looks at all of them: a look costs about as much as one removal of a small job if there are
/// thousands.
const ROUND_MAX: usize = 100;

/// When to try again what somebody works with, or could not be removed; sooner where state is kept for less.
const LATER: Duration = Duration::from_mins(1);

/// When to look again whether other jobs still need what is due. The same holds.
const MUCH_LATER: Duration = Duration::from_hours(1);

/// Two looks are at least this far apart where state is kept for less.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The longest sleep, so that a jump of the machine's clock is noticed some time.
const NAP: Duration = Duration::from_hours(1);

/// See the module's words.
#[derive(Debug)]
pub(super) struct Pruner {
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Clock,
    /// How long the state is kept after a job's end.
    pub(super) keep: Duration,
    /// Jobs that end from then on are kept.
    pub(super) spared_from: Option<Timestamp>,
    /// Knows the schedules; that of no intake takes every run for one of a schedule that is there.
    pub(super) intake: intake::Handle,
}

impl Pruner {
    /// Runs until `stop`. An error is the store's.
    pub(super) async fn run(&self, stop: &CancellationToken) -> store::Result<()> {
        let mut news = self.store.changes();
        let mut is_told = false;
        while !stop.is_cancelled() {
            news.mark_seen();
            let next = self.round(stop, &mut is_told).await?;
            let due = async {
                let due = if let Some(due) = next {
                    due
                } else {
                    news.changed().await;
                    self.clock.now() + self.keep.max(LOOK_EVERY)
                };
                while due > self.clock.now() {
                    tokio::time::sleep(due.since(self.clock.now()).min(NAP)).await;
                }
            };
            tokio::select! { biased; // stopping first
                () = stop.cancelled() => {}
                () = due => {}
            }
        }
        Ok(())
    }

    /// Removes what is due, some at most. Says when to look again; none: not before something has changed.
    async fn round(&self, stop: &CancellationToken, is_told: &mut bool) -> store::Result<Option<Timestamp>> {
        let jobs = self.store.jobs().await?;
        let newest_runs = newest_runs(&jobs, |file| self.intake.may_be_scheduled(file));
        let mut there: BTreeSet<JobId> = jobs.iter().map(|state| state.job.id).collect();
        let mut ended: Vec<&JobState> = jobs.iter().filter(|state| self.may_ever_go(state)).collect();
        ended.sort_by_key(|state| self.due(state));
        let mut origins = BTreeMap::new();
        let (mut removed, mut next) = (0, None);
        for (number, state) in ended.iter().enumerate() {
            let (id, now, due) = (state.job.id, self.clock.now(), self.due(state));
            if due > now || removed == ROUND_MAX {
                next = earlier(next, Some(due.max(now)));
                break;
            }
            if stop.is_cancelled() {
                break;
            }
            if number % ROUND_MAX == 0 {
                origins = self.origins(ended.get(number..).unwrap_or_default()).await;
            }
            let is_needed = origins.get(&id).is_some_and(|origin| there.contains(origin));
            if newest_runs.contains(&id) || is_needed {
                next = earlier(next, Some(now + self.keep.clamp(LOOK_EVERY, MUCH_LATER)));
            } else if self.remove(state, is_told).await? {
                there.remove(&id);
                removed += 1;
            } else {
                next = earlier(next, Some(now + self.keep.clamp(LOOK_EVERY, LATER)));
            }
        }
        if removed > 0 {
            tracing::info!(
                jobs = removed,
                "the state of jobs that ended long ago was removed; their results stay"
            );
        }
        Ok(next)
    }

    fn may_ever_go(&self, state: &JobState) -> bool {
        let is_spared = self.spared_from.is_some_and(|from| ended_at(state) >= from);
        state.status.is_final() && !is_spared
    }

    fn due(&self, state: &JobState) -> Timestamp {
        ended_at(state) + self.keep
    }

    /// For which jobs the first of `jobs` ask again.
    async fn origins(&self, jobs: &[&JobState]) -> BTreeMap<JobId, JobId> {
        let first = jobs.iter().take(ROUND_MAX).map(|state| state.job.id);
        let folders: Vec<_> = first.filter_map(|id| Some((id, self.store.folder(id)?))).collect();
        let read = move || -> BTreeMap<JobId, JobId> {
            folders.iter().filter_map(|(id, folder)| Some((*id, asks_again_for(folder)?))).collect()
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(origins) => origins,
            // The runtime is being taken down, and this with it.
            Err(_) => std::future::pending().await,
        }
    }

    async fn remove(&self, state: &JobState, is_told: &mut bool) -> store::Result<bool> {
        let (id, name) = (state.job.id, &state.job.name);
        match self.store.remove(id).await {
            Ok(is_removed) => {
                tracing::debug!(job = %id, %name, is_removed, "the state of an ended job is due to go");
                *is_told &= !is_removed;
                Ok(is_removed)
            }
            Err(store::Error::NoSuchJob(_)) => Ok(true),
            Err(error) if error.is_full() => {
                if !std::mem::replace(is_told, true) {
                    tracing::warn!(job = %id, %name, %error, "the state of an ended job can't be removed; trying again now and then");
                }
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

fn ended_at(state: &JobState) -> Timestamp {
    state.finished_at.unwrap_or(state.job.accepted_at)
}

/// The runs that no later one of their schedule stands in for: they say for which time it fired last. `jobs` are in the
/// order of acceptance. Of a schedule that is gone nothing needs to be known.
fn newest_runs(jobs: &[JobState], is_scheduled: impl Fn(&str) -> bool) -> BTreeSet<JobId> {
    // One that a person asked for was made for no time.
    let mut latest: BTreeMap<&str, Option<Timestamp>> = BTreeMap::new();
    let mut newest = BTreeSet::new();
    for Job { id, run, .. } in jobs.iter().rev().map(|state| &state.job) {
        let Some(run) = run else { continue };
        if latest.get(run.spec.as_str()).is_none_or(|later| *later < run.due) {
            latest.insert(&run.spec, run.due);
            if is_scheduled(&run.spec) {
                newest.insert(*id);
            }
        }
    }
    newest
}

/// The job whose failed requests the job in this folder asks for again, if it does.
fn asks_again_for(folder: &Path) -> Option<JobId> {
    let origin = JobFolder::at(folder.to_owned()).spec().join(ORIGIN);
    std::fs::read_to_string(origin).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{JobStatus, Run, TunedModel};
    use crate::store::conformance::{self, NOW};
    use crate::store::memory::MemoryStore;

    const WEEK: Duration = Duration::from_hours(7 * 24);
    const HOUR: Duration = Duration::from_hours(1);

    struct World {
        store: Arc<dyn Store>,
        folders: tempfile::TempDir,
        clock: Clock,
        stop: CancellationToken,
    }

    impl World {
        fn new() -> Self {
            let folders = tempfile::tempdir().unwrap();
            let store = Arc::new(MemoryStore::with_folders(folders.path().to_owned()));
            Self { store, folders, clock: Clock::simulated(NOW), stop: CancellationToken::new() }
        }

        fn pruner(&self, keep: Duration) -> Pruner {
            let (store, clock) = (Arc::clone(&self.store), self.clock.clone());
            Pruner { store, clock, keep, spared_from: None, intake: intake::Handle::default() }
        }

        async fn put(&self, job: &Job) {
            conformance::put(&*self.store, job).await;
        }

        async fn end(&self, job: &Job) {
            for status in [JobStatus::Cancelling, JobStatus::Cancelled] {
                self.store.set_status(job.id, status, self.clock.now()).await.unwrap();
            }
        }

        /// Numbers of the jobs that are there.
        async fn left(&self) -> Vec<u8> {
            let jobs = self.store.jobs().await.unwrap();
            jobs.iter().map(|state| state.job.id.as_bytes()[0]).collect()
        }

        /// Runs a pruner while `script` runs.
        async fn while_pruned(&self, pruner: Pruner, script: impl Future<Output = ()>) {
            let script = async {
                script.await;
                self.stop.cancel();
            };
            let (ran, ()) = tokio::join!(pruner.run(&self.stop), script);
            ran.unwrap();
        }
    }

    fn job(number: u8) -> Job {
        conformance::job(number, 5, &["m"], 1)
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_go_a_while_after_their_end_and_others_stay() {
        let world = World::new();
        let pruner = world.pruner(WEEK);
        world
            .while_pruned(pruner, async {
                for number in 1..=3 {
                    world.put(&job(number)).await;
                }
                tokio::time::sleep(HOUR).await;
                world.end(&job(2)).await;
                tokio::time::sleep(HOUR).await;
                world.end(&job(1)).await;
                tokio::time::sleep(WEEK.saturating_sub(HOUR + Duration::from_millis(1))).await;
                assert_eq!(world.left().await, [1, 2, 3]);
                tokio::time::sleep(Duration::from_millis(2)).await;
                assert_eq!(world.left().await, [1, 3]);
                tokio::time::sleep(HOUR).await;
                assert_eq!(world.left().await, [3]);
                tokio::time::sleep(WEEK * 4).await;
                assert_eq!(world.left().await, [3]);
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn without_any_time_jobs_go_at_once_and_many_go_in_rounds() {
        let world = World::new();
        for number in 1..=u8::MAX {
            world.put(&job(number)).await;
            world.end(&job(number)).await;
        }
        let pruner = world.pruner(Duration::ZERO);
        world
            .while_pruned(pruner, async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert!(world.left().await.is_empty());
                world.put(&job(1)).await;
                world.end(&job(1)).await;
                tokio::time::sleep(LOOK_EVERY).await;
                tokio::time::sleep(Duration::from_millis(1)).await;
                assert!(world.left().await.is_empty());
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_fine_tune_stays_while_a_job_waits_for_it() {
        let world = World::new();
        let (maker, mut user) = (job(1), job(2));
        user.settings.models.insert("support".to_owned(), TunedModel::Of(maker.id));
        world.put(&maker).await;
        world.put(&user).await;
        world.end(&maker).await;
        let pruner = world.pruner(WEEK);
        world
            .while_pruned(pruner, async {
                tokio::time::sleep(WEEK * 4).await;
                assert_eq!(world.left().await, [1, 2]);
                world.end(&user).await;
                tokio::time::sleep(MUCH_LATER * 2).await;
                assert_eq!(world.left().await, [2]);
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_runs_of_a_schedule_stay() {
        let world = World::new();
        let due = |seconds: u64| Some(Timestamp::from_millis(seconds * 1_000));
        let runs = [("a", due(1)), ("b", due(1)), ("a", due(2)), ("a", None), ("b", due(2))];
        for (number, (spec, due)) in (1..).zip(runs) {
            let run = Run { spec: spec.to_owned(), due, after: None };
            let job = Job { run: Some(run), ..job(number) };
            world.put(&job).await;
            world.end(&job).await;
        }
        let pruner = world.pruner(HOUR);
        world
            .while_pruned(pruner, async {
                tokio::time::sleep(HOUR * 2).await;
                assert_eq!(world.left().await, [3, 4, 5], "the last at a time, and the last of all");
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_asks_again_stays_as_long_as_that_which_failed() {
        let world = World::new();
        let (failed, again) = (job(1), job(2));
        world.put(&again).await;
        world.end(&again).await;
        let spec = world.folders.path().join(again.id.to_string()).join("spec");
        std::fs::create_dir_all(&spec).unwrap();
        std::fs::write(spec.join(ORIGIN), failed.id.to_string()).unwrap();
        world.put(&failed).await;
        let pruner = world.pruner(HOUR);
        world
            .while_pruned(pruner, async {
                tokio::time::sleep(HOUR * 2).await;
                assert_eq!(world.left().await, [1, 2]);
                world.end(&failed).await;
                tokio::time::sleep(HOUR + MUCH_LATER * 2).await;
                assert!(world.left().await.is_empty());
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_somebody_holds_goes_when_it_is_let_go() {
        let world = World::new();
        world.put(&job(1)).await;
        world.end(&job(1)).await;
        let hold = world.store.hold();
        let pruner = world.pruner(HOUR);
        world
            .while_pruned(pruner, async {
                tokio::time::sleep(HOUR * 2).await;
                assert_eq!(world.left().await, [1]);
                drop(hold);
                tokio::time::sleep(LATER * 2).await;
                assert!(world.left().await.is_empty());
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_ends_now_can_be_spared() {
        let world = World::new();
        world.put(&job(1)).await;
        world.end(&job(1)).await;
        tokio::time::sleep(HOUR).await;
        let pruner = Pruner { spared_from: Some(world.clock.now()), ..world.pruner(Duration::ZERO) };
        world
            .while_pruned(pruner, async {
                world.put(&job(2)).await;
                world.end(&job(2)).await;
                tokio::time::sleep(HOUR).await;
                assert_eq!(world.left().await, [2]);
            })
            .await;
    }
}
