//! Commands and status reports: what stands between the outside (HTTP, CLI) and the workers.
//!
//! A command is answered when its effect is durable (P6). Pauses that a provider caused are no state
//! of a job but of a queue: dispatchers write them on the [`Board`], reports read them there.

mod again;
mod board;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::runtime::Handle;

use self::again::Dropped;
pub use self::board::{Board, QueuePause};
use crate::clock::Clock;
use crate::domain::tuning::{Progress, Thing};
use crate::domain::{
    Counts, FineTune, Job, JobId, JobName, JobState, JobStatus, Kind, PauseReason, QueueName, RequestId,
    Timestamp, TunedModel,
};
use crate::store::{self, Hold, Store};

/// What a queue is held for less is not worth a word.
const HOLD_SHOWN_MIN: Duration = Duration::from_secs(1);

/// One job, as `list --json` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobReport {
    pub name: String,
    pub id: JobId,
    pub kind: String,
    pub status: String,
    /// Of a paused, held or failed job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the provider calls a fine-tune. Only one job by itself shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// More words about `reason`, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    pub counts: Counts,
    /// Sent, and not answered or not written down yet.
    #[serde(default)]
    pub in_flight: u32,
    /// Those in flight, and a few more that are next.
    pub leased: u32,
    /// Waiting for their next attempt.
    pub waiting: u32,
    pub priority: u8,
    pub queues: Vec<QueueName>,
    pub spec_file: String,
    /// Of a run: the name of its schedule's file or folder in the jobs folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// RFC 3339. The time of the schedule that the run was made for; none if a person asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<String>,
    /// RFC 3339.
    pub accepted_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
}

impl JobReport {
    /// The report on a job that no running daemon has.
    pub fn of(state: &JobState) -> Self {
        report(state, state.leased, &Standing::default())
    }
}

/// Why a command was not carried out.
#[derive(Debug, Error)]
pub enum Error {
    #[error("no job is called `{0}`")]
    NoSuchJob(String),
    #[error("job `{name}` is {status}: it can't be {verb}")]
    WrongStatus { name: String, status: &'static str, verb: &'static str },
    #[error("job `{name}` is held: it can't be {verb}; `batchd show {name}` says why, and what to do")]
    Held { name: String, verb: &'static str },
    /// `awaited` says for what, in words.
    #[error(
        "job `{name}` waits for {awaited}: it can't be {verb}, and goes on by itself; it can be cancelled"
    )]
    Waits { name: String, awaited: String, verb: &'static str },
    /// Once more would pay twice.
    #[error(
        "the failed requests of `{name}` are asked again already, by `{by}`: retry that one if some fail there"
    )]
    AskedBefore { name: String, by: String },
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Where a user's files lie.
#[derive(Clone, Debug)]
pub struct Folders {
    /// The watched folder.
    pub jobs: PathBuf,
    pub results: PathBuf,
}

/// The commands. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Control {
    store: Arc<dyn Store>,
    board: Board,
    clock: Clock,
    folders: Folders,
    /// Held while failed requests are dropped into the watched folder.
    again: Arc<tokio::sync::Mutex<()>>,
}

