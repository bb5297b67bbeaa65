//! The claim of a run: its spec was not taken out of the jobs folder but made of what a schedule keeps, so that there
//! is nothing to put back.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use super::claim::{Claim, Dropped, How, Note};
use super::copy::copy_file;
use super::dir::{Dir, Stamp};
use super::lookout::check_home;
use super::{Error, FOLDER_SPEC, failed};
use crate::disk::File;
use crate::domain::JobName;
use crate::fault;
use crate::store::folder::{self, JobFolder};

/// What a run is made of.
#[derive(Debug)]
pub(super) struct Making<'m> {
    /// The schedule's name in the jobs folder, and what lies there.
    pub(super) file: &'m str,
    pub(super) dropped: Dropped,
    /// What the run is called.
    pub(super) run: &'m JobName,
    /// Where the schedule's text is kept.
    pub(super) text: &'m Path,
}

impl Claim {
    /// Writes the spec of a run into the folder of a new job. What could not be done is undone.
    pub(super) fn make(jobs: &Arc<Dir>, job: JobFolder, making: &Making<'_>) -> Result<Self, Error> {
        let file = jobs.path().join(making.file);
        let folder = match making.dropped {
            Dropped::Folder => Some(jobs.below(OsStr::new(making.file)).map_err(failed("open", &file))?),
            Dropped::Jsonl | Dropped::Toml => None,
        };
        let note = Note { name: making.file.to_owned(), dropped: making.dropped, how: How::Made };
        let aside = Some(format!("{}.toml", making.run));
        let claim = Self { job, note, jobs: Arc::clone(jobs), stamp: Stamp::NONE, aside, folder };
        match claim.write_spec(making.text) {
            Ok(()) => Ok(claim),
            Err(error) => {
                claim.forget()?;
                Err(error)
            }
        }
    }

    fn write_spec(&self, text: &Path) -> Result<(), Error> {
        check_home(&self.job)?;
        self.job.create()?;
        self.write_note()?;
        fault::point("schedule-noted");
        folder::make_private_dir(&self.job.spec())?;
        let bytes = std::fs::read(text).map_err(failed("read", text))?;
        let path = self.job.spec().join(FOLDER_SPEC);
        let mut file = File::create_private(&path).map_err(failed("create", &path))?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed("write", &path))?;
        fault::point("schedule-spec-written");
        Ok(())
    }

    /// Puts a copy of a made spec where a dropped one would be kept, to be moved aside from there: a rename out of the
    /// job's folder may lead to another file system.
    pub(super) fn show_spec(&self) -> Result<(), Error> {
        let (hidden, name) = self.kept().map_err(failed("open", self.job.path()))?;
        let path = hidden.path().join(&name);
        let spec = self.job.spec();
        hidden.remove_file(&name).map_err(failed("remove", &path))?;
        let from = Dir::open(&spec).map_err(failed("open", &spec))?;
        copy_file(&from, OsStr::new(FOLDER_SPEC), &path).map_err(failed("write", &path))
    }
}
