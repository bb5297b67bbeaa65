//! Asking again: the failed requests of a job that has ended become a new job.
//!
//! What is published never changes, and what succeeded is never asked for again. So the failed requests are
//! dropped into the jobs folder, as a folder that holds a `job.toml` with the job's own settings and the
//! requests as batch lines; of a fine-tune, its own spec and the data that were checked. Intake takes it in like any
//! other. The name in it is the first of `<name>-2`, `-3`, … that is free, so that whoever asks can be told it.
//!
//! What asks a run of a schedule again is no run: a person had it made, for no time, and it keeps no other from
//! running.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::control::Folders;
use crate::disk::{self, Act, File, carry_out};
use crate::domain::range::{BLOCK, Bits};
use crate::domain::record::JournalLine;
use crate::domain::{Endpoint, FineTune, Job, JobId, JobName, JobState, Kind, RequestId, TuningData};
use crate::spec;
use crate::store::folder::{AGAIN as REQUESTS, JobFolder, ORIGIN, create_private, failed, sync_dir};
use crate::store::{Error, Result, Store};

/// The folder's name while it is written: this, the job's id, and the ending of what is not whole.
const HIDDEN: &str = ".again-";
const TEMPORARY: &str = ".tmp";

/// What the folder's name adds to the job's, which may be one that intake passes over: `inputs`, `a.part`.
const SUFFIX: &str = "again";

/// A batch line.
#[derive(Serialize)]
struct BatchLine<'a> {
    custom_id: &'a str,
    method: &'static str,
    url: &'static str,
    body: &'a RawValue,
}

/// What came of asking again.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    /// What the job will be called, unless somebody takes that name before it is accepted.
    As(JobName),
    /// They are asked again already, by this job: once more would pay twice.
    Before(String),
}

/// Drops the failed requests of `state`'s job into the jobs folder; durable when it returns. Blocks, for as long as
/// the journal takes to read. At most one at a time for a job.
pub(super) async fn drop_failed(store: &dyn Store, state: &JobState, folders: &Folders) -> Result<Dropped> {
    let (job, jobs) = (&state.job, folders.jobs.as_path());
    if let Some(by) = asked_by(store, job.id, jobs).await? {
        return Ok(Dropped::Before(by));
    }
    let hidden = jobs.join(format!("{HIDDEN}{}{TEMPORARY}", job.id));
    if hidden.exists() {
        disk::remove_dir_all(&hidden).map_err(failed("remove", &hidden))?;
    }
    disk::make_shared_dir(&hidden).map_err(failed("create folder", &hidden))?;
    let mut spec = if job.kind == Kind::FineTune {
        write_data(store, job, &hidden).await?
    } else {
        write_requests(store, job, &hidden.join(REQUESTS)).await?;
        settings(job)
    };
    let name = free_name(store, &job.name, &folders.results).await?;
    spec.insert("name".to_owned(), name.as_str().into());
    let text = spec.to_string();
    let spec = hidden.join("job.toml");
    let mut file = BufWriter::new(create_private(&spec)?);
    file.write_all(text.as_bytes()).and_then(|()| sync(file)).map_err(failed("write", &spec))?;
    let origin = hidden.join(ORIGIN);
    let mut file = create_private(&origin)?;
    write!(file, "{}", job.id).and_then(|()| file.sync_all()).map_err(failed("write", &origin))?;
    sync_dir(&hidden)?;
    put(&hidden, jobs, job)?;
    sync_dir(jobs)?;
    Ok(Dropped::As(name))
}

/// The first of `<name>-2`, `-3`, … that neither a job nor anything in the results folder has: what intake would choose.
async fn free_name(store: &dyn Store, name: &JobName, results: &Path) -> Result<JobName> {
    let taken: BTreeSet<JobName> = store.jobs().await?.into_iter().map(|state| state.job.name).collect();
    for name in (2..=u32::MAX).map(|number| name.numbered(number)).filter(|name| !taken.contains(name)) {
        let path = results.join(name.as_str());
        match fs::symlink_metadata(&path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(name),
            Err(error) => return Err(failed("look at", &path)(error)),
        }
    }
    Err(no_name())
}

