//! The eyes of intake: all that is done before a spec is touched.

use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::dir::Dir;
use super::recover::{Unmended, recover};
use super::scan::{Scan, Scanner};
use super::watch::Watch;
use super::{Error, INPUTS, REJECTED, Settings, failed};
use crate::disk;
use crate::domain::Timestamp;
use crate::store::folder::{self, JobFolder};

/// The eyes of intake. They live on a blocking thread while they look.
#[derive(Debug)]
pub(super) struct Lookout {
    pub(super) jobs: PathBuf,
    pub(super) scanner: Scanner,
    pub(super) watch: Option<Watch>,
    pub(super) unmended: Unmended,
    /// A file system of its own was mounted at the jobs folder.
    pub(super) was_mounted: bool,
}

/// What a look found.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) jobs: Arc<Dir>,
    pub(super) scan: Scan,
    /// What was left half done, and can't be undone yet.
    pub(super) unmended: Vec<Error>,
}

impl Lookout {
    /// Looks through the jobs folder; before that, if the state folder is named, undoes what was
    /// left half done there.
    pub(super) fn look(&mut self, now: Timestamp, state: Option<&Path>) -> Result<Seen, Error> {
        let dir = match self.open() {
            Ok(dir) => Arc::new(dir),
            Err(error) => {
                if let Some(watch) = &mut self.watch {
                    watch.disarm();
                }
                return Err(error);
            }
        };
        if let Some(state) = state {
            recover(&dir, state, &mut self.unmended)?;
        }
        if let Some(watch) = &mut self.watch {
            watch.arm(&dir, now);
        }
        let scan = self.scanner.scan(&dir, now).map_err(failed("look through", &self.jobs))?;
        Ok(Seen { jobs: dir, scan, unmended: mem::take(&mut self.unmended.later) })
    }

    /// Opens the jobs folder. What lies under a file system that is not mounted any more is not it.
    fn open(&mut self) -> Result<Dir, Error> {
        let dir = Dir::open(&self.jobs).map_err(failed("open the jobs folder", &self.jobs))?;
        let is_mounted = dir.is_mounted().map_err(failed("look at the jobs folder", &self.jobs))?;
        if self.was_mounted && !is_mounted {
            let why = io::Error::other(
                "its file system is not mounted any more; mount it again, or start batchd anew to go on without it",
            );
            return Err(failed("look through the jobs folder", &self.jobs)(why));
        }
        self.was_mounted = is_mounted;
        Ok(dir)
    }
}

/// Whether there is where the job's folder is to be made. It was made at the start: if it is gone, its file system may
/// be, and what is made in its place would be lost when that comes back.
pub(super) fn check_home(job: &JobFolder) -> Result<(), Error> {
    let home = job.path().parent().unwrap_or_else(|| job.path());
    if home.is_dir() { Ok(()) } else { Err(failed("open", home)(io::ErrorKind::NotFound.into())) }
}

/// Made once, at start: a jobs folder that vanishes later may be a file system that is not mounted.
pub(super) fn make_folders(settings: &Settings) -> Result<(), Error> {
    for path in [settings.jobs.join(INPUTS), settings.jobs.join(REJECTED)] {
        disk::make_shared_dir(&path).map_err(failed("create folder", &path))?;
    }
    Ok(folder::make_private_dir(&settings.state.join("jobs"))?)
}
