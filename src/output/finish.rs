//! Publishing: from the journal of a job that has ended to the files that its user reads.
//!
//! # Operation
//!
//! The journal is gone over in passes of so many requests as a table of 8 bytes each may have
//! ([`Publication::pass`]): records are found, then copied in the order of the input. Every file gets its
//! name when it is whole and synced; `summary.json` is the last, so its presence means that all of them
//! are there. How long it takes is not bounded, but between two signs of life there is never more than one act on the
//! disk, of some MiB. Nothing is remembered in between: after a crash the same is done again, with the same bytes.

use std::sync::Arc;

use tracing::warn;

use super::Error;
use super::folder::ResultsFolder;
use super::images::{Gallery, may_hold_images};
use super::input::Input;
use super::journal::Reader;
use super::summary::{Summary, Tally};
use super::target::Target;
use super::tuning::Gathered;
use crate::domain::range::{BLOCK, Bits};
use crate::domain::record::JournalLine;
use crate::domain::{JobState, JobStatus, Kind, Order, Record, RecordError, RequestId, Timestamp};
use crate::fault;
use crate::provider::usage_of;
use crate::pulse::Member;
use crate::reading::look::Look;

/// A job that has ended, about to be published.
#[derive(Debug)]
pub(super) struct Publication {
    pub(super) state: JobState,
    pub(super) input: Input,
    pub(super) folder: ResultsFolder,
    /// Of a fine-tune.
    pub(super) gathered: Gathered,
    /// Requests of one pass over the journal.
    pub(super) pass: u32,
    pub(super) now: Timestamp,
}

/// Lines that wait for their names.
#[derive(Debug)]
pub(super) struct Prepared {
    publication: Publication,
    output: Target,
    errors: Option<Target>,
    tally: Tally,
}

/// The final status of a job that ends from `status`.
pub(super) const fn end_of(status: &JobStatus) -> JobStatus {
    match status {
        JobStatus::Cancelling | JobStatus::Cancelled => JobStatus::Cancelled,
        JobStatus::Expiring | JobStatus::Expired => JobStatus::Expired,
        JobStatus::InProgress
        | JobStatus::Paused { .. }
        | JobStatus::Held { .. }
        | JobStatus::Finalizing
        | JobStatus::Completed
        | JobStatus::Failed { .. } => JobStatus::Completed,
    }
}

impl Publication {
    /// Writes the lines under temporary names. What makes a job unpublishable shows here, before anything
    /// that its user reads has changed. Blocks.
    pub(super) fn prepare(self, member: &Arc<Member>) -> Result<Prepared, Error> {
        let job = &self.state.job;
        self.folder.create(job.id)?;
        let mut journal = self.input.journal(member)?;
        self.folder.check_room(journal.length()?)?;
        let mut lines = Lines::new(&self)?;
        match job.settings.order {
            Order::Input => lines.write_in_order(&mut journal, Wanted::All)?,
            Order::Completion => {
                lines.write_successes_as_completed(&mut journal)?;
                lines.write_in_order(&mut journal, Wanted::Failures)?;
            }
        }
        let Lines { output, errors, tally, .. } = lines;
        if tally.duplicates > 0 {
            warn!(job = %job.id, duplicates = tally.duplicates, "requests have two records; the first counts");
        }
        Ok(Prepared { publication: self, output, errors, tally })
    }

    /// Puts the spec beside the results and lists what lies there.
    fn place_files(&self, summary: &Summary, member: &Member) -> Result<Vec<String>, Error> {
        let spec = match self.input.store().folder(self.state.job.id) {
            Some(state) => self.folder.place_spec(&state, member)?,
            None => None,
        };
        let errors = (summary.counts.failed > 0).then_some("errors.jsonl");
        let images = summary.images.is_some_and(|images| images.written > 0).then_some("images/");
        let ours = [Some("output.jsonl"), errors].into_iter().flatten();
        let gathered = self.gathered.files.iter().map(String::as_str);
        let others = [images, spec].into_iter().flatten();
        Ok(ours.chain(gathered).chain(others).map(str::to_owned).collect())
    }

