//! The worker's loop: which job takes its next step.

use std::collections::BTreeMap;
use std::future::pending;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::input::Input;
use super::tuning::Gathered;
use super::{Error, Parts};
use crate::bell::Listener;
use crate::domain::{JobId, JobState, JobStatus, Kind};
use crate::pulse::Member;
use crate::store;

/// Results that found no room are tried again so often: whether there is some is looked up before they are written.
const LOOK_FOR_ROOM: Duration = Duration::from_secs(2);

/// Works until `stop`, or until the store fails.
pub(super) async fn run(parts: Parts, stop: CancellationToken) -> Result<(), Error> {
    let ticks = Ticks { changes: parts.store.changes(), progress: parts.store.progress() };
    let (jobs, steps, member) = (BTreeMap::new(), JoinSet::new(), parts.roll.join("the results writer"));
    Worker { parts, stop, jobs, steps, member, is_publishing: false }.run(ticks).await
}

/// Where the worker stands with a job that is not final.
#[derive(Debug, Default)]
struct Progress {
    has_folder: bool,
    /// The partial file is there, or can't be.
    is_linked: bool,
    /// A step of it runs.
    is_busy: bool,
    /// After a failure.
    not_before: Option<Instant>,
    /// The last failure that was told.
    told: Option<String>,
    /// What there was of a fine-tune that has ended.
    gathered: Option<Gathered>,
    /// How far its journal was searched for images.
    offset: u64,
    /// How many requests were settled, at least, when the search reached that far.
    searched: u32,
}

/// A step that has ended.
#[derive(Debug)]
struct Ended {
    job: JobId,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Followed { settled: u32, result: Result<u64, Error> },
    Gathered { result: Result<Gathered, Error> },
    Published { result: Result<(), Error> },
}

/// What makes another look worth while.
#[derive(Debug)]
struct Ticks {
    changes: Listener,
    /// New records may name images, which can't wait for the job's end.
    progress: Listener,
}

#[derive(Debug)]
struct Worker {
    parts: Parts,
    stop: CancellationToken,
    jobs: BTreeMap<JobId, Progress>,
    /// At most one of each job, and at most one that publishes.
    steps: JoinSet<Ended>,
    member: Member,
    is_publishing: bool,
}

