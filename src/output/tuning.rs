//! What a fine-tune leaves, brought into its results folder: its events and its result files.
//!
//! # Format
//!
//! `events.jsonl` has the provider's events, oldest first. A result file lies under the provider's name for it, made
//! safe as a file name, or as `metrics.csv`, `metrics-2.csv`, … where it has none. One that comes as a word of base64
//! is decoded.
//!
//! # Operation
//!
//! It is gathered once the fine-tune has ended, and before that is published. The files are all the state there is: what
//! is there is whole and not fetched again, what can't be had is named in the summary and keeps nothing from its
//! end. Then, if the spec says so, what batchd uploaded is deleted: the record is durable, and nothing at the provider
//! needs it any more. Where that is not certain, it stays there and the summary names it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use serde::Deserialize;
use serde_json::value::RawValue;
use tracing::{info, warn};

use super::artefacts::{Artefacts, Unavailable, patiently};
use super::folder::ResultsFolder;
use super::images::{BASE64, stem};
use super::input::Input;
use super::summary::TuningSummary;
use super::target::Target;
use super::{Error, blocking};
use crate::domain::tuning::{Creation, Thing};
use crate::domain::{FineTune, RecordError, TuningApi};
use crate::fault;
use crate::provider::RemoteTuning;
use crate::pulse::Member;
use crate::store::folder::{failed, write_atomic};

const EVENTS: &str = "events.jsonl";
/// Of a result file without a name.
const METRICS: &str = "metrics.csv";
/// A larger file stays as it comes: it is decoded in memory.
const ENCODED_BYTES_MAX: u64 = 64 << 20;
/// So much of a file shows whether it may be base64.
const HEAD_BYTES: u64 = 4 << 10;

/// What became of a fine-tune.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Gathered {
    pub(super) summary: TuningSummary,
    /// The names of what was fetched.
    pub(super) files: Vec<String>,
}

/// What gathering needs.
#[derive(Debug)]
pub(super) struct Gatherer {
    pub(super) input: Input,
    pub(super) folder: ResultsFolder,
    /// None if it is not configured any more.
    pub(super) provider: Option<Arc<dyn Artefacts>>,
    /// The largest result file.
    pub(super) file_bytes_max: u64,
}

/// How the one request of a fine-tune ended, as its record tells.
#[derive(Debug, Default)]
struct Ended {
    remote: Option<RemoteTuning>,
    is_success: bool,
    /// Why it is none.
    reason: Option<String>,
    plan: Option<FineTune>,
    /// What batchd uploaded and the spec wants deleted: ids.
    uploads: Vec<String>,
    /// It may be at work at the provider, all the same.
    may_run: bool,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    response: Option<Reply<'a>>,
    error: Option<RecordError>,
}

#[derive(Deserialize)]
struct Reply<'a> {
    status_code: u16,
    #[serde(borrow)]
    body: &'a RawValue,
}

#[derive(Deserialize)]
struct Refusal {
    error: RefusalWords,
}

#[derive(Deserialize)]
struct RefusalWords {
    message: String,
}

impl Gatherer {
    /// Fetches what there is. Nothing that the provider says or refuses is an error.
    pub(super) async fn gather(self) -> Result<Gathered, Error> {
        let input = self.input.clone();
        let ended = blocking(input.at_work(), move |member| Ended::read(&input, member)).await?;
        let mut gathered = Gathered::default();
        let summary = &mut gathered.summary;
        summary.reason = ended.reason;
        if let Some(remote) = &ended.remote {
            summary.fine_tuned_model = remote.fine_tuned_model.clone().filter(|_| ended.is_success);
            summary.trained_tokens = remote.trained_tokens;
            let api = ended.plan.as_ref().map(|plan| plan.api).unwrap_or_default();
            self.fetch_events(remote, api, &mut gathered).await?;
            self.fetch_files(&remote.result_files, &mut gathered).await?;
        }
        if ended.may_run {
            gathered.summary.kept_uploads = ended.uploads;
        } else if !ended.uploads.is_empty() {
            self.delete(ended.uploads, &mut gathered.summary).await;
        }
        Ok(gathered)
    }

