//! A store for tests: jobs with their journals in memory.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{Cursor, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use serde_json::value::RawValue;

use crate::bell::{Bell, Listener};
use crate::domain::record::JournalLine;
use crate::domain::{
    Counts, FineTune, Job, JobId, JobSettings, JobState, JobStatus, Kind, LineEntry, QueueName, Record,
    RecordError, RequestId, Response, Settlement, Timestamp, TuningApi,
};
use crate::output::{Artefacts, Unavailable};
use crate::store::{Error, Hold, Input, Journal, Lease, Leased, Line, QueueDepth, Result, Store};

pub(super) const JOB: JobId = JobId::from_bytes([1; 16]);
pub(super) const ACCEPTED: Timestamp = Timestamp::from_millis(1_000_000);

/// A job of bare chat bodies, which have no name but their line's.
pub(super) fn job(total: u32) -> Job {
    Job {
        id: JOB,
        name: "news".parse().unwrap(),
        kind: Kind::Requests,
        ending: None,
        spec_file: "news.jsonl".to_owned(),
        accepted_at: ACCEPTED,
        total,
        queues: vec![QueueName::new("openai", Some("m"))],
        content_hash: String::new(),
        settings: JobSettings::default(),
        run: None,
    }
}

pub(super) fn record(index: u32, status_code: u16, body: &str) -> Record {
    Record {
        request: RequestId { job: JOB, index },
        custom_id: format!("line-{}", index + 1),
        response: Some(Response::new(status_code, "req".to_owned(), body.as_bytes())),
        error: None,
    }
}

pub(super) fn answer(index: u32, text: &str) -> Record {
    let text = serde_json::Value::from(text);
    let usage = r#"{"prompt_tokens":2,"completion_tokens":3,"total_tokens":5}"#;
    record(index, 200, &format!("{{\"text\":{text},\"usage\":{usage}}}"))
}

pub(super) fn refusal(index: u32) -> Record {
    record(index, 400, r#"{"error":{"message":"no"}}"#)
}

pub(super) fn unanswered(index: u32, code: &str) -> Record {
    let error = RecordError { code: code.to_owned(), message: "never".to_owned() };
    Record { response: None, error: Some(error), ..record(index, 0, "{}") }
}

/// A provider's files and events of fine-tunes.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    /// None where the provider has no such endpoint.
    pub(super) events: Option<Vec<&'static str>>,
    /// By their ids: names and contents.
    pub(super) files: BTreeMap<&'static str, (&'static str, Vec<u8>)>,
    /// So many calls fail, first of all.
    pub(super) failures: AtomicU32,
    pub(super) refuses_to_delete: bool,
    /// Events come after an hour.
    pub(super) is_slow: bool,
    /// Every call, in order.
    pub(super) calls: Mutex<Vec<String>>,
}

impl Shelf {
    fn call<T>(&self, call: String, found: Option<T>) -> Result<T, Unavailable> {
        self.calls.lock().unwrap().push(call);
        let fails = self.failures.try_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
        if fails {
            return Err(Unavailable::Later { message: "busy".to_owned(), retry_after: None });
        }
        found.ok_or_else(|| Unavailable::Absent("the provider answered 404".to_owned()))
    }
}

impl Artefacts for Shelf {
    fn events<'a>(
        &'a self,
        _: TuningApi,
        id: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Box<RawValue>>, Unavailable>> {
        let raw = |event: &&str| RawValue::from_string((*event).to_owned()).unwrap();
        let events = self.events.as_ref().map(|events| events.iter().map(raw).collect());
        let events = self.call(format!("events {id}"), events);
        let long = Duration::from_secs(if self.is_slow { 3600 } else { 0 });
        tokio::time::sleep(long).map(|()| events).boxed()
    }

    fn file_name<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<String, Unavailable>> {
        let name = self.files.get(id).map(|(name, _)| (*name).to_owned());
        ready(self.call(format!("name {id}"), name)).boxed()
    }

