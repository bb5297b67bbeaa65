//! Output: from a job's journal to the files that its user reads.
//!
//! [`Output::run`] is one worker for all jobs. It makes each job's folder below `results/` and shows the
//! journal there while the job runs, fetches images as soon as answers name them, and publishes a job
//! once it has ended ([`finish`]): all its requests are settled, or it is being cancelled or expires and
//! nothing of it is in flight any more.
//!
//! # Invariants
//!
//! - Nothing is remembered between two starts: what is left to do is read off the store and the folders,
//!   and every step may be done again.
//! - A cancelled or expiring job keeps that status until its results lie there, so that a crash can't
//!   turn it into a completed one.
//! - A job that can't be published is held with the reason; one whose files can't be written now is tried
//!   again. Neither keeps the other jobs from being published.

mod download;
mod finish;
mod folder;
mod images;
mod input;
mod journal;
mod summary;

#[cfg(test)]
mod fake;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error as ThisError;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::clock::Clock;
use crate::domain::{JobId, JobState, JobStatus};
use crate::store::folder::JobFolder;
use crate::store::{self, Store};

pub use download::{Download, DownloadFailed};
pub use summary::{ImageCounts, LineCounts, Summary, Tokens};

use download::Follower;
use finish::{Publication, end_of};
use folder::ResultsFolder;
use images::Gallery;
use input::Input;

/// Jobs whose images are fetched at once; further ones wait, and are not published before.
const FOLLOWED_MAX: usize = 8;

/// What may be set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `<root>/results`
    pub results: PathBuf,
    /// Two looks at the jobs are at least this far apart, however fast requests are settled.
    pub look_every: Duration,
    /// How long to wait after results could not be written.
    pub retry_every: Duration,
    /// Largest image that is downloaded, in bytes.
    pub image_bytes_max: u64,
    /// Requests of one pass over a journal: 8 bytes of memory each.
    pub pass: u32,
}

impl Settings {
    /// The defaults, for results below `results`.
    pub const fn new(results: PathBuf) -> Self {
        Self {
            results,
            look_every: Duration::from_millis(100),
            retry_every: Duration::from_secs(10),
            image_bytes_max: 64 << 20,
            pass: 1 << 20,
        }
    }
}

/// Why results were not written. A kind per reaction.
#[derive(Debug, ThisError)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Store(store::Error),
    /// A file of results can't be read or written now; it is tried again.
    #[error(transparent)]
    Files(store::Error),
    /// A person must look at it; the job is held.
    #[error("{0}")]
    Unpublishable(String),
    /// The worker is being stopped.
    #[error("stopped before the results were written")]
    Interrupted,
}

/// The worker that writes results.
#[derive(Debug)]
pub struct Output {
    parts: Parts,
}

/// What every step needs. Cheap to clone.
#[derive(Clone, Debug)]
struct Parts {
    settings: Arc<Settings>,
    store: Arc<dyn Store>,
    downloads: Arc<BTreeMap<String, Arc<dyn Download>>>,
    clock: Clock,
}

impl Output {
    /// `downloads` fetch the images that answers name by url, by the name of the provider.
    pub fn new(
        settings: Settings,
        store: Arc<dyn Store>,
        downloads: BTreeMap<String, Arc<dyn Download>>,
        clock: Clock,
    ) -> Self {
        let parts = Parts { settings: Arc::new(settings), store, downloads: Arc::new(downloads), clock };
        Self { parts }
    }

    /// Works until `stop`; what is then half done is done at the next start. Ends early only if the store fails.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let changes = self.parts.store.changes();
        let worker = Worker {
            parts: self.parts,
            stop,
            jobs: BTreeMap::new(),
            steps: JoinSet::new(),
            followed: 0,
            is_publishing: false,
        };
        worker.run(changes).await
    }
}

/// Where the worker stands with a job that is not final.
#[derive(Debug, Default)]
struct Progress {
    /// The folder is there, and the partial file where there can be one.
    is_open: bool,
    /// A step of it runs.
    is_busy: bool,
    /// After a failure.
    not_before: Option<Instant>,
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
    Published { result: Result<(), Error> },
}

#[derive(Debug)]
struct Worker {
    parts: Parts,
    stop: CancellationToken,
    jobs: BTreeMap<JobId, Progress>,
    /// At most one of each job, [`FOLLOWED_MAX`] that follow and one that publishes.
    steps: JoinSet<Ended>,
    followed: usize,
    is_publishing: bool,
}

