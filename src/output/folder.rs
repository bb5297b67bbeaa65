//! A job's folder below `results/`: its paths, whose it is, and the files that are not made of records.
//!
//! Everything here may be done again after a crash, at any point, with the same result.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tracing::info;

use super::target::PIECE_BYTES;
use super::{Error, Summary};
use crate::disk::{self, File};
use crate::domain::{JobId, JobName};
use crate::fault;
use crate::pulse::Member;
use crate::store::folder::{
    AGAIN, JobFolder, ORIGIN, failed, publish, sync_dir, sync_parent, temporary_name, write_atomic,
};

/// `results/<job name>/`
#[derive(Clone, Debug)]
pub(super) struct ResultsFolder(PathBuf);

impl ResultsFolder {
    /// What batchd itself puts there, now or at some time, in small letters.
    pub(super) const NAMES: [&str; 9] = [
        "output.partial.jsonl",
        "output.jsonl",
        "errors.jsonl",
        "events.jsonl",
        "summary.json",
        "images",
        "job.toml",
        "job.jsonl",
        AGAIN,
    ];

    pub(super) fn new(results: &Path, job: &JobName) -> Self {
        Self(results.join(job.as_str()))
    }

    pub(super) fn output(&self) -> PathBuf {
        self.0.join("output.jsonl")
    }

    pub(super) fn errors(&self) -> PathBuf {
        self.0.join("errors.jsonl")
    }

