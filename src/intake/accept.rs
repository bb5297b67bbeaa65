//! From a candidate to a verdict: claim it, read it to its end, and say whether it is a job.
//!
//! Everything here blocks, and runs on a blocking thread. What is only ever half done is undone before it
//! returns: an error of ours puts the spec back, it never rejects it.

use std::io::{self, BufWriter, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FileType;
use tokio_util::sync::CancellationToken;

use super::claim::{Claim, Taken};
use super::copy::is_swapped;
use super::dir::{Dir, Entry};
use super::name::safe_name;
use super::reject::Moved;
use super::scan::{Candidate, Find, NOT_UTF8};
use super::{Error, failed, reject};
use crate::diag::{Diagnostic, Report};
use crate::disk::File;
use crate::domain::{JobId, Timestamp};
use crate::fault;
use crate::spec::{self, Checked, Copies, Form, Rest, Scheduled, Sinks, Source};
use crate::store::Store;
use crate::store::folder::JobFolder;

/// So much of a job's files is written between two looks at the room that is left.
const LOOK_EACH: u64 = 1 << 20;

/// Reads a spec: [`spec::read`], or what a test puts in its place.
pub(super) type Validate = fn(Source, &spec::Settings, Sinks<'_>) -> Result<Checked, spec::Error>;

/// Looks for a schedule: [`spec::read_schedule`], or what a test puts in its place.
pub(super) type Peek = fn(&Source, &spec::Settings) -> Result<Option<Scheduled>, spec::Error>;

/// What is needed to examine a candidate.
#[derive(Clone, Debug)]
pub(super) struct Examiner {
    pub(super) jobs: Arc<Dir>,
    pub(super) state: PathBuf,
    pub(super) spec: Arc<spec::Settings>,
    /// How long data that a spec names must have rested.
    pub(super) settle: Duration,
    /// When it is examined.
    pub(super) now: Timestamp,
    /// The time for which a run is made, and which `now` means in its spec; none: the time of the reading.
    pub(super) due: Option<Timestamp>,
    pub(super) validate: Validate,
    pub(super) peek: Peek,
    pub(super) stop: CancellationToken,
    /// Says how far the disk may be filled.
    pub(super) store: Arc<dyn Store>,
}

/// What became of a candidate.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is a job, claimed, its files synced. It counts once the store has it.
    Valid { claim: Box<Claim>, checked: Box<Checked> },
    /// It lies in `rejected/` under this name.
    Rejected { name: String, report: Report },
    /// It was written to while we looked, or has a schedule now, and is back where it was.
    Changed,
    /// This data of it is being written; it is back where it was.
    Waits { data: String },
    /// Somebody else took it, or removed it.
    Gone,
}

/// Why reading a spec came to no end.
enum Unread {
    Rejected(Report),
    /// This data of it is being written.
    Unsettled(String),
    /// It is to be kept, not run.
    Scheduled,
    Failed(Error),
}

impl Examiner {
    /// Claims and reads a candidate as the job `id`.
    pub(super) fn examine(&self, candidate: &Candidate, id: JobId) -> Result<Verdict, Error> {
        let (dropped, name) = match (candidate.find.clone(), candidate.name.to_str()) {
            (Find::Spec(dropped), Some(name)) => (dropped, name),
            (Find::Spec(_), None) => return self.move_aside(candidate, NOT_UTF8),
            (Find::Unfit(why), _) => return self.move_aside(candidate, why),
        };
        let job = JobFolder::new(&self.state, id);
        match Claim::take(&self.jobs, job, name, (candidate, dropped))? {
            Taken::Claimed(claim) => self.judge(claim),
            Taken::Gone => Ok(Verdict::Gone),
            Taken::Changed => Ok(Verdict::Changed),
        }
    }

    fn move_aside(&self, candidate: &Candidate, why: &str) -> Result<Verdict, Error> {
        let shown = safe_name(&candidate.name);
        let report = Report::from(
            Diagnostic::error(&shown, 0, 0, format!("not read: {why}"))
                .hint("drop regular files, or folders of them, under plain names"),
        );
        let from = (&*self.jobs, &*candidate.name);
        let is_meant = |entry: &Entry| {
            // The times and the size of a folder are those of all that is in it.
            let is_folder = entry.kind == FileType::Directory;
            entry.stamp.is_same_file(&candidate.stamp)
                && (is_folder || entry.stamp.same_content(&candidate.stamp))
        };
        Ok(match reject::move_aside(from, &self.jobs, &candidate.name, &report, is_meant)? {
            Moved::Aside(name) => Verdict::Rejected { name, report },
            Moved::Gone => Verdict::Gone,
            Moved::Swapped => Verdict::Changed,
        })
    }

    /// Reads what is claimed, and says whether it is a job.
    pub(super) fn judge(&self, claim: Box<Claim>) -> Result<Verdict, Error> {
        let read = match self.read(&claim) {
            Ok(checked) => Ok(Ok(checked)),
            Err(Unread::Rejected(report)) => Ok(Err(report)),
            Err(Unread::Unsettled(data)) => {
                return claim.put_back().map(|()| Verdict::Waits { data });
            }
            // It had none when it was looked at: somebody has replaced it since.
            Err(Unread::Scheduled) => return claim.put_back().map(|()| Verdict::Changed),
            Err(Unread::Failed(error)) => Err(error),
        };
        match read.and_then(|read| Ok((read, claim.is_changed()?))) {
            // Bad or good, a file that was still being written to is neither.
            Ok((_, true)) => claim.put_back().map(|()| Verdict::Changed),
            Ok((Ok(checked), false)) => Ok(Verdict::Valid { claim, checked: Box::new(checked) }),
            Ok((Err(report), false)) => {
                let name = claim.reject(&report)?;
                Ok(Verdict::Rejected { name, report })
            }
            Err(error) => {
                claim.put_back()?;
                Err(error)
            }
        }
    }

    /// Reads the spec to its end, and writes and syncs the job's files.
    fn read(&self, claim: &Claim) -> Result<Checked, Unread> {
        let display = claim.display();
        let file = claim.open_spec().map_err(|error| unreadable(&display, claim, error))?;
        let dropped = file.try_clone().map_err(failed("open", claim.job.path()))?;
        let dropped = File::adopt(claim.job.input(), dropped);
        let form = claim.note.dropped.form();
        let folder = claim.source_folder();
        let rest = Some(Rest { settle: self.settle, now: self.now });
        let (now, is_run) = (self.due.unwrap_or(self.now), claim.is_made());
        let source = Source { form, file, display, folder, rest, now, is_run };
        let mut index = self.sink(&claim.job.index())?;
        let checked = match form {
            Form::Jsonl => {
                let sinks = Sinks { index: &mut index, input: &mut io::sink(), data: &mut io::sink() };
                self.validate(source, sinks)?
            }
            Form::Toml => {
                let mut rows = self.sink(&claim.job.input())?;
                let mut data = DataCopies { examiner: self, folder: claim.job.path(), files: Vec::new() };
                let sinks = Sinks { index: &mut index, input: &mut rows, data: &mut data };
                let checked = self.validate(source, sinks)?;
                finish(rows, &claim.job.input())?;
                for (path, copy) in data.files {
                    finish(copy, &path)?;
                }
                checked
            }
        };
        // Whoever dropped it need not have synced it.
        dropped.sync_all().map_err(failed("sync the spec in", claim.job.path()))?;
        finish(index, &claim.job.index())?;
        claim.sync()?;
        fault::point("intake-validated");
        Ok(checked)
    }

    fn validate(&self, source: Source, sinks: Sinks<'_>) -> Result<Checked, Unread> {
        let display = source.display.clone();
        // A bug that one spec wakes must not take the daemon down with it, start after start.
        let validated = catch_unwind(AssertUnwindSafe(|| (self.validate)(source, &self.spec, sinks)));
        match validated {
            Ok(Ok(checked)) => Ok(checked),
            Ok(Err(spec::Error::Rejected(report))) => Err(Unread::Rejected(report)),
            Ok(Err(spec::Error::Unsettled { data })) => Err(Unread::Unsettled(data)),
            Ok(Err(spec::Error::Scheduled)) => Err(Unread::Scheduled),
            Ok(Err(spec::Error::Sink(error))) => {
                Err(Unread::Failed(failed("write the job's files below", &self.state)(error)))
            }
            Err(_) => Err(Unread::Rejected(bug(&display))),
        }
    }

    fn sink(&self, path: &Path) -> Result<BufWriter<Bounded>, Error> {
        self.create(path).map_err(failed("create", path))
    }

    fn create(&self, path: &Path) -> io::Result<BufWriter<Bounded>> {
        let file = File::create_private(path)?;
        let (stop, store) = (self.stop.clone(), Arc::clone(&self.store));
        Ok(BufWriter::new(Bounded { file, stop, store, granted: 0 }))
    }
}

impl From<Error> for Unread {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The copies of a fine-tune's data, in the job's folder.
#[derive(Debug)]
struct DataCopies<'e> {
    examiner: &'e Examiner,
    folder: &'e Path,
    files: Vec<(PathBuf, BufWriter<Bounded>)>,
}

impl Copies for DataCopies<'_> {
    fn begin(&mut self, name: &str) -> io::Result<&mut dyn Write> {
        let path = self.folder.join(name);
        let copy = self.examiner.create(&path)?;
        let (_, copy) = self.files.push_mut((path, copy));
        Ok(copy)
    }
}

