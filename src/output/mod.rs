//! Output: from a job's journal to the files that its user reads.
//!
//! [`Output::run`] is one worker for all jobs. It makes each job's folder below `results/` and shows the
//! journal there while the job runs, fetches images as soon as answers name them, what a fine-tune leaves once that
//! has ended ([`tuning`]), and publishes a job once it has ended ([`finish`]): all its requests are settled, or it is
//! being cancelled or expires and nothing of it is in flight any more.
//!
//! # Invariants
//!
//! - Nothing is remembered between two starts: what is left to do is read off the store and the folders,
//!   and every step may be done again.
//! - A cancelled or expiring job keeps that status until its results lie there, so that a crash can't
//!   turn it into a completed one. Any other is finalizing from when its lines are written to when they
//!   have their names: only before that can it still be held.
//! - A job that can't be published is held with the reason; one whose files can't be written now is tried
//!   again. Neither keeps the other jobs from being published.

mod artefacts;
mod download;
mod finish;
mod folder;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod home;
mod images;
mod input;
mod journal;
mod summary;
mod target;
mod tuning;
mod worker;

#[cfg(test)]
mod fake;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error as ThisError;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::clock::Clock;
use crate::domain::{Job, JobState, JobStatus};
use crate::fault;
use crate::metrics::{Metrics, Settled};
use crate::pulse::{Member, Roll};
use crate::store::folder::JobFolder;
use crate::store::{self, Store};

pub use artefacts::{Artefacts, Unavailable};
pub use download::{Download, DownloadFailed};
pub use summary::{ImageCounts, LineCounts, Summary, Tokens, TuningSummary};

use download::{Downloads, Follower};
use finish::{Publication, end_of};
use folder::ResultsFolder;
use home::Home;
use images::Gallery;
use input::Input;
use tuning::{Gathered, Gatherer};

/// Fine-tunes of which something is fetched at once.
const GATHERINGS: usize = 4;

/// What may be set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `<root>/results`
    pub results: PathBuf,
    /// Two looks at the jobs are at least this far apart, however fast requests are settled; so long may a
    /// job that has ended, or an image, wait.
    pub look_every: Duration,
    /// How long to wait after results could not be written.
    pub retry_every: Duration,
    /// Largest image that is downloaded, in bytes.
    pub image_bytes_max: u64,
    /// Largest result file of a fine-tune that is fetched, in bytes.
    pub artefact_bytes_max: u64,
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
            artefact_bytes_max: 512 << 20,
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
    /// A person must look at it; the job is held, or tried again where it is too late for that.
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
    home: Arc<Home>,
    store: Arc<dyn Store>,
    downloads: Arc<Downloads>,
    artefacts: Arc<BTreeMap<String, Arc<dyn Artefacts>>>,
    gathering: Arc<Semaphore>,
    clock: Clock,
    metrics: Metrics,
    roll: Roll,
}

impl Output {
    /// By the name of the provider, `downloads` fetch the images that answers name by url, and `artefacts` what
    /// fine-tunes leave.
    pub fn new(
        settings: Settings,
        store: Arc<dyn Store>,
        downloads: BTreeMap<String, Arc<dyn Download>>,
        artefacts: BTreeMap<String, Arc<dyn Artefacts>>,
        clock: Clock,
    ) -> Self {
        let downloads = Arc::new(Downloads::new(downloads, settings.image_bytes_max));
        let home = Arc::new(Home::new(settings.results.clone()));
        let (settings, artefacts) = (Arc::new(settings), Arc::new(artefacts));
        let gathering = Arc::new(Semaphore::new(GATHERINGS));
        let (metrics, roll) = (Metrics::default(), Roll::default());
        Self { parts: Parts { settings, home, store, downloads, artefacts, gathering, clock, metrics, roll } }
    }

    /// Counts there how jobs end.
    #[must_use]
    pub fn with_metrics(mut self, metrics: Metrics) -> Self {
        self.parts.metrics = metrics;
        self
    }

    /// With a roll whose calls the worker answers.
    #[must_use]
    pub fn with_roll(self, roll: Roll) -> Self {
        Self { parts: Parts { roll, ..self.parts } }
    }

    /// Works until `stop`; what is then half done is done at the next start. Ends early only if the store fails.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        worker::run(self.parts, stop).await
    }
}

/// The steps of one job. Each may be done again at any time.
impl Parts {
    fn folder(&self, state: &JobState) -> ResultsFolder {
        ResultsFolder::new(&self.settings.results, &state.job.name)
    }

