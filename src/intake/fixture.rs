//! For the tests of intake: a root folder, a store that only takes jobs, and a reader of very simple specs.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::accept::{Examiner, Peek, Validate};
use super::claim::Dropped;
use super::dir::Dir;
use super::scan::{Candidate, Find, Scanner, stamp_of};
use super::{Handle, Intake, Settings, Status};
use crate::bell::{Bell, Listener};
use crate::clock::{Clock, Seed, job_id};
use crate::diag::{Diagnostic, Place};
use crate::domain::{
    Counts, Job, JobId, JobSettings, JobState, JobStatus, Kind, LineEntry, QueueName, RequestId, Settlement,
    Timestamp,
};
use crate::provider::Catalogue;
use crate::spec::{self, Checked, Form, Scheduled, Sinks, Source};
use crate::store::folder::JobFolder;
use crate::store::{self, Error, Hold, Input, Journal, Lease, Leased, Line, QueueDepth, Result, Store};

/// Intakes that were started so far.
static STARTS: AtomicU64 = AtomicU64::new(0);

/// A root with its folders made.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) temp: TempDir,
    pub(super) settings: Settings,
}

impl Root {
    /// In memory where the machine has a place for it: these tests sync thousands of files.
    pub(super) fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let temp = tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).unwrap();
        Self::at(temp)
    }

    pub(super) fn at(temp: TempDir) -> Self {
        let settings = Settings {
            jobs: temp.path().join("jobs"),
            results: temp.path().join("results"),
            state: temp.path().join("state"),
            rescan: Duration::from_secs(5),
            settle: Duration::from_secs(1),
            watch: false,
            spec: spec::Settings {
                providers: Vec::new(),
                max_line: 1 << 20,
                input_dirs: Vec::new(),
                zone: chrono_tz::UTC,
            },
        };
        super::lookout::make_folders(&settings).unwrap();
        fs::create_dir(&settings.results).unwrap();
        Self { temp, settings }
    }

    /// Puts a file into the jobs folder, as somebody did long ago.
    pub(super) fn drop_file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.settings.jobs.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    pub(super) fn dir(&self) -> Arc<Dir> {
        Arc::new(Dir::open(&self.settings.jobs).unwrap())
    }

    /// What a scan answers for a name that has come to rest.
    pub(super) fn candidate(&self, name: &str) -> Candidate {
        let mut scanner = Scanner::new(Duration::ZERO);
        let later = Clock::System.now() + Duration::from_mins(1);
        let ready = scanner.scan(&self.dir(), later).unwrap().ready;
        ready.into_iter().find(|candidate| candidate.name == name).unwrap()
    }

    pub(super) fn examiner(&self) -> Examiner {
        Examiner {
            jobs: self.dir(),
            state: self.settings.state.clone(),
            spec: Arc::new(self.settings.spec.clone()),
            settle: self.settings.settle,
            now: Clock::System.now(),
            due: None,
            validate: read,
            peek: no_schedule,
            stop: CancellationToken::new(),
            store: FakeStore::new(self),
        }
    }

    /// Names of specs in the jobs folder, hidden ones included.
    pub(super) fn waiting(&self) -> Vec<String> {
        let mut names = names(&self.settings.jobs);
        names.retain(|name| name != "inputs" && name != "rejected");
        names
    }

    pub(super) fn rejected(&self) -> Vec<String> {
        names(&self.settings.jobs.join("rejected"))
    }

    /// Folders below `state/jobs/`.
    pub(super) fn job_folders(&self) -> Vec<JobFolder> {
        let jobs = self.settings.state.join("jobs");
        names(&jobs).into_iter().map(|name| JobFolder::at(jobs.join(name))).collect()
    }
}

impl Candidate {
    /// As a scan would make it from what lies there now.
    pub(super) fn now(dir: &Dir, name: &str, dropped: Dropped) -> Self {
        let stamp = stamp_of(dir, name.as_ref(), dropped).unwrap().unwrap();
        Self { name: name.into(), find: Find::Spec(dropped), stamp }
    }
}

pub(super) fn id(number: u64) -> JobId {
    job_id(Timestamp::from_millis(number), &mut Seed::fixed(number).derive("ids"))
}

pub(super) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().display().to_string()).collect();
    names.sort();
    names
}