/// A file that can be written until the daemon stops, since a long validation is to end soon after that, and as
/// long as there is room for it: a job that is to come must not stop those that are there.
#[derive(Debug)]
struct Bounded {
    file: File,
    stop: CancellationToken,
    store: Arc<dyn Store>,
    /// Bytes that may be written before the next look.
    granted: u64,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stop.is_cancelled() {
            return Err(io::Error::other("the daemon stops"));
        }
        if self.granted < bytes.len() as u64 {
            let asked = LOOK_EACH.max(bytes.len() as u64);
            self.store.fits(asked).map_err(|full| io::Error::new(io::ErrorKind::StorageFull, full))?;
            self.granted = asked;
        }
        let written = self.file.write(bytes)?;
        self.granted = self.granted.saturating_sub(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn finish(sink: BufWriter<Bounded>, path: &Path) -> Result<(), Error> {
    let file = sink.into_inner().map_err(|error| failed("write", path)(error.into_error()))?.file;
    file.sync_all().map_err(failed("sync", path))
}

/// What is said of a spec that woke a bug.
pub(super) fn bug(display: &str) -> Report {
    Diagnostic::error(display, 0, 0, "batchd failed while it read this file")
        .hint("this is a bug of batchd: please report it with the file, and with the log")
        .into()
}

/// Whose fault it is that the spec file can't be opened.
fn unreadable(display: &str, claim: &Claim, error: io::Error) -> Unread {
    match closed(display, &error) {
        Some(report) => Unread::Rejected(report),
        None => Unread::Failed(failed("open", &claim.job.path().join(display))(error)),
    }
}

/// What is said of a spec file that can't be opened, if whoever dropped it can help that.
pub(super) fn closed(display: &str, error: &io::Error) -> Option<Report> {
    let hint = if error.kind() == io::ErrorKind::PermissionDenied {
        "let the user that runs batchd read it"
    } else if is_swapped(error) {
        "put a regular file in its place"
    } else {
        return None;
    };
    let message = format!("the file can't be opened: {error}");
    Some(Diagnostic::error(display, 0, 0, message).hint(hint).into())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::intake::fixture::{FakeStore, Root, id};

    fn examine(root: &Root, name: &str) -> Result<Verdict, Error> {
        root.examiner().examine(&root.candidate(name), id(1))
    }

    fn valid(root: &Root, name: &str) -> (Box<Claim>, Box<Checked>) {
        match examine(root, name).unwrap() {
            Verdict::Valid { claim, checked } => (claim, checked),
            other @ (Verdict::Rejected { .. } | Verdict::Changed | Verdict::Waits { .. } | Verdict::Gone) => {
                panic!("{other:?}")
            }
        }
    }

    #[test]
    fn a_jsonl_file_is_its_own_input() {
        let root = Root::new();
        root.drop_file("a.jsonl", "one\ntwo\n");
        let (claim, checked) = valid(&root, "a.jsonl");
        assert_eq!((checked.total, checked.name.as_str()), (2, "a"));
        assert_eq!(fs::read_to_string(claim.job.input()).unwrap(), "one\ntwo\n");
        assert_eq!(fs::metadata(claim.job.index()).unwrap().len(), 32);
        assert!(!claim.job.spec().exists());
    }

    #[test]
    fn a_toml_spec_is_kept_beside_the_input_made_from_it() {
        let root = Root::new();
        root.drop_file("a.toml", "one\ntwo\n");
        let (claim, _) = valid(&root, "a.toml");
        assert_eq!(claim.source_folder(), root.settings.jobs);
        assert_eq!(fs::read_to_string(claim.job.spec().join("job.toml")).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(claim.job.input()).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn a_folder_is_kept_whole_and_paths_in_its_spec_begin_there() {
        let root = Root::new();
        root.drop_file("news/job.toml", "one");
        root.drop_file("news/rows.txt", "row");
        let (claim, checked) = valid(&root, "news");
        assert_eq!((checked.name.as_str(), claim.display().as_str()), ("news", "news/job.toml"));
        assert_eq!(claim.source_folder(), claim.job.spec());
        assert!(claim.job.spec().join("rows.txt").exists());
    }

    #[test]
    fn a_bad_spec_goes_aside_whole_with_its_report() {
        for (name, file) in [("a.jsonl", "a.jsonl"), ("a.toml", "a.toml"), ("a", "a/job.toml")] {
            let root = Root::new();
            root.drop_file(file, "one\nbad\n");
            assert!(matches!(examine(&root, name).unwrap(), Verdict::Rejected { .. }));
            assert_eq!(root.rejected(), [name.to_owned(), format!("{name}.errors.txt")]);
            let report = root.settings.jobs.join(format!("rejected/{name}.errors.txt"));
            assert_eq!(fs::read_to_string(report).unwrap(), format!("{file}:2:1: error: bad\n"));
            assert!(root.waiting().is_empty() && root.job_folders().is_empty());
        }
    }

    #[test]
    fn what_is_no_regular_file_goes_aside_unread() {
        let root = Root::new();
        let secret = root.temp.path().join("secret");
        fs::write(&secret, "bad").unwrap();
        std::os::unix::fs::symlink(&secret, root.settings.jobs.join("link.jsonl")).unwrap();
        let verdict = examine(&root, "link.jsonl").unwrap();
        assert!(matches!(verdict, Verdict::Rejected { .. }), "{verdict:?}");
        assert!(fs::symlink_metadata(root.settings.jobs.join("rejected/link.jsonl")).unwrap().is_symlink());
        let report = fs::read_to_string(root.settings.jobs.join("rejected/link.jsonl.errors.txt")).unwrap();
        assert_eq!(
            report,
            "link.jsonl: error: not read: it is a symbolic link; a regular file is expected\n  \
             hint: drop regular files, or folders of them, under plain names\n"
        );
        assert_eq!(fs::read_to_string(secret).unwrap(), "bad");
    }

    #[test]
    fn a_name_with_a_line_end_goes_aside_under_one_without() {
        let root = Root::new();
        root.drop_file("a\nb\u{1b}[31m.jsonl", "one");
        examine(&root, "a\nb\u{1b}[31m.jsonl").unwrap();
        assert_eq!(root.rejected(), ["a%0Ab%1B[31m.jsonl", "a%0Ab%1B[31m.jsonl.errors.txt"]);
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_goes_back() {
        for text in ["grow\n", "grow\nbad\n"] {
            let root = Root::new();
            let path = root.drop_file("a.jsonl", text);
            let verdict = examine(&root, "a.jsonl").unwrap();
            assert!(matches!(verdict, Verdict::Changed), "{verdict:?}");
            assert_eq!(fs::read_to_string(path).unwrap(), format!("{text}more"));
            assert!(root.job_folders().is_empty() && root.rejected().is_empty());
        }
    }

    #[test]
    fn a_disk_that_is_full_rejects_nothing() {
        let root = Root::new();
        root.drop_file("a.jsonl", "one\nfull\n");
        let error = examine(&root, "a.jsonl").unwrap_err();
        assert!(matches!(&error, Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull));
        assert_eq!((root.waiting(), root.rejected().len()), (vec!["a.jsonl".to_owned()], 0));
        assert!(root.job_folders().is_empty());
    }

    #[test]
    fn a_job_whose_files_would_take_what_must_stay_free_goes_back_before_it_does() {
        let root = Root::new();
        root.drop_file("a.toml", "one\n");
        let store = FakeStore::new(&root);
        *store.full.lock().unwrap() = true;
        let examiner = Examiner { store, ..root.examiner() };
        let error = examiner.examine(&root.candidate("a.toml"), id(1)).unwrap_err();
        assert!(error.to_string().ends_with("what is free must stay free"), "{error}");
        assert!(matches!(&error, Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull));
        assert_eq!((root.waiting(), root.rejected().len()), (vec!["a.toml".to_owned()], 0));
        assert!(root.job_folders().is_empty());
    }

    #[test]
    fn a_job_that_is_written_finds_out_midway_that_the_room_is_gone() {
        let root = Root::new();
        let store = FakeStore::new(&root);
        let file = File::create_private(&root.temp.path().join("big")).unwrap();
        let mut sink = Bounded { file, stop: CancellationToken::new(), store: store.clone(), granted: 0 };
        let block = vec![b'x'; 1 << 16];
        sink.write_all(&block).unwrap();
        *store.full.lock().unwrap() = true;
        let written = (1..1000).take_while(|_| sink.write_all(&block).is_ok()).count();
        assert_eq!((written as u64 + 1) << 16, LOOK_EACH);
    }

    #[test]
    fn a_bug_that_a_spec_wakes_rejects_that_spec_alone() {
        let root = Root::new();
        root.drop_file("a.jsonl", "panic");
        let verdict = examine(&root, "a.jsonl").unwrap();
        assert!(matches!(verdict, Verdict::Rejected { .. }), "{verdict:?}");
        assert!(root.job_folders().is_empty());
    }

    #[test]
    fn a_file_that_may_not_be_read_goes_aside_with_what_to_do() {
        use std::os::unix::fs::PermissionsExt;
        let root = Root::new();
        let path = root.drop_file("a.jsonl", "one");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        if fs::File::open(&path).is_ok() {
            return; // root may read everything
        }
        assert!(matches!(examine(&root, "a.jsonl").unwrap(), Verdict::Rejected { .. }));
        let report = fs::read_to_string(root.settings.jobs.join("rejected/a.jsonl.errors.txt")).unwrap();
        assert!(report.contains("hint: let the user that runs batchd read it"), "{report}");
    }

    #[test]
    fn a_stop_ends_a_long_validation_and_puts_the_spec_back() {
        let root = Root::new();
        root.drop_file("a.toml", "one");
        let examiner = root.examiner();
        examiner.stop.cancel();
        assert!(examiner.examine(&root.candidate("a.toml"), id(1)).is_err());
        assert_eq!((root.waiting(), root.job_folders().len()), (vec!["a.toml".to_owned()], 0));
    }

    #[test]
    fn a_candidate_that_is_gone_is_nobodys_fault() {
        let root = Root::new();
        let path = root.drop_file("a.jsonl", "one");
        let candidate = root.candidate("a.jsonl");
        fs::remove_file(path).unwrap();
        assert!(matches!(root.examiner().examine(&candidate, id(1)).unwrap(), Verdict::Gone));
        assert!(root.job_folders().is_empty());
    }
}
