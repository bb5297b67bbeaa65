//! The folder of all results. It is made once: one that vanishes later may be a file system that is not mounted, and what
//! was written in its place would be out of sight when that is back. The jobs wait for it instead.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::Error;
use crate::disk;
use crate::store::folder::failed;

/// See the module's words.
#[derive(Debug)]
pub(super) struct Home {
    path: PathBuf,
    /// Whether a file system of its own was mounted there; none before the folder was made.
    was_mounted: Mutex<Option<bool>>,
}

impl Home {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, was_mounted: Mutex::default() }
    }

    /// Refuses to go on where the folder is not there any more. Makes it the first time.
    pub(super) fn check(&self) -> Result<(), Error> {
        let path = &self.path;
        let failed = |act| move |error| Error::Files(failed(act, path)(error));
        let mut was_mounted = self.was_mounted.lock().unwrap_or_else(PoisonError::into_inner);
        if was_mounted.is_none() {
            disk::make_shared_dir(path).map_err(failed("create folder"))?;
        }
        let is_mounted = disk::is_mounted(path).map_err(failed("open the folder of all results"))?;
        if *was_mounted == Some(true) && !is_mounted {
            let why = "its file system is not mounted any more; mount it again, or start batchd anew to go on without it";
            return Err(failed("write results into")(io::Error::other(why)));
        }
        *was_mounted = Some(is_mounted);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_all_results_is_made_once_and_waited_for_afterwards() {
        let temp = tempfile::tempdir().unwrap();
        let (path, away) = (temp.path().join("deep/results"), temp.path().join("away"));
        let home = Home::new(path.clone());
        home.check().unwrap();
        std::fs::rename(&path, &away).unwrap();
        let error = home.check().unwrap_err();
        assert!(error.to_string().contains("open the folder of all results"), "{error}");
        assert!(!path.exists());
        std::fs::rename(&away, &path).unwrap();
        home.check().unwrap();
        *home.was_mounted.lock().unwrap() = Some(true);
        let error = home.check().unwrap_err();
        assert!(error.to_string().contains("is not mounted any more"), "{error}");
        *home.was_mounted.lock().unwrap() = Some(false);
        home.check().unwrap();
    }
}
