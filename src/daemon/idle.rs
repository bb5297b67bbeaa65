//! When `--until-idle` may end: no spec is left to read, and no job can progress without a person.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::control::{Board, Control, JobReport};
use crate::daemon::{Ending, Stuck};
use crate::domain::{JobId, JobState, JobStatus, PauseReason, QueueName};
use crate::intake;
use crate::store::{self, Store};

/// A server that is down may come back by itself. One that has not for this long needs a person.
const OUTAGE_MAX: Duration = Duration::from_mins(15);

/// See the module's words.
#[derive(Debug)]
pub(super) struct Watch {
    control: Control,
    board: Board,
    intake: intake::Handle,
    store: Arc<dyn Store>,
    /// Jobs that had ended before this process began: their failures are old news.
    ended_before: BTreeSet<JobId>,
}

impl Watch {
    pub(super) fn new(
        control: Control,
        board: Board,
        intake: intake::Handle,
        store: Arc<dyn Store>,
        before: Vec<JobState>,
    ) -> Self {
        let ended = before.into_iter().filter(|state| state.status.is_final());
        Self { control, board, intake, store, ended_before: ended.map(|state| state.job.id).collect() }
    }

    /// Waits until nothing can progress by itself.
    pub(super) async fn idle(&self) -> store::Result<Ending> {
        let mut news = self.store.changes();
        let mut pauses = self.board.changes();
        let mut intake = self.intake.changes();
        let mut patient_until = None;
        loop {
            news.mark_seen();
            pauses.mark_seen();
            intake.mark_seen();
            let is_out = self.board.pauses().values().any(|pause| pause.reason == PauseReason::Outage);
            let now = Instant::now();
            patient_until = is_out.then(|| patient_until.unwrap_or(now + OUTAGE_MAX));
            let waits_for_servers = patient_until.is_some_and(|until| now < until);
            // A spec dropped after the last look, and before the last job ended, still counts.
            if self.intake.status().is_idle()
                && self.is_quiet(waits_for_servers).await?
                && self.intake.look().await.is_idle()
                && self.is_quiet(waits_for_servers).await?
            {
                return self.ending().await;
            }
            tokio::select! { biased; // the order does not matter: each only makes us look again
                () = news.changed() => {}
                () = pauses.changed() => {}
                () = intake.changed() => {}
                () = sleep_until(patient_until.unwrap_or(now)), if waits_for_servers => {}
            }
        }
    }

    /// `waits_for_servers`: a queue whose server is down has not stopped.
    async fn is_quiet(&self, waits_for_servers: bool) -> store::Result<bool> {
        if self.store.shortage().is_some() {
            return Ok(false); // it goes on by itself, and ticks
        }
        let mut pauses = self.board.pauses();
        if waits_for_servers {
            pauses.retain(|_, pause| pause.reason != PauseReason::Outage);
        }
        let open: BTreeSet<QueueName> =
            self.store.queues().await?.into_iter().map(|depth| depth.queue).collect();
        let jobs = self.store.jobs().await?;
        let stopped = |state: &JobState| match &state.status {
            JobStatus::Completed | JobStatus::Failed { .. } | JobStatus::Cancelled | JobStatus::Expired => {
                true
            }
            // It goes on when what it waits for has ended; while that has stopped, so has it.
            JobStatus::Paused { reason } if reason.is_ours() => {
                state.leased == 0 && state.job.must_wait(&jobs).is_some()
            }
            JobStatus::Paused { .. } | JobStatus::Held { .. } => state.leased == 0,
            JobStatus::InProgress => {
                // A job's queue that has nothing to do is in nobody's way.
                let is_stopped = |queue| pauses.contains_key(queue) || !open.contains(queue);
                let closed = state.job.queues.iter().all(is_stopped);
                closed && state.leased == 0 && state.counts.open() > 0
            }
            JobStatus::Cancelling | JobStatus::Expiring | JobStatus::Finalizing => false,
        };
        Ok(jobs.iter().all(stopped))
    }