impl Worker {
    async fn run(mut self, mut ticks: Ticks) -> Result<(), Error> {
        let stop = self.stop.clone();
        loop {
            self.member.answer();
            // Before the look, so that what changes during it makes another.
            ticks.changes.mark_seen();
            ticks.progress.mark_seen();
            self.look().await?;
            let next_look = Instant::now() + self.parts.settings.look_every;
            let retry_at = self.jobs.values().filter_map(|progress| progress.not_before).min();
            // A stop goes first; steps that ended free what the next look hands out.
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = self.steps.join_next() => self.on_ended(ended).await?,
                () = self.member.called() => {}
                () = ticks.wake(next_look, retry_at) => {}
            }
        }
        // They see the stop, too, and end at their next record or await.
        while self.member.excused(self.steps.join_next(), || true).await.is_some() {}
        Ok(())
    }

    /// Starts what can be started, in the order of acceptance.
    async fn look(&mut self) -> Result<(), Error> {
        let states = self.parts.store.open_jobs().await.map_err(Error::Store)?;
        let mut before = std::mem::take(&mut self.jobs);
        for state in &states {
            self.jobs.insert(state.job.id, before.remove(&state.job.id).unwrap_or_default());
        }
        for state in states {
            self.member.answer();
            let id = state.job.id;
            if let Err(error) = self.advance(state).await {
                self.on_error(id, error).await?;
            }
        }
        Ok(())
    }

    /// Starts the next step of one job, if there is one.
    async fn advance(&mut self, state: JobState) -> Result<(), Error> {
        let Some(progress) = self.jobs.get_mut(&state.job.id) else { return Ok(()) };
        let now = Instant::now();
        progress.not_before = progress.not_before.filter(|until| now < *until);
        let is_held = matches!(state.status, JobStatus::Held { .. });
        if progress.is_busy || progress.not_before.is_some() || is_held {
            return Ok(());
        }
        let settled = state.counts.settled();
        // Without a record there may be no journal.
        if !progress.has_folder || (!progress.is_linked && settled > 0) {
            progress.is_linked = self.parts.open(&state).await?;
            progress.has_folder = true;
        }
        if Input::may_ask_for_images(&state.job) && progress.searched < settled {
            progress.is_busy = true;
            let (parts, stop, offset) = (self.parts.clone(), self.stop.clone(), progress.offset);
            self.steps.spawn(async move {
                let job = state.job.id;
                let result = parts.follow(state, offset, &stop).await;
                Ended { job, step: Step::Followed { settled, result } }
            });
        } else if !has_ended(&state) {
            progress.gathered = None;
        } else if state.job.kind == Kind::FineTune && progress.gathered.is_none() {
            progress.is_busy = true;
            let (parts, stop) = (self.parts.clone(), self.stop.clone());
            self.steps.spawn(async move {
                let job = state.job.id;
                Ended { job, step: Step::Gathered { result: parts.gather(state, &stop).await } }
            });
        } else if !self.is_publishing {
            progress.is_busy = true;
            let gathered = progress.gathered.clone().unwrap_or_default();
            self.is_publishing = true;
            let (parts, stop) = (self.parts.clone(), self.stop.clone());
            self.steps.spawn(async move {
                let job = state.job.id;
                Ended { job, step: Step::Published { result: parts.publish(state, gathered, &stop).await } }
            });
        }
        Ok(())
    }

    async fn on_ended(&mut self, ended: Result<Ended, JoinError>) -> Result<(), Error> {
        let Ended { job, step } = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        let progress = self.jobs.entry(job).or_default();
        progress.is_busy = false;
        let result = match step {
            Step::Followed { settled, result } => result.map(|offset| {
                progress.offset = offset;
                progress.searched = settled;
            }),
            Step::Gathered { result } => result.map(|gathered| progress.gathered = Some(gathered)),
            Step::Published { result } => {
                self.is_publishing = false;
                result
            }
        };
        match result {
            Ok(()) => {
                progress.told = None;
                Ok(())
            }
            Err(error) => self.on_error(job, error).await,
        }
    }

    /// Holds the job, or tries it again later. Only a store that fails ends the worker.
    async fn on_error(&mut self, job: JobId, error: Error) -> Result<(), Error> {
        match error {
            Error::Interrupted => {}
            Error::Files(error) => {
                let told = &mut self.jobs.entry(job).or_default().told;
                let why = error.to_string();
                // What lasts is tried often, and told once.
                if told.as_ref() != Some(&why) {
                    error!(%job, %error, "results can't be read or written; trying again");
                    *told = Some(why);
                }
                let every = if error.is_full() { LOOK_FOR_ROOM } else { self.parts.settings.retry_every };
                self.try_after(job, every);
            }
            Error::Unpublishable(why) => self.hold(job, why).await?,
            Error::Store(error @ store::Error::Damaged { .. }) => self.hold(job, error.to_string()).await?,
            Error::Store(error) => self.on_store_error(job, error)?,
        }
        Ok(())
    }

    /// A job on its way to its end can't be held, since out of that it could be sent again.
    async fn hold(&mut self, job: JobId, why: String) -> Result<(), Error> {
        let held = JobStatus::Held { why: why.clone() };
        match self.parts.store.set_status(job, held, self.parts.clock.now()).await {
            Ok(_) => error!(%job, why, "results can't be published; the job is held"),
            Err(store::Error::Transition { .. }) => {
                error!(%job, why, "results can't be published; trying again");
                self.try_later(job);
            }
            Err(error) => self.on_store_error(job, error)?,
        }
        Ok(())
    }

    fn on_store_error(&mut self, job: JobId, error: store::Error) -> Result<(), Error> {
        use store::Error::{Damaged, NoSuchJob, Stale, Transition};
        if matches!(error, NoSuchJob(_)) {
            self.jobs.remove(&job);
        } else if error.is_full() {
            warn!(%job, %error, "the job's end can't be written down; trying again");
            self.try_after(job, LOOK_FOR_ROOM);
        } else if matches!(error, Transition { .. } | Stale(_) | Damaged { .. }) {
            warn!(%job, %error, "the job moved on while its results were written; looking again");
            self.try_later(job);
        } else {
            return Err(Error::Store(error));
        }
        Ok(())
    }

    fn try_later(&mut self, job: JobId) {
        self.try_after(job, self.parts.settings.retry_every);
    }

    fn try_after(&mut self, job: JobId, wait: Duration) {
        let until = Instant::now() + wait;
        self.jobs.entry(job).or_default().not_before = Some(until);
    }
}