impl Control {
    pub fn new(store: Arc<dyn Store>, board: Board, clock: Clock, folders: Folders) -> Self {
        Self { store, board, clock, folders, again: Arc::default() }
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Every job, in the order of acceptance.
    pub async fn list(&self) -> Result<Vec<JobReport>, Error> {
        let standing = self.standing();
        Ok(self.store.jobs().await?.iter().map(|job| report(job, self.in_flight(job), &standing)).collect())
    }

    /// One job, by its name or id.
    pub async fn show(&self, job: &str) -> Result<JobReport, Error> {
        let state = self.find(job).await?;
        let remote = if state.job.kind == Kind::FineTune { self.remote(state.job.id).await } else { None };
        Ok(JobReport { remote, ..self.report(&state) })
    }

    /// The id of a fine-tune at its provider, as far as it is known. What can't be read is told elsewhere.
    async fn remote(&self, job: JobId) -> Option<String> {
        let request = RequestId { job, index: 0 };
        let plan: FineTune = serde_json::from_slice(&self.store.line(request).await.ok()?.bytes).ok()?;
        let progress = Progress::read(&self.store.memo(request).await.ok()??, &plan)?;
        progress.id_of(Thing::Job).map(str::to_owned)
    }

    /// Nothing more is sent; what is in flight may finish; the rest ends as `cancelled`.
    pub async fn cancel(&self, job: &str) -> Result<JobReport, Error> {
        let cancellable = |status: &JobStatus| {
            matches!(status, JobStatus::InProgress | JobStatus::Paused { .. } | JobStatus::Held { .. })
        };
        self.change(job, "cancelled", JobStatus::Cancelling, cancellable).await
    }

    /// Nothing more is sent until [`Control::resume`].
    pub async fn pause(&self, job: &str) -> Result<JobReport, Error> {
        let paused = JobStatus::Paused { reason: PauseReason::User };
        self.change(job, "paused", paused, |status| *status == JobStatus::InProgress).await
    }

    /// Ends a pause, a person's or a provider's.
    pub async fn resume(&self, job: &str) -> Result<JobReport, Error> {
        let resumable = |status: &JobStatus| {
            matches!(status, JobStatus::Paused { .. } | JobStatus::InProgress) && !status.is_waiting()
        };
        let resumed = self.change(job, "resumed", JobStatus::InProgress, resumable).await?;
        self.board.resume();
        self.show(&resumed.id.to_string()).await
    }

    /// Tries again at once: waiting requests fall due, pauses end, a held job goes on. The failed requests of a
    /// job that has ended are dropped into the jobs folder as a new job.
    pub async fn retry(&self, job: &str) -> Result<JobReport, Error> {
        let hold = self.store.hold();
        let state = self.find(job).await?;
        if state.status.is_final() && state.counts.failed > 0 {
            let mut report = self.report(&state);
            let by = self.ask_again(state, hold).await?;
            report.message = Some(format!("its failed requests are asked again by `{by}`"));
            return Ok(report);
        }
        let may_retry = |status: &JobStatus| {
            let is_open =
                matches!(status, JobStatus::Paused { .. } | JobStatus::InProgress | JobStatus::Held { .. });
            is_open && !status.is_waiting()
        };
        let retried = self.change(job, "retried", JobStatus::InProgress, may_retry).await?;
        self.store.retry_now(retried.id).await?;
        self.board.resume();
        self.show(&retried.id.to_string()).await
    }

    /// One at a time, and to its end even if whoever gave the command is gone: a half written folder must
    /// neither be dropped by another nor lie about.
    async fn ask_again(&self, state: JobState, hold: Hold) -> Result<JobName, Error> {
        let turn = Arc::clone(&self.again).lock_owned().await;
        let name = state.job.name.to_string();
        let (store, folders) = (Arc::clone(&self.store), self.folders.clone());
        let runtime = Handle::current();
        let dropped = tokio::task::spawn_blocking(move || {
            let dropped = runtime.block_on(again::drop_failed(&*store, &state, &folders));
            drop((turn, hold));
            dropped
        });
        match dropped.await.map_err(|error| store::Error::Closed(error.to_string()))?? {
            Dropped::As(job) => Ok(job),
            Dropped::Before(by) => Err(Error::AskedBefore { name, by }),
        }
    }

    /// Removes what a crash left of folders that were not dropped yet. At start, before commands are heard.
    pub fn remove_leftovers(&self) {
        if let Err(error) = again::remove_leftovers(&self.folders.jobs) {
            tracing::warn!(%error, "leftovers of an interrupted `retry` can't be removed");
        }
    }

    async fn change(
        &self,
        job: &str,
        verb: &'static str,
        to: JobStatus,
        allowed: impl FnOnce(&JobStatus) -> bool,
    ) -> Result<JobReport, Error> {
        let state = self.find(job).await?;
        if state.status == to {
            return Ok(self.report(&state));
        }
        let refused = |status| match (state.job.name.to_string(), status) {
            (name, "held") => Error::Held { name, verb },
            (name, _) if state.status.is_waiting() => Error::Waits { name, awaited: awaited(&state), verb },
            (name, status) => Error::WrongStatus { name, status, verb },
        };
        if !allowed(&state.status) {
            return Err(refused(state.status.as_str()));
        }
        let to = if to == JobStatus::InProgress { self.goes_on_as(&state).await? } else { to };
        match self.store.set_status(state.job.id, to, self.clock.now()).await {
            // It moved on meanwhile, or can't be read.
            Err(store::Error::Transition { from, .. }) => Err(refused(from)),
            changed => Ok(self.report(&changed?)),
        }
    }

    /// The status with which a job goes on: one that was held, or paused by a person, may have to wait first.
    async fn goes_on_as(&self, state: &JobState) -> Result<JobStatus, Error> {
        let jobs = self.store.jobs().await?;
        Ok(state.job.next_status(&jobs))
    }

    fn report(&self, state: &JobState) -> JobReport {
        report(state, self.in_flight(state), &self.standing())
    }

    fn in_flight(&self, state: &JobState) -> u32 {
        self.store.in_flight(state.job.id).unwrap_or(state.leased)
    }

    fn standing(&self) -> Standing {
        let now = self.clock.now();
        let mut holds = self.board.holds(now);
        holds.retain(|_, until| until.since(now) >= HOLD_SHOWN_MIN);
        Standing { pauses: self.board.pauses(), holds, shortage: self.store.shortage() }
    }

    /// By id, else the newest job of that name.
    async fn find(&self, job: &str) -> Result<JobState, Error> {
        let jobs = self.store.jobs().await?;
        let id = job.parse::<JobId>().ok();
        jobs.into_iter()
            .rev()
            .find(|state| Some(state.job.id) == id || state.job.name.as_str() == job)
            .ok_or_else(|| Error::NoSuchJob(job.to_owned()))
    }
}

/// What a job waits for, in words.
fn awaited(state: &JobState) -> String {
    if state.status == (JobStatus::Paused { reason: PauseReason::Overlap }) {
        return "the run of its schedule before it".to_owned();
    }
    let models = state.job.settings.models.iter();
    let made = models.filter(|(_, model)| matches!(model, TunedModel::Of(_)));
    let names: Vec<String> = made.map(|(name, _)| format!("`{name}`")).collect();
    match names.as_slice() {
        [name] => format!("the fine-tune {name}"),
        names => format!("the fine-tunes {}", names.join(", ")),
    }
}

/// What keeps jobs from being sent.
#[derive(Debug, Default)]
struct Standing {
    pauses: BTreeMap<QueueName, QueuePause>,
    holds: BTreeMap<QueueName, Timestamp>,
    shortage: Option<String>,
}

impl Standing {
    /// Why nothing of a running job is sent for the moment, though it is not paused.
    fn held(&self, job: &Job) -> Option<String> {
        let until: Option<Vec<_>> = job.queues.iter().map(|queue| self.holds.get(queue)).collect();
        let until = until?.into_iter().min()?;
        Some(format!("the provider asked to come later; nothing is sent before {until}"))
    }
}

/// A running job shows as paused while each of its queues with work is, or the disk has no room for any.
fn report(state: &JobState, in_flight: u32, standing: &Standing) -> JobReport {
    let job = &state.job;
    let Standing { pauses, shortage, .. } = standing;
    let runs = state.status == JobStatus::InProgress && state.counts.open() > 0;
    let stopped = runs && job.queues.iter().all(|queue| pauses.contains_key(queue));
    let stopped_by = job.queues.iter().find_map(|queue| pauses.get(queue)).filter(|_| stopped);
    let (status, reason, message) = match (&state.status, stopped_by) {
        (JobStatus::InProgress | JobStatus::Finalizing, _) if let Some(why) = shortage => {
            ("paused", Some(PauseReason::Disk.to_string()), Some(why.clone()))
        }
        (_, Some(pause)) => ("paused", Some(pause.reason.to_string()), Some(pause.message.clone())),
        (JobStatus::Paused { reason }, None) => {
            let message = state.status.is_waiting().then(|| format!("waits for {}", awaited(state)));
            ("paused", Some(reason.to_string()), message)
        }
        (status @ (JobStatus::Held { why } | JobStatus::Failed { why }), None) => {
            (status.as_str(), Some(why.clone()), None)
        }
        (status, None) => (status.as_str(), None, standing.held(job).filter(|_| runs)),
    };
    JobReport {
        name: job.name.to_string(),
        id: job.id,
        kind: job.kind.to_string(),
        status: status.to_owned(),
        reason,
        remote: None,
        message,
        counts: state.counts,
        in_flight,
        leased: state.leased,
        waiting: state.waiting,
        priority: job.settings.priority,
        queues: job.queues.clone(),
        spec_file: job.spec_file.clone(),
        schedule: job.run.as_ref().map(|run| run.spec.clone()),
        due: job.run.as_ref().and_then(|run| run.due).map(|due| due.to_string()),
        accepted_at: job.accepted_at.to_string(),
        finished_at: state.finished_at.map(|at| at.to_string()),
    }
}

#[cfg(test)]
impl Folders {
    pub(crate) fn below(root: impl AsRef<std::path::Path>) -> Self {
        Self { jobs: root.as_ref().join("jobs"), results: root.as_ref().join("results") }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use futures_util::future::{BoxFuture, FutureExt};

    use super::*;
    use crate::bell::Listener;
    use crate::clock;
    use crate::clock::Seed;
    use crate::domain::{Job, JobSettings, LineEntry, Run, Settlement, TuningApi, TuningData};
    use crate::store::conformance::answer;
    use crate::store::memory::MemoryStore;
    use crate::store::{Hold, Input, Journal, Lease, Leased, Line, QueueDepth, Result};

    /// What a store in memory answers, at once.
    fn done<T>(verb: BoxFuture<'_, Result<T>>) -> T {
        verb.now_or_never().expect("nothing is waited for in memory").unwrap()
    }

    /// A store in memory whose disk can be full, and which can hold a job that can't be read.
    #[derive(Debug, Default)]
    pub(crate) struct Jobs {
        memory: MemoryStore,
        unreadable: Mutex<Vec<JobId>>,
        shortage: Mutex<Option<String>>,
    }

    impl Jobs {
        /// A job of three requests. One is answered, one waits and one is in flight; of an ended job all are answered.
        pub(crate) fn add(&self, name: &str, status: JobStatus) -> JobId {
            self.add_with(name, status, JobSettings::default())
        }

        fn add_with(&self, name: &str, status: JobStatus, settings: JobSettings) -> JobId {
            let number = done(self.jobs()).len() as u64;
            let now = Timestamp::from_millis(1_000 * (number + 1));
            let id = clock::job_id(now, &mut Seed::fixed(number).derive("ids"));
            let queue = QueueName::new("openai", Some("m"));
            let job = Job {
                id,
                name: name.parse().unwrap(),
                kind: Kind::Chat,
                ending: None,
                spec_file: format!("{name}.toml"),
                accepted_at: now,
                total: 3,
                queues: vec![queue.clone()],
                content_hash: String::new(),
                settings,
                run: None,
            };
            done(self.put_job(job, Input::Inline(vec![(0, Bytes::from_static(b"{}")); 3])));
            let leases = done(self.lease(&queue, 3, now)).leases;
            let due = Timestamp::from_millis(u64::MAX);
            for lease in leases {
                let settlement = match lease.request.index {
                    1 if !status.is_final() => Settlement::Retry { due, attempts: 1, maybe_paid: false },
                    2 if !status.is_final() => continue,
                    _ => answer(&lease),
                };
                done(self.settle(lease, settlement));
            }
            done(self.set_status(id, status, now));
            id
        }

        /// A job that is held since its files can't be read: no command moves it.
        fn add_unreadable(&self, name: &str) {
            let id = self.add(name, held());
            self.unreadable.lock().unwrap().push(id);
        }

        pub(crate) fn close_now(&self) {
            done(self.close());
        }

        /// From now on the disk has no room, for this reason.
        pub(crate) fn fill(&self, why: &str) {
            *self.shortage.lock().unwrap() = Some(why.to_owned());
        }

        /// Whether a waiting request is due at once.
        fn is_due(&self, job: JobId) -> bool {
            let state = done(self.job(job));
            let queue = state.job.queues.first().unwrap();
            let leased = done(self.lease(queue, 1, Timestamp::default()));
            leased.leases.iter().any(|lease| lease.request.job == job)
        }
    }

    impl Store for Jobs {
        fn put_job(&self, job: Job, input: Input) -> BoxFuture<'_, Result<()>> {
            self.memory.put_job(job, input)
        }

        fn jobs(&self) -> BoxFuture<'_, Result<Vec<JobState>>> {
            self.memory.jobs()
        }