    async fn ending(&self) -> store::Result<Ending> {
        let status = self.intake.status();
        let jobs: Vec<JobReport> = self.control.list().await.unwrap_or_default();
        let stuck = jobs.into_iter().filter(|job| matches!(job.status.as_str(), "paused" | "held"));
        let stuck = Stuck { jobs: stuck.collect(), intake: status.trouble.filter(|_| status.blocked > 0) };
        if stuck != Stuck::default() {
            return Ok(Ending::Stuck(stuck));
        }
        let states = self.store.jobs().await?;
        let mut ours = states.iter().filter(|state| !self.ended_before.contains(&state.job.id));
        let failed =
            ours.any(|state| state.counts.failed > 0 || matches!(state.status, JobStatus::Failed { .. }));
        Ok(if failed { Ending::SomeFailed } else { Ending::Done })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::clock::Clock;
    use crate::control::{Folders, QueuePause};
    use crate::domain::{Job, JobSettings, Run, TunedModel};
    use crate::store::conformance::{self, NOW};
    use crate::store::memory::MemoryStore;

    #[tokio::test]
    async fn a_run_that_waits_for_the_one_before_it_has_stopped_only_while_that_has() {
        let run = |after| Some(Run { spec: "nightly.toml".to_owned(), due: None, after });
        let before = Job { run: run(None), ..conformance::job(1, 5, &["m"], 1) };
        let waits = Job { run: run(Some(before.id)), ..conformance::job(2, 5, &["m"], 1) };
        stops_and_goes_on_with(before, waits).await;
    }

    #[tokio::test]
    async fn a_job_that_waits_for_a_fine_tune_has_stopped_only_while_that_has() {
        let maker = conformance::job(1, 5, &["m"], 1);
        let models = BTreeMap::from([("support".to_owned(), TunedModel::Of(maker.id))]);
        let user = conformance::job(2, 5, &["m"], 1);
        let user = Job { settings: JobSettings { models, ..user.settings.clone() }, ..user };
        stops_and_goes_on_with(maker, user).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_down_is_waited_for_and_not_for_ever() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let job = conformance::job(1, 5, &["m"], 1);
        conformance::put(&*store, &job).await;
        let board = Board::default();
        let pause = |reason| QueuePause { reason, message: String::new(), since: NOW };
        let [queue] = job.queues.as_slice() else { unreachable!("it has one") };
        board.pause(queue, pause(PauseReason::Outage));
        let control =
            Control::new(Arc::clone(&store), board.clone(), Clock::simulated(NOW), Folders::below("nowhere"));
        let watch =
            Watch::new(control, board.clone(), intake::Handle::default(), Arc::clone(&store), Vec::new());
        assert!(!watch.is_quiet(true).await.unwrap(), "it may come back");
        assert!(watch.is_quiet(false).await.unwrap());
        board.pause(queue, pause(PauseReason::Quota));
        assert!(watch.is_quiet(true).await.unwrap(), "this is for a person");
    }

    /// `user` waits for `maker`.
    async fn stops_and_goes_on_with(maker: Job, user: Job) {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        for job in [&maker, &user] {
            conformance::put(&*store, job).await;
        }
        let board = Board::default();
        let control =
            Control::new(Arc::clone(&store), board.clone(), Clock::simulated(NOW), Folders::below("nowhere"));
        let watch = Watch::new(control, board, intake::Handle::default(), Arc::clone(&store), Vec::new());
        assert!(!watch.is_quiet(false).await.unwrap(), "the one before is at work");

        for stopped in [
            JobStatus::Paused { reason: PauseReason::User },
            JobStatus::Held { why: "a person must decide".to_owned() },
        ] {
            store.set_status(maker.id, stopped, NOW).await.unwrap();
            assert!(watch.is_quiet(false).await.unwrap(), "nobody goes on without a person");
            let Ending::Stuck(stuck) = watch.ending().await.unwrap() else { panic!("both are stuck") };
            let named: Vec<&str> = stuck.jobs.iter().map(|job| job.name.as_str()).collect();
            assert_eq!(named, ["job-1", "job-2"]);
        }

        for ending in [JobStatus::Cancelling, JobStatus::Cancelled] {
            store.set_status(maker.id, ending, NOW).await.unwrap();
            assert!(!watch.is_quiet(false).await.unwrap(), "upkeep has yet to let the other go on");
        }
        store.set_status(user.id, JobStatus::InProgress, NOW).await.unwrap();
        assert!(!watch.is_quiet(false).await.unwrap());
        store.set_status(user.id, JobStatus::Completed, NOW).await.unwrap();
        assert!(watch.is_quiet(false).await.unwrap());
    }
}