    /// The line of a request that has no record, in a journal with so many damaged lines. A completed job
    /// has none.
    fn unanswered(&self, index: u32, damaged: u64) -> Result<Record, Error> {
        let end = end_of(&self.state.status);
        let (code, message) = if !matches!(end, JobStatus::Cancelled | JobStatus::Expired) {
            return Err(Error::Unpublishable(format!(
                "request {index} counts as settled and has no record (damaged lines of the journal: {damaged}); stop \
                 batchd and run `batchd rebuild`, then `batchd retry` asks for it again"
            )));
        } else if damaged > 0 {
            // Its answer may be what is damaged: it was paid for, and must not be called cancelled. The job
            // ends all the same, since it can be held no more.
            ("uncertain", "its answer may be lost: the job's journal is damaged")
        } else if end == JobStatus::Cancelled {
            ("cancelled", "the job was cancelled before this request was answered")
        } else {
            ("expired", "the job's deadline passed before this request was answered")
        };
        let request = RequestId { job: self.state.job.id, index };
        let error = RecordError { code: code.to_owned(), message: message.to_owned() };
        Ok(Record { request, custom_id: self.input.custom_id(index)?, response: None, error: Some(error) })
    }
}

impl Prepared {
    /// Requests that have got their one line only here.
    pub(super) const fn unanswered(&self) -> u32 {
        self.tally.unanswered
    }

    pub(super) const fn input(&self) -> &Input {
        &self.publication.input
    }

    /// Gives everything its name, the summary last. Blocks; between two files `member` answers the roll call.
    pub(super) fn finish(self, member: &Member) -> Result<Summary, Error> {
        let Self { publication, output, errors, tally } = self;
        let Publication { state, folder, now, .. } = &publication;
        output.publish()?;
        fault::point("output-lines-published");
        member.answer();
        match errors {
            Some(errors) => errors.publish()?,
            None => folder.remove(&folder.errors())?,
        }
        fault::point("output-errors-published");
        member.answer();
        Gallery::new(folder).sweep(member)?;
        let mut summary = Summary::new(state, &end_of(&state.status), &tally, *now);
        summary.tuning = publication.gathered.summary.clone();
        summary.files = publication.place_files(&summary, member)?;
        fault::point("output-spec-placed");
        folder.remove_partial()?;
        member.answer();
        // A try before a crash may have told all of it, and the job did not finish twice.
        let told = folder.own_summary(state.job.id)?.filter(|told| told.tells_the_same(&summary));
        let summary = if let Some(told) = told {
            told
        } else {
            folder.write_summary(&summary)?;
            summary
        };
        fault::point("output-summary-published");
        member.answer();
        Ok(summary)
    }
}

/// Which records a pass writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    All,
    Successes,
    Failures,
}

/// The two files of results, while they are written.
struct Lines<'p> {
    publication: &'p Publication,
    gallery: Gallery,
    output: Target,
    /// Made for the first failure.
    errors: Option<Target>,
    tally: Tally,
}

impl<'p> Lines<'p> {
    fn new(publication: &'p Publication) -> Result<Self, Error> {
        let folder = &publication.folder;
        let mut tally = Tally::default();
        tally.lines.total = publication.state.job.total;
        let output = Target::create(folder.output())?;
        Ok(Self { publication, gallery: Gallery::new(folder), output, errors: None, tally })
    }

    /// Writes the records of every request, in the order of the input.
    fn write_in_order(&mut self, journal: &mut Reader, wanted: Wanted) -> Result<(), Error> {
        let total = self.publication.state.job.total;
        let pass = self.publication.pass.max(1);
        for base in (0..total).step_by(pass as usize) {
            let index = journal.index(base, pass.min(total - base))?;
            self.tally.duplicates += index.duplicates;
            journal.in_order(&index, |request, record| match record {
                Some(record) => self.put(record, wanted),
                None => self.put_unanswered(request, index.damaged),
            })?;
        }
        Ok(())
    }