/// Reads specs of which each line is a request; `name = ` gives a TOML one its name. A line `bad` is an
/// error, `panic` a bug, `full` a full disk, and at `grow` somebody writes to the file.
#[expect(clippy::needless_pass_by_value, reason = "it stands in for `spec::read`")]
pub(super) fn read(source: Source, _: &spec::Settings, sinks: Sinks<'_>) -> Result<Checked, spec::Error> {
    use std::os::fd::AsRawFd;
    let mut hasher = blake3::Hasher::new();
    let mut total = 0;
    let display = source.display.strip_suffix("/job.toml").unwrap_or(&source.display);
    let mut name = display.rsplit_once('.').map_or(display, |(stem, _)| stem).to_owned();
    let writer = format!("/proc/self/fd/{}", source.file.as_raw_fd());
    for line in BufReader::new(source.file).lines() {
        let line = line.unwrap();
        hasher.update(line.as_bytes());
        total += 1;
        match line.as_str() {
            "bad" => {
                return Err(spec::Error::Rejected(
                    Diagnostic::error(&source.display, total, 1, "bad").into(),
                ));
            }
            "panic" => panic!("a bug"),
            "full" => return Err(spec::Error::Sink(std::io::ErrorKind::StorageFull.into())),
            "grow" => fs::OpenOptions::new().append(true).open(&writer).unwrap().write_all(b"more").unwrap(),
            text => {
                if let Some(given) = text.strip_prefix("name = ") {
                    given.clone_into(&mut name);
                }
            }
        }
        sinks.index.write_all(&[0; 16]).map_err(spec::Error::Sink)?;
        if source.form == Form::Toml {
            writeln!(sinks.input, "{line}").map_err(spec::Error::Sink)?;
        }
    }
    Ok(Checked {
        kind: Kind::Chat,
        name: name.parse().unwrap(),
        ending: None,
        settings: JobSettings::default(),
        queues: vec![QueueName::new("p", Some("m"))],
        queue_totals: vec![total],
        queue_places: vec![Place { file: source.display.clone(), line: 1, column: 0 }],
        total,
        content_hash: hasher.finalize().to_hex().to_string(),
        strict: false,
        fine_tune: None,
        findings: crate::diag::Report::default(),
    })
}

/// No spec has a schedule.
#[expect(clippy::unnecessary_wraps, reason = "it stands in for `spec::read_schedule`")]
pub(super) fn no_schedule(_: &Source, _: &spec::Settings) -> Result<Option<Scheduled>, spec::Error> {
    Ok(None)
}

/// An intake that runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) root: Root,
    pub(super) store: Arc<FakeStore>,
    pub(super) clock: Clock,
    pub(super) handle: Handle,
    pub(super) stop: CancellationToken,
    pub(super) tasks: JoinSet<std::result::Result<(), super::Error>>,
}

impl Running {
    /// With specs as [`read`] knows them.
    pub(super) fn over(root: Root) -> Self {
        Self::reading(root, read)
    }

    pub(super) fn reading(root: Root, validate: Validate) -> Self {
        Self::asking(root, validate, None)
    }

    /// With a catalogue of the providers' models.
    pub(super) fn asking(root: Root, validate: Validate, catalogue: Option<Arc<Catalogue>>) -> Self {
        let store = FakeStore::new(&root);
        let readers = (validate, no_schedule as Peek);
        Self::start(root, store, readers, (Clock::System.now(), catalogue))
    }

    /// With specs as they are, over what another left in the store, at `now`.
    pub(super) fn scheduling(root: Root, store: Arc<FakeStore>, now: Timestamp) -> Self {
        Self::start(root, store, (spec::read, spec::read_schedule), (now, None))
    }

