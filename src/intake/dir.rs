//! A folder held open. Everything in it is reached by its name relative to the folder's descriptor,
//! links are never followed, and what a file is gets decided on the opened descriptor: whoever may write
//! to the jobs folder can't make batchd read, replace or remove a file elsewhere by swapping names.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::disk::{self, Act, carry_out};

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// `NONBLOCK` so that a FIFO put in a file's place doesn't hang, `NOCTTY` so that a terminal is not ours.
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// An open folder.
#[derive(Debug)]
pub(super) struct Dir {
    /// For messages, and for what has no descriptor call. Not trusted to be this folder still.
    path: PathBuf,
    fd: OwnedFd,
}

impl Dir {
    /// Opens a folder that the operator named: links in its path are followed.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let fd = rustix::fs::open(path, FOLDER, Mode::empty())?;
        Ok(Self { path: path.to_owned(), fd })
    }

    /// Opens a folder in this one; a link is an error.
    pub(super) fn below(&self, name: &OsStr) -> io::Result<Self> {
        let fd = rustix::fs::openat(&self.fd, name, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
        Ok(Self { path: self.path.join(name), fd })
    }

    /// As [`Dir::below`]; a folder that is not there is made.
    pub(super) fn make_below(&self, name: &OsStr) -> io::Result<Self> {
        let path = self.path.join(name);
        let make = || Ok(rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o777))?);
        match carry_out(Act::MakeDir { path: &path }, make) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => self.below(name),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A path that leads to this folder, whatever its name stands for by now, as long as it is held open.
    pub(super) fn path_of_handle(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    /// Device and inode: which folder this is, whatever it is called.
    pub(super) fn identity(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::fstat(&self.fd)?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// The number of the file system's kind, as `statfs` has it.
    pub(super) fn file_system(&self) -> io::Result<u64> {
        let kind = rustix::fs::fstatfs(&self.fd)?.f_type;
        // Some of them have the highest bit set in a signed word.
        Ok(u64::from(u32::try_from(kind & 0xffff_ffff).unwrap_or_default()))
    }

    /// Whether another file system begins here than the one of the folder above.
    pub(super) fn is_mounted(&self) -> io::Result<bool> {
        let above = rustix::fs::statat(&self.fd, "..", AtFlags::empty())?;
        Ok(rustix::fs::fstat(&self.fd)?.st_dev != above.st_dev)
    }

    /// The names in the folder, in no order.
    pub(super) fn names(&self) -> io::Result<impl Iterator<Item = io::Result<OsString>>> {
        let entries = rustix::fs::Dir::read_from(&self.fd)?;
        let name = |entry: rustix::io::Result<rustix::fs::DirEntry>| match entry {
            Ok(entry) => Ok(OsString::from_vec(entry.file_name().to_bytes().to_vec())),
            Err(error) => Err(error.into()),
        };
        let dots = |name: &io::Result<OsString>| !name.as_ref().is_ok_and(|n| n == "." || n == "..");
        Ok(entries.map(name).filter(dots))
    }

    /// What lies under a name, links not followed; none if nothing does.
    pub(super) fn stat(&self, name: &OsStr) -> io::Result<Option<Entry>> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Entry::of(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a regular file for reading. Anything else is an error, without a byte of it being read.
    pub(super) fn open_file(&self, name: &OsStr) -> io::Result<(File, Entry)> {
        let file = File::from(rustix::fs::openat(&self.fd, name, FILE, Mode::empty())?);
        let entry = entry_of(&file)?;
        if entry.kind != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok((file, entry))
    }

    /// Makes a new file for writing.
    pub(super) fn create_file(&self, name: &OsStr, mode: u32) -> io::Result<disk::File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = self.path.join(name);
        let create = || Ok(rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(mode))?);
        let file = File::from(carry_out(Act::Create { path: &path }, create)?);
        Ok(disk::File::adopt(path, file))
    }

    /// Moves `name` to `new_name` in `to`, where nothing of that name may be.
    pub(super) fn move_new(&self, name: &OsStr, to: &Self, new_name: &OsStr) -> io::Result<()> {
        let (old_path, new_path) = (self.path.join(name), to.path.join(new_name));
        carry_out(Act::Rename { from: &old_path, to: &new_path }, || {
            match rustix::fs::renameat_with(&self.fd, name, &to.fd, new_name, RenameFlags::NOREPLACE) {
                // Some network file systems know no such flag. What is moved there meets only batchd's own
                // names or one that a person makes in the same instant.
                Err(Errno::INVAL | Errno::NOSYS) if to.stat(new_name)?.is_some() => Err(Errno::EXIST.into()),
                Err(Errno::INVAL | Errno::NOSYS) => {
                    Ok(rustix::fs::renameat(&self.fd, name, &to.fd, new_name)?)
                }
                moved => Ok(moved?),
            }
        })
    }

    /// Moves `name` to `new_name` in the same folder, in place of what was there.
    pub(super) fn replace(&self, name: &OsStr, new_name: &OsStr) -> io::Result<()> {
        let (old_path, new_path) = (self.path.join(name), self.path.join(new_name));
        let rename = || Ok(rustix::fs::renameat(&self.fd, name, &self.fd, new_name)?);
        carry_out(Act::Rename { from: &old_path, to: &new_path }, rename)
    }

    /// Removes a file; that it is not there is fine.
    pub(super) fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        let path = self.path.join(name);
        let remove = || Ok(rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())?);
        match carry_out(Act::Remove { path: &path }, remove) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Makes the names in the folder durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        carry_out(Act::SyncDir { path: &self.path }, || Ok(rustix::fs::fsync(&self.fd)?))
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) kind: FileType,
    pub(super) stamp: Stamp,
    /// Names that this file has.
    pub(super) links: u64,
}