    /// Writes the successes in the order of the journal. Keeps a bit for each request of the job.
    fn write_successes_as_completed(&mut self, journal: &mut Reader) -> Result<(), Error> {
        let total = self.publication.state.job.total;
        let mut seen = vec![Bits::EMPTY; total.div_ceil(BLOCK) as usize];
        journal.scan(0, |record, _| {
            if let Some(bits) = seen.get_mut((record.index / BLOCK) as usize) {
                let offset = record.index % BLOCK;
                if record.index < total && !bits.contains(offset) {
                    bits.insert(offset);
                    self.put(record, Wanted::Successes)?;
                }
            }
            Ok(true)
        })?;
        Ok(())
    }

    fn put(&mut self, record: JournalLine<'_>, wanted: Wanted) -> Result<(), Error> {
        let mut line = record.published();
        let is_success = record.is_success();
        let needed = match wanted {
            Wanted::All => true,
            Wanted::Successes => is_success,
            Wanted::Failures => !is_success,
        };
        if !needed {
            return Ok(());
        }
        // What a fine-tune was trained on is in the summary by itself, and has another price.
        if self.publication.state.job.kind != Kind::FineTune {
            let usage = record.body().and_then(|body| usage_of(Look::of_record(body))).unwrap_or_default();
            self.tally.tokens.add(usage.input_tokens, usage.output_tokens);
        }
        if !is_success {
            return self.put_failure(&line);
        }
        if may_hold_images(&line) && self.publication.input.asks_for_images(record.index)? {
            line = self.gallery.publish(line, &mut self.tally.images)?;
        }
        self.tally.lines.completed += 1;
        self.output.write_line(&line)?;
        fault::point("output-line-written");
        Ok(())
    }

    fn put_unanswered(&mut self, index: u32, damaged: u64) -> Result<(), Error> {
        let record = self.publication.unanswered(index, damaged)?;
        self.tally.unanswered += 1;
        self.put_failure(&record.to_line())
    }

    fn put_failure(&mut self, line: &[u8]) -> Result<(), Error> {
        self.tally.lines.failed += 1;
        let errors = match &mut self.errors {
            Some(errors) => errors,
            none => none.insert(Target::create(self.publication.folder.errors())?),
        };
        errors.write_line(line)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Mutex};

    use base64::Engine as _;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::disk::probe::{Probe, Verdict, install};
    use crate::disk::scarce::{ROOMY, Scarce};
    use crate::disk::{Act, Space};
    use crate::domain::{Counts, Kind};
    use crate::output::fake::{ACCEPTED, FakeStore, JOB, answer, job, record, refusal, unanswered};
    use crate::store::Store;
    use crate::store::folder::JobFolder;

    struct World {
        root: tempfile::TempDir,
        store: Arc<FakeStore>,
        pass: u32,
        now: Timestamp,
        stop: CancellationToken,
    }

    impl World {
        fn new(store: FakeStore) -> Self {
            let now = ACCEPTED + std::time::Duration::from_millis(2500);
            let root = tempfile::tempdir().unwrap();
            Self { root, store: Arc::new(store), pass: 1 << 20, now, stop: CancellationToken::new() }
        }

        /// With a folder below `state/jobs/` that holds a spec.
        fn with_state(store: FakeStore) -> Self {
            let mut world = Self::new(FakeStore::new(job(0)));
            let state = world.root.path().join("state");
            world.store = Arc::new(store.in_folder(state.clone()));
            fs::write(JobFolder::at(state).input(), "{}\n").unwrap();
            world
        }

        fn results(&self) -> PathBuf {
            self.root.path().join("results")
        }

        async fn publish(&self) -> Result<Summary, Error> {
            let state = self.store.state();
            let publication = Publication {
                folder: ResultsFolder::new(&self.results(), &state.job.name),
                input: Input::new(state.job.clone(), self.store.clone(), self.stop.clone()),
                state,
                gathered: Gathered::default(),
                pass: self.pass,
                now: self.now,
            };
            let published = tokio::task::spawn_blocking(move || {
                let member = Arc::default();
                publication.prepare(&member)?.finish(&member)
            });
            published.await.unwrap()
        }