    async fn fetch_events(
        &self,
        remote: &RemoteTuning,
        api: TuningApi,
        gathered: &mut Gathered,
    ) -> Result<(), Error> {
        let path = self.folder.file(EVENTS);
        if !path.is_file() {
            let within = remote.events();
            let events = if within.is_empty() { self.events(api, &remote.id).await } else { Ok(within) };
            match events {
                Ok(events) => {
                    let lines: String = events.iter().flat_map(|event| [event.get(), "\n"]).collect();
                    let write = move |_: &_| write_atomic(&path, lines.as_bytes()).map_err(Error::Files);
                    blocking(self.input.at_work(), write).await?;
                    fault::point("output-events-written");
                }
                Err(Unavailable::Absent(_)) => return Ok(()),
                Err(error) => {
                    self.give_up(EVENTS, &error, gathered);
                    return Ok(());
                }
            }
        }
        gathered.files.push(EVENTS.to_owned());
        Ok(())
    }

    async fn events(&self, api: TuningApi, id: &str) -> Result<Vec<Box<RawValue>>, Unavailable> {
        let provider = self.provider()?;
        patiently(|| provider.events(api, id)).await
    }

    async fn fetch_files(&self, ids: &[String], gathered: &mut Gathered) -> Result<(), Error> {
        let mut taken: BTreeSet<String> =
            ResultsFolder::NAMES.iter().map(|name| (*name).to_owned()).collect();
        for id in ids {
            match self.fetch_file(id, &mut taken).await? {
                Ok(name) => gathered.files.push(name),
                Err(error) => self.give_up(id, &error, gathered),
            }
        }
        Ok(())
    }

    async fn fetch_file(
        &self,
        id: &str,
        taken: &mut BTreeSet<String>,
    ) -> Result<Result<String, Unavailable>, Error> {
        let provider = match self.provider() {
            Ok(provider) => provider,
            Err(error) => return Ok(Err(error)),
        };
        let name = match patiently(|| provider.file_name(id)).await {
            Ok(name) => free_name(&name, taken),
            // Some servers hand out files that they don't describe.
            Err(Unavailable::Absent(_)) => free_name("", taken),
            Err(error) => return Ok(Err(error)),
        };
        let path = self.folder.file(&name);
        if path.is_file() {
            return Ok(Ok(name));
        }
        let target = match patiently(|| self.fetch_content(provider, id, &path)).await {
            Ok(target) => target?,
            Err(error) => return Ok(Err(error)),
        };
        blocking(self.input.at_work(), move |_| publish(target, &path)).await?;
        fault::point("output-artefact-written");
        Ok(Ok(name))
    }

    /// One try. What goes wrong on this side is no fault of the provider's.
    async fn fetch_content(
        &self,
        provider: &dyn Artefacts,
        id: &str,
        path: &Path,
    ) -> Result<Result<Target, Error>, Unavailable> {
        let mut target = match Target::create(path.to_owned()) {
            Ok(target) => target,
            Err(error) => return Ok(Err(error)),
        };
        let fetched = provider.content(id, &mut target, self.file_bytes_max).await;
        match target.arrived() {
            Ok(_) => fetched.map(|()| Ok(target)),
            Err(error) => Ok(Err(error)),
        }
    }

    /// One after the other; what is not there any more is as good as deleted.
    async fn delete(&self, uploads: Vec<String>, summary: &mut TuningSummary) {
        let job = self.input.job().id;
        for id in uploads {
            let deleted = match self.provider() {
                Ok(provider) => patiently(|| provider.delete(&id)).await,
                Err(error) => Err(error),
            };
            match deleted {
                Ok(()) => info!(%job, file = id, "an upload was deleted at the provider"),
                Err(Unavailable::Absent(_)) => {}
                Err(error) => {
                    warn!(%job, file = id, %error, "an upload can't be deleted at the provider, and stays there");
                    summary.kept_uploads.push(id);
                }
            }
        }
        fault::point("output-uploads-deleted");
    }

    fn provider(&self) -> Result<&dyn Artefacts, Unavailable> {
        let gone = || Unavailable::Refused("its provider is not configured any more".to_owned());
        self.provider.as_deref().ok_or_else(gone)
    }

    fn give_up(&self, what: &str, error: &Unavailable, gathered: &mut Gathered) {
        let job = self.input.job().id;
        warn!(%job, file = what, %error, "something that a fine-tune left can't be had");
        gathered.summary.missing_files.push(what.to_owned());
    }
}