/// Whether nothing of the job will be settled any more. A fine-tune goes out once more on its way to its end, so that it
/// ends at the provider, too.
const fn has_ended(state: &JobState) -> bool {
    match state.status {
        JobStatus::Cancelling | JobStatus::Expiring if state.may_send() => {
            state.leased == 0 && state.counts.open() == 0
        }
        JobStatus::Cancelling | JobStatus::Expiring => state.leased == 0,
        JobStatus::Held { .. }
        | JobStatus::Completed
        | JobStatus::Failed { .. }
        | JobStatus::Cancelled
        | JobStatus::Expired => false,
        JobStatus::InProgress | JobStatus::Paused { .. } | JobStatus::Finalizing => state.counts.open() == 0,
    }
}

impl Ticks {
    /// Returns when something has changed, or a job that failed is due; not before `next_look`.
    async fn wake(&mut self, next_look: Instant, retry_at: Option<Instant>) {
        let retry = async {
            match retry_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => pending().await,
            }
        };
        // All lead to the same look.
        tokio::select! {
            biased;
            () = self.changes.changed() => {}
            () = self.progress.changed() => {}
            () = retry => {}
        }
        tokio::time::sleep_until(next_look).await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use bytes::Bytes;
    use futures_util::FutureExt as _;
    use futures_util::future::{BoxFuture, ready};

    use super::*;
    use crate::clock::Clock;
    use crate::domain::{
        FineTune, Job, Kind, PauseReason, QueueName, Record, RecordError, RequestId, TuningApi, TuningData,
    };
    use crate::output::fake::{ACCEPTED, FakeStore, Shelf, answer, job, record};
    use crate::output::{Artefacts, Download, DownloadFailed, Output, Settings, Summary};
    use crate::pulse::Roll;
    use crate::store::Store;

    /// Has an image at every url.
    #[derive(Debug)]
    struct Gifs;

    impl Download for Gifs {
        fn download<'a>(&'a self, _: &'a str, _: u64) -> BoxFuture<'a, Result<Bytes, DownloadFailed>> {
            ready(Ok(Bytes::from_static(b"GIF89a"))).boxed()
        }
    }

    /// Runs the worker over `store` while `script` runs, which gets the path of the job's results.
    async fn with_worker<F: Future<Output = ()>>(store: &Arc<FakeStore>, script: impl FnOnce(PathBuf) -> F) {
        with_provider(store, Arc::new(Shelf::default()), script).await;
    }

    async fn with_provider<F: Future<Output = ()>>(
        store: &Arc<FakeStore>,
        shelf: Arc<Shelf>,
        script: impl FnOnce(PathBuf) -> F,
    ) {
        let root = tempfile::tempdir().unwrap();
        let results = root.path();
        let output = Output::new(
            Settings::new(results.to_owned()),
            Arc::clone(store) as Arc<dyn Store>,
            BTreeMap::from([("openai".to_owned(), Arc::new(Gifs) as Arc<dyn Download>)]),
            BTreeMap::from([("openai".to_owned(), shelf as Arc<dyn Artefacts>)]),
            Clock::simulated(ACCEPTED),
        );
        let stop = CancellationToken::new();
        let script = async {
            script(results.join("news")).await;
            stop.cancel();
        };
        let (ended, ()) = tokio::join!(output.run(stop.clone()), script);
        ended.unwrap();
    }