    fn content<'a>(
        &'a self,
        id: &'a str,
        sink: &'a mut (dyn Write + Send),
        max: u64,
    ) -> BoxFuture<'a, Result<(), Unavailable>> {
        let content = self.files.get(id).map(|(_, content)| content);
        // Half of it comes before it fails.
        let half = content.map_or(&b""[..], |content| &content[..content.len() / 2]);
        let sent = self.call(format!("content {id}"), content).and_then(|content| {
            if content.len() as u64 > max {
                return Err(Unavailable::Refused("too large".to_owned()));
            }
            Ok(content)
        });
        let result = match sent {
            Ok(content) => sink.write_all(content).map_err(|error| Unavailable::Refused(error.to_string())),
            Err(error) => sink.write_all(half).map_err(|_| error.clone()).and(Err(error)),
        };
        ready(result).boxed()
    }

    fn delete<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Unavailable>> {
        let deleted = self.call(format!("delete {id}"), self.files.get(id).map(drop));
        let refused = Unavailable::Refused("no".to_owned());
        ready(if self.refuses_to_delete { Err(refused) } else { deleted }).boxed()
    }
}

#[derive(Debug)]
pub(super) struct FakeStore {
    jobs: Mutex<BTreeMap<JobId, Kept>>,
    folder: Option<PathBuf>,
    /// The input line of every request.
    line: Bytes,
    memo: Option<Bytes>,
    changes: Bell,
    progress: Bell,
}

#[derive(Debug)]
struct Kept {
    state: JobState,
    journal: Vec<u8>,
    /// Whether each settled request was answered.
    settled: BTreeMap<u32, bool>,
    /// Every status that was set.
    statuses: Vec<JobStatus>,
}

impl FakeStore {
    /// With one job; what names no job below means that one.
    pub(super) fn new(job: Job) -> Self {
        let (changes, progress) = (Bell::default(), Bell::default());
        let line = Bytes::from_static(br#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#);
        let store = Self { jobs: Mutex::default(), folder: None, line, memo: None, changes, progress };
        store.add(job);
        store
    }

    pub(super) fn add(&self, job: Job) {
        let id = job.id;
        let counts = Counts { total: job.total, ..Counts::default() };
        let status = JobStatus::InProgress;
        let state = JobState { job, status, counts, leased: 0, waiting: 0, finished_at: None };
        let kept = Kept { state, journal: Vec::new(), settled: BTreeMap::new(), statuses: Vec::new() };
        self.jobs.lock().unwrap().insert(id, kept);
        self.changes.ring();
    }

    /// With a folder below `state/jobs/`, in which the journal lies, too.
    pub(super) fn in_folder(mut self, folder: PathBuf) -> Self {
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("results.log"), &self.jobs.lock().unwrap()[&JOB].journal).unwrap();
        self.folder = Some(folder);
        self
    }

    /// Of a fine-tune.
    pub(super) fn with_plan(self, plan: &FineTune) -> Self {
        let line = serde_json::to_vec(plan).unwrap().into();
        self.change(|state| state.job.kind = Kind::FineTune);
        Self { line, ..self }
    }

    pub(super) fn with_memo(self, memo: String) -> Self {
        Self { memo: Some(memo.into()), ..self }
    }

    pub(super) fn append(&self, record: &Record) {
        self.append_to(record.request.job, &record.to_journal_line(1));
    }

    pub(super) fn append_bytes(&self, bytes: &[u8]) {
        self.append_to(JOB, bytes);
    }

    /// Appends to the journal; counts whole records.
    fn append_to(&self, id: JobId, bytes: &[u8]) {
        if let Some(folder) = &self.folder {
            let mut file = OpenOptions::new().append(true).open(folder.join("results.log")).unwrap();
            file.write_all(bytes).unwrap();
        }
        let mut jobs = self.jobs.lock().unwrap();
        let Kept { state, journal, settled, .. } = jobs.get_mut(&id).unwrap();
        journal.extend_from_slice(bytes);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let Some(line) = line.strip_suffix(b"\n").and_then(JournalLine::parse) else { continue };
            let published: serde_json::Value = serde_json::from_slice(&line.published()).unwrap();
            let answered = published["response"]["status_code"] == 200;
            settled.entry(line.index).or_insert(answered);
        }
        let count = |answered: bool| settled.values().filter(|value| **value == answered).count();
        state.counts.completed = u32::try_from(count(true)).unwrap();
        state.counts.failed = u32::try_from(count(false)).unwrap();
        let has_ended = state.counts.open() == 0;
        drop(jobs);
        self.progress.ring();
        if has_ended {
            self.changes.ring();
        }
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut JobState)) {
        change(&mut self.jobs.lock().unwrap().get_mut(&JOB).unwrap().state);
        self.changes.ring();
    }

    pub(super) fn state(&self) -> JobState {
        self.state_of(JOB)
    }

    pub(super) fn state_of(&self, id: JobId) -> JobState {
        self.jobs.lock().unwrap()[&id].state.clone()
    }

    pub(super) fn statuses(&self) -> Vec<JobStatus> {
        self.jobs.lock().unwrap()[&JOB].statuses.clone()
    }

    /// Returns when the job's status is `status`.
    pub(super) async fn becomes(&self, status: JobStatus) {
        self.job_becomes(JOB, status).await;
    }

    pub(super) async fn job_becomes(&self, id: JobId, status: JobStatus) {
        let mut changes = self.changes.listen();
        while self.state_of(id).status != status {
            changes.changed().await;
        }
    }
}