impl Worker {
    async fn run(mut self, mut changes: watch::Receiver<u64>) -> Result<(), Error> {
        let stop = self.stop.clone();
        loop {
            // Before the look, so that what changes during it makes another.
            changes.mark_unchanged();
            self.look().await?;
            let next_look = Instant::now() + self.parts.settings.look_every;
            let retry_at = self.jobs.values().filter_map(|progress| progress.not_before).min();
            // A stop goes first; steps that ended free what the next look hands out.
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = self.steps.join_next() => self.on_ended(ended).await?,
                () = wake(&mut changes, next_look, retry_at) => {}
            }
        }
        // They see the stop, too, and end within a record or a download's next await.
        while self.steps.join_next().await.is_some() {}
        Ok(())
    }

    /// Starts what can be started, in the order of acceptance.
    async fn look(&mut self) -> Result<(), Error> {
        let mut states = self.parts.store.jobs().await.map_err(Error::Store)?;
        states.retain(|state| !state.status.is_final());
        let mut before = std::mem::take(&mut self.jobs);
        for state in &states {
            self.jobs.insert(state.job.id, before.remove(&state.job.id).unwrap_or_default());
        }
        for state in states {
            let id = state.job.id;
            if let Err(error) = self.advance(state).await {
                self.on_error(id, error).await?;
            }
        }
        Ok(())
    }

    /// Starts the next step of one job, if there is one.
    async fn advance(&mut self, state: JobState) -> Result<(), Error> {
        let now = Instant::now();
        let Some(progress) = self.jobs.get_mut(&state.job.id) else { return Ok(()) };
        let must_wait = progress.not_before.is_some_and(|until| now < until);
        if progress.is_busy || must_wait || matches!(state.status, JobStatus::Held { .. }) {
            return Ok(());
        }
        progress.not_before = None;
        if !progress.is_open {
            progress.is_open = self.parts.open(&state).await?;
        }
        let settled = state.counts.settled();
        if Input::may_ask_for_images(&state.job) && progress.searched < settled {
            if self.followed < FOLLOWED_MAX {
                progress.is_busy = true;
                self.followed += 1;
                let follow = self.parts.clone().follow(state, progress.offset, self.stop.clone());
                self.steps.spawn(follow);
            }
        } else if has_ended(&state) && !self.is_publishing {
            progress.is_busy = true;
            self.is_publishing = true;
            self.steps.spawn(self.parts.clone().publish(state, self.stop.clone()));
        }
        Ok(())
    }

    async fn on_ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) -> Result<(), Error> {
        let Ended { job, step } = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        let progress = self.jobs.entry(job).or_default();
        progress.is_busy = false;
        let result = match step {
            Step::Followed { settled, result } => {
                self.followed -= 1;
                result.map(|offset| {
                    progress.offset = offset;
                    progress.searched = settled;
                })
            }
            Step::Published { result } => {
                self.is_publishing = false;
                result
            }
        };
        match result {
            Ok(()) => Ok(()),
            Err(error) => self.on_error(job, error).await,
        }
    }

    /// Holds the job, or tries it again later. Only a store that fails ends the worker.
    async fn on_error(&mut self, job: JobId, error: Error) -> Result<(), Error> {
        let why = match error {
            Error::Interrupted => return Ok(()),
            Error::Store(store::Error::NoSuchJob(_)) => {
                self.jobs.remove(&job);
                return Ok(());
            }
            Error::Store(error @ (store::Error::Transition { .. } | store::Error::Stale(_))) => {
                // Somebody changed the job meanwhile: look again.
                debug!(%job, %error, "the job moved on while its results were written");
                self.try_later(job);
                return Ok(());
            }
            Error::Files(error) => {
                error!(%job, %error, "results can't be written; trying again");
                self.try_later(job);
                return Ok(());
            }
            Error::Store(error @ store::Error::Damaged { .. }) => error.to_string(),
            Error::Unpublishable(why) => why,
            Error::Store(error @ (store::Error::Io { .. } | store::Error::Closed(_))) => {
                return Err(Error::Store(error));
            }
        };
        error!(%job, why, "results can't be published; the job is held");
        let held = JobStatus::Held { why };
        match self.parts.store.set_status(job, held, self.parts.clock.now()).await {
            Ok(_) => Ok(()),
            Err(error @ (store::Error::Io { .. } | store::Error::Closed(_))) => Err(Error::Store(error)),
            Err(error) => {
                warn!(%job, %error, "the job can't be held");
                self.try_later(job);
                Ok(())
            }
        }
    }

    fn try_later(&mut self, job: JobId) {
        let until = Instant::now() + self.parts.settings.retry_every;
        self.jobs.entry(job).or_default().not_before = Some(until);
    }
}