impl Entry {
    fn of(stat: &Stat) -> Self {
        let nanos = |seconds: i64, nanos: u64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        let stamp = Stamp {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified_ns: nanos(stat.st_mtime, stat.st_mtime_nsec),
            changed_ns: nanos(stat.st_ctime, stat.st_ctime_nsec),
        };
        Self { kind: FileType::from_raw_mode(stat.st_mode), stamp, links: stat.st_nlink }
    }
}

/// What an open file is now.
pub(super) fn entry_of(file: &File) -> io::Result<Entry> {
    Ok(Entry::of(&rustix::fs::fstat(file)?))
}

/// Which file it is and when it was last written. Of a folder: the sum of its sizes, the newest of its times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) size: u64,
    /// Nanoseconds since the epoch.
    pub(super) modified_ns: i128,
    /// As `modified_ns`, of the last change to the file or its name: nobody can set this one back.
    pub(super) changed_ns: i128,
}

impl Stamp {
    /// Of no file.
    pub(super) const NONE: Self = Self { device: 0, inode: 0, size: 0, modified_ns: 0, changed_ns: 0 };

    /// Whether it is the same file, whatever was written to it.
    pub(super) const fn is_same_file(&self, other: &Self) -> bool {
        self.device == other.device && self.inode == other.inode
    }

    /// Whether it is the same file with the same content. A rename alone changes `changed_ns`.
    pub(super) fn same_content(&self, other: &Self) -> bool {
        Self { changed_ns: other.changed_ns, ..*self } == *other
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_and_fifos_are_never_opened() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("secret"), "x").unwrap();
        symlink(temp.path().join("secret"), temp.path().join("link")).unwrap();
        symlink(temp.path(), temp.path().join("folder-link")).unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(&dir.fd, "pipe", FileType::Fifo, mode, 0).unwrap();
        for name in ["link", "pipe", "folder-link", "missing"] {
            assert!(dir.open_file(OsStr::new(name)).is_err(), "{name}");
        }
        assert!(dir.below(OsStr::new("folder-link")).is_err());
        assert!(dir.open_file(OsStr::new("secret")).is_ok());
    }

    #[test]
    fn moves_never_replace() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("a"), "a").unwrap();
        fs::write(temp.path().join("b"), "b").unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        let error = dir.move_new(OsStr::new("a"), &dir, OsStr::new("b")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        dir.move_new(OsStr::new("a"), &dir, OsStr::new("c")).unwrap();
        assert_eq!(fs::read_to_string(temp.path().join("b")).unwrap(), "b");
        assert_eq!(fs::read_to_string(temp.path().join("c")).unwrap(), "a");
    }

    #[test]
    fn a_rename_changes_the_stamp_but_not_the_content() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("a"), "a").unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        let before = dir.stat(OsStr::new("a")).unwrap().unwrap().stamp;
        dir.move_new(OsStr::new("a"), &dir, OsStr::new("b")).unwrap();
        let after = dir.stat(OsStr::new("b")).unwrap().unwrap().stamp;
        assert!(before.same_content(&after));
        fs::write(temp.path().join("b"), "longer").unwrap();
        assert!(!before.same_content(&dir.stat(OsStr::new("b")).unwrap().unwrap().stamp));
    }
}