impl Store for FakeStore {
    fn put_job(&self, _: Job, _: Input) -> BoxFuture<'_, Result<()>> {
        unimplemented!("results are only read")
    }

    fn jobs(&self) -> BoxFuture<'_, Result<Vec<JobState>>> {
        let jobs = self.jobs.lock().unwrap();
        ready(Ok(jobs.values().map(|kept| kept.state.clone()).collect())).boxed()
    }

    fn job(&self, id: JobId) -> BoxFuture<'_, Result<JobState>> {
        ready(Ok(self.state_of(id))).boxed()
    }

    fn queues(&self) -> BoxFuture<'_, Result<Vec<QueueDepth>>> {
        unimplemented!("results are only read")
    }

    fn lease<'a>(&'a self, _: &'a QueueName, _: usize, _: Timestamp) -> BoxFuture<'a, Result<Leased>> {
        unimplemented!("results are only read")
    }

    fn line(&self, request: RequestId) -> BoxFuture<'_, Result<Line>> {
        ready(Ok(Line { bytes: self.line.clone(), number: request.index + 1 })).boxed()
    }

    fn begin(&self, _: &Lease) -> Result<()> {
        unimplemented!("results are only read")
    }

    fn settle(&self, _: Lease, _: Settlement) -> BoxFuture<'_, Result<()>> {
        unimplemented!("results are only read")
    }

    fn write_memo(&self, _: RequestId, _: Bytes) -> BoxFuture<'_, Result<()>> {
        unimplemented!("results are only read")
    }

    fn memo(&self, _: RequestId) -> BoxFuture<'_, Result<Option<Bytes>>> {
        ready(Ok(self.memo.clone())).boxed()
    }

    fn set_status(&self, job: JobId, status: JobStatus, now: Timestamp) -> BoxFuture<'_, Result<JobState>> {
        let mut jobs = self.jobs.lock().unwrap();
        let Kept { state, statuses, .. } = jobs.get_mut(&job).unwrap();
        // As a store must: nothing leads from the way to an end back to work.
        let may_follow = match state.status {
            JobStatus::InProgress | JobStatus::Paused { .. } | JobStatus::Held { .. } => true,
            JobStatus::Finalizing | JobStatus::Cancelling | JobStatus::Expiring => {
                status.is_final() || status == JobStatus::Finalizing
            }
            JobStatus::Completed | JobStatus::Failed { .. } | JobStatus::Cancelled | JobStatus::Expired => {
                false
            }
        };
        if !may_follow {
            let (from, to) = (state.status.as_str(), status.as_str());
            return ready(Err(Error::Transition { job, from, to })).boxed();
        }
        statuses.push(status.clone());
        state.finished_at = status.is_final().then_some(now);
        state.status = status;
        let state = state.clone();
        drop(jobs);
        self.changes.ring();
        ready(Ok(state)).boxed()
    }

    fn remove(&self, _: JobId) -> BoxFuture<'_, Result<bool>> {
        unimplemented!("results are only read")
    }

    fn hold(&self) -> Hold {
        unimplemented!("results are only read")
    }

    fn retry_now(&self, _: JobId) -> BoxFuture<'_, Result<()>> {
        unimplemented!("results are only read")
    }

    fn journal(&self, id: JobId) -> Result<Box<dyn Journal>> {
        Ok(Box::new(Cursor::new(self.jobs.lock().unwrap()[&id].journal.clone())))
    }

    fn entry(&self, request: RequestId) -> Result<LineEntry> {
        Ok(LineEntry { offset: 0, length: 0, queue: 0, line: request.index + 1 })
    }

    fn folder(&self, _: JobId) -> Option<PathBuf> {
        self.folder.clone()
    }

    fn changes(&self) -> Listener {
        self.changes.listen()
    }

    fn progress(&self) -> Listener {
        self.progress.listen()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        ready(Ok(())).boxed()
    }
}