/// Whether nothing of the job will be settled any more.
const fn has_ended(state: &JobState) -> bool {
    match state.status {
        JobStatus::Cancelling | JobStatus::Expiring => state.leased == 0,
        JobStatus::Held { .. }
        | JobStatus::Completed
        | JobStatus::Failed { .. }
        | JobStatus::Cancelled
        | JobStatus::Expired => false,
        JobStatus::InProgress | JobStatus::Paused { .. } | JobStatus::Finalizing => state.counts.open() == 0,
    }
}

/// Returns when something has changed, or a job that failed is due; not before `next_look`.
async fn wake(changes: &mut watch::Receiver<u64>, next_look: Instant, retry_at: Option<Instant>) {
    let changed = async {
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    match retry_at {
        // A time-out is as good as a change.
        Some(at) => drop(tokio::time::timeout_at(at, changed).await),
        None => changed.await,
    }
    tokio::time::sleep_until(next_look).await;
}

impl Parts {
    fn folder(&self, state: &JobState) -> ResultsFolder {
        ResultsFolder::new(&self.settings.results, &state.job.name)
    }

    /// Makes the job's results folder. Says whether all of it is there: the journal may come later.
    async fn open(&self, state: &JobState) -> Result<bool, Error> {
        let folder = self.folder(state);
        let id = state.job.id;
        let journal = self.store.folder(id).map(|at| JobFolder::at(at).journal());
        blocking(move || {
            folder.create(id)?;
            let must_come_back = journal.map_or(Ok(false), |journal| folder.link(&journal))?;
            Ok(!must_come_back)
        })
        .await
    }

    /// Makes files of the images that were answered since `offset`.
    async fn follow(self, state: JobState, offset: u64, stop: CancellationToken) -> Ended {
        let (job, settled) = (state.job.id, state.counts.settled());
        let follower = Follower {
            gallery: Gallery::new(&self.folder(&state)),
            input: Input::new(state.job, self.store),
            downloads: self.downloads,
            image_bytes_max: self.settings.image_bytes_max,
        };
        let result = stop.run_until_cancelled(follower.follow(offset)).await;
        Ended { job, step: Step::Followed { settled, result: result.unwrap_or(Err(Error::Interrupted)) } }
    }

    async fn publish(self, state: JobState, stop: CancellationToken) -> Ended {
        Ended { job: state.job.id, step: Step::Published { result: self.try_publish(state, stop).await } }
    }

    async fn try_publish(self, mut state: JobState, stop: CancellationToken) -> Result<(), Error> {
        let now = self.clock.now();
        let (id, end) = (state.job.id, end_of(&state.status));
        if end == JobStatus::Completed && state.status != JobStatus::Finalizing {
            state = self.store.set_status(id, JobStatus::Finalizing, now).await.map_err(Error::Store)?;
        }
        let publication = Publication {
            folder: self.folder(&state),
            input: Input::new(state.job.clone(), self.store.clone()),
            state,
            pass: self.settings.pass,
            now,
            stop,
        };
        let summary = blocking(move || publication.run()).await?;
        self.store.set_status(id, end, now).await.map_err(Error::Store)?;
        let Summary { name, status, counts, .. } = summary;
        info!(job = %id, name, status, completed = counts.completed, failed = counts.failed, "results are published");
        Ok(())
    }
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is shutting down.
        Err(_) => Err(Error::Interrupted),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::domain::{Kind, PauseReason};
    use crate::output::fake::{ACCEPTED, FakeStore, JOB, answer, job, record};

    /// Runs the worker over `store` while `script` runs; results lie below the path that it gets.
    async fn with_worker<F: Future<Output = ()>>(store: &Arc<FakeStore>, script: impl FnOnce(PathBuf) -> F) {
        let root = tempfile::tempdir().unwrap();
        let results = root.path().join("results");
        let output = Output::new(
            Settings::new(results.clone()),
            Arc::clone(store) as Arc<dyn Store>,
            BTreeMap::new(),
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
            let why = "request 1 counts as settled and has no record in the journal".to_owned();
            store.becomes(JobStatus::Held { why }).await;
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
    async fn images_of_a_provider_that_is_gone_do_not_keep_a_job_from_ending() {
        let store = Arc::new(FakeStore::new(job(1)));
        store.change(|state| state.job.kind = Kind::Images);
        with_worker(&store, async |folder| {
            store.append(&record(0, 200, "{\"data\":[{\"url\":\"http://x\"}]}"));
            store.becomes(JobStatus::Completed).await;
            assert_eq!(summary(&folder).images.unwrap().failed_downloads, 1);
        })
        .await;
        assert_eq!(store.state().job.id, JOB);
    }
}
