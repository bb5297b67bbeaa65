//! The claim: taking a spec out of the jobs folder so that nobody else has it, and every way back.
//!
//! # Operation
//!
//! 1. The job's folder is made and `claim.json` written and synced: from here a crash can put things right.
//! 2. The spec is renamed into the job's folder. The rename is the claim; who comes late finds nothing.
//! 3. It ends in one of three ways: [`Claim::settle`] once the store has the job, [`Claim::reject`], or
//!    [`Claim::put_back`].
//!
//! A spec on another file system, or a JSONL file that has a second name under which it could be written
//! to later, is renamed to a hidden name in the jobs folder instead, and copied from there. The hidden file
//! goes when the store has the job; up to then undoing the claim is renaming it back. So nothing is ever
//! copied back, and a source that can't be removed can't be taken for a new spec.
//!
//! The spec of a run is made in the job's folder ([`made`](super::made)): to put it back is to remove it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::copy::{copy_file, copy_tree, is_swapped};
use super::dir::{Dir, Stamp};
use super::lookout::check_home;
use super::name::{NUMBERS_MAX, numbered};
use super::reject::Moved;
use super::remove::{remove_empty, remove_file, remove_tree};
use super::scan::{Candidate, stamp_of};
use super::{Error, FOLDER_SPEC, failed, reject};
use crate::diag::Report;
use crate::disk;
use crate::domain::TuningData;
use crate::fault;
use crate::spec::Form;
use crate::store::folder::{self, JobFolder};

/// What was dropped, and so where it lies in the job's folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Dropped {
    /// The spec is the input: `input.jsonl`.
    Jsonl,
    /// `spec/job.toml`.
    Toml,
    /// A folder with a `job.toml` in it: `spec`.
    Folder,
}

impl Dropped {
    pub(super) const fn form(self) -> Form {
        match self {
            Self::Jsonl => Form::Jsonl,
            Self::Toml | Self::Folder => Form::Toml,
        }
    }

    /// The folder below the job's in which it lies, and its name there.
    fn place(self, job: &JobFolder) -> (PathBuf, &'static OsStr) {
        match self {
            Self::Jsonl => (job.path().to_owned(), OsStr::new("input.jsonl")),
            Self::Toml => (job.spec(), OsStr::new(FOLDER_SPEC)),
            Self::Folder => (job.path().to_owned(), OsStr::new("spec")),
        }
    }
}

/// What `claim.json` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// Its name in the jobs folder.
    pub(super) name: String,
    pub(super) dropped: Dropped,
    pub(super) how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum How {
    /// The dropped file itself lies in the job's folder.
    Moved,
    /// It lies under a hidden name in the jobs folder, and a copy of it in the job's.
    Copied,
    /// It was made in the job's folder, of the schedule that the note names.
    Made,
}

/// What came of trying to claim a candidate.
#[derive(Debug)]
pub(super) enum Taken {
    Claimed(Box<Claim>),
    /// Somebody else took it.
    Gone,
    /// It is not what the scan saw: it is looked at anew.
    Changed,
}

/// A spec that is ours until it is settled, rejected or put back.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) job: JobFolder,
    pub(super) note: Note,
    pub(super) jobs: Arc<Dir>,
    /// Of the dropped file, right after the claim.
    pub(super) stamp: Stamp,
    /// What it is called if it is rejected; none: as it was dropped.
    pub(super) aside: Option<String>,
    /// The folder of a schedule, of which a run was made, held open: names can be swapped.
    pub(super) folder: Option<Dir>,
}