        /// Every file of the results folder with its bytes, images by their path.
        fn files(&self) -> BTreeMap<String, Vec<u8>> {
            let mut files = BTreeMap::new();
            collect(&self.results().join("news"), "", &mut files);
            files
        }

        fn lines(&self, name: &str) -> Vec<String> {
            let text = fs::read_to_string(self.results().join("news").join(name)).unwrap();
            assert!(text.is_empty() || text.ends_with('\n'));
            text.lines().map(str::to_owned).collect()
        }
    }

    fn collect(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            if entry.path().is_dir() {
                collect(&entry.path(), &format!("{name}/"), files);
            } else {
                files.insert(name, fs::read(entry.path()).unwrap());
            }
        }
    }

    fn published(records: &[Record]) -> Vec<String> {
        records.iter().map(|record| String::from_utf8(record.to_line()).unwrap()).collect()
    }

    fn shuffled() -> FakeStore {
        let store = FakeStore::new(job(6));
        for index in [5, 0, 3] {
            store.append(&answer(index, "a"));
        }
        store.append(&refusal(4));
        store.append(&answer(1, "a"));
        store.append(&unanswered(2, "timeout"));
        store
    }

    #[tokio::test]
    async fn answers_lie_in_input_order_byte_for_byte() {
        let world = World::new(shuffled());
        let summary = world.publish().await.unwrap();
        let expected = published(&[answer(0, "a"), answer(1, "a"), answer(3, "a"), answer(5, "a")]);
        assert_eq!(world.lines("output.jsonl"), expected);
        assert_eq!(world.lines("errors.jsonl"), published(&[unanswered(2, "timeout"), refusal(4)]));
        assert_eq!((summary.counts.total, summary.counts.completed, summary.counts.failed), (6, 4, 2));
        assert_eq!((summary.tokens.input, summary.tokens.output, summary.tokens.total), (8, 12, 20));
    }

    #[tokio::test]
    async fn a_disk_that_fills_up_at_any_place_is_left_no_fuller_and_published_on_later() {
        let world = World::with_state(shuffled());
        let (disk, _installed) = Scarce::under(world.root.path());
        let mut refused = 0;
        loop {
            disk.fill_after(refused);
            match world.publish().await {
                Ok(_) => break,
                Err(Error::Files(error)) => assert!(error.is_full(), "{error}"),
                Err(error) => panic!("{error}"),
            }
            if world.results().join("news").is_dir() {
                let left: Vec<_> = world.files().into_keys().collect();
                assert!(!left.iter().any(|name| name.starts_with('.')), "after {refused} acts: {left:?}");
                assert!(!left.contains(&"summary.json".to_owned()), "after {refused} acts");
            }
            refused += 1;
        }
        assert!(refused > 5, "{refused}");
        let expected = published(&[answer(0, "a"), answer(1, "a"), answer(3, "a"), answer(5, "a")]);
        assert_eq!(world.lines("output.jsonl"), expected);
        assert_eq!(world.lines("errors.jsonl"), published(&[unanswered(2, "timeout"), refusal(4)]));
    }

    /// Lists what is done in a folder while the summary is there.
    #[derive(Debug, Default)]
    struct Late(Mutex<Vec<String>>);

    impl Probe for Late {
        fn before(&self, _: &Act<'_>) -> Verdict {
            Verdict::Go
        }

        fn after(&self, act: &Act<'_>) {
            let is_done = act.path().ancestors().any(|folder| folder.join("news/summary.json").exists());
            if is_done && !matches!(act, Act::SyncDir { .. }) {
                self.0.lock().unwrap().push(format!("{act:?}"));
            }
        }
    }

    #[tokio::test]
    async fn all_is_done_when_the_summary_is_there() {
        let world = World::with_state(shuffled());
        let folder = ResultsFolder::new(&world.results(), &world.store.state().job.name);
        folder.create(JOB).unwrap();
        let journal = world.root.path().join("journal");
        fs::write(&journal, "").unwrap();
        assert!(folder.link(&journal).unwrap());
        let late = Arc::new(Late::default());
        let _installed = install(&world.results(), late.clone());
        world.publish().await.unwrap();
        let late = late.0.lock().unwrap();
        assert!(matches!(late.as_slice(), [named] if named.contains("summary.json")), "{late:?}");
        assert!(!world.files().contains_key("output.partial.jsonl"));
    }

    #[tokio::test]
    async fn nothing_is_written_where_the_results_have_no_room() {
        let world = World::new(shuffled());
        let (disk, _installed) = Scarce::under(world.root.path());
        disk.says(Space { free: 100, ..ROOMY });
        let error = world.publish().await.unwrap_err();
        assert!(matches!(&error, Error::Files(error) if error.is_full()), "{error}");
        assert_eq!(world.files(), BTreeMap::new());
        disk.says(ROOMY);
        world.publish().await.unwrap();
    }

    #[tokio::test]
    async fn completion_order_keeps_errors_in_input_order() {
        let store = shuffled();
        store.append(&answer(5, "a second record does not count"));
        store.change(|state| state.job.settings.order = Order::Completion);
        let world = World { pass: 4, ..World::new(store) };
        let summary = world.publish().await.unwrap();
        let expected = published(&[answer(5, "a"), answer(0, "a"), answer(3, "a"), answer(1, "a")]);
        assert_eq!(world.lines("output.jsonl"), expected);
        assert_eq!(world.lines("errors.jsonl"), published(&[unanswered(2, "timeout"), refusal(4)]));
        assert_eq!((summary.counts.completed, summary.counts.failed, summary.tokens.total), (4, 2, 20));
    }

    #[tokio::test]
    async fn passes_of_any_size_give_the_same_files() {
        let whole = World::new(shuffled());
        whole.publish().await.unwrap();
        for pass in [0, 1, 2, 4, 5, 6, 7] {
            let world = World { pass, ..World::new(shuffled()) };
            world.publish().await.unwrap();
            assert_eq!(world.files(), whole.files(), "passes of {pass}");
        }
    }

    #[tokio::test]
    async fn without_failures_there_is_no_errors_file() {
        let store = FakeStore::new(job(1));
        store.append(&answer(0, "a"));
        let world = World::new(store);
        // What a publish that was cut short before a retry may have left.
        fs::create_dir_all(world.results().join("news")).unwrap();
        fs::write(world.results().join("news/errors.jsonl"), "{}\n").unwrap();
        let summary = world.publish().await.unwrap();
        assert_eq!(world.files().keys().collect::<Vec<_>>(), ["output.jsonl", "summary.json"]);
        assert_eq!(summary.files, ["output.jsonl"]);
    }

    #[tokio::test]
    async fn every_request_of_a_cancelled_or_expired_job_gets_its_line() {
        for (status, code) in [(JobStatus::Cancelling, "cancelled"), (JobStatus::Expiring, "expired")] {
            for order in [Order::Input, Order::Completion] {
                let store = FakeStore::new(job(4));
                store.append(&refusal(3));
                store.append(&answer(1, "paid for"));
                store.change(|state| {
                    state.status = status.clone();
                    state.job.settings.order = order;
                });
                let world = World { pass: 3, ..World::new(store) };
                let summary = world.publish().await.unwrap();
                assert_eq!(summary.status, code);
                assert_eq!((summary.counts.completed, summary.counts.failed), (1, 3));
                assert_eq!(world.lines("output.jsonl"), published(&[answer(1, "paid for")]));
                let errors = world.lines("errors.jsonl");
                assert_eq!(errors.len(), 3);
                for (line, custom_id) in [(&errors[0], "line-1"), (&errors[1], "line-3")] {
                    let line: serde_json::Value = serde_json::from_str(line).unwrap();
                    assert_eq!(line["custom_id"], custom_id);
                    assert_eq!(line["error"]["code"], code);
                    assert!(line["response"].is_null());
                }
                assert_eq!(errors[2..], published(&[refusal(3)]));
            }
        }
    }

    #[tokio::test]
    async fn a_job_whose_journal_lacks_a_record_is_not_published() {
        let store = FakeStore::new(job(2));
        store.append(&answer(0, "a"));
        let world = World::new(store);
        let error = world.publish().await.unwrap_err();
        assert!(matches!(&error, Error::Unpublishable(why) if why.contains("request 1")), "{error}");
        assert!(!world.files().contains_key("output.jsonl") && !world.files().contains_key("summary.json"));
    }

    #[tokio::test]
    async fn a_damaged_line_may_be_an_answer_and_is_not_called_cancelled() {
        let store = FakeStore::new(job(2));
        store.append(&answer(0, "a"));
        let mut line = answer(1, "paid for").to_journal_line(1);
        line[9] ^= 1;
        store.append_bytes(&line);
        let world = World::new(store);
        let error = world.publish().await.unwrap_err();
        assert!(
            matches!(&error, Error::Unpublishable(why) if why.contains("(damaged lines of the journal: 1)")),
            "{error}"
        );
        // On its way to its end a job can't be held, so it has to get there.
        world.store.change(|state| state.status = JobStatus::Cancelling);
        let summary = world.publish().await.unwrap();
        assert_eq!((summary.status.as_str(), summary.counts.failed), ("cancelled", 1));
        let errors = world.lines("errors.jsonl");
        assert!(errors[0].contains(r#""code":"uncertain""#), "{errors:?}");
    }

    #[tokio::test]
    async fn requests_of_other_endpoints_keep_what_looks_like_an_image() {
        let store = FakeStore::new(job(1));
        let chat = record(0, 200, r#"{"data":[{"url":"http://x"},{"b64_json":"R0lGODlh"}]}"#);
        store.append(&chat);
        let world = World::new(store);
        let summary = world.publish().await.unwrap();
        assert_eq!(world.lines("output.jsonl"), published(&[chat]));
        assert_eq!(summary.images, None);
    }

    #[tokio::test]
    async fn the_results_of_another_job_are_never_overwritten() {
        let world = World::new(shuffled());
        world.publish().await.unwrap();
        let before = world.files();
        world.store.change(|state| state.job.id = crate::domain::JobId::from_bytes([2; 16]));
        let error = world.publish().await.unwrap_err();
        assert!(matches!(&error, Error::Unpublishable(why) if why.contains("belongs to job")), "{error}");
        assert_eq!(world.files(), before);
    }

    #[tokio::test]
    async fn the_summary_tells_what_became_of_the_job() {
        let store = shuffled();
        store.change(|state| state.counts = Counts { maybe_paid_twice: 1, ..state.counts });
        let world = World::with_state(store);
        world.publish().await.unwrap();
        insta::assert_snapshot!(String::from_utf8(world.files()["summary.json"].clone()).unwrap(), @r#"
        {
          "id": "01010101-0101-0101-0101-010101010101",
          "name": "news",
          "status": "completed",
          "kind": "requests",
          "counts": {
            "total": 6,
            "completed": 4,
            "failed": 2
          },
          "tokens": {
            "input": 8,
            "output": 12,
            "total": 20
          },
          "cost_usd": null,
          "maybe_paid_twice": 1,
          "accepted_at": "1970-01-01T00:16:40.000Z",
          "finished_at": "1970-01-01T00:16:42.500Z",
          "elapsed_seconds": 2.5,
          "files": [
            "output.jsonl",
            "errors.jsonl",
            "job.jsonl"
          ]
        }
        "#);
    }

    /// Each state that a crash can leave between two steps, and in the middle of one.
    #[tokio::test]
    async fn a_crash_anywhere_is_made_good_with_the_same_bytes() {
        let whole = World::with_state(shuffled());
        whole.publish().await.unwrap();
        let expected = whole.files();
        let names = [
            ".output.jsonl.tmp",
            "output.jsonl",
            ".errors.jsonl.tmp",
            "errors.jsonl",
            ".job.jsonl.tmp",
            "job.jsonl",
            ".summary.json.tmp",
            "summary.json",
        ];
        for step in 0..=names.len() {
            let mut world = World::with_state(shuffled());
            // The second start is later.
            world.now = world.now + std::time::Duration::from_mins(1);
            let folder = world.results().join("news");
            fs::create_dir_all(&folder).unwrap();
            let journal = JobFolder::at(world.store.folder(JOB).unwrap()).journal();
            fs::hard_link(journal, folder.join("output.partial.jsonl")).unwrap();
            for name in &names[..step] {
                let bytes = expected.get(*name).map_or(&b"{\"half"[..], Vec::as_slice);
                fs::write(folder.join(name), bytes).unwrap();
                if !name.starts_with('.') {
                    fs::remove_file(folder.join(format!(".{name}.tmp"))).unwrap();
                }
            }
            let summary = world.publish().await.unwrap();
            let mut files = world.files();
            if step < names.len() {
                assert_eq!(summary.finished_at, world.now.to_string());
                files.insert("summary.json".to_owned(), expected["summary.json"].clone());
            }
            assert_eq!(files, expected, "after {:?}", &names[..step]);
        }
    }

    #[tokio::test]
    async fn the_summary_is_written_last() {
        let world = World::with_state(shuffled());
        let folder = world.results().join("news");
        // A folder where a file must be renamed to: whatever comes behind it must not be there.
        for blocked in ["output.jsonl", "errors.jsonl"] {
            fs::create_dir_all(folder.join(blocked)).unwrap();
            assert!(matches!(world.publish().await.unwrap_err(), Error::Files(_)));
            assert!(!folder.join("summary.json").exists());
            fs::remove_dir(folder.join(blocked)).unwrap();
        }
        world.publish().await.unwrap();
        assert!(folder.join("summary.json").exists());
    }

    #[tokio::test]
    async fn a_stop_ends_it_before_anything_gets_its_name() {
        let world = World::new(shuffled());
        world.stop.cancel();
        assert!(matches!(world.publish().await.unwrap_err(), Error::Interrupted));
        assert!(world.files().keys().all(|name| name.starts_with('.')));
    }

    #[tokio::test]
    async fn images_become_files_that_their_records_name() {
        let store = FakeStore::new(job(2));
        store.change(|state| state.job.kind = Kind::Images);
        let base64 = base64::engine::general_purpose::STANDARD.encode(b"\x89PNG\r\n\x1a\n");
        store.append(&record(1, 200, &format!("{{\"data\":[{{\"b64_json\":\"{base64}\"}}]}}")));
        store.append(&record(0, 200, "{\"data\":[{\"url\":\"http://gone\"}]}"));
        let world = World::new(store);
        let summary = world.publish().await.unwrap();
        let named = record(1, 200, "{\"data\":[{\"file\":\"images/line-2-1.png\"}]}");
        let kept = record(0, 200, "{\"data\":[{\"url\":\"http://gone\"}]}");
        assert_eq!(world.lines("output.jsonl"), published(&[kept, named]));
        assert_eq!(world.files()["images/line-2-1.png"], b"\x89PNG\r\n\x1a\n");
        let images = summary.images.unwrap();
        assert_eq!((images.written, images.failed_downloads), (1, 1));
        assert_eq!(summary.files, ["output.jsonl", "images/"]);
        let before = world.files();
        world.publish().await.unwrap();
        assert_eq!(world.files(), before);
    }

    #[tokio::test]
    async fn tokens_are_counted_in_both_spellings() {
        for (body, tokens) in [
            (r#"{"usage":{"prompt_tokens":1,"completion_tokens":2}}"#, (1, 2)),
            (r#"{"usage":{"input_tokens":3,"output_tokens":4}}"#, (3, 4)),
            (r#"{"usage":{"prompt_tokens":1,"input_tokens":1,"completion_tokens":null}}"#, (1, 0)),
            (r#"{"usage":{"prompt_tokens":"many"}}"#, (0, 0)),
            (r#"{"usage":null}"#, (0, 0)),
            ("plain text", (0, 0)),
        ] {
            let store = FakeStore::new(job(1));
            store.append(&record(0, 200, body));
            let summary = World::new(store).publish().await.unwrap();
            assert_eq!((summary.tokens.input, summary.tokens.output), tokens, "{body}");
            assert_eq!(summary.counts.completed, 1, "{body}");
        }
    }
}