impl Ended {
    /// Blocks.
    fn read(input: &Input, member: &Arc<Member>) -> Result<Self, Error> {
        let mut ended = Self { plan: input.plan()?, ..Self::default() };
        let progress = ended.plan.as_ref().map(|plan| input.progress(plan)).transpose()?.flatten();
        input.journal(member)?.scan(0, |record, _| {
            ended.is_success = record.is_success();
            if let Ok(Line { response, error }) = serde_json::from_slice(&record.published()) {
                ended.take(response.as_ref(), error);
            }
            Ok(false)
        })?;
        if let (Some(plan), Some(progress)) = (&ended.plan, &progress) {
            // It may also be the object of a file that was of no use.
            ended.remote.take_if(|object| progress.id_of(Thing::Job) != Some(&object.id));
            let has_ended = ended.remote.as_ref().is_some_and(|remote| remote.status.is_final());
            ended.may_run = !has_ended && *progress.of(Thing::Job) != Creation::Unsent;
            if plan.delete_uploads {
                ended.uploads = progress.uploads(plan).map(str::to_owned).collect();
            }
        }
        Ok(ended)
    }

    fn take(&mut self, response: Option<&Reply<'_>>, error: Option<RecordError>) {
        let body = response.map(|reply| reply.body.get());
        let is_object = response.is_some_and(|reply| matches!(reply.status_code, 200..300));
        self.remote = body.filter(|_| is_object).and_then(RemoteTuning::from_json);
        if self.is_success {
            return;
        }
        let theirs = self.remote.as_ref().and_then(|remote| remote.error.as_ref());
        let theirs = theirs.map(|error| if error.message.is_empty() { &error.code } else { &error.message });
        let refusal = || Some(serde_json::from_str::<Refusal>(body?).ok()?.error.message);
        self.reason = theirs.cloned().or_else(|| Some(error?.message)).or_else(refusal);
    }
}

/// Gives the file its name, decoded if it is one word of base64. Blocks.
fn publish(mut target: Target, path: &Path) -> Result<(), Error> {
    match decoded(target.arrived()?)? {
        Some(bytes) => write_atomic(path, &bytes).map_err(Error::Files),
        None => target.publish(),
    }
}

/// What a file says that is one word of base64 around a text.
fn decoded(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let read = || -> std::io::Result<Option<Vec<u8>>> {
        let mut file = File::open(path)?;
        let mut body = Vec::new();
        file.by_ref().take(HEAD_BYTES).read_to_end(&mut body)?;
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
        if file.metadata()?.len() > ENCODED_BYTES_MAX || !body.trim_ascii().iter().all(is_word) {
            return Ok(None);
        }
        file.read_to_end(&mut body)?;
        let text = BASE64.decode(body.trim_ascii()).ok();
        Ok(text.filter(|text| !text.is_empty() && std::str::from_utf8(text).is_ok()))
    };
    read().map_err(failed("read", path)).map_err(Error::Files)
}