    pub(super) fn start(
        root: Root,
        store: Arc<FakeStore>,
        (validate, peek): (Validate, Peek),
        (now, catalogue): (Timestamp, Option<Arc<Catalogue>>),
    ) -> Self {
        let clock = Clock::simulated(now);
        // Started again over the same root, it must not draw the same ids at the same simulated time.
        let seed = Seed::fixed(STARTS.fetch_add(1, Ordering::Relaxed));
        let mut intake = Intake::new(root.settings.clone(), Arc::clone(&store) as _, clock.clone(), seed);
        intake.validate = validate;
        intake.peek = peek;
        intake.catalogue = catalogue;
        let (handle, stop) = (intake.handle(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(intake.run(stop.clone()));
        Self { root, store, clock, handle, stop, tasks }
    }

    /// Until all that was dropped before is taken in.
    pub(super) async fn idle(&self) {
        self.handle.look().await;
        self.handle.until(Status::is_idle).await;
    }

    /// Dies where it stands, as of a `kill -9`.
    pub(super) async fn die(mut self) -> (Root, Arc<FakeStore>) {
        self.tasks.shutdown().await;
        (self.root, self.store)
    }

    pub(super) async fn end(mut self) -> (Root, std::result::Result<(), super::Error>) {
        self.stop.cancel();
        let ended = self.tasks.join_next().await.unwrap().unwrap();
        (self.root, ended)
    }
}

/// Takes jobs, and writes `state.json` as a store would.
#[derive(Debug)]
pub(super) struct FakeStore {
    state: PathBuf,
    jobs: Mutex<Vec<JobState>>,
    /// The next job is refused.
    pub(super) broken: Mutex<bool>,
    /// Nothing more fits.
    pub(super) full: Mutex<bool>,
    pub(super) changes: Bell,
}

impl FakeStore {
    pub(super) fn new(root: &Root) -> Arc<Self> {
        let state = root.settings.state.clone();
        Arc::new(Self {
            state,
            jobs: Mutex::default(),
            broken: Mutex::default(),
            full: Mutex::default(),
            changes: Bell::default(),
        })
    }

    pub(super) fn accepted(&self) -> Vec<Job> {
        self.jobs.lock().unwrap().iter().map(|state| state.job.clone()).collect()
    }

    /// The job called `name` as it stands.
    pub(super) fn state_of(&self, name: &str) -> JobState {
        let jobs = self.jobs.lock().unwrap();
        jobs.iter().find(|state| state.job.name.as_str() == name).unwrap().clone()
    }

    /// Ends the job called `name`.
    pub(super) fn end(&self, name: &str, status: JobStatus) {
        let mut jobs = self.jobs.lock().unwrap();
        jobs.iter_mut().find(|state| state.job.name.as_str() == name).unwrap().status = status;
    }

    /// The names of all jobs, sorted.
    pub(super) fn job_names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.accepted().iter().map(|job| job.name.to_string()).collect();
        names.sort();
        names
    }
}

fn closed<T>() -> Result<T> {
    Err(Error::Closed("a fake".into()))
}

impl Store for FakeStore {
    fn put_job(&self, job: Job, input: Input) -> BoxFuture<'_, Result<()>> {
        assert!(matches!(input, Input::Spooled));
        let folder = JobFolder::new(&self.state, job.id);
        assert!(folder.input().exists() && folder.index().exists() && folder.claim().exists());
        if *self.broken.lock().unwrap() {
            return futures_util::future::ready(closed()).boxed();
        }
        let text = serde_json::to_vec(&job).unwrap();
        // As far as the store of a daemon comes before it.
        let made = [folder.journal(), folder.intents()]
            .iter()
            .try_for_each(|path| store::folder::create_private(path).map(drop));
        if let Err(error) = made.and_then(|()| store::folder::write_atomic(&folder.state(), &text)) {
            return futures_util::future::ready(Err(error)).boxed();
        }
        let counts = Counts { total: job.total, ..Counts::default() };
        let status = job.first_status();
        let state = JobState { job, status, counts, leased: 0, waiting: 0, finished_at: None };
        self.jobs.lock().unwrap().push(state);
        self.changes.ring();
        futures_util::future::ready(Ok(())).boxed()
    }

    fn jobs(&self) -> BoxFuture<'_, Result<Vec<JobState>>> {
        futures_util::future::ready(Ok(self.jobs.lock().unwrap().clone())).boxed()
    }

    fn job(&self, _: JobId) -> BoxFuture<'_, Result<JobState>> {
        futures_util::future::ready(closed()).boxed()
    }

    fn queues(&self) -> BoxFuture<'_, Result<Vec<QueueDepth>>> {
        futures_util::future::ready(closed()).boxed()
    }

    fn lease<'a>(&'a self, _: &'a QueueName, _: usize, _: Timestamp) -> BoxFuture<'a, Result<Leased>> {
        futures_util::future::ready(closed()).boxed()
    }

    fn line(&self, _: RequestId) -> BoxFuture<'_, Result<Line>> {
        futures_util::future::ready(closed()).boxed()
    }

    fn begin(&self, _: &Lease) -> Result<()> {
        closed()
    }

    fn settle(&self, _: Lease, _: Settlement) -> BoxFuture<'_, Result<()>> {
        futures_util::future::ready(closed()).boxed()
    }

    fn write_memo(&self, _: RequestId, _: Bytes) -> BoxFuture<'_, Result<()>> {
        futures_util::future::ready(closed()).boxed()
    }

    fn memo(&self, _: RequestId) -> BoxFuture<'_, Result<Option<Bytes>>> {
        futures_util::future::ready(closed()).boxed()
    }

    fn set_status(&self, _: JobId, _: JobStatus, _: Timestamp) -> BoxFuture<'_, Result<JobState>> {
        futures_util::future::ready(closed()).boxed()
    }

    fn remove(&self, _: JobId) -> BoxFuture<'_, Result<bool>> {
        futures_util::future::ready(closed()).boxed()
    }

    fn hold(&self) -> Hold {
        Hold::default()
    }

    fn retry_now(&self, _: JobId) -> BoxFuture<'_, Result<()>> {
        futures_util::future::ready(closed()).boxed()
    }

    fn journal(&self, _: JobId) -> Result<Box<dyn Journal>> {
        closed()
    }

    fn entry(&self, _: RequestId) -> Result<LineEntry> {
        closed()
    }

    fn folder(&self, id: JobId) -> Option<PathBuf> {
        Some(JobFolder::new(&self.state, id).path().to_owned())
    }

    fn changes(&self) -> Listener {
        self.changes.listen()
    }

    fn fits(&self, _: u64) -> Result<()> {
        if *self.full.lock().unwrap() {
            Err(Error::Full("what is free must stay free".to_owned()))
        } else {
            Ok(())
        }
    }

    fn progress(&self) -> Listener {
        self.changes()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        futures_util::future::ready(Ok(())).boxed()
    }
}