impl Claim {
    /// Takes a candidate into the folder of a new job.
    pub(super) fn take(
        jobs: &Arc<Dir>,
        job: JobFolder,
        name: &str,
        (candidate, dropped): (&Candidate, Dropped),
    ) -> Result<Taken, Error> {
        let source = jobs.path().join(name);
        let Some(entry) = jobs.stat(OsStr::new(name)).map_err(failed("look at", &source))? else {
            return Ok(Taken::Gone);
        };
        let shared = dropped == Dropped::Jsonl && entry.links > 1;
        let how = if shared { How::Copied } else { How::Moved };
        let note = Note { name: name.to_owned(), dropped, how };
        let mut claim =
            Self { job, note, jobs: Arc::clone(jobs), stamp: candidate.stamp, aside: None, folder: None };
        check_home(&claim.job)?;
        claim.job.create()?;
        let mut renamed = claim.rename()?;
        if renamed.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::CrossesDevices) {
            claim.note.how = How::Copied;
            renamed = claim.rename()?;
        }
        match renamed {
            Ok(()) => claim.verify(candidate),
            Err(error) => {
                claim.forget()?;
                if error.kind() == io::ErrorKind::NotFound {
                    return Ok(Taken::Gone);
                }
                Err(failed("take in", &source)(error))
            }
        }
    }

    /// A claim that an earlier process left behind.
    pub(super) fn resume(jobs: &Arc<Dir>, job: JobFolder, note: Note) -> Self {
        Self { job, note, jobs: Arc::clone(jobs), stamp: Stamp::NONE, aside: None, folder: None }
    }

    /// Opens the spec file itself.
    pub(super) fn open_spec(&self) -> io::Result<File> {
        let (dir, name) = match self.note.dropped {
            Dropped::Folder => (self.job.spec(), OsStr::new(FOLDER_SPEC)),
            dropped @ (Dropped::Jsonl | Dropped::Toml) => dropped.place(&self.job),
        };
        Dir::open(&dir)?.open_file(name).map(|(file, _)| file)
    }

    /// The folder that paths in the spec are relative to.
    pub(super) fn source_folder(&self) -> PathBuf {
        match self.note.dropped {
            Dropped::Folder if self.is_made() => {
                self.folder.as_ref().map_or_else(|| self.job.spec(), Dir::path_of_handle)
            }
            Dropped::Folder => self.job.spec(),
            Dropped::Jsonl | Dropped::Toml => self.jobs.path().to_owned(),
        }
    }

    /// How a person knows the spec file.
    pub(super) fn display(&self) -> String {
        match self.note.dropped {
            Dropped::Folder => format!("{}/{FOLDER_SPEC}", self.note.name),
            Dropped::Jsonl | Dropped::Toml => self.note.name.clone(),
        }
    }

    /// Makes the names of all files in the job's folder durable.
    pub(super) fn sync(&self) -> Result<(), Error> {
        if self.note.dropped == Dropped::Toml || self.is_made() {
            folder::sync_dir(&self.job.spec())?;
        }
        Ok(folder::sync_dir(self.job.path())?)
    }

    /// Whether somebody wrote to it since the claim: a writer keeps what it has open across a rename.
    pub(super) fn is_changed(&self) -> Result<bool, Error> {
        if self.is_made() {
            return Ok(false);
        }
        let stamp = self.kept_stamp().map_err(failed("look at", self.job.path()))?;
        Ok(stamp != Some(self.stamp))
    }

    /// The store has the job: the claim is over. Not synced: a `claim.json` that a power cut brings back says
    /// nothing beside a `state.json`.
    pub(super) fn settle(self) -> Result<(), Error> {
        if self.note.how == How::Copied {
            self.remove_original()?;
            fault::point("intake-original-removed");
        }
        let claim = self.job.claim();
        disk::remove_file(&claim).map_err(failed("remove", &claim))
    }

    /// The spec goes aside with its report. Answers its name in `rejected/`.
    pub(super) fn reject(self, report: &Report) -> Result<String, Error> {
        let rejected = self.move_aside(report);
        if rejected.is_err() {
            self.put_back()?;
        }
        rejected
    }

    fn move_aside(&self, report: &Report) -> Result<String, Error> {
        if self.is_made() {
            self.show_spec()?;
        }
        let (from, kept) = self.kept().map_err(failed("open", self.job.path()))?;
        let name = self.aside.as_ref().unwrap_or(&self.note.name);
        // Nobody else knows where it is: it is the one.
        let moved = reject::move_aside((&from, &kept), &self.jobs, OsStr::new(name), report, |_| true)?;
        self.forget()?;
        Ok(match moved {
            Moved::Aside(name) => name,
            Moved::Gone | Moved::Swapped => name.clone(),
        })
    }

    /// The spec goes back into the jobs folder, under its name or, if that was taken meanwhile, a numbered one.
    pub(super) fn put_back(self) -> Result<(), Error> {
        self.move_back()?;
        self.forget()
    }

    fn move_back(&self) -> Result<(), Error> {
        if self.is_made() {
            return Ok(());
        }
        let (from, kept) = match self.kept() {
            Ok(kept) => kept,
            // It never came so far, or it is back already.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("open", self.job.path())(error)),
        };
        for number in 1..NUMBERS_MAX {
            let name = numbered(&self.note.name, number);
            match from.move_new(&kept, &self.jobs, OsStr::new(&name)) {
                Ok(()) => return self.jobs.sync().map_err(failed("sync", self.jobs.path())),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(failed("put back", &self.jobs.path().join(name))(error)),
            }
        }
        let error = io::ErrorKind::AlreadyExists.into();
        Err(failed("put back", &self.jobs.path().join(&self.note.name))(error))
    }

    /// Removes the job's folder, `claim.json` last. A dropped file that was moved here is out of it by now; if it
    /// is not, this fails rather than remove it.
    pub(super) fn forget(&self) -> Result<(), Error> {
        let (job, dropped) = (&self.job, self.note.dropped);
        let copied = matches!(self.note.how, How::Copied | How::Made);
        for path in [job.index(), job.input(), job.claim(), job.state()] {
            remove_file(&folder::temporary_name(&path))?;
        }
        remove_file(&job.index())?;
        for copy in [TuningData::TRAINING, TuningData::VALIDATION] {
            remove_file(&job.path().join(copy))?;
        }
        // The store makes them before the job counts; something in one means that it did count.
        for log in [job.journal(), job.intents()] {
            if fs::metadata(&log).is_ok_and(|metadata| metadata.len() == 0) {
                remove_file(&log)?;
            }
        }
        if copied || dropped != Dropped::Jsonl {
            remove_file(&job.input())?;
        }
        if copied {
            remove_tree(&job.spec())?;
            remove_tree(&folder::temporary_name(&job.spec()))?;
        } else if dropped == Dropped::Toml {
            remove_empty(&job.spec())?;
        }
        if self.is_made() {
            let (hidden, name) = self.kept().map_err(failed("open", self.jobs.path()))?;
            hidden.remove_file(&name).map_err(failed("remove", &hidden.path().join(&name)))?;
        }
        let leftover = |name: io::Result<fs::DirEntry>| name.is_ok_and(|n| n.path() != job.claim());
        let mut names = fs::read_dir(job.path()).map_err(failed("read", job.path()))?;
        if names.any(leftover) {
            return Err(failed("remove", job.path())(io::ErrorKind::DirectoryNotEmpty.into()));
        }
        remove_file(&job.claim())?;
        remove_empty(job.path())
    }

    pub(super) fn is_made(&self) -> bool {
        self.note.how == How::Made
    }

    /// Where the dropped file itself is while it is claimed.
    pub(super) fn kept(&self) -> io::Result<(Arc<Dir>, OsString)> {
        match self.note.how {
            How::Moved => {
                let (dir, name) = self.note.dropped.place(&self.job);
                Ok((Arc::new(Dir::open(&dir)?), name.to_owned()))
            }
            How::Copied | How::Made => {
                let id = self.job.path().file_name().unwrap_or_default();
                let mut hidden = OsString::from(".taken-");
                hidden.push(id);
                Ok((Arc::clone(&self.jobs), hidden))
            }
        }
    }

    fn kept_stamp(&self) -> io::Result<Option<Stamp>> {
        let (dir, name) = self.kept()?;
        stamp_of(&dir, &name, self.note.dropped)
    }

    pub(super) fn write_note(&self) -> Result<(), Error> {
        let text = serde_json::to_vec(&self.note).map_err(io::Error::from);
        let text = text.map_err(failed("write", &self.job.claim()))?;
        Ok(folder::write_atomic(&self.job.claim(), &text)?)
    }

    /// Notes how it is claimed, and claims it. The inner error is the rename's.
    fn rename(&self) -> Result<io::Result<()>, Error> {
        self.write_note()?;
        fault::point("intake-noted");
        if self.note.dropped == Dropped::Toml {
            folder::make_private_dir(&self.job.spec())?;
        }
        let (to, kept) = self.kept().map_err(failed("open", self.job.path()))?;
        Ok(self.jobs.move_new(OsStr::new(&self.note.name), &to, &kept))
    }

    /// After the rename: what we have must be what came to rest.
    fn verify(mut self, candidate: &Candidate) -> Result<Taken, Error> {
        match self.secure(candidate) {
            Ok(true) => Ok(Taken::Claimed(Box::new(self))),
            Ok(false) => self.put_back().map(|()| Taken::Changed),
            Err(error) if is_swapped(&error) => self.put_back().map(|()| Taken::Changed),
            Err(error) => {
                let error = failed("take in", &self.jobs.path().join(&self.note.name))(error);
                self.put_back()?;
                Err(error)
            }
        }
    }

    fn secure(&mut self, candidate: &Candidate) -> io::Result<bool> {
        let stamp = self.kept_stamp()?.filter(|stamp| stamp.same_content(&candidate.stamp));
        let Some(stamp) = stamp else { return Ok(false) };
        self.stamp = stamp;
        fault::point("intake-claimed");
        self.jobs.sync()?;
        if self.note.how == How::Copied {
            self.copy()?;
            fault::point("intake-copied");
        }
        fault::point("intake-secured");
        Ok(true)
    }

    /// Copies the dropped file under a temporary name, syncs it and gives it its own.
    fn copy(&self) -> io::Result<()> {
        let (from, kept) = self.kept()?;
        let (dir, name) = self.note.dropped.place(&self.job);
        let target = dir.join(name);
        let temporary = folder::temporary_name(&target);
        match self.note.dropped {
            Dropped::Folder => copy_tree(&from, &kept, &temporary)?,
            Dropped::Jsonl | Dropped::Toml => copy_file(&from, &kept, &temporary)?,
        }
        disk::rename(&temporary, &target)
    }

    /// Removes the dropped file after it was copied.
    fn remove_original(&self) -> Result<(), Error> {
        let (dir, hidden) = self.kept().map_err(failed("open", self.jobs.path()))?;
        let path = dir.path().join(&hidden);
        match self.note.dropped {
            Dropped::Folder => remove_tree(&path)?,
            Dropped::Jsonl | Dropped::Toml => {
                dir.remove_file(&hidden).map_err(failed("remove", &path))?;
            }
        }
        dir.sync().map_err(failed("sync", dir.path()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;
    use std::thread;

    use super::*;
    use crate::diag::Diagnostic;
    use crate::intake::fixture::{Root, id, names};

    fn take(root: &Root, name: &str, dropped: Dropped) -> Result<Taken, Error> {
        let candidate = Candidate::now(&root.dir(), name, dropped);
        Claim::take(&root.dir(), JobFolder::new(&root.settings.state, id(1)), name, (&candidate, dropped))
    }

    fn claimed(root: &Root, name: &str, dropped: Dropped) -> Claim {
        match take(root, name, dropped).unwrap() {
            Taken::Claimed(claim) => *claim,
            other @ (Taken::Gone | Taken::Changed) => panic!("{other:?}"),
        }
    }

    /// A root whose state folder is on another file system, if this machine has two.
    fn two_file_systems() -> Option<(Root, tempfile::TempDir)> {
        let mut root = Root::new();
        let state = tempfile::tempdir().unwrap();
        let device = |path: &Path| fs::metadata(path).unwrap().dev();
        if device(state.path()) == device(root.temp.path()) {
            return None;
        }
        root.settings.state = state.path().join("state");
        folder::make_private_dir(&root.settings.state.join("jobs")).unwrap();
        Some((root, state))
    }

    fn report() -> Report {
        Diagnostic::error("a", 1, 1, "bad").into()
    }

    #[test]
    fn without_a_folder_for_jobs_nothing_is_claimed_and_none_is_made() {
        let root = Root::new();
        let path = root.drop_file("a.jsonl", "one\n");
        fs::remove_dir_all(&root.settings.state).unwrap();
        assert!(matches!(take(&root, "a.jsonl", Dropped::Jsonl), Err(Error::Io { .. })));
        assert!(path.exists() && !root.settings.state.exists());
    }

    #[test]
    fn a_claim_takes_the_spec_out_of_the_folder_and_says_where_it_was() {
        let root = Root::new();
        root.drop_file("a.jsonl", "one\n");
        let claim = claimed(&root, "a.jsonl", Dropped::Jsonl);
        assert!(root.waiting().is_empty());
        assert_eq!(fs::read_to_string(claim.job.input()).unwrap(), "one\n");
        let note: Note = serde_json::from_slice(&fs::read(claim.job.claim()).unwrap()).unwrap();
        assert_eq!(note, Note { name: "a.jsonl".into(), dropped: Dropped::Jsonl, how: How::Moved });
        assert_eq!(fs::metadata(claim.job.path()).unwrap().mode() & 0o777, 0o700);
        let job = claim.job.clone();
        claim.settle().unwrap();
        assert_eq!(names(job.path()), ["input.jsonl"]);
    }

    #[test]
    fn of_two_that_race_for_a_file_one_gets_it() {
        let root = Root::new();
        for round in 0..50 {
            let name = format!("{round}.jsonl");
            root.drop_file(&name, "x");
            let candidate = Candidate::now(&root.dir(), &name, Dropped::Jsonl);
            let race = |number| {
                let job = JobFolder::new(&root.settings.state, id(number));
                Claim::take(&root.dir(), job, &name, (&candidate, Dropped::Jsonl)).unwrap()
            };
            let (race, number) = (&race, round * 2 + 1);
            let (first, second) = thread::scope(|scope| {
                let first = thread::Builder::new().spawn_scoped(scope, move || race(number)).unwrap();
                let second = thread::Builder::new().spawn_scoped(scope, move || race(number + 1)).unwrap();
                (first.join().unwrap(), second.join().unwrap())
            });
            let won = [&first, &second].iter().filter(|taken| matches!(taken, Taken::Claimed(_))).count();
            let lost = [&first, &second].iter().filter(|taken| matches!(taken, Taken::Gone)).count();
            assert_eq!((won, lost), (1, 1), "{first:?} {second:?}");
        }
        assert_eq!(root.job_folders().len(), 50, "who loses leaves no folder behind");
    }

    #[test]
    fn what_is_not_what_the_scan_saw_goes_back() {
        let root = Root::new();
        root.drop_file("a.jsonl", "one");
        let candidate = Candidate::now(&root.dir(), "a.jsonl", Dropped::Jsonl);
        root.drop_file("a.jsonl", "one and more");
        let job = JobFolder::new(&root.settings.state, id(1));
        let taken = Claim::take(&root.dir(), job, "a.jsonl", (&candidate, Dropped::Jsonl)).unwrap();
        assert!(matches!(taken, Taken::Changed), "{taken:?}");
        assert_eq!((root.waiting(), root.job_folders().len()), (vec!["a.jsonl".to_owned()], 0));
    }

    #[test]
    fn every_form_goes_back_as_it_came() {
        let root = Root::new();
        root.drop_file("a.jsonl", "one");
        root.drop_file("b.toml", "two");
        root.drop_file("c/job.toml", "three");
        root.drop_file("c/data/rows.txt", "row");
        for (name, dropped) in
            [("a.jsonl", Dropped::Jsonl), ("b.toml", Dropped::Toml), ("c", Dropped::Folder)]
        {
            let claim = claimed(&root, name, dropped);
            assert!(!root.waiting().contains(&name.to_owned()));
            fs::write(claim.job.index(), "half").unwrap();
            if dropped != Dropped::Jsonl {
                fs::write(claim.job.input(), "half").unwrap();
            }
            claim.put_back().unwrap();
            assert_eq!((root.waiting().len(), root.job_folders().len()), (3, 0), "{name}");
        }
        assert_eq!(fs::read_to_string(root.settings.jobs.join("c/data/rows.txt")).unwrap(), "row");
    }

    #[test]
    fn a_spec_goes_back_beside_one_that_took_its_name() {
        let root = Root::new();
        root.drop_file("a.chat.jsonl", "old");
        let claim = claimed(&root, "a.chat.jsonl", Dropped::Jsonl);
        root.drop_file("a.chat.jsonl", "new");
        claim.put_back().unwrap();
        assert_eq!(root.waiting(), ["a-2.chat.jsonl", "a.chat.jsonl"]);
        assert_eq!(fs::read_to_string(root.settings.jobs.join("a-2.chat.jsonl")).unwrap(), "old");
    }

    #[test]
    fn a_writer_who_kept_the_file_open_is_noticed() {
        use std::io::Write;
        let root = Root::new();
        let path = root.drop_file("a.jsonl", "one");
        let mut writer = fs::OpenOptions::new().append(true).open(path).unwrap();
        let claim = claimed(&root, "a.jsonl", Dropped::Jsonl);
        assert!(!claim.is_changed().unwrap());
        writer.write_all(b"more").unwrap();
        assert!(claim.is_changed().unwrap());
    }

    #[test]
    fn forgetting_a_claim_never_removes_the_spec() {
        let root = Root::new();
        root.drop_file("a.jsonl", "one");
        let claim = claimed(&root, "a.jsonl", Dropped::Jsonl);
        assert!(claim.forget().is_err());
        assert!(claim.job.input().exists() && claim.job.claim().exists());
    }

    #[test]
    fn a_file_with_a_second_name_is_copied_and_goes_when_the_job_is_there() {
        let root = Root::new();
        let path = root.drop_file("a.jsonl", "one");
        let other = root.temp.path().join("other-name");
        fs::hard_link(&path, &other).unwrap();
        let claim = claimed(&root, "a.jsonl", Dropped::Jsonl);
        assert_ne!(fs::metadata(claim.job.input()).unwrap().ino(), fs::metadata(&other).unwrap().ino());
        assert_eq!(root.waiting(), [format!(".taken-{}", id(1))], "it is claimed: no scan sees it");
        root.drop_file("a.jsonl", "new");
        let job = claim.job.clone();
        claim.settle().unwrap();
        assert_eq!(root.waiting(), ["a.jsonl"], "what was dropped meanwhile stays");
        assert_eq!(fs::read_to_string(path).unwrap(), "new");
        assert!(other.exists());
        assert_eq!(names(job.path()), ["input.jsonl"]);
    }

    #[test]
    fn a_write_through_the_second_name_is_noticed() {
        let root = Root::new();
        let path = root.drop_file("a.jsonl", "one");
        let other = root.temp.path().join("other-name");
        fs::hard_link(&path, &other).unwrap();
        let claim = claimed(&root, "a.jsonl", Dropped::Jsonl);
        fs::write(other, "another").unwrap();
        assert!(claim.is_changed().unwrap());
        claim.put_back().unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "another");
        assert!(root.job_folders().is_empty());
    }

    #[test]
    fn specs_cross_file_systems_by_copy() {
        let Some((root, _state)) = two_file_systems() else { return };
        root.drop_file("a.jsonl", "one");
        root.drop_file("b.toml", "two");
        root.drop_file("c/job.toml", "three");
        root.drop_file("c/data/rows.txt", "row");
        for (name, dropped) in
            [("a.jsonl", Dropped::Jsonl), ("b.toml", Dropped::Toml), ("c", Dropped::Folder)]
        {
            claimed(&root, name, dropped).put_back().unwrap();
            assert_eq!((root.waiting().len(), root.job_folders().len()), (3, 0), "{name} was put back");
        }
        claimed(&root, "b.toml", Dropped::Toml).reject(&report()).unwrap();
        assert_eq!(root.rejected(), ["b.toml", "b.toml.errors.txt"]);
        claimed(&root, "a.jsonl", Dropped::Jsonl).settle().unwrap();
        assert_eq!(root.waiting(), ["c"]);
        let claim = root.job_folders();
        assert_eq!(names(claim[0].path()), ["input.jsonl"]);
        fs::remove_dir_all(root.job_folders()[0].path()).unwrap();
        let claim = claimed(&root, "c", Dropped::Folder);
        assert!(!claim.is_changed().unwrap());
        let job = claim.job.clone();
        claim.settle().unwrap();
        assert!(root.waiting().is_empty());
        assert_eq!(fs::read_to_string(job.spec().join("data/rows.txt")).unwrap(), "row");
    }
}
