//! Copying a spec to where a rename can't bring it: another file system, or a file that has other names.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::dir::Dir;
use super::scan::FOLDER_DEPTH_MAX;
use crate::disk;

/// Copies a regular file into a new private one, synced. Links are not followed.
pub(super) fn copy_file(from: &Dir, name: &OsStr, to: &Path) -> io::Result<()> {
    let (mut source, _) = from.open_file(name)?;
    let mut target = disk::File::create_private(to)?;
    io::copy(&mut source, &mut target)?;
    target.sync_all()
}

/// Copies a folder of regular files and folders into a new private one, synced.
pub(super) fn copy_tree(from: &Dir, name: &OsStr, to: &Path) -> io::Result<()> {
    copy_level(&from.below(name)?, to, 0)
}

fn copy_level(from: &Dir, to: &Path, depth: usize) -> io::Result<()> {
    if depth > FOLDER_DEPTH_MAX {
        return Err(Errno::LOOP.into());
    }
    disk::make_private_dir(to)?;
    for name in from.names()? {
        let name = name?;
        let Some(entry) = from.stat(&name)? else { continue };
        if entry.kind == FileType::Directory {
            copy_level(&from.below(&name)?, &to.join(&name), depth + 1)?;
        } else {
            copy_file(from, &name, &to.join(&name))?;
        }
    }
    disk::sync_dir(to)
}

/// Whether an error means that the source is no longer what the scan saw.
pub(super) fn is_swapped(error: &io::Error) -> bool {
    let swapped = [Errno::LOOP, Errno::NOENT, Errno::NOTDIR, Errno::NXIO];
    error.kind() == io::ErrorKind::InvalidInput
        || swapped.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