    fn input(&self, job: Job, stop: &CancellationToken) -> Input {
        Input::new(job, self.store.clone(), stop.clone()).with_roll(self.roll.clone())
    }

    async fn check_home(&self) -> Result<(), Error> {
        let home = Arc::clone(&self.home);
        blocking(self.roll.join_at_work("the folder of all results"), move |_| home.check()).await
    }

    /// Makes the job's results folder. Says whether the partial file is there, too, or can't be: the
    /// journal may come later.
    async fn open(&self, state: &JobState) -> Result<bool, Error> {
        self.check_home().await?;
        let folder = self.folder(state);
        let id = state.job.id;
        let journal = self.store.folder(id).map(|at| JobFolder::at(at).journal());
        // Waited for in the worker's loop, which answers for it.
        blocking(Member::default(), move |_| {
            folder.create(id)?;
            journal.map_or(Ok(true), |journal| folder.link(&journal))
        })
        .await
    }

    /// Makes files of the images that were answered since `offset` of the journal. Returns how far it came.
    async fn follow(&self, state: JobState, offset: u64, stop: &CancellationToken) -> Result<u64, Error> {
        self.check_home().await?;
        let follower = Follower {
            gallery: Gallery::new(&self.folder(&state)),
            input: self.input(state.job, stop),
            downloads: self.downloads.clone(),
        };
        stop.run_until_cancelled(follower.follow(offset)).await.unwrap_or(Err(Error::Interrupted))
    }

    /// Fetches what a fine-tune that has ended left at its provider.
    async fn gather(&self, state: JobState, stop: &CancellationToken) -> Result<Gathered, Error> {
        self.check_home().await?;
        let folder = self.folder(&state);
        let provider = state.job.queues.first().and_then(|queue| self.artefacts.get(queue.provider()));
        let gatherer = Gatherer {
            provider: provider.cloned(),
            folder,
            file_bytes_max: self.settings.artefact_bytes_max,
            input: self.input(state.job, stop),
        };
        let gathered = async {
            let _turn = self.gathering.acquire().await.expect("the semaphore is never closed");
            gatherer.gather().await
        };
        stop.run_until_cancelled(gathered).await.unwrap_or(Err(Error::Interrupted))
    }

    /// Writes the results of a job that has ended, and ends it. `gathered` is a fine-tune's.
    async fn publish(
        &self,
        state: JobState,
        gathered: Gathered,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        self.check_home().await?;
        let now = self.clock.now();
        let (id, end) = (state.job.id, end_of(&state.status));
        let publication = Publication {
            folder: self.folder(&state),
            input: self.input(state.job.clone(), stop),
            state,
            gathered,
            pass: self.settings.pass,
            now,
        };
        let member = publication.input.at_work();
        let prepared = blocking(member, move |member| publication.prepare(member)).await?;
        fault::point("output-prepared");
        if end == JobStatus::Completed {
            self.store.set_status(id, JobStatus::Finalizing, now).await.map_err(Error::Store)?;
        }
        let unanswered = prepared.unanswered();
        let member = prepared.input().at_work();
        let summary = blocking(member, move |member| prepared.finish(member)).await?;
        self.store.set_status(id, end.clone(), now).await.map_err(Error::Store)?;
        fault::point("output-status-set");
        self.count(&end, unanswered);
        let Summary { name, status, counts, .. } = summary;
        info!(job = %id, name, status, completed = counts.completed, failed = counts.failed, "results are published");
        Ok(())
    }
}

impl Parts {
    /// Counts a job that has ended, and its requests that got their line only now.
    fn count(&self, end: &JobStatus, unanswered: u32) {
        self.metrics.job_ended(end);
        match end {
            JobStatus::Cancelled => self.metrics.settled(Settled::Cancelled, unanswered),
            JobStatus::Expired => self.metrics.settled(Settled::Expired, unanswered),
            // Each was counted when it was settled.
            JobStatus::Completed
            | JobStatus::Failed { .. }
            | JobStatus::InProgress
            | JobStatus::Paused { .. }
            | JobStatus::Held { .. }
            | JobStatus::Cancelling
            | JobStatus::Expiring
            | JobStatus::Finalizing => {}
        }
    }
}

/// Runs file work where it may block. It has `member` on the roll while it lasts, who is to answer as it comes on.
async fn blocking<T: Send + 'static>(
    member: Member,
    work: impl FnOnce(&Arc<Member>) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let member = Arc::new(member);
    match tokio::task::spawn_blocking(move || work(&member)).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is shutting down.
        Err(_) => Err(Error::Interrupted),
    }
}