/// A name that nothing else has in the folder, as near to the provider's as can be.
pub(super) fn free_name(theirs: &str, taken: &mut BTreeSet<String>) -> String {
    let wanted = if theirs.is_empty() { METRICS.to_owned() } else { stem(theirs) };
    let (front, ending) = match wanted.rsplit_once('.') {
        Some((front, ending)) if !front.is_empty() => (front, format!(".{ending}")),
        _ => (wanted.as_str(), String::new()),
    };
    let numbered = (2..=u32::MAX).map(|number| format!("{front}-{number}{ending}"));
    let mut names = std::iter::once(wanted.clone()).chain(numbered);
    // Also where a file system knows no capitals.
    names.find(|name| taken.insert(name.to_lowercase())).unwrap_or(wanted)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::sync::atomic::Ordering;

    use serde_json::json;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::disk::scarce::Scarce;
    use crate::domain::{Record, TuningData};
    use crate::output::fake::{FakeStore, JOB, Shelf, job, record, refusal, unanswered};

    const CSV: &[u8] = b"step,train_loss\n1,0.5\n2,0.25\n";

    struct World {
        root: tempfile::TempDir,
        store: Arc<FakeStore>,
        shelf: Arc<Shelf>,
        file_bytes_max: u64,
    }

    impl World {
        fn new(store: FakeStore, shelf: Shelf) -> Self {
            let root = tempfile::tempdir().unwrap();
            let world =
                Self { root, store: Arc::new(store), shelf: Arc::new(shelf), file_bytes_max: 1 << 20 };
            world.folder().create(JOB).unwrap();
            world
        }

        fn folder(&self) -> ResultsFolder {
            ResultsFolder::new(self.root.path(), &"news".parse().unwrap())
        }

        async fn gather(&self) -> Result<Gathered, Error> {
            let state = self.store.state();
            let gatherer = Gatherer {
                input: Input::new(state.job, self.store.clone(), CancellationToken::new()),
                folder: self.folder(),
                provider: Some(self.shelf.clone()),
                file_bytes_max: self.file_bytes_max,
            };
            gatherer.gather().await
        }

        fn files(&self) -> BTreeMap<String, String> {
            let entries = fs::read_dir(self.root.path().join("news")).unwrap().map(Result::unwrap);
            let file = |entry: fs::DirEntry| {
                let text = fs::read(entry.path()).unwrap();
                (entry.file_name().into_string().unwrap(), String::from_utf8_lossy(&text).into_owned())
            };
            entries.map(file).collect()
        }

        /// What the provider was asked since the last time.
        fn calls(&self) -> Vec<String> {
            std::mem::take(&mut *self.shelf.calls.lock().unwrap())
        }
    }

    fn plan(api: TuningApi) -> FineTune {
        FineTune {
            custom_id: "support".to_owned(),
            api,
            training: TuningData::Uploaded { id: "file-t".to_owned() },
            validation: None,
            body: serde_json::Map::new(),
            delete_uploads: false,
        }
    }

    fn tuned(api: TuningApi, object: &serde_json::Value) -> FakeStore {
        let store = FakeStore::new(job(1)).with_plan(&plan(api));
        store.append(&record(0, 200, &object.to_string()));
        store
    }

    fn succeeded(result_files: &serde_json::Value) -> serde_json::Value {
        json!({
            "id": "ftjob-1", "object": "fine_tuning.job", "status": "succeeded", "error": {},
            "fine_tuned_model": "ft:m:o::1", "trained_tokens": 4321, "result_files": result_files,
        })
    }

    fn shelf(files: &[(&'static str, &'static str, &[u8])]) -> Shelf {
        let files = files.iter().map(|(id, name, content)| (*id, (*name, content.to_vec()))).collect();
        Shelf {
            events: Some(vec![r#"{"message":"one"}"#, r#"{"message":"two"}"#]),
            files,
            ..Shelf::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn events_and_result_files_are_fetched_once_and_the_model_is_named() {
        let base64 = BASE64.encode(CSV) + "\n";
        let shelf = shelf(&[
            ("file-1", "step_metrics.csv", base64.as_bytes()),
            ("file-2", "", CSV),
            ("file-3", "", CSV),
        ]);
        let world =
            World::new(tuned(TuningApi::Jobs, &succeeded(&json!(["file-1", "file-2", "file-3"]))), shelf);
        let gathered = world.gather().await.unwrap();
        let summary = TuningSummary {
            fine_tuned_model: Some("ft:m:o::1".to_owned()),
            trained_tokens: Some(4321),
            ..TuningSummary::default()
        };
        assert_eq!(gathered.summary, summary);
        let names = ["events.jsonl", "step_metrics.csv", "metrics.csv", "metrics-2.csv"];
        assert_eq!(gathered.files, names);
        let csv = std::str::from_utf8(CSV).unwrap();
        let events = "{\"message\":\"one\"}\n{\"message\":\"two\"}\n";
        let contents = [events, csv, csv, csv];
        let expected = names.iter().zip(contents).map(|(name, text)| ((*name).to_owned(), text.to_owned()));
        assert_eq!(world.files(), expected.collect());

        // A start after a crash fetches only what is not there.
        world.calls();
        fs::remove_file(world.folder().file("metrics.csv")).unwrap();
        let before = world.files();
        assert_eq!(world.gather().await.unwrap(), gathered);
        assert_eq!(world.calls(), ["name file-1", "name file-2", "content file-2", "name file-3"]);
        assert_eq!(world.files().len(), before.len() + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_tried_three_times_and_then_named_in_the_summary() {
        let object = succeeded(&json!(["file-1", "gone"]));
        let world = World::new(tuned(TuningApi::Jobs, &object), shelf(&[("file-1", "a.csv", CSV)]));
        world.shelf.failures.store(2, Ordering::Relaxed);
        let gathered = world.gather().await.unwrap();
        assert_eq!(gathered.files, ["events.jsonl", "a.csv"]);
        assert_eq!(gathered.summary.missing_files, ["gone"]);

        let world = World::new(tuned(TuningApi::Jobs, &object), shelf(&[("file-1", "a.csv", CSV)]));
        world.shelf.failures.store(6, Ordering::Relaxed);
        let gathered = world.gather().await.unwrap();
        assert_eq!(gathered.summary.missing_files, ["events.jsonl", "file-1", "gone"]);
        assert_eq!(world.files(), BTreeMap::new());
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_download_is_no_file() {
        let object = succeeded(&json!(["file-1", "file-2"]));
        let large = [b'x'; 2000];
        let shelf = shelf(&[("file-1", "a.csv", CSV), ("file-2", "large.csv", &large)]);
        let world = World { file_bytes_max: 1000, ..World::new(tuned(TuningApi::Jobs, &object), shelf) };
        fs::write(world.folder().file("events.jsonl"), "").unwrap();
        // The name, then two tries that break off.
        world.gather().await.unwrap();
        fs::remove_file(world.folder().file("a.csv")).unwrap();
        fs::write(world.folder().file(".a.csv.tmp"), "half, from before a crash").unwrap();
        world.shelf.failures.store(3, Ordering::Relaxed);
        let gathered = world.gather().await.unwrap();
        assert_eq!(gathered.summary.missing_files, ["file-1", "file-2"]);
        let gathered = world.gather().await.unwrap();
        assert_eq!(gathered.files, ["events.jsonl", "a.csv"]);
        assert_eq!(world.files().into_keys().collect::<Vec<_>>(), ["a.csv", "events.jsonl"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_without_events_is_no_trouble_and_legacy_objects_hold_them() {
        let without = Shelf::default();
        let world = World::new(tuned(TuningApi::Jobs, &succeeded(&json!([]))), without);
        assert_eq!(world.gather().await.unwrap().summary.missing_files, [""; 0]);
        assert_eq!(world.files(), BTreeMap::new());

        let events = json!([{"message": "created"}, {"message": "done"}]);
        let object = json!({
            "id": "ft-1", "status": "succeeded", "fine_tuned_model": "curie:ft-o", "events": events,
            "result_files": [{"id": "file-r", "filename": "compiled_results.csv"}],
        });
        let shelf = shelf(&[("file-r", "compiled_results.csv", CSV)]);
        let world = World::new(tuned(TuningApi::Legacy, &object), shelf);
        let gathered = world.gather().await.unwrap();
        assert_eq!(gathered.files, ["events.jsonl", "compiled_results.csv"]);
        assert_eq!(gathered.summary.trained_tokens, None);
        assert_eq!(world.files()["events.jsonl"], "{\"message\":\"created\"}\n{\"message\":\"done\"}\n");
        assert_eq!(world.calls(), ["name file-r", "content file-r"]);
    }

    #[tokio::test(start_paused = true)]
    async fn why_there_is_no_model_is_told_in_the_providers_words() {
        let words = "The job failed  due to \"moderation\":\n- line 3 \u{1f642}";
        let ours = Some(RecordError { code: "failed".to_owned(), message: "ours".to_owned() });
        let failed =
            |object: serde_json::Value| Record { error: ours.clone(), ..record(0, 200, &object.to_string()) };
        let error = json!({"code": "moderation", "message": words, "param": null});
        let nulls = json!({"code": null, "message": null, "param": null});
        let event = json!({"level": "error", "message": words});
        for (record, reason) in [
            (failed(json!({"id": "ftjob-1", "status": "failed", "error": error})), words),
            (
                failed(
                    json!({"id": "ft-1", "status": "failed", "events": [event, {"level": "info", "message": "x"}]}),
                ),
                words,
            ),
            (
                failed(
                    json!({"id": "ftjob-1", "status": "cancelled", "error": nulls, "fine_tuned_model": "ft:m"}),
                ),
                "ours",
            ),
            (refusal(0), "no"),
            (unanswered(0, "vanished"), "never"),
        ] {
            let store = FakeStore::new(job(1)).with_plan(&plan(TuningApi::Jobs));
            store.append(&record);
            let world = World::new(store, Shelf::default());
            let summary = world.gather().await.unwrap().summary;
            assert_eq!(summary.reason.as_deref(), Some(reason), "{record:?}");
            assert_eq!((summary.fine_tuned_model, summary.missing_files.len()), (None, 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_record_or_a_provider_there_is_nothing_to_gather() {
        let world = World::new(FakeStore::new(job(1)).with_plan(&plan(TuningApi::Jobs)), Shelf::default());
        assert_eq!(world.gather().await.unwrap(), Gathered::default());

        let world = World::new(tuned(TuningApi::Jobs, &succeeded(&json!(["file-1"]))), Shelf::default());
        let state = world.store.state();
        let gatherer = Gatherer {
            input: Input::new(state.job, world.store.clone(), CancellationToken::new()),
            folder: world.folder(),
            provider: None,
            file_bytes_max: 1,
        };
        let summary = gatherer.gather().await.unwrap().summary;
        assert_eq!(summary.missing_files, ["events.jsonl", "file-1"]);
        assert_eq!(summary.fine_tuned_model.as_deref(), Some("ft:m:o::1"));
    }

    /// Wherever the disk fills up, the download is not given up for it.
    #[tokio::test(start_paused = true)]
    async fn a_full_disk_is_waited_for() {
        let object = succeeded(&json!(["file-1", "file-2"]));
        let base64 = BASE64.encode(CSV);
        let shelf = shelf(&[("file-1", "a.csv", CSV), ("file-2", "b.csv", base64.as_bytes())]);
        let world = World::new(tuned(TuningApi::Jobs, &object), shelf);
        let (disk, _installed) = Scarce::under(world.root.path());
        let mut refused = 0;
        loop {
            disk.fill_after(refused);
            match world.gather().await {
                Ok(gathered) => {
                    assert_eq!(gathered.files, ["events.jsonl", "a.csv", "b.csv"]);
                    break;
                }
                Err(Error::Files(error)) => assert!(error.is_full(), "{error}"),
                Err(error) => panic!("{error}"),
            }
            assert!(!world.files().keys().any(|name| name.starts_with('.')), "after {refused} acts");
            refused += 1;
        }
        assert!(refused > 3, "{refused}");
        assert_eq!(world.files()["b.csv"].as_bytes(), CSV);
    }

    /// Two files go up for it, and are to be deleted.
    fn local_plan() -> FineTune {
        let local =
            |stem: &str| TuningData::Local { file: format!("{stem}.jsonl"), stem: stem.to_owned(), bytes: 1 };
        FineTune {
            training: local("training"),
            validation: Some(local("validation")),
            delete_uploads: true,
            ..plan(TuningApi::Jobs)
        }
    }

    /// What a fine-tune left of which two files were uploaded, and as which job it is known.
    fn uploaded(job_memo: &serde_json::Value, record: Option<&Record>) -> FakeStore {
        let there = |id: &str| json!({"state": "there", "id": id});
        let memo = json!({"training": there("file-t"), "validation": there("file-v"), "job": job_memo});
        let store = FakeStore::new(job(1)).with_plan(&local_plan()).with_memo(memo.to_string());
        if let Some(record) = record {
            store.append(record);
        }
        store
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_uploaded_is_deleted_once_everything_else_is_there() {
        let object = succeeded(&json!(["file-1"]));
        let ended = record(0, 200, &object.to_string());
        let there = json!({"state": "there", "id": "ftjob-1"});
        let shelf = shelf(&[("file-1", "a.csv", CSV), ("file-t", "", b""), ("file-v", "", b"")]);
        let world = World::new(uploaded(&there, Some(&ended)), shelf);
        assert_eq!(world.gather().await.unwrap().summary.kept_uploads, [""; 0]);
        let calls = world.calls();
        assert_eq!(calls[calls.len() - 2..], ["delete file-t", "delete file-v"]);
        assert_eq!(calls[calls.len() - 3], "content file-1");

        // Not there any more: as good as deleted. Refused: named.
        let world = World::new(uploaded(&there, Some(&ended)), Shelf::default());
        assert_eq!(world.gather().await.unwrap().summary.kept_uploads, [""; 0]);
        let shelf = Shelf { refuses_to_delete: true, ..Shelf::default() };
        let world = World::new(uploaded(&there, Some(&ended)), shelf);
        assert_eq!(world.gather().await.unwrap().summary.kept_uploads, ["file-t", "file-v"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_wants_deleted_stays() {
        let object = succeeded(&json!([]));
        let there = json!({"state": "there", "id": "ftjob-1"});
        let store = uploaded(&there, Some(&record(0, 200, &object.to_string())));
        let plan = FineTune { delete_uploads: false, ..local_plan() };
        let world = World::new(store.with_plan(&plan), Shelf::default());
        assert_eq!(world.gather().await.unwrap().summary.kept_uploads, [""; 0]);
        assert!(!world.calls().iter().any(|call| call.starts_with("delete")));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_deleted_that_a_fine_tune_at_the_provider_may_need() {
        let there = json!({"state": "there", "id": "ftjob-1"});
        let unsent = json!({"state": "unsent"});
        let sent = json!({"state": "sent", "at": 1});
        let running = record(0, 200, r#"{"id":"ftjob-1","status":"running"}"#);
        let given_up = Record { error: unanswered(0, "cancelled").error, ..running };
        let useless =
            record(0, 200, r#"{"id":"file-t","object":"file","status":"error","result_files":["file-x"]}"#);
        let useless = Record { error: unanswered(0, "invalid_file").error, ..useless };
        for (job, record, deletes) in [
            (&unsent, Some(refusal(0)), true),
            (&unsent, Some(useless), true),
            (&unsent, None, true),
            (&sent, Some(refusal(0)), false),
            (&there, Some(unanswered(0, "timeout")), false),
            (&there, Some(given_up), false),
        ] {
            let world = World::new(uploaded(job, record.as_ref()), Shelf::default());
            let summary = world.gather().await.unwrap().summary;
            let kept = summary.kept_uploads;
            assert_eq!(summary.missing_files, [""; 0], "{job}");
            let deleted = world.calls().iter().filter(|call| call.starts_with("delete")).count();
            assert_eq!((kept.len(), deleted), if deletes { (0, 2) } else { (2, 0) }, "{job}");
        }
    }

    #[test]
    fn result_files_keep_their_names_and_take_nobody_elses() {
        let mut taken = ResultsFolder::NAMES.iter().map(|name| (*name).to_owned()).collect();
        for (theirs, name) in [
            ("", "metrics.csv"),
            ("", "metrics-2.csv"),
            ("step_metrics.csv", "step_metrics.csv"),
            ("Step_Metrics.csv", "Step_Metrics-2.csv"),
            ("Summary.json", "Summary-2.json"),
            ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
            (".hidden", "%2Ehidden"),
            ("images", "images-2"),
            ("a.tar.gz", "a.tar.gz"),
            ("a.tar.gz", "a.tar-2.gz"),
        ] {
            assert_eq!(free_name(theirs, &mut taken), name);
        }
    }

    #[test]
    fn only_one_word_of_base64_around_a_text_is_decoded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let text = |body: &[u8]| {
            fs::write(&path, body).unwrap();
            decoded(&path).unwrap()
        };
        let large = b"step,loss\n".repeat(1000);
        for bytes in [CSV, large.as_slice()] {
            let base64 = BASE64.encode(bytes);
            assert_eq!(text(base64.as_bytes()).as_deref(), Some(bytes));
            assert_eq!(text(base64.trim_end_matches('=').as_bytes()).as_deref(), Some(bytes));
            assert_eq!(text(format!("{base64} {base64}").as_bytes()), None);
            assert_eq!(text(bytes), None);
        }
        let binary = BASE64.encode([0xff, 0xfe, 0x00, 0x80]);
        for body in ["", "\n", "step", "done.", binary.as_str()] {
            assert_eq!(text(body.as_bytes()), None, "{body}");
        }
    }
}