        fn job(&self, id: JobId) -> BoxFuture<'_, Result<JobState>> {
            self.memory.job(id)
        }

        fn queues(&self) -> BoxFuture<'_, Result<Vec<QueueDepth>>> {
            self.memory.queues()
        }

        fn lease<'a>(
            &'a self,
            queue: &'a QueueName,
            max: usize,
            now: Timestamp,
        ) -> BoxFuture<'a, Result<Leased>> {
            self.memory.lease(queue, max, now)
        }

        fn line(&self, request: RequestId) -> BoxFuture<'_, Result<Line>> {
            self.memory.line(request)
        }

        fn begin(&self, lease: &Lease) -> Result<()> {
            self.memory.begin(lease)
        }

        fn settle(&self, lease: Lease, settlement: Settlement) -> BoxFuture<'_, Result<()>> {
            self.memory.settle(lease, settlement)
        }

        fn write_memo(&self, request: RequestId, memo: Bytes) -> BoxFuture<'_, Result<()>> {
            self.memory.write_memo(request, memo)
        }

        fn memo(&self, request: RequestId) -> BoxFuture<'_, Result<Option<Bytes>>> {
            self.memory.memo(request)
        }

        fn set_status(
            &self,
            id: JobId,
            status: JobStatus,
            now: Timestamp,
        ) -> BoxFuture<'_, Result<JobState>> {
            if self.unreadable.lock().unwrap().contains(&id) {
                let refused = store::Error::Transition { job: id, from: "held", to: status.as_str() };
                return std::future::ready(Err(refused)).boxed();
            }
            self.memory.set_status(id, status, now)
        }

        fn remove(&self, id: JobId) -> BoxFuture<'_, Result<bool>> {
            self.memory.remove(id)
        }

        fn hold(&self) -> Hold {
            self.memory.hold()
        }

        fn retry_now(&self, id: JobId) -> BoxFuture<'_, Result<()>> {
            self.memory.retry_now(id)
        }

        fn journal(&self, id: JobId) -> Result<Box<dyn Journal>> {
            self.memory.journal(id)
        }

        fn entry(&self, request: RequestId) -> Result<LineEntry> {
            self.memory.entry(request)
        }

        fn folder(&self, id: JobId) -> Option<PathBuf> {
            self.memory.folder(id)
        }

        fn changes(&self) -> Listener {
            self.memory.changes()
        }

        fn progress(&self) -> Listener {
            self.memory.progress()
        }

        fn shortage(&self) -> Option<String> {
            self.shortage.lock().unwrap().clone()
        }

        fn close(&self) -> BoxFuture<'_, Result<()>> {
            self.memory.close()
        }
    }

    pub(crate) fn control(jobs: &Arc<Jobs>) -> Control {
        let clock =
            Clock::Simulated { base: Timestamp::from_millis(60_000), anchor: tokio::time::Instant::now() };
        Control::new(Arc::clone(jobs) as Arc<dyn Store>, Board::default(), clock, Folders::below("nowhere"))
    }

    fn paused() -> JobStatus {
        JobStatus::Paused { reason: PauseReason::User }
    }

    fn held() -> JobStatus {
        JobStatus::Held { why: "its journal is damaged".to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn commands_take_a_job_where_they_may_and_refuse_where_they_may_not() {
        // Each command on a job of each status: the status after it, or none where it is refused.
        let table = [
            (
                JobStatus::InProgress,
                [Some("cancelling"), Some("paused"), Some("in_progress"), Some("in_progress")],
            ),
            (paused(), [Some("cancelling"), Some("paused"), Some("in_progress"), Some("in_progress")]),
            (held(), [Some("cancelling"), None, None, Some("in_progress")]),
            (JobStatus::Cancelling, [Some("cancelling"), None, None, None]),
            (JobStatus::Finalizing, [None; 4]),
            (JobStatus::Completed, [None; 4]),
            (JobStatus::Cancelled, [None; 4]),
        ];
        for (before, after) in table {
            for (verb, expected) in ["cancel", "pause", "resume", "retry"].into_iter().zip(after) {
                let jobs = Arc::new(Jobs::default());
                jobs.add("a", before.clone());
                let control = control(&jobs);
                let answer = match verb {
                    "cancel" => control.cancel("a").await,
                    "pause" => control.pause("a").await,
                    "resume" => control.resume("a").await,
                    _ => control.retry("a").await,
                };
                let found = answer.as_ref().map(|report| report.status.as_str()).ok();
                assert_eq!(found, expected, "{verb} of a job that is {before}: {answer:?}");
                let kept = control.show("a").await.unwrap().status;
                assert_eq!(kept, expected.unwrap_or(before.as_str()), "{verb} of a job that is {before}");
            }
        }
    }

    /// Of a job that waits for the models of fine-tunes.
    const TUNED: JobStatus = JobStatus::Paused { reason: PauseReason::FineTune };

    #[tokio::test(start_paused = true)]
    async fn job_that_waits_for_a_fine_tune_says_so_and_can_only_be_cancelled() {
        let jobs = Arc::new(Jobs::default());
        let maker = jobs.add("support-7", JobStatus::InProgress);
        let models = BTreeMap::from([("support".to_owned(), TunedModel::Of(maker))]);
        let job = jobs.add_with("chat", TUNED, JobSettings { models, ..JobSettings::default() });
        let control = control(&jobs);
        let shown = control.show("chat").await.unwrap();
        assert_eq!((shown.status.as_str(), shown.reason.as_deref()), ("paused", Some("fine_tune")));
        assert_eq!(shown.message.as_deref(), Some("waits for the fine-tune `support`"));
        let refused = [
            (control.pause("chat").await, "paused"),
            (control.resume("chat").await, "resumed"),
            (control.retry("chat").await, "retried"),
        ];
        for (refused, verb) in refused {
            let says = format!(
                "job `chat` waits for the fine-tune `support`: it can't be {verb}, and goes on by itself; it can be \
                 cancelled"
            );
            assert_eq!(refused.unwrap_err().to_string(), says);
        }
        // Held meanwhile, it goes on waiting; once there is nothing to wait for, it goes on.
        done(jobs.set_status(job, held(), Timestamp::default()));
        assert_eq!(control.retry("chat").await.unwrap().reason.as_deref(), Some("fine_tune"));
        done(jobs.set_status(job, held(), Timestamp::default()));
        done(jobs.set_status(maker, JobStatus::Cancelled, Timestamp::default()));
        assert_eq!(control.retry("chat").await.unwrap().status, "in_progress");
        done(jobs.set_status(job, TUNED, Timestamp::default()));
        assert_eq!(control.cancel("chat").await.unwrap().status, "cancelling");
    }

    #[tokio::test(start_paused = true)]
    async fn run_that_waits_for_the_one_before_it_says_so_and_can_only_be_cancelled() {
        let jobs = Arc::new(Jobs::default());
        let before = jobs.add("before", JobStatus::InProgress);
        let job = done(jobs.job(before)).job;
        let runs = |number, after| Job {
            id: clock::job_id(Timestamp::from_millis(number), &mut Seed::fixed(number).derive("ids")),
            name: format!("nightly-{number}").parse().unwrap(),
            run: Some(Run { spec: "nightly.toml".to_owned(), due: Some(Timestamp::from_millis(1)), after }),
            ..job.clone()
        };
        let (first, lines) = (runs(5_000, None), || Input::Inline(vec![(0, Bytes::from_static(b"{}")); 3]));
        let second = runs(6_000, Some(first.id));
        for run in [&first, &second] {
            done(jobs.put_job(run.clone(), lines()));
        }
        let control = control(&jobs);
        let shown = control.show("nightly-6000").await.unwrap();
        assert_eq!((shown.status.as_str(), shown.reason.as_deref()), ("paused", Some("overlap")));
        assert_eq!(shown.message.as_deref(), Some("waits for the run of its schedule before it"));
        assert_eq!(shown.schedule.as_deref(), Some("nightly.toml"));
        assert_eq!(shown.due.as_deref(), Some("1970-01-01T00:00:00.001Z"));
        let refused = control.resume("nightly-6000").await.unwrap_err().to_string();
        let says = "job `nightly-6000` waits for the run of its schedule before it: it can't be resumed";
        assert!(refused.starts_with(says), "{refused}");
        // Held meanwhile, it goes on waiting; once there is nothing to wait for, it goes on.
        done(jobs.set_status(second.id, held(), Timestamp::default()));
        assert_eq!(control.retry("nightly-6000").await.unwrap().reason.as_deref(), Some("overlap"));
        done(jobs.set_status(second.id, held(), Timestamp::default()));
        done(jobs.set_status(first.id, JobStatus::Cancelled, Timestamp::default()));
        assert_eq!(control.retry("nightly-6000").await.unwrap().status, "in_progress");
        assert_eq!(control.cancel("nightly-6000").await.unwrap().status, "cancelling");
    }

    #[tokio::test(start_paused = true)]
    async fn fine_tune_shows_what_it_is_called_at_the_provider() {
        let jobs = Arc::new(Jobs::default());
        let plan = FineTune {
            custom_id: "a".to_owned(),
            api: TuningApi::Jobs,
            training: TuningData::Uploaded { id: "file-1".to_owned() },
            validation: None,
            body: serde_json::Map::new(),
            delete_uploads: false,
        };
        let chat = jobs.add("chat", JobStatus::InProgress);
        let now = Timestamp::from_millis(1_000);
        let id = clock::job_id(now, &mut Seed::fixed(9).derive("ids"));
        let job =
            Job { id, name: "support".parse().unwrap(), kind: Kind::FineTune, ..done(jobs.job(chat)).job };
        let line = Bytes::from(serde_json::to_vec(&plan).unwrap());
        done(jobs.put_job(Job { total: 1, ..job }, Input::Inline(vec![(0, line)])));
        let control = control(&jobs);
        assert_eq!(control.show("support").await.unwrap().remote, None);
        let mut progress = Progress::new(&plan);
        progress.made(Thing::Job, "ftjob-1".to_owned());
        done(jobs.write_memo(RequestId { job: id, index: 0 }, progress.to_memo().into()));
        assert_eq!(control.show("support").await.unwrap().remote.as_deref(), Some("ftjob-1"));
        assert_eq!(control.show("chat").await.unwrap().remote, None);
    }

    #[tokio::test(start_paused = true)]
    async fn held_job_that_refuses_says_where_to_read_on() {
        let jobs = Arc::new(Jobs::default());
        jobs.add("damaged", held());
        jobs.add_unreadable("unreadable");
        let control = control(&jobs);
        let told = [
            (
                control.resume("damaged").await,
                "`damaged` is held: it can't be resumed; `batchd show damaged`",
            ),
            (
                control.retry("unreadable").await,
                "`unreadable` is held: it can't be retried; `batchd show unreadable`",
            ),
        ];
        for (refused, says) in told {
            let error = refused.unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_are_found_by_id_or_by_name() {
        let jobs = Arc::new(Jobs::default());
        let first = jobs.add("a", JobStatus::Completed);
        jobs.add("b", JobStatus::InProgress);
        let control = control(&jobs);
        assert_eq!(control.show(&first.to_string()).await.unwrap().name, "a");
        assert_eq!(control.show("b").await.unwrap().spec_file, "b.toml");
        let names: Vec<String> = control.list().await.unwrap().into_iter().map(|job| job.name).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(control.cancel("c").await.unwrap_err().to_string(), "no job is called `c`");
    }

    #[tokio::test(start_paused = true)]
    async fn running_jobs_show_as_paused_while_the_disk_is_full() {
        let jobs = Arc::new(Jobs::default());
        for (name, status) in [("runs", JobStatus::InProgress), ("by-me", paused()), ("held", held())] {
            jobs.add(name, status);
        }
        jobs.fill("1 MiB is free");
        let seen = control(&jobs).list().await.unwrap();
        let seen: Vec<_> = seen.iter().map(|job| (job.status.as_str(), job.reason.as_deref())).collect();
        let held = ("held", Some("its journal is damaged"));
        assert_eq!(seen, [("paused", Some("disk")), ("paused", Some("user")), held]);
        let shown = control(&jobs).show("runs").await.unwrap();
        assert_eq!(shown.message.as_deref(), Some("1 MiB is free"));
        *jobs.shortage.lock().unwrap() = None;
        assert_eq!(control(&jobs).show("runs").await.unwrap().status, "in_progress");
    }

    #[tokio::test(start_paused = true)]
    async fn job_shows_as_paused_while_all_its_queues_are() {
        let jobs = Arc::new(Jobs::default());
        let job = jobs.add("a", JobStatus::InProgress);
        let control = control(&jobs);
        let queue = QueueName::new("openai", Some("m"));
        let pause = QueuePause {
            reason: PauseReason::Quota,
            message: "429: no money left".to_owned(),
            since: Timestamp::from_millis(5),
        };
        control.board.pause(&queue, pause);
        let shown = control.show("a").await.unwrap();
        assert_eq!((shown.status.as_str(), shown.reason.as_deref()), ("paused", Some("quota")));
        assert_eq!(shown.message.as_deref(), Some("429: no money left"));

        let mut bell = control.board.resumed();
        let shown = control.resume("a").await.unwrap();
        assert_eq!((shown.status.as_str(), shown.reason), ("in_progress", None));
        assert!(bell.has_changed());
        bell.mark_seen();
        assert!(!jobs.is_due(job));
        control.retry("a").await.unwrap();
        assert!(bell.has_changed());
        assert!(jobs.is_due(job), "what waits is tried at once");
    }

    #[tokio::test(start_paused = true)]
    async fn refused_command_rings_no_bell() {
        let jobs = Arc::new(Jobs::default());
        jobs.add("a", JobStatus::Completed);
        let control = control(&jobs);
        let bell = control.board.resumed();
        control.resume("a").await.unwrap_err();
        control.retry("a").await.unwrap_err();
        assert!(!bell.has_changed());
    }
}