    fn summary(folder: &Path) -> Summary {
        serde_json::from_slice(&fs::read(folder.join("summary.json")).unwrap()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_is_published_when_its_last_request_is_settled() {
        let store = Arc::new(FakeStore::new(job(2)));
        store.append(&answer(1, "a"));
        with_worker(&store, async |folder| {
            tokio::time::sleep(Duration::from_mins(5)).await;
            assert!(folder.is_dir() && !folder.join("output.jsonl").exists());
            store.append(&answer(0, "a"));
            store.becomes(JobStatus::Completed).await;
            assert_eq!(summary(&folder).status, "completed");
            assert_eq!(store.statuses(), [JobStatus::Finalizing, JobStatus::Completed]);
        })
        .await;
        let finished = store.state().finished_at.unwrap();
        assert!(finished >= ACCEPTED + Duration::from_mins(5));
    }

    #[tokio::test(start_paused = true)]
    async fn worker_answers_whether_there_is_something_to_write_or_not() {
        let store = Arc::new(FakeStore::new(job(1)));
        let (root, roll, stop) = (tempfile::tempdir().unwrap(), Roll::default(), CancellationToken::new());
        let settings = Settings::new(root.path().to_owned());
        let (none, clock) = (BTreeMap::new(), Clock::simulated(ACCEPTED));
        let output = Output::new(settings, Arc::clone(&store) as _, none, BTreeMap::new(), clock);
        let script = async {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_mins(5)).await;
                let call = roll.call();
                assert_eq!(roll.missing(call), ["the results writer"]);
                tokio::time::timeout(Duration::from_hours(1), roll.answered(call)).await.unwrap();
            }
            store.append(&answer(0, "a"));
            let call = roll.call();
            store.becomes(JobStatus::Completed).await;
            roll.answered(call).await;
            stop.cancel();
        };
        let (ended, ()) = tokio::join!(output.with_roll(roll.clone()).run(stop.clone()), script);
        ended.unwrap();
        assert!(roll.missing(roll.call()).is_empty(), "it has left");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_job_waits_for_what_is_in_flight() {
        for (status, end) in
            [(JobStatus::Cancelling, JobStatus::Cancelled), (JobStatus::Expiring, JobStatus::Expired)]
        {
            let store = Arc::new(FakeStore::new(job(3)));
            store.change(|state| {
                state.status = status;
                state.leased = 1;
            });
            with_worker(&store, async |folder| {
                tokio::time::sleep(Duration::from_mins(5)).await;
                assert!(!folder.join("summary.json").exists());
                store.append(&answer(2, "paid for"));
                store.change(|state| state.leased = 0);
                store.becomes(end.clone()).await;
                let summary = summary(&folder);
                assert_eq!((summary.counts.completed, summary.counts.failed), (1, 2));
                assert_eq!(
                    store.statuses(),
                    std::slice::from_ref(&end),
                    "a crash in between keeps the status"
                );
            })
            .await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_job_with_nothing_left_is_published_and_a_held_one_is_not() {
        let store = Arc::new(FakeStore::new(job(1)));
        store.append(&answer(0, "a"));
        store.change(|state| state.status = JobStatus::Held { why: "damage".to_owned() });
        with_worker(&store, async |folder| {
            tokio::time::sleep(Duration::from_mins(5)).await;
            assert!(!folder.join("summary.json").exists());
            store.change(|state| state.status = JobStatus::Paused { reason: PauseReason::User });
            store.becomes(JobStatus::Completed).await;
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_cannot_be_published_is_held_with_the_reason() {
        let store = Arc::new(FakeStore::new(job(2)));
        store.append(&answer(0, "a"));
        store.change(|state| state.counts.failed = 1);
        with_worker(&store, async |_| {
            let why =
                "request 1 counts as settled and has no record (damaged lines of the journal: 0); stop batchd and run \
                 `batchd rebuild`, then `batchd retry` asks for it again".to_owned();
            store.becomes(JobStatus::Held { why }).await;
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_job_is_never_held_since_it_could_be_sent_again() {
        let store = Arc::new(FakeStore::new(job(1)));
        with_worker(&store, async |folder| {
            tokio::time::sleep(Duration::from_mins(1)).await;
            fs::write(folder.join("summary.json"), "theirs").unwrap();
            store.change(|state| state.status = JobStatus::Cancelling);
            tokio::time::sleep(Duration::from_mins(1)).await;
            assert_eq!(store.state().status, JobStatus::Cancelling);
            fs::remove_file(folder.join("summary.json")).unwrap();
            store.becomes(JobStatus::Cancelled).await;
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_whose_folder_is_another_jobs_is_held_before_it_pays() {
        let store = Arc::new(FakeStore::new(job(1)));
        let second = JobId::from_bytes([2; 16]);
        with_worker(&store, async |folder| {
            store.append(&answer(0, "a"));
            store.becomes(JobStatus::Completed).await;
            let theirs = fs::read(folder.join("summary.json")).unwrap();
            store.add(Job { id: second, ..job(1) });
            tokio::time::sleep(Duration::from_mins(1)).await;
            let status = store.state_of(second).status;
            assert!(matches!(status, JobStatus::Held { why } if why.contains("belongs to job")));
            assert_eq!(fs::read(folder.join("summary.json")).unwrap(), theirs);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn results_that_cannot_be_written_are_tried_again() {
        let store = Arc::new(FakeStore::new(job(1)));
        with_worker(&store, async |folder| {
            fs::create_dir_all(folder.join("output.jsonl")).unwrap();
            store.append(&answer(0, "a"));
            store.becomes(JobStatus::Finalizing).await;
            tokio::time::sleep(Duration::from_mins(5)).await;
            assert_eq!(store.state().status, JobStatus::Finalizing);
            fs::remove_dir(folder.join("output.jsonl")).unwrap();
            store.becomes(JobStatus::Completed).await;
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_journal_shows_while_the_job_runs() {
        let root = tempfile::tempdir().unwrap();
        let store = FakeStore::new(job(2)).in_folder(root.path().join("state"));
        let store = Arc::new(store);
        with_worker(&store, async |folder| {
            store.append(&answer(1, "a"));
            tokio::time::sleep(Duration::from_mins(1)).await;
            let partial = folder.join("output.partial.jsonl");
            assert_eq!(fs::read(&partial).unwrap(), answer(1, "a").to_journal_line(1));
            store.append(&answer(0, "a"));
            store.becomes(JobStatus::Completed).await;
            assert!(!partial.exists());
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopped_worker_leaves_the_rest_to_the_next_one() {
        let store = Arc::new(FakeStore::new(job(1)));
        with_worker(&store, async |_| {}).await;
        store.append(&answer(0, "a"));
        with_worker(&store, async |_| store.becomes(JobStatus::Completed).await).await;
    }

    #[tokio::test(start_paused = true)]
    async fn images_are_fetched_while_the_job_runs() {
        let store = Arc::new(FakeStore::new(job(2)));
        store.change(|state| state.job.kind = Kind::Images);
        with_worker(&store, async |folder| {
            store.append(&record(1, 200, "{\"data\":[{\"url\":\"http://x\"}]}"));
            tokio::time::sleep(Duration::from_mins(1)).await;
            assert_eq!(fs::read(folder.join("images/line-2-1.gif")).unwrap(), b"GIF89a");
            assert_eq!(store.state().status, JobStatus::InProgress);
            store.append(&record(0, 200, "{\"data\":[{\"url\":\"http://x\"}]}"));
            store.becomes(JobStatus::Completed).await;
            let images = summary(&folder).images.unwrap();
            assert_eq!((images.written, images.failed_downloads), (2, 0));
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn images_of_a_provider_that_is_gone_do_not_keep_a_job_from_ending() {
        let store = Arc::new(FakeStore::new(job(1)));
        store.change(|state| {
            state.job.kind = Kind::Images;
            state.job.queues = vec![QueueName::new("gone", None)];
        });
        with_worker(&store, async |folder| {
            store.append(&record(0, 200, "{\"data\":[{\"url\":\"http://x\"}]}"));
            store.becomes(JobStatus::Completed).await;
            assert_eq!(summary(&folder).images.unwrap().failed_downloads, 1);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_cannot_be_published_keeps_no_other_from_it() {
        let other = JobId::from_bytes([2; 16]);
        let store = Arc::new(FakeStore::new(job(1)));
        store.add(Job { id: other, name: "other".parse().unwrap(), ..job(1) });
        with_worker(&store, async |folder| {
            fs::create_dir_all(folder.join("output.jsonl")).unwrap();
            store.append(&answer(0, "a"));
            store.becomes(JobStatus::Finalizing).await;
            store.append(&Record { request: RequestId { job: other, index: 0 }, ..answer(0, "a") });
            store.job_becomes(other, JobStatus::Completed).await;
            assert_eq!(store.state().status, JobStatus::Finalizing);
            assert!(folder.with_file_name("other").join("summary.json").exists());
        })
        .await;
    }

    fn fine_tune() -> FakeStore {
        let plan = FineTune {
            custom_id: "support".to_owned(),
            api: TuningApi::Jobs,
            training: TuningData::Uploaded { id: "file-t".to_owned() },
            validation: None,
            body: serde_json::Map::new(),
            delete_uploads: false,
        };
        FakeStore::new(job(1)).with_plan(&plan)
    }

    #[tokio::test(start_paused = true)]
    async fn a_fine_tune_is_published_with_its_events_its_files_and_its_model() {
        let store = Arc::new(fine_tune());
        let files = BTreeMap::from([("file-1", ("metrics.csv", b"step\n".to_vec()))]);
        let shelf = Shelf { events: Some(vec!["{}"]), files, ..Shelf::default() };
        with_provider(&store, Arc::new(shelf), async |folder| {
            tokio::time::sleep(Duration::from_mins(5)).await;
            store.append(&record(
                0,
                200,
                r#"{"id":"ftjob-1","status":"succeeded","fine_tuned_model":"ft:m","result_files":["file-1"],
                    "usage":{"prompt_tokens":7}}"#,
            ));
            store.becomes(JobStatus::Completed).await;
            let summary = summary(&folder);
            assert_eq!(summary.tuning.fine_tuned_model.as_deref(), Some("ft:m"));
            assert_eq!((summary.counts.completed, summary.tokens.total, summary.cost_usd), (1, 0, None));
            assert_eq!(summary.files, ["output.jsonl", "events.jsonl", "metrics.csv"]);
            assert_eq!(fs::read(folder.join("metrics.csv")).unwrap(), b"step\n");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_fine_tune_has_ended_once_it_is_cancelled_at_the_provider() {
        for (status, end) in
            [(JobStatus::Cancelling, JobStatus::Cancelled), (JobStatus::Expiring, JobStatus::Expired)]
        {
            let store = Arc::new(fine_tune());
            store.change(|state| state.status = status);
            with_worker(&store, async |folder| {
                tokio::time::sleep(Duration::from_mins(5)).await;
                assert!(!folder.join("summary.json").exists());
                let error = RecordError { code: "cancelled".to_owned(), message: "it was".to_owned() };
                let object = record(0, 200, r#"{"id":"ftjob-1","status":"cancelled"}"#);
                store.append(&Record { error: Some(error), ..object });
                store.becomes(end.clone()).await;
                let summary = summary(&folder);
                assert_eq!((summary.counts.failed, summary.tuning.reason.as_deref()), (1, Some("it was")));
                let errors = fs::read_to_string(folder.join("errors.jsonl")).unwrap();
                assert!(errors.contains(r#""status_code":200"#) && errors.contains(r#""code":"cancelled""#));
            })
            .await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_download_of_a_fine_tune_keeps_no_other_job_from_its_end() {
        let other = JobId::from_bytes([2; 16]);
        let store = Arc::new(fine_tune());
        store.add(Job { id: other, name: "other".parse().unwrap(), ..job(1) });
        let shelf = Shelf { is_slow: true, events: Some(vec!["{}"]), ..Shelf::default() };
        with_provider(&store, Arc::new(shelf), async |folder| {
            store.append(&record(0, 200, r#"{"id":"ftjob-1","status":"succeeded"}"#));
            tokio::time::sleep(Duration::from_secs(1)).await;
            store.append(&Record { request: RequestId { job: other, index: 0 }, ..answer(0, "a") });
            store.job_becomes(other, JobStatus::Completed).await;
            assert_eq!(store.state().status, JobStatus::InProgress);
            assert!(!folder.join("summary.json").exists());
            store.becomes(JobStatus::Completed).await;
        })
        .await;
    }
}
