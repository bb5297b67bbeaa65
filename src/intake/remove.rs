//! Removing what may be gone already: whatever was cut short is done again from its beginning.

use std::io;
use std::path::Path;

use super::{Error, failed};
use crate::disk;

pub(super) fn remove_file(path: &Path) -> Result<(), Error> {
    absent_is_fine(disk::remove_file(path)).map_err(failed("remove", path))
}

/// Removes a folder in which nothing is left.
pub(super) fn remove_empty(path: &Path) -> Result<(), Error> {
    absent_is_fine(disk::remove_dir(path)).map_err(failed("remove", path))
}

pub(super) fn remove_tree(path: &Path) -> Result<(), Error> {
    absent_is_fine(disk::remove_dir_all(path)).map_err(failed("remove", path))
}

fn absent_is_fine(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