    /// Any file in it.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(super) fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    fn partial(&self) -> PathBuf {
        self.0.join("output.partial.jsonl")
    }

    fn summary(&self) -> PathBuf {
        self.0.join("summary.json")
    }

    /// Makes the folder if it is not there. Refuses one that holds another job's results.
    pub(super) fn create(&self, job: JobId) -> Result<(), Error> {
        self.own_summary(job)?;
        if !self.0.is_dir() {
            disk::make_shared_dir(&self.0).map_err(failed("create folder", &self.0)).map_err(Error::Files)?;
            sync_parent(&self.0).map_err(Error::Files)?;
        }
        Ok(())
    }

    /// Whether the disk has room for so many bytes of results. Looked up before they are written: to fill the disk with
    /// half of them would take the room from answers to come, and be in vain.
    pub(super) fn check_room(&self, bytes: u64) -> Result<(), Error> {
        match disk::space(&self.0) {
            Ok(space) if space.free < bytes => {
                let full = io::Error::from(io::ErrorKind::StorageFull);
                Err(Error::Files(failed("find room for the results in", &self.0)(full)))
            }
            // It shows when they are written.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Shows the journal as `output.partial.jsonl`. Says whether that is done: the journal may not be
    /// there yet. Where the file system can't link, there will be no partial file.
    pub(super) fn link(&self, journal: &Path) -> Result<bool, Error> {
        let partial = self.partial();
        match disk::hard_link(journal, &partial) {
            Ok(()) => {
                fault::point("output-linked");
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if same_file(journal, &partial) {
                    return Ok(true);
                }
                // A link to a journal that was since replaced, from a backup for example. Links to
                // journals are all that ever has this name.
                disk::remove_file(&partial).map_err(failed("remove", &partial)).map_err(Error::Files)?;
                Ok(disk::hard_link(journal, &partial).is_ok())
            }
            Err(error) if disk::is_full(&error) => {
                Err(Error::Files(failed("link the journal to", &partial)(error)))
            }
            Err(error) => {
                info!(path = %partial.display(), %error, "no partial results: the journal can't be linked");
                Ok(true)
            }
        }
    }

    /// The summary of `job` if it was published before.
    pub(super) fn own_summary(&self, job: JobId) -> Result<Option<Summary>, Error> {
        let path = self.summary();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::Files(failed("read", &path)(error))),
        };
        match serde_json::from_slice::<Summary>(&bytes) {
            Ok(summary) if summary.id == job => Ok(Some(summary)),
            Ok(summary) => Err(Error::Unpublishable(format!(
                "{} belongs to job {}, not to {job}: move that folder away, then retry this job",
                self.0.display(),
                summary.id
            ))),
            Err(error) => Err(Error::Unpublishable(format!(
                "{} is no summary of job {job} ({error}): move that folder away, then retry this job",
                path.display()
            ))),
        }
    }

    /// Puts a copy of the spec beside the results, under the name that it returns. A copy, not a link:
    /// people edit what lies here, and the job's own input must stay as it was accepted.
    pub(super) fn place_spec(&self, state: &Path, member: &Member) -> Result<Option<&'static str>, Error> {
        let state = JobFolder::at(state.to_owned());
        let toml = state.spec().join("job.toml");
        let is_file = |path: &Path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file());
        let (name, source) = if is_file(&toml) {
            ("job.toml", toml)
        } else if is_file(&state.input()) {
            ("job.jsonl", state.input())
        } else {
            return Ok(None);
        };
        let mut copies = vec![(source, self.0.join(name))];
        // The requests that `batchd retry` asked again are in no other file of a person's.
        let requests = state.spec().join(AGAIN);
        if is_file(&state.spec().join(ORIGIN)) && is_file(&requests) {
            copies.insert(0, (requests, self.0.join(AGAIN)));
        }
        for (source, target) in copies {
            if !is_file(&target) {
                copy(&source, &target, member).map_err(Error::Files)?;
            }
        }
        Ok(Some(name))
    }

    /// Puts the summary in place, which says that everything else is.
    pub(super) fn write_summary(&self, summary: &Summary) -> Result<(), Error> {
        write_atomic(&self.summary(), &summary.to_bytes()).map_err(Error::Files)
    }

    /// Takes away a file that an earlier publish may have left.
    pub(super) fn remove(&self, path: &Path) -> Result<(), Error> {
        match disk::remove_file(path) {
            Ok(()) => sync_dir(&self.0).map_err(Error::Files),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::Files(failed("remove", path)(error))),
        }
    }

    pub(super) fn remove_partial(&self) -> Result<(), Error> {
        self.remove(&self.partial())
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Copies by temporary name, fsync, rename, in pieces: `member` answers the roll call after each.
fn copy(source: &Path, target: &Path, member: &Member) -> Result<(), crate::store::Error> {
    let temporary = temporary_name(target);
    let mut from = fs::File::open(source).map_err(failed("open", source))?;
    let mut to = File::create(&temporary).map_err(failed("create", &temporary))?;
    let copied = copy_in_pieces(&mut from, &mut to, member).map_err(failed("write", &temporary));
    copied.and_then(|()| publish(&to, &temporary, target)).inspect_err(|_| {
        // A disk that was full must not be left fuller.
        drop(disk::remove_file(&temporary));
    })
}

fn copy_in_pieces(from: &mut fs::File, to: &mut File, member: &Member) -> io::Result<()> {
    while io::copy(&mut from.by_ref().take(PIECE_BYTES), to)? > 0 {
        to.sync_data()?;
        member.answer();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: JobId = JobId::from_bytes([1; 16]);

    fn folder() -> (tempfile::TempDir, ResultsFolder) {
        let root = tempfile::tempdir().unwrap();
        let folder = ResultsFolder::new(&root.path().join("results"), &"news".parse().unwrap());
        (root, folder)
    }

    #[test]
    fn the_partial_file_is_the_journal_itself() {
        let (root, folder) = folder();
        let journal = root.path().join("results.log");
        folder.create(JOB).unwrap();
        assert!(!folder.link(&journal).unwrap(), "no journal yet: try again");
        fs::write(&journal, "one\n").unwrap();
        assert!(folder.link(&journal).unwrap());
        fs::write(&journal, "one\ntwo\n").unwrap();
        assert_eq!(fs::read(folder.partial()).unwrap(), b"one\ntwo\n");
        folder.create(JOB).unwrap();
        assert!(folder.link(&journal).unwrap(), "doing it again changes nothing");
        folder.remove_partial().unwrap();
        folder.remove_partial().unwrap();
        assert!(journal.exists());
    }

    #[test]
    fn a_link_to_a_journal_that_was_replaced_is_made_anew() {
        let (root, folder) = folder();
        let journal = root.path().join("results.log");
        folder.create(JOB).unwrap();
        fs::write(&journal, "old\n").unwrap();
        folder.link(&journal).unwrap();
        fs::remove_file(&journal).unwrap();
        fs::write(&journal, "new\n").unwrap();
        assert!(folder.link(&journal).unwrap());
        assert_eq!(fs::read(folder.partial()).unwrap(), b"new\n");
    }

    #[test]
    fn a_folder_with_the_summary_of_another_job_is_refused() {
        let (_root, folder) = folder();
        folder.create(JOB).unwrap();
        fs::write(folder.summary(), "{\"theirs\": true}").unwrap();
        let error = folder.create(JOB).unwrap_err();
        assert!(
            matches!(&error, Error::Unpublishable(why) if why.contains("is no summary of job")),
            "{error}"
        );
    }

    #[test]
    fn a_toml_spec_is_copied_as_it_was_and_else_the_input_is() {
        let (root, folder) = folder();
        folder.create(JOB).unwrap();
        let state = JobFolder::at(root.path().join("state"));
        fs::create_dir_all(state.spec()).unwrap();
        assert_eq!(folder.place_spec(state.path(), &Member::default()).unwrap(), None);
        fs::write(state.input(), "{}\n").unwrap();
        assert_eq!(folder.place_spec(state.path(), &Member::default()).unwrap(), Some("job.jsonl"));
        assert_eq!(fs::read(folder.0.join("job.jsonl")).unwrap(), b"{}\n");
        fs::write(state.spec().join("job.toml"), "kind = \"chat\"").unwrap();
        assert_eq!(folder.place_spec(state.path(), &Member::default()).unwrap(), Some("job.toml"));
        assert_eq!(fs::read(folder.0.join("job.toml")).unwrap(), b"kind = \"chat\"");
        fs::write(state.spec().join(AGAIN), "{}\n").unwrap();
        folder.place_spec(state.path(), &Member::default()).unwrap();
        assert!(!folder.0.join(AGAIN).exists(), "a person's data stays where it was");
        fs::write(state.spec().join(ORIGIN), "").unwrap();
        folder.place_spec(state.path(), &Member::default()).unwrap();
        assert_eq!(fs::read(folder.0.join(AGAIN)).unwrap(), b"{}\n");
    }
}
