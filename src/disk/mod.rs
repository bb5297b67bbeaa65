//! The seam to the disk: whatever must survive batchd is written through here.
//!
//! Store, intake and results change files by [`File`] and by the functions of this module, and by nothing else
//! (`tests/layers.rs` looks). So tests can stand in between: a probe, installed for a folder, sees every act,
//! may refuse it or cut it short, and knows what a power cut would leave. Outside of tests each act is the system
//! call that it names, and nothing more.
//!
//! # What it does not do
//!
//! It does not read, since what was read can't be lost by it. It does not watch sled, which writes for itself: its
//! index can be rebuilt from what goes through here.

mod file;
#[cfg(test)]
pub(crate) mod probe;
#[cfg(test)]
pub(crate) mod recorder;
#[cfg(test)]
pub(crate) mod scarce;

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

pub use self::file::{File, overwrite};

/// What is about to be done. Paths as the caller has them.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "only the probes of tests look into it")]
pub(crate) enum Act<'a> {
    /// A new, empty file; one that is there is emptied.
    Create {
        path: &'a Path,
    },
    /// Bytes at the end of a file.
    Append {
        path: &'a Path,
        file: &'a fs::File,
        bytes: &'a [u8],
    },
    /// Bytes in the middle of a file are written once more, the same as are there.
    Overwrite {
        path: &'a Path,
        file: &'a fs::File,
        offset: u64,
        bytes: &'a [u8],
    },
    /// A file loses what is beyond `length` bytes.
    Cut {
        path: &'a Path,
        file: &'a fs::File,
        length: u64,
    },
    /// Room for `bytes` is taken behind a file's end; its length stays.
    Reserve {
        path: &'a Path,
        bytes: u64,
    },
    /// The content of a file becomes durable.
    Sync {
        path: &'a Path,
        file: &'a fs::File,
    },
    MakeDir {
        path: &'a Path,
    },
    /// The names in a folder become durable.
    SyncDir {
        path: &'a Path,
    },
    Rename {
        from: &'a Path,
        to: &'a Path,
    },
    Link {
        from: &'a Path,
        to: &'a Path,
    },
    /// A file, or a folder with all that is in it.
    Remove {
        path: &'a Path,
    },
}

#[cfg(test)]
impl Act<'_> {
    /// The path that says whose act it is.
    pub(crate) const fn path(&self) -> &Path {
        match self {
            Self::Create { path }
            | Self::Append { path, .. }
            | Self::Overwrite { path, .. }
            | Self::Cut { path, .. }
            | Self::Reserve { path, .. }
            | Self::Sync { path, .. }
            | Self::MakeDir { path }
            | Self::SyncDir { path }
            | Self::Rename { to: path, .. }
            | Self::Link { to: path, .. }
            | Self::Remove { path } => path,
        }
    }
}

/// Performs an act. Callers that must name files by open folders use it with their own `perform`.
#[cfg(not(test))]
#[inline]
pub(crate) fn carry_out<T>(_: Act<'_>, perform: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    perform()
}

/// Performs an act, if the probe installed for its folder lets it.
#[cfg(test)]
pub(crate) fn carry_out<T>(act: Act<'_>, perform: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    probe::carry_out(act, perform)
}

/// Makes a folder with mode 0700, and those above it, and makes their names durable; one that is there stays as it is.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    make_dir(path, 0o700)
}

/// Makes a folder as the umask has it, and those above it, and makes their names durable; one that is there stays as
/// it is.
pub fn make_shared_dir(path: &Path) -> io::Result<()> {
    make_dir(path, 0o777)
}

fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    let missing = path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
    let parents: Vec<&Path> = missing.filter_map(Path::parent).collect();
    let perform = || fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    carry_out(Act::MakeDir { path }, perform)?;
    // From the top: a name says nothing while the folder that it is in may be lost.
    parents
        .iter()
        .rev()
        .try_for_each(|parent| sync_dir(if parent.as_os_str().is_empty() { Path::new(".") } else { parent }))
}

/// Syncs a folder, which makes the names in it durable.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    carry_out(Act::SyncDir { path }, || fs::File::open(path)?.sync_all())
}

/// Gives a file or folder another name on the same file system; a file that has that name is replaced.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    carry_out(Act::Rename { from, to }, || fs::rename(from, to))
}

/// Gives a file a second name. [`io::ErrorKind::AlreadyExists`] if that is taken.
pub fn hard_link(from: &Path, to: &Path) -> io::Result<()> {
    carry_out(Act::Link { from, to }, || fs::hard_link(from, to))
}

pub fn remove_file(path: &Path) -> io::Result<()> {
    carry_out(Act::Remove { path }, || fs::remove_file(path))
}

/// Removes an empty folder.
pub fn remove_dir(path: &Path) -> io::Result<()> {
    carry_out(Act::Remove { path }, || fs::remove_dir(path))
}

pub fn remove_dir_all(path: &Path) -> io::Result<()> {
    carry_out(Act::Remove { path }, || fs::remove_dir_all(path))
}

/// Whether another file system begins at a folder than the one of the folder above.
pub fn is_mounted(folder: &Path) -> io::Result<bool> {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev());
    Ok(device(folder)? != device(&folder.join(".."))?)
}

/// What a file system has left for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that a process without privileges may still take; [`u64::MAX`] where the file system does not say.
    pub free: u64,
    /// Bytes of the whole file system; 0 where it does not say.
    pub total: u64,
    /// Files that may still be made; [`u64::MAX`] where the file system does not count them.
    pub files: u64,
}

/// What the file system that `path` is on has left. Costs one system call that does not touch the disk.
pub fn space(path: &Path) -> io::Result<Space> {
    #[cfg(test)]
    if let Some(space) = probe::space(path) {
        return Ok(space);
    }
    let stat = rustix::fs::statvfs(path)?;
    let files = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
    Ok(Space {
        // Zero of zero is how some that are mounted through FUSE say nothing: then it shows only by writing.
        free: if stat.f_blocks == 0 { u64::MAX } else { stat.f_bavail.saturating_mul(stat.f_frsize) },
        total: stat.f_blocks.saturating_mul(stat.f_frsize),
        files,
    })
}

/// Whether an error says that there is no room: for bytes, for files, or within a quota.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_file_system_begins_is_seen() {
        assert!(is_mounted(Path::new("/proc")).unwrap());
        assert!(!is_mounted(Path::new("/proc/self")).unwrap());
        assert!(is_mounted(Path::new("/none")).is_err());
    }

    #[test]
    fn a_file_system_that_does_not_say_what_it_has_is_not_full() {
        let space = space(Path::new("/proc")).unwrap();
        assert_eq!(space, Space { free: u64::MAX, total: 0, files: u64::MAX });
    }
}