/// What asks the failed requests of the job `id` again: the folder that was dropped, which carries the job's id, as
/// long as it waits, and from its claim on the job made of it. Nothing once it was refused or taken away.
async fn asked_by(store: &dyn Store, id: JobId, jobs: &Path) -> Result<Option<String>> {
    let text = id.to_string();
    let is_origin =
        |folder: &Path| fs::read_to_string(folder.join(ORIGIN)).is_ok_and(|origin| origin == text);
    let waiting = || -> Result<Option<String>> {
        for entry in fs::read_dir(jobs).map_err(failed("read", jobs))? {
            let entry = entry.map_err(failed("read", jobs))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') && is_origin(&entry.path()) {
                return Ok(Some(name_in(&entry.path()).unwrap_or_else(|| format!("jobs/{name}"))));
            }
        }
        Ok(None)
    };
    if let Some(folder) = waiting()? {
        return Ok(Some(folder));
    }
    if let Some(all) = store.folder(id).as_deref().and_then(Path::parent) {
        for entry in fs::read_dir(all).map_err(failed("read", all))? {
            let entry = entry.map_err(failed("read", all))?;
            // One that was removed asks for nothing any more.
            let Some(made) = entry.file_name().to_str().and_then(|name| name.parse::<JobId>().ok()) else {
                continue;
            };
            if is_origin(&entry.path().join("spec")) {
                let state = store.job(made).await.ok();
                return Ok(Some(state.map_or_else(|| made.to_string(), |state| state.job.name.to_string())));
            }
        }
    }
    // It may have gone back between the two looks.
    waiting()
}

/// What the job of a dropped folder is to be called.
fn name_in(folder: &Path) -> Option<String> {
    let spec: toml::Table = fs::read_to_string(folder.join("job.toml")).ok()?.parse().ok()?;
    Some(spec.get("name")?.as_str()?.to_owned())
}

/// Removes what a crash left of folders that were not dropped yet. Nobody may be asking again meanwhile.
pub(super) fn remove_leftovers(jobs: &Path) -> Result<()> {
    let entries = match fs::read_dir(jobs) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed("read", jobs))?,
    };
    for entry in entries {
        let path = entry.map_err(failed("read", jobs))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let id = name.strip_prefix(HIDDEN).and_then(|name| name.strip_suffix(TEMPORARY));
        if id.is_some_and(|id| id.parse::<JobId>().is_ok()) {
            disk::remove_dir_all(&path).map_err(failed("remove", &path))?;
        }
    }
    Ok(())
}

async fn write_requests(store: &dyn Store, job: &Job, path: &Path) -> Result<()> {
    let answered = answered(store, job)?;
    let mut file = BufWriter::new(create_private(path)?);
    for index in (0..job.total).filter(|index| !contains(&answered, *index)) {
        let line = store.line(RequestId { job: job.id, index }).await?;
        let Ok(request) = spec::parse_line(job, &line.bytes, line.number) else { continue };
        write_line(&mut file, &request.custom_id, request.endpoint, &request.body)
            .map_err(failed("write", path))?;
    }
    sync(file).map_err(failed("write", path))
}

/// Copies the data of a fine-tune. Returns its spec, as it was accepted, over the copies.
async fn write_data(store: &dyn Store, job: &Job, to: &Path) -> Result<toml::Table> {
    let from = JobFolder::at(store.folder(job.id).ok_or(Error::NoSuchJob(job.id))?);
    let spec = from.spec().join("job.toml");
    let damaged = |what: String| Error::Damaged { path: spec.clone(), what };
    let text = fs::read_to_string(&spec).map_err(failed("read", &spec))?;
    let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| damaged(error.to_string()))?;
    // It is asked again now, once.
    table.remove("schedule");
    let line = store.line(RequestId { job: job.id, index: 0 }).await?;
    let plan: FineTune = serde_json::from_slice(&line.bytes).map_err(|error| damaged(error.to_string()))?;
    let keys = table.get_mut("fine_tune").and_then(toml::Value::as_table_mut);
    let keys = keys.ok_or_else(|| damaged("it lacks `[fine_tune]`".to_owned()))?;
    for (key, data) in
        [("training_file", Some(&plan.training)), ("validation_file", plan.validation.as_ref())]
    {
        let Some(TuningData::Local { file, stem, .. }) = data else { continue };
        // Both may have been called the same, in two folders.
        let name = format!("{key}/{stem}.jsonl");
        let (source, target) = (from.path().join(file), to.join(&name));
        disk::make_shared_dir(&to.join(key)).map_err(failed("create folder", &target))?;
        let mut copy = create_private(&target)?;
        let mut data = fs::File::open(&source).map_err(failed("read", &source))?;
        io::copy(&mut data, &mut copy).and_then(|_| copy.sync_all()).map_err(failed("write", &target))?;
        sync_dir(&to.join(key))?;
        keys.insert(key.to_owned(), name.into());
    }
    Ok(table)
}

/// The requests that have an answer, a bit each.
fn answered(store: &dyn Store, job: &Job) -> Result<Vec<Bits>> {
    let blocks = job.total.div_ceil(BLOCK) as usize;
    let mut answered = vec![Bits::EMPTY; blocks];
    let mut journal = BufReader::new(store.journal(job.id)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read =
            journal.read_until(b'\n', &mut line).map_err(failed("read", &journal_of(store, job.id)))?;
        if read == 0 {
            return Ok(answered);
        }
        let record = line.strip_suffix(b"\n").and_then(JournalLine::parse);
        if let Some(record) = record.filter(JournalLine::is_success)
            && let Some(bits) = answered.get_mut((record.index / BLOCK) as usize)
        {
            bits.insert(record.index % BLOCK);
        }
    }
}

fn contains(bits: &[Bits], index: u32) -> bool {
    bits.get((index / BLOCK) as usize).is_some_and(|bits| bits.contains(index % BLOCK))
}

fn journal_of(store: &dyn Store, id: JobId) -> PathBuf {
    store.folder(id).unwrap_or_default().join("results.log")
}

fn write_line(file: &mut impl Write, custom_id: &str, endpoint: Endpoint, body: &RawValue) -> io::Result<()> {
    let line = BatchLine { custom_id, method: "POST", url: endpoint.url(), body };
    serde_json::to_writer(&mut *file, &line)?;
    file.write_all(b"\n")
}

fn sync(file: BufWriter<File>) -> io::Result<()> {
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// The spec of the new job: the old one's settings around its requests.
fn settings(job: &Job) -> toml::Table {
    let duration = |duration| humantime::format_duration(duration).to_string();
    let mut spec = toml::Table::new();
    let mut set = |key: &str, value: toml::Value| drop(spec.insert(key.to_owned(), value));
    set("kind", "requests".into());
    if let Some(queue) = job.queues.first() {
        set("provider", queue.provider().into());
    }
    set("priority", i64::from(job.settings.priority).into());
    if let Some(deadline) = job.settings.deadline {
        set("deadline", duration(deadline).into());
    }
    if let Some(Ok(on_uncertain)) = job.settings.on_uncertain.map(toml::Value::try_from) {
        set("on_uncertain", on_uncertain);
    }
    if let Ok(order) = toml::Value::try_from(job.settings.order) {
        set("output", toml::Table::from_iter([("order".to_owned(), order)]).into());
    }
    let retry = &job.settings.retry;
    let members = [
        ("max_attempts", retry.max_attempts.map(|n| i64::from(n).into())),
        ("base_delay", retry.base_delay.map(|delay| duration(delay).into())),
        ("max_delay", retry.max_delay.map(|delay| duration(delay).into())),
    ];
    let retry: toml::Table =
        members.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
    if !retry.is_empty() {
        set("retry", retry.into());
    }
    set("input", toml::Table::from_iter([("file".to_owned(), REQUESTS.into())]).into());
    spec
}

/// Gives the folder a name that nothing has in the jobs folder: that is the drop.
fn put(hidden: &Path, jobs: &Path, job: &Job) -> Result<()> {
    let name = format!("{}-{SUFFIX}", job.name);
    let numbered = (2..=u32::MAX).map(|n| format!("{name}-{n}"));
    for name in std::iter::once(name.clone()).chain(numbered) {
        let target = jobs.join(&name);
        let rename = || Ok(renameat_with(CWD, hidden, CWD, &target, RenameFlags::NOREPLACE)?);
        match carry_out(Act::Rename { from: hidden, to: &target }, rename) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("rename", &target)(error)),
        }
    }
    Err(no_name())
}

fn no_name() -> Error {
    Error::Closed("no name is free for what is to be asked again".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::clock::Clock;
    use crate::control::{self, Board, Control};
    use crate::domain::job::RetryOverride;
    use crate::domain::{JobSettings, JobStatus, OnUncertain, Order, TuningApi};
    use crate::store::Input;
    use crate::store::conformance::{self, NOW, answer, failure, lease, queue};
    use crate::store::embedded::EmbeddedStore;
    use crate::store::memory::MemoryStore;

    #[tokio::test]
    async fn only_failed_requests_are_dropped_again_with_the_jobs_settings() {
        let dir = tempfile::tempdir().unwrap();
        let store = MemoryStore::default();
        let mut job = conformance::job(1, 9, &["m"], 4);
        job.settings = JobSettings {
            priority: 9,
            deadline: Some(Duration::from_hours(6)),
            order: Order::Completion,
            retry: RetryOverride { max_attempts: Some(2), ..RetryOverride::default() },
            on_uncertain: Some(OnUncertain::Fail),
            ..JobSettings::default()
        };
        let line = |n: u32| {
            let body = format!(r#"{{"model":"m","input":"{n}"}}"#);
            let line =
                format!(r#"{{"custom_id":"c{n}","method":"POST","url":"/v1/embeddings","body":{body}}}"#);
            (0, Bytes::from(line))
        };
        store.put_job(job.clone(), Input::Inline((0..4).map(line).collect())).await.unwrap();
        for (n, lease) in lease(&store, "m", 3, NOW).await.into_iter().enumerate() {
            let settlement = if n == 1 { failure(&lease) } else { answer(&lease) };
            store.settle(lease, settlement).await.unwrap();
        }
        store.set_status(job.id, JobStatus::Cancelling, NOW).await.unwrap();
        let state = store.set_status(job.id, JobStatus::Cancelled, NOW).await.unwrap();
        let folders = Folders::below(dir.path());
        fs::create_dir_all(folders.jobs.join("job-1-again")).unwrap();
        fs::create_dir_all(folders.results.join("job-1-2")).unwrap();

        let dropped = drop_failed(&store, &state, &folders).await.unwrap();
        assert_eq!(dropped, Dropped::As("job-1-3".parse().unwrap()));
        let folder = folders.jobs.join("job-1-again-2");
        let lines = fs::read_to_string(folder.join(REQUESTS)).unwrap();
        let kept: String = [1, 3].map(|n| String::from_utf8(line(n).1.to_vec()).unwrap() + "\n").concat();
        assert_eq!(lines, kept);

        let settings = spec::Settings {
            providers: vec![spec::ProviderFacts { name: "p".to_owned(), strict: false }],
            max_line: 1 << 20,
            input_dirs: Vec::new(),
            zone: chrono_tz::UTC,
        };
        let source = spec::Source {
            form: spec::Form::Toml,
            file: fs::File::open(folder.join("job.toml")).unwrap(),
            display: "job-1-again-2/job.toml".to_owned(),
            folder,
            rest: None,
            now: crate::domain::Timestamp::from_millis(0),
            is_run: false,
        };
        let sinks = spec::Sinks { index: &mut io::sink(), input: &mut io::sink(), data: &mut io::sink() };
        let checked = spec::read(source, &settings, sinks).unwrap();
        assert_eq!((checked.name.as_str(), checked.total), ("job-1-3", 2));
        assert_eq!(checked.settings, job.settings);
        assert_eq!(checked.queues, [queue("m")]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn fine_tune_is_asked_again_with_the_data_that_were_checked() {
        let dir = tempfile::tempdir().unwrap();
        let (state, jobs) = (dir.path().join("state"), dir.path().join("jobs"));
        fs::create_dir(&jobs).unwrap();
        let store = EmbeddedStore::open(&state).unwrap();
        let local =
            |file: &str| TuningData::Local { file: file.to_owned(), stem: "all".to_owned(), bytes: 3 };
        let plan = FineTune {
            custom_id: "a".to_owned(),
            api: TuningApi::Jobs,
            training: local("training.jsonl"),
            validation: Some(local("validation.jsonl")),
            body: serde_json::Map::new(),
            delete_uploads: false,
        };
        let job = Job { kind: Kind::FineTune, ..conformance::job(1, 9, &["m"], 1) };
        let line = Bytes::from(serde_json::to_vec(&plan).unwrap());
        store.put_job(job.clone(), Input::Inline(vec![(0, line)])).await.unwrap();
        let folder = JobFolder::at(store.folder(job.id).unwrap());
        fs::create_dir_all(folder.spec()).unwrap();
        let spec = "kind = \"fine_tune\"\nmodel = \"m\"\n[fine_tune]\ntraining_file = \"../t/all.jsonl\"\nsuffix = \"s\"\n\
                    validation_file = \"v/all.jsonl\"\n[schedule]\ncron = \"0 2 * * *\"\n";
        fs::write(folder.spec().join("job.toml"), spec).unwrap();
        fs::write(folder.path().join("training.jsonl"), "one").unwrap();
        fs::write(folder.path().join("validation.jsonl"), "two").unwrap();
        for status in [JobStatus::Cancelling, JobStatus::Cancelled] {
            store.set_status(job.id, status, NOW).await.unwrap();
        }
        let state = store.job(job.id).await.unwrap();
        drop_failed(&store, &state, &Folders::below(dir.path())).await.unwrap();

        let again = jobs.join("job-1-again");
        let spec: toml::Table = fs::read_to_string(again.join("job.toml")).unwrap().parse().unwrap();
        let expected: toml::Table =
            "kind = \"fine_tune\"\nname = \"job-1-2\"\nmodel = \"m\"\n[fine_tune]\nsuffix = \"s\"\n\
             training_file = \"training_file/all.jsonl\"\nvalidation_file = \"validation_file/all.jsonl\"\n"
                .parse()
                .unwrap();
        assert_eq!(spec, expected);
        assert_eq!(fs::read_to_string(again.join("training_file/all.jsonl")).unwrap(), "one");
        assert_eq!(fs::read_to_string(again.join("validation_file/all.jsonl")).unwrap(), "two");
        assert!(!again.join(REQUESTS).exists());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn failed_requests_are_asked_again_once() {
        let dir = tempfile::tempdir().unwrap();
        let (state, jobs) = (dir.path().join("state"), dir.path().join("jobs"));
        fs::create_dir(&jobs).unwrap();
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(&state).unwrap());
        let job = conformance::job(1, 9, &["m"], 2);
        // Such long lines are read by another thread: each command would meet the other in the middle.
        let body = format!(r#"{{"model":"m","input":"{}"}}"#, "x".repeat(100_000));
        let line =
            |n| format!(r#"{{"custom_id":"c{n}","method":"POST","url":"/v1/embeddings","body":{body}}}"#);
        let lines = [line(0), line(1)];
        let input = lines.iter().map(|line| (0, Bytes::from(line.clone()))).collect();
        store.put_job(job.clone(), Input::Inline(input)).await.unwrap();
        for status in [JobStatus::Cancelling, JobStatus::Cancelled] {
            store.set_status(job.id, status, NOW).await.unwrap();
        }
        let control =
            Control::new(store, Board::default(), Clock::simulated(NOW), Folders::below(dir.path()));
        let (one, two) = tokio::join!(control.retry("job-1"), control.retry("job-1"));
        let told = one.as_ref().or(two.as_ref()).unwrap().message.clone();
        assert_eq!(told.as_deref(), Some("its failed requests are asked again by `job-1-2`"));
        let refused = one.and(two).unwrap_err();
        assert!(matches!(&refused, control::Error::AskedBefore { by, .. } if by == "job-1-2"), "{refused}");
        let folder = jobs.join("job-1-again");
        let written = fs::read_to_string(folder.join(REQUESTS)).unwrap();
        assert!(written.lines().eq(&lines));
        assert!(folder.join("job.toml").is_file());
        assert_eq!(fs::read_dir(&jobs).unwrap().count(), 1);

        // Intake claims it: from now on the job that is made of it counts.
        let made = state.join("jobs").join(conformance::job(2, 9, &["m"], 2).id.to_string());
        fs::create_dir(&made).unwrap();
        fs::rename(folder, made.join("spec")).unwrap();
        let refused = control.retry("job-1").await.unwrap_err();
        assert!(matches!(refused, control::Error::AskedBefore { .. }), "{refused}");
        // It was refused, or removed: they may be asked again.
        fs::remove_dir_all(made).unwrap();
        control.retry("job-1").await.unwrap();
    }

    #[test]
    fn only_leftovers_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let id = conformance::job(1, 9, &["m"], 2).id;
        for name in [format!(".again-{id}.tmp"), ".again-mine.tmp".to_owned(), format!("again-{id}")] {
            fs::create_dir_all(dir.path().join(name).join("below")).unwrap();
        }
        remove_leftovers(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        remove_leftovers(&dir.path().join("none")).unwrap();
    }
}
